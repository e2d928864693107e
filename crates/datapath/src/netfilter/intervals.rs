//! Networks as disjoint intervals, the only form that an interval set of the kernel takes: it refuses overlaps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// Addresses from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Interval {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Interval {
    /// Whether it is one address.
    pub(super) const fn is_single(self) -> bool {
        self.first == self.last
    }
}

/// The networks that lie in no other one of the set.
pub(super) fn widest(networks: &BTreeSet<Ipv4Network>) -> BTreeSet<Interval> {
    let mut intervals: Vec<Interval> = networks.iter().copied().map(Interval::from).collect();
    intervals.sort_by_key(|i| (i.first, u32::MAX - i.last));
    let mut widest: BTreeSet<Interval> = BTreeSet::new();
    for interval in intervals {
        if widest.last().is_none_or(|before| before.last < interval.first) {
            widest.insert(interval);
        }
    }
    widest
}

/// Disjoint intervals with the value of the most specific network that covers them.
pub(super) fn most_specific(networks: &BTreeMap<Ipv4Network, u32>) -> BTreeMap<Interval, u32> {
    let mut sorted: Vec<_> = networks.iter().collect();
    sorted.sort_by_key(|(network, _)| u8::MAX - network.prefix());
    let mut taken = BTreeMap::new();
    for (network, value) in sorted {
        let gaps = gaps(&taken, Interval::from(*network));
        taken.extend(gaps.into_iter().map(|gap| (gap, *value)));
    }
    taken
}

/// What of `within` is not taken. Networks nest or are disjoint, so nothing that is taken crosses its ends.
fn gaps(taken: &BTreeMap<Interval, u32>, within: Interval) -> Vec<Interval> {
    let Interval { first, last } = within;
    let mut gaps = Vec::new();
    let mut next = Some(first);
    for inner in
        taken.range(Interval { first, last: 0 }..=Interval { first: last, last: u32::MAX }).map(|(i, _)| i)
    {
        if let Some(start) = next.filter(|start| *start < inner.first) {
            gaps.push(Interval { first: start, last: inner.first - 1 });
        }
        next = inner.last.checked_add(1);
    }
    gaps.extend(next.filter(|start| *start <= last).map(|first| Interval { first, last }));
    gaps
}

impl From<Ipv4Network> for Interval {
    fn from(network: Ipv4Network) -> Self {
        Self { first: network.network().into(), last: network.broadcast().into() }
    }
}

/// As `nft` writes it: an address, a prefix or a range.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (Ipv4Addr::from(self.first), Ipv4Addr::from(self.last));
        let host_bits = self.first ^ self.last;
        let is_prefix = (host_bits & host_bits.wrapping_add(1)) == 0 && self.first & host_bits == 0;
        match (host_bits, is_prefix) {
            (0, _) => write!(f, "{first}"),
            (_, true) => write!(f, "{first}/{}", host_bits.leading_zeros()),
            (_, false) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn texts<'a, I: IntoIterator<Item = &'a Interval>>(intervals: I) -> Vec<String> {
        intervals.into_iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_network_inside_another_is_left_out() {
        let networks = ["10.0.0.0/16", "10.0.3.0/24", "10.1.0.0/16", "192.168.0.7/32", "192.168.0.7/24"];
        let networks = networks.into_iter().map(network).collect();

        assert_eq!(texts(&widest(&networks)), ["10.0.0.0/16", "10.1.0.0/16", "192.168.0.0/24"]);
    }

    #[test]
    fn everything_is_one_interval() {
        let all = widest(&BTreeSet::from([network("0.0.0.0/0"), network("10.0.0.0/8")]));

        assert_eq!(texts(&all), ["0.0.0.0/0"]);
    }

    #[test]
    fn the_most_specific_network_decides() {
        let networks = BTreeMap::from([(network("10.0.0.0/28"), 1), (network("10.0.0.5/32"), 2)]);
        let intervals = most_specific(&networks);

        assert_eq!(texts(intervals.keys()), ["10.0.0.0-10.0.0.4", "10.0.0.5", "10.0.0.6-10.0.0.15"]);
        assert_eq!(intervals.values().copied().collect::<Vec<_>>(), [1, 2, 1]);
    }

    #[test]
    fn intervals_reach_to_the_last_address() {
        let networks =
            BTreeMap::from([(network("255.255.255.254/31"), 1), (network("255.255.255.255/32"), 2)]);

        assert_eq!(texts(most_specific(&networks).keys()), ["255.255.255.254", "255.255.255.255"]);
    }
}
