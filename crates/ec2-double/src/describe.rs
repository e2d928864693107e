//! The calls that only tell. ENIs and instances are told as they were a while ago, if the settings say so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{EniId, InstanceLimits, SubnetId};

use super::api::{OWNER, Request};
use super::error::ApiError;
use super::filter::{filters, passes};
use super::model::{Enis, Model, enis_in};
use super::view::{Attachment, EniKind, EniView, Instance, SubnetView, Tracking};
use super::xml::{Xml, iso8601};

const ENI_FILTERS: &[&str] = &[
    "addresses.private-ip-address",
    "attachment.attachment-id",
    "attachment.device-index",
    "attachment.instance-id",
    "attachment.status",
    "availability-zone",
    "description",
    "group-id",
    "interface-type",
    "mac-address",
    "network-interface-id",
    "private-ip-address",
    "status",
    "subnet-id",
    "tag-key",
    "vpc-id",
];
const INSTANCE_FILTERS: &[&str] =
    &["instance-id", "instance-state-name", "instance-type", "subnet-id", "tag-key", "vpc-id"];
const SUBNET_FILTERS: &[&str] =
    &["availability-zone", "cidr-block", "state", "subnet-id", "tag-key", "vpc-id"];
const TAG_FILTERS: &[&str] = &["key", "resource-id", "resource-type", "value"];

/// EC2's bounds of `MaxResults`.
const PAGE: std::ops::RangeInclusive<usize> = 5..=1000;

pub(super) fn network_interfaces(model: &Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let ids: Vec<EniId> = request.params.values("NetworkInterfaceId")?;
    let page: Option<usize> = request.params.value("MaxResults")?;
    if page.is_some() && !ids.is_empty() {
        let message = "The parameter NetworkInterfaceIds cannot be used with the parameter MaxResults";
        return Err(ApiError::combination(message));
    }
    if page.is_some_and(|page| !PAGE.contains(&page)) {
        return Err(ApiError::value("MaxResults must be between 5 and 1000."));
    }
    let filters = filters(request.params, ENI_FILTERS)?;
    let enis = model.as_of(request.now, model.config().describe_lag);
    let chosen = chosen(enis, &ids)?;
    let after = request.params.get("NextToken").filter(|token| !token.is_empty());
    let mut found = chosen
        .into_iter()
        .filter(|eni| after.is_none_or(|after| eni.id.as_str() > after))
        .filter(|eni| passes(&filters, &eni.tags, |name| eni_field(eni, name)));
    let told: Vec<_> = found.by_ref().take(page.unwrap_or(usize::MAX)).collect();
    let more = found.next().is_some();
    let mut xml = Xml::default();
    xml.list("networkInterfaceSet", &told, |xml, eni| network_interface(xml, eni));
    if let Some(last) = told.last().filter(|_| more) {
        xml.text("nextToken", &last.id);
    }
    Ok(xml)
}

/// The ENIs with these ids in the order of their ids, or all; an unknown id is an error that names all unknown ones.
fn chosen<'a>(enis: &'a Enis, ids: &[EniId]) -> Result<Vec<&'a Arc<EniView>>, ApiError> {
    if ids.is_empty() {
        return Ok(enis.values().collect());
    }
    let ids: BTreeSet<_> = ids.iter().collect();
    let unknown: Vec<_> =
        ids.iter().filter(|id| !enis.contains_key(**id)).map(|id| format!("'{id}'")).collect();
    match unknown.as_slice() {
        [] => Ok(ids.into_iter().filter_map(|id| enis.get(id)).collect()),
        [one] => {
            let message = format!("The networkInterface ID {one} does not exist");
            Err(ApiError::new("InvalidNetworkInterfaceID.NotFound", message))
        }
        several => {
            let message = format!("The networkInterface IDs {} do not exist", several.join(", "));
            Err(ApiError::new("InvalidNetworkInterfaceID.NotFound", message))
        }
    }
}

fn eni_field(eni: &EniView, name: &str) -> Vec<String> {
    let tie = |field: fn(&Attachment) -> String| eni.attachment.as_ref().map(field).into_iter().collect();
    match name {
        "addresses.private-ip-address" => {
            eni.secondary.iter().chain([&eni.primary]).map(ToString::to_string).collect()
        }
        "attachment.attachment-id" => tie(|a| a.id.clone()),
        "attachment.device-index" => tie(|a| a.device.to_string()),
        "attachment.instance-id" => tie(|a| a.instance.to_string()),
        "attachment.status" => tie(|a| a.state.word().to_owned()),
        "availability-zone" => vec![eni.zone.clone()],
        "description" => vec![eni.description.clone()],
        "group-id" => eni.groups.iter().map(ToString::to_string).collect(),
        "interface-type" => vec![eni.kind.word().to_owned()],
        "mac-address" => vec![eni.mac.to_string()],
        "network-interface-id" => vec![eni.id.to_string()],
        "private-ip-address" => vec![eni.primary.to_string()],
        "status" => vec![status(eni).to_owned()],
        "subnet-id" => vec![eni.subnet.to_string()],
        "vpc-id" => vec![eni.vpc.to_string()],
        _ => Vec::new(),
    }
}

fn status(eni: &EniView) -> &'static str {
    let tied = eni.attachment.is_some() || matches!(eni.kind, EniKind::Branch { .. });
    if tied { "in-use" } else { "available" }
}

/// The members of a `NetworkInterface`.
pub(super) fn network_interface(xml: &mut Xml, eni: &EniView) {
    interface_core(xml, eni);
    xml.text("availabilityZone", &eni.zone);
    xml.text("requesterManaged", false);
    xml.list("ipv4PrefixSet", &eni.prefixes, |xml, prefix| xml.text("ipv4Prefix", prefix));
    xml.list("ipv6PrefixSet", &eni.ipv6_prefixes, |xml, prefix| xml.text("ipv6Prefix", prefix));
    if eni.tracking != Tracking::default() {
        xml.node("connectionTrackingConfiguration", |xml| tracking(xml, eni.tracking));
    }
    tag_set(xml, &eni.tags);
    if let Some(attachment) = &eni.attachment {
        xml.node("attachment", |xml| {
            attachment_members(xml, attachment);
            xml.text("instanceId", &attachment.instance);
            xml.text("instanceOwnerId", OWNER);
        });
    }
}

/// What a `NetworkInterface` and an instance's interface have in common.
fn interface_core(xml: &mut Xml, eni: &EniView) {
    xml.text("networkInterfaceId", &eni.id);
    xml.text("subnetId", &eni.subnet);
    xml.text("vpcId", &eni.vpc);
    xml.text("description", &eni.description);
    xml.text("ownerId", OWNER);
    xml.text("status", status(eni));
    xml.text("macAddress", eni.mac);
    xml.text("privateIpAddress", eni.primary);
    xml.text("interfaceType", eni.kind.word());
    xml.text("sourceDestCheck", true);
    xml.list("groupSet", &eni.groups, |xml, group| {
        xml.text("groupId", group);
        xml.text("groupName", group);
    });
    let addresses = [(eni.primary, true)].into_iter().chain(eni.secondary.iter().map(|a| (*a, false)));
    xml.list("privateIpAddressesSet", addresses, |xml, (address, primary)| {
        xml.text("privateIpAddress", address);
        xml.text("primary", primary);
    });
    xml.node("ipv6AddressesSet", |_| {});
}

fn tracking(xml: &mut Xml, Tracking { tcp_established, udp_stream, udp }: Tracking) {
    let timeouts =
        [("tcpEstablishedTimeout", tcp_established), ("udpStreamTimeout", udp_stream), ("udpTimeout", udp)];
    for (name, timeout) in timeouts {
        if let Some(timeout) = timeout {
            xml.text(name, timeout);
        }
    }
}

fn attachment_members(xml: &mut Xml, attachment: &Attachment) {
    xml.text("attachmentId", &attachment.id);
    xml.text("deviceIndex", attachment.device);
    xml.text("networkCardIndex", attachment.card);
    xml.text("status", attachment.state.word());
    xml.text("attachTime", iso8601(attachment.since));
    xml.text("deleteOnTermination", attachment.delete_on_termination);
}

fn tag_set(xml: &mut Xml, tags: &BTreeMap<String, String>) {
    xml.list("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key);
        xml.text("value", value);
    });
}

pub(super) fn instances(model: &Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let ids = request.params.values("InstanceId")?;
    let filters = filters(request.params, INSTANCE_FILTERS)?;
    let all: Vec<&Instance> = if ids.is_empty() {
        model.instances().collect()
    } else {
        ids.iter().map(|id| model.instance(id)).collect::<Result<_, _>>()?
    };
    let enis = model.as_of(request.now, model.config().describe_lag);
    let found = all.into_iter().filter(|i| passes(&filters, &i.tags, |name| instance_field(i, name)));
    let mut xml = Xml::default();
    xml.list("reservationSet", found, |xml, one| {
        xml.text("reservationId", one.id.as_str().replacen('i', "r", 1));
        xml.text("ownerId", OWNER);
        xml.list("instancesSet", [one], |xml, one| instance(xml, one, &enis_in(enis, &one.id)));
    });
    Ok(xml)
}

fn instance_field(instance: &Instance, name: &str) -> Vec<String> {
    vec![match name {
        "instance-id" => instance.id.to_string(),
        "instance-state-name" => state(instance).1.to_owned(),
        "instance-type" => instance.instance_type.clone(),
        "subnet-id" => instance.subnet.to_string(),
        "vpc-id" => instance.vpc.to_string(),
        _ => return Vec::new(),
    }]
}

fn state(instance: &Instance) -> (u8, &'static str) {
    if instance.running { (16, "running") } else { (48, "terminated") }
}

fn instance(xml: &mut Xml, instance: &Instance, enis: &[&Arc<EniView>]) {
    xml.text("instanceId", &instance.id);
    xml.text("instanceType", &instance.instance_type);
    xml.text("launchTime", iso8601(instance.launched));
    xml.node("instanceState", |xml| {
        xml.text("code", state(instance).0);
        xml.text("name", state(instance).1);
    });
    xml.node("placement", |xml| xml.text("availabilityZone", &instance.zone));
    if instance.running {
        xml.text("privateIpAddress", instance.address);
        xml.text("subnetId", &instance.subnet);
        xml.text("vpcId", &instance.vpc);
    }
    xml.text("sourceDestCheck", true);
    tag_set(xml, &instance.tags);
    xml.list("networkInterfaceSet", enis, |xml, eni| {
        interface_core(xml, eni);
        xml.list("ipv4PrefixSet", &eni.prefixes, |xml, prefix| xml.text("ipv4Prefix", prefix));
        if let Some(attachment) = &eni.attachment {
            xml.node("attachment", |xml| attachment_members(xml, attachment));
        }
    });
}

pub(super) fn subnets(model: &Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let ids: Vec<SubnetId> = request.params.values("SubnetId")?;
    let filters = filters(request.params, SUBNET_FILTERS)?;
    let all: Vec<SubnetView> = if ids.is_empty() {
        model.subnets().collect()
    } else {
        ids.iter().map(|id| model.subnet_view(id)).collect::<Result<_, _>>()?
    };
    let found = all.iter().filter(|s| passes(&filters, &s.tags, |name| subnet_field(s, name)));
    let mut xml = Xml::default();
    xml.list("subnetSet", found, |xml, subnet| {
        xml.text("subnetId", &subnet.id);
        xml.text("state", "available");
        xml.text("vpcId", &subnet.vpc);
        xml.text("cidrBlock", subnet.cidr);
        xml.text("availableIpAddressCount", subnet.available);
        xml.text("availabilityZone", &subnet.zone);
        xml.text("defaultForAz", false);
        xml.text("mapPublicIpOnLaunch", false);
        xml.text("ownerId", OWNER);
        tag_set(xml, &subnet.tags);
    });
    Ok(xml)
}

fn subnet_field(subnet: &SubnetView, name: &str) -> Vec<String> {
    vec![match name {
        "availability-zone" => subnet.zone.clone(),
        "cidr-block" => subnet.cidr.to_string(),
        "state" => "available".to_owned(),
        "subnet-id" => subnet.id.to_string(),
        "vpc-id" => subnet.vpc.to_string(),
        _ => return Vec::new(),
    }]
}

pub(super) fn instance_types(model: &Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let table = model.limits_table();
    let asked = request.params.list("InstanceType");
    let unknown: Vec<_> = asked.iter().copied().filter(|name| table.get(name).is_none()).collect();
    if !unknown.is_empty() {
        let message = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
        return Err(ApiError::new("InvalidInstanceType", message));
    }
    let found: Vec<_> = if asked.is_empty() {
        table.iter().collect()
    } else {
        asked.into_iter().filter_map(|name| table.get(name)).collect()
    };
    let mut xml = Xml::default();
    xml.list("instanceTypeSet", found, instance_type);
    Ok(xml)
}

/// `maximumNetworkInterfaces` counts all cards together, as EC2 does.
fn instance_type(xml: &mut Xml, limits: &InstanceLimits) {
    let total: u32 = limits.cards.iter().map(|card| u32::from(card.max_enis)).sum();
    xml.text("instanceType", &limits.instance_type);
    xml.text("bareMetal", limits.instance_type.ends_with(".metal"));
    xml.text("hypervisor", if limits.prefix_delegation { "nitro" } else { "xen" });
    xml.node("networkInfo", |xml| {
        xml.text("maximumNetworkInterfaces", total);
        xml.text("maximumNetworkCards", limits.cards.len());
        xml.text("defaultNetworkCardIndex", 0);
        xml.text("ipv4AddressesPerInterface", limits.ipv4_per_eni);
        xml.text("ipv6AddressesPerInterface", limits.ipv4_per_eni);
        xml.text("ipv6Supported", true);
        xml.list("networkCards", &limits.cards, |xml, card| {
            xml.text("networkCardIndex", card.card);
            xml.text("maximumNetworkInterfaces", card.max_enis);
        });
    });
}

pub(super) fn tags(model: &Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let filters = filters(request.params, TAG_FILTERS)?;
    let none = BTreeMap::new();
    let subnets: Vec<_> = model.subnets().collect();
    let enis = model.enis().map(|e| (e.id.to_string(), "network-interface", &e.tags));
    let instances = model.instances().map(|i| (i.id.to_string(), "instance", &i.tags));
    let subnets = subnets.iter().map(|s| (s.id.to_string(), "subnet", &s.tags));
    let all = enis.chain(instances).chain(subnets).flat_map(|(id, kind, tags)| {
        tags.iter().map(move |(key, value)| [id.clone(), kind.to_owned(), key.clone(), value.clone()])
    });
    let found = all.filter(|[id, kind, key, value]| {
        passes(&filters, &none, |name| {
            vec![match name {
                "key" => key.clone(),
                "resource-id" => id.clone(),
                "resource-type" => kind.clone(),
                "value" => value.clone(),
                _ => return Vec::new(),
            }]
        })
    });
    let mut xml = Xml::default();
    xml.list("tagSet", found, |xml, [id, kind, key, value]| {
        xml.text("resourceId", id);
        xml.text("resourceType", kind);
        xml.text("key", key);
        xml.text("value", value);
    });
    Ok(xml)
}
