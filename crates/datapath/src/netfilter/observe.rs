//! What of our table the kernel holds.

use std::collections::{BTreeMap, BTreeSet};

use super::constants::{
    NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_SET_ELEM_INTERVAL_END, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
    NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NFTA_TABLE_USE, NFTA_TABLE_USERDATA, NFTA_VERDICT_CHAIN, NLM_F_DUMP,
};
use super::decode::{attribute, attributes, number, path, text};
use super::encode::Attributes;
use super::intervals::Interval;
use super::ruleset::{ENI_OF, NO_SNAT, Ruleset, steering_chain_mark};
use super::socket::Socket;
use super::transaction::user_data;
use super::{NetfilterError, TABLE};

/// Our table in the kernel, or as a [`Ruleset`] would have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) frame: Frame,
    pub(super) steering: Steering,
}

/// All but the sources. Rules are counted, not read: the comment says what they were when they were written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    user_data: Vec<u8>,
    /// Such as "dormant"; we set none.
    flags: u32,
    /// Chains and sets, those of the steering left out.
    objects: u32,
    /// How many rules each chain has.
    rules: BTreeMap<String, usize>,
    no_snat: BTreeSet<Interval>,
}

/// The sources and the chains of their marks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Steering {
    pub(super) sources: BTreeMap<Interval, u32>,
    pub(super) chains: BTreeSet<u32>,
}

/// The table in the kernel; `None` when there is none.
pub(super) fn observe(socket: &mut Socket) -> Result<Option<Table>, NetfilterError> {
    let name = Attributes::default().text(NFTA_TABLE_NAME, TABLE);
    let Some(table) = socket.ask(NFT_MSG_GETTABLE, 0, &name)?.pop() else { return Ok(None) };
    let (chains, rules) = count_rules(socket)?;
    let number_of = |kind| attribute(&table, kind).and_then(number).unwrap_or_default();
    let frame = Frame {
        user_data: attribute(&table, NFTA_TABLE_USERDATA).unwrap_or_default().to_vec(),
        flags: number_of(NFTA_TABLE_FLAGS),
        objects: number_of(NFTA_TABLE_USE).saturating_sub(count(chains.len())),
        rules,
        no_snat: elements(socket, NO_SNAT)?.into_keys().collect(),
    };
    let sources =
        elements(socket, ENI_OF)?.into_iter().map(|(i, mark)| (i, mark.unwrap_or_default())).collect();
    Ok(Some(Table { frame, steering: Steering { sources, chains } }))
}

impl From<&Ruleset> for Table {
    fn from(ruleset: &Ruleset) -> Self {
        let frame = Frame {
            user_data: user_data(&ruleset.comment()),
            flags: 0,
            objects: 2 + count(ruleset.chains.len()),
            rules: ruleset.chains.iter().map(|chain| (chain.name.clone(), chain.rules.len())).collect(),
            no_snat: ruleset.no_snat.clone(),
        };
        let steering = Steering { sources: ruleset.steering.clone(), chains: ruleset.marks() };
        Self { frame, steering }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The marks whose chains are as they should be, with one rule; and the rules of all other chains.
fn count_rules(socket: &mut Socket) -> Result<(BTreeSet<u32>, BTreeMap<String, usize>), NetfilterError> {
    let of_table = Attributes::default().text(NFTA_RULE_TABLE, TABLE);
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for rule in socket.ask(NFT_MSG_GETRULE, NLM_F_DUMP, &of_table)? {
        let chain = attribute(&rule, NFTA_RULE_CHAIN).and_then(text).unwrap_or_default();
        *rules.entry(chain.to_owned()).or_default() += 1;
    }
    let marks =
        rules.iter().filter(|(_, count)| **count == 1).filter_map(|(name, _)| steering_chain_mark(name));
    let marks: BTreeSet<u32> = marks.collect();
    rules.retain(|name, count| *count != 1 || steering_chain_mark(name).is_none());
    Ok((marks, rules))
}

/// The intervals of a set, and in a map the mark that each leads to.
fn elements(socket: &mut Socket, set: &str) -> Result<BTreeMap<Interval, Option<u32>>, NetfilterError> {
    let of_set =
        Attributes::default().text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, set);
    let answers = socket.ask(NFT_MSG_GETSETELEM, NLM_F_DUMP, &of_set)?;
    let lists = answers.iter().filter_map(|answer| attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS));
    let edges: BTreeMap<(u32, Side), Option<u32>> =
        lists.flat_map(attributes).filter_map(|(_, element)| edge(element)).collect();
    Ok(paired(edges))
}

/// Which end of an interval an element is; where two touch, the end comes before the next one's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    End,
    Start,
}

fn edge(element: &[u8]) -> Option<((u32, Side), Option<u32>)> {
    let key = path(element, &[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE]).and_then(number)?;
    let flags = attribute(element, NFTA_SET_ELEM_FLAGS).and_then(number).unwrap_or_default();
    let side = if flags & NFT_SET_ELEM_INTERVAL_END == 0 { Side::Start } else { Side::End };
    let chain = path(element, &[NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN]).and_then(text);
    Some(((key, side), chain.and_then(steering_chain_mark)))
}

fn paired(edges: BTreeMap<(u32, Side), Option<u32>>) -> BTreeMap<Interval, Option<u32>> {
    let mut intervals = BTreeMap::new();
    let mut open: Option<(u32, Option<u32>)> = None;
    for ((key, side), mark) in edges {
        if let Some((first, mark)) = open.take()
            && key > first
        {
            intervals.insert(Interval { first, last: key - 1 }, mark);
        }
        open = (side == Side::Start).then_some((key, mark));
    }
    intervals.extend(open.map(|(first, mark)| (Interval { first, last: u32::MAX }, mark)));
    intervals
}
