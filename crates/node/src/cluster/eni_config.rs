//! ENIConfig objects: which one is a node's, and what it says of where ENIs for pods go. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use types::{SecurityGroupId, SubnetId};

use super::{NAME_MAX, is_object_name};

/// Label by which somebody outside of the cluster names a node's ENIConfig; goes before all others.
const EXTERNAL_LABEL: &str = "vpc.amazonaws.com/externalEniConfig";
/// The ENIConfig of nodes that name none.
const DEFAULT: &str = "default";

/// What `spec` says of ENIs for pods: what is read of an object, and what the resource's definition tells the API server and people.
pub const ENI_CONFIG_FIELDS: [Field; 2] = [
    Field { name: SUBNET, is_list: false, doc: "The subnet of ENIs for pods: subnet-..." },
    Field {
        name: GROUPS,
        is_list: true,
        doc: "Their security groups, sg-... each; without any they have those of the primary ENI.",
    },
];
const SUBNET: &str = "subnet";
const GROUPS: &str = "securityGroups";

/// A field of `spec`.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// A list of texts; else one text.
    pub is_list: bool,
    /// What it means.
    pub doc: &'static str,
}

/// Keys of the node object that may name its ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameKeys {
    /// `ENI_CONFIG_ANNOTATION_DEF`: an annotation.
    pub annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`: a label.
    pub label: String,
}

/// A node's ENIConfig, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfigName {
    /// The object's name.
    pub name: String,
    by: By,
}

/// What has named it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Label(String),
    Annotation(String),
    Nobody,
}

impl EniConfigName {
    /// The name that a node object gives, in the order of the Go version (`GetNodeSpecificENIConfigName`).
    #[must_use]
    pub fn of(
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        keys: &NameKeys,
    ) -> Self {
        let label = |key: &str| labels.get(key).map(|name| (name, By::Label(key.to_owned())));
        let annotation = annotations.get(&keys.annotation);
        let annotation = annotation.map(|name| (name, By::Annotation(keys.annotation.clone())));
        let named = label(EXTERNAL_LABEL).or(annotation).or_else(|| label(&keys.label));
        match named {
            Some((name, by)) => Self { name: name.clone(), by },
            None => Self { name: DEFAULT.to_owned(), by: By::Nobody },
        }
    }

    /// Whether an object can have this name; one that cannot is not asked for.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        is_object_name(&self.name)
    }
}

impl fmt::Display for EniConfigName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: String = self.name.chars().take(NAME_MAX).collect();
        write!(f, "ENIConfig {name:?}, ")?;
        match &self.by {
            By::Label(key) => write!(f, "which the node's label {key} names,"),
            By::Annotation(key) => write!(f, "which the node's annotation {key} names,"),
            By::Nobody => f.write_str("which is that of nodes that name none,"),
        }
    }
}

/// Where ENIs for pods go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfig {
    /// Their subnet.
    pub subnet: SubnetId,
    /// Their security groups; none: the primary ENI's.
    pub groups: Vec<SecurityGroupId>,
}

/// What the API server says of an ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EniConfigNews {
    /// It is there, and says this.
    Is(EniConfig),
    /// There is none of this name (any more).
    Absent,
    /// It is there and cannot be used: why.
    Wrong(String),
    /// It cannot be asked for.
    Trouble(String),
}

impl EniConfigNews {
    /// Judges an object by its `spec`.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        read(&object["spec"]).map_or_else(Self::Wrong, Self::Is)
    }
}

fn read(spec: &Value) -> Result<EniConfig, String> {
    let subnet = &spec[SUBNET];
    if subnet.is_null() {
        return Err("it has no spec.subnet".to_owned());
    }
    let subnet = id(subnet).map_err(|wrong| format!("its spec.subnet: {wrong}"))?;
    let groups = match &spec[GROUPS] {
        Value::Null => Vec::new(),
        Value::Array(groups) => groups
            .iter()
            .map(id)
            .collect::<Result<_, _>>()
            .map_err(|wrong| format!("its spec.securityGroups: {wrong}"))?,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            return Err("its spec.securityGroups is no list".to_owned());
        }
    };
    Ok(EniConfig { subnet, groups })
}

fn id<T: std::str::FromStr<Err = types::IdError>>(value: &Value) -> Result<T, String> {
    let text = value.as_str().ok_or("it is no text")?;
    text.parse().map_err(|error: types::IdError| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys() -> NameKeys {
        NameKeys { annotation: "example.com/a".to_owned(), label: "example.com/l".to_owned() }
    }

    fn named(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> EniConfigName {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        EniConfigName::of(&map(labels), &map(annotations), &keys())
    }

    #[test]
    fn the_external_label_goes_first_then_the_annotation_then_the_label_then_default() {
        let (external, label) = ((EXTERNAL_LABEL, "outside"), ("example.com/l", "by-label"));
        let annotation = [("example.com/a", "by-annotation")];
        // In the Go version's other default place, which the settings have moved.
        let elsewhere = ("k8s.amazonaws.com/eniConfig", "elsewhere");

        let name = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| named(labels, annotations).name;
        assert_eq!(name(&[external, label], &annotation), "outside");
        assert_eq!(name(&[label], &annotation), "by-annotation");
        assert_eq!(name(&[label], &[]), "by-label");
        assert_eq!(name(&[elsewhere], &[elsewhere]), "default");
        let told = named(&[label], &[]).to_string();
        assert_eq!(told, "ENIConfig \"by-label\", which the node's label example.com/l names,");
    }

    #[test]
    fn a_name_that_no_object_can_have_is_not_asked_for() {
        let long = "a".repeat(NAME_MAX + 1);
        for bad in ["", "Zone-A", "a,metadata.name=b", "a b", "é", &long] {
            assert!(!named(&[], &[("example.com/a", bad)]).is_possible(), "{bad}");
        }
        for good in ["default", "us-west-2a", "zone.a-1"] {
            assert!(named(&[], &[("example.com/a", good)]).is_possible(), "{good}");
        }
    }

    #[test]
    fn an_object_says_a_subnet_and_perhaps_groups() {
        let config = |groups: &[&str]| {
            let groups = groups.iter().map(|id| id.parse().unwrap()).collect();
            EniConfigNews::Is(EniConfig { subnet: "subnet-0a".parse().unwrap(), groups })
        };
        let spec = |spec: Value| EniConfigNews::of(&json!({"spec": spec, "status": {}}));

        assert_eq!(spec(json!({"subnet": "subnet-0a"})), config(&[]));
        let both = json!({"subnet": "subnet-0a", "securityGroups": ["sg-1", "sg-2"], "more": [1]});
        assert_eq!(spec(both), config(&["sg-1", "sg-2"]));
        assert_eq!(spec(json!({"subnet": "subnet-0a", "securityGroups": []})), config(&[]));
    }

    #[test]
    fn an_object_that_cannot_be_used_says_why() {
        for (object, why) in [
            (json!({}), "no spec.subnet"),
            (json!({"spec": null}), "no spec.subnet"),
            (json!({"spec": "text"}), "no spec.subnet"),
            (json!({"spec": {"securityGroups": ["sg-1"]}}), "no spec.subnet"),
            (json!({"spec": {"subnet": 7}}), "spec.subnet: it is no text"),
            (json!({"spec": {"subnet": "vpc-1"}}), "an id that starts with subnet-"),
            (json!({"spec": {"subnet": "subnet-1", "securityGroups": "sg-1"}}), "is no list"),
            (json!({"spec": {"subnet": "subnet-1", "securityGroups": ["sg-1", ""]}}), "starts with sg-"),
            (json!({"spec": {"subnet": "subnet-1", "securityGroups": [null]}}), "it is no text"),
        ] {
            let news = EniConfigNews::of(&object);
            assert!(matches!(&news, EniConfigNews::Wrong(told) if told.contains(why)), "{object}: {news:?}");
        }
    }
}
