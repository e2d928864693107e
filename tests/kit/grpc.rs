//! A gRPC client on a Unix socket, for calls of one message and one answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A client with a runtime of its own; connects when there is something to ask.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// A client of this socket.
    ///
    /// # Errors
    /// When no runtime can be started.
    pub fn new(socket: PathBuf) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let channel = runtime.block_on(async { channel(socket) });
        Ok(Self { runtime, channel })
    }

    /// Calls a method, which is the path of the request.
    ///
    /// # Errors
    /// What the server says, or that there is none.
    pub fn call<Q, R>(&self, method: &str, request: Q, patience: Duration) -> Result<R, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(method).map_err(|e| Status::internal(e.to_string()))?;
        let mut client = Grpc::new(self.channel.clone());
        self.runtime.block_on(async move {
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let mut request = Request::new(request);
            request.set_timeout(patience);
            let reply = client.unary(request, path, ProstCodec::<Q, R>::default()).await;
            reply.map(Response::into_inner)
        })
    }
}

fn channel(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}
