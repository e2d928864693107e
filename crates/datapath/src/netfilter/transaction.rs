//! From the table that the kernel holds to the wanted one: which transactions, and what is in them.

use std::collections::{BTreeMap, BTreeSet};

use super::TABLE;
use super::constants::{
    IPV4_BYTES, NF_ACCEPT, NFT_DATA_VERDICT, NFT_JUMP, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE, NFT_SET_ELEM_INTERVAL_END, NFT_SET_INTERVAL, NFT_SET_MAP, NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_LIST_ELEM, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, NFTA_SET_DATA_LEN, NFTA_SET_DATA_TYPE,
    NFTA_SET_DESC, NFTA_SET_DESC_SIZE, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_FLAGS,
    NFTA_SET_ID, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE, NFTA_SET_NAME, NFTA_SET_TABLE, NFTA_TABLE_NAME,
    NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE, NFTNL_UDATA_RULE_COMMENT, NLM_F_APPEND, NLM_F_CREATE, TYPE_IPADDR,
};
use super::encode::{Attributes, Batch};
use super::expression::expressions;
use super::intervals::Interval;
use super::observe::Table;
use super::ruleset::{
    Chain, ENI_OF, ENI_OF_RANGE, Hook, NO_SNAT, Ruleset, SETS, Set, WITH_SETS, comment, steering_chain_name,
};
use crate::model::Family;

/// Intervals in one message: an attribute holds 64 KiB, and an interval takes less than 100 bytes of it.
const INTERVALS_MAX: usize = 500;

/// The table that stands in for ours while that is exchanged for one of another shape.
pub(super) const MEANWHILE: &str = "aws-vpc-cni-meanwhile";

/// The transactions, in their order, that make the kernel's table the wanted one; none when it is.
///
/// A table that is there is changed in place, and what stays is not touched: the kernel swaps the rules of a chain for
/// a packet at once, but a new chain's hook and a new set's elements come into effect at moments of their own, so that
/// packets would slip through while a whole table is exchanged for another. One of another shape has to be exchanged: the wanted
/// one stands beside it under another name before it goes, and until the new one is whole. What both say of a packet they say
/// twice, which changes nothing.
pub(super) fn plan(seen: Option<&Table>, wanted: &Table, ruleset: &Ruleset) -> Vec<Batch> {
    match seen {
        Some(seen) if seen == wanted => Vec::new(),
        Some(seen) if seen.has_shape_for(wanted) => vec![adjustment(seen, wanted, ruleset)],
        Some(_) => {
            let mut steps = Vec::from(creation(ruleset, MEANWHILE));
            steps.extend(creation(ruleset, TABLE));
            steps.push(removal(ruleset.family, MEANWHILE));
            steps
        }
        None => creation(ruleset, TABLE).into(),
    }
}

/// First what the rules look up, then, when that is in effect, the chains that packets enter.
fn creation(ruleset: &Ruleset, table: &'static str) -> [Batch; 2] {
    let mut sets = removal(ruleset.family, table);
    sets.step(format!("add table {table}"), NFT_MSG_NEWTABLE, NLM_F_CREATE, &named(table));
    if ruleset.family == WITH_SETS {
        add_sets(&mut sets);
    }
    change_elements(&mut sets, Change::Add, NO_SNAT, &plain(&ruleset.no_snat));
    for mark in ruleset.marks() {
        let chain = ruleset.steering_chain(mark);
        add_chain(&mut sets, &chain);
        add_rules(&mut sets, &chain);
    }
    change_steering(&mut sets, Change::Add, &ruleset.steering);
    let mut chains = Batch::new(ruleset.family, table);
    for chain in &ruleset.chains {
        add_chain(&mut chains, chain);
        add_rules(&mut chains, chain);
    }
    [sets, chains]
}

fn adjustment(seen: &Table, wanted: &Table, ruleset: &Ruleset) -> Batch {
    let mut batch = Batch::new(ruleset.family, TABLE);
    for chain in ruleset.all_chains() {
        let rules = wanted.chains.get(&chain.name).map(|chain| &chain.rules);
        match seen.chains.get(&chain.name) {
            Some(now) if Some(&now.rules) == rules => continue,
            Some(_) => flush_chain(&mut batch, &chain.name),
            None => add_chain(&mut batch, &chain),
        }
        add_rules(&mut batch, &chain);
    }
    let minus = |a: &BTreeSet<Interval>, b: &BTreeSet<Interval>| plain(&a.difference(b).copied().collect());
    change_elements(&mut batch, Change::Delete, NO_SNAT, &minus(&seen.no_snat, &wanted.no_snat));
    change_elements(&mut batch, Change::Add, NO_SNAT, &minus(&wanted.no_snat, &seen.no_snat));
    let minus = |a: &BTreeMap<Interval, u32>, b: &BTreeMap<Interval, u32>| {
        a.iter().filter(|(i, mark)| b.get(i) != Some(mark)).map(|(i, mark)| (*i, *mark)).collect()
    };
    change_steering(&mut batch, Change::Delete, &minus(&seen.sources, &wanted.sources));
    change_steering(&mut batch, Change::Add, &minus(&wanted.sources, &seen.sources));
    let gone: Vec<&String> = seen.chains.keys().filter(|name| !wanted.chains.contains_key(*name)).collect();
    // All are emptied before the first goes: the kernel keeps a chain that another one jumps to.
    gone.iter().for_each(|name| flush_chain(&mut batch, name));
    for name in gone {
        let chain = Attributes::default().text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, name);
        batch.step(format!("delete chain {name}"), NFT_MSG_DELCHAIN, 0, &chain);
    }
    if seen.meanwhile {
        delete_table(&mut batch, MEANWHILE);
    }
    batch
}

/// Leaves no table of this name, whether there was one or not.
pub(super) fn removal(family: Family, table: &'static str) -> Batch {
    let mut batch = Batch::new(family, table);
    delete_table(&mut batch, table);
    batch
}

fn delete_table(batch: &mut Batch, table: &str) {
    batch.step(format!("find or add table {table}"), NFT_MSG_NEWTABLE, NLM_F_CREATE, &named(table));
    batch.step(format!("delete table {table}"), NFT_MSG_DELTABLE, 0, &named(table));
}

fn named(table: &str) -> Attributes {
    Attributes::default().text(NFTA_TABLE_NAME, table)
}

/// A comment in the form that `nft` reads: kind, length, text with NUL.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![NFTNL_UDATA_RULE_COMMENT, length];
    data.extend(comment.as_bytes());
    data.push(0);
    data
}

/// The kernel's flags of a set.
pub(super) const fn set_flags(set: Set) -> u32 {
    let ranges = if set.is_of_ranges { NFT_SET_INTERVAL } else { 0 };
    ranges | if set.leads_to_chains { NFT_SET_MAP } else { 0 }
}

fn add_sets(batch: &mut Batch) {
    for (set, id) in SETS.into_iter().zip(1..) {
        let mut attributes = Attributes::default()
            .text(NFTA_SET_TABLE, batch.table)
            .text(NFTA_SET_NAME, set.name)
            .number(NFTA_SET_FLAGS, set_flags(set))
            .number(NFTA_SET_KEY_TYPE, TYPE_IPADDR)
            .number(NFTA_SET_KEY_LEN, IPV4_BYTES)
            .number(NFTA_SET_ID, id);
        if set.leads_to_chains {
            attributes = attributes.number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT).number(NFTA_SET_DATA_LEN, 0);
        }
        if let Some(most) = set.elements_max {
            let size = Attributes::default().number(NFTA_SET_DESC_SIZE, most);
            attributes = attributes.nest(NFTA_SET_DESC, &size);
        }
        batch.step(format!("add set {}", set.name), NFT_MSG_NEWSET, NLM_F_CREATE, &attributes);
    }
}

fn add_chain(batch: &mut Batch, chain: &Chain) {
    let mut attributes =
        Attributes::default().text(NFTA_CHAIN_TABLE, batch.table).text(NFTA_CHAIN_NAME, &chain.name);
    if let Some(hook) = chain.hook {
        attributes = attributes
            .nest(NFTA_CHAIN_HOOK, &hook_attributes(hook))
            .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .text(NFTA_CHAIN_TYPE, hook.kind());
    }
    batch.step(format!("add chain {}", chain.name), NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attributes);
}

fn flush_chain(batch: &mut Batch, name: &str) {
    let all = Attributes::default().text(NFTA_RULE_TABLE, batch.table).text(NFTA_RULE_CHAIN, name);
    batch.step(format!("flush chain {name}"), NFT_MSG_DELRULE, 0, &all);
}

fn add_rules(batch: &mut Batch, chain: &Chain) {
    for rule in &chain.rules {
        let attributes = Attributes::default()
            .text(NFTA_RULE_TABLE, batch.table)
            .text(NFTA_RULE_CHAIN, &chain.name)
            .nest(NFTA_RULE_EXPRESSIONS, &expressions(rule))
            .bytes(NFTA_RULE_USERDATA, &user_data(&comment(rule)));
        let what = format!("add a rule to chain {}", chain.name);
        batch.step(what, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
    }
}

fn hook_attributes(hook: Hook) -> Attributes {
    Attributes::default()
        .number(NFTA_HOOK_HOOKNUM, hook.number())
        .bytes(NFTA_HOOK_PRIORITY, &hook.priority().to_be_bytes())
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Add,
    Delete,
}

/// An interval and, in a map, the chain it leads to.
type Element = (Interval, Option<String>);

fn plain(intervals: &BTreeSet<Interval>) -> Vec<Element> {
    intervals.iter().map(|interval| (*interval, None)).collect()
}

/// Single addresses and ranges are in a map each.
fn change_steering(batch: &mut Batch, change: Change, sources: &BTreeMap<Interval, u32>) {
    // What goes is told by its key alone: somebody may have let it lead elsewhere.
    let chain = |mark: &u32| matches!(change, Change::Add).then(|| steering_chain_name(*mark));
    let jump = |(interval, mark): (&Interval, &u32)| (*interval, chain(mark));
    let (singles, ranges): (Vec<Element>, Vec<Element>) =
        sources.iter().map(jump).partition(|(interval, _)| interval.is_single());
    change_elements(batch, change, ENI_OF, &singles);
    change_elements(batch, change, ENI_OF_RANGE, &ranges);
}

fn change_elements(batch: &mut Batch, change: Change, set: &str, elements: &[Element]) {
    let (what, kind, flags) = match change {
        Change::Add => (format!("add elements to {set}"), NFT_MSG_NEWSETELEM, NLM_F_CREATE),
        Change::Delete => (format!("delete elements of {set}"), NFT_MSG_DELSETELEM, 0),
    };
    for some in elements.chunks(INTERVALS_MAX) {
        let edges = some.iter().flat_map(|element| match set {
            ENI_OF => vec![start(element)],
            _ => edges(element),
        });
        let list = edges.fold(Attributes::default(), |list, edge| list.nest(NFTA_LIST_ELEM, &edge));
        let attributes = Attributes::default()
            .text(NFTA_SET_ELEM_LIST_TABLE, batch.table)
            .text(NFTA_SET_ELEM_LIST_SET, set)
            .nest(NFTA_SET_ELEM_LIST_ELEMENTS, &list);
        batch.step(what.clone(), kind, flags, &attributes);
    }
}

/// The kernel keeps an interval as its first address and the one after its last, which the whole space lacks.
fn edges(element: &Element) -> Vec<Attributes> {
    let end = element.0.last.checked_add(1);
    let end = end.map(|end| key(end).number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END));
    [start(element)].into_iter().chain(end).collect()
}

/// The first address of an interval; of one that is a single address, all there is.
fn start((interval, chain): &Element) -> Attributes {
    match chain {
        None => key(interval.first),
        Some(chain) => key(interval.first).nest(NFTA_SET_ELEM_DATA, &jump(chain)),
    }
}

fn key(address: u32) -> Attributes {
    let value = Attributes::default().bytes(NFTA_DATA_VALUE, &address.to_be_bytes());
    Attributes::default().nest(NFTA_SET_ELEM_KEY, &value)
}

fn jump(chain: &str) -> Attributes {
    let verdict = Attributes::default().number(NFTA_VERDICT_CODE, NFT_JUMP).text(NFTA_VERDICT_CHAIN, chain);
    Attributes::default().nest(NFTA_DATA_VERDICT, &verdict)
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::super::{NatSpec, SnatPorts, ruleset};
    use super::*;

    fn steps(seen: Option<&NatSpec>, wanted: &NatSpec) -> Vec<Vec<String>> {
        let seen = seen.map(|spec| Table::from(&ruleset(spec)));
        let wanted = ruleset(wanted);
        let batches = plan(seen.as_ref(), &Table::from(&wanted), &wanted);
        batches.into_iter().map(|batch| batch.finish().1).collect()
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        assert!(steps(Some(&spec()), &spec()).is_empty());
    }

    #[test]
    fn a_new_table_has_its_elements_before_packets_enter_it() {
        let transactions = steps(None, &spec());

        assert_eq!(transactions.len(), 2);
        assert!(transactions[0].iter().any(|step| step == "add elements to no_snat"));
        assert!(!transactions[0].iter().any(|step| step.contains("chain from_pods")), "{transactions:?}");
        assert_eq!(transactions[1][0], "add chain node_port");
    }

    #[test]
    fn a_table_of_another_shape_goes_while_the_wanted_one_stands_beside_it() {
        let wanted = ruleset(&spec());
        let dormant = Table { flags: 1, ..Table::from(&wanted) };
        let batches = plan(Some(&dormant), &Table::from(&wanted), &wanted);
        let ends = batches.into_iter().map(|batch| batch.finish().1).map(|steps| {
            [steps.first().cloned().unwrap_or_default(), steps.last().cloned().unwrap_or_default()]
                .join(", …, ")
        });

        assert_eq!(
            ends.collect::<Vec<_>>(),
            [
                "find or add table aws-vpc-cni-meanwhile, …, add elements to eni_of_range",
                "add chain node_port, …, add a rule to chain source_nat",
                "find or add table aws-vpc-cni, …, add elements to eni_of_range",
                "add chain node_port, …, add a rule to chain source_nat",
                "find or add table aws-vpc-cni-meanwhile, …, delete table aws-vpc-cni-meanwhile",
            ]
        );
    }

    #[test]
    fn a_table_that_stood_in_when_the_daemon_was_killed_goes() {
        let wanted = ruleset(&spec());
        let seen = Table { meanwhile: true, ..Table::from(&wanted) };
        let batches = plan(Some(&seen), &Table::from(&wanted), &wanted);
        let steps: Vec<String> = batches.into_iter().flat_map(|batch| batch.finish().1).collect();

        assert_eq!(steps, ["find or add table aws-vpc-cni-meanwhile", "delete table aws-vpc-cni-meanwhile"]);
    }

    #[test]
    fn a_new_source_is_one_element() {
        let mut more = spec();
        more.sources.insert("10.0.0.21".parse().unwrap(), 0x100);

        assert_eq!(steps(Some(&spec()), &more), [["add elements to eni_of"]]);
        assert_eq!(steps(Some(&more), &spec()), [["delete elements of eni_of"]]);
    }

    #[test]
    fn a_new_eni_brings_a_chain_which_goes_with_it() {
        let mut more = spec();
        more.sources.insert("10.0.2.20".parse().unwrap(), 0x300);

        let come = ["add chain mark_300", "add a rule to chain mark_300", "add elements to eni_of"];
        let go = ["delete elements of eni_of", "flush chain mark_300", "delete chain mark_300"];
        assert_eq!(steps(Some(&spec()), &more), [come]);
        assert_eq!(steps(Some(&more), &spec()), [go]);
    }

    #[test]
    fn another_port_choice_touches_only_the_chain_that_translates() {
        let plain = NatSpec { snat: Some(SnatPorts::Plain), ..spec() };

        assert_eq!(
            steps(Some(&spec()), &plain),
            [["flush chain source_nat", "add a rule to chain source_nat"]]
        );
    }

    /// Bytes of `nft -f` 1.0.6 around any transaction, captured with strace; nft numbers from its own start.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_transaction_begins_and_ends_as_those_of_nft() {
        let (bytes, _) = removal(Family::V4, TABLE).finish();
        let begin = [20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
        let end = [20, 0, 0, 0, 0x11, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];

        assert!(bytes.starts_with(&begin));
        assert!(bytes.ends_with(&end), "{bytes:x?}");
    }
}
