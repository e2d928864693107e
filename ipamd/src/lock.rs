//! One daemon for each node (I4): whoever holds `daemon.lock` in the run directory owns the state, the sockets, and what is changed in EC2.
//!
//! The kernel gives the lock back when the process ends, however it ends. The file says who took it last, for whoever waits.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file in the run directory.
const FILE: &str = "daemon.lock";
/// How long a daemon that is being replaced may take to end: what the manifests give it (`terminationGracePeriodSeconds`), and some more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(12);
/// How often a lock is tried that somebody else holds.
const RETRY: Duration = Duration::from_millis(5);
/// What is read of who holds it.
const HOLDER_BYTES_MAX: u64 = 256;

/// Why this process may not be the node's daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("{} cannot be locked", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{holder} is the daemon of this node: it still holds {} after {} s", path.display(), waited.as_secs())]
    Held { path: PathBuf, holder: String, waited: Duration },
}

/// That this process is the node's only daemon, for as long as it has this.
#[derive(Debug)]
pub(crate) struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    /// Makes this process the daemon of the node whose directory this is, once no other is; `myself` is what others are told.
    pub(crate) async fn take(run_dir: &Path, myself: &str, patience: Duration) -> Result<Self, LockError> {
        let path = run_dir.join(FILE);
        let failed = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(run_dir).map_err(failed)?;
        let mut file = open(&path).map_err(failed)?;
        if !try_exclusive(&file).map_err(failed)? {
            tracing::info!(holder = holder(&path), "waiting for the daemon before this one to end");
            match tokio::time::timeout(patience, exclusive(&file)).await {
                Ok(locked) => locked.map_err(failed)?,
                Err(_elapsed) => {
                    return Err(LockError::Held { holder: holder(&path), path, waited: patience });
                }
            }
        }
        file.set_len(0).and_then(|()| file.write_all(myself.as_bytes())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Opens a file to be locked; makes it if need be.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Locks a file exclusively once nobody else has it. The kernel is asked again and again, so that who waits here can be told to stop.
pub(crate) async fn exclusive(file: &File) -> io::Result<()> {
    while !try_exclusive(file)? {
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

fn try_exclusive(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Who took the lock last, as it says itself.
fn holder(path: &Path) -> String {
    let mut said = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HOLDER_BYTES_MAX).read_to_end(&mut said));
    let said = String::from_utf8_lossy(&said).trim().escape_debug().to_string();
    match read {
        Ok(_) if !said.is_empty() => said,
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(dir: &Path, myself: &str, patience: Duration) -> Result<DaemonLock, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let taken = runtime.block_on(DaemonLock::take(dir, myself, patience));
        taken.map_err(|error| crate::server::chain(&error))
    }

    #[test]
    fn the_second_is_told_who_the_first_is_and_gets_the_lock_when_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("not/there/yet");
        let first = take(&run_dir, "process 1 of pod aws-node-a", Duration::ZERO).unwrap();

        let refused = take(&run_dir, "process 2", Duration::from_millis(20)).unwrap_err();

        assert!(refused.starts_with("process 1 of pod aws-node-a is the daemon of this node"), "{refused}");
        assert_eq!(holder(&run_dir.join(FILE)), "process 1 of pod aws-node-a", "who waits writes nothing");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take(&run_dir, "process 3", Duration::from_secs(60)).unwrap());
            drop(first);
            let _held = second.join().unwrap();
            assert_eq!(holder(&run_dir.join(FILE)), "process 3");
        });
    }

    #[test]
    fn a_file_that_says_nothing_or_nonsense_is_no_reason_not_to_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for (said, holder_is) in
            [(&b""[..], "another process"), (b"\x1b[2J\n", "\\u{1b}[2J"), (&[b'x'; 999], "x")]
        {
            fs::write(&path, said).unwrap();
            let told = holder(&path);
            assert!(told.starts_with(holder_is) && told.len() <= 256, "{told}");
        }
        fs::create_dir(dir.path().join("taken")).unwrap();
        fs::create_dir(dir.path().join("taken").join(FILE)).unwrap();
        let refused = take(&dir.path().join("taken"), "process 1", Duration::ZERO).unwrap_err();
        assert!(refused.contains("cannot be locked"), "{refused}");
    }
}
