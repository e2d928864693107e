//! What the daemon serves over HTTP: its metrics, introspection, and a page that draws it.

mod bounded;
mod enis;
mod introspection;
mod page;
mod settings;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::listening::{AGAIN, until_bound};
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
    let at = at.map_or(Place::Everywhere(port), Place::Address);
    serve_at("metrics", at, app, AGAIN).await;
}

/// Where something is served over TCP.
#[derive(Debug, Clone, Copy)]
enum Place {
    Address(SocketAddr),
    /// A port of all addresses.
    Everywhere(u16),
}

/// Serves something at a place as soon as that is to be had.
async fn serve_at(what: &str, place: Place, app: Router, again: Duration) {
    let bind = || async move {
        match place {
            Place::Address(at) => TcpListener::bind(at).await,
            Place::Everywhere(port) => everywhere(port).await,
        }
    };
    let listener = until_bound(what, again, bind).await;
    if let Err(error) = axum::serve(Bounded::new(listener), app).await {
        tracing::warn!(%error, what, "not served any more");
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_that_another_holds_is_served_once_it_is_free() {
        let another = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = another.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            serve_at("nothing", Place::Address(at), Router::new(), Duration::from_millis(1)).await;
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!serving.is_finished(), "given up");

        drop(another);

        while TcpStream::connect(at).await.is_err() {
            assert!(!serving.is_finished(), "given up");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        serving.abort();
    }
}
