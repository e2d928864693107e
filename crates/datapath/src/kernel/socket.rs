//! A synchronous netlink socket: a batch of requests in one system call, every one of them acknowledged.
//!
//! `&mut self` keeps one batch in flight. Works on any socket of the right kind, so also on one that was opened
//! inside a pod's namespace and passed to us.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// The kernel answers at once; a passed socket that is not what it should be must not hold us up.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// A reply datagram is at most this long (the kernel's own limit for dumps is 32 KiB).
const REPLY_BYTES: usize = 64 * 1024;

/// One request: a message and its flags beyond `REQUEST` and `ACK`.
pub(super) type Ask = (RouteNetlinkMessage, u16);

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// The answer of the kernel to one request of a batch.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// The socket itself failed.
    #[error("the netlink socket fails")]
    Io(#[source] io::Error),
    /// The kernel refused the request with this number in the batch.
    #[error("the kernel says")]
    Refused {
        /// Which request.
        index: usize,
        /// Its errno.
        #[source]
        errno: io::Error,
    },
    /// What came back was no answer to what was asked.
    #[error("the netlink socket answers nonsense")]
    Nonsense,
}

impl SocketError {
    /// The errno of a refusal.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => errno.raw_os_error(),
            Self::Io(_) | Self::Nonsense => None,
        }
    }
}

impl Socket {
    /// A socket in the namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, the default of the family.
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Self::over(fd)
    }

    /// Over a descriptor that somebody else opened.
    pub(super) fn over(fd: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&fd, Timeout::Recv, Some(TIMEOUT))?;
        set_socket_timeout(&fd, Timeout::Send, Some(TIMEOUT))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; REPLY_BYTES] })
    }

    /// Sends all requests at once and reads all answers. Returns what came besides acknowledgements; the first
    /// refusal wins, but every answer is read, so that the socket stays usable.
    pub(super) fn batch(&mut self, asks: Vec<Ask>) -> Result<Vec<RouteNetlinkMessage>, SocketError> {
        let first = self.sequence.wrapping_add(1);
        let count = asks.len();
        let mut bytes = Vec::new();
        for (message, flags) in asks {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
            message.finalize();
            let at = bytes.len();
            bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[at..]);
        }
        let sent = send(&self.fd, &bytes, SendFlags::empty()).map_err(|e| SocketError::Io(e.into()))?;
        if sent != bytes.len() {
            return Err(SocketError::Io(io::ErrorKind::WriteZero.into()));
        }
        self.answers(first, count)
    }

    fn answers(&mut self, first: u32, count: usize) -> Result<Vec<RouteNetlinkMessage>, SocketError> {
        let mut left = count;
        let mut replies = Vec::new();
        let mut refusal = None;
        while left > 0 {
            let (got, _) = recv(&self.fd, &mut self.buffer[..], RecvFlags::empty())
                .map_err(|e| SocketError::Io(e.into()))?;
            let mut rest = &self.buffer[..got];
            if rest.is_empty() {
                return Err(SocketError::Nonsense);
            }
            while rest.len() >= 16 {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|_unreadable| SocketError::Nonsense)?;
                let length =
                    usize::try_from(message.header.length).map_err(|_unreadable| SocketError::Nonsense)?;
                rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
                let index =
                    usize::try_from(message.header.sequence_number.wrapping_sub(first)).unwrap_or(usize::MAX);
                if index >= count {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        left -= 1;
                        if error.code.is_some() && refusal.is_none() {
                            refusal = Some(SocketError::Refused { index, errno: error.to_io() });
                        }
                    }
                    NetlinkPayload::Done(_) => left -= 1,
                    NetlinkPayload::InnerMessage(reply) => replies.push(reply),
                    _ => {}
                }
            }
        }
        refusal.map_or(Ok(replies), Err)
    }
}
