//! The host's kernel: brings it in line with what the node wishes, one wish at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use datapath::netfilter::{EgressSpec, NatSpec, Netfilter, SnatPorts, egress_ruleset, ruleset};
use datapath::{Converged, Family, Former, Host, LinkSeen, MarkError, desired};
use ipnetwork::Ipv6Network;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use types::{Ipv6Prefix, Mac};

use crate::families::Families;
use crate::metrics::Metrics;
use crate::node::{Event, HostWish};
use crate::server::chain;

/// What the SNAT rules need besides the wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSettings {
    /// First characters of host veths.
    pub pod_if_prefix: String,
    /// How source ports are chosen; `None` when SNAT is done elsewhere.
    pub snat: Option<SnatPorts>,
    /// How source ports of IPv6 are chosen, which no gateway translates.
    pub ipv6_ports: SnatPorts,
    /// Whether connections to node ports are bound to the primary ENI.
    pub node_port: bool,
}

/// What the daemon wants the host's kernel to hold, as it is kept in the run directory for those who look at the node
/// without it: [`crate::tools`]. The daemon itself never reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Which addresses pods get.
    pub families: Families,
    /// ENIs, tables, rules.
    pub wish: HostWish,
    /// Source NAT.
    pub nat: NatSettings,
}

impl HostRecord {
    /// The nftables table's content; `None` while the primary ENI's link is not there.
    ///
    /// # Errors
    /// When an ENI's mark does not fit the mask.
    pub fn nat_spec(&self, links: &BTreeMap<Mac, LinkSeen>) -> Result<Option<NatSpec>, MarkError> {
        nat_spec(&self.wish, &self.nat, links)
    }
}

/// Where the record is.
#[must_use]
pub fn record_file(run_dir: &Path) -> PathBuf {
    run_dir.join("host.json")
}

/// Where wishes are written down.
#[derive(Debug)]
pub(crate) struct Recording {
    path: PathBuf,
    families: Families,
    /// What was written last.
    last: Option<HostRecord>,
}

impl Recording {
    pub(crate) fn new(run_dir: &Path, families: Families) -> Self {
        Self { path: record_file(run_dir), families, last: None }
    }
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
    record: Recording,
    /// Whose leftovers of the Go version are to be removed; `None` once that is done.
    former: Option<Former>,
}

impl HostKeeper {
    pub(crate) fn new(
        host: Host,
        netfilter: Netfilter,
        settings: NatSettings,
        metrics: Metrics,
        record: Recording,
        former: Former,
    ) -> Self {
        Self { host, netfilter, settings, metrics, made: None, record, former: Some(former) }
    }

    /// Serves wishes until nobody wishes any more.
    pub(crate) async fn run(
        mut self,
        mut wishes: mpsc::Receiver<(u64, Box<HostWish>)>,
        events: mpsc::Sender<Event>,
    ) {
        while let Some((generation, wish)) = wishes.recv().await {
            self.write_down(&wish);
            let result = self.fulfil(&wish).await;
            self.made = result.as_ref().is_ok_and(Vec::is_empty).then_some(*wish);
            if events.send(Event::Converged { generation, result }).await.is_err() {
                return;
            }
        }
    }

    /// Nothing depends on it: what cannot be written is told, and tried again with the next wish.
    fn write_down(&mut self, wish: &HostWish) {
        let wish = HostWish { pods: None, ..wish.clone() };
        let record = HostRecord { families: self.record.families, wish, nat: self.settings.clone() };
        if self.record.last.as_ref() == Some(&record) {
            return;
        }
        let staged = self.record.path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&staged)?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            std::fs::rename(&staged, &self.record.path)
        };
        match write() {
            Ok(()) => self.record.last = Some(record),
            Err(error) => {
                tracing::warn!(%error, file = %self.record.path.display(), "cannot write down what the host should hold");
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
        let nat = nat_spec(wish, &self.settings, &links).map_err(|error| chain(&error))?;
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
        if missing.is_empty() {
            self.take_over(wish).await;
        }
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

    /// Removes what the Go version has left, once after the start, when all that stands for it is in place. A packet's way changes
    /// from its rules to ours: first its netfilter rules, one of which takes our marks away, then its policy rules.
    ///
    /// What cannot be removed is superfluous and does no harm: the next round tries again.
    async fn take_over(&mut self, wish: &HostWish) {
        let Some(former) = self.former.take() else { return };
        let removed = match self.netfilter.take_over() {
            Ok(removed) => self
                .host
                .take_over(&wish.node, &former)
                .await
                .map(|more| (removed, more))
                .map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        match removed {
            Ok((netfilter, routes)) => {
                for change in netfilter.iter().chain(&routes) {
                    tracing::debug!(change, "left by the Go version, removed");
                }
                let (netfilter, routes) = (netfilter.len(), routes.len());
                if netfilter + routes > 0 {
                    tracing::info!(netfilter, routes, "what the Go version left is removed");
                    if Netfilter::has_legacy_tables() {
                        tracing::warn!(
                            "chains of the Go version in iptables-legacy, if there are any, stay; see MIGRATION.md"
                        );
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error, "what the Go version left cannot be removed yet");
                self.former = Some(former);
            }
        }
    }

    fn tell(&self, repair: bool, change: &str) {
        if repair {
            self.metrics.repaired("host");
            tracing::warn!(change, "somebody else has changed the host; put back");
        } else {
            tracing::info!(change, "host");
        }
    }
}

/// The table's content; `None` while the primary ENI's link is not there.
fn nat_spec(
    wish: &HostWish,
    settings: &NatSettings,
    links: &BTreeMap<Mac, LinkSeen>,
) -> Result<Option<NatSpec>, MarkError> {
    let primary = wish.node.enis.iter().find(|eni| eni.is_primary());
    let Some(link) = primary.and_then(|eni| links.get(&eni.mac)) else { return Ok(None) };
    Ok(Some(NatSpec {
        pod_if_prefix: settings.pod_if_prefix.clone(),
        primary_if: link.name.clone(),
        primary_address: wish.primary_address,
        local: wish.local,
        no_snat: wish.no_snat.iter().copied().collect::<BTreeSet<_>>(),
        snat: settings.snat,
        connmark: wish.node.marks.connmark,
        node_port: settings.node_port,
        steering_mask: wish.node.marks.steering_mask,
        sources: desired::sources(&wish.node, links)?,
    }))
}
