//! What to ask EC2 for next: a function of pool, targets, limits, demand and time.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use types::{DeviceIndex, EniId, Moment, NetworkCard};

use crate::model::{Action, Limits, Role, Targets};
use crate::pool::{Eni, Pool};

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
    /// When time alone may change the plan; cooling apart, for which there is [`Pool::next_change`].
    pub look_again: Option<Moment>,
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
    /// So many more addresses than the targets ask for.
    Over(u32),
    /// No pod uses the ENI, and the targets hold without it.
    Unneeded,
}

/// Why an ENI is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptReason {
    /// It is not for pods of this plan.
    Role(Role),
    /// It is on a network card that this plan is not about.
    OtherCard(NetworkCard),
    /// A call to EC2 is under way.
    Busy,
    /// More addresses are wanted, but it holds as many as it can.
    Full,
    /// More addresses are wanted, but other ENIs take them.
    NotNeededYet,
    /// So many of its addresses are reserved or assigned.
    Pods(u32),
    /// So many of its addresses cool.
    Cooling(u32),
    /// The targets would not hold without it.
    Needed,
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
            Self::Busy => f.write_str("a call to EC2 is under way"),
            Self::Full => f.write_str("it is full"),
            Self::NotNeededYet => f.write_str("other ENIs have room for what is missing"),
            Self::Pods(n) => write!(f, "pods have {n} of its addresses"),
            Self::Cooling(n) => write!(f, "{n} of its addresses cool"),
            Self::Needed => f.write_str("the targets would not hold without it"),
            Self::Young(_) => f.write_str("it is too young to be given back"),
            Self::Rests => f.write_str("it can be given back later"),
        }
    }
}

/// The pool in numbers, with what is on its way.
#[derive(Debug, Clone, Copy)]
struct Stock {
    /// Addresses there and on their way.
    total: u32,
    /// Those of them that cool.
    cooling: u32,
    /// Free ones there and on their way, less those for whom ADDs wait.
    available: i64,
}

impl Stock {
    /// ADDs for which nothing is there or on its way.
    fn demand(self) -> u32 {
        at_least_zero(-self.available)
    }
}

/// How many addresses to ask for.
#[derive(Debug, Clone, Copy)]
struct Need {
    missing: u32,
    /// Fill each ENI that is touched, as the Go version does for `WARM_ENI_TARGET`.
    whole_enis: bool,
    /// No more than this in all.
    bound: u32,
    why: Why,
}

impl Need {
    /// What an ENI with so much room contributes.
    fn take(&mut self, room: u32) -> Option<u32> {
        let wanted = if self.whole_enis && self.missing > 0 { room } else { room.min(self.missing) };
        let count = wanted.min(self.bound);
        self.missing = self.missing.saturating_sub(count);
        self.bound -= count;
        (count > 0).then_some(count)
    }
}

/// What a plan depends on, apart from the pool.
#[derive(Debug, Clone, Copy)]
struct Situation<'a> {
    targets: &'a Targets,
    limits: &'a Limits,
    stock: Stock,
    now: Moment,
}

impl Pool {
    /// Decides what to ask EC2 for next; `waiting` ADDs are without an address.
    pub fn plan(&self, targets: &Targets, limits: &Limits, waiting: u32, now: Moment) -> Plan {
        let stock = self.stock(waiting, now);
        let situation = Situation { targets, limits, stock, now };
        let need = need(targets, limits, stock, waiting);
        let mut plan = match need {
            Some(need) => self.grow(limits, need),
            None if waiting > 0 || !self.in_flight.is_empty() => Plan::default(),
            None => self.shrink(situation),
        };
        self.explain(situation, need.is_some(), &mut plan);
        plan
    }

    fn stock(&self, waiting: u32, now: Moment) -> Stock {
        let counts = self.counts(now);
        let coming = self.coming();
        let available = i64::from(counts.free) + i64::from(coming) - i64::from(waiting);
        Stock { total: counts.total() + coming, cooling: counts.cooling, available }
    }

    fn grow(&self, limits: &Limits, mut need: Need) -> Plan {
        let why = need.why;
        let mut actions = Vec::new();
        for eni in self.with_room(limits) {
            if let Some(count) = need.take(room(eni, limits)) {
                actions.push(Planned {
                    action: Action::AssignAddresses { eni: eni.seen.id.clone(), count },
                    why,
                });
            }
        }
        need.missing = need.missing.saturating_sub(self.room_later(limits));
        for device in self.free_devices(limits) {
            if let Some(addresses) = need.take(limits.slots_per_eni.into()) {
                actions.push(Planned { action: Action::CreateEni { device, addresses }, why });
            }
        }
        Plan { actions, unmet: need.missing.min(need.bound), ..Plan::default() }
    }

    /// ENIs that can take more addresses and are not busy, fullest first.
    pub(crate) fn with_room(&self, limits: &Limits) -> Vec<&Eni> {
        let fit =
            |eni: &&Eni| eni.seen.card == limits.card && room(eni, limits) > 0 && !self.is_busy(&eni.seen.id);
        let mut enis: Vec<&Eni> = self.usable().filter(fit).collect();
        enis.sort_by_key(|eni| (Reverse(eni.slots.len()), eni.place()));
        enis
    }

    /// Room on ENIs that are busy now: they can take more sooner than a new ENI could.
    fn room_later(&self, limits: &Limits) -> u32 {
        let busy = self.usable().filter(|eni| eni.seen.card == limits.card && self.is_busy(&eni.seen.id));
        busy.map(|eni| room(eni, limits).saturating_sub(self.coming_to(&eni.seen.id))).sum()
    }

    /// Device indices that a new ENI may have, lowest first; as many as there may be new ENIs.
    pub(crate) fn free_devices(&self, limits: &Limits) -> Vec<DeviceIndex> {
        let on_card =
            self.enis.values().filter(|eni| eni.seen.card == limits.card).map(|eni| eni.seen.device);
        let coming = self.in_flight.values().filter_map(|call| match &call.action {
            Action::CreateEni { device, .. } => Some(*device),
            Action::AssignAddresses { .. } | Action::ReleaseAddresses { .. } | Action::DeleteEni { .. } => {
                None
            }
        });
        let others = self.occupied.iter().filter(|(card, _)| *card == limits.card).map(|(_, device)| *device);
        // The primary ENI is there even before the first picture.
        let primary = (limits.card == NetworkCard(0)).then_some(DeviceIndex(0));
        let taken: BTreeSet<DeviceIndex> = on_card.chain(coming).chain(others).chain(primary).collect();
        let more = usize::from(limits.max_enis).saturating_sub(taken.len());
        (0..=u8::MAX).map(DeviceIndex).filter(|device| !taken.contains(device)).take(more).collect()
    }

    fn shrink(&self, situation: Situation<'_>) -> Plan {
        let actions = match self.unneeded(situation) {
            Some(eni) => {
                vec![Planned { action: Action::DeleteEni { eni: eni.seen.id.clone() }, why: Why::Unneeded }]
            }
            None => self.give_back(situation),
        };
        let due = self.last_release.plus(situation.targets.release_every);
        if !actions.is_empty() && due > situation.now && self.last_release > Moment(0) {
            return Plan { look_again: Some(due), ..Plan::default() };
        }
        Plan { actions, ..Plan::default() }
    }

    /// The ENI to delete; of several the last one, so that devices stay packed from below.
    fn unneeded(&self, situation: Situation<'_>) -> Option<&Eni> {
        self.enis.values().filter(|eni| self.why_kept(eni, situation).is_none()).max_by_key(|eni| eni.place())
    }

    /// Free addresses to give back, from the ENI with the fewest pods first.
    fn give_back(&self, situation: Situation<'_>) -> Vec<Planned> {
        let Situation { targets, limits, stock, now } = situation;
        let over = over(targets, stock);
        let mut enis: Vec<&Eni> = self.usable().filter(|eni| eni.seen.card == limits.card).collect();
        enis.sort_by_key(|eni| (eni.held(), Reverse(eni.place())));
        let mut left = usize::try_from(over).unwrap_or(usize::MAX);
        let mut actions = Vec::new();
        for eni in enis {
            let free =
                eni.slots.iter().rev().filter(|(_, slot)| slot.is_free(now)).map(|(address, _)| *address);
            let addresses: BTreeSet<Ipv4Addr> = free.take(left).collect();
            if !addresses.is_empty() {
                left -= addresses.len();
                let action = Action::ReleaseAddresses { eni: eni.seen.id.clone(), addresses };
                actions.push(Planned { action, why: Why::Over(over) });
            }
        }
        actions
    }

    /// Why an ENI cannot be deleted, the lasting reasons first; `None` if it can.
    fn why_kept(&self, eni: &Eni, situation: Situation<'_>) -> Option<KeptReason> {
        let Situation { targets, limits, stock, now } = situation;
        let counts = self.counts_in(eni, now);
        let held = counts.reserved + counts.assigned;
        let without = Stock {
            total: stock.total.saturating_sub(counts.total()),
            available: stock.available - i64::from(counts.free),
            ..stock
        };
        let margin = margin(targets, limits);
        let old_enough = eni.first_seen.plus(targets.eni_age_min);
        match eni.seen.role {
            Role::Primary | Role::Trunk | Role::Unmanaged => Some(KeptReason::Role(eni.seen.role)),
            Role::Secondary if eni.seen.card != limits.card => Some(KeptReason::OtherCard(eni.seen.card)),
            Role::Secondary if self.is_busy(&eni.seen.id) => Some(KeptReason::Busy),
            Role::Secondary if held > 0 => Some(KeptReason::Pods(held)),
            Role::Secondary if counts.cooling > 0 => Some(KeptReason::Cooling(counts.cooling)),
            Role::Secondary if stock.available < margin || need(targets, limits, without, 0).is_some() => {
                Some(KeptReason::Needed)
            }
            Role::Secondary if old_enough > now => Some(KeptReason::Young(old_enough)),
            Role::Secondary => None,
        }
    }

    /// Says of every ENI without an action why it has none.
    fn explain(&self, situation: Situation<'_>, growing: bool, plan: &mut Plan) {
        let acted: BTreeSet<&EniId> =
            plan.actions.iter().filter_map(|planned| planned.action.eni()).collect();
        let left: Vec<&Eni> = self.enis.values().filter(|eni| !acted.contains(&eni.seen.id)).collect();
        for eni in left {
            let reason = if growing && eni.seen.role.is_for_pods() {
                self.why_not_grown(eni, situation.limits)
            } else {
                self.why_kept(eni, situation).unwrap_or(KeptReason::Rests)
            };
            if let KeptReason::Young(until) = reason {
                plan.look_again = Some(plan.look_again.map_or(until, |earlier| earlier.min(until)));
            }
            plan.kept.push((eni.seen.id.clone(), reason));
        }
    }

    fn why_not_grown(&self, eni: &Eni, limits: &Limits) -> KeptReason {
        match () {
            () if eni.seen.card != limits.card => KeptReason::OtherCard(eni.seen.card),
            () if self.is_busy(&eni.seen.id) => KeptReason::Busy,
            () if room(eni, limits) == 0 => KeptReason::Full,
            () => KeptReason::NotNeededYet,
        }
    }
}

fn room(eni: &Eni, limits: &Limits) -> u32 {
    u32::from(limits.slots_per_eni).saturating_sub(u32::try_from(eni.slots.len()).unwrap_or(u32::MAX))
}

/// What is missing, if anything.
fn need(targets: &Targets, limits: &Limits, stock: Stock, waiting: u32) -> Option<Need> {
    let (missing, why) = match ip_targets(targets) {
        Some((warm, minimum)) => short(warm, minimum, stock),
        None => short_of_enis(targets.warm_eni, limits, stock),
    };
    let why = if missing <= stock.demand() { Why::PodsWait(waiting) } else { why };
    // Those who wait get theirs whatever the bound says: the kubelet has admitted the pods.
    let usable = stock.total.saturating_sub(stock.cooling);
    let bound = targets.max_pods.map_or(u32::MAX, |pods| pods.saturating_sub(usable)).max(stock.demand());
    let whole_enis = ip_targets(targets).is_none();
    (missing > 0 && bound > 0).then_some(Need { missing, whole_enis, bound, why })
}

/// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`, if one of them is set; 0 is as good as not set.
fn ip_targets(targets: &Targets) -> Option<(u32, u32)> {
    let pair = (targets.warm_ip.unwrap_or(0), targets.minimum_ip.unwrap_or(0));
    (pair != (0, 0)).then_some(pair)
}

/// So many free, so many in all.
fn short(warm: u32, minimum: u32, stock: Stock) -> (u32, Why) {
    let for_warm = at_least_zero(i64::from(warm) - stock.available);
    let for_minimum = minimum.saturating_sub(stock.total);
    if for_warm >= for_minimum {
        (for_warm, Why::WarmShort { target: warm, by: for_warm })
    } else {
        (for_minimum, Why::MinimumShort { target: minimum, by: for_minimum })
    }
}

/// As many free as so many whole ENIs hold; at least one.
fn short_of_enis(target: u32, limits: &Limits, stock: Stock) -> (u32, Why) {
    let wanted = (i64::from(target) * i64::from(limits.slots_per_eni)).max(1);
    let by = at_least_zero(wanted - stock.available);
    (by, Why::WarmEniShort { target, by })
}

/// An ENI is given back only with so many addresses available: one ENI's worth more than `WARM_ENI_TARGET` asks for,
/// so that it is not wanted again with the next pod.
fn margin(targets: &Targets, limits: &Limits) -> i64 {
    match ip_targets(targets) {
        Some(_) => i64::MIN,
        None => (i64::from(targets.warm_eni) + 1) * i64::from(limits.slots_per_eni),
    }
}

/// How many addresses are more than the targets ask for. `WARM_ENI_TARGET` gives back whole ENIs only.
fn over(targets: &Targets, stock: Stock) -> u32 {
    ip_targets(targets).map_or(0, |(warm, minimum)| {
        at_least_zero(stock.available - i64::from(warm)).min(stock.total.saturating_sub(minimum))
    })
}

/// The number, or 0 if it is negative.
fn at_least_zero(n: i64) -> u32 {
    u32::try_from(n.max(0)).unwrap_or(u32::MAX)
}
