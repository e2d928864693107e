//! Running programs step by step, with names and times.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

/// Why a command of ours ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The program that was run has said why; this is its exit code.
    Said(u8),
    /// This is why.
    Why(String),
}

/// Cargo, the one that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments);
    cargo
}

/// What cargo knows about the workspace, in the form of `cargo metadata`.
pub(crate) fn metadata(more: &[&str]) -> Result<Value, Failure> {
    let output = cargo(&["metadata", "--format-version", "1", "--locked"]).args(more).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Why(format!("cargo metadata: {}", why.trim())));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::Why(format!("cargo metadata answers nonsense: {error}")))
}

/// Goes to the root of the workspace, wherever the command was typed.
pub(crate) fn enter_workspace() -> Result<(), Failure> {
    let metadata = metadata(&["--no-deps"])?;
    let root = metadata["workspace_root"].as_str().unwrap_or(".");
    std::env::set_current_dir(root).map_err(|error| Failure::Why(format!("cannot go to {root}: {error}")))
}

/// Runs a step: says what it does, and how long it took. What stands in brackets in the name is said before it only.
pub(crate) fn step(name: &str, mut command: Command) -> Result<(), Failure> {
    println!("── {name}");
    let started = Instant::now();
    pass_on(&mut command)?;
    let name = name.split(" (").next().unwrap_or(name);
    println!("   {name}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Runs a step whose failure is not ours, and whose output matters only then: the reason is its last line.
pub(crate) fn step_output(name: &str, mut command: Command) -> Result<(), String> {
    let started = Instant::now();
    let output =
        command.output().map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    if output.status.success() {
        println!("   {name}: {:.0} s", started.elapsed().as_secs_f32());
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
    Err(last.map_or_else(|| format!("{name}: {}", output.status), str::to_owned))
}

/// Runs a program in the foreground; its exit code becomes ours.
pub(crate) fn pass_on(command: &mut Command) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| Failure::Why(format!("cannot run {name}: {error}")))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Said(u8::try_from(code).unwrap_or(1))),
        None => Err(Failure::Why(format!("{name} was ended by a signal"))),
    }
}
