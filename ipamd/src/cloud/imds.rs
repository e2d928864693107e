//! The instance metadata service, version 2 ("Instance metadata categories" of the EC2 user guide).

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Instant;

use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use ipnetwork::Ipv4Network;
use types::{DeviceIndex, InstanceId, Mac, NetworkCard, SecurityGroupId, SubnetId};

use super::{CloudError, CloudErrorKind, ConnectionTracking, EniRecord, Identity, Inventory, http};
use crate::config::Config;
use crate::metrics::Metrics;

/// How many interfaces are read at once.
const AT_ONCE: usize = 4;
/// Most interfaces an instance can have; more is nonsense.
const INTERFACES_MAX: usize = 256;
/// Attempts of one read.
const ATTEMPTS: u32 = 3;
const MACS: &str = "network/interfaces/macs";
const CALL: &str = "instance metadata";

/// A client of the metadata service.
#[derive(Debug, Clone)]
pub struct Imds {
    /// `None` if the configured endpoint is no URL; every read then says so.
    client: Option<aws_config::imds::Client>,
    metrics: Metrics,
}

impl Imds {
    /// A client; asks nothing yet.
    #[must_use]
    pub fn connect(config: &Config) -> Self {
        let provider = ProviderConfig::without_region().with_http_client(http::client(config));
        let builder = aws_config::imds::Client::builder()
            .configure(&provider)
            .connect_timeout(config.http_timeout)
            .read_timeout(config.http_timeout)
            .max_attempts(ATTEMPTS);
        let builder = match &config.imds_endpoint {
            Some(endpoint) => builder.endpoint(endpoint).ok(),
            None => Some(builder),
        };
        Self { client: builder.map(|builder| builder.build()), metrics: Metrics::default() }
    }

    /// The same, counting what it asks.
    #[must_use]
    pub(crate) fn counted(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Where we are and who.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn identity(&self) -> Result<Identity, CloudError> {
        let mac: Mac = self.one("mac").await?;
        let of_eni = |name: &str| format!("{MACS}/{mac}/{name}");
        Ok(Identity {
            instance: self.instance().await?,
            instance_type: self.one("instance-type").await?,
            region: self.region().await?,
            zone: self.one("placement/availability-zone").await?,
            mac,
            eni: self.one(&of_eni("interface-id")).await?,
            subnet: self.one(&of_eni("subnet-id")).await?,
            vpc_id: self.one(&of_eni("vpc-id")).await?,
            primary_address: self.one("local-ipv4").await?,
            ipv6: self.ipv6(mac).await?,
            vpc_cidrs: self.vpc_cidrs(mac).await?,
            security_groups: self.security_groups(mac).await?,
        })
    }

    /// This instance.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub(crate) async fn instance(&self) -> Result<InstanceId, CloudError> {
        self.one("instance-id").await
    }

    /// The region.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub(crate) async fn region(&self) -> Result<String, CloudError> {
        self.label("placement/region").await
    }

    /// The VPC's IPv4 ranges.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn vpc_cidrs(&self, primary: Mac) -> Result<Vec<Ipv4Network>, CloudError> {
        self.many(&format!("{MACS}/{primary}/vpc-ipv4-cidr-blocks")).await
    }

    /// The first IPv6 address of the primary ENI that others can answer to, if it has one.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn ipv6(&self, primary: Mac) -> Result<Option<Ipv6Addr>, CloudError> {
        let mut addresses = self.many::<Ipv6Addr>(&format!("{MACS}/{primary}/ipv6s")).await?.into_iter();
        let special = |a: &Ipv6Addr| {
            a.is_unicast_link_local() || a.is_multicast() || a.is_loopback() || a.is_unspecified()
        };
        Ok(addresses.find(|address| !special(address)))
    }

    /// The security groups of the primary ENI.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn security_groups(&self, primary: Mac) -> Result<Vec<SecurityGroupId>, CloudError> {
        let mut groups = self.many(&format!("{MACS}/{primary}/security-group-ids")).await?;
        groups.sort();
        Ok(groups)
    }

    /// The IPv4 ranges of the subnets that our interfaces are in.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn subnets(&self) -> Result<BTreeMap<SubnetId, Ipv4Network>, CloudError> {
        let macs = self.macs().await?;
        let all = stream::iter(macs).map(|mac| self.subnet_of(mac)).buffered(AT_ONCE);
        all.try_filter_map(|found| async { Ok(found) }).try_collect().await
    }

    /// The subnet of the interface with this MAC and its IPv4 range; `None` while the service does not show it.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn subnet_of(&self, mac: Mac) -> Result<Option<(SubnetId, Ipv4Network)>, CloudError> {
        let path = format!("{MACS}/{mac}/subnet-ipv4-cidr-block");
        let Some(text) = self.read(&path).await? else { return Ok(None) };
        let range = parse(&path, text.trim())?;
        Ok(Some((self.one(&format!("{MACS}/{mac}/subnet-id")).await?, range)))
    }

    /// The interfaces of this instance, as far as this service knows them; it may lag behind EC2.
    ///
    /// # Errors
    /// When the service cannot be reached or says what cannot be.
    pub async fn interfaces(&self) -> Result<Inventory, CloudError> {
        let primary = self.one("mac").await?;
        let macs = self.macs().await?;
        let mut all = stream::iter(macs).map(|mac| self.interface(mac, primary)).buffered(AT_ONCE);
        let mut inventory = Inventory::default();
        while let Some(interface) = all.next().await {
            match interface? {
                Interface::Usable(record) => inventory.enis.push(*record),
                Interface::Other(card, device) => {
                    inventory.occupied.insert((card, device));
                    inventory.efa_only.insert(card);
                }
                Interface::Gone => inventory.in_motion = true,
            }
        }
        Ok(inventory)
    }

    async fn interface(&self, mac: Mac, primary: Mac) -> Result<Interface, CloudError> {
        let of_eni = |name: &str| format!("{MACS}/{mac}/{name}");
        let device = match self.read(&of_eni("device-number")).await? {
            _ if mac == primary => 0,
            Some(text) => parse(&of_eni("device-number"), text.trim())?,
            None => return Ok(Interface::Gone),
        };
        let card = match self.read(&of_eni("network-card")).await? {
            Some(text) => parse(&of_eni("network-card"), text.trim())?,
            None => 0,
        };
        let (card, device) = (NetworkCard(card), DeviceIndex(device));
        let mut addresses = self.many(&of_eni("local-ipv4s")).await?.into_iter();
        let Some(primary_address) = addresses.next() else { return Ok(Interface::Other(card, device)) };
        Ok(Interface::Usable(Box::new(EniRecord {
            id: self.one(&of_eni("interface-id")).await?,
            mac,
            card,
            device,
            subnet: self.one(&of_eni("subnet-id")).await?,
            primary_address,
            addresses: addresses.collect(),
            prefixes: self.many(&of_eni("ipv4-prefix")).await?.into_iter().collect(),
            ipv6_prefixes: self.many(&of_eni("ipv6-prefix")).await?.into_iter().collect(),
            interface_type: "interface".to_owned(),
            tags: None,
            attachment: None,
            delete_on_termination: None,
            tracking: ConnectionTracking::default(),
            security_groups: self.many(&of_eni("security-group-ids")).await?,
        })))
    }

    async fn macs(&self) -> Result<Vec<Mac>, CloudError> {
        let text = self.read(&format!("{MACS}/")).await?.unwrap_or_default();
        let macs = text.split_whitespace().map(|name| parse(MACS, name.trim_end_matches('/')));
        let macs: Vec<Mac> = macs.take(INTERFACES_MAX + 1).collect::<Result<_, _>>()?;
        if macs.is_empty() || macs.len() > INTERFACES_MAX {
            return Err(CloudError::new(
                CloudErrorKind::Garbage,
                CALL,
                format!("{MACS} lists {} interfaces", macs.len()),
            ));
        }
        Ok(macs)
    }

    /// One word that must be there.
    async fn one<T: FromStr>(&self, path: &str) -> Result<T, CloudError> {
        let text = self.read(path).await?;
        let text =
            text.ok_or_else(|| CloudError::new(CloudErrorKind::Gone, CALL, format!("there is no {path}")))?;
        parse(path, text.trim())
    }

    /// One word that must be there and becomes part of a host name, as the region does of EC2's.
    async fn label(&self, path: &str) -> Result<String, CloudError> {
        let word: String = self.one(path).await?;
        if word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Ok(word);
        }
        Err(CloudError::new(CloudErrorKind::Garbage, CALL, format!("{path} is {word:?}")))
    }

    /// Words on lines of their own; none if there is no such text.
    async fn many<T: FromStr>(&self, path: &str) -> Result<Vec<T>, CloudError> {
        let text = self.read(path).await?.unwrap_or_default();
        text.split_whitespace().map(|word| parse(path, word)).collect()
    }

    /// A text, or that there is none; counted.
    async fn read(&self, path: &str) -> Result<Option<String>, CloudError> {
        let asked = Instant::now();
        let answer = self.fetch(path).await;
        self.metrics.asked_metadata(answer.as_ref().err(), asked.elapsed());
        answer
    }

    async fn fetch(&self, path: &str) -> Result<Option<String>, CloudError> {
        let Some(client) = &self.client else {
            return Err(CloudError::new(CloudErrorKind::Other, CALL, "the configured endpoint is no URL"));
        };
        match client.get(format!("/latest/meta-data/{path}")).await {
            Ok(text) => Ok(Some(text.into())),
            Err(ImdsError::ErrorResponse(answer)) => {
                let status = answer.response().status().as_u16();
                let kind = match status {
                    404 => return Ok(None),
                    401 | 403 => CloudErrorKind::Denied,
                    _ => CloudErrorKind::Unreachable,
                };
                Err(CloudError::new(kind, CALL, format!("{path} is answered with HTTP status {status}")))
            }
            Err(error) => {
                let message = format!("{path} cannot be read");
                Err(CloudError::new(CloudErrorKind::Unreachable, CALL, message).caused_by(error))
            }
        }
    }
}

/// What is found behind one MAC address.
enum Interface {
    /// One with an IPv4 address.
    Usable(Box<EniRecord>),
    /// One without, at this place.
    Other(NetworkCard, DeviceIndex),
    /// It has just been taken away.
    Gone,
}

/// A word of the service; an empty one is never right.
fn parse<T: FromStr>(path: &str, text: &str) -> Result<T, CloudError> {
    let plain = text.len() <= 128 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        let found: String = text.chars().take(64).collect();
        CloudError::new(CloudErrorKind::Garbage, CALL, format!("{path} is {found:?}"))
    })
}
