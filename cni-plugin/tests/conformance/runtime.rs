//! A container runtime, as far as one call goes.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::{Daemon, Manner};

/// The program under its own name.
const PLUGIN: &str = env!("CARGO_BIN_EXE_aws-cni");

/// A directory with a socket that may be there and a queue that may be.
pub(crate) struct Node {
    dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.dir.path().join("state/queue")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn daemon(&self, manner: Manner) -> Daemon {
        Daemon::start(&self.socket(), manner)
    }

    /// Names of the queue's files, without the lock.
    pub(crate) fn queued(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.queue()) else { return Vec::new() };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n != wire::queue::LOCK_FILE).collect()
    }

    /// A call with all that a runtime gives, for a sandbox `abc`.
    pub(crate) fn call(&self, command: &str) -> Call {
        let mut call = Call { name: PLUGIN, env: Vec::new(), stdin: Vec::new(), config: Value::Null };
        for (name, value) in [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/nonexistent/netns"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=sample-pod;K8S_POD_UID=u-1"),
            ("CNI_PATH", "/opt/cni/bin"),
        ] {
            call = call.env(name, value);
        }
        call.config = json!({
            "cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", "mtu": "9001", "vethPrefix": "eni",
            "socket": self.socket(), "queueDir": self.queue(), "timeoutSeconds": 5,
        });
        call
    }
}

/// One call, to be changed before it is run.
pub(crate) struct Call {
    name: &'static str,
    env: Vec<(&'static str, String)>,
    stdin: Vec<u8>,
    config: Value,
}

impl Call {
    /// The file under which the runtime has found the plugin.
    pub(crate) fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self = self.without(name);
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.retain(|(n, _)| *n != name);
        self
    }

    pub(crate) fn key(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.config[name] = value.into();
        self
    }

    pub(crate) fn without_key(mut self, name: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(name);
        self
    }

    /// These bytes instead of the configuration.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self.config = Value::Null;
        self
    }

    /// Starts the plugin and gives it its input.
    pub(crate) fn start(self) -> Child {
        let mut command = Command::new(PLUGIN);
        command.arg0(self.name).env_clear().envs(self.env);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let bytes =
            if self.config.is_null() { self.stdin } else { serde_json::to_vec(&self.config).unwrap() };
        // A plugin that has seen enough does not read the rest.
        drop(child.stdin.take().unwrap().write_all(&bytes));
        child
    }

    pub(crate) fn run(self) -> Ended {
        Ended::wait(self.start())
    }
}

/// What came out of a call.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn wait(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1)), "exit status {:?}", output.status);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { success: code == Some(0), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Success without output, as the specification has it for all but ADD and VERSION.
    #[track_caller]
    pub(crate) fn is_silent_success(&self) {
        assert!(self.success, "{}", self.stdout);
        assert_eq!((self.stdout.as_str(), self.stderr.as_str()), ("", ""));
    }

    /// The specification's error object, and nothing beside it.
    #[track_caller]
    pub(crate) fn is_error(&self, code: u32, reason: &str) -> Value {
        assert!(!self.success, "{}", self.stdout);
        let error = self.json();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().unwrap().ends_with(&format!("[{reason}]")), "{error}");
        let keys = ["cniVersion", "code", "msg", "details"];
        assert!(error.as_object().unwrap().keys().all(|k| keys.contains(&k.as_str())), "{error}");
        error
    }
}

/// A network namespace that lives as long as this value.
pub(crate) struct Netns(OwnedFd);

impl Netns {
    /// Made by a thread that leaves its own and ends.
    pub(crate) fn new() -> Result<Self, String> {
        let made = std::thread::spawn(|| {
            unshare(rustix::thread::UnshareFlags::NEWNET)?;
            std::fs::File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().unwrap().map_err(|e| format!("cannot make a network namespace: {e}"))?;
        Ok(Self(file.into()))
    }

    /// A path by which another process finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// The lines of a file of `/proc/net`, as seen from inside.
    pub(crate) fn proc_net(&self, name: &str) -> String {
        let path = Path::new("/proc/thread-self/net").join(name);
        self.run(|| std::fs::read_to_string(path).unwrap())
    }

    /// Runs something on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                let fd = std::os::fd::AsFd::as_fd(&self.0);
                rustix::thread::move_into_link_name_space(fd, Some(kind)).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

/// Moves the calling thread into new namespaces.
#[expect(unsafe_code, reason = "unshare is unsafe because of CLONE_FILES, which nobody passes here")]
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> std::io::Result<()> {
    // SAFETY: the file descriptor table stays shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}
