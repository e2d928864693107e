//! What the kernel says to a request: an errno, and with extended acknowledgements a sentence.

use std::fmt;
use std::io;

use netlink_packet_core::{ErrorMessage, NLM_F_ACK_TLVS, NlasIterator};
use netlink_sys::Socket;
use rustix::io::Errno;

/// Length of the refused request's header, which stands before the attributes (`NETLINK_CAP_ACK` cuts the rest).
const REQUEST_HEADER_BYTES: usize = 16;
/// `NLMSGERR_ATTR_MSG`, of `linux/netlink.h`.
const ATTRIBUTE_MESSAGE: u16 = 1;

/// A refusal.
#[derive(Debug)]
pub(super) struct Answer {
    /// Why.
    pub(super) errno: io::Error,
    /// Why, in the kernel's words; empty if it has none.
    pub(super) detail: String,
}

impl Answer {
    /// Why, to be told from others.
    pub(super) fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.errno)
    }

    /// Reads it; `None` for an acknowledgement. `flags` are those of the message's header.
    pub(super) fn refusal(error: &ErrorMessage, flags: u16) -> Option<Self> {
        error.code?;
        let tlvs = error.header.get(REQUEST_HEADER_BYTES..).filter(|_| flags & NLM_F_ACK_TLVS != 0);
        let mut attributes = NlasIterator::new(tlvs.unwrap_or_default()).filter_map(Result::ok);
        let message = attributes.find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE);
        let detail = message.map(|it| String::from_utf8_lossy(it.value()).trim_end_matches('\0').to_owned());
        Some(Self { errno: error.to_io(), detail: detail.unwrap_or_default() })
    }

    /// What the end of a dump says; `None` when all is well.
    pub(super) fn failed_dump(code: i32) -> Option<Self> {
        let errno = io::Error::from_raw_os_error(code.checked_neg().filter(|errno| *errno > 0)?);
        Some(Self { errno, detail: String::new() })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() { self.errno.fmt(f) } else { write!(f, "{} ({})", self.errno, self.detail) }
    }
}

impl std::error::Error for Answer {}

/// Has the kernel refuse what it would otherwise ignore, and say why it refuses.
pub(super) fn be_strict(socket: &Socket) -> io::Result<()> {
    socket.set_netlink_get_strict_chk(true)?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)
}
