//! The host part: links, addresses, routes and rules, over rtnetlink. Never on the path of an ADD or DEL.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::StreamExt;
use ipnetwork::Ipv4Network;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use types::{Mac, TableId};

use super::{KernelError, message, sysctl};
use crate::desired;
use crate::diff::{Op, diff};
use crate::model::{Address, KernelState, NodeSpec, PodSpec};

/// How often a dump is repeated when changes interrupt it.
const DUMPS_MAX: usize = 5;

/// A link of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSeen {
    /// Kernel index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What [`Host::converge`] did.
#[derive(Debug, Default)]
pub struct Converged {
    /// Changes made, as the commands that would make them.
    pub changes: Vec<String>,
    /// ENIs whose link is not there (yet).
    pub missing: Vec<Mac>,
    /// Links by MAC.
    pub links: BTreeMap<Mac, LinkSeen>,
}

/// The host's kernel. One owner: `&mut self` keeps one dump in flight, as the kernel wants it.
#[derive(Debug)]
pub struct Host {
    handle: Handle,
    _connection: tokio::task::JoinHandle<()>,
}

impl Host {
    /// Opens a connection in the network namespace of the calling thread; needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        Ok(Self { handle, _connection: tokio::spawn(connection) })
    }

    /// Makes the kernel hold what the node needs; with `pods`, also their routes.
    ///
    /// Does all it can: one refused change does not keep the others from being made.
    ///
    /// # Errors
    /// When the kernel cannot be read, or refused some changes.
    pub async fn converge(
        &mut self,
        spec: &NodeSpec,
        pods: Option<&[PodSpec]>,
    ) -> Result<Converged, KernelError> {
        let (links, names) = self.links().await?;
        let mut want = desired::node(spec, &links)?;
        if let Some(pods) = pods {
            let route =
                |pod: &PodSpec| names.get(pod.host_if.as_str()).map(|link| desired::pod_route(pod, *link));
            want.routes.extend(pods.iter().filter_map(route));
        }
        let have = self.observe(spec, &links, pods.is_some()).await?;
        let mut changes = Vec::new();
        let mut refused = Vec::new();
        for op in diff(&want, &have) {
            match self.apply(&op).await {
                Ok(()) => changes.push(op.to_string()),
                Err(error) => refused.push(format!("{op}: {error}")),
            }
        }
        for setting in desired::sysctls(spec, &links) {
            match sysctl::put(&setting) {
                Ok(false) => {}
                Ok(true) => changes.push(format!("sysctl -w {}={}", setting.path, setting.value)),
                Err(error) => refused.push(format!("sysctl {}: {error}", setting.path)),
            }
        }
        if !refused.is_empty() {
            return Err(KernelError::Refused(refused));
        }
        let missing = spec.enis.iter().map(|eni| eni.mac).filter(|mac| !links.contains_key(mac)).collect();
        Ok(Converged { changes, missing, links })
    }

    /// Links by MAC, and indexes by name.
    async fn links(&mut self) -> Result<(BTreeMap<Mac, LinkSeen>, BTreeMap<String, u32>), KernelError> {
        let dump = self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        let mut by_mac = BTreeMap::new();
        let mut by_name = BTreeMap::new();
        for message in &dump {
            let RouteNetlinkMessage::NewLink(message) = message else { continue };
            let Some((mac, link)) = to_link(message) else { continue };
            by_name.insert(link.name.clone(), link.index);
            if let Some(mac) = mac {
                by_mac.insert(mac, link);
            }
        }
        Ok((by_mac, by_name))
    }

    /// All objects of a kind; repeated when changes interrupt the dump.
    async fn dump(
        &mut self,
        what: &'static str,
        ask: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        for _ in 0..DUMPS_MAX {
            let mut message = NetlinkMessage::from(ask.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let failed = |source| KernelError::Read { what, source };
            let mut answers = self.handle.request(message).map_err(failed)?;
            let (mut all, mut interrupted) = (Vec::new(), false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => all.push(message),
                    NetlinkPayload::Error(error) => {
                        return Err(failed(rtnetlink::Error::NetlinkError(error)));
                    }
                    _ => {}
                }
            }
            if !interrupted {
                return Ok(all);
            }
        }
        Err(KernelError::Interrupted(what))
    }

    /// What the kernel holds of what we own.
    async fn observe(
        &mut self,
        spec: &NodeSpec,
        links: &BTreeMap<Mac, LinkSeen>,
        pods: bool,
    ) -> Result<KernelState, KernelError> {
        let mut state = KernelState::default();
        let mut inet = RuleMessage::default();
        inet.header.family = AddressFamily::Inet;
        for message in self.dump("rules", RouteNetlinkMessage::GetRule(inet)).await? {
            if let RouteNetlinkMessage::NewRule(message) = message
                && let Some(rule) = message::to_rule(&message)
            {
                *state.rules.entry(rule).or_default() += 1;
            }
        }
        let mut inet = RouteMessage::default();
        inet.header.address_family = AddressFamily::Inet;
        for message in self.dump("routes", RouteNetlinkMessage::GetRoute(inet)).await? {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                let ours = message::to_route(&message).filter(|route| pods || route.table != TableId::PODS);
                state.routes.extend(ours);
            }
        }
        let mut inet = AddressMessage::default();
        inet.header.family = AddressFamily::Inet;
        let addresses = self.dump("addresses", RouteNetlinkMessage::GetAddress(inet)).await?;
        let addresses: Vec<Address> = addresses.iter().filter_map(to_address).collect();
        for eni in &spec.enis {
            let Some(link) = links.get(&eni.mac) else { continue };
            state.links.insert(link.index, (link.mtu, link.up));
            if !eni.is_primary() {
                state.addresses.extend(addresses.iter().filter(|a| a.link == link.index));
            }
        }
        Ok(state)
    }

    async fn apply(&mut self, op: &Op) -> Result<(), String> {
        let (message, flags) = message::of_op(op);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.request(message).map_err(|error| error.to_string())?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
                && !already_so(op, error.to_io().raw_os_error())
            {
                return Err(error.to_io().to_string());
            }
        }
        Ok(())
    }
}

/// Errnos that say that the kernel is as it should be: EEXIST (17) when adding; ENOENT (2), ESRCH (3), ENODEV (19) and
/// EADDRNOTAVAIL (99) when removing.
fn already_so(op: &Op, errno: Option<i32>) -> bool {
    match op {
        Op::AddAddress(_) | Op::AddRoute(_) | Op::AddRule(_) => errno == Some(17),
        Op::DelAddress(_) | Op::DelRoute(_) | Op::DelRule(_) => matches!(errno, Some(2 | 3 | 19 | 99)),
        Op::SetLink { .. } => false,
    }
}

fn to_link(message: &LinkMessage) -> Option<(Option<Mac>, LinkSeen)> {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = LinkSeen { index: message.header.index, name: String::new(), mtu: 0, up };
    let mut mac = None;
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(bytes) = attribute {
            mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
        }
    }
    (!link.name.is_empty()).then_some((mac, link))
}

fn to_address(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    })?;
    let address = Ipv4Network::new(local, message.header.prefix_len).ok()?;
    Some(Address { link: message.header.index, address })
}
