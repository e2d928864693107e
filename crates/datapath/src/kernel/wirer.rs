//! The path of an ADD and a DEL: a handful of messages in as few system calls as possible; no dump.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{BorrowedFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use rustix::io::Errno;
use types::{Branch, HostVeth, Mac, TableId};

use super::branch::{self, Trunks};
use super::check;
use super::leftovers;
use super::message::{ADD, any_address, to_route};
use super::pod;
use super::socket::{Ask, Socket, SocketError};
use super::sysctl::LinkSettings;
use crate::branch::BranchRule;
use crate::leftovers::GoRule;
use crate::model::{Family, IfIndex, LinkSeen, PodSpec, Route};
use crate::seen::Maker;
use crate::wiring::{Part, Side, When};

/// How often a veth pair is tried: once, after its name was freed, after the old pair was deleted, and once more for
/// each of the two that the kernel may have taken away just before.
const ATTEMPTS: u32 = 5;

/// Why a pod could not be wired, compared or taken away.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No socket, or a passed descriptor that is not a netlink socket.
    #[error("cannot use a netlink socket")]
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
    /// A part of the pod's wiring was refused.
    #[error("cannot wire the pod: {command}")]
    Refused {
        /// The command that would have made it, the pod's namespace being `POD`.
        command: String,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pod has an interface of that name already.
    #[error("the pod has an interface {0} already")]
    ContainerIfExists(String),
    /// The socket and the namespace that were passed do not belong together.
    #[error("the passed socket does not see the interface {0} that was made in the passed namespace")]
    OtherNamespace(String),
    /// The link of the trunk ENI, on which a branch ENI's VLAN stands, is not there.
    #[error("the host has no link with the trunk ENI's MAC address {0}")]
    NoTrunk(Mac),
    /// A link that was just made is gone.
    #[error("the link {0} that was just made is gone")]
    NoLink(String),
}

/// Turns the failure of a step into the step's error.
pub(super) fn step<E: std::error::Error + Send + Sync + 'static>(
    step: &'static str,
) -> impl FnOnce(E) -> WireError {
    move |source| WireError::Step { step, source: Box::new(source) }
}

/// Routes found in the kernel that may be a pod's, and their link's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Name of the link, which may be the host end of a pod.
    pub host_if: String,
    /// The addresses routed to it, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The routes are ours; otherwise they are as the Go version makes them.
    pub by_us: bool,
    /// The Go version's rule to one of the addresses is there too, which nobody else makes for a route of that form.
    pub ruled: bool,
    /// Its branch ENI, if it has one.
    pub branch: Option<Branch>,
}

/// A pod that others had taken something from, and what that was, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// What was wrong.
    pub what: Vec<String>,
}

/// What a look at pods that are wired has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mending<'a> {
    /// Pods for which something was put back.
    pub mended: Vec<Mended<'a>>,
    /// Pods of which the host has neither the link nor a route: their namespace is gone.
    pub lost: Vec<&'a PodSpec>,
}

/// Why not all pods could be mended: the first refusal, and what was found and mended nevertheless.
#[derive(Debug, thiserror::Error)]
#[error("not all pods could be mended")]
pub struct MendError<'a> {
    /// What was found.
    pub found: Mending<'a>,
    /// Why not all was mended.
    pub source: WireError,
}

impl From<WireError> for MendError<'_> {
    fn from(source: WireError) -> Self {
        Self { found: Mending::default(), source }
    }
}

/// What a pod's inside counts on at its host end. Nobody can change it in there afterwards, so it has to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CountedOn {
    /// The pod's permanent neighbour has it.
    mac: Mac,
    /// Of both ends, in bytes; it may be that of an older setting.
    mtu: u32,
}

/// What the host has of what it needs to reach pods.
#[derive(Debug)]
struct Reached {
    /// Where our table leads addresses.
    routes: BTreeSet<(IpAddr, IfIndex)>,
    /// The IPv6 addresses of its links.
    addresses: BTreeSet<(IpAddr, IfIndex)>,
}

impl Reached {
    /// Whether our table leads to a pod.
    fn leads_to(&self, pod: &PodSpec) -> bool {
        self.routes.iter().any(|(address, _)| pod.addresses.contains(address))
    }
}

/// Wires pods, on a thread of its own.
#[derive(Debug)]
pub struct Wirer {
    host: Socket,
    /// By host end: from the pod's ADD, or as it was when it was first seen.
    counted_on: BTreeMap<IfIndex, CountedOn>,
    trunks: Trunks,
    settings: LinkSettings,
}

impl Wirer {
    /// Opens the host's socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, WireError> {
        let host = Socket::open().map_err(WireError::Open)?;
        let settings = LinkSettings::default();
        Ok(Self { host, counted_on: BTreeMap::new(), trunks: Trunks::default(), settings })
    }

    /// The port of its socket: notices of our own changes carry it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn port(&mut self) -> Result<u32, WireError> {
        self.host.port().map_err(WireError::Open)
    }

    /// The MAC addresses of the host's links. For the start only.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn macs(&mut self) -> Result<BTreeSet<Mac>, WireError> {
        let told = self.host.dump(&pod::list_links()).map_err(step("read the links"))?;
        Ok(pod::links_in(&told).filter_map(|link| link.mac).collect())
    }

    /// Wires a pod that has one interface: [`Self::add_all`].
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn add(
        &mut self,
        pod: &PodSpec,
        netns: BorrowedFd<'_>,
        pod_socket: OwnedFd,
    ) -> Result<(), WireError> {
        self.add_all(std::slice::from_ref(pod), netns, pod_socket)
    }

    /// Wires all interfaces of a pod or none. `netns` is the pod's namespace, `pod_socket` a `NETLINK_ROUTE` socket that was
    /// opened inside it.
    ///
    /// An old link of the same name is replaced: the caller knows that its pod is gone. Leaves nothing on failure.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn add_all(
        &mut self,
        pods: &[PodSpec],
        netns: BorrowedFd<'_>,
        pod_socket: OwnedFd,
    ) -> Result<(), WireError> {
        let mut inside = Socket::over(pod_socket).map_err(WireError::Open)?;
        let mut made: Vec<IfIndex> = Vec::new();
        let wired = pods.iter().try_for_each(|pod| {
            let outer = self.create_pair(pod, netns, &mut inside)?;
            made.push(outer.index);
            self.wire(pod, &outer, &mut inside)
        });
        if wired.is_err() {
            // The step's own failure is what the caller hears.
            made.into_iter().for_each(|outer| drop(self.host.batch(vec![pod::delete_link(outer)])));
            let branches = pods.iter().filter_map(|pod| Some((pod, pod.branch.as_ref()?)));
            branches.for_each(|(pod, of)| drop(branch::remove(pod, of, &mut self.host)));
            for (pod, part) in
                pods.iter().flat_map(|pod| pod.parts().into_iter().map(move |part| (pod, part)))
            {
                if let Part::Rule(address) = part {
                    let rule = RouteNetlinkMessage::DelRule(pod::rule_inside(pod, address));
                    drop(inside.batch(vec![(rule, 0)]));
                }
            }
        } else {
            let counted_on = pods.iter().map(|pod| CountedOn { mac: pod.host_if.mac(), mtu: pod.mtu });
            self.counted_on.extend(made.into_iter().zip(counted_on));
        }
        wired
    }

    /// Makes the pair and tells its host end. If its name is taken, that is a leftover, which makes way; and if it
    /// was this very pod's, from an ADD that is repeated, it holds the name inside as well and has to go at once.
    ///
    /// The kernel takes leftovers away on its own too, when their pod's namespace ends, and does so at any moment:
    /// hence the attempts.
    fn create_pair(
        &mut self,
        pod: &PodSpec,
        netns: BorrowedFd<'_>,
        inside: &mut Socket,
    ) -> Result<LinkSeen, WireError> {
        let mut renamed = None;
        for _attempt in 0..ATTEMPTS {
            if let Some(made) = self.try_pair(pod, netns, inside)? {
                return Ok(made);
            }
            if let Some(old) = self.link(pod.host_if.as_str())? {
                self.free_name(old.index)?;
                renamed = Some(old.index);
            } else if let Some(old) = renamed.take() {
                settle(&mut self.host, pod::delete_link(old), "delete the old link")?;
            }
        }
        Err(WireError::ContainerIfExists(pod.container_if.clone()))
    }

    /// Makes the pair; `None` when one of its two names is taken.
    fn try_pair(
        &mut self,
        pod: &PodSpec,
        netns: BorrowedFd<'_>,
        inside: &mut Socket,
    ) -> Result<Option<LinkSeen>, WireError> {
        let asks = vec![pod::create_pair(pod, netns), pod::get_link(pod.host_if.as_str())];
        let lost = match self.host.batch(asks) {
            Ok(replies) => match pod::link_in(&replies) {
                Some(link) => return Ok(Some(link)),
                None => SocketError::Nonsense,
            },
            Err(error) if error.errno() == Some(Errno::EXIST) => return Ok(None),
            Err(error @ SocketError::Refused { index: 0, .. }) => {
                return Err(refused(&Part::Pair, pod)(error));
            }
            Err(error) => error,
        };
        self.unmake_pair(pod, inside);
        Err(step("find the veth pair")(lost))
    }

    /// Deletes a pair that was made and then not found, as when somebody renames a new link at once. Its other end is in the pod, with a MAC
    /// address that nobody else's has; the host end may have its name after all.
    fn unmake_pair(&mut self, pod: &PodSpec, inside: &mut Socket) {
        let inner = known(inside.batch(vec![pod::get_link(&pod.container_if)]));
        if let Ok(Some(inner)) = inner
            && inner.mac == Some(pod.host_if.mac_inside())
        {
            drop(inside.batch(vec![pod::delete_link(inner.index)]));
        }
        if let Ok(Some(outer)) = self.link(pod.host_if.as_str()) {
            drop(self.host.batch(vec![pod::delete_link(outer.index)]));
        }
    }

    /// Frees the name of an old host end. To take it down and rename it takes a hundredth of the time that deleting it
    /// does, which waits for RCU; the next sweep deletes it.
    fn free_name(&mut self, old: IfIndex) -> Result<(), WireError> {
        let asks = vec![pod::set_aside(old), pod::take_down(old), pod::rename(old)];
        if self.host.batch(asks).is_ok() {
            return Ok(());
        }
        settle(&mut self.host, pod::delete_link(old), "delete the old link").map(|_existed| ())
    }

    /// Makes what is still missing once the pair is there; what leads packets to the pod comes last, after its branch ENI.
    fn wire(&mut self, pod: &PodSpec, outer: &LinkSeen, inside: &mut Socket) -> Result<(), WireError> {
        let found = known(inside.batch(vec![pod::get_link(&pod.container_if)]))?;
        // Another pod's interface may well have the same name and number, but it has another peer.
        let inner = found
            .filter(|inner| inner.peer == Some(outer.index) && outer.peer == Some(inner.index))
            .ok_or_else(|| WireError::OtherNamespace(pod.container_if.clone()))?;
        let parts = pod.parts();
        let leads = |part: &Part| matches!(part, Part::Route(Side::Host, _));
        let (own, ways_in) = parts.split_at(parts.iter().position(leads).unwrap_or(parts.len()));
        for run in own.chunk_by(|one, next| one.side() == next.side()) {
            match run.first().map(Part::side) {
                Some(Side::Pod) => in_pod(run, pod, inner.index, inside)?,
                Some(Side::Host) | None => self.on_host(run, pod, outer)?,
            }
        }
        if let Some(branch) = &pod.branch {
            branch::make(pod, branch, None, &mut self.trunks, &self.settings, &mut self.host)?;
        }
        self.on_host(ways_in, pod, outer)
    }

    /// Makes parts of the host. The pair is there.
    fn on_host(&mut self, parts: &[Part], pod: &PodSpec, outer: &LinkSeen) -> Result<(), WireError> {
        let alone = |part: &Part| matches!(part, Part::Pair | Part::Setting { .. });
        for run in parts.chunk_by(|one, next| !alone(one) && !alone(next)) {
            match run {
                [Part::Pair] => {}
                [part @ Part::Setting { name, value }] => {
                    self.settings.set_ipv6(&outer.name, name, value).map_err(refused(part, pod))?;
                }
                run => make(run, pod, outer.index, &mut self.host)?,
            }
        }
        Ok(())
    }

    /// Compares a pod that has one interface with what it should be: [`Self::check_all`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check(&mut self, pod: &PodSpec, pod_socket: OwnedFd) -> Result<Vec<String>, WireError> {
        self.check_all(std::slice::from_ref(pod), pod_socket)
    }

    /// Compares the interfaces of a pod with what they should be; differences in words, none when all is well.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check_all(&mut self, pods: &[PodSpec], pod_socket: OwnedFd) -> Result<Vec<String>, WireError> {
        let mut inside = Socket::over(pod_socket).map_err(WireError::Open)?;
        let mut found = Vec::new();
        for pod in pods {
            found.extend(check::differences(pod, &mut self.host, &mut inside)?);
        }
        Ok(found)
    }

    /// Takes a pod's wiring away without waiting for the kernel to let go of the link: its route goes at once, its host
    /// end into a group that [`Self::sweep`] deletes.
    ///
    /// The route says whether the link of that name is still this pod's: if it is not, it is left alone.
    ///
    /// # Errors
    /// What the kernel refused; that something is gone already is no error.
    pub fn remove(&mut self, pod: &PodSpec) -> Result<(), WireError> {
        if let Some(branch) = &pod.branch {
            branch::remove(pod, branch, &mut self.host)?;
        }
        let Some(link) = self.link(pod.host_if.as_str())?.map(|link| link.index) else { return Ok(()) };
        let mut was_its = false;
        for route in pod::delete_routes(pod, link) {
            was_its |= settle(&mut self.host, route, "remove the pod's route")?;
        }
        if !was_its {
            return Ok(());
        }
        settle(&mut self.host, pod::set_aside(link), "set the pod's link aside").map(|_existed| ())
    }

    /// Puts back what others have taken of pods that are wired: host ends that are down or have another MAC address or MTU, or lack
    /// the address that IPv6 needs; routes that are gone or lead elsewhere. Returns the pods for which something was wrong, and those that are gone.
    ///
    /// # Errors
    /// When links or routes cannot be read, or what the kernel refused first; the other pods are seen to nevertheless, and told in the error.
    pub fn mend<'a>(&mut self, pods: &'a [PodSpec]) -> Result<Mending<'a>, MendError<'a>> {
        let there = Reached {
            routes: self.pod_routes()?.iter().map(|route| (route.destination.ip(), route.link)).collect(),
            addresses: match pods.iter().any(PodSpec::has_ipv6) {
                true => self.ipv6_addresses()?,
                false => BTreeSet::new(),
            },
        };
        let rules = match pods.iter().any(|pod| pod.branch.is_some()) {
            true => branch::rules_seen(&mut self.host)?,
            false => Vec::new(),
        };
        let veths = self.veths()?;
        self.counted_on.retain(|link, _| veths.values().any(|veth| veth.index == *link));
        let (mut found, mut refused) = (Mending::default(), None);
        for pod in pods {
            let Some(veth) = veths.get(pod.host_if.as_str()) else {
                // Its MAC address is of its name, and stays with a link that somebody renames.
                let is_renamed = veths.values().any(|veth| veth.mac == Some(pod.host_if.mac()));
                // What cannot be looked for is taken to be there.
                if !is_renamed && !self.may_live(pod, &there).unwrap_or(true) {
                    found.lost.push(pod);
                }
                continue;
            };
            let Some(counted_on) = self.counted_on(&pod.host_if, veth) else { continue };
            let mut what = wrong(pod, veth, counted_on, &there);
            match self.mend_branch(pod, veth.index, &rules) {
                Ok(of_branch) => what.extend(of_branch),
                Err(error) => refused = refused.or(Some(error)),
            }
            if what.is_empty() {
                continue;
            }
            match self.put_back(pod, veth, counted_on) {
                Ok(()) => found.mended.push(Mended { pod, what }),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            None => Ok(found),
            Some(source) => Err(MendError { found, source }),
        }
    }

    /// Whether a pod may live whose host end is not among the veths: it has become something else, or a route leads to the pod.
    fn may_live(&mut self, pod: &PodSpec, there: &Reached) -> Result<bool, WireError> {
        let table = pod.table_on_host();
        let is_led_to = match table {
            TableId::PODS => there.leads_to(pod),
            // Looked at for such pods alone: those that live have theirs looked at with what else their branch ENI needs.
            _ => branch::leads_to(pod, table, &mut self.host)?,
        };
        Ok(is_led_to || self.has_link(pod.host_if.as_str())?)
    }

    /// Makes the host's part of a pod's wiring anew: a link that comes up lacks its routes, and one whose MTU was below that of IPv6 its settings.
    fn put_back(&mut self, pod: &PodSpec, veth: &LinkSeen, counted_on: CountedOn) -> Result<(), WireError> {
        let ends = vec![pod::restore(veth.index, counted_on.mtu, counted_on.mac)];
        let ends = self.host.batch(ends).map(drop).map_err(step("put back a link's MTU and MAC address"));
        let parts = pod.parts().into_iter().filter(|part| part.side() == Side::Host);
        let is_setting = |part: &Part| matches!(part, Part::Setting { .. });
        let (settings, others): (Vec<Part>, Vec<Part>) = parts.partition(is_setting);
        let settings = settings.iter().map(|part| self.on_host(std::slice::from_ref(part), pod, veth));
        let settings = settings.fold(Ok(()), Result::and);
        // Whether the pod can be reached does not wait for what of the rest is refused.
        let others = self.on_host(&others, pod, veth);
        ends.and(settings).and(others)
    }

    /// The same for what leads to and from a pod's branch ENI, its own route in the branch ENI's table apart. What was wrong, in words.
    fn mend_branch(
        &mut self,
        pod: &PodSpec,
        outer: IfIndex,
        rules: &[(BranchRule, bool)],
    ) -> Result<Vec<String>, WireError> {
        let Some(branch) = &pod.branch else { return Ok(Vec::new()) };
        let what = branch::differences(pod, branch, outer, rules, &mut self.host)?;
        if !what.is_empty() {
            branch::make(pod, branch, Some(rules), &mut self.trunks, &self.settings, &mut self.host)?;
        }
        Ok(what)
    }

    /// What the pod counts on. A host end that is seen for the first time and was not made by us is taken to be right.
    fn counted_on(&mut self, host_if: &HostVeth, veth: &LinkSeen) -> Option<CountedOn> {
        let seen = match veth.made_with_mtu() {
            Some(mtu) => CountedOn { mac: host_if.mac(), mtu },
            None => CountedOn { mac: veth.mac?, mtu: veth.mtu },
        };
        Some(*self.counted_on.entry(veth.index).or_insert(seen))
    }

    /// The veths of the host by name, without those that were set aside.
    fn veths(&mut self) -> Result<BTreeMap<String, LinkSeen>, WireError> {
        let told = self.host.dump(&pod::list_veths()).map_err(step("read the links"))?;
        let kept = pod::links_in(&told).filter(|link| link.group != pod::TRASH_GROUP);
        Ok(kept.map(|link| (link.name.clone(), link)).collect())
    }

    /// Deletes the links that [`Self::remove`] has set aside, all in one request: the kernel waits for RCU once.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn sweep(&mut self) -> Result<(), WireError> {
        settle(&mut self.host, pod::sweep(), "delete the links of released pods").map(|_existed| ())
    }

    /// What in the kernel may be pods: links with routes in our table, or in the main one as the Go version makes them. Others make
    /// such routes too: the links' names and what is known of pods have to tell. For the start only.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn pods(&mut self) -> Result<Vec<PodSeen>, WireError> {
        let mut by_link: BTreeMap<IfIndex, (Vec<IpAddr>, bool)> = BTreeMap::new();
        for route in self.pod_routes()? {
            by_link.entry(route.link).or_insert((Vec::new(), true)).0.push(route.destination.ip());
        }
        let mut ruled = BTreeSet::new();
        let mut to_pods = self.pod_routes()?;
        for family in Family::ALL {
            let main = routes_of(&mut self.host, family, TableId::MAIN)?;
            for route in main.iter().filter_map(leftovers::to_pod_route) {
                by_link.entry(route.link).or_insert_with(|| (vec![route.destination.ip()], false));
                to_pods.push(route);
            }
            ruled.extend(self.rules(family)?.into_iter().filter_map(|rule| match rule {
                GoRule::ToPod(address) => Some(address),
                _ => None,
            }));
        }
        let mut branches = BTreeMap::new();
        for seen in branch::find(&mut self.host, &to_pods)? {
            by_link.insert(seen.host_if, (seen.addresses, seen.by_us));
            branches.insert(seen.host_if, seen.branch);
        }
        let mut pods = Vec::new();
        for (index, (addresses, by_us)) in by_link {
            let branch = branches.remove(&index);
            let link = known(self.host.batch(vec![pod::get_link_at(index)]))?;
            let ruled = addresses.iter().any(|address| ruled.contains(address));
            pods.extend(link.map(|link| PodSeen { host_if: link.name, addresses, by_us, ruled, branch }));
        }
        Ok(pods)
    }

    /// Adds a rule for each of these pods that leads its packets to a table, as the Go version has them: it makes them for the pods
    /// that it adds itself. They are needed once our nftables table is removed, and with it our marks.
    ///
    /// # Errors
    /// What the kernel refused first; the others are added nevertheless.
    pub fn steer_each(&mut self, pods: &[(Ipv4Addr, TableId)]) -> Result<(), WireError> {
        let rule = |(address, table): &(Ipv4Addr, TableId)| {
            let rule = GoRule::FromPod { address: IpAddr::V4(*address), table: *table };
            (RouteNetlinkMessage::NewRule(leftovers::of_rule(&rule)), ADD)
        };
        let mut refused = Ok(());
        for pod in pods {
            match self.host.batch(vec![rule(pod)]) {
                Ok(_) => {}
                Err(error) if error.errno() == Some(Errno::EXIST) => {}
                Err(error) => refused = refused.and(Err(step("add a pod's rule")(error))),
            }
        }
        refused
    }

    /// Whether the host has a link of this name.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn has_link(&self, name: &str) -> Result<bool, WireError> {
        Ok(self.index_of(name)?.is_some())
    }

    fn index_of(&self, name: &str) -> Result<Option<IfIndex>, WireError> {
        Ok(self.host.index_of(name).map_err(step("look for a link"))?.map(IfIndex))
    }

    fn ipv6_addresses(&mut self) -> Result<BTreeSet<(IpAddr, IfIndex)>, WireError> {
        let told = self.host.dump(&pod::list_ipv6_addresses()).map_err(step("read the addresses"))?;
        let addresses = told.iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewAddress(message) => any_address(message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    fn pod_routes(&mut self) -> Result<Vec<Route>, WireError> {
        let mut told = Vec::new();
        for family in Family::ALL {
            told.extend(routes_of(&mut self.host, family, TableId::PODS)?);
        }
        let ours = told.iter().filter_map(to_route);
        let ours = ours.filter(|(maker, route)| *maker == Maker::We && route.table == TableId::PODS);
        Ok(ours.map(|(_, route)| route).collect())
    }

    /// The rules of a family that the Go version may have made.
    fn rules(&mut self, family: Family) -> Result<Vec<GoRule>, WireError> {
        let told = all_of(&mut self.host, &leftovers::list_rules(family), "read the rules")?;
        let rules = told.iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewRule(message) => leftovers::to_rule(message),
            _ => None,
        });
        Ok(rules.collect())
    }

    /// A link of the host by its name.
    fn link(&mut self, name: &str) -> Result<Option<LinkSeen>, WireError> {
        known(self.host.batch(vec![pod::get_link(name)]))
    }
}

/// Does away with something; false when it was gone already.
pub(super) fn settle(host: &mut Socket, ask: Ask, what: &'static str) -> Result<bool, WireError> {
    match host.batch(vec![ask]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::SRCH | Errno::NODEV)) => Ok(false),
        Err(error) => Err(step(what)(error)),
    }
}

/// All of a kind; none where there is no such table or family: a table without routes does not exist, nor does IPv6 everywhere.
pub(super) fn all_of(
    host: &mut Socket,
    ask: &RouteNetlinkMessage,
    what: &'static str,
) -> Result<Vec<RouteNetlinkMessage>, WireError> {
    match host.dump(ask) {
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::AFNOSUPPORT)) => Ok(Vec::new()),
        told => told.map_err(step(what)),
    }
}

/// The routes of a table.
pub(super) fn routes_of(
    host: &mut Socket,
    family: Family,
    table: TableId,
) -> Result<Vec<RouteMessage>, WireError> {
    let told = all_of(host, &pod::list_routes(family, table), "read the pods' routes")?;
    let routes = told.into_iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewRoute(message) => Some(message),
        _ => None,
    });
    Ok(routes.collect())
}

/// What is wrong with a pod's host end and routes, in words.
fn wrong(pod: &PodSpec, veth: &LinkSeen, counted_on: CountedOn, there: &Reached) -> Vec<String> {
    let mut found = Vec::new();
    if veth.mtu != counted_on.mtu {
        found.push(format!("its MTU was {}, not {}", veth.mtu, counted_on.mtu));
    }
    if let Some(mac) = veth.mac.filter(|mac| *mac != counted_on.mac) {
        found.push(format!("its MAC address was {mac}, not {}", counted_on.mac));
    }
    let lacks = pod.parts().into_iter().filter(|part| match part {
        Part::Up(Side::Host) => !veth.up,
        // The table of a branch ENI is compared with it.
        Part::Route(Side::Host, way) => {
            way.table == TableId::PODS && !there.routes.contains(&(way.destination.ip(), veth.index))
        }
        Part::Address(Side::Host, address) => !there.addresses.contains(&(*address, veth.index)),
        // Nobody looks into the pod: that is for CHECK.
        Part::Pair | Part::Setting { .. } | Part::Gateway(_) | Part::Rule(_) => false,
        Part::Up(Side::Pod) | Part::Address(Side::Pod, _) | Part::Route(Side::Pod, _) => false,
    });
    found.extend(lacks.map(|part| part.lack(pod, When::Before)));
    found
}

/// Makes parts of the pod's inside.
fn in_pod(parts: &[Part], pod: &PodSpec, inner: IfIndex, inside: &mut Socket) -> Result<(), WireError> {
    let is_rule = |part: &Part| matches!(part, Part::Rule(_));
    for run in parts.chunk_by(|one, next| !is_rule(one) && !is_rule(next)) {
        let [part @ Part::Rule(_)] = run else {
            make(run, pod, inner, inside)?;
            continue;
        };
        match inside.batch(pod::of_part(part, pod, inner).into_iter().collect()) {
            // An ADD that is repeated finds the one of before.
            Err(error) if error.errno() == Some(Errno::EXIST) => {}
            made => made.map(drop).map_err(refused(part, pod))?,
        }
    }
    Ok(())
}

/// Makes parts of one side in one batch. None of them is the pair or a setting.
fn make(parts: &[Part], pod: &PodSpec, link: IfIndex, there: &mut Socket) -> Result<(), WireError> {
    let asks = parts.iter().filter_map(|part| pod::of_part(part, pod, link));
    there.batch(asks.collect()).map(drop).map_err(|error| {
        let part = match &error {
            SocketError::Refused { index, .. } => parts.get(*index),
            SocketError::Io(_) | SocketError::Silent | SocketError::Nonsense | SocketError::Interrupted => {
                None
            }
        };
        match part {
            Some(part) => refused(part, pod)(error),
            None => step("wire the pod")(error),
        }
    })
}

/// Says which part was refused, as the command that would have made it.
fn refused<E: std::error::Error + Send + Sync + 'static>(
    part: &Part,
    pod: &PodSpec,
) -> impl FnOnce(E) -> WireError {
    |source| WireError::Refused { command: part.command(pod, "POD"), source: Box::new(source) }
}

/// The link that an answer tells, if there is one.
pub(super) fn known(
    answer: Result<Vec<RouteNetlinkMessage>, SocketError>,
) -> Result<Option<LinkSeen>, WireError> {
    match answer {
        Ok(replies) => Ok(pod::link_in(&replies)),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(step("look at a link")(error)),
    }
}
