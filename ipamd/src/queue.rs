//! The delete queue, seen from the daemon: lock it, replay it, serve, only then unlock (see [`wire::queue`]).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use wire::queue::{FILES_MAX, LOCK_FILE, QueuedDel, SUFFIX};

use crate::lock;

/// A queued DEL is under 2 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The queue, locked against plugins: they wait, for a short while, until this is dropped.
#[derive(Debug)]
pub(crate) struct LockedQueue {
    directory: PathBuf,
    _lock: File,
}

/// One DEL that waits to be replayed.
#[derive(Debug)]
pub(crate) struct Queued {
    /// The file; remove it when the DEL is done.
    pub(crate) path: PathBuf,
    /// What it asks; `None` for a file that is not ours to understand. One that could not be read may be a DEL all the same.
    pub(crate) del: io::Result<Option<QueuedDel>>,
}

impl LockedQueue {
    /// Makes the directory if need be and takes the lock, exclusively; waits for plugins that are writing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) async fn lock(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let lock = lock::open(&directory.join(LOCK_FILE))?;
        lock::exclusive(&lock).await?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// What is in the queue, in the order of names.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub(crate) fn list(&self) -> io::Result<Vec<Queued>> {
        let mut paths =
            fs::read_dir(&self.directory)?.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        // Nobody writes while the lock is ours: a temporary file is what a killed plugin left.
        for left in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "tmp")) {
            fs::remove_file(left)?;
        }
        paths.retain(|path| path.to_string_lossy().ends_with(SUFFIX));
        paths.sort();
        paths.truncate(FILES_MAX);
        Ok(paths.into_iter().map(|path| Queued { del: read(&path), path }).collect())
    }
}

fn read(path: &Path) -> io::Result<Option<QueuedDel>> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}
