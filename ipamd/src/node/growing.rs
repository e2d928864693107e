//! EC2 and the host: what to ask for, when to hold off, and what the host's kernel should hold meanwhile.
//!
//! What EC2 gives joins the pool only when the host's kernel is ready for it: an address on a secondary ENI must be
//! in the steering map before a pod has it. So every gain waits in `settling` for the next convergence.

use std::collections::BTreeSet;
use std::time::Duration;

use datapath::{EniSpec, NodeSpec};
use ipnetwork::Ipv4Network;
use pool::{ActionId, EniSeen, Given, Limits, Mode, Outcome, Plan};
use types::{EniId, Mac, Moment, NetworkCard, Prefix, Reason};

use super::event::{BatchId, Effect, Facts, HostWish, Picture};
use super::{Node, adding};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::store::Record;

/// First pause after a failed call to EC2; doubles with each further failure.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How often to see whether the link of a new ENI has appeared.
const LINK_POLL: Duration = Duration::from_millis(100);
/// Pause before another look when the last one was of something in motion.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Pause before another look when chores could not be done.
const TIDY_AGAIN: Duration = Duration::from_secs(300);
/// How long the link of a new ENI may take; longer than EC2's descriptions lag.
const LINK_PATIENCE: Duration = Duration::from_secs(20);
/// Pause before the host's kernel is tried again after a refusal.
const HOST_RETRY: Duration = Duration::from_secs(1);

/// What we know of EC2's mood.
#[derive(Debug)]
pub(super) struct CloudState {
    /// The trouble that holds now, in words, with its kind.
    trouble: Option<(CloudErrorKind, String)>,
    failures: u32,
    /// No new calls before this.
    hold_until: Moment,
    /// An inventory is under way.
    looking: bool,
    /// When the last one began.
    looked_at: Moment,
    /// Chores are under way.
    tidying: bool,
    /// When to look again.
    look_at: Moment,
    /// At least one inventory has come, the host's kernel is in line with it, and it is in the pool.
    pub(super) pictured: bool,
    rng: u64,
}

impl CloudState {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            trouble: None,
            failures: 0,
            hold_until: Moment(0),
            looking: false,
            looked_at: Moment(0),
            tidying: false,
            look_at: Moment(0),
            pictured: false,
            rng: seed | 1,
        }
    }

    fn failed(&mut self, error: &CloudError, now: Moment) {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.hold_until = now.plus(self.jitter(pause));
        self.trouble(error);
    }

    /// Remembers what is wrong, without holding off.
    pub(super) fn trouble(&mut self, error: &CloudError) {
        self.trouble = Some((error.kind(), crate::server::chain(error)));
        tracing::warn!(kind = ?error.kind(), error = crate::server::chain(error), "EC2");
    }

    fn worked(&mut self) {
        self.trouble = None;
        self.failures = 0;
        self.hold_until = Moment(0);
    }

    /// Between half and one and a half times `d`, so that nodes do not march in step.
    fn jitter(&mut self, d: Duration) -> Duration {
        // xorshift64: spreads, nothing more.
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        let thousandth = u32::try_from(self.rng % 1000).unwrap_or(0);
        d / 2 + d.saturating_mul(thousandth) / 1000
    }
}

/// How far the host's kernel is from what it should be.
#[derive(Debug, Default)]
pub(super) struct HostState {
    /// Number of the newest wish.
    generation: u64,
    under_way: bool,
    /// Something has changed since the newest wish.
    dirty: bool,
    retry_at: Option<Moment>,
    /// What was wrong the last time.
    trouble: Option<String>,
    settling: Vec<Settling>,
}

impl HostState {
    pub(super) const fn wakeup(&self) -> Option<Moment> {
        self.retry_at
    }
}

/// A gain that waits for the host's kernel.
#[derive(Debug)]
struct Settling {
    gain: Gain,
    /// The wish that covers it; `None` before there is one.
    generation: Option<u64>,
    since: Moment,
}

#[derive(Debug)]
enum Gain {
    Action(ActionId, Outcome),
    Picture(Box<Picture>),
}

impl Gain {
    /// ENIs and single addresses this will add.
    fn enis(&self) -> &[EniSeen] {
        match self {
            Self::Action(_, Outcome::Created(eni)) => std::slice::from_ref(&**eni),
            Self::Action(..) => &[],
            Self::Picture(picture) => &picture.enis,
        }
    }

    fn needs(&self, missing: &[Mac]) -> bool {
        match self {
            Self::Action(_, Outcome::Created(eni)) => missing.contains(&eni.mac),
            Self::Action(..) | Self::Picture(_) => false,
        }
    }
}

/// What a failure says about what was asked for.
const fn outcome_of(kind: CloudErrorKind) -> Outcome {
    match kind {
        CloudErrorKind::SubnetFull | CloudErrorKind::NoPrefix => Outcome::Scarce,
        // The last one: our picture of the ENI is wrong.
        CloudErrorKind::Unclear | CloudErrorKind::Gone | CloudErrorKind::AddressLimit => Outcome::Unclear,
        CloudErrorKind::Throttled
        | CloudErrorKind::EniLimit
        | CloudErrorKind::Denied
        | CloudErrorKind::Unreachable
        | CloudErrorKind::InUse
        | CloudErrorKind::Garbage
        | CloudErrorKind::Other => Outcome::Failed,
    }
}

/// As networks: single addresses, and prefixes as what they are.
fn networks(given: &Given) -> impl Iterator<Item = Ipv4Network> {
    let prefixes = given.prefixes.iter();
    let prefixes = prefixes.filter_map(|prefix| Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok());
    given.addresses.iter().copied().map(Ipv4Network::from).chain(prefixes)
}

impl Node {
    pub(super) fn identified(&mut self, facts: Facts, now: Moment) {
        let can = facts.limits.prefix_delegation;
        if self.settings.prefix_delegation && !can {
            let instance_type = &facts.limits.instance_type;
            tracing::warn!(instance_type, "this type cannot hold prefixes; single addresses are used");
        }
        let prefixes = self.settings.prefix_delegation && can;
        self.pool.set_mode(if prefixes { Mode::Prefixes } else { Mode::Addresses });
        self.pool.set_subnets(vec![facts.subnet.clone()]);
        self.facts = Some(facts);
        self.cloud.worked();
        self.cloud.look_at = now;
    }

    /// Looks at the ENIs: at start, after an unclear outcome, and once in a while.
    pub(super) fn look_if_due(&mut self, now: Moment) {
        if self.facts.is_some() && !self.cloud.looking && self.cloud.look_at <= now {
            self.cloud.looking = true;
            self.cloud.looked_at = now;
            self.effects.push(Effect::Look);
        }
    }

    pub(super) fn looked(&mut self, result: Result<Picture, CloudError>, now: Moment) {
        self.cloud.looking = false;
        match result {
            Ok(picture) => {
                let pause = if picture.in_motion { LOOK_AGAIN } else { self.settings.audit_every };
                self.cloud.look_at = now.plus(self.cloud.jitter(pause));
                self.subnets.extend(picture.subnets.clone());
                self.settle(Gain::Picture(Box::new(picture)), now);
            }
            Err(error) => {
                self.cloud.failed(&error, now);
                self.cloud.look_at = self.cloud.hold_until;
            }
        }
    }

    pub(super) fn acted(&mut self, id: ActionId, result: Result<Outcome, CloudError>, now: Moment) {
        match result {
            Ok(outcome) => {
                self.cloud.worked();
                self.settle(Gain::Action(id, outcome), now);
            }
            Err(error) => {
                let outcome = outcome_of(error.kind());
                let look = outcome == Outcome::Unclear;
                // Fewer, or another subnet, or a rest of that subnet alone: the pool knows.
                let scarce = outcome == Outcome::Scarce;
                self.pool.finish(id, outcome, now);
                if scarce {
                    self.cloud.trouble(&error);
                } else {
                    self.cloud.failed(&error, now);
                }
                if look {
                    self.cloud.look_at = self.cloud.look_at.min(self.cloud.hold_until);
                }
            }
        }
    }

    fn settle(&mut self, gain: Gain, now: Moment) {
        self.host.settling.push(Settling { gain, generation: None, since: now });
        self.host.dirty = true;
    }

    pub(super) fn converged(&mut self, generation: u64, result: Result<Vec<Mac>, String>, now: Moment) {
        self.host.under_way = false;
        let missing = match result {
            Ok(missing) => missing,
            Err(error) => {
                tracing::error!(error, "the host's kernel is not as it should be");
                self.host.trouble = Some(error);
                self.host.dirty = true;
                self.host.retry_at = Some(now.plus(HOST_RETRY));
                return;
            }
        };
        self.host.trouble = None;
        let (settled, waiting) =
            std::mem::take(&mut self.host.settling).into_iter().partition(|s: &Settling| {
                s.generation.is_some_and(|g| g <= generation) && !s.gain.needs(&missing)
            });
        self.host.settling = waiting;
        for Settling { gain, .. } in settled {
            match gain {
                Gain::Action(id, outcome) => self.pool.finish(id, outcome, now),
                Gain::Picture(picture) => self.pictured(*picture, now),
            }
        }
        if !missing.is_empty() {
            self.host.dirty = true;
            self.host.retry_at = Some(now.plus(LINK_POLL));
        }
        // Somebody may have taken the ENI away before its link was there.
        let late = |settling: &Settling| now.since(settling.since) > LINK_PATIENCE;
        if self.host.settling.iter().any(late) && now.since(self.cloud.looked_at) > LINK_PATIENCE {
            self.cloud.look_at = now;
        }
    }

    /// Gives up new ENIs that a picture taken long enough after them does not show.
    fn give_up_what_is_gone(&mut self, picture: &Picture, now: Moment) {
        let waiting = std::mem::take(&mut self.host.settling);
        for settling in waiting {
            match &settling.gain {
                Gain::Action(id, Outcome::Created(eni))
                    if picture.as_of.since(settling.since) > LINK_PATIENCE
                        && picture.enis.iter().all(|seen| seen.id != eni.id) =>
                {
                    tracing::warn!(eni = %eni.id, "a new ENI is gone before its link was there");
                    self.pool.finish(*id, Outcome::Failed, now);
                }
                Gain::Action(..) | Gain::Picture(_) => self.host.settling.push(settling),
            }
        }
    }

    fn pictured(&mut self, picture: Picture, now: Moment) {
        self.give_up_what_is_gone(&picture, now);
        self.cloud.pictured = true;
        self.pool.occupy(picture.occupied);
        for note in self.pool.observe(&picture.enis, picture.as_of, now) {
            tracing::info!("{note}");
        }
        // What this picture could not settle the next one will.
        if let Some(until) = self.pool.doubtful_until(picture.as_of) {
            self.cloud.look_at = self.cloud.look_at.min(until.max(now));
        }
        // An ENI that seems forgotten may be the one that a call is about: then a later look finds out.
        if picture.chores.is_empty() || !self.settings.provisioning {
            return;
        }
        if self.cloud.tidying || self.pool.is_creating() {
            self.cloud.look_at = self.cloud.look_at.min(now.plus(LOOK_AGAIN));
            return;
        }
        self.cloud.tidying = true;
        self.effects.push(Effect::Tidy(picture.chores));
    }

    pub(super) fn tidied(&mut self, result: Result<(), CloudError>, now: Moment) {
        self.cloud.tidying = false;
        // No pod waits for it: growth goes on meanwhile.
        if let Err(error) = result {
            tracing::warn!(
                error = crate::server::chain(&error),
                "what a call has left behind is still there"
            );
            self.cloud.look_at = self.cloud.look_at.min(now.plus(TIDY_AGAIN));
        }
    }

    /// Asks for the host's kernel to be brought in line, one wish at a time.
    pub(super) fn wish(&mut self, now: Moment) {
        if self.host.retry_at.is_some_and(|at| at <= now) {
            self.host.retry_at = None;
        }
        let Some(facts) = &self.facts else { return };
        if !self.host.dirty || self.host.under_way || self.host.retry_at.is_some() {
            return;
        }
        let wish = self.host_wish(facts);
        self.host.generation += 1;
        self.host.under_way = true;
        self.host.dirty = false;
        for settling in &mut self.host.settling {
            settling.generation.get_or_insert(self.host.generation);
        }
        self.effects.push(Effect::Converge { generation: self.host.generation, host: Box::new(wish) });
    }

    fn host_wish(&self, facts: &Facts) -> HostWish {
        let known = self.pool.enis();
        let coming = self.host.settling.iter().flat_map(|s| s.gain.enis()).cloned();
        let mut enis: Vec<EniSpec> = Vec::new();
        for seen in known.into_iter().chain(coming).filter(|eni| eni.role.is_for_pods()) {
            let Some(subnet) = self.subnets.get(&seen.subnet).copied() else { continue };
            let mut sources: BTreeSet<Ipv4Network> = networks(&seen.given()).collect();
            sources.extend(self.coming_to(&seen.id));
            if let Some(same) = enis.iter_mut().find(|spec| spec.mac == seen.mac) {
                same.sources.extend(sources);
                continue;
            }
            let EniSeen { mac, card, device, primary_address, .. } = seen;
            let mtu = self.settings.eni_mtu;
            enis.push(EniSpec { mac, card, device, primary_address, subnet, mtu, sources });
        }
        enis.sort_by_key(|spec| (spec.card, spec.device));
        let no_snat = facts.vpc_cidrs.iter().chain(&self.settings.exclude_snat).copied().collect();
        // Later, the wiring thread owns the pods' table: a wish made before a DEL must not bring its route back.
        let pods = (!self.cloud.pictured).then(|| {
            self.pool
                .owners()
                .map(|(owner, grant)| adding::pod_spec(owner, grant.address, self.settings.eni_mtu))
                .collect()
        });
        let node = NodeSpec { enis, marks: self.settings.marks, connmark: self.settings.connmark };
        HostWish { node, no_snat, pods, primary_address: facts.primary_address }
    }

    /// What has been assigned to an ENI and waits for the host's kernel.
    fn coming_to(&self, eni: &EniId) -> Vec<Ipv4Network> {
        let assigned = |s: &Settling| match &s.gain {
            Gain::Action(id, Outcome::Assigned(given)) if self.pool.eni_of(*id) == Some(eni) => {
                networks(given).collect()
            }
            Gain::Action(..) | Gain::Picture(_) => Vec::new(),
        };
        self.host.settling.iter().flat_map(assigned).collect()
    }

    /// Starts what the plan says, unless EC2 wants to be left alone.
    pub(super) fn grow(&mut self, now: Moment) {
        if !self.settings.provisioning || !self.cloud.pictured || self.cloud.hold_until > now {
            return;
        }
        let Some(plan) = self.plan(now) else { return };
        self.plan_again = plan.look_again;
        for planned in plan.actions {
            tracing::info!(why = %planned.why, "{}", planned.action);
            let id = self.pool.begin(&planned.action);
            let Some(leaving) = planned.action.leaving() else {
                self.effects.push(Effect::Act(id, planned.action));
                continue;
            };
            let batch = self.next_batch();
            self.effects.push(Effect::Append(batch, vec![Record::Leaving { leaving }]));
            self.intents.insert(batch, (id, planned.action));
        }
    }

    /// Makes the call whose intent is on disk; without that it is not made.
    pub(super) fn intended(&mut self, batch: BatchId, result: &Result<(), String>, now: Moment) {
        let Some((id, action)) = self.intents.remove(&batch) else { return };
        match result {
            Ok(()) => self.effects.push(Effect::Act(id, action)),
            Err(_) => self.pool.finish(id, Outcome::Failed, now),
        }
    }

    pub(super) fn plan(&self, now: Moment) -> Option<Plan> {
        let limits = self.limits()?;
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        Some(self.pool.plan(&self.settings.targets, &limits, waiting, now))
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        let facts = self.facts.as_ref()?;
        let max_enis = self.settings.max_enis.unwrap_or(u8::MAX).min(facts.limits.max_enis);
        Some(Limits { max_enis, slots_per_eni: facts.limits.slots_per_eni(), card: NetworkCard(0) })
    }

    /// Whether addresses are on their way: then those who wait have something to wait for.
    pub(super) fn growing(&self) -> bool {
        let settling = self.host.settling.iter().any(|s| matches!(s.gain, Gain::Action(..)));
        settling || self.pool.is_growing() || !self.missing().is_empty()
    }

    /// Why no pod can be served yet, in one word.
    pub(super) fn why_starting(&self) -> Reason {
        self.cloud.trouble.as_ref().map_or(Reason::Starting, |(kind, _)| kind.reason())
    }

    /// Why there is no address, in one word.
    pub(super) fn why_short(&self, now: Moment) -> Reason {
        if let Some((kind, _)) = &self.cloud.trouble {
            return kind.reason();
        }
        self.limits().map_or(Reason::Starting, |limits| self.pool.shortage_reason(&limits, now))
    }

    /// The same with the numbers that make it actionable.
    pub(super) fn shortage_in_numbers(&self, now: Moment) -> String {
        let count = self.pool.counts(now);
        let enis = self.pool.enis().len();
        let of = self.limits().map_or_else(String::new, |l| format!(" of {}", l.max_enis));
        let mut text = format!(
            "{} assigned, {} cooling, {} reserved, {} free; {enis}{of} ENIs",
            count.assigned, count.cooling, count.reserved, count.free
        );
        for line in self.troubles() {
            text.push_str("; ");
            text.push_str(&line);
        }
        text
    }

    /// What is wrong with EC2 or the host now, in words.
    pub(super) fn troubles(&self) -> Vec<String> {
        let cloud = self.cloud.trouble.as_ref().map(|(kind, text)| format!("{}: {text}", kind.reason()));
        cloud.into_iter().chain(self.host.trouble.clone()).collect()
    }

    pub(super) fn cloud_wakeup(&self) -> Option<Moment> {
        self.facts.as_ref()?;
        let look = (!self.cloud.looking).then_some(self.cloud.look_at);
        let hold = (self.cloud.hold_until > Moment(0)).then_some(self.cloud.hold_until);
        look.into_iter().chain(hold).min()
    }
}
