//! The worked examples of the original's documentation and tests.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use types::{EniId, Prefix};

use super::formulas::Stats;
use super::*;

const UNSET: Rules = Rules {
    warm_ip: 0,
    minimum_ip: 0,
    warm_eni: 0,
    warm_prefix: 0,
    prefixes: false,
    slots: 14,
    max_enis: 4,
    max_pods: 110,
};
const T3_SMALL: Rules = Rules { slots: 3, max_enis: 3, ..UNSET };

/// An EC2 that gives at once what is asked for.
struct Giving(u32);

impl Giving {
    fn give(&mut self, rules: &Rules, cidrs: u32) -> Given {
        let mut next = || {
            self.0 += rules.size();
            Ipv4Addr::from_bits(0x0a00_0000 + self.0)
        };
        let all: BTreeSet<Ipv4Addr> = (0..cidrs).map(|_| next()).collect();
        match rules.prefixes {
            true => Given::prefixes(all.into_iter().map(Prefix::of).collect()),
            false => Given::addresses(all),
        }
    }

    fn eni(&self, store: &Store) -> EniId {
        format!("eni-{}", store.enis()).parse().unwrap()
    }

    /// Steps until nothing more is wanted.
    fn settle(&mut self, store: &mut Store, rules: &Rules, rng: &mut Rng) {
        while rules.too_low(store.stats()) {
            let stats = store.stats();
            if let Some((eni, has)) = store.with_room(rules, rng) {
                store.add(&eni, self.give(rules, rules.cidrs_for(stats, has)));
            } else if store.can_have_more_enis(rules) {
                let given = self.give(rules, rules.cidrs_for(stats, 0));
                store.add_eni(self.eni(store), given, Moment(0));
            } else {
                break;
            }
        }
        store.take_idle(rules.too_many(store.stats()));
    }
}

/// What a node has once so many pods run on it.
fn steady(rules: &Rules, pods: u32) -> (Stats, usize) {
    let (mut store, mut ec2, mut rng) = (Store::default(), Giving(0), Rng::new(1));
    store.add_eni(ec2.eni(&store), Given::default(), Moment(0));
    ec2.settle(&mut store, rules, &mut rng);
    for pod in 0..pods {
        assert!(store.assign(Sandbox { pod, attempt: 1 }, &mut rng, Moment(0)));
        ec2.settle(&mut store, rules, &mut rng);
    }
    (store.stats(), store.enis())
}

fn addresses(rules: &Rules, pods: u32) -> (u32, usize) {
    let (stats, enis) = steady(rules, pods);
    (stats.total, enis)
}

#[test]
fn t3_small_with_one_warm_eni() {
    let rules = Rules { warm_eni: 1, ..T3_SMALL };

    assert_eq!([0, 5, 9].map(|pods| addresses(&rules, pods)), [(3, 1), (9, 3), (9, 3)]);
}

#[test]
fn t3_small_with_warm_addresses_and_a_minimum() {
    let one = Rules { warm_ip: 1, minimum_ip: 1, ..T3_SMALL };
    let two = Rules { warm_ip: 2, minimum_ip: 5, ..T3_SMALL };

    assert_eq!([0, 5, 9].map(|pods| addresses(&one, pods)), [(1, 1), (6, 2), (9, 3)]);
    assert_eq!([0, 5, 9].map(|pods| addresses(&two, pods)), [(5, 2), (7, 3), (9, 3)]);
}

#[test]
fn p3dn_24xlarge_with_five_warm_addresses_and_ten_at_least() {
    let rules = Rules { warm_ip: 5, minimum_ip: 10, slots: 49, max_enis: 15, ..UNSET };

    let steady = [0, 7, 15, 45].map(|pods| addresses(&rules, pods));
    assert_eq!(steady, [(10, 1), (12, 1), (20, 1), (50, 2)]);
}

#[test]
fn t3_small_with_prefixes() {
    let warm_prefix = Rules { warm_prefix: 1, prefixes: true, ..T3_SMALL };
    let warm_ip = Rules { warm_ip: 1, minimum_ip: 1, prefixes: true, ..T3_SMALL };
    let prefixes = |rules: &Rules, pods| steady(rules, pods).0.prefixes;

    assert_eq!([0, 5, 16, 17, 58].map(|pods| prefixes(&warm_prefix, pods)), [1, 2, 2, 3, 5]);
    assert_eq!([0, 5, 17, 58].map(|pods| prefixes(&warm_ip, pods)), [1, 1, 2, 4]);
}

#[test]
fn a_pool_is_too_low_or_not() {
    let three = |assigned| Stats { total: 3, assigned, ..Stats::default() };
    let small = Rules { slots: 3, ..UNSET };

    let empty = Stats::default();
    let warm_eni = Rules { warm_eni: 1, ..UNSET };
    assert!(warm_eni.too_low(empty) && UNSET.too_low(empty));
    assert!(Rules { warm_ip: 3, ..UNSET }.too_low(empty));
    assert!(!Rules { warm_ip: 1, ..small }.too_low(three(0)));
    assert!(Rules { warm_eni: 1, ..small }.too_low(three(1)));
    assert!(!small.too_low(three(1)));
    assert!(small.too_low(three(3)));
    assert!(!Rules { warm_eni: 1, max_pods: 3, ..small }.too_low(three(1)));
}

#[test]
fn what_is_short_and_over_by_the_ip_targets() {
    let rules = Rules { warm_ip: 5, ..UNSET };
    let with = |total| Stats { total, ..Stats::default() };
    assert_eq!([0, 2, 5].map(|total| rules.cidrs_for(with(total), 0)), [5, 3, 0]);

    let rules = Rules { warm_ip: 5, prefixes: true, ..UNSET };
    let with =
        |prefixes| Stats { total: prefixes * 16, prefixes, free_prefixes: prefixes, ..Stats::default() };
    assert!(rules.too_low(with(0)) && rules.cidrs_for(with(0), 0) == 1);
    assert_eq!([2, 1].map(|prefixes| rules.too_many(with(prefixes))), [1, 0]);
}
