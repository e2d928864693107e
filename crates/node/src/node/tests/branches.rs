//! Pods with a branch ENI: what they wait for, what they get, and what a DEL and a restart do without the API server.

use types::{BranchEni, BranchIpv4, VlanId};
use wire::Kept;

use super::*;
use crate::cluster::{BranchWish, Features, News, PodNews, PodObject};
use crate::node::HostWish;

const TRUNK: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// A node with `ENABLE_POD_ENI` and this many free addresses; not told of any pod.
pub(super) fn node(addresses: u8) -> World {
    let mut world = World::new();
    world.node.settings.pod_eni = true;
    world.made_ready(addresses)
}

/// The same with a trunk ENI.
fn with_trunk(addresses: u8) -> World {
    let mut world = node(addresses);
    attach_trunk(&mut world);
    world
}

/// What the picture leads to that shows it; the wish among that is granted.
fn attach_trunk(world: &mut World) -> Vec<Effect> {
    let mut enis = world.node.pool.enis();
    let trunk = EniSeen {
        id: "eni-9".parse().unwrap(),
        mac: TRUNK,
        device: DeviceIndex(1),
        primary_address: Ipv4Addr::new(10, 0, 0, 200),
        addresses: BTreeSet::new(),
        role: Role::Trunk,
        ..enis[0].clone()
    };
    enis.push(trunk);
    let subnets = world.node.subnets.clone();
    let effects =
        world.handle(Event::Looked(Ok(Picture { as_of: world.now, enis, subnets, ..Picture::default() })));
    world.converge(&effects);
    effects
}

pub(super) fn branch_eni(last: u8) -> BranchEni {
    let ipv4 = BranchIpv4 { address: [10, 0, 3, last].into(), gateway: [10, 0, 0, 1].into() };
    BranchEni {
        id: Some(format!("eni-b{last}").parse().unwrap()),
        mac: Mac([2, 0, 0, 0, 1, last]),
        vlan: VlanId::new(last.into()).unwrap(),
        ipv4: Some(ipv4),
        ipv6: None,
    }
}

fn object(name: &str, branch: BranchWish) -> PodObject {
    PodObject {
        name: attachment(name, name).pod,
        uid: format!("uid-{name}"),
        branch,
        cpu: 0,
        gets_address: true,
    }
}

pub(super) fn told(name: &str, branch: BranchWish) -> Event {
    Event::Cluster(News::Pods(PodNews::Is(object(name, branch))))
}

fn wired(effects: &[Effect]) -> Option<&datapath::PodSpec> {
    effects.iter().find_map(|effect| match effect {
        Effect::Wire(_, pods) => pods.first(),
        _ => None,
    })
}

fn waiting(world: &World) -> Vec<Reason> {
    world.node.report(world.now).waiting.iter().map(|waiting| waiting.reason).collect()
}

/// A pod with a branch ENI, wired.
fn added(world: &mut World, name: &str, last: u8) -> wire::Interface {
    world.handle(told(name, BranchWish::Is(branch_eni(last))));
    let (id, effects) = world.add(name);
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });
    match reply(&effects) {
        Some(Reply::Added(added)) => added.interfaces[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_add_waits_for_its_pods_object_then_for_the_annotation_then_for_the_trunk() {
    let mut world = node(3);
    let (id, effects) = world.add("web");
    assert!(wired(&effects).is_none());
    assert_eq!(waiting(&world), [Reason::NoPodObject]);

    world.handle(told("web", BranchWish::Coming));
    assert_eq!(waiting(&world), [Reason::NoBranchEni]);
    world.handle(told("web", BranchWish::Is(branch_eni(7))));
    assert_eq!(waiting(&world), [Reason::NoTrunk]);

    let mut enis = world.node.pool.enis();
    let trunk = EniSeen {
        id: "eni-9".parse().unwrap(),
        mac: TRUNK,
        device: DeviceIndex(1),
        role: Role::Trunk,
        ..enis[0].clone()
    };
    enis.push(EniSeen { addresses: BTreeSet::new(), primary_address: [10, 0, 0, 200].into(), ..trunk });
    let picture =
        Picture { as_of: world.now, enis, subnets: world.node.subnets.clone(), ..Picture::default() };
    let effects = world.handle(Event::Looked(Ok(picture)));
    let effects = world.converge(&effects);

    let pod = wired(&effects).expect("it is wired");
    let branch = pod.branch.as_ref().unwrap();
    assert_eq!((branch.trunk, branch.is_strict(), branch.eni.clone()), (TRUNK, true, branch_eni(7)));
    assert_eq!(pod.addresses, [IpAddr::from([10, 0, 3, 7])]);
    assert!(pod.host_if.is_of_branch(), "{}", pod.host_if);
    assert!(world.node.pool.owner(&attachment("web", "web").sandbox).is_some(), "{id:?}");
}

#[test]
fn what_the_runtime_is_told_names_the_vlan_and_the_router_and_no_address_of_the_pool_is_taken() {
    let mut world = with_trunk(3);
    let free = world.node.report(world.now).addresses;

    let interface = added(&mut world, "web", 7);

    assert_eq!((interface.address.to_string(), interface.table.0), ("10.0.3.7/32".to_owned(), 0));
    let branch = interface.branch.unwrap();
    assert_eq!((branch.vlan.number(), branch.gateways), (7, vec!["10.0.0.1".parse().unwrap()]));
    let report = world.node.report(world.now);
    assert_eq!(report.addresses, free);
    let pod = &report.pods[0];
    assert_eq!((pod.eni.as_ref().map(|eni| eni.as_str()), pod.vlan), (Some("eni-b7"), VlanId::new(7).ok()));
    world.node.pool.check().unwrap();
}

#[test]
fn other_pods_get_addresses_of_the_pool_and_nobody_waits_behind_one_whose_branch_eni_is_missing() {
    let mut world = with_trunk(3);
    world.handle(told("branch", BranchWish::Coming));
    world.handle(told("plain", BranchWish::No));

    world.add("branch");
    let (_, effects) = world.add("plain");

    let pod = wired(&effects).expect("it is wired");
    assert!(pod.branch.is_none() && !pod.host_if.is_of_branch());
    assert_eq!(waiting(&world), [Reason::NoBranchEni]);
}

#[test]
fn who_waits_for_a_branch_eni_does_not_make_the_pool_grow() {
    let mut world = with_trunk(0);
    let plan = |world: &World| world.node.plan(world.now).map(|plan| plan.to_string());
    let before = plan(&world);
    for n in 0..9 {
        world.handle(told(&format!("web-{n}"), BranchWish::Coming));
        world.add(&format!("web-{n}"));
    }
    assert_eq!(plan(&world), before);
}

#[test]
fn an_annotation_that_cannot_be_is_what_the_pod_is_told_at_its_deadline() {
    let mut world = with_trunk(3);
    world.handle(told("web", BranchWish::Wrong("vlanId: 0 is no VLAN id".to_owned())));
    world.add("web");

    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);

    let failure = failure(&effects).expect("a failure");
    assert_eq!(failure.reason, Reason::NoBranchEni);
    assert!(failure.details.contains("vlanId: 0 is no VLAN id"), "{}", failure.details);
}

#[test]
fn the_object_of_a_pod_that_had_the_name_before_is_not_this_ones() {
    let mut world = with_trunk(3);
    world.handle(told("web-0", BranchWish::Is(branch_eni(7))));
    let mut next = attachment("second", "web-0");
    next.pod_uid = "another".to_owned();

    world.ask(Verb::Add(next), 100);
    assert_eq!(waiting(&world), [Reason::NoPodObject]);

    let object = PodObject { uid: "another".to_owned(), ..object("web-0", BranchWish::Is(branch_eni(8))) };
    let effects = world.handle(Event::Cluster(News::Pods(PodNews::Is(object))));
    assert_eq!(wired(&effects).expect("it is wired").addresses, [IpAddr::from([10, 0, 3, 8])]);
}

#[test]
fn standard_mode_names_the_host_end_as_any_other() {
    let mut world = with_trunk(3);
    world.node.settings.enforcing = Enforcing::Standard;
    world.handle(told("web", BranchWish::Is(branch_eni(7))));

    let (_, effects) = world.add("web");

    let pod = wired(&effects).expect("it is wired");
    assert_eq!(pod.host_if, HostVeth::of_pod(&VethPrefix::default(), &attachment("web", "web").pod, 0));
    assert!(!pod.branch.as_ref().unwrap().is_strict());
}

#[test]
fn a_pod_that_wants_every_network_card_too_is_refused() {
    let mut world = with_trunk(3);
    world.node.settings.multi_nic = true;
    world.handle(told("web", BranchWish::Is(branch_eni(7))));

    let (_, effects) = world.ask(Verb::Add(Attachment { multi_nic: true, ..attachment("web", "web") }), 100);

    assert_eq!(failure(&effects).map(|failure| failure.reason), Some(Reason::BadInput));
    assert_eq!(waiting(&world), []);
}

#[test]
fn a_del_needs_no_api_server_and_gives_back_what_the_record_says() {
    let mut world = with_trunk(3);
    added(&mut world, "web", 7);
    world.handle(Event::Cluster(News::Pods(PodNews::Trouble("connection refused".to_owned()))));
    world.handle(Event::Cluster(News::Pods(PodNews::Gone(attachment("web", "web").pod))));
    // The settings may be others by now.
    world.node.settings.pod_eni = false;

    let effects = world.del("web", 200);

    let unwired = effects.iter().find_map(|effect| match effect {
        Effect::Unwire(pod) => pod.branch.clone(),
        _ => None,
    });
    assert_eq!(unwired.expect("its branch ENI is taken away").eni, branch_eni(7));
    assert_eq!(world.node.pool.owners().count(), 0);
    assert_eq!(world.node.report(world.now).addresses.cooling, 0);
}

#[test]
fn gc_and_check_know_such_pods_as_all_others() {
    let mut world = with_trunk(3);
    added(&mut world, "web", 7);
    added(&mut world, "other", 8);

    let (_, effects) = world.ask(Verb::Check(attachment("web", "web")), 200);
    assert!(
        effects.iter().any(|it| matches!(it, Effect::Check(_, pods) if pods[0].branch.is_some())),
        "{effects:?}"
    );
    let valid = vec![Kept { container_id: "other".to_owned(), if_name: "eth0".to_owned() }];
    let (_, effects) = world.ask(Verb::Gc { network_name: "aws-cni".to_owned(), valid }, 200);

    let gone = effects.iter().filter(|effect| matches!(effect, Effect::Unwire(pod) if pod.branch.is_some()));
    assert_eq!(gone.count(), 1);
    assert_eq!(world.node.pool.owners().count(), 1);
}

/// What a daemon would start with after this one.
fn restarted(world: &World, kernel: &[PodInKernel], more: Vec<Record>) -> crate::node::Restored {
    let mut records: Vec<Record> = world
        .node
        .pool
        .owners()
        .map(|(owner, grant)| Record::Assigned { owner: owner.clone(), address: grant.address, card: None })
        .collect();
    records.extend(more);
    let loaded = Loaded { records, ..Loaded::default() };
    let mut has_link = |host_if: &HostVeth| kernel.iter().any(|pod| pod.host_if == *host_if);
    restore(Duration::from_secs(30), loaded, kernel, &mut has_link, true, world.now)
}

fn in_kernel(world: &World) -> Vec<PodInKernel> {
    let pods = world.node.wired_pods().into_iter();
    pods.map(|pod| PodInKernel {
        host_if: pod.host_if,
        addresses: pod.addresses,
        by_us: true,
        branch: pod.branch,
    })
    .collect()
}

#[test]
fn a_restart_goes_on_from_the_record() {
    let mut world = with_trunk(3);
    added(&mut world, "web", 7);

    let restored = restarted(&world, &in_kernel(&world), Vec::new());

    assert_eq!((restored.remarks, restored.leftovers.len()), (Vec::<String>::new(), 0));
    let owners: Vec<_> = restored.pool.owners().map(|(owner, _)| owner.clone()).collect();
    assert_eq!(owners, world.node.pool.owners().map(|(owner, _)| owner.clone()).collect::<Vec<_>>());
}

#[test]
fn a_pod_whose_link_is_gone_leaves_its_vlan_to_be_taken_away() {
    let mut world = with_trunk(3);
    added(&mut world, "web", 7);
    let sandbox = attachment("web", "web").sandbox;

    let died = restarted(&world, &[], Vec::new());
    let deleted = restarted(&world, &[], vec![Record::Released { sandbox, at: world.now }]);

    for restored in [died, deleted] {
        assert_eq!(restored.pool.owners().count(), 0);
        let left: Vec<_> = restored.leftovers.iter().filter_map(|pod| pod.branch.clone()).collect();
        assert_eq!(left.iter().map(|branch| branch.eni.vlan.number()).collect::<Vec<_>>(), [7]);
    }
}

#[test]
fn one_that_only_the_kernel_knows_is_kept_until_its_del() {
    let mut world = with_trunk(3);
    added(&mut world, "web", 7);
    let kernel = in_kernel(&world);
    let restored =
        restore(Duration::from_secs(30), Loaded::default(), &kernel, &mut |_| true, true, world.now);
    assert_eq!(restored.pool.owners().count(), 1);
    world.node.pool = restored.pool;
    world.node.placeholders = true;

    let added = kernel.iter().flat_map(|pod| pod.addresses.clone()).collect();
    let effects = world.del_of("web", added, 200);

    let branch = effects.iter().find_map(|effect| match effect {
        Effect::Unwire(pod) => pod.branch.clone(),
        _ => None,
    });
    assert_eq!(branch.map(|branch| branch.eni.vlan.number()), Some(7));
}

fn wish(effects: &[Effect]) -> Option<&HostWish> {
    effects.iter().find_map(|effect| match effect {
        Effect::Converge { host, .. } => Some(&**host),
        _ => None,
    })
}

#[test]
fn the_trunks_link_is_wished_up_and_the_nodes_own_addresses_come_after_strict_pods_rules() {
    let mut world = node(3);
    // Before a pod can be on it.
    let effects = attach_trunk(&mut world);
    let node = &wish(&effects).expect("a wish").node;
    assert_eq!(node.trunk.map(|trunk| trunk.mac), Some(TRUNK));
    assert!(node.strict_branches);
    assert!(node.enis.iter().all(|eni| eni.mac != TRUNK), "no addresses, no rules, no table");

    let mut plain = World::ready(3);
    attach_trunk(&mut plain);
    plain.now = plain.now.plus(Duration::from_secs(31));
    let effects = plain.handle(Event::Tick);
    let node = &wish(&effects).expect("a wish").node;
    assert_eq!((node.trunk, node.strict_branches), (None, false));
}

fn features(effects: &[Effect]) -> Vec<Features> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Features(features) => Some(features.clone()),
        _ => None,
    });
    told.collect()
}

#[test]
fn the_cninode_asks_for_a_trunk_once_and_its_place_is_kept_until_it_is_there() {
    let mut world = World::new();
    world.node.settings.pod_eni = true;
    let effects = world.first_look(3);
    let mut told = features(&effects);
    let before = world.node.limits_of(NetworkCard(0)).unwrap().max_enis;
    told.extend(features(&world.converge(&effects)));
    for _ in 0..3 {
        world.now = world.now.plus(Duration::from_secs(1));
        told.extend(features(&world.handle(Event::Tick)));
    }
    assert_eq!(told, [BTreeMap::from([("SecurityGroupsForPods".to_owned(), String::new())])]);

    attach_trunk(&mut world);

    assert_eq!(world.node.limits_of(NetworkCard(0)).unwrap().max_enis, before + 1);
    assert_eq!(world.node.capacity().branch, 0, "the trunk counts as one that is not for pods");
}

#[test]
fn while_an_add_waits_for_a_branch_eni_the_trunk_is_looked_for_in_metadata_every_few_seconds() {
    let seconds = Duration::from_secs;
    let glances = |effects: &[Effect]| effects.iter().filter(|it| matches!(it, Effect::Glance)).count();
    let looks = |effects: &[Effect]| effects.iter().filter(|it| matches!(it, Effect::Look)).count();
    let mut world = node(3);
    world.handle(told("web", BranchWish::Is(branch_eni(7))));
    world.now = world.now.plus(seconds(60));
    assert_eq!(glances(&world.handle(Event::Tick)), 0, "nobody waits");

    let (_, effects) = world.add("web");

    assert_eq!(glances(&effects), 1);
    let books = world.node.pool.enis();
    assert_eq!(looks(&world.handle(Event::Glanced(Ok(books.clone())))), 0);
    assert_eq!(glances(&world.handle(Event::Tick)), 0, "one was a moment ago");
    assert!(world.node.next_wakeup(world.now) <= world.now.plus(seconds(5)));
    world.now = world.now.plus(seconds(5));
    assert_eq!(glances(&world.handle(Event::Tick)), 1);
    let mut joined = books.clone();
    joined.push(EniSeen { id: "eni-9".parse().unwrap(), addresses: BTreeSet::new(), ..books[0].clone() });
    assert_eq!(looks(&world.handle(Event::Glanced(Ok(joined.clone())))), 1);

    // EC2 does not tell it yet, and is asked again after some time.
    let subnets = world.node.subnets.clone();
    let picture = Picture { as_of: world.now, enis: books, subnets, ..Picture::default() };
    world.handle(Event::Looked(Ok(picture)));
    in_line(&mut world);
    let mut asked = Vec::new();
    for _ in 0..5 {
        world.now = world.now.plus(seconds(5));
        assert_eq!(glances(&world.handle(Event::Tick)), 1);
        asked.push(looks(&world.handle(Event::Glanced(Ok(joined.clone())))));
    }
    assert_eq!(asked, [0, 0, 0, 0, 1]);

    // Once only metadata has told it: what it is EC2 has to say, and is asked for that, ever later.
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let (subnets, enis) = (world.node.subnets.clone(), joined.clone());
        let picture = Picture { as_of: world.now, enis, subnets, from_metadata: true, ..Picture::default() };
        world.handle(Event::Looked(Ok(picture)));
        in_line(&mut world);
        pauses.push(world.node.cloud.look_at.since(world.now));
        world.now = world.node.cloud.look_at;
        assert_eq!(looks(&world.handle(Event::Tick)), 1);
    }
    assert!(pauses[0] <= seconds(120) && pauses[3] >= seconds(150), "{pauses:?}");
    let mut knows = with_trunk(3);
    knows.handle(told("web", BranchWish::Coming));
    knows.now = knows.now.plus(seconds(60));
    assert_eq!(glances(&knows.add("web").1), 0, "the trunk is known");
}

/// Whatever was wished is done, and what was wished while that was at work too.
fn in_line(world: &mut World) {
    for _ in 0..2 {
        world.handle(Event::Converged { generation: u64::MAX, result: Ok(HostMade::default()) });
    }
}

#[test]
fn both_features_are_named_together() {
    let mut world = World::new();
    world.node.settings.pod_eni = true;
    world.node.settings.custom_networking = true;
    let object = crate::cluster::NodeObject {
        eni_config: Some(crate::cluster::EniConfigName::of(
            &BTreeMap::new(),
            &BTreeMap::new(),
            &crate::cluster::NameKeys { annotation: "a".to_owned(), label: "l".to_owned() },
        )),
        ..crate::cluster::NodeObject::default()
    };
    let mut told = features(&world.handle(Event::Cluster(News::Node(Box::new(object)))));
    let effects = world.first_look(3);
    told.extend(features(&effects));
    told.extend(features(&world.converge(&effects)));

    let names: Vec<Vec<&str>> =
        told.iter().map(|features| features.keys().map(String::as_str).collect()).collect();
    assert_eq!(names, [vec!["CustomNetworking"], vec!["CustomNetworking", "SecurityGroupsForPods"]]);
}
