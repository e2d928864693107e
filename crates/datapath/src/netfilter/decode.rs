//! Netlink messages and attributes as the kernel sends them, read without trust in their lengths.

use super::constants::NLA_TYPE_MASK;

/// One message.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Of the socket that the message is about.
    pub(super) port: u32,
    /// What follows `struct nlmsghdr`.
    pub(super) body: &'a [u8],
}

/// The messages of a datagram, up to the first that is cut.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(native_u32(rest)?).ok()?;
        let message = rest.get(..length).filter(|m| m.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let (kind, flags) = (native_u16(&message[4..])?, native_u16(&message[6..])?);
        let (sequence, port) = (native_u32(&message[8..])?, native_u32(&message[12..])?);
        Some(Message { kind, flags, sequence, port, body: &message[16..] })
    })
}

/// The attributes of a list, up to the first that is cut, with their kinds.
pub(super) fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let length = usize::from(native_u16(rest)?);
        let kind = native_u16(rest.get(2..)?)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub(super) fn attribute(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The attribute at the end of a path of kinds.
pub(super) fn path<'a>(list: &'a [u8], kinds: &[u16]) -> Option<&'a [u8]> {
    kinds.iter().try_fold(list, |list, kind| attribute(list, *kind))
}

/// A number in network order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// A text up to its NUL.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}

/// A number in the host's order.
pub(super) fn native_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn native_u16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode::{Attributes, request};
    use super::*;

    #[test]
    fn what_was_encoded_is_read_back() {
        let inner = Attributes::default().number(7, 0x0102_0304);
        let list = Attributes::default().text(1, "name").nest(2, &inner);
        let bytes = request(crate::model::Family::V4, 3, 0, 9, &list);
        let message = messages(&bytes).next().unwrap();

        assert_eq!((message.kind, message.sequence), (0x0a03, 9));
        assert_eq!(text(attribute(&message.body[4..], 1).unwrap()), Some("name"));
        assert_eq!(number(path(&message.body[4..], &[2, 7]).unwrap()), Some(0x0102_0304));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail_or_run_on(bytes in prop::collection::vec(0_u8..8, 0..200)) {
            prop_assert!(messages(&bytes).take(100).count() < 100);
            prop_assert!(attributes(&bytes).take(100).count() < 100);
        }
    }
}
