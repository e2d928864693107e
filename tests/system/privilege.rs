//! What the daemon and the lab may do, and that it is enough.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use lab::LabError;
use lab::fabric::{INTERNET_HOST, SECOND_CIDR_HOST};
use lab::node::binary;
use lab::probe::{Echo, ask};

use crate::support::{Outcome, Setting, Test, ensure, eventually, reach};

pub(crate) const TESTS: &[Test] = &[
    ("a_daemon_with_net_admin_alone_serves_pods_on_both_enis", confined),
    ("a_daemon_that_gets_few_descriptors_takes_as_many_as_it_may", descriptors),
    ("where_kernel_settings_cannot_be_written_nftables_come_back_all_the_same", read_only),
];

/// Those that need an ordinary user with namespaces of its own.
pub(crate) const AS_USER: &[Test] = &[("the_demo_runs_for_an_ordinary_user", demo_as_user)];

/// `CAP_NET_ADMIN` as the kernel writes a set of capabilities.
const NET_ADMIN: u64 = 1 << 12;
/// Becomes `nobody`.
const AS_NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Why no ordinary user can have namespaces here.
pub(crate) fn no_user_namespaces() -> Option<String> {
    let tried = Command::new("setpriv").args(AS_NOBODY).args(["unshare", "-Urnm", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("no user namespaces: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("cannot run setpriv: {error}")),
    }
}

fn descriptors() -> Outcome {
    let setting = Setting::launch("m5.large")?;
    let limited = ["sh", "-c", "ulimit -Sn 256; ulimit -Hn 2048; exec \"$@\"", "sh"];
    setting.node.start_daemon_under(&limited, &[])?;
    setting.node.wait_ready()?;

    let pid = setting.node.daemon_pid().unwrap_or_default();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"));
    let limits = limits.map_err(LabError::doing("read the daemon's limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let words: Vec<&str> = files.split_whitespace().collect();
    ensure!(words.get(3..5) == Some(&["2048", "2048"]), "{files}");
    Ok(())
}

fn confined() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    node.stop_daemon()?;
    let setpriv =
        ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs"];
    node.start_daemon_under(&setpriv, &[])?;
    node.wait_ready()?;
    let pid = node.daemon_pid().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.map_err(LabError::doing("read the daemon's capabilities"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    let effective = effective.and_then(|set| u64::from_str_radix(set, 16).ok());
    ensure!(effective == Some(NET_ADMIN), "the daemon has the capabilities {effective:x?}");

    let mut pods = setting.pods(0..12)?;

    let report = setting.accounts_for(&pods)?;
    ensure!(report.pods.iter().any(|pod| pod.eni != report.pods[0].eni), "all pods are on one ENI");
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    for pod in &pods {
        let (vpc, internet) = (ask(&pod.netns, SECOND_CIDR_HOST)?, ask(&pod.netns, INTERNET_HOST)?);
        ensure!(vpc == pod.address, "{}: the VPC saw {vpc:?}", pod.name);
        ensure!(internet == Some(node.instance().address), "{}: the internet saw {internet:?}", pod.name);
    }
    for pod in &mut pods {
        pod.del(node)?;
    }
    setting.accounts_for(&[])?;
    Ok(())
}

/// As in a container whose `/proc/sys` is read-only, with a reverse path check that is not as it should be.
fn read_only() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let mut pods = setting.pods(0..12)?;
    node.stop_daemon()?;
    node.shell("sysctl -qw net/ipv4/conf/ens6/rp_filter=0 net/ipv4/conf/ens5/rp_filter=0")?;
    let bound = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\"";
    node.start_daemon_under(&["unshare", "--mount", "sh", "-c", bound, "sh"], &[])?;
    node.wait_ready()?;

    node.shell("nft delete table ip aws-vpc-cni")?;

    pods.extend(setting.pods(12..13)?);
    eventually("our table", || node.netns().read("nft list table ip aws-vpc-cni").is_ok())?;
    reach(&setting, &pods)?;
    let refused = node.shell("sysctl -n net/ipv4/conf/ens6/rp_filter")?;
    ensure!(refused.trim() == "0", "the setting could be written: {refused}");
    ensure!(node.log_tail().contains("rp_filter"), "nobody is told of it:\n{}", node.log_tail());
    setting.accounts_for(&pods).map(drop)
}

/// The programs, where `nobody` can read them: a checkout need not be readable to others.
fn demo_as_user() -> Outcome {
    let place = Path::new("/tmp/lab-demo-as-user");
    let _left = std::fs::remove_dir_all(place);
    let io = |doing: &str| LabError::doing::<std::io::Error>(doing.to_owned());
    std::fs::create_dir(place).map_err(io("make a directory"))?;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place, open.clone()).map_err(io("open a directory"))?;
    for (variable, name) in [("IPAMD_BIN", "ipamd"), ("AWS_CNI_BIN", "aws-cni"), ("VPC_LAB_BIN", "vpc-lab")] {
        let copy = place.join(name);
        std::fs::copy(binary(variable, name)?, &copy).map_err(io("copy a program"))?;
        std::fs::set_permissions(&copy, open.clone()).map_err(io("open a program"))?;
    }
    let mut command = Command::new("setpriv");
    command.args(AS_NOBODY).arg(place.join("vpc-lab")).args(["demo", "--pods", "22"]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());

    let output = command.output().map_err(io("run the demo"))?;

    let _gone = std::fs::remove_dir_all(place);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the demo failed: {said}\n{errors}");
    ensure!(said.contains("pods on secondary ENIs: 4  ok"), "not the demo's words: {said}");
    Ok(())
}
