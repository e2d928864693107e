//! What of our table the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::constants::{
    NF_ACCEPT, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE,
    NFT_SET_ELEM_INTERVAL_END, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
    NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
    NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NFTA_TABLE_USE, NFTA_VERDICT_CHAIN, NLM_F_DUMP,
};
use super::decode::{attribute, attributes, number, path, text};
use super::encode::Attributes;
use super::intervals::Interval;
use super::ruleset::{
    Chain, ENI_OF, ENI_OF_RANGE, Hook, NO_SNAT, Ruleset, SETS, WITH_SETS, comment, steering_chain_mark,
};
use super::socket::Socket;
use super::transaction::{MEANWHILE, user_data};
use super::{NetfilterError, TABLE};
use crate::model::Family;

/// Our table in the kernel, or as a [`Ruleset`] would have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Such as "dormant"; we set none.
    pub(super) flags: u32,
    /// The table is there that stands in while this one is exchanged.
    pub(super) meanwhile: bool,
    /// Sets, maps and whatever else is in the table beside chains.
    pub(super) sets: u32,
    pub(super) chains: BTreeMap<String, ChainState>,
    pub(super) no_snat: BTreeSet<Interval>,
    pub(super) sources: BTreeMap<Interval, u32>,
}

/// A chain in the kernel. Rules are known by their comments, which say what they were when they were written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ChainState {
    hook: Option<HookState>,
    /// The user data of each rule.
    pub(super) rules: Vec<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
struct HookState {
    kind: String,
    number: u32,
    priority: i32,
    policy: u32,
}

impl Table {
    /// Whether the wanted table can be made of this one without deleting it.
    pub(super) fn has_shape_for(&self, wanted: &Self) -> bool {
        let same_hook = |(name, chain): (&String, &ChainState)| {
            self.chains.get(name).is_none_or(|seen| seen.hook == chain.hook)
        };
        self.flags == wanted.flags && self.sets == wanted.sets && wanted.chains.iter().all(same_hook)
    }
}

impl From<&Ruleset> for Table {
    fn from(ruleset: &Ruleset) -> Self {
        let chain = |chain: Chain| {
            let rules = chain.rules.iter().map(|rule| user_data(&comment(rule))).collect();
            (chain.name, ChainState { hook: chain.hook.map(HookState::from), rules })
        };
        Self {
            flags: 0,
            meanwhile: false,
            sets: if ruleset.family == WITH_SETS { SETS } else { 0 },
            chains: ruleset.all_chains().into_iter().map(chain).collect(),
            no_snat: ruleset.no_snat.clone(),
            sources: ruleset.steering.clone(),
        }
    }
}

impl From<Hook> for HookState {
    fn from(hook: Hook) -> Self {
        let kind = hook.kind().to_owned();
        Self { kind, number: hook.number(), priority: hook.priority(), policy: NF_ACCEPT }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {TABLE} flags {:#x} with {} sets", self.flags, self.sets)?;
        for (name, chain) in &self.chains {
            write!(f, "chain {name}")?;
            if let Some(HookState { kind, number, priority, policy }) = &chain.hook {
                write!(f, ": type {kind} hook {number} priority {priority} policy {policy}")?;
            }
            writeln!(f)?;
            for rule in &chain.rules {
                // Kind and length come before the comment, a NUL after it.
                let comment = rule.get(2..).and_then(text).unwrap_or("a rule without a comment of ours");
                writeln!(f, "  {comment}")?;
            }
        }
        self.no_snat.iter().try_for_each(|range| writeln!(f, "{NO_SNAT}: {range}"))?;
        self.sources.iter().try_for_each(|(source, mark)| writeln!(f, "{source}: mark {mark:#x}"))
    }
}

/// The table of a family in the kernel; `None` when there is none.
pub(super) fn observe(socket: &mut Socket, family: Family) -> Result<Option<Table>, NetfilterError> {
    let Some(table) = find(socket, family, TABLE)? else { return Ok(None) };
    let chains = chains(socket, family)?;
    let number_of = |kind| attribute(&table, kind).and_then(number).unwrap_or_default();
    let chain_count = u32::try_from(chains.len()).unwrap_or(u32::MAX);
    let (mut sources, mut no_snat) = (BTreeMap::new(), BTreeMap::new());
    if family == WITH_SETS {
        sources = singles(socket, ENI_OF)?;
        sources.extend(intervals(socket, ENI_OF_RANGE)?);
        no_snat = intervals(socket, NO_SNAT)?;
    }
    let sources = sources.into_iter().map(|(i, mark)| (i, mark.unwrap_or_default())).collect();
    Ok(Some(Table {
        flags: number_of(NFTA_TABLE_FLAGS),
        meanwhile: find(socket, family, MEANWHILE)?.is_some(),
        sets: number_of(NFTA_TABLE_USE).saturating_sub(chain_count),
        chains,
        no_snat: no_snat.into_keys().collect(),
        sources,
    }))
}

/// What the kernel says of a table; `None` when there is none of this name.
fn find(socket: &mut Socket, family: Family, table: &str) -> Result<Option<Vec<u8>>, NetfilterError> {
    let name = Attributes::default().text(NFTA_TABLE_NAME, table);
    Ok(socket.ask(family, NFT_MSG_GETTABLE, 0, &name)?.pop())
}

fn chains(socket: &mut Socket, family: Family) -> Result<BTreeMap<String, ChainState>, NetfilterError> {
    let mut chains: BTreeMap<String, ChainState> = BTreeMap::new();
    // The kernel tells the chains of every table of the family.
    for chain in socket.ask(family, NFT_MSG_GETCHAIN, NLM_F_DUMP, &Attributes::default())? {
        if let Some(name) = name_in(&chain, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME) {
            chains.insert(name.to_owned(), ChainState { hook: hook(&chain), rules: Vec::new() });
        }
    }
    let of_table = Attributes::default().text(NFTA_RULE_TABLE, TABLE);
    for rule in socket.ask(family, NFT_MSG_GETRULE, NLM_F_DUMP, &of_table)? {
        if let Some(name) = name_in(&rule, NFTA_RULE_TABLE, NFTA_RULE_CHAIN) {
            let user_data = attribute(&rule, NFTA_RULE_USERDATA).unwrap_or_default().to_vec();
            chains.entry(name.to_owned()).or_default().rules.push(user_data);
        }
    }
    Ok(chains)
}

/// The chains of all IPv4 tables: table and name.
pub(super) fn all_chains(socket: &mut Socket) -> Result<BTreeSet<(String, String)>, NetfilterError> {
    let name = |chain: &[u8], kind| attribute(chain, kind).and_then(text).map(str::to_owned);
    let chains = socket.ask(Family::V4, NFT_MSG_GETCHAIN, NLM_F_DUMP, &Attributes::default())?;
    let both = |chain: &Vec<u8>| Some((name(chain, NFTA_CHAIN_TABLE)?, name(chain, NFTA_CHAIN_NAME)?));
    Ok(chains.iter().filter_map(both).collect())
}

/// The name of something that is in our table.
fn name_in(object: &[u8], table: u16, name: u16) -> Option<&str> {
    let ours = attribute(object, table).and_then(text) == Some(TABLE);
    attribute(object, name).and_then(text).filter(|_| ours)
}

fn hook(chain: &[u8]) -> Option<HookState> {
    let kind = attribute(chain, NFTA_CHAIN_TYPE).and_then(text)?.to_owned();
    let priority = path(chain, &[NFTA_CHAIN_HOOK, NFTA_HOOK_PRIORITY]).and_then(number)?.cast_signed();
    let policy = attribute(chain, NFTA_CHAIN_POLICY).and_then(number)?;
    path(chain, &[NFTA_CHAIN_HOOK, NFTA_HOOK_HOOKNUM]).and_then(number).map(|number| HookState {
        kind,
        number,
        priority,
        policy,
    })
}

/// The intervals of a set, and in a map the mark that each leads to.
fn intervals(socket: &mut Socket, set: &str) -> Result<BTreeMap<Interval, Option<u32>>, NetfilterError> {
    Ok(paired(elements(socket, set)?))
}

/// The addresses of a set without intervals, likewise.
fn singles(socket: &mut Socket, set: &str) -> Result<BTreeMap<Interval, Option<u32>>, NetfilterError> {
    let single = |((key, _), mark)| (Interval { first: key, last: key }, mark);
    Ok(elements(socket, set)?.into_iter().map(single).collect())
}

/// The elements of a set: keys, and in a map the mark that each leads to.
fn elements(socket: &mut Socket, set: &str) -> Result<Elements, NetfilterError> {
    let of_set =
        Attributes::default().text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, set);
    let answers = socket.ask(WITH_SETS, NFT_MSG_GETSETELEM, NLM_F_DUMP, &of_set)?;
    let lists = answers.iter().filter_map(|answer| attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS));
    Ok(lists.flat_map(attributes).filter_map(|(_, element)| edge(element)).collect())
}

type Elements = BTreeMap<(u32, Side), Option<u32>>;

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

fn paired(edges: Elements) -> BTreeMap<Interval, Option<u32>> {
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
