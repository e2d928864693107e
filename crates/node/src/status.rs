//! What a report tells, of a running daemon's state and of a saved one alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use pool::{Counts, EniSeen, Grant, Owner, Pool, Role};
use types::{EniId, Ipv6Prefix, Moment, TableId};
use wire::{AddressCount, EniReport, Observed, PodReport, Report};

use crate::families::Families;
use crate::node::Facts;

/// A report of a daemon that has just started, for tests and as the starting point of a real one.
#[must_use]
pub fn blank(now: Moment) -> Report {
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_id: String::new(),
        instance_type: String::new(),
        now,
        started: now,
        not_ready: Vec::new(),
        primary_address: None,
        vpc_cidrs: Vec::new(),
        ipv6_prefix: None,
        addresses: AddressCount::default(),
        capacity: 0,
        reused_early: 0,
        observed: Observed::default(),
        cards: Vec::new(),
        enis: Vec::new(),
        pods: Vec::new(),
        waiting: Vec::new(),
        reasons: Vec::new(),
        plan: Vec::new(),
        trouble: None,
        cloud: Vec::new(),
        eni_config: None,
        cluster: Vec::new(),
    }
}

/// Tells which instance it is.
pub fn tell_facts(report: &mut Report, facts: &Facts) {
    report.instance_id = facts.instance.to_string();
    report.instance_type.clone_from(&facts.limits.instance_type);
    report.primary_address = Some(facts.primary_address);
    report.vpc_cidrs = facts.vpc_cidrs.iter().copied().map(IpNetwork::V4).collect();
}

/// Addresses by state.
#[must_use]
pub const fn count(counts: Counts) -> AddressCount {
    let Counts { free, reserved, assigned, cooling } = counts;
    AddressCount { free, reserved, assigned, cooling }
}

/// The ENIs, by network card and device, with their IPv6 prefixes.
#[must_use]
pub fn enis(pool: &Pool, ipv6: &BTreeMap<EniId, Ipv6Prefix>, now: Moment) -> Vec<EniReport> {
    let report = |eni: EniSeen| {
        let ipv6_prefix = ipv6.get(&eni.id).copied();
        let pods = ipv6_prefix.map_or(0, |prefix| pods_in(pool, prefix));
        EniReport {
            ipv6_prefix,
            ipv6_assigned: u32::try_from(pods).unwrap_or(u32::MAX),
            addresses: count(pool.counts_of(&eni.id, now)),
            table: TableId::of_eni(eni.card, eni.device),
            foreign: !eni.role.is_for_pods(),
            excluded: why_excluded(pool, &eni),
            id: eni.id,
            mac: eni.mac,
            card: eni.card,
            device: eni.device,
            subnet: eni.subnet,
            primary_address: eni.primary_address,
            prefixes: u32::try_from(eni.prefixes.len()).unwrap_or(u32::MAX),
            delegated: eni.prefixes,
        }
    };
    let mut enis: Vec<EniReport> = pool.enis().into_iter().map(report).collect();
    enis.sort_by_key(|eni| (eni.card, eni.device));
    enis
}

/// Why pods get no address of an ENI, in words.
fn why_excluded(pool: &Pool, eni: &EniSeen) -> Option<String> {
    match eni.role {
        Role::Primary | Role::Secondary | Role::Efa => {
            let unready = || pool.unready(eni).map(|why| why.to_string());
            pool.exclusion(eni).map(|why| why.to_string()).or_else(unready)
        }
        Role::Trunk | Role::Unmanaged => Some(eni.role.to_string()),
    }
}

/// How many pods have an address of an IPv6 prefix.
#[must_use]
pub fn pods_in(pool: &Pool, prefix: Ipv6Prefix) -> usize {
    let of_it = pool.holders().filter_map(|(owner, _)| owner.ipv6);
    of_it.filter(|ipv6| Ipv6Prefix::of(*ipv6) == prefix).count()
}

/// The pods.
#[must_use]
pub fn pods(pool: &Pool, families: Families) -> Vec<PodReport> {
    let report = |(owner, grant): (&Owner, Grant)| {
        let mut told = families.addresses_of(owner, grant.address).into_iter();
        let branch = owner.branch.as_ref();
        PodReport {
            pod: owner.pod.clone(),
            sandbox: owner.sandbox.clone(),
            eni: branch.map_or_else(|| grant.place.map(|place| place.eni), |branch| branch.eni.id.clone()),
            vlan: branch.map(|branch| branch.eni.vlan),
            address: told.next().unwrap_or(IpAddr::V4(grant.address)),
            other: told.next(),
            host_if: owner.host_if.as_str().to_owned(),
            since: owner.since,
            reserved: pool.is_reserved(&owner.sandbox),
        }
    };
    pool.owners().map(report).collect()
}
