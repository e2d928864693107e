//! The words of the allocator.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{
    Branch, DeviceIndex, EniId, HostVeth, Mac, Moment, NetworkCard, PodName, Prefix, SandboxKey, SubnetId,
};

/// An ENI as IMDS or EC2 shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniSeen {
    /// Its id.
    pub id: EniId,
    /// Its MAC address.
    pub mac: Mac,
    /// Its network card.
    pub card: NetworkCard,
    /// Its device index.
    pub device: DeviceIndex,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its primary address, never a pod's.
    pub primary_address: Ipv4Addr,
    /// Its secondary addresses, without those in prefixes.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// The prefixes delegated to it.
    #[serde(default)]
    pub prefixes: BTreeSet<Prefix>,
    /// What it is for.
    pub role: Role,
}

/// What an ENI is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The node's own; pods may use its secondary addresses; never deleted.
    Primary,
    /// Ours, for pods.
    Secondary,
    /// For pods too, and applications may use its EFA device: never deleted.
    Efa,
    /// Carries branch ENIs; left alone.
    Trunk,
    /// Somebody else's; left alone.
    Unmanaged,
}

impl EniSeen {
    /// What pods can have of it.
    #[must_use]
    pub fn given(&self) -> Given {
        Given { addresses: self.addresses.clone(), prefixes: self.prefixes.clone() }
    }
}

impl Role {
    /// Whether pods may get its addresses.
    #[must_use]
    pub const fn is_for_pods(self) -> bool {
        matches!(self, Self::Primary | Self::Secondary | Self::Efa)
    }
}

/// Why the host's kernel does not lead pods out by a secondary ENI: nobody gets an address of it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// Its link may appear any moment: what it has counts as on its way.
    Coming,
    /// It lacks the IPv6 prefix of which pods there get addresses, or the host's kernel does not know it yet: likewise.
    NoPrefix,
    /// EC2 has refused it that prefix, and is asked again: likewise, but nobody waits for it who can have something else.
    PrefixRefused,
    /// Nobody knows whether that will ever change: what it has does not count, and it goes back where it is not needed.
    Stuck,
}

impl Unready {
    /// Whether pods are about to have a way out by it.
    #[must_use]
    pub const fn is_coming(self) -> bool {
        match self {
            Self::Coming | Self::NoPrefix | Self::PrefixRefused => true,
            Self::Stuck => false,
        }
    }
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coming => "its link is not there yet",
            Self::NoPrefix => "it has no IPv6 prefix yet",
            Self::PrefixRefused => "EC2 gives it no IPv6 prefix",
            Self::Stuck => "the host's kernel does not lead pods out by it",
        })
    }
}

/// Why pods get nothing more of an ENI that is for pods: those that are there stay, and what is idle goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// Its subnet is excluded.
    Subnet,
    /// It is the primary one, and pods are to be on others.
    Primary,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subnet => "its subnet is excluded",
            Self::Primary => "with custom networking the primary ENI has no pods",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "the primary ENI",
            Self::Secondary => "a secondary ENI",
            Self::Efa => "an ENI with EFA",
            Self::Trunk => "the trunk ENI",
            Self::Unmanaged => "not ours",
        })
    }
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The sandbox.
    pub sandbox: SandboxKey,
    /// Its pod.
    pub pod: PodName,
    /// Host end of its veth pair.
    pub host_if: HostVeth,
    /// Since when.
    pub since: Moment,
    /// The IPv6 address that goes with the one it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Of which attachment's sandbox this is another interface; `None` for an attachment that the runtime has asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub further: Option<Further>,
    /// The pod's branch ENI, which has the address; no ENI of the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
}

/// Says that an attachment is a further interface of a sandbox that the runtime knows by another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Further {
    /// The attachment that the runtime knows; both come and go together.
    pub of: SandboxKey,
    /// The interface's number inside the pod, from 1 on.
    pub index: u8,
}

impl Owner {
    /// The attachment that the runtime knows.
    #[must_use]
    pub fn main(&self) -> &SandboxKey {
        self.further.as_ref().map_or(&self.sandbox, |further| &further.of)
    }

    /// The interface's number inside the pod.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.further.as_ref().map_or(0, |further| further.index)
    }
}

/// An address that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// For whom.
    pub owner: Owner,
    /// On which network cards it may be, best first.
    pub cards: Vec<NetworkCard>,
}

/// Where an address belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The ENI.
    pub eni: EniId,
    /// Its network card.
    pub card: NetworkCard,
    /// Its device index.
    pub device: DeviceIndex,
}

/// An address given to an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The address.
    pub address: Ipv4Addr,
    /// Its ENI; `None` when no ENI that has it is known (restored, and EC2 has not answered yet; or taken away behind our back).
    pub place: Option<Place>,
}

/// How many addresses are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Can be reserved now.
    pub free: u32,
    /// Reserved.
    pub reserved: u32,
    /// Assigned.
    pub assigned: u32,
    /// Cooling.
    pub cooling: u32,
}

impl Counts {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u32 {
        self.free + self.reserved + self.assigned + self.cooling
    }
}

/// Why nothing could be reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free address on network card {card}: {held} held, {cooling} cooling")]
pub struct Shortage {
    /// The network card, the best of those that would do.
    pub card: NetworkCard,
    /// Addresses reserved or assigned.
    pub held: u32,
    /// Addresses that cool.
    pub cooling: u32,
}

/// How many addresses to keep at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// `WARM_ENI_TARGET`: whole ENIs' worth of free addresses. Ignored when one of the next two is set.
    pub warm_eni: u32,
    /// `WARM_IP_TARGET`: free addresses.
    pub warm_ip: Option<u32>,
    /// `MINIMUM_IP_TARGET`: addresses in all.
    pub minimum_ip: Option<u32>,
    /// `WARM_PREFIX_TARGET`: prefixes' worth of free addresses, with [`Mode::Prefixes`]. Ignored as `warm_eni` is.
    pub warm_prefix: u32,
    /// Nobody has set a target: what is kept free follows the number of pods that start.
    pub automatic: bool,
    /// No pod fits the node beyond those that are on it already, so many of which have no address yet: with `automatic` hardly
    /// anything more is kept free.
    pub full: Option<u32>,
    /// Nothing is kept free, whatever the others say: only what ADDs wait for is asked for.
    pub demand_only: bool,
    /// Nobody is short of addresses: what pods lately needed is kept for hours, not minutes, or with `automatic` for as long as pods come
    /// and go, because giving it back and taking it again costs calls. A subnet that has refused something ends that.
    pub patient: bool,
    /// Pods the node can run: no more than so many addresses that do not cool are asked for.
    pub max_pods: Option<u32>,
    /// Excess addresses are returned at most this often.
    pub release_every: Duration,
    /// An ENI is not returned before this age, counted from when we first saw it.
    pub eni_age_min: Duration,
}

impl Targets {
    /// Whether what is kept free follows the number of pods that start.
    pub(crate) fn is_automatic(&self) -> bool {
        let by_address = (self.warm_ip.unwrap_or(0), self.minimum_ip.unwrap_or(0)) != (0, 0);
        self.automatic && !by_address && !self.demand_only
    }
}

impl Default for Targets {
    /// What the Go version does when nothing is set.
    fn default() -> Self {
        Self {
            warm_eni: 1,
            warm_ip: None,
            minimum_ip: None,
            warm_prefix: 1,
            automatic: false,
            full: None,
            demand_only: false,
            patient: false,
            max_pods: None,
            release_every: Duration::from_secs(30),
            eni_age_min: Duration::from_secs(60),
        }
    }
}

/// In which form addresses are asked for. What is there in the other form is used up and then given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Secondary addresses, one by one.
    #[default]
    Addresses,
    /// Prefixes; single addresses only where a subnet has no prefix to give.
    Prefixes,
}

impl Mode {
    /// The other one.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Addresses => Self::Prefixes,
            Self::Prefixes => Self::Addresses,
        }
    }
}

impl Targets {
    /// The targets of network cards above 0: one free address at hand, whatever the node's own are.
    #[must_use]
    pub const fn of_further_card(self) -> Self {
        Self { warm_ip: Some(1), minimum_ip: Some(1), automatic: false, ..self }
    }
}

/// What one network card can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// ENIs on the card, after `MAX_ENI`.
    pub max_enis: u8,
    /// Secondary addresses and prefixes per ENI, in any mixture.
    pub slots_per_eni: u8,
    /// The card.
    pub card: NetworkCard,
}

/// Names one call to EC2 in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActionId(pub u64);

/// How many slots of an ENI to fill, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// So many single addresses.
    Addresses(u32),
    /// So many prefixes.
    Prefixes(u32),
}

impl Wanted {
    /// So many of this form.
    #[must_use]
    pub const fn new(form: Mode, slots: u32) -> Self {
        match form {
            Mode::Addresses => Self::Addresses(slots),
            Mode::Prefixes => Self::Prefixes(slots),
        }
    }

    /// The form.
    #[must_use]
    pub const fn form(self) -> Mode {
        match self {
            Self::Addresses(_) => Mode::Addresses,
            Self::Prefixes(_) => Mode::Prefixes,
        }
    }

    /// Slots of the ENI that they take.
    #[must_use]
    pub const fn slots(self) -> u32 {
        match self {
            Self::Addresses(n) | Self::Prefixes(n) => n,
        }
    }

    /// Addresses for pods.
    #[must_use]
    pub const fn addresses(self) -> u32 {
        match self {
            Self::Addresses(n) => n,
            Self::Prefixes(n) => n.saturating_mul(Prefix::ADDRESSES),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(n) => write!(f, "{n} addresses"),
            Self::Prefixes(n) => write!(f, "{n} prefixes"),
        }
    }
}

/// Single addresses and prefixes of an ENI, as EC2 gives and takes them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Given {
    /// Single addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Prefixes.
    pub prefixes: BTreeSet<Prefix>,
}

impl Given {
    /// Single addresses only.
    #[must_use]
    pub const fn addresses(addresses: BTreeSet<Ipv4Addr>) -> Self {
        Self { addresses, prefixes: BTreeSet::new() }
    }

    /// Prefixes only.
    #[must_use]
    pub const fn prefixes(prefixes: BTreeSet<Prefix>) -> Self {
        Self { addresses: BTreeSet::new(), prefixes }
    }

    /// Whether an address is one of these, alone or in a prefix.
    #[must_use]
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains(&address) || self.prefixes.contains(&Prefix::of(address))
    }

    /// Every address that pods can have.
    pub fn all(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().copied().chain(self.prefixes.iter().flat_map(|prefix| prefix.addresses()))
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.prefixes.is_empty()
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addresses.len(), self.prefixes.len()) {
            (n, 0) => write!(f, "{n} addresses"),
            (0, n) => write!(f, "{n} prefixes"),
            (a, p) => write!(f, "{a} addresses and {p} prefixes"),
        }
    }
}

/// Something to ask EC2 for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// More addresses on an ENI.
    Assign {
        /// Which.
        eni: EniId,
        /// What.
        wanted: Wanted,
    },
    /// A new ENI.
    CreateEni {
        /// The network card.
        card: NetworkCard,
        /// Where on it.
        device: DeviceIndex,
        /// The subnet it is made in.
        subnet: SubnetId,
        /// What it comes with.
        wanted: Wanted,
    },
    /// Give addresses back.
    Release {
        /// Whose.
        eni: EniId,
        /// Which; all free, and either single addresses or prefixes.
        given: Given,
    },
    /// Detach and delete an ENI that no pod uses.
    DeleteEni {
        /// Which.
        eni: EniId,
    },
}

/// What a call takes away from the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// From this ENI.
    pub eni: EniId,
    /// These; `None` for the ENI itself with all that it has.
    pub given: Option<Given>,
}

impl Action {
    /// What it takes away.
    #[must_use]
    pub fn leaving(&self) -> Option<Leaving> {
        match self {
            Self::Release { eni, given } => Some(Leaving { eni: eni.clone(), given: Some(given.clone()) }),
            Self::DeleteEni { eni } => Some(Leaving { eni: eni.clone(), given: None }),
            Self::Assign { .. } | Self::CreateEni { .. } => None,
        }
    }

    /// The ENI it is about; a new one has no name yet.
    #[must_use]
    pub const fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Assign { eni, .. } | Self::Release { eni, .. } | Self::DeleteEni { eni } => Some(eni),
            Self::CreateEni { .. } => None,
        }
    }

    /// How many slots it fills of an ENI that is there.
    pub(crate) const fn fills(&self) -> u32 {
        match self {
            Self::Assign { wanted, .. } => wanted.slots(),
            Self::CreateEni { .. } | Self::Release { .. } | Self::DeleteEni { .. } => 0,
        }
    }

    /// How many addresses it brings.
    #[must_use]
    pub const fn brings(&self) -> u32 {
        match self {
            Self::Assign { wanted, .. } | Self::CreateEni { wanted, .. } => wanted.addresses(),
            Self::Release { .. } | Self::DeleteEni { .. } => 0,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assign { eni, wanted } => write!(f, "assign {wanted} to {eni}"),
            Self::CreateEni { card: NetworkCard(0), device, subnet, wanted } => {
                write!(f, "create an ENI with {wanted} at device {device} in {subnet}")
            }
            Self::CreateEni { card, device, subnet, wanted } => {
                write!(f, "create an ENI with {wanted} at device {device} of network card {card} in {subnet}")
            }
            Self::Release { eni, given } => write!(f, "release {given} of {eni}"),
            Self::DeleteEni { eni } => write!(f, "delete {eni}"),
        }
    }
}

/// How a call to EC2 ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// These were assigned; may be fewer than asked for.
    Assigned(Given),
    /// This ENI was created, attached, and its link is ready.
    Created(Box<EniSeen>),
    /// The addresses were given back.
    Released,
    /// The ENI is gone.
    Deleted,
    /// Nothing happened: the subnet has not as many as were asked for.
    Scarce,
    /// Nothing happened.
    Failed,
    /// It may have happened: only the next look tells.
    Unclear,
}

/// Something that a look at EC2 has changed, worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// An ENI joined.
    EniJoined(EniId, usize),
    /// An ENI is gone.
    EniLeft(EniId),
    /// Addresses joined an ENI.
    Joined(EniId, BTreeSet<Ipv4Addr>),
    /// Addresses left an ENI.
    Left(EniId, BTreeSet<Ipv4Addr>),
    /// An address that a sandbox holds is no longer on any ENI of ours.
    Lost(Ipv4Addr, SandboxKey),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EniJoined(eni, n) => write!(f, "{eni} joined with {n} addresses"),
            Self::EniLeft(eni) => write!(f, "{eni} is gone"),
            Self::Joined(eni, a) => write!(f, "{} addresses joined {eni}", a.len()),
            Self::Left(eni, a) => write!(f, "{} addresses left {eni}", a.len()),
            Self::Lost(a, sandbox) => write!(f, "{a} of sandbox {sandbox} is on no ENI of ours any more"),
        }
    }
}
