//! What a report tells, as gauges; and what the node itself has counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use types::{Ipv6Prefix, NetworkCard, Prefix, Reason};
use wire::{AddressCount, EniReport, Observed, PodReport, Report};

use super::ReasonLabel;
use super::original::{FnLabel, Unsuffixed};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CardStateLabels {
    card: u8,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EniLabel {
    eni: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CidrLabel {
    cidr: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
}

pub(super) fn registry(report: &Report) -> Registry {
    let mut all = Registry::default();
    numbers(&mut all, report);
    addresses(&mut all, report);
    originals(&mut all, report);
    let waiting = Family::<ReasonLabel, Gauge>::default();
    for wait in &report.waiting {
        waiting.get_or_create(&ReasonLabel { reason: wait.reason.word() }).inc();
    }
    all.register("ipamd_adds_waiting", "ADDs that wait for an address now, by what for", waiting);
    let trouble = Family::<ReasonLabel, Gauge>::default();
    if let Some(reason) = report.trouble {
        trouble.get_or_create(&ReasonLabel { reason: reason.word() }).set(1);
    }
    all.register("ipamd_ec2_trouble", "Why EC2 does not do what it was last asked, if it does not", trouble);
    let reused: Counter = Counter::default();
    reused.inc_by(report.reused_early);
    all.register("ipamd_addresses_reused_early", "Addresses given out before they had cooled", reused);
    all
}

/// What is one number for the whole node.
fn numbers(all: &mut Registry, report: &Report) {
    let mut gauge = |name: &str, help: &str, value: u32| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.into());
        all.register(name, help, gauge);
    };
    let prefixes = report.enis.iter().map(|eni| eni.prefixes).sum();
    let enis = enis_for_pods(report).count();
    let enis_max = report.cards.iter().map(|card| card.max_enis.saturating_sub(card.foreign)).sum();
    let throttled = report.trouble == Some(Reason::Throttled);
    gauge("ipamd_ready", "Whether ADDs are served", u32::from(report.not_ready.is_empty()));
    gauge("ipamd_ec2_throttled", "Whether EC2 answers that it is asked too often", u32::from(throttled));
    gauge("ipamd_addresses_possible", "The most addresses for pods that this node can hold", report.capacity);
    gauge("awscni_eni_allocated", "ENIs, without those of others", number(enis));
    gauge("awscni_eni_max", "The most ENIs that this node can hold, without those of others", enis_max);
    gauge("awscni_total_ip_addresses", "Addresses for pods", report.addresses.total());
    gauge("awscni_assigned_ip_addresses", "Addresses that pods have", report.addresses.assigned);
    gauge("awscni_total_ipv4_prefixes", "Prefixes", prefixes);
    gauge("awscni_ip_max", "The most addresses for pods that this node can hold", report.capacity);
}

/// Addresses by state, and those of pods by family.
fn addresses(all: &mut Registry, report: &Report) {
    let states = Family::<StateLabel, Gauge>::default();
    for (state, count) in by_state(report.addresses) {
        states.get_or_create(&StateLabel { state }).set(count.into());
    }
    all.register("ipamd_addresses", "Addresses for pods, by state", states);
    let cards = Family::<CardStateLabels, Gauge>::default();
    for card in &report.cards {
        let NetworkCard(number) = card.card;
        for (state, count) in by_state(card.addresses) {
            cards.get_or_create(&CardStateLabels { card: number, state }).set(count.into());
        }
    }
    all.register("ipamd_card_addresses", "Addresses for pods, by network card and state", cards);
    let families = Family::<FamilyLabel, Gauge>::default();
    for family in ["ipv4", "ipv6"] {
        drop(families.get_or_create(&FamilyLabel { family }));
    }
    for address in report.pods.iter().flat_map(told) {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        families.get_or_create(&FamilyLabel { family }).inc();
    }
    all.register("ipamd_pod_addresses", "Addresses that pods have, by family", families);
}

const fn by_state(count: AddressCount) -> [(&'static str, u32); 4] {
    let AddressCount { free, reserved, assigned, cooling } = count;
    [("free", free), ("reserved", reserved), ("assigned", assigned), ("cooling", cooling)]
}

/// The addresses that a pod knows as its own.
fn told(pod: &PodReport) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(pod.address).chain(pod.other)
}

/// The ENIs that pods can use: what others hold is in no count, as the Go version does not know of it.
fn enis_for_pods(report: &Report) -> impl Iterator<Item = &EniReport> {
    report.enis.iter().filter(|eni| !eni.foreign)
}

/// What only the Go version's names have.
fn originals(all: &mut Registry, report: &Report) {
    let mut per_eni = |name: &str, help: &str, of: &dyn Fn(&EniReport) -> u32| {
        let family = Family::<EniLabel, Gauge>::default();
        for eni in enis_for_pods(report) {
            family.get_or_create(&EniLabel { eni: eni.id.to_string() }).set(of(eni).into());
        }
        all.register(name, help, family);
    };
    per_eni("awscni_assigned_ip_per_eni", "Addresses that pods have, by ENI", &|eni| eni.addresses.assigned);
    per_eni("ipamd_ipv6_prefixes", "IPv6 prefixes, by ENI", &|eni| u32::from(eni.ipv6_prefix.is_some()));
    per_eni("ipamd_ipv6_addresses", "IPv6 addresses that pods have, by ENI", &|eni| eni.ipv6_assigned);
    let per_cidr = Family::<CidrLabel, Gauge>::default();
    for (cidr, count) in per_range(report) {
        per_cidr.get_or_create(&CidrLabel { cidr }).set(count.into());
    }
    all.register(
        "awscni_assigned_ip_per_cidr",
        "Addresses that pods have, by prefix; a single one is a range of its own",
        per_cidr,
    );
    let Observed { enis_joined, enis_left, addresses_joined, addresses_left, addresses_lost, enis_lost } =
        report.observed;
    let reconciled = Family::<FnLabel, Unsuffixed>::default();
    for (word, count) in [
        ("eniReconcileAdd", enis_joined),
        ("eniReconcileDel", enis_left),
        ("eniDataStorePoolReconcileAdd", addresses_joined),
        ("eniIPPoolReconcileDel", addresses_left),
    ] {
        reconciled.get_or_create(&FnLabel { r#fn: word }).0.inc_by(count);
    }
    all.register("awscni_reconcile_count", "ENIs and addresses that others brought or took", reconciled);
    for (name, help, count) in [
        ("awscni_force_removed_enis", "ENIs that others took while pods had addresses of them", enis_lost),
        ("awscni_force_removed_ips", "Addresses that others took while pods had them", addresses_lost),
    ] {
        let lost: Unsuffixed = Unsuffixed::default();
        lost.0.inc_by(count);
        all.register(name, help, lost);
    }
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { version: report.version.clone() }).set(1);
    all.register("awscni_build_info", "The daemon that runs", build);
}

/// How many addresses pods have of each prefix, those of which they have none included; and each single address they have. What is of a
/// branch ENI is of no range of the pool, and what is promised to an ADD no pod has: neither is in `awscni_assigned_ip_addresses` either.
fn per_range(report: &Report) -> BTreeMap<String, u32> {
    let prefixes: BTreeSet<Prefix> = report.enis.iter().flat_map(|eni| eni.delegated.clone()).collect();
    let mut ranges: BTreeMap<String, u32> = prefixes.iter().map(|prefix| (prefix.to_string(), 0)).collect();
    let of_pool = report.pods.iter().filter(|pod| pod.vlan.is_none() && !pod.reserved);
    for address in of_pool.flat_map(told) {
        let range = match address {
            IpAddr::V4(v4) if prefixes.contains(&Prefix::of(v4)) => Prefix::of(v4).to_string(),
            IpAddr::V4(v4) => format!("{v4}/32"),
            IpAddr::V6(v6) => Ipv6Prefix::of(v6).to_string(),
        };
        *ranges.entry(range).or_default() += 1;
    }
    ranges
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
