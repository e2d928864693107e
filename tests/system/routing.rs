//! By which link packets of pods leave, where settings say it.

use lab::LabError;
use lab::fabric::{INTERNET_HOST, SECOND_CIDR_HOST};
use lab::probe::{Echo, Talk, ask};

use crate::support::{NEIGHBOUR, Outcome, Setting, Test, ensure, neighbour};

pub(crate) const TESTS: &[Test] = &[
    ("an_external_service_is_reached_as_the_main_table_says_from_every_eni", external_services),
    ("connections_go_on_while_the_ranges_of_the_vpc_change", ranges),
];

/// By the mark of the first secondary ENI.
const STEERED: &str = "mark 0x100";

/// Gateways translate, so that nothing but the rule leads a pod of a secondary ENI to the main table.
fn external_services() -> Outcome {
    let external = ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true");
    let setting = Setting::start(&[external])?;
    let node = &setting.node;
    let service = neighbour(node, "service")?;
    let _echoes = [Echo::start(&service)?, Echo::start(setting.fabric.second())?];
    let pods = setting.pods(0..12)?;
    let (first, last) = (&pods[0], &pods[11]);
    let primary = node.netns().read("ip -o route show default")?;
    let primary =
        primary.split_once(" dev ").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
    let by_primary = || -> Result<bool, LabError> {
        let route = node.netns().read(&format!("ip route get {INTERNET_HOST} {STEERED}"))?;
        Ok(primary.is_some_and(|link| route.contains(&format!(" dev {link} "))))
    };
    ensure!(!by_primary()?, "the test shows nothing: all leave by the primary ENI");
    ensure!(ask(&first.netns, NEIGHBOUR)? == first.address, "the main table does not lead there");
    ensure!(ask(&last.netns, NEIGHBOUR)?.is_none(), "the test shows nothing: it is reached without the rule");

    node.stop_daemon()?;
    node.start_daemon(&[external, ("AWS_EXTERNAL_SERVICE_CIDRS", "203.0.113.0/24, 198.51.100.0/24")])?;
    node.wait_ready()?;

    for pod in [first, last] {
        let seen = ask(&pod.netns, NEIGHBOUR)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    ensure!(by_primary()?, "not by the primary ENI");
    let elsewhere = ask(&last.netns, SECOND_CIDR_HOST)?;
    ensure!(elsewhere == last.address, "by its own ENI it is seen as {elsewhere:?}");
    node.netns().read("ip rule del pref 1535 to 203.0.113.0/24")?;
    node.wait_for_soon("the rule is put back", |_| {
        node.netns().read("ip rule").is_ok_and(|rules| rules.contains("to 203.0.113.0/24"))
    })?;
    node.stop_daemon()?;
    node.start_daemon(&[external])?;
    node.wait_ready()?;
    let rules = node.netns().read("ip rule")?;
    ensure!(!rules.contains("1535:"), "rules are left: {rules}");
    Ok(())
}

/// From either ENI: one connection that is translated, to what becomes a range of the VPC, and one that is not, to what ceases to be one.
fn ranges() -> Outcome {
    let setting = Setting::start(&[])?;
    let (node, fabric) = (&setting.node, &setting.fabric);
    let _echoes = [Echo::start(fabric.internet())?, Echo::start(fabric.second())?];
    let pods = setting.pods(0..12)?;
    let mut talks = Vec::new();
    for pod in [&pods[0], &pods[11]] {
        talks.push(Talk::open(&pod.netns, fabric.internet(), INTERNET_HOST)?);
        talks.push(Talk::open(&pod.netns, fabric.second(), SECOND_CIDR_HOST)?);
    }
    let own = node.instance().address;
    ensure!(ask(&pods[11].netns, SECOND_CIDR_HOST)? == pods[11].address, "the VPC is translated");

    let enis = fabric.ec2().enis_of(&node.instance().id);
    let vpc = enis.first().map(|eni| eni.vpc.clone());
    let vpc = vpc.ok_or_else(|| LabError::Otherwise("the node has no ENI".to_owned()))?;
    let range = |text: &str| text.parse().map_err(|error| LabError::Otherwise(format!("{text}: {error}")));
    let changed = fabric.ec2().set_ranges(&vpc, &[range("10.0.0.0/16")?, range("198.51.100.0/24")?]);
    changed.map_err(|error| LabError::Otherwise(error.to_string()))?;
    node.wait_for("the ranges are followed", |_| {
        let set = node.netns().read("nft list set ip aws-vpc-cni no_snat");
        set.is_ok_and(|text| text.contains("198.51.100.0/24") && !text.contains("100.64.0.0/16"))
    })?;

    for talk in &mut talks {
        talk.goes_on()?;
    }
    // New connections show that the change is in effect.
    let translated = ask(&pods[11].netns, SECOND_CIDR_HOST)?;
    ensure!(translated == Some(own), "what is no range of the VPC any more sees {translated:?}");
    let before = fabric.drops()?;
    ensure!(ask(&pods[11].netns, INTERNET_HOST)?.is_none(), "the internet answers a pod's own address");
    let after = fabric.drops()?;
    ensure!(after.not_public > before.not_public, "what is a range of the VPC now is still translated");
    for talk in &mut talks {
        talk.goes_on()?;
    }
    Ok(())
}
