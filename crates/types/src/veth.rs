//! Names of host interfaces.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::{Mac, PodName, SandboxKey};

/// Length of the part of a name that says whose it is, in hexadecimal digits.
const HASH: usize = 11;
/// What the names of host ends begin with whose pods' traffic goes by their branch ENI alone; no [`VethPrefix`] is this one.
const BRANCH_PREFIX: &str = "vlan";

/// What host veth names start with: 1 to 4 characters, `eni` unless configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VethPrefix(String);

/// Why a text cannot be a veth prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot start a host interface name: 1 to 4 of [a-z0-9], and not eth, lo or vlan")]
pub struct VethPrefixError(pub String);

impl VethPrefix {
    /// Checks the rules the Go version's entrypoint has: at most 4 characters, not `eth`, `lo` or `vlan`.
    ///
    /// # Errors
    /// When the text breaks one of them.
    pub fn new(text: &str) -> Result<Self, VethPrefixError> {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if text.is_empty() || text.len() > 4 || !plain || matches!(text, "eth" | "lo" | "vlan") {
            return Err(VethPrefixError(text.chars().take(64).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The prefix itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for VethPrefix {
    fn default() -> Self {
        Self("eni".to_owned())
    }
}

impl TryFrom<String> for VethPrefix {
    type Error = VethPrefixError;

    fn try_from(text: String) -> Result<Self, VethPrefixError> {
        Self::new(&text)
    }
}

impl From<VethPrefix> for String {
    fn from(prefix: VethPrefix) -> Self {
        prefix.0
    }
}

/// The host end of a pod's veth pair.
///
/// Prefix and the first 11 hexadecimal digits of SHA-1 over `namespace.name` (`namespace.name.N` for the
/// Nth additional interface), as the Go version and Calico compute it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct HostVeth(Arc<str>);

impl HostVeth {
    /// The name for a pod's interface number `index` (0 is `eth0`).
    #[must_use]
    pub fn of_pod(prefix: &VethPrefix, pod: &PodName, index: u8) -> Self {
        Self(format!("{}{}", prefix.as_str(), hash(&pod_text(pod, index))).into())
    }

    /// The name for a pod whose traffic goes by its branch ENI alone: no rule for other pods' names is for it.
    #[must_use]
    pub fn of_branch(pod: &PodName) -> Self {
        Self(format!("{BRANCH_PREFIX}{}", hash(&pod_text(pod, 0))).into())
    }

    /// Whether it is such a name.
    #[must_use]
    pub fn is_of_branch(&self) -> bool {
        self.0.starts_with(BRANCH_PREFIX)
    }

    /// The name for a sandbox that Kubernetes did not ask for, so that it has no pod name to hash.
    #[must_use]
    pub fn of_sandbox(prefix: &VethPrefix, sandbox: &SandboxKey) -> Self {
        Self(format!("{}{}", prefix.as_str(), hash(&format!("{sandbox}"))).into())
    }

    /// The interface of the CNI result that exists only there, and carries what DEL needs (the shape of the Go version's result).
    #[must_use]
    pub fn dummy(pod: &PodName) -> Self {
        Self(format!("dummy{}", hash(&pod_text(pod, 0))).into())
    }

    /// A name found in the kernel; `None` for one that cannot be a host veth's.
    #[must_use]
    pub fn found(name: &str) -> Option<Self> {
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (plain && (12..=15).contains(&name.len())).then(|| Self(name.into()))
    }

    /// What the name starts with; `None` where the rest is no hash, so that it is not named as a pod's host end is.
    #[must_use]
    pub fn prefix(&self) -> Option<VethPrefix> {
        let (prefix, hash) = self.0.split_at_checked(self.0.len().checked_sub(HASH)?)?;
        let is_hash = hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        VethPrefix::new(prefix).ok().filter(|_| is_hash)
    }

    /// What the name says of whose it is: the same under every prefix.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.0.get(self.0.len().saturating_sub(HASH)..).unwrap_or(&self.0)
    }

    /// The name that the same pod's host end has under another prefix.
    #[must_use]
    pub fn under(&self, prefix: &VethPrefix) -> Self {
        Self(format!("{}{}", prefix.as_str(), self.hash()).into())
    }

    /// The MAC address of the link of this name: the same each time, so that what it should be is known without being remembered.
    #[must_use]
    pub fn mac(&self) -> Mac {
        let digest = Sha1::digest(self.as_str());
        Mac::local(std::array::from_fn(|n| digest[n]))
    }

    /// The MAC address of the other end of the link of this name, inside the pod: who knows the name can tell it without looking there.
    #[must_use]
    pub fn mac_inside(&self) -> Mac {
        let digest = Sha1::digest(format!("{} inside", self.0));
        Mac::local(std::array::from_fn(|n| digest[n]))
    }

    /// The name itself, at most 15 bytes (a dummy's, which the kernel never sees, 16).
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for HostVeth {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<HostVeth> for String {
    fn from(name: HostVeth) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for HostVeth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn pod_text(pod: &PodName, index: u8) -> String {
    match index {
        0 => format!("{}.{}", pod.namespace, pod.name),
        n => format!("{}.{}.{n}", pod.namespace, pod.name),
    }
}

fn hash(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha1::digest(text);
    let nibbles = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.take(HASH).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veth(namespace: &str, name: &str, index: u8) -> String {
        let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
        HostVeth::of_pod(&VethPrefix::default(), &pod, index).as_str().to_owned()
    }

    #[test]
    fn a_name_gives_one_mac_address_that_is_local_and_of_one_host() {
        let [one, other] = ["eni0123456789a", "eni0123456789b"].map(|name| HostVeth::found(name).unwrap());

        assert_eq!(one.mac(), HostVeth::found(one.as_str()).unwrap().mac());
        assert_ne!(one.mac(), other.mac());
        assert_eq!(one.mac().0[0] & 0x03, 0x02, "{}", one.mac());
    }

    #[test]
    fn names_are_those_of_the_go_version() {
        assert_eq!(veth("kube-system", "coredns-57ff979f67-qqbdh", 0), "enib5faff8a083");
        assert_eq!(veth("kube-system", "coredns-57ff979f67-8ns9b", 0), "eni9571956a6cc");
        assert_eq!(veth("default", "sample-pod", 0), "enicc21c2d7785");
        assert_eq!(veth("default", "sample-pod", 1), "enia0b7655f3c9");
        assert_eq!(veth("default", "sample-pod", 2), "eni674338b7081");
        let pod = PodName { namespace: "default".to_owned(), name: "sample-pod".to_owned() };
        let branch = HostVeth::of_branch(&pod);
        assert_eq!((branch.as_str(), branch.is_of_branch()), ("vlancc21c2d7785", true));
    }

    #[test]
    fn a_name_tells_its_prefix_and_whose_it_is_under_any_other() {
        let [plain, short, long] = ["enicc21c2d7785", "acc21c2d7785", "podscc21c2d7785"];
        for name in [plain, short, long] {
            let host_if = HostVeth::found(name).unwrap();
            let prefix = host_if.prefix().unwrap();
            assert_eq!((prefix.as_str(), host_if.hash()), (&name[..name.len() - 11], "cc21c2d7785"));
            assert_eq!(host_if.under(&VethPrefix::default()).as_str(), plain);
        }
        for other in ["veth0a1b2c3d", "enicc21c2d778z", "ethcc21c2d7785"] {
            assert_eq!(HostVeth::found(other).unwrap().prefix(), None, "{other}");
        }
    }

    #[test]
    fn a_prefix_leaves_room_for_the_hash_and_hits_no_other_interface() {
        assert!(VethPrefix::new("eni").is_ok());
        for bad in ["", "toolong", "eth", "lo", "vlan", "e/n", "e n", "É"] {
            assert!(VethPrefix::new(bad).is_err(), "{bad}");
        }
    }
}
