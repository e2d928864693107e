//! Says notes to the API server. Nobody waits for it.

use node::cluster::{Ledger, Writing, Written};
use tokio::sync::mpsc;

use super::api::{Ask, Door, Method, Refusal};
use super::{Myself, Note};
use crate::clock::Clock;
use crate::metrics::{ClusterWrite, Metrics};

/// Notes that may wait; more are dropped.
const WAITING_MAX: usize = 128;

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
pub(crate) fn announcing(door: Door, myself: Myself, clock: Clock, metrics: &Metrics) -> Notes {
    let (to, inbox) = mpsc::channel(WAITING_MAX);
    tokio::spawn(announce(door, Ledger::new(myself, clock.now()), clock, metrics.clone(), inbox));
    Notes { to: Some((to, metrics.clone())) }
}

async fn announce(
    door: Door,
    mut ledger: Ledger,
    clock: Clock,
    metrics: Metrics,
    mut inbox: mpsc::Receiver<Note>,
) {
    loop {
        let now = clock.now();
        let pause = ledger.next(now).map(|at| at.since(now));
        tokio::select! {
            note = inbox.recv() => match note {
                Some(note) => {
                    if !ledger.note(note, clock.now()) {
                        metrics.wrote_to_cluster("event", ClusterWrite::Dropped);
                    }
                }
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
