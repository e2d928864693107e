//! `ipamd max-pods`: how many pods instance types can hold, without asking anybody.

use std::fmt::Write as _;

use serde_json::{Value, json};
use types::{InstanceLimits, InstanceTable, Layout};

use crate::config::distance;
use crate::status::table;

/// Names that are told when the one asked for is not there.
const NEAREST: usize = 5;
/// The ways to give pods addresses, by name.
const WAYS: [(&str, bool, bool); 4] = [
    ("addresses", false, false),
    ("prefixes", true, false),
    ("custom networking", false, true),
    ("custom networking, prefixes", true, true),
];

/// Pods of a type by way, and beside each how many more can have a branch ENI.
fn pods(limits: &InstanceLimits, max_enis: Option<u8>) -> [[u32; 3]; 4] {
    WAYS.map(|(_, prefixes, custom_networking)| {
        let layout = Layout { prefixes, custom_networking, max_enis, ..Layout::default() };
        let with_trunk = limits.capacity(&Layout { branch_enis: true, ..layout });
        [limits.capacity(&layout).max_pods(), with_trunk.max_pods(), with_trunk.branch]
    })
}

/// The types asked for, or all of them.
///
/// # Errors
/// The first one that the table does not know.
pub fn chosen(names: &[String]) -> Result<Vec<&'static InstanceLimits>, String> {
    let known = InstanceTable::builtin();
    if names.is_empty() {
        return Ok(known.iter().collect());
    }
    let unknown = |name: &String| {
        let near = near(name, known).join(", ");
        format!("{name:?} is no instance type that this version knows; near it: {near}")
    };
    names.iter().map(|name| known.get(name).ok_or_else(|| unknown(name))).collect()
}

/// Types with a name like this one: those of the family that it is, then those that a few letters make of it.
fn near<'a>(name: &str, known: &'a InstanceTable) -> Vec<&'a str> {
    let family = format!("{}.", name.trim_end_matches('.'));
    let mut names: Vec<&str> = known.iter().map(|limits| limits.instance_type.as_str()).collect();
    names.sort_by_cached_key(|other| (!other.starts_with(&family), distance(name, other)));
    names.truncate(NEAREST);
    names
}

/// A table for people.
#[must_use]
pub fn render(types: &[&InstanceLimits], max_enis: Option<u8>) -> String {
    let head = ["type", "ENIs", "slots each", WAYS[0].0, WAYS[1].0, WAYS[2].0, WAYS[3].0, "branch ENIs"];
    let rows = types.iter().map(|limits| {
        let [addresses, prefixes, custom, custom_prefixes] =
            pods(limits, max_enis).map(|[pods, ..]| pods.to_string());
        let enis = limits.max_enis.min(max_enis.unwrap_or(u8::MAX)).to_string();
        let branch = match limits.trunk {
            Some(true) => limits.branch_enis.to_string(),
            Some(false) => "none".to_owned(),
            None => "?".to_owned(),
        };
        let slots = limits.slots_per_eni().to_string();
        [limits.instance_type.clone(), enis, slots, addresses, prefixes, custom, custom_prefixes, branch]
    });
    let mut out = String::new();
    let drawn = table(&mut out, head, rows.collect()).and_then(|()| {
        out.write_str(
            "\nFrom the fourth column on: pods with single addresses, with /28 prefixes, and both with custom networking.\n\
             A slot holds one address or one prefix; the ENI's own address apart.\n\
             maxPods that leave no pod without an address; two pods on the host's network are counted in.\n\
             With security groups for pods the trunk takes the place of an ENI; see --json.\n\
             Kubernetes is tested up to 110 pods on a small node and 250 on a large one.\n",
        )
    });
    // Writing to a String cannot fail.
    debug_assert!(drawn.is_ok(), "a String takes everything");
    out
}

/// The same for programs, with the trunk.
#[must_use]
pub fn json(types: &[&InstanceLimits], max_enis: Option<u8>) -> String {
    let of = |limits: &InstanceLimits| {
        let ways = WAYS.iter().zip(pods(limits, max_enis)).map(|((name, ..), [pods, with_trunk, branch])| {
            let with_trunk = json!({ "max_pods": with_trunk, "branch_enis": branch });
            ((*name).to_owned(), json!({ "max_pods": pods, "with_trunk": with_trunk }))
        });
        (limits.instance_type.clone(), Value::Object(ways.collect()))
    };
    let all = Value::Object(types.iter().map(|limits| of(limits)).collect());
    serde_json::to_string_pretty(&all).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_row_and_its_figures_are_the_pools() {
        let all = chosen(&[]).unwrap();

        let text = render(&all, None);

        assert!(text.lines().count() > all.len());
        let m5 = text.lines().find(|line| line.starts_with("m5.large ")).unwrap();
        let words: Vec<&str> = m5.split_whitespace().collect();
        assert_eq!(words, ["m5.large", "3", "9", "29", "434", "20", "290", "9"]);
    }

    #[test]
    fn the_trunk_and_max_eni_are_considered() {
        let m5 = chosen(&["m5.large".to_owned()]).unwrap();

        let told: Value = serde_json::from_str(&json(&m5, Some(2))).unwrap();

        assert_eq!(told["m5.large"]["addresses"]["max_pods"], 20);
        assert_eq!(told["m5.large"]["addresses"]["with_trunk"], json!({ "max_pods": 11, "branch_enis": 9 }));
        assert_eq!(told["m5.large"]["custom networking"]["with_trunk"]["max_pods"], 2);
    }

    #[test]
    fn an_unknown_type_is_named_with_those_that_come_near() {
        let why = chosen(&["m5.lrage".to_owned()]).unwrap_err();
        assert!(why.starts_with("\"m5.lrage\" is no") && why.contains("near it: m5.large, "), "{why}");
        let of_family = chosen(&["m5".to_owned()]).unwrap_err();
        assert!(of_family.contains("near it: m5.large, "), "{of_family}");
    }
}
