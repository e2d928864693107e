//! The state on disk: one file, a snapshot line and then one line per change.
//!
//! Every line is a checksum (FNV-1a, hexadecimal), a space, JSON, and a line feed. A change costs one append and one `fdatasync`,
//! whatever the number of pods. When the file has grown, a new one is written beside it and moved into place.
//! A cut last line is what a crash leaves; it was never promised to anyone and is dropped. Any other damage sets
//! the file aside under another name, keeps every line that checks, and is reported: never fatal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pool::Snapshot;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use types::{Ipv6Prefix, Moment, SandboxKey};

use crate::checkpoint::Checkpoint;

/// Version of the file's form. A newer one is set aside, not guessed at.
pub const VERSION: u32 = 1;
/// The file is rewritten when it is longer than this: about 10,000 changes.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A state file longer than this is not ours.
pub const READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "a handful at a time, and each for as long as a write takes")]
pub enum Record {
    /// Everything, at the head of a file.
    Snapshot {
        /// [`VERSION`].
        version: u32,
        /// The pool.
        pool: Box<Snapshot>,
        /// The IPv6 prefix.
        #[serde(default)]
        ipv6: Ipv6Books,
    },
    /// All that is remembered of the IPv6 prefix, anew.
    Ipv6(Ipv6Books),
    /// A sandbox got an address.
    Assigned {
        /// Who.
        owner: pool::Owner,
        /// What.
        address: Ipv4Addr,
    },
    /// A call that takes this away is about to be made: EC2 may go on showing it for a while, also after a restart.
    Leaving {
        /// What.
        leaving: pool::Leaving,
        /// When. Files of before do not tell it.
        #[serde(default)]
        at: Option<Moment>,
    },
    /// A sandbox gave its address back.
    Released {
        /// Who.
        sandbox: SandboxKey,
        /// When; the address cools from then on.
        at: Moment,
    },
}

/// What is remembered of the primary ENI's IPv6 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Books {
    /// The one that we asked EC2 for and have not given back; one of others is never given back.
    pub ours: Option<Ipv6Prefix>,
    /// The one that was last given back, or may have been, and when: EC2 may go on showing it for a while.
    pub left: Option<(Ipv6Prefix, Moment)>,
}

/// What the files held.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Lines in order; a snapshot first, if there was one.
    pub records: Vec<Record>,
    /// What was wrong with the file, in words, and where it was set aside.
    pub damage: Option<String>,
    /// The Go version's checkpoint, which is another file.
    pub checkpoint: Option<Checkpoint>,
}

impl Loaded {
    /// What these bytes of a state file hold.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let (records, damage) = parse(bytes);
        Self { records, damage, checkpoint: None }
    }
}

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

/// A record as a line of the file.
pub(crate) fn line(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = format!("{:016x} ", checksum(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// FNV-1a, 64 bit: tells a torn or bit-flipped line from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The good lines, and what is wrong with the others. A cut last line is not damage.
fn parse(bytes: &[u8]) -> (Vec<Record>, Option<String>) {
    let mut records = Vec::new();
    let mut bad = Vec::new();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    for (number, text) in lines.iter().enumerate() {
        match parse_line(text) {
            Some(Record::Snapshot { version, .. }) if version != VERSION => {
                return (Vec::new(), Some(format!("version {version} is not {VERSION}")));
            }
            Some(record) => records.push(record),
            None if number > 0 && number + 1 == lines.len() && !text.ends_with(b"\n") => {}
            None => bad.push(number + 1),
        }
    }
    if bytes.is_empty() {
        return (records, Some("the file is empty".to_owned()));
    }
    let damage = bad
        .first()
        .map(|first| format!("{} of {} lines are not ours, the first is {first}", bad.len(), lines.len()));
    (records, damage)
}

fn parse_line(text: &[u8]) -> Option<Record> {
    let text = text.strip_suffix(b"\n")?;
    let (sum, rest) = text.split_at_checked(16)?;
    let json = rest.strip_prefix(b" ")?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if sum != checksum(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
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
    fn what_is_remembered_of_the_ipv6_prefix_is_loaded_and_older_files_have_none() {
        let prefix: Ipv6Prefix = "2001:db8::/80".parse().unwrap();
        let books = Ipv6Books { ours: Some(prefix), left: Some((prefix, Moment(7))) };
        let snapshot = |ipv6| Record::Snapshot { version: VERSION, pool: Box::default(), ipv6 };
        for record in [snapshot(books), Record::Ipv6(books)] {
            assert_eq!(parse(&line(&record).unwrap()), (vec![record], None));
        }
        let mut json = serde_json::to_value(snapshot(books)).unwrap();
        json.as_object_mut().unwrap().remove("ipv6");
        let old: Record = serde_json::from_value(json).unwrap();
        assert_eq!(old, snapshot(Ipv6Books::default()));
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
    fn a_leaving_of_before_tells_no_moment() {
        let json = r#"{"record":"leaving","leaving":{"eni":"eni-1","given":null}}"#;
        let told = serde_json::from_str(json).unwrap();
        assert!(matches!(told, Record::Leaving { at: None, .. }));
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
