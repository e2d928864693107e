//! What has been to spare for a while: only that is given back, so that pods that come and go cost no calls.

use std::time::Duration;

use types::Moment;

/// Two spells are looked back on, one of them whole. A spell is so many cooldowns, but not longer than this: pods that
/// come and go make what is available dip for a cooldown each.
const COOLDOWNS: u32 = 5;
const LONGEST: Duration = Duration::from_secs(150);
/// Spells where nobody is short of addresses, for single ones and for whole ENIs and prefixes. A target in addresses is there
/// to hold few of them. An ENI costs two calls to give back and three to have again, so what the last burst took is there for
/// the next one of the same day.
const PATIENT: (Duration, Duration) = (Duration::from_secs(15 * 60), Duration::from_secs(4 * 3600));

/// How long what is to spare may wait before it is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Somebody may be short of addresses, or no target says what is to be kept.
    None,
    /// Nobody is, and single addresses are to spare.
    Addresses,
    /// Nobody is, and ENIs or prefixes are.
    Units,
}

/// The fewest available addresses lately, in spells for each patience.
///
/// A restart begins anew.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lately {
    short: Spells,
    longer: Spells,
    longest: Spells,
}

impl Lately {
    pub(crate) fn new(cooldown: Duration) -> Self {
        let short = Spells::of(cooldown.saturating_mul(COOLDOWNS).min(LONGEST));
        Self { short, longer: Spells::of(PATIENT.0), longest: Spells::of(PATIENT.1) }
    }

    /// So many are available now.
    pub(crate) fn note(&mut self, available: i64, now: Moment) {
        for spells in [&mut self.short, &mut self.longer, &mut self.longest] {
            spells.note(available, now);
        }
    }

    /// So many of those that were to spare have gone.
    pub(crate) fn spared(&mut self, addresses: u32) {
        for spells in [&mut self.short, &mut self.longer, &mut self.longest] {
            spells.spared(addresses);
        }
    }

    /// The spells to go by.
    pub(crate) const fn spells(self, patience: Patience) -> Spells {
        match patience {
            Patience::None => self.short,
            Patience::Addresses => self.longer,
            Patience::Units => self.longest,
        }
    }
}

/// The fewest available addresses of the spell that runs and of the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spells {
    length: Duration,
    before: Option<i64>,
    running: Option<(Moment, i64)>,
}

impl Spells {
    const fn of(length: Duration) -> Self {
        Self { length, before: None, running: None }
    }

    fn note(&mut self, available: i64, now: Moment) {
        match &mut self.running {
            Some((since, fewest)) if now.since(*since) < self.length => *fewest = available.min(*fewest),
            Some((_, fewest)) => {
                self.before = Some(*fewest);
                self.running = Some((now, available));
            }
            None => self.running = Some((now, available)),
        }
    }

    fn spared(&mut self, addresses: u32) {
        let running = self.running.as_mut().map(|(_, fewest)| fewest);
        for fewest in self.before.as_mut().into_iter().chain(running) {
            *fewest = fewest.saturating_sub(addresses.into());
        }
    }

    /// How many of those that are available now have been so for a while. All, if nothing was ever noted; none, if
    /// that was too short a time ago.
    pub(crate) fn lasting(self, available: i64) -> i64 {
        match (self.before, self.running) {
            (Some(before), Some((_, running))) => available.min(before).min(running),
            (None, Some(_)) => available.min(0),
            (_, None) => available,
        }
    }

    /// When the spell that runs is over.
    pub(crate) fn next_change(self) -> Option<Moment> {
        self.running.map(|(since, _)| since.plus(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment(second * 1000)
    }

    #[test]
    fn what_was_short_a_moment_ago_is_not_to_spare() {
        let mut lately = Spells::of(LONGEST);
        assert_eq!(lately.lasting(9), 9);

        lately.note(7, at(0));
        assert_eq!(lately.lasting(7), 0);
        lately.note(9, at(150));
        assert_eq!(lately.lasting(9), 7);
        lately.note(3, at(200));
        lately.note(8, at(210));
        assert_eq!(lately.lasting(8), 3);
        lately.note(8, at(300));
        assert_eq!(lately.lasting(8), 3);
        assert_eq!(lately.next_change(), Some(at(450)));
        lately.note(8, at(450));
        assert_eq!(lately.lasting(8), 8);
        assert_eq!(lately.lasting(5), 5);
        lately.spared(2);
        assert_eq!(lately.lasting(6), 6);
        lately.spared(2);
        assert_eq!(lately.lasting(6), 4);
    }

    #[test]
    fn with_more_patience_is_looked_back_longer() {
        let mut lately = Lately::new(Duration::from_secs(30));
        let mut lasting = |available, minute: u64| {
            lately.note(available, at(minute * 60));
            let each = [Patience::None, Patience::Addresses, Patience::Units];
            each.map(|patience| lately.spells(patience).lasting(available))
        };

        lasting(2, 0);
        lasting(9, 3);
        assert_eq!(lasting(9, 6), [9, 0, 0]);
        assert_eq!(lasting(9, 15), [9, 2, 0]);
        assert_eq!(lasting(9, 30), [9, 9, 0]);
        assert_eq!(lasting(9, 240), [9, 9, 2]);
        assert_eq!(lasting(9, 480), [9, 9, 9]);
    }
}
