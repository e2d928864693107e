//! What the daemon before knew: pods are served from it while neither instance metadata nor EC2 tells anything.
//!
//! It says which addresses there are and how the host's kernel leads to them. Nothing is asked of EC2 on its word: what calls did
//! since, and who else was there, only a look tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use pool::{EniSeen, Grant, Owner, PICTURE_LAG_MAX, Role};
use serde::{Deserialize, Serialize};
use types::{DeviceIndex, EniId, Ipv6Prefix, Moment, NetworkCard, Reason, SubnetId};

use super::Node;
use super::event::{Effect, Facts, Picture};
use super::hosting::Gain;
use super::looking::LOOK_AGAIN;

/// What a start needs to know of its instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The instance.
    pub facts: Facts,
    /// Its ENIs, without what was on its way out.
    pub enis: Vec<EniSeen>,
    /// ENIs by which packets of pods leave although the last description had them not, with these pods' addresses.
    #[serde(default)]
    pub stranded: Vec<EniSeen>,
    /// Addresses of pods that no ENI had.
    #[serde(default)]
    pub lost: BTreeSet<Ipv4Addr>,
    /// Those of the ENIs that are not here any more. Not on disk.
    #[serde(skip)]
    pub unlinked: Vec<EniSeen>,
    /// Places on it that hold something else.
    pub occupied: BTreeSet<(NetworkCard, DeviceIndex)>,
    /// Network cards on which an EFA-only ENI stands.
    pub efa_only: BTreeSet<NetworkCard>,
    /// Ranges of the subnets.
    pub subnets: BTreeMap<SubnetId, Ipv4Network>,
    /// Subnets whose ENIs get no more pods.
    pub excluded: BTreeSet<SubnetId>,
    /// The IPv6 prefix of each ENI that has one.
    #[serde(default)]
    pub ipv6: BTreeMap<EniId, Ipv6Prefix>,
    /// Others that pods may have addresses of, by the ENI by which these leave; EC2 may show them no more.
    #[serde(default)]
    pub ipv6_further: BTreeMap<EniId, BTreeSet<Ipv6Prefix>>,
    /// That of the primary ENI, for daemons that know no others.
    #[serde(default)]
    pub ipv6_prefixes: BTreeSet<Ipv6Prefix>,
}

impl Remembered {
    /// Takes ENIs that are not here any more from those that may serve pods. It stays known what was theirs.
    pub fn leave_out(&mut self, is_gone: impl Fn(&EniSeen) -> bool) {
        self.stranded.retain(|eni| !is_gone(eni));
        let (gone, here) = std::mem::take(&mut self.enis).into_iter().partition(&is_gone);
        (self.unlinked, self.enis) = (gone, here);
    }
}

/// What is remembered, and whether the node lives on it.
#[derive(Debug, Default)]
pub(super) struct MemoryState {
    /// What the daemon before knew.
    before: Option<Box<Remembered>>,
    /// What was last put on disk.
    last: Option<Box<Remembered>>,
    /// Something may have changed since.
    pub(super) dirty: bool,
    /// The facts are those of before.
    pub(super) old_facts: bool,
    /// The ENIs are known as they were before.
    pub(super) old_picture: bool,
}

impl Node {
    /// Takes in what the daemon before knew: it is used when nobody tells anything newer.
    pub(super) fn remembered(&mut self, mut remembered: Remembered) {
        let primary = remembered.enis.iter().find(|eni| eni.role == Role::Primary);
        if let Some((primary, prefix)) = primary.zip(remembered.ipv6_prefixes.pop_first()) {
            remembered.ipv6.insert(primary.id.clone(), prefix);
        }
        self.memory.before = Some(Box::new(remembered));
    }

    /// Serves pods from what is remembered, as something that is asked for at the start has no answer.
    pub(super) fn recall(&mut self, now: Moment) {
        if self.cloud.pictured || self.memory.old_picture {
            return;
        }
        let Some(before) = self.memory.before.clone() else { return };
        let Remembered { facts, enis, occupied, efa_only, subnets, excluded, ipv6, .. } = *before;
        match &self.facts {
            Some(known) if known.instance != facts.instance => {
                tracing::warn!(of = %facts.instance, "what is remembered is of another instance, and not used");
                self.memory.before = None;
                return;
            }
            Some(_) => {}
            None => {
                self.memory.old_facts = true;
                self.take_facts(facts);
            }
        }
        tracing::warn!(
            enis = enis.len(),
            "instance metadata or EC2 does not answer: pods are served from what was known before"
        );
        self.memory.old_picture = true;
        self.pool.set_excluded(excluded);
        self.subnets.extend(subnets.clone());
        let mut picture = Picture {
            // Any word of anybody is newer, and so is what calls were to take away.
            as_of: Moment(0),
            enis,
            occupied,
            efa_only,
            subnets,
            ipv6_prefixes: ipv6.into_iter().map(|(eni, prefix)| (eni, [prefix].into())).collect(),
            from_metadata: true,
            recalled: true,
            ..Picture::default()
        };
        self.make_local(&mut picture.enis);
        self.settle(Gain::Picture(Box::new(picture)), now);
    }

    /// The ENIs of before, while nothing is known anew, for the pods that had their addresses: the first descriptions may lack what was
    /// made a moment ago, or have an address elsewhere. How pods were led out goes before what was told.
    pub(super) fn known_before(&self) -> impl Iterator<Item = EniSeen> {
        let before = self.of_before().filter(|_| !self.cloud.pictured);
        let enis = before.into_iter().flat_map(|before| before.stranded.iter().chain(&before.enis));
        enis.map(|eni| EniSeen { role: Role::Unmanaged, ..eni.clone() })
    }

    /// Whether a pod had lost an address already before the start, to whomever: as far as is known no ENI had it, nor this one led it out.
    pub(super) fn was_lost_by(&self, eni: &EniId, address: Ipv4Addr) -> bool {
        let led = |before: &Remembered| {
            before.stranded.iter().any(|led| led.id == *eni && led.addresses.contains(&address))
        };
        self.of_before().is_some_and(|before| before.lost.contains(&address) && !led(before))
    }

    /// The ENIs that the daemon before was told of, those too that are not here any more.
    pub(super) fn told_before(&self) -> impl Iterator<Item = &EniSeen> {
        self.of_before().into_iter().flat_map(|before| before.enis.iter().chain(&before.unlinked))
    }

    /// The IPv6 prefix that an ENI had as far as the daemon before knew.
    pub(super) fn prefix_before(&self, eni: &EniId) -> Option<Ipv6Prefix> {
        self.of_before()?.ipv6.get(eni).copied()
    }

    /// All that pods may have addresses of that leave by an ENI, as far as the daemon before knew.
    pub(super) fn prefixes_before(&self, eni: &EniId) -> Option<BTreeSet<Ipv6Prefix>> {
        let further = self.of_before()?.ipv6_further.get(eni).cloned().unwrap_or_default();
        Some(self.prefix_before(eni).into_iter().chain(further).collect())
    }

    /// The range of a subnet, as it is known or as it was before.
    pub(super) fn range_of(&self, subnet: &SubnetId) -> Option<Ipv4Network> {
        let before = || self.of_before().and_then(|before| before.subnets.get(subnet));
        self.subnets.get(subnet).or_else(before).copied()
    }

    fn of_before(&self) -> Option<&Remembered> {
        let instance = &self.facts.as_ref()?.instance;
        self.memory.before.as_deref().filter(|before| before.facts.instance == *instance)
    }

    /// Looks again, ever later, while a pod's address seems to be on no ENI, or on another one than before: descriptions at the start
    /// may be older than it.
    pub(super) fn doubt_the_start(&mut self, now: Moment) {
        let doubts = !self.homeless().is_empty() || !self.stranded().is_empty();
        if doubts && self.trusts_what_was(self.pool.pictured()) {
            let running = now.since(self.started);
            self.cloud.look_at = self.cloud.look_at.min(now.plus(running.max(LOOK_AGAIN)));
        }
    }

    /// Addresses of pods that no ENI has, as far as is known.
    fn homeless(&self) -> BTreeSet<Ipv4Addr> {
        let is_homeless = |(owner, grant): &(&Owner, Grant)| owner.branch.is_none() && grant.place.is_none();
        self.pool.owners().filter(is_homeless).map(|(_, grant)| grant.address).collect()
    }

    /// Whether descriptions that were asked for at this time may be from before the start, and what was known then goes before them.
    pub(super) fn trusts_what_was(&self, as_of: Moment) -> bool {
        as_of < self.started.plus(PICTURE_LAG_MAX)
    }

    /// Whether all that is known was told since the start. Nothing is changed in EC2 before.
    pub(super) const fn is_up_to_date(&self) -> bool {
        !self.memory.old_facts && !self.memory.old_picture
    }

    /// Puts what a start would need on disk, where it has changed.
    pub(super) fn remember(&mut self) {
        if !self.memory.dirty || !self.is_up_to_date() || !self.cloud.pictured {
            return;
        }
        self.memory.dirty = false;
        let Some(facts) = self.facts.clone() else { return };
        let (stranded, lost) = (self.stranded(), self.homeless());
        let mut subnets = self.subnets.clone();
        subnets.extend(
            stranded.iter().filter_map(|eni| Some((eni.subnet.clone(), self.range_of(&eni.subnet)?))),
        );
        let remembered = Remembered {
            facts,
            enis: self.pool.enis(),
            stranded,
            lost,
            unlinked: Vec::new(),
            occupied: self.pool.occupied().clone(),
            efa_only: self.efa_only.clone(),
            subnets,
            excluded: self.pool.excluded().clone(),
            ipv6: self.ipv6.all(),
            ipv6_further: self.further_prefixes(),
            ipv6_prefixes: self.ipv6.prefix().into_iter().collect(),
        };
        if self.memory.last.as_deref() != Some(&remembered) {
            self.memory.last = Some(Box::new(remembered.clone()));
            self.effects.push(Effect::Remember(Box::new(remembered)));
        }
    }

    /// That the node lives on what it remembers, in words.
    pub(super) fn memory_trouble(&self) -> Option<String> {
        let why = self.cloud.trouble.as_ref().or(self.cloud.blind.as_ref());
        let why = why.map_or(Reason::CloudUnreachable, |(kind, _)| kind.reason());
        let what = "pods are served from what was known before this start, and nothing is changed in EC2";
        (!self.is_up_to_date())
            .then(|| format!("{why}: {what} until instance metadata and the ENIs are known"))
    }
}
