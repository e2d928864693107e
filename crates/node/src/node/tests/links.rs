//! ENIs whose links are late: nobody gets an address there, and nobody waits for them for ever.

use super::estate::look;
use super::reasons::with_a_full_eni;
use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

/// A secondary ENI with so many addresses.
fn secondary(addresses: u8) -> EniSeen {
    EniSeen {
        id: "eni-5".parse().unwrap(),
        mac: MAC,
        card: NetworkCard(0),
        device: DeviceIndex(1),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: Ipv4Addr::new(10, 0, 0, 50),
        addresses: (51..51 + addresses).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect(),
        prefixes: BTreeSet::new(),
        role: Role::Secondary,
    }
}

/// Answers the wish that is among the effects, and those that follow from that; the link of the ENI is there, or not.
fn answer(world: &mut World, effects: &[Effect], there: bool) -> Vec<Effect> {
    if wished(effects).is_none() {
        return Vec::new();
    }
    let mut effects = answer_once(world, effects, there);
    let more = answer(world, &effects, there);
    effects.extend(more);
    effects
}

/// Answers that one alone.
fn answer_once(world: &mut World, effects: &[Effect], there: bool) -> Vec<Effect> {
    let generation = wished(effects).expect("a wish");
    let missing = if there { BTreeSet::new() } else { [MAC].into() };
    let made = HostMade { missing, ..HostMade::default() };
    world.handle(Event::Converged { generation, result: Ok(made) })
}

/// Lets so many seconds pass without the link; what was done meanwhile.
fn without_link(world: &mut World, seconds: u64) -> Vec<Effect> {
    let until = world.now.plus(Duration::from_secs(seconds));
    let mut all = Vec::new();
    while world.now < until {
        world.now = world.node.next_wakeup(world.now).min(until);
        let mut effects = world.handle(Event::Tick);
        let more = answer(world, &effects, false);
        effects.extend(more);
        if effects.iter().any(|effect| matches!(effect, Effect::Look)) {
            let enis = world.node.pool.enis();
            let found = Picture { as_of: world.now, enis, ..Picture::default() };
            let told = world.handle(Event::Looked(Ok(found)));
            effects.extend(answer(world, &told, false));
        }
        all.extend(effects);
    }
    all
}

fn wires(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Wire(..)))
}

/// A node that has just started; a picture shows an ENI whose link is not there yet, as it was attached shortly before.
fn started_before_the_link() -> World {
    let mut world = World::ready(0);
    world.node.settings.targets = Targets { warm_ip: Some(1), ..Targets::default() };
    let mut picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    picture.enis.push(secondary(3));
    let effects = world.handle(Event::Looked(Ok(picture)));
    answer(&mut world, &effects, false);
    world
}

#[test]
fn no_pod_gets_an_address_of_an_eni_that_a_picture_brings_before_its_link_is_there() {
    let mut world = started_before_the_link();

    let (_, effects) = world.add("a");
    assert!(!wires(&effects), "{effects:?}");
    let effects = without_link(&mut world, 3);
    assert!(!wires(&effects) && action(&effects).is_none(), "it is about to come: {effects:?}");

    world.now = world.node.next_wakeup(world.now);
    let effects = world.handle(Event::Tick);
    assert!(wires(&answer(&mut world, &effects, true)));
}

#[test]
fn a_pod_stays_on_an_eni_whose_link_goes_and_no_other_comes_to_it() {
    let mut world = World::ready(0);
    look(&mut world, |picture| picture.enis.push(secondary(3)));
    world.added("a");
    world.handle(Event::Touched);
    without_link(&mut world, 1);

    let (_, effects) = world.add("b");

    assert!(!wires(&effects), "{effects:?}");
    assert_eq!(world.node.report(world.now).addresses.assigned, 1);
    let on = world.node.report(world.now).enis.into_iter().find(|eni| eni.mac == MAC);
    assert_eq!(on.unwrap().excluded.as_deref(), Some("its link is not there yet"));
}

/// Pods wait on a full node, and the ENI that was made for them has no link.
fn made_without_link() -> World {
    let mut world = with_a_full_eni(3);
    world.node.settings.add_timeout = Duration::from_secs(7200);
    let asked: Vec<Vec<Effect>> = (0..5).map(|n| world.add(&format!("late-{n}")).1).collect();
    let (id, asked) = asked.iter().find_map(|effects| action(effects)).expect("a call");
    assert!(matches!(asked, Action::CreateEni { .. }), "{asked}");
    let made = Outcome::Created(Box::new(secondary(5)));
    let effects = world.handle(Event::Acted { id, result: Ok(made) });
    answer(&mut world, &effects, false);
    world
}

#[test]
fn a_new_eni_whose_link_does_not_come_is_told_and_another_is_asked_for() {
    let mut world = made_without_link();
    assert_eq!(action(&without_link(&mut world, 15)), None);

    let effects = without_link(&mut world, 15);

    let asked = action(&effects).map(|(_, action)| action);
    assert!(matches!(asked, Some(Action::CreateEni { device: DeviceIndex(2), .. })), "{asked:?}");
    let said = world.node.report(world.now).cloud.join("\n");
    assert!(said.contains("eni-5 is attached at device 1, and no link has its MAC"), "{said}");
    assert!(!wires(&effects), "{effects:?}");
}

#[test]
fn ec2_is_looked_at_ever_less_often_for_a_link_that_does_not_come() {
    let mut world = made_without_link();
    world.node.hold = crate::hold::Hold::Changes;

    let effects = without_link(&mut world, 7200);

    let looks = effects.iter().filter(|effect| matches!(effect, Effect::Look)).count();
    assert!((5..=14).contains(&looks), "{looks} looks in two hours");
}

#[test]
fn a_link_that_comes_late_makes_its_eni_useful() {
    let mut world = made_without_link();
    let effects = without_link(&mut world, 30);
    assert!(!wires(&effects));

    let effects: Vec<Effect> = (0..40)
        .flat_map(|_| {
            world.now = world.now.plus(Duration::from_secs(1));
            let effects = world.handle(Event::Tick);
            answer(&mut world, &effects, true)
        })
        .collect();

    let wired = effects.iter().filter(|effect| matches!(effect, Effect::Wire(..))).count();
    assert_eq!(wired, 5, "{effects:?}");
    assert_eq!(world.node.report(world.now).cloud, Vec::<String>::new());
}

#[test]
fn an_eni_without_a_link_that_somebody_took_away_leaves_its_place() {
    let mut world = made_without_link();
    without_link(&mut world, 60);

    let mut enis = world.node.pool.enis();
    enis.retain(|eni| eni.mac != MAC);
    let effects = world.handle(Event::Looked(Ok(Picture { as_of: world.now, enis, ..Picture::default() })));
    answer(&mut world, &effects, false);

    assert!(world.node.pool.enis().iter().all(|eni| eni.mac != MAC));
}

/// The ENI that a wish among the effects leads an address out by.
pub(super) fn led_by(effects: &[Effect], address: Ipv4Addr) -> Option<Mac> {
    let wish = effects.iter().find_map(|effect| match effect {
        Effect::Converge { host, .. } => Some(host),
        _ => None,
    });
    let enis = wish.expect("a wish").node.enis.iter();
    let sources = enis.flat_map(|eni| eni.sources.iter().map(|source| (*source, eni.mac)));
    let leads = sources.filter(|(source, _)| source.contains(address));
    leads.max_by_key(|(source, _)| source.prefix()).map(|(_, mac)| mac)
}

#[test]
fn an_address_is_led_out_by_the_eni_that_was_given_it_whatever_an_older_picture_shows() {
    let mut world = World::new();
    world.handle(Event::Held(crate::hold::Hold::Changes));
    let mut world = world.made_ready(0);
    look(&mut world, |picture| picture.enis.push(secondary(2)));
    let before = world.node.pool.enis();
    let moved = Ipv4Addr::new(10, 0, 0, 51);
    let given = || Given::addresses([moved].into());
    let pool = &mut world.node.pool;
    let id = pool.begin(&Action::Release { eni: before[1].id.clone(), given: given() });
    pool.finish(id, Outcome::Released, world.now);
    let id = pool.begin(&Action::Assign { eni: before[0].id.clone(), wanted: Wanted::Addresses(1) });
    pool.finish(id, Outcome::Assigned(given()), world.now);
    world.now = world.now.plus(Duration::from_secs(60));

    let picture = Picture { as_of: world.now, enis: before.clone(), ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    assert_eq!(led_by(&effects, moved), Some(before[0].mac));
    world.converge(&effects);

    // Somebody has moved it back, and EC2 had time enough to notice.
    world.now = world.now.plus(Duration::from_secs(600));
    let picture = Picture { as_of: world.now, enis: before.clone(), ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    assert_eq!(led_by(&effects, moved), Some(before[1].mac));
}

#[test]
fn of_two_enis_that_calls_have_given_an_address_the_last_one_leads_it_out() {
    let mut world = World::ready(0);
    look(&mut world, |picture| picture.enis.push(secondary(3)));
    let moved = Ipv4Addr::new(10, 0, 0, 71);
    let (card, device, wanted) = (NetworkCard(0), DeviceIndex(2), Wanted::Addresses(1));
    let other = EniSeen {
        id: "eni-6".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 6]),
        device,
        primary_address: Ipv4Addr::new(10, 0, 0, 70),
        addresses: [moved].into(),
        ..secondary(0)
    };
    let (mac, subnet) = (other.mac, other.subnet.clone());
    let made = world.node.pool.begin(&Action::CreateEni { card, device, subnet, wanted });
    let asked = world.node.pool.begin(&Action::Assign { eni: secondary(0).id, wanted });

    // The link of the first does not come: somebody has deleted that ENI at once.
    let result = Ok(Outcome::Created(Box::new(other)));
    let effects = world.handle(Event::Acted { id: made, result });
    assert_eq!(led_by(&effects, moved), Some(mac));
    let generation = wished(&effects).expect("a wish");
    let result = Ok(Outcome::Assigned(Given::addresses([moved].into())));
    world.handle(Event::Acted { id: asked, result });
    let made = HostMade { missing: [mac].into(), ..HostMade::default() };
    world.handle(Event::Converged { generation, result: Ok(made) });
    world.now = world.now.plus(Duration::from_secs(1));

    assert_eq!(led_by(&world.handle(Event::Tick), moved), Some(MAC));
}

#[test]
fn pods_keep_their_way_out_by_an_eni_that_becomes_somebody_elses() {
    let mut world = World::ready(0);
    look(&mut world, |picture| picture.enis.push(secondary(3)));
    world.added("a");
    let held = world.node.pool.owners().next().unwrap().1.address;
    look(&mut world, |picture| picture.enis[1].role = Role::Unmanaged);
    assert_eq!(world.node.report(world.now).addresses.free, 0);

    let change = |n: u8| Event::Ranges(vec![format!("10.{n}.0.0/16").parse().unwrap()]);
    let effects = world.handle(change(1));
    assert_eq!(led_by(&effects, held), Some(MAC));
    assert_eq!(led_by(&effects, Ipv4Addr::new(10, 0, 0, 53)), None);
    world.converge(&effects);

    world.del("a", 200);
    assert_eq!(led_by(&world.handle(change(2)), held), None);
}

#[test]
fn a_setting_that_the_kernel_does_not_take_keeps_no_pod_from_an_eni_and_is_told() {
    let mut world = World::ready(0);
    let mut picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    picture.enis.push(secondary(3));
    let effects = world.handle(Event::Looked(Ok(picture)));
    let generation = wished(&effects).expect("a wish");
    let unset = vec!["sysctl -w net/ipv4/conf/ens6/rp_filter=2: Read-only file system".to_owned()];
    let made = HostMade { unset: unset.clone(), ..HostMade::default() };
    world.handle(Event::Converged { generation, result: Ok(made) });

    let (_, effects) = world.add("a");

    assert!(wires(&effects), "{effects:?}");
    let told = world.node.report(world.now).cloud;
    assert!(told.iter().any(|line| line.contains(&unset[0])), "{told:?}");
}

#[test]
fn what_ec2_does_not_take_back_is_for_pods_again_once_the_kernel_leads_there() {
    let mut world = World::ready(0);
    look(&mut world, |picture| picture.enis.push(secondary(3)));
    let eni = secondary(3);
    let id = world.node.pool.begin(&Action::DeleteEni { eni: eni.id });
    let effects = world.handle(Event::Ranges(vec!["10.1.0.0/16".parse().unwrap()]));
    assert_eq!(led_by(&effects, Ipv4Addr::new(10, 0, 0, 51)), None);
    world.converge(&effects);

    let throttled = CloudError::new(CloudErrorKind::Throttled, "DetachNetworkInterface", "slow down");
    let effects = world.handle(Event::Acted { id, result: Err(throttled) });
    assert_eq!(led_by(&effects, Ipv4Addr::new(10, 0, 0, 51)), Some(MAC));
    let (_, waits) = world.add("a");
    assert!(!wires(&waits), "{waits:?}");

    assert!(wires(&world.converge(&effects)));
}

#[test]
fn a_picture_that_a_call_was_in_the_way_of_waits_for_a_wish_with_its_eni() {
    let mut world = World::ready(0);
    let (card, device) = (NetworkCard(0), DeviceIndex(1));
    let subnet = secondary(0).subnet;
    let making = Action::CreateEni { card, device, subnet, wanted: Wanted::Addresses(1) };
    let id = world.node.pool.begin(&making);
    let address = Ipv4Addr::new(10, 0, 0, 51);
    let mut picture = Picture { as_of: world.now, enis: world.node.pool.enis(), ..Picture::default() };
    picture.enis.push(secondary(1));
    let first = world.handle(Event::Looked(Ok(picture)));
    assert_eq!(led_by(&first, address), None, "that may be the ENI that is being made");

    let refused = CloudError::new(CloudErrorKind::Other, "AttachNetworkInterface", "no");
    world.handle(Event::Acted { id, result: Err(refused) });
    let second = world.converge(&first);
    let (_, waits) = world.add("a");
    assert!(!wires(&waits), "the kernel does not lead there yet: {waits:?}");

    assert_eq!(led_by(&second, address), Some(MAC));
    assert!(wires(&world.converge(&second)));
}

#[test]
fn a_picture_waits_for_another_wish_when_an_eni_turns_out_to_be_stuck() {
    let mut world = World::ready(0);
    let (card, device) = (NetworkCard(0), DeviceIndex(1));
    let subnet = secondary(0).subnet;
    let id = world.node.pool.begin(&Action::CreateEni { card, device, subnet, wanted: Wanted::Addresses(1) });
    let made = Outcome::Created(Box::new(secondary(1)));
    let effects = world.handle(Event::Acted { id, result: Ok(made) });
    answer(&mut world, &effects, true);
    // Somebody takes it away; descriptions may lack what was just made, until its link is missing for too long.
    let effects = world.handle(Event::Touched);
    answer(&mut world, &effects, false);
    without_link(&mut world, 19);
    let has = |world: &World| world.node.pool.enis().iter().any(|eni| eni.mac == MAC);
    let enis = world.node.pool.enis().into_iter().filter(|eni| eni.mac != MAC).collect();
    let picture = Picture { as_of: world.now, enis, ..Picture::default() };
    let mut effects = world.handle(Event::Looked(Ok(picture)));
    while wished(&effects).is_none() {
        world.now = world.node.next_wakeup(world.now);
        effects = world.handle(Event::Tick);
    }
    world.now = world.now.plus(Duration::from_secs(3));

    let effects = answer_once(&mut world, &effects, false);

    assert!(has(&world), "what the picture brings without it the last wish does not have");
    answer_once(&mut world, &effects, false);
    assert!(!has(&world));
}
