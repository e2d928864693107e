//! What the Go version leaves among rules and routes, and what of it ours makes superfluous. Pure.
//!
//! It has for each pod a route in the main table, a rule to that, and on a secondary ENI a rule from the pod to the ENI's table;
//! beside them a rule for its connection mark and one for each secondary ENI's own address. Its rules carry no protocol number.
//!
//! A thing of its is removed only where ours does the same: a packet always has a way.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use types::TableId;

use crate::model::{EniSpec, IfIndex, NodeSpec, Route, RulePriority};

/// A rule as the Go version makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GoRule {
    /// Packets from a pod: its ENI's table.
    FromPod {
        /// The pod's address.
        address: Ipv4Addr,
        /// The table.
        table: TableId,
    },
    /// Packets to a pod: the main table.
    ToPod(Ipv4Addr),
    /// Connections with this mark (and mask): the main table.
    Connmark(u32),
    /// Packets from an ENI's own address: its table.
    FromEni {
        /// The ENI's address.
        address: Ipv4Addr,
        /// The table.
        table: TableId,
    },
}

impl GoRule {
    /// Its place.
    #[must_use]
    pub const fn priority(&self) -> RulePriority {
        match self {
            Self::ToPod(_) => RulePriority::Pods,
            Self::Connmark(_) => RulePriority::Connmark,
            Self::FromPod { .. } => RulePriority::Steering,
            Self::FromEni { .. } => RulePriority::FromEni,
        }
    }

    /// Where it looks.
    #[must_use]
    pub const fn table(&self) -> TableId {
        match self {
            Self::ToPod(_) | Self::Connmark(_) => TableId::MAIN,
            Self::FromPod { table, .. } | Self::FromEni { table, .. } => *table,
        }
    }
}

impl fmt::Display for GoRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} ", self.priority().number())?;
        match self {
            Self::FromPod { address, .. } | Self::FromEni { address, .. } => write!(f, "from {address}")?,
            Self::ToPod(address) => write!(f, "to {address}")?,
            Self::Connmark(mark) => write!(f, "fwmark {mark:#x}/{mark:#x}")?,
        }
        write!(f, " lookup {}", self.table())
    }
}

/// What of the Go version's the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Rules; one that is there twice is here twice.
    pub rules: Vec<GoRule>,
    /// Routes to pods in the main table.
    pub routes: BTreeSet<Route>,
    /// What our own table leads where.
    pub ours: BTreeSet<(IpNetwork, IfIndex)>,
}

/// Addresses that pods of before have, or had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Former {
    /// Of pods that live.
    pub held: BTreeSet<Ipv4Addr>,
    /// Of pods that are gone.
    pub gone: BTreeSet<Ipv4Addr>,
}

/// One thing to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// A rule.
    Rule(GoRule),
    /// A route in the main table.
    Route(Route),
}

/// What can go, in the order in which it must: rules to pods before the routes that they lead to, because without its route a
/// packet to a pod would leave the node.
#[must_use]
pub fn removable(seen: &Leftovers, spec: &NodeSpec, former: &Former) -> Vec<Removal> {
    let eni_of = |address: Ipv4Addr| spec.enis.iter().find(|eni| has(eni, address));
    let known = |address: Ipv4Addr| {
        former.held.contains(&address) || former.gone.contains(&address) || eni_of(address).is_some()
    };
    let leads = |address: Ipv4Addr| seen.ours.iter().any(|(to, _)| *to == IpAddr::V4(address).into());
    let superfluous = |rule: &&GoRule| match **rule {
        // One with an address of no ENI that we know is not steered by us.
        GoRule::FromPod { address, .. } => former.gone.contains(&address) || eni_of(address).is_some(),
        GoRule::ToPod(address) => former.gone.contains(&address) || known(address) && leads(address),
        GoRule::Connmark(mark) => mark == spec.marks.connmark,
        GoRule::FromEni { address, table } => spec
            .enis
            .iter()
            .any(|eni| !eni.is_primary() && eni.primary_address == address && eni.table() == table),
    };
    let mut rules: Vec<GoRule> = seen.rules.iter().filter(superfluous).copied().collect();
    rules.sort_unstable();
    let routes = seen.routes.iter().filter(|route| match route.destination.ip() {
        IpAddr::V4(address) => {
            former.gone.contains(&address)
                || (known(address) && seen.ours.contains(&(route.destination, route.link)))
        }
        IpAddr::V6(_) => false,
    });
    rules.into_iter().map(Removal::Rule).chain(routes.copied().map(Removal::Route)).collect()
}

fn has(eni: &EniSpec, address: Ipv4Addr) -> bool {
    eni.sources.iter().any(|source| source.contains(address))
}

impl Removal {
    /// The `ip` command that would do it.
    #[must_use]
    pub fn command(&self) -> String {
        match self {
            Self::Rule(rule) => format!("ip rule del {rule}"),
            Self::Route(route) => format!("ip route del {} table main", route.destination),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::{DeviceIndex, Mac, NetworkCard};

    use super::*;
    use crate::Marks;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 20);
    const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
    const SECOND: TableId = TableId(2);

    fn eni(device: u8, sources: &[&str]) -> EniSpec {
        EniSpec {
            mac: Mac([2, 0, 0, 0, 0, device]),
            card: NetworkCard(0),
            device: DeviceIndex(device),
            primary_address: [10, 0, 0, 4 + device].into(),
            subnet: "10.0.0.0/20".parse().unwrap(),
            mtu: 9001,
            sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
        }
    }

    fn spec() -> NodeSpec {
        let enis = vec![eni(0, &["10.0.0.10/32"]), eni(1, &["10.0.0.20/32", "10.0.0.32/28"])];
        NodeSpec {
            enis,
            marks: Marks::default(),
            connmark: true,
            ipv6: false,
            external_services: BTreeSet::new(),
        }
    }

    fn route(address: Ipv4Addr, link: u32) -> Route {
        Route {
            table: TableId::MAIN,
            destination: IpAddr::V4(address).into(),
            via: None,
            link: IfIndex(link),
        }
    }

    fn commands(seen: &Leftovers, former: &Former) -> String {
        removable(seen, &spec(), former).iter().map(|removal| removal.command() + "\n").collect()
    }

    #[test]
    fn what_ours_does_too_goes_rules_before_routes() {
        let seen = Leftovers {
            rules: vec![
                GoRule::ToPod(POD),
                GoRule::FromPod { address: POD, table: SECOND },
                GoRule::Connmark(0x80),
                GoRule::FromEni { address: [10, 0, 0, 5].into(), table: SECOND },
            ],
            routes: [route(POD, 7)].into(),
            ours: [(IpAddr::V4(POD).into(), IfIndex(7))].into(),
        };

        assert_eq!(
            commands(&seen, &Former::default()),
            "\
ip rule del pref 1536 from 10.0.0.20 lookup 2
ip rule del pref 512 to 10.0.0.20 lookup main
ip rule del pref 1024 fwmark 0x80/0x80 lookup main
ip rule del pref 32765 from 10.0.0.5 lookup 2
ip route del 10.0.0.20/32 table main
"
        );
    }

    #[test]
    fn what_is_of_nobody_we_know_stays() {
        let seen = Leftovers {
            rules: vec![
                GoRule::ToPod(STRANGER),
                GoRule::FromPod { address: STRANGER, table: SECOND },
                GoRule::Connmark(0x40),
                GoRule::FromEni { address: STRANGER, table: SECOND },
                GoRule::FromEni { address: [10, 0, 0, 5].into(), table: TableId(7) },
            ],
            routes: [route(STRANGER, 7)].into(),
            ours: BTreeSet::new(),
        };

        assert_eq!(commands(&seen, &Former::default()), "");
    }

    #[test]
    fn a_pod_whose_address_is_on_no_known_eni_keeps_its_way_out() {
        let seen = Leftovers {
            rules: vec![GoRule::ToPod(STRANGER), GoRule::FromPod { address: STRANGER, table: SECOND }],
            routes: [route(STRANGER, 7)].into(),
            ours: [(IpAddr::V4(STRANGER).into(), IfIndex(7))].into(),
        };
        let former = Former { held: [STRANGER].into(), ..Former::default() };

        let text = commands(&seen, &former);

        assert_eq!(
            text,
            "ip rule del pref 512 to 10.9.9.9 lookup main\nip route del 10.9.9.9/32 table main\n"
        );
    }

    #[test]
    fn what_pods_that_are_gone_have_left_goes_with_them() {
        let seen = Leftovers {
            rules: vec![GoRule::ToPod(STRANGER), GoRule::FromPod { address: STRANGER, table: TableId(9) }],
            ..Leftovers::default()
        };
        let former = Former { gone: [STRANGER].into(), ..Former::default() };

        assert_eq!(commands(&seen, &former).lines().count(), 2);
    }

    proptest! {
        #[test]
        fn a_route_goes_only_if_ours_leads_to_the_same_link_and_a_rule_if_ours_leads_anywhere(link in 0..4_u32, ours in 0..4_u32, last in 0..64_u8) {
            let address = Ipv4Addr::new(10, 0, 0, last);
            let seen = Leftovers {
                rules: vec![GoRule::ToPod(address)],
                routes: [route(address, link)].into(),
                ours: [(IpAddr::V4(address).into(), IfIndex(ours))].into(),
            };
            let goes = removable(&seen, &spec(), &Former::default());
            let route_goes = goes.iter().any(|removal| matches!(removal, Removal::Route(_)));
            prop_assert!(!route_goes || (link == ours && goes.len() == 2));
            let not_led = removable(&Leftovers { ours: BTreeSet::new(), ..seen }, &spec(), &Former::default());
            prop_assert_eq!(not_led, vec![]);
        }
    }
}
