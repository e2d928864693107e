//! Manifests read as the API server reads them: each document into the type of its kind, and nothing in it that the type does not know.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::custom_kinds::{EniConfig, MONITORING, PodMonitor, PrometheusRule};

/// An object of a kind that the client has no type for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Custom<S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
}

/// The documents of a YAML file, each checked against its type.
///
/// # Errors
/// The document that is none, and what is wrong with it.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let documents: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    for document in &documents {
        check(document)
            .map_err(|why| format!("{} {}: {why}", document["kind"], document["metadata"]["name"]))?;
    }
    Ok(documents)
}

/// Checks a document against the type of its kind.
pub(crate) fn check(document: &Value) -> Result<(), String> {
    match document["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => is::<ClusterRole>(document),
        "ClusterRoleBinding" => is::<ClusterRoleBinding>(document),
        "ConfigMap" => is::<ConfigMap>(document),
        "CustomResourceDefinition" => is::<CustomResourceDefinition>(document),
        "DaemonSet" => is::<DaemonSet>(document).and_then(|()| containers(document)),
        "Deployment" => is::<Deployment>(document).and_then(|()| containers(document)),
        "Event" => is::<Event>(document),
        "RoleBinding" => is::<RoleBinding>(document),
        "ServiceAccount" => is::<ServiceAccount>(document),
        "ENIConfig" => custom::<EniConfig>("crd.k8s.amazonaws.com/v1alpha1", document),
        "PodMonitor" => custom::<PodMonitor>(MONITORING, document),
        "PrometheusRule" => custom::<PrometheusRule>(MONITORING, document),
        other => Err(format!("{other:?} is a kind that nobody checks")),
    }
}

/// What no type says and the API server refuses all the same, of the containers of a workload.
fn containers(workload: &Value) -> Result<(), String> {
    let spec = &workload["spec"]["template"]["spec"];
    let lists = ["initContainers", "containers"].map(|list| spec[list].as_array());
    for container in lists.into_iter().flatten().flatten() {
        let (name, security) = (&container["name"], &container["securityContext"]);
        if security["privileged"] == true && security["allowPrivilegeEscalation"] == false {
            return Err(format!("{name} is privileged, and may not escalate privileges"));
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            let handlers = ["exec", "grpc", "httpGet", "tcpSocket"];
            let handlers = handlers.into_iter().filter(|kind| !container[probe][*kind].is_null()).count();
            if handlers != 1 && !container[probe].is_null() {
                return Err(format!("the {probe} of {name} has {handlers} handlers"));
            }
        }
    }
    Ok(())
}

/// A kind of other people's operators, or of the Go version's, of which `S` has the `spec`.
fn custom<S: DeserializeOwned + Serialize>(version: &str, document: &Value) -> Result<(), String> {
    if document["apiVersion"] != version {
        return Err(format!("is of {}, not of {version}", document["apiVersion"]));
    }
    if !document["metadata"]["name"].is_string() {
        return Err("has no name".to_owned());
    }
    is::<Custom<S>>(document)
}

/// The types drop what they do not know: what comes back is compared with what went in.
fn is<T: DeserializeOwned + Serialize>(document: &Value) -> Result<(), String> {
    let object: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    lost("", document, &back)
        .map_or(Ok(()), |path| Err(format!("{path} is not of this kind, or another value")))
}

/// The path of the first thing that the other value has not.
fn lost(path: &str, value: &Value, other: &Value) -> Option<String> {
    match (value, other) {
        (Value::Object(map), Value::Object(_)) => {
            map.iter().find_map(|(key, value)| lost(&format!("{path}.{key}"), value, &other[key]))
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            let pairs = items.iter().zip(others).enumerate();
            pairs.into_iter().find_map(|(i, (item, other))| lost(&format!("{path}[{i}]"), item, other))
        }
        // An empty list is as good as none.
        (Value::Array(items), Value::Null) if items.is_empty() => None,
        _ => (value != other).then(|| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON_SET: &str = include_str!("../../manifests/daemonset.yaml");

    #[test]
    fn every_manifest_is_what_kubernetes_takes() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
        let mut files = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                documents(&std::fs::read_to_string(&path).unwrap())
                    .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
                files += 1;
            }
        }
        assert!(files >= 2, "{files} manifests");
    }

    #[test]
    fn a_field_that_kubernetes_does_not_know_is_found_where_it_is() {
        let wrong = DAEMON_SET.replace("hostNetwork: true", "hostNetwork: true\n      hostNetwrk: true");
        let why = documents(&wrong).unwrap_err();
        assert!(why.contains(".spec.template.spec.hostNetwrk"), "{why}");

        let wrong = DAEMON_SET.replace("containerPort: 61678", "containerPort: metrics");
        assert!(documents(&wrong).is_err());
        assert!(documents("kind: Pod\n").is_err());
    }

    #[test]
    fn containers_that_the_api_server_refuses_are_found() {
        for (old, new, said) in [
            ("privileged: false", "privileged: true", "escalate"),
            ("            exec: { command: [/ipamd, status] }\n", "", "0 handlers"),
        ] {
            let wrong = DAEMON_SET.replace(old, new);
            let why = documents(&wrong).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }

    /// An operator's resource has no type in the client: what is wrong with it would be found by the API server of who installs it.
    #[test]
    fn a_field_that_an_operator_does_not_know_or_cannot_read_is_refused() {
        const RULE: &str = include_str!("../../manifests/prometheusrule.yaml");
        const MONITOR: &str = include_str!("../../manifests/podmonitor.yaml");
        let config = "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: { name: a }\n\
                      spec: { subnet: subnet-1, securityGroups: [sg-1] }\n";
        documents(config).unwrap();
        for (right, old, new) in [
            (MONITOR, "podMetricsEndpoints", "podMetricsEndpoint"),
            (MONITOR, "path:", "paths:"),
            (MONITOR, "interval: 30s", "interval: 30 s"),
            (MONITOR, "matchLabels", "matchLabel"),
            (MONITOR, "labels: {", "label: {"),
            (MONITOR, "port: metrics", "port: 61678"),
            (MONITOR, "monitoring.coreos.com/v1", "monitoring.coreos.com/v2"),
            (MONITOR, "  name: aws-node\n", ""),
            (RULE, "      rules:", "      rule:"),
            (RULE, "expr:", "expression:"),
            (RULE, "for: 5m", "for: 5 minutes"),
            (RULE, "{ severity: critical }", "{ severity: 1 }"),
            (RULE, "annotations:", "annotation:"),
            (config, "subnet:", "subnetId:"),
            (config, "[sg-1]", "sg-1"),
            (config, "v1alpha1", "v1"),
        ] {
            assert!(right.contains(old), "{old} is not there any more");
            assert!(documents(&right.replacen(old, new, 1)).is_err(), "{new} was taken");
        }
    }

    #[test]
    fn every_mount_is_explained_and_has_its_volume() {
        let readme = include_str!("../../manifests/README.md");
        let documents = documents(DAEMON_SET).unwrap();
        let daemon_set = documents.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
        let spec = &daemon_set["spec"]["template"]["spec"];
        let volumes: Vec<&Value> =
            spec["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
        let containers = ["initContainers", "containers"].map(|key| spec[key].as_array().unwrap());

        for mount in containers.into_iter().flatten().flat_map(|c| c["volumeMounts"].as_array().unwrap()) {
            assert!(volumes.contains(&&mount["name"]), "{mount}");
            let path = mount["mountPath"].as_str().unwrap();
            assert!(readme.contains(&format!("`{path}`")), "{path} is not explained");
        }
    }

    /// What the lists of a pod's specification are merged by (`patchMergeKey` in the types of the API); other lists are replaced.
    const MERGED_BY: [(&str, &str); 6] = [
        ("containers", "name"),
        ("env", "name"),
        ("initContainers", "name"),
        ("ports", "containerPort"),
        ("volumeMounts", "mountPath"),
        ("volumes", "name"),
    ];

    /// What `kubectl apply` makes of an object that nobody has applied before: a strategic merge, which deletes nothing.
    fn merge(live: &mut Value, applied: &Value, field: &str) {
        let key = MERGED_BY.iter().find(|(list, _)| *list == field).map(|(_, key)| *key);
        match (live, applied, key) {
            (Value::Object(live), Value::Object(applied), _) => {
                for (field, value) in applied {
                    merge(live.entry(field).or_insert(Value::Null), value, field);
                }
            }
            (Value::Array(live), Value::Array(applied), Some(key)) => {
                for item in applied {
                    match live.iter_mut().find(|one| one[key] == item[key]) {
                        Some(one) => merge(one, item, ""),
                        None => live.push(item.clone()),
                    }
                }
            }
            (live, applied, _) => *live = applied.clone(),
        }
    }

    fn daemon_set(text: &str) -> Value {
        documents(text).unwrap().into_iter().find(|document| document["kind"] == "DaemonSet").unwrap()
    }

    fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
        value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// Migration removes the other DaemonSet first. Who does not is told of what stays, and the API server does not refuse half of what was applied.
    #[test]
    fn a_merge_into_the_go_versions_daemonset_is_valid_and_the_guide_names_what_stays_of_it() {
        const CONTAINERS: &str = "/spec/template/spec/containers";
        let ours = daemon_set(DAEMON_SET);
        let mut merged = daemon_set(include_str!("go-daemonset.yaml"));

        merge(&mut merged, &ours, "");

        check(&merged).unwrap();
        let own = |path: &str| items(&ours, path).iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
        let guide = include_str!("../../manifests/MIGRATION.md");
        let mut stays: Vec<&Value> = items(&merged, CONTAINERS).iter().map(|one| &one["name"]).collect();
        let env = |of: &Value| items(of, &format!("{CONTAINERS}/0/env")).to_vec();
        let (env, settings) = (env(&merged), env(&ours));
        stays.extend(env.iter().map(|one| &one["name"]));
        let settings = settings.iter().map(|one| one["name"].clone()).chain(own(CONTAINERS));
        let settings: Vec<Value> = settings.collect();
        stays.retain(|name| !settings.contains(name));
        assert!(stays.len() >= 4, "{stays:?}");
        for name in stays {
            assert!(
                guide.contains(&format!("`{}`", name.as_str().unwrap())),
                "{name} stays, and nobody says so"
            );
        }
    }

    #[test]
    fn the_init_container_has_the_daemons_settings_so_that_it_refuses_what_the_daemon_would() {
        let spec = &daemon_set(DAEMON_SET)["spec"]["template"]["spec"];

        let (init, daemon) = (&spec["initContainers"][0]["env"], &spec["containers"][0]["env"]);

        assert!(daemon.as_array().is_some_and(|env| env.len() > 3), "{daemon}");
        assert_eq!(init, daemon);
    }

    #[test]
    fn the_settings_of_the_manifest_are_those_that_the_daemon_reads_without_a_warning() {
        let documents = documents(DAEMON_SET).unwrap();
        let daemon_set = documents.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
        let env = daemon_set["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or("told").to_owned();
        let environment =
            env.iter().map(|one| (text(&one["name"]).into(), text(&one["value"]).into())).collect();

        let config = ipamd::config::Config::parse(&environment).unwrap();

        assert_eq!(config.warnings, [""; 0]);
    }
}
