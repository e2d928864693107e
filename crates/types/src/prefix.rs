//! Prefix delegation: /28 and /80 blocks of a subnet that EC2 gives to an ENI whole.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::IdError;

/// A /28 delegated to an ENI. It takes one slot of the ENI, as a single address does, and pods can have all of its
/// sixteen addresses.
///
/// Source: EC2 user guide, "Prefix delegation for Amazon EC2 network interfaces".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(Ipv4Addr);

impl Prefix {
    /// Addresses in a prefix.
    pub const ADDRESSES: u32 = 16;
    /// Bits that all of its addresses share.
    pub const LENGTH: u8 = 28;

    /// The prefix in which an address lies.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        Self(Ipv4Addr::from_bits(address.to_bits() & !(Self::ADDRESSES - 1)))
    }

    /// Its lowest address.
    #[must_use]
    pub const fn first(self) -> Ipv4Addr {
        self.0
    }

    /// Its addresses, lowest first.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.0.to_bits();
        (first..=first | (Self::ADDRESSES - 1)).map(Ipv4Addr::from_bits)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, Self::LENGTH)
    }
}

impl FromStr for Prefix {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let address = text.strip_suffix("/28").and_then(|first| first.parse().ok());
        let prefix = address.filter(|first| Self::of(*first).0 == *first).map(Self);
        prefix.ok_or_else(|| IdError::new("a /28 prefix", text))
    }
}

impl TryFrom<String> for Prefix {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// A /80 delegated to an ENI.
///
/// Which of its addresses a pod gets follows from an IPv4 address that only this pod has on the node: those are the last 32
/// bits, after 16 that are zero. So there is nothing to keep count of, and no address is given twice.
///
/// Source: EC2 user guide, "Prefix delegation for Amazon EC2 network interfaces".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Prefix(Ipv6Addr);

impl Ipv6Prefix {
    /// Bits that all of its addresses share.
    pub const LENGTH: u8 = 80;
    /// The bits that differ.
    const REST: u128 = (1 << (128 - 80)) - 1;

    /// A prefix of the node alone, for pods that reach IPv6 by a translated address only ("Unique Local IPv6 Unicast Addresses",
    /// RFC 4193).
    pub const LOCAL: Self = Self(Ipv6Addr::new(0xfd00, 0, 0, 0, 0xac, 0, 0, 0));

    /// The prefix in which an address lies.
    #[must_use]
    pub const fn of(address: Ipv6Addr) -> Self {
        Self(Ipv6Addr::from_bits(address.to_bits() & !Self::REST))
    }

    /// Its lowest address.
    #[must_use]
    pub const fn first(self) -> Ipv6Addr {
        self.0
    }

    /// The address that goes with an IPv4 address.
    #[must_use]
    pub fn beside(self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.to_bits() | u128::from(address.to_bits()))
    }

    /// The IPv4 address that an address goes with; `None` for one that goes with none.
    #[must_use]
    pub fn beneath(address: Ipv6Addr) -> Option<Ipv4Addr> {
        let rest = u32::try_from(address.to_bits() & Self::REST).ok()?;
        Some(Ipv4Addr::from_bits(rest))
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, Self::LENGTH)
    }
}

impl FromStr for Ipv6Prefix {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let address = text.strip_suffix("/80").and_then(|first| first.parse().ok());
        let prefix = address.filter(|first| Self::of(*first).0 == *first).map(Self);
        prefix.ok_or_else(|| IdError::new("a /80 prefix", text))
    }
}

impl TryFrom<String> for Ipv6Prefix {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Ipv6Prefix> for String {
    fn from(prefix: Ipv6Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_sixteen_addresses() {
        let prefix: Prefix = "255.255.255.240/28".parse().unwrap();

        let addresses: Vec<Ipv4Addr> = prefix.addresses().collect();

        assert_eq!(addresses.len(), 16);
        assert_eq!(addresses[0], prefix.first());
        assert!(addresses.iter().all(|address| Prefix::of(*address) == prefix));
        assert_eq!(prefix.to_string(), "255.255.255.240/28");
    }

    #[test]
    fn what_is_not_aligned_or_not_a_28_is_no_prefix() {
        for bad in ["10.0.0.1/28", "10.0.0.0/27", "10.0.0.0", "/28", "10.0.0.0/28/28", "2001:db8::/28"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ipv6_address_goes_with_one_ipv4_address() {
        let prefix: Ipv6Prefix = "2001:db8:0:1:4a2f::/80".parse().unwrap();
        let ipv4 = Ipv4Addr::new(10, 0, 16, 37);

        let ipv6 = prefix.beside(ipv4);

        assert_eq!(ipv6, "2001:db8:0:1:4a2f:0:a00:1025".parse::<Ipv6Addr>().unwrap());
        assert_eq!((Ipv6Prefix::of(ipv6), Ipv6Prefix::beneath(ipv6)), (prefix, Some(ipv4)));
        assert_eq!(Ipv6Prefix::beneath("2001:db8::4a2f:1:a00:1025".parse().unwrap()), None);
        for bad in ["2001:db8::/64", "2001:db8::1/80", "10.0.0.0/80", "/80"] {
            assert!(bad.parse::<Ipv6Prefix>().is_err(), "{bad}");
        }
    }
}
