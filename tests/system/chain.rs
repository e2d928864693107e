//! Plugins of other people before and after ours, run by containerd and by Podman.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::LabError;
use lab::cri::Sandbox;
use lab::fabric::INTERNET_HOST;
use lab::fabric::SECOND_CIDR_HOST;
use lab::netns::Netns;
use lab::node::{Node, binary};
use lab::podman::{self, Podman};
use lab::probe::{By, Echo, PORT, ask_at, ask_by};
use serde_json::{Value, json};

use crate::containerd::{NEIGHBOURS, conflist, cri, ours, start_chained, start_list};
use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const CONTAINERD: &[Test] = &[
    ("containerd_gives_pods_host_ports_and_bandwidth_by_the_plugins_after_ours", by_containerd),
    ("containerd_is_told_by_plugins_before_ours_that_they_come_after_another_and_nothing_is_left", too_early),
];

pub(crate) const PODMAN: &[Test] = &[
    ("podman_runs_a_container_with_host_ports_and_bandwidth_on_our_network", by_podman),
    (
        "podman_is_told_by_plugins_before_ours_that_they_come_after_another_and_nothing_is_left",
        too_early_podman,
    ),
    ("podman_is_told_why_ours_cannot_come_after_another_plugin_and_nothing_is_left", not_first),
];

/// What the tests let through, in bits per second, and as `tc` prints it.
const TO_POD: (u64, &str) = (10_000_000, "10Mbit");
const FROM_POD: (u64, &str) = (20_000_000, "20Mbit");
/// How long what follows DEL may take, and the pause between looks.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// The host port of the first container.
const HOST_PORT: u16 = 8080;

/// Why the plugins cannot do their work here. Called in the lab.
pub(crate) fn missing() -> Option<String> {
    let absent = ["portmap", "bandwidth"].into_iter().find(|name| !Path::new(NEIGHBOURS).join(name).exists());
    if let Some(name) = absent {
        return Some(format!("no {name} in {NEIGHBOURS}"));
    }
    let shaped = Netns::create("shaped").and_then(|netns| {
        netns.ip("link add shaped0 type ifb\nlink set shaped0 up\n")?;
        netns.read("tc qdisc add dev shaped0 root tbf rate 1mbit burst 10k latency 50ms")
    });
    shaped.err().map(|error| format!("no ifb or tbf here: {error}"))
}

/// The same for Podman.
pub(crate) fn without_podman() -> Option<String> {
    missing().or_else(podman::missing)
}

fn portmap() -> Value {
    json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}})
}

/// What every container gets stands in the conflist.
fn bandwidth() -> Value {
    json!({
        "type": "bandwidth",
        "ingressRate": TO_POD.0, "ingressBurst": TO_POD.0, "egressRate": FROM_POD.0, "egressBurst": FROM_POD.0,
    })
}

/// A host port reaches the pod from the internet and from the VPC, and the pod sees who asks.
fn reached(setting: &Setting, pod: &Netns, port: u16) -> Outcome {
    let _echo = Echo::start(pod)?;
    let node = setting.node.instance().address;
    for (from, source) in
        [(setting.fabric.internet(), INTERNET_HOST), (setting.fabric.second(), SECOND_CIDR_HOST)]
    {
        let seen = ask_by(By::Tcp, from, (node, port).into())?;
        ensure!(seen == Some(source.into()), "port {port}: the pod saw {seen:?}, not {source}");
    }
    setting.fabric.troubles()
}

/// Whether `tc` shows both directions of a pod shaped: on its host end, and on the link that its own packets are sent through.
fn shaped(node: &Node) -> Result<bool, LabError> {
    let shown = node.netns().read("tc qdisc show")?;
    let shapes = |link: &str, rate: &str| {
        shown.lines().any(|line| {
            line.starts_with("qdisc tbf ") && line.contains(&format!(" dev {link}")) && line.contains(rate)
        })
    };
    Ok(shapes("eni", TO_POD.1) && shapes("bwp", FROM_POD.1))
}

/// Nothing of the plugins after ours is there any more. The host end goes a little after DEL has answered, and its shaping with it.
fn cleared(node: &Node) -> Outcome {
    let rules = node.netns().read("iptables -t nat -S")?;
    ensure!(!rules.contains("--to-destination"), "host ports stay: {rules}");
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = node.netns().read("tc qdisc show")?;
        if !shown.contains("tbf") && !shown.contains("bwp") {
            return Ok(());
        }
        ensure!(Instant::now() < until, "shaping stays: {shown}");
        std::thread::sleep(PAUSE);
    }
}

fn by_containerd() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let containerd = start_chained(node, &[portmap(), bandwidth])?;
    let rates = [("ingress", TO_POD.0), ("egress", FROM_POD.0)];
    let annotations: HashMap<String, String> =
        rates.map(|(way, rate)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_string())).into();
    let sandbox = |name: &str, port: u16| Sandbox {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        ports: vec![(By::Tcp, port, PORT), (By::Udp, port, PORT)],
        annotations: annotations.clone(),
        ..Sandbox::default()
    };

    let first = cri(containerd.run_sandbox(&sandbox("first", HOST_PORT)))?;
    ensure!(shaped(node)?, "not shaped: {}", node.netns().read("tc qdisc show")?);
    // On a secondary ENI, while questions come in by the primary one and replies have to leave by it.
    let mut others = setting.pods(0..8)?;
    let second = cri(containerd.run_sandbox(&sandbox("second", HOST_PORT + 1)))?;
    let report = node.report()?;
    let eni = |name: &str| report.pods.iter().find(|pod| pod.pod.name == name).map(|pod| pod.eni.clone());
    ensure!(eni("first") != eni("second"), "both pods are on {:?}", eni("first"));

    for (id, port) in [(&first, HOST_PORT), (&second, HOST_PORT + 1)] {
        reached(&setting, &containerd.netns(id)?, port)?;
    }
    for id in [&first, &second] {
        cri(containerd.stop(id))?;
        cri(containerd.remove(id))?;
    }
    cleared(node)?;
    for pod in &mut others {
        pod.del(node)?;
    }
    setting.accounts_for(&[])?;
    Ok(())
}

/// Podman in the node, by a conflist of these plugins.
fn podman_with(node: &Node, plugins: &[Value]) -> Result<Podman, LabError> {
    let directory = Path::new("/run/lab/podman");
    let _gone = std::fs::remove_dir_all(directory);
    let (conf, bin) = (directory.join("net.d"), directory.join("bin"));
    for made in [&conf, &bin] {
        std::fs::create_dir_all(made).map_err(LabError::doing("make a directory"))?;
    }
    let ours = binary("AWS_CNI_BIN", "aws-cni")?;
    std::fs::copy(ours, bin.join("aws-cni")).map_err(LabError::doing("copy the plugin"))?;
    for name in ["portmap", "bandwidth", "ptp", "host-local"] {
        let linked = std::os::unix::fs::symlink(Path::new(NEIGHBOURS).join(name), bin.join(name));
        linked.map_err(LabError::doing(format!("link {name}")))?;
    }
    let written = std::fs::write(conf.join("10-aws.conflist"), conflist(plugins).to_string());
    written.map_err(LabError::doing("write the conflist"))?;
    Podman::new(node, directory, &conf, &bin)
}

fn by_podman() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let mut first = ours(node);
    first["plainResult"] = true.into();
    let podman = podman_with(node, &[first, portmap(), bandwidth()])?;

    podman.start("web", &["--publish", &format!("{HOST_PORT}:{PORT}")])?;

    let told = podman.address("web", "aws-cni")?;
    let report = node.report()?;
    let held: Vec<String> = report.pods.iter().map(|pod| pod.address.to_string()).collect();
    ensure!(held == [told.as_str()], "podman says {told}, ipamd {held:?}");
    let inside = podman.netns("web")?;
    {
        let _echo = Echo::start(setting.fabric.second())?;
        let seen = ask_at(&inside, SECOND_CIDR_HOST.into())?;
        ensure!(seen.is_some_and(|seen| seen.to_string() == told), "the VPC saw {seen:?}, not {told}");
    }
    let mac = inside.read("ip -brief link show dev eth0")?;
    let told = podman.mac("web", "aws-cni")?;
    ensure!(mac.contains(&format!(" {told} ")), "podman says {told}, the container has {mac}");
    reached(&setting, &inside, HOST_PORT)?;
    ensure!(shaped(node)?, "not shaped: {}", node.netns().read("tc qdisc show")?);
    podman.remove("web")?;
    cleared(node)?;
    let report = setting.accounts_for(&[])?;
    ensure!(report.addresses.cooling == 1, "{} addresses cool", report.addresses.cooling);
    Ok(())
}

/// Links, policy rules and routes of the node.
fn kernel(node: &Node) -> Result<String, LabError> {
    let read = ["ip -oneline link show", "ip rule show", "ip route show table all"]
        .map(|line| node.netns().read(line));
    let words = read.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    // A link's number of queued packets and the like are not what is asked.
    Ok(words.lines().map(|line| line.split(" mtu ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

/// The runtime has not come to ours, and what it has undone leaves nothing: no address was ever a pod's.
fn untouched(setting: &Setting, before: &str) -> Outcome {
    cleared(&setting.node)?;
    let after = kernel(&setting.node)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    let report = setting.accounts_for(&[])?;
    ensure!(report.addresses.cooling == 0, "{} addresses cool", report.addresses.cooling);
    Ok(())
}

/// These two work on what a plugin before them has made: as the first of the list they refuse, whatever comes after them.
fn too_early() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let before = kernel(node)?;
    for plugin in [portmap(), bandwidth()] {
        let containerd = start_list(node, &[plugin.clone(), ours(node)])?;
        let sandbox = Sandbox {
            name: "early".to_owned(),
            uid: "uid-early".to_owned(),
            ports: vec![(By::Tcp, HOST_PORT, PORT)],
            ..Sandbox::default()
        };

        let error =
            cri(containerd.run_sandbox(&sandbox)).err().map(|error| error.to_string()).unwrap_or_default();

        ensure!(error.contains("must be called as chained plugin"), "{plugin}: containerd says {error}");
        untouched(&setting, &before)?;
    }
    Ok(())
}

fn too_early_podman() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let before = kernel(node)?;
    for plugin in [portmap(), bandwidth()] {
        let podman = podman_with(node, &[plugin.clone(), ours(node)])?;

        let started = podman.start("early", &["--publish", &format!("{HOST_PORT}:{PORT}")]);

        let error = started.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains("must be called as chained plugin"), "{plugin}: podman says {error}");
        podman.remove("early")?;
        untouched(&setting, &before)?;
    }
    Ok(())
}

fn not_first() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let before = json!({
        "type": "ptp",
        "ipam": {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": "/run/lab/podman/ipam"},
    });
    let podman = podman_with(node, &[before, ours(node)])?;

    let error = podman.start("late", &[]).err().map(|error| error.to_string()).unwrap_or_default();

    ensure!(error.contains("must be the first of its list"), "podman says {error}");
    ensure!(error.contains("[bad-config]"), "no reason: {error}");
    podman.remove("late")?;
    setting.accounts_for(&[])?;
    Ok(())
}
