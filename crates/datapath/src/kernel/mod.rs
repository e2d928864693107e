//! The kernel side: sockets, messages, and what they observe and change.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enums are foreign and open: what is not named here is not ours to interpret"
)]

mod host;
mod message;
mod socket;
mod sysctl;
mod wirer;

use std::io;

pub use host::{Converged, Host, LinkSeen};
pub use wirer::{PodSeen, WireError, Wirer};

/// Why the kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A socket could not be made or used.
    #[error("cannot use a netlink socket")]
    Socket(#[source] io::Error),
    /// A dump kept being interrupted by changes.
    #[error("the kernel's {0} changed faster than they could be read")]
    Interrupted(&'static str),
    /// Reading failed.
    #[error("cannot read the kernel's {what}")]
    Read {
        /// Links, routes, rules or addresses.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// What is wanted cannot be expressed.
    #[error(transparent)]
    Mark(#[from] crate::MarkError),
    /// Some changes were refused; the others were made.
    #[error("the kernel refused: {}", .0.join("; "))]
    Refused(Vec<String>),
}
