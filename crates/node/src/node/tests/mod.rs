//! The node, driven by events: no kernel, no cloud, no clock.

#![expect(clippy::wildcard_enum_match_arm, reason = "helpers of tests: they look for one thing")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pool::{Action, ActionId, EniSeen, Given, Outcome, Pool, Role, Targets, Wanted};
use types::{
    DeviceIndex, Enforcing, HostVeth, InstanceTable, Mac, Moment, NetworkCard, PodName, Reason, SandboxKey,
    VethPrefix,
};
use wire::{Attachment, Detachment, Failure, PROTOCOL, Reply, Request, Verb};

use super::{
    BatchId, CallId, Chore, Effect, Event, Facts, HostMade, Node, Picture, Settings, Stray, Subnets,
};
use super::{PodInKernel, restore};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::families::Families;
use crate::store::{Loaded, Record};
use remembering::remembered;

mod branches;
mod cards;
mod cards_ipv6;
mod cluster;
mod custom;
mod estate;
mod growing;
mod ipv6;
mod keeping;
mod links;
mod policies;
mod publishing;
mod reasons;
mod remembering;
mod repair;
mod telling;
mod waiting;

/// A node with its own little world around it.
struct World {
    node: Node,
    now: Moment,
    calls: u64,
    /// Why requests failed, and what those waited for that waited, in order: what the daemon counts.
    failed: Vec<Reason>,
    waited: Vec<Reason>,
    /// Why the last request that failed did.
    failure: Option<Failure>,
}

impl World {
    fn new() -> Self {
        Self::of(Families::V4 { egress: false })
    }

    fn of(families: Families) -> Self {
        let settings = Settings {
            families,
            targets: Targets { warm_ip: Some(1), minimum_ip: Some(3), ..Targets::default() },
            add_timeout: Duration::from_secs(60),
            in_cluster: true,
            audit_every: Duration::from_secs(3600),
            glance_every: Some(Duration::from_secs(900)),
            ..Settings::plain()
        };
        let now = Moment(1_000_000);
        let node = Node::new(settings, Pool::new(Duration::from_secs(30)), 1, now);
        Self { node, now, calls: 0, failed: Vec::new(), waited: Vec::new(), failure: None }
    }

    /// Identified, looked at, and converged, with this many free addresses.
    fn ready(addresses: u8) -> Self {
        Self::new().made_ready(addresses)
    }

    fn made_ready(mut self, addresses: u8) -> Self {
        let effects = self.first_look(addresses);
        self.converge(&effects);
        self.handle(Event::PodsCompared { put_back: false, lost: Vec::new() });
        self
    }

    /// What the first picture leads to.
    fn first_look(&mut self, addresses: u8) -> Vec<Effect> {
        self.handle(Event::Identified(Box::new(remembered().facts)));
        let eni = EniSeen {
            id: "eni-0".parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 0]),
            card: NetworkCard(0),
            device: DeviceIndex(0),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: Ipv4Addr::new(10, 0, 0, 4),
            addresses: (10..10 + addresses).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect(),
            prefixes: BTreeSet::new(),
            role: Role::Primary,
        };
        let subnets = BTreeMap::from([("subnet-1".parse().unwrap(), "10.0.0.0/20".parse().unwrap())]);
        let picture = Picture { as_of: self.now, enis: vec![eni], subnets, ..Picture::default() };
        self.handle(Event::Looked(Ok(picture)))
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.node.handle(event, self.now);
        for effect in &effects {
            self.count(effect);
        }
        effects
    }

    /// Keeps what the daemon counts.
    fn count(&mut self, effect: &Effect) {
        match effect {
            Effect::Reply(_, reply) => {
                self.failed.extend(reply.failure().map(|failure| failure.reason));
                self.failure = reply.failure().cloned().or(self.failure.take());
            }
            Effect::Waited(reason, _) => self.waited.push(*reason),
            _ => {}
        }
    }

    /// Grants the wish for the host's kernel that is among the effects.
    fn converge(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let generation = wished(effects).expect("a wish");
        self.handle(Event::Converged { generation, result: Ok(HostMade::default()) })
    }

    fn ask(&mut self, verb: Verb, started_ns: u64) -> (CallId, Vec<Effect>) {
        self.calls += 1;
        let id = CallId(self.calls);
        let request = Request { version: PROTOCOL, patience_ms: 90_000, started_ns, trace: None, verb };
        (id, self.handle(Event::Call { id, request, descriptors: true }))
    }

    fn add(&mut self, name: &str) -> (CallId, Vec<Effect>) {
        self.ask(Verb::Add(attachment(name, name)), 100)
    }

    fn del(&mut self, name: &str, started_ns: u64) -> Vec<Effect> {
        self.del_of(name, Vec::new(), started_ns)
    }

    /// A daemon that has lost its state beside a pod with such a link and address.
    fn known_by_the_kernel(host_if: HostVeth, address: IpAddr) -> Self {
        let in_kernel = PodInKernel { host_if, addresses: vec![address], by_us: true, branch: None };
        let mut world = Self::new();
        let restored =
            restore(Duration::from_secs(30), Loaded::default(), &[in_kernel], &mut |_| true, true, world.now);
        world.node.pool = restored.pool;
        world
    }

    /// A DEL with the addresses that the runtime keeps of the ADD.
    fn del_of(&mut self, name: &str, addresses: Vec<IpAddr>, started_ns: u64) -> Vec<Effect> {
        let Attachment { sandbox, pod, veth_prefix, .. } = attachment(name, name);
        self.ask(Verb::Del(Detachment { sandbox, pod, veth_prefix, addresses }), started_ns).1
    }

    /// An ADD to its end.
    fn added(&mut self, name: &str) {
        let (id, effects) = self.add(name);
        let batch = batch(&effects).expect("an append");
        self.handle(Event::Wired { id, result: Ok(()) });
        let effects = self.handle(Event::Written { batch, result: Ok(()) });
        assert!(matches!(reply(&effects), Some(Reply::Added(_))), "{effects:?}");
    }
}

/// A picture of what is there already, in which this ENI is forgotten.
fn with_a_forgotten_eni(world: &World) -> Picture {
    let chores = vec![Chore::Delete("eni-9".parse().unwrap())];
    Picture { as_of: world.now, enis: world.node.pool.enis(), chores, ..Picture::default() }
}

fn tidies(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Tidy(_)))
}

#[test]
fn a_denial_at_start_is_what_waiting_pods_are_told() {
    let mut world = World::new();
    world.handle(Event::Unidentified(CloudError::new(CloudErrorKind::Denied, "DescribeInstanceTypes", "no")));
    world.add("a");

    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);

    let failure = failure(&effects).expect("a failure");
    assert_eq!(failure.reason, Reason::Denied);
    assert!(failure.details.contains("DescribeInstanceTypes"), "{}", failure.details);
    assert_eq!(world.node.report(world.now).cloud.len(), 1);
}

#[test]
fn a_forgotten_eni_is_deleted_once() {
    let mut world = World::ready(4);
    let picture = with_a_forgotten_eni(&world);

    let effects = world.handle(Event::Looked(Ok(picture.clone())));
    assert!(tidies(&world.converge(&effects)));

    world.now = world.now.plus(Duration::from_secs(1));
    let effects = world.handle(Event::Looked(Ok(Picture { as_of: world.now, ..picture.clone() })));
    assert!(!tidies(&world.converge(&effects)), "it is being deleted");

    world.handle(Event::Tidied(Ok(())));
    world.now = world.now.plus(Duration::from_secs(1));
    let effects = world.handle(Event::Looked(Ok(Picture { as_of: world.now, ..picture })));
    assert!(tidies(&world.converge(&effects)), "it is still there");
}

#[test]
fn an_eni_that_may_be_the_one_being_made_is_not_forgotten() {
    let mut world = World::ready(4);
    world.node.pool.begin(&Action::CreateEni {
        card: NetworkCard(0),
        device: DeviceIndex(1),
        subnet: "subnet-1".parse().unwrap(),
        wanted: Wanted::Addresses(9),
    });
    let picture = with_a_forgotten_eni(&world);

    let effects = world.handle(Event::Looked(Ok(picture)));

    assert!(!tidies(&world.converge(&effects)));
    let again = world.node.next_wakeup(world.now).since(world.now);
    assert!(again <= Duration::from_secs(15), "looked at again after {again:?}");
}

#[test]
fn nothing_is_deleted_where_provisioning_is_off() {
    let mut world = World::ready(4);
    world.node.settings.provisioning = false;
    let picture = with_a_forgotten_eni(&world);

    let effects = world.handle(Event::Looked(Ok(picture)));

    assert!(!tidies(&world.converge(&effects)));
}

fn attachment(container: &str, pod: &str) -> Attachment {
    Attachment {
        sandbox: SandboxKey::new("aws-cni", container, "eth0").unwrap(),
        netns: "/run/netns/x".to_owned(),
        pod: PodName { namespace: "default".to_owned(), name: pod.to_owned() },
        pod_uid: String::new(),
        veth_prefix: VethPrefix::default(),
        mtu: 9001,
        multi_nic: false,
    }
}

fn reply(effects: &[Effect]) -> Option<&Reply> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(_, reply) => Some(reply),
        _ => None,
    })
}

fn failure(effects: &[Effect]) -> Option<&Failure> {
    match reply(effects)? {
        Reply::Failed(failure) => Some(failure),
        _ => None,
    }
}

fn batch(effects: &[Effect]) -> Option<BatchId> {
    effects.iter().find_map(|effect| match effect {
        // What is remembered of the IPv6 prefix has nothing to do with pods.
        Effect::Append(batch, records) if !matches!(records[..], [Record::Ipv6(_)]) => Some(*batch),
        _ => None,
    })
}

/// The number of the wish that is among the effects.
fn wished(effects: &[Effect]) -> Option<u64> {
    effects.iter().find_map(|effect| match effect {
        Effect::Converge { generation, .. } => Some(*generation),
        _ => None,
    })
}

fn action(effects: &[Effect]) -> Option<(ActionId, &Action)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act { id, action, .. } => Some((*id, action)),
        _ => None,
    })
}

#[test]
fn the_caller_hears_only_when_kernel_and_disk_are_done() {
    for disk_first in [true, false] {
        let mut world = World::ready(3);
        let (id, effects) = world.add("a");
        let batch = batch(&effects).expect("an append");
        let wired = Event::Wired { id, result: Ok(()) };
        let written = Event::Written { batch, result: Ok(()) };
        let (first, second) = if disk_first { (written, wired) } else { (wired, written) };

        assert!(reply(&world.handle(first)).is_none());
        assert!(matches!(reply(&world.handle(second)), Some(Reply::Added(_))));
    }
}

#[test]
fn a_state_that_cannot_be_written_promises_nothing() {
    let mut world = World::ready(1);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });

    let effects = world.handle(Event::Written { batch, result: Err("no space".to_owned()) });

    assert_eq!(failure(&effects).map(|f| f.reason), Some(Reason::StateNotWritable));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    assert_eq!(world.node.report(world.now).addresses.assigned, 0);
}

#[test]
fn an_add_waits_for_the_growth_that_it_causes() {
    let mut world = World::ready(0);
    let (_, effects) = world.add("a");
    assert!(reply(&effects).is_none());
    let asked = action(&effects).map(|(_, action)| action.clone());
    let (id, effects) = match asked {
        Some(_) => (action(&effects).expect("an action").0, Vec::new()),
        // The growth for the warm target may be on its way already.
        None => (ActionId(1), effects),
    };
    drop(effects);

    let gained = Outcome::Assigned(Given::addresses(
        [Ipv4Addr::new(10, 0, 0, 20), Ipv4Addr::new(10, 0, 0, 21)].into(),
    ));
    let effects = world.handle(Event::Acted { id, result: Ok(gained) });
    assert!(batch(&effects).is_none(), "an address is given before the host's kernel is ready for it");
    let effects = world.converge(&effects);

    assert!(batch(&effects).is_some(), "{effects:?}");
}

#[test]
fn an_add_that_waits_in_vain_says_why() {
    let mut world = World::ready(0);
    let (_, effects) = world.add("a");
    let id = action(&effects).map_or(ActionId(1), |(id, _)| id);
    let full = CloudError::new(CloudErrorKind::SubnetFull, "assign", "no free address");
    world.handle(Event::Acted { id, result: Err(full) });

    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);

    let failure = failure(&effects).expect("a failure");
    assert_eq!((failure.reason, failure.code.0), (Reason::SubnetFull, 11));
    assert!(failure.details.contains("0 free"), "{failure:?}");
}

#[test]
fn a_del_of_something_unknown_succeeds_at_once() {
    let mut world = World::new();

    let effects = world.del("never-heard-of", 1);

    assert_eq!(reply(&effects), Some(&Reply::Done));
}

#[test]
fn an_add_that_started_before_a_served_del_does_not_bring_the_sandbox_back() {
    let mut world = World::ready(3);
    world.del("a", 200);

    let (_, late) = world.ask(Verb::Add(attachment("a", "a")), 100);
    let (_, fresh) = world.ask(Verb::Add(attachment("a", "a")), 300);

    assert_eq!(failure(&late).map(|f| f.reason), Some(Reason::Superseded));
    assert!(batch(&fresh).is_some());
}

#[test]
fn a_del_during_its_add_ends_with_nothing_held() {
    let mut world = World::ready(3);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");

    assert_eq!(reply(&world.del("a", 200)), None);
    world.handle(Event::Wired { id, result: Ok(()) });
    let effects = world.handle(Event::Written { batch, result: Ok(()) });

    assert_eq!(failure(&effects).map(|f| f.reason), Some(Reason::Superseded));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))));
    // The runtime hears that it is gone when no restart can bring it back.
    let undone = self::batch(&effects).expect("an append");
    let effects = world.handle(Event::Written { batch: undone, result: Ok(()) });
    assert_eq!(reply(&effects), Some(&Reply::Done));
    let count = world.node.report(world.now).addresses;
    assert_eq!((count.assigned, count.reserved, count.cooling), (0, 0, 1));
}

#[test]
fn a_second_sandbox_of_a_pod_name_waits_for_the_first_one_to_go() {
    let mut world = World::ready(3);
    world.added("web");

    let (_, effects) = world.ask(Verb::Add(attachment("web-again", "web")), 300);
    assert!(batch(&effects).is_none() && reply(&effects).is_none(), "{effects:?}");
    // Others do not wait behind it.
    let (_, other) = world.add("other");
    assert!(batch(&other).is_some());

    let effects = world.del("web", 400);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Wire(..))), "{effects:?}");
}

#[test]
fn a_caller_that_hangs_up_gives_its_place_back() {
    let mut world = World::ready(0);
    let (id, _) = world.add("a");

    world.handle(Event::Gone(id));

    assert_eq!(world.node.report(world.now).waiting, Vec::new());
    let (_, again) = world.add("a");
    assert_ne!(failure(&again).map(|f| f.reason), Some(Reason::Busy));
}

#[test]
fn gc_without_a_valid_list_releases_only_its_own_network() {
    let mut world = World::ready(3);
    world.added("a");

    let other = Verb::Gc { network_name: "other".to_owned(), valid: Vec::new() };
    let (_, effects) = world.ask(other, 500);
    assert_eq!(reply(&effects), Some(&Reply::Collected { released: 0 }));

    let own = Verb::Gc { network_name: "aws-cni".to_owned(), valid: Vec::new() };
    let (_, effects) = world.ask(own, 500);
    let effects = world.handle(Event::Written { batch: batch(&effects).expect("an append"), result: Ok(()) });
    assert_eq!(reply(&effects), Some(&Reply::Collected { released: 1 }));
}

#[test]
fn a_node_that_is_not_ready_says_so_with_code_50() {
    let mut world = World::new();

    let (_, effects) = world.ask(Verb::Status, 1);

    assert_eq!(failure(&effects).map(|f| f.code.0), Some(50));
}

#[test]
fn a_del_finds_what_only_the_kernel_knows_also_without_a_pod_name() {
    let sandbox = SandboxKey::new("aws-cni", "plain", "eth0").unwrap();
    let host_if = HostVeth::of_sandbox(&VethPrefix::default(), &sandbox);
    let mut world = World::known_by_the_kernel(host_if, [10, 0, 0, 10].into());
    assert_eq!(world.node.report(world.now).addresses.assigned, 1);

    let veth_prefix = VethPrefix::default();
    let del = Verb::Del(Detachment { sandbox, pod: PodName::default(), veth_prefix, addresses: Vec::new() });
    let (_, effects) = world.ask(del, 1);

    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwire(_))), "{effects:?}");
    assert_eq!(world.node.report(world.now).addresses.assigned, 0);
}

#[test]
fn a_del_finds_what_only_the_kernel_knows_under_the_prefix_of_before() {
    let (name, was) =
        (PodName { namespace: "default".to_owned(), name: "a".to_owned() }, VethPrefix::default());
    let now = VethPrefix::new("azv").unwrap();
    let host_if = HostVeth::of_pod(&was, &name, 0);
    let mut world = World::known_by_the_kernel(host_if, [10, 0, 0, 10].into());
    world.node.settings.veth_prefix = now.clone();
    assert_eq!(world.node.veth_prefixes(), [now.clone(), was].into(), "both are prefixes of pods");

    let sandbox = SandboxKey::new("aws-cni", "a", "eth0").unwrap();
    let addresses = vec![[10, 0, 0, 10].into()];
    world.ask(Verb::Del(Detachment { sandbox, pod: name, veth_prefix: now.clone(), addresses }), 1);

    assert_eq!(world.node.report(world.now).addresses.assigned, 0);
    assert_eq!(world.node.veth_prefixes(), [now].into(), "nobody needs the one of before");
}

#[test]
fn a_pod_whose_served_del_was_not_carried_out_is_taken_away_at_the_next_start() {
    let mut world = World::ready(3);
    world.added("a");
    let (owner, grant) = world.node.pool.owners().next().unwrap();
    let (host_if, addresses) = (owner.host_if.clone(), vec![grant.address.into()]);
    let in_kernel = PodInKernel { host_if, addresses, by_us: true, branch: None };
    let records = vec![
        Record::Assigned { owner: owner.clone(), address: grant.address, card: None },
        Record::Released { sandbox: owner.sandbox.clone(), at: world.now },
    ];
    let loaded = Loaded { records, ..Loaded::default() };

    let kernel = [in_kernel.clone()];
    let restored = restore(Duration::from_secs(30), loaded, &kernel, &mut |_| true, true, world.now);

    assert_eq!(restored.leftovers.len(), 1);
    assert_eq!(restored.leftovers[0].host_if, in_kernel.host_if);
    assert_eq!(restored.pool.owners().count(), 0);
}

#[test]
fn a_name_is_free_again_once_its_holder_has_no_link() {
    let mut world = World::ready(3);
    world.added("web");
    // Its sandbox was removed without a DEL.
    let (_, effects) = world.ask(Verb::Add(attachment("web-again", "web")), 300);
    let asked = effects.iter().find_map(|effect| match effect {
        Effect::Survey(holders) => Some(holders.clone()),
        _ => None,
    });
    let (sandbox, _) = asked.expect("a survey").remove(0);

    let effects = world.handle(Event::Dead(Vec::new()));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Wire(..))), "the holder lives");
    let effects = world.handle(Event::Dead(vec![sandbox]));

    assert!(effects.iter().any(|effect| matches!(effect, Effect::Wire(..))), "{effects:?}");
}

#[test]
fn a_repeated_del_of_a_pods_first_sandbox_leaves_the_next_one_that_only_the_kernel_knows() {
    let Attachment { sandbox, pod, veth_prefix, .. } = attachment("web", "first");
    let host_if = HostVeth::of_pod(&veth_prefix, &pod, 0);
    let address: IpAddr = [10, 0, 0, 10].into();
    let mut world = World::known_by_the_kernel(host_if, address);
    let mut del = |addresses: Vec<IpAddr>| {
        let (sandbox, pod, veth_prefix) = (sandbox.clone(), pod.clone(), veth_prefix.clone());
        world.ask(Verb::Del(Detachment { sandbox, pod, veth_prefix, addresses }), 1);
        world.node.report(world.now).addresses.assigned
    };

    assert_eq!(del(Vec::new()), 1, "nothing says that it is this one's");
    assert_eq!(del(vec![[10, 0, 0, 11].into()]), 1, "it had another address");
    assert_eq!(del(vec![address]), 0);
}
