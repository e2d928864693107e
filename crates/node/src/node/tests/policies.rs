//! The network policy agent's say in ADD and DEL.

use super::*;

fn with_policies() -> World {
    let mut world = World::ready(3);
    world.node.settings.policies = true;
    world
}

/// An ADD that kernel and disk are done with; what comes of the kernel's answer.
fn wired_and_written(world: &mut World, name: &str) -> (CallId, Vec<Effect>) {
    let (id, effects) = world.add(name);
    let batch = batch(&effects).expect("an append");
    let of_kernel = world.handle(Event::Wired { id, result: Ok(()) });
    let of_disk = world.handle(Event::Written { batch, result: Ok(()) });
    assert!(reply(&of_kernel).is_none() && reply(&of_disk).is_none(), "{of_kernel:?} {of_disk:?}");
    (id, of_kernel)
}

fn enforces(effects: &[Effect]) -> Option<(&PodName, Duration)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Enforce { pod, patience, .. } => Some((pod, *patience)),
        _ => None,
    })
}

#[test]
fn the_agent_hears_how_many_interfaces_a_pod_has() {
    let mut world = with_policies();
    let (_, effects) = wired_and_written(&mut world, "a");

    let told = effects.iter().find_map(|effect| match effect {
        Effect::Enforce { interfaces, .. } => Some(*interfaces),
        _ => None,
    });
    assert_eq!(told, Some(1));
}

fn forgets(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Forget(pod) => Some(pod.name.as_str()),
            _ => None,
        })
        .collect()
}

fn unwires(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Unwire(_)))
}

/// What a refusal gives the caller, once all is taken back.
pub(super) fn refused(reason: Reason) -> World {
    let mut world = with_policies();
    let (id, _) = wired_and_written(&mut world, "a");

    let effects = world.handle(Event::Enforced { id, result: Err(Failure::new(reason, "no")) });

    assert!(unwires(&effects), "{effects:?}");
    assert_eq!(forgets(&effects), ["a"]);
    let counts = world.node.pool().counts(world.now);
    assert_eq!((counts.reserved, counts.assigned, counts.cooling), (0, 0, 1));
    let failure = failure(&effects).expect("a failure");
    assert_eq!((failure.reason, failure.code), (reason, types::CniCode::TRY_AGAIN));
    world
}

#[test]
fn an_add_is_answered_once_the_agent_has_enforced_its_policies() {
    let mut world = with_policies();

    let (id, effects) = wired_and_written(&mut world, "a");
    let (pod, patience) = enforces(&effects).expect("the agent is asked");
    assert_eq!((pod.name.as_str(), patience), ("a", Duration::from_secs(10)));

    let effects = world.handle(Event::Enforced { id, result: Ok(()) });
    assert!(matches!(reply(&effects), Some(Reply::Added(_))), "{effects:?}");
    assert!(forgets(&effects).is_empty());
}

#[test]
fn the_agent_is_asked_only_for_a_pod_that_was_wired() {
    let mut world = with_policies();
    let (id, effects) = world.add("a");
    assert!(enforces(&effects).is_none());
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Written { batch, result: Ok(()) });

    let no = Failure::new(Reason::KernelRefused, "no");
    let effects = world.handle(Event::Wired { id, result: Err(no) });

    assert!(enforces(&effects).is_none() && forgets(&effects).is_empty(), "{effects:?}");
    assert_eq!(failure(&effects).expect("a failure").reason, Reason::KernelRefused);
}

#[test]
fn an_add_that_the_agent_refuses_is_taken_back_with_the_reason() {
    for reason in [Reason::PolicyRefused, Reason::PolicyAgentUnreachable] {
        refused(reason);
    }
}

#[test]
fn a_del_does_not_wait_for_an_agent_that_is_still_asked_for_the_add() {
    let mut world = with_policies();
    let (add, _) = wired_and_written(&mut world, "a");

    let effects = world.del("a", 200);

    assert_eq!(failure(&effects).expect("the ADD's failure").reason, Reason::Superseded);
    assert_eq!(forgets(&effects), ["a"]);
    let batch = batch(&effects).expect("the release");
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    assert!(matches!(reply(&effects), Some(Reply::Done)), "{effects:?}");
    // What the agent says now is about nobody.
    let effects = world.handle(Event::Enforced { id: add, result: Ok(()) });
    assert!(reply(&effects).is_none(), "{effects:?}");
}

#[test]
fn the_agent_forgets_a_pod_once_however_often_it_is_deleted() {
    let mut world = with_policies();
    let (id, _) = wired_and_written(&mut world, "a");
    world.handle(Event::Enforced { id, result: Ok(()) });

    assert_eq!(forgets(&world.del("a", 200)), ["a"]);
    assert!(forgets(&world.del("a", 300)).is_empty());
}

#[test]
fn without_policies_or_without_a_pods_name_the_agent_is_not_asked() {
    let mut world = World::ready(2);
    world.added("a");
    assert!(forgets(&world.del("a", 200)).is_empty());

    let mut world = with_policies();
    let nameless = Attachment { pod: PodName::default(), ..attachment("a", "a") };
    let (id, effects) = world.ask(Verb::Add(nameless), 100);
    let batch = batch(&effects).expect("an append");
    let effects = world.handle(Event::Wired { id, result: Ok(()) });
    assert!(enforces(&effects).is_none(), "{effects:?}");
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    assert!(matches!(reply(&effects), Some(Reply::Added(_))), "{effects:?}");
}

#[test]
fn an_add_whose_agent_is_silent_when_its_callers_time_is_up_is_undone_at_once() {
    let mut world = with_policies();
    let (id, _) = wired_and_written(&mut world, "a");
    world.now = world.now.plus(Duration::from_secs(600));

    let effects = world.handle(Event::Tick);

    let failure = failure(&effects).expect("a failure");
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
    assert!(failure.message.starts_with("the network policy agent is not done"), "{}", failure.message);
    assert!(unwires(&effects) && forgets(&effects) == ["a"], "{effects:?}");
    let effects = world.handle(Event::Enforced { id, result: Ok(()) });
    assert!(reply(&effects).is_none() && !unwires(&effects), "{effects:?}");
}

#[test]
fn the_agent_is_not_asked_about_a_pod_that_is_to_go() {
    let mut world = with_policies();
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.now = world.now.plus(Duration::from_secs(600));
    assert!(failure(&world.handle(Event::Tick)).is_some());

    let effects = world.handle(Event::Wired { id, result: Ok(()) });
    assert!(enforces(&effects).is_none(), "{effects:?}");
    assert!(unwires(&world.handle(Event::Written { batch, result: Ok(()) })));
}
