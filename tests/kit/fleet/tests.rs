//! Small fleets, and the EC2 budget of one node. Counts in virtual time: the same on every machine.

use super::budget::{self, Budget};
use super::*;

fn told(nodes: u32, policy: Policy, seed: u64) -> Run {
    let wish = Wish { seed, ..Wish::default() };
    let limits = limits_of(&wish.instance_type).unwrap();
    tell(&wish, &limits, nodes, policy)
}

fn ours() -> impl Iterator<Item = Policy> {
    Policy::ALL.into_iter().filter(|policy| !policy.is_original)
}

fn budgets() -> Vec<Budget> {
    budget::of_all(1).unwrap()
}

#[test]
fn a_seed_is_one_history() {
    for policy in [Policy::ALL[0], Policy::ALL[5]] {
        assert_eq!(told(10, policy, 7), told(10, policy, 7));
        assert_ne!(told(10, policy, 7), told(10, policy, 8));
    }
}

#[test]
fn every_policy_meets_the_same_pods() {
    let wanted = |policy| told(10, policy, 3).phases.iter().map(|(_, f)| f.pods).collect::<Vec<_>>();

    let first = wanted(Policy::ALL[0]);
    assert_eq!(first[..2], [200, 150]);
    assert!(Policy::ALL.into_iter().all(|policy| wanted(policy) == first));
}

#[test]
fn in_a_small_fleet_every_pod_of_ours_gets_its_address_and_no_add_fails() {
    for policy in ours() {
        for (phase, figures) in told(50, policy, 1).phases {
            let name = (policy.name, phase.name());
            assert_eq!((figures.unserved, figures.failed), (0, 0), "{name:?}");
            if policy.is_default() {
                assert!(figures.throttled < 0.01, "{name:?}: {}", figures.throttled);
            }
        }
    }
}

#[test]
fn an_idle_node_changes_nothing_and_looks_once_an_hour() {
    for Budget { policy, idle_changes, idle_describes, .. } in budgets() {
        if policy.is_original {
            continue;
        }
        assert_eq!(idle_changes, 0, "{}", policy.name);
        // A look is three calls, and comes after half an hour to one and a half.
        assert!((3 * 16..=3 * 32).contains(&idle_describes), "{}: {idle_describes}", policy.name);
    }
}

#[test]
fn the_first_addresses_cost_one_change_as_prefix_and_two_as_single_ones_at_most() {
    for Budget { policy, first_sixteen, .. } in budgets() {
        if !policy.is_original {
            let most = if policy.prefixes { 1 } else { 2 };
            assert!((1..=most).contains(&first_sixteen), "{}: {first_sixteen}", policy.name);
        }
    }
}

#[test]
fn churn_costs_few_calls_and_fails_no_add() {
    for Budget { policy, churn_changes, churn_describes, churn_failed, .. } in budgets() {
        if !policy.is_original {
            assert_eq!(churn_failed, 0, "{}", policy.name);
            assert!(churn_changes <= 0.1, "{}: {churn_changes}", policy.name);
            assert!(churn_describes <= 0.12, "{}: {churn_describes}", policy.name);
        }
    }
}

/// The same targets, the same pods: ours beside the original's.
#[test]
fn for_churn_ours_makes_few_changes_that_the_original_does_not() {
    let budgets = budgets();
    let changes = |policy: &str| {
        let of = budgets.iter().find(|of| of.policy.name == policy).unwrap();
        of.churn_changes * 375.0
    };
    // In all, not for each pod: the burst's ENI or prefixes go back to EC2 afterwards, which the original's never do, and
    // while addresses cool others take their place.
    let more = [("WARM_ENI 1", 6.0), ("WARM_IP 5 MIN 16", 9.0), ("WARM_PREFIX 1", 4.0)];
    for (targets, more) in more {
        let ours = changes(&format!("ours, {targets}"));
        let original = changes(&format!("original, {targets}"));
        assert!(ours <= original + more + 0.5, "{targets}: {ours} changes, the original {original}");
    }
}

#[test]
fn the_original_fails_adds_where_its_cooling_addresses_count_as_available() {
    let failed: Vec<&str> =
        budgets().iter().filter(|of| of.churn_failed > 0).map(|of| of.policy.name).collect();

    assert_eq!(failed, ["original, WARM_IP 5 MIN 16"]);
}
