//! What the host needs for a pod with a branch ENI, beside what it needs for every pod. Pure.
//!
//! A VLAN link on the trunk carries the branch ENI; a table of its own leads out by it. Packets find the table by the link that they come
//! in by, where they go by the branch ENI alone; by their source otherwise, as those of a pod on a secondary ENI do by their mark, of which
//! there are not enough.
//!
//! These come and go with their pod, by the same thread: the host keeper knows nothing of them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use types::{Branch, TableId};

use crate::desired::everywhere;
use crate::model::{Family, IfIndex, PodSpec, Route, RulePriority};

/// Where rules by incoming link stand: before the node's own addresses.
pub(crate) const PRIORITY: u32 = 10;

/// A rule for the packets of one pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BranchRule {
    pub(crate) family: Family,
    pub(crate) selector: BranchSelector,
    pub(crate) table: TableId,
}

/// What such a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BranchSelector {
    /// The name of the link by which a packet comes in.
    Into(String),
    /// A source.
    From(IpAddr),
}

impl BranchRule {
    /// Its place.
    pub(crate) const fn priority(&self) -> u32 {
        match self.selector {
            BranchSelector::Into(_) => PRIORITY,
            BranchSelector::From(_) => RulePriority::Steering.number(),
        }
    }
}

impl fmt::Display for BranchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} ", self.priority())?;
        match &self.selector {
            BranchSelector::Into(link) => write!(f, "from all iif {link}")?,
            BranchSelector::From(address) => write!(f, "from {address}")?,
        }
        write!(f, " lookup {}", self.table)
    }
}

/// The rules of a pod: one or two for each family.
pub(crate) fn rules(pod: &PodSpec, branch: &Branch) -> BTreeSet<BranchRule> {
    let table = branch.eni.vlan.table();
    let of_address = |address: &IpAddr| {
        let selectors = match branch.is_strict() {
            true => vec![
                BranchSelector::Into(branch.eni.vlan.link()),
                BranchSelector::Into(pod.host_if.to_string()),
            ],
            false => vec![BranchSelector::From(*address)],
        };
        let family = Family::of(*address);
        selectors.into_iter().map(move |selector| BranchRule { family, selector, table })
    };
    pod.addresses.iter().flat_map(of_address).collect()
}

/// The routes by which the pod's packets leave by the VLAN's link, in the order in which the kernel takes them.
pub(crate) fn ways_out(branch: &Branch, vlan: IfIndex) -> Vec<Route> {
    let table = branch.eni.vlan.table();
    let by = |gateway: IpAddr| {
        let to_gateway = Route { table, destination: IpNetwork::from(gateway), via: None, link: vlan };
        let destination = everywhere(Family::of(gateway));
        [to_gateway, Route { table, destination, via: Some(gateway), link: vlan }]
    };
    branch.eni.gateways().into_iter().flat_map(by).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use types::{BranchEni, BranchIpv4, Enforcing, HostVeth, Mac, PodName, VethPrefix, VlanId};

    use super::*;
    use crate::desired::pod_routes;

    pub(crate) fn pod(enforcing: Enforcing, ipv6: bool) -> PodSpec {
        let name = PodName { namespace: "default".to_owned(), name: "sample-pod".to_owned() };
        let host_if = match enforcing {
            Enforcing::Strict => HostVeth::of_branch(&name),
            Enforcing::Standard => HostVeth::of_pod(&VethPrefix::default(), &name, 0),
        };
        let ipv4 = BranchIpv4 { address: [10, 0, 20, 9].into(), gateway: [10, 0, 16, 1].into() };
        let eni = BranchEni {
            id: None,
            mac: Mac([2, 0, 0, 0, 0, 7]),
            vlan: VlanId::new(7).unwrap(),
            ipv4: (!ipv6).then_some(ipv4),
            ipv6: ipv6.then(|| "2001:db8::9".parse().unwrap()),
        };
        let addresses = eni.addresses();
        let branch = Some(Branch { eni, trunk: Mac([2, 0, 0, 0, 1, 0]), enforcing });
        PodSpec { host_if, container_if: "eth0".to_owned(), index: 0, addresses, mtu: 9001, branch }
    }

    /// All that leads to and from a pod whose links are numbers 5 (the pod's) and 6 (the VLAN's).
    fn all(pod: &PodSpec) -> String {
        let branch = pod.branch.as_ref().unwrap();
        let routes = ways_out(branch, IfIndex(6)).into_iter().chain(pod_routes(pod, IfIndex(5)));
        let routes = routes.map(|it| {
            let via = it.via.map_or(String::new(), |via| format!("via {via} "));
            format!("{} {via}dev {} table {}\n", it.destination, it.link.0, it.table)
        });
        routes.chain(rules(pod, branch).iter().map(|rule| format!("{rule}\n"))).collect()
    }

    #[test]
    fn a_strict_pods_packets_find_its_table_by_the_link_that_they_come_in_by() {
        assert_eq!(
            all(&pod(Enforcing::Strict, false)),
            "\
10.0.16.1/32 dev 6 table 107
0.0.0.0/0 via 10.0.16.1 dev 6 table 107
10.0.20.9/32 dev 5 table 107
pref 10 from all iif vlan.eth.7 lookup 107
pref 10 from all iif vlancc21c2d7785 lookup 107
"
        );
    }

    #[test]
    fn a_standard_pods_packets_find_it_by_their_source_and_the_pod_is_among_all_pods() {
        assert_eq!(
            all(&pod(Enforcing::Standard, false)),
            "\
10.0.16.1/32 dev 6 table 107
0.0.0.0/0 via 10.0.16.1 dev 6 table 107
10.0.20.9/32 dev 5 table 51200
pref 1536 from 10.0.20.9 lookup 107
"
        );
    }

    #[test]
    fn the_router_of_ipv6_is_the_same_in_every_subnet() {
        assert_eq!(
            all(&pod(Enforcing::Strict, true)),
            "\
fe80:ec2::1/128 dev 6 table 107
::/0 via fe80:ec2::1 dev 6 table 107
2001:db8::9/128 dev 5 table 107
pref 10 from all iif vlan.eth.7 lookup 107
pref 10 from all iif vlancc21c2d7785 lookup 107
"
        );
    }
}
