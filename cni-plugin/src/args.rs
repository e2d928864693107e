//! `CNI_ARGS`: which pod the sandbox belongs to.

use types::PodName;

/// Longest pod name: a DNS subdomain name, RFC 1123.
const POD_BYTES_MAX: usize = 253;
/// Longest namespace name: a DNS label, RFC 1123.
const NAMESPACE_BYTES_MAX: usize = 63;
/// Longest pod UID: a UUID, or the hash of a static pod's manifest; with room.
const UID_BYTES_MAX: usize = 128;

/// How many unknown keys an error names.
const UNKNOWN_NAMED_MAX: usize = 8;

/// What `CNI_ARGS` tells about the pod; all empty when the runtime tells nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodArgs {
    pub(crate) pod: PodName,
    pub(crate) uid: String,
}

/// Arguments that are not pairs, or not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("CNI_ARGS: invalid pair {0:?}")]
    Pair(String),
    #[error("CNI_ARGS: unknown args {0:?}, and IgnoreUnknown is not set")]
    Unknown(Vec<String>),
    #[error(
        "CNI_ARGS: {key} is longer than {max} bytes or holds something else than letters, digits, '.', '-', '_'"
    )]
    Value { key: &'static str, max: usize },
}

/// Reads `KEY=VALUE;KEY=VALUE`, in any order; of a repeated key the last counts.
pub(crate) fn parse(text: &str) -> Result<PodArgs, ArgsError> {
    let mut args = PodArgs::default();
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    for pair in text.split(';').filter(|p| !p.is_empty()) {
        let (key, value) = split(pair).ok_or_else(|| ArgsError::Pair(cut(pair)))?;
        match key {
            "K8S_POD_NAMESPACE" => {
                args.pod.namespace = word("K8S_POD_NAMESPACE", value, NAMESPACE_BYTES_MAX)?
            }
            "K8S_POD_NAME" => args.pod.name = word("K8S_POD_NAME", value, POD_BYTES_MAX)?,
            "K8S_POD_UID" => args.uid = word("K8S_POD_UID", value, UID_BYTES_MAX)?,
            // The same as CNI_CONTAINERID.
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true"),
            other if unknown.len() < UNKNOWN_NAMED_MAX => unknown.push(cut(other)),
            _ => {}
        }
    }
    if ignore_unknown || unknown.is_empty() { Ok(args) } else { Err(ArgsError::Unknown(unknown)) }
}

/// Exactly one `=`, as the reference implementation demands.
fn split(pair: &str) -> Option<(&str, &str)> {
    pair.split_once('=').filter(|(key, value)| !key.is_empty() && !value.contains('='))
}

/// A value that may stand in a log line, a path or a host interface's hash.
fn word(key: &'static str, value: &str, max: usize) -> Result<String, ArgsError> {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if value.len() > max || !plain {
        return Err(ArgsError::Value { key, max });
    }
    Ok(value.to_owned())
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, uid: &str) -> PodArgs {
        let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
        PodArgs { pod, uid: uid.to_owned() }
    }

    #[test]
    fn a_pod_is_read_in_any_order() {
        let expected = Ok(pod("default", "web-0", "u-1"));

        for text in [
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1",
            "K8S_POD_UID=u-1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=default;IgnoreUnknown=true",
            "K8S_POD_UID=u-1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=default;",
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn no_arguments_are_no_pod() {
        assert_eq!(parse(""), Ok(PodArgs::default()));
    }

    #[test]
    fn unknown_keys_are_refused_unless_they_shall_be_ignored() {
        assert_eq!(parse("A=1;B=2"), Err(ArgsError::Unknown(vec!["A".to_owned(), "B".to_owned()])));
        assert_eq!(parse("A=1;IgnoreUnknown=0"), Err(ArgsError::Unknown(vec!["A".to_owned()])));
        assert_eq!(parse("A=1;IgnoreUnknown=1"), Ok(PodArgs::default()));
        assert_eq!(parse("IgnoreUnknown=true;A=1"), Ok(PodArgs::default()));
    }

    #[test]
    fn what_is_not_a_pair_is_refused() {
        for text in ["A", "=", "=1", "A=1=2", "K8S_POD_NAME=a;b"] {
            assert!(matches!(parse(text), Err(ArgsError::Pair(_))), "{text}");
        }
    }

    #[test]
    fn hostile_values_are_refused() {
        let name = |n: usize| format!("K8S_POD_NAME={}", "a".repeat(n));
        let namespace = |n: usize| format!("K8S_POD_NAMESPACE={}", "a".repeat(n));

        for good in [name(253), namespace(63)] {
            assert!(parse(&good).is_ok(), "{good}");
        }
        for bad in [name(254), namespace(64), "K8S_POD_NAME=../x".to_owned(), "K8S_POD_UID=a\nb".to_owned()] {
            assert!(matches!(parse(&bad), Err(ArgsError::Value { .. })), "{bad}");
        }
    }
}
