//! What `ipamd status` shows.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use types::{
    DeviceIndex, EniId, Ipv6Prefix, Mac, Moment, NetworkCard, PodName, Prefix, Reason, SandboxKey, SubnetId,
    TableId, VlanId,
};

/// The state of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the daemon.
    pub version: String,
    /// EC2 instance id; empty until IMDS has answered.
    pub instance_id: String,
    /// EC2 instance type.
    pub instance_type: String,
    /// When this report was made.
    pub now: Moment,
    /// When the daemon started.
    pub started: Moment,
    /// Whether ADD would be served; what is missing otherwise.
    pub not_ready: Vec<String>,
    /// The node's primary address.
    pub primary_address: Option<Ipv4Addr>,
    /// The VPC's IPv4 CIDRs.
    pub vpc_cidrs: Vec<IpNetwork>,
    /// The prefix that pods get their IPv6 addresses of.
    #[serde(default)]
    pub ipv6_prefix: Option<Ipv6Prefix>,
    /// Addresses by state, over all ENIs.
    pub addresses: AddressCount,
    /// The most addresses for pods this node can hold.
    pub capacity: u32,
    /// Addresses that were given out before they had cooled, because nothing else was to be had; since the daemon started.
    #[serde(default)]
    pub reused_early: u64,
    /// What others did to ENIs and addresses, since the daemon started.
    #[serde(default)]
    pub observed: Observed,
    /// The network cards that pods get addresses of.
    #[serde(default)]
    pub cards: Vec<CardReport>,
    /// The ENIs, by card and device.
    pub enis: Vec<EniReport>,
    /// The sandboxes that hold an address.
    pub pods: Vec<PodReport>,
    /// ADDs that wait for an address.
    pub waiting: Vec<Waiting>,
    /// Why ADDs failed or waited since the daemon started, the latest reason first.
    #[serde(default)]
    pub reasons: Vec<ReasonReport>,
    /// What the pool is about to do, each as a sentence with its reason.
    pub plan: Vec<String>,
    /// Why EC2 does not do what it was last asked, if it does not.
    #[serde(default)]
    pub trouble: Option<Reason>,
    /// Trouble with EC2 that holds now.
    pub cloud: Vec<String>,
    /// Name of the node's ENIConfig; none while custom networking is on and the node object is not known.
    #[serde(default)]
    pub eni_config: Option<String>,
    /// What Kubernetes says of the node, or why it does not.
    #[serde(default)]
    pub cluster: Vec<String>,
}

/// How many addresses are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddressCount {
    /// Can be assigned now.
    pub free: u32,
    /// Promised to an ADD in progress.
    pub reserved: u32,
    /// Held by a sandbox.
    pub assigned: u32,
    /// Released a short while ago.
    pub cooling: u32,
}

impl AddressCount {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.free.saturating_add(self.reserved).saturating_add(self.assigned).saturating_add(self.cooling)
    }
}

/// What looks at the ENIs have found that no call of ours had done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// ENIs that were there.
    pub enis_joined: u64,
    /// ENIs that were gone.
    pub enis_left: u64,
    /// Addresses that were there, those of new ENIs left out.
    pub addresses_joined: u64,
    /// Addresses that were gone, those of ENIs that were gone left out.
    pub addresses_left: u64,
    /// Addresses that were gone while pods had them.
    pub addresses_lost: u64,
    /// ENIs that were gone while pods had addresses of them.
    pub enis_lost: u64,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardReport {
    /// Which.
    pub card: NetworkCard,
    /// ENIs on it, whoever's.
    pub enis: u32,
    /// ENIs it can hold.
    pub max_enis: u32,
    /// Places of these that are held by what pods cannot use.
    #[serde(default)]
    pub foreign: u32,
    /// Its addresses for pods by state.
    pub addresses: AddressCount,
    /// The most addresses for pods it can hold.
    pub capacity: u32,
}

/// One ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniReport {
    /// Its id.
    pub id: EniId,
    /// Its MAC address.
    pub mac: Mac,
    /// Network card.
    pub card: NetworkCard,
    /// Device index.
    pub device: DeviceIndex,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its primary address, never given to a pod.
    pub primary_address: Ipv4Addr,
    /// Its routing table.
    pub table: TableId,
    /// How many prefixes are delegated to it.
    pub prefixes: u32,
    /// Which these are.
    #[serde(default)]
    pub delegated: BTreeSet<Prefix>,
    /// The IPv6 prefix that pods get addresses of, if it has one.
    #[serde(default)]
    pub ipv6_prefix: Option<Ipv6Prefix>,
    /// IPv6 addresses of it that pods have.
    #[serde(default)]
    pub ipv6_assigned: u32,
    /// Its addresses by state.
    pub addresses: AddressCount,
    /// Why it gets no pods, if so.
    pub excluded: Option<String>,
    /// Pods cannot use it: it is somebody else's, or of a kind that is not for them.
    #[serde(default)]
    pub foreign: bool,
}

/// One pod's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod.
    pub pod: PodName,
    /// The sandbox.
    pub sandbox: SandboxKey,
    /// Where the address belongs, as far as that is known.
    pub eni: Option<EniId>,
    /// The VLAN that leads to its branch ENI, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The address.
    pub address: AddressReport,
    /// Its address of the other family.
    #[serde(default)]
    pub other: Option<AddressReport>,
    /// Host end of its veth pair.
    pub host_if: String,
    /// Since when.
    pub since: Moment,
    /// Its ADD is not answered yet, so the address is only promised.
    #[serde(default)]
    pub reserved: bool,
}

/// An address of either family.
pub type AddressReport = std::net::IpAddr;

/// An ADD that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The pod.
    pub pod: PodName,
    /// Since when.
    pub since: Moment,
    /// For what.
    pub reason: Reason,
    /// Of which network card.
    #[serde(default)]
    pub card: NetworkCard,
}

/// One reason, and what it did to ADDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonReport {
    /// The reason.
    pub reason: Reason,
    /// ADDs that failed for it.
    pub failed: u64,
    /// ADDs that had waited for it last when their wait ended.
    pub waited: u64,
    /// When it was met last.
    pub last: Moment,
    /// The pod that failed for it last, if one did.
    pub pod: Option<PodName>,
    /// What that pod's runtime was told.
    pub message: String,
}
