//! `ipamd explain pod`: where a pod's address, table, mark and rules come from, and the way its packets take. Pure.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use datapath::netfilter::{Ruleset, TABLE, egress_ruleset, ruleset};
use datapath::{
    BranchLack, EniSpec, Family, HostSeen, LinkSeen, Rule, RulePriority, Selector, branch_lacks,
    branch_rules, desired,
};
use pool::Owner;
use types::{Branch, EniId, HostVeth, Ipv6Prefix, PodName, Reason, TableId};
use wire::Report;

use super::evidence::Evidence;
use super::words::{plain, word};
use crate::config::distance;
use crate::host::HostRecord;

/// Names that are told when the one asked for is not there.
const NEAREST: usize = 5;

/// Why nothing can be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexplained(pub String);

/// The pod that has this address, or this name; its namespace is `default` when none is given.
///
/// # Errors
/// When nobody knows it: which names come near.
pub fn pod(evidence: &Evidence, name: &str) -> Result<String, Unexplained> {
    let asked = match name.parse() {
        Ok(address) => evidence.holder(address).map(|owner| owner.pod.clone()).ok_or_else(|| {
            Unexplained(unread(evidence).unwrap_or_else(|| format!("no pod holds {address} here")))
        })?,
        Err(_) => {
            let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
            PodName { namespace: namespace.to_owned(), name: name.to_owned() }
        }
    };
    let owned: Vec<&(Owner, Ipv4Addr)> =
        evidence.saved.owners.iter().filter(|(owner, _)| owner.pod == asked).collect();
    let mut out = String::new();
    let told = owned
        .iter()
        .try_for_each(|(owner, address)| Explained::new(evidence, owner, *address).write(&mut out));
    let told = told.and_then(|()| waiting(&mut out, evidence, &asked));
    // Writing to a String cannot fail.
    debug_assert!(told.is_ok(), "a String takes everything");
    if out.is_empty() { Err(Unexplained(unknown(evidence, &asked))) } else { Ok(plain(&out)) }
}

/// The nftables tables that the daemon wants, as a script that `nft -f` takes, in the place of those that are there.
///
/// # Errors
/// When the daemon has not told what it wants, or the primary ENI has no link.
pub fn nftables(evidence: &Evidence) -> Result<String, Unexplained> {
    let unexplained = |why: &str| Unexplained(why.to_owned());
    let record = evidence.saved.record.as_ref();
    let record = record
        .ok_or_else(|| unexplained("what the daemon wants is not known: it has not been ready here yet"))?;
    let host = evidence.live.host.seen().ok_or_else(|| unexplained("the links of the host are not known"))?;
    let spec = record.nat_spec(&host.by_mac()).map_err(|error| Unexplained(error.to_string()))?;
    let spec = spec.ok_or_else(|| unexplained("the primary ENI has no link"))?;
    let anew = |family: &str, ruleset: Ruleset| {
        format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n{ruleset}")
    };
    let ipv6 = record.egress_spec().map(|spec| anew("ip6", egress_ruleset(&spec))).unwrap_or_default();
    Ok(anew("ip", ruleset(&spec)) + &ipv6)
}

/// Why a pod has no address yet, and the numbers.
fn waiting(out: &mut String, evidence: &Evidence, asked: &PodName) -> fmt::Result {
    let Some(report) = evidence.live.daemon.seen() else { return Ok(()) };
    for waiting in report.waiting.iter().filter(|waiting| waiting.pod == *asked) {
        let waited = report.now.since(waiting.since).as_secs();
        let for_branch = matches!(waiting.reason, Reason::NoBranchEni | Reason::NoTrunk);
        let unknown = waiting.reason == Reason::NoPodObject;
        let what = match (for_branch, unknown) {
            (true, _) => "its branch ENI",
            (false, true) => "its object, which says whether it has a branch ENI,",
            (false, false) => "an address",
        };
        writeln!(out, "{asked} waits for {what} since {waited} s: {}", waiting.reason)?;
        if !for_branch && !unknown {
            numbers(out, report)?;
        } else {
            report.cluster.iter().try_for_each(|line| writeln!(out, "  cluster    {line}"))?;
        }
    }
    Ok(())
}

fn numbers(out: &mut String, report: &Report) -> fmt::Result {
    let counts = report.addresses;
    writeln!(
        out,
        "  addresses  {} free, {} reserved, {} assigned, {} cooling, of {} possible",
        counts.free, counts.reserved, counts.assigned, counts.cooling, report.capacity
    )?;
    for eni in &report.enis {
        let (id, subnet, counts) = (&eni.id, &eni.subnet, eni.addresses);
        let excluded = eni.excluded.as_ref().map(|why| format!("  ({why})")).unwrap_or_default();
        writeln!(out, "  {id} in {subnet}: {} addresses, {} free{excluded}", counts.total(), counts.free)?;
    }
    report.plan.iter().try_for_each(|line| writeln!(out, "  plan       {line}"))?;
    report.cloud.iter().try_for_each(|line| writeln!(out, "  EC2        {line}"))
}

/// Why it is not known who holds which address, if it is not.
fn unread(evidence: &Evidence) -> Option<String> {
    let troubles = || evidence.saved.troubles.join("; ");
    evidence
        .saved
        .unread
        .then(|| plain(&format!("it cannot be read who holds which address: {}", troubles())))
}

fn unknown(evidence: &Evidence, asked: &PodName) -> String {
    if let Some(why) = unread(evidence) {
        return why;
    }
    let asked = asked.to_string();
    let waiting = evidence.live.daemon.seen().into_iter().flat_map(|report| &report.waiting).map(|w| &w.pod);
    let known = evidence.saved.owners.iter().map(|(owner, _)| &owner.pod).chain(waiting);
    let mut names: Vec<String> = known.map(ToString::to_string).collect();
    names.sort_by_cached_key(|name| (distance(name, &asked), name.clone()));
    names.dedup();
    names.truncate(NEAREST);
    let near = match names.is_empty() {
        true => ", nor does any other".to_owned(),
        false => format!("; near it: {}", names.join(", ")),
    };
    let troubles = evidence.saved.troubles.iter().map(|trouble| format!("; cannot read {trouble}"));
    plain(&format!("no pod {asked} holds an address here{near}{}", troubles.collect::<String>()))
}

/// A pod and what belongs to it.
#[derive(Debug)]
struct Explained<'a> {
    evidence: &'a Evidence,
    owner: &'a Owner,
    address: Ipv4Addr,
    record: Option<&'a HostRecord>,
    eni: Option<&'a EniSpec>,
    host: Option<&'a HostSeen>,
    /// The ENI's link.
    link: Option<LinkSeen>,
}

/// Whether a rule is for what comes of an IPv6 prefix.
fn of_prefix(rule: &Rule, prefix: Ipv6Prefix) -> bool {
    matches!(rule.selector, Selector::Within(range) if range.contains(prefix.first()))
}

impl<'a> Explained<'a> {
    fn new(evidence: &'a Evidence, owner: &'a Owner, address: Ipv4Addr) -> Self {
        let record = evidence.saved.record.as_ref();
        let enis = record.map(|record| record.wish.node.enis.as_slice()).unwrap_or_default();
        let has = |eni: &&EniSpec| eni.sources.iter().any(|source| source.contains(address));
        let (eni, host) = (enis.iter().find(has), evidence.live.host.seen());
        let link = eni.zip(host).and_then(|(eni, host)| host.by_mac().remove(&eni.mac));
        Self { evidence, owner, address, record, eni, host, link }
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Owner { sandbox, pod, since, ipv6, .. } = self.owner;
        writeln!(out, "{pod}")?;
        let held = self.evidence.live.taken.since(*since).as_secs();
        let held = if self.evidence.live.taken.0 == 0 { String::new() } else { format!(", for {held} s") };
        let (id, network) = (sandbox.container_id(), sandbox.network_name());
        writeln!(out, "  sandbox    {id}, {} of network {network}{held}", sandbox.if_name())?;
        self.address_and_eni(out)?;
        if let Some(ipv6) = ipv6 {
            let whose = match (self.eni_of_ipv6(), self.record.and_then(|record| record.wish.ipv6_egress)) {
                (Some((eni, id)), _) => {
                    format!("of {id}'s /80; its packets leave by rule 1536 -> table {}", eni.table())
                }
                (None, Some(node)) => {
                    format!("means something on this node only; the node makes the source {node}")
                }
                (None, None) if self.record.is_some() && node::families::is_stand_in(self.address) => {
                    "of a /80 that no ENI here has: nothing comes back to it".to_owned()
                }
                (None, None) => format!(
                    "the primary ENI's /80 with {} at its end; its packets leave by the main table",
                    self.address
                ),
            };
            writeln!(out, "  IPv6       {ipv6}: {whose}")?;
        }
        self.host_link(out)?;
        if let Some(branch) = &self.owner.branch {
            return self.branch(out, branch);
        }
        if let Some(record) = self.record {
            self.rules(out, record)?;
            self.ways(out, record)?;
        }
        Ok(())
    }

    /// The ENI of a further network card whose prefix its IPv6 address is of.
    fn eni_of_ipv6(&self) -> Option<(&'a EniSpec, &'a EniId)> {
        let (record, prefix) = (self.record?, Ipv6Prefix::of(self.owner.ipv6?));
        let eni = record.wish.node.enis.iter().find(|eni| eni.ipv6.contains(&prefix))?;
        Some((eni, record.wish.ids.get(&eni.mac)?))
    }

    /// How a pod with a branch ENI is reached and leaves.
    fn branch(&self, out: &mut String, branch: &Branch) -> fmt::Result {
        let (link, table, host_if) = (branch.eni.vlan.link(), branch.eni.vlan.table(), &self.owner.host_if);
        let spec = self.record.map(|record| record.families.pod_spec(self.owner, self.address, 0));
        let seen = spec.as_ref().zip(self.host);
        let lacks = seen.map(|(spec, host)| branch_lacks(spec, host)).unwrap_or_default();
        let lacks_one = |of: fn(&BranchLack) -> bool| lacks.iter().any(of);
        let there = match seen {
            None => "  (not looked at)",
            Some(_) if lacks_one(|lack| *lack == BranchLack::Link) => "  NOT IN THE KERNEL",
            Some(_) if lacks_one(|lack| *lack == BranchLack::OtherLink) => "  ANOTHER BRANCH ENI'S",
            Some(_) if lacks_one(|lack| *lack == BranchLack::Down) => "  DOWN",
            Some(_) => "",
        };
        let trunk = match self.host.map(|host| host.by_mac().remove(&branch.trunk)) {
            Some(Some(link)) => format!(", which is {}", word(&link.name)),
            Some(None) => ", WHICH HAS NO LINK".to_owned(),
            None => String::new(),
        };
        let gateways: Vec<String> = branch.eni.gateways().iter().map(ToString::to_string).collect();
        writeln!(out, "\n  ways")?;
        writeln!(
            out,
            "    VLAN link  {link}, MAC address {}, on the trunk {}{trunk}{there}    $ ip -d link show {link}",
            branch.eni.mac, branch.trunk
        )?;
        for (family, rule) in spec.iter().flat_map(branch_rules) {
            let missing = lacks.contains(&BranchLack::Rule(family, rule.clone()));
            let there = if missing { "  MISSING: its packets go past its security groups" } else { "" };
            writeln!(out, "    rule       {rule}{there}")?;
        }
        for lack in &lacks {
            if let BranchLack::Route(route) = lack {
                writeln!(out, "    route      to {} MISSING in table {table}", route.destination)?;
            }
            if let BranchLack::Refusal(family) = lack {
                let past = "what its routes do not lead out goes past its security groups";
                writeln!(
                    out,
                    "    route      ip{} unreachable default MISSING in table {table}: {past}",
                    family.option()
                )?;
            }
        }
        let by = gateways.join(" and ");
        match branch.is_strict() {
            true => writeln!(
                out,
                "    everywhere, also to this node: {host_if} -> rule 10 by that link -> table {table} -> {by} by {link}; nothing is translated\n      $ ip rule show pref 10; ip route show table {table}"
            )?,
            false => writeln!(
                out,
                "    to the VPC: {host_if} -> rule 1536 by the pod's address -> table {table} -> {by} by {link}; all else as other pods\n      $ ip rule show pref 1536; ip route show table {table}"
            )?,
        }
        let lookup = if branch.is_strict() {
            format!("rule 10 -> table {table}")
        } else {
            format!("rule 512 -> table {}", TableId::PODS)
        };
        writeln!(out, "    to the pod: EC2 brings what is for it to {link} -> {lookup} -> {host_if}")
    }

    fn address_and_eni(&self, out: &mut String) -> fmt::Result {
        let address = self.address;
        if let Some(branch) = &self.owner.branch {
            let addresses: Vec<String> = branch.eni.addresses().iter().map(ToString::to_string).collect();
            let mode = if branch.is_strict() { "strict" } else { "standard" };
            let of = format!("of the branch ENI {}, which is the VPC resource controller's", branch.eni);
            return writeln!(out, "  address    {}, {of} ({mode})", addresses.join(" and "));
        }
        let Some(record) = self.record else {
            return writeln!(
                out,
                "  address    {address}, by the state file; of which ENI is not known: the daemon has not told what it wants"
            );
        };
        if !record.families.has_ipv4_of_vpc() {
            let what = match record.families.range_of_node().is_some_and(|range| range.contains(address)) {
                true => "which means something on this node only",
                false => "which stands for its IPv6 address in the books",
            };
            return writeln!(out, "  address    {address}, {what}");
        }
        let Some(eni) = self.eni else {
            return writeln!(
                out,
                "  address    {address}, of no ENI that the daemon has: nothing comes back to it"
            );
        };
        let id = record.wish.ids.get(&eni.mac).map(ToString::to_string).unwrap_or_default();
        let source =
            eni.sources.iter().filter(|source| source.contains(address)).max_by_key(|source| source.prefix());
        match source.filter(|source| source.prefix() < 32) {
            Some(prefix) => writeln!(out, "  address    {address}, of the prefix {prefix} of {id}")?,
            None => writeln!(out, "  address    {address}, a secondary address of {id}")?,
        }
        let kind = if eni.is_primary() { "the primary ENI" } else { "a secondary ENI" };
        writeln!(
            out,
            "  ENI        {id}, {kind}: card {}, device {}, {}, in subnet {}",
            eni.card, eni.device, eni.primary_address, eni.subnet
        )?;
        let link = self.eni_link();
        writeln!(out, "  its link   {link}, by MAC address {}    $ ip link show {link}", eni.mac)?;
        let table = eni.table();
        let from = match (eni.card.0, eni.device.0) {
            (0, 0) => "the primary ENI's".to_owned(),
            (0, device) => format!("device {device} + 1"),
            (card, device) => format!("10000 + 100 x card {card} + device {device}"),
        };
        writeln!(out, "  table      {table}, {from}    $ ip route show table {table}")?;
        match record.wish.node.marks.of_eni(eni.card, eni.device).ok().filter(|_| !eni.is_primary()) {
            Some(mark) => {
                let set =
                    if source.is_some_and(|source| source.prefix() < 32) { "eni_of_range" } else { "eni_of" };
                let mask = record.wish.node.marks.steering_mask;
                writeln!(
                    out,
                    "  mark       {mark:#x}/{mask:#x}: 16 x card + device, shifted into the mask    $ nft get element ip {TABLE} {set} '{{ {address} }}'"
                )
            }
            None => writeln!(out, "  mark       none: packets of the primary ENI's pods are not steered"),
        }
    }

    fn eni_link(&self) -> String {
        self.link.as_ref().map_or_else(|| "a link that is not known".to_owned(), |link| word(&link.name))
    }

    fn host_link(&self, out: &mut String) -> fmt::Result {
        let Owner { pod, host_if, .. } = self.owner;
        let text = format!("{}.{}", pod.namespace, pod.name);
        let prefix = host_if.prefix().filter(|prefix| HostVeth::of_pod(prefix, pod, 0) == *host_if);
        let prefix = prefix.map(|prefix| prefix.as_str().to_owned());
        let of_branch = (HostVeth::of_branch(pod) == *host_if).then(|| "vlan".to_owned());
        match prefix.or(of_branch) {
            Some(prefix) => writeln!(
                out,
                "  host link  {host_if}: {}, and the first 11 digits of SHA-1 of \"{text}\"    $ printf %s {} | sha1sum | cut -c1-11",
                prefix,
                word(&text)
            )?,
            None => writeln!(
                out,
                "  host link  {host_if}, not made of this pod's name: of the sandbox's, or of a pod that the kernel alone knew"
            )?,
        }
        let Some(host) = self.host else { return Ok(()) };
        match host.links.iter().find(|link| link.name == host_if.as_str()) {
            Some(link) => writeln!(
                out,
                "             in the kernel: number {}, {}, MTU {}    $ ip link show {host_if}",
                link.index.0,
                if link.up { "up" } else { "DOWN" },
                link.mtu
            )?,
            None => {
                writeln!(out, "             NOT IN THE KERNEL: the pod is gone, or `ipamd doctor` says more")?
            }
        }
        let to = |route: &&datapath::RouteSeen| {
            route.route.table == TableId::PODS && route.route.destination.ip() == IpAddr::V4(self.address)
        };
        match host.routes.iter().find(to) {
            Some(_) => writeln!(
                out,
                "  route      {} in table {}, to that link    $ ip route show table {}",
                self.address,
                TableId::PODS,
                TableId::PODS
            ),
            None if self.owner.branch.as_ref().is_some_and(Branch::is_strict) => Ok(()),
            None if self.record.is_some_and(|record| record.families.has_ipv4_of_vpc()) => {
                writeln!(out, "  route      MISSING in table {}: nothing reaches the pod", TableId::PODS)
            }
            None => Ok(()),
        }
    }

    /// The rules that a packet of this pod can meet, in order.
    fn rules(&self, out: &mut String, record: &HostRecord) -> fmt::Result {
        writeln!(out, "\n  rules, in the order in which its packets meet them    $ ip rule")?;
        // Without the kernel every ENI is taken to have its link.
        let links = match self.host {
            Some(host) => host.by_mac(),
            None => record.wish.node.enis.iter().map(|eni| (eni.mac, supposed_link(eni))).collect(),
        };
        let Ok(state) = desired::node(&record.wish.node, &links) else { return Ok(()) };
        let own_table = self.eni.map(EniSpec::table);
        let prefix = self.owner.ipv6.map(Ipv6Prefix::of);
        let concerns = |rule: &&Rule| match rule.priority {
            RulePriority::Pods
            | RulePriority::Connmark
            | RulePriority::ExternalServices
            | RulePriority::Local
            | RulePriority::Main => true,
            RulePriority::Steering => match rule.family {
                Family::V4 => Some(rule.table) == own_table,
                Family::V6 => prefix.is_some_and(|prefix| of_prefix(rule, prefix)),
            },
            RulePriority::FromEni | RulePriority::First => false,
        };
        for rule in state.rules.keys().filter(concerns) {
            let why = match rule.priority {
                RulePriority::Pods => "is it for a pod of this node?",
                RulePriority::Connmark => "its connection came or left by the primary ENI",
                RulePriority::ExternalServices => "an external service goes by the main table for every pod",
                RulePriority::Steering if rule.family == Family::V6 => "it is from its ENI's prefix",
                RulePriority::Steering => "its mark says that it leaves by its own ENI",
                RulePriority::FromEni | RulePriority::First => "",
                RulePriority::Local => "is it for the node itself? (after the rules of branch ENIs)",
                RulePriority::Main => "everything else",
            };
            let there = match self.host {
                Some(host) if host.rules.iter().any(|seen| seen.ours == Some(*rule)) => "",
                Some(_) => "  MISSING",
                None => "  (not looked at)",
            };
            let ipv6 = if rule.family == Family::V6 { " (IPv6)" } else { "" };
            writeln!(out, "    {rule}{ipv6}    {why}{there}")?;
        }
        Ok(())
    }

    fn ways(&self, out: &mut String, record: &HostRecord) -> fmt::Result {
        let Owner { host_if, .. } = self.owner;
        let address = self.address;
        let primary = record.wish.primary_address;
        writeln!(out, "\n  ways")?;
        writeln!(
            out,
            "    to a pod of this node: {host_if} -> rule 512 -> table {}, one route per pod -> its link; nothing is translated",
            TableId::PODS
        )?;
        writeln!(out, "      $ ip route get OTHER-POD from {address} iif {host_if}")?;
        if !record.families.has_ipv4_of_vpc() {
            return self.ways_of_local(out, record);
        }
        let ranges: Vec<String> = record.wish.no_snat.iter().map(ToString::to_string).collect();
        let (ranges, link) = (ranges.join(" "), self.eni_link());
        match self.eni.filter(|eni| !eni.is_primary()) {
            Some(eni) => {
                let mark = record.wish.node.marks.of_eni(eni.card, eni.device).unwrap_or_default();
                let (table, gateway) = (eni.table(), desired::gateway(eni.subnet));
                writeln!(
                    out,
                    "    to the VPC ({ranges}): {host_if} -> mark {mark:#x} by nftables -> rule 1536 -> table {table} -> {gateway} by {link}; the source stays {address}"
                )?;
                writeln!(out, "      $ ip route get {gateway} from {address} iif {host_if} mark {mark:#x}")?;
            }
            None => {
                writeln!(
                    out,
                    "    to the VPC ({ranges}): {host_if} -> main table -> the primary ENI {link}; the source stays {address}"
                )?;
                writeln!(out, "      $ ip route get VPC-HOST from {address} iif {host_if}")?;
            }
        }
        match record.nat.snat {
            Some(_) => {
                let connmark = record.wish.node.marks.connmark;
                writeln!(
                    out,
                    "    to anywhere else: {host_if} -> connection mark {connmark:#x} -> rule 1024 -> main table -> the primary ENI; the node makes the source {primary} (chain source_nat)"
                )?;
                writeln!(
                    out,
                    "      $ ip route get 192.0.2.1 from {address} iif {host_if} mark {connmark:#x}; nft list chain ip {TABLE} source_nat"
                )?;
            }
            None => writeln!(
                out,
                "    to anywhere else: as to the VPC; the source stays {address}, and a gateway of the VPC translates it"
            )?,
        }
        writeln!(
            out,
            "    to the pod: EC2 brings what is for {address} to {link} -> rule 512 -> table {} -> {host_if}",
            TableId::PODS
        )?;
        writeln!(out, "      $ ip route get {address}")
    }

    fn ways_of_local(&self, out: &mut String, record: &HostRecord) -> fmt::Result {
        let ipv6 = self.owner.ipv6.map(|ipv6| ipv6.to_string()).unwrap_or_default();
        if let Some((eni, id)) = self.eni_of_ipv6() {
            writeln!(
                out,
                "    to anywhere by IPv6: from {ipv6} by rule 1536 -> table {} -> {id}; nothing is translated",
                eni.table()
            )?;
            return writeln!(
                out,
                "    to the pod: what is for {ipv6} comes by {id} -> rule 512 -> table {} -> {}",
                TableId::PODS,
                self.owner.host_if
            );
        }
        writeln!(
            out,
            "    to anywhere by IPv6: from {ipv6} by the main table and the primary ENI; nothing is translated"
        )?;
        if record.nat.snat.is_some() && record.wish.local.is_some() {
            let primary = record.wish.primary_address;
            writeln!(
                out,
                "    to anywhere by IPv4: by the main table; the node makes the source {primary} (chain source_nat)"
            )?;
        }
        writeln!(
            out,
            "    to the pod: what is for {ipv6} comes by the primary ENI -> rule 512 -> table {} -> {}",
            TableId::PODS,
            self.owner.host_if
        )
    }
}

fn supposed_link(eni: &EniSpec) -> LinkSeen {
    let index = datapath::IfIndex(u32::from(eni.card.0) * 256 + u32::from(eni.device.0) + 1);
    LinkSeen { index, name: String::new(), mac: Some(eni.mac), mtu: eni.mtu, up: true, peer: None, group: 0 }
}

#[cfg(test)]
mod tests {
    use types::{Moment, Reason};

    use super::super::evidence::{Live, Look, Saved};
    use super::super::judge::tests::{PODS, owner, well};
    use super::*;

    #[test]
    fn a_pod_of_a_secondary_eni_is_told_with_its_table_mark_and_rules() {
        let text = pod(&well(), "default/db").unwrap();

        for word in [
            "10.0.0.40",
            "device 1",
            "ens6",
            "table      2",
            "0x100/0x3f00",
            "pref 1536 fwmark 0x100/0x3f00 lookup 2",
        ] {
            assert!(text.contains(word), "no {word} in\n{text}");
        }
        assert!(!text.contains("MISSING"), "{text}");
    }

    #[test]
    fn a_pod_of_the_primary_eni_is_not_steered() {
        let text = pod(&well(), "web").unwrap();

        assert!(text.contains("table      main") && text.contains("mark       none"), "{text}");
        assert!(!text.contains("pref 1536"), "{text}");
    }

    #[test]
    fn the_state_alone_tells_all_but_what_the_kernel_holds() {
        let mut evidence = well();
        evidence.live = Live::default();

        let text = pod(&evidence, "default/db").unwrap();

        assert!(text.contains("0x100/0x3f00") && text.contains("(not looked at)"), "{text}");
        evidence.saved.record = None;
        let text = pod(&evidence, "default/db").unwrap();
        assert!(text.contains("10.0.0.40, by the state file"), "{text}");
    }

    #[test]
    fn what_the_kernel_lacks_is_told() {
        let mut evidence = well();
        evidence.live.host = Look::Seen(HostSeen::default());

        let text = pod(&evidence, "default/db").unwrap();

        assert!(text.contains("MISSING in table 51200") && text.contains("NOT IN THE KERNEL"), "{text}");
    }

    #[test]
    fn a_pod_that_waits_is_told_with_its_reason_and_the_numbers() {
        let mut evidence = well();
        let mut report = crate::status::blank(Moment(9_000));
        report.waiting.push(wire::Waiting {
            pod: owner("late").pod,
            since: Moment(0),
            reason: Reason::ALL[0],
            card: types::NetworkCard(0),
        });
        evidence.live.daemon = Look::Seen(Box::new(report));

        let text = pod(&evidence, "default/late").unwrap();

        assert!(text.contains("since 9 s") && text.contains(Reason::ALL[0].word()), "{text}");
        assert!(text.contains("0 free, 0 reserved"), "{text}");
    }

    #[test]
    fn a_pod_is_known_by_its_address_too() {
        assert_eq!(pod(&well(), "10.0.0.40").unwrap(), pod(&well(), "default/db").unwrap());
        assert_eq!(pod(&well(), "10.0.0.5").unwrap_err().0, "no pod holds 10.0.0.5 here");
    }

    #[test]
    fn where_the_state_cannot_be_read_nobody_says_that_there_is_no_such_pod() {
        let mut evidence = well();
        evidence.saved =
            Saved { unread: true, troubles: vec!["/run/x: not there".to_owned()], ..Saved::default() };

        for asked in ["web", "10.0.0.40"] {
            let Unexplained(why) = pod(&evidence, asked).unwrap_err();
            assert_eq!(why, "it cannot be read who holds which address: /run/x: not there");
        }
    }

    #[test]
    fn a_name_that_nobody_has_is_answered_with_those_that_come_near() {
        let Unexplained(why) = pod(&well(), "default/wep").unwrap_err();

        assert!(why.contains("near it: default/web, "), "{why}");
        assert!(pod(&well(), "\u{1b}[2J").unwrap_err().0.contains('\u{fffd}'));
    }

    #[test]
    fn the_nftables_script_replaces_the_table() {
        let script = nftables(&well()).unwrap();

        assert!(
            script.starts_with("add table ip aws-vpc-cni\ndelete table ip aws-vpc-cni\ntable ip"),
            "{script}"
        );
        assert!(script.contains(&PODS[1].1.to_string()), "{script}");
    }
}
