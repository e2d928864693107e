//! What happens to a node in one history: made from a seed, so that it can be told again, and cut down when it fails.

use std::time::Duration;

use node::families::Families;
use node::hold::Hold;
use node::{REPAIR_EVERY, Settings};
use pool::Targets;
use types::InstanceTable;

use super::cluster::{TURNS, TURNS_OF_THE_NODE, Turn};
use super::foreign::{DEVICES, FOREIGN, Foreign};
use crate::rng::Rng;

/// Pods that come and go, at most.
pub(crate) const PODS: u32 = 24;

/// One history.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) setup: Setup,
    /// What happens, and how long after the step before.
    pub(crate) steps: Vec<(Duration, Step)>,
}

/// What holds for the whole history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) instance_type: &'static str,
    /// It has several network cards, and some pods want an interface of each.
    pub(crate) cards: bool,
    /// It is launched with an ENI for EFA alone on one of the further ones.
    pub(crate) efa_only: bool,
    pub(crate) prefixes: bool,
    pub(crate) warm_eni: u32,
    pub(crate) warm_ip: Option<u32>,
    pub(crate) minimum_ip: Option<u32>,
    pub(crate) warm_prefix: u32,
    pub(crate) automatic: bool,
    pub(crate) cooldown: Duration,
    /// How far descriptions look into the past.
    pub(crate) lags: Lags,
    pub(crate) attach_delay: Duration,
    pub(crate) detach_delay: Duration,
    /// Longest time a write takes.
    pub(crate) disk: Duration,
    /// How often the node looks at EC2, give or take a half.
    pub(crate) audit: Duration,
    /// How often the node compares the kernel with what it should be although nothing happened.
    pub(crate) repair: Duration,
    /// Longest time an answer of EC2 takes.
    pub(crate) latency: Duration,
    /// Subnets that ENIs may go to; the primary one is the first.
    pub(crate) subnets: u8,
    /// Instance metadata tells the ENIs while EC2 is away.
    pub(crate) metadata: bool,
    /// Without our tag an ENI is not ours, and instance metadata tells no tags.
    pub(crate) tagged_only: bool,
    /// Pods have IPv6 addresses too.
    pub(crate) dual: bool,
    /// An ENIConfig says where ENIs for pods go: into the second subnet, if there is one.
    pub(crate) custom: bool,
    /// A network policy agent has a say in each pod.
    pub(crate) policies: bool,
    /// There is an API server that tells the node object.
    pub(crate) in_cluster: bool,
    /// It tells the node's pods too, for the default target, and what CPU they leave.
    pub(crate) tells_pods: bool,
    /// The bounds that settings may set.
    pub(crate) max_enis: Option<u8>,
    pub(crate) max_pods: Option<u32>,
}

/// How far the world's descriptions of the instance look into the past, each for itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lags {
    /// EC2's of the ENIs that are attached.
    pub(crate) attached: Duration,
    /// EC2's of those that are not.
    pub(crate) loose: Duration,
    /// Instance metadata's list of ENIs.
    pub(crate) metadata: Duration,
    /// Its lists of their single addresses.
    pub(crate) addresses: Duration,
    /// Its lists of their prefixes.
    pub(crate) prefixes: Duration,
    /// These are the longest: each answer is as old as chance will have it, so that a later one may be older.
    pub(crate) shuffled: bool,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A pod is to run.
    Start(u32),
    /// A pod is to go; if its ADD is under way, the DEL overtakes it.
    Stop(u32),
    /// So many pods are to run, from the first on.
    Flood(u32),
    /// So many pods are to go, from the first on.
    Ebb(u32),
    /// The runtime gives up waiting for an ADD.
    HangUp(u32),
    /// A pod's namespace vanishes and nobody says so.
    Vanish(u32),
    /// The runtime lists what it knows.
    Gc,
    /// The daemon dies, and starts again after a time.
    Crash {
        /// How long it is down.
        down: Duration,
        /// How far the clock jumps meanwhile, in seconds.
        jump: i64,
        /// Whether the state file is lost.
        amnesia: bool,
    },
    /// The daemon is restarted with the other setting of prefix delegation, after this time.
    ChangeMode(Duration),
    /// The next changes of EC2 meet this.
    Ec2(Fault, u32),
    /// EC2 does not answer for a time.
    Dark(Duration),
    /// EC2 denies all changes for a time.
    Deny(Duration),
    /// EC2 denies all descriptions for a time.
    Blind(Duration),
    /// Somebody else takes all of the subnet but so many addresses.
    Fill(u32),
    /// Somebody else takes one address of each free /28.
    Fragment,
    /// They give back what they took.
    Vacate,
    /// A subnet is tagged to keep us out.
    Exclude(u8),
    /// All subnets let us in again.
    Admit,
    /// Somebody changes the primary ENI's security groups, which has the daemon look at EC2.
    Regroup,
    /// Somebody pulls an ENI that is not the primary one.
    Pull(u32),
    /// Somebody takes an address or a prefix of the node away.
    Rob(u32),
    /// Somebody attaches an ENI of theirs at this device, with so many addresses.
    Attach(Foreign, u8, u32),
    /// Somebody detaches an ENI of theirs.
    Detach(u32),
    /// Something happens to the ENIConfig, or to who tells it.
    Config(Turn),
    /// Another instance of the cluster leaves an ENI behind; where a time is given, it takes it up again then.
    Stray(Option<Duration>),
    /// The next writes to the disk fail.
    DiskFails(u32),
    /// The next wirings fail.
    WiringFails(u32),
    /// The kernel refuses the next convergences.
    HostFails(u32),
    /// The operator holds this back from now on.
    Hold(Hold),
}

/// What a change in EC2 meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is performed, and the answer is lost.
    LoseAnswer,
    /// It is not performed, and the answer is lost.
    LoseRequest,
    /// It is throttled.
    Throttle,
    /// Only half of it is performed.
    Half,
    /// Its answer makes no sense.
    Garbage,
}

/// Metadata is glanced at no more often than this.
const GLANCE: Duration = Duration::from_secs(60);
const HOLDS: &[Hold] = &[Hold::Nothing, Hold::Releases, Hold::Changes];
const FAULTS: &[Fault] =
    &[Fault::LoseAnswer, Fault::LoseRequest, Fault::Throttle, Fault::Half, Fault::Garbage];
/// Small types, so that limits are met, and one without prefixes.
const TYPES: &[&str] = &["t3.small", "m5.large", "t3.nano", "t2.micro", "c5.xlarge"];
/// Types with several network cards, that hold one ENI, two, or many.
const TYPES_OF_CARDS: &[&str] = &["hpc6id.32xlarge", "hpc7a.12xlarge", "c6in.32xlarge"];

impl Script {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let setup = Setup::of(&mut rng);
        let count = 10 + rng.below(50);
        // How wild it is: some histories are calm, so that the rest can be seen.
        let wildness = rng.below(60);
        // With custom networking it may begin before all is well.
        let first = (setup.custom && rng.percent(50)).then(|| (Duration::ZERO, Step::Config(turn(&mut rng))));
        let steps = (0..count).map(|_| (pause(&mut rng), Step::of(&mut rng, wildness, &setup)));
        let steps = first.into_iter().chain(steps).collect();
        Self { setup, steps }
    }
}

fn pause(rng: &mut Rng) -> Duration {
    match rng.below(10) {
        0..=3 => rng.millis(0, 20),
        4..=6 => rng.millis(0, 2_000),
        7..=8 => rng.millis(0, 30_000),
        _ => rng.millis(0, 300_000),
    }
}

impl Setup {
    /// The daemon's settings.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            families: if self.dual { Families::Dual } else { Families::V4 { egress: false } },
            targets: Targets {
                warm_eni: self.warm_eni,
                warm_ip: self.warm_ip,
                minimum_ip: self.minimum_ip,
                warm_prefix: self.warm_prefix,
                automatic: self.automatic,
                max_pods: self.max_pods,
                ..Targets::default()
            },
            prefix_delegation: self.prefixes,
            custom_networking: self.custom,
            multi_nic: self.cards,
            cooldown: self.cooldown,
            max_enis: self.max_enis,
            in_cluster: self.in_cluster,
            policies: self.policies,
            audit_every: self.audit,
            glance_every: self.metadata.then_some((self.audit / 4).max(GLANCE)),
            repair_every: self.repair,
            ..Settings::plain()
        }
    }

    fn of(rng: &mut Rng) -> Self {
        let by_addresses = rng.percent(50);
        let instance_type = rng.pick(TYPES).unwrap_or("m5.large");
        // Not drawn: the other histories stay as they are.
        let cards = rng.clone().below(1000) % 7 == 3;
        let several = rng.clone().pick(TYPES_OF_CARDS).filter(|_| cards);
        let instance_type = several.unwrap_or(instance_type);
        let can_ipv6 =
            InstanceTable::builtin().get(instance_type).is_some_and(|limits| limits.prefix_delegation);
        let setup = Self {
            instance_type,
            cards,
            efa_only: cards && rng.clone().percent(20),
            prefixes: rng.percent(40),
            warm_eni: rng.small(3),
            warm_ip: by_addresses.then(|| rng.small(6)),
            minimum_ip: by_addresses.then(|| rng.small(12)),
            warm_prefix: rng.small(3),
            automatic: rng.percent(30),
            cooldown: Duration::from_secs(rng.below(40)),
            lags: Lags::of(rng),
            attach_delay: rng.millis(0, 2_000),
            detach_delay: rng.millis(0, 4_000),
            disk: if rng.percent(20) { rng.millis(0, 2_000) } else { rng.millis(0, 10) },
            // Seldom, so that nothing depends on it; or often, so that descriptions meet everything else.
            audit: if rng.percent(25) { rng.millis(10_000, 60_000) } else { Duration::from_secs(600) },
            // Not drawn. As often as in earnest, or seldom, so that nothing depends on it.
            repair: if rng.clone().percent(25) { REPAIR_EVERY } else { REPAIR_EVERY * 10 },
            latency: if rng.percent(20) { rng.millis(0, 8_000) } else { rng.millis(1, 200) },
            subnets: if rng.percent(40) { 2 + u8::from(rng.percent(50)) } else { 1 },
            metadata: rng.percent(60),
            tagged_only: rng.percent(20),
            // Neither is drawn.
            dual: can_ipv6 && rng.clone().percent(30),
            custom: rng.clone().below(1000) >= 800,
            policies: rng.clone().below(4) == 0,
            in_cluster: rng.percent(30),
            tells_pods: rng.clone().percent(50),
            max_enis: rng.percent(15).then(|| 1 + u8::try_from(rng.below(3)).unwrap_or(0)),
            max_pods: rng.percent(15).then(|| 2 + rng.small(20)),
        };
        // The two are refused together.
        let custom = setup.custom && !setup.dual;
        // Where targets are set, nobody asks for pods.
        let tells_pods = setup.tells_pods && setup.automatic && !by_addresses;
        Self { custom, tells_pods, in_cluster: setup.in_cluster || custom || tells_pods, ..setup }
    }
}

impl Lags {
    /// All the same.
    pub(crate) const fn all(lag: Duration) -> Self {
        let (attached, loose, metadata) = (lag, lag, lag);
        Self { attached, loose, metadata, addresses: lag, prefixes: lag, shuffled: false }
    }

    /// None at all, some seconds, or up to minutes, longer than anybody may count on.
    fn of(rng: &mut Rng) -> Self {
        let (long, shuffled) = (rng.percent(20), rng.percent(50));
        if rng.percent(40) {
            return Self::default();
        }
        let most = if long { 240_000 } else { 9_000 };
        Self {
            attached: rng.millis(0, most),
            loose: rng.millis(0, most),
            metadata: rng.millis(0, most),
            addresses: rng.millis(0, most),
            prefixes: rng.millis(0, most),
            shuffled,
        }
    }

    /// The same, none longer than this.
    pub(crate) fn at_most(self, most: Duration) -> Self {
        Self {
            attached: self.attached.min(most),
            loose: self.loose.min(most),
            metadata: self.metadata.min(most),
            addresses: self.addresses.min(most),
            prefixes: self.prefixes.min(most),
            ..self
        }
    }

    /// How old an answer is that may be as old as this.
    pub(crate) fn draw(self, most: Duration, rng: &mut Rng) -> Duration {
        match self.shuffled {
            true => rng.millis(0, u64::try_from(most.as_millis()).unwrap_or(0)),
            false => most,
        }
    }
}

impl Step {
    fn of(rng: &mut Rng, wildness: u64, setup: &Setup) -> Self {
        let pod = rng.small(PODS);
        if !rng.percent(wildness) {
            return match rng.below(20) {
                0..=9 => Self::Start(pod),
                10..=16 => Self::Stop(pod),
                17..=18 => Self::Flood(pod),
                _ => Self::Ebb(pod),
            };
        }
        if setup.custom && rng.percent(30) {
            return Self::Config(turn(rng));
        }
        if setup.in_cluster && rng.percent(10) {
            return Self::Config(rng.pick(TURNS_OF_THE_NODE).unwrap_or(Turn::Cordoned(false)));
        }
        let times = 1 + rng.small(4);
        match rng.below(29) {
            // Not drawn, so that other histories stay as they are.
            2 if rng.clone().percent(50) => Self::ChangeMode(Duration::from_secs(2)),
            0..=2 => Self::Crash {
                down: rng.millis(0, 20_000),
                jump: if rng.percent(20) { i64::from(rng.small(7_200)) - 3_600 } else { 0 },
                amnesia: rng.percent(15),
            },
            3..=7 => Self::Ec2(rng.pick(FAULTS).unwrap_or(Fault::Throttle), times),
            8 => Self::Dark(rng.millis(0, 120_000)),
            9 => Self::Deny(rng.millis(0, 120_000)),
            10 => Self::Fill(rng.small(12)),
            11 => Self::Fragment,
            12 => Self::Vacate,
            13 => Self::Pull(rng.small(4)),
            14 => Self::Rob(rng.small(40)),
            15 => Self::DiskFails(times),
            16 => Self::WiringFails(times),
            17 => Self::HostFails(times),
            18 => {
                if rng.percent(50) {
                    Self::HangUp(pod)
                } else {
                    Self::Vanish(pod)
                }
            }
            19 => Self::Exclude(u8::try_from(rng.below(3)).unwrap_or(0)),
            // Nor here.
            20 | 28 if rng.clone().percent(50) => Self::Regroup,
            20 => Self::Admit,
            21 => Self::Stray(rng.percent(50).then(|| rng.millis(0, 900_000))),
            22..=23 => Self::Attach(
                rng.pick(FOREIGN).unwrap_or(Foreign::Unmanaged),
                rng.pick(DEVICES).unwrap_or(1),
                rng.small(3),
            ),
            24 => Self::Detach(rng.small(3)),
            25..=26 => Self::Blind(rng.millis(0, 900_000)),
            27 => Self::Hold(rng.pick(HOLDS).unwrap_or(Hold::Nothing)),
            _ => Self::Gc,
        }
    }
}

fn turn(rng: &mut Rng) -> Turn {
    let number = u8::try_from(rng.below(3)).unwrap_or(0);
    match rng.below(12) {
        0..=2 => Turn::Subnet(number),
        3..=4 => Turn::Renamed(number),
        _ => rng.pick(TURNS).unwrap_or(Turn::Back),
    }
}
