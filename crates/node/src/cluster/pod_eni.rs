//! What a pod's object says of its branch ENI. Pure.
//!
//! That a pod is to have one its containers say: the controller's webhook gives the first one a limit, and the controller makes as many as all of
//! them ask for. Which one it is the controller writes into an annotation, as a list of which the first entry counts. Names of fields are taken in
//! any case: the controller writes `vlanId` where the Go version's own code says `vlanID`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use datapath::desired::gateway;
use ipnetwork::{Ipv4Network, Ipv6Network};
use serde_json::{Map, Value};
use types::{BranchEni, BranchIpv4, EniId, Mac, PodName, VlanId};

/// What limits that ask for a branch ENI begin with.
const RESOURCE: &str = "vpc.amazonaws.com/pod-eni";
/// The annotation that names it.
pub const ANNOTATION: &str = "vpc.amazonaws.com/pod-eni";
/// A longer one is nothing that the controller writes.
const BYTES_MAX: usize = 64 * 1024;

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodObject {
    /// Its name.
    pub name: PodName,
    /// Its UID: the next pod of this name is another one.
    pub uid: String,
    /// Which branch ENI it is to have.
    pub branch: BranchWish,
    /// The CPU that it has asked for, in thousandths; none once it has ended.
    pub cpu: u64,
    /// It is to have an address of its own: it has not ended, and not the node's network.
    pub gets_address: bool,
}

/// Which branch ENI a pod is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchWish {
    /// None.
    No,
    /// One that the controller has not made yet.
    Coming,
    /// This one.
    Is(BranchEni),
    /// One, and what is said of it cannot be: why.
    Wrong(String),
}

impl BranchWish {
    /// Reads what a pod asks for, by the names of its containers' requests and limits with their amounts, and what its annotation says.
    #[must_use]
    pub fn of<'a>(resources: impl IntoIterator<Item = (&'a str, &'a str)>, annotation: Option<&str>) -> Self {
        let asks = |(name, amount): (&str, &str)| name.starts_with(RESOURCE) && amount.trim() != "0";
        if !resources.into_iter().any(asks) {
            return Self::No;
        }
        match annotation.filter(|text| !text.trim().is_empty()) {
            None => Self::Coming,
            Some(text) => read(text).map_or_else(Self::Wrong, Self::Is),
        }
    }
}

/// Reads the annotation.
fn read(text: &str) -> Result<BranchEni, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("it is longer than {BYTES_MAX} bytes"));
    }
    let list: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let first = list.as_array().ok_or("it is no list")?.first().ok_or("it names none")?;
    let fields = Fields(first.as_object().ok_or("its first entry is no object")?);
    let vlan = fields.number("vlanId")?;
    let vlan = VlanId::new(vlan).map_err(|error| format!("vlanId: {error}"))?;
    let mac: Mac = fields.parsed("ifAddress")?.ok_or("ifAddress is missing")?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(format!("ifAddress: {mac} is no single link's"));
    }
    let (ipv4, ipv6) = (ipv4(&fields)?, ipv6(&fields)?);
    if ipv4.is_none() && ipv6.is_none() {
        return Err("it has neither privateIp nor ipv6Addr".to_owned());
    }
    let id: EniId = fields.parsed("eniId")?.ok_or("eniId is missing")?;
    Ok(BranchEni { id: Some(id), mac, vlan, ipv4, ipv6 })
}

fn ipv4(fields: &Fields<'_>) -> Result<Option<BranchIpv4>, String> {
    let Some(address) = fields.parsed::<Ipv4Addr>("privateIp")? else { return Ok(None) };
    let subnet: Ipv4Network = fields.parsed("subnetCidr")?.ok_or("subnetCidr is missing")?;
    // Amazon VPC user guide, subnet sizing: /16 to /28.
    if !(16..=28).contains(&subnet.prefix()) {
        return Err(format!("subnetCidr: {subnet} is no subnet's"));
    }
    if !subnet.contains(address) {
        return Err(format!("privateIp: {address} is not in {subnet}"));
    }
    Ok(Some(BranchIpv4 { address, gateway: gateway(subnet) }))
}

/// The router is the same in every subnet, so that the subnet may be missing.
fn ipv6(fields: &Fields<'_>) -> Result<Option<Ipv6Addr>, String> {
    let Some(address) = fields.parsed::<Ipv6Addr>("ipv6Addr")? else { return Ok(None) };
    if address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local() {
        return Err(format!("ipv6Addr: {address} is no address of a subnet"));
    }
    let subnet: Option<Ipv6Network> = fields.parsed("subnetV6Cidr")?;
    match subnet.filter(|subnet| !subnet.contains(address)) {
        Some(subnet) => Err(format!("ipv6Addr: {address} is not in {subnet}")),
        None => Ok(Some(address)),
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// A field by its name in any case; the exact one first.
    fn get(&self, name: &str) -> Option<&Value> {
        let alike = || self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        self.0.get(name).or_else(alike).filter(|value| !value.is_null())
    }

    /// A text that means something; none for one that is empty or missing.
    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| format!("{name} is no text"))?;
        if text.is_empty() {
            return Ok(None);
        }
        let shown: String = text.chars().take(64).collect();
        text.parse().map(Some).map_err(|_unfit| format!("{name}: {shown:?} is not what it should be"))
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let value = self.get(name).ok_or_else(|| format!("{name} is missing"))?;
        value.as_u64().ok_or_else(|| format!("{name} is no whole number"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ASKS: [(&str, &str); 2] = [("cpu", "1"), ("vpc.amazonaws.com/pod-eni", "1")];

    fn entry() -> Value {
        json!({
            "eniId": "eni-0b", "ifAddress": "02:00:00:00:00:07", "privateIp": "10.0.20.9", "ipv6Addr": "", "vlanId": 7,
            "subnetCidr": "10.0.16.0/20", "subnetV6Cidr": "", "associationID": "trunk-assoc-1"
        })
    }

    fn with(name: &str, value: Value) -> String {
        let mut entry = entry();
        entry[name] = value;
        json!([entry]).to_string()
    }

    fn branch() -> BranchEni {
        let ipv4 = BranchIpv4 { address: [10, 0, 20, 9].into(), gateway: [10, 0, 16, 1].into() };
        BranchEni {
            id: Some("eni-0b".parse().unwrap()),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            vlan: VlanId::new(7).unwrap(),
            ipv4: Some(ipv4),
            ipv6: None,
        }
    }

    #[test]
    fn the_first_entry_counts_and_names_of_fields_do_in_any_case() {
        let of = |text: &str| BranchWish::of(ASKS, Some(text));
        assert_eq!(of(&json!([entry(), {"vlanId": "no"}]).to_string()), BranchWish::Is(branch()));
        for id in ["vlanID", "VLANID", "vlanid"] {
            let mut other = entry();
            other.as_object_mut().unwrap().remove("vlanId");
            other[id] = json!(7);
            assert_eq!(of(&json!([other]).to_string()), BranchWish::Is(branch()), "{id}");
        }
        let dual = with("ipv6Addr", json!("2001:db8::9"));
        let ipv6 = Some("2001:db8::9".parse().unwrap());
        assert_eq!(of(&dual), BranchWish::Is(BranchEni { ipv6, ..branch() }));
        let ipv6_alone = dual.replace("10.0.20.9", "");
        assert_eq!(of(&ipv6_alone), BranchWish::Is(BranchEni { ipv4: None, ipv6, ..branch() }));
    }

    #[test]
    fn any_container_may_ask_and_who_does_not_has_none_whatever_its_annotation_says() {
        let text = json!([entry()]).to_string();
        assert_eq!(BranchWish::of([("cpu", "1")], Some(&text)), BranchWish::No);
        assert_eq!(BranchWish::of([("vpc.amazonaws.com/pod-eni", "0")], Some(&text)), BranchWish::No);
        assert_eq!(BranchWish::of(ASKS, None), BranchWish::Coming);
        assert_eq!(BranchWish::of(ASKS, Some(" ")), BranchWish::Coming);
    }

    #[test]
    fn what_cannot_be_says_why() {
        let cases = [
            ("[".to_owned(), "no JSON"),
            ("{}".to_owned(), "no list"),
            ("[]".to_owned(), "names none"),
            ("[7]".to_owned(), "no object"),
            (with("vlanId", json!(0)), "0 is no VLAN id"),
            (with("vlanId", json!(4095)), "4095 is no VLAN id"),
            (with("vlanId", json!("7")), "vlanId is no whole number"),
            (with("vlanId", json!(null)), "vlanId is missing"),
            (with("ifAddress", json!("03:00:00:00:00:07")), "no single link's"),
            (with("ifAddress", json!("nonsense")), "ifAddress: \"nonsense\""),
            (with("ifAddress", json!(7)), "ifAddress is no text"),
            (with("eniId", json!("../x")), "eniId"),
            (with("eniId", json!("")), "eniId is missing"),
            (with("privateIp", json!("10.9.0.1")), "10.9.0.1 is not in 10.0.16.0/20"),
            (with("privateIp", json!("10.0.20.256")), "privateIp"),
            (with("privateIp", json!("")), "neither privateIp nor ipv6Addr"),
            (with("subnetCidr", json!("10.0.0.0/8")), "no subnet's"),
            (with("subnetCidr", json!("")), "subnetCidr is missing"),
            (with("ipv6Addr", json!("fe80::1")), "fe80::1 is no address of a subnet"),
            (format!("[{}]", " ".repeat(BYTES_MAX)), "longer than"),
        ];
        for (text, why) in cases {
            let BranchWish::Wrong(told) = BranchWish::of(ASKS, Some(&text)) else { panic!("{text}") };
            assert!(told.contains(why), "{text}: {told}");
        }
        let mut elsewhere = entry();
        elsewhere["ipv6Addr"] = json!("2001:db8::9");
        elsewhere["subnetV6Cidr"] = json!("2001:db8:1::/64");
        let told = BranchWish::of(ASKS, Some(&json!([elsewhere]).to_string()));
        assert!(
            matches!(&told, BranchWish::Wrong(why) if why.contains("is not in 2001:db8:1::/64")),
            "{told:?}"
        );
    }
}
