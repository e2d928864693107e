//! What the tests share.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::ec2::Config;
use lab::fabric::{Fabric, INTERNET_HOST, SECOND_CIDR_HOST, ipv6};
use lab::netns::Netns;
use lab::node::{Node, binary};
use lab::probe::{Echo, ask};
use lab::runtime::Pod;
use lab::{LabError, patience};
use libtest_mimic::Failed;
use wire::Report;

/// How a test ends.
pub(crate) type Outcome = Result<(), LabError>;
/// A test and its name.
pub(crate) type Test = (&'static str, fn() -> Outcome);

/// Runs one test; a failed expectation is an error with its words.
pub(crate) fn run(test: fn() -> Outcome) -> Result<(), Failed> {
    test().map_err(|error| Failed::from(error.to_string()))
}

/// An expectation of the test.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(lab::LabError::Otherwise(format!($($words)+)));
        }
    };
}
pub(crate) use ensure;

/// How long something may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that is not in the daemon's report.
pub(crate) fn eventually(what: &str, is: impl Fn() -> bool) -> Outcome {
    let until = Instant::now() + patience(PATIENCE);
    while !is() {
        ensure!(Instant::now() < until, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Which of our programs are not built.
pub(crate) fn missing_programs() -> Option<String> {
    let found = [binary("IPAMD_BIN", "ipamd"), binary("AWS_CNI_BIN", "aws-cni")];
    found.into_iter().find_map(Result::err).map(|error| error.to_string())
}

/// Tells the runner what is skipped and why.
pub(crate) fn tell_skips(tests: &[Test], reason: &str) {
    let lines: String = tests.iter().map(|(name, _)| format!("system {name}: {reason}\n")).collect();
    eprintln!("{lines}");
    if let Some(path) = std::env::var_os("LAB_SKIPS") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        let _told = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    }
}

/// Launches a node.
pub(crate) fn launch(fabric: &Fabric, name: &str, instance_type: &str) -> Result<Node, LabError> {
    // A state of before belongs to another test.
    let _gone = std::fs::remove_dir_all(format!("/run/lab/{name}"));
    Node::launch(fabric, name, instance_type)
}

/// Every pod reaches both far sides with the right source: the VPC sees the pod, the internet the node.
pub(crate) fn reach(setting: &Setting, pods: &[Pod]) -> Outcome {
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    for pod in pods {
        let (vpc, internet) = (ask(&pod.netns, SECOND_CIDR_HOST)?, ask(&pod.netns, INTERNET_HOST)?);
        ensure!(vpc == pod.address, "{}: the VPC saw {vpc:?}", pod.name);
        let node = Some(setting.node.instance().address);
        ensure!(internet == node, "{}: the internet saw {internet:?}", pod.name);
    }
    setting.fabric.troubles()
}

/// A VPC with one node whose daemon is ready. Drops the node first.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) node: Node,
    pub(crate) fabric: Fabric,
}

impl Setting {
    /// Starts it with an attach delay of 100 ms.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Result<Self, LabError> {
        Self::start_on("m5.large", settings)
    }

    /// The same on an instance of another type.
    pub(crate) fn start_on(instance_type: &str, settings: &[(&str, &str)]) -> Result<Self, LabError> {
        let setting = Self::launch(instance_type)?;
        setting.node.start_daemon(settings)?;
        setting.node.wait_ready()?;
        Ok(setting)
    }

    /// The same without the daemon.
    pub(crate) fn launch(instance_type: &str) -> Result<Self, LabError> {
        let config = Config { attach_delay: Duration::from_millis(100), ..Config::default() };
        let fabric = Fabric::create(config)?;
        let node = launch(&fabric, "node1", instance_type)?;
        Ok(Self { node, fabric })
    }

    /// Adds pods one after the other.
    pub(crate) fn pods(&self, names: std::ops::Range<u32>) -> Result<Vec<Pod>, LabError> {
        names
            .map(|number| {
                let mut pod = Pod::create(&format!("pod-{number}"), &format!("sandbox{number}"))?;
                pod.add(&self.node)?;
                Ok(pod)
            })
            .collect()
    }

    /// What EC2 was asked to change.
    pub(crate) fn changes(&self) -> Vec<String> {
        let calls = self.fabric.ec2().calls().into_iter().map(|call| call.action.as_str().to_owned());
        calls.filter(|action| !action.starts_with("Describe")).collect()
    }

    /// Checks that the daemon's books are those of these pods, address by address.
    pub(crate) fn accounts_for(&self, pods: &[Pod]) -> Result<Report, LabError> {
        let report = self.node.report()?;
        let mut held: Vec<String> =
            report.pods.iter().map(|pod| format!("{} {}", pod.pod, pod.address)).collect();
        let address = |pod: &Pod| pod.address.map(|a| a.to_string()).unwrap_or_default();
        let mut want: Vec<String> =
            pods.iter().map(|pod| format!("default/{} {}", pod.name, address(pod))).collect();
        held.sort();
        want.sort();
        ensure!(held == want, "the daemon holds {held:?}, the pods have {want:?}");
        ensure!(report.addresses.reserved == 0, "{} addresses stay reserved", report.addresses.reserved);
        Ok(report)
    }
}

/// A host on a link of its own to the node, whose main table leads to it; it reaches everything by the node.
pub(crate) fn neighbour(node: &Node, name: &str) -> Result<Netns, LabError> {
    let host = Netns::create(name)?;
    node.netns().ip(&format!(
        "link add side0 type veth peer name side1 netns {name}\nlink set side0 up\naddr add 203.0.113.1/24 dev side0\n"
    ))?;
    host.ip(&format!(
        "link set side1 up\naddr add {NEIGHBOUR}/24 dev side1\nroute add default via 203.0.113.1\n"
    ))?;
    if ipv6() {
        node.netns().ip("addr add 2001:db8:5::1/64 dev side0 nodad\n")?;
        host.ip("addr add 2001:db8:5::7/64 dev side1 nodad\nroute add default via 2001:db8:5::1\n")?;
    }
    Ok(host)
}

/// The address of a [`neighbour`].
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Does something while questions are asked again and again, from before it until after; each round has to go well.
pub(crate) fn while_asking(round: impl Fn() -> Outcome + Sync, act: impl FnOnce() -> Outcome) -> Outcome {
    let done = AtomicBool::new(false);
    round()?;
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Outcome {
            while !done.load(Ordering::Relaxed) {
                round()?;
            }
            round()
        });
        let acted = act();
        done.store(true, Ordering::Relaxed);
        let asked = asking.join();
        asked.unwrap_or_else(|_panic| Err(LabError::Otherwise("the traffic panicked".to_owned())))?;
        acted
    })
}
