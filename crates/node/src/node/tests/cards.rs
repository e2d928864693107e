//! Several network cards: pods with an interface of each, all or none.

use super::*;
use crate::hold::Hold;

/// A world on an instance with four network cards; so many free addresses on the first two, and EFA only on the others.
fn world(free: [u8; 2]) -> World {
    let mut world = identified();
    let effects = look(&mut world, free);
    world.converge(&effects);
    world
}

/// Such a world before its ENIs are known.
pub(super) fn identified() -> World {
    let mut world = World::new();
    world.node.settings.multi_nic = true;
    // What is too much stays.
    world.handle(Event::Held(Hold::Releases));
    let facts = Facts {
        instance: "i-1".parse().unwrap(),
        limits: InstanceTable::builtin().get("p4d.24xlarge").unwrap().clone(),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        subnet: "subnet-1".parse().unwrap(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        ipv6: None,
    };
    world.handle(Event::Identified(Box::new(facts)));
    world
}

pub(super) fn eni(card: u8, addresses: u8) -> EniSeen {
    let role = if card == 0 { Role::Primary } else { Role::Secondary };
    EniSeen {
        id: format!("eni-{card}").parse().unwrap(),
        mac: Mac([2, 0, 0, 0, card, 0]),
        card: NetworkCard(card),
        device: DeviceIndex(0),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: Ipv4Addr::new(10, 0, card, 4),
        addresses: (10..10 + addresses).map(|n| Ipv4Addr::new(10, 0, card, n)).collect(),
        prefixes: BTreeSet::new(),
        role,
    }
}

pub(super) fn look(world: &mut World, free: [u8; 2]) -> Vec<Effect> {
    let subnets = BTreeMap::from([("subnet-1".parse().unwrap(), "10.0.0.0/20".parse().unwrap())]);
    let efa_only = [NetworkCard(2), NetworkCard(3)];
    let picture = Picture {
        as_of: world.now,
        enis: vec![eni(0, free[0]), eni(1, free[1])],
        occupied: efa_only.map(|card| (card, DeviceIndex(1))).into(),
        efa_only: efa_only.into(),
        subnets,
        ..Picture::default()
    };
    world.handle(Event::Looked(Ok(picture)))
}

pub(super) fn add_on_all(world: &mut World, name: &str) -> (CallId, Vec<Effect>) {
    world.ask(Verb::Add(Attachment { multi_nic: true, ..attachment(name, name) }), 100)
}

/// Kernel and disk have done what an ADD needs.
fn ends(world: &mut World, id: CallId, effects: &[Effect]) -> wire::Added {
    let batch = batch(effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    let Some(Reply::Added(added)) = reply(&effects) else { panic!("{effects:?}") };
    added.clone()
}

/// What is wired: the name inside, the number, the address.
fn wired(effects: &[Effect]) -> Vec<(String, u8, String)> {
    let pods = effects.iter().find_map(|effect| match effect {
        Effect::Wire(_, pods) => Some(pods.clone()),
        _ => None,
    });
    let told = |pod: &datapath::PodSpec| (pod.container_if.clone(), pod.index, pod.addresses[0].to_string());
    pods.unwrap_or_default().iter().map(told).collect()
}

pub(super) fn actions(effects: &[Effect]) -> Vec<String> {
    let act = |effect: &Effect| match effect {
        Effect::Act { action, .. } => Some(action.to_string()),
        _ => None,
    };
    effects.iter().filter_map(act).collect()
}

/// Held, free and cooling addresses of the first two cards.
fn counts(world: &World) -> [(u32, u32, u32); 2] {
    [0, 1].map(|card| {
        let counts = world.node.pool.counts_on(NetworkCard(card), world.now);
        (counts.reserved + counts.assigned, counts.free, counts.cooling)
    })
}

#[test]
fn a_pod_gets_an_interface_of_every_card_if_it_asks_and_one_otherwise() {
    let mut world = world([4, 2]);

    let (id, effects) = add_on_all(&mut world, "a");
    let eth0 = ("eth0".to_owned(), 0, "10.0.0.10".to_owned());
    assert_eq!(wired(&effects), [eth0, ("mNicIf1".to_owned(), 1, "10.0.1.10".to_owned())]);
    let added = ends(&mut world, id, &effects);
    let told: Vec<_> =
        added.interfaces.iter().map(|i| (i.host_if.len(), i.container_if.as_str(), i.table.0)).collect();
    assert_eq!(told, [(14, "eth0", 254), (14, "mNicIf1", 10_100)]);
    assert_ne!(added.interfaces[0].host_if, added.interfaces[1].host_if);

    assert_eq!(wired(&world.add("b").1).len(), 1);
    assert_eq!(counts(&world), [(2, 2, 0), (1, 1, 0)]);
}

#[test]
fn one_interface_that_is_gone_is_no_pods_end_and_all_of_them_are() {
    let mut world = world([4, 2]);
    let (id, effects) = add_on_all(&mut world, "a");
    let added = ends(&mut world, id, &effects);
    let lost: Vec<HostVeth> =
        added.interfaces.iter().filter_map(|it| HostVeth::found(it.host_if.as_str())).collect();

    world.handle(Event::PodsCompared { put_back: false, lost: lost[1..].to_vec() });
    assert_eq!(counts(&world), [(1, 3, 0), (1, 1, 0)]);
    world.handle(Event::PodsCompared { put_back: false, lost });
    assert_eq!(counts(&world), [(0, 3, 1), (0, 1, 1)]);
}

#[test]
fn each_failure_gives_back_the_addresses_of_all_cards() {
    for (kernel, disk) in [(false, true), (true, false), (false, false)] {
        let mut world = world([4, 2]);
        let (id, effects) = add_on_all(&mut world, "a");
        let batch = batch(&effects).expect("an append");
        let refused = || Failure::new(Reason::KernelRefused, "no");
        world.handle(Event::Wired { id, result: if kernel { Ok(()) } else { Err(refused()) } });

        let result = if disk { Ok(()) } else { Err("full".to_owned()) };
        let effects = world.handle(Event::Written { batch, result });

        assert!(failure(&effects).is_some(), "{effects:?}");
        let unwired = effects.iter().filter(|effect| matches!(effect, Effect::Unwire(_))).count();
        assert_eq!(unwired, if kernel { 2 } else { 0 });
        // What a packet may have carried cools; what none has is free again.
        let each = if kernel { [(0, 3, 1), (0, 1, 1)] } else { [(0, 4, 0), (0, 2, 0)] };
        assert_eq!(counts(&world), each);
        let released = effects.iter().find_map(|effect| match effect {
            Effect::Append(_, records) => Some(records.len()),
            _ => None,
        });
        assert_eq!(released, Some(2));
    }
}

#[test]
fn a_del_takes_all_interfaces_and_also_those_of_an_add_at_work() {
    let mut world = world([4, 2]);
    let (id, effects) = add_on_all(&mut world, "a");
    let append = batch(&effects).expect("an append");
    let early = world.del("a", 200);
    assert!(reply(&early).is_none(), "it waits until the ADD is undone");
    world.handle(Event::Wired { id, result: Ok(()) });
    world.handle(Event::Written { batch: append, result: Ok(()) });
    assert_eq!(counts(&world), [(0, 3, 1), (0, 1, 1)]);

    let (id, effects) = add_on_all(&mut world, "b");
    let append = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    world.handle(Event::Written { batch: append, result: Ok(()) });
    let effects = world.del("b", 200);
    let unwired = effects.iter().filter(|effect| matches!(effect, Effect::Unwire(_))).count();
    assert_eq!((unwired, counts(&world)), (2, [(0, 2, 2), (0, 0, 2)]));
}

#[test]
fn a_card_without_an_address_is_asked_for_one_and_named_in_the_end() {
    let mut world = world([4, 0]);

    let (_, effects) = add_on_all(&mut world, "a");

    assert!(wired(&effects).is_empty() && reply(&effects).is_none(), "{effects:?}");
    assert_eq!(counts(&world), [(0, 4, 0), (0, 0, 0)]);
    let waiting = world.node.report(world.now).waiting;
    assert_eq!((waiting[0].reason, waiting[0].card), (Reason::PoolEmpty, NetworkCard(1)));
    // Somebody who wants one address is not held up by it.
    assert_eq!(wired(&world.add("b").1).len(), 1);

    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);
    let failure = failure(&effects).expect("a failure");
    assert!(failure.message.contains("network card 1"), "{}", failure.message);
}

#[test]
fn who_has_hung_up_gets_no_address_of_any_card() {
    let mut world = world([4, 0]);
    let (id, _) = add_on_all(&mut world, "a");

    world.handle(Event::Gone(id));
    let effects = look(&mut world, [4, 2]);
    let effects = world.converge(&effects);

    assert!(wired(&effects).is_empty());
    assert_eq!(counts(&world)[0], (0, 4, 0));
}

#[test]
fn cards_above_0_keep_one_address_whatever_the_targets_are() {
    let mut fresh = World::new();
    fresh.node.settings.multi_nic = true;
    fresh.node.settings.targets = Targets { warm_ip: Some(3), minimum_ip: None, ..Targets::default() };
    let limits = InstanceTable::builtin().get("p4d.24xlarge").unwrap().clone();
    let facts = Facts {
        instance: "i-1".parse().unwrap(),
        limits,
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        subnet: "subnet-1".parse().unwrap(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        ipv6: None,
    };
    fresh.handle(Event::Identified(Box::new(facts)));
    let effects = look(&mut fresh, [0, 0]);

    let effects = fresh.converge(&effects);

    assert_eq!(actions(&effects), ["assign 3 addresses to eni-0", "assign 1 addresses to eni-1"]);
    let report = fresh.node.report(fresh.now);
    assert_eq!(report.cards.iter().map(|card| card.card.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(report.capacity, 2 * 15 * 49);
}

#[test]
fn who_wants_one_address_gets_it_of_the_next_card_when_the_first_is_full() {
    let mut world = world([0, 1]);
    world.node.settings.max_enis = Some(1);

    let effects = world.add("a").1;
    assert_eq!(wired(&effects)[0].2, "10.0.1.10");

    // The next one waits for card 0, which may still grow.
    world.add("b");
    let waiting = world.node.report(world.now).waiting;
    assert_eq!((waiting[0].reason, waiting[0].card), (Reason::PoolEmpty, NetworkCard(0)));
}

#[test]
fn a_pod_that_asks_in_vain_is_told_so_at_once() {
    let mut world = World::ready(4);

    let (_, effects) = add_on_all(&mut world, "a");

    assert_eq!(failure(&effects).map(|failure| failure.reason), Some(Reason::NoMultiNic));
    assert_eq!(world.node.pool.counts(world.now).reserved, 0);
}

#[test]
fn a_pod_that_comes_back_waits_for_all_names_of_the_one_before() {
    let mut world = world([4, 3]);
    let (id, effects) = add_on_all(&mut world, "a");
    ends(&mut world, id, &effects);
    let again = Attachment { multi_nic: true, ..attachment("other", "a") };

    let (_, effects) = world.ask(Verb::Add(again), 100);
    assert!(wired(&effects).is_empty());
    let surveyed = effects.iter().find_map(|effect| match effect {
        Effect::Survey(holders) => Some(holders.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()),
        _ => None,
    });
    let main = SandboxKey::new("aws-cni", "a", "eth0").unwrap();
    assert_eq!(surveyed, Some(vec![main.clone(), main.further(1)]));

    let effects = world.handle(Event::Dead(vec![main.clone(), main.further(1)]));
    assert_eq!(wired(&effects).len(), 2);
    assert_eq!(counts(&world), [(1, 2, 1), (1, 1, 1)]);
}

#[test]
fn gc_and_check_know_which_interfaces_belong_together() {
    let mut world = world([4, 3]);
    for name in ["a", "b"] {
        let (id, effects) = add_on_all(&mut world, name);
        let append = batch(&effects).expect("an append");
        world.handle(Event::Wired { id, result: Ok(()) });
        world.handle(Event::Written { batch: append, result: Ok(()) });
    }
    let (_, effects) = world.ask(Verb::Check(attachment("a", "a")), 100);
    let checked = effects.iter().find_map(|effect| match effect {
        Effect::Check(_, pods) => Some(pods.len()),
        _ => None,
    });
    assert_eq!(checked, Some(2));

    let kept = wire::Kept { container_id: "a".to_owned(), if_name: "eth0".to_owned() };
    world.ask(Verb::Gc { network_name: "aws-cni".to_owned(), valid: vec![kept] }, 100);

    assert_eq!(counts(&world), [(1, 2, 1), (1, 1, 1)]);
    let left: Vec<String> = world.node.pool.owners().map(|(owner, _)| owner.sandbox.to_string()).collect();
    assert_eq!(left, ["a/eth0", "a/mNicIf1"]);
}

#[test]
fn all_interfaces_come_back_after_a_restart_and_go_with_one_del() {
    let mut world = world([4, 2]);
    let (_, effects) = add_on_all(&mut world, "a");
    let mut records = vec![Record::Snapshot {
        version: crate::store::VERSION,
        pool: Box::new(pool::Snapshot { enis: vec![eni(0, 4), eni(1, 2)], ..pool::Snapshot::default() }),
        ipv6: crate::store::Ipv6Books::default(),
    }];
    for effect in effects {
        if let Effect::Append(_, more) = effect {
            records.extend(more);
        }
    }
    let kernel: Vec<PodInKernel> = world
        .node
        .pool
        .owners()
        .map(|(owner, grant)| PodInKernel {
            host_if: owner.host_if.clone(),
            addresses: vec![grant.address.into()],
            by_us: true,
            branch: None,
        })
        .collect();
    let loaded = Loaded { records, damage: None, checkpoint: None };
    let restored = restore(Duration::from_secs(30), loaded, &kernel, &mut |_| true, true, world.now);
    assert_eq!(restored.remarks, Vec::<String>::new());
    let mut next = World::new();
    next.node.pool = restored.pool;
    assert_eq!(next.node.pool.owners().count(), 2);

    next.del("a", 200);
    assert_eq!(next.node.pool.owners().count(), 0);

    // With the file lost the kernel alone knows them, and the same DEL finds all of them.
    let lost = restore(Duration::from_secs(30), Loaded::default(), &kernel, &mut |_| true, true, world.now);
    let mut next = World::new();
    next.node.pool = lost.pool;
    assert_eq!(next.node.pool.owners().count(), 2);
    let added = kernel.iter().flat_map(|pod| pod.addresses.clone()).collect();
    next.del_of("a", added, 300);
    assert_eq!(next.node.pool.owners().count(), 0);
}
