//! What rustc can build for, and how it comes to be able to.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::steps::Failure;

/// Seconds that rustup may take to fetch a target's standard library.
const FETCH_SECONDS: &str = "90";

/// The triple that rustc builds for when nothing is said.
pub(crate) fn host() -> Result<String, Failure> {
    let text = rustc(&["-vV"])?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure::Why(format!("rustc -vV tells no host: {}", text.trim())))
}

/// Where rustc's own files are.
pub(crate) fn sysroot() -> String {
    rustc(&["--print", "sysroot"]).unwrap_or_default().trim().to_owned()
}

/// Whether the standard library for a target is there, now that rustup was asked for it if it was not.
pub(crate) fn is_to_be_had(target: &str) -> bool {
    is_there(target) || fetch(target)
}

/// Whether the standard library for a target is installed.
fn is_there(target: &str) -> bool {
    Path::new(&sysroot()).join("lib/rustlib").join(target).join("lib").exists()
}

fn fetch(target: &str) -> bool {
    println!("── fetching Rust's standard library for {target}");
    let rustup = Command::new("timeout")
        .args([FETCH_SECONDS, "rustup", "target", "add", target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    rustup.is_ok_and(|status| status.success()) && is_there(target)
}

/// What rustc answers, or why it does not: under rustup even that may need files that somebody cannot read.
fn rustc(arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new("rustc").args(arguments).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run rustc: {error}")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::Why(format!("rustc: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}
