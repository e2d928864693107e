//! What is known of a node from all sides, as one value: the judgement is a function of it.
//!
//! What lies in the run directory ([`Saved`]) is read as it is; what was asked of the daemon, the kernel, the runtime and EC2
//! ([`Live`]) is one JSON document, so that an archive holds it and is judged later by the same function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use datapath::HostSeen;
use ipnetwork::Ipv4Network;
use pool::Owner;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{EniId, Ipv6Prefix, Mac, Moment, PodName, SandboxKey};
use wire::Report;
use wire::queue::QueuedDel;

use crate::host::HostRecord;
use crate::install::Published;

/// Name of the network in the installed conflist: that of our sandboxes.
pub const NETWORK: &str = "aws-cni";

/// All that is known.
#[derive(Debug)]
pub struct Evidence {
    /// The run directory, or the directory of an unpacked archive.
    pub dir: PathBuf,
    /// What lies there.
    pub saved: Saved,
    /// What was asked.
    pub live: Live,
}

/// What a run directory holds.
#[derive(Debug, Default)]
pub struct Saved {
    /// Whether there is a state file.
    pub has_state: bool,
    /// Whether it could not even be seen if there is one.
    pub unread: bool,
    /// Who holds which address, by the state file.
    pub owners: Vec<(Owner, Ipv4Addr)>,
    /// What is wrong with the state file.
    pub damage: Option<String>,
    /// Damaged state files that were set aside.
    pub set_aside: Vec<String>,
    /// What the daemon wants the host's kernel to hold, if it has written that down.
    pub record: Option<HostRecord>,
    /// What of us the runtime should find, if the daemon has written that down.
    pub published: Option<Published>,
    /// DELs that wait.
    pub queue: Vec<QueuedDel>,
    /// Files in the queue that are none.
    pub queue_foreign: Vec<String>,
    /// What could not be read.
    pub troubles: Vec<String>,
}

impl Saved {
    /// Whether it is known of every address who holds it. If not, what seems to be nobody's may be of a living pod.
    #[must_use]
    pub const fn knows_owners(&self) -> bool {
        self.has_state && self.damage.is_none()
    }
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Look<T> {
    /// The answer.
    Seen(T),
    /// There was none, and there should have been.
    Failed(String),
    /// It was not asked, and why.
    Skipped(String),
}

impl<T> Look<T> {
    /// The answer, if there is one.
    #[must_use]
    pub const fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen(answer) => Some(answer),
            Self::Failed(_) | Self::Skipped(_) => None,
        }
    }
}

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self::Skipped("nobody was asked".to_owned())
    }
}

/// What was asked of those who know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// When, by the clock of the node.
    pub taken: Moment,
    /// The run directory there.
    pub run_dir: PathBuf,
    /// The daemon.
    pub daemon: Look<Box<Report>>,
    /// The kernel: links, rules, routes, addresses.
    pub host: Look<HostSeen>,
    /// The kernel: settings below `/proc/sys` that matter.
    pub sysctls: BTreeMap<String, String>,
    /// The kernel: nftables.
    pub nftables: Look<Nftables>,
    /// The kernel: tables of `iptables-legacy` in which something of the Go version's is.
    pub legacy: Look<BTreeSet<String>>,
    /// The runtime's cache of what plugins told it.
    pub runtime: Look<Vec<RuntimeSandbox>>,
    /// What leads the runtime to us: its directory of networks.
    pub networks: Look<Networks>,
    /// And the plugin.
    pub plugin: Look<PluginSeen>,
    /// EC2.
    pub cloud: Look<Vec<CloudEni>>,
    /// The run directory's files.
    pub files: Vec<FileSeen>,
}

/// Nftables of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Nftables {
    /// Our table in words; `None` when there is none.
    pub table: Option<String>,
    /// What it would take to make it what it should be; `None` while that is not known.
    pub differences: Option<Vec<String>>,
    /// Chains of all IPv4 tables: table and name.
    pub chains: BTreeSet<(String, String)>,
    /// Our IPv6 table, where there should be one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Table>,
}

/// The table by which pods with IPv4 addresses reach IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Table {
    /// Whether there is one.
    pub is_there: bool,
    /// What it would take to make it what it should be.
    pub differences: Vec<String>,
}

/// A sandbox of ours that the runtime knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeSandbox {
    /// Which.
    pub sandbox: SandboxKey,
    /// Its pod.
    pub pod: PodName,
    /// The addresses it was told.
    pub addresses: Vec<IpAddr>,
}

/// The runtime's directory of networks, of which it takes the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// The directory, on the node.
    pub dir: PathBuf,
    /// Its networks, in the runtime's order.
    pub files: Vec<NetworkFile>,
    /// Our conflist, as the daemon has written it.
    pub written: Value,
    /// As it is there, or why it cannot be read; `None` where it is missing. What others have put into it is left out.
    pub there: Option<Result<Value, String>>,
}

/// A file that a runtime takes for a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFile {
    /// Its name.
    pub name: String,
    /// Whether it names our plugin or our conflist.
    pub leads_here: bool,
}

/// The plugin that the runtime executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginSeen {
    /// Where, on the node.
    pub at: PathBuf,
    /// What the daemon's image has.
    pub of_image: Sum,
    /// What is there.
    pub there: Option<Sum>,
}

/// What a file is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// An ENI that EC2 says is attached to this instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudEni {
    /// Which.
    pub id: EniId,
    /// Its MAC address.
    pub mac: Mac,
    /// Its own address.
    pub primary_address: Ipv4Addr,
    /// What pods can have of it, prefixes as they are.
    pub sources: BTreeSet<Ipv4Network>,
    /// IPv6 prefixes delegated to it; `None` in archives that are older than the question.
    #[serde(default)]
    pub ipv6: Option<BTreeSet<Ipv6Prefix>>,
    /// Whether it has our tag.
    pub ours: bool,
}

/// A file and who may read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSeen {
    /// Its path below the run directory; empty for that itself.
    pub name: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its length, in bytes.
    pub bytes: u64,
}

impl Evidence {
    /// Who holds an address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Owner> {
        let holds = |(owner, held): &&(Owner, Ipv4Addr)| {
            let branch = owner.branch.as_ref().map(|branch| branch.eni.addresses()).unwrap_or_default();
            IpAddr::V4(*held) == address
                || owner.ipv6.map(IpAddr::V6) == Some(address)
                || branch.contains(&address)
        };
        self.saved.owners.iter().find(holds).map(|(owner, _)| owner)
    }

    /// The run directory on the node, wherever its files are read now.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        if self.live.run_dir.as_os_str().is_empty() { &self.dir } else { &self.live.run_dir }
    }

    /// The option that leads a command of ours to the run directory, with a blank before; nothing for the usual one.
    #[must_use]
    pub fn run_dir_option(&self) -> String {
        match self.run_dir().to_string_lossy() {
            dir if dir == crate::config::DEFAULT_RUN_DIR => String::new(),
            dir => format!(" --run-dir {}", super::words::word(&dir)),
        }
    }
}
