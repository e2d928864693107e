//! A netfilter netlink socket.
//!
//! The kernel works on a request before the send returns, so what it has to say is there at once and nothing ever
//! waits.

use std::io;

use netlink_sys::Socket as NetlinkSocket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::NetfilterError;
use super::constants::{
    NFNL_SUBSYS_NFTABLES, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSGERR_ATTR_MSG,
};
use super::decode::{Message, attribute, messages, native_u32, text};
use super::encode::{Attributes, Batch, request};
use crate::model::Family;

/// A transaction is one datagram: room for thousands of sources. The kernel cuts this to its own maximum.
const SEND_BYTES: usize = 1 << 20;
/// Longer than any datagram of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// How often a dump is tried that others' changes interrupt.
const DUMP_TRIES: u32 = 5;

/// A socket with nothing in flight between calls.
#[derive(Debug)]
pub(super) struct Socket {
    socket: NetlinkSocket,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let socket = NetlinkSocket::new(NETLINK_NETFILTER)?;
        socket.set_non_blocking(true)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        set_socket_send_buffer_size(&socket, SEND_BYTES)?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Its port.
    pub(super) fn port(&mut self) -> io::Result<u32> {
        crate::watch::port(&mut self.socket)
    }

    /// Runs a transaction: all of it or nothing. Its steps in words.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<Vec<String>, NetfilterError> {
        let (bytes, steps) = batch.finish();
        self.send(&bytes)?;
        let mut acknowledged = false;
        let mut refused = None;
        while let Some(length) = self.receive()? {
            for message in messages(&self.buffer[..length]).filter(|m| m.kind == NLMSG_ERROR) {
                match errno(&message) {
                    0 => acknowledged = true,
                    errno => refused = refused.or_else(|| Some(refusal(&message, errno, &steps))),
                }
            }
        }
        match (refused, acknowledged) {
            (Some(refusal), _) => Err(refusal),
            (None, true) => Ok(steps),
            (None, false) => Err(NetfilterError::Silent),
        }
    }

    /// The attributes of everything that answers a question; nothing when what it asks about does not exist.
    pub(super) fn ask(
        &mut self,
        family: Family,
        kind: u16,
        flags: u16,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetfilterError> {
        for _ in 0..DUMP_TRIES {
            self.send(&request(family, kind, flags, 1, attributes))?;
            if let Some(answers) = self.answers()? {
                return Ok(answers);
            }
        }
        Err(NetfilterError::Restless)
    }

    /// `None` when the table changed while it was told.
    fn answers(&mut self) -> Result<Option<Vec<Vec<u8>>>, NetfilterError> {
        let mut answers = Vec::new();
        let mut whole = true;
        while let Some(length) = self.receive()? {
            for message in messages(&self.buffer[..length]) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match (message.kind, message.kind >> 8) {
                    (NLMSG_ERROR, _) => match errno(&message) {
                        0 => {}
                        errno if errno == Errno::NOENT.raw_os_error() => {}
                        errno => return Err(refusal(&message, errno, &["tell its table".to_owned()])),
                    },
                    (NLMSG_DONE, _) => {}
                    (_, NFNL_SUBSYS_NFTABLES) => {
                        answers.push(message.body.get(4..).unwrap_or_default().to_vec())
                    }
                    (_, _) => {}
                }
            }
        }
        Ok(whole.then_some(answers))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetfilterError> {
        while self.receive()?.is_some() {} // whatever an earlier failure left unread
        let sent = self.socket.send(bytes, 0).map_err(NetfilterError::Socket)?;
        match sent == bytes.len() {
            true => Ok(()),
            false => Err(NetfilterError::Socket(io::ErrorKind::WriteZero.into())),
        }
    }

    /// Length of the next datagram, or `None` when there is none.
    fn receive(&mut self) -> Result<Option<usize>, NetfilterError> {
        match self.socket.recv(&mut &mut self.buffer[..], 0) {
            Ok(length) => Ok(Some(length.min(self.buffer.len()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(NetfilterError::Socket(error)),
        }
    }
}

/// `struct nlmsgerr` without the refused message's body: errno and that message's header.
const ERROR_BYTES: usize = 20;

/// What `struct nlmsgerr` says, as a positive number.
fn errno(message: &Message<'_>) -> i32 {
    native_u32(message.body).map_or(0, |errno| errno.cast_signed().saturating_neg())
}

/// The sequence number of the refused message leads to its step; a refusal of the whole has that of its beginning.
fn refusal(message: &Message<'_>, errno: i32, steps: &[String]) -> NetfilterError {
    let details = message.body.get(ERROR_BYTES..).filter(|_| message.flags & NLM_F_ACK_TLVS != 0);
    let detail = details.and_then(|tlvs| attribute(tlvs, NLMSGERR_ATTR_MSG)).and_then(text);
    let index = usize::try_from(message.sequence).ok().and_then(|n| n.checked_sub(1));
    let step = index.and_then(|i| steps.get(i)).map_or("run the transaction", String::as_str);
    let detail = detail.map(|d| format!(" ({d})")).unwrap_or_default();
    NetfilterError::Refused { step: format!("{step}{detail}"), errno: io::Error::from_raw_os_error(errno) }
}
