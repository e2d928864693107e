//! Requests: who gets which address, who waits, who is superseded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use datapath::PodSpec;
use ipnetwork::IpNetwork;
use pool::{Further, Grant, Owner, Shortage};
use types::{
    Branch, DeviceIndex, HostVeth, Moment, NetworkCard, PodName, Reason, SandboxKey, TableId, VethPrefix,
};
use wire::{Added, Attachment, BranchTold, Failure, Interface, Reply, Request, Verb};

use super::branches::Claim;
use super::event::{BatchId, CallId, Effect};
use super::{Node, Settings};
use crate::families::ipv6_among;
use crate::store::Record;

/// What is kept back of a caller's patience, so that it gets our answer instead of its own timeout.
const MARGIN: Duration = Duration::from_millis(500);
/// What is kept of it for the work of kernel, disk and policy agent, once there is an address; of a short one a quarter.
const WORK: Duration = Duration::from_secs(2);
/// How long before its deadline an ADD takes an address that still cools, rather than none.
const PRESSED: Duration = Duration::from_secs(2);
/// How long the network policy agent may take for a pod; it loads programs into the kernel. At least the first of the two, whatever
/// is left of the caller's patience.
const ENFORCING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// MTU when the caller names one that cannot be; what the Go version falls back to.
pub(super) const MTU_DEFAULT: u32 = 9001;

/// Who gets addresses that still cool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Early<'a> {
    /// Nobody.
    Never,
    /// Those whose own time is nearly up, of these network cards.
    Pressed(&'a [NetworkCard]),
    /// All, of these network cards: nothing else is to be had there.
    On(&'a [NetworkCard]),
}

impl<'a> Early<'a> {
    const fn cards(self) -> &'a [NetworkCard] {
        match self {
            Self::Never => &[],
            Self::Pressed(cards) | Self::On(cards) => cards,
        }
    }
}

/// A request that has not been answered.
#[derive(Debug)]
pub(super) enum Pending {
    /// ADD.
    Add(Box<Add>),
    /// DEL or GC, waiting for the state file.
    Release {
        /// What it waits for.
        batch: BatchId,
        /// What it will be told.
        reply: Reply,
    },
    /// CHECK, waiting for the kernel.
    Check,
}

impl Pending {
    /// When an ADD that is at work has to be answered all the same.
    fn answer_due(&self) -> Option<Moment> {
        match self {
            Self::Add(add) => match &add.phase {
                Phase::Working(work) if !work.given_up => Some(add.answer_by),
                Phase::Working(_) | Phase::Waiting(..) => None,
            },
            Self::Release { .. } | Self::Check => None,
        }
    }
}

/// An ADD in progress.
#[derive(Debug)]
pub(super) struct Add {
    pub(super) attachment: Attachment,
    /// Name of its first host end: a hash, and asked for at every event while it waits.
    host_if: HostVeth,
    pub(super) since: Moment,
    pub(super) deadline: Moment,
    /// When its caller has to have an answer, whatever is still at work.
    answer_by: Moment,
    pub(super) phase: Phase,
    /// For which reasons it was said in the cluster that it is held.
    pub(super) told: BTreeSet<Reason>,
}

/// How far an ADD has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// In the queue, for this reason, for want of an address of this network card.
    Waiting(Reason, NetworkCard),
    /// All its addresses are reserved; kernel and disk are at work, at the same time.
    Working(Box<Work>),
}

/// What an ADD with its addresses waits for.
#[derive(Debug)]
pub(super) struct Work {
    interfaces: Vec<Reserved>,
    batch: BatchId,
    wired: Option<Result<(), Failure>>,
    /// What the network policy agent says; nothing, where there is none to ask.
    enforced: Option<Result<(), Failure>>,
    written: Option<Result<(), String>>,
    /// DELs of this sandbox that came meanwhile.
    deleters: Vec<CallId>,
    /// Whether its caller was told that its time is up.
    given_up: bool,
}

impl Work {
    /// Who has not answered yet.
    fn lacks(&self) -> &'static str {
        match (&self.wired, &self.written) {
            (None, None) => "kernel and disk are",
            (None, Some(_)) => "the kernel is",
            (Some(_), None) => "the disk is",
            (Some(_), Some(_)) => "the network policy agent is",
        }
    }
}

/// One interface of a pod with its address.
#[derive(Debug, Clone)]
struct Reserved {
    sandbox: SandboxKey,
    grant: Grant,
    pod: PodSpec,
}

impl Node {
    pub(super) fn call(&mut self, id: CallId, request: Request, descriptors: bool, now: Moment) {
        let patience = Duration::from_millis(request.patience_ms.into());
        match request.verb {
            Verb::Add(attachment) if !descriptors => self.fail_add(id, &attachment, no_descriptors()),
            Verb::Check(_) if !descriptors => self.fail(id, no_descriptors()),
            Verb::Add(attachment) => {
                self.reasons.asked(id, attachment.pod.clone());
                self.add(id, attachment, request.started_ns, patience, now);
            }
            Verb::Del(detachment) => self.del(id, &detachment, request.started_ns, now),
            Verb::Check(attachment) => self.check(id, &attachment),
            Verb::Gc { network_name, valid } => self.gc(id, &network_name, &valid, now),
            Verb::Status => self.status(id),
            Verb::Report => {
                let report = self.report(now);
                self.reply(id, Reply::Report(Box::new(report)));
            }
        }
    }

    fn add(&mut self, id: CallId, attachment: Attachment, started_ns: u64, patience: Duration, now: Moment) {
        let sandbox = &attachment.sandbox;
        if self.released.get(sandbox).is_some_and(|released_ns| *released_ns >= started_ns) {
            let message = format!("sandbox {sandbox} was deleted after this ADD had started");
            return self.fail_add(id, &attachment, Failure::new(Reason::Superseded, message));
        }
        if attachment.multi_nic && !self.settings.multi_nic {
            let message =
                "the pod asks for an address of every network card, and ENABLE_MULTI_NIC is not set";
            return self.fail_add(id, &attachment, Failure::new(Reason::NoMultiNic, message));
        }
        if self.adding.contains_key(sandbox) {
            let message = format!("sandbox {sandbox} is being added already");
            return self.fail_add(id, &attachment, Failure::new(Reason::Busy, message));
        }
        let patience = patience.saturating_sub(MARGIN);
        let held = patience.saturating_sub(WORK.min(patience / 4)).min(self.settings.add_timeout);
        self.adding.insert(sandbox.clone(), id);
        self.queue.push_back(id);
        let phase = Phase::Waiting(Reason::PoolEmpty, NetworkCard(0));
        let Attachment { sandbox, pod, veth_prefix, .. } = &attachment;
        let host_if = host_if_of(sandbox, pod, veth_prefix, 0);
        let (deadline, answer_by, told) = (now.plus(held), now.plus(patience), BTreeSet::new());
        let add = Add { attachment, host_if, since: now, deadline, answer_by, phase, told };
        self.pending.insert(id, Pending::Add(Box::new(add)));
    }

    /// Gives addresses to those who wait, first come first served.
    pub(super) fn serve(&mut self, now: Moment) {
        self.serve_with(now, Early::Never);
    }

    /// The same with addresses that still cool (I8): all those who wait, on the network cards where nothing else can be had. While
    /// more can be had, or is on its way, they can wait for it, or for an address to cool, but not beyond their time: EC2 may not
    /// answer at all.
    pub(super) fn serve_early(&mut self, now: Moment) {
        if self.queue.is_empty() {
            return;
        }
        let has_no_more = |card: &NetworkCard| {
            let more = self.why_pool_short(*card, now);
            !self.growing(*card) && !matches!(more, Some(Reason::PoolEmpty | Reason::SubnetFull))
        };
        let bare: Vec<NetworkCard> = self.pool.cards().iter().copied().filter(has_no_more).collect();
        if !bare.is_empty() {
            self.serve_with(now, Early::On(&bare));
        }
        if self.deadlines().any(|deadline| deadline.since(now) <= PRESSED) {
            let all = self.pool.cards().to_vec();
            self.serve_with(now, Early::Pressed(&all));
        }
    }

    fn serve_with(&mut self, now: Moment, early: Early<'_>) {
        if self.queue.is_empty() {
            return;
        }
        let starting = !self.missing().is_empty();
        let mut waiting = std::mem::take(&mut self.queue);
        let all = self.pool.cards().iter().filter(|_| starting);
        let mut short: BTreeMap<NetworkCard, Reason> = all.map(|card| (*card, self.why_starting())).collect();
        waiting.retain(|id| {
            // Those with time wait on, also before others who have none.
            if matches!(early, Early::Pressed(_)) && !self.is_pressed(*id, now) {
                return true;
            }
            let Some((reason, card)) = self.serve_one(*id, &mut short, early.cards(), now) else {
                return false;
            };
            if let Some(Pending::Add(add)) = self.pending.get_mut(id) {
                add.phase = Phase::Waiting(reason, card);
            }
            true
        });
        self.queue = waiting;
    }

    /// Whether an ADD that waits has next to no time left.
    fn is_pressed(&self, id: CallId, now: Moment) -> bool {
        self.deadline_of(&id).is_some_and(|deadline| deadline.since(now) <= PRESSED)
    }

    /// Starts one ADD, or says why it has to wait and for which network card. Nobody gets an address of a card that those before
    /// had none of (`short`); one that waits for its name, or for another card, holds up nobody else.
    fn serve_one(
        &mut self,
        id: CallId,
        short: &mut BTreeMap<NetworkCard, Reason>,
        early: &[NetworkCard],
        now: Moment,
    ) -> Option<(Reason, NetworkCard)> {
        let Some(Pending::Add(add)) = self.pending.get(&id) else { return None };
        if let Some(reason) = self.still_waits(add, short) {
            return Some(reason);
        }
        let claim = self.claim(add, now);
        if claim.owners().into_iter().any(|owner| self.name_taken(&owner.host_if, &owner.sandbox)) {
            return Some((Reason::NameInUse, NetworkCard(0)));
        }
        let mut wants = match claim {
            Claim::Pool(wants) => wants,
            Claim::Branch(owner, address) => return self.serve_branch(id, *owner, address, now),
            Claim::Unknown(reason) => return Some((reason, NetworkCard(0))),
            Claim::Never(failure) => {
                if let Some(add) = self.leave_queue(id, now) {
                    self.fail_add(id, &add.attachment, failure);
                }
                return None;
            }
        };
        for want in &mut wants {
            let first = want.cards.first().copied().unwrap_or_default();
            want.cards.retain(|card| !short.contains_key(card));
            if let (true, Some(reason)) = (want.cards.is_empty(), short.get(&first)) {
                return Some((*reason, first));
            }
        }
        match self.pool.reserve_all(wants.clone(), early, now) {
            Ok(grants) => {
                self.ends_waiting(id, now);
                let owners = wants.into_iter().map(|want| want.owner);
                self.start(id, owners.zip(grants).collect());
                None
            }
            Err(Shortage { card, .. }) => {
                let lacking = wants.iter().find(|want| want.cards.first() == Some(&card));
                let cards = lacking.map(|want| want.cards.as_slice()).unwrap_or_default();
                let why = self.why_short(card, now);
                let of = |other: &NetworkCard| if *other == card { why } else { self.why_short(*other, now) };
                short.extend(cards.iter().map(|card| (*card, of(card))));
                Some((why, card))
            }
        }
    }

    /// Why an ADD for one address of any card has to wait, where that is plain without looking at the pool.
    fn still_waits(&self, add: &Add, short: &BTreeMap<NetworkCard, Reason>) -> Option<(Reason, NetworkCard)> {
        if add.attachment.multi_nic || self.settings.pod_eni {
            return None;
        }
        if self.name_taken(&add.host_if, &add.attachment.sandbox) {
            return Some((Reason::NameInUse, NetworkCard(0)));
        }
        let cards = self.pool.cards();
        let first = cards.first().filter(|_| cards.iter().all(|card| short.contains_key(card)))?;
        Some((*short.get(first)?, *first))
    }

    /// Starts an ADD with its branch ENI, or says why it has to wait.
    fn serve_branch(
        &mut self,
        id: CallId,
        owner: Owner,
        address: Ipv4Addr,
        now: Moment,
    ) -> Option<(Reason, NetworkCard)> {
        let Some(grant) = self.pool.hold(owner.clone(), address) else {
            return Some((Reason::NoBranchEni, NetworkCard(0)));
        };
        self.ends_waiting(id, now);
        self.start(id, vec![(owner, grant)]);
        None
    }

    /// An ADD got its address, or its time is up: what it has waited for is logged and counted.
    fn ends_waiting(&mut self, id: CallId, now: Moment) {
        let Some(Pending::Add(add)) = self.pending.get(&id) else { return };
        if let Phase::Waiting(reason, _) = add.phase
            && now > add.since
        {
            let (pod, waited) = (&add.attachment.pod, now.since(add.since));
            tracing::info!(%reason, %pod, waited_ms = waited.as_millis(), "an ADD had to wait");
            self.effects.push(Effect::Waited(reason, waited));
        }
    }

    /// Names of host ends that an ADD waits for, because others have them.
    pub(super) fn names_wanted(&self, add: &Add) -> Vec<HostVeth> {
        if add.reason().0 != Reason::NameInUse {
            return Vec::new();
        }
        let claim = self.claim(add, Moment(0));
        let taken =
            claim.owners().into_iter().filter(|owner| self.name_taken(&owner.host_if, &owner.sandbox));
        taken.map(|owner| owner.host_if.clone()).collect()
    }

    /// Whether another live sandbox has the host interface that this one would get.
    fn name_taken(&self, host_if: &HostVeth, by: &SandboxKey) -> bool {
        self.pool.holder_of(host_if).is_some_and(|holder| holder != by)
    }

    /// Sets kernel and disk to work; the caller hears when both are done (I4).
    fn start(&mut self, id: CallId, granted: Vec<(Owner, Grant)>) {
        let batch = self.next_batch();
        let Some(Pending::Add(add)) = self.pending.get(&id) else { return };
        let mtu = mtu_of(add.attachment.mtu);
        let (mut interfaces, mut records) = (Vec::new(), Vec::new());
        for (mut owner, grant) in granted {
            if owner.branch.is_none() {
                let ipv6 = self.ipv6_beside(&owner, &grant);
                owner.ipv6 = self.pool.note_ipv6(&owner.sandbox, ipv6);
            }
            let pod = self.settings.families.pod_spec(&owner, grant.address, mtu);
            // A plugin that was called with the configuration of before: its packets must be known as a pod's.
            self.host.dirty |= owner.host_if.prefix().as_ref() != Some(&self.settings.veth_prefix);
            let card = grant.place.as_ref().map(|place| place.card);
            records.push(Record::Assigned { owner: owner.clone(), address: grant.address, card });
            interfaces.push(Reserved { sandbox: owner.sandbox, grant, pod });
        }
        let pods = interfaces.iter().map(|interface| interface.pod.clone()).collect();
        let asks_agent = has_policies(&self.settings, &add.attachment.pod);
        let enforced = (!asks_agent).then_some(Ok(()));
        let (wired, written, deleters) = (None, None, Vec::new());
        let work = Work { interfaces, batch, wired, enforced, written, deleters, given_up: false };
        if let Some(Pending::Add(add)) = self.pending.get_mut(&id) {
            add.phase = Phase::Working(Box::new(work));
        }
        self.effects.push(Effect::Wire(id, pods));
        self.effects.push(Effect::Append(batch, records));
    }

    pub(super) fn wired(&mut self, id: CallId, result: Result<(), Failure>, now: Moment) {
        let Some(Pending::Add(add)) = self.pending.get_mut(&id) else { return };
        let Phase::Working(work) = &mut add.phase else { return };
        // The agent attaches to the host's end of the pair, so that must be there; the disk may still be at work.
        match (&result, &work.enforced) {
            (Ok(()), None) if !work.given_up && work.deleters.is_empty() => {
                let (least, most) = ENFORCING;
                let patience = add.answer_by.since(now).saturating_sub(MARGIN).clamp(least, most);
                let (pod, interfaces) = (add.attachment.pod.clone(), work.interfaces.len());
                self.effects.push(Effect::Enforce { id, pod, interfaces, patience });
            }
            (Ok(()), Some(_)) => {}
            // Nothing to enforce anything on, or nothing that stays.
            (Ok(()), None) | (Err(_), _) => work.enforced = Some(Ok(())),
        }
        work.wired = Some(result);
        self.finish(id, now);
    }

    /// The network policy agent has answered, or does not.
    pub(super) fn enforced(&mut self, id: CallId, result: Result<(), Failure>, now: Moment) {
        if let Some(work) = self.work(id) {
            work.enforced = Some(result);
            self.finish(id, now);
        }
    }

    /// Has the network policy agent forget a pod.
    pub(super) fn forget_policies(&mut self, pod: &PodName) {
        if has_policies(&self.settings, pod) {
            self.effects.push(Effect::Forget(pod.clone()));
        }
    }

    pub(super) fn written(&mut self, batch: BatchId, result: Result<(), String>, now: Moment) {
        self.intended(batch, &result, now);
        self.ipv6_intended(batch, &result);
        let waits = |pending: &Pending| match pending {
            Pending::Add(add) => matches!(&add.phase, Phase::Working(work) if work.batch == batch),
            Pending::Release { batch: own, .. } => *own == batch,
            Pending::Check => false,
        };
        let ids: Vec<CallId> = self.pending.iter().filter(|(_, p)| waits(p)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(work) = self.work(id) {
                work.written = Some(result.clone());
                self.finish(id, now);
            } else if let Some(Pending::Release { reply, .. }) = self.pending.remove(&id) {
                // Also when the disk refuses: the kernel knows that the pod is gone, and a restart asks the kernel.
                self.effects.push(Effect::Reply(id, reply));
            }
        }
    }

    fn work(&mut self, id: CallId) -> Option<&mut Work> {
        match self.pending.get_mut(&id)? {
            Pending::Add(add) => match &mut add.phase {
                Phase::Working(work) => Some(work),
                Phase::Waiting(..) => None,
            },
            Pending::Release { .. } | Pending::Check => None,
        }
    }

    /// Ends an ADD once kernel, disk and network policy agent have answered: with all of its interfaces or with none (I15). One that
    /// is deleted, or given up, does not wait for the agent.
    fn finish(&mut self, id: CallId, now: Moment) {
        let Some(work) = self.work(id) else { return };
        let (Some(wired), Some(written)) = (work.wired.clone(), work.written.clone()) else { return };
        if work.enforced.is_none() && work.deleters.is_empty() && !work.given_up {
            return;
        }
        let enforced = work.enforced.clone().unwrap_or(Ok(()));
        let given_up = work.given_up;
        let (interfaces, deleters) =
            (std::mem::take(&mut work.interfaces), std::mem::take(&mut work.deleters));
        let Some(Pending::Add(add)) = self.pending.remove(&id) else { return };
        let Attachment { sandbox, pod: name, .. } = &add.attachment;
        self.adding.remove(sandbox);
        let was_wired = wired.is_ok();
        let failure = match (wired, &written) {
            (Err(failure), _) => Some(failure),
            (Ok(()), Err(error)) => Some(
                Failure::new(Reason::StateNotWritable, "the state cannot be written")
                    .with_details(error.clone()),
            ),
            (Ok(()), Ok(())) if !deleters.is_empty() => {
                let message = format!("sandbox {sandbox} was deleted while it was being added");
                Some(Failure::new(Reason::Superseded, message))
            }
            (Ok(()), Ok(())) if given_up => {
                Some(Failure::new(Reason::DeadlineExceeded, "all was done after its caller's time was up"))
            }
            (Ok(()), Ok(())) => enforced.err(),
        };
        let Some(failure) = failure else {
            interfaces.iter().for_each(|interface| self.pool.commit(&interface.sandbox));
            let interfaces: Vec<Interface> =
                interfaces.iter().filter_map(|interface| self.interface(interface)).collect();
            self.annotate(&add.attachment, &interfaces);
            return self.effects.push(Effect::Reply(id, Reply::Added(Added { interfaces })));
        };
        if was_wired {
            self.forget_policies(name);
        }
        let (deleted, mut records) = (!deleters.is_empty(), Vec::new());
        for interface in interfaces {
            records.extend(self.take_back(interface, was_wired, deleted, now));
        }
        // Also when the assignment could not be written: a snapshot taken meanwhile may hold it.
        let batch = self.next_batch();
        if deleted || !records.is_empty() {
            self.effects.push(Effect::Append(batch, records));
        }
        for del in deleters {
            self.pending.insert(del, Pending::Release { batch, reply: Reply::Done });
        }
        if given_up {
            // Its caller has had its answer.
            let Failure { reason, message, details, .. } = &failure;
            tracing::warn!(pod = %name, %reason, details, "an ADD that came too late is undone: {message}");
        } else {
            self.fail_add(id, &add.attachment, failure);
        }
    }

    /// Takes back one interface of an ADD that has failed; what the disk is to say of it. What an ADD before has brought stays where the
    /// kernel has refused the repeated one, on disk too: the pod may live, or else it is found dead. Unless its DEL has come.
    fn take_back(&mut self, of: Reserved, was_wired: bool, deleted: bool, now: Moment) -> Option<Record> {
        let Reserved { sandbox, pod, .. } = of;
        if was_wired {
            self.effects.push(Effect::Unwire(pod));
            drop(self.let_go(&sandbox, now));
        } else if self.pool.is_reserved(&sandbox) {
            self.heed_astray(&sandbox);
            self.pool.cancel(&sandbox);
        } else {
            return if deleted { self.release(&sandbox, now) } else { None };
        }
        Some(Record::Released { sandbox, at: now })
    }

    /// The DEL of a sandbox came while its ADD was under way. If that is at work, the DEL is answered once it is undone on
    /// disk too: until then a restart would find the pod.
    pub(super) fn supersede(&mut self, add: CallId, del: CallId, now: Moment) {
        if let Some(work) = self.work(add) {
            work.deleters.push(del);
            return self.finish(add, now);
        }
        drop(self.leave_queue(add, now));
        self.fail(add, Failure::new(Reason::Superseded, "the sandbox was deleted while its ADD waited"));
        self.reply(del, Reply::Done);
    }

    /// The caller has hung up: its place in the queue is given back. Work already begun goes on; the runtime sends DEL.
    pub(super) fn gone(&mut self, id: CallId, now: Moment) {
        if self.work(id).is_none()
            && let Some(add) = self.leave_queue(id, now)
        {
            let message = "the caller has gone before there was an address for the pod";
            self.fail_add(id, &add.attachment, Failure::new(add.reason().0, message));
        }
    }

    /// Ends the wait of an ADD, which is no longer pending then.
    fn leave_queue(&mut self, id: CallId, now: Moment) -> Option<Box<Add>> {
        self.ends_waiting(id, now);
        self.queue.retain(|waiting| *waiting != id);
        let Some(Pending::Add(add)) = self.pending.get(&id) else { return None };
        self.adding.remove(&add.attachment.sandbox);
        match self.pending.remove(&id)? {
            Pending::Add(add) => Some(add),
            Pending::Release { .. } | Pending::Check => None,
        }
    }

    fn check(&mut self, id: CallId, attachment: &Attachment) {
        let mtu = mtu_of(attachment.mtu);
        let held = self.pool.interfaces_of(&attachment.sandbox).into_iter();
        let held = held.filter_map(|owner| self.pool.owner(&owner.sandbox));
        let spec =
            |(owner, grant): (&Owner, Grant)| self.settings.families.pod_spec(owner, grant.address, mtu);
        let pods: Vec<PodSpec> = held.map(spec).collect();
        if pods.is_empty() {
            let message = format!("sandbox {} has no address here", attachment.sandbox);
            return self.fail(id, Failure::new(Reason::UnknownSandbox, message));
        }
        self.pending.insert(id, Pending::Check);
        self.effects.push(Effect::Check(id, pods));
    }

    pub(super) fn checked(&mut self, id: CallId, result: Result<(), Failure>) {
        if self.pending.remove(&id).is_some() {
            match result {
                Ok(()) => self.reply(id, Reply::Done),
                Err(failure) => self.fail(id, failure),
            }
        }
    }

    /// STATUS: could an ADD be served now? The CNI specification wants code 50 for no.
    fn status(&mut self, id: CallId) {
        let missing = self.missing();
        if missing.is_empty() {
            return self.reply(id, Reply::Done);
        }
        let message = format!("waits for {}", missing.join(", "));
        let failure = Failure::new(self.why_starting(), message).with_details(self.troubles().join("; "));
        // Asked every few seconds by the runtime: no line in the log each time.
        let failure = Failure { code: types::CniCode::NOT_AVAILABLE, ..failure };
        self.reply(id, Reply::Failed(failure));
    }

    /// Tells those whose time is up the cause.
    pub(super) fn expire(&mut self, now: Moment) {
        let is_late = |id: &&CallId| self.deadline_of(id).is_some_and(|deadline| deadline <= now);
        let late: Vec<CallId> = self.queue.iter().filter(is_late).copied().collect();
        for id in late {
            let Some(add) = self.leave_queue(id, now) else { continue };
            let (reason, card) = add.reason();
            let (what, details) = self.branch_wait(&add).unwrap_or_else(|| {
                (format!("no address{} for the pod", of_card(card)), self.shortage_in_numbers(card, now))
            });
            let failure = Failure::new(reason, format!("{what} before its deadline"));
            self.fail_add(id, &add.attachment, failure.with_details(details));
        }
        self.answer_late(now);
    }

    /// Answers those who will not wait any longer for what is at work. It cannot be called back: once it ends it is undone.
    fn answer_late(&mut self, now: Moment) {
        let late: Vec<CallId> = self
            .pending
            .iter()
            .filter(|(_, p)| p.answer_due().is_some_and(|due| due <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(Pending::Add(add)) = self.pending.get_mut(&id) else { continue };
            let Phase::Working(work) = &mut add.phase else { continue };
            work.given_up = true;
            let message = format!("{} not done with the pod before its caller's time is up", work.lacks());
            let attachment = add.attachment.clone();
            self.fail_add(id, &attachment, Failure::new(Reason::DeadlineExceeded, message));
            self.finish(id, now);
        }
    }

    /// Ends every ADD that waits.
    pub(super) fn give_up_queue(&mut self, now: Moment) {
        for id in std::mem::take(&mut self.queue) {
            let Some(add) = self.leave_queue(id, now) else { continue };
            let failure = Failure::new(Reason::DaemonUnreachable, "the daemon is stopping");
            self.fail_add(id, &add.attachment, failure);
        }
    }

    /// What the runtime hears of a pod's interface.
    fn interface(&self, Reserved { pod, grant, .. }: &Reserved) -> Option<Interface> {
        // A fresh grant always has its place; the primary ENI's stands in where EC2 took the ENI away meanwhile.
        let (card, device) =
            grant.place.as_ref().map_or((NetworkCard(0), DeviceIndex(0)), |p| (p.card, p.device));
        if let Some(branch) = &pod.branch {
            return of_branch(pod, branch);
        }
        let ipv6 = ipv6_among(&pod.addresses);
        let mut told = self.settings.families.told(grant.address, ipv6).into_iter();
        Some(Interface {
            host_if: pod.host_if.as_str().to_owned(),
            container_if: pod.container_if.clone(),
            address: told.next()?,
            other: told.next(),
            device,
            table: TableId::of_eni(card, device),
            branch: None,
        })
    }

    fn deadline_of(&self, id: &CallId) -> Option<Moment> {
        match self.pending.get(id)? {
            Pending::Add(add) => Some(add.deadline),
            Pending::Release { .. } | Pending::Check => None,
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = Moment> {
        self.queue.iter().filter_map(|id| self.deadline_of(id))
    }

    /// When time alone changes something for those who wait or are at work.
    pub(super) fn queue_wakeup(&self, now: Moment) -> Option<Moment> {
        let due = |deadline: Moment| Some(deadline.minus(PRESSED)).filter(|at| *at > now).unwrap_or(deadline);
        let answers = self.pending.values().filter_map(Pending::answer_due);
        self.deadlines().map(due).chain(answers).min()
    }

    pub(super) fn fail(&mut self, id: CallId, failure: Failure) {
        tracing::info!(reason = %failure.reason, details = failure.details, "{}", failure.message);
        self.reply(id, Reply::Failed(failure));
    }

    pub(super) fn reply(&mut self, id: CallId, reply: Reply) {
        self.effects.push(Effect::Reply(id, reply));
    }

    pub(super) fn next_batch(&mut self) -> BatchId {
        self.batches.0 += 1;
        self.batches
    }
}

impl Add {
    /// Who the interface with this number belongs to.
    pub(super) fn owner(&self, index: u8, now: Moment) -> Owner {
        let Attachment { sandbox, pod, veth_prefix, .. } = &self.attachment;
        let further = (index > 0).then(|| Further { of: sandbox.clone(), index });
        Owner {
            sandbox: if index == 0 { sandbox.clone() } else { sandbox.further(index) },
            pod: pod.clone(),
            host_if: match index {
                0 => self.host_if.clone(),
                _ => host_if_of(sandbox, pod, veth_prefix, index),
            },
            since: now,
            ipv6: None,
            further,
            branch: None,
        }
    }

    /// What it waits for, and of which network card.
    pub(super) const fn reason(&self) -> (Reason, NetworkCard) {
        match &self.phase {
            Phase::Waiting(reason, card) => (*reason, *card),
            Phase::Working(_) => (Reason::DeadlineExceeded, NetworkCard(0)),
        }
    }
}

/// What the runtime hears of a pod with a branch ENI; place and table are none of an ENI, as the Go version tells it.
fn of_branch(pod: &PodSpec, branch: &Branch) -> Option<Interface> {
    let mut told = pod.addresses.iter().map(|address| IpNetwork::from(*address));
    Some(Interface {
        host_if: pod.host_if.as_str().to_owned(),
        container_if: pod.container_if.clone(),
        address: told.next()?,
        other: told.next(),
        device: DeviceIndex(0),
        table: TableId(0),
        branch: Some(BranchTold { vlan: branch.eni.vlan, gateways: branch.eni.gateways() }),
    })
}

fn no_descriptors() -> Failure {
    let message = "the request lacks its two descriptors: network namespace and netlink socket";
    Failure::new(Reason::BadInput, message)
}

/// For a sentence about an address: of which network card, unless there is but one.
pub(super) fn of_card(card: NetworkCard) -> String {
    match card {
        NetworkCard(0) => String::new(),
        card => format!(" of network card {card}"),
    }
}

/// Whether the network policy agent has a say in this pod: it knows pods by name.
const fn has_policies(settings: &Settings, pod: &PodName) -> bool {
    settings.policies && !pod.name.is_empty()
}

pub(super) fn host_if_of(
    sandbox: &SandboxKey,
    pod: &PodName,
    veth_prefix: &VethPrefix,
    index: u8,
) -> HostVeth {
    match (pod.name.is_empty(), index) {
        (false, _) => HostVeth::of_pod(veth_prefix, pod, index),
        // A sandbox that is no Kubernetes pod is named after itself.
        (true, 0) => HostVeth::of_sandbox(veth_prefix, sandbox),
        (true, _) => HostVeth::of_sandbox(veth_prefix, &sandbox.further(index)),
    }
}

fn mtu_of(asked: u32) -> u32 {
    if (576..=9001).contains(&asked) { asked } else { MTU_DEFAULT }
}
