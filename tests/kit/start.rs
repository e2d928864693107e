//! How long a fresh node takes from the daemon's start to a conflist and a usable address, with nobody's help: calls to EC2 take
//! their time, the API server swallows packets, there is no kube-proxy, and somebody holds the lock of iptables all the while.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::LabError;
use crate::ec2::{Action, Config, Fault};
use crate::fabric::Fabric;
use crate::node::Node;
use crate::runtime::Pod;

/// How long each call to EC2 takes.
const CALL: Duration = Duration::from_millis(100);
/// Calls that are slowed down; a start makes a few.
const CALLS_MAX: u32 = 1000;
/// How long a start may take at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// An API server that never answers.
const BLACK_HOLE: &str = "https://192.0.2.1:443";
/// Packets to it go to a MAC address that nobody has, so nobody says that it cannot be reached.
const HOLE: &str = "route add 192.0.2.1/32 dev ens5\n\
    neigh add 192.0.2.1 lladdr 02:ff:ff:ff:ff:ff dev ens5 nud permanent\n";
/// What is wished for.
const TARGET_MS: u128 = 1000;

/// One start.
#[derive(Debug)]
struct Start {
    conflist: Duration,
    add: Duration,
}

/// Starts a fresh node so many times; says how it went, returns the figures.
///
/// # Errors
/// Whatever keeps it from running, and an ADD that fails although the conflist says that it would not.
pub fn run(runs: u32, say: &mut dyn FnMut(&str)) -> Result<Value, LabError> {
    let mut starts = Vec::new();
    let lock = File::options().create(true).truncate(false).write(true).open("/run/xtables.lock");
    let lock = lock.map_err(LabError::doing("open the lock of iptables"))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(LabError::doing("take the lock of iptables"))?;
    for number in 0..runs {
        let start = start(number)?;
        say(&format!(
            "   {number:>3}  conflist after {:>5} ms, first ADD {:>6.2} ms",
            start.conflist.as_millis(),
            start.add.as_secs_f64() * 1000.0
        ));
        starts.push(start);
    }
    drop(lock);
    let (median, most) = spread(starts.iter().map(|start| start.conflist.as_millis()));
    let (add, add_most) = spread(starts.iter().map(|start| start.add.as_micros()));
    let met = if most <= TARGET_MS { "met" } else { "not met" };
    say(&format!(
        "   {runs} starts, calls to EC2 {} ms each: conflist after {median} ms (median), {most} ms (longest); at most {TARGET_MS} ms: {met}",
        CALL.as_millis()
    ));
    say(&format!(
        "   the next ADD succeeded {runs} times of {runs}: {add} µs (median), {add_most} µs (longest)"
    ));
    let number = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Ok(json!({
        "runs": runs, "ec2_call_ms": number(CALL.as_millis()),
        "conflist_ms": {"median": number(median), "longest": number(most)},
        "first_add_us": {"median": number(add), "longest": number(add_most)},
    }))
}

fn spread(figures: impl Iterator<Item = u128>) -> (u128, u128) {
    let mut sorted: Vec<u128> = figures.collect();
    sorted.sort_unstable();
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}

/// A node that nobody has started a daemon on.
fn start(number: u32) -> Result<Start, LabError> {
    let fabric = Fabric::create(Config::default())?;
    for action in Action::ALL {
        fabric.ec2().fault_next(*action, CALLS_MAX, Fault::Delay(CALL));
    }
    // A state of before belongs to another start.
    let _gone = std::fs::remove_dir_all("/run/lab/node1");
    let node = Node::launch(&fabric, "node1", "m5.large")?;
    node.netns().ip(HOLE)?;
    let kubeconfig = node.kubeconfig(BLACK_HOLE)?.display().to_string();
    let mut pod = Pod::create(&format!("first-{number}"), &format!("first{number}"))?;
    let began = Instant::now();
    node.start_daemon(&[("IPAMD_KUBECONFIG", &kubeconfig), ("MY_NODE_NAME", "node1")])?;
    while !node.conflist().exists() {
        if began.elapsed() > PATIENCE {
            return Err(LabError::Otherwise(format!("there is no conflist: {}", node.log_tail())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let conflist = began.elapsed();
    pod.add(&node)?;
    Ok(Start { conflist, add: pod.took })
}
