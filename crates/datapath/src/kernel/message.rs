//! Values to messages and back: the only place that knows both our model and the wire.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::{Mac, TableId};

use super::socket::Ask;
use crate::PROTOCOL;
use crate::diff::Op;
use crate::model::{Address, Route, Rule, RulePriority, Selector};

/// Rules are added with EXCL only: the kernel keeps a second copy otherwise, even with REPLACE.
const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The request that makes a change.
pub(super) fn of_op(op: &Op) -> Ask {
    match op {
        Op::SetLink { link, mtu } => (set_link(*link, Some(*mtu)), 0),
        Op::AddAddress(address) => (RouteNetlinkMessage::NewAddress(of_address(address)), PUT),
        Op::DelAddress(address) => (RouteNetlinkMessage::DelAddress(of_address(address)), 0),
        Op::AddRoute(route) => (RouteNetlinkMessage::NewRoute(of_route(route)), PUT),
        Op::DelRoute(route) => (RouteNetlinkMessage::DelRoute(of_route(route)), 0),
        Op::AddRule(rule) => (RouteNetlinkMessage::NewRule(of_rule(rule)), ADD),
        Op::DelRule(rule) => (RouteNetlinkMessage::DelRule(of_rule(rule)), 0),
    }
}

/// Brings a link up, with an MTU if one is given.
pub(super) fn set_link(link: u32, mtu: Option<u32>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
    RouteNetlinkMessage::SetLink(message)
}

fn of_address(address: &Address) -> AddressMessage {
    let mut message = address_on(address.link, address.address);
    // The subnet's route would land in the main table and draw the node's own traffic to this ENI.
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    message
}

/// An address as `ip addr add` would send it.
pub(super) fn address_on(link: u32, address: Ipv4Network) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix();
    message.header.flags = AddressHeaderFlags::empty();
    message.header.scope = AddressScope::Universe;
    message.header.index = link;
    let ip = IpAddr::V4(address.ip());
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// A route of ours.
pub(super) fn of_route(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: route.destination.prefix(),
        // Numbers above 255 go into the attribute alone.
        table: u8::try_from(route.table.0).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::from(PROTOCOL),
        scope: if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(route.destination.network())));
    }
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(RouteAddress::Inet(via))));
    message.attributes.push(RouteAttribute::Oif(route.link));
    message.attributes.push(RouteAttribute::Table(route.table.0));
    message
}

/// A route that the kernel told, if it is one of ours.
pub(super) fn to_route(message: &RouteMessage) -> Option<Route> {
    if message.header.protocol != RouteProtocol::from(PROTOCOL) {
        return None;
    }
    let mut route = Route {
        table: TableId(message.header.table.into()),
        destination: default_route(),
        via: None,
        link: 0,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(RouteAddress::Inet(ip)) = attribute {
            route.destination = Ipv4Network::new(*ip, message.header.destination_prefix_length).ok()?;
        } else if let RouteAttribute::Gateway(RouteAddress::Inet(ip)) = attribute {
            route.via = Some(*ip);
        } else if let RouteAttribute::Oif(link) = attribute {
            route.link = *link;
        } else if let RouteAttribute::Table(table) = attribute {
            route.table = TableId(*table);
        }
    }
    Some(route)
}

fn default_route() -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or_else(|_| Ipv4Network::from(Ipv4Addr::UNSPECIFIED))
}

fn of_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table.0).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RuleAttribute::Priority(rule.priority.number()));
    message.attributes.push(RuleAttribute::Table(rule.table.0));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    match rule.selector {
        Selector::All => {}
        Selector::Mark { value, mask } => {
            message.attributes.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
        }
        Selector::From(address) => {
            message.header.src_len = 32;
            message.attributes.push(RuleAttribute::Source(IpAddr::V4(address)));
        }
    }
    message
}

/// A rule that the kernel told, if it is one of ours.
pub(super) fn to_rule(message: &RuleMessage) -> Option<Rule> {
    let mut priority = None;
    let mut table = TableId(message.header.table.into());
    let (mut value, mut mask, mut from, mut ours) = (None, None, None, false);
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(number) = attribute {
            priority = RulePriority::from_number(*number);
        } else if let RuleAttribute::Table(number) = attribute {
            table = TableId(*number);
        } else if let RuleAttribute::FwMark(mark) = attribute {
            value = Some(*mark);
        } else if let RuleAttribute::FwMask(bits) = attribute {
            mask = Some(*bits);
        } else if let RuleAttribute::Source(IpAddr::V4(address)) = attribute {
            from = Some(*address);
        } else if let RuleAttribute::Protocol(protocol) = attribute {
            ours = *protocol == RouteProtocol::from(PROTOCOL);
        }
    }
    let selector = match (value, mask, from) {
        (Some(value), Some(mask), None) => Selector::Mark { value, mask },
        (None, None | Some(0), Some(address)) => Selector::From(address),
        (None, None | Some(0), None) => Selector::All,
        (Some(_), _, _) | (None, Some(_), _) => return None,
    };
    ours.then_some(Rule { priority: priority?, selector, table })
}

/// A permanent neighbour: the gateway of a pod has the host end's MAC, without asking.
pub(super) fn neighbour(link: u32, address: Ipv4Addr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Flags for adding what must not exist.
pub(super) const fn exclusive() -> u16 {
    ADD
}

/// Flags for putting what may exist.
pub(super) const fn put() -> u16 {
    PUT
}
