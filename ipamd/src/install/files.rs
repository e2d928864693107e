//! Files put in place whole: written beside it, on disk, then moved there. Nobody ever reads or executes half of one.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was none.
    Put,
    /// There was another.
    Replaced,
    /// The same was there; it was not touched.
    Same,
    /// A newer one is there; it was not touched.
    Newer,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put in place",
            Self::Replaced => "replaced",
            Self::Same => "is there already",
            Self::Newer => "a newer one is there and stays",
        })
    }
}

/// Puts an executable in place of whatever is there.
pub(super) fn replace(from: &Path, to: &Path) -> io::Result<Outcome> {
    put(to, &fs::read(from)?, 0o755)
}

/// Puts an executable where there is none, an older one, or another of the same date; its date goes with it, so that the next one can be
/// compared. Files of a reproducible image all have the same date, which says nothing of which is newer: the one that comes goes before.
pub(super) fn put_unless_newer(from: &Path, to: &Path) -> io::Result<Outcome> {
    let dated = fs::metadata(from)?.modified()?;
    match fs::metadata(to) {
        Ok(there) if there.modified()? > dated => return Ok(Outcome::Newer),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let outcome = replace(from, to)?;
    if outcome != Outcome::Same {
        // Opened to read: a runtime may be executing it already, and nobody can write to what is executed.
        File::open(to)?.set_modified(dated)?;
    }
    Ok(outcome)
}

/// Puts these bytes in place, unless they are there.
pub(super) fn put(to: &Path, bytes: &[u8], mode: u32) -> io::Result<Outcome> {
    let there = match read(to, bytes.len()) {
        Ok(there) if there == bytes && mode_of(to)? == mode => return Ok(Outcome::Same),
        Ok(_) => Outcome::Replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Put,
        Err(error) => return Err(error),
    };
    beside(to, |beside| write(beside, bytes, mode))?;
    Ok(there)
}

/// Puts a symbolic link to a file of the same directory in place of whatever is there.
pub(super) fn link(name: &Path, to: &Path) -> io::Result<()> {
    beside(to, |beside| remove(beside).and_then(|()| symlink(name, beside)))
}

/// Makes something beside a place, then moves it there.
fn beside(to: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // Not a name that a runtime takes for a configuration or a plugin.
    let mut beside = to.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = Path::new(&beside);
    let made = make(beside).and_then(|()| fs::rename(beside, to));
    if made.is_err() {
        drop(fs::remove_file(beside));
    }
    made
}

/// What is there, or a little more than `expected` bytes of it.
fn read(path: &Path, expected: usize) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(expected).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn mode_of(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

/// Removes what a run that was cut short has left, which may be a link to elsewhere.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    remove(path)?;
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_is_there_already_is_not_touched_and_anything_else_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("file");

        assert_eq!(put(&to, b"one", 0o644).unwrap(), Outcome::Put);
        let inode = fs::metadata(&to).unwrap().ino();
        assert_eq!(put(&to, b"one", 0o644).unwrap(), Outcome::Same);
        assert_eq!(fs::metadata(&to).unwrap().ino(), inode);
        assert_eq!(put(&to, b"one and more", 0o644).unwrap(), Outcome::Replaced);
        assert_eq!(put(&to, b"one", 0o644).unwrap(), Outcome::Replaced);
        assert_eq!(put(&to, b"one", 0o600).unwrap(), Outcome::Replaced);

        assert_eq!((fs::read(&to).unwrap().as_slice(), mode_of(&to).unwrap()), (&b"one"[..], 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_run_that_was_cut_short_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let (to, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&other, "not ours").unwrap();
        symlink(&other, dir.path().join("file.tmp")).unwrap();

        put(&to, b"one", 0o755).unwrap();

        assert_eq!(fs::read(&to).unwrap(), b"one");
        assert_eq!(fs::read(&other).unwrap(), b"not ours");
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("file");
        fs::create_dir(&to).unwrap();

        assert!(put(&to, b"one", 0o755).is_err());

        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn date(path: &Path, days: u64) {
        File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(days * 86_400)).unwrap();
    }

    #[test]
    fn of_two_images_whose_files_have_no_date_the_later_ones_neighbour_is_put() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (text, outcome) in [("one", Outcome::Put), ("another", Outcome::Replaced)] {
            fs::write(&from, text).unwrap();
            date(&from, 0);

            assert_eq!(put_unless_newer(&from, &to).unwrap(), outcome);
            assert_eq!(put_unless_newer(&from, &to).unwrap(), Outcome::Same);
            assert_eq!(fs::read_to_string(&to).unwrap(), text);
            assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), UNIX_EPOCH);
        }
    }

    #[test]
    fn a_neighbour_that_is_newer_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "ours").unwrap();
        date(&from, 10);

        assert_eq!(put_unless_newer(&from, &to).unwrap(), Outcome::Put);
        assert_eq!(put_unless_newer(&from, &to).unwrap(), Outcome::Same);
        fs::write(&to, "theirs").unwrap();
        date(&to, 11);
        assert_eq!(put_unless_newer(&from, &to).unwrap(), Outcome::Newer);
        assert_eq!(fs::read(&to).unwrap(), b"theirs");
        date(&to, 9);
        assert_eq!(put_unless_newer(&from, &to).unwrap(), Outcome::Replaced);
        assert_eq!(fs::read(&to).unwrap(), b"ours");
    }
}
