//! Netlink attributes and nf_tables batches as bytes.
//!
//! Headers and lengths are in the host's byte order, nf_tables' own numbers in network order.

use super::constants::{
    NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFPROTO_IPV4, NFPROTO_IPV6,
    NFPROTO_UNSPEC, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST,
};
use crate::model::Family;

/// Length of `struct nlmsghdr` and `struct nfgenmsg` together.
pub(super) const HEADER_BYTES: usize = 20;
/// Where `struct nlmsghdr` has the flags.
const FLAGS_AT: usize = 6;

/// A list of attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute with these bytes as its value.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(length(4 + value.len()).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number in network order.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a text with its closing NUL.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds attributes inside an attribute.
    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// The attributes as they are sent.
    #[cfg(test)]
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Lengths beyond 16 bits cannot be said; the callers stay far below, and the kernel refuses one that is too long.
fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// A transaction under construction. The message with sequence number `n` does what `steps[n - 1]` says.
#[derive(Debug)]
pub(super) struct Batch {
    family: Family,
    /// The table that its steps are about, unless they name another.
    pub(super) table: &'static str,
    bytes: Vec<u8>,
    steps: Vec<String>,
    last_at: usize,
}

impl Batch {
    /// A transaction that does nothing to a table of this family.
    pub(super) fn new(family: Family, table: &'static str) -> Self {
        let mut batch = Self { family, table, bytes: Vec::new(), steps: Vec::new(), last_at: 0 };
        batch.bracket(NFNL_MSG_BATCH_BEGIN, 0);
        batch
    }

    /// Adds a step; `what` completes "the kernel refuses to".
    pub(super) fn step(&mut self, what: impl Into<String>, kind: u16, flags: u16, attributes: &Attributes) {
        self.steps.push(what.into());
        self.last_at = self.bytes.len();
        self.bytes.extend(request(self.family, kind, flags, self.sequence(), attributes));
    }

    /// The bytes to send, and what each step does. Refusals come unasked; only the last step asks to be
    /// acknowledged, so that a long transaction does not flood the socket.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        let flags = self.last_at + FLAGS_AT;
        for (byte, ack) in self.bytes.iter_mut().skip(flags).zip(NLM_F_ACK.to_ne_bytes()) {
            *byte |= ack;
        }
        self.bracket(NFNL_MSG_BATCH_END, self.sequence() + 1);
        (self.bytes, self.steps)
    }

    fn bracket(&mut self, kind: u16, sequence: u32) {
        self.bytes.extend(header(HEADER_BYTES, kind, NLM_F_REQUEST, sequence));
        self.bytes.extend(generic(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES));
    }

    /// Number of the last step.
    fn sequence(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }
}

/// The kernel's number of a family.
pub(super) const fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// One nf_tables request.
pub(super) fn request(
    family: Family,
    kind: u16,
    flags: u16,
    sequence: u32,
    attributes: &Attributes,
) -> Vec<u8> {
    let bytes = HEADER_BYTES + attributes.0.len();
    let mut message = header(bytes, NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | flags, sequence);
    message.extend(generic(number_of(family), 0));
    message.extend(&attributes.0);
    message
}

/// `struct nlmsghdr`.
fn header(bytes: usize, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    header.extend(kind.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend(sequence.to_ne_bytes());
    header.extend(0_u32.to_ne_bytes());
    header
}

/// `struct nfgenmsg`: family, version 0, resource.
fn generic(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}
