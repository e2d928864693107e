//! gRPC, as the Go version speaks it with its neighbours on the node: package `rpc`, proto3.
//!
//! | socket | who serves it | what for |
//! |---|---|---|
//! | `ipamd.sock` | we | health probes; the network policy agent's configuration; DELs of a Go plugin that an upgrade left behind; reflection |
//! | `npa.sock` | the network policy agent | enforcing a pod's policies, and forgetting them |
//!
//! The messages are written down by hand, as few as there are: no compiler of protobuf is needed to build.

pub(crate) mod agent;
pub(crate) mod backend;
pub mod messages;
mod reflection;
pub(crate) mod server;

use std::path::{Path, PathBuf};

/// The longest message that is taken or sent, in bytes; those that are right are well under 2 KiB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Method names, as they stand in the path of a request.
pub mod method {
    /// A plugin of the Go version adds a pod.
    pub const ADD_NETWORK: &str = "/rpc.CNIBackend/AddNetwork";
    /// A plugin of the Go version deletes a pod.
    pub const DEL_NETWORK: &str = "/rpc.CNIBackend/DelNetwork";
    /// The network policy agent asks for its configuration.
    pub const POLICY_CONFIGS: &str = "/rpc.ConfigServerBackend/GetNetworkPolicyConfigs";
    /// A pod was wired: its policies are to be enforced.
    pub const ENFORCE: &str = "/rpc.NPBackend/EnforceNpToPod";
    /// A pod is gone.
    pub const DELETE_POD: &str = "/rpc.NPBackend/DeletePodNp";
    /// A probe asks whether a service is there.
    pub const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
    /// Somebody asks what there is. `v1alpha` is served too.
    pub const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
}

/// Where the daemon listens whose directory this is.
#[must_use]
pub fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("ipamd.sock")
}

/// Where the network policy agent listens beside it.
#[must_use]
pub fn agent_in(run_dir: &Path) -> PathBuf {
    run_dir.join("npa.sock")
}
