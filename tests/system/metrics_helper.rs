//! The metrics helper: a real daemon beside nodes that a test makes up, behind the API server; and CloudWatch by moto, which checks signatures
//! and the policy, with boto3 reading back what came of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lab::LabError;
use lab::kube_api::{ApiWeather, KubeApi};
use lab::manifests::documents;
use lab::metrics_helper::MetricsHelper;
use lab::node::Node;
use serde_json::{Value, json};

use crate::moto::Stage;
use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("sums_are_right_while_nodes_restart_are_silent_or_talk_nonsense", sums),
    ("a_metrics_helper_with_a_setting_that_cannot_be_does_not_start", unfit),
];

/// Those that need moto.
pub(crate) const WITNESSED: &[Test] = &[
    ("cloudwatch_has_the_figures_of_the_cluster_under_its_name", published),
    ("figures_that_cloudwatch_denies_wait_until_it_takes_them", denied),
];

const MANIFEST: &str = include_str!("../../manifests/metrics-helper.yaml");
/// How long what happens by itself may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const ADDS: &str = "awscni_add_ip_req_count";
const ENIS: &str = "awscni_eni_allocated";

/// moto calls services as signatures do: what IAM calls `cloudwatch` is `monitoring` there.
fn policy() -> String {
    include_str!("../../manifests/iam-policy-metrics-helper.json").replace("cloudwatch:Put", "monitoring:Put")
}

/// A node that a test makes up: what it serves, or nothing.
#[derive(Clone, Default)]
struct MadeUp(Arc<Mutex<Option<String>>>);

impl MadeUp {
    fn new(api: &KubeApi, name: &str) -> Self {
        let made_up = Self::default();
        let page = made_up.clone();
        api.put_agent(name, Arc::new(move || page.page().ok_or_else(|| io::Error::other("nobody there"))));
        made_up
    }

    fn page(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn says(&self, page: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }

    /// So many ADDs since it began, and ENIs.
    fn counts(&self, adds: u32, enis: u32) {
        self.says(Some(format!(
            "# TYPE {ADDS} counter\n{ADDS} {adds}\n# TYPE {ENIS} gauge\n{ENIS} {enis}\n"
        )));
    }
}

/// An API server at the node with the rights of the manifest and the daemon's pod; and the way there.
fn cluster(node: &Node) -> Result<(KubeApi, String), LabError> {
    let (api, kubeconfig) = node.kube_api()?;
    let documents = documents(MANIFEST).map_err(LabError::Otherwise)?;
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole");
    api.bind(role.unwrap_or(&Value::Null));
    api.put_agent("aws-node-real", node.metrics_page());
    Ok((api, kubeconfig.display().to_string()))
}

fn sums() -> Outcome {
    // One ENI is enough for all that comes.
    let settings = [("WARM_IP_TARGET", "3"), ("MINIMUM_IP_TARGET", "8")];
    let setting = Setting::start(&settings)?;
    let node = &setting.node;
    let (api, kubeconfig) = cluster(node)?;
    // A pod of somebody else, which nobody is to ask.
    api.put_pod("other", "1", "node1", &json!({}));
    let made_up = MadeUp::new(&api, "aws-node-made-up");
    made_up.counts(100, 3);
    let switches =
        [("USE_CLOUDWATCH", "no"), ("USE_PROMETHEUS", "yes"), ("IPAMD_KUBECONFIG", kubeconfig.as_str())];
    let helper = MetricsHelper::start(node, &switches)?;
    helper.wait_served(node, ENIS, 4.0)?;
    helper.wait_served(node, ADDS, 100.0)?;

    let pods = setting.pods(0..3)?;
    helper.wait_served(node, ADDS, 103.0)?;
    // A round without one of them changes nothing, and is told.
    made_up.says(None);
    helper.wait_told("pod=\"aws-node-made-up\"")?;
    made_up.says(Some("<html>502 Bad Gateway</html>".to_owned()));
    std::thread::sleep(Duration::from_secs(2));
    let enis = helper.served(node, ENIS);
    ensure!(enis == Some(4.0), "while a node is not heard the sum is {enis:?}, not 4");
    made_up.counts(105, 3);
    helper.wait_served(node, ADDS, 108.0)?;
    // Both begin anew: what they count from there on comes on top.
    made_up.counts(2, 3);
    helper.wait_served(node, ADDS, 110.0)?;
    node.stop_daemon()?;
    node.start_daemon(&settings)?;
    node.wait_ready()?;
    let more = setting.pods(3..5)?;
    helper.wait_served(node, ADDS, 112.0)?;
    api.set_weather(ApiWeather::Away);
    helper.wait_told("the API server does not tell which pods there are")?;
    api.set_weather(ApiWeather::Fair);
    helper.wait_told("the API server tells the pods again")?;
    api.delete_agent("aws-node-made-up");
    helper.wait_served(node, "ipamd_helper_pods", 1.0)?;
    helper.wait_served(node, ADDS, 112.0)?;

    drop((pods, more));
    let told = helper.told()?;
    let once = told.matches("its metrics are not to be had").count();
    ensure!((1..=2).contains(&once), "silence is told {once} times:\n{told}");
    let rights = ["pods list", "pods/proxy get"].map(str::to_owned);
    let used: Vec<String> =
        api.used().iter().map(|(_, resource, verb)| format!("{resource} {verb}")).collect();
    ensure!(used == rights, "{used:?} were used");
    Ok(())
}

fn unfit() -> Outcome {
    let setting = Setting::launch("m5.large")?;
    for (name, text) in
        [("METRIC_UPDATE_INTERVAL", "often"), ("USE_CLOUDWATCH", "maybe"), ("KUBERNETES_SERVICE_HOST", "")]
    {
        let ran = setting.node.tool(&["metrics-helper"], &[(name, text)])?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.code() == Some(64) && said.contains(name), "{name}={text}: {} {said}", ran.status);
    }
    // As the Go version's image starts it.
    let ran =
        setting.node.tool(&["metrics-helper", "--cloudwatch=false", "--prometheus metrics=false"], &[])?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.code() == Some(64) && said.contains("nothing to do"), "{} {said}", ran.status);
    Ok(())
}

/// Starts a helper that tells moto.
fn telling(stage: &Stage, kubeconfig: &str, settings: &[(&str, &str)]) -> Result<MetricsHelper, LabError> {
    let mut all = vec![
        ("IPAMD_KUBECONFIG", kubeconfig),
        ("USE_PROMETHEUS", "yes"),
        ("AWS_ENDPOINT_URL_CLOUDWATCH", stage.moto.endpoint()),
        ("AWS_EC2_ENDPOINT", stage.moto.endpoint()),
        ("AWS_ACCESS_KEY_ID", stage.key.id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", stage.key.secret.as_str()),
    ];
    all.extend(settings);
    MetricsHelper::start(stage.node(), &all)
}

/// A statistic of a figure over all that CloudWatch has of it, and how many data that are.
fn statistic(stage: &mut Stage, figure: &str, cluster: &str, which: &str) -> Result<(f64, f64), LabError> {
    let asked = json!({
        "Namespace": "Kubernetes", "MetricName": figure, "Statistics": [which, "SampleCount"], "Period": 86400,
        "StartTime": "2000-01-01T00:00:00Z", "EndTime": "2100-01-01T00:00:00Z",
        "Dimensions": [{"Name": "CLUSTER_ID", "Value": cluster}], "Unit": "Count",
    });
    let told = stage.moto.cloudwatch("get_metric_statistics", asked)?;
    let data: Vec<&Value> = told["Datapoints"].as_array().into_iter().flatten().collect();
    let values = |key: &str| data.iter().filter_map(|point| point[key].as_f64()).collect::<Vec<f64>>();
    let count = values("SampleCount").iter().sum();
    let value = match which {
        "Sum" => values(which).iter().sum(),
        "Minimum" => values(which).into_iter().fold(f64::INFINITY, f64::min),
        _ => values(which).into_iter().fold(0.0, f64::max),
    };
    Ok((value, count))
}

fn wait_for(stage: &mut Stage, helper: &MetricsHelper, wanted: (&str, &str, &str), value: f64) -> Outcome {
    let (figure, cluster, which) = wanted;
    let until = Instant::now() + PATIENCE;
    loop {
        let (told, count) = statistic(stage, figure, cluster, which)?;
        if told == value {
            return Ok(());
        }
        let log = || helper.told().unwrap_or_default();
        ensure!(
            Instant::now() < until,
            "{which} of {figure} is {told} of {count} data, not {value}:\n{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A stage whose instance is of the cluster `blue`, with the helper's policy, an API server, and a node that is made up.
fn blue(policy: &str) -> Result<(Stage, KubeApi, String, MadeUp), LabError> {
    let mut stage = Stage::start(&[("WARM_IP_TARGET", "3"), ("MINIMUM_IP_TARGET", "3")])?;
    let tags = json!([{"Key": "Name", "Value": "not this"}, {"Key": "CLUSTER_ID", "Value": "blue"}]);
    let instance = stage.node().instance().id.to_string();
    stage.moto.ec2("create_tags", json!({"Resources": [instance], "Tags": tags}))?;
    // The daemon has what it needs by now.
    stage.moto.allow(&stage.key, policy)?;
    let (api, kubeconfig) = cluster(stage.node())?;
    let made_up = MadeUp::new(&api, "aws-node-made-up");
    made_up.counts(1000, 5);
    Ok((stage, api, kubeconfig, made_up))
}

fn published() -> Outcome {
    let (mut stage, _api, kubeconfig, made_up) = blue(&policy())?;
    let helper = telling(&stage, &kubeconfig, &[])?;
    helper.wait_served(stage.node(), ADDS, 1000.0)?;
    let _pods = stage.setting.pods(0..2)?;
    made_up.counts(1010, 6);
    helper.wait_served(stage.node(), ADDS, 1012.0)?;

    wait_for(&mut stage, &helper, ("addReqCount", "blue", "Sum"), 12.0)?;
    wait_for(&mut stage, &helper, ("eniAllocated", "blue", "Maximum"), 7.0)?;
    wait_for(&mut stage, &helper, ("assignIPAddresses", "blue", "Maximum"), 2.0)?;
    let known = stage.moto.cloudwatch("list_metrics", json!({"Namespace": "Kubernetes"}))?;
    let known = known["Metrics"].as_array().map_or(0, Vec::len);
    ensure!((19..=20).contains(&known), "CloudWatch knows {known} metrics");
    // One that begins anew takes nothing away.
    made_up.counts(3, 6);
    wait_for(&mut stage, &helper, ("addReqCount", "blue", "Sum"), 15.0)?;
    let (least, _) = statistic(&mut stage, "addReqCount", "blue", "Minimum")?;
    ensure!((0.0..).contains(&least), "something was taken away: {least}");
    Ok(())
}

fn denied() -> Outcome {
    let nothing = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "iam:GetUser", "Resource": "*"}]});
    let (mut stage, _api, kubeconfig, made_up) = blue(&nothing.to_string())?;
    let helper = telling(&stage, &kubeconfig, &[("AWS_CLUSTER_ID", "green")])?;
    helper.wait_served(stage.node(), ADDS, 1000.0)?;
    helper.wait_told("reason=denied")?;
    made_up.counts(1007, 5);
    helper.wait_served(stage.node(), ADDS, 1007.0)?;
    stage.moto.allow(&stage.key, &policy())?;

    // Also those of before.
    wait_for(&mut stage, &helper, ("addReqCount", "green", "Sum"), 7.0)?;
    helper.wait_told("CloudWatch takes the figures again")?;
    let told = helper.told()?;
    let times = told.matches("CloudWatch does not take the figures").count();
    ensure!(times == 1, "that it is denied is told {times} times:\n{told}");
    let lost = helper.served(stage.node(), "ipamd_helper_points_total{outcome=\"given-up\"}");
    ensure!(lost.is_none(), "{lost:?} data were given up");
    Ok(())
}
