//! An API server with two kinds of objects: nodes and ENIConfigs. It lists, watches and forgets its history as the real one does.
//!
//! A watch begins after a resource version and goes on until it times out or is cut. A version that is older than what is remembered
//! is gone (410), in the middle of a stream as an event of type ERROR.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ec2::{Server, spawn};

/// What a watch that is about to end has seen.
const ENDED: u64 = u64::MAX;

/// How it behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ApiWeather {
    /// As it should.
    #[default]
    Fair,
    /// Requests are refused with 503, and watches end.
    Away,
    /// Answers and events are this text.
    Garbage(String),
    /// Answers come after this time.
    Slow(Duration),
}

/// A running API server; it ends when this is dropped.
#[derive(Debug)]
pub struct KubeApi {
    server: Server,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Desk {
    book: Mutex<Book>,
    /// Rung at every change, with the version.
    bell: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Book {
    version: u64,
    objects: BTreeMap<(Kind, String), Value>,
    /// What has happened, with the version that it led to.
    history: Vec<(u64, Kind, &'static str, Value)>,
    /// Versions up to this one are forgotten.
    forgotten: u64,
    weather: ApiWeather,
    lists: u64,
    watches: u64,
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Node,
    EniConfig,
}

impl Kind {
    /// Its version and name.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("v1", "Node"),
            Self::EniConfig => ("crd.k8s.amazonaws.com/v1alpha1", "ENIConfig"),
        }
    }

    /// The kind that is served at a path.
    fn at(path: &str) -> Option<Self> {
        match path {
            "/api/v1/nodes" => Some(Self::Node),
            "/apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs" => Some(Self::EniConfig),
            _ => None,
        }
    }
}

impl KubeApi {
    /// Serves on a listener, without any object.
    ///
    /// # Errors
    /// If the server's runtime or thread cannot be made.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        let book = Book { version: 1, ..Book::default() };
        let desk = Arc::new(Desk { book: Mutex::new(book), bell: watch::Sender::new(1) });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&desk));
        Ok(Self { server: spawn(listener, router)?, desk })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Makes or changes a node: its `metadata.annotations`, `spec` and `status`.
    pub fn put_node(&self, name: &str, annotations: &Value, spec: &Value, status: &Value) {
        let metadata = json!({"name": name, "annotations": annotations});
        self.put(Kind::Node, name, json!({"metadata": metadata, "spec": spec, "status": status}));
    }

    /// Deletes a node.
    pub fn delete_node(&self, name: &str) {
        self.delete(Kind::Node, name);
    }

    /// Makes or changes an ENIConfig; nothing checks its `spec`, as with the resource's definition.
    pub fn put_eni_config(&self, name: &str, spec: &Value) {
        self.put(Kind::EniConfig, name, json!({"metadata": {"name": name}, "spec": spec}));
    }

    /// Deletes an ENIConfig.
    pub fn delete_eni_config(&self, name: &str) {
        self.delete(Kind::EniConfig, name);
    }

    fn put(&self, kind: Kind, name: &str, mut object: Value) {
        self.change(|book| {
            book.version += 1;
            (object["apiVersion"], object["kind"]) = (kind.words().0.into(), kind.words().1.into());
            object["metadata"]["uid"] = "1".into();
            object["metadata"]["resourceVersion"] = book.version.to_string().into();
            let known = book.objects.insert((kind, name.to_owned()), object.clone()).is_some();
            book.history.push((book.version, kind, if known { "MODIFIED" } else { "ADDED" }, object));
        });
    }

    fn delete(&self, kind: Kind, name: &str) {
        self.change(|book| {
            book.version += 1;
            if let Some(object) = book.objects.remove(&(kind, name.to_owned())) {
                book.history.push((book.version, kind, "DELETED", object));
            }
        });
    }

    /// Forgets its history: whoever watches hears that its place is gone.
    pub fn forget(&self) {
        self.change(|book| {
            book.version += 1;
            book.forgotten = book.version;
            book.history.clear();
        });
    }

    /// What requests meet from now on; watches that run notice.
    pub fn set_weather(&self, weather: ApiWeather) {
        self.change(|book| book.weather = weather);
    }

    /// How often it was asked for a list, and for a watch.
    #[must_use]
    pub fn asked(&self) -> (u64, u64) {
        let book = self.desk.book();
        (book.lists, book.watches)
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let version = {
            let mut book = self.desk.book();
            change(&mut book);
            book.version
        };
        self.desk.bell.send_replace(version);
    }
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a watch hears next, and the version it has then seen; `None` when it ends.
    fn news(&self, seen: u64, kind: Kind, name: Option<&str>) -> Option<(Vec<Value>, u64)> {
        let book = self.book();
        match &book.weather {
            ApiWeather::Away => return None,
            // Once, and then the stream ends.
            ApiWeather::Garbage(_) if seen == ENDED => return None,
            ApiWeather::Garbage(text) => return Some((vec![Value::String(text.clone())], ENDED)),
            ApiWeather::Fair | ApiWeather::Slow(_) => {}
        }
        if seen < book.forgotten {
            let gone = json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")});
            return Some((vec![gone], book.version));
        }
        let newer = book
            .history
            .iter()
            .filter(|(version, of, _, object)| *version > seen && *of == kind && is_named(object, name));
        let events = newer.map(|(.., what, object)| json!({"type": what, "object": object})).collect();
        Some((events, book.version))
    }
}

fn is_named(object: &Value, name: Option<&str>) -> bool {
    name.is_none_or(|name| object["metadata"]["name"] == name)
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": message})
}

fn refused(code: StatusCode, reason: &str, message: &str) -> Response {
    let text = status(code.as_u16(), reason, message).to_string();
    (code, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn answer(
    State(desk): State<Arc<Desk>>,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let weather = desk.book().weather.clone();
    match weather {
        ApiWeather::Fair => {}
        ApiWeather::Away => return refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "away"),
        ApiWeather::Garbage(text) => return text.into_response(),
        ApiWeather::Slow(pause) => tokio::time::sleep(pause).await,
    }
    let Some(kind) = Kind::at(uri.path()) else {
        return refused(StatusCode::NOT_FOUND, "NotFound", uri.path());
    };
    let name = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    if query.get("watch").is_some_and(|word| word == "true" || word == "1") {
        return watching(&desk, kind, name.map(str::to_owned), &query);
    }
    let mut book = desk.book();
    book.lists += 1;
    let of = book.objects.iter().filter(|((of, _), object)| *of == kind && is_named(object, name));
    let items: Vec<&Value> = of.map(|(_, object)| object).collect();
    let (version, word) = kind.words();
    let list = json!({"kind": format!("{word}List"), "apiVersion": version, "items": items,
                      "metadata": {"resourceVersion": book.version.to_string()}});
    ([(header::CONTENT_TYPE, "application/json")], list.to_string()).into_response()
}

fn watching(
    desk: &Arc<Desk>,
    kind: Kind,
    name: Option<String>,
    query: &BTreeMap<String, String>,
) -> Response {
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<u64>().ok());
    let from = number("resourceVersion").unwrap_or(0);
    {
        let mut book = desk.book();
        book.watches += 1;
        if from < book.forgotten {
            drop(book);
            return refused(StatusCode::GONE, "Expired", "too old resource version");
        }
    }
    let until = tokio::time::sleep(Duration::from_secs(number("timeoutSeconds").unwrap_or(300)));
    let body = Body::from_stream(events(Arc::clone(desk), kind, name, from).take_until(until));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

type Lines = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A line of JSON for each event after a version, for ever.
fn events(desk: Arc<Desk>, kind: Kind, name: Option<String>, from: u64) -> Lines {
    let bell = desk.bell.subscribe();
    let lines = stream::unfold((desk, name, from, bell), move |(desk, name, seen, mut bell)| async move {
        loop {
            // Read before the book, so that what happens meanwhile rings again.
            bell.borrow_and_update();
            let (events, now) = desk.news(seen, kind, name.as_deref())?;
            if !events.is_empty() {
                let text: String = events.iter().map(|event| format!("{event}\n")).collect();
                return Some((Ok(Bytes::from(text)), (desk, name, now, bell)));
            }
            bell.changed().await.ok()?;
        }
    });
    Box::pin(lines)
}
