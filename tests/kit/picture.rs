//! The picture of the status page for the README: a real daemon with pods on several ENIs, opened in a browser.

use std::path::Path;
use std::time::Duration;

use crate::LabError;
use crate::browser::{self, Frame};
use crate::ec2::Config;
use crate::fabric::Fabric;
use crate::node::Node;
use crate::runtime::Pod;

/// Up to eight ENIs with 29 addresses each.
const INSTANCE_TYPE: &str = "m5.4xlarge";
/// Where the page is.
pub const STATUS: &str = "http://127.0.0.1:61679/status";

/// Sets a node up that has something to show, and takes the picture.
///
/// # Errors
/// Whatever keeps it from being taken.
pub fn take(frame: Frame, file: &Path) -> Result<(), LabError> {
    if let Some(why) = browser::missing() {
        return Err(LabError::Otherwise(format!("{why}: on Debian, apt-get install chromium")));
    }
    let fabric = Fabric::create(Config { attach_delay: Duration::from_millis(100), ..Config::default() })?;
    let node = Node::launch(&fabric, "node1", INSTANCE_TYPE)?;
    node.start_daemon(&[])?;
    node.wait_ready()?;
    let mut pods = add(&node, 0..34)?;
    // From here on with prefixes, beside the single addresses that pods have.
    node.stop_daemon()?;
    node.start_daemon(&[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_IP_TARGET", "20")])?;
    node.wait_ready()?;
    pods.extend(add(&node, 34..80)?);
    // Refused with a reason: the node serves one network card.
    let mut refused = Pod::create("trainer-0", "sandbox9999")?;
    refused.multi_nic = true;
    if refused.add(&node).is_ok() {
        return Err(LabError::Otherwise("a pod got an interface of every network card".to_owned()));
    }
    for pod in pods.iter_mut().skip(3).step_by(9) {
        pod.del(&node)?;
    }
    node.wait_for("every free address is there", |report| {
        report.plan.iter().all(|line| !line.contains("assign"))
    })?;
    browser::picture(node.netns(), STATUS, frame, file)
}

fn add(node: &Node, numbers: std::ops::Range<u32>) -> Result<Vec<Pod>, LabError> {
    let names = ["web", "api", "cache", "worker", "search"];
    numbers
        .map(|number| {
            let name = names[usize::try_from(number).unwrap_or(0) % names.len()];
            let mut pod = Pod::create(&format!("{name}-{}", number / 5), &format!("sandbox{number:04}"))?;
            pod.add(node)?;
            Ok(pod)
        })
        .collect()
}
