//! The tools beside the daemon: what they say of a real node, and that what they say mends it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lab::LabError;
use lab::fabric::INTERNET_HOST;
use lab::node::{Node, binary};
use lab::probe::{Echo, ask};
use lab::runtime::Pod;
use serde_json::{Value, json};

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("doctor_finds_nothing_on_a_node_that_is_well", well),
    ("doctor_names_what_is_broken_and_its_commands_mend_it", broken),
    ("doctor_names_what_is_missing_altogether", missing),
    ("doctor_compares_the_state_with_the_runtime_and_its_command_mends_it", runtime),
    ("doctor_compares_the_state_with_ec2", ec2),
    ("doctor_names_what_leads_the_runtime_elsewhere_and_its_commands_mend_it", elsewhere),
    ("explain_tells_the_way_that_packets_take", explained),
    ("a_bundle_has_no_secrets_and_is_judged_as_the_node_was", bundled),
];

/// Stands for a secret.
const SECRET: &str = "hunter2hunter2";

fn io(doing: &str) -> impl FnOnce(std::io::Error) -> LabError {
    LabError::doing(doing.to_owned())
}

/// An empty directory of the test's own.
fn scratch(name: &str) -> Result<PathBuf, LabError> {
    let path = Path::new("/run/lab").join(name);
    let _gone = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).map_err(io("make a directory"))?;
    Ok(path)
}

/// Writes down what a runtime that uses libcni keeps of an ADD.
fn cache(directory: &Path, pod: &Pod) -> Result<PathBuf, LabError> {
    let text = json!({
        "kind": "cniCacheV1", "containerId": pod.container_id, "ifName": "eth0", "networkName": "aws-cni",
        "config": "aHVudGVyMmh1bnRlcjI=",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", pod.name]],
        "capabilityArgs": {"io.kubernetes.cri.pod-annotations": {"password": SECRET}},
        "result": pod.result,
    });
    let path = directory.join(format!("aws-cni-{}-eth0", pod.container_id));
    std::fs::write(&path, text.to_string()).map_err(io("write a result"))?;
    Ok(path)
}

/// A directory of plugins with ours in it, as the installer leaves it.
fn installed() -> Result<PathBuf, LabError> {
    let bin = scratch("bin")?;
    std::fs::copy(binary("AWS_CNI_BIN", "aws-cni")?, bin.join("aws-cni")).map_err(io("copy the plugin"))?;
    Ok(bin)
}

/// Starts a node with pods and waits until it has the ENI that it keeps free for more.
fn start(pods: u32) -> Result<(Setting, Vec<Pod>), LabError> {
    start_with(pods, &[])
}

/// The same with these settings.
fn start_with(pods: u32, settings: &[(&str, &str)]) -> Result<(Setting, Vec<Pod>), LabError> {
    let setting = Setting::start(settings)?;
    let pods_added = setting.pods(0..pods)?;
    // An m5.large has nine addresses for pods on each ENI.
    let enis = usize::try_from(pods.div_ceil(9) + 1).unwrap_or(usize::MAX);
    setting.node.wait_for("a free ENI", |report| report.enis.len() == enis)?;
    Ok((setting, pods_added))
}

/// What the doctor says: its exit code, and its words as JSON.
pub(crate) fn doctor(node: &Node, words: &[&str]) -> Result<(Option<i32>, Value), LabError> {
    let output = node.tool(&[&["doctor", "--json"], words].concat(), &[])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_str(&said);
    let value = value.map_err(|error| LabError::Otherwise(format!("no JSON ({error}): {said} {errors}")))?;
    Ok((output.status.code(), value))
}

pub(crate) fn findings(verdict: &Value) -> impl Iterator<Item = &Value> {
    verdict["findings"].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn codes(verdict: &Value) -> BTreeSet<&str> {
    findings(verdict).filter_map(|finding| finding["code"].as_str()).collect()
}

/// Runs the commands that mend, except those for the cluster: there is none.
pub(crate) fn mend(node: &Node, verdict: &Value) -> Outcome {
    let plugin = binary("AWS_CNI_BIN", "aws-cni")?.display().to_string();
    let commands = findings(verdict).filter_map(|finding| finding["repair"].as_str());
    for command in commands.filter(|command| !command.starts_with("kubectl ")) {
        node.shell(&command.replace("/opt/cni/bin/aws-cni", &plugin))?;
    }
    Ok(())
}

fn well() -> Outcome {
    let bin = installed()?.display().to_string();
    let (setting, pods) = start_with(12, &[("HOST_CNI_BIN_PATH", bin.as_str())])?;
    setting.node.wait_for("the conflist", |_| setting.node.conflist().exists())?;
    let plugin = binary("AWS_CNI_BIN", "aws-cni")?.display().to_string();
    let results = scratch("results")?;
    pods.iter().try_for_each(|pod| cache(&results, pod).map(drop))?;

    let results = results.display().to_string();
    let words = ["--cloud", "--cni-cache", results.as_str(), "--plugin", plugin.as_str()];
    let (code, verdict) = doctor(&setting.node, &words)?;

    ensure!(code == Some(0), "exit code {code:?}: {verdict:#}");
    ensure!(codes(&verdict).is_empty() && verdict["skipped"] == json!([]), "not well: {verdict:#}");
    ensure!(verdict["compared"].as_array().is_some_and(|all| all.len() == 8), "compared: {verdict:#}");
    let output = setting.node.tool(&["doctor", "--cni-cache", "/nowhere"], &[])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("nothing is wrong"), "as text: {text}");
    Ok(())
}

/// The host link of a pod.
fn host_link(pod: &Pod) -> String {
    let name = pod.result.as_ref().and_then(|result| result["interfaces"][0]["name"].as_str());
    name.unwrap_or_default().to_owned()
}

/// Breaks one thing of each kind that does not take others along.
fn break_all(node: &Node, pods: &[Pod]) -> Outcome {
    let address = pods[0].address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let link = host_link(&pods[1]);
    node.netns().ip(&format!(
        "rule del pref 512\n\
         rule add pref 1536 fwmark 0x3f00/0x3f00 lookup 99 protocol 86\n\
         rule add pref 512 to 10.0.0.77 lookup main\n\
         rule add pref 1024 iif lo lookup 98\n\
         route del {address}/32 table 51200\n\
         route add 10.9.9.9/32 dev ens5 table 51200 proto 86\n\
         route add 10.9.9.8/32 dev ens5 table 51200\n\
         route del default table 2\n\
         addr add 10.0.9.9/32 dev ens6\n\
         link set ens6 mtu 1400\n\
         link set {link} down\n\
         link add eni0123456789a type veth peer name stray\n"
    ))?;
    node.netns()
        .nft("flush chain ip aws-vpc-cni source_nat\nadd table ip aws-cni\nadd chain ip aws-cni c\n")?;
    node.shell("sysctl -qw net/ipv4/ip_forward=0 net/ipv4/conf/ens6/rp_filter=1")?;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(node.run_dir().join("state"), open).map_err(io("open the state file"))?;
    for junk in ["delete-queue/junk.delete", "state.damaged-7"] {
        std::fs::write(node.run_dir().join(junk), "junk").map_err(io("write junk"))?;
    }
    Ok(())
}

/// What that is found as, with a daemon that does not run.
const ALL_BROKEN: [&str; 19] = [
    "daemon-down",
    "eni-address-extra",
    "eni-link-off",
    "go-leftover",
    "ip-forward-off",
    "link-without-owner",
    "nftables-differs",
    "open-permissions",
    "pod-link-down",
    "pod-route-extra",
    "pod-route-foreign",
    "pod-route-missing",
    "queue-foreign",
    "route-missing",
    "rp-filter-strict",
    "rule-extra",
    "rule-foreign",
    "rule-missing",
    "state-set-aside",
];

fn broken() -> Outcome {
    let (setting, pods) = start(12)?;
    let node = &setting.node;
    // It would put things back within a second.
    node.kill_daemon();
    break_all(node, &pods)?;

    let (code, verdict) = doctor(node, &[])?;

    ensure!(code == Some(1), "exit code {code:?}");
    ensure!(codes(&verdict) == BTreeSet::from(ALL_BROKEN), "found {:?}: {verdict:#}", codes(&verdict));
    ensure!(
        findings(&verdict).all(|finding| finding["evidence"] != json!([])),
        "without evidence: {verdict:#}"
    );
    mend(node, &verdict)?;
    let (_, verdict) = doctor(node, &[])?;
    ensure!(codes(&verdict) == BTreeSet::from(["daemon-down"]), "not mended: {verdict:#}");
    let _echo = Echo::start(setting.fabric.internet())?;
    for pod in [&pods[0], &pods[1], &pods[11]] {
        let seen = ask(&pod.netns, INTERNET_HOST)?;
        ensure!(seen == Some(node.instance().address), "{}: the internet saw {seen:?}", pod.name);
    }
    Ok(())
}

/// What takes others along.
fn missing() -> Outcome {
    let (setting, pods) = start(12)?;
    let node = &setting.node;
    node.kill_daemon();
    node.netns().nft("delete table ip aws-vpc-cni\n")?;
    node.netns().ip(&format!("addr flush dev ens6\nlink del {}\n", host_link(&pods[2])))?;

    let (_, verdict) = doctor(node, &[])?;

    let found = codes(&verdict);
    for code in ["nftables-missing", "eni-address-missing", "pod-link-missing"] {
        ensure!(found.contains(code), "no {code} in {found:?}");
    }
    mend(node, &verdict)?;
    let (_, verdict) = doctor(node, &[])?;
    let left = BTreeSet::from(["daemon-down", "pod-link-missing"]);
    ensure!(codes(&verdict) == left, "not mended: {verdict:#}");
    // A pod without a link is the daemon's to release.
    node.start_daemon(&[])?;
    node.wait_ready()?;
    let (code, verdict) = doctor(node, &[])?;
    ensure!(code == Some(0), "not well after the start: {verdict:#}");
    Ok(())
}

fn runtime() -> Outcome {
    let (setting, mut pods) = start(3)?;
    let node = &setting.node;
    let results = scratch("results")?;
    let files = pods.iter().map(|pod| cache(&results, pod)).collect::<Result<Vec<_>, _>>()?;
    let words = ["--cni-cache", "/run/lab/results"];
    // One sandbox that the runtime has forgotten, and one that the state has never heard of.
    std::fs::remove_file(&files[0]).map_err(io("forget a result"))?;
    let mut stranger = Pod::create("stranger", "stranger")?;
    stranger.result = Some(json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.99/32"}]}));
    let unknown = cache(&results, &stranger)?;

    let (_, verdict) = doctor(node, &words)?;

    let want = BTreeSet::from(["sandbox-unknown-to-runtime", "sandbox-unknown-to-state"]);
    ensure!(codes(&verdict) == want, "found {verdict:#}");
    mend(node, &verdict)?;
    drop(pods.remove(0));
    setting.accounts_for(&pods)?;
    std::fs::remove_file(unknown).map_err(io("forget a result"))?;
    let (code, verdict) = doctor(node, &words)?;
    ensure!(code == Some(0), "not mended: {verdict:#}");
    Ok(())
}

fn ec2() -> Outcome {
    let (setting, pods) = start(3)?;
    let report = setting.node.report()?;
    let (eni, address) = (
        report.pods[0].eni.clone(),
        pods.iter().find(|pod| pod.address.map(Into::into) == Some(report.pods[0].address)),
    );
    let (Some(eni), Some(pod)) = (eni, address) else {
        return Err(LabError::Otherwise(format!("no pod on an ENI: {report:?}")));
    };
    let taken: Vec<Ipv4Addr> = pod.address.into_iter().collect();
    let refused = |error| LabError::Otherwise(format!("EC2 refuses: {error:?}"));
    setting.fabric.ec2().unassign(&eni, &taken, &[]).map_err(refused)?;

    let (code, verdict) = doctor(&setting.node, &["--cloud"])?;

    ensure!(code == Some(1) && codes(&verdict) == BTreeSet::from(["address-not-in-ec2"]), "{verdict:#}");
    let what = findings(&verdict).next().and_then(|finding| finding["what"].as_str()).unwrap_or_default();
    ensure!(what.contains(&pod.name) && what.contains(eni.as_str()), "names neither pod nor ENI: {what}");
    Ok(())
}

/// What is found, with the plugin of the image at hand.
fn found(node: &Node, more: &[&str]) -> Result<(BTreeSet<String>, Value), LabError> {
    let plugin = binary("AWS_CNI_BIN", "aws-cni")?.display().to_string();
    let (_, verdict) = doctor(node, &[&["--plugin", plugin.as_str()], more].concat())?;
    Ok((codes(&verdict).into_iter().map(str::to_owned).collect(), verdict))
}

/// Checks that one thing alone is found.
fn only(node: &Node, code: &str) -> Result<Value, LabError> {
    let (found, verdict) = found(node, &[])?;
    ensure_only(&found, code, &verdict)?;
    Ok(verdict)
}

fn ensure_only(found: &BTreeSet<String>, code: &str, verdict: &Value) -> Outcome {
    ensure!(*found == BTreeSet::from([code.to_owned()]), "not {code} alone: {verdict:#}");
    Ok(())
}

fn nothing(node: &Node) -> Outcome {
    let (found, verdict) = found(node, &[])?;
    ensure!(found.is_empty(), "not mended: {verdict:#}");
    Ok(())
}

fn elsewhere() -> Outcome {
    let bin = installed()?;
    let bin_path = bin.display().to_string();
    let settings = [("HOST_CNI_BIN_PATH", bin_path.as_str())];
    let (setting, _pods) = start_with(1, &settings)?;
    let node = &setting.node;
    node.wait_for("the conflist", |_| node.conflist().exists())?;
    nothing(node)?;
    let ours = node.conflist();
    let other = ours.with_file_name("05-other.conflist");
    let write = |path: &Path, text: &str| std::fs::write(path, text).map_err(io("write a file"));

    // Another CNI's stands before it; the archive tells that too, and not what the other says.
    write(&other, &format!(r#"{{"name":"other","plugins":[{{"type":"flannel","token":"{SECRET}"}}]}}"#))?;
    let verdict = only(node, "conflist-shadowed")?;
    let place = scratch("bundle")?;
    text(node, &["bundle", "--out", "/run/lab/bundle/b.tar.gz"])?;
    node.shell("cd /run/lab/bundle && tar -xzf b.tar.gz")?;
    let (saved, verdict_of_saved) = found(node, &["--state", &place.display().to_string()])?;
    ensure_only(&saved, "conflist-shadowed", &verdict_of_saved)?;
    let secrets = node.shell("cd /run/lab/bundle/ipamd && grep -rl hunter2 . || true")?;
    let names = node.shell("cat /run/lab/bundle/ipamd/networks.txt")?;
    ensure!(secrets.is_empty() && names.contains("/05-other.conflist\n"), "{secrets} {names}");
    ensure!(place.join("ipamd/10-aws.conflist").exists(), "our conflist is not in the archive");
    mend(node, &verdict)?;
    nothing(node)?;

    // Somebody changes it, or takes it away: a daemon that starts anew writes it.
    write(&ours, r#"{"cniVersion":"0.4.0","name":"aws-cni","plugins":[]}"#)?;
    only(node, "conflist-differs")?;
    std::fs::remove_file(&ours).map_err(io("remove the conflist"))?;
    only(node, "conflist-missing")?;
    node.stop_daemon()?;
    node.start_daemon(&settings)?;
    node.wait_ready()?;
    node.wait_for("the conflist", |_| node.conflist().exists())?;
    nothing(node)?;

    // An older plugin.
    write(&bin.join("aws-cni"), "older")?;
    only(node, "plugin-differs")?;
    installed()?;
    nothing(node)
}

fn text(node: &Node, words: &[&str]) -> Result<String, LabError> {
    let output = node.tool(words, &[])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure_success(output.status.success(), words, &errors)?;
    Ok(said)
}

fn ensure_success(success: bool, words: &[&str], errors: &str) -> Outcome {
    ensure!(success, "{words:?}: {errors}");
    Ok(())
}

fn explained() -> Outcome {
    let (setting, pods) = start(12)?;
    let node = &setting.node;
    let report = node.report()?;
    let primary = report.enis.iter().find(|eni| eni.device.0 == 0).map(|eni| eni.id.clone());
    let _echo = Echo::start(setting.fabric.internet())?;
    for on_primary in [true, false] {
        let of = |pod: &&wire::PodReport| (pod.eni == primary) == on_primary;
        let Some(told) = report.pods.iter().find(of) else {
            return Err(LabError::Otherwise(format!("no pod with primary {on_primary}: {report:?}")));
        };
        let said = text(node, &["explain", "pod", &told.pod.to_string()])?;

        let eni = told.eni.as_ref().map(ToString::to_string).unwrap_or_default();
        for word in [told.address.to_string(), eni, told.host_if.clone(), "table 51200".to_owned()] {
            ensure!(said.contains(&word), "no {word} in\n{said}");
        }
        ensure!(!said.contains("MISSING"), "something is missing:\n{said}");
        let (mark, by) = if on_primary {
            ("mark       none", "dev ens5")
        } else {
            ("mark       0x100/0x3f00", "dev ens6")
        };
        ensure!(said.contains(mark), "no {mark:?} in\n{said}");
        // The commands that show it do.
        let commands = said.lines().filter_map(|line| line.split_once("$ ").map(|(_, command)| command));
        let commands: Vec<&str> =
            commands.filter(|c| !c.contains("OTHER-POD") && !c.contains("VPC-HOST")).collect();
        ensure!(commands.len() >= 8, "commands: {commands:?}");
        for command in &commands {
            let shown = node.shell(command)?;
            if command.starts_with("ip route get 10.0.0.1 ") {
                ensure!(shown.contains(by), "{command} says {shown}");
            }
            if command.contains("192.0.2.1") {
                ensure!(shown.contains("dev ens5"), "{command} says {shown}");
            }
            if command.contains("sha1sum") {
                ensure!(told.host_if.ends_with(shown.trim()), "{command} says {shown}");
            }
        }
        // And a packet takes the way that is told.
        let node_address = node.instance().address;
        ensure!(said.contains(&format!("makes the source {node_address}")), "no translation in\n{said}");
        let pod = pods.iter().find(|pod| pod.address.map(Into::into) == Some(told.address));
        let seen = pod.map(|pod| ask(&pod.netns, INTERNET_HOST)).transpose()?.flatten();
        ensure!(seen == Some(node_address), "the internet saw {seen:?}");
    }
    let output = node.tool(&["explain", "pod", "default/pod-111"], &[])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("near it: default/pod-11"), "unknown: {said}");
    Ok(())
}

/// What an archive lacks is said in it, and it can be led anywhere.
fn streams(node: &Node, place: &Path) -> Outcome {
    let missing =
        std::fs::read_to_string(place.join("ipamd/missing.txt")).map_err(io("read what is missing"))?;
    ensure!(missing.contains("/var/log/aws-routed-eni/ipamd.log: not there\n"), "{missing}");
    let streamed = node.shell("ipamd bundle --out - | tar -tzf - ipamd/live.json")?;
    ensure!(streamed == "ipamd/live.json\n", "{streamed}");
    Ok(())
}

fn bundled() -> Outcome {
    let (setting, pods) = start(3)?;
    let node = &setting.node;
    let place = scratch("bundle")?;
    let results = scratch("results")?;
    pods.iter().try_for_each(|pod| cache(&results, pod).map(drop))?;
    let write = |path: PathBuf, text: String| std::fs::write(path, text).map_err(io("plant a secret"));
    write(node.run_dir().join("kubeconfig"), format!("token: {SECRET}"))?;
    write(node.run_dir().join("delete-queue/x.delete"), format!("{{\"password\": \"{SECRET}\"}}"))?;
    write(node.run_dir().join("state.damaged-1"), SECRET.to_owned())?;
    write(
        place.join("plugin.log"),
        format!("fine\nauthorization: Bearer {SECRET}\nurl http://u:{SECRET}@h/\n"),
    )?;
    let planted = [
        ("AWS_SESSION_TOKEN", SECRET),
        ("SOMETHING_ELSE", SECRET),
        ("IPAMD_KUBECONFIG", SECRET),
        ("WARM_IP_TARGET", SECRET),
        ("HTTP_PROXY", "http://hunter2hunter2@127.0.0.1:1"),
        ("ADDITIONAL_ENI_TAGS", r#"{"team":"network"}"#),
    ];
    let words = [
        "bundle",
        "--out",
        "/run/lab/bundle/b.tar.gz",
        "--log",
        "/run/lab/bundle/plugin.log",
        "--cni-cache",
        "/run/lab/results",
    ];

    let output = node.tool(&words, &planted)?;

    ensure_success(output.status.success(), &words, &String::from_utf8_lossy(&output.stderr))?;
    node.shell("cd /run/lab/bundle && tar -xzf b.tar.gz")?;
    let found =
        node.shell("cd /run/lab/bundle/ipamd && grep -rl -e hunter2 -e lab-secret -e LABKEY . || true")?;
    ensure!(found.is_empty(), "secrets in {found}");
    let named = node.shell("cd /run/lab/bundle/ipamd && find . -type f | sort")?;
    for name in [
        "doctor.txt",
        "host.json",
        "instance.json",
        "kernel.txt",
        "live.json",
        "logs/run/lab/bundle/plugin.log",
        "missing.txt",
        "nftables.txt",
        "settings.txt",
        "state",
        "status.txt",
        "version.txt",
    ] {
        ensure!(named.contains(name), "no {name} in {named}");
    }
    let settings =
        std::fs::read_to_string(place.join("ipamd/settings.txt")).map_err(io("read the settings"))?;
    ensure!(settings.contains("network") && settings.contains("CLUSTER_NAME=lab"), "{settings}");
    streams(node, &place)?;
    let size = std::fs::metadata(place.join("b.tar.gz")).map_err(io("look at the archive"))?.len();
    ensure!(size < 1024 * 1024, "{size} bytes for three pods");
    // The archive is judged as the node was, the file that is no DEL apart: it is not copied.
    let saved = ["--state", "/run/lab/bundle/ipamd"];
    let (_, there) = doctor(node, &["--cni-cache", "/run/lab/results"])?;
    let (_, here) = doctor(node, &saved)?;
    ensure!(codes(&there) == BTreeSet::from(["queue-foreign", "state-set-aside"]), "there: {there:#}");
    ensure!(codes(&here).is_empty() && here["compared"] == there["compared"], "here: {here:#}");
    let said = text(node, &[&["explain", "pod", "default/pod-1"], &saved[..]].concat())?;
    let address = pods[1].address.map(|address| address.to_string()).unwrap_or_default();
    ensure!(said.contains(&address) && said.contains("rule 512"), "{said}");
    Ok(())
}
