//! `vpc-lab`: the VPC lab for people: the demo.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use lab::demo::{Demo, Paint, Wish};
use lab::{LabError, sim};

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
    /// Histories of a node in a world that plays foul: the real allocator, everything else simulated.
    Sim {
        /// How many histories.
        #[arg(long, default_value_t = 20_000)]
        seeds: u64,
        /// Tell this history alone, cut down to what matters if it is wrong.
        #[arg(long)]
        seed: Option<u64>,
        /// The first seed of many.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<std::path::PathBuf>,
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
        Command::Sim { seed: Some(seed), .. } => Ok(tell(seed)),
        Command::Sim { seeds, seed: None, first, json } => simulate(first, seeds, json.as_deref()),
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
    let mut figures = lab::bench::run(&mut |line: &str| println!("{line}"))?;
    figures["allocator"] = lab::allocator::run(&mut |line: &str| println!("{line}"))?;
    println!("   plugin {} bytes, daemon resident {}", figures["plugin_bytes"], figures["daemon_rss_bytes"]);
    if let Some(file) = file {
        serde_json::to_writer_pretty(file, &figures).map_err(|e| LabError::Otherwise(e.to_string()))?;
    }
    Ok(true)
}

/// Tells one history. True when it is right.
fn tell(seed: u64) -> bool {
    match sim::tell(seed, None) {
        Ok(tally) => {
            println!(
                "   seed {seed}: {} events, {} ADDs, {} changes in EC2; all holds",
                tally.events, tally.adds, tally.changes
            );
            true
        }
        Err(_) => {
            if let Some(finding) = sim::cut_down(seed, None) {
                finding.trace.iter().for_each(|line| println!("{line}"));
                println!("   seed {seed}, {}", finding.broken);
            }
            false
        }
    }
}

fn simulate(first: u64, seeds: u64, json: Option<&std::path::Path>) -> Result<bool, LabError> {
    let started = Instant::now();
    println!("── {seeds} histories");
    let told = sim::tell_many(first, seeds, Duration::MAX, &|number| {
        println!("   {number} after {} s", started.elapsed().as_secs());
    });
    let sim::Tally { events, adds, changes } = told.tally;
    let seconds = started.elapsed().as_secs_f64();
    println!("   {events} events, {adds} ADDs, {changes} changes in EC2 in {seconds:.1} s");
    for finding in &told.findings {
        println!(
            "   seed {}: {}\n      cargo xtask sim --seed {}",
            finding.seed, finding.broken, finding.seed
        );
    }
    println!("── planted bugs");
    let plants = sim::find_plants(first);
    for (plant, found) in &plants {
        let found =
            found.map_or_else(|| "not found".to_owned(), |seeds| format!("found after {seeds} seeds"));
        println!("   {:<28} {found}", plant.name());
    }
    if let Some(path) = json {
        let file = std::fs::File::create(path).map_err(LabError::doing("make the JSON file"))?;
        let figures = sim::as_json(&told, &plants, started);
        serde_json::to_writer_pretty(file, &figures).map_err(|e| LabError::Otherwise(e.to_string()))?;
    }
    println!(
        "── {} histories, {} of them wrong, in {} s",
        told.seeds,
        told.findings.len(),
        started.elapsed().as_secs()
    );
    Ok(told.findings.is_empty() && plants.iter().all(|(_, found)| found.is_some()))
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
