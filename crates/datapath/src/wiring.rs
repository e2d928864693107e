//! A pod's wiring as data: the things that it is made of, in the order in which the kernel accepts them. Pure.
//!
//! An ADD makes all of them, which is the difference to nothing. CHECK and repair ask for each whether it is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use types::TableId;

use crate::PROTOCOL;
use crate::desired::everywhere;
use crate::diff::route_words;
use crate::model::{Family, IfIndex, PodSpec, Route};

/// Priority of the rules inside a pod by which packets of a further interface's address find its table.
pub(crate) const INSIDE_PRIORITY: u32 = 1;

/// In which of the two network namespaces something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The node's.
    Host,
    /// The pod's.
    Pod,
}

/// When something was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Just now, and it is still so.
    Now,
    /// Before it was put right.
    Before,
}

/// A route by an end of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Its table.
    pub table: TableId,
    /// Where to.
    pub destination: IpNetwork,
    /// By which router; none means on the link.
    pub via: Option<IpAddr>,
}

impl Way {
    /// The route, where the end has this number.
    #[must_use]
    pub const fn by(self, link: IfIndex) -> Route {
        Route { table: self.table, destination: self.destination, via: self.via, link }
    }
}

/// One of the things that an interface's wiring is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The veth pair, both ends down.
    Pair,
    /// A setting of IPv6 of the host end, which comes before its first packet.
    Setting {
        /// Its name.
        name: &'static str,
        /// What it should say.
        value: &'static str,
    },
    /// An end is up.
    Up(Side),
    /// An address on an end.
    Address(Side, IpAddr),
    /// A route by an end.
    Route(Side, Way),
    /// The permanent neighbour entry of the pod's gateway: it has the host end's MAC address, without asking.
    Gateway(IpAddr),
    /// The rule inside the pod that leads packets of an address of a further interface to its table.
    Rule(IpAddr),
}

impl Part {
    /// Where it is; the pair is in both.
    #[must_use]
    pub const fn side(&self) -> Side {
        match self {
            Self::Pair | Self::Setting { .. } => Side::Host,
            Self::Up(side) | Self::Address(side, _) | Self::Route(side, _) => *side,
            Self::Gateway(_) | Self::Rule(_) => Side::Pod,
        }
    }

    /// The command that would make it, the pod's network namespace having this name.
    #[must_use]
    pub fn command(&self, pod: &PodSpec, netns: &str) -> String {
        let (host_if, container_if) = (&pod.host_if, &pod.container_if);
        let on = |side| match side {
            Side::Host => ("ip".to_owned(), host_if.as_str()),
            Side::Pod => (format!("ip -n {netns}"), container_if.as_str()),
        };
        match self {
            Self::Pair => format!(
                "ip link add {host_if} address {} mtu {mtu} group {group} type veth \
                 peer name {container_if} address {} mtu {mtu} netns {netns}",
                host_if.mac(),
                host_if.mac_inside(),
                mtu = pod.mtu,
                group = pod.group(),
            ),
            Self::Setting { name, value } => format!("sysctl -w net/ipv6/conf/{host_if}/{name}={value}"),
            Self::Up(side) => {
                let (ip, link) = on(*side);
                format!("{ip} link set {link} up")
            }
            Self::Address(side, address) => {
                let (ip, link) = on(*side);
                let nodad = if address.is_ipv6() { " nodad" } else { "" };
                format!("{ip} addr add {} dev {link}{nodad}", IpNetwork::from(*address))
            }
            Self::Route(side, way) => {
                let (ip, link) = on(*side);
                let family = Family::of(way.destination.ip()).option();
                let words = route_words(&way.by(IfIndex(0)), link);
                match side {
                    Side::Host => format!("{ip}{family} route replace {words} proto {PROTOCOL}"),
                    Side::Pod => format!("{ip}{family} route add {words}"),
                }
            }
            Self::Gateway(gateway) => {
                let (ip, link) = on(Side::Pod);
                format!("{ip} neigh add {gateway} lladdr {} dev {link} nud permanent", host_if.mac())
            }
            Self::Rule(address) => {
                let (ip, _) = on(Side::Pod);
                let family = Family::of(*address).option();
                format!("{ip}{family} rule add pref {INSIDE_PRIORITY} from {address} lookup {}", pod.table())
            }
        }
    }

    /// What a pod lacks, or lacked, that is without it, in words.
    pub(crate) fn lack(&self, pod: &PodSpec, when: When) -> String {
        let (is, has, are) = match when {
            When::Now => ("is", "has", "are"),
            When::Before => ("was", "had", "were"),
        };
        let (host_if, container_if) = (pod.host_if.as_str(), pod.container_if.as_str());
        let name = |side| if side == Side::Host { host_if } else { container_if };
        match self {
            Self::Pair => format!("{container_if} and {host_if} {are} not one pair"),
            Self::Setting { name, value } => format!("{name} of {host_if} {is} not {value}"),
            Self::Up(side) => format!("{} {is} down", name(*side)),
            Self::Address(side, address) => format!("{} {has} no address {address}", name(*side)),
            Self::Route(Side::Host, way) => format!("{} {is} not routed to {host_if}", way.destination.ip()),
            Self::Route(Side::Pod, way) => format!("the pod {has} no route to {}", way.destination),
            Self::Gateway(gateway) => format!("the gateway {gateway} {is} not {host_if}"),
            Self::Rule(_) => format!("the pod {has} no rule for packets of {container_if}"),
        }
    }
}

impl PodSpec {
    /// All that its wiring is made of, its branch ENI's apart, in the order in which the kernel accepts it. What leads packets to the pod
    /// comes last.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        // All IPv6 routes of the host are walked whenever the state of a link with IPv6 changes, and an end that has it brings routes of its
        // own: an ADD and a DEL would cost more with each pod.
        let without_ipv6 = Part::Setting { name: "disable_ipv6", value: "1" };
        // A pod could otherwise make itself the node's IPv6 gateway (CVE-2020-10749). Also where IPv6 is off: somebody may switch it on.
        let no_routers = Part::Setting { name: "accept_ra", value: "0" };
        let mut parts = vec![Part::Pair];
        parts.push(no_routers);
        parts.extend((!self.has_ipv6()).then_some(without_ipv6));
        parts.extend([Part::Up(Side::Host), Part::Up(Side::Pod)]);
        for address in &self.addresses {
            parts.push(Part::Address(Side::Pod, *address));
            parts.extend(self.ways_out(Family::of(*address)).map(|way| Part::Route(Side::Pod, way)));
            parts.push(Part::Gateway(self.gateway(Family::of(*address))));
        }
        parts.extend(self.addresses.iter().filter(|_| self.index > 0).copied().map(Part::Rule));
        parts.extend(self.addresses.iter().map(|address| Part::Route(Side::Host, self.way_in(*address))));
        // From it the host asks who has the pod's address: without one it cannot. The kernel gives the link one too, and uses it once a second
        // has passed; somebody may remove either.
        parts.extend(self.has_ipv6().then(|| Part::Address(Side::Host, self.gateway(Family::V6))));
        parts
    }

    /// The gateway that it sees by this interface: link-local, and the host end answers to it by a permanent neighbour entry.
    #[must_use]
    pub fn gateway(&self, family: Family) -> IpAddr {
        let host = self.index.saturating_add(1);
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 1, host)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into())),
        }
    }

    /// The routes by which it leaves: to the gateway, and by it to everywhere.
    fn ways_out(&self, family: Family) -> [Way; 2] {
        let (table, gateway) = (self.table(), self.gateway(family));
        [
            Way { table, destination: gateway.into(), via: None },
            Way { table, destination: everywhere(family), via: Some(gateway) },
        ]
    }

    /// The host's route to it.
    pub(crate) fn way_in(&self, address: IpAddr) -> Way {
        Way { table: self.table_on_host(), destination: address.into(), via: None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use types::HostVeth;

    use super::*;

    fn pod(index: u8, addresses: &[&str]) -> PodSpec {
        PodSpec {
            host_if: HostVeth::found("eni0123456789a").unwrap(),
            container_if: if index == 0 { "eth0".to_owned() } else { format!("mNicIf{index}") },
            index,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mtu: 9001,
            branch: None,
        }
    }

    fn commands(pod: &PodSpec) -> Vec<String> {
        pod.parts().iter().map(|part| part.command(pod, "POD")).collect()
    }

    #[test]
    fn a_pods_wiring_is_told_as_commands_of_ip() {
        let pod = pod(0, &["10.0.4.7"]);
        let [mac, inside] = [pod.host_if.mac(), pod.host_if.mac_inside()].map(|mac| mac.to_string());
        let group = pod.group();

        assert_eq!(
            commands(&pod),
            [
                &*format!(
                    "ip link add eni0123456789a address {mac} mtu 9001 group {group} type veth \
                     peer name eth0 address {inside} mtu 9001 netns POD"
                ),
                "sysctl -w net/ipv6/conf/eni0123456789a/accept_ra=0",
                "sysctl -w net/ipv6/conf/eni0123456789a/disable_ipv6=1",
                "ip link set eni0123456789a up",
                "ip -n POD link set eth0 up",
                "ip -n POD addr add 10.0.4.7/32 dev eth0",
                "ip -n POD route add 169.254.1.1/32 dev eth0 scope link table main",
                "ip -n POD route add 0.0.0.0/0 via 169.254.1.1 dev eth0 table main",
                &*format!("ip -n POD neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"),
                "ip route replace 10.0.4.7/32 dev eni0123456789a scope link table 51200 proto 86",
            ]
        );
    }

    #[test]
    fn a_further_interface_has_a_table_of_its_own_and_ipv6_an_address_to_be_asked_from() {
        let pod = pod(2, &["10.0.5.7", "2001:db8::7"]);

        let all = commands(&pod);

        for command in [
            "ip -n POD addr add 2001:db8::7/128 dev mNicIf2 nodad",
            "ip -n POD route add 0.0.0.0/0 via 169.254.1.3 dev mNicIf2 table 2",
            "ip -n POD -6 route add ::/0 via fe80::3 dev mNicIf2 table 2",
            "ip -n POD rule add pref 1 from 10.0.5.7 lookup 2",
            "ip -n POD -6 rule add pref 1 from 2001:db8::7 lookup 2",
            "ip addr add fe80::3/128 dev eni0123456789a nodad",
        ] {
            assert!(all.iter().any(|it| it == command), "no {command} in {all:#?}");
        }
        assert!(!all.iter().any(|it| it.contains("disable_ipv6")), "{all:#?}");
    }

    fn any_pod() -> impl Strategy<Value = PodSpec> {
        let addresses = prop::sample::subsequence(vec!["10.0.4.7", "2001:db8::7"], 1..=2);
        (0_u8..4, addresses).prop_map(|(index, addresses)| pod(index, &addresses))
    }

    proptest! {
        #[test]
        fn each_part_is_there_once_and_rules_are_for_further_interfaces(pod in any_pod()) {
            let parts = pod.parts();
            prop_assert_eq!(parts.iter().collect::<BTreeSet<_>>().len(), parts.len());
            let rules = parts.iter().filter(|part| matches!(part, Part::Rule(_))).count();
            prop_assert_eq!(rules, if pod.index == 0 { 0 } else { pod.addresses.len() });
        }

        #[test]
        fn nothing_leads_to_a_pod_before_all_of_it_is_there(pod in any_pod()) {
            let parts = pod.parts();
            let first = parts.iter().position(|part| matches!(part, Part::Route(Side::Host, _))).unwrap();
            prop_assert!(parts[first..].iter().all(|part| part.side() == Side::Host));
            let up = parts.iter().position(|part| *part == Part::Up(Side::Host)).unwrap();
            let late = parts[up..].iter().any(|part| matches!(part, Part::Setting { .. }));
            prop_assert!(!late, "a setting comes after the first packet");
        }
    }
}
