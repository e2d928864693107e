//! Metrics in the OpenMetrics text format: our own, and the Go version's under the names by which dashboards know them.
//!
//! What is counted is counted where it happens; what is a state is read from a [`Report`] when somebody asks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};
use types::Reason;
use wire::{AddressCount, EniReport, Report, Verb};

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

    const fn word(self) -> &'static str {
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FnLabel {
    r#fn: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EniLabel {
    eni: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
}

/// A count under a name of the Go version, which lacks the suffix that OpenMetrics asks for.
#[derive(Debug, Clone, Default)]
struct Unsuffixed(Counter);

impl EncodeMetric for Unsuffixed {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Unsuffixed {
    const TYPE: MetricType = MetricType::Unknown;
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
    agent_times: Times<CallLabels>,
    go_adds: Unsuffixed,
    go_dels: Family<ReasonLabel, Unsuffixed>,
    go_without_address: Unsuffixed,
    go_calls: Family<FnLabel, Unsuffixed>,
    go_call_errors: Family<FnLabel, Unsuffixed>,
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
            agent_times: times(),
            go_adds: Unsuffixed::default(),
            go_dels: Family::default(),
            go_without_address: Unsuffixed::default(),
            go_calls: Family::default(),
            go_call_errors: Family::default(),
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
        all.register("awscni_add_ip_req_count", "ADDs", self.go_adds.clone());
        all.register("awscni_del_ip_req_count", "DELs", self.go_dels.clone());
        all.register(
            "awscni_no_available_ip_addresses",
            "ADDs that ended without an address",
            self.go_without_address.clone(),
        );
        all.register("awscni_ec2api_req_count", "Calls to EC2", self.go_calls.clone());
        all.register("awscni_ec2api_error_count", "Calls to EC2 that failed", self.go_call_errors.clone());
        all
    }

    /// A request was answered: why it failed, if it did, and how long it took.
    pub fn answered(&self, asked: Asked, failure: Option<Reason>, took: Duration) {
        let (verb, reason) = (asked.word(), failure.map_or(NONE, Reason::word));
        self.requests.get_or_create(&RequestLabels { verb, reason }).inc();
        let outcome = if failure.is_some() { "failed" } else { "done" };
        self.request_times.get_or_create(&TimeLabels { verb, outcome }).observe(took.as_secs_f64());
        match asked {
            Asked::Add => {
                self.go_adds.0.inc();
                if failure.is_some_and(Reason::is_shortage) {
                    self.go_without_address.0.inc();
                }
            }
            Asked::Del => drop(self.go_dels.get_or_create(&ReasonLabel { reason: "PodDeleted" }).0.inc()),
            Asked::Check | Asked::Gc | Asked::Status | Asked::Report => {}
        }
    }

    /// An ADD has waited for an address and got one, or has given up.
    pub fn waited(&self, reason: Reason, time: Duration) {
        self.waits.get_or_create(&ReasonLabel { reason: reason.word() }).observe(time.as_secs_f64());
    }

    /// EC2 was called: why it failed, if it did, and how long it took.
    pub fn called(&self, action: &'static str, failure: Option<Reason>, took: Duration) {
        let labels = CallLabels { action, reason: failure.map_or(NONE, Reason::word) };
        self.call_times.get_or_create(&labels).observe(took.as_secs_f64());
        self.calls.get_or_create(&labels).inc();
        self.go_calls.get_or_create(&FnLabel { r#fn: action }).0.inc();
        if failure.is_some() {
            self.go_call_errors.get_or_create(&FnLabel { r#fn: action }).0.inc();
        }
    }

    /// The network policy agent was told something: why it failed, if it did, and how long it took.
    pub(crate) fn told_agent(&self, method: &'static str, failure: Option<Reason>, took: Duration) {
        let action = method.rsplit('/').next().unwrap_or(method);
        let labels = CallLabels { action, reason: failure.map_or(NONE, Reason::word) };
        self.agent_times.get_or_create(&labels).observe(took.as_secs_f64());
        self.agent_calls.get_or_create(&labels).inc();
    }

    /// Something that others had changed was put back.
    pub fn repaired(&self, what: &'static str) {
        self.repairs.get_or_create(&WhatLabel { what }).inc();
    }

    /// Everything as text, with the state that a report tells.
    ///
    /// # Errors
    /// None that a String could give.
    pub fn text(&self, report: &Report) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &state(report))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// What a report tells.
fn state(report: &Report) -> Registry {
    let mut all = Registry::default();
    let mut gauge = |name: &str, help: &str, value: u32| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.into());
        all.register(name, help, gauge);
    };
    let AddressCount { free, reserved, assigned, cooling } = report.addresses;
    let prefixes = report.enis.iter().map(|eni| eni.prefixes).sum();
    gauge("ipamd_ready", "Whether ADDs are served", u32::from(report.not_ready.is_empty()));
    gauge("ipamd_addresses_possible", "The most addresses for pods that this node can hold", report.capacity);
    gauge("awscni_eni_allocated", "ENIs", number(report.enis.len()));
    gauge("awscni_total_ip_addresses", "Addresses for pods", report.addresses.total());
    gauge("awscni_assigned_ip_addresses", "Addresses that pods have", assigned);
    gauge("awscni_total_ipv4_prefixes", "Prefixes", prefixes);
    gauge("awscni_ip_max", "The most addresses for pods that this node can hold", report.capacity);
    let states = Family::<StateLabel, Gauge>::default();
    for (state, count) in
        [("free", free), ("reserved", reserved), ("assigned", assigned), ("cooling", cooling)]
    {
        states.get_or_create(&StateLabel { state }).set(count.into());
    }
    all.register("ipamd_addresses", "Addresses for pods, by state", states);
    let waiting = Family::<ReasonLabel, Gauge>::default();
    for wait in &report.waiting {
        waiting.get_or_create(&ReasonLabel { reason: wait.reason.word() }).inc();
    }
    all.register("ipamd_adds_waiting", "ADDs that wait for an address now, by what for", waiting);
    let mut per_eni = |name: &str, help: &str, of: &dyn Fn(&EniReport) -> u32| {
        let family = Family::<EniLabel, Gauge>::default();
        for eni in &report.enis {
            family.get_or_create(&EniLabel { eni: eni.id.to_string() }).set(of(eni).into());
        }
        all.register(name, help, family);
    };
    per_eni("awscni_assigned_ip_per_eni", "Addresses that pods have, by ENI", &|eni| eni.addresses.assigned);
    per_eni("ipamd_ipv6_prefixes", "IPv6 prefixes, by ENI", &|eni| eni.ipv6_prefixes);
    per_eni("ipamd_ipv6_addresses", "IPv6 addresses that pods have, by ENI", &|eni| eni.ipv6_assigned);
    let reused: Counter = Counter::default();
    reused.inc_by(report.reused_early);
    all.register("ipamd_addresses_reused_early", "Addresses given out before they had cooled", reused);
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { version: report.version.clone() }).set(1);
    all.register("awscni_build_info", "The daemon that runs", build);
    all
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use types::Moment;

    use super::*;
    use crate::status::blank;

    fn text(metrics: &Metrics) -> String {
        metrics.text(&blank(Moment(0))).unwrap()
    }

    #[test]
    fn every_reason_is_a_label_of_the_adds_that_failed_and_of_those_that_waited() {
        let metrics = Metrics::default();

        for reason in Reason::ALL {
            metrics.answered(Asked::Add, Some(*reason), Duration::from_millis(3));
            metrics.waited(*reason, Duration::from_millis(3));
        }

        let text = text(&metrics);
        for reason in Reason::ALL {
            let failed = format!("ipamd_requests_total{{verb=\"add\",reason=\"{reason}\"}} 1\n");
            assert!(text.contains(&failed), "{failed} is not in {text}");
            let waited = format!("ipamd_add_wait_seconds_count{{reason=\"{reason}\"}} 1\n");
            assert!(text.contains(&waited), "{waited} is not in {text}");
        }
        let short = Reason::ALL.iter().filter(|reason| reason.is_shortage()).count();
        assert!(text.contains(&format!("\nawscni_no_available_ip_addresses {short}\n")), "{text}");
    }

    #[test]
    fn names_of_the_go_version_carry_no_suffix() {
        let metrics = Metrics::default();

        metrics.answered(Asked::Add, None, Duration::ZERO);
        metrics.answered(Asked::Del, None, Duration::ZERO);
        metrics.called("AssignPrivateIpAddresses", Some(Reason::Throttled), Duration::ZERO);

        let text = text(&metrics);
        for line in [
            "awscni_add_ip_req_count 1",
            "awscni_del_ip_req_count{reason=\"PodDeleted\"} 1",
            "awscni_ec2api_req_count{fn=\"AssignPrivateIpAddresses\"} 1",
            "awscni_ec2api_error_count{fn=\"AssignPrivateIpAddresses\"} 1",
            "ipamd_ec2_calls_total{action=\"AssignPrivateIpAddresses\",reason=\"throttled\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn a_state_is_what_the_report_says() {
        let addresses = AddressCount { free: 5, reserved: 1, assigned: 7, cooling: 2 };
        let report = Report { addresses, capacity: 27, ..blank(Moment(0)) };

        let text = Metrics::default().text(&report).unwrap();

        for line in [
            "ipamd_addresses{state=\"cooling\"} 2",
            "awscni_total_ip_addresses 15",
            "awscni_assigned_ip_addresses 7",
            "ipamd_addresses_possible 27",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
