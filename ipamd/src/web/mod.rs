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
    let listener = match at {
        Some(at) => TcpListener::bind(at).await,
        None => everywhere(METRICS_PORT).await,
    };
    let app = Router::new().route("/metrics", get(scrape)).with_state((metrics, readers));
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
    let accept: Vec<&str> =
        asked.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::wanted(&accept.join(","));
    match readers.report().await.and_then(|report| metrics.text(&report).ok()) {
        Some(text) => {
            ([(header::CONTENT_TYPE, format.media_type()), (header::VARY, "Accept")], format.of(text))
                .into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n").into_response(),
    }
}
