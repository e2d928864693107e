//! Compares a pod's wiring with what it should be, by questions about this pod alone.
//!
//! MTU and the container's MAC are not compared: a chained `tuning` plugin may change them.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rustix::io::Errno;
use types::{Mac, TableId};

use super::branch;
use super::message::{any_address, number_of, to_route};
use super::pod;
use super::socket::Socket;
use super::wirer::{WireError, known, step};
use crate::model::{Family, IfIndex, LinkSeen, PodSpec, Route};
use crate::wiring::{Part, Side, When};

/// The differences in words.
pub(super) fn differences(
    pod: &PodSpec,
    host: &mut Socket,
    inside: &mut Socket,
) -> Result<Vec<String>, WireError> {
    let inner = known(inside.batch(vec![pod::get_link(&pod.container_if)]))?;
    let outer = known(host.batch(vec![pod::get_link(pod.host_if.as_str())]))?;
    let (inner, outer) = match (inner, outer) {
        (Some(inner), Some(outer)) => (inner, outer),
        (None, _) => return Ok(vec![format!("the pod has no interface {}", pod.container_if)]),
        (Some(_), None) => return Ok(vec![format!("the host has no interface {}", pod.host_if)]),
    };
    if inner.peer != Some(outer.index) || outer.peer != Some(inner.index) {
        return Ok(vec![Part::Pair.lack(pod, When::Now)]);
    }
    let mut found = Vec::new();
    let mut there = There { inner: &inner, outer: &outer, host, inside };
    for part in pod.parts() {
        if !there.has(&part, pod)? {
            found.push(part.lack(pod, When::Now));
        }
    }
    if let Some(branch) = &pod.branch {
        let rules = branch::rules_seen(host)?;
        found.extend(branch::differences(pod, branch, outer.index, &rules, host)?);
    }
    Ok(found)
}

/// Where to look for a pod's wiring.
struct There<'a> {
    inner: &'a LinkSeen,
    outer: &'a LinkSeen,
    host: &'a mut Socket,
    inside: &'a mut Socket,
}

impl There<'_> {
    /// Whether a part is there; the pair is.
    fn has(&mut self, part: &Part, pod: &PodSpec) -> Result<bool, WireError> {
        Ok(match part {
            // It was seen; and settings anybody on the node may have reason to change.
            Part::Pair | Part::Setting { .. } => true,
            Part::Up(Side::Host) => self.outer.up,
            Part::Up(Side::Pod) => self.inner.up,
            Part::Address(Side::Host, address) => has_address(*address, self.outer.index, self.host)?,
            Part::Address(Side::Pod, address) => has_address(*address, self.inner.index, self.inside)?,
            // Whether a strict branch ENI's table leads to it is asked with the rest of that: the host's own packets go elsewhere.
            Part::Route(Side::Host, way) => {
                let led = |led: Option<_>| led == Some((way.table, self.outer.index));
                way.table != TableId::PODS || led(route(way.destination.ip(), self.host)?)
            }
            Part::Route(Side::Pod, way) => has_route(&way.by(self.inner.index), self.inside)?,
            Part::Gateway(gateway) => gateway_mac(*gateway, self.inner.index, self.inside)? == self.outer.mac,
            Part::Rule(address) => has_rule(&pod::rule_inside(pod, *address), self.inside)?,
        })
    }
}

/// Whether the pod has a rule with all that this one says.
fn has_rule(rule: &RuleMessage, inside: &mut Socket) -> Result<bool, WireError> {
    let mut question = RuleMessage::default();
    question.header.family = rule.header.family;
    let replies = inside.dump(&RouteNetlinkMessage::GetRule(question));
    let replies = replies.map_err(step("look at the pod's rules"))?;
    let same = |told: &RuleMessage| rule.attributes.iter().all(|said| told.attributes.contains(said));
    Ok(replies.iter().any(|reply| matches!(reply, RouteNetlinkMessage::NewRule(told) if same(told))))
}

fn has_address(address: IpAddr, link: IfIndex, there: &mut Socket) -> Result<bool, WireError> {
    let mut message = AddressMessage::default();
    message.header.family = number_of(Family::of(address));
    message.header.index = link.0;
    let replies = there.dump(&RouteNetlinkMessage::GetAddress(message));
    let replies = replies.map_err(step("look at addresses"))?;
    Ok(replies.iter().any(|reply| match reply {
        RouteNetlinkMessage::NewAddress(message) => any_address(message) == Some((address, link)),
        _ => false,
    }))
}

/// Whether the pod has a route, whoever has made it.
fn has_route(wanted: &Route, inside: &mut Socket) -> Result<bool, WireError> {
    let mut message = RouteMessage::default();
    message.header.address_family = number_of(wanted.family());
    message.attributes = vec![RouteAttribute::Oif(wanted.link.0)];
    let replies = inside.dump(&RouteNetlinkMessage::GetRoute(message));
    let replies = replies.map_err(step("look at the pod's routes"))?;
    Ok(replies.iter().any(|reply| match reply {
        RouteNetlinkMessage::NewRoute(message) => {
            to_route(message).is_some_and(|(_, route)| route == *wanted)
        }
        _ => false,
    }))
}

/// The permanent neighbour entry of the pod's gateway.
fn gateway_mac(gateway: IpAddr, link: IfIndex, inside: &mut Socket) -> Result<Option<Mac>, WireError> {
    let mut message = NeighbourMessage::default();
    message.header.family = number_of(Family::of(gateway));
    message.header.ifindex = link.0;
    message.attributes = vec![NeighbourAttribute::Destination(gateway.into())];
    let replies = match inside.batch(vec![(RouteNetlinkMessage::GetNeighbour(message), 0)]) {
        Ok(replies) => replies,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(step("look at the pod's gateway")(error)),
    };
    Ok(replies.iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.state == NeighbourState::Permanent => {
            message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac)
                }
                _ => None,
            })
        }
        _ => None,
    }))
}

/// The table and link by which the host reaches an address, by all of its rules; `None` for no route.
fn route(address: IpAddr, host: &mut Socket) -> Result<Option<(TableId, IfIndex)>, WireError> {
    let replies = match host.batch(vec![pod::find_route(address)]) {
        Ok(replies) => replies,
        Err(error) if matches!(error.errno(), Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => {
            return Ok(None);
        }
        Err(error) => return Err(step("look for the pod's route")(error)),
    };
    Ok(replies.iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewRoute(message) => {
            to_route(message).map(|(_, route)| (route.table, route.link))
        }
        _ => None,
    }))
}
