//! What those who look at a pod in the cluster learn of it: why its ADD is held or has failed, and its address.

use std::net::Ipv4Addr;
use std::time::Duration;

use pool::Owner;
use types::{Moment, NetworkCard, Reason};
use wire::{Attachment, Failure, Interface};

use super::adding::of_card;
use super::event::{CallId, Effect};
use super::{Node, Pending};
use crate::cluster::{About, Note, PodIp, PodRef};

/// A wait that is shorter is nobody's business.
const QUIET: Duration = Duration::from_secs(3);
/// The annotation of a pod that was added so shortly before a start may not have been written.
const FRESH: Duration = Duration::from_secs(300);
/// What was to be done, in events.
const ACTION: &str = "AddNetwork";

impl Node {
    /// Answers an ADD with its failure, and has it said of the pod. An ADD that its own DEL has ended is missed by nobody.
    pub(super) fn fail_add(&mut self, id: CallId, attachment: &Attachment, failure: Failure) {
        if failure.reason != Reason::Superseded {
            let Failure { reason, message, details, .. } = &failure;
            let details = if details.is_empty() { String::new() } else { format!("; {details}") };
            self.tell(attachment, *reason, format!("{reason}: {message}{details}"));
        }
        self.fail(id, failure);
    }

    /// Has it said of pods whose ADD waits that it does, once for each reason.
    pub(super) fn tell_held(&mut self, now: Moment) {
        let untold: Vec<(CallId, Reason, NetworkCard)> = self
            .queue
            .iter()
            .filter_map(|id| {
                let Some(Pending::Add(add)) = self.pending.get(id) else { return None };
                let (reason, card) = add.reason();
                let due = now.since(add.since) >= QUIET && !add.told.contains(&reason);
                due.then_some((*id, reason, card))
            })
            .collect();
        for (id, reason, card) in untold {
            let Some(Pending::Add(add)) = self.pending.get(&id) else { continue };
            let why = match self.branch_wait(add) {
                Some((what, why)) => format!("held: {what}; {why}"),
                None => {
                    let numbers = self.shortage_in_numbers(card, now);
                    format!("held for want of an address{}; {numbers}", of_card(card))
                }
            };
            let Some(Pending::Add(add)) = self.pending.get_mut(&id) else { continue };
            add.told.insert(reason);
            let attachment = add.attachment.clone();
            self.tell(&attachment, reason, format!("{reason}: {why}"));
        }
    }

    /// When the first of those who wait has done so for too long to be passed over in silence.
    pub(super) fn held_wakeup(&self) -> Option<Moment> {
        let waits = self.queue.iter().filter_map(|id| match self.pending.get(id) {
            Some(Pending::Add(add)) if add.told.is_empty() => Some(add.since.plus(QUIET)),
            Some(Pending::Add(_) | Pending::Release { .. } | Pending::Check) | None => None,
        });
        waits.min()
    }

    /// Has a pod's address written to its object.
    pub(super) fn annotate(&mut self, attachment: &Attachment, interfaces: &[Interface]) {
        let pod = PodRef::of(&attachment.pod, &attachment.pod_uid).filter(|_| self.settings.annotate_pod_ip);
        if let (Some(pod), Some(first)) = (pod, interfaces.first()) {
            self.effects.push(Effect::Annotate(PodIp { pod, address: first.address.ip(), has: true }));
        }
    }

    /// Has a pod's address taken out of its object.
    pub(super) fn annotate_released(&mut self, owner: &Owner, address: Ipv4Addr) {
        let change = self.annotation(owner, address).map(|change| PodIp { has: false, ..change });
        self.effects.extend(change.map(Effect::Annotate));
    }

    /// Has written what the daemon before this one may not have written to the objects of pods that are still here.
    pub(super) fn annotate_fresh(&mut self, now: Moment) {
        let fresh = self
            .pool
            .holders()
            .filter(|(owner, _)| owner.further.is_none() && now.since(owner.since) < FRESH);
        let changes = fresh.filter_map(|(owner, address)| self.annotation(owner, address));
        let changes: Vec<PodIp> = changes.collect();
        self.effects.extend(changes.into_iter().map(Effect::Annotate));
    }

    fn annotation(&self, owner: &Owner, address: Ipv4Addr) -> Option<PodIp> {
        let pod = PodRef::of(&owner.pod, "").filter(|_| self.settings.annotate_pod_ip)?;
        let address = self.settings.families.addresses_of(owner, address).first().copied()?;
        Some(PodIp { pod, address, has: true })
    }

    fn tell(&mut self, attachment: &Attachment, reason: Reason, text: String) {
        let pod = PodRef::of(&attachment.pod, &attachment.pod_uid).filter(|_| self.settings.in_cluster);
        if let Some(pod) = pod {
            let (about, action) = (About::Pod(pod), ACTION.to_owned());
            self.effects.push(Effect::Tell(Note { about, reason: reason.word(), action, text }));
        }
    }
}
