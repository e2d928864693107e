//! A node of an IPv6 cluster of the Go version is taken over with its pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use lab::LabError;
use lab::ec2::Config;
use lab::fabric::{Fabric, INTERNET_HOST, INTERNET_HOST6, SECOND_CIDR_HOST6};
use lab::flows::{Flow, Flows, Mirror, PACE};
use lab::go_ipv6::{self, GoIpv6Pod, with_pods};
use lab::node::Node;
use lab::probe::{Echo, ask, ask_at};
use lab::runtime::Pod;
use node::families::ipv6_among;

use crate::support::{Outcome, Test, ensure};
use crate::takeover::never_silent;

pub(crate) const TESTS: &[Test] = &[
    ("pods_of_an_ipv6_node_of_the_go_version_are_taken_over_while_they_talk", while_they_talk),
    ("pods_live_on_when_an_ipv6_node_is_given_back_and_taken_over_again", there_and_back),
    ("without_its_checkpoint_pods_of_an_ipv6_node_keep_their_addresses", without_checkpoint),
];

const ONLY: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

/// What is there of the Go version's that ours does too, line by line.
fn leftovers(node: &Node) -> Result<Vec<String>, LabError> {
    let rules = node.netns().read("ip -6 -d rule")?;
    let rules = rules.lines().filter(|line| line.ends_with("unspec"));
    let routes =
        node.netns().read("ip -6 route show table main")? + &node.netns().read("ip route show table main")?;
    let routes = routes.lines().filter(|line| {
        let to_pod = line.contains("dev eni") || line.contains("dev veth");
        to_pod && !line.contains("fe80::") && !line.contains("ff00::")
    });
    let tables = node.netns().read("iptables-nft-save")?;
    let tables = tables.lines().filter(|line| line.contains("Block Node Local"));
    Ok(rules.chain(routes).chain(tables).map(str::to_owned).collect())
}

fn take_over(node: &Node) -> Outcome {
    node.start_daemon(ONLY)?;
    node.wait_ready()?;
    let gone = || leftovers(node).is_ok_and(|left| left.is_empty());
    node.wait_for("what the Go version left is gone", |_| gone())
        .map(drop)
        .map_err(|error| LabError::Otherwise(format!("{error}; left behind: {:?}", leftovers(node))))
}

/// Checks that the books have exactly what these pods have.
fn holds(node: &Node, go: &[GoIpv6Pod], ours: &[Ipv6Addr]) -> Outcome {
    let of_go = go.iter().flat_map(|pod| [IpAddr::V6(pod.address), IpAddr::V4(pod.egress)]);
    let want: BTreeSet<IpAddr> = of_go.chain(ours.iter().copied().map(IpAddr::V6)).collect();
    let held = || -> Result<BTreeSet<IpAddr>, LabError> {
        Ok(node.report()?.pods.iter().map(|pod| pod.address).collect())
    };
    // An interface of the egress plugin goes with its pod's namespace, and then its address.
    node.wait_for("the books say what pods have", |_| held().is_ok_and(|held| held == want))
        .map(drop)
        .map_err(|error| LabError::Otherwise(format!("{error}: held {:?}, wanted {want:?}", held())))
}

/// Checks that a pod reaches both worlds by both families as whom it should.
fn reaches(node: &Node, pod: &Pod, address: Ipv6Addr) -> Outcome {
    for far in [INTERNET_HOST6, SECOND_CIDR_HOST6] {
        let seen = ask_at(&pod.netns, IpAddr::V6(far))?;
        ensure!(seen == Some(IpAddr::V6(address)), "{} is seen as {seen:?} by {far}", pod.name);
    }
    let seen = ask(&pod.netns, INTERNET_HOST)?;
    ensure!(seen == Some(node.instance().address), "{} is seen as {seen:?} by IPv4", pod.name);
    Ok(())
}

/// Waits until all pods reach the VPC by IPv6: at first the kernel looks for duplicates of its links' addresses, and for neighbours.
fn talks(node: &Node, fabric: &Fabric, go: &[GoIpv6Pod]) -> Outcome {
    let _echo = Echo::start(fabric.second())?;
    for pod in go {
        let mut asked = (0..10).map(|_| ask_at(&pod.pod.netns, IpAddr::V6(SECOND_CIDR_HOST6)));
        let answered = asked.any(|seen| seen.is_ok_and(|seen| seen == Some(IpAddr::V6(pod.address))));
        let routes = node.netns().read("ip -6 neigh")?;
        ensure!(answered, "{} reaches nobody, the neighbours:\n{routes}", pod.address);
    }
    Ok(())
}

/// Pods of both makers.
fn all<'a>(go: &'a [GoIpv6Pod], ours: &'a [(Pod, Ipv6Addr)]) -> Vec<(&'a Pod, Ipv6Addr)> {
    let of_go = go.iter().map(|pod| (&pod.pod, pod.address));
    of_go.chain(ours.iter().map(|(pod, address)| (pod, *address))).collect()
}

/// Flows from all pods by both families, from the VPC to some, and among pods.
fn talk(fabric: &Fabric, pods: &[(&Pod, Ipv6Addr)]) -> Result<(Flows, Vec<Mirror>), LabError> {
    let mut mirrors = vec![Mirror::start(fabric.second())?, Mirror::start(fabric.internet())?];
    let mut flows = Vec::new();
    for (number, (pod, address)) in pods.iter().enumerate() {
        flows.push(Flow::new(&format!("{address} to the VPC"), &pod.netns, SECOND_CIDR_HOST6.into())?);
        flows.push(Flow::new(&format!("{address} by IPv4"), &pod.netns, INTERNET_HOST.into())?);
        if number < 3 {
            mirrors.push(Mirror::start(&pod.netns)?);
            flows.push(Flow::new(&format!("the VPC to {address}"), fabric.second(), (*address).into())?);
            let last = pods.last().map_or(&pod.netns, |(last, _)| &last.netns);
            flows.push(Flow::new(&format!("the last pod to {address}"), last, (*address).into())?);
        }
    }
    Ok((Flows::start(flows), mirrors))
}

fn place() -> Result<(Node, Fabric), LabError> {
    let fabric = Fabric::create(Config::default())?;
    let _gone = std::fs::remove_dir_all("/run/lab/node1");
    Ok((Node::launch(&fabric, "node1", "m5.large")?, fabric))
}

fn add(node: &Node, name: &str) -> Result<(Pod, Ipv6Addr), LabError> {
    let mut pod = Pod::create(name, name)?;
    let told = pod.add_any(node)?;
    let address = ipv6_among(&told).ok_or_else(|| LabError::Otherwise(format!("{name} is told {told:?}")))?;
    Ok((pod, address))
}

fn while_they_talk() -> Outcome {
    let (node, fabric) = place()?;
    let mut go = with_pods(&node, &fabric, 20)?;
    ensure!(leftovers(&node)?.len() > 2 * go.len(), "there is nothing to take over: {:?}", leftovers(&node)?);
    talks(&node, &fabric, &go)?;
    let (flows, mirrors) = talk(&fabric, &all(&go, &[]))?;
    std::thread::sleep(PACE * 20);

    take_over(&node)?;

    std::thread::sleep(PACE * 20);
    never_silent(&flows.stop())?;
    drop(mirrors);
    holds(&node, &go, &[])?;
    let _echoes = [Echo::start(fabric.internet())?, Echo::start(fabric.second())?];
    for pod in [&go[0], &go[19]] {
        reaches(&node, &pod.pod, pod.address)?;
        let answer = pod.pod.call(&node, "CHECK")?;
        ensure!(answer.success, "CHECK of {}: {}", pod.address, answer.stdout);
    }
    let rules = node.netns().read("ip -6 rule")?;
    ensure!(rules.lines().count() == 3, "rules grow with pods:\n{rules}");
    let calls = fabric.ec2().calls();
    ensure!(
        calls.iter().all(|call| call.action.as_str().starts_with("Describe")),
        "EC2 was asked for {calls:?}"
    );

    let mut gone = go.remove(0);
    gone.pod.del(&node)?;
    gone.pod.del(&node)?;
    drop(gone);
    let collected = go.remove(0);
    let kept =
        |pod: &GoIpv6Pod| wire::Kept { container_id: pod.pod.container_id.clone(), if_name: "eth0".into() };
    let valid = go.iter().map(kept).collect();
    let reply = node.ask(wire::Verb::Gc { network_name: "aws-cni".to_owned(), valid })?;
    ensure!(reply == wire::Reply::Collected { released: 1 }, "GC answered {reply:?}");
    drop(collected);
    holds(&node, &go, &[])?;

    let new = (0..3).map(|number| add(&node, &format!("new-{number}"))).collect::<Result<Vec<_>, _>>()?;
    let ours: Vec<Ipv6Addr> = new.iter().map(|(_, address)| *address).collect();
    holds(&node, &go, &ours)?;
    reaches(&node, &new[0].0, ours[0])?;
    let output = node.tool(&["doctor"], &[])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // All of it is in our own books by now, and in a checkpoint of ours.
    node.stop_daemon()?;
    let text = std::fs::read_to_string(node.run_dir().join("ipam.json"));
    let text = text.map_err(LabError::doing("read the checkpoint"))?;
    ensure!(go.iter().all(|pod| text.contains(&format!("\"{}\"", pod.address))), "the checkpoint: {text}");
    node.start_daemon(ONLY)?;
    node.wait_ready()?;
    holds(&node, &go, &ours)?;
    reaches(&node, &go[0].pod, go[0].address)
}

fn without_checkpoint() -> Outcome {
    let (node, fabric) = place()?;
    let mut go = with_pods(&node, &fabric, 4)?;
    let lost = std::fs::remove_file(node.run_dir().join("ipam.json"));
    lost.map_err(LabError::doing("lose the checkpoint"))?;

    take_over(&node)?;

    holds(&node, &go, &[])?;
    let _echoes = [Echo::start(fabric.internet())?, Echo::start(fabric.second())?];
    reaches(&node, &go[1].pod, go[1].address)?;
    let mut gone = go.remove(0);
    gone.pod.del(&node)?;
    drop(gone);
    holds(&node, &go, &[])
}

/// The whole way there and back, nobody is silent for a second.
fn there_and_back() -> Outcome {
    let (node, fabric) = place()?;
    let mut go = with_pods(&node, &fabric, 3)?;
    take_over(&node)?;
    let mut new = (0..3).map(|number| add(&node, &format!("new-{number}"))).collect::<Result<Vec<_>, _>>()?;
    talks(&node, &fabric, &go)?;
    let (flows, mirrors) = talk(&fabric, &all(&go, &new))?;
    std::thread::sleep(PACE * 20);
    node.stop_daemon()?;
    // Nobody is there who could mend anything.
    std::thread::sleep(PACE * 20);

    let known: BTreeSet<Ipv6Addr> = go_ipv6::start(&node)?.into_iter().collect();

    let of_go = go.iter().map(|pod| pod.address);
    let want: BTreeSet<Ipv6Addr> = of_go.chain(new.iter().map(|(_, address)| *address)).collect();
    ensure!(known == want, "it knows {known:?} of {want:?}");
    let all_reach = |go: &[GoIpv6Pod], new: &[(Pod, Ipv6Addr)]| -> Outcome {
        let _echoes = [Echo::start(fabric.internet())?, Echo::start(fabric.second())?];
        go.iter().try_for_each(|pod| reaches(&node, &pod.pod, pod.address))?;
        new.iter().try_for_each(|(pod, address)| reaches(&node, pod, *address))
    };
    all_reach(&go, &new)?;
    never_silent(&flows.stop())?;
    drop(mirrors);
    // It goes on as it does: deletes a pod of ours and one of its own, and adds one.
    let (pod, address) = new.remove(0);
    go_ipv6::del(&node, &pod, address)?;
    drop(pod);
    let gone = go.remove(0);
    go_ipv6::del(&node, &gone.pod, gone.address)?;
    drop(gone);
    let enis = fabric.ec2().enis_of(&node.instance().id);
    let prefix = enis.iter().find_map(|eni| eni.ipv6_prefixes.first().copied());
    let prefix = prefix.ok_or_else(|| LabError::Otherwise("no prefix".to_owned()))?;
    go.push(go_ipv6::add(&node, prefix, 9)?);
    all_reach(&go, &new)?;
    let (flows, mirrors) = talk(&fabric, &all(&go, &new))?;
    std::thread::sleep(PACE * 20);

    take_over(&node)?;

    std::thread::sleep(PACE * 20);
    never_silent(&flows.stop())?;
    drop(mirrors);
    holds(&node, &go, &new.iter().map(|(_, address)| *address).collect::<Vec<_>>())?;
    all_reach(&go, &new)?;
    go[0].pod.del(&node)?;
    new[0].0.del(&node)?;
    go.remove(0);
    new.remove(0);
    holds(&node, &go, &new.iter().map(|(_, address)| *address).collect::<Vec<_>>())
}
