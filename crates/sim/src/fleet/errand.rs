//! Errands: runs of EC2 calls that a daemon starts and hears the end of, each call with its client's retries.

use std::collections::VecDeque;
use std::time::Duration;

use pool::{Action, ActionId, Given, Wanted};
use types::{DeviceIndex, EniId, Moment};

use super::account::{Account, Api};
use super::instance::{Eni, Instance};
use crate::rng::Rng;

/// Longest pause between rounds of tries.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often a call is tried. The SDK tries again after throttling alone, after a random part of a time that doubles;
/// its caller may do the whole in rounds, whatever the refusal was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tries {
    /// Attempts of the SDK.
    attempts: u32,
    /// The longest pause before its second one.
    backoff: Duration,
    /// Rounds.
    rounds: u32,
    /// Pause after the first one.
    pause: Duration,
    /// Whether that doubles.
    doubles: bool,
}

impl Tries {
    /// One attempt.
    pub(crate) const ONCE: Self = Self::sdk(1, Duration::ZERO);

    /// So many attempts of the SDK.
    pub(crate) const fn sdk(attempts: u32, backoff: Duration) -> Self {
        Self { attempts, backoff, rounds: 1, pause: Duration::ZERO, doubles: false }
    }

    /// The same in rounds, with this pause between them.
    pub(crate) const fn rounds(self, rounds: u32, pause: Duration) -> Self {
        Self { rounds, pause, ..self }
    }

    /// The same in rounds, with a pause that doubles.
    pub(crate) const fn growing_rounds(self, rounds: u32, pause: Duration) -> Self {
        Self { rounds, pause, doubles: true, ..self }
    }
}

/// What EC2 said no with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Throttled,
    /// The ENI is attached.
    InUse,
}

/// One call, or a wait between calls. It is about the errand's ENI.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    /// A look at the ENIs; what the last one found is kept.
    Look,
    DescribeSubnets,
    DescribeInstances,
    Tag,
    SetGroups,
    Assign(Wanted),
    Unassign(Given),
    Create(Wanted),
    Attach(DeviceIndex),
    /// Deletion together with the instance.
    Tie,
    Detach,
    Delete,
    /// No call: from here on it is about this ENI.
    About(EniId),
    /// No call: a wait.
    Rest(Duration),
    /// No call: until the ENI's link is there.
    AwaitLink,
}

impl Deed {
    const fn api(&self) -> Option<Api> {
        Some(match self {
            Self::Look => Api::DescribeNetworkInterfaces,
            Self::DescribeSubnets => Api::DescribeSubnets,
            Self::DescribeInstances => Api::DescribeInstances,
            Self::Tag => Api::CreateTags,
            Self::SetGroups | Self::Tie => Api::ModifyNetworkInterfaceAttribute,
            Self::Assign(_) => Api::AssignPrivateIpAddresses,
            Self::Unassign(_) => Api::UnassignPrivateIpAddresses,
            Self::Create(_) => Api::CreateNetworkInterface,
            Self::Attach(_) => Api::AttachNetworkInterface,
            Self::Detach => Api::DetachNetworkInterface,
            Self::Delete => Api::DeleteNetworkInterface,
            Self::About(_) | Self::Rest(_) | Self::AwaitLink => return None,
        })
    }
}

/// What follows when a call is refused for good.
#[derive(Debug, Clone)]
pub(crate) enum Otherwise {
    /// The errand fails.
    Fail,
    /// The next step all the same.
    GoOn,
    /// The next step all the same, and the errand fails at its end.
    FailLater,
    /// These steps, and then it fails.
    Undo(Vec<Step>),
}

/// A step of an errand.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    deed: Deed,
    tries: Tries,
    otherwise: Otherwise,
}

impl Step {
    /// A step without which the errand fails.
    pub(crate) const fn must(deed: Deed, tries: Tries) -> Self {
        Self { deed, tries, otherwise: Otherwise::Fail }
    }

    /// A step whose refusal is passed over.
    pub(crate) const fn may(deed: Deed, tries: Tries) -> Self {
        Self { deed, tries, otherwise: Otherwise::GoOn }
    }

    /// A step whose refusal is told when the others are done.
    pub(crate) const fn each(deed: Deed, tries: Tries) -> Self {
        Self { deed, tries, otherwise: Otherwise::FailLater }
    }

    /// A step whose refusal undoes what was done before.
    pub(crate) const fn or_undo(deed: Deed, tries: Tries, undo: Vec<Self>) -> Self {
        Self { deed, tries, otherwise: Otherwise::Undo(undo) }
    }

    /// A step that calls nothing.
    pub(crate) const fn quiet(deed: Deed) -> Self {
        Self::may(deed, Tries::ONCE)
    }
}

/// What a daemon knows an errand by.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// Ours: a look that began at this moment.
    Look(Moment),
    /// Ours: an action of a plan.
    Act(ActionId, Box<Action>),
    /// Ours: what another errand has left behind.
    Tidy,
    /// The original's start.
    Init,
    /// The original's addresses for an ENI; `false` when it tries again with one.
    Fill(bool),
    /// The original's new ENI.
    Another,
    /// The original gives back what is too much.
    GiveBack,
    /// The original deletes an ENI.
    Delete,
    /// The original looks for ENIs that are attached to nothing, or deletes them.
    Sweep,
}

/// A run of calls.
#[derive(Debug)]
pub(crate) struct Errand {
    /// What its daemon knows it by.
    pub(crate) purpose: Purpose,
    /// The ENI it is about, or has made.
    pub(crate) eni: Option<EniId>,
    /// What EC2 gave.
    pub(crate) given: Given,
    /// What the last look found.
    pub(crate) found: Vec<Eni>,
    /// Why it failed.
    pub(crate) refused: Option<Refusal>,
    steps: VecDeque<Step>,
    attempt: u32,
    round: u32,
}

impl Errand {
    pub(crate) fn new(purpose: Purpose, eni: Option<EniId>, steps: Vec<Step>) -> Self {
        Self {
            purpose,
            eni,
            given: Given::default(),
            found: Vec::new(),
            refused: None,
            steps: steps.into(),
            attempt: 0,
            round: 0,
        }
    }

    /// Makes the next call; gives the time until the one after it, or `None` at the end.
    pub(crate) fn proceed(
        &mut self,
        account: &mut Account,
        instance: &mut Instance,
        rng: &mut Rng,
        now: Moment,
    ) -> Option<Duration> {
        let step = self.steps.pop_front()?;
        let Some(api) = step.deed.api() else { return Some(self.pass(step.deed, instance, now)) };
        self.attempt += 1;
        let result = match account.allows(api, now) {
            true => self.perform(&step.deed, instance, rng, now),
            false => Err(Refusal::Throttled),
        };
        match result {
            Ok(()) => {
                (self.attempt, self.round) = (0, 0);
                Some(api.takes(rng))
            }
            Err(refusal) => Some(Api::refusal() + self.after(step, refusal, rng)),
        }
    }

    /// A step without a call; how long it takes.
    fn pass(&mut self, deed: Deed, instance: &Instance, now: Moment) -> Duration {
        match (deed, &self.eni) {
            (Deed::Rest(time), _) => return time,
            (Deed::AwaitLink, Some(eni)) => return instance.until_linked(eni, now),
            (Deed::About(eni), _) => self.eni = Some(eni),
            _ => {}
        }
        Duration::ZERO
    }

    /// Tries again, or follows what the step says; gives the pause before.
    fn after(&mut self, step: Step, refusal: Refusal, rng: &mut Rng) -> Duration {
        let tries = step.tries;
        if refusal == Refusal::Throttled && self.attempt < tries.attempts {
            let most = tries.backoff.saturating_mul(1 << (self.attempt - 1).min(16));
            self.steps.push_front(step);
            return rng.millis(0, u64::try_from(most.as_millis()).unwrap_or(0));
        }
        (self.attempt, self.round) = (0, self.round + 1);
        if self.round < tries.rounds {
            let factor = if tries.doubles { 1 << (self.round - 1).min(16) } else { 1 };
            self.steps.push_front(step);
            return tries.pause.saturating_mul(factor).min(PAUSE_MAX);
        }
        self.round = 0;
        match step.otherwise {
            Otherwise::GoOn => return Duration::ZERO,
            Otherwise::FailLater => {}
            Otherwise::Fail => self.steps.clear(),
            Otherwise::Undo(steps) => self.steps = steps.into(),
        }
        self.refused = Some(refusal);
        Duration::ZERO
    }

    fn perform(
        &mut self,
        deed: &Deed,
        instance: &mut Instance,
        rng: &mut Rng,
        now: Moment,
    ) -> Result<(), Refusal> {
        instance.settle(now);
        if let Deed::Look = deed {
            self.found.clone_from(&instance.enis);
        }
        if let Deed::Create(wanted) = deed {
            self.eni = instance.create(*wanted, now);
            self.given = self
                .eni
                .as_ref()
                .and_then(|id| instance.eni(id))
                .map(|eni| eni.given.clone())
                .unwrap_or_default();
        }
        let Some(id) = &self.eni else { return Ok(()) };
        match deed {
            Deed::Assign(wanted) => self.given = instance.assign(id, *wanted),
            Deed::Unassign(given) => instance.unassign(id, given),
            Deed::Attach(device) => instance.attach(id, *device, rng, now),
            Deed::Detach => instance.detach(id, rng, now),
            Deed::Delete if !instance.delete(id, now) => return Err(Refusal::InUse),
            Deed::Tie => instance.eni_mut(id).into_iter().for_each(|eni| eni.tied = true),
            Deed::Tag => instance.eni_mut(id).into_iter().for_each(|eni| eni.tagged = true),
            Deed::Look
            | Deed::DescribeSubnets
            | Deed::DescribeInstances
            | Deed::SetGroups
            | Deed::Create(_)
            | Deed::Delete
            | Deed::About(_)
            | Deed::Rest(_)
            | Deed::AwaitLink => {}
        }
        Ok(())
    }
}
