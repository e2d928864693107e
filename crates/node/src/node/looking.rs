//! EC2: when to look, what a picture means, and the chores that it brings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use pool::{EniSeen, Note, PICTURE_LAG, Role};
use types::{EniId, Moment, SubnetId};
use wire::Observed;

use super::Node;
use super::event::{Chore, Effect, Picture, Stray, Subnets};
use super::hosting::Gain;
use crate::clock::doubled;
use crate::cloud::{CloudError, CloudErrorKind};

/// Pause before another look when the last one was of something in motion.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long instance metadata may lack a change of ours; the Go version too believes it no sooner. EC2's own answers lag by
/// [`PICTURE_LAG`].
pub(super) const METADATA_LAG: Duration = Duration::from_secs(60);
/// Pause before another look when only instance metadata has answered.
const EC2_AGAIN: Duration = Duration::from_secs(300);
/// Pause before another look when chores could not be done. Doubles with each time in a row, up to the pause between audits: what
/// EC2 refuses for good costs no more than those.
const TIDY_AGAIN: Duration = Duration::from_secs(300);
/// Tags are put right only by a daemon that has run for this long: when many nodes start at once, pods go first.
const TAGS_LATER: Duration = Duration::from_secs(300);
/// A subnet of which less than one part in so many is free is tight: what is to spare goes back soon, for others.
const TIGHT: u64 = 4;
/// An ENI is a leak of another instance when it is as old as this, and so long after it was first seen still there.
const STRAY: Duration = Duration::from_secs(300);

/// When EC2 would have to be asked to know as little as instance metadata may.
pub(super) fn as_of_metadata(asked: Moment) -> Moment {
    asked.minus(METADATA_LAG - PICTURE_LAG)
}

/// Counts what others did; `held`: the ENIs of which pods had addresses before.
fn count(observed: &mut Observed, note: &Note, held: &BTreeSet<EniId>) {
    let many = |addresses: usize| u64::try_from(addresses).unwrap_or(u64::MAX);
    match note {
        Note::EniJoined(..) => observed.enis_joined += 1,
        Note::EniLeft(eni) => {
            observed.enis_left += 1;
            observed.enis_lost += u64::from(held.contains(eni));
        }
        Note::Joined(_, addresses) => observed.addresses_joined += many(addresses.len()),
        Note::Left(_, addresses) => observed.addresses_left += many(addresses.len()),
        Note::Lost(..) => observed.addresses_lost += 1,
    }
}

impl Node {
    /// Looks at the ENIs: at start, after an unclear outcome, and once in a while.
    pub(super) fn look_if_due(&mut self, now: Moment) {
        let due = self.cloud.stale || self.cloud.look_at <= now;
        let knows = self.facts.is_some() && !self.memory.old_facts;
        if knows && !self.cloud.looking && due {
            self.cloud.stale = false;
            self.cloud.looking = true;
            self.cloud.looked_at = now;
            self.effects.push(Effect::Look);
        }
    }

    pub(super) fn looked(&mut self, result: Result<Picture, CloudError>, now: Moment) {
        self.cloud.looking = false;
        match result {
            Ok(mut picture) => {
                if picture.from_metadata {
                    self.tell_roles(&mut picture.enis);
                    picture.as_of = as_of_metadata(picture.as_of);
                }
                self.make_local(&mut picture.enis);
                self.subnets.extend(picture.subnets.clone());
                picture.in_motion |= self.leave_out_unknown_ranges(&mut picture);
                self.cloud.sees();
                let for_trunk = if picture.from_metadata { self.ask_for_trunk() } else { None };
                let pause = match (picture.in_motion, picture.from_metadata) {
                    (true, _) => LOOK_AGAIN,
                    (false, true) => for_trunk.unwrap_or(EC2_AGAIN).min(self.settings.audit_every),
                    (false, false) => self.settings.audit_every,
                };
                self.cloud.look_at = now.plus(self.cloud.jitter(pause));
                self.settle(Gain::Picture(Box::new(picture)), now);
            }
            Err(error) => {
                self.cloud.look_failed(&error, now);
                self.recall(now);
            }
        }
    }

    /// Says whose ENIs are whose tags are not known: what we knew of them holds, also what the daemon before knew, and an ENI that
    /// has the address of a pod of ours is ours, where that address was on no other and not lost before: it may have been taken away
    /// and come to somebody else.
    fn tell_roles(&self, enis: &mut [EniSeen]) {
        let is_on_other = |eni: &EniId, address| {
            let mut others = self.told_before().chain(&self.host.led).filter(|other| other.id != *eni);
            others.any(|other| other.given().covers(address))
        };
        let grants = self.pool.owners().map(|(_, grant)| grant).filter(|grant| grant.place.is_none());
        let placeless: Vec<Ipv4Addr> = grants.map(|grant| grant.address).collect();
        let known = self.told_before().chain(self.pool.seen());
        let known: BTreeMap<EniId, Role> = known.map(|eni| (eni.id.clone(), eni.role)).collect();
        for eni in enis.iter_mut().filter(|eni| eni.role != Role::Primary) {
            let (id, given) = (&eni.id, eni.given());
            let mut its = placeless.iter().filter(|address| given.covers(**address));
            match known.get(id) {
                Some(role) => eni.role = *role,
                None if its.any(|its| !is_on_other(id, *its) && !self.was_lost_by(id, *its)) => {
                    eni.role = Role::Secondary;
                }
                None => {}
            }
        }
    }

    pub(super) fn pictured(&mut self, picture: Picture, now: Moment) {
        let first = !std::mem::replace(&mut self.cloud.pictured, true);
        self.memory.old_picture = picture.recalled;
        // A look that began before the refusal is followed by another one.
        self.cloud.wrong &= self.cloud.stale || self.cloud.looking;
        self.ipv6_pictured(&picture, now);
        self.pool.occupy(picture.occupied);
        if let Some(Subnets { for_new, excluded, free }) = picture.choice {
            self.free_in_subnets = free;
            // Where an ENIConfig says which subnet it is, the tags of subnets mean nothing.
            if !self.settings.custom_networking {
                self.pool.set_subnets(for_new);
                self.pool.set_excluded(excluded);
            }
        }
        self.custom.subnets_untold = picture.subnets_untold;
        self.place_enis();
        if self.unlisted().is_some() {
            let again = now.plus(self.cloud.jitter(EC2_AGAIN));
            self.cloud.look_at = self.cloud.look_at.min(again);
        }
        let held: BTreeSet<EniId> =
            self.pool.owners().filter_map(|(_, grant)| Some(grant.place?.eni)).collect();
        let notes = self.pool.observe(&picture.enis, picture.as_of, now);
        for note in &notes {
            tracing::info!("{note}");
            // What the first picture shows nobody has changed.
            if !first {
                count(&mut self.observed, note, &held);
            }
        }
        // A picture may be older than it seems: what pods have lost by it a second one may bring back.
        if notes.iter().any(|note| matches!(note, Note::Lost(..) | Note::EniLeft(_))) {
            let again = now.plus(self.cloud.jitter(LOOK_AGAIN));
            self.cloud.look_at = self.cloud.look_at.min(again);
        }
        if first {
            self.effects.push(Effect::Checkpoint(Box::new(self.pool.snapshot())));
        }
        self.efa_only = picture.efa_only;
        self.choose_cards();
        // What this picture could not settle the next one will.
        if let Some(until) = self.pool.doubtful_until(picture.as_of) {
            let until = if picture.from_metadata { until.plus(METADATA_LAG - PICTURE_LAG) } else { until };
            self.cloud.look_at = self.cloud.look_at.min(until.max(now));
        }
        self.doubt_the_start(now);
        let leaks = self.leaks(&picture.strays, picture.as_of);
        let only_leaks = picture.chores.is_empty();
        let chores = picture.chores.into_iter().chain(leaks.into_iter().map(Chore::Delete));
        let later = now.since(self.started) < TAGS_LATER;
        let due = |chore: &Chore| match chore {
            Chore::Delete(_) => self.may(true),
            Chore::Tie { .. } | Chore::Guard { .. } | Chore::Track { .. } => self.may(false),
            Chore::Tag { .. } => self.may(false) && !later,
        };
        let chores = chores.filter(due).collect();
        self.tidy(chores, only_leaks, now);
    }

    /// Whether nobody is short of addresses, as far as the last look tells of the subnets where ours are.
    pub(super) fn has_plenty(&self) -> bool {
        let has_plenty = |(subnet, free): (&SubnetId, &u32)| {
            let range = self.subnets.get(subnet);
            range.is_some_and(|range| u64::from(*free).saturating_mul(TIGHT) >= u64::from(range.size()))
        };
        let mut ours = self.free_in_subnets.iter().filter(|(subnet, _)| self.is_place(subnet)).peekable();
        ours.peek().is_some() && ours.all(has_plenty)
    }

    fn tidy(&mut self, mut chores: Vec<Chore>, only_leaks: bool, now: Moment) {
        // An ENI that seems forgotten may be the one that a call is about: then a later look finds out.
        if self.cloud.tidying || (self.pool.is_creating() && chores.iter().any(Chore::may_be_new)) {
            self.cloud.look_at = self.cloud.look_at.min(now.plus(LOOK_AGAIN));
            chores.clear();
        }
        if !chores.is_empty() {
            self.cloud.tidying = true;
            self.cloud.only_leaks = only_leaks;
            self.effects.push(Effect::Tidy(chores));
        }
    }

    /// The strays that are leaks: old enough, and seen twice with time enough between for whoever made them to attach them.
    fn leaks(&mut self, strays: &[Stray], as_of: Moment) -> Vec<EniId> {
        let before = std::mem::take(&mut self.strays);
        self.strays = strays
            .iter()
            .map(|stray| (stray.eni.clone(), before.get(&stray.eni).copied().unwrap_or(as_of)))
            .collect();
        let seen_long =
            |stray: &&Stray| self.strays.get(&stray.eni).is_some_and(|first| as_of.since(*first) >= STRAY);
        let old = strays.iter().filter(|stray| as_of.since(stray.made) >= STRAY);
        old.filter(seen_long).map(|stray| stray.eni.clone()).collect()
    }

    pub(super) fn tidied(&mut self, result: Result<(), CloudError>, now: Moment) {
        self.cloud.tidying = false;
        let only_leaks = std::mem::take(&mut self.cloud.only_leaks);
        // No pod waits for it: growth goes on meanwhile.
        let Err(error) = result else {
            self.cloud.untidy = 0;
            return;
        };
        tracing::warn!(error = crate::chain(&error), "something about our ENIs could not be put right");
        // What we may not do we may not do the next time either, and leaks of other instances all nodes of the cluster see.
        if error.kind() != CloudErrorKind::Denied && !only_leaks {
            let pause = doubled((TIDY_AGAIN, self.settings.audit_every), self.cloud.untidy);
            self.cloud.untidy = self.cloud.untidy.saturating_add(1);
            let again = now.plus(self.cloud.jitter(pause));
            self.cloud.look_at = self.cloud.look_at.min(again);
        }
    }

    /// An ENI was made that would outlive the instance: a look finds it, and ties it to that.
    pub(super) fn untied(&mut self, now: Moment) {
        let again = now.plus(self.cloud.jitter(LOOK_AGAIN));
        self.cloud.look_at = self.cloud.look_at.min(again);
    }
}
