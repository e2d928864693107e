//! The command lines of the tools, and what they print.

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use types::Moment;

use super::bundle::Part;
use super::evidence::Evidence;
use super::explain::Unexplained;
use super::finding::Verdict;
use super::look::{self, CNI_CACHE, Whom};
use super::{bundle, explain, judge, redact, saved, status};
use crate::config::{DEFAULT_RUN_DIR, Environment};
use crate::install::IMAGE_PLUGIN;

/// Nothing could be told.
const NOT_TOLD: u8 = 2;
/// Pause before the second look: the daemon puts back within a second what others take away, and pods come and go.
const SECOND_LOOK: Duration = Duration::from_millis(1500);

/// Tools that change nothing.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Compare the daemon's state with the kernel, the runtime and EC2: what is wrong, how that is seen, what mends it.
    ///
    /// Changes nothing. Exit code 0: nothing is wrong; 1: something is; 2: that could not be told.
    Doctor {
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
        /// Ask EC2 and instance metadata too, with the daemon's settings and credentials.
        #[arg(long, conflicts_with = "state")]
        cloud: bool,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Tell where something comes from.
    #[command(subcommand)]
    Explain(Explain),
    /// Write what is known of this node into an archive (.tar.gz), without secrets.
    Bundle {
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
        /// Ask EC2 and instance metadata too.
        #[arg(long, conflicts_with = "state")]
        cloud: bool,
        /// The archive; there must be no such file. `-`: standard output, for `kubectl exec POD -- /ipamd bundle --out - >node.tar.gz`.
        #[arg(long, default_value = "ipamd-bundle.tar.gz")]
        out: PathBuf,
        /// More logs to take the end of.
        #[arg(long)]
        log: Vec<PathBuf>,
    },
    /// Print what a shell needs to complete our command lines.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// What can be explained.
#[derive(Debug, Subcommand)]
pub enum Explain {
    /// A pod: its address, ENI, table, mark and rules, and the way of its packets.
    Pod {
        /// NAMESPACE/NAME, or an address of the pod.
        pod: String,
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Our nftables table as the daemon wants it: a script for `nft -f`.
    Nftables {
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// Which node.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The daemon's directory.
    #[arg(long, env = "IPAMD_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Where the container runtime keeps results of plugins.
    #[arg(long, default_value = CNI_CACHE)]
    cni_cache: PathBuf,
    /// The plugin as the daemon's image has it, with which the node's is compared.
    #[arg(long, default_value = IMAGE_PLUGIN)]
    plugin: PathBuf,
    /// Look at a copy of the daemon's directory, or at a bundle that was unpacked (`tar -xzf`), instead of this node.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl NodeArgs {
    /// Looks.
    ///
    /// # Errors
    /// In words, when there is nothing saved where somebody says that there is.
    fn look(&self, cloud: bool) -> Result<Evidence, String> {
        let (run_dir, cni_cache) = (self.run_dir.clone(), self.cni_cache.clone());
        let whom = Whom { run_dir, cni_cache, plugin: self.plugin.clone(), cloud };
        match &self.state {
            Some(named) => Ok(look::directory(&saved::directory(named)?)),
            None => Ok(look::node(&whom)),
        }
    }

    /// Looks and judges what is left of that once it is `told`; on a live node what is wrong is looked at twice.
    ///
    /// # Errors
    /// As `look`.
    fn examine(&self, cloud: bool, told: fn(&mut Evidence)) -> Result<(Evidence, Verdict), String> {
        let look = || {
            self.look(cloud).map(|mut evidence| {
                told(&mut evidence);
                evidence
            })
        };
        let evidence = look()?;
        let verdict = judge::judge(&evidence);
        if verdict.findings.is_empty() || self.state.is_some() {
            return Ok((evidence, verdict));
        }
        std::thread::sleep(SECOND_LOOK);
        let evidence = look()?;
        let still = judge::judge(&evidence).and_still(&verdict);
        Ok((evidence, still))
    }
}

/// Runs a tool; `command` is the definition of the whole command line.
#[must_use]
pub fn run(tool: &Tool, mut command: clap::Command) -> ExitCode {
    let done = match tool {
        Tool::Doctor { node, cloud, json } => doctor(node, *cloud, *json),
        Tool::Explain(Explain::Pod { pod, node }) => explained(node, |evidence| explain::pod(evidence, pod)),
        Tool::Explain(Explain::Nftables { node }) => explained(node, explain::nftables),
        Tool::Bundle { node, cloud, out, log } => {
            // A saved directory has nothing to do with the settings and logs of this node.
            let here = node.state.is_none();
            let environment: Environment =
                if here { std::env::vars_os().collect() } else { Environment::new() };
            let mut logs = if here { bundle::logs(&environment) } else { Vec::new() };
            logs.extend(log.iter().cloned());
            node.examine(*cloud, redact::evidence).map(|(evidence, verdict)| {
                let parts = bundle::parts(&evidence, &verdict, &environment, &logs);
                give_out(out, &parts, evidence.live.taken)
            })
        }
        Tool::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "ipamd", &mut text);
            Ok(print(&String::from_utf8_lossy(&text)))
        }
        Tool::Man => {
            let failed = |error: std::io::Error| format!("cannot make the manual page: {error}");
            manual(command).map(|text| print(&text)).map_err(failed)
        }
    };
    done.unwrap_or_else(|why| complain(&why))
}

/// Shows what a saved directory tells of its node, as `ipamd status` does of this one.
#[must_use]
pub fn saved_status(named: &Path, json: bool) -> ExitCode {
    let told = saved::directory(named).map(|dir| status::told(look::directory(&dir)));
    told.map_or_else(|why| complain(&why), |told| print(&if json { told.json() } else { told.text() }))
}

/// Puts an archive where it is wanted.
fn give_out(out: &Path, parts: &[Part], at: Moment) -> ExitCode {
    let mut stdout = std::io::stdout();
    let to_stdout = out == Path::new("-");
    if to_stdout && stdout.is_terminal() {
        return complain("an archive is nothing for a terminal: lead it into a file, or name one with --out");
    }
    let written = match to_stdout {
        true => bundle::pack(&mut stdout, parts, at).map(|_stdout| ()),
        false => bundle::write(out, parts, at),
    };
    match written {
        // What is not of the archive must not get into it.
        Ok(()) if to_stdout => ExitCode::SUCCESS,
        Ok(()) => print(&format!("{}: {} files\n", out.display(), parts.len())),
        Err(error) => complain(&format!("cannot write {}: {error}", out.display())),
    }
}

fn doctor(node: &NodeArgs, cloud: bool, json: bool) -> Result<ExitCode, String> {
    let (_, verdict) = node.examine(cloud, |_| {})?;
    let text = match json {
        true => serde_json::to_string_pretty(&verdict).unwrap_or_default() + "\n",
        false => verdict.render(),
    };
    let _printed = print(&text);
    Ok(ExitCode::from(verdict.exit_code()))
}

fn explained(
    node: &NodeArgs,
    explain: impl FnOnce(&Evidence) -> Result<String, Unexplained>,
) -> Result<ExitCode, String> {
    let text = explain(&node.look(false)?).map_err(|Unexplained(why)| why)?;
    Ok(print(&text))
}

/// One page: the program, then each command with its options.
fn manual(mut command: clap::Command) -> std::io::Result<String> {
    command.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    subcommands(&command, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn subcommands(command: &clap::Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    for each in command.get_subcommands().filter(|each| each.get_name() != "help") {
        let name = each.get_display_name().unwrap_or_else(|| each.get_name()).replace('-', " ");
        writeln!(text, ".SH \"{}\"", name.to_uppercase())?;
        let page = clap_mangen::Man::new(each.clone());
        page.render_description_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_options_section(text)?;
        subcommands(each, text)?;
    }
    Ok(())
}

/// A reader that has gone away is no reason to fail.
fn print(text: &str) -> ExitCode {
    drop(std::io::stdout().write_all(text.as_bytes()));
    ExitCode::SUCCESS
}

fn complain(why: &str) -> ExitCode {
    drop(writeln!(std::io::stderr(), "ipamd: {why}"));
    ExitCode::from(NOT_TOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of all commands, and their long options.
    fn words(command: &clap::Command) -> Vec<String> {
        let commands = command.get_subcommands().filter(|each| each.get_name() != "help");
        let below = commands.flat_map(|each| {
            let options = each.get_arguments().filter_map(|argument| argument.get_long());
            let options = options.filter(|option| *option != "help").map(str::to_owned);
            options.chain([each.get_name().to_owned()]).chain(words(each)).collect::<Vec<_>>()
        });
        below.collect()
    }

    fn ipamd() -> clap::Command {
        Tool::augment_subcommands(clap::Command::new("ipamd"))
    }

    #[test]
    fn the_manual_page_has_every_command_and_option() {
        let text = manual(ipamd()).unwrap().replace("\\-", "-");
        let words = words(&ipamd());

        assert!(words.len() > 15, "{words:?}");
        for word in words {
            assert!(text.contains(&word), "{word} is not in the manual page");
        }
    }

    #[test]
    fn every_shell_completes_every_command_and_option() {
        for shell in <Shell as clap::ValueEnum>::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut ipamd(), "ipamd", &mut text);
            let text = String::from_utf8(text).unwrap();

            for word in words(&ipamd()) {
                assert!(text.contains(&word), "{shell} does not complete {word}");
            }
        }
    }
}
