//! Manifests read as the API server reads them: each document into the type of its kind, and nothing in it that the type does not know.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Kinds of other people's operators, and of the Go version's: only their form can be checked here.
const FOREIGN: [&str; 3] = ["PodMonitor", "PrometheusRule", "ENIConfig"];

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
        "DaemonSet" => is::<DaemonSet>(document),
        "Deployment" => is::<Deployment>(document),
        "Event" => is::<Event>(document),
        "RoleBinding" => is::<RoleBinding>(document),
        "ServiceAccount" => is::<ServiceAccount>(document),
        foreign if FOREIGN.contains(&foreign) => {
            let named = document["apiVersion"].is_string() && document["metadata"]["name"].is_string();
            if named { Ok(()) } else { Err("has no version or no name".to_owned()) }
        }
        other => Err(format!("{other:?} is a kind that nobody checks")),
    }
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
        const INIT: &str = "/spec/template/spec/initContainers";
        const CONTAINERS: &str = "/spec/template/spec/containers";
        let ours = daemon_set(DAEMON_SET);
        let mut merged = daemon_set(include_str!("go-daemonset.yaml"));

        merge(&mut merged, &ours, "");

        check(&merged).unwrap();
        let own = |path: &str| items(&ours, path).iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
        for container in items(&merged, INIT).iter().chain(items(&merged, CONTAINERS)) {
            let security = &container["securityContext"];
            let both = security["privileged"] == true && security["allowPrivilegeEscalation"] == false;
            assert!(!both, "the API server refuses {container:#}");
            for probe in ["livenessProbe", "readinessProbe"] {
                let handlers = ["exec", "grpc", "httpGet", "tcpSocket"];
                let handlers = handlers.into_iter().filter(|kind| !container[probe][*kind].is_null()).count();
                assert!(handlers <= 1, "the API server refuses the {probe} of {container:#}");
            }
        }
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
