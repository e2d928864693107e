//! Pods with IPv6 addresses on several network cards: each of its own card's ENI.

use types::{EniId, Ipv6Prefix};

use super::cards::{actions, add_on_all, eni};
use super::*;
use crate::checkpoint::{Checkpoint, parse};
use crate::hold::Hold;

/// A prefix of an ENI.
fn prefix(card: u8) -> Ipv6Prefix {
    format!("2001:db8:0:1:{card}::/80").parse().unwrap()
}

fn id(card: u8) -> EniId {
    format!("eni-{card}").parse().unwrap()
}

/// An instance with two network cards, of which the first has its prefix.
fn world(families: Families) -> World {
    let mut world = World::of(families);
    world.node.settings.multi_nic = true;
    let mut facts = remembered().facts;
    facts.limits = InstanceTable::builtin().get("p4d.24xlarge").unwrap().clone();
    facts.limits.cards.truncate(2);
    world.handle(Event::Identified(Box::new(facts)));
    world
}

/// A picture of these ENIs as of now; those of the second card have their prefix only if it is `told`.
fn picture(world: &World, enis: Vec<EniSeen>, told: bool) -> Picture {
    let with_prefix = enis.iter().filter(|eni| told || eni.card == NetworkCard(0));
    Picture {
        as_of: world.now,
        ipv6_prefixes: with_prefix.map(|eni| (eni.id.clone(), [prefix(eni.card.0)].into())).collect(),
        enis,
        subnets: [("subnet-1".parse().unwrap(), "10.0.0.0/20".parse().unwrap())].into(),
        ..Picture::default()
    }
}

/// What a picture leads to some time later, and its wish, which is granted.
fn look(world: &mut World, enis: Vec<EniSeen>, told: bool) -> Vec<Effect> {
    world.now = world.now.plus(Duration::from_secs(120));
    let picture = picture(world, enis, told);
    let effects = world.handle(Event::Looked(Ok(picture)));
    world.converge(&effects)
}

/// A pod's interface on a card as the kernel has it, with an address that ends as those of other cards do.
fn in_kernel(card: u8, by_us: bool) -> PodInKernel {
    PodInKernel {
        host_if: HostVeth::of_pod(&VethPrefix::default(), &attachment("c1", "a").pod, card),
        addresses: vec![prefix(card).beside([0, 0, 0, 5].into()).into()],
        by_us,
        branch: None,
    }
}

/// ENIs that EC2 was asked for a prefix for.
fn asked(effects: &[Effect]) -> Vec<String> {
    let of = |effect: &Effect| match effect {
        Effect::AssignIpv6(eni) => Some(eni.to_string()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// The addresses of each interface that is wired.
fn wired(effects: &[Effect]) -> Vec<Vec<String>> {
    let pods = effects.iter().find_map(|effect| match effect {
        Effect::Wire(_, pods) => Some(pods.clone()),
        _ => None,
    });
    let told = |pod: &datapath::PodSpec| pod.addresses.iter().map(ToString::to_string).collect();
    pods.unwrap_or_default().iter().map(told).collect()
}

/// The prefixes that the kernel is to lead out by ENIs, with their device's MAC address.
fn led(effects: &[Effect]) -> Vec<(u8, Ipv6Prefix)> {
    let host = effects.iter().find_map(|effect| match effect {
        Effect::Converge { host, .. } => Some(host),
        _ => None,
    });
    let enis = host.into_iter().flat_map(|host| &host.node.enis);
    enis.flat_map(|eni| eni.ipv6.iter().map(|prefix| (eni.card.0, *prefix))).collect()
}

#[test]
fn a_pods_address_on_a_further_card_is_of_its_enis_prefix_once_the_kernel_leads_that_out() {
    let mut world = world(Families::Dual);
    world.handle(Event::Held(Hold::Releases));
    let effects = look(&mut world, vec![eni(0, 4), eni(1, 2)], false);
    assert_eq!(asked(&effects), ["eni-1"]);

    let (_, effects) = add_on_all(&mut world, "a");
    assert!(wired(&effects).is_empty(), "{effects:?}");
    let waiting = world.node.report(world.now).waiting;
    assert_eq!((waiting[0].reason, waiting[0].card), (Reason::NoIpv6, NetworkCard(1)));
    assert_eq!(wired(&world.add("b").1), [["10.0.0.10", "2001:db8:0:1::a00:a"]], "nobody else waits");

    let effects = world.handle(Event::Ipv6Assigned(id(1), Ok(prefix(1))));
    assert!(wired(&effects).is_empty(), "its packets would leave by the first card");
    assert_eq!(led(&effects), [(1, prefix(1))]);
    let effects = world.converge(&effects);

    let of_cards = [["10.0.0.11", "2001:db8:0:1::a00:b"], ["10.0.1.10", "2001:db8:0:1:1:0:a00:10a"]];
    assert_eq!(wired(&effects), of_cards);
}

#[test]
fn an_ipv6_node_makes_one_eni_per_card_and_gets_no_ipv4_address_for_it() {
    let mut world = world(Families::V6 { egress: true });

    let effects = look(&mut world, vec![eni(0, 0)], true);

    let (call, action) = action(&effects).expect("an ENI");
    let Action::CreateEni { card, wanted, .. } = action else { panic!("{action}") };
    assert_eq!((*card, *wanted), (NetworkCard(1), Wanted::Addresses(0)));

    let made = Box::new(EniSeen { addresses: BTreeSet::new(), ..eni(1, 0) });
    let effects = world.handle(Event::Acted { id: call, result: Ok(Outcome::Created(made)) });
    let effects = world.converge(&effects);
    assert_eq!(asked(&effects), ["eni-1"]);
    let effects = world.handle(Event::Ipv6Assigned(id(1), Ok(prefix(1))));
    let effects = world.converge(&effects);
    assert!(actions(&effects).is_empty(), "one is enough: {effects:?}");

    // Of the first card's it has a way to IPv4 too.
    let wired_on_all = wired(&add_on_all(&mut world, "a").1);
    assert_eq!(wired_on_all[0], ["169.254.172.2", "2001:db8:0:1::a9fe:ac02"]);
    assert_eq!(wired_on_all[1], ["2001:db8:0:1:1:0:1:2"]);
    assert_eq!(wired(&world.add("b").1).len(), 1);
    let report = world.node.report(world.now);
    assert_eq!((report.capacity, report.plan), (1021, Vec::<String>::new()));
    let prefixes: Vec<_> = report.enis.iter().map(|eni| (eni.ipv6_prefix, eni.ipv6_assigned)).collect();
    assert_eq!(prefixes, [(Some(prefix(0)), 2), (Some(prefix(1)), 1)]);
}

#[test]
fn a_card_whose_eni_gets_no_prefix_holds_up_nobody_else_and_is_asked_for_again() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], false);
    let no = CloudError::new(CloudErrorKind::Other, "AssignIpv6Addresses", "no IPv6 here");

    let effects = world.handle(Event::Ipv6Assigned(id(1), Err(no)));

    assert!(asked(&effects).is_empty());
    assert_eq!(wired(&world.add("a").1), [["2001:db8:0:1::a9fe:ac02"]]);
    add_on_all(&mut world, "b");
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::NoIpv6);
    let told = world.node.report(world.now).cloud;
    assert!(told.iter().any(|line| line.contains("eni-1 gets no IPv6 prefix")), "{told:?}");
    world.now = world.now.plus(Duration::from_secs(10));
    assert_eq!(asked(&world.handle(Event::Tick)), ["eni-1"]);
}

#[test]
fn nobody_gets_an_address_of_a_prefix_that_is_lost_and_those_who_have_one_are_told() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], true);
    assert_eq!(wired(&add_on_all(&mut world, "a").1).len(), 2);

    let effects = look(&mut world, vec![eni(0, 0), eni(1, 0)], false);

    assert_eq!(asked(&effects), ["eni-1"]);
    assert!(wired(&add_on_all(&mut world, "b").1).is_empty());
    let told = world.node.report(world.now).cloud;
    assert!(
        told.iter().any(|line| line.contains("default/a have IPv6 addresses that their ENI has lost")),
        "{told:?}"
    );
}

#[test]
fn pods_of_the_go_version_keep_their_addresses_of_every_card_though_these_end_alike() {
    let file = |card: u8, last: u8| {
        let text = format!(
            r#"{{"version":"vpc-cni-ipam/1","allocations":[{{"networkName":"aws-cni","containerID":"c1","ifName":"eth0",
            "ipv6":"{}","metadata":{{"k8sPodNamespace":"default","k8sPodName":"a","interfacesCount":2}}}}]}}"#,
            prefix(card).beside([0, 0, 0, last].into())
        );
        (NetworkCard(card), parse(text.as_bytes(), &VethPrefix::default()).unwrap())
    };
    let checkpoint = Checkpoint::of_cards([file(0, 5), file(1, 5)], &VethPrefix::default());
    let kernel = [in_kernel(0, false), in_kernel(1, false)];
    let cooldown = Duration::from_secs(30);
    let now = Moment(1_000_000);
    let loaded = Loaded { records: Vec::new(), damage: None, checkpoint };

    let restored = restore(cooldown, loaded, &kernel, &mut |_| true, true, now);

    let held = |pool: &Pool| -> Vec<(String, Option<String>)> {
        let told = |(owner, address): (&pool::Owner, Ipv4Addr)| {
            (address.to_string(), owner.ipv6.map(|ipv6| ipv6.to_string()))
        };
        pool.holders().map(told).collect()
    };
    let want = [("0.0.0.5", "2001:db8:0:1::5"), ("0.1.128.5", "2001:db8:0:1:1::5")]
        .map(|(address, ipv6)| (address.to_owned(), Some(ipv6.to_owned())));
    assert_eq!(held(&restored.pool), want);

    // The next start has it of our own state.
    let (pool, ipv6) = (Box::new(restored.pool.snapshot()), crate::store::Ipv6Books::default());
    let records = vec![Record::Snapshot { version: crate::store::VERSION, pool, ipv6 }];
    let loaded = Loaded { records, damage: None, checkpoint: None };
    let again = restore(cooldown, loaded, &kernel, &mut |_| true, true, now);
    assert_eq!((again.remarks.len(), held(&again.pool)), (0, want.to_vec()));
}

/// A daemon of both families that starts beside this pool, with what the one before remembered.
fn started(pool: Pool, before: &World) -> World {
    let mut next = World::of(Families::Dual);
    next.node.settings.multi_nic = true;
    next.now = before.now.plus(Duration::from_secs(5));
    next.node = Node::new(next.node.settings.clone(), pool, 1, next.now);
    let mut remembered = remembered();
    remembered.facts.clone_from(before.node.facts.as_ref().unwrap());
    remembered.enis = vec![eni(0, 4), eni(1, 4)];
    remembered.ipv6 = [(id(0), prefix(0)), (id(1), prefix(1))].into();
    let facts = remembered.facts.clone();
    next.node.remembered(remembered);
    next.handle(Event::Identified(Box::new(facts)));
    next
}

#[test]
fn a_prefix_that_pods_have_addresses_of_goes_on_being_led_whatever_descriptions_show() {
    let mut world = world(Families::Dual);
    world.handle(Event::Held(Hold::Releases));
    look(&mut world, vec![eni(0, 4), eni(1, 4)], true);
    assert_eq!(wired(&add_on_all(&mut world, "a").1).len(), 2);
    let pool = Pool::restore(world.node.pool.snapshot(), Duration::from_secs(30), world.now);
    let mut next = started(pool, &world);

    next.now = next.now.plus(Duration::from_secs(1));
    let old = picture(&next, vec![eni(0, 4), eni(1, 4)], false);
    let effects = next.handle(Event::Looked(Ok(old.clone())));
    assert_eq!(led(&effects), [(1, prefix(1))]);
    // It may be gone for good: new pods get addresses of another one.
    assert_eq!(asked(&next.converge(&effects)), ["eni-1"]);
    let effects = next.handle(Event::Ipv6Assigned(id(1), Ok(prefix(7))));
    assert_eq!(led(&effects), [(1, prefix(1)), (1, prefix(7))]);
    next.converge(&effects);

    // One that was asked for much later has both.
    next.now = next.now.plus(Duration::from_secs(400));
    let enis = [(id(0), [prefix(0)].into()), (id(1), [prefix(1), prefix(7)].into())];
    let picture = Picture { as_of: next.now, ipv6_prefixes: enis.into(), ..old.clone() };
    let effects = next.handle(Event::Looked(Ok(picture)));
    next.converge(&effects);
    assert_eq!(next.node.report(next.now).enis[1].ipv6_prefix, Some(prefix(7)));
    let remembered = next.node.report(next.now).cloud;
    assert!(remembered.iter().all(|line| !line.contains("has lost")), "{remembered:?}");

    // Then it is gone, as far as EC2 says: pods get addresses of the other one, and those that are there leave as before.
    next.now = next.now.plus(Duration::from_secs(400));
    let enis = [(id(0), [prefix(0)].into()), (id(1), [prefix(7)].into())];
    let picture = Picture { as_of: next.now, ipv6_prefixes: enis.into(), ..old };
    let effects = next.handle(Event::Looked(Ok(picture)));
    assert_eq!(led(&effects), [(1, prefix(1)), (1, prefix(7))]);
    next.converge(&effects);
    let new = wired(&add_on_all(&mut next, "b").1);
    assert!(new[1][1].starts_with("2001:db8:0:1:7:"), "{new:?}");
}

#[test]
fn pods_of_a_card_that_ipv6_comes_to_wait_for_its_prefix_and_no_longer() {
    let mut world = world(Families::V4 { egress: false });
    world.handle(Event::Held(Hold::Releases));
    look(&mut world, vec![eni(0, 4), eni(1, 4)], false);
    assert_eq!(wired(&add_on_all(&mut world, "a").1).len(), 2);
    let pool = Pool::restore(world.node.pool.snapshot(), Duration::from_secs(30), world.now);
    let mut next = started(pool, &world);

    let effects = look(&mut next, vec![eni(0, 4), eni(1, 4)], true);

    assert!(asked(&effects).is_empty(), "{effects:?}");
    assert_eq!(wired(&add_on_all(&mut next, "b").1).len(), 2);
}

#[test]
fn an_unclear_answer_is_looked_into_before_a_second_prefix_is_asked_for() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], false);
    let unclear = CloudError::new(CloudErrorKind::Unclear, "AssignIpv6Addresses", "no answer");
    world.handle(Event::Ipv6Assigned(id(1), Err(unclear)));
    world.now = world.now.plus(Duration::from_secs(6));
    let soon = picture(&world, vec![eni(0, 0), eni(1, 0)], false);

    let effects = world.handle(Event::Looked(Ok(soon)));
    assert!(asked(&world.converge(&effects)).is_empty(), "it may be too old to know");

    let effects = look(&mut world, vec![eni(0, 0), eni(1, 0)], false);
    assert_eq!(asked(&effects), ["eni-1"]);
}

#[test]
fn without_books_two_pods_whose_addresses_end_alike_are_both_held() {
    let kernel = [in_kernel(0, true), in_kernel(1, true)];

    let restored =
        restore(Duration::from_secs(30), Loaded::default(), &kernel, &mut |_| true, true, Moment(1_000_000));

    assert_eq!(restored.pool.holders().filter_map(|(owner, _)| owner.ipv6).count(), 2);
}

#[test]
fn enis_of_others_on_a_card_leave_room_for_the_one_of_an_ipv6_node() {
    let mut world = world(Families::V6 { egress: false });
    let foreign = EniSeen { role: Role::Unmanaged, addresses: BTreeSet::new(), ..eni(1, 0) };

    let effects = look(&mut world, vec![eni(0, 0), foreign], true);

    assert_eq!(
        actions(&effects),
        ["create an ENI with 0 addresses at device 1 of network card 1 in subnet-1"]
    );
}

#[test]
fn no_name_of_the_pool_gets_into_the_kernel_and_the_trunk_stays_what_it_is() {
    let mut world = world(Families::V6 { egress: true });
    let trunk = EniSeen {
        id: "eni-8".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 8]),
        device: DeviceIndex(3),
        role: Role::Trunk,
        ..eni(0, 0)
    };
    let picture = picture(&world, vec![eni(0, 0), eni(1, 0), trunk], true);

    let effects = world.handle(Event::Looked(Ok(picture)));

    let host = effects.iter().find_map(|effect| match effect {
        Effect::Converge { host, .. } => Some(host),
        _ => None,
    });
    let further = host.unwrap().node.enis.iter().find(|eni| eni.card == NetworkCard(1)).unwrap();
    assert!(further.sources.is_empty(), "{further:?}");
    world.converge(&effects);
    assert!(world.node.pool.seen().any(|eni| eni.role == Role::Trunk));
}

#[test]
fn a_prefix_that_an_answer_was_lost_of_stays_when_another_answer_comes_too() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], false);
    let unclear = CloudError::new(CloudErrorKind::Unclear, "AssignIpv6Addresses", "no answer");
    world.handle(Event::Ipv6Assigned(id(1), Err(unclear)));
    assert_eq!(asked(&look(&mut world, vec![eni(0, 0), eni(1, 0)], false)), ["eni-1"]);
    // The first call has given one after all.
    look(&mut world, vec![eni(0, 0), eni(1, 0)], true);
    assert_eq!(wired(&add_on_all(&mut world, "a").1)[1], ["2001:db8:0:1:1:0:1:2"]);

    let effects = world.handle(Event::Ipv6Assigned(id(1), Ok(prefix(7))));

    assert_eq!(led(&effects), [(1, prefix(1)), (1, prefix(7))]);
}

#[test]
fn an_unclear_answer_leads_to_a_look_now_and_then_where_metadata_alone_tells() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], false);
    let unclear = CloudError::new(CloudErrorKind::Unclear, "AssignIpv6Addresses", "no answer");
    world.handle(Event::Ipv6Assigned(id(1), Err(unclear)));
    let mut looks = 0;
    for _ in 0..120 {
        world.now = world.now.plus(Duration::from_secs(1));
        let mut effects = world.handle(Event::Tick);
        for _ in 0..3 {
            if !effects.iter().any(|effect| matches!(effect, Effect::Look)) {
                break;
            }
            looks += 1;
            let told = picture(&world, vec![eni(0, 0), eni(1, 0)], false);
            let told = Picture { from_metadata: true, ..told };
            effects = world.handle(Event::Looked(Ok(told)));
            effects = if wished(&effects).is_some() { world.converge(&effects) } else { effects };
        }
    }
    assert!((1..=12).contains(&looks), "{looks} looks in two minutes");
}

#[test]
fn a_picture_that_is_older_than_the_last_one_takes_no_prefix_away() {
    let mut world = world(Families::V6 { egress: false });
    look(&mut world, vec![eni(0, 0), eni(1, 0)], true);
    let seconds_before = Picture {
        as_of: Moment(world.now.0 - 5_000),
        enis: vec![eni(0, 0), eni(1, 0)],
        ..Picture::default()
    };

    let effects = world.handle(Event::Looked(Ok(seconds_before)));
    world.converge(&effects);

    assert_eq!(world.node.report(world.now).ipv6_prefix, Some(prefix(0)));
    assert_eq!(wired(&add_on_all(&mut world, "a").1).len(), 2);
}

#[test]
fn an_eni_that_pictures_lack_goes_on_leading_out_the_ipv6_of_its_pods_also_after_a_start() {
    let mut world = world(Families::Dual);
    world.handle(Event::Held(Hold::Releases));
    look(&mut world, vec![eni(0, 4), eni(1, 4)], true);
    assert_eq!(wired(&add_on_all(&mut world, "a").1).len(), 2);
    let pool = Pool::restore(world.node.pool.snapshot(), Duration::from_secs(30), world.now);
    let mut next = started(pool, &world);

    let effects = look_at(&mut next, vec![eni(0, 4)], Duration::from_secs(1));
    assert_eq!(led(&effects), [(1, prefix(1))]);
    all_granted(&mut next, effects);
    let effects = look_at(&mut next, vec![eni(0, 4)], Duration::from_secs(10));
    all_granted(&mut next, effects);

    next.now = next.now.plus(Duration::from_secs(31));
    assert_eq!(led(&next.handle(Event::Tick)), [(1, prefix(1))]);
    assert_eq!(next.node.further_prefixes()[&id(1)], [prefix(1)].into());
}

/// Grants each wish, also those that follow.
fn all_granted(world: &mut World, mut effects: Vec<Effect>) {
    for _ in 0..4 {
        if wished(&effects).is_none() {
            return;
        }
        effects = world.converge(&effects);
    }
    panic!("it wishes for ever: {effects:?}");
}

/// What a picture of these ENIs leads to, some time later.
fn look_at(world: &mut World, enis: Vec<EniSeen>, later: Duration) -> Vec<Effect> {
    world.now = world.now.plus(later);
    let picture = picture(world, enis, true);
    world.handle(Event::Looked(Ok(picture)))
}
