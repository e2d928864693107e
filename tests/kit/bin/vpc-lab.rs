//! `vpc-lab`: the VPC lab for people: the demo, the simulations, the measurements.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these commands talk to a person")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use lab::browser::Frame;
use lab::demo::{Demo, Paint, Wish};
use lab::{LabError, packet};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use sim::{fleet, history};

/// How often a search that takes long says so.
const PROGRESS: Duration = Duration::from_secs(15);

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
        /// The other act: two nodes and an API server.
        #[arg(long, conflicts_with_all = ["nodes", "pods", "keep"])]
        kubernetes: bool,
    },
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

fn kubernetes() -> Result<bool, LabError> {
    lab::netns::enter_lab()?;
    let paint = Paint::new(std::io::stdout().is_terminal());
    lab::demo_kubernetes::show(paint, &mut |line: &str| println!("{line}"))
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

fn simulate(first: u64, seeds: u64, json: Option<&Path>) -> Result<bool, LabError> {
    let file = json.map(create).transpose()?;
    let started = Instant::now();
    println!("── {seeds} histories");
    let told = history::tell_many(first, seeds, Duration::MAX, &|number| {
        println!("   {number} after {} s", started.elapsed().as_secs());
    });
    let history::Tally { events, adds, changes, met } = told.tally;
    let seconds = started.elapsed().as_secs_f64();
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
    let plants = with_patience(|| history::find_plants(first));
    for (plant, found) in &plants {
        let found = found.map_or_else(|| "not found".to_owned(), |seeds| format!("found by seed {seeds}"));
        println!("   {:<28} {found}", plant.name());
    }
    write_json(file, &history::as_json(&told, &plants, started))?;
    println!(
        "── {} histories, {} of them wrong, in {} s",
        told.seeds,
        told.findings.len(),
        started.elapsed().as_secs()
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

fn fleet(arguments: &FleetArguments) -> Result<bool, LabError> {
    let started = Instant::now();
    let rate = |given: &[u32]| match given {
        [burst, per_second] => Ok(fleet::Rate { burst: *burst, per_second: *per_second }),
        _ => Err(LabError::Otherwise("a rate is two numbers".to_owned())),
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
) -> Result<(), LabError> {
    let json = serde_json::to_string_pretty(&fleet::as_json(wish, runs, budgets));
    let json = json.map_err(|error| LabError::Otherwise(error.to_string()))? + "\n";
    let files = [
        ("results.json", json),
        ("results.md", fleet::markdown(wish, runs, budgets)),
        ("results.svg", fleet::plot(runs)),
    ];
    std::fs::create_dir_all(out).map_err(LabError::doing("make the directory"))?;
    for (name, text) in files {
        std::fs::write(out.join(name), text).map_err(LabError::doing("write the results"))?;
    }
    Ok(())
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
    say(if good { "── all as expected" } else { "── something is WRONG, and marked so above" });
    if good && !keep {
        say(
            "   next: cargo xtask demo --keep, to look around in it; \"How a packet goes\" in README.md says what there is to see",
        );
    }
    Ok(good)
}
