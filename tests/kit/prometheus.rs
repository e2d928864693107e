//! A real Prometheus in a node's namespace, and what the dashboard asks it.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::LabError;
use crate::ec2::{Action, Fault};
use crate::fabric::Fabric;
use crate::netns::Netns;
use crate::node::{Node, get_over};
use crate::runtime::Pod;

/// Where it listens.
const AT: &str = "127.0.0.1:9090";
/// Where each daemon serves its metrics.
const METRICS_PORT: u16 = 61678;
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const DASHBOARD: &str = include_str!("../../manifests/dashboard.json");

/// Why some of these programs cannot be run here.
#[must_use]
pub fn missing(programs: &[&str]) -> Option<String> {
    programs.iter().find_map(|program| {
        let ran = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        ran.err().map(|error| format!("no {program}: {error}"))
    })
}

/// The queries of the dashboard by panel, with Grafana's own variables set.
///
/// # Errors
/// When the dashboard is none, or has a variable that nobody sets.
pub fn dashboard() -> Result<Vec<(String, String)>, LabError> {
    let wrong = |what: String| LabError::Otherwise(format!("the dashboard: {what}"));
    let dashboard: Value = serde_json::from_str(DASHBOARD).map_err(|error| wrong(error.to_string()))?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap_or_default();
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
            if query.contains('$') {
                return Err(wrong(format!("{query} has a variable that nobody sets")));
            }
            queries.push((panel["title"].as_str().unwrap_or_default().to_owned(), query));
        }
    }
    Ok(queries)
}

/// Gives a daemon everything to count: pods that come, wait, go and are refused, an EC2 that answers nonsense once, and a rule that somebody
/// takes away. `refused` asks for an interface of every network card, which the node does not give.
///
/// # Errors
/// When something happens otherwise.
pub fn keep_busy(
    node: &Node,
    fabric: &Fabric,
    pods: &mut Vec<Pod>,
    refused: &mut Pod,
    round: u32,
) -> Result<(), LabError> {
    let nonsense = Fault::Garbage("<html>not an answer".to_owned());
    fabric.ec2().fault_next(Action::AssignPrivateIpAddresses, 1, nonsense);
    for number in round * 4..round * 4 + 4 {
        let mut pod = Pod::create(&format!("pod-{number}"), &format!("sandbox{number}"))?;
        pod.add(node)?;
        pods.push(pod);
    }
    if let Some(mut pod) = pods.pop() {
        pod.del(node)?;
    }
    refused.multi_nic = true;
    if refused.add(node).is_ok() {
        return Err(LabError::Otherwise("a pod got an interface of every network card".to_owned()));
    }
    // What a wish for something else puts back on its way is no repair: again until one is counted.
    let before = repairs(node)?;
    for _ in 0..TAKES_MAX {
        // It may not be back yet.
        let _taken = node.netns().read("ip rule del pref 512");
        let until = Instant::now() + TAKE_AGAIN;
        while Instant::now() < until {
            if repairs(node)? > before {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Err(LabError::Otherwise("no repair is counted".to_owned()))
}

/// How often a rule is taken at most, and how long after each time it is back for sure, so that no two are a fight.
const TAKES_MAX: u32 = 10;
const TAKE_AGAIN: Duration = Duration::from_millis(2500);

/// All that a daemon counts as put back.
///
/// # Errors
/// When it does not tell.
pub fn repairs(node: &Node) -> Result<usize, LabError> {
    let metrics = node.metrics()?;
    let counts = metrics.lines().filter(|line| line.starts_with("ipamd_repairs_total{"));
    Ok(counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok()).sum())
}

/// A running Prometheus, which scrapes every second; ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    netns: Arc<Netns>,
}

impl Prometheus {
    /// Starts one beside a node, for the daemons of these nodes; its data are in a directory that is there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(beside: &Node, nodes: &[&Node], directory: &Path) -> Result<Self, LabError> {
        let targets = nodes.iter().map(|node| format!("'{}:{METRICS_PORT}'", node.instance().address));
        let targets = targets.collect::<Vec<_>>().join(", ");
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n  - job_name: aws-node\n    static_configs: [{{ targets: [{targets}] }}]\n"
        );
        let file = directory.join("prometheus.yaml");
        std::fs::write(file, config).map_err(LabError::doing("write prometheus' configuration"))?;
        let mut command = Command::new("prometheus");
        command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=error"]);
        command.arg(format!("--web.listen-address={AT}")).current_dir(directory).stdin(Stdio::null());
        let netns = beside.shared_netns();
        let child = netns.spawn(command).map_err(LabError::doing("start prometheus"))?;
        Ok(Self { child, netns })
    }

    /// The answer to a query.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&self, query: &str) -> Result<Value, LabError> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let got = self.netns.run(|| {
            let stream = TcpStream::connect(AT)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            get_over(stream, &format!("/api/v1/query?query={encoded}"))
        })?;
        let (_, body) = got.map_err(LabError::doing("ask prometheus"))?;
        serde_json::from_str(&body).map_err(|error| LabError::Otherwise(format!("{error}: {body}")))
    }

    /// Asks until all have an answer with something in it, or the time is over. Gives what was answered, and keeps the others in `open`;
    /// of the last of those, what was said.
    pub fn ask_until(
        &self,
        open: &mut Vec<(String, String)>,
        time: Duration,
    ) -> (Vec<(String, Value)>, String) {
        let (until, mut answered, mut last) = (Instant::now() + time, Vec::new(), String::new());
        while !open.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            open.retain(|(title, query)| match self.ask(query) {
                Ok(mut answer) if answer["data"]["result"].as_array().is_some_and(|all| !all.is_empty()) => {
                    answered.push((title.clone(), answer["data"]["result"].take()));
                    false
                }
                other => {
                    last = format!("{title}: {query}: {other:?}");
                    true
                }
            });
        }
        (answered, last)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
