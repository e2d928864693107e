//! Deterministic simulation: the daemon's own `Node` in a world where everything else is played, and plays foul.
//!
//! One seed is one history: pods come and go, DELs overtake ADDs, EC2 lags, throttles, loses answers and takes things away, the
//! disk and the kernel refuse, the daemon dies at any moment and its clock jumps. After every event the invariants are
//! checked; then nothing bad happens for a while and everything has to come to rest, with nothing leaked in EC2 or in
//! the books. The same seed is the same history; one that fails is cut down to the steps that matter.

mod cloud;
mod cluster;
mod foreign;
mod met;
mod named;
mod pictures;
mod plant;
mod script;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use types::{InstanceLimits, NetworkCard, NetworkCardLimits};

pub use met::{Manner, Met};
pub use named::{NAMED, Named};
pub use plant::Plant;
pub use world::{Broken, Tally};

use script::Script;
use world::World;

/// A seed whose history is wrong, cut down.
#[derive(Debug)]
pub struct Finding {
    /// The seed.
    pub seed: u64,
    /// What does not hold.
    pub broken: Broken,
    /// The steps that matter and what followed, a line each.
    pub trace: Vec<String>,
}

/// How many histories were told, and what they showed.
#[derive(Debug, Default)]
pub struct Told {
    /// Histories.
    pub seeds: u64,
    /// Those that are wrong, up to [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// All of them together.
    pub tally: Tally,
}

/// How many wrong histories are kept before the run ends.
const FINDINGS_MAX: usize = 5;
/// Planted bugs must be found within so many seeds.
pub const PLANTS_FOUND_WITHIN: u64 = 2_000;
/// How often cutting down tries.
const CUTS_MAX: u32 = 400;

/// Tells the history of one seed.
///
/// # Errors
/// The first thing that does not hold.
pub fn tell(seed: u64, plant: Option<Plant>) -> Result<Tally, Broken> {
    World::new(Script::of(seed), seed, plant, false)?.run()
}

/// Tells the histories of `seeds` seeds from `first` on, on all cores, or as many as there is time for; calls `say` once in a while
/// with how far it is.
pub fn tell_many(first: u64, seeds: u64, time: Duration, say: &(dyn Fn(u64) + Sync)) -> Told {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let found = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || {
        let mut told = Told::default();
        while found.load(Ordering::Relaxed) < u64::try_from(FINDINGS_MAX).unwrap_or(u64::MAX) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds || started.elapsed() > time {
                break;
            }
            if number % 1000 == 999 {
                say(number + 1);
            }
            told.seeds += 1;
            match tell(first + number, None) {
                Ok(tally) => told.tally.add(tally),
                Err(broken) => {
                    found.fetch_add(1, Ordering::Relaxed);
                    told.findings.push(Finding { seed: first + number, broken, trace: Vec::new() });
                }
            }
        }
        told
    };
    let mut all = Told::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            // A panic in a history is a finding that we cannot name better than the panic does.
            if let Ok(told) = worker.join() {
                all.seeds += told.seeds;
                all.tally.add(told.tally);
                all.findings.extend(told.findings);
            } else {
                let broken = Broken { what: "a history panicked".to_owned(), after: Duration::ZERO };
                all.findings.push(Finding { seed: first, broken, trace: Vec::new() });
            }
        }
    });
    all.findings.sort_by_key(|finding| finding.seed);
    all
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.adds += other.adds;
        self.changes += other.changes;
        self.met.add(other.met);
    }
}

/// Cuts a wrong history down to the steps without which it is not wrong, and tells it again in words.
#[must_use]
pub fn cut_down(seed: u64, plant: Option<Plant>) -> Option<Finding> {
    let whole = Script::of(seed);
    let mut kept: Vec<usize> = (0..whole.steps.len()).collect();
    let mut broken = retell(&whole, &kept, seed, plant)?;
    let mut tries = 0;
    let mut size = kept.len() / 2;
    while size > 0 && tries < CUTS_MAX {
        let mut start = 0;
        while start < kept.len() && tries < CUTS_MAX {
            tries += 1;
            let without: Vec<usize> = kept
                .iter()
                .enumerate()
                .filter(|(at, _)| *at < start || *at >= start + size)
                .map(|(_, step)| *step)
                .collect();
            match retell(&whole, &without, seed, plant) {
                Some(still) => (kept, broken) = (without, still),
                None => start += size,
            }
        }
        size /= 2;
    }
    let mut world = World::new(only(&whole, &kept), seed, plant, true).ok()?;
    let _broken_as_known = world.run();
    Some(Finding { seed, broken, trace: world.trace() })
}

fn retell(whole: &Script, kept: &[usize], seed: u64, plant: Option<Plant>) -> Option<Broken> {
    World::new(only(whole, kept), seed, plant, false).and_then(|mut world| world.run()).err()
}

/// The script with these steps; the pauses of the others stay.
fn only(whole: &Script, kept: &[usize]) -> Script {
    let kept: BTreeSet<usize> = kept.iter().copied().collect();
    let mut steps = Vec::new();
    let mut pause = Duration::ZERO;
    for (index, (before, step)) in whole.steps.iter().enumerate() {
        pause += *before;
        if kept.contains(&index) {
            steps.push((std::mem::take(&mut pause), *step));
        }
    }
    Script { setup: whole.setup, steps }
}

/// Finds each planted bug, and says so at once; how many seeds that took, `None` for one that was not found.
#[must_use]
pub fn find_plants(first: u64, say: &(dyn Fn(Plant, Option<u64>) + Sync)) -> Vec<(Plant, Option<u64>)> {
    let found = |plant: Plant| {
        let found = (0..PLANTS_FOUND_WITHIN).find(|n| tell(first + n, Some(plant)).is_err()).map(|n| n + 1);
        say(plant, found);
        found
    };
    std::thread::scope(|scope| {
        let searches: Vec<_> =
            Plant::ALL.iter().map(|plant| (*plant, scope.spawn(move || found(*plant)))).collect();
        // A search that panics has not found what was planted.
        searches.into_iter().map(|(plant, search)| (plant, search.join().unwrap_or(None))).collect()
    })
}

/// The result in the form of `--json`; the histories took that long, without the search for planted bugs.
#[must_use]
pub fn as_json(told: &Told, plants: &[(Plant, Option<u64>)], took: Duration) -> Value {
    let planted: Vec<Value> = plants
        .iter()
        .map(|(plant, found)| json!({"name": plant.name(), "found_after_seeds": found}))
        .collect();
    let manners: Map<String, Value> =
        Manner::ALL.iter().map(|manner| (manner.to_string(), told.tally.met.of(*manner).into())).collect();
    json!({
        "seeds": told.seeds,
        "violations": told.findings.len(),
        "seconds": took.as_secs(),
        "events": told.tally.events,
        "adds": told.tally.adds,
        "manners": manners,
        "planted": planted,
    })
}

/// Limits of a type that the table lacks: none.
fn no_limits(instance_type: &str) -> InstanceLimits {
    InstanceLimits {
        instance_type: instance_type.to_owned(),
        max_enis: 1,
        ipv4_per_eni: 1,
        cards: vec![NetworkCardLimits { card: NetworkCard(0), max_enis: 1 }],
        prefix_delegation: false,
        trunk: None,
        branch_enis: 0,
    }
}
