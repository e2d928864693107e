//! A synchronous netlink socket: a batch of requests in one system call, every one of them acknowledged.
//!
//! `&mut self` keeps one batch in flight. Works on any socket of the right kind, so also on one that was opened
//! inside a pod's namespace and passed to us.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::answer::{Answer, be_strict};

/// The kernel answers at once; a passed socket that is not what it should be must not hold us up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A reply datagram is at most this long (the kernel's own limit for dumps is 32 KiB).
const REPLY_BYTES: usize = 64 * 1024;
/// Length of a message's header.
const HEADER_BYTES: usize = 16;
/// How often a dump is tried that others' changes interrupt.
const DUMP_TRIES: u32 = 5;
/// Pause after the first that was interrupted; doubles with each.
const DUMP_PAUSE: Duration = Duration::from_millis(1);

/// One request: a message and its flags beyond `REQUEST` and `ACK`.
pub(super) type Ask = (RouteNetlinkMessage, u16);

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Socket {
    socket: NetlinkSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Why a batch or a dump failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// The socket itself failed.
    #[error("the netlink socket fails")]
    Io(#[source] io::Error),
    /// No answer, or not all of it, within the time that it may take.
    #[error("the kernel does not answer a netlink request within {} s", TIMEOUT.as_secs())]
    Silent,
    /// The kernel refused the request with this number in the batch.
    #[error("the kernel refuses request {index}")]
    Refused {
        /// Which request, from 0.
        index: usize,
        /// Why.
        #[source]
        answer: Answer,
    },
    /// What came back was no answer to what was asked.
    #[error("the netlink socket answers nonsense")]
    Nonsense,
    /// Changes kept interrupting a dump.
    #[error("the kernel's tables change faster than they can be read")]
    Interrupted,
}

impl SocketError {
    /// The errno of a refusal.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { answer, .. } => answer.errno(),
            Self::Io(_) | Self::Silent | Self::Nonsense | Self::Interrupted => None,
        }
    }
}

/// What came back.
#[derive(Debug, Default)]
struct Replies {
    /// Besides acknowledgements.
    messages: Vec<RouteNetlinkMessage>,
    /// The first refusal.
    refusal: Option<SocketError>,
    /// Whether a dump was interrupted, or some of it is lost.
    interrupted: bool,
    /// Requests without their last answer.
    left: usize,
}

impl Socket {
    /// A socket in the namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, the default of the family.
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Self::over(fd)
    }

    /// Over a descriptor that somebody else opened.
    ///
    /// Fails for one that is not netlink's. Connected to the kernel, it takes nothing from anybody else.
    pub(super) fn over(fd: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&fd, Timeout::Recv, Some(TIMEOUT))?;
        set_socket_timeout(&fd, Timeout::Send, Some(TIMEOUT))?;
        #[expect(unsafe_code, reason = "netlink-sys takes descriptors by number only")]
        // SAFETY: the number is that of an open descriptor that nobody else owns any more.
        let socket = unsafe { NetlinkSocket::from_raw_fd(fd.into_raw_fd()) };
        be_strict(&socket)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; REPLY_BYTES] })
    }

    /// The number of a link of its namespace, by name. Asked without a message: to read one that tells all of a link takes far
    /// longer.
    pub(super) fn index_of(&self, name: &str) -> io::Result<Option<u32>> {
        match name_to_index(&self.socket, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Its port.
    pub(super) fn port(&mut self) -> io::Result<u32> {
        crate::watch::port(&mut self.socket)
    }

    /// Sends all requests at once and reads all answers. Returns what came besides acknowledgements; the first
    /// refusal wins, but every answer is read, so that the socket stays usable.
    pub(super) fn batch(&mut self, asks: Vec<Ask>) -> Result<Vec<RouteNetlinkMessage>, SocketError> {
        let replies = self.run(asks, NLM_F_ACK)?;
        replies.refusal.map_or(Ok(replies.messages), Err)
    }

    /// All objects of a kind; repeated when changes interrupt it.
    pub(super) fn dump(
        &mut self,
        ask: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, SocketError> {
        whole(|| self.run(vec![(ask.clone(), NLM_F_DUMP)], 0))
    }

    fn run(&mut self, asks: Vec<Ask>, common: u16) -> Result<Replies, SocketError> {
        let first = self.sequence.wrapping_add(1);
        let count = asks.len();
        let mut bytes = Vec::new();
        for (message, flags) in asks {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | common | flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
            message.finalize();
            let at = bytes.len();
            bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[at..]);
        }
        let sent = uninterrupted(|| self.socket.send(&bytes, 0)).map_err(SocketError::Io)?;
        if sent != bytes.len() {
            return Err(SocketError::Io(io::ErrorKind::WriteZero.into()));
        }
        let mut replies = Replies { left: count, ..Replies::default() };
        self.collect(&mut replies, first, count)?;
        Ok(replies)
    }

    /// Reads until every request has its last answer.
    fn collect(&mut self, replies: &mut Replies, first: u32, count: usize) -> Result<(), SocketError> {
        while replies.left > 0 {
            // The length is the datagram's, also where the buffer is too short for it.
            let got = uninterrupted(|| self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC));
            let got = got.map_err(unread)?;
            replies.read(self.buffer.get(..got).ok_or(SocketError::Nonsense)?, first, count)?;
        }
        Ok(())
    }
}

impl Replies {
    /// Takes in one datagram.
    fn read(&mut self, datagram: &[u8], first: u32, count: usize) -> Result<(), SocketError> {
        if datagram.len() < HEADER_BYTES {
            return Err(SocketError::Nonsense);
        }
        for frame in frames(datagram) {
            let frame = frame?;
            let index = usize::try_from(frame.sequence_number().wrapping_sub(first));
            // A late answer to an earlier batch that was given up has a number before the first.
            let Some(index) = index.ok().filter(|index| *index < count) else { continue };
            match message_in(&frame) {
                Some(message) => self.take(message, index),
                // An object of others among many, with attributes that the crate does not know: ours have none of these.
                None if is_object(&frame) => {
                    tracing::debug!(kind = frame.message_type(), "an object of the kernel cannot be read");
                }
                None => return Err(SocketError::Nonsense),
            }
        }
        Ok(())
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>, index: usize) {
        let flags = message.header.flags;
        self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::Error(error) => {
                self.left = self.left.saturating_sub(1);
                let refusal = Answer::refusal(&error, flags);
                let refusal = refusal.map(|answer| SocketError::Refused { index, answer });
                self.refusal = self.refusal.take().or(refusal);
            }
            NetlinkPayload::Done(done) => {
                self.left = self.left.saturating_sub(1);
                let refusal = Answer::failed_dump(done.code);
                let refusal = refusal.map(|answer| SocketError::Refused { index, answer });
                self.refusal = self.refusal.take().or(refusal);
            }
            NetlinkPayload::InnerMessage(reply) => self.messages.push(reply),
            NetlinkPayload::Overrun(_) => self.interrupted = true,
            _ => {}
        }
    }
}

/// What a dump tells that nothing has interrupted, of a few.
fn whole(
    mut dump: impl FnMut() -> Result<Replies, SocketError>,
) -> Result<Vec<RouteNetlinkMessage>, SocketError> {
    for number in 0..DUMP_TRIES {
        let replies = dump()?;
        if let Some(refusal) = replies.refusal {
            return Err(refusal);
        }
        if !replies.interrupted {
            return Ok(replies.messages);
        }
        std::thread::sleep(DUMP_PAUSE * 2_u32.pow(number));
    }
    Err(SocketError::Interrupted)
}

/// Why nothing could be read: with a timeout set, the kernel says that it would have to wait.
fn unread(error: io::Error) -> SocketError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SocketError::Silent,
        _ => SocketError::Io(error),
    }
}

/// A message as it came.
pub(super) type Frame<'a> = NetlinkBuffer<&'a [u8]>;

/// The messages of a datagram, not yet read; one that is cut is nonsense, and the last.
pub(super) fn frames(datagram: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, SocketError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.len() < HEADER_BYTES {
            return None;
        }
        let frame = NetlinkBuffer::new_checked(rest).map_err(|_cut| SocketError::Nonsense);
        let length = frame.as_ref().ok().and_then(|frame| usize::try_from(frame.length()).ok());
        let next = length.map_or(rest.len(), |length| length.next_multiple_of(4).max(HEADER_BYTES));
        rest = rest.get(next..).unwrap_or_default();
        Some(frame)
    })
}

/// What a message says; `None` if it cannot be read.
pub(super) fn message_in(frame: &Frame<'_>) -> Option<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(frame.clone().into_inner()).ok()
}

/// Whether it is one object of a dump.
fn is_object(frame: &Frame<'_>) -> bool {
    frame.flags() & NLM_F_MULTIPART != 0 && ![NLMSG_ERROR, NLMSG_DONE].contains(&frame.message_type())
}

/// Repeats a system call that a signal interrupts: with a timeout set, the kernel does not restart it.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DoneMessage;
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::route::RouteMessage;

    use super::*;

    /// The number of the first request.
    const FIRST: u32 = 7;

    fn message(number: u32, flags: u16, payload: NetlinkPayload<RouteNetlinkMessage>) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = number;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(number: u32, flags: u16) -> Vec<u8> {
        let link = RouteNetlinkMessage::NewLink(LinkMessage::default());
        message(number, NLM_F_MULTIPART | flags, NetlinkPayload::InnerMessage(link))
    }

    fn done(flags: u16, code: i32) -> Vec<u8> {
        let mut done = DoneMessage::default();
        done.code = code;
        message(FIRST, NLM_F_MULTIPART | flags, NetlinkPayload::Done(done))
    }

    /// What one request has got after these datagrams.
    fn replies(datagrams: &[Vec<u8>]) -> Result<Replies, SocketError> {
        let mut replies = Replies { left: 1, ..Replies::default() };
        datagrams.iter().try_for_each(|datagram| replies.read(datagram, FIRST, 1))?;
        Ok(replies)
    }

    #[test]
    fn a_dump_is_over_with_its_last_message_and_not_before() {
        let begun = replies(&[link(FIRST, 0), [link(FIRST, 0), link(FIRST, 0)].concat()]).unwrap();
        assert_eq!((begun.messages.len(), begun.left), (3, 1));

        let whole = replies(&[link(FIRST, 0), done(0, 0)]).unwrap();
        assert_eq!((whole.messages.len(), whole.left, whole.interrupted), (1, 0, false));
    }

    #[test]
    fn a_change_between_the_last_object_and_the_end_interrupts_a_dump_too() {
        for datagrams in
            [[link(FIRST, NLM_F_DUMP_INTR), done(0, 0)], [link(FIRST, 0), done(NLM_F_DUMP_INTR, 0)]]
        {
            assert!(replies(&datagrams).unwrap().interrupted);
        }
    }

    #[test]
    fn an_error_with_which_a_dump_ends_is_a_refusal() {
        let replies = replies(&[link(FIRST, 0), done(0, -Errno::NOBUFS.raw_os_error())]).unwrap();

        assert_eq!(replies.refusal.and_then(|refusal| refusal.errno()), Some(Errno::NOBUFS));
    }

    #[test]
    fn answers_to_requests_that_were_given_up_are_passed_over() {
        let replies = replies(&[link(FIRST - 1, 0), link(FIRST, 0), done(0, 0)]).unwrap();

        assert_eq!(replies.messages.len(), 1);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_passed_over_in_a_dump_and_nonsense_elsewhere() {
        // A route with a realm of one byte.
        let unreadable = |number: u32, flags: u16| {
            let route = RouteNetlinkMessage::NewRoute(RouteMessage::default());
            let mut bytes = message(number, flags, NetlinkPayload::InnerMessage(route));
            bytes.extend([5, 0, 11, 0, 1, 0, 0, 0]);
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        assert!(message_in(&NetlinkBuffer::new(&unreadable(FIRST, 0)[..])).is_none());

        let whole = replies(&[unreadable(FIRST, NLM_F_MULTIPART), link(FIRST, 0), done(0, 0)]).unwrap();
        assert_eq!((whole.messages.len(), whole.left), (1, 0));
        assert!(matches!(replies(&[unreadable(FIRST, 0)]), Err(SocketError::Nonsense)));
        assert!(replies(&[unreadable(FIRST - 1, 0), link(FIRST, 0)]).is_ok(), "nobody asked for it now");
    }

    #[test]
    fn a_datagram_that_is_cut_is_nonsense() {
        let cut = |bytes: Vec<u8>, length: usize| bytes[..length].to_vec();
        for datagram in [cut(link(FIRST, 0), 20), cut(link(FIRST, 0), 3), Vec::new()] {
            assert!(matches!(replies(&[datagram]), Err(SocketError::Nonsense)));
        }
    }

    #[test]
    fn an_interrupted_dump_is_repeated_and_given_up_after_some() {
        let after = |interrupted: u32| {
            let mut tries = 0;
            let told = whole(|| {
                tries += 1;
                let last = if tries > interrupted { 0 } else { NLM_F_DUMP_INTR };
                replies(&[vec![link(FIRST, 0); usize::try_from(tries).unwrap()].concat(), done(last, 0)])
            });
            (tries, told.map(|messages| messages.len()))
        };

        assert!(matches!(after(0), (1, Ok(1))));
        assert!(matches!(after(2), (3, Ok(3))), "what interrupted ones told counts");
        assert!(matches!(after(DUMP_TRIES), (DUMP_TRIES, Err(SocketError::Interrupted))));
    }

    #[test]
    fn a_kernel_that_says_nothing_is_no_other_failure() {
        assert!(matches!(unread(Errno::AGAIN.into()), SocketError::Silent));
        assert!(matches!(unread(Errno::NOBUFS.into()), SocketError::Io(_)));
    }

    #[test]
    fn a_socket_without_an_answer_is_not_waited_for_without_end() {
        let mut socket = Socket::open().unwrap();
        set_socket_timeout(&socket.socket, Timeout::Recv, Some(Duration::from_millis(10))).unwrap();

        // Nobody acknowledges what nobody was asked.
        let mut replies = Replies { left: 1, ..Replies::default() };
        let waited = socket.collect(&mut replies, FIRST, 1);

        assert!(matches!(waited, Err(SocketError::Silent)), "{waited:?}");
    }
}
