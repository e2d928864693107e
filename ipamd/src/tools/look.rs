//! Asks those who know: the daemon, the kernel, the runtime's cache, EC2. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datapath::netfilter::{EgressSpec, Netfilter, NetfilterError, egress_ruleset, ruleset};
use datapath::{Family, Host, HostSeen, desired, read_sysctl};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::Deserialize;
use types::{Moment, PodName, Prefix, SandboxKey};

use super::evidence::{CloudEni, Evidence, Ipv6Table, Live, Look, NETWORK, Nftables, RuntimeSandbox};
use super::{networks, saved};
use crate::cloud::{Ec2, EniRecord, Imds};
use crate::cluster::Notes;
use crate::config;
use crate::estate::INSTANCE_TAG;
use crate::host::HostRecord;
use crate::metrics::Metrics;
use crate::server::chain;

/// Name of the document in a saved directory that has what was asked.
pub(super) const LIVE_FILE: &str = "live.json";
/// Where runtimes that use libcni keep what plugins told them.
pub(super) const CNI_CACHE: &str = "/var/lib/cni/results";
/// A cached result holds the configuration and the result: some KiB.
const RESULT_BYTES_MAX: u64 = 1024 * 1024;
/// The longest EC2 and instance metadata may take together.
const CLOUD_PATIENCE: Duration = Duration::from_secs(30);
/// A setting of all links, which the kernel combines with each link's own.
const ALL_RP_FILTER: &str = "net/ipv4/conf/all/rp_filter";

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Whom {
    /// The daemon's directory.
    pub run_dir: PathBuf,
    /// The runtime's cache of results.
    pub cni_cache: PathBuf,
    /// The plugin, as the image has it.
    pub plugin: PathBuf,
    /// Whether EC2 and instance metadata are asked.
    pub cloud: bool,
}

/// The present moment.
fn now() -> Moment {
    Moment::default().plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A directory that was saved, with what was asked then, if it is there.
#[must_use]
pub fn directory(dir: &Path) -> Evidence {
    let live = match saved::json::<Live>(&dir.join(LIVE_FILE)) {
        Ok(Some(live)) => live,
        Ok(None) => {
            let why = format!("there is no {LIVE_FILE} in {}, which `ipamd bundle` makes", dir.display());
            // Without the kernel nobody can say that all is well.
            let host = Look::Failed(why.clone());
            Live { host, ..with_all(&Look::Skipped(why)) }
        }
        Err(trouble) => with_all(&Look::Failed(trouble)),
    };
    Evidence { dir: dir.to_owned(), saved: saved::read(dir, live.taken), live }
}

/// The same answer from everybody.
fn with_all(why: &Look<()>) -> Live {
    fn same<T>(why: &Look<()>) -> Look<T> {
        match why {
            Look::Failed(why) => Look::Failed(why.clone()),
            Look::Skipped(why) => Look::Skipped(why.clone()),
            Look::Seen(()) => Look::default(),
        }
    }
    Live {
        daemon: same(why),
        host: same(why),
        nftables: same(why),
        legacy: same(why),
        runtime: same(why),
        networks: same(why),
        plugin: same(why),
        cloud: same(why),
        ..Live::default()
    }
}

/// Asks on this node.
#[must_use]
pub fn node(whom: &Whom) -> Evidence {
    let taken = now();
    let mut saved = saved::read(&whom.run_dir, taken);
    if saved.unread {
        let why = if whom.run_dir.exists() {
            "it takes root"
        } else {
            "no daemon has run on this node, or it has another directory (--run-dir)"
        };
        saved.troubles.push(format!("who holds which address: {why}"));
    }
    let daemon = match crate::status::fetch(&wire::socket_in(&whom.run_dir)) {
        Ok(report) => Look::Seen(Box::new(report)),
        Err(failure) => Look::Failed(
            format!("{}: {}", failure.message, failure.details).trim_end_matches([':', ' ']).to_owned(),
        ),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (host, cloud) = match &runtime {
        Ok(runtime) => runtime.block_on(async { (host(), cloud(whom.cloud).await) }),
        Err(error) => (Look::Failed(error.to_string()), Look::Failed(error.to_string())),
    };
    let record = saved.record.as_ref();
    let live = Live {
        taken,
        run_dir: whom.run_dir.clone(),
        daemon,
        sysctls: sysctls(record, host.seen()),
        nftables: nftables(record, host.seen()),
        legacy: Netfilter::legacy_leftovers()
            .map_or_else(|error| Look::Failed(error.to_string()), Look::Seen),
        host,
        runtime: sandboxes(&whom.cni_cache),
        networks: networks::networks(saved.published.as_ref()),
        plugin: networks::plugin(saved.published.as_ref(), &whom.plugin),
        cloud,
        files: saved::files(&whom.run_dir),
    };
    Evidence { dir: whom.run_dir.clone(), saved, live }
}

fn host() -> Look<HostSeen> {
    let looked = Host::open().and_then(|mut host| host.look());
    looked.map_or_else(|error| Look::Failed(chain(&error)), Look::Seen)
}

fn sysctls(record: Option<&HostRecord>, host: Option<&HostSeen>) -> BTreeMap<String, String> {
    let (Some(record), Some(host)) = (record, host) else { return BTreeMap::new() };
    let wanted = desired::sysctls(&record.wish.node, &host.by_mac()).into_iter().map(|sysctl| sysctl.path);
    let paths = wanted.chain([ALL_RP_FILTER.to_owned()]);
    // One that is not there (IPv6 where the kernel lacks it) says nothing.
    paths.filter_map(|path| Some((path.clone(), read_sysctl(&path).ok()?))).collect()
}

fn nftables(record: Option<&HostRecord>, host: Option<&HostSeen>) -> Look<Nftables> {
    let mut netfilter = Netfilter::default();
    let mut look = || -> Result<Nftables, String> {
        let failed = |error: &dyn std::error::Error| chain(error);
        let spec = match (record, host) {
            (Some(record), Some(host)) => record.nat_spec(&host.by_mac()).map_err(|error| failed(&error))?,
            (None, _) | (_, None) => None,
        };
        let differences = spec.map(|spec| netfilter.differences(&ruleset(&spec))).transpose();
        let egress = record.and_then(HostRecord::egress_spec);
        let mut ipv6 = |spec: EgressSpec| {
            let differences = netfilter.differences(&egress_ruleset(&spec))?;
            Ok(Ipv6Table { is_there: netfilter.is_there(Family::V6)?, differences })
        };
        let ipv6 = egress.map(&mut ipv6).transpose();
        Ok(Nftables {
            ipv6: ipv6.map_err(|error: NetfilterError| failed(&error))?,
            table: netfilter.told().map_err(|error| failed(&error))?,
            differences: differences.map_err(|error| failed(&error))?,
            chains: netfilter.chains().map_err(|error| failed(&error))?,
        })
    };
    look().map_or_else(Look::Failed, Look::Seen)
}

/// What libcni keeps of an ADD that succeeded, as far as it concerns us. The configuration and the capabilities' arguments,
/// which may hold anything, are not even read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CachedResult {
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: ResultOfAdd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResultOfAdd {
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: IpNetwork,
}

/// The sandboxes of our network in the runtime's cache.
fn sandboxes(cache: &Path) -> Look<Vec<RuntimeSandbox>> {
    let names = match saved::names(cache) {
        Ok(names) => names,
        Err(error) => {
            return Look::Skipped(format!(
                "{}: {error}; --cni-cache says where results are",
                cache.display()
            ));
        }
    };
    let of_ours = names.iter().filter(|name| name.starts_with(NETWORK));
    let mut sandboxes = Vec::new();
    for name in of_ours {
        let path = cache.join(name);
        match saved::bytes(&path, RESULT_BYTES_MAX) {
            // One that is gone since has had its DEL.
            Ok(None) => {}
            Ok(Some(bytes)) => match serde_json::from_slice::<CachedResult>(&bytes) {
                Ok(cached) if cached.network_name == NETWORK => sandboxes.extend(cached.sandbox()),
                Ok(_) => {}
                Err(error) => return Look::Failed(format!("{}: {error}", path.display())),
            },
            Err(error) => return Look::Failed(format!("{}: {error}", path.display())),
        }
    }
    Look::Seen(sandboxes)
}

impl CachedResult {
    fn sandbox(&self) -> Option<RuntimeSandbox> {
        let argument = |name: &str| {
            let found = self.cni_args.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let pod = PodName { namespace: argument("K8S_POD_NAMESPACE"), name: argument("K8S_POD_NAME") };
        let sandbox = SandboxKey::new(&self.network_name, &self.container_id, &self.if_name).ok()?;
        let addresses: Vec<IpAddr> = self.result.ips.iter().map(|ip| ip.address.ip()).collect();
        Some(RuntimeSandbox { sandbox, pod, addresses })
    }
}

async fn cloud(asked: bool) -> Look<Vec<CloudEni>> {
    if !asked {
        return Look::Skipped("--cloud asks it, with the daemon's settings and credentials".to_owned());
    }
    match tokio::time::timeout(CLOUD_PATIENCE, ask_ec2()).await {
        Ok(Ok(enis)) => Look::Seen(enis),
        Ok(Err(why)) => Look::Failed(why),
        Err(_elapsed) => Look::Failed(format!("no answer within {} s", CLOUD_PATIENCE.as_secs())),
    }
}

async fn ask_ec2() -> Result<Vec<CloudEni>, String> {
    let config = config::from_process()
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let identity = Imds::connect(&config).identity().await.map_err(|error| chain(&error))?;
    let ec2 = Ec2::connect(&config, &identity.region, Metrics::default(), Notes::default()).await;
    let inventory = ec2.inventory(&identity.instance).await.map_err(|error| chain(&error))?;
    let ours = |record: &EniRecord| {
        let tag = record.tags.as_ref().and_then(|tags| tags.get(INSTANCE_TAG));
        tag.is_some_and(|tag| tag == identity.instance.as_str())
    };
    let enis = inventory.enis.into_iter().map(|record| CloudEni {
        ours: ours(&record),
        sources: sources(&record),
        id: record.id,
        mac: record.mac,
        primary_address: record.primary_address,
        ipv6: Some(record.ipv6_prefixes),
    });
    Ok(enis.collect())
}

fn sources(record: &EniRecord) -> BTreeSet<Ipv4Network> {
    let prefixes = record.prefixes.iter();
    let prefixes = prefixes.filter_map(|prefix| Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok());
    record.addresses.iter().copied().map(Ipv4Network::from).chain(prefixes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_cached_result_only_what_we_know_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"kind":"cniCacheV1","containerId":"c1","config":"c2VjcmV0","ifName":"eth0","networkName":"aws-cni",
            "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web"]],
            "capabilityArgs":{"any":{"token":"secret"}},
            "result":{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.0.0.9/32"}],"dns":{}}}"#;
        std::fs::write(dir.path().join("aws-cni-c1-eth0"), text).unwrap();
        std::fs::write(dir.path().join("cni-loopback-c1-lo"), "{}").unwrap();

        let Look::Seen(seen) = sandboxes(dir.path()) else { panic!("not seen") };

        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].pod.to_string(), "default/web");
        assert_eq!(seen[0].addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert!(!serde_json::to_string(&seen).unwrap().contains("secret"));
    }

    #[test]
    fn of_a_state_alone_nobody_says_that_all_is_well() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state"), "").unwrap();

        let evidence = directory(dir.path());

        assert!(matches!(&evidence.live.host, Look::Failed(why) if why.contains("`ipamd bundle` makes")));
        assert!(matches!(evidence.live.runtime, Look::Skipped(_)));
    }

    #[test]
    fn a_cache_that_is_not_there_is_no_failure_and_one_that_is_garbage_is() {
        let dir = tempfile::tempdir().unwrap();

        assert!(matches!(sandboxes(&dir.path().join("none")), Look::Skipped(_)));
        std::fs::write(dir.path().join("aws-cni-c1-eth0"), [0xff; 9]).unwrap();
        assert!(matches!(sandboxes(dir.path()), Look::Failed(_)));
    }
}
