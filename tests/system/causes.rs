//! Why something waits or fails: the same word wherever somebody may look for it.

use lab::LabError;
use lab::runtime::Pod;
use types::Reason;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] =
    &[("a_cause_is_the_same_word_in_the_error_the_log_the_metrics_and_the_status", one_word)];

fn one_word() -> Outcome {
    // Room for one pod.
    let setting = Setting::start_on("t3.nano", &[("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "3")])?;
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
    let log = node.log_tail();
    ensure!(log.lines().any(|line| line.contains("reason=node-full")), "no cause in the log: {log}");
    Ok(())
}
