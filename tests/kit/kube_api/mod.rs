//! An API server with the objects that concern a node: nodes, ENIConfigs, CNINodes, pods, events. It lists, watches, forgets its
//! history, checks who may do what, and refuses what the real one does.
//!
//! What a pod serves over HTTP is to be had through it, as far as somebody has said how.
//!
//! A watch begins after a resource version and goes on until it times out or is cut. A version that is older than what is remembered
//! is gone (410), in the middle of a stream as an event of type ERROR. A bookmark tells a client how far it has come although nothing of its own has changed.
//! A list at resource version 0 is what a server remembers, and one that lags remembers an older truth.

pub mod controller;
mod objects;
mod proxy;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ec2::{Server, spawn};
use objects::{Kind, Place, Selector};
pub use proxy::Page;
use proxy::Proxies;
pub use writes::rights;

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
    /// Connections are taken, and nothing is ever said on them.
    Silent,
}

/// A running API server; it ends when this is dropped.
#[derive(Debug)]
pub struct KubeApi {
    servers: Vec<Server>,
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
    objects: BTreeMap<Place, Value>,
    /// What has happened, with the version that it led to.
    history: Vec<(u64, Kind, &'static str, Value)>,
    /// Versions up to this one are forgotten.
    forgotten: u64,
    weather: ApiWeather,
    /// What a server that lags remembers.
    lagging: Option<(u64, BTreeMap<Place, Value>)>,
    /// Up to which version watches have been, or are to be, told by a bookmark how far they are.
    bookmark: u64,
    /// How many were told.
    bookmarks: u64,
    /// How often all watches were cut.
    cuts: u64,
    lists: u64,
    watches: u64,
    /// What clients may do; `None`: anything.
    rights: Option<BTreeSet<Right>>,
    /// What they have done.
    used: BTreeSet<Right>,
    /// What pods serve.
    proxies: Proxies,
    /// How many of the next writes fail as if somebody else had been faster.
    conflicts: u32,
}

/// A right that a role gives: API group, resource, verb.
pub type Right = (String, String, String);

impl KubeApi {
    /// Serves on a listener, without any object.
    ///
    /// # Errors
    /// If the server's runtime or thread cannot be made.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        let book = Book { version: 1, ..Book::default() };
        let desk = Arc::new(Desk { book: Mutex::new(book), bell: watch::Sender::new(1) });
        let mut this = Self { servers: Vec::new(), desk };
        this.serve_also(listener)?;
        Ok(this)
    }

    /// Serves the same objects on another listener.
    ///
    /// # Errors
    /// If the server's runtime or thread cannot be made.
    pub fn serve_also(&mut self, listener: TcpListener) -> io::Result<()> {
        let router = Router::new().fallback(answer).with_state(Arc::clone(&self.desk));
        self.servers.push(spawn(listener, router)?);
        Ok(())
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.servers.first().map_or_else(String::new, |server| format!("http://{}", server.address()))
    }

    /// Makes or changes a node: its `metadata.annotations`, `spec` and `status`.
    pub fn put_node(&self, name: &str, annotations: &Value, spec: &Value, status: &Value) {
        let metadata = json!({"name": name, "annotations": annotations});
        let node = json!({"metadata": metadata, "spec": spec, "status": status});
        self.put(Place::of(Kind::Node, "", name), node);
    }

    /// Sets a label of a node that is there.
    pub fn label_node(&self, name: &str, key: &str, value: &str) {
        let place = Place::of(Kind::Node, "", name);
        self.change(|book| {
            if let Some(mut node) = book.objects.get(&place).cloned() {
                node["metadata"]["labels"][key] = value.into();
                book.put(place, node);
            }
        });
    }

    /// Deletes a node.
    pub fn delete_node(&self, name: &str) {
        self.delete(&Place::of(Kind::Node, "", name));
    }

    /// Makes or changes an ENIConfig; nothing checks its `spec`, as with the resource's definition.
    pub fn put_eni_config(&self, name: &str, spec: &Value) {
        let config = json!({"metadata": {"name": name}, "spec": spec});
        self.put(Place::of(Kind::EniConfig, "", name), config);
    }

    /// Deletes an ENIConfig.
    pub fn delete_eni_config(&self, name: &str) {
        self.delete(&Place::of(Kind::EniConfig, "", name));
    }

    /// Makes or changes a CNINode, as its controller does.
    pub fn put_cni_node(&self, name: &str, features: &Value) {
        let node = json!({"metadata": {"name": name}, "spec": {"features": features}});
        self.put(Place::of(Kind::CniNode, "", name), node);
    }

    /// The features of a CNINode.
    #[must_use]
    pub fn features(&self, name: &str) -> Value {
        let place = Place::of(Kind::CniNode, "", name);
        self.desk.book().objects.get(&place).map_or(Value::Null, |node| node["spec"]["features"].clone())
    }

    /// Makes or changes a pod of the namespace `default`: its UID and annotations, on a node.
    pub fn put_pod(&self, name: &str, uid: &str, node: &str, annotations: &Value) {
        let metadata = json!({"namespace": "default", "name": name, "uid": uid, "annotations": annotations});
        let spec = json!({"nodeName": node, "containers": [{"name": "main"}]});
        self.put(Place::of(Kind::Pod, "default", name), json!({"metadata": metadata, "spec": spec}));
    }

    /// Makes or changes a pod of the namespace `default` on the node's network that has one container, which asks for so much CPU.
    pub fn put_busy_pod(&self, name: &str, node: &str, cpu: &str) {
        let metadata = json!({"namespace": "default", "name": name, "uid": name});
        let container = json!({"name": "main", "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({"nodeName": node, "hostNetwork": true, "containers": [container]});
        self.put(Place::of(Kind::Pod, "default", name), json!({"metadata": metadata, "spec": spec}));
    }

    /// Deletes a pod of the namespace `default`.
    pub fn delete_pod(&self, name: &str) {
        self.delete(&Place::of(Kind::Pod, "default", name));
    }

    /// An annotation of a pod of the namespace `default`.
    #[must_use]
    pub fn pod_annotation(&self, name: &str, key: &str) -> Option<String> {
        let book = self.desk.book();
        let pod = book.objects.get(&Place::of(Kind::Pod, "default", name))?;
        pod["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    /// All events, of every namespace.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let book = self.desk.book();
        let events = book.objects.iter().filter(|(place, _)| place.kind == Kind::Event);
        events.map(|(_, event)| event.clone()).collect()
    }

    /// From now on clients may do what this ClusterRole allows, and nothing else.
    pub fn bind(&self, role: &Value) {
        self.desk.book().rights = Some(rights(role));
    }

    /// What clients have done so far.
    #[must_use]
    pub fn used(&self) -> BTreeSet<Right> {
        self.desk.book().used.clone()
    }

    /// Somebody else is faster: so many of the next patches meet a conflict.
    pub fn set_conflicts(&self, number: u32) {
        self.desk.book().conflicts = number;
    }

    fn put(&self, place: Place, object: Value) {
        self.change(|book| drop(book.put(place, object)));
    }

    fn delete(&self, place: &Place) {
        self.change(|book| {
            book.version += 1;
            if let Some(mut object) = book.objects.remove(place) {
                // The last version of an object is that of its end.
                object["metadata"]["resourceVersion"] = book.version.to_string().into();
                book.history.push((book.version, place.kind, "DELETED", object));
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

    /// Forgets what led to the present: watches that are up to date go on.
    pub fn compact(&self) {
        self.change(|book| {
            book.forgotten = book.version;
            book.history.clear();
        });
    }

    /// Tells every watch that has asked for it how far it is, and returns how many have been told so far, which it takes a moment to change.
    pub fn bookmark(&self) -> u64 {
        self.desk.change(|book| {
            book.bookmark = book.version;
            book.bookmarks
        })
    }

    /// How many bookmarks have been sent.
    #[must_use]
    pub fn bookmarks(&self) -> u64 {
        self.desk.book().bookmarks
    }

    /// Ends every watch, as a server does after some time.
    pub fn cut(&self) {
        self.change(|book| book.cuts += 1);
    }

    /// From now on lists that may be old are of this moment; or, with `false`, of theirs.
    pub fn lag(&self, lags: bool) {
        self.change(|book| book.lagging = lags.then(|| (book.version, book.objects.clone())));
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
        self.desk.change(change);
    }
}

impl Book {
    /// Puts an object in its place; returns it as it is then.
    fn put(&mut self, place: Place, mut object: Value) -> Value {
        self.version += 1;
        let (version, kind) = place.kind.words();
        (object["apiVersion"], object["kind"]) = (version.into(), kind.into());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = "1".into();
        }
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let kind = place.kind;
        let known = self.objects.insert(place, object.clone()).is_some();
        self.history.push((self.version, kind, if known { "MODIFIED" } else { "ADDED" }, object.clone()));
        object
    }
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let (version, result) = {
            let mut book = self.book();
            let result = change(&mut book);
            (book.version, result)
        };
        self.bell.send_replace(version);
        result
    }

    /// What a watch hears next, and where it is then; `None` when it ends.
    fn news(&self, at: Position, watched: &Watched) -> Option<(Vec<Value>, Position)> {
        let mut book = self.book();
        let Position { seen, .. } = at;
        let all = |book: &Book| Position { seen: book.version, marked: at.marked.max(book.bookmark) };
        match &book.weather {
            _ if watched.cuts != book.cuts => return None,
            ApiWeather::Away => return None,
            // Once, and then the stream ends.
            ApiWeather::Garbage(_) if seen == ENDED => return None,
            ApiWeather::Garbage(text) => {
                return Some((vec![Value::String(text.clone())], Position { seen: ENDED, ..at }));
            }
            ApiWeather::Silent => return Some((Vec::new(), at)),
            ApiWeather::Fair | ApiWeather::Slow(_) => {}
        }
        if seen < book.forgotten {
            let gone = json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")});
            return Some((vec![gone], all(&book)));
        }
        let newer = book
            .history
            .iter()
            .filter(|(version, of, _, object)| *version > seen && watched.takes(*of, object));
        let mut events: Vec<Value> =
            newer.map(|(.., what, object)| json!({"type": what, "object": object})).collect();
        if watched.bookmarks && at.marked < book.bookmark {
            let (version, kind) = watched.kind.words();
            let metadata = json!({"resourceVersion": book.version.to_string(), "creationTimestamp": null});
            let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
            events.push(json!({"type": "BOOKMARK", "object": object}));
            book.bookmarks += 1;
        }
        Some((events, all(&book)))
    }
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
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let weather = desk.book().weather.clone();
    match weather {
        ApiWeather::Fair => {}
        ApiWeather::Away => return refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "away"),
        ApiWeather::Garbage(text) => return text.into_response(),
        ApiWeather::Slow(pause) => tokio::time::sleep(pause).await,
        ApiWeather::Silent => return std::future::pending().await,
    }
    if let Some(target) = proxy::at(uri.path()) {
        return proxy::answer(&desk, &target).await;
    }
    let Some(place) = Place::at(uri.path()) else {
        return refused(StatusCode::NOT_FOUND, "NotFound", uri.path());
    };
    let watches = query.get("watch").is_some_and(|word| word == "true" || word == "1");
    let verb = match (&method, place.name.is_empty()) {
        (&Method::GET, true) if watches => "watch",
        (&Method::GET, true) => "list",
        (&Method::GET, false) => "get",
        (&Method::POST, true) => "create",
        (&Method::PATCH, false) => "patch",
        _ => return refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", method.as_str()),
    };
    if let Some(refusal) = desk.book().forbids(&place, verb) {
        return refusal;
    }
    let [fields, labels] = ["fieldSelector", "labelSelector"].map(|key| query.get(key).map(String::as_str));
    let selector = Selector::of(fields, labels);
    match verb {
        "watch" => watching(&desk, place.kind, selector, &query),
        "list" => desk.list(&place, &selector, query.get("resourceVersion").is_some_and(|at| at == "0")),
        "get" => desk.get(&place),
        "create" => desk.change(|book| writes::create(book, &place, &body)),
        _ => desk.change(|book| writes::patch(book, &place, &headers, &body)),
    }
}

fn json_of(object: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

impl Desk {
    fn list(&self, at: &Place, selector: &Selector, may_be_old: bool) -> Response {
        let (mut book, kind) = (self.book(), at.kind);
        book.lists += 1;
        let old = book.lagging.as_ref().filter(|_| may_be_old);
        let (told_at, objects) = old.map_or((book.version, &book.objects), |(at, objects)| (*at, objects));
        let there = |place: &Place| at.namespace.is_empty() || at.namespace == place.namespace;
        let of =
            |(place, object): &(&Place, &Value)| place.kind == kind && there(place) && selector.takes(object);
        let of = objects.iter().filter(of);
        let items: Vec<&Value> = of.map(|(_, object)| object).collect();
        let (version, word) = kind.words();
        json_of(&json!({"kind": format!("{word}List"), "apiVersion": version, "items": items,
                        "metadata": {"resourceVersion": told_at.to_string()}}))
    }

    fn get(&self, place: &Place) -> Response {
        match self.book().objects.get(place) {
            Some(object) => json_of(object),
            None => refused(StatusCode::NOT_FOUND, "NotFound", &place.name),
        }
    }
}

fn watching(desk: &Arc<Desk>, kind: Kind, selector: Selector, query: &BTreeMap<String, String>) -> Response {
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<u64>().ok());
    let from = number("resourceVersion").unwrap_or(0);
    let bookmarks = query.get("allowWatchBookmarks").is_some_and(|word| word == "true");
    let (watched, at) = {
        let mut book = desk.book();
        book.watches += 1;
        let watched = Watched { kind, selector, bookmarks, cuts: book.cuts };
        let at = Position { seen: from, marked: book.bookmark };
        if from < book.forgotten {
            drop(book);
            return refused(StatusCode::GONE, "Expired", "too old resource version");
        }
        (watched, at)
    };
    let until = tokio::time::sleep(Duration::from_secs(number("timeoutSeconds").unwrap_or(300)));
    let body = Body::from_stream(events(Arc::clone(desk), watched, at).take_until(until));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

type Lines = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What a client watches.
struct Watched {
    kind: Kind,
    selector: Selector,
    /// It wants bookmarks.
    bookmarks: bool,
    /// How often watches had been cut when it began.
    cuts: u64,
}

impl Watched {
    fn takes(&self, kind: Kind, object: &Value) -> bool {
        kind == self.kind && self.selector.takes(object)
    }
}

/// How far a watch is: the version that it has seen, and that of the last bookmark.
#[derive(Debug, Clone, Copy)]
struct Position {
    seen: u64,
    marked: u64,
}

/// A line of JSON for each event after a version, for ever.
fn events(desk: Arc<Desk>, watched: Watched, from: Position) -> Lines {
    let bell = desk.bell.subscribe();
    let lines = stream::unfold((desk, watched, from, bell), |(desk, watched, at, mut bell)| async move {
        loop {
            // Read before the book, so that what happens meanwhile rings again.
            bell.borrow_and_update();
            let (events, now) = desk.news(at, &watched)?;
            if !events.is_empty() {
                let text: String = events.iter().map(|event| format!("{event}\n")).collect();
                return Some((Ok(Bytes::from(text)), (desk, watched, now, bell)));
            }
            bell.changed().await.ok()?;
        }
    });
    Box::pin(lines)
}
