//! The fleet: thousands of nodes that share one account's EC2 limits, in virtual time.
//!
//! Our nodes are the real [`node::Node`]; disk and kernel obey at once, EC2 is played: token buckets as EC2 documents
//! them, calls that take their time, the SDK's and the daemon's retries. Beside them stands a model of the Go version.
//! Every policy meets the same history: the same seed is the same run.
//!
//! | file | what is in it |
//! |---|---|
//! | `account.rs` | the account: token buckets, latencies, the record of calls |
//! | `instance.rs` | one instance as EC2 knows it |
//! | `errand.rs` | runs of calls with their retries |
//! | `daemon.rs` | what the daemons have in common |
//! | `ours.rs` | our daemon: the real `Node` |
//! | `original/` | the Go version as a model: formulas, store, loop |
//! | `policy.rs` | the policies that are compared |
//! | `world.rs` | the nodes, the pods, the kubelet, and time |
//! | `scenario.rs` | what the fleet goes through |
//! | `figures.rs`, `show.rs`, `plot.rs` | what it came to, in numbers, tables and pictures |
//! | `budget.rs`, `churn.rs` | what one node may cost in EC2 calls |

mod account;
pub mod budget;
mod churn;
mod daemon;
mod errand;
mod figures;
mod instance;
mod original;
mod ours;
mod plot;
mod policy;
mod scenario;
mod show;
#[cfg(test)]
mod tests;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use types::{InstanceLimits, InstanceTable};

pub use account::{Rate, Rates};
pub use figures::Figures;
pub use plot::plot;
pub use policy::Policy;
pub use scenario::{APPLICATION_PODS, Phase, SYSTEM_PODS};
pub use show::{markdown, table};

use world::{Setting, World};

use crate::UnknownType;

/// The kubelet's pause after a sandbox that could not be made; up to half of it is added at random (`backOffPeriod` and
/// `workerBackOffPeriodJitterFactor` in its `pod_workers.go`).
pub const KUBELET_RETRY: Duration = Duration::from_secs(10);

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Sizes of the fleet.
    pub nodes: Vec<u32>,
    /// What everything that is left to chance comes from.
    pub seed: u64,
    /// EC2's limits.
    pub rates: Rates,
    /// The instances.
    pub instance_type: String,
    /// The kubelet's pause before it tries a pod again.
    pub retry: Duration,
    /// Pods of applications that follow on each node, after the [`SYSTEM_PODS`] that it starts with.
    pub applications: u32,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            nodes: vec![1000, 5000],
            seed: 1,
            rates: Rates::default(),
            instance_type: budget::INSTANCE_TYPE.to_owned(),
            retry: KUBELET_RETRY,
            applications: APPLICATION_PODS,
        }
    }
}

/// The history of one fleet under one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The policy.
    pub policy: Policy,
    /// Nodes in the fleet.
    pub nodes: u32,
    /// What each phase came to.
    pub phases: Vec<(Phase, Figures)>,
}

/// Tells the history of every fleet under every policy, on all cores; calls `say` with how far it is.
///
/// # Errors
/// An instance type that the table lacks.
pub fn run(wish: &Wish, say: &(dyn Fn(&str) + Sync)) -> Result<Vec<Run>, UnknownType> {
    let limits = limits_of(&wish.instance_type)?;
    // The longest first, so that no core is idle at the end.
    let mut sizes = wish.nodes.clone();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let jobs: Vec<(u32, Policy)> =
        sizes.iter().flat_map(|nodes| Policy::ALL.map(|policy| (*nodes, policy))).collect();
    let next = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::new());
    let work = || {
        while let Some((nodes, policy)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let run = tell(wish, &limits, *nodes, *policy);
            say(&format!("{nodes} nodes, {}: {:.0} s", policy.name, started.elapsed().as_secs_f64()));
            runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(run);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut runs = runs.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |policy: &Policy| Policy::ALL.iter().position(|other| other == policy);
    runs.sort_by_key(|run: &Run| (run.nodes, place(&run.policy)));
    Ok(runs)
}

/// Tells one history.
fn tell(wish: &Wish, limits: &InstanceLimits, nodes: u32, policy: Policy) -> Run {
    let Wish { rates, retry, seed, applications, .. } = *wish;
    let setting = Setting { policy, limits: limits.clone(), rates, retry, seed };
    let spells = scenario::tell(setting, nodes, applications);
    let phases = spells.into_iter().map(|(phase, spell)| (phase, Figures::of(spell))).collect();
    Run { policy, nodes, phases }
}

/// A world for one node, with all the calls that it may want.
fn one_node(policy: Policy, limits: &InstanceLimits, seed: u64) -> World {
    World::new(Setting {
        policy,
        limits: limits.clone(),
        rates: Rates::default(),
        retry: KUBELET_RETRY,
        seed,
    })
}

fn limits_of(instance_type: &str) -> Result<InstanceLimits, UnknownType> {
    let limits = InstanceTable::builtin().get(instance_type).cloned();
    limits.ok_or_else(|| UnknownType(instance_type.to_owned()))
}

/// The result in the form of `results.json`.
#[must_use]
pub fn as_json(wish: &Wish, runs: &[Run], budgets: &[budget::Budget]) -> Value {
    let rate = |rate: Rate| json!({"burst": rate.burst, "per_second": rate.per_second});
    let runs: Vec<Value> = runs.iter().map(Run::json).collect();
    json!({
        "seed": wish.seed,
        "instance_type": wish.instance_type,
        "kubelet_retry_ms": u64::try_from(wish.retry.as_millis()).unwrap_or(u64::MAX),
        "pods_per_node": SYSTEM_PODS + wish.applications,
        "describe": rate(wish.rates.describe),
        "change": rate(wish.rates.change),
        "one_bucket_for_each_kind": wish.rates.pooled,
        "runs": runs,
        "budget_of_one_node": budgets.iter().map(budget::Budget::json).collect::<Vec<_>>(),
    })
}

impl Run {
    fn json(&self) -> Value {
        let phases: serde_json::Map<String, Value> =
            self.phases.iter().map(|(phase, figures)| (phase.name().to_owned(), figures.json())).collect();
        json!({"policy": self.policy.name, "nodes": self.nodes, "phases": phases})
    }

    /// The figures of a phase.
    #[must_use]
    pub fn figures(&self, phase: Phase) -> Option<&Figures> {
        self.phases.iter().find(|(of, _)| *of == phase).map(|(_, figures)| figures)
    }
}
