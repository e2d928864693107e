//! The path of an ADD and a DEL: a handful of messages in as few system calls as possible; no dump.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::{Mac, TableId};

use super::message::{address_on, exclusive, neighbour, of_route, put, set_link, to_route};
use super::socket::{Ask, Socket, SocketError};
use crate::desired::pod_route;
use crate::model::PodSpec;

/// The gateway every pod sees: link-local, and the host end answers to it by a permanent neighbour entry.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Link group of host ends whose pod is gone, until the next sweep.
const TRASH_GROUP: u32 = 0x5652_4153;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// Why a pod could not be wired, compared or taken away.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A step was refused.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pod has an interface of that name already.
    #[error("the pod has an interface {0} already")]
    ContainerIfExists(String),
}

fn step(step: &'static str) -> impl FnOnce(SocketError) -> WireError {
    move |source| WireError::Step { step, source: Box::new(source) }
}

/// A pod's route found in the kernel, and its link's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Name of the host end.
    pub host_if: String,
    /// The address routed to it.
    pub address: Ipv4Addr,
}

/// Wires pods, on a thread of its own.
#[derive(Debug)]
pub struct Wirer {
    host: Socket,
}

impl Wirer {
    /// Opens the host's socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, WireError> {
        Ok(Self { host: Socket::open().map_err(WireError::Open)? })
    }

    /// Wires a pod. `netns` is its namespace, `pod_socket` a `NETLINK_ROUTE` socket that was opened inside it.
    ///
    /// An old link of the same name is replaced: the caller knows that its pod is gone. Leaves nothing on failure.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn add(
        &mut self,
        pod: &PodSpec,
        host_mac: Mac,
        netns: BorrowedFd<'_>,
        pod_socket: OwnedFd,
    ) -> Result<(), WireError> {
        let mut inside = Socket::over(pod_socket).map_err(WireError::Open)?;
        self.create_pair(pod, host_mac, netns)?;
        let wired = self.wire(pod, host_mac, &mut inside);
        if wired.is_err() {
            // The step's own failure is what the caller hears.
            drop(self.delete_link(pod.host_if.as_str()));
        }
        wired
    }

    fn create_pair(&mut self, pod: &PodSpec, host_mac: Mac, netns: BorrowedFd<'_>) -> Result<(), WireError> {
        let message =
            || (RouteNetlinkMessage::NewLink(pair(pod, host_mac, netns)), NLM_F_CREATE | NLM_F_EXCL);
        match self.host.batch(vec![message()]) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(EEXIST) => {
                // One of the two names is taken. Ours on the host is a leftover; if it is the other, say so.
                let found = self.set_aside(pod.host_if.as_str())?;
                match self.host.batch(vec![message()]) {
                    Ok(_) => Ok(()),
                    Err(error) if error.errno() == Some(EEXIST) && !found => {
                        Err(WireError::ContainerIfExists(pod.container_if.clone()))
                    }
                    Err(error) => Err(step("create the veth pair")(error)),
                }
            }
            Err(error) => Err(step("create the veth pair")(error)),
        }
    }

    fn wire(&mut self, pod: &PodSpec, host_mac: Mac, inside: &mut Socket) -> Result<(), WireError> {
        let replies =
            inside.batch(vec![get_link(&pod.container_if)]).map_err(step("find the pod's interface"))?;
        let (inner, outer) =
            replies.iter().find_map(indexes).ok_or(SocketError::Nonsense).map_err(step("find the pair"))?;
        inside.batch(pod_side(pod, inner, host_mac)).map_err(step("set up the pod's interface"))?;
        let route = RouteNetlinkMessage::NewRoute(of_route(&pod_route(pod, outer)));
        self.host.batch(vec![(route, put())]).map_err(step("add the pod's route"))?;
        Ok(())
    }

    /// Compares a pod with what it should be; differences in words, none when all is well.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check(&mut self, pod: &PodSpec, pod_socket: OwnedFd) -> Result<Vec<String>, WireError> {
        let mut inside = Socket::over(pod_socket).map_err(WireError::Open)?;
        let replies = match inside.batch(vec![get_link(&pod.container_if)]) {
            Ok(replies) => replies,
            Err(error) if error.errno() == Some(ENODEV) => {
                return Ok(vec![format!("the pod has no interface {}", pod.container_if)]);
            }
            Err(error) => return Err(step("look at the pod's interface")(error)),
        };
        let Some((inner, outer)) = replies.iter().find_map(indexes) else {
            return Ok(vec![format!("{} is no veth", pod.container_if)]);
        };
        let mut differences = Vec::new();
        let host = self.host.batch(vec![get_link(pod.host_if.as_str())]);
        match host.map(|replies| replies.iter().find_map(indexes)) {
            Ok(Some((index, _))) if index == outer => {}
            Ok(_) | Err(_) => differences.push(format!("the other end is not {}", pod.host_if)),
        }
        let ask = (RouteNetlinkMessage::GetAddress(address_on(inner, pod.address.into())), NLM_F_DUMP);
        let addresses = inside.batch(vec![ask]).map_err(step("look at the pod's addresses"))?;
        if !addresses.iter().any(|reply| has_address(reply, inner, pod.address)) {
            differences.push(format!("{} has no address {}", pod.container_if, pod.address));
        }
        if self.route_to(pod.address)? != Some(outer) {
            differences.push(format!("{} is not routed to {}", pod.address, pod.host_if));
        }
        Ok(differences)
    }

    /// The link to which the pods' table routes an address.
    fn route_to(&mut self, address: Ipv4Addr) -> Result<Option<u32>, WireError> {
        let routes = self.pod_routes()?;
        Ok(routes
            .iter()
            .find(|route| route.destination == Ipv4Network::from(address))
            .map(|route| route.link))
    }

    /// Takes a pod's wiring away without waiting for the kernel to let go of the link: its route goes at once, its host end
    /// into a group that [`Self::sweep`] deletes.
    ///
    /// # Errors
    /// What the kernel refused; that something is gone already is no error.
    pub fn remove(&mut self, pod: &PodSpec) -> Result<(), WireError> {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(pod.host_if.as_str().to_owned()), LinkAttribute::Group(TRASH_GROUP)];
        let route = RouteNetlinkMessage::DelRoute(of_pod_route(pod.address));
        let first = self.host.batch(vec![(route, 0)]);
        let second = self.host.batch(vec![(RouteNetlinkMessage::SetLink(message), 0)]);
        for done in [first, second] {
            match done {
                Ok(_) => {}
                Err(error) if matches!(error.errno(), Some(ENOENT | ESRCH | ENODEV)) => {}
                Err(error) => return Err(step("take the pod's route and link away")(error)),
            }
        }
        Ok(())
    }

    /// Deletes the links that [`Self::remove`] has set aside, all in one request: the kernel waits for RCU once.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn sweep(&mut self) -> Result<(), WireError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Group(TRASH_GROUP)];
        match self.host.batch(vec![(RouteNetlinkMessage::DelLink(message), 0)]) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(ENODEV) => Ok(()),
            Err(error) => Err(step("delete the links of released pods")(error)),
        }
    }

    /// The pods that the kernel knows: routes in our table and the names of their links. For the start only.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn pods(&mut self) -> Result<Vec<PodSeen>, WireError> {
        let mut pods = Vec::new();
        for route in self.pod_routes()? {
            let mut message = LinkMessage::default();
            message.header.index = route.link;
            let replies = match self.host.batch(vec![(RouteNetlinkMessage::GetLink(message), 0)]) {
                Ok(replies) => replies,
                Err(error) if error.errno() == Some(ENODEV) => continue,
                Err(error) => return Err(step("look at a pod's link")(error)),
            };
            let host_if = replies.iter().find_map(name);
            pods.extend(host_if.map(|host_if| PodSeen { host_if, address: route.destination.ip() }));
        }
        Ok(pods)
    }

    fn pod_routes(&mut self) -> Result<Vec<crate::Route>, WireError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let ask = (RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP);
        let replies = self.host.batch(vec![ask]).map_err(step("read the pods' routes"))?;
        let route = |reply: &RouteNetlinkMessage| match reply {
            RouteNetlinkMessage::NewRoute(message) => to_route(message),
            _ => None,
        };
        Ok(replies.iter().filter_map(route).filter(|route| route.table == TableId::PODS).collect())
    }

    /// Gives a leftover link another name and leaves it to [`Self::sweep`]: deleting it here would wait for RCU. Where the
    /// kernel does not rename a link that is up (before 6.2), it is deleted after all. False when there was none.
    fn set_aside(&mut self, name: &str) -> Result<bool, WireError> {
        let found = match self.host.batch(vec![get_link(name)]) {
            Ok(replies) => replies.iter().find_map(index),
            Err(error) if error.errno() == Some(ENODEV) => None,
            Err(error) => return Err(step("look at the old link")(error)),
        };
        let Some(index) = found else { return Ok(false) };
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes =
            vec![LinkAttribute::IfName(format!("gone{index}")), LinkAttribute::Group(TRASH_GROUP)];
        match self.host.batch(vec![(RouteNetlinkMessage::SetLink(message), 0)]) {
            Ok(_) => Ok(true),
            Err(_) => self.delete_link(name),
        }
    }

    /// Deletes a link by name; false when there was none.
    fn delete_link(&mut self, name: &str) -> Result<bool, WireError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.host.batch(vec![(RouteNetlinkMessage::DelLink(message), 0)]) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(ENODEV) => Ok(false),
            Err(error) => Err(step("delete the old link")(error)),
        }
    }
}

/// The pair in one message: the host end up, with its MAC; the other end in the pod's namespace.
fn pair(pod: &PodSpec, host_mac: Mac, netns: BorrowedFd<'_>) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod.container_if.clone()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()),
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
    message
}

/// Everything inside the pod, in the order in which the kernel accepts it.
fn pod_side(pod: &PodSpec, link: u32, host_mac: Mac) -> Vec<Ask> {
    let on_link = inside_route(link, Ipv4Network::from(GATEWAY), None);
    let default = inside_route(link, Ipv4Network::from(Ipv4Addr::UNSPECIFIED), Some(GATEWAY));
    vec![
        (set_link(link, None), 0),
        (RouteNetlinkMessage::NewAddress(address_on(link, pod.address.into())), exclusive()),
        (RouteNetlinkMessage::NewRoute(on_link), put()),
        (RouteNetlinkMessage::NewRoute(default), put()),
        (neighbour(link, GATEWAY, host_mac), put()),
    ]
}

/// A route inside the pod: plain, as `ip route add` makes it.
fn inside_route(link: u32, destination: Ipv4Network, via: Option<Ipv4Addr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: if via.is_some() { 0 } else { destination.prefix() },
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = match via {
        Some(via) => vec![RouteAttribute::Gateway(RouteAddress::Inet(via)), RouteAttribute::Oif(link)],
        None => {
            vec![RouteAttribute::Destination(RouteAddress::Inet(destination.ip())), RouteAttribute::Oif(link)]
        }
    };
    message
}

/// The pods' table's route to an address, whatever its link.
fn of_pod_route(address: Ipv4Addr) -> RouteMessage {
    let route = crate::Route { table: TableId::PODS, destination: address.into(), via: None, link: 0 };
    let mut message = of_route(&route);
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Oif(_)));
    message
}

fn get_link(name: &str) -> Ask {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// A veth end's own index, and that of its other end (in the other namespace).
fn indexes(reply: &RouteNetlinkMessage) -> Option<(u32, u32)> {
    let RouteNetlinkMessage::NewLink(message) = reply else { return None };
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    Some((message.header.index, peer?))
}

fn index(reply: &RouteNetlinkMessage) -> Option<u32> {
    match reply {
        RouteNetlinkMessage::NewLink(message) => Some(message.header.index),
        _ => None,
    }
}

fn name(reply: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewLink(message) = reply else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn has_address(reply: &RouteNetlinkMessage, link: u32, address: Ipv4Addr) -> bool {
    use netlink_packet_route::address::AddressAttribute;
    let RouteNetlinkMessage::NewAddress(message) = reply else { return false };
    let local = AddressAttribute::Local(address.into());
    message.header.index == link && message.attributes.contains(&local)
}
