//! `sim`: the simulations for people.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use sim::{UnknownType, fleet, history};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often a search that takes long says so.
const PROGRESS: Duration = Duration::from_secs(15);

/// The daemon's decisions in virtual time.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Histories of a node in a world that plays foul: the real allocator, everything else simulated.
    Sim {
        /// How many histories.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// Tell this history alone; if it is wrong, event by event, cut down to what matters.
        #[arg(long, conflicts_with_all = ["seeds", "json"])]
        seed: Option<u64>,
        /// The first seed of many.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Write the figures as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Thousands of nodes that share one account's EC2 limits, in virtual time: our policies and the Go version's.
    Fleet(FleetArguments),
}

#[derive(Debug, clap::Args)]
struct FleetArguments {
    /// Sizes of the fleet.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Vec<u32>,
    /// What everything that is left to chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write results.json, results.md and results.svg into this directory.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Instances; of a type that holds 50 pods, because nobody counts where pods are placed.
    #[arg(long, default_value = fleet::budget::INSTANCE_TYPE)]
    instance_type: String,
    /// Describe calls: at once, and per second from then on.
    #[arg(long, num_args = 2, value_names = ["BURST", "RATE"], default_values_t = [100, 20], value_parser = clap::value_parser!(u32).range(1..))]
    describe: Vec<u32>,
    /// Calls that change something: the same.
    #[arg(long, num_args = 2, value_names = ["BURST", "RATE"], default_values_t = [100, 5], value_parser = clap::value_parser!(u32).range(1..))]
    change: Vec<u32>,
    /// One bucket for all calls of a kind, where EC2 has one for each API.
    #[arg(long)]
    pooled: bool,
    /// The kubelet's pause before it tries a pod again, in milliseconds; up to half as much is added.
    #[arg(long, default_value_t = 10_000)]
    retry_ms: u64,
    /// Pods of applications on each node, after the five that it starts with.
    #[arg(long, default_value_t = fleet::APPLICATION_PODS)]
    applications: u32,
}

/// Why a simulation cannot be made, or its figures not be kept.
#[derive(Debug, thiserror::Error)]
enum SimError {
    /// Of instances that do not exist.
    #[error(transparent)]
    Type(#[from] UnknownType),
    /// A rate is a burst and a rate.
    #[error("a rate is two numbers")]
    Rate,
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The figures.
    #[error("figures: {0}")]
    Figures(#[from] serde_json::Error),
}

impl SimError {
    fn of_file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Fleet(arguments) => fleet(&arguments),
        Command::Sim { seed: Some(seed), .. } => Ok(tell(seed)),
        Command::Sim { seeds, seed: None, first, json } => simulate(first, seeds, json.as_deref()),
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

/// Tells one history. True when it is right.
fn tell(seed: u64) -> bool {
    match history::tell(seed, None) {
        Ok(tally) => {
            println!(
                "   seed {seed}: {} events, {} ADDs, {} changes in EC2; all holds",
                tally.events, tally.adds, tally.changes
            );
            true
        }
        Err(_) => {
            if let Some(finding) = history::cut_down(seed, None) {
                finding.trace.iter().for_each(|line| println!("{line}"));
                println!("   seed {seed}, {}", finding.broken);
            }
            false
        }
    }
}

fn simulate(first: u64, seeds: u64, json: Option<&Path>) -> Result<bool, SimError> {
    // Made before the work that gives the figures.
    let file = json.map(|path| std::fs::File::create(path).map_err(SimError::of_file(path))).transpose()?;
    let started = Instant::now();
    println!("── {seeds} histories");
    let told = history::tell_many(first, seeds, Duration::MAX, &|number| {
        println!("   {number} after {} s", started.elapsed().as_secs());
    });
    let history::Tally { events, adds, changes, met } = told.tally;
    let took = started.elapsed();
    let seconds = took.as_secs_f64();
    println!("   {events} events, {adds} ADDs, {changes} changes in EC2 in {seconds:.1} s");
    println!("   how often they met what the world may do to them, of which few histories do not meet all:");
    for manner in history::Manner::ALL {
        println!("   {:>9} {manner}", met.of(manner));
    }
    for finding in &told.findings {
        println!(
            "   seed {}: {}\n      cargo xtask sim --seed {}",
            finding.seed, finding.broken, finding.seed
        );
    }
    println!("── bugs planted on purpose, each looked for until it is found, however few the histories were");
    let plants = with_patience(|| {
        history::find_plants(first, &|plant, found| {
            let found = found.map_or_else(|| "not found".to_owned(), |seeds| format!("by history {seeds}"));
            println!("   {:<28} {found}", plant.name());
        })
    });
    if let Some(file) = file {
        serde_json::to_writer_pretty(file, &history::as_json(&told, &plants, took))?;
    }
    let found = plants.iter().filter(|(_, found)| found.is_some()).count();
    println!(
        "── {} histories, {} of them wrong, in {} s; {found} of {} planted bugs found",
        told.seeds,
        told.findings.len(),
        took.as_secs(),
        plants.len()
    );
    println!(
        "── EC2 calls of one node: idle, for its first 16 addresses, and for each pod that comes and goes"
    );
    print!("{}", fleet::budget::table(&fleet::budget::of_all(first)?));
    Ok(told.findings.is_empty() && plants.iter().all(|(_, found)| found.is_some()))
}

/// Searches, with a word now and then that the search goes on.
fn with_patience<T>(search: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let (done, waits) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while waits.recv_timeout(PROGRESS) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                println!("   still looking after {} s; minutes are usual", started.elapsed().as_secs());
            }
        });
        let found = search();
        drop(done);
        found
    })
}

fn fleet(arguments: &FleetArguments) -> Result<bool, SimError> {
    let started = Instant::now();
    let rate = |given: &[u32]| match given {
        [burst, per_second] => Ok(fleet::Rate { burst: *burst, per_second: *per_second }),
        _ => Err(SimError::Rate),
    };
    let rates = fleet::Rates {
        describe: rate(&arguments.describe)?,
        change: rate(&arguments.change)?,
        pooled: arguments.pooled,
    };
    let wish = fleet::Wish {
        nodes: arguments.nodes.clone(),
        seed: arguments.seed,
        rates,
        instance_type: arguments.instance_type.clone(),
        retry: Duration::from_millis(arguments.retry_ms),
        applications: arguments.applications,
    };
    let runs = fleet::run(&wish, &|line| println!("   {line}"))?;
    let budgets = fleet::budget::of_all(wish.seed)?;
    print!("{}", fleet::table(&runs));
    println!(
        "── EC2 calls of one node: idle, for its first 16 addresses, and for each pod that comes and goes"
    );
    print!("{}", fleet::budget::table(&budgets));
    if let Some(out) = &arguments.out {
        write_results(out, &wish, &runs, &budgets)?;
    }
    println!("── {} histories in {} s", runs.len(), started.elapsed().as_secs());
    Ok(true)
}

fn write_results(
    out: &Path,
    wish: &fleet::Wish,
    runs: &[fleet::Run],
    budgets: &[fleet::budget::Budget],
) -> Result<(), SimError> {
    let json = serde_json::to_string_pretty(&fleet::as_json(wish, runs, budgets))? + "\n";
    let files = [
        ("results.json", json),
        ("results.md", fleet::markdown(wish, runs, budgets)),
        ("results.svg", fleet::plot(runs)),
    ];
    std::fs::create_dir_all(out).map_err(SimError::of_file(out))?;
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(SimError::of_file(&path))?;
    }
    Ok(())
}
