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

/// The calls that are begun among these effects.
fn calls(effects: &[Effect]) -> Vec<ActionId> {
    let calls = effects.iter().filter_map(|effect| match effect {
        Effect::Act { id, .. } => Some(*id),
        _ => None,
    });
    calls.collect()
}

/// A node that has asked for addresses of two network cards at once; the calls.
fn with_two_calls() -> (World, ActionId, ActionId) {
    let mut world = cards::identified();
    let effects = cards::look(&mut world, [0, 0]);
    let effects = world.converge(&effects);
    let [first, second] = calls(&effects)[..] else { panic!("{effects:?}") };
    (world, first, second)
}

fn slow_down(call: &'static str) -> CloudError {
    CloudError::new(CloudErrorKind::Throttled, call, "slow down")
}

/// EC2 has no time for a call, a moment later; what follows.
fn throttled(world: &mut World, id: ActionId) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_millis(10));
    follows(world, Event::Acted { id, result: Err(slow_down("AssignPrivateIpAddresses")) })
}

/// A call gives an address, a moment later; what follows.
fn gives(world: &mut World, id: ActionId, address: [u8; 4]) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_millis(10));
    let given = Given::addresses([address.into()].into());
    follows(world, Event::Acted { id, result: Ok(Outcome::Assigned(given)) })
}

#[test]
fn the_success_of_a_call_from_before_ec2_was_busy_does_not_cut_the_pause_short() {
    let (mut world, first, second) = with_two_calls();
    assert!(!asks(&throttled(&mut world, first)));

    let effects = gives(&mut world, second, [10, 0, 1, 10]);

    assert!(!asks(&effects), "{effects:?}");
    assert_eq!(world.node.report(world.now).trouble, Some(Reason::Throttled));
    assert!(asks(&pass(&mut world, 2)), "once the pause is over");
}

#[test]
fn only_the_success_of_a_call_from_after_a_failure_ends_the_doubling_of_pauses() {
    let (mut world, first, second) = with_two_calls();
    throttled(&mut world, first);
    gives(&mut world, second, [10, 0, 1, 10]);
    for _ in 0..4 {
        let asked = calls(&pass(&mut world, 60));
        throttled(&mut world, asked[0]);
    }
    // The fifth pause: between 8 and 24 s.
    assert!(!asks(&pass(&mut world, 7)));
    let asked = calls(&pass(&mut world, 20));

    let effects = gives(&mut world, asked[0], [10, 0, 0, 10]);

    assert_eq!(world.node.report(world.now).trouble, None);
    let next = calls(&effects);
    throttled(&mut world, next[0]);
    assert!(asks(&pass(&mut world, 2)), "the first pause again");
}

#[test]
fn the_success_of_a_call_from_before_a_look_that_ec2_was_too_busy_for_does_not_cut_the_pause_short() {
    let (mut world, first, _) = with_two_calls();
    world.now = world.now.plus(Duration::from_millis(10));
    world.handle(Event::Looked(Err(slow_down("DescribeNetworkInterfaces"))));

    let effects = gives(&mut world, first, [10, 0, 0, 10]);

    assert!(!asks(&effects), "{effects:?}");
    assert!(asks(&pass(&mut world, 2)), "once the pause is over");
}

#[test]
fn an_ipv6_prefix_that_was_asked_for_before_ec2_was_busy_does_not_cut_the_pause_short() {
    let mut world = World::of(Families::Dual);
    let effects = world.first_look(0);
    let effects = world.converge(&effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::AssignIpv6(_))), "{effects:?}");
    throttled(&mut world, calls(&effects)[0]);

    let prefix = "2001:db8:0:1:4a2f::/80".parse().unwrap();
    let effects = follows(&mut world, Event::Ipv6Assigned("eni-0".parse().unwrap(), Ok(prefix)));

    assert!(!asks(&effects), "{effects:?}");
    assert!(asks(&pass(&mut world, 2)), "once the pause is over");
}

#[test]
fn that_ec2_was_busy_is_told_no_longer_once_nothing_is_wanted_of_it() {
    let (mut world, first, second) = with_two_calls();
    throttled(&mut world, first);
    gives(&mut world, second, [10, 0, 1, 10]);
    world.node.settings.targets = Targets { warm_eni: 0, warm_ip: Some(0), ..world.node.settings.targets };
    let effects = cards::look(&mut world, [4, 4]);
    world.converge(&effects);
    assert_eq!(world.node.report(world.now).trouble, Some(Reason::Throttled));

    pass(&mut world, 60);

    assert_eq!(world.node.report(world.now).trouble, None);
}
