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
    NFNL_SUBSYS_NFTABLES, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
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
            let mut told = Told::default();
            while let Some(length) = self.receive()? {
                told.read(&self.buffer[..length])?;
            }
            match told {
                Told { is_interrupted: true, .. } => {}
                Told { is_ended: false, .. } if flags & NLM_F_DUMP != 0 => {
                    return Err(NetfilterError::Silent);
                }
                Told { answers, .. } => return Ok(answers),
            }
        }
        Err(NetfilterError::Restless)
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
        // The length is the datagram's, also where the buffer is too short for it.
        match self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
            Ok(length) if length > self.buffer.len() => Err(NetfilterError::Cut),
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(NetfilterError::Socket(error)),
        }
    }
}

/// What has come as an answer to one question.
#[derive(Debug, Default)]
struct Told {
    answers: Vec<Vec<u8>>,
    /// The tables changed while they were told.
    is_interrupted: bool,
    /// Nothing more is to come.
    is_ended: bool,
}

impl Told {
    /// Takes in one datagram.
    fn read(&mut self, datagram: &[u8]) -> Result<(), NetfilterError> {
        for message in messages(datagram) {
            self.is_interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match (message.kind, message.kind >> 8) {
                (NLMSG_ERROR | NLMSG_DONE, _) => {
                    self.is_ended = true;
                    let errno = errno(&message);
                    if errno != 0 && errno != Errno::NOENT.raw_os_error() {
                        return Err(refusal(&message, errno, &["tell its table".to_owned()]));
                    }
                }
                (_, NFNL_SUBSYS_NFTABLES) => {
                    self.answers.push(message.body.get(4..).unwrap_or_default().to_vec());
                }
                (_, _) => {}
            }
        }
        Ok(())
    }
}

/// `struct nlmsgerr` without the refused message's body: errno and that message's header.
const ERROR_BYTES: usize = 20;

/// What `struct nlmsgerr` or the end of a dump says, as a positive number.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with the number of the only question.
    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn object(flags: u16) -> Vec<u8> {
        message(NFNL_SUBSYS_NFTABLES << 8, flags, &[2, 0, 0, 0])
    }

    fn done(flags: u16, code: i32) -> Vec<u8> {
        message(NLMSG_DONE, flags, &code.to_ne_bytes())
    }

    fn told(datagrams: &[Vec<u8>]) -> Result<Told, NetfilterError> {
        let mut told = Told::default();
        datagrams.iter().try_for_each(|datagram| told.read(datagram))?;
        Ok(told)
    }

    #[test]
    fn a_dump_is_whole_with_its_last_message_alone() {
        let begun = told(&[[object(0), object(0)].concat()]).unwrap();
        assert_eq!((begun.answers.len(), begun.is_ended), (2, false));

        let whole = told(&[object(0), done(0, 0)]).unwrap();
        assert_eq!((whole.answers.len(), whole.is_ended, whole.is_interrupted), (1, true, false));
    }

    #[test]
    fn a_change_is_told_by_any_message_of_a_dump_and_by_its_last() {
        for datagrams in [[object(NLM_F_DUMP_INTR), done(0, 0)], [object(0), done(NLM_F_DUMP_INTR, 0)]] {
            assert!(told(&datagrams).unwrap().is_interrupted);
        }
    }

    #[test]
    fn an_error_with_which_a_dump_ends_is_a_refusal_unless_there_is_nothing() {
        let ends = |errno: Errno| told(&[object(0), done(0, -errno.raw_os_error())]);

        assert!(matches!(ends(Errno::NOMEM), Err(NetfilterError::Refused { .. })));
        assert!(ends(Errno::NOENT).unwrap().is_ended);
    }
}
