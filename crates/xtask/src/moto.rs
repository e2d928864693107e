//! moto, the EC2 that is not of our making, for the tests: in a Python environment of its own below the build's directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Failure, step_output};

/// What it is made of; the environment keeps a copy, which says that it is whole and of this version.
const REQUIREMENTS: &str = "tests/kit/moto-requirements.txt";

/// What the tests are told: where it is, or why it is not there.
#[derive(Debug)]
pub(crate) struct Moto(Result<PathBuf, String>);

impl Moto {
    /// How the tests find it, or the reason to skip those that need it.
    pub(crate) fn environment(&self) -> (&'static str, String) {
        match &self.0 {
            Ok(python) => ("LAB_MOTO_PYTHON", python.display().to_string()),
            Err(why) => ("LAB_WITHOUT_MOTO", why.clone()),
        }
    }
}

/// Whether a test of this name is skipped without it.
pub(crate) fn is_needed_by(test: &str) -> bool {
    test.contains("moto")
}

/// Where no test that runs needs it.
pub(crate) fn not_asked_for() -> Moto {
    Moto(Err("no test that was named needs moto".to_owned()))
}

/// Makes the environment unless it is there; the working directory is the root of the workspace.
///
/// That it cannot be had is no failure: what needs it is skipped, and counted as such.
pub(crate) fn set_up(target: &Path) -> Result<Moto, Failure> {
    let wanted = fs::read_to_string(REQUIREMENTS);
    let wanted = wanted.map_err(|error| Failure::Why(format!("{REQUIREMENTS}: {error}")))?;
    let place = target.join("moto");
    let python = place.join("bin/python");
    if fs::read_to_string(place.join("requirements")).is_ok_and(|have| have == wanted) && python.exists() {
        return Ok(Moto(Ok(python)));
    }
    println!("── moto, an EC2 that is not of our making");
    let made = make(&place, &wanted);
    if let Err(why) = &made {
        println!("   not to be had, and what needs it is skipped: {why}");
    }
    Ok(Moto(made.map(|()| python).map_err(|why| format!("moto is not to be had: {why}"))))
}

/// Makes it under another name first, so that what is in its place is whole.
fn make(place: &Path, wanted: &str) -> Result<(), String> {
    let making = place.with_extension(std::process::id().to_string());
    let made = fill(&making, wanted).and_then(|()| {
        // An older one, or none.
        let _gone = fs::remove_dir_all(place);
        fs::rename(&making, place).map_err(|error| format!("cannot move it into place: {error}"))
    });
    if made.is_err() {
        let _gone = fs::remove_dir_all(&making);
    }
    made
}

fn fill(making: &Path, wanted: &str) -> Result<(), String> {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(making);
    step_output("Python environment", venv)?;
    let mut pip = Command::new(making.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    // Without a network this ends soon, and nothing is compiled.
    pip.args(["--retries", "1", "--timeout", "15", "--only-binary", ":all:", "--requirement", REQUIREMENTS]);
    step_output("install", pip)?;
    fs::write(making.join("requirements"), wanted).map_err(|error| format!("cannot mark it: {error}"))
}
