//! What no compiler checks about the files. Each rule says in its message why it is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::steps::Failure;

/// Lines a source file may have.
const LINES_MAX: usize = 800;
/// The file that names what it looks for.
const ITSELF: &str = "crates/xtask/src/tidy.rs";
/// Crates with a door of their own: the only files that may name them (I1).
const DOORS: &[(&str, &[&str])] = &[
    ("aws_sdk_ec2", &["ipamd/src/cloud/ec2.rs"]),
    ("aws_config", &["ipamd/src/cloud/http.rs", "ipamd/src/cloud/imds.rs"]),
    ("aws_sigv4", &["ipamd/src/cloud/cloudwatch.rs"]),
    ("kube::", &["ipamd/src/cluster/api.rs"]),
    ("k8s_openapi", &["ipamd/src/cluster/api.rs", "tests/kit/manifests.rs"]),
];

/// What the rules compare files with.
#[derive(Debug, Default)]
struct Known {
    /// Numbers of the invariants that `ARCHITECTURE.md` lists.
    invariants: BTreeSet<u32>,
    /// Lines of the root's `clippy.toml`.
    clippy: Vec<String>,
}

/// Looks at every file that git has or would add; the working directory is the root of the workspace.
pub(crate) fn complaints() -> Result<Vec<String>, Failure> {
    let listed = git_files()?;
    let read = |path| fs::read_to_string(path).map_err(|error| Failure::Why(format!("{path}: {error}")));
    let known = Known {
        invariants: numbers(&read("ARCHITECTURE.md")?, "- **I"),
        clippy: read("clippy.toml")?.lines().map(str::to_owned).collect(),
    };
    let mut complaints = Vec::new();
    for path in listed.lines().filter(|path| Path::new(path).is_file()) {
        // What is no text is nobody's to tidy.
        let Ok(text) = fs::read_to_string(path) else { continue };
        complaints.extend(check(path, &text, &known).into_iter().map(|why| format!("{path}: {why}")));
    }
    Ok(complaints)
}

fn git_files() -> Result<String, Failure> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run git: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Why(format!("git ls-files: {}", why.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is wrong with one file.
fn check(path: &str, text: &str, known: &Known) -> Vec<String> {
    let mut complaints = Vec::new();
    if path != ITSELF {
        complaints.extend((1..).zip(text.lines()).flat_map(|(number, line)| check_line(path, number, line)));
    }
    if path.ends_with(".rs") {
        complaints.extend(check_rust(path, text, known));
    }
    if path.ends_with("/Cargo.toml") {
        complaints.extend(check_manifest(text));
    }
    if path == "Cargo.lock" {
        complaints.extend(check_lock(text));
    }
    if path.ends_with("/clippy.toml") {
        let missing = known.clippy.iter().filter(|line| !text.lines().any(|other| other == *line));
        complaints.extend(missing.map(|line| format!("shadows the root's file, so must repeat `{line}`")));
    }
    complaints
}

fn check_line(path: &str, number: usize, line: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    // In a table, a tab at the end is an empty last field.
    if line.ends_with([' ', '\t']) && !path.ends_with(".tsv") {
        complaints
            .push(format!("line {number} ends in white space, which makes noise in every later change"));
    }
    if ["TODO", "FIXME", "XXX"].iter().any(|word| line.contains(word)) {
        complaints.push(format!("line {number}: a note to do something belongs into an issue"));
    }
    if ["/work/", "../shared"].iter().any(|place| line.contains(place)) {
        complaints.push(format!("line {number} names a path of one machine, which nobody else has"));
    }
    if ["sparse+http", "index-url", "replace-with"].iter().any(|word| line.contains(word)) {
        complaints
            .push(format!("line {number} names a registry; where packages come from is each machine's own"));
    }
    complaints
}

fn check_rust(path: &str, text: &str, known: &Known) -> Vec<String> {
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push("does not open with what it is for (`//!`)".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        complaints.push(format!("{lines} lines; more than {LINES_MAX} hold more than one idea"));
    }
    for number in cited(text).difference(&known.invariants) {
        complaints.push(format!("cites invariant I{number}, which ARCHITECTURE.md does not have"));
    }
    for (krate, doors) in DOORS {
        if text.contains(krate) && !doors.contains(&path) && path != ITSELF {
            complaints.push(format!("names {krate}, which only {} may (I1)", doors.join(" and ")));
        }
    }
    complaints
}

/// Versions stand in the root's `Cargo.toml` and nowhere else, so that there is one of each.
fn check_manifest(text: &str) -> Vec<String> {
    let mut section = "";
    let mut complaints = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]")
            && line.contains('=')
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            complaints
                .push(format!("`{line}`: versions stand in the root's Cargo.toml, once, with their reason"));
        }
    }
    complaints
}

/// Everything comes from crates.io: what comes from elsewhere can vanish, and nobody else builds with it.
fn check_lock(text: &str) -> Vec<String> {
    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
    let sources = text.lines().filter_map(|line| line.strip_prefix("source = "));
    let strange: BTreeSet<&str> =
        sources.map(|source| source.trim_matches('"')).filter(|source| *source != CRATES_IO).collect();
    strange.into_iter().map(|source| format!("{source} is not crates.io, the one source for all")).collect()
}

/// Invariants that comments cite: `I4` in a line of comment, not part of a longer word.
fn cited(text: &str) -> BTreeSet<u32> {
    let comments = text.lines().filter_map(|line| line.split_once("//")).map(|(_, comment)| comment);
    let words = comments.flat_map(|comment| comment.split(|c: char| !c.is_ascii_alphanumeric()));
    words.filter_map(|word| word.strip_prefix('I')?.parse().ok()).collect()
}

/// Numbers that follow a prefix at the start of a line.
fn numbers(text: &str, prefix: &str) -> BTreeSet<u32> {
    let after = text.lines().filter_map(|line| line.strip_prefix(prefix));
    after.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let invariants = numbers("# A\n- **I1.** one\n- **I2.** two\n", "- **I");
        check(path, text, &Known { invariants, clippy: vec!["threshold = 7".to_owned()] }).len()
    }

    #[test]
    fn a_cited_invariant_must_exist() {
        assert_eq!(count("a.rs", "//! It (I1, I2).\n"), 0);
        assert_eq!(count("a.rs", "//! It holds.\n/// (I3).\n"), 1);
        assert_eq!(count("a.rs", "//! IPv4 and I/O.\n"), 0);
    }

    #[test]
    fn the_sdk_has_its_own_door() {
        assert_eq!(count("crates/node/src/node/mod.rs", "//! x\nuse aws_sdk_ec2::Client;\n"), 1);
        assert_eq!(count("ipamd/src/cloud/imds.rs", "//! x\nuse aws_sdk_ec2::Client;\n"), 1);
        assert_eq!(count("ipamd/src/cloud/imds.rs", "//! x\nuse aws_config::imds;\n"), 0);
        assert_eq!(count("ipamd/src/cloud/ec2.rs", "//! x\nuse aws_sdk_ec2::Client;\n"), 0);
    }

    #[test]
    fn a_source_file_opens_with_its_purpose_and_has_an_end() {
        assert_eq!(count("a.rs", "fn main() {}\n"), 1);
        assert_eq!(count("a.rs", &format!("//! x\n{}", "\n".repeat(LINES_MAX - 1))), 0);
        assert_eq!(count("a.rs", &format!("//! x\n{}", "\n".repeat(LINES_MAX))), 1);
    }

    #[test]
    fn lines_carry_no_noise_no_notes_and_no_places_of_one_machine() {
        for line in ["a ", "a\t", "# TODO: later", "see /work/x", "index-url = https://example.com"] {
            assert_eq!(count("a.md", line), 1, "{line}");
        }
        assert_eq!(count("a.tsv", "a\t\n"), 0);
        assert_eq!(count("a.md", "/workspace, todo\n"), 0);
    }

    #[test]
    fn a_version_outside_the_root_is_refused() {
        let manifest = |line: &str| format!("[package]\nname = \"a\"\n[dev-dependencies]\n{line}\n");

        assert_eq!(count("a/Cargo.toml", &manifest("serde.workspace = true")), 0);
        assert_eq!(count("a/Cargo.toml", &manifest("serde = { workspace = true, features = [] }")), 0);
        assert_eq!(count("a/Cargo.toml", &manifest("serde = \"1\"")), 1);
        assert_eq!(count("Cargo.toml", &manifest("serde = \"1\"")), 0);
    }

    #[test]
    fn a_package_from_elsewhere_is_refused() {
        let from = |source: &str| format!("[[package]]\nname = \"a\"\nsource = \"{source}\"\n");

        assert_eq!(count("Cargo.lock", &from("registry+https://github.com/rust-lang/crates.io-index")), 0);
        assert_eq!(count("Cargo.lock", &from("git+https://example.com/a")), 1);
    }

    #[test]
    fn lint_settings_of_a_crate_repeat_those_they_shadow() {
        assert_eq!(count("crates/a/clippy.toml", "threshold = 7\nmore = true\n"), 0);
        assert_eq!(count("crates/a/clippy.toml", "threshold = 9\n"), 1);
    }
}
