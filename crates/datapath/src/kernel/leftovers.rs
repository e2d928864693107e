//! Rules and routes of the Go version as messages.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use types::TableId;

use super::message::{RuleParts, number_of, of_route, rule_parts, to_route};
use crate::branch;
use crate::leftovers::{GoRule, Leftovers, Removal};
use crate::model::{Family, Route, RulePriority};

/// Priority of rules from pods.
const STEERING: u32 = RulePriority::Steering.number();
/// Priority of rules to ranges of external services.
const EXTERNAL: u32 = RulePriority::ExternalServices.number();
/// The metric of an IPv6 route for which none was asked.
const METRIC: u32 = 1024;

/// Takes in a rule that the kernel told.
pub(super) fn see_rule(seen: &mut Leftovers, message: &RuleMessage) {
    seen.rules.extend(to_rule(message));
    if message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RuleAttribute::Priority(branch::PRIORITY)))
    {
        seen.branch_pods = true;
    }
    if let Some(parts) = rule_parts(message)
        && (parts.priority, parts.table) == (0, TableId::LOCAL)
        && is_for_all(&parts)
    {
        seen.local_first.insert(parts.family);
    }
}

const fn is_for_all(parts: &RuleParts) -> bool {
    let selects = parts.value.is_some() || parts.from.is_some() || parts.to.is_some();
    !selects && parts.mask.is_none() && parts.carries.is_none()
}

/// A rule that the kernel told, if the Go version may have made it.
pub(super) fn to_rule(message: &RuleMessage) -> Option<GoRule> {
    let parts = rule_parts(message)?;
    let from = parts.only_source();
    if parts.carries.is_some() || parts.from.is_some() != from.is_some() {
        return None;
    }
    let (family, table) = (parts.family, parts.table);
    let rule = match (parts.value, parts.mask, from, parts.to) {
        (Some(value), Some(mask), None, None) if value == mask => GoRule::Connmark { family, mark: mask },
        (None, None, None, Some(IpNetwork::V4(range))) if parts.priority == EXTERNAL => {
            GoRule::ExternalService(range)
        }
        (None, None, None, Some(range)) if range == IpNetwork::from(range.ip()) => GoRule::ToPod(range.ip()),
        (None, None, Some(address), None) if parts.priority == STEERING => GoRule::FromPod { address, table },
        (None, None, Some(IpAddr::V4(address)), None) => GoRule::FromEni { address, table },
        (None, None, None, None) => GoRule::Local(family),
        (..) => return None,
    };
    let exactly =
        parts.priority == rule.priority() && table == rule.table() && parts.protocol == RouteProtocol::Unspec;
    exactly.then_some(rule)
}

/// Asks for all rules of a family.
pub(super) fn list_rules(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = number_of(family);
    RouteNetlinkMessage::GetRule(message)
}

/// A rule as the Go version asks for it. Without a protocol number a deletion is for the first that fits the rest.
pub(super) fn of_rule(rule: &GoRule) -> RuleMessage {
    let mut message = plain_rule(rule.family(), rule.priority(), rule.table());
    match *rule {
        GoRule::FromPod { address, .. } => from(&mut message, address),
        GoRule::FromEni { address, .. } => from(&mut message, IpAddr::V4(address)),
        GoRule::ToPod(address) => to(&mut message, address.into()),
        GoRule::ExternalService(range) => to(&mut message, range.into()),
        GoRule::Connmark { mark, .. } => {
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark)]);
        }
        GoRule::Local(_) => {}
    }
    message
}

/// A rule for all packets, whoever makes it: without a protocol number a deletion is for the first that fits the rest.
pub(super) fn plain_rule(family: Family, priority: u32, table: TableId) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number_of(family);
    message.header.action = RuleAction::ToTable;
    // Numbers above 255 go into the attribute alone.
    message.header.table = u8::try_from(table.0).unwrap_or_default();
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(RuleAttribute::Table(table.0));
    message
}

fn from(message: &mut RuleMessage, address: IpAddr) {
    message.header.src_len = IpNetwork::from(address).prefix();
    message.attributes.push(RuleAttribute::Source(address));
}

fn to(message: &mut RuleMessage, range: IpNetwork) {
    message.header.dst_len = range.prefix();
    message.attributes.push(RuleAttribute::Destination(range.ip()));
}

/// A route to a pod that the kernel told, if the Go version may have made it.
pub(super) fn to_pod_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let (_, route) = to_route(message)?;
    let family = route.family();
    let named = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(_) | RouteAttribute::Oif(_) | RouteAttribute::Table(_) => true,
        // What the kernel says of each IPv6 route.
        RouteAttribute::Priority(metric) => family == Family::V6 && *metric == METRIC,
        RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => family == Family::V6,
        _ => false,
    };
    let scope = match family {
        Family::V4 => RouteScope::Link,
        Family::V6 => RouteScope::Universe,
    };
    let exactly = header.protocol == RouteProtocol::Boot
        && header.scope == scope
        && header.kind == RouteType::Unicast
        && header.tos == 0
        && message.attributes.iter().all(named)
        && route.table == TableId::MAIN
        && route.destination == IpNetwork::from(route.destination.ip());
    exactly.then_some(route)
}

/// The request that makes a change, and its flags.
pub(super) fn of_removal(removal: &Removal) -> (RouteNetlinkMessage, u16) {
    match removal {
        Removal::LocalFirst(family) => {
            let mut message = plain_rule(*family, 0, TableId::LOCAL);
            message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
            (RouteNetlinkMessage::NewRule(message), super::message::ADD)
        }
        Removal::Rule(rule) => (RouteNetlinkMessage::DelRule(of_rule(rule)), 0),
        Removal::Route(route) => {
            let mut message = of_route(route);
            message.header.protocol = RouteProtocol::Boot;
            (RouteNetlinkMessage::DelRoute(message), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::rule::RuleFlags;

    use super::*;
    use crate::PROTOCOL;
    use crate::model::IfIndex;

    fn rules() -> [GoRule; 10] {
        let (address, table) = (Ipv4Addr::new(10, 0, 0, 20), TableId(10_101));
        let ipv6: IpAddr = "2001:db8::1".parse().unwrap();
        [
            GoRule::ToPod(address.into()),
            GoRule::ToPod(ipv6),
            GoRule::FromPod { address: address.into(), table },
            GoRule::FromPod { address: ipv6, table },
            GoRule::Connmark { family: Family::V4, mark: 0x80 },
            GoRule::Connmark { family: Family::V6, mark: 0x80 },
            GoRule::FromEni { address, table },
            GoRule::ExternalService("203.0.113.0/24".parse().unwrap()),
            GoRule::Local(Family::V4),
            GoRule::Local(Family::V6),
        ]
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        for rule in rules() {
            assert_eq!(to_rule(&of_rule(&rule)), Some(rule));
        }
    }

    #[test]
    fn one_that_selects_by_more_or_has_another_place_or_a_maker_is_somebody_elses() {
        for rule in rules() {
            let changed = |change: &dyn Fn(&mut RuleMessage)| {
                let mut message = of_rule(&rule);
                change(&mut message);
                to_rule(&message)
            };
            let priority = RuleAttribute::Priority(777);
            assert_eq!(changed(&|m| m.attributes.push(RuleAttribute::Iifname("eth0".to_owned()))), None);
            assert_eq!(changed(&|m| m.attributes.push(RuleAttribute::Protocol(PROTOCOL.into()))), None);
            assert_eq!(changed(&|m| m.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static))), None);
            assert_eq!(changed(&|m| m.attributes.push(priority.clone())), None);
            assert_eq!(changed(&|m| m.header.flags = RuleFlags::Invert), None);
            assert_eq!(changed(&|m| m.header.src_len = 24), None, "{rule}");
        }
    }

    #[test]
    fn a_route_to_a_pod_is_told_from_all_others() {
        let destination = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 20)).into();
        let route = Route { table: TableId::MAIN, destination, via: None, link: IfIndex(7) };
        let mut message = of_route(&route);
        assert_eq!(to_pod_route(&message), None, "the kernel's own");
        message.header.protocol = RouteProtocol::Boot;
        assert_eq!(to_pod_route(&message), Some(route));
        message.attributes.push(RouteAttribute::Priority(5));
        assert_eq!(to_pod_route(&message), None, "one with a metric");
    }

    #[test]
    fn an_ipv6_route_to_a_pod_has_the_metric_that_the_kernel_gives() {
        let destination = "2001:db8::1/128".parse().unwrap();
        let route = Route { table: TableId::MAIN, destination, via: None, link: IfIndex(7) };
        let mut message = of_route(&route);
        message.header.protocol = RouteProtocol::Boot;
        message.attributes.push(RouteAttribute::Priority(METRIC));
        assert_eq!(to_pod_route(&message), Some(route));
        message.attributes.push(RouteAttribute::Gateway("fe80::1".parse::<IpAddr>().unwrap().into()));
        assert_eq!(to_pod_route(&message), None, "one by a router");
    }

    #[test]
    fn what_stands_before_the_local_table_and_who_needs_that_is_seen() {
        let mut seen = Leftovers::default();
        see_rule(&mut seen, &plain_rule(Family::V4, 0, TableId::LOCAL));
        let mut of_branch = plain_rule(Family::V4, branch::PRIORITY, TableId(107));
        of_branch.attributes.push(RuleAttribute::Iifname("vlan.eth.7".to_owned()));
        assert!(!seen.branch_pods && seen.local_first == [Family::V4].into());

        see_rule(&mut seen, &of_branch);

        assert!(seen.branch_pods && seen.rules.is_empty(), "{seen:?}");
    }
}
