//! Prefix delegation: /28 blocks in place of single addresses.

use std::net::Ipv4Addr;

use lab::ec2::Action;
use types::Prefix;
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure, eventually, reach};

pub(crate) const TESTS: &[Test] = &[
    ("pods_of_prefixes_on_both_enis_reach_everything_with_the_right_source", packets),
    ("the_first_sixteen_addresses_are_one_call_with_prefixes", budget),
    ("a_fragmented_subnet_gives_single_addresses", fragmented),
    ("a_node_changes_to_prefixes_and_back_under_its_pods", change),
];

const PREFIXES: (&str, &str) = ("ENABLE_PREFIX_DELEGATION", "true");

fn prefixes(report: &Report) -> u32 {
    report.enis.iter().map(|eni| eni.prefixes).sum()
}

/// Three slots an ENI: 48 pods fit on the primary one.
fn packets() -> Outcome {
    let setting = Setting::start_on("t3.small", &[PREFIXES])?;
    let mut pods = setting.pods(0..52)?;
    let report = setting.accounts_for(&pods)?;
    let on_second = report.pods.iter().filter(|pod| pod.eni.as_ref() == Some(&report.enis[1].id)).count();
    ensure!(on_second == 4, "{on_second} pods are on the second ENI");
    reach(&setting, &pods[44..])?;
    for pod in &mut pods[48..] {
        pod.del(&setting.node)?;
    }
    setting.accounts_for(&pods[..48])?;
    Ok(())
}

fn budget() -> Outcome {
    let setting = Setting::start(&[PREFIXES])?;
    setting.node.wait_for("sixteen addresses", |report| report.addresses.free == 16)?;
    let reads = [Action::DescribeNetworkInterfaces.name(), Action::DescribeSubnets.name()];
    let calls = setting.fabric.ec2().calls();
    let changes: Vec<&str> =
        calls.iter().map(|call| call.action.as_str()).filter(|action| !reads.contains(action)).collect();
    ensure!(changes == [Action::AssignPrivateIpAddresses.name()], "{changes:?} for sixteen addresses");
    Ok(())
}

fn fragmented() -> Outcome {
    let setting = Setting::start(&[PREFIXES])?;
    let mut pods = setting.pods(0..1)?;
    setting.node.wait_for("two prefixes", |report| prefixes(report) == 2)?;
    // One address of every block that is still free.
    for block in 0..256_u32 {
        let address = Ipv4Addr::from_bits(0x0a00_0007 + block * Prefix::ADDRESSES);
        let _taken_already = setting.fabric.ec2().occupy(setting.fabric.subnet(), &[address]);
    }

    pods.extend(setting.pods(1..40)?);

    let report = setting.accounts_for(&pods)?;
    ensure!(prefixes(&report) == 2, "{} prefixes in a subnet without any", prefixes(&report));
    reach(&setting, &pods[30..])
}

fn change() -> Outcome {
    let targets = [("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "1")];
    let setting = Setting::start(&targets)?;
    let (node, ec2) = (&setting.node, setting.fabric.ec2());
    let mut pods = setting.pods(0..3)?;
    node.stop_daemon()?;

    node.start_daemon(&[targets[0], targets[1], PREFIXES])?;
    node.wait_ready()?;
    let moved = |report: &Report| prefixes(report) == 1 && report.addresses.total() == 3 + 16;
    let report = node.wait_for("single addresses for pods only", moved)?;
    let eni = report.enis[0].id.clone();
    // What is being given back counts no more, and the call may be under way.
    let in_ec2 = || ec2.eni(&eni).map(|eni| (eni.secondary.len(), eni.prefixes.len()));
    eventually("EC2 has the addresses of pods and one prefix", || in_ec2() == Some((3, 1)))?;
    pods.extend(setting.pods(3..6)?);
    setting.accounts_for(&pods)?;
    reach(&setting, &pods)?;

    node.stop_daemon()?;
    node.start_daemon(&targets)?;
    node.wait_ready()?;
    for mut pod in pods.split_off(3) {
        pod.del(node)?;
    }
    let back = |report: &Report| prefixes(report) == 0 && report.addresses.total() == 5;
    node.wait_for("single addresses only", back)?;
    setting.accounts_for(&pods)?;
    reach(&setting, &pods)
}
