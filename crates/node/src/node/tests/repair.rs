//! What others change on the host.

use super::*;
use crate::node::hosting::REPAIR_EVERY;

/// What the keeper of the host says: `put_back` is whether it found something undone.
fn made(put_back: bool) -> HostMade {
    HostMade { put_back, ..HostMade::default() }
}

/// Answers the wish that is among the effects, if there is one, and the look at pods, which finds nothing.
fn answer(world: &mut World, effects: &[Effect], result: Result<HostMade, String>) -> bool {
    if effects.iter().any(|effect| matches!(effect, Effect::Mend(_))) {
        compared(world, false);
    }
    answer_wish(world, effects, result)
}

/// Answers the wish alone.
fn answer_wish(world: &mut World, effects: &[Effect], result: Result<HostMade, String>) -> bool {
    let generation = effects.iter().find_map(|effect| match effect {
        Effect::Converge { generation, .. } => Some(*generation),
        _ => None,
    });
    if let Some(generation) = generation {
        world.handle(Event::Converged { generation, result });
    }
    generation.is_some()
}

fn mends(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Mend(pods) if pods.len() == 1))
}

/// Handles the next tick.
fn tick(world: &mut World) -> Vec<Effect> {
    world.now = world.node.next_wakeup(world.now);
    world.handle(Event::Tick)
}

/// The pods have been compared.
fn compared(world: &mut World, put_back: bool) -> Vec<Effect> {
    world.handle(Event::PodsCompared { put_back, lost: Vec::new() })
}

/// The time from a notice to the look; whether that finds something of the host undone.
fn notice(world: &mut World, put_back: bool) -> Duration {
    let told = world.now;
    world.handle(Event::Touched);
    for _ in 0..10 {
        let effects = tick(world);
        if mends(&effects) {
            answer(world, &effects, Ok(made(put_back)));
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

    let after = notice(&mut world, true);

    assert!(after <= Duration::from_millis(500), "{after:?}");
    assert!(!told(&world));
}

#[test]
fn notices_of_what_is_not_ours_are_no_fight() {
    let mut world = World::ready(4);
    world.added("a");

    for round in 0..100 {
        let after = notice(&mut world, false);
        assert!(after < Duration::from_secs(1), "{after:?} in round {round}");
        assert!(!told(&world));
    }
}

#[test]
fn what_is_changed_again_and_again_but_not_at_once_is_put_back_each_time_within_a_second() {
    let mut world = World::ready(4);
    world.added("a");

    for round in 0..20 {
        world.now = world.now.plus(Duration::from_secs(3));
        let after = notice(&mut world, true);
        assert!(after < Duration::from_secs(1), "{after:?} in round {round}");
    }

    assert!(told(&world), "that others keep changing things");
    // Nobody has answered yet: what is done in two steps is back soon too.
    let after = notice(&mut world, true);
    assert!(after < Duration::from_secs(1), "{after:?} after many that were no answer");
}

#[test]
fn a_pause_is_not_cut_short_by_further_notices() {
    let mut world = World::ready(4);
    world.added("a");
    for _ in 0..8 {
        notice(&mut world, true);
    }
    let since = world.now;
    world.handle(Event::Touched);
    world.now = world.now.plus(Duration::from_secs(5));

    notice(&mut world, true);

    assert!(world.now.since(since) > Duration::from_secs(10), "{:?}", world.now.since(since));
}

#[test]
fn what_pods_lost_counts_as_a_fight_too() {
    let mut world = World::ready(4);
    world.added("a");

    for _ in 0..12 {
        notice(&mut world, false);
        compared(&mut world, true);
    }

    assert!(told(&world));
}

#[test]
fn a_pod_of_which_nothing_is_there_any_more_gives_its_address_back() {
    let mut world = World::ready(4);
    ["gone", "lives"].into_iter().for_each(|pod| world.added(pod));
    let (_, effects) = world.add("comes");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Wire(..))), "{effects:?}");
    let lost = |pod: &str| host_if_of(&attachment(pod, pod));

    let effects =
        world.handle(Event::PodsCompared { put_back: false, lost: vec![lost("gone"), lost("comes")] });

    assert!(batch(&effects).is_some(), "{effects:?}");
    let pods = world.node.report(world.now).pods;
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    assert_eq!(names, ["comes", "lives"]);
    assert_eq!(world.node.report(world.now).addresses.cooling, 1);
    assert!(!told(&world), "nothing was put back");
}

fn host_if_of(of: &Attachment) -> HostVeth {
    HostVeth::of_pod(&of.veth_prefix, &of.pod, 0)
}

#[test]
fn pods_are_looked_at_although_the_node_wishes_all_the_time() {
    let mut world = World::ready(4);
    world.added("a");
    let mut looks = 0;

    for round in 0..12 {
        world.now = world.now.plus(Duration::from_secs(10));
        let range = format!("10.{round}.0.0/16").parse().unwrap();
        let effects = world.handle(Event::Ranges(vec![range]));
        looks += u32::from(mends(&effects));
        assert!(answer(&mut world, &effects, Ok(made(false))));
    }

    assert!((3..=4).contains(&looks), "{looks} looks in two minutes");
}

/// What two minutes lead to while the kernel is slow to compare pods.
fn two_minutes_without_an_answer(world: &mut World) -> usize {
    let until = world.now.plus(Duration::from_secs(120));
    let mut looks = 0;
    while world.now < until {
        let effects = tick(world);
        looks += usize::from(mends(&effects));
        answer_wish(world, &effects, Ok(made(false)));
    }
    looks
}

#[test]
fn pods_are_compared_once_at_a_time_and_once_more_after_all_that_fell_due_meanwhile() {
    let mut world = World::ready(4);
    world.added("a");
    assert_eq!(two_minutes_without_an_answer(&mut world), 1);

    let effects = compared(&mut world, false);
    assert!(mends(&effects), "{effects:?}");
    assert!(!mends(&compared(&mut world, false)), "nothing more has fallen due");
    assert_eq!(two_minutes_without_an_answer(&mut world), 1);
}

#[test]
fn a_pod_that_is_found_gone_is_not_among_those_that_are_compared_next() {
    let mut world = World::ready(4);
    ["gone", "lives"].into_iter().for_each(|pod| world.added(pod));
    two_minutes_without_an_answer(&mut world);

    let lost = vec![host_if_of(&attachment("gone", "gone"))];
    let effects = world.handle(Event::PodsCompared { put_back: false, lost });

    assert!(mends(&effects), "{effects:?}");
}

#[test]
fn a_link_that_never_appears_is_looked_for_eagerly_for_a_short_time_only() {
    let mut world = World::ready(4);
    world.added("a");
    let missing = BTreeSet::from([Mac([2, 0, 0, 0, 0, 0])]);
    let until = world.now.plus(Duration::from_secs(3600));
    let mut wishes = 0;

    while world.now < until {
        let effects = tick(&mut world);
        let result = Ok(HostMade { missing: missing.clone(), ..HostMade::default() });
        wishes += u32::from(answer(&mut world, &effects, result));
    }

    assert!((300..=350).contains(&wishes), "{wishes} wishes in an hour");
}

#[test]
fn a_host_that_cannot_be_set_up_is_tried_ever_less_often() {
    let mut world = World::ready(4);
    world.added("a");
    let until = world.now.plus(Duration::from_secs(600));
    let mut wishes = 0;

    while world.now < until {
        let effects = tick(&mut world);
        wishes += u32::from(answer(&mut world, &effects, Err("refused".to_owned())));
    }

    assert!((20..=30).contains(&wishes), "{wishes} wishes in ten minutes");
    let effects = tick(&mut world);
    answer(&mut world, &effects, Ok(made(false)));
    assert!(notice(&mut world, false) < Duration::from_secs(1));
}

#[test]
fn a_look_that_falls_due_while_a_try_is_waited_for_puts_that_off_no_further() {
    let mut world = World::ready(4);
    let mut tried = world.now;
    for number in 0..20 {
        let effects = tick(&mut world);
        if answer(&mut world, &effects, Err("it refuses".to_owned())) {
            let pause = world.now.since(tried);
            assert!(pause <= REPAIR_EVERY + Duration::from_secs(1), "try {number} comes after {pause:?}");
            tried = world.now;
        }
        world.now = world.now.plus(Duration::from_millis(5));
    }
    assert!(tried > world.now.minus(Duration::from_secs(60)), "nobody tries");
}

#[test]
fn a_refusal_for_one_eni_holds_up_what_comes_to_that_one_alone() {
    let mut world = World::ready(0);
    let (_, effects) = world.add("waits");
    // The growth for the warm target may be on its way already.
    let id = action(&effects).map_or(ActionId(1), |(id, _)| id);
    let given = Given::addresses([Ipv4Addr::new(10, 0, 0, 99)].into());
    let effects = world.handle(Event::Acted { id, result: Ok(Outcome::Assigned(given)) });
    let refused = |device| {
        let told = vec!["the kernel refused: ip link set ens5 mtu 9001".to_owned()];
        HostMade { refused: [(Mac([2, 0, 0, 0, 0, device]), told)].into(), ..HostMade::default() }
    };

    assert!(answer(&mut world, &effects, Ok(refused(0))));
    assert!(world.node.pool.owners().count() == 0, "a pod has an address that the kernel is not ready for");
    let report = world.node.report(world.now);
    assert!(report.cloud.iter().any(|line| line.contains("mtu 9001")), "{:?}", report.cloud);

    while world.node.pool.owners().count() == 0 {
        let effects = tick(&mut world);
        answer(&mut world, &effects, Ok(refused(1)));
        assert!(world.now < Moment(0).plus(Duration::from_secs(3600)), "it waits for another ENI");
    }
}

#[test]
fn before_the_first_picture_the_host_is_left_as_it_is() {
    let mut before = World::ready(4);
    before.added("a");
    let mut world = World::new();
    world.node.pool = Pool::restore(before.node.pool.snapshot(), Duration::from_secs(30), world.now);
    let facts = before.node.facts.clone().unwrap();
    let mut effects = world.handle(Event::Identified(Box::new(facts)));
    effects.extend(world.handle(Event::Ranges(vec!["10.7.0.0/16".parse().unwrap()])));

    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })), "{effects:?}");

    let effects = world.first_look(4);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })));
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

    let pauses: Vec<Duration> = (0..12).map(|_| notice(&mut world, true)).collect();

    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(30)));
    assert!(told(&world));

    let quiet = world.now.plus(Duration::from_secs(31));
    while world.now < quiet {
        let effects = tick(&mut world);
        answer(&mut world, &effects, Ok(made(false)));
    }

    assert!(!told(&world));
    assert!(notice(&mut world, true) < Duration::from_secs(1));
}
