//! The daemon dies, starts again, and is told what the host is.

use std::collections::BTreeSet;
use std::time::Duration;

use node::cloud::{CloudError, CloudErrorKind};
use node::store::{Loaded, Record, VERSION};
use node::{CallId, Event, Facts, Node, PodInKernel, Restored, restore};
use pool::{Action, PICTURE_LAG_MAX};
use types::{InstanceTable, Moment};
use wire::queue::QueuedDel;
use wire::{PROTOCOL, Request, Verb};

use super::super::cluster::Told;
use super::super::met::Manner;
use super::super::no_limits;
use super::super::plant::Plant;
use super::{Due, Held, Job, Pending, World};

/// How the daemon dies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doom {
    /// After so many effects.
    after: u32,
    down: Duration,
    jump: i64,
    amnesia: bool,
}

/// The daemon's life.
impl World {
    /// The daemon dies: at once, or among the effects of what it hears next.
    pub(super) fn doom(&mut self, down: Duration, jump: i64, amnesia: bool) {
        // Not drawn, so that other histories stay as they are.
        let mut chance = self.rng.clone();
        match chance.percent(50) {
            true => self.doomed = Some(Doom { after: chance.small(8), down, jump, amnesia }),
            false => self.crash(down, jump, amnesia),
        }
    }

    /// Whether the daemon dies before it has done what it wanted next.
    pub(super) fn dies(&mut self) -> bool {
        let Some(doom) = &mut self.doomed else { return false };
        if let Some(less) = doom.after.checked_sub(1) {
            doom.after = less;
            return false;
        }
        let Doom { down, jump, amnesia, .. } = *doom;
        self.doomed = None;
        self.crash(down, jump, amnesia);
        true
    }

    pub(super) fn crash(&mut self, down: Duration, jump: i64, amnesia: bool) {
        if self.node.take().is_none() {
            return;
        }
        // Where it has forgotten all and EC2 tells no tags it takes an ENI with the address of a pod for its own, which nobody can help.
        let tells_tags = !self.script.setup.metadata;
        let amnesia =
            amnesia && (tells_tags || !self.links.values().any(|link| self.cloud.is_others(link.address)));
        self.epoch += 1;
        self.cloud.forget_strays();
        self.clock_at_crash = self.clock();
        self.skew = self.skew.saturating_add(jump.saturating_mul(1000)).clamp(-900_000_000, 900_000_000);
        if amnesia {
            self.disk.records.clear();
            self.memory = None;
            self.host.forgotten(self.now.plus(down));
        }
        if amnesia || jump > 0 {
            // What it has just given back it cannot know, or not that it was just now: it allows for what descriptions lag as a rule,
            // and no more.
            self.cloud.prompt_until = self.now.plus(down).plus(PICTURE_LAG_MAX);
        }
        self.disk.broken = false;
        self.disk.asked_for_new = false;
        self.wiring_free = self.now;
        self.writing_free = self.now;
        // Plugins that wait see their connection end.
        let cut: Vec<CallId> =
            self.calls.iter().filter(|(_, pending)| pending.arrived).map(|(call, _)| *call).collect();
        for call in cut {
            self.unserved(call);
        }
        self.at(down, Due::Start);
    }

    /// A plugin without a daemon: ADD fails, DEL goes into the queue and succeeds.
    pub(super) fn unserved(&mut self, call: CallId) {
        let Some(pending) = self.calls.remove(&call) else { return };
        if let Verb::Del(detachment) = &pending.request.verb {
            let started_ns = pending.request.started_ns;
            self.queue.push(QueuedDel { detachment: detachment.clone(), started_ns });
            self.deleted(call, &pending);
        } else if let Some(number) = pending.pod {
            self.refused(call, number);
        }
    }

    pub(super) fn begin(&mut self) -> Held {
        if self.node.is_some() {
            return Ok(());
        }
        let now = self.clock();
        let kernel: Vec<PodInKernel> = self
            .links
            .iter()
            .map(|(host_if, link)| PodInKernel {
                host_if: host_if.clone(),
                addresses: link.addresses.clone(),
                by_us: true,
                branch: None,
            })
            .collect();
        if self.disk.records.is_empty() {
            // Nobody can know what cooled, nor who went while the daemon was down.
            self.unwired.clear();
            self.lived.retain(|address| self.links.values().any(|link| link.address == *address));
        }
        let kernel = if self.plant == Some(Plant::IgnoresTheKernel) { Vec::new() } else { kernel };
        let mut records = self.disk.records.clone();
        if self.plant == Some(Plant::ForgetsCooling) {
            forget_cooling(&mut records);
        }
        let Restored { pool, leftovers, ipv6, .. } = restore(
            self.script.setup.cooldown,
            Loaded { records, ..Loaded::default() },
            &kernel,
            &mut |host_if| self.links.contains_key(host_if),
            self.epoch > 0,
            now,
        );
        self.disk.records =
            vec![Record::Snapshot { version: VERSION, pool: Box::new(pool.snapshot()), ipv6 }];
        self.published = false;
        // An ADD that was overtaken before a restart the runtime does not send on (I13).
        self.ended.clear();
        self.told = Told::default();
        self.telling = self.now;
        self.early = 0;
        self.say(|| format!("the daemon starts; it holds {} addresses", pool.holders().count()));
        for pod in leftovers {
            self.wire(Job::Remove(pod))?;
        }
        let seed = self.rng.next();
        let mut settings = self.script.setup.settings();
        settings.custom_networking &= self.plant != Some(Plant::UsesThePrimary);
        let mut node = Node::new(settings, pool, seed, now);
        node.remember_ipv6(ipv6);
        self.node = Some(node);
        self.tick_at = Moment(u64::MAX);
        self.hear(Event::Held(self.hold))?;
        let dark = self.recall()?;
        self.replay()?;
        let facts = Box::new(self.facts());
        let pause = self.rng.millis(1, 500) + dark;
        self.at(pause, Due::Hear(self.epoch, Box::new(Event::Identified(facts))));
        if self.script.setup.in_cluster {
            self.tell_cluster();
        }
        Ok(())
    }

    /// DELs that came while the daemon was down.
    fn replay(&mut self) -> Held {
        for queued in std::mem::take(&mut self.queue) {
            // It has died among the effects of the one before.
            if self.node.is_none() {
                self.queue.push(queued);
                continue;
            }
            let QueuedDel { detachment, started_ns } = queued;
            self.last_call += 1;
            let call = CallId(self.last_call);
            let request = Request {
                version: PROTOCOL,
                patience_ms: 10_000,
                started_ns,
                trace: None,
                verb: Verb::Del(detachment),
            };
            let pending = Pending { request: request.clone(), sandbox: None, pod: None, arrived: true };
            self.calls.insert(call, pending);
            self.hear(Event::Call { id: call, request, descriptors: false })?;
        }
        Ok(())
    }

    /// The daemon reads what is on disk of its instance, and may have to go on from it: how long nobody tells more.
    fn recall(&mut self) -> Result<Duration, String> {
        self.cloud.advance(self.now);
        if let Some(mut remembered) = self.memory.clone() {
            let here = self.cloud.model.enis_of(&self.cloud.instance.id);
            let links: BTreeSet<_> = here.filter(|eni| eni.inside().is_some()).map(|eni| eni.mac).collect();
            remembered.leave_out(|eni| !links.contains(&eni.mac));
            self.hear(Event::Remembered(remembered))?;
        }
        let dark = self.cloud.dark_until.since(self.now);
        if dark.is_zero() || self.script.setup.metadata {
            return Ok(Duration::ZERO);
        }
        self.cloud.met.note(Manner::DarkStart);
        let silence = CloudError::new(CloudErrorKind::Unreachable, "identity", "no answer");
        self.hear_later(self.rng.clone().millis(1, 3_000), Event::Unidentified(silence));
        Ok(dark)
    }

    pub(super) fn facts(&self) -> Facts {
        let instance = &self.cloud.instance;
        let limits = InstanceTable::builtin().get(&instance.instance_type).cloned();
        Facts {
            instance: instance.id.clone(),
            limits: limits.unwrap_or_else(|| no_limits(&instance.instance_type)),
            primary_address: instance.address,
            subnet: self.cloud.subnet().clone(),
            vpc_cidrs: Vec::new(),
            ipv6: None,
        }
    }

    /// The daemon is told to ask for addresses in the other form, and restarted.
    pub(super) fn change_mode(&mut self, down: Duration) {
        self.script.setup.prefixes = !self.script.setup.prefixes;
        self.crash(down, 0, false);
    }

    /// Whether a planted bug keeps EC2 from hearing of this: idle addresses in the form that is no longer wanted stay.
    pub(super) fn is_planted_refusal(&self, action: &Action) -> bool {
        let Action::Release { given, .. } = action else { return false };
        let wanted =
            if self.script.setup.prefixes { given.addresses.is_empty() } else { given.prefixes.is_empty() };
        self.plant == Some(Plant::KeepsTheOtherForm) && !wanted
    }
}

fn forget_cooling(records: &mut [Record]) {
    for record in records {
        if let Record::Snapshot { pool, .. } = record {
            pool.cooling.clear();
        }
    }
}
