//! The state beside EC2.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use datapath::EniSpec;
use types::{EniId, Ipv6Prefix, Mac, PodName};

use super::super::evidence::{CloudEni, Evidence};
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::delete_pod;
use super::daemon::RESTART;
use crate::families::is_local;
use crate::host::HostRecord;
use crate::node::{AUDIT_EVERY, GLANCE_EVERY};

/// When what differs will be seen to.
fn next_look() -> String {
    let (look, glance) = (AUDIT_EVERY.as_secs() / 3600, GLANCE_EVERY.as_secs() / 60);
    format!(
        "the daemon looks at EC2 when it starts, every {look} hours, and once instance metadata, which it glances at every {glance} minutes, tells something new"
    )
}

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    let Some(enis) = super::seen(verdict, "EC2", &evidence.live.cloud) else { return };
    let Some(record) = &evidence.saved.record else { return };
    let by_mac: BTreeMap<Mac, &CloudEni> = enis.iter().map(|eni| (eni.mac, eni)).collect();
    verdict.compared.push(format!("EC2, with {} ENIs attached", enis.len()));
    for eni in enis.iter().filter(|eni| eni.ours && !record.wish.ids.contains_key(&eni.mac)) {
        let what = format!("{} is attached and has our tag, and the daemon does not use it", eni.id);
        let finding = Finding::new(Code::EniUnknown, what).seen(format!("EC2: MAC address {}", eni.mac));
        verdict.findings.push(finding.seen(next_look()).repair(RESTART));
    }
    ipv6(evidence, record, enis, verdict);
    for spec in &record.wish.node.enis {
        match by_mac.get(&spec.mac) {
            Some(eni) if record.families.has_ipv4_of_vpc() => addresses(evidence, spec, eni, verdict),
            Some(_) => {}
            None => {
                let id = record.wish.ids.get(&spec.mac).map(ToString::to_string).unwrap_or_default();
                let own = spec.primary_address;
                let what =
                    format!("{id} with {own}, which the daemon uses, is not attached to this instance");
                let seen = format!("EC2: no attached ENI has the MAC address {}", spec.mac);
                let finding = Finding::new(Code::EniNotInEc2, what).seen(seen).seen(next_look());
                let pods = "pods that have addresses of it reach nothing and are to be made anew";
                verdict.findings.push(finding.repair(RESTART).advice(pods));
            }
        }
    }
}

/// What the daemon believes to have of an ENI, beside what it has.
fn addresses(evidence: &Evidence, spec: &EniSpec, eni: &CloudEni, verdict: &mut Verdict) {
    let id = &eni.id;
    let is_here = |address: Ipv4Addr| spec.sources.iter().any(|source| source.contains(address));
    let in_ec2 = |address: Ipv4Addr| eni.sources.iter().any(|source| source.contains(address));
    let owners = evidence.saved.owners.iter();
    for (owner, address) in owners.filter(|(_, address)| is_here(*address) && !in_ec2(*address)) {
        let what = format!("{address} of {} is not on {id} in EC2: nothing reaches the pod", owner.pod);
        let seen = format!("EC2: {id} has {} other addresses and prefixes", eni.sources.len());
        let finding = Finding::new(Code::AddressNotInEc2, what).seen(seen);
        verdict.findings.push(finding.repair(delete_pod(&owner.pod)));
    }
    let gone = spec.sources.difference(&eni.sources);
    let free = gone.filter(|gone| !evidence.saved.owners.iter().any(|(_, address)| gone.contains(*address)));
    let free: Vec<String> = free.map(ToString::to_string).collect();
    if !free.is_empty() {
        let lost = free.len();
        let what =
            format!("{id} has lost {lost} free addresses or prefixes that the daemon believes to have");
        let finding = Finding::new(Code::FreeNotInEc2, what).seen(format!("EC2 lacks {}", free.join(" ")));
        verdict.findings.push(finding.seen(next_look()).repair(RESTART));
    }
}

/// IPv6: what pods have, and the prefixes that the daemon believes to have for more of them.
fn ipv6(evidence: &Evidence, record: &HostRecord, enis: &[CloudEni], verdict: &mut Verdict) {
    // Of an archive that is older than the question nothing is known.
    let told: Option<Vec<(&CloudEni, &BTreeSet<Ipv6Prefix>)>> =
        enis.iter().map(|eni| Some((eni, eni.ipv6.as_ref()?))).collect();
    let Some(told) = told else { return };
    let in_ec2 = |prefix: Ipv6Prefix| told.iter().any(|(_, there)| there.contains(&prefix));
    let all: BTreeSet<String> = told.iter().flat_map(|(_, there)| *there).map(ToString::to_string).collect();
    let all = if all.is_empty() { "none".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(" ") };
    let owners = evidence.saved.owners.iter().filter(|(owner, _)| owner.branch.is_none());
    let held: Vec<(&PodName, Ipv6Addr)> = owners
        .filter_map(|(owner, _)| Some((&owner.pod, owner.ipv6.filter(|ipv6| !is_local(*ipv6))?)))
        .collect();
    for (pod, address) in held.iter().filter(|(_, address)| !in_ec2(Ipv6Prefix::of(*address))) {
        let prefix = Ipv6Prefix::of(*address);
        let what =
            format!("{address} of {pod} is in no prefix that EC2 has here: nothing reaches the pod by it");
        let finding = Finding::new(Code::AddressNotInEc2, what).seen(format!("it is of {prefix}"));
        let finding = finding.seen(format!("EC2: IPv6 prefixes of the attached ENIs: {all}"));
        verdict.findings.push(finding.repair(delete_pod(pod)));
    }
    for (id, prefix) in believed(evidence, record) {
        let has = told.iter().find(|(eni, _)| eni.id == id).is_none_or(|(_, there)| there.contains(&prefix));
        if has || held.iter().any(|(_, address)| Ipv6Prefix::of(*address) == prefix) {
            continue;
        }
        let what = format!("{id} has lost the IPv6 prefix {prefix}, which the daemon believes to have");
        let finding = Finding::new(Code::FreeNotInEc2, what)
            .seen(format!("EC2: IPv6 prefixes of the attached ENIs: {all}"));
        verdict.findings.push(finding.seen(next_look()).repair(RESTART));
    }
}

/// The IPv6 prefixes that the daemon has for pods to come, or leads out, by ENI.
fn believed(evidence: &Evidence, record: &HostRecord) -> BTreeSet<(EniId, Ipv6Prefix)> {
    if !record.families.needs_prefix() {
        return BTreeSet::new();
    }
    let report = evidence.live.daemon.seen();
    let of_report = report.into_iter().flat_map(|report| &report.enis);
    let of_report = of_report.filter_map(|eni| Some((eni.id.clone(), eni.ipv6_prefix?)));
    let of_record =
        record.wish.node.enis.iter().filter_map(|spec| Some((record.wish.ids.get(&spec.mac)?, &spec.ipv6)));
    let of_record = of_record.flat_map(|(id, prefixes)| prefixes.iter().map(|prefix| (id.clone(), *prefix)));
    of_report.chain(of_record).collect()
}
