//! The dashboard and the alerts against a real daemon's metrics, with `promtool` and a real Prometheus as witnesses where there is one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::LabError;
use lab::manifests::documents;
use lab::node::Node;
use lab::policy_agent::PolicyAgent;
use lab::prometheus::{self, Prometheus};
use lab::promql::{self, Wanted};
use lab::runtime::Pod;
use serde_json::Value;
use types::Reason;
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[("queries_of_dashboard_and_alerts_ask_for_what_a_daemon_tells", known)];

/// Those that need Prometheus' own programs.
pub(crate) const WITNESSED: &[Test] = &[
    ("promtool_takes_the_alerts_and_the_queries_of_the_dashboard", checked),
    ("alerts_come_when_they_should_and_not_before", alerts),
    ("promtool_reads_what_those_get_who_do_not_ask_for_openmetrics", classic),
    ("a_real_prometheus_answers_every_query_of_the_dashboard", answered),
];

/// Labels that Prometheus gives to whatever it scrapes.
const OF_TARGETS: [&str; 4] = ["instance", "job", "namespace", "pod"];
/// How long what happens by itself may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// In the lab's own `/run`.
const SCRATCH: &str = "/run/lab/monitoring";

/// Why there is nobody to ask.
pub(crate) fn missing() -> Option<String> {
    prometheus::missing(&["promtool", "prometheus"])
}

fn read(path: &str) -> Result<String, LabError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).map_err(LabError::doing(format!("read {}", path.display())))
}

/// The queries of the dashboard by panel.
fn dashboard() -> Result<Vec<(String, String)>, LabError> {
    let queries = prometheus::dashboard()?;
    ensure!(queries.len() > 15, "{} queries", queries.len());
    Ok(queries)
}

/// The alerts' groups of rules, as Prometheus reads them without the operator.
fn rules() -> Result<Value, LabError> {
    let mut documents = documents(&read("manifests/prometheusrule.yaml")?).map_err(LabError::Otherwise)?;
    Ok(documents.remove(0)["spec"].take())
}

fn alert_queries() -> Result<Vec<(String, String)>, LabError> {
    let rules = rules()?;
    let rules = rules["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let guide = read("manifests/guides/troubleshooting.md")?;
    for rule in &rules {
        let runbook = text(&rule["annotations"]["runbook_url"]);
        let anchor = runbook.strip_prefix("manifests/guides/troubleshooting.md#").unwrap_or_default();
        let there = anchor == "{{ $labels.reason }}" || guide.contains(&format!("<a id=\"{anchor}\"></a>"));
        ensure!(there, "{} leads to {runbook:?}", rule["alert"]);
    }
    for reason in Reason::ALL {
        ensure!(guide.contains(&format!("| `{reason}`<a id=\"{reason}\"></a> |")), "no anchor for {reason}");
    }
    ensure!(rules.len() > 5, "{} alerts", rules.len());
    Ok(rules.iter().map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect())
}

/// A daemon that has been through everything that is counted.
struct Busy {
    setting: Setting,
    _agent: PolicyAgent,
    pods: Vec<Pod>,
    refused: Pod,
}

impl Busy {
    fn start() -> Result<Self, LabError> {
        let setting = Setting::start(&[
            ("NETWORK_POLICY_ENFORCING_MODE", "standard"),
            ("WARM_IP_TARGET", "1"),
            ("MINIMUM_IP_TARGET", "1"),
            ("IPAMD_ADD_TIMEOUT_SECONDS", "20"),
        ])?;
        let agent = PolicyAgent::start(&setting.node)?;
        let refused = Pod::create("refused", "sandbox99")?;
        let mut busy = Self { setting, _agent: agent, pods: Vec::new(), refused };
        busy.work(0)?;
        Ok(busy)
    }

    fn node(&self) -> &Node {
        &self.setting.node
    }

    fn work(&mut self, round: u32) -> Outcome {
        let Self { setting, pods, refused, .. } = self;
        prometheus::keep_busy(&setting.node, &setting.fabric, pods, refused, round)
    }

    /// The metrics once they have this, which has to come.
    fn metrics_with(&self, wanted: &str) -> Result<String, LabError> {
        let until = Instant::now() + SOON;
        loop {
            let text = self.node().metrics()?;
            if text.contains(wanted) {
                return Ok(text);
            }
            ensure!(Instant::now() < until, "{wanted} does not come: {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The metrics while an ADD waits: an operator forbids what it needs.
    fn metrics_under_hold(&mut self) -> Result<String, LabError> {
        let hold = |what: &str| {
            let directory = self.node().run_dir().display().to_string();
            self.node().tool(&["hold", what, "--run-dir", &directory], &[]).map(drop)
        };
        hold("changes")?;
        let told = |report: &Report| report.cloud.iter().any(|line| line.starts_with("on-hold"));
        self.node().wait_for("the hold in the status", told)?;
        let waiting = (0..8).map(|number| Pod::create(&format!("late-{number}"), &format!("late{number}")));
        let mut waiting: Vec<Pod> = waiting.collect::<Result<_, _>>()?;
        let text = std::thread::scope(|scope| {
            let node = self.node();
            // Some of them get what is free, the others wait until the operator lets go.
            let adds: Vec<_> = waiting.iter_mut().map(|pod| scope.spawn(|| pod.add(node))).collect();
            let text = self.metrics_with("\nipamd_adds_waiting{");
            let let_go = hold("nothing");
            let added = adds.into_iter().filter_map(|add| add.join().ok()).collect::<Result<Vec<_>, _>>();
            let_go.and(added).and(text)
        })?;
        self.pods.extend(waiting);
        Ok(text)
    }
}

/// A query against what is told; what it asks for in vain.
fn unknown(query: &str, wanted: &Wanted, told: &BTreeMap<String, Vec<(String, String)>>) -> Option<String> {
    let labels_of = |metric: &str| told.get(metric).into_iter().flatten().map(|(label, _)| label.as_str());
    for (metric, matchers) in wanted.metrics.iter().filter(|(metric, _)| metric != "up") {
        if !told.contains_key(metric) {
            return Some(format!("{query}: no daemon tells {metric}"));
        }
        for (label, text) in matchers.iter().filter(|(label, _)| !OF_TARGETS.contains(&label.as_str())) {
            if !labels_of(metric).any(|of_it| of_it == label) {
                return Some(format!("{query}: {metric} has no label {label}"));
            }
            let values = text.split('|').filter(|value| !is_known(label, value));
            if let Some(value) = values.into_iter().next() {
                return Some(format!("{query}: {label} is never {value}"));
            }
        }
    }
    let somewhere =
        |label: &str| wanted.metrics.iter().any(|(metric, _)| labels_of(metric).any(|l| l == label));
    let lost = wanted.labels.iter().find(|label| !OF_TARGETS.contains(&label.as_str()) && !somewhere(label));
    lost.map(|label| format!("{query}: nothing in it has the label {label}"))
}

/// Whether a label of a closed list can have this value.
fn is_known(label: &str, value: &str) -> bool {
    match label {
        "reason" => value == "none" || Reason::ALL.iter().any(|reason| reason.word() == value),
        "state" => ["free", "reserved", "assigned", "cooling"].contains(&value),
        "verb" => ["add", "del", "check", "gc", "status", "report"].contains(&value),
        "outcome" => ["done", "failed"].contains(&value),
        _ => false,
    }
}

fn known() -> Outcome {
    let mut busy = Busy::start()?;
    busy.metrics_with("\nipamd_repairs_total{")?;
    let told = promql::told(&busy.metrics_under_hold()?);

    let queries = [dashboard()?, alert_queries()?].concat();
    for (title, query) in &queries {
        let wanted = promql::wanted(query);
        let wanted = wanted.ok_or_else(|| LabError::Otherwise(format!("{title}: cannot read {query}")))?;
        ensure!(!wanted.metrics.is_empty(), "{title}: {query} asks for nothing");
        let lost = unknown(query, &wanted, &told);
        ensure!(lost.is_none(), "{title}: {}", lost.unwrap_or_default());
    }
    for wrong in [
        "rate(ipamd_request_total[1m])",
        "ipamd_requests_total{verbs=\"add\"}",
        "ipamd_requests_total{reason=\"throtled\"}",
        "sum by (eni) (ipamd_ready)",
    ] {
        let wanted = promql::wanted(wrong).unwrap_or_default();
        ensure!(unknown(wrong, &wanted, &told).is_some(), "{wrong} is taken for good");
    }
    Ok(())
}

fn scratch() -> Result<PathBuf, LabError> {
    let path = PathBuf::from(SCRATCH);
    let _gone = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).map_err(LabError::doing("make a scratch directory"))?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(LabError::doing(format!("write {}", path.display())))
}

fn promtool(words: &[&str], directory: &Path) -> Outcome {
    let ran = Command::new("promtool").args(words).current_dir(directory).stdin(Stdio::null()).output();
    let ran = ran.map_err(LabError::doing("run promtool"))?;
    let said = [ran.stdout, ran.stderr].concat();
    ensure!(ran.status.success(), "promtool {words:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

fn checked() -> Outcome {
    let directory = scratch()?;
    // JSON is YAML. The dashboard's queries are checked as rules that would record them.
    write(&directory.join("rules.yaml"), &rules()?.to_string())?;
    let record = |(number, (_, query)): (usize, (String, String))| serde_json::json!({"record": format!("panel_{number}"), "expr": query});
    let recorded: Vec<Value> = dashboard()?.into_iter().enumerate().map(record).collect();
    let recorded = serde_json::json!({"groups": [{"name": "dashboard", "rules": recorded}]});
    write(&directory.join("dashboard.yaml"), &recorded.to_string())?;

    promtool(&["check", "rules", "--lint-fatal", "rules.yaml", "dashboard.yaml"], &directory)
}

fn alerts() -> Outcome {
    let directory = scratch()?;
    write(&directory.join("rules.yaml"), &rules()?.to_string())?;
    write(&directory.join("test.yaml"), &read("tests/system/alerts-test.yaml")?)?;

    promtool(&["test", "rules", "test.yaml"], &directory)
}

fn classic() -> Outcome {
    let busy = Busy::start()?;
    busy.metrics_with("\nipamd_repairs_total{")?;
    let (head, text) = busy.node().metrics_as("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")?;
    ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::doing("run promtool"))?;
    let fed = child.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
    fed.transpose().map_err(LabError::doing("feed promtool"))?;
    let checked = child.wait_with_output().map_err(LabError::doing("run promtool"))?;
    // Names of the Go version are as they are; its parser, which is that of the helper for CloudWatch, reads them all the same.
    let said = String::from_utf8_lossy(&checked.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("awscni_")).collect();
    ensure!(complaints.is_empty(), "promtool says {complaints:?} of {text}");
    for kind in [
        "awscni_aws_api_latency_ms summary",
        "awscni_ec2api_req_count counter",
        "ipamd_requests_total counter",
    ] {
        ensure!(text.contains(&format!("\n# TYPE {kind}\n")), "{kind} is not in {text}");
    }

    let (head, text) =
        busy.node().metrics_as("application/openmetrics-text;version=1.0.0;q=0.8,*/*;q=0.1")?;
    ensure!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    ensure!(text.ends_with("# EOF\n"), "{text}");
    Ok(())
}

fn answered() -> Outcome {
    let mut busy = Busy::start()?;
    let prometheus = Prometheus::start(busy.node(), &[busy.node()], &scratch()?)?;
    let mut open = dashboard()?;
    // A pod that waits at the moment of a scrape is another test's.
    open.retain(|(_, query)| !query.contains("ipamd_adds_waiting"));
    let mut last = String::new();
    // The daemon is kept busy meanwhile: rates need two scrapes with something between.
    for round in 1..=5 {
        busy.work(round)?;
        (_, last) = prometheus.ask_until(&mut open, Duration::from_secs(6));
        if open.is_empty() {
            return Ok(());
        }
    }
    Err(LabError::Otherwise(format!("{} queries have no answer, the last one {last}", open.len())))
}
