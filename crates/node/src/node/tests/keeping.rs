//! What is given back: EC2 refuses it, the node is about to end, or nobody can do what is left to do. Nobody waits for any of it.

use super::*;
use crate::cluster::News;

fn asks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Act { .. }))
}

fn looks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Look))
}

/// What follows from the next so many seconds when the host's kernel obeys.
fn pass(world: &mut World, seconds: u64) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_secs(seconds));
    let effects = world.handle(Event::Tick);
    obeyed(world, effects)
}

/// The effects, and what follows from them when the host's kernel obeys.
fn obeyed(world: &mut World, mut effects: Vec<Effect>) -> Vec<Effect> {
    if effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })) {
        let more = world.converge(&effects);
        effects.extend(more);
    }
    effects
}

/// What a node with nine free addresses, of which three are wanted, is about to give back: the call.
fn spares(world: &mut World) -> Option<ActionId> {
    for _ in 0..4 {
        let effects = pass(world, 150);
        let Some(batch) = batch(&effects) else { continue };
        let effects = world.handle(Event::Written { batch, result: Ok(()) });
        return action(&effects).map(|(id, _)| id);
    }
    None
}

fn refuse(world: &mut World, id: ActionId, kind: CloudErrorKind) -> Vec<Effect> {
    let error = CloudError::new(kind, "UnassignPrivateIpAddresses", "the words of EC2");
    let effects = world.handle(Event::Acted { id, result: Err(error) });
    obeyed(world, effects)
}

#[test]
fn a_release_that_ec2_denies_does_not_hold_up_those_who_wait_and_is_not_their_reason() {
    let mut world = World::ready(9);
    let id = spares(&mut world).expect("something is given back");
    refuse(&mut world, id, CloudErrorKind::Denied);
    world.node.settings.targets = Targets { warm_ip: Some(0), ..Targets::default() };
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));

    let (_, effects) = world.add("one-more");

    let asked = action(&effects).map(|(_, action)| action);
    assert!(matches!(asked, Some(Action::CreateEni { .. })), "{effects:?}");
    let report = world.node.report(world.now);
    assert_eq!((report.waiting[0].reason, report.trouble), (Reason::PoolEmpty, None));
    assert_eq!(report.cloud.len(), 1);
    assert!(
        report.cloud[0].starts_with("denied: what is to spare is not given back: "),
        "{:?}",
        report.cloud
    );
}

#[test]
fn what_ec2_does_not_take_back_is_offered_ever_less_often() {
    let mut world = World::ready(9);
    let mut id = spares(&mut world);
    let (began, mut calls) = (world.now, 0);
    while world.now.since(began) < Duration::from_secs(4 * 3600) {
        if let Some(id) = id.take() {
            calls += 1;
            refuse(&mut world, id, CloudErrorKind::Denied);
        }
        let batch = batch(&pass(&mut world, 30));
        let effects = batch.map(|batch| world.handle(Event::Written { batch, result: Ok(()) }));
        id = effects.and_then(|effects| action(&effects).map(|(id, _)| id));
    }

    assert!((6..=20).contains(&calls), "{calls} calls in four hours");
}

#[test]
fn after_a_throttled_release_nothing_is_asked_for_a_moment() {
    let mut world = World::ready(9);
    let id = spares(&mut world).expect("something is given back");
    refuse(&mut world, id, CloudErrorKind::Throttled);
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));

    assert!(!asks(&world.add("one-more").1));
    assert!(asks(&pass(&mut world, 2)));
}

#[test]
fn a_node_whose_object_is_deleted_gives_nothing_back_until_there_is_one_again() {
    for known in [true, false] {
        let mut world = World::ready(9);
        if known {
            world.handle(Event::Cluster(News::Node(Box::default())));
        }
        world.handle(Event::Cluster(News::NoNode));
        assert_eq!(spares(&mut world).is_none(), known);
        if known {
            let told = &world.node.report(world.now).cluster[0];
            assert_eq!(told, "deleted: nothing is given back");
            world.handle(Event::Cluster(News::Trouble("connection refused".to_owned())));
            assert_eq!(spares(&mut world), None);
            let effects = world.handle(Event::Cluster(News::Node(Box::default())));
            assert!(batch(&effects).is_some(), "{effects:?}");
        }
    }
}

#[test]
fn what_was_about_to_go_stays_when_the_node_object_is_deleted() {
    let mut world = World::ready(9);
    world.handle(Event::Cluster(News::Node(Box::default())));
    let mut batches = (0..4).filter_map(|_| batch(&pass(&mut world, 150)));
    let batch = batches.next().expect("an intent");
    drop(batches);
    world.handle(Event::Cluster(News::NoNode));

    assert!(!asks(&world.handle(Event::Written { batch, result: Ok(()) })));
}

#[test]
fn growth_goes_on_while_looks_fail() {
    let mut world = World::ready(0);
    world.node.settings.targets = Targets { warm_ip: Some(0), ..Targets::default() };
    world.handle(Event::Acted { id: ActionId(1), result: Ok(Outcome::Assigned(Given::default())) });
    pass(&mut world, 1);
    for _ in 0..10 {
        world.node.cloud.look_at = world.now;
        assert!(looks(&pass(&mut world, 0)));
        let error = CloudError::new(CloudErrorKind::Unreachable, "instance metadata", "no answer");
        world.handle(Event::Looked(Err(error)));
    }
    assert_eq!(world.node.report(world.now).trouble, Some(Reason::CloudUnreachable));
    assert!(world.node.cloud.look_at.since(world.now) >= Duration::from_secs(30), "looks again at once");

    let (_, effects) = world.add("a");

    assert!(asks(&effects), "{effects:?}");
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::PoolEmpty);
}

#[test]
fn no_eni_is_tried_for_warm_targets_again_and_again_where_a_limit_stands() {
    let mut world = World::ready(9);
    world.node.settings.targets = Targets { warm_ip: Some(12), ..Targets::default() };
    let mut tried = 0;
    for _ in 0..180 {
        let mut effects = pass(&mut world, 60);
        if looks(&effects) {
            let picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
            let told = world.handle(Event::Looked(Ok(picture)));
            effects.extend(world.converge(&told));
        }
        if let Some((id, action)) = action(&effects) {
            assert!(matches!(action, Action::CreateEni { .. }), "{action}");
            tried += 1;
            refuse(&mut world, id, CloudErrorKind::EniLimit);
        }
    }
    assert!((3..=14).contains(&tried), "{tried} ENIs in three hours");

    // A pod is another matter.
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));
    let (_, effects) = world.add("waits");
    assert!(asks(&effects) || asks(&pass(&mut world, 100)));
}

/// A look that finds these chores, which cannot be done; how long it takes to the next look.
fn fails(world: &mut World, change: impl FnOnce(&mut Picture)) -> Duration {
    let mut picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    change(&mut picture);
    let effects = world.handle(Event::Looked(Ok(picture)));
    assert!(tidies(&world.converge(&effects)));
    let error = CloudError::new(CloudErrorKind::Other, "DeleteNetworkInterface", "no");
    world.handle(Event::Tidied(Err(error)));
    world.node.cloud.look_at.since(world.now)
}

#[test]
fn chores_that_cannot_be_done_are_tried_ever_less_often() {
    let mut world = World::ready(4);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let pause = fails(&mut world, |picture| {
            picture.chores.push(Chore::Tie { eni: "eni-9".parse().unwrap(), attachment: "a".to_owned() });
        });
        world.now = world.now.plus(pause);
        pauses.push(pause.as_secs());
    }
    assert!((150..=450).contains(&pauses[0]), "{pauses:?}");
    assert!(pauses[5..].iter().all(|pause| *pause >= 1200), "{pauses:?}");

    pass(&mut world, 0);
    world.handle(Event::Tidied(Ok(())));
    let pause = fails(&mut world, |picture| picture.chores.push(Chore::Delete("eni-9".parse().unwrap())));
    assert!(pause.as_secs() <= 450, "it begins anew");
}

#[test]
fn leaks_of_other_instances_that_cannot_be_deleted_cost_no_look() {
    let mut world = World::ready(4);
    let stray = Stray { eni: "eni-7".parse().unwrap(), made: Moment(0) };
    estate::look(&mut world, |picture| picture.strays.push(stray.clone()));
    world.now = world.now.plus(Duration::from_secs(600));

    let pause = fails(&mut world, |picture| picture.strays.push(stray));

    assert!(pause >= Duration::from_secs(1800), "{pause:?}");
}

#[test]
fn an_eni_that_would_outlive_the_instance_is_looked_for_soon() {
    let mut world = World::ready(4);
    assert!(world.node.cloud.look_at.since(world.now) > Duration::from_secs(600));

    world.handle(Event::Untied);

    assert!(looks(&pass(&mut world, 15)));
}
