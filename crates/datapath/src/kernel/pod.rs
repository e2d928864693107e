//! The messages that make, look at and take away one pod's wiring.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use types::{Mac, TableId};

use super::message::{ADD, PUT, address_on, any_link, number_of, of_route, rule_from, set_up, to_link};
use super::socket::Ask;
use crate::desired::pod_routes;
use crate::model::{Family, IfIndex, LinkSeen, PodSpec};
use crate::wiring::{INSIDE_PRIORITY, Part, Side};

/// Link group of host ends whose pod is gone, until the next sweep.
pub const TRASH_GROUP: u32 = 0x5652_4153;

impl LinkSeen {
    /// Whether it is the host end of a pod that is gone, which the next sweep deletes.
    #[must_use]
    pub const fn is_set_aside(&self) -> bool {
        self.group == TRASH_GROUP
    }
}

/// The pair in one message, the other end in the pod's namespace. Both are down: settings of the host end come before its first packet.
///
/// The MACs are given so that udev's `MACAddressPolicy=persistent` leaves the one alone, and the plugin can tell the other.
pub(super) fn create_pair(pod: &PodSpec, netns: BorrowedFd<'_>) -> Ask {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod.container_if.clone()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::Address(pod.host_if.mac_inside().0.to_vec()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(pod.host_if.as_str().to_owned()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::Address(pod.host_if.mac().0.to_vec()),
        LinkAttribute::Group(pod.group()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// The request that makes a part of a pod's wiring, by the end that is on its side. The pair has one of its own, and settings are files.
pub(super) fn of_part(part: &Part, pod: &PodSpec, link: IfIndex) -> Option<Ask> {
    let ask = match part {
        Part::Pair | Part::Setting { .. } => return None,
        Part::Up(_) => (set_up(link, None), 0),
        Part::Address(side, address) => {
            let how = if *side == Side::Host { PUT } else { ADD };
            (RouteNetlinkMessage::NewAddress(address_on(link, (*address).into())), how)
        }
        // It takes the place of one that is there.
        Part::Route(Side::Host, way) => (RouteNetlinkMessage::NewRoute(of_route(&way.by(link))), PUT),
        // One that is there already is of somebody else's network.
        Part::Route(Side::Pod, way) => {
            let mut message = of_route(&way.by(link));
            message.header.protocol = RouteProtocol::Boot;
            (RouteNetlinkMessage::NewRoute(message), ADD)
        }
        Part::Gateway(gateway) => {
            (RouteNetlinkMessage::NewNeighbour(neighbour(*gateway, pod.host_if.mac(), link)), ADD)
        }
        Part::Rule(address) => (RouteNetlinkMessage::NewRule(rule_inside(pod, *address)), ADD),
    };
    Some(ask)
}

/// The rule inside the pod that leads packets of a further interface's address to its table.
pub(super) fn rule_inside(pod: &PodSpec, address: IpAddr) -> RuleMessage {
    rule_from(address, INSIDE_PRIORITY, pod.table())
}

/// A permanent neighbour entry.
fn neighbour(address: IpAddr, mac: Mac, link: IfIndex) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number_of(Family::of(address));
    message.header.ifindex = link.0;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

/// Asks for the IPv6 addresses of all links.
pub(super) fn list_ipv6_addresses() -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = number_of(Family::V6);
    RouteNetlinkMessage::GetAddress(message)
}

/// Removes the routes to the pod by exactly this link.
pub(super) fn delete_routes(pod: &PodSpec, link: IfIndex) -> impl Iterator<Item = Ask> {
    pod_routes(pod, link).map(|route| (RouteNetlinkMessage::DelRoute(of_route(&route)), 0))
}

/// Asks how the host would reach an address: the route itself and its true table, not what is made of it.
pub(super) fn find_route(address: IpAddr) -> Ask {
    let (family, network) = (Family::of(address), IpNetwork::from(address));
    let mut message = RouteMessage::default();
    message.header.address_family = number_of(family);
    message.header.destination_prefix_length = network.prefix();
    message.header.flags = match family {
        Family::V4 => RouteFlags::FibMatch | RouteFlags::LookupTable,
        // IPv6 always tells the true table, and refuses to be asked for it.
        Family::V6 => RouteFlags::FibMatch,
    };
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    (RouteNetlinkMessage::GetRoute(message), 0)
}

/// Asks for all routes of a family in a table.
pub(super) fn list_routes(family: Family, table: TableId) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number_of(family);
    message.attributes = vec![RouteAttribute::Table(table.0)];
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks for all links.
pub(super) fn list_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(any_link())
}

/// Asks for all veths.
pub(super) fn list_veths() -> RouteNetlinkMessage {
    let mut message = any_link();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]));
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for a link by name.
pub(super) fn get_link(name: &str) -> Ask {
    let mut message = any_link();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// Asks for a link by number.
pub(super) fn get_link_at(link: IfIndex) -> Ask {
    let mut message = any_link();
    message.header.index = link.0;
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// The first link that replies tell.
pub(super) fn link_in(replies: &[RouteNetlinkMessage]) -> Option<LinkSeen> {
    links_in(replies).next()
}

/// The links that replies tell.
pub(super) fn links_in(replies: &[RouteNetlinkMessage]) -> impl Iterator<Item = LinkSeen> {
    replies.iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(message) => Some(to_link(message)),
        _ => None,
    })
}

/// Gives a host end this MTU and MAC address.
pub(super) fn restore(link: IfIndex, mtu: u32, mac: Mac) -> Ask {
    let link = LinkUnspec::new_with_index(link.0).mtu(mtu).address(mac.0.to_vec());
    (RouteNetlinkMessage::SetLink(link.build()), 0)
}

/// Deletes a link, and with it its other end.
pub(super) fn delete_link(link: IfIndex) -> Ask {
    (RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(link.0).build()), 0)
}

/// Puts a host end into the group that [`sweep`] deletes.
pub(super) fn set_aside(link: IfIndex) -> Ask {
    let link = LinkUnspec::new_with_index(link.0).link_group(TRASH_GROUP);
    (RouteNetlinkMessage::SetLink(link.build()), 0)
}

/// Takes a link down, and its routes with it.
pub(super) fn take_down(link: IfIndex) -> Ask {
    (RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(link.0).down().build()), 0)
}

/// Gives a host end's name free. It must be down: before Linux 6.2 a link that is up keeps its name.
pub(super) fn rename(link: IfIndex) -> Ask {
    let link = LinkUnspec::new_with_index(link.0).name(format!("gone{}", link.0));
    (RouteNetlinkMessage::SetLink(link.build()), 0)
}

/// Deletes all links that were set aside.
pub(super) fn sweep() -> Ask {
    let links = LinkMessageBuilder::<LinkUnspec>::new().link_group(TRASH_GROUP);
    (RouteNetlinkMessage::DelLink(links.build()), 0)
}
