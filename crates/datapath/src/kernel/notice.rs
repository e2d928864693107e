//! Notices of links, addresses, routes and rules: which of them are about something of ours.

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use types::TableId;

use super::message::{Maker, to_route, to_rule};
use super::pod::TRASH_GROUP;
use super::socket::messages;
use crate::watch::Ours;

/// Whether a datagram tells a change of something of ours by a socket that is not ours. What cannot be read is left to the
/// next round: links of kinds that nobody here knows may change all the time.
pub(crate) fn touches_ours(datagram: &[u8], ours: &Ours) -> bool {
    messages(datagram).map_while(Result::ok).any(|message| {
        let port = message.header.port_number;
        !ours.ports.contains(&port) && is_about_ours(&message.payload, port, &ours.pod_if_prefix)
    })
}

fn is_about_ours(payload: &NetlinkPayload<RouteNetlinkMessage>, port: u32, pod_if_prefix: &str) -> bool {
    let NetlinkPayload::InnerMessage(message) = payload else { return false };
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
        Ours { ports: [OURS].into(), pod_if_prefix: "eni".to_owned() }
    }

    fn told(message: RouteNetlinkMessage, port: u32) -> bool {
        touches_ours(&notice(message, port), &ours())
    }

    fn pod_route() -> netlink_packet_route::route::RouteMessage {
        let pod = PodSpec {
            host_if: types::HostVeth::found("eni0123456789a").unwrap(),
            container_if: "eth0".to_owned(),
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
    fn a_second_message_counts_and_what_is_cut_does_not() {
        let mut both = notice(RouteNetlinkMessage::NewRoute(pod_route()), OURS + 1);
        both.extend(notice(RouteNetlinkMessage::DelRoute(pod_route()), OURS + 1));

        assert!(touches_ours(&both, &ours()));
        assert!(!touches_ours(&both[..both.len() - 3], &ours()));
        assert!(!touches_ours(&[], &ours()));
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
