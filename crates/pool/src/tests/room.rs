//! A node that wants for more gives back what pods cannot use, and one whose pods come and go keeps what it has.

use std::time::Duration;

use types::{Moment, NetworkCard, Reason};

use super::kit::{
    Ec2, actions, assign, at, eni, eni_id, limits, owner, pool, sandbox, settle, warm_enis, warm_ips,
    warm_prefixes,
};
use crate::{Action, EniSeen, KeptReason, Limits, Mode, Outcome, Pool, Role, Targets, Wanted};

/// Begins what the plan says; the subnet has not so many.
fn refused(pool: &mut Pool, targets: &Targets, limits: &Limits, now: Moment) -> Vec<String> {
    let plan = pool.plan(targets, limits, 1, now);
    let refuse = |planned: crate::Planned| {
        let id = pool.begin(&planned.action);
        pool.finish(id, Outcome::Scarce, now);
        planned.action.to_string()
    };
    plan.actions.into_iter().map(refuse).collect()
}

fn elsewhere(n: u8, count: u8) -> EniSeen {
    EniSeen { subnet: "subnet-2".parse().unwrap(), ..eni(n, Role::Secondary, count) }
}

#[test]
fn a_full_node_whose_mode_changes_gives_back_single_addresses_for_prefixes() {
    let enis = vec![eni(0, Role::Primary, 9), eni(1, Role::Secondary, 9), eni(2, Role::Secondary, 9)];
    let mut pool = pool(&enis);
    let mut ec2 = Ec2::new(enis, limits(3, 9));
    let mut now = at(0);
    assign(&mut pool, 0..5, now);
    pool.set_mode(Mode::Prefixes);

    assert_eq!(actions(&pool, &warm_prefixes(1), &limits(3, 9), 0, now), ["release 1 addresses of eni-002"]);
    for n in 5..60 {
        settle(&mut pool, &mut ec2, &warm_prefixes(1), 0, &mut now);
        assign(&mut pool, [n], now);
    }

    assert_eq!(pool.enis(), ec2.picture());
    pool.check().unwrap();
}

#[test]
fn single_addresses_make_room_once_a_subnet_has_prefixes_again() {
    let primary = vec![eni(0, Role::Primary, 0)];
    let mut pool = pool(&primary);
    pool.set_mode(Mode::Prefixes);
    let mut ec2 = Ec2::new(primary, limits(1, 4));
    ec2.prefixes_left = 0;
    let mut now = at(0);
    settle(&mut pool, &mut ec2, &warm_ips(0, 1), 4, &mut now);
    assign(&mut pool, 0..4, now);
    (1..4).for_each(|n| drop(pool.release(&sandbox(n), now)));
    // Still not, when asked again.
    now = now.plus(Duration::from_secs(7200));
    settle(&mut pool, &mut ec2, &warm_ips(5, 0), 0, &mut now);
    assert_eq!(ec2.enis[&eni_id(0)].addresses.len(), 4);

    ec2.prefixes_left = 9;
    now = now.plus(Duration::from_secs(7200));
    settle(&mut pool, &mut ec2, &warm_ips(5, 0), 0, &mut now);

    let eni = &ec2.enis[&eni_id(0)];
    assert_eq!((eni.addresses.len(), eni.prefixes.len()), (1, 1));
}

#[test]
fn an_idle_eni_in_an_excluded_subnet_makes_room_for_another() {
    let mut pool = pool(&[eni(0, Role::Primary, 3), elsewhere(1, 0)]);
    pool.set_excluded(["subnet-2".parse().unwrap()].into());
    assign(&mut pool, 0..3, at(0));
    let (targets, limits) = (warm_ips(1, 0), limits(2, 3));

    let young = pool.plan(&targets, &limits, 1, at(10));
    assert_eq!((young.actions.len(), young.look_again), (0, Some(at(60))));
    assert_eq!(actions(&pool, &targets, &limits, 1, at(60)), ["delete eni-001"]);
}

#[test]
fn a_spared_primary_eni_gives_back_what_a_new_one_in_its_subnet_needs() {
    let mut pool = pool(&[eni(0, Role::Primary, 3)]);
    pool.spare_primary();
    let (targets, limits) = (warm_ips(1, 0), limits(2, 3));

    assert_eq!(refused(&mut pool, &targets, &limits, at(0)).len(), 1);
    assert_eq!(
        refused(&mut pool, &targets, &limits, at(0)),
        ["create an ENI with 1 addresses at device 1 in subnet-1"]
    );

    assert_eq!(pool.shortage_reason(&limits, at(1)), Reason::SubnetFull);
    assert_eq!(pool.asks_again(at(1)), Some(at(10)));
    assert_eq!(actions(&pool, &targets, &limits, 1, at(1)), ["release 3 addresses of eni-000"]);
}

#[test]
fn nothing_makes_room_while_a_call_is_under_way_or_the_last_was_a_moment_ago() {
    let mut pool = pool(&[eni(0, Role::Primary, 3), elsewhere(1, 1), elsewhere(2, 1)]);
    pool.set_excluded(["subnet-2".parse().unwrap()].into());
    assign(&mut pool, 0..3, at(0));
    let (targets, limits) = (warm_ips(1, 0), limits(3, 3));
    let plan = pool.plan(&targets, &limits, 1, at(10));
    assert_eq!(plan.actions.len(), 1, "{plan}");

    let id = pool.begin(&plan.actions[0].action);
    assert!(actions(&pool, &targets, &limits, 1, at(11)).is_empty());
    pool.finish(id, Outcome::Released, at(12));

    let resting = pool.plan(&targets, &limits, 1, at(13));
    assert_eq!((resting.actions.len(), resting.look_again), (0, Some(at(42))));
    assert_eq!(actions(&pool, &targets, &limits, 1, at(42)), ["release 1 addresses of eni-001"]);
}

/// Calls for pods that are replaced one by one, ten seconds each.
fn calls_of_churn(targets: &Targets, steps: u16) -> (usize, Pool) {
    let primary = vec![eni(0, Role::Primary, 0)];
    let mut pool = pool(&primary);
    let mut ec2 = Ec2::new(primary, limits(2, 40));
    let mut now = at(0);
    settle(&mut pool, &mut ec2, targets, 20, &mut now);
    assign(&mut pool, 0..20, now);
    let mut calls = 0;
    for n in 0..steps {
        pool.release(&sandbox(n), now);
        pool.watch(NetworkCard(0), 0, now);
        now = now.plus(Duration::from_secs(10));
        if pool.reserve(owner(20 + n), now).is_ok() {
            pool.commit(&sandbox(20 + n));
        }
        pool.watch(NetworkCard(0), 0, now);
        for planned in pool.plan(targets, &limits(2, 40), 0, now).actions {
            let id = pool.begin(&planned.action);
            pool.finish(id, ec2.act(&planned.action), now);
            calls += 1;
        }
    }
    (calls, pool)
}

#[test]
fn pods_that_come_and_go_cost_no_calls_once_their_cooldown_is_covered() {
    let (few, _) = calls_of_churn(&warm_ips(5, 16), 60);
    let (many, pool) = calls_of_churn(&warm_ips(5, 16), 600);

    assert!(few <= 8, "{few} calls");
    assert_eq!(many, few);
    assert!(pool.counts(at(100_000)).total() <= 30);
}

#[test]
fn what_was_to_spare_for_a_while_goes_and_a_restart_begins_anew() {
    let mut pool = pool(&[eni(0, Role::Primary, 9), eni(1, Role::Secondary, 9)]);
    let (targets, limits) = (warm_ips(2, 0), limits(2, 9));
    pool.watch(NetworkCard(0), 0, at(100));

    let lately = pool.plan(&targets, &limits, 0, at(100));
    assert!(lately.actions.is_empty());
    assert_eq!(lately.look_again, Some(at(250)));
    assert_eq!(lately.kept[1], (eni_id(1), KeptReason::NeededLately(at(250))));

    pool.watch(NetworkCard(0), 0, at(250));
    assert_eq!(actions(&pool, &targets, &limits, 0, at(250)), ["delete eni-001"]);
}

/// Keeps watch for so many minutes in which nothing happens.
fn quiet(pool: &mut Pool, minutes: std::ops::Range<u64>) {
    for minute in minutes {
        pool.watch(NetworkCard(0), 0, at(minute * 60));
    }
}

#[test]
fn where_nobody_is_short_an_eni_is_kept_for_hours_unless_a_subnet_refuses_something() {
    let mut pool = pool(&[eni(0, Role::Primary, 9), eni(1, Role::Secondary, 9), eni(2, Role::Secondary, 9)]);
    let (limits, patient) = (limits(3, 9), Targets { patient: true, ..warm_enis(1) });
    let plan = |pool: &Pool, targets: &Targets, minute: u64| {
        let plan = pool.plan(targets, &limits, 0, at(minute * 60));
        plan.actions.iter().map(|planned| planned.action.to_string()).collect::<Vec<_>>()
    };
    quiet(&mut pool, 1..60);
    assert_eq!(plan(&pool, &warm_enis(1), 60), ["delete eni-002"]);
    assert!(plan(&pool, &patient, 60).is_empty());

    let mut refused = pool.clone();
    let action = Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(1) };
    let id = refused.begin(&action);
    refused.finish(id, Outcome::Scarce, at(60 * 60));
    assert_eq!(plan(&refused, &patient, 60), ["delete eni-002"]);

    quiet(&mut pool, 60..482);
    assert_eq!(plan(&pool, &patient, 482), ["delete eni-002"]);
}

#[test]
fn what_has_been_given_back_is_to_spare_no_longer() {
    let mut pool = pool(&[eni(0, Role::Primary, 20)]);
    let (targets, limits) = (warm_ips(2, 0), limits(1, 20));
    assign(&mut pool, 0..12, at(60));
    quiet(&mut pool, 1..6);
    (0..6).for_each(|n| drop(pool.release(&sandbox(n), at(360))));
    quiet(&mut pool, 6..8);
    // Eight have been free all the time, of fourteen.
    let plan = pool.plan(&targets, &limits, 0, at(420));
    assert_eq!(plan.actions[0].action.to_string(), "release 6 addresses of eni-000");
    let id = pool.begin(&plan.actions[0].action);
    pool.finish(id, Outcome::Released, at(421));

    assert!(pool.plan(&targets, &limits, 0, at(460)).actions.is_empty());
    quiet(&mut pool, 8..20);
    assert_eq!(actions(&pool, &targets, &limits, 0, at(1200)), ["release 6 addresses of eni-000"]);
}

#[test]
fn what_is_given_back_counts_once_however_often_is_looked_meanwhile() {
    let (targets, limits) = (warm_ips(2, 0), limits(1, 20));
    // When the next ones go, and how many.
    let next = |outcome: &Outcome, watched: bool| {
        let mut pool = pool(&[eni(0, Role::Primary, 20)]);
        assign(&mut pool, 0..12, at(60));
        quiet(&mut pool, 1..6);
        (0..6).for_each(|n| drop(pool.release(&sandbox(n), at(360))));
        quiet(&mut pool, 6..8);
        let id = pool.begin(&pool.plan(&targets, &limits, 0, at(420)).actions[0].action);
        if watched {
            pool.watch(NetworkCard(0), 0, at(425));
        }
        pool.finish(id, outcome.clone(), at(426));
        (8..40).find_map(|minute| {
            quiet(&mut pool, minute..minute + 1);
            let next = actions(&pool, &targets, &limits, 0, at(minute * 60));
            next.first().map(|action| (minute, action.clone()))
        })
    };

    let release = |minute| Some((minute, "release 6 addresses of eni-000".to_owned()));
    assert_eq!([false, true].map(|watched| next(&Outcome::Released, watched)), [release(10), release(10)]);
    // What EC2 does not take back is to spare as before.
    assert_eq!([false, true].map(|watched| next(&Outcome::Failed, watched)), [release(8), release(8)]);
}

#[test]
fn no_eni_is_made_for_what_is_about_to_have_cooled_unless_pods_wait() {
    let mut pool = pool(&[eni(0, Role::Primary, 9)]);
    let (targets, limits) = (warm_ips(2, 0), limits(2, 9));
    assign(&mut pool, 0..8, at(0));
    pool.release(&sandbox(0), at(10));

    // One is free, and one of the two may cool.
    assert!(actions(&pool, &targets, &limits, 0, at(11)).is_empty());
    let for_pods = actions(&pool, &targets, &limits, 1, at(11));
    assert_eq!(for_pods, ["create an ENI with 2 addresses at device 1 in subnet-1"]);
}

#[test]
fn while_addresses_cool_a_short_target_is_filled_up_by_more_than_is_missing() {
    let mut pool = pool(&[eni(0, Role::Primary, 9)]);
    let (warm, limits) = (warm_ips(5, 0), limits(1, 20));
    assign(&mut pool, 0..4, at(0));
    pool.release(&sandbox(0), at(10));
    assign(&mut pool, 4..5, at(10));

    let patient = Targets { patient: true, ..warm };
    assert_eq!(actions(&pool, &warm, &limits, 0, at(11)), ["assign 1 addresses to eni-000"]);
    assert_eq!(actions(&pool, &patient, &limits, 0, at(11)), ["assign 5 addresses to eni-000"]);
}

#[test]
fn a_prefix_on_its_way_leaves_room_for_others_on_its_eni() {
    let mut pool = pool(&[eni(0, Role::Primary, 0)]);
    pool.set_mode(Mode::Prefixes);
    let (targets, limits) = (warm_prefixes(1), limits(2, 9));
    let first = pool.plan(&targets, &limits, 0, at(0));
    assert_eq!(first.actions.len(), 1, "{first}");
    pool.begin(&first.actions[0].action);

    assert!(actions(&pool, &targets, &limits, 20, at(1)).is_empty());
}
