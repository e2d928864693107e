//! The Go version as a model: its formulas, its store, its loop and its EC2 calls, read from the source of v1.23.1.
//!
//! - One goroutine does everything: a step every five seconds, and while it waits for EC2 no other step.
//! - A step asks for addresses on one ENI, or for one ENI; or gives back; then it may free one ENI.
//! - ADD never waits: an empty store fails the sandbox, and the kubelet tries again.
//! - A throttled call is tried three times by the SDK. At start, a step that fails in the end fails the process.
//!
//! Where the source leaves room, the model is kind: instance metadata, the API server and the process's start take no time,
//! metadata never lags, and the reconciler finds nothing to repair.

mod formulas;
mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use pool::{Given, Wanted};
use types::{DeviceIndex, EniId, InstanceLimits, Moment};

pub(crate) use formulas::Rules;

use super::daemon::{Happening, Sandbox, WIRING, Want};
use super::errand::{Deed, Errand, Purpose, Step, Tries};
use super::instance::{Eni, Instance, State};
use crate::rng::Rng;
use store::Store;

/// The Go SDK's standard retryer: three attempts, the first pause up to two seconds.
const SDK: Tries = Tries::sdk(3, Duration::from_secs(2));
/// The loop: half of it before the pool is looked at, half before the reconciler.
const HALF_STEP: Duration = Duration::from_millis(2_500);
const STEP: Duration = Duration::from_secs(5);
/// Addresses are given back at most this often.
const DECREASE_EVERY: Duration = Duration::from_secs(30);
/// The search for forgotten ENIs: every hour, after a random sleep of up to 299 seconds.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
const SWEEP_SLEEP_MS: u64 = 299_000;
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// How the kubelet restarts a container: at once, then after a pause that doubles.
const RESTART: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// `WARM_IP_TARGET`, `MINIMUM_IP_TARGET`, `WARM_ENI_TARGET` and `WARM_PREFIX_TARGET`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Warm {
    pub(crate) ip: u32,
    pub(crate) minimum: u32,
    pub(crate) enis: u32,
    pub(crate) prefixes: u32,
}

/// The daemon on one node.
#[derive(Debug)]
pub(crate) struct Original {
    rules: Rules,
    store: Store,
    rng: Rng,
    ready: bool,
    restarts: u32,
    sweeps: bool,
    /// The next step of the loop; `None` while it waits for EC2 or has not begun.
    step_at: Option<Moment>,
    last_decrease: Moment,
}

impl Original {
    pub(crate) fn new(warm: Warm, prefixes: bool, limits: &InstanceLimits, seed: u64) -> Self {
        let slots = u32::from(limits.slots_per_eni());
        let max_enis = u32::from(limits.max_enis);
        let rules = Rules {
            warm_ip: warm.ip,
            minimum_ip: warm.minimum,
            warm_eni: warm.enis,
            warm_prefix: warm.prefixes,
            prefixes,
            slots,
            max_enis,
            // What EKS tells the kubelet.
            max_pods: if prefixes { 110 } else { max_enis * slots + 2 },
        };
        Self {
            rules,
            store: Store::default(),
            rng: Rng::new(seed),
            ready: false,
            restarts: 0,
            sweeps: false,
            step_at: None,
            last_decrease: Moment(0),
        }
    }

    pub(crate) fn wakeup(&self) -> Moment {
        self.step_at.unwrap_or(Moment(u64::MAX))
    }

    pub(crate) fn handle(&mut self, happening: Happening, instance: &Instance, now: Moment) -> Vec<Want> {
        match happening {
            Happening::Start => self.start(instance),
            Happening::Add(sandbox) => vec![self.add(sandbox, now)],
            Happening::Del(sandbox) => {
                self.store.unassign(sandbox, now);
                Vec::new()
            }
            Happening::Done(errand) => self.done(*errand, instance, now),
            Happening::Tick => self.step(now),
            Happening::Sweep => self.sweep(),
            Happening::Wired(_) | Happening::Glanced => Vec::new(),
        }
    }

    fn add(&mut self, sandbox: Sandbox, now: Moment) -> Want {
        let good = self.store.assign(sandbox, &mut self.rng, now);
        Want::Answer(sandbox, good, WIRING)
    }
}

/// Its start.
impl Original {
    /// All that init calls EC2 for before it grows the pool.
    fn start(&mut self, instance: &Instance) -> Vec<Want> {
        let look = SDK.rounds(12, Duration::from_millis(50));
        let mut steps = vec![Step::must(Deed::Look, look)];
        for eni in instance.enis.iter().filter(|eni| matches!(eni.state, State::Attached(..))) {
            steps.push(Step::quiet(Deed::About(eni.id.clone())));
            if !eni.tagged {
                let tag = SDK.growing_rounds(5, Duration::from_millis(500));
                steps.push(Step::must(Deed::Tag, tag));
            }
            steps.push(Step::must(Deed::DescribeSubnets, SDK.rounds(6, Duration::from_secs(10))));
            steps.push(Step::may(Deed::SetGroups, SDK));
        }
        let mut wants = vec![Want::Run(Errand::new(Purpose::Init, None, steps))];
        if !self.sweeps {
            self.sweeps = true;
            wants.push(self.sweep_later(Duration::ZERO));
        }
        wants
    }

    fn crash(&mut self) -> Vec<Want> {
        let pause = match self.restarts {
            0 => Duration::ZERO,
            n => RESTART.0.saturating_mul(1 << (n - 1).min(16)).min(RESTART.1),
        };
        self.restarts += 1;
        vec![Want::Hear(pause, Happening::Start)]
    }

    fn initialised(&mut self, instance: &Instance, now: Moment) -> Vec<Want> {
        self.store = Store::default();
        for eni in instance.enis.iter().filter(|eni| matches!(eni.state, State::Attached(..))) {
            self.store.add_eni(eni.id.clone(), eni.given.clone(), now);
        }
        match self.increase() {
            Some(errand) => vec![Want::Run(errand)],
            None => self.serve(now),
        }
    }

    fn serve(&mut self, now: Moment) -> Vec<Want> {
        self.ready = true;
        self.step_at = Some(now.plus(HALF_STEP));
        vec![Want::Ready]
    }

    fn sweep_later(&mut self, after: Duration) -> Want {
        Want::Hear(after + self.rng.millis(0, SWEEP_SLEEP_MS), Happening::Sweep)
    }

    fn sweep(&mut self) -> Vec<Want> {
        let look = Errand::new(Purpose::Sweep, None, vec![Step::may(Deed::Look, SDK)]);
        vec![Want::Run(look), self.sweep_later(SWEEP_EVERY)]
    }
}

/// Its loop.
impl Original {
    fn step(&mut self, now: Moment) -> Vec<Want> {
        if self.step_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.step_at = None;
        match self.adjust(now) {
            Some(errand) => vec![Want::Run(errand)],
            None => self.free(now),
        }
    }

    /// More addresses or fewer.
    fn adjust(&mut self, now: Moment) -> Option<Errand> {
        if self.rules.too_low(self.store.stats()) {
            return self.increase();
        }
        let over = self.rules.too_many(self.store.stats());
        if over == 0 || now.since(self.last_decrease) <= DECREASE_EVERY {
            return None;
        }
        self.last_decrease = now;
        let steps =
            self.store.take_idle(over).into_iter().flat_map(|(eni, given)| {
                [Step::quiet(Deed::About(eni)), Step::may(Deed::Unassign(given), SDK)]
            });
        Some(Errand::new(Purpose::GiveBack, None, steps.collect()))
    }

    fn increase(&mut self) -> Option<Errand> {
        let stats = self.store.stats();
        if !self.rules.too_low(stats) {
            return None;
        }
        if let Some((eni, has)) = self.store.with_room(&self.rules, &mut self.rng) {
            let wanted = self.wanted(self.rules.cidrs_for(stats, has));
            return Some(fill(eni, wanted, true));
        }
        let wanted = self.wanted(self.rules.cidrs_for(stats, 0));
        self.store.can_have_more_enis(&self.rules).then(|| another(wanted))
    }

    const fn wanted(&self, cidrs: u32) -> Wanted {
        if self.rules.prefixes { Wanted::Prefixes(cidrs) } else { Wanted::Addresses(cidrs) }
    }

    /// The second half of a step: an ENI that can go; then the loop rests.
    fn free(&mut self, now: Moment) -> Vec<Want> {
        if let Some(eni) = self.store.take_eni(&self.rules, now) {
            return vec![Want::Run(Errand::new(Purpose::Delete, Some(eni), free_eni()))];
        }
        self.step_at = Some(now.plus(STEP));
        Vec::new()
    }

    fn done(&mut self, errand: Errand, instance: &Instance, now: Moment) -> Vec<Want> {
        let Errand { purpose, eni, given, refused, found, .. } = errand;
        match (purpose, refused) {
            (Purpose::Look(_) | Purpose::Act(..) | Purpose::Tidy, _) => Vec::new(),
            (Purpose::Sweep, _) => delete_forgotten(found, now),
            (Purpose::Init, None) => self.initialised(instance, now),
            (Purpose::Fill(true), Some(_)) => {
                let again = eni.map(|eni| Want::Run(fill(eni, self.wanted(1), false)));
                again.into_iter().collect()
            }
            // Errors of a step fail the process while it starts, and are logged later.
            (Purpose::Init, Some(_)) => self.crash(),
            (Purpose::Fill(_), Some(_)) if !self.ready => self.crash(),
            (Purpose::Fill(_), refused) => self.gained(eni, given, refused.is_none(), now),
            (Purpose::Another, refused) => self.another_gained(eni, given, refused.is_none(), now),
            (Purpose::GiveBack, _) => self.free(now),
            (Purpose::Delete, _) => {
                self.step_at = Some(now.plus(STEP));
                Vec::new()
            }
        }
    }

    fn gained(&mut self, eni: Option<EniId>, given: Given, good: bool, now: Moment) -> Vec<Want> {
        if let Some(eni) = eni.filter(|_| good) {
            self.store.add(&eni, given);
        }
        self.go_on(now)
    }

    fn another_gained(&mut self, eni: Option<EniId>, given: Given, good: bool, now: Moment) -> Vec<Want> {
        if let Some(eni) = eni.filter(|_| good) {
            self.store.add_eni(eni, given, now);
        }
        self.go_on(now)
    }

    fn go_on(&mut self, now: Moment) -> Vec<Want> {
        if self.ready { self.free(now) } else { self.serve(now) }
    }
}

/// ENIs that are attached to nothing and not just made.
fn delete_forgotten(found: Vec<Eni>, now: Moment) -> Vec<Want> {
    let forgotten = found
        .into_iter()
        .filter(|eni| eni.state == State::Available && now.since(eni.made) >= FORGOTTEN_AFTER);
    let steps: Vec<Step> =
        forgotten.flat_map(|eni| [Step::quiet(Deed::About(eni.id)), Step::may(Deed::Delete, SDK)]).collect();
    if steps.is_empty() { Vec::new() } else { vec![Want::Run(Errand::new(Purpose::Sweep, None, steps))] }
}

fn fill(eni: EniId, wanted: Wanted, first: bool) -> Errand {
    Errand::new(Purpose::Fill(first), Some(eni), vec![Step::must(Deed::Assign(wanted), SDK)])
}

/// A new ENI: the subnet, the ENI, a free device index, the attachment, its end; then its subnet once more.
fn another(wanted: Wanted) -> Errand {
    let delete = || vec![Step::must(Deed::Delete, SDK.growing_rounds(12, Duration::from_millis(500)))];
    let steps = vec![
        Step::must(Deed::DescribeSubnets, SDK),
        Step::must(Deed::Create(wanted), SDK),
        Step::or_undo(Deed::DescribeInstances, SDK, delete()),
        // The place does not matter to the model.
        Step::or_undo(Deed::Attach(DeviceIndex(1)), SDK, delete()),
        Step::or_undo(Deed::Tie, SDK, free_eni()),
        Step::quiet(Deed::AwaitLink),
        Step::may(Deed::DescribeSubnets, SDK),
    ];
    Errand::new(Purpose::Another, None, steps)
}

fn free_eni() -> Vec<Step> {
    vec![
        Step::must(Deed::Look, SDK),
        Step::must(Deed::Detach, SDK.growing_rounds(12, Duration::from_millis(200))),
        Step::quiet(Deed::Rest(Duration::from_secs(2))),
        Step::must(Deed::Delete, SDK.growing_rounds(12, Duration::from_millis(500))),
    ]
}
