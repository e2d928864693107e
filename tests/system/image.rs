//! The container image and the DaemonSet, by a real containerd: from the archive to a pod with an address.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::LabError;
use lab::cri::{Container, Containerd, OURS, Sandbox, ours};
use lab::fabric::SECOND_CIDR_HOST;
use lab::kubelet::PodSpec;
use lab::manifests::documents;
use lab::node::Node;
use lab::probe::{Echo, ask_at};

use crate::containerd::{cri, scratch, start_in};
use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] =
    &[("the_daemonset_brings_up_a_node_from_the_image_and_nothing_else", daemon_set)];

const DAEMON_SET: &str = include_str!("../../manifests/daemonset.yaml");
/// Where the daemon is on a node.
const RUN_DIR: &str = "/var/run/aws-node";
/// How long something may take to come true, and the pause between looks.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Where a path of the host is in the lab: what the kernel has is the lab's own, the rest is below the node's directory.
fn on_host(node: &Node, path: &str) -> PathBuf {
    match path {
        RUN_DIR => node.run_dir().to_owned(),
        path if path.starts_with("/proc/") => path.into(),
        path => node.run_dir().join("host").join(path.trim_start_matches('/')),
    }
}

fn pod_spec(node: &Node) -> Result<PodSpec, LabError> {
    let documents = documents(DAEMON_SET).map_err(LabError::Otherwise)?;
    let daemon_set = documents.iter().find(|document| document["kind"] == "DaemonSet");
    let daemon_set = daemon_set.ok_or_else(|| LabError::Otherwise("there is no DaemonSet".to_owned()))?;
    PodSpec::read(&daemon_set["spec"]["template"]["spec"], OURS, &|path| on_host(node, path))
}

/// Starts a container of the DaemonSet, which finds the lab's cloud where instances find EC2.
fn start(
    containerd: &Containerd,
    sandbox: (&str, &Sandbox),
    container: &Container,
) -> Result<String, LabError> {
    let mut container = container.clone();
    container.environment.extend(Node::cloud().into_iter().map(|(name, value)| (name.to_owned(), value)));
    cri(containerd.start_container(sandbox.0, sandbox.1, &container))
}

/// Waits for what a container comes to; if it does not, the end of what it printed is told.
fn wait(
    what: &str,
    containerd: &Containerd,
    container: &str,
    is: impl Fn() -> Result<bool, LabError>,
) -> Outcome {
    let until = Instant::now() + PATIENCE;
    while !is()? {
        let printed = || containerd.printed(container);
        ensure!(Instant::now() < until, "{what} did not come true:\n{}", printed());
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn daemon_set() -> Outcome {
    let setting = Setting::launch("m5.large")?;
    let node = &setting.node;
    let directory = scratch()?;
    let (conf, bin) = (on_host(node, "/etc/cni/net.d"), on_host(node, "/opt/cni/bin"));
    for made in [&conf, &bin] {
        std::fs::create_dir_all(made).map_err(LabError::doing("make a directory"))?;
    }
    // The plugin on the host goes by the usual path.
    let _gone = std::fs::remove_file(RUN_DIR);
    std::os::unix::fs::symlink(node.run_dir(), RUN_DIR).map_err(LabError::doing("link the run directory"))?;
    let containerd = start_in(node, &directory, &conf, &bin)?;
    cri(containerd.import(&ours(&directory)?))?;
    let spec = pod_spec(node)?;
    let pod = Sandbox { name: "aws-node".to_owned(), host_network: spec.host_network, ..Sandbox::default() };
    let id = cri(containerd.run_sandbox(&pod))?;

    for container in &spec.init {
        let init = start(&containerd, (&id, &pod), container)?;
        wait("the end of the init container", &containerd, &container.name, || {
            Ok(cri(containerd.exit_code(&init))?.is_some())
        })?;
        let code = cri(containerd.exit_code(&init))?;
        ensure!(code == Some(0), "{code:?}: {}", containerd.printed(&container.name));
    }
    let mut put = names(&bin)?;
    put.retain(|name| !["portmap", "bandwidth", "tuning"].contains(&name.as_str()));
    ensure!(put == ["aws-cni", "loopback"], "{put:?} were put on a host that had no plugin");
    ensure!(!conf.join("10-aws.conflist").exists(), "there is a conflist without a daemon");
    let [daemon] = spec.containers.as_slice() else {
        return Err(LabError::Otherwise(format!("{} containers", spec.containers.len())));
    };
    let running = start(&containerd, (&id, &pod), daemon)?;
    wait("a conflist", &containerd, &daemon.name, || Ok(conf.join("10-aws.conflist").exists()))?;
    for probe in [&["/ipamd", "--version"], &["/ipamd", "status"]] {
        let said = cri(containerd.exec(&running, probe))?;
        ensure!(said.success, "{probe:?}: {}", said.text);
    }

    serves(&setting, &containerd)?;
    bundles(node, &containerd, &running)?;

    // Told to end, it ends by itself.
    cri(containerd.stop_container(&running, PATIENCE))?;
    let code = cri(containerd.exit_code(&running))?;
    ensure!(code == Some(0), "it ended with {code:?}: {}", containerd.printed(&daemon.name));
    cri(containerd.stop(&id))?;
    cri(containerd.remove(&id))?;
    let _gone = std::fs::remove_file(RUN_DIR);
    Ok(())
}

/// The support archive comes out of a container that has nothing but our programs, with the plugin's log, which is on the host.
fn bundles(node: &Node, containerd: &Containerd, running: &str) -> Outcome {
    // The lab's plugin logs on the machine that the lab runs on.
    let logs = on_host(node, "/var/log/aws-routed-eni");
    let left =
        std::fs::create_dir_all(&logs).and_then(|()| std::fs::write(logs.join("plugin.log"), "a call\n"));
    left.map_err(LabError::doing("leave a log of the plugin"))?;
    let said = cri(containerd.exec(running, &["/ipamd", "bundle", "--out", "-"]))?;
    ensure!(said.success, "ipamd bundle: {}", said.text);
    let archive = node.run_dir().join("node.tar.gz");
    std::fs::write(&archive, &said.bytes).map_err(LabError::doing("write the archive"))?;
    let tar = |options: &str, of: &str| node.shell(&format!("tar {options} {} {of}", archive.display()));
    let named = tar("-tzf", "")?;
    for name in ["doctor.txt", "instance.json", "logs/host/var/log/aws-routed-eni/plugin.log", "missing.txt"]
    {
        ensure!(named.contains(&format!("ipamd/{name}\n")), "no {name} in {named}");
    }
    let missing = tar("-xzOf", "ipamd/missing.txt")?;
    ensure!(missing.contains("kubectl -n kube-system logs"), "{missing}");
    Ok(())
}

/// What is in a directory.
fn names(directory: &Path) -> Result<Vec<String>, LabError> {
    let entries = std::fs::read_dir(directory).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.map_err(LabError::doing("list a directory"))?;
    let mut names: Vec<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// A pod gets an address by what the DaemonSet has put on the node, and reaches the VPC with it.
fn serves(setting: &Setting, containerd: &Containerd) -> Outcome {
    let node = &setting.node;
    let web = cri(containerd.run("web", "uid-web"))?;
    let told = cri(containerd.address(&web))?;
    let report = node.report()?;
    let held: Vec<String> = report.pods.iter().map(|pod| pod.address.to_string()).collect();
    ensure!(held == [told.as_str()], "containerd says {told}, ipamd {held:?}");
    let _echo = Echo::start(setting.fabric.second())?;
    let seen = ask_at(&containerd.netns(&web)?, SECOND_CIDR_HOST.into())?;
    ensure!(seen.is_some_and(|seen| seen.to_string() == told), "the VPC saw {seen:?}, not {told}");
    cri(containerd.stop(&web))?;
    cri(containerd.remove(&web))?;
    ensure!(node.report()?.pods.is_empty(), "the address stays held");
    ensure!(Path::new(RUN_DIR).join("ipam.json").exists(), "no checkpoint in the run directory");
    Ok(())
}
