//! Everything that can happen to a node, and everything it can want done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use datapath::{NodeSpec, PodSpec};
use ipnetwork::Ipv4Network;
use pool::{Action, ActionId, EniSeen, Outcome, Snapshot};
use serde::{Deserialize, Serialize};
use types::{
    DeviceIndex, EniId, HostVeth, InstanceId, InstanceLimits, Ipv6Prefix, Mac, Moment, NetworkCard, PodName,
    Reason, SandboxKey, SecurityGroupId, SubnetId, VethPrefix,
};
use wire::{Failure, Reply, Request};

use super::remembering::Remembered;
use crate::cloud::{CloudError, ConnectionTracking};
use crate::cluster::{Features, News, Note, PodIp};
use crate::hold::Hold;
use crate::store::{Ipv6Books, Record};

/// Names one request on the socket, in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Names one append to the state file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BatchId(pub u64);

/// What is known of the node itself once instance metadata has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The instance.
    pub instance: InstanceId,
    /// Its limits.
    pub limits: InstanceLimits,
    /// The node's own address.
    pub primary_address: Ipv4Addr,
    /// Subnet of the primary ENI, where new ENIs go as long as no other is known.
    pub subnet: SubnetId,
    /// The VPC's IPv4 CIDRs.
    pub vpc_cidrs: Vec<Ipv4Network>,
    /// The node's own IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
}

/// The node's ENIs as the cloud tells them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// When it was asked for: later changes are not in it.
    pub as_of: Moment,
    /// The ENIs.
    pub enis: Vec<EniSeen>,
    /// Places on the instance that hold something else.
    pub occupied: BTreeSet<(NetworkCard, DeviceIndex)>,
    /// Network cards on which an EFA-only ENI stands.
    pub efa_only: BTreeSet<NetworkCard>,
    /// What is left to do for ENIs of ours.
    pub chores: Vec<Chore>,
    /// Something is being detached: another look soon tells more.
    pub in_motion: bool,
    /// CIDRs of their subnets, and of those that new ENIs may go to.
    pub subnets: BTreeMap<SubnetId, Ipv4Network>,
    /// IPv6 prefixes of the ENIs that have any.
    pub ipv6_prefixes: BTreeMap<EniId, BTreeSet<Ipv6Prefix>>,
    /// Which subnets may be used; `None` if that could not be found out.
    pub choice: Option<Subnets>,
    /// EC2 was asked for the subnets and does not tell them.
    pub subnets_untold: bool,
    /// ENIs that instances of our cluster may have left behind.
    pub strays: Vec<Stray>,
    /// Instance metadata has told this, EC2 has not: tags and types of the ENIs are not known.
    pub from_metadata: bool,
    /// Nobody has told this since the start: it is what the daemon before knew.
    pub recalled: bool,
}

/// Which subnets of the zone may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subnets {
    /// For new ENIs, best first.
    pub for_new: Vec<SubnetId>,
    /// Not even for pods on ENIs that are there.
    pub excluded: BTreeSet<SubnetId>,
    /// Addresses that nobody has, in those that may be used.
    pub free: BTreeMap<SubnetId, u32>,
}

/// An ENI that another instance of our cluster made and that is attached to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Which.
    pub eni: EniId,
    /// When it was made.
    pub made: Moment,
}

/// What is left to do about an ENI: a call was cut short (we were killed, or EC2 did not answer; I14), or somebody has
/// changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// It is attached to nothing, and ours or nobody's: delete it.
    Delete(EniId),
    /// An ENI of ours would outlive the instance: have EC2 delete it together with the instance.
    Tie {
        /// Which.
        eni: EniId,
        /// Its attachment.
        attachment: String,
    },
    /// Its security groups are not the primary ENI's: set them.
    Guard {
        /// Which.
        eni: EniId,
        /// The groups.
        groups: Vec<SecurityGroupId>,
    },
    /// The primary ENI has timeouts for idle connections and this one has none: set them.
    Track {
        /// Which.
        eni: EniId,
        /// The timeouts.
        tracking: ConnectionTracking,
    },
    /// Tags are missing or differ: set them.
    Tag {
        /// Which.
        eni: EniId,
        /// The tags.
        tags: BTreeMap<String, String>,
    },
}

impl Chore {
    /// Whether it may be about an ENI that a call is making.
    pub(super) const fn may_be_new(&self) -> bool {
        matches!(self, Self::Delete(_) | Self::Tie { .. })
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A caller asks.
    Call {
        /// Its name from now on.
        id: CallId,
        /// What it asks.
        request: Request,
        /// Whether it brought the two descriptors that ADD and CHECK need.
        descriptors: bool,
    },
    /// The caller has hung up.
    Gone(CallId),
    /// A pod was wired, or not.
    Wired {
        /// For whom.
        id: CallId,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// The network policy agent has answered for a pod that was wired, or does not.
    Enforced {
        /// For whom.
        id: CallId,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// The host links of these sandboxes are gone.
    Dead(Vec<SandboxKey>),
    /// A pod was compared with what it should be.
    Checked {
        /// For whom.
        id: CallId,
        /// Good, or the difference.
        result: Result<(), Failure>,
    },
    /// Records are on disk, or cannot be put there.
    Written {
        /// Which.
        batch: BatchId,
        /// What the file system said.
        result: Result<(), String>,
    },
    /// The state file has grown long.
    FileLong,
    /// Instance metadata has answered.
    Identified(Box<Facts>),
    /// What the daemon before knew of this instance.
    Remembered(Box<Remembered>),
    /// It cannot be found out who this instance is; it is tried again.
    Unidentified(CloudError),
    /// The ENIs were looked at.
    Looked(Result<Picture, CloudError>),
    /// Instance metadata was glanced at: the ENIs that it tells.
    Glanced(Result<Vec<EniSeen>, CloudError>),
    /// A call to EC2 came to an end.
    Acted {
        /// Which.
        id: ActionId,
        /// How it went.
        result: Result<Outcome, CloudError>,
    },
    /// EC2 was asked for an IPv6 prefix for an ENI.
    Ipv6Assigned(EniId, Result<Ipv6Prefix, CloudError>),
    /// The IPv6 prefix was given back, or EC2 has not taken it.
    Ipv6Released(Result<(), CloudError>),
    /// EC2 does not say that it will delete an ENI which is being made together with the instance.
    Untied,
    /// Chores were done, or the first that could not be.
    Tidied(Result<(), CloudError>),
    /// An operator holds something back, or no longer.
    Held(Hold),
    /// Something about our ENIs has changed outside: look at them.
    Stale,
    /// Instance metadata has told the range of a subnet that a new ENI is in, or does not.
    Range(SubnetId, Result<Ipv4Network, CloudError>),
    /// The VPC's IPv4 ranges have changed.
    Ranges(Vec<Ipv4Network>),
    /// The node's own IPv6 address has changed, or there is one now.
    NodeIpv6(Ipv6Addr),
    /// The API server has said something of the node object or its ENIConfig.
    Cluster(News),
    /// DELs that came while no daemon ran are done.
    Replayed,
    /// The daemon is about to end: nothing new is begun in EC2.
    Stopping,
    /// The host's kernel state was brought in line, as far as possible.
    Converged {
        /// Which wish.
        generation: u64,
        /// What came of it; or the trouble that the whole node has.
        result: Result<HostMade, String>,
    },
    /// The wiring of pods was compared with what it should be, or could not be. Told of each such look, also where it has found nothing: the
    /// next one waits for that.
    PodsCompared {
        /// Others had changed it, and it was put back.
        put_back: bool,
        /// Host ends of pods of which nothing is there any more: nobody may ever ask to take them away.
        lost: Vec<HostVeth>,
    },
    /// Somebody else has changed routes, rules, addresses, links or nftables of ours, or may have.
    Touched,
    /// Time has passed.
    Tick,
}

impl Event {
    /// The request that this is about, where it is about one.
    #[must_use]
    pub const fn request(&self) -> Option<CallId> {
        let (Self::Call { id, .. }
        | Self::Gone(id)
        | Self::Wired { id, .. }
        | Self::Enforced { id, .. }
        | Self::Checked { id, .. }) = self
        else {
            return None;
        };
        Some(*id)
    }
}

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Answer a caller, and drop its descriptors.
    Reply(CallId, Reply),
    /// Count an ADD that has waited for an address: what it waited for last, and how long.
    Waited(Reason, Duration),
    /// Say something to those who look at a pod in the cluster; nobody waits for it.
    Tell(Note),
    /// Write a pod's address to its object, or take it away there; nobody waits for it.
    Annotate(PodIp),
    /// Have the node's CNINode name these features; nobody waits for it.
    Features(Features),
    /// Wire the interfaces of a pod with the caller's descriptors: all or none.
    Wire(CallId, Vec<PodSpec>),
    /// Have the network policy agent enforce the policies of a pod that was wired.
    Enforce {
        /// For whom.
        id: CallId,
        /// The pod.
        pod: PodName,
        /// How many interfaces it has.
        interfaces: usize,
        /// How long the caller can wait for it.
        patience: Duration,
    },
    /// Tell the network policy agent that a pod is gone; nobody waits for it.
    Forget(PodName),
    /// Compare the interfaces of a pod with what they should be.
    Check(CallId, Vec<PodSpec>),
    /// Take a pod's wiring away; nobody waits for it.
    Unwire(PodSpec),
    /// Put back what others have taken of the wiring of these pods. Not asked for again before [`Event::PodsCompared`] has told the end.
    Mend(Vec<PodSpec>),
    /// See which of these sandboxes have no host link any more.
    Survey(Vec<(SandboxKey, HostVeth)>),
    /// Put records on disk.
    Append(BatchId, Vec<Record>),
    /// Start a new state file.
    Rewrite(Box<Snapshot>, Ipv6Books),
    /// Have the Go version's checkpoint written of this: where addresses are is known better than before.
    Checkpoint(Box<Snapshot>),
    /// Look at the ENIs.
    Look,
    /// Ask instance metadata for the ENIs.
    Glance,
    /// Call EC2.
    Act {
        /// The call's name.
        id: ActionId,
        /// What is asked.
        action: Action,
        /// Security groups of a new ENI; none: the primary ENI's.
        groups: Vec<SecurityGroupId>,
    },
    /// Ask instance metadata for the range of the subnet that the ENI with this MAC is in.
    AskRange(SubnetId, Mac),
    /// Put on disk what a start would need to know, for when nobody tells it.
    Remember(Box<Remembered>),
    /// Ask EC2 for an IPv6 prefix for an ENI.
    AssignIpv6(EniId),
    /// Give the IPv6 prefix back that this ENI, the primary one, has.
    ReleaseIpv6(EniId, Ipv6Prefix),
    /// Do chores, in order; one lot at a time.
    Tidy(Vec<Chore>),
    /// Bring the host's kernel state in line.
    Converge {
        /// The wish's number.
        generation: u64,
        /// What should be.
        host: Box<HostWish>,
    },
    /// Tell the runtime that there is a network: the next ADD would succeed.
    Publish,
}

/// What came of a wish for the host's kernel, but for what was not to be had for the whole node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostMade {
    /// ENIs whose link is not there (yet).
    pub missing: BTreeSet<Mac>,
    /// ENIs of which the kernel refused something, and what.
    pub refused: BTreeMap<Mac, Vec<String>>,
    /// Settings of ENIs that the kernel does not take, as where `/proc/sys` is read-only: no reason to do without the ENI.
    pub unset: Vec<String>,
    /// Others had undone something that was made before.
    pub put_back: bool,
}

impl HostMade {
    /// Whether the kernel holds all that an ENI needs.
    #[must_use]
    pub fn is_ready(&self, eni: &Mac) -> bool {
        !self.missing.contains(eni) && !self.refused.contains_key(eni)
    }
}

/// What the host's kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostWish {
    /// ENIs, tables, rules.
    pub node: NodeSpec,
    /// Destinations that keep their source address.
    pub no_snat: Vec<Ipv4Network>,
    /// Addresses that nobody outside may begin a connection to.
    pub local: Option<Ipv4Network>,
    /// The address by which pods with IPv4 addresses of the VPC reach IPv6; `None`: they do not.
    pub ipv6_egress: Option<Ipv6Addr>,
    /// What the names of pods' host ends start with: as set, and as it was set when those were named that live.
    pub pod_if_prefixes: BTreeSet<VethPrefix>,
    /// Pods whose routes must be there; `None` leaves the pods' table alone.
    #[serde(skip)]
    pub pods: Option<Vec<PodSpec>>,
    /// The node's own address.
    pub primary_address: Ipv4Addr,
    /// Which ENIs these are, for people.
    pub ids: BTreeMap<Mac, EniId>,
}
