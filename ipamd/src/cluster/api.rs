//! The API server; the only file that names its client.
//!
//! One watch of one object: the node's own. The client lists and watches from there on. After a failure, and when its place in the
//! history is gone, it begins anew after a pause: the list then tells that all is well again, which a watch that goes on does only
//! with the next change.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;

use super::{News, NodeObject, WarmOverrides};
use crate::config::{Cluster, Config};
use crate::node::Event;
use crate::server::chain;

/// The taint of a cordoned node.
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Pause before the client is made again: what it needs (a token, a certificate) may not be there yet.
const CLIENT_AGAIN: Duration = Duration::from_secs(10);
/// What HTTP says of a place in the history that is gone.
const GONE: u16 = 410;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Tells what the node object says, until nobody listens. Without a cluster it ends at once.
pub(crate) async fn watch(config: Config, events: mpsc::Sender<Event>) {
    let (Some(cluster), Some(name)) = (&config.cluster, &config.node_name) else { return };
    let client = loop {
        match client(cluster).await {
            Ok(client) => break client,
            Err(error) => {
                let trouble = format!("there is no client for the API server: {}", chain(&*error));
                if events.send(Event::Cluster(News::Trouble(trouble))).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(CLIENT_AGAIN).await;
    };
    let own = watcher::Config::default().fields(&format!("metadata.name={name}")).any_semantic();
    let mut backoff = watcher::DefaultBackoff::default();
    while !events.is_closed() {
        let nodes = Api::<Node>::all(client.clone());
        if let Some(failure) = follow(nodes, own.clone(), &mut backoff, &events).await {
            drop(events.send(Event::Cluster(News::Trouble(failure))).await);
        }
        tokio::time::sleep(backoff.next().unwrap_or(CLIENT_AGAIN)).await;
    }
}

/// Tells what the node object says until something goes wrong; what, unless it is nothing but a place in the history that is gone.
async fn follow(
    nodes: Api<Node>,
    own: watcher::Config,
    backoff: &mut watcher::DefaultBackoff,
    events: &mpsc::Sender<Event>,
) -> Option<String> {
    let mut stream = watcher(nodes, own).boxed();
    // Said by the list that is being read.
    let mut listed = None;
    while let Some(told) = stream.next().await {
        let news = match told {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(node)) => {
                listed = Some(object(&node));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                listed.take().map_or(News::NoNode, |object| News::Node(Box::new(object)))
            }
            Ok(watcher::Event::Apply(node)) => {
                backoff.reset();
                News::Node(Box::new(object(&node)))
            }
            Ok(watcher::Event::Delete(_)) => News::NoNode,
            Err(error) => return (!is_gone(&error)).then(|| words(&error)),
        };
        if events.send(Event::Cluster(news)).await.is_err() {
            break;
        }
    }
    None
}

async fn client(cluster: &Cluster) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut config = match &cluster.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::incluster()?,
    };
    if let Some(endpoint) = &cluster.endpoint {
        config.cluster_url = endpoint.parse()?;
    }
    config.connect_timeout = Some(CONNECT);
    // One place that tries again is enough: the client's own attempts would come on top, and nobody would hear of them.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn object(node: &Node) -> NodeObject {
    let spec = node.spec.clone().unwrap_or_default();
    let tainted = spec.taints.iter().flatten().any(|taint| taint.key == CORDONED);
    let of = |pods: Option<&BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        pods.and_then(|resources| resources.get("pods")).and_then(|pods| pods.0.parse().ok())
    };
    let status = node.status.as_ref();
    let max_pods = of(status.and_then(|status| status.allocatable.as_ref()));
    NodeObject {
        unschedulable: tainted || spec.unschedulable == Some(true),
        max_pods: max_pods.or_else(|| of(status.and_then(|status| status.capacity.as_ref()))),
        warm: WarmOverrides::of(node.labels(), node.annotations()),
    }
}

/// Whether nothing is wrong but our place in the history.
fn is_gone(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::WatchError(status)
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => 0,
    };
    code == GONE
}

/// An error in one line; the watch's own words repeat those of what is behind them.
fn words(error: &watcher::Error) -> String {
    error.source().map_or_else(|| error.to_string(), chain)
}
