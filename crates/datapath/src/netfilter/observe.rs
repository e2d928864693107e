//! What of our table the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::constants::{
    IPV4_BYTES, NF_ACCEPT, NFT_DATA_VERDICT, NFT_JUMP, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_SET_ELEM_INTERVAL_END, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE, NFTA_DATA_VERDICT,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA, NFTA_SET_DATA_TYPE, NFTA_SET_DESC, NFTA_SET_DESC_SIZE, NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_EXPR, NFTA_SET_ELEM_EXPRESSIONS, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_FLAGS,
    NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE, NFTA_SET_NAME, NFTA_SET_POLICY, NFTA_SET_TABLE, NFTA_TABLE_FLAGS,
    NFTA_TABLE_NAME, NFTA_TABLE_USE, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE, NLM_F_DUMP, TYPE_IPADDR,
};
use super::decode::{attribute, attributes, number, path, text};
use super::encode::Attributes;
use super::intervals::Interval;
use super::ruleset::{
    Chain, ENI_OF, ENI_OF_RANGE, Hook, NO_SNAT, Ruleset, SETS, Set, WITH_SETS, comment, steering_chain_mark,
};
use super::socket::Socket;
use super::transaction::{MEANWHILE, set_flags, user_data};
use super::{NetfilterError, TABLE};
use crate::model::Family;

/// Our table in the kernel, or as a [`Ruleset`] would have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Such as "dormant"; we set none.
    pub(super) flags: u32,
    /// The table is there that stands in while this one is exchanged.
    pub(super) meanwhile: bool,
    /// Sets and maps by name.
    pub(super) sets: BTreeMap<String, SetState>,
    /// How much is in the table besides chains and sets.
    pub(super) others: u32,
    /// Elements of our sets of which we have none like them: for all that no other element has, or with conditions of their own.
    pub(super) strange: usize,
    pub(super) chains: BTreeMap<String, ChainState>,
    pub(super) no_snat: BTreeSet<Interval>,
    pub(super) sources: BTreeMap<Interval, u32>,
}

/// A set or map in the kernel; what we do not set is 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetState {
    flags: u32,
    key_type: u32,
    key_bytes: u32,
    data_type: u32,
    elements_max: u32,
    /// Whether the kernel is to choose a fast or a small kind.
    policy: u32,
}

/// The expressions of each chain's rules, as the kernel tells them.
pub(super) type Expressions = BTreeMap<String, Vec<Vec<u8>>>;

/// A mark that no ENI has, for an element that leads elsewhere than to the chain of one.
const ELSEWHERE: u32 = u32::MAX;

/// A chain in the kernel. Rules are known by their comments, which say what they were when they were written; whether they still are is for
/// [`Table::doubt`].
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
        let whole = |table: &Self| (table.flags, table.others, table.strange);
        whole(self) == whole(wanted) && self.sets == wanted.sets && wanted.chains.iter().all(same_hook)
    }

    /// Whether a chain stays untouched while the wanted table is made of this one.
    pub(super) fn keeps(&self, chain: &str, wanted: &Self) -> bool {
        let rules = |table: &Self| table.chains.get(chain).map(|chain| chain.rules.clone());
        self.has_shape_for(wanted) && rules(self) == rules(wanted)
    }

    /// Takes the comments from rules that are not what was read after we had written them, in `known`: somebody has changed them and left
    /// the comment, or copied it. `strangers` says that chains which are not in `known` are not believed either.
    pub(super) fn doubt(&mut self, told: &Expressions, known: &Expressions, strangers: bool) {
        for (name, chain) in &mut self.chains {
            let believed = known.get(name).map_or(!strangers, |known| told.get(name) == Some(known));
            if !believed {
                chain.rules.iter_mut().for_each(Vec::clear);
            }
        }
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
            sets: SETS.into_iter().filter(|_| ruleset.family == WITH_SETS).map(wanted_set).collect(),
            others: 0,
            strange: 0,
            chains: ruleset.all_chains().into_iter().map(chain).collect(),
            no_snat: ruleset.no_snat.clone(),
            sources: ruleset.steering.clone(),
        }
    }
}

fn wanted_set(set: Set) -> (String, SetState) {
    let data_type = if set.leads_to_chains { NFT_DATA_VERDICT } else { 0 };
    let state = SetState {
        flags: set_flags(set),
        key_type: TYPE_IPADDR,
        key_bytes: IPV4_BYTES,
        data_type,
        elements_max: set.elements_max.unwrap_or_default(),
        policy: 0,
    };
    (set.name.to_owned(), state)
}

impl From<Hook> for HookState {
    fn from(hook: Hook) -> Self {
        let kind = hook.kind().to_owned();
        Self { kind, number: hook.number(), priority: hook.priority(), policy: NF_ACCEPT }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {TABLE} flags {:#x} with {} sets", self.flags, self.sets.len())?;
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

/// The table of a family in the kernel, and what its rules say; `None` when there is none.
pub(super) fn observe(
    socket: &mut Socket,
    family: Family,
) -> Result<Option<(Table, Expressions)>, NetfilterError> {
    let Some(table) = find(socket, family, TABLE)? else { return Ok(None) };
    let (chains, expressions) = chains(socket, family)?;
    let sets = sets(socket, family)?;
    let number_of = |kind| attribute(&table, kind).and_then(number).unwrap_or_default();
    let known = u32::try_from(chains.len() + sets.len()).unwrap_or(u32::MAX);
    let (mut singles, mut ranges, mut no_snat) =
        (Elements::default(), Elements::default(), Elements::default());
    if family == WITH_SETS {
        singles = elements(socket, ENI_OF)?;
        ranges = elements(socket, ENI_OF_RANGE)?;
        no_snat = elements(socket, NO_SNAT)?;
    }
    let strange = singles.strange + ranges.strange + no_snat.strange;
    let sources = singles.alone().into_iter().chain(ranges.paired());
    let sources = sources.map(|(interval, mark)| (interval, mark.unwrap_or(ELSEWHERE))).collect();
    let table = Table {
        flags: number_of(NFTA_TABLE_FLAGS),
        meanwhile: find(socket, family, MEANWHILE)?.is_some(),
        sets,
        others: number_of(NFTA_TABLE_USE).saturating_sub(known),
        strange,
        chains,
        no_snat: no_snat.paired().into_keys().collect(),
        sources,
    };
    Ok(Some((table, expressions)))
}

/// What the kernel says of a table; `None` when there is none of this name.
fn find(socket: &mut Socket, family: Family, table: &str) -> Result<Option<Vec<u8>>, NetfilterError> {
    let name = Attributes::default().text(NFTA_TABLE_NAME, table);
    Ok(socket.ask(family, NFT_MSG_GETTABLE, 0, &name)?.pop())
}

fn chains(
    socket: &mut Socket,
    family: Family,
) -> Result<(BTreeMap<String, ChainState>, Expressions), NetfilterError> {
    let mut chains: BTreeMap<String, ChainState> = BTreeMap::new();
    // The kernel tells the chains of every table of the family.
    for chain in socket.ask(family, NFT_MSG_GETCHAIN, NLM_F_DUMP, &Attributes::default())? {
        if let Some(name) = name_in(&chain, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME) {
            chains.insert(name.to_owned(), ChainState { hook: hook(&chain), rules: Vec::new() });
        }
    }
    let mut expressions = Expressions::new();
    let of_table = Attributes::default().text(NFTA_RULE_TABLE, TABLE);
    for rule in socket.ask(family, NFT_MSG_GETRULE, NLM_F_DUMP, &of_table)? {
        if let Some(name) = name_in(&rule, NFTA_RULE_TABLE, NFTA_RULE_CHAIN) {
            let told = |kind| attribute(&rule, kind).unwrap_or_default().to_vec();
            chains.entry(name.to_owned()).or_default().rules.push(told(NFTA_RULE_USERDATA));
            expressions.entry(name.to_owned()).or_default().push(told(NFTA_RULE_EXPRESSIONS));
        }
    }
    Ok((chains, expressions))
}

fn sets(socket: &mut Socket, family: Family) -> Result<BTreeMap<String, SetState>, NetfilterError> {
    let of_table = Attributes::default().text(NFTA_SET_TABLE, TABLE);
    let told = socket.ask(family, NFT_MSG_GETSET, NLM_F_DUMP, &of_table)?;
    let state = |set: &[u8]| {
        let number_of = |kind| attribute(set, kind).and_then(number).unwrap_or_default();
        SetState {
            flags: number_of(NFTA_SET_FLAGS),
            key_type: number_of(NFTA_SET_KEY_TYPE),
            key_bytes: number_of(NFTA_SET_KEY_LEN),
            data_type: number_of(NFTA_SET_DATA_TYPE),
            elements_max: path(set, &[NFTA_SET_DESC, NFTA_SET_DESC_SIZE])
                .and_then(number)
                .unwrap_or_default(),
            policy: number_of(NFTA_SET_POLICY),
        }
    };
    let named = |set: &Vec<u8>| Some((name_in(set, NFTA_SET_TABLE, NFTA_SET_NAME)?.to_owned(), state(set)));
    Ok(told.iter().filter_map(named).collect())
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

/// The elements of a set: keys, and in a map the mark that each leads to.
fn elements(socket: &mut Socket, set: &str) -> Result<Elements, NetfilterError> {
    let of_set =
        Attributes::default().text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, set);
    let answers = socket.ask(WITH_SETS, NFT_MSG_GETSETELEM, NLM_F_DUMP, &of_set)?;
    let lists = answers.iter().filter_map(|answer| attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS));
    let mut elements = Elements::default();
    for (_, element) in lists.flat_map(attributes) {
        match edge(element) {
            Some((key, mark)) => drop(elements.edges.insert(key, mark)),
            None => elements.strange += 1,
        }
    }
    Ok(elements)
}

/// What a set holds.
#[derive(Debug, Default)]
struct Elements {
    edges: BTreeMap<(u32, Side), Option<u32>>,
    strange: usize,
}

/// Which end of an interval an element is; where two touch, the end comes before the next one's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    End,
    Start,
}

/// `None` for one that is of a form that ours do not have.
fn edge(element: &[u8]) -> Option<((u32, Side), Option<u32>)> {
    let conditions = [NFTA_SET_ELEM_EXPR, NFTA_SET_ELEM_EXPRESSIONS];
    if conditions.iter().any(|kind| attribute(element, *kind).is_some()) {
        return None;
    }
    let key = path(element, &[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE]).and_then(number)?;
    let flags = attribute(element, NFTA_SET_ELEM_FLAGS).and_then(number).unwrap_or_default();
    let side = if flags & NFT_SET_ELEM_INTERVAL_END == 0 { Side::Start } else { Side::End };
    let verdict = path(element, &[NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT]).unwrap_or_default();
    let is_jump = attribute(verdict, NFTA_VERDICT_CODE).and_then(number) == Some(NFT_JUMP);
    let chain = attribute(verdict, NFTA_VERDICT_CHAIN).and_then(text).filter(|_| is_jump);
    Some(((key, side), chain.and_then(steering_chain_mark)))
}

impl Elements {
    /// Single addresses.
    fn alone(self) -> BTreeMap<Interval, Option<u32>> {
        let single = |((key, _), mark)| (Interval { first: key, last: key }, mark);
        self.edges.into_iter().map(single).collect()
    }

    /// Intervals.
    fn paired(self) -> BTreeMap<Interval, Option<u32>> {
        let mut intervals = BTreeMap::new();
        let mut open: Option<(u32, Option<u32>)> = None;
        for ((key, side), mark) in self.edges {
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
}
