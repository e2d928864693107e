//! A node of the Go version is taken over with its pods, and given back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use lab::LabError;
use lab::ec2::Config;
use lab::fabric::{Fabric, INTERNET_HOST, SECOND_CIDR_HOST};
use lab::flows::{Flow, Flows, Mirror, PACE, Tally};
use lab::go_node::{GoNode, GoPod, GoVersion};
use lab::kube_proxy::{Endpoint, KubeProxy, Mode, Policy, Service};
use lab::netns::Netns;
use lab::node::Node;
use lab::probe::{By, Echo, PORT, ask, ask_by};
use lab::runtime::Pod;
use serde_json::{Value, json};
use wire::Report;

use crate::doctor::{doctor, findings, mend};
use crate::support::{Outcome, Test, ensure, eventually, while_asking};

pub(crate) const TESTS: &[Test] = &[
    ("a_hundred_pods_of_the_go_version_are_taken_over_while_they_talk", hundred_pods),
    (
        "new_connections_go_their_way_beside_the_go_versions_tables_and_while_these_are_removed",
        judged_by_packets,
    ),
    ("a_pod_whose_link_was_moved_away_costs_no_other_pod_anything", moved_away),
    ("a_node_of_an_older_go_version_is_taken_over", older),
    ("pods_keep_their_addresses_when_links_get_another_prefix_at_the_takeover_and_later", other_prefix),
    (
        "without_a_checkpoint_pods_under_another_prefix_are_known_by_the_rules_beside_their_routes",
        prefix_alone,
    ),
    ("a_node_with_iptables_legacy_is_taken_over", legacy),
    ("a_damaged_checkpoint_costs_no_pod_its_address", damaged),
    ("an_address_that_ec2_does_not_know_is_held_with_its_way_out", unknown_address),
    ("pods_live_on_when_the_node_is_given_back_and_taken_over_again", there_and_back),
    (
        "a_pod_whose_address_no_description_has_is_led_out_by_its_eni_after_the_node_is_given_back",
        left_unknown,
    ),
    ("a_killed_daemon_has_left_a_checkpoint_too", killed),
];

/// An address that somebody else has made rules for.
const FOREIGN: &str = "192.0.2.7";
/// The longest that a flow may be silent.
const SILENCE: Duration = Duration::from_secs(1);

/// Which program is missing to make a node of the Go version.
pub(crate) fn missing() -> Option<String> {
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let program = ["iptables-nft", "iptables-legacy"].into_iter().find(|program| !runs(program));
    program.map(|program| format!("no `{program}` program"))
}

/// A VPC with one node on which nothing has run yet. Drops the node first.
struct Place {
    node: Node,
    fabric: Fabric,
}

impl Place {
    fn new() -> Result<Self, LabError> {
        let fabric = Fabric::create(Config::default())?;
        // A state of before belongs to another test.
        let _gone = std::fs::remove_dir_all("/run/lab/node1");
        let node = Node::launch(&fabric, "node1", "m5.4xlarge")?;
        Ok(Self { node, fabric })
    }

    fn pods_of(&self, version: GoVersion, count: usize) -> Result<GoNode<'_>, LabError> {
        GoNode::with_pods(&self.node, &self.fabric, version, count)
    }

    /// Starts our daemon and waits until what the Go version left is gone.
    fn take_over(&self) -> Result<Report, LabError> {
        self.take_over_with(&[])
    }

    /// The same with these settings.
    fn take_over_with(&self, settings: &[(&str, &str)]) -> Result<Report, LabError> {
        self.node.start_daemon(settings)?;
        self.node.wait_ready()?;
        let mut left = self.leftovers()?;
        for _ in 0..200 {
            if left.is_empty() {
                return self.node.report();
            }
            std::thread::sleep(Duration::from_millis(50));
            left = self.leftovers()?;
        }
        Err(LabError::Otherwise(format!("left behind:\n{}\n{}", left.join("\n"), self.node.log_tail())))
    }

    /// Rules and a route of somebody else that look like the Go version's, all about addresses that are nobody's here.
    fn foreign(&self) -> Outcome {
        let netns = self.node.netns();
        netns.ip(
            "rule add pref 512 to 192.0.2.7 lookup main\nrule add pref 1536 from 192.0.2.7 lookup 77\n\
             rule add pref 32765 from 192.0.2.7 lookup 77\nroute add 192.0.2.7/32 dev ens5 scope link\n",
        )?;
        netns.read("iptables-nft -t nat -A POSTROUTING -s 192.0.2.7 -j ACCEPT").map(drop)
    }

    /// Checks that they are all there.
    fn foreign_stays(&self) -> Outcome {
        let netns = self.node.netns();
        let all = netns.read("ip rule")? + &netns.read("ip route")? + &netns.read("iptables-nft-save")?;
        let count = all.lines().filter(|line| line.contains(FOREIGN)).count();
        ensure!(count == 5, "{count} of 5 things of somebody else are there:\n{all}");
        Ok(())
    }

    /// What is there of the Go version's, line by line.
    fn leftovers(&self) -> Result<Vec<String>, LabError> {
        let netns = self.node.netns();
        let rules = netns.read("ip -d rule")?;
        let rules = rules.lines().filter(|line| line.ends_with("unspec"));
        let routes = netns.read("ip route show table main")?;
        let routes = routes.lines().filter(|line| line.contains("dev eni"));
        let nft = netns.read("nft list ruleset")?;
        let nft = nft.lines().filter(|line| line.contains("AWS") || line.contains("table ip aws-cni "));
        let tables = netns.read("iptables-nft-save")? + &netns.read("ip6tables-nft-save")?;
        let tables = tables.lines().filter(|line| line.contains("AWS") || line.contains("Block Node Local"));
        let all = rules.chain(routes).chain(nft).chain(tables);
        Ok(all.filter(|line| !line.contains(FOREIGN)).map(str::to_owned).collect())
    }

    /// Checks that the books have exactly these addresses.
    fn holds(&self, want: impl IntoIterator<Item = Ipv4Addr>) -> Result<Report, LabError> {
        let report = self.node.report()?;
        let held = addresses(&report);
        let want: BTreeSet<Ipv4Addr> = want.into_iter().collect();
        ensure!(held == want, "the daemon holds {held:?}, the pods have {want:?}");
        Ok(report)
    }

    /// Checks that pods reach both worlds as whom they should.
    fn reach(&self, pods: &[&Pod]) -> Outcome {
        let _echoes = [Echo::start(self.fabric.internet())?, Echo::start(self.fabric.second())?];
        for pod in pods {
            let second = ask(&pod.netns, SECOND_CIDR_HOST)?;
            ensure!(second == pod.address, "{}: the VPC saw {second:?}", pod.name);
            let internet = ask(&pod.netns, INTERNET_HOST)?;
            let own = Some(self.node.instance().address);
            ensure!(internet == own, "{}: the internet saw {internet:?}", pod.name);
        }
        Ok(())
    }
}

fn addresses(report: &Report) -> BTreeSet<Ipv4Addr> {
    report.pods.iter().filter_map(|pod| pod.address.to_string().parse().ok()).collect()
}

/// Flows from all pods to the VPC, from some to the internet, from the VPC to some, and among pods.
fn talk<'a, I: IntoIterator<Item = &'a Pod>>(
    place: &Place,
    pods: I,
) -> Result<(Flows, Vec<Mirror>), LabError> {
    let (vpc, internet) = (place.fabric.second(), place.fabric.internet());
    let mut mirrors = vec![Mirror::start(vpc)?, Mirror::start(internet)?];
    let mut flows = Vec::new();
    let pods: Vec<(&Pod, Ipv4Addr)> = pods.into_iter().filter_map(|pod| Some((pod, pod.address?))).collect();
    for (number, (pod, address)) in pods.iter().enumerate() {
        flows.push(Flow::new(&format!("{address} to the VPC"), &pod.netns, SECOND_CIDR_HOST.into())?);
        if number % 4 == 0 {
            flows.push(Flow::new(&format!("{address} to the internet"), &pod.netns, INTERNET_HOST.into())?);
        }
        // Of each ENI one.
        if number < 4 {
            mirrors.push(Mirror::start(&pod.netns)?);
            flows.push(Flow::new(&format!("the VPC to {address}"), vpc, (*address).into())?);
            let other = pods.last().map_or(&pod.netns, |(last, _)| &last.netns);
            flows.push(Flow::new(&format!("the last pod to {address}"), other, (*address).into())?);
        }
    }
    Ok((Flows::start(flows), mirrors))
}

/// The last two before the others: they are on another ENI than the first.
fn last_first(pods: &[Pod]) -> impl Iterator<Item = &Pod> {
    let (others, last) = pods.split_at(pods.len().saturating_sub(2));
    last.iter().chain(others)
}

pub(crate) fn never_silent(tallies: &[Tally]) -> Outcome {
    let most = SILENCE.as_millis() / PACE.as_millis();
    for Tally { name, sent, gap } in tallies {
        ensure!(u128::from(*gap) <= most, "{name}: {gap} datagrams in a row of {sent} were lost");
        ensure!(*sent > 20, "{name}: only {sent} datagrams were sent");
    }
    ensure!(!tallies.is_empty(), "no flow was counted");
    let longest = tallies.iter().map(|tally| tally.gap).max().unwrap_or_default();
    eprintln!("   {} flows, the longest silence {} ms", tallies.len(), (PACE * longest).as_millis());
    Ok(())
}

fn while_they_talk(version: GoVersion, count: usize) -> Result<Place, LabError> {
    let (place, mut pods) = talked_over(version, count, &[])?;
    live_and_die(&place, &mut pods)?;
    Ok(place)
}

/// A node that was taken over while its pods talked, and the pods.
fn talked_over(
    version: GoVersion,
    count: usize,
    settings: &[(&str, &str)],
) -> Result<(Place, Vec<GoPod>), LabError> {
    let place = Place::new()?;
    let mut go = place.pods_of(version, count)?;
    ensure!(place.leftovers()?.len() > 2 * count, "there is nothing to take over");
    place.foreign()?;
    let (flows, _mirrors) = talk(&place, go.pods.iter().map(|pod| &pod.pod))?;
    std::thread::sleep(PACE * 20);

    let report = place.take_over_with(settings)?;

    std::thread::sleep(PACE * 20);
    never_silent(&flows.stop())?;
    place.foreign_stays()?;
    place.holds(go.pods.iter().map(|pod| pod.address))?;
    let enis: BTreeSet<_> = report.pods.iter().map(|pod| pod.eni.clone()).collect();
    ensure!(enis.len() > 1 && !enis.contains(&None), "pods are on {enis:?}");
    let rules = place.node.netns().read("ip rule")?;
    ensure!(rules.starts_with("0:\tfrom all lookup local"), "the kernel's first rule is not back:\n{rules}");
    ensure!(rules.lines().count() <= 3 + 3 + 2 + 2 * enis.len(), "rules grow with pods:\n{rules}");
    place.reach(&go.pods.iter().take(6).map(|pod| &pod.pod).collect::<Vec<_>>())?;
    let pods = std::mem::take(&mut go.pods);
    Ok((place, pods))
}

/// CHECK, DEL and GC of pods that were taken over, and new pods beside them, which are returned.
fn live_and_die(place: &Place, pods: &mut Vec<GoPod>) -> Result<Vec<Pod>, LabError> {
    let node = &place.node;
    let held = |pods: &[GoPod]| -> Vec<Ipv4Addr> { pods.iter().map(|pod| pod.address).collect() };
    for pod in pods.iter().take(2) {
        let good = pod.pod.call(node, "CHECK")?;
        ensure!(good.success, "CHECK of {}: {}", pod.address, good.stdout);
    }
    let mut gone = pods.remove(0);
    gone.pod.del(node)?;
    gone.pod.del(node)?;
    place.holds(held(pods))?;
    let collected = pods.remove(0);
    let kept =
        |pod: &GoPod| wire::Kept { container_id: pod.pod.container_id.clone(), if_name: "eth0".into() };
    let valid = pods.iter().map(kept).collect();
    let reply = node.ask(wire::Verb::Gc { network_name: "aws-cni".to_owned(), valid })?;
    ensure!(reply == wire::Reply::Collected { released: 1 }, "GC answered {reply:?}");
    place.holds(held(pods))?;
    let mut all = held(pods);
    let mut new = Vec::new();
    for number in 0..4 {
        let mut pod = Pod::create(&format!("new-{number}"), &format!("new{number}"))?;
        let address = pod.add(node)?;
        let taken = all.contains(&address) || [gone.address, collected.address].contains(&address);
        ensure!(!taken, "{address} was given to a second pod");
        all.push(address);
        new.push(pod);
    }
    place.holds(all)?;
    place.reach(&new.iter().collect::<Vec<_>>())?;
    Ok(new)
}

fn hundred_pods() -> Outcome {
    while_they_talk(GoVersion::V23, 100).map(drop)
}

/// The setting that says how the links of pods are named.
const PREFIX: &str = "AWS_VPC_K8S_CNI_VETHPREFIX";

fn other_prefix() -> Outcome {
    let (place, mut old) = talked_over(GoVersion::V23, 12, &[(PREFIX, "azv")])?;
    let mut new = live_and_die(&place, &mut old)?;
    let named = |pods: &[Pod], prefix: &str| -> Outcome {
        let names: Vec<_> = pods.iter().map(Pod::host_if).collect();
        let right = names.iter().all(|name| name.is_some_and(|name| name.starts_with(prefix)));
        ensure!(right, "not all of {names:?} begin with {prefix}");
        Ok(())
    };
    named(&new, "azv")?;
    // The same on a node of ours: a third prefix beside the two.
    let (flows, _mirrors) = talk(&place, old.iter().map(|pod| &pod.pod))?;
    place.node.stop_daemon()?;
    place.node.start_daemon(&[(PREFIX, "pods")])?;
    place.node.wait_ready()?;
    let mut third = Pod::create("third", "third")?;
    third.add(&place.node)?;
    named(std::slice::from_ref(&third), "pods")?;
    let all = || old.iter().map(|pod| &pod.pod).chain(&new).chain([&third]);
    place.holds(all().filter_map(|pod| pod.address))?;
    place.reach(&all().collect::<Vec<_>>())?;
    // Long enough for all of them to say something.
    std::thread::sleep(PACE * 20);
    never_silent(&flows.stop())?;
    for pod in all() {
        let good = pod.call(&place.node, "CHECK")?;
        ensure!(good.success, "CHECK of {}: {}", pod.name, good.stdout);
    }
    old.remove(0).pod.del(&place.node)?;
    new.remove(0).del(&place.node)?;
    let left = old.iter().map(|pod| &pod.pod).chain(&new).chain([&third]);
    place.holds(left.filter_map(|pod| pod.address)).map(drop)
}

fn prefix_alone() -> Outcome {
    let place = Place::new()?;
    let mut go = place.pods_of(GoVersion::V23, 6)?;
    std::fs::remove_file(go.checkpoint()).map_err(LabError::doing("remove the checkpoint"))?;
    // A route of somebody else to a link that is named alike, as another network's pods have it.
    place
        .node
        .netns()
        .ip("link add cali0123456789a type veth peer name cali0123456789b\nlink set cali0123456789a up\n\
         route add 192.0.2.9/32 dev cali0123456789a scope link\n")?;

    place.take_over_with(&[(PREFIX, "azv")])?;

    place.holds(go.pods.iter().map(|pod| pod.address))?;
    let routes = place.node.netns().read("ip route show table main")?;
    ensure!(routes.contains("192.0.2.9 dev cali0123456789a"), "another's route is gone:\n{routes}");
    place.reach(&go.pods.iter().map(|pod| &pod.pod).collect::<Vec<_>>())?;
    let mut gone = go.pods.remove(0);
    gone.pod.del(&place.node)?;
    place.holds(go.pods.iter().map(|pod| pod.address)).map(drop)
}

/// Who asks whom, and as whom it is seen.
type Case<'a> = (String, &'a Netns, SocketAddr, Ipv4Addr);

/// New connections of each kind without a pause: before ours is there, while both are, and after the other is gone. They are judged by
/// who the other end sees, and by what the VPC has to drop.
fn judged_by_packets() -> Outcome {
    let place = Place::new()?;
    let go = place.pods_of(GoVersion::V23, 8)?;
    let (own, served) = (place.node.instance().address, &go.pods[1]);
    ensure!(served.device == 1, "the served pod is on the primary ENI");
    let proxy = KubeProxy::start(Mode::Nftables, place.node.netns(), own)?;
    let endpoint = Endpoint { address: SocketAddrV4::new(served.address, PORT), node: Some(own) };
    let cluster = SocketAddrV4::new([172, 20, 0, 1].into(), 80);
    let (policy, endpoints) = (Policy::Local, vec![endpoint]);
    proxy.sync(&[Service { name: "web", cluster, node_port: 30_001, policy, endpoints }])?;
    let asked = [place.fabric.internet(), place.fabric.second(), &served.pod.netns];
    let _echoes = asked.into_iter().map(Echo::start).collect::<Result<Vec<_>, _>>()?;
    let to_node = SocketAddr::from((own, 30_001));
    let mut cases: Vec<Case<'_>> = vec![
        ("the VPC to the node port".to_owned(), place.fabric.second(), to_node, SECOND_CIDR_HOST),
        ("the internet to the node port".to_owned(), place.fabric.internet(), to_node, INTERNET_HOST),
    ];
    for GoPod { pod, address, .. } in go.pods.iter().filter(|pod| pod.address != served.address) {
        let case = |to: Ipv4Addr, seen| {
            (format!("{address} to {to}"), &pod.netns, SocketAddr::from((to, PORT)), seen)
        };
        let all = [(INTERNET_HOST, own), (SECOND_CIDR_HOST, *address), (served.address, *address)];
        cases.extend(all.map(|(to, seen)| case(to, seen)));
    }
    let round = || -> Outcome {
        for (what, from, to, seen) in &cases {
            let told = ask_by(By::Udp, from, *to)?;
            ensure!(told == Some(IpAddr::V4(*seen)), "{what} is seen as {told:?}, not {seen}");
        }
        Ok(())
    };
    while_asking(round, || {
        place.take_over()?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    place.fabric.troubles()
}

fn moved_away() -> Outcome {
    let place = Place::new()?;
    let mut go = place.pods_of(GoVersion::V23, 6)?;
    let elsewhere = Netns::create("elsewhere")?;
    let take = |pod: &GoPod| -> Outcome {
        let link = pod.pod.host_if().unwrap_or_default();
        place.node.netns().ip(&format!("link set {link} netns {}\n", elsewhere.name()))
    };
    let holds = |pods: &[GoPod]| -> Outcome {
        place.holds(pods.iter().map(|pod| pod.address))?;
        place.reach(&pods.iter().map(|pod| &pod.pod).collect::<Vec<_>>())
    };
    let mut moved = go.pods.remove(0);
    take(&moved)?;
    place.take_over()?;
    holds(&go.pods)?;
    // The same between two runs of ours.
    place.node.stop_daemon()?;
    let mut later = go.pods.remove(0);
    take(&later)?;
    place.node.start_daemon(&[])?;
    place.node.wait_ready()?;
    holds(&go.pods)?;
    for pod in [&mut moved, &mut later] {
        let checked = pod.pod.call(&place.node, "CHECK")?;
        ensure!(!checked.success, "CHECK of {} finds nothing", pod.address);
        pod.pod.del(&place.node)?;
    }
    let links = elsewhere.read("ip -o link")?;
    ensure!(links.matches(": eni").count() == 2, "what is elsewhere is not ours to delete:\n{links}");
    holds(&go.pods)
}

fn older() -> Outcome {
    while_they_talk(GoVersion::V19, 12).map(drop)
}

/// Its old chains stay, which nobody but `iptables` can safely change, and do no harm beside ours. The doctor finds them, and its
/// commands take them out and leave what kube-proxy has in the same tables; of a node where that alone has some it says nothing.
fn legacy() -> Outcome {
    let place = while_they_talk(GoVersion::V19Legacy, 12)?;
    let kept = |place: &Place| place.node.netns().read("iptables-legacy-save");
    let chains = kept(&place)?;
    ensure!(chains.contains("AWS-SNAT-CHAIN-0"), "the chains are gone; say so in MIGRATION.md:\n{chains}");
    let log = place.node.log_tail();
    ensure!(log.contains("iptables-legacy"), "the log does not say that they stay:\n{log}");
    let proxy = KubeProxy::start(Mode::IptablesLegacy, place.node.netns(), place.node.instance().address)?;
    let of_proxy = || -> Result<Vec<String>, LabError> {
        Ok(proxy.rules()?.lines().filter(|line| !line.contains("AWS")).map(str::to_owned).collect())
    };
    // Rules of somebody else that look like the Go version's are another matter.
    let told = || -> Result<Vec<Value>, LabError> {
        let (_, verdict) = doctor(&place.node, &[])?;
        let of_legacy =
            |finding: &&Value| finding["what"].as_str().is_some_and(|what| what.contains("legacy"));
        Ok(findings(&verdict).filter(of_legacy).cloned().collect())
    };
    let (before, its) = (of_proxy()?, told()?);
    ensure!(its.len() == 2, "of nat and mangle it says {its:?}");

    mend(&place.node, &json!({"findings": its}))?;

    let chains = kept(&place)?;
    ensure!(!chains.contains("AWS") && chains.contains("KUBE-POSTROUTING"), "what is left:\n{chains}");
    let after = of_proxy()?;
    ensure!(before == after, "kube-proxy's rules were {before:?}\nand are {after:?}");
    let its = told()?;
    ensure!(its.is_empty(), "kube-proxy's rules are taken for something: {its:?}");
    Ok(())
}

fn damaged() -> Outcome {
    for (number, text) in
        ["", "{\"version\":", "{\"version\":\"vpc-cni-ipam/2\",\"allocations\":[]}"].iter().enumerate()
    {
        let place = Place::new()?;
        let mut go = place.pods_of(GoVersion::V23, 6)?;
        std::fs::write(go.checkpoint(), text).map_err(LabError::doing("damage the checkpoint"))?;

        place.take_over()?;

        place.holds(go.pods.iter().map(|pod| pod.address))?;
        let kept = std::fs::read_dir(place.node.run_dir()).map_err(LabError::doing("list the directory"))?;
        let kept = kept.flatten().any(|file| file.file_name().to_string_lossy().contains("damaged"));
        ensure!(kept, "file {number} was not set aside");
        let mut gone = go.pods.remove(0);
        gone.pod.del(&place.node)?;
        place.holds(go.pods.iter().map(|pod| pod.address))?;
    }
    Ok(())
}

/// Its ENI has lost it in EC2's picture: the pod keeps it, and nobody else gets it.
fn unknown_address() -> Outcome {
    let place = Place::new()?;
    let go = place.pods_of(GoVersion::V23, 4)?;
    let Some(pod) = go.pods.iter().find(|pod| pod.device == 1) else {
        return Err(LabError::Otherwise("no pod is on the second ENI".to_owned()));
    };
    let enis = place.fabric.ec2().enis_of(&place.node.instance().id);
    let eni = enis.iter().find(|eni| eni.secondary.contains(&pod.address));
    let eni = eni.ok_or_else(|| LabError::Otherwise("no ENI has the address".to_owned()))?;
    let taken = place.fabric.ec2().unassign(&eni.id, &[pod.address], &[]);
    taken.map_err(|error| LabError::Otherwise(format!("unassign: {error}")))?;

    place.node.start_daemon(&[])?;
    place.node.wait_ready()?;

    place.holds(go.pods.iter().map(|pod| pod.address))?;
    let rules = place.node.netns().read("ip rule")?;
    let own = format!("from {} lookup 2", pod.address);
    ensure!(rules.contains(&own), "its way out is gone:\n{rules}");
    Ok(())
}

/// The whole way there and back, nobody is silent for a second: while nobody runs, while the Go version sets itself up beside ours, while ours is
/// removed, and while we take over again.
fn there_and_back() -> Outcome {
    let place = Place::new()?;
    place.node.start_daemon(&[("MAX_ENI", "2"), ("MINIMUM_IP_TARGET", "40")])?;
    place.node.wait_ready()?;
    place.node.wait_for("two ENIs", |report| report.enis.len() == 2)?;
    let add = |number| -> Result<Pod, LabError> {
        let mut pod = Pod::create(&format!("ours-{number}"), &format!("ours{number}"))?;
        pod.add(&place.node)?;
        Ok(pod)
    };
    let mut pods = (0..34).map(add).collect::<Result<Vec<_>, _>>()?;
    let (flows, mirrors) = talk(&place, last_first(&pods))?;
    std::thread::sleep(PACE * 20);
    place.node.stop_daemon()?;
    // Nobody is there who could mend anything.
    std::thread::sleep(PACE * 20);
    place.reach(&pods.iter().collect::<Vec<_>>())?;

    let (mut go, known) = GoNode::start(&place.node, &place.fabric, GoVersion::V23)?;

    let want: BTreeSet<_> = pods.iter().filter_map(|pod| pod.address).collect();
    ensure!(known.iter().copied().collect::<BTreeSet<_>>() == want, "it knows {known:?} of {want:?}");
    place.reach(&pods.iter().collect::<Vec<_>>())?;

    // What MIGRATION.md says to remove once it runs; pods do without.
    for line in ["nft delete table ip aws-vpc-cni", "ip rule flush protocol 86 pref 1536"] {
        place.node.netns().read(line)?;
        std::thread::sleep(PACE * 20);
    }
    place.reach(&pods.iter().collect::<Vec<_>>())?;
    never_silent(&flows.stop())?;
    drop(mirrors);
    // It goes on as it does: deletes pods of ours, adds its own, one at an address that was one of ours.
    let gone = [pods.remove(0), pods.remove(20)];
    for pod in &gone {
        go.del(pod)?;
    }
    let freed = gone[0].address.ok_or_else(|| LabError::Otherwise("no address".to_owned()))?;
    let enis = place.fabric.ec2().enis_of(&place.node.instance().id);
    let on_first = enis.iter().any(|eni| {
        eni.secondary.contains(&freed) && eni.attachment.as_ref().is_some_and(|at| at.device.0 == 0)
    });
    drop(gone);
    go.add("of-go", u8::from(!on_first), freed)?;
    let (flows, _mirrors) = talk(&place, last_first(&pods).chain(go.pods.iter().map(|pod| &pod.pod)))?;
    std::thread::sleep(PACE * 20);

    place.take_over()?;

    std::thread::sleep(PACE * 20);
    never_silent(&flows.stop())?;
    // The links of pods that were deleted just before go when the kernel comes to it.
    let lives = pods.len() + go.pods.len();
    place.node.wait_for("those that were deleted are released", |report| report.pods.len() == lives)?;
    let of_go = go.pods.iter().map(|pod| &pod.pod);
    let all: Vec<&Pod> = pods.iter().chain(of_go).collect();
    place.holds(all.iter().filter_map(|pod| pod.address))?;
    place.reach(&all)?;
    pods[0].del(&place.node)?;
    go.pods[0].pod.del(&place.node)?;
    place.holds(pods.iter().skip(1).filter_map(|pod| pod.address)).map(drop)
}

/// Its ENI has lost it in EC2's picture, and then the daemon starts and is told to stop.
fn left_unknown() -> Outcome {
    let place = Place::new()?;
    let settings = [("MAX_ENI", "2"), ("MINIMUM_IP_TARGET", "40")];
    place.node.start_daemon(&settings)?;
    place.node.wait_ready()?;
    place.node.wait_for("two ENIs", |report| report.enis.len() == 2)?;
    let mut pods = Vec::new();
    for number in 0..34 {
        let mut pod = Pod::create(&format!("ours-{number}"), &format!("ours{number}"))?;
        pod.add(&place.node)?;
        pods.push(pod);
    }
    let enis = place.fabric.ec2().enis_of(&place.node.instance().id);
    let second = enis.iter().find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device.0 == 1));
    let on_second = second.and_then(|eni| {
        let its =
            pods.iter().filter_map(|pod| pod.address).find(|address| eni.secondary.contains(address))?;
        Some((&eni.id, its))
    });
    let Some((eni, address)) = on_second else {
        return Err(LabError::Otherwise("no pod is on the second ENI".to_owned()));
    };
    place.node.stop_daemon()?;
    let taken = place.fabric.ec2().unassign(eni, &[address], &[]);
    taken.map_err(|error| LabError::Otherwise(format!("unassign: {error}")))?;
    place.node.start_daemon(&settings)?;
    place.node.wait_ready()?;
    let lost = |report: &Report| {
        report.pods.iter().any(|pod| pod.address == IpAddr::V4(address) && pod.eni.is_none())
    };
    place.node.wait_for("no description has the address", lost)?;
    // The start takes back what the stop before it has left.
    let rule = format!("from {address} lookup");
    let gone = || place.node.netns().read("ip rule").is_ok_and(|rules| !rules.contains(&rule));
    eventually("the rule of the first stop is gone", gone)?;

    place.node.stop_daemon()?;

    let rules = place.node.netns().read("ip rule")?;
    ensure!(rules.contains(&format!("from {address} lookup 2")), "{address} has no way out:\n{rules}");
    Ok(())
}

fn killed() -> Outcome {
    let place = Place::new()?;
    place.node.start_daemon(&[])?;
    place.node.wait_ready()?;
    let mut pod = Pod::create("ours", "ours")?;
    let address = pod.add(&place.node)?;
    let path = place.node.run_dir().join("ipam.json");
    let written = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&address.to_string()));
    for _ in 0..200 {
        if written() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(written(), "the checkpoint does not have {address}");
    place.node.kill_daemon();

    let (_go, known) = GoNode::start(&place.node, &place.fabric, GoVersion::V23)?;

    ensure!(known == [address], "the Go version knows {known:?}");
    Ok(())
}
