//! Pods with IPv6 addresses: beside IPv4 ones, or alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use lab::LabError;
use lab::ec2::Config;
use lab::fabric::{Drops, Fabric, INTERNET_HOST, INTERNET_HOST6, SECOND_CIDR_HOST, SECOND_CIDR_HOST6};
use lab::node::Node;
use lab::probe::{Echo, ask, ask_at};
use lab::runtime::Pod;
use node::families::ipv6_among;
use serde_json::Value;
use types::Reason;

use crate::doctor::{doctor, findings, mend};
use crate::support::{Outcome, Setting, Test, ensure, neighbour};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_has_an_address_of_both_families_and_no_translation_of_ipv6", dual_stack),
    ("pods_of_two_nodes_reach_each_other_by_both_families", two_nodes),
    ("a_pod_of_an_ipv6_node_reaches_ipv4_by_the_nodes_address", ipv6_only),
    ("ipv6_addresses_survive_a_restart_and_come_back_when_others_take_their_routes", kept),
    ("a_pod_of_an_ipv4_node_reaches_ipv6_by_the_nodes_address_and_is_reached_by_nobody", egress),
    ("a_node_without_ipv6_says_that_its_pods_do_not_reach_it", no_egress),
    ("ipv6_is_switched_on_in_a_pod_where_a_runtime_has_switched_it_off", switched_off),
    ("the_prefix_goes_back_when_the_mode_is_off_and_the_last_pod_is_gone", prefix_goes_back),
    ("a_prefix_that_somebody_else_has_asked_for_stays", prefix_of_others),
    ("without_ipv6_in_the_subnet_a_dual_stack_pod_is_told_so", no_ipv6),
    ("doctor_finds_nothing_on_nodes_with_ipv6_that_are_well", well),
    ("doctor_names_what_of_ipv6_is_broken_and_its_commands_mend_it", broken),
];

const DUAL: &[(&str, &str)] = &[("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "true")];
const ONLY: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

const EGRESS: &[(&str, &str)] = &[("ENABLE_V6_EGRESS", "true")];
/// The nftables table that translates IPv6.
const TABLE6: &str = "nft list table ip6 aws-vpc-cni";

/// Adds a pod; its IPv6 address.
fn add(node: &Node, pod: &mut Pod) -> Result<Ipv6Addr, LabError> {
    let told = pod.add_any(node)?;
    ipv6_among(&told).ok_or_else(|| LabError::Otherwise(format!("no IPv6 address among {told:?}")))
}

fn seen(pod: &Pod, by: Ipv6Addr) -> Result<Option<IpAddr>, LabError> {
    ask_at(&pod.netns, IpAddr::V6(by))
}

fn well() -> Outcome {
    for (settings, enis) in [(DUAL, 2), (ONLY, 1)] {
        let setting = Setting::start(settings)?;
        let node = &setting.node;
        let mut pod = Pod::create("web", "sandbox")?;
        let ipv6 = add(node, &mut pod)?;
        node.wait_for("the ENIs of one pod", |report| report.enis.len() == enis)?;

        let output = node.tool(&["doctor", "--cloud"], &[])?;

        ensure!(output.status.success(), "{settings:?}: {}", String::from_utf8_lossy(&output.stdout));
        let output = node.tool(&["explain", "pod", "web"], &[])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains(&ipv6.to_string()) && !said.contains("MISSING"), "{settings:?}: {said}");
    }
    Ok(())
}

/// The codes of what is found.
fn codes(node: &Node, words: &[&str]) -> Result<(BTreeSet<String>, Value), LabError> {
    let (_, verdict) = doctor(node, words)?;
    let codes = findings(&verdict).filter_map(|finding| finding["code"].as_str()).map(str::to_owned);
    Ok((codes.collect(), verdict))
}

fn broken() -> Outcome {
    for (settings, enis, wrong) in [
        (DUAL, 2, vec!["address-not-in-ec2", "daemon-down", "pod-link-off", "pod-route-missing"]),
        (ONLY, 1, vec!["address-not-in-ec2", "daemon-down", "pod-link-off", "pod-route-missing"]),
        (EGRESS, 2, vec!["daemon-down", "nftables-missing", "pod-link-off", "pod-route-missing"]),
    ] {
        let setting = Setting::start(settings)?;
        let node = &setting.node;
        let mut pod = Pod::create("web", "sandbox")?;
        let _told = pod.add_any(node)?;
        let report = node.wait_for("the ENIs of one pod", |report| report.enis.len() == enis)?;
        let primary = report.enis.iter().find(|eni| eni.device.0 == 0);
        let (primary, link) = (primary.map(|eni| eni.id.clone()), report.pods[0].host_if.clone());
        // It would put things back within a second.
        node.kill_daemon();
        node.shell(&format!(
            "ip -6 route flush table 51200; ip link set {link} mtu 1400; ip link set {link} address 02:00:00:00:00:99"
        ))?;
        let refused = |error| LabError::Otherwise(format!("EC2 refuses: {error:?}"));
        match (report.ipv6_prefix, primary) {
            (Some(prefix), Some(primary)) => {
                let range = prefix.to_string().parse();
                let range = range.map_err(|error| LabError::Otherwise(format!("{prefix}: {error}")))?;
                setting.fabric.ec2().unassign_ipv6(&primary, &[range]).map_err(refused)?;
            }
            (_, _) => node.netns().nft("delete table ip6 aws-vpc-cni\n")?,
        }

        let (found, verdict) = codes(node, &["--cloud"])?;

        let want: BTreeSet<String> = wrong.into_iter().map(str::to_owned).collect();
        ensure!(found == want, "{settings:?}: {verdict:#}");
        mend(node, &verdict)?;
        let (left, verdict) = codes(node, &[])?;
        ensure!(left == BTreeSet::from(["daemon-down".to_owned()]), "{settings:?}, not mended: {verdict:#}");
    }
    Ok(())
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

    let changes = setting.changes();
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
    let host_if = pod.host_if().unwrap_or_default().to_owned();
    let flush = format!("ip -6 addr flush dev {host_if}");
    for damage in ["ip -6 route flush table 51200", "ip -6 rule del pref 512", &flush] {
        node.netns().read(damage)?;
        let has = |asked: &str, what| node.netns().read(asked).is_ok_and(|text| text.contains(what));
        let whole =
            || has("ip -6 rule show", "512:") && has(&format!("ip -6 addr show dev {host_if}"), "fe80::1/");
        node.wait_for_soon(damage, |_| routed() && whole())?;
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

fn switched_off() -> Outcome {
    let setting = Setting::start(DUAL)?;
    let node = &setting.node;
    let _echo = Echo::start(setting.fabric.second())?;
    let mut pod = Pod::create("pod", "sandbox")?;
    let off = |of: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1");
    let switched = pod.netns.run(|| ["all", "default", "lo"].into_iter().try_for_each(off))?;
    switched.map_err(LabError::doing("switch IPv6 off"))?;

    let ipv6 = add(node, &mut pod)?;

    let seen = seen(&pod, SECOND_CIDR_HOST6)?;
    ensure!(seen == Some(IpAddr::V6(ipv6)), "it is seen as {seen:?}");
    let loopback = pod.netns.read("ip -6 -o addr show dev lo")?;
    ensure!(loopback.contains("::1/128"), "the loopback has no IPv6: {loopback}");
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

/// The prefixes of the node's ENIs, and how often one was given back.
fn prefixes(setting: &Setting) -> (usize, usize) {
    let ec2 = setting.fabric.ec2();
    let held = ec2.enis_of(&setting.node.instance().id).iter().map(|eni| eni.ipv6_prefixes.len()).sum();
    let calls = ec2.calls();
    (held, calls.iter().filter(|call| call.action.as_str() == "UnassignIpv6Addresses").count())
}

fn restart(node: &Node, settings: &[(&str, &str)]) -> Outcome {
    node.stop_daemon()?;
    node.start_daemon(settings)?;
    node.wait_ready()
}

fn prefix_goes_back() -> Outcome {
    let setting = Setting::start(DUAL)?;
    let node = &setting.node;
    let mut pod = Pod::create("pod", "sandbox")?;
    let ipv6 = add(node, &mut pod)?;
    let report = node.report()?;
    let of_enis: Vec<(bool, u32)> =
        report.enis.iter().map(|eni| (eni.ipv6_prefix.is_some(), eni.ipv6_assigned)).collect();
    ensure!(of_enis.first() == Some(&(true, 1)), "the status says {of_enis:?}");
    let metrics = node.metrics()?;
    ensure!(metrics.contains("ipamd_ipv6_addresses{eni=\"eni-"), "no IPv6 in {metrics}");

    restart(node, &[])?;
    let _echo = Echo::start(setting.fabric.second())?;
    let by_ipv6 = seen(&pod, SECOND_CIDR_HOST6)?;
    ensure!(by_ipv6 == Some(IpAddr::V6(ipv6)), "without the mode it is seen as {by_ipv6:?}");
    ensure!(prefixes(&setting) == (1, 0), "a pod has an address of it: {:?}", prefixes(&setting));

    pod.del(node)?;
    node.wait_for("the prefix has gone back", |_| prefixes(&setting) == (0, 1))?;
    restart(node, &[])?;
    let report = node.report()?;
    ensure!(report.cloud.is_empty() && prefixes(&setting) == (0, 1), "after it: {:?}", report.cloud);
    restart(node, DUAL)?;
    let mut again = Pod::create("again", "again")?;
    add(node, &mut again).map(drop)
}

fn prefix_of_others() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let enis = setting.fabric.ec2().enis_of(&node.instance().id);
    let primary = enis.iter().find(|eni| eni.ipv6.is_some()).map(|eni| eni.id.clone());
    let primary = primary.ok_or_else(|| LabError::Otherwise("no primary ENI".to_owned()))?;
    let given = setting.fabric.ec2().assign_ipv6(&primary, 1);
    given.map_err(|error| LabError::Otherwise(error.to_string()))?;
    restart(node, DUAL)?;
    let mut pod = Pod::create("pod", "sandbox")?;
    add(node, &mut pod)?;
    pod.del(node)?;

    restart(node, &[])?;

    // What would give it back would do so before it serves the next request.
    let mut next = Pod::create("next", "next")?;
    next.add(node)?;
    ensure!(prefixes(&setting) == (1, 0), "it has gone: {:?}", prefixes(&setting));
    Ok(())
}

/// The IPv6 address that a pod has and nobody is told.
fn inside(pod: &Pod) -> Result<Ipv6Addr, LabError> {
    let text = pod.netns.read("ip -6 -o addr show dev eth0 scope global")?;
    let address = text.split_whitespace().nth(3).and_then(|word| word.strip_suffix("/128")?.parse().ok());
    address.ok_or_else(|| LabError::Otherwise(format!("no IPv6 address inside: {text}")))
}

/// Adds a pod that is told of its IPv4 address alone.
fn add_ipv4(node: &Node, name: &str) -> Result<Pod, LabError> {
    let mut pod = Pod::create(name, name)?;
    let told = pod.add_any(node)?;
    ensure!(told.len() == 1 && pod.address.is_some(), "{name} is told {told:?}");
    Ok(pod)
}

fn egress() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let enis = setting.fabric.ec2().enis_of(&node.instance().id);
    let own = enis.iter().find_map(|eni| eni.ipv6).map(IpAddr::V6);
    ensure!(own.is_some(), "the node has no IPv6 address");
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    let before = add_ipv4(node, "before")?;
    ensure!(node.netns().read(TABLE6).is_err(), "there is a table where the mode is off");

    node.stop_daemon()?;
    node.start_daemon(EGRESS)?;
    node.wait_ready()?;
    let pods: Result<Vec<Pod>, LabError> = (0..12).map(|n| add_ipv4(node, &format!("pod-{n}"))).collect();
    let mut pods = pods?;
    let by_node = |pod: &Pod| -> Outcome {
        for far in [INTERNET_HOST6, SECOND_CIDR_HOST6] {
            let seen = seen(pod, far)?;
            ensure!(seen == own, "{} is seen as {seen:?} by {far}, the node is {own:?}", pod.name);
        }
        Ok(())
    };
    // One on the primary ENI, one on a secondary.
    for pod in [&pods[0], &pods[11]] {
        by_node(pod)?;
        let outside = ask(&pod.netns, INTERNET_HOST)?;
        ensure!(outside == Some(node.instance().address), "{} is seen as {outside:?}", pod.name);
        let inside = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(inside == pod.address, "{} is seen as {inside:?}", pod.name);
    }
    for pod in [&before, &pods[0]] {
        let answer = pod.call(node, "CHECK")?;
        ensure!(answer.success, "CHECK of {} says {}", pod.name, answer.stdout);
    }
    ensure!(inside(&before).is_err(), "a pod of before has got an address");

    // Nobody outside begins a connection, be it a neighbour whom the node forwards for or another pod.
    let _echo = Echo::start(&pods[0].netns)?;
    let (stranger, address) = (neighbour(node, "stranger")?, IpAddr::V6(inside(&pods[0])?));
    for other in [&stranger, &pods[1].netns] {
        let reached = ask_at(other, address)?;
        ensure!(reached.is_none(), "{} reaches {address}", other.name());
    }
    node.netns().read("nft flush chain ip6 aws-vpc-cni to_local")?;
    let rule = || node.netns().read(TABLE6).is_ok_and(|text| text.contains("drop"));
    node.wait_for_soon("the rule is put back", |_| rule())?;
    node.netns().read("nft delete table ip6 aws-vpc-cni")?;
    node.wait_for_soon("the table is put back", |_| rule())?;

    // Without the mode, pods that were wired for it go on; new ones are not.
    node.stop_daemon()?;
    node.start_daemon(&[])?;
    node.wait_ready()?;
    by_node(&pods[11])?;
    let mut after = add_ipv4(node, "after")?;
    ensure!(inside(&after).is_err(), "a pod of after has got an address");
    after.del(node)?;
    for pod in &mut pods {
        pod.del(node)?;
    }
    setting.accounts_for(&[before])?;
    let routes = node.netns().read("ip -6 route show table 51200")?;
    ensure!(routes.trim().is_empty(), "routes are left: {routes}");
    node.stop_daemon()?;
    node.start_daemon(&[])?;
    node.wait_ready()?;
    node.wait_for("the table goes with the last pod", |_| node.netns().read(TABLE6).is_err())?;
    let drops = setting.fabric.drops()?;
    ensure!(drops.wrong_source == 0, "{drops:?}");
    Ok(())
}

fn no_egress() -> Outcome {
    let fabric = Fabric::create(Config::default())?;
    let without = fabric.ec2().set_ipv6(fabric.subnet(), None);
    without.map_err(|error| LabError::Otherwise(error.to_string()))?;
    let _gone = std::fs::remove_dir_all("/run/lab/node1");
    let node = Node::launch(&fabric, "node1", "m5.large")?;
    node.start_daemon(EGRESS)?;
    node.wait_ready()?;

    let pod = add_ipv4(&node, "pod")?;

    ensure!(inside(&pod).is_err(), "it has an IPv6 address that leads nowhere");
    ensure!(node.netns().read(TABLE6).is_err(), "there is a table");
    let report = node.report()?;
    let told = report.cloud.iter().any(|line| line.starts_with(Reason::NoIpv6.word()));
    ensure!(told, "the status does not say so: {:?}", report.cloud);
    Ok(())
}
