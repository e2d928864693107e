//! EC2's API; the only file that names the SDK.
//!
//! Reads are tried three times. Calls that change something are tried once, so that the caller knows what may have happened:
//! silence after one is [`CloudErrorKind::Unclear`].

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Instant;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    AttachmentStatus, ConnectionTrackingSpecificationRequest, Filter, InstanceType, InstanceTypeHypervisor,
    InstanceTypeInfo, NetworkInfo, NetworkInterface, NetworkInterfaceAttachmentChanges, NetworkInterfaceType,
    ResourceType, Subnet, Tag, TagDescription, TagSpecification,
};
use aws_smithy_types::retry::RetryConfig;
use pool::{Given, Wanted};
use types::{
    DeviceIndex, EniId, InstanceId, InstanceLimits, Ipv6Prefix, NetworkCard, NetworkCardLimits, Prefix,
    SecurityGroupId,
};

use super::call::Call;
use super::{
    CloudError, CloudErrorKind, ConnectionTracking, EniRecord, Inventory, LooseEni, NewEni, SubnetRecord,
    http,
};
use crate::cluster::{Note, Notes};
use crate::config::Config;
use crate::metrics::Metrics;

/// Attempts of one read.
const ATTEMPTS: u32 = 3;
/// Most pages of one list that are read; an instance's ENIs fit into one.
const PAGES_MAX: usize = 16;
/// ENIs a page holds.
const PAGE: i32 = 1000;

/// A client of EC2.
#[derive(Debug, Clone)]
pub struct Ec2 {
    reads: Client,
    changes: Client,
    /// URL in place of the region's.
    endpoint: Option<String>,
    metrics: Metrics,
    /// Where it is said that a call is denied.
    notes: Notes,
}

impl Ec2 {
    /// A client for the region, with credentials from the usual places (environment, web identity, pod identity, instance role);
    /// asks nothing yet.
    pub async fn connect(config: &Config, region: &str, metrics: Metrics, notes: Notes) -> Self {
        Self { metrics, notes, ..Self::with_credentials(config, region, None).await }
    }

    /// As [`Ec2::connect`], with these credentials in place of the usual ones.
    pub(super) async fn with_credentials(
        config: &Config,
        region: &str,
        credentials: Option<Credentials>,
    ) -> Self {
        let shared = http::shared(config, region, credentials).await;
        let client = |retry: RetryConfig| {
            let mut builder = aws_sdk_ec2::config::Builder::from(&shared).retry_config(retry);
            if let Some(endpoint) = &config.ec2_endpoint {
                builder = builder.endpoint_url(endpoint);
            }
            Client::from_conf(builder.build())
        };
        Self {
            reads: client(RetryConfig::standard().with_max_attempts(ATTEMPTS)),
            changes: client(RetryConfig::disabled()),
            endpoint: config.ec2_endpoint.clone(),
            metrics: Metrics::default(),
            notes: Notes::default(),
        }
    }

    /// Waits for an answer, and counts it.
    async fn ask<T, E>(
        &self,
        call: Call,
        answer: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, CloudError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let asked = Instant::now();
        let answer = match http::roots_for(self.endpoint.as_deref(), call.name()) {
            Ok(()) => answer.await.map_err(|error| call.failed(error)),
            Err(untrusting) => Err(untrusting),
        };
        let failure = answer.as_ref().err();
        self.metrics.called(call.name(), failure, asked.elapsed());
        if failure.is_some_and(|error| error.kind().reason() == types::Reason::Denied) {
            self.notes.tell(Note::denied(call.name()));
        }
        answer
    }

    /// What is attached to an instance.
    ///
    /// # Errors
    /// [`CloudErrorKind::Garbage`] when EC2 describes an ENI that cannot be.
    pub async fn inventory(&self, instance: &InstanceId) -> Result<Inventory, CloudError> {
        let attached = filter("attachment.instance-id", instance.as_str());
        let mut inventory = Inventory::default();
        for eni in self.describe(vec![attached]).await? {
            let leaving = is_leaving(&eni);
            inventory.in_motion |= leaving;
            if leaving || eni.private_ip_address().is_none() || is_efa_only(&eni) {
                let (card, device) = place(DESCRIBE, &eni)?;
                inventory.occupied.insert((card, device));
                if is_efa_only(&eni) && !leaving {
                    inventory.efa_only.insert(card);
                }
            } else {
                inventory.enis.push(record(DESCRIBE, &eni)?);
            }
        }
        Ok(inventory)
    }

    /// ENIs of a VPC that have a tag with this key and are attached to nothing.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn loose(&self, vpc: &str, tag_key: &str) -> Result<Vec<LooseEni>, CloudError> {
        let wanted = [("tag-key", tag_key), ("status", "available"), ("vpc-id", vpc)];
        let enis = self.describe(wanted.map(|(name, value)| filter(name, value)).into()).await?;
        let loose = |eni: &NetworkInterface| {
            Ok(LooseEni {
                id: DESCRIBE.parsed("ENI id", eni.network_interface_id())?,
                description: eni.description().unwrap_or_default().to_owned(),
                tags: eni.tag_set().iter().filter_map(tag).collect(),
            })
        };
        enis.iter().map(loose).collect()
    }

    /// The subnets of a VPC in one zone.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn subnets(&self, vpc: &str, zone: &str) -> Result<Vec<SubnetRecord>, CloudError> {
        let call = Call::DescribeSubnets;
        let wanted = [filter("vpc-id", vpc), filter("availability-zone", zone)];
        let request = self.reads.describe_subnets().set_filters(Some(wanted.into()));
        let answer = self.ask(call, request.send()).await?;
        let record = |subnet: &Subnet| {
            let available = subnet.available_ip_address_count().and_then(|n| u32::try_from(n).ok());
            Ok(SubnetRecord {
                id: call.parsed("subnet id", subnet.subnet_id())?,
                cidr: call.parsed("subnet's range", subnet.cidr_block())?,
                available: available.ok_or_else(|| call.nonsense("a subnet's free addresses are missing"))?,
                tags: subnet.tags().iter().filter_map(tag).collect(),
            })
        };
        answer.subnets().iter().map(record).collect()
    }

    /// The tags of an instance.
    ///
    /// # Errors
    /// As EC2 says.
    pub(crate) async fn tags_of(
        &self,
        instance: &InstanceId,
    ) -> Result<BTreeMap<String, String>, CloudError> {
        let about = filter("resource-id", instance.as_str());
        let answer = self.ask(Call::DescribeTags, self.reads.describe_tags().filters(about).send()).await?;
        let tag = |tag: &TagDescription| Some((tag.key()?.to_owned(), tag.value()?.to_owned()));
        Ok(answer.tags().iter().filter_map(tag).collect())
    }

    async fn describe(&self, filters: Vec<Filter>) -> Result<Vec<NetworkInterface>, CloudError> {
        let mut enis = Vec::new();
        let mut next = None;
        for _ in 0..PAGES_MAX {
            let request = self.reads.describe_network_interfaces().set_filters(Some(filters.clone()));
            let request = request.max_results(PAGE).set_next_token(next);
            let page = self.ask(DESCRIBE, request.send()).await?;
            enis.extend_from_slice(page.network_interfaces());
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(enis);
            }
        }
        Err(DESCRIBE.nonsense(format!("the list does not end after {PAGES_MAX} pages")))
    }

    /// Makes an ENI, with its tags and addresses in the same call. The same token asks for the same ENI.
    ///
    /// # Errors
    /// As EC2 says; [`CloudErrorKind::Unclear`] can be repeated with the same token.
    pub async fn create_eni(&self, want: &NewEni) -> Result<EniRecord, CloudError> {
        let call = Call::CreateNetworkInterface;
        let groups = want.security_groups.iter().map(ToString::to_string).collect();
        let mut request = self
            .changes
            .create_network_interface()
            .subnet_id(want.subnet.as_str())
            .set_groups(Some(groups))
            .description(&want.description)
            .client_token(&want.token);
        if want.tracking.is_set() {
            request = request.connection_tracking_specification(sdk_tracking(want.tracking));
        }
        if want.wanted.slots() > 0 {
            request = match want.wanted {
                Wanted::Addresses(n) => request.secondary_private_ip_address_count(call.count(n)?),
                Wanted::Prefixes(n) => request.ipv4_prefix_count(call.count(n)?),
            };
        }
        if !want.tags.is_empty() {
            let tags = TagSpecification::builder().resource_type(ResourceType::NetworkInterface);
            request = request.tag_specifications(tags.set_tags(Some(sdk_tags(&want.tags))).build());
        }
        let answer = self.ask(call, request.send()).await?;
        let eni = answer.network_interface().ok_or_else(|| call.nonsense("the answer holds no ENI"))?;
        let mut made = record(call, eni)?;
        made.tags.get_or_insert_default().extend(want.tags.clone());
        Ok(made)
    }

    /// Attaches an ENI to an instance; gives the attachment's id.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn attach(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        device: DeviceIndex,
        card: NetworkCard,
    ) -> Result<String, CloudError> {
        let call = Call::AttachNetworkInterface;
        let request = self
            .changes
            .attach_network_interface()
            .network_interface_id(eni.as_str())
            .instance_id(instance.as_str())
            .device_index(device.0.into())
            .network_card_index(card.0.into());
        let answer = self.ask(call, request.send()).await?;
        let attachment = answer.attachment_id().filter(|id| !id.is_empty());
        Ok(attachment.ok_or_else(|| call.nonsense("the answer holds no attachment id"))?.to_owned())
    }

    /// Has EC2 delete an ENI together with the instance.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn set_delete_on_termination(&self, eni: &EniId, attachment: &str) -> Result<(), CloudError> {
        let call = Call::ModifyNetworkInterfaceAttribute;
        let change = NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(attachment)
            .delete_on_termination(true)
            .build();
        let request = self
            .changes
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .attachment(change);
        self.ask(call, request.send()).await.map(drop)
    }

    /// Sets the security groups of an ENI.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn set_security_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> Result<(), CloudError> {
        let call = Call::ModifyNetworkInterfaceAttribute;
        let request = self
            .changes
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .set_groups(Some(groups.iter().map(ToString::to_string).collect()));
        self.ask(call, request.send()).await.map(drop)
    }

    /// Sets the timeouts for idle connections of an ENI.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn set_tracking(&self, eni: &EniId, tracking: ConnectionTracking) -> Result<(), CloudError> {
        let call = Call::ModifyNetworkInterfaceAttribute;
        let request = self
            .changes
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .connection_tracking_specification(sdk_tracking(tracking));
        self.ask(call, request.send()).await.map(drop)
    }

    /// Adds secondary addresses or prefixes to an ENI; gives those that EC2 chose.
    ///
    /// # Errors
    /// As EC2 says; then none was added, or it is [`CloudErrorKind::Unclear`].
    pub async fn assign(&self, eni: &EniId, wanted: Wanted) -> Result<Given, CloudError> {
        let call = Call::AssignPrivateIpAddresses;
        let request = self.changes.assign_private_ip_addresses().network_interface_id(eni.as_str());
        let request = match wanted {
            Wanted::Addresses(n) => request.secondary_private_ip_address_count(call.count(n)?),
            Wanted::Prefixes(n) => request.ipv4_prefix_count(call.count(n)?),
        };
        let answer = self.ask(call, request.send()).await?;
        let addresses = answer.assigned_private_ip_addresses().iter();
        let prefixes = answer.assigned_ipv4_prefixes().iter();
        Ok(Given {
            addresses: addresses
                .map(|given| call.parsed("address", given.private_ip_address()))
                .collect::<Result<_, _>>()?,
            prefixes: prefixes
                .map(|given| call.parsed("prefix", given.ipv4_prefix()))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Gives an ENI an IPv6 prefix that EC2 chooses.
    ///
    /// # Errors
    /// As EC2 says; then none was given, or it is [`CloudErrorKind::Unclear`].
    pub async fn assign_ipv6_prefix(&self, eni: &EniId) -> Result<Ipv6Prefix, CloudError> {
        let call = Call::AssignIpv6Addresses;
        let request = self.changes.assign_ipv6_addresses().network_interface_id(eni.as_str());
        let answer = self.ask(call, request.ipv6_prefix_count(1).send()).await?;
        call.parsed("IPv6 prefix", answer.assigned_ipv6_prefixes().first().map(String::as_str))
    }

    /// Takes an IPv6 prefix away from an ENI.
    ///
    /// # Errors
    /// As EC2 says; [`CloudErrorKind::Gone`] if it is not there.
    pub async fn release_ipv6_prefix(&self, eni: &EniId, prefix: Ipv6Prefix) -> Result<(), CloudError> {
        let request = self.changes.unassign_ipv6_addresses().network_interface_id(eni.as_str());
        let request = request.ipv6_prefixes(prefix.to_string());
        self.ask(Call::UnassignIpv6Addresses, request.send()).await.map(drop)
    }

    /// Takes secondary addresses or prefixes away from an ENI.
    ///
    /// # Errors
    /// As EC2 says; [`CloudErrorKind::Gone`] if one is not there.
    pub async fn release(&self, eni: &EniId, given: &Given) -> Result<(), CloudError> {
        let call = Call::UnassignPrivateIpAddresses;
        let mut request = self.changes.unassign_private_ip_addresses().network_interface_id(eni.as_str());
        for address in &given.addresses {
            request = request.private_ip_addresses(address.to_string());
        }
        for prefix in &given.prefixes {
            request = request.ipv4_prefixes(prefix.to_string());
        }
        self.ask(call, request.send()).await.map(drop)
    }

    /// Detaches an ENI; done when EC2 has taken it in, not when it has happened.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn detach(&self, attachment: &str) -> Result<(), CloudError> {
        let call = Call::DetachNetworkInterface;
        let request = self.changes.detach_network_interface().attachment_id(attachment);
        self.ask(call, request.send()).await.map(drop)
    }

    /// Deletes an ENI that is not attached.
    ///
    /// # Errors
    /// As EC2 says; [`CloudErrorKind::InUse`] while it is attached.
    pub async fn delete(&self, eni: &EniId) -> Result<(), CloudError> {
        let call = Call::DeleteNetworkInterface;
        let request = self.changes.delete_network_interface().network_interface_id(eni.as_str());
        self.ask(call, request.send()).await.map(drop)
    }

    /// Sets tags of an ENI; others stay.
    ///
    /// # Errors
    /// As EC2 says.
    pub async fn tag(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> Result<(), CloudError> {
        let call = Call::CreateTags;
        let request = self.changes.create_tags().resources(eni.as_str()).set_tags(Some(sdk_tags(tags)));
        self.ask(call, request.send()).await.map(drop)
    }

    /// What an instance type can hold.
    ///
    /// # Errors
    /// [`CloudErrorKind::Gone`] if there is no such type.
    pub async fn instance_limits(&self, instance_type: &str) -> Result<InstanceLimits, CloudError> {
        let call = Call::DescribeInstanceTypes;
        let request = self.reads.describe_instance_types().instance_types(InstanceType::from(instance_type));
        let answer = self.ask(call, request.send()).await?;
        let none = || {
            CloudError::new(CloudErrorKind::Gone, call.name(), format!("there is no type {instance_type:?}"))
        };
        let info = answer.instance_types().first().ok_or_else(none)?;
        limits(info, instance_type)
            .ok_or_else(|| call.nonsense(format!("limits of {instance_type:?} are missing")))
    }
}

/// The call that tells what an instance type can hold.
pub(crate) const LIMITS: &str = Call::DescribeInstanceTypes.name();
/// The call that lists ENIs.
const DESCRIBE: Call = Call::DescribeNetworkInterfaces;

impl Call {
    fn failed<E>(self, error: SdkError<E>) -> CloudError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let message = answer.err().message().unwrap_or("no message");
                match answer.err().code() {
                    Some(code) => {
                        return CloudError::answered(self.name(), self.effect(), status, code, message);
                    }
                    None if status >= 500 => {
                        return CloudError::new(
                            self.effect().silence(),
                            self.name(),
                            format!("HTTP status {status}"),
                        );
                    }
                    None => {
                        let message = format!("HTTP status {status} without an error code");
                        return CloudError::new(CloudErrorKind::Garbage, self.name(), message);
                    }
                }
            }
            SdkError::ResponseError(_) => return self.nonsense("the answer cannot be read").caused_by(error),
            SdkError::ConstructionFailure(_) => {
                let message = "the request cannot be made";
                return CloudError::new(CloudErrorKind::Other, self.name(), message).caused_by(error);
            }
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {}
            _ => {
                return CloudError::new(self.effect().silence(), self.name(), "unknown failure")
                    .caused_by(error);
            }
        }
        let kind = if never_sent(&error) { CloudErrorKind::Unreachable } else { self.effect().silence() };
        CloudError::new(kind, self.name(), "no answer").caused_by(error)
    }

    /// The answer cannot be: after a change, what was asked may have happened all the same.
    fn nonsense(self, message: impl Into<String>) -> CloudError {
        CloudError::new(self.effect().nonsense(), self.name(), message)
    }

    fn parsed<T: FromStr>(self, what: &str, text: Option<&str>) -> Result<T, CloudError> {
        let text = text.ok_or_else(|| self.nonsense(format!("the answer lacks the {what}")))?;
        text.parse().ok().ok_or_else(|| self.nonsense(format!("{text:?} is no {what}")))
    }

    fn small(self, what: &str, number: Option<i32>) -> Result<u8, CloudError> {
        let small = number.and_then(|n| u8::try_from(n).ok());
        small.ok_or_else(|| self.nonsense(format!("{number:?} is no {what}")))
    }

    fn count(self, count: u32) -> Result<i32, CloudError> {
        let fits = i32::try_from(count).ok();
        fits.ok_or_else(|| {
            CloudError::new(CloudErrorKind::AddressLimit, self.name(), format!("{count} addresses"))
        })
    }
}

/// Whether the request certainly did not leave: there was no connection, or there were no credentials to sign it with.
pub(super) fn never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::{Error, ErrorKind};
    const UNCONNECTED: [ErrorKind; 3] =
        [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let unconnected = error.downcast_ref().is_some_and(|io: &Error| UNCONNECTED.contains(&io.kind()));
        if unconnected || error.is::<CredentialsError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_leaving(eni: &NetworkInterface) -> bool {
    let status = eni.attachment().and_then(|attachment| attachment.status());
    status.is_some_and(|s| *s == AttachmentStatus::Detaching || *s == AttachmentStatus::Detached)
}

fn is_efa_only(eni: &NetworkInterface) -> bool {
    eni.interface_type().is_some_and(|kind| kind.as_str() == "efa-only")
}

/// Where an ENI is attached; all zero if it is not.
fn place(call: Call, eni: &NetworkInterface) -> Result<(NetworkCard, DeviceIndex), CloudError> {
    let Some(at) = eni.attachment() else { return Ok((NetworkCard(0), DeviceIndex(0))) };
    let card = call.small("network card", Some(at.network_card_index().unwrap_or(0)))?;
    Ok((NetworkCard(card), DeviceIndex(call.small("device index", at.device_index())?)))
}

fn record(call: Call, eni: &NetworkInterface) -> Result<EniRecord, CloudError> {
    let primary_address = call.parsed("primary address", eni.private_ip_address())?;
    let mut addresses = BTreeSet::new();
    for address in eni.private_ip_addresses() {
        addresses.insert(call.parsed("address", address.private_ip_address())?);
    }
    addresses.remove(&primary_address);
    let prefixes = eni.ipv4_prefixes().iter().map(|p| call.parsed::<Prefix>("prefix", p.ipv4_prefix()));
    let ipv6_prefixes = eni.ipv6_prefixes().iter();
    let ipv6_prefixes = ipv6_prefixes.map(|p| call.parsed::<Ipv6Prefix>("IPv6 prefix", p.ipv6_prefix()));
    let groups = eni.groups().iter().map(|group| call.parsed("security group", group.group_id()));
    let attachment = eni.attachment();
    let (card, device) = place(call, eni)?;
    Ok(EniRecord {
        id: call.parsed("ENI id", eni.network_interface_id())?,
        mac: call.parsed("MAC address", eni.mac_address())?,
        card,
        device,
        subnet: call.parsed("subnet id", eni.subnet_id())?,
        primary_address,
        addresses,
        prefixes: prefixes.collect::<Result<_, _>>()?,
        ipv6_prefixes: ipv6_prefixes.collect::<Result<_, _>>()?,
        interface_type: eni.interface_type().unwrap_or(&NetworkInterfaceType::Interface).as_str().to_owned(),
        tags: Some(eni.tag_set().iter().filter_map(tag).collect()),
        attachment: attachment.and_then(|at| at.attachment_id()).map(str::to_owned),
        delete_on_termination: attachment.and_then(|at| at.delete_on_termination()),
        security_groups: groups.collect::<Result<_, _>>()?,
        tracking: eni.connection_tracking_configuration().map_or_else(ConnectionTracking::default, |told| {
            ConnectionTracking {
                tcp_established: told.tcp_established_timeout(),
                udp_stream: told.udp_stream_timeout(),
                udp: told.udp_timeout(),
            }
        }),
    })
}

fn sdk_tracking(tracking: ConnectionTracking) -> ConnectionTrackingSpecificationRequest {
    ConnectionTrackingSpecificationRequest::builder()
        .set_tcp_established_timeout(tracking.tcp_established)
        .set_udp_stream_timeout(tracking.udp_stream)
        .set_udp_timeout(tracking.udp)
        .build()
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn tag(tag: &Tag) -> Option<(String, String)> {
    Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()))
}

fn sdk_tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn limits(info: &InstanceTypeInfo, instance_type: &str) -> Option<InstanceLimits> {
    let network = info.network_info()?;
    let cards = cards(network)?;
    let default = NetworkCard(u8::try_from(network.default_network_card_index().unwrap_or(0)).ok()?);
    let max_enis = cards.iter().find(|card| card.card == default)?.max_enis;
    let ipv4_per_eni = u8::try_from(network.ipv4_addresses_per_interface()?).ok()?;
    if max_enis == 0 || ipv4_per_eni == 0 {
        return None;
    }
    let nitro = info.hypervisor() == Some(&InstanceTypeHypervisor::Nitro);
    Some(InstanceLimits {
        instance_type: instance_type.to_owned(),
        max_enis,
        ipv4_per_eni,
        cards,
        prefix_delegation: nitro || info.bare_metal() == Some(true),
        trunk: None,
        branch_enis: 0,
    })
}

/// The network cards by index; a type without a list of them has one.
fn cards(network: &NetworkInfo) -> Option<Vec<NetworkCardLimits>> {
    if network.network_cards().is_empty() {
        let max_enis = u8::try_from(network.maximum_network_interfaces()?).ok()?;
        return Some(vec![NetworkCardLimits { card: NetworkCard(0), max_enis }]);
    }
    let mut cards = Vec::new();
    for card in network.network_cards() {
        let index = u8::try_from(card.network_card_index()?).ok()?;
        let max_enis = u8::try_from(card.maximum_network_interfaces()?).ok()?;
        cards.push(NetworkCardLimits { card: NetworkCard(index), max_enis });
    }
    cards.sort_by_key(|card| card.card);
    Some(cards)
}
