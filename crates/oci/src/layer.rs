//! One layer of an image: a tar file without owners and dates.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use crate::sha256;

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const COMPRESSED: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A regular file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// From the root, without a slash before it.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What it holds.
    pub content: Vec<u8>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// As it is stored.
    pub(crate) stored: Vec<u8>,
    pub(crate) media_type: &'static str,
    /// The digest of what it is uncompressed.
    pub(crate) diff_id: String,
}

impl Layer {
    /// A layer of these files, in any order, and the directories they need.
    ///
    /// # Errors
    /// When a path is too long for tar.
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let plain = Self::plain(files)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&plain.stored)?;
        Ok(Self { stored: encoder.finish()?, media_type: COMPRESSED, ..plain })
    }

    /// The same without compression, for archives that do not leave the machine.
    ///
    /// # Errors
    /// When a path is too long for tar.
    pub fn plain(mut files: Vec<File>) -> io::Result<Self> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let stored = tar(&files)?;
        let diff_id = format!("sha256:{}", sha256(&stored));
        Ok(Self { stored, media_type: PLAIN, diff_id })
    }
}

/// A tar file of these files in this order, each directory before what is in it.
pub(crate) fn tar(files: &[File]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let mut made = BTreeSet::new();
    for file in files {
        for (end, _) in file.path.match_indices('/') {
            let directory = &file.path[..=end];
            if made.insert(directory) {
                append(&mut builder, EntryType::Directory, directory, 0o755, &[])?;
            }
        }
        append(&mut builder, EntryType::Regular, &file.path, file.mode, &file.content)?;
    }
    builder.into_inner()
}

fn append(
    builder: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
    // Everything else stays zero: the owner is root, and the date is the same on every machine.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    builder.append(&header, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let file = |path: &str| File { path: path.to_owned(), mode: 0o600, content: b"x".to_vec() };

        let bytes = tar(&[file("a/b/c"), file("a/b/d"), file("e")]).unwrap();

        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let header = entry.unwrap().header().clone();
            let path = header.path().unwrap().display().to_string();
            (path, header.mode().unwrap(), header.mtime().unwrap(), header.uid().unwrap())
        });
        let expected = [("a/", 0o755), ("a/b/", 0o755), ("a/b/c", 0o600), ("a/b/d", 0o600), ("e", 0o600)];
        let expected = expected.map(|(path, mode)| (path.to_owned(), mode, 0, 0));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_path_that_tar_cannot_hold_is_an_error() {
        let long = File { path: "a".repeat(300), mode: 0o644, content: Vec::new() };

        assert!(Layer::new(vec![long]).is_err());
    }
}
