//! The words of the allocator.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{DeviceIndex, EniId, HostVeth, Mac, Moment, NetworkCard, PodName, SandboxKey, SubnetId};

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
    /// Its secondary addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
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
    /// Carries branch ENIs; left alone.
    Trunk,
    /// Somebody else's; left alone.
    Unmanaged,
}

impl Role {
    /// Whether pods may get its addresses.
    #[must_use]
    pub const fn is_for_pods(self) -> bool {
        matches!(self, Self::Primary | Self::Secondary)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "the primary ENI",
            Self::Secondary => "a secondary ENI",
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

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            free: self.free + other.free,
            reserved: self.reserved + other.reserved,
            assigned: self.assigned + other.assigned,
            cooling: self.cooling + other.cooling,
        }
    }
}

/// Why nothing could be reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free address: {held} held, {cooling} cooling")]
pub struct Shortage {
    /// Addresses reserved or assigned.
    pub held: u32,
    /// Addresses that cool.
    pub cooling: u32,
    /// When the first of them is free again.
    pub next_free: Option<Moment>,
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
    /// Pods the node can run: no more than so many addresses that do not cool are asked for.
    pub max_pods: Option<u32>,
    /// Excess addresses are returned at most this often.
    pub release_every: Duration,
    /// An ENI is not returned before this age, counted from when we first saw it.
    pub eni_age_min: Duration,
}

impl Default for Targets {
    /// What the Go version does when nothing is set.
    fn default() -> Self {
        Self {
            warm_eni: 1,
            warm_ip: None,
            minimum_ip: None,
            max_pods: None,
            release_every: Duration::from_secs(30),
            eni_age_min: Duration::from_secs(60),
        }
    }
}

/// What the instance can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// ENIs on the card, after `MAX_ENI`.
    pub max_enis: u8,
    /// Secondary addresses per ENI.
    pub slots_per_eni: u8,
    /// The card.
    pub card: NetworkCard,
}

/// Names one call to EC2 in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActionId(pub u64);

/// Something to ask EC2 for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// More secondary addresses on an ENI.
    AssignAddresses {
        /// Which.
        eni: EniId,
        /// How many.
        count: u32,
    },
    /// A new ENI with addresses.
    CreateEni {
        /// Where it is attached.
        device: DeviceIndex,
        /// How many secondary addresses it comes with.
        addresses: u32,
    },
    /// Give addresses back.
    ReleaseAddresses {
        /// Whose.
        eni: EniId,
        /// Which; all free.
        addresses: BTreeSet<Ipv4Addr>,
    },
    /// Detach and delete an ENI that no pod uses.
    DeleteEni {
        /// Which.
        eni: EniId,
    },
}

impl Action {
    /// The ENI it is about; a new one has no name yet.
    #[must_use]
    pub const fn eni(&self) -> Option<&EniId> {
        match self {
            Self::AssignAddresses { eni, .. }
            | Self::ReleaseAddresses { eni, .. }
            | Self::DeleteEni { eni } => Some(eni),
            Self::CreateEni { .. } => None,
        }
    }

    /// How many addresses it brings.
    pub(crate) const fn brings(&self) -> u32 {
        match self {
            Self::AssignAddresses { count, .. } => *count,
            Self::CreateEni { addresses, .. } => *addresses,
            Self::ReleaseAddresses { .. } | Self::DeleteEni { .. } => 0,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AssignAddresses { eni, count } => write!(f, "assign {count} addresses to {eni}"),
            Self::CreateEni { device, addresses } => {
                write!(f, "create an ENI with {addresses} addresses at device {device}")
            }
            Self::ReleaseAddresses { eni, addresses } => {
                write!(f, "release {} addresses of {eni}", addresses.len())
            }
            Self::DeleteEni { eni } => write!(f, "delete {eni}"),
        }
    }
}

/// How a call to EC2 ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// These addresses were assigned; may be fewer than asked for.
    Assigned(BTreeSet<Ipv4Addr>),
    /// This ENI was created, attached, and its link is ready.
    Created(Box<EniSeen>),
    /// The addresses were given back.
    Released,
    /// The ENI is gone.
    Deleted,
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
