//! What is true of every plan, after any history.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use types::EniId;

use super::kit::{self, at, eni};
use super::model::{Step, World, sizes, step, targets};
use crate::{Action, EniSeen, Limits, Plan, Pool, Role, Targets};

fn world() -> impl Strategy<Value = World> {
    let history = vec(step(), 0..60);
    (targets(), sizes(), history).prop_map(|(targets, limits, steps): (Targets, Limits, Vec<Step>)| {
        let mut world = World::new(targets, limits);
        world.run(&steps);
        world
    })
}

fn plan(world: &World, waiting: u32) -> Plan {
    world.pool.plan(&world.targets, &world.limits, waiting, world.now)
}

/// Addresses that a plan takes away.
fn taken(pool: &Pool, plan: &Plan) -> BTreeSet<Ipv4Addr> {
    let enis = pool.enis();
    let all_of = |id: &EniId| {
        enis.iter().find(|eni| eni.id == *id).map(|eni| eni.given().all().collect()).unwrap_or_default()
    };
    let of_action = |action: &Action| match action {
        Action::Release { given, .. } => given.all().collect(),
        Action::DeleteEni { eni } => all_of(eni),
        Action::Assign { .. } | Action::CreateEni { .. } => BTreeSet::new(),
    };
    plan.actions.iter().flat_map(|planned| of_action(&planned.action)).collect()
}

fn grows(action: &Action) -> bool {
    match action {
        Action::Assign { .. } | Action::CreateEni { .. } => true,
        Action::Release { .. } | Action::DeleteEni { .. } => false,
    }
}

/// ENIs with so many addresses each, all free: device 0 is the primary one.
fn idle(counts: &[u8]) -> Vec<EniSeen> {
    let role = |n| if n == 0 { Role::Primary } else { Role::Secondary };
    (0..).zip(counts).map(|(n, count)| eni(n, role(n), *count)).collect()
}

proptest! {
    #[test]
    fn never_takes_an_address_in_use(world in world()) {
        let used: BTreeSet<Ipv4Addr> = world.pool.owners().map(|(_, grant)| grant.address).collect();

        let taken = taken(&world.pool, &plan(&world, 0));

        prop_assert!(taken.is_disjoint(&used));
    }

    #[test]
    fn never_takes_an_address_that_is_cooling(world in world()) {
        let cools = world.pool.snapshot().cooling.into_iter().filter(|(_, until)| *until > world.now);
        let cools: BTreeSet<Ipv4Addr> = cools.map(|(address, _)| address).collect();

        let taken = taken(&world.pool, &plan(&world, 0));

        prop_assert!(taken.is_disjoint(&cools));
    }

    #[test]
    fn stays_within_the_instance_limits(mut world in world(), waiting in 0..100_u32) {
        world.calm();

        // The EC2 of the tests panics at one more ENI or address than fits.
        for planned in plan(&world, waiting).actions {
            world.ec2.act(&planned.action);
        }
    }

    #[test]
    fn settles(mut world in world()) {
        world.calm();

        // Panics if it does not.
        world.settle();

        prop_assert!(plan(&world, 0).actions.is_empty());
    }

    #[test]
    fn does_not_grow_and_shrink_at_once(world in world(), waiting in 0..10_u32) {
        let plan = plan(&world, waiting);

        let growing = plan.actions.iter().filter(|planned| grows(&planned.action)).count();

        prop_assert!(growing == 0 || growing == plan.actions.len());
    }

    #[test]
    fn asks_each_eni_for_one_thing_and_explains_all_others(world in world(), waiting in 0..10_u32) {
        let plan = plan(&world, waiting);
        let acted: Vec<&EniId> = plan.actions.iter().filter_map(|planned| planned.action.eni()).collect();
        let kept: Vec<&EniId> = plan.kept.iter().map(|(eni, _)| eni).collect();

        let mentioned: BTreeSet<&EniId> = acted.iter().chain(&kept).copied().collect();

        prop_assert_eq!(mentioned.len(), acted.len() + kept.len());
        prop_assert_eq!(mentioned.len(), world.pool.enis().len());
    }

    #[test]
    fn never_touches_the_primary_the_trunk_or_an_unmanaged_eni(
        counts in vec(0..5_u8, 4), targets in targets(), limits in sizes(), waiting in 0..10_u32
    ) {
        let mut enis = idle(&counts);
        enis[1].role = Role::Trunk;
        enis[2].role = Role::Unmanaged;
        enis[3].role = Role::Unmanaged;
        let pool = kit::pool(&enis);

        for planned in pool.plan(&targets, &limits, waiting, at(1000)).actions {
            let primary = planned.action.eni() == Some(&enis[0].id);
            let spared = planned.action != Action::DeleteEni { eni: enis[0].id.clone() };
            let new = planned.action.eni().is_none();
            prop_assert!(new || primary && spared, "{}", planned.action);
        }
    }

    #[test]
    fn a_bigger_warm_target_never_frees_more(
        counts in vec(0..5_u8, 1..5), warm in 0..10_u32, more in 0..10_u32, minimum in 1..10_u32
    ) {
        let pool = kit::pool(&idle(&counts));
        let limits = kit::limits(5, 5);
        let freed = |warm| {
            // The age keeps whole ENIs out of it: deleting one is not giving back what is spare.
            let targets = Targets { eni_age_min: Duration::MAX, ..kit::warm_ips(warm, minimum) };
            taken(&pool, &pool.plan(&targets, &limits, 0, at(1000))).len()
        };

        prop_assert!(freed(warm + more) <= freed(warm));
    }

    #[test]
    fn the_order_of_enis_does_not_matter(
        counts in vec(0..5_u8, 1..5), targets in targets(), limits in sizes(), waiting in 0..10_u32
    ) {
        let enis = idle(&counts);
        let reversed: Vec<EniSeen> = enis.iter().rev().cloned().collect();
        let plan = |enis: &[EniSeen]| kit::pool(enis).plan(&targets, &limits, waiting, at(1000));

        prop_assert_eq!(plan(&enis), plan(&reversed));
    }

    #[test]
    fn any_pictures_leave_the_books_in_order(
        pictures in vec((vec((0..4_u8, 0..4_u8, vec(1..6_u8, 0..4)), 0..4), 0..100_u64), 0..8)
    ) {
        let mut pool = kit::pool(&idle(&[2, 2]));
        kit::assign(&mut pool, [1, 2, 3], at(0));
        for (enis, second) in pictures {
            let picture: Vec<EniSeen> = enis.into_iter().map(|(n, primary, hosts)| EniSeen {
                primary_address: kit::address(0, primary),
                addresses: hosts.into_iter().map(|host| kit::address(0, 8 + host)).collect(),
                ..eni(n, Role::Secondary, 0)
            }).collect();

            pool.observe(&picture, at(second), at(second));

            prop_assert_eq!(pool.check(), Ok(()));
        }
        prop_assert_eq!(pool.owners().count(), 3);
    }
}
