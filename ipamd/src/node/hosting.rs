//! The host: what its kernel should hold, and what waits for that.
//!
//! What EC2 gives joins the pool only when the host's kernel is ready for it: an address on a secondary ENI must be
//! in the steering map before a pod has it. So every gain waits in `settling` for the next convergence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use datapath::{EniSpec, NodeSpec, PodSpec};
use ipnetwork::Ipv4Network;
use pool::{ActionId, EniSeen, Given, Outcome};
use types::{EniId, Mac, Moment, Prefix};

use super::event::{Effect, Facts, HostMade, HostWish, Picture};
use super::{Node, Settings};

/// How often to see whether the link of an ENI has appeared, as long as it may take.
const LINK_POLL: Duration = Duration::from_millis(100);
/// How long the link of a new ENI may take; longer than EC2's descriptions lag. Afterwards it is looked for as often as the rest.
const LINK_PATIENCE: Duration = Duration::from_secs(20);
/// How often the host's kernel is compared with what it should be although nothing happened.
const REPAIR_EVERY: Duration = Duration::from_secs(30);
/// Pause between a notice that somebody has changed something of ours and the look at it, so that one look is for all of
/// what was changed together. Doubles with each such look that follows one which had to put something back, up to
/// [`REPAIR_EVERY`]: with somebody who keeps undoing what we do there is no race.
const NOTICE_AFTER: Duration = Duration::from_millis(100);
/// The longest such pause while there is nothing to put back: others may be busy with what only looks like ours.
const IN_VAIN: Duration = Duration::from_millis(500);
/// With such a pause the race is told.
const FIGHT: Duration = Duration::from_secs(5);
/// Pause before the host's kernel is tried again after a failure that concerns the whole node. Doubles with each, up to
/// [`REPAIR_EVERY`].
const HOST_RETRY: Duration = Duration::from_secs(1);

/// How far the host's kernel is from what it should be.
#[derive(Debug, Default)]
pub(super) struct HostState {
    /// Number of the newest wish.
    generation: u64,
    under_way: bool,
    /// Something has changed since the newest wish.
    pub(super) dirty: bool,
    retry_at: Option<Moment>,
    /// Pause before that; none after a success.
    retry_after: Duration,
    /// ENIs whose link is not there, and since when.
    missing: BTreeMap<Mac, Moment>,
    /// When to see whether somebody else has changed something.
    repair_at: Moment,
    /// When that was last done.
    repaired_at: Moment,
    /// Somebody else has changed something since then.
    touched: bool,
    /// The last look has put something back.
    put_back: bool,
    /// Pause between two looks that notices lead to.
    pause: Duration,
    /// What was wrong the last time.
    pub(super) trouble: Option<String>,
    pub(super) settling: Vec<Settling>,
}

impl HostState {
    pub(super) fn wakeup(&self) -> Option<Moment> {
        let repair = (!self.under_way).then_some(self.repair_at);
        self.retry_at.into_iter().chain(repair).min()
    }

    /// Somebody else has changed something of ours, or may have.
    pub(super) fn touched(&mut self, now: Moment) {
        self.touched = true;
        let soon = now.plus(NOTICE_AFTER).max(self.repaired_at.plus(self.pause));
        self.repair_at = self.repair_at.min(soon);
    }

    /// Something that others had changed was put back.
    pub(super) const fn put_back(&mut self) {
        self.put_back = true;
    }

    /// A look begins, at pods too.
    fn looks(&mut self, now: Moment) {
        self.pause = match (self.touched, self.put_back) {
            (true, true) => (self.pause * 2).clamp(NOTICE_AFTER, REPAIR_EVERY),
            (true, false) => (self.pause * 2).clamp(NOTICE_AFTER, IN_VAIN),
            (false, _) => NOTICE_AFTER,
        };
        (self.touched, self.put_back) = (false, false);
        self.repaired_at = now;
        self.repair_at = now.plus(REPAIR_EVERY);
    }

    /// It failed for the whole node.
    fn failed(&mut self, error: String, now: Moment) {
        self.told(Some(error));
        self.dirty = true;
        self.retry_after = (self.retry_after * 2).clamp(HOST_RETRY, REPAIR_EVERY);
        self.retry_at = Some(now.plus(self.retry_after));
    }

    fn told(&mut self, trouble: Option<String>) {
        if let Some(error) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::error!(error, "the host's kernel is not as it should be");
        }
        self.trouble = trouble;
    }

    /// Which links are missing now. What may just be on its way is looked for soon.
    fn lacks(&mut self, missing: &BTreeSet<Mac>, now: Moment) {
        self.missing.retain(|mac, _| missing.contains(mac));
        for mac in missing {
            self.missing.entry(*mac).or_insert(now);
        }
        if self.missing.values().any(|since| now.since(*since) <= LINK_PATIENCE) {
            self.dirty = true;
            self.retry_at = Some(now.plus(LINK_POLL));
        }
    }

    /// That somebody keeps undoing what we do, in words.
    pub(super) fn fight(&self) -> Option<String> {
        let what = "others keep changing routes, rules, links or nftables of ours";
        (self.pause >= FIGHT).then(|| format!("{what}; seen to every {} s at most", self.pause.as_secs()))
    }
}

/// A gain that waits for the host's kernel.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) gain: Gain,
    /// The wish that covers it; `None` before there is one.
    generation: Option<u64>,
    since: Moment,
}

#[derive(Debug)]
pub(super) enum Gain {
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

    /// The ENI that a call has made.
    pub(super) fn new_eni(&self) -> Option<&EniSeen> {
        match self {
            Self::Action(_, Outcome::Created(eni)) => Some(eni),
            Self::Action(..) | Self::Picture(_) => None,
        }
    }
}

/// As networks: single addresses, and prefixes as what they are.
fn networks(given: &Given) -> impl Iterator<Item = Ipv4Network> {
    let prefixes = given.prefixes.iter();
    let prefixes = prefixes.filter_map(|prefix| Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok());
    given.addresses.iter().copied().map(Ipv4Network::from).chain(prefixes)
}

impl Node {
    pub(super) fn settle(&mut self, gain: Gain, now: Moment) {
        // A newer picture tells all that an older one does.
        if matches!(gain, Gain::Picture(_)) {
            self.host.settling.retain(|settling| !matches!(settling.gain, Gain::Picture(_)));
        }
        self.host.settling.push(Settling { gain, generation: None, since: now });
        self.host.dirty = true;
    }

    pub(super) fn converged(&mut self, generation: u64, result: Result<HostMade, String>, now: Moment) {
        self.host.under_way = false;
        let made = match result {
            Ok(made) => made,
            Err(error) => return self.host.failed(error, now),
        };
        self.host.retry_after = Duration::ZERO;
        self.host.put_back |= made.put_back;
        let refused: Vec<String> = made.refused.values().flatten().cloned().collect();
        self.host.told((!refused.is_empty()).then(|| refused.join("; ")));
        let covered = |s: &Settling| s.generation.is_some_and(|covered| covered <= generation);
        let (settled, waiting) = std::mem::take(&mut self.host.settling)
            .into_iter()
            .partition(|s: &Settling| covered(s) && !self.waits_for_its_eni(&s.gain, &made));
        self.host.settling = waiting;
        self.memory.dirty |= !settled.is_empty();
        for Settling { gain, .. } in settled {
            match gain {
                Gain::Action(id, outcome) => self.pool.finish(id, outcome, now),
                Gain::Picture(picture) => self.pictured(*picture, now),
            }
        }
        self.host.lacks(&made.missing, now);
        // Somebody may have taken the ENI away before its link was there.
        let late = |settling: &Settling| now.since(settling.since) > LINK_PATIENCE;
        if self.host.settling.iter().any(late) && now.since(self.cloud.looked_at) > LINK_PATIENCE {
            self.cloud.look_at = now;
        }
    }

    /// Whether the kernel is not ready for what a gain brings to one ENI. A picture brings what is there, in whatever state.
    fn waits_for_its_eni(&self, gain: &Gain, made: &HostMade) -> bool {
        match gain {
            Gain::Action(_, Outcome::Created(eni)) => !made.is_ready(&eni.mac),
            Gain::Action(id, Outcome::Assigned(_)) => {
                let on = self.pool.eni_of(*id);
                let mac = self.pool.enis().into_iter().find(|eni| Some(&eni.id) == on).map(|eni| eni.mac);
                mac.is_some_and(|mac| made.refused.contains_key(&mac))
            }
            Gain::Action(..) | Gain::Picture(_) => false,
        }
    }

    /// Gives up new ENIs that a picture taken long enough after them does not show.
    pub(super) fn give_up_what_is_gone(&mut self, picture: &Picture, now: Moment) {
        let waiting = std::mem::take(&mut self.host.settling);
        for settling in waiting {
            match &settling.gain {
                Gain::Action(id, Outcome::Created(eni))
                    if picture.as_of.since(settling.since) > LINK_PATIENCE
                        && picture.enis.iter().all(|seen| seen.id != eni.id)
                        && !picture.occupied.contains(&(eni.card, eni.device)) =>
                {
                    tracing::warn!(eni = %eni.id, "a new ENI is gone before its link was there");
                    self.pool.finish(*id, Outcome::Failed, now);
                }
                Gain::Action(..) | Gain::Picture(_) => self.host.settling.push(settling),
            }
        }
    }

    /// The VPC has other ranges now: packets to them keep their source address.
    pub(super) fn ranges(&mut self, ranges: Vec<Ipv4Network>) {
        if let Some(facts) = &mut self.facts {
            tracing::info!(?ranges, "the VPC's ranges have changed");
            facts.vpc_cidrs = ranges;
            self.host.dirty = true;
            self.memory.dirty = true;
        }
    }

    /// Asks for the host's kernel to be brought in line, one wish at a time; once in a while also when nothing of ours has
    /// changed, for others change it too.
    pub(super) fn wish(&mut self, now: Moment) {
        let repair = self.cloud.pictured && self.host.repair_at <= now;
        self.host.dirty |= repair;
        if self.host.retry_at.is_some_and(|at| at <= now) {
            self.host.retry_at = None;
        }
        let Some(facts) = &self.facts else { return };
        // Before the first picture nobody knows the ENIs' subnets, and a wish without ENIs takes their rules and tables away.
        let known =
            self.cloud.pictured || self.host.settling.iter().any(|s| matches!(s.gain, Gain::Picture(_)));
        if !known || !self.host.dirty || self.host.under_way || self.host.retry_at.is_some() {
            return;
        }
        let wish = self.host_wish(facts);
        self.host.generation += 1;
        self.host.under_way = true;
        self.host.dirty = false;
        // The start looks too: others may have been here while nobody did.
        if repair || self.host.touched || !self.cloud.pictured {
            self.effects.push(Effect::Mend(self.wired_pods()));
            self.host.looks(now);
        }
        let mut settling = std::mem::take(&mut self.host.settling);
        // A wish says nothing of an ENI whose range is not known.
        let covered = |s: &&mut Settling| !s.gain.new_eni().is_some_and(|eni| self.lacks_range(eni));
        for settling in settling.iter_mut().filter(covered) {
            settling.generation.get_or_insert(self.host.generation);
        }
        self.host.settling = settling;
        self.effects.push(Effect::Converge { generation: self.host.generation, host: Box::new(wish) });
    }

    fn host_wish(&self, facts: &Facts) -> HostWish {
        let known = self.pool.enis();
        let coming = self.host.settling.iter().flat_map(|s| s.gain.enis()).cloned();
        let mut enis: Vec<EniSpec> = Vec::new();
        let mut ids = BTreeMap::new();
        for seen in known.into_iter().chain(coming).filter(|eni| eni.role.is_for_pods()) {
            let Some(subnet) = self.subnets.get(&seen.subnet).copied() else { continue };
            let mut sources: BTreeSet<Ipv4Network> = networks(&seen.given()).collect();
            sources.extend(self.coming_to(&seen.id));
            if let Some(same) = enis.iter_mut().find(|spec| spec.mac == seen.mac) {
                same.sources.extend(sources);
                continue;
            }
            let EniSeen { id, mac, card, device, primary_address, .. } = seen;
            ids.insert(mac, id);
            let mtu = self.settings.eni_mtu;
            enis.push(EniSpec { mac, card, device, primary_address, subnet, mtu, sources });
        }
        enis.sort_by_key(|spec| (spec.card, spec.device));
        let families = self.settings.families;
        let no_snat = facts.vpc_cidrs.iter().chain(&self.settings.exclude_snat).copied();
        // An address of the node alone is translated wherever it goes.
        let no_snat = no_snat.filter(|_| families.has_ipv4_of_vpc()).collect();
        let ipv6_egress = self.ipv6_egress(facts);
        let has_ipv6 = || self.pool.owners().any(|(owner, _)| owner.ipv6.is_some());
        let ipv6 = families.needs_prefix() || ipv6_egress.is_some() || has_ipv6();
        // Later, the wiring thread owns the pods' table: a wish made before a DEL must not bring its route back.
        let pods = (!self.cloud.pictured).then(|| self.wired_pods());
        let Settings { marks, connmark, external_services, .. } = &self.settings;
        let (marks, external_services) = (marks.for_cards(&facts.limits.cards), external_services.clone());
        let (trunk, strict_branches) = (self.trunk_spec(), self.has_strict_branches());
        let node =
            NodeSpec { enis, marks, connmark: *connmark, ipv6, external_services, trunk, strict_branches };
        let (local, primary_address) = (families.local_range(), facts.primary_address);
        HostWish { node, no_snat, local, ipv6_egress, pods, primary_address, ids }
    }

    /// What the kernel should hold of each pod.
    pub(crate) fn wired_pods(&self) -> Vec<PodSpec> {
        let mtu = self.settings.pod_mtu;
        let families = self.settings.families;
        self.pool.owners().map(|(owner, grant)| families.pod_spec(owner, grant.address, mtu)).collect()
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
}
