//! Kernel settings: read, compare, write only what differs. The files are those of the calling thread's namespace.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Once;

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

/// Keeps a new host link from taking router advertisements: a pod could otherwise make itself the node's IPv6
/// gateway (CVE-2020-10749).
pub(super) fn refuse_router_advertisements(link: &str) -> io::Result<()> {
    set_of_link("ipv6", link, "accept_ra", "0")
}

/// Has the host check of packets that come in by a link no more than that it knows some way back: which one is a matter of rules, that a
/// strict check does not ask.
pub(super) fn check_sources_loosely(link: &str) -> io::Result<()> {
    set_of_link("ipv4", link, "rp_filter", "2")
}

/// Settings of a branch ENI's link: nobody on it may tell the host where the way goes, and the host is no router on it.
pub(super) fn settle_branch(link: &str) -> io::Result<()> {
    refuse_router_advertisements(link)?;
    set_of_link("ipv6", link, "accept_redirects", "0")?;
    set_of_link("ipv6", link, "forwarding", "0")?;
    check_sources_loosely(link)
}

/// Sets something of a link. A kernel without the family has no such file and no need of it.
///
/// Where settings cannot be written, pods are wired all the same, and the log says once what is amiss.
fn set_of_link(family: &str, link: &str, name: &str, value: &str) -> io::Result<()> {
    static TOLD: Once = Once::new();
    match fs::write(root().join("net").join(family).join("conf").join(link).join(name), value) {
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
