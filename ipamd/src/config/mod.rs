//! Settings: environment variables, read once and all at once, into what they mean.
//!
//! An empty variable is an unset one. What each is for, and what becomes of text that it cannot be, stands in [`SETTINGS`].

mod helper;
mod install;
mod read;
pub(crate) mod reference;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::level_filters::LevelFilter;
use types::{Enforcing, VethPrefix};

use crate::cluster::NameKeys;
use crate::families::Families;

pub(crate) use helper::is_cluster_id;
pub use helper::{Helper, Switches, yes_or_no};
pub use install::Install;
pub use read::Environment;
pub(crate) use read::distance;
use read::{Reader, parse_mark};
pub use table::{HELPER_SETTINGS, Kind, SETTINGS, Setting, Support};

/// What the settings mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which addresses pods get.
    pub families: Families,
    /// ENIs kept free for pods to come.
    pub warm_eni_target: u32,
    /// Free addresses kept, in place of free ENIs.
    pub warm_ip_target: Option<u32>,
    /// Addresses held at least, used or free.
    pub minimum_ip_target: Option<u32>,
    /// Most ENIs to have on a network card, the primary one included.
    pub max_enis: Option<u8>,
    /// Whether pods get addresses of network cards above 0 too.
    pub multi_nic: bool,
    /// Whether pods may have a branch ENI: security groups for pods.
    pub pod_eni: bool,
    /// How strictly their traffic is bound to it.
    pub enforcing: Enforcing,
    /// No target is set: the pool follows the pods.
    pub automatic: bool,
    /// Pods that the kubelet admits.
    pub max_pods: Option<u32>,
    /// Free prefixes kept, with prefix delegation.
    pub warm_prefix_target: u32,
    /// Whether ENIs are given /28 prefixes.
    pub prefix_delegation: bool,
    /// How long a released address is not given out again.
    pub cooldown: Duration,
    /// MTU of ENIs, in bytes.
    pub eni_mtu: u32,
    /// MTU inside pods, in bytes.
    pub pod_mtu: u32,
    /// What host interface names of pods start with.
    pub veth_prefix: VethPrefix,
    /// The node translates no addresses.
    pub external_snat: bool,
    /// How source ports are picked when it does.
    pub snat_ports: SnatPorts,
    /// Ranges reached without translation, beside the VPC's.
    pub exclude_snat_cidrs: Vec<Ipv4Network>,
    /// Ranges that the main table routes, whichever ENI a pod is on.
    pub external_service_cidrs: BTreeSet<Ipv4Network>,
    /// The mark, and its mask, of connections that came in through the primary ENI; not 0.
    pub connmark: u32,
    /// Answers to node ports leave through the primary ENI.
    pub node_port: bool,
    /// The cluster's name, written into tags of ENIs.
    pub cluster_name: Option<String>,
    /// More tags for ENIs; they win over our own.
    pub eni_tags: BTreeMap<String, String>,
    /// Whether anything may be changed in EC2.
    pub provisioning: bool,
    /// Whether ENIs without our tag are used.
    pub manage_untagged: bool,
    /// Whether ENIs may go into other subnets than the primary one's.
    pub subnet_discovery: bool,
    /// With custom networking, where the node object names its ENIConfig.
    pub custom_networking: Option<NameKeys>,
    /// Whether ENIs that other instances left behind are deleted.
    pub leak_collection: bool,
    /// EC2 is never asked.
    pub imds_only: bool,
    /// URL of EC2 in place of the region's.
    pub ec2_endpoint: Option<String>,
    /// URL of the metadata service in place of the link-local one.
    pub imds_endpoint: Option<String>,
    /// How long one HTTP request to AWS may take.
    pub http_timeout: Duration,
    /// The proxy for what is asked of AWS over HTTPS, as a URL.
    pub https_proxy: Option<String>,
    /// Hosts, domains and ranges that are asked without it, between commas.
    pub no_proxy: Option<String>,
    /// Where introspection is served over HTTP; `None` if it is not.
    pub introspection: Option<IntrospectionBind>,
    /// `standard` or `strict`, as it is written: a network policy agent has a say in each pod.
    pub policy_mode: Option<String>,
    /// Whether metrics are served over HTTP.
    pub metrics: bool,
    /// Where; unset: everywhere, at the Go version's port.
    pub metrics_bind: Option<SocketAddr>,
    /// How the API server is reached; `None` outside of clusters.
    pub cluster: Option<Cluster>,
    /// The node's name in Kubernetes.
    pub node_name: Option<String>,
    /// Whether pods are annotated with their addresses.
    pub annotate_pod_ip: bool,
    /// The daemon's own pod.
    pub pod_name: Option<String>,
    /// Its UID.
    pub pod_uid: Option<String>,
    /// Whether a cordoned node is treated as any other.
    pub manage_cordoned: bool,
    /// Directory of the socket and of the state.
    pub run_dir: PathBuf,
    /// The Go version's checkpoint; unset: in `run_dir`.
    pub checkpoint: Option<PathBuf>,
    /// A file that holds back changes in EC2, beside the one in `run_dir`.
    pub hold_file: PathBuf,
    /// How long an ADD may wait for an address.
    pub add_timeout: Duration,
    /// The least important level that is logged.
    pub log_level: LevelFilter,
    /// The log's file; without one it goes to standard error.
    pub log_file: Option<PathBuf>,
    /// What the installer does, and what the conflist says.
    pub install: Install,
    /// What was strange but could be lived with, for the log.
    pub warnings: Vec<String>,
}

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// URL in place of the one that the pod or the kubeconfig tells.
    pub endpoint: Option<String>,
    /// A kubeconfig in place of the pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

/// Where introspection listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntrospectionBind {
    /// At an address and port.
    Address(SocketAddr),
    /// At a port of all addresses.
    Everywhere(u16),
    /// On a Unix socket.
    Socket(PathBuf),
}

/// How source ports are picked when addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnatPorts {
    /// At random (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
    Prng,
    /// By a hash (`NF_NAT_RANGE_PROTO_RANDOM`).
    HashRandom,
    /// As the kernel likes.
    None,
}

/// A setting with which the daemon does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Its text is none that it can have.
    #[error("{name} is {found:?}, which it cannot be: {doc}")]
    Unfit {
        /// The variable.
        name: &'static str,
        /// Its text, cut to 64 characters.
        found: String,
        /// What it is for.
        doc: &'static str,
    },
    /// It means nothing without another one.
    #[error("{name} needs {other}, and a cluster around the daemon")]
    Needs {
        /// The variable.
        name: &'static str,
        /// The other one.
        other: &'static str,
    },
    /// It cannot be together with another one.
    #[error("{name} cannot be set together with {other}")]
    Together {
        /// The variable.
        name: &'static str,
        /// The other one.
        other: &'static str,
    },
}

/// Reads the process's environment.
///
/// # Errors
/// Everything that keeps the daemon from starting.
pub fn from_process() -> Result<Config, Vec<SettingError>> {
    Config::parse(&std::env::vars_os().collect())
}

/// Every setting, for people: what is obeyed first.
#[must_use]
pub fn listed() -> String {
    let groups = [
        (Support::Lenient, "Obeyed. A value that cannot be is replaced by the default, with a warning:"),
        (Support::Strict, "Obeyed. A value that cannot be stops the daemon:"),
        (Support::Ignored, "Without effect in this version. Anything but the default is warned about:"),
        (Support::Elsewhere, "Known, and without any effect:"),
    ];
    let lines = groups.into_iter().flat_map(|(support, said)| {
        let of = SETTINGS.iter().filter(move |setting| setting.support == support);
        std::iter::once(format!("\n{said}\n")).chain(of.map(listed_one))
    });
    let said = "\nOf ipamd metrics-helper. A value that cannot be stops it:\n".to_owned();
    lines.chain(std::iter::once(said)).chain(HELPER_SETTINGS.iter().map(listed_one)).collect()
}

fn listed_one(setting: &Setting) -> String {
    let default = if setting.default.is_empty() { "unset" } else { setting.default };
    format!("\n  {}  [{default}]\n      {}\n", setting.name, setting.doc)
}

/// Where the daemon's socket and state are unless `IPAMD_RUN_DIR` says otherwise.
pub const DEFAULT_RUN_DIR: &str = table::RUN_DIR.default;

/// With none of these set, the pool follows the pods.
const TARGETS: [Setting; 4] =
    [table::WARM_ENI_TARGET, table::WARM_IP_TARGET, table::MINIMUM_IP_TARGET, table::WARM_PREFIX_TARGET];

impl Config {
    /// Reads the settings from an environment.
    ///
    /// # Errors
    /// Everything that keeps the daemon from starting.
    pub fn parse(environment: &Environment) -> Result<Self, Vec<SettingError>> {
        let mut config = Self::parse_beside(environment, &[])?;
        let mut reader = Reader::new(environment);
        if config.cluster.is_none() && api_server(&mut reader).is_some() {
            let name = table::NODE_NAME.name;
            config.warnings.push(format!("{name} is not set: the node object is not asked for"));
        }
        Ok(config)
    }

    /// Reads the settings for a program that has these of its own beside them, and is of no node.
    fn parse_beside(environment: &Environment, own: &[Setting]) -> Result<Self, Vec<SettingError>> {
        let mut reader = Reader::new(environment);
        let mut config = Self::read(&mut reader);
        if config.pod_eni {
            config.check_pod_eni(&mut reader);
        }
        reader.check_the_rest(own);
        if !reader.errors.is_empty() {
            return Err(reader.errors);
        }
        config.warnings = reader.warnings;
        Ok(config)
    }

    /// The pods' objects say who has a branch ENI, and EC2 alone which ENI is the trunk.
    fn check_pod_eni(&self, reader: &mut Reader<'_>) {
        let name = table::POD_ENI.name;
        if self.cluster.is_none() {
            reader.errors.push(SettingError::Needs { name, other: table::NODE_NAME.name });
        }
        if self.imds_only {
            reader.errors.push(SettingError::Together { name, other: table::IMDS_ONLY.name });
        }
        // A slip would make the strict mode of a standard one, in which pods lose their way to the internet.
        reader.word(&Setting { support: Support::Strict, ..table::POD_SG_MODE });
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let families = families(reader);
        let ipv6 = families.has_ipv6();
        let eni_mtu = install::mtu(reader, &table::ENI_MTU, ipv6).unwrap_or(9001);
        let install = Install::read(reader, families);
        Self {
            families,
            warm_eni_target: reader.number(&table::WARM_ENI_TARGET).unwrap_or(1),
            automatic: TARGETS.iter().all(|target| !reader.is_set(target)),
            warm_prefix_target: reader.number(&table::WARM_PREFIX_TARGET).unwrap_or(1),
            prefix_delegation: reader.flag(&table::PREFIX_DELEGATION),
            warm_ip_target: reader.target(&table::WARM_IP_TARGET),
            minimum_ip_target: reader.target(&table::MINIMUM_IP_TARGET),
            max_pods: reader.number(&table::MAX_PODS),
            max_enis: reader.target(&table::MAX_ENI).map(|max| u8::try_from(max).unwrap_or(u8::MAX)),
            multi_nic: reader.flag(&table::MULTI_NIC),
            pod_eni: reader.flag(&table::POD_ENI),
            enforcing: enforcing(&install.enforcing_mode),
            cooldown: seconds(reader.number(&table::IP_COOLDOWN_PERIOD)),
            eni_mtu,
            pod_mtu: install::mtu(reader, &table::POD_MTU, ipv6).unwrap_or(eni_mtu),
            veth_prefix: reader.parsed(&table::VETH_PREFIX, |t| VethPrefix::new(t).ok()).unwrap_or_default(),
            external_snat: reader.flag(&table::EXTERNAL_SNAT),
            snat_ports: reader.parsed(&table::RANDOMIZE_SNAT, snat_ports).unwrap_or(SnatPorts::Prng),
            exclude_snat_cidrs: reader.ranges(&table::EXCLUDE_SNAT_CIDRS),
            external_service_cidrs: reader.ranges(&table::EXTERNAL_SERVICE_CIDRS).into_iter().collect(),
            connmark: reader.parsed(&table::CONNMARK, parse_mark).unwrap_or(0x80),
            node_port: reader.flag(&table::NODE_PORT),
            cluster_name: reader.text(&table::CLUSTER_NAME),
            eni_tags: reader.tags(&table::ADDITIONAL_ENI_TAGS),
            provisioning: !reader.flag(&table::DISABLE_PROVISIONING),
            manage_untagged: reader.flag(&table::MANAGE_UNTAGGED_ENI),
            subnet_discovery: reader.flag(&table::SUBNET_DISCOVERY),
            custom_networking: custom_networking(reader, families),
            leak_collection: !reader.flag(&table::LEAKED_CLEANUP),
            imds_only: reader.flag(&table::IMDS_ONLY),
            ec2_endpoint: reader.parsed(&table::EC2_ENDPOINT, url),
            imds_endpoint: reader.parsed(&table::IMDS_ENDPOINT, url),
            http_timeout: seconds(reader.number(&table::HTTP_TIMEOUT)),
            https_proxy: either(reader, [&table::HTTPS_PROXY, &table::HTTPS_PROXY_LOWER], proxy),
            no_proxy: either(reader, [&table::NO_PROXY, &table::NO_PROXY_LOWER], |text| {
                Some(text.to_owned())
            }),
            introspection: introspection(reader),
            policy_mode: reader.parsed(&table::POLICY_MODE, policy_mode).flatten(),
            metrics: !reader.flag(&table::DISABLE_METRICS),
            metrics_bind: reader.parsed(&table::METRICS_BIND, |text| text.parse().ok()),
            cluster: cluster(reader),
            node_name: reader.text(&table::NODE_NAME),
            annotate_pod_ip: reader.flag(&table::ANNOTATE_POD_IP),
            pod_name: reader.text(&table::POD_NAME),
            pod_uid: reader.text(&table::POD_UID),
            manage_cordoned: reader.flag(&table::NON_SCHEDULABLE),
            run_dir: reader.text(&table::RUN_DIR).unwrap_or_default().into(),
            checkpoint: reader.text(&table::BACKING_STORE).map(PathBuf::from),
            hold_file: reader.text(&table::HOLD_FILE).unwrap_or_default().into(),
            add_timeout: seconds(reader.number(&table::ADD_TIMEOUT)),
            log_level: reader.parsed(&table::LOG_LEVEL, log_level).unwrap_or(LevelFilter::DEBUG),
            log_file: reader.parsed(&table::LOG_FILE, log_file).flatten(),
            install,
            warnings: Vec::new(),
        }
    }
}

/// Neither is what nobody can mean.
fn families(reader: &mut Reader<'_>) -> Families {
    let (ipv6, v4_egress) = (reader.flag(&table::ENABLE_IPV6), reader.flag(&table::V4_EGRESS));
    let v6_egress = reader.flag(&table::V6_EGRESS);
    let ipv4 = reader.flag(&table::ENABLE_IPV4) && (!ipv6 || reader.has(&table::ENABLE_IPV4));
    match (ipv4, ipv6) {
        (true, false) => Families::V4 { egress: v6_egress },
        (true, true) => Families::Dual,
        (false, true) => Families::V6 { egress: v4_egress },
        (false, false) => {
            let (setting, found) = (&table::ENABLE_IPV4, "false".to_owned());
            reader.errors.push(SettingError::Unfit { name: setting.name, found, doc: setting.doc });
            Families::V4 { egress: false }
        }
    }
}

/// IPv6 prefixes are the primary ENI's, which has no pods here; the Go version refuses the two together as well.
fn custom_networking(reader: &mut Reader<'_>, families: Families) -> Option<NameKeys> {
    let wanted = reader.flag(&table::CUSTOM_NETWORK);
    let annotation = reader.text(&table::ENI_CONFIG_ANNOTATION).unwrap_or_default();
    let label = reader.text(&table::ENI_CONFIG_LABEL).unwrap_or_default();
    if wanted && families.needs_prefix() {
        let (name, other) = (table::CUSTOM_NETWORK.name, table::ENABLE_IPV6.name);
        reader.errors.push(SettingError::Together { name, other });
    }
    wanted.then_some(NameKeys { annotation, label })
}

/// How the API server is reached, if there is one.
fn api_server(reader: &mut Reader<'_>) -> Option<Cluster> {
    let kubeconfig = reader.text(&table::KUBECONFIG).map(PathBuf::from);
    let endpoint = reader.parsed(&table::CLUSTER_ENDPOINT, url);
    let is_there = kubeconfig.is_some() || reader.has(&table::SERVICE_HOST);
    is_there.then_some(Cluster { endpoint, kubeconfig })
}

fn cluster(reader: &mut Reader<'_>) -> Option<Cluster> {
    api_server(reader).filter(|_cluster| reader.has(&table::NODE_NAME))
}

fn enforcing(mode: &str) -> Enforcing {
    if mode == "standard" { Enforcing::Standard } else { Enforcing::Strict }
}

fn seconds(number: Option<u32>) -> Duration {
    Duration::from_secs(number.unwrap_or_default().into())
}

fn url(text: &str) -> Option<String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    (!host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
}

fn snat_ports(text: &str) -> Option<SnatPorts> {
    match text.to_ascii_lowercase().as_str() {
        "prng" => Some(SnatPorts::Prng),
        "hashrandom" => Some(SnatPorts::HashRandom),
        "none" => Some(SnatPorts::None),
        _ => None,
    }
}

fn log_level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Some(LevelFilter::DEBUG),
        "info" => Some(LevelFilter::INFO),
        "warn" => Some(LevelFilter::WARN),
        "error" | "fatal" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

/// What the first of two settings says that is set.
fn either(
    reader: &mut Reader<'_>,
    settings: [&Setting; 2],
    parse: fn(&str) -> Option<String>,
) -> Option<String> {
    let set = settings.into_iter().find(|setting| reader.has(setting))?;
    reader.parsed(set, parse).filter(|text| !text.is_empty())
}

/// A proxy's URL. Without a scheme it is plain HTTP, as everywhere.
fn proxy(text: &str) -> Option<String> {
    match text.split_once("://") {
        Some(("http" | "https", _)) => url(text),
        Some(_) => None,
        None if text.is_empty() => None,
        None => url(&format!("http://{text}")),
    }
}

fn log_file(text: &str) -> Option<Option<PathBuf>> {
    match text {
        "stdout" | "stderr" => Some(None),
        path => Some(Some(path.into())),
    }
}

/// As it is written, for the agent reads it too; `none` is nobody to ask.
fn policy_mode(text: &str) -> Option<Option<String>> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Some(None),
        "standard" | "strict" => Some(Some(text.to_owned())),
        _ => None,
    }
}

fn introspection(reader: &mut Reader<'_>) -> Option<IntrospectionBind> {
    let at = reader.parsed(&table::INTROSPECTION_BIND, introspection_bind);
    let disabled = reader.flag(&table::DISABLE_INTROSPECTION);
    at.filter(|_| !disabled)
}

/// The forms that the Go version takes, without asking for names: nothing is known of those at start.
fn introspection_bind(text: &str) -> Option<IntrospectionBind> {
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/').then(|| IntrospectionBind::Socket(path.into()));
    }
    let port = |text: Option<&str>| text?.parse().ok();
    if let Some(port) = port(text.strip_prefix(':')) {
        return Some(IntrospectionBind::Everywhere(port));
    }
    if let Some(port) = port(text.strip_prefix("localhost:")) {
        return Some(IntrospectionBind::Address((std::net::Ipv4Addr::LOCALHOST, port).into()));
    }
    text.parse().ok().map(IntrospectionBind::Address)
}
