//! What is answered on `ipamd.sock`. A DEL becomes the same event as one from our own socket: the owner of the state stays the only one.
//!
//! An ADD of the Go plugin is refused. That plugin wires pods itself, with rules of its own for each, beside which nothing here could
//! promise that the pod keeps its network or that nothing of it stays; and ours stands in its place before this daemon serves, so the
//! runtime's next try goes by that.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use types::{CniCode, DeviceIndex, NetworkCard, PodName, Reason, SandboxKey, TableId, VethPrefix};
use wire::{Detachment, Failure, PROTOCOL, Reply, Report, Request, Verb};

use super::messages::{
    AddNetworkReply, AddNetworkRequest, Allocation, DelNetworkReply, DelNetworkRequest, Empty,
    HealthCheckRequest, HealthCheckResponse, PolicyConfigReply, SERVING,
};
use crate::cloud::Identity;
use crate::cloud_tasks::CloudTasks;
use crate::node::CallId;
use crate::readers::Readers;
use crate::server::{Call, FromSocket};

/// Requests from gRPC have the numbers from this one on.
const FIRST_CALL: u64 = 1 << 48;
/// How long the policy agent is kept waiting for a node that does not know yet who it is: the agent gives up after 30 s, and starts anew.
const IDENTIFYING: Duration = Duration::from_secs(25);
/// Pause between two looks whether it does.
const LOOK: Duration = Duration::from_millis(100);
/// How long the owner may take for a DEL, in milliseconds.
const PATIENCE_MS: u32 = 30_000;
/// The services that a probe may ask for.
const SERVICES: [&str; 2] = ["", "grpc.health.v1.aws-node"];

/// What the services answer with.
#[derive(Debug)]
pub(crate) struct Backend {
    /// `NETWORK_POLICY_ENFORCING_MODE`, as it is set; empty if it is not.
    pub(crate) policy_mode: String,
    /// Whether pods can have several interfaces; without it the agent looks for no more than one.
    pub(crate) multi_nic: bool,
    pub(crate) veth_prefix: VethPrefix,
    pub(crate) cloud: Arc<CloudTasks>,
    pub(crate) readers: Readers,
    pub(crate) calls: mpsc::Sender<FromSocket>,
    pub(crate) served: AtomicU64,
}

impl Backend {
    pub(super) fn add(&self, request: &AddNetworkRequest) -> Result<AddNetworkReply, Status> {
        let pod = PodName { namespace: request.pod_namespace.clone(), name: request.pod_name.clone() };
        let message = "the request lacks its two descriptors: this daemon wires pods itself, and the plugin that asks is not the one \
                       that came with it; that one takes over at the next try";
        tracing::warn!(%pod, version = request.client_version, "an ADD of the Go version's plugin is refused");
        Err(refused(&Failure::new(Reason::BadInput, message)))
    }

    pub(super) async fn del(&self, request: DelNetworkRequest) -> Result<DelNetworkReply, Status> {
        let detachment =
            detachment(request, self.veth_prefix.clone()).map_err(|failure| refused(&failure))?;
        let report = self.readers.report().await.ok_or_else(stopping)?;
        let addresses: Vec<Allocation> = allocation(&report, &detachment.sandbox).into_iter().collect();
        let vlan = report.pods.iter().find(|pod| pod.sandbox == detachment.sandbox).and_then(|pod| pod.vlan);
        let vlan = vlan.map_or(0, |vlan| vlan.number().into());
        let sandbox = detachment.sandbox.clone();
        // Also for one that holds nothing: its ADD may still be under way.
        match self.ask(Verb::Del(detachment)).await.ok_or_else(stopping)? {
            Reply::Failed(failure) => {
                tracing::warn!(reason = %failure.reason, %sandbox, "a DEL over gRPC failed: {}", failure.message);
                Ok(DelNetworkReply::default())
            }
            // The Go plugin knows by these words that there is nothing left to do.
            Reply::Done if addresses.is_empty() => Err(Status::unknown("datastore: unknown pod")),
            // Without a mode: the policy agent has been told.
            Reply::Done => Ok(DelNetworkReply { success: true, addresses, vlan, policy_mode: String::new() }),
            Reply::Added(_) | Reply::Collected { .. } | Reply::Report(_) => {
                Err(refused(&Failure::new(Reason::Internal, "a DEL is answered with something else")))
            }
        }
    }

    async fn ask(&self, verb: Verb) -> Option<Reply> {
        let id = CallId(FIRST_CALL + self.served.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let request =
            Request { version: PROTOCOL, patience_ms: PATIENCE_MS, started_ns: boot_ns(), trace: None, verb };
        let call = Call { id, request, descriptors: Vec::new(), reply };
        self.calls.send(FromSocket::Call(Box::new(call))).await.ok()?;
        answer.await.ok()
    }

    pub(super) async fn configs(&self, _: Empty) -> Result<PolicyConfigReply, Status> {
        let until = Instant::now() + IDENTIFYING;
        loop {
            match self.cloud.identity() {
                Some(identity) => return Ok(configs(&self.policy_mode, self.multi_nic, identity)),
                None if Instant::now() < until => sleep(LOOK).await,
                None => {
                    let message = "it is not known yet who this instance is";
                    return Err(refused(&Failure::new(Reason::Starting, message)));
                }
            }
        }
    }

    pub(super) fn health(&self, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
        match SERVICES.contains(&request.service.as_str()) {
            true => Ok(HealthCheckResponse { status: SERVING }),
            false => Err(Status::not_found("no such service")),
        }
    }
}

fn stopping() -> Status {
    refused(&Failure::new(Reason::DaemonUnreachable, "the daemon is stopping"))
}

/// A failure as gRPC says it; the reason stands first.
fn refused(failure: &Failure) -> Status {
    let code = match failure.code {
        CniCode::TRY_AGAIN => Code::Unavailable,
        CniCode::DECODE_FAILURE => Code::FailedPrecondition,
        _ => Code::Unknown,
    };
    Status::new(code, format!("[{}] {}", failure.reason, failure.message))
}

fn detachment(request: DelNetworkRequest, veth_prefix: VethPrefix) -> Result<Detachment, Failure> {
    let DelNetworkRequest { pod_name, pod_namespace, if_name, network_name, container_id, .. } = request;
    let sandbox = SandboxKey::new(&network_name, &container_id, &if_name)
        .map_err(|error| Failure::new(Reason::BadInput, error.to_string()))?;
    let pod = PodName { namespace: pod_namespace, name: pod_name };
    Ok(Detachment { sandbox, pod, veth_prefix, addresses: Vec::new() })
}

/// What a sandbox holds, in the words of the Go plugin; the primary ENI's place stands in for one that is not known.
fn allocation(report: &Report, sandbox: &SandboxKey) -> Option<Allocation> {
    let pod = report.pods.iter().find(|pod| pod.sandbox == *sandbox)?;
    let eni = report.enis.iter().find(|eni| Some(&eni.id) == pod.eni.as_ref());
    let (device, table) = eni.map_or_else(
        || (DeviceIndex(0), TableId::of_eni(NetworkCard(0), DeviceIndex(0))),
        |eni| (eni.device, eni.table),
    );
    let addresses = || std::iter::once(pod.address).chain(pod.other);
    let text = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    Some(Allocation {
        ipv4: text(addresses().find(IpAddr::is_ipv4)),
        ipv6: text(addresses().find(IpAddr::is_ipv6)),
        device: device.0.into(),
        table: i32::try_from(table.0).unwrap_or(i32::MAX),
    })
}

fn configs(mode: &str, multi_nic: bool, identity: &Identity) -> PolicyConfigReply {
    PolicyConfigReply {
        mode: mode.to_owned(),
        multi_nic,
        node_ipv4: identity.primary_address.to_string(),
        node_ipv6: identity.ipv6.map(|address| address.to_string()).unwrap_or_default(),
        instance_id: identity.instance.to_string(),
        region: identity.region.clone(),
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds, the order of requests. The Go plugin does not tell when it was started: no later than now.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanoseconds.unwrap_or(0))
}
