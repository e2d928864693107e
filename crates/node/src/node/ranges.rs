//! Ranges of subnets: the ways out of an ENI are made of its subnet's.
//!
//! EC2 tells those of the zone where it may be asked. Where it may not, instance metadata tells that of an ENI once it is attached,
//! and so an ENI can be made without: until its range is known it waits outside of the pool, as it does for its link.

use std::time::Duration;

use ipnetwork::Ipv4Network;
use pool::EniSeen;
use types::{Moment, Reason, SubnetId};

use super::Node;
use super::event::{Effect, Picture};
use crate::chain;
use crate::cloud::CloudError;

/// Pause before instance metadata is asked again for a range that it did not tell.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is under way to learn a range.
#[derive(Debug, Default)]
pub(super) struct RangeState {
    asking: bool,
    ask_at: Moment,
    /// Why the last one was not learnt.
    trouble: Option<String>,
}

impl Node {
    /// Whether an ENI that pods are to use is in a subnet whose range is not known.
    pub(super) fn lacks_range(&self, eni: &EniSeen) -> bool {
        eni.role.is_for_pods() && !self.subnets.contains_key(&eni.subnet)
    }

    /// An ENI whose range is not known: a new one, or one that could not wait for it outside of the pool any longer.
    fn without_range(&self) -> Option<&EniSeen> {
        let new = self.host.settling.iter().filter_map(|settling| settling.gain.new_eni());
        new.chain(self.pool.seen()).find(|eni| self.lacks_range(eni))
    }

    /// Has instance metadata asked for the range of a new ENI's subnet, one at a time.
    pub(super) fn learn_ranges(&mut self, now: Moment) {
        if self.ranges.asking || self.ranges.ask_at > now {
            return;
        }
        if let Some((subnet, mac)) = self.without_range().map(|eni| (eni.subnet.clone(), eni.mac)) {
            self.ranges.asking = true;
            self.effects.push(Effect::AskRange(subnet, mac));
        }
    }

    pub(super) fn ranges_wakeup(&self) -> Option<Moment> {
        (!self.ranges.asking && self.without_range().is_some()).then_some(self.ranges.ask_at)
    }

    /// Instance metadata has told a subnet's range, or not.
    pub(super) fn range_told(
        &mut self,
        subnet: SubnetId,
        told: Result<Ipv4Network, CloudError>,
        now: Moment,
    ) {
        self.ranges.asking = false;
        let own = self.without_range().filter(|eni| eni.subnet == subnet).map(|eni| eni.primary_address);
        let trouble = match (told, own) {
            (Ok(range), Some(own)) if !range.contains(own) => {
                format!("instance metadata says that {subnet} is {range}, in which {own} is not")
            }
            (Ok(range), _) => {
                tracing::info!(%subnet, %range, "the range of a subnet is learnt");
                self.subnets.insert(subnet, range);
                self.ranges.trouble = None;
                self.host.dirty = true;
                return;
            }
            (Err(error), _) => format!("the range of {subnet} is not told: {}", chain(&error)),
        };
        tracing::warn!("{trouble}");
        self.ranges.trouble = Some(trouble);
        self.ranges.ask_at = now.plus(self.cloud.jitter(ASK_AGAIN));
    }

    /// Leaves out of a picture the ENIs that join with it and whose ways out nobody could make yet. Their places are taken all
    /// the same. Returns whether there are such.
    pub(super) fn leave_out_unknown_ranges(&self, picture: &mut Picture) -> bool {
        let known = self.pool.enis();
        let new = |eni: &EniSeen| known.iter().all(|known| known.id != eni.id);
        let (out, rest): (Vec<EniSeen>, Vec<EniSeen>) =
            std::mem::take(&mut picture.enis).into_iter().partition(|eni| self.lacks_range(eni) && new(eni));
        picture.enis = rest;
        for EniSeen { id, subnet, card, device, .. } in &out {
            tracing::warn!(eni = %id, %subnet, "an ENI waits for the range of its subnet");
            picture.occupied.insert((*card, *device));
        }
        !out.is_empty()
    }

    /// That an ENI waits for a range which nobody tells, in words.
    pub(super) fn range_trouble(&self) -> Option<String> {
        let trouble = self.ranges.trouble.as_ref().filter(|_| self.without_range().is_some())?;
        Some(format!("{}: {trouble}", Reason::CloudUnreachable))
    }
}
