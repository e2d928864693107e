//! The kernel side: sockets, messages, and what they observe and change.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enums are foreign and open: what is not named here is not ours to interpret"
)]

mod answer;
mod branch;
mod check;
mod host;
mod leftovers;
mod message;
mod notice;
mod pod;
mod socket;
mod sysctl;
mod wirer;

use std::fmt;
use std::io;

use types::Mac;

use answer::Answer;
pub use host::{Converged, Half, Host};
pub(crate) use notice::RouteJudge;
pub use pod::TRASH_GROUP;
pub use sysctl::{put_below as put_sysctl_below, read as read_sysctl};
pub use wirer::{MendError, Mended, Mending, PodSeen, WireError, Wirer};

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
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is wanted cannot be expressed.
    #[error(transparent)]
    Mark(#[from] crate::MarkError),
    /// Some changes were refused; the others were made.
    #[error("the kernel refused: {}", .0.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
}

/// A change that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// For which ENI it is; none for the whole node.
    pub eni: Option<Mac>,
    /// The command that would make it.
    command: String,
    /// Why not.
    answer: Answer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.answer)
    }
}
