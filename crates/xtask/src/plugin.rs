//! Building the plugin: one static file that runs on any host of the architecture.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::steps::{Failure, cargo, step};

/// Seconds that rustup may take to fetch a target's standard library.
const FETCH_SECONDS: &str = "90";

/// Builds the plugin, against musl where its standard library is to be had: with glibc it is more than twice as large.
///
/// The static relocation model keeps it free of a dynamic section, which position-independent static programs have.
pub(crate) fn build(directory: &Path) -> Result<PathBuf, Failure> {
    let host = host()?;
    let musl = host.replace("-gnu", "-musl");
    let target = if is_there(&musl) || fetch(&musl) { musl } else { host };
    let arguments = [
        "rustc",
        "--locked",
        "--package",
        "cni-plugin",
        "--bin",
        "aws-cni",
        "--profile",
        "plugin",
        "--target",
        &target,
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "relocation-model=static",
    ];
    step("build plugin", cargo(&arguments))?;
    Ok(directory.join(target).join("plugin/aws-cni"))
}

/// The triple that rustc builds for when nothing is said.
fn host() -> Result<String, Failure> {
    let text = rustc(&["-vV"]);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure::Why("rustc does not tell its host".to_owned()))
}

/// Whether the standard library for a target is installed.
fn is_there(target: &str) -> bool {
    let sysroot = rustc(&["--print", "sysroot"]);
    Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib").exists()
}

fn fetch(target: &str) -> bool {
    println!("── fetching Rust's standard library for {target}");
    let rustup = Command::new("timeout")
        .args([FETCH_SECONDS, "rustup", "target", "add", target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let fetched = rustup.is_ok_and(|status| status.success()) && is_there(target);
    if !fetched {
        println!("   not to be had; the plugin is built with the host's C library and is larger for it");
    }
    fetched
}

fn rustc(arguments: &[&str]) -> String {
    let output = Command::new("rustc").args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
