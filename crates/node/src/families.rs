//! Which addresses pods get: IPv4, IPv6 or both. Pure.
//!
//! The pool knows IPv4 addresses only. An IPv6 address goes with the IPv4 address that a pod holds (see [`Ipv6Prefix`]), so whatever
//! the pool keeps true of the one (one owner, cooling, survival of restarts) is true of the other.
//!
//! | families | the pool has | a pod gets | the runtime hears of |
//! |---|---|---|---|
//! | IPv4 | addresses of the VPC | its address; with egress also the one of [`Ipv6Prefix::LOCAL`] beside it, translated | its address |
//! | both | addresses of the VPC | its address, and the one of the primary ENI's /80 (on a network card above 0 of its own ENI's) beside it | both |
//! | IPv6 | [`LOCAL`], the same on every node, and names for what further cards have ([`local_addresses`]) | the one of the /80; with egress also its own, translated | that of the /80 |

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::PodSpec;
use ipnetwork::{IpNetwork, Ipv4Network};
use pool::Owner;
use serde::{Deserialize, Serialize};
use types::{BranchEni, Ipv6Prefix, NetworkCard};

/// Which addresses pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// IPv4 of the VPC.
    V4 {
        /// Whether pods reach IPv6 by a translated address.
        egress: bool,
    },
    /// IPv6 of the VPC.
    V6 {
        /// Whether pods reach IPv4 by a translated address.
        egress: bool,
    },
    /// Both of the VPC.
    Dual,
}

/// Addresses that mean something on their node only, for pods of IPv6 nodes: 169.254.172.0/22, as in the Go version.
const LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 172, 0), 22);
/// The first of them that pods get; the two before it are the network's own and what the Go version calls the gateway.
const FIRST: u32 = 2;
/// The first address that stands for one of a branch ENI, 0.128.0.0. There is no network card of such a number.
const OF_BRANCHES: u32 = 0x0080_0000;
/// So many bits of a MAC address are in it, after the twelve of a VLAN.
const MAC_BITS: u32 = 11;
/// What tells addresses that stand in for those of the Go version from our own, on network cards above 0.
const OF_GO: u8 = 0x80;

impl Families {
    /// Whether pods have IPv6 addresses of the VPC, so that the primary ENI needs a prefix of them, and those of further network cards do.
    #[must_use]
    pub const fn needs_prefix(self) -> bool {
        match self {
            Self::V4 { .. } => false,
            Self::V6 { .. } | Self::Dual => true,
        }
    }

    /// Whether pods have IPv6 addresses of any kind.
    #[must_use]
    pub const fn has_ipv6(self) -> bool {
        match self {
            Self::V4 { egress } => egress,
            Self::V6 { .. } | Self::Dual => true,
        }
    }

    /// Whether the pool has addresses that EC2 gives.
    #[must_use]
    pub const fn has_ipv4_of_vpc(self) -> bool {
        match self {
            Self::V4 { .. } | Self::Dual => true,
            Self::V6 { .. } => false,
        }
    }

    /// Whether pods reach the other family by a translated address.
    const fn has_egress(self) -> bool {
        match self {
            Self::V4 { egress } | Self::V6 { egress } => egress,
            Self::Dual => false,
        }
    }

    /// Whether pods with IPv4 addresses of the VPC reach IPv6 by the node's address.
    #[must_use]
    pub fn has_ipv6_egress(self) -> bool {
        self == Self::V4 { egress: true }
    }

    /// The IPv4 range that means something on this node only; nobody outside may begin a connection to it.
    #[must_use]
    pub fn local_range(self) -> Option<Ipv4Network> {
        self.range_of_node().filter(|_| self == Self::V6 { egress: true })
    }

    /// The IPv4 range that the pool of this node has, where that is not EC2's. The egress plugin of the Go version has the same.
    #[must_use]
    pub fn range_of_node(self) -> Option<Ipv4Network> {
        let (first, length) = LOCAL;
        Ipv4Network::new(first, length).ok().filter(|_| !self.has_ipv4_of_vpc())
    }

    /// What the runtime hears that a pod has.
    #[must_use]
    pub fn told(self, address: Ipv4Addr, ipv6: Option<Ipv6Addr>) -> Vec<IpNetwork> {
        let ipv4 = self.has_ipv4_of_vpc().then_some(IpAddr::V4(address));
        let ipv6 = ipv6.filter(|ipv6| !is_local(*ipv6)).map(IpAddr::V6);
        ipv4.into_iter().chain(ipv6).map(IpNetwork::from).collect()
    }

    /// The addresses that a pod has, as the runtime hears of them.
    #[must_use]
    pub fn addresses_of(self, owner: &Owner, address: Ipv4Addr) -> Vec<IpAddr> {
        match &owner.branch {
            Some(branch) => branch.eni.addresses(),
            None => self.told(address, owner.ipv6).iter().map(IpNetwork::ip).collect(),
        }
    }

    /// What the kernel should hold for a pod.
    #[must_use]
    pub fn pod_spec(self, owner: &Owner, address: Ipv4Addr, mtu: u32) -> PodSpec {
        let container_if = owner.sandbox.if_name().to_owned();
        let (host_if, index, branch) = (owner.host_if.clone(), owner.index(), owner.branch.clone());
        if let Some(branch) = &owner.branch {
            let addresses = branch.eni.addresses();
            return PodSpec { host_if, container_if, index, addresses, mtu, branch: Some(branch.clone()) };
        }
        let has_ipv4 = match self.range_of_node() {
            None => true,
            // One that is not of the range stands for an IPv6 address that the Go version gave; and who has no other has this one.
            Some(range) => match owner.ipv6 {
                None => !is_stand_in(address),
                Some(_) => self.has_egress() && range.contains(address),
            },
        };
        let ipv4 = has_ipv4.then_some(IpAddr::V4(address));
        let addresses = ipv4.into_iter().chain(owner.ipv6.map(IpAddr::V6)).collect();
        PodSpec { host_if, container_if, index, addresses, mtu, branch }
    }
}

/// Whether an IPv6 address means something on its node only.
#[must_use]
pub fn is_local(address: Ipv6Addr) -> bool {
    Ipv6Prefix::of(address) == Ipv6Prefix::LOCAL
}

/// What the pool of an IPv6 node has on a network card. Those of cards above 0 mean nothing to the kernel: what pods have there is the IPv6
/// addresses that go with them.
#[must_use]
pub fn local_addresses(card: NetworkCard) -> BTreeSet<Ipv4Addr> {
    let (first, length) = LOCAL;
    let first = if card == NetworkCard(0) { first } else { Ipv4Addr::new(0, card.0, 0, 0) };
    let (first, size) = (first.to_bits(), 1_u32 << (32 - length));
    // The last one is the network's too.
    (first + FIRST..first + size - 1).map(Ipv4Addr::from_bits).collect()
}

/// The address as the pool of an IPv6 node knows it that stands for one that the Go version gave on a network card. It counts from the first
/// one of each prefix on, so on cards above 0 the same last bits are another pod's; `None` for one that it would not give.
#[must_use]
pub fn stand_in(card: NetworkCard, ipv6: Ipv6Addr) -> Option<Ipv4Addr> {
    let address = Ipv6Prefix::beneath(ipv6)?;
    let [a, b, c, d] = address.octets();
    match (card, a, b) {
        (NetworkCard(0), ..) => Some(address),
        // One of ours.
        (NetworkCard(card), 0, of) if of == card => Some(address),
        (NetworkCard(card), 0, 0) if c < OF_GO => Some(Ipv4Addr::new(0, card, OF_GO | c, d)),
        (..) => None,
    }
}

/// The address under which the pool holds a pod with a branch ENI: the IPv4 one, or one that stands for an IPv6 address. EC2 chooses that
/// from all of its subnet, so its last bits say too little; the VLAN says which pod of the node it is, and the MAC address which of two
/// that had it one after the other. `None` for one that has no address.
#[must_use]
pub fn of_branch(eni: &BranchEni) -> Option<Ipv4Addr> {
    if let Some(ipv4) = eni.ipv4 {
        return Some(ipv4.address);
    }
    eni.ipv6?;
    let [.., high, low] = eni.mac.0;
    let of_mac = u32::from(u16::from_be_bytes([high, low])) & ((1 << MAC_BITS) - 1);
    Some(Ipv4Addr::from_bits(OF_BRANCHES | u32::from(eni.vlan.number()) << MAC_BITS | of_mac))
}

/// Whether an address is one of [`local_addresses`] of a network card above 0, or stands in for one there or for a branch ENI's: the kernel
/// has none of these.
#[must_use]
pub fn is_stand_in(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [0, card, ..] if card > 0)
}

/// The address of a pod that its wiring tells, as the pool knows it.
#[must_use]
pub fn address_in_pool(wired: &[IpAddr]) -> Option<Ipv4Addr> {
    wired.iter().find_map(|address| match address {
        IpAddr::V4(ipv4) => Some(*ipv4),
        IpAddr::V6(ipv6) => Ipv6Prefix::beneath(*ipv6),
    })
}

/// The IPv6 address of a pod that its wiring tells.
#[must_use]
pub fn ipv6_among(wired: &[IpAddr]) -> Option<Ipv6Addr> {
    wired.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(ipv6) => Some(*ipv6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const OF_NODE: Ipv4Addr = Ipv4Addr::new(169, 254, 172, 9);

    fn owner(ipv6: Option<Ipv6Addr>) -> Owner {
        let pod = types::PodName { namespace: "default".to_owned(), name: "web".to_owned() };
        Owner {
            sandbox: types::SandboxKey::new("aws-cni", "c1", "eth0").unwrap(),
            host_if: types::HostVeth::of_pod(&types::VethPrefix::default(), &pod, 0),
            pod,
            since: types::Moment(0),
            ipv6,
            further: None,
            branch: None,
        }
    }

    #[test]
    fn what_a_pod_gets_and_what_is_told_depends_on_the_families() {
        let prefix: Ipv6Prefix = "2001:db8::/80".parse().unwrap();
        let (ipv6, of_node) = (prefix.beside(IPV4), prefix.beside(OF_NODE));
        let cases = [
            (Families::V4 { egress: false }, None, vec!["10.0.0.9/32"], vec!["10.0.0.9"]),
            (
                Families::V4 { egress: true },
                Some(Ipv6Prefix::LOCAL.beside(IPV4)),
                vec!["10.0.0.9/32"],
                vec!["10.0.0.9", "fd00::ac:0:a00:9"],
            ),
            (
                Families::Dual,
                Some(ipv6),
                vec!["10.0.0.9/32", "2001:db8::a00:9/128"],
                vec!["10.0.0.9", "2001:db8::a00:9"],
            ),
            (
                Families::V6 { egress: true },
                Some(of_node),
                vec!["2001:db8::a9fe:ac09/128"],
                vec!["169.254.172.9", "2001:db8::a9fe:ac09"],
            ),
            (
                Families::V6 { egress: false },
                Some(of_node),
                vec!["2001:db8::a9fe:ac09/128"],
                vec!["2001:db8::a9fe:ac09"],
            ),
        ];
        for (families, ipv6, told, wired) in cases {
            let words = |of: Vec<String>| of.join(" ");
            let address = if families.has_ipv4_of_vpc() { IPV4 } else { OF_NODE };
            let spec = families.pod_spec(&owner(ipv6), address, 9001);
            let got = words(families.told(address, ipv6).iter().map(ToString::to_string).collect());
            assert_eq!(got, told.join(" "), "{families:?}");
            assert_eq!(words(spec.addresses.iter().map(ToString::to_string).collect()), wired.join(" "));
            assert_eq!(address_in_pool(&spec.addresses), Some(address));
        }
    }

    #[test]
    fn a_pod_of_the_go_version_has_its_ipv6_address_alone_and_its_egress_plugins_link_the_ipv4_one() {
        let of_go: Ipv6Addr = "2001:db8::5".parse().unwrap();
        for families in [Families::V6 { egress: true }, Families::V6 { egress: false }] {
            let wired = |ipv6, address| families.pod_spec(&owner(ipv6), address, 9001).addresses;
            assert_eq!(wired(Some(of_go), Ipv4Addr::new(0, 0, 0, 5)), [IpAddr::V6(of_go)]);
            let egress = Ipv4Addr::new(169, 254, 172, 5);
            assert_eq!(wired(None, egress), [IpAddr::V4(egress)]);
        }
    }

    #[test]
    fn an_ipv6_node_has_room_for_a_thousand_pods() {
        let all = local_addresses(NetworkCard(0));

        assert_eq!(all.len(), 1021);
        assert_eq!(all.first(), Some(&Ipv4Addr::new(169, 254, 172, 2)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(169, 254, 175, 254)));
    }

    #[test]
    fn a_branch_eni_with_ipv6_alone_has_a_name_in_the_pool_whatever_its_address_is() {
        let of = |vlan, mac| {
            let ipv6 = Some("2600:1f13:0:1:abcd:ef01:2345:6789".parse().unwrap());
            of_branch(&BranchEni { id: None, mac: types::Mac([2, 0, 0, 0, 1, mac]), vlan, ipv4: None, ipv6 })
        };
        let vlans = (1..=4094).filter_map(|number| types::VlanId::new(number).ok());
        let all: BTreeSet<_> = vlans.flat_map(|vlan| [of(vlan, 0), of(vlan, 255)]).collect();
        assert_eq!(all.len(), 2 * 4091);
        assert!(all.iter().flatten().all(|address| is_stand_in(*address)));
        assert!(local_addresses(NetworkCard(127)).iter().all(|address| !all.contains(&Some(*address))));
    }

    #[test]
    fn what_pods_have_on_further_cards_has_one_name_in_the_pool_whoever_gave_it() {
        let prefix: Ipv6Prefix = "2001:db8::/80".parse().unwrap();
        let (first, second) = (NetworkCard(1), NetworkCard(31));
        let ours = local_addresses(first);
        assert_eq!(ours.len(), 1021);
        assert!(ours.is_disjoint(&local_addresses(second)) && ours.iter().all(|it| is_stand_in(*it)));

        let mut of_go: BTreeSet<Ipv4Addr> = BTreeSet::new();
        for number in 0..1000_u32 {
            let ipv6 = prefix.beside(Ipv4Addr::from_bits(number));
            of_go.extend([first, second].map(|card| stand_in(card, ipv6).unwrap()));
            assert_eq!(stand_in(NetworkCard(0), ipv6), Some(Ipv4Addr::from_bits(number)));
        }
        assert_eq!(of_go.len(), 2000);
        assert!(of_go.is_disjoint(&ours) && of_go.iter().all(|it| is_stand_in(*it)));
        for address in ours {
            assert_eq!(stand_in(first, prefix.beside(address)), Some(address));
            assert_eq!(stand_in(second, prefix.beside(address)), None);
        }
        let wired = |ipv6| Families::V6 { egress: true }.pod_spec(&owner(ipv6), [0, 1, 0, 2].into(), 9001);
        assert!(wired(None).addresses.is_empty(), "it means nothing to the kernel");
        assert_eq!(wired(Some(prefix.first())).addresses, [IpAddr::V6(prefix.first())]);
    }
}
