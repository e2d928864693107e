//! Files of the repository that say what another place says: what the table of settings makes, and what the chart has of the manifests.
//!
//! They are committed, so that they can be read; a test fails when they are not what the table makes of them.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::reference;

/// Lines between which a part of a file is written.
const BEGIN: &str = "# Settings, by `cargo xtask gen`.";
const END: &str = "# End of settings.";

/// A file, and what it should say, given what it says.
type File = (&'static str, fn(&str) -> Option<String>);

/// The files.
const FILES: &[File] = &[
    ("CONFIGURATION.md", |_| Some(reference::markdown())),
    ("manifests/daemonset.yaml", |text| between(text, reference::manifest_env)),
    ("manifests/chart/values.yaml", |text| between(text, reference::chart_env)),
    ("manifests/chart/values.schema.json", |_| Some(reference::chart_schema())),
];

/// Files that the chart cannot read where they are, and where it has them.
const COPIES: &[(&str, &str)] = &[
    ("manifests/crd-eniconfig.yaml", "manifests/chart/files/crd-eniconfig.yaml"),
    ("manifests/prometheusrule.yaml", "manifests/chart/files/prometheusrule.yaml"),
];

/// Why files cannot be written or are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The file system refused.
    #[error("{path}")]
    Io {
        /// The file.
        path: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file lacks the lines between which to write.
    #[error("{0} has no line `{BEGIN}` with a line `{END}` after it")]
    NoPlace(&'static str),
    /// Files differ from what they should say.
    #[error("not what another place says, `cargo xtask gen` rewrites them: {0}")]
    Differ(String),
}

/// Rewrites the files below `root` that differ, and names them; or, to `check`, complains of them.
///
/// # Errors
/// When a file cannot be read or written, or when one that is checked differs.
pub fn run(root: &Path, check: bool) -> Result<Vec<&'static str>, GenerateError> {
    let mut files = Vec::new();
    for (path, wanted) in FILES {
        let there = read(root, path)?;
        files.push((*path, wanted(&there).ok_or(GenerateError::NoPlace(path))?, there));
    }
    for (from, to) in COPIES {
        files.push((*to, read(root, from)?, read(root, to)?));
    }
    let mut differ = Vec::new();
    for (path, wanted, _) in files.into_iter().filter(|(_, wanted, there)| wanted != there) {
        differ.push(path);
        if !check {
            fs::write(root.join(path), wanted).map_err(|source| GenerateError::Io { path, source })?;
        }
    }
    if check && !differ.is_empty() {
        return Err(GenerateError::Differ(differ.join(", ")));
    }
    Ok(differ)
}

/// A file's text; none for one that is not there yet.
fn read(root: &Path, path: &'static str) -> Result<String, GenerateError> {
    match fs::read_to_string(root.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| GenerateError::Io { path, source }),
    }
}

/// A text with other lines between the two that say where; they are as far to the right as those.
fn between(text: &str, lines: fn(&str) -> String) -> Option<String> {
    let begin = text.find(BEGIN)?;
    let indent = text.get(..begin)?.rsplit('\n').next()?;
    let head = begin + BEGIN.len();
    let end = head + text.get(head..)?.find(END)?;
    Some(format!("{}\n{}{indent}{}", text.get(..head)?, lines(indent), text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_say_what_they_should() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");

        run(&root, true).unwrap();
    }

    #[test]
    fn only_what_stands_between_the_two_lines_changes() {
        let text = format!("a:\n  {BEGIN}\n  old\n  {END}\nb:\n");

        let new = between(&text, |indent| format!("{indent}new\n")).unwrap();

        assert_eq!(new, format!("a:\n  {BEGIN}\n  new\n  {END}\nb:\n"));
        assert_eq!(between("a:\n", |_| String::new()), None);
        assert_eq!(between(&format!("{END} {BEGIN}"), |_| String::new()), None);
    }
}
