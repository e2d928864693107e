//! A real Podman inside a lab node, with its CNI back end and storage of its own.
//!
//! Podman has no daemon: each command starts, does its work in the node's namespace and ends. What is left of a container is a monitor, which
//! ends with it; containers end by themselves after a while, whatever becomes of us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::LabError;
use crate::netns::Netns;
use crate::node::Node;

/// Seconds after which a container ends by itself.
const LIFE: &str = "180";

/// Podman with a directory of its own.
#[derive(Debug)]
pub struct Podman {
    node: Arc<Netns>,
    directory: PathBuf,
}

/// Why Podman cannot run here: what is not installed, or that it knows CNI no more. Asked in the lab.
#[must_use]
pub fn missing() -> Option<String> {
    let there = |program: &&str| {
        ["/usr/bin", "/usr/sbin", "/bin"].iter().any(|place| Path::new(place).join(program).exists())
    };
    if let Some(program) = ["podman", "runc", "busybox"].into_iter().find(|program| !there(program)) {
        return Some(format!("not installed: {program}"));
    }
    let directory = Path::new("/run/lab/podman-asked");
    let asked = settle(directory, directory, directory).and_then(|()| {
        let output = command(directory).args(["info", "--format", "{{.Host.NetworkBackend}}"]).output();
        output.map_err(LabError::doing("run podman"))
    });
    let output = match asked {
        Ok(output) => output,
        Err(error) => return Some(error.to_string()),
    };
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
    (said != "cni").then(|| format!("no podman with the network back end cni: {said}"))
}

/// Writes the settings of a Podman that lives in a directory.
fn settle(directory: &Path, conf: &Path, plugins: &Path) -> Result<(), LabError> {
    let settings = format!(
        r#"[network]
network_backend = "cni"
network_config_dir = "{conf}"
cni_plugin_dirs = ["{plugins}"]
default_network = "aws-cni"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
static_dir = "{directory}/static"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
"#,
        conf = conf.display(),
        plugins = plugins.display(),
        directory = directory.display(),
    );
    let written =
        fs::create_dir_all(directory).and_then(|()| fs::write(directory.join("containers.conf"), settings));
    written.map_err(LabError::doing("write podman's settings"))
}

/// Podman with these settings and nothing of the machine's.
fn command(directory: &Path) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(directory.join("storage"));
    command.arg("--runroot").arg(directory.join("run"));
    command.args(["--storage-driver", "vfs"]).stdin(Stdio::null());
    command.env("CONTAINERS_CONF", directory.join("containers.conf"));
    command
}

impl Podman {
    /// One in a node's namespace, with the conflists and plugins of these directories.
    ///
    /// # Errors
    /// When a directory or a file cannot be made.
    pub fn new(node: &Node, directory: &Path, conf: &Path, plugins: &Path) -> Result<Self, LabError> {
        settle(directory, conf, plugins)?;
        let bin = directory.join("rootfs/bin");
        let copied = fs::create_dir_all(&bin).and_then(|()| fs::copy("/bin/busybox", bin.join("busybox")));
        copied.map_err(LabError::doing("make the root of containers"))?;
        Ok(Self { node: node.shared_netns(), directory: directory.to_owned() })
    }

    /// Starts a container of busybox that does nothing; `options` are those of `podman run`.
    ///
    /// # Errors
    /// What Podman says.
    pub fn start(&self, name: &str, options: &[&str]) -> Result<(), LabError> {
        let rootfs = self.directory.join("rootfs").display().to_string();
        // Limits that are everywhere below what is there: raising them may be forbidden here.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let start = ["run", "--detach", "--log-driver", "none", "--no-hosts", "--name", name];
        let what = ["--rootfs", &rootfs, "/bin/busybox", "sleep", LIFE];
        self.call(&[&start[..], &limits, options, &what].concat()).map(drop)
    }

    /// Ends and removes a container.
    ///
    /// # Errors
    /// What Podman says.
    pub fn remove(&self, name: &str) -> Result<(), LabError> {
        self.call(&["rm", "--force", "--time", "0", name]).map(drop)
    }

    /// The address that Podman tells for a container on a network.
    ///
    /// # Errors
    /// What Podman says.
    pub fn address(&self, name: &str, network: &str) -> Result<String, LabError> {
        self.told(name, network, "IPAddress")
    }

    /// The MAC address that Podman tells for it.
    ///
    /// # Errors
    /// What Podman says.
    pub fn mac(&self, name: &str, network: &str) -> Result<String, LabError> {
        self.told(name, network, "MacAddress")
    }

    fn told(&self, name: &str, network: &str, what: &str) -> Result<String, LabError> {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{what}}}}}");
        Ok(self.call(&["inspect", "--format", &format, name])?.trim().to_owned())
    }

    /// The network namespace of a container.
    ///
    /// # Errors
    /// What Podman says.
    pub fn netns(&self, name: &str) -> Result<Netns, LabError> {
        let path = self.call(&["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name])?;
        let file = Path::new(path.trim()).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Netns::of_another(file)
    }

    /// Runs a command of Podman; what it prints.
    fn call(&self, words: &[&str]) -> Result<String, LabError> {
        let mut command = command(&self.directory);
        let ran = self.node.run(|| command.args(words).output())?;
        let output = ran.map_err(LabError::doing("run podman"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Program { program: format!("podman {}", words.join(" ")), said })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Its monitors are nobody's children.
        let _removed = self.call(&["rm", "--force", "--all", "--time", "0"]);
    }
}
