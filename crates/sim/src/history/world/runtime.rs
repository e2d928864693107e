//! What the runtime hears: a pod runs, is refused, or is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use datapath::PodSpec;
use node::CallId;
use types::{EniId, HostVeth, PodName, Reason, SandboxKey, VethPrefix};
use wire::{Added, Detachment, Interface, Reply, Verb};

use super::super::met::Manner;
use super::{Due, End, Held, Pending, Phase, World, attachment, hold};

/// Answers.
impl World {
    pub(super) fn answered(&mut self, call: CallId, reply: Reply) -> Held {
        let Some(pending) = self.calls.remove(&call) else {
            // Nobody waits any more: the caller hung up.
            return Ok(());
        };
        match (&pending.request.verb, reply) {
            (Verb::Add(attachment), Reply::Added(added)) => {
                let sandbox = &attachment.sandbox;
                hold!(!self.ended.contains(sandbox), "I13: {sandbox} is brought back after its DEL");
                let ends = self.ends_of(&attachment.pod, &added)?;
                self.tally.adds += 1;
                self.added(call, &pending, ends);
            }
            (Verb::Add(_), Reply::Failed(failure)) => {
                self.say(|| format!("ADD fails: {} {}", failure.reason, failure.message));
                self.failed += u64::from(failure.reason != Reason::PolicyRefused);
                if let Some(number) = pending.pod {
                    self.refused(call, number);
                }
            }
            (Verb::Del(detachment), Reply::Done) => {
                self.ended.insert(detachment.sandbox.clone());
                self.deleted(call, &pending);
            }
            (Verb::Gc { .. }, Reply::Collected { .. }) => {}
            (verb, reply) => return Err(format!("{verb:?} is answered with {reply:?}")),
        }
        Ok(())
    }

    /// The interfaces that an ADD tells, each with an address and, if pods have IPv6 addresses too, another one.
    fn ends_of(&self, pod: &PodName, added: &Added) -> Result<Vec<End>, String> {
        let end = |(index, interface): (u8, &Interface)| {
            let dual = interface.other.is_some();
            hold!(dual == self.script.setup.dual, "an ADD with the wrong families: {added:?}");
            let IpAddr::V4(address) = interface.address.ip() else {
                return Err(format!("an ADD without an IPv4 address: {added:?}"));
            };
            let host_if = HostVeth::of_pod(&VethPrefix::default(), pod, index);
            hold!(interface.host_if == host_if.as_str(), "{pod} has not {host_if}: {added:?}");
            Ok(End { host_if, address })
        };
        hold!(!added.interfaces.is_empty(), "an ADD without an interface");
        (0..).zip(&added.interfaces).map(end).collect()
    }

    fn added(&mut self, call: CallId, pending: &Pending, ends: Vec<End>) {
        let Some(number) = pending.pod else { return };
        let Some(pod) = self.pods.get_mut(&number) else { return };
        if !matches!(pod.phase, Phase::Adding(of) if of == call) {
            return;
        }
        pod.phase = Phase::Running;
        let sandbox = self.sandbox(number);
        if self.is_wide(number) {
            let all = ends.len() == usize::from(self.cloud.cards);
            self.cloud.met.note(if all { Manner::WidePod } else { Manner::NarrowedPod });
        }
        for (index, End { address, .. }) in (0..).zip(&ends) {
            self.say(|| format!("{sandbox} runs with {address}"));
            // What was taken away may be given until the node looks at EC2 again, or hears by a call under way where it is now.
            let place = self.place_of(&attachment(&sandbox, index));
            let on = place.and_then(|eni| self.cloud.model.eni(&eni).ok());
            if on.is_some_and(|eni| eni.is_source(*address)) {
                self.robbed.remove(address);
            }
            self.lived.insert(*address);
        }
        self.live.insert(sandbox, ends);
        self.compared_at = None;
        self.host.compare();
    }

    /// The ENI that has an attachment's address as far as the node knows.
    pub(super) fn place_of(&self, attachment: &SandboxKey) -> Option<EniId> {
        let (_, grant) = self.node.as_ref()?.pool().owner(attachment)?;
        grant.place.map(|place| place.eni)
    }

    /// The interfaces of pods that run.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&SandboxKey, &End)> {
        self.live.iter().flat_map(|(sandbox, ends)| ends.iter().map(move |end| (sandbox, end)))
    }

    /// A pod that asks for it gets an interface of each network card that serves pods, any other one.
    pub(super) fn check_interfaces(&self, call: CallId, pods: &[PodSpec]) -> Held {
        let Some(node) = &self.node else { return Ok(()) };
        let Some(Verb::Add(add)) = self.calls.get(&call).map(|pending| &pending.request.verb) else {
            return Ok(());
        };
        let place = |pod: &PodSpec| node.pool().owner(&attachment(&add.sandbox, pod.index))?.1.place;
        let cards: BTreeSet<_> = pods.iter().map(|pod| place(pod).map(|place| place.card)).collect();
        let wanted = if add.multi_nic { node.pool().cards().len() } else { 1 };
        hold!(
            pods.len() == wanted && cards.len() == wanted,
            "{} wants {wanted}: {cards:?}, {pods:?}",
            add.pod
        );
        Ok(())
    }

    /// An ADD failed: the runtime cleans up and tries again.
    pub(super) fn refused(&mut self, call: CallId, number: u32) {
        let adding =
            self.pods.get(&number).is_some_and(|pod| matches!(pod.phase, Phase::Adding(of) if of == call));
        if adding {
            self.delete(number);
        }
    }

    pub(super) fn deleted(&mut self, call: CallId, pending: &Pending) {
        let Some(number) = pending.pod else { return };
        let sandbox = pending.sandbox.clone();
        let Some(pod) = self.pods.get_mut(&number) else { return };
        if !matches!(pod.phase, Phase::Deleting(of) if of == call) {
            return;
        }
        pod.phase = Phase::Absent;
        let pause = self.rng.millis(0, 2_000);
        if let Some(sandbox) = sandbox {
            if let (Verb::Del(detachment), true) = (&pending.request.verb, self.rng.percent(50)) {
                // As containerd does when it removes a sandbox that it has stopped, with nothing left of the result.
                let again = Detachment { addresses: Vec::new(), ..detachment.clone() };
                let later = self.rng.millis(0, 20_000);
                self.send(Verb::Del(again), Some(sandbox.clone()), None, later);
            }
            self.at(pause, Due::NetnsGone(sandbox));
        }
        let retry = self.rng.millis(100, 3_000);
        self.at(retry, Due::Retry(number));
    }
}
