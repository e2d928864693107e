//! What EC2 refuses because somebody else has it, and how full subnets are.

use super::estate::look;
use super::*;

fn looks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Look))
}

fn asks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Act { .. }))
}

fn refuse(world: &mut World, kind: CloudErrorKind) {
    let error = CloudError::new(kind, "AttachNetworkInterface", "the words of EC2");
    world.handle(Event::Acted { id: ActionId(1), result: Err(error) });
}

/// What follows from an event when the host's kernel obeys.
fn follows(world: &mut World, event: Event) -> Vec<Effect> {
    let mut effects = world.handle(event);
    if effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })) {
        let more = world.converge(&effects);
        effects.extend(more);
    }
    effects
}

fn pass(world: &mut World, seconds: u64) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_secs(seconds));
    follows(world, Event::Tick)
}

/// The look that is under way finds what is known.
fn found(world: &mut World) -> Vec<Effect> {
    let picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    follows(world, Event::Looked(Ok(picture)))
}

#[test]
fn a_place_that_is_taken_is_looked_at_before_anything_more_is_asked_for() {
    for kind in [CloudErrorKind::InUse, CloudErrorKind::EniLimit] {
        let mut world = World::ready(0);
        refuse(&mut world, kind);

        let effects = pass(&mut world, 2);
        assert!(looks(&effects) && !asks(&effects), "{kind:?}: {effects:?}");
        assert!(!asks(&pass(&mut world, 300)), "{kind:?}: before the look has answered");
        assert!(asks(&found(&mut world)), "{kind:?}");
    }
}

#[test]
fn growth_goes_on_when_the_look_after_a_refusal_fails() {
    let mut world = World::ready(0);
    refuse(&mut world, CloudErrorKind::InUse);
    assert!(looks(&pass(&mut world, 2)));

    let error = CloudError::new(CloudErrorKind::Unreachable, "DescribeNetworkInterfaces", "no answer");
    let effects = world.handle(Event::Looked(Err(error)));

    assert!(asks(&effects), "{effects:?}");
}

#[test]
fn a_look_that_began_before_the_refusal_does_not_settle_it() {
    let mut world = World::ready(0);
    world.node.cloud.look_at = world.now;
    assert!(looks(&world.handle(Event::Tick)));
    refuse(&mut world, CloudErrorKind::EniLimit);
    pass(&mut world, 2);

    let effects = found(&mut world);

    assert!(looks(&effects) && !asks(&effects), "{effects:?}");
    assert!(asks(&found(&mut world)));
}

#[test]
fn a_limit_that_stays_is_looked_at_less_and_less() {
    let mut world = World::ready(0);
    let mut looked = Vec::new();
    for minute in 0..180 {
        refuse(&mut world, CloudErrorKind::EniLimit);
        if looks(&pass(&mut world, 60)) {
            looked.push(minute);
            found(&mut world);
        }
    }
    // Beside the hourly ones.
    let (first, last): (Vec<u32>, Vec<u32>) = looked.iter().partition(|minute| **minute < 60);
    assert!((3..=9).contains(&first.len()), "{looked:?}");
    assert!(last.len() <= 10, "{looked:?}");
}

#[test]
fn a_subnet_of_which_a_quarter_is_free_has_plenty() {
    let mut world = World::ready(4);
    let subnet = || "subnet-1".parse().unwrap();
    assert!(!world.node.has_plenty(), "nothing is known of it");
    for (free, plenty) in [(1024, true), (1023, false)] {
        let choice =
            Subnets { free: [(subnet(), free)].into(), for_new: vec![subnet()], ..Subnets::default() };
        look(&mut world, |picture| picture.choice = Some(choice));
        assert_eq!(world.node.has_plenty(), plenty);
    }
}
