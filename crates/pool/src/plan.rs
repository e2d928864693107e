//! What to ask EC2 for next: a function of pool, targets, limits, demand and time.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use types::{DeviceIndex, EniId, Moment};

use crate::model::{Action, Limits, Role, Targets};
use crate::pool::{Eni, Pool};

/// What to do now. Grows or shrinks, never both; at most one action per ENI.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The actions.
    pub actions: Vec<Planned>,
    /// Why there is nothing (more) to do, if something is wanted.
    pub kept: Vec<String>,
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub action: Action,
    /// Why.
    pub why: String,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for planned in &self.actions {
            writeln!(f, "{}: {}", planned.action, planned.why)?;
        }
        self.kept.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// The pool in numbers, with what is on its way.
#[derive(Debug, Clone, Copy)]
struct Stock {
    /// Addresses there and on their way.
    total: u32,
    /// Free ones there and on their way, less those that wait.
    available: i64,
}

impl Pool {
    /// Decides what to ask EC2 for next; `waiting` ADDs are without an address.
    pub fn plan(&self, targets: &Targets, limits: &Limits, waiting: u32, now: Moment) -> Plan {
        let stock = self.stock(waiting, now);
        let (short, why) = short(targets, limits, stock, waiting);
        if short > 0 {
            return self.grow(limits, short, &why);
        }
        let due = now.since(self.last_release) >= targets.release_every;
        if waiting > 0 || !self.in_flight.is_empty() || !due {
            return Plan::default();
        }
        self.shrink(targets, limits, stock, now)
    }

    fn stock(&self, waiting: u32, now: Moment) -> Stock {
        let counts = self.counts(now);
        let coming: u32 = self
            .in_flight
            .values()
            .map(|action| match action {
                Action::AssignAddresses { count, .. } => *count,
                Action::CreateEni { addresses, .. } => *addresses,
                Action::ReleaseAddresses { .. } | Action::DeleteEni { .. } => 0,
            })
            .sum();
        let available = i64::from(counts.free) + i64::from(coming) - i64::from(waiting);
        Stock { total: counts.total() + coming, available }
    }

    fn grow(&self, limits: &Limits, short: u32, why: &str) -> Plan {
        let mut plan = Plan::default();
        let mut missing = short;
        for eni in self.with_room(limits) {
            let count = missing.min(room(eni, limits));
            if count > 0 {
                missing -= count;
                let action = Action::AssignAddresses { eni: eni.seen.id.clone(), count };
                plan.actions.push(Planned { action, why: why.to_owned() });
            }
        }
        // An ENI at work will take more when it is done: that is sooner than a new ENI.
        let busy = self.usable().filter(|eni| self.is_busy(&eni.seen.id));
        let later: u32 = busy.map(|eni| room(eni, limits).saturating_sub(self.coming_to(&eni.seen.id))).sum();
        missing = missing.saturating_sub(later);
        for device in self.free_devices(limits) {
            if missing == 0 {
                break;
            }
            let addresses = missing.min(limits.slots_per_eni.into());
            missing -= addresses;
            plan.actions
                .push(Planned { action: Action::CreateEni { device, addresses }, why: why.to_owned() });
        }
        if missing > 0 {
            plan.kept.push(format!("{missing} more addresses wanted, but the ENIs are full or busy"));
        }
        plan
    }

    /// ENIs that can take more addresses and are not busy, fullest first.
    fn with_room(&self, limits: &Limits) -> Vec<&Eni> {
        let mut enis: Vec<&Eni> =
            self.usable().filter(|eni| !self.is_busy(&eni.seen.id) && room(eni, limits) > 0).collect();
        enis.sort_by_key(|eni| (std::cmp::Reverse(eni.slots.len()), eni.place()));
        enis
    }

    fn is_busy(&self, eni: &EniId) -> bool {
        self.in_flight.keys().any(|id| self.eni_of(*id) == Some(eni))
    }

    /// Addresses that a call in progress will bring to an ENI.
    fn coming_to(&self, eni: &EniId) -> u32 {
        let count = |action: &Action| match action {
            Action::AssignAddresses { eni: id, count } if id == eni => *count,
            Action::AssignAddresses { .. }
            | Action::CreateEni { .. }
            | Action::ReleaseAddresses { .. }
            | Action::DeleteEni { .. } => 0,
        };
        self.in_flight.values().map(count).sum()
    }

    /// Device indices that a new ENI may have, lowest first; as many as there may be new ENIs.
    fn free_devices(&self, limits: &Limits) -> Vec<DeviceIndex> {
        let on_card =
            self.enis.values().filter(|eni| eni.seen.card == limits.card).map(|eni| eni.seen.device);
        let coming = self.in_flight.values().filter_map(|action| match action {
            Action::CreateEni { device, .. } => Some(*device),
            Action::AssignAddresses { .. } | Action::ReleaseAddresses { .. } | Action::DeleteEni { .. } => {
                None
            }
        });
        let taken: BTreeSet<DeviceIndex> = on_card.chain(coming).collect();
        let more = usize::from(limits.max_enis).saturating_sub(taken.len());
        (0..=u8::MAX).map(DeviceIndex).filter(|device| !taken.contains(device)).take(more).collect()
    }

    fn shrink(&self, targets: &Targets, limits: &Limits, stock: Stock, now: Moment) -> Plan {
        let mut plan = Plan::default();
        let empty = self.usable().filter(|eni| {
            let old = now.since(eni.first_seen) >= targets.eni_age_min;
            eni.seen.role == Role::Secondary && old && eni.slots.values().all(|slot| slot.is_free(now))
        });
        // The last one first: devices stay packed from below.
        let mut empty: Vec<&Eni> = empty.collect();
        empty.sort_by_key(|eni| std::cmp::Reverse(eni.place()));
        for eni in empty {
            let slots = u32::try_from(eni.slots.len()).unwrap_or(u32::MAX);
            let without = Stock {
                total: stock.total.saturating_sub(slots),
                available: stock.available - i64::from(slots),
            };
            if short(targets, limits, without, 0).0 == 0 {
                let action = Action::DeleteEni { eni: eni.seen.id.clone() };
                plan.actions.push(Planned {
                    action,
                    why: "no pod uses it and the targets hold without it".to_owned(),
                });
                return plan;
            }
        }
        let over = over(targets, stock);
        if over > 0 {
            self.give_back(over, now, &mut plan);
        }
        plan
    }

    /// Free addresses to give back, from the ENI with the fewest pods.
    fn give_back(&self, over: u32, now: Moment, plan: &mut Plan) {
        let mut enis: Vec<&Eni> = self.usable().collect();
        enis.sort_by_key(|eni| (eni.held(), std::cmp::Reverse(eni.place())));
        let mut left = usize::try_from(over).unwrap_or(usize::MAX);
        for eni in enis {
            let free =
                eni.slots.iter().rev().filter(|(_, slot)| slot.is_free(now)).map(|(address, _)| *address);
            let addresses: BTreeSet<Ipv4Addr> = free.take(left).collect();
            if !addresses.is_empty() {
                left -= addresses.len();
                let action = Action::ReleaseAddresses { eni: eni.seen.id.clone(), addresses };
                plan.actions.push(Planned { action, why: format!("{over} more than the targets ask for") });
            }
        }
    }
}

fn room(eni: &Eni, limits: &Limits) -> u32 {
    u32::from(limits.slots_per_eni).saturating_sub(u32::try_from(eni.slots.len()).unwrap_or(u32::MAX))
}

/// How many addresses are wanted, and why.
fn short(targets: &Targets, limits: &Limits, stock: Stock, waiting: u32) -> (u32, String) {
    let demand = u32::try_from(-stock.available).unwrap_or(0);
    let (wanted, why) = match (targets.warm_ip, targets.minimum_ip) {
        (None, None) => warm_eni(targets, limits, stock),
        (warm, minimum) => warm_ip(warm.unwrap_or(0), minimum.unwrap_or(0), stock),
    };
    // Those who wait get theirs whatever the bound on spare addresses says: the runtime has admitted the pods.
    let bound = targets.max_pods.map_or(u32::MAX, |pods| pods.saturating_sub(stock.total));
    match wanted.min(bound) {
        0 if demand == 0 => (0, String::new()),
        wanted if wanted <= demand => (demand, format!("{waiting} pods wait for an address")),
        wanted => (wanted, why),
    }
}

/// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`: so many free, so many in all.
fn warm_ip(warm: u32, minimum: u32, stock: Stock) -> (u32, String) {
    let for_warm = u32::try_from(i64::from(warm) - stock.available).unwrap_or(0);
    let for_minimum = minimum.saturating_sub(stock.total);
    if for_warm >= for_minimum {
        (for_warm, format!("short of the warm target {warm} by {for_warm}"))
    } else {
        (for_minimum, format!("short of the minimum {minimum} by {for_minimum}"))
    }
}

/// `WARM_ENI_TARGET`: as many free as so many whole ENIs hold; one ENI's worth at a time, as the Go version fills them.
fn warm_eni(targets: &Targets, limits: &Limits, stock: Stock) -> (u32, String) {
    let per_eni = i64::from(limits.slots_per_eni);
    let low = stock.available < per_eni * i64::from(targets.warm_eni)
        || stock.available <= 0 && targets.warm_eni == 0;
    if !low {
        return (0, String::new());
    }
    let demand = u32::try_from(-stock.available).unwrap_or(0);
    let why = format!("{} free, short of {} ENI's worth", stock.available.max(0), targets.warm_eni);
    (demand.max(limits.slots_per_eni.into()), why)
}

/// How many addresses are more than the targets ask for. `WARM_ENI_TARGET` gives back whole ENIs only.
fn over(targets: &Targets, stock: Stock) -> u32 {
    if targets.warm_ip.is_none() && targets.minimum_ip.is_none() {
        return 0;
    }
    let (warm, minimum) = (targets.warm_ip.unwrap_or(0), targets.minimum_ip.unwrap_or(0));
    let spare = u32::try_from(stock.available - i64::from(warm)).unwrap_or(0);
    spare.min(stock.total.saturating_sub(minimum))
}
