//! What must hold: after every event, after a rest, and when everything has stopped.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use node::hold::Hold;
use node::{Chore, Node};
use pool::{Action, Role};
use types::{EniId, InstanceTable, NetworkCard, Prefix, SecurityGroupId};
use wire::CardReport;

use super::super::cloud::ipv6_prefixes;
use super::super::script::PODS;
use super::{End, Held, PATIENCE, Phase, World, hold};

/// So many pods are replaced at the end of a history, and each may cost so many changes in EC2: an ENI goes and another comes. So
/// many more were due anyway: the subnets had no room before, or what was to spare has been so for long enough.
const REPLACED: usize = 4;
const CALLS_FOR_ONE: u64 = 5;
const CALLS_DUE: u64 = 5;
/// So many pods wait on where a node has no room for them.
const LEFT_WAITING: usize = 1;

/// What must hold.
impl World {
    /// Always.
    pub(super) fn check(&mut self) -> Held {
        self.steered()?;
        let Some(node) = &self.node else { return Ok(()) };
        let pool = node.pool();
        pool.check().map_err(|violation| violation.to_string())?;
        // In order: this is done a hundred million times.
        let mut held: Vec<_> = pool.holders().map(|(owner, address)| (address, &owner.host_if)).collect();
        held.sort_unstable();
        let mut owned: Vec<_> = self.ends().map(|(sandbox, end)| (end.address, sandbox)).collect();
        owned.sort_unstable();
        if let Some([(address, one), (_, other)]) = owned.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("I4: {address} is {one}'s and {other}'s"));
        }
        for (sandbox, End { host_if, address }) in self.ends() {
            let holds = held.binary_search(&(*address, host_if)).is_ok();
            hold!(holds, "{sandbox} lives with {address}, the books do not have that under {host_if}");
        }
        if self.compared_at == Some(self.cloud.changes) {
            return Ok(());
        }
        self.host.compare();
        self.compared_at = Some(self.cloud.changes);
        let touched = self.cloud.touched();
        hold!(touched.is_none(), "I7: {touched:?}, which is not ours, is not as it was left");
        let allowed = self.cloud.allowed();
        let mut owned = self.ends().map(|(_, end)| end.address);
        let lost = owned.find(|address| !allowed.contains(address) && !self.robbed.contains(address));
        hold!(lost.is_none(), "I7: {lost:?} of a live pod is on no ENI any more");
        Ok(())
    }

    /// What other instances have left behind is left alone until it is sure to be a leak.
    pub(super) fn check_strays(&self, chores: &[Chore]) -> Held {
        let Some((eni, stray)) = self.cloud.too_early(chores, self.now) else { return Ok(()) };
        Err(format!("{eni} of another instance is deleted too early: {stray:?}"))
    }

    /// With custom networking, whether an address is the primary ENI's.
    pub(super) fn is_spared(&self, address: Ipv4Addr) -> bool {
        let primary = self.cloud.model.eni(&self.cloud.instance.primary_eni);
        self.script.setup.custom && primary.is_ok_and(|eni| eni.is_source(address))
    }

    /// With custom networking ENIs are made where the ENIConfig says, as far as the daemon was told, and nowhere else.
    pub(super) fn check_place(&self, action: &Action, groups: &[SecurityGroupId]) -> Held {
        let Action::CreateEni { subnet, .. } = action else { return Ok(()) };
        let allowed = !self.script.setup.custom || self.told.allows(subnet, groups);
        hold!(allowed, "an ENI is made in {subnet} with {groups:?}; the ENIConfig: {:?}", self.told);
        Ok(())
    }

    /// The runtime is told that there is a network: an address is free, or one can be had.
    pub(super) fn published(&mut self) -> Held {
        let Some(node) = &self.node else { return Ok(()) };
        let report = node.report(self.clock());
        let obtainable = report.capacity > report.addresses.total();
        let served = report.not_ready.is_empty() && (report.addresses.free > 0 || obtainable);
        hold!(served, "told of a network too early: {:?} {}", report.not_ready, brief(&report));
        hold!(!self.published, "told of a network twice: {}", brief(&report));
        self.published = true;
        Ok(())
    }

    /// From here on nothing bad happens.
    pub(super) fn rest(&mut self) -> Held {
        self.say(|| "rest".to_owned());
        self.cloud.calm();
        let away = self.cluster.restore(&mut self.cloud.met);
        if away {
            self.tell_cluster();
        }
        self.doomed = None;
        self.disk.fails = 0;
        self.wiring_fails = 0;
        self.host_fails = 0;
        self.put_on(Hold::Nothing)
    }

    /// Pods for which there is no room go elsewhere, all but a few: that more of them ask again and again shows nothing else.
    pub(super) fn thin_out(&mut self) {
        let Some(node) = &self.node else { return };
        let report = node.report(self.clock());
        if !report.not_ready.is_empty() {
            return;
        }
        let waiting = |wanted: Vec<u32>| wanted.into_iter().filter(|pod| !self.runs(*pod));
        let (homeless, wanted): (Vec<u32>, _) =
            (0..PODS).filter(|pod| self.is_wanted(*pod)).partition(|pod| self.is_homeless(*pod, &report));
        let excess = wanted.len().saturating_sub(self.room(&report).saturating_add(LEFT_WAITING));
        let leaving: Vec<u32> =
            waiting(homeless).skip(LEFT_WAITING).chain(waiting(wanted).take(excess)).collect();
        for pod in leaving {
            self.stop(pod);
        }
    }

    fn is_wanted(&self, pod: u32) -> bool {
        self.pods.get(&pod).is_some_and(|pod| pod.wanted)
    }

    /// Whether a pod wants an interface of each network card, and one of these has no room at all.
    fn is_homeless(&self, pod: u32, report: &wire::Report) -> bool {
        let full = |card: &CardReport| self.room_on(card, report) == 0;
        self.is_wide(pod) && report.cards.iter().any(full)
    }

    /// How many pods can have an address. A few of those with one of each network card leave room for the others on any.
    fn room(&self, report: &wire::Report) -> usize {
        let all: u32 = report.cards.iter().map(|card| self.room_on(card, report)).sum();
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    fn room_on(&self, card: &CardReport, report: &wire::Report) -> u32 {
        // A single address that a pod holds keeps a prefix from its slot. Of a prefix that is doubted not all addresses are there.
        let open = report.enis.iter().filter(|eni| eni.card == card.card && !self.cloud.is_closed(&eni.id));
        let singles = open.map(|eni| eni.addresses.total().saturating_sub(eni.prefixes * Prefix::ADDRESSES));
        let singles: u32 = singles.sum();
        let lost = if self.script.setup.prefixes { singles * 15 } else { 0 };
        card.capacity.saturating_sub(lost + self.held_by_others(card.card))
    }

    /// Pods whose address was taken away, or whose namespace has vanished, are made again.
    pub(super) fn heal(&mut self) {
        let allowed = self.cloud.allowed();
        let lives = |pod: u32| {
            let ends = self.live.get(&self.sandbox(pod))?;
            Some(ends.iter().all(|end| allowed.contains(&end.address)))
        };
        let runs = |pod: &u32| self.pods.get(pod).is_some_and(|pod| matches!(pod.phase, Phase::Running));
        let sick: Vec<u32> = (0..PODS).filter(runs).filter(|pod| lives(*pod) != Some(true)).collect();
        for pod in sick {
            self.delete(pod);
        }
    }

    /// After a rest: every pod that the node has room for runs, EC2 and the books agree, nothing is forgotten.
    pub(super) fn rested(&self) -> Held {
        let Some(node) = &self.node else { return Err("the daemon is down".to_owned()) };
        let report = node.report(self.clock());
        let homed = |pod: &u32| self.is_wanted(*pod) && !self.is_homeless(*pod, &report);
        let wanted = (0..PODS).filter(homed).count();
        let runs = self.live.len();
        let room = self.room(&report);
        hold!(
            runs >= wanted.min(room),
            "{runs} of {wanted} pods run, there is room for {room}: {}",
            brief(&report)
        );
        hold!(report.not_ready.is_empty(), "not ready: {:?}", report.not_ready);
        hold!(self.published || report.addresses.free == 0, "the runtime was not told: {}", brief(&report));
        let primary = self.cloud.model.enis_of(&self.cloud.instance.id);
        let prefixes: BTreeSet<_> = primary.flat_map(|eni| ipv6_prefixes(&eni.ipv6_prefixes)).collect();
        let known = report.ipv6_prefix;
        let right = known.is_none_or(|prefix| prefixes.contains(&prefix));
        hold!(right, "IPv6 addresses are of {known:?}, EC2 has {prefixes:?}");
        self.agreed(&report)
    }

    /// While all is well, pods that are replaced one by one get an address each, by their first ADD, and for few calls.
    pub(super) fn churn(&mut self) -> Held {
        // Where there is no room for all, others take the place.
        let crowded = self.pods.iter().any(|(pod, of)| of.wanted && !self.runs(*pod));
        let pods: Vec<u32> = (0..PODS).filter(|pod| self.runs(*pod) && !crowded).take(REPLACED).collect();
        let (before, failed) = (self.cloud.changes, self.failed);
        for pod in &pods {
            self.stop(*pod);
            self.pass(Some(Duration::from_secs(5)))?;
            self.start(*pod);
            self.pass(Some(PATIENCE))?;
            hold!(self.runs(*pod), "pod {pod} is replaced while all is well, and does not run");
        }
        hold!(self.failed == failed, "{} ADDs fail while all is well", self.failed - failed);
        let calls = self.cloud.changes - before;
        let most = CALLS_DUE + u64::try_from(pods.len()).unwrap_or(0) * CALLS_FOR_ONE;
        hold!(calls <= most, "{calls} changes for {} pods that are replaced while all is well", pods.len());
        Ok(())
    }

    fn runs(&self, pod: u32) -> bool {
        self.pods.get(&pod).is_some_and(|pod| matches!(pod.phase, Phase::Running))
    }

    /// Addresses for which others hold the places on a network card.
    fn held_by_others(&self, card: NetworkCard) -> u32 {
        let limits = InstanceTable::builtin().get(self.script.setup.instance_type);
        let slots = limits.map_or(0, |limits| u32::from(limits.slots_per_eni()));
        let each = if self.script.setup.prefixes { slots * Prefix::ADDRESSES } else { slots };
        each.saturating_mul(u32::try_from(self.cloud.closed_on(card)).unwrap_or(u32::MAX))
    }

    pub(super) fn agreed(&self, report: &wire::Report) -> Held {
        let here = self.cloud.model.enis_of(&self.cloud.instance.id).map(|eni| &eni.id);
        let here: BTreeSet<_> = here.filter(|eni| !self.cloud.is_efa_only(eni)).collect();
        let known: BTreeSet<_> = report.enis.iter().map(|eni| &eni.id).collect();
        hold!(here == known, "EC2 has {here:?}, the books {known:?}");
        let others = |eni: &EniId| self.cloud.is_claimed(eni) || self.cloud.is_foreign(eni);
        for eni in self.cloud.model.enis().filter(|eni| !others(&eni.id)) {
            let tie = eni.attachment.as_ref();
            hold!(tie.is_some(), "{} is leaked", eni.id);
            hold!(tie.is_some_and(|tie| tie.delete_on_termination), "{} would outlive the instance", eni.id);
        }
        let total = u32::try_from(self.cloud.allowed().len()).unwrap_or(u32::MAX);
        let held = report.addresses.total();
        hold!(held == total, "EC2 gives {total} addresses, the books have {held}: {}", brief(report));
        Ok(())
    }

    /// After everything has stopped: nothing is held, in the books or in the kernel.
    pub(super) fn emptied(&self) -> Held {
        let Some(node) = &self.node else { return Err("the daemon is down".to_owned()) };
        let report = node.report(self.clock());
        hold!(self.live.is_empty(), "pods live that were stopped: {:?}", self.live);
        hold!(report.pods.is_empty(), "addresses are held for nobody: {:?}", report.pods);
        hold!(report.addresses.reserved == 0, "addresses stay reserved: {:?}", report.addresses);
        hold!(self.links.is_empty(), "links are left: {:?}", self.links);
        self.unhoarded(node, &report)?;
        self.agreed(&report)
    }

    /// What nobody needs is given back: no more is idle than the targets want and one step, and nothing where pods get nothing more.
    fn unhoarded(&self, node: &Node, report: &wire::Report) -> Held {
        let now = self.clock();
        let ours = node.pool().enis();
        for eni in ours.iter().filter(|eni| eni.role.is_for_pods()) {
            let Some(why) = node.pool().exclusion(eni) else { continue };
            let idle = eni.given().all().count();
            hold!(idle == 0 && eni.role == Role::Primary, "{} keeps {idle} addresses: {why}", eni.id);
        }
        let idle = node.pool().counts(now).free;
        let most = self.aim_and_a_step();
        hold!(idle <= most, "{idle} addresses are idle, at most {most} are wanted: {}", brief(report));
        Ok(())
    }

    /// The most that an idle node keeps, counted by the settings alone.
    fn aim_and_a_step(&self) -> u32 {
        let setup = &self.script.setup;
        let limits = InstanceTable::builtin().get(setup.instance_type);
        let slots = limits.map_or(0, |limits| u32::from(limits.slots_per_eni()));
        let prefixes = setup.prefixes && limits.is_some_and(|limits| limits.prefix_delegation);
        let by_address = setup.warm_ip.unwrap_or(0).max(setup.minimum_ip.unwrap_or(0));
        let step = if prefixes { Prefix::ADDRESSES - 1 } else { 0 };
        let first = if by_address > 0 {
            by_address + step
        } else if setup.automatic {
            12 + step
        } else if prefixes {
            (setup.warm_prefix * Prefix::ADDRESSES).max(1) + step
        } else {
            // What came with an ENI that is never deleted stays there.
            (setup.warm_eni + 1) * slots + self.cloud.lent()
        };
        // Of each further network card one address is kept at hand, whatever the settings are.
        let further = if setup.cards { u32::from(self.cloud.cards) - 1 } else { 0 };
        first + further * (1 + step)
    }
}

/// A report in one line.
fn brief(report: &wire::Report) -> String {
    let enis = report.enis.iter().map(|eni| format!("{} at {} {:?}", eni.id, eni.device, eni.addresses));
    let waiting = report.waiting.iter().map(|waiting| format!("{} waits: {}", waiting.pod, waiting.reason));
    let rest = report.plan.iter().chain(&report.cloud).cloned();
    enis.chain(waiting).chain(rest).collect::<Vec<_>>().join("; ")
}
