//! A start while nobody tells anything: what holds is what the daemon before knew.

use pool::Owner;
use types::HostVeth;

use super::estate::look;
use super::links::led_by;
use super::*;
use crate::node::Remembered;

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn eni(number: u8, role: Role) -> EniSeen {
    let address = |last| Ipv4Addr::new(10, 0, number, last);
    EniSeen {
        id: format!("eni-{number}").parse().unwrap(),
        mac: mac(number),
        card: NetworkCard(0),
        device: DeviceIndex(number),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: address(4),
        addresses: (10..13).map(address).collect(),
        prefixes: BTreeSet::new(),
        role,
    }
}

/// Two ENIs with three addresses each on one m5.large.
pub(super) fn remembered() -> Remembered {
    let facts = Facts {
        instance: "i-1".parse().unwrap(),
        limits: InstanceTable::builtin().get("m5.large").unwrap().clone(),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        subnet: "subnet-1".parse().unwrap(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        ipv6: None,
    };
    Remembered {
        enis: vec![eni(0, Role::Primary), eni(1, Role::Secondary)],
        stranded: Vec::new(),
        lost: BTreeSet::new(),
        unlinked: Vec::new(),
        subnets: [("subnet-1".parse().unwrap(), "10.0.0.0/20".parse().unwrap())].into(),
        excluded: BTreeSet::new(),
        occupied: BTreeSet::new(),
        efa_only: BTreeSet::new(),
        ipv6: BTreeMap::new(),
        ipv6_further: BTreeMap::new(),
        ipv6_prefixes: BTreeSet::new(),
        facts,
    }
}

fn away(call: &'static str) -> CloudError {
    CloudError::new(CloudErrorKind::Unreachable, call, "no answer")
}

/// A node that remembers two ENIs with three addresses each, before anybody has told anything.
fn started() -> World {
    let mut world = World::new();
    world.handle(Event::Remembered(Box::new(remembered())));
    world
}

/// The same once instance metadata has not answered, and the host is in line with what is remembered.
fn recalled() -> World {
    let mut world = started();
    let effects = world.handle(Event::Unidentified(away("instance metadata")));
    world.converge(&effects);
    world
}

fn asks_ec2(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Act { .. } | Effect::Look | Effect::Tidy(_)))
}

fn writes_down(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Remember(_)))
}

fn line(world: &World) -> String {
    world.node.report(world.now).cloud.join("\n")
}

#[test]
fn without_instance_metadata_pods_are_served_from_what_is_remembered() {
    let mut world = recalled();
    assert_eq!(world.node.report(world.now).not_ready, Vec::<String>::new());
    assert!(
        line(&world).contains("pods are served from what was known before this start"),
        "{}",
        line(&world)
    );

    for pod in ["a", "b", "c", "d", "e", "f"] {
        world.added(pod);
    }
    let (_, effects) = world.ask(Verb::Check(attachment("a", "a")), 1);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Check(..))), "{effects:?}");
    let effects = world.del("a", 200);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    let counts = world.node.report(world.now).addresses;
    assert_eq!((counts.assigned, counts.cooling, counts.free), (5, 1, 0));
}

#[test]
fn nothing_is_asked_of_ec2_on_the_word_of_what_is_remembered() {
    let mut world = recalled();
    (0..6).for_each(|n| world.added(&format!("pod-{n}")));
    let (_, effects) = world.add("one-more");
    assert!(!asks_ec2(&effects), "{effects:?}");
    let waiting = world.node.report(world.now).waiting.remove(0);
    assert_eq!(waiting.reason, Reason::CloudUnreachable);

    for _ in 0..20 {
        world.now = world.node.next_wakeup(world.now);
        let effects = world.handle(Event::Tick);
        assert!(!asks_ec2(&effects) && !writes_down(&effects), "{effects:?}");
    }
}

#[test]
fn all_settles_once_metadata_and_the_enis_are_told() {
    let mut world = recalled();
    world.added("a");

    let effects = world.handle(Event::Identified(Box::new(remembered().facts)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::Act { .. })), "{effects:?}");
    world.converge(&effects);
    // Somebody has taken the second ENI away meanwhile.
    world.now = world.now.plus(Duration::from_secs(60));
    let effects = look(&mut world, |picture| picture.enis.truncate(1));

    assert!(writes_down(&effects), "{effects:?}");
    assert_eq!(line(&world), "");
    let report = world.node.report(world.now);
    assert_eq!((report.enis.len(), report.pods.len()), (1, 1));
    (0..3).for_each(|n| drop(world.add(&format!("pod-{n}"))));
    assert!(world.node.growing(NetworkCard(0)), "growth goes on");
}

#[test]
fn what_is_remembered_is_not_used_where_metadata_answers() {
    let mut world = started();

    let effects = world.handle(Event::Identified(Box::new(remembered().facts)));

    assert!(effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })), "{effects:?}");
    assert_eq!(world.node.report(world.now).enis.len(), 0);
}

#[test]
fn enis_are_remembered_where_the_instance_is_known_and_the_first_look_fails() {
    let mut world = started();
    world.handle(Event::Identified(Box::new(remembered().facts)));
    let effects = world.handle(Event::Looked(Err(away("DescribeNetworkInterfaces"))));
    world.converge(&effects);

    world.added("a");

    // EC2 may be asked to look, and for nothing else.
    (0..9).for_each(|n| drop(world.add(&format!("pod-{n}"))));
    world.now = world.now.plus(Duration::from_secs(30));
    let effects = world.handle(Event::Tick);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Look)), "{effects:?}");
    assert!(action(&effects).is_none(), "{effects:?}");
}

#[test]
fn what_is_remembered_of_another_instance_is_not_used() {
    let mut world = started();
    let facts = Facts { instance: "i-2".parse().unwrap(), ..remembered().facts };
    world.handle(Event::Identified(Box::new(facts)));

    let effects = world.handle(Event::Looked(Err(away("DescribeNetworkInterfaces"))));

    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })), "{effects:?}");
    assert_eq!(world.node.report(world.now).not_ready.len(), 1);
}

#[test]
fn what_a_call_was_to_take_away_before_the_start_is_not_brought_back() {
    // However long ago: what is remembered may be from before that.
    for at in [None, Some(Moment(0))] {
        let mut world = started();
        world.now = world.now.plus(2 * pool::PICTURE_LAG_MAX);
        let given = Given::addresses([Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 0, 11)].into());
        let leaving = pool::Leaving { eni: "eni-0".parse().unwrap(), given: Some(given) };
        let loaded = Loaded { records: vec![Record::Leaving { leaving, at }], ..Loaded::default() };
        let restored = restore(Duration::from_secs(30), loaded, &[], &mut |_| true, true, world.now);
        world.node.pool = restored.pool;

        let effects = world.handle(Event::Unidentified(away("instance metadata")));
        world.converge(&effects);

        assert_eq!(world.node.report(world.now).addresses.free, 4, "{at:?}");
    }
}

#[test]
fn what_changes_is_written_down_and_what_does_not_is_not() {
    let mut world = World::new();
    let effects = world.first_look(4);
    assert!(writes_down(&world.converge(&effects)));

    world.added("a");
    assert!(!writes_down(&look(&mut world, |_| ())), "a pod is nothing that a start needs");
    world.now = world.now.plus(Duration::from_secs(60));
    let effects = look(&mut world, |picture| {
        picture.enis[0].addresses.pop_last();
    });
    assert!(writes_down(&effects));
}

#[test]
fn packets_of_pods_go_on_leaving_by_an_eni_that_the_first_descriptions_lack() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    let lacking = |world: &World| {
        let enis = remembered().enis.into_iter().filter(|eni| eni.role == Role::Primary).collect();
        let subnets = remembered().subnets;
        Event::Looked(Ok(Picture { as_of: world.now, enis, subnets, ..Picture::default() }))
    };

    let effects = world.handle(lacking(&world));
    assert_eq!(led_by(&effects, address), Some(remembered().enis[1].mac));
    assert_eq!(led_by(&effects, Ipv4Addr::new(10, 0, 1, 11)), None, "nobody has that address");
    let effects = world.converge(&effects);
    let again = world.node.cloud.look_at;
    assert!(again <= world.now.plus(Duration::from_secs(10)), "EC2 is not looked at again before {again:?}");
    // A start from what is written now knows it too.
    let stranded = &written(&effects).expect("nothing is written").stranded;
    assert_eq!((stranded[0].mac, &stranded[0].addresses), (remembered().enis[1].mac, &[address].into()));

    // Whatever is said later: an address that is on no other ENI goes nowhere better.
    world.now = world.now.plus(Duration::from_secs(600));
    let effects = world.handle(lacking(&world));
    assert_eq!(led_by(&effects, address), Some(remembered().enis[1].mac));
    world.converge(&effects);

    // Unless another ENI has it.
    let moved = |world: &World| {
        let mut enis = remembered().enis;
        enis[1].id = "eni-7".parse().unwrap();
        enis[1].mac = Mac([2, 0, 0, 0, 0, 7]);
        Picture { as_of: world.now, enis, subnets: remembered().subnets, ..Picture::default() }
    };
    world.now = world.now.plus(Duration::from_secs(600));
    let effects = world.handle(Event::Looked(Ok(moved(&world))));
    assert_eq!(led_by(&effects, address), Some(Mac([2, 0, 0, 0, 0, 7])));
}

#[test]
fn once_a_pod_is_gone_its_address_leaves_by_the_eni_that_has_it_now() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    let moved = |enis: &mut Vec<EniSeen>| {
        enis[1].addresses.remove(&address);
        enis[0].addresses.insert(address);
    };
    let [primary, before] = [0, 1].map(|number: usize| remembered().enis[number].mac);

    // Such a description may be older than the pod.
    let effects = told(&mut world, moved);
    assert_eq!(led_by(&effects, address), Some(before));

    world.now = world.now.plus(Duration::from_secs(10));
    let effects = world.del("a", 200);

    assert_eq!(led_by(&effects, address), Some(primary));
    // Not before the kernel leads there, however pressed somebody is: then it goes to a pod before it has cooled.
    let taken = |world: &World| world.node.pool.holders().any(|(_, held)| held == address);
    world.node.settings.add_timeout = Duration::from_secs(10);
    (0..9).for_each(|n| drop(world.add(&format!("b{n}"))));
    world.now = world.now.plus(Duration::from_secs(9));
    world.handle(Event::Tick);
    assert!(!taken(&world));
    world.converge(&effects);
    assert!(taken(&world));
}

#[test]
fn no_eni_that_a_pod_is_led_out_by_is_deleted_on_the_word_of_descriptions() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    world.node.settings.targets = Targets { warm_ip: Some(3), ..Targets::default() };
    let bare = |enis: &mut Vec<EniSeen>| enis[1].addresses.clear();
    let is_whole =
        |record: &Record| matches!(record, Record::Leaving { leaving, .. } if leaving.given.is_none());
    let is_deletion =
        |effect: &Effect| matches!(effect, Effect::Append(_, records) if records.iter().any(is_whole));

    for _ in 0..10 {
        world.now = world.now.plus(Duration::from_secs(200));
        assert!(!told(&mut world, bare).iter().any(is_deletion));
    }

    let effects = world.del("a", 200);
    assert!(world.converge(&effects).iter().any(is_deletion));
}

/// A node that was restarted while a pod has this address of one of its ENIs.
fn restarted_with(address: Ipv4Addr, on: usize) -> World {
    let mut world = World::new();
    let mut before = remembered();
    before.enis[on].addresses.insert(address);
    world.handle(Event::Remembered(Box::new(before)));
    let sandbox = SandboxKey::new("aws-cni", "a", "eth0").unwrap();
    let host_if = HostVeth::found("eni0123456789a").unwrap();
    let (pod, since) = (PodName::default(), world.now);
    let owner = Owner { sandbox, pod, host_if, since, ipv6: None, further: None, branch: None };
    world.node.pool.adopt(owner, address);
    world.handle(Event::Identified(Box::new(remembered().facts)));
    world
}

/// EC2 tells that ENIs are as they were remembered, but for this.
fn told(world: &mut World, change: impl FnOnce(&mut Vec<EniSeen>)) -> Vec<Effect> {
    let Remembered { mut enis, subnets, .. } = remembered();
    change(&mut enis);
    let picture = Picture { as_of: world.now, enis, subnets, ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    let more = world.converge(&effects);
    effects.into_iter().chain(more).collect()
}

/// When EC2 is looked at, from now on and for so long.
fn looks_until(world: &mut World, change: impl Fn(&mut Vec<EniSeen>), until: Duration) -> Vec<Duration> {
    let started = world.now;
    let mut looks = Vec::new();
    while world.now.since(started) < until {
        world.now = world.node.next_wakeup(world.now);
        let effects = world.handle(Event::Tick);
        if effects.iter().any(|effect| matches!(effect, Effect::Converge { .. })) {
            world.converge(&effects);
        }
        if effects.iter().any(|effect| matches!(effect, Effect::Look)) {
            looks.push(world.now.since(started));
            told(world, &change);
        }
    }
    looks
}

/// What is to be on disk by what was done last.
fn written(effects: &[Effect]) -> Option<Remembered> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Remember(remembered) => Some((**remembered).clone()),
        _ => None,
    })
}

/// From one ENI to the other.
fn moved(enis: &mut [EniSeen], address: Ipv4Addr, from: usize, to: usize) {
    enis[from].addresses.remove(&address);
    enis[to].addresses.insert(address);
}

#[test]
fn descriptions_from_before_a_pod_do_not_lead_it_out_elsewhere_after_a_start() {
    let (on_the_first, on_the_second) = (Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 1, 10));
    for (address, from, to) in [(on_the_second, 1, 0), (on_the_first, 0, 1)] {
        let mut world = restarted_with(address, from);
        let macs = [remembered().enis[0].mac, remembered().enis[1].mac];
        let elsewhere = |enis: &mut Vec<EniSeen>| moved(enis, address, from, to);

        let effects = told(&mut world, elsewhere);
        assert_eq!(led_by(&effects, address), Some(macs[from]));
        world.now = world.now.plus(Duration::from_secs(60));
        world.node.host.dirty = true;
        assert_eq!(led_by(&told(&mut world, elsewhere), address), Some(macs[from]));

        world.now = world.now.plus(pool::PICTURE_LAG_MAX);
        world.node.host.dirty = true;
        assert_eq!(led_by(&told(&mut world, elsewhere), address), Some(macs[to]), "to be trusted by then");
    }
}

#[test]
fn descriptions_that_have_a_pods_address_elsewhere_are_looked_at_again_until_they_can_be_trusted() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    let elsewhere = |enis: &mut Vec<EniSeen>| moved(enis, address, 1, 0);
    told(&mut world, elsewhere);

    let looks = looks_until(&mut world, elsewhere, Duration::from_secs(1500));

    assert!((4..10).contains(&looks.len()), "{looks:?}");
    let last = looks.last().copied().unwrap_or_default();
    assert!(last >= pool::PICTURE_LAG_MAX && last < 3 * pool::PICTURE_LAG_MAX, "{looks:?}");
}

#[test]
fn what_descriptions_wrongly_told_a_start_the_next_one_does_not_believe() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    let effects = told(&mut world, |enis| moved(enis, address, 1, 0));
    let remembered_then = written(&effects).expect("something is written");

    let mut again = restarted_with(address, 1);
    again.handle(Event::Remembered(Box::new(remembered_then)));
    let second = Some(remembered().enis[1].mac);
    assert_eq!(led_by(&told(&mut again, |_| ()), address), second, "descriptions are right now");
}

#[test]
fn a_pod_that_is_led_out_on_its_own_takes_no_prefix_along() {
    let address = Ipv4Addr::new(10, 0, 1, 32);
    let mut world = restarted_with(address, 1);
    let third = Mac([2, 0, 0, 0, 0, 7]);

    let effects = told(&mut world, |enis| {
        let prefixes = ["10.0.1.32/28".parse().unwrap()].into();
        let (id, device) = ("eni-7".parse().unwrap(), DeviceIndex(2));
        let primary_address = Ipv4Addr::new(10, 0, 1, 7);
        let addresses = BTreeSet::new();
        let other =
            EniSeen { id, device, mac: third, primary_address, addresses, prefixes, ..enis[1].clone() };
        enis.push(other);
    });

    assert_eq!(led_by(&effects, address), Some(remembered().enis[1].mac));
    assert_eq!(led_by(&effects, Ipv4Addr::new(10, 0, 1, 33)), Some(third));

    let mut world = restarted_with(address, 1);
    let effects = told(&mut world, |enis| {
        enis[1].addresses.clear();
        enis[1].prefixes.insert("10.0.1.32/28".parse().unwrap());
    });
    let second = Some(remembered().enis[1].mac);
    assert_eq!((led_by(&effects, address), led_by(&effects, Ipv4Addr::new(10, 0, 1, 33))), (second, second));
}

#[test]
fn an_eni_that_has_what_a_pod_had_lost_before_the_start_is_not_ours_unless_it_led_it_out() {
    let lost = Ipv4Addr::new(10, 0, 1, 10);
    for (known, led) in [(true, false), (true, true), (false, false)] {
        let mut world = restarted_with(lost, 1);
        let Remembered { mut enis, subnets, .. } = remembered();
        let gone = enis.remove(1);
        let it = EniSeen { id: "eni-7".parse().unwrap(), mac: mac(7), role: Role::Unmanaged, ..gone };
        let stranded = EniSeen { addresses: [lost].into(), ..it.clone() };
        let stranded = if led { vec![stranded] } else { Vec::new() };
        let told = if known { [lost].into() } else { BTreeSet::new() };
        let before = Remembered { enis: enis.clone(), stranded, lost: told, ..remembered() };
        world.handle(Event::Remembered(Box::new(before)));

        // It has the address now, and only instance metadata tells so.
        enis.push(it);
        let picture = Picture { as_of: world.now, enis, subnets, from_metadata: true, ..Picture::default() };
        let effects = world.handle(Event::Looked(Ok(picture)));
        world.converge(&effects);

        let it = world.node.pool.enis().into_iter().find(|eni| eni.id.as_str() == "eni-7");
        let role = if known && !led { Role::Unmanaged } else { Role::Secondary };
        assert_eq!(it.map(|eni| eni.role), Some(role), "known: {known}, led: {led}");
    }
}

#[test]
fn that_a_pod_has_lost_its_address_is_on_disk() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);

    let effects = told(&mut world, |enis| enis.truncate(1));

    assert_eq!(written(&effects).expect("something is written").lost, [address].into());
}

#[test]
fn an_eni_that_has_what_was_on_one_that_is_gone_is_not_ours() {
    let address = Ipv4Addr::new(10, 0, 1, 10);
    let mut world = restarted_with(address, 1);
    let mut before = remembered();
    before.leave_out(|eni| eni.mac == mac(1));
    assert_eq!((before.enis.len(), before.unlinked.len()), (1, 1));
    let theirs = EniSeen { id: "eni-7".parse().unwrap(), mac: mac(7), ..before.unlinked[0].clone() };
    let theirs = EniSeen { role: Role::Unmanaged, ..theirs };
    let (mut enis, subnets) = (before.enis.clone(), before.subnets.clone());
    world.handle(Event::Remembered(Box::new(before)));

    enis.push(theirs);
    let picture = Picture { as_of: world.now, enis, subnets, from_metadata: true, ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    world.converge(&effects);

    let role = |eni: &EniSeen| (eni.id.as_str() == "eni-7").then_some(eni.role);
    assert_eq!(world.node.pool.enis().iter().find_map(role), Some(Role::Unmanaged));
}
