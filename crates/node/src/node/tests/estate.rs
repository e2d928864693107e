//! What belongs to the node in EC2: chores, strays, subnets, and what an operator holds back.

use pool::PICTURE_LAG_MAX;

use super::*;
use crate::hold::Hold;

fn chores(effects: &[Effect]) -> Vec<Chore> {
    let chores = |effect: &Effect| match effect {
        Effect::Tidy(chores) => chores.clone(),
        _ => Vec::new(),
    };
    effects.iter().flat_map(chores).collect()
}

/// What follows from a look at what is there already, changed by `change`.
pub(super) fn look(world: &mut World, change: impl FnOnce(&mut Picture)) -> Vec<Effect> {
    let mut picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    change(&mut picture);
    let effects = world.handle(Event::Looked(Ok(picture)));
    world.converge(&effects)
}

fn stray(made: Moment) -> Stray {
    Stray { eni: "eni-7".parse().unwrap(), made }
}

#[test]
fn a_stray_is_deleted_once_it_is_old_and_was_seen_twice() {
    let mut world = World::ready(4);
    let made = Moment(0);
    let minutes = |world: &mut World, n: u64| world.now = world.now.plus(Duration::from_secs(60 * n));

    assert_eq!(chores(&look(&mut world, |picture| picture.strays.push(stray(made)))), []);
    minutes(&mut world, 1);
    assert_eq!(chores(&look(&mut world, |picture| picture.strays.push(stray(made)))), []);
    // Attached for a while: then it begins anew.
    minutes(&mut world, 5);
    assert_eq!(chores(&look(&mut world, |_| ())), []);
    minutes(&mut world, 1);
    assert_eq!(chores(&look(&mut world, |picture| picture.strays.push(stray(made)))), []);
    minutes(&mut world, 6);
    let effects = look(&mut world, |picture| picture.strays.push(stray(made)));
    assert_eq!(chores(&effects), [Chore::Delete("eni-7".parse().unwrap())]);
}

#[test]
fn a_stray_whose_maker_has_a_fast_clock_is_left_alone() {
    let mut world = World::ready(4);
    let made = world.now.plus(Duration::from_secs(3000));
    for _ in 0..3 {
        assert_eq!(chores(&look(&mut world, |picture| picture.strays.push(stray(made)))), []);
        world.now = world.now.plus(Duration::from_secs(900));
    }
}

#[test]
fn tags_wait_until_the_first_pods_are_served() {
    let mut world = World::ready(4);
    let tag = Chore::Tag { eni: "eni-0".parse().unwrap(), tags: BTreeMap::new() };

    assert_eq!(chores(&look(&mut world, |picture| picture.chores.push(tag.clone()))), []);
    world.now = world.now.plus(Duration::from_secs(301));
    assert_eq!(chores(&look(&mut world, |picture| picture.chores.push(tag.clone()))), [tag]);
}

#[test]
fn what_may_not_be_done_is_not_tried_again_before_the_next_audit() {
    for (kind, soon) in [(CloudErrorKind::Denied, false), (CloudErrorKind::Throttled, true)] {
        let mut world = World::ready(4);
        world.handle(Event::Tidied(Err(CloudError::new(kind, "CreateTags", "no"))));
        assert_eq!(world.node.cloud.look_at.since(world.now) < Duration::from_secs(400), soon, "{kind:?}");
    }
}

#[test]
fn an_operator_holds_back_releases_and_lets_go_again() {
    let mut world = World::new();
    world.handle(Event::Held(Hold::Releases));
    let mut world = world.made_ready(12);
    for _ in 0..2 {
        world.now = world.now.plus(Duration::from_secs(150));
        let round = world.handle(Event::Tick);
        world.converge(&round);
    }

    // Three are wanted, so nine would go, and a forgotten ENI too.
    let picture = with_a_forgotten_eni(&world);
    let effects = world.handle(Event::Looked(Ok(picture.clone())));
    let effects = world.converge(&effects);
    assert!(!tidies(&effects) && batch(&effects).is_none(), "{effects:?}");
    assert!(world.node.report(world.now).cloud[0].contains("on-hold"));

    let effects = world.handle(Event::Held(Hold::Nothing));
    assert!(batch(&effects).is_some(), "{effects:?}");
    let effects = world.handle(Event::Looked(Ok(picture)));
    assert!(tidies(&world.converge(&effects)));
}

#[test]
fn an_operator_holds_back_everything_and_pods_hear_of_it() {
    let mut world = World::new();
    world.handle(Event::Held(Hold::Changes));
    let mut world = world.made_ready(0);
    let (_, effects) = world.add("a");
    assert_eq!(action(&effects), None);
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::OnHold);

    let effects = world.handle(Event::Held(Hold::Nothing));
    assert!(action(&effects).is_some(), "{effects:?}");
    assert_eq!(world.node.report(world.now).cloud, Vec::<String>::new());
}

#[test]
fn a_daemon_that_ends_begins_nothing() {
    let mut world = World::new();
    world.handle(Event::Stopping);
    let mut world = world.made_ready(0);

    let (_, effects) = world.add("a");

    assert_eq!(action(&effects), None);
}

#[test]
fn whose_an_eni_is_stays_known_when_only_instance_metadata_answers() {
    let mut world = World::ready(2);
    let mut other = world.node.pool.enis()[0].clone();
    other.id = "eni-5".parse().unwrap();
    other.mac = Mac([2, 0, 0, 0, 0, 5]);
    other.device = DeviceIndex(1);
    other.primary_address = Ipv4Addr::new(10, 0, 0, 50);
    other.addresses = [Ipv4Addr::new(10, 0, 0, 51)].into();
    other.role = Role::Secondary;
    look(&mut world, |picture| picture.enis.push(other.clone()));

    // EC2 has gone away; without tags, nothing that has no tag of ours would be used.
    let blind = |picture: &mut Picture| {
        picture.from_metadata = true;
        picture.enis.retain(|eni| eni.id != other.id);
        picture.enis.push(EniSeen { role: Role::Unmanaged, ..other.clone() });
    };
    look(&mut world, blind);

    let roles: Vec<Role> = world.node.pool.enis().iter().map(|eni| eni.role).collect();
    assert_eq!(roles, [Role::Primary, Role::Secondary]);
}

/// An ENI of which nobody has told whose it is, with this address.
fn unknown_eni(world: &World, address: Ipv4Addr) -> EniSeen {
    EniSeen {
        id: "eni-5".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 5]),
        device: DeviceIndex(1),
        primary_address: Ipv4Addr::new(10, 0, 0, 50),
        addresses: [address].into(),
        role: Role::Unmanaged,
        ..world.node.pool.enis()[0].clone()
    }
}

/// The roles of a node's ENIs when instance metadata, which tells no tags, shows an unknown ENI with the address that a pod has had
/// since before the start; the first descriptions had it on the primary ENI, or on none.
fn roles_with_an_unknown_eni_of_a_pod(on_the_primary: bool) -> Vec<Role> {
    let mut world = World::ready(2);
    world.added("a");
    let held = world.node.pool.owners().next().unwrap().1.address;
    let mut snapshot = world.node.pool.snapshot();
    if !on_the_primary {
        snapshot.enis.clear();
    }
    let mut restarted = World::new();
    restarted.node.pool = Pool::restore(snapshot, Duration::from_secs(30), restarted.now);
    let mut restarted = restarted.made_ready(if on_the_primary { 2 } else { 0 });
    assert_eq!(restarted.node.pool.owners().next().unwrap().1.place.is_some(), on_the_primary);
    let eni = unknown_eni(&restarted, held);
    restarted.now = restarted.now.plus(Duration::from_secs(60));
    look(&mut restarted, |picture| {
        picture.from_metadata = true;
        picture.enis[0].addresses.remove(&held);
        picture.enis.push(eni);
    });
    restarted.node.pool.enis().iter().map(|eni| eni.role).collect()
}

#[test]
fn pods_on_an_eni_make_it_ours_when_only_instance_metadata_answers() {
    assert_eq!(roles_with_an_unknown_eni_of_a_pod(false), [Role::Primary, Role::Secondary]);
}

#[test]
fn an_address_that_was_taken_from_a_pod_makes_no_eni_ours() {
    assert_eq!(roles_with_an_unknown_eni_of_a_pod(true), [Role::Primary, Role::Unmanaged]);

    // Nor when it was on none for a while.
    let mut world = World::ready(8);
    world.added("a");
    let held = world.node.pool.owners().next().unwrap().1.address;
    world.now = world.now.plus(Duration::from_secs(600));
    let lacking = |picture: &mut Picture| {
        picture.from_metadata = true;
        picture.enis[0].addresses.remove(&held);
    };
    look(&mut world, lacking);
    assert!(world.node.pool.owners().next().unwrap().1.place.is_none());
    world.now = world.now.plus(Duration::from_secs(60));
    let other = unknown_eni(&world, held);
    look(&mut world, |picture| {
        lacking(picture);
        picture.enis.push(other);
    });
    assert_eq!(world.node.pool.enis()[1].role, Role::Unmanaged);
}

#[test]
fn new_enis_go_where_the_tags_of_the_subnets_say() {
    let mut world = World::new();
    world.node.settings.targets = Targets { warm_ip: Some(12), ..Targets::default() };
    world.handle(Event::Held(Hold::Changes));
    let mut world = world.made_ready(9);
    let choice = Subnets { for_new: vec!["subnet-2".parse().unwrap()], ..Subnets::default() };

    look(&mut world, |picture| picture.choice = Some(choice));
    let effects = world.handle(Event::Held(Hold::Nothing));

    let (_, action) = action(&effects).expect("an action");
    assert!(matches!(action, Action::CreateEni { subnet, .. } if subnet.as_str() == "subnet-2"), "{action}");
}

/// A secondary ENI of this role, with three addresses.
fn second(world: &World, role: Role) -> EniSeen {
    EniSeen {
        id: "eni-1".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        device: DeviceIndex(1),
        primary_address: Ipv4Addr::new(10, 0, 1, 4),
        addresses: (10..13).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect(),
        role,
        ..world.node.pool.enis()[0].clone()
    }
}

#[test]
fn what_somebody_elses_enis_take_up_is_not_counted_on() {
    let mut world = World::ready(4);
    assert_eq!(world.node.report(world.now).capacity, 27);
    let eni = second(&world, Role::Unmanaged);

    look(&mut world, |picture| {
        picture.enis.push(eni);
        picture.occupied.insert((NetworkCard(0), DeviceIndex(2)));
    });

    assert_eq!(world.node.report(world.now).capacity, 9);
}

#[test]
fn metadata_takes_nothing_away_that_it_may_not_know_yet() {
    let mut world = World::ready(0);
    let (_, effects) = world.add("a");
    let id = action(&effects).map_or(ActionId(1), |(id, _)| id);
    let given = Outcome::Assigned(Given::addresses((20..23).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect()));
    let effects = world.handle(Event::Acted { id, result: Ok(given) });
    world.converge(&effects);
    let total = |world: &World| world.node.report(world.now).addresses.total();
    assert_eq!(total(&world), 3);
    let lagging = |world: &mut World| {
        look(world, |picture| {
            picture.from_metadata = true;
            picture.enis[0].addresses.clear();
        });
    };

    // EC2's own answers may lack it for five minutes, and metadata is taken for what EC2 told 50 s before.
    world.now = world.now.plus(PICTURE_LAG_MAX).plus(Duration::from_secs(45));
    lagging(&mut world);
    assert_eq!(total(&world), 3);
    let looks_again = world.node.next_wakeup(world.now);
    assert!(looks_again > world.now, "looks without a pause");

    world.now = world.now.plus(Duration::from_secs(10));
    lagging(&mut world);
    // The pod keeps what it has.
    assert_eq!(total(&world), 1);
}

#[test]
fn what_a_picture_takes_away_is_looked_for_once_more() {
    let mut world = World::ready(3);
    let eni = second(&world, Role::Secondary);
    look(&mut world, |picture| picture.enis.push(eni));
    world.now = world.now.plus(Duration::from_secs(120));

    look(&mut world, |picture| picture.enis.truncate(1));

    world.now = world.now.plus(Duration::from_secs(15));
    let effects = world.handle(Event::Tick);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");
}
