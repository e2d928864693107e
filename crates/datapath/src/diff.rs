//! The difference between what should be and what is, as operations. Pure.

use std::fmt;

use crate::model::{Address, KernelState, Route, Rule};

/// One change. Prints as the `ip` command that would make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set a link's MTU and bring it up.
    SetLink {
        /// Kernel index.
        link: u32,
        /// MTU, in bytes.
        mtu: u32,
    },
    /// Add an address, without the route to its subnet.
    AddAddress(Address),
    /// Remove an address.
    DelAddress(Address),
    /// Add or replace a route.
    AddRoute(Route),
    /// Remove a route.
    DelRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove one copy of a rule.
    DelRule(Rule),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetLink { link, mtu } => write!(f, "ip link set if{link} mtu {mtu} up"),
            Self::AddAddress(a) => write!(f, "ip addr add {} dev if{} noprefixroute", a.address, a.link),
            Self::DelAddress(a) => write!(f, "ip addr del {} dev if{}", a.address, a.link),
            Self::AddRoute(route) => write!(f, "ip route replace {route}"),
            Self::DelRoute(route) => write!(f, "ip route del {route}"),
            Self::AddRule(rule) => write!(f, "ip rule add {rule}"),
            Self::DelRule(rule) => write!(f, "ip rule del {rule}"),
        }
    }
}

/// What to do so that `observed` becomes `desired`: everything is added before anything is removed, so that no
/// packet ever misses a rule that it needs. Addresses come before routes, which need them.
#[must_use]
pub fn diff(desired: &KernelState, observed: &KernelState) -> Vec<Op> {
    let links = desired.links.iter().filter(|(link, want)| observed.links.get(link) != Some(want));
    let set_links = links.map(|(link, (mtu, _))| Op::SetLink { link: *link, mtu: *mtu });
    let add_addresses = desired.addresses.difference(&observed.addresses).copied().map(Op::AddAddress);
    let add_routes = by_scope(desired.routes.difference(&observed.routes).copied()).map(Op::AddRoute);
    let add_rules =
        desired.rules.keys().filter(|rule| !observed.rules.contains_key(rule)).copied().map(Op::AddRule);
    let del_rules = observed.rules.iter().flat_map(|(rule, copies)| {
        let surplus = copies.saturating_sub(desired.rules.get(rule).copied().unwrap_or(0));
        (0..surplus).map(|_| Op::DelRule(*rule))
    });
    let del_routes = observed.routes.difference(&desired.routes).copied().map(Op::DelRoute);
    let del_addresses = observed.addresses.difference(&desired.addresses).copied().map(Op::DelAddress);
    set_links
        .chain(add_addresses)
        .chain(add_routes)
        .chain(add_rules)
        .chain(del_rules)
        .chain(del_routes)
        .chain(del_addresses)
        .collect()
}

/// Routes on the link first: the ones that go by a router need them.
fn by_scope(routes: impl Iterator<Item = Route>) -> impl Iterator<Item = Route> {
    let mut routes: Vec<Route> = routes.collect();
    routes.sort_by_key(|route| route.via.is_some());
    routes.into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;
    use types::TableId;

    use super::*;
    use crate::model::{RulePriority, Selector};

    fn rule() -> impl Strategy<Value = Rule> {
        (0..4_u32, 0..3_u32).prop_map(|(value, table)| Rule {
            priority: RulePriority::Steering,
            selector: Selector::Mark { value, mask: 3 },
            table: TableId(table),
        })
    }

    fn route() -> impl Strategy<Value = Route> {
        (0..4_u32, 1..4_u32).prop_map(|(n, link)| Route {
            table: TableId(2),
            destination: Ipv4Network::from(std::net::Ipv4Addr::from(n)),
            via: None,
            link,
        })
    }

    fn state() -> impl Strategy<Value = KernelState> {
        let rules = prop::collection::btree_map(rule(), 1..3_u32, 0..5);
        let routes = prop::collection::btree_set(route(), 0..5);
        (rules, routes).prop_map(|(rules, routes)| KernelState { rules, routes, ..KernelState::default() })
    }

    /// What a kernel makes of operations.
    fn apply(state: &mut KernelState, op: &Op) {
        match op {
            Op::AddRule(rule) => *state.rules.entry(*rule).or_default() += 1,
            Op::DelRule(rule) => {
                let copies = state.rules.get_mut(rule).unwrap();
                *copies -= 1;
                if *copies == 0 {
                    state.rules.remove(rule);
                }
            }
            Op::AddRoute(route) => drop(state.routes.insert(*route)),
            Op::DelRoute(route) => assert!(state.routes.remove(route)),
            Op::AddAddress(address) => drop(state.addresses.insert(*address)),
            Op::DelAddress(address) => assert!(state.addresses.remove(address)),
            Op::SetLink { link, mtu } => drop(state.links.insert(*link, (*mtu, true))),
        }
    }

    fn single(rules: BTreeMap<Rule, u32>) -> BTreeMap<Rule, u32> {
        rules.into_keys().map(|rule| (rule, 1)).collect()
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_what_is_desired(desired in state(), observed in state()) {
            let desired = KernelState { rules: single(desired.rules), ..desired };
            let mut kernel = observed.clone();

            diff(&desired, &observed).iter().for_each(|op| apply(&mut kernel, op));

            prop_assert_eq!(kernel, desired);
        }

        #[test]
        fn there_is_no_difference_to_itself(desired in state()) {
            let desired = KernelState { rules: single(desired.rules), ..desired };
            prop_assert_eq!(diff(&desired, &desired), Vec::new());
        }

        #[test]
        fn nothing_needed_is_ever_missing_on_the_way(desired in state(), observed in state()) {
            let desired = KernelState { rules: single(desired.rules), ..desired };
            let needed: BTreeSet<Rule> =
                desired.rules.keys().filter(|rule| observed.rules.contains_key(rule)).copied().collect();
            let mut kernel = observed.clone();

            for op in diff(&desired, &observed) {
                apply(&mut kernel, &op);
                prop_assert!(needed.iter().all(|rule| kernel.rules.contains_key(rule)));
            }
        }
    }
}
