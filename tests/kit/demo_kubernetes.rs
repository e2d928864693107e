//! The other act of the demo: what an API server changes on two nodes, a pod with a branch ENI on a third one, and what Prometheus makes of the
//! metrics.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use types::{Reason, SubnetId};
use wire::Report;

use crate::LabError;
use crate::demo::{ATTACH_DELAY, Paint};
use crate::ec2::Config;
use crate::fabric::{self, Fabric, SECOND_CIDR_HOST, Vlans};
use crate::kube_api::KubeApi;
use crate::kube_api::controller::Manners;
use crate::manifests::documents;
use crate::node::Node;
use crate::policy_agent::PolicyAgent;
use crate::probe::{Echo, ask};
use crate::prometheus::{self, Prometheus};
use crate::runtime::Pod;

/// Three ENIs with ten addresses each.
const INSTANCE_TYPE: &str = "m5.large";
/// A subnet for pods in the VPC's second range.
const POD_SUBNET: &str = "100.64.16.0/24";
/// How long an ADD may be held here, in seconds: events come after three.
const ADD_TIMEOUT: &str = "6";
/// How long what happens by itself may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// In the lab's own `/run`.
const SCRATCH: &str = "/run/lab/demo";
const MANIFEST: &str = include_str!("../../manifests/daemonset.yaml");
/// Of a note so many characters are shown.
const NOTE_MAX: usize = 110;

type Say<'a> = &'a mut dyn FnMut(&str);

/// Shows it all. True when all is as expected.
///
/// # Errors
/// When something cannot be set up or asked.
pub fn show(paint: Paint, say: Say<'_>) -> Result<bool, LabError> {
    let mut cluster = Cluster::start(paint, say)?;
    cluster.node_object(say)?;
    cluster.eni_config(say)?;
    cluster.full_subnet(say)?;
    cluster.security_groups(say)?;
    cluster.dashboard(say)?;
    cluster.fabric.troubles()?;
    Ok(cluster.right)
}

/// Fields drop in this order: pods before nodes, nodes before the VPC.
struct Cluster {
    pods: Vec<Pod>,
    _agent: PolicyAgent,
    api: KubeApi,
    nodes: [Node; 2],
    subnet: SubnetId,
    fabric: Fabric,
    paint: Paint,
    right: bool,
}

impl Cluster {
    fn start(paint: Paint, say: Say<'_>) -> Result<Self, LabError> {
        say(&paint.title("── a VPC, two nodes, and an API server of our own with the rights of the manifest"));
        let fabric = Fabric::create(Config { attach_delay: ATTACH_DELAY, ..Config::default() })?;
        let launch = |name: &str| {
            // A state of before belongs to somebody else.
            let _gone = std::fs::remove_dir_all(format!("/run/lab/{name}"));
            Node::launch(&fabric, name, INSTANCE_TYPE)
        };
        let nodes = [launch("node1")?, launch("node2")?];
        let range: Ipv4Network =
            POD_SUBNET.parse().map_err(|error| LabError::Otherwise(format!("{POD_SUBNET}: {error}")))?;
        let subnet = fabric.add_subnet(range)?;
        let (mut api, first) = nodes[0].kube_api()?;
        let second = nodes[1].join(&mut api)?;
        let documents = documents(MANIFEST).map_err(LabError::Otherwise)?;
        api.bind(documents.iter().find(|document| document["kind"] == "ClusterRole").unwrap_or(&Value::Null));
        let status = json!({"allocatable": {"pods": "29"}});
        api.put_node("node1", &json!({}), &json!({}), &status);
        api.put_node("node2", &json!({"k8s.amazonaws.com/eniConfig": "zone-a"}), &json!({}), &status);
        api.put_cni_node("node2", &json!([]));
        let agent = PolicyAgent::start(&nodes[0])?;
        for (node, kubeconfig, own) in [
            (&nodes[0], &first, ("NETWORK_POLICY_ENFORCING_MODE", "standard")),
            (&nodes[1], &second, ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true")),
        ] {
            let kubeconfig = kubeconfig.display().to_string();
            node.start_daemon(&[
                ("IPAMD_KUBECONFIG", kubeconfig.as_str()),
                ("MY_NODE_NAME", node.netns().name()),
                ("WARM_IP_TARGET", "2"),
                ("IPAMD_ADD_TIMEOUT_SECONDS", ADD_TIMEOUT),
                own,
            ])?;
        }
        nodes[0].wait_ready()?;
        nodes[1].wait_listening()?;
        Ok(Self { pods: Vec::new(), _agent: agent, api, nodes, subnet, fabric, paint, right: true })
    }

    /// A line with a mark.
    fn tell(&mut self, good: bool, line: &str, say: Say<'_>) {
        self.right &= good;
        say(&format!("   {line}  {}", self.paint.mark(good)));
    }

    fn node_object(&mut self, say: Say<'_>) -> Result<(), LabError> {
        say(&self.paint.title("\n── the node object: maxPods, and warm targets of one node while it runs"));
        let says = |report: &Report| report.cluster.iter().any(|line| line.contains("29 pods at most"));
        let report = self.nodes[0].wait_for("maxPods", says)?;
        let told = report.cluster.first().cloned().unwrap_or_default();
        self.tell(true, &format!("node1 reads its node object: {told}"), say);
        let before = self.nodes[0].wait_for("two free", |report| report.addresses.free >= 2)?.addresses.free;
        let started = Instant::now();
        self.api.label_node("node1", "vpc.amazonaws.com/warm-ip-target", "6");
        let report = self.nodes[0].wait_for("six free", |report| report.addresses.free >= 6)?;
        let (free, ms) = (report.addresses.free, started.elapsed().as_millis());
        say("   $ kubectl label node node1 vpc.amazonaws.com/warm-ip-target=6");
        self.tell(
            free > before,
            &format!("free addresses on node1: {before}, and {free} after {ms} ms"),
            say,
        );
        Ok(())
    }

    fn eni_config(&mut self, say: Say<'_>) -> Result<(), LabError> {
        say(&self.paint.title("\n── custom networking on node2: an ENIConfig that comes late"));
        let mut pod = Pod::create("web-0", "web-0")?;
        let spec = json!({"subnet": self.subnet, "securityGroups": ["sg-0aa"]});
        let (node, api) = (&self.nodes[1], &self.api);
        let (held, address) = std::thread::scope(|scope| {
            let adding = scope.spawn(|| pod.add(node));
            let waits =
                |report: &Report| report.waiting.iter().any(|wait| wait.reason == Reason::NoEniConfig);
            let held = node.wait_for("a pod that waits for the ENIConfig", waits);
            api.put_eni_config("zone-a", &spec);
            let added = adding.join().map_err(|_panic| LabError::Otherwise("the ADD panicked".to_owned()))?;
            Ok::<_, LabError>((held?, added?))
        })?;
        let why = held.cluster.iter().find(|line| line.contains("zone-a")).cloned().unwrap_or_default();
        self.tell(true, &format!("web-0 is held, {}: {why}", Reason::NoEniConfig), say);
        say(&format!("   $ kubectl apply: ENIConfig zone-a, subnet {} ({POD_SUBNET})", self.subnet));
        let eni = self.nodes[1].report()?.pods.iter().find_map(|pod| pod.eni.clone());
        let there = eni.as_ref().and_then(|eni| self.fabric.ec2().eni(eni));
        let lands = there.as_ref().is_some_and(|eni| eni.subnet == self.subnet);
        let ms = pod.took.as_millis();
        let eni = eni.map(|eni| eni.to_string()).unwrap_or_default();
        self.tell(
            lands,
            &format!("web-0 has {address} on {eni} in that subnet, {ms} ms after it asked"),
            say,
        );
        self.pods.push(pod);
        let wanted = json!([{"name": "CustomNetworking", "value": "zone-a"}]);
        patiently(|| self.api.features("node2") == wanted);
        let features = self.api.features("node2");
        self.tell(features == wanted, &format!("CNINode node2, features: {features}"), say);
        Ok(())
    }

    fn full_subnet(&mut self, say: Say<'_>) -> Result<(), LabError> {
        say(&self.paint.title("\n── a subnet without a free address: an ADD that is held and fails, and what the pod says of it"));
        let refused = |error| LabError::Otherwise(format!("EC2: {error:?}"));
        let taken = self.fabric.ec2().occupy_all_but(self.fabric.subnet(), 0).map_err(refused)?;
        let mut filling = Vec::new();
        while self.nodes[0].report()?.addresses.free > 0 {
            let number = filling.len();
            let mut pod = Pod::create(&format!("fill-{number}"), &format!("fill-{number}"))?;
            pod.add(&self.nodes[0])?;
            filling.push(pod);
        }
        self.api.put_pod("late", "uid-of-late", "node1", &json!({}));
        let late = Pod::create("late", "late")?;
        let answer = late.call(&self.nodes[0], "ADD")?;
        let said = answer.stdout["details"].as_str().unwrap_or_default();
        let full = answer.stdout.to_string().contains(Reason::SubnetFull.word());
        let line = format!("ADD of late, after {ADD_TIMEOUT} s: [{}] {}", Reason::SubnetFull, cut(said));
        self.tell(!answer.success && full, &line, say);
        // Once held and once failed.
        let twice = |event: &Value| event["series"]["count"].as_u64() >= Some(2);
        patiently(|| self.events().iter().any(twice));
        say("   $ kubectl get events");
        let events = self.events();
        for event in &events {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            let (kind, reason, note) = (text("type"), text("reason"), cut(text("note")));
            let times = event["series"]["count"].as_u64().unwrap_or(1);
            say(&format!("     {kind:<8} {reason:<12} x{times}  pod/late  {note}"));
        }
        let told = events.iter().any(|event| event["reason"] == Reason::SubnetFull.word());
        self.tell(told, "the pod has an event with the same word", say);
        for pod in &mut filling {
            pod.del(&self.nodes[0])?;
        }
        self.fabric.ec2().vacate(self.fabric.subnet(), &taken).map_err(refused)
    }

    fn events(&self) -> Vec<Value> {
        let mut events = self.api.events();
        events.retain(|event| event["regarding"]["name"] == "late");
        events
    }

    fn security_groups(&mut self, say: Say<'_>) -> Result<(), LabError> {
        let title = "\n── security groups for pods on a third node: a branch ENI by a stand-in for the VPC resource controller";
        say(&self.paint.title(title));
        if fabric::no_vlans().is_some() {
            say("   this kernel has no VLANs: a veth stands in for the link of one");
            self.fabric.set_vlans(Vlans::StandIns);
        }
        let _gone = std::fs::remove_dir_all("/run/lab/node3");
        let node = Node::launch(&self.fabric, "node3", INSTANCE_TYPE)?;
        let kubeconfig = node.join(&mut self.api)?.display().to_string();
        self.api.put_node("node3", &json!({}), &json!({}), &json!({"allocatable": {"pods": "29"}}));
        self.api.put_cni_node("node3", &json!([]));
        node.start_daemon(&[
            ("IPAMD_KUBECONFIG", kubeconfig.as_str()),
            ("MY_NODE_NAME", "node3"),
            ("WARM_IP_TARGET", "2"),
            ("ENABLE_POD_ENI", "true"),
        ])?;
        let instances = [("node3", node.instance().id.clone())];
        let manners = Manners { no_branch: true, ..Manners::default() };
        let controller = self.api.resource_controller(self.fabric.ec2(), &instances, manners);
        let controller = controller.map_err(LabError::doing("start the resource controller"))?;
        node.wait_ready()?;
        patiently(|| controller.trunk_of(&node.instance().id).is_some());
        let trunk = controller.trunk_of(&node.instance().id).map(|trunk| trunk.id.to_string());
        let (there, trunk) = (trunk.is_some(), trunk.unwrap_or_default());
        self.tell(there, &format!("CNINode node3 has asked for a trunk, and {trunk} is attached"), say);

        self.api.put_pod_with_branch("bank-0", "uid-of-bank-0", "node3");
        let mut pod = Pod::create("bank-0", "bank-0")?;
        let address = std::thread::scope(|scope| {
            let adding = scope.spawn(|| pod.add(&node));
            let waits =
                |report: &Report| report.waiting.iter().any(|wait| wait.reason == Reason::NoBranchEni);
            let held = node.wait_for("a pod that waits for its branch ENI", waits);
            controller.set(Manners::default());
            let added = adding.join().map_err(|_panic| LabError::Otherwise("the ADD panicked".to_owned()))?;
            held.and(added)
        })?;
        self.tell(
            true,
            &format!("bank-0 is held, {}, until its pod has the annotation", Reason::NoBranchEni),
            say,
        );
        let branch = controller.branch_of("uid-of-bank-0");
        let its = branch.as_ref().is_some_and(|branch| branch.primary == address);
        let held = node.report()?.pods.into_iter().find(|held| held.pod.name == "bank-0");
        let vlan = held.and_then(|held| held.vlan).map(|vlan| vlan.to_string()).unwrap_or_default();
        let id = branch.as_ref().map(|branch| branch.id.to_string()).unwrap_or_default();
        self.tell(its, &format!("bank-0 has {address} of {id}, on VLAN {vlan} of the trunk"), say);
        if let Some(branch) = branch {
            let _echo = Echo::start(self.fabric.second())?;
            let before = self.fabric.came_by(&branch)?;
            let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
            let by_branch = self.fabric.came_by(&branch)? > before;
            let line = format!("it asks {SECOND_CIDR_HOST}, by its branch ENI, and is seen as {address}");
            self.tell(by_branch && seen == Some(address), &line, say);
        }
        pod.del(&node)?;
        let left = node.report()?.pods.is_empty();
        self.tell(left, "after its DEL nothing of it is left", say);
        Ok(())
    }

    fn dashboard(&mut self, say: Say<'_>) -> Result<(), LabError> {
        if let Some(why) = prometheus::missing(&["prometheus"]) {
            say(&self.paint.title(&format!("\n── the dashboard's queries are left out: {why}")));
            return Ok(());
        }
        say(&self
            .paint
            .title("\n── the dashboard's queries, answered by a real Prometheus that scrapes both nodes"));
        let directory = Path::new(SCRATCH);
        let _gone = std::fs::remove_dir_all(directory);
        std::fs::create_dir_all(directory).map_err(LabError::doing("make a scratch directory"))?;
        let [first, second] = &self.nodes;
        let prometheus = Prometheus::start(first, &[first, second], directory)?;
        let mut open = prometheus::dashboard()?;
        let all = open.len();
        // It has something to tell only at the moment in which a pod waits.
        open.retain(|(_, query)| !query.contains("ipamd_adds_waiting"));
        let left_out = all - open.len();
        let mut refused = Pod::create("refused", "refused")?;
        let mut answered: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for round in 0..5 {
            prometheus::keep_busy(first, &self.fabric, &mut self.pods, &mut refused, round)?;
            let (now, _) = prometheus.ask_until(&mut open, Duration::from_secs(6));
            for (panel, result) in now {
                answered.entry(panel).or_default().extend(result.as_array().into_iter().flatten().cloned());
            }
            if open.is_empty() {
                break;
            }
        }
        for (panel, series) in &answered {
            say(&format!("     {panel:<44} {:>3} series", series.len()));
        }
        for (panel, query) in &open {
            say(&format!("     {panel:<44} nothing for {query}"));
        }
        let line = format!(
            "{} of {} queries have an answer; {left_out} asks for pods that wait now",
            all - left_out - open.len(),
            all - left_out
        );
        self.tell(open.is_empty(), &line, say);
        Ok(())
    }
}

/// Waits for what happens by itself, but not for ever: what has not come is told as it is.
fn patiently(is: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(NOTE_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
