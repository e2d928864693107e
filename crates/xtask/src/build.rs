//! Building the programs, each once: the AWS SDK costs minutes.

use std::path::{Path, PathBuf};

use crate::plugin;
use crate::steps::{Failure, cargo, metadata, step};

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

/// How daemon and lab are built; the plugin has its one way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Profile {
    /// For demo and tests.
    Dev,
    /// For measurements.
    Release,
}

/// Builds plugin, daemon and lab.
///
/// Daemon and lab in one command, because features of shared dependencies add up per command: built alone, the daemon
/// would have another tokio than in `cargo test --workspace`, and the AWS SDK would be compiled for each.
pub(crate) fn all(profile: Profile) -> Result<Built, Failure> {
    let target = target_directory()?;
    let plugin = plugin::build(&target)?;
    let (profile, directory) = match profile {
        Profile::Dev => ("dev", "debug"),
        Profile::Release => ("release", "release"),
    };
    let arguments =
        ["build", "--locked", "--package", "ipamd", "--package", "lab", "--bins", "--profile", profile];
    step(
        "build daemon and lab (from nothing: five to ten minutes, some three of them the AWS SDK)",
        cargo(&arguments),
    )?;
    let programs = target.join(directory);
    Ok(Built { plugin, daemon: programs.join("ipamd"), lab: programs.join("vpc-lab") })
}

/// Builds the simulator, which needs neither daemon nor SDK.
pub(crate) fn simulator() -> Result<PathBuf, Failure> {
    let arguments = ["build", "--locked", "--package", "sim", "--bins", "--profile", "sim"];
    step(
        "build the simulator (from nothing: four minutes or more, as it is optimised as a whole)",
        cargo(&arguments),
    )?;
    Ok(target_directory()?.join("sim/sim"))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> Result<PathBuf, Failure> {
    let metadata = metadata(&["--no-deps"])?;
    let directory = metadata["target_directory"].as_str().map(PathBuf::from);
    directory.ok_or_else(|| Failure::Why("cargo metadata names no target directory".to_owned()))
}
