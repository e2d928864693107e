//! IPv6: the prefix of the primary ENI, which pods have their addresses of, and those of the ENIs of further network cards.
//!
//! One prefix per ENI is enough for ever, so there is nothing to plan: it is asked for when a picture shows none, and again should somebody
//! take it away. Where pods get none of the primary ENI's any more, one that we asked for goes back after the last pod that has an address
//! of it; a further card's goes with its ENI.
//!
//! A pod's address on a further card is of the same ENI in both families, and leaves by it. Nobody gets one before the host's kernel knows
//! the prefix: until then the ENI is not ready ([`pool::Unready::NoPrefix`]).
//!
//! Pods with IPv4 addresses of the VPC can reach IPv6 by the node's own address instead: then theirs mean something on the node only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use pool::{EniSeen, Grant, Owner, PICTURE_LAG, PICTURE_LAG_MAX, Role};
use types::{DeviceIndex, EniId, Ipv6Prefix, Moment, NetworkCard, Reason};

use super::Node;
use super::event::{BatchId, Effect, Facts, Picture};
use super::looking::{LOOK_AGAIN, METADATA_LAG};
use crate::clock::doubled;
use crate::cloud::{CloudError, CloudErrorKind};
use crate::families::{is_local, local_addresses};
use crate::status::pods_in;
use crate::store::{Ipv6Books, Record};

/// Pause before EC2 is told again to take the prefix back.
const KEEP: Duration = Duration::from_secs(300);

/// Pause before EC2 is asked again for the prefix of a further card's ENI, the first and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What we know of the prefixes.
#[derive(Debug, Default)]
pub(super) struct Ipv6State {
    /// The primary ENI, once a picture has shown it.
    primary: Option<EniId>,
    /// Each ENI's.
    enis: BTreeMap<EniId, EniIpv6>,
    /// What is on disk of the primary ENI's, or about to be.
    pub(super) books: Ipv6Books,
    /// How far giving it back is.
    leaving: Leaving,
    /// Not given back before this.
    keep_until: Moment,
    /// Why EC2 has not taken it back.
    kept: Option<(Reason, String)>,
}

/// What we know of one ENI's prefix.
#[derive(Debug, Default)]
struct EniIpv6 {
    /// It, if the ENI has one: what pods get addresses of.
    prefix: Option<Ipv6Prefix>,
    /// Others that it has: two calls were one too many, or somebody else has asked.
    others: BTreeSet<Ipv6Prefix>,
    /// Those that EC2 shows no more, as long as pods have addresses of them: their packets leave here or nowhere.
    lost: BTreeSet<Ipv6Prefix>,
    /// When EC2 gave it to us: pictures asked for shortly after may lack it.
    given_at: Option<Moment>,
    /// EC2 has been asked for one, then.
    asked_at: Option<Moment>,
    /// EC2 may have given one at this time: a picture tells that was asked for some time later.
    unsure: Option<Moment>,
    /// How often in a row EC2 has given none.
    refusals: u32,
    /// Not asked for before this.
    ask_at: Moment,
    /// Why EC2 has given none.
    refused: Option<(Reason, String)>,
}

impl Ipv6State {
    /// The primary ENI's prefix, if it has one.
    pub(super) fn prefix(&self) -> Option<Ipv6Prefix> {
        self.of_eni(self.primary.as_ref()?)
    }

    /// An ENI's prefix, if it has one.
    pub(super) fn of_eni(&self, eni: &EniId) -> Option<Ipv6Prefix> {
        self.enis.get(eni)?.prefix
    }

    /// Each ENI's prefix, of those that have one.
    pub(super) fn all(&self) -> BTreeMap<EniId, Ipv6Prefix> {
        self.enis.iter().filter_map(|(eni, of)| Some((eni.clone(), of.prefix?))).collect()
    }

    /// What else pods may have addresses of, by ENI.
    fn further(&self) -> BTreeMap<EniId, BTreeSet<Ipv6Prefix>> {
        let of_eni = |of: &EniIpv6| of.others.union(&of.lost).copied().collect::<BTreeSet<_>>();
        let all = self.enis.iter().map(|(eni, of)| (eni.clone(), of_eni(of)));
        all.filter(|(_, further)| !further.is_empty()).collect()
    }

    /// What is known of the primary ENI's.
    fn primary(&mut self) -> Option<&mut EniIpv6> {
        self.enis.get_mut(self.primary.as_ref()?)
    }
}

impl EniIpv6 {
    /// All that it has.
    fn there(&self) -> impl Iterator<Item = Ipv6Prefix> {
        self.prefix.into_iter().chain(self.others.iter().copied())
    }

    /// All that it has, or had and pods still have.
    fn known(&self) -> impl Iterator<Item = Ipv6Prefix> {
        self.there().chain(self.lost.iter().copied())
    }
}

/// How far giving the prefix back is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Leaving {
    /// It stays.
    #[default]
    No,
    /// That it goes is being written down.
    Writing(BatchId),
    /// EC2 is being told.
    Telling,
}

impl Node {
    /// What pods need to be served, and is not there.
    pub(super) fn lacks_ipv6(&self) -> bool {
        self.settings.families.needs_prefix() && self.ipv6.prefix().is_none()
    }

    /// The IPv6 address that an owner gets with an address of the pool: of its ENI's prefix where that is on a further network card. What
    /// means something on the node only the first interface alone has.
    pub(super) fn ipv6_beside(&self, owner: &Owner, grant: &Grant) -> Option<Ipv6Addr> {
        let families = self.settings.families;
        let prefix = if families.needs_prefix() {
            match &grant.place {
                Some(place) if place.card != NetworkCard(0) => self.ipv6.of_eni(&place.eni),
                Some(_) | None => self.ipv6.prefix(),
            }
        } else {
            let node_has_ipv6 = self.facts.as_ref().is_some_and(|facts| facts.ipv6.is_some());
            let local = families.has_ipv6_egress() && node_has_ipv6 && owner.further.is_none();
            local.then_some(Ipv6Prefix::LOCAL)
        };
        prefix.map(|prefix| prefix.beside(grant.address))
    }

    /// Whether pods that get an address of an ENI get one of its own IPv6 prefix.
    fn serves_ipv6(&self, eni: &EniSeen) -> bool {
        let further = || self.pool.cards().contains(&eni.card) && eni.role.is_for_pods();
        let its_own = eni.role == Role::Primary || eni.card != NetworkCard(0) && further();
        self.settings.families.needs_prefix() && its_own
    }

    /// The prefixes that the host's kernel has to lead out by a secondary ENI: the one that pods get addresses of, and all of which pods
    /// have some. What a picture tells that waits for the kernel counts, and what the daemon before knew: descriptions may be older.
    pub(super) fn ipv6_to_lead(&self, eni: &EniSeen) -> BTreeSet<Ipv6Prefix> {
        if eni.card == NetworkCard(0) {
            return BTreeSet::new();
        }
        let of = self.ipv6.enis.get(&eni.id);
        let told = self.host.prefixes_told(&eni.id).cloned().unwrap_or_default();
        let current = of.and_then(|of| of.prefix).or_else(|| self.best_of(&eni.id, &told));
        let current = current.filter(|_| self.serves_ipv6(eni));
        let before = if of.is_none() { self.prefixes_before(&eni.id) } else { None };
        let known = of.into_iter().flat_map(EniIpv6::known).chain(told).chain(before.into_iter().flatten());
        let leads = |prefix: &Ipv6Prefix| Some(*prefix) == current || pods_in(&self.pool, *prefix) > 0;
        known.filter(leads).collect()
    }

    /// What else than the prefixes that ENIs have pods may have addresses of, by the ENI by which these leave.
    pub(super) fn further_prefixes(&self) -> BTreeMap<EniId, BTreeSet<Ipv6Prefix>> {
        let untold = self.host.led.iter().filter(|eni| !self.ipv6.enis.contains_key(&eni.id));
        let untold = untold.filter_map(|eni| Some((eni.id.clone(), self.prefixes_before(&eni.id)?)));
        self.ipv6.further().into_iter().chain(untold).collect()
    }

    /// Which of the prefixes that an ENI has pods get addresses of: one of which some have one, or the one of before.
    fn best_of(&self, eni: &EniId, there: &BTreeSet<Ipv6Prefix>) -> Option<Ipv6Prefix> {
        let before = self.prefix_before(eni);
        let rank = |it: &&Ipv6Prefix| (pods_in(&self.pool, **it) == 0, before != Some(**it), **it);
        there.iter().min_by_key(rank).copied()
    }

    /// What the kernel has to lead out, by ENI.
    pub(super) fn prefixes_to_lead(&self) -> BTreeMap<EniId, BTreeSet<Ipv6Prefix>> {
        let enis = self.enis_told().map(|eni| (eni.id.clone(), self.ipv6_to_lead(eni)));
        enis.filter(|(_, prefixes)| !prefixes.is_empty()).collect()
    }

    /// Has the kernel lead out what it has to, and says by which ENIs it does not as yet.
    pub(super) fn lead_prefixes(&mut self) {
        self.host.dirty |= self.prefixes_to_lead() != self.host.wished_prefixes;
        if self.settings.families.needs_prefix() {
            self.tell_unready();
        }
    }

    /// Whether pods can get no address of a secondary ENI as yet, for want of a prefix that the host's kernel leads out.
    pub(super) fn awaits_prefix(&self, eni: &EniSeen) -> bool {
        let led = self.host.prefixes.get(&eni.mac);
        let ready = |prefix: Ipv6Prefix| led.is_some_and(|led| led.contains(&prefix));
        eni.card != NetworkCard(0) && self.serves_ipv6(eni) && !self.ipv6.of_eni(&eni.id).is_some_and(ready)
    }

    /// Whether EC2 has refused an ENI its prefix.
    pub(super) fn is_prefix_refused(&self, eni: &EniId) -> bool {
        self.ipv6.enis.get(eni).is_some_and(|of| of.prefix.is_none() && of.refused.is_some())
    }

    /// The address by which pods with IPv4 addresses of the VPC reach IPv6, where that is wanted or a pod was wired for it.
    pub(super) fn ipv6_egress(&self, facts: &Facts) -> Option<Ipv6Addr> {
        let wired = || self.pool.holders().any(|(owner, _)| owner.ipv6.is_some_and(is_local));
        facts.ipv6.filter(|_| self.settings.families.has_ipv6_egress() || wired())
    }

    /// What is wrong with IPv6, in words.
    pub(super) fn ipv6_troubles(&self) -> impl Iterator<Item = String> {
        let kept = self.ipv6.kept.as_ref().zip(self.ipv6.books.ours);
        let kept = kept.map(|((reason, why), prefix)| {
            format!("{reason}: {prefix}, which no pod needs any more, is not given back: {why}")
        });
        let refused = self.ipv6.enis.iter().filter_map(|(eni, of)| {
            let (reason, why) = of.refused.as_ref()?;
            Some(format!("{reason}: {eni} gets no IPv6 prefix, and no pod an address of it: {why}"))
        });
        self.no_way_out().into_iter().chain(self.lost_addresses()).chain(kept).chain(refused)
    }

    /// Whether pods may get addresses of a network card once an ENI there has its prefix.
    pub(super) fn awaits_prefix_on(&self, card: NetworkCard) -> bool {
        self.pool.seen().any(|eni| eni.card == card && self.awaits_prefix(eni))
    }

    /// Why an ENI of a network card has none yet.
    pub(super) fn why_no_prefix(&self, card: NetworkCard) -> Reason {
        let on_card = self.pool.seen().filter(|eni| eni.card == card);
        let mut refused = on_card.filter_map(|eni| Some(self.ipv6.enis.get(&eni.id)?.refused.as_ref()?.0));
        refused.next().unwrap_or(Reason::NoIpv6)
    }

    /// That pods get no IPv6 although it is wanted.
    fn no_way_out(&self) -> Option<String> {
        let facts = self.facts.as_ref().filter(|_| self.settings.families.has_ipv6_egress())?;
        let why = "the primary ENI has no IPv6 address that they could leave by";
        facts.ipv6.is_none().then(|| format!("{}: new pods do not reach IPv6: {why}", Reason::NoIpv6))
    }

    /// Pods with addresses of a prefix that its ENI has lost: they keep them, as pods do whose IPv4 address EC2 does not show.
    fn lost_addresses(&self) -> Option<String> {
        let there: BTreeSet<Ipv6Prefix> = self.ipv6.enis.values().flat_map(EniIpv6::there).collect();
        let lost = |ipv6: Ipv6Addr| !is_local(ipv6) && !there.contains(&Ipv6Prefix::of(ipv6));
        let of_lost = self.pool.holders().filter(|(owner, _)| owner.ipv6.is_some_and(lost));
        let pods: Vec<String> = of_lost.map(|(owner, _)| owner.pod.to_string()).collect();
        let (first, rest) = pods.split_first().filter(|_| self.cloud.pictured)?;
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        Some(format!(
            "{}: {first}{more} have IPv6 addresses that their ENI has lost, and do not reach IPv6",
            Reason::NoIpv6
        ))
    }

    /// The node has another IPv6 address, or has one now.
    pub(super) fn node_ipv6(&mut self, address: Ipv6Addr) {
        if let Some(facts) = &mut self.facts
            && facts.ipv6 != Some(address)
        {
            tracing::info!(%address, "the node has this IPv6 address now");
            facts.ipv6 = Some(address);
            self.host.dirty = true;
            self.memory.dirty = true;
        }
    }

    /// Takes in which prefixes the ENIs have.
    pub(super) fn ipv6_pictured(&mut self, picture: &Picture, now: Moment) {
        // What is older than what was seen already says nothing, of the pool's addresses neither.
        if picture.as_of < self.pool.pictured() {
            return;
        }
        let primary = picture.enis.iter().find(|eni| eni.role == Role::Primary).map(|eni| &eni.id);
        self.ipv6.primary = primary.or(self.ipv6.primary.as_ref()).cloned();
        let shown: BTreeSet<EniId> = picture.enis.iter().map(|eni| eni.id.clone()).collect();
        // A picture may lack one that was just made, or that leads pods out.
        let kept = self.pool.seen().chain(&self.host.led).map(|eni| eni.id.clone());
        let kept: BTreeSet<EniId> = kept.chain(self.ipv6.primary.clone()).chain(shown.clone()).collect();
        self.ipv6.enis.retain(|eni, of| kept.contains(eni) || of.asked_at.is_some());
        for eni in shown.into_iter().chain(self.ipv6.primary.clone()).collect::<BTreeSet<EniId>>() {
            let seen = picture.ipv6_prefixes.get(&eni).cloned().unwrap_or_default();
            self.eni_ipv6_pictured(&eni, seen, picture.as_of);
        }
        // What another one has by now is led out by that.
        let there =
            self.ipv6.enis.iter().flat_map(|(eni, of)| of.there().map(|prefix| (prefix, eni.clone())));
        let there: BTreeMap<Ipv6Prefix, EniId> = there.collect();
        for (eni, of) in &mut self.ipv6.enis {
            of.lost.retain(|lost| {
                pods_in(&self.pool, *lost) > 0 && there.get(lost).is_none_or(|other| other == eni)
            });
        }
        let lag = if picture.from_metadata { METADATA_LAG } else { PICTURE_LAG };
        if let Some(unsure) = self.ipv6.enis.values().filter_map(|of| of.unsure).min() {
            let again = unsure.plus(lag).max(now.plus(LOOK_AGAIN)).max(self.cloud.hold_until);
            self.cloud.look_at = self.cloud.look_at.min(again);
        }
    }

    /// Takes in which prefixes one ENI has.
    fn eni_ipv6_pictured(&mut self, eni: &EniId, mut seen: BTreeSet<Ipv6Prefix>, as_of: Moment) {
        let is_primary = self.ipv6.primary.as_ref() == Some(eni);
        let needs_prefix = self.settings.families.needs_prefix();
        let left = self.ipv6.books.left.filter(|(_, at)| as_of < at.plus(PICTURE_LAG_MAX));
        seen.retain(|prefix| left.is_none_or(|(left, _)| left != *prefix));
        let before = match self.ipv6.enis.contains_key(eni) {
            true => BTreeSet::new(),
            false => self.prefixes_before(eni).into_iter().flatten().collect(),
        };
        let best = self.best_of(eni, &seen);
        let of = self.ipv6.enis.entry(eni.clone()).or_default();
        if of.given_at.is_some_and(|at| as_of < at.plus(PICTURE_LAG_MAX)) {
            return;
        }
        of.unsure = of.unsure.filter(|at| seen.is_empty() && as_of < at.plus(PICTURE_LAG));
        let had = of.prefix;
        of.lost.extend(before.into_iter().chain(had));
        of.lost.retain(|lost| !seen.contains(lost));
        of.prefix = had.filter(|had| seen.contains(had)).or(best);
        of.others = seen;
        of.others.retain(|other| Some(*other) != of.prefix);
        if had == of.prefix {
            return;
        }
        if of.prefix.is_some() {
            (of.refused, of.refusals) = (None, 0);
        }
        match (had, of.prefix) {
            (Some(lost), _) => {
                let pods = pods_in(&self.pool, lost);
                tracing::warn!(%eni, prefix = %lost, pods, "an ENI has lost its IPv6 prefix, and pods their IPv6 addresses");
                if is_primary {
                    self.ipv6.kept = None;
                }
                if self.ipv6.books.ours == Some(lost) {
                    // Should it come back, somebody else has asked for it.
                    self.write_ipv6(Ipv6Books { ours: None, ..self.ipv6.books });
                }
            }
            (None, Some(prefix)) if needs_prefix => {
                tracing::info!(%eni, %prefix, "an ENI has an IPv6 prefix");
            }
            (None, _) => {}
        }
    }

    /// Asks for a prefix where one is needed and none is, unless EC2 wants to be left alone.
    pub(super) fn want_ipv6(&mut self, now: Moment) {
        let knows = self.cloud.pictured && self.is_up_to_date();
        if self.cloud.hold_until > now || !knows || !self.may(false) {
            return;
        }
        let lacking = self.pool.seen().filter(|eni| self.serves_ipv6(eni)).map(|eni| eni.id.clone());
        for eni in lacking.collect::<Vec<_>>() {
            let of = self.ipv6.enis.entry(eni.clone()).or_default();
            if of.prefix.is_none() && of.asked_at.is_none() && of.unsure.is_none() && of.ask_at <= now {
                of.asked_at = Some(now);
                self.effects.push(Effect::AssignIpv6(eni));
            }
        }
    }

    /// When a prefix is asked for again.
    pub(super) fn ipv6_wakeup(&self, now: Moment) -> Option<Moment> {
        let lacking = self.ipv6.enis.values().filter(|of| of.prefix.is_none());
        lacking.map(|of| of.ask_at).filter(|at| *at > now).min()
    }

    pub(super) fn ipv6_assigned(&mut self, eni: &EniId, result: Result<Ipv6Prefix, CloudError>, now: Moment) {
        let is_primary = self.ipv6.primary.as_ref() == Some(eni);
        let of = self.ipv6.enis.entry(eni.clone()).or_default();
        let begun = of.asked_at.take().unwrap_or(now);
        match result {
            Ok(prefix) => {
                self.cloud.worked(begun);
                tracing::info!(%eni, %prefix, "EC2 has given an ENI an IPv6 prefix");
                // A picture has shown one meanwhile, of a call before: pods may have addresses of that.
                if let Some(one_more) = of.prefix.replace(prefix).filter(|had| *had != prefix) {
                    of.others.insert(one_more);
                    self.cloud.look_at = self.cloud.look_at.min(now.plus(PICTURE_LAG_MAX));
                }
                of.given_at = Some(now);
                (of.refused, of.refusals) = (None, 0);
                if is_primary {
                    // Should we die before it is written, the prefix is nobody's that we know, and stays.
                    self.write_ipv6(Ipv6Books { ours: Some(prefix), ..self.ipv6.books });
                } else {
                    self.memory.dirty = true;
                }
            }
            Err(error) => {
                of.unsure = (error.kind() == CloudErrorKind::Unclear).then_some(now);
                let look = of.unsure.is_some();
                if is_primary || error.kind() == CloudErrorKind::Throttled {
                    self.cloud.failed(&error, now);
                } else {
                    // The first card's pods do not suffer for it.
                    let pause = doubled(ASK_AGAIN, of.refusals);
                    of.refusals = of.refusals.saturating_add(1);
                    of.ask_at = now.plus(self.cloud.jitter(pause));
                    // A subnet without IPv6 has no word of its own.
                    let other = error.kind() == CloudErrorKind::Other;
                    let reason = if other { Reason::NoIpv6 } else { error.kind().reason() };
                    of.refused = Some((reason, crate::chain(&error)));
                    tracing::warn!(%eni, error = crate::chain(&error), "EC2 gives an ENI no IPv6 prefix");
                }
                if look {
                    let soon = self.cloud.hold_until.max(of.ask_at);
                    self.cloud.look_at = self.cloud.look_at.min(soon);
                }
            }
        }
    }

    fn write_ipv6(&mut self, books: Ipv6Books) -> BatchId {
        self.ipv6.books = books;
        let batch = self.next_batch();
        self.effects.push(Effect::Append(batch, vec![Record::Ipv6(books)]));
        batch
    }

    /// The prefix that may go back: it is ours, it is there, and no pod has or gets an address of it.
    fn idle_ipv6(&self) -> Option<Ipv6Prefix> {
        let ours = self.ipv6.books.ours.filter(|_| !self.settings.families.needs_prefix())?;
        let is_idle = self.ipv6.prefix() == Some(ours) && pods_in(&self.pool, ours) == 0;
        is_idle.then_some(ours)
    }

    /// Gives the prefix back once it is idle: first it is written down that it goes.
    pub(super) fn spare_ipv6(&mut self, now: Moment) {
        let early = self.cloud.hold_until > now || self.ipv6.keep_until > now;
        let allowed = self.may(true) && !self.keeps_all();
        if early || self.ipv6.leaving != Leaving::No || !self.cloud.pictured || !allowed {
            return;
        }
        let Some(prefix) = self.idle_ipv6() else { return };
        tracing::info!(%prefix, "no pod needs the IPv6 prefix any more: it goes back");
        let books = Ipv6Books { left: Some((prefix, now)), ..self.ipv6.books };
        self.ipv6.leaving = Leaving::Writing(self.write_ipv6(books));
    }

    /// Makes the call whose intent is on disk.
    pub(super) fn ipv6_intended(&mut self, batch: BatchId, result: &Result<(), String>) {
        if self.ipv6.leaving != Leaving::Writing(batch) {
            return;
        }
        self.ipv6.leaving = Leaving::No;
        // Somebody may have put the brake on meanwhile.
        if result.is_ok()
            && self.may(true)
            && let (Some(primary), Some(prefix)) = (self.ipv6.primary.clone(), self.idle_ipv6())
        {
            self.ipv6.leaving = Leaving::Telling;
            self.effects.push(Effect::ReleaseIpv6(primary, prefix));
        }
    }

    pub(super) fn ipv6_released(&mut self, result: Result<(), CloudError>, now: Moment) {
        self.ipv6.leaving = Leaving::No;
        self.ipv6.kept = None;
        match result {
            Err(error) if error.kind() != CloudErrorKind::Gone => {
                // No pod waits for it: growth goes on meanwhile. An unclear answer is looked at: it may have gone.
                tracing::warn!(error = crate::chain(&error), "the IPv6 prefix is not given back");
                self.ipv6.kept = Some((error.kind().reason(), crate::chain(&error)));
                self.ipv6.keep_until = now.plus(self.cloud.jitter(KEEP));
                if error.kind() == CloudErrorKind::Unclear {
                    self.cloud.look_at = self.cloud.look_at.min(now.plus(PICTURE_LAG));
                }
            }
            Ok(()) | Err(_) => {
                let left = self.ipv6.books.ours.map(|prefix| (prefix, now));
                if let Some(of) = self.ipv6.primary() {
                    of.prefix = None;
                }
                self.write_ipv6(Ipv6Books { ours: None, left });
            }
        }
    }

    /// What a picture means on a node whose pods have IPv4 addresses of the node alone: these are there from the start. On each network card
    /// one ENI has them; no other is for pods.
    pub(super) fn make_local(&self, enis: &mut [EniSeen]) {
        if self.settings.families.has_ipv4_of_vpc() {
            return;
        }
        // The first of each further card; one that pods have addresses of stays the one.
        let further = enis.iter().filter(|eni| eni.card != NetworkCard(0) && eni.role.is_for_pods());
        let ranked = further.map(|eni| (eni.card, !self.is_local_eni(&eni.id), eni.device));
        let mut ranked: Vec<(NetworkCard, bool, DeviceIndex)> = ranked.collect();
        ranked.sort_unstable();
        ranked.dedup_by_key(|(card, ..)| *card);
        for eni in enis {
            let is_the_one =
                ranked.iter().any(|(card, _, device)| (*card, *device) == (eni.card, eni.device));
            eni.prefixes.clear();
            match eni.role {
                Role::Primary => eni.addresses = local_addresses(eni.card),
                Role::Secondary | Role::Efa if is_the_one => eni.addresses = local_addresses(eni.card),
                Role::Secondary | Role::Efa => (eni.role, eni.addresses) = (Role::Unmanaged, BTreeSet::new()),
                Role::Trunk | Role::Unmanaged => eni.addresses.clear(),
            }
        }
    }

    /// Whether an ENI has addresses of the node alone.
    fn is_local_eni(&self, eni: &EniId) -> bool {
        self.pool.seen().any(|seen| seen.id == *eni && !seen.addresses.is_empty())
    }
}
