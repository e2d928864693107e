//! What the kernel holds after each call, as `nft` sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use datapath::Family;
use datapath::netfilter::{NatSpec, Netfilter, NetfilterError, SnatPorts, TABLE, egress_ruleset, ruleset};
use libtest_mimic::Failed;
use serde_json::Value;

use crate::lab::Space;
use crate::values::{crowded, egress, networks, sourced, spec, wanted};
use crate::{Outcome, Test, check};

pub(crate) const TESTS: [Test; 11] = [
    ("the_kernel_holds_what_the_text_says", same_as_text),
    ("what_was_put_matches_until_somebody_changes_it", drift),
    ("a_set_of_another_kind_under_our_name_is_exchanged", other_sets),
    ("a_rule_that_was_changed_under_its_old_comment_is_put_back", same_comment),
    ("what_another_process_wrote_is_written_anew_once_and_changes_nothing", another_process),
    ("the_ipv6_table_is_put_mended_and_removed_apart_from_the_other", ipv6_table),
    ("new_sources_change_only_elements", sources),
    ("touching_and_nested_sources_are_accepted", awkward_sources),
    ("more_sources_than_one_message_holds_are_put_and_seen", many_sources),
    ("others_tables_are_never_touched", others),
    ("a_refusal_names_its_step_and_changes_nothing", refusal),
];

fn same_as_text() -> Outcome {
    for spec in [
        spec(),
        NatSpec { snat: Some(SnatPorts::HashRandom), node_port: false, ..spec() },
        NatSpec { snat: Some(SnatPorts::Plain), sources: BTreeMap::new(), ..spec() },
        NatSpec { snat: None, no_snat: BTreeSet::new(), ..spec() },
        NatSpec { no_snat: networks(["0.0.0.0/0"]), ..spec() },
    ] {
        let wanted = ruleset(&spec);
        Netfilter::default().put(wanted.clone())?;
        let by_netlink = listing()?;
        check(Netfilter::default().matches(&wanted)?, "what was put does not match")?;
        let by_nft = Space::new()?.run(|| {
            nft(&wanted.to_string())?;
            check(Netfilter::default().matches(&wanted)?, "what nft wrote does not match")?;
            listing()
        })?;
        check(by_netlink == by_nft, format!("{by_netlink:#?}\n\nbut nft makes of the text:\n{by_nft:#?}"))?;
    }
    Ok(())
}

fn drift() -> Outcome {
    let mut netfilter = Netfilter::default();
    check(!netfilter.matches(&wanted())?, "there is no table yet")?;
    check(!netfilter.put(wanted())?.is_empty(), "the first put changes nothing")?;
    check(netfilter.put(wanted())?.is_empty(), "the second put changes something")?;
    let whole = listing()?;
    for change in [
        "delete table ip aws-vpc-cni",
        "flush chain ip aws-vpc-cni from_pods",
        "add rule ip aws-vpc-cni source_nat accept",
        "delete element ip aws-vpc-cni no_snat { 10.0.0.0/16 }",
        "add element ip aws-vpc-cni no_snat { 8.8.8.8 }",
        "delete element ip aws-vpc-cni eni_of { 10.0.1.20 }",
        "add element ip aws-vpc-cni eni_of { 10.0.1.21 : jump mark_200 }",
        "add element ip aws-vpc-cni eni_of { * : jump mark_200 }",
        "delete element ip aws-vpc-cni eni_of { 10.0.1.20 }\nadd element ip aws-vpc-cni eni_of { 10.0.1.20 : goto mark_200 }",
        "delete element ip aws-vpc-cni eni_of { 10.0.1.20 }\nadd element ip aws-vpc-cni eni_of { 10.0.1.20 : drop }",
        "flush chain ip aws-vpc-cni mark_200",
        "add chain ip aws-vpc-cni other { type filter hook input priority 0; policy drop; }",
        "add table ip aws-vpc-cni { flags dormant; }",
        "table ip aws-vpc-cni {\n chain aa {\n }\n chain zz {\n jump aa\n }\n }\n",
    ] {
        nft(change)?;
        check(!netfilter.matches(&wanted())?, format!("not noticed: {change}"))?;
        check(!netfilter.put(wanted())?.is_empty(), format!("not mended: {change}"))?;
        check(netfilter.matches(&wanted())? && listing()? == whole, format!("badly mended: {change}"))?;
    }
    check(netfilter.remove(Family::V4)?, "there was no table")?;
    check(!netfilter.remove(Family::V4)?, "it is removed twice")?;
    check(!netfilter.matches(&wanted())? && listing().is_err(), "the table is still there")
}

/// Our table as text, with a part of it replaced, in the place of the one that is there: rules keep their comments.
fn rewritten(part: &str, by: &str) -> Outcome {
    let text = wanted().to_string();
    check(text.matches(part).count() == 1, format!("{part} is not once in {text}"))?;
    nft(&format!("delete table ip {TABLE}\n{}", text.replace(part, by)))
}

fn other_sets() -> Outcome {
    let mut netfilter = Netfilter::default();
    netfilter.put(wanted())?;
    let whole = listing()?;
    let mends = |netfilter: &mut Netfilter, what: &str| {
        check(!netfilter.matches(&wanted())?, format!("not noticed: {what}"))?;
        netfilter.put(wanted())?;
        check(netfilter.matches(&wanted())? && listing()? == whole, format!("badly mended: {what}"))
    };
    let map = "type ipv4_addr : verdict;";
    for (part, by) in [
        ("type ipv4_addr\n    flags interval", "type ipv4_addr\n    flags interval, timeout"),
        ("type ipv4_addr\n    flags interval", "type ipv4_addr\n    flags interval\n    policy memory"),
        ("    size 16384\n", "    size 1024\n"),
        ("    size 16384\n", "    flags interval\n"),
    ] {
        rewritten(part, by)?;
        mends(&mut netfilter, by)?;
    }
    let without_rules = format!("flush chain ip {TABLE} from_pods\nflush chain ip {TABLE} source_nat\n");
    for (set, kind) in [
        ("set ip aws-vpc-cni no_snat", "type ipv6_addr; flags interval;"),
        ("set ip aws-vpc-cni no_snat", "type inet_service;"),
        ("map ip aws-vpc-cni eni_of", "type ipv4_addr : mark;"),
        ("map ip aws-vpc-cni eni_of_range", map),
    ] {
        nft(&format!("{without_rules}delete {set}\nadd {set} {{ {kind} }}\n"))?;
        mends(&mut netfilter, kind)?;
    }
    // One more, and one under another name.
    nft("add set ip aws-vpc-cni other { type ipv4_addr; }")?;
    mends(&mut netfilter, "one more")?;
    nft(&format!(
        "{without_rules}delete set ip {TABLE} no_snat\nadd set ip {TABLE} other {{ type ipv4_addr; }}"
    ))?;
    mends(&mut netfilter, "another name")
}

fn same_comment() -> Outcome {
    let mut netfilter = Netfilter::default();
    netfilter.put(wanted())?;
    let whole = listing()?;
    for (part, by) in [
        ("fully-random", "random"),
        (" fully-random", ""),
        ("snat to 10.0.0.10", "snat to 10.0.0.11"),
        ("iifname \"ens5\"", "iifname \"ens6\""),
        (
            "meta mark set meta mark and 0xffffc0ff or 0x200",
            "meta mark set meta mark and 0xffffc0ff or 0x300",
        ),
        ("ip saddr vmap @eni_of ", "ip daddr vmap @eni_of "),
        ("iifname != \"eni*\" return", "iifname != \"en*\" return"),
    ] {
        rewritten(part, by)?;
        // Who only reads goes by the comments.
        check(Netfilter::default().matches(&wanted())?, format!("its comment has changed: {by}"))?;
        check(!netfilter.matches(&wanted())?, format!("not noticed: {by}"))?;
        check(!netfilter.put(wanted())?.is_empty(), format!("not mended: {by}"))?;
        check(netfilter.matches(&wanted())? && listing()? == whole, format!("badly mended: {by}"))?;
        check(netfilter.put(wanted())?.is_empty(), format!("mended twice: {by}"))?;
    }
    // Nothing is known of who wrote it: by a process that has just started it is written anew.
    rewritten("fully-random", "random")?;
    Netfilter::default().put(wanted())?;
    check(listing()? == whole, "a process that starts believes what it finds")
}

fn another_process() -> Outcome {
    Netfilter::default().put(wanted())?;
    let (whole, chains) = (listing()?, handles("chain")?);
    let mut netfilter = Netfilter::default();

    let steps = netfilter.put(wanted())?;

    check(
        steps.iter().all(|step| step.contains("chain") && !step.starts_with("add chain")),
        format!("{steps:?}"),
    )?;
    check(listing()? == whole && handles("chain")? == chains, "the table is not as it was")?;
    check(netfilter.put(wanted())?.is_empty(), "it is written anew twice")
}

/// The kernel's numbers of all of a kind in our table: they stay as long as the object does.
fn handles(kind: &str) -> Result<BTreeSet<String>, Failed> {
    Ok(raw_listing()?
        .iter()
        .filter(|object| !object[kind].is_null())
        .map(|o| o[kind]["handle"].to_string())
        .collect())
}

fn ipv6_table() -> Outcome {
    let mut netfilter = Netfilter::default();
    check(!netfilter.remove(Family::V6)?, "there was a table")?;
    netfilter.put(wanted())?;
    let whole = listing()?;
    let ipv6 = egress_ruleset(&egress());
    check(!netfilter.put(ipv6.clone())?.is_empty(), "the first put changes nothing")?;
    check(netfilter.put(ipv6.clone())?.is_empty(), "the second put changes something")?;
    check(netfilter.matches(&wanted())? && listing()? == whole, "the other table has changed")?;
    let text = nft_list("ip6")?;
    for change in ["flush chain ip6 aws-vpc-cni to_local", "delete table ip6 aws-vpc-cni"] {
        nft(change)?;
        check(!netfilter.matches(&ipv6)?, format!("not noticed: {change}"))?;
        check(
            !netfilter.put(ipv6.clone())?.is_empty() && nft_list("ip6")? == text,
            format!("badly mended: {change}"),
        )?;
    }
    let by_nft = Space::new()?.run(|| {
        nft(&ipv6.to_string())?;
        check(Netfilter::default().matches(&ipv6)?, "what nft wrote does not match")?;
        nft_list("ip6")
    })?;
    check(by_nft == text, format!("{text}\n\nbut nft makes of the text:\n{by_nft}"))?;
    check(netfilter.remove(Family::V6)? && nft_list("ip6").is_err(), "the table is still there")?;
    check(netfilter.matches(&wanted())?, "the other table went with it")
}

/// Our table of a family as `nft` tells it.
fn nft_list(family: &str) -> Result<String, Failed> {
    let output = Command::new("nft").args(["list", "table", family, TABLE]).output()?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sources() -> Outcome {
    let mut netfilter = Netfilter::default();
    netfilter.put(wanted())?;
    let handle = |chain: &str| -> Result<Value, Failed> {
        let all = raw_listing()?;
        let named = all.iter().find(|o| o["chain"]["name"] == chain);
        named.map(|o| o["chain"]["handle"].clone()).ok_or_else(|| format!("no chain {chain}").into())
    };
    let before = handle("from_pods")?;
    let steps = [
        sourced([("10.0.1.20/32", 0x200), ("10.0.1.21/32", 0x200), ("10.0.2.16/28", 0x300)]),
        sourced([("10.0.1.20/32", 0x300), ("10.0.2.16/28", 0x300)]),
        sourced([("10.0.2.16/28", 0x200)]),
        NatSpec { sources: BTreeMap::new(), ..spec() },
        spec(),
    ];
    for step in steps {
        let wanted = ruleset(&step);
        check(!netfilter.put(wanted.clone())?.is_empty(), "nothing was changed")?;
        check(netfilter.matches(&wanted)?, format!("not as wanted: {wanted}"))?;
        let text = Space::new()?.run(|| nft(&wanted.to_string()).and_then(|()| listing()))?;
        check(listing()? == text, format!("{:#?}\n\nshould be\n{text:#?}", listing()?))?;
    }
    check(handle("from_pods")? == before, "the table was replaced, not changed")
}

fn awkward_sources() -> Outcome {
    let spec = sourced([
        ("10.0.1.0/28", 0x200),
        ("10.0.1.5/32", 0x300),
        ("10.0.1.16/32", 0x200),
        ("10.0.1.17/32", 0x300),
        ("255.255.255.255/32", 0x300),
        ("0.0.0.0/32", 0x200),
    ]);
    let mut netfilter = Netfilter::default();
    netfilter.put(ruleset(&spec))?;
    check(netfilter.matches(&ruleset(&spec))?, "does not match what was put")?;
    for ruleset in [wanted(), ruleset(&spec)] {
        check(!netfilter.put(ruleset)?.is_empty(), "nothing to change there and back")?;
    }
    check(netfilter.matches(&ruleset(&spec))?, "does not match after a change there and back")
}

fn many_sources() -> Outcome {
    let mut netfilter = Netfilter::default();
    let (many, fewer) = (ruleset(&crowded(64, 50)), ruleset(&crowded(63, 49)));
    netfilter.put(many.clone())?;
    check(netfilter.matches(&many)?, "3200 sources do not match")?;
    netfilter.put(fewer.clone())?;
    check(netfilter.matches(&fewer)?, "fewer do not match")
}

fn others() -> Outcome {
    let foreign = "table ip kube-proxy {\n chain c {\n type nat hook postrouting priority 100\n masquerade\n }\n }\n\
                   table inet aws-vpc-cni {\n set s {\n type ipv4_addr\n elements = { 1.2.3.4 }\n }\n }\n\
                   table ip6 aws-vpc-cni {\n }\n";
    nft(foreign)?;
    let ours = |object: &Value| object.as_object().is_some_and(|o| o.values().any(is_ours));
    let not_ours = || -> Result<Vec<Value>, Failed> {
        Ok(nft_json(&["list", "ruleset"])?.into_iter().filter(|o| !ours(o)).collect())
    };
    let before = not_ours()?;
    let mut netfilter = Netfilter::default();
    netfilter.put(wanted())?;
    netfilter.put(ruleset(&NatSpec { sources: BTreeMap::new(), ..spec() }))?;
    netfilter.put(wanted())?;
    check(not_ours()? == before, "a foreign table changed")?;
    netfilter.remove(Family::V4)?;
    check(nft_json(&["list", "ruleset"])? == before, "remove removed more than ours")
}

fn is_ours(object: &Value) -> bool {
    let table = if object["table"].is_null() { &object["name"] } else { &object["table"] };
    object["family"] == "ip" && table == TABLE
}

fn refusal() -> Outcome {
    let mut netfilter = Netfilter::default();
    netfilter.put(wanted())?;
    let before = listing()?;
    // 256 bytes are more than a comparison takes.
    let bad = ruleset(&NatSpec { pod_if_prefixes: ["x".repeat(256)].into(), ..spec() });
    match netfilter.put(bad) {
        Err(NetfilterError::Refused { step, .. }) => {
            check(step.starts_with("add a rule to chain from_pods"), format!("blames {step:?}"))?;
        }
        other => return Err(format!("not refused: {other:?}").into()),
    }
    check(listing()? == before, "the refused table left a trace")?;
    check(netfilter.put(wanted())?.is_empty(), "the socket is of no use after a refusal")
}

pub(crate) fn nft(text: &str) -> Outcome {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
        stdin.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    check(output.status.success(), format!("{text}\nnft: {}", String::from_utf8_lossy(&output.stderr)))
}

pub(crate) fn nft_json(arguments: &[&str]) -> Result<Vec<Value>, Failed> {
    let output = Command::new("nft").arg("-j").args(arguments).output()?;
    check(
        output.status.success(),
        format!("nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
    )?;
    let mut listing: Value = serde_json::from_slice(&output.stdout)?;
    Ok(listing["nftables"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn raw_listing() -> Result<Vec<Value>, Failed> {
    nft_json(&["list", "table", "ip", TABLE])
}

/// Our table without handles and in an order that does not depend on them. The comment is not part of `nft -j`.
fn listing() -> Result<BTreeSet<String>, Failed> {
    let mut objects = raw_listing()?;
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for object in objects.iter_mut().filter_map(Value::as_object_mut).flat_map(|o| o.values_mut()) {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("handle");
        }
        if let Some(chain) = object["chain"].as_str().map(str::to_owned) {
            let place = places.entry(chain).or_default();
            *place += 1;
            object["place"] = (*place).into();
        }
    }
    Ok(objects.iter().map(Value::to_string).collect())
}
