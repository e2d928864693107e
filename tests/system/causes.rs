//! Why something waits or fails: the same word wherever somebody may look for it.

use lab::LabError;
use lab::runtime::Pod;
use serde_json::json;
use types::Reason;

use crate::support::{Outcome, Setting, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] =
    &[("a_cause_is_the_same_word_in_the_error_the_log_the_metrics_the_status_and_the_pods_event", one_word)];

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
