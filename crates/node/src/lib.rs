//! The decisions of the daemon: events in, effects out.
//!
//! Pure: no I/O, no clock, no task; `ipamd` tells what happened, and does what is said. It is a crate of its own because the simulator
//! runs it a hundred million times: this is what is compiled with optimisation, and `ipamd` with the crates that it needs is not.
//!
//! | module | what is in it |
//! |---|---|
//! | `node` | the one owner of the state; all that it exports is exported here |
//! | `families` | which addresses pods get |
//! | `cloud` | EC2 in our words: what goes wrong there |
//! | `cluster` | Kubernetes in our words: what it says, what is said to it |
//! | `store` | the lines of the state file |
//! | `checkpoint` | the Go version's checkpoint |
//! | `hold` | what an operator holds back |
//! | `status` | the report that `ipamd status` shows, as long as there is nothing to show |
//! | `clock` | pauses |

mod chain;
pub mod checkpoint;
pub mod clock;
pub mod cloud;
pub mod cluster;
pub mod families;
pub mod hold;
mod node;
pub mod status;
pub mod store;

pub use chain::chain;
pub use node::{
    AUDIT_EVERY, BatchId, CallId, Chore, Effect, Event, Facts, GLANCE_EVERY, HostMade, HostWish, Node,
    Picture, PodInKernel, RELEASED_KEPT, REPAIR_EVERY, Remembered, Replayed, Restored, Settings, Stray,
    Subnets, is_placeholder, pods_among, replay, restore,
};
