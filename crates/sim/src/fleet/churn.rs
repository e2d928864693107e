//! Pods that come and go on one node, and what they cost in EC2 calls.

use std::time::Duration;

use super::account::Api;
use super::budget::{RESIDENTS, SETTLING};
use super::world::World;
use crate::rng::Rng;

/// The rest that belongs to a trace.
const RESTING: Duration = Duration::from_secs(2 * 3600);
/// How long it takes at most until what is to spare has gone back: two of our long spells, and a call each half minute.
const LATER: Duration = Duration::from_secs(9 * 3600);

/// A history of one node: its pods are replaced one by one, and now and then more come for a while.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    /// Pods that run all the time.
    residents: u32,
    /// So many times one of them is replaced.
    steps: u32,
    every: Duration,
    bursts: Vec<Burst>,
    /// Which one is replaced; `None`: the oldest.
    chance: Option<Rng>,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    pods: u32,
    /// The first step with them, and the first without.
    steps: (u32, u32),
}

/// What a trace came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Pods that were wanted.
    pub(crate) pods: u64,
    /// ADDs that failed.
    pub(crate) failed: u64,
    /// Calls that change something.
    pub(crate) changes: u64,
    /// Calls that look.
    pub(crate) describes: u64,
    /// Changes after that, until nothing more is given back.
    pub(crate) changes_later: u64,
    /// Addresses held then, beside the node's own.
    pub(crate) held_at_rest: u64,
}

impl Default for Trace {
    /// The one of the tables: an hour of a pod each ten seconds, in its middle fifteen more for a quarter of it.
    fn default() -> Self {
        let burst = Burst { pods: 15, steps: (120, 210) };
        let every = Duration::from_secs(10);
        Self { residents: RESIDENTS, steps: 360, every, bursts: vec![burst], chance: None }
    }
}

impl Trace {
    /// What the trace and the rest after it cost.
    pub(crate) fn tell(mut self, mut world: World) -> Cost {
        let node = world.boot(Duration::ZERO);
        let want = |world: &mut World, pods: u32| -> Vec<u32> {
            (0..pods).map(|_| world.want(node, Duration::ZERO)).collect()
        };
        let drop_all = |world: &mut World, pods: Vec<u32>| {
            pods.into_iter().for_each(|pod| world.drop_pod(pod, Duration::ZERO));
        };
        let mut residents = want(&mut world, self.residents);
        let mut more: Vec<(u32, Vec<u32>)> = Vec::new();
        world.pass(SETTLING);
        world.end_spell();
        for step in 0..self.steps {
            let begins = self.bursts.iter().filter(|burst| burst.steps.0 == step);
            more.extend(begins.map(|burst| (burst.steps.1, want(&mut world, burst.pods))));
            for (_, pods) in more.extract_if(.., |(ends, _)| *ends == step) {
                drop_all(&mut world, pods);
            }
            let replaced = residents.remove(self.which());
            drop_all(&mut world, vec![replaced]);
            residents.extend(want(&mut world, 1));
            world.pass(self.every);
        }
        for (_, pods) in more {
            drop_all(&mut world, pods);
        }
        world.pass(RESTING);
        let spell = world.end_spell();
        world.pass(LATER);
        let later = world.end_spell();
        Cost {
            pods: spell.wanted,
            failed: spell.failed,
            changes: spell.calls.done(Api::changes),
            describes: spell.calls.done(|api| !api.changes()),
            changes_later: later.calls.done(Api::changes),
            held_at_rest: later.held,
        }
    }

    /// The resident that is replaced next.
    fn which(&mut self) -> usize {
        let which = self.chance.as_mut().map_or(0, |chance| chance.below(self.residents.into()));
        usize::try_from(which).unwrap_or(0)
    }
}

#[cfg(test)]
impl Trace {
    /// An hour of any kind: 5 to 30 pods that live between half a minute and half an hour, and up to three times 3 to 20
    /// more for three to twelve minutes.
    pub(crate) fn any(seed: u64) -> Self {
        let mut chance = Rng::new(seed ^ 0x0c45_77a1);
        let residents = 5 + chance.small(25);
        let seconds = 5 + chance.small(55);
        let steps = 3600 / seconds;
        let third = steps / 3;
        let bursts = (0..=chance.small(2)).map(|nth| {
            let begins = nth * third + chance.small(third / 3);
            let lasts = third / 6 + chance.small(third / 2);
            Burst { pods: 3 + chance.small(17), steps: (begins, begins + lasts) }
        });
        let bursts = bursts.collect();
        let every = Duration::from_secs(seconds.into());
        Self { residents, steps, every, bursts, chance: Some(chance) }
    }
}
