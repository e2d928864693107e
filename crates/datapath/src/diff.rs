//! The difference between what should be and what is, as operations. Pure.

use std::collections::BTreeMap;

use crate::PROTOCOL;
use crate::model::{Address, IfIndex, KernelState, LinkState, Route, Rule, RulePriority, Selector};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set a link's MTU and bring it up.
    SetLink {
        /// Which link.
        link: IfIndex,
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

impl Op {
    /// Whether it is about a rule by a mark.
    pub(crate) const fn is_by_mark(&self) -> bool {
        matches!(self, Self::AddRule(rule) | Self::DelRule(rule) if matches!(rule.selector, Selector::Mark { .. }))
    }

    /// The `ip` command that would make this change; a link that `names` does not know is `if` and its number.
    #[must_use]
    pub fn command(&self, names: &BTreeMap<IfIndex, String>) -> String {
        let dev = |link: &IfIndex| names.get(link).cloned().unwrap_or_else(|| format!("if{}", link.0));
        let route = |route: &Route| route_words(route, &dev(&route.link));
        match self {
            Self::SetLink { link, mtu } => format!("ip link set {} mtu {mtu} up", dev(link)),
            Self::AddAddress(a) => format!("ip addr add {} dev {} noprefixroute", a.address, dev(&a.link)),
            Self::DelAddress(a) => format!("ip addr del {} dev {}", a.address, dev(&a.link)),
            Self::AddRoute(it) => format!("ip route replace {} proto {PROTOCOL}", route(it)),
            Self::DelRoute(it) => format!("ip route del {}", route(it)),
            Self::AddRule(rule) => format!("ip{} rule add {rule} protocol {PROTOCOL}", rule.family.option()),
            Self::DelRule(rule) => format!("ip{} rule del {rule} protocol {PROTOCOL}", rule.family.option()),
        }
    }
}

/// A route in the words of `ip`, its link having this name.
pub(crate) fn route_words(route: &Route, link: &str) -> String {
    match route.via {
        Some(via) => format!("{} via {via} dev {link} table {}", route.destination, route.table),
        None => format!("{} dev {link} scope link table {}", route.destination, route.table),
    }
}

/// What to do so that `observed` becomes `desired`: everything is added before anything is removed, so that no
/// packet ever misses a rule that it needs. Addresses come before routes, which need them.
#[must_use]
pub fn diff(desired: &KernelState, observed: &KernelState) -> Vec<Op> {
    let links = desired.links.iter().filter(|(link, want)| observed.links.get(link) != Some(want));
    let set_links = links.map(|(link, LinkState { mtu, .. })| Op::SetLink { link: *link, mtu: *mtu });
    let add_addresses = desired.addresses.difference(&observed.addresses).copied().map(Op::AddAddress);
    let add_routes = by_scope(desired.routes.difference(&observed.routes).copied()).map(Op::AddRoute);
    let add_rules =
        desired.rules.keys().filter(|rule| !observed.rules.contains_key(rule)).copied().map(Op::AddRule);
    let del_rules = observed.rules.iter().flat_map(|(rule, copies)| {
        let kept = u32::from(!may_go(rule, observed));
        let wanted = desired.rules.get(rule).copied().unwrap_or(0);
        let surplus = copies.saturating_sub(wanted.max(kept));
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

/// A difference in two halves, between which packets get their new marks: first what adds, then what takes away, so that a mark always
/// has its rule. A rule that would catch packets with a mark that is being given up is added in the second half, before anything is removed.
pub(crate) fn halves(ops: Vec<Op>) -> (Vec<Op>, Vec<Op>) {
    let going = ops.iter().filter_map(|op| if let Op::DelRule(rule) = op { Some(*rule) } else { None });
    let going: Vec<Rule> = going.collect();
    ops.into_iter().partition(|op| match op {
        Op::SetLink { .. } | Op::AddAddress(_) | Op::AddRoute(_) => true,
        Op::AddRule(rule) => !going.iter().any(|old| catches(rule, old)),
        Op::DelAddress(_) | Op::DelRoute(_) | Op::DelRule(_) => false,
    })
}

/// Whether packets with the mark of an old rule find another one first.
fn catches(rule: &Rule, old: &Rule) -> bool {
    let (Selector::Mark { value, mask }, Selector::Mark { value: set, .. }) = (rule.selector, old.selector)
    else {
        return false;
    };
    rule.family == old.family && rule.priority.number() < old.priority.number() && set & mask == value
}

/// Without a rule for the main table, or one for its own addresses, the node has no network at all: of the first one stays whatever is desired,
/// and of the two places of the second neither is given up before the other is seen to be held.
fn may_go(rule: &Rule, observed: &KernelState) -> bool {
    let stands = |priority| observed.rules.contains_key(&Rule { priority, ..*rule });
    match (rule.priority, rule.selector) {
        (RulePriority::Main, _) => false,
        (RulePriority::First, Selector::All) => stands(RulePriority::Local),
        (RulePriority::Local, _) => stands(RulePriority::First),
        _ => true,
    }
}

/// Routes on the link first: the ones that go by a router need them.
fn by_scope(routes: impl Iterator<Item = Route>) -> impl Iterator<Item = Route> {
    let mut routes: Vec<Route> = routes.collect();
    routes.sort_by_key(|route| route.via.is_some());
    routes.into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnetwork::{IpNetwork, Ipv4Network};
    use proptest::prelude::*;
    use types::TableId;

    use super::*;
    use crate::model::Family;

    fn rule() -> impl Strategy<Value = Rule> {
        (0..4_u32, 0..3_u32, any::<bool>()).prop_map(|(value, table, v6)| Rule {
            family: if v6 { Family::V6 } else { Family::V4 },
            priority: RulePriority::Steering,
            selector: Selector::Mark { value, mask: 3 },
            table: TableId(table),
        })
    }

    #[test]
    fn the_difference_against_nothing_leaves_the_main_table_its_rule() {
        let rule = |priority, table| Rule { family: Family::V4, priority, selector: Selector::All, table };
        let (pods, main) = (rule(RulePriority::Pods, TableId::PODS), rule(RulePriority::Main, TableId::MAIN));
        let observed = KernelState { rules: [(pods, 1), (main, 2)].into(), ..KernelState::default() };

        let ops = diff(&KernelState::default(), &observed);

        assert_eq!(ops, [Op::DelRule(pods), Op::DelRule(main)]);
    }

    #[test]
    fn the_nodes_own_addresses_are_looked_up_at_one_of_two_places_at_every_moment() {
        let rule =
            |priority| Rule { family: Family::V4, priority, selector: Selector::All, table: TableId::LOCAL };
        let (first, local) = (rule(RulePriority::First), rule(RulePriority::Local));
        let of = |rules: &[Rule]| KernelState {
            rules: rules.iter().map(|rule| (*rule, 1)).collect(),
            ..KernelState::default()
        };
        for (from, to) in [(first, local), (local, first)] {
            assert_eq!(diff(&of(&[to]), &of(&[from])), [Op::AddRule(to)]);
            assert_eq!(diff(&of(&[to]), &of(&[from, to])), [Op::DelRule(from)]);
        }
    }

    #[test]
    fn a_rule_that_would_catch_packets_with_an_old_mark_waits_for_the_second_half() {
        let rule = |priority, value, mask, table| Rule {
            family: Family::V4,
            priority,
            selector: Selector::Mark { value, mask },
            table: TableId(table),
        };
        let (connmark, steering) = (RulePriority::Connmark, RulePriority::Steering);
        let of = |rules: [Rule; 2]| KernelState {
            rules: rules.into_iter().map(|rule| (rule, 1)).collect(),
            ..KernelState::default()
        };
        let old = [rule(connmark, 0x80, 0x80, 254), rule(steering, 0x100, 0x3f00, 2)];
        let new = [rule(connmark, 0x100, 0x100, 254), rule(steering, 1, 0x3f, 2)];

        let (before, after) = halves(diff(&of(new), &of(old)));

        assert_eq!(before, [Op::AddRule(new[1])]);
        assert_eq!(after, [Op::AddRule(new[0]), Op::DelRule(old[0]), Op::DelRule(old[1])]);
    }

    fn route() -> impl Strategy<Value = Route> {
        (0..4_u32, 1..4_u32).prop_map(|(n, link)| Route {
            table: TableId(2),
            destination: IpNetwork::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(n))),
            via: None,
            link: IfIndex(link),
        })
    }

    fn address() -> impl Strategy<Value = Address> {
        (0..4_u32, 1..4_u32).prop_map(|(n, link)| Address {
            link: IfIndex(link),
            address: Ipv4Network::from(std::net::Ipv4Addr::from(n)),
        })
    }

    /// The same three links on both sides: they are never made or unmade here.
    fn links() -> impl Strategy<Value = BTreeMap<IfIndex, LinkState>> {
        prop::array::uniform3((1500..1502_u32, any::<bool>()))
            .prop_map(|links| (1..).map(IfIndex).zip(links.map(|(mtu, up)| LinkState { mtu, up })).collect())
    }

    fn state() -> impl Strategy<Value = KernelState> {
        let rules = prop::collection::btree_map(rule(), 1..3_u32, 0..5);
        let routes = prop::collection::btree_set(route(), 0..5);
        let addresses = prop::collection::btree_set(address(), 0..5);
        (rules, routes, addresses, links()).prop_map(|(rules, routes, addresses, links)| KernelState {
            rules,
            routes,
            addresses,
            links,
        })
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
            Op::AddRoute(route) => {
                // Replaces the one to the same destination, as the kernel does.
                state.routes.retain(|it| (it.table, it.destination) != (route.table, route.destination));
                state.routes.insert(*route);
            }
            Op::DelRoute(route) => drop(state.routes.remove(route)),
            Op::AddAddress(address) => drop(state.addresses.insert(*address)),
            Op::DelAddress(address) => assert!(state.addresses.remove(address)),
            Op::SetLink { link, mtu } => drop(state.links.insert(*link, LinkState { mtu: *mtu, up: true })),
        }
    }

    /// What can be desired: one copy of a rule, one route to a destination, links that are up.
    fn desired() -> impl Strategy<Value = KernelState> {
        state().prop_map(|mut state| {
            state.rules.values_mut().for_each(|copies| *copies = 1);
            state.links.values_mut().for_each(|link| link.up = true);
            let mut seen = BTreeSet::new();
            state.routes.retain(|route| seen.insert((route.table, route.destination)));
            state
        })
    }

    /// Addresses of two subnets on two links.
    fn neighbour() -> impl Strategy<Value = Address> {
        (0..16_u32, 1..3_u32).prop_map(|(n, link)| Address {
            link: IfIndex(link),
            address: Ipv4Network::new(std::net::Ipv4Addr::from(n), 29).unwrap(),
        })
    }

    /// A kernel with `promote_secondaries` off: the first address of a subnet on a link takes those along that came after it.
    #[derive(Debug, Default)]
    struct Subnets(Vec<Address>);

    impl Subnets {
        fn state(&self) -> KernelState {
            KernelState { addresses: self.0.iter().copied().collect(), ..KernelState::default() }
        }

        fn add(&mut self, address: Address) {
            if !self.0.contains(&address) {
                self.0.push(address);
            }
        }

        fn apply(&mut self, op: &Op) {
            match op {
                Op::AddAddress(address) => self.add(*address),
                Op::DelAddress(gone) => {
                    let same =
                        |it: &Address| it.link == gone.link && it.address.network() == gone.address.network();
                    let is_first = self.0.iter().find(|it| same(it)) == Some(gone);
                    self.0.retain(|it| it != gone && !(is_first && same(it)));
                }
                Op::SetLink { .. } | Op::AddRoute(_) | Op::DelRoute(_) | Op::AddRule(_) | Op::DelRule(_) => {
                    panic!("{op:?}")
                }
            }
        }
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_what_is_desired(desired in desired(), observed in state()) {
            let mut kernel = observed.clone();

            diff(&desired, &observed).iter().for_each(|op| apply(&mut kernel, op));

            prop_assert_eq!(kernel, desired);
        }

        #[test]
        fn what_a_removed_address_takes_along_is_back_after_the_next_comparison(
            wanted in prop::collection::btree_set(neighbour(), 0..6),
            found in prop::collection::vec(neighbour(), 0..8),
        ) {
            let desired = KernelState { addresses: wanted, ..KernelState::default() };
            let mut kernel = Subnets::default();
            found.into_iter().for_each(|address| kernel.add(address));
            let differ = |kernel: &Subnets| diff(&desired, &kernel.state());

            differ(&kernel).iter().for_each(|op| kernel.apply(op));
            let again = differ(&kernel);
            again.iter().for_each(|op| kernel.apply(op));

            prop_assert!(again.iter().all(|op| matches!(op, Op::AddAddress(_))), "{:?}", again);
            prop_assert_eq!(differ(&kernel), Vec::new());
        }

        #[test]
        fn nothing_is_removed_in_the_first_half_and_nothing_added_in_the_second(
            desired in desired(),
            observed in state(),
        ) {
            let ops = diff(&desired, &observed);

            let (before, after) = halves(ops.clone());

            let removes = |op: &Op| matches!(op, Op::DelRule(_) | Op::DelRoute(_) | Op::DelAddress(_));
            prop_assert!(!before.iter().any(removes), "{:?}", before);
            // All rules here stand at one place, where none catches what is another's.
            prop_assert!(after.iter().all(removes), "{:?}", after);
            prop_assert_eq!([before, after].concat(), ops);
        }

        #[test]
        fn there_is_no_difference_to_itself(desired in desired()) {
            prop_assert_eq!(diff(&desired, &desired), Vec::new());
        }

        #[test]
        fn nothing_needed_is_ever_missing_on_the_way(desired in desired(), observed in state()) {
            let rules: BTreeSet<Rule> =
                desired.rules.keys().filter(|rule| observed.rules.contains_key(rule)).copied().collect();
            let routed = |state: &KernelState| state.routes.iter().map(|r| (r.table, r.destination)).collect();
            let before: BTreeSet<_> = routed(&observed);
            let routes: BTreeSet<_> = routed(&desired).intersection(&before).copied().collect();
            let mut kernel = observed.clone();

            for op in diff(&desired, &observed) {
                apply(&mut kernel, &op);
                prop_assert!(rules.iter().all(|rule| kernel.rules.contains_key(rule)));
                prop_assert!(routes.is_subset(&routed(&kernel)));
            }
        }
    }
}
