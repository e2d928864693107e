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
use types::{HostVeth, Ipv6Prefix, Moment, PodName, SandboxKey, VethPrefix};

use crate::families::Families;

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
}

impl Entry {
    /// The address as people know it, and routes lead to it.
    #[must_use]
    pub fn told(&self) -> IpAddr {
        self.ipv6.map_or(IpAddr::V4(self.address), IpAddr::V6)
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
    Some(Entry { sandbox, pod, host_if, address, ipv6, since })
}

/// The checkpoint of these owners, as the Go version reads it: with the address of its only family. It keeps those of further interfaces in
/// files of their own; here they are counted, as the network policy agent reads here how many interfaces a pod has.
#[must_use]
pub fn render<'a, I: IntoIterator<Item = (&'a Owner, Ipv4Addr)>>(families: Families, owners: I) -> Vec<u8> {
    let owners: Vec<(&Owner, Ipv4Addr)> = owners.into_iter().collect();
    let mut interfaces = BTreeMap::<&SandboxKey, u32>::new();
    for (owner, _) in &owners {
        *interfaces.entry(owner.main()).or_default() += 1;
    }
    let allocation = |(owner, address): (&Owner, Ipv4Addr)| {
        let (ipv4, ipv6) = match families.has_ipv4_of_vpc() {
            true => (Some(address.to_string()), None),
            // One without is of the Go version's egress plugin, which has books of its own.
            false => (None, Some(owner.ipv6?.to_string())),
        };
        let PodName { namespace, name } = owner.pod.clone();
        let since = Duration::from_millis(owner.since.0).as_nanos();
        Some(Allocation {
            network_name: owner.sandbox.network_name().to_owned(),
            container_id: owner.sandbox.container_id().to_owned(),
            if_name: owner.sandbox.if_name().to_owned(),
            ipv4,
            ipv6,
            allocation_timestamp: u64::try_from(since).unwrap_or(u64::MAX),
            metadata: Metadata { namespace, name, interfaces: interfaces.get(owner.main()).copied() },
        })
    };
    // It keeps none of branch ENIs there.
    let known = owners.into_iter().filter(|(owner, _)| owner.further.is_none() && owner.branch.is_none());
    let allocations = known.filter_map(allocation).collect();
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

        let bytes = render(Families::V6 { egress: true }, [(&owner, entry.address), (&of_egress, local)]);

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

        let bytes = render(Families::V4 { egress: false }, [(&owner, [10, 0, 1, 23].into())]);

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
    fn a_pod_with_several_interfaces_is_one_entry_that_has_their_number() {
        let pod = PodName { namespace: "default".to_owned(), name: "wide".to_owned() };
        let sandbox = SandboxKey::new("aws-cni", "9f3c", "eth0").unwrap();
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        let since = Moment(1);
        let sandbox_of_first = sandbox.clone();
        let first =
            Owner { sandbox: sandbox_of_first, pod, host_if, since, ipv6: None, further: None, branch: None };
        let further = |index| Owner {
            sandbox: sandbox.further(index),
            further: Some(Further { of: sandbox.clone(), index }),
            ..first.clone()
        };
        let (second, third) = (further(1), further(2));
        let owners =
            [(&second, [10, 1, 0, 9].into()), (&first, [10, 0, 0, 9].into()), (&third, [10, 2, 0, 9].into())];

        let text = String::from_utf8(render(Families::V4 { egress: false }, owners)).unwrap();

        assert_eq!(text.matches("containerID").count(), 1, "{text}");
        assert!(text.contains(r#""ipv4":"10.0.0.9""#) && text.contains(r#""interfacesCount":3"#), "{text}");
    }
}
