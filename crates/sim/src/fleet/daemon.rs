//! What both daemons have in common: what happens to them, and what they want of the world.

use std::time::Duration;

use node::CallId;
use types::Moment;

use super::errand::Errand;
use super::instance::Instance;
use super::original::Original;
use super::ours::Ours;

/// How long the kernel takes to wire a pod.
pub(crate) const WIRING: Duration = Duration::from_millis(2);

/// One attempt of the kubelet to start a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) pod: u32,
    pub(crate) attempt: u32,
}

/// Something that happens to a daemon.
#[derive(Debug)]
pub(crate) enum Happening {
    /// Its process starts.
    Start,
    Add(Sandbox),
    Del(Sandbox),
    /// The kernel has wired the pod of this call.
    Wired(CallId),
    /// Instance metadata has told the ENIs.
    Glanced,
    /// An errand has ended.
    Done(Box<Errand>),
    /// Its wakeup is due.
    Tick,
    /// The original's search for forgotten ENIs is due.
    Sweep,
}

/// Something a daemon wants.
#[derive(Debug)]
pub(crate) enum Want {
    Run(Errand),
    /// To be told this later.
    Hear(Duration, Happening),
    /// The runtime to hear how an ADD went, after this time.
    Answer(Sandbox, bool, Duration),
    /// The kubelet to know that pods can start.
    Ready,
}

/// One of the two.
#[derive(Debug)]
pub(crate) enum Daemon {
    Ours(Box<Ours>),
    Original(Box<Original>),
}

impl Daemon {
    /// Takes in what happened; gives what it wants, in order.
    pub(crate) fn handle(&mut self, happening: Happening, instance: &Instance, now: Moment) -> Vec<Want> {
        match self {
            Self::Ours(ours) => ours.handle(happening, instance, now),
            Self::Original(original) => original.handle(happening, instance, now),
        }
    }

    /// When it wants a [`Happening::Tick`].
    pub(crate) fn wakeup(&self, now: Moment) -> Moment {
        match self {
            Self::Ours(ours) => ours.wakeup(now),
            Self::Original(original) => original.wakeup(),
        }
    }
}
