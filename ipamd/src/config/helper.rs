//! Settings of `ipamd metrics-helper`: its own, and the daemon's for the API server, the cloud and the log.

use std::net::SocketAddr;
use std::time::Duration;

use super::read::{Environment, Reader, parse_flag};
use super::table::{self, Setting};
use super::{Cluster, Config, SettingError, api_server, seconds, url};

/// The longest value of a dimension that is taken (CloudWatch takes 1024 characters, its console shows 255).
const CLUSTER_ID_MAX: usize = 255;

/// What the command line says; the environment goes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switches {
    /// Sums go to CloudWatch.
    pub cloudwatch: bool,
    /// Sums are served for Prometheus.
    pub prometheus: bool,
}

/// What the settings of the metrics helper mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The daemon's settings, as far as they say how the cloud is reached and what is logged.
    pub config: Config,
    /// How the API server is reached.
    pub cluster: Cluster,
    /// What is done with the sums.
    pub switches: Switches,
    /// Where they are served; unset: everywhere, at the Go version's port.
    pub bind: Option<SocketAddr>,
    /// Time between two rounds.
    pub interval: Duration,
    /// Region of CloudWatch, if not the instance's.
    pub region: Option<String>,
    /// Value of the dimension, if not one of the instance's tags.
    pub cluster_id: Option<String>,
    /// URL of CloudWatch in place of the region's.
    pub endpoint: Option<String>,
}

impl Helper {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Everything that keeps the helper from starting.
    pub fn from_process(switches: Switches) -> Result<Self, Vec<SettingError>> {
        Self::parse(&std::env::vars_os().collect(), switches)
    }

    /// Reads the settings from an environment.
    ///
    /// # Errors
    /// Everything that keeps the helper from starting.
    pub fn parse(environment: &Environment, switches: Switches) -> Result<Self, Vec<SettingError>> {
        let config = Config::parse_beside(environment, table::HELPER_SETTINGS)?;
        let mut reader = Reader::new(environment);
        let switches = Switches {
            cloudwatch: switch(&mut reader, &table::USE_CLOUDWATCH, switches.cloudwatch),
            prometheus: switch(&mut reader, &table::USE_PROMETHEUS, switches.prometheus),
        };
        if !switches.cloudwatch && !switches.prometheus {
            reader.errors.push(unfit(&table::USE_CLOUDWATCH, "false"));
        }
        let cluster = api_server(&mut reader);
        if cluster.is_none() {
            reader.errors.push(unfit(&table::SERVICE_HOST, ""));
        }
        let bind = config.metrics_bind;
        let interval = seconds(reader.number(&table::METRIC_UPDATE_INTERVAL));
        let region = reader.parsed(&table::AWS_REGION, region);
        let cluster_id = reader.parsed(&table::AWS_CLUSTER_ID, cluster_id);
        let endpoint = reader.parsed(&table::CLOUDWATCH_ENDPOINT, url);
        match cluster {
            Some(cluster) if reader.errors.is_empty() => {
                Ok(Self { config, cluster, switches, bind, interval, region, cluster_id, endpoint })
            }
            _ => Err(reader.errors),
        }
    }
}

/// What a flag of the command line may be; nothing after its name is yes.
///
/// # Errors
/// In words.
pub fn yes_or_no(text: &str) -> Result<bool, String> {
    parse_flag(text).ok_or_else(|| "neither true nor false".to_owned())
}

fn switch(reader: &mut Reader<'_>, setting: &Setting, flag: bool) -> bool {
    match reader.word(setting).as_str() {
        "yes" | "true" => true,
        "no" | "false" => false,
        _ => flag,
    }
}

/// It becomes part of a host name.
fn region(text: &str) -> Option<String> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (!text.is_empty() && text.len() <= 32 && text.bytes().all(known)).then(|| text.to_owned())
}

fn cluster_id(text: &str) -> Option<String> {
    is_cluster_id(text).then(|| text.to_owned())
}

/// Whether CloudWatch takes this as a dimension's value.
pub(crate) fn is_cluster_id(text: &str) -> bool {
    let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    (1..=CLUSTER_ID_MAX).contains(&text.len()) && printable && !text.starts_with(':')
}

fn unfit(setting: &Setting, found: &str) -> SettingError {
    SettingError::Unfit { name: setting.name, found: found.to_owned(), doc: setting.doc }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_THE_GO_VERSION: Switches = Switches { cloudwatch: true, prometheus: false };

    fn parse(settings: &[(&str, &str)], switches: Switches) -> Result<Helper, Vec<SettingError>> {
        let in_a_pod = [("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
        let all = in_a_pod.iter().chain(settings);
        Helper::parse(&all.map(|(name, text)| ((*name).into(), (*text).into())).collect(), switches)
    }

    #[test]
    fn without_settings_it_is_what_the_go_version_is() {
        let helper = parse(&[], AS_THE_GO_VERSION).unwrap();

        assert_eq!(helper.switches, AS_THE_GO_VERSION);
        assert_eq!(helper.interval, Duration::from_secs(30));
        assert_eq!(
            (helper.region, helper.cluster_id, helper.endpoint, helper.bind),
            (None, None, None, None)
        );
    }

    #[test]
    fn the_environment_goes_before_the_command_line() {
        let neither = Switches { cloudwatch: false, prometheus: false };
        let helper = parse(&[("USE_CLOUDWATCH", "yes"), ("USE_PROMETHEUS", "True")], neither).unwrap();
        assert_eq!(helper.switches, Switches { cloudwatch: true, prometheus: true });

        let helper = parse(&[("USE_CLOUDWATCH", "no"), ("USE_PROMETHEUS", "yes")], AS_THE_GO_VERSION);
        assert_eq!(helper.unwrap().switches, Switches { cloudwatch: false, prometheus: true });
    }

    #[test]
    fn a_name_that_is_almost_one_of_the_helpers_is_warned_of_and_its_own_are_not() {
        let own = [("AWS_REGION", "eu-west-1"), ("AWS_CLUSTER_ID", "green"), ("USE_CLOUDWATCH", "yes")];
        assert_eq!(parse(&own, AS_THE_GO_VERSION).unwrap().config.warnings, [""; 0]);

        for (name, meant) in
            [("USE_PROMETEUS", "USE_PROMETHEUS"), ("METRIC_UPDATE_INTERVALL", "METRIC_UPDATE_INTERVAL")]
        {
            let warnings = parse(&[(name, "1")], AS_THE_GO_VERSION).unwrap().config.warnings;
            assert_eq!(warnings, [format!("{name} is no setting; is {meant} meant?")]);
        }
    }

    #[test]
    fn what_a_setting_cannot_be_is_refused_with_its_name() {
        for (name, text) in [
            ("USE_CLOUDWATCH", "perhaps"),
            ("USE_PROMETHEUS", "2"),
            ("USE_CLOUDWATCH", "false"),
            ("METRIC_UPDATE_INTERVAL", "soon"),
            ("METRIC_UPDATE_INTERVAL", "0"),
            ("METRIC_UPDATE_INTERVAL", "30s"),
            ("AWS_REGION", "eu-west-1.example.com/"),
            ("AWS_CLUSTER_ID", "gr\u{fc}n"),
            ("AWS_CLUSTER_ID", ":x"),
            ("AWS_ENDPOINT_URL_CLOUDWATCH", "monitoring"),
            ("KUBERNETES_SERVICE_HOST", ""),
        ] {
            let errors = parse(&[(name, text)], AS_THE_GO_VERSION).unwrap_err();
            assert!(errors.iter().any(|error| error.to_string().contains(name)), "{name}={text}: {errors:?}");
        }
    }
}
