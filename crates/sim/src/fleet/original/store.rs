//! The original's datastore: who has which address, with its random choice and its cooldown.

use std::time::Duration;

use pool::Given;
use types::{EniId, Moment};

use super::formulas::{Rules, Stats};
use crate::fleet::daemon::Sandbox;
use crate::rng::Rng;

/// How long a released address is not given out again.
const COOLDOWN: Duration = Duration::from_secs(30);
/// An ENI is not freed before this age.
const ENI_AGE_MIN: Duration = Duration::from_secs(60);

/// What becomes of one address.
#[derive(Debug, Clone, Copy)]
enum Use {
    Fresh,
    Assigned(Sandbox),
    Cooling(Moment),
}

/// A single address or a prefix.
#[derive(Debug)]
struct Cidr {
    what: Given,
    uses: Vec<Use>,
    assigned: u32,
}

/// An ENI in the store.
#[derive(Debug)]
struct Known {
    id: EniId,
    primary: bool,
    since: Moment,
    cidrs: Vec<Cidr>,
}

/// The store.
#[derive(Debug, Default)]
pub(super) struct Store {
    enis: Vec<Known>,
    /// Kept beside, because it is asked for every five seconds.
    stats: Stats,
}

impl Store {
    pub(super) const fn stats(&self) -> Stats {
        self.stats
    }

    #[cfg(test)]
    pub(super) const fn enis(&self) -> usize {
        self.enis.len()
    }

    pub(super) fn add_eni(&mut self, id: EniId, given: Given, now: Moment) {
        let primary = self.enis.is_empty();
        self.enis.push(Known { id: id.clone(), primary, since: now, cidrs: Vec::new() });
        self.add(&id, given);
    }

    pub(super) fn add(&mut self, id: &EniId, given: Given) {
        let Some(eni) = self.enis.iter_mut().find(|eni| eni.id == *id) else { return };
        let singles = given.addresses.into_iter().map(|address| Given::addresses([address].into()));
        let prefixes = given.prefixes.into_iter().map(|prefix| Given::prefixes([prefix].into()));
        for what in singles.chain(prefixes) {
            let uses = vec![Use::Fresh; what.all().count()];
            eni.cidrs.push(Cidr { what, uses, assigned: 0 });
        }
        self.count();
    }

    /// Gives a pod an address: of any ENI and CIDR, as Go walks its maps.
    pub(super) fn assign(&mut self, sandbox: Sandbox, rng: &mut Rng, now: Moment) -> bool {
        let from = rng.below(count(&self.enis).into());
        let found = rotated(&mut self.enis, from).find_map(|eni| {
            let from = rng.below(count(&eni.cidrs).into());
            rotated(&mut eni.cidrs, from).find_map(|cidr| cidr.assign(sandbox, now))
        });
        self.count();
        found.is_some()
    }

    pub(super) fn unassign(&mut self, sandbox: Sandbox, now: Moment) {
        for cidr in self.enis.iter_mut().flat_map(|eni| &mut eni.cidrs) {
            let held = cidr.uses.iter_mut().find(|of| matches!(of, Use::Assigned(by) if *by == sandbox));
            if let Some(of) = held {
                *of = Use::Cooling(now);
                cidr.assigned -= 1;
                return self.count();
            }
        }
    }

    /// An ENI with room, and how many CIDRs it has.
    pub(super) fn with_room(&self, rules: &Rules, rng: &mut Rng) -> Option<(EniId, u32)> {
        let room: Vec<(&EniId, u32)> = self
            .enis
            .iter()
            .map(|eni| (&eni.id, count(&eni.cidrs)))
            .filter(|(_, has)| *has < rules.slots)
            .collect();
        let (id, has) = rng.pick(&room)?;
        Some((id.clone(), has))
    }

    pub(super) fn can_have_more_enis(&self, rules: &Rules) -> bool {
        count(&self.enis) < rules.max_enis
    }

    /// Takes so many CIDRs without a pod out of the store; cooling addresses do not protect theirs.
    pub(super) fn take_idle(&mut self, most: u32) -> Vec<(EniId, Given)> {
        let mut left = most;
        let mut taken = Vec::new();
        for eni in &mut self.enis {
            let mut given = Given::default();
            eni.cidrs.retain(|cidr| {
                let goes = left > 0 && cidr.assigned == 0;
                if goes {
                    left -= 1;
                    given.addresses.extend(&cidr.what.addresses);
                    given.prefixes.extend(&cidr.what.prefixes);
                }
                !goes
            });
            if !given.is_empty() {
                taken.push((eni.id.clone(), given));
            }
        }
        self.count();
        taken
    }

    /// Takes an ENI that can go out of the store.
    pub(super) fn take_eni(&mut self, rules: &Rules, now: Moment) -> Option<EniId> {
        let idle = self.enis.iter().any(|eni| !eni.primary && eni.stats().assigned == 0);
        if !rules.looks_for_eni_to_free(self.stats, idle) {
            return None;
        }
        let goes = |eni: &Known| {
            let (all, own) = (self.stats, eni.stats());
            let free = all.available() - own.available();
            let targets = rules.hold_with(free, all.total - own.total, all.free_prefixes - own.free_prefixes);
            !eni.primary && now.since(eni.since) >= ENI_AGE_MIN && eni.is_at_rest(now) && targets
        };
        let index = self.enis.iter().position(goes)?;
        let eni = self.enis.remove(index);
        self.count();
        Some(eni.id)
    }

    fn count(&mut self) {
        self.stats = self.enis.iter().map(Known::stats).fold(Stats::default(), |sum, own| Stats {
            total: sum.total + own.total,
            assigned: sum.assigned + own.assigned,
            prefixes: sum.prefixes + own.prefixes,
            free_prefixes: sum.free_prefixes + own.free_prefixes,
        });
    }
}

impl Known {
    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for cidr in &self.cidrs {
            let prefix = u32::from(!cidr.what.prefixes.is_empty());
            stats.total += count(&cidr.uses);
            stats.assigned += cidr.assigned;
            stats.prefixes += prefix;
            stats.free_prefixes += if cidr.assigned == 0 { prefix } else { 0 };
        }
        stats
    }

    /// No pod, and nothing that cools.
    fn is_at_rest(&self, now: Moment) -> bool {
        self.cidrs.iter().flat_map(|cidr| &cidr.uses).all(|of| match of {
            Use::Fresh => true,
            Use::Assigned(_) => false,
            Use::Cooling(since) => now.since(*since) > COOLDOWN,
        })
    }
}

impl Cidr {
    fn assign(&mut self, sandbox: Sandbox, now: Moment) -> Option<()> {
        let cooled = |of: &Use| matches!(of, Use::Cooling(since) if now.since(*since) > COOLDOWN);
        let index = self.uses.iter().position(cooled);
        let index = index.or_else(|| self.uses.iter().position(|of| matches!(of, Use::Fresh)))?;
        *self.uses.get_mut(index)? = Use::Assigned(sandbox);
        self.assigned += 1;
        Some(())
    }
}

/// All of them, from one in the middle on.
fn rotated<T>(all: &mut [T], from: u64) -> impl Iterator<Item = &mut T> {
    let middle = usize::try_from(from).unwrap_or(0).min(all.len());
    let (before, after) = all.split_at_mut(middle);
    after.iter_mut().chain(before)
}

fn count<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap_or(u32::MAX)
}
