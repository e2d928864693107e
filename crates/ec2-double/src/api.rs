//! From a call's parameters to the model and back to XML, one function for each action.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use types::{DeviceIndex, EniId, Moment, NetworkCard};

use super::describe;
use super::error::ApiError;
use super::model::Model;
use super::query::{Action, Params};
use super::view::{AddressWish, NewEni, Tracking};
use super::xml::Xml;

/// The account that owns everything.
pub const OWNER: &str = "123456789012";

/// How much of what it names a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Whole,
    Half,
}

/// A call to perform.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) params: &'a Params,
    pub(super) now: Moment,
    pub(super) share: Share,
}

/// Performs a call; the answer is the body of its response.
pub(super) fn perform(model: &mut Model, action: Action, request: &Request<'_>) -> Result<Xml, ApiError> {
    if request.params.value("DryRun")? == Some(true) {
        let message = "Request would have succeeded, but DryRun flag is set.";
        return Err(ApiError::new("DryRunOperation", message).with_http(412));
    }
    match action {
        Action::AssignIpv6Addresses => assign_ipv6(model, request),
        Action::UnassignIpv6Addresses => unassign_ipv6(model, request),
        Action::AssignPrivateIpAddresses => assign(model, request),
        Action::AttachNetworkInterface => attach(model, request),
        Action::CreateNetworkInterface => create(model, request),
        Action::CreateTags => create_tags(model, request),
        Action::DeleteNetworkInterface => delete(model, request),
        Action::DeleteTags => delete_tags(model, request),
        Action::DescribeInstanceTypes => describe::instance_types(model, request),
        Action::DescribeInstances => describe::instances(model, request),
        Action::DescribeNetworkInterfaces => describe::network_interfaces(model, request),
        Action::DescribeSubnets => describe::subnets(model, request),
        Action::DescribeTags => describe::tags(model, request),
        Action::DetachNetworkInterface => detach(model, request),
        Action::ModifyNetworkInterfaceAttribute => modify(model, request),
        Action::UnassignPrivateIpAddresses => unassign(model, request),
    }
}

fn create(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let want = new_eni(request)?;
    let eni = model.create_eni(&want)?;
    let mut xml = Xml::default();
    xml.node("networkInterface", |xml| describe::network_interface(xml, &eni));
    if let Some(token) = &want.token {
        xml.text("clientToken", token);
    }
    Ok(xml)
}

/// In `PrivateIpAddresses` at most one is marked as the primary one; `PrivateIpAddress` says the same in another way.
fn new_eni(request: &Request<'_>) -> Result<NewEni, ApiError> {
    let params = request.params;
    let mut primary = params.value("PrivateIpAddress")?;
    let mut wish = AddressWish {
        count: params.value("SecondaryPrivateIpAddressCount")?.unwrap_or(0),
        prefix_count: params.value("Ipv4PrefixCount")?.unwrap_or(0),
        ..AddressWish::default()
    };
    for group in params.groups("PrivateIpAddresses") {
        let address = group.need_value("PrivateIpAddress")?;
        if group.value("Primary")? != Some(true) {
            wish.addresses.push(address);
        } else if primary.replace(address).is_some() {
            return Err(ApiError::combination("Only one primary private IP address can be specified."));
        }
    }
    for group in params.groups("Ipv4Prefix") {
        wish.prefixes.push(group.need_value("Ipv4Prefix")?);
    }
    Ok(NewEni {
        subnet: params.need_value("SubnetId")?,
        trunk: is_trunk(params)?,
        description: params.get("Description").unwrap_or_default().to_owned(),
        groups: params.values("SecurityGroupId")?,
        tracking: tracking(params)?.unwrap_or_default(),
        tags: tag_specification(params)?,
        primary,
        addresses: share(wish, request.share),
        ipv6: params.value::<u32>("Ipv6AddressCount")?.unwrap_or(0) > 0,
        token: params.get("ClientToken").filter(|token| !token.is_empty()).map(str::to_owned),
    })
}

/// Whether a trunk is asked for. A branch is an ordinary ENI until it is associated; EFA is not known here.
fn is_trunk(params: &Params) -> Result<bool, ApiError> {
    match params.get("InterfaceType").unwrap_or_default() {
        "" | "interface" => Ok(false),
        "trunk" => Ok(true),
        other => Err(ApiError::value(format!("Interface type '{other}' is not known here."))),
    }
}

fn tag_specification(params: &Params) -> Result<BTreeMap<String, String>, ApiError> {
    let mut tags = BTreeMap::new();
    for specification in params.groups("TagSpecification") {
        let kind = specification.need("ResourceType")?;
        if kind != "network-interface" {
            return Err(ApiError::value(format!(
                "'{kind}' is not a valid taggable resource type for this operation."
            )));
        }
        for tag in specification.groups("Tag") {
            let (key, value) = tag_pair(&tag)?;
            if tags.insert(key.clone(), value).is_some() {
                return Err(ApiError::value(format!("Duplicate tag key '{key}' specified.")));
            }
        }
    }
    Ok(tags)
}

/// Limits: EC2 user guide, "Tag your Amazon EC2 resources".
fn tag_pair(tag: &Params) -> Result<(String, String), ApiError> {
    let (key, value) = (tag.need("Key")?, tag.get("Value").unwrap_or_default());
    if key.chars().count() > 127 || value.chars().count() > 255 || key.starts_with("aws:") {
        return Err(ApiError::value(format!("Tag key or value is not allowed: {key:.127}")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn attach(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let params = request.params;
    let eni = params.need_value("NetworkInterfaceId")?;
    let instance = params.need_value("InstanceId")?;
    let device = DeviceIndex(params.need_value("DeviceIndex")?);
    let card = NetworkCard(params.value("NetworkCardIndex")?.unwrap_or(0));
    let attachment = model.attach(&eni, &instance, card, device, request.now)?;
    let mut xml = Xml::default();
    xml.text("attachmentId", attachment);
    xml.text("networkCardIndex", card);
    Ok(xml)
}

fn detach(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let attachment = request.params.need("AttachmentId")?;
    if request.params.value("Force")? == Some(true) {
        let (eni, _) = model.find_attachment(attachment)?;
        model.pull(&eni)?;
    } else {
        model.detach(attachment, request.now)?;
    }
    Ok(done())
}

fn delete(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    model.delete_eni(&request.params.need_value("NetworkInterfaceId")?)?;
    Ok(done())
}

fn modify(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let params = request.params;
    let eni: EniId = params.need_value("NetworkInterfaceId")?;
    let groups = params.values("SecurityGroupId")?;
    let on_termination = params.value("Attachment.DeleteOnTermination")?;
    match (groups.is_empty(), on_termination, tracking(params)?) {
        (true, Some(delete), None) => {
            model.set_delete_on_termination(&eni, params.need("Attachment.AttachmentId")?, delete)?;
        }
        (false, None, None) => model.set_groups(&eni, groups)?,
        (true, None, Some(tracking)) => model.set_tracking(&eni, tracking)?,
        (true, None, None) => return Err(ApiError::missing("an attribute to modify")),
        _ => return Err(ApiError::combination("Only one attribute can be modified at a time.")),
    }
    Ok(done())
}

fn tracking(params: &Params) -> Result<Option<Tracking>, ApiError> {
    let timeout = |name: &str| params.value(&format!("ConnectionTrackingSpecification.{name}"));
    let tracking = Tracking {
        tcp_established: timeout("TcpEstablishedTimeout")?,
        udp_stream: timeout("UdpStreamTimeout")?,
        udp: timeout("UdpTimeout")?,
    };
    Ok((tracking != Tracking::default()).then_some(tracking))
}

fn assign(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let params = request.params;
    if params.value("AllowReassignment")? == Some(true) {
        return Err(ApiError::new("UnsupportedOperation", "Addresses do not move between interfaces here."));
    }
    let eni: EniId = params.need_value("NetworkInterfaceId")?;
    let wish = AddressWish {
        count: params.value("SecondaryPrivateIpAddressCount")?.unwrap_or(0),
        addresses: params.values("PrivateIpAddress")?,
        prefix_count: params.value("Ipv4PrefixCount")?.unwrap_or(0),
        prefixes: params.values("Ipv4Prefix")?,
    };
    if wish.slots() == 0 {
        return Err(ApiError::missing("SecondaryPrivateIpAddressCount"));
    }
    let granted = model.assign(&eni, &share(wish, request.share))?;
    let mut xml = Xml::default();
    xml.text("networkInterfaceId", eni);
    xml.list("assignedPrivateIpAddressesSet", granted.addresses, |xml, address| {
        xml.text("privateIpAddress", address);
    });
    xml.list("assignedIpv4PrefixSet", granted.prefixes, |xml, prefix| xml.text("ipv4Prefix", prefix));
    xml.text("return", true);
    Ok(xml)
}

fn assign_ipv6(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let eni: EniId = request.params.need_value("NetworkInterfaceId")?;
    let given = model.assign_ipv6(&eni, request.params.need_value("Ipv6PrefixCount")?)?;
    let mut xml = Xml::default();
    xml.text("networkInterfaceId", eni);
    xml.texts("assignedIpv6PrefixSet", given);
    Ok(xml)
}

fn unassign_ipv6(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let eni: EniId = request.params.need_value("NetworkInterfaceId")?;
    let prefixes: Vec<Ipv6Network> = request.params.values("Ipv6Prefix")?;
    if prefixes.is_empty() {
        return Err(ApiError::missing("Ipv6Addresses"));
    }
    model.unassign_ipv6(&eni, &prefixes)?;
    let mut xml = Xml::default();
    xml.text("networkInterfaceId", eni);
    xml.texts("unassignedIpv6PrefixSet", prefixes);
    Ok(xml)
}

fn unassign(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let params = request.params;
    let eni: EniId = params.need_value("NetworkInterfaceId")?;
    let addresses: Vec<Ipv4Addr> = params.values("PrivateIpAddress")?;
    let prefixes: Vec<Ipv4Network> = params.values("Ipv4Prefix")?;
    let wish = AddressWish { addresses, prefixes, ..AddressWish::default() };
    if wish.slots() == 0 {
        return Err(ApiError::missing("PrivateIpAddresses"));
    }
    let wish = share(wish, request.share);
    model.unassign(&eni, &wish.addresses, &wish.prefixes)?;
    Ok(done())
}

fn create_tags(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let tags = request.params.groups("Tag").iter().map(tag_pair).collect::<Result<Vec<_>, _>>()?;
    model.set_tags(&resources(request)?, &tags)?;
    Ok(done())
}

fn delete_tags(model: &mut Model, request: &Request<'_>) -> Result<Xml, ApiError> {
    let tag = |tag: &Params| Ok((tag.need("Key")?.to_owned(), tag.get("Value").map(str::to_owned)));
    let tags = request.params.groups("Tag").iter().map(tag).collect::<Result<Vec<_>, ApiError>>()?;
    model.remove_tags(&resources(request)?, &tags)?;
    Ok(done())
}

fn resources(request: &Request<'_>) -> Result<Vec<String>, ApiError> {
    let resources: Vec<_> = request.params.list("ResourceId").into_iter().map(str::to_owned).collect();
    if resources.is_empty() { Err(ApiError::missing("ResourceId")) } else { Ok(resources) }
}

fn share(wish: AddressWish, share: Share) -> AddressWish {
    match share {
        Share::Whole => wish,
        Share::Half => wish.halved(),
    }
}

fn done() -> Xml {
    let mut xml = Xml::default();
    xml.text("return", true);
    xml
}
