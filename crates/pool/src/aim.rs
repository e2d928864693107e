//! How many addresses a node should have: the targets as one rule.

use types::{Moment, Prefix};

use crate::model::{Limits, Mode, Targets, Wanted};
use crate::plan::Why;
use crate::pool::Pool;

/// Fewest and most free addresses that the automatic rule wants when it asks for more, and what it then fills up to.
/// A pod beyond the last free address waits for a call to EC2, so a node that starts many pods keeps more.
const AUTOMATIC_LOW: (u32, u32) = (4, 16);
const AUTOMATIC_HIGH: (u32, u32) = (12, 32);
/// What is wanted on a node that no further pod fits, beyond those that are on it: enough for one that takes another's place while the old
/// address cools.
const AUTOMATIC_FULL: u32 = 2;

/// While addresses cool, a `WARM_IP_TARGET` that is short is filled up by as many again, but no more than this: one call for
/// those that go on cooling with each pod that is replaced, where it would be one for each of the first.
const AHEAD: u32 = 4;

/// The pool in numbers, with what is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stock {
    /// Addresses there and on their way.
    pub(crate) total: u32,
    /// Those of them that cool.
    pub(crate) cooling: u32,
    /// Free ones there and on their way, less those for whom ADDs wait.
    pub(crate) available: i64,
}

impl Stock {
    /// ADDs for which nothing is there or on its way.
    fn demand(self) -> u32 {
        at_least_zero(-self.available)
    }

    /// How many are short of so many free ones, and not about to come of themselves: up to half of what is to be free may cool.
    fn short_of(self, free: i64) -> u32 {
        at_least_zero(free - self.available - i64::from(self.cooling).min(free / 2))
    }
}

/// How many addresses to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) missing: u32,
    /// So much of it is worth an ENI of its own; the rest only fills up what is there or comes anyway.
    pub(crate) urgent: u32,
    /// Fill each ENI that is touched, as the Go version does for `WARM_ENI_TARGET`.
    whole_enis: bool,
    /// No more than this in all.
    pub(crate) bound: u32,
    pub(crate) why: Why,
}

impl Need {
    /// What an ENI with so much room contributes in a form.
    pub(crate) fn take(&mut self, form: Mode, room: u32) -> Option<Wanted> {
        let slots = match form {
            Mode::Addresses if self.whole_enis && self.missing > 0 => room.min(self.bound),
            Mode::Addresses | Mode::Prefixes => room.min(self.slots(form)),
        };
        let wanted = Wanted::new(form, slots);
        self.comes(wanted.addresses());
        self.bound = self.bound.saturating_sub(wanted.addresses());
        (slots > 0).then_some(wanted)
    }

    /// How many slots what is missing would fill.
    pub(crate) fn slots(&self, form: Mode) -> u32 {
        let addresses = self.missing.min(self.bound);
        match form {
            Mode::Addresses => addresses,
            Mode::Prefixes => addresses.div_ceil(Prefix::ADDRESSES),
        }
    }

    /// So much comes without being asked for again.
    pub(crate) fn comes(&mut self, addresses: u32) {
        self.missing = self.missing.saturating_sub(addresses);
        self.urgent = self.urgent.saturating_sub(addresses);
    }
}

/// What to aim at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// When fewer than `low` are free, up to `high`; more than `high` are too many. So many in all at least.
    Addresses { low: u32, high: u32, minimum: u32 },
    /// As many free as so many whole ENIs hold.
    Enis(u32),
    /// As many free as so many prefixes hold.
    Prefixes(u32),
}

impl Pool {
    /// Whether nobody is short of addresses, as far as is known.
    pub(crate) fn is_plenty(&self, targets: &Targets, now: Moment) -> bool {
        targets.patient && self.scarcity.next_change(now).is_none()
    }

    /// The rule that the targets make. `WARM_IP_TARGET` and `MINIMUM_IP_TARGET` go before all others; 0 is as good as not set.
    pub(crate) fn aim(&self, targets: &Targets, stock: Stock, now: Moment) -> Aim {
        let (warm, minimum) = (targets.warm_ip.unwrap_or(0), targets.minimum_ip.unwrap_or(0));
        match self.mode {
            _ if targets.demand_only => Aim::Addresses { low: 0, high: 0, minimum: 0 },
            _ if (warm, minimum) != (0, 0) => {
                let ahead = if targets.patient && stock.cooling > 0 { warm.min(AHEAD) } else { 0 };
                Aim::Addresses { low: warm, high: warm.saturating_add(ahead), minimum }
            }
            _ if targets.automatic => {
                if let Some(coming) = targets.full {
                    let (low, high) = (coming.max(1), coming.saturating_add(AUTOMATIC_FULL));
                    return Aim::Addresses { low, high, minimum: 0 };
                }
                let recent = self.recent_starts(now);
                let low = (recent / 2).clamp(AUTOMATIC_LOW.0, AUTOMATIC_LOW.1);
                let high = recent.saturating_mul(2).clamp(AUTOMATIC_HIGH.0, AUTOMATIC_HIGH.1);
                Aim::Addresses { low, high, minimum: 0 }
            }
            Mode::Addresses => Aim::Enis(targets.warm_eni),
            Mode::Prefixes => Aim::Prefixes(targets.warm_prefix),
        }
    }
}

impl Aim {
    /// What is missing, if anything.
    pub(crate) fn need(self, targets: &Targets, limits: &Limits, stock: Stock, waiting: u32) -> Option<Need> {
        let (missing, why) = match self {
            Self::Addresses { low, high, minimum } => short(low, high, minimum, stock),
            Self::Enis(target) => {
                let by = stock.short_of(of_enis(target, limits).max(1));
                (by, Why::WarmEniShort { target, by })
            }
            Self::Prefixes(target) => {
                let by = stock.short_of(of_prefixes(target));
                (by, Why::WarmPrefixShort { target, by })
            }
        };
        let why = if missing <= stock.demand() { Why::PodsWait(waiting) } else { why };
        // Those who wait get theirs whatever the bound says: the kubelet has admitted the pods.
        let usable = stock.total.saturating_sub(stock.cooling);
        let bound = targets.max_pods.map_or(u32::MAX, |pods| pods.saturating_sub(usable)).max(stock.demand());
        let whole_enis = matches!(self, Self::Enis(_));
        let urgent = match self {
            Self::Addresses { low, minimum, .. } => {
                stock.short_of(i64::from(low)).max(minimum.saturating_sub(stock.total))
            }
            Self::Enis(_) | Self::Prefixes(_) => missing,
        };
        (missing > 0 && bound > 0).then_some(Need { missing, urgent, whole_enis, bound, why })
    }

    /// How many addresses are too many. `WARM_ENI_TARGET` gives back whole ENIs only.
    pub(crate) fn over(self, stock: Stock) -> u32 {
        match self {
            Self::Addresses { high, minimum, .. } => {
                at_least_zero(stock.available - i64::from(high)).min(stock.total.saturating_sub(minimum))
            }
            Self::Enis(_) => 0,
            Self::Prefixes(target) => at_least_zero(stock.available - of_prefixes(target)),
        }
    }

    /// Whether an ENI has to stay, by the stock and what it would be without the ENI: with it gone, nothing should be
    /// wanted again with the next pod.
    pub(crate) fn needs(self, targets: &Targets, limits: &Limits, stock: Stock, without: Stock) -> bool {
        let short = match self {
            Self::Addresses { high, .. } => without.available < i64::from(high),
            // One ENI's worth more than the target asks for.
            Self::Enis(target) => stock.available < of_enis(target.saturating_add(1), limits),
            Self::Prefixes(_) => false,
        };
        short || self.need(targets, limits, without, 0).is_some()
    }
}

fn short(low: u32, high: u32, minimum: u32, stock: Stock) -> (u32, Why) {
    let is_low = stock.available < i64::from(low);
    let for_warm = if is_low { at_least_zero(i64::from(high) - stock.available) } else { 0 };
    let for_minimum = minimum.saturating_sub(stock.total);
    if for_warm >= for_minimum {
        (for_warm, Why::WarmShort { target: high, by: for_warm })
    } else {
        (for_minimum, Why::MinimumShort { target: minimum, by: for_minimum })
    }
}

fn of_enis(target: u32, limits: &Limits) -> i64 {
    i64::from(target) * i64::from(limits.slots_per_eni)
}

/// One at least, or a prefix would come and go with each plan.
fn of_prefixes(target: u32) -> i64 {
    (i64::from(target) * i64::from(Prefix::ADDRESSES)).max(1)
}

/// The number, or 0 if it is negative.
fn at_least_zero(n: i64) -> u32 {
    u32::try_from(n.max(0)).unwrap_or(u32::MAX)
}
