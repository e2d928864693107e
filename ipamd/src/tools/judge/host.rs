//! What the host's kernel holds, beside what the daemon wants it to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath::netfilter::TABLE;
use datapath::{
    HostSeen, IfIndex, KernelState, LinkState, Maker, Op, PodSpec, Route, RouteSeen, Rule, RuleSeen, Sysctl,
    desired, diff,
};
use types::{HostVeth, TableId, VethPrefix};

use super::super::evidence::{Evidence, Ipv6Table, Nftables};
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::word;
use crate::host::HostRecord;

/// Most steps of nftables that are told.
const STEPS_MAX: usize = 12;
/// Routes and rules by others where ours are.
const OUR_PRIORITIES: [u32; 3] = [512, 1024, 1536];

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    let Some(host) = super::seen(verdict, "the kernel", &evidence.live.host) else { return };
    let nftables = super::seen(verdict, "nftables", &evidence.live.nftables);
    // Without the owners, what living pods need looks like what nobody needs any more.
    let knows_owners = evidence.saved.knows_owners();
    if knows_owners {
        others(evidence, host, verdict);
        nftables.iter().for_each(|nftables| go_chains(nftables, verdict));
    } else {
        let what = "the kernel's routes and rules: who holds which address could not be read";
        verdict.skipped.push(what.to_owned());
    }
    if let Some(tables) = super::seen(verdict, "iptables-legacy", &evidence.live.legacy) {
        tables.iter().for_each(|table| verdict.findings.push(legacy(table)));
    }
    let Some(record) = &evidence.saved.record else {
        let why = "what the daemon wants is not known: it has not been ready here yet";
        let not_yet_told = knows_owners.then(|| format!("the kernel's routes and rules: {why}"));
        verdict.skipped.extend(not_yet_told);
        return;
    };
    if knows_owners && !routes_and_rules(evidence, record, host, verdict) {
        return;
    }
    eni_links(record, host, verdict);
    sysctls(evidence, record, host, verdict);
    if let Some(nftables) = nftables {
        table(evidence, nftables, verdict);
        ipv6_table(evidence, nftables, verdict);
    }
}

/// Compares them with what is wanted. False when what is wanted cannot be said.
fn routes_and_rules(
    evidence: &Evidence,
    record: &HostRecord,
    host: &HostSeen,
    verdict: &mut Verdict,
) -> bool {
    let pods = pod_specs(evidence, record);
    let want = match desired::host(&record.wish.node, &pods, host) {
        Ok(want) => want,
        Err(error) => {
            verdict.failed.push(format!("what the daemon wants: {error}"));
            return false;
        }
    };
    let have = host.ours(&record.wish.node, true);
    verdict.compared.push(format!(
        "the kernel: {} routes and {} rules of ours on {} links",
        have.routes.len(),
        have.rules.len(),
        host.links.len()
    ));
    let names = host.names().into_iter().map(|(index, name)| (index, word(&name))).collect();
    let missing = Difference { evidence, names, want: &want, have: &have }.tell(verdict);
    foreign_pod_routes(host, &missing, verdict);
    true
}

/// What the state's pods should have in the kernel.
pub(in super::super) fn pod_specs(evidence: &Evidence, record: &HostRecord) -> Vec<PodSpec> {
    let owners = evidence.saved.owners.iter();
    // The MTU of a pod's link is no matter here.
    owners.map(|(owner, address)| record.families.pod_spec(owner, *address, 0)).collect()
}

/// What is wanted beside what is there.
#[derive(Debug)]
struct Difference<'a> {
    evidence: &'a Evidence,
    names: BTreeMap<IfIndex, String>,
    want: &'a KernelState,
    have: &'a KernelState,
}

impl Difference<'_> {
    /// Tells what it would take; returns where routes of pods are missing.
    fn tell(&self, verdict: &mut Verdict) -> BTreeSet<IpAddr> {
        let mut missing = BTreeSet::new();
        for op in diff(self.want, self.have) {
            if let Op::AddRoute(route) = &op
                && route.table == TableId::PODS
            {
                missing.insert(route.destination.ip());
            }
            verdict.findings.push(self.finding(&op).repair(op.command(&self.names)));
        }
        missing
    }

    fn name(&self, link: IfIndex) -> String {
        self.names.get(&link).cloned().unwrap_or_else(|| format!("if{}", link.0))
    }

    fn finding(&self, op: &Op) -> Finding {
        match op {
            Op::SetLink { link, mtu } => {
                let name = self.name(*link);
                let LinkState { mtu: now, up } =
                    self.have.links.get(link).copied().unwrap_or(LinkState { mtu: 0, up: false });
                let state = if up { "up" } else { "down" };
                let what = format!("{name} is {state} with MTU {now}, and should be up with {mtu}");
                Finding::new(Code::EniLinkOff, what).seen(format!("ip link show {name}"))
            }
            Op::AddAddress(address) => {
                let name = self.name(address.link);
                let what = format!("{} is not on {name}", address.address);
                Finding::new(Code::EniAddressMissing, what).seen(format!("ip addr show {name}"))
            }
            Op::DelAddress(address) => {
                let name = self.name(address.link);
                let what = format!("{} is on {name}, whose own it is not", address.address);
                Finding::new(Code::EniAddressExtra, what).seen(format!("ip addr show {name}"))
            }
            Op::AddRoute(route) => self.missing_route(route),
            Op::DelRoute(route) => extra_route(route, &self.name(route.link)),
            Op::AddRule(rule) => {
                let what = format!("there is no rule `{rule}`");
                Finding::new(Code::RuleMissing, what).seen(shown_rule(rule))
            }
            Op::DelRule(rule) => {
                let copies = self.have.rules.get(rule).copied().unwrap_or_default();
                let what = match self.want.rules.contains_key(rule) {
                    true => format!("the rule `{rule}` is there {copies} times"),
                    false => format!("the rule `{rule}` is of ours, and the daemon does not want it"),
                };
                Finding::new(Code::RuleExtra, what).seen(shown_rule(rule))
            }
        }
    }

    fn missing_route(&self, route: &Route) -> Finding {
        let link = self.name(route.link);
        if route.table != TableId::PODS {
            let what = format!("table {} has no route to {} by {link}", route.table, route.destination);
            return Finding::new(Code::RouteMissing, what).seen(shown(route));
        }
        let address = route.destination.ip();
        let holder = self.evidence.holder(address);
        let pod = holder.map_or_else(|| "a pod".to_owned(), |owner| owner.pod.to_string());
        let what = format!("{address} of {pod} is not routed to {link}: nothing reaches the pod");
        let seen = format!("{}: no such route of ours", shown(route));
        let finding = Finding::new(Code::PodRouteMissing, what).seen(seen);
        match holder {
            Some(owner) => finding.seen(format!("the state: sandbox {} holds it", owner.sandbox)),
            None => finding,
        }
    }
}

fn shown_rule(rule: &Rule) -> String {
    format!("ip{} rule show pref {}", rule.family.option(), rule.priority.number())
}

fn shown(route: &Route) -> String {
    let family = route.family().option();
    format!("ip{family} route show table {} {}", route.table, route.destination)
}

fn extra_route(route: &Route, link: &str) -> Finding {
    match route.table {
        TableId::PODS => {
            let what = format!("{} is routed to {link}, of which nobody holds it", route.destination.ip());
            Finding::new(Code::PodRouteExtra, what).seen(shown(route))
        }
        TableId::MAIN => {
            let what = format!(
                "the main table leads to {} by {link}, so the node answers from a wrong ENI",
                route.destination
            );
            Finding::new(Code::RouteExtra, what).seen(shown(route))
        }
        table => {
            let what = format!(
                "table {table} has a route of ours to {} by {link} that should not be there",
                route.destination
            );
            Finding::new(Code::RouteExtra, what).seen(shown(route))
        }
    }
}

fn foreign_pod_routes(host: &HostSeen, missing: &BTreeSet<IpAddr>, verdict: &mut Verdict) {
    let names = host.names();
    for RouteSeen { maker, route } in &host.routes {
        // One that stands in the place of ours goes when that is put back.
        if route.table != TableId::PODS || *maker == Maker::We || missing.contains(&route.destination.ip()) {
            continue;
        }
        let link = names.get(&route.link).map_or_else(|| "none".to_owned(), |name| word(name));
        let (table, family) = (route.table, route.family().option());
        let what =
            format!("somebody has put a route to {} by {link} into the pods' table", route.destination);
        let command = format!("ip{family} route del {} dev {link} table {table}", route.destination);
        verdict.findings.push(Finding::new(Code::PodRouteForeign, what).seen(shown(route)).repair(command));
    }
}

fn eni_links(record: &HostRecord, host: &HostSeen, verdict: &mut Verdict) {
    let links = host.by_mac();
    for eni in record.wish.node.enis.iter().filter(|eni| !links.contains_key(&eni.mac)) {
        let id = record.wish.ids.get(&eni.mac).map(ToString::to_string).unwrap_or_default();
        let what = format!("ENI {id} at card {}, device {} has no link", eni.card, eni.device);
        let finding = Finding::new(Code::EniLinkMissing, what);
        let finding = finding.seen(format!("no link has its MAC address {}", eni.mac));
        verdict.findings.push(finding.advice(
            "it comes within seconds of being attached; if not, see whether EC2 still has it attached (ipamd doctor --cloud) and whether somebody has moved the link into another network namespace; `echo 1 >/sys/bus/pci/rescan` has the kernel look again",
        ));
    }
}

fn sysctls(evidence: &Evidence, record: &HostRecord, host: &HostSeen, verdict: &mut Verdict) {
    let value = |path: &str| evidence.live.sysctls.get(path).map(String::as_str);
    for Sysctl { path, value: want } in desired::sysctls(&record.wish.node, &host.by_mac()) {
        let Some(have) = value(&path).filter(|have| *have != want) else { continue };
        let (code, what) = match path.as_str() {
            "net/ipv4/ip_forward" => {
                (Code::IpForwardOff, "the kernel does not forward: no pod reaches anything".to_owned())
            }
            path if path.ends_with("/rp_filter") => {
                // The kernel takes the larger of the two.
                let strictest = value("net/ipv4/conf/all/rp_filter").into_iter().chain([have]).max();
                if strictest != Some("1") {
                    continue;
                }
                let link = path.split('/').nth(3).unwrap_or_default();
                (
                    Code::RpFilterStrict,
                    format!("the reverse path check of {link} is strict: it drops what comes for pods"),
                )
            }
            path => (Code::SysctlDiffers, format!("{path} is {have}, not {want}")),
        };
        let command = format!("sysctl -w {}", word(&format!("{path}={want}")));
        verdict.findings.push(Finding::new(code, what).seen(format!("{path} is {have}")).repair(command));
    }
}

fn table(evidence: &Evidence, nftables: &Nftables, verdict: &mut Verdict) {
    let Some(steps) = &nftables.differences else { return };
    verdict.compared.push(format!("nftables: table ip {TABLE}"));
    if steps.is_empty() {
        return;
    }
    let finding = match &nftables.table {
        None => {
            let what = format!(
                "the nftables table {TABLE} is not there: pods of secondary ENIs leave by the wrong one, and nothing is translated"
            );
            Finding::new(Code::NftablesMissing, what).seen(format!("nft list table ip {TABLE}"))
        }
        Some(_) => differs(&format!("the nftables table {TABLE}"), steps),
    };
    verdict.findings.push(finding.repair(mending(evidence)));
}

/// The table by which pods with IPv4 addresses reach IPv6, where there should be one.
fn ipv6_table(evidence: &Evidence, nftables: &Nftables, verdict: &mut Verdict) {
    let Some(Ipv6Table { is_there, differences }) = &nftables.ipv6 else { return };
    verdict.compared.push(format!("nftables: table ip6 {TABLE}"));
    if differences.is_empty() {
        return;
    }
    let table = format!("the nftables table ip6 {TABLE}");
    let finding = if *is_there {
        differs(&table, differences)
    } else {
        let what = format!("{table} is not there: pods do not reach IPv6, and nobody keeps others from them");
        Finding::new(Code::NftablesMissing, what).seen(format!("nft list table ip6 {TABLE}"))
    };
    verdict.findings.push(finding.repair(mending(evidence)));
}

/// The command that puts our tables in place.
fn mending(evidence: &Evidence) -> String {
    format!("ipamd explain nftables{} | nft -f -", evidence.run_dir_option())
}

fn differs(table: &str, steps: &[String]) -> Finding {
    let told = steps.iter().take(STEPS_MAX).cloned();
    let finding = told.fold(
        Finding::new(Code::NftablesDiffers, format!("{table} is not what was written")),
        |finding, step| finding.seen(format!("it takes: {step}")),
    );
    match steps.len().checked_sub(STEPS_MAX) {
        None | Some(0) => finding,
        Some(more) => finding.seen(format!("and {more} more steps")),
    }
}

/// Rules and routes that the Go version makes, and others' rules among ours.
fn others(evidence: &Evidence, host: &HostSeen, verdict: &mut Verdict) {
    let branches = evidence.saved.owners.iter().filter_map(|(owner, _)| owner.branch.as_ref());
    let branches: Vec<String> =
        branches.map(|branch| format!(" lookup {}", branch.eni.vlan.table())).collect();
    for rule @ RuleSeen { family, priority, text, ours } in &host.rules {
        let of_branch = branches.iter().any(|lookup| text.ends_with(lookup));
        if ours.is_some() || of_branch || !OUR_PRIORITIES.contains(priority) {
            continue;
        }
        let (code, what) = if is_go_rule(*priority, text) {
            (Code::GoLeftover, format!("a rule of the Go version: `{rule}`"))
        } else {
            (Code::RuleForeign, format!("somebody's rule stands among ours: `{rule}`"))
        };
        let ip = format!("ip{} rule", family.option());
        let finding = Finding::new(code, what).seen(format!("{ip} show pref {priority}"));
        verdict.findings.push(finding.repair(format!("{ip} del {rule}")));
    }
    let pod_links: BTreeMap<IfIndex, &str> = host
        .links
        .iter()
        .filter(|link| is_pod_link(evidence, &link.name))
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    // The kernel makes routes of its own for the links' IPv6 addresses.
    let by_others = |seen: &&RouteSeen| seen.route.table == TableId::MAIN && seen.maker == Maker::Other;
    for RouteSeen { route, .. } in host.routes.iter().filter(by_others) {
        let Some(link) = pod_links.get(&route.link) else { continue };
        let what = format!("a route of the Go version: {} by {link} in the main table", route.destination);
        let command =
            format!("ip{} route del {} dev {}", route.family().option(), route.destination, word(link));
        verdict.findings.push(Finding::new(Code::GoLeftover, what).seen(shown(route)).repair(command));
    }
}

/// The forms of rules that the Go version makes: to a pod, of marked connections, from a pod.
fn is_go_rule(priority: u32, text: &str) -> bool {
    match priority {
        512 => text.starts_with("from all to ") && text.ends_with(" lookup main"),
        1024 => text.starts_with("from all fwmark ") && text.ends_with(" lookup main"),
        _ => text.starts_with("from ") && !text.starts_with("from all") && text.contains(" lookup "),
    }
}

/// Whether a link has a name that only host ends of pods have.
pub(super) fn is_pod_link(evidence: &Evidence, name: &str) -> bool {
    let Some(prefix) = HostVeth::found(name).and_then(|name| name.prefix()) else { return false };
    match &evidence.saved.record {
        Some(record) => record.wish.pod_if_prefixes.contains(&prefix),
        None => prefix == VethPrefix::default(),
    }
}

fn go_chains(nftables: &Nftables, verdict: &mut Verdict) {
    for (table, chain) in &nftables.chains {
        if chain.starts_with("AWS-SNAT-CHAIN") || chain.starts_with("AWS-CONNMARK-CHAIN") {
            let what =
                format!("a chain of the Go version: {chain}; its translation and marks come beside ours");
            let finding = Finding::new(Code::GoLeftover, what)
                .seen(format!("nft list chain ip {} {}", word(table), word(chain)))
                .repair(without_rules("iptables-nft", &word(table)));
            verdict.findings.push(finding);
        }
    }
    if nftables.chains.iter().any(|(table, _)| table == "aws-cni") {
        let finding = Finding::new(Code::GoLeftover, "the Go version's nftables table aws-cni");
        verdict
            .findings
            .push(finding.seen("nft list table ip aws-cni").repair("nft delete table ip aws-cni"));
    }
}

/// Rules of the Go version in a table that only `iptables-legacy` changes.
fn legacy(table: &str) -> Finding {
    let (what, table) = (
        format!(
            "rules of the Go version in the table {table} of iptables-legacy, where nobody but that removes them"
        ),
        word(table),
    );
    Finding::new(Code::GoLeftover, what)
        .seen(format!("iptables-legacy-save -t {table}"))
        .repair(without_rules("iptables-legacy", &table))
}

/// The command that takes the Go version's rules and chains out of a table. It takes them one by one under the table's lock, so that what
/// kube-proxy has there, and writes meanwhile, stays.
fn without_rules(program: &str, table: &str) -> String {
    let rules = r#"sed -n -e '/^:AWS-[A-Z]*-CHAIN-[0-9]/{s/^:\([^ ]*\).*/-X \1/;H;}' -e '/"AWS,\|AWS-[A-Z]*-CHAIN-[0-9]/s/^-A /-D /p' -e '${g;p;}'"#;
    format!(
        "{{ echo '*'{table}; {program}-save -t {table} | {rules}; echo COMMIT; }} | {program}-restore -w --noflush"
    )
}
