//! Pictures that are older than they seem, what restarts remember of calls, and ENIs that the kernel is not ready for.

use types::{DeviceIndex, Mac, NetworkCard, Prefix, Reason};

use super::kit::{
    COOLDOWN, actions, address, assign, at, create, eni, eni_id, limits, owner, pool, warm_ips, warm_prefixes,
};
use crate::{Action, ActionId, EniSeen, Given, Left, Mode, Outcome, Pool, Role, Snapshot, Unready, Wanted};

fn prefix() -> Prefix {
    "10.1.0.0/28".parse().unwrap()
}

/// Two ENIs, the second one with a prefix.
fn with_a_prefix() -> Vec<EniSeen> {
    let second = EniSeen { prefixes: [prefix()].into(), ..eni(2, Role::Secondary, 0) };
    vec![eni(0, Role::Primary, 0), eni(1, Role::Secondary, 0), second]
}

fn give_back(pool: &mut Pool, from: u8, given: Given, now: u64) {
    let id = pool.begin(&Action::Release { eni: eni_id(from), given });
    pool.finish(id, Outcome::Released, at(now));
}

fn assigned(pool: &mut Pool, to: u8, wanted: Wanted, given: Given, now: u64) {
    let id = pool.begin(&Action::Assign { eni: eni_id(to), wanted });
    pool.finish(id, Outcome::Assigned(given), at(now));
}

#[test]
fn a_prefix_that_another_eni_was_given_does_not_come_back_to_the_one_that_lost_it() {
    let before = with_a_prefix();
    let mut pool = pool(&before);
    pool.set_mode(Mode::Prefixes);
    let given = || Given::prefixes([prefix()].into());
    give_back(&mut pool, 2, given(), 10);
    assigned(&mut pool, 1, Wanted::Prefixes(1), given(), 30);

    // As EC2 had it before both calls.
    pool.observe(&before, at(35), at(60));

    let with: Vec<_> = pool.enis().into_iter().filter(|eni| !eni.prefixes.is_empty()).collect();
    assert_eq!(with.iter().map(|eni| eni.id.clone()).collect::<Vec<_>>(), [eni_id(1)]);
    assert_eq!(pool.check(), Ok(()));
    // And so it is not given back there.
    let released = actions(&pool, &warm_prefixes(0), &limits(3, 9), 0, at(400));
    assert!(released.iter().all(|action| !action.ends_with("of eni-002")), "{released:?}");
}

#[test]
fn a_prefix_of_which_an_address_is_given_elsewhere_is_gone_as_a_whole() {
    for primary in [false, true] {
        let mut pool = pool(&with_a_prefix());
        let grant = pool.reserve(owner(1), at(5)).unwrap();
        assert_eq!(Prefix::of(grant.address), prefix());
        let of_it = prefix().addresses().nth(7).unwrap();

        if primary {
            let id = pool.begin(&create(DeviceIndex(3), 0));
            let made = EniSeen { primary_address: of_it, ..eni(3, Role::Secondary, 0) };
            pool.finish(id, Outcome::Created(Box::new(made)), at(10));
        } else {
            assigned(&mut pool, 1, Wanted::Addresses(1), Given::addresses([of_it].into()), 10);
        }

        assert_eq!(pool.check(), Ok(()));
        let with: Vec<_> = pool.enis().into_iter().filter(|eni| !eni.prefixes.is_empty()).collect();
        assert_eq!(with, []);
        assert_eq!(pool.counts(at(10)).free, u32::from(!primary), "the rest of it is gone too");
        // Who has an address of it keeps it, for as long as it lives.
        let held: Vec<_> = pool.owners().map(|(_, held)| (held.address, held.place)).collect();
        assert_eq!(held, [(grant.address, None)]);

        // As EC2 had it before.
        pool.observe(&with_a_prefix(), at(11), at(12));
        assert_eq!(pool.check(), Ok(()));
        assert_eq!(pool.counts(at(12)).free, u32::from(!primary), "nothing of it comes back");
    }
}

#[test]
fn an_address_that_was_lost_and_given_again_to_the_same_eni_is_there() {
    let seen = eni(0, Role::Primary, 2);
    let mut pool = pool(std::slice::from_ref(&seen));
    let given = || Given::addresses([address(0, 11)].into());
    give_back(&mut pool, 0, given(), 10);
    assigned(&mut pool, 0, Wanted::Addresses(1), given(), 20);

    pool.observe(&[seen], at(40), at(40));

    assert_eq!(pool.counts(at(40)).free, 2);
}

#[test]
fn what_was_given_back_an_hour_before_a_restart_is_not_doubted_where_more_is_told_of_that_hour() {
    let seen = eni(0, Role::Primary, 3);
    let mut before = pool(std::slice::from_ref(&seen));
    give_back(&mut before, 0, Given::addresses([address(0, 11)].into()), 10);

    let text = serde_json::to_string(&before.snapshot()).unwrap();
    let restored = |last| {
        let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
        let mut pool = Pool::restore(snapshot, COOLDOWN, at(3600));
        pool.set_subnets(vec![super::kit::subnet()]);
        pool.last_heard(last, at(3600));
        // EC2 has given it again since.
        pool.observe(std::slice::from_ref(&seen), at(3600), at(3600));
        pool
    };

    let pool = restored(at(3000));
    assert_eq!(pool.counts(at(3600)).free, 3);
    assert_eq!(pool.doubtful_until(at(3600)), None);
    assert!(pool.snapshot().gone.is_empty());

    // Else the clock may have been put forward by that hour.
    let mut pool = restored(at(11));
    assert_eq!(pool.counts(at(3600)).free, 2);
    assert_eq!(pool.doubtful_until(at(3600)), Some(at(3610)));
    pool.observe(std::slice::from_ref(&seen), at(3610), at(3610));
    assert_eq!(pool.counts(at(3610)).free, 3);
}

#[test]
fn a_doubt_lasts_five_minutes_over_any_number_of_restarts() {
    let seen = eni(0, Role::Primary, 3);
    let mut pool = pool(std::slice::from_ref(&seen));
    give_back(&mut pool, 0, Given::addresses([address(0, 11)].into()), 10);
    for second in [20, 100, 200, 309] {
        pool = Pool::restore(pool.snapshot(), COOLDOWN, at(second));
        pool.observe(std::slice::from_ref(&seen), at(second), at(second));
        assert_eq!(pool.counts(at(second)).free, 2, "second {second}");
    }

    pool.observe(&[seen], at(310), at(310));

    assert_eq!(pool.counts(at(310)).free, 3);
}

#[test]
fn of_a_prefix_that_was_given_back_a_pod_of_before_a_restart_has_its_address_and_nobody_the_rest() {
    let seen = with_a_prefix();
    let held = prefix().addresses().nth(3).unwrap();
    let free = |pool: &Pool, second| pool.counts(at(second)).free;
    let mut before = pool(&seen);
    give_back(&mut before, 2, Given::prefixes([prefix()].into()), 10);
    let gone = before.snapshot();
    // The state file may tell of the pod before or after it tells of the prefix.
    let later = {
        let mut pool = Pool::restore(gone.clone(), COOLDOWN, at(30));
        pool.adopt(owner(1), held);
        pool
    };
    let sooner = Pool::restore(Snapshot { owners: vec![(owner(1), held)], ..gone }, COOLDOWN, at(30));
    for mut pool in [later, sooner] {
        // As EC2 had it before it took the prefix back, or with the prefix given again.
        pool.observe(&seen, at(30), at(30));
        assert_eq!(pool.check(), Ok(()));
        assert_eq!(free(&pool, 30), 0);
        let place = pool.owners().map(|(_, grant)| grant.place.map(|place| place.eni)).collect::<Vec<_>>();
        assert_eq!(place, [Some(eni_id(2))]);
        // To EC2 it may be a prefix: no part of it could be given back as a single address.
        let on: Vec<EniSeen> = pool.enis().into_iter().filter(|eni| eni.id == eni_id(2)).collect();
        assert_eq!((on[0].prefixes.len(), on[0].addresses.len()), (1, 0));
        // Another restart knows it too.
        let mut again = Pool::restore(pool.snapshot(), COOLDOWN, at(60));
        again.observe(&seen, at(60), at(60));
        assert_eq!(free(&again, 60), 0);

        pool.observe(&seen, at(311), at(311));
        assert_eq!(pool.check(), Ok(()));
        assert_eq!(free(&pool, 311), 15, "by now it would be known to be gone");
    }
}

#[test]
fn a_call_that_was_under_way_is_doubted_from_the_restart_on() {
    let seen = eni(0, Role::Primary, 2);
    let mut before = pool(std::slice::from_ref(&seen));
    before.begin(&Action::Release { eni: eni_id(0), given: Given::addresses([address(0, 11)].into()) });

    let pool = Pool::restore(before.snapshot(), COOLDOWN, at(5000));

    assert_eq!(pool.doubtful_until(at(5000)), Some(at(5010)));
    assert_eq!(pool.snapshot().gone[0].at, at(5000));
}

#[test]
fn files_of_before_tell_no_moment_and_what_they_tell_is_old() {
    let text = r#"{"owners":[],"cooling":{},"enis":[],"gone":[{"eni":"eni-000","given":null}]}"#;
    let snapshot: Snapshot = serde_json::from_str(text).unwrap();
    let told: Vec<&Left> = snapshot.gone.iter().collect();
    assert_eq!((told.len(), told[0].at), (1, types::Moment(0)));

    let pool = Pool::restore(snapshot, COOLDOWN, at(0));

    assert_eq!(pool.doubtful_until(at(1000)), None);
}

#[test]
fn what_was_given_back_twice_holds_its_room_once() {
    let seen = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&seen));
    for _ in 0..2 {
        let leaving = crate::Leaving { eni: eni_id(0), given: Some(seen.given()) };
        pool.may_have_left(leaving, at(0), at(0));
    }

    assert_eq!(actions(&pool, &warm_ips(9, 0), &limits(1, 3), 0, at(1)), ["assign 2 addresses to eni-000"]);
}

#[test]
fn where_a_subnet_has_no_prefix_all_that_is_missing_is_asked_for_as_addresses_on_as_many_enis_as_it_takes() {
    let mut pool = pool(&[eni(0, Role::Primary, 14)]);
    pool.set_mode(Mode::Prefixes);
    assign(&mut pool, 0..14, at(0));
    let scarce = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Prefixes(1) });
    pool.finish(scarce, Outcome::Scarce, at(1));
    // One of its fourteen slots is asked for already.
    pool.begin(&create(DeviceIndex(1), 1));

    let planned = actions(&pool, &warm_ips(0, 1), &limits(6, 14), 60, at(2));

    // 60 wait for an address; one is on its way, and 13 can follow it.
    let expected: Vec<String> = [(2, 14), (3, 14), (4, 14), (5, 4)]
        .map(|(device, n)| format!("create an ENI with {n} addresses at device {device} in subnet-1"))
        .into();
    assert_eq!(planned, expected);
}

#[test]
fn a_subnet_that_had_nothing_is_asked_for_one_after_its_rest_and_for_all_once_it_gave() {
    let mut pool = pool(&[eni(0, Role::Primary, 0)]);
    let (targets, limits) = (warm_ips(8, 0), limits(1, 9));
    let asked = |pool: &Pool, second| actions(pool, &targets, &limits, 0, at(second));
    let ask = |pool: &mut Pool, n| -> ActionId {
        pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(n) })
    };
    let id = ask(&mut pool, 1);
    pool.finish(id, Outcome::Scarce, at(0));
    assert_eq!(asked(&pool, 9), Vec::<String>::new());

    assert_eq!(asked(&pool, 10), ["assign 1 addresses to eni-000"]);
    let id = ask(&mut pool, 1);
    pool.finish(id, Outcome::Assigned(Given::addresses([address(0, 99)].into())), at(11));

    assert_eq!(asked(&pool, 12), ["assign 7 addresses to eni-000"]);
}

/// A full primary ENI, and a secondary one with two free addresses that the kernel is not ready for.
fn with_an_unready_eni(unready: Unready) -> Pool {
    let mut pool = pool(&[eni(0, Role::Primary, 2), eni(1, Role::Secondary, 2)]);
    assign(&mut pool, 0..2, at(0));
    let _others = pool.set_unready([(Mac([2, 0, 0, 0, 0, 1]), unready)].into());
    pool
}

#[test]
fn what_an_eni_has_whose_link_is_about_to_come_is_on_its_way() {
    let mut pool = with_an_unready_eni(Unready::Coming);

    assert!(pool.reserve(owner(9), at(1)).is_err());
    assert_eq!(actions(&pool, &warm_ips(1, 0), &limits(3, 2), 1, at(100)), Vec::<String>::new());
    assert!(pool.is_growing(NetworkCard(0)));
    assert_eq!(pool.shortage_reason(&limits(2, 2), at(1)), Reason::PoolEmpty);
    let plan = pool.plan(&warm_ips(1, 0), &limits(3, 2), 0, at(100)).to_string();
    assert!(plan.contains("its link is not there yet"), "{plan}");

    let _others = pool.set_unready([].into());
    assert!(pool.reserve(owner(9), at(1)).is_ok());
}

#[test]
fn an_eni_that_lacks_its_ipv6_prefix_is_on_its_way_and_is_given_more_before_another_one_is_made() {
    let mut pool = pool(&[eni(0, Role::Primary, 3), eni(1, Role::Secondary, 2)]);
    assign(&mut pool, 0..3, at(0));
    let _others = pool.set_unready([(Mac([2, 0, 0, 0, 0, 1]), Unready::NoPrefix)].into());

    assert!(pool.reserve(owner(9), at(1)).is_err());
    assert_eq!(actions(&pool, &warm_ips(1, 0), &limits(3, 3), 1, at(100)), Vec::<String>::new());
    let asked = actions(&pool, &warm_ips(1, 0), &limits(3, 3), 2, at(100));
    assert_eq!(asked, ["assign 1 addresses to eni-001"]);
    let plan = pool.plan(&warm_ips(1, 0), &limits(3, 3), 0, at(100)).to_string();
    assert!(plan.contains("it has no IPv6 prefix yet"), "{plan}");

    let _others = pool.set_unready([].into());
    assert!(pool.reserve(owner(9), at(1)).is_ok());
}

#[test]
fn an_eni_that_no_pod_can_use_counts_for_nothing_and_goes_once_nothing_is_missing() {
    let mut pool = with_an_unready_eni(Unready::Stuck);
    let (targets, limits) = (warm_ips(1, 0), limits(3, 2));
    assert!(!pool.is_growing(NetworkCard(0)));
    let asked = actions(&pool, &targets, &limits, 1, at(100));
    assert_eq!(asked, ["create an ENI with 2 addresses at device 2 in subnet-1"]);

    let id = pool.begin(&create(DeviceIndex(2), 2));
    pool.finish(id, Outcome::Created(Box::new(eni(2, Role::Secondary, 2))), at(100));

    let plan = pool.plan(&targets, &limits, 0, at(200));
    assert_eq!(plan.actions.len(), 1, "{plan}");
    assert!(
        plan.to_string().starts_with("delete eni-001: the host's kernel does not lead pods out"),
        "{plan}"
    );
    assert_eq!(pool.check(), Ok(()));
}
