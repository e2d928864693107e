//! Introspection: what the Go version's support scripts ask, and what the daemon is about to do and why.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};
use wire::Report;

use super::bounded::Bounded;
use super::{Place, enis, page, serve_at, settings};
use crate::config::{Config, IntrospectionBind};
use crate::families::Families;
use crate::listening::{AGAIN, until_bound};
use crate::readers::Readers;
use crate::server;

/// Mode of the socket where it is one in the file system: the Go version's support scripts run as root.
const SOCKET_MODE: u32 = 0o660;
/// What the log calls it.
const WHAT: &str = "introspection";
/// What there is to ask; the first four are the Go version's.
const COMMANDS: [&str; 9] = [
    "/v1/enis",
    "/v1/eni-configs",
    "/v1/networkutils-env-settings",
    "/v1/ipamd-env-settings",
    "/v1/plan",
    "/v1/status",
    "/status",
    "/livez",
    "/readyz",
];

/// What the answers are made of.
#[derive(Debug, Clone)]
pub(crate) struct Introspection {
    readers: Readers,
    families: Families,
    cooldown: Duration,
    network: Value,
    daemon: Value,
}

impl Introspection {
    pub(crate) fn new(config: &Config, readers: Readers) -> Self {
        Self {
            readers,
            families: config.families,
            cooldown: config.cooldown,
            network: settings::network(config),
            daemon: settings::daemon(config),
        }
    }
}

/// Serves introspection until the process ends. A place that cannot be had yet is no reason not to serve pods.
pub(crate) async fn serve_introspection(at: IntrospectionBind, introspection: Introspection) {
    let app = router(introspection);
    match at {
        IntrospectionBind::Address(at) => serve_at(WHAT, Place::Address(at), app, AGAIN).await,
        IntrospectionBind::Everywhere(port) => serve_at(WHAT, Place::Everywhere(port), app, AGAIN).await,
        IntrospectionBind::Socket(path) => {
            let bind = || std::future::ready(server::bind(&path, SOCKET_MODE));
            let listener = until_bound(WHAT, AGAIN, bind).await;
            if let Err(error) = axum::serve(Bounded::new(listener), app).await {
                tracing::warn!(%error, "introspection is not served any more");
            }
        }
    }
}

fn router(introspection: Introspection) -> Router {
    Router::new()
        .route("/v1/enis", get(all_enis))
        .route("/v1/eni-configs", get(eni_config))
        .route("/v1/networkutils-env-settings", get(async |State(this): This| Json(this.network)))
        .route("/v1/ipamd-env-settings", get(async |State(this): This| Json(this.daemon)))
        .route("/v1/plan", get(plan))
        .route("/v1/status", get(status))
        .route("/status", get(async || page::status()))
        .route("/livez", get(lives))
        .route("/readyz", get(ready))
        .fallback(async || Json(json!({ "AvailableCommands": COMMANDS })))
        .layer(middleware::from_fn(logged))
        .with_state(introspection)
}

type This = State<Introspection>;

async fn logged(request: Request, next: Next) -> Response {
    tracing::debug!(method = %request.method(), path = request.uri().path(), "introspection");
    next.run(request).await
}

async fn all_enis(State(this): This) -> Response {
    let Some((pool, report)) = this.readers.pool().await else { return silent() };
    Json(enis::by_card(&pool, &report, this.families, this.cooldown)).into_response()
}

/// What the status page draws, of one moment: what `ipamd status --json` prints, without sandboxes, and `/v1/enis`.
async fn status(State(this): This) -> Response {
    let Some((pool, report)) = this.readers.pool().await else { return silent() };
    let enis = enis::by_card(&pool, &report, this.families, this.cooldown);
    let mut report = json!(report);
    for pod in report["pods"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        pod.remove("sandbox");
    }
    ([page::ONE_ANSWER], Json(json!({ "report": report, "enis": enis }))).into_response()
}

/// The name of the node's ENIConfig, as the Go version tells it.
async fn eni_config(State(this): This) -> Response {
    let Some(report) = this.readers.report().await else { return silent() };
    let unknown = || text(StatusCode::NOT_FOUND, "the node object is not known\n".to_owned());
    report.eni_config.map_or_else(unknown, |name| Json(name).into_response())
}

async fn plan(State(this): This) -> Response {
    this.readers.report().await.map_or_else(silent, |report| Json(planned(&report)).into_response())
}

/// What the pool is about to do and why, and what holds it up.
fn planned(report: &Report) -> Value {
    json!({
        "ready": report.not_ready.is_empty(),
        "waitsFor": report.not_ready,
        "addresses": report.addresses,
        "capacity": report.capacity,
        "waiting": report.waiting,
        "plan": report.plan,
        "cloud": report.cloud,
        "cluster": report.cluster,
    })
}

/// Whether the owner of the state answers at all: what a restart can mend.
async fn lives(State(this): This) -> Response {
    this.readers.report().await.map_or_else(silent, |_| text(StatusCode::OK, "ok\n".to_owned()))
}

/// Whether an ADD would be served; what is missing otherwise.
async fn ready(State(this): This) -> Response {
    let Some(report) = this.readers.report().await else { return silent() };
    if report.not_ready.is_empty() {
        return text(StatusCode::OK, "ok\n".to_owned());
    }
    let missing = report.not_ready.iter().map(|what| format!("waits for {what}\n"));
    let troubles = report.cloud.iter().map(|line| format!("{line}\n"));
    text(StatusCode::SERVICE_UNAVAILABLE, missing.chain(troubles).collect())
}

fn silent() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "the owner of the state does not answer\n".to_owned())
}

fn text(status: StatusCode, words: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], words).into_response()
}

#[cfg(test)]
mod tests {
    use types::Moment;

    use super::*;
    use crate::status::blank;

    #[test]
    fn the_plan_comes_with_what_is_missing_and_who_waits() {
        let mut report = blank(Moment(1_000));
        report.not_ready = vec!["the first look at the ENIs".to_owned()];
        report.plan = vec!["attach one ENI".to_owned()];

        let told = planned(&report);

        assert_eq!(told["ready"], false);
        assert_eq!(told["waitsFor"], json!(["the first look at the ENIs"]));
        assert_eq!(told["plan"], json!(["attach one ENI"]));
        assert_eq!(told["addresses"], json!({"free": 0, "reserved": 0, "assigned": 0, "cooling": 0}));
    }
}
