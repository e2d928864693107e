//! The CNI plugin: the CNI protocol on one side, the daemon's socket on the other, nothing in between.
//!
//! One run is one call, as the CNI specification's section 2 has it: environment and standard input in, JSON
//! and an exit status out. The order of checks is that of the reference implementation: variables, then the
//! configuration's form, its content, its version. Whatever comes from outside is bounded before it is used.
//!
//! The plugin decides nothing about addresses. It turns a call into a [`wire::Request`] and the reply into a
//! CNI result, and it alone enters the pod's namespace, to open the socket by which the daemon works there. Under the name
//! `loopback` it is the plugin of that name, for nodes that have none.

mod args;
mod client;
mod config;
mod environment;
mod error;
mod log;
mod loopback;
mod netns;
mod output;
mod patience;
mod queue;
mod stdin;
mod verbs;
mod version;

pub use environment::Variables;
pub use output::Outcome;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use wire::Verb;

use crate::client::Call;
use crate::config::Config;
use crate::environment::{Command, Parameters};
use crate::log::Entry;
use crate::patience::Patience;
use crate::verbs::Answer;
use crate::version::CniVersion;

/// Which plugin is called: one file serves under two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// The interface of a pod, by the daemon.
    Pod,
    /// The sandbox's `lo`.
    Loopback,
}

impl Plugin {
    /// By the program's name, which is the first word of its command line: runtimes give the path of the file that they have found.
    #[must_use]
    pub fn of(program: Option<&OsStr>) -> Self {
        let name = program.and_then(|path| Path::new(path).file_name());
        if name == Some(OsStr::new("loopback")) { Self::Loopback } else { Self::Pod }
    }
}

/// One call of the plugin, from its environment and standard input to what it prints.
#[must_use]
pub fn run(plugin: Plugin, variables: &Variables, stdin: BorrowedFd<'_>) -> Outcome {
    let patience = Patience::new();
    let command = match Command::read(variables) {
        Ok(Some(command)) => command,
        Ok(None) => return Outcome::about(),
        Err(error) => return Outcome::failed(CniVersion::NEWEST, &error.into()),
    };
    if command == Command::Version {
        return Outcome::versions(stdin::asked_version(stdin, &patience));
    }
    match read_call(command, variables, stdin, &patience) {
        Ok((parameters, config)) if plugin == Plugin::Loopback => {
            loopback::serve(command, &parameters, &config)
                .map_or_else(|failure| Outcome::failed(config.version, &failure), Outcome::succeeded)
        }
        Ok((parameters, config)) => serve(command, &parameters, &config, &patience),
        Err(failure) => Outcome::failed(CniVersion::NEWEST, &failure),
    }
}

/// The two inputs of a call, the variables checked before standard input is touched.
fn read_call(
    command: Command,
    variables: &Variables,
    stdin: BorrowedFd<'_>,
    patience: &Patience,
) -> Result<(Parameters, Config), wire::Failure> {
    let parameters = Parameters::read(command, variables)?;
    let bytes = stdin::read(stdin, patience)?;
    Ok((parameters, Config::decode(&bytes)?))
}

/// Everything after both inputs are known to be in form, so that errors carry the version asked for.
fn serve(command: Command, parameters: &Parameters, config: &Config, patience: &Patience) -> Outcome {
    let call = Call { patience: patience.of(command, config.timeout), trace: parameters.trace };
    let verb = verbs::question(command, parameters, config);
    let result = verb.as_ref().map_err(Clone::clone).and_then(|v| verbs::ask(v, config, &call));
    Entry::new(command, verb.as_ref().ok(), &result, &call).append(&config.log);
    match result {
        Ok(Answer { stdout, .. }) => Outcome::succeeded(stdout),
        Err(failure) => Outcome::failed(config.version, &failure),
    }
}

/// The sandbox a request is about, where it is about one.
fn sandbox_of(verb: &Verb) -> Option<(&types::SandboxKey, &types::PodName)> {
    match verb {
        Verb::Add(a) | Verb::Check(a) => Some((&a.sandbox, &a.pod)),
        Verb::Del(d) => Some((&d.sandbox, &d.pod)),
        Verb::Gc { .. } | Verb::Status | Verb::Report => None,
    }
}
