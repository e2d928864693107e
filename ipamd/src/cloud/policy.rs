//! What the IAM policies in `manifests` allow, for tests: statements that allow, by action, by kind of resource, and by conditions on tags, as IAM's
//! evaluation logic has it ("Policy evaluation logic" of its user guide). Which resources a call is judged by, and that tags of a call that makes
//! something are judged as `CreateTags`, is EC2's ("Actions, resources, and condition keys for Amazon EC2").

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::call::Call;

/// The policies.
pub(crate) const BASIC: &str = include_str!("../../../manifests/iam-policy.json");
pub(crate) const SCOPED: &str = include_str!("../../../manifests/iam-policy-scoped.json");
/// The one of the metrics helper.
const HELPERS: &str = include_str!("../../../manifests/iam-policy-metrics-helper.json");
/// What stands in the scoped one for the cluster's name.
pub(crate) const CLUSTER: &str = "CLUSTER_NAME";

const ENI: &str = "network-interface";

pub(crate) type Tags = BTreeMap<String, String>;

/// A call that changes something.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doing<'a> {
    /// An ENI is made with these tags.
    Create(&'a Tags),
    /// Tags are given to an ENI that has others.
    Tag { has: &'a Tags, gets: &'a Tags },
    /// Any other call, by its name, about an ENI that has these tags.
    To(&'a str, &'a Tags),
}

/// One question of EC2 to IAM.
#[derive(Debug)]
struct Question<'a> {
    action: &'a str,
    resource: &'static str,
    context: BTreeMap<String, &'a str>,
}

/// What of it a policy does not allow; nothing, if the call goes through.
pub(crate) fn denied(policy: &str, doing: Doing<'_>) -> Vec<String> {
    let statements = statements(policy);
    let no = |question: &Question<'_>| !statements.iter().any(|statement| allows(statement, question));
    let denied = questions(doing).into_iter().filter(no);
    denied.map(|question| format!("{} of {}", question.action, question.resource)).collect()
}

fn questions(doing: Doing<'_>) -> Vec<Question<'_>> {
    let ask = |action, resource, context| Question { action, resource, context };
    match doing {
        Doing::Create(tags) => {
            let made = keyed("aws:RequestTag", tags);
            let mut tagging = made.clone();
            tagging.insert("ec2:CreateAction".to_owned(), "CreateNetworkInterface");
            vec![
                ask("CreateNetworkInterface", ENI, made),
                ask("CreateNetworkInterface", "subnet", BTreeMap::new()),
                ask("CreateNetworkInterface", "security-group", BTreeMap::new()),
                ask("CreateTags", ENI, tagging),
            ]
        }
        Doing::Tag { has, gets } => {
            let mut context = keyed("aws:ResourceTag", has);
            context.extend(keyed("aws:RequestTag", gets));
            vec![ask("CreateTags", ENI, context)]
        }
        Doing::To(action, tags) => {
            let call = Call::ALL.iter().find(|call| call.name() == action).unwrap();
            let beside = beside(*call).iter().map(|resource| ask(action, resource, BTreeMap::new()));
            beside.chain([ask(action, ENI, keyed("aws:ResourceTag", tags))]).collect()
        }
    }
}

fn keyed<'a>(key: &str, tags: &'a Tags) -> BTreeMap<String, &'a str> {
    tags.iter().map(|(tag, value)| (format!("{key}/{tag}"), value.as_str())).collect()
}

/// What a call is judged by beside the ENI, as the daemon makes it.
const fn beside(call: Call) -> &'static [&'static str] {
    match call {
        Call::AttachNetworkInterface | Call::DetachNetworkInterface => &["instance"],
        Call::ModifyNetworkInterfaceAttribute => &["instance", "security-group"],
        Call::AssignIpv6Addresses
        | Call::AssignPrivateIpAddresses
        | Call::DeleteNetworkInterface
        | Call::UnassignIpv6Addresses
        | Call::UnassignPrivateIpAddresses => &[],
        Call::CreateNetworkInterface | Call::CreateTags => panic!("it has tags of its own"),
        Call::DescribeInstanceTypes
        | Call::DescribeNetworkInterfaces
        | Call::DescribeSubnets
        | Call::DescribeTags => panic!("it changes nothing"),
    }
}

pub(super) fn statements(policy: &str) -> Vec<Value> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    policy["Statement"].as_array().unwrap().clone()
}

/// A list, or the one text that stands for a list.
fn texts(value: &Value) -> Vec<&str> {
    let all = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    all.iter().map(|text| text.as_str().unwrap()).collect()
}

pub(super) fn actions(statement: &Value) -> BTreeSet<&str> {
    texts(&statement["Action"]).into_iter().map(|action| action.strip_prefix("ec2:").unwrap()).collect()
}

fn allows(statement: &Value, question: &Question<'_>) -> bool {
    assert_eq!(statement["Effect"], "Allow", "denials are not known here");
    let is_it = |pattern: &str| match pattern {
        "*" => true,
        arn => arn.strip_prefix("arn:aws:ec2:*:*:").unwrap() == format!("{}/*", question.resource),
    };
    actions(statement).contains(question.action)
        && texts(&statement["Resource"]).into_iter().any(is_it)
        && statement["Condition"].as_object().into_iter().flatten().all(|(operator, keys)| {
            keys.as_object().unwrap().iter().all(|(key, value)| holds(operator, key, value, question))
        })
}

fn holds(operator: &str, key: &str, value: &Value, question: &Question<'_>) -> bool {
    let known = ["aws:RequestTag/", "aws:ResourceTag/", "ec2:CreateAction"];
    assert!(known.iter().any(|known| key.starts_with(known)), "{key}");
    let is = question.context.get(key).copied();
    match operator {
        "StringEquals" => is.is_some_and(|is| texts(value).contains(&is)),
        "Null" => (value == "true") == is.is_none(),
        other => panic!("{other} is not known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Effect;
    use super::*;

    fn cluster(name: &str) -> Tags {
        Tags::from([("cluster.k8s.amazonaws.com/name".to_owned(), name.to_owned())])
    }

    /// Calls that change an ENI and have no tags of their own.
    fn changes() -> impl Iterator<Item = Call> {
        let tagging = |call: &&Call| !matches!(call, Call::CreateNetworkInterface | Call::CreateTags);
        Call::ALL.iter().filter(|call| call.effect() == Effect::Changes).filter(tagging).copied()
    }

    #[test]
    fn the_policies_allow_what_is_called_and_nothing_else() {
        let of_daemon = Call::ALL.iter().filter(|call| **call != Call::DescribeTags);
        let called: BTreeSet<&str> = of_daemon.map(|call| call.name()).collect();

        for policy in [BASIC, SCOPED] {
            let statements = statements(policy);
            let allowed: BTreeSet<&str> = statements.iter().flat_map(actions).collect();
            assert_eq!(allowed, called);
        }
    }

    #[test]
    fn the_helpers_policy_allows_its_own_namespace_and_the_instances_tags() {
        let statements = statements(HELPERS);
        let named = |statement: &Value| texts(&statement["Action"]).join(" ");

        assert_eq!(
            statements.iter().map(named).collect::<BTreeSet<_>>(),
            ["cloudwatch:PutMetricData", "ec2:DescribeTags"].map(str::to_owned).into()
        );
        let puts =
            statements.iter().find(|statement| named(statement) == "cloudwatch:PutMetricData").unwrap();
        let namespace = &puts["Condition"]["StringEquals"]["cloudwatch:namespace"];
        assert_eq!(namespace, crate::cloud::cloudwatch::NAMESPACE);
    }

    #[test]
    fn enis_of_the_cluster_are_made_and_changed_by_either_policy() {
        let ours = cluster(CLUSTER);

        for policy in [BASIC, SCOPED] {
            assert_eq!(denied(policy, Doing::Create(&ours)), [""; 0]);
            for call in changes() {
                assert_eq!(denied(policy, Doing::To(call.name(), &ours)), [""; 0]);
            }
        }
    }

    #[test]
    fn the_scoped_policy_gives_addresses_to_others_enis_and_changes_nothing_else_of_them() {
        for theirs in [Tags::new(), cluster("another")] {
            assert_ne!(denied(SCOPED, Doing::Create(&theirs)), [""; 0]);
            let allowed = changes().filter(|call| denied(SCOPED, Doing::To(call.name(), &theirs)).is_empty());
            let allowed: Vec<&str> = allowed.map(Call::name).collect();
            let addresses = ["AssignIpv6Addresses", "AssignPrivateIpAddresses"];
            let back = ["UnassignIpv6Addresses", "UnassignPrivateIpAddresses"];
            assert_eq!(allowed, [addresses, back].concat());
        }
    }

    #[test]
    fn the_scoped_policy_lets_an_eni_into_the_cluster_that_is_in_none_and_out_of_none() {
        let (none, ours, other) = (Tags::new(), cluster(CLUSTER), cluster("another"));
        let more = Tags::from([("team".to_owned(), "blue".to_owned())]);
        let may = |has, gets| denied(SCOPED, Doing::Tag { has, gets }).is_empty();

        assert!(may(&none, &ours) && may(&more, &ours) && may(&ours, &more));
        for (has, gets) in [(&none, &more), (&none, &other), (&other, &ours), (&other, &more)] {
            assert!(!may(has, gets), "{has:?} and then {gets:?}");
        }
    }
}
