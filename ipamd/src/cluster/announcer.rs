//! Says notes to the API server. Nobody waits for it.

use std::pin::pin;
use std::time::Duration;

use node::cluster::{Ledger, PodRef, Writing, Written};
use tokio::sync::mpsc;
use types::PodName;

use super::api::{Ask, Door, Method, Refusal};
use super::{Myself, Note};
use crate::clock::Clock;
use crate::metrics::{ClusterWrite, Metrics};

/// Notes that may wait; more are dropped.
const WAITING_MAX: usize = 128;
/// Pause before it is asked again which namespace we run in.
const NAMESPACE_AGAIN: Duration = Duration::from_secs(10);

/// What the daemon has been told of itself; its namespace only the way to the API server tells.
#[derive(Debug)]
pub(crate) struct Own {
    /// Name of its pod; empty where it was not told.
    pub(crate) name: String,
    /// UID of its pod.
    pub(crate) uid: String,
    /// The node's name.
    pub(crate) node: String,
}

/// Where notes go. Without a cluster they go nowhere.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    to: Option<(mpsc::Sender<Note>, Metrics)>,
}

impl Notes {
    /// Says something, unless too much is being said already.
    pub(crate) fn tell(&self, note: Note) {
        if let Some((to, metrics)) = &self.to
            && to.try_send(note).is_err()
        {
            metrics.wrote_to_cluster("event", ClusterWrite::Dropped);
        }
    }
}

/// Starts to say what is told. Needs a runtime around it.
pub(crate) fn announcing(door: Door, own: Own, clock: Clock, metrics: &Metrics) -> Notes {
    let (to, inbox) = mpsc::channel(WAITING_MAX);
    tokio::spawn(announce(door, own, clock, metrics.clone(), inbox));
    Notes { to: Some((to, metrics.clone())) }
}

/// What this gives once it gives something, with pauses in between.
async fn until_told<F: Future<Output = Option<String>>>(pause: Duration, ask: impl Fn() -> F) -> String {
    loop {
        if let Some(told) = ask().await {
            return told;
        }
        tokio::time::sleep(pause).await;
    }
}

/// What this gives, and what was to be said before it did: once is enough, as nothing can be said before. `None` when nobody is left who
/// could have more to say.
async fn meanwhile(
    inbox: &mut mpsc::Receiver<Note>,
    metrics: &Metrics,
    namespace: impl Future<Output = String>,
) -> Option<(String, Vec<Note>)> {
    let mut namespace = pin!(namespace);
    let mut early = Vec::new();
    loop {
        tokio::select! {
            namespace = &mut namespace => return Some((namespace, early)),
            note = inbox.recv() => {
                let note = note?;
                if early.contains(&note) {
                    continue;
                }
                if early.len() < WAITING_MAX {
                    early.push(note);
                } else {
                    metrics.wrote_to_cluster("event", ClusterWrite::Dropped);
                }
            }
        }
    }
}

/// Takes a note into the ledger, or counts that it does not fit.
fn take(ledger: &mut Ledger, note: Note, clock: Clock, metrics: &Metrics) {
    if !ledger.note(note, clock.now()) {
        metrics.wrote_to_cluster("event", ClusterWrite::Dropped);
    }
}

async fn announce(door: Door, own: Own, clock: Clock, metrics: Metrics, mut inbox: mpsc::Receiver<Note>) {
    let Own { name, uid, node } = own;
    let namespace = async {
        match name.is_empty() {
            true => String::new(),
            // The way may take long to be there: a program that gives credentials, a token that is not mounted yet.
            false => until_told(NAMESPACE_AGAIN, || door.namespace()).await,
        }
    };
    let Some((namespace, early)) = meanwhile(&mut inbox, &metrics, namespace).await else { return };
    let pod = PodRef::of(&PodName { namespace, name }, &uid);
    let mut ledger = Ledger::new(Myself { pod, node }, clock.now());
    for note in early {
        take(&mut ledger, note, clock, &metrics);
    }
    loop {
        let now = clock.now();
        let pause = ledger.next(now).map(|at| at.since(now));
        tokio::select! {
            note = inbox.recv() => match note {
                Some(note) => take(&mut ledger, note, clock, &metrics),
                None => return,
            },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                let Some(writing) = ledger.due(clock.now()) else { continue };
                let (how, counted) = outcome(&writing, door.ask(ask(&writing)).await);
                metrics.wrote_to_cluster("event", counted);
                ledger.written(&writing, how, clock.now());
            }
        }
    }
}

fn ask(writing: &Writing) -> Ask {
    let Writing { namespace, name, body, is_known, .. } = writing;
    let events = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    match is_known {
        false => Ask { method: Method::Create, path: events, body: body.clone() },
        true => Ask { method: Method::MergePatch, path: format!("{events}/{name}"), body: body.clone() },
    }
}

fn outcome(writing: &Writing, result: Result<serde_json::Value, Refusal>) -> (Written, ClusterWrite) {
    match result {
        Ok(_) => (Written::Done, ClusterWrite::Done),
        Err(refusal) if refusal.is_final() => {
            tracing::warn!(event = writing.name, "an event is not taken: {refusal}");
            let gone = if refusal.code == 404 { Written::Gone } else { Written::Refused };
            (gone, ClusterWrite::Refused)
        }
        Err(refusal) => {
            tracing::debug!("an event cannot be written now: {refusal}");
            (Written::Away, ClusterWrite::Away)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_is_to_be_said_before_our_namespace_is_known_is_kept_once_and_said_then() {
        let (to, mut inbox) = mpsc::channel(8);
        let (tell, told) = tokio::sync::oneshot::channel();
        let (one, other) = (Note::denied("CreateNetworkInterface"), Note::denied("AssignPrivateIpAddresses"));
        for note in [&one, &other, &one] {
            to.send(note.clone()).await.unwrap();
        }
        let once_all_is_taken = async {
            while to.capacity() < to.max_capacity() {
                tokio::task::yield_now().await;
            }
            tell.send("kube-system".to_owned()).unwrap();
        };

        let metrics = Metrics::default();
        let waiting = meanwhile(&mut inbox, &metrics, async { told.await.unwrap() });
        let (waited, ()) = tokio::join!(waiting, once_all_is_taken);

        assert_eq!(waited, Some(("kube-system".to_owned(), vec![one, other])));
    }

    #[tokio::test]
    async fn our_namespace_is_asked_for_until_it_is_told() {
        let asked = Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            std::future::ready((asked.get() == 3).then(|| "kube-system".to_owned()))
        };

        assert_eq!(until_told(Duration::ZERO, ask).await, "kube-system");
    }
}
