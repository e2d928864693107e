//! What the kernel of a node should hold, and how to make it so.
//!
//! ```text
//!   NodeSpec, PodSpec --desired--> KernelState --diff--> ops --kernel--> netlink
//!                     the kernel's --observe-->
//! ```
//!
//! `model`, `desired`, `branch`, `diff`, `seen`, `leftovers` and `mark` are pure; `kernel` and `netfilter` talk to the kernel, `watch` hears what
//! others change. Teardown is the difference against nothing, repair the difference after a change.
//!
//! Two clients talk netlink, both our own and blocking, each on threads of its own. They read a dump to its last message, which says whether it is
//! whole, and wait for an answer no longer than a few seconds:
//!
//! - `kernel::socket`: pods and the host. An ADD is a batch of requests in one system call, in a namespace of others too, over a
//!   socket that somebody else opened; what is the host's (`kernel::host`) is one request after the other, never on the path of an ADD.
//! - `netfilter::socket`, our own: nf_tables, of which all must be one transaction, in messages that no crate has.
//!
//! | priority | rule | looks up | how many |
//! |---|---|---|---|
//! | 0 | ICMPv6 from the VPC's router | local | 1, on IPv6 nodes with strict branch ENIs |
//! | 10 | by the link of a strict pod or its VLAN | 100 + VLAN: the branch ENI's table | 2 per such pod and family |
//! | 20 | everything | local, in place of the kernel's rule 0 | 1 of each family, with strict branch ENIs |
//! | 512 | everything | 51200: one route per pod | 1, and 1 of IPv6 where pods have that |
//! | 1024 | connection mark (0x80) | main | 1 |
//! | 1535 | to an external service's range | main | 1 per range in settings |
//! | 1536 | mark of a secondary ENI | that ENI's table | 1 per secondary ENI |
//! | 1536 | from a pod with a branch ENI that is not strict | the branch ENI's table | 1 per such pod and address |
//! | 32765 | from a secondary ENI's own address | that ENI's table | 1 per secondary ENI |
//! | 32766 | everything | main | the kernel's own, put back where it is gone |
//!
//! IPv6 addresses are all of one prefix of the primary ENI, or translated to the node's: their packets leave by the main
//! table without being steered.

mod branch;
pub mod desired;
mod diff;
mod kernel;
mod leftovers;
mod mark;
mod model;
pub mod netfilter;
mod seen;
mod watch;
mod wiring;

pub use branch::{BranchLack, PRIORITY as BRANCH_PRIORITY, branch_lacks, branch_rules};
pub use diff::{Op, diff};
pub use kernel::{
    Converged, Half, Host, KernelError, MendError, Mended, Mending, PodSeen, Refusal, TRASH_GROUP, WireError,
    Wirer, put_sysctl_below, read_sysctl,
};
pub use leftovers::{Former, GoRule, Leftovers, Removal, removable};
pub use mark::{MarkError, Marks};
pub use model::{
    Address, EniSpec, Family, IfIndex, KernelState, LinkSeen, LinkState, NodeSpec, PodSpec, Route, Rule,
    RulePriority, Selector, Sysctl, TrunkSpec,
};
pub use seen::{HostSeen, Maker, RouteSeen, RuleSeen};
pub use watch::{Ours, Watch};
pub use wiring::{Part, Side, Way};

/// Number by which routes and rules of ours can be told (`rtm_protocol`, `FRA_PROTOCOL`).
pub const PROTOCOL: u8 = 0x56;
