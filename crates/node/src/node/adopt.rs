//! What the Go version's checkpoint says, taken into the pool. Pure.
//!
//! The kernel judges it: an address is the pod's to whose host end it is routed. An entry that no host end bears out is of a pod
//! that died unnoticed; one that the kernel bears out is held, whether an ENI with that address is known or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use pool::{Further, Owner, Pool};
use types::{HostVeth, Moment, SandboxKey, VethPrefix};

use super::restore::Wired;
use crate::checkpoint::{Checkpoint, Entry};
use crate::families::ipv6_among;

/// What came of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Addresses of entries whose pod is gone.
    pub(super) gone: BTreeSet<IpAddr>,
    /// Who is in our own state alone.
    pub(super) doubted: BTreeSet<SandboxKey>,
    /// For the log.
    pub(super) remarks: Vec<String>,
}

/// Takes the entries in, newest first. Whatever else the pool says of their sandboxes, names and addresses is older.
pub(super) fn adopt(
    pool: &mut Pool,
    checkpoint: Checkpoint,
    kernel: &[Wired<'_>],
    has_link: &mut dyn FnMut(&HostVeth) -> bool,
    now: Moment,
) -> Adopted {
    let mut adopted = Adopted::default();
    let routed: BTreeMap<Ipv4Addr, &HostVeth> =
        kernel.iter().filter_map(|wired| Some((wired.address?, &wired.pod.host_if))).collect();
    let mut entries = checkpoint.entries;
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.since));
    let mut taken: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for entry in entries {
        let address = entry.address;
        if let Some(host_if) = host_end(&entry, &routed, has_link)
            && taken.insert(address)
        {
            let wired = kernel.iter().find(|wired| wired.pod.host_if == host_if);
            let ipv6 = entry.ipv6.or_else(|| wired.and_then(|wired| ipv6_among(&wired.pod.addresses)));
            let Entry { sandbox: main, pod, since, index, .. } = entry;
            let (sandbox, further) = match index {
                0 => (main, None),
                index => (main.further(index), Some(Further { of: main, index })),
            };
            let owner = Owner { sandbox, pod, host_if, since, ipv6, further, branch: None };
            take_in(pool, owner, address, now);
        } else {
            let (sandbox, pod) = (&entry.sandbox, &entry.pod);
            let named = entry.told();
            adopted
                .remarks
                .push(format!("{named} of {pod} ({sandbox}) in the checkpoint leads to no link: dropped"));
            if !routed.contains_key(&address) {
                adopted.gone.insert(named);
            }
        }
    }
    let ours_alone = pool.owners().filter(|(_, grant)| !taken.contains(&grant.address));
    adopted.doubted = ours_alone.map(|(owner, _)| owner.sandbox.clone()).collect();
    if !taken.is_empty() {
        adopted.remarks.push(format!("{} pods of the Go version are taken over", taken.len()));
    }
    adopted
}

/// The host end that an entry's pod has; `None` when the pod is gone.
fn host_end(
    entry: &Entry,
    routed: &BTreeMap<Ipv4Addr, &HostVeth>,
    has_link: &mut dyn FnMut(&HostVeth) -> bool,
) -> Option<HostVeth> {
    let named = entry.host_if.as_ref();
    if let Some(link) = routed.get(&entry.address) {
        // Prefixes may have changed since; the hash of the name has not.
        let its_own = named.is_none_or(|named| named.hash() == link.hash());
        return its_own.then(|| (*link).clone());
    }
    // Somebody may have taken the route alone.
    let named = named?;
    let prefixes: BTreeSet<VethPrefix> =
        routed.values().filter_map(|link| link.prefix()).chain([VethPrefix::default()]).collect();
    let others = prefixes.iter().map(|prefix| named.under(prefix));
    let elsewhere = |named: &HostVeth| routed.values().any(|link| *link == named);
    std::iter::once(named.clone()).chain(others).find(|named| has_link(named) && !elsewhere(named))
}

fn take_in(pool: &mut Pool, new: Owner, address: Ipv4Addr, now: Moment) {
    let contradicts = |owner: &Owner, held: Ipv4Addr| match owner.sandbox == new.sandbox {
        true => held != address,
        false => held == address || owner.host_if == new.host_if,
    };
    let older: Vec<SandboxKey> = pool
        .owners()
        .filter(|(owner, grant)| contradicts(owner, grant.address))
        .map(|(owner, _)| owner.sandbox.clone())
        .collect();
    for older in older {
        // Nobody waits for what this returns: the address cools, or is the entry's now.
        drop(pool.release(&older, now));
    }
    if pool.owner(&new.sandbox).is_none() {
        pool.adopt(new, address);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use datapath::PodSeen;
    use types::{NetworkCard, PodName};

    use super::*;
    use crate::families::address_in_pool;
    use crate::node::restore::PodInKernel;
    use crate::node::{Restored, pods_among, restore};
    use crate::store::{Loaded, Record};

    const NOW: Moment = Moment(1_000_000);

    fn pod(name: &str) -> PodName {
        PodName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn link(name: &str) -> HostVeth {
        HostVeth::of_pod(&VethPrefix::default(), &pod(name), 0)
    }

    fn key(id: &str) -> SandboxKey {
        SandboxKey::new("aws-cni", id, "eth0").unwrap()
    }

    fn entry(id: &str, name: &str, last: u8, since: u64) -> Entry {
        let address = Ipv4Addr::new(10, 0, 0, last);
        Entry {
            sandbox: key(id),
            pod: pod(name),
            host_if: Some(link(name)),
            address,
            ipv6: None,
            since: Moment(since),
            card: NetworkCard(0),
            index: 0,
        }
    }

    fn wired(name: &str, last: u8, by_us: bool) -> PodInKernel {
        PodInKernel { host_if: link(name), addresses: vec![[10, 0, 0, last].into()], by_us, branch: None }
    }

    fn assigned(id: &str, name: &str, last: u8) -> Record {
        let owner = Owner {
            sandbox: key(id),
            pod: pod(name),
            host_if: link(name),
            since: Moment(1),
            ipv6: None,
            further: None,
            branch: None,
        };
        Record::Assigned { owner, address: Ipv4Addr::new(10, 0, 0, last), card: None }
    }

    fn restored(records: Vec<Record>, checkpoint: Checkpoint, kernel: &[PodInKernel]) -> Restored {
        let loaded = Loaded { records, checkpoint: Some(checkpoint), damage: None };
        let links: Vec<HostVeth> = kernel.iter().map(|pod| pod.host_if.clone()).collect();
        let restored =
            restore(Duration::from_secs(30), loaded, kernel, &mut |link| links.contains(link), true, NOW);
        restored.pool.check().unwrap();
        restored
    }

    fn of(entries: Vec<Entry>) -> Checkpoint {
        Checkpoint { entries, ..Checkpoint::default() }
    }

    /// Who holds what, as "container id: last byte".
    fn held(restored: &Restored) -> Vec<String> {
        let told = |(owner, grant): (&Owner, pool::Grant)| {
            format!("{}: {}", owner.sandbox.container_id(), grant.address.octets()[3])
        };
        restored.pool.owners().map(told).collect()
    }

    #[test]
    fn every_entry_with_a_link_is_taken_over_and_the_others_are_named() {
        let mut nameless = entry("b", "b", 2, 2);
        (nameless.pod, nameless.host_if) = (PodName::default(), None);
        let entries = vec![entry("a", "a", 1, 1), nameless, entry("dead", "dead", 3, 3)];
        let kernel = [wired("a", 1, false), wired("b", 2, false)];

        let restored = restored(Vec::new(), of(entries), &kernel);

        assert_eq!(held(&restored), ["a: 1", "b: 2"]);
        assert_eq!(restored.pool.owner(&key("b")).unwrap().0.host_if, link("b"));
        assert_eq!(restored.gone, [IpAddr::from([10, 0, 0, 3])].into());
    }

    #[test]
    fn pods_of_an_ipv6_node_are_taken_over_the_first_address_of_the_prefix_too() {
        let address = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0x4a2f, 0, 0, last);
        let of_ipv6 = |name: &str, last: u8| Entry {
            address: [0, 0, 0, last].into(),
            ipv6: Some(address(last.into())),
            ..entry(name, name, last, 1)
        };
        let routed =
            |name: &str, last| PodInKernel { addresses: vec![address(last).into()], ..wired(name, 0, false) };
        // What its egress plugin has wired is in no checkpoint.
        let egress = PodInKernel {
            host_if: HostVeth::found("veth0a1b2c3d").unwrap(),
            addresses: vec![[169, 254, 172, 2].into()],
            by_us: false,
            branch: None,
        };
        let entries = vec![of_ipv6("a", 0), of_ipv6("b", 1), of_ipv6("dead", 2)];

        let restored = restored(Vec::new(), of(entries), &[routed("a", 0), routed("b", 1), egress]);

        assert_eq!(held(&restored), ["a: 0", "b: 1", "veth0a1b2c3d: 2"]);
        assert_eq!(restored.pool.owner(&key("b")).unwrap().0.ipv6, Some(address(1)));
        assert_eq!(restored.gone, [IpAddr::V6(address(2))].into());
    }

    #[test]
    fn a_pod_that_lost_its_route_alone_is_taken_over() {
        let checkpoint = Some(of(vec![entry("a", "a", 1, 1)]));
        let loaded = Loaded { checkpoint, ..Loaded::default() };

        let restored =
            restore(Duration::from_secs(30), loaded, &[], &mut |host_if| *host_if == link("a"), true, NOW);

        assert_eq!(held(&restored), ["a: 1"]);
    }

    #[test]
    fn a_pod_whose_link_was_named_under_another_setting_is_taken_over_with_or_without_its_route() {
        let setting = VethPrefix::new("azv").unwrap();
        let named =
            |id: &str, last| Entry { host_if: Some(link(id).under(&setting)), ..entry(id, id, last, 1) };
        let checkpoint = Some(of(vec![named("a", 1), named("b", 2), named("dead", 3)]));
        let loaded = Loaded { checkpoint, ..Loaded::default() };
        let mut has_link = |host_if: &HostVeth| [link("a"), link("b")].contains(host_if);

        let restored =
            restore(Duration::from_secs(30), loaded, &[wired("a", 1, false)], &mut has_link, true, NOW);

        assert_eq!(held(&restored), ["a: 1", "b: 2"]);
        assert_eq!(restored.pool.owner(&key("b")).unwrap().0.host_if, link("b"));
    }

    #[test]
    fn under_another_prefix_a_link_is_a_pods_if_the_rule_beside_or_the_checkpoint_says_so() {
        let seen = |name: &str, last, by_us, ruled| PodSeen {
            host_if: name.to_owned(),
            addresses: vec![[10, 0, 0, last].into()],
            by_us,
            ruled,
            branch: None,
        };
        let named = link("named");
        let all = vec![
            seen("azv0123456789a", 1, false, false),
            seen("eni0123456789b", 2, false, true),
            seen("eni0123456789c", 3, true, false),
            seen("eni0123456789d", 4, false, false),
            seen(named.as_str(), 5, false, false),
            seen("cali0123456789e", 6, false, false),
            seen("docker0", 7, false, true),
            seen("veth0a1b2c3d", 8, false, false),
        ];
        let mut nameless = entry("of-address", "", 4, 1);
        nameless.host_if = None;
        let checkpoint = of(vec![nameless, entry("named", "named", 99, 1)]);
        let setting = VethPrefix::new("azv").unwrap();

        let pods = |checkpoint| {
            let pods = pods_among(all.clone(), checkpoint, &setting, Some("10.0.0.8/32".parse().unwrap()));
            pods.into_iter()
                .filter_map(|pod| Some(address_in_pool(&pod.addresses)?.octets()[3]))
                .collect::<Vec<_>>()
        };

        assert_eq!(pods(Some(&checkpoint)), [1, 2, 3, 4, 5, 8]);
        assert_eq!(pods(None), [1, 2, 3, 8]);
    }

    #[test]
    fn of_two_sandboxes_of_one_name_the_one_whose_address_is_routed_lives() {
        let entries = vec![entry("new", "web", 1, 2), entry("old", "web", 2, 1)];

        let restored = restored(Vec::new(), of(entries), &[wired("web", 1, false)]);

        assert_eq!(held(&restored), ["new: 1"]);
        assert_eq!(restored.gone, [IpAddr::from([10, 0, 0, 2])].into());
    }

    #[test]
    fn an_address_that_two_entries_claim_is_the_newer_ones() {
        let mut nameless = entry("new", "web", 1, 2);
        (nameless.pod, nameless.host_if) = (PodName::default(), None);
        let entries = vec![entry("old", "web", 1, 1), nameless];

        let restored = restored(Vec::new(), of(entries), &[wired("web", 1, false)]);

        assert_eq!(held(&restored), ["new: 1"]);
        assert_eq!(restored.gone, BTreeSet::new());
    }

    #[test]
    fn where_the_go_version_ran_in_between_its_word_counts() {
        // It has deleted "gone", given its address to "reused", and added "web" anew.
        let records =
            vec![assigned("stays", "stays", 1), assigned("gone", "gone", 2), assigned("web-1", "web", 3)];
        let entries =
            vec![entry("stays", "stays", 1, 1), entry("reused", "reused", 2, 5), entry("web-2", "web", 4, 6)];
        let kernel = [wired("stays", 1, true), wired("reused", 2, false), wired("web", 4, false)];

        let restored = restored(records, of(entries), &kernel);

        assert_eq!(held(&restored), ["reused: 2", "stays: 1", "web-2: 4"]);
        assert!(restored.leftovers.is_empty());
    }

    #[test]
    fn a_living_pod_of_ours_that_the_go_version_forgot_keeps_its_address() {
        let kernel = [wired("a", 1, true)];

        let restored = restored(vec![assigned("a", "a", 1)], of(Vec::new()), &kernel);

        assert_eq!(held(&restored), ["a: 1"]);
        // Or its DEL was served, and its link is about to go.
        assert_eq!(restored.doubted, [key("a")].into());
    }

    #[test]
    fn our_own_checkpoint_says_nothing_new_unless_the_state_is_lost() {
        let ours = |entries| Checkpoint { ours: true, ..of(entries) };
        let kernel = [wired("a", 1, true)];
        let released = Record::Released { sandbox: key("a"), at: NOW };

        let whole =
            restored(vec![assigned("a", "a", 1), released], ours(vec![entry("a", "a", 1, 1)]), &kernel);
        let lost = restored(Vec::new(), ours(vec![entry("a", "a", 1, 1)]), &kernel);

        assert_eq!((held(&whole), whole.leftovers.len()), (Vec::new(), 1));
        assert_eq!(held(&lost), ["a: 1"]);
    }

    #[test]
    fn without_a_checkpoint_the_kernel_tells_the_pods_of_the_go_version() {
        let released = vec![assigned("a", "a", 1), Record::Released { sandbox: key("a"), at: NOW }];
        let loaded = Loaded { records: released, checkpoint: None, damage: None };

        let restored =
            restore(Duration::from_secs(30), loaded, &[wired("a", 1, false)], &mut |_| true, true, NOW);

        // Not by us: it is no leftover of a DEL that we served.
        assert_eq!((held(&restored), restored.leftovers.len()), (vec![format!("{}: 1", link("a"))], 0));
    }
}
