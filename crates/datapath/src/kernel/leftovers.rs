//! Rules and routes of the Go version as messages.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use types::TableId;

use super::message::{number_of, of_route, rule_parts, to_route};
use crate::leftovers::{GoRule, Removal};
use crate::model::{Family, Route};
use netlink_packet_route::RouteNetlinkMessage;

/// A rule that the kernel told, if the Go version may have made it.
pub(super) fn to_rule(message: &RuleMessage) -> Option<GoRule> {
    let parts = rule_parts(message)?;
    let table = parts.table;
    let rule = match (parts.value, parts.mask, parts.from, parts.to) {
        (Some(value), Some(mask), None, None) if value == mask => GoRule::Connmark(mask),
        (None, None, None, Some(range)) if range.prefix() == 32 => GoRule::ToPod(range.ip()),
        (None, None, Some(address), None) if parts.priority == STEERING => GoRule::FromPod { address, table },
        (None, None, Some(address), None) => GoRule::FromEni { address, table },
        (..) => return None,
    };
    let exactly = parts.priority == rule.priority().number()
        && table == rule.table()
        && parts.protocol == RouteProtocol::Unspec
        && message.header.family == number_of(Family::V4);
    exactly.then_some(rule)
}

/// Priority of rules from pods.
const STEERING: u32 = crate::model::RulePriority::Steering.number();

/// A rule as the Go version asks for it. Without a protocol number a deletion is for the first that fits the rest.
pub(super) fn of_rule(rule: &GoRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number_of(Family::V4);
    message.header.action = RuleAction::ToTable;
    // Numbers above 255 go into the attribute alone.
    message.header.table = u8::try_from(rule.table().0).unwrap_or_default();
    message.attributes.push(RuleAttribute::Priority(rule.priority().number()));
    message.attributes.push(RuleAttribute::Table(rule.table().0));
    let host = |address: Ipv4Addr| IpAddr::V4(address);
    match *rule {
        GoRule::FromPod { address, .. } | GoRule::FromEni { address, .. } => {
            message.header.src_len = 32;
            message.attributes.push(RuleAttribute::Source(host(address)));
        }
        GoRule::ToPod(address) => {
            message.header.dst_len = 32;
            message.attributes.push(RuleAttribute::Destination(host(address)));
        }
        GoRule::Connmark(mark) => {
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark)]);
        }
    }
    message
}

/// A route to a pod that the kernel told, if the Go version may have made it.
pub(super) fn to_pod_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let named = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Destination(_) | RouteAttribute::Oif(_) | RouteAttribute::Table(_)
        )
    };
    let (_, route) = to_route(message)?;
    let exactly = header.protocol == RouteProtocol::Boot
        && header.scope == RouteScope::Link
        && header.kind == RouteType::Unicast
        && header.tos == 0
        && message.attributes.iter().all(named)
        && route.table == TableId::MAIN
        && route.destination.is_ipv4()
        && route.destination.prefix() == 32;
    exactly.then_some(route)
}

/// The request that removes something.
pub(super) fn of_removal(removal: &Removal) -> RouteNetlinkMessage {
    match removal {
        Removal::Rule(rule) => RouteNetlinkMessage::DelRule(of_rule(rule)),
        Removal::Route(route) => {
            let mut message = of_route(route);
            message.header.protocol = RouteProtocol::Boot;
            RouteNetlinkMessage::DelRoute(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::rule::RuleFlags;

    use super::*;
    use crate::PROTOCOL;
    use crate::model::IfIndex;

    fn rules() -> [GoRule; 4] {
        let (address, table) = (Ipv4Addr::new(10, 0, 0, 20), TableId(10_101));
        [
            GoRule::ToPod(address),
            GoRule::FromPod { address, table },
            GoRule::Connmark(0x80),
            GoRule::FromEni { address, table },
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
            assert_eq!(changed(&|m| m.header.src_len = 24), None);
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
}
