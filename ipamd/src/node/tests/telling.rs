//! What people who look at a pod in the cluster hear of it.

use super::*;
use crate::cluster::About;

/// The reasons of events that are to be written of pods.
pub(super) fn told(effects: &[Effect]) -> Vec<&'static str> {
    let notes = effects.iter().filter_map(|effect| match effect {
        Effect::Tell(note) => Some(note.reason),
        _ => None,
    });
    notes.collect()
}

#[test]
fn a_pod_that_is_held_is_told_of_after_some_seconds_and_once_for_each_reason() {
    let mut world = World::ready(0);
    let (_, effects) = world.add("web");
    assert!(told(&effects).is_empty());
    let next = world.node.next_wakeup(world.now).since(world.now);
    assert!(next <= Duration::from_secs(3), "{next:?}");

    world.now = world.now.plus(Duration::from_secs(3));
    assert_eq!(told(&world.handle(Event::Tick)), ["pool-empty"]);
    world.now = world.now.plus(Duration::from_secs(5));
    assert!(told(&world.handle(Event::Tick)).is_empty());
    let full = CloudError::new(CloudErrorKind::Throttled, "AssignPrivateIpAddresses", "slow down");
    let effects = world.handle(Event::Acted { id: ActionId(1), result: Err(full) });
    assert_eq!(told(&effects), ["throttled"]);
}

#[test]
fn an_event_names_the_pod_and_its_uid_and_has_the_numbers() {
    let mut world = World::ready(0);
    let told = Attachment { pod_uid: "u-1".to_owned(), ..attachment("c", "web") };
    world.ask(Verb::Add(told), 100);
    world.now = world.now.plus(Duration::from_secs(3));

    let effects = world.handle(Event::Tick);

    let note = effects.iter().find_map(|effect| match effect {
        Effect::Tell(note) => Some(note),
        _ => None,
    });
    let note = note.expect("a note");
    let About::Pod(pod) = &note.about else { panic!("{note:?}") };
    assert_eq!((pod.name.to_string().as_str(), pod.uid.as_str()), ("default/web", "u-1"));
    assert!(note.text.starts_with("pool-empty: held for want of an address; 0 assigned"), "{}", note.text);
}

#[test]
fn nothing_is_told_of_what_is_no_pod_or_was_deleted_or_outside_of_a_cluster() {
    let silent = |pod: PodName, in_cluster| {
        let mut world = World::ready(0);
        world.node.settings.in_cluster = in_cluster;
        world.ask(Verb::Add(Attachment { pod, ..attachment("c", "web") }), 100);
        world.now = world.now.plus(Duration::from_secs(61));
        told(&world.handle(Event::Tick)).is_empty()
    };
    let name =
        |namespace: &str, name: &str| PodName { namespace: namespace.to_owned(), name: name.to_owned() };
    assert!(silent(PodName::default(), true));
    assert!(silent(name("../nodes", "web"), true));
    assert!(silent(name("default", "web"), false));
    assert!(!silent(name("default", "web"), true));

    let mut world = World::ready(0);
    world.add("web");
    assert!(told(&world.del("web", 200)).is_empty());
}
