//! Pods, pictures, calls and restarts, one behaviour each.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use types::{DeviceIndex, EniId, NetworkCard, Reason, SubnetId};

use super::kit::{
    COOLDOWN, actions, address, assign, at, create, eni, eni_id, limits, owner, pool, sandbox, subnet,
    warm_enis, warm_ips,
};
use crate::{Action, Counts, EniSeen, Exclusion, Given, Note, Outcome, Pool, Role, Snapshot, Wanted};

fn all_of(eni: &EniSeen) -> BTreeSet<Ipv4Addr> {
    eni.addresses.clone()
}

fn place_of(pool: &Pool, n: u16) -> Option<EniId> {
    pool.owner(&sandbox(n)).and_then(|(_, grant)| grant.place).map(|place| place.eni)
}

// Pods.

#[test]
fn a_sandbox_that_asks_again_gets_the_same_address() {
    let mut pool = pool(&[eni(0, Role::Primary, 3)]);

    let first = pool.reserve(owner(1), at(1)).unwrap();
    let again = pool.reserve(owner(1), at(2)).unwrap();

    assert_eq!(first, again);
    assert_eq!(pool.counts(at(2)).reserved, 1);
}

#[test]
fn the_fullest_eni_with_room_comes_first() {
    let mut pool = pool(&[eni(0, Role::Primary, 2), eni(1, Role::Secondary, 3)]);
    assign(&mut pool, [1, 2, 3], at(0));

    let places: Vec<_> = (1..=3).filter_map(|n| place_of(&pool, n)).collect();

    assert_eq!(places, [eni_id(0), eni_id(0), eni_id(1)]);
}

#[test]
fn a_released_address_is_not_reused_while_it_cools() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut pool, [1], at(0));
    pool.release(&sandbox(1), at(10)).unwrap();

    let shortage = pool.reserve(owner(2), at(39)).unwrap_err();

    assert_eq!(shortage.cooling, 1);
    assert_eq!(pool.next_cooled_on(NetworkCard(0), at(39)), Some(at(40)));
    assert!(pool.reserve(owner(2), at(40)).is_ok());
    assert_eq!(pool.reused_early(), 0);
}

#[test]
fn the_address_that_has_been_free_for_longest_comes_first() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    assign(&mut pool, [1, 2], at(0));
    let (_, second) = pool.release(&sandbox(2), at(1)).unwrap();
    let (_, first) = pool.release(&sandbox(1), at(2)).unwrap();

    let addresses = [3, 4].map(|n| pool.reserve(owner(n), at(100)).unwrap().address);

    assert_eq!(addresses, [second.address, first.address]);
}

#[test]
fn under_pressure_the_longest_cooling_address_is_reused_and_counted() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    assign(&mut pool, [1, 2], at(0));
    let (_, oldest) = pool.release(&sandbox(2), at(1)).unwrap();
    pool.release(&sandbox(1), at(2)).unwrap();

    let grant = pool.reserve_early(owner(3), at(3)).unwrap();

    assert_eq!(grant.address, oldest.address);
    assert_eq!(pool.reused_early(), 1);
    pool.check().unwrap();
}

#[test]
fn early_reuse_takes_a_free_address_if_there_is_one() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    assign(&mut pool, [1], at(0));
    pool.release(&sandbox(1), at(1)).unwrap();

    pool.reserve_early(owner(2), at(2)).unwrap();

    assert_eq!(pool.reused_early(), 0);
    assert_eq!(pool.counts(at(2)).cooling, 1);
}

#[test]
fn a_cancelled_reservation_leaves_the_address_as_it_was() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    pool.reserve(owner(1), at(0)).unwrap();
    pool.cancel(&sandbox(1));
    assert_eq!(pool.counts(at(0)).free, 1);

    assign(&mut pool, [2], at(0));
    pool.release(&sandbox(2), at(0)).unwrap();
    pool.reserve_early(owner(3), at(1)).unwrap();
    pool.cancel(&sandbox(3));

    assert_eq!(pool.counts(at(1)).cooling, 1);
    assert_eq!(pool.next_change(at(1)), Some(at(30)));
}

#[test]
fn an_assignment_cannot_be_cancelled() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut pool, [1], at(0));

    pool.cancel(&sandbox(1));

    assert_eq!(pool.counts(at(0)).assigned, 1);
}

#[test]
fn releasing_a_sandbox_that_has_nothing_is_nothing() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);

    assert!(pool.release(&sandbox(1), at(0)).is_none());
    assert_eq!(pool.counts(at(0)).free, 1);
}

#[test]
fn enis_that_are_not_ours_give_no_addresses() {
    let others = [Role::Trunk, Role::Unmanaged];
    let enis: Vec<EniSeen> = (0..).zip(others).map(|(n, role)| eni(n, role, 3)).collect();
    let mut pool = pool(&enis);

    assert!(pool.reserve(owner(1), at(0)).is_err());
    assert_eq!(pool.counts(at(0)), Counts::default());
}

#[test]
fn a_place_that_something_else_takes_is_no_place_for_a_new_eni() {
    let mut pool = pool(&[eni(0, Role::Primary, 3)]);
    pool.occupy([(NetworkCard(0), DeviceIndex(1)), (NetworkCard(1), DeviceIndex(2))].into());

    let planned = actions(&pool, &warm_enis(2), &limits(3, 3), 0, at(1));

    assert_eq!(planned, ["create an ENI with 3 addresses at device 2 in subnet-1"]);
}

#[test]
fn ten_thousand_pods_come_and_go_on_a_full_node_in_a_moment() {
    let enis: Vec<EniSeen> =
        (0..15).map(|n| eni(n, if n == 0 { Role::Primary } else { Role::Secondary }, 49)).collect();
    let mut pool = pool(&enis);
    assign(&mut pool, 0..700, at(0));
    let mut now = at(100);

    for n in 0..10_000 {
        pool.release(&sandbox(n % 700), now).unwrap();
        assign(&mut pool, [n % 700], now);
        now = now.plus(Duration::from_secs(1));
    }

    assert_eq!(pool.counts(now).assigned, 700);
    pool.check().unwrap();
}

// Why there is nothing.

#[test]
fn a_shortage_has_the_reason_that_fits() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut pool, [1], at(0));
    assert_eq!(pool.shortage_reason(&limits(2, 1), at(0)), Reason::PoolEmpty);
    assert_eq!(pool.shortage_reason(&limits(1, 2), at(0)), Reason::PoolEmpty);
    assert_eq!(pool.shortage_reason(&limits(1, 1), at(0)), Reason::NodeFull);
}

// Pictures.

#[test]
fn an_address_that_vanished_stays_with_its_owner_and_nobody_else_gets_it() {
    let full = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&full));
    assign(&mut pool, [1], at(0));

    let notes = pool.observe(&[eni(0, Role::Primary, 0)], at(20), at(20));

    assert_eq!(notes[0], Note::Lost(address(0, 10), sandbox(1)));
    assert_eq!(pool.owner(&sandbox(1)).unwrap().1.address, address(0, 10));
    assert!(place_of(&pool, 1).is_none());
    pool.observe(&[full], at(40), at(40));
    assert!(pool.reserve(owner(2), at(40)).is_err());
    assert_eq!(place_of(&pool, 1), Some(eni_id(0)));
    pool.check().unwrap();
}

#[test]
fn an_address_that_vanished_while_it_cooled_still_cools_when_it_comes_back() {
    let full = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&full));
    assign(&mut pool, [1], at(0));
    pool.release(&sandbox(1), at(1)).unwrap();

    pool.observe(&[eni(0, Role::Primary, 0)], at(11), at(11));
    pool.observe(&[full], at(12), at(12));

    assert!(pool.reserve(owner(2), at(30)).is_err());
    assert!(pool.reserve(owner(2), at(31)).is_ok());
}

#[test]
fn an_address_may_move_from_one_eni_to_another() {
    let (mut from, mut to) = (eni(0, Role::Primary, 1), eni(1, Role::Secondary, 0));
    let mut pool = pool(&[from.clone(), to.clone()]);
    assign(&mut pool, [1], at(0));
    std::mem::swap(&mut from.addresses, &mut to.addresses);

    pool.observe(&[from, to], at(20), at(20));

    assert_eq!(place_of(&pool, 1), Some(eni_id(1)));
    pool.check().unwrap();
}

#[test]
fn an_address_that_turns_out_to_be_primary_is_no_pods() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    let odd = EniSeen { primary_address: address(0, 10), ..eni(1, Role::Secondary, 0) };

    pool.observe(&[eni(0, Role::Primary, 1), odd], at(20), at(20));

    assert!(pool.reserve(owner(1), at(20)).is_err());
    pool.check().unwrap();
}

#[test]
fn an_older_picture_does_not_undo_what_a_call_did() {
    let primary = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(1) });
    pool.finish(id, Outcome::Assigned(Given::addresses([address(0, 77)].into())), at(5));

    for as_of in [4, 5, 14, 15, 304] {
        pool.observe(std::slice::from_ref(&primary), at(as_of), at(304));
        assert_eq!(pool.counts(at(304)).free, 2, "picture of second {as_of}");
    }
    pool.observe(&[primary], at(305), at(305));

    assert_eq!(pool.counts(at(305)).free, 1);
}

#[test]
fn an_older_picture_does_not_undo_the_making_of_an_eni() {
    let primary = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&primary));
    let wanted = Wanted::Addresses(2);
    let create = Action::CreateEni { card: NetworkCard(0), device: DeviceIndex(1), subnet: subnet(), wanted };
    let id = pool.begin(&create);
    pool.finish(id, Outcome::Created(Box::new(eni(1, Role::Secondary, 2))), at(5));

    for as_of in [4, 15, 304] {
        pool.observe(std::slice::from_ref(&primary), at(as_of), at(304));
        assert_eq!(pool.counts(at(304)).free, 3, "picture of second {as_of}");
    }
    pool.observe(&[primary], at(305), at(305));

    assert_eq!(pool.counts(at(305)).free, 1);
}

#[test]
fn what_was_given_and_given_back_does_not_come_back_with_an_older_picture() {
    let primary = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(1) });
    pool.finish(id, Outcome::Assigned(Given::addresses([address(0, 11)].into())), at(5));
    let id =
        pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses([address(0, 11)].into()) });
    pool.finish(id, Outcome::Released, at(40));

    for as_of in [50, 339] {
        pool.observe(&[eni(0, Role::Primary, 2)], at(as_of), at(339));
        assert_eq!(pool.counts(at(339)).free, 1, "picture of second {as_of}");
    }
}

#[test]
fn a_deleted_eni_does_not_come_back_with_an_older_picture() {
    let enis = [eni(0, Role::Primary, 1), eni(1, Role::Secondary, 1)];
    let mut pool = pool(&enis);
    let id = pool.begin(&Action::DeleteEni { eni: eni_id(1) });
    pool.finish(id, Outcome::Deleted, at(5));

    pool.observe(&enis, at(4), at(6));

    assert_eq!(pool.enis().len(), 1);
}

#[test]
fn an_eni_that_is_being_created_waits_for_its_creator() {
    let primary = eni(0, Role::Primary, 1);
    let new = eni(1, Role::Secondary, 2);
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&create(new.device, 2));

    pool.observe(&[primary, new.clone()], at(1), at(1));
    assert_eq!(pool.counts(at(1)).free, 1);
    pool.finish(id, Outcome::Created(Box::new(new)), at(2));

    assert_eq!(pool.counts(at(2)).free, 3);
}

#[test]
fn a_picture_older_than_the_last_one_is_ignored() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    pool.observe(&[eni(0, Role::Primary, 2)], at(10), at(11));

    let notes = pool.observe(&[], at(9), at(12));

    assert!(notes.is_empty());
    assert_eq!(pool.counts(at(12)).free, 2);
}

// Calls.

#[test]
fn addresses_on_their_way_out_are_out_of_reach_until_the_call_failed() {
    let primary = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses(all_of(&primary)) });
    assert!(pool.reserve(owner(1), at(0)).is_err());

    pool.finish(id, Outcome::Failed, at(1));

    assert!(pool.reserve(owner(1), at(1)).is_ok());
}

#[test]
fn a_picture_does_not_bring_back_what_is_on_its_way_out() {
    let primary = eni(0, Role::Primary, 1);
    let mut pool = pool(std::slice::from_ref(&primary));
    pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses(all_of(&primary)) });

    pool.observe(&[primary], at(50), at(50));

    assert!(pool.reserve(owner(1), at(50)).is_err());
}

#[test]
fn a_deletion_that_failed_does_not_shorten_a_cooldown() {
    let mut pool = pool(&[eni(1, Role::Secondary, 1)]);
    assign(&mut pool, [1], at(0));
    pool.release(&sandbox(1), at(0)).unwrap();
    let id = pool.begin(&Action::DeleteEni { eni: eni_id(1) });

    pool.finish(id, Outcome::Failed, at(1));

    assert_eq!(pool.next_change(at(1)), Some(at(30)));
}

#[test]
fn an_unclear_call_counts_as_under_way_until_a_newer_picture_settles_it() {
    let primary = eni(0, Role::Primary, 0);
    let (targets, limits) = (warm_ips(2, 0), limits(2, 5));
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(2) });
    pool.finish(id, Outcome::Unclear, at(5));
    assert!(pool.is_growing(NetworkCard(0)));
    assert!(actions(&pool, &targets, &limits, 0, at(5)).is_empty());

    assert_eq!(pool.doubtful_until(at(5)), Some(at(15)));
    // EC2's descriptions lag: these may show the state before the call.
    for as_of in [4, 7, 14] {
        pool.observe(std::slice::from_ref(&primary), at(as_of), at(14));
        assert!(actions(&pool, &targets, &limits, 0, at(14)).is_empty(), "picture of second {as_of}");
    }
    pool.observe(&[primary], at(15), at(15));

    assert_eq!(actions(&pool, &targets, &limits, 0, at(15)), ["assign 2 addresses to eni-000"]);
}

#[test]
fn an_unclear_release_takes_everything_as_long_as_a_picture_may_be_of_before_it() {
    let primary = eni(0, Role::Primary, 2);
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses(all_of(&primary)) });
    pool.finish(id, Outcome::Unclear, at(1));
    assert_eq!(pool.counts(at(1)).free, 0);

    for as_of in [10, 11, 300] {
        pool.observe(std::slice::from_ref(&primary), at(as_of), at(as_of));
        assert_eq!(pool.counts(at(as_of)).total(), 0, "picture of second {as_of}");
    }
    pool.observe(&[eni(0, Role::Primary, 1)], at(301), at(301));

    assert_eq!(pool.counts(at(301)).total(), 1);
    assert_eq!(pool.reserve(owner(1), at(301)).unwrap().address, address(0, 10));
}

#[test]
fn what_an_unclear_release_may_have_left_holds_its_room_until_a_picture_lacks_it() {
    let primary = eni(0, Role::Primary, 2);
    let (targets, limits) = (warm_ips(2, 0), limits(1, 2));
    let mut pool = pool(std::slice::from_ref(&primary));
    let id = pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses(all_of(&primary)) });
    pool.finish(id, Outcome::Unclear, at(1));

    pool.observe(&[primary], at(11), at(11));
    assert!(actions(&pool, &targets, &limits, 0, at(11)).is_empty());
    assert_eq!(pool.doubtful_until(at(11)), Some(at(301)));
    pool.observe(&[eni(0, Role::Primary, 0)], at(20), at(20));

    assert_eq!(pool.doubtful_until(at(20)), None);
    assert_eq!(actions(&pool, &targets, &limits, 0, at(20)), ["assign 2 addresses to eni-000"]);
}

#[test]
fn what_a_call_may_have_taken_before_a_restart_is_not_given_while_descriptions_lag() {
    let primary = eni(0, Role::Primary, 3);
    let mut before = pool(std::slice::from_ref(&primary));
    assign(&mut before, [1], at(0));
    before.begin(&Action::Release { eni: eni_id(0), given: Given::addresses([address(0, 11)].into()) });

    let mut pool = Pool::restore(before.snapshot(), COOLDOWN, at(20));
    for (as_of, doubtful_until) in [(20, 30), (29, 30), (30, 320), (319, 320)] {
        pool.observe(std::slice::from_ref(&primary), at(as_of), at(as_of));
        assert_eq!(pool.counts(at(as_of)).total(), 2, "picture of second {as_of}");
        assert_eq!(pool.doubtful_until(at(as_of)), Some(at(doubtful_until)));
    }
    pool.observe(&[primary], at(320), at(320));

    assert_eq!(pool.counts(at(320)).total(), 3);
    pool.check().unwrap();
}

#[test]
fn what_ended_twice_counts_once() {
    let mut pool = pool(&[eni(0, Role::Primary, 0)]);
    let id = pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(1) });
    pool.finish(id, Outcome::Failed, at(1));

    pool.finish(id, Outcome::Assigned(Given::addresses([address(0, 10)].into())), at(2));

    assert_eq!(pool.counts(at(2)).total(), 0);
}

// Restarts.

#[test]
fn owners_and_cooldowns_survive_a_restart() {
    let mut before = pool(&[eni(0, Role::Primary, 3)]);
    assign(&mut before, [1, 2], at(0));
    before.release(&sandbox(2), at(10)).unwrap();
    let text = serde_json::to_string(&before.snapshot()).unwrap();

    let mut after = Pool::restore(serde_json::from_str::<Snapshot>(&text).unwrap(), COOLDOWN, at(20));

    assert_eq!(after.snapshot(), before.snapshot());
    assert_eq!(after.counts(at(20)), Counts { free: 1, reserved: 0, assigned: 1, cooling: 1 });
    assert!(after.reserve(owner(3), at(20)).is_ok());
    assert!(after.reserve(owner(4), at(39)).is_err());
    assert!(after.reserve(owner(4), at(40)).is_ok());
}

#[test]
fn a_clock_that_was_set_back_does_not_make_addresses_cool_for_ages() {
    let mut before = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut before, [1], at(0));
    before.release(&sandbox(1), at(9_000)).unwrap();

    let after = Pool::restore(before.snapshot(), COOLDOWN, at(0));

    assert_eq!(after.next_change(at(0)), Some(at(30)));
}

#[test]
fn an_owner_whose_eni_is_not_known_yet_keeps_its_address_from_others() {
    let mut pool = Pool::new(COOLDOWN);
    pool.adopt(owner(1), address(0, 10));
    assert_eq!(pool.counts(at(0)).assigned, 1);

    pool.observe(&[eni(0, Role::Primary, 1)], at(1), at(1));

    assert_eq!(place_of(&pool, 1), Some(eni_id(0)));
    assert!(pool.reserve(owner(2), at(1)).is_err());
    pool.check().unwrap();
}

#[test]
fn of_two_that_claim_an_address_the_first_keeps_it() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    pool.adopt(owner(1), address(0, 10));

    pool.adopt(owner(2), address(0, 10));

    assert!(pool.owner(&sandbox(2)).is_none());
    pool.check().unwrap();
}

#[test]
fn an_owner_that_is_adopted_with_another_address_leaves_the_first_to_cool() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    pool.adopt(owner(1), address(0, 10));

    pool.adopt(owner(1), address(0, 11));

    assert_eq!(pool.counts(at(1)), Counts { free: 0, reserved: 0, assigned: 1, cooling: 1 });
    pool.check().unwrap();
}

#[test]
fn what_is_on_its_way_out_is_not_written_as_ours() {
    let primary = eni(0, Role::Primary, 2);
    let mut pool = pool(std::slice::from_ref(&primary));
    pool.begin(&Action::Release { eni: eni_id(0), given: Given::addresses([address(0, 10)].into()) });

    assert_eq!(pool.snapshot().enis[0].addresses, [address(0, 11)].into());
}

#[test]
fn an_excluded_subnet_keeps_its_pods_and_gives_back_the_rest() {
    let other: SubnetId = "subnet-2".parse().unwrap();
    let secondary = EniSeen { subnet: other.clone(), ..eni(1, Role::Secondary, 4) };
    let mut pool = pool(&[eni(0, Role::Primary, 4), secondary]);
    assign(&mut pool, 0..6, at(1));
    pool.release(&sandbox(0), at(2));
    assert_eq!(place_of(&pool, 5), Some(eni_id(1)));

    pool.set_excluded([other].into());
    let (targets, limits) = (warm_ips(1, 0), limits(2, 4));
    assert_eq!(actions(&pool, &targets, &limits, 0, at(100)), ["release 2 addresses of eni-001"]);
    assert_eq!(pool.counts(at(100)).free, 1);
    assign(&mut pool, [6], at(100));
    assert_eq!(place_of(&pool, 6), Some(eni_id(0)));
    assert!(pool.reserve(owner(7), at(100)).is_err());

    for n in 1..6 {
        pool.release(&sandbox(n), at(100));
    }
    assert_eq!(actions(&pool, &targets, &limits, 0, at(300)), ["delete eni-001"]);
}

#[test]
fn a_primary_eni_that_is_spared_keeps_its_pods_and_gives_back_the_rest() {
    let mut pool = pool(&[eni(0, Role::Primary, 4), eni(1, Role::Secondary, 2)]);
    assign(&mut pool, 0..2, at(1));
    assert_eq!(place_of(&pool, 0), Some(eni_id(0)));

    pool.spare_primary();
    let (targets, two) = (warm_ips(2, 0), limits(2, 4));
    assert_eq!(actions(&pool, &targets, &two, 0, at(2)), ["release 2 addresses of eni-000"]);
    assign(&mut pool, 2..4, at(2));
    assert!((2..4).all(|n| place_of(&pool, n) == Some(eni_id(1))));
    // Its empty slots are no room.
    assert_eq!(actions(&pool, &targets, &two, 1, at(3)), ["assign 2 addresses to eni-001"]);
    assert_eq!(pool.shortage_reason(&limits(2, 2), at(3)), Reason::NodeFull);

    pool.release(&sandbox(0), at(3));
    // It cools on the primary ENI and is nobody's any more.
    assert!(pool.reserve_early(owner(4), at(4)).is_err());
    let why = pool.plan(&targets, &limits(1, 2), 0, at(40)).to_string();
    assert!(why.contains("primary ENI has no pods"), "{why}");
    assert_eq!(pool.exclusion(&pool.enis()[0]), Some(Exclusion::Primary));
}

#[test]
fn without_a_subnet_for_it_no_eni_is_wanted_and_the_reason_says_so() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    pool.set_subnets(Vec::new());
    assign(&mut pool, 0..1, at(1));

    assert_eq!(actions(&pool, &warm_ips(1, 0), &limits(2, 1), 1, at(2)), Vec::<String>::new());
    assert_eq!(pool.shortage_reason(&limits(2, 1), at(2)), Reason::NoSubnet);
}

#[test]
fn without_memory_what_is_idle_waits_for_a_picture_that_can_be_believed() {
    let mut pool = Pool::new(COOLDOWN);
    pool.set_subnets(vec![subnet()]);
    pool.adopt(owner(1), address(0, 10));
    pool.distrust(at(10));
    let seen = eni(0, Role::Primary, 3);

    for second in [0, 5] {
        pool.observe(std::slice::from_ref(&seen), at(second), at(second));
        assert_eq!((pool.counts(at(second)).free, pool.counts(at(second)).assigned), (0, 1));
        // Their slots are not taken for empty, so the one that is left is all there is to ask for.
        assert_eq!(
            actions(&pool, &warm_ips(2, 0), &limits(1, 4), 0, at(second)),
            ["assign 1 addresses to eni-000"]
        );
    }
    assert_eq!(pool.doubtful_until(at(5)), Some(at(10)));

    let left = EniSeen { addresses: [address(0, 10), address(0, 11)].into(), ..seen };
    pool.observe(&[left], at(10), at(11));
    assert_eq!(pool.counts(at(11)).free, 1);
}

#[test]
fn an_address_that_ec2_gives_to_another_eni_has_moved_there() {
    let mut pool = pool(&[eni(0, Role::Primary, 3), eni(1, Role::Secondary, 1)]);
    assign(&mut pool, [1], at(1));
    let held = pool.owner(&sandbox(1)).unwrap().1;
    let (from, to) = (held.place.unwrap().eni, eni_id(if held.address == address(0, 10) { 1 } else { 0 }));
    assert_ne!(from, to);

    // Somebody took it away, and EC2 gives it again elsewhere.
    let id = pool.begin(&Action::Assign { eni: to.clone(), wanted: Wanted::Addresses(1) });
    pool.finish(id, Outcome::Assigned(Given::addresses([held.address].into())), at(2));

    assert_eq!(place_of(&pool, 1), Some(to));
    assert!(pool.enis().iter().all(|eni| eni.id != from || !eni.addresses.contains(&held.address)));
    assert_eq!(pool.check(), Ok(()));
}
