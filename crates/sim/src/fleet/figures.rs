//! What a phase came to, in figures.

use serde_json::{Value, json};

use super::account::{Api, Calls};
use super::world::Spell;

/// Points of a distribution that are kept, from none to all.
const POINTS: u64 = 200;

/// The figures of one phase of one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Pods that were wanted.
    pub pods: u64,
    /// Those of them that got no address.
    pub unserved: u64,
    /// ADDs that failed.
    pub failed: u64,
    /// How long pods waited, in milliseconds: a point for each half of a hundredth of them; `None` is never.
    pub waits: Vec<Option<u64>>,
    /// Calls that EC2 performed and that change something, for each pod.
    pub changes_per_pod: f64,
    /// Calls that EC2 performed and that only look, for each pod.
    pub describes_per_pod: f64,
    /// Part of all calls that EC2 refused.
    pub throttled: f64,
    /// Addresses held, beside the nodes' own, for each pod that runs at the end.
    pub held_per_pod: f64,
    /// How long it took, in seconds.
    pub seconds: u64,
    pub(crate) calls: Calls,
}

impl Figures {
    pub(crate) fn of(mut spell: Spell) -> Self {
        spell.waits.sort_unstable();
        let served = as_u64(spell.waits.len());
        // A phase in which no pod is wanted is measured by those that run.
        let pods = if spell.wanted > 0 { spell.wanted } else { spell.running };
        let calls = spell.calls;
        let all = calls.done(|_| true) + calls.throttled();
        Self {
            pods,
            unserved: spell.wanted.saturating_sub(served),
            failed: spell.failed,
            waits: (0..=POINTS).map(|point| at(&spell.waits, spell.wanted, point)).collect(),
            changes_per_pod: ratio(calls.done(Api::changes), pods),
            describes_per_pod: ratio(calls.done(|api| !api.changes()), pods),
            throttled: ratio(calls.throttled(), all),
            held_per_pod: ratio(spell.held, spell.running),
            seconds: spell.lasted.as_secs(),
            calls,
        }
    }

    /// How long so many of a hundred pods waited at most, in milliseconds.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let point = usize::try_from(percent * POINTS / 100).ok()?;
        self.waits.get(point).copied().flatten()
    }

    pub(crate) fn json(&self) -> Value {
        let called = Api::ALL.iter().map(|api| (api, self.calls.of(*api)));
        let calls: serde_json::Map<String, Value> = called
            .filter(|(_, count)| count.done + count.throttled > 0)
            .map(|(api, count)| {
                (api.name().to_owned(), json!({"done": count.done, "throttled": count.throttled}))
            })
            .collect();
        json!({
            "pods": self.pods,
            "unserved": self.unserved,
            "failed_adds": self.failed,
            "wait_ms": {"p50": self.percentile(50), "p99": self.percentile(99), "max": self.percentile(100)},
            "changes_per_pod": thousandths(self.changes_per_pod),
            "describes_per_pod": thousandths(self.describes_per_pod),
            "throttled_share": thousandths(self.throttled),
            "held_per_pod": thousandths(self.held_per_pod),
            "seconds": self.seconds,
            "calls": calls,
        })
    }
}

/// The wait of the pod at a point of the distribution.
fn at(sorted: &[u64], wanted: u64, point: u64) -> Option<u64> {
    let rank = (wanted * point).div_ceil(POINTS).saturating_sub(1);
    sorted.get(usize::try_from(rank).ok()?).copied()
}

/// One number for each of so many; 0 of none.
pub(crate) fn ratio(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { as_f64(part) / as_f64(of) }
}

fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Exact up to 2^32, which is more than anything counted here.
pub(crate) fn as_f64(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
