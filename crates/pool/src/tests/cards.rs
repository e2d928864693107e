//! Several network cards: a pool of each, in one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use types::{NetworkCard, Prefix, Reason};

use super::kit::{self, at, eni, owner, sandbox};
use super::model::targets;
use crate::{Action, EniSeen, Further, KeptReason, Limits, Mode, Owner, Pool, Role, Targets, Want};

const CARDS: [NetworkCard; 3] = [NetworkCard(0), NetworkCard(1), NetworkCard(2)];

/// ENIs with so many free addresses each: one or more on each of three cards.
fn enis(counts: &[(u8, u8)]) -> Vec<EniSeen> {
    let of = |(n, (card, count)): (u8, &(u8, u8))| {
        let role = if n == 0 { Role::Primary } else { Role::Secondary };
        EniSeen { card: NetworkCard(*card), ..eni(n, role, *count) }
    };
    (0..).zip(counts).map(of).collect()
}

fn pool(counts: &[(u8, u8)]) -> Pool {
    let mut pool = kit::pool(&enis(counts));
    pool.set_cards(CARDS.to_vec());
    pool
}

fn limits(card: u8, max_enis: u8) -> Limits {
    Limits { card: NetworkCard(card), ..kit::limits(max_enis, 5) }
}

fn further(n: u16, index: u8) -> Owner {
    let (main, of) = (owner(n), sandbox(n));
    Owner { sandbox: of.further(index), further: Some(Further { of, index }), ..main }
}

/// An address of each card.
fn of_every_card(n: u16) -> Vec<Want> {
    let owner = |index| if index == 0 { owner(n) } else { further(n, index) };
    (0..).zip(CARDS).map(|(index, card)| Want { owner: owner(index), cards: vec![card] }).collect()
}

#[test]
fn one_address_is_of_the_first_card_that_has_one() {
    let mut pool = pool(&[(0, 1), (1, 1), (2, 1)]);

    let card = |pool: &mut Pool, n| pool.reserve(owner(n), at(0)).unwrap().place.unwrap().card;

    assert_eq!([card(&mut pool, 1), card(&mut pool, 2), card(&mut pool, 3)], CARDS);
    assert_eq!(pool.reserve(owner(4), at(0)).unwrap_err().card, NetworkCard(0));
}

#[test]
fn an_address_of_a_card_that_is_not_used_is_given_to_nobody_and_kept_by_its_owner() {
    let mut pool = pool(&[(0, 1), (1, 2)]);
    kit::assign(&mut pool, [1, 2], at(0));

    pool.set_cards(vec![NetworkCard(0)]);

    assert!(pool.reserve(owner(3), at(0)).is_err());
    assert_eq!(pool.counts(at(0)).assigned, 2);
    let plan = pool.plan(&kit::warm_ips(0, 1), &limits(0, 1), 0, at(1000));
    assert!(plan.kept.contains(&(kit::eni_id(1), KeptReason::OtherCard(NetworkCard(1)))), "{plan}");
    assert!(pool.release(&sandbox(2), at(1)).is_some());
}

#[test]
fn a_card_whose_room_is_used_up_says_so_whatever_the_others_have() {
    let mut pool = pool(&[(0, 5), (1, 1), (2, 5)]);
    pool.reserve_all(of_every_card(1), &[], at(0)).unwrap();

    let shortage = pool.reserve_all(of_every_card(2), &[], at(0)).unwrap_err();

    assert_eq!((shortage.card, shortage.held), (NetworkCard(1), 1));
    let full = Limits { slots_per_eni: 1, ..limits(1, 1) };
    assert_eq!(pool.shortage_reason(&full, at(0)), Reason::NodeFull);
    assert_eq!(pool.shortage_reason(&limits(1, 1), at(0)), Reason::PoolEmpty);
}

#[test]
fn what_still_cools_does_only_where_no_card_has_more() {
    let mut pool = pool(&[(0, 1), (1, 0), (2, 1)]);
    kit::assign(&mut pool, [1, 2], at(0));
    pool.release(&sandbox(1), at(1));

    let any = || vec![Want { owner: owner(3), cards: CARDS.to_vec() }];
    assert!(pool.reserve_all(any(), &CARDS[..1], at(2)).is_err());
    assert!(pool.reserve_all(any(), &CARDS, at(2)).is_ok());
    assert_eq!(pool.reused_early(), 1);
    pool.check().unwrap();
}

#[test]
fn an_empty_prefix_of_a_further_card_stays_for_the_pod_to_come() {
    let mut pool = pool(&[(0, 0), (1, 0)]);
    pool.set_mode(Mode::Prefixes);
    let targets = Targets::default().of_further_card();
    let plan = pool.plan(&targets, &limits(1, 4), 0, at(0));
    assert_eq!(plan.actions[0].action.to_string(), "assign 1 prefixes to eni-001");

    let mut with_prefix = enis(&[(0, 0), (1, 0)]);
    with_prefix[1].prefixes = [Prefix::of(Ipv4Addr::new(10, 0, 9, 0))].into();
    pool.observe(&with_prefix, at(1), at(1));

    for second in (60..600).step_by(30) {
        assert_eq!(pool.plan(&targets, &limits(1, 4), 0, at(second)).actions, []);
    }
}

#[test]
fn a_new_eni_goes_to_its_card_at_the_first_free_device() {
    let pool = pool(&[(0, 0)]);
    let targets = Targets::default().of_further_card();

    let plan = pool.plan(&targets, &limits(2, 4), 0, at(0));

    let action = &plan.actions[0].action;
    assert_eq!(
        action.to_string(),
        "create an ENI with 1 addresses at device 0 of network card 2 in subnet-1"
    );
    let mut pool = pool;
    pool.begin(action);
    assert_eq!(pool.plan(&targets, &limits(2, 4), 0, at(0)).actions, []);
    assert!(pool.is_growing(NetworkCard(2)) && !pool.is_growing(NetworkCard(0)));
    // The same device of another card is another place.
    assert_eq!(pool.plan(&targets, &limits(1, 4), 0, at(0)).actions.len(), 1);
}

proptest! {
    #[test]
    fn an_address_of_every_card_or_none(
        counts in vec((0..3_u8, 0..4_u8), 1..6), pods in 1..8_u16, early in 0..4_usize
    ) {
        let mut counts = counts;
        counts[0].0 = 0;
        let mut pool = pool(&counts);
        for n in 1..=pods {
            let before = pool.snapshot();
            match pool.reserve_all(of_every_card(n), &CARDS[..early.min(3)], at(0)) {
                Ok(grants) => {
                    let cards: Vec<_> =
                        grants.into_iter().map(|grant| grant.place.map(|place| place.card)).collect();
                    prop_assert_eq!(cards, CARDS.map(Some));
                    prop_assert_eq!(pool.interfaces_of(&sandbox(n)).len(), 3);
                }
                Err(shortage) => {
                    prop_assert_eq!(pool.counts_on(shortage.card, at(0)).free, 0);
                    prop_assert_eq!(pool.snapshot(), before);
                    prop_assert!(pool.interfaces_of(&sandbox(n)).is_empty());
                }
            }
            prop_assert_eq!(pool.check(), Ok(()));
        }
    }

    #[test]
    fn a_plan_is_about_its_card_alone_and_together_they_explain_every_eni(
        counts in vec((0..3_u8, 0..6_u8), 1..6), targets in targets(), waiting in 0..4_u32, held in 0..6_u16
    ) {
        let mut counts = counts;
        counts[0].0 = 0;
        let mut pool = pool(&counts);
        for n in 0..held {
            drop(pool.reserve(owner(n), at(0)));
        }
        let all = enis(&counts);
        let mut told = BTreeSet::new();
        let mut times = 0;
        for card in 0..3 {
            let plan = pool.plan(&targets, &limits(card, 4), waiting, at(1000));
            for planned in &plan.actions {
                let made_on = if let Action::CreateEni { card, .. } = &planned.action { Some(*card) } else { None };
                let of = all.iter().find(|eni| Some(&eni.id) == planned.action.eni()).map(|eni| eni.card);
                prop_assert_eq!(made_on.or(of), Some(NetworkCard(card)));
            }
            let acted = plan.actions.iter().filter_map(|planned| planned.action.eni().cloned());
            let mentioned: Vec<_> = acted.chain(plan.kept.iter().map(|(eni, _)| eni.clone())).collect();
            times += mentioned.len();
            told.extend(mentioned);
        }
        prop_assert_eq!((told.len(), times), (all.len(), all.len()));
    }

    #[test]
    fn other_cards_change_nothing_on_the_first(
        own in vec(0..6_u8, 1..4), others in vec((1..3_u8, 0..6_u8), 0..4), targets in targets(),
        waiting in 0..4_u32
    ) {
        let own: Vec<(u8, u8)> = own.into_iter().map(|count| (0, count)).collect();
        let both: Vec<(u8, u8)> = own.iter().copied().chain(others).collect();
        let actions = |counts: &[(u8, u8)]| {
            pool(counts).plan(&targets, &limits(0, 4), waiting, at(1000)).actions
        };

        prop_assert_eq!(actions(&own), actions(&both));
    }
}
