//! What has been to spare for a while: only that is given back, so that pods that come and go cost no calls.

use std::time::Duration;

use types::Moment;

/// Two spells are looked back on, one of them whole. A spell is so many cooldowns, but not longer than this: pods that
/// come and go make what is available dip for a cooldown each.
const COOLDOWNS: u32 = 5;
const LONGEST: Duration = Duration::from_secs(150);

/// The fewest available addresses of the spell that runs and of the one before.
///
/// A restart begins anew.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lately {
    spell: Duration,
    before: Option<i64>,
    running: Option<(Moment, i64)>,
}

impl Lately {
    pub(crate) fn new(cooldown: Duration) -> Self {
        Self { spell: cooldown.saturating_mul(COOLDOWNS).min(LONGEST), before: None, running: None }
    }

    /// So many are available now.
    pub(crate) fn note(&mut self, available: i64, now: Moment) {
        match &mut self.running {
            Some((since, fewest)) if now.since(*since) < self.spell => *fewest = available.min(*fewest),
            Some((_, fewest)) => {
                self.before = Some(*fewest);
                self.running = Some((now, available));
            }
            None => self.running = Some((now, available)),
        }
    }

    /// How many of those that are available now have been so for a while. All, if nothing was ever noted; none, if
    /// that was too short a time ago.
    pub(crate) fn of(self, available: i64) -> i64 {
        match (self.before, self.running) {
            (Some(before), Some((_, running))) => available.min(before).min(running),
            (None, Some(_)) => available.min(0),
            (_, None) => available,
        }
    }

    /// When the spell that runs is over.
    pub(crate) fn next_change(self) -> Option<Moment> {
        self.running.map(|(since, _)| since.plus(self.spell))
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
        let mut lately = Lately::new(Duration::from_secs(30));
        assert_eq!(lately.of(9), 9);

        lately.note(7, at(0));
        assert_eq!(lately.of(7), 0);
        lately.note(9, at(150));
        assert_eq!(lately.of(9), 7);
        lately.note(3, at(200));
        lately.note(8, at(210));
        assert_eq!(lately.of(8), 3);
        lately.note(8, at(300));
        assert_eq!(lately.of(8), 3);
        assert_eq!(lately.next_change(), Some(at(450)));
        lately.note(8, at(450));
        assert_eq!(lately.of(8), 8);
        assert_eq!(lately.of(5), 5);
    }
}
