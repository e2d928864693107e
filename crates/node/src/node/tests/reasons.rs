//! Every way in which a request can wait or fail has one reason, the same word wherever somebody looks for it (A6): in the answer,
//! in the log, as what is counted, in the pod's event and, while it waits, in the status. That a reason which is counted is a metric's
//! label the metrics' own tests prove.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::cluster::BranchWish;
use crate::hold::Hold;

/// How a reason comes up.
enum Walk {
    /// The node says it; this leads there.
    Node(fn() -> World),
    /// The plugin says it, or nobody but the runtime's caller could: this test of the plugin leads there.
    Plugin(&'static str),
}

/// Where each reason comes from. One that is new has to be walked before this compiles.
fn walk(reason: Reason) -> Walk {
    let protocol = include_str!("../../../../../cni-plugin/tests/conformance/protocol.rs");
    match reason {
        Reason::BadEnvironment | Reason::UnsupportedVersion | Reason::BadConfig => Walk::Plugin(protocol),
        Reason::DeadlineExceeded => Walk::Node(waiting::too_late),
        Reason::BadInput => Walk::Node(without_descriptors),
        Reason::BadNetns => Walk::Node(|| of_wiring(Reason::BadNetns)),
        Reason::UnknownSandbox => Walk::Node(unknown_sandbox),
        Reason::Superseded => Walk::Node(superseded),
        Reason::NameInUse => Walk::Node(name_in_use),
        Reason::NoMultiNic => Walk::Node(no_multi_nic),
        Reason::DaemonUnreachable => Walk::Node(stopping),
        Reason::Starting => Walk::Node(|| in_vain(World::new(), "0 assigned")),
        Reason::Busy => Walk::Node(busy),
        Reason::StateNotWritable => Walk::Node(state_not_writable),
        Reason::KernelRefused => Walk::Node(|| of_wiring(Reason::KernelRefused)),
        Reason::Drifted => Walk::Node(drifted),
        Reason::PolicyAgentUnreachable => Walk::Node(|| policies::refused(Reason::PolicyAgentUnreachable)),
        Reason::PolicyRefused => Walk::Node(|| policies::refused(Reason::PolicyRefused)),
        Reason::NoPodObject => Walk::Node(|| in_vain(branch_world(None), "whether the pod has a branch ENI")),
        Reason::NoBranchEni => {
            Walk::Node(|| in_vain(branch_world(Some(BranchWish::Coming)), "vpc.amazonaws.com/pod-eni"))
        }
        Reason::NoTrunk => Walk::Node(|| {
            in_vain(branch_world(Some(BranchWish::Is(branches::branch_eni(7)))), "no trunk ENI is attached")
        }),
        Reason::PoolEmpty => Walk::Node(|| in_vain(World::ready(0), "1 of 3 ENIs")),
        Reason::NodeFull => Walk::Node(node_full),
        Reason::NoSubnet => Walk::Node(no_subnet),
        Reason::NoEniConfig => Walk::Node(no_eni_config),
        Reason::OnHold => Walk::Node(on_hold),
        Reason::SubnetFull => Walk::Node(|| refused(CloudErrorKind::SubnetFull)),
        Reason::NoPrefix => Walk::Node(|| refused(CloudErrorKind::NoPrefix)),
        Reason::NoIpv6 => Walk::Node(no_ipv6),
        Reason::EniLimit => Walk::Node(|| refused(CloudErrorKind::EniLimit)),
        Reason::EniFull => Walk::Node(|| refused(CloudErrorKind::AddressLimit)),
        Reason::InUse => Walk::Node(|| refused(CloudErrorKind::InUse)),
        Reason::Throttled => Walk::Node(|| refused(CloudErrorKind::Throttled)),
        Reason::Denied => Walk::Node(|| refused(CloudErrorKind::Denied)),
        Reason::NoRoots => Walk::Node(|| refused(CloudErrorKind::NoRoots)),
        Reason::CloudUnreachable => Walk::Node(|| refused(CloudErrorKind::Unreachable)),
        Reason::CloudGone => Walk::Node(|| refused(CloudErrorKind::Gone)),
        Reason::Internal => Walk::Node(|| of_wiring(Reason::Internal)),
    }
}

/// What was logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Walks a way with somebody who listens to the log, and holds all that is told at its end against the reason.
fn told(reason: Reason, walk: impl FnOnce() -> World) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let world = tracing::subscriber::with_default(subscriber, walk);

    let failure = world.failure.as_ref().expect("a failure");
    assert_eq!((failure.reason, failure.code), (reason, reason.cni_code()));
    assert!(!failure.message.is_empty(), "{reason}");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains(&format!("reason={reason} ")), "{reason} is not in the log: {log}");
    let counted = world.failed.iter().filter(|failed| **failed == reason).count();
    assert_eq!(counted, 1, "{reason} is not counted: {:?}", world.failed);
    // Whoever waited is told and counted with the same word too.
    assert!(world.waited.iter().all(|waited| *waited == reason), "{reason}: {:?}", world.waited);
}

#[test]
fn every_reason_is_the_same_word_in_the_answer_the_log_the_metrics_and_the_status() {
    for reason in Reason::ALL {
        match walk(*reason) {
            Walk::Node(walk) => told(*reason, walk),
            Walk::Plugin(test) => {
                let name = format!("Reason::{reason:?}");
                assert!(test.contains(reason.word()) || test.contains(&name), "nobody tests {reason}");
            }
        }
    }
}

/// An ADD that waits until its time is over; what the status, and so the metrics, said while it waited is what the answer says, and the
/// answer has these words among its details.
fn in_vain(mut world: World, details: &str) -> World {
    let (_, effects) = world.add("vain");
    assert!(reply(&effects).is_none(), "{effects:?}");
    let report = world.node.report(world.now);
    let waiting = report.waiting.last().expect("somebody waits").reason;
    let alike = report.waiting.iter().filter(|other| other.reason == waiting).count();
    assert_eq!(alike, 1, "{:?}", report.waiting);

    world.now = world.now.plus(Duration::from_secs(61));
    let effects = world.handle(Event::Tick);

    let failure = failure(&effects).expect("a failure");
    assert_eq!(failure.reason, waiting);
    // The pod is said to be held for it, and to have failed for it.
    assert_eq!(telling::told(&effects), [waiting.word(); 2]);
    assert!(failure.details.contains(details), "{waiting}: {}", failure.details);
    world
}

/// A node with security groups for pods, without a trunk; what its pod's object says.
fn branch_world(branch: Option<BranchWish>) -> World {
    let mut world = branches::node(3);
    if let Some(branch) = branch {
        world.handle(branches::told("vain", branch));
    }
    world
}

/// A node without a free address whose growth has just failed, and a pod that waits.
fn refused(kind: CloudErrorKind) -> World {
    let mut world = World::ready(0);
    let error = CloudError::new(kind, "AssignPrivateIpAddresses", "the words of EC2");
    world.handle(Event::Acted { id: ActionId(1), result: Err(error) });
    let line = world.node.report(world.now).cloud.join("\n");
    assert!(line.starts_with(kind.reason().word()), "{kind:?}: {line}");
    // What somebody who has to act wants to know: how much there is, and what EC2 said.
    let world = in_vain(world, "the words of EC2");
    let details = &world.failure.as_ref().expect("a failure").details;
    assert!(details.contains("0 free") && details.contains("of 3 ENIs"), "{kind:?}: {details}");
    world
}

/// What EC2 does, and what its words become.
const OF_EC2: [(CloudErrorKind, Reason); 14] = [
    (CloudErrorKind::Throttled, Reason::Throttled),
    (CloudErrorKind::SubnetFull, Reason::SubnetFull),
    (CloudErrorKind::NoPrefix, Reason::NoPrefix),
    (CloudErrorKind::EniLimit, Reason::EniLimit),
    (CloudErrorKind::AddressLimit, Reason::EniFull),
    (CloudErrorKind::Denied, Reason::Denied),
    (CloudErrorKind::NoRoots, Reason::NoRoots),
    (CloudErrorKind::Gone, Reason::CloudGone),
    (CloudErrorKind::NoPlace, Reason::NoSubnet),
    (CloudErrorKind::InUse, Reason::InUse),
    (CloudErrorKind::Unreachable, Reason::CloudUnreachable),
    (CloudErrorKind::Unclear, Reason::CloudUnreachable),
    (CloudErrorKind::Garbage, Reason::CloudUnreachable),
    (CloudErrorKind::Other, Reason::CloudUnreachable),
];

/// The ways to a reason that has more than one.
#[test]
fn a_reason_with_several_causes_is_told_for_each() {
    for (kind, reason) in OF_EC2 {
        told(reason, || refused(kind));
    }
    told(Reason::Denied, denied_at_start);
    told(Reason::OnHold, provisioning_off);
    told(Reason::NoEniConfig, eni_config_of_nowhere);
}

fn no_ipv6() -> World {
    let mut world = World::of(Families::Dual).made_ready(1);
    let error = CloudError::new(CloudErrorKind::Other, "AssignIpv6Addresses", "the subnet has none");
    world.handle(Event::Ipv6Assigned("eni-0".parse().unwrap(), Err(error)));
    in_vain(world, "the subnet has none")
}

fn denied_at_start() -> World {
    let mut world = World::new();
    world.handle(Event::Unidentified(CloudError::new(CloudErrorKind::Denied, "DescribeInstanceTypes", "no")));
    in_vain(world, "DescribeInstanceTypes")
}

fn on_hold() -> World {
    let mut world = World::new();
    world.handle(Event::Held(Hold::Changes));
    in_vain(world.made_ready(0), "an operator holds back changes")
}

fn provisioning_off() -> World {
    let mut world = World::new();
    world.node.settings.provisioning = false;
    in_vain(world.made_ready(0), "a setting allows no changes")
}

/// All nine slots of the primary ENI are pods', and nothing more was wanted until now. What they were given is not counted here.
pub(super) fn with_a_full_eni(max_enis: u8) -> World {
    let mut world = World::new();
    world.node.settings.max_enis = Some(max_enis);
    world.node.settings.targets = Targets { minimum_ip: Some(9), ..Targets::default() };
    let mut world = world.made_ready(9);
    (0..9).for_each(|n| world.added(&format!("pod-{n}")));
    world
}

fn node_full() -> World {
    in_vain(with_a_full_eni(1), "9 assigned, 0 cooling, 0 reserved, 0 free; 1 of 1 ENIs")
}

fn no_subnet() -> World {
    let mut world = with_a_full_eni(3);
    world.node.pool.set_subnets(Vec::new());
    in_vain(world, "1 of 3 ENIs")
}

fn no_eni_config() -> World {
    let details = "no-eni-config: the node object, which names the ENIConfig, is not known";
    in_vain(custom::custom(3), details)
}

/// What the ENIConfig names EC2 does not know.
fn eni_config_of_nowhere() -> World {
    let mut world = custom::placed();
    let error = CloudError::new(CloudErrorKind::NoPlace, "CreateNetworkInterface", "sg-2 does not exist");
    world.handle(Event::Acted { id: ActionId(1), result: Err(error) });
    in_vain(world, "no-eni-config: CreateNetworkInterface: sg-2 does not exist")
}

fn name_in_use() -> World {
    let mut world = World::ready(3);
    world.added("web");
    world.ask(Verb::Add(attachment("web-again", "web")), 300);
    assert_eq!(world.node.report(world.now).waiting[0].reason, Reason::NameInUse);
    world.now = world.now.plus(Duration::from_secs(61));
    world.handle(Event::Tick);
    world
}

fn superseded() -> World {
    let mut world = World::ready(3);
    world.del("a", 200);
    world.ask(Verb::Add(attachment("a", "a")), 100);
    world
}

fn stopping() -> World {
    let mut world = World::ready(0);
    world.add("a");
    world.handle(Event::Stopping);
    world
}

fn busy() -> World {
    let mut world = World::ready(0);
    world.add("a");
    world.add("a");
    world
}

fn no_multi_nic() -> World {
    let mut world = World::ready(1);
    world.ask(Verb::Add(Attachment { multi_nic: true, ..attachment("a", "a") }), 100);
    world
}

fn without_descriptors() -> World {
    let mut world = World::ready(1);
    let verb = Verb::Add(attachment("a", "a"));
    let request = Request { version: PROTOCOL, patience_ms: 1000, started_ns: 1, trace: None, verb };
    world.handle(Event::Call { id: CallId(9), request, descriptors: false });
    world
}

fn state_not_writable() -> World {
    let mut world = World::ready(1);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Wired { id, result: Ok(()) });
    world.handle(Event::Written { batch, result: Err("no space".to_owned()) });
    world
}

/// What the parts that do things report is passed on as it is.
fn of_wiring(reason: Reason) -> World {
    let mut world = World::ready(1);
    let (id, effects) = world.add("a");
    let batch = batch(&effects).expect("an append");
    world.handle(Event::Written { batch, result: Ok(()) });
    world.handle(Event::Wired { id, result: Err(Failure::new(reason, "no")) });
    world
}

fn unknown_sandbox() -> World {
    let mut world = World::ready(1);
    world.ask(Verb::Check(attachment("a", "a")), 1);
    world
}

fn drifted() -> World {
    let mut world = World::ready(1);
    world.added("a");
    let (id, _) = world.ask(Verb::Check(attachment("a", "a")), 1);
    world.handle(Event::Checked { id, result: Err(Failure::new(Reason::Drifted, "there is no route")) });
    world
}
