//! Values to messages and back: the only place that knows both our model and the wire.

use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use types::{BranchEni, Ipv6Prefix, Mac, TableId};

use super::socket::Ask;
use crate::PROTOCOL;
use crate::desired::everywhere;
use crate::diff::Op;
use crate::model::{Address, Family, IfIndex, LinkSeen, Route, Rule, RulePriority, Selector};
use crate::seen::{Maker, RuleSeen};

/// `IPPROTO_ICMPV6`, for which the crate has no word.
const ICMPV6: IpProtocol = IpProtocol::Other(58);

/// Flags for adding what must not exist. The only way to add a rule: the kernel keeps a second copy otherwise, even
/// with REPLACE.
pub(super) const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Flags for putting what may exist.
pub(super) const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The kernel's number of a family.
pub(super) const fn number_of(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family_of(number: AddressFamily) -> Option<Family> {
    Family::ALL.into_iter().find(|family| number_of(*family) == number)
}

/// A table as a header has it: numbers above 255 go into the attribute alone.
pub(super) fn in_header(table: TableId) -> u8 {
    u8::try_from(table.0).unwrap_or(RouteHeader::RT_TABLE_UNSPEC)
}

/// The request that makes a change.
pub(super) fn of_op(op: &Op) -> Ask {
    match op {
        Op::SetLink { link, mtu } => (set_up(*link, Some(*mtu)), 0),
        Op::AddAddress(address) => (RouteNetlinkMessage::NewAddress(of_address(address)), ADD),
        Op::DelAddress(address) => (RouteNetlinkMessage::DelAddress(of_address(address)), 0),
        Op::AddRoute(route) => (RouteNetlinkMessage::NewRoute(of_route(route)), PUT),
        Op::DelRoute(route) => (RouteNetlinkMessage::DelRoute(of_route(route)), 0),
        Op::AddRule(rule) => (RouteNetlinkMessage::NewRule(of_rule(rule)), ADD),
        Op::DelRule(rule) => {
            let mut message = of_rule(rule);
            if is_kernels_first(rule) {
                // Whoever has made it.
                message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            }
            (RouteNetlinkMessage::DelRule(message), 0)
        }
    }
}

/// Brings a link up, with an MTU if one is given.
pub(super) fn set_up(link: IfIndex, mtu: Option<u32>) -> RouteNetlinkMessage {
    let link = LinkUnspec::new_with_index(link.0).up();
    RouteNetlinkMessage::SetLink(mtu.into_iter().fold(link, LinkMessageBuilder::mtu).build())
}

fn of_address(address: &Address) -> AddressMessage {
    let mut message = address_on(address.link, IpNetwork::V4(address.address));
    // The subnet's route would land in the main table and draw the node's own traffic to this ENI.
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    message
}

/// An address as `ip addr add` would send it; `nodad` for IPv6, as there is nobody else on these links.
pub(super) fn address_on(link: IfIndex, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = number_of(Family::of(address.ip()));
    message.header.prefix_len = address.prefix();
    message.header.flags = match address {
        IpNetwork::V4(_) => AddressHeaderFlags::empty(),
        IpNetwork::V6(_) => AddressHeaderFlags::Nodad,
    };
    message.header.scope = AddressScope::Universe;
    message.header.index = link.0;
    let ip = address.ip();
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// A route of ours; or one of the kernel's own in the main table, which we only ever remove.
pub(super) fn of_route(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: number_of(route.family()),
        destination_prefix_length: route.destination.prefix(),
        table: in_header(route.table),
        protocol: if route.table == TableId::MAIN { RouteProtocol::Kernel } else { PROTOCOL.into() },
        scope: match (route.via, route.family()) {
            (None, Family::V4) => RouteScope::Link,
            // IPv6 knows no scopes of routes.
            (Some(_), Family::V4) | (_, Family::V6) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
    message.attributes.push(RouteAttribute::Oif(route.link.0));
    message.attributes.push(RouteAttribute::Table(route.table.0));
    message
}

/// A route that the kernel told, and who made it.
pub(super) fn to_route(message: &RouteMessage) -> Option<(Maker, Route)> {
    let maker = match message.header.protocol {
        RouteProtocol::Kernel => Maker::Kernel,
        protocol if protocol == RouteProtocol::from(PROTOCOL) => Maker::We,
        _ => Maker::Other,
    };
    let mut route = Route {
        table: TableId(message.header.table.into()),
        destination: everywhere(family_of(message.header.address_family)?),
        via: None,
        link: IfIndex(0),
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            route.destination =
                IpNetwork::new(ip(address)?, message.header.destination_prefix_length).ok()?;
        } else if let RouteAttribute::Gateway(address) = attribute {
            route.via = Some(ip(address)?);
        } else if let RouteAttribute::Oif(link) = attribute {
            route.link = IfIndex(*link);
        } else if let RouteAttribute::Table(table) = attribute {
            route.table = TableId(*table);
        }
    }
    Some((maker, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

pub(super) fn of_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number_of(rule.family);
    message.header.action = RuleAction::ToTable;
    message.header.table = in_header(rule.table);
    message.attributes.push(RuleAttribute::Priority(rule.priority.number()));
    message.attributes.push(RuleAttribute::Table(rule.table.0));
    message.attributes.push(RuleAttribute::Protocol(match is_kernels_first(rule) {
        true => RouteProtocol::Kernel,
        false => RouteProtocol::from(PROTOCOL),
    }));
    match rule.selector {
        Selector::All => {}
        Selector::Mark { value, mask } => {
            message.attributes.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
        }
        Selector::From(address) => {
            message.header.src_len = 32;
            message.attributes.push(RuleAttribute::Source(IpAddr::V4(address)));
        }
        Selector::Within(range) => {
            message.header.src_len = range.prefix();
            message.attributes.push(RuleAttribute::Source(IpAddr::V6(range.network())));
        }
        Selector::To(range) => {
            message.header.dst_len = range.prefix();
            message.attributes.push(RuleAttribute::Destination(IpAddr::V4(range.network())));
        }
        Selector::RouterIcmp => {
            message.header.src_len = 128;
            let from = RuleAttribute::Source(IpAddr::V6(BranchEni::IPV6_GATEWAY));
            message.attributes.extend([from, RuleAttribute::IpProtocol(ICMPV6)]);
        }
    }
    message
}

/// Whether it is the rule with which the kernel begins: it goes and comes back as that.
fn is_kernels_first(rule: &Rule) -> bool {
    (rule.priority, rule.selector) == (RulePriority::First, Selector::All)
}

/// A rule inside a pod: packets from an address look up a table.
pub(super) fn rule_from(address: IpAddr, priority: u32, table: TableId) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number_of(Family::of(address));
    message.header.action = RuleAction::ToTable;
    message.header.table = in_header(table);
    message.header.src_len = IpNetwork::from(address).prefix();
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(table.0),
        RuleAttribute::Source(address),
    ];
    message
}

/// A rule that the kernel told, if it selects by no more than we and the Go version ever do.
#[derive(Debug)]
pub(super) struct RuleParts {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) table: TableId,
    pub(super) value: Option<u32>,
    /// None for the empty one, which the kernel tells of rules that do not look at marks.
    pub(super) mask: Option<u32>,
    pub(super) from: Option<IpNetwork>,
    pub(super) to: Option<IpNetwork>,
    /// Of packets, such as ICMPv6.
    pub(super) carries: Option<IpProtocol>,
    pub(super) protocol: RouteProtocol,
}

impl RuleParts {
    /// The only source that it takes.
    pub(super) fn only_source(&self) -> Option<IpAddr> {
        self.from.filter(|from| *from == IpNetwork::from(from.ip())).map(|from| from.ip())
    }
}

/// Takes a rule apart.
pub(super) fn rule_parts(message: &RuleMessage) -> Option<RuleParts> {
    let header = &message.header;
    let mut parts = RuleParts {
        family: family_of(header.family)?,
        priority: 0,
        table: TableId(header.table.into()),
        value: None,
        mask: None,
        from: None,
        to: None,
        carries: None,
        protocol: RouteProtocol::Unspec,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => parts.priority = *number,
            RuleAttribute::Table(number) => parts.table = TableId(*number),
            RuleAttribute::FwMark(mark) => parts.value = Some(*mark),
            RuleAttribute::FwMask(bits) => parts.mask = Some(*bits).filter(|bits| *bits != 0),
            RuleAttribute::Source(address) => {
                parts.from = Some(IpNetwork::new(*address, header.src_len).ok()?);
            }
            RuleAttribute::Destination(address) => {
                parts.to = Some(IpNetwork::new(*address, header.dst_len).ok()?);
            }
            RuleAttribute::Protocol(protocol) => parts.protocol = *protocol,
            RuleAttribute::IpProtocol(protocol) => parts.carries = Some(*protocol),
            // The kernel always tells this one; all bits set means "not used".
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    let plain = header.action == RuleAction::ToTable
        && header.tos == 0
        && parts.from.map_or(0, |from| from.prefix()) == header.src_len
        && !header.flags.contains(RuleFlags::Invert);
    plain.then_some(parts)
}

/// A rule that the kernel told, if it is one of ours: one that selects by more than we ever do is not. For the main table and, in the first
/// place, for the local one anybody's does, for the kernel has one of its own.
pub(super) fn to_rule(message: &RuleMessage) -> Option<Rule> {
    let parts = rule_parts(message)?;
    let router = IpNetwork::from(IpAddr::V6(BranchEni::IPV6_GATEWAY));
    let selector = match (parts.value, parts.mask, parts.from, parts.to, parts.carries) {
        (Some(value), Some(mask), None, None, None) => Selector::Mark { value, mask },
        (None, None, Some(IpNetwork::V4(from)), None, None) if from.prefix() == 32 => {
            Selector::From(from.ip())
        }
        // Those of branch ENIs are from one address.
        (None, None, Some(IpNetwork::V6(range)), None, None) if range.prefix() == Ipv6Prefix::LENGTH => {
            Selector::Within(range)
        }
        (None, None, None, Some(IpNetwork::V4(range)), None) => Selector::To(range),
        (None, None, None, None, None) => Selector::All,
        (None, None, Some(from), None, Some(ICMPV6)) if from == router => Selector::RouterIcmp,
        (..) => return None,
    };
    let priority = RulePriority::from_number(parts.priority)?;
    let ours = parts.protocol == RouteProtocol::from(PROTOCOL);
    let does = ours
        || match priority {
            RulePriority::Main => parts.table == TableId::MAIN,
            RulePriority::First => selector == Selector::All && parts.table == TableId::LOCAL,
            RulePriority::Local
            | RulePriority::Pods
            | RulePriority::Connmark
            | RulePriority::ExternalServices
            | RulePriority::Steering
            | RulePriority::FromEni => false,
        };
    does.then_some(Rule { family: parts.family, priority, selector, table: parts.table })
}

/// A rule that the kernel told, whoever made it, in the words of `ip rule`.
pub(super) fn any_rule(message: &RuleMessage) -> Option<RuleSeen> {
    let (mut priority, mut table) = (0, TableId(message.header.table.into()));
    let (mut from, mut to) = ("all".to_owned(), None);
    let (mut mark, mut mask, mut more) = (None, u32::MAX, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = TableId(*number),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Source(address) => from = with_length(*address, message.header.src_len),
            RuleAttribute::Destination(address) => to = Some(with_length(*address, message.header.dst_len)),
            RuleAttribute::Iifname(name) => more.push(format!("iif {name}")),
            RuleAttribute::Oifname(name) => more.push(format!("oif {name}")),
            RuleAttribute::IpProtocol(ICMPV6) => more.push("ipproto ipv6-icmp".to_owned()),
            _ => {}
        }
    }
    let not = if message.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    let mut words = vec![format!("{not}from {from}")];
    words.extend(to.map(|to| format!("to {to}")));
    words.extend(mark.map(|mark| format!("fwmark {mark:#x}/{mask:#x}")));
    words.extend(more);
    words.push(match message.header.action {
        RuleAction::ToTable => format!("lookup {table}"),
        other => format!("{other:?}").to_lowercase(),
    });
    let family = family_of(message.header.family)?;
    Some(RuleSeen { family, priority, text: words.join(" "), ours: to_rule(message) })
}

/// An address as rules show it: whole, or with the length of its prefix.
fn with_length(address: IpAddr, length: u8) -> String {
    match (address, length) {
        (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128) => address.to_string(),
        _ => format!("{address}/{length}"),
    }
}

/// A question about links, without their counters: the kernel would sum those up over all processors.
pub(super) fn any_link() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    message
}

/// A link that the kernel told.
pub(super) fn to_link(message: &LinkMessage) -> LinkSeen {
    let up = message.header.flags.contains(LinkFlags::Up);
    let index = IfIndex(message.header.index);
    let mut link = LinkSeen { index, name: String::new(), mac: None, mtu: 0, up, group: 0, peer: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(peer) => link.peer = Some(IfIndex(*peer)),
            _ => {}
        }
    }
    link
}

/// An address that the kernel told; none for link-local ones, which are nobody's business.
pub(super) fn to_address(message: &AddressMessage) -> Option<Address> {
    let (IpAddr::V4(ip), link) = any_address(message)? else { return None };
    let address = Ipv4Network::new(ip, message.header.prefix_len).ok()?;
    (!ip.is_link_local()).then_some(Address { link, address })
}

/// Any address that the kernel told, and its link.
pub(super) fn any_address(message: &AddressMessage) -> Option<(IpAddr, IfIndex)> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = of(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    // IPv6 tells an address that has no other end without saying which of the two it is.
    let any = local.or_else(|| {
        of(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    });
    any.map(|ip| (ip, IfIndex(message.header.index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> [Rule; 9] {
        let of =
            |family, priority, selector, table| Rule { family, priority, selector, table: TableId(table) };
        let rule = |priority, selector, table| of(Family::V4, priority, selector, table);
        [
            rule(RulePriority::Pods, Selector::All, 51_200),
            of(Family::V6, RulePriority::Pods, Selector::All, 51_200),
            rule(RulePriority::Connmark, Selector::Mark { value: 0x80, mask: 0x80 }, 254),
            rule(RulePriority::ExternalServices, Selector::To("203.0.113.0/24".parse().unwrap()), 254),
            rule(RulePriority::Steering, Selector::Mark { value: 0x100, mask: 0x3f00 }, 2),
            rule(RulePriority::FromEni, Selector::From([10, 0, 0, 1].into()), 10_101),
            rule(RulePriority::Local, Selector::All, 255),
            of(
                Family::V6,
                RulePriority::Steering,
                Selector::Within("2001:db8::/80".parse().unwrap()),
                10_101,
            ),
            of(Family::V6, RulePriority::First, Selector::RouterIcmp, 255),
        ]
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        for rule in rules() {
            assert_eq!(to_rule(&of_rule(&rule)), Some(rule));
        }
    }

    #[test]
    fn a_rule_that_selects_by_more_or_is_not_marked_as_ours_is_none_of_ours() {
        for rule in rules() {
            let mut narrower = of_rule(&rule);
            narrower.attributes.push(RuleAttribute::Iifname("eth0".to_owned()));
            assert_eq!(to_rule(&narrower), None);

            let mut inverted = of_rule(&rule);
            inverted.header.flags = RuleFlags::Invert;
            assert_eq!(to_rule(&inverted), None);

            let mut unmarked = of_rule(&rule);
            unmarked.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            assert_eq!(to_rule(&unmarked), None);
        }
    }

    #[test]
    fn a_rule_for_the_main_table_is_as_good_by_anybody() {
        let (family, priority, table) = (Family::V4, RulePriority::Main, TableId::MAIN);
        let rule = Rule { family, priority, selector: Selector::All, table };
        let mut of_kernel = of_rule(&rule);
        of_kernel.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));

        assert_eq!(to_rule(&of_kernel), Some(rule));
        assert_eq!(
            to_rule(&of_rule(&Rule { table: TableId(2), ..rule })).map(|it| it.table),
            Some(TableId(2))
        );
        of_kernel.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Table(_)));
        of_kernel.header.table = 2;
        assert_eq!(to_rule(&of_kernel), None, "another table at its place");
    }

    #[test]
    fn the_kernels_first_rule_is_anybodys_and_comes_back_as_the_kernels() {
        let (family, priority, table) = (Family::V6, RulePriority::First, TableId::LOCAL);
        let rule = Rule { family, priority, selector: Selector::All, table };
        let message = of_rule(&rule);

        assert!(message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Kernel)), "{message:?}");
        assert_eq!(to_rule(&message), Some(rule));
        let mut elsewhere = message;
        elsewhere.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Table(_)));
        elsewhere.header.table = 254;
        assert_eq!(to_rule(&elsewhere), None);
    }

    #[test]
    fn a_route_is_read_as_it_was_written() {
        let link = IfIndex(7);
        let host: IpNetwork = "10.0.0.1/32".parse().unwrap();
        let host6: IpNetwork = "2001:db8::1/128".parse().unwrap();
        for (table, destination, via) in [
            (51_200, host, None),
            (51_200, host6, None),
            (2, everywhere(Family::V4), Some(host.ip())),
            (2, everywhere(Family::V6), Some(host6.ip())),
            (10_101, host, None),
        ] {
            let route = Route { table: TableId(table), destination, via, link };
            assert_eq!(to_route(&of_route(&route)), Some((Maker::We, route)));
        }
    }
}
