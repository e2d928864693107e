//! What the daemon serves over HTTP: its metrics, introspection, and a page that draws it.

mod bounded;
mod enis;
mod introspection;
mod page;
mod settings;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::{Format, Metrics};
use crate::readers::Readers;
use bounded::Bounded;

pub(crate) use introspection::{Introspection, serve_introspection};

/// Where the Go version serves its metrics.
const METRICS_PORT: u16 = 61678;

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

async fn scrape(State((metrics, readers)): State<(Metrics, Readers)>, asked: HeaderMap) -> Response {
    match readers.report().await.and_then(|report| metrics.text(&report).ok()) {
        Some(text) => metrics_as_asked(&asked, text),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n").into_response(),
    }
}

/// Metrics in OpenMetrics, in the form that is asked for.
pub(crate) fn metrics_as_asked(asked: &HeaderMap, open_metrics: String) -> Response {
    let accept: Vec<&str> =
        asked.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::wanted(&accept.join(","));
    let headers = [(header::CONTENT_TYPE, format.media_type()), (header::VARY, "Accept")];
    (headers, format.of(open_metrics)).into_response()
}
