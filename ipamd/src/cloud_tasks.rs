//! Calls to EC2 and IMDS: one task each, so that a slow one holds up nothing. Results come back as events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use node::clock::{Jitter, doubled};
use pool::{Action, ActionId, EniSeen, Outcome, Role, Wanted};
use tokio::sync::{OnceCell, mpsc, watch};
use types::{DeviceIndex, EniId, InstanceTable, Ipv6Prefix, Mac, NetworkCard, SecurityGroupId, SubnetId};

use crate::clock::Clock;
use crate::cloud::{
    CloudError, CloudErrorKind, ConnectionTracking, Ec2, EniRecord, Identity, Imds, Inventory, LIMITS, NewEni,
};
use crate::cluster::Notes;
use crate::config::Config;
use crate::estate::{Estate, INSTANCE_TAG};
use crate::metrics::{Metrics, Undeleted, Work};
use crate::node::{Chore, Event, Facts, Picture};
use crate::server::chain;

/// Pause between attempts to read instance metadata at start; grows to the second value.
const IDENTITY_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The same where it is EC2 that is asked, for the limits of an instance type that is not in the table: what it denies or throttles it
/// denies and throttles for all nodes of that type.
const LIMITS_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A call to create an ENI that is not answered: attempts under one token, and the pause between them.
const CREATE_ATTEMPTS: u32 = 3;
const CREATE_RETRY: Duration = Duration::from_secs(1);
/// A detached ENI can be deleted once EC2 calls it available, which takes it some seconds and a refused call for each earlier
/// attempt: attempts and the pause before each.
const DELETE_ATTEMPTS: u32 = 5;
const DETACHING: Duration = Duration::from_secs(6);

/// Instance metadata does not show a new ENI at once: attempts to read its subnet's range, and the pause between them.
const RANGE_ATTEMPTS: u32 = 40;
const RANGE_RETRY: Duration = Duration::from_millis(250);

/// Pause between two readings of what only instance metadata tells; local, and EC2 is asked only when it changes.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// How long the next attempt to find out who we are waits.
#[derive(Debug)]
struct Patience {
    jitter: Jitter,
    /// Attempts in a row that instance metadata did not answer, and that EC2 did not.
    failed: (u32, u32),
}

impl Patience {
    const fn new(jitter: Jitter) -> Self {
        Self { jitter, failed: (0, 0) }
    }

    /// After another attempt has failed; `of_ec2`: EC2 has been asked.
    fn pause(&mut self, of_ec2: bool) -> Duration {
        let (pauses, failed) = match of_ec2 {
            false => (IDENTITY_RETRY, &mut self.failed.0),
            true => (LIMITS_RETRY, &mut self.failed.1),
        };
        let pause = doubled(pauses, *failed);
        *failed = failed.saturating_add(1);
        if of_ec2 { self.jitter.around(pause) } else { pause }
    }
}

fn not_asked() -> CloudError {
    CloudError::new(CloudErrorKind::Denied, "EC2", "it is not to be asked")
}

/// The cloud side of one node.
#[derive(Debug)]
pub(crate) struct CloudTasks {
    config: Config,
    clock: Clock,
    imds: Imds,
    metrics: Metrics,
    /// Where it is said that EC2 denies a call.
    notes: Notes,
    events: mpsc::Sender<Event>,
    /// Known once instance metadata has answered.
    node: OnceCell<Known>,
    /// Somebody has looked since the node started.
    looked: AtomicBool,
    tokens: AtomicU64,
    /// The primary ENI's timeouts for idle connections, as EC2 last told them.
    tracking: watch::Sender<ConnectionTracking>,
}

#[derive(Debug)]
struct Known {
    /// `None` when EC2 is not to be asked.
    ec2: Option<Ec2>,
    identity: Identity,
    estate: Estate,
}

impl Known {
    fn ec2(&self) -> Result<&Ec2, CloudError> {
        self.ec2.as_ref().ok_or_else(not_asked)
    }
}

impl CloudTasks {
    /// `ran_before`: a daemon ran since the node started.
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        imds: Imds,
        (metrics, notes): (Metrics, Notes),
        ran_before: bool,
        events: mpsc::Sender<Event>,
    ) -> Arc<Self> {
        let (tokens, looked) = (AtomicU64::new(clock.now().0), AtomicBool::new(ran_before));
        let tracking = watch::Sender::default();
        Arc::new(Self {
            config,
            clock,
            imds,
            metrics,
            notes,
            events,
            node: OnceCell::new(),
            looked,
            tokens,
            tracking,
        })
    }

    /// Finds out who we are, tries until it knows, and then watches what only instance metadata tells.
    pub(crate) async fn identify(self: Arc<Self>) {
        let (began, working) = (self.clock.now(), self.metrics.begin(Work::Init));
        let node = self.config.node_name.as_deref().unwrap_or_default();
        let mut patience = Patience::new(Jitter::of_node(node, began));
        // Made once: it has what it has learnt of credentials, endpoints and its own pace.
        let client = OnceCell::new();
        let facts = loop {
            let of_ec2 = match self.facts(&client).await {
                Ok(facts) => break facts,
                Err(error) => {
                    // Of EC2 nothing else is asked here.
                    let of_ec2 = error.call() == LIMITS;
                    drop(self.events.send(Event::Unidentified(error)).await);
                    of_ec2
                }
            };
            tokio::time::sleep(patience.pause(of_ec2)).await;
        };
        drop(working);
        self.metrics.initialised(self.clock.now().since(began));
        drop(self.events.send(Event::Identified(Box::new(facts))).await);
        if let Some(known) = self.node.get() {
            self.watch(&known.identity).await;
        }
    }

    /// Who we are; `client` is that of EC2, as soon as it is known of which region.
    async fn facts(&self, client: &OnceCell<Ec2>) -> Result<Facts, CloudError> {
        let identity = self.imds.identity().await?;
        let ec2 = match self.config.imds_only {
            true => None,
            false => {
                let (metrics, notes) = (self.metrics.clone(), self.notes.clone());
                let connect = || Ec2::connect(&self.config, &identity.region, metrics, notes);
                Some(client.get_or_init(connect).await.clone())
            }
        };
        let known = Known { ec2, estate: self.estate(&identity), identity };
        let identity = &known.identity;
        let limits = match InstanceTable::builtin().get(&identity.instance_type) {
            Some(limits) => limits.clone(),
            None => known.ec2()?.instance_limits(&identity.instance_type).await?,
        };
        let facts = Facts {
            instance: identity.instance.clone(),
            limits,
            primary_address: identity.primary_address,
            subnet: identity.subnet.clone(),
            vpc_cidrs: identity.vpc_cidrs.clone(),
            ipv6: identity.ipv6,
        };
        // Set once; a second identification changes nothing.
        drop(self.node.set(known));
        Ok(facts)
    }

    /// Who we are, once that is known.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.node.get().map(|known| &known.identity)
    }

    fn estate(&self, identity: &Identity) -> Estate {
        Estate {
            instance: identity.instance.clone(),
            primary: identity.mac,
            subnet: identity.subnet.clone(),
            cluster: self.config.cluster_name.clone(),
            more_tags: self.config.eni_tags.clone(),
            manage_untagged: self.config.manage_untagged || self.config.imds_only,
            imds_only: self.config.imds_only,
            multi_nic: self.config.multi_nic,
            subnet_discovery: self.config.subnet_discovery,
            custom_networking: self.config.custom_networking.is_some(),
        }
    }

    /// Tells when the primary ENI's security groups, its IPv6 address or the VPC's ranges change, until nobody listens.
    async fn watch(&self, identity: &Identity) {
        let (mut groups, mut ranges) = (identity.security_groups.clone(), identity.vpc_cidrs.clone());
        let mut ipv6 = None;
        while !self.events.is_closed() {
            tokio::time::sleep(WATCH_EVERY).await;
            // With custom networking those of ENIs that are there stay as they are.
            if self.config.custom_networking.is_none()
                && let Ok(now) = self.groups().await
                && groups != now
            {
                groups = now;
                drop(self.events.send(Event::Stale).await);
            }
            if let Ok(now) = self.imds.vpc_cidrs(identity.mac).await
                && ranges != now
                && !now.is_empty()
            {
                ranges.clone_from(&now);
                drop(self.events.send(Event::Ranges(now)).await);
            }
            if let Ok(Some(now)) = self.imds.ipv6(identity.mac).await
                && ipv6.replace(now) != Some(now)
            {
                drop(self.events.send(Event::NodeIpv6(now)).await);
            }
        }
    }

    async fn groups(&self) -> Result<Vec<SecurityGroupId>, CloudError> {
        self.imds.security_groups(self.known()?.identity.mac).await
    }

    /// Starts a look at the ENIs.
    pub(crate) fn look(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = Box::pin(this.working(Work::Look, this.picture())).await;
            drop(this.events.send(Event::Looked(result)).await);
        });
    }

    /// Starts a glance at instance metadata.
    pub(crate) fn glance(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let told = this.glimpse().await;
            drop(this.events.send(Event::Glanced(told)).await);
        });
    }

    async fn glimpse(&self) -> Result<Vec<EniSeen>, CloudError> {
        let estate = &self.known()?.estate;
        let inventory = self.imds.interfaces().await?;
        Ok(inventory.enis.iter().map(|record| seen(record, estate)).collect())
    }

    /// The ENIs as EC2 tells them; as IMDS does where EC2 denies us or is away, and for the first look on a node that has just
    /// started: then IMDS knows as much, and thousands of nodes that start at once do not wait for each other. Not so where ENIs
    /// of other network cards count: whose those are that came with the instance only tags say.
    async fn picture(&self) -> Result<Picture, CloudError> {
        let as_of = self.clock.now();
        let known = self.known()?;
        // EC2 tells them too.
        let (subnets, untold) = match self.imds.subnets().await {
            Ok(subnets) => (subnets, None),
            Err(error) => (BTreeMap::new(), Some(error)),
        };
        let mut picture = Picture { as_of, subnets, ..Picture::default() };
        let fresh =
            !self.looked.swap(true, Ordering::Relaxed) && !self.config.multi_nic && !self.config.pod_eni;
        if fresh && !self.config.imds_only {
            self.choose_subnets(known, &mut picture).await?;
        }
        let told = if fresh { Err(not_asked()) } else { self.attached(known, &mut picture).await };
        let inventory = match told {
            Ok(inventory) => inventory,
            Err(error) if is_away(&error) => {
                if !self.config.imds_only && !fresh {
                    let error = chain(&error);
                    tracing::warn!(error, "EC2 does not tell the ENIs; asking instance metadata");
                }
                picture.from_metadata = true;
                self.imds.interfaces().await?
            }
            Err(error) => return Err(error),
        };
        let prefixes = inventory.enis.iter().map(|eni| (eni.id.clone(), eni.ipv6_prefixes.clone()));
        picture.ipv6_prefixes = prefixes.collect();
        picture.enis = inventory.enis.iter().map(|record| seen(record, &known.estate)).collect();
        picture.occupied = inventory.occupied;
        picture.efa_only = inventory.efa_only;
        picture.in_motion = inventory.in_motion;
        // Without its subnet's range an ENI's way out would be taken away.
        let lacks_range =
            |eni: &EniSeen| eni.role.is_for_pods() && !picture.subnets.contains_key(&eni.subnet);
        match untold {
            Some(error) if picture.enis.iter().any(lacks_range) => Err(error),
            Some(_) | None => Ok(picture),
        }
    }

    /// What EC2 tells: the ENIs that are attached, those that are not, and the subnets.
    async fn attached(&self, known: &Known, picture: &mut Picture) -> Result<Inventory, CloudError> {
        let Known { identity, estate, .. } = known;
        let ec2 = known.ec2()?;
        let inventory = ec2.inventory(&identity.instance).await?;
        if !self.config.provisioning {
            return Ok(inventory);
        }
        let loose = ec2.loose(&identity.vpc_id, INSTANCE_TAG).await?;
        (picture.chores, picture.strays) = estate.loose(&loose);
        if !self.config.leak_collection {
            picture.strays.clear();
        }
        // Nothing is to be done about those of ENIs while the primary one's are not told.
        let groups = self.groups().await.unwrap_or_default();
        let primary = inventory.enis.iter().find(|record| estate.role(record) == Role::Primary);
        let tracking = primary.map(|primary| primary.tracking).unwrap_or_default();
        self.tracking.send_replace(tracking);
        picture.chores.extend(inventory.enis.iter().flat_map(|eni| estate.duties(eni, &groups, tracking)));
        self.choose_subnets(known, picture).await?;
        Ok(inventory)
    }

    /// Which subnets may be used; not to be allowed to know is no failure.
    async fn choose_subnets(&self, known: &Known, picture: &mut Picture) -> Result<(), CloudError> {
        let Known { identity, estate, .. } = known;
        if !self.config.provisioning {
            return Ok(());
        }
        match known.ec2()?.subnets(&identity.vpc_id, &identity.zone).await {
            Ok(found) => {
                picture.subnets.extend(found.iter().map(|subnet| (subnet.id.clone(), subnet.cidr)));
                picture.choice = estate.subnets(&found);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the subnets are not known; those of before are used");
                picture.subnets_untold = true;
            }
        }
        Ok(())
    }

    /// Starts to ask for the range of the subnet that an ENI is in, which instance metadata tells a while after it is attached.
    pub(crate) fn ask_range(self: &Arc<Self>, subnet: SubnetId, mac: Mac) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let told = this.range_of(&subnet, mac).await;
            drop(this.events.send(Event::Range(subnet, told)).await);
        });
    }

    async fn range_of(&self, subnet: &SubnetId, mac: Mac) -> Result<Ipv4Network, CloudError> {
        for _ in 0..RANGE_ATTEMPTS {
            if let Some((_, range)) = self.imds.subnet_of(mac).await?.filter(|(of, _)| of == subnet) {
                return Ok(range);
            }
            tokio::time::sleep(RANGE_RETRY).await;
        }
        let message = format!("the ENI with MAC {mac} is not shown");
        Err(CloudError::new(CloudErrorKind::Gone, "instance metadata", message))
    }

    /// Starts to ask for an IPv6 prefix.
    pub(crate) fn assign_ipv6(self: &Arc<Self>, eni: EniId) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let asked = async { this.known()?.ec2()?.assign_ipv6_prefix(&eni).await };
            let asked = asked.await;
            drop(this.events.send(Event::Ipv6Assigned(eni, asked)).await);
        });
    }

    /// Starts to give an IPv6 prefix back.
    pub(crate) fn release_ipv6(self: &Arc<Self>, eni: EniId, prefix: Ipv6Prefix) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let asked = async { this.known()?.ec2()?.release_ipv6_prefix(&eni, prefix).await };
            drop(this.events.send(Event::Ipv6Released(asked.await)).await);
        });
    }

    /// Starts chores.
    pub(crate) fn tidy(self: &Arc<Self>, chores: Vec<Chore>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.do_chores(chores).await;
            drop(this.events.send(Event::Tidied(result)).await);
        });
    }

    /// Does all chores that can be done; the first that cannot is told.
    async fn do_chores(&self, chores: Vec<Chore>) -> Result<(), CloudError> {
        let ec2 = self.known()?.ec2()?;
        let mut result = Ok(());
        for chore in chores {
            let leaked = matches!(chore, Chore::Delete(_));
            let done = do_chore(ec2, chore).await;
            if let Some(error) = done.as_ref().err().filter(|_| leaked) {
                self.metrics.undeleted(Undeleted::Leaked, error);
            }
            result = result.and(done);
        }
        result
    }

    /// Starts an action.
    pub(crate) fn act(self: &Arc<Self>, id: ActionId, action: Action, groups: Vec<SecurityGroupId>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = Box::pin(this.working(work_of(&action), this.carry_out(action, groups))).await;
            drop(this.events.send(Event::Acted { id, result }).await);
        });
    }

    /// Counts work while it goes on, and when it fails.
    async fn working<T>(
        &self,
        work: Work,
        doing: impl Future<Output = Result<T, CloudError>>,
    ) -> Result<T, CloudError> {
        let _working = self.metrics.begin(work);
        let result = doing.await;
        if result.is_err() {
            self.metrics.work_failed(work);
        }
        result
    }

    async fn carry_out(&self, action: Action, groups: Vec<SecurityGroupId>) -> Result<Outcome, CloudError> {
        let known = self.known()?;
        let ec2 = known.ec2()?;
        match action {
            Action::Assign { eni, wanted } => ec2.assign(&eni, wanted).await.map(Outcome::Assigned),
            Action::Release { eni, given } => ec2.release(&eni, &given).await.map(|()| Outcome::Released),
            Action::CreateEni { card, device, subnet, wanted } => {
                let want = self.wanted_eni(known, subnet, groups, wanted).await;
                self.create(ec2, known, (card, device), &want).await
            }
            Action::DeleteEni { eni } => {
                let deleted = delete(ec2, known, &eni).await;
                deleted.inspect_err(|error| self.metrics.undeleted(Undeleted::Freed, error))?;
                Ok(Outcome::Deleted)
            }
        }
    }

    /// An ENI as it is to be made; without groups of its own it gets the primary ENI's.
    async fn wanted_eni(
        &self,
        known: &Known,
        subnet: SubnetId,
        groups: Vec<SecurityGroupId>,
        wanted: Wanted,
    ) -> NewEni {
        let Known { identity, estate, .. } = known;
        let security_groups = match groups.is_empty() {
            // As they are now; those of the start will do where the metadata service is away.
            true => self.groups().await.unwrap_or_else(|_| identity.security_groups.clone()),
            false => groups,
        };
        NewEni {
            subnet,
            security_groups,
            // Before the first look at EC2 they are not known; that look makes up for it.
            tracking: *self.tracking.borrow(),
            description: estate.description(),
            tags: estate.tags_of_new(self.clock.now()),
            wanted,
            token: format!("{}-{}", identity.instance, self.tokens.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Creates an ENI with its addresses and tags in one call, attaches it, and ties its life to the instance's.
    async fn create(
        &self,
        ec2: &Ec2,
        known: &Known,
        (card, device): (NetworkCard, DeviceIndex),
        want: &NewEni,
    ) -> Result<Outcome, CloudError> {
        let Known { identity, estate, .. } = known;
        let record = create_once(ec2, want).await?;
        match ec2.attach(&record.id, &identity.instance, device, card).await {
            Ok(attachment) => {
                if let Err(error) = ec2.set_delete_on_termination(&record.id, &attachment).await {
                    tracing::warn!(eni = %record.id, error = chain(&error), "the ENI would outlive the instance");
                    drop(self.events.send(Event::Untied).await);
                }
            }
            // It may be attached, and then it is used: a look tells.
            Err(error) if error.kind() == CloudErrorKind::Unclear => return Err(error),
            Err(error) => {
                tracing::warn!(eni = %record.id, error = chain(&error), "an ENI cannot be attached; deleting it");
                let deleted = delete_available(ec2, &record.id).await;
                deleted.inspect_err(|error| self.metrics.undeleted(Undeleted::New, error))?;
                return Err(error);
            }
        }
        let seen = EniSeen { card, device, role: Role::Secondary, ..seen(&record, estate) };
        Ok(Outcome::Created(Box::new(seen)))
    }

    fn known(&self) -> Result<&Known, CloudError> {
        let unknown = "instance metadata has not answered yet";
        self.node.get().ok_or_else(|| CloudError::new(CloudErrorKind::Unreachable, "look", unknown))
    }
}

/// What an action is in the Go version's words.
const fn work_of(action: &Action) -> Work {
    match action {
        Action::Assign { .. } => Work::Addresses,
        Action::CreateEni { .. } => Work::Eni,
        Action::Release { .. } => Work::FreeAddresses,
        Action::DeleteEni { .. } => Work::FreeEni,
    }
}

/// Creates an ENI. Where EC2 does not answer, the same is asked again under the same token, so that none is made that
/// nobody knows of.
async fn create_once(ec2: &Ec2, want: &NewEni) -> Result<EniRecord, CloudError> {
    let mut attempt = 1;
    loop {
        match ec2.create_eni(want).await {
            Err(error) if error.kind() == CloudErrorKind::Unclear && attempt < CREATE_ATTEMPTS => {
                tracing::warn!(attempt, error = chain(&error), "EC2 does not say whether it made an ENI");
            }
            result => return result,
        }
        attempt += 1;
        tokio::time::sleep(CREATE_RETRY).await;
    }
}

/// Detaches an ENI and deletes it, unless its tags say by now that it is not ours.
async fn delete(ec2: &Ec2, known: &Known, eni: &EniId) -> Result<(), CloudError> {
    let attached = ec2.inventory(&known.identity.instance).await?.enis;
    let record = attached.into_iter().find(|record| record.id == *eni);
    if let Some(record) = record.as_ref().filter(|record| known.estate.role(record) != Role::Secondary) {
        let message = format!("{eni} is {} and stays", known.estate.role(record));
        return Err(CloudError::new(CloudErrorKind::Unclear, "DetachNetworkInterface", message));
    }
    if let Some(attachment) = record.and_then(|record| record.attachment) {
        forgive(ec2.detach(&attachment).await, &[CloudErrorKind::Gone])?;
        tokio::time::sleep(DETACHING).await;
    }
    delete_available(ec2, eni).await
}

/// Deletes an ENI that is being detached: EC2 refuses until that is done.
///
/// # Errors
/// [`CloudErrorKind::Unclear`] when it is still there at the end, so that a look finds it.
async fn delete_available(ec2: &Ec2, eni: &EniId) -> Result<(), CloudError> {
    let mut attempt = 1;
    loop {
        match ec2.delete(eni).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == CloudErrorKind::Gone => return Ok(()),
            Err(error) if attempt == DELETE_ATTEMPTS => {
                let message = format!("{eni} is detached but cannot be deleted");
                let unclear = CloudError::new(CloudErrorKind::Unclear, error.call(), message);
                return Err(unclear.caused_by(error));
            }
            Err(error) => tracing::debug!(%eni, error = chain(&error), "cannot delete the ENI yet"),
        }
        attempt += 1;
        tokio::time::sleep(DETACHING).await;
    }
}

/// Whether instance metadata has to do.
fn is_away(error: &CloudError) -> bool {
    use CloudErrorKind::{Denied, NoRoots, Throttled, Unreachable};
    matches!(error.kind(), Denied | NoRoots | Unreachable | Throttled)
}

/// Takes failures of these kinds for success.
fn forgive(result: Result<(), CloudError>, kinds: &[CloudErrorKind]) -> Result<(), CloudError> {
    result.or_else(|error| if kinds.contains(&error.kind()) { Ok(()) } else { Err(error) })
}

fn seen(record: &EniRecord, estate: &Estate) -> EniSeen {
    EniSeen {
        id: record.id.clone(),
        mac: record.mac,
        card: record.card,
        device: record.device,
        subnet: record.subnet.clone(),
        primary_address: record.primary_address,
        addresses: record.addresses.clone(),
        prefixes: record.prefixes.clone(),
        role: estate.role(record),
    }
}

/// Does a chore. What is gone needs none.
async fn do_chore(ec2: &Ec2, chore: Chore) -> Result<(), CloudError> {
    const GONE: &[CloudErrorKind] = &[CloudErrorKind::Gone];
    match chore {
        Chore::Delete(eni) => {
            tracing::info!(%eni, "deleting an ENI that is attached to nothing");
            // A picture may be older than it seems: EC2 refuses to delete what is attached, so nothing is lost.
            forgive(ec2.delete(&eni).await, &[CloudErrorKind::Gone, CloudErrorKind::InUse])
        }
        Chore::Tie { eni, attachment } => {
            tracing::info!(%eni, "tying the life of an ENI of ours to the instance's");
            forgive(ec2.set_delete_on_termination(&eni, &attachment).await, GONE)
        }
        Chore::Guard { eni, groups } => {
            tracing::info!(%eni, ?groups, "giving an ENI the security groups of the primary one");
            forgive(ec2.set_security_groups(&eni, &groups).await, GONE)
        }
        Chore::Track { eni, tracking } => {
            tracing::info!(%eni, ?tracking, "giving an ENI the connection timeouts of the primary one");
            forgive(ec2.set_tracking(&eni, tracking).await, GONE)
        }
        Chore::Tag { eni, tags } => {
            tracing::info!(%eni, ?tags, "tagging an ENI");
            forgive(ec2.tag(&eni, &tags).await, GONE)
        }
    }
}

#[cfg(test)]
mod tests {
    use types::Moment;

    use super::*;

    #[test]
    fn what_ec2_does_not_tell_is_asked_for_ever_less_and_not_by_all_nodes_at_once() {
        let pauses = |name| {
            let mut patience = Patience::new(Jitter::of_node(name, Moment(7)));
            (0..20).map(|_| patience.pause(true)).collect::<Vec<_>>()
        };
        let (one, other) = (pauses("node-1"), pauses("node-2"));

        let minute = Duration::from_secs(60);
        assert!(one[0] < minute / 30, "{one:?}");
        assert!(one[10..].iter().all(|pause| (minute * 5 / 2..minute * 8).contains(pause)), "{one:?}");
        assert!(one.iter().zip(&other).all(|(one, other)| one != other), "{one:?} {other:?}");
    }

    #[test]
    fn instance_metadata_is_asked_again_within_seconds_however_long_it_takes() {
        let mut patience = Patience::new(Jitter::of_node("node-1", Moment(7)));
        let pauses: Vec<_> = (0..20).map(|_| patience.pause(false)).collect();

        assert_eq!((pauses[0], pauses[19]), IDENTITY_RETRY);
        assert!(patience.pause(true) < Duration::from_secs(2), "its own pauses say nothing of those of EC2");
    }
}
