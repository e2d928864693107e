//! `vpc-lab`: the VPC lab for people: the demo, the measurements.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::browser::Frame;
use lab::demo::{Demo, Paint, Wish};
use lab::{LabError, packet};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// A VPC in network namespaces.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
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
        /// The other act, of its own size: nodes with an API server.
        #[arg(long, conflicts_with_all = ["nodes", "pods", "keep"])]
        kubernetes: bool,
    },
    /// A picture of the status page of a daemon with pods, as PNG.
    Picture {
        /// Where to.
        file: PathBuf,
        /// As whoever prefers dark pages sees it.
        #[arg(long)]
        dark: bool,
        /// Its width in pixels.
        #[arg(long, default_value_t = 1280)]
        width: u32,
        /// Its height in pixels.
        #[arg(long, default_value_t = 700)]
        height: u32,
    },
    /// ADD and DEL beside the reference plugins and the floor.
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Something else instead.
        #[command(subcommand)]
        instead: Option<Bench>,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// What a packet costs, by the number of pods on the node, beside rules per pod and beside routes alone.
    Packet {
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Pods on the node; two or more apart.
        #[arg(long, value_delimiter = ',', default_value = "0,28,110,250,500,700", value_parser = clap::value_parser!(u32).range(..=700))]
        pods: Vec<u32>,
    },
    /// From the daemon's start to a conflist and a usable address: slow calls to EC2, no API server, no kube-proxy, iptables locked.
    Start {
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Fresh nodes to start, one after the other.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
    },
}

/// Ends this process with the one that `LAB_PARENT` names: who is asked to end may pass that on to nobody, and a lab that is left
/// alone has daemons and namespaces.
fn end_with_parent() -> Result<(), LabError> {
    let Some(parent) = std::env::var_os("LAB_PARENT") else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(LabError::doing("end with the command that started this"))?;
    // One that has ended before that was said is nobody's parent any more.
    let now = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    match now.is_some_and(|now| *parent == *now) {
        true => Ok(()),
        false => Err(LabError::Otherwise("the command that started this has ended".to_owned())),
    }
}

fn main() -> ExitCode {
    if let Err(error) = end_with_parent() {
        eprintln!("cargo xtask: {error}");
        return ExitCode::from(2);
    }
    let done = match Arguments::parse().command {
        Command::Demo { kubernetes: true, .. } => kubernetes(),
        Command::Demo { nodes, pods, keep, .. } => demo(Wish { nodes, pods }, keep),
        Command::Bench { instead: Some(Bench::Packet { json, pods }), .. } => packet(json.as_deref(), pods),
        Command::Bench { instead: Some(Bench::Start { json, runs }), .. } => start(json.as_deref(), runs),
        Command::Bench { json, instead: None } => bench(json.as_deref()),
        Command::Picture { file, dark, width, height } => picture(&file, Frame { width, height, dark }),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::from(2)
        }
    }
}

fn kubernetes() -> Result<bool, LabError> {
    lab::netns::enter_lab()?;
    let paint = Paint::new(std::io::stdout().is_terminal());
    let good = lab::demo_kubernetes::show(paint, &mut |line: &str| println!("{line}"))?;
    println!("{}", verdict(good));
    Ok(good)
}

/// The last line of a demo.
const fn verdict(good: bool) -> &'static str {
    if good { "── all as expected" } else { "── something is WRONG, and marked so above" }
}

fn picture(file: &Path, frame: Frame) -> Result<bool, LabError> {
    // Taken where the lab may write, and copied from there: its /run hides what others have below it.
    let mut to = create(file)?;
    lab::netns::enter_lab()?;
    let taken = Path::new("/run/lab/picture.png");
    lab::picture::take(frame, taken)?;
    let copy = std::fs::File::open(taken).and_then(|mut from| std::io::copy(&mut from, &mut to));
    let bytes = copy.map_err(LabError::doing("copy the picture"))?;
    println!("   {}: {bytes} bytes", file.display());
    Ok(true)
}

fn bench(json: Option<&Path>) -> Result<bool, LabError> {
    // Before the private /run hides a path below it.
    let file = json.map(create).transpose()?;
    lab::netns::enter_lab()?;
    let mut figures = lab::bench::run(&mut |line: &str| println!("{line}"))?;
    figures["allocator"] = lab::allocator::run(&mut |line: &str| println!("{line}"))?;
    println!("   plugin {} bytes, daemon resident {}", figures["plugin_bytes"], figures["daemon_rss_bytes"]);
    write_json(file, &figures)?;
    Ok(true)
}

fn packet(json: Option<&Path>, pods: Vec<u32>) -> Result<bool, LabError> {
    // Before the private /run hides a path below it.
    let file = json.map(create).transpose()?;
    lab::netns::enter_lab()?;
    let wish = packet::Wish { pods, effort: packet::Effort::FULL };
    let figures = packet::run(&wish, &mut |line: &str| println!("{line}"))?;
    write_json(file, &figures)?;
    Ok(true)
}

fn start(json: Option<&Path>, runs: u32) -> Result<bool, LabError> {
    // Before the private /run hides a path below it.
    let file = json.map(create).transpose()?;
    lab::netns::enter_lab()?;
    let figures = lab::start::run(runs, &mut |line: &str| println!("{line}"))?;
    write_json(file, &figures)?;
    Ok(true)
}

fn write_json(file: Option<std::fs::File>, figures: &serde_json::Value) -> Result<(), LabError> {
    let Some(file) = file else { return Ok(()) };
    serde_json::to_writer_pretty(file, figures).map_err(|error| LabError::Otherwise(error.to_string()))
}

/// Makes a file for figures before the work that gives them.
fn create(path: &Path) -> Result<std::fs::File, LabError> {
    std::fs::File::create(path).map_err(|error| LabError::Otherwise(format!("{}: {error}", path.display())))
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
    let good = demo.tear_down(&mut say)? && good;
    say(verdict(good));
    if good && !keep {
        say(
            "   next: cargo xtask demo --keep, to look around in it; \"How a packet goes\" in README.md says what there is to see",
        );
    }
    Ok(good)
}
