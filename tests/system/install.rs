//! A fresh node: what is installed, and that the runtime hears of us only when pods can be served.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::LabError;
use lab::ec2::Config;
use lab::fabric::Fabric;
use lab::node::{Node, binary};
use lab::runtime::{Pod, call_plugin};
use serde_json::{Value, json};

use crate::support::{Outcome, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("the_conflist_comes_when_an_add_would_succeed_and_not_before", order),
    ("a_conflist_of_before_is_replaced_once_and_then_left_alone", replaced),
    ("the_whole_chain_of_the_conflist_serves_a_pod", chain),
    ("the_installer_puts_the_plugin_on_the_host_and_uninstalling_leaves_it", installer),
];

/// How long something may take to come true, and the pause between looks.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

fn fresh(settings: &[(&str, &str)], before: impl Fn(&Node) -> Outcome) -> Result<(Node, Fabric), LabError> {
    let fabric = Fabric::create(Config::default())?;
    // A state of before belongs to another test.
    let _gone = std::fs::remove_dir_all("/run/lab/node1");
    let node = Node::launch(&fabric, "node1", "m5.large")?;
    before(&node)?;
    node.start_daemon(settings)?;
    Ok((node, fabric))
}

fn wait(what: &str, is: impl Fn() -> bool) -> Outcome {
    let until = Instant::now() + PATIENCE;
    while !is() {
        ensure!(Instant::now() < until, "{what} did not come true");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn ipamd(node: &Node, arguments: &[&str]) -> Result<std::process::Output, LabError> {
    ipamd_with(node, arguments, &[])
}

fn ipamd_with(
    node: &Node,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> Result<std::process::Output, LabError> {
    let mut command = Command::new(binary("IPAMD_BIN", "ipamd")?);
    command.args(arguments).env("IPAMD_RUN_DIR", node.run_dir()).envs(settings.iter().copied());
    command.env("HOST_CNI_BIN_PATH", node.run_dir().join("bin"));
    if let Some(directory) = node.conflist().parent() {
        command.env("HOST_CNI_CONFDIR_PATH", directory);
    }
    command.output().map_err(LabError::doing("run ipamd"))
}

fn hold(node: &Node, what: &str) -> Outcome {
    let output = ipamd(node, &["hold", what])?;
    ensure!(output.status.success(), "ipamd hold: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn conflist(node: &Node) -> Result<Value, LabError> {
    let text = std::fs::read_to_string(node.conflist()).map_err(LabError::doing("read the conflist"))?;
    serde_json::from_str(&text).map_err(|error| LabError::Otherwise(format!("the conflist: {error}")))
}

/// The configuration of one plugin of the list, as a runtime makes it for a pod whose bandwidth is limited.
fn plugin_conf(list: &Value, plugin: &Value, previous: Option<&Value>) -> Value {
    let mut conf = plugin.clone();
    // No host ports: Debian's portmap looks for rules of IPv6 at CHECK whatever the pod has.
    let wishes = json!({"bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 10_000_000}});
    for (capability, wish) in wishes.as_object().into_iter().flatten() {
        if plugin["capabilities"][capability] == true {
            conf["runtimeConfig"][capability] = wish.clone();
        }
    }
    conf["cniVersion"] = list["cniVersion"].clone();
    conf["name"] = list["name"].clone();
    if let Some(previous) = previous {
        conf["prevResult"] = previous.clone();
    }
    conf
}

/// ADD by what the conflist says and nothing else.
fn add(node: &Node, pod: &Pod) -> Result<Value, LabError> {
    let list = conflist(node)?;
    let conf = plugin_conf(&list, &list["plugins"][0], None).to_string();
    let answer = call_plugin(node, "ADD", &pod.container_id, &pod.netns.path(), &pod.name, conf.as_bytes())?;
    ensure!(answer.success, "ADD: {}", answer.stdout);
    Ok(answer.stdout)
}

fn order() -> Outcome {
    // Nothing can be had from EC2: the daemon is ready and has no address.
    let (node, _fabric) = fresh(&[("WARM_IP_TARGET", "3")], |node| hold(node, "changes"))?;
    node.wait_ready()?;
    node.wait_for("the hold", |report| report.cloud.iter().any(|line| line.starts_with("on-hold")))?;
    ensure!(!node.conflist().exists(), "there is a conflist, and no address");

    hold(&node, "nothing")?;
    wait("the conflist", || node.conflist().exists())?;

    let report = node.report()?;
    ensure!(report.not_ready.is_empty() && report.addresses.free > 0, "too early: {report:#?}");
    let pod = Pod::create("first", "first")?;
    add(&node, &pod)?;
    Ok(())
}

fn replaced() -> Outcome {
    let before = |node: &Node| {
        let of_the_go_version = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[]}"#;
        std::fs::write(node.conflist(), of_the_go_version).map_err(LabError::doing("write a conflist"))
    };
    let (node, _fabric) = fresh(&[], before)?;
    wait("our conflist", || conflist(&node).is_ok_and(|list| list["cniVersion"] == "1.0.0"))?;
    let inode = |node: &Node| std::fs::metadata(node.conflist()).map(|file| file.ino()).unwrap_or_default();
    let first = inode(&node);

    node.stop_daemon()?;
    node.start_daemon(&[])?;
    node.wait_ready()?;
    node.wait_for("a free address", |report| report.addresses.free > 0)?;
    wait("the word of the conflist", || node.log_tail().contains("conflist: is there already"))?;
    ensure!(inode(&node) == first, "the same content was written again");

    node.stop_daemon()?;
    node.start_daemon(&[("POD_MTU", "1400")])?;
    wait("the new conflist", || conflist(&node).is_ok_and(|list| list["plugins"][0]["mtu"] == "1400"))?;
    let beside = node.conflist().parent().map(std::fs::read_dir);
    let files = beside.and_then(Result::ok).into_iter().flatten().count();
    ensure!(files == 1, "{files} files beside the conflist");
    Ok(())
}

/// Runs a plugin of other people for a pod; what it prints.
fn neighbour(node: &Node, pod: &Pod, verb: &str, conf: &Value) -> Result<Value, LabError> {
    let path = Path::new("/usr/lib/cni").join(conf["type"].as_str().unwrap_or_default());
    let mut command = Command::new(&path);
    command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.container_id);
    command.env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.netns.path()).env("CNI_PATH", "/usr/lib/cni");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = node.netns().run(|| -> std::io::Result<_> {
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that has seen enough may close it early.
            let _written = pipe.write_all(conf.to_string().as_bytes());
        }
        child.wait_with_output()
    })?;
    let output = ran.map_err(LabError::doing("run a plugin"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{verb} {}: {said}", path.display());
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// Runs our plugin by its element of the list.
fn own(node: &Node, pod: &Pod, verb: &str, conf: &Value) -> Outcome {
    let stdin = conf.to_string();
    let answer = call_plugin(node, verb, &pod.container_id, &pod.netns.path(), &pod.name, stdin.as_bytes())?;
    ensure!(answer.success, "{verb}: {}", answer.stdout);
    Ok(())
}

fn chain() -> Outcome {
    let chained = ["portmap", "bandwidth", "tuning"];
    let (node, _fabric) =
        fresh(&[("ENABLE_BANDWIDTH_PLUGIN", "true"), ("DISABLE_POD_V6", "true")], |_| Ok(()))?;
    wait("the conflist", || node.conflist().exists())?;
    let list = conflist(&node)?;
    let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
    let types: Vec<&str> = plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    let there: Vec<&str> =
        chained.into_iter().filter(|name| Path::new("/usr/lib/cni").join(name).exists()).collect();
    ensure!(types[1..] == there, "chained are {types:?}, there are {there:?}");

    let pod = Pod::create("chained", "chained")?;
    let mut result = add(&node, &pod)?;
    for plugin in &plugins[1..] {
        result = neighbour(&node, &pod, "ADD", &plugin_conf(&list, plugin, Some(&result)))?;
    }
    own(&node, &pod, "CHECK", &plugin_conf(&list, &plugins[0], Some(&result)))?;
    for plugin in &plugins[1..] {
        neighbour(&node, &pod, "CHECK", &plugin_conf(&list, plugin, Some(&result)))?;
    }
    if there.contains(&"tuning") && lab::fabric::ipv6() {
        let off = pod.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6"))?;
        ensure!(off.as_deref().map(str::trim).unwrap_or_default() == "1", "IPv6 is on: {off:?}");
    }
    for plugin in plugins[1..].iter().rev() {
        neighbour(&node, &pod, "DEL", &plugin_conf(&list, plugin, Some(&result)))?;
    }
    own(&node, &pod, "DEL", &plugin_conf(&list, &plugins[0], Some(&result)))?;
    ensure!(node.report()?.pods.is_empty(), "the address stays held");
    Ok(())
}

fn installer() -> Outcome {
    let (node, _fabric) = fresh(&[], |_| Ok(()))?;
    wait("the conflist", || node.conflist().exists())?;
    let bin = node.run_dir().join("bin");
    std::fs::create_dir_all(&bin).map_err(LabError::doing("make a directory"))?;
    let plugin = binary("AWS_CNI_BIN", "aws-cni")?;
    let plugin = plugin.to_string_lossy();
    let install = ["install", "--plugin", &plugin, "--neighbours", "/usr/lib/cni", "--sysctls", "/proc/sys"];

    // What the daemon would stop for stops the installer before it touches anything.
    let custom = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG";
    let refused = [(custom, "true"), ("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false")];
    let output = ipamd_with(&node, &install, &refused)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(64) && errors.contains(custom), "{output:?}");
    let put = std::fs::read_dir(&bin).map_err(LabError::doing("list a directory"))?.count();
    ensure!(put == 0, "{put} files were put on a node for settings that are refused");

    let output = ipamd(&node, &install)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("aws-cni: put in place"), "install: {said}{errors}");
    let version = Command::new(bin.join("aws-cni")).env("CNI_COMMAND", "VERSION").output();
    let version = version.map_err(LabError::doing("run the plugin"))?;
    ensure!(version.status.success(), "the installed plugin does not run");

    let output = ipamd(&node, &["uninstall"])?;
    ensure!(output.status.success(), "uninstall: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(!node.conflist().exists() && bin.join("aws-cni").exists(), "not what uninstalling is");
    Ok(())
}
