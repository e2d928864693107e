//! The Helm chart, rendered by the real `helm`: what it makes is what Kubernetes takes, and by default what `manifests` has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::LabError;
use lab::manifests::documents;
use serde_json::Value;

use crate::support::{Outcome, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("the_chart_passes_helms_lint", lint),
    ("the_chart_without_values_is_the_manifest", default_is_manifest),
    ("the_charts_metrics_helper_is_that_of_the_manifest", helper_is_manifest),
    ("the_chart_takes_values_of_the_go_versions_chart", values_of_before),
    ("the_go_versions_own_values_make_what_the_api_server_and_the_daemon_take", whole_values_of_before),
    ("the_chart_defines_eniconfigs_before_it_makes_any", definition),
    ("values_that_cannot_mean_the_same_are_refused_by_name", refused),
];

/// The image that the manifests name.
const IMAGE: &str = concat!("--set=image.override=localhost/vpc-cni:", env!("CARGO_PKG_VERSION"));
/// Labels that say who rendered it.
const OF_HELM: [&str; 3] = ["app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"];

/// Why there is no helm to render with.
pub(crate) fn missing() -> Option<String> {
    match Command::new("helm").args(["version", "--short"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("helm does not run: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("no helm: {error}")),
    }
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Runs helm; its output, or its complaint.
fn helm(arguments: &[&str]) -> Result<Result<String, String>, LabError> {
    let output = Command::new("helm").args(arguments).current_dir(manifests()).output();
    let output = output.map_err(LabError::doing("run helm"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

fn rendered(values: &[&str]) -> Result<Vec<Value>, LabError> {
    let fixed = ["template", "aws-vpc-cni", "chart", "--namespace", "kube-system", IMAGE];
    let arguments: Vec<&str> = fixed.iter().chain(values).copied().collect();
    let text = helm(&arguments)?.map_err(LabError::Otherwise)?;
    documents(&text).map_err(LabError::Otherwise)
}

fn manifest(name: &str) -> Result<Vec<Value>, LabError> {
    let text = std::fs::read_to_string(manifests().join(name)).map_err(LabError::doing("read a manifest"))?;
    documents(&text).map_err(LabError::Otherwise)
}

/// Documents by kind and name, as far as chart and manifest can say the same.
fn by_name(documents: Vec<Value>) -> BTreeMap<String, Value> {
    let named = documents.into_iter().map(|mut document| {
        if let Some(labels) = document["metadata"]["labels"].as_object_mut() {
            labels.retain(|label, _| !OF_HELM.contains(&label.as_str()));
        }
        for containers in ["/spec/template/spec/initContainers", "/spec/template/spec/containers"] {
            let containers = document.pointer_mut(containers).and_then(Value::as_array_mut);
            containers.into_iter().flatten().for_each(level);
        }
        (format!("{} {}", document["kind"], document["metadata"]["name"]), document)
    });
    named.collect()
}

fn level(container: &mut Value) {
    // The manifest leaves it to Kubernetes, which chooses the same for a tag that is not `latest`.
    if let Some(container) = container.as_object_mut() {
        container.remove("imagePullPolicy");
    }
    // A chart's values have no order.
    if let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) {
        env.sort_by_key(|one| one["name"].to_string());
    }
}

fn find<'a>(documents: &'a [Value], kind: &str) -> Result<&'a Value, LabError> {
    let found = documents.iter().find(|document| document["kind"] == kind);
    found.ok_or_else(|| LabError::Otherwise(format!("no {kind} was rendered")))
}

fn lint() -> Outcome {
    let linted = helm(&["lint", "--strict", "chart"])?;
    ensure!(linted.is_ok(), "{linted:?}");
    Ok(())
}

fn default_is_manifest() -> Outcome {
    let manifest = by_name([manifest("daemonset.yaml")?, manifest("configmap.yaml")?].concat());

    let chart = by_name(rendered(&["--set", "originalMatchLabels=true"])?);

    ensure!(chart.keys().eq(manifest.keys()), "{:?} and {:?}", chart.keys(), manifest.keys());
    for (name, document) in &manifest {
        let other = &chart[name];
        ensure!(other == document, "{name}: the chart has\n{other:#}\nand the manifest\n{document:#}");
    }
    Ok(())
}

fn helper_is_manifest() -> Outcome {
    let manifest = by_name(manifest("metrics-helper.yaml")?);

    let chart = by_name(rendered(&["--set", "metricsHelper.create=true"])?);

    for (name, document) in &manifest {
        let other = &chart[name];
        ensure!(other == document, "{name}: the chart has\n{other:#}\nand the manifest\n{document:#}");
    }
    Ok(())
}

fn values_of_before() -> Outcome {
    let documents = rendered(&[
        "--set-string=env.WARM_IP_TARGET=5,env.ENABLE_IPv6=true,init.env.DISABLE_TCP_EARLY_DEMUX=true",
        "--set=image.override=example.com/cni:1,podMonitor.create=true,prometheusRule.create=true,nodeAgent.enabled=true",
        "--set=nodeAgent.image.override=example.com/agent:1,enableNetworkPolicy=true,eniConfig.create=true",
        "--set=eniConfig.subnets.zone-a.id=subnet-1,eniConfig.subnets.zone-a.securityGroups={sg-1}",
        "--set=serviceAccount.annotations.role=arn,podAnnotations.a=b,nodeSelector.c=d,priorityClassName=high",
        "--set=extraVolumes[0].name=x,extraVolumes[0].emptyDir.medium=Memory,extraVolumeMounts[0].name=x",
        "--set=extraVolumeMounts[0].mountPath=/x,extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://proxy",
    ])?;

    let spec = &find(&documents, "DaemonSet")?["spec"]["template"]["spec"];
    let (init, daemon) = (&spec["initContainers"][0], &spec["containers"][0]);
    ensure!(
        init["image"] == "example.com/cni:1" && daemon["image"] == "example.com/cni:1",
        "{init} {daemon}"
    );
    let set = |container: &Value, name: &str, value: &str| {
        let wanted = serde_json::json!({"name": name, "value": value});
        container["env"].as_array().is_some_and(|env| env.contains(&wanted))
    };
    ensure!(set(daemon, "WARM_IP_TARGET", "5") && set(daemon, "HTTPS_PROXY", "http://proxy"), "{daemon:#}");
    // The init container refuses what the daemon would.
    ensure!(set(init, "WARM_IP_TARGET", "5") && set(init, "HTTPS_PROXY", "http://proxy"), "{init:#}");
    ensure!(set(init, "ENABLE_IPv6", "true") && set(init, "DISABLE_TCP_EARLY_DEMUX", "true"), "{init:#}");
    ensure!(!set(daemon, "DISABLE_TCP_EARLY_DEMUX", "true"), "{daemon:#}");
    ensure!(set(daemon, "NETWORK_POLICY_ENFORCING_MODE", "standard"), "the agent is not asked: {daemon:#}");
    ensure!(spec["containers"][1]["name"] == "aws-eks-nodeagent", "no agent in {spec:#}");
    let (config, role) = (find(&documents, "ENIConfig")?, find(&documents, "ClusterRole")?);
    ensure!(
        config["spec"]["securityGroups"][0] == "sg-1" && config["metadata"]["name"] == "zone-a",
        "{config}"
    );
    ensure!(role["rules"].as_array().is_some_and(|rules| rules.len() > 1), "{role:#}");
    ensure!(find(&documents, "ConfigMap")?["data"]["enable-network-policy-controller"] == "true", "not told");
    let monitor = find(&documents, "PodMonitor")?;
    ensure!(monitor["spec"]["podMetricsEndpoints"][1]["port"] == "agentmetrics", "{monitor:#}");
    let (ours, theirs) = (find(&documents, "PrometheusRule")?, &manifest("prometheusrule.yaml")?[0]);
    ensure!(ours["spec"] == theirs["spec"], "other alerts than the manifest's: {ours:#}");
    Ok(())
}

/// `helm -f` with the values of before adds them to the defaults here. What comes of it the API server takes (`documents` looks), and the daemon too.
fn whole_values_of_before() -> Outcome {
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/system/go-values.yaml");
    let images = "--set=init.image.override=example.com/cni:1,nodeAgent.image.override=example.com/agent:1";

    let documents = rendered(&["--values", values, images])?;

    let spec = &find(&documents, "DaemonSet")?["spec"]["template"]["spec"];
    let (init, daemon) = (&spec["initContainers"][0], &spec["containers"][0]);
    ensure!(init["securityContext"]["privileged"] == true, "not as it was asked for: {init:#}");
    ensure!(daemon["securityContext"]["allowPrivilegeEscalation"] == false, "{daemon:#}");
    ensure!(spec["containers"][1]["name"] == "aws-eks-nodeagent", "no agent in {spec:#}");
    for container in [init, daemon] {
        let text = |value: &Value| value.as_str().unwrap_or("told").to_owned();
        let env = container["env"].as_array().into_iter().flatten();
        let environment = env.map(|one| (text(&one["name"]).into(), text(&one["value"]).into())).collect();
        let config = ipamd::config::Config::parse(&environment);
        ensure!(config.as_ref().is_ok_and(|config| config.warnings.is_empty()), "{config:?}");
    }
    Ok(())
}

/// A template would come too late: Helm asks the API server for the kind of each before it makes the first.
fn definition() -> Outcome {
    let objects = ["--set=eniConfig.create=true,eniConfig.subnets.zone-a.id=subnet-1,crd.create=true"];
    let is_definition = |document: &Value| document["kind"] == "CustomResourceDefinition";

    let templates = rendered(&objects)?;
    let whole = rendered(&[objects[0], "--include-crds"])?;

    ensure!(!templates.iter().any(is_definition), "a template has it");
    find(&templates, "ENIConfig")?;
    ensure!(whole[0] == manifest("crd-eniconfig.yaml")?[0], "not the manifest's: {:#}", whole[0]);
    Ok(())
}

fn refused() -> Outcome {
    let own = "--set=image.repository=example.com/cni";
    for (values, name) in [
        ("--set-string=env.ENABLE_PREFIX_DELEGATOIN=true", "ENABLE_PREFIX_DELEGATOIN"),
        ("--set-string=env.WARM_IP_TRAGET=5", "WARM_IP_TRAGET"),
        ("--set=env.IPAMD_ADD_TIMEOUT_SECONDS=601", "IPAMD_ADD_TIMEOUT_SECONDS"),
        ("--set=metricsHelper.env.METRIC_UPDATE_INTERVAL=soon", "METRIC_UPDATE_INTERVAL"),
        ("--set-string=metricsHelper.env.USE_CLOUDWATHC=true", "USE_CLOUDWATHC"),
        ("--set=cniConfig.enabled=true", "cniConfig"),
        ("--set=crd.create=false", "--skip-crds"),
        ("--set-string=image.account=602401143452", "image.account"),
        ("--set=image.overrideRepository=example.com/cni", "image.overrideRepository"),
        ("--set=init.image.tag=v1.23.1,image.override=example.com/cni:1", "init.image.tag"),
        ("--set=init.image.region=eu-west-1", "init.image.region"),
        ("--set=enableNetworkPolicy=true", "enableNetworkPolicy"),
        ("--set=nodeAgent.enabled=true", "nodeAgent.image.override"),
        ("--set=livenessProbe.exec.command={/app/grpc-health-probe}", "livenessProbe"),
        ("--set=livenessProbe.httpGet.path=/livez,livenessProbe.httpGet.port=61679", "livenessProbe"),
        ("--set=readinessProbe.grpc.port=1", "readinessProbe"),
    ] {
        match helm(&["template", "chart", own, values])? {
            Ok(_) => return Err(LabError::Otherwise(format!("{values} was taken"))),
            Err(why) => ensure!(why.contains(name), "{values}: {why}"),
        }
    }
    let another =
        "--set=livenessProbe.httpGet.path=/livez,livenessProbe.httpGet.port=61679,livenessProbe.exec=null";
    let another = helm(&["template", "chart", own, another])?;
    ensure!(another.is_ok(), "{another:?}");
    let whole = "--set=image.override=example.com/cni:1,image.region=eu-west-1,init.image.override=example.com/cni:1,init.image.tag=1";
    let whole = helm(&["template", "chart", whole])?;
    ensure!(
        whole.is_ok(),
        "names that an override makes meaningless in the Go version's chart too: {whole:?}"
    );
    // A name without a registry is one of Docker Hub's, where ours is nobody's.
    let unnamed = helm(&["template", "chart"])?;
    ensure!(unnamed.as_ref().is_err_and(|why| why.contains("image.override")), "{unnamed:?}");
    let named = helm(&["template", "chart", own, "--set=image.tag=2"])?;
    ensure!(named.as_ref().is_ok_and(|text| text.contains("image: example.com/cni:2")), "{named:?}");
    // What is not ours may be meant for the AWS SDK.
    let foreign = helm(&["template", "chart", own, "--set-string=env.AWS_STS_REGIONAL_ENDPOINTS=regional"])?;
    ensure!(foreign.is_ok(), "{foreign:?}");
    Ok(())
}
