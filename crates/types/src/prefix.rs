//! Prefix delegation: /28 blocks of a subnet that EC2 gives to an ENI whole.

use std::fmt;
use std::net::Ipv4Addr;
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
}
