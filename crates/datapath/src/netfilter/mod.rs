//! Source NAT, steering marks and connection marks: one nftables table of ours, replaced in one transaction.
//!
//! A [`NatSpec`] becomes a [`Ruleset`], whose text the `nft` program loads atomically (`delete table` and its new
//! content are one transaction, so no packet ever meets half of it). Only sets and maps grow, never lists of rules.
//!
//! ```text
//!   prerouting -155  node port: a new connection to an address of the primary ENI   ct mark |= connmark
//!   prerouting  -95  packets from pods (after kube-proxy's DNAT at -100)
//!                      mark := the ENI of the source address, one map lookup
//!                      new and leaving the VPC:                                     ct mark |= connmark
//!                      ct mark has connmark:                                        mark |= connmark
//!   postrouting 100  leaving the VPC:                                               source := the node's address
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use ipnetwork::Ipv4Network;

/// Name of our table, family `ip`.
pub const TABLE: &str = "aws-vpc-cni";

/// How the source port of a translated connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnatPorts {
    /// At random (`--random-fully`).
    Prng,
    /// By a hash (`--random`).
    HashRandom,
    /// The pod's own, where it is free.
    Plain,
}

/// What the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatSpec {
    /// First characters of host veths.
    pub pod_if_prefix: String,
    /// The primary ENI's link.
    pub primary_if: String,
    /// The node's own address.
    pub primary_address: Ipv4Addr,
    /// Destinations that keep the pod's address: the VPC's CIDRs and exclusions.
    pub no_snat: BTreeSet<Ipv4Network>,
    /// How ports are chosen; `None` when source NAT is done elsewhere.
    pub snat: Option<SnatPorts>,
    /// The connection mark, value and mask at once.
    pub connmark: u32,
    /// Whether connections to node ports are bound to the primary ENI.
    pub node_port: bool,
    /// Our bits of the packet mark that say by which ENI a packet leaves.
    pub steering_mask: u32,
    /// Which mark packets from an address (or prefix) get.
    pub sources: BTreeMap<Ipv4Network, u32>,
}

/// The table as `nft` reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset(String);

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// `nft` could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// `nft` or the kernel refused.
    #[error("nft refuses the table: {0}")]
    Refused(String),
}

/// The table for a node. Pure.
#[must_use]
pub fn ruleset(spec: &NatSpec) -> Ruleset {
    let mut text = format!("add table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
    text.push_str(&no_snat(spec));
    text.push_str(&eni_of(spec));
    if spec.node_port {
        text.push_str(&node_port(spec));
    }
    text.push_str(&from_pods(spec));
    if let Some(ports) = spec.snat {
        text.push_str(&postrouting(spec, ports));
    }
    text.push_str("}\n");
    Ruleset(text)
}

fn no_snat(spec: &NatSpec) -> String {
    let elements = listed(spec.no_snat.iter().map(ToString::to_string).collect());
    format!("  set no_snat {{\n    type ipv4_addr\n    flags interval\n    auto-merge\n{elements}  }}\n")
}

/// The steering map, and for each ENI the chain that sets its mark and touches no other bit.
fn eni_of(spec: &NatSpec) -> String {
    let others = !spec.steering_mask;
    let marks: BTreeSet<u32> = spec.sources.values().copied().collect();
    let mut text = String::new();
    for mark in marks {
        text.push_str(&format!(
            "  chain {} {{\n    meta mark set meta mark and {others:#010x} or {mark:#010x}\n  }}\n",
            chain_of(mark)
        ));
    }
    let element = |(source, mark): (&Ipv4Network, &u32)| match source.prefix() {
        32 => format!("{} : jump {}", source.ip(), chain_of(*mark)),
        _ => format!("{source} : jump {}", chain_of(*mark)),
    };
    let elements = listed(spec.sources.iter().map(element).collect());
    text.push_str(&format!(
        "  map eni_of {{\n    type ipv4_addr : verdict\n    flags interval\n{elements}  }}\n"
    ));
    text
}

fn chain_of(mark: u32) -> String {
    format!("mark_{mark:x}")
}

fn listed(elements: Vec<String>) -> String {
    match elements.is_empty() {
        true => String::new(),
        false => format!("    elements = {{ {} }}\n", elements.join(", ")),
    }
}

/// A connection that arrives by the primary ENI for one of that ENI's addresses may end at a pod of another ENI:
/// its replies must leave by the primary ENI too. Seen before DNAT changes the destination.
fn node_port(spec: &NatSpec) -> String {
    let NatSpec { primary_if, connmark, .. } = spec;
    format!(
        "  chain node_port {{\n    type filter hook prerouting priority -155; policy accept;\n    \
         iifname \"{primary_if}\" ct state new fib daddr . iif type local ct mark set ct mark or {connmark:#x}\n  }}\n"
    )
}

fn from_pods(spec: &NatSpec) -> String {
    let NatSpec { pod_if_prefix, connmark, .. } = spec;
    let leaving = match spec.snat {
        None => String::new(),
        Some(_) => format!(
            "    ct state new ip daddr != @no_snat fib daddr type != local ct mark set ct mark or {connmark:#x}\n"
        ),
    };
    let restore = match (spec.snat, spec.node_port) {
        (None, false) => String::new(),
        (Some(_), _) | (None, true) => {
            format!(
                "    ct mark and {connmark:#x} == {connmark:#x} meta mark set meta mark or {connmark:#x}\n"
            )
        }
    };
    format!(
        "  chain from_pods {{\n    type filter hook prerouting priority -95; policy accept;\n    \
         iifname != \"{pod_if_prefix}*\" return\n    ip saddr vmap @eni_of\n{leaving}{restore}  }}\n"
    )
}

fn postrouting(spec: &NatSpec, ports: SnatPorts) -> String {
    let random = match ports {
        SnatPorts::Prng => " fully-random",
        SnatPorts::HashRandom => " random",
        SnatPorts::Plain => "",
    };
    format!(
        "  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         oifname != \"vlan*\" ip daddr != @no_snat fib daddr type != local snat to {}{random}\n  }}\n",
        spec.primary_address
    )
}

/// The table in the kernel.
#[derive(Debug, Default)]
pub struct Netfilter {
    loaded: Option<Ruleset>,
}

impl Netfilter {
    /// Replaces the table's content in one transaction; nothing happens when it is what was loaded last.
    /// Returns whether it was loaded.
    ///
    /// # Errors
    /// When `nft` cannot be run or refuses; the table is then as it was.
    pub fn put(&mut self, ruleset: Ruleset) -> Result<bool, NetfilterError> {
        if self.loaded.as_ref() == Some(&ruleset) {
            return Ok(false);
        }
        load(&ruleset.0)?;
        self.loaded = Some(ruleset);
        Ok(true)
    }
}

fn load(text: &str) -> Result<(), NetfilterError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetfilterError::Run)?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(NetfilterError::Run)?;
    }
    let output = nft.wait_with_output().map_err(NetfilterError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetfilterError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NatSpec {
        NatSpec {
            pod_if_prefix: "eni".to_owned(),
            primary_if: "ens5".to_owned(),
            primary_address: Ipv4Addr::new(10, 0, 0, 10),
            no_snat: BTreeSet::from(["10.0.0.0/16".parse().unwrap()]),
            snat: Some(SnatPorts::Prng),
            connmark: 0x80,
            node_port: true,
            steering_mask: 0x3f00,
            sources: BTreeMap::from([
                ("10.0.0.20".parse().unwrap(), 0x100),
                ("10.0.1.0/28".parse().unwrap(), 0x200),
            ]),
        }
    }

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let text = ruleset(&spec()).to_string();

        assert!(
            text.starts_with(
                "add table ip aws-vpc-cni\ndelete table ip aws-vpc-cni\ntable ip aws-vpc-cni {\n"
            )
        );
        assert_eq!(text.matches("table ip").count(), 3);
    }

    #[test]
    fn steering_is_one_lookup_and_changes_only_its_own_bits() {
        let text = ruleset(&spec()).to_string();

        assert_eq!(text.matches("vmap @eni_of").count(), 1);
        assert!(text.contains("10.0.0.20 : jump mark_100, 10.0.1.0/28 : jump mark_200"), "{text}");
        assert!(text.contains("meta mark set meta mark and 0xffffc0ff or 0x00000100"), "{text}");
    }

    #[test]
    fn external_snat_leaves_sources_alone() {
        let text = ruleset(&NatSpec { snat: None, node_port: false, ..spec() }).to_string();

        assert!(!text.contains("snat to") && !text.contains("ct mark"), "{text}");
    }
}
