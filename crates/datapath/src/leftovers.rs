//! What the Go version leaves among rules and routes, and what of it ours makes superfluous. Pure.
//!
//! It has for each pod a route in the main table, a rule to that, and on a secondary ENI a rule from the pod to the ENI's table;
//! beside them a rule for its connection mark, one for each secondary ENI's own address and one for each range of external services.
//! Its rules carry no protocol number.
//!
//! A thing of its is removed only where ours does the same: a packet always has a way.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use types::{Ipv6Prefix, TableId};

use crate::model::{EniSpec, Family, IfIndex, NodeSpec, Route, RulePriority};

/// A rule as the Go version makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GoRule {
    /// Packets from a pod: its ENI's table.
    FromPod {
        /// The pod's address.
        address: IpAddr,
        /// The table.
        table: TableId,
    },
    /// Packets to a pod: the main table.
    ToPod(IpAddr),
    /// Connections with this mark (and mask): the main table.
    Connmark {
        /// Whose packets it is for.
        family: Family,
        /// The mark.
        mark: u32,
    },
    /// Packets from an ENI's own address: its table.
    FromEni {
        /// The ENI's address.
        address: Ipv4Addr,
        /// The table.
        table: TableId,
    },
    /// Packets to a range of `AWS_EXTERNAL_SERVICE_CIDRS`: the main table.
    ExternalService(Ipv4Network),
    /// All packets: the host's own addresses. Where pods with security groups of their own are kept apart strictly, it stands for
    /// the kernel's first rule, which is removed.
    Local(Family),
}

impl GoRule {
    /// Its place.
    #[must_use]
    pub const fn priority(&self) -> u32 {
        match self {
            Self::ToPod(_) => RulePriority::Pods.number(),
            Self::Connmark { .. } => RulePriority::Connmark.number(),
            Self::FromPod { .. } => RulePriority::Steering.number(),
            Self::FromEni { .. } => RulePriority::FromEni.number(),
            Self::ExternalService(_) => RulePriority::ExternalServices.number(),
            Self::Local(_) => RulePriority::Local.number(),
        }
    }

    /// Where it looks.
    #[must_use]
    pub const fn table(&self) -> TableId {
        match self {
            Self::ToPod(_) | Self::Connmark { .. } | Self::ExternalService(_) => TableId::MAIN,
            Self::FromPod { table, .. } | Self::FromEni { table, .. } => *table,
            Self::Local(_) => TableId::LOCAL,
        }
    }

    /// Whose packets it is for.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::ToPod(address) | Self::FromPod { address, .. } => Family::of(*address),
            Self::Connmark { family, .. } | Self::Local(family) => *family,
            Self::FromEni { .. } | Self::ExternalService(_) => Family::V4,
        }
    }
}

impl fmt::Display for GoRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} ", self.priority())?;
        match self {
            Self::FromPod { address, .. } => write!(f, "from {address}")?,
            Self::FromEni { address, .. } => write!(f, "from {address}")?,
            Self::ToPod(address) => write!(f, "to {address}")?,
            Self::Connmark { mark, .. } => write!(f, "fwmark {mark:#x}/{mark:#x}")?,
            Self::ExternalService(range) => write!(f, "to {range}")?,
            Self::Local(_) => f.write_str("from all")?,
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
    /// Families whose first rule is the kernel's own, to the host's addresses.
    pub local_first: BTreeSet<Family>,
    /// There are rules for pods with security groups of their own, which have to come before the host's addresses.
    pub branch_pods: bool,
}

/// Addresses that pods of before have, or had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Former {
    /// Of pods that live.
    pub held: BTreeSet<IpAddr>,
    /// Of pods that are gone.
    pub gone: BTreeSet<IpAddr>,
}

/// One thing to remove, or to put back because what stood for it is about to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The kernel's own first rule, put back.
    LocalFirst(Family),
    /// A rule.
    Rule(GoRule),
    /// A route in the main table.
    Route(Route),
}

/// What can go, in the order in which it must: rules to pods before the routes that they lead to, because without its route a
/// packet to a pod would leave the node.
#[must_use]
pub fn removable(seen: &Leftovers, spec: &NodeSpec, former: &Former) -> Vec<Removal> {
    let on_an_eni = |address: IpAddr| match address {
        IpAddr::V4(address) => spec.enis.iter().any(|eni| has(eni, address)),
        IpAddr::V6(address) => spec.enis.iter().any(|eni| eni.ipv6.contains(&Ipv6Prefix::of(address))),
    };
    let known = |address: IpAddr| {
        former.held.contains(&address) || former.gone.contains(&address) || on_an_eni(address)
    };
    let leads = |address: IpAddr| seen.ours.iter().any(|(to, _)| *to == address.into());
    let superfluous = |rule: &&GoRule| match **rule {
        // One with an address of no ENI that we know is not steered by us.
        GoRule::FromPod { address, .. } => former.gone.contains(&address) || on_an_eni(address),
        GoRule::ToPod(address) => former.gone.contains(&address) || known(address) && leads(address),
        // Nothing is marked for the sake of IPv6, by neither.
        GoRule::Connmark { mark, .. } => mark == spec.marks.connmark,
        GoRule::FromEni { address, table } => spec
            .enis
            .iter()
            .any(|eni| !eni.is_primary() && eni.primary_address == address && eni.table() == table),
        // It makes them anew at each start: one that is not in the settings is of settings of before.
        GoRule::ExternalService(_) => true,
        // Ours stands beside it where it is needed.
        GoRule::Local(_) => !seen.branch_pods && !spec.strict_branches,
    };
    let mut rules: Vec<GoRule> = seen.rules.iter().filter(superfluous).copied().collect();
    rules.sort_unstable();
    let local_first = rules.iter().filter_map(|rule| match rule {
        GoRule::Local(family) => Some(*family).filter(|family| !seen.local_first.contains(family)),
        GoRule::FromPod { .. }
        | GoRule::ToPod(_)
        | GoRule::Connmark { .. }
        | GoRule::FromEni { .. }
        | GoRule::ExternalService(_) => None,
    });
    let local_first: BTreeSet<Family> = local_first.collect();
    let routes = seen.routes.iter().filter(|route| {
        let address = route.destination.ip();
        former.gone.contains(&address)
            || (known(address) && seen.ours.contains(&(route.destination, route.link)))
    });
    let first = local_first.into_iter().map(Removal::LocalFirst);
    first.chain(rules.into_iter().map(Removal::Rule)).chain(routes.copied().map(Removal::Route)).collect()
}

fn has(eni: &EniSpec, address: Ipv4Addr) -> bool {
    eni.sources.iter().any(|source| source.contains(address))
}

impl Removal {
    /// The `ip` command that would do it.
    #[must_use]
    pub fn command(&self) -> String {
        match self {
            Self::LocalFirst(family) => format!("{} rule add pref 0 from all lookup local", ip(*family)),
            Self::Rule(rule) => format!("{} rule del {rule}", ip(rule.family())),
            Self::Route(route) => {
                format!("{} route del {} table main", ip(route.family()), route.destination)
            }
        }
    }
}

/// The program and its family, as people type it.
const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::{DeviceIndex, Mac, NetworkCard};

    use super::*;
    use crate::Marks;

    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 20));
    const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));
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
            ipv6: BTreeSet::new(),
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
            trunk: None,
            strict_branches: false,
        }
    }

    fn route(address: IpAddr, link: u32) -> Route {
        Route { table: TableId::MAIN, destination: address.into(), via: None, link: IfIndex(link) }
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
                GoRule::Connmark { family: Family::V4, mark: 0x80 },
                GoRule::FromEni { address: [10, 0, 0, 5].into(), table: SECOND },
            ],
            routes: [route(POD, 7)].into(),
            ours: [(POD.into(), IfIndex(7))].into(),
            ..Leftovers::default()
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
                GoRule::Connmark { family: Family::V4, mark: 0x40 },
                GoRule::FromEni { address: [10, 9, 9, 9].into(), table: SECOND },
                GoRule::FromEni { address: [10, 0, 0, 5].into(), table: TableId(7) },
            ],
            routes: [route(STRANGER, 7)].into(),
            ..Leftovers::default()
        };

        assert_eq!(commands(&seen, &Former::default()), "");
    }

    #[test]
    fn a_pod_whose_address_is_on_no_known_eni_keeps_its_way_out() {
        let seen = Leftovers {
            rules: vec![GoRule::ToPod(STRANGER), GoRule::FromPod { address: STRANGER, table: SECOND }],
            routes: [route(STRANGER, 7)].into(),
            ours: [(STRANGER.into(), IfIndex(7))].into(),
            ..Leftovers::default()
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

    #[test]
    fn rules_and_routes_of_ipv6_go_where_the_pod_is_known() {
        let [pod, stranger] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap());
        let seen = Leftovers {
            rules: vec![
                GoRule::ToPod(pod),
                GoRule::ToPod(stranger),
                GoRule::Connmark { family: Family::V6, mark: 0x80 },
            ],
            routes: [route(pod, 7), route(stranger, 8)].into(),
            ours: [(pod.into(), IfIndex(7)), (stranger.into(), IfIndex(8))].into(),
            ..Leftovers::default()
        };

        assert_eq!(
            commands(&seen, &Former { held: [pod].into(), ..Former::default() }),
            "\
ip -6 rule del pref 512 to 2001:db8::1 lookup main
ip -6 rule del pref 1024 fwmark 0x80/0x80 lookup main
ip -6 route del 2001:db8::1/128 table main
"
        );
    }

    #[test]
    fn rules_of_external_services_go_whatever_the_settings_are() {
        let rules = vec![GoRule::ExternalService("203.0.113.0/24".parse().unwrap())];
        let seen = Leftovers { rules, ..Leftovers::default() };

        assert_eq!(
            commands(&seen, &Former::default()),
            "ip rule del pref 1535 to 203.0.113.0/24 lookup main\n"
        );
    }

    #[test]
    fn the_kernels_first_rule_is_back_before_what_stood_for_it_goes() {
        let mut seen = Leftovers { rules: vec![GoRule::Local(Family::V4)], ..Leftovers::default() };
        assert_eq!(
            commands(&seen, &Former::default()),
            "ip rule add pref 0 from all lookup local\nip rule del pref 20 from all lookup 255\n"
        );
        seen.local_first.insert(Family::V4);
        assert_eq!(commands(&seen, &Former::default()), "ip rule del pref 20 from all lookup 255\n");
        seen.branch_pods = true;
        assert_eq!(commands(&seen, &Former::default()), "", "pods of security groups need it");
    }

    proptest! {
        #[test]
        fn a_route_goes_only_if_ours_leads_to_the_same_link_and_a_rule_if_ours_leads_anywhere(link in 0..4_u32, ours in 0..4_u32, last in 0..64_u8) {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
            let seen = Leftovers {
                rules: vec![GoRule::ToPod(address)],
                routes: [route(address, link)].into(),
                ours: [(address.into(), IfIndex(ours))].into(),
                ..Leftovers::default()
            };
            let goes = removable(&seen, &spec(), &Former::default());
            let route_goes = goes.iter().any(|removal| matches!(removal, Removal::Route(_)));
            prop_assert!(!route_goes || (link == ours && goes.len() == 2));
            let not_led = removable(&Leftovers { ours: BTreeSet::new(), ..seen }, &spec(), &Former::default());
            prop_assert_eq!(not_led, vec![]);
        }
    }
}
