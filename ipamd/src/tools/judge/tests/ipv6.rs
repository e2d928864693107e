//! Nodes whose pods have IPv6 addresses.

use std::net::Ipv6Addr;

use types::Ipv6Prefix;
use wire::{AddressCount, EniReport};

use super::super::super::evidence::Ipv6Table;
use super::*;

/// The prefix of the primary and of the secondary ENI.
fn prefixes() -> [Ipv6Prefix; 2] {
    ["2001:db8:0:1::/80", "2001:db8:0:2::/80"].map(|prefix| prefix.parse().unwrap())
}

/// The IPv6 address of each pod.
fn ipv6() -> [Ipv6Addr; 2] {
    [prefixes()[0].beside(PODS[0].1), prefixes()[1].beside(PODS[1].1)]
}

/// A node that is well and whose pods have both families; its secondary ENI is on a further card.
fn dual() -> Evidence {
    let mut evidence = well();
    let record = evidence.saved.record.as_mut().unwrap();
    record.families = Families::Dual;
    record.wish.node.ipv6 = true;
    record.wish.node.enis[1].card = NetworkCard(1);
    record.wish.node.enis[1].ipv6 = [prefixes()[1]].into();
    for ((owner, _), address) in evidence.saved.owners.iter_mut().zip(ipv6()) {
        owner.ipv6 = Some(address);
    }
    evidence.live.host = Look::Seen(host(record, &evidence.saved.owners));
    set(&mut evidence.live.runtime, |known| {
        known.iter_mut().zip(ipv6()).for_each(|(one, address)| one.addresses.push(address.into()));
    });
    set(&mut evidence.live.cloud, |enis| {
        enis.iter_mut().zip(prefixes()).for_each(|(eni, prefix)| eni.ipv6 = Some([prefix].into()));
    });
    evidence
}

fn is(change: impl FnOnce(&mut Evidence), code: Code, repair: &str) {
    super::is(
        |evidence| {
            *evidence = dual();
            change(evidence);
        },
        code,
        repair,
    );
}

fn codes(evidence: &Evidence) -> Vec<Code> {
    judge(evidence).findings.iter().map(|finding| finding.code).collect()
}

#[test]
fn of_a_node_with_both_families_that_is_well_nothing_is_found() {
    let verdict = judge(&dual());

    assert_eq!((verdict.findings, verdict.failed), (Vec::new(), Vec::new()));
}

#[test]
fn an_ipv6_address_of_a_pod_that_is_led_nowhere_is_found() {
    let veth = owner("web").host_if;
    is(
        |e| without_route(e, |route| route.destination.ip() == IpAddr::V6(ipv6()[0])),
        Code::PodRouteMissing,
        &format!("ip route replace {}/128 dev {veth} scope link table 51200 proto 86", ipv6()[0]),
    );
}

#[test]
fn a_delegated_ipv6_prefix_that_ec2_does_not_have_is_found() {
    let without = |at: usize| {
        move |e: &mut Evidence| set(&mut e.live.cloud, |enis| enis[at].ipv6 = Some(BTreeSet::new()))
    };
    is(without(0), Code::AddressNotInEc2, "kubectl -n default delete pod web");
    is(without(1), Code::AddressNotInEc2, "kubectl -n default delete pod db");
    // Pods with IPv6 addresses alone.
    let mut alone = dual();
    alone.saved.record.as_mut().unwrap().families = Families::V6 { egress: false };
    without(0)(&mut alone);
    let found = judge(&alone).findings;
    let of_web = |finding: &&Finding| finding.code == Code::AddressNotInEc2;
    assert_eq!(found.iter().filter(of_web).count(), 1, "{found:#?}");
    assert!(found.iter().find(of_web).unwrap().what.contains(&ipv6()[0].to_string()));
}

/// What the daemon says of the primary ENI.
fn of_primary(prefix: Ipv6Prefix) -> EniReport {
    EniReport {
        id: id(0),
        mac: mac(0),
        card: NetworkCard(0),
        device: DeviceIndex(0),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: [10, 0, 0, 10].into(),
        table: TableId::MAIN,
        prefixes: 0,
        delegated: BTreeSet::new(),
        ipv6_prefix: Some(prefix),
        ipv6_assigned: 0,
        addresses: AddressCount::default(),
        excluded: None,
        foreign: false,
    }
}

#[test]
fn a_prefix_that_no_pod_has_addresses_of_is_found_as_lost() {
    let lost: Ipv6Prefix = "2001:db8:0:9::/80".parse().unwrap();
    let led = |e: &mut Evidence| {
        e.saved.record.as_mut().unwrap().wish.node.enis[1].ipv6.insert(lost);
    };
    let mut evidence = dual();
    led(&mut evidence);
    let found = judge(&evidence).findings;
    let of_ec2: Vec<_> = found.iter().filter(|finding| finding.code == Code::FreeNotInEc2).collect();
    assert_eq!(of_ec2.len(), 1, "{found:#?}");
    assert!(of_ec2[0].what.contains("2001:db8:0:9::/80"), "{}", of_ec2[0].what);

    // The primary ENI's is told by the daemon alone.
    is(
        |e| {
            set(&mut e.live.daemon, |report| {
                report.enis.push(of_primary(lost));
            });
        },
        Code::FreeNotInEc2,
        "k8s-app=aws-node",
    );
}

#[test]
fn an_archive_that_does_not_tell_ipv6_prefixes_is_not_judged_by_them() {
    let mut evidence = dual();
    set(&mut evidence.live.cloud, |enis| enis.iter_mut().for_each(|eni| eni.ipv6 = None));

    assert_eq!(codes(&evidence), []);
    let old = serde_json::to_value(evidence.live.cloud.seen().unwrap()).unwrap();
    let old = old.to_string().replace(",\"ipv6\":null", "");
    let enis: Vec<CloudEni> = serde_json::from_str(&old).unwrap();
    assert!(enis.iter().all(|eni| eni.ipv6.is_none()));
}

/// A node whose pods reach IPv6 by its address, and what of its table is there.
fn egress(is_there: bool, differences: &[&str]) -> Evidence {
    let mut evidence = well();
    let record = evidence.saved.record.as_mut().unwrap();
    record.wish.ipv6_egress = Some("2001:db8::7".parse().unwrap());
    let differences = differences.iter().map(|step| (*step).to_owned()).collect();
    set(&mut evidence.live.nftables, |nft| nft.ipv6 = Some(Ipv6Table { is_there, differences }));
    evidence
}

#[test]
fn an_ipv6_table_that_is_missing_or_differs_is_found_and_the_command_brings_both() {
    let verdict = judge(&egress(true, &[]));
    assert_eq!(verdict.findings, []);
    assert!(verdict.compared.iter().any(|line| line == "nftables: table ip6 aws-vpc-cni"));
    let cases = [
        (egress(false, &["add table"]), Code::NftablesMissing),
        (egress(true, &["add rule"]), Code::NftablesDiffers),
    ];
    for (evidence, code) in cases {
        super::is(|e| *e = evidence, code, "ipamd explain nftables | nft -f -");
    }

    let script = explain::nftables(&egress(true, &[])).unwrap();

    for words in
        ["delete table ip aws-vpc-cni\n", "delete table ip6 aws-vpc-cni\ntable ip6", "snat to 2001:db8::7"]
    {
        assert!(script.contains(words), "no {words} in {script}");
    }
}
