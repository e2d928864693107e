//! The cloud in our words: EC2, which gives ENIs and addresses, and the metadata service, which says where we are.
//!
//! Only `ec2` knows the SDK's types of EC2; `cloudwatch` writes and signs the one request that the metrics helper makes. What comes from outside is checked here: past this edge there are no missing ids and
//! no texts that should be addresses.

mod call;
pub(crate) mod cloudwatch;
mod ec2;
mod http;
mod imds;
#[cfg(test)]
pub(crate) mod policy;
#[cfg(test)]
mod tests;
pub(crate) mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv4Network;
use pool::Wanted;
use types::{
    DeviceIndex, EniId, InstanceId, Ipv6Prefix, Mac, NetworkCard, Prefix, SecurityGroupId, SubnetId,
};

pub(crate) use cloudwatch::{CloudWatch, MetricPoint};
pub use ec2::Ec2;
pub(crate) use ec2::LIMITS;
pub use imds::Imds;
pub use node::cloud::{CloudError, CloudErrorKind, ConnectionTracking, Effect};

/// An ENI as EC2 or the metadata service describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniRecord {
    /// Its id.
    pub id: EniId,
    /// Its MAC address.
    pub mac: Mac,
    /// The network card it is on; 0 if it is not attached.
    pub card: NetworkCard,
    /// Its place on that card; 0 and meaningless if it is not attached.
    pub device: DeviceIndex,
    /// The subnet it is in.
    pub subnet: SubnetId,
    /// Its own address, which no pod gets.
    pub primary_address: Ipv4Addr,
    /// The addresses that pods can have.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Prefixes delegated to it.
    pub prefixes: BTreeSet<Prefix>,
    /// IPv6 prefixes delegated to it.
    pub ipv6_prefixes: BTreeSet<Ipv6Prefix>,
    /// EC2's word: `interface`, `trunk`, `efa`…; the metadata service does not tell, then `interface`.
    pub interface_type: String,
    /// Its tags; `None` from the metadata service, which does not tell.
    pub tags: Option<BTreeMap<String, String>>,
    /// The id of its attachment, if it is attached; the metadata service does not tell.
    pub attachment: Option<String>,
    /// Whether EC2 deletes it together with the instance; the metadata service does not tell.
    pub delete_on_termination: Option<bool>,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its timeouts for idle connections; the metadata service does not tell.
    pub tracking: ConnectionTracking,
}

/// What is attached to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// ENIs with an IPv4 address that are there to stay.
    pub enis: Vec<EniRecord>,
    /// Places taken by others: ENIs for EFA only, without an IPv4 address, or being detached.
    pub occupied: BTreeSet<(NetworkCard, DeviceIndex)>,
    /// Network cards on which an ENI for EFA only stands.
    pub efa_only: BTreeSet<NetworkCard>,
    /// Some ENI is being detached: another look soon tells more.
    pub in_motion: bool,
}

/// An ENI that is attached to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LooseEni {
    /// Its id.
    pub id: EniId,
    /// Its description.
    pub description: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRecord {
    /// Its id.
    pub id: SubnetId,
    /// Its IPv4 range.
    pub cidr: Ipv4Network,
    /// Addresses that nobody has.
    pub available: u32,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// An ENI to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEni {
    /// Where.
    pub subnet: SubnetId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its timeouts for idle connections.
    pub tracking: ConnectionTracking,
    /// For people.
    pub description: String,
    /// Tags it has from its first moment.
    pub tags: BTreeMap<String, String>,
    /// What pods can have of it from its first moment.
    pub wanted: Wanted,
    /// The same token asks for the same ENI, however often.
    pub token: String,
}

/// Where we are and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// This instance.
    pub instance: InstanceId,
    /// Its type, for example `m5.large`.
    pub instance_type: String,
    /// The region, for example `eu-west-1`.
    pub region: String,
    /// The availability zone, for example `eu-west-1a`.
    pub zone: String,
    /// The primary ENI's MAC address.
    pub mac: Mac,
    /// The primary ENI.
    pub eni: EniId,
    /// The primary ENI's subnet.
    pub subnet: SubnetId,
    /// The VPC.
    pub vpc_id: String,
    /// The node's own address.
    pub primary_address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// The VPC's IPv4 ranges.
    pub vpc_cidrs: Vec<Ipv4Network>,
    /// The primary ENI's security groups.
    pub security_groups: Vec<SecurityGroupId>,
}
