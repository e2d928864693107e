//! The state on disk: one file, a snapshot line and then one line per change.
//!
//! What is in a line [`node::store`] says. A change costs one append and one `fdatasync`, whatever the number of pods. When the file has
//! grown, a new one is written beside it and moved into place. Damage sets the file aside under another name and is reported: never fatal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pool::Snapshot;
use types::Moment;

pub use node::store::{Ipv6Books, Loaded, Record, VERSION, line};

/// The file is rewritten when it is longer than this: about 10,000 changes.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A state file longer than this is not ours.
pub const READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {doing} the state file {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The open state file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Store {
    /// Reads what is there, whatever it is.
    ///
    /// # Errors
    /// When the file exists and cannot be read at all.
    pub fn load(path: &Path, now: Moment) -> Result<Loaded, StoreError> {
        let fail = |doing, source| StoreError::Io { doing, path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(READ_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| fail("read", e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::default()),
            Err(e) => return Err(fail("open", e)),
        };
        let loaded = Loaded::parse(&bytes);
        let Some(damage) = loaded.damage else { return Ok(loaded) };
        let damage = format!("{damage}; {}", set_aside(path, &bytes, now));
        Ok(Loaded { damage: Some(damage), ..loaded })
    }

    /// Starts a new file with this snapshot and moves it into place.
    ///
    /// # Errors
    /// When the file system refuses; the old file is then as it was.
    pub fn create(path: &Path, snapshot: &Snapshot, ipv6: Ipv6Books) -> Result<Self, StoreError> {
        let record = Record::Snapshot { version: VERSION, pool: Box::new(snapshot.clone()), ipv6 };
        let replace = || -> io::Result<(File, u64)> {
            let staged = path.with_extension("new");
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&staged)?;
            let line = line(&record)?;
            file.write_all(&line)?;
            file.sync_all()?;
            std::fs::rename(&staged, path)?;
            if let Some(directory) = path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok((file, u64::try_from(line.len()).unwrap_or(u64::MAX)))
        };
        let (file, bytes) =
            replace().map_err(|source| StoreError::Io { doing: "write", path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Appends records and waits until they are on disk.
    ///
    /// # Errors
    /// When the file system refuses. A part of a line may have been written: the caller must [`Self::create`] anew
    /// before it appends again.
    pub fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut write = || -> io::Result<u64> {
            let lines: Vec<u8> = records.iter().map(line).collect::<io::Result<Vec<_>>>()?.concat();
            self.file.write_all(&lines)?;
            self.file.sync_data()?;
            Ok(u64::try_from(lines.len()).unwrap_or(u64::MAX))
        };
        let written = write().map_err(|source| StoreError::Io {
            doing: "append to",
            path: self.path.clone(),
            source,
        })?;
        self.bytes = self.bytes.saturating_add(written);
        Ok(())
    }

    /// Whether it is time to [`Self::create`] a new file.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.bytes > BYTES_MAX
    }
}

/// Keeps a copy of a damaged file with this content beside it, for people: the newest two, and none twice. Says in words what came of
/// it; a disk that is full is no reason to end.
pub(crate) fn set_aside(path: &Path, content: &[u8], now: Moment) -> String {
    let kept = || -> io::Result<PathBuf> {
        let before = kept_aside(path)?;
        if let Some((_, same)) = before.iter().find(|(_, aside)| is_content(aside, content)) {
            return Ok(same.clone());
        }
        let (aside, staged) =
            (path.with_extension(format!("damaged-{}", now.0)), path.with_extension("damaged.new"));
        for (_, old) in before.iter().filter(|(_, old)| *old != aside).skip(1) {
            std::fs::remove_file(old)?;
        }
        // Half a copy would only be in the way.
        let copied = std::fs::copy(path, &staged).and_then(|_| std::fs::rename(&staged, &aside));
        copied.inspect_err(|_| drop(std::fs::remove_file(&staged)))?;
        Ok(aside)
    };
    match kept() {
        Ok(aside) => format!("kept as {}", aside.display()),
        Err(error) => format!("not kept: {error}"),
    }
}

/// The copies that there are of a damaged file, and from when; the newest first.
fn kept_aside(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let Some(directory) = path.parent() else { return Ok(Vec::new()) };
    let is_copy = |found: &PathBuf| {
        let at = found.extension()?.to_str()?.strip_prefix("damaged-")?.parse().ok()?;
        (found.file_stem() == path.file_stem()).then_some(at)
    };
    let found = std::fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut copies: Vec<(u64, PathBuf)> = found.filter_map(|found| Some((is_copy(&found)?, found))).collect();
    copies.sort_by(|a, b| b.cmp(a));
    Ok(copies)
}

/// Whether a file has this content, or begins with it where that is all that was read.
fn is_content(path: &Path, content: &[u8]) -> bool {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes));
    read.is_ok() && bytes == content
}

#[cfg(test)]
mod tests {
    use types::SandboxKey;

    use super::*;

    fn released(id: &str) -> Record {
        Record::Released { sandbox: SandboxKey::new("aws-cni", id, "eth0").unwrap(), at: Moment(7) }
    }

    fn written(directory: &Path) -> PathBuf {
        let path = directory.join("state");
        let mut store = Store::create(&path, &Snapshot::default(), Ipv6Books::default()).unwrap();
        store.append(&[released("a"), released("b")]).unwrap();
        path
    }

    #[test]
    fn what_was_appended_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());

        let loaded = Store::load(&path, Moment(1)).unwrap();

        assert_eq!(loaded.damage, None);
        assert_eq!(loaded.records[1..], [released("a"), released("b")]);
    }

    #[test]
    fn a_cut_last_line_is_what_a_crash_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let bytes = std::fs::read(&path).unwrap();
        for cut in 1..40 {
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();

            let loaded = Store::load(&path, Moment(1)).unwrap();

            assert_eq!((loaded.damage, loaded.records.len()), (None, 2), "{cut} bytes cut");
        }
    }

    #[test]
    fn any_flipped_byte_costs_its_own_line_only_and_the_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x01;
            std::fs::write(&path, &bytes).unwrap();

            let loaded = Store::load(&path, Moment(9)).unwrap();

            assert!(loaded.damage.is_some() || loaded.records.len() == 2, "byte {at} went unnoticed");
            assert!(!loaded.records.is_empty(), "byte {at} cost everything");
        }
        assert!(directory.path().join("state.damaged-9").exists());
    }

    /// What lies beside the state file.
    fn beside(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_damaged_file_is_set_aside_once_and_of_several_the_newest_two_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        std::fs::write(directory.path().join("state.damaged-by-hand"), "kept").unwrap();
        for (at, text) in [(1, "one"), (2, "one"), (3, "two"), (4, "two"), (20, "three")] {
            std::fs::write(&path, text).unwrap();
            let damage = Store::load(&path, Moment(at)).unwrap().damage.unwrap();
            assert!(damage.contains("kept as"), "{damage}");
        }

        let expected = ["state", "state.damaged-20", "state.damaged-3", "state.damaged-by-hand"];
        assert_eq!(beside(directory.path()), expected);
    }

    #[test]
    fn a_damaged_file_that_cannot_be_set_aside_is_loaded_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(b"torn\n");
        std::fs::write(&path, bytes).unwrap();
        // Something is in the way of the copy, as a full disk would be.
        std::fs::create_dir(directory.path().join("state.damaged.new")).unwrap();

        let loaded = Store::load(&path, Moment(9)).unwrap();

        assert_eq!(loaded.records.len(), 3);
        assert!(loaded.damage.unwrap().contains("not kept"));
        assert_eq!(beside(directory.path()), ["state", "state.damaged.new"]);
    }

    #[test]
    fn an_empty_or_foreign_file_is_damage_and_no_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        assert_eq!(Store::load(&path, Moment(1)).unwrap().damage, None);
        for bytes in [&b""[..], b"\n", b"PK\x03\x04", b"{\"version\":\"vpc-cni-ipam/1\"}\n", &[0xff; 4096]] {
            std::fs::write(&path, bytes).unwrap();

            let loaded = Store::load(&path, Moment(1)).unwrap();

            assert!(loaded.damage.is_some() && loaded.records.is_empty(), "{bytes:?}");
        }
    }
}
