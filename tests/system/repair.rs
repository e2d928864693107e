//! What others remove or rewrite on the host is put back because the kernel tells of it, not because half a minute is over: one by
//! one, each timed, counted and told.

use std::time::{Duration, Instant};

use lab::LabError;
use lab::netns::Netns;
use lab::node::Node;
use lab::prometheus::repairs;
use lab::runtime::Pod;

use crate::estate::{grown, host_state};
use crate::support::{Outcome, Setting, Test, ensure, eventually, reach};

pub(crate) const TESTS: &[Test] = &[
    ("each_thing_that_others_take_is_back_at_once_counted_and_told_once", each_at_once),
    ("a_pod_whose_link_is_gone_gives_its_address_back_before_its_del", without_a_link),
];

/// Within this only the kernel's notice brings something back. The look that nothing calls for comes every 30 s; a notice is answered after a
/// tenth of a second, which is measured and printed, not asserted: machines are busy.
const BY_NOTICE: Duration = Duration::from_secs(5);
/// Pause between two changes, so that they are no fight: what is undone at once is put back ever later.
const BETWEEN: Duration = Duration::from_millis(2_500);

/// What somebody does, and what the daemon says of it.
struct Damage {
    does: String,
    /// Each is in one line of the log, and there are no other lines of things put back.
    told: Vec<String>,
}

fn by_ip(lines: &str, told: &[&str]) -> Damage {
    let does = lines.lines().map(|line| format!("ip {line}")).collect::<Vec<_>>().join("\n");
    Damage { does, told: told.iter().map(|&told| told.to_owned()).collect() }
}

fn by(program: &str, told: &[&str]) -> Damage {
    Damage { does: program.to_owned(), told: told.iter().map(|&told| told.to_owned()).collect() }
}

fn each_at_once() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1")])?;
    let pods = setting.pods(0..11)?;
    reach(&setting, &pods)?;
    grown(&setting)?;
    for damage in damages(&setting, &pods)? {
        std::thread::sleep(BETWEEN);
        is_undone(&setting.node, &damage)?;
    }
    reach(&setting, &pods)
}

/// Its namespace is gone, and nobody has said so: where the runtime has lost track of it nobody ever will.
fn without_a_link() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..3)?;
    let mut gone = pods.remove(1);
    let link = gone.host_if().unwrap_or_default();

    setting.node.netns().ip(&format!("link del {link}\n"))?;

    let cools = |report: &wire::Report| report.pods.len() == 2 && report.addresses.cooling == 1;
    setting.node.wait_for_soon("its address cools", cools)?;
    let told = setting.node.told()?;
    ensure!(told.contains("sandboxes without a link are released"), "nothing is told:\n{told}");
    gone.del(&setting.node)?;
    gone.add(&setting.node)?;
    pods.push(gone);
    setting.accounts_for(&pods)?;
    reach(&setting, &pods)
}

/// One thing after the other that other agents of a node are known to do.
fn damages(setting: &Setting, pods: &[Pod]) -> Result<Vec<Damage>, LabError> {
    let netns = setting.node.netns();
    let Some((link, address)) = pods.first().and_then(|pod| Some((pod.host_if()?, pod.address?))) else {
        return Err(LabError::Otherwise("no pod".to_owned()));
    };
    let eni = netns.read("ip -4 -o addr show dev ens6")?;
    let eni = eni.split_whitespace().nth(3).unwrap_or_default();
    let gateway = netns.read("ip route show default table 2")?;
    let gateway = gateway.split_whitespace().nth(2).unwrap_or_default();
    let routed = format!("{address} was not routed to {link}");
    let (to_gateway, by_gateway) = (
        format!("route replace {gateway}/32 dev ens6"),
        format!("route replace 0.0.0.0/0 via {gateway} dev ens6"),
    );
    let way_out = [&*to_gateway, &*by_gateway];
    let rule = |priority: u32| format!("ip rule add pref {priority} ");
    let (pods_rule, marked, steered) = (rule(512), rule(1024), rule(1536));
    let table = "nftables table with";
    Ok(vec![
        by_ip("rule del pref 512\n", &[&pods_rule]),
        by_ip("rule del pref 1024\nrule del pref 1536\n", &[&marked, &steered]),
        by_ip("rule flush\n", &[&pods_rule, &marked, &steered, &rule(32765), &rule(32766)]),
        by_ip(&format!("route del {address} table 51200\n"), &[&routed]),
        by_ip(&format!("route replace {address} dev ens5 table 51200\n"), &[&routed]),
        by_ip("route flush table 2\n", &way_out),
        by_ip("route del default table 2\n", &[&by_gateway]),
        by("nft delete table ip aws-vpc-cni", &[table]),
        by("nft flush ruleset", &[table]),
        by("nft flush chain ip aws-vpc-cni from_pods", &[table]),
        by("sysctl -qw net.ipv4.ip_forward=0", &["sysctl -w net/ipv4/ip_forward=1"]),
        by("sysctl -qw net.ipv4.conf.ens6.rp_filter=1", &["sysctl -w net/ipv4/conf/ens6/rp_filter=2"]),
        by_ip(
            &format!("link set {link} address 02:00:00:00:00:77\n"),
            &["its MAC address was 02:00:00:00:00:77"],
        ),
        by_ip(&format!("link set {link} mtu 1400\n"), &["its MTU was 1400"]),
        by_ip(&format!("link set {link} down\n"), &[&format!("{link} was down")]),
        by_ip("link set ens6 mtu 1400\n", &["ip link set ens6 mtu 9001 up"]),
        by_ip("link set ens5 mtu 1400\n", &["ip link set ens5 mtu 9001 up"]),
        // Its routes go with either.
        by_ip(
            &format!("addr del {eni} dev ens6\n"),
            &[&format!("ip addr add {eni} dev ens6"), way_out[0], way_out[1]],
        ),
        by_ip("link set ens6 down\n", &["ip link set ens6 mtu 9001 up", way_out[0], way_out[1]]),
    ])
}

/// Does it, waits until all is as it was, and checks what is counted and told.
fn is_undone(node: &Node, damage: &Damage) -> Outcome {
    let netns = node.netns();
    let before = state(netns)?;
    let (counted, told) = (repairs(node)?, put_back(node)?.len());
    let since = Instant::now();
    damage.does.lines().try_for_each(|line| netns.read(line).map(drop))?;
    back(netns, &before, since, damage)?;
    let took = since.elapsed();
    // What it takes to do it and to look is in that.
    eprintln!("   after {:>4} ms at most: {}", took.as_millis(), damage.does.replace('\n', "; "));
    ensure!(took < BY_NOTICE, "{}: back only after {took:?}", damage.does);
    // The last line is written after the last change.
    let _late =
        eventually("all is told", || put_back(node).is_ok_and(|all| all.len() >= told + damage.told.len()));
    let lines = put_back(node)?.split_off(told);
    for told in &damage.told {
        let times = lines.iter().filter(|line| line.contains(told)).count();
        ensure!(times == 1, "{}: {told:?} is told {times} times in\n{}", damage.does, lines.join("\n"));
    }
    ensure!(lines.len() == damage.told.len(), "{}: more is told:\n{}", damage.does, lines.join("\n"));
    let counted = repairs(node)? - counted;
    ensure!(counted == lines.len(), "{}: {counted} repairs are counted, not {}", damage.does, lines.len());
    Ok(())
}

/// What the daemon keeps on a host, kernel settings too.
fn state(netns: &Netns) -> Result<Vec<String>, LabError> {
    let mut lines = host_state(netns)?;
    // The kernel's own last rules: the one for the main table is ours once it was put back, and the other leads to an empty table.
    lines.retain(|line| !line.starts_with("32767:"));
    lines
        .iter_mut()
        .filter(|line| line.starts_with("32766:"))
        .for_each(|line| line.truncate("32766:\tfrom all lookup main".len()));
    for setting in ["net.ipv4.ip_forward", "net.ipv4.conf.ens5.rp_filter", "net.ipv4.conf.ens6.rp_filter"] {
        lines.push(netns.read(&format!("sysctl {setting}"))?);
    }
    Ok(lines)
}

/// Waits until the host is as it was.
fn back(netns: &Netns, before: &[String], since: Instant, damage: &Damage) -> Outcome {
    loop {
        // A table that is not there is no answer.
        let (looked, now) = (since.elapsed(), state(netns).unwrap_or_default());
        if now == before {
            return Ok(());
        }
        if looked > BY_NOTICE {
            let lacks = before.iter().filter(|line| !now.contains(line)).cloned().collect::<Vec<_>>();
            let others = now.iter().filter(|line| !before.contains(line)).cloned().collect::<Vec<_>>();
            let (lacks, others) = (lacks.join("\n"), others.join("\n"));
            let words = format!("{}: not back; missing:\n{lacks}\ninstead:\n{others}", damage.does);
            return Err(LabError::Otherwise(words));
        }
    }
}

/// What the log says of things put back.
fn put_back(node: &Node) -> Result<Vec<String>, LabError> {
    Ok(node.told()?.lines().filter(|line| line.contains("; put back")).map(str::to_owned).collect())
}
