//! What the kernel should hold, from what a node and its pods are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use types::{BranchEni, Ipv6Prefix, Mac, TableId};

use crate::mark::MarkError;
use crate::model::{
    Address, EniSpec, Family, IfIndex, KernelState, LinkSeen, LinkState, NodeSpec, PodSpec, Route, Rule,
    RulePriority, Selector, Sysctl,
};
use crate::seen::HostSeen;

/// The host part: links, addresses, tables and rules, for the ENIs whose link is there.
///
/// # Errors
/// When an ENI's mark does not fit the mask.
pub fn node(spec: &NodeSpec, links: &BTreeMap<Mac, LinkSeen>) -> Result<KernelState, MarkError> {
    let mut state = KernelState::default();
    let families = Family::ALL.into_iter().filter(|family| *family == Family::V4 || spec.ipv6);
    for family in families {
        for (priority, table) in [(RulePriority::Pods, TableId::PODS), (RulePriority::Main, TableId::MAIN)] {
            state.rules.insert(Rule { family, priority, selector: Selector::All, table }, 1);
        }
    }
    if spec.connmark {
        let selector = Selector::Mark { value: spec.marks.connmark, mask: spec.marks.connmark };
        let (family, priority, table) = (Family::V4, RulePriority::Connmark, TableId::MAIN);
        state.rules.insert(Rule { family, priority, selector, table }, 1);
    }
    local_after_branches(&mut state, spec);
    if let Some((link, trunk)) = spec.trunk.and_then(|trunk| Some((links.get(&trunk.mac)?, trunk))) {
        state.links.insert(link.index, LinkState { mtu: trunk.mtu, up: true });
    }
    state.rules.extend(spec.external_services.iter().map(|range| (external_service(*range), 1)));
    for eni in &spec.enis {
        if let Some(link) = links.get(&eni.mac) {
            state.links.insert(link.index, LinkState { mtu: eni.mtu, up: true });
            if !eni.is_primary() {
                secondary(&mut state, spec, eni, link.index)?;
            }
        }
    }
    Ok(state)
}

/// Where pods' traffic goes by their branch ENI alone, also that to the node's own addresses, those are looked up after the rules of such
/// pods: the kernel's first rule is not desired, and one behind theirs is. The router's answers have to be the node's before that, or nobody
/// would know its MAC address.
fn local_after_branches(state: &mut KernelState, spec: &NodeSpec) {
    let families = Family::ALL.into_iter().filter(|family| *family == Family::V4 || spec.ipv6);
    for family in families.filter(|_| spec.strict_branches) {
        let rule = |priority, selector| Rule { family, priority, selector, table: TableId::LOCAL };
        state.rules.insert(rule(RulePriority::Local, Selector::All), 1);
        if family == Family::V6 {
            state.rules.insert(rule(RulePriority::First, Selector::RouterIcmp), 1);
        }
    }
}

/// Every pod reaches an external service as the main table says. The kernel keeps a rule for everywhere as one without a destination.
fn external_service(range: Ipv4Network) -> Rule {
    let selector = if range.prefix() == 0 { Selector::All } else { Selector::To(range) };
    let (family, priority, table) = (Family::V4, RulePriority::ExternalServices, TableId::MAIN);
    Rule { family, priority, selector, table }
}

/// A secondary ENI: one address, a table of its own, two rules.
fn secondary(
    state: &mut KernelState,
    spec: &NodeSpec,
    eni: &EniSpec,
    link: IfIndex,
) -> Result<(), MarkError> {
    let table = eni.table();
    let own = Ipv4Network::new(eni.primary_address, eni.subnet.prefix());
    // The prefix of a network is at most 32, so this cannot be refused.
    state.addresses.extend(own.ok().map(|address| Address { link, address }));
    let gateway = IpAddr::V4(gateway(eni.subnet));
    state.routes.insert(Route { table, destination: IpNetwork::from(gateway), via: None, link });
    state.routes.insert(Route { table, destination: everywhere(Family::V4), via: Some(gateway), link });
    let (value, mask) = (spec.marks.of_eni(eni.card, eni.device)?, spec.marks.steering_mask);
    let rule = |priority, selector| Rule { family: Family::V4, priority, selector, table };
    let steering = rule(RulePriority::Steering, Selector::Mark { value, mask });
    let from = rule(RulePriority::FromEni, Selector::From(eni.primary_address));
    state.rules.extend([(steering, 1), (from, 1)]);
    if spec.ipv6 && !eni.ipv6.is_empty() {
        secondary_ipv6(state, &eni.ipv6, table, link);
    }
    Ok(())
}

/// A secondary ENI's way out for IPv6. What comes of its prefix is of a pod, and there is one prefix as a rule, so that needs no mark.
fn secondary_ipv6(state: &mut KernelState, prefixes: &BTreeSet<Ipv6Prefix>, table: TableId, link: IfIndex) {
    let gateway = IpAddr::V6(BranchEni::IPV6_GATEWAY);
    state.routes.insert(Route { table, destination: IpNetwork::from(gateway), via: None, link });
    state.routes.insert(Route { table, destination: everywhere(Family::V6), via: Some(gateway), link });
    let (family, priority) = (Family::V6, RulePriority::Steering);
    // The length of a prefix is never refused.
    let ranges = prefixes.iter().filter_map(|it| Ipv6Network::new(it.first(), Ipv6Prefix::LENGTH).ok());
    let rules = ranges.map(|range| Rule { family, priority, selector: Selector::Within(range), table });
    state.rules.extend(rules.map(|rule| (rule, 1)));
}

/// The mark of each pod address (or prefix) on a secondary ENI whose link is there.
///
/// # Errors
/// When an ENI's mark does not fit the mask.
pub fn sources(
    spec: &NodeSpec,
    links: &BTreeMap<Mac, LinkSeen>,
) -> Result<BTreeMap<Ipv4Network, u32>, MarkError> {
    let mut sources = BTreeMap::new();
    for eni in spec.enis.iter().filter(|eni| !eni.is_primary() && links.contains_key(&eni.mac)) {
        let mark = spec.marks.of_eni(eni.card, eni.device)?;
        sources.extend(eni.sources.iter().map(|source| (*source, mark)));
    }
    Ok(sources)
}

/// The host's routes to one pod, one for each of its addresses.
pub fn pod_routes(pod: &PodSpec, link: IfIndex) -> impl Iterator<Item = Route> {
    pod.addresses.iter().map(move |address| pod.way_in(*address).by(link))
}

/// The host part and the routes of the pods whose link is there.
///
/// # Errors
/// When an ENI's mark does not fit the mask.
pub fn host(spec: &NodeSpec, pods: &[PodSpec], seen: &HostSeen) -> Result<KernelState, MarkError> {
    let mut state = node(spec, &seen.by_mac())?;
    // Once the last such pod is gone the kernel's own first rule comes back.
    for rule in seen.rules.iter().filter_map(|rule| rule.ours) {
        if rule.priority == RulePriority::Local && !state.rules.contains_key(&rule) {
            state.rules.insert(Rule { priority: RulePriority::First, ..rule }, 1);
        }
    }
    let by_name: BTreeMap<&str, IfIndex> =
        seen.links.iter().map(|link| (link.name.as_str(), link.index)).collect();
    let linked = pods.iter().filter_map(|pod| Some((pod, by_name.get(pod.host_if.as_str())?)));
    // A branch ENI's table is its pod's, and comes and goes with it.
    let routes = linked.flat_map(|(pod, link)| pod_routes(pod, *link));
    state.routes.extend(routes.filter(|route| route.table == TableId::PODS));
    Ok(state)
}

/// Kernel settings: forwarding on, and loose reverse path checks on ENIs.
///
/// With IPv6, router advertisements go on being taken on the primary ENI: they bring the node's default route, and a kernel that
/// forwards takes them only where it is told to (2). It is told before forwarding is switched on, which drops what they brought.
///
/// The strict check looks up the reply without the packet's mark, finds the main table, and drops what arrives for a
/// pod on a secondary ENI. The kernel uses the larger of `all` and the interface's own value, and loose (2) is the largest.
#[must_use]
pub fn sysctls(spec: &NodeSpec, links: &BTreeMap<Mac, LinkSeen>) -> Vec<Sysctl> {
    let rp_filter =
        |link: &LinkSeen| Sysctl { path: format!("net/ipv4/conf/{}/rp_filter", link.name), value: "2" };
    let enis = spec.enis.iter().filter_map(|eni| links.get(&eni.mac)).map(rp_filter);
    let forward = Sysctl { path: "net/ipv4/ip_forward".to_owned(), value: "1" };
    let primary = spec.enis.iter().find(|eni| spec.ipv6 && eni.is_primary());
    let ipv6 = primary.and_then(|eni| links.get(&eni.mac)).into_iter().flat_map(|link| {
        [
            Sysctl { path: format!("net/ipv6/conf/{}/accept_ra", link.name), value: "2" },
            Sysctl { path: "net/ipv6/conf/all/forwarding".to_owned(), value: "1" },
        ]
    });
    std::iter::once(forward).chain(enis).chain(ipv6).collect()
}

/// Whether the kernel looks up TCP sockets before routes; not every kernel has the switch.
pub const EARLY_DEMUX: &str = "net/ipv4/tcp_early_demux";

/// Kernel settings that are made once, when the node is installed, and are left alone afterwards. `ipv6` says whether pods have it.
#[must_use]
pub fn sysctls_of_installation(early_demux: bool, ipv6: bool) -> Vec<Sysctl> {
    let early_demux = if early_demux { "1" } else { "0" };
    let demux = Sysctl { path: EARLY_DEMUX.to_owned(), value: early_demux };
    let on = Sysctl { path: "net/ipv6/conf/all/disable_ipv6".to_owned(), value: "0" };
    std::iter::once(demux).chain(ipv6.then_some(on)).collect()
}

/// The VPC router: the first address of a subnet after its network address (Amazon VPC user guide, subnet sizing).
#[must_use]
pub fn gateway(subnet: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// The destination of a default route.
pub(crate) fn everywhere(family: Family) -> IpNetwork {
    // A length of 0 is never refused.
    match family {
        Family::V4 => Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok().map(IpNetwork::V4),
        Family::V6 => Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).ok().map(IpNetwork::V6),
    }
    .unwrap_or(IpNetwork::V6(Ipv6Network::from(Ipv6Addr::UNSPECIFIED)))
}

#[cfg(test)]
mod tests {
    use types::{DeviceIndex, NetworkCard};

    use super::*;
    use crate::{Marks, diff};

    fn eni(card: u8, device: u8, primary: [u8; 4]) -> EniSpec {
        EniSpec {
            mac: Mac([2, 0, 0, 0, card, device]),
            card: NetworkCard(card),
            device: DeviceIndex(device),
            primary_address: primary.into(),
            subnet: "10.0.16.0/20".parse().unwrap(),
            mtu: 9001,
            sources: BTreeSet::new(),
            ipv6: BTreeSet::new(),
        }
    }

    fn spec() -> NodeSpec {
        let enis = vec![eni(0, 0, [10, 0, 16, 9]), eni(0, 1, [10, 0, 17, 5]), eni(1, 2, [10, 0, 18, 6])];
        NodeSpec {
            enis,
            marks: Marks::default(),
            connmark: true,
            ipv6: false,
            external_services: BTreeSet::new(),
            trunk: None,
            strict_branches: false,
        }
    }

    /// Links for the ENIs, numbered from 1 and named `ens0`, `ens1`, ...
    fn links(spec: &NodeSpec) -> BTreeMap<Mac, LinkSeen> {
        let link = |(n, eni): (u32, &EniSpec)| {
            let index = IfIndex(n + 1);
            let mac = Some(eni.mac);
            let (name, mtu, up, group, peer) = (format!("ens{n}"), 1500, false, 0, None);
            (eni.mac, LinkSeen { index, name, mac, mtu, up, group, peer })
        };
        (0..).zip(&spec.enis).map(link).collect()
    }

    /// The commands that would make the state out of nothing.
    fn script(state: &KernelState, links: &BTreeMap<Mac, LinkSeen>) -> String {
        let names = links.values().map(|link| (link.index, link.name.clone())).collect();
        let commands = diff(state, &KernelState::default()).into_iter().map(|op| op.command(&names) + "\n");
        commands.collect()
    }

    #[test]
    fn a_node_with_three_enis_needs_exactly_this() {
        let spec = spec();
        let links = links(&spec);

        let text = script(&node(&spec, &links).unwrap(), &links);

        assert_eq!(
            text,
            "\
ip link set ens0 mtu 9001 up
ip link set ens1 mtu 9001 up
ip link set ens2 mtu 9001 up
ip addr add 10.0.17.5/20 dev ens1 noprefixroute
ip addr add 10.0.18.6/20 dev ens2 noprefixroute
ip route replace 10.0.16.1/32 dev ens1 scope link table 2 proto 86
ip route replace 10.0.16.1/32 dev ens2 scope link table 10102 proto 86
ip route replace 0.0.0.0/0 via 10.0.16.1 dev ens1 table 2 proto 86
ip route replace 0.0.0.0/0 via 10.0.16.1 dev ens2 table 10102 proto 86
ip rule add pref 512 from all lookup 51200 protocol 86
ip rule add pref 1024 fwmark 0x80/0x80 lookup main protocol 86
ip rule add pref 1536 fwmark 0x100/0x3f00 lookup 2 protocol 86
ip rule add pref 1536 fwmark 0x1200/0x3f00 lookup 10102 protocol 86
ip rule add pref 32765 from 10.0.17.5 lookup 2 protocol 86
ip rule add pref 32765 from 10.0.18.6 lookup 10102 protocol 86
ip rule add pref 32766 from all lookup main protocol 86
"
        );
    }

    #[test]
    fn what_comes_of_a_secondary_enis_ipv6_prefix_leaves_by_it() {
        let mut spec = NodeSpec { ipv6: true, ..spec() };
        spec.enis[2].ipv6.insert("2001:db8:0:1:4a2f::/80".parse().unwrap());
        let links = links(&spec);

        let text = script(&node(&spec, &links).unwrap(), &links);

        let of_ipv6: Vec<&str> = text.lines().filter(|line| line.contains(':')).collect();
        let wanted = [
            "ip route replace fe80:ec2::1/128 dev ens2 scope link table 10102 proto 86",
            "ip route replace ::/0 via fe80:ec2::1 dev ens2 table 10102 proto 86",
            "ip -6 rule add pref 1536 from 2001:db8:0:1:4a2f::/80 lookup 10102 protocol 86",
        ];
        assert_eq!(of_ipv6, wanted, "{text}");
    }

    #[test]
    fn an_external_service_is_one_rule_before_those_of_the_enis() {
        let services = ["198.51.100.0/24", "203.0.113.0/24"].map(|range| range.parse().unwrap());
        let spec = NodeSpec { external_services: services.into(), ..spec() };
        let links = links(&spec);

        let text = script(&node(&spec, &links).unwrap(), &links);

        let rules: Vec<&str> = text.lines().filter(|line| line.contains("pref 153")).collect();
        let wanted = [
            "ip rule add pref 1535 to 198.51.100.0/24 lookup main protocol 86",
            "ip rule add pref 1535 to 203.0.113.0/24 lookup main protocol 86",
        ];
        assert_eq!(rules[..2], wanted);
        assert_eq!(rules.len(), 4, "{text}");
    }

    #[test]
    fn an_eni_without_a_link_waits_and_the_others_do_not() {
        let spec = spec();
        let mut links = links(&spec);
        links.remove(&spec.enis[1].mac);

        let state = node(&spec, &links).unwrap();

        assert_eq!(state.rules.len(), 5);
        assert!(state.rules.keys().all(|rule| rule.table != TableId(2)));
    }

    #[test]
    fn the_primary_eni_keeps_its_addresses_and_routes() {
        let spec = NodeSpec { enis: vec![eni(0, 0, [10, 0, 16, 9])], ..spec() };

        let state = node(&spec, &links(&spec)).unwrap();

        assert!(state.addresses.is_empty() && state.routes.is_empty());
    }

    #[test]
    fn with_ipv6_there_is_one_rule_more_and_router_advertisements_are_taken_before_forwarding() {
        let spec = NodeSpec { ipv6: true, enis: vec![eni(0, 0, [10, 0, 16, 9])], ..spec() };
        let links = links(&spec);

        let text = script(&node(&spec, &links).unwrap(), &links);
        let settings = sysctls(&spec, &links);

        assert!(text.contains("ip -6 rule add pref 512 from all lookup 51200 protocol 86\n"), "{text}");
        let settings: Vec<_> = settings.iter().map(|s| (s.path.as_str(), s.value)).skip(2).collect();
        let wanted = [("net/ipv6/conf/ens0/accept_ra", "2"), ("net/ipv6/conf/all/forwarding", "1")];
        assert_eq!(settings, wanted);
    }

    #[test]
    fn a_pod_of_both_families_has_a_route_for_each() {
        let pod = PodSpec {
            host_if: types::HostVeth::found("eni0123456789a").unwrap(),
            container_if: "eth0".to_owned(),
            index: 0,
            addresses: vec!["10.0.16.20".parse().unwrap(), "2001:db8::a00:1014".parse().unwrap()],
            mtu: 9001,
            branch: None,
        };

        let routes: Vec<String> = pod_routes(&pod, IfIndex(4)).map(|r| r.destination.to_string()).collect();

        assert_eq!(routes, ["10.0.16.20/32", "2001:db8::a00:1014/128"]);
    }

    #[test]
    fn sources_of_secondary_enis_with_a_link_get_their_mark() {
        let mut spec = spec();
        for (eni, source) in spec.enis.iter_mut().zip(["10.0.16.20/32", "10.0.17.16/28", "10.0.18.20/32"]) {
            eni.sources.insert(source.parse().unwrap());
        }
        let mut links = links(&spec);
        links.remove(&spec.enis[2].mac);

        let sources = sources(&spec, &links).unwrap();

        assert_eq!(sources, BTreeMap::from([("10.0.17.16/28".parse().unwrap(), 0x100)]));
    }

    #[test]
    fn forwarding_is_on_and_reverse_path_checks_are_loose() {
        let spec = NodeSpec { enis: vec![eni(0, 0, [10, 0, 16, 9])], ..spec() };

        let settings = sysctls(&spec, &links(&spec));

        let settings: Vec<_> = settings.iter().map(|s| (s.path.as_str(), s.value)).collect();
        assert_eq!(settings, [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/ens0/rp_filter", "2")]);
    }
}
