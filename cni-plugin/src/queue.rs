//! The plugin's side of the delete queue: what a DEL does while the daemon is down.
//!
//! See [`wire::queue`] for the order of locks that keeps a DEL from falling between the plugin and a daemon
//! that is just starting.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use wire::queue::{FILES_MAX, LOCK_FILE, QueuedDel, file_name};

use crate::patience::Patience;

/// How often the lock is tried while the daemon replays the queue.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why a DEL could not be put off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the delete queue at {} cannot be written", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the delete cannot be encoded")]
    Encode(#[source] serde_json::Error),
    #[error("the daemon held the delete queue for too long")]
    Locked,
    #[error("the delete queue holds {FILES_MAX} deletes already")]
    Full,
}

/// The queue while the daemon cannot begin to replay it.
#[derive(Debug)]
pub(crate) struct LockedQueue<'a> {
    directory: &'a Path,
    _lock: File,
}

impl<'a> LockedQueue<'a> {
    /// Takes the queue's lock, shared; makes the directory if it is the first to need it.
    pub(crate) fn lock(directory: &'a Path, patience: &Patience) -> Result<Self, QueueError> {
        let failed = |source| QueueError::Io { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let path = directory.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        loop {
            match lock.try_lock_shared() {
                Ok(()) => return Ok(Self { directory, _lock: lock }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            let left = patience.left().ok_or(QueueError::Locked)?;
            thread::sleep(left.min(LOCK_RETRY));
        }
    }

    /// Puts a DEL into the queue: after this it survives a crash of the node.
    pub(crate) fn put(&self, del: &QueuedDel) -> Result<(), QueueError> {
        let name = file_name(&del.detachment.sandbox);
        let path = self.directory.join(&name);
        let bytes = serde_json::to_vec(del).map_err(QueueError::Encode)?;
        let failed = |source| QueueError::Io { path: self.directory.to_owned(), source };
        if !path.exists() && self.is_full().map_err(failed)? {
            return Err(QueueError::Full);
        }
        // The same sandbox may be deleted by two processes at once; each writes its own file.
        let temporary = self.directory.join(format!("{name}.{}.tmp", std::process::id()));
        let written = write_synced(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &path));
        if let Err(source) = written {
            let _left_behind = fs::remove_file(&temporary);
            return Err(failed(source));
        }
        File::open(self.directory).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Files of any name count, so that whatever leaves them behind the queue stays bounded.
    fn is_full(&self) -> io::Result<bool> {
        let others =
            fs::read_dir(self.directory)?.filter(|e| !e.as_ref().is_ok_and(|e| e.file_name() == LOCK_FILE));
        Ok(others.take(FILES_MAX).count() == FILES_MAX)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use types::{PodName, SandboxKey, VethPrefix};
    use wire::Detachment;

    use super::*;

    fn del_of(container_id: &str) -> QueuedDel {
        let sandbox = SandboxKey::new("aws-cni", container_id, "eth0").unwrap();
        let (pod, veth_prefix) = (PodName::default(), VethPrefix::default());
        let detachment = Detachment { sandbox, pod, veth_prefix, addresses: Vec::new() };
        QueuedDel { detachment, started_ns: 7 }
    }

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_repeated_delete_is_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let queue = LockedQueue::lock(&path, &Patience::new()).unwrap();

        queue.put(&del_of("a")).unwrap();
        queue.put(&del_of("a")).unwrap();

        let name = file_name(&del_of("a").detachment.sandbox);
        let text = fs::read(path.join(&name)).unwrap();
        assert_eq!(serde_json::from_slice::<QueuedDel>(&text).unwrap(), del_of("a"));
        assert_eq!(names(&path).len(), 2, "the file and the lock");
    }

    #[test]
    fn a_full_queue_takes_nothing_new_and_rewrites_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let queue = LockedQueue::lock(dir.path(), &Patience::new()).unwrap();
        queue.put(&del_of("a")).unwrap();
        for n in 1..FILES_MAX {
            fs::write(dir.path().join(format!("{n}.delete")), "").unwrap();
        }

        assert!(matches!(queue.put(&del_of("b")), Err(QueueError::Full)));
        assert!(queue.put(&del_of("a")).is_ok());
        assert_eq!(names(dir.path()).len(), FILES_MAX + 1);
    }

    #[test]
    fn a_lock_that_the_daemon_keeps_ends_our_patience() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::create(dir.path().join(LOCK_FILE)).unwrap();
        held.lock().unwrap();

        let error =
            LockedQueue::lock(dir.path(), &Patience::new().at_most(Duration::from_millis(20))).unwrap_err();

        assert!(matches!(error, QueueError::Locked));
    }

    #[test]
    fn plugins_do_not_lock_each_other_out() {
        let dir = tempfile::tempdir().unwrap();

        let _first = LockedQueue::lock(dir.path(), &Patience::new()).unwrap();

        assert!(LockedQueue::lock(dir.path(), &Patience::new().at_most(Duration::from_millis(20))).is_ok());
    }

    #[test]
    fn a_queue_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();

        assert!(matches!(LockedQueue::lock(&file, &Patience::new()), Err(QueueError::Io { .. })));
    }
}
