//! What the node object changes.

use super::*;
use crate::cluster::{BranchWish, News, NodeObject, PodNews, PodObject, WarmOverrides};

fn told(object: NodeObject) -> Event {
    Event::Cluster(News::Node(Box::new(object)))
}

fn cordoned() -> NodeObject {
    NodeObject { unschedulable: true, ..NodeObject::default() }
}

fn annotated(key: &str, value: &str) -> NodeObject {
    let annotations = BTreeMap::from([(format!("vpc.amazonaws.com/{key}"), value.to_owned())]);
    NodeObject { warm: WarmOverrides::of(&BTreeMap::new(), &annotations), ..NodeObject::default() }
}

fn asks_for(effects: &[Effect]) -> Option<&Action> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act { action, .. } => Some(action),
        _ => None,
    })
}

/// A node that wants three addresses more than it has.
fn short() -> World {
    let mut world = World::new();
    world.node.settings.targets = Targets { minimum_ip: Some(6), ..Targets::default() };
    world
}

#[test]
fn a_cordoned_node_does_not_grow_for_its_targets_and_an_uncordoned_one_does() {
    let mut world = short();
    world.handle(told(cordoned()));
    let mut world = world.made_ready(3);
    assert_eq!(asks_for(&world.handle(Event::Tick)), None);
    assert!(world.node.report(world.now).cluster[0].starts_with("cordoned: nothing is given back"));

    let effects = world.handle(told(NodeObject::default()));

    assert!(matches!(asks_for(&effects), Some(Action::Assign { .. })), "{effects:?}");
}

#[test]
fn a_pod_that_waits_on_a_cordoned_node_is_served_and_no_more_is_asked_for() {
    let mut world = short();
    world.handle(told(cordoned()));
    let mut world = world.made_ready(0);

    let (_, effects) = world.add("daemonset-pod");

    assert!(
        matches!(asks_for(&effects), Some(Action::Assign { wanted: Wanted::Addresses(1), .. })),
        "{effects:?}"
    );
}

#[test]
fn a_cordoned_node_gives_nothing_back_unless_it_is_managed_as_any_other() {
    for (managed, gives_back) in [(false, false), (true, true)] {
        let mut world = World::new();
        world.node.settings.manage_cordoned = managed;
        world.node.settings.targets = Targets { warm_ip: Some(1), ..Targets::default() };
        world.handle(told(cordoned()));
        let mut world = world.made_ready(9);
        for _ in 0..2 {
            world.now = world.now.plus(Duration::from_secs(150));
            world.handle(Event::Tick);
        }

        let leaves = world.node.report(world.now).addresses.total() < 9;
        assert_eq!(leaves, gives_back);
    }
}

#[test]
fn an_annotation_changes_the_target_of_a_running_node() {
    let mut world = short().made_ready(6);
    assert_eq!(asks_for(&world.handle(Event::Tick)), None);

    let effects = world.handle(told(annotated("minimum-ip-target", "8")));

    assert!(
        matches!(asks_for(&effects), Some(Action::Assign { wanted: Wanted::Addresses(2), .. })),
        "{effects:?}"
    );
}

#[test]
fn the_kubelets_limit_bounds_the_pool_where_no_setting_does() {
    let mut world = short();
    world.handle(told(NodeObject { max_pods: Some(4), ..NodeObject::default() }));
    let mut world = world.made_ready(4);
    assert_eq!(asks_for(&world.handle(Event::Tick)), None);

    world.node.settings.targets.max_pods = Some(5);
    let effects = world.handle(Event::Tick);
    assert!(matches!(asks_for(&effects), Some(Action::Assign { wanted: Wanted::Addresses(1), .. })));
}

#[test]
fn trouble_with_the_api_server_changes_nothing_but_the_status() {
    let mut world = short();
    world.handle(told(cordoned()));
    let mut world = world.made_ready(3);

    world.handle(Event::Cluster(News::Trouble("connection refused".to_owned())));

    assert_eq!(asks_for(&world.handle(Event::Tick)), None);
    let lines = world.node.report(world.now).cluster;
    assert_eq!((lines.len(), lines[1].as_str()), (2, "connection refused"));
    let effects = world.handle(Event::Cluster(News::NoNode));
    assert!(asks_for(&effects).is_some(), "a node that is not there is not cordoned: {effects:?}");
}

#[test]
fn a_node_without_cpu_for_another_pod_keeps_hardly_anything_free() {
    let pod = |name: &str, cpu| PodObject {
        name: attachment(name, name).pod,
        uid: String::new(),
        branch: BranchWish::No,
        cpu,
        gets_address: true,
    };
    let says = |news| Event::Cluster(News::Pods(news));
    let mut world = World::new();
    world.node.settings.targets = Targets { automatic: true, ..Targets::default() };
    world.handle(told(NodeObject { cpu: Some(2_000), ..NodeObject::default() }));
    world.handle(says(PodNews::Is(pod("early", 1_999))));
    assert_eq!(world.node.full(world.now), None, "full before all pods were told");
    world.handle(says(PodNews::All(vec![pod("a", 1_000), pod("b", 900)])));
    let effects = world.first_look(3);
    let effects = world.converge(&effects);
    assert!(matches!(asks_for(&effects), Some(Action::Assign { .. })), "{effects:?}");

    let mut world = World::new();
    world.node.settings.targets = Targets { automatic: true, ..Targets::default() };
    world.handle(told(NodeObject { cpu: Some(2_000), ..NodeObject::default() }));
    world.handle(says(PodNews::All(vec![pod("a", 1_000), pod("b", 900)])));
    world.handle(says(PodNews::Is(pod("c", 1))));
    let effects = world.first_look(3);
    let effects = world.converge(&effects);
    assert_eq!(asks_for(&effects), None);
    assert!(world.node.report(world.now).cluster[0].contains("without CPU for another pod"));

    // Pods that were bound a moment ago are still to come; one that needs no address is not.
    assert_eq!(world.node.full(world.now), Some(3));
    world.added("a");
    world.handle(says(PodNews::Is(PodObject { gets_address: false, ..pod("b", 900) })));
    assert_eq!(world.node.full(world.now), Some(1));

    // As a rule another pod takes the place of one that ends.
    let ended = PodObject { gets_address: false, ..pod("a", 0) };
    let effects = world.handle(says(PodNews::Is(ended.clone())));
    assert_eq!(asks_for(&effects), None);
    assert_eq!(world.node.full(world.now), Some(1));
    world.now = world.now.plus(Duration::from_secs(60));
    let effects = world.handle(Event::Tick);
    assert!(matches!(asks_for(&effects), Some(Action::Assign { .. })), "{effects:?}");
    world.handle(says(PodNews::Gone(ended.name)));
    world.handle(says(PodNews::Trouble("connection refused".to_owned())));
    assert_eq!(world.node.full(world.now), None);
    let lines = world.node.report(world.now).cluster;
    assert!(
        lines.contains(&"whether another pod fits is not known: connection refused".to_owned()),
        "{lines:?}"
    );
    world.handle(told(NodeObject::default()));
    assert_eq!(world.node.cpu_left(), None);
}
