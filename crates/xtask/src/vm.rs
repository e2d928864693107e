//! The datapath's kernel tests in a virtual machine with Debian's cloud kernel, which has VLANs. Emulated: it needs no KVM, and some minutes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::build;
use crate::steps::{self, Failure};

/// Makes kernel and file system.
const MAKE: &str = include_str!("vm.sh");
/// What the machine says at its end.
const WELL: &str = "all is well";
/// How long it may take, in seconds.
const PATIENCE: &str = "900";

/// Runs the tests whose names contain this.
pub(crate) fn run(name: Option<&str>) -> Result<(), Failure> {
    steps::enter_workspace()?;
    let tests = kernel_tests()?;
    let place = build::target_directory()?.join("vm");
    std::fs::create_dir_all(&place).map_err(|error| Failure::Why(format!("{}: {error}", place.display())))?;
    let mut make = Command::new("sh");
    make.args(["-euc", MAKE, "vm"]).arg(tests).arg(name.unwrap_or_default()).current_dir(&place);
    steps::step("kernel and file system of the virtual machine", make)?;
    println!("── tests in it");
    let output = machine(&place).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run qemu-system-x86_64: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("test ")).for_each(|line| println!("   {line}"));
    match said.contains(WELL) {
        true => Ok(()),
        false => Err(Failure::Why(format!("not all is well in the virtual machine:\n{said}"))),
    }
}

fn machine(place: &Path) -> Command {
    let kernel = format!(
        "exec timeout {PATIENCE} qemu-system-x86_64 -accel tcg -m 512 -nographic -no-reboot -net none -kernel kernel/boot/vmlinuz-* \
                          -initrd initramfs.gz -append 'console=ttyS0 quiet panic=-1 loglevel=3' < /dev/null"
    );
    let mut machine = Command::new("sh");
    machine.args(["-c", &kernel]).current_dir(place);
    machine
}

/// Builds the tests; where they are.
fn kernel_tests() -> Result<PathBuf, Failure> {
    let build = ["test", "-p", "datapath", "--test", "kernel", "--no-run", "--message-format", "json"];
    let output = steps::cargo(&build).stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::Why(format!("cannot run cargo: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut built = said.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "kernel";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    built.next_back().ok_or_else(|| Failure::Why("the kernel tests cannot be built".to_owned()))
}
