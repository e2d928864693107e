//! Pauses: how they grow, and how they are spread.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use types::Moment;

/// A pause that doubles with each time in a row before this one, from the first value up to the second.
#[must_use]
pub fn doubled((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// Spreads pauses, so that nodes do not march in step. The same seed is the same spread.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// That of a seed.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// That of a node by this name at this moment: nodes that start together differ by their names.
    #[must_use]
    pub fn of_node(name: &str, now: Moment) -> Self {
        let mut hasher = DefaultHasher::new();
        (name, now.0).hash(&mut hasher);
        Self::seeded(hasher.finish())
    }

    /// Between half and one and a half times `d`.
    pub fn around(&mut self, d: Duration) -> Duration {
        // xorshift64: spreads, nothing more.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let thousandth = u32::try_from(self.0 % 1000).unwrap_or(0);
        d / 2 + d.saturating_mul(thousandth) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_two_nodes_that_start_together_are_spread_and_stay_within_bounds() {
        let hour = Duration::from_secs(3600);
        let of = |name| {
            let mut jitter = Jitter::of_node(name, Moment(7));
            (0..100).map(|_| jitter.around(hour)).collect::<Vec<_>>()
        };
        let (one, other) = (of("node-1"), of("node-2"));

        assert!(one.iter().all(|pause| (hour / 2..hour * 3 / 2).contains(pause)), "{one:?}");
        assert!(one.iter().zip(&other).filter(|(one, other)| one == other).count() < 5);
        assert_eq!(one, of("node-1"));
    }
}
