//! What a look at the node's ENIs tells: EC2's descriptions and instance metadata's, each as old as the history has it.

use std::cmp::Reverse;
use std::time::Duration;

use node::cloud::{CloudError, CloudErrorKind};
use node::{Chore, Event, Picture, Subnets};
use pool::{EniSeen, Role};
use types::{DeviceIndex, Moment, NetworkCard};

use super::cloud::{Cloud, INSTANCE_TAG, Next, Task, ipv6_prefixes, prefixes};
use super::met::Manner;
use crate::rng::Rng;
use ec2_double::{AttachState, EniView, SubnetView};

/// What is outdated by more than this is old indeed.
const MINUTE: Duration = Duration::from_secs(60);

impl Cloud {
    /// One call of a look, as the daemon makes them: on an instance that was just launched instance metadata is asked instead.
    pub(super) fn look(
        &mut self,
        as_of: Moment,
        before: Option<Picture>,
        rng: &mut Rng,
        now: Moment,
    ) -> Next {
        let fresh = !std::mem::replace(&mut self.looked, true);
        let untold = self.untold(now);
        if (untold.is_some() || fresh) && self.metadata {
            let choice = untold.is_none().then(|| self.choice());
            let picture = Picture { as_of, choice, ..self.as_metadata_tells(rng, now) };
            return self.tell(Event::Looked(Ok(picture)), rng);
        }
        if let Some(error) = untold {
            return self.tell(Event::Looked(Err(error)), rng);
        }
        let lags = self.lags(now);
        let Some(mut picture) = before else {
            let lag = lags.draw(lags.attached, rng);
            self.note_lag(lag, now);
            let picture = Picture { as_of, ..self.attached(now, lag) };
            return Next::Call(self.delay(rng), Box::new(Task::Look(as_of, Some(picture))));
        };
        let lag = lags.draw(lags.loose, rng);
        if lag > lags.attached && self.is_outdated(lag, now) {
            self.met.note(Manner::LooseListOld);
        }
        let enis = self.model.as_of(now, lag).values();
        let forgotten = enis.filter(|eni| self.is_ours(eni) && eni.attachment.is_none());
        picture.chores.extend(forgotten.map(|eni| Chore::Delete(eni.id.clone())));
        picture.choice = Some(self.choice());
        picture.strays = self.forsaken(as_of, now);
        self.tell(Event::Looked(Ok(picture)), rng)
    }

    /// Why EC2 describes nothing.
    pub(super) fn untold(&self, now: Moment) -> Option<CloudError> {
        let call = "DescribeNetworkInterfaces";
        if now < self.dark_until {
            return Some(CloudError::new(CloudErrorKind::Unreachable, call, "dark"));
        }
        (now < self.blind_until).then(|| CloudError::new(CloudErrorKind::Denied, call, "denied"))
    }

    /// Whether what was so long ago is not so any more.
    fn is_outdated(&self, lag: Duration, now: Moment) -> bool {
        self.model.as_of(now, lag) != self.model.as_of(now, Duration::ZERO)
    }

    fn note_lag(&mut self, lag: Duration, now: Moment) {
        let then = now.minus(lag);
        let outdated = self.is_outdated(lag, now);
        let manners = [
            (Manner::OlderThanOurWrite, then < self.wrote_at),
            (Manner::MinutesOld, lag > MINUTE),
            (Manner::OutOfOrder, then < self.described),
        ];
        for (manner, _) in manners.into_iter().filter(|(_, met)| *met && outdated) {
            self.met.note(manner);
        }
        self.described = self.described.max(then);
    }

    fn is_ours(&self, eni: &EniView) -> bool {
        eni.tags.get(INSTANCE_TAG).is_some_and(|tag| tag == self.instance.id.as_str())
    }

    /// What EC2 describes of the instance's ENIs, as of a while ago.
    fn attached(&self, now: Moment, lag: Duration) -> Picture {
        let mut picture = Picture::default();
        for eni in self.model.as_of(now, lag).values() {
            let Some(tie) = eni.attachment.as_ref().filter(|tie| tie.instance == self.instance.id) else {
                continue;
            };
            if matches!(tie.state, AttachState::Detaching { .. }) {
                picture.in_motion = true;
                picture.occupied.insert((tie.card, tie.device));
                continue;
            }
            if self.is_efa_only(&eni.id) {
                picture.occupied.insert((tie.card, tie.device));
                picture.efa_only.insert(tie.card);
                continue;
            }
            picture.enis.push(self.seen(eni, tie.card, tie.device));
            picture.ipv6_prefixes.insert(eni.id.clone(), ipv6_prefixes(&eni.ipv6_prefixes));
            if self.is_ours(eni) && !tie.delete_on_termination {
                let chore = Chore::Tie { eni: eni.id.clone(), attachment: tie.id.clone() };
                picture.chores.push(chore);
            }
        }
        picture.subnets = self.model.subnets().map(|subnet| (subnet.id, subnet.cidr)).collect();
        picture
    }

    /// What instance metadata tells: the ENIs whose device is there, and their subnets; no tags, no chores. Its lists are of
    /// different times: an ENI may be there whose addresses are not.
    pub(super) fn as_metadata_tells(&mut self, rng: &mut Rng, now: Moment) -> Picture {
        let lags = self.lags(now);
        let (list, singles, blocks) =
            (lags.draw(lags.metadata, rng), lags.draw(lags.addresses, rng), lags.draw(lags.prefixes, rng));
        let (listed, addressed, prefixed) =
            (self.model.as_of(now, list), self.model.as_of(now, singles), self.model.as_of(now, blocks));
        let behind = listed != self.model.as_of(now, lags.attached);
        let disagrees = listed != addressed || listed != prefixed;
        let mut picture = Picture { from_metadata: true, ..Picture::default() };
        for eni in listed.values().filter(|eni| eni.inside() == Some(&self.instance.id)) {
            let Some((card, device)) = eni.attachment.as_ref().map(|tie| (tie.card, tie.device)) else {
                continue;
            };
            let Some(told) = addressed.get(&eni.id).filter(|eni| !self.is_efa_only(&eni.id)) else {
                picture.occupied.insert((card, device));
                picture.efa_only.insert(card);
                continue;
            };
            let seen = self.seen(told, card, device);
            let prefixes = prefixed.get(&eni.id).map(|eni| prefixes(&eni.prefixes)).unwrap_or_default();
            // Only tags tell whose it is.
            let role = if seen.role == Role::Primary { Role::Primary } else { Role::Unmanaged };
            picture.enis.push(EniSeen { prefixes, role, ..seen });
            picture.subnets.insert(eni.subnet.clone(), eni.subnet_cidr);
            picture.ipv6_prefixes.insert(eni.id.clone(), ipv6_prefixes(&eni.ipv6_prefixes));
        }
        for (manner, met) in [(Manner::MetadataBehind, behind), (Manner::MetadataDisagrees, disagrees)] {
            if met {
                self.met.note(manner);
            }
        }
        picture
    }

    /// Which subnets may be used, the emptiest first.
    fn choice(&self) -> Subnets {
        let mut open: Vec<_> =
            self.model.subnets().filter(|subnet| !self.excluded.contains(&subnet.id)).collect();
        open.sort_by_key(|subnet| (Reverse(subnet.available), subnet.id.clone()));
        let free = |subnet: &SubnetView| if self.crowded { 0 } else { subnet.available };
        Subnets {
            free: open.iter().map(|subnet| (subnet.id.clone(), free(subnet))).collect(),
            for_new: open.into_iter().map(|subnet| subnet.id).collect(),
            excluded: self.excluded.clone(),
        }
    }

    pub(crate) fn seen(&self, eni: &EniView, card: NetworkCard, device: DeviceIndex) -> EniSeen {
        EniSeen {
            id: eni.id.clone(),
            mac: eni.mac,
            card,
            device,
            subnet: eni.subnet.clone(),
            primary_address: eni.primary,
            addresses: eni.secondary.iter().copied().collect(),
            prefixes: prefixes(&eni.prefixes),
            role: self.role(&eni.id, card, device),
        }
    }
}
