//! Identifiers given by EC2, and MAC addresses. Those that are texts are shared: what is known of ENIs and pods is full of them, and copied at every turn.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An identifier or address that does not have the form it must have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {expected}")]
pub struct IdError {
    /// What it should have been, in words.
    pub expected: &'static str,
    /// What was found (cut to 64 characters).
    pub found: String,
}

impl IdError {
    pub(crate) fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.chars().take(64).collect() }
    }
}

macro_rules! ec2_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The identifier as EC2 writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let tail = text.strip_prefix($prefix).unwrap_or_default();
                let known = tail.len() <= 40 && tail.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if tail.is_empty() || !known {
                    return Err(IdError::new(concat!("an id that starts with ", $prefix), text));
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

ec2_id!(
    /// An elastic network interface, `eni-…`.
    EniId, "eni-"
);
ec2_id!(
    /// An EC2 instance, `i-…`.
    InstanceId, "i-"
);
ec2_id!(
    /// A VPC subnet, `subnet-…`.
    SubnetId, "subnet-"
);
ec2_id!(
    /// A security group, `sg-…`.
    SecurityGroupId, "sg-"
);

/// A 48-bit Ethernet address; prints in lower case with colons, as the kernel and IMDS do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address made of the given bytes.
    ///
    /// Set explicitly on host veths so that udev's `MACAddressPolicy=persistent` leaves them alone.
    #[must_use]
    pub const fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] | 0x02) & 0xfe;
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new("a MAC address", text);
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).ok().ok_or_else(wrong)?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_needs_its_prefix_and_a_plain_tail() {
        assert!("eni-0a1b".parse::<EniId>().is_ok());
        for bad in ["", "eni-", "eni", "i-1", "eni-../x", "eni-a b", "ENI-1"] {
            assert!(bad.parse::<EniId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mac_reads_what_it_prints() {
        let mac = Mac([0x0a, 0, 0xff, 3, 4, 5]);

        assert_eq!(mac.to_string(), "0a:00:ff:03:04:05");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in ["", "0a:00:ff:03:04", "0a:00:ff:03:04:05:06", "0a:00:ff:03:04:5", "zz:00:00:00:00:00"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_mac_is_unicast_and_locally_administered() {
        assert_eq!(Mac::local([0xff; 6]).0[0], 0xfe);
        assert_eq!(Mac::local([0; 6]).0[0], 0x02);
    }
}
