//! What the host's kernel holds, as values: what is ours, and what others have put beside it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use types::{Mac, TableId};

use crate::model::{
    Address, EniSpec, Family, IfIndex, KernelState, LinkSeen, LinkState, NodeSpec, Route, Rule, RulePriority,
};

/// Who made a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Maker {
    /// We did.
    We,
    /// The kernel, for an address.
    Kernel,
    /// Somebody else.
    Other,
}

/// A route, whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteSeen {
    /// Its maker.
    pub maker: Maker,
    /// What it says.
    pub route: Route,
}

/// A policy rule, whoever made it. One for each copy: the kernel keeps duplicates.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleSeen {
    /// Whose packets it is for.
    pub family: Family,
    /// Its place.
    pub priority: u32,
    /// What it selects and where it looks, in the words of `ip rule`.
    pub text: String,
    /// The same in ours, if it is one of ours.
    pub ours: Option<Rule>,
}

impl fmt::Display for RuleSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} {}", self.priority, self.text)
    }
}

/// Links, rules, routes and addresses of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostSeen {
    /// Its links.
    pub links: Vec<LinkSeen>,
    /// Its policy rules, the kernel's own too.
    pub rules: Vec<RuleSeen>,
    /// Its unicast routes of all tables.
    pub routes: Vec<RouteSeen>,
    /// Its IPv4 addresses that are not link-local.
    pub addresses: Vec<Address>,
    /// The tables that end with a refusal of ours, as those of branch ENIs do; `None` where that was not asked.
    #[serde(default)]
    pub refusals: Option<BTreeSet<(Family, TableId)>>,
}

impl HostSeen {
    /// Links by MAC.
    #[must_use]
    pub fn by_mac(&self) -> BTreeMap<Mac, LinkSeen> {
        let mut by_mac: BTreeMap<Mac, LinkSeen> = BTreeMap::new();
        for link in &self.links {
            // What is stacked on an ENI (a VLAN, a macvlan, a bridge) has its MAC too, and was made after it.
            if let Some(mac) = link.mac
                && by_mac.get(&mac).is_none_or(|other| link.index < other.index)
            {
                by_mac.insert(mac, link.clone());
            }
        }
        by_mac
    }

    /// Names of links.
    #[must_use]
    pub fn names(&self) -> BTreeMap<IfIndex, String> {
        self.links.iter().map(|link| (link.index, link.name.clone())).collect()
    }

    /// What of it we own, given what the node is; with `pods`, also the routes of the pods' table.
    #[must_use]
    pub fn ours(&self, spec: &NodeSpec, pods: bool) -> KernelState {
        let mut state = KernelState::default();
        let mut secondary = BTreeSet::new();
        let links = self.by_mac();
        for eni in &spec.enis {
            let Some(link) = links.get(&eni.mac) else { continue };
            state.links.insert(link.index, LinkState { mtu: link.mtu, up: link.up });
            if !eni.is_primary() {
                secondary.insert(link.index);
            }
        }
        for rule in self.rules.iter().filter_map(|rule| rule.ours) {
            *state.rules.entry(rule).or_default() += 1;
        }
        if let Some(trunk) = spec.trunk.and_then(|trunk| links.get(&trunk.mac)) {
            state.links.insert(trunk.index, LinkState { mtu: trunk.mtu, up: trunk.up });
        }
        let tables: BTreeSet<TableId> = spec.enis.iter().map(EniSpec::table).collect();
        // What leads pods to and from their branch ENI comes and goes with them, by the wiring thread.
        let of_branch = |table: TableId| table.is_of_branch() && !tables.contains(&table);
        let made_way: BTreeSet<Family> = state
            .rules
            .keys()
            .filter(|rule| rule.priority == RulePriority::Local)
            .map(|rule| rule.family)
            .collect();
        // The kernel's own rules of a family that is not ours are there, and nothing to us.
        let is_ours = |rule: &Rule| match rule.priority {
            RulePriority::Main => rule.family == Family::V4 || spec.ipv6,
            // The first one is nothing to us either, unless ours stands, or is to stand, for it.
            RulePriority::First => {
                made_way.contains(&rule.family)
                    || spec.strict_branches && (rule.family == Family::V4 || spec.ipv6)
            }
            RulePriority::Local
            | RulePriority::Pods
            | RulePriority::Connmark
            | RulePriority::ExternalServices
            | RulePriority::Steering
            | RulePriority::FromEni => !of_branch(rule.table),
        };
        state.rules.retain(|rule, _| is_ours(rule));
        let routes = self.routes.iter().filter(|RouteSeen { maker, route }| match maker {
            Maker::We => !of_branch(route.table) && (pods || route.table != TableId::PODS),
            // An address that somebody else added draws the node's own traffic for its subnet to that ENI.
            Maker::Kernel => {
                route.family() == Family::V4
                    && route.table == TableId::MAIN
                    && secondary.contains(&route.link)
            }
            Maker::Other => false,
        });
        state.routes = routes.map(|seen| seen.route).collect();
        let addresses = self.addresses.iter().filter(|address| secondary.contains(&address.link));
        state.addresses = addresses.copied().collect();
        state
    }
}
