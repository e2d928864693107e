//! The nodes that `bench packet` measures are what they claim, and its figures have their shape.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use lab::LabError;
use lab::netns::Netns;
use lab::packet::{Effort, Layout, Node, TARGET, Wish, arrivals, run};
use serde_json::Value;

use crate::support::{Outcome, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("every_layout_leads_a_pods_packets_out_by_its_eni_and_to_its_neighbour", leads_packets),
    ("rules_are_two_per_pod_or_as_many_as_enis_ask_for_or_none_of_ours", counts_rules),
    ("the_floor_has_no_netfilter_and_the_other_layouts_have_theirs", has_tables),
    ("packet_figures_have_their_shape", shapes_figures),
];

/// Datagrams of a test: more than anything else that may come by a link meanwhile.
const DATAGRAMS: u64 = 100;

fn leads_packets() -> Outcome {
    for layout in Layout::ALL {
        let mut node = Node::create(layout)?;
        node.grow(3)?;
        let (sender, peer) = node.measured()?;

        let outside = came_by(node.far(), || send(&sender.netns, TARGET))?;
        let inside = came_by(&peer.netns, || send(&sender.netns, peer.address))?;

        let right = node.right_link(sender);
        ensure!(outside == [right.as_str()], "{}: {right} is right, not {outside:?}", layout.name());
        ensure!(inside == ["eth0"], "{}: the neighbour hears by {inside:?}", layout.name());
    }
    Ok(())
}

fn counts_rules() -> Outcome {
    for (layout, for_three_pods) in [(Layout::Ours, 0), (Layout::PerPodRules, 6), (Layout::Floor, 0)] {
        let mut node = Node::create(layout)?;
        node.grow(0)?;
        let before = rules(&node)?;
        node.grow(3)?;
        let after = rules(&node)?;

        let name = layout.name();
        ensure!(after == before + for_three_pods, "{name}: from {before} rules to {after}");
        ensure!(layout != Layout::Floor || after == 3, "{name}: {after} rules, and the kernel's own are 3");
    }
    Ok(())
}

fn has_tables() -> Outcome {
    let wanted: [(Layout, &[&str]); 3] = [
        (Layout::Ours, &["aws-vpc-cni"]),
        (Layout::PerPodRules, &["aws-cni", "mangle", "nat"]),
        (Layout::Floor, &[]),
    ];
    for (layout, wanted) in wanted {
        let mut node = Node::create(layout)?;
        node.grow(0)?;
        let listed = node.host().read("nft list tables ip")?;
        let mut tables: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next_back()).collect();
        tables.sort_unstable();
        ensure!(tables == wanted, "{}: {tables:?}", layout.name());
    }
    Ok(())
}

fn shapes_figures() -> Outcome {
    // A state of before belongs to another test.
    let _gone = std::fs::remove_dir_all("/run/lab/node1");
    let bulk = Duration::from_millis(10);
    let effort = Effort { rounds: 1, packets: 256, questions: 5, bulk, connections: 5, adds: 2 };
    let mut told = Vec::new();

    let figures = run(&Wish { pods: vec![3, 0], effort }, &mut |line| told.push(line.to_owned()))?;

    for layout in Layout::ALL.map(Layout::name) {
        for table in ["packet", "packet_local"] {
            for pods in ["0", "3"] {
                let cell = &figures[table][pods][layout];
                ensure!(positive(&cell["ns"]) && positive(&cell["rr_us"]), "{table} {pods} {layout}: {cell}");
            }
        }
        for (table, name) in [("throughput", "gbit_s"), ("connections", "per_s")] {
            for table in [table.to_owned(), format!("{table}_local")] {
                ensure!(positive(&figures[&table]["0"][layout][name]), "{table}: {}", figures[&table]);
            }
        }
    }
    let adds = &figures["add_del"]["0"];
    ensure!(positive(&adds["add"]["p50_us"]) && positive(&adds["del"]["p50_us"]), "add_del: {adds}");
    ensure!(figures["aims"].as_array().is_some_and(Vec::is_empty), "aims: {}", figures["aims"]);
    ensure!(told.iter().filter(|line| line.contains("per_pod_rules")).count() == 2, "told {told:?}");
    Ok(())
}

fn positive(figure: &Value) -> bool {
    figure.as_f64().is_some_and(|figure| figure > 0.0)
}

fn rules(node: &Node) -> Result<usize, LabError> {
    Ok(node.host().read("ip rule")?.lines().count())
}

fn send(from: &Netns, to: Ipv4Addr) -> Outcome {
    let sent = from.run(|| -> std::io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Port 9 is nobody's, and a socket that is not connected does not hear so.
        (0..DATAGRAMS).try_for_each(|_| socket.send_to(&[0; 64], (to, 9)).map(drop))
    })?;
    sent.map_err(LabError::doing("send"))
}

/// The links of a namespace by which a test's datagrams have come.
fn came_by(netns: &Netns, act: impl FnOnce() -> Outcome) -> Result<Vec<String>, LabError> {
    let before = arrivals(netns)?;
    act()?;
    let after = arrivals(netns)?;
    let grown = before.into_iter().zip(after).filter(|((_, before), (_, after))| after - before >= DATAGRAMS);
    Ok(grown.map(|(_, (link, _))| link).collect())
}
