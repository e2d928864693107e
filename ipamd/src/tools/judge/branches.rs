//! Pods with a branch ENI: its VLAN, its table and its rules in the kernel, and the trunk.

use std::collections::{BTreeMap, BTreeSet};

use datapath::{BRANCH_PRIORITY, BranchLack, HostSeen, PodSpec, branch_lacks, branch_rules};
use pool::Owner;
use types::{Branch, HostVeth, Mac, TableId, VlanId};

use super::super::evidence::Evidence;
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::word;
use crate::host::HostRecord;

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    let (Some(host), Some(record)) = (evidence.live.host.seen(), &evidence.saved.record) else { return };
    // Without the owners, what living pods need looks like what nobody needs any more.
    if !evidence.saved.knows_owners() {
        return;
    }
    let owners = evidence.saved.owners.iter();
    let pods: Vec<(&Owner, PodSpec)> = owners
        .filter(|(owner, _)| owner.branch.is_some())
        .map(|(owner, address)| (owner, record.families.pod_spec(owner, *address, 0)))
        .collect();
    if !pods.is_empty() {
        verdict.compared.push(format!("the kernel: links, tables and rules of {} branch ENIs", pods.len()));
    }
    let mut without_trunk: BTreeMap<Mac, Vec<String>> = BTreeMap::new();
    for (owner, pod) in &pods {
        let Some(branch) = &owner.branch else { continue };
        let lacks = branch_lacks(pod, host);
        let of_trunk = lacks.contains(&BranchLack::Trunk)
            || record.wish.node.trunk.is_none_or(|it| it.mac != branch.trunk);
        if of_trunk {
            without_trunk.entry(branch.trunk).or_default().push(owner.pod.to_string());
        }
        let told = lacks.iter().filter(|lack| **lack != BranchLack::Trunk);
        let on_vlan = pods.iter().filter_map(|(owner, _)| owner.branch.as_ref());
        let is_shared = on_vlan.filter(|other| other.eni.vlan == branch.eni.vlan).count() > 1;
        verdict.findings.extend(told.map(|lack| finding(owner, branch, lack, (host, is_shared))));
    }
    let gone = without_trunk.iter().map(|(trunk, pods)| trunk_missing(*trunk, pods, record, host));
    verdict.findings.extend(gone);
    strays(&pods, host, verdict);
}

/// `is_shared`: another pod of the state has the VLAN too.
fn finding(
    owner: &Owner,
    branch: &Branch,
    lack: &BranchLack,
    (host, is_shared): (&HostSeen, bool),
) -> Finding {
    let (link, table, pod) = (branch.eni.vlan.link(), branch.eni.vlan.table(), &owner.pod);
    let shown = format!("ip -d link show {link}");
    let (code, what, seen) = match lack {
        BranchLack::Trunk | BranchLack::Link => {
            let what =
                format!("{pod} has {}, and there is no link {link}: nothing reaches the pod", branch.eni);
            (Code::BranchLinkMissing, what, shown)
        }
        BranchLack::OtherLink => {
            let what = format!(
                "{link} has not the MAC address {} of {pod}'s branch ENI: it is another's",
                branch.eni.mac
            );
            (Code::BranchLinkOff, what, shown)
        }
        BranchLack::Down => (Code::BranchLinkOff, format!("{link} of {pod} is down"), shown),
        BranchLack::Route(route) => {
            let what = format!("table {table} of {pod}'s branch ENI has no route to {}", route.destination);
            let seen =
                format!("ip{} route show table {table} {}", route.family().option(), route.destination);
            (Code::RouteMissing, what, seen)
        }
        BranchLack::Refusal(family) => {
            let what = format!(
                "table {table} of {pod}'s branch ENI does not end with a refusal: what its routes do not lead out goes past its security groups"
            );
            (Code::RouteMissing, what, format!("ip{} route show table {table}", family.option()))
        }
        BranchLack::Rule(family, words) => {
            let past = "its packets go past its security groups";
            let what = format!("there is no rule `{words}` for {pod}: {past}");
            let priority = words.split(' ').nth(1).unwrap_or_default();
            (Code::RuleMissing, what, format!("ip{} rule show pref {priority}", family.option()))
        }
    };
    let finding = Finding::new(code, what).seen(seen);
    let finding = finding.seen(format!("the state: sandbox {} holds {}", owner.sandbox, branch.eni));
    let names = host.names().into_iter().map(|(index, name)| (index, word(&name))).collect();
    if is_shared && *lack == BranchLack::OtherLink {
        // The link may be the other's, which lives.
        return finding
            .advice("another pod of the state has this VLAN: the DEL of this one's sandbox has never come");
    }
    match lack.command(branch, host, &names) {
        Some(command) => finding.repair(command),
        None => finding.advice("the daemon makes it once the trunk ENI's link is there"),
    }
}

/// One finding for all pods that had it.
fn trunk_missing(trunk: Mac, pods: &[String], record: &HostRecord, host: &HostSeen) -> Finding {
    let what = format!("the trunk ENI with MAC address {trunk}, by which {} reached, is not there", by(pods));
    let known = match record.wish.node.trunk {
        Some(other) if other.mac == trunk => "the daemon knows it as attached".to_owned(),
        Some(other) => format!("the daemon knows another one, with MAC address {}", other.mac),
        None => "the daemon knows of none that is attached".to_owned(),
    };
    let link = match host.by_mac().get(&trunk) {
        Some(link) => format!("ip link show {}: its link is there", word(&link.name)),
        None => "no link has its MAC address".to_owned(),
    };
    Finding::new(Code::TrunkMissing, what).seen(known).seen(link).advice(
        "the VPC resource controller attaches the trunk and makes the branch ENIs of pods: see what it says of this node (kubectl describe cninode), and whether EC2 still has the trunk attached; pods of a trunk that is gone have to be made anew",
    )
}

fn by(pods: &[String]) -> String {
    match pods {
        [one] => format!("{one} is"),
        [one, others @ ..] => format!("{one} and {} other pods are", others.len()),
        [] => "nobody is".to_owned(),
    }
}

/// Whether a rule leads what comes by a branch ENI's link, or by a strict pod's, to such an ENI's table. Others stand at that priority too, with
/// tables of the same numbers.
fn is_by_link(rule: &str) -> bool {
    let Some((link, table)) = rule.strip_prefix("from all iif ").and_then(|it| it.split_once(" lookup "))
    else {
        return false;
    };
    // Of a link that is gone it says so after the name.
    let link = link.split(' ').next().unwrap_or(link);
    let table = table.parse().ok().map(TableId);
    let of_vlan = VlanId::of_link(link).is_some_and(|vlan| table == Some(vlan.table()));
    let of_pod = HostVeth::found(link).is_some_and(|name| name.is_of_branch());
    of_vlan || of_pod && table.is_some_and(TableId::is_of_branch)
}

/// What is in the kernel for branch ENIs that no pod has.
fn strays(pods: &[(&Owner, PodSpec)], host: &HostSeen, verdict: &mut Verdict) {
    let held: BTreeSet<VlanId> =
        pods.iter().filter_map(|(owner, _)| Some(owner.branch.as_ref()?.eni.vlan)).collect();
    for link in &host.links {
        if VlanId::of_link(&link.name).is_some_and(|vlan| !held.contains(&vlan)) {
            let what = format!("{} is a branch ENI's link, and no pod of the state has that", link.name);
            let finding =
                Finding::new(Code::LinkWithoutOwner, what).seen(format!("ip -d link show {}", link.name));
            verdict.findings.push(finding.repair(format!("ip link del {}", link.name)));
        }
    }
    let wanted: BTreeSet<_> = pods.iter().flat_map(|(_, pod)| branch_rules(pod)).collect();
    for seen in host.rules.iter().filter(|seen| seen.priority == BRANCH_PRIORITY) {
        let words = seen.to_string();
        if is_by_link(&seen.text) && !wanted.contains(&(seen.family, words.clone())) {
            let ip = format!("ip{} rule", seen.family.option());
            let what = format!("the rule `{words}` leads to a branch ENI's table for no pod of the state");
            let finding =
                Finding::new(Code::RuleExtra, what).seen(format!("{ip} show pref {BRANCH_PRIORITY}"));
            verdict.findings.push(finding.repair(format!("{ip} del {words}")));
        }
    }
}
