//! Network cards: which of them pods get addresses of, what each can hold, and what a pod wants of them.
//!
//! A pod that asks for it gets an address of every card, all or none; any other pod one, of card 0 as long as that has one.
//! Each further interface is an attachment of its own in the pool and in the state file, bound to the one that the runtime
//! knows ([`pool::Further`]): everything that is true of an address with an owner is true of each.

use std::collections::BTreeSet;

use pool::{EniSeen, Limits, Plan, Targets, Want};
use types::{Capacity, Moment, NetworkCard};
use wire::CardReport;

use super::Node;
use super::adding::{Add, Pending};
use super::event::CallId;
use super::growing::local_capacity;
use crate::status::count;

impl Node {
    /// Says of which cards pods get addresses: card 0 always; the others with `ENABLE_MULTI_NIC`, but for those where an
    /// EFA-only ENI stands and none that pods can use.
    pub(super) fn choose_cards(&mut self) {
        let Some(facts) = self.facts.as_ref().filter(|_| self.settings.multi_nic) else { return };
        let enis = self.pool.enis();
        let serves = |card| enis.iter().any(|eni: &EniSeen| eni.card == card && eni.role.is_for_pods());
        let all: BTreeSet<NetworkCard> = facts.limits.cards.iter().map(|limits| limits.card).collect();
        let fit =
            |card: &NetworkCard| *card == NetworkCard(0) || !self.efa_only.contains(card) || serves(*card);
        let cards: Vec<NetworkCard> = all.into_iter().filter(fit).collect();
        if cards != self.pool.cards() {
            tracing::info!(?cards, "pods get addresses of these network cards");
            self.pool.set_cards(cards);
        }
    }

    /// What a card can hold; `None` as long as nothing is known of the instance.
    pub(super) fn limits_of(&self, card: NetworkCard) -> Option<Limits> {
        let facts = self.facts.as_ref()?;
        let max_enis = facts.limits.enis_on(card, self.settings.max_enis);
        if !self.settings.families.has_ipv4_of_vpc() {
            // The primary ENI is there; and one is enough for all pods of a card, beside those of others.
            let max_enis = self.pool.foreign_on(card).saturating_add(1).min(max_enis);
            return Some(Limits { max_enis, slots_per_eni: u8::from(card != NetworkCard(0)), card });
        }
        // Before the trunk is there it holds its place.
        let trunk = u8::from(card == NetworkCard(0) && self.awaits_trunk());
        let max_enis = max_enis.saturating_sub(trunk).max(1);
        Some(Limits { max_enis, slots_per_eni: facts.limits.slots_per_eni(), card })
    }

    /// How many addresses for pods a card can hold.
    fn capacity_of(&self, card: NetworkCard) -> Capacity {
        match (&self.facts, card) {
            (Some(_), _) if !self.settings.families.has_ipv4_of_vpc() => local_capacity(card),
            (Some(facts), NetworkCard(1..)) => {
                Capacity { addresses: facts.limits.addresses_on(card, &self.layout(card)), branch: 0 }
            }
            (None, _) | (Some(_), NetworkCard(0)) => self.capacity(),
        }
    }

    /// How many addresses for pods all cards in use can hold.
    pub(super) fn capacity_in_all(&self) -> u32 {
        // Of the further ones of an IPv6 node nobody has an address who does not have one of the first too.
        let some = if self.settings.families.has_ipv4_of_vpc() { self.pool.cards().len() } else { 1 };
        self.pool.cards().iter().take(some).map(|card| self.capacity_of(*card).addresses).sum()
    }

    /// What to ask EC2 for next, card by card. Those who want one address of any card wait for the first card that can still
    /// give one.
    pub(super) fn plan(&self, now: Moment) -> Option<Plan> {
        self.facts.as_ref()?;
        let (every, mut any) = self.waiting_for_cards();
        let mut whole: Option<Plan> = None;
        for card in self.pool.cards().iter().filter(|card| !self.is_local_card(**card)) {
            let plan =
                self.pool.plan(&self.targets_of(*card, now), &self.limits_of(*card)?, every + any, now);
            any = any.min(plan.unmet);
            whole = Some(match whole {
                Some(whole) => whole.and(plan),
                None => plan,
            });
        }
        whole.map(|plan| self.left_alone(plan))
    }

    /// Whether all that pods can get of a card is there, and means something on this node alone: there is nothing to ask EC2 for.
    fn is_local_card(&self, card: NetworkCard) -> bool {
        let serves = |eni: &EniSeen| eni.card == card && eni.role.is_for_pods();
        !self.settings.families.has_ipv4_of_vpc() && (card == NetworkCard(0) || self.pool.seen().any(serves))
    }

    /// Notes what is available on each card, for plans that give back.
    pub(super) fn watch_cards(&mut self, now: Moment) {
        let (every, any) = self.waiting_for_cards();
        for card in self.pool.cards().to_vec() {
            let first = card == NetworkCard(0);
            self.pool.watch(card, if first { every + any } else { every }, now);
        }
    }

    fn targets_of(&self, card: NetworkCard, now: Moment) -> Targets {
        // Pods with host networking take none.
        let most = self.capacity_of(card).addresses;
        let targets = self.targets(now);
        let max_pods = targets.max_pods.map_or(most, |max_pods| max_pods.min(most));
        let targets = Targets { max_pods: Some(max_pods), patient: self.has_plenty(), ..targets };
        if card == NetworkCard(0) { targets } else { targets.of_further_card() }
    }

    /// How many ADDs wait for an address of every card, and how many for one of any.
    fn waiting_for_cards(&self) -> (u32, u32) {
        let wants_all = |id| match self.pending.get(id) {
            Some(Pending::Add(add)) => add.attachment.multi_nic,
            Some(Pending::Release { .. } | Pending::Check) | None => false,
        };
        let for_branch = |id: &&CallId| match self.pending.get(*id) {
            Some(Pending::Add(add)) => Self::waits_for_branch(add),
            Some(Pending::Release { .. } | Pending::Check) | None => false,
        };
        let every = self.queue.iter().filter(|id| wants_all(id)).count();
        let branches = self.queue.iter().filter(for_branch).count();
        let as_count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let any = match self.settings.families.has_ipv4_of_vpc() {
            true => self.queue.len().saturating_sub(every + branches),
            // They want the first card's.
            false => 0,
        };
        (as_count(every), as_count(any))
    }

    /// What an ADD wants: an address of each card, or one of any.
    pub(super) fn wants(&self, add: &Add, now: Moment) -> Vec<Want> {
        let cards = self.pool.cards();
        if !add.attachment.multi_nic {
            // On the first card of an IPv6 node there is always room, and a way to IPv4.
            let some = if self.settings.families.has_ipv4_of_vpc() { cards.len() } else { 1 };
            let cards = cards.iter().take(some).copied().collect();
            return vec![Want { owner: add.owner(0, now), cards }];
        }
        let each = (0..).zip(cards);
        each.map(|(index, card)| Want { owner: add.owner(index, now), cards: vec![*card] }).collect()
    }

    /// What `ipamd status` shows of the cards.
    pub(super) fn card_reports(&self, now: Moment) -> Vec<CardReport> {
        let enis = self.pool.enis();
        let report = |card: &NetworkCard| CardReport {
            card: *card,
            enis: u32::try_from(enis.iter().filter(|eni| eni.card == *card).count()).unwrap_or(u32::MAX),
            max_enis: self.limits_of(*card).map_or(0, |limits| limits.max_enis.into()),
            foreign: self.pool.foreign_on(*card).into(),
            addresses: count(self.pool.counts_on(*card, now)),
            capacity: self.capacity_of(*card).addresses,
        };
        self.pool.cards().iter().map(report).collect()
    }
}
