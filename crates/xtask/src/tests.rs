//! Running the tests and counting them: one closing line for all, and every skip with its reason.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::build::Built;
use crate::steps::{Failure, cargo};

/// Totals over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs the workspace's tests.
pub(crate) fn run(built: &Built) -> Result<(), Failure> {
    println!("── tests");
    let skips = std::env::temp_dir().join(format!("vpc-cni-skips-{}", std::process::id()));
    let mut command = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.envs(built.environment()).env("LAB_SKIPS", &skips).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    let mut count = Count::default();
    for line in
        child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok)
    {
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait().map_err(|error| Failure::Why(format!("cargo test: {error}")))?;
    let reasons = fs::read_to_string(&skips).unwrap_or_default();
    // It exists only if something was skipped.
    let _removed = fs::remove_file(&skips);
    if !reasons.is_empty() {
        println!("\nskipped, and why:");
        reasons.lines().for_each(|line| println!("  {line}"));
    }
    println!("\n{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    match status.success() && count.failed == 0 {
        true => Ok(()),
        false => Err(Failure::Said(1)),
    }
}

impl Count {
    /// Adds a line such as `test result: ok. 9 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
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
}

#[test]
fn results_of_test_programs_add_up() {
    let mut count = Count::default();
    count
        .add("test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s");
    count.add(
        "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 7.48s",
    );
    count.add("running 9 tests");

    assert_eq!(count, Count { passed: 12, failed: 2, skipped: 1 });
}
