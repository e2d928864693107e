//! Running the tests and counting them: one closing line for all, and every skip with its reason.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::build::Built;
use crate::moto::Moto;
use crate::steps::{Failure, cargo, step};

/// Tests that are told when none has the name that was given.
const NEAREST: usize = 5;

/// Totals over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Why tests were skipped, where their line says it.
    reasons: BTreeSet<String>,
}

/// Names of the tests that contain `name`.
///
/// # Errors
/// When there is none: a slip of the pen must not look like tests that pass.
pub(crate) fn named(built: &Built, name: &str) -> Result<Vec<String>, Failure> {
    let mut build = cargo(&["test", "--workspace", "--locked", "--no-run"]);
    build.envs(built.environment());
    step("build the tests, to know their names (from nothing: some ten minutes)", build)?;
    let mut command = cargo(&["test", "--workspace", "--locked", "--", "--list"]);
    let output = command.envs(built.environment()).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(Failure::Said(1));
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    chosen(&listed, name).map_err(Failure::Why)
}

/// The tests of a list that have `name` in theirs, or which come near it.
fn chosen(listed: &str, name: &str) -> Result<Vec<String>, String> {
    let all: Vec<&str> = listed.lines().filter_map(|line| line.trim().strip_suffix(": test")).collect();
    let chosen: Vec<String> =
        all.iter().filter(|test| test.contains(name)).map(|test| (*test).to_owned()).collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let words = |test: &str| {
        name.split(['_', '-', ':', ' ']).filter(|word| word.len() > 2 && test.contains(word)).count()
    };
    let mut near: Vec<&str> = all.into_iter().filter(|test| words(test) > 0).collect();
    near.sort_by_key(|test| std::cmp::Reverse(words(test)));
    near.truncate(NEAREST);
    let near = near.iter().map(|test| format!("\n   {test}")).collect::<String>();
    let hint = if near.is_empty() { String::new() } else { format!("; these have words of it:{near}") };
    Err(format!("no test has {name:?} in its name{hint}"))
}

/// Runs the workspace's tests, or those whose names contain `name`.
///
/// A test program that skips may say why in the file that `LAB_SKIPS` names, one `test: reason` per line.
pub(crate) fn run(
    built: &Built,
    moto: &Moto,
    path: Option<OsString>,
    name: Option<&str>,
) -> Result<(), Failure> {
    println!("── tests");
    let skips = std::env::temp_dir().join(format!("vpc-cni-skips-{}", std::process::id()));
    let mut command = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    command
        .args(name)
        .envs(built.environment())
        .envs([moto.environment()])
        .envs(path.map(|path| ("PATH", path)))
        .env("LAB_SKIPS", &skips)
        .stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    let mut count = Count::default();
    // A test may print what is no text, and the count must not end there.
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).split(b'\n')) {
        let line = line.map_err(|error| Failure::Why(format!("cargo test: {error}")))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait().map_err(|error| Failure::Why(format!("cargo test: {error}")))?;
    count.reasons.extend(fs::read_to_string(&skips).unwrap_or_default().lines().map(str::to_owned));
    // It exists only if something was skipped.
    let _removed = fs::remove_file(&skips);
    count.show();
    match status.success() && count.failed == 0 {
        true => Ok(()),
        false => Err(Failure::Said(1)),
    }
}

impl Count {
    fn add(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.add_result(result);
        } else if let Some(reason) = line.strip_prefix("test ").and_then(skip_reason) {
            self.reasons.insert(reason);
        }
    }

    /// Adds a result such as `ok. 9 passed; 0 failed; 1 ignored; …`.
    fn add_result(&mut self, result: &str) {
        let after_state = result.split_once(". ").map_or(result, |(_, rest)| rest);
        for part in after_state.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let number: u64 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    fn show(&self) {
        if self.skipped > 0 {
            println!("\nskipped, and why:");
            self.reasons.iter().for_each(|line| println!("  {line}"));
        }
        println!("\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
    }
}

/// `name: reason`, from `name ... ignored, reason` or `[reason] name ... ignored`.
fn skip_reason(line: &str) -> Option<String> {
    let (name, end) = line.split_once(" ... ignored")?;
    let (reason, name) = match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((kind, name)) => (kind, name),
        None => (end.strip_prefix(", ")?, name),
    };
    Some(format!("{}: {reason}", name.trim_end()))
}

#[test]
fn a_name_that_no_test_has_is_an_error_with_those_that_come_near() {
    let listed = "a::a_pod_is_wired: test\n[no namespaces] moto_has_the_pod: test\nrun: benchmark\n\n2 tests, 1 benchmark\n";

    assert_eq!(chosen(listed, "pod_is").unwrap(), ["a::a_pod_is_wired"]);
    assert_eq!(chosen(listed, "moto_").unwrap(), ["[no namespaces] moto_has_the_pod"]);
    let why = chosen(listed, "pod_is_wierd").unwrap_err();
    assert!(
        why.ends_with("words of it:\n   a::a_pod_is_wired\n   [no namespaces] moto_has_the_pod"),
        "{why}"
    );
    assert!(chosen(listed, "wired-pods").unwrap_err().ends_with("words of it:\n   a::a_pod_is_wired"));
    assert_eq!(chosen(listed, "nosuchtest").unwrap_err(), "no test has \"nosuchtest\" in its name");
}

#[test]
fn results_of_test_programs_add_up() {
    let mut count = Count::default();
    for line in [
        "running 9 tests",
        "test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s",
        "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 7.48s",
    ] {
        count.add(line);
    }

    assert_eq!(count, Count { passed: 12, failed: 2, skipped: 1, reasons: BTreeSet::new() });
}

#[test]
fn reasons_of_skips_are_read_from_both_forms() {
    let mut count = Count::default();
    for line in [
        "test a_packet_returns ... ok",
        "test bonds::a_link_fails ... ignored, no bonding driver",
        "test [no namespaces] a_pod_is_wired ... ignored",
        "test without_a_reason ... ignored",
    ] {
        count.add(line);
    }

    let reasons = ["a_pod_is_wired: no namespaces", "bonds::a_link_fails: no bonding driver"];
    assert_eq!(count.reasons, BTreeSet::from(reasons.map(str::to_owned)));
}
