//! The network policy agent, as a model with bad manners: it knows which pods it enforces policies for, attaches to nothing that is not
//! there, and can be slow, refuse, or be away.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ipamd::grpc::messages::{DeletePodRequest, EnforceRequest, PolicyReply};
use ipamd::grpc::{agent_in, method};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::Grpc;
use tonic_prost::ProstCodec;
use types::{HostVeth, PodName, VethPrefix};

use crate::LabError;
use crate::netns::Netns;
use crate::node::Node;

/// How the agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentWeather {
    /// It does what it is asked.
    #[default]
    Fair,
    /// It says that it has not done it.
    Refuses,
    /// It fails.
    Fails,
    /// It does what it is asked, and answers, once the weather has changed.
    Hangs,
}

/// A running agent; it is away once this is dropped.
#[derive(Debug)]
pub struct PolicyAgent {
    agent: Arc<Agent>,
    /// Ends its tasks.
    _runtime: Runtime,
}

#[derive(Debug)]
struct Agent {
    state: Mutex<State>,
    changed: Notify,
    /// Where the pods' host interfaces are.
    netns: Arc<Netns>,
}

#[derive(Debug, Default)]
struct State {
    weather: AgentWeather,
    /// Pods whose policies are enforced, and in which mode.
    enforced: BTreeMap<String, String>,
    /// By how many interfaces it attaches to each.
    interfaces: BTreeMap<String, i32>,
    /// Calls that it has taken in, each as its method's name.
    calls: Vec<&'static str>,
}

impl PolicyAgent {
    /// Starts one beside a node's daemon.
    ///
    /// # Errors
    /// When its socket cannot be had.
    pub fn start(node: &Node) -> Result<Self, LabError> {
        let agent = Agent { state: Mutex::default(), changed: Notify::new(), netns: node.shared_netns() };
        let agent = Arc::new(agent);
        let built = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = built.map_err(LabError::doing("start a runtime"))?;
        let listener = runtime.block_on(async { listen(&agent_in(node.run_dir())) });
        let listener = listener.map_err(LabError::doing("listen as the policy agent"))?;
        runtime.spawn(serve(listener, Arc::clone(&agent)));
        Ok(Self { agent, _runtime: runtime })
    }

    /// Changes how it behaves.
    pub fn set_weather(&self, weather: AgentWeather) {
        self.agent.state().weather = weather;
        self.agent.changed.notify_waiters();
    }

    /// The pods whose policies it enforces, as `namespace/name`, and in which mode.
    #[must_use]
    pub fn enforced(&self) -> BTreeMap<String, String> {
        self.agent.state().enforced.clone()
    }

    /// To how many interfaces of a pod, as `namespace/name`, it is attached.
    #[must_use]
    pub fn interfaces_of(&self, pod: &str) -> Option<i32> {
        self.agent.state().interfaces.get(pod).copied()
    }

    /// How many calls it has taken in.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.agent.state().calls.len()
    }
}

impl Agent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call in, and waits while the weather is so.
    async fn take_in(&self, method: &'static str) -> AgentWeather {
        self.state().calls.push(method);
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before the look, so that no change falls between.
            changed.as_mut().enable();
            let weather = self.state().weather;
            if weather != AgentWeather::Hangs {
                return weather;
            }
            changed.await;
        }
    }

    async fn enforce(&self, request: EnforceRequest) -> Result<PolicyReply, Status> {
        let weather = self.take_in(method::ENFORCE).await;
        let EnforceRequest { pod_name, pod_namespace, mode, interfaces } = request;
        if !["standard", "strict"].contains(&mode.to_lowercase().as_str()) || interfaces < 1 {
            return Err(Status::unknown(format!(
                "Invalid Network Policy Mode {mode:?}, {interfaces} interfaces"
            )));
        }
        let pod = PodName { namespace: pod_namespace, name: pod_name };
        // It makes the links' names itself, of the pod's and of each interface's number.
        for index in 0..u8::try_from(interfaces).unwrap_or(u8::MAX) {
            let own = HostVeth::of_pod(&VethPrefix::default(), &pod, index);
            let of_branch = (index == 0).then(|| HostVeth::of_branch(&pod));
            let is_there = |link: &HostVeth| self.netns.read(&format!("ip link show dev {link}")).is_ok();
            if !is_there(&own) && !of_branch.as_ref().is_some_and(is_there) {
                return Err(Status::unknown(format!("no link {own} to attach to")));
            }
        }
        let done = answered(weather)?;
        if done.success {
            let mut state = self.state();
            state.interfaces.insert(pod.to_string(), interfaces);
            state.enforced.insert(pod.to_string(), mode);
        }
        Ok(done)
    }

    async fn delete(&self, request: DeletePodRequest) -> Result<PolicyReply, Status> {
        let weather = self.take_in(method::DELETE_POD).await;
        let done = answered(weather)?;
        if done.success {
            let pod = PodName { namespace: request.pod_namespace, name: request.pod_name };
            let mut state = self.state();
            state.interfaces.remove(&pod.to_string());
            state.enforced.remove(&pod.to_string());
        }
        Ok(done)
    }
}

fn answered(weather: AgentWeather) -> Result<PolicyReply, Status> {
    match weather {
        AgentWeather::Fair | AgentWeather::Hangs => Ok(PolicyReply { success: true }),
        AgentWeather::Refuses => Ok(PolicyReply { success: false }),
        AgentWeather::Fails => Err(Status::unknown("Attaching eBPF probe failed")),
    }
}

fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, Arc::clone(&agent)));
    }
}

async fn connection(stream: UnixStream, agent: Arc<Agent>) {
    let service = service_fn(move |request| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(answer(request, agent).await) }
    });
    let served = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    // A client that goes away is no concern of the agent's.
    drop(served.await);
}

async fn answer(request: Request<Incoming>, agent: Arc<Agent>) -> Response<Body> {
    match request.uri().path() {
        method::ENFORCE => {
            let enforce = tower::service_fn(move |request: tonic::Request<EnforceRequest>| {
                let agent = Arc::clone(&agent);
                async move { agent.enforce(request.into_inner()).await.map(tonic::Response::new) }
            });
            Grpc::new(ProstCodec::default()).unary(enforce, request).await
        }
        method::DELETE_POD => {
            let delete = tower::service_fn(move |request: tonic::Request<DeletePodRequest>| {
                let agent = Arc::clone(&agent);
                async move { agent.delete(request.into_inner()).await.map(tonic::Response::new) }
            });
            Grpc::new(ProstCodec::default()).unary(delete, request).await
        }
        other => Status::unimplemented(other.to_owned()).into_http(),
    }
}
