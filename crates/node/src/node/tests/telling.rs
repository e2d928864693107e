//! What people who look at a pod in the cluster hear of it.

use super::*;
use crate::cluster::{About, EniConfigName, Features, NameKeys, News, NodeObject, PodIp};

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

fn annotations(effects: &[Effect]) -> Vec<&PodIp> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::Annotate(change) => Some(change),
        _ => None,
    });
    all.collect()
}

#[test]
fn an_address_is_written_to_the_pod_once_it_is_told_and_taken_away_on_its_release() {
    let mut world = World::ready(3);
    world.node.settings.annotate_pod_ip = true;
    let (id, effects) =
        world.ask(Verb::Add(Attachment { pod_uid: "u-1".to_owned(), ..attachment("web", "web") }), 100);
    let batch = batch(&effects).expect("an append");
    assert!(annotations(&world.handle(Event::Wired { id, result: Ok(()) })).is_empty());

    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    let set = annotations(&effects)[0].clone();
    assert_eq!((set.pod.uid.as_str(), set.address.to_string().as_str(), set.has), ("u-1", "10.0.0.10", true));
    assert!(matches!(reply(&effects), Some(Reply::Added(_))));
    let effects = world.del("web", 200);
    let removal = annotations(&effects)[0];
    assert_eq!((removal.address, removal.has), (set.address, false));
}

#[test]
fn what_a_killed_daemon_may_not_have_written_is_written_once_it_is_known_which_pods_are_left() {
    let mut world = World::ready(3);
    world.node.settings.annotate_pod_ip = true;
    for name in ["stays", "goes"] {
        world.added(name);
    }
    world.del("goes", 200);

    let effects = world.handle(Event::Replayed);
    let again = annotations(&effects);
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!((again[0].pod.name.name.as_str(), again[0].has), ("stays", true));

    world.now = world.now.plus(Duration::from_secs(300));
    assert!(annotations(&world.handle(Event::Replayed)).is_empty(), "that daemon has had the time for it");
}

#[test]
fn without_the_setting_or_an_address_nothing_is_written_to_pods() {
    let mut world = World::ready(2);
    world.added("a");
    assert!(annotations(&world.del("a", 200)).is_empty());

    world.node.settings.annotate_pod_ip = true;
    let (id, effects) = world.add("b");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Written { batch, result: Ok(()) });
    let no = Failure::new(Reason::KernelRefused, "no");
    assert!(annotations(&world.handle(Event::Wired { id, result: Err(no) })).is_empty());
}

#[test]
fn the_cninode_is_to_name_the_eniconfig_once_for_each_that_the_node_object_names() {
    let keys = NameKeys { annotation: "a".to_owned(), label: "l".to_owned() };
    let named = |name: &str| {
        let labels = BTreeMap::from([("l".to_owned(), name.to_owned())]);
        let eni_config = Some(EniConfigName::of(&labels, &BTreeMap::new(), &keys));
        Event::Cluster(News::Node(Box::new(NodeObject { eni_config, ..NodeObject::default() })))
    };
    let wanted = |effects: &[Effect]| -> Vec<Features> {
        let all = effects.iter().filter_map(|effect| match effect {
            Effect::Features(features) => Some(features.clone()),
            _ => None,
        });
        all.collect()
    };
    let mut world = World::new();
    world.node.settings.custom_networking = true;

    let effects = world.handle(named("zone-a"));
    assert_eq!(wanted(&effects), [BTreeMap::from([("CustomNetworking".to_owned(), "zone-a".to_owned())])]);
    assert!(wanted(&world.handle(named("zone-a"))).is_empty());
    assert_eq!(wanted(&world.handle(named("zone-b"))).len(), 1);
    // No object can be called so, and what cannot be is named nowhere.
    assert_eq!(wanted(&world.handle(named("No_Such"))), [Features::new()]);
}
