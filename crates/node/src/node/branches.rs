//! Pods with a branch ENI: which they are, what they wait for, and what they get.
//!
//! The VPC resource controller makes the trunk and the branch ENIs, and says in a pod's object which is the pod's. So with `ENABLE_POD_ENI` an
//! ADD needs the pod's object, which a watch of this node's pods tells; one that has not been told yet is waited for, as an address is. All
//! that comes later (DEL, CHECK, GC, repair, a restart) goes by the record that is made of the pod, as with every other.
//!
//! In the pool such a pod is the owner of an address that no ENI of the pool has.

use std::net::Ipv4Addr;

use datapath::TrunkSpec;
use pool::{Owner, Role, Want};
use types::{Branch, BranchEni, Enforcing, HostVeth, Mac, Moment, NetworkCard, Reason};
use wire::Failure;

use super::adding::Add;
use super::{Effect, Node};
use crate::cluster::{BranchWish, CUSTOM_NETWORKING, Features, POD_ENI_ANNOTATION, POD_SECURITY_GROUPS};
use crate::families::of_branch;

/// What was said of branch ENIs.
#[derive(Debug, Default)]
pub(super) struct BranchState {
    /// Features that the CNINode was last to name.
    features: Features,
}

/// What an ADD is to be given.
#[derive(Debug)]
pub(super) enum Claim {
    /// Addresses of the pool.
    Pool(Vec<Want>),
    /// The address of its branch ENI.
    Branch(Box<Owner>, Ipv4Addr),
    /// That is not known yet.
    Unknown(Reason),
    /// Nothing, ever.
    Never(Failure),
}

impl Claim {
    /// Who would be the owners.
    pub(super) fn owners(&self) -> Vec<&Owner> {
        match self {
            Self::Pool(wants) => wants.iter().map(|want| &want.owner).collect(),
            Self::Branch(owner, _) => vec![owner],
            Self::Unknown(_) | Self::Never(_) => Vec::new(),
        }
    }
}

impl Node {
    /// What an ADD is to be given: a branch ENI where its pod's object says so, addresses of the pool otherwise.
    pub(super) fn claim(&self, add: &Add, now: Moment) -> Claim {
        let of_pool = || Claim::Pool(self.wants(add, now));
        let pod = &add.attachment.pod;
        // What is no pod of Kubernetes' has no object.
        if !self.settings.pod_eni || pod.name.is_empty() {
            return of_pool();
        }
        let Some(told) = self.told_of(add) else { return Claim::Unknown(Reason::NoPodObject) };
        if add.attachment.multi_nic && told.branch != BranchWish::No {
            let message = "the pod asks for a branch ENI and for an address of every network card; it can have one of both";
            return Claim::Never(Failure::new(Reason::BadInput, message));
        }
        let eni = match &told.branch {
            BranchWish::No => return of_pool(),
            BranchWish::Coming | BranchWish::Wrong(_) => return Claim::Unknown(Reason::NoBranchEni),
            BranchWish::Is(eni) => eni,
        };
        if self.facts.is_none() || !self.cloud.pictured {
            return Claim::Unknown(self.why_starting());
        }
        let Some(trunk) = self.trunk() else { return Claim::Unknown(Reason::NoTrunk) };
        let Some((eni, address)) = self.usable(eni) else { return Claim::Unknown(Reason::NoBranchEni) };
        let enforcing = self.settings.enforcing;
        let mut owner = add.owner(0, now);
        if enforcing == Enforcing::Strict {
            owner.host_if = HostVeth::of_branch(pod);
        }
        owner.branch = Some(Branch { eni, trunk, enforcing });
        Claim::Branch(Box::new(owner), address)
    }

    /// A branch ENI with no more than the addresses that pods get here, and the one under which the pool holds it; `None` for one without.
    fn usable(&self, eni: &BranchEni) -> Option<(BranchEni, Ipv4Addr)> {
        let families = self.settings.families;
        let mut eni = eni.clone();
        eni.ipv4 = eni.ipv4.filter(|_| families.has_ipv4_of_vpc());
        eni.ipv6 = eni.ipv6.filter(|_| families.needs_prefix());
        let address = of_branch(&eni)?;
        // Both families mean both.
        let lacks =
            families.has_ipv4_of_vpc() && eni.ipv4.is_none() || families.needs_prefix() && eni.ipv6.is_none();
        (!lacks).then_some((eni, address))
    }

    /// The MAC address of the trunk ENI, if there is one.
    pub(super) fn trunk(&self) -> Option<Mac> {
        self.pool.seen().find(|eni| eni.role == Role::Trunk).map(|eni| eni.mac)
    }

    /// What the host is to have of the trunk: where branch ENIs are used, or still are. One that a picture tells which waits has to be up
    /// before the first pod goes by it.
    pub(super) fn trunk_spec(&self) -> Option<TrunkSpec> {
        let used = self.settings.pod_eni || self.pool.holders().any(|(owner, _)| owner.branch.is_some());
        let trunk = self.enis_told().filter(|eni| eni.role == Role::Trunk).last();
        trunk.filter(|_| used).map(|eni| TrunkSpec { mac: eni.mac, mtu: self.settings.eni_mtu })
    }

    /// Whether there are, or may be, pods whose traffic goes by their branch ENI alone.
    pub(super) fn has_strict_branches(&self) -> bool {
        let strict = |owner: &Owner| owner.branch.as_ref().is_some_and(Branch::is_strict);
        let may_be = self.settings.pod_eni && self.settings.enforcing == Enforcing::Strict;
        may_be || self.pool.holders().any(|(owner, _)| strict(owner))
    }

    /// Whether one place for an ENI is kept for the trunk, which the controller attaches.
    pub(super) fn awaits_trunk(&self) -> bool {
        let capable = self.facts.as_ref().is_none_or(|facts| facts.limits.trunk != Some(false));
        self.settings.pod_eni && capable && self.trunk().is_none()
    }

    /// Has the CNINode name the features that are wanted now, where they have changed. That of branch ENIs is wanted as long as there is no
    /// trunk, and is not taken away afterwards: the controller goes by it. Where no ENI has a place for it any more, it would be in vain.
    pub(super) fn want_features(&mut self) {
        let mut wanted = self.branches.features.clone();
        match self.settings.custom_networking.then(|| self.eni_config_feature()).flatten() {
            Some(name) => drop(wanted.insert(CUSTOM_NETWORKING.to_owned(), name)),
            None => drop(wanted.remove(CUSTOM_NETWORKING)),
        }
        if self.cloud.pictured && self.awaits_trunk() && self.has_room_for_trunk() {
            wanted.insert(POD_SECURITY_GROUPS.to_owned(), String::new());
        }
        if wanted != self.branches.features {
            self.branches.features.clone_from(&wanted);
            self.effects.push(Effect::Features(wanted));
        }
    }

    fn has_room_for_trunk(&self) -> bool {
        let limit =
            self.facts.as_ref().map(|facts| facts.limits.enis_on(NetworkCard(0), self.settings.max_enis));
        let there = self.pool.seen().filter(|eni| eni.card == NetworkCard(0)).count();
        !self.settings.families.has_ipv4_of_vpc() || limit.is_none_or(|limit| there < usize::from(limit))
    }

    /// What those who wait for a branch ENI wait for, in words; `None` for those who wait for an address.
    pub(super) fn branch_wait(&self, add: &Add) -> Option<(String, String)> {
        let (reason, _) = add.reason();
        let trouble = self.pods.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
        if reason == Reason::NoPodObject {
            let listed =
                if self.pods.listed { "it is not among this node's pods" } else { "it has not been told" };
            let told = format!("{listed}, and nobody else knows whether the pod has a branch ENI{trouble}");
            return Some(("no object of the pod".to_owned(), told));
        }
        let told = if reason == Reason::NoTrunk {
            let place = if self.has_room_for_trunk() { "" } else { ", and there is no place for one" };
            format!("no trunk ENI is attached to this instance; the VPC resource controller makes it{place}")
        } else if reason == Reason::NoBranchEni {
            self.why_no_branch(add) + &trouble
        } else {
            return None;
        };
        Some(("no branch ENI for the pod".to_owned(), told))
    }

    fn why_no_branch(&self, add: &Add) -> String {
        match self.told_of(add).map(|told| &told.branch) {
            Some(BranchWish::Wrong(why)) => format!("annotation {POD_ENI_ANNOTATION}: {why}"),
            Some(BranchWish::Is(eni)) if self.usable(eni).is_none() => {
                format!("{eni} lacks an address of a family that pods have here")
            }
            Some(BranchWish::Is(eni)) => format!("the address of {eni} is another sandbox's still"),
            Some(BranchWish::Coming | BranchWish::No) | None => {
                format!(
                    "the VPC resource controller has not written it to the pod (annotation {POD_ENI_ANNOTATION})"
                )
            }
        }
    }

    /// What is known of branch ENIs, for people.
    pub(super) fn branch_lines(&self) -> Vec<String> {
        if !self.settings.pod_eni {
            return Vec::new();
        }
        let pods = match self.pods.listed {
            true => format!("{} pods of this node are known", self.pods.count()),
            false => "this node's pods are not known".to_owned(),
        };
        let trunk = match self.trunk() {
            Some(mac) => format!("the trunk ENI has MAC address {mac}"),
            None if self.awaits_trunk() => "no trunk ENI is attached yet".to_owned(),
            None => "instances of this type have no trunk ENI".to_owned(),
        };
        let mode = match self.settings.enforcing {
            Enforcing::Strict => "strict",
            Enforcing::Standard => "standard",
        };
        let with = self.pool.holders().filter(|(owner, _)| owner.branch.is_some()).count();
        let told =
            format!("security groups for pods ({mode}): {trunk}; {with} pods have a branch ENI; {pods}");
        std::iter::once(told).chain(self.pods.trouble.clone()).collect()
    }

    /// Whether an ADD waits for something else than an address of the pool.
    pub(super) const fn waits_for_branch(add: &Add) -> bool {
        matches!(add.reason().0, Reason::NoBranchEni | Reason::NoTrunk)
    }
}
