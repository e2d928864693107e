//! What an ADD and a DEL cost as the runtime sees them, beside the reference plugins and the floor, in one run.
//!
//! - *ours*: the plugin's process from spawn to exit, the daemon beside it.
//! - *ptp*: Debian's `ptp` with `host-local`, the same way.
//! - *floor*: an empty static program from spawn to exit, and the bare netlink messages in this process.
//!
//! Pods per second are counted while a hundred come at once; the floor of that is the bare messages, one pod after the other, and
//! no program at all.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use datapath::{PodSpec, WireError, Wirer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};
use types::{HostVeth, PodName, VethPrefix};

use crate::LabError;
use crate::ec2::Config;
use crate::fabric::Fabric;
use crate::netns::Netns;
use crate::node::{Node, binary};

/// Holds 735 pods, so that its pool is never the limit.
const INSTANCE_TYPE: &str = "m5.24xlarge";
/// Pods already there when a measurement begins.
const LEVELS: [u32; 3] = [0, 100, 250];
/// Measurements one after the other.
const SEQUENTIAL: u32 = 60;
/// Measurements at once, and how often.
const PARALLEL: u32 = 20;
const ROUNDS: u32 = 3;
/// Pods that come at once when pods per second are counted.
const BURST: u32 = 100;
/// What the kernel has to take apart hundreds of namespaces, before the next contender needs the same lock.
const SETTLING: Duration = Duration::from_secs(5);
/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Times of one kind of operation, in microseconds.
#[derive(Debug, Default)]
struct Times(Vec<u128>);

impl Times {
    fn push(&mut self, took: Duration) {
        self.0.push(took.as_micros());
    }

    fn at(&self, percent: usize) -> u128 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or(0)
    }

    fn json(&self) -> Value {
        let number = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        json!({"p50_us": number(self.at(50)), "p99_us": number(self.at(99))})
    }
}

/// ADD, DEL and twenty ADDs at once, of one contender at one level.
#[derive(Debug, Default)]
struct Measured {
    add: Times,
    del: Times,
    parallel: Times,
    /// Namespaces of pods that are gone. They stay until all of the level is measured: the kernel holds the lock that every ADD needs while it
    /// takes one apart, and the longer the more namespaces there are.
    kept: Vec<Netns>,
}

/// Something that can wire and unwire a pod.
trait Contender: Sync {
    fn name(&self) -> &'static str;
    fn add(&self, netns: &Netns, id: &str) -> Result<Duration, LabError>;
    fn del(&self, netns: &Netns, id: &str) -> Result<Duration, LabError>;

    /// Adds [`BURST`] pods as fast as it can, and takes them away again; pods added per second.
    fn burst(&self, level: u32) -> Result<f64, LabError> {
        let ids: Vec<String> = (0..BURST).map(|n| format!("{}b{level}n{n}", self.name())).collect();
        let pods = ids.iter().map(|id| Netns::create(id)).collect::<Result<Vec<_>, _>>()?;
        let started = Instant::now();
        add_at_once(self, &pods, &ids)?;
        let took = started.elapsed();
        for (netns, id) in pods.iter().zip(&ids) {
            self.del(netns, id)?;
        }
        Ok(f64::from(BURST) / took.as_secs_f64())
    }
}

/// Runs it all; says how far it is, returns the figures.
///
/// # Errors
/// Whatever keeps it from running.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<Value, LabError> {
    let fabric = Fabric::create(Config::default())?;
    let node = Node::launch(&fabric, "node1", INSTANCE_TYPE)?;
    let settings = [("WARM_IP_TARGET", "60"), ("MINIMUM_IP_TARGET", "500"), ("IP_COOLDOWN_PERIOD", "1")];
    node.start_daemon(&settings)?;
    node.wait_ready()?;
    node.wait_for("a full pool", |report| report.addresses.free >= 490)?;
    let mut result =
        json!({"add": {}, "del": {}, "parallel20": {}, "pods_per_second": {}, "daemon_rss_bytes": {}});
    let plugin = binary("AWS_CNI_BIN", "aws-cni")?;
    let bytes = std::fs::metadata(&plugin).map_err(LabError::doing("look at the plugin"))?.len();
    result["plugin_bytes"] = bytes.into();
    let (ours, ptp, floor) = (Ours { node: &node }, Ptp::create()?, Floor::create()?);
    let contenders: [&dyn Contender; 3] = [&ours, &ptp, &floor];
    say(&format!(
        "   {:<10} {:>5}  {:>18}  {:>18}  {:>18}  {:>13}",
        "", "pods", "ADD p50 / p99", "DEL p50 / p99", "20 ADDs at once", "100 at once"
    ));
    let mut residents: Vec<Vec<Netns>> = contenders.iter().map(|_| Vec::new()).collect();
    for level in LEVELS {
        for (contender, residents) in contenders.iter().zip(&mut residents) {
            fill(*contender, residents, level)?;
            let measured = measure(*contender, level)?;
            let per_second = contender.burst(level)?;
            let ms = |t: &Times| format!("{:.2} / {:.2} ms", millis(t.at(50)), millis(t.at(99)));
            say(&format!(
                "   {:<10} {level:>5}  {:>18}  {:>18}  {:>18}  {per_second:>7.0} pods/s",
                contender.name(),
                ms(&measured.add),
                ms(&measured.del),
                ms(&measured.parallel)
            ));
            let level = level.to_string();
            result["add"][&level][contender.name()] = measured.add.json();
            result["del"][&level][contender.name()] = measured.del.json();
            result["parallel20"][&level][contender.name()] = measured.parallel.json();
            result["pods_per_second"][&level][contender.name()] = per_second.round().into();
            drop(measured);
            std::thread::sleep(SETTLING);
        }
        if let (Some(bytes), 0 | 250) = (resident_bytes(&node), level) {
            result["daemon_rss_bytes"][level.to_string()] = bytes.into();
        }
    }
    Ok(result)
}

/// What [`growth`] measured, and the node it was measured on, which stands while this lives.
#[derive(Debug)]
pub struct Grown {
    /// Times of ADD and DEL by number of pods.
    pub figures: Value,
    _namespaces: Vec<Netns>,
    _node: Node,
    _fabric: Fabric,
}

/// ADD and DEL of ours alone, one pod after the other, at rising numbers of pods: does it cost more on a full node?
///
/// # Errors
/// Whatever keeps it from running.
pub fn growth(levels: &[u32], pods: u32, say: &mut dyn FnMut(&str)) -> Result<Option<Grown>, LabError> {
    let Some(most) = levels.iter().max() else { return Ok(None) };
    let fabric = Fabric::create(Config::default())?;
    let node = Node::launch(&fabric, "node1", INSTANCE_TYPE)?;
    let target = (most + pods).to_string();
    node.start_daemon(&[
        ("MINIMUM_IP_TARGET", &target),
        ("WARM_IP_TARGET", "1"),
        ("IP_COOLDOWN_PERIOD", "1"),
    ])?;
    node.wait_ready()?;
    node.wait_for("a full pool", |report| report.addresses.free >= most + pods)?;
    let (mut figures, mut residents, mut gone) = (json!({}), Vec::new(), Vec::new());
    let ours = Ours { node: &node };
    for level in levels {
        fill(&ours, &mut residents, *level)?;
        let mut measured = one_by_one(&ours, *level, pods)?;
        gone.append(&mut measured.kept);
        let ms = |times: &Times| format!("{:.2} / {:.2} ms", millis(times.at(50)), millis(times.at(99)));
        say(&format!("   {level:>5}  ADD p50 / p99 {}, DEL {}", ms(&measured.add), ms(&measured.del)));
        figures[level.to_string()] = json!({"add": measured.add.json(), "del": measured.del.json()});
    }
    residents.extend(gone);
    Ok(Some(Grown { figures, _namespaces: residents, _node: node, _fabric: fabric }))
}

fn millis(micros: u128) -> f64 {
    f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0
}

/// Brings a contender to a level of pods.
fn fill(contender: &dyn Contender, residents: &mut Vec<Netns>, level: u32) -> Result<(), LabError> {
    let start = u32::try_from(residents.len()).unwrap_or(u32::MAX);
    for number in start..level {
        let id = format!("{}resident{number}", contender.name());
        let netns = Netns::create(&id)?;
        contender.add(&netns, &id)?;
        residents.push(netns);
    }
    Ok(())
}

/// ADD and DEL, one pod after the other.
fn one_by_one(contender: &dyn Contender, level: u32, pods: u32) -> Result<Measured, LabError> {
    let mut measured = Measured::default();
    let name = contender.name();
    for number in 0..pods {
        let id = format!("{name}s{level}n{number}");
        let netns = Netns::create(&id)?;
        measured.add.push(contender.add(&netns, &id)?);
        measured.del.push(contender.del(&netns, &id)?);
        measured.kept.push(netns);
    }
    Ok(measured)
}

fn measure(contender: &dyn Contender, level: u32) -> Result<Measured, LabError> {
    let mut measured = one_by_one(contender, level, SEQUENTIAL)?;
    let name = contender.name();
    for round in 0..ROUNDS {
        let ids: Vec<String> = (0..PARALLEL).map(|n| format!("{name}p{level}r{round}n{n}")).collect();
        let pods = ids.iter().map(|id| Netns::create(id)).collect::<Result<Vec<_>, _>>()?;
        for took in add_at_once(contender, &pods, &ids)? {
            measured.parallel.push(took);
        }
        for (netns, id) in pods.iter().zip(&ids) {
            contender.del(netns, id)?;
        }
        measured.kept.extend(pods);
    }
    Ok(measured)
}

/// Adds all pods at once; how long each took.
fn add_at_once<C: Contender + ?Sized>(
    contender: &C,
    pods: &[Netns],
    ids: &[String],
) -> Result<Vec<Duration>, LabError> {
    std::thread::scope(|scope| {
        let pairs = pods.iter().zip(ids);
        let threads: Vec<_> =
            pairs.map(|(netns, id)| scope.spawn(move || contender.add(netns, id))).collect();
        let panicked = |_panic| Err(LabError::Otherwise("an ADD panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// Our plugin and daemon.
struct Ours<'a> {
    node: &'a Node,
}

impl Ours<'_> {
    fn call(&self, verb: &str, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        let config = crate::runtime::conf(self.node).to_string();
        let answer = crate::runtime::call_plugin(self.node, verb, id, &netns.path(), id, config.as_bytes())?;
        match answer.success {
            true => Ok(answer.took),
            false => Err(LabError::Otherwise(format!("{verb} {id}: {}", answer.stdout))),
        }
    }
}

impl Contender for Ours<'_> {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn add(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        self.call("ADD", netns, id)
    }

    fn del(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        self.call("DEL", netns, id)
    }
}

/// Debian's reference plugins, in a namespace of their own.
struct Ptp {
    host: Netns,
    data: PathBuf,
}

impl Ptp {
    fn create() -> Result<Self, LabError> {
        let plugin = Path::new(REFERENCE).join("ptp");
        if !plugin.exists() {
            return Err(LabError::Otherwise(
                "the peer is missing: install containernetworking-plugins".to_owned(),
            ));
        }
        Ok(Self { host: Netns::create("ptp-host")?, data: PathBuf::from("/run/lab/host-local") })
    }

    fn call(&self, verb: &str, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        let ipam = json!({"type": "host-local", "subnet": "10.77.0.0/16", "dataDir": self.data});
        let config = json!({"cniVersion": "1.0.0", "name": "peer", "type": "ptp", "ipam": ipam}).to_string();
        let mut command = Command::new(Path::new(REFERENCE).join("ptp"));
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", netns.path()).env("CNI_PATH", REFERENCE);
        spawn_and_wait(&self.host, &mut command, config.as_bytes())
    }
}

impl Contender for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        self.call("ADD", netns, id)
    }

    fn del(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        self.call("DEL", netns, id)
    }
}

/// Runs a program in a namespace and times it from spawn to exit.
fn spawn_and_wait(host: &Netns, command: &mut Command, input: &[u8]) -> Result<Duration, LabError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = host.run(|| -> std::io::Result<_> {
        let started = Instant::now();
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that does not read its input may close it early.
            let _written = pipe.write_all(input);
        }
        Ok((child.wait_with_output()?, started.elapsed()))
    })?;
    let (output, took) = ran.map_err(LabError::doing("run a peer"))?;
    match output.status.success() {
        true => Ok(took),
        false => Err(LabError::Otherwise(String::from_utf8_lossy(&output.stdout).into_owned())),
    }
}

/// An empty program and the bare messages.
struct Floor {
    host: Netns,
    /// One socket, as the daemon has one thread: twenty at once take turns.
    wirer: std::sync::Mutex<Wirer>,
}

impl Floor {
    fn create() -> Result<Self, LabError> {
        let host = Netns::create("floor-host")?;
        let wirer = host.run(Wirer::open)?.map_err(|error| LabError::Otherwise(error.to_string()))?;
        Ok(Self { host, wirer: std::sync::Mutex::new(wirer) })
    }

    fn pod(id: &str) -> PodSpec {
        let pod = PodName { namespace: "floor".to_owned(), name: id.to_owned() };
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        let number = id.bytes().fold(7_u32, |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
        let address = Ipv4Addr::from(0x0b00_0000 | (number & 0x00ff_ffff));
        PodSpec {
            host_if,
            container_if: "eth0".to_owned(),
            index: 0,
            addresses: vec![address.into()],
            mtu: 9001,
            branch: None,
        }
    }

    /// An empty program from spawn to exit.
    fn exec(&self) -> Result<Duration, LabError> {
        spawn_and_wait(&self.host, Command::new("/bin/busybox").arg("true"), b"")
    }

    /// The bare messages of an ADD.
    fn wire(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        let open = || socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = netns.run(open)?.map_err(LabError::doing("open a netlink socket"))?;
        let file = std::fs::File::open(netns.path()).map_err(LabError::doing("open a namespace"))?;
        let netns = std::os::fd::AsFd::as_fd(&file);
        self.with(|wirer| wirer.add(&Self::pod(id), netns, socket))
    }

    /// The bare messages of a DEL.
    fn unwire(&self, id: &str) -> Result<Duration, LabError> {
        self.with(|wirer| wirer.remove(&Self::pod(id)))
    }

    /// On a thread in the host's namespace, whose settings are written there too.
    fn with(
        &self,
        act: impl FnOnce(&mut Wirer) -> Result<(), WireError> + Send,
    ) -> Result<Duration, LabError> {
        let (done, took) = self.host.run(|| {
            let mut wirer = self.wirer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let started = Instant::now();
            (act(&mut wirer), started.elapsed())
        })?;
        done.map_err(|error| LabError::Otherwise(format!("{error:?}")))?;
        Ok(took)
    }
}

impl Contender for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn add(&self, netns: &Netns, id: &str) -> Result<Duration, LabError> {
        Ok(self.exec()? + self.wire(netns, id)?)
    }

    fn del(&self, _netns: &Netns, id: &str) -> Result<Duration, LabError> {
        Ok(self.exec()? + self.unwire(id)?)
    }

    /// The kernel wires one pod at a time, whoever asks: no program, one pod after the other.
    fn burst(&self, level: u32) -> Result<f64, LabError> {
        let mut took = Duration::ZERO;
        for number in 0..BURST {
            let id = format!("floorb{level}n{number}");
            let netns = Netns::create(&id)?;
            took += self.wire(&netns, &id)?;
            self.unwire(&id)?;
        }
        Ok(f64::from(BURST) / took.as_secs_f64())
    }
}

/// Resident memory of the daemon, in bytes.
fn resident_bytes(node: &Node) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
