//! What `ipamd status` shows.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use pool::{Counts, Grant, Owner, Role};
use types::{Moment, TableId};
use wire::{AddressCount, EniReport, PodReport, Report, Waiting};

use super::Node;
use super::adding::Pending;
use crate::status::blank;

impl Node {
    /// The state as it is now.
    #[must_use]
    pub fn report(&self, now: Moment) -> Report {
        let mut report =
            Report { started: self.started, addresses: count(self.pool.counts(now)), ..blank(now) };
        report.not_ready = self.missing().into_iter().map(str::to_owned).collect();
        if let Some(facts) = &self.facts {
            report.instance_id = facts.instance.to_string();
            report.instance_type.clone_from(&facts.limits.instance_type);
            report.primary_address = Some(facts.primary_address);
            report.vpc_cidrs = facts.vpc_cidrs.iter().copied().map(IpNetwork::V4).collect();
        }
        report.ipv6_prefix = self.ipv6.prefix.filter(|_| self.settings.families.needs_prefix());
        report.reused_early = self.pool.reused_early();
        report.capacity = self.capacity_in_all();
        report.observed = self.observed;
        report.cards = self.card_reports(now);
        report.enis = self.eni_reports(now);
        report.pods = self.pod_reports();
        report.waiting = self.waiting();
        report.reasons = self.reasons.report();
        report.trouble = self.trouble();
        report.cloud = self.troubles();
        report.eni_config = self.eni_config_name();
        report.cluster = self.cluster_lines(now);
        let plan = self.plan(now).map(|plan| plan.to_string()).unwrap_or_default();
        report.plan = plan.lines().map(str::to_owned).collect();
        report
    }

    fn eni_reports(&self, now: Moment) -> Vec<EniReport> {
        // An idle one is told too, until it is given back.
        let prefix = self.ipv6.prefix;
        let ipv6 = (u32::from(prefix.is_some()), prefix.map_or(0, |prefix| self.in_ipv6_prefix(prefix)));
        let ipv6_of = |role| if role == Role::Primary { ipv6 } else { (0, 0) };
        let mut enis: Vec<EniReport> = self
            .pool
            .enis()
            .into_iter()
            .map(|eni| EniReport {
                ipv6_prefixes: ipv6_of(eni.role).0,
                ipv6_assigned: u32::try_from(ipv6_of(eni.role).1).unwrap_or(u32::MAX),
                addresses: count(self.pool.counts_of(&eni.id, now)),
                table: TableId::of_eni(eni.card, eni.device),
                foreign: !eni.role.is_for_pods(),
                excluded: match eni.role {
                    Role::Primary | Role::Secondary | Role::Efa => {
                        let unready = || self.pool.unready(&eni).map(|why| why.to_string());
                        self.pool.exclusion(&eni).map(|why| why.to_string()).or_else(unready)
                    }
                    Role::Trunk | Role::Unmanaged => Some(eni.role.to_string()),
                },
                id: eni.id,
                mac: eni.mac,
                card: eni.card,
                device: eni.device,
                subnet: eni.subnet,
                primary_address: eni.primary_address,
                prefixes: u32::try_from(eni.prefixes.len()).unwrap_or(u32::MAX),
                delegated: eni.prefixes,
            })
            .collect();
        enis.sort_by_key(|eni| (eni.card, eni.device));
        enis
    }

    fn pod_reports(&self) -> Vec<PodReport> {
        let report = |(owner, grant): (&Owner, Grant)| {
            let mut told = self.told_addresses(owner, grant.address).into_iter();
            let branch = owner.branch.as_ref();
            PodReport {
                pod: owner.pod.clone(),
                sandbox: owner.sandbox.clone(),
                eni: branch
                    .map_or_else(|| grant.place.map(|place| place.eni), |branch| branch.eni.id.clone()),
                vlan: branch.map(|branch| branch.eni.vlan),
                address: told.next().unwrap_or(IpAddr::V4(grant.address)),
                other: told.next(),
                host_if: owner.host_if.as_str().to_owned(),
                since: owner.since,
                reserved: self.pool.is_reserved(&owner.sandbox),
            }
        };
        self.pool.owners().map(report).collect()
    }

    fn waiting(&self) -> Vec<Waiting> {
        let waiting = |id| match self.pending.get(id)? {
            Pending::Add(add) => {
                let (reason, card) = add.reason();
                Some(Waiting { pod: add.attachment.pod.clone(), since: add.since, reason, card })
            }
            Pending::Release { .. } | Pending::Check => None,
        };
        self.queue.iter().filter_map(waiting).collect()
    }
}

pub(super) fn count(counts: Counts) -> AddressCount {
    let Counts { free, reserved, assigned, cooling } = counts;
    AddressCount { free, reserved, assigned, cooling }
}
