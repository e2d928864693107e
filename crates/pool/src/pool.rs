//! The state of the pool, and how pods get and give back addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use types::{DeviceIndex, EniId, HostVeth, Mac, Moment, NetworkCard, Prefix, Reason, SandboxKey, SubnetId};

use crate::cloud::PICTURE_LAG_MAX;
use crate::model::{
    Action, ActionId, Counts, EniSeen, Exclusion, Given, Grant, Leaving, Limits, Mode, Owner, Place, Role,
    Shortage, Unready, Want,
};
use crate::scarcity::Scarcity;
use crate::surplus::Lately;

/// What counts as a short while ago when it comes to how many pods start.
const RECENT: Duration = Duration::from_secs(60);
/// So long after a pod has come another may come, or take its place.
const BUSY: Duration = Duration::from_secs(120);
/// More starts than so many make no difference to anybody.
const STARTS_MAX: usize = 64;

/// The node's addresses.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) cooldown: Duration,
    pub(crate) mode: Mode,
    /// Where new ENIs may be made, best first.
    pub(crate) subnets: Vec<SubnetId>,
    /// ENIs in these get no more pods.
    excluded: BTreeSet<SubnetId>,
    /// Nor does the primary one.
    spares_primary: bool,
    /// The network cards whose ENIs are for pods, lowest first.
    cards: Vec<NetworkCard>,
    pub(crate) scarcity: Scarcity,
    /// By network card.
    pub(crate) lately: BTreeMap<NetworkCard, Lately>,
    pub(crate) enis: BTreeMap<EniId, Eni>,
    /// Secondary ENIs that the host's kernel is not ready for.
    pub(crate) unready: BTreeMap<Mac, Unready>,
    /// ENIs that pods' packets leave by although pictures do not have the pods' addresses there.
    pub(crate) led_by: BTreeSet<EniId>,
    /// No pod gets these: packets from them leave by another ENI than theirs.
    pub(crate) astray: BTreeSet<Ipv4Addr>,
    pub(crate) held: BTreeMap<SandboxKey, Held>,
    by_name: BTreeMap<HostVeth, SandboxKey>,
    pub(crate) in_flight: BTreeMap<ActionId, Call>,
    pub(crate) last_action: ActionId,
    pub(crate) last_release: Moment,
    /// When the newest picture was asked for.
    pub(crate) pictured: Moment,
    /// What calls have taken away, or may have.
    pub(crate) gone: Vec<Gone>,
    /// What calls of ours brought a short while ago: pictures may lack it.
    pub(crate) came: Vec<Came>,
    /// What calls took away before now is not known: pictures asked for before this moment are not believed.
    pub(crate) distrusted_until: Moment,
    /// Places on the instance that are taken by what is no ENI of `enis`.
    pub(crate) occupied: BTreeSet<(NetworkCard, DeviceIndex)>,
    /// Cooling addresses that are on no known ENI (restored, or taken away meanwhile).
    pub(crate) cooling_elsewhere: BTreeMap<Ipv4Addr, Moment>,
    /// When addresses were reserved lately, the last one first.
    starts: VecDeque<Moment>,
    reused_early: u64,
}

/// One ENI.
#[derive(Debug, Clone)]
pub(crate) struct Eni {
    /// As last seen; its `addresses` and `prefixes` are not kept up, those here are.
    pub(crate) seen: EniSeen,
    /// The prefixes delegated to it. Each of their addresses is among the `addresses`.
    pub(crate) prefixes: BTreeSet<Prefix>,
    pub(crate) first_seen: Moment,
    pub(crate) addresses: BTreeMap<Ipv4Addr, Address>,
    /// Pictures asked for before this do not know our last change.
    pub(crate) believe_from: Moment,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Nobody's, since this moment.
    Free(Moment),
    /// This sandbox's.
    Held(SandboxKey),
    /// Nobody's until this moment, and free from then on.
    Cooling(Moment),
    /// On its way back to EC2; if that fails, it cools until this moment.
    Leaving(Moment),
}

/// Something that a call has taken away, or may have.
#[derive(Debug, Clone)]
pub(crate) struct Gone {
    pub(crate) what: Leaving,
    /// Of its prefixes these addresses are pods' of before a restart: they are there again, and of the rest nobody knows.
    pub(crate) back: BTreeSet<Ipv4Addr>,
    /// The place of an ENI that may be gone with all that it had: until a picture tells, no new one goes there.
    pub(crate) place: Option<(NetworkCard, DeviceIndex)>,
    /// A picture that was asked for after this moment and does not show it tells that it is gone.
    pub(crate) telling: Moment,
    /// A picture that was asked for before this moment may still show it.
    pub(crate) until: Moment,
    /// EC2 has said so; otherwise it may be there after all, and only a picture tells.
    pub(crate) sure: bool,
}

impl Gone {
    /// When it went, or may have.
    pub(crate) fn at(&self) -> Moment {
        self.until.minus(PICTURE_LAG_MAX)
    }
}

/// What EC2 has given.
#[derive(Debug, Clone)]
pub(crate) struct Came {
    /// To this ENI.
    pub(crate) eni: EniId,
    pub(crate) given: Given,
    /// The ENI itself is new.
    pub(crate) made: bool,
    /// A picture that was asked for before this moment may lack it.
    pub(crate) until: Moment,
}

/// What a sandbox has.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) owner: Owner,
    pub(crate) address: Ipv4Addr,
    /// Its ENI, when that is known.
    pub(crate) eni: Option<EniId>,
    committed: bool,
    /// What the address goes back to if the reservation is cancelled.
    before: Address,
    /// Whether it was reserved before its cooldown had passed.
    pub(crate) early: bool,
}

/// An address that can be taken.
#[derive(Debug)]
struct Found {
    address: Ipv4Addr,
    eni: EniId,
    /// It still cools.
    early: bool,
}

/// A call to EC2 whose effect is not known yet.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) action: Action,
    /// It ended without telling how; a picture asked for after this moment tells.
    pub(crate) unclear_since: Option<Moment>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(cooldown: Duration) -> Self {
        Self {
            cooldown,
            mode: Mode::default(),
            subnets: Vec::new(),
            excluded: BTreeSet::new(),
            spares_primary: false,
            cards: vec![NetworkCard(0)],
            scarcity: Scarcity::default(),
            lately: BTreeMap::new(),
            enis: BTreeMap::new(),
            unready: BTreeMap::new(),
            led_by: BTreeSet::new(),
            astray: BTreeSet::new(),
            held: BTreeMap::new(),
            by_name: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            last_action: ActionId(0),
            last_release: Moment(0),
            pictured: Moment(0),
            gone: Vec::new(),
            came: Vec::new(),
            distrusted_until: Moment(0),
            occupied: BTreeSet::new(),
            cooling_elsewhere: BTreeMap::new(),
            starts: VecDeque::new(),
            reused_early: 0,
        }
    }

    /// In which form addresses are asked for from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Says where new ENIs may be made, best first.
    pub fn set_subnets(&mut self, subnets: Vec<SubnetId>) {
        self.subnets = subnets;
    }

    /// Says of which network cards pods get addresses, lowest first. Pods that are on others stay.
    pub fn set_cards(&mut self, cards: Vec<NetworkCard>) {
        self.cards = cards;
    }

    /// The network cards of which pods get addresses, lowest first.
    #[must_use]
    pub fn cards(&self) -> &[NetworkCard] {
        &self.cards
    }

    /// Says in which subnets ENIs get no more pods. Pods that are there stay; what is idle there goes back.
    pub fn set_excluded(&mut self, excluded: BTreeSet<SubnetId>) {
        self.excluded = excluded;
    }

    /// Addresses of ENIs of a network card whose links may appear any moment.
    pub(crate) fn arriving(&self, card: NetworkCard, now: Moment) -> u32 {
        self.coming_on(card).map(|eni| eni.idle(now).0).sum()
    }

    /// Has this node ask full subnets again at other times than nodes with another seed do.
    pub fn spread(&mut self, seed: u64) {
        self.scarcity.spread(seed);
    }

    /// Those subnets.
    #[must_use]
    pub const fn excluded(&self) -> &BTreeSet<SubnetId> {
        &self.excluded
    }

    /// Says that the primary ENI gets no more pods: custom networking. Pods that are there stay; what is idle there goes back.
    pub const fn spare_primary(&mut self) {
        self.spares_primary = true;
    }

    /// Why pods get nothing more of an ENI, if they do not.
    #[must_use]
    pub fn exclusion(&self, eni: &EniSeen) -> Option<Exclusion> {
        let spared = self.spares_primary && eni.role == Role::Primary;
        let excluded = self.excluded.contains(&eni.subnet);
        spared.then_some(Exclusion::Primary).or(excluded.then_some(Exclusion::Subnet))
    }

    /// Reserves an address for a sandbox; one that has an address already gets the same again.
    ///
    /// The fullest ENI that still has room comes first, on it the fullest prefix, and in that the address that has been
    /// free for longest, so that the others drain. Addresses in the form of the mode go before all others. What one network card
    /// has not, the next one may have.
    ///
    /// # Errors
    /// When nothing is free.
    pub fn reserve(&mut self, owner: Owner, now: Moment) -> Result<Grant, Shortage> {
        let cards = self.cards.clone();
        self.reserve_one(Want { owner, cards }, &[], now)
    }

    /// Reserves the address that has cooled for longest, although its time is not over: for when nothing is free and
    /// nothing can be had. Each such case is counted.
    ///
    /// # Errors
    /// When nothing cools either.
    pub fn reserve_early(&mut self, owner: Owner, now: Moment) -> Result<Grant, Shortage> {
        let cards = self.cards.clone();
        self.reserve_one(Want { owner, cards: cards.clone() }, &cards, now)
    }

    fn reserve_one(&mut self, want: Want, early: &[NetworkCard], now: Moment) -> Result<Grant, Shortage> {
        let card = want.cards.first().copied().unwrap_or_default();
        let grant = self.reserve_all(vec![want], early, now)?.pop();
        grant.ok_or_else(|| self.shortage(card, now))
    }

    /// Reserves an address for each of these, or none at all: nothing is taken before all are found. An address that still
    /// cools does where nothing is free, and all cards that would do are in `early`.
    ///
    /// # Errors
    /// Names the first network card that has nothing.
    pub fn reserve_all(
        &mut self,
        wants: Vec<Want>,
        early: &[NetworkCard],
        now: Moment,
    ) -> Result<Vec<Grant>, Shortage> {
        let mut found: Vec<Option<Found>> = Vec::new();
        for want in &wants {
            if self.held.contains_key(&want.owner.sandbox) {
                found.push(None);
                continue;
            }
            let pressed = want.cards.iter().all(|card| early.contains(card));
            let cooling = || want.cards.iter().filter(|_| pressed);
            let free = want.cards.iter().find_map(|card| self.find_free(*card, now));
            let fit = free.or_else(|| cooling().find_map(|card| self.find_cooling(*card)));
            // Two wants of one card would find the same.
            let fit = fit.filter(|fit| found.iter().flatten().all(|other| other.address != fit.address));
            let card = want.cards.first().copied().unwrap_or_default();
            found.push(Some(fit.ok_or_else(|| self.shortage(card, now))?));
        }
        let take = |(want, found): (Want, Option<Found>)| match found {
            Some(found) => Some(self.take(want.owner, found, now)),
            None => self.held.get(&want.owner.sandbox).map(|held| self.grant(held)),
        };
        Ok(wants.into_iter().zip(found).filter_map(take).collect())
    }

    /// The free address of a card that the next pod should get.
    fn find_free(&self, card: NetworkCard, now: Moment) -> Option<Found> {
        let mut enis: Vec<&Eni> = self.usable_on(card).collect();
        enis.sort_by_cached_key(|eni| (Reverse(eni.held()), eni.place()));
        let free = |form: Mode| {
            enis.iter().find_map(|eni| {
                let address = eni.next_free(form, &self.astray, now)?;
                Some(Found { address, eni: eni.seen.id.clone(), early: false })
            })
        };
        free(self.mode).or_else(|| free(self.mode.other()))
    }

    /// The address of a card that has cooled for longest.
    fn find_cooling(&self, card: NetworkCard) -> Option<Found> {
        let cooling = self.usable_on(card).flat_map(|eni| {
            let addresses = eni.addresses.iter().filter(|(address, _)| !self.astray.contains(address));
            addresses.filter_map(|(address, state)| Some((state.cooling_until()?, &eni.seen.id, *address)))
        });
        cooling.min().map(|(_, eni, address)| Found { address, eni: eni.clone(), early: true })
    }

    /// How many addresses were reserved again before their cooldown had passed.
    #[must_use]
    pub const fn reused_early(&self) -> u64 {
        self.reused_early
    }

    fn take(&mut self, owner: Owner, Found { address, eni, early }: Found, now: Moment) -> Grant {
        if owner.further.is_none() {
            self.starts.truncate(STARTS_MAX - 1);
            self.starts.push_front(now);
        }
        self.reused_early += u64::from(early);
        let state = Address::Held(owner.sandbox.clone());
        let before = self.enis.get_mut(&eni).and_then(|eni| eni.addresses.insert(address, state));
        let before = before.unwrap_or(Address::Free(Moment(0)));
        let held = Held { owner, address, eni: Some(eni), committed: false, before, early };
        let grant = self.grant(&held);
        self.keep(held);
        grant
    }

    /// How many addresses were reserved a short while ago.
    pub(crate) fn recent_starts(&self, now: Moment) -> u32 {
        let recent = self.starts.iter().take_while(|start| now.since(**start) < RECENT).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }

    /// Until when pods count as coming and going, if they do.
    pub(crate) fn busy_until(&self, now: Moment) -> Option<Moment> {
        self.starts.front().map(|start| start.plus(BUSY)).filter(|until| *until > now)
    }

    fn keep(&mut self, held: Held) {
        self.by_name.insert(held.owner.host_if.clone(), held.owner.sandbox.clone());
        self.held.insert(held.owner.sandbox.clone(), held);
    }

    /// Notes the IPv6 address that goes with what a sandbox holds; one that it has already stays. Returns which it is.
    pub fn note_ipv6(&mut self, sandbox: &SandboxKey, address: Option<Ipv6Addr>) -> Option<Ipv6Addr> {
        let owner = &mut self.held.get_mut(sandbox)?.owner;
        owner.ipv6 = owner.ipv6.or(address);
        owner.ipv6
    }

    /// Makes a reservation an assignment.
    pub fn commit(&mut self, sandbox: &SandboxKey) {
        if let Some(held) = self.held.get_mut(sandbox) {
            held.committed = true;
        }
    }

    /// Takes back a reservation whose address no packet has ever carried: it is again what it was before.
    ///
    /// An assignment stays: it can only be released.
    pub fn cancel(&mut self, sandbox: &SandboxKey) {
        if self.held.get(sandbox).is_none_or(|held| held.committed) {
            return;
        }
        if let Some(held) = self.forget(sandbox) {
            self.put(held.address, held.eni.as_ref(), held.before);
        }
    }

    /// Takes an address back; it cools from `now` on. `None` for a sandbox that has none.
    pub fn release(&mut self, sandbox: &SandboxKey, now: Moment) -> Option<(Owner, Grant)> {
        let held = self.forget(sandbox)?;
        let grant = self.grant(&held);
        if held.owner.branch.is_none() {
            self.put(held.address, held.eni.as_ref(), Address::Cooling(now.plus(self.cooldown)));
        }
        Some((held.owner, grant))
    }

    fn forget(&mut self, sandbox: &SandboxKey) -> Option<Held> {
        let held = self.held.remove(sandbox)?;
        if self.by_name.get(&held.owner.host_if) == Some(sandbox) {
            self.by_name.remove(&held.owner.host_if);
        }
        Some(held)
    }

    fn put(&mut self, address: Ipv4Addr, eni: Option<&EniId>, state: Address) {
        if let Some(eni) = eni.and_then(|eni| self.enis.get_mut(eni)) {
            eni.addresses.insert(address, state);
        } else if let Address::Cooling(until) = state {
            self.cooling_elsewhere.insert(address, until);
        }
    }

    /// Gives an owner the address it is known to have: on restart.
    ///
    /// It is kept from everybody else even when no ENI that has it is known yet. Who came first keeps an address
    /// that two claim (I4); an address that the owner had until now cools.
    pub fn adopt(&mut self, owner: Owner, address: Ipv4Addr) {
        let taken =
            self.held.values().any(|held| held.address == address && held.owner.sandbox != owner.sandbox);
        if taken {
            return;
        }
        self.release(&owner.sandbox, owner.since);
        self.cooling_elsewhere.remove(&address);
        self.is_back(None, &Given::addresses([address].into()));
        let of_prefix = |gone: &&mut Gone| {
            let given = gone.what.given.as_ref();
            given.is_some_and(|given| given.prefixes.contains(&Prefix::of(address)))
        };
        for gone in self.gone.iter_mut().filter(of_prefix) {
            gone.back.insert(address);
        }
        let eni = self.enis.values_mut().find(|eni| eni.addresses.contains_key(&address));
        let eni = eni.map(|eni| {
            eni.addresses.insert(address, Address::Held(owner.sandbox.clone()));
            eni.seen.id.clone()
        });
        let before = Address::Free(Moment(0));
        self.keep(Held { owner, address, eni, committed: true, before, early: false });
    }

    /// Reserves for an owner the address of its branch ENI, which is not of the pool. What the owner holds already it keeps. `None` when
    /// another one holds the address.
    pub fn hold(&mut self, owner: Owner, address: Ipv4Addr) -> Option<Grant> {
        if let Some(held) = self.held.get(&owner.sandbox) {
            return (held.address == address).then(|| self.grant(held));
        }
        if self.held.values().any(|held| held.address == address) {
            return None;
        }
        let before = Address::Free(Moment(0));
        let held = Held { owner, address, eni: None, committed: false, before, early: false };
        let grant = self.grant(&held);
        self.keep(held);
        Some(grant)
    }

    /// Who holds what, by sandbox, and where it is.
    pub fn owners(&self) -> impl Iterator<Item = (&Owner, Grant)> {
        self.held.values().map(|held| (&held.owner, self.grant(held)))
    }

    /// Who holds which address, by sandbox.
    pub fn holders(&self) -> impl Iterator<Item = (&Owner, Ipv4Addr)> {
        self.held.values().map(|held| (&held.owner, held.address))
    }

    /// Whether what this sandbox holds is only promised to an ADD in progress.
    #[must_use]
    pub fn is_reserved(&self, sandbox: &SandboxKey) -> bool {
        self.held.get(sandbox).is_some_and(|held| !held.committed)
    }

    /// What one sandbox holds.
    #[must_use]
    pub fn owner(&self, sandbox: &SandboxKey) -> Option<(&Owner, Grant)> {
        self.held.get(sandbox).map(|held| (&held.owner, self.grant(held)))
    }

    /// The attachments of a sandbox, the one that the runtime knows first; none for a sandbox that holds nothing.
    #[must_use]
    pub fn interfaces_of(&self, sandbox: &SandboxKey) -> Vec<&Owner> {
        let of_it = |held: &Held| held.owner.further.as_ref().is_some_and(|further| further.of == *sandbox);
        let beside = self.held.range(sandbox.further(0)..).take_while(|(key, _)| key.is_beside(sandbox));
        let further = beside.map(|(_, held)| held).filter(|held| of_it(held));
        let main = self.held.get(sandbox).filter(|held| held.owner.further.is_none());
        let mut owners: Vec<&Owner> = main.into_iter().chain(further).map(|held| &held.owner).collect();
        owners.sort_by_key(|owner| owner.index());
        owners
    }

    /// The sandbox that has this host interface.
    #[must_use]
    pub fn holder_of(&self, host_if: &HostVeth) -> Option<&SandboxKey> {
        self.by_name.get(host_if)
    }

    /// The ENIs as they were last seen: what has changed of their addresses since is not shown.
    pub fn seen(&self) -> impl Iterator<Item = &EniSeen> {
        self.enis.values().map(|eni| &eni.seen)
    }

    /// The ENIs as they are now; what is on its way out is not shown.
    #[must_use]
    pub fn enis(&self) -> Vec<EniSeen> {
        self.enis.values().map(Eni::now).collect()
    }

    /// Addresses by state; those that are held count wherever they are, but for those of branch ENIs.
    #[must_use]
    pub fn counts(&self, now: Moment) -> Counts {
        let mut counts = Counts::default();
        for eni in self.usable() {
            let (free, cooling) = eni.idle(now);
            counts.free += free;
            counts.cooling += cooling;
        }
        for held in self.held.values().filter(|held| held.owner.branch.is_none()) {
            *if held.committed { &mut counts.assigned } else { &mut counts.reserved } += 1;
        }
        counts
    }

    /// The same of one network card. What is held and on no known ENI counts on card 0.
    #[must_use]
    pub fn counts_on(&self, card: NetworkCard, now: Moment) -> Counts {
        let mut counts = Counts::default();
        for eni in self.usable_on(card) {
            let (free, cooling) = eni.idle(now);
            counts.free += free;
            counts.cooling += cooling;
        }
        // As a rule there is one card, and nobody's ENI has to be looked up: this is asked with each event, and hundreds may hold something.
        let one_card = self.enis.values().all(|eni| eni.seen.card == NetworkCard(0));
        let is_on = |held: &Held| match one_card {
            true => card == NetworkCard(0),
            false => self.card_of(held.eni.as_ref()) == card,
        };
        let of_card = |held: &&Held| held.owner.branch.is_none() && is_on(held);
        for held in self.held.values().filter(of_card) {
            *if held.committed { &mut counts.assigned } else { &mut counts.reserved } += 1;
        }
        counts
    }

    /// The network card of an ENI, if that is known; 0 otherwise.
    fn card_of(&self, eni: Option<&EniId>) -> NetworkCard {
        eni.and_then(|eni| self.enis.get(eni)).map_or(NetworkCard(0), |eni| eni.seen.card)
    }

    /// The network card that an action is about.
    pub(crate) fn card_acted_on(&self, action: &Action) -> NetworkCard {
        match action {
            Action::CreateEni { card, .. } => *card,
            Action::Assign { eni, .. } | Action::Release { eni, .. } | Action::DeleteEni { eni } => {
                self.card_of(Some(eni))
            }
        }
    }

    /// Calls in progress about one network card.
    pub(crate) fn calls_on(&self, card: NetworkCard) -> impl Iterator<Item = &Call> {
        self.in_flight.values().filter(move |call| self.card_acted_on(&call.action) == card)
    }

    /// Addresses of one ENI by state.
    #[must_use]
    pub fn counts_of(&self, eni: &EniId, now: Moment) -> Counts {
        self.enis.get(eni).map(|eni| self.counts_in(eni, now)).unwrap_or_default()
    }

    pub(crate) fn counts_in(&self, eni: &Eni, now: Moment) -> Counts {
        let (free, cooling) = eni.idle(now);
        let mut counts = Counts { free, cooling, ..Counts::default() };
        for address in eni.addresses.values() {
            if let Address::Held(sandbox) = address {
                let committed = self.held.get(sandbox).is_some_and(|held| held.committed);
                *if committed { &mut counts.assigned } else { &mut counts.reserved } += 1;
            }
        }
        counts
    }

    /// When the next address stops cooling, if one cools.
    #[must_use]
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        let addresses = self.enis.values().flat_map(|eni| eni.addresses.values());
        addresses.filter_map(Address::cooling_until).filter(|until| *until > now).min()
    }

    /// When the next address of a network card stops cooling that pods may get.
    #[must_use]
    pub fn next_cooled_on(&self, card: NetworkCard, now: Moment) -> Option<Moment> {
        let addresses = self.usable_on(card).flat_map(|eni| eni.addresses.values());
        addresses.filter_map(Address::cooling_until).filter(|until| *until > now).min()
    }

    /// Why nothing is free on a network card, in one word.
    #[must_use]
    pub fn shortage_reason(&self, limits: &Limits, now: Moment) -> Reason {
        let place_for_eni = !self.free_devices(limits).is_empty();
        let new = self.subnets.iter().filter(|_| place_for_eni);
        let places: Vec<&SubnetId> =
            self.with_room(limits).into_iter().map(|eni| &eni.seen.subnet).chain(new).collect();
        let obtainable = self.calls_on(limits.card).next().is_some()
            || self.arriving(limits.card, now) > 0
            || places.iter().any(|subnet| self.may_ask(subnet, now));
        match (obtainable, places.is_empty()) {
            (true, _) => Reason::PoolEmpty,
            (false, false) => Reason::SubnetFull,
            (false, true) if place_for_eni => Reason::NoSubnet,
            (false, true) => Reason::NodeFull,
        }
    }

    /// Whether a subnet may be asked for something that would serve a pod.
    fn may_ask(&self, subnet: &SubnetId, now: Moment) -> bool {
        let forms = [Mode::Addresses, self.mode];
        forms.into_iter().any(|form| self.scarcity.ask_at_most(subnet, form, now) > 0)
    }

    /// When a subnet that was full is asked again, the first of several.
    #[must_use]
    pub fn asks_again(&self, now: Moment) -> Option<Moment> {
        self.scarcity.next_change(now)
    }

    /// ENIs whose free addresses pods may get.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Eni> {
        self.fit().filter(|eni| self.unready(&eni.seen).is_none())
    }

    /// Those of them on one network card.
    pub(crate) fn usable_on(&self, card: NetworkCard) -> impl Iterator<Item = &Eni> {
        self.usable().filter(move |eni| eni.seen.card == card)
    }

    /// Those on a network card that more can be asked for, also as long as they have no IPv6 prefix.
    pub(crate) fn growable_on(&self, card: NetworkCard) -> impl Iterator<Item = &Eni> {
        let growable = |eni: &Eni| {
            matches!(self.unready(&eni.seen), None | Some(Unready::NoPrefix | Unready::PrefixRefused))
        };
        self.fit().filter(move |eni| eni.seen.card == card && growable(eni))
    }

    /// ENIs whose free addresses pods may get once the host's kernel is ready for them.
    fn fit(&self) -> impl Iterator<Item = &Eni> {
        let fit = |eni: &&Eni| self.cards.contains(&eni.seen.card) && self.exclusion(&eni.seen).is_none();
        self.ours().filter(fit)
    }

    /// Those of one network card for which it may be ready any moment.
    pub(crate) fn coming_on(&self, card: NetworkCard) -> impl Iterator<Item = &Eni> {
        let coming = |eni: &Eni| self.unready(&eni.seen).is_some_and(Unready::is_coming);
        self.fit().filter(move |eni| eni.seen.card == card && coming(eni))
    }

    /// ENIs for pods that are not on their way out.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Eni> {
        self.enis.values().filter(|eni| eni.seen.role.is_for_pods() && !self.is_being_deleted(&eni.seen.id))
    }

    fn grant(&self, held: &Held) -> Grant {
        let eni = held.eni.as_ref().and_then(|eni| self.enis.get(eni));
        let place =
            eni.map(|eni| Place { eni: eni.seen.id.clone(), card: eni.seen.card, device: eni.seen.device });
        Grant { address: held.address, place }
    }

    fn shortage(&self, card: NetworkCard, now: Moment) -> Shortage {
        let counts = self.counts_on(card, now);
        Shortage { card, held: counts.reserved + counts.assigned, cooling: counts.cooling }
    }
}

impl Eni {
    pub(crate) fn held(&self) -> usize {
        self.addresses.values().filter(|address| matches!(address, Address::Held(_))).count()
    }

    /// How many addresses are free, and how many cool.
    pub(crate) fn idle(&self, now: Moment) -> (u32, u32) {
        let mut counts = (0, 0);
        for address in self.addresses.values() {
            match address {
                Address::Held(_) | Address::Leaving(_) => {}
                state if state.is_free(now) => counts.0 += 1,
                Address::Free(_) | Address::Cooling(_) => counts.1 += 1,
            }
        }
        counts
    }

    /// Slots of the ENI in use: prefixes, and addresses outside of them.
    pub(crate) fn slots(&self) -> u32 {
        let slots = self.prefixes.len() + self.singles().count();
        u32::try_from(slots).unwrap_or(u32::MAX)
    }

    /// Addresses that are in no prefix.
    pub(crate) fn singles(&self) -> impl DoubleEndedIterator<Item = (Ipv4Addr, &Address)> {
        let single = |address: &Ipv4Addr| self.prefixes.is_empty() || self.prefix_of(*address).is_none();
        let addresses = self.addresses.iter().filter(move |(address, _)| single(address));
        addresses.map(|(address, state)| (*address, state))
    }

    /// The addresses of a prefix.
    pub(crate) fn within(&self, prefix: Prefix) -> impl Iterator<Item = &Address> {
        prefix.addresses().filter_map(|address| self.addresses.get(&address))
    }

    /// The prefix in which an address lies.
    pub(crate) fn prefix_of(&self, address: Ipv4Addr) -> Option<Prefix> {
        let prefix = Prefix::of(address);
        self.prefixes.contains(&prefix).then_some(prefix)
    }

    /// As it is now; what is on its way out is not shown.
    pub(crate) fn now(&self) -> EniSeen {
        let stays = self.singles().filter(|(_, state)| !state.is_leaving());
        let leaves = |prefix: Prefix| self.within(prefix).any(Address::is_leaving);
        EniSeen {
            addresses: stays.map(|(address, _)| address).collect(),
            prefixes: self.prefixes.iter().copied().filter(|prefix| !leaves(*prefix)).collect(),
            ..self.seen.clone()
        }
    }

    /// The address in a form that the next pod should get.
    fn next_free(&self, form: Mode, astray: &BTreeSet<Ipv4Addr>, now: Moment) -> Option<Ipv4Addr> {
        let held = |prefix| self.within(prefix).filter(|state| matches!(state, Address::Held(_))).count();
        let mut fullest: BTreeMap<Prefix, usize> = BTreeMap::new();
        let choice = |(address, state): (&Ipv4Addr, &Address)| {
            let since = state.free_since(now).filter(|_| !astray.contains(address))?;
            let prefix = self.prefix_of(*address);
            if prefix.is_some() != (form == Mode::Prefixes) {
                return None;
            }
            let held = prefix.map_or(0, |prefix| *fullest.entry(prefix).or_insert_with(|| held(prefix)));
            Some((Reverse(held), prefix, since, *address))
        };
        self.addresses.iter().filter_map(choice).min().map(|(.., address)| address)
    }

    pub(crate) const fn place(&self) -> (NetworkCard, DeviceIndex) {
        (self.seen.card, self.seen.device)
    }
}

impl Address {
    /// Since when it can be reserved; `None` if it cannot at `now`.
    fn free_since(&self, now: Moment) -> Option<Moment> {
        match self {
            Self::Free(at) => Some(*at),
            Self::Cooling(until) => (*until <= now).then_some(*until),
            Self::Held(_) | Self::Leaving(_) => None,
        }
    }

    /// Whether it can be reserved at `now`.
    pub(crate) fn is_free(&self, now: Moment) -> bool {
        self.free_since(now).is_some()
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving(_))
    }

    const fn cooling_until(&self) -> Option<Moment> {
        match self {
            Self::Cooling(until) => Some(*until),
            Self::Free(_) | Self::Held(_) | Self::Leaving(_) => None,
        }
    }
}
