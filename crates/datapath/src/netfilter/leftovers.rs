//! What the Go version leaves in nftables: a table of its own, and its rules and chains in the tables of `iptables-nft`.
//!
//! Its rules there are known by their comments, which are the same in every version, and by the chains they jump to. What
//! connections have been translated to stays with them: that is the kernel's connection tracking, which nobody touches.

use super::NetfilterError;
use super::constants::{
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETTABLE,
    NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA, NFTA_MATCH_INFO, NFTA_MATCH_NAME, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, NFTA_TABLE_NAME, NFTA_VERDICT_CHAIN,
    NFTNL_UDATA_RULE_COMMENT, NLM_F_DUMP,
};
use super::decode::{attribute, attributes, path, text};
use super::encode::{Attributes, Batch};
use super::socket::Socket;
use crate::model::Family;

/// The table that is the Go version's alone.
const TABLE: &str = "aws-cni";
/// Tables of `iptables-nft` in which it has rules.
const SHARED: [&str; 3] = ["nat", "mangle", "filter"];
/// What the names of its chains begin with; a number follows.
const CHAINS: [&str; 2] = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"];
/// Comments of its rules.
const COMMENTS: [&str; 7] = [
    "AWS SNAT CHAIN",
    "AWS SNAT CHAIN EXCLUSION",
    "AWS, SNAT",
    "AWS, primary ENI",
    "AWS, outbound connections",
    "AWS, CONNMARK",
    "AWS CONNMARK CHAIN",
];

/// Comment of its rule in `FORWARD` by which nobody outside begins a connection to addresses that mean something on the node only.
const fn block_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "Block Node Local Pod access via IPv4",
        Family::V6 => "Block Node Local Pod access via IPv6",
    }
}

/// A rule in a table of `iptables-nft`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RuleSeen {
    table: &'static str,
    chain: String,
    /// The kernel's number of it, as it was told.
    handle: Vec<u8>,
    comment: Option<String>,
    jumps_to: Option<String>,
}

/// What of the Go version's may be there.
#[derive(Debug, Default)]
struct Seen {
    table: bool,
    rules: Vec<RuleSeen>,
    chains: Vec<(&'static str, String)>,
}

/// Whether a chain in a table of `iptables-nft` or `iptables-legacy` is the Go version's.
pub(super) fn is_its_chain(name: &str) -> bool {
    CHAINS.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a comment is of one of its rules, those in `FORWARD` apart.
pub(super) fn is_its_comment(comment: &str) -> bool {
    COMMENTS.contains(&comment)
}

/// Whether a rule in such a table is the Go version's.
fn is_its_rule(chain: &str, comment: Option<&str>, jumps_to: Option<&str>) -> bool {
    is_its_chain(chain) || jumps_to.is_some_and(is_its_chain) || comment.is_some_and(is_its_comment)
}

/// Removes it, all of a family in one transaction; what was removed, in words. `guards`: pods of its live to which its rule in `FORWARD`
/// alone keeps others from connecting.
pub(super) fn remove(
    socket: &mut Socket,
    family: Family,
    guards: bool,
) -> Result<Vec<String>, NetfilterError> {
    let seen = observe(socket, family)?;
    let (batch, removed) = removal(&seen, family, guards);
    if !removed.is_empty() {
        socket.commit(batch)?;
    }
    Ok(removed)
}

fn removal(seen: &Seen, family: Family, guards: bool) -> (Batch, Vec<String>) {
    let (mut batch, mut removed) = (Batch::new(family, TABLE), Vec::new());
    let mut step = |what: String, kind, attributes: &Attributes| {
        batch.step(what.clone(), kind, 0, attributes);
        removed.push(what);
    };
    let its = |rule: &&RuleSeen| {
        let comment = rule.comment.as_deref();
        is_its_rule(&rule.chain, comment, rule.jumps_to.as_deref())
            || (comment == Some(block_of(family)) && !guards)
    };
    for RuleSeen { table, chain, handle, comment, .. } in seen.rules.iter().filter(its) {
        let rule = Attributes::default()
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, chain)
            .bytes(NFTA_RULE_HANDLE, handle);
        let comment = comment.as_deref().unwrap_or("without a comment");
        step(format!("delete a rule of {table} {chain}: {comment}"), NFT_MSG_DELRULE, &rule);
    }
    for (table, chain) in seen.chains.iter().filter(|(_, chain)| is_its_chain(chain)) {
        let attributes = Attributes::default().text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
        step(format!("delete chain {chain} of {table}"), NFT_MSG_DELCHAIN, &attributes);
    }
    if seen.table {
        let table = Attributes::default().text(NFTA_TABLE_NAME, TABLE);
        step(format!("delete table {TABLE}"), NFT_MSG_DELTABLE, &table);
    }
    (batch, removed)
}

fn observe(socket: &mut Socket, family: Family) -> Result<Seen, NetfilterError> {
    let table = Attributes::default().text(NFTA_TABLE_NAME, TABLE);
    let mut seen =
        Seen { table: !socket.ask(family, NFT_MSG_GETTABLE, 0, &table)?.is_empty(), ..Seen::default() };
    for chain in socket.ask(family, NFT_MSG_GETCHAIN, NLM_F_DUMP, &Attributes::default())? {
        let name = attribute(&chain, NFTA_CHAIN_NAME).and_then(text);
        seen.chains.extend(shared(&chain, NFTA_CHAIN_TABLE).zip(name.map(str::to_owned)));
    }
    for table in SHARED {
        let of_table = Attributes::default().text(NFTA_RULE_TABLE, table);
        let rules = socket.ask(family, NFT_MSG_GETRULE, NLM_F_DUMP, &of_table)?;
        seen.rules.extend(rules.iter().filter_map(|rule| to_rule(rule)));
    }
    Ok(seen)
}

/// The table that something is in, if it is one of `iptables-nft`.
fn shared(object: &[u8], kind: u16) -> Option<&'static str> {
    let table = attribute(object, kind).and_then(text)?;
    SHARED.into_iter().find(|shared| *shared == table)
}

fn to_rule(rule: &[u8]) -> Option<RuleSeen> {
    let expressions = attribute(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let named = |name: &'static str| {
        let of = move |expression: &&[u8]| attribute(expression, NFTA_EXPR_NAME).and_then(text) == Some(name);
        let all = attributes(expressions).map(|(_, expression)| expression).filter(of);
        all.filter_map(|expression| attribute(expression, NFTA_EXPR_DATA))
    };
    // `iptables-nft` makes a foreign match of a comment, newer ones may keep it beside the rule as `nft` does.
    let matched = named("match").find_map(|data| {
        let comment = attribute(data, NFTA_MATCH_NAME).and_then(text) == Some("comment");
        attribute(data, NFTA_MATCH_INFO).filter(|_| comment).and_then(text)
    });
    let beside = attribute(rule, NFTA_RULE_USERDATA).and_then(comment_in);
    let jump =
        |data| path(data, &[NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN]).and_then(text);
    Some(RuleSeen {
        table: shared(rule, NFTA_RULE_TABLE)?,
        chain: attribute(rule, NFTA_RULE_CHAIN).and_then(text)?.to_owned(),
        handle: attribute(rule, NFTA_RULE_HANDLE)?.to_vec(),
        comment: matched.or(beside).map(str::to_owned),
        jumps_to: named("immediate").find_map(jump).map(str::to_owned),
    })
}

/// The comment among user data, a list of kind, length and value.
fn comment_in(mut data: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = data {
        let (value, others) = rest.split_at_checked(usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return text(value);
        }
        data = others;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::transaction::user_data;
    use super::*;

    fn rule(chain: &str, comment: Option<&str>, jumps_to: Option<&str>) -> RuleSeen {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let (chain, handle) = (chain.to_owned(), vec![0, 0, 0, 0, 0, 0, 0, 7]);
        RuleSeen { table: "nat", chain, handle, comment: own(comment), jumps_to: own(jumps_to) }
    }

    #[test]
    fn its_rules_and_chains_go_and_those_of_others_stay() {
        let seen = Seen {
            table: true,
            rules: vec![
                rule("POSTROUTING", Some("AWS SNAT CHAIN"), Some("AWS-SNAT-CHAIN-0")),
                rule("POSTROUTING", Some("kubernetes postrouting rules"), Some("KUBE-POSTROUTING")),
                rule("PREROUTING", None, Some("AWS-CONNMARK-CHAIN-0")),
                rule("AWS-SNAT-CHAIN-0", None, None),
                rule("OUTPUT", Some("AWS, my own rule"), None),
            ],
            chains: vec![
                ("nat", "POSTROUTING".to_owned()),
                ("nat", "AWS-SNAT-CHAIN-0".to_owned()),
                ("nat", "AWS-SNAT-CHAIN-MINE".to_owned()),
            ],
        };

        let (_, removed) = removal(&seen, Family::V4, false);

        assert_eq!(
            removed,
            [
                "delete a rule of nat POSTROUTING: AWS SNAT CHAIN",
                "delete a rule of nat PREROUTING: without a comment",
                "delete a rule of nat AWS-SNAT-CHAIN-0: without a comment",
                "delete chain AWS-SNAT-CHAIN-0 of nat",
                "delete table aws-cni",
            ]
        );
        assert!(removal(&Seen::default(), Family::V4, false).1.is_empty());
    }

    #[test]
    fn the_rule_that_keeps_others_from_local_addresses_goes_when_nobody_has_one_any_more() {
        let blocks = |comment| Seen { rules: vec![rule("FORWARD", Some(comment), None)], ..Seen::default() };
        let (ipv4, ipv6) = (blocks(block_of(Family::V4)), blocks(block_of(Family::V6)));
        let count = |seen, family, guards| removal(seen, family, guards).1.len();

        assert_eq!((count(&ipv4, Family::V4, false), count(&ipv4, Family::V4, true)), (1, 0));
        assert_eq!((count(&ipv6, Family::V6, false), count(&ipv6, Family::V6, true)), (1, 0));
        assert_eq!(count(&ipv4, Family::V6, false), 0, "not its place");
    }

    #[test]
    fn a_comment_is_found_as_a_match_and_beside_the_rule() {
        let mut info = b"AWS, SNAT".to_vec();
        info.resize(256, 0);
        let comment = Attributes::default().text(NFTA_MATCH_NAME, "comment").bytes(NFTA_MATCH_INFO, &info);
        let expression = Attributes::default().text(NFTA_EXPR_NAME, "match").nest(NFTA_EXPR_DATA, &comment);
        let base = Attributes::default()
            .text(NFTA_RULE_TABLE, "nat")
            .text(NFTA_RULE_CHAIN, "POSTROUTING")
            .bytes(NFTA_RULE_HANDLE, &[0; 8]);
        let matched = base.clone().nest(NFTA_RULE_EXPRESSIONS, &Attributes::default().nest(1, &expression));
        let beside = base.bytes(NFTA_RULE_USERDATA, &user_data("AWS, SNAT"));

        for rule in [matched, beside] {
            let seen = to_rule(rule.as_slice()).unwrap();
            assert_eq!(seen.comment.as_deref(), Some("AWS, SNAT"));
        }
    }

    proptest! {
        #[test]
        fn no_user_data_make_the_reader_fail_or_run_on(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _comment = comment_in(&bytes);
        }
    }
}
