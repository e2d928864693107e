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
//! | `host.rs` | what the host's kernel is ready for, and how it leads pods out |
//! | `aim.rs` | how many addresses there should be: the targets as one rule |
//! | `plan.rs` | what to ask EC2 for next or to give back to it, and why |
//! | `books.rs` | what must always be true |
//! | `surplus.rs` | what has been to spare for a while |
//! | `scarcity.rs` | what subnets could not give, and when to ask again |
//! | `snapshot.rs` | what survives a restart |
//!
//! Where this differs from the Go version's arithmetic, `ARCHITECTURE.md` says why ("Deviations").

mod aim;
mod books;
mod cloud;
mod host;
mod model;
mod plan;
mod pool;
mod scarcity;
mod snapshot;
mod surplus;

pub use books::Violation;
pub use cloud::{PICTURE_LAG, PICTURE_LAG_MAX};
pub use model::{
    Action, ActionId, Counts, EniSeen, Exclusion, Further, Given, Grant, Leaving, Limits, Mode, Note,
    Outcome, Owner, Place, Role, Shortage, Targets, Unready, Want, Wanted,
};
pub use plan::{KeptReason, Plan, Planned, Why};
pub use pool::Pool;
pub use snapshot::{Left, Snapshot};

#[cfg(test)]
mod tests;
