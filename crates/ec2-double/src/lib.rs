//! EC2's network part, with its bad manners.
//!
//! [`Ec2`] holds a small model of VPCs, subnets, instances and ENIs. The daemon speaks to it over HTTP in EC2's Query
//! protocol ([`serve`]), tests and the lab through the methods here, which stand for the operator's console and for the
//! cloud itself. The model is pure and gets the time as an argument; this module adds the clock, the lock, and the
//! delivery of changes to the fabric ([`Wiring`]).
//!
//! ```text
//! HTTP ── server ── faults ── query (words) ── api ── model ── events ──> Wiring
//!                                                └── xml (answers)
//! ```

mod api;
mod branch;
mod calls;
mod describe;
mod error;
mod faults;
mod filter;
mod ipv6;
mod model;
mod query;
mod server;
mod subnet;
#[cfg(test)]
mod tests;
mod view;
mod xml;

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnetwork::{Ipv4Network, Ipv6Network};
use types::{DeviceIndex, EniId, InstanceId, Moment, NetworkCard, SecurityGroupId, SubnetId, VlanId};

pub use error::ApiError;
pub use faults::{Bucket, Call, Fault, Outcome, Weather};
pub use query::Action;
pub use server::{Server, serve};
pub use view::{
    AddressWish, AttachState, Attachment, Config, EniKind, EniView, Instance, NewEni, SubnetView, Tracking,
    VpcId, Wiring,
};

pub use api::OWNER;
pub use model::Model;
pub use server::{Line, spawn};
pub use xml::iso8601;

use faults::Faults;
use model::Event;

/// A handle on the cloud; clones are the same cloud.
#[derive(Clone)]
pub struct Ec2(Arc<Shared>);

struct Shared {
    model: Mutex<Model>,
    faults: Mutex<Faults>,
    wiring: Mutex<Option<Arc<dyn Wiring>>>,
    /// Held while events are delivered, so that they arrive in order and a caller can wait for its own.
    delivery: Mutex<()>,
    clock: Clock,
}

impl fmt::Debug for Ec2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ec2").finish_non_exhaustive()
    }
}

/// The cloud's own making.
impl Ec2 {
    /// An empty cloud.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            model: Mutex::new(Model::new(config)),
            faults: Mutex::new(Faults::default()),
            wiring: Mutex::new(None),
            delivery: Mutex::new(()),
            clock: Clock::start(),
        }))
    }

    /// Tells `wiring` of every change from now on; `None` tells nobody. When it returns, the old one is told no more.
    ///
    /// Not to be called from a [`Wiring`] method.
    pub fn set_wiring(&self, wiring: Option<Arc<dyn Wiring>>) {
        let _between_events = lock(&self.0.delivery);
        *lock(&self.0.wiring) = wiring;
    }

    /// Changes the settings; an attachment already under way keeps its delay.
    pub fn tune(&self, change: impl FnOnce(&mut Config)) {
        change(lock(&self.0.model).config_mut());
    }

    /// The cloud's present moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.0.clock.now()
    }

    /// A VPC with these ranges; the first one is its main range.
    #[must_use]
    pub fn add_vpc(&self, cidrs: &[Ipv4Network]) -> VpcId {
        self.change(|model, _| model.add_vpc(cidrs))
    }

    /// Somebody gives a VPC other ranges.
    ///
    /// # Errors
    /// An unknown VPC.
    pub fn set_ranges(&self, vpc: &VpcId, cidrs: &[Ipv4Network]) -> Result<(), ApiError> {
        self.change(|model, _| model.set_ranges(vpc, cidrs))
    }

    /// A subnet in a zone, for example `eu-lab-1a`.
    ///
    /// # Errors
    /// As EC2's `CreateSubnet`: unknown VPC, a range outside of the VPC's, or one that overlaps another subnet.
    pub fn add_subnet(&self, vpc: &VpcId, cidr: Ipv4Network, zone: &str) -> Result<SubnetId, ApiError> {
        self.change(|model, _| model.add_subnet(vpc, cidr, zone))
    }

    /// A running instance with its primary ENI, whose attachment is delivered before this returns.
    ///
    /// # Errors
    /// Unknown type or subnet, or a subnet without a free address.
    pub fn launch(&self, instance_type: &str, subnet: &SubnetId) -> Result<Instance, ApiError> {
        self.change(|model, now| model.launch(instance_type, subnet, now))
    }

    /// Terminates an instance: its ENIs are detached, and deleted where they are marked so.
    ///
    /// # Errors
    /// Unknown instance.
    pub fn terminate(&self, instance: &InstanceId) -> Result<(), ApiError> {
        self.change(|model, _| model.terminate(instance))
    }
}

/// What an operator does behind the daemon's back. The calls of the API without HTTP, throttling and faults.
impl Ec2 {
    /// As `CreateNetworkInterface`.
    ///
    /// # Errors
    /// As the call.
    pub fn create_eni(&self, want: &NewEni) -> Result<EniView, ApiError> {
        self.change(|model, _| model.create_eni(want)).map(Arc::unwrap_or_clone)
    }

    /// As `AttachNetworkInterface`; returns before the attachment is complete if there is a delay.
    ///
    /// # Errors
    /// As the call.
    pub fn attach(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        card: NetworkCard,
        device: DeviceIndex,
    ) -> Result<String, ApiError> {
        self.change(|model, now| model.attach(eni, instance, card, device, now))
    }

    /// As `AssociateTrunkInterface`: the association's id.
    ///
    /// # Errors
    /// As the call.
    pub fn associate(&self, trunk: &EniId, branch: &EniId, vlan: VlanId) -> Result<String, ApiError> {
        self.change(|model, _| model.associate(trunk, branch, vlan))
    }

    /// As `DisassociateTrunkInterface`.
    ///
    /// # Errors
    /// As the call.
    pub fn disassociate(&self, branch: &EniId) -> Result<(), ApiError> {
        self.change(|model, _| model.disassociate(branch))
    }

    /// As `AssignPrivateIpAddresses`: the ENI as it is after it.
    ///
    /// # Errors
    /// As the call.
    pub fn assign(&self, eni: &EniId, wish: &AddressWish) -> Result<EniView, ApiError> {
        self.change(|model, _| {
            model.assign(eni, wish)?;
            model.eni(eni).cloned()
        })
        .map(Arc::unwrap_or_clone)
    }

    /// As `UnassignPrivateIpAddresses`.
    ///
    /// # Errors
    /// As the call.
    pub fn unassign(
        &self,
        eni: &EniId,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Network],
    ) -> Result<(), ApiError> {
        self.change(|model, _| model.unassign(eni, addresses, prefixes))
    }

    /// Gives a subnet a range of IPv6 addresses, or takes it away.
    ///
    /// # Errors
    /// Unknown subnet.
    pub fn set_ipv6(&self, subnet: &SubnetId, range: Option<Ipv6Network>) -> Result<(), ApiError> {
        self.change(|model, _| model.set_ipv6(subnet, range))
    }

    /// As `AssignIpv6Addresses`, of prefixes.
    ///
    /// # Errors
    /// As the call.
    pub fn assign_ipv6(&self, eni: &EniId, count: u32) -> Result<Vec<Ipv6Network>, ApiError> {
        self.change(|model, _| model.assign_ipv6(eni, count))
    }

    /// As `UnassignIpv6Addresses`, of prefixes.
    ///
    /// # Errors
    /// As the call.
    pub fn unassign_ipv6(&self, eni: &EniId, prefixes: &[Ipv6Network]) -> Result<(), ApiError> {
        self.change(|model, _| model.unassign_ipv6(eni, prefixes))
    }

    /// Pulls an ENI out of its instance at once, as a forced detach.
    ///
    /// # Errors
    /// Unknown ENI, or one that is not attached.
    pub fn operator_detach(&self, eni: &EniId) -> Result<(), ApiError> {
        self.change(|model, _| model.pull(eni))
    }

    /// Deletes an ENI that is not attached.
    ///
    /// # Errors
    /// As `DeleteNetworkInterface`.
    pub fn operator_delete(&self, eni: &EniId) -> Result<(), ApiError> {
        self.change(|model, _| model.delete_eni(eni))
    }

    /// Somebody else takes these addresses of a subnet.
    ///
    /// # Errors
    /// Unknown subnet, or an address that is not free.
    pub fn occupy(&self, subnet: &SubnetId, addresses: &[Ipv4Addr]) -> Result<(), ApiError> {
        self.change(|model, _| model.occupy(subnet, addresses))
    }

    /// Somebody else takes free addresses of a subnet until only `left` are free, and these are the ones taken.
    ///
    /// # Errors
    /// Unknown subnet.
    pub fn occupy_all_but(&self, subnet: &SubnetId, left: u32) -> Result<Vec<Ipv4Addr>, ApiError> {
        self.change(|model, _| model.occupy_all_but(subnet, left))
    }

    /// Gives back what [`Ec2::occupy`] or [`Ec2::occupy_all_but`] took.
    ///
    /// # Errors
    /// Unknown subnet.
    pub fn vacate(&self, subnet: &SubnetId, addresses: &[Ipv4Addr]) -> Result<(), ApiError> {
        self.change(|model, _| model.vacate(subnet, addresses))
    }

    /// Somebody else changes the timeouts for idle connections of an ENI.
    ///
    /// # Errors
    /// As for the call.
    pub fn set_tracking(&self, eni: &EniId, tracking: Tracking) -> Result<(), ApiError> {
        self.change(|model, _| model.set_tracking(eni, tracking))
    }

    /// Somebody else changes the security groups of an ENI.
    ///
    /// # Errors
    /// Unknown ENI.
    pub fn set_groups(&self, eni: &EniId, groups: Vec<SecurityGroupId>) -> Result<(), ApiError> {
        self.change(|model, _| model.set_groups(eni, groups))
    }

    /// Sets a tag of an ENI, a subnet or an instance.
    ///
    /// # Errors
    /// Unknown resource.
    pub fn tag(&self, resource: &str, key: &str, value: &str) -> Result<(), ApiError> {
        self.change(|model, _| model.set_tags(&[resource.to_owned()], &[(key.to_owned(), value.to_owned())]))
    }
}

/// The truth, without lag.
impl Ec2 {
    /// An ENI, or `None` if there is none with this id.
    #[must_use]
    pub fn eni(&self, id: &EniId) -> Option<EniView> {
        self.look(|model| model.eni(id).ok().cloned()).map(Arc::unwrap_or_clone)
    }

    /// Every ENI of the cloud, attached or not.
    #[must_use]
    pub fn enis(&self) -> Vec<EniView> {
        self.look(|model| model.enis().map(|eni| EniView::clone(eni)).collect())
    }

    /// The ENIs of an instance by card and device, those being attached or detached included.
    #[must_use]
    pub fn enis_of(&self, instance: &InstanceId) -> Vec<EniView> {
        self.look(|model| model.enis_of(instance).map(|eni| EniView::clone(eni)).collect())
    }

    /// The sources that the VPC accepts from an ENI; empty for one that does not exist.
    #[must_use]
    pub fn allowed_sources(&self, eni: &EniId) -> BTreeSet<Ipv4Addr> {
        self.look(|model| model.eni(eni).map(|eni| eni.sources()).unwrap_or_default())
    }

    /// An instance, also a terminated one.
    #[must_use]
    pub fn instance(&self, id: &InstanceId) -> Option<Instance> {
        self.look(|model| model.instance(id).ok().cloned())
    }

    /// A subnet.
    #[must_use]
    pub fn subnet(&self, id: &SubnetId) -> Option<SubnetView> {
        self.look(|model| model.subnet_view(id).ok())
    }
}

/// Bad manners on demand, and the record of calls.
impl Ec2 {
    /// The next `times` calls of `action` meet `fault`; several stand in line.
    pub fn fault_next(&self, action: Action, times: u32, fault: Fault) {
        lock(&self.0.faults).next(action, times, fault);
    }

    /// Forgets all faults that were not met yet.
    pub fn clear_faults(&self) {
        lock(&self.0.faults).clear();
    }

    /// What every call meets from now on.
    pub fn set_weather(&self, weather: Weather) {
        lock(&self.0.faults).set_weather(weather);
    }

    /// Limits the rate of an action, over all callers, as EC2 does per account; `None` lifts the limit.
    pub fn throttle(&self, action: Action, bucket: Option<Bucket>) {
        let now = self.now();
        lock(&self.0.faults).throttle(action, bucket, now);
    }

    /// The calls made over HTTP so far, oldest first.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.0.faults).calls().cloned().collect()
    }

    /// Forgets the calls made so far.
    pub fn clear_calls(&self) {
        lock(&self.0.faults).clear_calls();
    }
}

impl Ec2 {
    /// Reads the model with everything done that is due; delivers nothing, so that the wiring may call it.
    pub fn look<R>(&self, read: impl FnOnce(&Model) -> R) -> R {
        let mut model = lock(&self.0.model);
        let now = self.now();
        model.advance(now);
        model.remember(now);
        read(&model)
    }

    /// Changes the model and delivers what came of it.
    pub fn change<R>(&self, change: impl FnOnce(&mut Model, Moment) -> R) -> R {
        let (result, deadlines, eventful) = {
            let mut model = lock(&self.0.model);
            let now = self.now();
            model.advance(now);
            let result = change(&mut model, now);
            model.advance(now);
            model.remember(now);
            (result, model.take_deadlines(), model.has_events())
        };
        for deadline in deadlines {
            self.wake_at(deadline);
        }
        if eventful {
            self.deliver();
        }
        result
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.0.faults)
    }

    /// Hands waiting events to the wiring; returns after those that were there at the call are handled.
    fn deliver(&self) {
        let _order = lock(&self.0.delivery);
        let wiring = lock(&self.0.wiring).clone();
        loop {
            let event = lock(&self.0.model).next_event();
            match (event, &wiring) {
                (None, _) => return,
                (Some(_), None) => {}
                (Some(Event::Attached(instance, eni)), Some(wiring)) => wiring.attached(&instance, &eni),
                (Some(Event::Detached(instance, eni)), Some(wiring)) => wiring.detached(&instance, &eni),
                (Some(Event::Addresses(eni)), Some(wiring)) => wiring.addresses_changed(&eni),
                (Some(Event::Associated(instance, trunk, branch)), Some(wiring)) => {
                    wiring.associated(&instance, &trunk, &branch);
                }
                (Some(Event::Disassociated(instance, branch)), Some(wiring)) => {
                    wiring.disassociated(&instance, &branch);
                }
            }
        }
    }

    /// Completes at `deadline` what is due then, unless the cloud is gone by that time.
    fn wake_at(&self, deadline: Moment) {
        let weak = Arc::downgrade(&self.0);
        let wait = deadline.since(self.now()) + Duration::from_millis(1);
        let _detached = thread::spawn(move || {
            thread::sleep(wait);
            if let Some(shared) = weak.upgrade() {
                Self(shared).change(|_, _| ());
            }
        });
    }
}

/// Wall time at the start plus time passed since: never goes back.
#[derive(Debug)]
pub struct Clock {
    base: Moment,
    started: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Moment(0).plus(since_epoch), started: Instant::now() }
    }

    /// The time by it.
    pub fn now(&self) -> Moment {
        self.base.plus(self.started.elapsed())
    }
}

/// A panic of one test's thread must not spoil the others: the model is whole between its own calls.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
