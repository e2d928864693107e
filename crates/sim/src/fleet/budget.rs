//! What one node may cost in EC2 calls: idle, for its first addresses, and for each pod that comes and goes.
//!
//! The counts are of virtual time and a fixed history, so they are the same on every machine, and tests hold them.

use std::time::Duration;

use serde_json::{Value, json};
use types::InstanceLimits;

use super::account::{Api, Calls};
use super::churn::Trace;
use super::figures::ratio;
use super::policy::Policy;
use super::world::World;
use crate::UnknownType;

/// The node.
pub const INSTANCE_TYPE: &str = "m5.xlarge";
/// Pods that stay.
pub(super) const RESIDENTS: u32 = 20;
/// How long the node is left alone before it is watched: longer than until its first audit, which puts tags right.
pub(super) const SETTLING: Duration = Duration::from_secs(10 * 3600);
/// How long it is then watched while idle.
const DAY_HOURS: u64 = 24;
const DAY: Duration = Duration::from_secs(DAY_HOURS * 3600);
/// The first addresses, and the pods that come one by one until they are there.
const FIRST: u64 = 16;
const ONE_BY_ONE: Duration = Duration::from_secs(10);

/// What a policy costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Whose.
    pub policy: Policy,
    /// Calls that change something, of an idle node in a day.
    pub idle_changes: u64,
    /// Calls that look, of an idle node in a day.
    pub idle_describes: u64,
    /// Calls that change something until the node holds 16 addresses for pods, apart from those that set up ENIs.
    pub first_sixteen: u64,
    /// Calls that change something, for each pod of the churn.
    pub churn_changes: f64,
    /// Calls that look, for each pod of the churn.
    pub churn_describes: f64,
    /// ADDs of the churn that failed.
    pub churn_failed: u64,
}

/// The budget of each policy.
///
/// # Errors
/// When the table of instance types lacks ours.
pub fn of_all(seed: u64) -> Result<Vec<Budget>, UnknownType> {
    let limits = super::limits_of(INSTANCE_TYPE)?;
    Ok(Policy::ALL.into_iter().map(|policy| Budget::of(policy, seed, &limits)).collect())
}

impl Budget {
    fn of(policy: Policy, seed: u64, limits: &InstanceLimits) -> Self {
        let world = || super::one_node(policy, limits, seed);
        let idle = idle(world());
        let churn = Trace::default().tell(world());
        Self {
            policy,
            idle_changes: idle.done(Api::changes),
            idle_describes: idle.done(|api| !api.changes()),
            first_sixteen: first_sixteen(world()),
            churn_changes: ratio(churn.changes, churn.pods),
            churn_describes: ratio(churn.describes, churn.pods),
            churn_failed: churn.failed,
        }
    }
}

/// Calls of a day in which nothing is wanted.
fn idle(mut world: World) -> Calls {
    let node = world.boot(Duration::ZERO);
    for _ in 0..RESIDENTS {
        world.want(node, Duration::ZERO);
    }
    world.pass(SETTLING);
    world.end_spell();
    world.pass(DAY);
    world.end_spell().calls
}

fn first_sixteen(mut world: World) -> u64 {
    let node = world.boot(Duration::ZERO);
    for _ in 0..FIRST {
        world.pass(ONE_BY_ONE);
        if world.for_pods(node) >= FIRST {
            break;
        }
        world.want(node, Duration::ZERO);
    }
    world.calls().done(|api| api.changes() && !api.is_about_the_eni())
}

/// The table for people: idle for an hour, the first 16 addresses, and churn.
#[must_use]
pub fn table(budgets: &[Budget]) -> String {
    let line = |name: &str, cells: [String; 6]| {
        let [changes, describes, first, churn_changes, churn_describes, failed] = cells;
        format!(
            "   {name:<28}{changes:>14}{describes:>16}{first:>10}{churn_changes:>14}{churn_describes:>16}{failed:>13}\n"
        )
    };
    let headings =
        ["idle changes", "idle describes", "first 16", "changes/pod", "describes/pod", "failed ADDs"];
    let mut table = line("", headings.map(str::to_owned));
    for of in budgets {
        let cells = [
            format!("{:.2}/h", ratio(of.idle_changes, DAY_HOURS)),
            format!("{:.2}/h", ratio(of.idle_describes, DAY_HOURS)),
            of.first_sixteen.to_string(),
            format!("{:.3}", of.churn_changes),
            format!("{:.3}", of.churn_describes),
            of.churn_failed.to_string(),
        ];
        table.push_str(&line(of.policy.name, cells));
    }
    table
}

impl Budget {
    pub(crate) fn json(&self) -> Value {
        let thousandths = |number: f64| (number * 1000.0).round() / 1000.0;
        json!({
            "policy": self.policy.name,
            "idle_changes_a_day": self.idle_changes,
            "idle_describes_a_day": self.idle_describes,
            "changes_for_first_16_addresses": self.first_sixteen,
            "churn_changes_per_pod": thousandths(self.churn_changes),
            "churn_describes_per_pod": thousandths(self.churn_describes),
            "churn_failed_adds": self.churn_failed,
        })
    }
}
