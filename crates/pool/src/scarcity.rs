//! What subnets could not give, and when to ask again.
//!
//! EC2 refuses a call that asks for more than a subnet has. So the next one asks for half, down to one; a subnet that
//! has not even that is left alone for a time that doubles, and that differs from node to node: all of a zone find a subnet full.
//! Afterwards it is asked for one, and for all that is wanted once it has given something.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{Moment, SubnetId};

use crate::model::{Mode, Wanted};

/// How long half as many are asked for.
const SMALLER: Duration = Duration::from_secs(120);
/// First and longest rest of a subnet without a single address. Pods may wait for one.
const NO_ADDRESS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// First and longest rest of a subnet without a prefix: single addresses do meanwhile.
const NO_PREFIX: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3600));

/// Shortfalls by subnet and form.
#[derive(Debug, Clone)]
pub(crate) struct Scarcity {
    by_subnet: BTreeMap<(SubnetId, bool), Shortfall>,
    /// How long this node's rests are, in thousandths of what they are on the average.
    length: u32,
}

impl Default for Scarcity {
    fn default() -> Self {
        Self { by_subnet: BTreeMap::new(), length: 1000 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Shortfall {
    ask_at_most: u32,
    until: Moment,
    /// How often in a row there was not even one.
    times: u32,
}

const fn is_prefix(form: Mode) -> bool {
    matches!(form, Mode::Prefixes)
}

impl Scarcity {
    /// Chooses how long this node's rests are: half to one and a half times the average.
    pub(crate) fn spread(&mut self, seed: u64) {
        // A step of xorshift64: seeds that are neighbours come to lie apart.
        let mixed = seed ^ (seed << 13);
        let mixed = mixed ^ (mixed >> 7);
        self.length = 500 + u32::try_from(mixed % 1000).unwrap_or(0);
    }

    /// A rest as long as this node's are.
    fn rest(&self, average: Duration) -> Duration {
        average.saturating_mul(self.length) / 1000
    }

    /// EC2 has refused this for want of addresses.
    pub(crate) fn refused(&mut self, subnet: &SubnetId, wanted: Wanted, now: Moment) {
        let key = (subnet.clone(), is_prefix(wanted.form()));
        let times = self.by_subnet.get(&key).map_or(0, |before| before.times);
        let ask_at_most = wanted.slots() / 2;
        let shortfall = if ask_at_most > 0 {
            Shortfall { ask_at_most, until: now.plus(self.rest(SMALLER)), times }
        } else {
            let (first, longest) = if key.1 { NO_PREFIX } else { NO_ADDRESS };
            let rest = first.saturating_mul(1 << times.min(16)).min(longest);
            Shortfall { ask_at_most, until: now.plus(self.rest(rest)), times: times.saturating_add(1) }
        };
        self.by_subnet.insert(key, shortfall);
    }

    /// EC2 has given something of this form.
    pub(crate) fn given(&mut self, subnet: &SubnetId, form: Mode, now: Moment) {
        let key = (subnet.clone(), is_prefix(form));
        match self.by_subnet.get_mut(&key) {
            Some(shortfall) if shortfall.until > now => shortfall.times = 0,
            _ => drop(self.by_subnet.remove(&key)),
        }
    }

    /// How many of a form may be asked for in one call.
    pub(crate) fn ask_at_most(&self, subnet: &SubnetId, form: Mode, now: Moment) -> u32 {
        let key = (subnet.clone(), is_prefix(form));
        match self.by_subnet.get(&key) {
            Some(shortfall) if shortfall.until > now => shortfall.ask_at_most,
            Some(Shortfall { ask_at_most: 0, .. }) => 1,
            Some(_) | None => u32::MAX,
        }
    }

    /// When the next subnet may be asked again.
    pub(crate) fn next_change(&self, now: Moment) -> Option<Moment> {
        self.by_subnet.values().map(|shortfall| shortfall.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment(second * 1000)
    }

    #[test]
    fn half_is_asked_for_and_then_nothing_for_a_time_that_doubles() {
        let subnet: SubnetId = "subnet-1".parse().unwrap();
        let mut scarcity = Scarcity::default();
        let most = |scarcity: &Scarcity, second| scarcity.ask_at_most(&subnet, Mode::Addresses, at(second));

        scarcity.refused(&subnet, Wanted::Addresses(5), at(0));
        assert_eq!(most(&scarcity, 1), 2);
        scarcity.refused(&subnet, Wanted::Addresses(1), at(2));
        assert_eq!((most(&scarcity, 11), most(&scarcity, 12)), (0, 1));
        scarcity.refused(&subnet, Wanted::Addresses(1), at(12));
        assert_eq!((most(&scarcity, 31), most(&scarcity, 32)), (0, 1));
        assert_eq!(scarcity.next_change(at(31)), Some(at(32)));
        assert_eq!(scarcity.ask_at_most(&subnet, Mode::Prefixes, at(31)), u32::MAX);

        scarcity.given(&subnet, Mode::Addresses, at(40));
        assert_eq!(most(&scarcity, 40), u32::MAX);
        scarcity.refused(&subnet, Wanted::Addresses(1), at(50));
        assert_eq!((most(&scarcity, 59), most(&scarcity, 60)), (0, 1));
    }

    #[test]
    fn nodes_that_find_a_subnet_full_at_once_do_not_ask_again_at_once() {
        let subnet: SubnetId = "subnet-1".parse().unwrap();
        let again = |seed| {
            let mut scarcity = Scarcity::default();
            scarcity.spread(seed);
            scarcity.refused(&subnet, Wanted::Addresses(1), at(0));
            scarcity.next_change(at(0)).unwrap()
        };

        let all: Vec<Moment> = (1..=100).map(again).collect();

        assert!(all.iter().all(|again| (at(5)..at(15)).contains(again)), "{all:?}");
        let apart: std::collections::BTreeSet<u64> = all.iter().map(|again| again.0 / 1000).collect();
        assert!(apart.len() >= 8, "{apart:?}");
    }
}
