//! `ipamd run`: puts the parts together and runs them until it is told to stop.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datapath::netfilter::{Netfilter, SnatPorts};
use datapath::{Host, Marks, Ours, Watch, Wirer};
use node::clock::Jitter;
use pool::Targets;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot, watch};

use crate::app::{ClusterWriters, Owner, Parts, RunError, events, replay_and_bind, serve};
use crate::clock::Clock;
use crate::cloud::Imds;
use crate::cloud_tasks::CloudTasks;
use crate::cluster::{self, Annotations, Door, Features, Own, annotating, announcing};
use crate::config::{self, Config};
use crate::families::Families;
use crate::grpc;
use crate::grpc::agent::PolicyAgent;
use crate::grpc::backend::Backend;
use crate::hold::{self, Hold};
use crate::host::{HostKeeper, NatSettings, Recording};
use crate::install::Publisher;
use crate::listening::{AGAIN, until_bound};
use crate::lock::{self, DaemonLock};
use crate::metrics::Metrics;
use crate::node::{AUDIT_EVERY, Event, GLANCE_EVERY, REPAIR_EVERY, Remembered, Settings};
use crate::queue::LockedQueue;
use crate::readers::{Readers, readers};
use crate::server::{self, FromSocket};
use crate::start::{self, Started};
use crate::stop::{Stop, until_stopped};
use crate::web::{Introspection, serve_introspection, serve_metrics};
use crate::workers;

/// Requests that may wait for the owner.
const CALLS_MAX: usize = 256;
/// Mode of the gRPC socket: the Go version's.
const GRPC_MODE: u32 = 0o660;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// Only for what is local and cannot be done without: directories, the socket, the kernel's netlink.
pub fn run(config: Config) -> Result<(), RunError> {
    until_stopped(async |stop| match stop.before(alone(&config)).await {
        Some(alone) => daemon(config, alone?, stop).await,
        None => Ok(()),
    })
}

/// What only one daemon of a node has, for as long as it runs.
struct Alone {
    _lock: DaemonLock,
    /// Until it is replayed.
    queue: LockedQueue,
}

/// Makes this process the only daemon of the node.
async fn alone(config: &Config) -> Result<Alone, RunError> {
    let pod = config.pod_name.as_ref().map_or_else(String::new, |name| format!(" of pod {name}"));
    let myself = format!("process {}{pod}", std::process::id());
    let lock = DaemonLock::take(&config.run_dir, &myself, lock::PATIENCE).await;
    let _lock = lock.map_err(RunError::local("be the daemon of this node"))?;
    let queue = LockedQueue::lock(&config.run_dir.join("delete-queue")).await;
    Ok(Alone { _lock, queue: queue.map_err(RunError::local("lock the delete queue"))? })
}

/// Listens to what others change in the kernel. Without that it is seen at the next round.
fn watch(ours: &Ours, events: &mpsc::Sender<Event>) {
    for open in [Watch::routes, Watch::netfilter] {
        let ours = ours.clone();
        if let Err(error) = workers::watching(move || open(ours.clone()), AGAIN, events.clone()) {
            tracing::warn!(%error, "what others change is seen at the next round only");
        }
    }
}

async fn daemon(config: Config, alone: Alone, stop: &mut Stop) -> Result<(), RunError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let clock = Clock::start();
    let dir = config.run_dir.clone();
    let ran_before = mark_run(&dir).map_err(RunError::local("write into the run directory"))?;
    let settings = settings(&config)?;
    let mut wirer = Wirer::open().map_err(RunError::local("reach the kernel"))?;
    let started = start::restored(&config, &settings, ran_before, &mut wirer, clock)?;
    let Started { node, store, remembered, memory, former, news, checkpointing } = started;
    let (sender, inbox) = events();
    let hold_files = vec![hold::file(&dir), config.hold_file.clone()];
    let held = hold::now(&hold_files);
    tell_first(held, remembered, &sender).await;
    tokio::spawn(hold::watch(hold_files, held, sender.clone()));
    let metrics = Metrics::default();
    let imds = Imds::connect(&config).counted(metrics.clone());
    let (readers, read) = readers();
    serve_http(&config, &metrics, &readers);
    let host = Host::open().map_err(RunError::local("reach the kernel"))?;
    let nat = nat_settings(&config);
    let (wishes, wished) = mpsc::channel(1);
    let mut netfilter = Netfilter::default();
    let ports = [
        wirer.port().map_err(RunError::local("reach the kernel"))?,
        host.port(),
        netfilter.port().map_err(RunError::local("reach the kernel's nftables"))?,
    ];
    let pod_if_prefixes = node.veth_prefixes();
    let Settings { eni_mtu, pod_mtu, .. } = settings;
    watch(&Ours { ports: ports.into(), pod_if_prefixes, mtu: eni_mtu, pod_mtu }, &sender);
    let cluster = of_cluster(&config, clock, &metrics, &sender);
    let witnesses = (metrics.clone(), cluster.notes.clone());
    let record = Recording::new(&dir, config.families);
    let keeper = HostKeeper::new(host, netfilter, nat, metrics.clone(), record, former);
    let failed = RunError::local::<io::Error>;
    let keeping = keeper.start(wished, sender.clone()).map_err(failed("start the host's thread"))?;
    let parts = Parts {
        wiring: workers::wiring(wirer, metrics.clone(), sender.clone())
            .map_err(failed("start the wiring thread"))?,
        writing: workers::writing(store, dir.join("state"), sender.clone(), news, memory)
            .map_err(failed("start the writing thread"))?,
        wishes,
        conflist: Some(Publisher::new(&config)),
        cloud: CloudTasks::new(config.clone(), clock, imds, witnesses, ran_before, sender.clone()),
        agent: policy_agent(&config, &metrics, &sender),
        cluster,
    };
    let cloud = parts.cloud.clone();
    let (calls, called) = mpsc::channel(CALLS_MAX);
    let (end, ended) = oneshot::channel();
    let owner = tokio::spawn(Owner::new(node, clock, parts, metrics).run(inbox, called, read, ended));
    let listener = stop.before(replay_and_bind(alone.queue, wire::socket_in(&dir), &calls)).await;
    if let Some(listener) = listener.transpose()? {
        drop(sender.send(Event::Replayed).await);
        tokio::spawn(Arc::clone(&cloud).identify());
        serve_grpc(&config, cloud, readers, calls.clone());
        tokio::spawn(serve(listener, calls, server::places(descriptors())));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), run_dir = %dir.display(), "serving");
        stop.told().await;
    }
    tracing::info!("stopping");
    // An owner that does not listen has ended already: there is nothing to drain.
    if end.send(()).is_ok() {
        let node = owner.await.map_err(RunError::local("finish the requests at work"))?;
        start::leave(&node, keeping, checkpointing);
    }
    Ok(())
}

/// What the node has to know before anything can be begun.
async fn tell_first(held: Hold, remembered: Option<Remembered>, events: &mpsc::Sender<Event>) {
    let held = (held != Hold::Nothing).then_some(Event::Held(held));
    let remembered = remembered.map(|remembered| Event::Remembered(Box::new(remembered)));
    for event in held.into_iter().chain(remembered) {
        drop(events.send(event).await);
    }
}

/// Serves what is read over HTTP.
fn serve_http(config: &Config, metrics: &Metrics, readers: &Readers) {
    if config.metrics {
        tokio::spawn(serve_metrics(config.metrics_bind, metrics.clone(), readers.clone()));
    }
    if let Some(at) = config.introspection.clone() {
        tokio::spawn(serve_introspection(at, Introspection::new(config, readers.clone())));
    }
}

/// Listens to the API server and makes those who write to it. None of that is waited for: pods are served without the API server.
fn of_cluster(
    config: &Config,
    clock: Clock,
    metrics: &Metrics,
    events: &mpsc::Sender<Event>,
) -> ClusterWriters {
    let door = config.cluster.clone().map(Door::new);
    tokio::spawn(cluster::watch(config.clone(), door.clone(), events.clone()));
    writers(config, door, clock, metrics)
}

/// Those who write to the API server, where there is one.
fn writers(config: &Config, door: Option<Door>, clock: Clock, metrics: &Metrics) -> ClusterWriters {
    let Some(door) = door else { return ClusterWriters::default() };
    let node = config.node_name.clone().unwrap_or_default();
    let (features, wanted) = watch::channel(Features::new());
    if cluster::is_object_name(&node) {
        let jitter = Jitter::of_node(&node, clock.now());
        tokio::spawn(cluster::keep_features(door.clone(), node.clone(), metrics.clone(), jitter, wanted));
    }
    let annotations = match config.annotate_pod_ip {
        true => annotating(door.clone(), node.clone(), clock, metrics),
        false => Annotations::default(),
    };
    let (name, uid) =
        (config.pod_name.clone().unwrap_or_default(), config.pod_uid.clone().unwrap_or_default());
    ClusterWriters { notes: announcing(door, Own { name, uid, node }, clock, metrics), annotations, features }
}

/// The network policy agent, where it has a say.
fn policy_agent(config: &Config, metrics: &Metrics, events: &mpsc::Sender<Event>) -> Option<PolicyAgent> {
    let (socket, mode) = (grpc::agent_in(&config.run_dir), config.policy_mode.clone()?);
    Some(PolicyAgent::new(socket, mode, metrics.clone(), events.clone()))
}

/// Serves gRPC, once its socket is to be had. That it is not is no reason not to serve pods.
fn serve_grpc(config: &Config, cloud: Arc<CloudTasks>, readers: Readers, calls: mpsc::Sender<FromSocket>) {
    let policy_mode = config.policy_mode.clone().unwrap_or_default();
    let (multi_nic, veth_prefix) = (config.multi_nic, config.veth_prefix.clone());
    let backend = Backend { policy_mode, multi_nic, veth_prefix, cloud, readers, calls, served: 0.into() };
    let socket = grpc::socket_in(&config.run_dir);
    tokio::spawn(async move {
        let bind = || std::future::ready(server::bind(&socket, GRPC_MODE));
        let listener = until_bound("gRPC", AGAIN, bind).await;
        grpc::server::serve(listener, backend).await;
    });
}

/// Says that a daemon runs here, and tells whether one did since the node started: the directory goes with the node, as the state
/// does.
fn mark_run(dir: &Path) -> io::Result<bool> {
    std::fs::create_dir_all(dir)?;
    match std::fs::File::create_new(dir.join("ran")) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
        Err(error) => Err(error),
    }
}

fn settings(config: &Config) -> Result<Settings, RunError> {
    let targets = Targets {
        warm_eni: config.warm_eni_target,
        warm_ip: config.warm_ip_target,
        minimum_ip: config.minimum_ip_target,
        warm_prefix: config.warm_prefix_target,
        automatic: config.automatic,
        max_pods: config.max_pods,
        ..Targets::default()
    };
    Ok(Settings {
        families: config.families,
        targets,
        prefix_delegation: config.prefix_delegation,
        custom_networking: config.custom_networking.is_some(),
        cooldown: config.cooldown,
        add_timeout: config.add_timeout,
        max_enis: config.max_enis,
        multi_nic: config.multi_nic,
        pod_eni: config.pod_eni,
        enforcing: config.enforcing,
        eni_mtu: config.eni_mtu,
        pod_mtu: config.pod_mtu,
        veth_prefix: config.veth_prefix.clone(),
        marks: Marks::with_connmark(config.connmark).map_err(RunError::local("place our marks"))?,
        connmark: config.node_port || translates(config),
        exclude_snat: config.exclude_snat_cidrs.clone(),
        external_services: config.external_service_cidrs.clone(),
        in_cluster: config.cluster.is_some(),
        annotate_pod_ip: config.annotate_pod_ip && config.cluster.is_some(),
        manage_cordoned: config.manage_cordoned,
        provisioning: config.provisioning && !config.imds_only,
        policies: config.policy_mode.is_some(),
        // Instance metadata is local, and whoever adds addresses there expects them to be used.
        audit_every: if config.imds_only { Duration::from_secs(60) } else { AUDIT_EVERY },
        glance_every: (!config.imds_only).then_some(GLANCE_EVERY),
        repair_every: REPAIR_EVERY,
    })
}

fn nat_settings(config: &Config) -> NatSettings {
    NatSettings {
        snat: translates(config).then_some(ports(config.snat_ports)),
        ipv6_ports: ports(config.snat_ports),
        node_port: config.node_port,
    }
}

/// Whether the node translates addresses. Those that mean something on the node alone it always does.
const fn translates(config: &Config) -> bool {
    match config.families {
        Families::V6 { egress } => egress,
        Families::V4 { .. } | Families::Dual => !config.external_snat,
    }
}

const fn ports(ports: config::SnatPorts) -> SnatPorts {
    match ports {
        config::SnatPorts::Prng => SnatPorts::Prng,
        config::SnatPorts::HashRandom => SnatPorts::HashRandom,
        config::SnatPorts::None => SnatPorts::Plain,
    }
}

/// Allows this process as many descriptors as it may allow itself; how many these are, if there is a limit.
fn descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::warn!(%error, limit.current, "the number of descriptors stays as limited as it was");
            limit.current
        }
    }
}
