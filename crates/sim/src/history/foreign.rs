//! ENIs on the instance that are somebody else's: attached and detached while the daemon runs, at any place, and holding it.
//!
//! Nothing may be done to them and nothing taken from them. Branch ENIs are not among them: they are on no list of the instance's
//! ENIs, so that the daemon never meets one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use pool::Role;
use types::{DeviceIndex, EniId, Moment, NetworkCard};

use super::cloud::Cloud;
use super::met::Manner;
use ec2_double::{AddressWish, EniView, NewEni};

/// Tag of ENIs that are to be left alone.
const UNMANAGED_TAG: &str = "node.k8s.amazonaws.com/no_manage";

/// What somebody else's ENI is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// Tagged to be left alone.
    Unmanaged,
    /// Without tags: not ours where only tagged ones are; elsewhere the owner has tagged it.
    Untagged,
    /// Without an IPv4 address.
    EfaOnly,
    /// For pods too, as long as nobody deletes it.
    Efa,
    /// The trunk of branch ENIs.
    Trunk,
}

/// All that there are.
pub(crate) const FOREIGN: &[Foreign] =
    &[Foreign::Unmanaged, Foreign::Untagged, Foreign::EfaOnly, Foreign::Efa, Foreign::Trunk];
/// Where they stand; the daemon itself fills places from below.
pub(crate) const DEVICES: &[u8] = &[1, 2, 3, 5, 15, 31];

/// One of them, as its owner has left it.
#[derive(Debug)]
pub(crate) struct Left {
    kind: Foreign,
    as_left: Arc<EniView>,
}

impl Foreign {
    /// What the daemon's rules make of one whose tags are known.
    const fn role(self) -> Role {
        match self {
            Self::Unmanaged | Self::Untagged | Self::EfaOnly => Role::Unmanaged,
            Self::Efa => Role::Efa,
            Self::Trunk => Role::Trunk,
        }
    }

    const fn manner(self) -> Manner {
        match self {
            Self::Unmanaged => Manner::Unmanaged,
            Self::Untagged => Manner::Untagged,
            Self::EfaOnly => Manner::EfaOnly,
            Self::Efa => Manner::Efa,
            Self::Trunk => Manner::Trunk,
        }
    }
}

impl Cloud {
    /// Somebody attaches an ENI with so many addresses, if there is a place for it.
    pub(crate) fn attach_foreign(&mut self, kind: Foreign, device: u8, addresses: u32, now: Moment) {
        // Untagged ones are ours to use unless only tagged ones are; then one with EFA is not either.
        let unfit = match kind {
            Foreign::Untagged => !self.tagged_only,
            Foreign::Efa => self.tagged_only,
            Foreign::Unmanaged | Foreign::EfaOnly | Foreign::Trunk => false,
        };
        let kind = if unfit { Foreign::Unmanaged } else { kind };
        let tags = match kind {
            Foreign::Unmanaged => BTreeMap::from([(UNMANAGED_TAG.to_owned(), "true".to_owned())]),
            Foreign::Untagged | Foreign::EfaOnly | Foreign::Efa | Foreign::Trunk => BTreeMap::new(),
        };
        let wish = AddressWish::count(if kind == Foreign::EfaOnly { 0 } else { addresses });
        let number = usize::from(device) % self.subnets.len().max(1);
        let Some(subnet) = self.subnets.get(number).cloned() else { return };
        let Ok(eni) = self.model.create_eni(&NewEni { tags, addresses: wish, ..NewEni::plain(subnet) })
        else {
            return;
        };
        let (card, at) = (self.card_for(device), DeviceIndex(device));
        let instance = self.instance.id.clone();
        let attached = self.model.attach(&eni.id, &instance, card, at, now);
        let Ok(as_left) = attached.and_then(|_| self.model.eni(&eni.id).cloned()) else {
            // Nobody has it yet.
            let _deleted = self.model.delete_eni(&eni.id);
            return;
        };
        self.met.note(kind.manner());
        let places = self.model.enis_of(&instance).count();
        if usize::from(device) >= self.places {
            self.met.note(Manner::HighDevice);
        }
        if usize::from(device) + 1 > places {
            self.met.note(Manner::DeviceGap);
        }
        self.foreign.insert(eni.id.clone(), Left { kind, as_left });
    }

    /// Where somebody's ENI goes: on an instance of several network cards, to any of them.
    fn card_for(&self, device: u8) -> NetworkCard {
        NetworkCard(device / 2 % self.cards.max(1))
    }

    /// Somebody takes one of their ENIs away; what pods have of it goes with it.
    pub(crate) fn detach_foreign(&mut self, number: u32) -> Vec<Ipv4Addr> {
        let index = usize::try_from(number).unwrap_or(0);
        let Some(id) = self.foreign.keys().nth(index).cloned() else { return Vec::new() };
        let lost = self.model.eni(&id).map(|eni| eni.sources()).unwrap_or_default();
        if self.model.pull(&id).is_ok() && self.model.delete_eni(&id).is_ok() {
            self.met.note(Manner::ForeignLeaves);
            self.foreign.remove(&id);
        }
        lost.into_iter().collect()
    }

    /// What the daemon's rules make of an ENI.
    pub(crate) fn role(&self, eni: &EniId, card: NetworkCard, device: DeviceIndex) -> Role {
        match self.foreign.get(eni) {
            _ if (card, device) == (NetworkCard(0), DeviceIndex(0)) => Role::Primary,
            Some(left) => left.kind.role(),
            None => Role::Secondary,
        }
    }

    /// Whether an ENI has no IPv4 address.
    pub(crate) fn is_efa_only(&self, eni: &EniId) -> bool {
        self.foreign.get(eni).is_some_and(|left| left.kind == Foreign::EfaOnly)
    }

    /// Whether pods must not have anything of an ENI.
    pub(crate) fn is_closed(&self, eni: &EniId) -> bool {
        self.foreign.get(eni).is_some_and(|left| left.kind != Foreign::Efa)
    }

    /// Whether an ENI is somebody else's.
    pub(crate) fn is_foreign(&self, eni: &EniId) -> bool {
        self.foreign.contains_key(eni)
    }

    /// ENIs on a network card that hold a place and nothing for pods.
    pub(crate) fn closed_on(&self, card: NetworkCard) -> usize {
        let on_it = |left: &&Left| left.as_left.attachment.as_ref().is_some_and(|tie| tie.card == card);
        self.foreign.values().filter(|left| left.kind != Foreign::Efa).filter(on_it).count()
    }

    /// Addresses of ENIs that pods may use and nobody may delete.
    pub(crate) fn lent(&self) -> u32 {
        let lent = self.foreign.iter().filter(|(_, left)| left.kind == Foreign::Efa);
        let lent =
            lent.filter_map(|(id, _)| self.model.eni(id).ok()).map(|eni| eni.slots() - 1).sum::<usize>();
        u32::try_from(lent).unwrap_or(u32::MAX)
    }

    /// The somebody else's ENI that has an address which no pod must get.
    pub(crate) fn closed_with(&self, address: Ipv4Addr) -> Option<&EniId> {
        let has = |left: &Left| left.as_left.is_source(address);
        self.foreign.iter().find(|(_, left)| left.kind != Foreign::Efa && has(left)).map(|(id, _)| id)
    }

    /// Whether somebody else's ENI has an address.
    pub(crate) fn is_others(&self, address: Ipv4Addr) -> bool {
        self.foreign.values().any(|left| left.as_left.is_source(address))
    }

    /// One of them that is not as its owner has left it.
    pub(crate) fn touched(&self) -> Option<&EniId> {
        let same = |id: &EniId, left: &Left| {
            let Ok(now) = self.model.eni(id) else { return false };
            let tie = |eni: &EniView| {
                let tie = eni.attachment.as_ref();
                tie.map(|tie| (tie.id.clone(), tie.delete_on_termination))
            };
            let addresses = now.secondary == left.as_left.secondary && now.prefixes == left.as_left.prefixes;
            // What pods may use of it may also be more or less.
            (addresses || left.kind == Foreign::Efa)
                && now.tags == left.as_left.tags
                && now.groups == left.as_left.groups
                && tie(now) == tie(&left.as_left)
        };
        self.foreign.iter().find(|(id, left)| !same(id, left)).map(|(id, _)| id)
    }
}
