//! The words of the domain: names, places, limits and reasons, as types that refuse what cannot be.
//!
//! | word | meaning |
//! |---|---|
//! | ENI | elastic network interface, attached to the instance at a *device index* on a *network card* |
//! | primary ENI | device 0 of card 0; carries the node's own address; never detached by us |
//! | slot | one /32 address or one /28 prefix that EC2 gave to an ENI |
//! | sandbox | one network namespace attachment: (network name, container id, interface name) |
//! | trunk ENI | made by the VPC resource controller; carries *branch ENIs*, one VLAN and one pod each |
//! | reason code | why an ADD waits or fails; one closed list, [`Reason`] |
//!
//! No IO, no clock, no hash maps: every crate may depend on this one and nothing else of ours.

mod branch;
mod capacity;
mod ids;
mod instance;
mod moment;
mod place;
mod prefix;
mod reason;
mod sandbox;
mod veth;

pub use branch::{Branch, BranchEni, BranchIpv4, Enforcing, VlanId, VlanIdError};
pub use capacity::{Capacity, Layout};
pub use ids::{EniId, IdError, InstanceId, Mac, SecurityGroupId, SubnetId};
pub use instance::{InstanceLimits, InstanceTable, NetworkCardLimits};
pub use moment::Moment;
pub use place::{DeviceIndex, NetworkCard, TableId};
pub use prefix::{Ipv6Prefix, Prefix};
pub use reason::{CniCode, Reason};
pub use sandbox::{
    CONTAINER_ID_BYTES_MAX, IF_NAME_BYTES_MAX, NETWORK_NAME_BYTES_MAX, PodName, SandboxKey, SandboxKeyError,
};
pub use veth::{HostVeth, VethPrefix, VethPrefixError};
