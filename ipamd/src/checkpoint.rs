//! The files of the Go version's checkpoint, one for each network card; what they say is read and written by [`node::checkpoint`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use types::{Moment, NetworkCard, VethPrefix};

pub use node::checkpoint::{Checkpoint, parse, render};

/// A file longer than this is no checkpoint: that is 100,000 pods.
const READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The network cards that there may be.
pub(crate) fn cards() -> impl Iterator<Item = NetworkCard> {
    (0..NetworkCard::COUNT_MAX).map(NetworkCard)
}

/// The file of a network card; `path` is that of the first.
#[must_use]
pub fn path_of(path: &Path, card: NetworkCard) -> PathBuf {
    let stem = path.to_str().and_then(|path| path.strip_suffix(".json"));
    match (card, stem) {
        (NetworkCard(0), _) => path.to_owned(),
        (card, Some(stem)) => format!("{stem}-nic-{card}.json").into(),
        // The Go version replaces an ending that is not there, and has one file for all.
        (card, None) => path.with_extension(format!("nic-{card}")),
    }
}

/// Reads the checkpoint of all network cards. A file that is damaged or of a version that nobody knows is set aside: the kernel tells most
/// of what it said. Returns what they say, `None` if there are none, and what is worth telling.
#[must_use]
pub fn load(path: &Path, prefix: &VethPrefix, now: Moment) -> (Option<Checkpoint>, Vec<String>) {
    let (mut files, mut told) = (Vec::new(), Vec::new());
    for card in cards() {
        let (file, remarks) = load_one(&path_of(path, card), prefix, now);
        files.extend(file.map(|file| (card, file)));
        told.extend(remarks);
    }
    (Checkpoint::of_cards(files, prefix), told)
}

fn load_one(path: &Path, prefix: &VethPrefix, now: Moment) -> (Option<Checkpoint>, Vec<String>) {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, Vec::new()),
        Err(error) => return (None, vec![format!("cannot read the checkpoint {name}: {error}")]),
    }
    match parse(&bytes, prefix) {
        Ok(checkpoint) => {
            let unreadable = Some(checkpoint.unreadable).filter(|count| *count > 0);
            let told = unreadable.map(|count| format!("{name} has {count} entries that cannot be read"));
            (Some(checkpoint), told.into_iter().collect())
        }
        Err(error) => {
            let why = crate::server::chain(&error);
            let kept = crate::store::set_aside(path, &bytes, now);
            (None, vec![format!("{name} is no checkpoint: {why}; {kept}")])
        }
    }
}

/// Puts a checkpoint in place, whole or not at all.
///
/// # Errors
/// When the file system refuses; the file is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("json.new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::Families;

    #[test]
    fn each_network_card_has_its_file() {
        let of = |path: &str, card| path_of(Path::new(path), NetworkCard(card)).display().to_string();

        assert_eq!(of("/run/ipam.json", 0), "/run/ipam.json");
        assert_eq!(of("/run/ipam.json", 1), "/run/ipam-nic-1.json");
        assert_eq!(
            (of("/run/state", 0), of("/run/state", 1)),
            ("/run/state".into(), "/run/state.nic-1".into())
        );
    }

    #[test]
    fn a_file_that_is_no_checkpoint_is_set_aside_and_no_file_is_nothing_to_tell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipam.json");
        let load = || load(&path, &VethPrefix::default(), Moment(9));
        assert_eq!(load(), (None, Vec::new()));
        for text in ["", "{", "[]", "{\"version\":\"vpc-cni-ipam/2\",\"allocations\":[]}", "\u{fffd}"] {
            std::fs::write(&path, text).unwrap();

            let (checkpoint, remarks) = load();

            assert_eq!((checkpoint, remarks.len()), (None, 1), "{text}");
            assert_eq!(std::fs::read_to_string(directory.path().join("ipam.damaged-9")).unwrap(), text);
        }
        write(&path, &render(Families::Dual, NetworkCard(0), [])).unwrap();
        assert_eq!(load().0.map(|checkpoint| checkpoint.ours), Some(true));
    }
}
