//! IPv6: the prefix of the primary ENI, which pods have their addresses of.
//!
//! One prefix is enough for ever, so there is nothing to plan: it is asked for when a picture shows none, and again should somebody
//! take it away.
//!
//! Pods with IPv4 addresses of the VPC can reach IPv6 by the node's own address instead: then theirs mean something on the node only.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use pool::{EniSeen, PICTURE_LAG_MAX, Role};
use types::{Ipv6Prefix, Moment, Reason};

use super::Node;
use super::event::{Effect, Facts};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::families::{is_local, local_addresses};

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
        let wired = || self.pool.owners().any(|(owner, _)| owner.ipv6.is_some_and(is_local));
        facts.ipv6.filter(|_| self.settings.families.has_ipv6_egress() || wired())
    }

    /// That pods get no IPv6 although it is wanted, in words.
    pub(super) fn ipv6_trouble(&self) -> Option<String> {
        let facts = self.facts.as_ref().filter(|_| self.settings.families.has_ipv6_egress())?;
        let why = "the primary ENI has no IPv6 address that they could leave by";
        facts.ipv6.is_none().then(|| format!("{}: new pods do not reach IPv6: {why}", Reason::NoIpv6))
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
        self.ipv6.unsure = false;
        let had = self.ipv6.prefix;
        if had.is_some_and(|prefix| seen.contains(&prefix)) {
            return;
        }
        self.ipv6.prefix = seen.first().copied();
        match (had, self.ipv6.prefix) {
            (Some(lost), _) => {
                let of_it = self.pool.owners().filter_map(|(owner, _)| owner.ipv6);
                let pods = of_it.filter(|ipv6| Ipv6Prefix::of(*ipv6) == lost).count();
                tracing::warn!(prefix = %lost, pods, "the primary ENI has lost its IPv6 prefix, and pods their IPv6 addresses");
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
