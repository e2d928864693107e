//! What the lab does once nobody is there any more who asked for it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use lab::LabError;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Outcome, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] =
    &[("the_lab_ends_with_the_command_that_started_it_however_that_ends", ends_with_its_command)];

const LAB: &str = env!("CARGO_BIN_EXE_vpc-lab");
/// More histories than anybody waits for.
const SCRIPT: &str = "LAB_PARENT=$$ \"$0\" sim --seeds 1000000 >/dev/null & echo $!; wait";

fn ends_with_its_command() -> Outcome {
    let mut command = Command::new("sh")
        .args(["-c", SCRIPT, LAB])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(LabError::doing("start a shell"))?;
    let mut pid = String::new();
    let out = command.stdout.take().ok_or_else(|| LabError::Otherwise("no output".to_owned()))?;
    BufReader::new(out).read_line(&mut pid).map_err(LabError::doing("read a process id"))?;
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| LabError::Otherwise("the shell told no process".to_owned()))?;
    let started = eventually("the lab runs", || arguments(pid).contains("sim"));

    let killed = command.kill().and_then(|()| command.wait());

    let ended = eventually("the end of the lab", || arguments(pid).is_empty());
    if ended.is_err() {
        // Not left behind by a test that fails.
        let _ended = kill_process(pid, Signal::KILL);
    }
    started.and(ended)?;
    ensure!(killed.is_ok(), "the shell was not killed: {killed:?}");
    Ok(())
}

/// The arguments of a process; none of one that has ended, whoever has not yet asked how.
fn arguments(pid: Pid) -> String {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
