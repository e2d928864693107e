//! The pool without targets: what is kept free follows the pods.

use std::time::Duration;

use types::{Moment, NetworkCard};

use super::kit::{Ec2, actions, assign, at, eni, limits, owner, pool, sandbox, settle};
use crate::{Action, Mode, Pool, Role, Targets};

fn automatic() -> Targets {
    Targets { automatic: true, ..Targets::default() }
}

/// The same where nobody is short of addresses.
fn calm() -> Targets {
    Targets { patient: true, ..automatic() }
}

/// One primary ENI of an instance with 15 ENIs of 49 slots.
fn large() -> (Pool, Ec2) {
    let primary = vec![eni(0, Role::Primary, 0)];
    (pool(&primary), Ec2::new(primary, limits(15, 49)))
}

#[test]
fn a_quiet_node_keeps_twelve_addresses_and_asks_again_below_four() {
    let (mut pool, mut ec2) = large();
    let mut now = at(0);
    let wants = |pool: &Pool, now| actions(pool, &automatic(), &limits(15, 49), 0, now);
    assert_eq!(wants(&pool, now), ["assign 12 addresses to eni-000"]);
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);

    for n in 0..8 {
        now = now.plus(Duration::from_secs(61));
        assign(&mut pool, [n], now);
        assert!(wants(&pool, now).is_empty(), "after pod {n}");
    }
    now = now.plus(Duration::from_secs(61));
    assign(&mut pool, [8], now);

    assert_eq!(wants(&pool, now), ["assign 9 addresses to eni-000"]);
}

/// `asks.md` A2 (a).
#[test]
fn ten_pods_hold_at_most_sixteen_addresses_more() {
    let (mut pool, mut ec2) = large();
    let mut now = at(0);
    for n in 0..10 {
        settle(&mut pool, &mut ec2, &automatic(), 1, &mut now);
        assign(&mut pool, [n], now);
    }

    now = now.plus(Duration::from_secs(300));
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);

    assert!(pool.counts(now).total() <= 26, "{:?}", pool.counts(now));
}

/// `asks.md` A2 (b), as far as addresses go.
#[test]
fn a_burst_of_pods_leaves_no_hoard() {
    let (mut pool, mut ec2) = large();
    let mut now = at(0);
    let pods = |pool: &mut Pool, ec2: &mut Ec2, range: std::ops::Range<u16>, now: &mut _| {
        for n in range {
            if pool.reserve(owner(n), *now).is_err() {
                settle(pool, ec2, &automatic(), 1, now);
                pool.reserve(owner(n), *now).unwrap();
            }
            pool.commit(&sandbox(n));
        }
    };
    pods(&mut pool, &mut ec2, 0..400, &mut now);

    (0..400).filter(|n| n % 2 == 0).for_each(|n| drop(pool.release(&sandbox(n), now)));
    now = now.plus(Duration::from_secs(300));
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);

    assert!(pool.counts(now).total() <= 220, "{:?}", pool.counts(now));
    pool.check().unwrap();
}

/// 200 pods, 200 more, and 200 of these 400 less, second by second as the daemon does it: what goes back has to have been to spare for a
/// while. The pool ten minutes later, and how many ENIs it had at most.
fn ten_minutes_after_a_burst(targets: &Targets, leaves: impl Fn(u16) -> u16) -> (Pool, Moment, usize) {
    let (mut pool, mut ec2) = large();
    let mut now = at(0);
    let mut pass = |pool: &mut Pool, seconds: u64| {
        for _ in 0..seconds {
            now = now.plus(Duration::from_secs(1));
            pool.watch(NetworkCard(0), 0, now);
            let plan = pool.plan(targets, &limits(15, 49), 0, now);
            for planned in plan.actions {
                let id = pool.begin(&planned.action);
                pool.finish(id, ec2.act(&planned.action), now);
            }
        }
        now
    };
    let mut began = 0;
    for (pods, seconds) in [(200, 300), (400, 60)] {
        while began < pods {
            let now = pass(&mut pool, 1);
            let free = u16::try_from(pool.counts(now).free).unwrap();
            assign(&mut pool, began..(began + free).min(pods), now);
            began = (began + free).min(pods);
        }
        pass(&mut pool, seconds);
    }
    let most = pool.enis().len();
    let now = pass(&mut pool, 1);
    (0..200).for_each(|n| drop(pool.release(&sandbox(leaves(n)), now)));
    assert_eq!(pool.counts(now).assigned, 200);
    let now = pass(&mut pool, 600);
    pool.check().unwrap();
    (pool, now, most)
}

/// Each ENI keeps some of these pods, and no pod can change its address: here addresses go back, and no ENI.
#[test]
fn within_ten_minutes_the_addresses_of_a_burst_have_gone_back() {
    for targets in [automatic(), calm()] {
        // Every other one of a shuffled deck: 401 is prime.
        let (pool, now, _) = ten_minutes_after_a_burst(&targets, |n| (n + 1) * 173 % 401 - 1);

        assert!(pool.counts(now).total() <= 220, "{:?}", pool.counts(now));
    }
}

#[test]
fn within_ten_minutes_the_enis_that_a_burst_has_left_empty_have_gone_back() {
    for targets in [automatic(), calm()] {
        let (pool, now, most) = ten_minutes_after_a_burst(&targets, |n| 200 + n);

        assert!(pool.counts(now).total() <= 220, "{:?}", pool.counts(now));
        assert!(pool.enis().len() + 3 <= most, "{} ENIs of {most}", pool.enis().len());
    }
}

/// `asks.md` A2 (c).
#[test]
fn a_node_that_no_further_pod_fits_keeps_two_addresses_free() {
    let (mut pool, mut ec2) = large();
    let mut now = at(0);
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);
    assign(&mut pool, 0..10, now);
    let full = Targets { full: Some(0), ..automatic() };
    let free = |pool: &Pool, now| pool.counts(now).free;
    let asked = |pool: &Pool, now| actions(pool, &full, &limits(15, 49), 0, now);
    assert_eq!((free(&pool, now), asked(&pool, now).len()), (2, 0));
    assign(&mut pool, 10..11, now);
    assert_eq!((free(&pool, now), asked(&pool, now).len()), (1, 0));
    assign(&mut pool, 11..12, now);
    assert_eq!(asked(&pool, now), ["assign 2 addresses to eni-000"]);

    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);
    assert!(free(&pool, now) >= 12);
    now = now.plus(Duration::from_secs(300));
    settle(&mut pool, &mut ec2, &full, 0, &mut now);

    assert_eq!(free(&pool, now), 2);
    // Those that are on their way to it are no surprise: one call for all.
    let full = Targets { full: Some(20), ..automatic() };
    assert_eq!(actions(&pool, &full, &limits(15, 49), 0, now), ["assign 20 addresses to eni-000"]);
}

/// A prefix that is begun cannot go back, and none comes and goes.
#[test]
fn in_prefix_mode_a_full_node_keeps_what_its_last_prefix_holds() {
    let (mut pool, mut ec2) = large();
    pool.set_mode(Mode::Prefixes);
    let mut now = at(0);
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);
    assign(&mut pool, 0..15, now);
    settle(&mut pool, &mut ec2, &automatic(), 0, &mut now);
    assert!(pool.counts(now).free > 17);

    let full = Targets { full: Some(0), ..automatic() };
    now = now.plus(Duration::from_secs(300));
    settle(&mut pool, &mut ec2, &full, 0, &mut now);
    let kept = pool.counts(now).free;
    assert!(kept <= 17, "{kept} are to spare");
    for _ in 0..10 {
        now = now.plus(Duration::from_secs(60));
        assert!(actions(&pool, &full, &limits(15, 49), 0, now).is_empty());
    }
}

#[test]
fn many_starts_in_a_minute_keep_more_free() {
    let mut pool = pool(&[eni(0, Role::Primary, 45)]);
    assign(&mut pool, 0..30, at(0));
    let plan = |second| pool.plan(&automatic(), &limits(15, 49), 0, at(second));

    // Fifteen are free, which is as many as a busy minute's low mark.
    assert!(plan(1).actions.is_empty());
    let waiting = pool.plan(&automatic(), &limits(15, 49), 2, at(1));
    let brings: u32 = waiting.actions.iter().map(|planned| wanted(&planned.action)).sum();
    // What is wanted beyond the low mark fills up ENIs, and makes none.
    assert_eq!(brings, 4, "{waiting}");
    let roomier = pool.plan(&automatic(), &limits(15, 60), 2, at(1));
    assert_eq!(wanted(&roomier.actions[0].action), 15, "{roomier}");
    // A minute later it is a quiet node again.
    assert_eq!(plan(61).actions[0].action.to_string(), "release 3 addresses of eni-000");
}

#[test]
fn while_pods_come_and_go_eight_more_are_let_be_where_nobody_is_short() {
    let mut pool = pool(&[eni(0, Role::Primary, 38)]);
    assign(&mut pool, 0..18, at(0));
    assert_eq!(pool.counts(at(61)).free, 12 + 8);
    let asked = |targets: Targets, second| actions(&pool, &targets, &limits(15, 49), 0, at(second));

    let all = ["release 8 addresses of eni-000"];
    assert_eq!(asked(calm(), 61), [""; 0]);
    assert_eq!(asked(automatic(), 61), all);
    let plan = pool.plan(&calm(), &limits(15, 49), 0, at(61));
    assert_eq!((plan.look_again, plan.let_be), (Some(at(120)), 8));
    assert!(
        plan.to_string().contains("8 more addresses than are wanted stay while pods come and go"),
        "{plan}"
    );
    assert_eq!(pool.plan(&calm(), &limits(15, 49), 0, at(120)).let_be, 0);
    assert_eq!(asked(calm(), 120), all);

    let mut more = self::pool(&[eni(0, Role::Primary, 39)]);
    assign(&mut more, 0..18, at(0));
    let one_more = actions(&more, &calm(), &limits(15, 49), 0, at(61));
    assert_eq!(one_more, ["release 9 addresses of eni-000"], "all of it in one call");
}

#[test]
fn what_is_to_spare_goes_back_in_one_call_once_no_more_is_about_to_be() {
    let mut pool = pool(&[eni(0, Role::Primary, 45)]);
    assign(&mut pool, 0..25, at(0));
    let pass = |pool: &mut Pool, seconds: std::ops::Range<u64>| {
        seconds.step_by(10).for_each(|second| pool.watch(NetworkCard(0), 0, at(second)));
    };
    let asked = |pool: &Pool, targets: Targets, second| {
        actions(pool, &targets, &limits(15, 49), 0, at(second)).join(" and ")
    };
    pass(&mut pool, 0..400);
    assert_eq!(asked(&pool, calm(), 400), "release 8 addresses of eni-000");

    (0..10).for_each(|n| drop(pool.release(&sandbox(n), at(400))));
    pass(&mut pool, 400..450);
    assert_eq!(asked(&pool, calm(), 450), "");
    assert_eq!(asked(&pool, automatic(), 450), "release 8 addresses of eni-000");
    pass(&mut pool, 450..800);
    assert_eq!(asked(&pool, calm(), 800), "release 18 addresses of eni-000");
}

fn wanted(action: &Action) -> u32 {
    match action {
        Action::Assign { wanted, .. } | Action::CreateEni { wanted, .. } => wanted.addresses(),
        Action::Release { .. } | Action::DeleteEni { .. } => 0,
    }
}

/// `asks.md` A3: at most two calls for the first sixteen addresses.
#[test]
fn the_first_sixteen_pods_cost_two_calls() {
    let (mut pool, mut ec2) = large();
    let mut calls = 0;
    for n in 0..16 {
        loop {
            let plan = pool.plan(&automatic(), &limits(15, 49), 0, at(n));
            calls += plan.actions.len();
            let begun: Vec<_> = plan
                .actions
                .into_iter()
                .map(|planned| (pool.begin(&planned.action), planned.action))
                .collect();
            if begun.is_empty() {
                break;
            }
            begun.into_iter().for_each(|(id, action)| pool.finish(id, ec2.act(&action), at(n)));
        }
        assign(&mut pool, [u16::try_from(n).unwrap()], at(n));
    }

    assert_eq!(calls, 2);
}
