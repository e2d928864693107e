//! DEL, GC, and those whose DEL may never come: what a sandbox held comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use pool::{Grant, Owner};
use types::{HostVeth, Moment, NetworkCard, SandboxKey};
use wire::{Detachment, Kept, Reply};

use super::adding::{MTU_DEFAULT, Pending, host_if_of};
use super::event::{CallId, Effect};
use super::{Node, restore};
use crate::store::Record;

/// How many released sandboxes are remembered, so that an ADD which a DEL has overtaken is recognised.
pub const RELEASED_KEPT: usize = 4096;
/// Pause between two questions to the kernel about holders whose DEL may never come.
const SURVEY_EVERY: Duration = Duration::from_secs(5);

impl Node {
    /// Has the kernel asked whether those still live whose DEL may never come: a sandbox whose name another one waits for, pods
    /// that only the kernel knew, and such that another daemon may have deleted.
    pub(super) fn survey(&mut self, now: Moment) {
        if self.surveying || self.survey_at > now {
            return;
        }
        let doubtful = self.doubtful_holders();
        if doubtful.is_empty() {
            // They come with the start alone.
            self.placeholders = false;
            return;
        }
        self.surveying = true;
        self.survey_at = now.plus(SURVEY_EVERY);
        self.effects.push(Effect::Survey(doubtful));
    }

    pub(super) fn survey_wakeup(&self) -> Option<Moment> {
        (!self.surveying && !self.doubtful_holders().is_empty()).then_some(self.survey_at)
    }

    fn doubtful_holders(&self) -> Vec<(SandboxKey, HostVeth)> {
        let names = |id| match self.pending.get(id) {
            Some(Pending::Add(add)) => self.names_wanted(add),
            Some(Pending::Release { .. } | Pending::Check) | None => Vec::new(),
        };
        let wanted: BTreeSet<HostVeth> = self.queue.iter().flat_map(names).collect();
        if wanted.is_empty() && !self.placeholders {
            return Vec::new();
        }
        let doubtful = |owner: &Owner| {
            restore::is_placeholder(&owner.sandbox)
                || self.doubted.contains(&owner.sandbox)
                || (wanted.contains(&owner.host_if) && !self.adding.contains_key(owner.main()))
        };
        let owners = self.pool.holders().map(|(owner, _)| owner).filter(|owner| doubtful(owner));
        owners.map(|owner| (owner.sandbox.clone(), owner.host_if.clone())).collect()
    }

    /// The kernel was asked for sandboxes, and these have no link any more.
    pub(super) fn surveyed(&mut self, dead: &[SandboxKey], now: Moment) {
        self.surveying = false;
        self.dead(dead, now);
    }

    /// Pods were compared with what they should be. Of some nothing is there any more: the daemon before may have answered their DEL,
    /// and neither the disk has taken it down nor the kernel carried it out. One of several interfaces alone is no pod's end (I15).
    pub(super) fn pods_compared(&mut self, put_back: bool, lost: &[HostVeth], now: Moment) {
        if put_back {
            self.host.put_back();
        }
        let lost: BTreeSet<&SandboxKey> =
            lost.iter().filter_map(|host_if| self.pool.holder_of(host_if)).collect();
        let is_gone = |sandbox: &SandboxKey| {
            let main = self.pool.owner(sandbox).map_or(sandbox, |(owner, _)| owner.main());
            self.pool.interfaces_of(main).iter().all(|owner| lost.contains(&owner.sandbox))
        };
        let dead: Vec<SandboxKey> =
            lost.iter().copied().filter(|sandbox| is_gone(sandbox)).cloned().collect();
        self.dead(&dead, now);
        self.compared();
    }

    /// These have no link any more. One that is being added again meanwhile gets a new one.
    fn dead(&mut self, sandboxes: &[SandboxKey], now: Moment) {
        let main = |sandbox| self.pool.owner(sandbox).map_or(sandbox, |(owner, _)| owner.main());
        let dead = sandboxes.iter().filter(|sandbox| !self.adding.contains_key(main(sandbox)));
        let dead: Vec<SandboxKey> = dead.cloned().collect();
        let records: Vec<Record> = dead.iter().filter_map(|sandbox| self.release(sandbox, now)).collect();
        if !records.is_empty() {
            tracing::warn!(count = records.len(), "sandboxes without a link are released");
            let batch = self.next_batch();
            self.effects.push(Effect::Append(batch, records));
        }
    }

    /// DEL: routes and bookkeeping at once, whoever asks (I5).
    pub(super) fn del(&mut self, id: CallId, detachment: &Detachment, started_ns: u64, now: Moment) {
        let sandbox = &detachment.sandbox;
        self.remember_release(sandbox, started_ns);
        if let Some(add) = self.adding.get(sandbox).copied() {
            return self.supersede(add, id, now);
        }
        let mut gone = self.attachments_of(sandbox);
        gone.extend(
            self.placeholders_of(detachment).into_iter().filter(|held| self.is_meant(detachment, held)),
        );
        let records = gone.iter().filter_map(|sandbox| self.release(sandbox, now)).collect();
        self.release_reply(id, records, Reply::Done);
    }

    /// What is held for a pod that only the kernel knew, by the names of its host ends, whatever the setting was when they were named.
    fn placeholders_of(&self, detachment: &Detachment) -> Vec<SandboxKey> {
        // They come with a start alone.
        if !self.placeholders {
            return Vec::new();
        }
        let Detachment { sandbox, pod, veth_prefix, .. } = detachment;
        let names = (0..NetworkCard::COUNT_MAX).map(|index| host_if_of(sandbox, pod, veth_prefix, index));
        let names: Vec<HostVeth> = names.collect();
        let owners = self.pool.holders().map(|(owner, _)| owner);
        let its = owners.filter(|owner| {
            let same = |name: &HostVeth| name.hash() == owner.host_if.hash();
            restore::is_placeholder(&owner.sandbox) && names.iter().any(same)
        });
        its.map(|owner| owner.sandbox.clone()).collect()
    }

    /// Whether a DEL is about what only the kernel told: that has the pod's name, and runtimes repeat the DEL of a sandbox when the
    /// pod's next one lives. Where the result of the ADD does not tell its address, it is the kernel that tells its end.
    fn is_meant(&self, detachment: &Detachment, held: &SandboxKey) -> bool {
        let Some((owner, grant)) = self.pool.owner(held) else { return false };
        let own = self.settings.families.pod_spec(owner, grant.address, MTU_DEFAULT).addresses;
        detachment.pod.name.is_empty() || own.iter().any(|address| detachment.addresses.contains(address))
    }

    /// The attachments that come and go with one that the runtime knows, itself included.
    pub(super) fn attachments_of(&self, sandbox: &SandboxKey) -> Vec<SandboxKey> {
        self.pool.interfaces_of(sandbox).into_iter().map(|owner| owner.sandbox.clone()).collect()
    }

    /// Has the pool release a sandbox.
    pub(super) fn let_go(&mut self, sandbox: &SandboxKey, now: Moment) -> Option<(Owner, Grant)> {
        self.heed_astray(sandbox);
        self.pool.release(sandbox, now)
    }

    /// Nobody gets the address that a sandbox is about to give back before the kernel leads it out as it should.
    pub(super) fn heed_astray(&mut self, sandbox: &SandboxKey) {
        let Some((_, grant)) = self.pool.owner(sandbox) else { return };
        if self.leads_astray(&grant) {
            self.pool.lead_astray(grant.address);
            self.host.dirty = true;
        }
    }

    /// Releases a sandbox; `None` for one that holds nothing.
    pub(super) fn release(&mut self, sandbox: &SandboxKey, now: Moment) -> Option<Record> {
        let (owner, grant) = self.let_go(sandbox, now)?;
        let pod = self.settings.families.pod_spec(&owner, grant.address, MTU_DEFAULT);
        // The agent knows pods, not their interfaces.
        if owner.further.is_none() {
            self.forget_policies(&owner.pod);
            self.annotate_released(&owner, grant.address);
        }
        self.effects.push(Effect::Unwire(pod));
        Some(Record::Released { sandbox: sandbox.clone(), at: now })
    }

    pub(super) fn release_reply(&mut self, id: CallId, records: Vec<Record>, reply: Reply) {
        if records.is_empty() {
            return self.reply(id, reply);
        }
        let batch = self.next_batch();
        self.effects.push(Effect::Append(batch, records));
        self.pending.insert(id, Pending::Release { batch, reply });
    }

    pub(super) fn remember_release(&mut self, sandbox: &SandboxKey, started_ns: u64) {
        if let Some(before) = self.released.get_mut(sandbox) {
            *before = started_ns.max(*before);
            return;
        }
        self.released.insert(sandbox.clone(), started_ns);
        self.released_order.push_back(sandbox.clone());
        if self.released_order.len() > RELEASED_KEPT
            && let Some(oldest) = self.released_order.pop_front()
        {
            self.released.remove(&oldest);
        }
    }

    pub(super) fn gc(&mut self, id: CallId, network_name: &str, valid: &[Kept], now: Moment) {
        let kept = |sandbox: &SandboxKey| {
            valid.iter().any(|k| k.container_id == sandbox.container_id() && k.if_name == sandbox.if_name())
        };
        let stale: Vec<SandboxKey> = self
            .pool
            .owners()
            .map(|(owner, _)| (owner, owner.main()))
            .filter(|(_, s)| s.network_name() == network_name && !kept(s) && !self.adding.contains_key(*s))
            .map(|(owner, _)| owner.sandbox.clone())
            .collect();
        let records: Vec<Record> = stale.iter().filter_map(|sandbox| self.release(sandbox, now)).collect();
        let released = u32::try_from(records.len()).unwrap_or(u32::MAX);
        self.release_reply(id, records, Reply::Collected { released });
    }
}
