//! What the kernel should hold, from what a node and its pods are. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use types::{Mac, TableId};

use crate::kernel::LinkSeen;
use crate::mark::MarkError;
use crate::model::{
    Address, EniSpec, KernelState, NodeSpec, PodSpec, Route, Rule, RulePriority, Selector, Sysctl,
};

/// The host part: links, addresses, tables and rules, for the ENIs whose link is there.
///
/// # Errors
/// When an ENI's mark does not fit the mask.
pub fn node(spec: &NodeSpec, links: &BTreeMap<Mac, LinkSeen>) -> Result<KernelState, MarkError> {
    let mut state = KernelState::default();
    state
        .rules
        .insert(Rule { priority: RulePriority::Pods, selector: Selector::All, table: TableId::PODS }, 1);
    if spec.connmark {
        let selector = Selector::Mark { value: spec.marks.connmark, mask: spec.marks.connmark };
        state.rules.insert(Rule { priority: RulePriority::Connmark, selector, table: TableId::MAIN }, 1);
    }
    for eni in &spec.enis {
        if let Some(link) = links.get(&eni.mac) {
            state.links.insert(link.index, (eni.mtu, true));
            if !eni.is_primary() {
                secondary(&mut state, spec, eni, link.index)?;
            }
        }
    }
    Ok(state)
}

/// A secondary ENI: one address, a table of its own, two rules.
fn secondary(state: &mut KernelState, spec: &NodeSpec, eni: &EniSpec, link: u32) -> Result<(), MarkError> {
    let table = eni.table();
    let own = Ipv4Network::new(eni.primary_address, eni.subnet.prefix());
    // The prefix of a network is at most 32, so this cannot be refused.
    state.addresses.extend(own.ok().map(|address| Address { link, address }));
    let gateway = gateway(eni.subnet);
    state.routes.insert(Route { table, destination: Ipv4Network::from(gateway), via: None, link });
    state.routes.insert(Route { table, destination: everywhere(), via: Some(gateway), link });
    let (value, mask) = (spec.marks.of_eni(eni.card, eni.device)?, spec.marks.steering_mask);
    let steering = Rule { priority: RulePriority::Steering, selector: Selector::Mark { value, mask }, table };
    let from = Rule { priority: RulePriority::FromEni, selector: Selector::From(eni.primary_address), table };
    state.rules.extend([(steering, 1), (from, 1)]);
    Ok(())
}

/// The host's route to one pod.
#[must_use]
pub fn pod_route(pod: &PodSpec, link: u32) -> Route {
    Route { table: TableId::PODS, destination: Ipv4Network::from(pod.address), via: None, link }
}

/// Kernel settings: forwarding on, and loose reverse path checks on ENIs.
///
/// The strict check looks up the reply without the packet's mark, finds the main table, and drops what arrives for a
/// pod on a secondary ENI. The kernel uses the larger of `all` and the interface's own value, and loose (2) is the largest.
#[must_use]
pub fn sysctls(spec: &NodeSpec, links: &BTreeMap<Mac, LinkSeen>) -> Vec<Sysctl> {
    let rp_filter =
        |link: &LinkSeen| Sysctl { path: format!("net/ipv4/conf/{}/rp_filter", link.name), value: "2" };
    let enis = spec.enis.iter().filter_map(|eni| links.get(&eni.mac)).map(rp_filter);
    std::iter::once(Sysctl { path: "net/ipv4/ip_forward".to_owned(), value: "1" }).chain(enis).collect()
}

/// The VPC router: the first address of a subnet after its network address (Amazon VPC user guide, subnet sizing).
fn gateway(subnet: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

fn everywhere() -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or_else(|_| Ipv4Network::from(Ipv4Addr::UNSPECIFIED))
}
