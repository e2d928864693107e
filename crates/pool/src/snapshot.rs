//! The pool as it is written to disk.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::Moment;

use crate::model::{EniSeen, Leaving, Owner};
use crate::pool::{Address, Pool};

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Who holds which address; reservations too, for their record may have gone to disk already.
    pub owners: Vec<(Owner, Ipv4Addr)>,
    /// Addresses that cool, and until when.
    pub cooling: BTreeMap<Ipv4Addr, Moment>,
    /// The ENIs as last known, without what was on its way out.
    pub enis: Vec<EniSeen>,
    /// What calls are taking away, or took a short while ago: EC2 may go on showing it.
    #[serde(default)]
    pub gone: Vec<Left>,
}

impl Snapshot {
    /// When the last thing of those that are told happened.
    #[must_use]
    pub fn last(&self) -> Option<Moment> {
        let left = self.gone.iter().map(|left| left.at).filter(|at| *at != NOT_YET);
        self.owners.iter().map(|(owner, _)| owner.since).chain(left).max()
    }
}

/// Something that has left, or may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What.
    #[serde(flatten)]
    pub leaving: Leaving,
    /// When; ahead of all time where the call had not ended yet. Files of before do not tell it: their entries are old.
    #[serde(default)]
    pub at: Moment,
}

/// When something leaves of which nobody knows when it will have.
const NOT_YET: Moment = Moment(u64::MAX);

impl Pool {
    /// The pool as it should be written.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let owners = self.held.values().map(|held| (held.owner.clone(), held.address)).collect();
        let addresses = self.enis.values().flat_map(|eni| &eni.addresses);
        // What leaves may come back if EC2 refuses: its cooldown is kept too.
        let cooling = addresses.filter_map(|(address, state)| match state {
            Address::Cooling(until) | Address::Leaving(until) => Some((*address, *until)),
            Address::Free(_) | Address::Held(_) => None,
        });
        let cooling = cooling.chain(self.cooling_elsewhere.iter().map(|(a, until)| (*a, *until))).collect();
        let under_way = self.in_flight.values().filter_map(|call| call.action.leaving());
        let under_way = under_way.map(|leaving| Left { leaving, at: NOT_YET });
        let gone = self.gone.iter().map(|gone| Left { leaving: gone.what.clone(), at: gone.at() });
        let gone = gone.chain(under_way).collect();
        Snapshot { owners, cooling, enis: self.enis(), gone }
    }

    /// The pool that was written. Cooling that lies further ahead than the cooldown (the clock was set back) is cut.
    ///
    /// An owner whose address is on no known ENI keeps it all the same; a later picture joins the two.
    #[must_use]
    pub fn restore(snapshot: Snapshot, cooldown: Duration, now: Moment) -> Self {
        let mut pool = Self::new(cooldown);
        let latest = now.plus(cooldown);
        pool.cooling_elsewhere =
            snapshot.cooling.into_iter().map(|(a, until)| (a, until.min(latest))).collect();
        pool.observe(&snapshot.enis, Moment(0), now);
        for (owner, address) in snapshot.owners {
            pool.adopt(owner, address);
        }
        for Left { leaving, at } in snapshot.gone {
            pool.may_have_left(leaving, at, now);
        }
        pool
    }
}
