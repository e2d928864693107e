//! IPv6 of pods that have IPv4 addresses of the VPC: they leave by the node's address. Pure.
//!
//! Their own IPv6 address means something on the node only. The table has no sets and no rule per pod.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};

use super::SnatPorts;
use super::ruleset::{Chain, Hook, Ruleset, Term, to_local};
use crate::model::Family;

/// What the IPv6 table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressSpec {
    /// The addresses of pods, with which nobody but their pod may begin a connection.
    pub local: Ipv6Network,
    /// The node's own address, which pods leave by.
    pub node_address: Ipv6Addr,
    /// How ports are chosen.
    pub ports: SnatPorts,
}

/// The IPv6 table of a node whose pods reach IPv6 by its address. Pure.
#[must_use]
pub fn egress_ruleset(spec: &EgressSpec) -> Ruleset {
    let local = IpNetwork::V6(spec.local);
    let to = IpAddr::V6(spec.node_address);
    let rule = vec![Term::SourceIn(local), Term::Snat { to, ports: spec.ports }];
    let source_nat = Chain { name: "source_nat".to_owned(), hook: Some(Hook::SourceNat), rules: vec![rule] };
    Ruleset::without_sets(Family::V6, vec![to_local(local), source_nat])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_two_rules_whatever_the_number_of_pods() {
        let spec = EgressSpec {
            local: "fd00::/96".parse().unwrap(),
            node_address: "2001:db8::7".parse().unwrap(),
            ports: SnatPorts::Prng,
        };

        let text = egress_ruleset(&spec).to_string();

        assert!(text.starts_with("table ip6 aws-vpc-cni {\n  chain to_local {"), "{text}");
        assert!(text.contains("    ip6 daddr fd00::/96 ct state new drop comment"), "{text}");
        assert!(text.contains("    ip6 saddr fd00::/96 snat to 2001:db8::7 fully-random comment"), "{text}");
        assert_eq!(text.matches("comment").count(), 2, "{text}");
    }
}
