//! Custom networking: where new ENIs go, and what holds while nobody says so.

use types::SecurityGroupId;

use super::estate::look;
use super::*;
use crate::cluster::{EniConfig, EniConfigName, EniConfigNews, NameKeys, News, NodeObject};
use crate::hold::Hold;

const KEY: &str = "k8s.amazonaws.com/eniConfig";

/// A node whose primary ENI has so many addresses.
pub(super) fn custom(addresses: u8) -> World {
    let mut world = World::new();
    world.node.settings.custom_networking = true;
    world.made_ready(addresses)
}

/// The node object names an ENIConfig; an empty name is no name.
fn name(world: &mut World, name: &str) -> Vec<Effect> {
    let labels = (!name.is_empty()).then(|| (KEY.to_owned(), name.to_owned()));
    let keys = NameKeys { annotation: KEY.to_owned(), label: KEY.to_owned() };
    let named = EniConfigName::of(&labels.into_iter().collect(), &BTreeMap::new(), &keys);
    let object = NodeObject { eni_config: Some(named), ..NodeObject::default() };
    world.handle(Event::Cluster(News::Node(Box::new(object))))
}

fn groups(of: &[&str]) -> Vec<SecurityGroupId> {
    of.iter().map(|id| id.parse().unwrap()).collect()
}

fn says(world: &mut World, of: &str, news: EniConfigNews) -> Vec<Effect> {
    world.handle(Event::Cluster(News::EniConfig(of.to_owned(), news)))
}

fn is(subnet: &str, of: &[&str]) -> EniConfigNews {
    EniConfigNews::Is(EniConfig { subnet: subnet.parse().unwrap(), groups: groups(of) })
}

/// A look that tells these subnets.
fn listed(world: &mut World, subnets: &[&str]) -> Vec<Effect> {
    look(world, |picture| {
        let range = |(n, id): (u8, &&str)| (id.parse().unwrap(), format!("100.64.{n}.0/24").parse().unwrap());
        picture.subnets = (0..).zip(subnets).map(range).collect();
        picture.choice = Some(Subnets::default());
    })
}

/// A node without addresses that is making an ENI where its ENIConfig says.
pub(super) fn placed() -> World {
    let mut world = custom(0);
    name(&mut world, "zone-a");
    says(&mut world, "zone-a", is("subnet-2", &["sg-2"]));
    assert!(made(&listed(&mut world, &["subnet-2"])).is_some());
    world
}

/// The ENI that is being made.
fn made(effects: &[Effect]) -> Option<(String, Vec<SecurityGroupId>)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act { action: Action::CreateEni { subnet, .. }, groups, .. } => {
            Some((subnet.to_string(), groups.clone()))
        }
        _ => None,
    })
}

fn line(world: &World) -> String {
    world.node.report(world.now).cloud.join("\n")
}

fn waits_for(world: &World) -> Option<Reason> {
    world.node.report(world.now).waiting.first().map(|waiting| waiting.reason)
}

/// A secondary ENI with so many addresses.
fn secondary(world: &World, addresses: u8) -> EniSeen {
    EniSeen {
        id: "eni-1".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        device: DeviceIndex(1),
        primary_address: Ipv4Addr::new(10, 0, 1, 4),
        addresses: (10..10 + addresses).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect(),
        role: Role::Secondary,
        ..world.node.pool.enis()[0].clone()
    }
}

#[test]
fn a_new_eni_goes_where_the_eni_config_says_once_the_way_there_is_known() {
    let mut world = custom(4);
    let (_, effects) = world.add("a");
    assert!(batch(&effects).is_none(), "an address of the primary ENI is given");
    assert_eq!((made(&effects), waits_for(&world)), (None, Some(Reason::NoEniConfig)));

    name(&mut world, "zone-a");
    assert!(line(&world).contains("ENIConfig \"zone-a\""), "{}", line(&world));
    let effects = says(&mut world, "zone-a", is("subnet-2", &["sg-2", "sg-3"]));
    assert_eq!(made(&effects), None);
    world.now = world.now.plus(Duration::from_secs(3));
    let effects = world.handle(Event::Tick);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");
    assert!(line(&world).contains("EC2 does not list"), "{}", line(&world));

    let effects = listed(&mut world, &["subnet-2"]);
    assert_eq!(made(&effects), Some(("subnet-2".to_owned(), groups(&["sg-2", "sg-3"]))));
    assert_eq!(line(&world), "");
    assert_eq!(waits_for(&world), Some(Reason::PoolEmpty));
}

#[test]
fn what_the_primary_eni_has_goes_back_and_it_holds_no_pods() {
    let mut world = custom(4);
    let eni = secondary(&world, 3);

    look(&mut world, |picture| picture.enis.push(eni));

    // Nothing else could make room for what the targets ask for, so it goes even before the other ENI is seen.
    let leaving: Vec<_> = world.node.intents.values().filter_map(|(_, action)| action.leaving()).collect();
    let [leaving] = leaving.as_slice() else { panic!("{leaving:?}") };
    let leaving = leaving.clone();
    assert_eq!((leaving.eni.as_str(), leaving.given.unwrap().addresses.len()), ("eni-0", 4));
    let report = world.node.report(world.now);
    assert!(report.enis[0].excluded.is_some() && report.enis[1].excluded.is_none());
    assert_eq!(report.capacity, 18);
    world.added("a");
    assert_eq!(world.node.report(world.now).pods[0].eni, Some("eni-1".parse().unwrap()));
}

#[test]
fn enis_that_are_there_serve_pods_while_nothing_is_heard_of_an_eni_config() {
    let mut world = custom(0);
    assert_eq!(world.node.report(world.now).not_ready.len(), 1);
    let (_, effects) = world.ask(Verb::Status, 1);
    assert_eq!(failure(&effects).map(|failure| failure.reason), Some(Reason::NoEniConfig));
    world.node.settings.targets.minimum_ip = Some(9);
    let eni = secondary(&world, 9);
    look(&mut world, |picture| picture.enis.push(eni));

    assert_eq!(world.node.report(world.now).not_ready, Vec::<String>::new());
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));
    world.add("one-more");
    assert_eq!(waits_for(&world), Some(Reason::NoEniConfig));
    assert!(line(&world).contains("the node object, which names the ENIConfig, is not known"));
}

#[test]
fn what_was_known_outlives_nonsense_and_silence_but_not_the_object_nor_its_name() {
    let mut world = custom(0);
    name(&mut world, "zone-a");
    says(&mut world, "zone-a", is("subnet-1", &[]));
    assert_eq!(line(&world), "");

    let wrong = EniConfigNews::Wrong("it has no spec.subnet".to_owned());
    says(&mut world, "zone-a", wrong);
    let told = world.node.report(world.now).cluster.join("\n");
    assert!(told.contains("cannot be used: it has no spec.subnet"), "{told}");
    says(&mut world, "zone-a", EniConfigNews::Trouble("connection refused".to_owned()));
    // The node object comes again, and something late of another object.
    name(&mut world, "zone-a");
    says(&mut world, "zone-b", EniConfigNews::Absent);
    assert_eq!(line(&world), "");

    says(&mut world, "zone-a", EniConfigNews::Absent);
    assert!(line(&world).ends_with("names, does not exist"), "{}", line(&world));
    says(&mut world, "zone-a", is("subnet-1", &[]));
    name(&mut world, "zone-b");
    assert!(
        line(&world).contains("\"zone-b\"") && line(&world).contains("not been told"),
        "{}",
        line(&world)
    );
    name(&mut world, "Zone B");
    assert!(line(&world).contains("no object can have that name"), "{}", line(&world));
}

#[test]
fn a_changed_eni_config_is_for_new_enis_only() {
    let mut world = custom(0);
    world.handle(Event::Held(Hold::Changes));
    name(&mut world, "");
    says(&mut world, "default", is("subnet-1", &["sg-2"]));
    let eni = secondary(&world, 9);
    look(&mut world, |picture| picture.enis.push(eni));
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));

    says(&mut world, "default", is("subnet-3", &["sg-3"]));
    listed(&mut world, &["subnet-3"]);
    let effects = world.handle(Event::Held(Hold::Nothing));

    assert_eq!(made(&effects), Some(("subnet-3".to_owned(), groups(&["sg-3"]))));
}

/// A look at what is there, by a daemon that EC2 does not tell the subnets.
fn untold(world: &mut World) -> Vec<Effect> {
    look(world, |picture| picture.subnets_untold = true)
}

fn asked_for_range(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::AskRange(subnet, _) if subnet.as_str() == "subnet-2"))
}

/// A node whose new ENI in `subnet-2` was just made, although EC2 does not tell the subnets; and what follows from that.
fn made_without_a_range() -> (World, Vec<Effect>) {
    let mut world = custom(0);
    name(&mut world, "zone-a");
    says(&mut world, "zone-a", is("subnet-2", &[]));
    let effects = untold(&mut world);
    assert_eq!(made(&effects), Some(("subnet-2".to_owned(), Vec::new())));
    assert_eq!(line(&world), "");
    let (id, _) = action(&effects).unwrap();
    let eni = EniSeen { subnet: "subnet-2".parse().unwrap(), ..secondary(&world, 3) };
    let effects = world.handle(Event::Acted { id, result: Ok(Outcome::Created(Box::new(eni))) });
    (world, effects)
}

#[test]
fn an_eni_in_a_subnet_that_ec2_does_not_tell_joins_once_metadata_has_told_its_range() {
    let (mut world, effects) = made_without_a_range();
    assert!(asked_for_range(&effects), "{effects:?}");
    assert!(!asked_for_range(&world.converge(&effects)), "it is being asked");
    let (_, effects) = world.add("a");
    assert_eq!((batch(&effects), waits_for(&world)), (None, Some(Reason::PoolEmpty)));

    let range = "10.0.1.0/24".parse().unwrap();
    let effects = world.handle(Event::Range("subnet-2".parse().unwrap(), Ok(range)));
    assert!(batch(&effects).is_none(), "a pod is on an ENI without a way out");
    let wired = effects.iter().any(|effect| {
        matches!(effect, Effect::Converge { host, .. } if host.node.enis.iter().any(|eni| eni.subnet == range))
    });
    assert!(wired, "{effects:?}");

    assert!(batch(&world.converge(&effects)).is_some(), "{effects:?}");
}

#[test]
fn a_range_that_cannot_be_is_not_believed_and_asked_for_again() {
    let (mut world, effects) = made_without_a_range();
    world.converge(&effects);
    let subnet = || "subnet-2".parse().unwrap();
    let error = CloudError::new(CloudErrorKind::Unreachable, "instance metadata", "no answer");
    for told in [Ok("192.168.0.0/24".parse().unwrap()), Err(error)] {
        let effects = world.handle(Event::Range(subnet(), told));
        assert!(!asked_for_range(&effects));
        assert!(line(&world).starts_with("cloud-unreachable: "), "{}", line(&world));

        world.now = world.node.next_wakeup(world.now).max(world.now.plus(Duration::from_secs(8)));
        assert!(asked_for_range(&world.handle(Event::Tick)));
    }
    world.handle(Event::Range(subnet(), Ok("10.0.1.0/24".parse().unwrap())));
    assert_eq!(line(&world), "");
}

#[test]
fn a_picture_with_an_eni_whose_range_is_not_known_takes_nothing_away_and_keeps_its_place() {
    let (mut world, effects) = made_without_a_range();
    world.converge(&effects);
    // Of a daemon before: EC2 shows it, and instance metadata does not yet.
    let other = EniSeen {
        id: "eni-2".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 2]),
        device: DeviceIndex(2),
        subnet: "subnet-3".parse().unwrap(),
        ..secondary(&world, 3)
    };
    let own = EniSeen { subnet: "subnet-2".parse().unwrap(), ..secondary(&world, 3) };
    world.now = world.now.plus(Duration::from_secs(60));

    look(&mut world, |picture| {
        picture.subnets_untold = true;
        picture.enis.extend([own, other.clone()]);
    });

    let enis = world.node.report(world.now).enis;
    assert!(enis.iter().all(|eni| eni.id != other.id), "an ENI without a way out has joined");
    // The new one has waited for too long: it is out of use.
    let out = |eni: &wire::EniReport| eni.subnet.as_str() != "subnet-2" || eni.excluded.is_some();
    assert!(enis.iter().all(out), "{enis:?}");
    let range = "10.0.1.0/24".parse().unwrap();
    let effects = world.handle(Event::Range("subnet-2".parse().unwrap(), Ok(range)));
    let effects = world.converge(&effects);
    let enis = world.node.report(world.now).enis;
    assert!(enis.len() == 2 && enis[1].excluded.is_none(), "the new ENI was given up: {enis:?}");
    assert_eq!(made(&effects), None, "the place of the other one is free");
}

#[test]
fn what_ec2_refused_before_does_not_hide_that_no_eni_config_is_known() {
    let mut world = custom(0);
    let error = CloudError::new(CloudErrorKind::Throttled, "DescribeSubnets", "later");
    world.handle(Event::Looked(Err(error)));

    world.add("a");

    assert_eq!(waits_for(&world), Some(Reason::NoEniConfig));
}

#[test]
fn a_changed_eni_config_is_tried_at_once_after_one_that_ec2_did_not_know() {
    let mut world = placed();
    let error = CloudError::new(CloudErrorKind::NoPlace, "CreateNetworkInterface", "sg-2 does not exist");
    let effects = world.handle(Event::Acted { id: ActionId(1), result: Err(error) });
    assert_eq!(made(&effects), None);
    assert!(line(&world).starts_with("no-eni-config: "), "{}", line(&world));

    let effects = says(&mut world, "zone-a", is("subnet-2", &["sg-3"]));

    assert_eq!(made(&effects), Some(("subnet-2".to_owned(), groups(&["sg-3"]))));
    assert_eq!(line(&world), "");
}
