//! Pods with IPv6 addresses: beside IPv4 ones, or alone.

use std::net::{IpAddr, Ipv6Addr};

use ipamd::families::ipv6_among;
use lab::LabError;
use lab::fabric::{Drops, INTERNET_HOST, INTERNET_HOST6, SECOND_CIDR_HOST, SECOND_CIDR_HOST6};
use lab::node::Node;
use lab::probe::{Echo, ask, ask_at};
use lab::runtime::Pod;
use types::Reason;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_has_an_address_of_both_families_and_no_translation_of_ipv6", dual_stack),
    ("pods_of_two_nodes_reach_each_other_by_both_families", two_nodes),
    ("a_pod_of_an_ipv6_node_reaches_ipv4_by_the_nodes_address", ipv6_only),
    ("ipv6_addresses_survive_a_restart_and_come_back_when_others_take_their_routes", kept),
    ("without_ipv6_in_the_subnet_a_dual_stack_pod_is_told_so", no_ipv6),
];

const DUAL: &[(&str, &str)] = &[("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "true")];
const ONLY: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

/// Adds a pod; its IPv6 address.
fn add(node: &Node, pod: &mut Pod) -> Result<Ipv6Addr, LabError> {
    let told = pod.add_any(node)?;
    ipv6_among(&told).ok_or_else(|| LabError::Otherwise(format!("no IPv6 address among {told:?}")))
}

fn seen(pod: &Pod, by: Ipv6Addr) -> Result<Option<IpAddr>, LabError> {
    ask_at(&pod.netns, IpAddr::V6(by))
}

/// Enough pods that some are on a secondary ENI.
fn dual_stack() -> Outcome {
    let setting = Setting::start(DUAL)?;
    let node = &setting.node;
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    let mut pods = Vec::new();
    for number in 0..12 {
        let mut pod = Pod::create(&format!("pod-{number}"), &format!("sandbox{number}"))?;
        let ipv6 = add(node, &mut pod)?;
        pods.push((pod, ipv6));
    }

    for (pod, ipv6) in [&pods[0], &pods[11]] {
        for far in [INTERNET_HOST6, SECOND_CIDR_HOST6] {
            let seen = seen(pod, far)?;
            ensure!(seen == Some(IpAddr::V6(*ipv6)), "{} is seen as {seen:?} by {far}", pod.name);
        }
        let inside = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(inside == pod.address, "{} is seen as {inside:?}", pod.name);
        let outside = ask(&pod.netns, INTERNET_HOST)?;
        ensure!(outside == Some(node.instance().address), "{} is seen as {outside:?}", pod.name);
        let answer = pod.call(node, "CHECK")?;
        ensure!(answer.success, "CHECK says {}", answer.stdout);
    }
    // From the outside in, and from pod to pod.
    let (first, last) = (&pods[0], &pods[11]);
    let _echo = Echo::start(&first.0.netns)?;
    let from_last = seen(&last.0, first.1)?;
    ensure!(from_last == Some(IpAddr::V6(last.1)), "a neighbour is seen as {from_last:?}");
    let from_far = ask_at(setting.fabric.second(), IpAddr::V6(first.1))?;
    ensure!(from_far == Some(IpAddr::V6(SECOND_CIDR_HOST6)), "a far host is seen as {from_far:?}");
    let drops = setting.fabric.drops()?;
    ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
    let rules = node.netns().read("ip -6 rule show")?;
    ensure!(rules.lines().count() == 3, "{rules}");
    let report = node.report()?;
    ensure!(report.pods.iter().all(|pod| pod.other.is_some()), "{report:?}");

    for (pod, _) in &mut pods {
        pod.del(node)?;
    }
    setting.accounts_for(&[])?;
    let routes = node.netns().read("ip -6 route show table 51200")?;
    ensure!(routes.trim().is_empty(), "routes are left: {routes}");
    Ok(())
}

fn two_nodes() -> Outcome {
    let setting = Setting::start(DUAL)?;
    let _gone = std::fs::remove_dir_all("/run/lab/node2");
    let other = Node::launch(&setting.fabric, "node2", "m5.large")?;
    other.start_daemon(DUAL)?;
    other.wait_ready()?;
    let (mut here, mut there) = (Pod::create("here", "here")?, Pod::create("there", "there")?);
    let (from, to) = (add(&setting.node, &mut here)?, add(&other, &mut there)?);
    let _echo = Echo::start(&there.netns)?;

    let by_ipv6 = seen(&here, to)?;
    ensure!(by_ipv6 == Some(IpAddr::V6(from)), "it is seen as {by_ipv6:?}");
    let address = there.address.ok_or_else(|| LabError::Otherwise("no IPv4 address".to_owned()))?;
    let by_ipv4 = ask(&here.netns, address)?;
    ensure!(by_ipv4 == here.address, "it is seen as {by_ipv4:?}");
    Ok(())
}

fn ipv6_only() -> Outcome {
    let setting = Setting::start(ONLY)?;
    let node = &setting.node;
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    let mut pods = Vec::new();
    for number in 0..12 {
        let mut pod = Pod::create(&format!("pod-{number}"), &format!("sandbox{number}"))?;
        let told = pod.add_any(node)?;
        ensure!(told.len() == 1 && pod.address.is_none(), "{} is told {told:?}", pod.name);
        pods.push((pod, told[0]));
    }

    for (pod, own) in [&pods[0], &pods[11]] {
        let seen = seen(pod, INTERNET_HOST6)?;
        ensure!(seen == Some(*own), "{} is seen as {seen:?}", pod.name);
        // IPv4 leaves by the node's address, within the VPC too.
        for far in [INTERNET_HOST, SECOND_CIDR_HOST] {
            let seen = ask(&pod.netns, far)?;
            ensure!(seen == Some(node.instance().address), "{} is seen as {seen:?} by {far}", pod.name);
        }
        let answer = pod.call(node, "CHECK")?;
        ensure!(answer.success, "CHECK says {}", answer.stdout);
    }
    // Nobody but the pod itself uses its IPv4 address.
    let _echo = Echo::start(&pods[0].0.netns)?;
    let local = pods[0].0.netns.read("ip -4 -o addr show dev eth0")?;
    let local = local.split_whitespace().nth(3).and_then(|text| text.trim_end_matches("/32").parse().ok());
    let local = local.ok_or_else(|| LabError::Otherwise("no IPv4 address inside".to_owned()))?;
    let reached = ask(&pods[11].0.netns, local)?;
    ensure!(reached.is_none(), "another pod reaches {local}");
    let reached = ask_at(&pods[11].0.netns, pods[0].1)?;
    ensure!(reached == Some(pods[11].1), "by IPv6 it is seen as {reached:?}");

    let calls = setting.fabric.ec2().calls();
    let changes: Vec<&str> =
        calls.iter().map(|call| call.action.as_str()).filter(|a| !a.starts_with("Describe")).collect();
    ensure!(changes == ["AssignIpv6Addresses"], "EC2 was asked for {changes:?}");
    Ok(())
}

fn kept() -> Outcome {
    let setting = Setting::start(DUAL)?;
    let node = &setting.node;
    let _echo = Echo::start(setting.fabric.second())?;
    let mut pod = Pod::create("pod", "sandbox")?;
    let ipv6 = add(node, &mut pod)?;

    node.stop_daemon()?;
    node.start_daemon(DUAL)?;
    node.wait_ready()?;
    let report = node.report()?;
    ensure!(report.pods[0].other == Some(IpAddr::V6(ipv6)), "after a restart: {:?}", report.pods);

    let routed = || {
        node.netns().read("ip -6 route show table 51200").is_ok_and(|text| text.contains(&ipv6.to_string()))
    };
    for damage in ["ip -6 route flush table 51200", "ip -6 rule del pref 512"] {
        node.netns().read(damage)?;
        let rule = || node.netns().read("ip -6 rule show").is_ok_and(|text| text.contains("512:"));
        node.wait_for_soon(damage, |_| routed() && rule())?;
    }
    let seen = seen(&pod, SECOND_CIDR_HOST6)?;
    ensure!(seen == Some(IpAddr::V6(ipv6)), "it is seen as {seen:?}");

    // Without its books the daemon learns both addresses from the kernel.
    node.stop_daemon()?;
    let lost = std::fs::remove_file(node.run_dir().join("state"));
    lost.map_err(LabError::doing("lose the state"))?;
    node.start_daemon(DUAL)?;
    node.wait_ready()?;
    let report = node.report()?;
    ensure!(report.pods.len() == 1 && report.pods[0].other == Some(IpAddr::V6(ipv6)), "{:?}", report.pods);
    pod.del(node)?;
    node.wait_for_soon("the pod is gone", |report| report.pods.is_empty() && !routed())?;
    Ok(())
}

fn no_ipv6() -> Outcome {
    let setting = Setting::start(&[])?;
    let (node, ec2) = (&setting.node, setting.fabric.ec2());
    let without = ec2.set_ipv6(setting.fabric.subnet(), None);
    without.map_err(|error| LabError::Otherwise(error.to_string()))?;
    node.stop_daemon()?;
    node.start_daemon(&[DUAL, &[("IPAMD_ADD_TIMEOUT_SECONDS", "2")]].concat())?;
    node.wait_listening()?;
    let refused = Pod::create("pod", "sandbox")?;

    let answer = refused.call(node, "ADD")?;

    let text = answer.stdout.to_string();
    ensure!(!answer.success && answer.stdout["code"] == 11, "it got {text}");
    ensure!(
        text.contains(Reason::NoIpv6.word()) && text.contains("no IPv6 CIDR block"),
        "no cause in {text}"
    );
    let range =
        "2600:1f13:0:1::/64".parse().map_err(|error| LabError::Otherwise(format!("a range: {error}")))?;
    let with = ec2.set_ipv6(setting.fabric.subnet(), Some(range));
    with.map_err(|error| LabError::Otherwise(error.to_string()))?;
    node.wait_ready()?;
    let mut served = Pod::create("pod", "sandbox-2")?;
    add(node, &mut served)?;
    Ok(())
}
