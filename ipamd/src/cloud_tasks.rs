//! Calls to EC2 and IMDS: one task each, so that a slow one holds up nothing. Results come back as events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pool::{Action, ActionId, EniSeen, Outcome, Role, Wanted};
use tokio::sync::{OnceCell, mpsc};
use types::{DeviceIndex, EniId, InstanceTable, NetworkCard, SubnetId};

use crate::clock::Clock;
use crate::cloud::{CloudError, CloudErrorKind, Ec2, EniRecord, Identity, Imds, NewEni};
use crate::config::Config;
use crate::node::{Chore, Event, Facts, Picture};
use crate::server::chain;

/// Pause between attempts to read instance metadata at start; grows to the second value.
const IDENTITY_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A call to create an ENI that is not answered: attempts under one token, and the pause between them.
const CREATE_ATTEMPTS: u32 = 3;
const CREATE_RETRY: Duration = Duration::from_secs(1);
/// A detached ENI can be deleted once EC2 calls it available: attempts and the pause between them.
const DELETE_ATTEMPTS: u32 = 12;
const DELETE_RETRY: Duration = Duration::from_secs(1);

/// Tag of every ENI that we make: the instance it was made for.
const INSTANCE_TAG: &str = "node.k8s.amazonaws.com/instance_id";

/// The cloud side of one node.
#[derive(Debug)]
pub(crate) struct CloudTasks {
    config: Config,
    clock: Clock,
    imds: Imds,
    events: mpsc::Sender<Event>,
    /// Known once instance metadata has answered.
    node: OnceCell<Known>,
    tokens: AtomicU64,
}

#[derive(Debug)]
struct Known {
    ec2: Ec2,
    identity: Identity,
}

impl CloudTasks {
    pub(crate) fn new(config: Config, clock: Clock, imds: Imds, events: mpsc::Sender<Event>) -> Arc<Self> {
        let tokens = AtomicU64::new(clock.now().0);
        Arc::new(Self { config, clock, imds, events, node: OnceCell::new(), tokens })
    }

    /// Finds out who we are; tries until it knows.
    pub(crate) async fn identify(self: Arc<Self>) {
        let mut pause = IDENTITY_RETRY.0;
        loop {
            match self.facts().await {
                Ok(facts) => return drop(self.events.send(Event::Identified(Box::new(facts))).await),
                Err(error) => drop(self.events.send(Event::Unidentified(error)).await),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(IDENTITY_RETRY.1);
        }
    }

    async fn facts(&self) -> Result<Facts, CloudError> {
        let identity = self.imds.identity().await?;
        let ec2 = Ec2::connect(&self.config, &identity.region).await;
        let limits = match InstanceTable::builtin().get(&identity.instance_type) {
            Some(limits) => limits.clone(),
            None => ec2.instance_limits(&identity.instance_type).await?,
        };
        let facts = Facts {
            instance: identity.instance.clone(),
            limits,
            primary_address: identity.primary_address,
            subnet: identity.subnet.clone(),
            security_groups: identity.security_groups.clone(),
            vpc_cidrs: identity.vpc_cidrs.clone(),
        };
        // Set once; a second identification changes nothing.
        drop(self.node.set(Known { ec2, identity }));
        Ok(facts)
    }

    /// Starts a look at the ENIs.
    pub(crate) fn look(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.picture().await;
            drop(this.events.send(Event::Looked(result)).await);
        });
    }

    /// The ENIs as EC2 tells them; as IMDS does where EC2 denies us or is away.
    async fn picture(&self) -> Result<Picture, CloudError> {
        let as_of = self.clock.now();
        let Known { ec2, identity } = self.known()?;
        let subnets = self.imds.subnets().await?;
        let inventory = async {
            let attached = ec2.inventory(&identity.instance).await?;
            Ok((attached, ec2.unattached(INSTANCE_TAG, identity.instance.as_str()).await?))
        };
        let (inventory, unattached) = match inventory.await {
            Ok(found) => found,
            Err(error) if is_away(&error) => {
                tracing::warn!(error = chain(&error), "EC2 does not tell the ENIs; asking instance metadata");
                (self.imds.interfaces().await?, Vec::new())
            }
            Err(error) => return Err(error),
        };
        let enis: Vec<EniSeen> = inventory.enis.iter().map(|record| self.seen(record, identity)).collect();
        let untied = inventory.enis.iter().filter_map(|record| untied(record, identity));
        Ok(Picture {
            as_of,
            enis,
            subnets,
            chores: unattached.into_iter().map(Chore::Delete).chain(untied).collect(),
            occupied: inventory.occupied,
            in_motion: inventory.in_motion,
        })
    }

    /// Starts chores.
    pub(crate) fn tidy(self: &Arc<Self>, chores: Vec<Chore>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.do_chores(chores).await;
            drop(this.events.send(Event::Tidied(result)).await);
        });
    }

    async fn do_chores(&self, chores: Vec<Chore>) -> Result<(), CloudError> {
        let ec2 = &self.known()?.ec2;
        for chore in chores {
            match chore {
                Chore::Delete(eni) => {
                    tracing::info!(%eni, "deleting an ENI of ours that is attached to nothing");
                    // A picture may be older than it seems: EC2 refuses to delete what is attached, so nothing is lost.
                    forgive(ec2.delete(&eni).await, &[CloudErrorKind::Gone, CloudErrorKind::InUse])?;
                }
                Chore::Tie { eni, attachment } => {
                    tracing::info!(%eni, "tying the life of an ENI of ours to the instance's");
                    let tied = ec2.set_delete_on_termination(&eni, &attachment).await;
                    forgive(tied, &[CloudErrorKind::Gone])?;
                }
            }
        }
        Ok(())
    }

    fn seen(&self, record: &EniRecord, identity: &Identity) -> EniSeen {
        EniSeen {
            id: record.id.clone(),
            mac: record.mac,
            card: record.card,
            device: record.device,
            subnet: record.subnet.clone(),
            primary_address: record.primary_address,
            addresses: record.addresses.clone(),
            prefixes: record.prefixes.clone(),
            role: role(record, identity, self.config.manage_untagged),
        }
    }

    /// Starts an action.
    pub(crate) fn act(self: &Arc<Self>, id: ActionId, action: Action) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.carry_out(action).await;
            drop(this.events.send(Event::Acted { id, result }).await);
        });
    }

    async fn carry_out(&self, action: Action) -> Result<Outcome, CloudError> {
        let known = self.known()?;
        match action {
            Action::Assign { eni, wanted } => known.ec2.assign(&eni, wanted).await.map(Outcome::Assigned),
            Action::Release { eni, given } => {
                known.ec2.release(&eni, &given).await.map(|()| Outcome::Released)
            }
            Action::CreateEni { device, subnet, wanted } => self.create(known, device, subnet, wanted).await,
            Action::DeleteEni { eni } => delete(known, &eni).await.map(|()| Outcome::Deleted),
        }
    }

    /// Creates an ENI with its addresses and tags in one call, attaches it, and ties its life to the instance's.
    async fn create(
        &self,
        known: &Known,
        device: DeviceIndex,
        subnet: SubnetId,
        wanted: Wanted,
    ) -> Result<Outcome, CloudError> {
        let Known { ec2, identity } = known;
        let token = format!("{}-{}", identity.instance, self.tokens.fetch_add(1, Ordering::Relaxed));
        let want = NewEni {
            subnet,
            security_groups: identity.security_groups.clone(),
            description: format!("aws-K8S-{}", identity.instance),
            tags: self.tags(identity),
            wanted,
            token,
        };
        let record = create_once(ec2, &want).await?;
        match ec2.attach(&record.id, &identity.instance, device, NetworkCard(0)).await {
            // If this fails, the next look finds it and does it.
            Ok(attachment) => {
                if let Err(error) = ec2.set_delete_on_termination(&record.id, &attachment).await {
                    tracing::warn!(eni = %record.id, error = chain(&error), "the ENI would outlive the instance");
                }
            }
            // It may be attached, and then it is used: a look tells.
            Err(error) if error.kind() == CloudErrorKind::Unclear => return Err(error),
            Err(error) => {
                tracing::warn!(eni = %record.id, error = chain(&error), "an ENI cannot be attached; deleting it");
                delete_available(ec2, &record.id).await?;
                return Err(error);
            }
        }
        let seen = EniSeen { device, role: Role::Secondary, ..self.seen(&record, identity) };
        Ok(Outcome::Created(Box::new(seen)))
    }

    /// The tags by which this ENI is known as ours, as the Go version sets them; additional ones come last.
    fn tags(&self, identity: &Identity) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::from([
            (INSTANCE_TAG.to_owned(), identity.instance.to_string()),
            ("node.k8s.amazonaws.com/createdAt".to_owned(), rfc3339(self.clock.now().0 / 1000)),
        ]);
        if let Some(cluster) = &self.config.cluster_name {
            tags.insert("cluster.k8s.amazonaws.com/name".to_owned(), cluster.clone());
            tags.insert("eks:eni:owner".to_owned(), "amazon-vpc-cni".to_owned());
        }
        tags.extend(self.config.eni_tags.clone());
        tags
    }

    fn known(&self) -> Result<&Known, CloudError> {
        let unknown = "instance metadata has not answered yet";
        self.node.get().ok_or_else(|| CloudError::new(CloudErrorKind::Unreachable, "look", unknown))
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

/// Detaches an ENI and deletes it.
async fn delete(known: &Known, eni: &EniId) -> Result<(), CloudError> {
    let attached = known.ec2.inventory(&known.identity.instance).await?.enis;
    let attachment =
        attached.into_iter().find(|record| record.id == *eni).and_then(|record| record.attachment);
    if let Some(attachment) = attachment {
        forgive(known.ec2.detach(&attachment).await, &[CloudErrorKind::Gone])?;
    }
    delete_available(&known.ec2, eni).await
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
        tokio::time::sleep(DELETE_RETRY).await;
    }
}

/// Whether instance metadata has to do.
fn is_away(error: &CloudError) -> bool {
    matches!(error.kind(), CloudErrorKind::Denied | CloudErrorKind::Unreachable)
}

/// Takes failures of these kinds for success.
fn forgive(result: Result<(), CloudError>, kinds: &[CloudErrorKind]) -> Result<(), CloudError> {
    result.or_else(|error| if kinds.contains(&error.kind()) { Ok(()) } else { Err(error) })
}

fn is_ours(record: &EniRecord, identity: &Identity) -> bool {
    record.tags.get(INSTANCE_TAG).map(String::as_str) == Some(identity.instance.as_str())
}

/// What is to be done about an ENI of ours that would outlive the instance.
fn untied(record: &EniRecord, identity: &Identity) -> Option<Chore> {
    let untied = is_ours(record, identity) && record.delete_on_termination == Some(false);
    let attachment = record.attachment.clone().filter(|_| untied)?;
    Some(Chore::Tie { eni: record.id.clone(), attachment })
}

/// What an ENI is for, from its place, type and tags.
fn role(record: &EniRecord, identity: &Identity, manage_untagged: bool) -> Role {
    let tag = |key: &str| record.tags.get(key).map(String::as_str);
    match (record.interface_type.as_str(), tag("node.k8s.amazonaws.com/no_manage")) {
        _ if record.mac == identity.mac => Role::Primary,
        ("trunk", _) => Role::Trunk,
        _ if record.card != NetworkCard(0) => Role::Unmanaged,
        (_, Some("true")) => Role::Unmanaged,
        (_, None) if !is_ours(record, identity) && !manage_untagged => Role::Unmanaged,
        _ => Role::Secondary,
    }
}

/// Seconds since the epoch as RFC 3339, UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, after Howard Hinnant's `civil_from_days`; the era starts on 1 March of year 0.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_790_000_000), "2026-09-21T14:13:20Z");
    }
}
