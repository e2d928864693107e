//! The worked examples of the Go version's documentation and tests, where its formulas reproduce them.

use std::time::Duration;

use super::kit::{Ec2, actions, assign, at, eni, limits, owner, pool, settle, warm_enis, warm_ips};
use crate::{Limits, Pool, Role, Targets};

/// Addresses and ENIs of a fresh node once so many pods run on it.
fn steady(limits: Limits, targets: &Targets, pods: u16) -> (u32, usize) {
    let primary = vec![eni(0, Role::Primary, 0)];
    let mut pool = pool(&primary);
    let mut ec2 = Ec2::new(primary, limits);
    let mut now = at(0);
    settle(&mut pool, &mut ec2, targets, 0, &mut now);
    for n in 0..pods {
        if pool.reserve(owner(n), now).is_err() {
            settle(&mut pool, &mut ec2, targets, 1, &mut now);
            pool.reserve(owner(n), now).unwrap();
        }
        settle(&mut pool, &mut ec2, targets, 0, &mut now);
        pool.check().unwrap();
    }
    assert_eq!(pool.enis(), ec2.picture());
    (pool.counts(now).total(), pool.enis().len())
}

#[test]
fn t3_small_with_one_warm_eni() {
    let steady = |pods| steady(limits(3, 3), &warm_enis(1), pods);

    assert_eq!([0, 5, 9].map(steady), [(3, 1), (9, 3), (9, 3)]);
}

#[test]
fn t3_small_with_one_warm_address() {
    let steady = |pods| steady(limits(3, 3), &warm_ips(1, 1), pods);

    assert_eq!([0, 5, 9].map(steady), [(1, 1), (6, 2), (9, 3)]);
}

#[test]
fn t3_small_with_two_warm_addresses_and_five_at_least() {
    let steady = |pods| steady(limits(3, 3), &warm_ips(2, 5), pods);

    assert_eq!([0, 5, 9].map(steady), [(5, 2), (7, 3), (9, 3)]);
}

#[test]
fn p3dn_24xlarge_with_five_warm_addresses_and_ten_at_least() {
    let steady = |pods| steady(limits(15, 49), &warm_ips(5, 10), pods);

    assert_eq!([0, 7, 15, 45].map(steady), [(10, 1), (12, 1), (20, 1), (50, 2)]);
}

#[test]
fn an_empty_pool_is_low_whatever_the_target() {
    let pool = pool(&[eni(0, Role::Primary, 0)]);
    let wants = |targets: &Targets| actions(&pool, targets, &limits(4, 14), 0, at(0));

    assert_eq!(wants(&warm_enis(1)), ["assign 14 addresses to eni-000"]);
    assert_eq!(wants(&warm_enis(0)), ["assign 14 addresses to eni-000"]);
    assert_eq!(wants(&warm_ips(3, 0)), ["assign 3 addresses to eni-000"]);
}

#[test]
fn a_pool_of_three_is_low_or_not_as_the_go_version_says() {
    let mut pool = pool(&[eni(0, Role::Primary, 3)]);
    let low = |pool: &Pool, targets: &Targets| {
        let actions = actions(pool, targets, &limits(4, 3), 0, at(0));
        actions.iter().any(|action| !action.starts_with("release"))
    };

    assert!(!low(&pool, &warm_ips(1, 0)));
    assign(&mut pool, [1], at(0));
    assert!(low(&pool, &warm_enis(1)));
    assert!(!low(&pool, &warm_enis(0)));
    assert!(!low(&pool, &Targets { max_pods: Some(3), ..warm_enis(1) }));
    assign(&mut pool, [2, 3], at(0));
    assert!(low(&pool, &warm_enis(0)));
}

#[test]
fn a_warm_target_of_five_is_short_by_what_is_missing() {
    let wants = |count| {
        let pool = pool(&[eni(0, Role::Primary, count)]);
        actions(&pool, &warm_ips(5, 0), &limits(4, 14), 0, at(0))
    };

    assert_eq!(wants(0), ["assign 5 addresses to eni-000"]);
    assert_eq!(wants(2), ["assign 3 addresses to eni-000"]);
    assert!(wants(5).is_empty());
}

#[test]
fn ip_targets_of_zero_are_as_good_as_none() {
    let pool = pool(&[eni(0, Role::Primary, 0)]);
    let zeros = Targets { release_every: Duration::ZERO, ..warm_ips(0, 0) };

    assert_eq!(actions(&pool, &zeros, &limits(4, 14), 0, at(0)), ["assign 14 addresses to eni-000"]);
}
