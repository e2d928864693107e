//! Histories that others have published, by name; each told many times with other timings.

use std::time::Duration;

use super::script::{Lags, PODS, Script, Setup, Step};
use super::world::{Broken, World};
use crate::rng::Rng;

/// A history by name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    tell: fn(&mut Rng, &mut Setup) -> Vec<(Duration, Step)>,
}

/// All of them.
pub const NAMED: [Named; 3] = [
    Named { name: "a DEL overtakes its ADD", tell: overtaking },
    Named { name: "one of two prefixes is forgotten", tell: forgotten },
    Named { name: "a late DEL meets an address that is another pod's", tell: late },
];

const SECOND: Duration = Duration::from_secs(1);

/// The runtime gives up on an ADD and deletes the sandbox, and its DEL arrives first.
fn overtaking(rng: &mut Rng, setup: &mut Setup) -> Vec<(Duration, Step)> {
    setup.disk = rng.millis(0, 2_000);
    let mut steps = Vec::new();
    for _ in 0..6 {
        steps.extend([
            (rng.millis(0, 500), Step::Start(1)),
            (rng.millis(0, 60), Step::Stop(1)),
            (rng.millis(0, 60), Step::Start(1)),
            (rng.millis(0, 60), Step::HangUp(1)),
        ]);
    }
    steps.push((rng.millis(0, 100), crash(rng)));
    steps
}

/// A second prefix comes while descriptions lag, the daemon dies, and for a while only instance metadata answers, which does
/// not know of it yet. Pods of both go on.
fn forgotten(rng: &mut Rng, setup: &mut Setup) -> Vec<(Duration, Step)> {
    setup.instance_type = "t3.small";
    setup.prefixes = true;
    setup.metadata = true;
    setup.lags = Lags::all(rng.millis(3_000, 9_000));
    vec![
        (SECOND * 5, Step::Flood(20)),
        (rng.millis(100, 3_000), crash(rng)),
        (rng.millis(0, 500), Step::Dark(rng.millis(1_000, 30_000))),
        (rng.millis(0, 5_000), Step::Ebb(4)),
        (rng.millis(0, 5_000), Step::Flood(PODS - 1)),
        (rng.millis(0, 60_000), crash(rng)),
    ]
}

/// A pod dies unnoticed, the daemon starts anew and gives its address to another one; then the first one's DEL comes.
fn late(rng: &mut Rng, setup: &mut Setup) -> Vec<(Duration, Step)> {
    setup.cooldown = rng.millis(0, 3_000);
    vec![
        (SECOND, Step::Flood(4)),
        (SECOND * 10, Step::Vanish(1)),
        (rng.millis(0, 100), crash(rng)),
        (rng.millis(3_000, 30_000), Step::Flood(20)),
        (rng.millis(0, 10_000), Step::Stop(1)),
        (rng.millis(0, 10_000), Step::Stop(1)),
        (rng.millis(0, 100), crash(rng)),
    ]
}

fn crash(rng: &mut Rng) -> Step {
    Step::Crash { down: rng.millis(0, 3_000), jump: 0, amnesia: rng.percent(20) }
}

impl Named {
    /// Tells it with the timings of a seed.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn tell(&self, seed: u64) -> Result<(), Broken> {
        let mut script = Script::of(seed);
        let mut rng = Rng::new(seed);
        script.steps = (self.tell)(&mut rng, &mut script.setup);
        World::new(script, seed, None, false)?.run().map(drop)
    }
}
