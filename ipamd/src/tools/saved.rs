//! Reads a run directory, or what somebody says is one. Nothing is written, and whatever lies there is a finding at worst:
//! lengths and numbers are bounded, and only plain files are opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pool::Owner;
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use types::Moment;
use wire::queue::{FILES_MAX, LOCK_FILE, QueuedDel, SUFFIX};

use super::evidence::{FileSeen, Saved};
use super::look::LIVE_FILE;
use crate::host::record_file;
use crate::install::published_file;
use crate::node::replay;
use crate::store::{Loaded, READ_BYTES_MAX};

/// Longest record or document that is read.
const JSON_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A queued DEL is under 2 KiB.
const DEL_BYTES_MAX: u64 = 64 * 1024;
/// The directory in an archive that has everything.
pub(super) const ARCHIVE_DIR: &str = "ipamd";
/// Most entries of a directory that are looked at.
pub(super) const ENTRIES_MAX: usize = 8 * FILES_MAX;

/// A plain file's bytes, up to so many; `None` when there is no such file.
pub(super) fn bytes(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = plain_file(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Opens a plain file. Not through a link, which may lead anywhere, and not a pipe, which may never end.
pub(super) fn plain_file(path: &Path) -> io::Result<Option<File>> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::other("not a plain file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A JSON document; `None` when there is no such file.
///
/// # Errors
/// In words.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let bytes = bytes(path, JSON_BYTES_MAX).map_err(|error| format!("{}: {error}", path.display()))?;
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
    bytes.map(read).transpose().map_err(|error| format!("{}: {error}", path.display()))
}

/// The directory that somebody means who names `path`: itself, or `ipamd` in it, which is what an archive unpacks to.
///
/// # Errors
/// In words, what to name instead.
pub fn directory(path: &Path) -> Result<PathBuf, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_dir() {
        return Err(format!(
            "{shown} is no directory: an archive is unpacked first (tar -xzf {shown}), and ipamd named"
        ));
    }
    let held = [PathBuf::from("state"), record_file(Path::new("")), PathBuf::from(LIVE_FILE)];
    let is_one = |dir: &Path| held.iter().any(|file| dir.join(file).symlink_metadata().is_ok());
    let candidates = [path.to_owned(), path.join(ARCHIVE_DIR)];
    candidates.into_iter().find(|dir| is_one(dir)).ok_or_else(|| {
        let held = held.map(|file| file.display().to_string()).join(", ");
        format!("{shown} is neither a daemon's directory nor an unpacked archive: there is none of {held}")
    })
}

/// What a directory holds.
#[must_use]
pub fn read(dir: &Path, now: Moment) -> Saved {
    let mut saved = Saved::default();
    if let Err(error) = std::fs::read_dir(dir) {
        saved.unread = true;
        saved.troubles.push(format!("{}: {error}", dir.display()));
        return saved;
    }
    match loaded(dir) {
        Ok(None) => {}
        Ok(Some(loaded)) => {
            saved.has_state = true;
            saved.owners = owners(&loaded, now);
            saved.damage = loaded.damage;
        }
        Err(error) => {
            saved.unread = true;
            saved.troubles.push(format!("{}: {error}", dir.join("state").display()));
        }
    }
    match json(&record_file(dir)) {
        Ok(record) => saved.record = record,
        Err(trouble) => saved.troubles.push(trouble),
    }
    match json(&published_file(dir)) {
        Ok(published) => saved.published = published,
        Err(trouble) => saved.troubles.push(trouble),
    }
    let is_set_aside = |name: &String| name.starts_with("state.damaged-");
    saved.set_aside = names(dir).unwrap_or_default().into_iter().filter(is_set_aside).collect();
    queue(&dir.join("delete-queue"), &mut saved);
    saved
}

/// The lines of the state file.
pub(super) fn loaded(dir: &Path) -> io::Result<Option<Loaded>> {
    Ok(bytes(&dir.join("state"), READ_BYTES_MAX)?.map(|bytes| Loaded::parse(&bytes)))
}

fn owners(loaded: &Loaded, now: Moment) -> Vec<(Owner, Ipv4Addr)> {
    // Who holds what does not depend on the cooldown.
    let pool = replay(loaded.records.clone(), Duration::ZERO, now).pool;
    pool.holders().map(|(owner, address)| (owner.clone(), address)).collect()
}

fn queue(dir: &Path, saved: &mut Saved) {
    let found = match names(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return saved.troubles.push(format!("{}: {error}", dir.display())),
    };
    for name in found.into_iter().filter(|name| name != LOCK_FILE) {
        let text = bytes(&dir.join(&name), DEL_BYTES_MAX).ok().flatten().unwrap_or_default();
        match serde_json::from_slice::<QueuedDel>(&text) {
            Ok(del) if name.ends_with(SUFFIX) => saved.queue.push(del),
            Ok(_) | Err(_) => saved.queue_foreign.push(name),
        }
    }
}

/// Names in a directory, in order; those that are no text are shown as well as they can be.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)?.take(ENTRIES_MAX);
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Who may read what in the run directory.
pub(super) fn files(dir: &Path) -> Vec<FileSeen> {
    let queue = names(&dir.join("delete-queue")).unwrap_or_default();
    let below = names(dir).unwrap_or_default();
    let names = std::iter::once(String::new())
        .chain(below)
        .chain(queue.into_iter().map(|name| format!("delete-queue/{name}")));
    let seen = |name: String| {
        let metadata = std::fs::symlink_metadata(dir.join(&name)).ok()?;
        let (mode, uid, bytes) = (metadata.mode() & 0o7777, metadata.uid(), metadata.len());
        Some(FileSeen { name, mode, uid, bytes })
    };
    names.filter_map(seen).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::Store;

    #[test]
    fn a_directory_that_is_not_there_is_a_trouble() {
        let saved = read(Path::new("/nonexistent/run"), Moment(1));

        assert_eq!(saved.troubles.len(), 1, "{saved:?}");
        assert!(saved.unread);
    }

    #[test]
    fn an_archive_that_is_not_unpacked_is_refused_with_what_to_do() {
        let archive = tempfile::NamedTempFile::new().unwrap();

        let why = directory(archive.path()).unwrap_err();

        assert!(why.contains("unpacked first (tar -xzf "), "{why}");
    }

    #[test]
    fn the_directory_that_an_archive_was_unpacked_in_is_as_good_as_the_one_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let within = dir.path().join("ipamd");
        std::fs::create_dir(&within).unwrap();

        let nothing = directory(dir.path()).unwrap_err();
        std::fs::write(within.join("live.json"), "{}").unwrap();

        assert!(nothing.contains("there is none of state, host.json, live.json"), "{nothing}");
        assert_eq!(directory(dir.path()).unwrap(), within);
        assert_eq!(directory(&within).unwrap(), within);
    }

    #[test]
    fn what_is_read_is_not_touched_even_when_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        drop(Store::create(&state, &pool::Snapshot::default(), crate::store::Ipv6Books::default()).unwrap());
        let mut bytes = std::fs::read(&state).unwrap();
        bytes.extend(b"not a line\n");
        std::fs::write(&state, &bytes).unwrap();

        let saved = read(dir.path(), Moment(1));

        assert!(saved.damage.is_some_and(|damage| damage.contains("the first is 2")));
        assert_eq!(std::fs::read(&state).unwrap(), bytes);
        assert_eq!(names(dir.path()).unwrap(), ["state"]);
    }

    #[test]
    fn links_pipes_and_foreign_files_are_troubles_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/dev/zero", dir.path().join("state")).unwrap();
        let pipe = dir.path().join("host.json");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let queue = dir.path().join("delete-queue");
        std::fs::create_dir(&queue).unwrap();
        std::fs::write(queue.join("x.delete"), [0xff; 10]).unwrap();

        let saved = read(dir.path(), Moment(1));

        assert_eq!(saved.troubles.len(), 2, "{saved:?}");
        assert_eq!(saved.queue_foreign, ["x.delete"]);
    }
}
