//! The host's kernel: brings it in line with what the node wishes, one wish at a time.

use std::collections::{BTreeMap, BTreeSet};

use datapath::netfilter::{EgressSpec, NatSpec, Netfilter, SnatPorts, egress_ruleset, ruleset};
use datapath::{Converged, Family, Host, LinkSeen, MarkError, desired};
use ipnetwork::Ipv6Network;
use tokio::sync::mpsc;
use types::{Ipv6Prefix, Mac};

use crate::metrics::Metrics;
use crate::node::{Event, HostWish};
use crate::server::chain;

/// What the SNAT rules need besides the wish.
#[derive(Debug, Clone)]
pub(crate) struct NatSettings {
    /// First characters of host veths.
    pub(crate) pod_if_prefix: String,
    /// How source ports are chosen; `None` when SNAT is done elsewhere.
    pub(crate) snat: Option<SnatPorts>,
    /// How source ports of IPv6 are chosen, which no gateway translates.
    pub(crate) ipv6_ports: SnatPorts,
    /// Whether connections to node ports are bound to the primary ENI.
    pub(crate) node_port: bool,
}

/// The owner of the host's kernel objects other than pods.
#[derive(Debug)]
pub(crate) struct HostKeeper {
    host: Host,
    netfilter: Netfilter,
    settings: NatSettings,
    metrics: Metrics,
    /// What was wished and made last: whatever the same wish changes again, others have changed meanwhile.
    made: Option<HostWish>,
}

impl HostKeeper {
    pub(crate) const fn new(
        host: Host,
        netfilter: Netfilter,
        settings: NatSettings,
        metrics: Metrics,
    ) -> Self {
        Self { host, netfilter, settings, metrics, made: None }
    }

    /// Serves wishes until nobody wishes any more.
    pub(crate) async fn run(
        mut self,
        mut wishes: mpsc::Receiver<(u64, Box<HostWish>)>,
        events: mpsc::Sender<Event>,
    ) {
        while let Some((generation, wish)) = wishes.recv().await {
            let result = self.fulfil(&wish).await;
            self.made = result.as_ref().is_ok_and(Vec::is_empty).then_some(*wish);
            if events.send(Event::Converged { generation, result }).await.is_err() {
                return;
            }
        }
    }

    /// Links, addresses, tables and rules first, then netfilter: a mark is set only once its rule is there.
    async fn fulfil(&mut self, wish: &HostWish) -> Result<Vec<Mac>, String> {
        let done = self.host.converge(&wish.node, wish.pods.as_deref()).await;
        let Converged { changes, missing, links } = done.map_err(|error| chain(&error))?;
        let repair = self.made.as_ref() == Some(wish);
        for change in changes {
            self.tell(repair, &change);
        }
        let nat = self.nat(wish, &links).map_err(|error| chain(&error))?;
        if let Some(nat) = nat
            && self.netfilter.put(ruleset(&nat)).map_err(|error| chain(&error))?
        {
            let (sources, no_snat) = (nat.sources.len(), nat.no_snat.len());
            self.tell(
                repair,
                &format!("nftables table with {sources} sources and {no_snat} ranges without SNAT"),
            );
        }
        self.egress(wish, repair)?;
        Ok(missing)
    }

    /// IPv6 by the node's address: its table, or none.
    fn egress(&mut self, wish: &HostWish, repair: bool) -> Result<(), String> {
        let spec = wish.ipv6_egress.and_then(|node_address| {
            let local = Ipv6Network::new(Ipv6Prefix::LOCAL.first(), Ipv6Prefix::LENGTH).ok()?;
            Some(EgressSpec { local, node_address, ports: self.settings.ipv6_ports })
        });
        let changed = match spec {
            Some(spec) => self.netfilter.put(egress_ruleset(&spec)),
            None => self.netfilter.remove(Family::V6),
        };
        if changed.map_err(|error| chain(&error))? {
            let by = wish.ipv6_egress.map_or("none".to_owned(), |address| format!("by {address}"));
            self.tell(repair, &format!("nftables table for IPv6 of pods with IPv4 addresses: {by}"));
        }
        Ok(())
    }

    fn tell(&self, repair: bool, change: &str) {
        if repair {
            self.metrics.repaired("host");
            tracing::warn!(change, "somebody else has changed the host; put back");
        } else {
            tracing::info!(change, "host");
        }
    }

    /// The table's content; `None` while the primary ENI's link is not there.
    fn nat(&self, wish: &HostWish, links: &BTreeMap<Mac, LinkSeen>) -> Result<Option<NatSpec>, MarkError> {
        let primary = wish.node.enis.iter().find(|eni| eni.is_primary());
        let Some(link) = primary.and_then(|eni| links.get(&eni.mac)) else { return Ok(None) };
        Ok(Some(NatSpec {
            pod_if_prefix: self.settings.pod_if_prefix.clone(),
            primary_if: link.name.clone(),
            primary_address: wish.primary_address,
            local: wish.local,
            no_snat: wish.no_snat.iter().copied().collect::<BTreeSet<_>>(),
            snat: self.settings.snat,
            connmark: wish.node.marks.connmark,
            node_port: self.settings.node_port,
            steering_mask: wish.node.marks.steering_mask,
            sources: desired::sources(&wish.node, links)?,
        }))
    }
}
