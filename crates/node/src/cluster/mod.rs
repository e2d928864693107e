//! Kubernetes, as far as decisions need it: what it says, and what is said to it. Pure.

mod annotations;
mod eni_config;
mod features;
mod notes;
mod pod_eni;
mod quantity;

use std::collections::BTreeMap;

use pool::Targets;
use types::PodName;

pub use annotations::PodIp;
pub use eni_config::{ENI_CONFIG_FIELDS, EniConfig, EniConfigName, EniConfigNews, Field, NameKeys};
pub use features::{CUSTOM_NETWORKING, Features, POD_SECURITY_GROUPS};
pub use notes::{About, Ledger, Myself, Note, PodRef, Writing, Written};
pub use pod_eni::{ANNOTATION as POD_ENI_ANNOTATION, BranchWish, PodObject};
pub use quantity::thousandths;

/// The longest name of an object (Kubernetes, "Object Names and IDs": a DNS subdomain).
const NAME_MAX: usize = 253;

/// Whether an object can be called so. What cannot is never made part of a request's path or of a selector.
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(known)
}

/// What the node object says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeObject {
    /// New pods are kept away: the node is cordoned.
    pub unschedulable: bool,
    /// Pods that the kubelet admits.
    pub max_pods: Option<u32>,
    /// The CPU that pods may ask for in all, in thousandths.
    pub cpu: Option<u64>,
    /// Warm targets for this node alone.
    pub warm: WarmOverrides,
    /// With custom networking, which ENIConfig is the node's.
    pub eni_config: Option<EniConfigName>,
}

/// What the API server has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The node object, as it is now.
    Node(Box<NodeObject>),
    /// There is no such node object (any more).
    NoNode,
    /// It cannot be asked for the node object, or answers nonsense; what was known stays true.
    Trouble(String),
    /// Something about the ENIConfig of this name.
    EniConfig(String, EniConfigNews),
    /// Something about the pods of this node.
    Pods(PodNews),
}

/// What the API server says of the pods of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodNews {
    /// These are all of them.
    All(Vec<PodObject>),
    /// This is one, as it is now.
    Is(PodObject),
    /// There is no such pod any more.
    Gone(PodName),
    /// They cannot be asked for.
    Trouble(String),
}

/// Warm targets that a node's annotations or labels set, in place of the environment's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WarmOverrides {
    warm_eni: Option<u32>,
    warm_ip: Option<u32>,
    minimum_ip: Option<u32>,
    warm_prefix: Option<u32>,
    /// Values that are no numbers, in words.
    pub wrong: Vec<String>,
}

/// What the names of annotations and labels with warm targets begin with.
pub const KEY_PREFIX: &str = "vpc.amazonaws.com/";

impl WarmOverrides {
    /// Reads them. An annotation goes before a label of the same name.
    #[must_use]
    pub fn of(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Self {
        let mut wrong = Vec::new();
        let mut target = |name: &str| {
            let key = format!("{KEY_PREFIX}{name}");
            let text = annotations.get(&key).or_else(|| labels.get(&key))?;
            let number = text.trim().parse().ok();
            if number.is_none() {
                let found: String = text.chars().take(64).collect();
                wrong.push(format!(
                    "{key} is {found:?}, which is no number; the environment's setting is used"
                ));
            }
            number
        };
        Self {
            warm_eni: target("warm-eni-target"),
            warm_ip: target("warm-ip-target"),
            minimum_ip: target("minimum-ip-target"),
            warm_prefix: target("warm-prefix-target"),
            wrong,
        }
    }

    /// The targets with these in their place. As in the environment, 0 means none for addresses.
    #[must_use]
    pub fn over(&self, targets: Targets) -> Targets {
        let addresses = |ours: Option<u32>, otherwise: Option<u32>| match ours {
            Some(0) => None,
            Some(number) => Some(number),
            None => otherwise,
        };
        let set = [self.warm_eni, self.warm_ip, self.minimum_ip, self.warm_prefix];
        Targets {
            warm_eni: self.warm_eni.unwrap_or(targets.warm_eni),
            warm_ip: addresses(self.warm_ip, targets.warm_ip),
            minimum_ip: addresses(self.minimum_ip, targets.minimum_ip),
            warm_prefix: self.warm_prefix.unwrap_or(targets.warm_prefix),
            automatic: targets.automatic && set.iter().all(Option::is_none),
            ..targets
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (format!("{KEY_PREFIX}{key}"), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_node_sets_takes_the_place_of_the_environment_and_the_rest_stays() {
        let environment =
            Targets { warm_ip: Some(5), minimum_ip: Some(9), automatic: true, ..Targets::default() };

        let annotated = WarmOverrides::of(&map(&[("warm-ip-target", "7")]), &map(&[("warm-ip-target", "0")]));
        let labelled = WarmOverrides::of(&map(&[("warm-ip-target", "7")]), &map(&[]));

        let targets = annotated.over(environment);
        assert_eq!((targets.warm_ip, targets.minimum_ip, targets.automatic), (None, Some(9), false));
        assert_eq!(labelled.over(environment).warm_ip, Some(7));
        assert_eq!(WarmOverrides::default().over(environment), environment);
    }

    #[test]
    fn what_is_no_number_is_told_and_not_used() {
        let environment = Targets { warm_ip: Some(5), ..Targets::default() };

        let read =
            WarmOverrides::of(&map(&[]), &map(&[("warm-ip-target", "many"), ("minimum-ip-target", "-1")]));

        assert_eq!(read.over(environment), environment);
        assert_eq!(read.wrong.len(), 2);
        assert!(
            read.wrong[0].starts_with("vpc.amazonaws.com/warm-ip-target is \"many\""),
            "{:?}",
            read.wrong
        );
    }
}
