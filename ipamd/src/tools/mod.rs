//! Tools for operators, beside the daemon and without it: `ipamd doctor`, `explain`, `bundle`, `completion`, `man`.
//!
//! | file | what |
//! |---|---|
//! | `cli.rs` | the command lines, and what is printed |
//! | `evidence.rs` | what is known of a node, as one value |
//! | `saved.rs` | reads a run directory or an unpacked archive |
//! | `look.rs` | asks the daemon, the kernel, the runtime's cache and EC2 |
//! | `networks.rs` | what leads the runtime to us, on the node's disk |
//! | `judge/` | from what is known to what is wrong; pure |
//! | `finding.rs` | what is wrong, how that is seen, and the command that mends it |
//! | `explain.rs` | one pod's address and the way of its packets; pure |
//! | `status.rs` | what `ipamd status` shows of a saved directory |
//! | `bundle.rs`, `dump.rs`, `redact.rs` | the support archive, and what does not get into it |
//!
//! No tool changes anything: what mends is printed, for whoever runs it.

pub mod bundle;
pub mod evidence;
pub mod explain;
pub mod finding;
pub mod judge;
pub mod look;
pub mod saved;

mod cli;
mod dump;
mod networks;
mod redact;
mod status;
mod words;

pub use cli::{Tool, run, saved_status};
