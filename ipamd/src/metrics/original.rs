//! What the Go version counts, under its names and with its labels, for dashboards, alerts and its helper for CloudWatch.
//!
//! `original.tsv` has all of its names: a test compares them with what is served.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeGaugeValue, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{Atomic, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use types::Reason;

use super::{ReasonLabel, Times, times};
use crate::cloud::CloudError;

/// Status of a call that went well, as the Go version tells it.
const OK_STATUS: &str = "200";
/// Name of every question to instance metadata.
const METADATA: &str = "GetMetadata";
/// What fails of a pod with a branch ENI. The Go version counts its tries to have a trunk, which is the controller's work and no call here.
const ADD_OF_BRANCH: FnLabel = FnLabel { r#fn: "AddNetwork" };

/// Work on the node's addresses, by the Go version's words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Finding out who this node is.
    Init,
    /// A new ENI.
    Eni,
    /// Addresses or prefixes for an ENI that is there.
    Addresses,
    /// Giving an ENI back.
    FreeEni,
    /// Giving addresses or prefixes back.
    FreeAddresses,
    /// A look at the ENIs.
    Look,
}

impl Work {
    const fn word(self) -> &'static str {
        match self {
            Self::Init => "nodeInit",
            Self::Eni | Self::Addresses => "increaseDatastorePool",
            Self::FreeEni | Self::FreeAddresses => "decreaseDatastorePool",
            Self::Look => "nodeIPPoolReconcile",
        }
    }

    /// The word for its failure; a start that has to be tried again is none.
    const fn failure(self) -> Option<&'static str> {
        match self {
            Self::Init => None,
            Self::Eni => Some("increaseIPPoolAllocENI"),
            Self::Addresses => Some("increaseIPPoolAllocIPAddressesFailed"),
            Self::FreeEni => Some("decreaseIPPoolFreeENIFailed"),
            Self::FreeAddresses => Some("decreaseIPPool"),
            Self::Look => Some("reconcileFailedGetENIs"),
        }
    }
}

/// An ENI that was to be deleted and is still there, by the Go version's words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undeleted {
    /// It was made and could not be attached.
    New,
    /// It was given back.
    Freed,
    /// Somebody has left it behind.
    Leaked,
}

impl Undeleted {
    const fn word(self) -> &'static str {
        match self {
            Self::New => "AllocENIDeleteErr",
            Self::Freed => "FreeENIDeleteErr",
            Self::Leaked => "cleanUpLeakedENIDeleteErr",
        }
    }
}

/// A number of which it is not said what it is.
#[derive(Debug)]
pub(crate) struct Untyped<M>(pub(crate) M);

impl<M: EncodeMetric> EncodeMetric for Untyped<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

/// A count under a name of the Go version, which lacks the suffix that OpenMetrics asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsuffixed<C = Counter>(pub(super) C);

/// The same for what is no whole number.
type Fraction = Unsuffixed<Counter<f64, AtomicU64>>;

impl<N, A> EncodeMetric for Unsuffixed<Counter<N, A>>
where
    N: EncodeGaugeValue,
    A: Atomic<N>,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<C> TypedMetric for Unsuffixed<C> {
    const TYPE: MetricType = MetricType::Unknown;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FnLabel {
    pub(super) r#fn: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FnErrorLabels {
    r#fn: &'static str,
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiErrorLabels {
    api: &'static str,
    error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    api: &'static str,
    error: &'static str,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SuccessLabel {
    success: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartLabels {
    success: &'static str,
    with_api_server: &'static str,
    failure_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    backend: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Everything that is counted as the Go version counts it.
#[derive(Debug, Clone)]
pub(super) struct Original {
    adds: Unsuffixed,
    dels: Family<ReasonLabel, Unsuffixed>,
    without_address: Unsuffixed,
    branch_errors: Family<FnLabel, Unsuffixed>,
    calls: Family<FnLabel, Unsuffixed>,
    call_errors: Family<FnLabel, Unsuffixed>,
    api_errors: Family<ApiErrorLabels, Unsuffixed>,
    api_ms: Family<ApiLabels, Fraction>,
    api_count: Family<ApiLabels, Unsuffixed>,
    errors: Family<FnLabel, Unsuffixed>,
    undeleted: Family<FnErrorLabels, Unsuffixed>,
    in_progress: Family<FnLabel, Gauge>,
    starts: Times<StartLabels>,
    inits: Times<SuccessLabel>,
    connmark: Family<BackendLabel, Gauge>,
    connmark_runs: Family<ResultLabel, Counter>,
}

impl Default for Original {
    fn default() -> Self {
        let connmark_runs = Family::<ResultLabel, Counter>::default();
        // Both are there from the start, as in the Go version: an alert on a rate needs the nought.
        for result in ["success", "error"] {
            drop(connmark_runs.get_or_create(&ResultLabel { result }));
        }
        let branch_errors = Family::<FnLabel, Unsuffixed>::default();
        drop(branch_errors.get_or_create(&ADD_OF_BRANCH));
        Self {
            adds: Unsuffixed::default(),
            dels: Family::default(),
            without_address: Unsuffixed::default(),
            branch_errors,
            calls: Family::default(),
            call_errors: Family::default(),
            api_errors: Family::default(),
            api_ms: Family::default(),
            api_count: Family::default(),
            errors: Family::default(),
            undeleted: Family::default(),
            in_progress: Family::default(),
            starts: times::<StartLabels>(),
            inits: times::<SuccessLabel>(),
            connmark: Family::default(),
            connmark_runs,
        }
    }
}

impl Original {
    pub(super) fn register(&self, all: &mut Registry) {
        all.register("awscni_add_ip_req_count", "ADDs", self.adds.clone());
        all.register("awscni_del_ip_req_count", "DELs", self.dels.clone());
        all.register(
            "awscni_no_available_ip_addresses",
            "ADDs that ended without an address",
            self.without_address.clone(),
        );
        all.register(
            "awscni_pod_eni_error_count",
            "ADDs of pods with security groups of their own that failed",
            self.branch_errors.clone(),
        );
        all.register("awscni_ec2api_req_count", "Calls to EC2", self.calls.clone());
        all.register("awscni_ec2api_error_count", "Calls to EC2 that failed", self.call_errors.clone());
        all.register(
            "awscni_aws_api_error_count",
            "Failed calls to EC2 and instance metadata, by EC2's code or our reason",
            self.api_errors.clone(),
        );
        // A summary without quantiles, as the Go version's, is these two, one after the other (`format.rs`).
        all.register(
            "awscni_aws_api_latency_ms_sum",
            "Milliseconds that calls to EC2 and instance metadata took, together",
            self.api_ms.clone(),
        );
        all.register("awscni_aws_api_latency_ms_count", "How many these were", self.api_count.clone());
        all.register("awscni_ipamd_error_count", "Work on the pool that failed", self.errors.clone());
        all.register(
            "awscni_aws_utils_error_count",
            "ENIs that could not be deleted, by why they were to be",
            self.undeleted.clone(),
        );
        all.register(
            "awscni_ipamd_action_inprogress",
            "Work on the pool that goes on now",
            self.in_progress.clone(),
        );
        all.register(
            "awscni_ipamd_startup_duration_seconds",
            "Time from the daemon's start until an ADD would succeed",
            self.starts.clone(),
        );
        all.register(
            "awscni_ipamd_node_initialization_duration_seconds",
            "Time that it took to find out who this node is",
            self.inits.clone(),
        );
        all.register(
            "awscni_connmark_backend",
            "What marks connections of the primary ENI",
            self.connmark.clone(),
        );
        all.register(
            "awscni_connmark_reconcile",
            "Rounds over the nftables table that marks connections",
            self.connmark_runs.clone(),
        );
    }

    pub(super) fn added(&self, failure: Option<Reason>) {
        self.adds.0.inc();
        if failure.is_some_and(Reason::is_shortage) {
            self.without_address.0.inc();
        }
    }

    pub(super) fn branch_failed(&self) {
        self.branch_errors.get_or_create(&ADD_OF_BRANCH).0.inc();
    }

    pub(super) fn deleted(&self) {
        self.dels.get_or_create(&ReasonLabel { reason: "PodDeleted" }).0.inc();
    }

    pub(super) fn called(&self, action: &'static str, failure: Option<&CloudError>, took: Duration) {
        self.calls.get_or_create(&FnLabel { r#fn: action }).0.inc();
        if failure.is_some() {
            self.call_errors.get_or_create(&FnLabel { r#fn: action }).0.inc();
        }
        self.api(action, failure, took);
    }

    pub(super) fn asked_metadata(&self, failure: Option<&CloudError>, took: Duration) {
        self.api(METADATA, failure, took);
    }

    fn api(&self, api: &'static str, failure: Option<&CloudError>, took: Duration) {
        let labels = ApiLabels {
            api,
            error: if failure.is_some() { "true" } else { "false" },
            status: failure.map_or(OK_STATUS, CloudError::code).to_owned(),
        };
        self.api_ms.get_or_create(&labels).0.inc_by(took.as_secs_f64() * 1000.0);
        self.api_count.get_or_create(&labels).0.inc();
        if let Some(failure) = failure {
            let code = Some(failure.code()).filter(|code| !code.is_empty());
            let error = code.unwrap_or_else(|| failure.kind().reason().word()).to_owned();
            self.api_errors.get_or_create(&ApiErrorLabels { api, error }).0.inc();
        }
    }

    /// Work begins; it goes on until what this gives is dropped.
    pub(super) fn begin(&self, work: Work) -> InProgress {
        let gauge = self.in_progress.get_or_create_owned(&FnLabel { r#fn: work.word() });
        gauge.inc();
        InProgress(gauge)
    }

    pub(super) fn work_failed(&self, work: Work) {
        if let Some(word) = work.failure() {
            self.errors.get_or_create(&FnLabel { r#fn: word }).0.inc();
        }
    }

    pub(super) fn undeleted(&self, which: Undeleted, error: &CloudError) {
        let labels = FnErrorLabels { r#fn: which.word(), error: error.kind().reason().word() };
        self.undeleted.get_or_create(&labels).0.inc();
    }

    pub(super) fn initialised(&self, took: Duration) {
        self.inits.get_or_create(&SuccessLabel { success: "true" }).observe(took.as_secs_f64());
    }

    pub(super) fn started(&self, with_api_server: bool, took: Duration) {
        let with_api_server = if with_api_server { "true" } else { "false" };
        let labels = StartLabels { success: "true", with_api_server, failure_reason: "" };
        self.starts.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn marked(&self, done: bool) {
        if done {
            self.connmark.get_or_create(&BackendLabel { backend: "nftables" }).set(1);
        }
        let result = if done { "success" } else { "error" };
        self.connmark_runs.get_or_create(&ResultLabel { result }).inc();
    }
}

/// Work that goes on.
#[derive(Debug)]
pub(crate) struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}
