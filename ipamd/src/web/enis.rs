//! `/v1/enis`: the pool in the Go version's words. Container ids and interface names are left out, as there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnetwork::{IpNetwork, Ipv4Network};
use pool::{EniSeen, Owner, Role, Snapshot};
use serde::Serialize;
use types::{EniId, Moment, NetworkCard, Prefix, TableId};
use wire::Report;

use crate::families::Families;

/// What belongs to one network card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Card {
    /// Addresses that pods may have.
    #[serde(rename = "TotalIPs")]
    total: usize,
    /// Addresses that pods have.
    #[serde(rename = "AssignedIPs")]
    assigned: usize,
    #[serde(rename = "ENIs")]
    enis: BTreeMap<EniId, Eni>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Eni {
    #[serde(rename = "ID")]
    id: EniId,
    is_primary: bool,
    is_trunk: bool,
    /// Not known here.
    #[serde(rename = "IsEFA")]
    is_efa: bool,
    device_number: u8,
    #[serde(rename = "AvailableIPv4Cidrs")]
    ipv4: BTreeMap<String, Range>,
    #[serde(rename = "IPv6Cidrs")]
    ipv6: BTreeMap<String, Range>,
    #[serde(rename = "IsExcludedForPodIPs")]
    is_excluded_for_pod_ips: bool,
    #[serde(rename = "RouteTableID")]
    table: u32,
    #[serde(rename = "SubnetID")]
    subnet: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    cidr: Cidr,
    /// Those that a pod has, and those that cool.
    #[serde(rename = "IPAddresses")]
    addresses: BTreeMap<IpAddr, Address>,
    is_prefix: bool,
    /// Empty in the Go version too.
    address_family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cidr {
    #[serde(rename = "IP")]
    ip: IpAddr,
    /// In base64.
    mask: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Address {
    address: IpAddr,
    #[serde(rename = "IPAMKey")]
    key: Key,
    #[serde(rename = "IPAMMetadata")]
    pod: Pod,
    assigned_time: String,
    unassigned_time: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: &'static str,
    if_name: &'static str,
}

/// Members that say nothing are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    #[serde(rename = "k8sPodNamespace", skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(rename = "k8sPodName", skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    interfaces_count: Option<u8>,
}

/// The pool, by network card. The report has what the pool's snapshot lacks: which ENIs are excluded, and the IPv6 prefixes.
pub(super) fn by_card(
    pool: &Snapshot,
    report: &Report,
    families: Families,
    cooldown: Duration,
) -> BTreeMap<NetworkCard, Card> {
    // There even before anything is known of the instance.
    let mut cards = BTreeMap::from([(NetworkCard(0), Card::default())]);
    let used = used(pool, report.now, cooldown);
    for seen in pool.enis.iter().filter(|eni| eni.role != Role::Unmanaged) {
        let mut eni = eni(seen, report);
        if families.has_ipv4_of_vpc() {
            eni.ipv4 = ipv4(seen, &used);
        }
        let told = report.enis.iter().find(|eni| eni.id == seen.id);
        let prefix = told.and_then(|told| told.ipv6_prefix).filter(|_| families.needs_prefix());
        if let Some(prefix) = prefix {
            let of_it = |owner: &Owner| owner.ipv6.filter(|ipv6| types::Ipv6Prefix::of(*ipv6) == prefix);
            let held = pool.owners.iter().filter_map(|(owner, _)| Some((of_it(owner)?.into(), owner)));
            let addresses = held.map(|(ip, owner)| (ip, held_by(pool, ip, owner))).collect();
            if let Ok(network) = IpNetwork::new(prefix.first().into(), 80) {
                eni.ipv6.insert(network.to_string(), range(network, true, addresses));
            }
        }
        let card = cards.entry(seen.card).or_default();
        let given = seen.given();
        card.total += given.all().count();
        card.assigned += pool.owners.iter().filter(|(_, address)| given.covers(*address)).count();
        card.enis.insert(seen.id.clone(), eni);
    }
    cards
}

fn eni(seen: &EniSeen, report: &Report) -> Eni {
    let told = report.enis.iter().find(|eni| eni.id == seen.id);
    Eni {
        id: seen.id.clone(),
        is_primary: seen.role == Role::Primary,
        is_trunk: seen.role == Role::Trunk,
        is_efa: seen.role == Role::Efa,
        device_number: seen.device.0,
        ipv4: BTreeMap::new(),
        ipv6: BTreeMap::new(),
        is_excluded_for_pod_ips: told.is_some_and(|eni| eni.excluded.is_some()),
        table: TableId::of_eni(seen.card, seen.device).0,
        subnet: seen.subnet.to_string(),
    }
}

/// Addresses of the pool that pods have, and those that cool.
fn used(pool: &Snapshot, now: Moment, cooldown: Duration) -> BTreeMap<IpAddr, Address> {
    let cooling = pool.cooling.iter().filter(|(_, until)| **until > now);
    let cooling = cooling.map(|(ip, until)| {
        let (ip, since) = (IpAddr::V4(*ip), until.minus(cooldown));
        let (key, pod) = (Key::default(), Pod::default());
        (ip, Address { address: ip, key, pod, assigned_time: never(), unassigned_time: time(since) })
    });
    let held = pool.owners.iter().map(|(owner, ip)| (IpAddr::V4(*ip), held_by(pool, IpAddr::V4(*ip), owner)));
    cooling.chain(held).collect()
}

fn held_by(pool: &Snapshot, ip: IpAddr, owner: &Owner) -> Address {
    let interfaces = pool.owners.iter().filter(|(other, _)| other.main() == owner.main()).count();
    let network_name = owner.sandbox.network_name().to_owned();
    let (namespace, name) = (owner.pod.namespace.clone(), owner.pod.name.clone());
    Address {
        address: ip,
        key: Key { network_name, ..Key::default() },
        pod: Pod { namespace, name, interfaces_count: u8::try_from(interfaces).ok() },
        assigned_time: time(owner.since),
        unassigned_time: never(),
    }
}

fn ipv4(seen: &EniSeen, used: &BTreeMap<IpAddr, Address>) -> BTreeMap<String, Range> {
    let singles = seen.addresses.iter().filter_map(|ip| Ipv4Network::new(*ip, 32).ok());
    let prefixes =
        seen.prefixes.iter().filter_map(|prefix| Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok());
    let ranges = singles.map(|single| (single, false)).chain(prefixes.map(|prefix| (prefix, true)));
    ranges
        .map(|(network, is_prefix)| {
            let inside = network.iter().filter_map(|ip| used.get_key_value(&IpAddr::V4(ip)));
            let addresses = inside.map(|(ip, address)| (*ip, address.clone())).collect();
            (network.to_string(), range(IpNetwork::V4(network), is_prefix, addresses))
        })
        .collect()
}

fn range(network: IpNetwork, is_prefix: bool, addresses: BTreeMap<IpAddr, Address>) -> Range {
    let mask = match network.mask() {
        IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
        IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
    };
    Range { cidr: Cidr { ip: network.ip(), mask }, addresses, is_prefix, address_family: "" }
}

/// A moment in the form of RFC 3339.
fn time(moment: Moment) -> String {
    let milliseconds = i64::try_from(moment.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(milliseconds).map_or_else(|_| never(), |time| time.to_string())
}

/// How the Go version writes that something has not been.
fn never() -> String {
    "0001-01-01T00:00:00Z".to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::{Value, json};
    use types::{DeviceIndex, HostVeth, Mac, PodName, SandboxKey, VethPrefix};

    use super::*;
    use crate::status::blank;

    const NOW: Moment = Moment(1_786_096_830_000);

    fn eni(role: Role) -> EniSeen {
        EniSeen {
            id: "eni-01".parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            card: NetworkCard(0),
            device: DeviceIndex(0),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: Ipv4Addr::new(10, 0, 1, 4),
            addresses: [Ipv4Addr::new(10, 0, 1, 23)].into(),
            prefixes: ["10.0.2.16/28".parse().unwrap()].into(),
            role,
        }
    }

    fn owner(ipv6: Option<&str>) -> Owner {
        let pod = PodName { namespace: "default".to_owned(), name: "sample-pod".to_owned() };
        Owner {
            sandbox: SandboxKey::new("aws-cni", "secret", "eth0").unwrap(),
            host_if: HostVeth::of_pod(&VethPrefix::default(), &pod, 0),
            pod,
            since: Moment(1_786_096_800_100),
            ipv6: ipv6.map(|text| text.parse().unwrap()),
            further: None,
            branch: None,
        }
    }

    fn shown(pool: &Snapshot, report: &Report, families: Families) -> Value {
        serde_json::to_value(by_card(pool, report, families, Duration::from_secs(30))).unwrap()
    }

    #[test]
    fn an_assigned_address_looks_as_in_the_go_version() {
        let mut enis = vec![eni(Role::Primary)];
        enis[0].prefixes.clear();
        let owners = vec![(owner(None), Ipv4Addr::new(10, 0, 1, 23))];
        let pool = Snapshot { enis, owners, ..Snapshot::default() };

        let told = shown(&pool, &blank(NOW), Families::V4 { egress: false });

        let address = json!({
            "Address": "10.0.1.23",
            "IPAMKey": {"networkName": "aws-cni", "containerID": "", "ifName": ""},
            "IPAMMetadata": {"k8sPodNamespace": "default", "k8sPodName": "sample-pod", "interfacesCount": 1},
            "AssignedTime": "2026-08-07T10:00:00.1Z", "UnassignedTime": "0001-01-01T00:00:00Z",
        });
        let cidr = json!({
            "Cidr": {"IP": "10.0.1.23", "Mask": "/////w=="}, "IPAddresses": {"10.0.1.23": address},
            "IsPrefix": false, "AddressFamily": "",
        });
        let eni = json!({
            "ID": "eni-01", "IsPrimary": true, "IsTrunk": false, "IsEFA": false, "DeviceNumber": 0,
            "AvailableIPv4Cidrs": {"10.0.1.23/32": cidr}, "IPv6Cidrs": {}, "IsExcludedForPodIPs": false,
            "RouteTableID": 254, "SubnetID": "subnet-1",
        });
        assert_eq!(told, json!({"0": {"TotalIPs": 1, "AssignedIPs": 1, "ENIs": {"eni-01": eni}}}));
    }

    #[test]
    fn what_cools_says_since_when_and_belongs_to_nobody() {
        let cooling = [(Ipv4Addr::new(10, 0, 2, 17), NOW.plus(Duration::from_secs(10)))].into();
        let pool = Snapshot { enis: vec![eni(Role::Secondary)], cooling, ..Snapshot::default() };

        let told = shown(&pool, &blank(NOW), Families::V4 { egress: false });

        assert_eq!((&told["0"]["TotalIPs"], &told["0"]["AssignedIPs"]), (&json!(17), &json!(0)));
        let prefix = &told["0"]["ENIs"]["eni-01"]["AvailableIPv4Cidrs"]["10.0.2.16/28"];
        assert_eq!((&prefix["IsPrefix"], &prefix["Cidr"]["Mask"]), (&json!(true), &json!("////8A==")));
        let address = &prefix["IPAddresses"]["10.0.2.17"];
        assert_eq!(address["UnassignedTime"], "2026-08-07T10:00:10Z");
        assert_eq!(address["AssignedTime"], "0001-01-01T00:00:00Z");
        assert_eq!(address["IPAMMetadata"], json!({}));
        assert_eq!(address["IPAMKey"], json!({"networkName": "", "containerID": "", "ifName": ""}));
    }

    #[test]
    fn ipv6_addresses_stand_in_their_prefix_on_its_eni() {
        let owners = vec![(owner(Some("2001:db8::a00:117")), Ipv4Addr::new(10, 0, 1, 23))];
        let pool = Snapshot { enis: vec![eni(Role::Primary)], owners, ..Snapshot::default() };
        let known = pool::Pool::restore(pool.clone(), Duration::from_secs(30), NOW);
        let prefixes = [(pool.enis[0].id.clone(), "2001:db8::/80".parse().unwrap())].into();
        let report = Report { enis: node::status::enis(&known, &prefixes, NOW), ..blank(NOW) };

        let dual = shown(&pool, &report, Families::Dual);
        let alone = shown(&pool, &report, Families::V6 { egress: true });

        let prefix = &dual["0"]["ENIs"]["eni-01"]["IPv6Cidrs"]["2001:db8::/80"];
        assert_eq!(prefix["Cidr"]["Mask"], "/////////////wAAAAAAAA==");
        assert_eq!(prefix["IPAddresses"]["2001:db8::a00:117"]["IPAMMetadata"]["k8sPodName"], "sample-pod");
        assert_eq!(alone["0"]["ENIs"]["eni-01"]["AvailableIPv4Cidrs"], json!({}));
    }

    #[test]
    fn an_eni_that_is_not_ours_is_not_shown() {
        let pool = Snapshot { enis: vec![eni(Role::Unmanaged)], ..Snapshot::default() };

        let told = shown(&pool, &blank(NOW), Families::V4 { egress: false });

        assert_eq!(told, json!({"0": {"TotalIPs": 0, "AssignedIPs": 0, "ENIs": {}}}));
    }
}
