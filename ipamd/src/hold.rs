//! The operator's brake: a word in a file stops releases, or every change in EC2, at once and until it is gone.
//!
//! Two files are read every other second, and the stricter word counts: one of this node, which `ipamd hold` writes, and one that
//! a `ConfigMap` puts on all nodes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::node::Event;

pub use node::hold::Hold;

/// Pause between two readings.
const EVERY: Duration = Duration::from_secs(2);
/// A longer file is not one of ours.
const BYTES_MAX: u64 = 64;

/// The same on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Word {
    /// Nothing.
    Nothing,
    /// Addresses and ENIs are not given back.
    Releases,
    /// Nothing is changed in EC2.
    Changes,
}

impl From<Word> for Hold {
    fn from(word: Word) -> Self {
        match word {
            Word::Nothing => Self::Nothing,
            Word::Releases => Self::Releases,
            Word::Changes => Self::Changes,
        }
    }
}

/// Where this node's word is.
#[must_use]
pub fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("hold")
}

/// Writes this node's word, into a directory that has to be there: a word in a wrong place would hold back nothing.
///
/// # Errors
/// As the file system says.
pub fn put(run_dir: &Path, hold: Hold) -> io::Result<()> {
    let file = file(run_dir);
    if hold == Hold::Nothing {
        std::fs::read_dir(run_dir)?;
        return match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{hold}\n"))?;
    std::fs::rename(new, file)
}

/// What a file's text holds back. Somebody who wrote a word that is none wanted something held: releases can wait
/// without harm.
fn meant(text: &str) -> Hold {
    match text.trim() {
        "" | "nothing" => Hold::Nothing,
        "changes" => Hold::Changes,
        _ => Hold::Releases,
    }
}

fn read(file: &Path) -> Hold {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => meant(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Hold::Nothing,
        // There is a file, so something is meant.
        Err(_) => Hold::Releases,
    }
}

/// The strictest word of all files.
#[must_use]
pub fn now(files: &[PathBuf]) -> Hold {
    files.iter().map(|file| read(file)).max().unwrap_or_default()
}

/// Tells every change of mind after `last`, until nobody listens.
pub(crate) async fn watch(files: Vec<PathBuf>, mut last: Hold, events: mpsc::Sender<Event>) {
    while !events.is_closed() {
        let hold = now(&files);
        if hold != last && events.send(Event::Held(hold)).await.is_err() {
            return;
        }
        last = hold;
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_stricter_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = [file(dir.path()), dir.path().join("of-all-nodes")];

        assert_eq!(now(&files), Hold::Nothing);
        put(dir.path(), Hold::Releases).unwrap();
        assert_eq!(now(&files), Hold::Releases);
        std::fs::write(&files[1], "changes").unwrap();
        assert_eq!(now(&files), Hold::Changes);
        put(dir.path(), Hold::Nothing).unwrap();
        put(dir.path(), Hold::Nothing).unwrap();
        std::fs::remove_file(&files[1]).unwrap();
        assert_eq!(now(&files), Hold::Nothing);
        assert!(put(&dir.path().join("nowhere"), Hold::Nothing).is_err());
        assert!(put(&dir.path().join("nowhere"), Hold::Changes).is_err());
    }

    #[test]
    fn a_word_that_is_none_holds_releases() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());

        for text in
            [&b"chnages"[..], b"\xff\xfe", b"releases and much more than fits into a file of ours, by a lot"]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(&file), Hold::Releases);
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(read(&file), Hold::Releases);
    }
}
