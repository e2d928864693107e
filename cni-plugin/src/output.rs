//! What is printed: CNI results, CNI errors, and the text for people.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use serde_json::Value;
use types::{HostVeth, PodName};
use wire::{Added, Failure};

use crate::version::CniVersion;

/// What one call prints and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output: JSON of the CNI protocol, or nothing.
    pub stdout: Vec<u8>,
    /// For standard error: text for a person, or nothing.
    pub stderr: Vec<u8>,
    /// Whether the exit status is 0.
    pub success: bool,
}

impl Outcome {
    pub(crate) fn succeeded(stdout: Vec<u8>) -> Self {
        Self { stdout, stderr: Vec::new(), success: true }
    }

    /// The answer to a start without `CNI_COMMAND`.
    pub(crate) fn about() -> Self {
        let versions = CniVersion::ALL.map(CniVersion::as_str).join(", ");
        let text =
            format!("AWS CNI {}\nCNI protocol versions supported: {versions}\n", env!("CARGO_PKG_VERSION"));
        Self { stdout: Vec::new(), stderr: text.into_bytes(), success: true }
    }

    /// The answer to VERSION; it repeats the version that the question came with.
    pub(crate) fn versions(asked: Option<String>) -> Self {
        Self::succeeded(json(&Versions {
            cni_version: asked.as_deref().unwrap_or(CniVersion::NEWEST.as_str()),
            supported_versions: CniVersion::ALL.map(CniVersion::as_str),
        }))
    }

    /// The specification's error object; the reason's word ends the message.
    pub(crate) fn failed(version: CniVersion, failure: &Failure) -> Self {
        let error = ErrorResult {
            cni_version: version.as_str(),
            code: failure.code.0,
            msg: format!("{} [{}]", failure.message, failure.reason),
            details: &failure.details,
        };
        Self { stdout: json(&error), stderr: Vec::new(), success: false }
    }
}

/// For whom a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The Go version, whose DEL can work from it: the container interface carries its routing table as `mac`, and an interface
    /// that exists only here carries the device number of the first address's ENI as `sandbox`, or of a branch ENI the VLAN as `mac`.
    Go,
    /// Runtimes that read these fields as what the specification says they are, such as Podman.
    Plain,
}

/// ADD's result in the version asked for.
pub(crate) fn add_result(
    version: CniVersion,
    shape: Shape,
    netns: &str,
    pod: &PodName,
    added: &Added,
) -> Vec<u8> {
    let mut interfaces = Vec::new();
    let mut ips = Vec::new();
    for interface in &added.interfaces {
        let link = HostVeth::found(&interface.host_if).filter(|_| shape == Shape::Plain);
        let mac = link.as_ref().map(|link| link.mac().to_string());
        interfaces.push(InterfaceResult { name: interface.host_if.clone(), mac, sandbox: None });
        let addresses = std::iter::once(&interface.address).chain(&interface.other);
        let gateways = interface.branch.iter().flat_map(|branch| branch.gateways.iter());
        let gateways = gateways.copied().map(Some).chain(std::iter::repeat(None));
        ips.extend(addresses.zip(gateways).map(|(address, gateway)| IpResult {
            version: family(version, address.ip()),
            interface: interfaces.len(),
            address: address.to_string(),
            // As the Go version's DEL reads it; to others it would be one that the pod itself asks.
            gateway: gateway.filter(|_| shape == Shape::Go),
        }));
        interfaces.push(InterfaceResult {
            name: interface.container_if.clone(),
            mac: Some(
                link.map_or_else(|| interface.table.0.to_string(), |link| link.mac_inside().to_string()),
            ),
            sandbox: Some(netns.to_owned()),
        });
    }
    if shape == Shape::Go {
        let first = added.interfaces.first();
        let vlan = first.and_then(|first| first.branch.as_ref()).map(|branch| branch.vlan.to_string());
        interfaces.push(InterfaceResult {
            name: HostVeth::dummy(pod).to_string(),
            sandbox: first.filter(|_| vlan.is_none()).map(|first| first.device.to_string()),
            mac: Some(vlan.unwrap_or_else(|| "0".to_owned())),
        });
    }
    json(&AddResult { cni_version: version.as_str(), interfaces, ips, dns: Dns {} })
}

/// The result of `lo`'s ADD where no plugin came before. Where there is IPv6 the kernel gives it `::1` too, which no runtime asks for.
pub(crate) fn loopback_result(version: CniVersion, netns: &str) -> Vec<u8> {
    let (name, mac) = ("lo".to_owned(), Some("00:00:00:00:00:00".to_owned()));
    let interfaces = vec![InterfaceResult { name, mac, sandbox: Some(netns.to_owned()) }];
    let (address, family) = ("127.0.0.1/8".to_owned(), family(version, Ipv4Addr::LOCALHOST.into()));
    let ips = vec![IpResult { version: family, interface: 0, address, gateway: None }];
    json(&AddResult { cni_version: version.as_str(), interfaces, ips, dns: Dns {} })
}

/// The result of the plugin before, which the runtime gives in the configuration's version.
pub(crate) fn passed_on(version: CniVersion, previous: &Value) -> Vec<u8> {
    let mut result = previous.clone();
    if let Some(result) = result.as_object_mut() {
        result.insert("cniVersion".to_owned(), version.as_str().into());
    }
    json(&result)
}

/// Results below 1.0.0 name the address family.
fn family(version: CniVersion, ip: IpAddr) -> Option<&'static str> {
    (version < CniVersion::V1_0_0).then_some(if ip.is_ipv4() { "4" } else { "6" })
}

/// These types have no map keys and no fallible fields, so that encoding cannot fail; should it, nothing is printed.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value)
        .map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        })
        .unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    cni_version: &'a str,
    supported_versions: [&'static str; 5],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorResult<'a> {
    cni_version: &'static str,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult {
    cni_version: &'static str,
    interfaces: Vec<InterfaceResult>,
    ips: Vec<IpResult>,
    dns: Dns,
}

#[derive(Serialize)]
struct InterfaceResult {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
}

#[derive(Serialize)]
struct IpResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    interface: usize,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// Always there and always empty, as the reference implementation's types print it in every version.
#[derive(Serialize)]
struct Dns {}

#[cfg(test)]
mod tests {
    use types::{DeviceIndex, NetworkCard, TableId, VlanId};
    use wire::{BranchTold, Interface};

    use super::*;

    fn interface(container_if: &str, host_if: &str, address: &str, device: u8) -> Interface {
        Interface {
            host_if: host_if.to_owned(),
            container_if: container_if.to_owned(),
            address: address.parse().unwrap(),
            other: None,
            device: DeviceIndex(device),
            table: TableId::of_eni(NetworkCard(0), DeviceIndex(device)),
            branch: None,
        }
    }

    fn sample_pod() -> PodName {
        PodName { namespace: "default".to_owned(), name: "sample-pod".to_owned() }
    }

    fn result(version: CniVersion, interfaces: Vec<Interface>) -> String {
        shaped(Shape::Go, version, interfaces)
    }

    fn shaped(shape: Shape, version: CniVersion, interfaces: Vec<Interface>) -> String {
        let added = Added { interfaces };
        let bytes = add_result(version, shape, "/var/run/netns/cni-1", &sample_pod(), &added);
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    }

    #[test]
    fn a_result_of_0_4_0_is_that_of_the_go_version() {
        let got = result(CniVersion::V0_4_0, vec![interface("eth0", "enicc21c2d7785", "10.0.1.23/32", 1)]);

        assert_eq!(
            got,
            r#"{"cniVersion":"0.4.0","interfaces":[{"name":"enicc21c2d7785"},{"name":"eth0","mac":"2","sandbox":"/var/run/netns/cni-1"},{"name":"dummycc21c2d7785","mac":"0","sandbox":"1"}],"ips":[{"version":"4","interface":1,"address":"10.0.1.23/32"}],"dns":{}}"#
        );
    }

    #[test]
    fn a_branch_enis_result_carries_its_vlan_and_router_as_the_go_versions_does() {
        let branch =
            BranchTold { vlan: VlanId::new(7).unwrap(), gateways: vec!["10.0.16.1".parse().unwrap()] };
        let interface = Interface {
            table: TableId(0),
            branch: Some(branch),
            ..interface("eth0", "vlancc21c2d7785", "10.0.20.9/32", 0)
        };

        assert_eq!(
            result(CniVersion::V0_4_0, vec![interface]),
            r#"{"cniVersion":"0.4.0","interfaces":[{"name":"vlancc21c2d7785"},{"name":"eth0","mac":"0","sandbox":"/var/run/netns/cni-1"},{"name":"dummycc21c2d7785","mac":"7"}],"ips":[{"version":"4","interface":1,"address":"10.0.20.9/32","gateway":"10.0.16.1"}],"dns":{}}"#
        );
    }

    #[test]
    fn a_plain_result_has_mac_addresses_and_no_interface_that_does_not_exist() {
        let link = HostVeth::found("enicc21c2d7785").unwrap();

        let got = shaped(
            Shape::Plain,
            CniVersion::V1_0_0,
            vec![interface("eth0", link.as_str(), "10.0.1.23/32", 1)],
        );

        let got: Value = serde_json::from_str(&got).unwrap();
        let inside = serde_json::json!({
            "name": "eth0", "mac": link.mac_inside().to_string(), "sandbox": "/var/run/netns/cni-1",
        });
        let outside = serde_json::json!({"name": link.as_str(), "mac": link.mac().to_string()});
        assert_eq!(got["interfaces"], serde_json::json!([outside, inside]));
        assert_ne!(link.mac(), link.mac_inside());
    }

    #[test]
    fn a_result_of_1_0_0_and_above_has_no_address_family() {
        for version in CniVersion::ALL {
            let got = result(version, vec![interface("eth0", "eni1", "10.0.1.23/32", 0)]);

            assert_eq!(got.contains(r#""version":"4""#), version < CniVersion::V1_0_0, "{got}");
            assert!(got.contains(r#""mac":"254""#), "{got}");
            assert!(got.starts_with(&format!(r#"{{"cniVersion":"{version}""#)), "{got}");
        }
    }

    #[test]
    fn both_families_of_an_interface_point_to_it() {
        let other = Some("2001:db8::a00:117/128".parse().unwrap());
        let dual = Interface { other, ..interface("eth0", "eni1", "10.0.1.23/32", 1) };

        let got = result(CniVersion::V1_0_0, vec![dual]);

        let ips = r#""ips":[{"interface":1,"address":"10.0.1.23/32"},{"interface":1,"address":"2001:db8::a00:117/128"}]"#;
        assert!(got.contains(ips), "{got}");
    }

    #[test]
    fn each_address_points_to_its_container_interface() {
        let two = vec![
            interface("eth0", "eni1", "10.0.1.23/32", 1),
            interface("mNicIf1", "eni2", "2001:db8::1/128", 2),
        ];

        let got = result(CniVersion::V0_3_1, two);

        assert!(got.contains(r#"{"version":"4","interface":1,"address":"10.0.1.23/32"}"#), "{got}");
        assert!(got.contains(r#"{"version":"6","interface":3,"address":"2001:db8::1/128"}"#), "{got}");
    }
}
