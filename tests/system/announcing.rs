//! What the daemon writes to the API server, and that nothing waits for it.

use lab::LabError;
use lab::ec2::Weather;
use lab::kube_api::ApiWeather;
use lab::manifests::documents;
use lab::runtime::Pod;
use serde_json::{Value, json};

use crate::cluster::{NAME, Stage};
use crate::support::{Outcome, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_call_that_ec2_denies_is_an_event_of_the_daemons_own_pod", denied),
    ("an_add_fails_as_fast_and_as_clearly_where_its_event_is_not_taken", not_taken),
    ("a_pods_annotation_has_its_address_while_it_has_it_and_nothing_waits_for_that", annotated),
    (
        "a_pod_of_another_node_keeps_its_annotation_when_a_daemon_comes_back_to_one_of_the_same_name",
        moved_away,
    ),
    ("the_cninode_names_the_eniconfig_beside_what_others_have_put_there", features),
    ("the_manifests_role_has_the_rights_that_are_used_and_no_other", rights),
];

/// The manifest's rule for `ANNOTATE_POD_IP`, which is a comment there.
const OF_ANNOTATIONS: &str = r#"- { apiGroups: [""], resources: [pods], verbs: [patch] }"#;
const ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";

/// The role of the manifest, with all that a setting may need.
pub(crate) fn role() -> Result<Value, LabError> {
    let manifest = include_str!("../../manifests/daemonset.yaml");
    let whole = manifest.replacen(&format!("# {OF_ANNOTATIONS}"), OF_ANNOTATIONS, 1);
    ensure!(whole != manifest, "the manifest has no rule for annotations");
    let documents = documents(&whole).map_err(LabError::Otherwise)?;
    let role = documents.into_iter().find(|document| document["kind"] == "ClusterRole");
    role.ok_or_else(|| LabError::Otherwise("the manifest has no role".to_owned()))
}

fn denied() -> Outcome {
    let own =
        [("MY_POD_NAME", "aws-node-x"), ("IPAMD_POD_UID", "uid-of-daemon"), ("MINIMUM_IP_TARGET", "20")];
    let stage = Stage::begin(&own, |api, setting| {
        api.bind(&role()?);
        setting.fabric.ec2().set_weather(Weather::Denied);
        Ok(())
    })?;

    let told = |event: &Value| {
        event["reason"] == "MissingIAMPermissions" && event["regarding"]["uid"] == "uid-of-daemon"
    };
    eventually("an event", || stage.api.events().iter().any(told))?;

    let events = stage.api.events();
    let event = events.iter().find(|event| told(event)).unwrap_or(&Value::Null);
    let call = event["action"].as_str().unwrap_or_default();
    ensure!(call.starts_with("ec2:") && event["note"].to_string().contains(call), "{event}");
    ensure!(event["regarding"]["namespace"] == "kube-system", "{event}");
    Ok(())
}

fn not_taken() -> Outcome {
    let settings = [("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "4")];
    let stage = Stage::begin(&settings, |_, _| Ok(()))?;
    stage.node().wait_ready()?;
    let _pods = stage.setting.pods(0..9)?;
    let late = |name: &str| -> Outcome {
        let answer = Pod::create(name, name)?.call(stage.node(), "ADD")?;
        ensure!(!answer.success && answer.stdout.to_string().contains("node-full"), "{}", answer.stdout);
        Ok(())
    };

    stage.api.set_weather(ApiWeather::Away);
    late("while-away")?;
    let written = |outcome: &str| {
        let line = format!("ipamd_cluster_writes_total{{what=\"event\",outcome=\"{outcome}\"}}");
        stage.node().metrics().is_ok_and(|text| text.contains(&line))
    };
    eventually("an attempt to write the event", || written("away"))?;
    stage.api.set_weather(ApiWeather::Fair);
    stage.api.bind(&Value::Null);
    late("without-rights")?;
    eventually("an attempt without rights", || written("refused"))?;
    ensure!(stage.api.events().is_empty(), "{:?}", stage.api.events());

    // The next one is told again.
    stage.api.bind(&role()?);
    late("at-last")?;
    eventually("an event", || stage.api.events().iter().any(|event| event["regarding"]["name"] == "at-last"))
}

fn annotated() -> Outcome {
    let stage = Stage::begin(&[("ANNOTATE_POD_IP", "true")], |api, _| {
        api.bind(&role()?);
        (0..4)
            .for_each(|n| api.put_pod(&format!("pod-{n}"), &format!("uid-of-sandbox{n}"), NAME, &json!({})));
        Ok(())
    })?;
    stage.node().wait_ready()?;
    let says = |n: u32, address: &str| {
        eventually(&format!("annotation {address:?} of pod-{n}"), || {
            stage.api.pod_annotation(&format!("pod-{n}"), ANNOTATION).as_deref() == Some(address)
        })
    };
    let address =
        |pods: &[Pod], n: usize| pods[n].address.map(|address| address.to_string()).unwrap_or_default();

    // Somebody else is faster twice.
    stage.api.set_conflicts(2);
    let mut pods = stage.setting.pods(0..2)?;
    says(0, &address(&pods, 0))?;
    says(1, &address(&pods, 1))?;

    // With the API server away ADD and DEL go on, and what has to be said is said when it is back.
    stage.api.set_weather(ApiWeather::Away);
    pods.extend(stage.setting.pods(2..3)?);
    pods[0].del(stage.node())?;
    stage.api.set_weather(ApiWeather::Fair);
    says(2, &address(&pods, 2))?;
    says(0, "")?;

    // What says something else, and a pod that is another one by now, are left alone.
    stage.api.put_pod("pod-1", "uid-of-sandbox1", NAME, &json!({ANNOTATION: "192.0.2.1"}));
    stage.api.put_pod("pod-3", "uid-of-the-next", NAME, &json!({}));
    pods[1].del(stage.node())?;
    pods.extend(stage.setting.pods(3..4)?);
    pods[2].del(stage.node())?;
    says(2, "")?;
    says(1, "192.0.2.1")?;
    ensure!(
        stage.api.pod_annotation("pod-3", ANNOTATION).is_none(),
        "the next pod got the address of this one"
    );
    Ok(())
}

fn moved_away() -> Outcome {
    let uid = |n: u32| format!("uid-of-sandbox{n}");
    let stage = Stage::begin(&[("ANNOTATE_POD_IP", "true")], |api, _| {
        api.bind(&role()?);
        (0..3).for_each(|n| api.put_pod(&format!("pod-{n}"), &uid(n), NAME, &json!({})));
        Ok(())
    })?;
    stage.node().wait_ready()?;
    let mut pods = stage.setting.pods(0..3)?;
    let says = |n: usize| stage.api.pod_annotation(&format!("pod-{n}"), ANNOTATION);
    let address = |pod: &Pod| pod.address.map(|address| address.to_string());
    eventually("the first annotations", || (0..3).all(|n| says(n) == address(&pods[n])))?;
    stage.node().kill_daemon();
    // Two come up on another node, which has said their addresses; only one of them is deleted here yet.
    pods[0].del(stage.node())?;
    let there = json!({ANNOTATION: "192.0.2.9"});
    for n in [0, 2] {
        stage.api.put_pod(&format!("pod-{n}"), "uid-of-the-next", "another-node", &there);
    }
    // What the killed daemon has said of the third is lost.
    stage.api.put_pod("pod-1", &uid(1), NAME, &json!({}));

    stage.restart()?;

    let of_second = address(&pods[1]);
    eventually("what the killed daemon may not have written", || says(1) == of_second)?;
    // They are written one after the other: once this one is there, those of the others were tried.
    pods[1].del(stage.node())?;
    eventually("the removal", || says(1).as_deref() == Some(""))?;
    for n in [0, 2] {
        ensure!(says(n).as_deref() == Some("192.0.2.9"), "pod-{n} of the other node has {:?}", says(n));
    }
    Ok(())
}

fn with_custom_networking(settings: &[(&str, &str)]) -> Result<Stage, LabError> {
    let custom = [
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ("MAX_ENI", "1"),
        ("IPAMD_ADD_TIMEOUT_SECONDS", "2"),
    ];
    let settings: Vec<(&str, &str)> = custom.iter().chain(settings).copied().collect();
    Stage::begin(&settings, |api, _| {
        api.bind(&role()?);
        let annotations = json!({"k8s.amazonaws.com/eniConfig": "zone-a"});
        api.put_node(NAME, &annotations, &json!({}), &json!({}));
        Ok(())
    })
}

fn features() -> Outcome {
    let stage = with_custom_networking(&[])?;
    stage.hears("ENIConfig \"zone-a\"")?;
    let other = json!({"name": "SecurityGroupsForPods", "value": ""});
    // The controller makes it some time after the node, and writes to it as we do.
    stage.api.set_conflicts(1);
    stage.api.put_cni_node(NAME, &json!([other]));

    let is = |value: &str| json!([other, {"name": "CustomNetworking", "value": value}]);
    eventually("the feature", || stage.api.features(NAME) == is("zone-a"))?;

    let annotations = json!({"k8s.amazonaws.com/eniConfig": "zone-b"});
    stage.api.put_node(NAME, &annotations, &json!({}), &json!({}));
    eventually("the other ENIConfig", || stage.api.features(NAME) == is("zone-b"))
}

fn rights() -> Outcome {
    let allowed = lab::kube_api::rights(&role()?);
    // Without an ENIConfig no pod gets an address: one that fails again and again is an event that is counted up.
    let stage = with_custom_networking(&[("ANNOTATE_POD_IP", "true")])?;
    stage.api.put_cni_node(NAME, &json!([]));
    let late = Pod::create("late", "late")?;
    for _ in 0..2 {
        let answer = late.call(stage.node(), "ADD")?;
        ensure!(answer.stdout.to_string().contains("no-eni-config"), "{}", answer.stdout);
    }
    eventually("an event that is counted up", || {
        stage.api.events().iter().any(|event| event["series"]["count"].as_u64() >= Some(2))
    })?;
    let mut used = stage.api.used();
    drop((late, stage));
    // With addresses, pods are annotated; without a target the node's are watched.
    let settings = [("ANNOTATE_POD_IP", "true"), ("WARM_ENI_TARGET", ""), ("WARM_IP_TARGET", "")];
    let stage = Stage::begin(&settings, |api, _| {
        api.bind(&role()?);
        Ok(())
    })?;
    stage.node().wait_ready()?;
    stage.api.put_pod("pod-0", "uid-of-sandbox0", NAME, &json!({}));
    let _pods = stage.setting.pods(0..1)?;
    eventually("an annotation", || stage.api.pod_annotation("pod-0", ANNOTATION).is_some())?;
    let watches = (String::new(), "pods".to_owned(), "watch".to_owned());
    eventually("a watch of the pods", || stage.api.used().contains(&watches))?;
    used.extend(stage.api.used());

    let unused: Vec<_> = allowed.difference(&used).collect();
    ensure!(unused.is_empty(), "nobody needs {unused:?}");
    Ok(())
}
