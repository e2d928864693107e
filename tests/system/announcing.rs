//! What the daemon writes to the API server, and that nothing waits for it.

use lab::LabError;
use lab::ec2::Weather;
use lab::kube_api::ApiWeather;
use lab::manifests::documents;
use lab::runtime::Pod;
use serde_json::Value;

use crate::cluster::Stage;
use crate::support::{Outcome, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_call_that_ec2_denies_is_an_event_of_the_daemons_own_pod", denied),
    ("an_add_fails_as_fast_and_as_clearly_where_its_event_is_not_taken", not_taken),
];

/// The role of the manifest.
pub(crate) fn role() -> Result<Value, LabError> {
    let manifest = include_str!("../../manifests/daemonset.yaml");
    let documents = documents(manifest).map_err(LabError::Otherwise)?;
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
