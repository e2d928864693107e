//! Prefix delegation: worked examples of the Go version, fallback to single addresses, and changes of mode.

use std::collections::BTreeSet;
use std::time::Duration;

use types::{Moment, Prefix};

use super::kit::{
    Ec2, actions, assign, at, eni, eni_id, limits, owner, pool, sandbox, settle, warm_ips, warm_prefixes,
};
use crate::{Action, EniSeen, Limits, Mode, Outcome, Pool, Role, Targets, Wanted};

fn prefix(n: u8) -> Prefix {
    format!("10.1.0.{}/28", n * 16).parse().unwrap()
}

/// The primary ENI with these prefixes.
fn with_prefixes(n: impl IntoIterator<Item = u8>) -> EniSeen {
    EniSeen { prefixes: n.into_iter().map(prefix).collect(), ..eni(0, Role::Primary, 0) }
}

fn in_prefix_mode(enis: &[EniSeen]) -> Pool {
    let mut pool = pool(enis);
    pool.set_mode(Mode::Prefixes);
    pool
}

/// The prefixes in which the sandboxes with these numbers have their addresses.
fn prefixes_of(pool: &Pool, sandboxes: impl IntoIterator<Item = u16>) -> BTreeSet<Prefix> {
    let of = |n| Prefix::of(pool.owner(&sandbox(n)).unwrap().1.address);
    sandboxes.into_iter().map(of).collect()
}

/// Prefixes of a fresh node once so many pods run on it.
fn steady(limits: Limits, targets: &Targets, pods: u16) -> usize {
    let primary = vec![eni(0, Role::Primary, 0)];
    let mut pool = in_prefix_mode(&primary);
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
    ec2.enis.values().map(|eni| eni.prefixes.len()).sum()
}

#[test]
fn t3_small_with_one_warm_prefix() {
    let steady = |pods| steady(limits(3, 3), &warm_prefixes(1), pods);

    assert_eq!([0, 5, 16, 17, 58].map(steady), [1, 2, 2, 3, 5]);
}

#[test]
fn t3_small_with_one_warm_address_in_prefixes() {
    let steady = |pods| steady(limits(3, 3), &warm_ips(1, 1), pods);

    assert_eq!([0, 5, 17, 58].map(steady), [1, 1, 2, 4]);
}

#[test]
fn five_warm_addresses_are_one_prefix_and_two_are_one_too_many() {
    let wants = |prefixes| {
        let pool = in_prefix_mode(&[with_prefixes(0..prefixes)]);
        actions(&pool, &warm_ips(5, 0), &limits(3, 14), 0, at(0))
    };

    assert_eq!(wants(0), ["assign 1 prefixes to eni-000"]);
    assert!(wants(1).is_empty());
    assert_eq!(wants(2), ["release 1 prefixes of eni-000"]);
}

#[test]
fn pods_fill_a_prefix_before_the_next_is_begun() {
    let mut pool = in_prefix_mode(&[with_prefixes(0..3)]);

    assign(&mut pool, 0..17, at(0));

    assert_eq!(prefixes_of(&pool, 0..16), [prefix(0)].into());
    pool.release(&sandbox(16), at(0)).unwrap();
    pool.release(&sandbox(3), at(0)).unwrap();
    assign(&mut pool, [20], at(100));
    assert_eq!(prefixes_of(&pool, [20]), [prefix(0)].into());
}

#[test]
fn a_prefix_goes_only_when_none_of_its_addresses_is_used_or_cools() {
    let mut pool = in_prefix_mode(&[with_prefixes(0..2)]);
    assign(&mut pool, 0..17, at(0));
    let wants = |pool: &Pool, second| actions(pool, &warm_ips(1, 0), &limits(3, 14), 0, at(second));
    assert!(wants(&pool, 0).is_empty());

    (0..16).for_each(|n| drop(pool.release(&sandbox(n), at(10))));

    assert!(wants(&pool, 39).is_empty());
    let plan = pool.plan(&warm_ips(1, 0), &limits(3, 14), 0, at(40));
    assert_eq!(plan.actions[0].action.to_string(), "release 1 prefixes of eni-000");
    let id = pool.begin(&plan.actions[0].action);
    pool.finish(id, Outcome::Released, at(41));
    assert_eq!(pool.enis()[0].prefixes, [prefix(1)].into());
    pool.check().unwrap();
}

/// What is planned, and that EC2 refuses it for want of prefixes or addresses.
fn refused(pool: &mut Pool, targets: &Targets, limits: &Limits, waiting: u32, now: Moment) -> Vec<String> {
    let plan = pool.plan(targets, limits, waiting, now);
    let said = plan.actions.iter().map(|planned| planned.action.to_string()).collect();
    for planned in plan.actions {
        let id = pool.begin(&planned.action);
        pool.finish(id, Outcome::Scarce, now);
    }
    said
}

#[test]
fn a_subnet_without_a_prefix_gives_single_addresses_and_is_asked_again_later() {
    let mut pool = in_prefix_mode(&[eni(0, Role::Primary, 0)]);
    let (targets, limits) = (warm_ips(5, 0), limits(1, 14));

    assert_eq!(refused(&mut pool, &targets, &limits, 0, at(0)), ["assign 1 prefixes to eni-000"]);

    let plan = pool.plan(&targets, &limits, 0, at(0));
    assert_eq!(plan.actions[0].action.to_string(), "assign 5 addresses to eni-000");
    assert_eq!(plan.look_again, Some(at(120)));
    let id = pool.begin(&plan.actions[0].action);
    pool.finish(id, Outcome::Assigned(eni(0, Role::Primary, 5).given()), at(1));
    assert!(actions(&pool, &targets, &limits, 0, at(119)).is_empty());
    assert_eq!(actions(&pool, &targets, &limits, 0, at(120)), ["assign 1 prefixes to eni-000"]);
}

#[test]
fn half_as_many_are_asked_for_until_there_are_enough() {
    let mut pool = pool(&[eni(0, Role::Primary, 0)]);
    let (targets, limits) = (warm_ips(5, 0), limits(1, 14));
    let asked: Vec<String> =
        (0..4).flat_map(|second| refused(&mut pool, &targets, &limits, 0, at(second))).collect();

    assert_eq!(
        asked,
        ["assign 5 addresses to eni-000", "assign 2 addresses to eni-000", "assign 1 addresses to eni-000"]
    );
}

#[test]
fn an_eni_elsewhere_is_asked_for_a_prefix_before_single_addresses_are_taken() {
    let other = EniSeen { subnet: "subnet-2".parse().unwrap(), ..eni(1, Role::Secondary, 0) };
    let mut pool = in_prefix_mode(&[eni(0, Role::Primary, 0), other]);
    let (targets, limits) = (warm_prefixes(1), limits(2, 14));
    assert_eq!(refused(&mut pool, &targets, &limits, 0, at(0)), ["assign 1 prefixes to eni-000"]);

    assert_eq!(actions(&pool, &targets, &limits, 0, at(1)), ["assign 1 prefixes to eni-001"]);
}

#[test]
fn a_new_eni_is_made_where_there_still_are_prefixes() {
    let mut pool = in_prefix_mode(&[with_prefixes(0..2)]);
    assign(&mut pool, 0..32, at(0));
    pool.set_subnets(vec!["subnet-1".parse().unwrap(), "subnet-2".parse().unwrap()]);
    let (targets, limits) = (warm_prefixes(1), limits(2, 2));
    let create = |subnet| format!("create an ENI with 1 prefixes at device 1 in {subnet}");
    assert_eq!(refused(&mut pool, &targets, &limits, 0, at(0)), [create("subnet-1")]);
    assert_eq!(refused(&mut pool, &targets, &limits, 0, at(1)), [create("subnet-2")]);

    let single = "create an ENI with 2 addresses at device 1 in subnet-1";
    assert_eq!(actions(&pool, &targets, &limits, 0, at(2)), [single]);
}

#[test]
fn single_addresses_that_took_the_place_of_prefixes_go_when_prefixes_are_back() {
    let mut pool = in_prefix_mode(&[eni(0, Role::Primary, 5)]);
    assign(&mut pool, [1], at(0));
    let (targets, limits) = (warm_ips(5, 0), limits(1, 14));
    assert_eq!(actions(&pool, &targets, &limits, 0, at(0)), ["assign 1 prefixes to eni-000"]);

    let id = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Prefixes(1) });
    pool.finish(id, Outcome::Assigned(with_prefixes([4]).given()), at(1));

    assert_eq!(actions(&pool, &targets, &limits, 0, at(2)), ["release 4 addresses of eni-000"]);
    assign(&mut pool, [2], at(2));
    assert_eq!(prefixes_of(&pool, [2]), [prefix(4)].into());
}

#[test]
fn a_node_may_change_its_mode_both_ways_under_its_pods() {
    let primary = vec![eni(0, Role::Primary, 0)];
    let mut pool = pool(&primary);
    let mut ec2 = Ec2::new(primary, limits(3, 9));
    let (targets, mut now) = (warm_ips(4, 4), at(0));
    settle(&mut pool, &mut ec2, &targets, 0, &mut now);
    assign(&mut pool, 0..4, now);
    let held: Vec<_> = pool.owners().map(|(_, grant)| grant.address).collect();

    pool.set_mode(Mode::Prefixes);
    settle(&mut pool, &mut ec2, &targets, 0, &mut now);
    assign(&mut pool, 4..8, now);
    settle(&mut pool, &mut ec2, &targets, 0, &mut now);

    let eni = &pool.enis()[0];
    assert_eq!((eni.addresses.len(), eni.prefixes.len()), (4, 1));
    assert!(held.iter().all(|address| eni.addresses.contains(address)));

    pool.set_mode(Mode::Addresses);
    (4..8).for_each(|n| drop(pool.release(&sandbox(n), now)));
    now = now.plus(Duration::from_secs(60));
    settle(&mut pool, &mut ec2, &targets, 0, &mut now);

    let eni = &pool.enis()[0];
    assert_eq!((eni.addresses.len(), eni.prefixes.len()), (8, 0));
    assert_eq!(pool.enis(), ec2.picture());
    pool.check().unwrap();
}

#[test]
fn an_idle_eni_goes_when_its_prefixes_are_not_needed() {
    let second = EniSeen { prefixes: [prefix(8)].into(), ..eni(1, Role::Secondary, 0) };
    let pool = in_prefix_mode(&[with_prefixes(0..1), second]);

    assert_eq!(actions(&pool, &warm_prefixes(1), &limits(3, 9), 0, at(60)), ["delete eni-001"]);
    assert!(actions(&pool, &warm_prefixes(2), &limits(3, 9), 0, at(60)).is_empty());
}
