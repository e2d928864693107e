//! What the fleet goes through: it boots, is deployed anew, loses and gains nodes, and rests. The same pods on the same
//! nodes at the same times for every policy.

use std::time::Duration;

use super::world::{Setting, Spell, World};
use crate::rng::Rng;

/// Pods that every node starts with, wanted as soon as it boots.
pub const SYSTEM_PODS: u32 = 5;
/// Pods of applications that follow on each node, if nothing else is asked for.
pub const APPLICATION_PODS: u32 = 15;
/// They are wanted so long after the boot.
const APPLICATIONS_AFTER: Duration = Duration::from_secs(20);
const APPLICATIONS_WITHIN_MS: u64 = 30_000;
/// All nodes boot within this time.
const BOOT_WITHIN_MS: u64 = 60_000;
/// The rolling deploy begins the replacements of all application pods within this time.
const DEPLOY_WITHIN_MS: u64 = 600_000;
/// So many of a hundred nodes are exchanged within this time.
const EXCHANGED_PERCENT: u64 = 10;
const EXCHANGE_WITHIN_MS: u64 = 600_000;
/// After each phase, so that what it has begun comes to its end.
const REST: Duration = Duration::from_secs(120);
/// The rest at the end.
const IDLE: Duration = Duration::from_secs(3600);
/// A phase ends after this time although pods wait.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// A part of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// All nodes boot within one minute, each then gets its pods.
    Boot,
    /// Every application pod is replaced: a new one, on any node, and when it has its address the old one goes.
    Deploy,
    /// A tenth of the nodes leave, and new ones boot.
    Exchange,
    /// Nothing is wanted for an hour.
    Idle,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Boot, Self::Deploy, Self::Exchange, Self::Idle];

    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Deploy => "rolling deploy",
            Self::Exchange => "node churn",
            Self::Idle => "idle hour",
        }
    }
}

/// The fleet with what is chosen for it.
struct Fleet {
    world: World,
    /// Apart from the world's own, so that it is the same for every policy.
    chance: Rng,
    applications: Vec<u32>,
    /// So many of them on each node.
    applications_each: u32,
}

/// Tells the whole history of nodes with so many pods of applications each.
pub(crate) fn tell(setting: Setting, nodes: u32, applications_each: u32) -> Vec<(Phase, Spell)> {
    let chance = Rng::new(setting.seed ^ 0x5ce0_a810);
    let mut fleet = Fleet { world: World::new(setting), chance, applications: Vec::new(), applications_each };
    Phase::ALL.into_iter().map(|phase| (phase, fleet.go_through(phase, nodes))).collect()
}

impl Fleet {
    fn go_through(&mut self, phase: Phase, nodes: u32) -> Spell {
        let begun = match phase {
            Phase::Boot => self.boot_all(nodes),
            Phase::Deploy => self.deploy(),
            Phase::Exchange => self.exchange(),
            Phase::Idle => IDLE,
        };
        self.world.pass(begun);
        if phase != Phase::Idle {
            self.world.pass_until_served(PATIENCE);
            self.world.pass(REST);
        }
        self.world.end_spell()
    }

    fn boot_all(&mut self, nodes: u32) -> Duration {
        for _ in 0..nodes {
            let after = self.chance.millis(0, BOOT_WITHIN_MS);
            self.boot(after);
        }
        Duration::from_millis(BOOT_WITHIN_MS)
    }

    fn boot(&mut self, after: Duration) {
        let host = self.world.boot(after);
        for _ in 0..SYSTEM_PODS {
            self.world.want(host, after);
        }
        for _ in 0..self.applications_each {
            let later = APPLICATIONS_AFTER + self.chance.millis(0, APPLICATIONS_WITHIN_MS);
            self.applications.push(self.world.want(host, after + later));
        }
    }

    fn deploy(&mut self) -> Duration {
        let nodes = self.world.nodes();
        for pod in std::mem::take(&mut self.applications) {
            let after = self.chance.millis(0, DEPLOY_WITHIN_MS);
            let Some(node) = self.chance.pick(&nodes) else { continue };
            self.applications.push(self.world.replace(pod, node, after));
        }
        Duration::from_millis(DEPLOY_WITHIN_MS)
    }

    fn exchange(&mut self) -> Duration {
        for node in self.world.nodes() {
            if self.chance.percent(EXCHANGED_PERCENT) {
                let after = self.chance.millis(0, EXCHANGE_WITHIN_MS);
                self.world.leave(node, after);
                let booting = self.chance.millis(0, BOOT_WITHIN_MS);
                self.boot(after + booting);
            }
        }
        Duration::from_millis(EXCHANGE_WITHIN_MS + BOOT_WITHIN_MS)
    }
}
