//! The calls of the API that change the model, with the refusals that EC2 has for each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use types::{DeviceIndex, EniId, InstanceId, InstanceLimits, Moment, NetworkCard, SecurityGroupId, SubnetId};

use super::error::ApiError;
use super::model::Model;
use super::view::{AddressWish, AttachState, Attachment, EniKind, EniView, NewEni, Tracking};

/// What `AssignPrivateIpAddresses` gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Single addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: Vec<Ipv4Network>,
}

/// The largest number of slots on an ENI that is not attached: no instance type has more.
const SLOTS_MAX: usize = 64;
/// EC2's limit of tags on a resource.
const TAGS_MAX: usize = 50;

/// Creating and deleting.
impl Model {
    /// CreateNetworkInterface: `InvalidSubnetID.NotFound`, `InsufficientFreeAddressesInSubnet` and the like are refusals.
    pub fn create_eni(&mut self, want: &NewEni) -> Result<Arc<EniView>, ApiError> {
        if let Some(before) = self.made_under_token(want)? {
            return Ok(before);
        }
        check_wish(&want.addresses)?;
        check_tags(want.tags.len())?;
        check_tracking(want.tracking)?;
        if want.addresses.slots().saturating_add(1) > SLOTS_MAX {
            return Err(ApiError::too_many_addresses());
        }
        let subnet = self.subnet_view(&want.subnet)?;
        let groups = self.groups_or_default(want)?;
        let primary = self.take_primary(want)?;
        let granted = self.take_wish(&want.subnet, &want.addresses).inspect_err(|_| {
            if let Ok(subnet) = self.subnet_mut(&want.subnet) {
                subnet.give_back(primary);
            }
        })?;
        let ipv6 = if want.ipv6 { self.any_ipv6(&want.subnet, primary) } else { None };
        let eni = EniView {
            id: self.new_id("eni"),
            kind: if want.trunk { EniKind::Trunk } else { EniKind::Interface },
            mac: self.new_mac(),
            subnet: subnet.id,
            subnet_cidr: subnet.cidr,
            vpc: subnet.vpc,
            zone: subnet.zone,
            primary,
            secondary: granted.addresses,
            prefixes: granted.prefixes,
            ipv6,
            ipv6_prefixes: Vec::new(),
            description: want.description.clone(),
            groups,
            tracking: want.tracking,
            tags: want.tags.clone(),
            attachment: None,
        };
        if let Some(token) = &want.token {
            self.tokens.insert(token.clone(), (want.clone(), eni.id.clone()));
        }
        Ok(self.insert_eni(eni))
    }

    fn made_under_token(&self, want: &NewEni) -> Result<Option<Arc<EniView>>, ApiError> {
        let Some((first, id)) = want.token.as_ref().and_then(|token| self.tokens.get(token)) else {
            return Ok(None);
        };
        if first != want {
            let message = "The specified client token was used with different parameters.";
            return Err(ApiError::new("IdempotentParameterMismatch", message));
        }
        self.eni(id).cloned().map(Some)
    }

    fn groups_or_default(&self, want: &NewEni) -> Result<Vec<SecurityGroupId>, ApiError> {
        if !want.groups.is_empty() {
            return Ok(want.groups.clone());
        }
        let vpc = self.subnet_view(&want.subnet)?.vpc;
        Ok(self.vpc(&vpc).map(|vpc| vpc.default_group.clone()).into_iter().collect())
    }

    fn take_primary(&mut self, want: &NewEni) -> Result<Ipv4Addr, ApiError> {
        let wish = match want.primary {
            Some(address) => AddressWish { addresses: vec![address], ..AddressWish::default() },
            None => AddressWish::count(1),
        };
        let granted = self.take_wish(&want.subnet, &wish)?;
        granted.addresses.first().copied().ok_or_else(ApiError::subnet_full)
    }

    /// DeleteNetworkInterface: refused while it is attached.
    pub fn delete_eni(&mut self, id: &EniId) -> Result<(), ApiError> {
        let eni = Arc::clone(self.eni(id)?);
        if eni.attachment.is_some() {
            return Err(ApiError::value(format!("Network interface '{id}' is currently in use.")));
        }
        if matches!(eni.kind, EniKind::Branch { .. }) {
            self.disassociate(id)?;
        }
        let subnet = self.subnet_mut(&eni.subnet)?;
        eni.secondary.iter().chain([&eni.primary]).for_each(|a| subnet.give_back(*a));
        eni.prefixes.iter().for_each(|p| subnet.give_back_block(*p));
        self.remove_eni(id);
        Ok(())
    }
}

/// Attaching and detaching.
impl Model {
    /// AttachNetworkInterface: refused where the type has no place, or the device is taken.
    pub fn attach(
        &mut self,
        id: &EniId,
        instance: &InstanceId,
        card: NetworkCard,
        device: DeviceIndex,
        now: Moment,
    ) -> Result<String, ApiError> {
        self.check_attach(id, instance, card, device)?;
        let until = now.plus(self.config().attach_delay);
        let attachment = Attachment {
            id: format!("eni-attach-{}", self.new_tail()),
            instance: instance.clone(),
            device,
            card,
            state: AttachState::Attaching { until },
            delete_on_termination: false,
            since: now,
        };
        let name = attachment.id.clone();
        self.set_attachment(id, Some(attachment))?;
        self.wake_at(now, until);
        Ok(name)
    }

    fn check_attach(
        &self,
        id: &EniId,
        instance: &InstanceId,
        card: NetworkCard,
        device: DeviceIndex,
    ) -> Result<(), ApiError> {
        let eni = self.eni(id)?;
        let host = self.instance(instance)?;
        if eni.attachment.is_some() || matches!(eni.kind, EniKind::Branch { .. }) {
            let message = format!("Interface: [{id}] in use.");
            return Err(ApiError::new("InvalidNetworkInterface.InUse", message));
        }
        if !host.running {
            let message = format!("Instance '{instance}' is not 'running' or 'stopped'.");
            return Err(ApiError::new("IncorrectState", message));
        }
        if eni.zone != host.zone {
            let message = "You may not attach a network interface to an instance if they are not in the same \
                           availability zone";
            return Err(ApiError::combination(message));
        }
        let limits =
            self.limits_table().get(&host.instance_type).ok_or_else(|| no_type(&host.instance_type))?;
        if eni.kind == EniKind::Trunk && limits.trunk == Some(false) {
            let message = format!("Instance type {} has no trunk interface.", limits.instance_type);
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        check_slots(limits, eni.slots())?;
        check_prefixes(limits, !eni.prefixes.is_empty())?;
        self.check_place(limits, instance, card, device)
    }

    fn check_place(
        &self,
        limits: &InstanceLimits,
        instance: &InstanceId,
        card: NetworkCard,
        device: DeviceIndex,
    ) -> Result<(), ApiError> {
        let on_card = |eni: &&Arc<EniView>| eni.attachment.as_ref().is_some_and(|a| a.card == card);
        let is_here = |eni: &Arc<EniView>| eni.attachment.as_ref().is_some_and(|a| a.device == device);
        let here: Vec<_> = self.enis_of(instance).filter(on_card).collect();
        let Some(room) = limits.cards.iter().find(|c| c.card == card).map(|c| usize::from(c.max_enis)) else {
            return Err(ApiError::value(format!("Network card index {card} exceeds the limit.")));
        };
        if here.iter().any(|eni| is_here(eni)) {
            let message = format!(
                "Instance '{instance}' already has an interface attached at device index '{device}'."
            );
            return Err(ApiError::value(message));
        }
        if here.len() >= room {
            let (count, name) = (here.len() + 1, &limits.instance_type);
            let message = format!("Interface count {count} exceeds the limit for {name}");
            return Err(ApiError::new("AttachmentLimitExceeded", message));
        }
        Ok(())
    }

    /// DetachNetworkInterface: done after the detach delay.
    pub fn detach(&mut self, attachment: &str, now: Moment) -> Result<(), ApiError> {
        let (id, tie) = self.find_attachment(attachment)?;
        if (tie.card, tie.device) == (NetworkCard(0), DeviceIndex(0)) {
            let message =
                "The network interface at device index 0 and networkCard index 0 cannot be detached.";
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        if tie.state != AttachState::Attached {
            let message = format!("Attachment '{attachment}' is {}.", tie.state.word());
            return Err(ApiError::new("IncorrectState", message));
        }
        let until = now.plus(self.config().detach_delay);
        self.set_attachment(&id, Some(Attachment { state: AttachState::Detaching { until }, ..tie }))?;
        self.wake_at(now, until);
        Ok(())
    }

    /// Whether it goes with its instance: refused where it is not attached.
    pub fn set_delete_on_termination(
        &mut self,
        eni: &EniId,
        attachment: &str,
        delete: bool,
    ) -> Result<(), ApiError> {
        let mut tie = self.eni(eni)?.attachment.clone().ok_or_else(|| ApiError::no_attachment(attachment))?;
        if tie.id != attachment {
            return Err(ApiError::no_attachment(attachment));
        }
        tie.delete_on_termination = delete;
        self.set_attachment(eni, Some(tie)).map(|_| ())
    }

    pub(crate) fn find_attachment(&self, attachment: &str) -> Result<(EniId, Attachment), ApiError> {
        let tied = |eni: &Arc<EniView>| {
            let tie = eni.attachment.clone().filter(|tie| tie.id == attachment)?;
            Some((eni.id.clone(), tie))
        };
        self.enis().find_map(tied).ok_or_else(|| ApiError::no_attachment(attachment))
    }
}

/// Addresses.
impl Model {
    /// AssignPrivateIpAddresses: refused where the ENI is full or the subnet has too few.
    pub fn assign(&mut self, id: &EniId, wish: &AddressWish) -> Result<Granted, ApiError> {
        check_wish(wish)?;
        let eni = Arc::clone(self.eni(id)?);
        let slots = eni.slots().saturating_add(wish.slots());
        if slots > SLOTS_MAX {
            return Err(ApiError::too_many_addresses());
        }
        if let Some(limits) = self.limits_of(&eni) {
            check_slots(limits, slots)?;
            check_prefixes(limits, wish.prefix_count > 0 || !wish.prefixes.is_empty())?;
        }
        let granted = self.take_wish(&eni.subnet, wish)?;
        let eni = self.eni_mut(id)?;
        eni.secondary.extend(&granted.addresses);
        eni.prefixes.extend(&granted.prefixes);
        self.say_addresses(id);
        Ok(granted)
    }

    /// UnassignPrivateIpAddresses: refused where the ENI lacks one of them.
    pub fn unassign(
        &mut self,
        id: &EniId,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Network],
    ) -> Result<(), ApiError> {
        let eni = Arc::clone(self.eni(id)?);
        if addresses.contains(&eni.primary) {
            return Err(ApiError::value(format!("{} is the primary private IP address", eni.primary)));
        }
        let all = addresses.iter().all(|a| eni.secondary.contains(a))
            && prefixes.iter().all(|p| eni.prefixes.contains(p));
        if !all {
            let message = format!("Some of the specified addresses are not assigned to interface {id}");
            return Err(ApiError::value(message));
        }
        let subnet = self.subnet_mut(&eni.subnet)?;
        addresses.iter().for_each(|a| subnet.give_back(*a));
        prefixes.iter().for_each(|p| subnet.give_back_block(*p));
        let eni = self.eni_mut(id)?;
        eni.secondary.retain(|a| !addresses.contains(a));
        eni.prefixes.retain(|p| !prefixes.contains(p));
        self.say_addresses(id);
        Ok(())
    }

    /// Takes all that is wished for, or nothing.
    fn take_wish(&mut self, subnet: &SubnetId, wish: &AddressWish) -> Result<Granted, ApiError> {
        let start = self.search_start();
        let subnet = self.subnet_mut(subnet)?;
        if let Some(outside) = wish.addresses.iter().find(|a| !subnet.cidr.contains(**a)) {
            return Err(ApiError::value(format!(
                "Address {outside} does not fall within the subnet's address range"
            )));
        }
        if let Some(taken) = wish.addresses.iter().find(|a| !subnet.is_free(**a)) {
            return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {taken} is in use.")));
        }
        if wish.prefixes.iter().any(|p| !subnet.is_free_block(*p)) {
            return Err(ApiError::no_blocks());
        }
        if wish.count > subnet.available() {
            return Err(ApiError::subnet_full());
        }
        let mut granted = Granted { addresses: wish.addresses.clone(), prefixes: wish.prefixes.clone() };
        granted.addresses.extend(subnet.find(wish.count, start));
        granted.prefixes.extend(subnet.find_blocks(wish.prefix_count, start));
        if u32::try_from(granted.prefixes.len()).unwrap_or(u32::MAX) < wish.prefix_count {
            return Err(ApiError::no_blocks());
        }
        granted.addresses.iter().for_each(|a| subnet.take(*a));
        granted.prefixes.iter().for_each(|p| subnet.take_block(*p));
        Ok(granted)
    }
}

/// Ranges: EC2 API reference, `ConnectionTrackingSpecificationRequest`.
fn check_tracking(tracking: Tracking) -> Result<(), ApiError> {
    let Tracking { tcp_established, udp_stream, udp } = tracking;
    let ranges = [(tcp_established, 60..=432_000), (udp_stream, 60..=180), (udp, 30..=60)];
    match ranges.into_iter().find(|(timeout, range)| timeout.is_some_and(|timeout| !range.contains(&timeout)))
    {
        Some((timeout, range)) => Err(ApiError::value(format!("{timeout:?} is not within {range:?}."))),
        None => Ok(()),
    }
}

/// Attributes and tags.
impl Model {
    /// Its security groups: refused where there is no such ENI.
    pub fn set_groups(&mut self, id: &EniId, groups: Vec<SecurityGroupId>) -> Result<(), ApiError> {
        self.eni_mut(id)?.groups = groups;
        Ok(())
    }

    /// Its connection tracking: refused where there is no such ENI.
    pub fn set_tracking(&mut self, id: &EniId, tracking: Tracking) -> Result<(), ApiError> {
        check_tracking(tracking)?;
        self.eni_mut(id)?.tracking = tracking;
        Ok(())
    }

    /// CreateTags: refused where there is no such ENI, or it would have too many.
    pub fn set_tags(&mut self, resources: &[String], tags: &[(String, String)]) -> Result<(), ApiError> {
        for resource in resources {
            let mut merged = self.tags_mut(resource)?.clone();
            merged.extend(tags.iter().cloned());
            check_tags(merged.len())?;
        }
        for resource in resources {
            self.tags_mut(resource)?.extend(tags.iter().cloned());
        }
        Ok(())
    }

    /// Removes tags; one with a value is removed only if it has that value, and no tags at all means all of them.
    pub(crate) fn remove_tags(
        &mut self,
        resources: &[String],
        tags: &[(String, Option<String>)],
    ) -> Result<(), ApiError> {
        let goes = |key: &str, value: &str| {
            tags.iter().any(|(k, v)| k == key && v.as_ref().is_none_or(|v| v == value)) || tags.is_empty()
        };
        for resource in resources {
            self.tags_mut(resource)?.retain(|key, value| !goes(key, value));
        }
        Ok(())
    }

    fn tags_mut(&mut self, resource: &str) -> Result<&mut BTreeMap<String, String>, ApiError> {
        let unknown = || ApiError::new("InvalidID", format!("The ID '{resource}' is not valid"));
        match resource.split_once('-').map(|(kind, _)| kind) {
            Some("eni") => Ok(&mut self.eni_mut(&resource.parse().map_err(|_ignored| unknown())?)?.tags),
            Some("subnet") => {
                Ok(&mut self.subnet_mut(&resource.parse().map_err(|_ignored| unknown())?)?.tags)
            }
            Some("i") => Ok(&mut self.instance_mut(&resource.parse().map_err(|_ignored| unknown())?)?.tags),
            _ => Err(unknown()),
        }
    }
}

fn check_wish(wish: &AddressWish) -> Result<(), ApiError> {
    let kinds =
        [wish.count > 0, !wish.addresses.is_empty(), wish.prefix_count > 0, !wish.prefixes.is_empty()];
    if kinds.into_iter().filter(|asked| *asked).count() > 1 {
        let message = "You can only specify one of: a count of private addresses, specific private addresses, a \
                       count of prefixes, specific prefixes.";
        return Err(ApiError::combination(message));
    }
    let mut once = BTreeSet::new();
    if !wish.addresses.iter().all(|a| once.insert(*a)) {
        return Err(ApiError::value("An address is named more than once."));
    }
    let mut once = BTreeSet::new();
    if !wish.prefixes.iter().all(|p| once.insert(*p)) {
        return Err(ApiError::value("A prefix is named more than once."));
    }
    Ok(())
}

fn check_slots(limits: &InstanceLimits, slots: usize) -> Result<(), ApiError> {
    if slots > usize::from(limits.ipv4_per_eni) {
        return Err(ApiError::too_many_addresses());
    }
    Ok(())
}

fn check_prefixes(limits: &InstanceLimits, has_prefixes: bool) -> Result<(), ApiError> {
    if has_prefixes && !limits.prefix_delegation {
        let message = format!("Instance type {} does not support prefixes.", limits.instance_type);
        return Err(ApiError::new("UnsupportedOperation", message));
    }
    Ok(())
}

fn check_tags(count: usize) -> Result<(), ApiError> {
    if count > TAGS_MAX {
        return Err(ApiError::new("TagLimitExceeded", "The maximum number of tags has been reached."));
    }
    Ok(())
}

fn no_type(name: &str) -> ApiError {
    ApiError::new(
        "InvalidInstanceType",
        format!("The following supplied instance types do not exist: [{name}]"),
    )
}
