//! Network namespaces: entered by threads that die inside, so there is no way back to forget.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::{LabError, keeper};

/// Where named namespaces are; private to the lab.
pub const NETNS_DIR: &str = "/run/netns";

/// What was entered besides namespaces for network and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// A user namespace of our own, in which we are root.
    pub user_namespace: bool,
}

/// Leaves the machine's namespaces for our own: user (unless root), network and mount, with a private `/run`. Call it first in
/// `main`, before any thread exists. Everything in them vanishes with the process and its children. Returns which they are.
///
/// # Errors
/// When the kernel forbids it.
pub fn enter_lab() -> Result<Entered, LabError> {
    let root = rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let own = if root { UnshareFlags::empty() } else { UnshareFlags::NEWUSER };
    unshare(own | UnshareFlags::NEWNET | UnshareFlags::NEWNS).map_err(LabError::doing(
        "make namespaces; that needs root, or a kernel that allows user namespaces",
    ))?;
    if !root {
        let put = |path: &str, text: &str| {
            std::fs::write(path, text).map_err(LabError::doing(format!("write {path}")))
        };
        put("/proc/self/setgroups", "deny")?;
        put("/proc/self/uid_map", &format!("0 {uid} 1"))?;
        put("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(LabError::doing("make mounts private"))?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID, None)
        .map_err(LabError::doing("mount a private /run"))?;
    std::fs::create_dir_all(NETNS_DIR).map_err(LabError::doing("make the directory of namespaces"))?;
    program(Command::new("ip").args(["link", "set", "lo", "up"]), None)?;
    Ok(Entered { user_namespace: !root })
}

/// Puts an empty directory over `/var/lib/cni`, where runtimes keep results of plugins; over `/var/lib` if it does not exist.
/// The lab sees it, the machine does not.
///
/// # Errors
/// When the kernel forbids it.
pub fn hide_cni_results() -> Result<(), LabError> {
    let results = Path::new("/var/lib/cni");
    let place = if results.exists() { results } else { Path::new("/var/lib") };
    mount("tmpfs", place, "tmpfs", MountFlags::NOSUID, None)
        .map_err(LabError::doing(format!("mount a private {}", place.display())))
}

#[expect(
    unsafe_code,
    reason = "rustix marks unshare as unsafe because of CLONE_FILES, which is not used here"
)]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: no flag that would stop sharing the descriptor table with other threads.
    unsafe { unshare_unsafe(flags) }
}

/// A network namespace with a name; gone when dropped and nothing uses it any more.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    /// Somebody else has made it and will remove it.
    foreign: bool,
}

impl Netns {
    /// Makes one, with its loopback up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str) -> Result<Self, LabError> {
        let path = Path::new(NETNS_DIR).join(name);
        let doing = || format!("make the namespace {name}");
        let made = std::thread::scope(|scope| {
            let maker = scope.spawn(|| -> std::io::Result<()> {
                unshare(UnshareFlags::NEWNET)?;
                File::create(&path)?;
                mount_bind("/proc/thread-self/ns/net", &path)?;
                Ok(())
            });
            maker.join().unwrap_or_else(|_panic| Err(std::io::Error::other("the thread panicked")))
        });
        made.map_err(LabError::doing(doing()))?;
        let file = File::open(&path).map_err(LabError::doing(doing()))?;
        let this = Self { name: name.to_owned(), file, foreign: false };
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// One of [`NETNS_DIR`] that somebody else has made, and will remove.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of_another(name: &str) -> Result<Self, LabError> {
        let file = File::open(Path::new(NETNS_DIR).join(name));
        let file = file.map_err(LabError::doing(format!("open the namespace {name}")))?;
        Ok(Self { name: name.to_owned(), file, foreign: true })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs a closure inside, on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot enter, or panics.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let ran = std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> std::io::Result<T> {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(inside())
            });
            thread.join().unwrap_or_else(|_panic| Err(std::io::Error::other("the thread panicked")))
        });
        ran.map_err(LabError::doing(format!("run in {}", self.name)))
    }

    /// Starts a program inside that ends, at the latest, with this process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> std::io::Result<Child> {
        keeper::spawn(&self.file, command)
    }

    /// Runs commands of `ip`, one a line, all or none reported.
    ///
    /// # Errors
    /// What `ip` says to the first one it refuses.
    pub fn ip(&self, lines: &str) -> Result<(), LabError> {
        self.feed("ip -batch -", lines).map(drop)
    }

    /// Loads rules with `nft`.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn nft(&self, text: &str) -> Result<(), LabError> {
        self.feed("nft -f -", text).map(drop)
    }

    /// Runs a program inside and returns what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn read(&self, line: &str) -> Result<String, LabError> {
        self.call(line, None)
    }

    /// Runs a program inside with this input and returns what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn feed(&self, line: &str, input: &str) -> Result<String, LabError> {
        self.call(line, Some(input))
    }

    fn call(&self, line: &str, input: Option<&str>) -> Result<String, LabError> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        self.run(|| program(&mut command, input))?
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.foreign {
            return;
        }
        // Best effort: the mount namespace takes it along in any case.
        let path = self.path();
        let _unmounted = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        let _removed = std::fs::remove_file(&path);
    }
}

/// Runs a program to its end.
fn program(command: &mut Command, input: Option<&str>) -> Result<String, LabError> {
    let name = format!("{command:?}").replace('"', "");
    let fail = |source| LabError::System { doing: format!("run {name}"), source };
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(fail)?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        stdin.write_all(text.as_bytes()).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said =
        format!("{} {}", String::from_utf8_lossy(&output.stderr).trim(), input.unwrap_or_default().trim());
    Err(LabError::Program { program: name, said })
}
