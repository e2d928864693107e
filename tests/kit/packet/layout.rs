//! What the host's kernel holds so that pods' packets go their way: ours, one pair of rules per pod, next to nothing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use datapath::netfilter::{NatSpec, Netfilter, SnatPorts, ruleset};
use datapath::{EniSpec, Host, Marks, NodeSpec, desired};
use ipnetwork::Ipv4Network;
use types::{DeviceIndex, NetworkCard, TableId};

use super::node::{Eni, MTU, Node, Pod, ROUTER, TARGET};
use super::refused;
use crate::LabError;
use crate::go_node::connmark_table;

/// One way to lead packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// What the daemon installs, by the daemon's own code.
    Ours,
    /// What the Go version installs: for each pod a rule to it and, on a secondary ENI, a rule from it.
    PerPodRules,
    /// Routes alone: no policy routing, no netfilter.
    Floor,
}

impl Layout {
    /// In the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Ours, Self::PerPodRules, Self::Floor];

    /// As figures and tables call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::PerPodRules => "per_pod_rules",
            Self::Floor => "floor",
        }
    }
}

/// What is there before any pod.
pub(super) fn prepare(node: &Node) -> Result<(), LabError> {
    match node.layout() {
        Layout::Ours | Layout::Floor => Ok(()),
        Layout::PerPodRules => {
            node.host().ip("rule add pref 1024 fwmark 0x80/0x80 lookup main\n")?;
            node.host().nft(&per_pod_netfilter())
        }
    }
}

/// What pods that were added need, and the ENIs that came with them.
pub(super) fn settle(node: &Node, added: &[Pod]) -> Result<(), LabError> {
    match node.layout() {
        Layout::Ours => ours(node),
        Layout::PerPodRules => {
            node.host().ip(&secondary_enis(node, added, true))?;
            node.host().ip(&added.iter().map(|pod| in_main(pod) + &pod_rules(pod)).collect::<String>())
        }
        Layout::Floor => {
            node.host().ip(&secondary_enis(node, added, false))?;
            node.host().ip(&added.iter().map(in_main).collect::<String>())?;
            let (sender, _) = node.measured()?;
            node.host()
                .ip(&format!("route replace {TARGET}/32 via {ROUTER} dev {} onlink\n", sender.eni.link()))
        }
    }
}

/// The daemon's way: its desired state made so, then its nftables table.
fn ours(node: &Node) -> Result<(), LabError> {
    let spec = node_spec(node)?;
    let made = node.host().run(|| -> Result<(), LabError> {
        let converged = Host::open().and_then(|mut host| host.converge(&spec, None));
        let links = converged.map_err(refused)?.links;
        let nat = NatSpec {
            pod_if_prefixes: ["eni".to_owned()].into(),
            primary_if: Eni(0).link(),
            primary_address: Eni(0).own(),
            no_snat: BTreeSet::from([network(Ipv4Addr::new(10, 0, 0, 0), 16)?]),
            local: None,
            snat: Some(SnatPorts::Prng),
            connmark: spec.marks.connmark,
            node_port: true,
            steering_mask: spec.marks.steering_mask,
            sources: desired::sources(&spec, &links).map_err(refused)?,
        };
        Netfilter::default().put(ruleset(&nat)).map(drop).map_err(refused)
    });
    made?
}

fn node_spec(node: &Node) -> Result<NodeSpec, LabError> {
    let spec = |eni: Eni| -> Result<EniSpec, LabError> {
        Ok(EniSpec {
            mac: eni.mac(),
            card: NetworkCard(0),
            device: DeviceIndex(eni.0),
            primary_address: eni.own(),
            subnet: network(Ipv4Addr::new(10, 0, 0, 0), 20)?,
            mtu: MTU,
            sources: eni.pods().map(Ipv4Network::from).collect(),
            ipv6: BTreeSet::new(),
        })
    };
    let enis = node.enis().map(spec).collect::<Result<_, _>>()?;
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

fn network(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Network, LabError> {
    Ipv4Network::new(address, prefix).map_err(refused)
}

/// The secondary ENIs of pods that were added, once more if they were there before; with policy routing, each with a table.
fn secondary_enis(node: &Node, added: &[Pod], policy: bool) -> String {
    let had = |eni: Eni| node.pods().iter().take(node.pods().len() - added.len()).any(|pod| pod.eni == eni);
    let new = node.enis().filter(|eni| *eni != Eni(0) && !had(*eni));
    let commands = new.map(|eni| {
        let (link, own, table) = (eni.link(), eni.own(), table(eni).0);
        let link_up = format!("link set {link} up mtu {MTU}\naddr add {own}/20 dev {link} noprefixroute\n");
        let tables = format!(
            "route replace {ROUTER}/32 dev {link} scope link table {table}\n\
             route replace default via {ROUTER} dev {link} table {table}\n\
             rule add pref 32765 from {own} lookup {table}\n"
        );
        if policy { link_up + &tables } else { link_up }
    });
    commands.collect()
}

fn table(eni: Eni) -> TableId {
    TableId::of_eni(NetworkCard(0), DeviceIndex(eni.0))
}

/// Moves the pod's route from our table, in which the wiring has put it, to the main one.
fn in_main(pod: &Pod) -> String {
    let (address, link, ours) = (pod.address, pod.host_if.as_str(), TableId::PODS.0);
    format!("route del {address}/32 table {ours}\nroute replace {address}/32 dev {link} scope link\n")
}

fn pod_rules(pod: &Pod) -> String {
    let address = pod.address;
    let to = format!("rule add pref 512 to {address}/32 lookup main\n");
    match pod.eni {
        Eni(0) => to,
        eni => to + &format!("rule add pref 1536 from {address}/32 lookup {}\n", table(eni).0),
    }
}

/// The chains of the Go version for one VPC range, with its nftables backend for connection marks. What it gives to
/// `iptables` stands here as the native expressions, which cost no more than what `iptables-nft` makes of it.
fn per_pod_netfilter() -> String {
    let (primary, own) = (Eni(0).link(), Eni(0).own());
    format!(
        r#"table ip mangle {{
          chain PREROUTING {{
            type filter hook prerouting priority -150; policy accept;
            iifname "{primary}" fib daddr . iif type local counter ct mark set ct mark or 0x80
            iifname "eni*" counter meta mark set ct mark and 0x80
            iifname "vlan*" counter meta mark set ct mark and 0x80
          }}
        }}
        table ip nat {{
          chain AWS-SNAT-CHAIN-0 {{
            ip daddr 10.0.0.0/16 counter return
            oifname != "vlan*" fib daddr type != local counter snat to {own} fully-random
          }}
          chain POSTROUTING {{
            type nat hook postrouting priority 100; policy accept;
            counter jump AWS-SNAT-CHAIN-0
          }}
        }}
        {connmark}"#,
        connmark = connmark_table(&["10.0.0.0/16"])
    )
}
