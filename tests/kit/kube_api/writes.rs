//! What clients may write, and what it is checked for: roles, optimistic locks, and the rules for events.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::Value;

use super::objects::{Kind, Place};
use super::{Book, Right, json_of, refused};
use crate::manifests;

/// The longest note of an event, in bytes, and the longest name of who reports it.
const NOTE_MAX: usize = 1024;
const INSTANCE_MAX: usize = 128;

/// What a ClusterRole allows.
#[must_use]
pub fn rights(role: &Value) -> BTreeSet<Right> {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let verbs = texts(&rule["verbs"]);
                all.extend(verbs.into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    all
}

impl Book {
    /// Why a client may not do this; what it may is noted.
    pub(super) fn forbids(&mut self, place: &Place, verb: &str) -> Option<Response> {
        let (group, resource) = place.kind.resource();
        self.forbids_right((group.to_owned(), resource.to_owned(), verb.to_owned()))
    }

    /// The same for a right by its words.
    pub(super) fn forbids_right(&mut self, right: Right) -> Option<Response> {
        let (group, resource, verb) = &right;
        if self.rights.as_ref().is_some_and(|rights| !rights.contains(&right)) {
            let message = format!("cannot {verb} resource {resource:?} in API group {group:?}");
            return Some(refused(StatusCode::FORBIDDEN, "Forbidden", &message));
        }
        self.used.insert(right);
        None
    }
}

fn invalid(why: &str) -> Response {
    refused(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why)
}

/// Makes an object.
pub(super) fn create(book: &mut Book, at: &Place, body: &Bytes) -> Response {
    let Ok(object) = serde_json::from_slice::<Value>(body) else {
        return refused(StatusCode::BAD_REQUEST, "BadRequest", "not JSON");
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let place = Place::of(at.kind, &at.namespace, name);
    if name.is_empty() || name.len() > 253 || object["metadata"]["namespace"] != place.namespace.as_str() {
        return invalid("metadata.name, metadata.namespace");
    }
    if let Some(why) = wrong(at.kind, &object) {
        return invalid(&why);
    }
    if book.objects.contains_key(&place) {
        return refused(StatusCode::CONFLICT, "AlreadyExists", name);
    }
    json_of(&book.put(place, object))
}

/// Changes an object.
pub(super) fn patch(book: &mut Book, place: &Place, headers: &HeaderMap, body: &Bytes) -> Response {
    let Some(before) = book.objects.get(place).cloned() else {
        return refused(StatusCode::NOT_FOUND, "NotFound", &place.name);
    };
    let Ok(change) = serde_json::from_slice::<Value>(body) else {
        return refused(StatusCode::BAD_REQUEST, "BadRequest", "not JSON");
    };
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut after = before.clone();
    match content {
        "application/merge-patch+json" => merge(&mut after, &change),
        "application/json-patch+json" => {
            if let Err(why) = edit(&mut after, &change) {
                return invalid(&why);
            }
        }
        other => return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", other),
    }
    let moved = |key: &str| after["metadata"][key] != before["metadata"][key];
    let raced = book.conflicts > 0;
    book.conflicts = book.conflicts.saturating_sub(1);
    if raced || moved("uid") || moved("resourceVersion") {
        return refused(StatusCode::CONFLICT, "Conflict", "the object has been modified");
    }
    if let Some(why) = wrong(place.kind, &after).or_else(|| fixed(place.kind, &before, &after)) {
        return invalid(&why);
    }
    if after == before {
        return json_of(&before);
    }
    json_of(&book.put(place.clone(), after))
}

/// RFC 7396.
fn merge(object: &mut Value, change: &Value) {
    let Some(changes) = change.as_object() else {
        *object = change.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    for (key, value) in changes {
        if value.is_null() {
            drop(object.as_object_mut().and_then(|map| map.remove(key)));
        } else {
            merge(&mut object[key.as_str()], value);
        }
    }
}

/// RFC 6902, as far as anybody uses it: `test` and `replace`.
fn edit(object: &mut Value, change: &Value) -> Result<(), String> {
    for step in change.as_array().ok_or("a JSON patch is a list")? {
        let path = step["path"].as_str().unwrap_or_default();
        let Some(found) = object.pointer_mut(path) else { return Err(format!("there is no {path}")) };
        match step["op"].as_str() {
            Some("test") if *found == step["value"] => {}
            Some("test") => return Err(format!("testing {path} failed")),
            Some("replace") => *found = step["value"].clone(),
            other => return Err(format!("{other:?} is not known here")),
        }
    }
    Ok(())
}

/// What is wrong with an object, if its kind is one that is checked.
fn wrong(kind: Kind, object: &Value) -> Option<String> {
    if kind != Kind::Event {
        return None;
    }
    if let Err(why) = manifests::check(object) {
        return Some(why);
    }
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let series = &object["series"];
    let checks = [
        (object["regarding"]["namespace"] == object["metadata"]["namespace"], "regarding.namespace"),
        (text("eventTime").len() == "2026-01-01T00:00:00.000000Z".len(), "eventTime"),
        ((1..=128).contains(&text("reason").len()), "reason"),
        ((1..=128).contains(&text("action").len()), "action"),
        (!text("reportingController").is_empty(), "reportingController"),
        ((1..=INSTANCE_MAX).contains(&text("reportingInstance").len()), "reportingInstance"),
        (text("note").len() <= NOTE_MAX, "note"),
        (["Normal", "Warning"].contains(&text("type")), "type"),
        (series.is_null() || series["count"].as_u64().is_some_and(|count| count >= 2), "series.count"),
    ];
    checks.iter().find(|(holds, _)| !holds).map(|(_, field)| (*field).to_owned())
}

/// What of an object was changed that cannot be: of an event, all but its series; of a pod, its node.
fn fixed(kind: Kind, before: &Value, after: &Value) -> Option<String> {
    if kind == Kind::Pod && after["spec"] != before["spec"] {
        return Some("spec: pod updates may not change it".to_owned());
    }
    if kind != Kind::Event {
        return None;
    }
    let keys = after.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| *key != "series").find(|key| after[*key] != before[*key]).cloned()
}
