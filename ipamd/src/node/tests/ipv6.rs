//! Pods with IPv6 addresses.

use std::net::IpAddr;

use pool::PICTURE_LAG_MAX;
use types::Ipv6Prefix;

use super::*;

fn prefix() -> Ipv6Prefix {
    "2001:db8:0:1:4a2f::/80".parse().unwrap()
}

fn asked(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::AssignIpv6(eni) if eni.as_str() == "eni-0"))
}

fn no_ipv6(kind: CloudErrorKind) -> Event {
    Event::Ipv6Assigned(Err(CloudError::new(kind, "AssignIpv6Addresses", "no")))
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
    let ipv6_prefixes = prefixes.iter().copied().collect();
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

    let effects = world.handle(Event::Ipv6Assigned(Ok(prefix())));

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
    world.handle(Event::Ipv6Assigned(Ok(prefix())));
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
    world.handle(Event::Ipv6Assigned(Ok(prefix())));
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
    let effects = world.handle(Event::Ipv6Assigned(Ok(prefix())));
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
    world.handle(Event::Held(crate::hold::Hold::Changes));
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
