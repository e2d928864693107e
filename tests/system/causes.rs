//! Why something waits or fails: the same word wherever somebody may look for it.

use lab::LabError;
use lab::runtime::Pod;
use serde_json::json;
use types::Reason;

use crate::support::{Outcome, Setting, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_cause_is_the_same_word_in_the_error_the_log_the_metrics_the_status_and_the_pods_event", one_word),
    ("without_roots_of_trust_ec2_is_not_asked_and_what_to_do_is_told", no_roots),
];

fn one_word() -> Outcome {
    // Room for one pod.
    let setting = Setting::launch("t3.nano")?;
    let (api, kubeconfig) = setting.node.kube_api()?;
    let kubeconfig = kubeconfig.display().to_string();
    setting.node.start_daemon(&[
        ("MAX_ENI", "1"),
        ("IPAMD_ADD_TIMEOUT_SECONDS", "5"),
        ("IPAMD_KUBECONFIG", &kubeconfig),
        ("MY_NODE_NAME", "node1"),
    ])?;
    setting.node.wait_ready()?;
    let _pods = setting.pods(0..1)?;
    let node = &setting.node;
    let refused = Pod::create("late", "late")?;

    let answer = std::thread::scope(|scope| {
        let adding = scope.spawn(|| refused.call(node, "ADD"));
        let waits = node.wait_for_soon("one ADD waits for room", |report| {
            report.waiting.iter().any(|waiting| waiting.reason == Reason::NodeFull)
        });
        let metrics = node.metrics();
        let answer = adding.join().map_err(|_panic| LabError::Otherwise("the ADD panicked".to_owned()))??;
        waits?;
        let waiting = "ipamd_adds_waiting{reason=\"node-full\"} 1";
        let metrics = metrics?;
        ensure!(metrics.contains(waiting), "no {waiting} in {metrics}");
        Ok(answer)
    })?;

    ensure!(!answer.success && answer.stdout["code"] == 11, "a second pod got {}", answer.stdout);
    ensure!(answer.stdout.to_string().contains("node-full"), "no cause in {}", answer.stdout);
    let metrics = node.metrics()?;
    for line in [
        "ipamd_requests_total{verb=\"add\",reason=\"node-full\"} 1",
        "ipamd_requests_total{verb=\"add\",reason=\"none\"} 1",
        "ipamd_add_wait_seconds_count{reason=\"node-full\"} 1",
        "awscni_no_available_ip_addresses 1",
        "awscni_assigned_ip_addresses 1",
        "ipamd_ready 1",
    ] {
        ensure!(metrics.lines().any(|l| l == line), "no {line} in {metrics}");
    }
    eventually("an event that is counted up", || {
        api.events().iter().any(|event| event["series"]["count"] == 2)
    })?;
    let events = api.events();
    let event = &events[0];
    ensure!(events.len() == 1 && event["reason"] == "node-full", "the pod's events: {events:?}");
    let regarding = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "late", "uid": "uid-of-late"});
    ensure!(event["regarding"] == regarding, "{event}");
    let note = event["note"].as_str().unwrap_or_default();
    ensure!(note.contains("node-full") && note.contains("1 assigned"), "a note without numbers: {note}");
    let log = node.log_tail();
    ensure!(log.lines().any(|line| line.contains("reason=node-full")), "no cause in the log: {log}");
    Ok(())
}

fn no_roots() -> Outcome {
    let setting = Setting::launch("m5.large")?;
    let node = &setting.node;
    let (none, patience) = (("SSL_CERT_FILE", "/dev/null"), ("IPAMD_ADD_TIMEOUT_SECONDS", "3"));
    node.start_daemon(&[none, patience, ("AWS_EC2_ENDPOINT", "https://127.0.0.1:8500")])?;
    node.wait_listening()?;
    let says = |line: &String| line.starts_with("no-roots: ") && line.contains("SSL_CERT_FILE");
    node.wait_for("what to do", |report| report.cloud.iter().any(says))?;

    let answer = Pod::create("early", "early")?.call(node, "ADD")?;
    ensure!(!answer.success && answer.stdout["code"] == 11, "{}", answer.stdout);
    ensure!(answer.stdout.to_string().contains("no-roots"), "no cause in {}", answer.stdout);
    let metrics = node.metrics()?;
    let counted = |line: &str| line.starts_with("ipamd_ec2_calls_total") && line.contains("no-roots");
    ensure!(metrics.lines().any(counted), "it is not counted: {metrics}");
    let told = node.told()?;
    ensure!(!told.contains("panicked") && told.contains("reason=no-roots"), "{told}");
    // Who needs none is served.
    node.stop_daemon()?;
    node.start_daemon(&[none, patience])?;
    node.wait_ready()?;
    let pods = setting.pods(0..2)?;
    setting.accounts_for(&pods).map(drop)
}
