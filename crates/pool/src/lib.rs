//! The allocator: which addresses the node has, who has which, and what to ask EC2 for next.
//!
//! Pure: state in, plan out; time is an argument; ordered maps only, so that the same history gives the same
//! answer. An address is in one of four states, and *cooling is not free*:
//!
//! ```text
//!   (absent) --finish/observe--> free --reserve--> reserved --commit--> assigned
//!                                 ^  <--cancel-----'                       |
//!                                 '---- cooldown over ---- cooling <--release
//! ```
//!
//! Deviations from the Go version's arithmetic, each with its reason:
//!
//! - cooling addresses are not available, so that a small pool grows when pods churn instead of failing them;
//! - ADDs that wait count as demand, so that the pool grows by what is needed at once instead of by steps;
//! - the fullest ENI with room is used first, so that others empty and can be given back.

mod model;
mod plan;
mod pool;
mod snapshot;

pub use model::{
    Action, ActionId, Counts, EniSeen, Grant, Limits, Note, Outcome, Owner, Place, Role, Shortage, Targets,
};
pub use plan::{Plan, Planned};
pub use pool::{Pool, Violation};
pub use snapshot::Snapshot;
