//! What is asked of EC2, one behaviour each.

use std::collections::BTreeSet;
use std::time::Duration;

use types::DeviceIndex;

use super::kit::{
    Ec2, actions, assign, at, create, eni, eni_id, limits, pool, sandbox, settle, warm_enis, warm_ips,
};
use crate::{Action, KeptReason, Outcome, Pool, Role, Targets, Wanted};

#[test]
fn those_who_wait_get_theirs_in_one_plan() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    assign(&mut pool, [1, 2], at(0));

    let plan = actions(&pool, &warm_ips(1, 0), &limits(4, 3), 7, at(0));

    assert_eq!(
        plan,
        [
            "assign 1 addresses to eni-000",
            "create an ENI with 3 addresses at device 1 in subnet-1",
            "create an ENI with 3 addresses at device 2 in subnet-1",
            "create an ENI with 1 addresses at device 3 in subnet-1",
        ]
    );
}

#[test]
fn nothing_is_promised_twice() {
    let pool_before = pool(&[eni(0, Role::Primary, 0)]);
    let mut pool = pool_before.clone();
    let (targets, limits) = (warm_ips(3, 0), limits(2, 3));
    for planned in pool_before.plan(&targets, &limits, 0, at(0)).actions {
        pool.begin(&planned.action);
    }

    assert!(actions(&pool, &targets, &limits, 0, at(0)).is_empty());
    assert_eq!(
        actions(&pool, &targets, &limits, 1, at(0)),
        ["create an ENI with 1 addresses at device 1 in subnet-1"]
    );
}

#[test]
fn an_eni_that_is_busy_takes_more_before_a_new_one_is_made() {
    let mut pool = pool(&[eni(0, Role::Primary, 0)]);
    pool.begin(&Action::Assign { eni: eni_id(0), wanted: Wanted::Addresses(2) });
    let wants = |waiting| actions(&pool, &warm_ips(2, 0), &limits(2, 5), waiting, at(0));

    assert!(wants(3).is_empty());
    assert_eq!(wants(4), ["create an ENI with 1 addresses at device 1 in subnet-1"]);
}

#[test]
fn cooling_addresses_are_not_available() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut pool, [1], at(0));
    pool.release(&sandbox(1), at(0)).unwrap();

    assert_eq!(actions(&pool, &warm_ips(1, 0), &limits(2, 10), 0, at(1)), ["assign 1 addresses to eni-000"]);
    assert!(actions(&pool, &warm_ips(1, 0), &limits(2, 10), 0, at(30)).is_empty());
}

#[test]
fn max_pods_bounds_what_is_spare_but_not_what_is_waited_for() {
    let mut pool = pool(&[eni(0, Role::Primary, 3)]);
    assign(&mut pool, [1, 2, 3], at(0));
    let targets = Targets { max_pods: Some(4), ..warm_ips(5, 0) };

    assert_eq!(actions(&pool, &targets, &limits(2, 10), 0, at(0)), ["assign 1 addresses to eni-000"]);
    assert_eq!(actions(&pool, &targets, &limits(2, 10), 3, at(0)), ["assign 3 addresses to eni-000"]);
}

#[test]
fn a_new_eni_gets_the_lowest_device_that_no_other_has_or_will_have() {
    let mut pool = pool(&[eni(0, Role::Primary, 1), eni(2, Role::Unmanaged, 0)]);
    assign(&mut pool, [1], at(0));
    pool.begin(&create(DeviceIndex(1), 1));

    assert_eq!(
        actions(&pool, &warm_ips(0, 1), &limits(5, 1), 2, at(0)),
        ["create an ENI with 1 addresses at device 3 in subnet-1"]
    );
}

#[test]
fn more_than_the_instance_holds_is_said_and_not_asked_for() {
    let mut pool = pool(&[eni(0, Role::Primary, 1)]);
    assign(&mut pool, [1], at(0));

    let plan = pool.plan(&warm_ips(1, 0), &limits(1, 1), 2, at(0));

    assert!(plan.actions.is_empty());
    assert_eq!(plan.unmet, 3);
    assert_eq!(plan.kept, [(eni_id(0), KeptReason::Full)]);
}

#[test]
fn an_empty_eni_goes_when_it_is_old_enough_and_not_before() {
    let mut pool = pool(&[eni(0, Role::Primary, 9), eni(1, Role::Secondary, 9)]);
    assign(&mut pool, [1], at(0));
    let targets = warm_enis(0);

    let young = pool.plan(&targets, &limits(3, 9), 0, at(59));

    assert!(young.actions.is_empty());
    assert_eq!(young.look_again, Some(at(60)));
    assert_eq!(actions(&pool, &targets, &limits(3, 9), 0, at(60)), ["delete eni-001"]);
}

#[test]
fn an_eni_stays_while_less_than_one_enis_worth_is_to_spare() {
    let mut pool = pool(&[eni(0, Role::Primary, 9), eni(1, Role::Secondary, 1)]);
    assign(&mut pool, [1, 2], at(0));
    let wants = |pool: &Pool| actions(pool, &warm_enis(0), &limits(3, 9), 0, at(100));
    assert!(wants(&pool).is_empty());

    pool.release(&sandbox(2), at(0)).unwrap();

    assert_eq!(wants(&pool), ["delete eni-001"]);
}

#[test]
fn an_eni_that_the_minimum_needs_stays() {
    let pool = pool(&[eni(0, Role::Primary, 5), eni(1, Role::Secondary, 5)]);
    let wants = |minimum| actions(&pool, &warm_ips(0, minimum), &limits(3, 5), 0, at(100));

    assert!(wants(10).is_empty());
    assert_eq!(wants(5), ["delete eni-001"]);
}

#[test]
fn nothing_is_given_back_while_a_call_is_under_way() {
    let mut pool = pool(&[eni(0, Role::Primary, 5)]);
    pool.begin(&create(DeviceIndex(1), 5));

    assert!(actions(&pool, &warm_ips(1, 0), &limits(3, 9), 0, at(0)).is_empty());
}

#[test]
fn an_eni_whose_addresses_cool_stays() {
    let mut pool = pool(&[eni(0, Role::Primary, 1), eni(1, Role::Secondary, 9)]);
    assign(&mut pool, [1, 2], at(0));
    pool.release(&sandbox(2), at(90)).unwrap();

    let plan = pool.plan(&warm_enis(0), &limits(3, 9), 0, at(100));

    assert!(plan.actions.is_empty());
    assert_eq!(plan.kept[1], (eni_id(1), KeptReason::Cooling(1)));
}

#[test]
fn an_eni_that_leads_pods_out_stays_whatever_pictures_have_of_it() {
    let mut pool = pool(&[eni(0, Role::Primary, 5), eni(1, Role::Secondary, 0)]);
    pool.set_led_by([eni_id(1)].into());
    let plan = |pool: &Pool| pool.plan(&warm_ips(1, 0), &limits(3, 9), 0, at(100));

    assert_eq!(plan(&pool).kept, [(eni_id(1), KeptReason::LeadsPods)]);
    assert!(!plan(&pool).actions.iter().any(|planned| planned.action.eni() == Some(&eni_id(1))));

    pool.set_led_by(BTreeSet::new());
    assert_eq!(plan(&pool).actions[0].action, Action::DeleteEni { eni: eni_id(1) });
}

#[test]
fn excess_goes_from_the_emptiest_eni_and_at_most_every_half_minute() {
    let mut pool = pool(&[eni(0, Role::Primary, 4), eni(1, Role::Secondary, 4)]);
    assign(&mut pool, 1..=5, at(0));
    let (targets, limits) = (warm_ips(1, 0), limits(3, 9));
    let plan = pool.plan(&targets, &limits, 0, at(10));
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(plan.actions[0].action.to_string(), "release 2 addresses of eni-001");
    let id = pool.begin(&plan.actions[0].action);
    pool.finish(id, Outcome::Released, at(10));
    pool.release(&sandbox(1), at(10)).unwrap();
    // Somebody gives it two others.
    pool.observe(&[eni(0, Role::Primary, 4), eni(1, Role::Secondary, 6)], at(21), at(21));

    let resting = pool.plan(&targets, &limits, 0, at(39));

    assert!(resting.actions.is_empty());
    assert_eq!(resting.look_again, Some(at(40)));
    assert_eq!(actions(&pool, &targets, &limits, 0, at(40)).len(), 1);
}

#[test]
fn a_node_that_empties_returns_to_one_eni() {
    let limits = limits(4, 5);
    let primary = vec![eni(0, Role::Primary, 0)];
    for targets in [warm_enis(0), warm_enis(1), warm_ips(2, 3)] {
        let mut pool = pool(&primary);
        let mut ec2 = Ec2::new(primary.clone(), limits);
        let mut now = at(0);
        settle(&mut pool, &mut ec2, &targets, 18, &mut now);
        assign(&mut pool, 0..18, now);
        settle(&mut pool, &mut ec2, &targets, 0, &mut now);

        (0..18).for_each(|n| drop(pool.release(&sandbox(n), now)));
        now = now.plus(Duration::from_secs(120));
        settle(&mut pool, &mut ec2, &targets, 0, &mut now);

        assert!(ec2.enis.len() <= 2, "{targets:?}: {} ENIs are left", ec2.enis.len());
        pool.check().unwrap();
    }
}

#[test]
fn a_plan_explains_itself() {
    let mut pool = pool(&[eni(0, Role::Primary, 3), eni(1, Role::Trunk, 0), eni(2, Role::Secondary, 2)]);
    assign(&mut pool, [1, 2], at(0));

    let growing = pool.plan(&warm_ips(5, 0), &limits(3, 5), 0, at(0)).to_string();
    let idle = pool.plan(&warm_ips(3, 0), &limits(3, 5), 0, at(0)).to_string();

    assert_eq!(
        growing,
        "assign 2 addresses to eni-000: short of the warm target 5 by 2\n\
         leave eni-001 alone: it is the trunk ENI\n\
         leave eni-002 alone: other ENIs have room for what is missing\n"
    );
    assert_eq!(
        idle,
        "leave eni-000 alone: it is the primary ENI\n\
         leave eni-001 alone: it is the trunk ENI\n\
         leave eni-002 alone: the targets would not hold without it\n"
    );
}

#[test]
fn an_eni_that_is_being_made_has_room_for_those_who_come_meanwhile() {
    let mut pool = pool(&[eni(0, Role::Primary, 2)]);
    assign(&mut pool, 0..2, at(1));
    let (targets, limits) = (warm_ips(1, 0), limits(3, 2));
    let plan = pool.plan(&targets, &limits, 0, at(2));
    assert_eq!(plan.actions[0].action, create(DeviceIndex(1), 1));
    let id = pool.begin(&plan.actions[0].action);

    // The second of its two slots.
    assert_eq!(actions(&pool, &targets, &limits, 1, at(3)), Vec::<String>::new());
    // Two more than it has room for.
    assert_eq!(actions(&pool, &targets, &limits, 3, at(3)).len(), 1);
    // It may never come.
    pool.finish(id, Outcome::Unclear, at(4));
    assert_eq!(actions(&pool, &targets, &limits, 1, at(5)).len(), 1);
}
