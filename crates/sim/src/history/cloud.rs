//! EC2 as the daemon's cloud tasks meet it: the lab's model, one call at a time, each with its faults and its delay.
//!
//! The tasks here follow those of the daemon call by call. What a task has done in EC2 stays done when the daemon dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::{Ipv4Network, Ipv6Network};
use node::cloud::{CloudError, CloudErrorKind, ConnectionTracking, Effect};
use node::{Chore, Event, Picture, Stray};
use pool::{Action, ActionId, EniSeen, Given, Outcome, PICTURE_LAG, Role, Wanted};
use types::{
    DeviceIndex, EniId, InstanceTable, Ipv6Prefix, Moment, NetworkCard, Prefix, SecurityGroupId, SubnetId,
};

use super::cluster::no_such_group;
use super::foreign::{Foreign, Left};
use super::met::{Manner, Met};
use super::script::{Fault, Lags, Setup};
use crate::rng::Rng;
use ec2_double::{AddressWish, ApiError, AttachState, Config, Instance, Model, NewEni, Tracking};

/// Tag of every ENI that the daemon makes.
pub(super) const INSTANCE_TAG: &str = "node.k8s.amazonaws.com/instance_id";
/// As in the daemon: attempts of a create without an answer, of a delete, and the pauses between them.
const CREATE_ATTEMPTS: u32 = 3;
const DELETE_ATTEMPTS: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
const DETACHING: Duration = Duration::from_secs(6);
/// Where an instance is launched with an ENI for EFA alone: on the second network card.
const EFA_DEVICE: u8 = 2;

/// The cloud around one node.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) model: Model,
    pub(crate) instance: Instance,
    /// The primary one first.
    pub(crate) subnets: Vec<SubnetId>,
    /// Those that keep us out.
    pub(crate) excluded: BTreeSet<SubnetId>,
    /// EC2 tells that nothing is free in any subnet.
    pub(super) crowded: bool,
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) dark_until: Moment,
    pub(crate) denied_until: Moment,
    /// Descriptions are denied until then.
    pub(crate) blind_until: Moment,
    /// What somebody else has taken of the subnet.
    pub(crate) taken: Vec<Ipv4Addr>,
    /// ENIs of other instances that are attached to nothing.
    pub(crate) strays: BTreeMap<EniId, Forsaken>,
    /// Calls that change something, performed or not.
    pub(crate) changes: u64,
    /// ENIs of others on the instance.
    pub(super) foreign: BTreeMap<EniId, Left>,
    /// Which bad manners were met.
    pub(crate) met: Met,
    /// Network cards of the instance.
    pub(super) cards: u8,
    /// ENIs that the first of them has places for.
    pub(super) places: usize,
    pub(super) metadata: bool,
    pub(super) tagged_only: bool,
    lags: Lags,
    /// Until then descriptions lag no more than as a rule.
    pub(super) prompt_until: Moment,
    /// A daemon has looked since the instance was launched.
    pub(super) looked: bool,
    /// When EC2 last confirmed a change.
    pub(super) wrote_at: Moment,
    /// The youngest state that a description has told.
    pub(super) described: Moment,
    latency: Duration,
    tokens: u64,
}

/// An ENI that another instance has left behind.
#[derive(Debug)]
pub(crate) struct Forsaken {
    made: Moment,
    /// When its owner takes it up again.
    claimed_at: Option<Moment>,
    /// When this daemon was first told of it.
    told_at: Option<Moment>,
}

/// As in the daemon: what is younger, or was first seen a shorter time ago, may be about to be attached.
const STRAY: Duration = Duration::from_secs(300);
/// How long a look may take: what it tells last counts from its beginning.
const LOOK: Duration = Duration::from_secs(20);

/// Something that the daemon has the cloud do; makes one call each time it is continued.
#[derive(Debug)]
pub(crate) enum Task {
    /// When it began, by the node's clock, and what the first call told.
    Look(Moment, Option<Picture>),
    /// At instance metadata alone.
    Glance,
    Tidy(VecDeque<Chore>),
    Ipv6(EniId),
    ReleaseIpv6(EniId, Ipv6Prefix),
    Act(ActionId, Act),
}

#[derive(Debug)]
pub(crate) enum Act {
    Assign(EniId, Wanted),
    Release(EniId, Given),
    Create {
        want: Box<NewEni>,
        card: NetworkCard,
        device: DeviceIndex,
        attempt: u32,
    },
    Attach(Box<EniSeen>),
    Tie {
        made: Box<EniSeen>,
        attachment: String,
    },
    /// An ENI that could not be attached, and why.
    Discard {
        eni: EniId,
        why: Option<CloudError>,
        attempt: u32,
    },
    Describe(EniId),
    Detach {
        eni: EniId,
        attachment: String,
    },
    Delete {
        eni: EniId,
        attempt: u32,
    },
}

/// What follows one call.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another one after this time.
    Call(Duration, Box<Task>),
    /// The daemon hears of it after this time.
    Tell(Duration, Box<Event>),
}

impl Cloud {
    pub(crate) fn new(setup: &Setup, rng: &mut Rng, now: Moment) -> Result<Self, ApiError> {
        let mut model = Model::new(Config {
            attach_delay: setup.attach_delay,
            detach_delay: setup.detach_delay,
            seed: rng.percent(50).then(|| rng.next()),
            ..Config::default()
        });
        let cidr = |text: &str| text.parse().map_err(|_bad| ApiError::new("InvalidVpc.Range", text));
        let vpc = model.add_vpc(&[cidr("10.0.0.0/16")?]);
        // Those with several network cards fill a small subnet with what they keep at hand.
        let ranges = match setup.cards {
            true => ["10.0.0.0/22", "10.0.4.0/23", "10.0.6.0/23"],
            false => ["10.0.0.0/24", "10.0.1.0/25", "10.0.2.0/27"],
        };
        let subnet = |range: &&str| model.add_subnet(&vpc, cidr(range)?, "lab-1a");
        let subnets: Vec<SubnetId> =
            ranges.iter().take(setup.subnets.into()).map(subnet).collect::<Result<_, _>>()?;
        let first = subnets.first().ok_or_else(|| ApiError::new("InvalidSubnet", "there is none"))?;
        // Of each network card above the first a pod gets an IPv6 address of that card's own ENI, wherever it is.
        let with_ipv6 = subnets.iter().zip(1..).take(if setup.cards { subnets.len() } else { 1 });
        for (subnet, number) in with_ipv6.filter(|_| setup.dual) {
            model.set_ipv6(subnet, format!("2600:1f13:0:{number}::/64").parse().ok())?;
        }
        let instance = model.launch(setup.instance_type, first, now)?;
        model.remember(now);
        let limits = InstanceTable::builtin().get(setup.instance_type);
        let mut cloud = Self {
            model,
            instance,
            subnets,
            excluded: BTreeSet::new(),
            foreign: BTreeMap::new(),
            met: Met::default(),
            cards: limits.map_or(1, |limits| u8::try_from(limits.cards.len()).unwrap_or(u8::MAX)),
            places: limits.map_or(1, |limits| limits.max_enis.into()),
            crowded: false,
            metadata: setup.metadata,
            tagged_only: setup.tagged_only,
            lags: setup.lags,
            prompt_until: Moment(0),
            looked: false,
            wrote_at: Moment(0),
            described: Moment(0),
            faults: VecDeque::new(),
            dark_until: Moment(0),
            denied_until: Moment(0),
            blind_until: Moment(0),
            taken: Vec::new(),
            strays: BTreeMap::new(),
            changes: 0,
            latency: setup.latency,
            tokens: 0,
        };
        if setup.efa_only {
            cloud.attach_foreign(Foreign::EfaOnly, EFA_DEVICE, 0, now);
        }
        Ok(cloud)
    }

    /// Lets what is due happen.
    pub(crate) fn advance(&mut self, now: Moment) {
        self.model.advance(now);
        self.model.remember(now);
        // Nobody listens to the fabric here.
        while self.model.next_event().is_some() {}
    }

    /// Another instance leaves an ENI behind.
    pub(crate) fn forsake(&mut self, claimed_after: Option<Duration>, now: Moment) {
        let tags = BTreeMap::from([(INSTANCE_TAG.to_owned(), "i-0other".to_owned())]);
        let want = NewEni { tags, ..NewEni::plain(self.instance.subnet.clone()) };
        // A full subnet has no room for it.
        let Ok(eni) = self.model.create_eni(&want) else { return };
        let claimed_at = claimed_after.map(|after| now.plus(after));
        self.strays.insert(eni.id.clone(), Forsaken { made: now, claimed_at, told_at: None });
    }

    /// The daemon is another one now: it remembers nothing of them.
    pub(crate) fn forget_strays(&mut self) {
        self.strays.values_mut().for_each(|stray| stray.told_at = None);
    }

    /// Whether another instance has it, or will take it up again.
    pub(crate) fn is_claimed(&self, eni: &EniId) -> bool {
        self.strays.get(eni).is_some_and(|stray| stray.claimed_at.is_some())
    }

    /// Those that a picture tells.
    pub(super) fn forsaken(&mut self, as_of: Moment, now: Moment) -> Vec<Stray> {
        let there = self
            .strays
            .iter_mut()
            .filter(|(eni, stray)| self.model.eni(eni).is_ok() && stray.claimed_at.is_none_or(|at| now < at));
        let told = there.map(|(eni, stray)| {
            stray.told_at.get_or_insert(now);
            // By the node's clock.
            Stray { eni: eni.clone(), made: as_of.minus(now.since(stray.made)) }
        });
        told.collect()
    }

    /// What deleting one of them meets: its owner has taken it up again.
    fn refuses(&self, eni: &EniId, now: Moment) -> Option<ApiError> {
        let claimed = self.strays.get(eni)?.claimed_at.is_some_and(|at| at <= now);
        claimed.then(|| ApiError::new("InvalidNetworkInterface.InUse", format!("{eni} is in use.")))
    }

    /// The one of them that is to be deleted although it is young, or the daemon was told of it a short while ago.
    pub(super) fn too_early(&self, chores: &[Chore], now: Moment) -> Option<(&EniId, &Forsaken)> {
        let deleted = chores.iter().filter_map(|chore| match chore {
            Chore::Delete(eni) => self.strays.get_key_value(eni),
            Chore::Tie { .. } | Chore::Guard { .. } | Chore::Track { .. } | Chore::Tag { .. } => None,
        });
        let mut unclaimed = deleted.filter(|(_, stray)| stray.claimed_at.is_none_or(|at| now < at));
        unclaimed.find(|(_, stray)| {
            let told_long = stray.told_at.is_some_and(|told| now.since(told) + LOOK >= STRAY);
            now.since(stray.made) < STRAY || !told_long
        })
    }

    /// How far descriptions look into the past now.
    pub(super) fn lags(&self, now: Moment) -> Lags {
        if now < self.prompt_until { self.lags.at_most(PICTURE_LAG) } else { self.lags }
    }

    pub(crate) fn calm(&mut self) {
        self.faults.clear();
        self.dark_until = Moment(0);
        self.denied_until = Moment(0);
        self.blind_until = Moment(0);
        self.lags = Lags::default();
        self.excluded.clear();
        self.vacate();
    }

    /// From now on EC2 tells that nothing is free in any subnet.
    pub(crate) const fn crowd(&mut self) {
        self.crowded = true;
    }

    /// The subnet that the instance is in.
    pub(crate) fn subnet(&self) -> &SubnetId {
        &self.instance.subnet
    }

    /// Somebody else gives back what was taken of the subnet.
    pub(crate) fn vacate(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        // The subnet is there for as long as the model is.
        let _given_back = self.model.vacate(&self.instance.subnet, &taken);
    }

    pub(crate) fn task(&mut self, id: ActionId, action: Action, groups: Vec<SecurityGroupId>) -> Task {
        let act = match action {
            Action::Assign { eni, wanted } => Act::Assign(eni, wanted),
            Action::Release { eni, given } => Act::Release(eni, given),
            Action::DeleteEni { eni } => Act::Describe(eni),
            Action::CreateEni { card, device, subnet, wanted } => {
                self.tokens += 1;
                let tags = BTreeMap::from([(INSTANCE_TAG.to_owned(), self.instance.id.as_str().to_owned())]);
                let token = Some(format!("token-{}", self.tokens));
                let addresses = wish(wanted);
                let want = NewEni { tags, addresses, groups, token, ..NewEni::plain(subnet) };
                Act::Create { want: Box::new(want), card, device, attempt: 1 }
            }
        };
        Task::Act(id, act)
    }

    /// Makes a task's next call.
    pub(crate) fn continue_with(&mut self, task: Task, rng: &mut Rng, now: Moment) -> Next {
        self.advance(now);
        let next = match task {
            Task::Look(as_of, before) => self.look(as_of, before, rng, now),
            Task::Glance => {
                let told = self.as_metadata_tells(rng, now).enis;
                self.tell(Event::Glanced(Ok(told)), rng)
            }
            Task::Tidy(chores) => self.tidy(chores, rng, now),
            Task::Ipv6(eni) => {
                let given = self.change("AssignIpv6Addresses", now, |model| model.assign_ipv6(&eni, 1));
                let prefix = given.map(|given| ipv6_prefixes(&given));
                let none = || CloudError::new(CloudErrorKind::Unclear, "AssignIpv6Addresses", "none");
                let prefix = prefix.and_then(|prefixes| prefixes.first().copied().ok_or_else(none));
                self.tell(Event::Ipv6Assigned(eni, prefix), rng)
            }
            Task::ReleaseIpv6(eni, prefix) => {
                let network = Ipv6Network::new(prefix.first(), Ipv6Prefix::LENGTH);
                let networks: Vec<Ipv6Network> = network.into_iter().collect();
                let release = |model: &mut Model| model.unassign_ipv6(&eni, &networks);
                let result = self.change("UnassignIpv6Addresses", now, release);
                self.tell(Event::Ipv6Released(result), rng)
            }
            Task::Act(id, act) => self.act(id, act, rng, now),
        };
        self.advance(now);
        next
    }

    pub(super) fn delay(&self, rng: &mut Rng) -> Duration {
        let most = u64::try_from(self.latency.as_millis()).unwrap_or(0);
        rng.millis(1, most.max(1))
    }

    pub(super) fn tell(&self, event: Event, rng: &mut Rng) -> Next {
        Next::Tell(self.delay(rng), Box::new(event))
    }

    fn tidy(&mut self, mut chores: VecDeque<Chore>, rng: &mut Rng, now: Moment) -> Next {
        let forgiven: &[CloudErrorKind] = &[CloudErrorKind::Gone, CloudErrorKind::InUse];
        let done = match chores.pop_front() {
            None => return self.tell(Event::Tidied(Ok(())), rng),
            Some(Chore::Delete(eni)) => {
                let refused = self.refuses(&eni, now);
                let delete = |model: &mut Model| refused.map_or_else(|| model.delete_eni(&eni), Err);
                self.change("DeleteNetworkInterface", now, delete)
            }
            Some(Chore::Tie { eni, attachment }) => {
                let tie = |model: &mut Model| model.set_delete_on_termination(&eni, &attachment, true);
                self.change("ModifyNetworkInterfaceAttribute", now, tie)
            }
            Some(Chore::Guard { eni, groups }) => {
                let guard = |model: &mut Model| model.set_groups(&eni, groups);
                self.change("ModifyNetworkInterfaceAttribute", now, guard)
            }
            Some(Chore::Track { eni, tracking }) => {
                let track = |model: &mut Model| model.set_tracking(&eni, timeouts(tracking));
                self.change("ModifyNetworkInterfaceAttribute", now, track)
            }
            Some(Chore::Tag { eni, tags }) => {
                let tags: Vec<_> = tags.into_iter().collect();
                self.change("CreateTags", now, |model| model.set_tags(&[eni.to_string()], &tags))
            }
        };
        match done {
            Err(error) if !forgiven.contains(&error.kind()) => self.tell(Event::Tidied(Err(error)), rng),
            _ => Next::Call(self.delay(rng), Box::new(Task::Tidy(chores))),
        }
    }

    fn act(&mut self, id: ActionId, act: Act, rng: &mut Rng, now: Moment) -> Next {
        match self.step(act, now) {
            Step::Then(pause, act) => Next::Call(pause + self.delay(rng), Box::new(Task::Act(id, act))),
            Step::End(result) => self.tell(Event::Acted { id, result }, rng),
        }
    }

    fn step(&mut self, act: Act, now: Moment) -> Step {
        let at_once = Duration::ZERO;
        match act {
            Act::Assign(eni, wanted) => {
                let granted = self.assign(&eni, &wish(wanted), now);
                Step::End(granted.map(Outcome::Assigned))
            }
            Act::Release(eni, given) => Step::End(self.release(&eni, &given, now)),
            Act::Create { want, card, device, attempt } => {
                let unknown = self.unknown_group(&want);
                let create = |model: &mut Model| unknown.map_or_else(|| model.create_eni(&want), Err);
                match self.change("CreateNetworkInterface", now, create) {
                    Ok(eni) => Step::Then(at_once, Act::Attach(Box::new(self.seen(&eni, card, device)))),
                    Err(error) if error.kind() == CloudErrorKind::Unclear && attempt < CREATE_ATTEMPTS => {
                        Step::Then(RETRY, Act::Create { want, card, device, attempt: attempt + 1 })
                    }
                    Err(error) => Step::End(Err(error)),
                }
            }
            Act::Attach(made) => self.attach(made, now),
            Act::Tie { made, attachment } => {
                // If it fails, the next look finds it.
                let tie = |model: &mut Model| model.set_delete_on_termination(&made.id, &attachment, true);
                let _tied = self.change("ModifyNetworkInterfaceAttribute", now, tie);
                Step::End(Ok(Outcome::Created(made)))
            }
            Act::Discard { eni, why, attempt } => match (self.delete(&eni, attempt, now), why) {
                (Deleted::Yes, Some(why)) => Step::End(Err(why)),
                (Deleted::Yes, None) => Step::End(Ok(Outcome::Deleted)),
                (Deleted::Later, why) => {
                    Step::Then(DETACHING, Act::Discard { eni, why, attempt: attempt + 1 })
                }
                (Deleted::Never(error), _) => Step::End(Err(error)),
            },
            Act::Describe(eni) => {
                if let Some(error) = self.untold(now) {
                    return Step::End(Err(error));
                }
                let seen = self.model.as_of(now, self.lags(now).attached).get(&eni);
                let tie = seen.and_then(|eni| eni.attachment.clone());
                let role = tie.as_ref().map(|tie| self.role(&eni, tie.card, tie.device));
                if role.is_some_and(|role| role != Role::Secondary) {
                    let stays = CloudError::new(CloudErrorKind::Unclear, "DetachNetworkInterface", "stays");
                    return Step::End(Err(stays));
                }
                match tie.filter(|tie| tie.state == AttachState::Attached) {
                    Some(tie) => Step::Then(at_once, Act::Detach { eni, attachment: tie.id }),
                    None => Step::Then(at_once, Act::Delete { eni, attempt: 1 }),
                }
            }
            Act::Detach { eni, attachment } => {
                match self.change("DetachNetworkInterface", now, |model| model.detach(&attachment, now)) {
                    Err(error) if error.kind() != CloudErrorKind::Gone => Step::End(Err(error)),
                    _ => Step::Then(DETACHING, Act::Delete { eni, attempt: 1 }),
                }
            }
            Act::Delete { eni, attempt } => match self.delete(&eni, attempt, now) {
                Deleted::Yes => Step::End(Ok(Outcome::Deleted)),
                Deleted::Later => Step::Then(DETACHING, Act::Delete { eni, attempt: attempt + 1 }),
                Deleted::Never(error) => Step::End(Err(error)),
            },
        }
    }

    /// What making an ENI meets where its security group does not exist.
    fn unknown_group(&mut self, want: &NewEni) -> Option<ApiError> {
        let group = no_such_group().filter(|group| want.groups.contains(group))?;
        self.met.note(Manner::GroupRefused);
        Some(ApiError::new("InvalidGroup.NotFound", format!("The security group '{group}' does not exist")))
    }

    fn attach(&mut self, made: Box<EniSeen>, now: Moment) -> Step {
        let instance = self.instance.id.clone();
        let attach = |model: &mut Model| model.attach(&made.id, &instance, made.card, made.device, now);
        match self.change("AttachNetworkInterface", now, attach) {
            Ok(attachment) => Step::Then(Duration::ZERO, Act::Tie { made, attachment }),
            Err(error) if error.kind() == CloudErrorKind::Unclear => Step::End(Err(error)),
            Err(error) => {
                if matches!(error.kind(), CloudErrorKind::EniLimit | CloudErrorKind::InUse) {
                    self.met.note(Manner::PlaceTaken);
                }
                Step::Then(Duration::ZERO, Act::Discard { eni: made.id, why: Some(error), attempt: 1 })
            }
        }
    }

    fn assign(&mut self, eni: &EniId, wish: &AddressWish, now: Moment) -> Result<Given, CloudError> {
        let half = self.faults.front() == Some(&Fault::Half);
        let wish = if half { wish.clone().halved() } else { wish.clone() };
        if wish.slots() == 0 {
            self.faults.pop_front();
            return Ok(Given::default());
        }
        let granted = self.change("AssignPrivateIpAddresses", now, |model| model.assign(eni, &wish))?;
        Ok(Given {
            addresses: granted.addresses.into_iter().collect(),
            prefixes: prefixes(&granted.prefixes),
        })
    }

    fn release(&mut self, eni: &EniId, given: &Given, now: Moment) -> Result<Outcome, CloudError> {
        let addresses: Vec<Ipv4Addr> = given.addresses.iter().copied().collect();
        let prefixes: Vec<Ipv4Network> =
            given.prefixes.iter().filter_map(|prefix| network(*prefix)).collect();
        let unassign = |model: &mut Model| model.unassign(eni, &addresses, &prefixes);
        self.change("UnassignPrivateIpAddresses", now, unassign).map(|()| Outcome::Released)
    }

    fn delete(&mut self, eni: &EniId, attempt: u32, now: Moment) -> Deleted {
        match self.change("DeleteNetworkInterface", now, |model| model.delete_eni(eni)) {
            Ok(()) => Deleted::Yes,
            Err(error) if error.kind() == CloudErrorKind::Gone => Deleted::Yes,
            Err(_) if attempt < DELETE_ATTEMPTS => Deleted::Later,
            Err(error) => {
                let message = format!("{eni} is detached but cannot be deleted");
                Deleted::Never(
                    CloudError::new(CloudErrorKind::Unclear, "DeleteNetworkInterface", message)
                        .caused_by(error),
                )
            }
        }
    }

    /// One call that changes something.
    fn change<T>(
        &mut self,
        call: &'static str,
        now: Moment,
        perform: impl FnOnce(&mut Model) -> Result<T, ApiError>,
    ) -> Result<T, CloudError> {
        self.changes += 1;
        if now < self.dark_until {
            return Err(CloudError::new(CloudErrorKind::Unreachable, call, "dark"));
        }
        if now < self.denied_until {
            return Err(refusal(call, &ApiError::new("UnauthorizedOperation", "denied")));
        }
        let silence = || CloudError::new(CloudErrorKind::Unclear, call, "no answer");
        match self.faults.pop_front() {
            None | Some(Fault::Half) => {
                let done = perform(&mut self.model).map_err(|error| refusal(call, &error))?;
                self.wrote_at = now;
                Ok(done)
            }
            Some(Fault::LoseAnswer) => {
                drop(perform(&mut self.model));
                Err(silence())
            }
            Some(Fault::LoseRequest | Fault::Garbage) => Err(silence()),
            Some(Fault::Throttle) => Err(refusal(call, &ApiError::new("RequestLimitExceeded", "slow down"))),
        }
    }

    /// Addresses from which packets of the instance pass, and that are no ENI's primary one.
    pub(crate) fn allowed(&self) -> BTreeSet<Ipv4Addr> {
        let enis = self.model.enis_of(&self.instance.id).filter(|eni| !self.is_closed(&eni.id));
        enis.flat_map(|eni| eni.sources().into_iter().filter(|address| *address != eni.primary)).collect()
    }
}

enum Step {
    Then(Duration, Act),
    End(Result<Outcome, CloudError>),
}

enum Deleted {
    Yes,
    Later,
    Never(CloudError),
}

fn refusal(call: &'static str, error: &ApiError) -> CloudError {
    CloudError::answered(call, Effect::Changes, error.http, &error.code, &error.message)
}

fn timeouts(tracking: ConnectionTracking) -> Tracking {
    let seconds = |timeout: Option<i32>| timeout.and_then(|timeout| u32::try_from(timeout).ok());
    Tracking {
        tcp_established: seconds(tracking.tcp_established),
        udp_stream: seconds(tracking.udp_stream),
        udp: seconds(tracking.udp),
    }
}

fn wish(wanted: Wanted) -> AddressWish {
    match wanted {
        Wanted::Addresses(n) => AddressWish::count(n),
        Wanted::Prefixes(n) => AddressWish::prefix_count(n),
    }
}

fn network(prefix: Prefix) -> Option<Ipv4Network> {
    Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok()
}

pub(crate) fn ipv6_prefixes(networks: &[Ipv6Network]) -> BTreeSet<Ipv6Prefix> {
    networks.iter().map(|network| Ipv6Prefix::of(network.ip())).collect()
}

pub(crate) fn prefixes(networks: &[Ipv4Network]) -> BTreeSet<Prefix> {
    networks.iter().map(|network| Prefix::of(network.ip())).collect()
}
