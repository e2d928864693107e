//! When the runtime is told that there is a network.

use super::*;
use crate::cluster::{News, NodeObject};

fn published(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Publish))
}

/// Makes a world ready with so many addresses; and whether it has published by then.
fn made_ready(mut world: World, addresses: u8) -> (World, bool) {
    let effects = world.first_look(addresses);
    let early = published(&effects);
    let told = published(&world.converge(&effects));
    (world, told && !early)
}

/// A fresh node that is cordoned asks for nothing before pods come, and some come all the same.
fn cordoned() -> World {
    let mut world = World::new();
    let object = NodeObject { unschedulable: true, ..NodeObject::default() };
    world.handle(Event::Cluster(News::Node(Box::new(object))));
    world
}

#[test]
fn a_node_with_a_free_address_publishes_once() {
    let (mut world, told) = made_ready(World::new(), 2);

    assert!(told);
    world.add("a");
    assert!(!published(&world.handle(Event::Tick)));
}

#[test]
fn a_node_that_still_waits_for_its_first_address_does_not_publish() {
    let (mut world, told) = made_ready(World::new(), 0);

    assert!(!told);
    let denied = CloudError::new(CloudErrorKind::Denied, "AssignPrivateIpAddresses", "no");
    assert!(!published(&world.handle(Event::Acted { id: ActionId(1), result: Err(denied) })));
}

#[test]
fn a_node_that_keeps_nothing_at_hand_publishes_what_it_can_obtain() {
    assert!(made_ready(cordoned(), 0).1);
}

#[test]
fn a_node_that_may_obtain_nothing_does_not_publish() {
    let mut world = cordoned();
    world.node.settings.provisioning = false;

    assert!(!made_ready(world, 0).1);
}
