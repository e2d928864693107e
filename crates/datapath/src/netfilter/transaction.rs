//! A ruleset, or what is to change of its sources, as one transaction.

use std::collections::BTreeMap;

use super::TABLE;
use super::constants::{
    NF_ACCEPT, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, NFT_DATA_VERDICT, NFT_JUMP, NFT_MSG_DELCHAIN,
    NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, NFT_SET_ELEM_INTERVAL_END, NFT_SET_INTERVAL, NFT_SET_MAP,
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_LIST_ELEM, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_SET_DATA_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_FLAGS, NFTA_SET_ID, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE,
    NFTA_SET_NAME, NFTA_SET_TABLE, NFTA_TABLE_NAME, NFTA_TABLE_USERDATA, NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE, NFTNL_UDATA_TABLE_COMMENT, NLM_F_APPEND, NLM_F_CREATE, TYPE_IPADDR,
};
use super::encode::{Attributes, Batch};
use super::expression::expressions;
use super::intervals::Interval;
use super::observe::Steering;
use super::ruleset::{Chain, ENI_OF, Hook, NO_SNAT, Ruleset, steering_chain_name};

/// Intervals in one message: an attribute holds 64 KiB, and an interval takes less than 100 bytes of it.
const INTERVALS_MAX: usize = 500;

impl Ruleset {
    /// The bytes of the transaction that puts this table in place of the one before. Pure.
    #[must_use]
    pub fn transaction(&self) -> Vec<u8> {
        self.replacement().finish().0
    }

    /// Adds the table so that it can be deleted, then builds it anew: packets meet the old one or the new one.
    pub(super) fn replacement(&self) -> Batch {
        let mut batch = removal();
        let table = table().bytes(NFTA_TABLE_USERDATA, &user_data(&self.comment()));
        batch.step(format!("add table {TABLE}"), NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        add_sets(&mut batch);
        change_elements(&mut batch, Change::Add, NO_SNAT, &plain(self));
        for mark in self.marks() {
            add_chain(&mut batch, &self.steering_chain(mark));
        }
        change_elements(&mut batch, Change::Add, ENI_OF, &jumps(&self.steering));
        for chain in &self.chains {
            add_chain(&mut batch, chain);
        }
        batch
    }

    /// Changes the sources, and nothing else, from what was seen to what this table has.
    pub(super) fn resteering(&self, seen: &Steering) -> Batch {
        let differs = |a: &BTreeMap<Interval, u32>, b: &BTreeMap<Interval, u32>| {
            a.iter().filter(|(i, mark)| b.get(i) != Some(mark)).map(|(i, mark)| (*i, *mark)).collect()
        };
        let marks = self.marks();
        let mut batch = Batch::new();
        for mark in marks.difference(&seen.chains) {
            add_chain(&mut batch, &self.steering_chain(*mark));
        }
        let (gone, new) = (differs(&seen.sources, &self.steering), differs(&self.steering, &seen.sources));
        change_elements(&mut batch, Change::Delete, ENI_OF, &jumps(&gone));
        change_elements(&mut batch, Change::Add, ENI_OF, &jumps(&new));
        for mark in seen.chains.difference(&marks) {
            let name = steering_chain_name(*mark);
            let chain = Attributes::default().text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, &name);
            batch.step(format!("delete chain {name}"), NFT_MSG_DELCHAIN, 0, &chain);
        }
        batch
    }
}

/// Leaves no table, whether there was one or not.
pub(super) fn removal() -> Batch {
    let mut batch = Batch::new();
    batch.step(format!("find or add table {TABLE}"), NFT_MSG_NEWTABLE, NLM_F_CREATE, &table());
    batch.step(format!("delete table {TABLE}"), NFT_MSG_DELTABLE, 0, &table());
    batch
}

fn table() -> Attributes {
    Attributes::default().text(NFTA_TABLE_NAME, TABLE)
}

/// A comment in the form that `nft` reads: kind, length, text with NUL.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![NFTNL_UDATA_TABLE_COMMENT, length];
    data.extend(comment.as_bytes());
    data.push(0);
    data
}

fn add_sets(batch: &mut Batch) {
    let set = |name, id, flags| {
        Attributes::default()
            .text(NFTA_SET_TABLE, TABLE)
            .text(NFTA_SET_NAME, name)
            .number(NFTA_SET_FLAGS, flags)
            .number(NFTA_SET_KEY_TYPE, TYPE_IPADDR)
            .number(NFTA_SET_KEY_LEN, 4)
            .number(NFTA_SET_ID, id)
    };
    let no_snat = set(NO_SNAT, 1, NFT_SET_INTERVAL);
    let eni_of = set(ENI_OF, 2, NFT_SET_INTERVAL | NFT_SET_MAP)
        .number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT)
        .number(NFTA_SET_DATA_LEN, 0);
    batch.step(format!("add set {NO_SNAT}"), NFT_MSG_NEWSET, NLM_F_CREATE, &no_snat);
    batch.step(format!("add map {ENI_OF}"), NFT_MSG_NEWSET, NLM_F_CREATE, &eni_of);
}

fn add_chain(batch: &mut Batch, chain: &Chain) {
    let mut attributes =
        Attributes::default().text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, &chain.name);
    if let Some(hook) = chain.hook {
        attributes = attributes
            .nest(NFTA_CHAIN_HOOK, &hook_attributes(hook))
            .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .text(NFTA_CHAIN_TYPE, hook.kind());
    }
    batch.step(format!("add chain {}", chain.name), NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attributes);
    for rule in &chain.rules {
        let attributes = Attributes::default()
            .text(NFTA_RULE_TABLE, TABLE)
            .text(NFTA_RULE_CHAIN, &chain.name)
            .nest(NFTA_RULE_EXPRESSIONS, &expressions(rule));
        let what = format!("add a rule to chain {}", chain.name);
        batch.step(what, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
    }
}

fn hook_attributes(hook: Hook) -> Attributes {
    let number = match hook {
        Hook::BeforeDnat | Hook::AfterDnat => NF_INET_PRE_ROUTING,
        Hook::SourceNat => NF_INET_POST_ROUTING,
    };
    Attributes::default()
        .number(NFTA_HOOK_HOOKNUM, number)
        .bytes(NFTA_HOOK_PRIORITY, &hook.priority().to_be_bytes())
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Add,
    Delete,
}

/// An interval and, in a map, the chain it leads to.
type Element = (Interval, Option<String>);

fn plain(ruleset: &Ruleset) -> Vec<Element> {
    ruleset.no_snat.iter().map(|interval| (*interval, None)).collect()
}

fn jumps(sources: &BTreeMap<Interval, u32>) -> Vec<Element> {
    sources.iter().map(|(interval, mark)| (*interval, Some(steering_chain_name(*mark)))).collect()
}

fn change_elements(batch: &mut Batch, change: Change, set: &str, elements: &[Element]) {
    let (what, kind, flags) = match change {
        Change::Add => (format!("add elements to {set}"), NFT_MSG_NEWSETELEM, NLM_F_CREATE),
        Change::Delete => (format!("delete elements of {set}"), NFT_MSG_DELSETELEM, 0),
    };
    for some in elements.chunks(INTERVALS_MAX) {
        let edges = some.iter().flat_map(edges);
        let list = edges.fold(Attributes::default(), |list, edge| list.nest(NFTA_LIST_ELEM, &edge));
        let attributes = Attributes::default()
            .text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
            .text(NFTA_SET_ELEM_LIST_SET, set)
            .nest(NFTA_SET_ELEM_LIST_ELEMENTS, &list);
        batch.step(what.clone(), kind, flags, &attributes);
    }
}

/// The kernel keeps an interval as its first address and the one after its last, which the whole space lacks.
fn edges((interval, chain): &Element) -> Vec<Attributes> {
    let key = |address: u32| {
        let value = Attributes::default().bytes(NFTA_DATA_VALUE, &address.to_be_bytes());
        Attributes::default().nest(NFTA_SET_ELEM_KEY, &value)
    };
    let start = match chain {
        None => key(interval.first),
        Some(chain) => key(interval.first).nest(NFTA_SET_ELEM_DATA, &jump(chain)),
    };
    let end = interval.last.checked_add(1);
    let end = end.map(|end| key(end).number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END));
    [start].into_iter().chain(end).collect()
}

fn jump(chain: &str) -> Attributes {
    let verdict = Attributes::default().number(NFTA_VERDICT_CODE, NFT_JUMP).text(NFTA_VERDICT_CHAIN, chain);
    Attributes::default().nest(NFTA_DATA_VERDICT, &verdict)
}
