//! Building the plugin: one static file that runs on any host of the architecture.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Failure, cargo, step};
use crate::target;

/// Builds the plugin, against musl where its standard library is to be had: with glibc it is more than twice as large.
pub(crate) fn build(directory: &Path) -> Result<PathBuf, Failure> {
    let host = target::host()?;
    let musl = host.replace("-gnu", "-musl");
    let target = if target::is_to_be_had(&musl) {
        musl
    } else {
        println!("   not to be had; the plugin is built with the host's C library and is larger for it");
        host
    };
    step("build plugin", command(&target))?;
    Ok(file(directory, &target))
}

/// The build for a target.
///
/// The static relocation model keeps it free of a dynamic section, which position-independent static programs have.
pub(crate) fn command(target: &str) -> Command {
    cargo(&[
        "rustc",
        "--locked",
        "--package",
        "cni-plugin",
        "--bin",
        "aws-cni",
        "--profile",
        "plugin",
        "--target",
        target,
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "relocation-model=static",
    ])
}

/// Where the build for a target puts it, below cargo's directory.
pub(crate) fn file(directory: &Path, target: &str) -> PathBuf {
    directory.join(target).join("plugin/aws-cni")
}
