//! What must be true of a pool at any time.

use std::net::Ipv4Addr;

use types::Prefix;

use crate::model::Action;
use crate::pool::{Address, Held, Pool};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I4: two sandboxes have the same address.
    #[error("{0} has two owners")]
    TwoOwners(Ipv4Addr),
    /// I7: pods could get, or EC2 get back, a primary address.
    #[error("{0} is a primary address and in the pool")]
    PrimaryInPool(Ipv4Addr),
    /// I7: an address with an owner is on its way out.
    #[error("{0} has an owner and is about to be given back")]
    OwnedLeaves(Ipv4Addr),
    /// I8: more addresses are held before their cooldown had passed than were counted.
    #[error("{held} addresses were assigned again too early, but only {counted} were counted")]
    EarlyUncounted {
        /// Held now.
        held: u64,
        /// Counted ever.
        counted: u64,
    },
    /// Two ENIs have the same prefix, or one has it with no address of it.
    #[error("{0} is not on one ENI with its addresses")]
    Prefix(Prefix),
    /// The indexes disagree.
    #[error("the books do not agree about {0}")]
    Books(Ipv4Addr),
}

impl Pool {
    /// Checks what must be true at any time: I4, I7, I8, and that the indexes agree.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Violation> {
        let owned = sorted(self.held.values().map(|held| held.address));
        self.check_owners(&owned)?;
        self.check_addresses(&owned)?;
        self.check_leaving()?;
        self.check_prefixes()?;
        let held = self.held.values().map(|held| u64::from(held.early)).sum();
        if held > self.reused_early() {
            return Err(Violation::EarlyUncounted { held, counted: self.reused_early() });
        }
        Ok(())
    }

    /// `owned`: addresses with an owner, in order.
    fn check_owners(&self, owned: &[Ipv4Addr]) -> Result<(), Violation> {
        if let Some(twice) = twice(owned) {
            return Err(Violation::TwoOwners(twice));
        }
        for held in self.held.values() {
            let Some(eni) = &held.eni else { continue };
            let state = self.enis.get(eni).and_then(|eni| eni.addresses.get(&held.address));
            if !matches!(state, Some(Address::Held(sandbox)) if *sandbox == held.owner.sandbox) {
                return Err(Violation::Books(held.address));
            }
        }
        // Who has a host end is found by its name.
        let unnamed = self.held.values().find(|held| self.holder_of(&held.owner.host_if).is_none());
        unnamed.map_or(Ok(()), |held| Err(Violation::Books(held.address)))
    }

    fn check_addresses(&self, owned: &[Ipv4Addr]) -> Result<(), Violation> {
        let primaries: Vec<Ipv4Addr> = self.enis.values().map(|eni| eni.seen.primary_address).collect();
        let all = || self.enis.values().flat_map(|eni| &eni.addresses);
        for (address, state) in all() {
            if primaries.contains(address) {
                return Err(Violation::PrimaryInPool(*address));
            }
            let held = match state {
                Address::Held(sandbox) => self.held.get(sandbox).is_some_and(|held| held.address == *address),
                Address::Free(_) | Address::Cooling(_) | Address::Leaving(_) => false,
            };
            if held != owned.binary_search(address).is_ok() {
                return Err(Violation::Books(*address));
            }
        }
        twice(&sorted(all().map(|(address, _)| *address)))
            .map_or(Ok(()), |twice| Err(Violation::Books(twice)))
    }

    fn check_prefixes(&self) -> Result<(), Violation> {
        let with_prefixes = || self.enis.values().filter(|eni| !eni.prefixes.is_empty());
        for eni in with_prefixes() {
            if let Some(empty) = eni.prefixes.iter().find(|prefix| eni.within(**prefix).next().is_none()) {
                return Err(Violation::Prefix(*empty));
            }
        }
        let all = sorted(with_prefixes().flat_map(|eni| eni.prefixes.iter().map(|prefix| prefix.first())));
        twice(&all).map_or(Ok(()), |twice| Err(Violation::Prefix(Prefix::of(twice))))
    }

    fn check_leaving(&self) -> Result<(), Violation> {
        let leaves = |held: &&Held| {
            self.in_flight.values().any(|call| match &call.action {
                Action::Release { eni, given } => {
                    held.eni.as_ref() == Some(eni) && given.covers(held.address)
                }
                Action::DeleteEni { eni } => held.eni.as_ref() == Some(eni),
                Action::Assign { .. } | Action::CreateEni { .. } => false,
            })
        };
        self.held.values().find(leaves).map_or(Ok(()), |held| Err(Violation::OwnedLeaves(held.address)))
    }
}

/// In order. The simulator checks the books a hundred million times: a set would take several times as long.
fn sorted(addresses: impl Iterator<Item = Ipv4Addr>) -> Vec<Ipv4Addr> {
    let mut addresses: Vec<Ipv4Addr> = addresses.collect();
    addresses.sort_unstable();
    addresses
}

/// An address that is there twice.
fn twice(sorted: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
