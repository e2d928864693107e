//! The network configuration on standard input.
//!
//! Keys that are not named here are not looked at, among them `podSGEnforcingMode` (which the daemon knows itself). Of
//! `runtimeConfig`, which may carry every annotation of the pod, one is read and nothing is kept.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use types::{SandboxKeyError, VethPrefix, VethPrefixError};
use wire::Kept;

use crate::environment::Command;
use crate::log::Sink;
use crate::output::Shape;
use crate::patience::TIMEOUT_MAX;
use crate::version::CniVersion;

/// MTU of pod interfaces unless configured, in bytes: jumbo frames, which every VPC carries.
const MTU_DEFAULT: u32 = 9001;
/// The smallest MTU that is accepted, in bytes: what every IPv4 host must take in one piece.
const MTU_MIN: u32 = 576;

/// Pods have fewer addresses than this.
const ADDRESSES_MAX: usize = 64;

/// The capability by which the runtime passes a pod's annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The annotation by which a pod asks for more than one interface, and the one value that means something.
const NIC_CONFIG: &str = "k8s.amazonaws.com/nicConfig";
const EVERY_CARD: &str = "multi-nic-attachment";

/// A configuration of a version that we speak.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) version: CniVersion,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Pods get IPv6 addresses: it is switched on inside where somebody has switched it off.
    pub(crate) ipv6: bool,
    /// The pod asks for an interface of every network card.
    pub(crate) multi_nic: bool,
    /// For whom ADD's result is.
    pub(crate) shape: Shape,
    pub(crate) socket: PathBuf,
    pub(crate) queue: PathBuf,
    pub(crate) timeout: Option<Duration>,
    pub(crate) log: Sink,
    /// The result of the plugin before, as it came.
    pub(crate) prev_result: Option<Value>,
    veth_prefix: Option<String>,
    attachments: Option<Vec<Kept>>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("error unmarshall network config")]
    Decode(#[source] serde_json::Error),
    #[error("missing network name")]
    NameMissing,
    #[error("invalid network name")]
    Name(#[source] SandboxKeyError),
    #[error(
        "incompatible CNI versions; config is {found:?}, plugin supports {:?}",
        CniVersion::ALL.map(CniVersion::as_str)
    )]
    Version { found: String },
    #[error("config version {version} does not allow {command}, which came with {since}")]
    TooOld { version: CniVersion, command: Command, since: CniVersion },
    #[error("invalid vethPrefix")]
    VethPrefix(#[source] VethPrefixError),
    #[error(
        "prevResult given to ADD: this plugin creates the pod's interface, so it must be the first of its list"
    )]
    NotFirst,
    #[error("required prevResult missing")]
    PrevResultMissing,
    #[error("cni.dev/valid-attachments missing: nothing is released without a list of what stays")]
    AttachmentsMissing,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    mtu: Value,
    #[serde(default)]
    ipv6: Value,
    #[serde(default)]
    plain_result: Value,
    veth_prefix: Option<String>,
    #[serde(default)]
    runtime_config: Value,
    plugin_log_file: Option<String>,
    plugin_log_level: Option<String>,
    prev_result: Option<Value>,
    socket: Option<PathBuf>,
    queue_dir: Option<PathBuf>,
    timeout_seconds: Option<u64>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
    /// The name by which the reference library sends the same list, beside the right one.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
    #[serde(rename = "ifname", alias = "ifName")]
    if_name: String,
}

impl Config {
    /// Decodes a configuration and checks its name and version, in this order.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(ConfigError::Decode)?;
        let name = raw.name.filter(|n| !n.is_empty()).ok_or(ConfigError::NameMissing)?;
        // Absent means 0.1.0, says the specification.
        let found = raw.cni_version.filter(|v| !v.is_empty()).unwrap_or_else(|| "0.1.0".to_owned());
        let version = CniVersion::of(&found)
            .ok_or_else(|| ConfigError::Version { found: found.chars().take(32).collect() })?;
        Ok(Self {
            version,
            name,
            mtu: mtu(&raw.mtu),
            ipv6: raw.ipv6 == true || raw.ipv6 == "true",
            multi_nic: wants_every_card(&raw.runtime_config),
            shape: if raw.plain_result == true { Shape::Plain } else { Shape::Go },
            socket: raw.socket.unwrap_or_else(|| wire::SOCKET_PATH.into()),
            queue: raw.queue_dir.unwrap_or_else(|| wire::queue::DIRECTORY.into()),
            timeout: raw.timeout_seconds.map(timeout),
            log: Sink::new(raw.plugin_log_file, raw.plugin_log_level.as_deref()),
            veth_prefix: raw.veth_prefix.filter(|p| !p.is_empty()),
            prev_result: raw.prev_result,
            attachments: kept(raw.valid_attachments, raw.attachments),
        })
    }

    /// How host interface names start.
    pub(crate) fn veth_prefix(&self) -> Result<VethPrefix, ConfigError> {
        self.veth_prefix
            .as_deref()
            .map_or_else(|| Ok(VethPrefix::default()), VethPrefix::new)
            .map_err(ConfigError::VethPrefix)
    }

    /// What must not be released. Both an absent list and `null` are an error: neither may release everything.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Kept>, ConfigError> {
        self.attachments.clone().ok_or(ConfigError::AttachmentsMissing)
    }

    /// The addresses in the result that the runtime keeps of ADD; what is no address there is left out.
    pub(crate) fn added_addresses(&self) -> Vec<IpAddr> {
        let ips = self.prev_result.as_ref().and_then(|result| result.get("ips")?.as_array());
        let texts = ips.into_iter().flatten().filter_map(|ip| ip.get("address")?.as_str());
        let address = |text: &str| text.split('/').next()?.parse().ok();
        texts.filter_map(address).take(ADDRESSES_MAX).collect()
    }

    /// Whether the command exists in this version.
    pub(crate) fn speaks(&self, command: Command) -> Result<(), ConfigError> {
        let since = match command {
            Command::Add | Command::Del | Command::Version => CniVersion::V0_3_0,
            Command::Check => CniVersion::V0_4_0,
            Command::Gc | Command::Status => CniVersion::V1_1_0,
        };
        let version = self.version;
        if version < since { Err(ConfigError::TooOld { version, command, since }) } else { Ok(()) }
    }

    /// Whether the command exists in this version, and whether `prevResult` is there as the command needs it.
    pub(crate) fn allows(&self, command: Command) -> Result<(), ConfigError> {
        self.speaks(command)?;
        match (command, self.prev_result.is_some()) {
            (Command::Add, true) => Err(ConfigError::NotFirst),
            (Command::Check, false) => Err(ConfigError::PrevResultMissing),
            _ => Ok(()),
        }
    }
}

/// A number, or its digits in a string as the installed configuration has it; what cannot be is the default.
fn mtu(value: &Value) -> u32 {
    let number = match value {
        Value::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.filter(|n| (MTU_MIN..=MTU_DEFAULT).contains(n)).unwrap_or(MTU_DEFAULT)
}

/// Whether the pod's annotation asks for an interface of every network card; any other value asks for nothing.
fn wants_every_card(runtime_config: &Value) -> bool {
    let annotation = runtime_config.get(POD_ANNOTATIONS).and_then(|annotations| annotations.get(NIC_CONFIG));
    annotation.and_then(Value::as_str) == Some(EVERY_CARD)
}

fn timeout(seconds: u64) -> Duration {
    Duration::from_secs(seconds).clamp(Duration::from_secs(1), TIMEOUT_MAX)
}

/// Should the two lists differ, what stands in either stays.
fn kept(right: Option<Vec<Attachment>>, misspelt: Option<Vec<Attachment>>) -> Option<Vec<Kept>> {
    if right.is_none() && misspelt.is_none() {
        return None;
    }
    let both = right.into_iter().chain(misspelt).flatten();
    let mut kept: Vec<_> = both.map(|a| Kept { container_id: a.container_id, if_name: a.if_name }).collect();
    kept.sort_unstable();
    kept.dedup();
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> Result<Config, ConfigError> {
        Config::decode(
            format!(r#"{{"cniVersion":"1.1.0","name":"aws-cni","type":"aws-cni"{rest}}}"#).as_bytes(),
        )
    }

    #[test]
    fn one_annotation_with_one_value_asks_for_every_card() {
        let asks = |rest: &str| config(rest).unwrap().multi_nic;
        let annotations =
            |text: &str| format!(r#","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{text}}}"#);

        assert!(asks(&annotations(r#"{"a":"b","k8s.amazonaws.com/nicConfig":"multi-nic-attachment"}"#)));
        for none in [
            String::new(),
            r#","runtimeConfig":null"#.to_owned(),
            r#","runtimeConfig":[1]"#.to_owned(),
            r#","runtimeConfig":{"k8s.amazonaws.com/nicConfig":"multi-nic-attachment"}"#.to_owned(),
            annotations("null"),
            annotations("7"),
            annotations(r#"{"k8s.amazonaws.com/nicConfig":true}"#),
            annotations(r#"{"k8s.amazonaws.com/nicConfig":"multi-nic"}"#),
            annotations(r#"{"k8s.amazonaws.com/nicconfig":"multi-nic-attachment"}"#),
        ] {
            assert!(!asks(&none), "{none}");
        }
    }

    #[test]
    fn form_is_checked_before_name_and_name_before_version() {
        let error = |text: &str| Config::decode(text.as_bytes()).unwrap_err();

        for bad in [
            "",
            "{",
            "[]",
            "null",
            "7",
            r#"{"name":3}"#,
            r#"{"cniVersion":1.0,"name":"a"}"#,
            "{\"name\":\"\u{0}\"}",
        ] {
            assert!(matches!(error(bad), ConfigError::Decode(_)), "{bad}");
        }
        assert!(matches!(error(r#"{"cniVersion":"9.9.9"}"#), ConfigError::NameMissing));
        assert!(matches!(error(r#"{"cniVersion":"9.9.9","name":""}"#), ConfigError::NameMissing));
        assert!(matches!(error(r#"{"cniVersion":"9.9.9","name":"a"}"#), ConfigError::Version { .. }));
    }

    #[test]
    fn a_configuration_without_version_is_of_version_0_1_0() {
        let error = Config::decode(br#"{"name":"a"}"#).unwrap_err();

        assert_eq!(
            error.to_string(),
            r#"incompatible CNI versions; config is "0.1.0", plugin supports ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]"#
        );
    }

    #[test]
    fn ipv6_is_wanted_where_it_says_true_in_either_form() {
        let ipv6 = |rest: &str| config(rest).unwrap().ipv6;

        assert_eq!([ipv6(r#","ipv6":true"#), ipv6(r#","ipv6":"true""#)], [true, true]);
        for rest in ["", r#","ipv6":false"#, r#","ipv6":"false""#, r#","ipv6":1"#, r#","ipv6":null"#] {
            assert!(!ipv6(rest), "{rest}");
        }
    }

    #[test]
    fn an_mtu_is_a_number_or_its_digits_and_falls_back_to_9001() {
        let mtu = |text: &str| config(&format!(r#","mtu":{text}"#)).unwrap().mtu;

        assert_eq!(config("").unwrap().mtu, 9001);
        assert_eq!([mtu("1500"), mtu("\"1500\""), mtu("576"), mtu("\"9001\"")], [1500, 1500, 576, 9001]);
        for bad in
            ["575", "9002", "-1", "1500.5", "\"\"", "\"1500 \"", "\"x\"", "null", "true", "{}", "4294967872"]
        {
            assert_eq!(mtu(bad), 9001, "{bad}");
        }
    }

    #[test]
    fn a_veth_prefix_is_checked_only_when_it_is_asked_for() {
        let prefix = |text: &str| config(&format!(r#","vethPrefix":"{text}""#)).unwrap().veth_prefix();

        assert_eq!(prefix("").unwrap(), VethPrefix::default());
        assert_eq!(prefix("pod").unwrap().as_str(), "pod");
        assert!(matches!(prefix("toolong"), Err(ConfigError::VethPrefix(_))));
    }

    #[test]
    fn paths_and_patience_have_defaults_and_bounds() {
        let default = config("").unwrap();
        let given = config(r#","socket":"/a","queueDir":"/b","timeoutSeconds":7"#).unwrap();
        let timeout = |n: u64| config(&format!(r#","timeoutSeconds":{n}"#)).unwrap().timeout;

        assert_eq!(
            (default.socket, default.queue),
            (wire::SOCKET_PATH.into(), wire::queue::DIRECTORY.into())
        );
        assert_eq!(default.timeout, None);
        assert_eq!((given.socket, given.queue), ("/a".into(), "/b".into()));
        assert_eq!(given.timeout, Some(Duration::from_secs(7)));
        assert_eq!([timeout(0), timeout(u64::MAX)], [Some(Duration::from_secs(1)), Some(TIMEOUT_MAX)]);
    }

    #[test]
    fn a_list_of_attachments_is_read_under_either_name() {
        let list = r#"[{"containerID":"a","ifname":"eth0"}]"#;
        let valid = |rest: &str| config(rest).unwrap().valid_attachments();
        let a = vec![Kept { container_id: "a".to_owned(), if_name: "eth0".to_owned() }];

        assert_eq!(valid(&format!(r#","cni.dev/valid-attachments":{list}"#)).unwrap(), a);
        assert_eq!(valid(&format!(r#","cni.dev/attachments":{list}"#)).unwrap(), a);
        assert_eq!(
            valid(&format!(r#","cni.dev/attachments":{list},"cni.dev/valid-attachments":[]"#)).unwrap(),
            a
        );
        assert_eq!(valid(r#","cni.dev/valid-attachments":[]"#).unwrap(), []);
    }

    #[test]
    fn an_absent_list_is_not_an_empty_one() {
        for rest in ["", r#","cni.dev/valid-attachments":null"#] {
            assert!(matches!(
                config(rest).unwrap().valid_attachments(),
                Err(ConfigError::AttachmentsMissing)
            ));
        }
        assert!(matches!(config(r#","cni.dev/valid-attachments":[{}]"#), Err(ConfigError::Decode(_))));
    }

    #[test]
    fn a_null_prev_result_is_none() {
        let with = config(r#","prevResult":{"interfaces":7}"#).unwrap();
        let without = config(r#","prevResult":null"#).unwrap();

        assert!(with.allows(Command::Check).is_ok() && with.allows(Command::Del).is_ok());
        assert!(matches!(with.allows(Command::Add), Err(ConfigError::NotFirst)));
        assert!(without.allows(Command::Add).is_ok());
        assert!(matches!(without.allows(Command::Check), Err(ConfigError::PrevResultMissing)));
    }

    #[test]
    fn the_result_of_add_tells_addresses_and_garbage_in_it_does_not_matter() {
        let told = |result: &str| config(&format!(r#","prevResult":{result}"#)).unwrap().added_addresses();

        let ips = r#"{"ips":[{"address":"10.0.0.7/32"},{"address":"fd00::7/128"},{"address":"x"},{},7]}"#;
        assert_eq!(told(ips), ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        for nothing in ["null", "7", "{}", r#"{"ips":7}"#, r#"{"ips":[]}"#] {
            assert_eq!(told(nothing), [""; 0].map(|_| IpAddr::from([0; 4])), "{nothing}");
        }
    }

    #[test]
    fn a_command_needs_the_version_it_came_with() {
        let allows = |version: &str, command| {
            let text = format!(r#"{{"cniVersion":"{version}","name":"a"}}"#);
            !matches!(
                Config::decode(text.as_bytes()).unwrap().allows(command),
                Err(ConfigError::TooOld { .. })
            )
        };

        let of = |command| CniVersion::ALL.map(|v| allows(v.as_str(), command));

        assert_eq!(of(Command::Add), [true; 5]);
        assert_eq!(of(Command::Del), [true; 5]);
        assert_eq!(of(Command::Check), [false, false, true, true, true]);
        assert_eq!(of(Command::Gc), [false, false, false, false, true]);
        assert_eq!(of(Command::Status), [false, false, false, false, true]);
    }
}
