//! What the daemon serves over HTTP: its metrics.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use wire::Report;

use crate::metrics::Metrics;

/// Where the Go version serves its metrics.
const METRICS_PORT: u16 = 61678;
/// Media type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at once. Pods can reach the port: they must not use up what the daemon needs for them.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection lives, idle or not; whoever scrapes makes another.
const LIFE: Duration = Duration::from_secs(5);

/// Asks the owner of the state for a report.
pub(crate) type Readers = mpsc::Sender<oneshot::Sender<Report>>;

/// Serves metrics until the process ends. An address that cannot be had is no reason not to serve pods.
pub(crate) async fn serve_metrics(at: Option<SocketAddr>, metrics: Metrics, readers: Readers) {
    let listener = match at {
        Some(at) => TcpListener::bind(at).await,
        None => everywhere().await,
    };
    let app = Router::new().route("/metrics", get(scrape)).with_state((metrics, readers));
    let served = match listener {
        Ok(listener) => {
            let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            axum::serve(Bounded { listener, places }, app).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(%error, "metrics are not served");
    }
}

/// All addresses of both families, or of IPv4 where the kernel has no other.
async fn everywhere() -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, METRICS_PORT)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, METRICS_PORT)).await,
    }
}

/// Takes in so many connections and no more, each for so long and no longer.
#[derive(Debug)]
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Never closed, so never without a place for ever.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        (Connection { stream, end: Box::pin(tokio::time::sleep(LIFE)), _place: place }, peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.is_over(cx) {
            true => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            false => Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.is_over(cx) {
            true => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            false => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn scrape(State((metrics, readers)): State<(Metrics, Readers)>) -> Response {
    let (reply, report) = oneshot::channel();
    let asked = readers.send(reply).await.is_ok();
    let text = match report.await {
        Ok(report) if asked => metrics.text(&report).ok(),
        Ok(_) | Err(_) => None,
    };
    match text {
        Some(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n").into_response(),
    }
}
