//! Kernel settings: read, compare, write only what differs.

use std::fs;
use std::io;
use std::path::Path;

use crate::model::Sysctl;

/// Sets it if it says something else. Returns whether it was written.
pub(super) fn put(sysctl: &Sysctl) -> io::Result<bool> {
    let path = Path::new("/proc/sys").join(&sysctl.path);
    if fs::read_to_string(&path)?.trim() == sysctl.value {
        return Ok(false);
    }
    fs::write(&path, sysctl.value)?;
    Ok(true)
}
