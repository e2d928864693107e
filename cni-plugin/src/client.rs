//! The daemon's socket: one connection, one request, one reply, one deadline.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, send, sendmsg, socket_with,
};
use wire::{FrameError, HEADER_BYTES, PROTOCOL, Reply, Request, TraceParent, Verb};

use crate::patience::Patience;

/// The namespace and the netlink socket.
const DESCRIPTORS_MAX: usize = 2;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the daemon cannot be reached at {}", path.display())]
    Unreachable { path: PathBuf, source: Errno },
    #[error("no answer from the daemon in time")]
    Deadline,
    #[error("the daemon closed the connection without an answer")]
    Closed,
    #[error("the connection to the daemon broke")]
    Broken(#[source] Errno),
    #[error("the frame is not acceptable")]
    Frame(#[from] FrameError),
    #[error("the daemon answered another question")]
    Unexpected,
}

/// What goes with every question of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// When it started, and how long it may take.
    pub(crate) patience: Patience,
    /// The trace that it belongs to.
    pub(crate) trace: Option<TraceParent>,
}

/// Asks the daemon. Descriptors go with the request's first byte.
pub(crate) fn ask(
    path: &Path,
    verb: &Verb,
    descriptors: &[BorrowedFd<'_>],
    call: &Call,
) -> Result<Reply, AskError> {
    let Call { patience, trace } = call;
    let connection = Connection::open(path, patience)?;
    let left = patience.left().ok_or(AskError::Deadline)?;
    let patience_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let (started_ns, trace, verb) = (patience.started_ns, *trace, verb.clone());
    let request = Request { version: PROTOCOL, patience_ms, started_ns, trace, verb };
    let sent = connection.send(&wire::encode(&request)?, descriptors);
    // A daemon that is full says so and closes without reading: then only the answer tells why.
    match (connection.receive(), sent) {
        (Ok(reply), _) => Ok(reply),
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
    }
}

struct Connection<'a> {
    fd: OwnedFd,
    patience: &'a Patience,
}

impl<'a> Connection<'a> {
    fn open(path: &Path, patience: &'a Patience) -> Result<Self, AskError> {
        let unreachable = |source| AskError::Unreachable { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(unreachable)?;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(unreachable)?;
        let connection = Self { fd, patience };
        connection.limit(Timeout::Send)?;
        retry_on_intr(|| connect(&connection.fd, &address)).map_err(|errno| match errno {
            // The daemon's backlog stayed full until our patience ended.
            Errno::AGAIN => AskError::Deadline,
            other => unreachable(other),
        })?;
        Ok(connection)
    }

    /// Lets the next call on the socket take what is left of our patience, and no more.
    fn limit(&self, direction: Timeout) -> Result<(), AskError> {
        let left = self.patience.left().ok_or(AskError::Deadline)?;
        set_socket_timeout(&self.fd, direction, Some(left)).map_err(AskError::Broken)
    }

    fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), AskError> {
        self.limit(Timeout::Send)?;
        let mut rest = &frame[self.send_first(frame, descriptors)?..];
        while !rest.is_empty() {
            self.limit(Timeout::Send)?;
            let len = retry_on_intr(|| send(&self.fd, rest, SendFlags::NOSIGNAL)).map_err(broken)?;
            rest = &rest[len..];
        }
        Ok(())
    }

    fn send_first(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, AskError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(AskError::Broken(Errno::TOOMANYREFS));
        }
        let data = [IoSlice::new(frame)];
        retry_on_intr(|| sendmsg(&self.fd, &data, &mut control, SendFlags::NOSIGNAL)).map_err(broken)
    }

    fn receive(&self) -> Result<Reply, AskError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        let mut body = vec![0; wire::frame_len(header)?];
        self.fill(&mut body)?;
        Ok(wire::decode(&body)?)
    }

    fn fill(&self, mut buffer: &mut [u8]) -> Result<(), AskError> {
        while !buffer.is_empty() {
            self.limit(Timeout::Recv)?;
            let (len, _) =
                retry_on_intr(|| recv(&self.fd, &mut *buffer, RecvFlags::empty())).map_err(broken)?;
            if len == 0 {
                return Err(AskError::Closed);
            }
            buffer = &mut buffer[len..];
        }
        Ok(())
    }
}

fn broken(errno: Errno) -> AskError {
    match errno {
        Errno::AGAIN => AskError::Deadline,
        other => AskError::Broken(other),
    }
}
