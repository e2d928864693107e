//! The settings as other files have them: the reference for people, the environment of the manifests, the chart's schema.

use serde_json::{Value, json};

use super::read::OUR_PREFIXES;
use super::table::{HELPER_SETTINGS, Kind, SETTINGS, Setting, Support};

/// Headings, each with the setting that it begins at.
const GROUPS: &[(&str, &str)] = &[
    ("The pool", "WARM_ENI_TARGET"),
    ("The kernel", "AWS_VPC_ENI_MTU"),
    ("The cloud", "CLUSTER_NAME"),
    ("The daemon", "IPAMD_HOLD_FILE"),
    ("Modes", "ENABLE_IPv4"),
    ("The plugin, its conflist, and the installer", "HOST_CNI_BIN_PATH"),
    ("The metrics helper (`ipamd metrics-helper`)", "USE_CLOUDWATCH"),
];

/// Defaults of the Go version (v1.23) that are other ones.
const OF_THE_GO_VERSION: &[(&str, &str)] = &[
    ("AWS_VPC_K8S_CNI_LOG_FILE", "/host/var/log/aws-routed-eni/ipamd.log"),
    ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "debug"),
    ("ENABLE_IPv4", "false, and true in its manifest"),
    ("WARM_PREFIX_TARGET", "0, and 1 in its manifest"),
];

/// What the manifests set, beside the names of node and pod, which Kubernetes tells.
const DEPLOYED: &[(&str, &str)] =
    &[("ENABLE_IPv4", "true"), ("AWS_VPC_K8S_CNI_LOGLEVEL", "info"), ("AWS_VPC_K8S_CNI_LOG_FILE", "stderr")];

/// What names for the metrics helper begin with.
const HELPERS_PREFIXES: [&str; 5] = ["USE_", "METRIC_", "AWS_CLUSTER_", "AWS_VPC_", "IPAMD_"];

const HEAD: &str = "# Configuration

Environment variables of the daemon and of the metrics helper, written from the table that it reads them with (`cargo xtask gen`). `ipamd settings` prints the same, by what becomes of a value that cannot be.
An empty variable is an unset one. A flag is `1 t T TRUE true True` or `0 f F FALSE false False`.

| what becomes of it | |
|---|---|
| obeyed | a value that it cannot have is replaced by the default, with a warning in the log |
| strict | obeyed; a value that it cannot have stops the daemon with exit code 64 and its name |
| ignored | without effect in this version; anything but the default is warned about |
| known | changes nothing |

A name that begins like ours, or differs from one of these by a letter or two, is warned about, with the name that is nearest.

Warm targets have a second place: annotations or labels `vpc.amazonaws.com/{warm-eni,warm-ip,minimum-ip,warm-prefix}-target` of a node object are for
that node alone, and are obeyed while it runs.
";

const fn word(support: Support) -> &'static str {
    match support {
        Support::Lenient => "obeyed",
        Support::Strict => "strict",
        Support::Ignored => "ignored",
        Support::Elsewhere => "known",
    }
}

fn values(kind: Kind) -> String {
    match kind {
        Kind::Flag => "flag".to_owned(),
        Kind::Number(min, u32::MAX) => format!("{min} or more"),
        Kind::Number(min, max) => format!("{min} to {max}"),
        Kind::Word(words) => words.join(", "),
        Kind::Text => "text".to_owned(),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { "unset".to_owned() } else { format!("`{text}`") }
}

fn of(pairs: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    pairs.iter().find(|(first, _)| *first == name).map(|(_, second)| *second)
}

/// The reference: every setting, in groups.
pub(crate) fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for setting in SETTINGS.iter().chain(HELPER_SETTINGS) {
        if let Some((heading, _)) = GROUPS.iter().find(|(_, first)| *first == setting.name) {
            out.push_str(&format!(
                "\n## {heading}\n\n| variable | value | default | | meaning |\n|---|---|---|---|---|\n"
            ));
        }
        row(&mut out, setting);
    }
    out
}

fn row(out: &mut String, setting: &Setting) {
    let Setting { name, kind, default, support, doc } = setting;
    let theirs = of(OF_THE_GO_VERSION, name);
    let theirs = theirs.map(|theirs| format!(" The Go version's default: {theirs}.")).unwrap_or_default();
    let (values, default, word) = (values(*kind), code(default), word(*support));
    out.push_str(&format!("| `{name}` | {values} | {default} | {word} | {doc}{theirs} |\n"));
}

/// The environment of the daemon's container, as a manifest has it.
pub(crate) fn manifest_env(indent: &str) -> String {
    let set = DEPLOYED.iter().map(|(name, value)| {
        // A manifest's environment holds texts: what looks like something else needs quotes.
        let value = if *value == "true" { "\"true\"" } else { value };
        format!("{indent}- {{ name: {name}, value: {value} }}\n")
    });
    let told = [
        ("MY_NODE_NAME", "spec.nodeName"),
        ("MY_POD_NAME", "metadata.name"),
        ("IPAMD_POD_UID", "metadata.uid"),
    ];
    let told = told.map(|(name, path)| {
        format!("{indent}- {{ name: {name}, valueFrom: {{ fieldRef: {{ fieldPath: {path} }} }} }}\n")
    });
    set.chain(told).collect()
}

/// The same as the chart's values have it; what Kubernetes tells is the template's.
pub(crate) fn chart_env(indent: &str) -> String {
    DEPLOYED.iter().map(|(name, value)| format!("{indent}{name}: \"{value}\"\n")).collect()
}

/// The chart's schema: what `env` may have. Everything else of the values is as the templates read it.
pub(crate) fn chart_schema() -> String {
    let of_helper: Vec<&Setting> = SETTINGS.iter().chain(HELPER_SETTINGS).collect();
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "env": environment(&SETTINGS.iter().collect::<Vec<_>>(), &OUR_PREFIXES),
            "init": {"type": "object", "properties": {"env": {"$ref": "#/properties/env"}}},
            "metricsHelper": {"type": "object", "properties": {"env": environment(&of_helper, &HELPERS_PREFIXES)}},
        },
    });
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

/// Settings as an object's properties; no other name may begin like them.
fn environment(settings: &[&Setting], prefixes: &[&str]) -> Value {
    let names: Vec<&str> = settings.iter().map(|setting| setting.name).collect();
    let properties: serde_json::Map<String, Value> =
        settings.iter().map(|setting| (setting.name.to_owned(), schema(setting))).collect();
    json!({
        "type": "object",
        "properties": properties,
        "propertyNames": {"anyOf": [{"enum": names}, {"not": {"pattern": format!("^({})", prefixes.join("|"))}}]},
    })
}

/// Only what every reading of the value refuses: a lenient setting takes the default with a warning, as it does without the chart.
fn schema(setting: &Setting) -> Value {
    let (strict, words) = (setting.support == Support::Strict, &["string", "boolean", "number"]);
    match setting.kind {
        Kind::Number(min, max) if strict => json!({"anyOf": [
            {"type": "integer", "minimum": min, "maximum": max},
            {"type": "string", "pattern": "^([0-9]+)?$"},
        ]}),
        Kind::Flag | Kind::Number(..) | Kind::Word(_) | Kind::Text => json!({"type": words}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_row_below_a_heading() {
        let text = markdown();

        for setting in SETTINGS.iter().chain(HELPER_SETTINGS) {
            assert_eq!(text.matches(&format!("\n| `{}` |", setting.name)).count(), 1, "{}", setting.name);
        }
        assert_eq!(text.matches("\n## ").count(), GROUPS.len());
        let first = text.find("\n| `").unwrap();
        assert!(text.find("\n## The pool").unwrap() < first);
    }

    #[test]
    fn what_is_said_of_a_setting_is_said_of_one_that_exists_and_differs() {
        let setting =
            |name: &str| SETTINGS.iter().chain(HELPER_SETTINGS).find(|setting| setting.name == name);

        for (name, theirs) in OF_THE_GO_VERSION {
            assert_ne!(setting(name).unwrap().default, *theirs, "{name}");
        }
        let named = DEPLOYED.iter().map(|(name, _)| name).chain(GROUPS.iter().map(|(_, first)| first));
        for name in named {
            assert!(setting(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_manifests_set_what_the_daemon_takes_without_a_warning() {
        let environment = DEPLOYED.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();

        assert_eq!(super::super::Config::parse(&environment).unwrap().warnings, [""; 0]);
    }
}
