//! What the daemon says of itself, and its files.

use std::time::Duration;

use types::Moment;
use wire::Report;

use super::super::evidence::{Evidence, Look};
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::word;

/// Says what to do about each reason.
const GUIDE: &str = "manifests/guides/troubleshooting.md";
/// The daemon's clock counts on from its start, so it drifts a little from the node's, which is disciplined.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Bits that let others in.
const OTHERS_MAY: u32 = 0o077;
/// Bits that let others write: a directory may be listed by all.
const OTHERS_WRITE: u32 = 0o022;
/// Starts the daemon of this node anew, in a cluster.
pub(super) const RESTART: &str = "kubectl -n kube-system delete pod -l k8s-app=aws-node --field-selector spec.nodeName=${MY_NODE_NAME:-$(hostname)}";

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    match &evidence.live.daemon {
        Look::Seen(report) => says(evidence, report, verdict),
        // Nor is there its directory: it may run well elsewhere.
        Look::Failed(why) if evidence.saved.unread => verdict.failed.push(format!("the daemon: {why}")),
        Look::Failed(why) => verdict.findings.push(
            Finding::new(Code::DaemonDown, "the daemon does not answer: no pod gets an address")
                .seen(why.clone())
                .repair(RESTART),
        ),
        Look::Skipped(why) => verdict.skipped.push(format!("the daemon: {why}")),
    }
    state(evidence, verdict);
    queue(evidence, verdict);
    permissions(evidence, verdict);
}

fn says(evidence: &Evidence, report: &Report, verdict: &mut Verdict) {
    verdict.compared.push(format!(
        "the daemon, version {}, with {} pods on {} ENIs",
        report.version,
        report.pods.len(),
        report.enis.len()
    ));
    for missing in &report.not_ready {
        let what = format!("the daemon serves no pods: it waits for {missing}");
        let status = format!("`ipamd status{}` shows the rest", evidence.run_dir_option());
        let advice = format!(
            "it goes on trying and needs no restart: its log and that status say who does not answer, and {GUIDE} what to do about it"
        );
        verdict.findings.push(Finding::new(Code::DaemonNotReady, what).seen(status).advice(advice));
    }
    for trouble in &report.cloud {
        let advice = format!("it goes on trying; {GUIDE} says what to do about each reason");
        verdict.findings.push(Finding::new(Code::DaemonTrouble, trouble.clone()).advice(advice));
    }
    for waiting in &report.waiting {
        let what = format!("{} waits for an address: {}", waiting.pod, waiting.reason);
        let counts = &report.addresses;
        verdict.findings.push(
            Finding::new(Code::PodWaits, what)
                .seen(format!("for {} s", report.now.since(waiting.since).as_secs()))
                .seen(format!(
                    "{} addresses free, {} cooling, {} assigned, of {} possible",
                    counts.free, counts.cooling, counts.assigned, report.capacity
                ))
                .advice(format!("{GUIDE}#{} says what to do", waiting.reason)),
        );
    }
    let apart = report.now.since(evidence.live.taken).max(evidence.live.taken.since(report.now));
    if apart > CLOCK_SLACK {
        verdict.findings.push(
            Finding::new(Code::ClockJumped, "the node's clock was set after the daemon had started")
                .seen(format!("daemon and node are {} s apart", apart.as_secs()))
                .repair(RESTART),
        );
    }
}

fn state(evidence: &Evidence, verdict: &mut Verdict) {
    let saved = &evidence.saved;
    let path = evidence.run_dir().join("state").display().to_string();
    if saved.has_state {
        verdict.compared.push(format!("{path}, with {} sandboxes", saved.owners.len()));
    } else if saved.troubles.is_empty() {
        let what = "there is no state file: no daemon has run here, or somebody has removed it";
        let finding = Finding::new(Code::StateMissing, what).seen(path.clone());
        let elsewhere = "a daemon that starts writes one, with the pods that the kernel knows; where the daemon has another directory, --run-dir says so";
        verdict.findings.push(finding.repair(RESTART).advice(elsewhere));
    }
    if let Some(damage) = &saved.damage {
        let what = "lines of the state file do not check; the next start sets it aside and asks the kernel";
        let finding = Finding::new(Code::StateDamaged, what).seen(format!("{path}: {damage}"));
        verdict.findings.push(finding.repair(RESTART));
    }
    for name in &saved.set_aside {
        let file = evidence.run_dir().join(name).display().to_string();
        let what =
            format!("a damaged state file was set aside as {name}; pods may be known from the kernel alone");
        let mut finding = Finding::new(Code::StateSetAside, what)
            .seen("a bug, a bad disk, or another hand; keep a copy if it is to be understood");
        // Without a sound state it may be all that is left.
        if saved.knows_owners() {
            finding = finding.repair(format!("rm {}", word(&file)));
        } else {
            finding = finding.advice("keep it until the state is sound again");
        }
        verdict.findings.push(finding);
    }
    let latest = saved.owners.iter().map(|(owner, _)| owner.since).max().unwrap_or(Moment(0));
    if evidence.live.taken != Moment(0) && latest.since(evidence.live.taken) > CLOCK_SLACK {
        let ahead = latest.since(evidence.live.taken).as_secs();
        let what = "the node's clock was set back: pods hold addresses since a time that is to come";
        verdict.findings.push(
            Finding::new(Code::ClockJumped, what)
                .seen(format!("{path}: the latest is {ahead} s ahead"))
                .advice("see that the clock is right now (timedatectl); if it is, nothing is to be done"),
        );
    }
    let serves = evidence.live.daemon.seen().is_some_and(|report| report.not_ready.is_empty());
    if saved.record.is_none() && serves {
        let what = "the daemon has not written down what the host should hold";
        let path = crate::host::record_file(evidence.run_dir()).display().to_string();
        verdict
            .findings
            .push(Finding::new(Code::RecordMissing, what).seen(format!("no {path}")).repair(RESTART));
    }
}

fn queue(evidence: &Evidence, verdict: &mut Verdict) {
    let saved = &evidence.saved;
    let directory = evidence.run_dir().join("delete-queue");
    if !saved.queue.is_empty() {
        let what = "DELs wait in the queue: their addresses stay held until the daemon starts the next time";
        let mut finding = Finding::new(Code::DelsQueued, what);
        for del in saved.queue.iter().take(20) {
            let place = directory.join(wire::queue::file_name(&del.detachment.sandbox));
            finding = finding.seen(format!("{}: {}", del.detachment.pod, place.display()));
        }
        verdict.findings.push(finding.repair(RESTART));
    }
    for name in &saved.queue_foreign {
        let file = directory.join(name).display().to_string();
        let what = format!("{name} in the delete queue is no DEL");
        let finding = Finding::new(Code::QueueForeign, what).seen(file.clone());
        verdict.findings.push(finding.repair(format!("rm {}", word(&file))));
    }
}

fn permissions(evidence: &Evidence, verdict: &mut Verdict) {
    for file in &evidence.live.files {
        let (what, forbidden) = match file.name.as_str() {
            "" | "delete-queue" => ("changed", OTHERS_WRITE),
            "state" | "host.json" | "conflist.json" | "aws-cni.sock" => ("read or changed", OTHERS_MAY),
            _ => continue,
        };
        let path = evidence.run_dir().join(&file.name).display().to_string();
        let path = path.trim_end_matches('/');
        if file.mode & forbidden != 0 {
            verdict.findings.push(
                Finding::new(Code::OpenPermissions, format!("{path} can be {what} by others than root"))
                    .seen(format!("mode {:04o}", file.mode))
                    .repair(format!("chmod {:04o} {}", file.mode & !forbidden, word(path))),
            );
        }
        if file.uid != 0 {
            verdict.findings.push(
                Finding::new(Code::OpenPermissions, format!("{path} does not belong to root"))
                    .seen(format!("user {}", file.uid))
                    .repair(format!("chown 0 {}", word(path))),
            );
        }
    }
}
