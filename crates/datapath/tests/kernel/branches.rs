//! Pods with a branch ENI. The VPC is a namespace with the router of the branch ENI's subnet, which sees each VLAN of the trunk as a link.
//!
//! Where the kernel has no VLANs a veth with the name and the MAC address of the VLAN's link stands in for it: all but its making is the same.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use datapath::{BranchLack, Host, Mending, NodeSpec, PROTOCOL, TrunkSpec, Wirer, branch_lacks};
use libtest_mimic::Failed;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use types::{Branch, BranchEni, BranchIpv4, Enforcing, HostVeth, Mac, PodName, VethPrefix, VlanId};

use crate::pods::Pod;
use crate::{Outcome, converge, ip, ipv6, json, node};

const TRUNK: Mac = Mac([2, 0, 0, 0, 1, 0]);
const BRANCH: Mac = Mac([2, 0, 0, 0, 2, 7]);
const ROUTER: &str = "10.0.16.1";
const ROUTER_IPV6: &str = "fe80:ec2::1";

/// Whether the kernel has VLANs.
pub(crate) fn no_vlan() -> Option<String> {
    lacks("VLANs", "vlan id 7")
}

/// Whether it has anything whose link stands on another as a VLAN's does.
pub(crate) fn nothing_stacked() -> Option<String> {
    no_vlan().and_then(|_| lacks("VLANs, nor MACVLANs", "macvlan"))
}

fn lacks(what: &str, kind: &str) -> Option<String> {
    let script = format!(
        "ip link add vprobe0 type veth peer name vprobe1 && ip link add link vprobe0 name vprobe.7 type {kind}"
    );
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("no {what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("no `unshare` program: {error}")),
    }
}

/// What stands for the VPC, and how the node is to be.
struct Stage {
    vpc: File,
    spec: NodeSpec,
    vlan: bool,
}

impl Stage {
    fn begin(vlan: bool) -> Result<Self, Failed> {
        let vpc = Pod::new(200)?.netns;
        let there = format!("/proc/{}/fd/{}", std::process::id(), vpc.as_raw_fd());
        let trunk = TrunkSpec { mac: TRUNK, mtu: 9001 };
        let spec = NodeSpec { trunk: Some(trunk), strict_branches: true, ipv6: ipv6(), ..node()? };
        ip(&format!("link add trunk0 address {TRUNK} type veth peer name vpc0"))?;
        ip(&format!("link set vpc0 netns {there}"))?;
        if !vlan {
            ip(&format!("link add vlan.eth.7 address {BRANCH} type veth peer name vpc7"))?;
            ip(&format!("link set vpc7 netns {there}"))?;
        }
        let stage = Self { vpc, spec, vlan };
        stage.in_vpc(|| {
            ip("link set vpc0 up")?;
            if vlan {
                ip("link add link vpc0 name vpc7 type vlan id 7")?;
            }
            ip("link set vpc7 up")?;
            // The router; the node by its secondary ENI's own address, and somebody far away. The VPC needs not ask who has an address.
            for address in ["10.0.16.1/20", "10.0.0.11/32", "198.51.100.7/32"] {
                ip(&format!("addr add {address} dev vpc7"))?;
            }
            ip("route add default dev vpc7")?;
            ip(&format!("neigh add 10.0.20.7 lladdr {BRANCH} dev vpc7 nud permanent"))?;
            if ipv6() {
                ip(&format!("neigh add 2001:db8:0:2::7 lladdr {BRANCH} dev vpc7 nud permanent"))?;
                ip("addr add fe80:ec2::1/64 dev vpc7 nodad")?;
                ip("addr add 2001:db8:f::7/128 dev vpc7 nodad")?;
                ip("route add 2001:db8:0:2::/64 dev vpc7")?;
            }
            Ok(())
        })?;
        converge(&stage.spec)?;
        Ok(stage)
    }

    fn in_vpc<T: Send>(&self, run: impl FnOnce() -> Result<T, Failed> + Send) -> Result<T, Failed> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.vpc.as_fd(), Some(LinkNameSpaceType::Network))?;
                run()
            });
            thread.join().map_err(|_panic| Failed::from("it panicked"))?
        })
    }

    fn pod(&self, enforcing: Enforcing) -> Result<Pod, Failed> {
        let mut pod = Pod::new(7)?;
        let name = PodName { namespace: "default".to_owned(), name: "pod-7".to_owned() };
        let ipv4 = BranchIpv4 { address: [10, 0, 20, 7].into(), gateway: ROUTER.parse()? };
        let eni = BranchEni {
            id: None,
            mac: BRANCH,
            vlan: VlanId::new(7)?,
            ipv4: Some(ipv4),
            ipv6: ipv6().then_some("2001:db8:0:2::7".parse()?),
        };
        pod.spec.host_if = match enforcing {
            Enforcing::Strict => HostVeth::of_branch(&name),
            Enforcing::Standard => HostVeth::of_pod(&VethPrefix::default(), &name, 0),
        };
        pod.spec.addresses = eni.addresses();
        pod.spec.branch = Some(Branch { eni, trunk: TRUNK, enforcing });
        Ok(pod)
    }

    /// Whether a datagram from the pod comes to this address in the VPC, from the pod's own, and the answer back.
    fn reaches(&self, pod: &Pod, address: &str) -> Result<bool, Failed> {
        let bind = |address: &str| -> Result<UdpSocket, Failed> {
            let socket = UdpSocket::bind(SocketAddr::new(address.parse()?, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        };
        let there = self.in_vpc(|| bind(address))?;
        let to = there.local_addr()?;
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let here = pod.inside(|| bind(any))?;
        let mut buffer = [0; 8];
        for _attempt in 0..6 {
            // The node may have refused the one before; a link that has just come up takes a moment for IPv6.
            let _refused = here.send_to(b"a", to);
            let Ok((_, from)) = there.recv_from(&mut buffer) else { continue };
            if !pod.spec.addresses.contains(&from.ip()) {
                return Err(format!("it came from {from}").into());
            }
            there.send_to(b"b", from)?;
            if here.recv_from(&mut buffer).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rules that are for branch ENIs or the node's own addresses.
    fn rules(&self) -> Result<Vec<(u64, String)>, Failed> {
        let rules = json("rule")?;
        let said = rules.iter().map(|rule| {
            let priority = rule["priority"].as_u64().unwrap_or_default();
            let by = rule["iif"].as_str().or(rule["src"].as_str()).unwrap_or_default();
            (priority, format!("{by} {}", rule["table"].as_str().unwrap_or_default()))
        });
        Ok(said.filter(|(_, text)| text.ends_with(" 107") || text.ends_with(" local")).collect())
    }
}

fn rule(priority: u64, text: &str) -> (u64, String) {
    (priority, text.to_owned())
}

pub(crate) fn strict() -> Outcome {
    strict_on(&Stage::begin(false)?)
}

pub(crate) fn strict_with_vlan() -> Outcome {
    strict_on(&Stage::begin(true)?)
}

/// All of a strict pod's traffic goes by its branch ENI, also that to its own node, and all of it is gone after its DEL.
fn strict_on(stage: &Stage) -> Outcome {
    assert_eq!(stage.rules()?, [rule(20, "all local")]);
    assert_eq!(converge(&stage.spec)?, Vec::<String>::new());
    let mut wirer = Wirer::open()?;
    let pod = stage.pod(Enforcing::Strict)?;

    pod.add(&mut wirer)?;

    let by_pod = format!("{} 107", pod.name());
    let mut rules = stage.rules()?;
    rules.sort();
    let mut wanted = vec![rule(10, "vlan.eth.7 107"), rule(10, &by_pod), rule(20, "all local")];
    wanted.sort();
    assert_eq!(rules, wanted);
    let routes = ip("route show table 107")?;
    assert!(routes.contains("default via 10.0.16.1 dev vlan.eth.7"), "{routes}");
    assert!(routes.contains(&format!("10.0.20.7 dev {}", pod.name())), "{routes}");
    if stage.vlan {
        let link = &json("-d link show dev vlan.eth.7")?[0];
        assert_eq!(link["linkinfo"]["info_data"]["id"], 7);
        assert_eq!(
            (link["address"].as_str(), link["link"].as_str()),
            (Some(&*BRANCH.to_string()), Some("trunk0"))
        );
    }
    for address in [ROUTER, "198.51.100.7", "10.0.0.11"] {
        assert!(stage.reaches(&pod, address)?, "{address} is not reached by the branch ENI");
    }
    if ipv6() {
        assert!(stage.reaches(&pod, "2001:db8:f::7")?, "no way by {ROUTER_IPV6}");
    }
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    // Neither a look at the whole node takes anything of it away.
    assert_eq!(converge(&stage.spec)?, Vec::<String>::new());

    mended(stage, &mut wirer, &pod)?;
    never_by_main(&mut wirer, &pod)?;
    mended_with_trunk(stage, &mut wirer, &pod)?;
    mended_in_part(stage, &mut wirer, &pod)?;
    found_again(stage, &mut wirer, &pod)?;
    told_as_gone(&mut wirer, &pod)?;
    wirer.remove(&pod.spec)?;
    wirer.sweep()?;
    assert_eq!(stage.rules()?, [rule(20, "all local")]);
    assert!(!ip("link")?.contains("vlan.eth.7") && !ip("link")?.contains(&pod.name()));
    assert_eq!(ip("route show table all")?.matches("table 107").count(), 0);
    wirer.remove(&pod.spec)?;
    converge(&NodeSpec { strict_branches: false, ..stage.spec.clone() })?;
    assert_eq!(stage.rules()?, [rule(0, "all local")]);
    Ok(())
}

/// What others take of it is found and put back.
fn mended(stage: &Stage, wirer: &mut Wirer, pod: &Pod) -> Outcome {
    let takes: &[&str] = match stage.vlan {
        true => &[
            "rule del pref 10 iif vlan.eth.7",
            "route flush table 107",
            "link set vlan.eth.7 down",
            "link del vlan.eth.7",
        ],
        false => &["rule del pref 10 iif vlan.eth.7", "route flush table 107", "link set vlan.eth.7 down"],
    };
    for take in takes {
        ip(take)?;
        assert_ne!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new(), "{take}");
        let pods = [pod.spec.clone()];
        assert_eq!(wirer.mend(&pods)?.mended.len(), 1, "{take}");
        assert_eq!(wirer.mend(&pods)?.mended.len(), 0, "{take}");
        assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new(), "{take}");
        assert!(stage.reaches(pod, ROUTER)?, "{take}");
    }
    Ok(())
}

/// While its table lacks its way out, or the VLAN's link is down, a strict pod's packets are refused: the main table would lead them past
/// its security groups. That the table is closed is compared and put back as the rest is.
fn never_by_main(wirer: &mut Wirer, pod: &Pod) -> Outcome {
    // The main table knows a way to it.
    let aside = ["link add aside0 type veth peer name aside1", "link set aside0 up", "link set aside1 up"];
    aside.iter().try_for_each(|line| ip(line).map(drop))?;
    ip("route replace 198.51.100.7 dev aside0")?;
    let way = |pod: &Pod| ip(&format!("route get 198.51.100.7 from 10.0.20.7 iif {}", pod.name()));
    assert!(way(pod)?.contains("dev vlan.eth.7"), "{}", way(pod)?);
    for take in ["route del default table 107 metric 0", "link set vlan.eth.7 down"] {
        ip(take)?;
        let refused = way(pod).err().map(|error| format!("{error:?}")).unwrap_or_default();
        assert!(refused.contains("No route to host"), "{take}: {refused}, {:?}", way(pod));
        assert_eq!(wirer.mend(std::slice::from_ref(&pod.spec))?.mended.len(), 1, "{take}");
        assert!(way(pod)?.contains("dev vlan.eth.7"), "{take}");
    }
    let mut opens = vec!["route del unreachable default table 107 metric 4278198272"];
    opens.extend(ipv6().then_some("-6 route del unreachable default table 107 metric 4278198272"));
    for open in opens {
        ip(open)?;
        // Whoever looks at all of the host sees it too, and the command that is told closes it.
        let (lack, command) = refusal_lacked(pod)?.ok_or(open)?;
        ip(command.strip_prefix("ip ").ok_or("no ip")?)?;
        assert_eq!(refusal_lacked(pod)?, None, "{lack:?}: {command}");
        ip(open)?;
        let [mended] = &wirer.mend(std::slice::from_ref(&pod.spec))?.mended[..] else {
            return Err(open.into());
        };
        assert!(mended.what[0].contains("go on to the main table"), "{:?}", mended.what);
        assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new(), "{open}");
    }
    ip("link del aside0").map(drop)
}

/// Whether the host lacks a route that closes the pod's table, and the command that puts it there.
fn refusal_lacked(pod: &Pod) -> Result<Option<(BranchLack, String)>, Failed> {
    let seen = Host::open()?.look()?;
    let lack = branch_lacks(&pod.spec, &seen).into_iter().find(|lack| matches!(lack, BranchLack::Refusal(_)));
    let branch = pod.spec.branch.as_ref().ok_or("no branch ENI")?;
    Ok(lack.and_then(|lack| Some((lack.clone(), lack.command(branch, &seen, &seen.names())?))))
}

/// A trunk that others took down comes up with the VLAN, which the kernel would refuse before.
fn mended_with_trunk(stage: &Stage, wirer: &mut Wirer, pod: &Pod) -> Outcome {
    ip("link set trunk0 down")?;
    if !stage.vlan {
        ip("link set vlan.eth.7 down")?;
    }

    assert_eq!(wirer.mend(std::slice::from_ref(&pod.spec))?.mended.len(), 1);

    assert!(ip("link show dev trunk0")?.contains(",UP"));
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    assert!(stage.reaches(pod, ROUTER)?);
    Ok(())
}

/// Where the kernel refuses a step, the pod has its rules nevertheless: without them its packets would go past its security groups. One to
/// the table of a pod before goes.
fn mended_in_part(stage: &Stage, wirer: &mut Wirer, pod: &Pod) -> Outcome {
    if !ipv6() {
        return Ok(());
    }
    let other = Pod::new(8)?;
    other.add(wirer)?;
    let pods = [pod.spec.clone(), other.spec.clone()];
    let before = stage.rules()?;
    let no_ipv6 = |value: &str| std::fs::write("/proc/sys/net/ipv6/conf/vlan.eth.7/disable_ipv6", value);
    let by_pod = |table: u32| format!("pref 10 iif {} lookup {table}", pod.name());
    ip(&format!("rule add {}", by_pod(105)))?;
    ip("rule del pref 10 iif vlan.eth.7")?;
    no_ipv6("1")?;
    ip(&format!("link set {} down", other.name()))?;

    let Err(refused) = wirer.mend(&pods) else { return Err("IPv6 routes were taken".into()) };

    assert_eq!(refused.source.to_string(), "cannot add the branch ENI's routes");
    let mended: Vec<_> = refused.found.mended.iter().map(|mended| mended.pod).collect();
    assert_eq!(mended, [&other.spec], "one pod's refusal is nothing to another");
    let sorted = |mut rules: Vec<(u64, String)>| {
        rules.sort();
        rules
    };
    assert_eq!(sorted(stage.rules()?), sorted(before));
    assert!(!ip("rule")?.contains("lookup 105"));
    assert!(stage.reaches(pod, ROUTER)?);
    no_ipv6("0")?;
    assert_eq!(wirer.mend(&pods)?.mended.len(), 1);
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    wirer.remove(&other.spec)?;
    wirer.sweep()?;
    Ok(())
}

/// A strict pod is gone when neither its link nor a route to it is there: its table is that of its branch ENI, and may be another pod's by now.
/// One whose link somebody has renamed lives.
fn told_as_gone(wirer: &mut Wirer, pod: &Pod) -> Outcome {
    let pods = [pod.spec.clone()];
    let mac = pod.spec.host_if.mac();
    let own = format!("{}/32 dev elsewhere table 107 proto {PROTOCOL}", pod.spec.addresses[0]);
    ip(&format!("link set {} down", pod.name()))?;
    ip(&format!("link set {} name elsewhere", pod.name()))?;
    ip("link set elsewhere up")?;
    assert_eq!(wirer.mend(&pods)?, Mending::default(), "it has the MAC address of its name");

    ip("link set elsewhere address 02:00:00:00:00:99")?;
    ip(&format!("route replace {own}"))?;
    assert_eq!(wirer.mend(&pods)?, Mending::default(), "a route leads to it");

    ip(&format!("route del {own}"))?;
    ip("route add 10.0.20.8/32 dev elsewhere table 107")?;
    let found = wirer.mend(&pods)?;
    assert_eq!((found.mended, found.lost), (Vec::new(), vec![&pod.spec]));

    ip("link set elsewhere down")?;
    ip(&format!("link set elsewhere name {} address {mac}", pod.name()))?;
    assert_eq!(wirer.mend(&pods)?.mended.len(), 1);
    Ok(())
}

/// Whoever has lost its state finds the pod as it is. A link that stands in for the VLAN stands on no trunk, and tells nothing.
fn found_again(stage: &Stage, wirer: &mut Wirer, pod: &Pod) -> Outcome {
    let seen = wirer.pods()?;
    if stage.vlan {
        let [seen] = &seen[..] else { return Err(format!("{seen:?}").into()) };
        assert_eq!(
            (seen.host_if.as_str(), &seen.addresses, seen.by_us),
            (pod.spec.host_if.as_str(), &pod.spec.addresses, true)
        );
        assert_eq!(seen.branch, pod.spec.branch);
    }
    Ok(())
}

pub(crate) fn standard() -> Outcome {
    standard_on(&Stage::begin(false)?)
}

pub(crate) fn standard_with_vlan() -> Outcome {
    standard_on(&Stage::begin(true)?)
}

/// In standard mode the node and its pods are reached on the node, all else by the branch ENI.
fn standard_on(stage: &Stage) -> Outcome {
    let mut wirer = Wirer::open()?;
    let pod = stage.pod(Enforcing::Standard)?;

    pod.add(&mut wirer)?;

    let of_pod: Vec<_> = stage.rules()?.into_iter().filter(|(priority, _)| *priority != 20).collect();
    assert_eq!(of_pod, [rule(1536, "10.0.20.7 107")]);
    assert!(ip("route show table 51200")?.contains("10.0.20.7"));
    assert!(stage.reaches(&pod, ROUTER)? && stage.reaches(&pod, "198.51.100.7")?);
    assert!(!stage.reaches(&pod, "10.0.0.11")?, "the node is reached past the security groups, on the node");
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    assert_eq!(converge(&stage.spec)?, Vec::<String>::new());
    found_again(stage, &mut wirer, &pod)?;

    wirer.remove(&pod.spec)?;
    assert_eq!(stage.rules()?, [rule(20, "all local")]);
    Ok(())
}

/// The next pod that has the VLAN keeps it when the DEL of the one before comes late.
pub(crate) fn late_del() -> Outcome {
    let stage = Stage::begin(false)?;
    let mut wirer = Wirer::open()?;
    let pod = stage.pod(Enforcing::Strict)?;
    pod.add(&mut wirer)?;
    let mut before = stage.pod(Enforcing::Strict)?.spec;
    if let Some(branch) = &mut before.branch {
        branch.eni.mac = Mac([2, 0, 0, 0, 2, 9]);
    }
    before.host_if = HostVeth::found("vlan0123456789a").ok_or("no name")?;
    before.addresses = vec![IpAddr::from([10, 0, 20, 9])];

    wirer.remove(&before)?;

    assert!(stage.reaches(&pod, ROUTER)?);
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    Ok(())
}

/// The kernel takes the MTU of what stands on a trunk down with the trunk's, and not up again. Where it has no VLANs a MACVLAN stands in.
pub(crate) fn mtu_follows_the_trunk() -> Outcome {
    let vlan = no_vlan().is_none();
    let stage = Stage::begin(vlan)?;
    if !vlan {
        ip("link del vlan.eth.7")?;
        ip(&format!("link add link trunk0 name vlan.eth.7 address {BRANCH} type macvlan"))?;
    }
    let mut wirer = Wirer::open()?;
    let pod = stage.pod(Enforcing::Strict)?;
    pod.add(&mut wirer)?;
    let mtu = || Ok::<_, Failed>(json("link show dev vlan.eth.7")?[0]["mtu"].as_u64());
    assert_eq!((mtu()?, wirer.check(&pod.spec, pod.socket()?)?), (Some(9001), Vec::new()));

    // Below that of IPv6 its settings go too.
    for lowered in [1400, 1200] {
        ip(&format!("link set trunk0 mtu {lowered}"))?;
        assert_eq!(mtu()?, Some(lowered));
        converge(&stage.spec)?;
        assert_eq!(mtu()?, Some(lowered), "the kernel does it by itself");

        let [mended] = &wirer.mend(std::slice::from_ref(&pod.spec))?.mended[..] else {
            return Err(format!("{lowered}: not found").into());
        };

        let wrong = format!("the MTU of vlan.eth.7 was {lowered}, not 9001");
        assert!(mended.what.contains(&wrong), "{:?}", mended.what);
        assert_eq!((mtu()?, wirer.check(&pod.spec, pod.socket()?)?), (Some(9001), Vec::new()));
    }
    Ok(())
}

/// Without the trunk's link the pod is not wired, and nothing stays.
pub(crate) fn no_trunk() -> Outcome {
    let stage = Stage::begin(false)?;
    ip("link del vlan.eth.7")?;
    ip("link del trunk0")?;
    let mut wirer = Wirer::open()?;
    let pod = stage.pod(Enforcing::Strict)?;

    let Err(refused) = wirer.add(&pod.spec, pod.netns.as_fd(), pod.socket()?) else {
        return Err("it was wired".into());
    };

    assert!(refused.to_string().contains(&TRUNK.to_string()), "{refused}");
    assert!(!ip("link")?.contains(&pod.name()));
    assert_eq!(stage.rules()?, [rule(20, "all local")]);
    Ok(())
}
