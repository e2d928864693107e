//! A node with a pod that has a branch ENI.

use datapath::{BranchLack, PodSpec, TrunkSpec, branch_lacks, branch_rules};
use types::{Branch, BranchEni, BranchIpv4, Enforcing, VlanId};

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 20, 9);

fn branch(enforcing: Enforcing) -> Branch {
    let eni = BranchEni {
        id: Some("eni-0b".parse().unwrap()),
        mac: mac(7),
        vlan: VlanId::new(7).unwrap(),
        ipv4: Some(BranchIpv4 { address: ADDRESS, gateway: [10, 0, 16, 1].into() }),
        ipv6: None,
    };
    Branch { eni, trunk: mac(9), enforcing }
}

/// Gives the kernel what the pod needs beside what every pod does.
fn lay(host: &mut HostSeen, pod: &PodSpec) {
    while let Some(lack) = branch_lacks(pod, host).into_iter().next() {
        match lack {
            BranchLack::Trunk => host.links.push(link(4, "ens7", Some(mac(9)), 9001, None)),
            BranchLack::Link => host.links.push(link(6, "vlan.eth.7", Some(mac(7)), 9001, Some(4))),
            BranchLack::Route(route) => host.routes.push(RouteSeen { maker: Maker::We, route }),
            BranchLack::Refusal(family) => {
                host.refusals.as_mut().unwrap().insert((family, TableId(107)));
            }
            BranchLack::Rule(family, words) => {
                let (priority, text) = words.strip_prefix("pref ").unwrap().split_once(' ').unwrap();
                let (priority, text) = (priority.parse().unwrap(), text.to_owned());
                host.rules.push(RuleSeen { family, priority, text, ours: None });
            }
            BranchLack::OtherLink | BranchLack::Down => panic!("{lack:?}"),
        }
    }
}

/// A node that is well.
fn with_branch(enforcing: Enforcing) -> Evidence {
    let mut evidence = well();
    let mut owner = owner("safe");
    owner.branch = Some(branch(enforcing));
    if enforcing == Enforcing::Strict {
        owner.host_if = HostVeth::of_branch(&owner.pod);
    }
    let told = RuntimeSandbox {
        sandbox: owner.sandbox.clone(),
        pod: owner.pod.clone(),
        addresses: vec![IpAddr::V4(ADDRESS)],
    };
    set(&mut evidence.live.runtime, |known| known.push(told));
    evidence.saved.owners.push((owner, ADDRESS));
    let record = evidence.saved.record.as_mut().unwrap();
    record.wish.node.trunk = Some(TrunkSpec { mac: mac(9), mtu: 9001 });
    record.wish.node.strict_branches = enforcing == Enforcing::Strict;
    let mut seen = host(record, &evidence.saved.owners);
    seen.refusals = Some(BTreeSet::new());
    let (owner, address) = evidence.saved.owners.last().unwrap();
    lay(&mut seen, &record.families.pod_spec(owner, *address, 0));
    evidence.live.host = Look::Seen(seen);
    evidence
}

/// What is found of a strict pod once something has been changed: code, and the command or what to do.
fn changed(change: impl FnOnce(&mut HostSeen)) -> Vec<(Code, String)> {
    let mut evidence = with_branch(Enforcing::Strict);
    set_host(&mut evidence, change);
    let found = judge(&evidence).findings.into_iter().map(|finding| {
        assert!(finding.evidence.len() > 1, "{finding:#?}");
        (finding.code, finding.repair.or(finding.advice).unwrap_or_default())
    });
    found.collect()
}

/// Something of a branch ENI is not what it should be: one harm for each code about that.
pub(super) const HARMS: &[fn(&mut Evidence)] = &[
    |e| {
        *e = with_branch(Enforcing::Strict);
        e.saved.record.iter_mut().for_each(|record| record.wish.node.trunk = None);
    },
    |e| {
        *e = with_branch(Enforcing::Strict);
        set_host(e, |host| host.links.retain(|link| link.name != "vlan.eth.7"));
    },
    |e| {
        *e = with_branch(Enforcing::Strict);
        set_host(e, |host| host.links.iter_mut().for_each(|link| link.up &= link.name != "vlan.eth.7"));
    },
];

#[test]
fn of_a_pod_with_a_branch_eni_that_is_well_nothing_is_found_and_it_is_said_that_it_was_compared() {
    for enforcing in [Enforcing::Strict, Enforcing::Standard] {
        let verdict = judge(&with_branch(enforcing));

        assert_eq!(verdict.findings, [], "{enforcing:?}");
        let compared = "the kernel: links, tables and rules of 1 branch ENIs";
        assert!(verdict.compared.iter().any(|line| line == compared), "{:?}", verdict.compared);
    }
}

#[test]
fn what_the_kernel_lacks_of_a_branch_eni_is_found_with_the_command_that_puts_it_back() {
    let by_pod = HostVeth::of_branch(&owner("safe").pod);
    let without_rule = |host: &mut HostSeen| host.rules.retain(|rule| !rule.text.contains("iif vlan.eth"));
    assert_eq!(
        changed(without_rule),
        [(
            Code::RuleMissing,
            "ip rule add pref 10 from all iif vlan.eth.7 lookup 107 protocol 86".to_owned()
        )]
    );
    let without_route = |host: &mut HostSeen| {
        host.routes.retain(|seen| seen.route.table != TableId(107) || seen.route.via.is_some());
    };
    assert_eq!(
        changed(without_route),
        [
            (
                Code::RouteMissing,
                "ip route replace 10.0.16.1/32 dev vlan.eth.7 scope link table 107 proto 86".to_owned()
            ),
            (
                Code::RouteMissing,
                format!("ip route replace 10.0.20.9/32 dev {by_pod} scope link table 107 proto 86")
            ),
        ]
    );
    assert_eq!(
        changed(|host| host.refusals = Some(BTreeSet::new())),
        [(
            Code::RouteMissing,
            "ip route replace unreachable default table 107 metric 4278198272 proto 86".to_owned()
        )]
    );
    let of_vlan = |host: &mut HostSeen, change: fn(&mut LinkSeen)| {
        host.links.iter_mut().filter(|link| link.name == "vlan.eth.7").for_each(change);
    };
    let found = changed(|host| of_vlan(host, |link| link.up = false));
    assert_eq!(found, [(Code::BranchLinkOff, "ip link set vlan.eth.7 up".to_owned())]);
    let [(code, command)] = &changed(|host| of_vlan(host, |link| link.mac = Some(mac(8))))[..] else {
        panic!()
    };
    assert!(
        *code == Code::BranchLinkOff && command.starts_with("ip link del vlan.eth.7 && ip link add"),
        "{command}"
    );
    let [(code, command)] = &changed(|host| host.links.retain(|link| link.name != "vlan.eth.7"))[..] else {
        panic!()
    };
    assert_eq!(*code, Code::BranchLinkMissing);
    assert!(command.starts_with("ip link add link ens7 name vlan.eth.7 address"), "{command}");
}

#[test]
fn a_trunk_that_is_gone_is_found_once_for_all_of_its_pods() {
    let found = changed(|host| host.links.retain(|link| link.name != "ens7" && link.name != "vlan.eth.7"));
    let codes: Vec<Code> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [Code::TrunkMissing, Code::BranchLinkMissing]);
    assert!(found[0].1.contains("VPC resource controller"), "{found:?}");

    // Its link is there still, and EC2 has it no longer.
    let mut evidence = with_branch(Enforcing::Strict);
    evidence.saved.record.as_mut().unwrap().wish.node.trunk = None;
    let [finding] = &judge(&evidence).findings[..] else { panic!("one finding") };
    assert_eq!(finding.code, Code::TrunkMissing);
    assert!(finding.what.contains("by which default/safe is reached"), "{}", finding.what);
    assert_eq!(finding.evidence[0], "the daemon knows of none that is attached");
}

#[test]
fn what_is_there_for_a_branch_eni_that_no_pod_has_is_found() {
    let mut evidence = well();
    set_host(&mut evidence, |host| {
        host.links.push(link(6, "vlan.eth.9", Some(mac(7)), 9001, Some(4)));
        let text = "from all iif vlan.eth.9 lookup 109".to_owned();
        host.rules.push(RuleSeen { family: Family::V4, priority: 10, text, ours: None });
        // Of other people, among them one of a proxy whose tables have such numbers too.
        for text in [
            "from all iif ens5 lookup 7",
            "from all fwmark 0xa00/0xf00 lookup 2005",
            "from all iif ens6 lookup 120",
        ] {
            let text = text.to_owned();
            host.rules.push(RuleSeen { family: Family::V4, priority: 10, text, ours: None });
        }
    });

    let found = judge(&evidence).findings;

    let found: Vec<_> = found.iter().map(|it| (it.code, it.repair.as_deref().unwrap_or_default())).collect();
    let rule = "ip rule del pref 10 from all iif vlan.eth.9 lookup 109";
    assert_eq!(found, [(Code::RuleExtra, rule), (Code::LinkWithoutOwner, "ip link del vlan.eth.9")]);
}

#[test]
fn explain_tells_a_branch_enis_link_trunk_rules_and_what_of_them_is_missing() {
    let strict = with_branch(Enforcing::Strict);
    let text = explain::pod(&strict, "default/safe").unwrap();
    for words in [
        "10.0.20.9, of the branch ENI eni-0b, VLAN 7",
        "vlan.eth.7, MAC address 02:00:00:00:00:07, on the trunk 02:00:00:00:00:09, which is ens7",
        "rule       pref 10 from all iif vlan.eth.7 lookup 107\n",
        "table 107",
    ] {
        assert!(text.contains(words), "no {words} in\n{text}");
    }
    assert!(!text.contains("MISSING") && !text.contains("NO LINK"), "{text}");

    let mut evidence = with_branch(Enforcing::Standard);
    set_host(&mut evidence, |host| {
        host.rules.retain(|rule| rule.priority != 1536 || !rule.text.contains("10.0.20.9"));
        host.routes.retain(|seen| seen.route.table != TableId(107) || seen.route.via.is_none());
        host.links.retain(|link| link.name != "ens7");
        host.refusals = Some(BTreeSet::new());
    });
    let text = explain::pod(&evidence, "10.0.20.9").unwrap();
    for words in [
        "pref 1536 from 10.0.20.9 lookup 107  MISSING",
        "to 0.0.0.0/0 MISSING in table 107",
        "ip unreachable default MISSING in table 107",
        "WHICH HAS NO LINK",
    ] {
        assert!(text.contains(words), "no {words} in\n{text}");
    }

    evidence.live.host = Look::Skipped("nobody was asked".to_owned());
    let text = explain::pod(&evidence, "default/safe").unwrap();
    assert!(text.contains("(not looked at)") && !text.contains("MISSING"), "{text}");
}

#[test]
fn a_pod_that_waits_for_its_branch_eni_is_told_with_what_is_known_of_branch_enis() {
    let mut evidence = with_branch(Enforcing::Strict);
    let waits =
        Waiting { pod: owner("late").pod, since: NOW, reason: Reason::NoBranchEni, card: NetworkCard(0) };
    set(&mut evidence.live.daemon, |report| {
        report.waiting.push(waits);
        report.cluster.push("security groups for pods (strict): no trunk".to_owned());
    });

    let text = explain::pod(&evidence, "default/late").unwrap();

    assert!(text.contains("waits for its branch ENI since 0 s: no-branch-eni"), "{text}");
    assert!(text.contains("cluster    security groups for pods") && !text.contains("0 free"), "{text}");
}

#[test]
fn the_words_of_a_rule_are_those_by_which_the_kernels_rules_are_told() {
    let evidence = with_branch(Enforcing::Standard);
    let (owner, address) = evidence.saved.owners.last().unwrap();
    let pod = evidence.saved.record.as_ref().unwrap().families.pod_spec(owner, *address, 0);

    assert_eq!(branch_rules(&pod), [(Family::V4, "pref 1536 from 10.0.20.9 lookup 107".to_owned())]);
}

#[test]
fn a_link_that_another_pod_of_the_state_may_have_is_not_to_be_taken_away() {
    let mut evidence = with_branch(Enforcing::Strict);
    let (mut before, _) = evidence.saved.owners.last().unwrap().clone();
    before.sandbox = SandboxKey::new("aws-cni", "before", "eth0").unwrap();
    before.branch.as_mut().unwrap().eni.mac = mac(8);
    evidence.saved.owners.push((before, Ipv4Addr::new(10, 0, 20, 8)));

    let verdict = judge(&evidence);

    let off: Vec<_> = verdict.findings.iter().filter(|it| it.code == Code::BranchLinkOff).collect();
    assert!(!off.is_empty() && off.iter().all(|it| it.repair.is_none()), "{off:?}");
}
