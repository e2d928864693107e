//! The plugin under the name `loopback`: the sandbox's `lo` is set up, as the reference plugin of that name does.
//!
//! Runtimes run a `loopback` for every sandbox (containerd unless `use_internal_loopback` is set), and not every node image brings one: without
//! it no pod starts, so `ipamd install` links this name to ours where the node has none. No daemon is asked, and nothing is logged.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use types::{Reason, SandboxKey};
use wire::Failure;

use crate::config::Config;
use crate::environment::{Command, Parameters};
use crate::error::bad_key;
use crate::netns::PodNetns;
use crate::output;

/// From `linux/netlink.h`, `linux/rtnetlink.h` and `linux/if.h`.
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;
/// The loopback is the first link of every namespace (`LOOPBACK_IFINDEX`).
const LO: i32 = 1;
/// Bytes of `struct nlmsghdr` and `struct ifinfomsg` together: all there is of a question, and the head of an answer.
const MESSAGE_BYTES: usize = 32;
const LENGTH: u32 = 32;

/// What a call is answered with.
pub(crate) fn serve(command: Command, parameters: &Parameters, config: &Config) -> Result<Vec<u8>, Failure> {
    config.speaks(command)?;
    let Parameters { container_id, if_name, netns, .. } = parameters;
    if matches!(command, Command::Add | Command::Check | Command::Del) {
        SandboxKey::new(&config.name, container_id, if_name).map_err(bad_key)?;
    }
    match command {
        Command::Add => {
            set(&PodNetns::open(netns)?, IFF_UP)?;
            Ok(config.prev_result.as_ref().map_or_else(
                || output::loopback_result(config.version, netns),
                |previous| output::passed_on(config.version, previous),
            ))
        }
        Command::Check if ask(&PodNetns::open(netns)?, RTM_GETLINK, 0, 0)? & IFF_UP == 0 => {
            Err(Failure::new(Reason::Drifted, "lo is down in the sandbox"))
        }
        // The namespace may be gone, and lo with it: a DEL has nothing to fail for.
        Command::Del => {
            let _gone = PodNetns::open(netns).map_err(Failure::from).and_then(|netns| set(&netns, 0));
            Ok(Vec::new())
        }
        Command::Check | Command::Gc | Command::Status | Command::Version => Ok(Vec::new()),
    }
}

fn set(netns: &PodNetns, up: u32) -> Result<(), Failure> {
    ask(netns, RTM_NEWLINK, up, IFF_UP).map(drop)
}

/// Sends one message about `lo` to the kernel; the flags of the link that it answers with, or 0 for a plain yes.
fn ask(netns: &PodNetns, kind: u16, flags: u32, change: u32) -> Result<u32, Failure> {
    let failed = |errno: Errno| {
        Failure::new(Reason::KernelRefused, "cannot work on lo in the sandbox")
            .with_details(errno.to_string())
    };
    let socket = netns.netlink(false)?;
    // A question is answered with the link; a change only where that is asked for.
    let wish = if kind == RTM_GETLINK { NLM_F_REQUEST } else { NLM_F_REQUEST | NLM_F_ACK };
    rustix::net::send(&socket, &message(kind, wish, flags, change), SendFlags::empty()).map_err(failed)?;
    // The kernel has answered before `send` returns; what of an answer does not fit is cut off.
    let mut answer = [0; MESSAGE_BYTES];
    rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT).map_err(failed)?;
    match u16::from_ne_bytes([answer[4], answer[5]]) {
        RTM_NEWLINK => Ok(word(&answer, 24)),
        NLMSG_ERROR => match word(&answer, 16).cast_signed() {
            0 => Ok(0),
            error => Err(failed(Errno::from_raw_os_error(error.saturating_neg()))),
        },
        other => Err(Failure::new(Reason::Internal, format!("the kernel answers with message {other}"))),
    }
}

/// `struct nlmsghdr`, then `struct ifinfomsg`.
fn message(kind: u16, wish: u16, flags: u32, change: u32) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..4].copy_from_slice(&LENGTH.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&wish.to_ne_bytes());
    message[20..24].copy_from_slice(&LO.to_ne_bytes());
    message[24..28].copy_from_slice(&flags.to_ne_bytes());
    message[28..].copy_from_slice(&change.to_ne_bytes());
    message
}

fn word(bytes: &[u8; MESSAGE_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
