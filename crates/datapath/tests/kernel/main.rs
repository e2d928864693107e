//! The real kernel, in namespaces of our own; the witness is `ip -j`, not our own reader.
//!
//! `main` enters new user, network and mount namespaces before any thread exists (only the latter two as root), and each test runs in
//! a fresh network namespace on a thread of its own: nothing is left behind, whatever happens.

#![expect(
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a test program: it tells a person, and panics to fail"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use datapath::{EniSpec, Host, Marks, Mending, NodeSpec, Ours, PodSpec, Watch, Wirer};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use types::{DeviceIndex, Mac, NetworkCard, VethPrefix};

use crate::pods::Pod;

mod branches;
mod pods;

type Outcome = Result<(), Failed>;
type Test = fn() -> Outcome;

fn main() -> std::process::ExitCode {
    let entered = enter();
    let tests: [(&str, Test); 31] = [
        ("a_node_with_two_enis_has_its_tables_and_rules", node_with_two_enis),
        ("a_second_convergence_changes_nothing", idempotent),
        ("what_is_removed_or_added_behind_our_back_is_mended", drift),
        ("marks_that_move_are_followed_by_rules_before_and_after", moving_marks),
        ("external_services_are_routed_by_the_main_table", external_services),
        ("a_pod_is_wired_checked_and_taken_away", pods::pod_life),
        ("a_pod_with_three_interfaces_is_wired_whole_or_not_at_all", pods::several_interfaces),
        ("a_pod_of_both_families_is_reached_by_both_at_once", pods::dual_stack),
        ("what_the_wiring_prints_is_what_an_add_makes", pods::printed),
        ("what_others_take_of_a_pod_is_put_back", pods::pod_mended),
        ("what_of_a_pod_cannot_be_put_back_keeps_nothing_else_from_it", pods::partly_refused),
        ("a_pod_without_link_and_route_is_told_as_gone", pods::lost_pods_are_told),
        ("what_a_pod_counts_on_is_known_after_a_restart", pods::mended_after_restart),
        ("changes_of_others_are_told_and_ours_are_not", notices),
        ("packets_flow_between_pods_and_host", packets),
        ("the_same_name_comes_back_at_once_two_hundred_times", same_name),
        ("a_failed_wiring_leaves_nothing", failed_wiring),
        ("rules_do_not_grow_with_pods", rules_constant),
        ("an_address_that_came_first_makes_way_and_ours_stays", first_address),
        ("an_address_of_somebody_else_draws_no_traffic_to_a_secondary_eni", subnet_route),
        ("the_same_rule_of_another_program_is_left_alone", foreign_rule),
        ("a_link_stacked_on_an_eni_is_not_taken_for_it", stacked_link),
        ("what_check_finds_has_a_name", check_names),
        ("an_add_that_is_repeated_starts_afresh", repeated),
        ("a_leftover_of_the_same_name_is_replaced_whole", leftover),
        ("a_late_remove_leaves_the_link_of_the_next_pod_of_that_name", late_remove),
        ("a_socket_of_another_namespace_changes_nothing_there", other_namespace),
        ("all_of_a_strict_branch_pods_traffic_goes_by_its_vlan", branches::strict),
        ("a_standard_branch_pods_traffic_leaves_the_node_by_its_vlan", branches::standard),
        ("a_late_del_takes_no_vlan_of_the_next_pod", branches::late_del),
        ("without_the_trunk_a_branch_pod_is_not_wired_and_nothing_stays", branches::no_trunk),
    ];
    let with_vlan: [(&str, Test); 2] = [
        ("a_strict_branch_pod_has_a_vlan_that_the_kernel_made", branches::strict_with_vlan),
        ("a_standard_branch_pod_has_a_vlan_that_the_kernel_made", branches::standard_with_vlan),
    ];
    let stacked: [(&str, Test); 1] =
        [("a_vlan_whose_trunk_has_its_mtu_back_has_its_own_back", branches::mtu_follows_the_trunk)];
    let missing = entered.and_then(|()| has_veth()).err();
    if let Some(reason) = &missing {
        skipped(&tests.map(|(name, _)| name), reason);
    }
    let no_vlan = missing.clone().or_else(branches::no_vlan);
    if let Some(reason) = &no_vlan {
        skipped(&with_vlan.map(|(name, _)| name), reason);
    }
    let nothing_stacked = missing.clone().or_else(branches::nothing_stacked);
    if let Some(reason) = &nothing_stacked {
        skipped(&stacked.map(|(name, _)| name), reason);
    }
    let trial = |ignored: bool| {
        move |(name, test): (&'static str, Test)| {
            Trial::test(name, move || apart(test)).with_ignored_flag(ignored)
        }
    };
    let trials = tests.into_iter().map(trial(missing.is_some()));
    let trials = trials.chain(with_vlan.into_iter().map(trial(no_vlan.is_some())));
    let trials = trials.chain(stacked.into_iter().map(trial(nothing_stacked.is_some())));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Enters namespaces of our own.
fn enter() -> Result<(), String> {
    let root = rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    if !root {
        flags |= UnshareFlags::NEWUSER;
    }
    unshare(flags).map_err(|error| format!("no namespaces: {error}"))?;
    if !root {
        let write = |path: &str, text: String| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "rustix marks unshare as unsafe because of CLONE_FILES, which is not used here"
)]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: no flag that would stop sharing the descriptor table with other threads.
    unsafe { unshare_unsafe(flags) }
}

/// Whether there is an `ip` program and a kernel with veth pairs.
fn has_veth() -> Result<(), String> {
    let tried = Command::new("ip").args("link add probe0 type veth peer name probe1".split(' ')).output();
    match tried {
        Err(error) => Err(format!("no `ip` program: {error}")),
        Ok(output) if !output.status.success() => {
            Err(format!("no veth pairs: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(_) => Ok(()),
    }
}

/// Tells the runner which tests were skipped and why.
fn skipped(names: &[&str], reason: &str) {
    let lines: String = names.iter().map(|name| format!("datapath kernel {name}: {reason}\n")).collect();
    eprint!("{lines}");
    if let Some(path) = std::env::var_os("LAB_SKIPS") {
        use std::io::Write;
        let file = File::options().create(true).append(true).open(path);
        let _written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    }
}

/// Runs a test in a network namespace of its own.
fn apart(test: Test) -> Outcome {
    let thread = std::thread::spawn(move || {
        unshare(UnshareFlags::NEWNET)?;
        ip("link set lo up")?;
        test()
    });
    thread.join().map_err(|_panic| Failed::from("the test panicked"))?
}

/// Runs `ip`, in the namespace of this thread.
fn ip(arguments: &str) -> Result<String, Failed> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output()?;
    if !output.status.success() {
        return Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn json(arguments: &str) -> Result<Vec<serde_json::Value>, Failed> {
    let text = ip(&format!("-j {arguments}"))?;
    Ok(if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text)? })
}

/// A node with a primary and one secondary ENI (veths stand in for them).
fn node() -> Result<NodeSpec, Failed> {
    let eni = |device: u8, primary: [u8; 4]| EniSpec {
        mac: Mac([2, 0, 0, 0, 0, device]),
        card: NetworkCard(0),
        device: DeviceIndex(device),
        primary_address: primary.into(),
        subnet: "10.0.0.0/24".parse().expect("a network"),
        mtu: 9001,
        sources: BTreeSet::new(),
        ipv6: BTreeSet::new(),
    };
    for device in 0..2 {
        ip(&format!(
            "link add ens{device} address 02:00:00:00:00:0{device} type veth peer name far{device}"
        ))?;
        ip(&format!("link set far{device} up"))?;
    }
    ip("link set ens0 up")?;
    ip("addr add 10.0.0.10/24 dev ens0")?;
    ip("route add default via 10.0.0.1")?;
    let enis = vec![eni(0, [10, 0, 0, 10]), eni(1, [10, 0, 0, 11])];
    Ok(NodeSpec {
        enis,
        marks: Marks::default(),
        connmark: true,
        ipv6: false,
        external_services: BTreeSet::new(),
        trunk: None,
        strict_branches: false,
    })
}

fn converge(spec: &NodeSpec) -> Result<Vec<String>, Failed> {
    let done = Host::open()?.converge(spec, None)?;
    assert!(done.missing.is_empty(), "links not found: {:?}", done.missing);
    Ok(done.changes)
}

fn node_with_two_enis() -> Outcome {
    let spec = node()?;

    converge(&spec)?;

    let rules: Vec<String> =
        ip("rule")?.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(rules.len(), 4 + 3, "ours and the kernel's: {rules:#?}");
    for wanted in [
        "512: from all lookup 51200 proto 86",
        "1024: from all fwmark 0x80/0x80 lookup main proto 86",
        "1536: from all fwmark 0x100/0x3f00 lookup 2 proto 86",
        "32765: from 10.0.0.11 lookup 2 proto 86",
    ] {
        assert!(rules.iter().any(|rule| rule == wanted), "{wanted} is not in {rules:#?}");
    }
    let routes = json("route show table 2")?;
    assert_eq!(routes.len(), 2, "{routes:?}");
    assert!(routes.iter().any(|r| r["dst"] == "default" && r["gateway"] == "10.0.0.1" && r["dev"] == "ens1"));
    let main = json("route show table main")?;
    assert!(main.iter().all(|r| r["dev"] == "ens0"), "the secondary ENI draws the node's traffic: {main:?}");
    let link = json("addr show dev ens1")?;
    assert_eq!(link[0]["mtu"], 9001);
    assert_eq!(link[0]["addr_info"][0]["local"], "10.0.0.11");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/conf/ens1/rp_filter")?.trim(), "2");
    Ok(())
}

fn idempotent() -> Outcome {
    let spec = node()?;
    converge(&spec)?;

    let again = converge(&spec)?;

    assert_eq!(again, Vec::<String>::new());
    Ok(())
}

fn drift() -> Outcome {
    let spec = node()?;
    converge(&spec)?;
    // Takes the kernel's rule for the main table along.
    ip("rule flush")?;
    ip("route flush table 2")?;
    ip("link set ens1 mtu 1500")?;
    ip("addr add 10.0.0.99/24 dev ens1")?;
    ip("rule add pref 1536 fwmark 0x900/0x3f00 lookup 10 proto 86")?;
    ip("rule add pref 1536 from 10.0.0.77 lookup 10")?;

    let changes = converge(&spec)?;

    for rule in ["512 from all lookup 51200", "32766 from all lookup main"] {
        assert!(changes.contains(&format!("ip rule add pref {rule} protocol 86")), "{changes:#?}");
    }
    assert!(changes.iter().any(|change| change.starts_with("ip addr del 10.0.0.99/24")), "{changes:#?}");
    assert!(
        changes.contains(&"ip rule del pref 1536 fwmark 0x900/0x3f00 lookup 10 protocol 86".to_owned()),
        "{changes:#?}"
    );
    assert!(ip("rule")?.contains("from 10.0.0.77 lookup 10"), "a rule of somebody else was removed");
    assert_eq!(converge(&spec)?, Vec::<String>::new());
    Ok(())
}

/// With another connection mark the steering mask moves. Between the two halves somebody else sets the new marks.
fn moving_marks() -> Outcome {
    let spec = node()?;
    converge(&spec)?;
    let moved = NodeSpec { marks: Marks::with_connmark(0x100)?, ..spec };
    let old = ["fwmark 0x80/0x80", "fwmark 0x100/0x3f00"];
    let has = |rule: &str| -> Result<bool, Failed> { Ok(ip("rule")?.contains(rule)) };
    let mut host = Host::open()?;

    let half = host.add(&moved, None)?;

    assert!(has("fwmark 0x1/0x3f lookup 2")? && has(old[0])? && has(old[1])?, "{}", ip("rule")?);
    assert!(
        ip("route get 192.0.2.9 mark 0x100")?.contains("dev ens1"),
        "an old mark leads elsewhere already"
    );
    let done = host.finish(&moved, None, half, false)?;
    assert!(has(old[0])? && has(old[1])?, "the old marks are still set: {done:?}");
    assert!(ip("route get 192.0.2.9 mark 0x100")?.contains("dev ens1"));
    converge(&moved)?;
    assert!(!has(old[0])? && !has(old[1])? && has("fwmark 0x100/0x100 lookup main")?, "{}", ip("rule")?);
    assert_eq!(converge(&moved)?, Vec::<String>::new());
    Ok(())
}

fn external_services() -> Outcome {
    let ranges =
        ["198.51.100.0/24", "203.0.113.7/32", "0.0.0.0/0"].map(|range| range.parse().expect("a range"));
    let spec = NodeSpec { external_services: ranges.into(), ..node()? };
    converge(&spec)?;
    ip("rule del pref 1535 to 198.51.100.0/24")?;
    ip("rule add pref 1535 to 192.0.2.0/24 lookup main proto 86")?;
    ip("rule add pref 1535 to 192.0.2.0/24 lookup main")?;

    let changes = converge(&spec)?;

    let wanted = [
        "ip rule add pref 1535 to 198.51.100.0/24 lookup main protocol 86",
        "ip rule del pref 1535 to 192.0.2.0/24 lookup main protocol 86",
    ];
    assert_eq!(changes, wanted);
    assert_eq!(converge(&spec)?, Vec::<String>::new());
    let route = ip("route get 198.51.100.9 mark 0x100")?;
    assert!(route.contains("dev ens0"), "not by the primary ENI: {route}");
    converge(&NodeSpec { external_services: BTreeSet::new(), ..spec })?;
    let route = ip("route get 198.51.100.9 mark 0x100")?;
    assert!(route.contains("dev ens1"), "not by the pod's ENI: {route}");
    assert!(ip("rule")?.contains("to 192.0.2.0/24"), "a rule of somebody else was removed");
    Ok(())
}

fn first_address() -> Outcome {
    let spec = node()?;
    // An address is removed with all that were added to its subnet after it, unless this setting says otherwise.
    std::fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "0")?;
    ip("link set ens1 up")?;
    ip("addr add 10.0.0.99/24 dev ens1")?;

    converge(&spec)?;

    let addresses = json("addr show dev ens1")?;
    let inet: Vec<_> = addresses[0]["addr_info"].as_array().expect("a list").iter().collect();
    let inet: Vec<_> = inet.iter().filter(|a| a["family"] == "inet").map(|a| a["local"].clone()).collect();
    assert_eq!(inet, ["10.0.0.11"]);
    assert_eq!(json("route show table 2")?.len(), 2);
    assert_eq!(converge(&spec)?, Vec::<String>::new());
    Ok(())
}

fn subnet_route() -> Outcome {
    let spec = node()?;
    ip("link set ens1 up")?;
    ip("addr add 10.0.0.11/24 dev ens1")?;
    assert!(ip("route show table main")?.contains("ens1"), "the kernel adds a route with an address");

    converge(&spec)?;

    assert!(!ip("route show table main")?.contains("ens1"));
    assert!(ip("addr show dev ens1")?.contains("10.0.0.11/24"));
    assert_eq!(converge(&spec)?, Vec::<String>::new());
    Ok(())
}

fn foreign_rule() -> Outcome {
    let spec = node()?;
    ip("rule add pref 1024 fwmark 0x80/0x80 lookup main")?;

    converge(&spec)?;

    assert_eq!(ip("rule show pref 1024")?.lines().count(), 2);
    assert_eq!(converge(&spec)?, Vec::<String>::new());
    Ok(())
}

fn stacked_link() -> Outcome {
    let spec = node()?;
    // A stand-in for a VLAN, macvlan or bridge on the ENI: all have its MAC.
    ip("link add stacked address 02:00:00:00:00:01 type veth peer name beneath")?;

    converge(&spec)?;

    let routes = json("route show table 2")?;
    assert!(routes.iter().all(|route| route["dev"] == "ens1"), "{routes:?}");
    Ok(())
}

fn ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Notices wait in the socket, so nothing is missed.
fn notices() -> Outcome {
    let spec = NodeSpec { ipv6: ipv6(), ..node()? };
    let mut wirer = Wirer::open()?;
    let mut host = Host::open()?;
    let ports = [wirer.port()?, host.port()].into();
    let mut watch = Watch::routes(Ours {
        ports,
        pod_if_prefixes: [VethPrefix::default()].into(),
        mtu: 9001,
        pod_mtu: 9001,
    })?;
    let pod = Pod::new(7)?;
    pod.add(&mut wirer)?;
    wirer.remove(&pod.spec)?;
    wirer.sweep()?;
    for of_others in [
        "link add name others0 up type veth peer name others1",
        "link del others0",
        "link add others2 up type bridge",
        "addr add 10.9.0.1/24 dev others2",
        "addr del 10.9.0.1/24 dev others2",
        "link set others2 down",
    ] {
        ip(of_others)?;
    }
    let done = host.converge(&spec, None)?;
    assert!(done.refused.is_empty() && done.unset.is_empty() && !done.changes.is_empty(), "{done:?}");
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || while watch.wait().is_ok() && told.send(()).is_ok() {});
    let second = Duration::from_secs(1);
    assert!(heard.recv_timeout(second).is_err(), "changes that are not others' or not of ours are told");

    let again = if ipv6() { Pod::dual(9)? } else { Pod::new(9)? };
    again.add(&mut wirer)?;
    let mut damages = vec![
        "route flush table 51200".to_owned(),
        format!("link set {} mtu 1400", again.name()),
        format!("link set {} address 02:00:00:00:00:77", again.name()),
        "rule del pref 1536".to_owned(),
        "route replace default via 10.0.0.1 dev ens1 table 2".to_owned(),
        "addr add 10.0.0.99/24 dev ens1".to_owned(),
        "addr del 10.0.0.11/24 dev ens1".to_owned(),
        "link set ens1 down".to_owned(),
    ];
    damages.extend(ipv6().then(|| format!("-6 addr flush dev {}", again.name())));
    damages.extend(["net/ipv4/ip_forward=0", "net/ipv4/conf/ens1/rp_filter=1"].map(str::to_owned));
    damages.extend(ipv6().then(|| "net/ipv6/conf/all/forwarding=0".to_owned()));
    for damage in damages {
        match damage.split_once('=') {
            Some((setting, value)) => std::fs::write(format!("/proc/sys/{setting}"), value)?,
            None => ip(&damage).map(drop)?,
        }
        heard.recv_timeout(10 * second).map_err(|error| format!("{damage}: {error}"))?;
        while heard.recv_timeout(second / 5).is_ok() {}
        let mended = wirer.mend(std::slice::from_ref(&again.spec))?.mended.len();
        let done = host.converge(&spec, None)?;
        assert!(mended + done.changes.len() > 0, "{damage} needs nothing");
        assert!(heard.recv_timeout(second / 2).is_err(), "what puts {damage} right is told");
    }
    Ok(())
}

fn check_names() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let cases = [
        ("link set eth0 down", "eth0 is down"),
        ("addr flush dev eth0", "eth0 has no address 10.0.4.1"),
        ("route del default", "the pod has no route to 0.0.0.0/0"),
        ("neigh del 169.254.1.1 dev eth0", "the gateway 169.254.1.1 is not eni"),
        ("link set eth0 name eth1", "the pod has no interface eth0"),
    ];
    for (number, (damage, difference)) in (1..).zip(cases) {
        let mut pod = Pod::new(number)?;
        pod.spec.addresses = vec![[10, 0, 4, 1].into()];
        pod.add(&mut wirer)?;
        if damage.ends_with("eth1") {
            pod.inside(|| ip("link set eth0 down"))?;
        }
        pod.inside(|| ip(damage))?;

        let found = wirer.check(&pod.spec, pod.socket()?)?;

        assert!(found.iter().any(|it| it.starts_with(difference)), "{damage}: {found:?}");
        wirer.remove(&pod.spec)?;
    }
    Ok(())
}

fn repeated() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(1)?;
    pod.add(&mut wirer)?;

    pod.add(&mut wirer)?;

    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    assert_eq!(ip("-br link show type veth")?.matches(pod.spec.host_if.as_str()).count(), 1);
    assert!(!ip("link")?.contains("gone"));
    Ok(())
}

/// A pod on a node, and after it another of the same name, with another address.
fn one_after_the_other(wirer: &mut Wirer) -> Result<(Pod, Pod), Failed> {
    converge(&node()?)?;
    let old = Pod::new(1)?;
    old.add(wirer)?;
    let mut new = Pod::new(1)?;
    new.spec.addresses = vec![[10, 0, 4, 200].into()];
    new.add(wirer)?;
    Ok((old, new))
}

fn leftover() -> Outcome {
    let mut wirer = Wirer::open()?;

    let (_old, new) = one_after_the_other(&mut wirer)?;

    let routes = json("route show table 51200")?;
    assert_eq!(routes.len(), 1, "the old pod is still routed: {routes:?}");
    assert_eq!(wirer.check(&new.spec, new.socket()?)?, Vec::<String>::new());
    wirer.sweep()?;
    assert_eq!(ip("-br link show type veth")?.matches("eni").count(), 1);
    assert!(!ip("link")?.contains("gone"));
    Ok(())
}

fn late_remove() -> Outcome {
    let mut wirer = Wirer::open()?;
    let (old, new) = one_after_the_other(&mut wirer)?;

    wirer.remove(&old.spec)?;
    wirer.sweep()?;

    assert_eq!(wirer.check(&new.spec, new.socket()?)?, Vec::<String>::new());
    Ok(())
}

fn other_namespace() -> Outcome {
    let mut wirer = Wirer::open()?;
    let (pod, other) = (Pod::new(1)?, Pod::new(2)?);
    other.inside(|| ip("link add eth0 type veth peer name other"))?;

    let result = wirer.add(&pod.spec, pod.netns.as_fd(), other.socket()?);

    assert!(result.is_err());
    assert!(other.inside(|| json("addr show dev eth0"))?[0]["addr_info"] == serde_json::json!([]));
    assert!(!ip("link")?.contains(pod.spec.host_if.as_str()));
    Ok(())
}

fn packets() -> Outcome {
    let spec = node()?;
    converge(&spec)?;
    let mut wirer = Wirer::open()?;
    let (one, two) = (Pod::new(1)?, Pod::new(2)?);
    one.add(&mut wirer)?;
    two.add(&mut wirer)?;
    let server = two.inside(|| Ok(UdpSocket::bind(("10.0.4.2", 7000))?))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;

    let client = one.inside(|| Ok(UdpSocket::bind(("10.0.4.1", 7001))?))?;
    client.send_to(b"hello", "10.0.4.2:7000")?;
    let mut buffer = [0; 16];
    let (got, from) = server.recv_from(&mut buffer)?;

    assert_eq!((&buffer[..got], from.to_string().as_str()), (&b"hello"[..], "10.0.4.1:7001"));
    let host = UdpSocket::bind(("10.0.0.10", 7002))?;
    host.send_to(b"node", "10.0.4.2:7000")?;
    let (got, from) = server.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..got], from.to_string().as_str()), (&b"node"[..], "10.0.0.10:7002"));
    Ok(())
}

fn same_name() -> Outcome {
    let mut wirer = Wirer::open()?;
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let pod = Pod::new(3)?;
        let (netns, socket) = (pod.netns.as_fd(), pod.socket()?);
        let started = Instant::now();
        wirer.add(&pod.spec, netns, socket)?;
        adds.push(started.elapsed());
        let started = Instant::now();
        wirer.remove(&pod.spec)?;
        removes.push(started.elapsed());
    }
    wirer.sweep()?;
    adds.sort();
    removes.sort();
    eprintln!("200 times the same name, unswept: add p50 {:?}, remove p50 {:?}", adds[100], removes[100]);
    let links = ip("link")?;
    assert!(!links.contains("eni") && !links.contains("gone"), "{links}");
    Ok(())
}

fn failed_wiring() -> Outcome {
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(4)?;
    // The pod has an eth0 already.
    pod.inside(|| ip("link add eth0 type veth peer name other"))?;

    let error = pod.add(&mut wirer).expect_err("eth0 is taken");

    assert!(format!("{error:?}").contains("eth0"), "{error:?}");
    assert!(!ip("link")?.contains(pod.spec.host_if.as_str()));
    // The kernel gives the host end another name, as somebody who renames it at once does.
    let mut pod = Pod::new(6)?;
    pod.spec.host_if = serde_json::from_str("\"eni%d\"")?;
    assert!(pod.add(&mut wirer).is_err());
    assert!(!ip("link")?.contains("eni"), "{}", ip("link")?);
    assert!(!pod.inside(|| ip("link"))?.contains("eth0"));
    // A socket that is none of netlink's.
    let pod = Pod::new(5)?;
    let socket: OwnedFd = UdpSocket::bind("127.0.0.1:0")?.into();
    assert!(wirer.add(&pod.spec, pod.netns.as_fd(), socket).is_err());
    assert!(!ip("link")?.contains(pod.spec.host_if.as_str()));
    Ok(())
}

/// As many pods as a large node has, and how many fewer there are when rules are counted too.
const MANY: usize = 700;
const FEWER: usize = 250;

fn rules_constant() -> Outcome {
    let spec = node()?;
    converge(&spec)?;
    let before = ip("rule")?;
    let mut wirer = Wirer::open()?;
    let pods = (0..u32::try_from(MANY)?).map(Pod::new).collect::<Result<Vec<_>, _>>()?;
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for pod in &pods {
        let socket = pod.socket()?;
        let started = Instant::now();
        wirer.add(&pod.spec, pod.netns.as_fd(), socket)?;
        adds.push(started.elapsed());
        if adds.len() == FEWER {
            assert_eq!(ip("rule")?, before);
        }
    }

    assert_eq!(ip("rule")?, before);
    assert_eq!(wirer.pods()?.len(), MANY);
    let specs: Vec<PodSpec> = pods.iter().map(|pod| pod.spec.clone()).collect();
    let started = Instant::now();
    assert_eq!(wirer.mend(&specs)?, Mending::default());
    let look = started.elapsed();

    for pod in &pods {
        let started = Instant::now();
        wirer.remove(&pod.spec)?;
        removes.push(started.elapsed());
    }
    let started = Instant::now();
    wirer.sweep()?;
    let sweep = started.elapsed();
    adds.sort();
    removes.sort();
    let (add, remove) = (adds[MANY / 2], removes[MANY / 2]);
    eprintln!(
        "{MANY} pods: add p50 {add:?}, remove p50 {remove:?}, one look at all {look:?}, one sweep {sweep:?}"
    );
    assert_eq!(wirer.pods()?, []);
    let links = ip("link")?;
    assert!(!links.contains("eni") && !links.contains("gone"), "{links}");
    Ok(())
}
