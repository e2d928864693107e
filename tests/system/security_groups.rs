//! Pods with a branch ENI: the daemon and the plugin with an EC2 that has trunks, and a stand-in for the VPC resource controller.
//!
//! Where the kernel has no VLANs a veth with the name and the MAC address of the VLAN's link stands in for it, so that all but making that link
//! is tested everywhere; what makes it is tested where there are VLANs (`cargo xtask vm`).

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::ec2::EniView;
use lab::fabric::{INTERNET_HOST, SECOND_CIDR_HOST, Vlans};
use lab::kube_api::ApiWeather;
use lab::kube_api::controller::{Manners, POD_ENI, ResourceController};
use lab::node::Node;
use lab::probe::{Echo, ask};
use lab::runtime::{Answer, Pod};
use lab::{LabError, patience};
use serde_json::{Value, json};
use types::Reason;

use crate::announcing::role;
use crate::cluster::{NAME, Stage};
use crate::doctor::{doctor, findings, mend};
use crate::support::{Outcome, Test, ensure, eventually, reach};

pub(crate) const TESTS: &[Test] = &[
    ("an_add_waits_for_its_branch_eni_and_all_of_a_strict_pods_packets_go_by_that", strict_by_stand_in),
    ("a_standard_pod_reaches_the_vpc_by_its_branch_eni_and_the_internet_as_others_do", standard_by_stand_in),
    ("a_branch_eni_that_does_not_come_is_the_same_word_in_error_event_and_status", never_comes),
    ("each_thing_that_a_pod_with_a_branch_eni_waits_for_has_its_word", words),
    ("a_trunk_that_comes_late_is_noticed_by_an_add_that_waits_for_a_branch_eni", late_trunk),
    ("a_pod_with_a_branch_eni_goes_without_the_api_server_and_without_the_daemon", without_api_server),
    ("a_daemon_that_starts_without_the_api_server_knows_its_pods_with_a_branch_eni", restarted),
    ("an_add_of_a_branch_eni_that_finds_no_link_of_the_trunk_says_so_and_leaves_nothing", trunk_without_link),
    ("doctor_and_explain_see_what_a_branch_eni_lacks_and_the_commands_mend_it", doctored),
];

/// So long nothing comes by a link that is quiet, and so often that is waited for.
const QUIET: Duration = Duration::from_millis(200);
const QUIET_TRIES: u32 = 25;

/// What needs VLANs of the kernel.
pub(crate) const WITH_VLANS: &[Test] = &[
    ("the_vlan_of_a_strict_pods_branch_eni_is_made_on_the_trunk_and_goes_with_the_pod", strict_by_vlan),
    ("the_vlan_of_a_standard_pods_branch_eni_is_made_on_the_trunk_and_goes_with_the_pod", standard_by_vlan),
    ("the_vlan_of_a_branch_eni_that_somebody_deletes_is_made_again", deleted_vlan),
    ("doctors_command_makes_the_vlan_of_a_branch_eni_again", doctored_vlan),
];

/// What a kernel with VLANs cannot show.
pub(crate) const WITHOUT_VLANS: &[Test] =
    &[("an_add_of_a_branch_eni_on_a_kernel_without_vlans_says_so_and_leaves_nothing", refused_vlan)];

/// Why those cannot be shown here.
pub(crate) fn has_vlans() -> Option<String> {
    lab::fabric::no_vlans().is_none().then(|| "the kernel has VLANs".to_owned())
}

/// A node with a trunk, once the controller works.
pub(crate) struct Scene {
    // Before what it works with.
    pub(crate) controller: ResourceController,
    pub(crate) stage: Stage,
}

impl Scene {
    pub(crate) fn set(vlans: Vlans, settings: &[(&str, &str)], manners: Manners) -> Result<Self, LabError> {
        let settings: Vec<(&str, &str)> =
            [("ENABLE_POD_ENI", "true")].iter().chain(settings).copied().collect();
        let stage = Stage::begin(&settings, |api, setting| {
            setting.fabric.set_vlans(vlans);
            api.bind(&role()?);
            api.put_node(NAME, &json!({}), &json!({}), &json!({"allocatable": {"pods": "29"}}));
            // The controller makes it with the node.
            api.put_cni_node(NAME, &json!([]));
            Ok(())
        })?;
        let nodes = [(NAME, stage.node().instance().id.clone())];
        let controller = stage.api.resource_controller(stage.setting.fabric.ec2(), &nodes, manners);
        let controller = controller.map_err(LabError::doing("start the resource controller"))?;
        stage.node().wait_ready()?;
        Ok(Self { controller, stage })
    }

    /// The same where a stand-in makes it run everywhere, and with a controller that does what it should.
    pub(crate) fn fair(settings: &[(&str, &str)]) -> Result<Self, LabError> {
        let scene = Self::set(Vlans::StandIns, settings, Manners::default())?;
        scene.has_trunk()?;
        Ok(scene)
    }

    /// Waits until the controller has attached the trunk, and the node has its link.
    pub(crate) fn has_trunk(&self) -> Outcome {
        let instance = &self.node().instance().id;
        let linked = |trunk: &EniView| {
            let links = self.node().shell("ip -o link").unwrap_or_default();
            links.contains(&trunk.mac.to_string())
        };
        let came = eventually("a trunk", || self.controller.trunk_of(instance).as_ref().is_some_and(linked));
        came.map_err(|error| {
            let (refused, log) = (self.controller.refused(), self.node().log_tail());
            LabError::Otherwise(format!("{error}; EC2 refused {refused:?}; the daemon:\n{log}"))
        })
    }

    pub(crate) fn node(&self) -> &Node {
        self.stage.node()
    }

    /// A pod that is to have a branch ENI, before its ADD.
    pub(crate) fn pod(&self, name: &str) -> Result<Pod, LabError> {
        self.stage.api.put_pod_with_branch(name, &format!("uid-of-{name}"), NAME);
        Pod::create(name, name)
    }

    /// The same with its ADD.
    pub(crate) fn added(&self, name: &str) -> Result<Pod, LabError> {
        let mut pod = self.pod(name)?;
        pod.add(self.node())?;
        Ok(pod)
    }

    /// A pod like any other, before its ADD.
    pub(crate) fn plain_pod(&self, name: &str) -> Result<Pod, LabError> {
        self.stage.api.put_pod(name, &format!("uid-of-{name}"), NAME, &json!({}));
        Pod::create(name, name)
    }

    /// The same with its ADD.
    pub(crate) fn plain(&self, name: &str) -> Result<Pod, LabError> {
        let mut pod = self.plain_pod(name)?;
        pod.add(self.node())?;
        Ok(pod)
    }

    pub(crate) fn branch(&self, name: &str) -> Result<EniView, LabError> {
        let branch = self.controller.branch_of(&format!("uid-of-{name}"));
        branch.ok_or_else(|| {
            LabError::Otherwise(format!("no branch ENI of {name}: {:?}", self.controller.refused()))
        })
    }

    /// Whether it goes by the branch ENI what is done.
    pub(crate) fn goes_by_branch(
        &self,
        branch: &EniView,
        act: impl FnOnce() -> Outcome,
    ) -> Result<bool, LabError> {
        let before = self.once_quiet(branch)?;
        act()?;
        Ok(self.stage.setting.fabric.came_by(branch)? > before)
    }

    /// How many packets have come by a branch ENI's link, once nothing more comes of what was done before: on an emulated machine a
    /// connection's end comes late.
    fn once_quiet(&self, branch: &EniView) -> Result<u64, LabError> {
        let mut came = self.stage.setting.fabric.came_by(branch)?;
        for _try in 0..QUIET_TRIES {
            std::thread::sleep(QUIET);
            let now = self.stage.setting.fabric.came_by(branch)?;
            if now == came {
                break;
            }
            came = now;
        }
        Ok(came)
    }

    /// Does something while an ADD is under way, once it waits for this reason; what the ADD answers.
    fn while_waiting(
        &self,
        pod: &Pod,
        reason: Reason,
        act: impl FnOnce() -> Outcome,
    ) -> Result<Answer, LabError> {
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| pod.call(self.node(), "ADD"));
            let waits = self.node().wait_for_soon(reason.word(), |report| {
                report.waiting.iter().any(|waiting| waiting.reason == reason)
            });
            let acted = waits.and_then(|_report| act());
            let answer =
                adding.join().map_err(|_panic| LabError::Otherwise("the ADD panicked".to_owned()))?;
            acted?;
            answer
        })
    }

    /// That nothing of a branch ENI on VLAN 1 is left on the node, nor anything of its pod.
    pub(crate) fn nothing_is_left(&self, pod: &Pod) -> Outcome {
        let (node, name) = (self.node(), &pod.name);
        eventually("the end of the pod's links", || {
            node.shell("ip -o link").is_ok_and(|links| {
                !links.contains("vlan.eth.1") && pod.host_if().is_none_or(|host_if| !links.contains(host_if))
            })
        })?;
        let rules = node.shell("ip rule; ip -6 rule")?;
        ensure!(!rules.contains("lookup 101"), "rules of {name} are left:\n{rules}");
        let routes = node.shell("ip route show table all; ip -6 route show table all")?;
        ensure!(!routes.contains("table 101"), "routes of {name} are left:\n{routes}");
        let report = node.report()?;
        ensure!(report.pods.iter().all(|held| held.pod.name != *name), "{name} is held: {:?}", report.pods);
        Ok(())
    }
}

/// The rules for branch ENIs and for the node's own addresses: priority and the rest.
pub(crate) fn rules(node: &Node) -> Result<Vec<(u64, String)>, LabError> {
    let text = node.shell("ip -j rule")?;
    let rules: Value = serde_json::from_str(&text).unwrap_or_default();
    let told = rules.as_array().into_iter().flatten().map(|rule| {
        let by = rule["iif"].as_str().or(rule["src"].as_str()).unwrap_or_default();
        let table = rule["table"].as_str().unwrap_or_default();
        (rule["priority"].as_u64().unwrap_or_default(), format!("{by} {table}"))
    });
    let mut found: Vec<_> =
        told.filter(|(_, rule)| rule.ends_with(" 101") || rule.ends_with(" local")).collect();
    found.sort();
    Ok(found)
}

fn strict_by_stand_in() -> Outcome {
    strict(Vlans::StandIns)
}

fn strict_by_vlan() -> Outcome {
    strict(Vlans::Kernel)
}

fn strict(vlans: Vlans) -> Outcome {
    let manners = Manners { no_branch: true, ..Manners::default() };
    let scene = Scene::set(vlans, &[], manners)?;
    scene.has_trunk()?;
    let other = scene.plain("other")?;
    let mut pod = scene.pod("safe")?;
    let delay = Duration::from_millis(500);
    let answer = scene.while_waiting(&pod, Reason::NoBranchEni, || {
        scene.controller.set(Manners { delay, ..Manners::default() });
        Ok(())
    })?;
    ensure!(answer.success, "ADD: {}", answer.stdout);
    let branch = scene.branch("safe")?;
    take(&mut pod, answer, &branch)?;
    let host_if = pod.host_if().unwrap_or_default().to_owned();
    ensure!(host_if.starts_with("vlan"), "the host end is {host_if}");
    let mut wanted =
        vec![(10, format!("{host_if} 101")), (10, "vlan.eth.1 101".to_owned()), (20, "all local".to_owned())];
    wanted.sort();
    ensure!(rules(scene.node())? == wanted, "rules: {:?}", rules(scene.node())?);
    let routes = scene.node().shell("ip route show table 101")?;
    let own = format!("{} dev {host_if}", branch.primary);
    for route in ["default via 10.0.0.1 dev vlan.eth.1", "10.0.0.1 dev vlan.eth.1", &own] {
        ensure!(routes.contains(route), "no {route} in {routes}");
    }
    if vlans == Vlans::Kernel {
        is_vlan(&scene, &branch)?;
    }
    strict_packets(&scene, &pod, &other)?;
    let check = pod.call(scene.node(), "CHECK")?;
    ensure!(check.success, "CHECK: {}", check.stdout);

    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)?;
    ensure!(scene.branch("safe")?.id == branch.id, "the branch ENI is the controller's");
    scene.stage.api.delete_pod("safe");
    eventually("the end of the branch ENI", || scene.branch("safe").is_err())?;
    reach(&scene.stage.setting, &[other])
}

/// Takes in what an ADD answered, which has to be the branch ENI's address.
fn take(pod: &mut Pod, answer: Answer, branch: &EniView) -> Outcome {
    let address = answer.stdout["ips"][0]["address"].as_str().unwrap_or_default();
    ensure!(address == format!("{}/32", branch.primary), "the pod has {address}: {}", answer.stdout);
    (pod.address, pod.result) = (Some(branch.primary), Some(answer.stdout));
    Ok(())
}

/// The kernel's VLAN of a branch ENI stands on the trunk.
fn is_vlan(scene: &Scene, branch: &EniView) -> Outcome {
    let trunk = scene.controller.trunk_of(&scene.node().instance().id);
    let trunk = trunk.ok_or_else(|| LabError::Otherwise("the trunk is gone".to_owned()))?;
    let link: Value =
        serde_json::from_str(&scene.node().shell("ip -d -j link show dev vlan.eth.1")?).unwrap_or_default();
    ensure!(link[0]["linkinfo"]["info_data"]["id"] == 1, "{link}");
    ensure!(link[0]["address"] == branch.mac.to_string(), "{link}");
    let parent = link[0]["link"].as_str().unwrap_or_default();
    let parent = scene.node().shell(&format!("ip -o link show dev {parent}"))?;
    ensure!(parent.contains(&trunk.mac.to_string()), "it stands on {parent}");
    Ok(())
}

/// All that a strict pod sends goes by its branch ENI with its own address, and what is sent to it comes by that.
pub(crate) fn strict_packets(scene: &Scene, pod: &Pod, other: &Pod) -> Outcome {
    let (fabric, node) = (&scene.stage.setting.fabric, scene.node());
    let branch = scene.branch("safe")?;
    let _echoes = [fabric.second(), fabric.internet(), node.netns(), &other.netns, &pod.netns]
        .map(Echo::start)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let to_other = other.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    for (whom, address) in [
        ("the VPC", SECOND_CIDR_HOST),
        ("its node", node.instance().address),
        ("a pod of its node", to_other),
    ] {
        let by_branch = scene.goes_by_branch(&branch, || {
            let seen = ask(&pod.netns, address)?;
            ensure!(seen == pod.address, "{whom} saw {seen:?}");
            Ok(())
        })?;
        ensure!(by_branch, "what goes to {whom} does not go by the branch ENI");
    }
    // Nobody translates its address, and the internet does not know it.
    let before = fabric.drops()?.not_public;
    let seen = ask(&pod.netns, INTERNET_HOST)?;
    ensure!(seen.is_none() && fabric.drops()?.not_public > before, "the internet saw {seen:?}");
    let to_pod = pod.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let seen = ask(fabric.second(), to_pod)?;
    ensure!(seen == Some(SECOND_CIDR_HOST), "the pod saw {seen:?} for the VPC's host");
    let by_branch = scene.goes_by_branch(&branch, || {
        let seen = ask(&other.netns, to_pod)?;
        ensure!(seen == other.address, "the pod saw {seen:?} for a pod of its node");
        Ok(())
    })?;
    ensure!(by_branch, "a pod of its node is answered past the branch ENI");
    fabric.troubles()
}

fn standard_by_stand_in() -> Outcome {
    standard(Vlans::StandIns)
}

fn standard_by_vlan() -> Outcome {
    standard(Vlans::Kernel)
}

fn standard(vlans: Vlans) -> Outcome {
    let scene = Scene::set(vlans, &[("POD_SECURITY_GROUP_ENFORCING_MODE", "standard")], Manners::default())?;
    scene.has_trunk()?;
    let mut pods = vec![scene.added("safe")?, scene.plain("other")?];
    let branch = scene.branch("safe")?;
    ensure!(pods[0].address == Some(branch.primary), "the pod has {:?}", pods[0].address);
    let host_if = pods[0].host_if().unwrap_or_default().to_owned();
    ensure!(host_if.starts_with("eni"), "the host end is {host_if}");
    let wanted = vec![(0, "all local".to_owned()), (1536, format!("{} 101", branch.primary))];
    ensure!(rules(scene.node())? == wanted, "rules: {:?}", rules(scene.node())?);
    let routes = scene.node().shell("ip route show table 51200")?;
    ensure!(routes.contains(&format!("{} dev {host_if}", branch.primary)), "{routes}");
    if vlans == Vlans::Kernel {
        is_vlan(&scene, &branch)?;
    }

    let by_branch = scene.goes_by_branch(&branch, || reach(&scene.stage.setting, &pods))?;
    ensure!(by_branch, "what goes to the VPC does not go by the branch ENI");
    let _echo = Echo::start(&pods[1].netns)?;
    let to_other = pods[1].address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let by_branch = scene.goes_by_branch(&branch, || {
        let seen = ask(&pods[0].netns, to_other)?;
        ensure!(seen == Some(branch.primary), "a pod of its node saw {seen:?}");
        Ok(())
    })?;
    ensure!(!by_branch, "what goes to a pod of its node stays there");

    let mut pod = pods.remove(0);
    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)?;
    reach(&scene.stage.setting, &pods)
}

fn never_comes() -> Outcome {
    let manners = Manners { no_branch: true, ..Manners::default() };
    let seconds = patience(Duration::from_secs(5)).as_secs().to_string();
    let scene = Scene::set(Vlans::StandIns, &[("IPAMD_ADD_TIMEOUT_SECONDS", &seconds)], manners)?;
    scene.has_trunk()?;
    let pod = scene.pod("safe")?;

    let answer = scene.while_waiting(&pod, Reason::NoBranchEni, || {
        for words in [&["status"][..], &["explain", "pod", "default/safe"]] {
            let run_dir = scene.node().run_dir().display().to_string();
            let said = scene.node().tool(&[words, &["--run-dir", &run_dir]].concat(), &[])?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let line = said.lines().find(|line| line.contains("default/safe"));
            ensure!(line.is_some_and(|line| line.contains("no-branch-eni")), "{words:?} says {said}");
        }
        Ok(())
    })?;

    ensure!(!answer.success && answer.stdout["code"] == 11, "the ADD answers {}", answer.stdout);
    let text = answer.stdout.to_string();
    ensure!(text.contains("no-branch-eni") && text.contains(POD_ENI), "no cause in {text}");
    let about =
        |event: &Value| event["regarding"]["uid"] == "uid-of-safe" && event["reason"] == "no-branch-eni";
    eventually("the pod's event", || scene.stage.api.events().iter().any(about))?;
    let metrics = scene.node().metrics()?;
    let counted = "ipamd_requests_total{verb=\"add\",reason=\"no-branch-eni\"} 1";
    ensure!(metrics.lines().any(|line| line == counted), "no {counted} in {metrics}");
    scene.nothing_is_left(&pod)?;

    // The runtime's next try finds it.
    scene.controller.set(Manners::default());
    let mut pod = pod;
    pod.add(scene.node())?;
    ensure!(pod.address == Some(scene.branch("safe")?.primary), "the pod has {:?}", pod.address);
    Ok(())
}

fn words() -> Outcome {
    let manners = Manners { no_trunk: true, no_branch: true, ..Manners::default() };
    let seconds = patience(Duration::from_secs(2)).as_secs().to_string();
    let scene = Scene::set(Vlans::StandIns, &[("IPAMD_ADD_TIMEOUT_SECONDS", &seconds)], manners)?;
    scene.stage.hears("no trunk ENI is attached yet")?;
    let fails = |pod: &Pod, reason: &str, words: &str| -> Outcome {
        let answer = pod.call(scene.node(), "ADD")?;
        let text = answer.stdout.to_string();
        ensure!(!answer.success && answer.stdout["code"] == 11, "{text}");
        ensure!(text.contains(reason) && text.contains(words), "no {reason} or no {words} in {text}");
        Ok(())
    };
    fails(&Pod::create("unseen", "unseen")?, "no-pod-object", "it is not among this node's pods")?;
    let entry = json!({
        "eniId": "eni-0b", "ifAddress": "02:00:00:00:00:07", "privateIp": "10.0.3.9", "ipv6Addr": "", "vlanID": 7,
        "subnetCidr": "10.0.0.0/20", "subnetV6Cidr": "",
    });
    let mut nonsense = entry.clone();
    nonsense["vlanID"] = json!(4095);
    for (name, annotation, reason, words) in [
        ("garbled", "[{".to_owned(), "no-branch-eni", "it is no JSON"),
        ("wrong", json!([nonsense]).to_string(), "no-branch-eni", "4095 is no VLAN id"),
        ("trunkless", json!([entry]).to_string(), "no-trunk", "no trunk ENI is attached to this instance"),
    ] {
        let pod = scene.pod(name)?;
        scene.stage.api.annotate_pod(name, POD_ENI, &annotation);
        fails(&pod, reason, words)?;
    }
    // Others are served meanwhile.
    scene.plain("other").map(drop)
}

fn late_trunk() -> Outcome {
    let manners = Manners { no_trunk: true, ..Manners::default() };
    let scene = Scene::set(Vlans::StandIns, &[], manners)?;
    let features = json!([{"name": "SecurityGroupsForPods", "value": ""}]);
    eventually("the feature that asks for a trunk", || scene.stage.api.features(NAME) == features)?;
    let mut pod = scene.pod("safe")?;

    let answer = scene.while_waiting(&pod, Reason::NoBranchEni, || {
        scene.controller.set(Manners::default());
        Ok(())
    })?;

    ensure!(answer.success, "ADD: {}", answer.stdout);
    let offered = || scene.stage.api.offered_branches(NAME).as_deref() == Some("9");
    eventually("what the node offers", offered)?;
    take(&mut pod, answer, &scene.branch("safe")?)?;
    scene.stage.hears("1 pods have a branch ENI")
}

fn without_api_server() -> Outcome {
    let scene = Scene::fair(&[])?;
    let mut pod = scene.added("safe")?;
    scene.stage.api.set_weather(ApiWeather::Away);

    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)?;
    // A second DEL, and one of a runtime that has lost the result, are nobody's business either.
    pod.result = None;
    pod.del(scene.node())?;

    scene.stage.api.set_weather(ApiWeather::Fair);
    scene.stage.api.delete_pod("safe");
    eventually("the end of the branch ENI", || scene.branch("safe").is_err())?;
    let mut next = scene.added("next")?;
    scene.stage.api.set_weather(ApiWeather::Away);
    scene.node().kill_daemon();
    next.del(scene.node())?;
    scene.stage.restart()?;
    scene.node().wait_ready()?;
    scene.nothing_is_left(&next)
}

fn restarted() -> Outcome {
    let scene = Scene::fair(&[])?;
    let mut pod = scene.added("safe")?;
    let other = scene.plain("other")?;
    scene.stage.api.set_weather(ApiWeather::Away);
    // One that is killed has said no more than what it has written.
    scene.node().kill_daemon();
    scene.stage.restart()?;
    scene.node().wait_ready()?;

    let report = scene.node().report()?;
    let branch = scene.branch("safe")?;
    let held = report.pods.iter().find(|held| held.pod.name == "safe");
    let eni = held.and_then(|held| held.eni.clone());
    ensure!(eni.as_ref() == Some(&branch.id), "the daemon holds {:?}", report.pods);
    let check = pod.call(scene.node(), "CHECK")?;
    ensure!(check.success, "CHECK: {}", check.stdout);
    strict_packets(&scene, &pod, &other)?;
    // What others take meanwhile is put back.
    scene.node().shell("ip rule del pref 10 iif vlan.eth.1")?;
    let back =
        || rules(scene.node()).is_ok_and(|rules| rules.iter().any(|(_, rule)| rule == "vlan.eth.1 101"));
    eventually("the rule that somebody took", back)?;
    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)
}

fn trunk_without_link() -> Outcome {
    let scene = Scene::set(Vlans::None, &[], Manners::default())?;
    scene.has_trunk()?;
    let trunk = scene.controller.trunk_of(&scene.node().instance().id);
    let mac = trunk.ok_or_else(|| LabError::Otherwise("the trunk is gone".to_owned()))?.mac.to_string();
    // Somebody gives it another address: nobody finds it by its own.
    scene.node().shell(&format!(
        "link=$(ip -o link | grep {mac} | cut -d: -f2 | cut -d@ -f1); ip link set $link address 02:ff:ff:ff:ff:ff"
    ))?;
    let pod = scene.pod("safe")?;

    let answer = pod.call(scene.node(), "ADD")?;

    let text = answer.stdout.to_string();
    ensure!(!answer.success && text.contains("kernel-refused") && text.contains(&mac), "{text}");
    scene.nothing_is_left(&pod)
}

fn refused_vlan() -> Outcome {
    let scene = Scene::set(Vlans::None, &[], Manners::default())?;
    scene.has_trunk()?;
    let pod = scene.pod("safe")?;

    let answer = pod.call(scene.node(), "ADD")?;

    let text = answer.stdout.to_string();
    ensure!(!answer.success && text.contains("kernel-refused") && text.contains("VLAN"), "{text}");
    scene.nothing_is_left(&pod)?;
    let about =
        |event: &Value| event["regarding"]["uid"] == "uid-of-safe" && event["reason"] == "kernel-refused";
    eventually("the pod's event", || scene.stage.api.events().iter().any(about))
}

fn deleted_vlan() -> Outcome {
    let scene = Scene::set(Vlans::Kernel, &[], Manners::default())?;
    scene.has_trunk()?;
    let pod = scene.added("safe")?;
    let other = scene.plain("other")?;
    scene.node().shell("ip link del vlan.eth.1")?;

    let well = || pod.call(scene.node(), "CHECK").is_ok_and(|check| check.success);
    eventually("the VLAN's link", well)?;

    is_vlan(&scene, &scene.branch("safe")?)?;
    strict_packets(&scene, &pod, &other)
}

/// The doctor's findings of a node whose daemon does not run, without that: codes.
fn found(node: &Node) -> Result<(Vec<String>, Value), LabError> {
    let (_, verdict) = doctor(node, &["--cni-cache", "/nowhere"])?;
    let codes = findings(&verdict).filter_map(|finding| finding["code"].as_str().map(str::to_owned));
    Ok((codes.filter(|code| code != "daemon-down").collect(), verdict))
}

fn doctored() -> Outcome {
    let scene = Scene::fair(&[])?;
    let pod = scene.added("safe")?;
    let node = scene.node();
    let host_if = pod.host_if().unwrap_or_default().to_owned();
    scene.stage.hears("1 pods have a branch ENI")?;
    // It would put things back within a second.
    node.kill_daemon();
    let (codes, verdict) = found(node)?;
    ensure!(codes.is_empty(), "not well: {verdict:#}");
    for (harm, code) in [
        ("ip rule del pref 10 iif vlan.eth.1".to_owned(), "rule-missing"),
        (format!("ip rule del pref 10 iif {host_if}"), "rule-missing"),
        ("ip route flush table 101".to_owned(), "route-missing"),
        ("ip link set vlan.eth.1 down".to_owned(), "branch-link-off"),
        ("ip rule add pref 10 iif vlan.eth.9 lookup 109".to_owned(), "rule-extra"),
        ("ip link add vlan.eth.9 type veth peer name stray".to_owned(), "link-without-owner"),
    ] {
        node.shell(&harm)?;
        let (codes, verdict) = found(node)?;
        ensure!(codes.iter().any(|found| found == code), "{harm}: {verdict:#}");
        let explained = node.tool(
            &["explain", "pod", "default/safe", "--run-dir", &node.run_dir().display().to_string()],
            &[],
        )?;
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        let marked = explained.contains("MISSING") || explained.contains("DOWN");
        // What is there for nobody is not the pod's.
        ensure!(marked != ["rule-extra", "link-without-owner"].contains(&code), "{harm}: {explained}");

        mend(node, &verdict)?;

        let (codes, verdict) = found(node)?;
        ensure!(codes.is_empty(), "{harm} is not mended: {verdict:#}");
    }
    Ok(())
}

fn doctored_vlan() -> Outcome {
    let scene = Scene::set(Vlans::Kernel, &[], Manners::default())?;
    scene.has_trunk()?;
    let pod = scene.added("safe")?;
    let other = scene.plain("other")?;
    scene.stage.hears("1 pods have a branch ENI")?;
    scene.node().kill_daemon();
    scene.node().shell("ip link del vlan.eth.1")?;
    let (codes, verdict) = found(scene.node())?;
    ensure!(codes == ["branch-link-missing"], "found {verdict:#}");

    mend(scene.node(), &verdict)?;

    let (codes, verdict) = found(scene.node())?;
    ensure!(codes.is_empty(), "not mended: {verdict:#}");
    is_vlan(&scene, &scene.branch("safe")?)?;
    strict_packets(&scene, &pod, &other)
}
