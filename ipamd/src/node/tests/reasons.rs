//! Every way in which an ADD can wait or fail has one reason, the same in the answer and in the status (A6).

use super::*;
use crate::hold::Hold;

/// An ADD that waits until its time is over, in a node where this has happened: the answer, the status while it waited.
fn wait_in_vain(world: &mut World) -> (Failure, Reason, String) {
    let (_, effects) = world.add("vain");
    assert!(reply(&effects).is_none(), "{effects:?}");
    let waiting = world.node.report(world.now).waiting[0].reason;
    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);
    let failure = failure(&effects).expect("a failure").clone();
    let line = world.node.report(world.now).cloud.join("\n");
    (failure, waiting, line)
}

fn walk(world: &mut World, reason: Reason, details: &str) -> Reason {
    let (failure, waiting, _) = wait_in_vain(world);
    assert_eq!((failure.reason, waiting), (reason, reason));
    assert_eq!(failure.code, reason.cni_code());
    assert!(failure.details.contains(details), "{reason}: {}", failure.details);
    reason
}

/// A node without a free address whose growth has just failed.
fn refused(kind: CloudErrorKind) -> World {
    let mut world = World::ready(0);
    let error = CloudError::new(kind, "AssignPrivateIpAddresses", "the words of EC2");
    world.handle(Event::Acted { id: ActionId(1), result: Err(error) });
    world
}

/// What EC2 does, and what its words become.
const OF_EC2: [(CloudErrorKind, Reason); 12] = [
    (CloudErrorKind::Throttled, Reason::Throttled),
    (CloudErrorKind::SubnetFull, Reason::SubnetFull),
    (CloudErrorKind::NoPrefix, Reason::NoPrefix),
    (CloudErrorKind::EniLimit, Reason::EniLimit),
    (CloudErrorKind::AddressLimit, Reason::NodeFull),
    (CloudErrorKind::Denied, Reason::Denied),
    (CloudErrorKind::Gone, Reason::CloudGone),
    (CloudErrorKind::Unreachable, Reason::CloudUnreachable),
    (CloudErrorKind::InUse, Reason::CloudUnreachable),
    (CloudErrorKind::Unclear, Reason::CloudUnreachable),
    (CloudErrorKind::Garbage, Reason::CloudUnreachable),
    (CloudErrorKind::Other, Reason::CloudUnreachable),
];

#[test]
fn what_ec2_refuses_is_what_the_pod_the_status_and_the_log_are_told() {
    for (kind, reason) in OF_EC2 {
        let (failure, waiting, line) = wait_in_vain(&mut refused(kind));

        assert_eq!((failure.reason, waiting), (reason, reason), "{kind:?}");
        assert!(line.starts_with(reason.word()), "{kind:?}: {line}");
        // What somebody who has to act wants to know: how much there is, and what EC2 said.
        for part in ["0 free", "of 3 ENIs", "the words of EC2"] {
            assert!(failure.details.contains(part), "{kind:?}: {}", failure.details);
        }
    }
}

fn starting() -> Reason {
    walk(&mut World::new(), Reason::Starting, "0 assigned")
}

fn no_ipv6() -> Reason {
    let mut world = World::of(Families::Dual).made_ready(1);
    let error = CloudError::new(CloudErrorKind::Other, "AssignIpv6Addresses", "the subnet has none");
    world.handle(Event::Ipv6Assigned(Err(error)));
    walk(&mut world, Reason::NoIpv6, "the subnet has none")
}

fn denied_at_start() -> Reason {
    let mut world = World::new();
    world.handle(Event::Unidentified(CloudError::new(CloudErrorKind::Denied, "DescribeInstanceTypes", "no")));
    walk(&mut world, Reason::Denied, "DescribeInstanceTypes")
}

fn growing() -> Reason {
    walk(&mut World::ready(0), Reason::PoolEmpty, "1 of 3 ENIs")
}

fn on_hold() -> Reason {
    let mut world = World::new();
    world.handle(Event::Held(Hold::Changes));
    walk(&mut world.made_ready(0), Reason::OnHold, "an operator holds back changes")
}

fn provisioning_off() -> Reason {
    let mut world = World::new();
    world.node.settings.provisioning = false;
    walk(&mut world.made_ready(0), Reason::OnHold, "a setting allows no changes")
}

/// All nine slots of the primary ENI are pods', and nothing more was wanted until now.
fn with_a_full_eni(max_enis: u8) -> World {
    let mut world = World::new();
    world.node.settings.max_enis = Some(max_enis);
    world.node.settings.targets = Targets { minimum_ip: Some(9), ..Targets::default() };
    let mut world = world.made_ready(9);
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));
    world
}

fn node_full() -> Reason {
    let details = "9 assigned, 0 cooling, 0 reserved, 0 free; 1 of 1 ENIs";
    walk(&mut with_a_full_eni(1), Reason::NodeFull, details)
}

fn no_subnet() -> Reason {
    let mut world = with_a_full_eni(3);
    world.node.pool.set_subnets(Vec::new());
    walk(&mut world, Reason::NoSubnet, "1 of 3 ENIs")
}

fn no_eni_config() -> Reason {
    let details = "no-eni-config: the node object, which names the ENIConfig, is not known";
    walk(&mut custom::custom(3), Reason::NoEniConfig, details)
}

/// An answer that comes at once.
fn at_once(effects: &[Effect], reason: Reason) -> Reason {
    let failure = failure(effects).expect("a failure");
    assert_eq!((failure.reason, failure.code), (reason, reason.cni_code()));
    assert!(!failure.message.is_empty());
    reason
}

fn name_in_use() -> Reason {
    let mut world = World::ready(3);
    world.added("web");
    world.ask(Verb::Add(attachment("web-again", "web")), 300);
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::NameInUse);
    world.now = world.now.plus(Duration::from_secs(61));
    at_once(&world.handle(Event::Tick), Reason::NameInUse)
}

fn superseded() -> Reason {
    let mut world = World::ready(3);
    world.del("a", 200);
    at_once(&world.ask(Verb::Add(attachment("a", "a")), 100).1, Reason::Superseded)
}

fn busy() -> Reason {
    let mut world = World::ready(0);
    world.add("a");
    at_once(&world.add("a").1, Reason::Busy)
}

fn no_multi_nic() -> Reason {
    let verb = Verb::Add(Attachment { multi_nic: true, ..attachment("a", "a") });
    at_once(&World::ready(1).ask(verb, 100).1, Reason::NoMultiNic)
}

fn without_descriptors() -> Reason {
    let mut world = World::ready(1);
    let verb = Verb::Add(attachment("a", "a"));
    let request = Request { version: PROTOCOL, patience_ms: 1000, started_ns: 1, verb };
    let effects = world.handle(Event::Call { id: CallId(9), request, descriptors: false });
    at_once(&effects, Reason::BadInput)
}

fn state_not_writable() -> Reason {
    let mut world = World::ready(1);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    at_once(
        &world.handle(Event::Written { batch, result: Err("no space".to_owned()) }),
        Reason::StateNotWritable,
    )
}

/// What the parts that do things report is passed on as it is.
fn of_wiring(reason: Reason) -> Reason {
    let mut world = World::ready(1);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Written { batch, result: Ok(()) });
    at_once(&world.handle(Event::Wired { id, result: Err(Failure::new(reason, "no")) }), reason)
}

fn unknown_sandbox() -> Reason {
    let mut world = World::ready(1);
    at_once(&world.ask(Verb::Check(attachment("a", "a")), 1).1, Reason::UnknownSandbox)
}

/// Those that come up outside of the node, each with tests where that is: the plugin's conformance tests, the socket's, the
/// datapath's.
const ELSEWHERE: [Reason; 7] = [
    Reason::BadEnvironment,
    Reason::BadConfig,
    Reason::UnsupportedVersion,
    Reason::BadNetns,
    Reason::DaemonUnreachable,
    Reason::DeadlineExceeded,
    Reason::Drifted,
];

#[test]
fn every_reason_is_walked() {
    let mut walked: BTreeSet<Reason> = BTreeSet::from([
        starting(),
        denied_at_start(),
        no_ipv6(),
        growing(),
        on_hold(),
        provisioning_off(),
        node_full(),
        all_cooling(),
        no_subnet(),
        no_eni_config(),
        name_in_use(),
        superseded(),
        busy(),
        no_multi_nic(),
        without_descriptors(),
        state_not_writable(),
        of_wiring(Reason::KernelRefused),
        of_wiring(Reason::Internal),
        policies::refused(Reason::PolicyAgentUnreachable),
        policies::refused(Reason::PolicyRefused),
        unknown_sandbox(),
    ]);
    walked.extend(OF_EC2.map(|(_, reason)| reason));

    let all: BTreeSet<Reason> = Reason::ALL.iter().copied().collect();
    let here: BTreeSet<Reason> = all.difference(&ELSEWHERE.into()).copied().collect();
    assert_eq!(walked, here);
}

/// On a full node an address that still cools is given early rather than none, so no ADD waits for this as things are.
fn all_cooling() -> Reason {
    let mut world = with_a_full_eni(1);
    world.del("pod-0", 200);
    world.node.why_short(NetworkCard(0), world.now)
}
