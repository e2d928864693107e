//! The state's sandboxes beside the host's links, the ENIs, and what the runtime knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use datapath::{HostSeen, LinkSeen};
use pool::Owner;
use types::SandboxKey;

use super::super::evidence::{Evidence, NETWORK, RuntimeSandbox};
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::{delete_pod, word};
use super::host::is_pod_link;
use crate::node::is_placeholder;

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    if !evidence.saved.knows_owners() {
        let what = "links of pods, and what the runtime knows: who holds which address could not be read";
        return verdict.skipped.push(what.to_owned());
    }
    if let Some(host) = evidence.live.host.seen() {
        links(evidence, host, verdict);
    }
    let families = evidence.saved.record.as_ref().map(|record| record.families);
    let of_ipv6_node = families.is_some_and(|families| families.range_of_node().is_some());
    for (owner, address) in &evidence.saved.owners {
        // On an IPv6 node one without an IPv6 address is an interface of the Go version's egress plugin, which is in nobody's state.
        if is_placeholder(&owner.sandbox) && (owner.ipv6.is_some() || !of_ipv6_node) {
            let what =
                format!("{address} is held for whoever is behind {}: the state was lost", owner.host_if);
            let finding = Finding::new(Code::Placeholder, what);
            // Where pods have an IPv6 address alone, it is the one that Kubernetes knows.
            let told = owner.ipv6.filter(|_| of_ipv6_node).map_or(IpAddr::V4(*address), IpAddr::V6);
            let advice = format!(
                "nothing is broken; the pod is known again once it is made anew: kubectl get pods -A --field-selector status.podIP={told} names it"
            );
            verdict.findings.push(finding.seen("it is given back when that pod ends").advice(advice));
        }
        unplaced(evidence, owner, *address, verdict);
    }
    if let Some(known) = super::seen(verdict, "the runtime", &evidence.live.runtime) {
        runtime(evidence, known, verdict);
    }
}

fn links(evidence: &Evidence, host: &HostSeen, verdict: &mut Verdict) {
    let by_name: BTreeMap<&str, &LinkSeen> =
        host.links.iter().map(|link| (link.name.as_str(), link)).collect();
    for (owner, address) in &evidence.saved.owners {
        let name = owner.host_if.as_str();
        match by_name.get(name).filter(|link| !link.is_set_aside()) {
            None => {
                let what = format!("{} holds {address} and has no host link {name}", owner.pod);
                let finding = Finding::new(Code::PodLinkMissing, what)
                    .seen(format!("the state: sandbox {}", owner.sandbox))
                    .seen(format!("ip link show {name}: there is none"));
                verdict.findings.push(finding.repair(delete_pod(&owner.pod)));
            }
            Some(link) if !link.up => {
                let what = format!("the host link {name} of {} is down", owner.pod);
                let finding = Finding::new(Code::PodLinkDown, what).seen(format!("ip link show {name}"));
                verdict.findings.push(finding.repair(format!("ip link set {name} up")));
                verdict.findings.extend(as_made(owner, link));
            }
            Some(link) => verdict.findings.extend(as_made(owner, link)),
        }
    }
    let owned: BTreeSet<&str> =
        evidence.saved.owners.iter().map(|(owner, _)| owner.host_if.as_str()).collect();
    for link in &host.links {
        let a_pods = is_pod_link(evidence, &link.name) && link.peer.is_some() && !link.is_set_aside();
        if a_pods && !owned.contains(link.name.as_str()) {
            let what = format!("{} is a pod's host link, and no pod of the state has it", link.name);
            let finding = Finding::new(Code::LinkWithoutOwner, what)
                .seen(format!("ip link show {}", word(&link.name)))
                .seen("of a pod of the Go version, or of one whose DEL was lost");
            verdict.findings.push(finding.repair(format!("ip link del {}", word(&link.name))));
        }
    }
}

/// MAC address and MTU of a host end that we have made: the pod knows the one as its gateway's, and has the other too.
fn as_made(owner: &Owner, link: &LinkSeen) -> Option<Finding> {
    let (name, mtu, mac) = (owner.host_if.as_str(), link.made_with_mtu()?, owner.host_if.mac());
    let other_mac = link.mac.is_some_and(|other| other != mac);
    // What does not fit into a group's number is not known.
    let other_mtu = mtu != 0 && link.mtu != mtu;
    let (what, command) = match (other_mac, other_mtu) {
        (false, false) => return None,
        (true, false) => ("another MAC address", format!("address {mac}")),
        (false, true) => ("another MTU", format!("mtu {mtu}")),
        (true, true) => ("another MAC address and MTU", format!("address {mac} mtu {mtu}")),
    };
    let has = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let what = format!("the host link {name} of {} has {what} than it was made with", owner.pod);
    let finding =
        Finding::new(Code::PodLinkOff, what).seen(format!("ip link show {name}: {has}, MTU {}", link.mtu));
    let finding =
        finding.seen(format!("made with {mac}, MTU {mtu}, by its name and its group {}", link.group));
    Some(finding.repair(format!("ip link set {name} {command}")))
}

fn unplaced(evidence: &Evidence, owner: &Owner, address: Ipv4Addr, verdict: &mut Verdict) {
    let of_pool = evidence.saved.record.as_ref().filter(|record| record.families.has_ipv4_of_vpc());
    let Some(record) = of_pool.filter(|_| owner.branch.is_none()) else {
        return;
    };
    let mut sources = record.wish.node.enis.iter().flat_map(|eni| &eni.sources);
    if sources.any(|source| source.contains(address)) {
        return;
    }
    let what = format!(
        "{} holds {address}, which is of no ENI that the daemon has: nothing comes back to it",
        owner.pod
    );
    let finding =
        Finding::new(Code::AddressUnplaced, what).seen(format!("the state: sandbox {}", owner.sandbox));
    verdict.findings.push(finding.repair(delete_pod(&owner.pod)));
}

fn runtime(evidence: &Evidence, known: &[RuntimeSandbox], verdict: &mut Verdict) {
    let by_key: BTreeMap<&SandboxKey, &RuntimeSandbox> =
        known.iter().map(|one| (&one.sandbox, one)).collect();
    let owners = evidence.saved.owners.iter();
    // The runtime knows a pod's further interfaces by the first one.
    let known_there = |owner: &Owner| owner.sandbox.network_name() == NETWORK && owner.further.is_none();
    let ours: Vec<&(Owner, Ipv4Addr)> = owners.filter(|(owner, _)| known_there(owner)).collect();
    if by_key.is_empty() && !ours.is_empty() {
        verdict.skipped.push("the runtime: it keeps no results of this network there".to_owned());
        return;
    }
    verdict.compared.push(format!("the runtime, which knows {} sandboxes of ours", by_key.len()));
    let queued: BTreeSet<&SandboxKey> =
        evidence.saved.queue.iter().map(|del| &del.detachment.sandbox).collect();
    for (owner, address) in ours {
        match by_key.get(&owner.sandbox) {
            None if queued.contains(&owner.sandbox) => {}
            None => {
                let what =
                    format!("{} holds {address} for a sandbox that the runtime does not know", owner.pod);
                let finding = Finding::new(Code::SandboxUnknownToRuntime, what)
                    .seen(format!("the state: sandbox {}", owner.sandbox))
                    .seen("the runtime has removed it without a DEL, or its cache was lost");
                verdict.findings.push(finding.repair(del(evidence, owner)));
            }
            Some(told) => {
                let mine = all_addresses(evidence, owner);
                if told.addresses.iter().any(|address| !mine.contains(address)) {
                    let what =
                        format!("the runtime was told other addresses of {} than the state has", owner.pod);
                    let finding = Finding::new(Code::RuntimeDiffers, what)
                        .seen(format!("the runtime: {:?}", told.addresses))
                        .seen(format!("the state: {:?}", mine));
                    verdict.findings.push(finding.repair(delete_pod(&owner.pod)));
                }
            }
        }
    }
    let held: BTreeSet<&SandboxKey> = evidence.saved.owners.iter().map(|(owner, _)| &owner.sandbox).collect();
    for one in known.iter().filter(|one| !held.contains(&one.sandbox)) {
        // The same pod, known by its link alone.
        if one
            .addresses
            .iter()
            .any(|address| evidence.holder(*address).is_some_and(|o| is_placeholder(&o.sandbox)))
        {
            continue;
        }
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let what =
            format!("{} runs with {}, which the state does not hold for it", one.pod, addresses.join(" "));
        let finding = Finding::new(Code::SandboxUnknownToState, what)
            .seen(format!("the runtime: sandbox {}", one.sandbox))
            .seen("another pod may be given the same address");
        verdict.findings.push(finding.repair(delete_pod(&one.pod)));
    }
}

/// What a pod has on all of its interfaces.
fn all_addresses(evidence: &Evidence, main: &Owner) -> Vec<IpAddr> {
    let interfaces = evidence.saved.owners.iter().filter(|(owner, _)| owner.main() == &main.sandbox);
    let each = interfaces.flat_map(|(owner, address)| match &owner.branch {
        Some(branch) => branch.eni.addresses(),
        None => std::iter::once(IpAddr::V4(*address)).chain(owner.ipv6.map(IpAddr::V6)).collect(),
    });
    each.collect()
}

/// The DEL that the runtime owes.
fn del(evidence: &Evidence, owner: &Owner) -> String {
    let (sandbox, pod) = (&owner.sandbox, &owner.pod);
    let mut config =
        serde_json::json!({"cniVersion": "1.0.0", "name": sandbox.network_name(), "type": "aws-cni"});
    if !evidence.run_dir_option().is_empty() {
        config["socket"] = wire::socket_in(evidence.run_dir()).display().to_string().into();
        config["queueDir"] = evidence.run_dir().join("delete-queue").display().to_string().into();
    }
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
        pod.namespace,
        pod.name,
        sandbox.container_id()
    );
    format!(
        "echo {} | CNI_COMMAND=DEL CNI_CONTAINERID={} CNI_IFNAME={} CNI_NETNS= CNI_PATH=/opt/cni/bin CNI_ARGS={} /opt/cni/bin/aws-cni",
        word(&config.to_string()),
        word(sandbox.container_id()),
        word(sandbox.if_name()),
        word(&args)
    )
}
