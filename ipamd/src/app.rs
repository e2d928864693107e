//! Builds every part and runs them.
//!
//! | task | in | out |
//! |---|---|---|
//! | owner (this file) | events; requests from the socket; readers | effects to all the others; reports |
//! | server | connections | requests to the owner, replies to callers |
//! | wiring thread | pods to wire, compare, mend, take away | `Wired`, `Checked` |
//! | conflist thread, once an ADD would succeed | | the conflist |
//! | watching threads | the kernel's notices | `Touched` |
//! | writing thread | records | `Written`, `FileLong` |
//! | checkpointing thread | records, once they are written | |
//! | host keeper | wishes for the host's kernel | `Converged` |
//! | web | HTTP: metrics, introspection | readers |
//! | gRPC | health probes, the policy agent's configuration, a Go plugin's DELs | requests to the owner, readers |
//! | policy agent | pods to enforce policies for, or to forget | `Enforced` |
//! | cluster watch | | `Cluster` |
//! | announcer | notes | events on pods in the cluster |
//! | annotator | pods' addresses | their annotation in the cluster |
//! | features | what the CNINode is to name | the same in the cluster |
//! | cloud tasks, one per call | actions, chores | `Acted`, `Looked`, `Identified`, `Tidied` |
//!
//! Order of start: be the node's only daemon (`lock.rs`), lock the delete queue, read the state, ask the kernel which pods there are,
//! replay the queue, serve, unlock the queue. Everything remote comes after that and alone: a DEL is served while EC2 and IMDS are away.
//!
//! Order of stop: take no new requests, answer those that are at work, leave behind what the Go version needs to go on; EC2 and
//! the kernel stay as they are otherwise.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datapath::PodSpec;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;
use types::{Moment, Reason};
use wire::queue::QueuedDel;
use wire::{Failure, PROTOCOL, Reply, Request, TraceParent, Verb};

use crate::clock::Clock;
use crate::cloud_tasks::CloudTasks;
use crate::cluster::{Annotations, Features, Notes};
use crate::grpc::agent::PolicyAgent;
use crate::install::Publisher;
use crate::metrics::{Asked, Metrics};
use crate::node::{CallId, Effect, Event, HostWish, Node};
use crate::queue::LockedQueue;
use crate::readers::Reader;
use crate::server::{self, Call, FromSocket, ServerError};
use crate::workers::{Wiring, Writing};

/// Events that may wait for the owner; senders wait when it is full.
const EVENTS_MAX: usize = 1024;
/// How long requests at work may take when the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Requests of our own making (the replayed queue) have the numbers below this one.
const FIRST_FROM_SOCKET: CallId = CallId(1 << 20);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something local that it cannot do without.
    #[error("cannot {doing}")]
    Local {
        /// What.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
}

impl RunError {
    /// For `map_err`.
    pub(crate) fn local<E>(doing: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Local { doing, source: source.into() }
    }
}

/// The channels to the parts that do things.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) wiring: std::sync::mpsc::Sender<Wiring>,
    pub(crate) writing: std::sync::mpsc::Sender<Writing>,
    pub(crate) wishes: mpsc::Sender<(u64, Box<HostWish>)>,
    /// Until it is wanted.
    pub(crate) conflist: Option<Publisher>,
    pub(crate) cloud: Arc<CloudTasks>,
    /// Where network policies are enforced.
    pub(crate) agent: Option<PolicyAgent>,
    /// What is written to the API server.
    pub(crate) cluster: ClusterWriters,
}

/// Those who write to the API server; each writes nothing where there is none, or its setting is off.
#[derive(Debug, Default)]
pub(crate) struct ClusterWriters {
    pub(crate) notes: Notes,
    pub(crate) annotations: Annotations,
    pub(crate) features: watch::Sender<Features>,
}

/// A channel for events.
pub(crate) fn events() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(EVENTS_MAX)
}

/// The owner's loop and what it needs.
#[derive(Debug)]
pub(crate) struct Owner {
    node: Node,
    clock: Clock,
    parts: Parts,
    metrics: Metrics,
    callers: BTreeMap<CallId, Caller>,
}

#[derive(Debug)]
struct Caller {
    reply: oneshot::Sender<Reply>,
    descriptors: Vec<OwnedFd>,
    asked: Asked,
    since: Moment,
    /// Its pod is being wired to a branch ENI.
    branch: bool,
    /// In what is logged of the request: the trace that it belongs to, if it does.
    span: Span,
}

impl Owner {
    pub(crate) const fn new(node: Node, clock: Clock, parts: Parts, metrics: Metrics) -> Self {
        Self { node, clock, parts, metrics, callers: BTreeMap::new() }
    }

    /// Runs until `stop` says so and the requests at work are answered. Returns the state it leaves.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut calls: mpsc::Receiver<FromSocket>,
        mut readers: mpsc::Receiver<Reader>,
        mut stop: oneshot::Receiver<()>,
    ) -> Node {
        loop {
            let now = self.clock.now();
            let pause = self.node.next_wakeup(now).since(now);
            let event = tokio::select! {
                biased;
                _ = &mut stop => break,
                Some(event) = events.recv() => event,
                Some(call) = calls.recv() => self.take_in(call),
                Some(reader) = readers.recv() => {
                    self.show(reader);
                    continue;
                }
                () = tokio::time::sleep(pause) => Event::Tick,
            };
            self.step(event);
        }
        calls.close();
        self.step(Event::Stopping);
        let drained = tokio::time::timeout(DRAIN, async {
            while self.callers.values().any(|caller| !caller.reply.is_closed()) {
                let Some(event) = events.recv().await else { break };
                self.step(event);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(unanswered = self.callers.len(), "stopping with requests unanswered");
        }
        self.node
    }

    /// A reader that has gone wants nothing any more. It is shown the state as of now: on a quiet node the wait for it was long.
    fn show(&self, reader: Reader) {
        let now = self.clock.now();
        match reader {
            Reader::Report(reply) => drop(reply.send(self.node.report(now))),
            Reader::Pool(reply) => drop(reply.send((self.node.pool().snapshot(), self.node.report(now)))),
        }
    }

    fn take_in(&mut self, call: FromSocket) -> Event {
        match call {
            FromSocket::Call(call) => {
                let Call { id, request, descriptors, reply } = *call;
                let both = descriptors.len() == 2;
                let (asked, since) = (Asked::of(&request.verb), self.clock.now());
                // Of the highest level, so that it is there with whatever is logged.
                let span = |trace: TraceParent| tracing::error_span!("request", trace_id = %trace.id());
                let span = request.trace.map_or_else(Span::none, span);
                self.callers.insert(id, Caller { reply, descriptors, asked, since, branch: false, span });
                Event::Call { id, request, descriptors: both }
            }
            FromSocket::Gone(id) => Event::Gone(id),
        }
    }

    fn step(&mut self, event: Event) {
        let caller = event.request().and_then(|id| self.callers.get(&id));
        let _inside = caller.map(|caller| caller.span.clone().entered());
        for effect in self.node.handle(event, self.clock.now()) {
            self.start(effect);
        }
    }

    /// Hands an effect to the part that does it. A part that is gone is noticed by its callers' deadlines.
    fn start(&mut self, effect: Effect) {
        match effect {
            Effect::Reply(id, reply) => self.reply(id, reply),
            Effect::Waited(reason, time) => self.metrics.waited(reason, time),
            Effect::Tell(note) => self.parts.cluster.notes.tell(note),
            Effect::Annotate(change) => self.parts.cluster.annotations.write(change),
            Effect::Features(features) => drop(self.parts.cluster.features.send_replace(features)),
            Effect::Wire(id, pods) => self.wire(id, pods),
            Effect::Enforce { id, pod, interfaces, patience } => match &mut self.parts.agent {
                Some(agent) => agent.enforce(id, pod, interfaces, patience),
                // Not asked for without one.
                None => self.step(Event::Enforced { id, result: Ok(()) }),
            },
            Effect::Forget(pod) => {
                if let Some(agent) = &mut self.parts.agent {
                    agent.forget(pod);
                }
            }
            Effect::Check(id, pods) => {
                let job = self.descriptors(id).map(|fds| Wiring::Check(id, pods, fds));
                self.wire_or_fail(job, |result| Event::Checked { id, result });
            }
            Effect::Survey(holders) => {
                self.wire_or_fail(Some(Wiring::Survey(holders)), |_| Event::Dead(Vec::new()));
            }
            Effect::Unwire(pod) => self.wire_or_fail(Some(Wiring::Remove(pod)), |_| Event::Tick),
            Effect::Mend(pods) => {
                let none = |_| Event::PodsCompared { put_back: false, lost: Vec::new() };
                self.wire_or_fail(Some(Wiring::Mend(pods)), none);
            }
            Effect::Append(batch, records) => {
                if self.parts.writing.send(Writing::Append(batch, records)).is_err() {
                    self.step(Event::Written {
                        batch,
                        result: Err("the writing thread has ended".to_owned()),
                    });
                }
            }
            Effect::Rewrite(snapshot, ipv6) => {
                drop(self.parts.writing.send(Writing::Rewrite(snapshot, ipv6)));
            }
            Effect::Checkpoint(snapshot) => drop(self.parts.writing.send(Writing::Checkpoint(snapshot))),
            Effect::Look => self.parts.cloud.look(),
            Effect::Glance => self.parts.cloud.glance(),
            Effect::Act { id, action, groups } => self.parts.cloud.act(id, action, groups),
            Effect::Remember(remembered) => drop(self.parts.writing.send(Writing::Remember(remembered))),
            Effect::AskRange(subnet, mac) => self.parts.cloud.ask_range(subnet, mac),
            Effect::AssignIpv6(eni) => self.parts.cloud.assign_ipv6(eni),
            Effect::ReleaseIpv6(eni, prefix) => self.parts.cloud.release_ipv6(eni, prefix),
            Effect::Tidy(chores) => self.parts.cloud.tidy(chores),
            Effect::Publish => {
                if let Some(publisher) = self.parts.conflist.take() {
                    let took = self.node.runs_for(self.clock.now());
                    self.metrics.started(self.node.knows_cluster(), took);
                    publisher.start();
                }
            }
            Effect::Converge { generation, host } => {
                if self.parts.wishes.try_send((generation, host)).is_err() {
                    let result = Err("the host keeper is busy or has ended".to_owned());
                    self.step(Event::Converged { generation, result });
                }
            }
        }
    }

    /// Answers a request and counts it.
    fn reply(&mut self, id: CallId, reply: Reply) {
        let Some(caller) = self.callers.remove(&id) else { return };
        let failure = reply.failure().map(|failure| failure.reason);
        let took = self.clock.now().since(caller.since);
        self.metrics.answered(caller.asked, failure, took);
        if let (Asked::Add, Some(reason)) = (caller.asked, failure) {
            self.metrics.failed_of_branch(reason, caller.branch);
        }
        tell_trace(&caller, failure, took);
        drop(caller.reply.send(reply));
    }

    fn wire(&mut self, id: CallId, pods: Vec<PodSpec>) {
        if let Some(caller) = self.callers.get_mut(&id) {
            caller.branch = pods.iter().any(|pod| pod.branch.is_some());
        }
        let job = self.descriptors(id).map(|fds| Wiring::Add(id, pods, fds));
        self.wire_or_fail(job, |result| Event::Wired { id, result });
    }

    fn wire_or_fail(&mut self, job: Option<Wiring>, event: impl FnOnce(Result<(), Failure>) -> Event) {
        let sent = job.is_some_and(|job| self.parts.wiring.send(job).is_ok());
        if !sent {
            let message = "the caller's descriptors or the wiring thread are gone";
            self.step(event(Err(Failure::new(Reason::Internal, message))));
        }
    }

    fn descriptors(&mut self, id: CallId) -> Option<[OwnedFd; 2]> {
        let caller = self.callers.get_mut(&id)?;
        std::mem::take(&mut caller.descriptors).try_into().ok()
    }
}

/// What became of a request that somebody traces.
fn tell_trace(caller: &Caller, failure: Option<Reason>, took: Duration) {
    if !caller.span.is_none() {
        let (verb, outcome) = (caller.asked.word(), failure.map_or("done", Reason::word));
        let took_ms = took.as_secs_f64() * 1000.0;
        caller.span.in_scope(|| tracing::info!(verb, outcome, took_ms, "answered"));
    }
}

/// Replays the delete queue through the owner, binds the socket, and only then lets plugins at the queue again.
pub(crate) async fn replay_and_bind(
    queue: LockedQueue,
    socket: PathBuf,
    calls: &mpsc::Sender<FromSocket>,
) -> Result<UnixListener, RunError> {
    let queued = queue.list().map_err(RunError::local("list the delete queue"))?;
    for (number, entry) in (0..).zip(queued) {
        match entry.del {
            Err(error) => {
                tracing::warn!(%error, file = %entry.path.display(), "a queued DEL cannot be read; it stays for the next start");
                continue;
            }
            Ok(Some(QueuedDel { detachment, started_ns })) => {
                let (reply, answer) = oneshot::channel();
                let verb = Verb::Del(detachment);
                let request =
                    Request { version: PROTOCOL, patience_ms: 10_000, started_ns, trace: None, verb };
                let call = Call { id: CallId(number), request, descriptors: Vec::new(), reply };
                drop(calls.send(FromSocket::Call(Box::new(call))).await);
                if let Ok(Reply::Failed(failure)) = answer.await {
                    tracing::warn!(reason = %failure.reason, "a queued DEL failed: {}", failure.message);
                    continue;
                }
            }
            Ok(None) => {
                tracing::warn!(file = %entry.path.display(), "a file in the delete queue is not a DEL; removed")
            }
        }
        if let Err(error) = std::fs::remove_file(&entry.path) {
            tracing::warn!(%error, file = %entry.path.display(), "cannot remove a replayed DEL");
        }
    }
    let listener = server::bind(&socket, server::PRIVATE)?;
    drop(queue);
    Ok(listener)
}

/// Serves the socket, so many connections at once.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<FromSocket>, most: usize) {
    server::serve(listener, calls, FIRST_FROM_SOCKET, most).await;
}

#[cfg(test)]
mod tests {
    use types::{PodName, SandboxKey, VethPrefix};
    use wire::Detachment;

    use super::*;

    fn queue_in(dir: &std::path::Path) -> PathBuf {
        let queue = dir.join("delete-queue");
        std::fs::create_dir(&queue).unwrap();
        queue
    }

    #[tokio::test]
    async fn a_queued_del_that_cannot_be_read_is_kept_and_what_is_none_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue_in(dir.path());
        let sandbox = SandboxKey::new("aws-cni", "abc", "eth0").unwrap();
        let (pod, veth_prefix) = (PodName::default(), VethPrefix::default());
        let detachment = Detachment { sandbox, pod, veth_prefix, addresses: Vec::new() };
        let del = serde_json::to_vec(&QueuedDel { detachment, started_ns: 7 }).unwrap();
        std::fs::write(queue.join("a.delete"), &del).unwrap();
        std::fs::write(queue.join("b.delete"), "not a DEL").unwrap();
        // To be read it has to be followed, which ends nowhere: ELOOP.
        std::os::unix::fs::symlink("c.delete", queue.join("c.delete")).unwrap();
        let (calls, mut called) = mpsc::channel(1);
        let owner = tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Some(FromSocket::Call(call)) = called.recv().await {
                asked.push(call.request.started_ns);
                drop(call.reply.send(Reply::Done));
            }
            asked
        });

        let locked = LockedQueue::lock(&queue).await.unwrap();
        drop(replay_and_bind(locked, dir.path().join("socket"), &calls).await.unwrap());

        drop(calls);
        assert_eq!(owner.await.unwrap(), [7]);
        let is_there = |name: &str| queue.join(name).symlink_metadata().is_ok();
        assert_eq!(["a.delete", "b.delete", "c.delete"].map(is_there), [false, false, true]);
    }
}
