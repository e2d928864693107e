//! `vpc-lab`: the VPC lab for people: the demo.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::LabError;
use lab::demo::{Demo, Wish};

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
}

fn main() -> ExitCode {
    let Command::Demo { nodes, pods, keep } = Arguments::parse().command;
    match demo(Wish { nodes, pods }, keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vpc-lab: {error}");
            ExitCode::from(2)
        }
    }
}

/// True when every cell is as expected.
fn demo(wish: Wish, keep: bool) -> Result<bool, LabError> {
    lab::netns::enter_lab()?;
    let mut say = |line: &str| println!("{line}");
    let mut demo = Demo::start(wish, &mut say)?;
    let good = demo.show(&mut say)?;
    if keep {
        say(&demo.how_to_look());
        let mut line = String::new();
        // The end of input is as good as Enter.
        let _read = std::io::stdin().read_line(&mut line);
    }
    Ok(demo.tear_down(&mut say)? && good)
}
