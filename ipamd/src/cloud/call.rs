//! Every call to EC2 that there is. The IAM policies in `manifests` allow these and no others: the daemon's its own, the metrics
//! helper's the one that it makes.

use super::Effect;

macro_rules! calls {
    ($($name:ident: $effect:ident;)*) => {
        /// A call, by EC2's name of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Call {
            $($name,)*
        }

        impl Call {
            /// Every one.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),*];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it does to the world.
            pub(super) const fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)* }
            }
        }
    };
}

calls! {
    AssignIpv6Addresses: Changes;
    AssignPrivateIpAddresses: Changes;
    AttachNetworkInterface: Changes;
    CreateNetworkInterface: Changes;
    CreateTags: Changes;
    DeleteNetworkInterface: Changes;
    DescribeInstanceTypes: Reads;
    DescribeNetworkInterfaces: Reads;
    DescribeSubnets: Reads;
    DescribeTags: Reads;
    DetachNetworkInterface: Changes;
    ModifyNetworkInterfaceAttribute: Changes;
    UnassignIpv6Addresses: Changes;
    UnassignPrivateIpAddresses: Changes;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const POLICIES: [&str; 2] = [
        include_str!("../../../manifests/iam-policy.json"),
        include_str!("../../../manifests/iam-policy-scoped.json"),
    ];

    const HELPERS: &str = include_str!("../../../manifests/iam-policy-metrics-helper.json");

    fn statements(policy: &str) -> Vec<Value> {
        let policy: Value = serde_json::from_str(policy).unwrap();
        policy["Statement"].as_array().unwrap().clone()
    }

    fn actions(statement: &Value) -> Vec<String> {
        let all = statement["Action"].as_array();
        let all = all.map_or_else(|| std::slice::from_ref(&statement["Action"]), Vec::as_slice);
        all.iter().map(|action| action.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_policies_allow_what_is_called_and_nothing_else() {
        let of_helper = |call: &Call| *call == Call::DescribeTags;
        let named = |call: &Call| format!("ec2:{}", call.name());
        let called = Call::ALL.iter().filter(|call| !of_helper(call)).map(named).collect::<BTreeSet<_>>();

        for policy in POLICIES {
            let allowed: BTreeSet<String> = statements(policy).iter().flat_map(actions).collect();
            assert_eq!(allowed, called);
        }
        let allowed: BTreeSet<String> = statements(HELPERS).iter().flat_map(actions).collect();
        assert_eq!(allowed, ["cloudwatch:PutMetricData", "ec2:DescribeTags"].map(str::to_owned).into());
    }

    #[test]
    fn the_helpers_policy_allows_its_own_namespace_and_no_other() {
        let statements = statements(HELPERS);
        let puts = statements.iter().find(|statement| actions(statement) == ["cloudwatch:PutMetricData"]);

        let namespace = &puts.unwrap()["Condition"]["StringEquals"]["cloudwatch:namespace"];
        assert_eq!(namespace, crate::cloud::cloudwatch::NAMESPACE);
    }

    #[test]
    fn the_scoped_policy_asks_for_the_clusters_tag_before_anything_is_deleted_detached_or_changed() {
        let tied = [
            "DeleteNetworkInterface",
            "DetachNetworkInterface",
            "ModifyNetworkInterfaceAttribute",
            "CreateTags",
        ];
        for statement in statements(POLICIES[1]) {
            let enis = statement["Resource"].to_string().contains("network-interface/");
            let about = actions(&statement);
            if enis && tied.iter().any(|call| about.contains(&format!("ec2:{call}"))) {
                let condition = statement["Condition"].to_string();
                assert!(condition.contains("cluster.k8s.amazonaws.com/name"), "{statement}");
            }
        }
    }
}
