//! Serves `ipamd.sock`: HTTP/2 with gRPC in it, everything bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::Grpc;
use tonic_prost::ProstCodec;
use tower::ServiceExt;

use super::backend::Backend;
use super::reflection::{self, Reflection};
use super::{MESSAGE_BYTES_MAX, method};
use crate::server::allowed;

/// Connections at once: the policy agent has one, each probe makes one of its own.
const CONNECTIONS_MAX: usize = 64;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 32;
/// The longest headers of a request, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;
/// How long a request may take from its headers to its answer: longer than the policy agent waits for its configuration. What is asked by
/// reflection is answered for as long as the connection lives.
const REQUEST: Duration = Duration::from_secs(40);
/// How long a connection takes new requests. The client is then told to make another, and what is under way is answered.
const LIFE: Duration = Duration::from_secs(60);
/// How often a connection is asked whether anybody is there, and how long that may take.
const ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Who answers.
struct Served {
    backend: Arc<Backend>,
    reflection: Option<Reflection>,
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: UnixListener, backend: Backend) {
    let reflection = reflection::service();
    let reflection = reflection.inspect_err(|error| tracing::error!(%error, "no gRPC reflection")).ok();
    let served = Arc::new(Served { backend: Arc::new(backend), reflection });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed. Who comes when all places are taken waits in the kernel's queue.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    connection(stream, served).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back when callers leave.
                tracing::warn!(%error, "cannot accept a gRPC connection");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One connection to its end; what its client does wrong ends it and nothing else.
async fn connection(stream: UnixStream, served: Arc<Served>) {
    if let Err(refusal) = allowed(&stream) {
        tracing::warn!(reason = %refusal.reason, "gRPC: {}", refusal.message);
        return;
    }
    let service = service_fn(move |request| {
        let served = Arc::clone(&served);
        async move { Ok::<_, Infallible>(answer(request, &served).await) }
    });
    let (every, within) = ALIVE;
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .keep_alive_interval(every)
        .keep_alive_timeout(within)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = sleep(LIFE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            timeout(REQUEST, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a gRPC connection ended");
    }
}

/// One request, within its time.
async fn answer(request: Request<Incoming>, served: &Served) -> Response<Body> {
    let late = |_elapsed| Status::deadline_exceeded("the request took too long").into_http();
    timeout(REQUEST, dispatch(request, served)).await.unwrap_or_else(late)
}

async fn dispatch(request: Request<Incoming>, served: &Served) -> Response<Body> {
    if let Some(reflection) = &served.reflection
        && request.uri().path().starts_with(reflection::PATHS)
    {
        let Ok(response) = reflection.clone().oneshot(request).await;
        return response;
    }
    let backend = Arc::clone(&served.backend);
    match request.uri().path() {
        method::ADD_NETWORK => unary(request, backend, async |backend, add| backend.add(&add)).await,
        method::DEL_NETWORK => unary(request, backend, async |backend, del| backend.del(del).await).await,
        method::POLICY_CONFIGS => {
            unary(request, backend, async |backend, empty| backend.configs(empty).await).await
        }
        method::HEALTH_CHECK => unary(request, backend, async |backend, check| backend.health(&check)).await,
        other => {
            let other: String = other.chars().take(128).collect();
            Status::unimplemented(format!("there is no {other}")).into_http()
        }
    }
}

/// One message in, one out.
async fn unary<Q, R, F>(
    request: Request<Incoming>,
    backend: Arc<Backend>,
    answer: impl Fn(Arc<Backend>, Q) -> F,
) -> Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
    F: Future<Output = Result<R, Status>>,
{
    let service = tower::service_fn(|request: tonic::Request<Q>| {
        let answered = answer(Arc::clone(&backend), request.into_inner());
        async { answered.await.map(tonic::Response::new) }
    });
    let mut server = Grpc::new(ProstCodec::<R, Q>::default())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    server.unary(service, request).await
}
