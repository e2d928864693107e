//! The messages that make, look at and take away one pod's wiring.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::{Mac, TableId};

use super::message::{ADD, PUT, address_on, any_link, of_route, set_up, to_link};
use super::socket::Ask;
use crate::desired::{everywhere, pod_route};
use crate::model::{IfIndex, LinkSeen, PodSpec};

/// The gateway every pod sees: link-local, and the host end answers to it by a permanent neighbour entry.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Link group of host ends whose pod is gone, until the next sweep.
pub(super) const TRASH_GROUP: u32 = 0x5652_4153;

/// The pair in one message: the host end up, with its MAC; the other end in the pod's namespace.
///
/// The MAC is given so that udev's `MACAddressPolicy=persistent` leaves it alone.
pub(super) fn create_pair(pod: &PodSpec, host_mac: Mac, netns: BorrowedFd<'_>) -> Ask {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod.container_if.clone()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(pod.host_if.as_str().to_owned()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::Address(host_mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Everything inside the pod, in the order in which the kernel accepts it. A default route that is there already
/// is somebody else's network, so it is refused, not replaced.
pub(super) fn inside(pod: &PodSpec, link: IfIndex, host_mac: Mac) -> Vec<Ask> {
    vec![
        (set_up(link, None), 0),
        (RouteNetlinkMessage::NewAddress(address_on(link, pod.address.into())), ADD),
        (RouteNetlinkMessage::NewRoute(route_inside(link, None)), ADD),
        (RouteNetlinkMessage::NewRoute(route_inside(link, Some(GATEWAY))), ADD),
        (RouteNetlinkMessage::NewNeighbour(gateway(link, host_mac)), ADD),
    ]
}

/// A route inside the pod, as `ip route add` makes it: to the gateway, or by it to everywhere.
fn route_inside(link: IfIndex, via: Option<Ipv4Addr>) -> RouteMessage {
    let (scope, destination) = match via {
        Some(_) => (RouteScope::Universe, everywhere()),
        None => (RouteScope::Link, Ipv4Network::from(GATEWAY)),
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: destination.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![match via {
        Some(via) => RouteAttribute::Gateway(RouteAddress::Inet(via)),
        None => RouteAttribute::Destination(RouteAddress::Inet(destination.ip())),
    }];
    message.attributes.push(RouteAttribute::Oif(link.0));
    message
}

/// The gateway's permanent neighbour entry: it has the host end's MAC, without asking.
fn gateway(link: IfIndex, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link.0;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

/// The host's route to the pod; replaces one that is there.
pub(super) fn put_route(pod: &PodSpec, link: IfIndex) -> Ask {
    (RouteNetlinkMessage::NewRoute(of_route(&pod_route(pod, link))), PUT)
}

/// Removes the route to the pod by exactly this link.
pub(super) fn delete_route(pod: &PodSpec, link: IfIndex) -> Ask {
    (RouteNetlinkMessage::DelRoute(of_route(&pod_route(pod, link))), 0)
}

/// Asks how the host would reach the pod: the route itself and its true table, not what is made of it.
pub(super) fn find_route(pod: &PodSpec) -> Ask {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(pod.address))];
    (RouteNetlinkMessage::GetRoute(message), 0)
}

/// Asks for all routes to pods.
pub(super) fn list_routes() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.attributes = vec![RouteAttribute::Table(TableId::PODS.0)];
    RouteNetlinkMessage::GetRoute(message)
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

/// The link that replies tell.
pub(super) fn link_in(replies: &[RouteNetlinkMessage]) -> Option<LinkSeen> {
    replies.iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(message) => Some(to_link(message)),
        _ => None,
    })
}

/// Deletes a link, and with it its other end.
pub(super) fn delete_link(link: IfIndex) -> Ask {
    let mut message = LinkMessage::default();
    message.header.index = link.0;
    (RouteNetlinkMessage::DelLink(message), 0)
}

/// Puts a host end into the group that [`sweep`] deletes.
pub(super) fn set_aside(link: IfIndex) -> Ask {
    let mut message = LinkMessage::default();
    message.header.index = link.0;
    message.attributes = vec![LinkAttribute::Group(TRASH_GROUP)];
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Takes a link down, and its routes with it.
pub(super) fn take_down(link: IfIndex) -> Ask {
    let mut message = LinkMessage::default();
    message.header.index = link.0;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Gives a host end's name free. It must be down: before Linux 6.2 a link that is up keeps its name.
pub(super) fn rename(link: IfIndex) -> Ask {
    let mut message = LinkMessage::default();
    message.header.index = link.0;
    message.attributes = vec![LinkAttribute::IfName(format!("gone{}", link.0))];
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes all links that were set aside.
pub(super) fn sweep() -> Ask {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(TRASH_GROUP)];
    (RouteNetlinkMessage::DelLink(message), 0)
}
