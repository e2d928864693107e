//! The project's own commands: `cargo xtask demo|test|bench|ci|tidy`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

mod build;
mod setup;
mod steps;
mod tests;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use steps::Failure;

/// Build, try and test the VPC CNI.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up a VPC in network namespaces, run daemon and plugin in it, and show that packets flow.
    Demo {
        /// Nodes in the VPC.
        #[arg(long, default_value_t = 2)]
        nodes: u32,
        /// Pods over all nodes.
        #[arg(long, default_value_t = 30)]
        pods: u32,
        /// Leave it standing for a look around, until Enter.
        #[arg(long)]
        keep: bool,
    },
    /// Run all tests.
    Test,
    /// Format check, lints, tidy, tests: what CI runs.
    Ci,
    /// Check what no compiler checks.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo { nodes, pods, keep } => demo(nodes, pods, keep),
        Command::Test => test(),
        Command::Ci => ci(),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said(code)) => ExitCode::from(code),
        Err(Failure::Why(why)) => {
            eprintln!("cargo xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn demo(nodes: u32, pods: u32, keep: bool) -> Result<(), Failure> {
    setup::for_demo()?;
    let built = build::all()?;
    let mut lab = std::process::Command::new(&built.lab);
    lab.arg("demo").args(["--nodes", &nodes.to_string(), "--pods", &pods.to_string()]);
    lab.args(keep.then_some("--keep")).envs(built.environment());
    steps::pass_on(&mut lab)
}

fn test() -> Result<(), Failure> {
    setup::for_tests()?;
    let built = build::all()?;
    tests::run(&built)
}

fn ci() -> Result<(), Failure> {
    steps::step("format", steps::cargo(&["fmt", "--all", "--check"]))?;
    steps::step(
        "lints",
        steps::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    tidy::run()?;
    test()
}
