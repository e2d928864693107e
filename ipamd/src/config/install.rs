//! Settings of the installer and of the conflist: what is put on the host, and what the plugin and its neighbours in the chain are told.

use std::path::{Path, PathBuf};

use super::SettingError;
use super::read::Reader;
use super::table::{self, Setting};
use crate::families::Families;

/// The smallest MTU with which IPv6 works, in bytes (RFC 8200, section 5).
const IPV6_MTU_MIN: u32 = 1280;

/// What the installer does, and what the conflist says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// Where plugins are.
    pub bin_dir: PathBuf,
    /// Where the conflist goes.
    pub conf_dir: PathBuf,
    /// CNI version of the conflist.
    pub cni_version: String,
    /// How security groups for pods are enforced, as the conflist says it.
    pub enforcing_mode: String,
    /// The plugin's log on the host, or `stderr`.
    pub log_file: String,
    /// Its level.
    pub log_level: String,
    /// Whether the bandwidth plugin is chained.
    pub bandwidth: bool,
    /// Whether pods have IPv6 switched off.
    pub disable_pod_v6: bool,
    /// Whether the kernel may look up TCP sockets before routes.
    pub early_demux: bool,
}

impl Install {
    pub(super) fn read(reader: &mut Reader<'_>, families: Families) -> Self {
        Self {
            bin_dir: reader.text(&table::BIN_PATH).unwrap_or_default().into(),
            conf_dir: reader.text(&table::CONF_PATH).unwrap_or_default().into(),
            cni_version: reader.word(&table::CONFLIST_VERSION),
            enforcing_mode: reader.word(&table::POD_SG_MODE),
            log_file: reader.parsed(&table::PLUGIN_LOG_FILE, log_file).unwrap_or_default(),
            log_level: reader.word(&table::PLUGIN_LOG_LEVEL),
            bandwidth: reader.flag(&table::BANDWIDTH),
            disable_pod_v6: disable_pod_v6(reader, families),
            early_demux: !reader.flag(&table::EARLY_DEMUX),
        }
    }
}

/// Standard output is the plugin's answer, and a path that is not absolute would be one below wherever the runtime was started.
fn log_file(text: &str) -> Option<String> {
    (text == "stderr" || Path::new(text).is_absolute()).then(|| text.to_owned())
}

/// Pods that get IPv6 addresses and have IPv6 switched off are what nobody can mean.
fn disable_pod_v6(reader: &mut Reader<'_>, families: Families) -> bool {
    let wanted = reader.flag(&table::DISABLE_POD_V6);
    if wanted && families.has_ipv6() {
        let other = if families.needs_prefix() { &table::ENABLE_IPV6 } else { &table::V6_EGRESS };
        let (name, other) = (table::DISABLE_POD_V6.name, other.name);
        reader.errors.push(SettingError::Together { name, other });
    }
    wanted
}

/// A setting in bytes, not less than what IPv6 needs where there is IPv6.
pub(super) fn mtu(reader: &mut Reader<'_>, setting: &Setting, ipv6: bool) -> Option<u32> {
    let mtu = reader.number(setting)?;
    if mtu < IPV6_MTU_MIN && ipv6 {
        let found = mtu.to_string();
        reader.errors.push(SettingError::Unfit { name: setting.name, found, doc: setting.doc });
    }
    Some(mtu)
}
