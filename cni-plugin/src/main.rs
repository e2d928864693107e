//! The program `aws-cni`; see the library for what it does.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use cni_plugin::{Plugin, Variables, run};

fn main() -> ExitCode {
    let plugin = Plugin::of(std::env::args_os().next().as_deref());
    let outcome = run(plugin, &Variables::of_process(), io::stdin().as_fd());
    let printed = print(io::stdout(), &outcome.stdout).and_then(|()| print(io::stderr(), &outcome.stderr));
    if outcome.success && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A result that the runtime did not get whole is a failed call: it must not look like a success.
fn print(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
