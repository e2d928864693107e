//! A node of one layout: two namespaces, the ENIs between them, the pods behind it.
//!
//! ```text
//!   pod ── host veth │ rules, routes, netfilter │ ens5.. ── f0.. │ the VPC's router and TARGET, in one namespace
//! ```
//!
//! A packet to the outside crosses two veth pairs, as does one from pod to pod.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use datapath::{PodSpec, Wirer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use types::{HostVeth, Mac, PodName, VethPrefix};

use super::layout::{self, Layout};
use super::refused;
use crate::LabError;
use crate::netns::Netns;

/// A host of the VPC that is not in the node's subnet.
pub const TARGET: Ipv4Addr = Ipv4Addr::new(10, 0, 200, 1);
/// The subnet's router.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// MTU of every link, in bytes.
pub(super) const MTU: u32 = 9001;

/// Secondary ENIs of the largest node, and the addresses that pods can have on each ENI of it.
const SECONDARY_MAX: u8 = 14;
const SLOTS: u8 = 49;
/// Where ENIs are equally full, one pod in so many sits on the primary one.
const PRIMARY_SHARE: usize = 15;
/// The last byte of an ENI's own address, and of the first of its pods.
const OWN: u8 = 10;
const FIRST_POD: u8 = 20;

/// An ENI: its device index says everything else about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Eni(pub(super) u8);

/// A pod that was added.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    pub(super) host_if: HostVeth,
    pub(super) eni: Eni,
}

/// A node with pods.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    host: Netns,
    far: Netns,
    wirer: Wirer,
    /// Pods on each ENI there is, by device index.
    used: Vec<u8>,
    pods: Vec<Pod>,
}

impl Eni {
    /// The node's end.
    pub(super) fn link(self) -> String {
        format!("ens{}", 5 + self.0)
    }

    /// The end in the VPC.
    pub(super) fn far_link(self) -> String {
        format!("f{}", self.0)
    }

    pub(super) const fn mac(self) -> Mac {
        Mac::local([2, 0, 0, 0, 1, self.0])
    }

    /// Its own address.
    pub(super) const fn own(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.0, OWN)
    }

    /// The address of the pod in one of its slots.
    const fn pod(self, slot: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.0, FIRST_POD + slot)
    }

    /// Every address that its pods can have.
    pub(super) fn pods(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..SLOTS).map(move |slot| self.pod(slot))
    }
}

impl Node {
    /// A node without pods, with its primary ENI.
    ///
    /// # Errors
    /// When the kernel or a program refuses.
    pub fn create(layout: Layout) -> Result<Self, LabError> {
        let name = layout.name();
        let host = Netns::create(&format!("{name}-host"))?;
        let far = Netns::create(&format!("{name}-far"))?;
        // What the machine's own default is must not matter.
        let settings = [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")];
        let set = |(key, value)| std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value);
        for netns in [&host, &far] {
            let done = netns.run(|| settings.into_iter().try_for_each(set))?;
            done.map_err(LabError::doing("switch forwarding on"))?;
        }
        far.ip(&format!("addr add {ROUTER}/32 dev lo\naddr add {TARGET}/32 dev lo\n"))?;
        let wirer = host.run(Wirer::open)?.map_err(refused)?;
        let mut node = Self { layout, host, far, wirer, used: Vec::new(), pods: Vec::new() };
        node.attach()?;
        let primary = Eni(0);
        node.host.ip(&format!(
            "link set {link} up\naddr add {own}/20 dev {link}\nroute add default via {ROUTER}\n",
            link = primary.link(),
            own = primary.own()
        ))?;
        layout::prepare(&node)?;
        Ok(node)
    }

    /// What its kernel holds.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Its own namespace.
    #[must_use]
    pub const fn host(&self) -> &Netns {
        &self.host
    }

    /// The namespace of [`TARGET`].
    #[must_use]
    pub const fn far(&self) -> &Netns {
        &self.far
    }

    /// The link in the namespace of [`TARGET`] by which a pod's packets should come.
    #[must_use]
    pub fn right_link(&self, pod: &Pod) -> String {
        pod.eni.far_link()
    }

    /// Its pods, in the order in which they came.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its ENIs, the primary one first.
    pub(super) fn enis(&self) -> impl Iterator<Item = Eni> {
        (0_u8..).zip(&self.used).map(|(device, _)| Eni(device))
    }

    /// Adds pods until there are so many besides two more, which come last, on the last secondary ENI: packets go
    /// from the very last to the one before it.
    ///
    /// # Errors
    /// When there is no room, or the kernel or a program refuses.
    pub fn grow(&mut self, others: usize) -> Result<(), LabError> {
        let before = self.pods.len();
        while self.pods.len() < others {
            let share = self.pods.len() % PRIMARY_SHARE == PRIMARY_SHARE - 1;
            let eni = if share { Eni(0) } else { self.last_secondary()? };
            self.add(eni)?;
        }
        for _pod in 0..2 {
            let eni = self.last_secondary()?;
            self.add(eni)?;
        }
        layout::settle(self, self.pods.get(before..).unwrap_or_default())
    }

    /// The pods that [`Node::grow`] added last: the sender, and its peer on the node.
    ///
    /// # Errors
    /// When there are none.
    pub fn measured(&self) -> Result<(&Pod, &Pod), LabError> {
        match self.pods.as_slice() {
            [.., peer, sender] => Ok((sender, peer)),
            _ => Err(LabError::Otherwise("the node has no pods yet".to_owned())),
        }
    }

    /// The secondary ENI with room; another is attached once it is full.
    fn last_secondary(&mut self) -> Result<Eni, LabError> {
        if self.used.len() < 2 || self.used.last().is_some_and(|used| *used == SLOTS) {
            self.attach()?;
        }
        self.enis().last().ok_or_else(|| LabError::Otherwise("the node has no ENI".to_owned()))
    }

    fn attach(&mut self) -> Result<(), LabError> {
        let full = |_larger| LabError::Otherwise("the node has too many ENIs".to_owned());
        let eni = Eni(u8::try_from(self.used.len()).map_err(full)?);
        if eni.0 > SECONDARY_MAX {
            return Err(LabError::Otherwise("the node is full".to_owned()));
        }
        let (far, near, mac, own) = (eni.far_link(), eni.link(), eni.mac(), eni.own());
        self.far.ip(&format!(
            "link add {far} mtu {MTU} type veth peer name {near} netns {host} address {mac} mtu {MTU}\n\
             link set {far} up\nneigh replace {own} lladdr {mac} dev {far} nud permanent\n\
             route add 10.0.{device}.0/24 via {own} dev {far} onlink src {TARGET}\n",
            host = self.host.name(),
            device = eni.0
        ))?;
        self.used.push(0);
        Ok(())
    }

    /// Wires a pod as the daemon does.
    fn add(&mut self, eni: Eni) -> Result<(), LabError> {
        let number = self.pods.len();
        let id = format!("{}-{number}", self.layout.name());
        let slot = self.used.get_mut(usize::from(eni.0)).filter(|used| **used < SLOTS);
        let slot = slot.ok_or_else(|| LabError::Otherwise("the ENI is full".to_owned()))?;
        let address = eni.pod(*slot);
        *slot += 1;
        let netns = Netns::create(&id)?;
        let pod = PodName { namespace: "packet".to_owned(), name: id };
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        let spec = PodSpec {
            host_if: host_if.clone(),
            container_if: "eth0".to_owned(),
            index: 0,
            addresses: vec![address.into()],
            mtu: MTU,
            branch: None,
        };
        let open = || socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = netns.run(open)?.map_err(LabError::doing("open a netlink socket"))?;
        let file = std::fs::File::open(netns.path()).map_err(LabError::doing("open a namespace"))?;
        let wirer = &mut self.wirer;
        self.host.run(|| wirer.add(&spec, file.as_fd(), socket))?.map_err(refused)?;
        self.pods.push(Pod { netns, address, host_if, eni });
        Ok(())
    }
}
