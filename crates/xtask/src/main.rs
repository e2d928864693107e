//! The project's own commands: `cargo xtask demo|test|vm|sim|fleet|picture|bench|gen|plugin|dist|ci|tidy`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

mod build;
mod dist;
mod licences;
mod moto;
mod plugin;
mod setup;
mod steps;
mod target;
mod tests;
mod tidy;
mod vm;

use std::path::PathBuf;
use std::process::{Command as Program, ExitCode};

use clap::{Parser, Subcommand};

use build::{Built, Profile};
use steps::Failure;

/// Pods that fit on a node of the demo.
const DEMO_PODS_PER_NODE: u32 = 27;
/// Pods of a demo of which nothing is said.
const DEMO_PODS: u32 = 30;

/// Build, try and test the VPC CNI.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up a VPC in network namespaces, run daemon and plugin in it, and show that packets flow.
    Demo {
        /// Nodes in the VPC, up to 8.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
        nodes: u32,
        /// Pods over all nodes, up to 100, and up to 27 for each node [default: 30, or what the nodes hold].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
        pods: Option<u32>,
        /// Leave it standing for a look around, until Enter.
        #[arg(long)]
        keep: bool,
        /// The other act: two nodes and an API server, with node objects, an ENIConfig, a pod's events and the dashboard's queries.
        #[arg(long, conflicts_with_all = ["nodes", "pods", "keep"])]
        kubernetes: bool,
    },
    /// Run the tests: pure, kernel, both binaries in the VPC lab, containerd, moto.
    ///
    /// As root it installs the Debian packages that are missing; what cannot run is counted as skipped, with its reason. All tests
    /// take some 18 minutes on two cores once everything is built. A test that needs moto has it made below `target/`: a minute or
    /// two, 139 MB.
    Test {
        /// Only tests whose names contain this.
        name: Option<String>,
    },
    /// Run the datapath's kernel tests in a virtual machine, with a kernel that has VLANs. Needs Debian's packages.
    Vm {
        /// Only tests whose names contain this.
        name: Option<String>,
    },
    /// Simulate: histories of a node in a world that plays foul, each from a seed.
    ///
    /// After the histories it looks for bugs that are planted on purpose, each until it is found (2,000 seeds at most), however small
    /// `--seeds` is: minutes on two cores. Few seeds do not meet all that the world may do; 300 do.
    Sim {
        /// How many histories.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// Tell this one alone; if it is wrong, event by event, cut down to what matters.
        #[arg(long, conflicts_with_all = ["seeds", "json"])]
        seed: Option<u64>,
        /// Write the figures into this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Simulate a fleet: thousands of nodes that share one account's EC2 limits; `--help` tells its options.
    #[command(disable_help_flag = true)]
    Fleet {
        /// Passed on to `sim fleet`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Take the picture of the status page that the README shows; `--help` tells its options. Needs chromium.
    #[command(disable_help_flag = true)]
    Picture {
        /// Passed on to `vpc-lab picture`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Measure ADD and DEL, with release builds; `bench packet` measures packets instead.
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// Write the figures into this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Something else instead.
        #[command(subcommand)]
        instead: Option<Bench>,
    },
    /// Rewrite what comes from another place: what the daemon's table of settings makes, and the chart's copies.
    Gen {
        /// Only see whether the files are as they should be.
        #[arg(long)]
        check: bool,
    },
    /// Build the plugin as it is shipped, and say where it is.
    Plugin,
    /// Build the container image, for both architectures where that is possible, as an OCI archive.
    ///
    /// Programs are static and optimised: some ten minutes for each architecture. arm64 on amd64 needs a C compiler for it (Debian:
    /// gcc-aarch64-linux-gnu); where there is none the image is for one architecture, and that is said.
    Dist(dist::Options),
    /// Format check, lints, tidy, tests: what CI runs.
    Ci,
    /// Check what no compiler checks.
    Tidy,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// What a packet costs, by the number of pods on the node; `--help` tells its options.
    #[command(disable_help_flag = true)]
    Packet {
        /// Passed on to `vpc-lab bench packet`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// From the daemon's start to a conflist and a usable address; `--help` tells its options.
    #[command(disable_help_flag = true)]
    Start {
        /// Passed on to `vpc-lab bench start`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said(code)) => ExitCode::from(code),
        Err(Failure::Why(why)) => {
            eprintln!("cargo xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo { kubernetes: true, .. } => demo(&["--kubernetes"]),
        Command::Demo { nodes, pods, keep, .. } => {
            // What is asked is looked at before anything is built for it.
            let pods = demo_pods(nodes, pods).map_err(Failure::Why)?;
            let (nodes, pods) = (nodes.to_string(), pods.to_string());
            let keep = keep.then_some("--keep");
            demo(&["--nodes", &nodes, "--pods", &pods].into_iter().chain(keep).collect::<Vec<_>>())
        }
        Command::Test { name } => test(name.as_deref()),
        Command::Vm { name } => vm::run(name.as_deref()),
        Command::Sim { seeds, seed, json } => sim(seeds, seed, json),
        Command::Fleet { options } => {
            steps::pass_on(Program::new(build::simulator()?).arg("fleet").args(&options))
        }
        Command::Picture { options } => lab_with("picture", &options),
        Command::Bench { instead: Some(Bench::Packet { options }), .. } => bench_instead("packet", &options),
        Command::Bench { instead: Some(Bench::Start { options }), .. } => bench_instead("start", &options),
        Command::Bench { json, instead: None } => bench(json),
        Command::Gen { check } => generate(check),
        Command::Plugin => plugin(),
        Command::Dist(options) => {
            steps::enter_workspace()?;
            dist::make(&options)
        }
        Command::Ci => ci(),
        Command::Tidy => tidy(),
    }
}

fn demo(options: &[&str]) -> Result<(), Failure> {
    setup::for_demo()?;
    let built = build::all(Profile::Dev)?;
    steps::pass_on(lab(&built, "demo").args(options))
}

fn demo_pods(nodes: u32, asked: Option<u32>) -> Result<u32, String> {
    let room = nodes.saturating_mul(DEMO_PODS_PER_NODE);
    match asked {
        None => Ok(DEMO_PODS.min(room)),
        Some(pods) if pods <= room => Ok(pods),
        Some(pods) => Err(format!("--nodes {nodes} holds {room} pods at most: too little for --pods {pods}")),
    }
}

#[test]
fn pods_of_the_demo_fit_its_nodes_or_are_refused() {
    assert_eq!(demo_pods(1, None), Ok(27));
    assert_eq!(demo_pods(2, None), Ok(30));
    assert_eq!(demo_pods(1, Some(27)), Ok(27));
    let why = demo_pods(1, Some(28)).unwrap_err();
    assert_eq!(why, "--nodes 1 holds 27 pods at most: too little for --pods 28");
}

fn test(name: Option<&str>) -> Result<(), Failure> {
    setup::for_tests()?;
    let built = build::all(Profile::Dev)?;
    steps::enter_workspace()?;
    let needs_moto = match name {
        Some(name) => tests::named(&built, name)?.iter().any(|test| moto::is_needed_by(test)),
        None => true,
    };
    let target = build::target_directory()?;
    let moto = match needs_moto {
        true => moto::set_up(&target)?,
        false => moto::not_asked_for(),
    };
    let path = setup::path_for_tests(&target);
    tests::run(&built, &moto, path, name)
}

fn sim(seeds: u64, seed: Option<u64>, json: Option<PathBuf>) -> Result<(), Failure> {
    let mut sim = Program::new(build::simulator()?);
    match seed {
        Some(seed) => sim.args(["sim", "--seed", &seed.to_string()]),
        None => sim.args(["sim", "--seeds", &seeds.to_string()]),
    };
    if let Some(file) = json {
        sim.arg("--json").arg(file);
    }
    steps::pass_on(&mut sim)
}

fn lab_with(command: &str, options: &[String]) -> Result<(), Failure> {
    let built = build::all(Profile::Dev)?;
    steps::pass_on(lab(&built, command).args(options))
}

fn bench(json: Option<PathBuf>) -> Result<(), Failure> {
    setup::for_demo()?;
    let built = build::all(Profile::Release)?;
    let mut lab = lab(&built, "bench");
    if let Some(file) = json {
        lab.arg("--json").arg(file);
    }
    steps::pass_on(&mut lab)
}

fn bench_instead(what: &str, options: &[String]) -> Result<(), Failure> {
    setup::for_demo()?;
    let built = build::all(Profile::Release)?;
    steps::pass_on(lab(&built, "bench").arg(what).args(options))
}

fn lab(built: &Built, command: &str) -> Program {
    let mut lab = Program::new(&built.lab);
    // It ends with us, however we do.
    lab.arg(command).envs(built.environment()).env("LAB_PARENT", std::process::id().to_string());
    lab
}

fn generate(check: bool) -> Result<(), Failure> {
    let built = build::all(Profile::Dev)?;
    steps::enter_workspace()?;
    steps::pass_on(Program::new(&built.daemon).args(["generate", "."]).args(check.then_some("--check")))
}

fn plugin() -> Result<(), Failure> {
    let built = plugin::build(&build::target_directory()?)?;
    let bytes = std::fs::metadata(&built).map(|file| file.len()).unwrap_or_default();
    println!("   {}: {bytes} bytes", built.display());
    Ok(())
}

fn ci() -> Result<(), Failure> {
    steps::step("format", steps::cargo(&["fmt", "--all", "--check"]))?;
    steps::step(
        "lints",
        steps::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    tidy()?;
    test(None)
}

fn tidy() -> Result<(), Failure> {
    println!("── tidy");
    steps::enter_workspace()?;
    let mut complaints = tidy::complaints()?;
    complaints.extend(licences::complaints()?);
    for complaint in &complaints {
        println!("   {complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        n => Err(Failure::Why(format!("{n} untidy places"))),
    }
}
