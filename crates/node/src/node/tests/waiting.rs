//! Those who wait: what they are told, and what is done for them while EC2 refuses or is silent.

use std::time::Duration;

use types::Reason;
use wire::{Failure, Reply, Request, Verb};

use super::{World, attachment, batch, reply};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::node::{CallId, Effect, Event};
use crate::store::Record;

/// Whether the ENIs are looked at soon after the first call was refused like this.
fn looks_after(kind: CloudErrorKind) -> bool {
    let mut world = World::new();
    let effects = world.first_look(0);
    let effects = world.converge(&effects);
    let id = effects.iter().find_map(|effect| match effect {
        Effect::Act { id, .. } => Some(*id),
        _ => None,
    });
    let refused = CloudError::new(kind, "AttachNetworkInterface", "no");
    world.handle(Event::Acted { id: id.expect("a call"), result: Err(refused) });
    world.now = world.now.plus(Duration::from_secs(60));
    world.handle(Event::Tick).iter().any(|effect| matches!(effect, Effect::Look))
}

fn wired(effects: &[Effect]) -> Vec<CallId> {
    let wired = effects.iter().filter_map(|effect| match effect {
        Effect::Wire(id, _) => Some(*id),
        _ => None,
    });
    wired.collect()
}

#[test]
fn a_place_that_somebody_else_has_taken_leads_to_a_look() {
    assert!(looks_after(CloudErrorKind::InUse));
    assert!(looks_after(CloudErrorKind::EniLimit));
    assert!(!looks_after(CloudErrorKind::Denied));
    assert!(!looks_after(CloudErrorKind::NoPlace));
}

#[test]
fn under_a_silent_ec2_an_add_takes_a_cooling_address_rather_than_none_and_those_with_time_do_not() {
    let mut world = World::new();
    world.node.settings.add_timeout = Duration::from_secs(10);
    let mut world = world.made_ready(2);
    for name in ["a", "b"] {
        world.added(name);
        world.del(name, 200);
    }
    let (first, effects) = world.add("c");
    assert!(wired(&effects).is_empty());
    world.now = world.now.plus(Duration::from_secs(5));
    let (_later, effects) = world.add("d");
    assert!(wired(&effects).is_empty());

    world.now = world.now.plus(Duration::from_secs(3));
    let effects = world.handle(Event::Tick);

    assert!(world.node.growing(types::NetworkCard(0)), "the call is still under way");
    assert_eq!(wired(&effects), [first]);
}

#[test]
fn each_add_that_waits_is_looked_after_when_its_own_time_is_nearly_up() {
    let mut world = World::new();
    world.node.settings.add_timeout = Duration::from_secs(10);
    let mut world = world.made_ready(0);
    world.add("a");
    world.now = world.now.plus(Duration::from_secs(1));
    world.add("b");
    let next = |world: &World| world.node.queue_wakeup(world.now).map(|at| at.since(world.now));

    assert_eq!(next(&world), Some(Duration::from_secs(7)));
    world.now = world.now.plus(Duration::from_millis(7_500));
    assert_eq!(next(&world), Some(Duration::from_millis(500)), "the second one, before the first one's end");
}

#[test]
fn the_cause_of_a_wait_outlives_the_callers_patience() {
    let mut world = World::ready(0);
    let (id, _) = world.add("web");
    world.now = world.now.plus(Duration::from_secs(3));

    let effects = world.handle(Event::Gone(id));

    let waited = effects.iter().any(
        |effect| matches!(effect, Effect::Waited(Reason::PoolEmpty, time) if *time == Duration::from_secs(3)),
    );
    let told = said(&effects, id).and_then(Reply::failure).map(|failure| failure.reason);
    assert!(waited, "{effects:?}");
    assert_eq!(told, Some(Reason::PoolEmpty));
    let reasons = world.node.report(world.now).reasons;
    let kept: Vec<_> = reasons.iter().map(|entry| (entry.reason, entry.failed, entry.waited)).collect();
    assert_eq!(kept, [(Reason::PoolEmpty, 1, 1)]);
}

fn said(effects: &[Effect], to: CallId) -> Option<&Reply> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(id, reply) if *id == to => Some(reply),
        _ => None,
    })
}

/// The disk does not answer until the caller's patience is at its end.
pub(super) fn too_late() -> World {
    let mut world = World::ready(1);
    let (id, effects) = world.add("slow");
    let written = batch(&effects).expect("an append");
    assert!(said(&world.handle(Event::Wired { id, result: Ok(()) }), id).is_none());

    let due = world.node.queue_wakeup(world.now).expect("a time");
    world.now = due;
    let effects = world.handle(Event::Tick);
    let failure = said(&effects, id).and_then(Reply::failure).expect("a failure");
    assert!(failure.message.starts_with("the disk is not done"), "{}", failure.message);
    assert!(said(&world.handle(Event::Tick), id).is_none(), "it is answered once");

    // What was begun is undone when it ends, and nobody is told a second time.
    let effects = world.handle(Event::Written { batch: written, result: Ok(()) });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    assert!(said(&effects, id).is_none(), "{effects:?}");
    let addresses = world.node.report(world.now).addresses;
    assert_eq!((addresses.assigned, addresses.reserved, addresses.cooling), (0, 0, 1));
    world
}

#[test]
fn a_caller_whose_time_is_up_is_answered_while_the_disk_is_still_at_work() {
    too_late();
}

#[test]
fn a_del_after_a_late_answer_is_answered_once_the_add_is_undone() {
    let mut world = World::ready(1);
    let (id, effects) = world.add("slow");
    let written = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    world.now = world.now.plus(Duration::from_secs(600));
    assert!(said(&world.handle(Event::Tick), id).is_some());
    assert!(reply(&world.del("slow", 200)).is_none(), "the disk has not answered");

    let effects = world.handle(Event::Written { batch: written, result: Ok(()) });
    let undone = batch(&effects).expect("the release");
    assert!(reply(&effects).is_none(), "{effects:?}");
    let effects = world.handle(Event::Written { batch: undone, result: Ok(()) });

    assert!(matches!(reply(&effects), Some(Reply::Done)), "{effects:?}");
}

#[test]
fn what_falls_due_while_an_event_is_handled_is_looked_at_next() {
    let mut world = World::ready(2);
    let (first, _) = world.add("a");
    world.now = world.now.plus(Duration::from_millis(1));
    let (second, _) = world.add("b");
    let due = world.node.queue_wakeup(world.now).expect("a time");

    world.now = due;
    let effects = world.handle(Event::Tick);
    assert!(said(&effects, first).is_some() && said(&effects, second).is_none());
    // That took its time.
    let later = world.now.plus(Duration::from_millis(20));
    assert!(world.node.next_wakeup(later) <= later);

    world.now = later;
    assert!(said(&world.handle(Event::Tick), second).is_some());
}

#[test]
fn however_short_a_callers_patience_the_work_for_a_pod_has_some_of_it() {
    for (patience_ms, held_ms) in [(90_000, 60_000), (20_000, 17_500), (2_500, 1_500)] {
        let mut world = World::ready(0);
        let verb = Verb::Add(attachment("a", "a"));
        let request = Request { version: wire::PROTOCOL, patience_ms, started_ns: 1, trace: None, verb };
        world.handle(Event::Call { id: CallId(7), request, descriptors: true });

        let deadline = world.node.queue_wakeup(world.now.plus(Duration::from_secs(100))).expect("a time");
        assert_eq!(deadline.since(world.now), Duration::from_millis(held_ms), "{patience_ms}");
    }
}

#[test]
fn a_refusal_that_comes_after_the_answer_frees_the_address_and_is_told_to_nobody() {
    let mut world = World::ready(1);
    let (id, effects) = world.add("slow");
    let written = batch(&effects).expect("an append");
    world.now = world.now.plus(Duration::from_secs(600));
    let told = world.handle(Event::Tick);
    let failure = said(&told, id).and_then(Reply::failure).expect("a failure");
    assert!(failure.message.starts_with("kernel and disk are not done"), "{}", failure.message);
    world.handle(Event::Written { batch: written, result: Ok(()) });

    let refusal = Failure::new(Reason::KernelRefused, "no");
    let effects = world.handle(Event::Wired { id, result: Err(refusal) });

    assert!(said(&effects, id).is_none(), "{effects:?}");
    let addresses = world.node.report(world.now).addresses;
    assert_eq!((addresses.free, addresses.reserved, addresses.cooling), (1, 0, 0));
}

/// An ADD of a pod that is there already is refused by the kernel; a DEL comes before that, or not. What follows.
fn repeated_in_vain(world: &mut World, deleted: bool) -> Vec<Effect> {
    world.added("a");
    let (id, effects) = world.add("a");
    let written = batch(&effects).expect("an append");
    world.handle(Event::Written { batch: written, result: Ok(()) });
    if deleted {
        assert!(reply(&world.del("a", 200)).is_none());
    }
    let refusal = Failure::new(Reason::KernelRefused, "no");
    let effects = world.handle(Event::Wired { id, result: Err(refusal) });
    assert_eq!(said(&effects, id).and_then(Reply::failure).map(|f| f.reason), Some(Reason::KernelRefused));
    effects
}

/// What the disk is told that sandboxes have given back.
fn released(effects: &[Effect]) -> usize {
    let records = effects.iter().filter_map(|effect| match effect {
        Effect::Append(_, records) => Some(records),
        _ => None,
    });
    records.flatten().filter(|record| matches!(record, Record::Released { .. })).count()
}

#[test]
fn a_pod_whose_repeated_add_the_kernel_refuses_keeps_its_address_on_disk_too() {
    let mut world = World::ready(3);

    let effects = repeated_in_vain(&mut world, false);

    // A start that read of a release would take away what may be a living pod's.
    assert_eq!(released(&effects), 0, "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    assert_eq!(world.node.report(world.now).addresses.assigned, 1);
}

#[test]
fn a_pod_that_is_deleted_while_its_repeated_add_fails_is_released_in_memory_too() {
    let mut world = World::ready(3);

    let effects = repeated_in_vain(&mut world, true);

    assert_eq!(released(&effects), 1, "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    let addresses = world.node.report(world.now).addresses;
    assert_eq!((addresses.assigned, addresses.reserved, addresses.cooling), (0, 0, 1));
    let undone = batch(&effects).expect("the release");
    let effects = world.handle(Event::Written { batch: undone, result: Ok(()) });
    assert!(matches!(reply(&effects), Some(Reply::Done)), "{effects:?}");
}
