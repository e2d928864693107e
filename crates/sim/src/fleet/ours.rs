//! Our daemon: the real `Node`, with a disk and a kernel that obey at once and cloud tasks as the daemon's.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use node::cloud::{CloudError, Effect as Kind};
use node::{CallId, Chore, Effect, Event, Facts, HostMade, Node, Picture, Settings, Subnets};
use pool::{Action, ActionId, EniSeen, Outcome, Pool, Role, Targets};
use types::{
    DeviceIndex, EniId, InstanceLimits, Moment, NetworkCard, PodName, SandboxKey, SubnetId, VethPrefix,
};
use wire::{Attachment, Detachment, PROTOCOL, Reply, Request, Verb};

use super::daemon::{Happening, Sandbox, WIRING, Want};
use super::errand::{Deed, Errand, Purpose, Refusal, Step, Tries};
use super::instance::{Eni, Instance, State};

/// As the daemon's SDK reads: three attempts, the first pause up to a second.
const READS: Tries = Tries::sdk(3, Duration::from_secs(1));
/// As the daemon deletes an ENI that is being detached.
const DETACHING: Duration = Duration::from_secs(6);
const DELETES: Tries = Tries::ONCE.rounds(5, DETACHING);
/// What instance metadata takes to tell some ENIs.
const GLANCING: Duration = Duration::from_millis(50);
/// As the plugin's.
const PATIENCE_MS: u32 = 90_000;

/// The daemon on one node.
#[derive(Debug)]
pub(crate) struct Ours {
    node: Node,
    facts: Facts,
    /// The range of its subnet, which is never short.
    subnet: Ipv4Network,
    ready: bool,
    looked: bool,
    /// ADDs that were not answered.
    adds: BTreeMap<CallId, Sandbox>,
    last_call: u64,
}

impl Ours {
    pub(crate) fn new(
        targets: Targets,
        prefixes: bool,
        limits: &InstanceLimits,
        seed: u64,
        now: Moment,
    ) -> Option<Self> {
        let settings = Settings {
            targets,
            prefix_delegation: prefixes,
            // Nobody else changes kernels here.
            repair_every: Duration::from_secs(3600),
            ..Settings::plain()
        };
        let facts = Facts {
            instance: "i-1".parse().ok()?,
            limits: limits.clone(),
            primary_address: Ipv4Addr::new(10, 0, 0, 1),
            subnet: "subnet-1".parse().ok()?,
            vpc_cidrs: Vec::new(),
            ipv6: None,
        };
        let pool = Pool::new(settings.cooldown);
        let node = Node::new(settings, pool, seed, now);
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 0, 0, 0), 8).ok()?;
        Some(Self { node, facts, subnet, ready: false, looked: false, adds: BTreeMap::new(), last_call: 0 })
    }

    pub(crate) fn wakeup(&self, now: Moment) -> Moment {
        self.node.next_wakeup(now)
    }

    pub(crate) fn handle(&mut self, happening: Happening, instance: &Instance, now: Moment) -> Vec<Want> {
        let Some(event) = self.event(happening, instance, now) else { return Vec::new() };
        let mut wants = Vec::new();
        let mut effects: VecDeque<Effect> = self.node.handle(event, now).into();
        while let Some(effect) = effects.pop_front() {
            if let Some(at_once) = self.obey(effect, instance, now, &mut wants) {
                effects.extend(self.node.handle(at_once, now));
            }
        }
        if !self.ready && self.node.report(now).not_ready.is_empty() {
            self.ready = true;
            wants.push(Want::Ready);
        }
        wants
    }

    fn event(&mut self, happening: Happening, instance: &Instance, now: Moment) -> Option<Event> {
        Some(match happening {
            Happening::Start => Event::Identified(Box::new(self.facts.clone())),
            Happening::Add(sandbox) => {
                let call = self.call(add(sandbox)?, now);
                self.adds.insert(CallId(self.last_call), sandbox);
                call
            }
            Happening::Del(sandbox) => self.call(del(sandbox)?, now),
            Happening::Wired(id) => Event::Wired { id, result: Ok(()) },
            Happening::Glanced => Event::Glanced(Ok(self.picture(now, &instance.enis).enis)),
            Happening::Done(errand) => self.told(*errand, instance)?,
            Happening::Tick => Event::Tick,
            Happening::Sweep => return None,
        })
    }

    fn call(&mut self, verb: Verb, now: Moment) -> Event {
        self.last_call += 1;
        let started_ns = now.0 * 1_000_000 + self.last_call % 1_000_000;
        let request = Request { version: PROTOCOL, patience_ms: PATIENCE_MS, started_ns, trace: None, verb };
        Event::Call { id: CallId(self.last_call), request, descriptors: true }
    }

    /// Does what is done at once and gives what comes of it, or puts it among the wants.
    fn obey(
        &mut self,
        effect: Effect,
        instance: &Instance,
        now: Moment,
        wants: &mut Vec<Want>,
    ) -> Option<Event> {
        match effect {
            Effect::Append(batch, _) => return Some(Event::Written { batch, result: Ok(()) }),
            Effect::Converge { generation, host } => {
                let there = |mac| linked(instance, mac, now);
                let missing = host.node.enis.iter().map(|eni| eni.mac).filter(|mac| !there(*mac)).collect();
                let result = Ok(HostMade { missing, ..HostMade::default() });
                return Some(Event::Converged { generation, result });
            }
            Effect::Reply(call, reply) => {
                let good = matches!(reply, Reply::Added(_));
                let answer =
                    self.adds.remove(&call).map(|sandbox| Want::Answer(sandbox, good, Duration::ZERO));
                wants.extend(answer);
            }
            Effect::Wire(call, _) => wants.push(Want::Hear(WIRING, Happening::Wired(call))),
            Effect::Look => {
                // What is attached, what is not, and the subnets; those of before are used where the last are not known. The first
                // look of a node that has just started asks instance metadata for all but the subnets.
                let look = || Step::must(Deed::Look, READS);
                let subnets = Step::may(Deed::DescribeSubnets, READS);
                let fresh = !std::mem::replace(&mut self.looked, true);
                let steps = if fresh { vec![subnets] } else { vec![look(), look(), subnets] };
                wants.push(Want::Run(Errand::new(Purpose::Look(now), None, steps)));
            }
            Effect::Glance => wants.push(Want::Hear(GLANCING, Happening::Glanced)),
            Effect::Act { id, action, .. } => wants.push(Want::Run(errand(id, action))),
            Effect::Tidy(chores) => wants.push(Want::Run(tidy(chores))),
            Effect::Check(..)
            | Effect::Enforce { .. }
            | Effect::Forget(_)
            | Effect::Survey(_)
            | Effect::Mend(_)
            | Effect::Unwire(_)
            | Effect::Waited(..)
            | Effect::Tell(_)
            | Effect::Annotate(_)
            | Effect::Features(_)
            // Its pods have IPv4 addresses alone.
            | Effect::AssignIpv6(_)
            | Effect::AskRange(..)
            | Effect::Remember(_)
            | Effect::ReleaseIpv6(..)
            | Effect::Publish
            | Effect::Checkpoint(_)
            | Effect::Rewrite(..) => {}
        }
        None
    }

    fn told(&self, errand: Errand, instance: &Instance) -> Option<Event> {
        let refused = errand.refused;
        Some(match errand.purpose {
            Purpose::Look(as_of) => Event::Looked(match refused {
                // Then instance metadata is asked.
                Some(Refusal::Throttled) => {
                    let told = self.picture(as_of, &instance.enis);
                    Ok(Picture { from_metadata: true, chores: Vec::new(), choice: None, ..told })
                }
                Some(refusal) => Err(error("DescribeNetworkInterfaces", Kind::Reads, refusal)),
                // Instance metadata tells what is there, and nothing of what is to be done about it.
                None if errand.found.is_empty() => {
                    let told = self.picture(as_of, &instance.enis);
                    Ok(Picture { from_metadata: true, chores: Vec::new(), ..told })
                }
                None => Ok(self.picture(as_of, &errand.found)),
            }),
            Purpose::Tidy => {
                let error = |refusal| error("DeleteNetworkInterface", Kind::Changes, refusal);
                Event::Tidied(refused.map_or(Ok(()), |refusal| Err(error(refusal))))
            }
            Purpose::Act(id, action) => {
                let result = match refused {
                    Some(refusal) => Err(error("a change", Kind::Changes, refusal)),
                    None => Ok(self.outcome(&action, errand.eni.as_ref(), errand.given, instance)?),
                };
                Event::Acted { id, result }
            }
            Purpose::Init
            | Purpose::Fill(_)
            | Purpose::Another
            | Purpose::GiveBack
            | Purpose::Delete
            | Purpose::Sweep => return None,
        })
    }

    fn outcome(
        &self,
        action: &Action,
        eni: Option<&EniId>,
        given: pool::Given,
        instance: &Instance,
    ) -> Option<Outcome> {
        Some(match action {
            Action::Assign { .. } => Outcome::Assigned(given),
            Action::Release { .. } => Outcome::Released,
            Action::DeleteEni { .. } => Outcome::Deleted,
            Action::CreateEni { device, .. } => {
                Outcome::Created(Box::new(seen(instance.eni(eni?)?, *device, &self.facts.subnet)))
            }
        })
    }

    fn picture(&self, as_of: Moment, found: &[Eni]) -> Picture {
        let subnet = &self.facts.subnet;
        let choice = Subnets {
            for_new: vec![subnet.clone()],
            free: [(subnet.clone(), self.subnet.size())].into(),
            ..Subnets::default()
        };
        let subnets = [(subnet.clone(), self.subnet)].into();
        let mut picture = Picture { as_of, subnets, choice: Some(choice), ..Picture::default() };
        for eni in found {
            match eni.state {
                State::Available => picture.chores.push(Chore::Delete(eni.id.clone())),
                State::Leaving(device, _) => {
                    picture.in_motion = true;
                    picture.occupied.insert((NetworkCard(0), device));
                }
                State::Attached(device, _) => {
                    picture.enis.push(seen(eni, device, &self.facts.subnet));
                    picture.chores.extend(duties(eni));
                }
            }
        }
        picture
    }
}

/// An action, call by call as the daemon's cloud tasks carry it out: what changes something is tried once.
fn errand(id: ActionId, action: Action) -> Errand {
    let once = |deed| Step::must(deed, Tries::ONCE);
    let (eni, steps) = match &action {
        Action::Assign { eni, wanted } => (Some(eni.clone()), vec![once(Deed::Assign(*wanted))]),
        Action::Release { eni, given } => (Some(eni.clone()), vec![once(Deed::Unassign(given.clone()))]),
        Action::CreateEni { device, wanted, .. } => {
            let undo = vec![Step::must(Deed::Delete, DELETES)];
            let steps = vec![
                once(Deed::Create(*wanted)),
                Step::or_undo(Deed::Attach(*device), Tries::ONCE, undo),
                Step::may(Deed::Tie, Tries::ONCE),
            ];
            (None, steps)
        }
        Action::DeleteEni { eni } => {
            let steps = vec![
                Step::must(Deed::Look, READS),
                once(Deed::Detach),
                Step::quiet(Deed::Rest(DETACHING)),
                Step::must(Deed::Delete, DELETES),
            ];
            (Some(eni.clone()), steps)
        }
    };
    Errand::new(Purpose::Act(id, Box::new(action)), eni, steps)
}

/// All chores that can be done; whether one cannot is told.
fn tidy(chores: Vec<Chore>) -> Errand {
    let steps = |chore| {
        let (eni, deed) = match chore {
            Chore::Delete(eni) => (eni, Deed::Delete),
            Chore::Tie { eni, .. } => (eni, Deed::Tie),
            // One call each, of the same API.
            Chore::Guard { eni, .. } | Chore::Track { eni, .. } => (eni, Deed::SetGroups),
            Chore::Tag { eni, .. } => (eni, Deed::Tag),
        };
        [Step::quiet(Deed::About(eni)), Step::each(deed, Tries::ONCE)]
    };
    Errand::new(Purpose::Tidy, None, chores.into_iter().flat_map(steps).collect())
}

/// What is left to do about an ENI that is attached.
fn duties(eni: &Eni) -> impl Iterator<Item = Chore> {
    let tie = || Chore::Tie { eni: eni.id.clone(), attachment: String::new() };
    let tag = || Chore::Tag { eni: eni.id.clone(), tags: BTreeMap::new() };
    (!eni.tied).then(tie).into_iter().chain((!eni.tagged).then(tag))
}

fn error(call: &'static str, kind: Kind, refusal: Refusal) -> CloudError {
    match refusal {
        Refusal::Throttled => {
            CloudError::answered(call, kind, 503, "RequestLimitExceeded", "Request limit exceeded.")
        }
        Refusal::InUse => CloudError::new(node::cloud::CloudErrorKind::Unclear, call, "it is still attached"),
    }
}

fn linked(instance: &Instance, mac: types::Mac, now: Moment) -> bool {
    let eni = instance.enis.iter().find(|eni| eni.mac == mac);
    eni.is_some_and(|eni| matches!(eni.state, State::Attached(_, there) if there <= now))
}

fn seen(eni: &Eni, device: DeviceIndex, subnet: &SubnetId) -> EniSeen {
    EniSeen {
        id: eni.id.clone(),
        mac: eni.mac,
        card: NetworkCard(0),
        device,
        subnet: subnet.clone(),
        primary_address: eni.primary_address,
        addresses: eni.given.addresses.clone(),
        prefixes: eni.given.prefixes.clone(),
        role: if device == DeviceIndex(0) { Role::Primary } else { Role::Secondary },
    }
}

fn key(sandbox: Sandbox) -> Option<SandboxKey> {
    SandboxKey::new("aws-cni", &format!("p{}x{}", sandbox.pod, sandbox.attempt), "eth0").ok()
}

fn name(sandbox: Sandbox) -> PodName {
    PodName { namespace: "default".to_owned(), name: format!("pod-{}", sandbox.pod) }
}

fn add(sandbox: Sandbox) -> Option<Verb> {
    Some(Verb::Add(Attachment {
        sandbox: key(sandbox)?,
        netns: String::new(),
        pod: name(sandbox),
        pod_uid: String::new(),
        veth_prefix: VethPrefix::default(),
        mtu: 9001,
        multi_nic: false,
    }))
}

fn del(sandbox: Sandbox) -> Option<Verb> {
    Some(Verb::Del(Detachment {
        sandbox: key(sandbox)?,
        pod: name(sandbox),
        veth_prefix: VethPrefix::default(),
        addresses: Vec::new(),
    }))
}
