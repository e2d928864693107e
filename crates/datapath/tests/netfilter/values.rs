//! What the tests ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use datapath::netfilter::{EgressSpec, NatSpec, Ruleset, SnatPorts, ruleset};
use ipnetwork::{Ipv4Network, Ipv6Network};

pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
pub(crate) const IN_VPC: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 20);
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);
pub(crate) const PORT: u16 = 5353;

pub(crate) fn spec() -> NatSpec {
    NatSpec {
        pod_if_prefixes: ["eni".to_owned()].into(),
        primary_if: "ens5".to_owned(),
        primary_address: NODE,
        no_snat: networks(["10.0.0.0/16", "10.0.7.0/24", "192.168.0.0/24"]),
        local: None,
        snat: Some(SnatPorts::Prng),
        connmark: 0x80,
        node_port: true,
        steering_mask: 0x3f00,
        sources: BTreeMap::from([(SECOND.into(), 0x200)]),
    }
}

pub(crate) fn egress() -> EgressSpec {
    let local = Ipv6Network::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0xac, 0, 0, 0));
    let node_address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    EgressSpec { local, node_address, ports: SnatPorts::Prng }
}

pub(crate) fn wanted() -> Ruleset {
    ruleset(&spec())
}

pub(crate) fn networks<const N: usize>(texts: [&str; N]) -> BTreeSet<Ipv4Network> {
    texts.iter().map(|text| network(text)).collect()
}

pub(crate) fn sourced<const N: usize>(sources: [(&str, u32); N]) -> NatSpec {
    let sources = sources.into_iter().map(|(source, mark)| (network(source), mark)).collect();
    NatSpec { sources, ..spec() }
}

/// Every second address, so that none touch.
pub(crate) fn crowded(enis: u32, addresses: u32) -> NatSpec {
    let source = |eni: u32, n: u32| Ipv4Addr::from(0x0a01_0000 + eni * 256 + 2 * n);
    let sources =
        (0..enis).flat_map(|eni| (0..addresses).map(move |n| (source(eni, n).into(), (eni % 63 + 1) << 8)));
    NatSpec { sources: sources.collect(), ..spec() }
}

#[expect(clippy::unwrap_used, reason = "the networks stand in the tests")]
fn network(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}
