//! What EC2 says: pictures of the ENIs, and calls that begin and end.
//!
//! Pictures and the ends of calls may come in any order. What we know from a call is newer than any picture that was
//! asked for before the call ended; EC2 being eventually consistent, also than one asked for shortly after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use types::{DeviceIndex, EniId, Moment, NetworkCard, Prefix, SubnetId};

use crate::model::{Action, ActionId, EniSeen, Given, Leaving, Note, Outcome, Unready, Wanted};
use crate::pool::{Address, Call, Came, Eni, Gone, Pool};

/// How long after a change of ours EC2's answers lack it as a rule: so long after a call that ended unclearly a picture tells
/// what became of it.
pub const PICTURE_LAG: Duration = Duration::from_secs(10);
/// How long they may lack it at worst ("Eventual consistency in the Amazon EC2 API" advises to wait up to five minutes): so long
/// what EC2 has confirmed holds against pictures, and what it may have taken away is given to nobody.
pub const PICTURE_LAG_MAX: Duration = Duration::from_secs(300);

impl Pool {
    /// Takes in a complete picture of the ENIs, asked for at `as_of`.
    ///
    /// What calls of ours have changed since then, or are changing, stays as we know it. An address that vanished
    /// stays with its owner and nobody else can get it. Calls that ended unclearly [`PICTURE_LAG`] before `as_of` are
    /// settled by it.
    pub fn observe(&mut self, seen: &[EniSeen], as_of: Moment, now: Moment) -> Vec<Note> {
        let mut notes = Vec::new();
        if as_of < self.pictured {
            return notes;
        }
        self.pictured = as_of;
        if as_of < self.distrusted_until {
            seen.iter().for_each(|eni| self.distrust_idle(eni));
        }
        self.settle_unclear(as_of, now);
        // What was doubted is there after all if it has what a pod of ours holds: no ENI is deleted under a pod.
        let held: BTreeSet<Ipv4Addr> = self.held.values().map(|held| held.address).collect();
        let serves = |eni: &EniSeen| held.iter().any(|address| eni.given().covers(*address));
        let alive = |gone: &Gone| {
            let whole = !gone.sure && gone.what.given.is_none();
            whole && seen.iter().any(|eni| eni.id == gone.what.eni && serves(eni))
        };
        self.gone.retain(|gone| gone.until > as_of && !alive(gone));
        self.gone.iter_mut().for_each(|gone| gone.confirm(seen, as_of));
        self.came.retain(|came| came.until > as_of);
        self.cooling_elsewhere.retain(|_, until| *until > now);

        let there: BTreeSet<&EniId> = seen.iter().map(|eni| &eni.id).collect();
        let known: Vec<EniId> = self.enis.keys().filter(|id| self.is_believed(id, as_of)).cloned().collect();
        let left: Vec<&EniId> =
            known.iter().filter(|id| !there.contains(id) && !self.is_just_made(id)).collect();
        left.into_iter().for_each(|id| self.drop_eni(id, &mut notes));
        let news: Vec<&EniSeen> =
            seen.iter().filter(|eni| known.contains(&eni.id) || self.is_new(eni)).collect();
        // All that left before all that joined: an address may have moved from one ENI to another, or become primary.
        let news: Vec<EniSeen> = news.into_iter().map(|eni| self.corrected(eni)).collect();
        for picture in &news {
            self.clear_primary(picture.primary_address, &mut notes);
            self.join(picture, now);
            self.lose(picture, &mut notes);
        }
        for picture in &news {
            let doubted = self.doubted_on(&picture.id);
            let joined = self.add_addresses(&picture.id, &picture.given(), &doubted, now);
            if !known.contains(&picture.id) {
                notes.push(Note::EniJoined(picture.id.clone(), joined.len()));
            } else if !joined.is_empty() {
                notes.push(Note::Joined(picture.id.clone(), joined));
            }
        }
        notes
    }

    /// Says which places on the instance hold something that pictures do not tell: an ENI without an IPv4 address, or
    /// one that is being detached. No new ENI goes there.
    pub fn occupy(&mut self, places: BTreeSet<(NetworkCard, DeviceIndex)>) {
        self.occupied = places;
    }

    /// How many places on a network card are held by what pods cannot use.
    #[must_use]
    pub fn foreign_on(&self, card: NetworkCard) -> u8 {
        let enis = self.enis.values().filter(|eni| !eni.seen.role.is_for_pods());
        let places = enis.map(Eni::place).chain(self.occupied.iter().copied());
        let devices: BTreeSet<DeviceIndex> =
            places.filter(|(on, _)| *on == card).map(|(_, device)| device).collect();
        u8::try_from(devices.len()).unwrap_or(u8::MAX)
    }

    /// Those places.
    #[must_use]
    pub const fn occupied(&self) -> &BTreeSet<(NetworkCard, DeviceIndex)> {
        &self.occupied
    }

    /// Ends calls that a picture is late enough for. What such a call was to take away may be gone although the picture shows it.
    fn settle_unclear(&mut self, as_of: Moment, now: Moment) {
        let settled = |call: &Call| call.unclear_since.is_some_and(|since| since.plus(PICTURE_LAG) <= as_of);
        let ended: Vec<Call> =
            self.in_flight.extract_if(.., |_, call| settled(call)).map(|(_, call)| call).collect();
        for Call { action, unclear_since } in ended {
            if let (Some(leaving), Some(since)) = (action.leaving(), unclear_since) {
                self.count_gone(&leaving, now);
                self.doubt(leaving, since);
            }
        }
    }

    /// Whether EC2 has confirmed an ENI so short a while ago that pictures may lack it. One that never came to the host either
    /// is gone.
    fn is_just_made(&self, id: &EniId) -> bool {
        let stuck = |eni: &Eni| self.unready(&eni.seen) == Some(Unready::Stuck);
        self.came.iter().any(|came| came.made && came.eni == *id) && !self.enis.get(id).is_some_and(stuck)
    }

    /// An ENI as a picture shows it, without what has left since as far as we know, and with what EC2 has given it since.
    fn corrected(&self, eni: &EniSeen) -> EniSeen {
        let mut eni = self.without_what_is_gone(eni);
        let Some(known) = self.enis.get(&eni.id) else { return eni };
        for came in self.came.iter().filter(|came| came.eni == eni.id) {
            let there = |address: &&Ipv4Addr| known.addresses.contains_key(*address);
            eni.addresses.extend(came.given.addresses.iter().filter(there));
            eni.prefixes.extend(came.given.prefixes.intersection(&known.prefixes));
        }
        eni
    }

    /// An ENI as a picture shows it, without what has left since as far as we know.
    fn without_what_is_gone(&self, eni: &EniSeen) -> EniSeen {
        let mut eni = eni.clone();
        for gone in self.gone.iter().filter(|gone| gone.what.eni == eni.id) {
            let Some(given) = &gone.what.given else { continue };
            eni.addresses.retain(|address| !given.addresses.contains(address));
            let is_back = |prefix: &Prefix| gone.back.iter().any(|address| Prefix::of(*address) == *prefix);
            eni.prefixes.retain(|prefix| !given.prefixes.contains(prefix) || is_back(prefix));
        }
        eni
    }

    /// What of an ENI's prefixes may be gone, although pods have some of their addresses.
    fn doubted_on(&self, eni: &EniId) -> BTreeSet<Ipv4Addr> {
        let gone = self.gone.iter().filter(|gone| gone.what.eni == *eni && !gone.back.is_empty());
        let doubted = gone.filter_map(|gone| Some((gone.what.given.as_ref()?, &gone.back)));
        let doubted = doubted.flat_map(|(given, back)| {
            let addresses = given.prefixes.iter().flat_map(|prefix| prefix.addresses());
            addresses.filter(|address| !back.contains(address))
        });
        doubted.collect()
    }

    fn is_deleted(&self, eni: &EniId) -> bool {
        self.gone.iter().any(|gone| gone.what.eni == *eni && gone.what.given.is_none())
    }

    /// Takes in that a call which takes this away was made at `since` or may have been, and that its end is not known: pictures
    /// asked for before [`PICTURE_LAG_MAX`] has passed do not bring it back.
    ///
    /// What a pod holds stays its own: such a call was never made for it.
    fn doubt(&mut self, leaving: Leaving, since: Moment) {
        self.hide(leaving, since.plus(PICTURE_LAG), since.plus(PICTURE_LAG_MAX));
    }

    /// Takes in that a daemon before has made such a call at `at`, or may have. However long ago that was, it holds until a picture
    /// asked for long enough after it is there: what was known before may be older.
    pub fn may_have_left(&mut self, leaving: Leaving, at: Moment, now: Moment) {
        // The clock may have been set back.
        self.doubt(leaving, at.min(now));
    }

    /// Says when the last thing happened that a daemon before has told of. That much time has passed after such calls; the rest is the
    /// clock's word, which may have been put forward meanwhile, so that they hold for [`PICTURE_LAG`] at least.
    pub fn last_heard(&mut self, last: Moment, now: Moment) {
        let soon = now.plus(PICTURE_LAG);
        for gone in self.gone.iter_mut().filter(|gone| !gone.sure && gone.until > last && gone.until <= now) {
            (gone.telling, gone.until) = (soon, soon);
        }
    }

    fn hide(&mut self, leaving: Leaving, telling: Moment, until: Moment) {
        let held: BTreeSet<Ipv4Addr> = self.held.values().map(|held| held.address).collect();
        let place = self.enis.get(&leaving.eni).filter(|_| leaving.given.is_none()).map(Eni::place);
        if let Some(eni) = self.enis.get_mut(&leaving.eni) {
            let goes = |address: &Ipv4Addr| leaving.given.as_ref().is_none_or(|given| given.covers(*address));
            let going = |address: &Ipv4Addr, _: &mut Address| goes(address) && !held.contains(address);
            for (address, state) in eni.addresses.extract_if(.., going) {
                // Should it come back, it still has to cool.
                if let Address::Cooling(until) | Address::Leaving(until) = state {
                    self.cooling_elsewhere.insert(address, until);
                }
            }
            // A prefix stays for what pods hold of it here.
            let Eni { prefixes, addresses, .. } = eni;
            let stays = |prefix: &Prefix| prefix.addresses().any(|address| addresses.contains_key(&address));
            prefixes.retain(|prefix| !goes(&prefix.first()) || stays(prefix));
            if leaving.given.is_none() && eni.addresses.is_empty() {
                self.enis.remove(&leaving.eni);
            }
        }
        let of_prefix = |address: &Ipv4Addr| {
            leaving.given.as_ref().is_some_and(|given| given.prefixes.contains(&Prefix::of(*address)))
        };
        let back = held.into_iter().filter(of_prefix).collect();
        self.gone.push(Gone { what: leaving, back, place, telling, until, sure: false });
    }

    /// Says that what calls took away shortly before is not known any more: what pictures asked for before `until` show as idle
    /// may be gone, and no pod gets it on their word.
    pub fn distrust(&mut self, until: Moment) {
        self.distrusted_until = until;
    }

    /// Hides what is nobody's on an ENI until a picture can be believed.
    fn distrust_idle(&mut self, eni: &EniSeen) {
        let until = self.distrusted_until;
        if self.gone.iter().any(|gone| gone.what.eni == eni.id && gone.until >= until) {
            return;
        }
        let held: BTreeSet<Ipv4Addr> = self.held.values().map(|held| held.address).collect();
        let mut given = eni.given();
        given.addresses.retain(|address| !held.contains(address));
        given.prefixes.retain(|prefix| prefix.addresses().all(|address| !held.contains(&address)));
        if !given.is_empty() {
            let what = Leaving { eni: eni.id.clone(), given: Some(given) };
            let back = BTreeSet::new();
            self.gone.push(Gone { what, back, place: None, telling: until, until, sure: false });
        }
    }

    /// When the last picture was asked for; the beginning of time before there is one.
    #[must_use]
    pub const fn pictured(&self) -> Moment {
        self.pictured
    }

    /// When a picture may tell more than one asked for now.
    #[must_use]
    pub fn doubtful_until(&self, now: Moment) -> Option<Moment> {
        let unclear = self.in_flight.values().filter_map(|call| call.unclear_since);
        let gone = self.gone.iter().filter(|gone| !gone.sure).flat_map(|gone| [gone.telling, gone.until]);
        unclear.map(|since| since.plus(PICTURE_LAG)).chain(gone).filter(|until| *until > now).min()
    }

    /// Whether a picture asked for at `as_of` knows all that we know of an ENI.
    fn is_believed(&self, id: &EniId, as_of: Moment) -> bool {
        !self.is_busy(id) && self.enis.get(id).is_none_or(|eni| eni.believe_from <= as_of)
    }

    /// Whether an ENI joins with a picture: not one that we have just deleted, nor one that we are creating, whose
    /// link need not be there yet.
    fn is_new(&self, eni: &EniSeen) -> bool {
        let creating = |call: &Call| match &call.action {
            Action::CreateEni { card, device, .. } => (*card, *device) == (eni.card, eni.device),
            Action::Assign { .. } | Action::Release { .. } | Action::DeleteEni { .. } => false,
        };
        let known = self.enis.contains_key(&eni.id) || self.is_deleted(&eni.id);
        !known && !self.in_flight.values().any(creating)
    }

    fn lose(&mut self, picture: &EniSeen, notes: &mut Vec<Note>) {
        let Some(eni) = self.enis.get_mut(&picture.id) else { return };
        eni.seen = picture.clone();
        let given = picture.given();
        let left: BTreeSet<Ipv4Addr> =
            eni.addresses.keys().filter(|address| !given.covers(**address)).copied().collect();
        eni.prefixes.retain(|prefix| given.prefixes.contains(prefix));
        for address in &left {
            self.drop_address(&picture.id, *address, notes);
        }
        if !left.is_empty() {
            notes.push(Note::Left(picture.id.clone(), left));
        }
    }

    /// Adds an ENI, without its addresses, unless it is there already.
    fn join(&mut self, picture: &EniSeen, now: Moment) {
        self.enis.entry(picture.id.clone()).or_insert_with(|| Eni {
            seen: picture.clone(),
            first_seen: now,
            prefixes: BTreeSet::new(),
            addresses: BTreeMap::new(),
            believe_from: Moment(0),
        });
    }

    /// Adds addresses to an ENI, except primary ones, those that are known elsewhere and those that are doubted. Returns those that are
    /// new.
    fn add_addresses(
        &mut self,
        id: &EniId,
        given: &Given,
        doubted: &BTreeSet<Ipv4Addr>,
        now: Moment,
    ) -> BTreeSet<Ipv4Addr> {
        let unfit = |address: &Ipv4Addr| {
            let has = |eni: &Eni| eni.seen.primary_address == *address || eni.addresses.contains_key(address);
            doubted.contains(address) || self.enis.values().any(has)
        };
        let fit: BTreeSet<Ipv4Addr> = given.all().filter(|address| !unfit(address)).collect();
        for address in &fit {
            let cooling = self.cooling_elsewhere.remove(address);
            let mut state = cooling.map_or(Address::Free(now), Address::Cooling);
            if let Some(held) = self.held.values_mut().find(|held| held.address == *address) {
                held.eni = Some(id.clone());
                state = Address::Held(held.owner.sandbox.clone());
            }
            if let Some(eni) = self.enis.get_mut(id) {
                eni.addresses.insert(*address, state);
            }
        }
        if let Some(eni) = self.enis.get_mut(id) {
            // One that another ENI has is shown here by a picture that is older than it seems.
            let has = |prefix: &&Prefix| eni.within(**prefix).next().is_some();
            let prefixes: Vec<Prefix> = given.prefixes.iter().filter(has).copied().collect();
            eni.prefixes.extend(prefixes);
        }
        fit
    }

    /// EC2 has just given these to an ENI, so whatever else we thought had them has lost them: somebody took them away. A prefix goes as a
    /// whole, and no older picture brings it back.
    fn leave_others(&mut self, id: &EniId, given: &Given, now: Moment) {
        let taken: BTreeSet<Prefix> = given.all().map(Prefix::of).collect();
        let others: Vec<EniId> = self.enis.keys().filter(|other| *other != id).cloned().collect();
        for other in others {
            let Some(eni) = self.enis.get_mut(&other) else { continue };
            let gone: BTreeSet<Prefix> =
                eni.prefixes.extract_if(.., |prefix| taken.contains(prefix)).collect();
            let is_lost =
                |address: &&Ipv4Addr| given.covers(**address) || gone.contains(&Prefix::of(**address));
            let lost: Vec<Ipv4Addr> = eni.addresses.keys().filter(is_lost).copied().collect();
            for address in lost {
                self.drop_address(&other, address, &mut Vec::new());
            }
            if !gone.is_empty() {
                self.went(Leaving { eni: other, given: Some(Given::prefixes(gone)) }, now);
            }
        }
    }

    /// An address is primary somewhere, so it is no pod's any more, whatever we thought (I7).
    fn clear_primary(&mut self, address: Ipv4Addr, notes: &mut Vec<Note>) {
        let has = self
            .enis
            .values()
            .find(|eni| eni.addresses.contains_key(&address))
            .map(|eni| eni.seen.id.clone());
        if let Some(id) = has {
            self.drop_address(&id, address, notes);
        }
    }

    fn drop_eni(&mut self, id: &EniId, notes: &mut Vec<Note>) {
        let addresses: Vec<Ipv4Addr> =
            self.enis.get(id).into_iter().flat_map(|eni| eni.addresses.keys()).copied().collect();
        for address in addresses {
            self.drop_address(id, address, notes);
        }
        self.enis.remove(id);
        notes.push(Note::EniLeft(id.clone()));
    }

    /// An address is gone from EC2. Its holder keeps it: nobody else may get it while that pod lives (I4).
    fn drop_address(&mut self, id: &EniId, address: Ipv4Addr, notes: &mut Vec<Note>) {
        match self.enis.get_mut(id).and_then(|eni| eni.addresses.remove(&address)) {
            Some(Address::Held(sandbox)) => {
                if let Some(held) = self.held.get_mut(&sandbox) {
                    held.eni = None;
                }
                notes.push(Note::Lost(address, sandbox));
            }
            // Should it come back soon, it still has to cool.
            Some(Address::Cooling(until)) => drop(self.cooling_elsewhere.insert(address, until)),
            Some(Address::Free(_) | Address::Leaving(_)) | None => {}
        }
    }

    /// Notes that a call to EC2 has begun: planning counts on it, and what is to leave is out of reach at once.
    pub fn begin(&mut self, action: &Action) -> ActionId {
        self.last_action.0 += 1;
        let leaving = |address: &Ipv4Addr| match action {
            Action::Release { given, .. } => given.covers(*address),
            Action::DeleteEni { .. } => true,
            Action::Assign { .. } | Action::CreateEni { .. } => false,
        };
        let eni = action.eni().and_then(|eni| self.enis.get_mut(eni));
        let addresses = eni.into_iter().flat_map(|eni| &mut eni.addresses);
        for (_, state) in addresses.filter(|(address, _)| leaving(address)) {
            if let Address::Free(until) | Address::Cooling(until) = state {
                *state = Address::Leaving(*until);
            }
        }
        self.in_flight.insert(self.last_action, Call { action: action.clone(), unclear_since: None });
        self.last_action
    }

    /// Takes in how a call ended. An unknown id is ignored: nothing is counted twice.
    ///
    /// After [`Outcome::Unclear`] the call counts as under way until a picture tells what became of it.
    pub fn finish(&mut self, id: ActionId, outcome: Outcome, now: Moment) {
        match outcome {
            Outcome::Assigned(given) => self.finish_assigned(id, &given, now),
            Outcome::Created(eni) => self.finish_created(id, &eni, now),
            Outcome::Released => self.finish_released(id, now),
            Outcome::Deleted => self.finish_deleted(id, now),
            Outcome::Scarce => self.finish_scarce(id, now),
            Outcome::Failed => self.finish_failed(id, now),
            Outcome::Unclear => self.finish_unclear(id, now),
        }
    }

    fn finish_assigned(&mut self, id: ActionId, given: &Given, now: Moment) {
        if let Some(Action::Assign { eni, wanted }) = self.end(id) {
            self.is_back(Some(&eni), given);
            self.leave_others(&eni, given, now);
            self.add_addresses(&eni, given, &BTreeSet::new(), now);
            self.came(&eni, given, false, now);
            self.believe_later(&eni, now);
            if let Some(eni) = self.enis.get(&eni) {
                self.scarcity.given(&eni.seen.subnet, wanted.form(), now);
            }
        }
    }

    fn finish_scarce(&mut self, id: ActionId, now: Moment) {
        let asked = self.end(id).and_then(|action| self.asked_of(&action));
        if let Some((subnet, wanted)) = asked {
            self.scarcity.refused(&subnet, wanted, now);
        }
    }

    /// The subnet that an action takes addresses from, and what it takes.
    fn asked_of(&self, action: &Action) -> Option<(SubnetId, Wanted)> {
        match action {
            Action::Assign { eni, wanted } => {
                self.enis.get(eni).map(|eni| (eni.seen.subnet.clone(), *wanted))
            }
            Action::CreateEni { subnet, wanted, .. } => Some((subnet.clone(), *wanted)),
            Action::Release { .. } | Action::DeleteEni { .. } => None,
        }
    }

    fn finish_created(&mut self, id: ActionId, seen: &EniSeen, now: Moment) {
        if let Some(Action::CreateEni { subnet, wanted, .. }) = self.end(id) {
            self.join(seen, now);
            let mut taken = seen.given();
            taken.addresses.insert(seen.primary_address);
            self.leave_others(&seen.id, &taken, now);
            self.add_addresses(&seen.id, &seen.given(), &BTreeSet::new(), now);
            self.came(&seen.id, &seen.given(), true, now);
            self.believe_later(&seen.id, now);
            self.scarcity.given(&subnet, wanted.form(), now);
        }
    }

    fn finish_released(&mut self, id: ActionId, now: Moment) {
        if let Some(Action::Release { eni, given }) = self.end(id) {
            let leaving = Leaving { eni: eni.clone(), given: Some(given.clone()) };
            self.count_gone(&leaving, now);
            self.went(leaving, now);
            for address in given.all() {
                self.drop_address(&eni, address, &mut Vec::new());
            }
            if let Some(eni) = self.enis.get_mut(&eni) {
                eni.prefixes.retain(|prefix| !given.prefixes.contains(prefix));
            }
            self.believe_later(&eni, now);
            self.last_release = now;
        }
    }

    /// What was to spare for a while and leaves is to spare no longer.
    fn count_gone(&mut self, leaving: &Leaving, now: Moment) {
        let Some(eni) = self.enis.get(&leaving.eni) else { return };
        let goes = |address: &Ipv4Addr| leaving.given.as_ref().is_none_or(|given| given.covers(*address));
        let counted = self.counted(eni, eni.addresses.keys().copied().filter(goes), now);
        let card = eni.seen.card;
        if let Some(lately) = self.lately.get_mut(&card) {
            lately.spared(counted);
        }
    }

    fn finish_deleted(&mut self, id: ActionId, now: Moment) {
        if let Some(Action::DeleteEni { eni }) = self.end(id) {
            let leaving = Leaving { eni, given: None };
            self.count_gone(&leaving, now);
            self.drop_eni(&leaving.eni, &mut Vec::new());
            self.went(leaving, now);
            self.last_release = now;
        }
    }

    fn finish_failed(&mut self, id: ActionId, now: Moment) {
        if let Some(Action::Release { eni, .. } | Action::DeleteEni { eni }) = self.end(id) {
            if let Some(eni) = self.enis.get_mut(&eni) {
                stay(eni);
            }
            // Not tried again sooner than one that worked.
            self.last_release = now;
        }
    }

    fn finish_unclear(&mut self, id: ActionId, now: Moment) {
        let Some(call) = self.in_flight.get_mut(&id) else { return };
        // Only a look some time after this decides: an earlier one may show the state before the call.
        call.unclear_since = Some(now);
        if let Some(eni) = call.action.eni().and_then(|eni| self.enis.get_mut(eni)) {
            eni.believe_from = now.plus(PICTURE_LAG);
        }
    }

    fn end(&mut self, id: ActionId) -> Option<Action> {
        self.in_flight.remove(&id).map(|call| call.action)
    }

    /// An ENI has again what EC2 took back a moment ago. Which ENI has it may not be known; else what others have lost they have
    /// lost for good.
    pub(crate) fn is_back(&mut self, on: Option<&EniId>, given: &Given) {
        let is_there = |gone: &Gone| on.is_none_or(|eni| gone.what.eni == *eni);
        self.gone.retain_mut(|gone| !is_there(gone) || still_gone(&mut gone.what, given));
    }

    /// What an action took away is gone, for pictures of some time after too.
    fn went(&mut self, leaving: Leaving, now: Moment) {
        let (telling, until) = (now.plus(PICTURE_LAG), now.plus(PICTURE_LAG_MAX));
        let back = BTreeSet::new();
        self.gone.push(Gone { what: leaving, back, place: None, telling, until, sure: true });
    }

    /// What EC2 has just given is there, for pictures of some time after too.
    fn came(&mut self, eni: &EniId, given: &Given, made: bool, now: Moment) {
        let until = now.plus(PICTURE_LAG_MAX);
        self.came.push(Came { eni: eni.clone(), given: given.clone(), made, until });
    }

    fn believe_later(&mut self, eni: &EniId, now: Moment) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.believe_from = now.plus(PICTURE_LAG);
        }
    }

    /// The ENI a call in progress is about.
    #[must_use]
    pub fn eni_of(&self, id: ActionId) -> Option<&EniId> {
        self.in_flight.get(&id).and_then(|call| call.action.eni())
    }

    /// Whether addresses of a network card are on their way.
    #[must_use]
    pub fn is_growing(&self, card: NetworkCard) -> bool {
        let refused = |eni: &Eni| self.unready(&eni.seen) == Some(Unready::PrefixRefused);
        self.calls_on(card).any(|call| call.action.brings() > 0)
            || self.coming_on(card).any(|eni| !refused(eni))
    }

    /// Whether a call in progress takes something away.
    #[must_use]
    pub fn gives_back(&self, id: ActionId) -> bool {
        self.in_flight.get(&id).is_some_and(|call| call.action.leaving().is_some())
    }

    /// The ENI that a call in progress takes something from, with all that it has if that call is refused.
    #[must_use]
    pub fn if_refused(&self, id: ActionId) -> Option<EniSeen> {
        let eni = self.enis.get(self.eni_of(id).filter(|_| self.gives_back(id))?)?;
        let addresses = eni.singles().map(|(address, _)| address).collect();
        Some(EniSeen { addresses, prefixes: eni.prefixes.clone(), ..eni.seen.clone() })
    }

    /// Whether a call in progress is about a network card.
    #[must_use]
    pub fn is_about(&self, id: ActionId, card: NetworkCard) -> bool {
        self.in_flight.get(&id).is_some_and(|call| self.card_acted_on(&call.action) == card)
    }

    /// Whether a call is in progress, or it is not known what came of one.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether a call in progress makes an ENI: one that nobody seems to own may be that one.
    #[must_use]
    pub fn is_creating(&self) -> bool {
        self.in_flight.values().any(|call| matches!(call.action, Action::CreateEni { .. }))
    }

    /// Addresses that calls in progress bring to a network card.
    pub(crate) fn coming(&self, card: NetworkCard) -> u32 {
        self.calls_on(card).map(|call| call.action.brings()).sum()
    }

    /// Slots of an ENI that is there which calls in progress fill.
    pub(crate) fn slots_coming_to(&self, eni: &EniId) -> u32 {
        let calls = self.in_flight.values().filter(|call| call.action.eni() == Some(eni));
        calls.map(|call| call.action.fills()).sum()
    }

    /// Whether a call in progress is about this ENI.
    pub(crate) fn is_busy(&self, eni: &EniId) -> bool {
        self.in_flight.values().any(|call| call.action.eni() == Some(eni))
    }

    /// Whether a call in progress deletes this ENI.
    pub(crate) fn is_being_deleted(&self, eni: &EniId) -> bool {
        self.in_flight.values().any(|call| matches!(&call.action, Action::DeleteEni { eni: id } if id == eni))
    }
}

impl Gone {
    /// Takes in that a picture asked for late enough does not show it any more: it is not doubted then, and holds no room.
    fn confirm(&mut self, seen: &[EniSeen], as_of: Moment) {
        let shows = |eni: &EniSeen| {
            eni.id == self.what.eni
                && self.what.given.as_ref().is_none_or(|given| {
                    !given.addresses.is_disjoint(&eni.addresses) || !given.prefixes.is_disjoint(&eni.prefixes)
                })
        };
        if !self.sure && self.telling <= as_of && !seen.iter().any(shows) {
            self.sure = true;
            self.place = None;
        }
    }
}

/// Takes out of what is gone what is given again; false when nothing is left of it.
fn still_gone(gone: &mut Leaving, given: &Given) -> bool {
    let Some(lost) = &mut gone.given else { return true };
    lost.addresses.retain(|address| !given.addresses.contains(address));
    lost.prefixes.retain(|prefix| !given.prefixes.contains(prefix));
    !lost.is_empty()
}

/// What was to leave an ENI is there to stay.
fn stay(eni: &mut Eni) {
    for state in eni.addresses.values_mut() {
        if let Address::Leaving(until) = state {
            *state = Address::Cooling(*until);
        }
    }
}
