//! IPv6: the prefix of the primary ENI, which pods have their addresses of.
//!
//! One prefix is enough for ever, so there is nothing to plan: it is asked for when a picture shows none, and again should somebody
//! take it away. Where pods get none of it any more, one that we asked for goes back after the last pod that has an address of it.
//!
//! Pods with IPv4 addresses of the VPC can reach IPv6 by the node's own address instead: then theirs mean something on the node only.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pool::{EniSeen, PICTURE_LAG, PICTURE_LAG_MAX, Role};
use types::{Ipv6Prefix, Moment, Reason};

use super::Node;
use super::event::{BatchId, Effect, Facts};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::families::{is_local, local_addresses};
use crate::status::pods_in;
use crate::store::{Ipv6Books, Record};

/// Pause before EC2 is told again to take the prefix back.
const KEEP: Duration = Duration::from_secs(300);

/// What we know of the prefix.
#[derive(Debug, Default)]
pub(super) struct Ipv6State {
    /// It, if the primary ENI has one.
    pub(super) prefix: Option<Ipv6Prefix>,
    /// When EC2 gave it to us: pictures asked for shortly after may lack it.
    given_at: Option<Moment>,
    /// EC2 has been asked for one.
    asking: bool,
    /// EC2 may have given one: the next picture tells.
    unsure: bool,
    /// What is on disk of it, or about to be.
    pub(super) books: Ipv6Books,
    /// How far giving it back is.
    leaving: Leaving,
    /// Not given back before this.
    keep_until: Moment,
    /// Why EC2 has not taken it back.
    kept: Option<(Reason, String)>,
}

/// How far giving the prefix back is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Leaving {
    /// It stays.
    #[default]
    No,
    /// That it goes is being written down.
    Writing(BatchId),
    /// EC2 is being told.
    Telling,
}

impl Node {
    /// What pods need to be served, and is not there.
    pub(super) const fn lacks_ipv6(&self) -> bool {
        self.settings.families.needs_prefix() && self.ipv6.prefix.is_none()
    }

    /// The IPv6 address that goes with an address of the pool.
    pub(super) fn ipv6_beside(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let families = self.settings.families;
        let node_has_ipv6 = self.facts.as_ref().is_some_and(|facts| facts.ipv6.is_some());
        let local = (families.has_ipv6_egress() && node_has_ipv6).then_some(Ipv6Prefix::LOCAL);
        let prefix = self.ipv6.prefix.filter(|_| families.needs_prefix()).or(local);
        prefix.map(|prefix| prefix.beside(address))
    }

    /// The address by which pods with IPv4 addresses of the VPC reach IPv6, where that is wanted or a pod was wired for it.
    pub(super) fn ipv6_egress(&self, facts: &Facts) -> Option<Ipv6Addr> {
        let wired = || self.pool.holders().any(|(owner, _)| owner.ipv6.is_some_and(is_local));
        facts.ipv6.filter(|_| self.settings.families.has_ipv6_egress() || wired())
    }

    /// What is wrong with IPv6, in words.
    pub(super) fn ipv6_troubles(&self) -> impl Iterator<Item = String> {
        let kept = self.ipv6.kept.as_ref().zip(self.ipv6.books.ours);
        let kept = kept.map(|((reason, why), prefix)| {
            format!("{reason}: {prefix}, which no pod needs any more, is not given back: {why}")
        });
        self.no_way_out().into_iter().chain(self.lost_addresses()).chain(kept)
    }

    /// That pods get no IPv6 although it is wanted.
    fn no_way_out(&self) -> Option<String> {
        let facts = self.facts.as_ref().filter(|_| self.settings.families.has_ipv6_egress())?;
        let why = "the primary ENI has no IPv6 address that they could leave by";
        facts.ipv6.is_none().then(|| format!("{}: new pods do not reach IPv6: {why}", Reason::NoIpv6))
    }

    /// Pods with addresses of a prefix that the primary ENI has lost: they keep them, as pods do whose IPv4 address EC2 does not show.
    fn lost_addresses(&self) -> Option<String> {
        let lost = |ipv6: Ipv6Addr| !is_local(ipv6) && Some(Ipv6Prefix::of(ipv6)) != self.ipv6.prefix;
        let of_lost = self.pool.holders().filter(|(owner, _)| owner.ipv6.is_some_and(lost));
        let pods: Vec<String> = of_lost.map(|(owner, _)| owner.pod.to_string()).collect();
        let (first, rest) = pods.split_first().filter(|_| self.cloud.pictured)?;
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        Some(format!(
            "{}: {first}{more} have IPv6 addresses that the primary ENI has lost, and do not reach IPv6",
            Reason::NoIpv6
        ))
    }

    /// The node has another IPv6 address, or has one now.
    pub(super) fn node_ipv6(&mut self, address: Ipv6Addr) {
        if let Some(facts) = &mut self.facts
            && facts.ipv6 != Some(address)
        {
            tracing::info!(%address, "the node has this IPv6 address now");
            facts.ipv6 = Some(address);
            self.host.dirty = true;
            self.memory.dirty = true;
        }
    }

    /// Takes in which prefixes the primary ENI has.
    pub(super) fn ipv6_pictured(&mut self, seen: &BTreeSet<Ipv6Prefix>, as_of: Moment) {
        if self.ipv6.given_at.is_some_and(|at| as_of < at.plus(PICTURE_LAG_MAX)) {
            return;
        }
        let left = self.ipv6.books.left.filter(|(_, at)| as_of < at.plus(PICTURE_LAG_MAX));
        let is_there = |prefix: &&Ipv6Prefix| left.is_none_or(|(left, _)| left != **prefix);
        let seen: BTreeSet<Ipv6Prefix> = seen.iter().filter(is_there).copied().collect();
        self.ipv6.unsure = false;
        let had = self.ipv6.prefix;
        if had.is_some_and(|prefix| seen.contains(&prefix)) {
            return;
        }
        self.ipv6.prefix = seen.first().copied();
        match (had, self.ipv6.prefix) {
            (Some(lost), _) => {
                let pods = pods_in(&self.pool, lost);
                tracing::warn!(prefix = %lost, pods, "the primary ENI has lost its IPv6 prefix, and pods their IPv6 addresses");
                self.ipv6.kept = None;
                if self.ipv6.books.ours == Some(lost) {
                    // Should it come back, somebody else has asked for it.
                    self.write_ipv6(Ipv6Books { ours: None, ..self.ipv6.books });
                }
            }
            (None, Some(prefix)) if self.settings.families.needs_prefix() => {
                tracing::info!(%prefix, "the primary ENI has an IPv6 prefix");
            }
            (None, _) => {}
        }
    }

    /// Asks for a prefix where none is, unless EC2 wants to be left alone.
    pub(super) fn want_ipv6(&mut self, now: Moment) {
        let busy = self.ipv6.asking || self.ipv6.unsure || self.cloud.hold_until > now;
        if !self.lacks_ipv6() || busy || !self.cloud.pictured || !self.is_up_to_date() || !self.may(false) {
            return;
        }
        let Some(primary) = self.pool.enis().into_iter().find(|eni| eni.role == Role::Primary) else {
            return;
        };
        self.ipv6.asking = true;
        self.effects.push(Effect::AssignIpv6(primary.id));
    }

    pub(super) fn ipv6_assigned(&mut self, result: Result<Ipv6Prefix, CloudError>, now: Moment) {
        self.ipv6.asking = false;
        match result {
            Ok(prefix) => {
                self.cloud.worked();
                tracing::info!(%prefix, "EC2 has given the primary ENI an IPv6 prefix");
                (self.ipv6.prefix, self.ipv6.given_at) = (Some(prefix), Some(now));
                // Should we die before it is written, the prefix is nobody's that we know, and stays.
                self.write_ipv6(Ipv6Books { ours: Some(prefix), ..self.ipv6.books });
            }
            Err(error) => {
                self.cloud.failed(&error, now);
                if error.kind() == CloudErrorKind::Unclear {
                    self.ipv6.unsure = true;
                    self.cloud.look_at = self.cloud.look_at.min(self.cloud.hold_until);
                }
            }
        }
    }

    fn write_ipv6(&mut self, books: Ipv6Books) -> BatchId {
        self.ipv6.books = books;
        let batch = self.next_batch();
        self.effects.push(Effect::Append(batch, vec![Record::Ipv6(books)]));
        batch
    }

    /// The prefix that may go back: it is ours, it is there, and no pod has or gets an address of it.
    fn idle_ipv6(&self) -> Option<Ipv6Prefix> {
        let ours = self.ipv6.books.ours.filter(|_| !self.settings.families.needs_prefix())?;
        let is_idle = self.ipv6.prefix == Some(ours) && pods_in(&self.pool, ours) == 0;
        is_idle.then_some(ours)
    }

    /// Gives the prefix back once it is idle: first it is written down that it goes.
    pub(super) fn spare_ipv6(&mut self, now: Moment) {
        let early = self.cloud.hold_until > now || self.ipv6.keep_until > now;
        let allowed = self.may(true) && !self.keeps_all();
        if early || self.ipv6.leaving != Leaving::No || !self.cloud.pictured || !allowed {
            return;
        }
        let Some(prefix) = self.idle_ipv6() else { return };
        tracing::info!(%prefix, "no pod needs the IPv6 prefix any more: it goes back");
        let books = Ipv6Books { left: Some((prefix, now)), ..self.ipv6.books };
        self.ipv6.leaving = Leaving::Writing(self.write_ipv6(books));
    }

    /// Makes the call whose intent is on disk.
    pub(super) fn ipv6_intended(&mut self, batch: BatchId, result: &Result<(), String>) {
        if self.ipv6.leaving != Leaving::Writing(batch) {
            return;
        }
        self.ipv6.leaving = Leaving::No;
        let primary = self.pool.enis().into_iter().find(|eni| eni.role == Role::Primary);
        // Somebody may have put the brake on meanwhile.
        if result.is_ok()
            && self.may(true)
            && let (Some(primary), Some(prefix)) = (primary, self.idle_ipv6())
        {
            self.ipv6.leaving = Leaving::Telling;
            self.effects.push(Effect::ReleaseIpv6(primary.id, prefix));
        }
    }

    pub(super) fn ipv6_released(&mut self, result: Result<(), CloudError>, now: Moment) {
        self.ipv6.leaving = Leaving::No;
        self.ipv6.kept = None;
        match result {
            Err(error) if error.kind() != CloudErrorKind::Gone => {
                // No pod waits for it: growth goes on meanwhile. An unclear answer is looked at: it may have gone.
                tracing::warn!(error = crate::chain(&error), "the IPv6 prefix is not given back");
                self.ipv6.kept = Some((error.kind().reason(), crate::chain(&error)));
                self.ipv6.keep_until = now.plus(self.cloud.jitter(KEEP));
                if error.kind() == CloudErrorKind::Unclear {
                    self.cloud.look_at = self.cloud.look_at.min(now.plus(PICTURE_LAG));
                }
            }
            Ok(()) | Err(_) => {
                let left = self.ipv6.books.ours.map(|prefix| (prefix, now));
                self.ipv6.prefix = None;
                self.write_ipv6(Ipv6Books { ours: None, left });
            }
        }
    }

    /// What a picture means on a node whose pods have IPv4 addresses of the node alone: these are there from the start, and
    /// no ENI but the primary one is for pods.
    pub(super) fn make_local(&self, enis: &mut [EniSeen]) {
        if self.settings.families.has_ipv4_of_vpc() {
            return;
        }
        for eni in enis {
            eni.prefixes.clear();
            match eni.role {
                Role::Primary => eni.addresses = local_addresses(),
                Role::Secondary | Role::Efa | Role::Trunk | Role::Unmanaged => {
                    (eni.role, eni.addresses) = (Role::Unmanaged, BTreeSet::new());
                }
            }
        }
    }
}
