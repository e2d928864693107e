//! The messages for a pod's branch ENI, and what they make: a VLAN link, its table, and the rules that lead there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{LinkUnspec, LinkVlan};
use rustix::io::Errno;
use types::{Branch, BranchEni, BranchIpv4, Enforcing, Mac, TableId, VlanId};

use super::leftovers::plain_rule;
use super::message::{ADD, PUT, in_header, number_of, of_route, rule_parts, set_up, to_route};
use super::pod;
use super::socket::{Ask, Socket};
use super::sysctl::LinkSettings;
use super::wirer::{WireError, all_of, known, routes_of, settle, step};
use crate::PROTOCOL;
use crate::branch::{BranchRule, BranchSelector, LAST_METRIC, PRIORITY, rules, ways_out};
use crate::model::{Family, IfIndex, LinkSeen, PodSpec, Route, RulePriority};

/// How often a rule of one table is removed: more copies than anybody makes.
const COPIES_MAX: u32 = 64;

/// The links of trunks by MAC address, so that no ADD has to list all links but the first.
#[derive(Debug, Default)]
pub(super) struct Trunks {
    known: BTreeMap<Mac, IfIndex>,
}

impl Trunks {
    /// The trunk's link. What is known is asked about by its number, for links come and go.
    fn find(&mut self, mac: Mac, host: &mut Socket) -> Result<IfIndex, WireError> {
        if let Some(index) = self.known.get(&mac).copied() {
            let link = known(host.batch(vec![pod::get_link_at(index)]))?;
            if link.is_some_and(|link| link.mac == Some(mac)) {
                return Ok(index);
            }
        }
        let told = host.dump(&pod::list_links()).map_err(step("read the links"))?;
        // What is stacked on it may have its MAC too, and was made after it.
        let found = pod::links_in(&told).filter(|link| link.mac == Some(mac)).map(|link| link.index).min();
        let index = found.ok_or(WireError::NoTrunk(mac))?;
        self.known.insert(mac, index);
        Ok(index)
    }
}

/// The VLAN link, as `ip link add link PARENT name NAME address MAC type vlan id ID` makes it. It is down: settings come first.
fn create_vlan(eni: &BranchEni, parent: IfIndex) -> Ask {
    let link = LinkVlan::new(&eni.vlan.link(), parent.0, eni.vlan.number()).address(eni.mac.0.to_vec());
    (RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL)
}

fn of_rule(rule: &BranchRule) -> RuleMessage {
    let mut message = plain_rule(rule.family, rule.priority(), rule.table);
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    match &rule.selector {
        BranchSelector::Into(link) => message.attributes.push(RuleAttribute::Iifname(link.clone())),
        BranchSelector::From(address) => {
            message.header.src_len = Family::of(*address).bits();
            message.attributes.push(RuleAttribute::Source(*address));
        }
    }
    message
}

/// The route by which a branch ENI's table has an answer to all packets. Without one they would go on to the next rules and leave by the main
/// table, past the pod's security groups, while the routes by the VLAN's link are not there. It is on no link, and goes with none.
fn refuse(family: Family, table: TableId) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number_of(family);
    message.header.table = in_header(table);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Unreachable;
    message.attributes = vec![RouteAttribute::Table(table.0), RouteAttribute::Priority(LAST_METRIC)];
    message
}

/// Whether the kernel told that route.
pub(super) fn is_refusal(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::Unreachable
        && message.header.destination_prefix_length == 0
        && message.attributes.contains(&RouteAttribute::Priority(LAST_METRIC))
}

/// The routes of a table to somewhere, and whether it refuses what they do not lead to.
fn table_of(host: &mut Socket, family: Family, table: TableId) -> Result<(Vec<Route>, bool), WireError> {
    let told = routes_of(host, family, table)?;
    let ways = told.iter().filter(|message| message.header.kind == RouteType::Unicast);
    Ok((ways.filter_map(to_route).map(|(_, route)| route).collect(), told.iter().any(is_refusal)))
}

/// Whether a branch ENI's table leads to a pod. It may be another pod's by now, which has its number.
pub(super) fn leads_to(pod: &PodSpec, table: TableId, host: &mut Socket) -> Result<bool, WireError> {
    for family in pod.families() {
        let (ways, _) = table_of(host, family, table)?;
        if ways.iter().any(|way| pod.addresses.contains(&way.destination.ip())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Packets of a family, in words after those.
const fn of(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " of IPv6",
    }
}

/// A rule that the kernel told, if it may lead to or from a branch ENI, and whether we made it.
fn to_rule(message: &RuleMessage) -> Option<(BranchRule, bool)> {
    let mut plain = message.clone();
    let mut into = None;
    plain.attributes.retain(|attribute| match attribute {
        RuleAttribute::Iifname(name) => {
            into = Some(name.clone());
            false
        }
        _ => true,
    });
    // Of a rule with a link the kernel says whether that is there.
    plain.header.flags.remove(RuleFlags::IifDetached);
    let parts = rule_parts(&plain)?;
    let bare = parts.value.is_none() && parts.mask.is_none() && parts.to.is_none() && parts.carries.is_none();
    let selector = match (into, parts.from) {
        (Some(link), None) => BranchSelector::Into(link),
        (None, Some(_)) => BranchSelector::From(parts.only_source()?),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let rule = BranchRule { family: parts.family, selector, table: parts.table };
    let fits = bare && rule.priority() == parts.priority && rule.table.is_of_branch();
    fits.then_some((rule, parts.protocol == RouteProtocol::from(PROTOCOL)))
}

/// Whether a rule that the kernel told is one of ours for branch ENIs.
pub(super) fn is_ours(message: &RuleMessage) -> bool {
    to_rule(message).is_some_and(|(_, ours)| ours)
}

/// Makes what a pod's branch ENI needs; what is there already, and of another, makes way.
///
/// `seen` are the rules for branch ENIs where the pod lives: it is never without its own, whatever is refused on the way, or its packets
/// would go by the main table, past its security groups. Without `seen` its link was just made: rules of its name are of one before.
pub(super) fn make(
    pod: &PodSpec,
    branch: &Branch,
    seen: Option<&[(BranchRule, bool)]>,
    trunks: &mut Trunks,
    settings: &LinkSettings,
    host: &mut Socket,
) -> Result<(), WireError> {
    let vlan = place(branch, trunks, host)?;
    if branch.is_strict() && seen.is_none() {
        forget(pod, host)?;
    }
    let refusals = pod.families().into_iter().map(|family| refuse(family, branch.eni.vlan.table()));
    let refusals = refusals.map(|route| (RouteNetlinkMessage::NewRoute(route), PUT)).collect();
    host.batch(refusals).map_err(step("close the branch ENI's table"))?;
    for rule in rules(pod, branch) {
        match host.batch(vec![(RouteNetlinkMessage::NewRule(of_rule(&rule)), ADD)]) {
            Err(error) if error.errno() != Some(Errno::EXIST) => {
                return Err(step("add the branch ENI's rule")(error));
            }
            Ok(_) | Err(_) => {}
        }
    }
    for stray in strays(pod, branch, seen.unwrap_or_default()) {
        settle(host, delete_rule(stray), "remove another branch ENI's rule")?;
    }
    lead(pod, branch, vlan, settings, host)
}

/// The VLAN's link, on a trunk that is up if it has to be brought up itself.
fn place(branch: &Branch, trunks: &mut Trunks, host: &mut Socket) -> Result<IfIndex, WireError> {
    match link_of(&branch.eni, host)? {
        Some((link, true)) => {
            if !link.up {
                raise_trunk(branch.trunk, trunks, host)?;
            }
            if let Some(mtu) = mtu_lost(&link, branch, host)? {
                host.batch(vec![set_mtu(link.index, mtu)]).map_err(step("put back the VLAN's MTU"))?;
            }
            Ok(link.index)
        }
        other => {
            if let Some((old, _)) = other {
                settle(host, pod::delete_link(old.index), "delete the VLAN's old link")?;
            }
            create(branch, trunks, host)
        }
    }
}

/// What the MTU of a VLAN's link should be, where it is less: the kernel takes it down with that of the trunk, and not up again. A trunk that
/// others gave another MAC address is not known.
fn mtu_lost(vlan: &LinkSeen, branch: &Branch, host: &mut Socket) -> Result<Option<u32>, WireError> {
    let Some(below) = vlan.peer else { return Ok(None) };
    let trunk = known(host.batch(vec![pod::get_link_at(below)]))?;
    let trunk = trunk.filter(|trunk| trunk.mac == Some(branch.trunk));
    Ok(trunk.map(|trunk| trunk.mtu).filter(|mtu| vlan.mtu < *mtu))
}

fn set_mtu(link: IfIndex, mtu: u32) -> Ask {
    (RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(link.0).mtu(mtu).build()), 0)
}

/// The kernel takes VLANs down with their trunk, and refuses to bring one up before that. A trunk that others gave another MAC address is not
/// found, but may be up.
fn raise_trunk(trunk: Mac, trunks: &mut Trunks, host: &mut Socket) -> Result<(), WireError> {
    match trunks.find(trunk, host) {
        Ok(link) => host.batch(vec![(set_up(link, None), 0)]).map(drop).map_err(step("bring the trunk up")),
        Err(WireError::NoTrunk(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes all rules by the link of a pod that is just being wired. Which there are is not asked: no dump is on the path of an ADD.
fn forget(pod: &PodSpec, host: &mut Socket) -> Result<(), WireError> {
    for family in pod.families() {
        let mut by_link = plain_rule(family, PRIORITY, TableId(0));
        by_link.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Table(_)));
        by_link.attributes.push(RuleAttribute::Iifname(pod.host_if.to_string()));
        remove_all(&by_link, host)?;
    }
    Ok(())
}

/// Rules by a pod's link that lead to another branch ENI's table.
fn strays<'a>(
    pod: &PodSpec,
    branch: &Branch,
    seen: &'a [(BranchRule, bool)],
) -> impl Iterator<Item = &'a BranchRule> {
    let by_link = BranchSelector::Into(pod.host_if.to_string());
    let table = branch.eni.vlan.table();
    seen.iter().map(|(rule, _)| rule).filter(move |rule| rule.selector == by_link && rule.table != table)
}

/// Removes a rule, whoever made it.
fn delete_rule(rule: &BranchRule) -> Ask {
    let mut message = of_rule(rule);
    message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
    (RouteNetlinkMessage::DelRule(message), 0)
}

/// Makes the VLAN's link.
fn create(branch: &Branch, trunks: &mut Trunks, host: &mut Socket) -> Result<IfIndex, WireError> {
    let parent = trunks.find(branch.trunk, host)?;
    // A VLAN is up only on a link that is.
    let asks = vec![(set_up(parent, None), 0), create_vlan(&branch.eni, parent)];
    host.batch(asks).map_err(step("create the VLAN's link"))?;
    let name = branch.eni.vlan.link();
    let link = known(host.batch(vec![pod::get_link(&name)]))?;
    let index = link.map(|link| link.index).ok_or_else(|| WireError::NoLink(name.clone()))?;
    Ok(index)
}

/// Brings the VLAN's link up, with the routes out by it. Settings come before that: no router but the VPC's is on it, and what comes in by
/// it goes out by it only as the rules say, which a strict check of sources does not know.
fn lead(
    pod: &PodSpec,
    branch: &Branch,
    vlan: IfIndex,
    settings: &LinkSettings,
    host: &mut Socket,
) -> Result<(), WireError> {
    settings.settle_branch(&branch.eni.vlan.link()).map_err(step("set up the VLAN's link"))?;
    if branch.is_strict() {
        settings.check_sources_loosely(pod.host_if.as_str()).map_err(step("set up the pod's link"))?;
    }
    let routes = ways_out(branch, vlan).into_iter();
    let routes = routes.map(|route| (RouteNetlinkMessage::NewRoute(of_route(&route)), PUT));
    let asks = std::iter::once((set_up(vlan, None), 0)).chain(routes).collect();
    host.batch(asks).map(drop).map_err(step("add the branch ENI's routes"))
}

/// Takes it all away: the link, and its routes with it, every rule for its table, whoever made them, and what closes it. A link of that name with another MAC
/// address is of the next pod that has the VLAN, and so are the rules then.
pub(super) fn remove(pod: &PodSpec, branch: &Branch, host: &mut Socket) -> Result<(), WireError> {
    match link_of(&branch.eni, host)? {
        Some((_, false)) => return Ok(()),
        Some((link, true)) => {
            settle(host, pod::delete_link(link.index), "delete the VLAN's link")?;
        }
        None => {}
    }
    let table = branch.eni.vlan.table();
    for family in pod.families() {
        for priority in [PRIORITY, RulePriority::Steering.number()] {
            remove_all(&plain_rule(family, priority, table), host)?;
        }
        let open = (RouteNetlinkMessage::DelRoute(refuse(family, table)), 0);
        settle(host, open, "open the branch ENI's table")?;
    }
    Ok(())
}

fn remove_all(rule: &RuleMessage, host: &mut Socket) -> Result<(), WireError> {
    for _copy in 0..COPIES_MAX {
        let ask = (RouteNetlinkMessage::DelRule(rule.clone()), 0);
        if !settle(host, ask, "remove the branch ENI's rule")? {
            break;
        }
    }
    Ok(())
}

/// The link of the VLAN's name, and whether it is the branch ENI's.
fn link_of(eni: &BranchEni, host: &mut Socket) -> Result<Option<(LinkSeen, bool)>, WireError> {
    let link = known(host.batch(vec![pod::get_link(&eni.vlan.link())]))?;
    Ok(link.map(|link| {
        let is_its = link.mac == Some(eni.mac);
        (link, is_its)
    }))
}

/// All rules for branch ENIs.
pub(super) fn rules_seen(host: &mut Socket) -> Result<Vec<(BranchRule, bool)>, WireError> {
    let mut seen = Vec::new();
    for family in Family::ALL {
        let mut ask = RuleMessage::default();
        ask.header.family = number_of(family);
        let told = all_of(host, &RouteNetlinkMessage::GetRule(ask), "read the rules")?;
        seen.extend(told.iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewRule(message) => to_rule(message),
            _ => None,
        }));
    }
    Ok(seen)
}

/// What the kernel lacks of what a pod's branch ENI needs, in words; nothing when all is well.
pub(super) fn differences(
    pod: &PodSpec,
    branch: &Branch,
    outer: IfIndex,
    seen: &[(BranchRule, bool)],
    host: &mut Socket,
) -> Result<Vec<String>, WireError> {
    let name = branch.eni.vlan.link();
    let vlan = match link_of(&branch.eni, host)? {
        None => return Ok(vec![format!("there was no link {name}")]),
        Some((_, false)) => return Ok(vec![format!("{name} was of another branch ENI")]),
        Some((vlan, true)) => vlan,
    };
    let mut found = Vec::new();
    if !vlan.up {
        found.push(format!("{name} was down"));
    }
    if let Some(mtu) = mtu_lost(&vlan, branch, host)? {
        found.push(format!("the MTU of {name} was {}, not {mtu}", vlan.mtu));
    }
    let (table, mut routes) = (branch.eni.vlan.table(), BTreeSet::new());
    for family in Family::ALL {
        let (ways, refuses) = table_of(host, family, table)?;
        routes.extend(ways);
        if !refuses && pod.families().contains(&family) {
            found.push(format!("table {table} let packets{} go on to the main table", of(family)));
        }
    }
    let own = crate::desired::pod_routes(pod, outer).filter(|_| branch.is_strict());
    let missing = ways_out(branch, vlan.index).into_iter().chain(own).filter(|it| !routes.contains(it));
    found.extend(missing.map(|route| format!("table {} had no route to {}", route.table, route.destination)));
    let lacks = |rule: &BranchRule| !seen.iter().any(|(other, ours)| *ours && other == rule);
    found.extend(rules(pod, branch).iter().filter(|rule| lacks(rule)).map(|rule| format!("no rule {rule}")));
    Ok(found)
}

/// A branch ENI that the kernel tells of, the host end of its pod and the pod's addresses.
#[derive(Debug)]
pub(super) struct BranchSeen {
    pub(super) host_if: IfIndex,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) by_us: bool,
    pub(super) branch: Branch,
}

/// The branch ENIs of pods, by what leads to and from them. `main` is what leads to pods otherwise. For the start only.
pub(super) fn find(host: &mut Socket, main: &[Route]) -> Result<Vec<BranchSeen>, WireError> {
    let told = host.dump(&pod::list_links()).map_err(step("read the links"))?;
    let links: Vec<LinkSeen> = pod::links_in(&told).collect();
    let vlans = links.iter().filter_map(|link| Some((VlanId::of_link(&link.name)?, link)));
    let vlans: Vec<(VlanId, &LinkSeen)> = vlans.collect();
    if vlans.is_empty() {
        return Ok(Vec::new());
    }
    let rules = rules_seen(host)?;
    let mut found = Vec::new();
    for (vlan, link) in vlans {
        let trunk = links.iter().find(|it| Some(it.index) == link.peer).and_then(|it| it.mac);
        let mut routes = Vec::new();
        for family in Family::ALL {
            routes.extend(table_of(host, family, vlan.table())?.0);
        }
        let (Some(mac), Some(trunk)) = (link.mac, trunk) else { continue };
        let of_vlan = |rule: &&(BranchRule, bool)| rule.0.table == vlan.table();
        let by_us = rules.iter().filter(of_vlan).any(|(_, ours)| *ours);
        let rules = rules.iter().filter(of_vlan).map(|(rule, _)| rule);
        found.extend(
            seen(link, (mac, trunk, vlan), &routes, rules, main).map(|seen| BranchSeen { by_us, ..seen }),
        );
    }
    Ok(found)
}

/// What its table and the rules for that say of a VLAN. One of a pod whose link is gone says nothing.
fn seen<'a, I: Iterator<Item = &'a BranchRule>>(
    link: &LinkSeen,
    (mac, trunk, vlan): (Mac, Mac, VlanId),
    routes: &[Route],
    rules: I,
    main: &[Route],
) -> Option<BranchSeen> {
    let to_pod = routes.iter().filter(|route| route.link != link.index);
    let mut strict: Vec<&Route> = to_pod.collect();
    let sources: BTreeSet<IpAddr> = rules
        .filter_map(|rule| match &rule.selector {
            BranchSelector::From(address) => Some(*address),
            BranchSelector::Into(_) => None,
        })
        .collect();
    let enforcing = if strict.is_empty() { Enforcing::Standard } else { Enforcing::Strict };
    if strict.is_empty() {
        strict = main.iter().filter(|route| sources.contains(&route.destination.ip())).collect();
    }
    let host_if = strict.first()?.link;
    let mut addresses: Vec<IpAddr> = strict.iter().map(|route| route.destination.ip()).collect();
    addresses.sort_unstable();
    let gateway = routes.iter().find_map(|route| match route.via {
        Some(IpAddr::V4(via)) if route.link == link.index => Some(via),
        Some(_) | None => None,
    });
    let ipv4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(BranchIpv4 { address: *address, gateway: gateway? }),
        IpAddr::V6(_) => None,
    });
    let ipv6 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    });
    let eni = BranchEni { id: None, mac, vlan, ipv4, ipv6 };
    let branch = Branch { eni, trunk, enforcing };
    Some(BranchSeen { host_if, addresses, by_us: false, branch })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;

    use super::*;
    use crate::branch::tests::pod;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // Without the header of every netlink message, which the socket fills in.
        bytes.split_off(16)
    }

    /// Attributes as the kernel lays them out: length (header included), kind, value, padding to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_vlan_link_is_asked_for_byte_by_byte_as_rtnetlink_has_it() {
        let pod = pod(Enforcing::Strict, false);
        let (ask, flags) = create_vlan(&pod.branch.unwrap().eni, IfIndex(3));

        // struct ifinfomsg: family, padding, type, index, flags, change; then IFLA_IFNAME (3), IFLA_LINK (5), IFLA_ADDRESS (1) and
        // IFLA_LINKINFO (18) of IFLA_INFO_KIND (1) and IFLA_INFO_DATA (2) of IFLA_VLAN_ID (1).
        let id = attribute(1, &7_u16.to_ne_bytes());
        let info = [attribute(1, b"vlan\0"), attribute(2, &id)].concat();
        let wanted = [
            vec![0; 16],
            attribute(3, b"vlan.eth.7\0"),
            attribute(5, &3_u32.to_ne_bytes()),
            attribute(1, &[2, 0, 0, 0, 0, 7]),
            attribute(18, &info),
        ];
        let told = bytes(ask);
        let unterminated = [
            wanted[0].clone(),
            wanted[1].clone(),
            wanted[2].clone(),
            wanted[3].clone(),
            attribute(18, &[attribute(1, b"vlan"), attribute(2, &id)].concat()),
        ];
        assert!(told == wanted.concat() || told == unterminated.concat(), "{told:?}");
        assert_eq!(flags, NLM_F_CREATE | NLM_F_EXCL);
    }

    #[test]
    fn a_rule_by_link_is_asked_for_byte_by_byte_as_rtnetlink_has_it() {
        let pod = pod(Enforcing::Strict, false);
        let rule = rules(&pod, pod.branch.as_ref().unwrap()).into_iter().next().unwrap();

        // struct fib_rule_hdr: family, lengths, tos, table, two reserved, action (FR_ACT_TO_TBL), flags; then FRA_PRIORITY (6), FRA_TABLE (15),
        // FRA_PROTOCOL (21) and FRA_IIFNAME (3).
        let wanted = [
            vec![2, 0, 0, 0, 107, 0, 0, 1, 0, 0, 0, 0],
            attribute(6, &10_u32.to_ne_bytes()),
            attribute(15, &107_u32.to_ne_bytes()),
            attribute(21, &[PROTOCOL]),
            attribute(3, b"vlan.eth.7\0"),
        ];
        assert_eq!(bytes(RouteNetlinkMessage::NewRule(of_rule(&rule))), wanted.concat());
    }

    #[test]
    fn rules_are_read_as_they_were_written_and_one_of_the_go_version_is_not_ours() {
        for (enforcing, ipv6) in
            [(Enforcing::Strict, false), (Enforcing::Standard, false), (Enforcing::Standard, true)]
        {
            let pod = pod(enforcing, ipv6);
            for rule in rules(&pod, pod.branch.as_ref().unwrap()) {
                let mut message = of_rule(&rule);
                assert_eq!(to_rule(&message), Some((rule.clone(), true)));
                message.header.flags.insert(RuleFlags::IifDetached);
                assert_eq!(to_rule(&message), Some((rule.clone(), true)), "its link is not there");
                message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
                assert_eq!(to_rule(&message), Some((rule.clone(), false)));
                message.attributes.push(RuleAttribute::FwMark(7));
                assert_eq!(to_rule(&message), None, "it selects by more");
            }
        }
        assert_eq!(to_rule(&plain_rule(Family::V4, PRIORITY, TableId(107))), None, "it selects by nothing");
    }

    #[test]
    fn of_the_rules_by_a_living_pods_link_those_to_its_own_table_stay_whoever_made_them() {
        let pod = pod(Enforcing::Strict, false);
        let branch = pod.branch.as_ref().unwrap();
        let own = BranchRule {
            family: Family::V4,
            selector: BranchSelector::Into(pod.host_if.to_string()),
            table: branch.eni.vlan.table(),
        };
        let stray = BranchRule { table: TableId(105), ..own.clone() };
        let of_other = BranchRule { selector: BranchSelector::Into("vlan.eth.5".to_owned()), ..stray };
        let seen = [(own.clone(), true), (own, false), (stray.clone(), false), (of_other, true)];

        assert_eq!(strays(&pod, branch, &seen).collect::<Vec<_>>(), [&stray]);
    }

    #[test]
    fn a_branch_eni_that_the_kernel_shows_is_read_back_from_routes_and_rules() {
        for (enforcing, ipv6) in
            [(Enforcing::Strict, false), (Enforcing::Standard, false), (Enforcing::Strict, true)]
        {
            let pod = pod(enforcing, ipv6);
            let branch = pod.branch.clone().unwrap();
            let (outer, vlan) = (IfIndex(5), IfIndex(6));
            let all: Vec<Route> =
                ways_out(&branch, vlan).into_iter().chain(crate::desired::pod_routes(&pod, outer)).collect();
            let (routes, main) =
                all.into_iter().partition(|route: &Route| route.table == branch.eni.vlan.table());
            let (routes, main): (Vec<Route>, Vec<Route>) = (routes, main);
            let link = LinkSeen {
                index: vlan,
                name: branch.eni.vlan.link(),
                mac: Some(branch.eni.mac),
                mtu: 9001,
                up: true,
                group: 0,
                peer: Some(IfIndex(3)),
            };
            let rules = rules(&pod, &branch);

            let found =
                seen(&link, (branch.eni.mac, branch.trunk, branch.eni.vlan), &routes, rules.iter(), &main)
                    .unwrap();

            assert_eq!(
                (found.host_if, found.addresses, found.branch),
                (outer, pod.addresses, branch),
                "{enforcing:?}"
            );
        }
    }
}
