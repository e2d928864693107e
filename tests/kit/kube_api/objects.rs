//! Which objects there are, and where.

use serde_json::Value;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Node,
    EniConfig,
    CniNode,
    Pod,
    Event,
}

/// Every kind: its version, its name, and its name in paths.
const KINDS: [(Kind, &str, &str, &str); 5] = [
    (Kind::Node, "v1", "Node", "nodes"),
    (Kind::EniConfig, "crd.k8s.amazonaws.com/v1alpha1", "ENIConfig", "eniconfigs"),
    (Kind::CniNode, "vpcresources.k8s.aws/v1alpha1", "CNINode", "cninodes"),
    (Kind::Pod, "v1", "Pod", "pods"),
    (Kind::Event, "events.k8s.io/v1", "Event", "events"),
];

impl Kind {
    fn row(self) -> (&'static str, &'static str, &'static str) {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.map_or(("", "", ""), |(_, version, name, plural)| (version, name, plural))
    }

    /// Its version and name.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        let (version, name, _) = self.row();
        (version, name)
    }

    /// Its API group and its name there, as roles have them.
    pub(super) fn resource(self) -> (&'static str, &'static str) {
        let (version, _, plural) = self.row();
        (version.split_once('/').map_or("", |(group, _)| group), plural)
    }

    /// Whether its objects are in namespaces.
    const fn has_namespace(self) -> bool {
        matches!(self, Self::Pod | Self::Event)
    }
}

/// Where an object is; without a name, where all of its kind are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Place {
    pub(super) fn of(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// What is served at a path.
    pub(super) fn at(path: &str) -> Option<Self> {
        KINDS.iter().find_map(|(kind, version, _, plural)| {
            let root = if version.contains('/') { "/apis" } else { "/api" };
            let rest =
                path.strip_prefix(root)?.strip_prefix('/')?.strip_prefix(version)?.strip_prefix('/')?;
            let (namespace, rest) = match rest.strip_prefix("namespaces/") {
                Some(rest) if kind.has_namespace() => rest.split_once('/')?,
                Some(_) => return None,
                None => ("", rest),
            };
            let name = rest.strip_prefix(plural)?;
            let name = if name.is_empty() { name } else { name.strip_prefix('/')? };
            let is_whole =
                !name.contains('/') && (name.is_empty() || !kind.has_namespace() || !namespace.is_empty());
            is_whole.then(|| Self::of(*kind, namespace, name))
        })
    }
}

/// Which objects of a kind a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    All,
    Named(String),
    OnNode(String),
    Labelled(String, String),
}

impl Selector {
    pub(super) fn of(text: Option<&str>, label: Option<&str>) -> Self {
        if let Some((key, value)) = label.and_then(|label| label.split_once('=')) {
            return Self::Labelled(key.to_owned(), value.to_owned());
        }
        let of = |key| text.and_then(|text| text.strip_prefix(key)).map(str::to_owned);
        let named = of("metadata.name=").map(Self::Named);
        named.or_else(|| of("spec.nodeName=").map(Self::OnNode)).unwrap_or(Self::All)
    }

    pub(super) fn takes(&self, object: &Value) -> bool {
        match self {
            Self::All => true,
            Self::Named(name) => object["metadata"]["name"] == name.as_str(),
            Self::OnNode(node) => object["spec"]["nodeName"] == node.as_str(),
            Self::Labelled(key, value) => object["metadata"]["labels"][key] == value.as_str(),
        }
    }
}
