//! A real containerd, driven over CRI, inside a lab node.
//!
//! A private instance in a scratch directory: nothing of the machine's own containerd is touched. The sandbox image
//! is made on the spot from Debian's static busybox.

mod api;
mod containers;
mod image;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::{
    Empty, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxRequest, PodSandboxStatusResponse, PortMapping, RunPodSandboxRequest, RunPodSandboxResponse,
    VersionRequest, VersionResponse,
};

pub use containers::{Container, Mount, Said};
pub use image::{OURS, ours};
use serde_json::Value;

use crate::LabError;
use crate::grpc::Client;
use crate::netns::Netns;
use crate::probe::By;

/// How long containerd may take to answer its first call.
const START: Duration = Duration::from_secs(20);
/// How long one CRI call may take; longer than any ADD is held.
const CALL: Duration = Duration::from_secs(150);

/// Why containerd or a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Something around it.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    /// It did not come up; the end of its log.
    #[error("containerd does not answer: {0}")]
    NotUp(String),
    /// It refused a call.
    #[error("{0}")]
    Refused(String),
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    child: Child,
    client: Client,
}

/// A pod sandbox, as the kubelet asks for it.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// The pod's name; its namespace is `default`.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// It is in the node's network, and no plugin is asked.
    pub host_network: bool,
    /// Ports of the host that lead to the pod: how, the host's, the pod's.
    pub ports: Vec<(By, u16, u16)>,
    /// The pod's annotations.
    pub annotations: HashMap<String, String>,
}

/// Which programs are missing to run it; empty when it can run.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    let there = |program: &str| {
        ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin"]
            .iter()
            .any(|d| Path::new(d).join(program).exists())
    };
    ["containerd", "ctr", "runc", "busybox"].into_iter().filter(|program| !there(program)).collect()
}

impl Containerd {
    /// Starts an instance whose CNI configuration and plugins are in the given directories.
    ///
    /// `spawn` starts the command in the right network namespace.
    ///
    /// # Errors
    /// When it cannot be started or does not answer in time.
    pub fn start(
        directory: &Path,
        conf_dir: &Path,
        bin_dir: &Path,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> Result<Self, CriError> {
        std::fs::create_dir_all(directory).map_err(|e| CriError::Io("make a directory", e))?;
        let config = directory.join("config.toml");
        std::fs::write(&config, configuration(directory, conf_dir, bin_dir))
            .map_err(|e| CriError::Io("write the configuration", e))?;
        let log = std::fs::File::create(directory.join("log")).map_err(|e| CriError::Io("make a log", e))?;
        let errors = log.try_clone().map_err(|e| CriError::Io("make a log", e))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = spawn(command).map_err(|e| CriError::Io("start containerd", e))?;
        let client = Client::new(directory.join("containerd.sock"));
        let client = client.map_err(|e| CriError::Io("start a runtime", e))?;
        let mut this = Self { directory: directory.to_owned(), child, client };
        this.wait_until_up()?;
        image::import_pause(directory)?;
        Ok(this)
    }

    fn wait_until_up(&mut self) -> Result<(), CriError> {
        let until = Instant::now() + START;
        loop {
            let asked: Result<VersionResponse, _> =
                self.call("Version", VersionRequest { version: "v1".to_owned() });
            match asked {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
                Err(_) => return Err(CriError::NotUp(self.log_tail())),
            }
        }
    }

    /// Makes a sandbox for a pod; returns its id.
    ///
    /// # Errors
    /// What containerd says; a failed ADD is in it.
    pub fn run(&self, name: &str, uid: &str) -> Result<String, CriError> {
        let annotations = HashMap::from([("example.com/note".to_owned(), "x".repeat(2000))]);
        let (name, uid) = (name.to_owned(), uid.to_owned());
        self.run_sandbox(&Sandbox { name, uid, annotations, ..Sandbox::default() })
    }

    /// Makes this sandbox; returns its id.
    ///
    /// # Errors
    /// What containerd says; a failed ADD is in it.
    pub fn run_sandbox(&self, sandbox: &Sandbox) -> Result<String, CriError> {
        let config = Some(self.config(sandbox));
        let reply: RunPodSandboxResponse = self.call("RunPodSandbox", RunPodSandboxRequest { config })?;
        Ok(reply.pod_sandbox_id)
    }

    fn config(&self, sandbox: &Sandbox) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: sandbox.name.clone(),
            uid: sandbox.uid.clone(),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let port = |(by, host, pod): &(By, u16, u16)| PortMapping {
            protocol: if *by == By::Tcp { 0 } else { 1 },
            container_port: i32::from(*pod),
            host_port: i32::from(*host),
        };
        let namespaces = containers::namespaces(sandbox.host_network);
        PodSandboxConfig {
            metadata: Some(metadata),
            // In the node's network a pod has the node's name.
            hostname: if sandbox.host_network { String::new() } else { sandbox.name.clone() },
            log_directory: self.logs().display().to_string(),
            port_mappings: sandbox.ports.iter().map(port).collect(),
            labels: HashMap::new(),
            annotations: sandbox.annotations.clone(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
                ..LinuxPodSandboxConfig::default()
            }),
        }
    }

    /// Where what containers print goes.
    fn logs(&self) -> PathBuf {
        self.directory.join("pods")
    }

    /// Makes an image known that an archive holds.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import(&self, archive: &Path) -> Result<(), CriError> {
        image::import(&self.directory, archive)
    }

    /// Stops a sandbox: the first DEL.
    ///
    /// # Errors
    /// What containerd says.
    pub fn stop(&self, id: &str) -> Result<(), CriError> {
        self.call("StopPodSandbox", named(id)).map(|Empty {}| ())
    }

    /// Removes a sandbox: the second DEL.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove(&self, id: &str) -> Result<(), CriError> {
        self.call("RemovePodSandbox", named(id)).map(|Empty {}| ())
    }

    /// The address containerd tells for a sandbox.
    ///
    /// # Errors
    /// What containerd says.
    pub fn address(&self, id: &str) -> Result<String, CriError> {
        let reply: PodSandboxStatusResponse = self.call("PodSandboxStatus", named(id))?;
        let network = reply.status.and_then(|status| status.network).unwrap_or_default();
        Ok(network.ip)
    }

    /// The network namespace of a sandbox.
    ///
    /// # Errors
    /// What containerd says, or that it does not say where the namespace is.
    pub fn netns(&self, id: &str) -> Result<Netns, LabError> {
        let reply: Result<PodSandboxStatusResponse, CriError> =
            self.call("PodSandboxStatus", PodSandboxRequest { verbose: true, ..named(id) });
        let info = reply.map_err(|error| LabError::Otherwise(error.to_string()))?.info;
        let info =
            info.get("info").and_then(|info| serde_json::from_str::<Value>(info).ok()).unwrap_or_default();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().map(Vec::as_slice);
        let network = namespaces.unwrap_or_default().iter().find(|one| one["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str()).map(Path::new);
        let name = path.and_then(Path::file_name).and_then(|name| name.to_str());
        Netns::of_another(name.ok_or_else(|| LabError::Otherwise(format!("no namespace in {info}")))?)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn call<Q, R>(&self, method: &str, request: Q) -> Result<R, CriError>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let reply = self.client.call(&path, request, CALL);
        reply.map_err(|status| CriError::Refused(status.message().to_owned()))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims end with their sandboxes; the namespace's end takes whatever is left.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A question about one sandbox.
fn named(id: &str) -> PodSandboxRequest {
    PodSandboxRequest { pod_sandbox_id: id.to_owned(), verbose: false }
}

fn configuration(directory: &Path, conf_dir: &Path, bin_dir: &Path) -> String {
    let (dir, conf_dir, bin_dir) = (directory.display(), conf_dir.display(), bin_dir.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{conf_dir}"
    bin_dir = "{bin_dir}"
"#,
        image = image::PAUSE
    )
}
