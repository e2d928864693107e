//! Files of the repository that say what another place says: what the table of settings makes, and what the chart has of the manifests.
//!
//! They are committed, so that they can be read; a test fails when they are not what the table makes of them.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::reference;
use node::cluster::{ENI_CONFIG_FIELDS, Field};

/// Lines between which a part of a file is written.
const SETTINGS: (&str, &str) = ("# Settings, by `cargo xtask gen`.", "# End of settings.");
const SPEC: (&str, &str) = ("# Fields, by `cargo xtask gen`.", "# End of fields.");

/// A file, and what it should say, given what it says.
type File = (&'static str, fn(&str) -> Option<String>);

/// The files.
const FILES: &[File] = &[
    ("CONFIGURATION.md", |_| Some(reference::markdown())),
    ("manifests/crd-eniconfig.yaml", |text| between(text, SPEC, spec)),
    ("manifests/daemonset.yaml", |text| between(text, SETTINGS, reference::manifest_env)),
    ("manifests/chart/values.yaml", |text| between(text, SETTINGS, reference::chart_env)),
    ("manifests/chart/values.schema.json", |_| Some(reference::chart_schema())),
];

/// Files that the chart cannot read where they are, and where it has them. Helm makes what is in `crds` before it asks the API server what the templates' kinds are.
const COPIES: &[(&str, &str)] = &[
    ("manifests/crd-eniconfig.yaml", "manifests/chart/crds/eniconfig.yaml"),
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
    #[error("{0} has not the two lines that say where to write")]
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
        let made = files.iter().find(|(path, ..)| path == from).map(|(_, made, _)| made.clone());
        let made = made.map_or_else(|| read(root, from), Ok)?;
        files.push((*to, made, read(root, to)?));
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

/// The fields of an ENIConfig's `spec`, as OpenAPI has them: what is null is not set.
fn spec(indent: &str) -> String {
    let field = |field: &Field| {
        let Field { name, is_list, doc } = field;
        let kind = if *is_list { "type: array, items: { type: string }" } else { "type: string" };
        format!("{indent}{name}: {{ {kind}, nullable: true, description: \"{doc}\" }}\n")
    };
    ENI_CONFIG_FIELDS.iter().map(field).collect()
}

/// A text with other lines between the two that say where; they are as far to the right as those.
fn between(text: &str, (begin, end): (&str, &str), lines: fn(&str) -> String) -> Option<String> {
    let head = begin.len();
    let begin = text.find(begin)?;
    let indent = text.get(..begin)?.rsplit('\n').next()?;
    let head = begin + head;
    let end = head + text.get(head..)?.find(end)?;
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
        let (begin, end) = SETTINGS;
        let text = format!("a:\n  {begin}\n  old\n  {end}\nb:\n");

        let new = between(&text, SETTINGS, |indent| format!("{indent}new\n")).unwrap();

        assert_eq!(new, format!("a:\n  {begin}\n  new\n  {end}\nb:\n"));
        assert_eq!(between("a:\n", SETTINGS, |_| String::new()), None);
        assert_eq!(between(&format!("{end} {begin}"), SETTINGS, |_| String::new()), None);
    }
}
