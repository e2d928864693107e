//! The state after a restart: what the file says, corrected by what the kernel holds.
//!
//! - An owner whose host link is gone, or leads to another address, is no owner any more: its address cools (the pod died
//!   while nobody looked; another one may have its name since).
//! - What a call was to take away just before is not brought back by EC2's descriptions, which lag.
//! - Where the file is lost or damaged, what such calls were is not known: then what is idle in the first pictures is not
//!   given out; pods get what EC2 gives anew.
//! - A pod in the kernel whose DEL the file knows is what the daemon before did not come to take away.
//! - Where the Go version has run meanwhile, or the file is lost or damaged, the checkpoint counts (`adopt.rs`).
//! - A pod in the kernel that the file does not know keeps its address under a placeholder, so that nobody else
//!   gets it (a crash between wiring and writing, or a lost file). Its DEL finds it by the name of its host link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use datapath::{PodSeen, PodSpec};
use ipnetwork::Ipv4Network;
use pool::{Owner, PICTURE_LAG, Pool};
use types::{Branch, HostVeth, Moment, NetworkCard, PodName, SandboxKey, VethPrefix};

use super::adding::MTU_DEFAULT;
use super::adopt::{Adopted, adopt};
use crate::checkpoint::{Checkpoint, Entry};
use crate::families::{address_in_pool, ipv6_among, of_branch, stand_in};
use crate::store::{Ipv6Books, Loaded, Record};

/// What the names of host ends of the Go version's egress plugin begin with.
const EGRESS_PREFIX: &str = "veth";
/// No instance has so many network cards.
const FURTHER_CARDS: u8 = 64;
/// Network name of sandboxes that were found in the kernel only.
const REBUILT: &str = "rebuilt-from-kernel";

/// A pod's route found in the kernel, and a link that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInKernel {
    /// Host end of the pair.
    pub host_if: HostVeth,
    /// The addresses routed to it.
    pub addresses: Vec<IpAddr>,
    /// The route is in our table and has our protocol number; otherwise it is as the Go version makes it.
    pub by_us: bool,
    /// Its branch ENI, if it has one.
    pub branch: Option<Branch>,
}

/// A pod in the kernel as the books know it.
#[derive(Debug)]
pub(super) struct Wired<'a> {
    /// It.
    pub(super) pod: &'a PodInKernel,
    /// Its address as the pool knows it.
    pub(super) address: Option<Ipv4Addr>,
}

/// Finds the addresses, as the pool knows them, of pods in the kernel: with which one an IPv6 address goes the books say, for the Go
/// version gives the same last bits on each network card.
fn in_books<'a>(kernel: &'a [PodInKernel], pool: &Pool, checkpoint: Option<&Checkpoint>) -> Vec<Wired<'a>> {
    let ipv6_of = |owner: &Owner| owner.branch.as_ref().map_or(owner.ipv6, |branch| branch.eni.ipv6);
    let of_owners = pool.holders().filter_map(|(owner, address)| Some((ipv6_of(owner)?, address)));
    let entries = checkpoint.map_or(&[][..], |checkpoint| checkpoint.entries.as_slice());
    let of_entries = entries.iter().filter_map(|entry| Some((entry.ipv6?, entry.address)));
    let known: BTreeMap<Ipv6Addr, Ipv4Addr> = of_owners.chain(of_entries).collect();
    let wired = |pod: &'a PodInKernel| {
        let ipv6 = ipv6_among(&pod.addresses);
        let in_books = ipv6.and_then(|ipv6| known.get(&ipv6).copied());
        let of_branch = || pod.branch.as_ref().and_then(|branch| of_branch(&branch.eni));
        let address = in_books.or_else(of_branch).or_else(|| address_in_pool(&pod.addresses));
        Wired { pod, address }
    };
    kernel.iter().map(wired).collect()
}

/// Which of what may be pods in the kernel are: what has our routes, and what has those of the Go version and is named as a pod's host
/// end is. Others name theirs alike, so under another prefix than the setting's the rule that the Go version makes or its checkpoint
/// has to bear it out; the setting may have been another when the pod came. In `egress`, the range of its egress plugin, there are pods
/// by other names.
#[must_use]
pub fn pods_among(
    seen: Vec<PodSeen>,
    checkpoint: Option<&Checkpoint>,
    prefix: &VethPrefix,
    egress: Option<Ipv4Network>,
) -> Vec<PodInKernel> {
    let entries = checkpoint.map_or(&[][..], |checkpoint| checkpoint.entries.as_slice());
    let addresses: BTreeSet<IpAddr> = entries.iter().map(Entry::told).collect();
    let names: BTreeSet<&str> =
        entries.iter().filter_map(|entry| Some(entry.host_if.as_ref()?.hash())).collect();
    let of_range = |address: &IpAddr| match address {
        IpAddr::V4(address) => egress.is_some_and(|range| range.contains(*address)),
        IpAddr::V6(_) => false,
    };
    let is_pod = |pod: &PodSeen, host_if: &HostVeth| {
        let is_egress = || pod.host_if.starts_with(EGRESS_PREFIX) && pod.addresses.iter().any(of_range);
        let its = pod.ruled
            || names.contains(host_if.hash())
            || pod.addresses.iter().any(|address| addresses.contains(address));
        let of_branch = pod.branch.is_some();
        pod.by_us || of_branch || host_if.prefix().is_some_and(|of| its || of == *prefix) || is_egress()
    };
    let pods = seen.into_iter().filter_map(|pod| {
        let host_if = HostVeth::found(&pod.host_if).filter(|host_if| is_pod(&pod, host_if))?;
        Some(PodInKernel { host_if, addresses: pod.addresses, by_us: pod.by_us, branch: pod.branch })
    });
    pods.collect()
}

/// The key under which a pod that only the kernel knows is held.
fn placeholder(host_if: &HostVeth) -> Option<SandboxKey> {
    SandboxKey::new(REBUILT, host_if.as_str(), "eth0").ok()
}

/// As whom a pod that only the kernel knows is held; each of its interfaces for itself.
fn placeholder_owner(pod: &PodInKernel, now: Moment) -> Option<Owner> {
    let (host_if, ipv6) = (pod.host_if.clone(), ipv6_among(&pod.addresses));
    let sandbox = placeholder(&host_if)?;
    let branch = pod.branch.clone();
    // The branch ENI's addresses are told with it.
    let ipv6 = ipv6.filter(|_| branch.is_none());
    Some(Owner { sandbox, pod: PodName::default(), host_if, since: now, ipv6, further: None, branch })
}

/// Whether a sandbox is a pod that only the kernel knows.
#[must_use]
pub fn is_placeholder(sandbox: &SandboxKey) -> bool {
    sandbox.network_name() == REBUILT
}

/// The state as far as it could be brought back.
#[derive(Debug)]
pub struct Restored {
    /// The addresses.
    pub pool: Pool,
    /// Pods whose DEL was served, and whose wiring the daemon did not live to take away.
    pub leftovers: Vec<PodSpec>,
    /// Addresses of pods of the Go version that are gone.
    pub gone: BTreeSet<IpAddr>,
    /// Sandboxes that the Go version does not know any more: they are looked after until their link is gone.
    pub doubted: BTreeSet<SandboxKey>,
    /// What is remembered of the IPv6 prefix.
    pub ipv6: Ipv6Books,
    /// For the log.
    pub remarks: Vec<String>,
}

/// What a state file says.
#[derive(Debug)]
pub struct Replayed {
    /// The addresses.
    pub pool: Pool,
    /// Those whose last word is a release: who, and what was theirs.
    released: BTreeMap<HostVeth, (SandboxKey, Ipv4Addr)>,
    /// Those of them that had a branch ENI.
    branches: BTreeMap<HostVeth, PodSpec>,
    /// What is remembered of the IPv6 prefix.
    ipv6: Ipv6Books,
}

/// Goes through the lines of a state file.
#[must_use]
pub fn replay(records: Vec<Record>, cooldown: Duration, now: Moment) -> Replayed {
    let mut pool = Pool::new(cooldown);
    let mut released: BTreeMap<HostVeth, (SandboxKey, Ipv4Addr)> = BTreeMap::new();
    let mut branches: BTreeMap<HostVeth, PodSpec> = BTreeMap::new();
    let mut ipv6 = Ipv6Books::default();
    let last = records.iter().filter_map(Record::at).max().unwrap_or_default();
    for record in records {
        match record {
            Record::Snapshot { pool: snapshot, ipv6: books, .. } => {
                (pool, ipv6) = (Pool::restore(*snapshot, cooldown, now), books);
            }
            Record::Ipv6(books) => ipv6 = books,
            Record::Assigned { owner, address, .. } => {
                released.remove(&owner.host_if);
                branches.remove(&owner.host_if);
                pool.adopt(owner, address);
            }
            Record::Leaving { leaving, at } => pool.may_have_left(leaving, at.unwrap_or(now), now),
            Record::Released { sandbox, at } => {
                let gone = pool.release(&sandbox, at.min(now));
                branches.extend(gone.as_ref().and_then(|(owner, _)| branch_left(owner)));
                released.extend(gone.map(|(owner, grant)| (owner.host_if, (owner.sandbox, grant.address))));
            }
        }
    }
    pool.last_heard(last.min(now), now);
    Replayed { pool, released, branches, ipv6 }
}

/// What is to be taken away of a pod that had a branch ENI: its VLAN does not go with the pod's link.
fn branch_left(owner: &Owner) -> Option<(HostVeth, PodSpec)> {
    let branch = owner.branch.clone()?;
    let (host_if, container_if) = (owner.host_if.clone(), owner.sandbox.if_name().to_owned());
    let addresses = branch.eni.addresses();
    let spec = PodSpec { host_if, container_if, index: 0, addresses, mtu: MTU_DEFAULT, branch: Some(branch) };
    Some((owner.host_if.clone(), spec))
}

/// Rebuilds the state.
///
/// `has_link` tells whether a host link exists, with or without a route; `ran_before` that a daemon ran since the node started.
#[must_use]
pub fn restore(
    cooldown: Duration,
    loaded: Loaded,
    kernel: &[PodInKernel],
    has_link: &mut dyn FnMut(&HostVeth) -> bool,
    ran_before: bool,
    now: Moment,
) -> Restored {
    let mut remarks: Vec<String> = loaded.damage.iter().map(|d| format!("state file: {d}")).collect();
    let lost = loaded.records.is_empty() && (ran_before || !kernel.is_empty());
    // Our own checkpoint says nothing that our state does not, as long as that is whole.
    let counts = |checkpoint: &Checkpoint| !checkpoint.ours || lost || loaded.damage.is_some();
    let checkpoint = loaded.checkpoint.filter(counts);
    let distrust = lost || loaded.damage.is_some() || checkpoint.is_some();
    let Replayed { mut pool, mut released, mut branches, ipv6 } = replay(loaded.records, cooldown, now);
    let kernel = &in_books(kernel, &pool, checkpoint.as_ref());
    let adopted = checkpoint.map(|checkpoint| adopt(&mut pool, checkpoint, kernel, has_link, now));
    let Adopted { gone, doubted, remarks: of_checkpoint } = adopted.unwrap_or_default();
    remarks.extend(of_checkpoint);
    if distrust {
        pool.distrust(now.plus(PICTURE_LAG));
    }
    branches.extend(release_dead(&mut pool, kernel, has_link, &mut remarks, now));
    // The next pod of that name has what it has.
    branches.retain(|host_if, _| pool.holder_of(host_if).is_none());
    let mut leftovers: Vec<PodSpec> = branches.into_values().collect();
    for Wired { pod, address } in kernel {
        if pool.holder_of(&pod.host_if).is_some() {
            continue;
        }
        let Some(address) = *address else { continue };
        let released = released.remove(&pod.host_if);
        if let Some((sandbox, _)) = released.filter(|(_, released)| pod.by_us && *released == address) {
            let (host_if, container_if) = (pod.host_if.clone(), sandbox.if_name().to_owned());
            leftovers.push(PodSpec {
                host_if,
                container_if,
                // What is outside of the pod does not depend on it.
                index: 0,
                addresses: pod.addresses.clone(),
                mtu: MTU_DEFAULT,
                branch: pod.branch.clone(),
            });
            continue;
        }
        let Some(owner) = placeholder_owner(pod, now) else { continue };
        let address = free_name(&pool, pod, address);
        let address_told = pod.addresses.first().copied().unwrap_or(IpAddr::V4(address));
        remarks
            .push(format!("{address_told} is routed to {} but not in the state: kept for it", pod.host_if));
        pool.adopt(owner, address);
    }
    Restored { pool, leftovers, gone, doubted, ipv6, remarks }
}

/// The address under which a pod that the kernel alone knows is held; where another one is held under it, one that stands in: two IPv6
/// addresses that end alike are of two network cards.
fn free_name(pool: &Pool, pod: &PodInKernel, address: Ipv4Addr) -> Ipv4Addr {
    let is_free = |address: &Ipv4Addr| pool.holders().all(|(_, held)| held != *address);
    let ipv6 = ipv6_among(&pod.addresses).filter(|_| !pod.addresses.iter().any(IpAddr::is_ipv4));
    let others = (1..FURTHER_CARDS).filter_map(|card| stand_in(NetworkCard(card), ipv6?));
    std::iter::once(address).chain(others).find(is_free).unwrap_or(address)
}

/// Releases owners whose host end is gone or leads to another address. Returns what is left of those with a branch ENI.
fn release_dead(
    pool: &mut Pool,
    kernel: &[Wired<'_>],
    has_link: &mut dyn FnMut(&HostVeth) -> bool,
    remarks: &mut Vec<String>,
    now: Moment,
) -> Vec<(HostVeth, PodSpec)> {
    let there: BTreeMap<&HostVeth, Option<Ipv4Addr>> =
        kernel.iter().map(|wired| (&wired.pod.host_if, wired.address)).collect();
    let dead: Vec<SandboxKey> = pool
        .owners()
        .filter(|(owner, grant)| match there.get(&owner.host_if) {
            Some(address) => *address != Some(grant.address),
            // Somebody may have taken the route alone: the pod lives, and the first wish brings its route back.
            None => !has_link(&owner.host_if),
        })
        .map(|(owner, _)| owner.sandbox.clone())
        .collect();
    let mut left = Vec::new();
    for sandbox in dead {
        if let Some((owner, grant)) = pool.release(&sandbox, now) {
            left.extend(branch_left(&owner));
            remarks.push(format!(
                "{} of {} has no link with that address any more: released",
                grant.address, owner.pod
            ));
        }
    }
    left
}
