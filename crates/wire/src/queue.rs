//! The delete queue: DELs that came while the daemon was down.
//!
//! The plugin writes a [`QueuedDel`] as JSON into one file per sandbox, and succeeds. The daemon replays the
//! files before it serves. The order of locks makes sure that no DEL falls between the two:
//!
//! - plugin: try the socket; on failure take [`LOCK_FILE`] **shared**, try the socket once more, write the
//!   file (temporary name, fsync, rename), unlock;
//! - daemon: take it **exclusively**, replay and remove the files, start to serve, only then unlock.
//!
//! A retried DEL writes the same file again. More than [`FILES_MAX`] files make DEL fail, so that the runtime backs off.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use types::SandboxKey;

use crate::Detachment;

/// Directory of the queue unless configured.
pub const DIRECTORY: &str = "/var/run/aws-node/delete-queue";

/// Name of the lock file within it.
pub const LOCK_FILE: &str = "lock";

/// Ending of the queue's files.
pub const SUFFIX: &str = ".delete";

/// How many files the queue may hold.
pub const FILES_MAX: usize = 1024;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedDel {
    /// What to take away.
    #[serde(flatten)]
    pub detachment: Detachment,
    /// When the DEL started, as in [`crate::Request`]: an ADD that started before comes too late.
    #[serde(default)]
    pub started_ns: u64,
}

/// The file for one sandbox: a hash, so that whatever the key holds the name is plain and short.
#[must_use]
pub fn file_name(key: &SandboxKey) -> String {
    let mut hash = Sha1::new();
    for part in [key.network_name(), "\0", key.container_id(), "\0", key.if_name()] {
        hash.update(part);
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    format!("{hex}{SUFFIX}")
}
