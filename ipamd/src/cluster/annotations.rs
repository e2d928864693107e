//! The annotation by which a pod's address is read from its object (`ANNOTATE_POD_IP`): set after ADD, emptied after DEL. No ADD and no
//! DEL waits for it.
//!
//! What could not be written is tried again, for as long as it is true. Which of two things that are said of one pod holds is decided in
//! [`Book`]; that an address is taken away only where it still stands is the API server's to check, in the same request.

use std::collections::BTreeMap;
use std::time::Duration;

use node::clock::doubled;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use types::{Moment, PodName};

use super::PodIp;
use super::api::{Ask, Door, MIRROR, Method, Refusal};
use crate::clock::Clock;
use crate::metrics::{ClusterWrite, Metrics};

/// The annotation; the Go version's, which Calico reads.
const KEY: &str = "vpc.amazonaws.com/pod-ips";
/// Pods of which something is to be written at once: more than any node holds.
const PODS_MAX: usize = 1024;
/// Pause after a write that has to be repeated; grows to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How often a write is tried that others get in the way of.
const CONFLICTS_MAX: u32 = 4;
/// What HTTP says of a change that others were in the way of, or of an object that has another UID.
const CONFLICT: u16 = 409;

/// What is to be written of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Want {
    change: PodIp,
    /// First come first.
    arrived: u64,
    /// How often others were faster since it was last tried without that.
    conflicts: u32,
    /// How often in a row it was refused.
    refused: u32,
    /// When it may be tried again.
    not_before: Moment,
}

/// The request; `node` is the name of ours.
fn ask(change: &PodIp, node: &str) -> Ask {
    let PodName { namespace, name } = &change.pod.name;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let address = change.address.to_string();
    if change.has {
        let mut body = json!({"metadata": {"annotations": {KEY: address}}});
        // The next pod of this name is another one. Where the UID is not known, it is one of this node at least: the node of a pod cannot
        // be changed, so the API server refuses the whole for a pod of any other.
        match change.pod.uid.as_str() {
            "" => body["spec"]["nodeName"] = node.into(),
            uid => body["metadata"]["uid"] = uid.into(),
        }
        return Ask { method: Method::MergePatch, path, body };
    }
    let at = format!("/metadata/annotations/{}", KEY.replace('/', "~1"));
    let body = json!([
        {"op": "test", "path": at, "value": address},
        {"op": "replace", "path": at, "value": ""},
    ]);
    Ask { method: Method::JsonPatch, path, body }
}

/// What is to be written, one thing for each pod.
#[derive(Debug, Default)]
struct Book {
    wants: BTreeMap<PodName, Want>,
    arrived: u64,
    /// How often in a row nobody has answered, how often in a row it was forbidden, and when something may be tried again.
    failures: u32,
    refusals: u32,
    not_before: Moment,
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It is there, or never can be.
    Settled,
    /// It is to be repeated, and so would be any other: nobody answers, or all are told to come later.
    Later,
    /// It is to be repeated. Others' may be forbidden too, or not: the first that succeeds tells.
    Refused,
    /// It is to be repeated, as somebody else was faster; of others' that says nothing.
    Conflict,
    /// Likewise and at once: it was the wrong object.
    Again,
}

impl Book {
    /// Takes something in; false if there is no room.
    fn want(&mut self, change: PodIp) -> bool {
        let name = change.pod.name.clone();
        let change = match self.wants.remove(&name) {
            Some(earlier) => earlier.change.then(change),
            None if self.wants.len() >= PODS_MAX => return false,
            None => change,
        };
        self.insert(Want { change, arrived: 0, conflicts: 0, refused: 0, not_before: Moment(0) });
        true
    }

    /// Puts something behind all the others.
    fn insert(&mut self, want: Want) {
        self.arrived += 1;
        self.wants.insert(want.change.pod.name.clone(), Want { arrived: self.arrived, ..want });
    }

    /// Takes out what is to be written now, first come first.
    fn due(&mut self, now: Moment) -> Option<Want> {
        if self.not_before > now {
            return None;
        }
        let due = self.wants.values().filter(|want| want.not_before <= now);
        let first = due.min_by_key(|want| want.arrived);
        let name = first.map(|want| want.change.pod.name.clone())?;
        self.wants.remove(&name)
    }

    /// Takes in how it went.
    fn written(&mut self, mut want: Want, how: Written, now: Moment) {
        match how {
            Written::Later => {
                self.not_before = now.plus(doubled(PAUSE, self.failures));
                self.failures = self.failures.saturating_add(1);
            }
            // Where the right is missing for all, each pod's own pauses would be a stream of refusals.
            Written::Refused => {
                (self.failures, self.not_before) = (0, now.plus(doubled(PAUSE, self.refusals)));
                self.refusals = self.refusals.saturating_add(1);
            }
            Written::Settled => (self.failures, self.refusals, self.not_before) = (0, 0, now),
            // Somebody answers.
            Written::Conflict | Written::Again => (self.failures, self.not_before) = (0, now),
        }
        (want.conflicts, want.refused, want.not_before) = match how {
            Written::Settled => return,
            Written::Later => (0, want.refused, now),
            Written::Refused => (0, want.refused.saturating_add(1), now.plus(doubled(PAUSE, want.refused))),
            Written::Conflict => (want.conflicts.saturating_add(1), 0, now.plus(PAUSE.0)),
            Written::Again => (want.conflicts.saturating_add(1), 0, now),
        };
        if let Some(later) = self.wants.remove(&want.change.pod.name) {
            want.change = want.change.then(later.change);
        }
        self.insert(want);
    }

    fn next(&self) -> Option<Moment> {
        self.wants.values().map(|want| want.not_before.max(self.not_before)).min()
    }
}

/// Where annotations go. Without the setting they go nowhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Annotations {
    to: Option<(mpsc::Sender<PodIp>, Metrics)>,
}

impl Annotations {
    /// Has something written, unless far too much is waiting already.
    pub(crate) fn write(&self, change: PodIp) {
        if let Some((to, metrics)) = &self.to
            && let Err(error) = to.try_send(change)
        {
            tracing::warn!(%error, "a pod is not annotated");
            metrics.wrote_to_cluster("annotation", ClusterWrite::Dropped);
        }
    }
}

/// Starts to annotate. Needs a runtime around it.
pub(crate) fn annotating(door: Door, node: String, clock: Clock, metrics: &Metrics) -> Annotations {
    let (to, inbox) = mpsc::channel(PODS_MAX);
    tokio::spawn(annotate(door, node, clock, metrics.clone(), inbox));
    Annotations { to: Some((to, metrics.clone())) }
}

async fn annotate(
    door: Door,
    node: String,
    clock: Clock,
    metrics: Metrics,
    mut inbox: mpsc::Receiver<PodIp>,
) {
    let mut book = Book::default();
    loop {
        let now = clock.now();
        let pause = book.next().map(|at| at.since(now));
        tokio::select! {
            change = inbox.recv() => match change {
                Some(change) => {
                    if !book.want(change) {
                        metrics.wrote_to_cluster("annotation", ClusterWrite::Dropped);
                    }
                }
                None => return,
            },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                let Some(mut want) = book.due(clock.now()) else { continue };
                let (mut how, counted) = outcome(&want, door.ask(ask(&want.change, &node)).await);
                metrics.wrote_to_cluster("annotation", counted);
                if how == Written::Conflict && let Some(uid) = mirror(&door, &want.change).await {
                    want.change.pod.uid = uid;
                    how = Written::Again;
                }
                book.written(want, how, clock.now());
            }
        }
    }
}

/// The UID of the object that stands for a static pod, if that is what has the pod's name: the runtime tells the pod's own. By a list of
/// one, as to list pods is a right that we have.
async fn mirror(door: &Door, change: &PodIp) -> Option<String> {
    let PodName { namespace, name } = &change.pod.name;
    let path = format!("/api/v1/namespaces/{namespace}/pods?fieldSelector=metadata.name%3D{name}");
    let listed = door.ask(Ask { method: Method::Get, path, body: Value::Null }).await.ok()?;
    stands_for(&listed["items"][0], &change.pod.uid)
}

fn stands_for(object: &Value, uid: &str) -> Option<String> {
    let metadata = &object["metadata"];
    (!uid.is_empty() && metadata["annotations"][MIRROR] == uid).then_some(())?;
    metadata["uid"].as_str().map(str::to_owned)
}

/// What an answer means. That we may not do it may be mended; others may be faster some times, but not for ever.
fn outcome(want: &Want, answer: Result<Value, Refusal>) -> (Written, ClusterWrite) {
    let Err(refusal) = answer else { return (Written::Settled, ClusterWrite::Done) };
    let pod = &want.change.pod.name;
    if refusal.code == CONFLICT && want.conflicts < CONFLICTS_MAX {
        tracing::debug!(%pod, "a pod's annotation is written again: {refusal}");
        return (Written::Conflict, ClusterWrite::Refused);
    }
    if refusal.is_final() && refusal.code != 403 {
        // The pod is gone or another one, or the annotation says something else: nothing is missing.
        tracing::debug!(%pod, "an annotation is not needed: {refusal}");
        return (Written::Settled, ClusterWrite::Refused);
    }
    tracing::warn!(%pod, "a pod's annotation is written later: {refusal}");
    match refusal.is_final() {
        true => (Written::Refused, ClusterWrite::Refused),
        false => (Written::Later, ClusterWrite::Away),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PodRef;

    const NOW: Moment = Moment(1_000_000);

    fn said(pod: &str, last: u8, has: bool) -> PodIp {
        let name = PodName { namespace: "default".to_owned(), name: pod.to_owned() };
        PodIp { pod: PodRef { name, uid: "u".to_owned() }, address: [10, 0, 0, last].into(), has }
    }

    fn all(book: &mut Book) -> Vec<PodIp> {
        std::iter::from_fn(|| book.due(NOW)).map(|want| want.change).collect()
    }

    #[test]
    fn the_last_word_holds_and_a_late_del_takes_nothing_from_the_next_sandbox() {
        let mut book = Book::default();
        for (pod, last, has) in
            [("a", 1, true), ("a", 1, false), ("b", 1, true), ("b", 2, true), ("b", 1, false)]
        {
            assert!(book.want(said(pod, last, has)));
        }
        assert_eq!(all(&mut book), [said("a", 1, false), said("b", 2, true)]);
    }

    #[test]
    fn what_could_not_be_written_comes_again_after_ever_longer_pauses_unless_it_no_longer_holds() {
        let mut book = Book::default();
        book.want(said("a", 1, true));
        let want = book.due(NOW).unwrap();
        book.want(said("a", 9, false));
        book.written(want, Written::Later, NOW);
        assert_eq!((book.due(NOW), book.next()), (None, Some(NOW.plus(PAUSE.0))));
        let later = NOW.plus(PAUSE.0);
        let want = book.due(later).unwrap();
        assert_eq!(want.change, said("a", 1, true), "what was said of another address changes nothing");

        book.want(said("a", 1, false));
        book.written(want, Written::Later, later);
        assert_eq!(book.next(), Some(later.plus(PAUSE.0 * 2)));
        let want = book.due(later.plus(PAUSE.0 * 2)).unwrap();
        assert_eq!(want.change, said("a", 1, false));
        assert_eq!(book.next(), None);
    }

    #[test]
    fn a_pod_that_may_not_be_written_to_holds_up_others_for_a_moment_only() {
        let refused = |code: u16| Err(Refusal::with(code));
        let mut book = Book::default();
        book.want(said("forbidden", 1, true));
        let mut now = NOW;
        for pause in [1, 2, 4] {
            let want = book.due(now).unwrap();
            let (how, _) = outcome(&want, refused(403));
            book.written(want, how, now);
            book.want(said("other", 2, true));

            let moment = now.plus(PAUSE.0);
            assert_eq!((book.due(now), book.next()), (None, Some(moment)));
            let want = book.wants.remove(&said("other", 2, true).pod.name).unwrap();
            let (how, _) = outcome(&want, Ok(Value::Null));
            book.written(want, how, now);
            let then = now.plus(Duration::from_secs(pause));
            assert_eq!((book.due(now), book.next()), (None, Some(then)), "the pauses of the one grow");
            now = then;
        }

        for code in [0, 429, 503] {
            book.want(said("other", 2, true));
            let want = book.due(now).unwrap();
            let (how, _) = outcome(&want, refused(code));
            book.written(want, how, now);
            assert_eq!(book.due(now), None, "{code} is said to all");
            now = book.next().unwrap();
        }
    }

    #[test]
    fn where_the_right_is_missing_for_all_pods_one_is_tried_after_ever_longer_pauses() {
        let mut book = Book::default();
        for pod in 0..50 {
            book.want(said(&format!("pod-{pod}"), pod, true));
        }
        let (mut now, mut tried) = (NOW, 0);
        while now < NOW.plus(Duration::from_secs(3_600)) {
            while let Some(want) = book.due(now) {
                tried += 1;
                let (how, _) = outcome(&want, Err(Refusal::with(403)));
                book.written(want, how, now);
            }
            now = book.next().unwrap();
        }
        assert!(tried < 25, "{tried} attempts in an hour");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut book = Book::default();
        let taken = (0..PODS_MAX + 5).filter(|n| book.want(said(&format!("pod-{n}"), 1, true))).count();
        assert_eq!(taken, PODS_MAX);
        assert!(book.want(said("pod-1", 2, true)), "of a pod that is known there is room");
    }

    #[test]
    fn a_set_names_the_uid_or_else_our_node_and_a_removal_the_address_that_it_removes() {
        let set = ask(&said("a", 1, true), "node1");
        let annotations = json!({"vpc.amazonaws.com/pod-ips": "10.0.0.1"});
        let metadata = json!({"annotations": annotations, "uid": "u"});
        assert_eq!((set.method, set.body), (Method::MergePatch, json!({"metadata": metadata})));
        assert_eq!(set.path, "/api/v1/namespaces/default/pods/a");

        let mut of_before = said("a", 1, true);
        of_before.pod.uid.clear();
        let body = json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": "node1"}});
        assert_eq!(ask(&of_before, "node1").body, body);

        let removal = ask(&said("a", 1, false), "node1");
        assert_eq!((removal.method, &removal.body[0]["value"]), (Method::JsonPatch, &json!("10.0.0.1")));
        assert_eq!(removal.body[0]["path"], "/metadata/annotations/vpc.amazonaws.com~1pod-ips");
    }
    #[test]
    fn an_outage_uses_up_none_of_the_tries_that_a_conflict_has() {
        let refused = |code: u16| Err(Refusal::with(code));
        let mut book = Book::default();
        book.want(said("a", 1, true));
        let mut now = NOW;
        let mut answered = |book: &mut Book, code| {
            now = book.next().unwrap().max(now);
            let want = book.due(now).unwrap();
            let (how, _) = outcome(&want, refused(code));
            book.written(want, how, now);
            how
        };
        for _ in 0..20 {
            assert_eq!(answered(&mut book, 0), Written::Later);
        }
        for _ in 0..CONFLICTS_MAX {
            assert_eq!(answered(&mut book, CONFLICT), Written::Conflict);
        }
        assert_eq!(answered(&mut book, CONFLICT), Written::Settled);
        assert_eq!(book.next(), None);
    }

    #[test]
    fn the_object_that_stands_for_a_static_pod_is_written_to() {
        let object = json!({"metadata": {"uid": "of the object", "annotations": {MIRROR: "u"}}});
        assert_eq!(stands_for(&object, "u").as_deref(), Some("of the object"));
        assert_eq!(stands_for(&object, "another"), None);
        assert_eq!(stands_for(&json!({"metadata": {"uid": "x"}}), "u"), None);
        assert_eq!(stands_for(&object, ""), None);
    }
}
