//! What the Go version has left in tables of `iptables-legacy`. It is looked for and never changed: such a table can only be
//! exchanged as a whole, and only by who has the lock of the `iptables` programs, or a change that somebody else makes meanwhile is
//! undone.
//!
//! The kernel tells a table by socket options (`linux/netfilter_ipv4/ip_tables.h`), as one blob in which the names of chains and the
//! comments of rules stand as they are. Only tables that are there are asked for: the kernel makes one for who asks.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::leftovers::{is_its_chain, is_its_comment};

/// Where the kernel lists the tables of this thread's network namespace.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// `IPT_SO_GET_INFO`.
const GET_INFO: c_int = 64;
/// `IPT_SO_GET_ENTRIES`.
const GET_ENTRIES: c_int = 65;
/// Length of a table's name in both structures.
const NAME_BYTES: usize = 32;
/// Length of `struct ipt_getinfo`, whose last number is the length of all entries.
const INFO_BYTES: usize = 84;
/// Where `struct ipt_get_entries` has the entries, after the name and their length.
const ENTRIES_AT: usize = 40;
/// How often a table is asked for that others change meanwhile.
const TRIES: u32 = 5;
/// What all names and comments of the Go version begin with.
const BEGINNING: &[u8] = b"AWS";
/// No name of a chain and no comment of its is longer.
const TEXT_BYTES: usize = 64;

/// The tables in which something of the Go version's is.
pub(super) fn its_tables() -> io::Result<BTreeSet<String>> {
    let names = match std::fs::read_to_string(TABLES) {
        // A kernel without them has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        names => names?,
    };
    let mut its = BTreeSet::new();
    if names.trim().is_empty() {
        return Ok(its);
    }
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    for name in names.lines() {
        its.extend(holds_its(&entries(&socket, name)?).then(|| name.to_owned()));
    }
    Ok(its)
}

/// Whether a table's entries have a chain or a comment of the Go version's.
fn holds_its(entries: &[u8]) -> bool {
    let found = entries.windows(BEGINNING.len()).enumerate().filter(|(_, bytes)| *bytes == BEGINNING);
    let mut texts = found.filter_map(|(at, _)| {
        let text = entries.get(at..)?.iter().take(TEXT_BYTES).take_while(|byte| **byte != 0).copied();
        String::from_utf8(text.collect()).ok()
    });
    texts.any(|text| is_its_chain(&text) || is_its_comment(&text))
}

/// All entries of a table.
fn entries(socket: &OwnedFd, table: &str) -> io::Result<Vec<u8>> {
    for _ in 0..TRIES {
        let mut info = named(table, INFO_BYTES);
        get(socket, GET_INFO, &mut info)?;
        let length = info.last_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let Ok(bytes) = usize::try_from(length) else { break };
        let mut all = named(table, ENTRIES_AT + bytes);
        all.iter_mut().skip(NAME_BYTES).zip(length.to_ne_bytes()).for_each(|(to, byte)| *to = byte);
        match get(socket, GET_ENTRIES, &mut all) {
            // It has another length by now.
            Err(Errno::AGAIN) => {}
            got => return got.map(|()| all.split_off(ENTRIES_AT)).map_err(io::Error::from),
        }
    }
    Err(io::Error::other(format!("the table {table} changes faster than it can be read")))
}

/// A buffer that begins with a table's name, which has room for its closing NUL.
fn named(table: &str, bytes: usize) -> Vec<u8> {
    let mut buffer: Vec<u8> = table.bytes().take(NAME_BYTES - 1).collect();
    buffer.resize(bytes, 0);
    buffer
}

/// Asks for a socket option of the IP level whose question and answer are one buffer.
fn get(socket: &OwnedFd, option: c_int, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_too_long| Errno::OVERFLOW)?;
    let (fd, value) = (socket.as_raw_fd(), buffer.as_mut_ptr().cast());
    #[expect(
        unsafe_code,
        reason = "the options are the kernel's netfilter's, and nobody has a function for them"
    )]
    // SAFETY: the kernel writes at most `length` bytes, which the buffer has, and the descriptor is open.
    let answer = unsafe { libc::getsockopt(fd, libc::IPPROTO_IP, option, value, &raw mut length) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_chains_and_comments_are_found_wherever_they_stand_and_those_of_others_are_not() {
        for its in ["AWS-SNAT-CHAIN-0", "AWS-CONNMARK-CHAIN-12", "AWS, primary ENI", "AWS SNAT CHAIN"] {
            assert!(holds_its(format!("\0\u{1}xAW{its}\0\0").as_bytes()), "{its}");
            assert!(holds_its(its.as_bytes()), "{its}");
        }
        for other in ["AWS-SNAT-CHAIN-MINE", "AWS, my own rule", "KUBE-POSTROUTING", "AW", ""] {
            assert!(!holds_its(format!("\0{other}\0").as_bytes()), "{other}");
        }
    }
}
