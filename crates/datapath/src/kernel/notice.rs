//! Notices of links, addresses, routes and rules: which of them are about something of ours.

use std::collections::BTreeMap;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use types::{HostVeth, Mac, TableId};

use super::message::{any_link, to_link, to_route, to_rule};
use super::pod::{self, TRASH_GROUP};
use super::socket::{Socket, messages};
use crate::model::{IfIndex, LinkSeen};
use crate::seen::Maker;
use crate::watch::Ours;

/// Tells notices of what others change of ours from all the rest.
#[derive(Debug)]
pub(crate) struct RouteJudge {
    ours: Ours,
    /// MTU and MAC address of links as last told: a notice says what a link is like, not what has changed.
    links: BTreeMap<IfIndex, (u32, Option<Mac>)>,
}

impl RouteJudge {
    pub(crate) const fn new(ours: Ours) -> Self {
        Self { ours, links: BTreeMap::new() }
    }

    /// Reads what links are like now. Where that cannot be, the first notice of a link teaches it.
    pub(crate) fn learn_links(&mut self) {
        let ask = RouteNetlinkMessage::GetLink(any_link());
        let told = Socket::open().ok().and_then(|mut socket| socket.dump(&ask).ok()).unwrap_or_default();
        let links = pod::links_in(&told).map(|link| (link.index, (link.mtu, link.mac)));
        self.links.extend(links);
    }

    /// Whether a datagram tells a change of something of ours by a socket that is not ours. What cannot be read is left to the
    /// next round: links of kinds that nobody here knows may change all the time.
    pub(crate) fn touches_ours(&mut self, datagram: &[u8]) -> bool {
        let told = messages(datagram).map_while(Result::ok).filter(|message| {
            let NetlinkPayload::InnerMessage(inner) = &message.payload else { return false };
            let port = message.header.port_number;
            // First, for of our own links too it is to be known what they are like.
            let reshaped = self.reshaped(inner);
            reshaped
                || !self.ours.ports.contains(&port) && is_about_ours(inner, port, &self.ours.pod_if_prefix)
        });
        // All of them, to learn.
        told.count() > 0
    }

    /// Whether a link has been given an MTU that ours do not have, or a host end of ours another MAC address than its name gives.
    /// The kernel does not say by whom.
    fn reshaped(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::DelLink(message) => {
                self.links.remove(&IfIndex(message.header.index));
                false
            }
            RouteNetlinkMessage::NewLink(message) => {
                let link = to_link(message);
                let last = self.links.insert(link.index, (link.mtu, link.mac));
                let of_pod = link.name.starts_with(&self.ours.pod_if_prefix);
                let right = if of_pod { self.ours.pod_mtu } else { self.ours.mtu };
                let wrong = |(mtu, mac)| {
                    mtu != link.mtu && link.mtu != right || mac != link.mac && self.has_other_mac(&link)
                };
                link.group != TRASH_GROUP && last.is_some_and(wrong)
            }
            _ => false,
        }
    }

    /// Whether it is a host end of ours with a MAC address that its name does not give.
    fn has_other_mac(&self, link: &LinkSeen) -> bool {
        let name = HostVeth::found(&link.name).filter(|_| link.name.starts_with(&self.ours.pod_if_prefix));
        name.is_some_and(|name| link.mac != Some(name.mac()))
    }
}

fn is_about_ours(message: &RouteNetlinkMessage, port: u32, pod_if_prefix: &str) -> bool {
    match message {
        // Port 0 is the kernel: it tells of IPv6 routes that go with their link.
        RouteNetlinkMessage::DelRoute(message) => {
            port != 0 && to_route(message).is_some_and(|(maker, _)| maker == Maker::We)
        }
        // One that takes the place of ours.
        RouteNetlinkMessage::NewRoute(message) => {
            to_route(message).is_some_and(|(maker, route)| maker != Maker::We && route.table == TableId::PODS)
        }
        RouteNetlinkMessage::DelRule(message) => to_rule(message).is_some(),
        RouteNetlinkMessage::DelAddress(_) => port != 0,
        RouteNetlinkMessage::NewLink(message) => went_down(message) && may_be_ours(message, pod_if_prefix),
        _ => false,
    }
}

/// The kernel removes a link's routes with it, and says nothing of them.
fn went_down(message: &LinkMessage) -> bool {
    message.header.change_mask.contains(LinkFlags::Up) && !message.header.flags.contains(LinkFlags::Up)
}

/// Whether a link may be an ENI or the host end of a pod that we have not set aside ourselves. Other container networks' links
/// come and go all the time.
fn may_be_ours(message: &LinkMessage, pod_if_prefix: &str) -> bool {
    message.attributes.iter().all(|attribute| match attribute {
        LinkAttribute::Group(group) => *group != TRASH_GROUP,
        LinkAttribute::LinkInfo(infos) => {
            !infos.contains(&LinkInfo::Kind(InfoKind::Veth)) || named(message, pod_if_prefix)
        }
        _ => true,
    })
}

fn named(message: &LinkMessage, prefix: &str) -> bool {
    let name = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name.starts_with(prefix));
    message.attributes.iter().any(name)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;

    use super::super::message::{of_route, of_rule};
    use super::*;
    use crate::model::{Family, IfIndex, PodSpec, Rule, RulePriority, Selector};

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
        Ours { ports: [OURS].into(), pod_if_prefix: "eni".to_owned(), mtu: 9001, pod_mtu: 8900 }
    }

    fn told(message: RouteNetlinkMessage, port: u32) -> bool {
        RouteJudge::new(ours()).touches_ours(&notice(message, port))
    }

    fn pod_route() -> netlink_packet_route::route::RouteMessage {
        let pod = PodSpec {
            host_if: HostVeth::found("eni0123456789a").unwrap(),
            container_if: "eth0".to_owned(),
            index: 0,
            addresses: vec!["10.0.0.5".parse().unwrap()],
            mtu: 9001,
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
    fn a_link_that_goes_down_is_told_and_one_that_comes_up_is_not() {
        let mut link = LinkMessage::default();
        link.header.change_mask = LinkFlags::Up;
        assert!(told(RouteNetlinkMessage::NewLink(link.clone()), 0));

        link.header.flags = LinkFlags::Up;
        assert!(!told(RouteNetlinkMessage::NewLink(link.clone()), 0));
        link.header.change_mask = LinkFlags::empty();
        link.header.flags = LinkFlags::empty();
        assert!(!told(RouteNetlinkMessage::NewLink(link), 0));
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
        let (pod, eni, bridge) = ("eni0123456789a", "xens5", "cni0");
        let (right, other) = (HostVeth::found(pod).unwrap().mac(), Mac([2; 6]));

        // The first time there is nothing to compare with, whoever asked.
        assert!(!told(pod, 8900, right, OURS));
        assert!(told(pod, 8900, other, 0), "another MAC address");
        assert!(!told(pod, 8900, right, 0), "the right one, by us");
        assert!(told(pod, 9001, right, 0), "the MTU of ENIs");
        assert!(!told(pod, 8900, right, 0), "the right one, by us");
        assert!(!told(eni, 1500, other, 0));
        assert!(!told(eni, 9001, other, 0));
        assert!(told(eni, 1500, other, 0), "an ENI's MTU");
        assert!(!told(bridge, 1500, other, 0));
        assert!(!told(bridge, 1500, right, 0), "MAC addresses of others may change");
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
    fn veths_of_others_and_those_set_aside_may_go_down() {
        let veth = |name: &str, group| {
            let mut link = LinkMessage::default();
            link.header.change_mask = LinkFlags::Up;
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Group(group),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            ];
            RouteNetlinkMessage::NewLink(link)
        };

        assert!(told(veth("eni0123456789a", 0), 0));
        assert!(!told(veth("eni0123456789a", TRASH_GROUP), 0));
        assert!(!told(veth("veth12345", 0), 0));
    }
}
