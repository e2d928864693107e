//! What the plugin and the daemon say to each other.
//!
//! One connection carries one request and one reply, each a frame: four bytes of length, most significant
//! first, then that many bytes of JSON. ADD and CHECK pass two descriptors with the request's first byte
//! (`SCM_RIGHTS`), in this order: the sandbox's network namespace, and a `NETLINK_ROUTE` socket that was
//! opened inside it. The daemon uses them instead of entering the namespace, so it needs no `SYS_ADMIN`.
//!
//! Versions differ for a moment during an upgrade: fields are only ever added, with a default, and
//! [`PROTOCOL`] grows when that is not enough.

mod frame;
pub mod queue;
mod report;
mod trace;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use types::{CniCode, DeviceIndex, PodName, Reason, SandboxKey, TableId, VethPrefix, VlanId};

pub use frame::{
    FRAME_BYTES_MAX, FrameError, HEADER_BYTES, REPORT_BYTES_MAX, decode, encode, encode_within, frame_len,
    frame_len_within,
};
pub use report::{
    AddressCount, AddressReport, CardReport, EniReport, Observed, PodReport, ReasonReport, Report, Waiting,
};
pub use trace::{TraceId, TraceParent, TraceParentError};

/// Version of this protocol.
pub const PROTOCOL: u16 = 1;

/// Where the daemon listens unless configured: owner root, mode 0600.
pub const SOCKET_PATH: &str = "/var/run/aws-node/aws-cni.sock";

/// Where the daemon listens whose directory this is.
#[must_use]
pub fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("aws-cni.sock")
}

/// A question to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL`] of the sender.
    pub version: u16,
    /// How long the sender waits for the reply, in milliseconds from now; the daemon answers before that.
    pub patience_ms: u32,
    /// When the sender was started: `CLOCK_BOOTTIME`, in nanoseconds.
    ///
    /// Orders requests for one sandbox: a DEL may overtake its ADD, and an ADD that started before a DEL
    /// which has been served must not bring the sandbox back.
    pub started_ns: u64,
    /// The trace that the runtime's call belongs to, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::lenient")]
    pub trace: Option<TraceParent>,
    /// What is asked.
    pub verb: Verb,
}

/// The verbs of CNI, and one of our own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Verb {
    /// Give the sandbox an address and wire it. Needs the two descriptors.
    Add(Attachment),
    /// Take both back. Succeeds for a sandbox that is not known.
    Del(Detachment),
    /// Compare what the kernel holds for the sandbox with what it should hold. Needs the two descriptors.
    Check(Attachment),
    /// Release every sandbox of `network_name` that is not in `valid`.
    Gc {
        /// Only sandboxes of this network are looked at.
        network_name: String,
        /// What stays: `cni.dev/valid-attachments` of the CNI specification.
        valid: Vec<Kept>,
    },
    /// Could an ADD be served now?
    Status,
    /// The whole state, for `ipamd status`.
    Report,
}

/// One entry of GC's list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kept {
    /// The runtime's container id.
    pub container_id: String,
    /// The interface name.
    pub if_name: String,
}

/// What ADD and CHECK are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose.
    pub sandbox: SandboxKey,
    /// `CNI_NETNS` as given; informative, the descriptor counts.
    pub netns: String,
    /// The pod, from `CNI_ARGS`; empty when the runtime names none.
    pub pod: PodName,
    /// The pod's UID, if the runtime told.
    #[serde(default)]
    pub pod_uid: String,
    /// First characters of the host interface's name.
    pub veth_prefix: VethPrefix,
    /// MTU of the pair, in bytes.
    pub mtu: u32,
    /// The pod asks for an interface with an address of every network card.
    #[serde(default, skip_serializing_if = "is_false")]
    pub multi_nic: bool,
}

/// For serde, which passes references.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What DEL is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detachment {
    /// Whose.
    pub sandbox: SandboxKey,
    /// The pod, from `CNI_ARGS`.
    pub pod: PodName,
    /// First characters of the host interface's name.
    #[serde(default)]
    pub veth_prefix: VethPrefix,
    /// Addresses that the runtime was told when the sandbox was added (`ips` of `prevResult`); none where it tells no result,
    /// as with a DEL that it repeats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// To ADD: wired, and on disk.
    Added(Added),
    /// To DEL, CHECK and STATUS: yes.
    Done,
    /// To GC.
    Collected {
        /// How many sandboxes were released.
        released: u32,
    },
    /// To Report.
    Report(Box<Report>),
    /// To anything: no.
    Failed(Failure),
}

impl Reply {
    /// Why it is no.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Added(_) | Self::Done | Self::Collected { .. } | Self::Report(_) => None,
        }
    }
}

/// What an ADD gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// One entry for each interface in the sandbox, `eth0` first.
    pub interfaces: Vec<Interface>,
}

/// One wired interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the host end.
    pub host_if: String,
    /// Name inside the sandbox.
    pub container_if: String,
    /// The address, with prefix length 32 or 128.
    pub address: IpNetwork,
    /// Its address of the other family, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<IpNetwork>,
    /// Device index of the ENI the address belongs to.
    pub device: DeviceIndex,
    /// Routing table of that ENI.
    pub table: TableId,
    /// For a pod with a branch ENI; device and table mean nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchTold>,
}

/// What is told of a branch ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchTold {
    /// The VLAN that leads to it.
    pub vlan: VlanId,
    /// The routers of its subnet, in the order of the addresses.
    pub gateways: Vec<IpAddr>,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// CNI error code.
    pub code: CniCode,
    /// Reason code.
    pub reason: Reason,
    /// One sentence for a person.
    pub message: String,
    /// The numbers and causes behind it; may be empty.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// A failure with the reason's own CNI code and no details.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { code: reason.cni_code(), reason, message: message.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}
