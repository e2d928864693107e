//! What the host needs for a pod with a branch ENI, beside what it needs for every pod. Pure.
//!
//! A VLAN link on the trunk carries the branch ENI; a table of its own leads out by it. Packets find the table by the link that they come
//! in by, where they go by the branch ENI alone; by their source otherwise, as those of a pod on a secondary ENI do by their mark, of which
//! there are not enough.
//!
//! These come and go with their pod, by the same thread: the host keeper knows nothing of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use types::{Branch, TableId};

use crate::PROTOCOL;
use crate::desired::{everywhere, pod_routes};
use crate::diff::Op;
use crate::model::{Family, IfIndex, PodSpec, Route, RulePriority};
use crate::seen::HostSeen;

/// Where rules by incoming link stand: before the node's own addresses.
pub const PRIORITY: u32 = 10;

/// Metric of the routes that refuse what nothing else in a branch ENI's table leads out: the last of all, as the kernel's documentation of
/// VRFs has it.
pub(crate) const LAST_METRIC: u32 = 4_278_198_272;

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

/// What the host's kernel lacks of what leads to and from a pod's branch ENI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchLack {
    /// No link has the trunk's MAC address.
    Trunk,
    /// The VLAN's link is not there, nor are its routes.
    Link,
    /// The link of its name has another MAC address, and is another branch ENI's.
    OtherLink,
    /// The VLAN's link is down.
    Down,
    /// A route of the branch ENI's table.
    Route(Route),
    /// The route that ends the branch ENI's table: without it what nothing else there leads out goes by the main table.
    Refusal(Family),
    /// A rule, in the words of `ip rule`.
    Rule(Family, String),
}

/// The rules that a pod with a branch ENI has, in the words of `ip rule`; none for another pod.
#[must_use]
pub fn branch_rules(pod: &PodSpec) -> Vec<(Family, String)> {
    let rules = pod.branch.as_ref().map(|branch| rules(pod, branch)).unwrap_or_default();
    rules.iter().map(|rule| (rule.family, rule.to_string())).collect()
}

/// What the kernel lacks of what a pod with a branch ENI needs beside what every pod does. Whoever made what is there.
#[must_use]
pub fn branch_lacks(pod: &PodSpec, host: &HostSeen) -> Vec<BranchLack> {
    let Some(branch) = &pod.branch else { return Vec::new() };
    let mut lacks = Vec::new();
    if !host.by_mac().contains_key(&branch.trunk) {
        lacks.push(BranchLack::Trunk);
    }
    let by_name = |name: &str| host.links.iter().find(|link| link.name == name);
    match by_name(&branch.eni.vlan.link()) {
        None => lacks.push(BranchLack::Link),
        Some(link) if link.mac != Some(branch.eni.mac) => lacks.push(BranchLack::OtherLink),
        Some(link) => {
            lacks.extend((!link.up).then_some(BranchLack::Down));
            let outer = by_name(pod.host_if.as_str()).map(|outer| outer.index).filter(|_| branch.is_strict());
            let own = outer.into_iter().flat_map(|outer| pod_routes(pod, outer));
            let wanted = ways_out(branch, link.index).into_iter().chain(own);
            let there = |route: &Route| host.routes.iter().any(|seen| seen.route == *route);
            lacks.extend(wanted.filter(|route| !there(route)).map(BranchLack::Route));
        }
    }
    let table = branch.eni.vlan.table();
    let unrefused =
        |family: &Family| host.refusals.as_ref().is_some_and(|it| !it.contains(&(*family, table)));
    lacks.extend(pod.families().into_iter().filter(unrefused).map(BranchLack::Refusal));
    let there = |family: Family, words: &str| {
        host.rules.iter().any(|seen| seen.family == family && seen.to_string() == words)
    };
    let missing = branch_rules(pod).into_iter().filter(|(family, words)| !there(*family, words));
    lacks.extend(missing.map(|(family, words)| BranchLack::Rule(family, words)));
    lacks
}

impl BranchLack {
    /// The command that puts it there; none where nobody on the node can. `names` are those of links, as a shell takes them.
    #[must_use]
    pub fn command(
        &self,
        branch: &Branch,
        host: &HostSeen,
        names: &BTreeMap<IfIndex, String>,
    ) -> Option<String> {
        let name = branch.eni.vlan.link();
        let trunk = host.by_mac().remove(&branch.trunk);
        let trunk = trunk.and_then(|link| Some((link.up, names.get(&link.index)?)));
        match self {
            Self::Trunk => None,
            Self::Link => Some(make_link(branch, trunk?.1)),
            Self::OtherLink => {
                let made = make_link(branch, trunk?.1);
                Some(format!("ip link del {name} && {made}"))
            }
            // The kernel refuses a VLAN on a link that is down.
            Self::Down => {
                let down = trunk.filter(|(up, _)| !up);
                let first = down.map(|(_, trunk)| format!("ip link set {trunk} up && ")).unwrap_or_default();
                Some(format!("{first}ip link set {name} up"))
            }
            Self::Route(route) => Some(Op::AddRoute(*route).command(names)),
            Self::Refusal(family) => Some(refuse(*family, branch.eni.vlan.table())),
            Self::Rule(family, words) => {
                Some(format!("ip{} rule add {words} protocol {PROTOCOL}", family.option()))
            }
        }
    }
}

/// The command that ends a branch ENI's table.
fn refuse(family: Family, table: TableId) -> String {
    let family = family.option();
    format!(
        "ip{family} route replace unreachable default table {table} metric {LAST_METRIC} proto {PROTOCOL}"
    )
}

/// The VLAN's link with its routes out. A strict check of sources, as a node's settings may have it, would drop what comes in by it.
fn make_link(branch: &Branch, trunk: &str) -> String {
    let (name, eni) = (branch.eni.vlan.link(), &branch.eni);
    // It has no number yet.
    let none = IfIndex(0);
    let names = [(none, name.clone())].into();
    let routes = ways_out(branch, none).into_iter().map(|route| Op::AddRoute(route).command(&names));
    let link = [
        format!("ip link add link {trunk} name {name} address {} type vlan id {}", eni.mac, eni.vlan),
        format!("echo 2 > /proc/sys/net/ipv4/conf/{name}/rp_filter"),
        format!("ip link set {name} up"),
    ];
    link.into_iter().chain(routes).collect::<Vec<_>>().join(" && ")
}

#[cfg(test)]
pub(crate) mod tests {
    use types::{BranchEni, BranchIpv4, Enforcing, HostVeth, Mac, PodName, VethPrefix, VlanId};

    use super::*;
    use crate::{LinkSeen, Maker, RouteSeen, RuleSeen};

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

    /// The kernel of a node where nothing of a pod is missing.
    fn whole(pod: &PodSpec) -> HostSeen {
        let branch = pod.branch.as_ref().unwrap();
        let link = |index, name: &str, mac| LinkSeen {
            index: IfIndex(index),
            name: name.to_owned(),
            mac: Some(mac),
            mtu: 9001,
            up: true,
            group: 0,
            peer: None,
        };
        let links = vec![
            link(4, "ens7", branch.trunk),
            link(5, pod.host_if.as_str(), pod.host_if.mac()),
            link(6, "vlan.eth.7", branch.eni.mac),
        ];
        let routes = ways_out(branch, IfIndex(6)).into_iter().chain(pod_routes(pod, IfIndex(5)));
        let routes = routes.map(|route| RouteSeen { maker: Maker::We, route }).collect();
        let rule = |rule: &BranchRule| RuleSeen {
            family: rule.family,
            priority: rule.priority(),
            text: rule.to_string().split_once(' ').unwrap().1.split_once(' ').unwrap().1.to_owned(),
            ours: None,
        };
        let rules = rules(pod, branch).iter().map(rule).collect();
        let table = branch.eni.vlan.table();
        let refusals = pod.addresses.iter().map(|address| (Family::of(*address), table)).collect();
        HostSeen { links, rules, routes, addresses: Vec::new(), refusals: Some(refusals) }
    }

    /// What is missing once something was taken, with the commands that put it back.
    fn missing(pod: &PodSpec, take: impl FnOnce(&mut HostSeen)) -> Vec<(BranchLack, Option<String>)> {
        let mut host = whole(pod);
        take(&mut host);
        let (branch, names) = (pod.branch.as_ref().unwrap(), host.names());
        let command = |lack: &BranchLack| lack.command(branch, &host, &names);
        branch_lacks(pod, &host).into_iter().map(|lack| (lack.clone(), command(&lack))).collect()
    }

    #[test]
    fn nothing_is_missing_where_all_is_there_and_each_thing_that_is_missing_has_its_command() {
        for (enforcing, ipv6) in
            [(Enforcing::Strict, false), (Enforcing::Strict, true), (Enforcing::Standard, false)]
        {
            assert_eq!(missing(&pod(enforcing, ipv6), |_| {}), []);
        }
        let strict = pod(Enforcing::Strict, false);
        let commands = |take: fn(&mut HostSeen)| -> Vec<String> {
            missing(&strict, take).into_iter().map(|(_, command)| command.unwrap_or_default()).collect()
        };
        assert_eq!(
            commands(|host| host.rules.clear()),
            [
                "ip rule add pref 10 from all iif vlan.eth.7 lookup 107 protocol 86",
                "ip rule add pref 10 from all iif vlancc21c2d7785 lookup 107 protocol 86",
            ]
        );
        assert_eq!(
            commands(|host| host.routes.retain(|seen| seen.route.via.is_none())),
            ["ip route replace 0.0.0.0/0 via 10.0.16.1 dev vlan.eth.7 table 107 proto 86"]
        );
        assert_eq!(
            commands(|host| host.routes.retain(|seen| seen.route.link != IfIndex(5))),
            ["ip route replace 10.0.20.9/32 dev vlancc21c2d7785 scope link table 107 proto 86"]
        );
        assert_eq!(
            commands(|host| host.links.iter_mut().for_each(|link| link.up = false)),
            ["ip link set ens7 up && ip link set vlan.eth.7 up"]
        );
        assert_eq!(
            commands(|host| host.refusals = Some(BTreeSet::new())),
            ["ip route replace unreachable default table 107 metric 4278198272 proto 86"]
        );
        // Who did not ask says nothing.
        assert_eq!(commands(|host| host.refusals = None), [""; 0]);
        let made = "ip link add link ens7 name vlan.eth.7 address 02:00:00:00:00:07 type vlan id 7 \
                    && echo 2 > /proc/sys/net/ipv4/conf/vlan.eth.7/rp_filter && ip link set vlan.eth.7 up \
                    && ip route replace 10.0.16.1/32 dev vlan.eth.7 scope link table 107 proto 86 \
                    && ip route replace 0.0.0.0/0 via 10.0.16.1 dev vlan.eth.7 table 107 proto 86";
        let without = |host: &mut HostSeen| host.links.retain(|link| link.name != "vlan.eth.7");
        assert_eq!(commands(without), [made]);
        assert_eq!(commands(|host| host.links[2].mac = None), [format!("ip link del vlan.eth.7 && {made}")]);
    }

    #[test]
    fn a_trunk_without_a_link_is_told_and_no_command_makes_one() {
        let lacks = missing(&pod(Enforcing::Standard, false), |host| {
            host.links.retain(|link| link.name != "ens7" && link.name != "vlan.eth.7");
        });

        assert_eq!(lacks, [(BranchLack::Trunk, None), (BranchLack::Link, None)]);
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
