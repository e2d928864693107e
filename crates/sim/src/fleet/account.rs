//! The account: EC2's token buckets, which all nodes draw from, and the record of what was called.

use std::time::Duration;

use types::Moment;

use crate::rng::Rng;

/// How long EC2 takes to refuse a call.
const REFUSAL: Duration = Duration::from_millis(50);

macro_rules! apis {
    ($($(#[doc = $doc:literal])* $name:ident, $changes:literal, $millis:literal;)*) => {
        /// A call of EC2's API. The variants have EC2's names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Api {
            $($(#[doc = $doc])* $name,)*
        }

        impl Api {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// EC2's name.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Whether it changes something.
            pub(crate) const fn changes(self) -> bool {
                match self { $(Self::$name => $changes,)* }
            }

            /// How long EC2 typically takes for it, in milliseconds.
            const fn millis(self) -> u64 {
                match self { $(Self::$name => $millis,)* }
            }
        }
    };
}

apis! {
    DescribeNetworkInterfaces, false, 100;
    DescribeSubnets, false, 100;
    DescribeInstances, false, 100;
    AssignPrivateIpAddresses, true, 300;
    UnassignPrivateIpAddresses, true, 300;
    CreateNetworkInterface, true, 1000;
    AttachNetworkInterface, true, 1000;
    ModifyNetworkInterfaceAttribute, true, 200;
    DetachNetworkInterface, true, 300;
    DeleteNetworkInterface, true, 300;
    CreateTags, true, 200;
}

impl Api {
    /// How long EC2 takes this time: between half and one and a half times what is typical.
    pub(crate) fn takes(self, rng: &mut Rng) -> Duration {
        rng.millis(self.millis() / 2, self.millis() * 3 / 2)
    }

    /// How long a refusal takes.
    pub(crate) const fn refusal() -> Duration {
        REFUSAL
    }

    /// Whether it sets up or takes down an ENI, in contrast to the addresses on it.
    pub(crate) const fn is_about_the_eni(self) -> bool {
        match self {
            Self::CreateNetworkInterface
            | Self::AttachNetworkInterface
            | Self::ModifyNetworkInterfaceAttribute
            | Self::DetachNetworkInterface
            | Self::DeleteNetworkInterface
            | Self::CreateTags => true,
            Self::DescribeNetworkInterfaces
            | Self::DescribeSubnets
            | Self::DescribeInstances
            | Self::AssignPrivateIpAddresses
            | Self::UnassignPrivateIpAddresses => false,
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|api| *api == self).unwrap_or(0)
    }
}

/// What a token bucket holds and earns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls at once after a rest.
    pub burst: u32,
    /// Calls per second from then on.
    pub per_second: u32,
}

/// The buckets of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Calls that only look.
    pub describe: Rate,
    /// Calls that change something.
    pub change: Rate,
    /// One bucket for all calls of a kind; otherwise each API has its own, as EC2 documents it ("each API is evaluated
    /// individually").
    pub pooled: bool,
}

impl Default for Rates {
    /// What EC2 documents for describe calls, and the lowest that it documents for calls that change something.
    fn default() -> Self {
        let rate = |per_second| Rate { burst: 100, per_second };
        Self { describe: rate(20), change: rate(5), pooled: false }
    }
}

/// A bucket with tokens in it.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Thousandths of a token.
    level: u64,
    since: Moment,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, level: u64::from(rate.burst) * 1000, since: Moment(0) }
    }

    fn take(&mut self, now: Moment) -> bool {
        let earned = now.0.saturating_sub(self.since.0) * u64::from(self.rate.per_second);
        self.since = now;
        self.level = (self.level + earned).min(u64::from(self.rate.burst) * 1000);
        let allowed = self.level >= 1000;
        self.level -= if allowed { 1000 } else { 0 };
        allowed
    }
}

/// How often one API was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    /// Performed.
    pub(crate) done: u64,
    /// Refused because the bucket was empty.
    pub(crate) throttled: u64,
}

/// How often each API was called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Calls([Count; Api::ALL.len()]);

impl Calls {
    pub(crate) fn of(&self, api: Api) -> Count {
        self.0.get(api.index()).copied().unwrap_or_default()
    }

    fn of_mut(&mut self, api: Api) -> Option<&mut Count> {
        self.0.get_mut(api.index())
    }

    /// What was called since an earlier count.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut calls = self.clone();
        for (count, before) in calls.0.iter_mut().zip(earlier.0) {
            count.done -= before.done;
            count.throttled -= before.throttled;
        }
        calls
    }

    /// Calls performed, of those that the filter lets through.
    pub(crate) fn done(&self, filter: impl Fn(Api) -> bool) -> u64 {
        Api::ALL.iter().filter(|api| filter(**api)).map(|api| self.of(*api).done).sum()
    }

    /// Calls refused.
    pub(crate) fn throttled(&self) -> u64 {
        self.0.iter().map(|count| count.throttled).sum()
    }
}

/// The account.
#[derive(Debug)]
pub(crate) struct Account {
    buckets: Vec<Bucket>,
    pooled: bool,
    pub(crate) calls: Calls,
}

impl Account {
    pub(crate) fn new(rates: Rates) -> Self {
        let rate = |api: &Api| if api.changes() { rates.change } else { rates.describe };
        let buckets = Api::ALL.iter().map(|api| Bucket::full(rate(api))).collect();
        Self { buckets, pooled: rates.pooled, calls: Calls::default() }
    }

    /// Whether a call made now is performed; counted either way.
    pub(crate) fn allows(&mut self, api: Api, now: Moment) -> bool {
        let same_kind = |other: &Api| other.changes() == api.changes();
        let index = match self.pooled {
            true => Api::ALL.iter().position(same_kind).unwrap_or(0),
            false => api.index(),
        };
        let allowed = self.buckets.get_mut(index).is_some_and(|bucket| bucket.take(now));
        if let Some(count) = self.calls.of_mut(api) {
            *if allowed { &mut count.done } else { &mut count.throttled } += 1;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        describe: Rate { burst: 3, per_second: 1 },
        change: Rate { burst: 2, per_second: 5 },
        pooled: false,
    };

    #[test]
    fn a_bucket_allows_a_burst_and_then_its_rate() {
        let mut account = Account::new(RATES);
        let mut allowed = |at| account.allows(Api::AssignPrivateIpAddresses, Moment(at));

        let times = [0, 0, 0, 199, 200, 201, 9000, 9000, 9000];
        let wanted = [true, true, false, false, true, false, true, true, false];
        assert_eq!(times.map(&mut allowed), wanted);
        let count = account.calls.of(Api::AssignPrivateIpAddresses);
        assert_eq!(count, Count { done: 5, throttled: 4 });
    }

    #[test]
    fn each_api_has_a_bucket_of_its_own_unless_they_are_pooled() {
        let allowed = |pooled| {
            let mut account = Account::new(Rates { pooled, ..RATES });
            let apis = [Api::CreateTags, Api::CreateTags, Api::DeleteNetworkInterface];
            apis.map(|api| account.allows(api, Moment(0)))
        };

        assert_eq!(allowed(false), [true, true, true]);
        assert_eq!(allowed(true), [true, true, false]);
    }
}
