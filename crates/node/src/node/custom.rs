//! Custom networking: an ENIConfig object says where new ENIs go, and pods are on no address of the primary one.
//!
//! ENIs that are there stay as they are, whatever the object says later. While it is not known nothing new is made, and what is
//! there serves pods: the API server may be away for long.

use std::time::Duration;

use pool::Role;
use types::{Moment, Reason, SecurityGroupId, SubnetId};

use super::Node;
use crate::cloud::CloudErrorKind;
use crate::cluster::{EniConfig, EniConfigName, EniConfigNews};

/// Pause before a look for a subnet that an ENIConfig names and that the last one did not tell.
const LOOK_FOR_SUBNET: Duration = Duration::from_secs(2);

/// What we know of the node's ENIConfig.
#[derive(Debug, Default)]
pub(super) struct CustomState {
    /// Which it is; `None` before the node object was seen.
    name: Option<EniConfigName>,
    /// What it says, as far as it could be used.
    known: Option<EniConfig>,
    /// What is wrong with it now, in words that go on after its name.
    trouble: Option<String>,
    /// EC2 does not tell the subnets.
    pub(super) subnets_untold: bool,
}

impl Node {
    /// Takes in which ENIConfig the node object names. What another one said holds no longer.
    pub(super) fn eni_config_named(&mut self, name: Option<EniConfigName>) {
        let Some(name) = name else { return };
        if self.custom.name.as_ref().is_none_or(|before| before.name != name.name) {
            tracing::info!(name = name.name, "the node's ENIConfig");
            let trouble =
                (!name.is_possible()).then(|| "cannot exist: no object can have that name".to_owned());
            let subnets_untold = self.custom.subnets_untold;
            self.custom = CustomState { name: None, known: None, trouble, subnets_untold };
            self.place_enis();
        }
        self.custom.name = Some(name);
    }

    /// What the CNINode is to say of the node's ENIConfig: its name.
    pub(super) fn eni_config_feature(&self) -> Option<String> {
        self.custom.name.as_ref().filter(|name| name.is_possible()).map(|name| name.name.clone())
    }

    /// Takes in what the API server says of an ENIConfig.
    pub(super) fn eni_config_says(&mut self, of: &str, news: EniConfigNews, now: Moment) {
        // That of another one comes late.
        let Some(name) = self.custom.name.clone().filter(|name| name.name == of) else { return };
        let before = self.custom.trouble.take();
        match news {
            EniConfigNews::Is(config) => {
                if self.custom.known.as_ref() != Some(&config) {
                    // Whatever was refused was another place.
                    self.cloud.forget(CloudErrorKind::NoPlace);
                    tracing::info!(name = of, subnet = %config.subnet, groups = ?config.groups, "where new ENIs go");
                }
                self.custom.known = Some(config);
            }
            EniConfigNews::Absent => {
                self.custom.known = None;
                self.custom.trouble = Some("does not exist".to_owned());
            }
            EniConfigNews::Wrong(why) => self.custom.trouble = Some(format!("cannot be used: {why}")),
            EniConfigNews::Trouble(why) => self.custom.trouble = Some(format!("is not told: {why}")),
        }
        if let Some(trouble) = self.custom.trouble.as_ref().filter(|trouble| before.as_ref() != Some(trouble))
        {
            let known = self.custom.known.is_some();
            tracing::warn!(known, "{name} {trouble}");
        }
        self.place_enis();
        // Each look tells the subnets of the zone; this one may be younger than the last. All nodes of the zone hear of it at once.
        if self.cloud.pictured && self.unlisted().is_some() {
            let soon = now.plus(self.cloud.jitter(LOOK_FOR_SUBNET));
            self.cloud.look_at = self.cloud.look_at.min(soon);
        }
    }

    /// Has new ENIs made where the ENIConfig says, and nowhere as long as that is not known.
    pub(super) fn place_enis(&mut self) {
        if self.settings.custom_networking {
            let subnet = self.custom.known.as_ref().map(|config| &config.subnet);
            let subnet = subnet.filter(|_| self.unlisted().is_none()).cloned();
            self.pool.set_subnets(subnet.into_iter().collect());
        }
    }

    /// The ENIConfig's subnet, where EC2 tells the subnets and it is not among them. Where EC2 does not tell them it finds out
    /// when an ENI is made there, and instance metadata tells the range.
    pub(super) fn unlisted(&self) -> Option<&SubnetId> {
        let subnet = self.custom.known.as_ref().map(|config| &config.subnet);
        subnet.filter(|subnet| !self.subnets.contains_key(subnet) && !self.custom.subnets_untold)
    }

    /// Whether new ENIs go into this subnet, as far as an ENIConfig says.
    pub(super) fn is_place(&self, subnet: &SubnetId) -> bool {
        !self.settings.custom_networking
            || self.custom.known.as_ref().is_some_and(|config| config.subnet == *subnet)
    }

    /// Security groups of new ENIs; none: the primary ENI's.
    pub(super) fn groups_of_new(&self) -> Vec<SecurityGroupId> {
        self.custom.known.as_ref().map(|config| config.groups.clone()).unwrap_or_default()
    }

    /// Whether no pod can be served for want of an ENIConfig: there is no ENI for pods yet either.
    pub(super) fn lacks_place(&self) -> bool {
        self.cloud.pictured
            && self.why_no_place().is_some()
            && self.pool.enis().iter().all(|eni| eni.role != Role::Secondary)
    }

    /// Why nobody knows where new ENIs go, if it is so.
    pub(super) fn why_no_place(&self) -> Option<String> {
        if !self.settings.custom_networking {
            return None;
        }
        let Some(name) = &self.custom.name else {
            return Some(match self.settings.in_cluster {
                true => "the node object, which names the ENIConfig, is not known".to_owned(),
                false => {
                    "no API server is asked for an ENIConfig: this is no cluster, or MY_NODE_NAME is not set"
                        .to_owned()
                }
            });
        };
        if let Some(subnet) = self.unlisted() {
            let why = "which EC2 does not list in this node's VPC and zone";
            return Some(format!("{name} says {subnet}, {why}"));
        }
        match (&self.custom.known, &self.custom.trouble) {
            (Some(_), _) => None,
            (None, Some(trouble)) => Some(format!("{name} {trouble}")),
            (None, None) => Some(format!("{name} has not been told yet")),
        }
    }

    /// Name of the node's ENIConfig, as far as it is known; without custom networking it is `default`, and means nothing.
    pub(super) fn eni_config_name(&self) -> Option<String> {
        match self.settings.custom_networking {
            true => self.custom.name.as_ref().map(|name| name.name.clone()),
            false => Some("default".to_owned()),
        }
    }

    /// What is known of the ENIConfig, for people.
    pub(super) fn eni_config_lines(&self) -> Vec<String> {
        let Some(name) = &self.custom.name else { return Vec::new() };
        let known = self.custom.known.as_ref().map(|config| {
            let groups: Vec<&str> = config.groups.iter().map(SecurityGroupId::as_str).collect();
            let groups = match groups.is_empty() {
                true => "the primary ENI's security groups".to_owned(),
                false => groups.join(", "),
            };
            format!("new ENIs go into {} with {groups} (ENIConfig {:?})", config.subnet, name.name)
        });
        let trouble = self.custom.trouble.as_ref().map(|trouble| format!("{name} {trouble}"));
        known.into_iter().chain(trouble).collect()
    }

    /// The same where it keeps ENIs from being made.
    pub(super) fn eni_config_trouble(&self) -> Option<String> {
        self.why_no_place().map(|why| format!("{}: {why}", Reason::NoEniConfig))
    }
}
