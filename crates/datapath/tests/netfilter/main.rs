//! The nftables table in the real kernel. Witnesses: `nft -j`, and where packets arrive with which source.
//!
//! `main` enters new user and network namespaces before any thread exists; every further namespace lives as long as a
//! descriptor or a thread of this process, so nothing is left behind, whatever happens.

mod lab;
mod packets;
mod speed;
mod table;
mod values;

use std::fs::File;
use std::io::Write;
use std::process::{Command, ExitCode};

use lab::{Space, unshare};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::UnshareFlags;

type Outcome = Result<(), Failed>;
type Test = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    let tests: Vec<Test> = table::TESTS.into_iter().chain(packets::TESTS).collect();
    let missing = enter().err().or_else(missing_program);
    if let Some(reason) = &missing {
        skipped(tests.iter().map(|(name, _)| *name), reason);
    }
    let ignored = missing.is_some();
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, move || Space::new()?.run(test)).with_ignored_flag(ignored))
        .collect();
    trials.extend(speed::trials().into_iter().map(|trial| trial.with_ignored_flag(ignored)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn check(holds: bool, otherwise: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.into().into()) }
}

/// Enters namespaces of our own.
fn enter() -> Result<(), String> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
        .map_err(|error| format!("no namespaces: {error}"))?;
    let write = |path: &str, text: String| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn missing_program() -> Option<String> {
    let missing = |program: &&&str| Command::new(program).arg("-V").output().is_err();
    ["ip", "nft"].iter().find(missing).map(|program| format!("no `{program}` program"))
}

/// Tells the runner which tests were skipped and why.
#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn skipped<'a, I: Iterator<Item = &'a str>>(names: I, reason: &str) {
    let lines: String = names.map(|name| format!("datapath netfilter {name}: {reason}\n")).collect();
    eprint!("{lines}");
    if let Some(path) = std::env::var_os("LAB_SKIPS") {
        let file = File::options().create(true).append(true).open(path);
        let _written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    }
}
