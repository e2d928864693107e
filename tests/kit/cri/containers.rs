//! Containers in a sandbox: what the kubelet asks of the runtime once the sandbox is there.

use std::path::PathBuf;
use std::time::Duration;

use super::api::{
    Capability, Container as Id, ContainerConfig, ContainerMetadata, ContainerStatusResponse,
    CreateContainerRequest, Empty, ExecSyncRequest, ExecSyncResponse, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerSecurityContext, Mount as Mounted, NamespaceOption,
    StopContainerRequest,
};
use super::{Containerd, CriError, Sandbox};

/// The runtime's words for the node's namespace, and for a container that has ended.
const NODE: i32 = 2;
const EXITED: i32 = 2;
/// How long a program in a container may take, in seconds.
const EXEC_SECONDS: i64 = 20;
/// What the kubelet hides from containers and lets them only read, of what matters here.
const MASKED: [&str; 2] = ["/proc/kcore", "/proc/keys"];
const READONLY: [&str; 2] = ["/proc/sys", "/proc/sysrq-trigger"];

/// A container, as the kubelet asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// In place of the image's entrypoint and arguments.
    pub command: Vec<String>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// What of the host it sees.
    pub mounts: Vec<Mount>,
    /// Capabilities beyond the runtime's usual ones.
    pub added: Vec<String>,
    /// Capabilities that it does not have.
    pub dropped: Vec<String>,
    /// Its user.
    pub user: Option<i64>,
    /// Nothing that it starts can have more than it has.
    pub no_new_privileges: bool,
}

/// A directory of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host.
    pub from: PathBuf,
    /// In the container.
    pub to: String,
    /// Only to be read.
    pub read_only: bool,
}

/// What a program in a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit code was 0.
    pub success: bool,
    /// Both its outputs.
    pub text: String,
    /// Its standard output as it is.
    pub bytes: Vec<u8>,
}

/// Those of a sandbox and of its containers.
pub(super) fn namespaces(host_network: bool) -> NamespaceOption {
    NamespaceOption { network: if host_network { NODE } else { 0 } }
}

impl Containerd {
    /// Makes a container in a sandbox and starts it; returns its id.
    ///
    /// # Errors
    /// What containerd says.
    pub fn start_container(
        &self,
        id: &str,
        sandbox: &Sandbox,
        container: &Container,
    ) -> Result<String, CriError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: id.to_owned(),
            config: Some(config(container, sandbox.host_network)),
            sandbox_config: Some(self.config(sandbox)),
        };
        let Id { container_id } = self.call("CreateContainer", request)?;
        self.call("StartContainer", Id { container_id: container_id.clone() }).map(|Empty {}| ())?;
        Ok(container_id)
    }

    /// How a container ended; `None` while it runs.
    ///
    /// # Errors
    /// What containerd says.
    pub fn exit_code(&self, container: &str) -> Result<Option<i32>, CriError> {
        let reply: ContainerStatusResponse =
            self.call("ContainerStatus", Id { container_id: container.to_owned() })?;
        let status = reply.status.unwrap_or_default();
        Ok((status.state == EXITED).then_some(status.exit_code))
    }

    /// Runs a program in a container.
    ///
    /// # Errors
    /// What containerd says.
    pub fn exec(&self, container: &str, words: &[&str]) -> Result<Said, CriError> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: EXEC_SECONDS,
        };
        let reply: ExecSyncResponse = self.call("ExecSync", request)?;
        let ExecSyncResponse { stdout: bytes, stderr, exit_code } = reply;
        let text = String::from_utf8_lossy(&[bytes.as_slice(), &stderr].concat()).into_owned();
        Ok(Said { success: exit_code == 0, text, bytes })
    }

    /// Asks a container to end, and ends it when it takes longer than this.
    ///
    /// # Errors
    /// What containerd says.
    pub fn stop_container(&self, container: &str, patience: Duration) -> Result<(), CriError> {
        let timeout = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        self.call("StopContainer", request).map(|Empty {}| ())
    }

    /// What a container has printed so far.
    #[must_use]
    pub fn printed(&self, name: &str) -> String {
        std::fs::read_to_string(self.logs().join(name)).unwrap_or_default()
    }
}

fn config(container: &Container, host_network: bool) -> ContainerConfig {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    let security = LinuxContainerSecurityContext {
        capabilities: Some(Capability { add: container.added.clone(), drop: container.dropped.clone() }),
        namespace_options: Some(namespaces(host_network)),
        run_as_user: container.user.map(|value| Int64Value { value }),
        no_new_privs: container.no_new_privileges,
        masked_paths: words(&MASKED),
        readonly_paths: words(&READONLY),
    };
    let variable = |(key, value): &(String, String)| KeyValue { key: key.clone(), value: value.clone() };
    let mount = |mount: &Mount| Mounted {
        container_path: mount.to.clone(),
        host_path: mount.from.display().to_string(),
        readonly: mount.read_only,
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone() }),
        image: Some(ImageSpec { image: container.image.clone() }),
        command: container.command.clone(),
        args: Vec::new(),
        envs: container.environment.iter().map(variable).collect(),
        mounts: container.mounts.iter().map(mount).collect(),
        log_path: container.name.clone(),
        linux: Some(LinuxContainerConfig { security_context: Some(security) }),
    }
}
