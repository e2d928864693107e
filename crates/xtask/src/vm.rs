//! Tests in a virtual machine with Debian's cloud kernel, which has VLANs: the datapath's kernel tests, and the system tests of branch ENIs with
//! daemon, plugin and lab. Emulated: it needs no KVM, and some minutes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::build::{self, Profile};
use crate::setup;
use crate::steps::{self, Failure};

/// Makes kernel and file system.
const MAKE: &str = include_str!("vm.sh");
/// What the machine says at its end.
const WELL: &str = "all is well";
/// How long it may take, in seconds.
const PATIENCE: &str = "2400";
/// Its memory, in MiB: the file system is in it twice while it is unpacked.
const MEMORY: &str = "2048";
/// What the names of system tests have in common that are run where nothing else is asked for.
const SYSTEM: &str = "branch_eni";

/// Runs the tests whose names contain this.
pub(crate) fn run(name: Option<&str>) -> Result<(), Failure> {
    setup::for_vm()?;
    let built = build::all(Profile::Dev)?;
    steps::enter_workspace()?;
    let [kernel, system] = test_programs()?;
    let place = build::target_directory()?.join("vm");
    std::fs::create_dir_all(&place).map_err(|error| Failure::Why(format!("{}: {error}", place.display())))?;
    let mut make = Command::new("sh");
    make.args(["-euc", MAKE, "vm"]).arg(kernel).arg(name.unwrap_or_default());
    make.arg(system).arg(name.unwrap_or(SYSTEM)).args([&built.daemon, &built.plugin]).current_dir(&place);
    steps::step("kernel and file system of the virtual machine", make)?;
    println!("── tests in it");
    let output = machine(&place).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run qemu-system-x86_64: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let tests: Vec<&str> = said.lines().filter(|line| line.starts_with("test ")).collect();
    tests.iter().for_each(|line| println!("   {line}"));
    match (said.contains(WELL), tests.is_empty()) {
        (true, false) => Ok(()),
        (true, true) => Err(Failure::Why("no test there has that in its name".to_owned())),
        (false, _) => Err(Failure::Why(format!("not all is well in the virtual machine:\n{said}"))),
    }
}

fn machine(place: &Path) -> Command {
    let kernel = format!(
        "exec timeout {PATIENCE} qemu-system-x86_64 -accel tcg -smp 2 -m {MEMORY} -nographic -no-reboot -net none -kernel kernel/boot/vmlinuz-* \
                          -initrd initramfs.gz -append 'console=ttyS0 quiet panic=-1 loglevel=3' < /dev/null"
    );
    let mut machine = Command::new("sh");
    machine.args(["-c", &kernel]).current_dir(place);
    machine
}

/// Builds the tests of kernel and system; where they are. Of the whole workspace, for the reason that `build` has.
fn test_programs() -> Result<[PathBuf; 2], Failure> {
    let build = [
        "test",
        "--workspace",
        "--locked",
        "--test",
        "kernel",
        "--test",
        "system",
        "--no-run",
        "--message-format",
        "json",
    ];
    let output = steps::cargo(&build).stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let kernel = program(&said, "kernel").ok_or_else(|| unbuilt("kernel"))?;
    Ok([kernel, program(&said, "system").ok_or_else(|| unbuilt("system"))?])
}

fn unbuilt(name: &str) -> Failure {
    Failure::Why(format!("the {name} tests cannot be built"))
}

/// The test program of this name among what cargo has built.
fn program(said: &str, name: &str) -> Option<PathBuf> {
    let mut built = said.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    built.next_back()
}

#[test]
fn a_program_is_found_among_what_cargo_says() {
    let said = r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}
{"reason":"compiler-artifact","target":{"name":"system"},"executable":null}
noise"#;

    assert_eq!(program(said, "kernel"), Some(PathBuf::from("/t/kernel-1")));
    assert_eq!(program(said, "system"), None);
}
