//! Sandboxes and the pods they belong to.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest container id that is accepted, in bytes; containerd's are 64.
pub const CONTAINER_ID_BYTES_MAX: usize = 256;
/// Longest interface name, in bytes (`IFNAMSIZ` less its NUL).
pub const IF_NAME_BYTES_MAX: usize = 15;
/// Longest network name that is accepted, in bytes.
pub const NETWORK_NAME_BYTES_MAX: usize = 128;

/// What the names of a pod's interfaces begin with, from the second on.
const FURTHER_IF: &str = "mNicIf";

/// What identifies one attachment: CNI's (network name, container id, interface name).
///
/// Its parts satisfy the CNI specification's rules, so it can be part of a path, a log line or a map key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawKey", into = "RawKey")]
pub struct SandboxKey(Arc<Parts>);

/// In the order in which keys differ: the network is the same for all, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    container_id: String,
    network_name: String,
    if_name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawKey {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
}

/// Why three strings are not a sandbox key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SandboxKeyError {
    /// CNI: must start with an alphanumeric character, then alphanumerics, `_`, `.` or `-`.
    #[error(
        "container id {0:?} is not 1 to 256 characters of [A-Za-z0-9_.-] that start with an alphanumeric one"
    )]
    ContainerId(String),
    /// CNI and the kernel: not empty, at most 15 bytes, not `.` or `..`, no `/`, `:` or white space.
    #[error("interface name {0:?} is not one that Linux accepts")]
    IfName(String),
    /// As for the container id.
    #[error(
        "network name {0:?} is not 1 to 128 characters of [A-Za-z0-9_.-] that start with an alphanumeric one"
    )]
    NetworkName(String),
}

impl SandboxKey {
    /// Checks the three parts against the CNI specification ("Container ID", "Interface name", "Network name").
    ///
    /// # Errors
    /// Names the first part that breaks its rule.
    pub fn new(network_name: &str, container_id: &str, if_name: &str) -> Result<Self, SandboxKeyError> {
        let cut = |s: &str| s.chars().take(64).collect::<String>();
        if !is_cni_word(container_id, CONTAINER_ID_BYTES_MAX) {
            return Err(SandboxKeyError::ContainerId(cut(container_id)));
        }
        if !is_if_name(if_name) {
            return Err(SandboxKeyError::IfName(cut(if_name)));
        }
        if !is_cni_word(network_name, NETWORK_NAME_BYTES_MAX) {
            return Err(SandboxKeyError::NetworkName(cut(network_name)));
        }
        let (container_id, network_name) = (container_id.to_owned(), network_name.to_owned());
        Ok(Self(Arc::new(Parts { container_id, network_name, if_name: if_name.to_owned() })))
    }

    /// The attachment of the same sandbox's interface number `index`, which a pod has beside this one: its name inside the pod
    /// is the Go version's.
    #[must_use]
    pub fn further(&self, index: u8) -> Self {
        Self(Arc::new(Parts { if_name: format!("{FURTHER_IF}{index}"), ..Parts::clone(&self.0) }))
    }

    /// Whether another attachment is of the same network and container.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        (self.container_id(), self.network_name()) == (other.container_id(), other.network_name())
    }

    /// The network's name, `aws-cni` in the installed conflist.
    #[must_use]
    pub fn network_name(&self) -> &str {
        &self.0.network_name
    }

    /// The runtime's id of the sandbox.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.0.container_id
    }

    /// The interface inside the sandbox, normally `eth0`.
    #[must_use]
    pub fn if_name(&self) -> &str {
        &self.0.if_name
    }
}

fn is_cni_word(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_if_name(text: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    !text.is_empty() && text.len() <= IF_NAME_BYTES_MAX && text != "." && text != ".." && !text.contains(bad)
}

impl TryFrom<RawKey> for SandboxKey {
    type Error = SandboxKeyError;

    fn try_from(raw: RawKey) -> Result<Self, SandboxKeyError> {
        Self::new(&raw.network_name, &raw.container_id, &raw.if_name)
    }
}

impl From<SandboxKey> for RawKey {
    fn from(key: SandboxKey) -> Self {
        let Parts { container_id, network_name, if_name } = Arc::unwrap_or_clone(key.0);
        Self { network_name, container_id, if_name }
    }
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id(), self.if_name())
    }
}

/// A pod as `CNI_ARGS` names it. Both parts are empty for a sandbox that Kubernetes did not ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name within it.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_parts_are_refused() {
        let ok = |n: &str, c: &str, i: &str| SandboxKey::new(n, c, i).is_ok();

        assert!(ok("aws-cni", "9f3c_-.0", "eth0"));
        assert!(!ok("aws-cni", "", "eth0"));
        assert!(!ok("aws-cni", "../../etc", "eth0"));
        assert!(!ok("aws-cni", &"a".repeat(257), "eth0"));
        assert!(!ok("aws-cni", "a", ""));
        assert!(!ok("aws-cni", "a", "e/0"));
        assert!(!ok("aws-cni", "a", "e:0"));
        assert!(!ok("aws-cni", "a", "sixteen-letters-"));
        assert!(!ok("aws-cni", "a", ".."));
        assert!(!ok("a b", "a", "eth0"));
    }

    #[test]
    fn a_further_interface_has_the_name_of_the_go_version_and_a_fit_key() {
        let key = SandboxKey::new("aws-cni", "abc", "eth0").unwrap();

        for (index, name) in [(1, "mNicIf1"), (31, "mNicIf31"), (u8::MAX, "mNicIf255")] {
            let further = key.further(index);
            assert_eq!(Ok(further.clone()), SandboxKey::new("aws-cni", "abc", name));
            assert!(further.is_beside(&key));
        }
        assert!(!SandboxKey::new("aws-cni", "abd", "eth0").unwrap().is_beside(&key));
    }

    #[test]
    fn a_key_read_from_json_obeys_the_same_rules() {
        let key = SandboxKey::new("aws-cni", "abc", "eth0").unwrap();
        let text = serde_json::to_string(&key).unwrap();

        assert_eq!(text, r#"{"networkName":"aws-cni","containerID":"abc","ifName":"eth0"}"#);
        assert_eq!(serde_json::from_str::<SandboxKey>(&text).unwrap(), key);
        assert!(serde_json::from_str::<SandboxKey>(&text.replace("abc", "../x")).is_err());
    }
}
