//! When to tell the runtime that there is a network: once, and not before an ADD would succeed.

use std::time::Duration;

use types::{Moment, NetworkCard, Reason};

use super::Node;
use super::event::Effect;

impl Node {
    /// How long the daemon has run.
    #[must_use]
    pub fn runs_for(&self, now: Moment) -> Duration {
        now.since(self.started)
    }

    /// Whether the API server has told the node object.
    #[must_use]
    pub const fn knows_cluster(&self) -> bool {
        self.cluster.is_known()
    }

    pub(super) fn publish(&mut self, now: Moment) {
        if !self.published && self.would_serve(now) {
            self.published = true;
            self.effects.push(Effect::Publish);
        }
    }

    /// Whether the next ADD would succeed: an address is free. Where the settings keep none at hand, one that can be had
    /// is enough, or pods would never come.
    fn would_serve(&self, now: Moment) -> bool {
        if self.stopping || !self.missing().is_empty() {
            return false;
        }
        let counts = self.pool.counts(now);
        if counts.free > 0 {
            return true;
        }
        // After a change of mode, or where an ENI was pulled from under pods, more may be held than the node can hold.
        let room = self.capacity().addresses > counts.total();
        let idle = room && self.may(false) && self.cloud.trouble.is_none() && !self.growing(NetworkCard(0));
        let obtainable = || self.why_pool_short(NetworkCard(0), now) == Some(Reason::PoolEmpty);
        idle && obtainable() && self.plan(now).is_some_and(|plan| plan.actions.is_empty())
    }
}
