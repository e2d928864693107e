//! What the daemon serves over HTTP: its metrics, introspection, and a page that draws it.

mod bounded;
mod enis;
mod introspection;
mod page;
mod settings;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::readers::Readers;
use bounded::Bounded;

pub(crate) use introspection::{Introspection, serve_introspection};

/// Where the Go version serves its metrics.
const METRICS_PORT: u16 = 61678;
/// Media type of the OpenMetrics text format.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves metrics until the process ends. An address that cannot be had is no reason not to serve pods.
pub(crate) async fn serve_metrics(at: Option<SocketAddr>, metrics: Metrics, readers: Readers) {
    let app = Router::new().route("/metrics", get(scrape)).with_state((metrics, readers));
    serve_bounded(at, METRICS_PORT, app).await;
}

/// The same for anything that is read: at an address, or else at a port of all addresses.
pub(crate) async fn serve_bounded(at: Option<SocketAddr>, port: u16, app: Router) {
    let listener = match at {
        Some(at) => TcpListener::bind(at).await,
        None => everywhere(port).await,
    };
    let served = match listener {
        Ok(listener) => axum::serve(Bounded::new(listener), app).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(%error, "metrics are not served");
    }
}

/// All addresses of both families, or of IPv4 where the kernel has no other.
async fn everywhere(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn scrape(State((metrics, readers)): State<(Metrics, Readers)>) -> Response {
    match readers.report().await.and_then(|report| metrics.text(&report).ok()) {
        Some(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n").into_response(),
    }
}
