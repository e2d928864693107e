//! The VPC lab: a VPC in network namespaces, with EC2 and instance metadata, real nodes and pods.
//!
//! One namespace plays the VPC. Each ENI is a veth pair whose far end is there; the fabric drops every packet whose source is
//! not an address that EC2 gave to that ENI, as AWS does. The internet behind the gateway knows only the nodes'
//! primary addresses, so missing source NAT shows. What the demo shows is what the tests test.

pub mod allocator;
pub mod bench;
pub mod browser;
pub mod cri;
mod custom_kinds;
pub mod demo;
pub mod demo_kubernetes;
pub mod fabric;
pub mod flows;
pub mod go_ipv6;
pub mod go_node;
pub mod grpc;
pub mod imds;
mod keeper;
pub mod kube_api;
pub mod kube_proxy;
pub mod kubelet;
pub mod manifests;
pub mod metrics_helper;
pub mod moto;
pub mod netns;
pub mod node;
pub mod packet;
pub mod picture;
pub mod podman;
pub mod policy_agent;
pub mod probe;
pub mod prometheus;
pub mod promql;
pub mod runtime;
pub mod start;

pub use ec2_double as ec2;

/// How long to wait for what usually takes no longer than this: so many times as long as `LAB_PATIENCE` says, on a machine that is emulated.
#[must_use]
pub fn patience(usual: std::time::Duration) -> std::time::Duration {
    let factor = std::env::var("LAB_PATIENCE").ok().and_then(|text| text.parse().ok());
    usual.saturating_mul(factor.unwrap_or(1))
}

/// Why the lab cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The system refused.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A program refused.
    #[error("{program}: {said}")]
    Program {
        /// Which, with its arguments.
        program: String,
        /// What it said.
        said: String,
    },
    /// Something did not happen in time, or happened otherwise.
    #[error("{0}")]
    Otherwise(String),
}

impl LabError {
    /// For `map_err`.
    pub fn doing<E: Into<std::io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing: doing.into(), source: source.into() }
    }
}
