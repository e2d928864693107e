//! The pod's network namespace: opened once by path, entered once by a thread that ends there.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system on which namespaces are files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Settings of IPv6 by interface ("IP Sysctl" of the kernel's documentation).
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// Where of them IPv6 is switched off, "1", or on: for interfaces to come, and for the loopback.
const IPV6_SWITCHES: [&str; 2] = ["default/disable_ipv6", "lo/disable_ipv6"];

/// This process's own network namespace.
const OWN: &str = "/proc/self/ns/net";

/// A network namespace that is not the plugin's own.
#[derive(Debug)]
pub(crate) struct PodNetns(OwnedFd);

/// A `CNI_NETNS` that cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("failed to open netns {path:?}")]
    Open { path: String, source: Errno },
    #[error("{path:?} is not a network namespace")]
    NotNetns { path: String },
    #[error("plugin's netns and netns from CNI_NETNS should not be the same")]
    Own,
    #[error("cannot enter the netns")]
    Enter(#[source] Errno),
    #[error("cannot open a netlink socket in the netns")]
    Socket(#[source] Errno),
    #[error("cannot switch IPv6 on in the netns by {path}")]
    Ipv6 { path: String, source: std::io::Error },
    #[error("the thread in the netns died")]
    Thread,
}

impl PodNetns {
    /// Opens a namespace and makes sure that it is one, and another than the plugin's own.
    pub(crate) fn open(path: &str) -> Result<Self, NetnsError> {
        // Not to be held up by a FIFO that somebody put there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        if rustix::fs::fstatfs(&fd).map_err(failed)?.f_type != NSFS_MAGIC {
            return Err(NetnsError::NotNetns { path: path.to_owned() });
        }
        let own =
            rustix::fs::stat(OWN).map_err(|source| NetnsError::Open { path: OWN.to_owned(), source })?;
        let pods = rustix::fs::fstat(&fd).map_err(failed)?;
        if (pods.st_dev, pods.st_ino) == (own.st_dev, own.st_ino) {
            return Err(NetnsError::Own);
        }
        Ok(Self(fd))
    }

    /// A `NETLINK_ROUTE` socket that acts in the namespace, whoever holds it.
    ///
    /// With `allow_ipv6`, IPv6 is on for the interface that is about to be made, and for the loopback. The daemon cannot see to
    /// that: it has no way into the pod's `/proc/sys`, and netlink tells these settings and does not take them.
    ///
    /// The thread that opens it never comes back, so there is no way back that could fail.
    pub(crate) fn netlink(&self, allow_ipv6: bool) -> Result<OwnedFd, NetnsError> {
        thread::scope(|scope| scope.spawn(|| self.open_netlink_inside(allow_ipv6)).join())
            .ok()
            .ok_or(NetnsError::Thread)?
    }

    fn open_netlink_inside(&self, allow_ipv6: bool) -> Result<OwnedFd, NetnsError> {
        // The kernel answers EINVAL for a namespace of another kind.
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(NetnsError::Enter)?;
        if allow_ipv6 {
            switch_ipv6_on()?;
        }
        // Protocol 0, the default, is NETLINK_ROUTE.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(NetnsError::Socket)
    }
}

/// Writes what says otherwise, in the namespace of this thread. A kernel without IPv6 has no such files, and the daemon says so.
///
/// The way down from the root is gone once: on it the kernel compares the entries of all network namespaces, which have the same name.
fn switch_ipv6_on() -> Result<(), NetnsError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let settings = match rustix::fs::open(IPV6_SETTINGS, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened
            .map_err(|source| NetnsError::Ipv6 { path: IPV6_SETTINGS.to_owned(), source: source.into() })?,
    };
    for switch in IPV6_SWITCHES {
        let failed = |source| NetnsError::Ipv6 { path: format!("{IPV6_SETTINGS}/{switch}"), source };
        let open = |flags| rustix::fs::openat(&settings, switch, flags | OFlags::CLOEXEC, Mode::empty());
        let mut value = [0];
        match open(OFlags::RDONLY).and_then(|file| rustix::io::read(file, &mut value)) {
            Ok(_) if value == *b"0" => {}
            Ok(_) => {
                let file = open(OFlags::WRONLY).map_err(|errno| failed(errno.into()))?;
                File::from(file).write_all(b"0").map_err(failed)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

impl AsFd for PodNetns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_plugins_own_namespace_is_refused_under_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("ns");
        std::os::unix::fs::symlink(OWN, &link).unwrap();

        for path in [OWN, "/proc/thread-self/ns/net", link.to_str().unwrap()] {
            assert!(matches!(PodNetns::open(path), Err(NetnsError::Own)), "{path}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();

        for path in [&file, &fifo, &dir.path().to_path_buf()] {
            let error = PodNetns::open(path.to_str().unwrap()).unwrap_err();
            assert!(matches!(error, NetnsError::NotNetns { .. }), "{path:?}: {error}");
        }
        assert!(matches!(PodNetns::open("/nonexistent"), Err(NetnsError::Open { .. })));
        assert!(matches!(PodNetns::open("a\0b"), Err(NetnsError::Open { .. })));
    }

    #[test]
    fn a_namespace_of_another_kind_cannot_be_entered() {
        let pid_namespace = PodNetns::open("/proc/self/ns/pid").unwrap();

        assert!(matches!(pid_namespace.netlink(false), Err(NetnsError::Enter(_))));
    }
}
