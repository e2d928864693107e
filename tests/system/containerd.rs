//! A real containerd calls the plugin.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::LabError;
use lab::cri::Containerd;
use lab::node::{Node, binary};
use serde_json::{Value, json};

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("containerd_makes_and_removes_sandboxes_in_parallel", parallel),
    ("containerd_cleans_up_after_a_failed_add", failed_add),
    ("containerd_makes_a_pod_again_under_the_same_name_at_once", same_name),
    ("containerd_makes_one_pod_name_twice_at_once", name_at_once),
    ("containerd_may_remove_a_sandbox_twice", removed_twice),
    ("containerd_lives_through_a_killed_daemon", killed),
    ("containerd_lives_through_a_daemon_killed_among_its_calls", killed_among),
    ("doctor_compares_the_state_with_what_containerd_was_told", compared),
];

/// The reference plugins, where Debian puts them.
pub(crate) const NEIGHBOURS: &str = "/usr/lib/cni";

/// Why containerd cannot run here.
pub(crate) fn missing() -> Option<String> {
    let mut missing = lab::cri::missing();
    missing
        .extend((!Path::new(NEIGHBOURS).join("loopback").exists()).then_some("containernetworking-plugins"));
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

pub(crate) fn cri<T>(result: Result<T, lab::cri::CriError>) -> Result<T, LabError> {
    result.map_err(|error| LabError::Otherwise(format!("{error:?}")))
}

/// A containerd in the node's namespace, with our plugin and conflist.
fn start(node: &Node) -> Result<Containerd, LabError> {
    start_chained(node, &[])
}

/// The same with plugins of other people after ours in the conflist.
pub(crate) fn start_chained(node: &Node, others: &[Value]) -> Result<Containerd, LabError> {
    start_list(node, &[&[ours(node)], others].concat())
}

/// The same with these plugins, ours among them.
pub(crate) fn start_list(node: &Node, plugins: &[Value]) -> Result<Containerd, LabError> {
    let directory = scratch()?;
    let (conf, bin) = (directory.join("net.d"), directory.join("bin"));
    for made in [&conf, &bin] {
        std::fs::create_dir_all(made).map_err(LabError::doing("make a directory"))?;
    }
    std::fs::copy(binary("AWS_CNI_BIN", "aws-cni")?, bin.join("aws-cni"))
        .map_err(LabError::doing("copy the plugin"))?;
    // containerd brings the loopback up with the reference plugin.
    let types = plugins.iter().filter_map(|plugin| plugin["type"].as_str());
    for other in ["loopback"].into_iter().chain(types.filter(|other| *other != "aws-cni")) {
        link_plugin(&bin, other)?;
    }
    std::fs::write(conf.join("10-aws.conflist"), conflist(plugins).to_string())
        .map_err(LabError::doing("write the conflist"))?;
    start_in(node, &directory, &conf, &bin)
}

/// An empty directory for an instance.
pub(crate) fn scratch() -> Result<PathBuf, LabError> {
    let directory = PathBuf::from("/run/lab/containerd");
    let _gone = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).map_err(LabError::doing("make a directory"))?;
    Ok(directory)
}

/// A containerd in the node's namespace that looks for plugins and conflists in these directories.
pub(crate) fn start_in(
    node: &Node,
    directory: &Path,
    conf: &Path,
    bin: &Path,
) -> Result<Containerd, LabError> {
    cri(Containerd::start(directory, conf, bin, |command| node.netns().spawn(command)))
}

fn link_plugin(bin: &Path, name: &str) -> Outcome {
    let linked = std::os::unix::fs::symlink(Path::new(NEIGHBOURS).join(name), bin.join(name));
    linked.map_err(LabError::doing(format!("link {name}")))
}

/// Our element of a conflist.
pub(crate) fn ours(node: &Node) -> Value {
    json!({
        "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
        "socket": node.socket(), "queueDir": node.run_dir().join("delete-queue"),
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
    })
}

/// A conflist of these plugins.
pub(crate) fn conflist(plugins: &[Value]) -> Value {
    json!({"cniVersion": "1.0.0", "name": "aws-cni", "plugins": plugins})
}

fn pods_held(node: &Node) -> Result<usize, LabError> {
    Ok(node.report()?.pods.len())
}

fn parallel() -> Outcome {
    let setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    let ids: Vec<Result<String, LabError>> = std::thread::scope(|scope| {
        let run = |n: u32| cri(containerd.run(&format!("c-{n}"), &format!("uid-{n}")));
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

fn compared() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    // What killed ones have left.
    let _gone = std::fs::remove_dir_all("/var/lib/cni/results");
    let containerd = start(node)?;
    let run = |n: u32| cri(containerd.run(&format!("d-{n}"), &format!("uid-{n}")));
    let ids = (0..3).map(run).collect::<Result<Vec<_>, _>>()?;

    let output = node.tool(&["doctor"], &[])?;

    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "not well: {said}");
    ensure!(said.contains("the runtime, which knows 3 sandboxes of ours"), "not compared: {said}");
    for id in &ids {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    let output = node.tool(&["doctor"], &[])?;
    ensure!(output.status.success(), "not well: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn failed_add() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let containerd = start(&setting.node)?;
    let run = |n: u32| cri(containerd.run(&format!("f-{n}"), &format!("uid-{n}")));
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
        let id = cri(containerd.run("again", &format!("uid-{round}")))?;
        cri(containerd.stop(&id))?;
        cri(containerd.remove(&id))?;
    }
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}

fn killed() -> Outcome {
    let setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    let run = |n: u32| cri(containerd.run(&format!("k-{n}"), &format!("uid-{n}")));
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

fn name_at_once() -> Outcome {
    let setting = Setting::start(&[("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let containerd = start(&setting.node)?;
    let run = |uid: &str| cri(containerd.run("twin", uid));
    let results: Vec<Result<String, LabError>> = std::thread::scope(|scope| {
        let threads = ["uid-a", "uid-b"].map(|uid| scope.spawn(move || run(uid)));
        let panicked = |_panic| Err(LabError::Otherwise("a call panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let ids: Vec<&String> = results.iter().flatten().collect();
    ensure!(ids.len() == 1, "two sandboxes of one name: {results:?}");
    ensure!(pods_held(&setting.node)? == 1, "{} addresses are held", pods_held(&setting.node)?);
    cri(containerd.stop(ids[0]))?;
    cri(containerd.remove(ids[0]))?;
    let id = run("uid-c")?;
    cri(containerd.stop(&id))?;
    cri(containerd.remove(&id))?;
    ensure!(pods_held(&setting.node)? == 0, "addresses stay held");
    Ok(())
}

fn removed_twice() -> Outcome {
    let setting = Setting::start(&[])?;
    let containerd = start(&setting.node)?;
    let id = cri(containerd.run("twice", "uid"))?;
    for _ in 0..2 {
        cri(containerd.stop(&id))?;
    }
    for _ in 0..2 {
        cri(containerd.remove(&id))?;
    }
    let report = setting.accounts_for(&[])?;
    ensure!(report.addresses.cooling == 1, "{} addresses cool", report.addresses.cooling);
    Ok(())
}

/// Makes a sandbox as a kubelet does: again after a failure.
fn insist(containerd: &Containerd, number: u32) -> Result<String, LabError> {
    let mut last = None;
    for attempt in 0..20 {
        match cri(containerd.run(&format!("m-{number}"), &format!("uid-{number}-{attempt}"))) {
            Ok(id) => return Ok(id),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(last.unwrap_or_else(|| LabError::Otherwise("not tried".to_owned())))
}

/// Kills the daemon and starts it again, until told to end or five times.
fn kill_again_and_again(node: &Node, done: &AtomicBool) -> Outcome {
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(150));
        node.kill_daemon();
        std::thread::sleep(Duration::from_millis(50));
        node.start_daemon(&[])?;
        node.wait_ready()?;
        if done.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

fn killed_among() -> Outcome {
    let setting = Setting::start(&[])?;
    let (containerd, node) = (start(&setting.node)?, &setting.node);
    let done = AtomicBool::new(false);
    let panicked = || LabError::Otherwise("a thread panicked".to_owned());
    let (ids, killed) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_again_and_again(node, &done));
        let runs: Vec<_> = (0..12)
            .map(|number| {
                let containerd = &containerd;
                scope.spawn(move || insist(containerd, number))
            })
            .collect();
        let ids: Result<Vec<String>, LabError> =
            runs.into_iter().map(|run| run.join().unwrap_or_else(|_panic| Err(panicked()))).collect();
        done.store(true, Ordering::Relaxed);
        (ids, killer.join().unwrap_or_else(|_panic| Err(panicked())))
    });
    killed?;
    let ids = ids?;
    let report = node.report()?;
    let held: BTreeSet<&str> = report.pods.iter().map(|pod| pod.sandbox.container_id()).collect();
    let want: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    ensure!(held == want, "the daemon holds {held:?}, containerd has {want:?}");
    for id in &ids {
        let told = cri(containerd.address(id))?;
        let pod = report.pods.iter().find(|pod| pod.sandbox.container_id() == id);
        ensure!(pod.is_some_and(|pod| pod.address.to_string() == told), "{id} has {told}, ipamd {pod:?}");
    }
    for id in &ids {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    setting.accounts_for(&[])?;
    Ok(())
}
