//! What others change of ours, told by the kernel as it happens, so that it is put back at once and not at the next round.
//!
//! A notice carries the port of the socket that asked for the change: changes of our own are told apart by it.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use types::{HostVeth, VethPrefix};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE` and the bits of
/// `RTNLGRP_IPV6_RULE`, `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF`, of `linux/rtnetlink.h`.
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000 | 0x80_0000 | 0x100_0000;
/// `NFNLGRP_NFTABLES`, the seventh group, of `linux/netfilter/nfnetlink.h`.
const NETFILTER_GROUPS: u32 = 1 << 6;
/// Longer than any notice.
const NOTICE_BYTES: usize = 64 * 1024;
/// Room for notices that wait: transactions of others with thousands of rules come as one burst.
const QUEUE_BYTES: usize = 4 << 20;

/// Whether a datagram of notices is about something of ours.
#[derive(Debug)]
enum Judge {
    Routes(crate::kernel::RouteJudge),
    Netfilter(BTreeSet<u32>),
}

/// How changes of our own are told from those of others, and our links from theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// The ports of our own sockets.
    pub ports: BTreeSet<u32>,
    /// First characters of host veths: of the setting, and of those that were there at the start.
    pub pod_if_prefixes: BTreeSet<VethPrefix>,
    /// MTU of ENIs, in bytes.
    pub mtu: u32,
    /// MTU of host veths, in bytes.
    pub pod_mtu: u32,
}

impl Ours {
    /// The name, if it is one that host ends of ours have.
    pub(crate) fn host_end(&self, name: &str) -> Option<HostVeth> {
        let of_ours = |found: &HostVeth| found.prefix().is_some_and(|it| self.pod_if_prefixes.contains(&it));
        HostVeth::found(name).filter(of_ours)
    }
}

/// A socket that listens to the changes in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    judge: Judge,
    buffer: Vec<u8>,
}

impl Watch {
    /// Of links, addresses, routes, rules, and the kernel settings of which it tells.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn routes(ours: Ours) -> io::Result<Self> {
        let mut watch =
            Self::open(NETLINK_ROUTE, ROUTE_GROUPS, Judge::Routes(crate::kernel::RouteJudge::new(ours)))?;
        // After the socket is there, so that no change falls in between.
        if let Judge::Routes(judge) = &mut watch.judge {
            judge.learn();
        }
        Ok(watch)
    }

    /// Of our nftables table.
    ///
    /// # Errors
    /// When the kernel gives no socket, or no notices without `NET_ADMIN`.
    pub fn netfilter(ours: Ours) -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER, NETFILTER_GROUPS, Judge::Netfilter(ours.ports))
    }

    fn open(protocol: isize, groups: u32, judge: Judge) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        // The second way obeys the host's limit, the first needs a privilege outside of containers' own user namespaces.
        set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES)
            .or_else(|_not_privileged| set_socket_recv_buffer_size(&socket, QUEUE_BYTES))?;
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, judge, buffer: vec![0; NOTICE_BYTES] })
    }

    /// Waits until somebody else has changed something of ours, or may have.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self) -> io::Result<()> {
        while !self.read(0)? {}
        Ok(())
    }

    /// Reads what has come by now: notices of one burst are one word.
    ///
    /// # Errors
    /// As for [`Self::wait`].
    pub fn read_on(&mut self) -> io::Result<()> {
        loop {
            match self.read(libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one datagram; whether it is about something of ours.
    fn read(&mut self, flags: libc::c_int) -> io::Result<bool> {
        match self.socket.recv(&mut &mut self.buffer[..], flags) {
            Ok(length) => {
                let datagram = self.buffer.get(..length).unwrap_or_default();
                Ok(match &mut self.judge {
                    Judge::Routes(judge) => judge.touches_ours(datagram),
                    Judge::Netfilter(ports) => crate::netfilter::touches_ours(datagram, ports),
                })
            }
            // Notices came faster than they were read, and some are lost.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The port of a socket, which gets one now if it has none.
pub(crate) fn port(socket: &mut Socket) -> io::Result<u32> {
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address)?;
    match address.port_number() {
        0 => socket.bind_auto().map(|address| address.port_number()),
        port => Ok(port),
    }
}
