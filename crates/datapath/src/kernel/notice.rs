//! Notices of links, addresses, routes, rules and kernel settings: which of them are about something of ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{NetlinkBuffer, NetlinkPayload, NlasIterator};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::{HostVeth, Mac, TableId};

use super::branch;
use super::message::{any_address, any_link, to_link, to_route, to_rule};
use super::pod::TRASH_GROUP;
use super::socket::{Socket, frames, message_in};
use crate::model::{IfIndex, LinkSeen};
use crate::seen::Maker;
use crate::watch::Ours;

/// `RTM_NEWNETCONF`, which no crate reads.
const NEW_SETTINGS: u16 = 80;
/// Length of `struct netconfmsg`, with what fills it up.
const SETTINGS_HEADER_BYTES: usize = 4;
/// `NETCONFA_IFINDEX`; `NETCONFA_IFINDEX_ALL` is for the whole host.
const SETTINGS_LINK: u16 = 1;
const WHOLE_HOST: i32 = -1;
/// `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;
/// `NETCONFA_RP_FILTER`, and the value that ENIs have: any link may lead back to the source.
const SOURCE_CHECK: u16 = 3;
const LOOSE: i32 = 2;

/// Tells notices of what others change of ours from all the rest.
#[derive(Debug)]
pub(crate) struct RouteJudge {
    ours: Ours,
    /// Links as last told: a notice says what a link is like, not what has changed.
    links: BTreeMap<IfIndex, Known>,
    /// The tables of secondary ENIs by their links, as our own routes tell them.
    enis: BTreeMap<IfIndex, TableId>,
}

/// What is known of a link.
#[derive(Debug, Clone, Copy)]
struct Known {
    mtu: u32,
    mac: Option<Mac>,
    role: Role,
}

/// What a link may be to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The host end of a pod that we have not set aside ourselves.
    HostEnd,
    /// A device of no kind that the kernel knows by name: an ENI is one.
    Device,
    /// Bridges, tunnels, VLANs, other container networks' veths and the loopback, which come and go all the time.
    Other,
}

impl RouteJudge {
    pub(crate) const fn new(ours: Ours) -> Self {
        Self { ours, links: BTreeMap::new(), enis: BTreeMap::new() }
    }

    /// Reads what links and our routes are like now. Where that cannot be, the first notice of each teaches it.
    pub(crate) fn learn(&mut self) {
        let Ok(mut socket) = Socket::open() else { return };
        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet;
        for ask in [RouteNetlinkMessage::GetLink(any_link()), RouteNetlinkMessage::GetRoute(routes)] {
            for message in socket.dump(&ask).unwrap_or_default() {
                self.take_in(&message);
            }
        }
    }

    /// Whether a datagram tells a change of something of ours by a socket that is not ours. What cannot be read is left to the
    /// next round: links of kinds that nobody here knows may change all the time.
    pub(crate) fn touches_ours(&mut self, datagram: &[u8]) -> bool {
        if let Some(settings) = settings(datagram) {
            return self.are_wrong(settings);
        }
        let told =
            frames(datagram).map_while(Result::ok).filter_map(|frame| message_in(&frame)).filter(|message| {
                let NetlinkPayload::InnerMessage(inner) = &message.payload else { return false };
                let port = message.header.port_number;
                let about = !self.ours.ports.contains(&port) && self.is_about_ours(inner, port);
                // Always, for of our own links too it is to be known what they are like.
                self.take_in(inner) || about
            });
        // All of them, to learn.
        told.count() > 0
    }

    /// Learns what a message tells. Whether it is that a link has been given an MTU that ours do not have, or a host end of ours
    /// another MAC address than its name gives: the kernel does not say by whom.
    fn take_in(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::DelLink(message) => {
                let link = IfIndex(message.header.index);
                self.links.remove(&link);
                self.enis.remove(&link);
                false
            }
            RouteNetlinkMessage::NewLink(message) => {
                let link = to_link(message);
                let known = Known { mtu: link.mtu, mac: link.mac, role: self.role(message, &link) };
                let last = self.links.insert(link.index, known);
                let of_pod = self.ours.host_end(&link.name).is_some();
                let right = if of_pod { self.ours.pod_mtu } else { self.ours.mtu };
                let wrong = |last: Known| {
                    last.mtu != link.mtu && link.mtu != right
                        || last.mac != link.mac && self.has_other_mac(&link)
                };
                link.group != TRASH_GROUP && last.is_some_and(wrong)
            }
            RouteNetlinkMessage::NewRoute(message) => {
                // What refuses packets is on no link, and IPv6 tells `lo` for it.
                let leads = message.header.kind == RouteType::Unicast;
                let ours = to_route(message).filter(|(maker, route)| {
                    leads && *maker == Maker::We && ![TableId::PODS, TableId::MAIN].contains(&route.table)
                });
                self.enis.extend(ours.map(|(_, route)| (route.link, route.table)));
                false
            }
            _ => false,
        }
    }

    /// Whether it says that packets are forwarded no more, or that sources on an ENI are checked by the way back. Who asked for it the kernel does
    /// not say.
    fn are_wrong(&self, settings: &[u8]) -> bool {
        let value = |kind| {
            let mut told = NlasIterator::new(settings).filter_map(Result::ok);
            let of_kind = told.find(|told| told.kind() == kind)?;
            of_kind.value().first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
        };
        let Some(link) = value(SETTINGS_LINK) else { return false };
        let is_eni = u32::try_from(link).is_ok_and(|link| {
            let role = self.links.get(&IfIndex(link)).map(|known| known.role);
            role == Some(Role::Device) || self.enis.contains_key(&IfIndex(link))
        });
        link == WHOLE_HOST && value(FORWARDING) == Some(0)
            || is_eni && value(SOURCE_CHECK).is_some_and(|value| value != LOOSE)
    }

    /// Whether it is a host end of ours with a MAC address that its name does not give.
    fn has_other_mac(&self, link: &LinkSeen) -> bool {
        self.ours.host_end(&link.name).is_some_and(|name| link.mac != Some(name.mac()))
    }

    fn is_about_ours(&self, message: &RouteNetlinkMessage, port: u32) -> bool {
        match message {
            // Port 0 is the kernel: it tells of IPv6 routes that go with their link.
            RouteNetlinkMessage::DelRoute(message) => {
                port != 0 && to_route(message).is_some_and(|(maker, _)| maker == Maker::We)
            }
            // One that takes the place of ours.
            RouteNetlinkMessage::NewRoute(message) => to_route(message).is_some_and(|(maker, route)| {
                let is_ours = route.table == TableId::PODS || self.enis.values().any(|it| *it == route.table);
                maker != Maker::We && is_ours
            }),
            RouteNetlinkMessage::DelRule(message) => to_rule(message).is_some() || branch::is_ours(message),
            RouteNetlinkMessage::DelAddress(message) => self.is_address_of_ours(message, port, true),
            RouteNetlinkMessage::NewAddress(message) => self.is_address_of_ours(message, port, false),
            RouteNetlinkMessage::NewLink(message) => {
                let link = to_link(message);
                let role = self.role(message, &link);
                let is_eni = role == Role::Device || self.enis.contains_key(&link.index);
                let is_new = !self.links.contains_key(&link.index);
                // A new device may be an ENI that was waited for.
                went_down(message) && (is_eni || role == Role::HostEnd) || is_new && role == Role::Device
            }
            _ => false,
        }
    }

    /// Whether an address is one of a secondary ENI, none of which are anybody else's; or was that from which the host asks for an
    /// IPv6 pod. Of IPv6 the kernel never says who asked for the change.
    fn is_address_of_ours(&self, message: &AddressMessage, port: u32, removed: bool) -> bool {
        let role = |link: &IfIndex| self.links.get(link).map_or(Role::Other, |known| known.role);
        any_address(message).is_some_and(|(address, link)| match address {
            IpAddr::V4(_) => port != 0 && self.enis.contains_key(&link),
            IpAddr::V6(address) => removed && address.is_unicast_link_local() && role(&link) == Role::HostEnd,
        })
    }

    fn role(&self, message: &LinkMessage, link: &LinkSeen) -> Role {
        let infos = message.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let kind = infos.flatten().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        });
        let of_branch = HostVeth::found(&link.name).is_some_and(|name| name.is_of_branch());
        let of_pod = of_branch || self.ours.host_end(&link.name).is_some();
        let of_pod = of_pod && link.group != TRASH_GROUP;
        match kind {
            None | Some(InfoKind::Veth) if of_pod => Role::HostEnd,
            None if !message.header.flags.contains(LinkFlags::Loopback) => Role::Device,
            _ => Role::Other,
        }
    }
}

/// What a notice says of kernel settings, if it is of those.
fn settings(datagram: &[u8]) -> Option<&[u8]> {
    let message = NetlinkBuffer::new_checked(datagram).ok()?;
    let is_of_settings = message.message_type() == NEW_SETTINGS;
    is_of_settings.then(|| message.payload().get(SETTINGS_HEADER_BYTES..)).flatten()
}

/// Whether it is no longer up: the kernel removes a link's routes with that, and says nothing of them. A link that was just made has all of
/// the mask, and has not been up (`rtnl_configure_link` of the kernel).
fn went_down(message: &LinkMessage) -> bool {
    let changed = message.header.change_mask;
    changed.bits() != u32::MAX
        && changed.contains(LinkFlags::Up)
        && !message.header.flags.contains(LinkFlags::Up)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::route::RouteProtocol;
    use types::{HostVeth, VethPrefix};

    use super::super::message::{address_on, of_route, of_rule};
    use super::*;
    use crate::model::{Family, IfIndex, PodSpec, Route, Rule, RulePriority, Selector};

    const OURS: u32 = 7;

    fn notice(message: RouteNetlinkMessage, port: u32) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.header.port_number = port;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn ours() -> Ours {
        Ours {
            ports: [OURS].into(),
            pod_if_prefixes: [VethPrefix::default()].into(),
            mtu: 9001,
            pod_mtu: 8900,
        }
    }

    fn told(message: RouteNetlinkMessage, port: u32) -> bool {
        RouteJudge::new(ours()).touches_ours(&notice(message, port))
    }

    fn pod_route() -> RouteMessage {
        let pod = PodSpec {
            host_if: HostVeth::found("eni0123456789a").unwrap(),
            container_if: "eth0".to_owned(),
            index: 0,
            addresses: vec!["10.0.0.5".parse().unwrap()],
            mtu: 9001,
            branch: None,
        };
        of_route(&crate::desired::pod_routes(&pod, IfIndex(4)).next().unwrap())
    }

    #[test]
    fn what_others_take_is_told_and_what_we_take_is_not() {
        let (priority, selector) = (RulePriority::Pods, Selector::All);
        let rule = Rule { family: Family::V6, priority, selector, table: TableId::PODS };
        let all = [RouteNetlinkMessage::DelRoute(pod_route()), RouteNetlinkMessage::DelRule(of_rule(&rule))];

        for message in all {
            assert!(told(message.clone(), OURS + 1), "{message:?}");
            assert!(!told(message, OURS));
        }
        assert!(!told(RouteNetlinkMessage::NewRoute(pod_route()), OURS + 1));
    }

    #[test]
    fn a_device_that_goes_down_is_told_and_one_that_comes_up_or_is_of_a_kind_is_not() {
        let mut judge = RouteJudge::new(ours());
        let mut told =
            |link: &LinkMessage| judge.touches_ours(&notice(RouteNetlinkMessage::NewLink(link.clone()), 0));
        let mut link = LinkMessage::default();
        link.header.change_mask = LinkFlags::Up;
        link.header.flags = LinkFlags::Up;
        assert!(told(&link), "a new one may be an ENI");
        assert!(!told(&link));

        link.header.flags = LinkFlags::empty();
        assert!(told(&link));
        let bridge = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
        link.attributes = vec![bridge];
        assert!(!told(&link));
        link.header.change_mask = LinkFlags::empty();
        assert!(!told(&link));
    }

    fn address(ip: &str, link: u32) -> AddressMessage {
        address_on(IfIndex(link), ip.parse().unwrap())
    }

    #[test]
    fn addresses_of_secondary_enis_are_told_and_those_of_others_are_not() {
        let mut judge = RouteJudge::new(ours());
        let table = TableId(2);
        let destination = "0.0.0.0/0".parse().unwrap();
        let via = Some("10.0.0.1".parse().unwrap());
        let mut route = of_route(&Route { table, destination, via, link: IfIndex(6) });
        assert!(!judge.touches_ours(&notice(RouteNetlinkMessage::NewRoute(route.clone()), OURS)));

        for (link, port, is_told) in [(6, OURS + 1, true), (6, OURS, false), (6, 0, false), (5, 99, false)] {
            for told in [
                RouteNetlinkMessage::DelAddress(address("10.0.0.5/32", link)),
                RouteNetlinkMessage::NewAddress(address("10.0.0.9/24", link)),
            ] {
                assert_eq!(judge.touches_ours(&notice(told, port)), is_told, "link {link} by {port}");
            }
        }
        // As a DHCP client does: the kernel says nothing of the one that was there.
        route.header.protocol = RouteProtocol::Dhcp;
        assert!(judge.touches_ours(&notice(RouteNetlinkMessage::NewRoute(route), OURS + 1)));
    }

    #[test]
    fn the_address_from_which_the_host_asks_for_a_pod_is_told_when_it_goes() {
        let mut judge = RouteJudge::new(ours());
        let mut link = |name: &str, index, group| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            let kind = LinkInfo::Kind(InfoKind::Veth);
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Group(group),
                LinkAttribute::LinkInfo(vec![kind]),
            ];
            judge.touches_ours(&notice(RouteNetlinkMessage::NewLink(link), OURS));
        };
        link("eni0123456789a", 4, 0);
        link("eni0123456789b", 5, TRASH_GROUP);
        link("veth0", 6, 0);

        for (index, is_told) in [(4, true), (5, false), (6, false), (7, false)] {
            let gone = notice(RouteNetlinkMessage::DelAddress(address("fe80::1/128", index)), 0);
            assert_eq!(judge.touches_ours(&gone), is_told, "link {index}");
        }
    }

    #[test]
    fn another_mtu_or_mac_address_is_told_and_the_right_one_is_not() {
        let mut judge = RouteJudge::new(ours());
        let mut told = |name: &str, mtu, mac: Mac, port| {
            let mut link = LinkMessage::default();
            link.header.index = u32::from(name.as_bytes()[0]);
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::Address(mac.0.to_vec()),
            ];
            judge.touches_ours(&notice(RouteNetlinkMessage::NewLink(link), port))
        };
        let (pod, eni, other_device) = ("eni0123456789a", "xens5", "usb0");
        let (right, other) = (HostVeth::found(pod).unwrap().mac(), Mac([2; 6]));

        // The first time there is nothing to compare with, whoever asked.
        assert!(!told(pod, 8900, right, OURS));
        assert!(told(pod, 8900, other, 0), "another MAC address");
        assert!(!told(pod, 8900, right, 0), "the right one, by us");
        assert!(told(pod, 9001, right, 0), "the MTU of ENIs");
        assert!(!told(pod, 8900, right, 0), "the right one, by us");
        assert!(told(eni, 1500, other, 0), "a new device");
        assert!(!told(eni, 9001, other, 0));
        assert!(told(eni, 1500, other, 0), "an ENI's MTU");
        assert!(told(other_device, 1500, other, 0), "a new device");
        assert!(!told(other_device, 1500, right, 0), "MAC addresses of others may change");
    }

    #[test]
    fn packets_that_are_forwarded_no_more_are_told_and_sources_checked_strictly_on_an_eni() {
        let mut judge = RouteJudge::new(ours());
        let mut eni = LinkMessage::default();
        eni.header.index = 6;
        judge.touches_ours(&notice(RouteNetlinkMessage::NewLink(eni), OURS));
        let mut told = |link: i32, kind: u16, value: i32| {
            let mut bytes = 36_u32.to_ne_bytes().to_vec();
            bytes.extend(NEW_SETTINGS.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend([2, 0, 0, 0]);
            for (kind, value) in [(SETTINGS_LINK, link), (kind, value)] {
                bytes.extend(8_u16.to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(value.to_ne_bytes());
            }
            judge.touches_ours(&bytes)
        };

        assert!(told(WHOLE_HOST, FORWARDING, 0));
        assert!(!told(WHOLE_HOST, FORWARDING, 1) && !told(9, FORWARDING, 0));
        assert!(told(6, SOURCE_CHECK, 1) && told(6, SOURCE_CHECK, 0));
        assert!(!told(6, SOURCE_CHECK, LOOSE) && !told(9, SOURCE_CHECK, 1));
    }

    #[test]
    fn a_second_message_counts_and_what_is_cut_does_not() {
        let mut both = notice(RouteNetlinkMessage::NewRoute(pod_route()), OURS + 1);
        both.extend(notice(RouteNetlinkMessage::DelRoute(pod_route()), OURS + 1));

        let mut judge = RouteJudge::new(ours());
        assert!(judge.touches_ours(&both));
        assert!(!judge.touches_ours(&both[..both.len() - 3]));
        assert!(!judge.touches_ours(&[]));
    }

    #[test]
    fn veths_of_others_may_go_down_and_those_that_are_set_aside_or_new() {
        let veth_of = |changed, name: &str, group| {
            let mut link = LinkMessage::default();
            link.header.change_mask = changed;
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Group(group),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            ];
            RouteNetlinkMessage::NewLink(link)
        };

        let veth = |name, group| veth_of(LinkFlags::Up, name, group);
        assert!(!told(veth_of(LinkFlags::from_bits_retain(u32::MAX), "eni0123456789a", 0), 0), "a new one");
        assert!(told(veth("eni0123456789a", 0), 0));
        assert!(!told(veth("eni0123456789a", TRASH_GROUP), 0));
        assert!(!told(veth("veth12345", 0), 0));
    }
}
