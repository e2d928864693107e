//! Each finding, from a node that is well and one thing that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use datapath::netfilter::SnatPorts;
use datapath::{
    EniSpec, Family, HostSeen, IfIndex, LinkSeen, Maker, Marks, NodeSpec, PodSpec, Route, RouteSeen,
    RuleSeen, desired,
};
use pool::{Further, Owner};
use proptest::prelude::*;
use types::{
    DeviceIndex, EniId, HostVeth, Mac, Moment, NetworkCard, PodName, Reason, SandboxKey, TableId, VethPrefix,
};
use wire::queue::QueuedDel;
use wire::{Detachment, Waiting};

use super::super::evidence::{CloudEni, Evidence, FileSeen, Live, Look, Nftables, RuntimeSandbox, Saved};
use super::super::finding::{Code, Finding};
use super::super::{bundle, explain};
use super::judge;
use crate::config::Environment;
use crate::families::Families;
use crate::host::{HostRecord, NatSettings};
use crate::node::HostWish;

mod branches;
mod ipv6;
mod networks;

/// The group of host ends that we have made, without their MTU (`PodSpec::group`).
const MADE: u32 = 0x5653_0000;
const NOW: Moment = Moment(1_000_000_000);
/// Pods on the primary and on the secondary ENI.
pub(in super::super) const PODS: [(&str, Ipv4Addr); 2] =
    [("web", Ipv4Addr::new(10, 0, 0, 20)), ("db", Ipv4Addr::new(10, 0, 0, 40))];

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

pub(in super::super) fn owner(name: &str) -> Owner {
    let pod = PodName { namespace: "default".to_owned(), name: name.to_owned() };
    Owner {
        sandbox: SandboxKey::new("aws-cni", &format!("c-{name}"), "eth0").unwrap(),
        host_if: HostVeth::of_pod(&VethPrefix::default(), &pod, 0),
        pod,
        since: NOW,
        ipv6: None,
        further: None,
        branch: None,
    }
}

fn eni(device: u8, primary: [u8; 4], source: Ipv4Addr) -> EniSpec {
    EniSpec {
        mac: mac(device),
        card: NetworkCard(0),
        device: DeviceIndex(device),
        primary_address: primary.into(),
        subnet: "10.0.0.0/24".parse().unwrap(),
        mtu: 9001,
        sources: BTreeSet::from([source.into()]),
        ipv6: BTreeSet::new(),
    }
}

fn id(device: u8) -> EniId {
    format!("eni-{device:017x}").parse().unwrap()
}

fn record() -> HostRecord {
    let enis = vec![eni(0, [10, 0, 0, 10], PODS[0].1), eni(1, [10, 0, 0, 30], PODS[1].1)];
    let ids = BTreeMap::from([(mac(0), id(0)), (mac(1), id(1))]);
    HostRecord {
        families: Families::V4 { egress: false },
        wish: HostWish {
            node: NodeSpec {
                enis,
                marks: Marks::default(),
                connmark: true,
                ipv6: false,
                external_services: BTreeSet::new(),
                trunk: None,
                strict_branches: false,
            },
            no_snat: vec!["10.0.0.0/16".parse().unwrap()],
            local: None,
            ipv6_egress: None,
            pod_if_prefixes: [VethPrefix::default()].into(),
            pods: None,
            primary_address: [10, 0, 0, 10].into(),
            ids,
        },
        nat: NatSettings { snat: None, ipv6_ports: SnatPorts::Plain, node_port: true },
    }
}

fn link(index: u32, name: &str, mac: Option<Mac>, mtu: u32, peer: Option<u32>) -> LinkSeen {
    let (index, peer) = (IfIndex(index), peer.map(IfIndex));
    LinkSeen { index, name: name.to_owned(), mac, mtu, up: true, group: 0, peer }
}

/// The kernel of a node that is well: what is wanted of it.
fn host(record: &HostRecord, owners: &[(Owner, Ipv4Addr)]) -> HostSeen {
    let enis = vec![link(2, "ens5", Some(mac(0)), 9001, None), link(3, "ens6", Some(mac(1)), 9001, None)];
    let mut host = HostSeen { links: enis, ..HostSeen::default() };
    for (index, (owner, _)) in (10..).zip(owners) {
        host.links.push(link(index, owner.host_if.as_str(), None, 9001, Some(2)));
    }
    let pods: Vec<_> = owners.iter().map(|(owner, a)| record.families.pod_spec(owner, *a, 0)).collect();
    let want = desired::host(&record.wish.node, &pods, &host).unwrap();
    host.rules = want
        .rules
        .keys()
        .map(|rule| RuleSeen {
            family: rule.family,
            priority: rule.priority.number(),
            text: rule.to_string(),
            ours: Some(*rule),
        })
        .collect();
    host.routes = want.routes.iter().map(|route| RouteSeen { maker: Maker::We, route: *route }).collect();
    host.addresses = want.addresses.into_iter().collect();
    host
}

/// A node that is well.
pub(in super::super) fn well() -> Evidence {
    let record = record();
    let owners: Vec<(Owner, Ipv4Addr)> = PODS.map(|(name, address)| (owner(name), address)).to_vec();
    let runtime = owners.iter().map(|(owner, address)| RuntimeSandbox {
        sandbox: owner.sandbox.clone(),
        pod: owner.pod.clone(),
        addresses: vec![IpAddr::V4(*address)],
    });
    let cloud = record.wish.node.enis.iter().map(|eni| CloudEni {
        id: record.wish.ids[&eni.mac].clone(),
        mac: eni.mac,
        primary_address: eni.primary_address,
        sources: eni.sources.clone(),
        ipv6: Some(BTreeSet::new()),
        ours: true,
    });
    let sysctl = |path: &str, value: &str| (path.to_owned(), value.to_owned());
    let live = Live {
        taken: NOW,
        run_dir: PathBuf::from("/var/run/aws-node"),
        daemon: Look::Seen(Box::new(crate::status::blank(NOW))),
        host: Look::Seen(host(&record, &owners)),
        sysctls: BTreeMap::from([
            sysctl("net/ipv4/ip_forward", "1"),
            sysctl("net/ipv4/conf/all/rp_filter", "0"),
            sysctl("net/ipv4/conf/ens5/rp_filter", "2"),
            sysctl("net/ipv4/conf/ens6/rp_filter", "2"),
        ]),
        nftables: Look::Seen(Nftables {
            table: Some("table".to_owned()),
            differences: Some(Vec::new()),
            chains: BTreeSet::new(),
            ipv6: None,
        }),
        legacy: Look::Seen(BTreeSet::new()),
        runtime: Look::Seen(runtime.collect()),
        networks: Look::Seen(networks::well()),
        plugin: Look::Seen(networks::plugin()),
        cloud: Look::Seen(cloud.collect()),
        files: vec![
            FileSeen { name: String::new(), mode: 0o755, uid: 0, bytes: 0 },
            FileSeen { name: "state".to_owned(), mode: 0o600, uid: 0, bytes: 9 },
        ],
    };
    let saved = Saved { has_state: true, owners, record: Some(record), ..Saved::default() };
    Evidence { dir: PathBuf::from("/var/run/aws-node"), saved, live }
}

fn host_of(evidence: &mut Evidence) -> &mut HostSeen {
    match &mut evidence.live.host {
        Look::Seen(host) => host,
        Look::Failed(_) | Look::Skipped(_) => panic!("a node that is well was looked at"),
    }
}

fn set_host(evidence: &mut Evidence, change: impl FnOnce(&mut HostSeen)) {
    change(host_of(evidence));
}

fn set<T: Clone>(look: &mut Look<T>, change: impl FnOnce(&mut T)) {
    if let Look::Seen(seen) = look {
        change(seen);
    }
}

/// What is found once something has been changed.
fn found(change: impl FnOnce(&mut Evidence)) -> Vec<Finding> {
    let mut evidence = well();
    change(&mut evidence);
    let verdict = judge(&evidence);
    assert_eq!(verdict.failed, [""; 0]);
    for Finding { what, repair, advice, .. } in &verdict.findings {
        assert!(repair.is_some() || advice.is_some(), "nobody says what to do: {what}");
    }
    verdict.findings
}

/// The one finding, and the command that mends it, or what to do.
fn one(change: impl FnOnce(&mut Evidence)) -> (Code, String) {
    let found = found(change);
    assert_eq!(found.len(), 1, "{found:#?}");
    let Finding { code, what, evidence, repair, advice, .. } = found.into_iter().next().unwrap();
    assert!(!evidence.is_empty(), "{what} has no evidence");
    (code, repair.or(advice).unwrap_or_default())
}

fn is(change: impl FnOnce(&mut Evidence), code: Code, repair: &str) {
    let (found, command) = one(change);

    assert_eq!(found, code);
    assert!(command.contains(repair), "{command}");
}

#[test]
fn of_a_node_that_is_well_nothing_is_found() {
    let verdict = judge(&well());

    assert_eq!(verdict.findings, []);
    assert_eq!((verdict.exit_code(), verdict.skipped.len()), (0, 0), "{verdict:#?}");
    assert_eq!(verdict.compared.len(), 8, "{:#?}", verdict.compared);
}

#[test]
fn a_further_interface_of_a_pod_on_another_network_card_is_well() {
    let other = Ipv4Addr::new(10, 0, 0, 41);
    let found = found(|evidence| {
        let (main, address) = evidence.saved.owners[0].clone();
        let further = Owner {
            sandbox: main.sandbox.further(1),
            host_if: HostVeth::of_pod(&VethPrefix::default(), &main.pod, 1),
            further: Some(Further { of: main.sandbox.clone(), index: 1 }),
            ..main.clone()
        };
        evidence.saved.owners.push((further, other));
        let record = evidence.saved.record.as_mut().unwrap();
        record.wish.node.enis[1].card = NetworkCard(1);
        record.wish.node.enis[1].sources.insert(other.into());
        evidence.live.host = Look::Seen(host(record, &evidence.saved.owners));
        set(&mut evidence.live.cloud, |enis| {
            enis[1].sources.insert(other.into());
        });
        set(&mut evidence.live.runtime, |known| {
            let one = known.iter_mut().find(|one| one.sandbox == main.sandbox).unwrap();
            one.addresses = vec![address.into(), other.into()];
        });
    });

    assert_eq!(found, []);
}

#[test]
fn what_the_daemon_says_of_itself_is_found() {
    is(|e| e.live.daemon = Look::Failed("no such file".to_owned()), Code::DaemonDown, "kubectl");
    is(
        |e| set(&mut e.live.daemon, |report| report.not_ready.push("the first look".to_owned())),
        Code::DaemonNotReady,
        "it goes on trying",
    );
    let waits = Waiting { pod: owner("late").pod, since: NOW, reason: Reason::ALL[0], card: NetworkCard(0) };
    is(
        |e| set(&mut e.live.daemon, |report| report.waiting.push(waits)),
        Code::PodWaits,
        "troubleshooting.md#bad-environment",
    );
    is(
        |e| set(&mut e.live.daemon, |report| report.now = Moment(NOW.0 + 90_000)),
        Code::ClockJumped,
        "kubectl",
    );
    let found = found(|e| set(&mut e.live.daemon, |report| report.cloud.push("EC2 throttles".to_owned())));
    assert_eq!(found[0].code, Code::DaemonTrouble);
}

fn queued_del() -> QueuedDel {
    let detachment = Detachment {
        sandbox: owner("web").sandbox,
        pod: owner("web").pod,
        veth_prefix: VethPrefix::default(),
        addresses: Vec::new(),
    };
    QueuedDel { detachment, started_ns: 0 }
}

#[test]
fn files_that_are_damaged_or_open_or_waiting_are_found() {
    is(|e| e.saved.damage = Some("3 of 9 lines".to_owned()), Code::StateDamaged, "kubectl");
    is(
        |e| e.saved.set_aside.push("state.damaged-7".to_owned()),
        Code::StateSetAside,
        "rm /var/run/aws-node/state.damaged-7",
    );
    is(
        |e| e.saved.queue_foreign.push("a b".to_owned()),
        Code::QueueForeign,
        "rm '/var/run/aws-node/delete-queue/a b'",
    );
    is(|e| e.live.files[1].mode = 0o644, Code::OpenPermissions, "chmod 0600 /var/run/aws-node/state");
    is(|e| e.live.files[0].mode = 0o777, Code::OpenPermissions, "chmod 0755 /var/run/aws-node");
    is(|e| e.live.files[0].uid = 7, Code::OpenPermissions, "chown 0 /var/run/aws-node");
    is(|e| e.saved.owners[0].0.since = Moment(NOW.0 + 100_000), Code::ClockJumped, "timedatectl");
    is(|e| e.saved.queue.push(queued_del()), Code::DelsQueued, "kubectl");
    let codes = |change: fn(&mut Evidence)| found(change).iter().map(|f| f.code).collect::<Vec<_>>();
    assert!(codes(|e| e.saved.record = None).contains(&Code::RecordMissing));
    assert!(codes(|e| e.saved.has_state = false).contains(&Code::StateMissing));
}

#[test]
fn enis_without_their_link_or_address_are_found() {
    is(|e| set_host(e, |host| host.links[1].up = false), Code::EniLinkOff, "ip link set ens6 mtu 9001 up");
    let found = found(|e| set_host(e, |host| host.links[1].mac = None));
    assert!(found.iter().any(|finding| finding.code == Code::EniLinkMissing), "{found:#?}");
    is(
        |e| set_host(e, |host| host.addresses.clear()),
        Code::EniAddressMissing,
        "ip addr add 10.0.0.30/24 dev ens6 noprefixroute",
    );
    is(
        |e| {
            set_host(e, |host| {
                let extra = datapath::Address { link: IfIndex(3), address: "10.0.0.99/24".parse().unwrap() };
                host.addresses.push(extra);
            })
        },
        Code::EniAddressExtra,
        "ip addr del 10.0.0.99/24 dev ens6",
    );
}

fn without_route(evidence: &mut Evidence, is: impl Fn(&Route) -> bool) {
    set_host(evidence, |host| host.routes.retain(|seen| !is(&seen.route)));
}

fn with_route(evidence: &mut Evidence, maker: Maker, table: u32, to: &str, link: u32) {
    let route =
        Route { table: TableId(table), destination: to.parse().unwrap(), via: None, link: IfIndex(link) };
    set_host(evidence, |host| host.routes.push(RouteSeen { maker, route }));
}

#[test]
fn routes_that_are_missing_or_wrong_are_found() {
    let to_web = |route: &Route| route.destination.ip() == IpAddr::V4(PODS[0].1);
    let veth = owner("web").host_if;
    is(
        |e| without_route(e, to_web),
        Code::PodRouteMissing,
        &format!("ip route replace 10.0.0.20/32 dev {veth} scope link table 51200 proto 86"),
    );
    is(
        |e| without_route(e, |route| route.via.is_some()),
        Code::RouteMissing,
        "ip route replace 0.0.0.0/0 via 10.0.0.1 dev ens6 table 2 proto 86",
    );
    is(
        |e| with_route(e, Maker::We, 51_200, "10.0.0.77/32", 10),
        Code::PodRouteExtra,
        "ip route del 10.0.0.77/32",
    );
    is(
        |e| with_route(e, Maker::Other, 51_200, "10.0.0.78/32", 3),
        Code::PodRouteForeign,
        "ip route del 10.0.0.78/32 dev ens6 table 51200",
    );
    is(
        |e| with_route(e, Maker::Kernel, 254, "10.0.0.0/24", 3),
        Code::RouteExtra,
        "ip route del 10.0.0.0/24 dev ens6",
    );
    // What stands in the place of ours goes with the same command.
    is(
        |e| {
            without_route(e, to_web);
            with_route(e, Maker::Other, 51_200, "10.0.0.20/32", 3);
        },
        Code::PodRouteMissing,
        "ip route replace",
    );
}

fn with_rule(evidence: &mut Evidence, priority: u32, text: &str) {
    let rule = RuleSeen { family: Family::V4, priority, text: text.to_owned(), ours: None };
    set_host(evidence, |host| host.rules.push(rule));
}

#[test]
fn rules_that_are_missing_or_wrong_are_found() {
    is(
        |e| set_host(e, |host| host.rules.retain(|rule| rule.priority != 1536)),
        Code::RuleMissing,
        "ip rule add pref 1536 fwmark 0x100/0x3f00 lookup 2 protocol 86",
    );
    is(
        |e| {
            set_host(e, |host| {
                let again = host.rules[0].clone();
                host.rules.push(again);
            })
        },
        Code::RuleExtra,
        "ip rule del pref 512",
    );
    is(
        |e| with_rule(e, 512, "from all to 10.0.0.9 lookup main"),
        Code::GoLeftover,
        "ip rule del pref 512 from all to 10.0.0.9 lookup main",
    );
    is(|e| with_rule(e, 1536, "from 10.0.0.9 lookup 2"), Code::GoLeftover, "ip rule del");
    is(|e| with_rule(e, 1024, "from all iif ens5 lookup 7"), Code::RuleForeign, "ip rule del");
    assert_eq!(found(|e| with_rule(e, 100, "from all lookup 7")), []);
    is(
        |e| with_route(e, Maker::Other, 254, "10.0.0.9/32", 10),
        Code::GoLeftover,
        "ip route del 10.0.0.9/32 dev eni",
    );
    assert_eq!(found(|e| with_route(e, Maker::Kernel, 254, "fe80::1/128", 10)), [], "the kernel's own");
}

#[test]
fn nftables_and_settings_that_differ_are_found() {
    let differ = |e: &mut Evidence| {
        set(&mut e.live.nftables, |nft| nft.differences = Some(vec!["add elements to eni_of".to_owned()]));
    };
    is(differ, Code::NftablesDiffers, "ipamd explain nftables | nft -f -");
    is(
        |e| {
            differ(e);
            set(&mut e.live.nftables, |nft| nft.table = None);
        },
        Code::NftablesMissing,
        "ipamd explain nftables | nft -f -",
    );
    let chain = |e: &mut Evidence, table: &str, chain: &str| {
        set(&mut e.live.nftables, |nft| nft.chains.extend([(table.to_owned(), chain.to_owned())]));
    };
    is(|e| chain(e, "nat", "AWS-SNAT-CHAIN-0"), Code::GoLeftover, "iptables-nft-save -t nat | sed");
    is(|e| chain(e, "aws-cni", "nat-prerouting"), Code::GoLeftover, "nft delete table ip aws-cni");
    let in_legacy = |e: &mut Evidence| e.live.legacy = Look::Seen(["mangle".to_owned()].into());
    is(in_legacy, Code::GoLeftover, "iptables-legacy-save -t mangle | sed");
    let say = |e: &mut Evidence, path: &str, value: &str| {
        e.live.sysctls.insert(path.to_owned(), value.to_owned());
    };
    is(|e| say(e, "net/ipv4/ip_forward", "0"), Code::IpForwardOff, "sysctl -w net/ipv4/ip_forward=1");
    is(
        |e| say(e, "net/ipv4/conf/ens6/rp_filter", "1"),
        Code::RpFilterStrict,
        "sysctl -w net/ipv4/conf/ens6/rp_filter=2",
    );
    assert_eq!(found(|e| say(e, "net/ipv4/conf/ens6/rp_filter", "0")), [], "no check at all drops nothing");
}

#[test]
fn links_without_pods_and_pods_without_links_are_found() {
    let veth = owner("web").host_if;
    let gone = found(|e| set_host(e, |host| host.links.retain(|link| link.name != veth.as_str())));
    assert_eq!(gone[0].code, Code::PodLinkMissing);
    assert_eq!(gone[0].repair.as_deref(), Some("kubectl -n default delete pod web"));
    is(
        |e| set_host(e, |host| host.links[2].up = false),
        Code::PodLinkDown,
        &format!("ip link set {veth} up"),
    );
    let stray = |group| {
        let mut stray = link(20, "eni0123456789a", None, 9001, Some(2));
        stray.group = group;
        stray
    };
    is(
        |e| set_host(e, |host| host.links.push(stray(0))),
        Code::LinkWithoutOwner,
        "ip link del eni0123456789a",
    );
    assert_eq!(found(|e| set_host(e, |host| host.links.push(stray(datapath::TRASH_GROUP)))), []);
}

#[test]
fn a_pods_host_link_that_is_not_as_it_was_made_is_found_and_one_of_others_is_left_alone() {
    let (veth, mtu) = (owner("web").host_if, 9001);
    let with = |group: u32, other: Mac, mtu: u32| {
        move |e: &mut Evidence| {
            set_host(e, |host| {
                (host.links[2].group, host.links[2].mac, host.links[2].mtu) = (group, Some(other), mtu)
            });
        }
    };
    let made = MADE | mtu;
    assert_eq!(PodSpec { mtu, ..pod_of(&well()) }.group(), made);
    assert_eq!(found(with(made, veth.mac(), mtu)), []);
    is(with(made, mac(9), mtu), Code::PodLinkOff, &format!("ip link set {veth} address {}", veth.mac()));
    is(with(made, veth.mac(), 1500), Code::PodLinkOff, &format!("ip link set {veth} mtu 9001"));
    is(with(made, mac(9), 1500), Code::PodLinkOff, &format!("address {} mtu 9001", veth.mac()));
    // The Go version's MAC addresses are random, and nobody knows what MTU they had.
    assert_eq!(found(with(0, mac(9), 1500)), []);
}

/// What the first pod should have.
fn pod_of(evidence: &Evidence) -> PodSpec {
    let (owner, address) = &evidence.saved.owners[0];
    evidence.saved.record.as_ref().unwrap().families.pod_spec(owner, *address, 0)
}

#[test]
fn sandboxes_that_one_side_alone_knows_are_found() {
    is(
        |e| set(&mut e.live.runtime, |known| drop(known.remove(0))),
        Code::SandboxUnknownToRuntime,
        "CNI_COMMAND=DEL CNI_CONTAINERID=c-web",
    );
    let other = RuntimeSandbox {
        sandbox: owner("other").sandbox,
        pod: owner("other").pod,
        addresses: vec!["10.0.0.50".parse().unwrap()],
    };
    is(
        |e| set(&mut e.live.runtime, |known| known.push(other)),
        Code::SandboxUnknownToState,
        "kubectl -n default delete pod other",
    );
    is(
        |e| set(&mut e.live.runtime, |known| known[0].addresses = vec!["10.0.0.50".parse().unwrap()]),
        Code::RuntimeDiffers,
        "kubectl -n default delete pod web",
    );
    // A cache without any of ours is not that of this runtime.
    let mut evidence = well();
    set(&mut evidence.live.runtime, Vec::clear);
    let verdict = judge(&evidence);
    assert_eq!((verdict.findings.len(), verdict.skipped.len()), (0, 1), "{verdict:#?}");
}

#[test]
fn addresses_of_no_eni_and_of_nobody_are_found() {
    let found = found(|e| {
        if let Some(record) = &mut e.saved.record {
            record.wish.node.enis[0].sources.clear();
        }
    });
    assert_eq!(found[0].code, Code::AddressUnplaced);
    is(
        |e| e.saved.owners[0].0.sandbox = SandboxKey::new("rebuilt-from-kernel", "x", "eth0").unwrap(),
        Code::Placeholder,
        "--field-selector status.podIP=10.0.0.20",
    );
}

#[test]
fn what_ec2_has_otherwise_is_found() {
    is(
        |e| set(&mut e.live.cloud, |enis| enis[1].sources = BTreeSet::new()),
        Code::AddressNotInEc2,
        "kubectl -n default delete pod db",
    );
    is(|e| set(&mut e.live.cloud, |enis| drop(enis.remove(1))), Code::EniNotInEc2, "kubectl");
    let stranger = |ours| CloudEni {
        id: id(2),
        mac: mac(2),
        primary_address: [10, 0, 0, 60].into(),
        sources: BTreeSet::new(),
        ipv6: Some(BTreeSet::new()),
        ours,
    };
    is(|e| set(&mut e.live.cloud, |enis| enis.push(stranger(true))), Code::EniUnknown, "kubectl");
    assert_eq!(found(|e| set(&mut e.live.cloud, |enis| enis.push(stranger(false)))), []);
    is(
        |e| {
            if let Some(record) = &mut e.saved.record {
                record.wish.node.enis[0].sources.insert("10.0.0.70/32".parse().unwrap());
            }
        },
        Code::FreeNotInEc2,
        "kubectl",
    );
}

/// Something of the kernel's is not what it should be: one harm for each code about that.
const HARMS_OF_KERNEL: &[fn(&mut Evidence)] = &[
    |e| set_host(e, |host| host.links[2].up = false),
    |e| set_host(e, |host| (host.links[2].group, host.links[2].mtu) = (MADE | 9001, 1500)),
    |e| set_host(e, |host| host.links[1].mac = None),
    |e| set_host(e, |host| host.links[1].up = false),
    |e| set_host(e, |host| host.addresses.clear()),
    |e| {
        set_host(e, |host| {
            let address = "10.0.0.99/24".parse().unwrap();
            host.addresses.push(datapath::Address { link: IfIndex(3), address });
        })
    },
    |e| set_host(e, |host| host.links.truncate(2)),
    |e| set_host(e, |host| host.links.push(link(20, "eni0123456789a", None, 9001, Some(2)))),
    |e| without_route(e, |_| true),
    |e| with_route(e, Maker::Kernel, 254, "10.0.0.0/24", 3),
    |e| with_route(e, Maker::We, 51_200, "10.0.0.77/32", 10),
    |e| with_route(e, Maker::Other, 51_200, "10.0.0.78/32", 3),
    |e| with_route(e, Maker::Other, 254, "10.0.0.9/32", 10),
    |e| set_host(e, |host| drop(host.rules.remove(0))),
    |e| set_host(e, |host| host.rules.extend_from_within(..)),
    |e| with_rule(e, 1024, "from all iif ens5 lookup 7"),
    |e| set(&mut e.live.nftables, |nft| nft.differences = Some(vec!["add".to_owned()])),
    |e| set(&mut e.live.nftables, |nft| (nft.table, nft.differences) = (None, Some(vec![String::new()]))),
    |e| e.live.sysctls.extend(["net/ipv4/ip_forward"].map(|path| (path.to_owned(), "0".to_owned()))),
    |e| e.live.sysctls.values_mut().for_each(|value| *value = "1".to_owned()),
    |e| {
        e.saved.record.iter_mut().for_each(|record| record.wish.node.ipv6 = true);
        let node = &e.saved.record.as_ref().unwrap().wish.node;
        let wanted = desired::sysctls(node, &e.live.host.seen().unwrap().by_mac());
        e.live.sysctls.extend(wanted.into_iter().map(|sysctl| (sysctl.path, "7".to_owned())));
    },
];

/// The same of everything else.
const HARMS_ELSEWHERE: &[fn(&mut Evidence)] = &[
    |e| e.live.daemon = Look::Failed("no such file".to_owned()),
    |e| set(&mut e.live.daemon, |report| report.not_ready.push("the first look".to_owned())),
    |e| set(&mut e.live.daemon, |report| report.cloud.push("EC2 throttles".to_owned())),
    |e| {
        let (pod, reason) = (owner("late").pod, Reason::NoTrunk);
        let waits = Waiting { pod, since: NOW, reason, card: NetworkCard(0) };
        set(&mut e.live.daemon, |report| report.waiting.push(waits));
    },
    |e| set(&mut e.live.daemon, |report| report.now = Moment(0)),
    |e| e.saved.owners[0].0.since = Moment(NOW.0 + 100_000),
    |e| e.saved.damage = Some("3 of 9 lines".to_owned()),
    |e| e.saved.set_aside.push("state.damaged-7".to_owned()),
    |e| (e.saved.has_state, e.saved.set_aside) = (false, vec!["state.damaged-7".to_owned()]),
    |e| e.saved.record = None,
    |e| e.live.files[1].mode = 0o644,
    |e| e.live.files[1].uid = 7,
    |e| e.saved.queue.push(queued_del()),
    |e| e.saved.queue_foreign.push("x".to_owned()),
    |e| e.saved.record.iter_mut().for_each(|record| record.wish.node.enis[0].sources.clear()),
    |e| e.saved.owners[0].0.sandbox = SandboxKey::new("rebuilt-from-kernel", "x", "eth0").unwrap(),
    |e| set(&mut e.live.runtime, |known| drop(known.remove(0))),
    |e| set(&mut e.live.runtime, |known| known[0].sandbox = owner("other").sandbox),
    |e| set(&mut e.live.runtime, |known| known[0].addresses = vec!["10.0.0.50".parse().unwrap()]),
    |e| set(&mut e.live.cloud, |enis| enis[1].sources.clear()),
    |e| set(&mut e.live.cloud, |enis| drop(enis.remove(1))),
    |e| set(&mut e.live.cloud, |enis| enis[1].mac = mac(9)),
    |e| {
        let free = [ipnetwork::Ipv4Network::from(Ipv4Addr::new(10, 0, 0, 70))];
        e.saved.record.iter_mut().for_each(|record| record.wish.node.enis[0].sources.extend(free));
    },
];

#[test]
fn of_every_finding_it_is_said_what_to_do() {
    let harms = HARMS_OF_KERNEL.iter().chain(HARMS_ELSEWHERE).chain(branches::HARMS).chain(networks::HARMS);

    // Each is looked at there.
    let codes: BTreeSet<Code> = harms.flat_map(found).map(|finding| finding.code).collect();

    let never: Vec<_> = Code::ALL.iter().filter(|code| !codes.contains(code)).collect();
    assert!(never.is_empty(), "no harm has these: {never:?}");
}

#[test]
fn what_could_not_be_looked_at_is_neither_well_nor_ill() {
    let mut evidence = well();
    evidence.live.host = Look::Failed("no netlink".to_owned());

    let verdict = judge(&evidence);

    assert_eq!(verdict.exit_code(), 2, "{verdict:#?}");
    evidence.live = Live::default();
    evidence.saved = Saved { has_state: true, ..Saved::default() };
    let verdict = judge(&evidence);
    assert_eq!((verdict.exit_code(), verdict.skipped.len()), (0, 6), "{verdict:#?}");
}

#[test]
fn of_a_state_that_could_not_be_read_nobody_is_told_to_delete_what_pods_need() {
    let unreadable =
        Saved { unread: true, troubles: vec!["no such directory".to_owned()], ..Saved::default() };
    let mut nowhere = well();
    nowhere.saved = unreadable;
    nowhere.live.daemon = Look::Failed("no such socket".to_owned());
    with_route(&mut nowhere, Maker::Other, 254, "10.0.0.20/32", 10);

    let verdict = judge(&nowhere);

    assert_eq!(verdict.findings, []);
    assert_eq!((verdict.exit_code(), verdict.failed.len()), (2, 2), "{verdict:#?}");
    let harms: [fn(&mut Saved); 2] =
        [|saved| saved.has_state = false, |saved| saved.damage = Some("x".to_owned())];
    for harm in harms {
        let found = found(|e| {
            harm(&mut e.saved);
            e.saved.owners.clear();
            e.saved.set_aside.push("state.damaged-7".to_owned());
        });
        let repairs: Vec<&str> = found.iter().filter_map(|finding| finding.repair.as_deref()).collect();
        assert!(repairs.iter().all(|command| command.contains("k8s-app=aws-node")), "{repairs:?}");
    }
}

#[test]
fn what_was_asked_is_the_same_after_it_was_saved() {
    let live = well().live;

    let text = serde_json::to_string(&live).unwrap();

    assert_eq!(serde_json::from_str::<Live>(&text).unwrap(), live);
}

/// Numbers and texts of a document put where others were.
fn hostile(text: &str, at: usize, with: &str) -> String {
    let places: Vec<(usize, char)> =
        text.char_indices().filter(|(_, c)| c.is_ascii_digit() || *c == '"' || *c == '[').collect();
    let (start, _) = places[at % places.len()];
    format!("{}{with}{}", &text[..start], text.get(start + 1..).unwrap_or_default())
}

proptest! {
    #[test]
    fn no_saved_document_makes_the_tools_fail(
        changes in prop::collection::vec((any::<usize>(), "[0-9]{1,12}|\\[\\]|null|-1|\"\\PC{0,4}\"|[0-9.]{3,9}"), 1..4),
    ) {
        let Evidence { dir, saved, live } = well();
        let (mut told, mut record) =
            (serde_json::to_string(&live).unwrap(), serde_json::to_string(&saved.record).unwrap());
        for (at, with) in &changes {
            told = hostile(&told, *at, with);
            record = hostile(&record, at / 7, with);
        }
        let live = serde_json::from_str(&told).unwrap_or(live);
        let record = serde_json::from_str(&record).unwrap_or(saved.record);
        let evidence = Evidence { dir, saved: Saved { record, ..saved }, live };

        let verdict = judge(&evidence);
        prop_assert!(!verdict.render().is_empty());
        prop_assert!(explain::pod(&evidence, "default/db").is_ok());
        drop(explain::nftables(&evidence));
        prop_assert!(bundle::parts(&evidence, &verdict, &Environment::new(), &[]).len() > 5);
    }
}
