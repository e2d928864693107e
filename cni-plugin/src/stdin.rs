//! Standard input: bounded in length and time.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Deserialize;

use crate::patience::Patience;

/// The most that is read: `runtimeConfig` may carry all annotations of the pod, and users put anything there.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// VERSION works without standard input, and people start it by hand.
const VERSION_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest `cniVersion` that VERSION repeats, in bytes.
const VERSION_BYTES_MAX: usize = 32;

/// Standard input that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdinError {
    #[error("error reading from stdin")]
    Read(#[source] Errno),
    #[error("stdin did not end in time")]
    Slow,
    #[error("stdin is longer than {BYTES_MAX} bytes")]
    Long,
}

/// All of standard input.
pub(crate) fn read(stdin: BorrowedFd<'_>, patience: &Patience) -> Result<Vec<u8>, StdinError> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        wait(stdin, patience)?;
        let len =
            rustix::io::retry_on_intr(|| rustix::io::read(stdin, &mut chunk)).map_err(StdinError::Read)?;
        if len == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&chunk[..len]);
        if bytes.len() > BYTES_MAX {
            return Err(StdinError::Long);
        }
    }
}

/// The `cniVersion` that a VERSION call came with, if it came with one.
pub(crate) fn asked_version(stdin: BorrowedFd<'_>, patience: &Patience) -> Option<String> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(rename = "cniVersion")]
        version: String,
    }

    let bytes = read(stdin, &patience.at_most(VERSION_TIMEOUT)).ok()?;
    let asked: Asked = serde_json::from_slice(&bytes).ok()?;
    Some(asked.version).filter(|v| v.len() <= VERSION_BYTES_MAX)
}

/// Returns when a read would not block.
fn wait(stdin: BorrowedFd<'_>, patience: &Patience) -> Result<(), StdinError> {
    let left = patience.left().ok_or(StdinError::Slow)?;
    let timeout = Timespec::try_from(left).ok().ok_or(StdinError::Slow)?;
    let mut fds = [PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout))).map_err(StdinError::Read)?;
    if ready == 0 { Err(StdinError::Slow) } else { Ok(()) }
}
