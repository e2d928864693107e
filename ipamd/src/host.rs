//! The host's kernel: brings it in line with what the node wishes, one wish at a time.

use std::collections::{BTreeMap, BTreeSet};

use datapath::netfilter::{NatSpec, Netfilter, SnatPorts, ruleset};
use datapath::{Converged, Host, LinkSeen, MarkError};
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use types::Mac;

use crate::node::{Event, HostWish};
use crate::server::chain;

/// What the SNAT rules need besides the wish.
#[derive(Debug, Clone)]
pub(crate) struct NatSettings {
    /// First characters of host veths.
    pub(crate) pod_if_prefix: String,
    /// How source ports are chosen; `None` when SNAT is done elsewhere.
    pub(crate) snat: Option<SnatPorts>,
    /// Whether connections to node ports are bound to the primary ENI.
    pub(crate) node_port: bool,
}

/// The owner of the host's kernel objects other than pods.
#[derive(Debug)]
pub(crate) struct HostKeeper {
    host: Host,
    netfilter: Netfilter,
    settings: NatSettings,
}

impl HostKeeper {
    pub(crate) const fn new(host: Host, netfilter: Netfilter, settings: NatSettings) -> Self {
        Self { host, netfilter, settings }
    }

    /// Serves wishes until nobody wishes any more.
    pub(crate) async fn run(
        mut self,
        mut wishes: mpsc::Receiver<(u64, Box<HostWish>)>,
        events: mpsc::Sender<Event>,
    ) {
        while let Some((generation, wish)) = wishes.recv().await {
            let result = self.fulfil(&wish).await;
            if events.send(Event::Converged { generation, result }).await.is_err() {
                return;
            }
        }
    }

    /// Links, addresses, tables and rules first, then netfilter: a mark is set only once its rule is there.
    async fn fulfil(&mut self, wish: &HostWish) -> Result<Vec<Mac>, String> {
        let done = self.host.converge(&wish.node, wish.pods.as_deref()).await;
        let Converged { changes, missing, links } = done.map_err(|error| chain(&error))?;
        for change in changes {
            tracing::info!(change, "host");
        }
        let nat = self.nat(wish, &links).map_err(|error| chain(&error))?;
        if let Some(nat) = nat
            && self.netfilter.put(ruleset(&nat)).map_err(|error| chain(&error))?
        {
            tracing::info!(
                sources = nat.sources.len(),
                no_snat = nat.no_snat.len(),
                "nftables table replaced"
            );
        }
        Ok(missing)
    }

    /// The table's content; `None` while the primary ENI's link is not there.
    fn nat(&self, wish: &HostWish, links: &BTreeMap<Mac, LinkSeen>) -> Result<Option<NatSpec>, MarkError> {
        let primary = wish.node.enis.iter().find(|eni| eni.is_primary());
        let Some(link) = primary.and_then(|eni| links.get(&eni.mac)) else { return Ok(None) };
        let mut sources: BTreeMap<Ipv4Network, u32> = BTreeMap::new();
        for eni in wish.node.enis.iter().filter(|eni| !eni.is_primary() && links.contains_key(&eni.mac)) {
            let mark = wish.node.marks.of_eni(eni.card, eni.device)?;
            sources.extend(eni.sources.iter().map(|source| (*source, mark)));
        }
        Ok(Some(NatSpec {
            pod_if_prefix: self.settings.pod_if_prefix.clone(),
            primary_if: link.name.clone(),
            primary_address: wish.primary_address,
            no_snat: wish.no_snat.iter().copied().collect::<BTreeSet<_>>(),
            snat: self.settings.snat,
            connmark: wish.node.marks.connmark,
            node_port: self.settings.node_port,
            steering_mask: wish.node.marks.steering_mask,
            sources,
        }))
    }
}
