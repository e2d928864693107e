//! The conflist: what the runtime is told about us. Its presence says that there is a network.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::{self, Outcome};
use super::{CONFLIST, PLUGIN};
use crate::config::{Config, DEFAULT_RUN_DIR, Install};

/// Pause before a conflist that cannot be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// The capability by which the runtime passes a pod's annotations: by one of them a pod asks for an interface of every network card.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Pod settings that switch IPv6 off, on interfaces of now and of later.
const NO_IPV6: [&str; 3] = ["all", "default", "lo"];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: Vec<Plugin<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Plugin<'a> {
    Ours(Ours<'a>),
    Chained(Chained),
}

/// What our plugin reads, and what the Go version's does when the node is handed back to it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ours<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    file: &'a str,
    veth_prefix: &'a str,
    /// Digits in a string: the Go version's plugin reads nothing else.
    mtu: String,
    /// Whether the plugin switches IPv6 on in a pod where it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<bool>,
    #[serde(rename = "podSGEnforcingMode")]
    pod_sg_enforcing_mode: &'a str,
    /// What the runtime is asked to pass on to us.
    capabilities: BTreeMap<&'a str, bool>,
    plugin_log_file: &'a str,
    plugin_log_level: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_dir: Option<PathBuf>,
}

/// A plugin of other people.
#[derive(Serialize)]
struct Chained {
    #[serde(rename = "type")]
    file: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<BTreeMap<&'static str, bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snat: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sysctl: Option<BTreeMap<String, &'static str>>,
}

/// The conflist of these settings, and warnings. Only plugins that are there are chained: one that is not would fail every pod.
#[must_use]
pub fn render(config: &Config, is_there: &dyn Fn(&str) -> bool) -> (String, Vec<String>) {
    let mut warnings = Vec::new();
    let mut chained = wanted(&config.install);
    chained.retain(|plugin| {
        let there = is_there(plugin.file);
        if !there {
            let bin = config.install.bin_dir.display();
            warnings.push(format!("{bin} has no {}, so pods have none of what it does", plugin.file));
        }
        there
    });
    let mut plugins = vec![Plugin::Ours(ours(config))];
    plugins.extend(chained.into_iter().map(Plugin::Chained));
    let list = List { cni_version: &config.install.cni_version, name: PLUGIN, plugins };
    // Maps of texts cannot fail to be JSON.
    let text = serde_json::to_string_pretty(&list).unwrap_or_default();
    (text + "\n", warnings)
}

fn ours(config: &Config) -> Ours<'_> {
    // The plugin knows where the daemon is by itself, unless it is elsewhere.
    let elsewhere = (config.run_dir != Path::new(DEFAULT_RUN_DIR)).then_some(&config.run_dir);
    Ours {
        name: PLUGIN,
        file: PLUGIN,
        veth_prefix: config.veth_prefix.as_str(),
        mtu: config.pod_mtu.to_string(),
        ipv6: config.families.has_ipv6().then_some(true),
        pod_sg_enforcing_mode: &config.install.enforcing_mode,
        capabilities: BTreeMap::from([(POD_ANNOTATIONS, true)]),
        plugin_log_file: &config.install.log_file,
        plugin_log_level: &config.install.log_level,
        socket: elsewhere.map(|dir| wire::socket_in(dir)),
        queue_dir: elsewhere.map(|dir| dir.join("delete-queue")),
    }
}

/// What the settings chain behind us, in order.
fn wanted(install: &Install) -> Vec<Chained> {
    let plain = |file| Chained { file, capabilities: None, snat: None, sysctl: None };
    let capable = |capability| Some(BTreeMap::from([(capability, true)]));
    let portmap = Chained { capabilities: capable("portMappings"), snat: Some(true), ..plain("portmap") };
    let bandwidth = Chained { capabilities: capable("bandwidth"), ..plain("bandwidth") };
    let off = NO_IPV6.map(|what| (format!("net.ipv6.conf.{what}.disable_ipv6"), "1"));
    let tuning = Chained { sysctl: Some(off.into()), ..plain("tuning") };
    let bandwidth = install.bandwidth.then_some(bandwidth);
    let tuning = install.disable_pod_v6.then_some(tuning);
    std::iter::once(portmap).chain(bandwidth).chain(tuning).collect()
}

/// What was published, as it is kept in the run directory for those who look at the node without the daemon: [`crate::tools`].
/// The daemon itself never reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The conflist's file, as the daemon knows it.
    pub file: PathBuf,
    /// What was written there.
    pub conflist: String,
    /// Where the plugin is for the runtime, as the daemon knows it.
    pub plugin: PathBuf,
}

/// Where that is.
#[must_use]
pub fn published_file(run_dir: &Path) -> PathBuf {
    run_dir.join("conflist.json")
}

/// Puts the conflist in place.
#[derive(Debug, Clone)]
pub struct Publisher {
    config: Config,
}

impl Publisher {
    /// For the conflist of these settings.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { config: config.clone() }
    }

    /// Writes it in a thread of its own, and goes on trying until it is there: without it the node has no pods.
    pub(crate) fn start(self) {
        let thread = std::thread::Builder::new().name("conflist".to_owned());
        if let Err(error) = thread.spawn(move || self.run()) {
            tracing::error!(%error, "cannot start the thread that writes the conflist");
        }
    }

    fn run(&self) {
        let path = self.config.install.conf_dir.join(CONFLIST);
        let mut told = String::new();
        loop {
            match self.write(&path) {
                Ok(outcome) => {
                    tracing::info!(path = %path.display(), "pods can be served; conflist: {outcome}");
                    return;
                }
                Err(error) if error.to_string() != told => {
                    told = error.to_string();
                    tracing::error!(%error, path = %path.display(), "cannot write the conflist: the runtime does not know of us");
                }
                Err(_) => {}
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn write(&self, path: &Path) -> io::Result<Outcome> {
        let bin = &self.config.install.bin_dir;
        let (text, warnings) = render(&self.config, &|name| bin.join(name).exists());
        self.write_down(path, &text);
        let outcome = files::put(path, text.as_bytes(), 0o644)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(outcome)
    }

    /// Nothing depends on it: what cannot be written is told.
    fn write_down(&self, path: &Path, text: &str) {
        let plugin = self.config.install.bin_dir.join(PLUGIN);
        let published = Published { file: path.to_owned(), conflist: text.to_owned(), plugin };
        let file = published_file(&self.config.run_dir);
        let bytes = serde_json::to_vec(&published).map_err(io::Error::from);
        if let Err(error) = bytes.and_then(|bytes| files::put(&file, &bytes, 0o600)) {
            tracing::warn!(%error, file = %file.display(), "cannot write down what the runtime should find");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[(&str, &str)]) -> Config {
        Config::parse(&settings.iter().map(|(name, text)| (name.into(), text.into())).collect()).unwrap()
    }

    fn parsed(settings: &[(&str, &str)]) -> serde_json::Value {
        serde_json::from_str(&render(&config(settings), &|_| true).0).unwrap()
    }

    #[test]
    fn the_conflist_without_settings_is_this_one() {
        let (text, warnings) = render(&config(&[]), &|_| true);

        assert_eq!(text, include_str!("10-aws.conflist"));
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn every_setting_of_the_conflist_comes_through() {
        let list = parsed(&[
            ("AWS_VPC_K8S_CNI_VETHPREFIX", "pod"),
            ("AWS_VPC_ENI_MTU", "8000"),
            ("POD_MTU", "1400"),
            ("POD_SECURITY_GROUP_ENFORCING_MODE", "Standard"),
            ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "/var/log/x"),
            ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "DEBUG"),
            ("IPAMD_CONFLIST_VERSION", "0.4.0"),
            ("ENABLE_BANDWIDTH_PLUGIN", "true"),
            ("DISABLE_POD_V6", "true"),
            ("IPAMD_RUN_DIR", "/run/elsewhere"),
        ]);

        assert_eq!(list["cniVersion"], "0.4.0");
        let ours = serde_json::json!({
            "name": "aws-cni", "type": "aws-cni", "vethPrefix": "pod", "mtu": "1400",
            "podSGEnforcingMode": "standard", "pluginLogFile": "/var/log/x", "pluginLogLevel": "debug",
            "socket": wire::socket_in(Path::new("/run/elsewhere")), "queueDir": "/run/elsewhere/delete-queue",
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        });
        assert_eq!(list["plugins"][0], ours);
        let types: Vec<_> = list["plugins"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect();
        assert_eq!(types, ["aws-cni", "portmap", "bandwidth", "tuning"]);
        assert_eq!(list["plugins"][2]["capabilities"], serde_json::json!({"bandwidth": true}));
        assert_eq!(list["plugins"][3]["sysctl"]["net.ipv6.conf.default.disable_ipv6"], "1");
    }

    #[test]
    fn pods_have_the_mtu_of_enis_unless_they_have_their_own() {
        assert_eq!(parsed(&[("AWS_VPC_ENI_MTU", "1500")])["plugins"][0]["mtu"], "1500");
        assert_eq!(parsed(&[])["plugins"][0]["mtu"], "9001");
    }

    #[test]
    fn the_plugin_hears_of_ipv6_where_pods_have_it() {
        for (setting, ipv6) in [("ENABLE_IPv6", true), ("ENABLE_V6_EGRESS", true), ("DISABLE_METRICS", false)]
        {
            assert_eq!(parsed(&[(setting, "true")])["plugins"][0]["ipv6"] == true, ipv6, "{setting}");
        }
    }

    #[test]
    fn a_plugin_that_is_not_there_is_not_chained_and_is_warned_of() {
        let config = config(&[("ENABLE_BANDWIDTH_PLUGIN", "true")]);

        let (text, warnings) = render(&config, &|name| name == "bandwidth");

        assert!(text.contains("bandwidth") && !text.contains("portmap"), "{text}");
        assert_eq!(warnings, ["/host/opt/cni/bin has no portmap, so pods have none of what it does"]);
    }

    #[test]
    fn the_daemon_and_the_plugin_mean_the_same_queue() {
        assert_eq!(Path::new(DEFAULT_RUN_DIR).join("delete-queue"), Path::new(wire::queue::DIRECTORY));
    }

    #[test]
    fn what_is_published_is_written_down_for_those_who_look_later() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let settings = [("IPAMD_RUN_DIR", text(dir.path())), ("HOST_CNI_BIN_PATH", "/host/bin".to_owned())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let path = dir.path().join(CONFLIST);

        Publisher::new(&config(&settings)).write(&path).unwrap();

        let told = std::fs::read(published_file(dir.path())).unwrap();
        let Published { file, conflist, plugin } = serde_json::from_slice(&told).unwrap();
        assert_eq!((file, plugin), (path.clone(), PathBuf::from("/host/bin/aws-cni")));
        assert_eq!(conflist, std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn a_conflist_of_others_is_replaced_and_our_own_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFLIST);
        let run_dir = dir.path().to_str().unwrap();
        let settings = [("HOST_CNI_BIN_PATH", "/nowhere"), ("IPAMD_RUN_DIR", run_dir)];
        let publisher = Publisher::new(&config(&settings));
        std::fs::write(&path, r#"{"cniVersion":"0.4.0","name":"aws-cni","plugins":[]}"#).unwrap();

        let outcomes = [publisher.write(&path).unwrap(), publisher.write(&path).unwrap()];

        assert_eq!(outcomes, [Outcome::Replaced, Outcome::Same]);
        assert!(publisher.write(&dir.path().join("nowhere").join(CONFLIST)).is_err());
    }
}
