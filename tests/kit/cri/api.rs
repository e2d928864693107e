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

/// Linux settings of a sandbox.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    /// Parent control group; empty for the runtime's own.
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
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
