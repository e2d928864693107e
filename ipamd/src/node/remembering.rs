//! What the daemon before knew: pods are served from it while neither instance metadata nor EC2 tells anything.
//!
//! It says which addresses there are and how the host's kernel leads to them. Nothing is asked of EC2 on its word: what calls did
//! since, and who else was there, only a look tells.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;
use pool::EniSeen;
use serde::{Deserialize, Serialize};
use types::{DeviceIndex, Ipv6Prefix, Moment, NetworkCard, Reason, SubnetId};

use super::Node;
use super::event::{Effect, Facts, Picture};
use super::hosting::Gain;
use super::looking::as_of_metadata;

/// What a start needs to know of its instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The instance.
    pub facts: Facts,
    /// Its ENIs, without what was on its way out.
    pub enis: Vec<EniSeen>,
    /// Places on it that hold something else.
    pub occupied: BTreeSet<(NetworkCard, DeviceIndex)>,
    /// Network cards on which an EFA-only ENI stands.
    pub efa_only: BTreeSet<NetworkCard>,
    /// Ranges of the subnets.
    pub subnets: BTreeMap<SubnetId, Ipv4Network>,
    /// Subnets whose ENIs get no more pods.
    pub excluded: BTreeSet<SubnetId>,
    /// IPv6 prefixes of the primary ENI.
    pub ipv6_prefixes: BTreeSet<Ipv6Prefix>,
}

/// What is remembered, and whether the node lives on it.
#[derive(Debug, Default)]
pub(super) struct MemoryState {
    /// What the daemon before knew, until something is known anew.
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
    pub(super) fn remembered(&mut self, remembered: Remembered) {
        self.memory.before = Some(Box::new(remembered));
    }

    /// Serves pods from what is remembered, as something that is asked for at the start has no answer.
    pub(super) fn recall(&mut self, now: Moment) {
        if self.cloud.pictured || self.memory.old_picture {
            return;
        }
        let Some(before) = self.memory.before.take() else { return };
        let Remembered { facts, enis, occupied, efa_only, subnets, excluded, ipv6_prefixes } = *before;
        match &self.facts {
            Some(known) if known.instance != facts.instance => {
                tracing::warn!(of = %facts.instance, "what is remembered is of another instance, and not used");
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
            // Any word of anybody is newer.
            as_of: as_of_metadata(now),
            enis,
            occupied,
            efa_only,
            subnets,
            ipv6_prefixes,
            from_metadata: true,
            recalled: true,
            ..Picture::default()
        };
        self.make_local(&mut picture.enis);
        self.settle(Gain::Picture(Box::new(picture)), now);
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
        let remembered = Remembered {
            facts,
            enis: self.pool.enis(),
            occupied: self.pool.occupied().clone(),
            efa_only: self.efa_only.clone(),
            subnets: self.subnets.clone(),
            excluded: self.pool.excluded().clone(),
            ipv6_prefixes: self.ipv6.prefix.into_iter().collect(),
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
