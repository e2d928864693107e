//! `ipamd`: the daemon of one node, and the tools beside it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for settings that cannot be (`EX_USAGE`).
const BAD_SETTINGS: u8 = 64;

/// IPAM daemon of the VPC CNI: owns the node's ENIs, their addresses, and what pods need in the kernel.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon; settings come from the environment.
    Run,
    /// Show the pool, ENIs, pods and readiness of the daemon running on this node.
    Status {
        /// The daemon's socket.
        #[arg(long, default_value = wire::SOCKET_PATH)]
        socket: PathBuf,
        /// JSON instead of a drawing.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run => run(),
        Command::Status { socket, json } => status(&socket, json),
    }
}

fn run() -> ExitCode {
    let config = match ipamd::config::from_process() {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                say(&mut std::io::stderr(), &format!("ipamd: {error}"));
            }
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    ipamd::telemetry::start(&config);
    match ipamd::daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = ipamd::server::chain(&error), "cannot run");
            ExitCode::FAILURE
        }
    }
}

fn status(socket: &std::path::Path, json: bool) -> ExitCode {
    match ipamd::status::fetch(socket) {
        Ok(report) => {
            let text = if json { ipamd::status::json(&report) } else { ipamd::status::render(&report) };
            say(&mut std::io::stdout(), text.trim_end());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let text = format!("ipamd: {} [{}] {}", failure.message, failure.reason, failure.details);
            say(&mut std::io::stderr(), text.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// Prints a line; a reader that has gone away is no reason to fail.
fn say(out: &mut impl std::io::Write, text: &str) {
    drop(writeln!(out, "{text}"));
}
