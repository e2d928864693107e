//! What the host's kernel is ready for, and how it leads pods out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use types::{EniId, Mac};

use crate::model::{EniSeen, Role, Unready};
use crate::pool::Pool;

impl Pool {
    /// Says of which secondary ENIs pods would have no way out: those that are there stay, and no other gets an address there. Returns
    /// whether others are stuck than before: pictures may mean something else then.
    pub fn set_unready(&mut self, unready: BTreeMap<Mac, Unready>) -> bool {
        let stuck = |unready: &BTreeMap<Mac, Unready>| -> Vec<Mac> {
            unready.iter().filter(|(_, why)| **why == Unready::Stuck).map(|(mac, _)| *mac).collect()
        };
        let differ = stuck(&self.unready) != stuck(&unready);
        self.unready = unready;
        differ
    }

    /// Says by which ENIs packets of pods leave whose addresses pictures have elsewhere, or nowhere: pictures may be wrong, so none of these
    /// is deleted.
    pub fn set_led_by(&mut self, enis: BTreeSet<EniId>) {
        self.led_by = enis;
    }

    /// Says that packets from an address leave by another ENI than the one that has it: no pod gets it.
    pub fn lead_astray(&mut self, address: Ipv4Addr) {
        self.astray.insert(address);
    }

    /// Says that the host's kernel leads all addresses as it should.
    pub fn lead_right(&mut self) {
        self.astray.clear();
    }

    /// Why pods would have no way out by an ENI, if it is so. By the primary one they have it without our doing.
    #[must_use]
    pub fn unready(&self, eni: &EniSeen) -> Option<Unready> {
        self.unready.get(&eni.mac).copied().filter(|_| eni.role != Role::Primary)
    }
}
