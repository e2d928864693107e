//! The host part: links, addresses, routes and rules. Blocking, and never on the path of an ADD or DEL.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use types::{Mac, TableId};

use super::answer::Answer;
use super::message::number_of;
use super::socket::{Socket, SocketError};
use super::{KernelError, Refusal, branch, leftovers, message, sysctl};
use crate::desired;
use crate::diff::{Op, diff, halves};
use crate::leftovers::{Former, Leftovers, removable};
use crate::model::{Address, EniSpec, Family, IfIndex, LinkSeen, NodeSpec, PodSpec};
use crate::seen::{HostSeen, Maker, RouteSeen, RuleSeen};

/// How often the state is compared and changed. One change may undo another (removing an address also removes
/// those that were added to its subnet after it), and the second round mends that.
const ROUNDS_MAX: u32 = 4;

/// What [`Host::converge`] did.
#[derive(Debug, Default)]
pub struct Converged {
    /// Changes made, as the commands that would make them.
    pub changes: Vec<String>,
    /// ENIs whose link is not there (yet).
    pub missing: Vec<Mac>,
    /// Links by MAC.
    pub links: BTreeMap<Mac, LinkSeen>,
    /// What the kernel refused; all the rest was done nevertheless.
    pub refused: Vec<Refusal>,
    /// Kernel settings that could not be set; all else is there without them.
    pub unset: Vec<Refusal>,
    /// Changes of the last round: somebody keeps undoing them.
    pub undone: Vec<String>,
}

/// [`Host::converge`] half done: what was missing is there.
#[derive(Debug)]
pub struct Half {
    done: Converged,
    rest: Vec<Op>,
    seen: HostSeen,
}

impl Half {
    /// Links by MAC.
    #[must_use]
    pub const fn links(&self) -> &BTreeMap<Mac, LinkSeen> {
        &self.done.links
    }
}

/// The host's kernel. One owner: `&mut self` keeps one dump in flight, as the kernel wants it.
#[derive(Debug)]
pub struct Host {
    socket: Socket,
    port: u32,
}

/// Unicast routes, and the tables that end with a refusal.
type Routes = (Vec<RouteSeen>, BTreeSet<(Family, TableId)>);

impl Host {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, KernelError> {
        let mut socket = Socket::open().map_err(KernelError::Socket)?;
        let port = socket.port().map_err(KernelError::Socket)?;
        Ok(Self { socket, port })
    }

    /// The port of its socket: notices of our own changes carry it.
    #[must_use]
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Makes the kernel hold what the node needs; with `pods`, also their routes and no others in the pods' table.
    ///
    /// Does all it can: one refused change does not keep the others from being made.
    ///
    /// # Errors
    /// When the kernel cannot be read, or an ENI has no mark.
    pub fn converge(&mut self, spec: &NodeSpec, pods: Option<&[PodSpec]>) -> Result<Converged, KernelError> {
        let half = self.add(spec, pods)?;
        self.finish(spec, pods, half, true)
    }

    /// The first half of [`Self::converge`]: adds what is missing, and removes nothing. After that packets can be given the marks that
    /// `spec` says, and then [`Self::finish`] removes what no longer serves.
    ///
    /// # Errors
    /// As for [`Self::converge`].
    pub fn add(&mut self, spec: &NodeSpec, pods: Option<&[PodSpec]>) -> Result<Half, KernelError> {
        let mut done = Converged::default();
        let (rest, seen) = self.add_missing(spec, pods, &mut done)?;
        Ok(Half { done, rest, seen })
    }

    /// The second half. `marked` says that packets have the marks of `spec`: where they may still have others, rules for those stay,
    /// for a packet with a mark that has no rule leaves by the primary ENI.
    ///
    /// # Errors
    /// As for [`Self::converge`].
    pub fn finish(
        &mut self,
        spec: &NodeSpec,
        pods: Option<&[PodSpec]>,
        half: Half,
        marked: bool,
    ) -> Result<Converged, KernelError> {
        let Half { mut done, mut rest, mut seen } = half;
        for round in 1.. {
            rest.retain(|op| marked || !op.is_by_mark());
            let made = self.make(&rest, spec, &seen, &mut done.refused)?;
            done.changes.extend(made.iter().cloned());
            done.undone.extend(made);
            if done.undone.is_empty() {
                break;
            }
            if !done.refused.is_empty() {
                done.undone.clear();
                break;
            }
            if round == ROUNDS_MAX {
                break;
            }
            (rest, seen) = self.add_missing(spec, pods, &mut done)?;
        }
        let macs = spec.enis.iter().map(|eni| eni.mac);
        done.missing = macs.filter(|mac| !done.links.contains_key(mac)).collect();
        Ok(done)
    }

    /// The first half of a round; returns the second, and what the kernel held before.
    fn add_missing(
        &mut self,
        spec: &NodeSpec,
        pods: Option<&[PodSpec]>,
        done: &mut Converged,
    ) -> Result<(Vec<Op>, HostSeen), KernelError> {
        let seen = self.look()?;
        done.links = seen.by_mac();
        let want = desired::host(spec, pods.unwrap_or_default(), &seen)?;
        let (additions, rest) = halves(diff(&want, &seen.ours(spec, pods.is_some())));
        done.undone = self.make(&additions, spec, &seen, &mut done.refused)?;
        done.changes.extend(done.undone.iter().cloned());
        set_all(spec, done);
        Ok((rest, seen))
    }

    /// Removes what the Go version has left and ours does too. Call it once ours is in place; `ready` is what of the node it is in
    /// place for.
    ///
    /// # Errors
    /// When the kernel cannot be read or refused something.
    pub fn take_over(
        &mut self,
        spec: &NodeSpec,
        ready: &NodeSpec,
        former: &Former,
    ) -> Result<Vec<String>, KernelError> {
        let mut removed = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let removals = removable(&self.leftovers()?, ready, former);
            if removals.is_empty() {
                break;
            }
            for removal in removals {
                let (request, flags) = leftovers::of_removal(&removal);
                match self.ask(request, flags)? {
                    None => removed.push(removal.command()),
                    // Gone already, or there already.
                    Some(answer)
                        if matches!(answer.errno(), Some(Errno::NOENT | Errno::SRCH | Errno::EXIST)) => {}
                    Some(answer) => {
                        return Err(KernelError::Refused(vec![Refusal {
                            eni: None,
                            command: removal.command(),
                            answer,
                        }]));
                    }
                }
            }
            // Of two rules that differ by their maker alone the kernel has removed the first, which may have been ours.
            self.converge(spec, None)?;
        }
        Ok(removed)
    }

    fn leftovers(&mut self) -> Result<Leftovers, KernelError> {
        let mut seen = Leftovers::default();
        for family in Family::ALL {
            for message in self.dump_of(family, "rules", &leftovers::list_rules(family))? {
                if let RouteNetlinkMessage::NewRule(message) = message {
                    leftovers::see_rule(&mut seen, &message);
                }
            }
            let mut ask = RouteMessage::default();
            ask.header.address_family = number_of(family);
            for message in self.dump_of(family, "routes", &RouteNetlinkMessage::GetRoute(ask))? {
                let RouteNetlinkMessage::NewRoute(message) = message else { continue };
                seen.routes.extend(leftovers::to_pod_route(&message));
                let ours = message::to_route(&message)
                    .filter(|(maker, route)| *maker == Maker::We && route.table == TableId::PODS);
                seen.ours.extend(ours.map(|(_, route)| (route.destination, route.link)));
            }
        }
        Ok(seen)
    }

    /// Makes changes; returns the commands of those that changed something.
    fn make(
        &mut self,
        ops: &[Op],
        spec: &NodeSpec,
        seen: &HostSeen,
        refused: &mut Vec<Refusal>,
    ) -> Result<Vec<String>, KernelError> {
        let (names, links) = (seen.names(), seen.by_mac());
        let mut made = Vec::new();
        for op in ops {
            match self.apply(op)? {
                None => made.push(op.command(&names)),
                Some(answer) if already_so(op, answer.errno()) => {}
                Some(answer) => {
                    refused.push(Refusal {
                        eni: eni_of(op, spec, &links),
                        command: op.command(&names),
                        answer,
                    });
                }
            }
        }
        Ok(made)
    }

    /// Everything that concerns us. Changes nothing.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn look(&mut self) -> Result<HostSeen, KernelError> {
        let dump = self.told("links", &RouteNetlinkMessage::GetLink(message::any_link()))?;
        let links = dump.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(message::to_link(message)),
            _ => None,
        });
        let links = links.collect();
        let (routes, refusals) = self.routes()?;
        let (rules, addresses) = (self.rules()?, self.addresses()?);
        Ok(HostSeen { links, rules, routes, addresses, refusals: Some(refusals) })
    }

    fn rules(&mut self) -> Result<Vec<RuleSeen>, KernelError> {
        let mut rules = Vec::new();
        for family in Family::ALL {
            let dump = self.dump_of(family, "rules", &leftovers::list_rules(family))?;
            rules.extend(dump.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(message) => message::any_rule(message),
                _ => None,
            }));
        }
        Ok(rules)
    }

    fn routes(&mut self) -> Result<Routes, KernelError> {
        let (mut routes, mut refusals) = (Vec::new(), BTreeSet::new());
        for family in Family::ALL {
            let mut ask = RouteMessage::default();
            ask.header.address_family = number_of(family);
            let dump = self.dump_of(family, "routes", &RouteNetlinkMessage::GetRoute(ask))?;
            for message in dump {
                let RouteNetlinkMessage::NewRoute(message) = message else { continue };
                let told = message::to_route(&message);
                if message.header.kind == RouteType::Unicast {
                    routes.extend(told.map(|(maker, route)| RouteSeen { maker, route }));
                } else if branch::is_refusal(&message) {
                    refusals.extend(told.map(|(_, route)| (family, route.table)));
                }
            }
        }
        Ok((routes, refusals))
    }

    fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        let mut inet = AddressMessage::default();
        inet.header.family = AddressFamily::Inet;
        let dump = self.told("addresses", &RouteNetlinkMessage::GetAddress(inet))?;
        let addresses = dump.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => message::to_address(message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// All objects of a kind.
    fn told(
        &mut self,
        what: &'static str,
        ask: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.socket.dump(ask).map_err(|error| unread(what, error))
    }

    /// All objects of a kind and a family; none of IPv6 where the kernel lacks that.
    fn dump_of(
        &mut self,
        family: Family,
        what: &'static str,
        ask: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        match self.socket.dump(ask) {
            Err(error) if family == Family::V6 && error.errno() == Some(Errno::AFNOSUPPORT) => Ok(Vec::new()),
            told => told.map_err(|error| unread(what, error)),
        }
    }

    /// Makes one change; the kernel's refusal, if there is one.
    fn apply(&mut self, op: &Op) -> Result<Option<Answer>, KernelError> {
        let (message, flags) = message::of_op(op);
        self.ask(message, flags)
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Option<Answer>, KernelError> {
        match self.socket.batch(vec![(message, flags)]) {
            Ok(_) => Ok(None),
            Err(SocketError::Refused { answer, .. }) => Ok(Some(answer)),
            Err(error) => Err(unread("answers", error)),
        }
    }
}

fn unread(what: &'static str, error: SocketError) -> KernelError {
    match error {
        SocketError::Interrupted => KernelError::Interrupted(what),
        error => KernelError::Read { what, source: Box::new(error) },
    }
}

/// Which ENI a change is for; none for what is the whole node's.
fn eni_of(op: &Op, spec: &NodeSpec, links: &BTreeMap<Mac, LinkSeen>) -> Option<Mac> {
    let on = |index: IfIndex| {
        let has = |mac: &Mac| links.get(mac).is_some_and(|link| link.index == index);
        spec.enis.iter().map(|eni| eni.mac).find(has)
    };
    match op {
        Op::SetLink { link, .. } => on(*link),
        Op::AddAddress(address) | Op::DelAddress(address) => on(address.link),
        Op::AddRoute(route) | Op::DelRoute(route) => on(route.link),
        Op::AddRule(rule) | Op::DelRule(rule) => {
            let mut secondary = spec.enis.iter().filter(|eni| !eni.is_primary());
            secondary.find(|eni| eni.table() == rule.table).map(|eni| eni.mac)
        }
    }
}

/// Kernel settings, before packets are steered to links that are new. What could not be set is tried again in each round.
fn set_all(spec: &NodeSpec, done: &mut Converged) {
    done.unset.clear();
    for setting in desired::sysctls(spec, &done.links) {
        let command = format!("sysctl -w {}={}", setting.path, setting.value);
        match sysctl::put(&setting) {
            Ok(false) => {}
            Ok(true) => done.changes.push(command),
            Err(errno) => {
                // The fourth part of a setting's path is the link, where there is one.
                let link = setting.path.split('/').nth(3);
                let named =
                    |eni: &&EniSpec| done.links.get(&eni.mac).is_some_and(|seen| Some(&*seen.name) == link);
                let eni = spec.enis.iter().find(named).map(|eni| eni.mac);
                done.unset.push(Refusal { eni, command, answer: Answer { errno, detail: String::new() } });
            }
        }
    }
}

/// Whether an errno says that the kernel is as it should be: that something is there already, or gone already.
fn already_so(op: &Op, errno: Option<Errno>) -> bool {
    match op {
        Op::AddAddress(_) | Op::AddRoute(_) | Op::AddRule(_) => errno == Some(Errno::EXIST),
        Op::DelAddress(_) | Op::DelRoute(_) | Op::DelRule(_) => {
            matches!(errno, Some(Errno::NOENT | Errno::SRCH | Errno::NODEV | Errno::ADDRNOTAVAIL))
        }
        Op::SetLink { .. } => false,
    }
}
