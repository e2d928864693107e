//! Custom networking: pods on ENIs of another subnet, as an ENIConfig says.

use lab::LabError;
use lab::ec2::{self, Action, Call, Fault};
use lab::fabric::SECOND_CIDR_HOST;
use lab::kube_api::{ApiWeather, KubeApi};
use lab::probe::{Echo, ask};
use lab::runtime::Pod;
use serde_json::{Value, json};
use types::{Reason, SecurityGroupId, SubnetId};
use wire::{Reply, Report, Verb};

use crate::cluster::{NAME, Stage};
use crate::support::{Outcome, Setting, Test, ensure, reach};

pub(crate) const TESTS: &[Test] = &[
    ("with_custom_networking_pods_are_where_the_eni_config_says_and_reach_everything", packets),
    ("without_the_right_to_describe_subnets_enis_are_made_by_the_subnets_id", subnets_denied),
    ("an_add_waits_for_an_eni_config_that_comes_late", late),
    ("enis_that_are_there_serve_pods_without_the_api_server", api_away),
    ("a_changed_eni_config_is_for_new_enis_and_garbage_changes_nothing", changed),
    ("pods_on_the_primary_eni_outlive_the_change_to_custom_networking", drained),
];

const CUSTOM: (&str, &str) = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");

/// The node object names an ENIConfig.
fn name(api: &KubeApi, eni_config: &str) {
    let annotations = json!({"k8s.amazonaws.com/eniConfig": eni_config});
    api.put_node(NAME, &annotations, &json!({}), &json!({"allocatable": {"pods": "29"}}));
}

fn add_subnet(setting: &Setting, cidr: &str) -> Result<SubnetId, LabError> {
    setting.fabric.add_subnet(cidr.parse().map_err(|error| LabError::Otherwise(format!("{cidr}: {error}")))?)
}

/// A node whose ENIConfig `zone-a` says a subnet in the second CIDR and one group.
fn ready(settings: &[(&str, &str)]) -> Result<(Stage, SubnetId), LabError> {
    ready_after(settings, |_| ())
}

/// The same where something happens before the daemon starts.
fn ready_after(
    settings: &[(&str, &str)],
    before: impl FnOnce(&Setting),
) -> Result<(Stage, SubnetId), LabError> {
    let mut made = None;
    let stage = Stage::begin(&[&[CUSTOM], settings].concat(), |api, setting| {
        before(setting);
        let subnet = add_subnet(setting, "100.64.16.0/24")?;
        api.put_eni_config("zone-a", &spec(&subnet, &["sg-0aa"]));
        // Nobody's here.
        api.put_eni_config("default", &spec(setting.fabric.subnet(), &[]));
        name(api, "zone-a");
        made = Some(subnet);
        Ok(())
    })?;
    stage.node().wait_ready()?;
    let subnet = made.ok_or_else(|| LabError::Otherwise("no subnet was made".to_owned()))?;
    Ok((stage, subnet))
}

fn spec(subnet: &SubnetId, groups: &[&str]) -> Value {
    json!({"subnet": subnet, "securityGroups": groups})
}

/// Subnet and groups of each secondary ENI, as EC2 has them.
fn secondaries(stage: &Stage, report: &Report) -> Vec<(SubnetId, Vec<String>)> {
    let enis = report.enis.iter().skip(1).filter_map(|eni| stage.setting.fabric.ec2().eni(&eni.id));
    let groups = |groups: &[SecurityGroupId]| groups.iter().map(ToString::to_string).collect();
    enis.map(|eni| (eni.subnet.clone(), groups(&eni.groups))).collect()
}

fn on_primary(report: &Report) -> usize {
    let primary = report.enis.first().map(|eni| &eni.id);
    report.pods.iter().filter(|pod| pod.eni.as_ref() == primary).count()
}

fn packets() -> Outcome {
    let (stage, subnet) = ready(&[])?;
    let pods = stage.setting.pods(0..12)?;

    let report = stage.setting.accounts_for(&pods)?;
    let there = (subnet, vec!["sg-0aa".to_owned()]);
    let enis = secondaries(&stage, &report);
    ensure!(enis == [there.clone(), there], "secondary ENIs are {enis:?}");
    ensure!((report.capacity, on_primary(&report)) == (18, 0), "pods on the primary ENI: {report:#?}");
    // The daemon before had filled it.
    let drained = |report: &Report| report.enis[0].addresses.total() == 0;
    stage.node().wait_for("nothing on the primary ENI", drained)?;
    reach(&stage.setting, &pods)?;
    // From outside, and from one ENI to the other.
    let (first, last) = (&pods[0], &pods[11]);
    let _echo = Echo::start(&last.netns)?;
    let address = last.address.ok_or_else(|| LabError::Otherwise("a pod without an address".to_owned()))?;
    let seen = [ask(stage.setting.fabric.second(), address)?, ask(&first.netns, address)?];
    ensure!(seen == [Some(SECOND_CIDR_HOST), first.address], "a pod saw {seen:?}");
    let drops = stage.setting.fabric.drops()?;
    ensure!((drops.wrong_source, drops.not_public) == (0, 0), "the VPC refused packets: {drops:?}");
    Ok(())
}

/// By the subnet's id alone, as its range is told by instance metadata once the ENI is there.
fn subnets_denied() -> Outcome {
    let denied = Fault::error("UnauthorizedOperation", 403);
    let (stage, subnet) = ready_after(&[], |setting| {
        setting.fabric.ec2().fault_next(Action::DescribeSubnets, u32::MAX, denied);
    })?;
    let pods = stage.setting.pods(0..12)?;

    let report = stage.setting.accounts_for(&pods)?;
    ensure!(on_primary(&report) == 0, "pods on the primary ENI: {report:#?}");
    let enis = secondaries(&stage, &report);
    let there = (subnet, vec!["sg-0aa".to_owned()]);
    ensure!(enis == [there.clone(), there], "secondary ENIs are {enis:?}");
    let calls = stage.setting.fabric.ec2().calls();
    let told = |call: &Call| call.action == "DescribeSubnets" && call.outcome == ec2::Outcome::Done;
    // The daemon before had asked without custom networking.
    ensure!(calls.iter().filter(|call| told(call)).count() <= 1, "the subnets were told");
    reach(&stage.setting, &pods)?;

    // And again after a restart, which finds the ENIs there.
    stage.restart()?;
    stage.node().wait_ready()?;
    stage.setting.accounts_for(&pods)?;
    reach(&stage.setting, &pods)
}

/// Runs something beside an ADD that has to wait for an ENIConfig; the ADD succeeds.
fn add_beside(stage: &Stage, pod: &mut Pod, meanwhile: impl FnOnce() -> Outcome) -> Outcome {
    let waits = |report: &Report| report.waiting.iter().any(|of| of.reason == Reason::NoEniConfig);
    std::thread::scope(|scope| {
        let added = scope.spawn(|| pod.add(stage.node()));
        let done = stage.node().wait_for("an ADD that waits", waits).and_then(|_| meanwhile());
        let added = added.join().unwrap_or_else(|_| Err(LabError::Otherwise("the ADD panicked".to_owned())));
        done.and(added.map(drop))
    })
}

fn late() -> Outcome {
    let stage = Stage::begin(&[CUSTOM], |api, _| {
        name(api, "zone-a");
        Ok(())
    })?;
    let told = |report: &Report| {
        report.cloud.iter().any(|line| line.contains("does not exist"))
            && report.not_ready.iter().any(|missing| missing.contains("ENIConfig"))
    };
    stage.node().wait_for("the cause", told)?;
    let status = stage.node().ask(Verb::Status)?;
    ensure!(
        matches!(&status, Reply::Failed(failure) if failure.reason == Reason::NoEniConfig),
        "STATUS is {status:?}"
    );

    let mut pods = vec![Pod::create("pod-0", "sandbox0")?];
    // The subnet is younger than the daemon's last look.
    add_beside(&stage, &mut pods[0], || {
        let subnet = add_subnet(&stage.setting, "100.64.16.0/24")?;
        stage.api.put_eni_config("zone-a", &spec(&subnet, &[]));
        Ok(())
    })?;

    pods.extend(stage.setting.pods(1..3)?);
    let report = stage.setting.accounts_for(&pods)?;
    ensure!(on_primary(&report) == 0, "pods on the primary ENI: {report:#?}");
    // Without groups of its own it has the primary ENI's.
    let ec2 = stage.setting.fabric.ec2();
    let groups: Vec<_> =
        report.enis.iter().map(|eni| ec2.eni(&eni.id).map(|eni| eni.groups).unwrap_or_default()).collect();
    ensure!(groups.windows(2).all(|two| two[0] == two[1]), "groups are {groups:?}");
    reach(&stage.setting, &pods)
}

fn api_away() -> Outcome {
    let (stage, _) = ready(&[])?;
    let mut pods = stage.setting.pods(0..3)?;
    stage.api.set_weather(ApiWeather::Away);
    stage.restart()?;
    stage.node().wait_ready()?;

    // All that the ENI can hold.
    pods.extend(stage.setting.pods(3..9)?);
    let report = stage.setting.accounts_for(&pods)?;
    ensure!(report.enis.len() == 2, "{} ENIs", report.enis.len());
    let mut one_more = Pod::create("pod-9", "sandbox9")?;
    add_beside(&stage, &mut one_more, || {
        stage.api.set_weather(ApiWeather::Fair);
        Ok(())
    })?;

    pods.push(one_more);
    stage.setting.accounts_for(&pods)?;
    reach(&stage.setting, &pods[8..])
}

fn changed() -> Outcome {
    let (stage, first) = ready(&[])?;
    let mut pods = stage.setting.pods(0..3)?;
    stage.api.put_eni_config("zone-a", &json!({"subnet": 7}));
    stage.hears("cannot be used: its spec.subnet")?;
    pods.extend(stage.setting.pods(3..5)?);

    let second = add_subnet(&stage.setting, "100.64.17.0/24")?;
    stage.api.put_eni_config("zone-b", &spec(&second, &["sg-0bb"]));
    name(&stage.api, "zone-b");
    stage.hears(&format!("new ENIs go into {second}"))?;
    pods.extend(stage.setting.pods(5..11)?);

    let report = stage.setting.accounts_for(&pods)?;
    let enis = secondaries(&stage, &report);
    let want = [(first, vec!["sg-0aa".to_owned()]), (second, vec!["sg-0bb".to_owned()])];
    ensure!(enis == want, "secondary ENIs are {enis:?}");
    stage.api.delete_eni_config("zone-b");
    stage.hears("does not exist")?;
    reach(&stage.setting, &pods)
}

fn drained() -> Outcome {
    let mut pods = Vec::new();
    let stage = Stage::begin(&[CUSTOM, ("IP_COOLDOWN_PERIOD", "1")], |api, setting| {
        pods = setting.pods(0..2)?;
        let subnet = add_subnet(setting, "100.64.16.0/24")?;
        api.put_eni_config("default", &spec(&subnet, &[]));
        api.put_node(NAME, &json!({}), &json!({}), &json!({}));
        Ok(())
    })?;
    stage.node().wait_ready()?;
    pods.extend(stage.setting.pods(2..5)?);

    let report = stage.setting.accounts_for(&pods)?;
    ensure!(on_primary(&report) == 2, "{} pods are on the primary ENI", on_primary(&report));
    reach(&stage.setting, &pods)?;
    for pod in &mut pods[..2] {
        pod.del(stage.node())?;
    }
    stage.setting.accounts_for(&pods[2..])?;
    // What is given back is given back half a minute apart, which is as long as one wait.
    let gone = |report: &Report| report.enis[0].addresses.total() == 0;
    let waited = stage.node().wait_for("what is idle there to go back", gone);
    waited.or_else(|_| stage.node().wait_for("what is idle there to go back", gone)).map(drop)
}
