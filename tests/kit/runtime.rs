//! Calls the plugin as a container runtime does.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::LabError;
use crate::netns::Netns;
use crate::node::{Node, binary};

/// A pod: a namespace, and what the plugin said about it.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// Its name; the namespace is `default`.
    pub name: String,
    /// The runtime's id of the sandbox.
    pub container_id: String,
    /// It asks for an interface of every network card.
    pub multi_nic: bool,
    /// `TRACEPARENT` of the runtime that calls for it.
    pub trace: Option<String>,
    /// Its address, once added.
    pub address: Option<Ipv4Addr>,
    /// How long the plugin took to add it.
    pub took: Duration,
    /// The plugin's result, for CHECK and DEL.
    pub result: Option<Value>,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code was 0.
    pub success: bool,
    /// What it printed.
    pub stdout: Value,
    /// How long it took, the process's start included.
    pub took: Duration,
}

impl Pod {
    /// Makes a pod's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str, container_id: &str) -> Result<Self, LabError> {
        let netns = Netns::create(container_id)?;
        let (name, container_id) = (name.to_owned(), container_id.to_owned());
        let (multi_nic, took) = (false, Duration::ZERO);
        Ok(Self { netns, name, container_id, multi_nic, trace: None, address: None, took, result: None })
    }

    /// ADD.
    ///
    /// # Errors
    /// The plugin's error, as it printed it.
    pub fn add(&mut self, node: &Node) -> Result<Ipv4Addr, LabError> {
        let told = self.add_any(node)?;
        self.address.ok_or_else(|| LabError::Otherwise(format!("ADD {} gave only {told:?}", self.name)))
    }

    /// ADD, whatever addresses it gives: those that it tells.
    ///
    /// # Errors
    /// The plugin's error, as it printed it.
    pub fn add_any(&mut self, node: &Node) -> Result<Vec<IpAddr>, LabError> {
        let answer = self.call(node, "ADD")?;
        if !answer.success {
            return Err(LabError::Otherwise(format!("ADD {}: {}", self.name, answer.stdout)));
        }
        let ips = answer.stdout["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |ip: &Value| ip["address"].as_str()?.parse::<IpNetwork>().ok();
        let told: Vec<IpAddr> = ips.iter().filter_map(address).map(|network| network.ip()).collect();
        if told.is_empty() || told.len() != ips.len() {
            let got = &answer.stdout;
            return Err(LabError::Otherwise(format!("ADD {} gave no addresses: {got}", self.name)));
        }
        self.address = told.iter().find_map(|ip| match ip {
            IpAddr::V4(ipv4) => Some(*ipv4),
            IpAddr::V6(_) => None,
        });
        (self.took, self.result) = (answer.took, Some(answer.stdout));
        Ok(told)
    }

    /// Name of its link on the host, once added.
    #[must_use]
    pub fn host_if(&self) -> Option<&str> {
        self.result.as_ref()?["interfaces"][0]["name"].as_str()
    }

    /// DEL.
    ///
    /// # Errors
    /// The plugin's error, as it printed it.
    pub fn del(&mut self, node: &Node) -> Result<Duration, LabError> {
        let answer = self.call(node, "DEL")?;
        match answer.success {
            true => Ok(answer.took),
            false => Err(LabError::Otherwise(format!("DEL {}: {}", self.name, answer.stdout))),
        }
    }

    /// Any verb.
    ///
    /// # Errors
    /// When the plugin cannot be run.
    pub fn call(&self, node: &Node, verb: &str) -> Result<Answer, LabError> {
        let mut config = conf(node);
        if self.multi_nic {
            let annotations = json!({"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"});
            config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
        }
        if let (Some(result), "CHECK" | "DEL") = (&self.result, verb) {
            config["prevResult"] = result.clone();
        }
        let mut command = plugin(verb, &self.container_id, &self.netns.path(), &self.name)?;
        command.envs(self.trace.iter().map(|trace| ("TRACEPARENT", trace)));
        run(node, verb, command, config.to_string().as_bytes())
    }
}

/// The network configuration, as the runtime takes it from the conflist: what the daemon's settings make of it from there.
#[must_use]
pub fn conf(node: &Node) -> Value {
    let conflist = std::fs::read_to_string(node.conflist()).unwrap_or_default();
    let conflist: Value = serde_json::from_str(&conflist).unwrap_or_default();
    let written = &conflist["plugins"][0];
    let prefix = written["vethPrefix"].as_str().unwrap_or("eni");
    json!({
        "cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni", "vethPrefix": prefix, "mtu": "9001",
        // Where there is no conflist yet, the pod is one of a node whose pods get IPv6: else there is nothing to switch.
        "ipv6": written.is_null() || written["ipv6"] == true,
        "socket": node.socket(), "queueDir": node.run_dir().join("delete-queue"),
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"example.com/any": "thing"}},
    })
}

/// Runs the plugin in the node's namespace.
///
/// # Errors
/// When it cannot be run or prints something that is not JSON.
pub fn call_plugin(
    node: &Node,
    verb: &str,
    container_id: &str,
    netns: &std::path::Path,
    pod: &str,
    stdin: &[u8],
) -> Result<Answer, LabError> {
    run(node, verb, plugin(verb, container_id, netns, pod)?, stdin)
}

/// The plugin with the environment of a call.
fn plugin(verb: &str, container_id: &str, netns: &std::path::Path, pod: &str) -> Result<Command, LabError> {
    let plugin: PathBuf = binary("AWS_CNI_BIN", "aws-cni")?;
    let mut command = Command::new(plugin);
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container_id)
        .env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", netns).env("CNI_PATH", "/opt/cni/bin");
    command.env(
        "CNI_ARGS",
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID=uid-of-{container_id}"),
    );
    Ok(command)
}

fn run(node: &Node, verb: &str, mut command: Command, stdin: &[u8]) -> Result<Answer, LabError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = node.netns().run(|| -> std::io::Result<_> {
        let started = Instant::now();
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that has seen enough may close it early.
            let _written = pipe.write_all(stdin);
        }
        Ok((child.wait_with_output()?, started.elapsed()))
    })?;
    let (output, took) = ran.map_err(LabError::doing("run the plugin"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let stdout = if text.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
    let stdout =
        stdout.map_err(|error| LabError::Otherwise(format!("{verb} printed no JSON ({error}): {text}")))?;
    Ok(Answer { success: output.status.success(), stdout, took })
}
