//! The API server; the only file that names its client.
//!
//! What is written to it are single requests, each with an end ([`Door`]); who makes them decides whether to try again.
//!
//! Watches: of the node's own object, with custom networking of the ENIConfig that it names, and of the pods on the node with security
//! groups for pods or where no target is set. The client lists and watches from there on. After a failure, and when its place in the
//! history is gone, it begins anew after a pause: the list then tells that all is well again, which a watch that goes on does only
//! with the next change.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::http::{Request, header};
use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig, NamedCluster};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use node::cluster::{POD_ENI_ANNOTATION, thousandths};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OnceCell, mpsc, watch as latest};
use types::PodName;

use super::{
    BranchWish, EniConfigName, EniConfigNews, NameKeys, News, NodeObject, PodNews, PodObject, WarmOverrides,
};
use crate::config::{Cluster, Config};
use crate::node::Event;
use crate::server::chain;

/// The taint of a cordoned node.
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Pause before the client is made again: what it needs (a token, a certificate) may not be there yet.
const CLIENT_AGAIN: Duration = Duration::from_secs(10);
/// The annotation by which an object stands for a static pod, with that one's UID.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// What HTTP says of a place in the history that is gone.
const GONE: u16 = 410;
/// What it says where a right is missing.
const FORBIDDEN: u16 = 403;
/// Pause after that where no pod waits for what is watched.
const DENIED: Duration = Duration::from_secs(600);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a single request may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a list may say nothing: somewhat longer than the API server's minute, after which it gives one up itself. Whoever gives up sooner
/// begins anew what had nearly come, just when the API server is slow for all.
const LIST: Duration = Duration::from_secs(65);
/// How long it takes until a list that says nothing yet, or a client that is not there yet, is told as a trouble.
const SLOW: Duration = Duration::from_secs(30);
const SILENCE: &str = "the API server does not answer";
/// How long a connection may say nothing: longer than a watch lasts, which the API server ends after 290 seconds, and whose client gives it
/// up after 295. What is left for this is a watch that never begins.
const SILENT: Duration = Duration::from_secs(300);

/// Objects of one page of a list.
const PAGE: u32 = 500;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The way to the API server. Copies share one client, which is made when somebody first needs it.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    inside: Arc<Inside>,
}

struct Inside {
    cluster: Cluster,
    client: OnceCell<Client>,
}

impl Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A single request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Reads an object; the body is not sent.
    Get,
    /// Makes an object.
    Create,
    /// Changes what the body names.
    MergePatch,
    /// Does the body's steps, all or none.
    JsonPatch,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// The answer's code; 0 for none.
    pub(crate) code: u16,
    text: String,
}

impl Refusal {
    /// Whether the same request can only be answered in the same way. Not so if nobody answered, all are told to come later, or what
    /// lets us in may change.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(self.code, 400..=499) && !matches!(self.code, 401 | 408 | 429)
    }

    #[cfg(test)]
    pub(super) fn with(code: u16) -> Self {
        Self { code, text: "no".to_owned() }
    }

    fn of(error: &kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Self { code: status.code, text: format!("{} ({})", status.message, status.reason) };
        }
        Self { code: 0, text: chain(error) }
    }
}

impl Door {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { inside: Arc::new(Inside { cluster, client: OnceCell::new() }) }
    }

    async fn client(&self) -> Result<&Client, BoxError> {
        self.inside.client.get_or_try_init(|| client(&self.inside.cluster)).await
    }

    /// Asks once.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Value, Refusal> {
        let Ask { method, path, body } = ask;
        let (verb, content) = match method {
            Method::Get => ("GET", "application/json"),
            Method::Create => ("POST", "application/json"),
            Method::MergePatch => ("PATCH", "application/merge-patch+json"),
            Method::JsonPatch => ("PATCH", "application/json-patch+json"),
        };
        let request = Request::builder().method(verb).uri(path).header(header::CONTENT_TYPE, content);
        let request = request.body(match method {
            Method::Get => Vec::new(),
            Method::Create | Method::MergePatch | Method::JsonPatch => body.to_string().into_bytes(),
        });
        let request = request.map_err(|error| nobody(chain(&error)))?;
        let client = self.client().await.map_err(|error| nobody(chain(&*error)))?;
        within(ANSWER, client.request(request)).await?.map_err(|error| Refusal::of(&error))
    }

    /// The names of the pods of one namespace that have a label, whatever state they are in.
    pub(crate) async fn pods(&self, namespace: &str, label: &str) -> Result<Vec<String>, Refusal> {
        let client = self.client().await.map_err(|error| nobody(chain(&*error)))?;
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let mut page = ListParams::default().labels(label).limit(PAGE);
        let mut names = Vec::new();
        loop {
            let listed = within(ANSWER, pods.list_metadata(&page)).await?;
            let listed = listed.map_err(|error| Refusal::of(&error))?;
            names.extend(listed.items.iter().map(|pod| pod.name_any()));
            match listed.metadata.continue_ {
                Some(next) if !next.is_empty() => page = page.continue_token(&next),
                _ => return Ok(names),
            }
        }
    }

    /// What a pod serves over HTTP at a port and path, through the API server; `most` bytes of it at most.
    pub(crate) async fn proxied(&self, pod: &Served<'_>, most: usize) -> Result<String, Refusal> {
        let Served { namespace, name, port, path } = pod;
        let uri = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{path}");
        let request = Request::get(uri).header(header::ACCEPT, "text/plain").body(Vec::new().into());
        let request = request.map_err(|error| nobody(chain(&error)))?;
        let client = self.client().await.map_err(|error| nobody(chain(&*error)))?;
        let answer = async {
            let answer = client.send(request).await.map_err(|error| Refusal::of(&error))?;
            let code = answer.status().as_u16();
            let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), most).await;
            let body = body.map_err(|error| nobody(chain(&error)))?;
            match code {
                200 => String::from_utf8(body.into())
                    .map_err(|_bytes| nobody("the answer is no text".to_owned())),
                code => Err(Refusal { code, text: format!("HTTP status {code}") }),
            }
        };
        within(ANSWER, answer).await?
    }

    /// The namespace that we run in, as far as the service account or the kubeconfig tells.
    pub(crate) async fn namespace(&self) -> Option<String> {
        self.client().await.ok().map(|client| client.default_namespace().to_owned())
    }
}

/// What a pod serves over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) port: u16,
    pub(crate) path: &'a str,
}

/// There is no answer.
const fn nobody(text: String) -> Refusal {
    Refusal { code: 0, text }
}

async fn within<T>(patience: Duration, answer: impl Future<Output = T>) -> Result<T, Refusal> {
    let answer = tokio::time::timeout(patience, answer).await;
    answer.map_err(|_elapsed| nobody(format!("the API server has not answered for {patience:?}")))
}

/// Tells what the node object and its ENIConfig say, until nobody listens. Without a cluster it ends at once.
pub(crate) async fn watch(config: Config, door: Option<Door>, events: mpsc::Sender<Event>) {
    let (Some(door), Some(name)) = (door, &config.node_name) else { return };
    let (sender, names) = latest::channel(None);
    let post = Post { events, names: sender };
    let client = loop {
        // A program that gives the credentials may take its time. It is not run twice: nothing ends the first run.
        let silence = post.tell(News::Trouble("there is no client for the API server yet".to_owned()));
        match saying_if_slow(door.client(), silence).await {
            Ok(client) => break client.clone(),
            Err(error) => {
                let trouble = format!("there is no client for the API server: {}", chain(&*error));
                if !post.tell(News::Trouble(trouble)).await {
                    return;
                }
            }
        }
        tokio::time::sleep(CLIENT_AGAIN).await;
    };
    let keys = config.custom_networking.as_ref();
    let read =
        |node: Option<&Node>| node.map_or(News::NoNode, |node| News::Node(Box::new(object(node, keys))));
    let nodes = Api::<Node>::all(client.clone());
    // Whether the pool follows the node's pods.
    let follows = config.automatic && config.families.has_ipv4_of_vpc();
    tokio::select! {
        () = keep_following(nodes, named(name), one(read), News::Trouble, &post) => {}
        () = follow_eni_config(&client, names, &post) => {}
        () = follow_pods(&client, name, config.pod_eni, &post), if config.pod_eni || follows => {}
    }
}

/// Tells what the pods of this node say.
///
/// Only where pods' branch ENIs depend on it the list is the newest, and nothing is taken back that was heard; otherwise it is of any age, as
/// the newest may cost the API server a look at every pod of the cluster.
async fn follow_pods(client: &Client, node: &str, branches: bool, post: &Post) {
    let trouble = |failure| News::Pods(PodNews::Trouble(failure));
    let here = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let watched = match branches {
        true => Watched { list: here, denied: None },
        false => Watched { list: here.any_semantic(), denied: Some(DENIED) },
    };
    keep_following(Api::<Pod>::all(client.clone()), watched, all_pods(), trouble, post).await;
}

/// Where news go.
struct Post {
    events: mpsc::Sender<Event>,
    /// Name of the ENIConfig to watch.
    names: latest::Sender<Option<String>>,
}

impl Post {
    /// Tells something; false when nobody listens any more.
    async fn tell(&self, news: News) -> bool {
        let name = match &news {
            News::Node(object) => object.eni_config.as_ref().map(|named| {
                // What no object can be called would mean something else in a selector.
                named.is_possible().then(|| named.name.clone())
            }),
            News::NoNode | News::Trouble(_) | News::EniConfig(..) | News::Pods(_) => None,
        };
        if self.events.send(Event::Cluster(news)).await.is_err() {
            return false;
        }
        // Only now: what is said of an ENIConfig is heard once the node object has named it.
        if let Some(name) = name {
            self.names.send_if_modified(|before| {
                let changed = *before != name;
                *before = name;
                changed
            });
        }
        true
    }
}

/// Tells what the ENIConfig says that the node object names, whichever that is at the time.
async fn follow_eni_config(client: &Client, mut names: latest::Receiver<Option<String>>, post: &Post) {
    let kind = GroupVersionKind::gvk("crd.k8s.amazonaws.com", "v1alpha1", "ENIConfig");
    let kind = ApiResource::from_gvk_with_plural(&kind, "eniconfigs");
    loop {
        let name = names.borrow_and_update().clone();
        let following = async {
            let Some(name) = name else { return std::future::pending().await };
            let news = |says| News::EniConfig(name.clone(), says);
            let read = |object: Option<&DynamicObject>| {
                news(object.map_or(EniConfigNews::Absent, |object| EniConfigNews::of(&object.data)))
            };
            let trouble = |failure| news(EniConfigNews::Trouble(failure));
            let objects = Api::<DynamicObject>::all_with(client.clone(), &kind);
            keep_following(objects, named(&name), one(read), trouble, post).await;
        };
        tokio::select! {
            () = following => return,
            changed = names.changed() => if changed.is_err() { return },
        }
    }
}

/// The object of one name. The list is the newest, which costs the API server one key: what any of them remembers may be older than what
/// was heard before.
fn named(name: &str) -> Watched {
    let list = watcher::Config::default().fields(&format!("metadata.name={name}"));
    Watched { list, denied: None }
}

/// What is watched.
struct Watched {
    list: watcher::Config,
    /// Pause after a denial, where nobody waits for what is watched.
    denied: Option<Duration>,
}

/// Tells what objects say, until nobody listens: `read` what is to be told of each step of the watch; `trouble` why nothing is known.
async fn keep_following<K>(
    objects: Api<K>,
    Watched { list, denied }: Watched,
    mut read: impl FnMut(watcher::Event<K>) -> Option<News>,
    trouble: impl Fn(String) -> News,
    post: &Post,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut backoff = watcher::DefaultBackoff::default();
    while !post.events.is_closed() {
        let ended = follow(objects.clone(), list.clone(), &mut backoff, &mut read, &trouble, post).await;
        let mut pause = backoff.next().unwrap_or(CLIENT_AGAIN);
        if let Some(end) = ended.filter(|end| end.code() != GONE) {
            post.tell(trouble(end.to_string())).await;
            pause = denied.filter(|_| end.code() == FORBIDDEN).unwrap_or(pause);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Why a watch has ended.
enum End {
    Failed(watcher::Error),
    /// The list that it begins with did not come.
    Silent,
}

impl End {
    /// What HTTP says of it; 0 if it does not.
    fn code(&self) -> u16 {
        match self {
            Self::Failed(error) => code_of(error),
            Self::Silent => 0,
        }
    }
}

/// In one line; a watch's own words repeat those of what is behind them.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.write_str(&error.source().map_or_else(|| error.to_string(), chain)),
            Self::Silent => f.write_str(SILENCE),
        }
    }
}

/// Waits for an answer, and says so if it takes long.
async fn saying_if_slow<T>(answer: impl Future<Output = T>, say: impl Future<Output = bool>) -> T {
    let mut answer = pin!(answer);
    if let Ok(told) = tokio::time::timeout(SLOW, &mut answer).await {
        return told;
    }
    say.await;
    answer.await
}

/// Tells what objects say until something goes wrong: what.
async fn follow<K>(
    objects: Api<K>,
    list: watcher::Config,
    backoff: &mut watcher::DefaultBackoff,
    read: &mut impl FnMut(watcher::Event<K>) -> Option<News>,
    trouble: &impl Fn(String) -> News,
    post: &Post,
) -> Option<End>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut stream = watcher(objects, list).boxed();
    // A watch may say nothing for long, a list may not.
    let mut listed = false;
    loop {
        let told = if listed {
            stream.next().await
        } else {
            let silence = post.tell(trouble(SILENCE.to_owned()));
            match tokio::time::timeout(LIST, saying_if_slow(stream.next(), silence)).await {
                Ok(told) => told,
                Err(_elapsed) => return Some(End::Silent),
            }
        };
        let step = match told? {
            Ok(step) => step,
            Err(error) => return Some(End::Failed(error)),
        };
        match step {
            watcher::Event::Init | watcher::Event::InitApply(_) => listed = false,
            watcher::Event::InitDone | watcher::Event::Delete(_) => listed = true,
            watcher::Event::Apply(_) => backoff.reset(),
        }
        if let Some(news) = read(step)
            && !post.tell(news).await
        {
            return None;
        }
    }
}

/// Of a watch of one object: what it says, or that it is not there.
fn one<K>(read: impl Fn(Option<&K>) -> News) -> impl FnMut(watcher::Event<K>) -> Option<News> {
    // Said by the list that is being read.
    let mut listed = None;
    move |step| match step {
        watcher::Event::Init => {
            listed = None;
            None
        }
        watcher::Event::InitApply(object) => {
            listed = Some(object);
            None
        }
        watcher::Event::InitDone => Some(read(listed.take().as_ref())),
        watcher::Event::Apply(object) => Some(read(Some(&object))),
        watcher::Event::Delete(_) => Some(read(None)),
    }
}

/// Of a watch of pods: which there are, and what each says.
fn all_pods() -> impl FnMut(watcher::Event<Pod>) -> Option<News> {
    let mut listed = Vec::new();
    move |step| {
        let news = match step {
            watcher::Event::Init => {
                listed.clear();
                return None;
            }
            watcher::Event::InitApply(pod) => {
                listed.push(pod_object(&pod));
                return None;
            }
            watcher::Event::InitDone => PodNews::All(std::mem::take(&mut listed)),
            watcher::Event::Apply(pod) => PodNews::Is(pod_object(&pod)),
            watcher::Event::Delete(pod) => PodNews::Gone(pod_name(&pod)),
        };
        Some(News::Pods(news))
    }
}

fn pod_name(pod: &Pod) -> PodName {
    PodName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() }
}

/// What containers ask for is what counts, not what those before them did.
fn pod_object(pod: &Pod) -> PodObject {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let of = containers.filter_map(|container| container.resources.as_ref());
    let amounts = of.flat_map(|it| it.limits.iter().chain(&it.requests)).flatten();
    let amounts = amounts.map(|(name, amount)| (name.as_str(), amount.0.as_str()));
    let annotation = pod.annotations().get(POD_ENI_ANNOTATION).map(String::as_str);
    let branch = BranchWish::of(amounts, annotation);
    // The runtime knows a static pod by the UID that the kubelet has made, not by that of the object which stands for it.
    let uid = pod.annotations().get(MIRROR).cloned().or_else(|| pod.uid());
    PodObject {
        name: pod_name(pod),
        uid: uid.unwrap_or_default(),
        branch,
        cpu: cpu_of(pod),
        gets_address: gets_address(pod),
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn gets_address(pod: &Pod) -> bool {
    !has_ended(pod) && pod.spec.as_ref().is_some_and(|spec| spec.host_network != Some(true))
}

/// The CPU that a pod has asked for, in thousandths, as the scheduler counts it: what the pod says for all, or what its containers need at
/// once, whichever is more of those that come first and those that stay; and what the sandbox itself needs. What was changed in a pod that
/// runs counts as its object says.
fn cpu_of(pod: &Pod) -> u64 {
    let Some(spec) = pod.spec.as_ref().filter(|_| !has_ended(pod)) else { return 0 };
    let asked = |resources: Option<&ResourceRequirements>| cpu_in(resources?.requests.as_ref()?);
    let of = |container: &Container| asked(container.resources.as_ref()).unwrap_or(0);
    let (mut sidecars, mut first) = (0_u64, 0_u64);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(of(container));
        } else {
            first = first.max(sidecars.saturating_add(of(container)));
        }
    }
    let stays = spec.containers.iter().map(of).fold(sidecars, u64::saturating_add);
    let overhead = spec.overhead.as_ref().and_then(cpu_in).unwrap_or(0);
    asked(spec.resources.as_ref()).unwrap_or(stays.max(first)).saturating_add(overhead)
}

fn cpu_in(resources: &BTreeMap<String, Quantity>) -> Option<u64> {
    thousandths(&resources.get("cpu")?.0)
}

async fn client(cluster: &Cluster) -> Result<Client, BoxError> {
    let mut config = match &cluster.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            let named =
                |cluster: &NamedCluster| cluster.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some());
            let names_proxy = file.clusters.iter().any(named);
            let mut config =
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            if !names_proxy {
                // It took the one of the environment, which is for AWS; the API server is asked directly, as by those in the cluster.
                config.proxy_url = None;
            }
            config
        }
        None => kube::Config::incluster()?,
    };
    if let Some(endpoint) = &cluster.endpoint {
        config.cluster_url = endpoint.parse()?;
    }
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENT);
    // Counted anew for each request: a connection that nobody used is not silent.
    config.reset_reader_on_write = true;
    // One place that tries again is enough: the client's own attempts would come on top, and nobody would hear of them.
    config.default_retry = false;
    // A kubeconfig may name a program that gives the credentials, and the client waits for it here: nobody else is to.
    Ok(tokio::task::spawn_blocking(|| Client::try_from(config)).await??)
}

fn object(node: &Node, keys: Option<&NameKeys>) -> NodeObject {
    let spec = node.spec.clone().unwrap_or_default();
    let tainted = spec.taints.iter().flatten().any(|taint| taint.key == CORDONED);
    let of = |pods: Option<&BTreeMap<_, Quantity>>| {
        pods.and_then(|resources| resources.get("pods")).and_then(|pods| pods.0.parse().ok())
    };
    let status = node.status.as_ref();
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let max_pods = of(allocatable);
    NodeObject {
        unschedulable: tainted || spec.unschedulable == Some(true),
        max_pods: max_pods.or_else(|| of(status.and_then(|status| status.capacity.as_ref()))),
        cpu: allocatable.and_then(cpu_in),
        warm: WarmOverrides::of(node.labels(), node.annotations()),
        eni_config: keys.map(|keys| EniConfigName::of(node.labels(), node.annotations(), keys)),
    }
}

/// What HTTP says of a failure; 0 if it does not.
fn code_of(error: &watcher::Error) -> u16 {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code != GONE => status.code,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => 0,
    }
}
