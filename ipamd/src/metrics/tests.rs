//! What is served, line by line, and that no name of the Go version is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use types::{Moment, NetworkCard, PodName, Prefix, SandboxKey, VlanId};
use wire::{AddressCount, CardReport, EniReport, Observed, PodReport, Waiting};

use super::*;
use crate::cloud::{CloudErrorKind, Effect};
use crate::status::blank;

fn text(metrics: &Metrics) -> String {
    metrics.text(&blank(Moment(0))).unwrap()
}

#[test]
fn every_reason_is_a_label_of_what_failed_of_the_adds_that_waited_and_of_those_that_wait() {
    let metrics = Metrics::default();
    let wait = |reason: &Reason| Waiting {
        pod: PodName::default(),
        since: Moment(0),
        reason: *reason,
        card: NetworkCard(0),
    };
    let report = Report { waiting: Reason::ALL.iter().map(wait).collect(), ..blank(Moment(0)) };

    for reason in Reason::ALL {
        metrics.answered(Asked::Add, Some(*reason), Duration::from_millis(3));
        metrics.answered(Asked::Check, Some(*reason), Duration::from_millis(3));
        metrics.waited(*reason, Duration::from_millis(3));
    }

    let text = metrics.text(&report).unwrap();
    for reason in Reason::ALL {
        for line in [
            format!("ipamd_requests_total{{verb=\"add\",reason=\"{reason}\"}} 1"),
            format!("ipamd_requests_total{{verb=\"check\",reason=\"{reason}\"}} 1"),
            format!("ipamd_add_wait_seconds_count{{reason=\"{reason}\"}} 1"),
            format!("ipamd_adds_waiting{{reason=\"{reason}\"}} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
    let short = Reason::ALL.iter().filter(|reason| reason.is_shortage()).count();
    assert!(text.contains(&format!("\nawscni_no_available_ip_addresses {short}\n")), "{text}");
}

#[test]
fn names_of_the_go_version_carry_no_suffix() {
    let metrics = Metrics::default();

    metrics.answered(Asked::Add, None, Duration::ZERO);
    metrics.answered(Asked::Del, None, Duration::ZERO);
    metrics.called("AssignPrivateIpAddresses", Some(&throttled()), Duration::from_millis(1500));

    let text = text(&metrics);
    for line in [
        "awscni_add_ip_req_count 1",
        "awscni_del_ip_req_count{reason=\"PodDeleted\"} 1",
        "awscni_ec2api_req_count{fn=\"AssignPrivateIpAddresses\"} 1",
        "awscni_ec2api_error_count{fn=\"AssignPrivateIpAddresses\"} 1",
        "awscni_aws_api_error_count{api=\"AssignPrivateIpAddresses\",error=\"RequestLimitExceeded\"} 1",
        "awscni_aws_api_latency_ms_sum{api=\"AssignPrivateIpAddresses\",error=\"true\",status=\"RequestLimitExceeded\"} 1500.0",
        "ipamd_ec2_calls_total{action=\"AssignPrivateIpAddresses\",reason=\"throttled\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
}

#[test]
fn a_failed_add_of_a_pod_with_a_branch_eni_is_an_error_of_pod_enis_and_another_is_none() {
    let metrics = Metrics::default();
    has(&text(&metrics), &["awscni_pod_eni_error_count{fn=\"AddNetwork\"} 0"]);

    metrics.failed_of_branch(Reason::NoBranchEni, false);
    metrics.failed_of_branch(Reason::NoTrunk, false);
    metrics.failed_of_branch(Reason::KernelRefused, true);
    metrics.failed_of_branch(Reason::KernelRefused, false);
    metrics.failed_of_branch(Reason::PoolEmpty, false);

    has(&text(&metrics), &["awscni_pod_eni_error_count{fn=\"AddNetwork\"} 3"]);
}

#[test]
fn a_state_is_what_the_report_says() {
    let addresses = AddressCount { free: 5, reserved: 1, assigned: 7, cooling: 2 };
    let report = Report { addresses, capacity: 27, ..blank(Moment(0)) };

    let text = Metrics::default().text(&report).unwrap();

    for line in [
        "ipamd_addresses{state=\"cooling\"} 2",
        "awscni_total_ip_addresses 15",
        "awscni_assigned_ip_addresses 7",
        "ipamd_addresses_possible 27",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

fn throttled() -> CloudError {
    CloudError::answered("AssignPrivateIpAddresses", Effect::Changes, 503, "RequestLimitExceeded", "later")
}

fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|l| l == *line), "{line} is not in {text}");
    }
}

/// A pod with these addresses.
fn pod(address: &str, other: Option<&str>) -> PodReport {
    PodReport {
        pod: PodName::default(),
        sandbox: SandboxKey::new("aws-cni", address, "eth0").unwrap(),
        eni: None,
        vlan: None,
        address: address.parse().unwrap(),
        other: other.map(|other| other.parse().unwrap()),
        host_if: String::new(),
        since: Moment(0),
        reserved: false,
    }
}

/// A node with a prefix, of which one pod has an address, and one single address that a pod has.
fn node() -> Report {
    let delegated: BTreeSet<Prefix> =
        ["10.0.2.16/28".parse().unwrap(), "10.0.2.32/28".parse().unwrap()].into();
    let eni = EniReport {
        id: "eni-01".parse().unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        card: NetworkCard(0),
        device: types::DeviceIndex(0),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: "10.0.2.5".parse().unwrap(),
        table: types::TableId::MAIN,
        prefixes: 2,
        delegated,
        ipv6_prefix: None,
        ipv6_assigned: 0,
        addresses: AddressCount { assigned: 2, free: 30, ..AddressCount::default() },
        excluded: None,
        foreign: false,
    };
    let unmanaged = EniReport { id: "eni-02".parse().unwrap(), foreign: true, ..eni.clone() };
    let card = CardReport {
        card: NetworkCard(0),
        enis: 2,
        max_enis: 3,
        foreign: 1,
        addresses: eni.addresses,
        capacity: 64,
    };
    Report {
        enis: vec![eni, unmanaged],
        cards: vec![card],
        pods: vec![pod("10.0.2.17", Some("2600:1f14::a00:211")), pod("10.0.2.90", None)],
        observed: Observed { enis_left: 1, addresses_lost: 3, ..Observed::default() },
        trouble: Some(Reason::Throttled),
        ..blank(Moment(0))
    }
}

/// Everything that can happen, once.
fn busy() -> String {
    let metrics = Metrics::default();
    metrics.answered(Asked::Add, Some(Reason::SubnetFull), Duration::ZERO);
    metrics.answered(Asked::Del, None, Duration::ZERO);
    metrics.called("AssignPrivateIpAddresses", Some(&throttled()), Duration::ZERO);
    metrics.asked_metadata(None, Duration::from_millis(2));
    drop(metrics.begin(Work::Addresses));
    metrics.work_failed(Work::Addresses);
    metrics.undeleted(Undeleted::Freed, &throttled());
    metrics.initialised(Duration::from_millis(20));
    metrics.started(true, Duration::from_millis(300));
    metrics.marked(true);
    metrics.text(&node()).unwrap()
}

/// The labels under each name in a text, of any of its lines.
fn names(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut names = BTreeMap::<&str, BTreeSet<&str>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
        names.entry(name).or_default().extend(labels.map(|(label, _)| label));
    }
    names
}

#[test]
fn each_name_of_the_go_version_is_served_with_its_labels_or_left_out_for_a_reason() {
    let text = busy();
    let served = names(&text);

    let rows = include_str!("original.tsv").lines().filter(|line| !line.starts_with('#'));
    for row in rows {
        let [name, labels, verdict, reason] = row.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not four columns: {row}")
        };
        let labels: BTreeSet<&str> = labels.split(',').filter(|label| !label.is_empty()).collect();
        let found = served.get(name).or_else(|| served.get(format!("{name}_sum").as_str()));
        match verdict {
            "served" => assert_eq!(found, Some(&labels), "{name}"),
            "left out" => assert!(found.is_none() && !reason.is_empty(), "{row}"),
            other => panic!("{name}: {other}?"),
        }
    }
}

#[test]
fn no_name_of_the_go_version_is_made_up() {
    let known: BTreeSet<&str> =
        include_str!("original.tsv").lines().filter_map(|row| row.split('\t').next()).collect();

    for name in names(&busy()).into_keys().filter(|name| name.starts_with("awscni_")) {
        let histogram = ["_sum", "_count", "_bucket"].iter().find_map(|end| name.strip_suffix(end));
        assert!(known.contains(name) || histogram.is_some_and(|name| known.contains(name)), "{name}");
    }
}

#[test]
fn ranges_count_what_pods_have_of_them_in_both_families() {
    let report = Report { ipv6_prefix: None, ..node() };

    let text = Metrics::default().text(&report).unwrap();

    has(
        &text,
        &[
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.2.16/28\"} 1",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.2.32/28\"} 0",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.2.90/32\"} 1",
            "awscni_assigned_ip_per_cidr{cidr=\"2600:1f14::/80\"} 1",
            "ipamd_pod_addresses{family=\"ipv4\"} 2",
            "ipamd_pod_addresses{family=\"ipv6\"} 1",
        ],
    );
}

#[test]
fn ranges_count_neither_branch_enis_nor_what_is_only_promised() {
    let mut report = node();
    let of_branch = PodReport { vlan: Some(VlanId::new(7).unwrap()), ..pod("10.0.9.9", None) };
    let promised = PodReport { reserved: true, ..pod("10.0.2.33", None) };
    report.pods.extend([of_branch, promised]);

    let text = Metrics::default().text(&report).unwrap();

    assert!(!text.contains("awscni_assigned_ip_per_cidr{cidr=\"10.0.9.9/32\"}"), "{text}");
    has(&text, &["awscni_assigned_ip_per_cidr{cidr=\"10.0.2.32/28\"} 0"]);
}

#[test]
fn what_others_hold_and_took_is_told_apart() {
    let text = Metrics::default().text(&node()).unwrap();

    has(
        &text,
        &[
            "awscni_eni_max 2",
            "awscni_eni_allocated 1",
            "awscni_reconcile_count{fn=\"eniReconcileDel\"} 1",
            "awscni_force_removed_ips 3",
            "awscni_force_removed_enis 0",
            "ipamd_ec2_throttled 1",
            "ipamd_ec2_trouble{reason=\"throttled\"} 1",
            "ipamd_card_addresses{card=\"0\",state=\"free\"} 30",
        ],
    );
    assert!(!text.contains("eni-02"), "{text}");
}

#[test]
fn work_is_in_progress_until_it_ends_and_questions_to_metadata_are_timed() {
    let metrics = Metrics::default();
    let working = metrics.begin(Work::Eni);
    has(&text(&metrics), &["awscni_ipamd_action_inprogress{fn=\"increaseDatastorePool\"} 1"]);

    drop(working);
    let unreachable = CloudError::new(CloudErrorKind::Unreachable, "instance metadata", "away");
    metrics.asked_metadata(Some(&unreachable), Duration::from_millis(4));

    has(
        &text(&metrics),
        &[
            "awscni_ipamd_action_inprogress{fn=\"increaseDatastorePool\"} 0",
            "awscni_aws_api_latency_ms_sum{api=\"GetMetadata\",error=\"true\",status=\"\"} 4.0",
            "awscni_aws_api_error_count{api=\"GetMetadata\",error=\"cloud-unreachable\"} 1",
        ],
    );
}
