//! What no compiler checks. Each rule says in its message why it is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::steps::Failure;

/// Lines a source file may have.
const LINES_MAX: usize = 800;

/// Checks every file that git knows.
pub(crate) fn run() -> Result<(), Failure> {
    println!("── tidy");
    let output =
        Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run git: {error}")))?;
    if !output.status.success() {
        return Err(Failure::Why(
            "git does not list the files; tidy looks at those of a checkout".to_owned(),
        ));
    }
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let invariants = numbers(&fs::read_to_string("ARCHITECTURE.md").unwrap_or_default(), "- **I");
    let mut complaints = Vec::new();
    for path in listed.lines().filter(|path| Path::new(path).is_file()) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        complaints.extend(check(path, &text, &invariants).into_iter().map(|why| format!("{path}: {why}")));
    }
    for complaint in &complaints {
        println!("   {complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        n => Err(Failure::Why(format!("{n} untidy places"))),
    }
}

/// What is wrong with one file.
fn check(path: &str, text: &str, invariants: &BTreeSet<u32>) -> Vec<String> {
    let mut complaints = Vec::new();
    // This file names what it looks for.
    if path.ends_with("tidy.rs") {
        return complaints;
    }
    for (number, line) in (1..).zip(text.lines()) {
        if line.ends_with([' ', '\t']) {
            complaints
                .push(format!("line {number} ends in white space, which makes noise in every later change"));
        }
        if ["TODO", "FIXME", "XXX"].iter().any(|word| line.contains(word)) {
            complaints.push(format!("line {number}: a note to do something belongs into an issue"));
        }
        if line.contains(concat!("/wo", "rk/")) {
            complaints.push(format!("line {number} names a path of one machine"));
        }
    }
    if path.ends_with(".rs") {
        complaints.extend(check_rust(path, text, invariants));
    }
    complaints
}

fn check_rust(path: &str, text: &str, invariants: &BTreeSet<u32>) -> Vec<String> {
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push("does not open with what it is for".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        complaints.push(format!("{lines} lines; more than {LINES_MAX} hold more than one idea"));
    }
    for number in cited(text).difference(invariants) {
        complaints.push(format!("cites invariant I{number}, which ARCHITECTURE.md does not have"));
    }
    for (krate, doors) in [
        ("aws_sdk_ec2", &["ipamd/src/cloud/ec2"][..]),
        ("aws_config", &["ipamd/src/cloud/ec2", "ipamd/src/cloud/imds"][..]),
    ] {
        if text.contains(krate) && !doors.iter().any(|door| path.starts_with(door)) {
            complaints.push(format!("names {krate}, which has its own door (I1)"));
        }
    }
    complaints
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

#[test]
fn a_cited_invariant_must_exist() {
    let known = numbers("# A\n- **I1.** one\n- **I2.** two\n", "- **I");

    assert!(check("a.rs", "//! It (I1, I2).\n", &known).is_empty());
    assert_eq!(check("a.rs", "//! It (I3).\n", &known).len(), 1);
    assert!(check("a.rs", "//! IPv4 and I/O.\n", &known).is_empty());
}

#[test]
fn the_sdk_has_its_own_door() {
    let known = BTreeSet::new();

    assert_eq!(check("ipamd/src/node/mod.rs", "//! x\nuse aws_sdk_ec2::Client;\n", &known).len(), 1);
    assert!(check("ipamd/src/cloud/ec2.rs", "//! x\nuse aws_sdk_ec2::Client;\n", &known).is_empty());
}
