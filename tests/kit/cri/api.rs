//! The part of the Kubernetes container runtime interface (CRI, `runtime.v1`) that the tests speak.
//!
//! Field numbers are those of `api.proto` of the CRI; what is not here is left out, which protobuf allows.

use std::collections::HashMap;

use prost::Message;

/// Asks for the runtime's name and version.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct VersionRequest {
    /// The kubelet's API version.
    #[prost(string, tag = "1")]
    pub(super) version: String,
}

/// Names the runtime.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct VersionResponse {
    /// The runtime, for example `containerd`.
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
}

/// What identifies a pod sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// The pod's UID.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// The pod's namespace.
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    /// How many sandboxes this pod has had before.
    #[prost(uint32, tag = "4")]
    pub(super) attempt: u32,
}

/// What a sandbox should be.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxConfig {
    /// Whose.
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    /// Host name.
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    /// Where logs go.
    #[prost(string, tag = "3")]
    pub(super) log_directory: String,
    /// Ports of the host that lead to the pod.
    #[prost(message, repeated, tag = "5")]
    pub(super) port_mappings: Vec<PortMapping>,
    /// Labels.
    #[prost(map = "string, string", tag = "6")]
    pub(super) labels: HashMap<String, String>,
    /// Annotations, handed to CNI plugins that ask for them.
    #[prost(map = "string, string", tag = "7")]
    pub(super) annotations: HashMap<String, String>,
    /// Linux settings; present but empty means the defaults.
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandboxConfig>,
}

/// A port of the host that leads to the pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PortMapping {
    /// 0 is TCP, 1 is UDP.
    #[prost(int32, tag = "1")]
    pub(super) protocol: i32,
    /// The pod's.
    #[prost(int32, tag = "2")]
    pub(super) container_port: i32,
    /// The host's.
    #[prost(int32, tag = "3")]
    pub(super) host_port: i32,
}

/// Linux settings of a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    /// Parent control group; empty for the runtime's own.
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
    /// What it shares.
    #[prost(message, optional, tag = "2")]
    pub(super) security_context: Option<LinuxSandboxSecurityContext>,
}

/// What a sandbox may and shares.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxSandboxSecurityContext {
    /// Its namespaces.
    #[prost(message, optional, tag = "1")]
    pub(super) namespace_options: Option<NamespaceOption>,
}

/// Whose namespaces are used: 0 is the pod's, 2 the node's.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct NamespaceOption {
    /// Network.
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
}

/// Makes a sandbox: ADD.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RunPodSandboxRequest {
    /// What it should be.
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<PodSandboxConfig>,
}

/// The sandbox that was made.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RunPodSandboxResponse {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
}

/// Names one sandbox: the request of stop, remove and status.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxRequest {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    /// Of a status: whether the runtime's own words are wanted too.
    #[prost(bool, tag = "2")]
    pub(super) verbose: bool,
}

/// The answer to stop and remove.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Empty {}

/// The answer to status.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxStatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<PodSandboxStatus>,
    /// The runtime's own words; of containerd one text, `info`, in JSON.
    #[prost(map = "string, string", tag = "2")]
    pub(super) info: HashMap<String, String>,
}

/// The status of a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxStatus {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// 0 is ready.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    /// Its addresses.
    #[prost(message, optional, tag = "5")]
    pub(super) network: Option<PodSandboxNetworkStatus>,
}

/// The addresses of a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxNetworkStatus {
    /// The first one.
    #[prost(string, tag = "1")]
    pub(super) ip: String,
}

/// Makes a container in a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CreateContainerRequest {
    /// Where.
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    /// What.
    #[prost(message, optional, tag = "2")]
    pub(super) config: Option<ContainerConfig>,
    /// What the sandbox was made of.
    #[prost(message, optional, tag = "3")]
    pub(super) sandbox_config: Option<PodSandboxConfig>,
}

/// What a container should be.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerConfig {
    /// Its name.
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ContainerMetadata>,
    /// Its image.
    #[prost(message, optional, tag = "2")]
    pub(super) image: Option<ImageSpec>,
    /// In place of the image's entrypoint.
    #[prost(string, repeated, tag = "3")]
    pub(super) command: Vec<String>,
    /// In place of the image's arguments.
    #[prost(string, repeated, tag = "4")]
    pub(super) args: Vec<String>,
    /// Its environment.
    #[prost(message, repeated, tag = "6")]
    pub(super) envs: Vec<KeyValue>,
    /// What of the host it sees.
    #[prost(message, repeated, tag = "7")]
    pub(super) mounts: Vec<Mount>,
    /// Where what it prints goes, below the sandbox's directory of logs.
    #[prost(string, tag = "11")]
    pub(super) log_path: String,
    /// Linux settings.
    #[prost(message, optional, tag = "15")]
    pub(super) linux: Option<LinuxContainerConfig>,
}

/// What identifies a container in its sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerMetadata {
    /// Its name.
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// An image, by name.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

/// A variable of the environment.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct KeyValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// A directory of the host in a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Mount {
    /// Where it is in the container.
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    /// Where it is on the host.
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    /// Whether it is only to be read.
    #[prost(bool, tag = "3")]
    pub(super) readonly: bool,
}

/// Linux settings of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxContainerConfig {
    /// What it may.
    #[prost(message, optional, tag = "2")]
    pub(super) security_context: Option<LinuxContainerSecurityContext>,
}

/// What a container may.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxContainerSecurityContext {
    /// More and less than the runtime's usual capabilities.
    #[prost(message, optional, tag = "1")]
    pub(super) capabilities: Option<Capability>,
    /// Its namespaces, as in its sandbox.
    #[prost(message, optional, tag = "3")]
    pub(super) namespace_options: Option<NamespaceOption>,
    /// Who it is.
    #[prost(message, optional, tag = "5")]
    pub(super) run_as_user: Option<Int64Value>,
    /// Whether nothing that it starts can have more than it has.
    #[prost(bool, tag = "11")]
    pub(super) no_new_privs: bool,
    /// Paths that it does not see.
    #[prost(string, repeated, tag = "13")]
    pub(super) masked_paths: Vec<String>,
    /// Paths that it cannot write to.
    #[prost(string, repeated, tag = "14")]
    pub(super) readonly_paths: Vec<String>,
}

/// More and less than the runtime's usual capabilities, without `CAP_`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Capability {
    /// More.
    #[prost(string, repeated, tag = "1")]
    pub(super) add: Vec<String>,
    /// Less; `ALL` are all.
    #[prost(string, repeated, tag = "2")]
    pub(super) drop: Vec<String>,
}

/// A number that may be absent.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Int64Value {
    /// The number.
    #[prost(int64, tag = "1")]
    pub(super) value: i64,
}

/// Names one container: the answer of create, and the request of start and status.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Container {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
}

/// Asks a container to end.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StopContainerRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
    /// Seconds until it is killed.
    #[prost(int64, tag = "2")]
    pub(super) timeout: i64,
}

/// The answer to status.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerStatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<ContainerStatus>,
}

/// The status of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerStatus {
    /// 1 is running, 2 has ended.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    /// How it ended.
    #[prost(int32, tag = "7")]
    pub(super) exit_code: i32,
}

/// Runs a program in a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ExecSyncRequest {
    /// Where.
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
    /// The program and its arguments.
    #[prost(string, repeated, tag = "2")]
    pub(super) cmd: Vec<String>,
    /// Seconds it may take.
    #[prost(int64, tag = "3")]
    pub(super) timeout: i64,
}

/// What it said and how it ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ExecSyncResponse {
    /// Standard output.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) stdout: Vec<u8>,
    /// Standard error.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) stderr: Vec<u8>,
    /// How it ended.
    #[prost(int32, tag = "3")]
    pub(super) exit_code: i32,
}
