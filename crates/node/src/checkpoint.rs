//! The Go version's checkpoint: read because it may have run on this node before us, kept because it may run after us.
//!
//! What we write carries a field that the Go version skips when it reads and drops when it writes, which it does at every
//! start. So a file with the field says no more than our own state does; in one without it the Go version has the last word.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pool::Owner;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{HostVeth, Ipv6Prefix, Moment, NetworkCard, PodName, SandboxKey, VethPrefix};

use crate::families::{Families, stand_in};

/// The only version there is.
const VERSION: &str = "vpc-cni-ipam/1";
/// What the field says that marks our files.
const WRITER: &str = "ipamd";
/// Network name in entries that an old Go version made of what the container runtime knew; the interface is then `unknown`.
const MIGRATED: &str = "_migrated-from-cri";
/// Under which network name the runtime asks for such a sandbox, as for every other.
const NETWORK: &str = "aws-cni";
/// And under which interface name.
const INTERFACE: &str = "eth0";

/// One address and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub sandbox: SandboxKey,
    /// Its pod; empty where the writer did not know it.
    pub pod: PodName,
    /// The host end that a pod of that name has.
    pub host_if: Option<HostVeth>,
    /// What, as the pool knows it: an IPv6 address of the Go version goes with the IPv4 address that its last 32 bits make.
    pub address: Ipv4Addr,
    /// The IPv6 address, if it is one.
    pub ipv6: Option<Ipv6Addr>,
    /// Since when.
    pub since: Moment,
    /// The network card whose ENI has it.
    pub card: NetworkCard,
    /// Which of the pod's interfaces has it: 0 is `eth0`. The Go version has all under the sandbox of that one.
    pub index: u8,
}

impl Entry {
    /// The address as people know it, and routes lead to it.
    #[must_use]
    pub fn told(&self) -> IpAddr {
        self.ipv6.map_or(IpAddr::V4(self.address), IpAddr::V6)
    }

    /// What it is as the pool knows it where it stands in a network card's file.
    fn address_on(&self, card: NetworkCard) -> Option<Ipv4Addr> {
        self.ipv6.map_or(Some(self.address), |ipv6| stand_in(card, ipv6))
    }
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// We wrote it.
    pub ours: bool,
    /// Its addresses.
    pub entries: Vec<Entry>,
    /// Entries that cannot be read.
    pub unreadable: usize,
}

impl Checkpoint {
    /// The checkpoint that the files of the network cards make together: an interface of a pod that is in several is the next one on each
    /// further card. `None` without any.
    #[must_use]
    pub fn of_cards(
        files: impl IntoIterator<Item = (NetworkCard, Self)>,
        prefix: &VethPrefix,
    ) -> Option<Self> {
        let mut files: Vec<(NetworkCard, Self)> = files.into_iter().collect();
        if files.is_empty() {
            return None;
        }
        files.sort_by_key(|(card, _)| *card);
        let mut interfaces = BTreeMap::<SandboxKey, u8>::new();
        let mut whole = Self { ours: true, ..Self::default() };
        for (card, file) in files {
            whole.ours &= file.ours;
            whole.unreadable += file.unreadable;
            for mut entry in file.entries {
                let Some(address) = entry.address_on(card) else {
                    whole.unreadable += 1;
                    continue;
                };
                let index = interfaces.entry(entry.sandbox.clone()).or_default();
                (entry.address, entry.card, entry.index) = (address, card, *index);
                // Two of one card are two claims to one interface.
                let named = entry.host_if.is_some();
                entry.host_if = named.then(|| HostVeth::of_pod(prefix, &entry.pod, entry.index));
                whole.entries.push(entry);
            }
            for entry in whole.entries.iter().filter(|entry| entry.card == card) {
                interfaces.insert(entry.sandbox.clone(), entry.index.saturating_add(1));
            }
        }
        Some(whole)
    }
}

/// The file's form. What this does not name is skipped.
#[derive(Deserialize)]
struct Found {
    version: String,
    #[serde(default)]
    writer: String,
    /// The Go version writes an empty list as `null`.
    #[serde(default)]
    allocations: Option<Vec<Value>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    /// In nanoseconds since the Unix epoch.
    #[serde(default)]
    allocation_timestamp: u64,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Serialize, Deserialize)]
struct Metadata {
    #[serde(rename = "k8sPodNamespace", default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(rename = "k8sPodName", default, skip_serializing_if = "String::is_empty")]
    name: String,
    /// Older versions do not write it, and mean 1.
    #[serde(rename = "interfacesCount", default, skip_serializing_if = "Option::is_none")]
    interfaces: Option<u32>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: &'a str,
    writer: &'a str,
    allocations: Vec<Allocation>,
}

/// Why a file is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It is no JSON, or of another form.
    #[error("it cannot be read as what it should be")]
    Json(#[from] serde_json::Error),
    /// Its version, cut.
    #[error("its version is {0:?}")]
    Version(String),
}

/// Reads a checkpoint. What is damaged in one entry costs no other.
///
/// # Errors
/// When it is damaged as a whole, or of a version that nobody knows.
pub fn parse(bytes: &[u8], prefix: &VethPrefix) -> Result<Checkpoint, ParseError> {
    let found: Found = serde_json::from_slice(bytes)?;
    if found.version != VERSION {
        return Err(ParseError::Version(found.version.chars().take(64).collect()));
    }
    let mut checkpoint = Checkpoint { ours: found.writer == WRITER, ..Checkpoint::default() };
    for value in found.allocations.unwrap_or_default() {
        match entry(value, prefix) {
            Some(entry) => checkpoint.entries.push(entry),
            None => checkpoint.unreadable += 1,
        }
    }
    Ok(checkpoint)
}

fn entry(value: Value, prefix: &VethPrefix) -> Option<Entry> {
    let allocation: Allocation = serde_json::from_value(value).ok()?;
    let Allocation { network_name, container_id, if_name, ipv4, ipv6, .. } = &allocation;
    let (network, interface) = match network_name == MIGRATED {
        true => (NETWORK, INTERFACE),
        false => (network_name.as_str(), if_name.as_str()),
    };
    let sandbox = SandboxKey::new(network, container_id, interface).ok()?;
    let set = |text: &Option<String>| text.as_ref().filter(|text| !text.is_empty()).cloned();
    let (address, ipv6) = match set(ipv4) {
        Some(ipv4) => (ipv4.parse().ok()?, None),
        None => {
            let ipv6: Ipv6Addr = set(ipv6)?.parse().ok()?;
            (Ipv6Prefix::beneath(ipv6)?, Some(ipv6))
        }
    };
    let Metadata { namespace, name, .. } = allocation.metadata;
    let known = !namespace.is_empty() && !name.is_empty();
    let pod = if known { PodName { namespace, name } } else { PodName::default() };
    let host_if = known.then(|| HostVeth::of_pod(prefix, &pod, 0));
    let since = Moment(allocation.allocation_timestamp / 1_000_000);
    Some(Entry { sandbox, pod, host_if, address, ipv6, since, card: NetworkCard(0), index: 0 })
}

/// The checkpoint of a network card, of all owners and where their addresses are, as the Go version reads it: with the address of its only
/// family. It keeps all interfaces of a pod under the sandbox of the first, each in its card's file, with their number, which the network
/// policy agent reads too.
#[must_use]
pub fn render<'a, I>(families: Families, card: NetworkCard, owners: I) -> Vec<u8>
where
    I: IntoIterator<Item = (&'a Owner, Ipv4Addr, NetworkCard)>,
{
    let owners: Vec<(&Owner, Ipv4Addr, NetworkCard)> = owners.into_iter().collect();
    let mut interfaces = BTreeMap::<&SandboxKey, u32>::new();
    for (owner, ..) in &owners {
        *interfaces.entry(owner.main()).or_default() += 1;
    }
    let allocation = |(owner, address, _): (&Owner, Ipv4Addr, NetworkCard)| {
        let (ipv4, ipv6) = match families.has_ipv4_of_vpc() {
            true => (Some(address.to_string()), None),
            // One without is of the Go version's egress plugin, which has books of its own.
            false => (None, Some(owner.ipv6?.to_string())),
        };
        let PodName { namespace, name } = owner.pod.clone();
        let since = Duration::from_millis(owner.since.0).as_nanos();
        let sandbox = owner.main();
        Some(Allocation {
            network_name: sandbox.network_name().to_owned(),
            container_id: sandbox.container_id().to_owned(),
            if_name: sandbox.if_name().to_owned(),
            ipv4,
            ipv6,
            allocation_timestamp: u64::try_from(since).unwrap_or(u64::MAX),
            metadata: Metadata { namespace, name, interfaces: interfaces.get(sandbox).copied() },
        })
    };
    // It keeps none of branch ENIs there, and no sandbox twice: of an interface whose ENI is not known the card is guessed.
    let mut known: Vec<_> =
        owners.iter().filter(|(owner, _, on)| *on == card && owner.branch.is_none()).copied().collect();
    known.sort_by_key(|(owner, ..)| (owner.main(), owner.further.is_some()));
    known.dedup_by_key(|(owner, ..)| owner.main());
    let allocations = known.into_iter().filter_map(allocation).collect();
    let file = Written { version: VERSION, writer: WRITER, allocations };
    // Texts and numbers alone: there is nothing that JSON cannot say.
    let mut bytes = serde_json::to_vec(&file).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use pool::Further;

    use super::*;

    fn read(text: &str) -> Result<Checkpoint, String> {
        parse(text.as_bytes(), &VethPrefix::default()).map_err(|error| error.to_string())
    }

    fn of(allocations: &str) -> Checkpoint {
        read(&format!(r#"{{"version":"vpc-cni-ipam/1","allocations":{allocations}}}"#)).unwrap()
    }

    #[test]
    fn a_checkpoint_of_the_newest_version_is_read() {
        let checkpoint =
            of(r#"[{"networkName":"aws-cni","containerID":"9f3c","ifName":"eth0","ipv4":"10.0.1.23",
            "allocationTimestamp":1754550000123456789,
            "metadata":{"k8sPodNamespace":"default","k8sPodName":"sample-pod","interfacesCount":1}}]"#);

        let [entry] = checkpoint.entries.as_slice() else { panic!("{checkpoint:?}") };
        assert!(!checkpoint.ours);
        assert_eq!(entry.sandbox, SandboxKey::new("aws-cni", "9f3c", "eth0").unwrap());
        assert_eq!(entry.pod.to_string(), "default/sample-pod");
        assert_eq!(entry.host_if.as_ref().map(HostVeth::as_str), Some("enicc21c2d7785"));
        assert_eq!((entry.address, entry.since), ([10, 0, 1, 23].into(), Moment(1_754_550_000_123)));
    }

    #[test]
    fn forms_of_older_versions_are_read_and_what_is_not_known_is_skipped() {
        let checkpoint = of(r#"[
            {"networkName":"_migrated-from-cri","containerID":"old","ifName":"unknown","ipv4":"10.0.0.1"},
            {"networkName":"aws-cni","containerID":"b","ifName":"eth0","ipv4":"10.0.0.2","allocationTimestamp":0,"metadata":{}},
            {"networkName":"aws-cni","containerID":"c","ifName":"eth0","ipv4":"10.0.0.3","new":[1],
             "metadata":{"k8sPodNamespace":"default","k8sPodName":"c","new":true}}]"#);

        let keys: Vec<_> =
            checkpoint.entries.iter().map(|e| (e.sandbox.clone(), e.host_if.is_some())).collect();
        let key = |id| SandboxKey::new("aws-cni", id, "eth0").unwrap();
        assert_eq!(keys, [(key("old"), false), (key("b"), false), (key("c"), true)]);
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_counted_and_costs_no_other() {
        let checkpoint =
            of(r#"[7, {}, {"networkName":"aws-cni","containerID":"../x","ifName":"eth0","ipv4":"10.0.0.1"},
            {"networkName":"aws-cni","containerID":"a","ifName":"eth0","ipv4":"10.0.0.256"},
            {"networkName":"aws-cni","containerID":"v6","ifName":"eth0","ipv6":"2001:db8::1:2:3:4"},
            {"networkName":"aws-cni","containerID":"good","ifName":"eth0","ipv4":"10.0.0.9"}]"#);

        assert_eq!((checkpoint.entries.len(), checkpoint.unreadable), (1, 5));
        assert_eq!(of("null"), of("[]"));
    }

    #[test]
    fn an_ipv6_address_goes_with_the_ipv4_address_that_its_end_makes_and_is_written_as_it_was() {
        let checkpoint = of(r#"[{"networkName":"aws-cni","containerID":"a","ifName":"eth0",
            "ipv6":"2001:db8:0:1:4a2f::5","metadata":{"k8sPodNamespace":"default","k8sPodName":"web"}}]"#);
        let [entry] = checkpoint.entries.as_slice() else { panic!("{checkpoint:?}") };
        let ipv6 = "2001:db8:0:1:4a2f::5".parse().unwrap();
        assert_eq!((entry.address, entry.ipv6), ([0, 0, 0, 5].into(), Some(ipv6)));
        let (sandbox, pod) = (entry.sandbox.clone(), entry.pod.clone());
        let host_if = entry.host_if.clone().unwrap();
        let owner =
            Owner { sandbox, pod, host_if, since: Moment(1), ipv6: Some(ipv6), further: None, branch: None };
        let of_egress = Owner { ipv6: None, ..owner.clone() };
        let local = [169, 254, 172, 9].into();

        let card = NetworkCard(0);
        let owners = [(&owner, entry.address, card), (&of_egress, local, card)];
        let bytes = render(Families::V6 { egress: true }, card, owners);

        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(r#""ifName":"eth0","ipv6":"2001:db8:0:1:4a2f::5","alloc"#), "{text}");
        assert!(!text.contains("ipv4"), "{text}");
    }

    #[test]
    fn what_we_write_is_marked_as_ours_and_has_the_names_of_the_go_version() {
        let pod = PodName { namespace: "default".to_owned(), name: "sample-pod".to_owned() };
        let owner = Owner {
            sandbox: SandboxKey::new("aws-cni", "9f3c", "eth0").unwrap(),
            host_if: HostVeth::of_pod(&VethPrefix::default(), &pod, 0),
            pod,
            since: Moment(1_754_550_000_123),
            ipv6: None,
            further: None,
            branch: None,
        };

        let card = NetworkCard(0);
        let bytes = render(Families::V4 { egress: false }, card, [(&owner, [10, 0, 1, 23].into(), card)]);

        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            concat!(
                r#"{"version":"vpc-cni-ipam/1","writer":"ipamd","allocations":[{"networkName":"aws-cni","containerID":"9f3c","#,
                r#""ifName":"eth0","ipv4":"10.0.1.23","allocationTimestamp":1754550000123000000,"#,
                r#""metadata":{"k8sPodNamespace":"default","k8sPodName":"sample-pod","interfacesCount":1}}]}"#,
                "\n"
            )
        );
        let read = parse(&bytes, &VethPrefix::default()).unwrap();
        assert!(read.ours);
        assert_eq!(read.entries[0].sandbox, owner.sandbox);
    }

    #[test]
    fn each_network_card_has_a_file_with_a_pods_interface_there_and_together_they_say_what_was_written() {
        let prefix = VethPrefix::default();
        let named = |name: &str| PodName { namespace: "default".to_owned(), name: name.to_owned() };
        let owner = |id: &str, index: u8| {
            let main = SandboxKey::new("aws-cni", id, "eth0").unwrap();
            let further = (index > 0).then(|| Further { of: main.clone(), index });
            let sandbox = if index > 0 { main.further(index) } else { main };
            let host_if = HostVeth::of_pod(&prefix, &named(id), index);
            Owner { sandbox, pod: named(id), host_if, since: Moment(1), ipv6: None, further, branch: None }
        };
        let (first, second, third, lone) =
            (owner("wide", 0), owner("wide", 1), owner("wide", 2), owner("lone", 0));
        let at = |card: u8| (Ipv4Addr::new(10, card, 0, 9), NetworkCard(card));
        let on = |owner, card| (owner, at(card).0, at(card).1);
        let owners =
            [on(&second, 1), on(&first, 0), on(&third, 2), (&lone, [10, 1, 0, 7].into(), NetworkCard(1))];
        let file = |card| render(Families::V4 { egress: false }, NetworkCard(card), owners);

        let texts = [0, 1, 2, 3].map(|card| String::from_utf8(file(card)).unwrap());
        assert_eq!(texts.each_ref().map(|text| text.matches("containerID").count()), [1, 2, 1, 0]);
        assert!(
            texts[1].contains(r#""containerID":"wide","ifName":"eth0","ipv4":"10.1.0.9""#),
            "{}",
            texts[1]
        );
        assert_eq!(texts[1].matches(r#""interfacesCount":3"#).count(), 1, "{}", texts[1]);

        let read = |card: u8| (NetworkCard(card), parse(&file(card), &prefix).unwrap());
        let whole = Checkpoint::of_cards([2, 0, 1].map(read), &prefix).unwrap();
        assert!(whole.ours);
        let said: Vec<_> =
            whole.entries.iter().map(|e| (e.address, e.card.0, e.index, e.host_if.clone())).collect();
        let is = |owner: &Owner, card: u8, index| (at(card).0, card, index, Some(owner.host_if.clone()));
        assert_eq!(
            said,
            [
                is(&first, 0, 0),
                ([10, 1, 0, 7].into(), 1, 0, Some(lone.host_if.clone())),
                is(&second, 1, 1),
                is(&third, 2, 2)
            ]
        );
        assert_eq!(Checkpoint::of_cards([], &prefix), None);
    }

    #[test]
    fn a_further_interface_of_an_unknown_card_is_no_second_entry_of_its_pod() {
        let sandbox = SandboxKey::new("aws-cni", "9f3c", "eth0").unwrap();
        let pod = PodName { namespace: "default".to_owned(), name: "wide".to_owned() };
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        let further = Some(Further { of: sandbox.clone(), index: 1 });
        let first =
            Owner { sandbox, pod, host_if, since: Moment(1), ipv6: None, further: None, branch: None };
        let second = Owner { sandbox: first.sandbox.further(1), further, ..first.clone() };
        let card = NetworkCard(0);
        let owners = [(&first, [10, 0, 0, 9].into(), card), (&second, [10, 1, 0, 9].into(), card)];

        let text = String::from_utf8(render(Families::V4 { egress: false }, card, owners)).unwrap();

        assert_eq!(text.matches("containerID").count(), 1, "{text}");
        assert!(text.contains(r#""ipv4":"10.0.0.9""#) && text.contains(r#""interfacesCount":2"#), "{text}");
    }
}
