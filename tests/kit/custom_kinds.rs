//! What of other people's resources our manifests use: the Prometheus operator's, and the Go version's ENIConfig. Their own definitions have much
//! more; a field that is not here is one that nobody has compared with those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Group and version of the Prometheus operator's resources.
pub(crate) const MONITORING: &str = "monitoring.coreos.com/v1";

/// Where ENIs for pods go.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EniConfig {
    subnet: String,
    security_groups: Option<Vec<String>>,
}

/// Whose metrics are read, and how often.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PodMonitor {
    job_label: Option<String>,
    namespace_selector: Option<NamespaceSelector>,
    selector: Selector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespaceSelector {
    match_names: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

/// The port by its name: a number has a field of its own, which is no more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: Option<String>,
    interval: Option<Time>,
    scrape_timeout: Option<Time>,
    relabelings: Option<Vec<Relabeling>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    action: Option<String>,
    modulus: Option<u64>,
    regex: Option<String>,
    replacement: Option<String>,
    separator: Option<String>,
    source_labels: Option<Vec<String>>,
    target_label: Option<String>,
}

/// Alerts in groups.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PrometheusRule {
    groups: Vec<Group>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    r#for: Option<Time>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A time as Prometheus writes it: numbers with units, the longer unit first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Time(String);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut rest = text.as_str();
        for unit in ["y", "w", "d", "h", "m", "s", "ms"] {
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let is_longer = unit == "m" && after.starts_with("ms");
            if let Some(next) = after.strip_prefix(unit).filter(|_| after.len() < rest.len() && !is_longer) {
                rest = next;
            }
        }
        if text.is_empty() || !(rest.is_empty() || text == "0") {
            Err(format!("{text:?} is no time"))
        } else {
            Ok(Self(text))
        }
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.0
    }
}
