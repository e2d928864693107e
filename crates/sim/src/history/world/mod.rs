//! One node's world: the real `Node`, and around it a runtime, a kernel, a disk and a cloud that obey only a clock of our own.

mod checks;
mod host;
mod life;
mod operator;
mod runtime;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use datapath::PodSpec;
use node::cloud::{CloudError, CloudErrorKind};
use node::families::address_in_pool;
use node::hold::Hold;
use node::store::{Ipv6Books, Record, VERSION};
use node::{BatchId, CallId, Effect, Event, Node, Remembered};
use pool::{EniSeen, Snapshot};
use types::{EniId, HostVeth, Moment, PodName, Reason, SandboxKey};
use wire::queue::QueuedDel;
use wire::{Failure, Request, Verb};

use super::cloud::{Cloud, Next, Task};
use super::cluster::{Cluster, Told};
use super::met::Met;
use super::plant::Plant;
use super::script::{PODS, Script};
use crate::rng::Rng;
use life::Doom;

/// What the runtime waits for an ADD.
const PATIENCE: Duration = Duration::from_secs(90);
/// So many calls to EC2 in a row may be under way when the time of a rest is up.
const CALLS_AFTER: usize = 4;
/// How long a node may take to come to rest once nothing bad happens any more and it has looked at EC2.
const REST: Duration = Duration::from_secs(12 * 60);
/// So many things never happen in a history that comes to rest.
const HAPPENINGS_MAX: u64 = 200_000;
/// Where time begins: late enough that a clock can jump back.
const START: Moment = Moment(1_000_000_000);

/// Why a history is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What does not hold.
    pub what: String,
    /// When, counted from the beginning.
    pub after: Duration,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.3} s: {}", self.after.as_secs_f64(), self.what)
    }
}

/// What a history cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Events that the node handled.
    pub events: u64,
    /// ADDs that succeeded.
    pub adds: u64,
    /// Calls that change something in EC2.
    pub changes: u64,
    /// Which bad manners were met.
    pub met: Met,
}

type Held = Result<(), String>;

macro_rules! hold {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}
use hold;

/// Something due at a moment.
#[derive(Debug)]
enum Due {
    Step(usize),
    /// For the daemon that was started so many-eth.
    Hear(u32, Box<Event>),
    Wiring(u32, Job),
    Writing(u32, BatchId, Vec<Record>),
    Rewriting(u32, Box<Snapshot>, Ipv6Books),
    Remembering(u32, Box<Remembered>),
    Cloud(u32, Box<Task>),
    Tick(u32),
    Start,
    /// A request reaches the daemon.
    Arrive(CallId),
    NetnsGone(SandboxKey),
    Retry(u32),
    GiveUp(CallId),
}

#[derive(Debug)]
enum Job {
    Add(CallId, Vec<PodSpec>),
    Remove(PodSpec),
    Check(CallId),
    Survey(Vec<(SandboxKey, HostVeth)>),
    Mend(Vec<PodSpec>),
}

/// A pod as the runtime sees it.
#[derive(Debug, Default)]
struct Pod {
    wanted: bool,
    incarnation: u32,
    phase: Phase,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Absent,
    Adding(CallId),
    Running,
    /// Its DEL is under way.
    Deleting(CallId),
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    request: Request,
    sandbox: Option<SandboxKey>,
    pod: Option<u32>,
    arrived: bool,
}

/// An interface of a pod that runs: its host end, and the address that the runtime was told.
#[derive(Debug)]
struct End {
    host_if: HostVeth,
    address: Ipv4Addr,
}

#[derive(Debug)]
struct Link {
    sandbox: SandboxKey,
    address: Ipv4Addr,
    addresses: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Disk {
    records: Vec<Record>,
    fails: u32,
    /// After a failure nothing is appended before a new file is begun.
    broken: bool,
    asked_for_new: bool,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    script: Script,
    plant: Option<Plant>,
    rng: Rng,
    now: Moment,
    /// The node's clock is so many milliseconds ahead of ours.
    skew: i64,
    due: BTreeMap<(Moment, u64), Due>,
    numbered: u64,
    happened: u64,
    node: Option<Node>,
    epoch: u32,
    tick_at: Moment,
    cloud: Cloud,
    /// The API server.
    cluster: Cluster,
    /// What it has told the daemon that runs.
    told: Told,
    /// What it tells next it tells after this.
    telling: Moment,
    pods: BTreeMap<u32, Pod>,
    calls: BTreeMap<CallId, Pending>,
    last_call: u64,
    /// Sandboxes whose ADD has succeeded and whose DEL has not begun.
    live: BTreeMap<SandboxKey, Vec<End>>,
    /// Sandboxes whose DEL was answered.
    ended: BTreeSet<SandboxKey>,
    links: BTreeMap<HostVeth, Link>,
    netns_gone: BTreeSet<SandboxKey>,
    /// When each address was last unwired, by our clock and by the node's.
    unwired: BTreeMap<Ipv4Addr, (Moment, Moment)>,
    /// Addresses that a pod has lived with since they were last unwired.
    lived: BTreeSet<Ipv4Addr>,
    clock_at_crash: Moment,
    early: u64,
    /// ADDs that failed, the policy agent's doing apart.
    failed: u64,
    /// The daemon has told the runtime that there is a network.
    published: bool,
    /// Addresses that somebody took from under a pod.
    robbed: BTreeSet<Ipv4Addr>,
    /// What the host's kernel was told.
    host: host::Host,
    /// What the operator holds back.
    hold: Hold,
    /// What the daemon has put on disk of its instance.
    memory: Option<Box<Remembered>>,
    /// How many changes EC2 had met when its ENIs were last compared with the live pods; `None` once another pod lives.
    compared_at: Option<u64>,
    queue: Vec<QueuedDel>,
    disk: Disk,
    wiring_free: Moment,
    writing_free: Moment,
    wiring_fails: u32,
    host_fails: u32,
    /// How the daemon will die.
    doomed: Option<Doom>,
    tally: Tally,
    trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(script: Script, seed: u64, plant: Option<Plant>, traced: bool) -> Result<Self, Broken> {
        let mut rng = Rng::new(seed ^ 0x5157_1e55);
        let broken =
            |error| Broken { what: format!("the cloud cannot be made: {error}"), after: Duration::ZERO };
        let cloud = Cloud::new(&script.setup, &mut rng, START).map_err(broken)?;
        let elsewhere = cloud.subnets.get(1).unwrap_or_else(|| cloud.subnet());
        let cluster = Cluster::new(elsewhere.clone(), script.setup.tells_pods);
        Ok(Self {
            script,
            plant,
            rng,
            now: START,
            skew: 0,
            due: BTreeMap::new(),
            numbered: 0,
            happened: 0,
            node: None,
            epoch: 0,
            tick_at: Moment(u64::MAX),
            cluster,
            cloud,
            told: Told::default(),
            telling: START,
            pods: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 1 << 20,
            live: BTreeMap::new(),
            ended: BTreeSet::new(),
            links: BTreeMap::new(),
            netns_gone: BTreeSet::new(),
            unwired: BTreeMap::new(),
            lived: BTreeSet::new(),
            clock_at_crash: Moment(0),
            early: 0,
            failed: 0,
            published: false,
            robbed: BTreeSet::new(),
            host: host::Host::default(),
            hold: Hold::Nothing,
            memory: None,
            compared_at: None,
            queue: Vec::new(),
            disk: Disk::default(),
            wiring_free: START,
            writing_free: START,
            wiring_fails: 0,
            host_fails: 0,
            doomed: None,
            tally: Tally::default(),
            trace: traced.then(Vec::new),
        })
    }

    /// What was said on the way, if it was to be kept.
    pub(crate) fn trace(self) -> Vec<String> {
        self.trace.unwrap_or_default()
    }

    /// Runs the history, then a rest, then everything stops.
    pub(crate) fn run(&mut self) -> Result<Tally, Broken> {
        let told = self.tell();
        told.map_err(|what| Broken { what, after: self.now.since(START) })?;
        self.tally.changes = self.cloud.changes;
        self.tally.met = self.cloud.met;
        Ok(self.tally)
    }

    fn tell(&mut self) -> Held {
        self.at(Duration::ZERO, Due::Start);
        self.at(Duration::from_millis(500), Due::Step(0));
        self.pass(None)?;
        self.rest()?;
        self.pass(Some(PATIENCE))?;
        self.thin_out();
        // With what looks are put off by at most.
        let rest = REST + self.script.setup.audit * 13 / 10;
        // By the end of this the node has looked at EC2 and knows what was taken from it.
        self.pass(Some(rest))?;
        self.heal();
        self.thin_out();
        self.pass(Some(rest))?;
        self.let_calls_end()?;
        self.rested()?;
        self.churn()?;
        for pod in 0..PODS {
            self.stop(pod);
        }
        // What is to spare goes back at the latest when the subnets are full.
        self.cloud.crowd();
        self.pass(Some(rest))?;
        self.let_calls_end()?;
        self.emptied()
    }

    /// What a call is about that is under way when time is up is in EC2 alone, or in the books alone.
    fn let_calls_end(&mut self) -> Held {
        for _ in 0..CALLS_AFTER {
            if !self.node.as_ref().is_some_and(|node| node.pool().is_changing()) {
                break;
            }
            self.pass(Some(PATIENCE))?;
        }
        Ok(())
    }

    /// Lets time pass: until the script is over, or for so long.
    fn pass(&mut self, long: Option<Duration>) -> Held {
        let until = long.map(|long| self.now.plus(long));
        while let Some(((at, number), due)) = self.due.pop_first() {
            if until.is_some_and(|until| at > until) {
                self.due.insert((at, number), due);
                break;
            }
            self.now = self.now.max(at);
            self.happened += 1;
            hold!(self.happened < HAPPENINGS_MAX, "it does not come to rest: {due:?}");
            if let Due::Step(index) = due {
                let Some((_, step)) = self.script.steps.get(index).copied() else { return Ok(()) };
                self.say(|| format!("{step:?}"));
                self.take(step)?;
                let pause = self.script.steps.get(index + 1).map_or(Duration::ZERO, |(pause, _)| *pause);
                self.at(pause, Due::Step(index + 1));
            } else {
                self.happen(due)?;
            }
        }
        if let Some(until) = until {
            self.now = until;
        }
        Ok(())
    }

    fn say(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let seconds = self.now.since(START).as_secs_f64();
            trace.push(format!("{seconds:12.3}  {}", words()));
        }
    }

    fn at(&mut self, after: Duration, due: Due) {
        self.numbered += 1;
        self.due.insert((self.now.plus(after), self.numbered), due);
    }

    /// The time by the node's clock.
    fn clock(&self) -> Moment {
        Moment(self.now.0.saturating_add_signed(self.skew))
    }
}

/// What the daemon hears and wants.
impl World {
    /// The node handles an event; its wishes are put in line, and what must always hold is checked.
    fn hear(&mut self, event: Event) -> Held {
        if let (Event::Cluster(news), Some(_)) = (&event, &self.node) {
            self.told.hear(news);
        }
        let event = match &self.plant {
            Some(plant) => plant.event(event, self.clock()),
            None => event,
        };
        let clock = self.clock();
        if let Event::Looked(Ok(picture)) = &event {
            self.say(|| {
                let given = |eni: &EniSeen| format!("{} has {:?}", eni.id, eni.given());
                let enis: Vec<String> = picture.enis.iter().map(given).collect();
                let (occupied, chores) = (&picture.occupied, &picture.chores);
                format!("a look: {}; occupied {occupied:?}, chores {chores:?}", enis.join("; "))
            });
        }
        if let Event::Acted { id, result } = &event {
            self.say(|| format!("call {} ends: {result:?}", id.0));
        }
        let Some(node) = &mut self.node else { return Ok(()) };
        self.tally.events += 1;
        let effects = node.handle(event, clock);
        let wakeup = node.next_wakeup(clock);
        for effect in effects {
            if self.dies() {
                return self.check();
            }
            let kept = match &self.plant {
                Some(plant) => plant.effect(effect),
                None => Some(effect),
            };
            if let Some(effect) = kept {
                self.obey(effect)?;
            }
        }
        let pause = wakeup.since(clock);
        if self.now.plus(pause) != self.tick_at {
            self.tick_at = self.now.plus(pause);
            self.at(pause, Due::Tick(self.epoch));
        }
        self.check()
    }

    fn obey(&mut self, effect: Effect) -> Held {
        match effect {
            Effect::Reply(call, reply) => return self.answered(call, reply),
            Effect::Wire(call, pods) => {
                self.check_interfaces(call, &pods)?;
                self.wiring(Job::Add(call, pods));
            }
            Effect::Check(call, _) => self.wiring(Job::Check(call)),
            Effect::Mend(pods) => self.wiring(Job::Mend(pods)),
            // Nobody reads them here.
            Effect::Waited(..) | Effect::Forget(_) | Effect::AskRange(..) => {}
            Effect::Tell(_) | Effect::Annotate(_) | Effect::Features(_) => {}
            Effect::Remember(remembered) => {
                let at = self.writing_done();
                self.at(at, Due::Remembering(self.epoch, remembered));
            }
            Effect::Enforce { id, patience, .. } => self.enforcing(id, patience),
            Effect::Survey(holders) => self.wiring(Job::Survey(holders)),
            Effect::Unwire(pod) => self.wiring(Job::Remove(pod)),
            Effect::Append(batch, records) => {
                let at = self.writing_done();
                if self.plant == Some(Plant::AnswersBeforeTheDisk) {
                    self.hear_later(Duration::ZERO, Event::Written { batch, result: Ok(()) });
                }
                self.at(at, Due::Writing(self.epoch, batch, records));
            }
            Effect::Rewrite(snapshot, ipv6) => {
                let at = self.writing_done();
                self.at(at, Due::Rewriting(self.epoch, snapshot, ipv6));
            }
            Effect::Checkpoint(_) => {}
            Effect::Look => self.ask(Task::Look(self.clock(), None)),
            Effect::Glance => self.ask(Task::Glance),
            Effect::Publish => return self.published(),
            Effect::AssignIpv6(eni) => {
                self.check_hold(None)?;
                self.ask(Task::Ipv6(eni));
            }
            Effect::ReleaseIpv6(eni, prefix) => {
                self.check_hold(None)?;
                self.ask(Task::ReleaseIpv6(eni, prefix));
            }
            Effect::Tidy(chores) => {
                self.check_hold(None)?;
                self.check_strays(&chores)?;
                self.ask(Task::Tidy(chores.into()));
            }
            Effect::Act { id, action, .. } if self.is_planted_refusal(&action) => {
                let refusal = CloudError::new(CloudErrorKind::Other, "release", "planted");
                self.hear_later(Duration::ZERO, Event::Acted { id, result: Err(refusal) });
            }
            Effect::Act { id, action, groups } => {
                self.say(|| action.to_string());
                self.check_place(&action, &groups)?;
                self.check_hold(Some(&action))?;
                self.check_fullness(&action)?;
                let task = self.cloud.task(id, action, groups);
                self.ask(task);
            }
            Effect::Converge { generation, host } => {
                let result = self.converge(&host);
                let pause = self.rng.millis(0, 20);
                self.hear_later(pause, Event::Converged { generation, result });
            }
        }
        Ok(())
    }

    fn ask(&mut self, task: Task) {
        let pause = self.rng.millis(1, 5);
        self.at(pause, Due::Cloud(self.epoch, Box::new(task)));
    }

    fn hear_later(&mut self, after: Duration, event: Event) {
        self.at(after, Due::Hear(self.epoch, Box::new(event)));
    }

    fn wiring(&mut self, job: Job) {
        let busy = self.wiring_free.since(self.now);
        let done = busy + self.rng.millis(0, 3);
        self.wiring_free = self.now.plus(done);
        self.at(done, Due::Wiring(self.epoch, job));
    }

    fn writing_done(&mut self) -> Duration {
        let longest = u64::try_from(self.script.setup.disk.as_millis()).unwrap_or(0);
        let done = self.writing_free.since(self.now) + self.rng.millis(0, longest);
        self.writing_free = self.now.plus(done);
        done
    }
}

/// What is due.
impl World {
    fn happen(&mut self, due: Due) -> Held {
        let epoch = self.epoch;
        match due {
            Due::Step(_) => Ok(()),
            Due::Start => self.begin(),
            Due::Hear(of, event) if of == epoch => self.hear(*event),
            Due::Tick(of) if of == epoch && self.tick_at == self.now => {
                self.tick_at = Moment(u64::MAX);
                self.hear(Event::Tick)
            }
            Due::Wiring(of, job) if of == epoch => self.wire(job),
            Due::Writing(of, batch, records) if of == epoch => self.write(batch, records),
            Due::Rewriting(of, snapshot, ipv6) if of == epoch => {
                self.disk.records = vec![Record::Snapshot { version: VERSION, pool: snapshot, ipv6 }];
                self.disk.broken = false;
                self.disk.asked_for_new = false;
                Ok(())
            }
            Due::Remembering(of, remembered) if of == epoch => {
                self.memory = Some(remembered);
                Ok(())
            }
            Due::Cloud(of, task) => {
                // A call that was sent is performed, whether the daemon lives or not; no other one follows.
                let next = self.cloud.continue_with(*task, &mut self.rng, self.now);
                if of == epoch {
                    match next {
                        Next::Call(after, task) => self.at(after, Due::Cloud(of, task)),
                        Next::Tell(after, event) => self.at(after, Due::Hear(of, event)),
                    }
                }
                Ok(())
            }
            Due::Hear(..) | Due::Tick(_) | Due::Wiring(..) => Ok(()),
            Due::Writing(..) | Due::Rewriting(..) | Due::Remembering(..) => Ok(()),
            Due::Arrive(call) => self.arrive(call),
            Due::NetnsGone(sandbox) => {
                let gone: Vec<Link> = self
                    .links
                    .extract_if(.., |_, link| link.sandbox == sandbox)
                    .map(|(_, link)| link)
                    .collect();
                gone.iter().for_each(|link| self.lived_no_longer(link.address));
                self.netns_gone.insert(sandbox);
                Ok(())
            }
            Due::Retry(number) => {
                let pod = self.pods.entry(number).or_default();
                if pod.wanted && matches!(pod.phase, Phase::Absent) {
                    self.start(number);
                }
                Ok(())
            }
            Due::GiveUp(call) => {
                let waits = self.calls.get(&call).is_some_and(|pending| pending.arrived);
                hold!(!waits || self.node.is_none(), "I12: an ADD got no answer in {PATIENCE:?}");
                Ok(())
            }
        }
    }

    fn arrive(&mut self, call: CallId) -> Held {
        if self.node.is_none() {
            self.unserved(call);
            return Ok(());
        }
        let Some(pending) = self.calls.get_mut(&call) else { return Ok(()) };
        pending.arrived = true;
        let mut request = pending.request.clone();
        if self.plant == Some(Plant::ForgetsTheOrder) && matches!(request.verb, Verb::Add(_)) {
            request.started_ns = u64::MAX;
        }
        self.hear(Event::Call { id: call, request, descriptors: true })
    }

    fn wire(&mut self, job: Job) -> Held {
        match job {
            Job::Survey(holders) => {
                let dead = holders.into_iter().filter(|(_, host_if)| !self.links.contains_key(host_if));
                let dead = dead.map(|(sandbox, _)| sandbox).collect();
                self.hear(Event::Dead(dead))
            }
            Job::Mend(pods) => self.compare_pods(pods),
            Job::Check(call) => self.hear(Event::Checked { id: call, result: Ok(()) }),
            Job::Remove(pod) => {
                let Some(gone) = address_in_pool(&pod.addresses) else { return Ok(()) };
                let ours = self.links.get(&pod.host_if).is_some_and(|link| link.address == gone);
                if ours {
                    self.links.remove(&pod.host_if);
                }
                hold!(
                    !self.ends().any(|(_, end)| end.address == gone),
                    "{gone} was unwired under a live pod"
                );
                self.lived_no_longer(gone);
                Ok(())
            }
            Job::Add(call, pods) => {
                let mut result = Ok(());
                for pod in &pods {
                    result = result.and(self.wire_pod(call, pod)?);
                }
                self.hear(Event::Wired { id: call, result })
            }
        }
    }

    /// An address is on no link any more; if a pod lived with it, it has to cool.
    fn lived_no_longer(&mut self, address: Ipv4Addr) {
        if self.lived.remove(&address) {
            // A daemon that is down may have released it before its clock jumped.
            let released = if self.node.is_some() { self.clock() } else { self.clock_at_crash };
            self.unwired.insert(address, (self.now, released));
        }
    }

    fn wire_pod(&mut self, call: CallId, pod: &PodSpec) -> Result<Result<(), Failure>, String> {
        let Some(sandbox) = self.calls.get(&call).and_then(|pending| pending.sandbox.clone()) else {
            // Its caller has hung up; the descriptors are still there.
            return Ok(Err(Failure::new(Reason::BadNetns, "the namespace is gone")));
        };
        if self.netns_gone.contains(&sandbox) {
            return Ok(Err(Failure::new(Reason::BadNetns, "the namespace is gone")));
        }
        if self.wiring_fails > 0 {
            self.wiring_fails -= 1;
            return Ok(Err(Failure::new(Reason::KernelRefused, "the kernel refuses")));
        }
        if let Some(old) = self.links.get(&pod.host_if) {
            let lives = self.live.contains_key(&old.sandbox) && old.sandbox != sandbox;
            hold!(!lives, "the link of the live pod {} is replaced", old.sandbox);
        }
        let addresses = pod.addresses.clone();
        let address = address_in_pool(&addresses).ok_or("a pod without an address is wired")?;
        let other = self.ends().find(|(key, end)| **key != sandbox && end.address == address);
        hold!(other.is_none(), "I4: {address} is given to {sandbox} and is {other:?}'s");
        self.check_cooling(address)?;
        hold!(!self.is_spared(address), "{address} of the primary ENI is given with custom networking");
        // What was taken away may have come to others before the node looks at EC2 again; not if it knows that it is there.
        let place = self.place_of(&attachment(&sandbox, pod.index));
        let innocent = |eni: &EniId| self.robbed.contains(&address) && place.as_ref() != Some(eni);
        let others = self.cloud.closed_with(address).filter(|eni| !innocent(eni));
        hold!(others.is_none(), "I7: {address} of {others:?}, which is not ours, is given to {sandbox}");
        self.links.insert(pod.host_if.clone(), Link { sandbox, address, addresses });
        Ok(Ok(()))
    }

    /// I8: an address is wired again only after its cooldown, or as one of those that are counted.
    fn check_cooling(&mut self, address: Ipv4Addr) -> Held {
        let (cooldown, clock) = (self.script.setup.cooldown, self.clock());
        let Some((truly, since)) = self.unwired.get(&address) else { return Ok(()) };
        // A clock that jumps lengthens or shortens a cooldown; nobody can help that.
        let cooled = clock.since(*since).max(self.now.since(*truly));
        // It cools from its DEL on, which is a moment earlier than the unwiring.
        let slack = Duration::from_secs(2);
        if cooled + slack < cooldown && clock >= *since {
            self.early += 1;
            let counted = self.node.as_ref().map_or(0, |node| node.pool().reused_early());
            hold!(self.early <= counted, "I8: {address} cools for {cooled:?} only");
        }
        Ok(())
    }

    fn write(&mut self, batch: BatchId, records: Vec<Record>) -> Held {
        let failed = self.disk.broken || self.disk.fails > 0;
        if failed {
            self.disk.fails = self.disk.fails.saturating_sub(1);
            self.disk.broken = true;
        } else {
            let lost = self.plant == Some(Plant::LosesReleases);
            let kept = records.into_iter().filter(|r| !(lost && matches!(r, Record::Released { .. })));
            self.disk.records.extend(kept);
        }
        let result = if failed { Err("no space left on device".to_owned()) } else { Ok(()) };
        if self.plant != Some(Plant::AnswersBeforeTheDisk) {
            self.hear(Event::Written { batch, result })?;
        }
        // A daemon that has just died asks for none.
        if self.disk.broken && !self.disk.asked_for_new {
            self.disk.asked_for_new = true;
            self.hear(Event::FileLong)?;
        }
        Ok(())
    }
}

const NETWORK: &str = "aws-cni";

fn name(pod: u32) -> PodName {
    PodName { namespace: "default".to_owned(), name: format!("pod-{pod}") }
}

fn sandbox(pod: u32, incarnation: u32) -> SandboxKey {
    let id = format!("p{pod}x{incarnation}");
    match SandboxKey::new(NETWORK, &id, "eth0") {
        Ok(key) => key,
        Err(error) => unreachable!("{id} is a container id: {error}"),
    }
}

/// A sandbox's attachment by its interface with this number.
fn attachment(sandbox: &SandboxKey, index: u8) -> SandboxKey {
    if index == 0 { sandbox.clone() } else { sandbox.further(index) }
}
