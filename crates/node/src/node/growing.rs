//! EC2: what to ask for, when to hold off, and why there is nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use pool::{Action, ActionId, Mode, Outcome, Wanted};
use types::{Capacity, Layout, Moment, NetworkCard, Reason};

use super::Node;
use super::event::{BatchId, Effect, Facts};
use super::hosting::Gain;
use crate::clock::{Jitter, doubled};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::families::local_addresses;
use crate::hold::Hold;
use crate::store::Record;

/// Pause after a failed call to EC2, the first and the longest; doubles with each further failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Pause between looks while EC2 goes on refusing a place, the first and the longest: a limit does not go away by looking.
const REFUSED_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1800));

/// Pause before something is given back again after EC2 has not taken it, the first and the longest: nobody waits for it.
const KEEP: (Duration, Duration) = REFUSED_AGAIN;

/// What AWS does not do, and the words.
type Trouble = (CloudErrorKind, String);

/// What we know of EC2's mood.
#[derive(Debug)]
pub(super) struct CloudState {
    /// The trouble that holds now, in words, with its kind.
    pub(super) trouble: Option<Trouble>,
    /// Why the last look has failed.
    pub(super) blind: Option<Trouble>,
    /// Why EC2 has not taken back what is to spare.
    kept: Option<Trouble>,
    failures: u32,
    /// When the last call that counts has failed.
    failed_at: Option<Moment>,
    /// When it was last found that no new calls are to be made for a while.
    held_at: Option<Moment>,
    /// When each call that is under way began.
    calls: BTreeMap<ActionId, Moment>,
    /// How many looks in a row have failed.
    blind_looks: u32,
    /// How often in a row EC2 has not taken something back.
    keeps: u32,
    /// No new calls before this.
    pub(super) hold_until: Moment,
    /// Nothing is given back before this.
    keep_until: Moment,
    /// No ENI is made before this but for those who wait.
    no_eni_until: Moment,
    /// An inventory is under way.
    pub(super) looking: bool,
    /// When the last one began.
    pub(super) looked_at: Moment,
    /// Chores are under way.
    pub(super) tidying: bool,
    /// They are about ENIs of other instances only.
    pub(super) only_leaks: bool,
    /// How often in a row chores could not be done.
    pub(super) untidy: u32,
    /// When to look again.
    pub(super) look_at: Moment,
    /// Something has changed since the last look began.
    pub(super) stale: bool,
    /// EC2 has refused a place that is free in our picture: nothing more is asked for before a look has answered.
    pub(super) wrong: bool,
    /// How often that was so since an ENI was made.
    refusals: u32,
    /// At least one inventory has come, the host's kernel is in line with it, and it is in the pool.
    pub(super) pictured: bool,
    jitter: Jitter,
}

impl CloudState {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            trouble: None,
            blind: None,
            kept: None,
            failures: 0,
            failed_at: None,
            held_at: None,
            calls: BTreeMap::new(),
            blind_looks: 0,
            keeps: 0,
            hold_until: Moment(0),
            keep_until: Moment(0),
            no_eni_until: Moment(0),
            looking: false,
            looked_at: Moment(0),
            tidying: false,
            only_leaks: false,
            untidy: 0,
            look_at: Moment(0),
            stale: false,
            wrong: false,
            refusals: 0,
            pictured: false,
            jitter: Jitter::seeded(seed),
        }
    }

    pub(super) fn failed(&mut self, error: &CloudError, now: Moment) {
        let pause = doubled(BACKOFF, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.hold_until = now.plus(self.jitter(pause));
        (self.failed_at, self.held_at) = (Some(now), Some(now));
        self.trouble(error);
    }

    /// EC2 has refused a place or an ENI: somebody may have attached one since the last look. The first refusal is looked at
    /// before anything more is asked for; of those that follow only some are.
    fn place_refused(&mut self) {
        let pause = match self.refusals {
            0 => Duration::ZERO,
            n => self.jitter(doubled(REFUSED_AGAIN, n - 1)),
        };
        let due = self.looked_at.plus(pause);
        // Nor by trying.
        self.no_eni_until = due.max(self.hold_until);
        self.refusals = self.refusals.saturating_add(1);
        self.wrong = due <= self.hold_until;
        self.stale |= self.wrong && self.looking;
        self.look_at = self.look_at.min(due.max(self.hold_until));
    }

    /// Remembers what is wrong, without holding off.
    pub(super) fn trouble(&mut self, error: &CloudError) {
        self.trouble = Some(told(error));
    }

    /// A look has failed. Growth goes on, unless EC2 has no time for us at all.
    pub(super) fn look_failed(&mut self, error: &CloudError, now: Moment) {
        let pause = doubled(BACKOFF, self.blind_looks);
        self.blind_looks = self.blind_looks.saturating_add(1);
        self.look_at = now.plus(self.jitter(pause));
        self.wrong = false;
        if error.kind() == CloudErrorKind::Throttled {
            self.hold_until = self.hold_until.max(self.look_at);
            self.held_at = Some(now);
        }
        self.blind = Some(told(error));
    }

    /// A look has told something.
    pub(super) fn sees(&mut self) {
        self.blind = None;
        self.blind_looks = 0;
    }

    /// EC2 has not taken something back. Growth goes on, unless EC2 has no time for us at all.
    fn keeps(&mut self, error: &CloudError, now: Moment) {
        let pause = doubled(KEEP, self.keeps);
        self.keeps = self.keeps.saturating_add(1);
        self.keep_until = now.plus(self.jitter(pause));
        if error.kind() == CloudErrorKind::Throttled {
            self.failed(error, now);
        }
        self.kept = Some(told(error));
    }

    /// EC2 has taken something back.
    fn gave_back(&mut self) {
        (self.kept, self.keeps, self.keep_until) = (None, 0, Moment(0));
    }

    /// Forgets what was refused for a cause that is no more.
    pub(super) fn forget(&mut self, refused: CloudErrorKind) {
        if self.trouble.as_ref().is_some_and(|(kind, _)| *kind == refused) {
            (self.trouble, self.failures, self.hold_until) = (None, 0, Moment(0));
        }
    }

    /// A call has succeeded that began then. One that began before another has failed says nothing of what EC2 makes of the next: the pause
    /// after that failure is all that holds calls back, and stays.
    pub(super) fn worked(&mut self, begun: Moment) {
        let is_later = |failure: Option<Moment>| failure.is_none_or(|at| begun > at);
        if is_later(self.failed_at) {
            self.trouble = None;
            self.failures = 0;
        }
        if is_later(self.held_at) {
            self.hold_until = Moment(0);
        }
    }

    /// Between half and one and a half times `d`, so that nodes do not march in step.
    pub(super) fn jitter(&mut self, d: Duration) -> Duration {
        self.jitter.around(d)
    }
}

/// A failure in words, which the log gets too.
fn told(error: &CloudError) -> Trouble {
    let words = crate::chain(error);
    tracing::warn!(kind = ?error.kind(), error = words, "AWS does not do what it was asked");
    (error.kind(), words)
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
        | CloudErrorKind::NoRoots
        | CloudErrorKind::NoPlace
        | CloudErrorKind::Unreachable
        | CloudErrorKind::InUse
        | CloudErrorKind::Garbage
        | CloudErrorKind::Other => Outcome::Failed,
    }
}

/// How many pods a network card of an IPv6 node can hold.
pub(super) fn local_capacity(card: NetworkCard) -> Capacity {
    let addresses = u32::try_from(local_addresses(card).len()).unwrap_or(u32::MAX);
    Capacity { addresses, branch: 0 }
}

impl Node {
    pub(super) fn identified(&mut self, facts: Facts, now: Moment) {
        if let Some(before) = self.facts.as_ref().filter(|before| before.instance != facts.instance) {
            tracing::error!(of = %before.instance, now = %facts.instance, "pods were served from another instance's state");
        }
        self.take_facts(facts);
        self.memory.dirty = true;
        // The host was brought in line with the old ones.
        self.host.dirty |= std::mem::take(&mut self.memory.old_facts);
        self.cloud.worked(now);
        self.cloud.sees();
        self.cloud.look_at = now;
    }

    /// It cannot be found out who this instance is, for now.
    pub(super) fn unidentified(&mut self, error: &CloudError, now: Moment) {
        self.cloud.trouble(error);
        self.recall(now);
    }

    /// Sets all that depends on what the instance is.
    pub(super) fn take_facts(&mut self, facts: Facts) {
        let can = facts.limits.prefix_delegation;
        if self.settings.prefix_delegation && !can {
            let instance_type = &facts.limits.instance_type;
            tracing::warn!(instance_type, "this type cannot hold prefixes; single addresses are used");
        }
        if self.settings.families.needs_prefix() && !can {
            tracing::warn!(instance_type = facts.limits.instance_type, "this type cannot hold IPv6 prefixes");
        }
        let prefixes = self.settings.prefix_delegation && can && self.settings.families.has_ipv4_of_vpc();
        self.pool.set_mode(if prefixes { Mode::Prefixes } else { Mode::Addresses });
        if self.settings.custom_networking {
            self.pool.spare_primary();
            self.place_enis();
        } else {
            self.pool.set_subnets(vec![facts.subnet.clone()]);
        }
        self.facts = Some(facts);
        self.choose_cards();
    }

    pub(super) fn acted(&mut self, id: ActionId, result: Result<Outcome, CloudError>, now: Moment) {
        self.glance_later(now);
        let gives_back = self.pool.gives_back(id);
        let begun = self.cloud.calls.remove(&id).unwrap_or(now);
        match result {
            Ok(mut outcome) => {
                if let Outcome::Created(eni) = &mut outcome {
                    self.make_local(std::slice::from_mut(eni));
                }
                self.cloud.worked(begun);
                if gives_back {
                    self.cloud.gave_back();
                }
                if matches!(outcome, Outcome::Created(_)) {
                    (self.cloud.refusals, self.cloud.no_eni_until) = (0, Moment(0));
                }
                self.settle(Gain::Action(id, outcome), now);
            }
            Err(error) => {
                let outcome = outcome_of(error.kind());
                let in_use = error.kind() == CloudErrorKind::InUse;
                let look = outcome == Outcome::Unclear || (gives_back && in_use);
                // Fewer, or another subnet, or a rest of that subnet alone: the pool knows.
                let scarce = outcome == Outcome::Scarce;
                match outcome == Outcome::Failed && gives_back {
                    true => self.taken_back(id, now),
                    false => {
                        self.pool.finish(id, outcome, now);
                        self.picture_differs();
                    }
                }
                match (gives_back, scarce) {
                    (true, _) => self.cloud.keeps(&error, now),
                    (false, true) => self.cloud.trouble(&error),
                    (false, false) => self.cloud.failed(&error, now),
                }
                if look {
                    let soon = self.cloud.hold_until.max(now.plus(BACKOFF.0));
                    self.cloud.look_at = self.cloud.look_at.min(soon);
                }
                if !gives_back && (in_use || error.kind() == CloudErrorKind::EniLimit) {
                    self.cloud.place_refused();
                }
            }
        }
    }

    /// Starts what the plan says, unless EC2 wants to be left alone.
    pub(super) fn grow(&mut self, now: Moment) {
        self.watch_cards(now);
        let knows = self.cloud.pictured && !self.cloud.wrong && self.is_up_to_date();
        if !self.may(false) || !knows || self.cloud.hold_until > now {
            return;
        }
        let Some(plan) = self.plan(now) else { return };
        self.plan_again = plan.look_again;
        if plan.actions.is_empty() && self.cloud.calls.is_empty() {
            // The pause that EC2 wanted is over, and nobody waits for that any more.
            self.cloud.forget(CloudErrorKind::Throttled);
        }
        let allowed = plan.actions.into_iter().filter(|planned| self.is_due(&planned.action, now));
        for planned in allowed.collect::<Vec<_>>() {
            tracing::info!(why = %planned.why, "{}", planned.action);
            let id = self.pool.begin(&planned.action);
            let Some(leaving) = planned.action.leaving() else {
                self.act(id, planned.action, now);
                continue;
            };
            let batch = self.next_batch();
            let at = Some(now);
            self.effects.push(Effect::Append(batch, vec![Record::Leaving { leaving, at }]));
            self.intents.insert(batch, (id, planned.action));
        }
    }

    /// Whether a planned action may be taken now.
    fn is_due(&self, action: &Action, now: Moment) -> bool {
        match action {
            Action::Release { .. } | Action::DeleteEni { .. } => {
                self.may(true) && self.cloud.keep_until <= now
            }
            Action::CreateEni { .. } => self.cloud.no_eni_until <= now || !self.queue.is_empty(),
            Action::Assign { .. } => true,
        }
    }

    /// Makes the call whose intent is on disk; without that it is not made.
    pub(super) fn intended(&mut self, batch: BatchId, result: &Result<(), String>, now: Moment) {
        let Some((id, action)) = self.intents.remove(&batch) else { return };
        // Somebody may have put the brake on meanwhile.
        match result {
            Ok(()) if self.may(true) && !self.keeps_all() => self.act(id, action, now),
            Ok(()) | Err(_) => self.taken_back(id, now),
        }
    }

    /// What was to be given back stays: pods may have it again once the kernel leads to it, which may have ceased to.
    fn taken_back(&mut self, id: ActionId, now: Moment) {
        self.settle(Gain::Action(id, Outcome::Failed), now);
    }

    fn act(&mut self, id: ActionId, mut action: Action, now: Moment) {
        if let Action::CreateEni { wanted, .. } = &mut action
            && !self.settings.families.has_ipv4_of_vpc()
        {
            // Pods get addresses of its IPv6 prefix.
            *wanted = Wanted::Addresses(0);
        }
        let groups = self.groups_of_new();
        self.cloud.calls.insert(id, now);
        self.effects.push(Effect::Act { id, action, groups });
    }

    pub(super) fn held(&mut self, hold: Hold) {
        match hold {
            Hold::Nothing => tracing::info!("an operator holds back nothing any more"),
            Hold::Releases | Hold::Changes => tracing::warn!("an operator holds back {hold} in EC2"),
        }
        self.hold = hold;
    }

    /// What is held back, by whomever.
    pub(super) fn hold(&self) -> Hold {
        if self.settings.provisioning && !self.stopping { self.hold } else { Hold::Changes }
    }

    /// Whether something may be changed in EC2; giving something back is held back sooner than the rest.
    pub(super) fn may(&self, gives_back: bool) -> bool {
        match self.hold() {
            Hold::Nothing => true,
            Hold::Releases => !gives_back,
            Hold::Changes => false,
        }
    }

    /// How many pods the instance can hold by its first network card; none as long as nothing is known of it.
    pub(super) fn capacity(&self) -> Capacity {
        let Some(facts) = &self.facts else { return Capacity { addresses: 0, branch: 0 } };
        if !self.settings.families.has_ipv4_of_vpc() {
            return local_capacity(NetworkCard(0));
        }
        facts.limits.capacity(&self.layout(NetworkCard(0)))
    }

    pub(super) fn layout(&self, card: NetworkCard) -> Layout {
        Layout {
            foreign: self.pool.foreign_on(card),
            prefixes: self.settings.prefix_delegation,
            custom_networking: self.settings.custom_networking,
            max_enis: self.settings.max_enis,
            // Once it is there, the trunk is one of those that are not for pods.
            branch_enis: card == NetworkCard(0) && self.awaits_trunk(),
        }
    }

    /// Whether addresses of a network card are on their way: then those who wait have something to wait for.
    pub(super) fn growing(&self, card: NetworkCard) -> bool {
        let about = |gain: &Gain| match gain {
            Gain::Action(id, _) => self.pool.is_about(*id, card),
            Gain::Picture(_) => false,
        };
        let settling = self.host.settling.iter().any(|settling| about(&settling.gain));
        settling || self.pool.is_growing(card) || !self.missing().is_empty()
    }

    /// What a refusal of EC2 means here: subnet and groups of a new ENI are the ENIConfig's, where there is one.
    pub(super) const fn reason_of(&self, kind: CloudErrorKind) -> Reason {
        if matches!(kind, CloudErrorKind::NoPlace) && self.settings.custom_networking {
            return Reason::NoEniConfig;
        }
        kind.reason()
    }

    /// Why EC2 does not do what it was last asked, if it does not.
    pub(super) fn trouble(&self) -> Option<Reason> {
        let trouble = self.cloud.trouble.as_ref().or(self.cloud.blind.as_ref());
        trouble.map(|(kind, _)| self.reason_of(*kind))
    }

    /// Why no pod can be served yet, in one word.
    pub(super) fn why_starting(&self) -> Reason {
        match self.trouble() {
            // Whatever EC2 last refused, nothing is asked of it for want of this.
            _ if self.lacks_place() => Reason::NoEniConfig,
            // Only the IPv6 prefix is missing, and EC2 gives none for a cause that has no word of its own.
            None | Some(Reason::CloudUnreachable) if self.cloud.pictured && self.lacks_ipv6() => {
                match self.may(false) {
                    true => Reason::NoIpv6,
                    false => Reason::OnHold,
                }
            }
            None => Reason::Starting,
            Some(reason) => reason,
        }
    }

    /// Why the pool has no address of a network card.
    pub(super) fn why_pool_short(&self, card: NetworkCard, now: Moment) -> Option<Reason> {
        self.limits_of(card).map(|limits| self.pool.shortage_reason(&limits, now))
    }

    /// Why there is no address of a network card, in one word.
    pub(super) fn why_short(&self, card: NetworkCard, now: Moment) -> Reason {
        let of_pool = self.why_pool_short(card, now);
        match (of_pool, &self.cloud.trouble) {
            (Some(Reason::PoolEmpty), _) if !self.may(false) => Reason::OnHold,
            (Some(Reason::PoolEmpty), _) if self.awaits_prefix_on(card) => self.why_no_prefix(card),
            // What the pool could ask for it would ask EC2 for.
            (Some(Reason::PoolEmpty) | None, Some((kind, _))) => self.reason_of(*kind),
            (Some(Reason::NoSubnet), _) if self.settings.custom_networking => Reason::NoEniConfig,
            (Some(reason), _) => reason,
            (None, None) => Reason::Starting,
        }
    }

    /// The same with the numbers that make it actionable.
    pub(super) fn shortage_in_numbers(&self, card: NetworkCard, now: Moment) -> String {
        let count = self.pool.counts_on(card, now);
        let enis = self.pool.enis().iter().filter(|eni| eni.card == card).count();
        let of = self.limits_of(card).map_or_else(String::new, |l| format!(" of {}", l.max_enis));
        let mut parts = vec![format!(
            "{} assigned, {} cooling, {} reserved, {} free; {enis}{of} ENIs",
            count.assigned, count.cooling, count.reserved, count.free
        )];
        let seconds = |until: Moment| until.since(now).as_secs_f32().ceil();
        if let Some(until) = self.pool.next_cooled_on(card, now) {
            parts.push(format!("the next address has cooled in {} s", seconds(until)));
        }
        if self.cloud.hold_until > now {
            parts.push(format!("EC2 is asked again in {} s", seconds(self.cloud.hold_until)));
        }
        if let Some(until) = self.pool.asks_again(now) {
            parts.push(format!("a subnet that was full is asked again in {} s", seconds(until)));
        }
        let subnets = self.free_in_subnets.iter().filter(|(subnet, _)| self.is_place(subnet));
        parts.extend(subnets.map(|(subnet, free)| format!("{subnet} had {free} free")));
        parts.extend(self.troubles());
        parts.join("; ")
    }

    /// What is wrong with EC2 or the host now, in words.
    pub(super) fn troubles(&self) -> Vec<String> {
        let told = |trouble: &Option<Trouble>, what: &str| {
            let (kind, text) = trouble.as_ref()?;
            Some(format!("{}: {what}{text}", self.reason_of(*kind)))
        };
        let cloud = [
            told(&self.cloud.trouble, ""),
            told(&self.cloud.blind, "the ENIs are not told: "),
            told(&self.cloud.kept, "what is to spare is not given back: "),
        ];
        let hold = (self.hold() != Hold::Nothing).then(|| match self.settings.provisioning {
            true => format!("{}: an operator holds back {}", Reason::OnHold, self.hold()),
            false => format!("{}: a setting allows no changes", Reason::OnHold),
        });
        let host = self.host.trouble.clone().into_iter().chain(self.host.fight());
        let cluster = self.eni_config_trouble();
        let cloud = cloud.into_iter().flatten().chain(self.memory_trouble());
        let rest = cluster.into_iter().chain(self.range_trouble()).chain(self.ipv6_troubles());
        let host = host.chain(self.link_troubles());
        cloud.chain(hold).chain(rest).chain(host).collect()
    }

    pub(super) fn cloud_wakeup(&self, now: Moment) -> Option<Moment> {
        self.facts.as_ref()?;
        let look = (!self.cloud.looking).then_some(self.cloud.look_at);
        let CloudState { hold_until, keep_until, no_eni_until, .. } = self.cloud;
        // What is past was looked at just now.
        let holds = [hold_until, keep_until, no_eni_until].into_iter().filter(|until| *until > now);
        look.into_iter().chain(holds).min()
    }
}
