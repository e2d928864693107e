//! The Unix socket: one request in, one reply out, everything bounded.
//!
//! A caller is root or it is turned away; a frame has a size and a time; there are so many connections and no
//! more. What a caller may do wrong ends its own connection and nothing else.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use types::Reason;
use wire::{FRAME_BYTES_MAX, Failure, HEADER_BYTES, PROTOCOL, REPORT_BYTES_MAX, Reply, Request};

use crate::node::CallId;

pub use node::chain;

/// Connections served at once. A node starts at most some hundred pods at a time; a held ADD keeps its connection.
const CONNECTIONS_MAX: usize = 1024;
/// And where the process may have very few descriptors.
const CONNECTIONS_MIN: usize = 16;
/// Descriptors that one connection may hold: itself, and what its request carries.
const DESCRIPTORS_EACH: u64 = 1 + 2;
/// Descriptors that are left to everything else: files, netlink, EC2, the API server, HTTP and gRPC.
const DESCRIPTORS_ELSEWHERE: u64 = 128;
/// How long a caller may take to send its request.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller may take to read its reply.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Descriptors a request may carry: the network namespace and a netlink socket inside it.
const DESCRIPTORS_MAX: usize = 2;

/// What comes from the socket.
#[derive(Debug)]
pub enum FromSocket {
    /// A request.
    Call(Box<Call>),
    /// The caller of an unanswered request has hung up.
    Gone(CallId),
}

/// One request, and where its reply goes.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub id: CallId,
    /// What is asked.
    pub request: Request,
    /// Descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Takes the reply. Closed when the caller has gone.
    pub reply: oneshot::Sender<Reply>,
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket's directory or file cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Mode of our own socket: its owner's alone.
pub const PRIVATE: u32 = 0o600;

/// Binds a socket with this mode; a stale file is removed.
///
/// # Errors
/// When the file system refuses.
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener, ServerError> {
    let listen = || -> io::Result<UnixListener> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        // Bound under another name and moved there once its mode is right: never open to others, never half there.
        let staged = path.with_extension("sock.new");
        drop(std::fs::remove_file(&staged));
        let listener = UnixListener::bind(&staged)?;
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&staged, path)?;
        Ok(listener)
    };
    listen().map_err(|source| ServerError::Listen { path: path.to_owned(), source })
}

/// How many connections can be served at once by a process that may have so many descriptors (`None`: any number): those that wait for
/// an address must leave enough for the call to EC2 that brings it.
#[must_use]
pub fn places(descriptors: Option<u64>) -> usize {
    let left = descriptors.map_or(u64::MAX, |limit| limit.saturating_sub(DESCRIPTORS_ELSEWHERE));
    let places = usize::try_from(left / DESCRIPTORS_EACH).unwrap_or(usize::MAX);
    places.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// Serves so many connections at once until the receiver of calls is gone. Requests are numbered from `first` on.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<FromSocket>, first: CallId, most: usize) {
    serve_patiently(listener, calls, first, most, READ_TIMEOUT).await;
}

/// The same with callers that may take so long to send their request.
async fn serve_patiently(
    listener: UnixListener,
    calls: mpsc::Sender<FromSocket>,
    first: CallId,
    most: usize,
    patience: Duration,
) {
    let places = Arc::new(Semaphore::new(most));
    let mut id = first;
    while !calls.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let place = Arc::clone(&places).try_acquire_owned().ok();
                let calls = place.is_some().then(|| calls.clone());
                id.0 += 1;
                tokio::spawn(async move {
                    connection(stream, calls.ok_or(most), id, patience).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back when callers leave.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One caller from first byte to last; or one too many, beside so many others.
async fn connection(
    mut stream: UnixStream,
    calls: Result<mpsc::Sender<FromSocket>, usize>,
    id: CallId,
    patience: Duration,
) {
    let answer = match calls {
        Ok(calls) => answer(&mut stream, &calls, id, patience).await,
        Err(most) => {
            let message = format!("{most} requests are being served already");
            Reply::Failed(Failure::new(Reason::Busy, message))
        }
    };
    let most = match answer {
        Reply::Report(_) => REPORT_BYTES_MAX,
        Reply::Added(_) | Reply::Done | Reply::Collected { .. } | Reply::Failed(_) => FRAME_BYTES_MAX,
    };
    let frame = wire::encode_within(&answer, most).or_else(|error| {
        tracing::error!(%error, "a reply does not fit into a frame");
        wire::encode(&Reply::Failed(Failure::new(Reason::Internal, "the reply is too long")))
    });
    if let Ok(frame) = frame {
        // A caller that does not read its answer has lost interest in it; that harms nobody else.
        drop(tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&frame)).await);
    }
}

/// Hands the request on and waits for the reply, or for the caller to hang up.
async fn answer(
    stream: &mut UnixStream,
    calls: &mpsc::Sender<FromSocket>,
    id: CallId,
    patience: Duration,
) -> Reply {
    let stopping = || Reply::Failed(Failure::new(Reason::DaemonUnreachable, "the daemon is stopping"));
    let (request, descriptors) = match tokio::time::timeout(patience, receive(stream)).await {
        Ok(Ok(received)) => received,
        Ok(Err(refusal)) => {
            tracing::warn!(reason = %refusal.reason, "{}", refusal.message);
            return Reply::Failed(refusal);
        }
        Err(_elapsed) => {
            // Not `BadInput`: a plugin takes that for a daemon of another version, and leaves a DEL to the next one to start.
            return Reply::Failed(Failure::new(Reason::DeadlineExceeded, "the request did not come in time"));
        }
    };
    let (reply, answer) = oneshot::channel();
    if calls.send(FromSocket::Call(Box::new(Call { id, request, descriptors, reply }))).await.is_err() {
        return stopping();
    }
    let mut extra = [0];
    tokio::select! {
        biased;
        answer = answer => answer.unwrap_or_else(|_closed| stopping()),
        // Nothing more is expected: bytes or the end mean that the caller is done with us.
        _ = stream.read(&mut extra) => {
            drop(calls.send(FromSocket::Gone(id)).await);
            stopping()
        }
    }
}

/// Reads one request with its descriptors.
async fn receive(stream: &mut UnixStream) -> Result<(Request, Vec<OwnedFd>), Failure> {
    let bad = |what: &str, cause: &dyn std::fmt::Display| {
        Failure::new(Reason::BadInput, format!("{what}: {cause}"))
    };
    allowed(stream)?;
    let mut header = [0; HEADER_BYTES];
    let (have, descriptors) = first_bytes(stream, &mut header).await.map_err(|e| bad("no request", &e))?;
    stream.read_exact(&mut header[have..]).await.map_err(|e| bad("the request ends early", &e))?;
    let len = wire::frame_len(header).map_err(|e| bad("not a request", &e))?;
    let mut body = Vec::with_capacity(len.min(4096));
    let mut rest = AsyncReadExt::take(&mut *stream, u64::try_from(len).unwrap_or(u64::MAX));
    let got = rest.read_to_end_within(&mut body).await.map_err(|e| bad("the request ends early", &e))?;
    if got < len {
        return Err(bad("the request ends early", &format_args!("{got} of {len} bytes")));
    }
    let request: Request = wire::decode(&body).map_err(|e| bad("not a request", &chain(&e)))?;
    if request.version != PROTOCOL {
        let (theirs, ours) = (request.version, PROTOCOL);
        let message =
            format!("the plugin speaks version {theirs} of the socket's protocol, the daemon {ours}");
        return Err(Failure::new(Reason::BadInput, message));
    }
    Ok((request, descriptors))
}

/// Reads until the frame's end without trusting its announced length for an allocation.
trait ReadWithin {
    async fn read_to_end_within(&mut self, body: &mut Vec<u8>) -> io::Result<usize>;
}

impl ReadWithin for tokio::io::Take<&mut UnixStream> {
    async fn read_to_end_within(&mut self, body: &mut Vec<u8>) -> io::Result<usize> {
        while self.limit() > 0 {
            if self.read_buf(body).await? == 0 {
                break;
            }
        }
        Ok(body.len())
    }
}

/// Root, or whoever runs the daemon, may ask.
pub(crate) fn allowed(stream: &UnixStream) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => Ok(()),
        Ok(peer) => {
            Err(Failure::new(Reason::BadInput, format!("user {} may not use this socket", peer.uid())))
        }
        Err(error) => {
            Err(Failure::new(Reason::BadInput, format!("the caller cannot be identified: {error}")))
        }
    }
}

/// The first bytes of the frame and the descriptors that came with them.
async fn first_bytes(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (have, descriptors) = stream.async_io(Interest::READABLE, || with_descriptors(stream, into)).await?;
    if have == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((have, descriptors))
}

fn with_descriptors(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [io::IoSliceMut::new(into)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(stream.as_fd(), &mut buffers, &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_comes_too_slowly_is_told_to_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (calls, _called) = mpsc::channel(1);
        let listener = bind(&path, PRIVATE).unwrap();
        tokio::spawn(serve_patiently(listener, calls, CallId(0), 1, Duration::from_millis(1)));
        let mut stream = UnixStream::connect(&path).await.unwrap();

        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; wire::frame_len(header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();

        let reply: Reply = wire::decode(&body).unwrap();
        assert_eq!(reply.failure().map(|failure| failure.reason), Some(Reason::DeadlineExceeded));
    }

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        for (limit, connections) in
            [(None, 1024), (Some(65_536), 1024), (Some(3200), 1024), (Some(1024), 298), (Some(64), 16)]
        {
            assert_eq!(places(limit), connections, "{limit:?}");
        }
    }
}
