//! The pool and the only ways in which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use types::{EniId, HostVeth, Moment, Reason, SandboxKey};

use crate::model::{Action, ActionId, Counts, EniSeen, Grant, Limits, Note, Outcome, Owner, Place, Shortage};

/// The node's addresses.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) cooldown: Duration,
    pub(crate) enis: BTreeMap<EniId, Eni>,
    pub(crate) held: BTreeMap<SandboxKey, Held>,
    by_name: BTreeMap<HostVeth, SandboxKey>,
    pub(crate) in_flight: BTreeMap<ActionId, Action>,
    last_action: ActionId,
    pub(crate) last_release: Moment,
    /// Cooling addresses whose ENI is not known yet (restored).
    pub(crate) cooling_elsewhere: BTreeMap<Ipv4Addr, Moment>,
    reused_early: u64,
}

/// One ENI.
#[derive(Debug, Clone)]
pub(crate) struct Eni {
    /// As last seen; its `addresses` are not kept up, the slots are.
    pub(crate) seen: EniSeen,
    pub(crate) first_seen: Moment,
    pub(crate) slots: BTreeMap<Ipv4Addr, Slot>,
    /// When an action of ours last touched it: an older picture does not know.
    pub(crate) changed: Moment,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nobody's, since this moment.
    Free(Moment),
    /// This sandbox's.
    Held(SandboxKey),
    /// Nobody's until this moment.
    Cooling(Moment),
    /// On its way back to EC2.
    Leaving,
}

/// What a sandbox has.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) owner: Owner,
    pub(crate) address: Ipv4Addr,
    /// Its ENI, when that is known.
    eni: Option<EniId>,
    committed: bool,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I4.
    #[error("{0} has two owners")]
    TwoOwners(Ipv4Addr),
    /// I7.
    #[error("{0} is a primary address and in the pool")]
    PrimaryInPool(Ipv4Addr),
    /// The indexes disagree.
    #[error("the books do not agree about {0}")]
    Books(Ipv4Addr),
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub const fn new(cooldown: Duration) -> Self {
        Self {
            cooldown,
            enis: BTreeMap::new(),
            held: BTreeMap::new(),
            by_name: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            last_action: ActionId(0),
            last_release: Moment(0),
            cooling_elsewhere: BTreeMap::new(),
            reused_early: 0,
        }
    }

    /// Reserves an address for a sandbox; one that has an address already gets the same again.
    ///
    /// The fullest ENI that still has room comes first, and on it the address that has been free for longest.
    ///
    /// # Errors
    /// When nothing is free.
    pub fn reserve(&mut self, owner: Owner, now: Moment) -> Result<Grant, Shortage> {
        if let Some(held) = self.held.get(&owner.sandbox) {
            return Ok(self.grant(held));
        }
        let free = |eni: &&Eni| eni.slots.values().any(|slot| slot.is_free(now));
        let fullest =
            self.usable().filter(free).max_by_key(|eni| (eni.held(), std::cmp::Reverse(eni.place())));
        let best = fullest.and_then(|eni| Some((eni.seen.id.clone(), eni.longest_free(now)?)));
        let Some((eni, address)) = best else { return Err(self.shortage(now)) };
        Ok(self.take(owner, &eni, address))
    }

    /// Reserves the address that has cooled for longest, although its time is not over: for when nothing is free and
    /// nothing can be had. Each such case is counted.
    ///
    /// # Errors
    /// When nothing cools either.
    pub fn reserve_early(&mut self, owner: Owner, now: Moment) -> Result<Grant, Shortage> {
        let plain = self.reserve(owner.clone(), now);
        if plain.is_ok() {
            return plain;
        }
        let cooling = self.usable().flat_map(|eni| {
            let until = |(address, slot): (&Ipv4Addr, &Slot)| match slot {
                Slot::Cooling(until) => Some((*until, eni.seen.id.clone(), *address)),
                Slot::Free(_) | Slot::Held(_) | Slot::Leaving => None,
            };
            eni.slots.iter().filter_map(until)
        });
        let Some((_, eni, address)) = cooling.min() else { return plain };
        self.reused_early += 1;
        Ok(self.take(owner, &eni, address))
    }

    /// How many addresses were assigned again before their cooldown had passed.
    #[must_use]
    pub const fn reused_early(&self) -> u64 {
        self.reused_early
    }

    fn take(&mut self, owner: Owner, eni: &EniId, address: Ipv4Addr) -> Grant {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.slots.insert(address, Slot::Held(owner.sandbox.clone()));
        }
        let held = Held { owner, address, eni: Some(eni.clone()), committed: false };
        let grant = self.grant(&held);
        self.keep(held);
        grant
    }

    fn keep(&mut self, held: Held) {
        self.by_name.insert(held.owner.host_if.clone(), held.owner.sandbox.clone());
        self.held.insert(held.owner.sandbox.clone(), held);
    }

    /// Makes a reservation an assignment.
    pub fn commit(&mut self, sandbox: &SandboxKey) {
        if let Some(held) = self.held.get_mut(sandbox) {
            held.committed = true;
        }
    }

    /// Takes back a reservation whose address no packet has ever carried: it is free at once.
    pub fn cancel(&mut self, sandbox: &SandboxKey) {
        if let Some(held) = self.forget(sandbox) {
            self.put(held.address, held.eni.as_ref(), Slot::Free(Moment(0)));
        }
    }

    /// Takes an address back; it cools from `now` on. `None` for a sandbox that has none.
    pub fn release(&mut self, sandbox: &SandboxKey, now: Moment) -> Option<(Owner, Grant)> {
        let held = self.forget(sandbox)?;
        let grant = self.grant(&held);
        self.put(held.address, held.eni.as_ref(), Slot::Cooling(now.plus(self.cooldown)));
        Some((held.owner, grant))
    }

    fn forget(&mut self, sandbox: &SandboxKey) -> Option<Held> {
        let held = self.held.remove(sandbox)?;
        if self.by_name.get(&held.owner.host_if) == Some(sandbox) {
            self.by_name.remove(&held.owner.host_if);
        }
        Some(held)
    }

    fn put(&mut self, address: Ipv4Addr, eni: Option<&EniId>, slot: Slot) {
        match eni.and_then(|eni| self.enis.get_mut(eni)) {
            Some(eni) => drop(eni.slots.insert(address, slot)),
            None => {
                if let Slot::Cooling(until) = slot {
                    self.cooling_elsewhere.insert(address, until);
                }
            }
        }
    }

    /// Gives an owner the address it is known to have: on restart.
    ///
    /// It is kept from everybody else even when no ENI that has it is known yet.
    pub fn adopt(&mut self, owner: Owner, address: Ipv4Addr) {
        let taken =
            self.held.values().any(|held| held.address == address && held.owner.sandbox != owner.sandbox);
        if taken {
            return;
        }
        self.forget(&owner.sandbox);
        self.cooling_elsewhere.remove(&address);
        let eni = self.enis.values_mut().find(|eni| eni.slots.contains_key(&address));
        let eni = eni.map(|eni| {
            eni.slots.insert(address, Slot::Held(owner.sandbox.clone()));
            eni.seen.id.clone()
        });
        self.keep(Held { owner, address, eni, committed: true });
    }

    /// Takes in a complete picture of the ENIs, asked for at `as_of`.
    ///
    /// What actions of ours have changed since then, or are changing, stays as we know it.
    pub fn observe(&mut self, seen: &[EniSeen], as_of: Moment, now: Moment) -> Vec<Note> {
        let mut notes = Vec::new();
        let busy: BTreeSet<EniId> = self.in_flight.values().filter_map(eni_of).cloned().collect();
        let fresher = |eni: &Eni| eni.changed >= as_of || busy.contains(&eni.seen.id);
        let there: BTreeSet<&EniId> = seen.iter().map(|eni| &eni.id).collect();
        let gone: Vec<EniId> = self
            .enis
            .values()
            .filter(|e| !there.contains(&e.seen.id) && !fresher(e))
            .map(|e| e.seen.id.clone())
            .collect();
        for id in gone {
            self.drop_eni(&id, &mut notes);
        }
        for picture in seen {
            match self.enis.get(&picture.id) {
                None => {
                    notes.push(Note::EniJoined(picture.id.clone(), picture.addresses.len()));
                    self.join(picture, now);
                }
                Some(eni) if fresher(eni) => {}
                Some(_) => self.update(picture, now, &mut notes),
            }
        }
        notes
    }

    fn join(&mut self, picture: &EniSeen, now: Moment) {
        let eni = Eni { seen: picture.clone(), first_seen: now, slots: BTreeMap::new(), changed: Moment(0) };
        self.enis.insert(picture.id.clone(), eni);
        self.add_slots(&picture.id, &picture.addresses, now);
    }

    fn update(&mut self, picture: &EniSeen, now: Moment, notes: &mut Vec<Note>) {
        let Some(eni) = self.enis.get_mut(&picture.id) else { return };
        eni.seen = picture.clone();
        let left: BTreeSet<Ipv4Addr> =
            eni.slots.keys().filter(|a| !picture.addresses.contains(a)).copied().collect();
        // A release whose outcome was unclear: what is still there did not leave.
        for slot in eni.slots.values_mut().filter(|slot| **slot == Slot::Leaving) {
            *slot = Slot::Free(now);
        }
        let joined: BTreeSet<Ipv4Addr> =
            picture.addresses.iter().filter(|a| !eni.slots.contains_key(a)).copied().collect();
        for address in &left {
            self.drop_slot(&picture.id, *address, notes);
        }
        self.add_slots(&picture.id, &joined, now);
        if !joined.is_empty() {
            notes.push(Note::Joined(picture.id.clone(), joined));
        }
        if !left.is_empty() {
            notes.push(Note::Left(picture.id.clone(), left));
        }
    }

    fn add_slots(&mut self, id: &EniId, addresses: &BTreeSet<Ipv4Addr>, now: Moment) {
        let primaries: BTreeSet<Ipv4Addr> = self.enis.values().map(|eni| eni.seen.primary_address).collect();
        for address in addresses.difference(&primaries) {
            let holder = self.held.values_mut().find(|held| held.address == *address);
            let cooling = self.cooling_elsewhere.remove(address);
            let slot = match (holder, cooling) {
                (Some(held), _) => {
                    held.eni = Some(id.clone());
                    Slot::Held(held.owner.sandbox.clone())
                }
                (None, Some(until)) => Slot::Cooling(until),
                (None, None) => Slot::Free(now),
            };
            if let Some(eni) = self.enis.get_mut(id) {
                eni.slots.entry(*address).or_insert(slot);
            }
        }
    }

    fn drop_eni(&mut self, id: &EniId, notes: &mut Vec<Note>) {
        let addresses: Vec<Ipv4Addr> =
            self.enis.get(id).into_iter().flat_map(|eni| eni.slots.keys()).copied().collect();
        for address in addresses {
            self.drop_slot(id, address, notes);
        }
        self.enis.remove(id);
        notes.push(Note::EniLeft(id.clone()));
    }

    /// An address is gone from EC2. Its holder keeps it: nobody else may get it while that pod lives (I4).
    fn drop_slot(&mut self, id: &EniId, address: Ipv4Addr, notes: &mut Vec<Note>) {
        let slot = self.enis.get_mut(id).and_then(|eni| eni.slots.remove(&address));
        match slot {
            Some(Slot::Held(sandbox)) => {
                if let Some(held) = self.held.get_mut(&sandbox) {
                    held.eni = None;
                }
                notes.push(Note::Lost(address, sandbox));
            }
            Some(Slot::Cooling(until)) => drop(self.cooling_elsewhere.insert(address, until)),
            Some(Slot::Free(_) | Slot::Leaving) | None => {}
        }
    }

    /// Notes that a call to EC2 has begun: planning counts on it, and what is to leave is out of reach at once.
    pub fn begin(&mut self, action: &Action) -> ActionId {
        self.last_action.0 += 1;
        let leaving = |address: &Ipv4Addr| match action {
            Action::ReleaseAddresses { addresses, .. } => addresses.contains(address),
            Action::DeleteEni { .. } => true,
            Action::AssignAddresses { .. } | Action::CreateEni { .. } => false,
        };
        if let Some(eni) = eni_of(action).and_then(|eni| self.enis.get_mut(eni)) {
            for (_, slot) in eni.slots.iter_mut().filter(|(address, _)| leaving(address)) {
                if !matches!(slot, Slot::Held(_)) {
                    *slot = Slot::Leaving;
                }
            }
        }
        self.in_flight.insert(self.last_action, action.clone());
        self.last_action
    }

    /// Takes in how a call ended. An unknown id is ignored: nothing is counted twice.
    pub fn finish(&mut self, id: ActionId, outcome: Outcome, now: Moment) {
        let Some(action) = self.in_flight.remove(&id) else { return };
        if let Some(eni) = eni_of(&action).and_then(|eni| self.enis.get_mut(eni)) {
            eni.changed = now;
        }
        match (outcome, action) {
            (Outcome::Assigned(addresses), Action::AssignAddresses { eni, .. }) => {
                self.add_slots(&eni, &addresses, now)
            }
            (Outcome::Created(seen), Action::CreateEni { .. }) => {
                self.join(&seen, now);
                if let Some(eni) = self.enis.get_mut(&seen.id) {
                    eni.changed = now;
                }
            }
            (Outcome::Released, Action::ReleaseAddresses { eni, addresses }) => {
                self.last_release = now;
                for address in addresses {
                    self.drop_slot(&eni, address, &mut Vec::new());
                }
            }
            (Outcome::Deleted, Action::DeleteEni { eni }) => {
                self.last_release = now;
                self.drop_eni(&eni, &mut Vec::new());
            }
            (Outcome::Unclear, action) => {
                // The next look decides: it must be newer than this, and may touch the ENI.
                if let Some(eni) = eni_of(&action).and_then(|eni| self.enis.get_mut(eni)) {
                    eni.changed = Moment(now.0.saturating_sub(1));
                }
            }
            (_, Action::ReleaseAddresses { eni, .. } | Action::DeleteEni { eni }) => {
                // Backs off like a release that worked.
                self.last_release = now;
                let leaving = self.enis.get_mut(&eni).into_iter().flat_map(|eni| eni.slots.values_mut());
                leaving.filter(|slot| **slot == Slot::Leaving).for_each(|slot| *slot = Slot::Free(now));
            }
            (_, Action::AssignAddresses { .. } | Action::CreateEni { .. }) => {}
        }
    }

    /// The ENI a call in progress is about.
    #[must_use]
    pub fn eni_of(&self, id: ActionId) -> Option<&EniId> {
        self.in_flight.get(&id).and_then(eni_of)
    }

    /// Whether a call in progress will bring addresses.
    #[must_use]
    pub fn is_growing(&self) -> bool {
        let grows =
            |action: &Action| matches!(action, Action::AssignAddresses { .. } | Action::CreateEni { .. });
        self.in_flight.values().any(grows)
    }

    /// Who holds what, by sandbox.
    pub fn owners(&self) -> impl Iterator<Item = (&Owner, Grant)> {
        self.held.values().map(|held| (&held.owner, self.grant(held)))
    }

    /// What one sandbox holds.
    #[must_use]
    pub fn owner(&self, sandbox: &SandboxKey) -> Option<(&Owner, Grant)> {
        self.held.get(sandbox).map(|held| (&held.owner, self.grant(held)))
    }

    /// The sandbox that has this host interface.
    #[must_use]
    pub fn holder_of(&self, host_if: &HostVeth) -> Option<&SandboxKey> {
        self.by_name.get(host_if)
    }

    /// The ENIs as they are now.
    #[must_use]
    pub fn enis(&self) -> Vec<EniSeen> {
        let now = |eni: &Eni| EniSeen { addresses: eni.slots.keys().copied().collect(), ..eni.seen.clone() };
        self.enis.values().map(now).collect()
    }

    /// Addresses by state.
    #[must_use]
    pub fn counts(&self, now: Moment) -> Counts {
        let mut counts = self.usable().fold(Counts::default(), |sum, eni| sum.plus(self.counts_in(eni, now)));
        for held in self.held.values().filter(|held| held.eni.is_none()) {
            *if held.committed { &mut counts.assigned } else { &mut counts.reserved } += 1;
        }
        counts
    }

    /// Addresses of one ENI by state.
    #[must_use]
    pub fn counts_of(&self, eni: &EniId, now: Moment) -> Counts {
        self.enis.get(eni).map(|eni| self.counts_in(eni, now)).unwrap_or_default()
    }

    fn counts_in(&self, eni: &Eni, now: Moment) -> Counts {
        let mut counts = Counts::default();
        for slot in eni.slots.values() {
            let count = match slot {
                Slot::Held(sandbox) if self.held.get(sandbox).is_some_and(|held| held.committed) => {
                    &mut counts.assigned
                }
                Slot::Held(_) => &mut counts.reserved,
                Slot::Leaving => continue,
                slot if slot.is_free(now) => &mut counts.free,
                Slot::Free(_) | Slot::Cooling(_) => &mut counts.cooling,
            };
            *count += 1;
        }
        counts
    }

    /// When an address stops cooling, if one cools.
    #[must_use]
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        let slots = self.enis.values().flat_map(|eni| eni.slots.values());
        slots.filter_map(Slot::cooling_until).filter(|until| *until > now).min()
    }

    /// Why nothing is free, in one word.
    #[must_use]
    pub fn shortage_reason(&self, limits: &Limits, now: Moment) -> Reason {
        let room = self.usable().any(|eni| eni.slots.len() < usize::from(limits.slots_per_eni));
        let more = self.enis.len() < usize::from(limits.max_enis);
        match (room || more, self.counts(now).cooling) {
            (true, _) => Reason::PoolEmpty,
            (false, 0) => Reason::NodeFull,
            (false, _) => Reason::AllCooling,
        }
    }

    /// Checks the books: I4, I7, and that the indexes agree.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Violation> {
        let primaries: BTreeSet<Ipv4Addr> = self.enis.values().map(|eni| eni.seen.primary_address).collect();
        let mut owned = BTreeSet::new();
        for held in self.held.values() {
            if !owned.insert(held.address) {
                return Err(Violation::TwoOwners(held.address));
            }
            let slot =
                held.eni.as_ref().map(|eni| self.enis.get(eni).and_then(|eni| eni.slots.get(&held.address)));
            if slot.is_some_and(|slot| slot != Some(&Slot::Held(held.owner.sandbox.clone()))) {
                return Err(Violation::Books(held.address));
            }
        }
        let mut seen = BTreeSet::new();
        for (address, slot) in self.enis.values().flat_map(|eni| &eni.slots) {
            if primaries.contains(address) {
                return Err(Violation::PrimaryInPool(*address));
            }
            let held = matches!(slot, Slot::Held(sandbox) if self.held.get(sandbox).is_some_and(|h| h.address == *address));
            if held != owned.contains(address) || !seen.insert(*address) {
                return Err(Violation::Books(*address));
            }
        }
        Ok(())
    }

    /// ENIs that pods may use, and that are not on their way out.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Eni> {
        let leaving = |eni: &Eni| {
            self.in_flight
                .values()
                .any(|action| matches!(action, Action::DeleteEni { eni: id } if *id == eni.seen.id))
        };
        self.enis.values().filter(move |eni| eni.seen.role.is_for_pods() && !leaving(eni))
    }

    fn grant(&self, held: &Held) -> Grant {
        let eni = held.eni.as_ref().and_then(|eni| self.enis.get(eni));
        let place =
            eni.map(|eni| Place { eni: eni.seen.id.clone(), card: eni.seen.card, device: eni.seen.device });
        Grant { address: held.address, place }
    }

    fn shortage(&self, now: Moment) -> Shortage {
        let counts = self.counts(now);
        Shortage {
            held: counts.reserved + counts.assigned,
            cooling: counts.cooling,
            next_free: self.next_change(now),
        }
    }
}

impl Eni {
    pub(crate) fn held(&self) -> usize {
        self.slots.values().filter(|slot| matches!(slot, Slot::Held(_))).count()
    }

    pub(crate) fn place(&self) -> (types::NetworkCard, types::DeviceIndex) {
        (self.seen.card, self.seen.device)
    }

    fn longest_free(&self, now: Moment) -> Option<Ipv4Addr> {
        let since =
            |(address, slot): (&Ipv4Addr, &Slot)| slot.is_free(now).then(|| (slot.free_since(), *address));
        self.slots.iter().filter_map(since).min().map(|(_, address)| address)
    }
}

impl Slot {
    /// Whether it can be reserved at `now`.
    pub(crate) fn is_free(&self, now: Moment) -> bool {
        match self {
            Self::Free(_) => true,
            Self::Cooling(until) => *until <= now,
            Self::Held(_) | Self::Leaving => false,
        }
    }

    const fn free_since(&self) -> Moment {
        match self {
            Self::Free(at) | Self::Cooling(at) => *at,
            Self::Held(_) | Self::Leaving => Moment(u64::MAX),
        }
    }

    pub(crate) const fn cooling_until(&self) -> Option<Moment> {
        match self {
            Self::Cooling(until) => Some(*until),
            Self::Free(_) | Self::Held(_) | Self::Leaving => None,
        }
    }
}

fn eni_of(action: &Action) -> Option<&EniId> {
    match action {
        Action::AssignAddresses { eni, .. }
        | Action::ReleaseAddresses { eni, .. }
        | Action::DeleteEni { eni } => Some(eni),
        Action::CreateEni { .. } => None,
    }
}
