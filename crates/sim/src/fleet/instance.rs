//! One instance as EC2 knows it: its ENIs and what they hold. The subnet is never short.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use pool::{Given, Wanted};
use types::{DeviceIndex, EniId, Mac, Moment, Prefix};

use crate::rng::Rng;

/// How long after the call the link of an attached ENI is there, and a detached one is free, in milliseconds.
const ATTACHING: (u64, u64) = (2_000, 5_000);
const DETACHING: (u64, u64) = (2_000, 6_000);
/// Where single addresses and prefixes begin; each instance has all of them to itself.
const SINGLES: u32 = 0x0a00_0000;
const PREFIXES: u32 = 0x0a80_0000;

/// Where an ENI is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Attached to nothing.
    Available,
    /// Attached; its link is there from this moment on.
    Attached(DeviceIndex, Moment),
    /// Being detached until this moment.
    Leaving(DeviceIndex, Moment),
}

/// An ENI.
#[derive(Debug, Clone)]
pub(crate) struct Eni {
    pub(crate) id: EniId,
    pub(crate) mac: Mac,
    pub(crate) primary_address: Ipv4Addr,
    pub(crate) given: Given,
    pub(crate) state: State,
    pub(crate) made: Moment,
    /// It goes with the instance.
    pub(crate) tied: bool,
    pub(crate) tagged: bool,
}

/// The instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) enis: Vec<Eni>,
    made: u32,
    singles: u32,
    prefixes: u32,
}

impl Instance {
    /// An instance with its primary ENI, which has no more than its own address.
    pub(crate) fn new() -> Self {
        let mut instance = Self { enis: Vec::new(), made: 0, singles: SINGLES, prefixes: PREFIXES };
        if let Some(primary) =
            instance.create(Wanted::Addresses(0), Moment(0)).and_then(|id| instance.eni_mut(&id))
        {
            primary.state = State::Attached(DeviceIndex(0), Moment(0));
            primary.tied = true;
            primary.tagged = false;
        }
        instance
    }

    /// A new ENI, attached to nothing.
    pub(crate) fn create(&mut self, wanted: Wanted, now: Moment) -> Option<EniId> {
        self.made += 1;
        let id: EniId = format!("eni-{}", self.made).parse().ok()?;
        let [_, b, c, d] = self.made.to_be_bytes();
        let eni = Eni {
            id: id.clone(),
            mac: Mac::local([0, 0, 0, b, c, d]),
            primary_address: self.single(),
            given: self.more(wanted),
            state: State::Available,
            made: now,
            tied: false,
            tagged: true,
        };
        self.enis.push(eni);
        Some(id)
    }

    pub(crate) fn eni(&self, id: &EniId) -> Option<&Eni> {
        self.enis.iter().find(|eni| eni.id == *id)
    }

    pub(crate) fn eni_mut(&mut self, id: &EniId) -> Option<&mut Eni> {
        self.enis.iter_mut().find(|eni| eni.id == *id)
    }

    pub(crate) fn attach(&mut self, id: &EniId, device: DeviceIndex, rng: &mut Rng, now: Moment) {
        let there = now.plus(rng.millis(ATTACHING.0, ATTACHING.1));
        if let Some(eni) = self.eni_mut(id) {
            eni.state = State::Attached(device, there);
        }
    }

    pub(crate) fn detach(&mut self, id: &EniId, rng: &mut Rng, now: Moment) {
        let free = now.plus(rng.millis(DETACHING.0, DETACHING.1));
        let Some(eni) = self.eni_mut(id) else { return };
        if let State::Attached(device, _) = eni.state {
            eni.state = State::Leaving(device, free);
        }
    }

    /// Deletes an ENI; false while it is attached.
    pub(crate) fn delete(&mut self, id: &EniId, now: Moment) -> bool {
        self.settle(now);
        let free = self.eni(id).is_none_or(|eni| eni.state == State::Available);
        if free {
            self.enis.retain(|eni| eni.id != *id);
        }
        free
    }

    /// Lets detachments come to their end.
    pub(crate) fn settle(&mut self, now: Moment) {
        for eni in &mut self.enis {
            if matches!(eni.state, State::Leaving(_, until) if until <= now) {
                eni.state = State::Available;
            }
        }
    }

    /// How long until the link of an ENI is there.
    pub(crate) fn until_linked(&self, id: &EniId, now: Moment) -> Duration {
        match self.eni(id).map(|eni| eni.state) {
            Some(State::Attached(_, there)) => there.since(now),
            Some(State::Available | State::Leaving(..)) | None => Duration::ZERO,
        }
    }

    pub(crate) fn assign(&mut self, id: &EniId, wanted: Wanted) -> Given {
        let more = self.more(wanted);
        if let Some(eni) = self.eni_mut(id) {
            eni.given.addresses.extend(&more.addresses);
            eni.given.prefixes.extend(&more.prefixes);
        }
        more
    }

    pub(crate) fn unassign(&mut self, id: &EniId, given: &Given) {
        if let Some(eni) = self.eni_mut(id) {
            eni.given.addresses.retain(|address| !given.addresses.contains(address));
            eni.given.prefixes.retain(|prefix| !given.prefixes.contains(prefix));
        }
    }

    /// Addresses that the subnet lacks because of this node, its own address apart: those for pods, and the primary
    /// addresses of further ENIs.
    pub(crate) fn held(&self) -> u64 {
        let addresses: usize = self.enis.iter().map(|eni| eni.given.all().count() + 1).sum();
        u64::try_from(addresses.saturating_sub(1)).unwrap_or(u64::MAX)
    }

    /// Addresses that pods can have.
    pub(crate) fn for_pods(&self) -> u64 {
        let addresses: usize = self.enis.iter().map(|eni| eni.given.all().count()).sum();
        u64::try_from(addresses).unwrap_or(u64::MAX)
    }

    fn more(&mut self, wanted: Wanted) -> Given {
        match wanted {
            Wanted::Addresses(n) => Given::addresses((0..n).map(|_| self.single()).collect::<BTreeSet<_>>()),
            Wanted::Prefixes(n) => Given::prefixes((0..n).map(|_| self.prefix()).collect::<BTreeSet<_>>()),
        }
    }

    fn single(&mut self) -> Ipv4Addr {
        self.singles += 1;
        Ipv4Addr::from_bits(self.singles)
    }

    fn prefix(&mut self) -> Prefix {
        self.prefixes += Prefix::ADDRESSES;
        Prefix::of(Ipv4Addr::from_bits(self.prefixes))
    }
}
