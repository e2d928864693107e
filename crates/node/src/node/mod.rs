//! The node: the one owner of the state. Events in, effects out; synchronous; time is an argument.
//!
//! | file | what it decides |
//! |---|---|
//! | `adding.rs` | requests: who gets which address, who waits, who is superseded |
//! | `releasing.rs` | DEL, GC, and those whose DEL may never come |
//! | `branches.rs` | pods with a branch ENI: which they are, what they wait for |
//! | `cards.rs` | network cards: which are used, what a pod wants of each |
//! | `growing.rs` | EC2: what to ask for, when to hold off |
//! | `looking.rs` | EC2: when to look, what a picture means, chores |
//! | `cluster.rs` | Kubernetes: what the node object changes |
//! | `custom.rs` | Kubernetes: where new ENIs go, with custom networking |
//! | `hosting.rs` | the host: what its kernel should hold |
//! | `ipv6.rs` | the ENIs' IPv6 prefixes: when to ask for one, which are led out; IPv6 by the node's address |
//! | `ranges.rs` | ranges of subnets, without which an ENI has no way out |
//! | `remembering.rs` | what a start goes on from while nobody tells anything |
//! | `glancing.rs` | the glances at instance metadata between two looks at EC2 |
//! | `publishing.rs` | when to tell the runtime that there is a network |
//! | `reasons.rs` | why ADDs failed or waited of late |
//! | `report.rs` | what `ipamd status` shows |
//! | `adopt.rs` | what of the Go version's checkpoint is true |
//! | `telling.rs` | Kubernetes: what is said of a pod whose ADD is held or has failed |
//! | `restore.rs` | the state after a restart, from the file and from the kernel |

mod adding;
mod adopt;
mod branches;
mod cards;
mod cluster;
mod custom;
mod event;
mod glancing;
mod growing;
mod hosting;
mod ipv6;
mod looking;
mod pods;
mod publishing;
mod ranges;
mod reasons;
mod releasing;
mod remembering;
mod report;
mod restore;
mod telling;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use datapath::Marks;
use ipnetwork::Ipv4Network;
use pool::{Action, ActionId, Pool, Targets};
use types::{Enforcing, EniId, Moment, NetworkCard, SandboxKey, SubnetId, VethPrefix};
use wire::Observed;

pub use event::{BatchId, CallId, Chore, Effect, Event, Facts, HostMade, HostWish, Picture, Stray, Subnets};
pub use glancing::{AUDIT_EVERY, GLANCE_EVERY};
pub use hosting::REPAIR_EVERY;
pub use releasing::RELEASED_KEPT;
pub use remembering::Remembered;
pub use restore::{PodInKernel, Replayed, Restored, is_placeholder, pods_among, replay, restore};

use crate::families::Families;
use crate::hold::Hold;
use crate::store::Ipv6Books;
use adding::Pending;
use branches::BranchState;
use cluster::ClusterState;
use custom::CustomState;
use glancing::Glances;
use growing::CloudState;
use hosting::HostState;
use ipv6::Ipv6State;
use pods::PodsState;
use ranges::RangeState;
use reasons::Reasons;
use remembering::MemoryState;

/// What the node is told to do, apart from the world.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which addresses pods get.
    pub families: Families,
    /// How many addresses to keep at hand.
    pub targets: Targets,
    /// Whether prefixes are asked for, where the instance can hold them.
    pub prefix_delegation: bool,
    /// Custom networking: an ENIConfig says where new ENIs go, and the primary ENI has no pods.
    pub custom_networking: bool,
    /// How long a released address rests.
    pub cooldown: Duration,
    /// The longest an ADD is held, in time.
    pub add_timeout: Duration,
    /// `MAX_ENI`: of each network card.
    pub max_enis: Option<u8>,
    /// Whether pods get addresses of network cards above 0 too.
    pub multi_nic: bool,
    /// Whether pods may have a branch ENI.
    pub pod_eni: bool,
    /// How strictly traffic is bound to it.
    pub enforcing: Enforcing,
    /// MTU of ENIs, in bytes.
    pub eni_mtu: u32,
    /// MTU inside pods, in bytes.
    pub pod_mtu: u32,
    /// What the names of pods' host ends start with.
    pub veth_prefix: VethPrefix,
    /// Which bits of a packet's mark are ours.
    pub marks: Marks,
    /// Whether connections may be bound to the primary ENI by mark: SNAT or node ports are on.
    pub connmark: bool,
    /// Destinations outside the VPC that keep their source address all the same.
    pub exclude_snat: Vec<Ipv4Network>,
    /// Destinations that the main table routes, whichever ENI a pod is on.
    pub external_services: BTreeSet<Ipv4Network>,
    /// Whether there is a cluster that could tell the node object.
    pub in_cluster: bool,
    /// Whether pods' objects are annotated with their addresses.
    pub annotate_pod_ip: bool,
    /// Whether a cordoned node is treated as any other.
    pub manage_cordoned: bool,
    /// False stops every change in EC2.
    pub provisioning: bool,
    /// Whether a network policy agent has a say in each pod.
    pub policies: bool,
    /// How often the ENIs are looked at although nothing happened.
    pub audit_every: Duration,
    /// How often instance metadata is asked whether it tells anything else; `None`: never.
    pub glance_every: Option<Duration>,
    /// How often the host's kernel is compared with what it should be although nothing happened.
    pub repair_every: Duration,
}

impl Settings {
    /// A node outside of a cluster whose pods get IPv4 addresses of the VPC, with all else as where no variable is set. The daemon sets each
    /// by its variable; simulations and tests begin with this.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            families: Families::V4 { egress: false },
            targets: Targets::default(),
            prefix_delegation: false,
            custom_networking: false,
            cooldown: Duration::from_secs(30),
            add_timeout: Duration::from_secs(80),
            max_enis: None,
            multi_nic: false,
            pod_eni: false,
            enforcing: Enforcing::Strict,
            eni_mtu: 9001,
            pod_mtu: 9001,
            veth_prefix: VethPrefix::default(),
            marks: Marks::default(),
            connmark: true,
            exclude_snat: Vec::new(),
            external_services: BTreeSet::new(),
            in_cluster: false,
            annotate_pod_ip: false,
            manage_cordoned: false,
            provisioning: true,
            policies: false,
            audit_every: AUDIT_EVERY,
            glance_every: Some(GLANCE_EVERY),
            repair_every: REPAIR_EVERY,
        }
    }
}

/// The state of one node.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    started: Moment,
    pool: Pool,
    /// Requests that have not been answered.
    pending: BTreeMap<CallId, Pending>,
    /// ADDs that wait for an address, first come first.
    queue: VecDeque<CallId>,
    /// The ADD in progress for each sandbox.
    adding: BTreeMap<SandboxKey, CallId>,
    /// Sandboxes released a short while ago, and when the request that did it started (I13).
    released: BTreeMap<SandboxKey, u64>,
    /// The same, the oldest first.
    released_order: VecDeque<SandboxKey>,
    /// Holders are being looked for in the kernel; and when to do so again.
    surveying: bool,
    /// There may be pods that only the kernel knew.
    placeholders: bool,
    /// Sandboxes whose DEL another daemon may have served.
    doubted: BTreeSet<SandboxKey>,
    survey_at: Moment,
    batches: BatchId,
    /// Calls that are made once their intent is on disk.
    intents: BTreeMap<BatchId, (ActionId, Action)>,
    facts: Option<Facts>,
    /// Network cards on which an EFA-only ENI stands.
    efa_only: BTreeSet<NetworkCard>,
    subnets: BTreeMap<SubnetId, Ipv4Network>,
    ranges: RangeState,
    memory: MemoryState,
    /// Free addresses of the subnets that may be used, when they were last looked at.
    free_in_subnets: BTreeMap<SubnetId, u32>,
    cloud: CloudState,
    /// What others did to ENIs and addresses.
    observed: Observed,
    ipv6: Ipv6State,
    cluster: ClusterState,
    custom: CustomState,
    branches: BranchState,
    pods: PodsState,
    /// It was told that pods can be served.
    published: bool,
    /// What an operator holds back.
    hold: Hold,
    stopping: bool,
    glances: Glances,
    /// ENIs that other instances may have left behind, and when they were first seen.
    strays: BTreeMap<EniId, Moment>,
    host: HostState,
    reasons: Reasons,
    /// When time alone may change the plan.
    plan_again: Option<Moment>,
    /// When the last event was handled.
    handled_at: Moment,
    effects: Vec<Effect>,
}

impl Node {
    /// A node with a pool that was restored, or is empty.
    #[must_use]
    pub fn new(settings: Settings, mut pool: Pool, seed: u64, now: Moment) -> Self {
        pool.spread(seed);
        Self {
            settings,
            started: now,
            pool,
            pending: BTreeMap::new(),
            queue: VecDeque::new(),
            adding: BTreeMap::new(),
            released: BTreeMap::new(),
            released_order: VecDeque::new(),
            surveying: false,
            placeholders: true,
            doubted: BTreeSet::new(),
            survey_at: Moment(0),
            batches: BatchId::default(),
            intents: BTreeMap::new(),
            facts: None,
            efa_only: BTreeSet::new(),
            subnets: BTreeMap::new(),
            ranges: RangeState::default(),
            memory: MemoryState::default(),
            free_in_subnets: BTreeMap::new(),
            cloud: CloudState::new(seed),
            observed: Observed::default(),
            ipv6: Ipv6State::default(),
            cluster: ClusterState::default(),
            custom: CustomState::default(),
            branches: BranchState::default(),
            pods: PodsState::default(),
            published: false,
            hold: Hold::Nothing,
            stopping: false,
            strays: BTreeMap::new(),
            glances: Glances::default(),
            host: HostState::default(),
            reasons: Reasons::default(),
            plan_again: None,
            handled_at: now,
            effects: Vec::new(),
        }
    }

    /// Has the kernel asked about these sandboxes until their links are gone: nobody may ever tell.
    pub fn doubt(&mut self, sandboxes: BTreeSet<SandboxKey>) {
        self.doubted = sandboxes;
    }

    /// Takes in what is remembered of the IPv6 prefix.
    pub const fn remember_ipv6(&mut self, books: Ipv6Books) {
        self.ipv6.books = books;
    }

    /// Takes in what happened; returns what to do about it, in order.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        self.handled_at = now;
        match event {
            Event::Call { id, request, descriptors } => self.call(id, request, descriptors, now),
            Event::Gone(id) => self.gone(id, now),
            Event::Wired { id, result } => self.wired(id, result, now),
            Event::Enforced { id, result } => self.enforced(id, result, now),
            Event::Dead(sandboxes) => self.surveyed(&sandboxes, now),
            Event::Checked { id, result } => self.checked(id, result),
            Event::Written { batch, result } => self.written(batch, result, now),
            Event::FileLong => {
                self.effects.push(Effect::Rewrite(Box::new(self.pool.snapshot()), self.ipv6.books));
            }
            Event::Identified(facts) => self.identified(*facts, now),
            Event::Unidentified(error) => self.unidentified(&error, now),
            Event::Remembered(remembered) => self.remembered(*remembered),
            Event::Looked(result) => self.looked(result, now),
            Event::Glanced(result) => self.glanced(result, now),
            Event::Acted { id, result } => self.acted(id, result, now),
            Event::Ipv6Assigned(eni, result) => self.ipv6_assigned(&eni, result, now),
            Event::Ipv6Released(result) => self.ipv6_released(result, now),
            Event::Untied => self.untied(now),
            Event::Tidied(result) => self.tidied(result, now),
            Event::Held(hold) => self.held(hold),
            Event::Stale => self.cloud.stale = true,
            Event::Cluster(news) => self.cluster_says(news, now),
            Event::Range(subnet, told) => self.range_told(subnet, told, now),
            Event::Ranges(ranges) => self.ranges(ranges),
            Event::NodeIpv6(address) => self.node_ipv6(address),
            Event::Replayed => self.annotate_fresh(now),
            Event::Stopping => self.stop(now),
            Event::Converged { generation, result } => self.converged(generation, result, now),
            Event::Touched => self.host.touched(now),
            Event::PodsCompared { put_back, lost } => self.pods_compared(put_back, &lost, now),
            Event::Tick => {}
        }
        self.advance(now);
        let effects = std::mem::take(&mut self.effects);
        self.reasons.note(&effects, now);
        effects
    }

    /// The addresses, for those who check the books.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// When to send a [`Event::Tick`] if nothing else happens before; at once, if something has become due since the last event.
    #[must_use]
    pub fn next_wakeup(&self, now: Moment) -> Moment {
        let handled = self.handled_at.min(now);
        let queue = self.queue_wakeup(handled);
        let rest = [
            self.pool.next_change(handled),
            self.cloud_wakeup(handled),
            self.host.wakeup(),
            self.plan_again,
            queue,
            self.held_wakeup(),
            self.survey_wakeup(),
            self.ranges_wakeup(),
            self.glance_wakeup(),
            self.ipv6_wakeup(handled),
        ];
        // What was due then was looked at and waits for something else.
        let soonest = rest.into_iter().flatten().filter(|at| *at > handled).min();
        soonest.unwrap_or(Moment(u64::MAX)).min(now.plus(Duration::from_secs(60)))
    }

    /// What is still missing before an ADD can be served.
    fn missing(&self) -> Vec<&'static str> {
        let latches = [
            (self.facts.is_none(), "who this instance is and what its type can hold"),
            (!self.cloud.pictured, "the first look at the ENIs, the host's routes, rules and nftables"),
            (self.lacks_ipv6(), "an IPv6 prefix of the primary ENI"),
            (self.lacks_place(), "an ENIConfig that says where ENIs for pods go"),
        ];
        latches.into_iter().filter_map(|(missing, what)| missing.then_some(what)).collect()
    }

    /// The daemon is about to end: those who wait for an address will not get one from it.
    fn stop(&mut self, now: Moment) {
        self.stopping = true;
        self.give_up_queue(now);
        self.effects.push(Effect::Checkpoint(Box::new(self.pool.snapshot())));
    }

    /// Everything that may follow from any event.
    fn advance(&mut self, now: Moment) {
        self.look_if_due(now);
        self.glance_if_due(now);
        self.want_features();
        self.lead_prefixes();
        self.serve(now);
        // Once it is known who waits for what.
        self.glance_for_trunk(now);
        self.survey(now);
        self.want_ipv6(now);
        self.spare_ipv6(now);
        self.grow(now);
        self.serve_early(now);
        self.tell_held(now);
        self.expire(now);
        self.learn_ranges(now);
        self.wish(now);
        self.publish(now);
        self.remember();
    }
}
