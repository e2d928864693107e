//! Metrics: our own, and the Go version's under the names by which dashboards know them.
//!
//! What is counted is counted where it happens; what is a state is read from a [`Report`] when somebody asks.

mod format;
mod original;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use types::Reason;
use wire::{Report, Verb};

use crate::cloud::CloudError;
use original::Original;

pub(crate) use format::Format;
pub(crate) use original::{InProgress, Undeleted, Untyped, Work};

/// Label of what went well.
const NONE: &str = "none";
/// Bounds of the times that are counted, in seconds: an ADD takes milliseconds, or waits for EC2, or up to its deadline.
const SECONDS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// What a caller asked for, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asked {
    /// ADD.
    Add,
    /// DEL.
    Del,
    /// CHECK.
    Check,
    /// GC.
    Gc,
    /// STATUS.
    Status,
    /// The report of `ipamd status`.
    Report,
}

impl Asked {
    /// What a request asks for.
    #[must_use]
    pub const fn of(verb: &Verb) -> Self {
        match verb {
            Verb::Add(_) => Self::Add,
            Verb::Del(_) => Self::Del,
            Verb::Check(_) => Self::Check,
            Verb::Gc { .. } => Self::Gc,
            Verb::Status => Self::Status,
            Verb::Report => Self::Report,
        }
    }

    /// As it is in labels and in the log.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Del => "del",
            Self::Check => "check",
            Self::Gc => "gc",
            Self::Status => "status",
            Self::Report => "report",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    action: &'static str,
    reason: &'static str,
}

/// What became of something that was written to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterWrite {
    /// It is there.
    Done,
    /// It was refused for good.
    Refused,
    /// There was no answer, or the word to come later.
    Away,
    /// There was no room for it.
    Dropped,
}

impl ClusterWrite {
    const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Away => "away",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    what: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

type Times<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

fn times<Labels: Clone + std::hash::Hash + Eq>() -> Times<Labels> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// Everything that is counted. Copies count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_times: Times<TimeLabels>,
    waits: Times<ReasonLabel>,
    calls: Family<CallLabels, Counter>,
    call_times: Times<CallLabels>,
    repairs: Family<WhatLabel, Counter>,
    agent_calls: Family<CallLabels, Counter>,
    cluster_writes: Family<ClusterLabels, Counter>,
    agent_times: Times<CallLabels>,
    original: Original,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            request_times: times(),
            waits: times(),
            calls: Family::default(),
            call_times: times(),
            repairs: Family::default(),
            agent_calls: Family::default(),
            cluster_writes: Family::default(),
            agent_times: times(),
            original: Original::default(),
        };
        metrics.registry = Arc::new(metrics.registered());
        metrics
    }
}

impl Metrics {
    fn registered(&self) -> Registry {
        let mut all = Registry::default();
        let seconds = || Unit::Seconds;
        all.register(
            "ipamd_requests",
            "Requests of the plugin by verb and reason; the reason of those that went well is none",
            self.requests.clone(),
        );
        all.register_with_unit(
            "ipamd_request_duration",
            "Time from a request to its answer, waiting for an address included",
            seconds(),
            self.request_times.clone(),
        );
        all.register_with_unit(
            "ipamd_add_wait",
            "Time that ADDs waited for an address, by what they waited for last; those that found one at once are not in it",
            seconds(),
            self.waits.clone(),
        );
        all.register(
            "ipamd_ec2_calls",
            "Calls to EC2 by action and reason; attempts that the SDK repeats count once",
            self.calls.clone(),
        );
        all.register_with_unit(
            "ipamd_ec2_call_duration",
            "Time from a call to EC2 to its answer",
            seconds(),
            self.call_times.clone(),
        );
        all.register(
            "ipamd_repairs",
            "Changes by others that were undone, by what they changed",
            self.repairs.clone(),
        );
        all.register(
            "ipamd_cluster_writes",
            "Requests that write to the Kubernetes API, by what and outcome",
            self.cluster_writes.clone(),
        );
        all.register(
            "ipamd_policy_agent_calls",
            "Calls to the network policy agent by action and reason",
            self.agent_calls.clone(),
        );
        all.register_with_unit(
            "ipamd_policy_agent_call_duration",
            "Time from a call to the network policy agent to its answer",
            seconds(),
            self.agent_times.clone(),
        );
        self.original.register(&mut all);
        all
    }

    /// A request was answered: why it failed, if it did, and how long it took.
    pub fn answered(&self, asked: Asked, failure: Option<Reason>, took: Duration) {
        let (verb, reason) = (asked.word(), failure.map_or(NONE, Reason::word));
        self.requests.get_or_create(&RequestLabels { verb, reason }).inc();
        let outcome = if failure.is_some() { "failed" } else { "done" };
        self.request_times.get_or_create(&TimeLabels { verb, outcome }).observe(took.as_secs_f64());
        match asked {
            Asked::Add => self.original.added(failure),
            Asked::Del => self.original.deleted(),
            Asked::Check | Asked::Gc | Asked::Status | Asked::Report => {}
        }
    }

    /// An ADD has failed; `wired`: it was at work with a branch ENI. One that was not is of such a pod where it waited for what that takes.
    pub(crate) fn failed_of_branch(&self, failure: Reason, wired: bool) {
        if wired || matches!(failure, Reason::NoBranchEni | Reason::NoTrunk) {
            self.original.branch_failed();
        }
    }

    /// An ADD has waited for an address and got one, or has given up.
    pub fn waited(&self, reason: Reason, time: Duration) {
        self.waits.get_or_create(&ReasonLabel { reason: reason.word() }).observe(time.as_secs_f64());
    }

    /// EC2 was called: why it failed, if it did, and how long it took.
    pub fn called(&self, action: &'static str, failure: Option<&CloudError>, took: Duration) {
        let reason = failure.map_or(NONE, |error| error.kind().reason().word());
        let labels = CallLabels { action, reason };
        self.call_times.get_or_create(&labels).observe(took.as_secs_f64());
        self.calls.get_or_create(&labels).inc();
        self.original.called(action, failure, took);
    }

    /// Instance metadata was asked: why it did not answer, if it did not, and how long it took.
    pub(crate) fn asked_metadata(&self, failure: Option<&CloudError>, took: Duration) {
        self.original.asked_metadata(failure, took);
    }

    /// Work on the pool begins; it goes on until what this gives is dropped.
    #[must_use]
    pub(crate) fn begin(&self, work: Work) -> InProgress {
        self.original.begin(work)
    }

    /// Work on the pool came to nothing.
    pub(crate) fn work_failed(&self, work: Work) {
        self.original.work_failed(work);
    }

    /// An ENI that was to be deleted is still there.
    pub(crate) fn undeleted(&self, which: Undeleted, error: &CloudError) {
        self.original.undeleted(which, error);
    }

    /// It is known who this node is.
    pub(crate) fn initialised(&self, took: Duration) {
        self.original.initialised(took);
    }

    /// An ADD would succeed, for the first time since the daemon started.
    pub(crate) fn started(&self, with_api_server: bool, took: Duration) {
        self.original.started(with_api_server, took);
    }

    /// The table that marks connections was gone over, or could not be.
    pub(crate) fn marked(&self, done: bool) {
        self.original.marked(done);
    }

    /// The network policy agent was told something: why it failed, if it did, and how long it took.
    pub(crate) fn told_agent(&self, method: &'static str, failure: Option<Reason>, took: Duration) {
        let action = method.rsplit('/').next().unwrap_or(method);
        let labels = CallLabels { action, reason: failure.map_or(NONE, Reason::word) };
        self.agent_times.get_or_create(&labels).observe(took.as_secs_f64());
        self.agent_calls.get_or_create(&labels).inc();
    }

    /// Something was written to the API server, or was to be.
    pub(crate) fn wrote_to_cluster(&self, what: &'static str, outcome: ClusterWrite) {
        let labels = ClusterLabels { what, outcome: outcome.word() };
        self.cluster_writes.get_or_create(&labels).inc();
    }

    /// Something that others had changed was put back.
    pub fn repaired(&self, what: &'static str) {
        self.repairs.get_or_create(&WhatLabel { what }).inc();
    }

    /// Everything in OpenMetrics' text, with the state that a report tells.
    ///
    /// # Errors
    /// None that a String could give.
    pub fn text(&self, report: &Report) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &state::registry(report))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
