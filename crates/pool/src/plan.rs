//! What to ask EC2 for next: a function of pool, targets, limits, demand and time.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use types::{DeviceIndex, EniId, Moment, NetworkCard, Prefix, SubnetId};

use crate::aim::{Aim, Need, Stock};
use crate::model::{Action, Exclusion, Given, Limits, Mode, Role, Targets, Unready, Wanted};
use crate::pool::{Eni, Pool};
use crate::surplus::{Lately, Patience, Spells};

/// So many addresses too many the automatic rule lets be while pods come and go, or while more of them are about to be too many, where
/// nobody is short of any: what the last pods left the next ones take, and what goes back goes back in one call. Empty ENIs go all the
/// same.
const LET_BE: u32 = 8;

/// What to do now. Grows or shrinks, never both; at most one action per ENI.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The actions.
    pub actions: Vec<Planned>,
    /// Every other ENI, and why it is left alone.
    pub kept: Vec<(EniId, KeptReason)>,
    /// Addresses that are wanted but have no place on this instance.
    pub unmet: u32,
    /// Addresses beyond what is wanted that stay for now: pods come and go, or more are about to be too many.
    pub let_be: u32,
    /// When time alone may change the plan; cooling apart, for which there is [`Pool::next_change`].
    pub look_again: Option<Moment>,
}

impl Plan {
    /// The two as one: of different network cards.
    pub fn and(mut self, other: Self) -> Self {
        self.actions.extend(other.actions);
        self.kept.extend(other.kept);
        self.unmet = self.unmet.saturating_add(other.unmet);
        self.let_be = self.let_be.saturating_add(other.let_be);
        self.look_again = self.look_again.into_iter().chain(other.look_again).min();
        self
    }
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub action: Action,
    /// Why.
    pub why: Why,
}

/// Why something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// So many ADDs are without an address.
    PodsWait(u32),
    /// Fewer free addresses than `WARM_IP_TARGET`.
    WarmShort {
        /// The target.
        target: u32,
        /// How many are missing.
        by: u32,
    },
    /// Fewer addresses in all than `MINIMUM_IP_TARGET`.
    MinimumShort {
        /// The target.
        target: u32,
        /// How many are missing.
        by: u32,
    },
    /// Fewer free addresses than `WARM_ENI_TARGET` ENIs hold.
    WarmEniShort {
        /// The target.
        target: u32,
        /// How many are missing.
        by: u32,
    },
    /// Fewer free addresses than `WARM_PREFIX_TARGET` prefixes hold.
    WarmPrefixShort {
        /// The target.
        target: u32,
        /// How many addresses are missing.
        by: u32,
    },
    /// So many more addresses than the targets ask for.
    Over(u32),
    /// They are in the form of a mode that is no longer wanted.
    OtherForm,
    /// Pods get nothing more of the ENI.
    Excluded(Exclusion),
    /// No pod can use the ENI.
    Unready(Unready),
    /// No pod uses the ENI, and the targets hold without it.
    Unneeded,
}

/// Why an ENI is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptReason {
    /// It is not for pods of this plan.
    Role(Role),
    /// It is on a network card of which pods get nothing any more.
    OtherCard(NetworkCard),
    /// More addresses are wanted, but pods get nothing more of it.
    Excluded(Exclusion),
    /// Pods would have no way out by it.
    Unready(Unready),
    /// A call to EC2 is under way.
    Busy,
    /// More addresses are wanted, but it holds as many as it can.
    Full,
    /// More addresses are wanted, but other ENIs take them.
    NotNeededYet,
    /// So many of its addresses are reserved or assigned.
    Pods(u32),
    /// Packets of pods leave by it whose addresses EC2 tells elsewhere or nowhere: that may be old.
    LeadsPods,
    /// So many of its addresses cool.
    Cooling(u32),
    /// The targets would not hold without it.
    Needed,
    /// The targets hold without it, but did not a while ago: at this moment more is known.
    NeededLately(Moment),
    /// It was first seen too short a while ago to be given back before this moment.
    Young(Moment),
    /// It could be given back, but something else goes first.
    Rests,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Planned { action, why } in &self.actions {
            writeln!(f, "{action}: {why}")?;
        }
        for (eni, reason) in &self.kept {
            writeln!(f, "leave {eni} alone: {reason}")?;
        }
        if self.let_be > 0 {
            writeln!(f, "{} more addresses than are wanted stay while pods come and go", self.let_be)?;
        }
        match self.unmet {
            0 => Ok(()),
            n => writeln!(f, "{n} more addresses are wanted than this instance has room for now"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodsWait(n) => write!(f, "{n} pods wait for an address"),
            Self::WarmShort { target, by } => write!(f, "short of the warm target {target} by {by}"),
            Self::MinimumShort { target, by } => write!(f, "short of the minimum {target} by {by}"),
            Self::WarmEniShort { target, by } => write!(f, "short of {target} warm ENIs by {by} addresses"),
            Self::WarmPrefixShort { target, by } => {
                write!(f, "short of {target} warm prefixes by {by} addresses")
            }
            Self::OtherForm => f.write_str("they are in the form of a mode that is no longer wanted"),
            Self::Excluded(why) => why.fmt(f),
            Self::Unready(why) => why.fmt(f),
            Self::Over(n) => write!(f, "{n} more than the targets ask for"),
            Self::Unneeded => f.write_str("no pod uses it and the targets hold without it"),
        }
    }
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => write!(f, "it is {role}"),
            Self::OtherCard(card) => write!(f, "it is on network card {card}"),
            Self::Excluded(why) => why.fmt(f),
            Self::Unready(why) => why.fmt(f),
            Self::Busy => f.write_str("a call to EC2 is under way"),
            Self::Full => f.write_str("it is full"),
            Self::NotNeededYet => f.write_str("other ENIs have room for what is missing"),
            Self::Pods(n) => write!(f, "pods have {n} of its addresses"),
            Self::LeadsPods => f.write_str("it leads pods out, whatever old descriptions say"),
            Self::Cooling(n) => write!(f, "{n} of its addresses cool"),
            Self::Needed => f.write_str("the targets would not hold without it"),
            Self::NeededLately(_) => f.write_str("the targets would not have held without it a while ago"),
            Self::Young(_) => f.write_str("it is too young to be given back"),
            Self::Rests => f.write_str("it can be given back later"),
        }
    }
}

/// What a plan depends on, apart from the pool.
#[derive(Debug, Clone, Copy)]
struct Situation<'a> {
    targets: &'a Targets,
    limits: &'a Limits,
    aim: Aim,
    stock: Stock,
    /// The same with no more available than there was for a while.
    lasting: Stock,
    now: Moment,
}

impl Situation<'_> {
    /// Whether more is about to be too many than has been for a while.
    fn comes_more(&self) -> bool {
        self.aim.over(self.stock) > self.aim.over(self.lasting)
    }
}

impl Pool {
    /// Notes how much is available on a network card, for later plans: they give back only what has been to spare for a while.
    /// To be called with every change. Where it never was, plans take what is to spare for what has been so.
    pub fn watch(&mut self, card: NetworkCard, waiting: u32, now: Moment) {
        // What is on its way out is so until it has gone.
        let on_card = self.enis.values().filter(|eni| eni.seen.card == card);
        let leaving = |eni: &Eni| {
            let addresses = eni.addresses.iter().filter(|(_, state)| state.is_leaving());
            self.counted(eni, addresses.map(|(address, _)| *address), now)
        };
        let leaving: u32 = on_card.map(leaving).sum();
        let available = self.stock(card, waiting, now).available + i64::from(leaving);
        let cooldown = self.cooldown;
        self.lately.entry(card).or_insert_with(|| Lately::new(cooldown)).note(available, now);
    }

    /// What was available lately on a network card, if anybody has watched.
    fn spells(&self, targets: &Targets, aim: Aim, card: NetworkCard, now: Moment) -> Option<Spells> {
        let patience = match aim {
            _ if targets.is_automatic() || !self.is_plenty(targets, now) => Patience::None,
            Aim::Addresses { .. } => Patience::Addresses,
            Aim::Enis(_) | Aim::Prefixes(_) => Patience::Units,
        };
        self.lately.get(&card).map(|lately| lately.spells(patience))
    }

    /// When more of what is available may count as lasting.
    fn lately_until(&self, situation: Situation<'_>) -> Option<Moment> {
        let Situation { targets, limits, aim, now, .. } = situation;
        self.spells(targets, aim, limits.card, now).and_then(Spells::next_change)
    }

    /// Decides what to ask EC2 for next on one network card; `waiting` ADDs are without an address of it.
    pub fn plan(&self, targets: &Targets, limits: &Limits, waiting: u32, now: Moment) -> Plan {
        let stock = self.stock(limits.card, waiting, now);
        let aim = self.aim(targets, stock, now);
        let spells = self.spells(targets, aim, limits.card, now);
        let lasting = spells.map_or(stock.available, |spells| spells.lasting(stock.available));
        let lasting = Stock { available: lasting, ..stock };
        let situation = Situation { targets, limits, aim, stock, lasting, now };
        let need = aim.need(targets, limits, stock, waiting);
        let mut plan = match need {
            Some(need) => {
                let plan = self.grow(situation, need);
                let stuck = plan.actions.is_empty() && self.calls_on(limits.card).next().is_none();
                if stuck { self.make_room(situation, need, plan) } else { plan }
            }
            None if waiting > 0 || self.calls_on(limits.card).next().is_some() => Plan::default(),
            None => self.shrink(situation),
        };
        self.explain(situation, need.is_some(), &mut plan);
        // What a subnet lacked it may have again, and what is let be while pods come and go may be to spare then.
        let quiet = self.busy_until(now).filter(|_| targets.is_automatic());
        let later = self.scarcity.next_change(now).into_iter().chain(quiet);
        plan.look_again = plan.look_again.into_iter().chain(later).min();
        plan
    }

    /// How many of these addresses of an ENI count as available while nobody has them.
    pub(crate) fn counted(&self, eni: &Eni, addresses: impl Iterator<Item = Ipv4Addr>, now: Moment) -> u32 {
        if self.exclusion(&eni.seen).is_some() || self.unready(&eni.seen).is_some() {
            return 0;
        }
        let form = self.form_in(&eni.seen.subnet, now);
        let counts = |address: &Ipv4Addr| match (self.mode, form) {
            (Mode::Prefixes, Mode::Addresses) => true,
            (wanted, _) => eni.prefix_of(*address).is_some() == (wanted == Mode::Prefixes),
        };
        as_count(addresses.filter(counts).count())
    }

    fn stock(&self, card: NetworkCard, waiting: u32, now: Moment) -> Stock {
        let counts = self.counts_on(card, now);
        let coming = self.coming(card) + self.arriving(card, now);
        let other_form: usize = self
            .usable_on(card)
            .map(|eni| self.idle_in_other_form(eni, now))
            .map(|given| given.all().count())
            .sum();
        let other_form = u32::try_from(other_form).unwrap_or(u32::MAX);
        let available = i64::from(counts.free) + i64::from(coming) - i64::from(waiting);
        Stock {
            total: (counts.total() + coming).saturating_sub(other_form),
            cooling: counts.cooling,
            available: available - i64::from(other_form),
        }
    }

    /// What is idle on an ENI in another form than the one now wanted: it does not count, and goes once nothing is
    /// missing without it, or when nothing else makes room for what is missing. Single addresses count where the subnet has no prefix to give.
    fn idle_in_other_form(&self, eni: &Eni, now: Moment) -> Given {
        match (self.mode, self.form_in(&eni.seen.subnet, now)) {
            (Mode::Addresses, _) => Given::prefixes(idle_prefixes(eni, now).collect()),
            (Mode::Prefixes, Mode::Addresses) => Given::default(),
            (Mode::Prefixes, Mode::Prefixes) => Given::addresses(free_singles(eni, now).collect()),
        }
    }

    fn grow(&self, situation: Situation<'_>, mut need: Need) -> Plan {
        let Situation { limits, now, .. } = situation;
        let why = need.why;
        let mut actions = Vec::new();
        let mut enis = self.with_room(limits);
        let mut devices = self.free_devices(limits);
        // Single addresses only for what no prefix could be had for.
        let forms: &[Mode] = match self.mode {
            Mode::Addresses => &[Mode::Addresses],
            Mode::Prefixes => &[Mode::Prefixes, Mode::Addresses],
        };
        for form in forms {
            enis.retain(|eni| {
                let most = self.scarcity.ask_at_most(&eni.seen.subnet, *form, now);
                let wanted = need.take(*form, self.room(eni, limits).min(most));
                let action = wanted.map(|wanted| Action::Assign { eni: eni.seen.id.clone(), wanted });
                actions.extend(action.map(|action| Planned { action, why }));
                wanted.is_none()
            });
            need.comes(Wanted::new(*form, self.room_later(limits, *form, now)).addresses());
            devices.retain(|device| {
                if need.urgent == 0 {
                    return true;
                }
                let most = |subnet| self.scarcity.ask_at_most(subnet, *form, now);
                let Some(subnet) = self.subnets.iter().find(|subnet| most(subnet) > 0) else { return true };
                let wanted = need.take(*form, u32::from(limits.slots_per_eni).min(most(subnet)));
                let (card, device) = (limits.card, *device);
                let create = |wanted| Action::CreateEni { card, device, subnet: subnet.clone(), wanted };
                actions.extend(wanted.map(create).map(|action| Planned { action, why }));
                wanted.is_none()
            });
        }
        Plan { actions, unmet: need.urgent.min(need.bound), ..Plan::default() }
    }

    /// Free slots of an ENI. What a call may have taken away fills its own until a picture tells.
    fn room(&self, eni: &Eni, limits: &Limits) -> u32 {
        let doubtful = self.gone.iter().filter(|gone| !gone.sure && gone.what.eni == eni.seen.id);
        // The same may have been given back more than once.
        let (mut addresses, mut prefixes) = (BTreeSet::<Ipv4Addr>::new(), BTreeSet::<Prefix>::new());
        for given in doubtful.filter_map(|gone| gone.what.given.as_ref()) {
            addresses.extend(&given.addresses);
            prefixes.extend(given.prefixes.difference(&eni.prefixes));
        }
        let doubtful = as_count(addresses.len() + prefixes.len());
        u32::from(limits.slots_per_eni).saturating_sub(eni.slots()).saturating_sub(doubtful)
    }

    /// ENIs that can take more addresses and are not busy, fullest first.
    pub(crate) fn with_room(&self, limits: &Limits) -> Vec<&Eni> {
        let fit = |eni: &&Eni| self.room(eni, limits) > 0 && !self.is_busy(&eni.seen.id);
        let mut enis: Vec<&Eni> = self.growable_on(limits.card).filter(fit).collect();
        enis.sort_by_key(|eni| (Reverse(eni.slots()), eni.place()));
        enis
    }

    /// Slots that will take a form on ENIs that are busy or being made: these can take more sooner than another new ENI could.
    fn room_later(&self, limits: &Limits, form: Mode, now: Moment) -> u32 {
        let busy = self.growable_on(limits.card).filter(|eni| self.is_busy(&eni.seen.id));
        let busy = busy.map(|eni| {
            let room = self.room(eni, limits).saturating_sub(self.slots_coming_to(&eni.seen.id));
            (&eni.seen.subnet, room)
        });
        // One that may never come has no room.
        let made = self.calls_on(limits.card).filter(|call| call.unclear_since.is_none());
        let made = made.filter_map(|call| match &call.action {
            Action::CreateEni { subnet, wanted, .. } => {
                Some((subnet, u32::from(limits.slots_per_eni).saturating_sub(wanted.slots())))
            }
            Action::Assign { .. } | Action::Release { .. } | Action::DeleteEni { .. } => None,
        });
        let takes = |subnet: &SubnetId| self.form_in(subnet, now) == form;
        busy.chain(made).filter(|(subnet, _)| takes(subnet)).map(|(_, room)| room).sum()
    }

    /// In which form addresses of a subnet are asked for: single ones where it has no prefix to give.
    fn form_in(&self, subnet: &SubnetId, now: Moment) -> Mode {
        match self.mode {
            Mode::Prefixes if self.scarcity.ask_at_most(subnet, Mode::Prefixes, now) == 0 => Mode::Addresses,
            Mode::Prefixes => Mode::Prefixes,
            Mode::Addresses => Mode::Addresses,
        }
    }

    /// Device indices that a new ENI may have, lowest first; as many as there may be new ENIs.
    pub(crate) fn free_devices(&self, limits: &Limits) -> Vec<DeviceIndex> {
        let on_card =
            self.enis.values().filter(|eni| eni.seen.card == limits.card).map(|eni| eni.seen.device);
        let coming = self.calls_on(limits.card).filter_map(|call| match &call.action {
            Action::CreateEni { device, .. } => Some(*device),
            Action::Assign { .. } | Action::Release { .. } | Action::DeleteEni { .. } => None,
        });
        let doubtful = self.gone.iter().filter_map(|gone| gone.place.as_ref());
        let others = self
            .occupied
            .iter()
            .chain(doubtful)
            .filter(|(card, _)| *card == limits.card)
            .map(|(_, device)| *device);
        // The primary ENI is there even before the first picture.
        let primary = (limits.card == NetworkCard(0)).then_some(DeviceIndex(0));
        let taken: BTreeSet<DeviceIndex> = on_card.chain(coming).chain(others).chain(primary).collect();
        let more = usize::from(limits.max_enis).saturating_sub(taken.len());
        (0..=u8::MAX).map(DeviceIndex).filter(|device| !taken.contains(device)).take(more).collect()
    }

    fn shrink(&self, situation: Situation<'_>) -> Plan {
        let actions = match self.unneeded(situation) {
            Some(eni) => vec![delete(eni, self.unready(&eni.seen).map_or(Why::Unneeded, Why::Unready))],
            None => self.give_back(situation),
        };
        let let_be = situation.aim.over(situation.lasting) - self.over(situation);
        let more = situation.comes_more();
        let look_again = self.lately_until(situation).filter(|_| more && actions.is_empty());
        self.paced(situation, Plan { actions, look_again, let_be, ..Plan::default() })
    }

    /// What a plan gives back it gives back later if the last time was a short while ago.
    fn paced(&self, situation: Situation<'_>, plan: Plan) -> Plan {
        let due = self.last_release.plus(situation.targets.release_every);
        if !plan.actions.is_empty() && due > situation.now && self.last_release > Moment(0) {
            return Plan { actions: Vec::new(), look_again: Some(due), ..plan };
        }
        plan
    }

    /// Something is missing and cannot be had: what pods cannot use, or use only for want of better, may be in its way.
    fn make_room(&self, situation: Situation<'_>, need: Need, plan: Plan) -> Plan {
        let Situation { limits, now, .. } = situation;
        let counts = |eni: &&Eni| eni.seen.card == limits.card && self.unready(&eni.seen).is_none();
        let mut enis: Vec<&Eni> = self.ours().filter(counts).collect();
        let excluded = |eni: &Eni| self.exclusion(&eni.seen);
        enis.sort_by_key(|eni| (excluded(eni).is_none(), eni.held(), Reverse(eni.place())));
        let removable = enis.iter().filter(|eni| self.why_kept(eni, situation).is_none());
        let removable = removable.filter_map(|eni| Some(delete(eni, Why::Excluded(excluded(eni)?)))).next();
        let useless = || {
            enis.iter().find_map(|eni| {
                let (given, why) = self.useless(eni, now)?;
                if why == Why::OtherForm && self.room(eni, limits) > 0 {
                    return None;
                }
                // Of what pods may still get no more than is in the way.
                let given = if why == Why::OtherForm { some_of(given, need.slots(self.mode)) } else { given };
                Some(Planned { action: Action::Release { eni: eni.seen.id.clone(), given }, why })
            })
        };
        let actions: Vec<Planned> = removable.or_else(useless).into_iter().collect();
        // Too young ones are not explained by their age where something is missing.
        let young = enis.iter().filter(|eni| excluded(eni).is_some()).filter_map(|eni| {
            match self.why_kept(eni, situation) {
                Some(KeptReason::Young(until)) => Some(until),
                _ => None,
            }
        });
        let look_again = if actions.is_empty() { young.min() } else { None };
        self.paced(situation, Plan { actions, look_again, ..plan })
    }

    /// What pods cannot use of an ENI, or should not.
    fn useless(&self, eni: &Eni, now: Moment) -> Option<(Given, Why)> {
        let (given, why) = match self.exclusion(&eni.seen) {
            Some(exclusion) => (idle(eni, now), Why::Excluded(exclusion)),
            None => (self.idle_in_other_form(eni, now), Why::OtherForm),
        };
        (!given.is_empty()).then_some((given, why))
    }

    /// The ENI to delete; of several the last one, so that devices stay packed from below.
    fn unneeded(&self, situation: Situation<'_>) -> Option<&Eni> {
        self.enis.values().filter(|eni| self.why_kept(eni, situation).is_none()).max_by_key(|eni| eni.place())
    }

    /// What to give back, from the ENI with the fewest pods first.
    fn give_back(&self, situation: Situation<'_>) -> Vec<Planned> {
        let Situation { limits, now, .. } = situation;
        let over = self.over(situation);
        let counts = |eni: &&Eni| eni.seen.card == limits.card && self.unready(&eni.seen).is_none();
        let mut enis: Vec<&Eni> = self.ours().filter(counts).collect();
        enis.sort_by_key(|eni| (eni.held(), Reverse(eni.place())));
        let mut left = over;
        let mut actions = Vec::new();
        for eni in enis {
            let (given, why) = match self.useless(eni, now) {
                Some(useless) => useless,
                None if self.exclusion(&eni.seen).is_some() => continue,
                None => (self.spare(eni, &mut left, now), Why::Over(over)),
            };
            if !given.is_empty() {
                actions.push(Planned { action: Action::Release { eni: eni.seen.id.clone(), given }, why });
            }
        }
        actions
    }

    /// How many addresses to give back.
    fn over(&self, situation: Situation<'_>) -> u32 {
        let Situation { targets, aim, lasting, now, .. } = situation;
        let over = aim.over(lasting);
        let lets_be = targets.is_automatic() && targets.full.is_none() && self.is_plenty(targets, now);
        let changes = self.busy_until(now).is_some() || situation.comes_more();
        if lets_be && changes && over <= LET_BE { 0 } else { over }
    }

    /// So many addresses of an ENI, or as many as it can spare: single ones if there are any, else whole prefixes.
    fn spare(&self, eni: &Eni, left: &mut u32, now: Moment) -> Given {
        let singles: BTreeSet<Ipv4Addr> = free_singles(eni, now).rev().take(as_length(*left)).collect();
        *left -= as_count(singles.len());
        if !singles.is_empty() || self.mode == Mode::Addresses {
            return Given::addresses(singles);
        }
        let whole = as_length(*left / Prefix::ADDRESSES);
        let prefixes: BTreeSet<Prefix> = idle_prefixes(eni, now).rev().take(whole).collect();
        *left -= as_count(prefixes.len()) * Prefix::ADDRESSES;
        Given::prefixes(prefixes)
    }

    /// Why an ENI cannot be deleted, the lasting reasons first; `None` if it can.
    fn why_kept(&self, eni: &Eni, situation: Situation<'_>) -> Option<KeptReason> {
        let Situation { targets, limits, aim, stock, lasting, now } = situation;
        let (free, cooling) = eni.idle(now);
        let held = as_count(eni.held());
        let unready = self.unready(&eni.seen);
        let coming = unready.filter(|unready| unready.is_coming());
        let useless = self.exclusion(&eni.seen).is_some() || unready.is_some();
        let needed = |stock: Stock| {
            let total = stock.total.saturating_sub(held + free + cooling);
            let without = Stock { total, available: stock.available - i64::from(free), ..stock };
            !useless && aim.needs(targets, limits, stock, without)
        };
        let old_enough = eni.first_seen.plus(targets.eni_age_min);
        match eni.seen.role {
            Role::Primary | Role::Efa | Role::Trunk | Role::Unmanaged => {
                Some(KeptReason::Role(eni.seen.role))
            }
            Role::Secondary if eni.seen.card != limits.card => Some(KeptReason::OtherCard(eni.seen.card)),
            Role::Secondary if self.is_busy(&eni.seen.id) => Some(KeptReason::Busy),
            Role::Secondary if held > 0 => Some(KeptReason::Pods(held)),
            Role::Secondary if self.led_by.contains(&eni.seen.id) => Some(KeptReason::LeadsPods),
            Role::Secondary if coming.is_some() => coming.map(KeptReason::Unready),
            Role::Secondary if cooling > 0 => Some(KeptReason::Cooling(cooling)),
            Role::Secondary if needed(stock) => Some(KeptReason::Needed),
            Role::Secondary if old_enough > now => Some(KeptReason::Young(old_enough)),
            Role::Secondary if needed(lasting) => {
                Some(KeptReason::NeededLately(self.lately_until(situation).unwrap_or(now)))
            }
            Role::Secondary => None,
        }
    }

    /// Says of every ENI without an action why it has none.
    fn explain(&self, situation: Situation<'_>, growing: bool, plan: &mut Plan) {
        let limits = situation.limits;
        let acted: BTreeSet<&EniId> =
            plan.actions.iter().filter_map(|planned| planned.action.eni()).collect();
        // Of ENIs on cards that no plan is about the first card's tells.
        let other_plan = |card: NetworkCard| {
            card != limits.card && (limits.card != NetworkCard(0) || self.cards().contains(&card))
        };
        let left = |eni: &&Eni| !acted.contains(&eni.seen.id) && !other_plan(eni.seen.card);
        let left: Vec<&Eni> = self.enis.values().filter(left).collect();
        for eni in left {
            let reason = if growing && eni.seen.role.is_for_pods() {
                self.why_not_grown(eni, limits)
            } else {
                self.why_kept(eni, situation).unwrap_or(KeptReason::Rests)
            };
            if let KeptReason::Young(until) | KeptReason::NeededLately(until) = reason {
                plan.look_again = Some(plan.look_again.map_or(until, |earlier| earlier.min(until)));
            }
            plan.kept.push((eni.seen.id.clone(), reason));
        }
    }

    fn why_not_grown(&self, eni: &Eni, limits: &Limits) -> KeptReason {
        match (self.exclusion(&eni.seen), self.unready(&eni.seen)) {
            _ if eni.seen.card != limits.card => KeptReason::OtherCard(eni.seen.card),
            (Some(exclusion), _) => KeptReason::Excluded(exclusion),
            (None, Some(unready)) => KeptReason::Unready(unready),
            (None, None) if self.is_busy(&eni.seen.id) => KeptReason::Busy,
            (None, None) if self.room(eni, limits) == 0 => KeptReason::Full,
            (None, None) => KeptReason::NotNeededYet,
        }
    }
}

fn delete(eni: &Eni, why: Why) -> Planned {
    Planned { action: Action::DeleteEni { eni: eni.seen.id.clone() }, why }
}

/// So many slots' worth, the highest.
fn some_of(given: Given, slots: u32) -> Given {
    Given {
        addresses: given.addresses.into_iter().rev().take(as_length(slots)).collect(),
        prefixes: given.prefixes.into_iter().rev().take(as_length(slots)).collect(),
    }
}

/// Everything that can go: single addresses first, prefixes once there are none, as EC2 takes only one form at a time.
fn idle(eni: &Eni, now: Moment) -> Given {
    let singles: BTreeSet<Ipv4Addr> = free_singles(eni, now).collect();
    if singles.is_empty() {
        return Given::prefixes(idle_prefixes(eni, now).collect());
    }
    Given::addresses(singles)
}

/// Single addresses that can go, lowest first.
fn free_singles(eni: &Eni, now: Moment) -> impl DoubleEndedIterator<Item = Ipv4Addr> {
    let free = eni.singles().filter(move |(_, state)| state.is_free(now));
    free.map(|(address, _)| address)
}

/// Prefixes of which no address is held or cools, lowest first.
fn idle_prefixes(eni: &Eni, now: Moment) -> impl DoubleEndedIterator<Item = Prefix> {
    let idle = move |prefix: &&Prefix| eni.within(**prefix).all(|state| state.is_free(now));
    eni.prefixes.iter().filter(idle).copied()
}

fn as_length(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn as_count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
