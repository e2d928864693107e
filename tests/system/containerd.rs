//! A real containerd calls the plugin.

use std::path::{Path, PathBuf};

use lab::LabError;
use lab::cri::Containerd;
use lab::node::{Node, binary};
use serde_json::json;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("containerd_makes_and_removes_sandboxes_in_parallel", parallel),
    ("containerd_cleans_up_after_a_failed_add", failed_add),
    ("containerd_makes_a_pod_again_under_the_same_name_at_once", same_name),
    ("containerd_lives_through_a_killed_daemon", killed),
];

/// The reference loopback plugin, where Debian puts it.
const LOOPBACK: &str = "/usr/lib/cni/loopback";

/// Why containerd cannot run here.
pub(crate) fn missing() -> Option<String> {
    let mut missing = lab::cri::missing();
    missing.extend((!Path::new(LOOPBACK).exists()).then_some("containernetworking-plugins"));
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

fn cri<T>(result: Result<T, lab::cri::CriError>) -> Result<T, LabError> {
    result.map_err(|error| LabError::Otherwise(format!("{error:?}")))
}

/// A containerd in the node's namespace, with our plugin and conflist.
fn start(node: &Node) -> Result<Containerd, LabError> {
    let directory = Path::new("/run/lab/containerd");
    let _gone = std::fs::remove_dir_all(directory);
    let (conf, bin): (PathBuf, PathBuf) = (directory.join("net.d"), directory.join("bin"));
    for made in [&conf, &bin] {
        std::fs::create_dir_all(made).map_err(LabError::doing("make a directory"))?;
    }
    std::fs::copy(binary("AWS_CNI_BIN", "aws-cni")?, bin.join("aws-cni"))
        .map_err(LabError::doing("copy the plugin"))?;
    // containerd brings the loopback up with the reference plugin.
    std::os::unix::fs::symlink(LOOPBACK, bin.join("loopback"))
        .map_err(LabError::doing("link the loopback plugin"))?;
    let plugin = json!({
        "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
        "socket": node.socket(), "queueDir": node.run_dir().join("delete-queue"),
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
    });
    let list = json!({"cniVersion": "1.0.0", "name": "aws-cni", "plugins": [plugin]});
    std::fs::write(conf.join("10-aws.conflist"), list.to_string())
        .map_err(LabError::doing("write the conflist"))?;
    cri(Containerd::start(directory, &conf, &bin, |command| node.netns().spawn(command)))
}

fn pods_held(node: &Node) -> Result<usize, LabError> {
    Ok(node.report()?.pods.len())
}

fn parallel() -> Outcome {
    let setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    let ids: Vec<Result<String, LabError>> = std::thread::scope(|scope| {
        let run = |n: u32| cri(containerd.run("default", &format!("c-{n}"), &format!("uid-{n}")));
        let threads: Vec<_> = (0..12).map(|n| scope.spawn(move || run(n))).collect();
        let panicked = |_panic| Err(LabError::Otherwise("a call panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let ids = ids.into_iter().collect::<Result<Vec<_>, _>>()?;
    let report = setting.node.report()?;
    ensure!(report.pods.len() == 12, "{} of 12 sandboxes hold an address", report.pods.len());
    for id in &ids {
        let told = cri(containerd.address(id))?;
        let held = report.pods.iter().find(|pod| pod.sandbox.container_id() == id);
        let held = held.map(|pod| pod.address.to_string()).unwrap_or_default();
        ensure!(held == told, "containerd says {told}, ipamd {held}");
    }
    for id in &ids {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}

fn failed_add() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let containerd = start(&setting.node)?;
    let run = |n: u32| cri(containerd.run("default", &format!("f-{n}"), &format!("uid-{n}")));
    let ids = (0..9).map(run).collect::<Result<Vec<_>, _>>()?;

    let error = run(9).err().map(|error| error.to_string()).unwrap_or_default();

    ensure!(error.contains("node-full"), "the tenth sandbox says {error}");
    ensure!(pods_held(&setting.node)? == 9, "the failed one left something behind");
    for id in &ids {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}

fn same_name() -> Outcome {
    let setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    for round in 0..5 {
        let id = cri(containerd.run("default", "again", &format!("uid-{round}")))?;
        cri(containerd.stop(&id))?;
        cri(containerd.remove(&id))?;
    }
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}

fn killed() -> Outcome {
    let mut setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    let run = |n: u32| cri(containerd.run("default", &format!("k-{n}"), &format!("uid-{n}")));
    let ids = (0..4).map(run).collect::<Result<Vec<_>, _>>()?;
    setting.node.kill_daemon();

    cri(containerd.stop(&ids[0]))?;
    cri(containerd.remove(&ids[0]))?;
    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    ensure!(pods_held(&setting.node)? == 3, "{} addresses are held", pods_held(&setting.node)?);
    let last = run(4)?;
    for id in ids[1..].iter().chain([&last]) {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}
