//! What others change on the host.

use super::*;

/// Handles the next tick; whether it looks at the host and mends pods.
fn looks(world: &mut World) -> bool {
    world.now = world.node.next_wakeup(world.now);
    let effects = world.handle(Event::Tick);
    let mends = effects.iter().any(|effect| matches!(effect, Effect::Mend(pods) if pods.len() == 1));
    if mends {
        world.converge(&effects);
    }
    mends
}

/// The time from a notice to the look.
fn notice(world: &mut World) -> Duration {
    let told = world.now;
    world.handle(Event::Touched);
    for _ in 0..10 {
        if looks(world) {
            return world.now.since(told);
        }
    }
    panic!("nobody looks");
}

fn told(world: &World) -> bool {
    world.node.report(world.now).cloud.iter().any(|line| line.contains("others keep changing"))
}

#[test]
fn a_notice_leads_to_a_look_within_a_second_and_many_to_one() {
    let mut world = World::ready(4);
    world.added("a");
    world.handle(Event::Touched);
    world.handle(Event::Touched);

    let after = notice(&mut world);

    assert!(after <= Duration::from_millis(500), "{after:?}");
    assert!(!told(&world));
}

#[test]
fn the_start_looks_at_the_pods_of_before() {
    let mut before = World::ready(4);
    before.added("a");
    let mut world = World::new();
    world.node.pool = Pool::restore(before.node.pool.snapshot(), Duration::from_secs(30), world.now);

    let effects = world.first_look(4);

    assert!(effects.iter().any(|effect| matches!(effect, Effect::Mend(pods) if pods.len() == 1)));
}

#[test]
fn who_keeps_changing_is_answered_less_often_and_told_until_it_ends() {
    let mut world = World::ready(4);
    world.added("a");

    let pauses: Vec<Duration> = (0..12).map(|_| notice(&mut world)).collect();

    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(30)));
    assert!(told(&world));

    let quiet = world.now.plus(Duration::from_secs(31));
    while world.now < quiet {
        looks(&mut world);
    }

    assert!(!told(&world));
    assert!(notice(&mut world) < Duration::from_secs(1));
}
