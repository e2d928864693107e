//! The fleet: nodes with their daemons, pods that are wanted on them, and one account. Virtual time; the same seed is the
//! same history.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{InstanceLimits, Moment};

use super::account::{Account, Calls, Rates};
use super::daemon::{Daemon, Happening, Sandbox, Want};
use super::errand::Errand;
use super::instance::Instance;
use super::policy::Policy;
use crate::rng::Rng;

/// Where time begins.
const START: Moment = Moment(1_000_000_000);
/// Between a replacement's address and the end of the pod that it replaces.
const HANDOVER: Duration = Duration::from_secs(1);

/// What the world is like.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) policy: Policy,
    pub(crate) limits: InstanceLimits,
    pub(crate) rates: Rates,
    /// The kubelet's pause before it tries a pod again.
    pub(crate) retry: Duration,
    pub(crate) seed: u64,
}

/// What happened in a while.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spell {
    /// How long each pod waited for its address, in milliseconds.
    pub(crate) waits: Vec<u64>,
    /// Pods that were wanted.
    pub(crate) wanted: u64,
    /// ADDs that failed.
    pub(crate) failed: u64,
    pub(crate) calls: Calls,
    pub(crate) lasted: Duration,
    /// Addresses that the nodes hold at its end, beside their own; and the pods that have one.
    pub(crate) held: u64,
    pub(crate) running: u64,
}

#[derive(Debug)]
struct Host {
    /// `None` before it boots and after it has left.
    daemon: Option<Daemon>,
    instance: Instance,
    ready: bool,
    /// Pods that wait for the node to be ready.
    early: Vec<u32>,
    tick_at: Moment,
}

#[derive(Debug)]
struct Pod {
    host: u32,
    wanted: Moment,
    /// The pod whose place it takes.
    replaces: Option<u32>,
    attempts: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Running,
    Gone,
}

#[derive(Debug)]
enum Due {
    Boot(u32),
    Leave(u32),
    Want(u32),
    Drop(u32),
    Hear(u32, Happening),
    Tick(u32),
    Proceed(u32, Box<Errand>),
}

/// The fleet.
#[derive(Debug)]
pub(crate) struct World {
    setting: Setting,
    rng: Rng,
    now: Moment,
    due: BTreeMap<(Moment, u64), Due>,
    numbered: u64,
    hosts: Vec<Host>,
    pods: Vec<Pod>,
    account: Account,
    /// Pods that are wanted, now or later, and have no address.
    pending: u64,
    running: u64,
    spell: Spell,
    spell_began: Moment,
    calls_before: Calls,
}

/// What is wanted of it.
impl World {
    pub(crate) fn new(setting: Setting) -> Self {
        Self {
            rng: Rng::new(setting.seed),
            account: Account::new(setting.rates),
            setting,
            now: START,
            due: BTreeMap::new(),
            numbered: 0,
            hosts: Vec::new(),
            pods: Vec::new(),
            pending: 0,
            running: 0,
            spell: Spell::default(),
            spell_began: START,
            calls_before: Calls::default(),
        }
    }

    /// A node that boots after this time.
    pub(crate) fn boot(&mut self, after: Duration) -> u32 {
        let host = index(self.hosts.len());
        self.hosts.push(Host {
            daemon: None,
            instance: Instance::new(),
            ready: false,
            early: Vec::new(),
            tick_at: Moment(u64::MAX),
        });
        self.at(after, Due::Boot(host));
        host
    }

    /// A node that leaves after this time, with its pods.
    pub(crate) fn leave(&mut self, host: u32, after: Duration) {
        self.at(after, Due::Leave(host));
    }

    /// A pod that is wanted after this time.
    pub(crate) fn want(&mut self, host: u32, after: Duration) -> u32 {
        self.want_in_place_of(None, host, after)
    }

    /// A pod that takes another one's place: that one goes when this one has its address.
    pub(crate) fn replace(&mut self, pod: u32, host: u32, after: Duration) -> u32 {
        self.want_in_place_of(Some(pod), host, after)
    }

    fn want_in_place_of(&mut self, replaces: Option<u32>, host: u32, after: Duration) -> u32 {
        let number = index(self.pods.len());
        let wanted = self.now.plus(after);
        self.pods.push(Pod { host, wanted, replaces, attempts: 0, state: State::Pending });
        self.pending += 1;
        self.spell.wanted += 1;
        self.at(after, Due::Want(number));
        number
    }

    /// A pod goes after this time.
    pub(crate) fn drop_pod(&mut self, pod: u32, after: Duration) {
        self.at(after, Due::Drop(pod));
    }

    /// Nodes that are there.
    pub(crate) fn nodes(&self) -> Vec<u32> {
        let there = (0..).zip(&self.hosts).filter(|(_, host)| host.daemon.is_some());
        there.map(|(number, _)| number).collect()
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, long: Duration) {
        let until = self.now.plus(long);
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, _), due) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(due);
        }
        self.now = until;
    }

    /// Lets time pass until every pod has an address, or for so long at most.
    pub(crate) fn pass_until_served(&mut self, most: Duration) {
        let until = self.now.plus(most);
        while self.pending > 0 && self.now < until {
            self.pass(Duration::from_secs(1));
        }
    }

    /// Ends a spell, and begins another.
    pub(crate) fn end_spell(&mut self) -> Spell {
        let mut spell = std::mem::take(&mut self.spell);
        spell.calls = self.account.calls.since(&self.calls_before);
        spell.lasted = self.now.since(self.spell_began);
        let there = self.hosts.iter().filter(|host| host.daemon.is_some());
        spell.held = there.map(|host| host.instance.held()).sum();
        spell.running = self.running;
        self.calls_before = self.account.calls.clone();
        self.spell_began = self.now;
        spell
    }

    /// Calls until now.
    pub(crate) const fn calls(&self) -> &Calls {
        &self.account.calls
    }

    /// Addresses that pods of a node can have.
    pub(crate) fn for_pods(&self, host: u32) -> u64 {
        self.host(host).map_or(0, |host| host.instance.for_pods())
    }

    fn host(&self, number: u32) -> Option<&Host> {
        self.hosts.get(usize::try_from(number).ok()?)
    }

    fn host_mut(&mut self, number: u32) -> Option<&mut Host> {
        self.hosts.get_mut(usize::try_from(number).ok()?)
    }

    fn pod_mut(&mut self, number: u32) -> Option<&mut Pod> {
        self.pods.get_mut(usize::try_from(number).ok()?)
    }

    fn at(&mut self, after: Duration, due: Due) {
        self.numbered += 1;
        self.due.insert((self.now.plus(after), self.numbered), due);
    }
}

/// What happens.
impl World {
    fn happen(&mut self, due: Due) {
        match due {
            Due::Boot(host) => self.start_daemon(host),
            Due::Leave(host) => self.left(host),
            Due::Want(pod) => self.start(pod),
            Due::Drop(pod) => self.dropped(pod),
            Due::Hear(host, happening) => self.hear(host, happening),
            Due::Tick(host) => {
                let now = self.now;
                let current = self.host_mut(host).is_some_and(|host| {
                    let current = host.tick_at == now;
                    host.tick_at = if current { Moment(u64::MAX) } else { host.tick_at };
                    current
                });
                if current {
                    self.hear(host, Happening::Tick);
                }
            }
            Due::Proceed(number, errand) => self.proceed(number, errand),
        }
    }

    fn start_daemon(&mut self, number: u32) {
        let daemon = self.setting.policy.daemon(&self.setting.limits, self.rng.next(), self.now);
        if let Some(host) = self.host_mut(number) {
            host.daemon = daemon;
        }
        self.hear(number, Happening::Start);
    }

    fn left(&mut self, number: u32) {
        if let Some(host) = self.host_mut(number) {
            host.daemon = None;
        }
        for pod in 0..index(self.pods.len()) {
            if self.pod_mut(pod).is_some_and(|pod| pod.host == number) {
                self.forget(pod);
            }
        }
    }

    fn dropped(&mut self, number: u32) {
        let Some((host, attempt)) = self.pod_mut(number).map(|pod| (pod.host, pod.attempts)) else { return };
        self.forget(number);
        self.hear(host, Happening::Del(Sandbox { pod: number, attempt }));
    }

    /// The pod is gone, whatever it was.
    fn forget(&mut self, number: u32) {
        let Some(pod) = self.pod_mut(number) else { return };
        let was = std::mem::replace(&mut pod.state, State::Gone);
        match was {
            State::Pending => self.pending -= 1,
            State::Running => self.running -= 1,
            State::Gone => {}
        }
    }

    /// The kubelet starts a pod, once the node is ready.
    fn start(&mut self, number: u32) {
        let Some(host) = self.pod_mut(number).map(|pod| pod.host) else { return };
        if let Some(host) = self.host_mut(host).filter(|host| !host.ready) {
            return host.early.push(number);
        }
        let Some(pod) = self.pod_mut(number).filter(|pod| pod.state == State::Pending) else { return };
        pod.attempts += 1;
        let sandbox = Sandbox { pod: number, attempt: pod.attempts };
        self.hear(host, Happening::Add(sandbox));
    }

    fn hear(&mut self, number: u32, happening: Happening) {
        let now = self.now;
        let Some(host) = self.host_mut(number) else { return };
        let Some(daemon) = &mut host.daemon else { return };
        let wants = daemon.handle(happening, &host.instance, now);
        let wakeup = daemon.wakeup(now);
        let moved = wakeup != host.tick_at;
        host.tick_at = wakeup;
        if moved && wakeup < Moment(u64::MAX) {
            self.at(wakeup.since(now), Due::Tick(number));
        }
        for want in wants {
            self.obey(number, want);
        }
    }

    fn obey(&mut self, number: u32, want: Want) {
        match want {
            Want::Run(errand) => self.proceed(number, Box::new(errand)),
            Want::Hear(after, happening) => self.at(after, Due::Hear(number, happening)),
            Want::Answer(sandbox, good, after) => self.answered(number, sandbox, good, after),
            Want::Ready => {
                let Some(host) = self.host_mut(number) else { return };
                host.ready = true;
                for pod in std::mem::take(&mut host.early) {
                    self.at(Duration::ZERO, Due::Want(pod));
                }
            }
        }
    }

    fn proceed(&mut self, number: u32, mut errand: Box<Errand>) {
        let now = self.now;
        let Some(host) = usize::try_from(number).ok().and_then(|number| self.hosts.get_mut(number)) else {
            return;
        };
        if host.daemon.is_none() {
            return;
        }
        match errand.proceed(&mut self.account, &mut host.instance, &mut self.rng, now) {
            Some(pause) => self.at(pause, Due::Proceed(number, errand)),
            None => self.at(Duration::ZERO, Due::Hear(number, Happening::Done(errand))),
        }
    }

    fn answered(&mut self, host: u32, sandbox: Sandbox, good: bool, after: Duration) {
        let at = self.now.plus(after);
        let Sandbox { pod: number, attempt } = sandbox;
        let Some(pod) = self.pod_mut(number).filter(|pod| pod.state == State::Pending) else { return };
        if pod.attempts != attempt {
            return;
        }
        if !good {
            // The runtime cleans up; the kubelet tries again.
            self.spell.failed += 1;
            self.at(after, Due::Hear(host, Happening::Del(sandbox)));
            let most = u64::try_from(self.setting.retry.as_millis()).unwrap_or(0);
            let pause = self.rng.millis(most, most * 3 / 2);
            return self.at(after + pause, Due::Want(number));
        }
        pod.state = State::Running;
        let waited = at.since(pod.wanted);
        let replaced = pod.replaces;
        self.pending -= 1;
        self.running += 1;
        self.spell.waits.push(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        if let Some(old) = replaced {
            self.at(after + HANDOVER, Due::Drop(old));
        }
    }
}

fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
