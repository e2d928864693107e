//! Random histories, against a pool so simple that it is right, and against the EC2 they happen in.
//!
//! EC2 obeys, but hostilely: calls end late, in any order, and some without telling how; pictures are taken and arrive
//! at any time; a call's effect shows before or after anything else that happens meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use types::{Moment, NetworkCard};

use super::kit::{COOLDOWN, Ec2, at, eni, limits, owner, pool, sandbox, settle, subnet, warm_enis, warm_ips};
use crate::{Action, ActionId, EniSeen, Limits, Mode, Outcome, PICTURE_LAG_MAX, Pool, Role, Targets};

/// Sandboxes that come and go.
const SANDBOXES: u16 = 12;

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Reserve(u16),
    ReserveEarly(u16),
    Commit(u16),
    Cancel(u16),
    Release(u16),
    Tick(u64),
    /// The plan is begun with so many ADDs waiting; EC2 does it at once or only when it ends.
    Plan {
        waiting: u32,
        at_once: bool,
    },
    /// The call begun longest ago, or last, ends.
    End {
        last: bool,
        ending: Ending,
    },
    /// A picture is asked for.
    Shoot,
    /// The picture asked for longest ago arrives.
    Deliver,
    /// The daemon dies and starts again.
    Restart,
    /// It is told to ask for addresses in this form.
    Mode(Mode),
    /// The subnet has so many prefixes left.
    Prefixes(u32),
    /// From now on the primary ENI gets no more pods.
    SparePrimary,
}

/// How a call ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Done,
    Failed,
    Unclear { done: bool },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let ending = prop_oneof![
        4 => Just(Ending::Done),
        1 => Just(Ending::Failed),
        1 => any::<bool>().prop_map(|done| Ending::Unclear { done }),
    ];
    let n = || 0..SANDBOXES;
    prop_oneof![
        8 => n().prop_map(Step::Reserve),
        1 => n().prop_map(Step::ReserveEarly),
        4 => n().prop_map(Step::Commit),
        2 => n().prop_map(Step::Cancel),
        4 => n().prop_map(Step::Release),
        4 => prop_oneof![0..5_u64, 20..70_u64].prop_map(Step::Tick),
        5 => (0..4_u32, any::<bool>()).prop_map(|(waiting, at_once)| Step::Plan { waiting, at_once }),
        5 => (any::<bool>(), ending).prop_map(|(last, ending)| Step::End { last, ending }),
        2 => Just(Step::Shoot),
        2 => Just(Step::Deliver),
        1 => Just(Step::Restart),
        1 => prop_oneof![Just(Mode::Addresses), Just(Mode::Prefixes)].prop_map(Step::Mode),
        1 => (0..4_u32).prop_map(Step::Prefixes),
        1 => Just(Step::SparePrimary),
    ]
}

pub(super) fn targets() -> impl Strategy<Value = Targets> {
    let max_pods = proptest::option::of(1..20_u32);
    let plain = prop_oneof![
        (0..3_u32).prop_map(warm_enis),
        (0..6_u32, 0..8_u32).prop_map(|(warm, minimum)| warm_ips(warm, minimum)),
    ];
    (plain, max_pods).prop_map(|(targets, max_pods)| Targets { max_pods, ..targets })
}

pub(super) fn sizes() -> impl Strategy<Value = Limits> {
    (2..5_u8, 1..6_u8).prop_map(|(enis, slots)| limits(enis, slots))
}

/// What a sandbox has, in the simple pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Has {
    address: Ipv4Addr,
    committed: bool,
    /// Until when the address would have cooled.
    early: Option<Moment>,
}

/// A call that has begun.
#[derive(Debug, Clone)]
struct Begun {
    id: ActionId,
    action: Action,
    /// EC2's answer, if it has acted already.
    outcome: Option<Outcome>,
}

/// The pool, the simple pool, and the EC2 they live in.
#[derive(Debug)]
pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) ec2: Ec2,
    pub(super) targets: Targets,
    pub(super) limits: Limits,
    pub(super) mode: Mode,
    pub(super) spares_primary: bool,
    pub(super) now: Moment,
    has: BTreeMap<u16, Has>,
    cooling: BTreeMap<Ipv4Addr, Moment>,
    early: u64,
    begun: VecDeque<Begun>,
    pictures: VecDeque<(Moment, Vec<EniSeen>)>,
}

impl World {
    pub(super) fn new(targets: Targets, limits: Limits) -> Self {
        let enis = vec![eni(0, Role::Primary, 1), eni(1, Role::Trunk, 0)];
        Self {
            pool: pool(&enis),
            ec2: Ec2::new(enis, limits),
            targets,
            limits,
            mode: Mode::default(),
            spares_primary: false,
            now: at(0),
            has: BTreeMap::new(),
            cooling: BTreeMap::new(),
            early: 0,
            begun: VecDeque::new(),
            pictures: VecDeque::new(),
        }
    }

    pub(super) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            self.compare();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Reserve(n) => self.reserve(*n, false),
            Step::ReserveEarly(n) => self.reserve(*n, true),
            Step::Commit(n) => self.commit(*n),
            Step::Cancel(n) => self.cancel(*n),
            Step::Release(n) => self.release(*n),
            Step::Tick(seconds) => self.now = self.now.plus(Duration::from_secs(*seconds)),
            Step::Plan { waiting, at_once } => self.plan(*waiting, *at_once),
            Step::End { last, ending } => {
                let call = if *last { self.begun.pop_back() } else { self.begun.pop_front() };
                call.into_iter().for_each(|call| self.end(call, *ending));
            }
            Step::Shoot => self.pictures.push_back((self.now, self.ec2.picture())),
            Step::Deliver => {
                if let Some((as_of, picture)) = self.pictures.pop_front() {
                    self.pool.observe(&picture, as_of, self.now);
                }
            }
            Step::Restart => self.restart(),
            Step::Mode(mode) => {
                self.mode = *mode;
                self.pool.set_mode(*mode);
            }
            Step::Prefixes(left) => self.ec2.prefixes_left = *left,
            Step::SparePrimary => {
                self.spares_primary = true;
                self.pool.spare_primary();
            }
        }
    }

    fn reserve(&mut self, n: u16, early: bool) {
        let free = self.free();
        let cools: BTreeSet<(Moment, Ipv4Addr)> =
            self.cooling().into_iter().map(|(a, until)| (until, a)).collect();
        let now = self.now;
        let got =
            if early { self.pool.reserve_early(owner(n), now) } else { self.pool.reserve(owner(n), now) };
        let got = got.ok().map(|grant| grant.address);
        if let Some(has) = self.has.get(&n) {
            assert_eq!(got, Some(has.address), "a sandbox that has an address gets it again");
            return;
        }
        let mut until = None;
        match got {
            Some(address) if free.contains(&address) => {}
            Some(address) => {
                assert!(early && free.is_empty(), "{address} is not free");
                assert_eq!(
                    cools.first().map(|(until, _)| *until),
                    self.cooling.get(&address).copied(),
                    "the longest"
                );
                until = self.cooling.get(&address).copied();
                self.early += 1;
            }
            None => {
                assert!(free.is_empty() && (!early || cools.is_empty()), "{free:?} are free");
                return;
            }
        }
        self.has.extend(got.map(|address| (n, Has { address, committed: false, early: until })));
    }

    fn commit(&mut self, n: u16) {
        self.pool.commit(&sandbox(n));
        if let Some(has) = self.has.get_mut(&n) {
            has.committed = true;
        }
    }

    fn cancel(&mut self, n: u16) {
        self.pool.cancel(&sandbox(n));
        if self.has.get(&n).is_some_and(|has| !has.committed) {
            self.has.remove(&n);
        }
    }

    fn release(&mut self, n: u16) {
        let released = self.pool.release(&sandbox(n), self.now).map(|(_, grant)| grant.address);
        let has = self.has.remove(&n);
        assert_eq!(released, has.map(|has| has.address));
        self.cooling.extend(has.map(|has| (has.address, self.now.plus(COOLDOWN))));
    }

    fn plan(&mut self, waiting: u32, at_once: bool) {
        self.pool.watch(NetworkCard(0), waiting, self.now);
        let plan = self.pool.plan(&self.targets, &self.limits, waiting, self.now);
        for planned in plan.actions {
            let id = self.pool.begin(&planned.action);
            let outcome = at_once.then(|| self.ec2.act(&planned.action));
            self.begun.push_back(Begun { id, action: planned.action, outcome });
        }
    }

    fn end(&mut self, call: Begun, ending: Ending) {
        let outcome = match (ending, call.outcome) {
            (Ending::Done, outcome) => outcome.unwrap_or_else(|| self.ec2.act(&call.action)),
            (Ending::Failed, None) => Outcome::Failed,
            (Ending::Unclear { done: true }, None) => {
                self.ec2.act(&call.action);
                Outcome::Unclear
            }
            // What EC2 has done it does not call failed; its answer may be lost all the same.
            (Ending::Failed | Ending::Unclear { .. }, Some(Outcome::Scarce)) => Outcome::Scarce,
            (Ending::Failed | Ending::Unclear { .. }, Some(_)) | (Ending::Unclear { done: false }, None) => {
                Outcome::Unclear
            }
        };
        self.pool.finish(call.id, outcome, self.now);
    }

    /// Calls that EC2 has not acted on are lost; nothing is promised before a new picture is there.
    fn restart(&mut self) {
        let text = serde_json::to_string(&self.pool.snapshot()).unwrap();
        self.pool = Pool::restore(serde_json::from_str(&text).unwrap(), COOLDOWN, self.now);
        self.pool.set_subnets(vec![subnet()]);
        self.pool.set_mode(self.mode);
        if self.spares_primary {
            self.pool.spare_primary();
        }
        self.has.values_mut().for_each(|has| has.committed = true);
        self.begun.clear();
        self.pictures.clear();
        self.early = 0;
        self.has.values_mut().for_each(|has| has.early = None);
        self.pool.observe(&self.ec2.picture(), self.now, self.now);
    }

    /// Addresses that pods may get or have.
    fn universe(&self) -> BTreeSet<Ipv4Addr> {
        let enis = self.pool.enis();
        let leaving = |eni: &EniSeen| {
            self.begun.iter().any(|call| call.action == Action::DeleteEni { eni: eni.id.clone() })
        };
        let spared = |eni: &EniSeen| self.spares_primary && eni.role == Role::Primary;
        enis.into_iter()
            .filter(|eni| eni.role.is_for_pods() && !leaving(eni) && !spared(eni))
            .flat_map(|eni| eni.given().all().collect::<Vec<_>>())
            .collect()
    }

    fn idle(&self) -> BTreeSet<Ipv4Addr> {
        let held: BTreeSet<Ipv4Addr> = self.has.values().map(|has| has.address).collect();
        self.universe().difference(&held).copied().collect()
    }

    fn cooling(&self) -> BTreeMap<Ipv4Addr, Moment> {
        let idle = self.idle();
        let cools = |(address, until): (&Ipv4Addr, &Moment)| *until > self.now && idle.contains(address);
        self.cooling.iter().filter(|entry| cools(*entry)).map(|(a, until)| (*a, *until)).collect()
    }

    fn free(&self) -> BTreeSet<Ipv4Addr> {
        let cooling = self.cooling();
        self.idle().into_iter().filter(|address| !cooling.contains_key(address)).collect()
    }

    fn compare(&self) {
        assert_eq!(self.pool.check(), Ok(()));
        let counts = self.pool.counts(self.now);
        assert_eq!(usize::try_from(counts.free).unwrap(), self.free().len(), "free");
        assert_eq!(usize::try_from(counts.cooling).unwrap(), self.cooling().len(), "cooling");
        let committed = self.has.values().filter(|has| has.committed).count();
        assert_eq!(usize::try_from(counts.assigned).unwrap(), committed, "assigned");
        assert_eq!(usize::try_from(counts.reserved).unwrap(), self.has.len() - committed, "reserved");
        assert_eq!(self.pool.reused_early(), self.early, "early");
        let owned: BTreeMap<_, _> = self.pool.owners().map(|(o, g)| (o.sandbox.clone(), g.address)).collect();
        let has: BTreeMap<_, _> = self.has.iter().map(|(n, has)| (sandbox(*n), has.address)).collect();
        assert_eq!(owned, has, "owners");
        let real: BTreeSet<Ipv4Addr> =
            self.ec2.enis.values().flat_map(|eni| eni.given().all().collect::<Vec<_>>()).collect();
        let ours: BTreeSet<Ipv4Addr> = has.values().copied().chain(self.free()).collect();
        assert!(ours.is_subset(&real), "EC2 has {real:?}, pods have or get {ours:?}");
    }

    /// Ends what is under way and looks: from here on everything is known.
    pub(super) fn calm(&mut self) {
        while let Some(call) = self.begun.pop_front() {
            self.end(call, Ending::Done);
        }
        self.now = self.now.plus(PICTURE_LAG_MAX);
        self.pool.observe(&self.ec2.picture(), self.now, self.now);
        self.compare();
    }

    /// What is to spare now has been so for a while.
    pub(super) fn settle(&mut self) {
        for _ in 0..3 {
            self.pool.watch(NetworkCard(0), 0, self.now);
            self.now = self.now.plus(Duration::from_secs(150));
        }
        settle(&mut self.pool, &mut self.ec2, &self.targets, 0, &mut self.now);
    }
}

proptest! {
    #[test]
    fn any_history_ends_as_in_the_simple_pool(
        targets in targets(), limits in sizes(), steps in vec(step(), 0..120)
    ) {
        let mut world = World::new(targets, limits);

        world.run(&steps);
        world.calm();
        world.settle();

        world.compare();
        prop_assert_eq!(world.pool.enis(), world.ec2.picture());
    }
}
