//! The client of the network policy agent: what is said of one pod is said in order, and nobody waits longer than it may.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use types::{PodName, Reason};
use wire::Failure;

use super::messages::{DeletePodRequest, EnforceRequest, PolicyReply};
use super::{MESSAGE_BYTES_MAX, method};
use crate::metrics::Metrics;
use crate::node::{CallId, Event};

/// How long an agent that cannot be reached is tried, as the Go version's plugin does: it may be starting.
const CONNECTING: Duration = Duration::from_secs(2);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(100);
/// How long the agent may take to forget a pod.
const FORGETTING: Duration = Duration::from_secs(5);

/// How long something that is to be said may take.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// The wait for its turn included: somebody waits for the answer.
    Together(Duration),
    /// Once it is its turn, which is worth the wait.
    Answer(Duration),
}

/// The network policy agent of this node.
#[derive(Debug)]
pub(crate) struct PolicyAgent {
    channel: Channel,
    socket: PathBuf,
    /// `standard` or `strict`, as the setting has it.
    mode: String,
    metrics: Metrics,
    events: mpsc::Sender<Event>,
    /// For each pod that something is said of: closes once that was said.
    last: BTreeMap<PodName, oneshot::Receiver<()>>,
}

impl PolicyAgent {
    /// Connects when there is something to say. Needs a runtime around it.
    pub(crate) fn new(socket: PathBuf, mode: String, metrics: Metrics, events: mpsc::Sender<Event>) -> Self {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self { channel, socket, mode, metrics, events, last: BTreeMap::new() }
    }

    /// Has a pod's policies enforced; an event tells how it went.
    pub(crate) fn enforce(&mut self, id: CallId, pod: PodName, interfaces: usize, patience: Duration) {
        let request = EnforceRequest {
            pod_name: pod.name.clone(),
            pod_namespace: pod.namespace.clone(),
            mode: self.mode.clone(),
            interfaces: i32::try_from(interfaces).unwrap_or(i32::MAX),
        };
        let events = self.events.clone();
        self.say(pod, method::ENFORCE, request, Patience::Together(patience), move |result| async move {
            drop(events.send(Event::Enforced { id, result }).await);
        });
    }

    /// Says that a pod is gone. That it cannot be said harms no DEL.
    pub(crate) fn forget(&mut self, pod: PodName) {
        let request = DeletePodRequest { pod_name: pod.name.clone(), pod_namespace: pod.namespace.clone() };
        let told = pod.clone();
        self.say(pod, method::DELETE_POD, request, Patience::Answer(FORGETTING), move |result| async move {
            if let Err(failure) = result {
                let Failure { reason, message, details, .. } = failure;
                tracing::warn!(%reason, details, pod = %told, "the policies of a pod that is gone stay: {message}");
            }
        });
    }

    /// Says something of a pod once all that was said of it before has been heard or given up.
    fn say<Q, F>(
        &mut self,
        pod: PodName,
        method: &'static str,
        request: Q,
        patience: Patience,
        then: impl FnOnce(Result<(), Failure>) -> F + Send + 'static,
    ) where
        Q: prost::Message + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        self.last.retain(|_, said| said.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let (done, said) = oneshot::channel::<()>();
        let mut before = self.last.insert(pod, said);
        let (channel, metrics, at) = (self.channel.clone(), self.metrics.clone(), self.socket.clone());
        tokio::spawn(async move {
            let result = match turn(&mut before, patience).await {
                Ok(left) => {
                    let began = Instant::now();
                    let answer = timeout(left, ask(channel, method, request)).await;
                    let result = answer.unwrap_or_else(|_elapsed| Err(silent("", left)));
                    let failure = result.as_ref().err().map(|failure| failure.reason);
                    metrics.told_agent(method, failure, began.elapsed());
                    result
                }
                Err(failure) => Err(failure),
            };
            then(result.map_err(|failure| failure.with_details(format!("socket {}", at.display())))).await;
            // What had no turn has said nothing: whoever comes after it still comes after what was before.
            if let Some(before) = before {
                drop(before.await);
            }
            drop(done);
        });
    }
}

/// Waits for what was said before, which is then none any more; returns how long the answer may take.
async fn turn(before: &mut Option<oneshot::Receiver<()>>, patience: Patience) -> Result<Duration, Failure> {
    let since = Instant::now();
    // Closed is what it is waited for; that has an end of its own.
    if let Some(earlier) = before.as_mut() {
        match patience {
            Patience::Together(all) => {
                drop(
                    timeout(all, earlier)
                        .await
                        .map_err(|_elapsed| silent(" to what was said before", all))?,
                );
            }
            Patience::Answer(_) => drop(earlier.await),
        }
    }
    *before = None;
    Ok(match patience {
        Patience::Together(all) => all.saturating_sub(since.elapsed()),
        Patience::Answer(answer) => answer,
    })
}

fn silent(to: &str, patience: Duration) -> Failure {
    let message = format!("the network policy agent has not answered{to} for {patience:?}");
    Failure::new(Reason::PolicyAgentUnreachable, message)
}

/// Asks until there is an answer, or until it is clear that nobody is there.
async fn ask<Q>(channel: Channel, method: &'static str, request: Q) -> Result<(), Failure>
where
    Q: prost::Message + Clone + Send + Sync + 'static,
{
    let until = Instant::now() + CONNECTING;
    loop {
        match call(channel.clone(), method, request.clone()).await {
            Ok(PolicyReply { success: true }) => return Ok(()),
            Ok(PolicyReply { success: false }) => {
                return Err(Failure::new(Reason::PolicyRefused, "the network policy agent refuses the pod"));
            }
            Err(status) if status.code() == Code::Unavailable && Instant::now() < until => sleep(RETRY).await,
            Err(status) => return Err(refusal(&status)),
        }
    }
}

fn refusal(status: &Status) -> Failure {
    let said: String = status.message().chars().take(256).collect();
    if status.code() == Code::Unavailable {
        let message = format!("the network policy agent cannot be reached: {said}");
        return Failure::new(Reason::PolicyAgentUnreachable, message);
    }
    Failure::new(Reason::PolicyRefused, format!("the network policy agent refuses the pod: {said}"))
}

async fn call<Q>(channel: Channel, method: &'static str, request: Q) -> Result<PolicyReply, Status>
where
    Q: prost::Message + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(method);
    let reply = client.unary(tonic::Request::new(request), path, ProstCodec::default()).await?;
    Ok(reply.into_inner())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Which call has failed next, and in what words.
    async fn failed(events: &mut mpsc::Receiver<Event>) -> (CallId, String) {
        match events.recv().await {
            Some(Event::Enforced { id, result: Err(failure) }) => (id, failure.message),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_add_does_not_wait_beyond_its_time_for_what_was_said_of_its_pod_before_and_does_not_overtake_it()
     {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        // It lets connect, and never answers.
        let _hanging = UnixListener::bind(&socket).unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let mut agent = PolicyAgent::new(socket, "strict".to_owned(), Metrics::default(), sender);
        let pod = PodName { namespace: "default".to_owned(), name: "web".to_owned() };

        agent.enforce(CallId(1), pod.clone(), 1, Duration::from_secs(600));
        for id in [CallId(2), CallId(3)] {
            agent.enforce(id, pod.clone(), 1, Duration::from_millis(20));

            let (failed, message) = failed(&mut events).await;

            assert_eq!(failed, id);
            assert!(message.contains("to what was said before"), "{message}");
        }
    }
}
