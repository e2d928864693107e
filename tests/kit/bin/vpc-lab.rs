//! `vpc-lab`: the VPC lab for people: the demo.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::LabError;
use lab::demo::{Demo, Paint, Wish};

/// A VPC in network namespaces.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Nodes, pods and packets between them.
    Demo {
        /// Nodes in the VPC.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
        nodes: u32,
        /// Pods over all nodes.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100))]
        pods: u32,
        /// Leave it standing until Enter.
        #[arg(long)]
        keep: bool,
    },
    /// ADD and DEL beside the reference plugins and the floor.
    Bench {
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<std::path::PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo { nodes, pods, keep } => demo(Wish { nodes, pods }, keep),
        Command::Bench { json } => bench(json.as_deref()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vpc-lab: {error}");
            ExitCode::from(2)
        }
    }
}

fn bench(json: Option<&std::path::Path>) -> Result<bool, LabError> {
    // Before the private /run hides a path below it.
    let file = json.map(std::fs::File::create).transpose().map_err(LabError::doing("make the JSON file"))?;
    lab::netns::enter_lab()?;
    let figures = lab::bench::run(&mut |line: &str| println!("{line}"))?;
    println!("   plugin {} bytes, daemon resident {}", figures["plugin_bytes"], figures["daemon_rss_bytes"]);
    if let Some(file) = file {
        serde_json::to_writer_pretty(file, &figures).map_err(|e| LabError::Otherwise(e.to_string()))?;
    }
    Ok(true)
}

/// True when every cell is as expected.
fn demo(wish: Wish, keep: bool) -> Result<bool, LabError> {
    let entered = lab::netns::enter_lab()?;
    let paint = Paint::new(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let mut say = |line: &str| println!("{line}");
    let mut demo = Demo::start(wish, paint, &mut say)?;
    let good = demo.show(&mut say)?;
    if keep {
        say(&demo.how_to_look(entered));
        let mut line = String::new();
        // The end of input is as good as Enter.
        let _read = std::io::stdin().read_line(&mut line);
    }
    Ok(demo.tear_down(&mut say)? && good)
}
