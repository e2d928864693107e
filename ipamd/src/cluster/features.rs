//! Features that the node's CNINode object is to name, for the VPC resource controller. Nothing here needs them.

use std::time::Duration;

use node::clock::{Jitter, doubled};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Features;
use super::api::{Ask, Door, Method, Refusal};
use crate::metrics::{ClusterWrite, Metrics};

/// Pause after an attempt that came to nothing; grows to the second value. The controller makes the object some time after the node.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How often it is looked whether they are still there.
const AUDIT: Duration = Duration::from_secs(3600);

/// Has the CNINode of this name have the features that are wanted at the time, until nobody wants anything any more.
/// `jitter` spreads what is done again and again: nodes that were started together would ask together, once an hour for ever.
pub(crate) async fn keep(
    door: Door,
    node: String,
    metrics: Metrics,
    mut jitter: Jitter,
    mut wanted: watch::Receiver<Features>,
) {
    let path = format!("/apis/vpcresources.k8s.aws/v1alpha1/cninodes/{node}");
    let mut failures = 0;
    loop {
        let features = wanted.borrow_and_update().clone();
        let pause = if features.is_empty() {
            AUDIT
        } else {
            put(&door, &path, &features, &metrics, &mut failures).await
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(jitter.around(pause)) => {}
        }
    }
}

/// One attempt; how long to rest then.
async fn put(
    door: &Door,
    path: &str,
    features: &Features,
    metrics: &Metrics,
    failures: &mut u32,
) -> Duration {
    match attempt(door, path, features).await {
        Ok(changed) => {
            *failures = 0;
            if changed {
                tracing::info!(?features, "the CNINode names our features");
                metrics.wrote_to_cluster("features", ClusterWrite::Done);
            }
            AUDIT
        }
        Err(refusal) => {
            let pause = doubled(RETRY, *failures);
            // Once is enough: in clusters without the controller there is none.
            if *failures == 0 {
                tracing::warn!("the CNINode does not name our features yet: {refusal}");
            }
            *failures = failures.saturating_add(1);
            let counted = if refusal.is_final() { ClusterWrite::Refused } else { ClusterWrite::Away };
            metrics.wrote_to_cluster("features", counted);
            pause
        }
    }
}

/// Reads the object, and changes it if it is still as it was read. Tells whether there was something to change.
async fn attempt(door: &Door, path: &str, wanted: &Features) -> Result<bool, Refusal> {
    let get = Ask { method: Method::Get, path: path.to_owned(), body: Value::Null };
    let object = door.ask(get).await?;
    let Some(features) = merged(&object["spec"]["features"], wanted) else { return Ok(false) };
    let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
    let body = json!({"metadata": metadata, "spec": {"features": features}});
    door.ask(Ask { method: Method::MergePatch, path: path.to_owned(), body }).await?;
    Ok(true)
}

/// The features with ours among them: what others have put there stays, one of ours with another value is replaced. `None` if all are
/// there already.
fn merged(features: &Value, wanted: &Features) -> Option<Value> {
    let mut all: Vec<Value> = features.as_array().cloned().unwrap_or_default();
    let before = all.clone();
    for (name, value) in wanted {
        let feature = json!({"name": name, "value": value});
        match all.iter_mut().find(|known| known["name"] == name.as_str()) {
            // A value that is empty may be left out.
            Some(known) if known["value"].as_str().unwrap_or_default() == value => {}
            Some(known) => *known = feature,
            None => all.push(feature),
        }
    }
    (all != before).then_some(Value::Array(all))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use node::cluster::CUSTOM_NETWORKING;

    use super::*;

    fn ours(value: &str) -> Features {
        BTreeMap::from([(CUSTOM_NETWORKING.to_owned(), value.to_owned())])
    }

    #[test]
    fn features_of_others_stay_and_ours_is_added_or_replaced() {
        let other = json!({"name": "SecurityGroupsForPods", "value": ""});
        let is = |value| json!({"name": "CustomNetworking", "value": value});

        assert_eq!(merged(&Value::Null, &ours("zone-a")), Some(json!([is("zone-a")])));
        assert_eq!(merged(&json!([other]), &ours("zone-a")), Some(json!([other, is("zone-a")])));
        assert_eq!(
            merged(&json!([is("zone-b"), other]), &ours("zone-a")),
            Some(json!([is("zone-a"), other]))
        );
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let features = json!([{"name": "CustomNetworking", "value": "a"}, {"name": "Other"}]);

        assert_eq!(merged(&features, &ours("a")), None);
        let empty = BTreeMap::from([("Other".to_owned(), String::new())]);
        assert_eq!(merged(&features, &empty), None);
    }
}
