//! Kernel settings. Those of the host are read, compared, and written where they differ; those of links are written, by directories that are
//! opened once. The files are those of the calling thread's network namespace, or of the one that opened the directory.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Once;

use rustix::fs::{Mode, OFlags};

use crate::model::Sysctl;

/// Where a container finds settings that it may write: its own `/proc/sys` is read-only, and a runtime refuses mounts
/// inside `/proc`, so the node's `/proc/sys/net` is mounted here.
const MOUNTED: &str = "/host/proc/sys";
const OWN: &str = "/proc/sys";

fn root() -> &'static Path {
    let mounted = Path::new(MOUNTED);
    if mounted.join("net").exists() { mounted } else { Path::new(OWN) }
}

/// What a setting says, by its path below `/proc/sys`.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(root().join(path))?.trim().to_owned())
}

/// Sets it if it says something else. Returns whether it was written.
pub(super) fn put(sysctl: &Sysctl) -> io::Result<bool> {
    put_below(root(), sysctl)
}

/// The same where the settings are mounted at `root`, in place of `/proc/sys`.
///
/// # Errors
/// As the kernel says; `NotFound` for a setting that it does not have.
pub fn put_below(root: &Path, sysctl: &Sysctl) -> io::Result<bool> {
    let path = root.join(&sysctl.path);
    if fs::read_to_string(&path)?.trim() == sysctl.value {
        return Ok(false);
    }
    fs::write(path, sysctl.value)?;
    Ok(true)
}

/// Settings of the host's links, in the network namespace of the thread that asks first.
///
/// Their directories are opened once: on each way down from the root the kernel compares the entry of every network namespace that it knows
/// with the wanted one, because they all have the same name.
#[derive(Debug, Default)]
pub(super) struct LinkSettings {
    ipv4: OnceCell<OwnedFd>,
    ipv6: OnceCell<OwnedFd>,
}

impl LinkSettings {
    /// A setting of IPv6.
    pub(super) fn set_ipv6(&self, link: &str, name: &'static str, value: &str) -> io::Result<()> {
        set((&self.ipv6, "ipv6"), link, name, value)
    }

    /// Has the host check of packets that come in by a link no more than that it knows some way back: which one is a matter of rules,
    /// that a strict check does not ask.
    pub(super) fn check_sources_loosely(&self, link: &str) -> io::Result<()> {
        set((&self.ipv4, "ipv4"), link, "rp_filter", "2")
    }

    /// Settings of a branch ENI's link: nobody on it may tell the host where the way goes, and the host is no router on it.
    pub(super) fn settle_branch(&self, link: &str) -> io::Result<()> {
        for name in ["accept_ra", "accept_redirects", "forwarding"] {
            self.set_ipv6(link, name, "0")?;
        }
        self.check_sources_loosely(link)
    }
}

/// Sets something of a link. A kernel without the family has no such file and no need of it.
///
/// Where settings cannot be written, pods are wired all the same, and the log says once what is amiss.
fn set(
    (opened, family): (&OnceCell<OwnedFd>, &str),
    link: &str,
    name: &'static str,
    value: &str,
) -> io::Result<()> {
    static TOLD: Once = Once::new();
    let write = || {
        let directory = match opened.get() {
            Some(directory) => directory,
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let path = root().join("net").join(family).join("conf");
                let directory = rustix::fs::open(path, flags, Mode::empty())?;
                opened.get_or_init(|| directory)
            }
        };
        let path = Path::new(link).join(name);
        let file = rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(value.as_bytes())
    };
    match write() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ) =>
        {
            TOLD.call_once(|| {
                tracing::warn!(%error, name, "settings of pods' links cannot be made: mount /proc/sys/net at {MOUNTED}/net");
            });
            Ok(())
        }
        written => written,
    }
}
