//! Pods with a branch ENI whose circumstances are others than usual: IPv6, a setting that is switched off, a state that is lost.

use std::net::{IpAddr, Ipv6Addr};

use lab::LabError;
use lab::ec2::EniView;
use lab::fabric::{Drops, INTERNET_HOST6, SECOND_CIDR_HOST6, Vlans};
use lab::kube_api::controller::Manners;
use lab::probe::{By, Echo, PORT, ask_at, ask_by};
use lab::runtime::Pod;

use crate::security_groups::{Scene, rules, strict_packets};
use crate::support::{Outcome, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("pods_with_a_branch_eni_live_on_when_the_setting_is_switched_off_and_leave_nothing", switched_off),
    ("a_pod_with_a_branch_eni_whose_state_is_lost_lives_on_and_its_del_leaves_nothing", lost),
];

/// What needs a kernel with IPv6.
pub(crate) const IPV6: &[Test] = &[
    ("all_packets_of_a_strict_pod_of_an_ipv6_node_go_by_its_branch_eni", strict_of_ipv6_node),
    ("all_packets_of_a_strict_pod_of_both_families_go_by_its_branch_eni", strict_of_both),
    ("a_standard_pod_of_an_ipv6_node_reaches_others_by_its_branch_eni", standard_of_ipv6_node),
];

const ALONE: [(&str, &str); 2] = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
const BOTH: [(&str, &str); 2] = [("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "true")];
const STANDARD: (&str, &str) = ("POD_SECURITY_GROUP_ENFORCING_MODE", "standard");

/// A node, a pod with a branch ENI, which is on VLAN 1, and one without.
struct Pair {
    // Before the pods' node.
    pod: Pod,
    other: Pod,
    /// IPv6 addresses of the two.
    own: Ipv6Addr,
    of_other: Ipv6Addr,
    branch: EniView,
    scene: Scene,
}

fn ipv6_of(told: &[IpAddr]) -> Result<Ipv6Addr, LabError> {
    let found = node::families::ipv6_among(told);
    found.ok_or_else(|| LabError::Otherwise(format!("no IPv6 address among {told:?}")))
}

impl Pair {
    fn add(settings: &[(&str, &str)]) -> Result<Self, LabError> {
        let manners = Manners { ipv6: true, ..Manners::default() };
        let scene = Scene::set(Vlans::StandIns, settings, manners)?;
        scene.has_trunk()?;
        let mut other = scene.plain_pod("other")?;
        let of_other = ipv6_of(&other.add_any(scene.node())?)?;
        let mut pod = scene.pod("safe")?;
        let told = pod.add_any(scene.node())?;
        let branch = scene.branch("safe")?;
        let own = ipv6_of(&told)?;
        ensure!(Some(own) == branch.ipv6, "the pod is told {told:?}, its branch ENI has {:?}", branch.ipv6);
        let both = told.iter().any(IpAddr::is_ipv4);
        ensure!(both == settings.contains(&BOTH[0]), "the pod is told {told:?}");
        Ok(Self { pod, other, own, of_other, branch, scene })
    }

    /// That what the pod asks there is seen with its own address, and whether it went by the branch ENI.
    fn asks(&self, to: Ipv6Addr) -> Result<bool, LabError> {
        self.scene.goes_by_branch(&self.branch, || {
            let seen = ask_at(&self.pod.netns, IpAddr::V6(to))?;
            ensure!(seen == Some(IpAddr::V6(self.own)), "{to} saw {seen:?}");
            Ok(())
        })
    }

    /// The VPC, the internet and both pods, each as an echo.
    fn echoes(&self) -> Result<Vec<Echo>, LabError> {
        let fabric = &self.scene.stage.setting.fabric;
        let all = [fabric.second(), fabric.internet(), &self.other.netns, &self.pod.netns];
        all.map(Echo::start).into_iter().collect()
    }

    /// That it is reached from the VPC and from the other pod, CHECK and the tools find nothing, and its DEL leaves nothing.
    fn ends_well(mut self) -> Outcome {
        let (fabric, node) = (&self.scene.stage.setting.fabric, self.scene.node());
        let came = ask_by(By::Tcp, fabric.second(), (self.own, PORT).into())?;
        ensure!(came == Some(IpAddr::V6(SECOND_CIDR_HOST6)), "the VPC's host is seen as {came:?}");
        let came = ask_at(&self.other.netns, IpAddr::V6(self.own))?;
        ensure!(came == Some(IpAddr::V6(self.of_other)), "the other pod is seen as {came:?}");
        let drops = fabric.drops()?;
        ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
        let check = self.pod.call(node, "CHECK")?;
        ensure!(check.success, "CHECK: {}", check.stdout);
        let explained = node.tool(&["explain", "pod", "safe"], &[])?;
        let said = String::from_utf8_lossy(&explained.stdout);
        ensure!(said.contains(&self.own.to_string()) && !said.contains("MISSING"), "{said}");
        let found = node.tool(&["doctor"], &[])?;
        ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));

        // A daemon that starts anew knows it.
        self.scene.stage.restart()?;
        node.wait_ready()?;
        let held = node.report()?.pods;
        let is_held =
            held.iter().any(|held| held.pod.name == "safe" && held.eni == Some(self.branch.id.clone()));
        ensure!(is_held, "the daemon holds {held:?}");
        let check = self.pod.call(node, "CHECK")?;
        ensure!(check.success, "CHECK after a restart: {}", check.stdout);

        self.pod.del(node)?;
        self.scene.nothing_is_left(&self.pod)?;
        fabric.troubles()
    }
}

fn strict_of_ipv6_node() -> Outcome {
    strict(&ALONE)
}

fn strict_of_both() -> Outcome {
    strict(&BOTH)
}

fn strict(settings: &[(&str, &str)]) -> Outcome {
    let pair = Pair::add(settings)?;
    let node = pair.scene.node();
    let told = node.shell("ip -6 rule")?;
    for rule in ["0:\tfrom fe80:ec2::1 ipproto ipv6-icmp lookup local", "20:\tfrom all lookup local"] {
        ensure!(told.contains(rule), "no {rule} in {told}");
    }
    ensure!(told.matches("lookup 101").count() == 2, "{told}");

    let _echoes = pair.echoes()?;
    for to in [SECOND_CIDR_HOST6, INTERNET_HOST6, pair.of_other] {
        ensure!(pair.asks(to)?, "what goes to {to} does not go by the branch ENI");
    }
    pair.ends_well()
}

fn standard_of_ipv6_node() -> Outcome {
    let pair = Pair::add(&[ALONE[0], ALONE[1], STANDARD])?;
    let node = pair.scene.node();
    let told = node.shell("ip -6 rule show pref 1536")?;
    ensure!(told.contains(&format!("from {} lookup 101", pair.own)), "{told}");

    let _echoes = pair.echoes()?;
    // Nothing is translated, so nothing leaves by the primary ENI.
    for to in [SECOND_CIDR_HOST6, INTERNET_HOST6] {
        ensure!(pair.asks(to)?, "what goes to {to} does not go by the branch ENI");
    }
    ensure!(!pair.asks(pair.of_other)?, "what goes to a pod of its node stays there");
    pair.ends_well()
}

fn switched_off() -> Outcome {
    let scene = Scene::fair(&[])?;
    let mut pod = scene.added("safe")?;
    let other = scene.plain("other")?;

    scene.stage.restart_with(&[("ENABLE_POD_ENI", "false")])?;
    scene.node().wait_ready()?;

    strict_packets(&scene, &pod, &other)?;
    let check = pod.call(scene.node(), "CHECK")?;
    ensure!(check.success, "CHECK: {}", check.stdout);
    // What others take is put back as before.
    scene.node().shell("ip rule del pref 10 iif vlan.eth.1")?;
    let back =
        || rules(scene.node()).is_ok_and(|rules| rules.iter().any(|(_, rule)| rule == "vlan.eth.1 101"));
    eventually("the rule that somebody took", back)?;
    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)?;
    // With the last of them the node's own addresses are looked up first again.
    let first = vec![(0, "all local".to_owned())];
    eventually("the kernel's first rule", || rules(scene.node()).is_ok_and(|rules| rules == first))?;
    let _next = scene.plain("next")?;
    Ok(())
}

fn lost() -> Outcome {
    let scene = Scene::fair(&[])?;
    let mut pod = scene.added("safe")?;
    let other = scene.plain("other")?;
    let branch = scene.branch("safe")?;
    scene.node().kill_daemon();
    for ours in ["state", "instance.json", "ipam.json"] {
        let gone = std::fs::remove_file(scene.node().run_dir().join(ours));
        gone.map_err(LabError::doing(format!("remove {ours}")))?;
    }

    scene.stage.restart()?;
    scene.node().wait_ready()?;

    let held = scene.node().report()?.pods;
    let kept = held.iter().any(|held| held.address == IpAddr::V4(branch.primary) && held.vlan.is_some());
    ensure!(kept, "the daemon holds {held:?}");
    strict_packets(&scene, &pod, &other)?;
    pod.del(scene.node())?;
    scene.nothing_is_left(&pod)?;
    let held = scene.node().report()?.pods;
    ensure!(held.len() == 1, "the daemon holds {held:?}");
    Ok(())
}
