//! A node: an instance's namespace with instance metadata and an EC2 endpoint inside, and the real daemon.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wire::{HEADER_BYTES, PROTOCOL, Reply, Report, Request, Verb};

use crate::ec2::{Instance, Server, serve as serve_ec2};
use crate::fabric::Fabric;
use crate::imds::{Facts, Imds, serve as serve_imds, serve_facts};
use crate::kube_api::{KubeApi, Page};
use crate::netns::Netns;
use crate::{LabError, patience};

/// Where the node finds EC2.
const EC2_PORT: u16 = 8500;
/// Where it finds the Kubernetes API.
const KUBE_PORT: u16 = 8600;
/// Where the daemon serves its metrics.
const METRICS_PORT: u16 = 61678;
/// Where it serves introspection.
const INTROSPECTION_PORT: u16 = 61679;
/// In the run directory, what `/etc/cni/net.d` is on a node.
const CONF_DIR: &str = "net.d";
/// How long what happens at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long what waits for more than a minute may take.
const LONG: Duration = Duration::from_secs(100);
/// How long the daemon may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(10);

/// One node.
#[derive(Debug)]
pub struct Node {
    netns: Arc<Netns>,
    instance: Instance,
    imds: Imds,
    /// Ours, unless another cloud runs the instance.
    _ec2: Option<Server>,
    run_dir: PathBuf,
    /// Behind a lock, so that it can be killed while pods are being added.
    daemon: Mutex<Option<Child>>,
}

/// A program of ours: by environment variable, or beside the running one.
///
/// # Errors
/// When it is in neither place.
pub fn binary(variable: &str, name: &str) -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().map_err(LabError::doing("find the running program"))?;
    let beside =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.exists());
    beside.ok_or_else(|| {
        LabError::Otherwise(format!("{name} is not built; set {variable}, or use `cargo xtask`"))
    })
}

impl Node {
    /// Launches a node.
    ///
    /// # Errors
    /// When EC2, the kernel or a program refuses.
    pub fn launch(fabric: &Fabric, name: &str, instance_type: &str) -> Result<Self, LabError> {
        let netns = Arc::new(Netns::create(name)?);
        let instance = fabric.launch(&netns, instance_type)?;
        let imds = serve_imds(listen_for_metadata(&netns)?, fabric.ec2().clone(), instance.id.clone());
        let imds = imds.map_err(LabError::doing("serve instance metadata"))?;
        let api = listen(&netns, &format!("127.0.0.1:{EC2_PORT}"))?;
        let ec2 = serve_ec2(api, fabric.ec2().clone(), Some(instance.id.clone()));
        let ec2 = ec2.map_err(LabError::doing("serve EC2"))?;
        Self::assemble(netns, instance, imds, Some(ec2))
    }

    /// A node on an instance that another cloud runs: here are its namespace, its links and its metadata. The daemon
    /// finds that cloud's EC2 by its settings.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn adopt(fabric: &Fabric, netns: Arc<Netns>, facts: Facts) -> Result<Self, LabError> {
        let instance = facts.instance.clone();
        fabric.adopt(&instance.id, &netns);
        facts.enis.iter().for_each(|eni| fabric.wiring().attached(&instance.id, eni));
        fabric.troubles()?;
        let imds = serve_facts(listen_for_metadata(&netns)?, facts);
        let imds = imds.map_err(LabError::doing("serve instance metadata"))?;
        Self::assemble(netns, instance, imds, None)
    }

    fn assemble(
        netns: Arc<Netns>,
        instance: Instance,
        imds: Imds,
        ec2: Option<Server>,
    ) -> Result<Self, LabError> {
        let run_dir = Path::new("/run/lab").join(netns.name());
        let conf_dir = run_dir.join(CONF_DIR);
        std::fs::create_dir_all(conf_dir).map_err(LabError::doing("make the run directory"))?;
        Ok(Self { netns, instance, imds, _ec2: ec2, run_dir, daemon: Mutex::default() })
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The same, to be kept.
    pub(crate) fn shared_netns(&self) -> Arc<Netns> {
        Arc::clone(&self.netns)
    }

    /// Its instance.
    #[must_use]
    pub const fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Its instance metadata.
    #[must_use]
    pub const fn imds(&self) -> &Imds {
        &self.imds
    }

    /// The daemon's directory: socket, delete queue, state.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where the node's runtime looks for conflists.
    fn conf_dir(&self) -> PathBuf {
        self.run_dir.join(CONF_DIR)
    }

    /// The conflist that the daemon writes.
    #[must_use]
    pub fn conflist(&self) -> PathBuf {
        self.conf_dir().join(ipamd::install::CONFLIST)
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        wire::socket_in(&self.run_dir)
    }

    /// An API server that the node reaches, and the kubeconfig that leads to it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn kube_api(&self) -> Result<(KubeApi, PathBuf), LabError> {
        let listener = listen(&self.netns, &format!("127.0.0.1:{KUBE_PORT}"))?;
        let api = KubeApi::serve(listener).map_err(LabError::doing("serve the Kubernetes API"))?;
        let kubeconfig = self.kubeconfig(&api.url())?;
        Ok((api, kubeconfig))
    }

    /// Has an API server that is another node's serve here too; gives the way there.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn join(&self, api: &mut KubeApi) -> Result<PathBuf, LabError> {
        let listener = listen(&self.netns, &format!("127.0.0.1:{KUBE_PORT}"))?;
        api.serve_also(listener).map_err(LabError::doing("serve the Kubernetes API"))?;
        self.kubeconfig(&format!("http://127.0.0.1:{KUBE_PORT}"))
    }

    /// A kubeconfig that leads to an API server.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, server: &str) -> Result<PathBuf, LabError> {
        let named = |key: &str, value: Value| json!([{"name": "lab", key: value}]);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": named("cluster", json!({"server": server})),
            "contexts": named("context", json!({"cluster": "lab", "user": "lab", "namespace": "kube-system"})),
            "users": named("user", json!({})),
        });
        let path = self.run_dir.join("kubeconfig");
        let written = std::fs::write(&path, kubeconfig.to_string());
        written.map_err(LabError::doing("write the kubeconfig"))?;
        Ok(path)
    }

    /// Starts the daemon with the lab's settings and these.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.start_daemon_under(&[], settings)
    }

    /// The same by a program that becomes the daemon, as `setpriv` does: its words come first.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon_under(&self, wrapper: &[&str], settings: &[(&str, &str)]) -> Result<(), LabError> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(LabError::doing("make the daemon's log"))?;
        let errors = log.try_clone().map_err(LabError::doing("make the daemon's log"))?;
        let daemon = binary("IPAMD_BIN", "ipamd")?;
        let mut command = match wrapper {
            [] => Command::new(daemon),
            [program, words @ ..] => {
                let mut command = Command::new(program);
                command.args(words).arg(daemon);
                command
            }
        };
        command.arg("run").env_clear().envs(self.environment()).envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        *self.daemon() = Some(self.netns.spawn(command).map_err(LabError::doing("start ipamd"))?);
        Ok(())
    }

    /// The daemon's environment.
    pub(crate) fn environment(&self) -> BTreeMap<&'static str, String> {
        let mut environment = Self::cloud();
        environment.extend([
            // As the Go version's manifest has it; tests set others.
            ("WARM_ENI_TARGET", "1".to_owned()),
            ("ENABLE_IPv4", "true".to_owned()),
            ("CLUSTER_NAME", "lab".to_owned()),
            ("IPAMD_RUN_DIR", self.run_dir.display().to_string()),
            ("HOST_CNI_CONFDIR_PATH", self.conf_dir().display().to_string()),
            ("HOST_CNI_BIN_PATH", "/usr/lib/cni".to_owned()),
            ("PATH", std::env::var("PATH").unwrap_or_default()),
        ]);
        environment
    }

    /// Where every node finds EC2 and its metadata, and as whom.
    #[must_use]
    pub fn cloud() -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("AWS_EC2_ENDPOINT", format!("http://127.0.0.1:{EC2_PORT}")),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254".to_owned()),
            ("AWS_ACCESS_KEY_ID", "LABKEY".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "lab-secret".to_owned()),
        ])
    }

    /// Runs a tool beside the daemon: `ipamd` with these words, in the node's namespace and with the daemon's environment.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn tool(&self, words: &[&str], settings: &[(&str, &str)]) -> Result<Output, LabError> {
        let mut command = Command::new(binary("IPAMD_BIN", "ipamd")?);
        command.args(words).env_clear().envs(self.environment()).envs(settings.iter().copied());
        let ran = self.netns.run(|| command.stdin(Stdio::null()).output())?;
        ran.map_err(LabError::doing("run a tool"))
    }

    /// Runs a shell command in the node's namespace, as an operator would: `ipamd` is in its path.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn shell(&self, line: &str) -> Result<String, LabError> {
        let ipamd = binary("IPAMD_BIN", "ipamd")?;
        let beside = ipamd.parent().unwrap_or(Path::new("/")).display().to_string();
        let mut command = Command::new("sh");
        command.args(["-euc", line]).env_clear().envs(self.environment());
        command.env("PATH", format!("{beside}:{}", std::env::var("PATH").unwrap_or_default()));
        let ran = self.netns.run(|| command.stdin(Stdio::null()).output())?;
        let output = ran.map_err(LabError::doing("run a shell"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(LabError::Program { program: line.to_owned(), said }),
        }
    }

    /// The daemon's process id, while it runs.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon().as_ref().map(Child::id)
    }

    /// Waits until an ADD would be served.
    ///
    /// # Errors
    /// When the daemon ends or takes too long; with the end of its log.
    pub fn wait_ready(&self) -> Result<(), LabError> {
        self.wait_until("ready", |answer| matches!(answer, Ok(Reply::Done)))
    }

    /// Waits until the daemon answers, whatever it says.
    ///
    /// # Errors
    /// When the daemon ends or takes too long; with the end of its log.
    pub fn wait_listening(&self) -> Result<(), LabError> {
        self.wait_until("listening", Result::is_ok)
    }

    fn wait_until(&self, what: &str, is: impl Fn(&Result<Reply, LabError>) -> bool) -> Result<(), LabError> {
        let until = Instant::now() + patience(READY);
        loop {
            let ready = self.ask(Verb::Status);
            if is(&ready) {
                return Ok(());
            }
            let ended = self.daemon().as_mut().is_none_or(|daemon| !matches!(daemon.try_wait(), Ok(None)));
            if ended || Instant::now() > until {
                return Err(LabError::Otherwise(format!(
                    "ipamd is not {what} ({ready:?}):\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the daemon without warning.
    pub fn kill_daemon(&self) {
        let taken = self.daemon().take();
        if let Some(mut daemon) = taken {
            let _gone = daemon.kill();
            let _reaped = daemon.wait();
        }
    }

    /// Asks the daemon to stop and waits for it. Returns how it has ended, if there was one.
    ///
    /// # Errors
    /// When it does not stop in time; it is then killed.
    pub fn stop_daemon(&self) -> Result<Option<ExitStatus>, LabError> {
        let taken = self.daemon().take();
        let Some(mut daemon) = taken else { return Ok(None) };
        if let Some(pid) = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw) {
            let _told = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + patience(STOP);
        while Instant::now() < until {
            if let Ok(Some(status)) = daemon.try_wait() {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.daemon() = Some(daemon);
        self.kill_daemon();
        Err(LabError::Otherwise("ipamd did not stop when told".to_owned()))
    }

    /// Asks the daemon something.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn ask(&self, verb: Verb) -> Result<Reply, LabError> {
        let request =
            Request { version: PROTOCOL, patience_ms: 5000, started_ns: u64::MAX, trace: None, verb };
        let exchange = || -> std::io::Result<Reply> {
            let mut stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(&wire::encode(&request).map_err(std::io::Error::other)?)?;
            let mut header = [0; HEADER_BYTES];
            stream.read_exact(&mut header)?;
            let length = wire::frame_len_within(header, wire::REPORT_BYTES_MAX);
            let mut body = vec![0; length.map_err(std::io::Error::other)?];
            stream.read_exact(&mut body)?;
            wire::decode(&body).map_err(std::io::Error::other)
        };
        exchange().map_err(LabError::doing("ask ipamd"))
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn report(&self) -> Result<Report, LabError> {
        match self.ask(Verb::Report)? {
            Reply::Report(report) => Ok(*report),
            other @ (Reply::Added(_) | Reply::Done | Reply::Collected { .. } | Reply::Failed(_)) => {
                Err(LabError::Otherwise(format!("ipamd answers {other:?}")))
            }
        }
    }

    /// The daemon's metrics, as text.
    ///
    /// # Errors
    /// When it does not serve them.
    pub fn metrics(&self) -> Result<String, LabError> {
        self.get(METRICS_PORT, "/metrics").map(|(_, text)| text)
    }

    /// The daemon's metrics for somebody who accepts these media types, behind the head of the answer.
    ///
    /// # Errors
    /// When it does not serve them.
    pub fn metrics_as(&self, accept: &str) -> Result<(String, String), LabError> {
        let accept = format!("Accept: {accept}\r\n");
        let got = self.netns.run(|| answer_over(connect(METRICS_PORT)?, "/metrics", &accept))?;
        got.map_err(LabError::doing("get /metrics"))
    }

    /// What the daemon's introspection answers to a path: HTTP status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn introspect(&self, path: &str) -> Result<(u16, String), LabError> {
        self.get(INTROSPECTION_PORT, path)
    }

    /// What the API server gets of the daemon's metrics, for its pod there.
    #[must_use]
    pub fn metrics_page(&self) -> Page {
        let netns = self.shared_netns();
        Arc::new(move || {
            get_in(&netns, METRICS_PORT, "/metrics").map_err(std::io::Error::other).map(|(_, text)| text)
        })
    }

    /// What is answered to a path at a port of the node's loopback: HTTP status and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String), LabError> {
        get_in(&self.netns, port, path)
    }

    /// Waits until the daemon's state is as wanted.
    ///
    /// # Errors
    /// When that takes too long; with the state it is in.
    pub fn wait_for(&self, what: &str, is: impl Fn(&Report) -> bool) -> Result<Report, LabError> {
        self.wait_within(READY, what, is)
    }

    /// The same for what must not wait for a round of the daemon, the shortest of which takes half a minute.
    ///
    /// # Errors
    /// When it does not come true in time.
    pub fn wait_for_soon(&self, what: &str, is: impl Fn(&Report) -> bool) -> Result<Report, LabError> {
        self.wait_within(SOON, what, is)
    }

    /// The same for what takes longer than a round.
    ///
    /// # Errors
    /// When it does not come true in time.
    pub fn wait_for_long(&self, what: &str, is: impl Fn(&Report) -> bool) -> Result<Report, LabError> {
        self.wait_within(LONG, what, is)
    }

    fn wait_within(
        &self,
        usual: Duration,
        what: &str,
        is: impl Fn(&Report) -> bool,
    ) -> Result<Report, LabError> {
        let until = Instant::now() + patience(usual);
        loop {
            let report = self.report()?;
            if is(&report) {
                return Ok(report);
            }
            if Instant::now() > until {
                return Err(LabError::Otherwise(format!(
                    "{what} did not come true: {report:#?}\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.run_dir.join("ipamd.log")
    }

    /// What the daemon has told so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn told(&self) -> Result<String, LabError> {
        std::fs::read_to_string(self.log()).map_err(LabError::doing("read the daemon's log"))
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.told().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn get_in(netns: &Netns, port: u16, path: &str) -> Result<(u16, String), LabError> {
    let got = netns.run(|| {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SOON))?;
        get_over(stream, path)
    })?;
    got.map_err(LabError::doing(format!("get {path}")))
}

/// Asks one thing over HTTP: status and body of the answer.
///
/// # Errors
/// When there is none.
pub fn get_over(stream: impl Read + Write, path: &str) -> std::io::Result<(u16, String)> {
    let (head, body) = answer_over(stream, path, "")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status: {head}")))?;
    Ok((status, body))
}

/// Asks one thing over HTTP, with these lines of a head: head and body of the answer.
fn answer_over(mut stream: impl Read + Write, path: &str, head: &str) -> std::io::Result<(String, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n{head}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n");
    let (head, body) = parts.ok_or_else(|| std::io::Error::other(format!("no answer: {answer}")))?;
    Ok((head.to_owned(), body.to_owned()))
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn listen(netns: &Netns, address: &str) -> Result<TcpListener, LabError> {
    let bound = netns.run(|| TcpListener::bind(address))?;
    bound.map_err(LabError::doing(format!("listen on {address}")))
}

fn listen_for_metadata(netns: &Netns) -> Result<TcpListener, LabError> {
    // Scope host: the kernel must not choose it as the source of the node's own packets.
    netns.ip("addr add 169.254.169.254/32 dev lo scope host\n")?;
    listen(netns, "169.254.169.254:80")
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_daemon();
    }
}
