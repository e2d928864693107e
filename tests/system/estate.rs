//! What is the node's in EC2: subnets, security groups, an operator's hold, life without EC2.

use std::process::Command;

use lab::LabError;
use lab::ec2::{Action, AddressWish, Ec2, Fault, Tracking};
use lab::fabric::Fabric;
use lab::netns::Netns;
use lab::node::{Node, binary};
use lab::runtime::Pod;
use types::{SecurityGroupId, SubnetId};
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure, reach};

pub(crate) const TESTS: &[Test] = &[
    ("new_enis_go_into_the_tagged_subnet_with_most_room", discovery),
    ("an_excluded_subnet_gets_no_more_pods", exclusion),
    ("without_permission_for_subnets_the_primary_one_does", no_permission),
    ("security_groups_follow_those_of_the_primary_eni", security_groups),
    ("connection_timeouts_are_those_of_the_primary_eni", tracking),
    ("an_operator_holds_back_changes_and_lets_go", hold),
    ("in_imds_only_mode_ec2_is_never_asked", imds_only),
    ("what_others_take_from_the_host_comes_back", repair),
    ("what_others_take_from_an_eni_comes_back", repair_of_eni),
    ("what_networkd_and_udev_do_to_every_pod_at_once_comes_back", networkd),
    ("a_pod_comes_again_under_the_name_of_one_that_was_never_deleted", never_deleted),
    ("a_pod_whose_route_was_taken_keeps_its_address_over_a_restart", route_taken),
];

const ROLE: &str = "kubernetes.io/role/cni";

fn otherwise(error: impl std::fmt::Display) -> LabError {
    LabError::Otherwise(error.to_string())
}

/// Another subnet for nodes, tagged.
fn tagged_subnet(fabric: &Fabric, cidr: &str, tag: &str) -> Result<SubnetId, LabError> {
    let subnet = fabric.add_subnet(cidr.parse().map_err(otherwise)?)?;
    fabric.ec2().tag(subnet.as_str(), ROLE, tag).map_err(otherwise)?;
    Ok(subnet)
}

/// Ends the daemon and starts it again, with which it looks at EC2 anew.
fn restart(node: &Node, settings: &[(&str, &str)]) -> Outcome {
    node.stop_daemon()?;
    node.start_daemon(settings)?;
    node.wait_ready()
}

fn discovery() -> Outcome {
    let targets = [("WARM_IP_TARGET", "1")];
    let setting = Setting::start(&targets)?;
    let roomy = tagged_subnet(&setting.fabric, "10.0.64.0/19", "1")?;
    tagged_subnet(&setting.fabric, "10.0.32.0/28", "1")?;
    tagged_subnet(&setting.fabric, "10.0.128.0/17", "0")?;
    restart(&setting.node, &targets)?;

    let pods = setting.pods(0..12)?;

    let report = setting.accounts_for(&pods)?;
    let subnets: Vec<&SubnetId> = report.enis.iter().map(|eni| &eni.subnet).collect();
    ensure!(subnets == [setting.fabric.subnet(), &roomy], "ENIs are in {subnets:?}");
    reach(&setting, &pods[8..])
}

fn exclusion() -> Outcome {
    let targets = [("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "1")];
    let setting = Setting::start(&targets)?;
    let mut pods = setting.pods(0..2)?;
    let other = tagged_subnet(&setting.fabric, "10.0.64.0/19", "1")?;
    setting.fabric.ec2().tag(setting.fabric.subnet().as_str(), ROLE, "0").map_err(otherwise)?;
    restart(&setting.node, &targets)?;

    pods.extend(setting.pods(2..5)?);

    let report = setting.accounts_for(&pods)?;
    let primary = &report.enis[0];
    ensure!(primary.excluded.is_some(), "the primary ENI is not told to be excluded");
    let there: Vec<_> = report.pods.iter().filter(|pod| pod.eni.as_ref() == Some(&primary.id)).collect();
    ensure!(there.len() == 2, "{} pods are on the excluded ENI", there.len());
    ensure!(report.enis[1].subnet == other, "the second ENI is in {}", report.enis[1].subnet);
    let idle = |report: &Report| report.enis[0].addresses.free == 0;
    setting.node.wait_for("what is idle there to go back", idle)?;
    reach(&setting, &pods)
}

fn no_permission() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let denied = Fault::error("UnauthorizedOperation", 403);
    setting.fabric.ec2().fault_next(Action::DescribeSubnets, 100, denied);
    restart(&setting.node, &[("WARM_IP_TARGET", "1")])?;

    let pods = setting.pods(0..11)?;

    let report = setting.accounts_for(&pods)?;
    ensure!(
        report.enis[1].subnet == *setting.fabric.subnet(),
        "the second ENI is in {}",
        report.enis[1].subnet
    );
    Ok(())
}

/// How often an attribute of an ENI was changed.
fn modified(ec2: &Ec2) -> usize {
    ec2.calls().iter().filter(|call| call.action == "ModifyNetworkInterfaceAttribute").count()
}

fn groups_of(ec2: &Ec2, report: &Report, eni: usize) -> Vec<SecurityGroupId> {
    ec2.eni(&report.enis[eni].id).map(|eni| eni.groups).unwrap_or_default()
}

fn security_groups() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let mut pods = setting.pods(0..10)?;
    let ec2 = setting.fabric.ec2();
    let report = setting.accounts_for(&pods)?;
    ensure!(report.enis.len() == 2, "{} ENIs", report.enis.len());
    let new: Vec<SecurityGroupId> =
        ["sg-0aa", "sg-0bb"].iter().map(|id| id.parse().map_err(otherwise)).collect::<Result<_, _>>()?;
    ec2.set_groups(&report.enis[0].id, new.clone()).map_err(otherwise)?;

    setting.node.wait_for("the groups on the second ENI", |report| groups_of(ec2, report, 1) == new)?;

    let before = modified(ec2);
    pods.extend(setting.pods(10..20)?);
    let report = setting.accounts_for(&pods)?;
    ensure!(groups_of(ec2, &report, 2) == new, "a new ENI has {:?}", groups_of(ec2, &report, 2));
    let after = modified(ec2);
    // The new ENI was tied to the instance; what is right was not written again.
    ensure!(after == before + 1, "{} attributes were changed", after - before);
    Ok(())
}

/// An ENI made before EC2 was looked at is made up for; one made after has them from the start.
fn tracking() -> Outcome {
    let targets = [("WARM_IP_TARGET", "1")];
    let setting = Setting::start(&targets)?;
    let ec2 = setting.fabric.ec2();
    let mut pods = setting.pods(0..10)?;
    let report = setting.accounts_for(&pods)?;
    let hour = Tracking { tcp_established: Some(3600), ..Tracking::default() };
    ec2.set_tracking(&report.enis[0].id, hour).map_err(otherwise)?;
    let of = |report: &Report, eni: usize| ec2.eni(&report.enis[eni].id).map(|eni| eni.tracking);
    ensure!(of(&report, 1) == Some(Tracking::default()), "the second ENI has {:?}", of(&report, 1));

    let before = modified(ec2);
    restart(&setting.node, &targets)?;
    setting.node.wait_for("the timeouts on the second ENI", |report| of(report, 1) == Some(hour))?;

    pods.extend(setting.pods(10..20)?);
    let report = setting.accounts_for(&pods)?;
    ensure!(of(&report, 2) == Some(hour), "the third ENI has {:?}", of(&report, 2));
    // Once to make up for it; the new ENI was only tied to the instance.
    let after = modified(ec2);
    ensure!(after == before + 2, "{} attributes were changed", after - before);
    Ok(())
}

fn hold_back(node: &Node, what: &str) -> Outcome {
    let mut command = Command::new(binary("IPAMD_BIN", "ipamd")?);
    command.args(["hold", what, "--run-dir"]).arg(node.run_dir());
    let output = command.output().map_err(LabError::doing("run ipamd hold"))?;
    ensure!(output.status.success(), "ipamd hold: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn hold() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "3")])?;
    let (node, ec2) = (&setting.node, setting.fabric.ec2());
    node.wait_for("a free address", |report| report.addresses.free == 1)?;
    hold_back(node, "changes")?;
    let told = |report: &Report| report.cloud.iter().any(|line| line.starts_with("on-hold"));
    node.wait_for("the hold in the status", told)?;
    ec2.clear_calls();

    let mut pods = setting.pods(0..1)?;
    let mut pod = Pod::create("held", "held")?;
    let answer = pod.call(node, "ADD")?;
    ensure!(!answer.success && answer.stdout["code"] == 11, "ADD while held: {}", answer.stdout);
    ensure!(answer.stdout.to_string().contains("on-hold"), "no cause in {}", answer.stdout);
    ensure!(ec2.calls().is_empty(), "{} calls while held", ec2.calls().len());

    hold_back(node, "nothing")?;
    node.wait_for("a free address", |report| report.addresses.free == 1)?;
    pod.add(node)?;
    pods.push(pod);
    setting.accounts_for(&pods)?;
    Ok(())
}

fn imds_only() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let (node, ec2) = (&setting.node, setting.fabric.ec2());
    let report = node.wait_for("a free address", |report| report.addresses.free == 1)?;
    node.stop_daemon()?;
    // Somebody else provides.
    ec2.assign(&report.enis[0].id, &AddressWish { count: 3, ..AddressWish::default() }).map_err(otherwise)?;
    ec2.clear_calls();

    node.start_daemon(&[("ENABLE_IMDS_ONLY_MODE", "true"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    node.wait_ready()?;
    let mut pods = setting.pods(0..4)?;
    let mut one_more = Pod::create("more", "more")?;
    ensure!(one_more.add(node).is_err(), "a fifth pod has an address");
    setting.accounts_for(&pods)?;
    reach(&setting, &pods)?;
    for pod in &mut pods {
        pod.del(node)?;
    }

    ensure!(ec2.calls().is_empty(), "EC2 was asked {} times", ec2.calls().len());
    Ok(())
}

/// Somebody flushes rules, nftables and routes, takes a link down and gives links another MTU or MAC address, under running pods.
fn repair() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let pods = setting.pods(0..11)?;
    reach(&setting, &pods[8..])?;
    grown(&setting)?;
    let netns = setting.node.netns();
    let state = || host_state(netns);
    let before = state()?;
    let link = netns.read("ip route show table 51200")?;
    let link = link.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap_or_default();

    for damage in [
        "rule del pref 1536\nrule del pref 1024\n",
        "route flush table 51200\n",
        &format!("link set {link} down\n"),
        &format!("link set {link} address 02:00:00:00:00:77\n"),
        &format!("link set {link} mtu 1400\nlink set ens6 mtu 1400\n"),
    ] {
        netns.ip(damage)?;
        setting.node.wait_for_soon(damage, |_| state().is_ok_and(|now| now == before))?;
    }
    netns.nft("flush ruleset")?;
    setting.node.wait_for_soon("nftables", |_| state().is_ok_and(|now| now == before))?;
    let metrics = setting.node.metrics()?;
    for what in ["host", "pod"] {
        let counted = format!("ipamd_repairs_total{{what=\"{what}\"}} ");
        ensure!(metrics.contains(&counted), "no {counted} in {metrics}");
    }
    let log = setting.node.told()?;
    for told in
        ["its MAC address was 02:00:00:00:00:77, not", "its MTU was 1400", "ip link set ens6 mtu 9001"]
    {
        let times = log.lines().filter(|line| line.contains(told) && line.contains("put back")).count();
        ensure!(times == 1, "{told} is told {times} times in\n{log}");
    }
    reach(&setting, &pods)
}

/// Somebody takes from a secondary ENI what is ours: its routes, its address, its state. A test of its own, as what is taken again and
/// again is put back ever later.
fn repair_of_eni() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let pods = setting.pods(0..11)?;
    grown(&setting)?;
    let netns = setting.node.netns();
    let state = || host_state(netns);
    let before = state()?;
    let default = netns.read("ip route show default table 2")?;
    let default = default.split(" proto").next().unwrap_or_default().trim();
    let address = netns.read("ip -4 -o addr show dev ens6")?;
    let address = address.split_whitespace().nth(3).unwrap_or_default();

    for damage in [
        "route flush table 2\n",
        &format!("route replace {default} table 2\n"),
        &format!("addr del {address} dev ens6\n"),
        "addr add 10.9.9.9/24 dev ens6\n",
        "link set ens6 down\n",
    ] {
        netns.ip(damage)?;
        setting.node.wait_for_soon(damage, |_| state().is_ok_and(|now| now == before))?;
    }
    reach(&setting, &pods)
}

/// Waits for the warm address of the last pod: until it has come, the daemon itself changes the host.
pub(crate) fn grown(setting: &Setting) -> Outcome {
    setting.node.wait_for("the warm address", |report| report.addresses.free == 1).map(drop)
}

/// What the daemon keeps on a host, line by line.
pub(crate) fn host_state(netns: &Netns) -> Result<Vec<String>, LabError> {
    // Chains are listed in the order in which they were made.
    let asked = [
        "ip rule show",
        "ip route show table all proto 0x56",
        "ip -4 -o addr show",
        "nft list table ip aws-vpc-cni",
        "ip -o link",
    ];
    let told: String = asked.map(|line| netns.read(line)).into_iter().collect::<Result<_, _>>()?;
    let mut lines: Vec<String> = told.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// What systemd-networkd does where it is told to manage rules and routes of others, what `ip rule flush` does, which takes the
/// kernel's own rule for the main table along, and what udev does to MAC addresses: all at once, to every pod, with the daemon
/// there and while it is away.
fn networkd() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let pods = setting.pods(0..11)?;
    let netns = setting.node.netns();
    reach(&setting, &pods)?;
    let names = pods.iter().filter_map(Pod::host_if);
    let macs: String = names.map(|name| format!("link set {name} address 02:00:00:00:00:77\n")).collect();
    let damage = format!("rule flush\nroute flush table 51200\nroute flush table 2\n{macs}");

    netns.ip(&damage)?;
    setting.node.wait_for_soon("connections after the damage", |_| reach(&setting, &pods).is_ok())?;

    setting.node.kill_daemon();
    netns.ip(&damage)?;
    restart(&setting.node, &[("WARM_IP_TARGET", "1")])?;
    setting.node.wait_for_soon("connections after a restart", |_| reach(&setting, &pods).is_ok())?;
    setting.accounts_for(&pods)?;
    Ok(())
}

fn route_taken() -> Outcome {
    let setting = Setting::start(&[("IP_COOLDOWN_PERIOD", "1")])?;
    let pods = setting.pods(0..3)?;
    setting.node.netns().ip("route flush table 51200\n")?;

    restart(&setting.node, &[("IP_COOLDOWN_PERIOD", "1")])?;

    setting.accounts_for(&pods)?;
    reach(&setting, &pods)
}

/// A sandbox is removed by force, and nobody says so.
fn never_deleted() -> Outcome {
    let setting = Setting::start(&[("IP_COOLDOWN_PERIOD", "1")])?;
    let mut first = Pod::create("web-0", "first")?;
    first.add(&setting.node)?;
    first.netns.ip("link del eth0\n")?;

    let mut again = Pod::create("web-0", "again")?;
    again.add(&setting.node)?;

    let pods = [again];
    setting.accounts_for(&pods)?;
    reach(&setting, &pods)
}
