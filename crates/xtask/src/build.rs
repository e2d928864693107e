//! Building the programs, each once: the AWS SDK costs minutes.

use std::path::{Path, PathBuf};

use crate::steps::{Failure, cargo, step};

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Built {
    /// The plugin, static.
    pub(crate) plugin: PathBuf,
    /// The daemon.
    pub(crate) daemon: PathBuf,
    /// The lab.
    pub(crate) lab: PathBuf,
}

impl Built {
    /// How the lab and the tests find them.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 2] {
        [("AWS_CNI_BIN", &self.plugin), ("IPAMD_BIN", &self.daemon)]
    }
}

/// Builds plugin, daemon and lab.
pub(crate) fn all() -> Result<Built, Failure> {
    let target = target_directory()?;
    let plugin = plugin(&target)?;
    let arguments = ["build", "--locked", "--package", "ipamd", "--package", "lab", "--bins"];
    step("build daemon and lab (the first time about five minutes: the AWS SDK)", cargo(&arguments))?;
    Ok(Built { plugin, daemon: target.join("debug/ipamd"), lab: target.join("debug/vpc-lab") })
}

/// The plugin: static, so that it runs on any host, and small.
///
/// The static relocation model keeps it free of a dynamic section, which position-independent static programs have.
fn plugin(target: &Path) -> Result<PathBuf, Failure> {
    let host = host_triple()?;
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
        &host,
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "relocation-model=static",
    ];
    step("build plugin", cargo(&arguments))?;
    Ok(target.join(host).join("plugin/aws-cni"))
}

fn host_triple() -> Result<String, Failure> {
    let output = std::process::Command::new("rustc").arg("-vV").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure::Why("rustc does not tell its host".to_owned()))
}

fn target_directory() -> Result<PathBuf, Failure> {
    let output = cargo(&["metadata", "--format-version", "1", "--no-deps", "--locked"]).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::Why(format!("cargo metadata answers nonsense: {error}")))?;
    let directory = metadata["target_directory"].as_str().map(PathBuf::from);
    directory.ok_or_else(|| Failure::Why("cargo metadata names no target directory".to_owned()))
}
