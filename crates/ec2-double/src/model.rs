//! The cloud as a value: what exists, what is due, what it looked like a while ago.
//!
//! Pure: time is an argument, and what the outside must hear is queued as [`Event`]s. The calls of the API are in
//! `calls`.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use types::{
    DeviceIndex, EniId, InstanceId, InstanceLimits, InstanceTable, Mac, Moment, NetworkCard, SecurityGroupId,
    SubnetId,
};

use super::error::ApiError;
use super::subnet::Subnet;
use super::view::{AttachState, Attachment, Config, EniView, Instance, NewEni, SubnetView, VpcId};

/// ENIs at one moment; cheap to keep, as each ENI is shared until it changes.
pub(crate) type Enis = BTreeMap<EniId, Arc<EniView>>;

/// How long the past is kept; a longer lag sees the oldest kept state.
const PAST_KEPT: Duration = Duration::from_secs(300);
/// How many past states are kept.
const PAST_STATES_MAX: usize = 4096;

/// What the fabric must hear.
#[derive(Debug)]
pub enum Event {
    Attached(InstanceId, Arc<EniView>),
    Detached(InstanceId, Arc<EniView>),
    Addresses(Arc<EniView>),
    /// A trunk's VLAN leads to a branch: instance, trunk, branch.
    Associated(InstanceId, Arc<EniView>, Arc<EniView>),
    /// It leads there no longer.
    Disassociated(InstanceId, Arc<EniView>),
}

/// A VPC.
#[derive(Debug)]
pub struct Vpc {
    /// Its ranges.
    pub cidrs: Vec<Ipv4Network>,
    /// The security group of ENIs that name none.
    pub default_group: SecurityGroupId,
}

/// The whole state.
#[derive(Debug)]
pub struct Model {
    config: Config,
    limits: &'static InstanceTable,
    vpcs: BTreeMap<VpcId, Vpc>,
    subnets: BTreeMap<SubnetId, Subnet>,
    instances: BTreeMap<InstanceId, Instance>,
    enis: Enis,
    /// ENIs made under a client token, and what was asked for then.
    pub(super) tokens: BTreeMap<String, (NewEni, EniId)>,
    past: VecDeque<(Moment, Enis)>,
    events: VecDeque<Event>,
    deadlines: Vec<Moment>,
    /// Objects made so far: ids are made of it.
    made: u64,
}

impl Model {
    /// A cloud with nothing in it.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            limits: InstanceTable::builtin(),
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            instances: BTreeMap::new(),
            enis: Enis::new(),
            tokens: BTreeMap::new(),
            past: VecDeque::from([(Moment(0), Enis::new())]),
            events: VecDeque::new(),
            deadlines: Vec::new(),
            made: 0,
        }
    }

    /// Its manners.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Makes a VPC with these ranges.
    pub fn add_vpc(&mut self, cidrs: &[Ipv4Network]) -> VpcId {
        let id = VpcId(format!("vpc-{}", self.new_tail()));
        let default_group = self.new_id("sg");
        self.vpcs.insert(id.clone(), Vpc { cidrs: cidrs.to_vec(), default_group });
        id
    }

    pub(crate) fn set_ranges(&mut self, vpc: &VpcId, cidrs: &[Ipv4Network]) -> Result<(), ApiError> {
        let unknown = || ApiError::new("InvalidVpcID.NotFound", vpc.to_string());
        self.vpcs.get_mut(vpc).ok_or_else(unknown)?.cidrs = cidrs.to_vec();
        Ok(())
    }

    /// Makes a subnet: refused where there is no such VPC.
    pub fn add_subnet(&mut self, vpc: &VpcId, cidr: Ipv4Network, zone: &str) -> Result<SubnetId, ApiError> {
        let known = self.vpcs.get(vpc);
        let ranges = &known.ok_or_else(|| ApiError::new("InvalidVpcID.NotFound", vpc.to_string()))?.cidrs;
        if cidr.prefix() > 28 || !ranges.iter().any(|range| cidr.is_subnet_of(*range)) {
            return Err(ApiError::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid.")));
        }
        if self.subnets.values().any(|other| other.vpc == *vpc && other.cidr.overlaps(cidr)) {
            return Err(ApiError::new("InvalidSubnet.Conflict", format!("The CIDR '{cidr}' conflicts.")));
        }
        let id: SubnetId = self.new_id("subnet");
        self.subnets.insert(id.clone(), Subnet::new(id.clone(), vpc.clone(), cidr, zone));
        Ok(id)
    }

    /// RunInstances: refused where there is no such subnet or type.
    pub fn launch(
        &mut self,
        instance_type: &str,
        subnet: &SubnetId,
        now: Moment,
    ) -> Result<Instance, ApiError> {
        if self.limits.get(instance_type).is_none() {
            return Err(ApiError::value(format!("Invalid value '{instance_type}' for InstanceType.")));
        }
        let eni = self.create_eni(&NewEni::plain(subnet.clone()))?;
        let host = u16::try_from(0x100 + self.instances.len()).unwrap_or(u16::MAX);
        let ipv6 = self.own_ipv6(subnet, host);
        self.eni_mut(&eni.id)?.ipv6 = ipv6;
        let id: InstanceId = self.new_id("i");
        let attachment = Attachment {
            id: format!("eni-attach-{}", self.new_tail()),
            instance: id.clone(),
            device: DeviceIndex(0),
            card: NetworkCard(0),
            state: AttachState::Attached,
            delete_on_termination: true,
            since: now,
        };
        let primary = self.set_attachment(&eni.id, Some(attachment))?;
        let instance = Instance {
            id: id.clone(),
            instance_type: instance_type.to_owned(),
            subnet: subnet.clone(),
            vpc: eni.vpc.clone(),
            zone: eni.zone.clone(),
            primary_eni: eni.id.clone(),
            mac: eni.mac,
            address: eni.primary,
            launched: now,
            running: true,
            tags: BTreeMap::new(),
        };
        self.instances.insert(id.clone(), instance.clone());
        // Whoever asks from within the instance asks long after its launch: no lag hides its primary ENI.
        for (_, enis) in &mut self.past {
            enis.insert(primary.id.clone(), Arc::clone(&primary));
        }
        self.events.push_back(Event::Attached(id, primary));
        Ok(instance)
    }

    pub(crate) fn terminate(&mut self, id: &InstanceId) -> Result<(), ApiError> {
        self.instances.get_mut(id).ok_or_else(|| ApiError::no_instance(id))?.running = false;
        let enis: Vec<_> = self.enis_of(id).cloned().collect();
        for eni in enis {
            self.pull(&eni.id)?;
            if eni.attachment.as_ref().is_some_and(|a| a.delete_on_termination) {
                self.delete_eni(&eni.id)?;
            }
        }
        Ok(())
    }

    /// Ends an attachment at once.
    pub fn pull(&mut self, id: &EniId) -> Result<(), ApiError> {
        let before = Arc::clone(self.eni(id)?);
        if before.attachment.is_none() {
            return Err(ApiError::new("IncorrectState", format!("Interface '{id}' is not attached.")));
        }
        self.end_branches(id);
        self.set_attachment(id, None)?;
        if let Some(instance) = before.inside().cloned() {
            self.events.push_back(Event::Detached(instance, before));
        }
        Ok(())
    }

    /// Somebody else takes these addresses: refused where there is no such subnet.
    pub fn occupy(&mut self, subnet: &SubnetId, addresses: &[Ipv4Addr]) -> Result<(), ApiError> {
        let subnet = self.subnet_mut(subnet)?;
        if let Some(taken) = addresses.iter().find(|a| !subnet.is_free(**a)) {
            return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {taken} is in use.")));
        }
        addresses.iter().for_each(|a| subnet.take(*a));
        Ok(())
    }

    /// Somebody else takes all but so many; returns which: refused where there is no such subnet.
    pub fn occupy_all_but(&mut self, subnet: &SubnetId, left: u32) -> Result<Vec<Ipv4Addr>, ApiError> {
        let subnet = self.subnet_mut(subnet)?;
        let found = subnet.find(subnet.available().saturating_sub(left), 0);
        found.iter().for_each(|a| subnet.take(*a));
        Ok(found)
    }

    /// They give them back: refused where there is no such subnet.
    pub fn vacate(&mut self, subnet: &SubnetId, addresses: &[Ipv4Addr]) -> Result<(), ApiError> {
        let subnet = self.subnet_mut(subnet)?;
        addresses.iter().for_each(|a| subnet.give_back(*a));
        Ok(())
    }
}

/// Time.
impl Model {
    /// Completes every attachment and detachment that is due.
    pub fn advance(&mut self, now: Moment) {
        let due: Vec<_> = self.enis.values().filter(|eni| is_due(eni, now)).cloned().collect();
        for eni in due {
            self.complete(&eni);
        }
    }

    fn complete(&mut self, eni: &Arc<EniView>) {
        let Some(attachment) = eni.attachment.clone() else { return };
        let instance = attachment.instance.clone();
        match attachment.state {
            AttachState::Attaching { .. } => {
                let attached = Attachment { state: AttachState::Attached, ..attachment };
                if let Ok(eni) = self.set_attachment(&eni.id, Some(attached)) {
                    self.events.push_back(Event::Attached(instance, eni));
                }
            }
            AttachState::Attached => {}
            AttachState::Detaching { .. } => {
                self.end_branches(&eni.id);
                if self.set_attachment(&eni.id, None).is_ok() {
                    self.events.push_back(Event::Detached(instance, Arc::clone(eni)));
                }
            }
        }
    }

    /// Keeps the present state for those who look into the past.
    pub fn remember(&mut self, now: Moment) {
        if self.past.back().is_some_and(|(_, enis)| *enis == self.enis) {
            return;
        }
        self.past.push_back((now, self.enis.clone()));
        let too_old = |next: Option<&(Moment, Enis)>| next.is_some_and(|(at, _)| now.since(*at) > PAST_KEPT);
        while self.past.len() > PAST_STATES_MAX || too_old(self.past.get(1)) {
            self.past.pop_front();
        }
    }

    /// The ENIs as they were `lag` ago.
    pub fn as_of(&self, now: Moment, lag: Duration) -> &Enis {
        if lag.is_zero() {
            return &self.enis;
        }
        let known = self.past.iter().rev().find(|(at, _)| at.plus(lag) <= now);
        known.or(self.past.front()).map_or(&self.enis, |(_, enis)| enis)
    }

    /// Moments, asked for since the last call, at which [`Model::advance`] has something to do.
    pub(crate) fn take_deadlines(&mut self) -> Vec<Moment> {
        std::mem::take(&mut self.deadlines)
    }

    pub(super) fn say(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What the fabric has not heard yet, the oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn wake_at(&mut self, now: Moment, deadline: Moment) {
        if deadline > now {
            self.deadlines.push(deadline);
        }
    }
}

fn is_due(eni: &EniView, now: Moment) -> bool {
    eni.attachment.as_ref().is_some_and(|attachment| match attachment.state {
        AttachState::Attaching { until } | AttachState::Detaching { until } => until <= now,
        AttachState::Attached => false,
    })
}

/// Looking things up.
impl Model {
    /// One ENI: refused where there is none.
    pub fn eni(&self, id: &EniId) -> Result<&Arc<EniView>, ApiError> {
        self.enis.get(id).ok_or_else(|| ApiError::no_eni(id))
    }

    /// All of them.
    pub fn enis(&self) -> impl Iterator<Item = &Arc<EniView>> {
        self.enis.values()
    }

    /// Those attached to an instance, also while they come or go.
    pub fn enis_of(&self, instance: &InstanceId) -> impl Iterator<Item = &Arc<EniView>> {
        enis_in(&self.enis, instance).into_iter()
    }

    /// One instance: refused where there is none.
    pub fn instance(&self, id: &InstanceId) -> Result<&Instance, ApiError> {
        self.instances.get(id).ok_or_else(|| ApiError::no_instance(id))
    }

    pub(crate) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    pub(super) fn instance_mut(&mut self, id: &InstanceId) -> Result<&mut Instance, ApiError> {
        self.instances.get_mut(id).ok_or_else(|| ApiError::no_instance(id))
    }

    /// One VPC.
    pub fn vpc(&self, id: &VpcId) -> Option<&Vpc> {
        self.vpcs.get(id)
    }

    pub(crate) fn subnet_view(&self, id: &SubnetId) -> Result<SubnetView, ApiError> {
        self.subnets.get(id).map(Subnet::view).ok_or_else(|| ApiError::no_subnet(id))
    }

    /// The subnets as DescribeSubnets tells them.
    pub fn subnets(&self) -> impl Iterator<Item = SubnetView> {
        self.subnets.values().map(Subnet::view)
    }

    pub(super) fn subnet_mut(&mut self, id: &SubnetId) -> Result<&mut Subnet, ApiError> {
        self.subnets.get_mut(id).ok_or_else(|| ApiError::no_subnet(id))
    }

    /// What types can hold.
    pub fn limits_table(&self) -> &InstanceTable {
        self.limits
    }

    /// The limits of the instance an ENI is tied to.
    pub(crate) fn limits_of(&self, eni: &EniView) -> Option<&InstanceLimits> {
        let instance = self.instances.get(&eni.attachment.as_ref()?.instance)?;
        self.limits.get(&instance.instance_type)
    }
}

/// The ENIs tied to an instance by card and device.
pub(crate) fn enis_in<'a>(enis: &'a Enis, instance: &InstanceId) -> Vec<&'a Arc<EniView>> {
    let place = |eni: &EniView| eni.attachment.as_ref().map(|a| (a.card, a.device));
    let mut found: Vec<_> =
        enis.values().filter(|e| e.attachment.as_ref().is_some_and(|a| a.instance == *instance)).collect();
    found.sort_by_key(|eni| place(eni));
    found
}

/// Changing ENIs.
impl Model {
    /// An ENI to change in place; who holds the old value keeps it.
    pub(super) fn eni_mut(&mut self, id: &EniId) -> Result<&mut EniView, ApiError> {
        self.enis.get_mut(id).map(Arc::make_mut).ok_or_else(|| ApiError::no_eni(id))
    }

    pub(super) fn set_attachment(
        &mut self,
        id: &EniId,
        attachment: Option<Attachment>,
    ) -> Result<Arc<EniView>, ApiError> {
        self.eni_mut(id)?.attachment = attachment;
        self.eni(id).cloned()
    }

    pub(super) fn insert_eni(&mut self, eni: EniView) -> Arc<EniView> {
        let eni = Arc::new(eni);
        self.enis.insert(eni.id.clone(), Arc::clone(&eni));
        eni
    }

    pub(super) fn remove_eni(&mut self, id: &EniId) {
        self.enis.remove(id);
    }

    /// Tells the fabric, if the ENI's device is in an instance.
    pub(super) fn say_addresses(&mut self, id: &EniId) {
        let inside = self.enis.get(id).filter(|eni| eni.inside().is_some()).cloned();
        self.events.extend(inside.map(Event::Addresses));
    }

    /// Where a search for a free address begins.
    pub(super) fn search_start(&mut self) -> u32 {
        let Some(seed) = self.config.seed else { return 0 };
        let [a, b, c, d, ..] = self.next_random(seed).to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// An id of EC2's newer form: 17 hexadecimal digits that say nothing about the order of creation.
    pub(super) fn new_id<T: TryFrom<String>>(&mut self, prefix: &str) -> T {
        loop {
            let text = format!("{prefix}-{}", self.new_tail());
            if let Ok(id) = T::try_from(text) {
                return id;
            }
        }
    }

    pub(super) fn new_tail(&mut self) -> String {
        format!("0{:016x}", self.next_random(0))
    }

    pub(super) fn new_mac(&mut self) -> Mac {
        let [_, a, b, c, d, e, ..] = self.next_random(0).to_be_bytes();
        Mac([0x0a, a, b, c, d, e])
    }

    /// The next number of the SplitMix64 sequence: different for every call, the same in every run.
    fn next_random(&mut self, seed: u64) -> u64 {
        self.made += 1;
        let step = seed.wrapping_add(self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (step ^ (step >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
