//! A browser without a screen: what a page makes of itself, what it complains of, and how it looks.
//!
//! Chromium runs in a node's network namespace, so `127.0.0.1` is the node's, and there is no way out of the lab.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::LabError;
use crate::netns::Netns;

/// Where it keeps what it writes; in the lab's own `/run`.
const PROFILE: &str = "/run/lab/browser";
/// What ends it should it hang: it is given seconds and needs two.
const PATIENCE_SECONDS: &str = "90";
/// No sandbox, as the lab's processes are root; nothing that talks to anybody else.
const OPTIONS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--enable-logging=stderr",
];

/// What became of a page.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The document after its scripts have run, as HTML.
    pub dom: String,
    /// What stands on its console: errors of scripts, and what its policy kept from running.
    pub console: Vec<String>,
}

/// By which names there may be one.
const PROGRAMS: [&str; 2] = ["chromium", "chromium-headless-shell"];

/// The browser's program.
///
/// # Errors
/// Why there is none, in words.
fn program() -> Result<&'static str, String> {
    let mut why = String::new();
    for program in PROGRAMS {
        match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(program),
            Ok(output) => {
                why = format!("{program} does not run: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Err(error) if why.is_empty() => why = format!("no {program}: {error}"),
            Err(_) => {}
        }
    }
    Err(why)
}

/// Why there is no browser.
#[must_use]
pub fn missing() -> Option<String> {
    program().err()
}

/// Opens a page and lets so many milliseconds of its own time pass, in which timers run as soon as nothing is being fetched.
///
/// # Errors
/// When the browser cannot be run, or does not end well.
pub fn open(netns: &Netns, url: &str, milliseconds: u32) -> Result<Seen, LabError> {
    let budget = format!("--virtual-time-budget={milliseconds}");
    let output = run(netns, &[&budget, "--dump-dom", url])?;
    let told = String::from_utf8_lossy(&output.stderr);
    let console = told.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
    Ok(Seen { dom: String::from_utf8_lossy(&output.stdout).into_owned(), console })
}

/// How a picture is taken.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// As whoever prefers dark pages sees it.
    pub dark: bool,
}

/// Takes a picture of a page, as PNG.
///
/// # Errors
/// When the browser cannot be run, or takes none.
pub fn picture(netns: &Netns, url: &str, frame: Frame, file: &Path) -> Result<(), LabError> {
    let into = format!("--screenshot={}", file.display());
    let size = format!("--window-size={},{}", frame.width, frame.height);
    let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!frame.dark));
    let output = run(netns, &[&into, &size, &scheme, "--virtual-time-budget=1500", url])?;
    match file.exists() {
        true => Ok(()),
        false => Err(LabError::Otherwise(format!("no picture: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

fn run(netns: &Netns, arguments: &[&str]) -> Result<Output, LabError> {
    let profile = format!("--user-data-dir={PROFILE}");
    let program = program().map_err(LabError::Otherwise)?;
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", PATIENCE_SECONDS, program]).args(OPTIONS).arg(profile).args(arguments);
    command.env("HOME", PROFILE).stdin(Stdio::null());
    // What an earlier run remembers would be shown in place of what the daemon says.
    let _gone = std::fs::remove_dir_all(PROFILE);
    let output = netns.run(|| command.output())?.map_err(LabError::doing("run the browser"))?;
    match output.status.success() {
        true => Ok(output),
        false => Err(LabError::Program {
            program: format!("{program} {}", arguments.join(" ")),
            said: format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }),
    }
}
