//! What the host's kernel was told, and whether the packets of live pods leave by the right ENI.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use datapath::PodSpec;
use ipnetwork::Ipv4Network;
use node::{Event, HostMade, HostWish};
use types::{Mac, Moment};

use super::super::plant::Plant;
use super::{End, Held, World, hold};

/// What the kernel steers by; it stays when the daemon dies.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Which secondary ENI packets from these leave by; all others leave by the primary one.
    steered: BTreeMap<Ipv4Network, Mac>,
    /// What it is to steer by next, with a bug planted.
    wished: BTreeMap<Ipv4Network, Mac>,
    /// Something may have changed since pods were last compared with this.
    changed: bool,
    /// Until then it is not compared.
    unknown_until: Moment,
}

/// A daemon that has lost what was on disk has only descriptions, which may lack for a moment what is there, and nobody may answer for half a
/// minute.
const FORGOTTEN: Duration = Duration::from_secs(90);

impl Host {
    /// What was on disk is lost; the daemon starts at this time.
    pub(super) fn forgotten(&mut self, start: Moment) {
        self.unknown_until = start.plus(FORGOTTEN);
    }

    /// Pods have changed.
    pub(super) const fn compare(&mut self) {
        self.changed = true;
    }
}

impl World {
    /// Brings the kernel in line; tells the MACs of the ENIs whose links are not there yet.
    pub(super) fn converge(&mut self, wish: &HostWish) -> Result<HostMade, String> {
        if self.host_fails > 0 {
            self.host_fails -= 1;
            return Err("the kernel refuses".to_owned());
        }
        self.cloud.advance(self.now);
        let enis = self.cloud.model.enis_of(&self.cloud.instance.id);
        let there: BTreeSet<_> = enis.filter(|eni| eni.inside().is_some()).map(|eni| eni.mac).collect();
        let (linked, missing): (Vec<_>, Vec<_>) =
            wish.node.enis.iter().partition(|eni| there.contains(&eni.mac));
        let steered = linked.iter().filter(|eni| !eni.is_primary());
        let steered = steered.flat_map(|eni| eni.sources.iter().map(|source| (*source, eni.mac))).collect();
        self.host.steered = if self.plant == Some(Plant::SteersByTheWishBefore) {
            std::mem::replace(&mut self.host.wished, steered)
        } else {
            steered
        };
        self.host.changed = true;
        let missing = missing.iter().map(|eni| eni.mac).collect();
        Ok(HostMade { missing, ..HostMade::default() })
    }

    /// Pods are compared with what the kernel has of them. Nobody takes a pod's route here.
    pub(super) fn compare_pods(&mut self, pods: Vec<PodSpec>) -> Held {
        let gone = pods.into_iter().map(|pod| pod.host_if);
        let lost = gone.filter(|host_if| !self.links.contains_key(host_if)).collect();
        self.hear(Event::PodsCompared { put_back: false, lost })
    }

    /// The packets of each live pod leave by the ENI that has its address (I16).
    pub(super) fn steered(&mut self) -> Held {
        if self.now < self.host.unknown_until || !std::mem::take(&mut self.host.changed) {
            return Ok(());
        }
        let primary = &self.cloud.instance.primary_eni;
        let enis: Vec<_> = self.cloud.model.enis_of(&self.cloud.instance.id).collect();
        for (sandbox, End { address, .. }) in self.ends() {
            let eni = enis.iter().find(|eni| eni.is_source(*address));
            let Some(eni) = eni.filter(|_| !self.robbed.contains(address)) else { continue };
            let led = self.host.steered.iter().filter(|(source, _)| source.contains(*address));
            // A single address beats the prefix around it.
            let by = led.max_by_key(|(source, _)| source.prefix()).map(|(_, mac)| *mac);
            let right = (eni.id != *primary).then_some(eni.mac);
            hold!(by == right, "{sandbox} with {address} of {} leaves by {by:?}", eni.id);
        }
        Ok(())
    }
}
