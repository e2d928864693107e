//! What the model says to the outside: snapshots of its objects, its settings, and the hook to move links.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::{Ipv4Network, Ipv6Network};
use types::{DeviceIndex, EniId, InstanceId, Mac, Moment, NetworkCard, SecurityGroupId, SubnetId, VlanId};

/// How the cloud behaves; every field can be changed while it runs, see [`Ec2::tune`](super::Ec2::tune).
#[derive(Debug, Clone)]
pub struct Config {
    /// The region's name.
    pub region: String,
    /// Time from `AttachNetworkInterface` until the device is in the instance.
    pub attach_delay: Duration,
    /// Time from `DetachNetworkInterface` until the ENI is available again.
    pub detach_delay: Duration,
    /// How far `DescribeNetworkInterfaces` and `DescribeInstances` look into the past.
    pub describe_lag: Duration,
    /// How far IMDS looks into the past.
    pub imds_lag: Duration,
    /// `None` gives the lowest free address; a seed gives free addresses in an order made from it.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            region: "eu-lab-1".to_owned(),
            attach_delay: Duration::ZERO,
            detach_delay: Duration::ZERO,
            describe_lag: Duration::ZERO,
            imds_lag: Duration::ZERO,
            seed: None,
        }
    }
}

/// What the cloud does to links: implemented by the fabric.
///
/// The calls come one at a time, in the order of the changes, with no lock of the emulator held but the one that
/// orders these calls: reading methods of [`Ec2`](super::Ec2) may be called from here, changing ones may not. An API
/// call is answered only after its changes were delivered.
pub trait Wiring: Send + Sync {
    /// The ENI's device appears in the instance; `launch` says so too, for the primary ENI, before it returns.
    fn attached(&self, instance: &InstanceId, eni: &EniView);
    /// The ENI's device is gone from the instance; the view is the last one with its attachment.
    fn detached(&self, instance: &InstanceId, eni: &EniView);
    /// The addresses or prefixes of an ENI that is in an instance have changed.
    fn addresses_changed(&self, eni: &EniView);
    /// A trunk's VLAN leads to a branch ENI from now on.
    fn associated(&self, _instance: &InstanceId, _trunk: &EniView, _branch: &EniView) {}
    /// It leads there no longer; the view is the last one with its VLAN.
    fn disassociated(&self, _instance: &InstanceId, _branch: &EniView) {}
}

/// A VPC's id, `vpc-…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VpcId(pub String);

impl fmt::Display for VpcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an ENI is: its `InterfaceType`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EniKind {
    /// As most are.
    #[default]
    Interface,
    /// One whose VLANs lead to branch ENIs.
    Trunk,
    /// One that a trunk's VLAN leads to.
    Branch {
        /// `trunk-assoc-…`.
        association: String,
        /// The trunk.
        trunk: EniId,
        /// The VLAN.
        vlan: VlanId,
    },
}

impl EniKind {
    /// The word of the EC2 API.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Trunk => "trunk",
            Self::Branch { .. } => "branch",
        }
    }
}

/// An ENI at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniView {
    /// Its id.
    pub id: EniId,
    /// What it is.
    pub kind: EniKind,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The subnet's range.
    pub subnet_cidr: Ipv4Network,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// Its own address.
    pub primary: Ipv4Addr,
    /// Its other addresses, in the order in which they were given.
    pub secondary: Vec<Ipv4Addr>,
    /// Its /28 prefixes, in the order in which they were given.
    pub prefixes: Vec<Ipv4Network>,
    /// Its own IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// Its /80 prefixes.
    pub ipv6_prefixes: Vec<Ipv6Network>,
    /// The description given at creation.
    pub description: String,
    /// Its security groups.
    pub groups: Vec<SecurityGroupId>,
    /// Its timeouts for idle connections.
    pub tracking: Tracking,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Where it is attached, or is being attached or detached; `None` when it is available.
    pub attachment: Option<Attachment>,
}

impl EniView {
    /// Every address a packet from this ENI may come from.
    #[must_use]
    pub fn sources(&self) -> BTreeSet<Ipv4Addr> {
        let single = self.secondary.iter().copied().chain([self.primary]);
        single.chain(self.prefixes.iter().flat_map(|p| p.iter())).collect()
    }

    /// Whether a packet from this ENI may come from this address.
    #[must_use]
    pub fn is_source(&self, address: Ipv4Addr) -> bool {
        let single = address == self.primary || self.secondary.contains(&address);
        single || self.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// Every IPv6 range a packet from this ENI may come from.
    #[must_use]
    pub fn ipv6_sources(&self) -> BTreeSet<Ipv6Network> {
        self.ipv6.map(Ipv6Network::from).into_iter().chain(self.ipv6_prefixes.iter().copied()).collect()
    }

    /// The subnet's router: the second address of its range.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet_cidr.network().to_bits().saturating_add(1))
    }

    /// Slots in use: addresses, the primary one included, and prefixes.
    #[must_use]
    pub fn slots(&self) -> usize {
        1 + self.secondary.len() + self.prefixes.len()
    }

    /// The instance that has the device, from the end of the attachment's delay to the end of the detachment's.
    #[must_use]
    pub fn inside(&self) -> Option<&InstanceId> {
        let attachment = self.attachment.as_ref()?;
        match attachment.state {
            AttachState::Attaching { .. } => None,
            AttachState::Attached | AttachState::Detaching { .. } => Some(&attachment.instance),
        }
    }
}

/// `ConnectionTrackingConfiguration`: seconds, `None` where EC2's default holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tracking {
    /// `TcpEstablishedTimeout`, 60 to 432,000.
    pub tcp_established: Option<u32>,
    /// `UdpStreamTimeout`, 60 to 180.
    pub udp_stream: Option<u32>,
    /// `UdpTimeout`, 30 to 60.
    pub udp: Option<u32>,
}

/// An ENI's tie to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `eni-attach-…`.
    pub id: String,
    /// The instance.
    pub instance: InstanceId,
    /// The device's index on its card.
    pub device: DeviceIndex,
    /// The network card.
    pub card: NetworkCard,
    /// How far it is.
    pub state: AttachState,
    /// Whether the ENI is deleted when the instance terminates.
    pub delete_on_termination: bool,
    /// When it was asked for.
    pub since: Moment,
}

/// The life of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachState {
    /// The device is not in the instance before this moment.
    Attaching {
        /// When it will be.
        until: Moment,
    },
    /// The device is in the instance.
    Attached,
    /// The device is in the instance until this moment.
    Detaching {
        /// When it will be gone.
        until: Moment,
    },
}

impl AttachState {
    /// The word of the EC2 API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Attaching { .. } => "attaching",
            Self::Attached => "attached",
            Self::Detaching { .. } => "detaching",
        }
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: String,
    /// The subnet it was launched into.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// Its primary ENI.
    pub primary_eni: EniId,
    /// The primary ENI's Ethernet address.
    pub mac: Mac,
    /// The primary ENI's own address.
    pub address: Ipv4Addr,
    /// When it was launched.
    pub launched: Moment,
    /// Whether it runs or is terminated.
    pub running: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetView {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its range.
    pub cidr: Ipv4Network,
    /// Its availability zone.
    pub zone: String,
    /// Addresses that nobody has.
    pub available: u32,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Addresses or prefixes that a call asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressWish {
    /// So many addresses, whichever they are.
    pub count: u32,
    /// These addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// So many /28 prefixes, whichever they are.
    pub prefix_count: u32,
    /// These prefixes.
    pub prefixes: Vec<Ipv4Network>,
}

impl AddressWish {
    /// So many addresses.
    #[must_use]
    pub fn count(count: u32) -> Self {
        Self { count, ..Self::default() }
    }

    /// So many prefixes.
    #[must_use]
    pub fn prefix_count(prefix_count: u32) -> Self {
        Self { prefix_count, ..Self::default() }
    }

    /// How many slots it would fill.
    #[must_use]
    pub fn slots(&self) -> usize {
        let counted = usize::try_from(self.count.saturating_add(self.prefix_count)).unwrap_or(usize::MAX);
        counted.saturating_add(self.addresses.len()).saturating_add(self.prefixes.len())
    }

    /// Half of it, rounded down.
    #[must_use]
    pub fn halved(mut self) -> Self {
        self.count /= 2;
        self.prefix_count /= 2;
        self.addresses.truncate(self.addresses.len() / 2);
        self.prefixes.truncate(self.prefixes.len() / 2);
        self
    }
}

/// What `CreateNetworkInterface` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEni {
    /// The subnet.
    pub subnet: SubnetId,
    /// It is to be a trunk.
    pub trunk: bool,
    /// A description.
    pub description: String,
    /// The security groups; none means the VPC's default group.
    pub groups: Vec<SecurityGroupId>,
    /// Timeouts for idle connections.
    pub tracking: Tracking,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// The ENI's own address, or `None` for any.
    pub primary: Option<Ipv4Addr>,
    /// Addresses besides its own, or prefixes.
    pub addresses: AddressWish,
    /// An IPv6 address of its own too.
    pub ipv6: bool,
    /// A second call with this token answers with the first one's ENI.
    pub token: Option<String>,
}

impl NewEni {
    /// An ENI in this subnet with nothing but its own address.
    #[must_use]
    pub fn plain(subnet: SubnetId) -> Self {
        Self {
            subnet,
            trunk: false,
            description: String::new(),
            groups: Vec::new(),
            tracking: Tracking::default(),
            tags: BTreeMap::new(),
            primary: None,
            addresses: AddressWish::default(),
            ipv6: false,
            token: None,
        }
    }
}
