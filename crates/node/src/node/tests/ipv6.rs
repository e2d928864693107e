//! Pods with IPv6 addresses.

use std::net::IpAddr;

use pool::PICTURE_LAG_MAX;
use types::{EniId, Ipv6Prefix};

use super::*;
use crate::hold::Hold;
use crate::store::Ipv6Books;

fn primary() -> EniId {
    "eni-0".parse().unwrap()
}

fn prefix() -> Ipv6Prefix {
    "2001:db8:0:1:4a2f::/80".parse().unwrap()
}

fn asked(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::AssignIpv6(eni) if eni.as_str() == "eni-0"))
}

fn no_ipv6(kind: CloudErrorKind) -> Event {
    Event::Ipv6Assigned(primary(), Err(CloudError::new(kind, "AssignIpv6Addresses", "no")))
}

/// The addresses that the first pod to be wired gets.
fn wired(effects: &[Effect]) -> Vec<IpAddr> {
    let wire = effects.iter().find_map(|effect| match effect {
        Effect::Wire(_, pods) => Some(pods[0].addresses.clone()),
        _ => None,
    });
    wire.unwrap_or_default()
}

/// The picture of what is there, as EC2 has it: with these prefixes.
fn pictured(world: &mut World, prefixes: &[Ipv6Prefix]) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_secs(60));
    let ipv6_prefixes = [(primary(), prefixes.iter().copied().collect())].into();
    let enis = world.node.pool.enis();
    let picture = Picture { as_of: world.now, enis, ipv6_prefixes, ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    world.converge(&effects)
}

#[test]
fn a_pod_of_both_families_waits_for_the_prefix_and_hears_of_both_addresses() {
    let mut world = World::of(Families::Dual).made_ready(3);
    let (id, effects) = world.add("web");
    assert!(wired(&effects).is_empty(), "{effects:?}");
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::NoIpv6);

    let effects = world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));

    let ipv4 = Ipv4Addr::new(10, 0, 0, 10);
    assert_eq!(wired(&effects), [IpAddr::V4(ipv4), IpAddr::V6(prefix().beside(ipv4))]);
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    let Some(Reply::Added(added)) = reply(&effects) else { panic!("{effects:?}") };
    assert_eq!(added.interfaces[0].address.to_string(), "10.0.0.10/32");
    assert_eq!(added.interfaces[0].other.unwrap().to_string(), "2001:db8:0:1:4a2f:0:a00:a/128");
}

#[test]
fn the_prefix_is_asked_for_once_and_not_again_before_ec2_wants() {
    let mut world = World::of(Families::Dual);
    let (_, first) = world.add("early");
    assert!(!asked(&first));
    world = world.made_ready(3);
    assert!(!asked(&world.handle(Event::Tick)), "it is being asked for");

    assert!(!asked(&world.handle(no_ipv6(CloudErrorKind::Throttled))));
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::Throttled);
    world.now = world.now.plus(Duration::from_secs(5));
    assert!(asked(&world.handle(Event::Tick)));
}

#[test]
fn an_answer_that_was_lost_is_looked_for_before_another_prefix_is_asked_for() {
    let mut world = World::of(Families::Dual).made_ready(3);
    world.handle(no_ipv6(CloudErrorKind::Unclear));
    world.now = world.now.plus(Duration::from_secs(5));
    let effects = world.handle(Event::Tick);
    assert!(!asked(&effects) && effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");

    assert!(!asked(&pictured(&mut world, &[prefix()])));

    assert_eq!(world.node.report(world.now).ipv6_prefix, Some(prefix()));
}

#[test]
fn a_picture_that_lags_does_not_take_the_prefix_and_a_later_one_does() {
    let mut world = World::of(Families::Dual).made_ready(3);
    world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));
    world.added("web");
    let old = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(old)));
    world.converge(&effects);
    assert_eq!(world.node.report(world.now).ipv6_prefix, Some(prefix()));
    assert!(!asked(&pictured(&mut world, &[])), "it may still be of before the prefix was given");

    world.now = world.now.plus(PICTURE_LAG_MAX);
    assert!(asked(&pictured(&mut world, &[])));

    let pods = world.node.report(world.now).pods;
    assert_eq!(pods[0].other.map(|ip| ip.to_string()).as_deref(), Some("2001:db8:0:1:4a2f:0:a00:a"));
}

#[test]
fn a_pod_of_an_ipv6_node_hears_of_its_ipv6_address_alone() {
    let mut world = World::of(Families::V6 { egress: true }).made_ready(3);
    world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));
    let (id, effects) = world.add("web");

    let local = Ipv4Addr::new(169, 254, 172, 2);
    assert_eq!(wired(&effects), [IpAddr::V4(local), IpAddr::V6(prefix().beside(local))]);
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    let Some(Reply::Added(added)) = reply(&effects) else { panic!("{effects:?}") };
    assert_eq!(added.interfaces[0].address.to_string(), "2001:db8:0:1:4a2f:0:a9fe:ac02/128");
    assert_eq!(added.interfaces[0].other, None);
}

#[test]
fn an_ipv6_node_asks_ec2_for_nothing_but_the_prefix_and_translates_all_that_is_ipv4() {
    let mut world = World::of(Families::V6 { egress: true }).made_ready(3);
    let effects = world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Act { .. })), "{effects:?}");

    world.now = world.now.plus(Duration::from_secs(60));
    let effects = world.handle(Event::Tick);

    let wish = effects.iter().find_map(|effect| match effect {
        Effect::Converge { host, .. } => Some(host),
        _ => None,
    });
    let wish = wish.expect("a round");
    assert!(wish.no_snat.is_empty() && wish.node.ipv6);
    assert_eq!(wish.local.unwrap().to_string(), "169.254.172.0/22");
    let report = world.node.report(world.now);
    assert_eq!((report.capacity, report.addresses.free), (1021, 1021));
}

#[test]
fn nothing_is_asked_for_where_nothing_may_be_changed() {
    let mut world = World::of(Families::Dual);
    world.handle(Event::Held(Hold::Changes));
    let (_, _) = world.add("web");
    world = world.made_ready(3);

    assert!(!asked(&world.handle(Event::Tick)));
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::OnHold);
}

/// A node whose pods have IPv4 addresses and leave by this IPv6 address.
fn egress_world(address: &str) -> World {
    let mut world = World::of(Families::V4 { egress: true }).made_ready(3);
    world.handle(Event::NodeIpv6(address.parse().unwrap()));
    world
}

#[test]
fn a_pod_of_an_ipv4_node_with_egress_has_an_address_beside_its_own_and_hears_of_ipv4_alone() {
    let mut world = egress_world("2001:db8::7");
    let (id, effects) = world.add("web");

    let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = wired(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(ipv6, Ipv6Prefix::LOCAL.beside(ipv4));
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    let Some(Reply::Added(added)) = reply(&effects) else { panic!("{effects:?}") };
    assert_eq!((added.interfaces[0].address.ip(), added.interfaces[0].other), (IpAddr::V4(ipv4), None));
    assert_eq!(world.node.report(world.now).pods[0].other, None);
}

#[test]
fn without_an_ipv6_address_of_the_node_new_pods_have_none_and_the_status_says_why() {
    let mut world = World::of(Families::V4 { egress: true }).made_ready(3);
    let (_, effects) = world.add("web");

    assert!(matches!(wired(&effects)[..], [IpAddr::V4(_)]), "{effects:?}");
    let told = world.node.report(world.now).cloud;
    assert!(told.iter().any(|line| line.starts_with(Reason::NoIpv6.word())), "{told:?}");

    world.handle(Event::NodeIpv6("2001:db8::7".parse().unwrap()));
    let (_, effects) = world.add("later");
    assert!(matches!(wired(&effects)[..], [IpAddr::V4(_), IpAddr::V6(_)]), "{effects:?}");
    assert_eq!(world.node.report(world.now).cloud, Vec::<String>::new());
}

/// A node whose pods get IPv4 alone, and whose primary ENI has a prefix that was asked for before the mode was switched off.
fn after_dual(ours: Option<Ipv6Prefix>) -> World {
    let mut world = World::of(Families::V4 { egress: false }).made_ready(3);
    world.node.remember_ipv6(Ipv6Books { ours, left: None });
    world
}

/// What is being written down of the prefix.
fn books(effects: &[Effect]) -> Option<(BatchId, Ipv6Books)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Append(batch, records) => match records.as_slice() {
            [Record::Ipv6(books)] => Some((*batch, *books)),
            _ => None,
        },
        _ => None,
    })
}

fn given_back(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::ReleaseIpv6(eni, given) if eni.as_str() == "eni-0" && *given == prefix())
    })
}

#[test]
fn a_prefix_that_was_asked_for_is_remembered() {
    let mut world = World::of(Families::Dual).made_ready(3);

    let effects = world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));

    let (_, written) = books(&effects).expect("a record");
    assert_eq!(written, Ipv6Books { ours: Some(prefix()), left: None });
}

#[test]
fn a_prefix_of_ours_goes_back_once_it_is_on_disk_that_it_goes_and_is_not_taken_for_there_by_a_late_picture() {
    let mut world = after_dual(Some(prefix()));
    let effects = pictured(&mut world, &[prefix()]);
    let (batch, written) = books(&effects).expect("a record");
    assert_eq!(written, Ipv6Books { ours: Some(prefix()), left: Some((prefix(), world.now)) });
    assert!(!given_back(&effects) && books(&world.handle(Event::Tick)).is_none());

    assert!(given_back(&world.handle(Event::Written { batch, result: Ok(()) })));

    let effects = world.handle(Event::Ipv6Released(Ok(())));
    assert_eq!(books(&effects).map(|(_, books)| books.ours), Some(None));
    let mut restarted = World::of(Families::Dual);
    restarted.now = world.now;
    let (_, written) = books(&effects).unwrap();
    restarted.node.remember_ipv6(written);
    restarted = restarted.made_ready(3);
    let late = Picture {
        as_of: restarted.now,
        enis: restarted.node.pool.enis(),
        ipv6_prefixes: [(primary(), [prefix()].into())].into(),
        ..Picture::default()
    };
    let effects = restarted.handle(Event::Looked(Ok(late)));
    restarted.converge(&effects);
    assert_eq!(restarted.node.report(restarted.now).ipv6_prefix, None);
}

#[test]
fn a_prefix_of_somebody_else_or_one_that_a_pod_has_an_address_of_stays() {
    let mut of_others = after_dual(None);
    assert_eq!(books(&pictured(&mut of_others, &[prefix()])), None);

    let mut world = World::of(Families::Dual).made_ready(3);
    world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));
    world.added("web");
    // As a restart with another setting would leave it.
    world.node.settings.families = Families::V4 { egress: false };
    assert_eq!(books(&pictured(&mut world, &[prefix()])), None);

    let sandbox = world.node.pool.owners().next().map(|(owner, _)| owner.sandbox.clone()).unwrap();
    let effects = world.handle(Event::Dead(vec![sandbox]));
    assert!(books(&effects).is_some(), "the last pod that had one is gone: {effects:?}");
}

#[test]
fn a_prefix_stays_where_nothing_may_be_given_back() {
    for hold in [Hold::Releases, Hold::Changes] {
        let mut world = after_dual(Some(prefix()));
        world.handle(Event::Held(hold));
        assert_eq!(books(&pictured(&mut world, &[prefix()])), None, "{hold:?}");
        assert!(books(&world.handle(Event::Held(Hold::Nothing))).is_some());
    }
    let mut stopping = after_dual(Some(prefix()));
    stopping.handle(Event::Stopping);
    assert_eq!(books(&pictured(&mut stopping, &[prefix()])), None);
    // The brake is put on while it is being written down.
    let mut late = after_dual(Some(prefix()));
    let (batch, _) = books(&pictured(&mut late, &[prefix()])).unwrap();
    late.handle(Event::Held(Hold::Releases));
    assert!(!given_back(&late.handle(Event::Written { batch, result: Ok(()) })));
    let mut refused = after_dual(Some(prefix()));
    let (batch, _) = books(&pictured(&mut refused, &[prefix()])).unwrap();
    let result = Err("no space left".to_owned());
    assert!(!given_back(&refused.handle(Event::Written { batch, result })), "the intent is not on disk");
}

#[test]
fn that_ec2_does_not_take_the_prefix_back_is_told_and_tried_again_later() {
    let mut world = after_dual(Some(prefix()));
    let (batch, _) = books(&pictured(&mut world, &[prefix()])).unwrap();
    world.handle(Event::Written { batch, result: Ok(()) });
    let denied = CloudError::new(CloudErrorKind::Denied, "UnassignIpv6Addresses", "no");

    let effects = world.handle(Event::Ipv6Released(Err(denied)));

    assert_eq!(books(&effects), None);
    let told = world.node.report(world.now).cloud;
    let says = |line: &String| line.starts_with(Reason::Denied.word()) && line.contains("4a2f::/80");
    assert!(told.iter().any(says), "{told:?}");
    world.now = world.now.plus(Duration::from_secs(600));
    assert!(books(&world.handle(Event::Tick)).is_some());
}

#[test]
fn pods_with_addresses_of_a_prefix_that_is_lost_are_told_in_the_status() {
    let mut world = World::of(Families::Dual).made_ready(3);
    world.handle(Event::Ipv6Assigned(primary(), Ok(prefix())));
    world.added("web");
    assert_eq!(world.node.report(world.now).cloud, Vec::<String>::new());
    world.now = world.now.plus(PICTURE_LAG_MAX);

    let effects = pictured(&mut world, &[]);

    assert!(asked(&effects));
    assert_eq!(books(&effects).map(|(_, books)| books.ours), Some(None));
    let told = world.node.report(world.now).cloud;
    let says = |line: &String| line.starts_with(Reason::NoIpv6.word()) && line.contains("default/web");
    assert!(told.iter().any(says), "{told:?}");
    // The new one does not bring the old address back.
    world.handle(Event::Ipv6Assigned(primary(), Ok("2001:db8:0:1:5::/80".parse().unwrap())));
    assert!(world.node.report(world.now).cloud.iter().any(says));
}
