//! Several network cards: pods with an interface of each.

use std::net::IpAddr;

use lab::LabError;
use lab::ec2::{Action, Fault};
use lab::fabric::{Drops, INTERNET_HOST, INTERNET_HOST6, SECOND_CIDR_HOST, SECOND_CIDR_HOST6};
use lab::probe::{By, Conversation, Echo, PORT, ask, ask_by, transfer};
use lab::runtime::Pod;
use serde_json::Value;
use types::{DeviceIndex, NetworkCard};
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_on_two_network_cards_is_reached_by_both_of_its_addresses", packets),
    ("pods_on_two_network_cards_outlive_the_daemon_and_go_whole", restarts_ipv4),
    ("a_pod_that_lacks_one_network_card_waits_and_holds_nothing", lacks_one),
    ("a_pod_that_asks_for_every_network_card_is_refused_where_there_is_one", refused),
    (
        "a_pod_on_two_network_cards_is_in_the_go_versions_file_of_each_and_is_taken_over_by_them",
        checkpoints_ipv4,
    ),
    ("a_node_that_stops_using_its_other_network_cards_keeps_their_pods", switched_off),
];

/// The same where this kernel has IPv6.
pub(crate) const IPV6: &[Test] = &[
    ("a_pod_has_addresses_of_both_families_on_each_of_two_network_cards", dual_stack),
    ("a_pod_of_an_ipv6_node_has_an_address_of_each_of_two_network_cards", ipv6_only),
    ("pods_with_ipv6_on_two_network_cards_outlive_the_daemon_and_go_whole", restarts_ipv6),
    (
        "an_ipv6_pod_on_two_network_cards_is_in_the_go_versions_files_and_is_taken_over_by_them",
        checkpoints_ipv6,
    ),
];

/// Two network cards with 8 ENIs each.
const TWO_CARDS: &str = "c6in.32xlarge";
const CARDS: (&str, &str) = ("ENABLE_MULTI_NIC", "true");
const TARGET: (&str, &str) = ("WARM_IP_TARGET", "2");
const SETTINGS: &[(&str, &str)] = &[CARDS, TARGET, PATIENCE];
const PATIENCE: (&str, &str) = ("IPAMD_ADD_TIMEOUT_SECONDS", "20");
const DUAL: &[(&str, &str)] = &[CARDS, TARGET, PATIENCE, ("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "true")];
const ONLY: &[(&str, &str)] = &[CARDS, PATIENCE, ("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

/// A pod that asks for an interface of every card, and its addresses.
struct Many {
    pod: Pod,
    addresses: Vec<IpAddr>,
}

impl Many {
    /// With an address on each card.
    fn add(setting: &Setting, name: &str) -> Result<Self, LabError> {
        Self::add_with(setting, name, 2)
    }

    fn add_with(setting: &Setting, name: &str, addresses: usize) -> Result<Self, LabError> {
        let mut pod = Pod { multi_nic: true, ..Pod::create(name, name)? };
        let told = pod.add_any(&setting.node)?;
        ensure!(told.len() == addresses, "{name} has {told:?}");
        Ok(Self { pod, addresses: told })
    }

    /// Asks by each address, and is asked by each.
    fn reaches(&self, setting: &Setting) -> Outcome {
        let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
        for address in &self.addresses {
            let (vpc, internet, own) = match address {
                IpAddr::V4(_) => (
                    IpAddr::V4(SECOND_CIDR_HOST),
                    IpAddr::V4(INTERNET_HOST),
                    IpAddr::V4(setting.node.instance().address),
                ),
                IpAddr::V6(_) => (IpAddr::V6(SECOND_CIDR_HOST6), IpAddr::V6(INTERNET_HOST6), *address),
            };
            let ask = |to: IpAddr| -> Result<Option<IpAddr>, LabError> {
                Ok(Conversation::open_as(&self.pod.netns, *address, (to, PORT).into())?.ask())
            };
            let seen = (ask(vpc)?, ask(internet)?);
            ensure!(seen == (Some(*address), Some(own)), "{address}: VPC and internet saw {seen:?}");
            match address {
                IpAddr::V4(ipv4) => transfer(setting.fabric.second(), &self.pod.netns, *ipv4, 100_000)?,
                IpAddr::V6(_) => {
                    let _echo = Echo::start(&self.pod.netns)?;
                    let came = ask_by(By::Tcp, setting.fabric.second(), (*address, PORT).into())?;
                    ensure!(came.is_some(), "{address} is not reached");
                }
            }
        }
        let drops = setting.fabric.drops()?;
        ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
        setting.fabric.troubles()
    }

    /// Whether the daemon knows it with all of its addresses, and CHECK finds nothing.
    fn is_whole(&self, setting: &Setting) -> Outcome {
        let report = setting.node.report()?;
        let held = addresses_of(&report, &self.pod.name);
        ensure!(held == self.addresses, "the daemon holds {held:?} for {:?}", self.addresses);
        let checked = self.pod.call(&setting.node, "CHECK")?;
        ensure!(checked.success, "CHECK: {}", checked.stdout);
        Ok(())
    }
}

/// The addresses of a pod, by interface.
fn addresses_of(report: &Report, name: &str) -> Vec<IpAddr> {
    let mut of_it: Vec<_> = report.pods.iter().filter(|pod| pod.pod.name == name).collect();
    of_it.sort_by_key(|pod| pod.sandbox.if_name());
    of_it.into_iter().flat_map(|pod| std::iter::once(pod.address).chain(pod.other)).collect()
}

fn packets() -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, SETTINGS)?;
    let many = Many::add(&setting, "many")?;
    let one = setting.pods(0..1)?;

    many.reaches(&setting)?;
    many.is_whole(&setting)?;

    let result = many.pod.result.clone().unwrap_or_default();
    let names = |of: &Value| of["name"].as_str().map(str::to_owned).unwrap_or_default();
    let interfaces: Vec<String> = result["interfaces"].as_array().into_iter().flatten().map(names).collect();
    ensure!(interfaces.len() == 5, "interfaces {interfaces:?}");
    ensure!((interfaces[1].as_str(), interfaces[3].as_str()) == ("eth0", "mNicIf1"), "{interfaces:?}");
    ensure!(result["interfaces"][3]["mac"] == "10100", "the table of the second card is not told: {result}");
    ensure!(result["ips"][1]["interface"] == 3, "{result}");
    let enis = setting.fabric.ec2().enis_of(&setting.node.instance().id);
    let places: Vec<_> =
        enis.iter().filter_map(|eni| eni.attachment.as_ref()).map(|at| (at.card, at.device)).collect();
    let first = |card| (NetworkCard(card), DeviceIndex(0));
    ensure!(places == [first(0), first(1)], "ENIs at {places:?}");
    let report = setting.node.report()?;
    ensure!(addresses_of(&report, "pod-0").len() == 1, "a pod that does not ask has more than one address");
    let per_card: Vec<u32> = report.cards.iter().map(|card| card.addresses.assigned).collect();
    ensure!(per_card == [2, 1], "{per_card:?} addresses are assigned per card");

    // What CHECK says names the interface.
    many.pod.netns.ip("route flush table 1\n")?;
    let checked = many.pod.call(&setting.node, "CHECK")?;
    ensure!(checked.stdout.to_string().contains("169.254.1.2"), "CHECK: {}", checked.stdout);
    drop(one);
    Ok(())
}

fn restarts_ipv4() -> Outcome {
    restarts(SETTINGS)
}

fn restarts_ipv6() -> Outcome {
    restarts(ONLY)
}

fn restarts(settings: &[(&str, &str)]) -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, settings)?;
    let (kept, mut queued) = (Many::add(&setting, "kept")?, Many::add(&setting, "queued")?);
    setting.node.kill_daemon();
    kept.reaches(&setting)?;

    queued.pod.del(&setting.node)?;
    setting.node.start_daemon(settings)?;
    setting.node.wait_ready()?;

    kept.is_whole(&setting)?;
    let report = setting.node.report()?;
    ensure!(report.pods.len() == 2, "{:?} are held", report.pods);
    ensure!(report.addresses.cooling == 2, "{} addresses cool", report.addresses.cooling);
    kept.reaches(&setting)?;

    let mut kept = kept;
    kept.pod.del(&setting.node)?;
    let report = setting.node.report()?;
    ensure!(report.pods.is_empty(), "{:?} are held", report.pods);
    ensure!(report.addresses.cooling == 4, "{} addresses cool", report.addresses.cooling);
    // Its name is free again.
    let mut again = Pod { multi_nic: true, ..Pod::create("kept", "again")? };
    let addresses = again.add_any(&setting.node)?;
    Many { pod: again, addresses }.reaches(&setting)
}

fn lacks_one() -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, &[TARGET])?;
    setting.node.wait_for("two addresses", |report| report.addresses.free >= 2)?;
    setting.node.stop_daemon()?;
    let denied = Fault::error("UnauthorizedOperation", 403);
    setting.fabric.ec2().fault_next(Action::CreateNetworkInterface, 1000, denied);
    setting.node.start_daemon(&[CARDS, TARGET, ("IPAMD_ADD_TIMEOUT_SECONDS", "3")])?;
    setting.node.wait_ready()?;
    let many = Pod { multi_nic: true, ..Pod::create("many", "many")? };

    let answer = many.call(&setting.node, "ADD")?;

    let said = answer.stdout.to_string();
    ensure!(!answer.success && said.contains("denied") && said.contains("network card 1"), "{said}");
    let report = setting.node.report()?;
    ensure!(report.pods.is_empty() && report.addresses.reserved == 0, "{report:?}");
    // Who wants one address has it meanwhile.
    setting.pods(0..1)?;

    setting.fabric.ec2().clear_faults();
    let ready =
        |report: &Report| report.cards.iter().any(|card| card.card == NetworkCard(1) && card.enis == 1);
    setting.node.wait_for("an ENI on the second card", ready)?;
    Many::add(&setting, "again")?.reaches(&setting)
}

fn refused() -> Outcome {
    let setting = Setting::start(&[])?;
    let many = Pod { multi_nic: true, ..Pod::create("many", "many")? };

    let answer = many.call(&setting.node, "ADD")?;

    let said = answer.stdout.to_string();
    ensure!(!answer.success && answer.stdout["code"] == 2 && said.contains("no-multi-nic"), "{said}");
    ensure!(setting.node.report()?.pods.is_empty(), "it holds an address");
    Ok(())
}

fn checkpoints_ipv4() -> Outcome {
    checkpoints(SETTINGS, "ipv4")
}

fn checkpoints_ipv6() -> Outcome {
    checkpoints(ONLY, "ipv6")
}

fn checkpoints(settings: &[(&str, &str)], family: &str) -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, settings)?;
    let mut many = Many::add(&setting, "many")?;
    setting.node.stop_daemon()?;
    let run_dir = setting.node.run_dir();
    let files = ["ipam.json", "ipam-nic-1.json"].map(|name| run_dir.join(name));
    for (file, address) in files.iter().zip(&many.addresses) {
        let text = std::fs::read_to_string(file).map_err(LabError::doing("read a checkpoint"))?;
        let mut said: Value = serde_json::from_str(&text).map_err(LabError::doing("read a checkpoint"))?;
        ensure!(said["allocations"].as_array().map(Vec::len) == Some(1), "{} says {text}", file.display());
        let entry = &said["allocations"][0];
        let its = entry["ifName"] == "eth0" && entry[family] == address.to_string();
        ensure!(its && entry["metadata"]["interfacesCount"] == 2, "{} says {text}", file.display());
        // As the Go version writes it.
        if let Some(said) = said.as_object_mut() {
            said.remove("writer");
        }
        std::fs::write(file, said.to_string()).map_err(LabError::doing("write a checkpoint"))?;
    }
    for ours in ["state", "instance.json"] {
        std::fs::remove_file(run_dir.join(ours)).map_err(LabError::doing("remove our state"))?;
    }

    setting.node.start_daemon(settings)?;
    setting.node.wait_ready()?;

    many.is_whole(&setting)?;
    many.reaches(&setting)?;
    many.pod.del(&setting.node)?;
    let report = setting.node.report()?;
    ensure!(report.pods.is_empty() && report.addresses.cooling == 2, "{report:?}");
    setting.node.stop_daemon()?;
    let text = std::fs::read_to_string(&files[1]).map_err(LabError::doing("read a checkpoint"))?;
    ensure!(!text.contains("containerID"), "the file of the second card says {text}");
    Ok(())
}

fn switched_off() -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, SETTINGS)?;
    let mut many = Many::add(&setting, "many")?;
    setting.node.stop_daemon()?;

    setting.node.start_daemon(&[TARGET])?;
    setting.node.wait_ready()?;

    many.reaches(&setting)?;
    let report = setting.node.report()?;
    ensure!(report.cards.len() == 1, "cards {:?} are used", report.cards);
    many.pod.del(&setting.node)?;
    ensure!(setting.node.report()?.pods.is_empty(), "something of it is held");
    setting.fabric.troubles()
}

/// Whether the rules that lead out IPv6 of secondary ENIs are these.
fn leads_out(setting: &Setting, tables: &[u32]) -> Outcome {
    let rules = setting.node.netns().read("ip -6 rule show pref 1536")?;
    let all = tables.iter().all(|table| rules.contains(&format!("/80 lookup {table}")));
    ensure!(all && rules.lines().count() == tables.len(), "{rules}");
    Ok(())
}

/// Whether the tools find nothing wrong and know the way of each address.
fn is_explained(setting: &Setting, many: &Many) -> Outcome {
    let output = setting.node.tool(&["doctor"], &[])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let output = setting.node.tool(&["explain", "pod", "many"], &[])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let told = many.addresses.iter().all(|address| said.contains(&address.to_string()));
    ensure!(told && said.contains("table 10100") && !said.contains("MISSING"), "{said}");
    Ok(())
}

fn dual_stack() -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, DUAL)?;
    let mut many = Many::add_with(&setting, "many", 4)?;

    many.reaches(&setting)?;
    many.is_whole(&setting)?;
    leads_out(&setting, &[10_100])?;
    is_explained(&setting, &many)?;

    // Somebody takes the way out away.
    for taken in ["ip -6 rule del pref 1536", "ip -6 route flush table 10100"] {
        setting.node.netns().read(taken)?;
    }
    eventually("the way out", || leads_out(&setting, &[10_100]).is_ok())?;
    many.reaches(&setting)?;

    many.pod.del(&setting.node)?;
    let routes = setting.node.netns().read("ip -6 route show table 51200")?;
    ensure!(routes.trim().is_empty(), "routes are left: {routes}");
    Ok(())
}

fn ipv6_only() -> Outcome {
    let setting = Setting::start_on(TWO_CARDS, ONLY)?;
    let many = Many::add(&setting, "many")?;
    let mut one = Pod::create("one", "one")?;
    let told = one.add_any(&setting.node)?;
    ensure!(told.len() == 1, "a pod that does not ask has {told:?}");

    many.reaches(&setting)?;
    many.is_whole(&setting)?;
    leads_out(&setting, &[10_100])?;
    is_explained(&setting, &many)?;

    let enis = setting.fabric.ec2().enis_of(&setting.node.instance().id);
    let of_enis: Vec<_> = enis.iter().map(|eni| (eni.secondary.len(), eni.ipv6_prefixes.len())).collect();
    ensure!(of_enis == [(0, 1), (0, 1)], "addresses and prefixes of the ENIs: {of_enis:?}");
    let mut made = setting.changes();
    made.sort();
    let want = [
        "AssignIpv6Addresses",
        "AssignIpv6Addresses",
        "AttachNetworkInterface",
        "CreateNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
    ];
    ensure!(made == want, "EC2 was asked for {made:?}");
    // IPv4 leaves by the node's address, by the first card.
    let _echo = Echo::start(setting.fabric.internet())?;
    let seen = ask(&many.pod.netns, INTERNET_HOST)?;
    ensure!(seen == Some(setting.node.instance().address), "by IPv4 it is seen as {seen:?}");
    Ok(())
}
