//! The cloud in our words, as far as decisions need them: what goes wrong there, and what an ENI is to be like.

mod error;

pub use error::{CloudError, CloudErrorKind, Effect};

/// When security groups forget idle connections of an ENI, in seconds; `None` is EC2's default (EC2 user guide, "Connection
/// tracking timeouts").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionTracking {
    /// Established TCP connections.
    pub tcp_established: Option<i32>,
    /// UDP flows with more than one request and response.
    pub udp_stream: Option<i32>,
    /// Other UDP flows.
    pub udp: Option<i32>,
}

impl ConnectionTracking {
    /// Whether any of them is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}
