//! A real containerd, driven over CRI, inside a lab node.
//!
//! A private instance in a scratch directory: nothing of the machine's own containerd is touched. The sandbox image
//! is made on the spot from Debian's static busybox.

mod api;
mod image;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::{
    Empty, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxRequest,
    PodSandboxStatusResponse, RunPodSandboxRequest, RunPodSandboxResponse, VersionRequest, VersionResponse,
};

use crate::grpc::Client;

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
        image::import(directory)?;
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
    pub fn run(&self, namespace: &str, name: &str, uid: &str) -> Result<String, CriError> {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: self.directory.join("pods").display().to_string(),
            labels: HashMap::new(),
            annotations: HashMap::from([("example.com/note".to_owned(), "x".repeat(2000))]),
            linux: Some(LinuxPodSandboxConfig::default()),
        };
        let reply: RunPodSandboxResponse =
            self.call("RunPodSandbox", RunPodSandboxRequest { config: Some(config) })?;
        Ok(reply.pod_sandbox_id)
    }

    /// Stops a sandbox: the first DEL.
    ///
    /// # Errors
    /// What containerd says.
    pub fn stop(&self, id: &str) -> Result<(), CriError> {
        self.call("StopPodSandbox", PodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(|Empty {}| ())
    }

    /// Removes a sandbox: the second DEL.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove(&self, id: &str) -> Result<(), CriError> {
        self.call("RemovePodSandbox", PodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(|Empty {}| ())
    }

    /// The address containerd tells for a sandbox.
    ///
    /// # Errors
    /// What containerd says.
    pub fn address(&self, id: &str) -> Result<String, CriError> {
        let reply: PodSandboxStatusResponse =
            self.call("PodSandboxStatus", PodSandboxRequest { pod_sandbox_id: id.to_owned() })?;
        let network = reply.status.and_then(|status| status.network).unwrap_or_default();
        Ok(network.ip)
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
        image = image::NAME
    )
}
