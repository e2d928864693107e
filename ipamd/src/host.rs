//! The host's kernel: brings it in line with what the node wishes, one wish at a time, on a thread of its own: the kernel is asked with sockets that block.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use datapath::netfilter::{
    EgressSpec, NatSpec, Netfilter, NetfilterError, SnatPorts, egress_ruleset, ruleset,
};
use datapath::{
    Converged, Family, Former, Host, HostSeen, LinkSeen, MarkError, NodeSpec, Refusal, Route, desired,
};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use types::{Ipv6Prefix, Mac};

use crate::checkpoint;
use crate::families::Families;
use crate::metrics::Metrics;
use crate::node::{Event, HostMade, HostWish};
use crate::server::chain;

/// What the SNAT rules need besides the wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSettings {
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

    /// The IPv6 table's content; `None` where there is to be none.
    #[must_use]
    pub fn egress_spec(&self) -> Option<EgressSpec> {
        egress_spec(&self.wish, &self.nat)
    }
}

/// Ranges of the Go version's egress plugin.
const GO_LOCAL: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(169, 254, 172, 0)), 22),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xac, 0)), 118),
];

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
    /// What was wished and made last, and the ENIs whose link was not there: whatever the same wish changes again, others have
    /// changed meanwhile.
    made: Option<(HostWish, BTreeSet<Mac>)>,
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

    /// Starts the thread. It ends when nobody can wish any more, with the last wish fulfilled.
    pub(crate) fn start(
        self,
        wishes: mpsc::Receiver<(u64, Box<HostWish>)>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<JoinHandle<()>> {
        let serve = move || self.run(wishes, &events);
        std::thread::Builder::new().name("host".to_owned()).spawn(serve)
    }

    /// Serves wishes until nobody wishes any more.
    fn run(mut self, mut wishes: mpsc::Receiver<(u64, Box<HostWish>)>, events: &mpsc::Sender<Event>) {
        while let Some((generation, wish)) = wishes.blocking_recv() {
            self.write_down(&wish);
            let result = self.fulfil(&wish);
            self.made = result.as_ref().ok().map(|made| (*wish, made.missing.clone()));
            if events.blocking_send(Event::Converged { generation, result }).is_err() {
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
        let bytes = serde_json::to_vec(&record).map_err(io::Error::from);
        match bytes.and_then(|bytes| checkpoint::write(&self.record.path, &bytes)) {
            Ok(()) => self.record.last = Some(record),
            Err(error) => {
                tracing::warn!(%error, file = %self.record.path.display(), "cannot write down what the host should hold");
            }
        }
    }

    /// Links, addresses, tables and rules first, then netfilter, then what no longer serves: a mark is set only once its rule is there, and
    /// its rule goes once nothing sets it. Whatever of it fails, the rest is done; the rules for marks that may still be set stay.
    fn fulfil(&mut self, wish: &HostWish) -> Result<HostMade, String> {
        let (node, pods) = (&wish.node, wish.pods.as_deref());
        let half = self.host.add(node, pods).map_err(|error| chain(&error))?;
        let nat = self.nat(wish, half.links());
        let marked = nat.is_ok();
        let netfilter = [nat, self.egress(wish)];
        let done = self.host.finish(node, pods, half, marked);
        if done.is_err() {
            netfilter.iter().flatten().flatten().for_each(|change| self.tell(false, change));
        }
        let Converged { changes, missing, links: _, refused, unset, undone } =
            done.map_err(|error| chain(&error))?;
        let mut made = HostMade { missing: missing.into_iter().collect(), ..HostMade::default() };
        let before = self.made.as_ref();
        let repair = before.is_some_and(|(before, lacked)| before == wish && *lacked == made.missing);
        let mut trouble = Vec::new();
        let told = |refusal: &Refusal| format!("the kernel refused: {refusal}");
        for refusal in refused {
            match refusal.eni {
                Some(eni) => made.refused.entry(eni).or_default().push(told(&refusal)),
                None => trouble.push(told(&refusal)),
            }
        }
        for refusal in unset {
            if refusal.eni.is_some() { &mut made.unset } else { &mut trouble }.push(told(&refusal));
        }
        trouble.extend(undone.into_iter().map(|change| format!("this does not last: {change}")));
        let mut told = changes;
        for change in netfilter {
            match change {
                Ok(change) => told.extend(change),
                Err(error) => trouble.push(error),
            }
        }
        made.put_back = repair && !told.is_empty();
        told.iter().for_each(|change| self.tell(repair, change));
        if !trouble.is_empty() {
            return Err(trouble.join("; "));
        }
        self.take_over(wish, &made);
        Ok(made)
    }

    /// Source NAT and steering: the IPv4 table, as soon as the primary ENI's link is there. What was changed, in words.
    fn nat(&mut self, wish: &HostWish, links: &BTreeMap<Mac, LinkSeen>) -> Result<Option<String>, String> {
        let nat = nat_spec(wish, &self.settings, links).map_err(|error| chain(&error))?;
        let Some(nat) = nat else { return Ok(None) };
        let steps = self.put(&nat).map_err(|error| chain(&error))?;
        let (sources, no_snat) = (nat.sources.len(), nat.no_snat.len());
        let told = format!("nftables table with {sources} sources and {no_snat} ranges without SNAT");
        Ok((!steps.is_empty()).then(|| format!("{told}: {}", steps.join(", "))))
    }

    /// Our nftables table; counted where it marks connections. The steps that were made.
    fn put(&mut self, nat: &NatSpec) -> Result<Vec<String>, NetfilterError> {
        let put = self.netfilter.put(ruleset(nat));
        if nat.node_port || nat.snat.is_some() {
            self.metrics.marked(put.is_ok());
        }
        put
    }

    /// IPv6 by the node's address: its table, or none. What was changed, in words.
    fn egress(&mut self, wish: &HostWish) -> Result<Option<String>, String> {
        let told = match egress_spec(wish, &self.settings) {
            Some(spec) => self.netfilter.put(egress_ruleset(&spec)).map(|steps| {
                let told = format!("by {}: {}", spec.node_address, steps.join(", "));
                (!steps.is_empty()).then_some(told)
            }),
            None => self.netfilter.remove(Family::V6).map(|there| there.then(|| "none".to_owned())),
        };
        let told = told.map_err(|error| chain(&error))?;
        Ok(told.map(|told| format!("nftables table for IPv6 of pods with IPv4 addresses: {told}")))
    }

    /// Removes what the Go version has left, once after the start, when what stands for it is in place. A packet's way changes
    /// from its rules to ours: first its netfilter rules, then its policy rules. What it has for the pods of an ENI stays as long as
    /// ours for that ENI is not whole.
    ///
    /// What cannot be removed is superfluous and does no harm: the next look, half a minute later at most, tries again.
    fn take_over(&mut self, wish: &HostWish, made: &HostMade) {
        let Some(former) = self.former.take() else { return };
        let mut ready = wish.node.clone();
        ready.enis.retain(|eni| made.is_ready(&eni.mac));
        let whole = ready.enis.len() == wish.node.enis.len();
        let removed = self.remove_leftovers(wish, &ready, &former);
        self.former = (removed.is_err() || !whole).then_some(former);
        match removed {
            Ok((netfilter, routes)) => {
                for change in netfilter.iter().chain(&routes) {
                    tracing::debug!(change, "left by the Go version, removed");
                }
                let (netfilter, routes) = (netfilter.len(), routes.len());
                if netfilter + routes > 0 {
                    tracing::info!(netfilter, routes, "what the Go version left is removed");
                    tell_legacy();
                }
            }
            Err(error) => {
                tracing::warn!(error, "what the Go version left cannot be removed yet");
            }
        }
    }

    fn remove_leftovers(
        &mut self,
        wish: &HostWish,
        ready: &NodeSpec,
        former: &Former,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let seen = self.host.look().map_err(|error| chain(&error))?;
        let guarded = guarded(&seen, wish.local);
        let netfilter = self.netfilter.take_over(&guarded).map_err(|error| chain(&error))?;
        let routes = self.host.take_over(&wish.node, ready, former).map_err(|error| chain(&error))?;
        Ok((netfilter, routes))
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

/// What of the Go version's nobody but `iptables` can safely change.
fn tell_legacy() {
    match Netfilter::legacy_leftovers() {
        Ok(tables) if tables.is_empty() => {}
        Ok(tables) => {
            tracing::warn!(
                ?tables,
                "rules of the Go version stay in iptables-legacy; `ipamd doctor` tells how to remove them"
            );
        }
        Err(error) => {
            tracing::warn!(%error, "whether rules of the Go version stay in iptables-legacy is not known")
        }
    }
}

/// Families of which pods of the Go version have addresses that mean something on the node only, and nothing of ours keeps others from
/// them.
fn guarded(seen: &HostSeen, local: Option<Ipv4Network>) -> BTreeSet<Family> {
    let ranges = GO_LOCAL.into_iter().filter_map(|(first, length)| IpNetwork::new(first, length).ok());
    // Ours does it for the first of them.
    let ranges: Vec<IpNetwork> = ranges.filter(|range| range.is_ipv6() || local.is_none()).collect();
    let is_of = |route: &Route| ranges.iter().any(|range| range.contains(route.destination.ip()));
    let routes = seen.routes.iter().map(|seen| &seen.route);
    routes.filter(|route| is_of(route)).map(Route::family).collect()
}

/// The IPv6 table's content; `None` where pods have no IPv6 by the node's address.
fn egress_spec(wish: &HostWish, settings: &NatSettings) -> Option<EgressSpec> {
    let node_address = wish.ipv6_egress?;
    let local = Ipv6Network::new(Ipv6Prefix::LOCAL.first(), Ipv6Prefix::LENGTH).ok()?;
    Some(EgressSpec { local, node_address, ports: settings.ipv6_ports })
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
        pod_if_prefixes: wish.pod_if_prefixes.iter().map(|prefix| prefix.as_str().to_owned()).collect(),
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
