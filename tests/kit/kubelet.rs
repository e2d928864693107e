//! What the kubelet makes of a pod's specification: containers for the runtime.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::LabError;
use crate::cri::{Container, Mount};

/// The containers of a pod, in the order in which they start.
#[derive(Debug)]
pub struct PodSpec {
    /// Each runs to its end before the next starts.
    pub init: Vec<Container>,
    /// They start once all of those have succeeded.
    pub containers: Vec<Container>,
    /// The pod is in the node's network.
    pub host_network: bool,
}

impl PodSpec {
    /// Reads a specification (`spec` of a pod, or of a DaemonSet's template).
    ///
    /// `image` is the one that is pulled, whatever the specification says, and `on_host` tells where a path of the host is. Variables that come from
    /// fields of the pod have the field's path as their value.
    ///
    /// # Errors
    /// What there is that this kubelet does not know.
    pub fn read(spec: &Value, image: &str, on_host: &dyn Fn(&str) -> PathBuf) -> Result<Self, LabError> {
        let read = |key: &str| -> Result<Vec<Container>, LabError> {
            list(&spec[key]).iter().map(|one| container(one, spec, image, on_host)).collect()
        };
        let host_network = spec["hostNetwork"] == true;
        Ok(Self { init: read("initContainers")?, containers: read("containers")?, host_network })
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn container(
    one: &Value,
    spec: &Value,
    image: &str,
    on_host: &dyn Fn(&str) -> PathBuf,
) -> Result<Container, LabError> {
    let mount = |mount: &Value| -> Result<Mount, LabError> {
        let from = volume(&mount["name"], spec, on_host)?;
        Ok(Mount { from, to: text(&mount["mountPath"]), read_only: mount["readOnly"] == true })
    };
    let variable = |variable: &Value| {
        let value = variable["value"].as_str().or(variable["valueFrom"]["fieldRef"]["fieldPath"].as_str());
        (text(&variable["name"]), value.unwrap_or_default().to_owned())
    };
    let security = &one["securityContext"];
    let capabilities = |key: &str| list(&security["capabilities"][key]).iter().map(text).collect();
    Ok(Container {
        name: text(&one["name"]),
        image: image.to_owned(),
        command: list(&one["command"]).iter().map(text).collect(),
        environment: list(&one["env"]).iter().map(variable).collect(),
        mounts: list(&one["volumeMounts"]).iter().map(mount).collect::<Result<_, _>>()?,
        added: capabilities("add"),
        dropped: capabilities("drop"),
        user: security["runAsUser"].as_i64(),
        no_new_privileges: security["allowPrivilegeEscalation"] == false,
    })
}

/// The directory that a volume is. It is made where the specification wants that, and for a ConfigMap that does not exist and need not.
fn volume(name: &Value, spec: &Value, on_host: &dyn Fn(&str) -> PathBuf) -> Result<PathBuf, LabError> {
    let volume = list(&spec["volumes"]).iter().find(|volume| volume["name"] == *name);
    let unknown = || LabError::Otherwise(format!("{name} is no volume that this kubelet knows"));
    let volume = volume.ok_or_else(unknown)?;
    let (path, make) = match volume["hostPath"]["path"].as_str() {
        Some(path) => (on_host(path), volume["hostPath"]["type"] == "DirectoryOrCreate"),
        None if volume["configMap"]["optional"] == true => {
            let name = volume["configMap"]["name"].as_str().unwrap_or_default();
            (on_host(&Path::new("/var/lib/kubelet").join(name).display().to_string()), true)
        }
        None => return Err(unknown()),
    };
    if make {
        std::fs::create_dir_all(&path).map_err(LabError::doing(format!("make {}", path.display())))?;
    }
    Ok(path)
}
