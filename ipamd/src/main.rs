//! `ipamd`: the daemon of one node, and the tools beside it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
use ipamd::config::{self, Config, DEFAULT_RUN_DIR, Helper, SettingError, Switches};
use ipamd::hold::{Hold, Word};
use ipamd::install::{IMAGE_PLUGIN, Sources};
use ipamd::tools::{self, Tool};

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
    /// Run the daemon; settings come from the environment, `ipamd settings` lists them.
    Run,
    /// Show the pool, ENIs, pods and readiness of the daemon running on this node; fails while it cannot serve pods. Of a saved state it
    /// shows what that tells.
    Status {
        /// The daemon's directory.
        #[arg(long, env = "IPAMD_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
        /// JSON instead of a drawing.
        #[arg(long)]
        json: bool,
        /// Say nothing, and fail only where the owner of the state does not answer, which is what a restart can mend.
        #[arg(long, conflicts_with = "json")]
        live: bool,
        /// Show what a copy of the daemon's directory tells, or a bundle that was unpacked (`tar -xzf`), instead of asking a daemon.
        #[arg(long, value_name = "DIR", conflicts_with = "live")]
        state: Option<PathBuf>,
    },
    /// Hold back releases, or every change in EC2, on this node: at once, and until `ipamd hold nothing`.
    Hold {
        /// What is held back.
        hold: Word,
        /// The daemon's directory.
        #[arg(long, env = "IPAMD_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    #[command(flatten)]
    Tool(Tool),
    /// Put the plugin, plugins of other people where the node has none or older ones, and kernel settings on the host. Where there is no
    /// `loopback`, the plugin serves under that name. The conflist is not among them: `ipamd run` writes it once pods can be served.
    Install {
        /// The plugin.
        #[arg(long, default_value = IMAGE_PLUGIN)]
        plugin: PathBuf,
        /// A directory with plugins of other people; it need not be there.
        #[arg(long, default_value = "/plugins")]
        neighbours: PathBuf,
        /// Where the host's /proc/sys is.
        #[arg(long, default_value = "/host/proc/sys")]
        sysctls: PathBuf,
    },
    /// Take the conflist away, so that the runtime starts no new pods here; pods that are there keep all they need.
    Uninstall,
    /// Sum up what all daemons of the cluster tell, for CloudWatch and Prometheus; once per cluster. Settings go before these switches,
    /// `ipamd settings` lists them.
    MetricsHelper {
        /// Tell CloudWatch.
        #[arg(long, default_value_t = true, value_parser = config::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
        cloudwatch: bool,
        /// Serve the sums at port 61681.
        #[arg(long, alias = "prometheus metrics", default_value_t = false, value_parser = config::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
        prometheus: bool,
    },
    /// Rewrite the files of a checkout that come from the table of settings.
    #[command(hide = true)]
    Generate {
        /// The checkout.
        root: PathBuf,
        /// Only see whether they are as they should be.
        #[arg(long)]
        check: bool,
    },
    /// List every setting: variable, default, what becomes of it in this version, what it means.
    Settings,
    /// Print how many pods instance types can hold, for the kubelet's maxPods; asks nobody.
    MaxPods {
        /// Instance types, for example m5.large; none: all.
        types: Vec<String>,
        /// As if `MAX_ENI` were this.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        max_eni: Option<u32>,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run => run(),
        Command::Status { state: Some(state), json, .. } => tools::saved_status(&state, json),
        Command::Status { run_dir, live: true, .. } => live(&run_dir),
        Command::Status { run_dir, json, .. } => status(&run_dir, json),
        Command::Hold { hold, run_dir } => put_hold(&run_dir, hold.into()),
        Command::Tool(tool) => tools::run(&tool, Arguments::command()),
        Command::Install { plugin, neighbours, sysctls } => install(&Sources { plugin, neighbours, sysctls }),
        Command::Uninstall => uninstall(),
        Command::MetricsHelper { cloudwatch, prometheus } => help(Switches { cloudwatch, prometheus }),
        Command::Generate { root, check } => generate(&root, check),
        Command::Settings => {
            say(&mut std::io::stdout(), config::listed().trim());
            ExitCode::SUCCESS
        }
        Command::MaxPods { types, max_eni, json } => {
            // More than any instance has is no limit.
            max_pods(&types, max_eni.map(|most| u8::try_from(most).unwrap_or(u8::MAX)), json)
        }
    }
}

/// The settings, or the exit code after all that is wrong with them was told.
fn settings() -> Result<Config, ExitCode> {
    config::from_process().map_err(refused)
}

fn refused(errors: Vec<SettingError>) -> ExitCode {
    for error in errors {
        say(&mut std::io::stderr(), &format!("ipamd: {error}"));
    }
    ExitCode::from(BAD_SETTINGS)
}

fn install(sources: &Sources) -> ExitCode {
    let config = match settings() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut out = std::io::stdout();
    done(ipamd::install::install(&config, sources, &mut |line| say(&mut out, line)))
}

fn uninstall() -> ExitCode {
    let config = match settings() {
        Ok(config) => config,
        Err(code) => return code,
    };
    done(ipamd::install::uninstall(&config).map(|was_there| {
        let said = if was_there { "the conflist is gone" } else { "there was no conflist" };
        say(&mut std::io::stdout(), said);
    }))
}

fn generate(root: &Path, check: bool) -> ExitCode {
    done(ipamd::generate::run(root, check).map(|differ| {
        for file in differ {
            say(&mut std::io::stdout(), &format!("rewritten: {file}"));
        }
    }))
}

fn done<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("ipamd: {}", ipamd::server::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    let config = match settings() {
        Ok(config) => config,
        Err(code) => return code,
    };
    ipamd::telemetry::start(&config);
    ended(ipamd::daemon::run(config))
}

fn help(switches: Switches) -> ExitCode {
    let settings = match Helper::from_process(switches) {
        Ok(settings) => settings,
        Err(errors) => return refused(errors),
    };
    ipamd::telemetry::start(&settings.config);
    ended(ipamd::helper::run(settings))
}

fn ended<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = ipamd::server::chain(&error), "cannot run");
            ExitCode::FAILURE
        }
    }
}

fn status(run_dir: &Path, json: bool) -> ExitCode {
    match ipamd::status::fetch(&wire::socket_in(run_dir)) {
        Ok(report) => {
            let text = if json { ipamd::status::json(&report) } else { ipamd::status::render(&report) };
            say(&mut std::io::stdout(), text.trim_end());
            if report.not_ready.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            let code = unanswered(&failure);
            say(
                &mut std::io::stderr(),
                "  --run-dir is for a daemon with another directory; `ipamd doctor` needs none that runs",
            );
            code
        }
    }
}

/// The liveness probe: over the socket, which no setting takes away, and not over HTTP.
fn live(run_dir: &Path) -> ExitCode {
    let answered = ipamd::status::alive(&wire::socket_in(run_dir));
    answered.map_or_else(|failure| unanswered(&failure), |()| ExitCode::SUCCESS)
}

fn unanswered(failure: &wire::Failure) -> ExitCode {
    let text = format!("ipamd: {} [{}] {}", failure.message, failure.reason, failure.details);
    say(&mut std::io::stderr(), text.trim_end());
    ExitCode::FAILURE
}

fn put_hold(run_dir: &Path, hold: Hold) -> ExitCode {
    match ipamd::hold::put(run_dir, hold) {
        Ok(()) => {
            say(&mut std::io::stdout(), &format!("held back on this node: {hold}"));
            if let Err(failure) = ipamd::status::fetch(&wire::socket_in(run_dir)) {
                let text = format!("no daemon obeys now, one that starts will: {}", failure.details);
                say(&mut std::io::stderr(), &text);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let file = ipamd::hold::file(run_dir);
            say(&mut std::io::stderr(), &format!("ipamd: cannot write {}: {error}", file.display()));
            ExitCode::FAILURE
        }
    }
}

fn max_pods(types: &[String], max_enis: Option<u8>, json: bool) -> ExitCode {
    match ipamd::max_pods::chosen(types) {
        Ok(types) if json => say(&mut std::io::stdout(), &ipamd::max_pods::json(&types, max_enis)),
        Ok(types) => say(&mut std::io::stdout(), ipamd::max_pods::render(&types, max_enis).trim()),
        Err(why) => {
            say(&mut std::io::stderr(), &format!("ipamd: {why}"));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Prints a line; a reader that has gone away is no reason to fail.
fn say(out: &mut impl std::io::Write, text: &str) {
    drop(writeln!(out, "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_one_that_can_be() {
        Arguments::command().debug_assert();
    }
}
