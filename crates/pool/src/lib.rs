//! The allocator: which addresses the node has, who has which, and what to ask EC2 for next.
//!
//! Pure: state in, plan out; time is an argument; ordered maps only, so that the same history gives the same
//! answer. An address is in one of these states, and *cooling is not free*:
//!
//! ```text
//!   (absent) --finish/observe--> free --reserve--> reserved --commit--> assigned
//!                                | ^  <--cancel-----'                       |
//!              <--finish-- leaving '---- cooldown over ---- cooling <--release
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `model.rs` | the words |
//! | `pool.rs` | the state, and how pods get and give back addresses |
//! | `cloud.rs` | what EC2 says: pictures of the ENIs, and calls that begin and end |
//! | `aim.rs` | how many addresses there should be: the targets as one rule |
//! | `plan.rs` | what to ask EC2 for next, and why |
//! | `books.rs` | what must always be true |
//! | `scarcity.rs` | what subnets could not give, and when to ask again |
//! | `snapshot.rs` | what survives a restart |
//!
//! Deviations from the Go version's arithmetic, each with its reason:
//!
//! - cooling addresses are not available, so that a small pool grows when pods churn instead of failing them;
//! - ADDs that wait count as demand, so that the pool grows by what is needed at once instead of by steps, and
//!   also where only `MINIMUM_IP_TARGET` is set or maxPods is reached;
//! - the fullest ENI with room is used first, so that others empty and can be given back;
//! - a plan asks for all that is missing, on as many ENIs as it takes, instead of one ENI every five seconds;
//! - growth stops exactly at maxPods usable addresses instead of at the first step beyond;
//! - prefixes of which a subnet has none are replaced by single addresses, for ENIs in that subnet and for a time;
//! - after a change of mode, free addresses of the other form do not count, and go back once those of the new form
//!   are there, instead of before;
//! - with no target set, the pool follows the pods: 12 free addresses on a quiet node, more while many start;
//! - an ENI is given back only if the pool would not want one again right after.

mod aim;
mod books;
mod cloud;
mod model;
mod plan;
mod pool;
mod scarcity;
mod snapshot;

pub use books::Violation;
pub use cloud::PICTURE_LAG;
pub use model::{
    Action, ActionId, Counts, EniSeen, Given, Grant, Leaving, Limits, Mode, Note, Outcome, Owner, Place,
    Role, Shortage, Targets, Wanted,
};
pub use plan::{KeptReason, Plan, Planned, Why};
pub use pool::Pool;
pub use snapshot::Snapshot;

#[cfg(test)]
mod tests;
