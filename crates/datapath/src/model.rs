//! Kernel objects as values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use types::{Branch, BranchEni, DeviceIndex, HostVeth, Ipv6Prefix, Mac, NetworkCard, TableId};

use crate::Marks;

/// One of the two sets of tables that the kernel keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The option of `ip` for it, with the blank before.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => " -6",
        }
    }

    /// The length of its addresses, in bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A link's number in its network namespace; the kernel never gives one twice while the namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IfIndex(pub u32);

/// A link of the host, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSeen {
    /// Its number.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its group, 0 if nobody gave it one.
    pub group: u32,
    /// What it is an end of or stands on: for a veth the other end, numbered in the other end's namespace.
    pub peer: Option<IfIndex>,
}

impl LinkSeen {
    /// The MTU with which a host end was made, if we have made it.
    #[must_use]
    pub const fn made_with_mtu(&self) -> Option<u32> {
        if self.group & !MTU_BITS == MADE_GROUPS { Some(self.group & MTU_BITS) } else { None }
    }
}

/// An ENI as the kernel should have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniSpec {
    /// Finds its link.
    pub mac: Mac,
    /// Its network card.
    pub card: NetworkCard,
    /// Its device index.
    pub device: DeviceIndex,
    /// Its primary address.
    pub primary_address: Ipv4Addr,
    /// Its subnet; the gateway is the first address in it.
    pub subnet: Ipv4Network,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Pod addresses (or prefixes) that must leave by this ENI.
    pub sources: BTreeSet<Ipv4Network>,
    /// The IPv6 prefixes whose addresses must leave by it. The primary ENI's leave by the main table, and need none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ipv6: BTreeSet<Ipv6Prefix>,
}

impl EniSpec {
    /// Whether this is the node's own ENI, whose addresses and routes are not ours to touch.
    #[must_use]
    pub const fn is_primary(&self) -> bool {
        self.card.0 == 0 && self.device.0 == 0
    }

    /// Its routing table.
    #[must_use]
    pub fn table(&self) -> TableId {
        TableId::of_eni(self.card, self.device)
    }
}

/// The host part of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its ENIs.
    pub enis: Vec<EniSpec>,
    /// Bits of marks.
    pub marks: Marks,
    /// Whether connections can be bound to the primary ENI by mark (rule 1024).
    pub connmark: bool,
    /// Whether pods have IPv6 addresses: of the primary ENI, by the main table, or of another one's prefix.
    pub ipv6: bool,
    /// Destinations that the main table routes, whichever ENI a pod is on (`AWS_EXTERNAL_SERVICE_CIDRS`).
    pub external_services: BTreeSet<Ipv4Network>,
    /// The ENI that carries branch ENIs. No more than its link is ours.
    #[serde(default)]
    pub trunk: Option<TrunkSpec>,
    /// Whether there are, or may be, pods whose traffic goes by their branch ENI alone, also to the node's own addresses.
    #[serde(default)]
    pub strict_branches: bool,
}

/// The trunk ENI's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrunkSpec {
    /// Finds it.
    pub mac: Mac,
    /// MTU, in bytes; that of its VLANs is the same.
    pub mtu: u32,
}

/// A pod's attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// Name of the host end.
    pub host_if: HostVeth,
    /// Name inside the pod.
    pub container_if: String,
    /// The interface's number inside the pod: all but number 0 have a gateway, a table and a rule of their own.
    pub index: u8,
    /// The pod's addresses: at most one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Its branch ENI, which has these addresses, if it has one.
    pub branch: Option<Branch>,
}

/// The upper half of the link group of host ends that we have made: with the MAC address that their name gives
/// ([`types::HostVeth::mac`]), and the MTU that the lower half says. Others have any: the Go version's MAC addresses are random.
const MADE_GROUPS: u32 = 0x5653_0000;
/// What of the group says the MTU.
const MTU_BITS: u32 = 0xffff;

impl PodSpec {
    /// The link group of its host end.
    #[must_use]
    pub const fn group(&self) -> u32 {
        MADE_GROUPS | self.mtu & MTU_BITS
    }

    /// The families of its addresses.
    pub(crate) fn families(&self) -> BTreeSet<Family> {
        self.addresses.iter().map(|address| Family::of(*address)).collect()
    }

    /// Whether it has an IPv6 address.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// The table inside the pod by which packets of this interface's addresses leave.
    #[must_use]
    pub fn table(&self) -> TableId {
        if self.index == 0 { TableId::MAIN } else { TableId(self.index.into()) }
    }

    /// The table of the host that leads to it.
    #[must_use]
    pub fn table_on_host(&self) -> TableId {
        let strict = self.branch.as_ref().filter(|branch| branch.is_strict());
        strict.map_or(TableId::PODS, |branch| branch.eni.vlan.table())
    }
}

/// Where a rule of ours stands in the policy database. The whole list, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RulePriority {
    /// Neighbour discovery by the VPC's IPv6 router, before what is for branch ENIs; and all packets: is it for the node itself? The
    /// kernel's own, which makes way for the next one.
    First,
    /// All packets: is it for the node itself? After what is for branch ENIs (10, see `branch`).
    Local,
    /// All packets: is it for a pod of this node?
    Pods,
    /// Connections that belong to the primary ENI.
    Connmark,
    /// Packets to destinations that the main table routes for every pod.
    ExternalServices,
    /// Packets of pods on a secondary ENI.
    Steering,
    /// Packets of the node itself from a secondary ENI's own address.
    FromEni,
    /// All packets: the kernel's own rule, put back where somebody has flushed it with ours.
    Main,
}

impl RulePriority {
    const ALL: [Self; 8] = [
        Self::First,
        Self::Local,
        Self::Pods,
        Self::Connmark,
        Self::ExternalServices,
        Self::Steering,
        Self::FromEni,
        Self::Main,
    ];

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::First => 0,
            Self::Local => 20,
            Self::Pods => 512,
            Self::Connmark => 1024,
            Self::ExternalServices => 1535,
            Self::Steering => 1536,
            Self::FromEni => 32765,
            Self::Main => 32766,
        }
    }

    /// The priority with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.number() == number)
    }
}

/// What a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Selector {
    /// Everything.
    All,
    /// A packet mark under a mask.
    Mark {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// A source address.
    From(Ipv4Addr),
    /// Sources within a range.
    Within(Ipv6Network),
    /// A destination.
    To(Ipv4Network),
    /// ICMPv6 from the VPC's IPv6 router ([`types::BranchEni::IPV6_GATEWAY`]).
    RouterIcmp,
}

/// A policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Whose packets it is for.
    pub family: Family,
    /// Its place.
    pub priority: RulePriority,
    /// What it matches.
    pub selector: Selector,
    /// Where it looks.
    pub table: TableId,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} ", self.priority.number())?;
        match self.selector {
            Selector::All => f.write_str("from all")?,
            Selector::Mark { value, mask } => write!(f, "fwmark {value:#x}/{mask:#x}")?,
            Selector::From(address) => write!(f, "from {address}")?,
            Selector::Within(range) => write!(f, "from {range}")?,
            Selector::To(range) => write!(f, "to {range}")?,
            Selector::RouterIcmp => write!(f, "from {} ipproto ipv6-icmp", BranchEni::IPV6_GATEWAY)?,
        }
        write!(f, " lookup {}", self.table)
    }
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Its table.
    pub table: TableId,
    /// Where to.
    pub destination: IpNetwork,
    /// By which router; none means on the link.
    pub via: Option<IpAddr>,
    /// By which link.
    pub link: IfIndex,
}

impl Route {
    /// Its family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.destination {
            IpNetwork::V4(_) => Family::V4,
            IpNetwork::V6(_) => Family::V6,
        }
    }
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The link.
    pub link: IfIndex,
    /// The address and the length of its subnet's prefix.
    pub address: Ipv4Network,
}

/// A kernel setting under `/proc/sys`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub path: String,
    /// What it should say.
    pub value: &'static str,
}

/// A link's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// MTU, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What the kernel holds, or should hold, of what we own.
///
/// Its text is the difference to nothing: see [`diff`](crate::diff()) and [`Op::command`](crate::Op::command).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelState {
    /// Rules and how many copies: the kernel keeps duplicates.
    pub rules: BTreeMap<Rule, u32>,
    /// Routes with our protocol number, and those that must go: of secondary ENIs in the main table.
    pub routes: BTreeSet<Route>,
    /// Addresses of secondary ENIs.
    pub addresses: BTreeSet<Address>,
    /// Links of ENIs.
    pub links: BTreeMap<IfIndex, LinkState>,
}
