//! Branch ENIs: a pod's own network interface with its own security groups, reached by a VLAN of the trunk ENI.
//!
//! The VPC resource controller makes them and writes what it made to the pod (annotation `vpc.amazonaws.com/pod-eni`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{EniId, Mac, TableId};

/// The id of a branch ENI's VLAN: 1 to 4094 (IEEE 802.1Q; 0 and 4095 mean other things), but for those three whose table would be one of the
/// kernel's own. The controller gives none above 120.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// A number that is no VLAN's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VLAN id: 1 to 4094, but for 153 to 155")]
pub struct VlanIdError(pub u64);

impl VlanId {
    /// What the names of VLAN links begin with; the Go version's.
    const LINK_PREFIX: &'static str = "vlan.eth.";

    /// Checks the range.
    ///
    /// # Errors
    /// When the number is none of these.
    pub fn new(number: u64) -> Result<Self, VlanIdError> {
        let id = u16::try_from(number).ok().filter(|id| (1..=4094).contains(id)).map(Self);
        id.filter(|id| id.table().is_of_branch()).ok_or(VlanIdError(number))
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The name of the VLAN's link on the host.
    #[must_use]
    pub fn link(self) -> String {
        format!("{}{}", Self::LINK_PREFIX, self.0)
    }

    /// The VLAN whose link has this name.
    #[must_use]
    pub fn of_link(name: &str) -> Option<Self> {
        let id = Self::new(name.strip_prefix(Self::LINK_PREFIX)?.parse().ok()?).ok()?;
        // Not `vlan.eth.07`.
        (id.link() == name).then_some(id)
    }

    /// The routing table by which packets of the branch ENI leave.
    #[must_use]
    pub fn table(self) -> TableId {
        TableId(TableId::BRANCHES + u32::from(self.0))
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u16> for VlanId {
    type Error = VlanIdError;

    fn try_from(number: u16) -> Result<Self, VlanIdError> {
        Self::new(number.into())
    }
}

impl From<VlanId> for u16 {
    fn from(id: VlanId) -> Self {
        id.0
    }
}

/// An IPv4 address of a branch ENI and the router of its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchIpv4 {
    /// The address.
    pub address: Ipv4Addr,
    /// The router.
    pub gateway: Ipv4Addr,
}

/// A branch ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchEni {
    /// Its id; not known of a pod that only the kernel tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<EniId>,
    /// Its MAC address.
    pub mac: Mac,
    /// The VLAN of the trunk that leads to it.
    pub vlan: VlanId,
    /// Its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<BranchIpv4>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

impl BranchEni {
    /// The VPC's router for IPv6, the same in every subnet.
    pub const IPV6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0x0ec2, 0, 0, 0, 0, 0, 1);

    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ipv4 = self.ipv4.map(|of| IpAddr::V4(of.address));
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6)).collect()
    }

    /// Its routers, in the order of its addresses.
    #[must_use]
    pub fn gateways(&self) -> Vec<IpAddr> {
        let ipv4 = self.ipv4.map(|of| IpAddr::V4(of.gateway));
        ipv4.into_iter().chain(self.ipv6.map(|_| IpAddr::V6(Self::IPV6_GATEWAY))).collect()
    }
}

impl fmt::Display for BranchEni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{id}, VLAN {}", self.vlan),
            None => write!(f, "VLAN {}", self.vlan),
        }
    }
}

/// How strictly a pod's traffic is bound to its branch ENI (`POD_SECURITY_GROUP_ENFORCING_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcing {
    /// All of it goes by the branch ENI, also to the node and to pods on it, and nothing is translated.
    #[default]
    Strict,
    /// As with pods on a secondary ENI: what leaves the VPC is translated to the node's address, what stays on the node stays there.
    Standard,
}

/// A pod's branch ENI, as it is wired: what is to be undone does not depend on settings that have changed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The branch ENI, with the addresses that the pod has.
    pub eni: BranchEni,
    /// The trunk ENI's MAC address, which finds its link.
    pub trunk: Mac,
    /// How strictly.
    pub enforcing: Enforcing,
}

impl Branch {
    /// Whether the pod's traffic goes by its branch ENI alone.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.enforcing == Enforcing::Strict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_id_is_1_to_4094_and_names_its_link_and_table() {
        let ids: Vec<bool> =
            [0, 1, 154, 4094, 4095, 65_537, u64::MAX].map(|id| VlanId::new(id).is_ok()).into();
        assert_eq!(
            ids,
            [false, true, false, true, false, false, false],
            "the table of 154 would be the main one"
        );
        let seven = VlanId::new(7).unwrap();
        assert_eq!((seven.link(), seven.table()), ("vlan.eth.7".to_owned(), TableId(107)));
        assert_eq!(VlanId::of_link("vlan.eth.7"), Some(seven));
        for other in ["vlan.eth.07", "vlan.eth.0", "vlan.eth.", "vlan.eth.-1", "vlan7", "vlan.eth.4095"] {
            assert_eq!(VlanId::of_link(other), None, "{other}");
        }
        assert!(serde_json::from_str::<VlanId>("4095").is_err());
    }

    #[test]
    fn a_branch_is_stored_as_it_was() {
        let eni = BranchEni {
            id: Some("eni-0a".parse().unwrap()),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            vlan: VlanId::new(7).unwrap(),
            ipv4: Some(BranchIpv4 { address: [10, 0, 3, 9].into(), gateway: [10, 0, 0, 1].into() }),
            ipv6: None,
        };
        let branch = Branch { eni, trunk: Mac([2; 6]), enforcing: Enforcing::Standard };

        let text = serde_json::to_string(&branch).unwrap();

        assert!(text.contains(r#""enforcing":"standard""#) && !text.contains("ipv6"), "{text}");
        assert_eq!(serde_json::from_str::<Branch>(&text).unwrap(), branch);
    }
}
