//! Small fleets, and the EC2 budget of one node. Counts in virtual time: the same on every machine.

use super::budget::{self, Budget};
use super::churn::{Cost, Trace};
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
fn an_idle_node_changes_nothing_and_looks_every_six_hours() {
    for Budget { policy, idle_changes, idle_describes, .. } in budgets() {
        if policy.is_original {
            continue;
        }
        assert_eq!(idle_changes, 0, "{}", policy.name);
        // A look is three calls, and comes after three to nine hours.
        assert!((3 * 2..=3 * 8).contains(&idle_describes), "{}: {idle_describes}", policy.name);
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
            assert!(churn_describes <= 0.01, "{}: {churn_describes}", policy.name);
        }
    }
}

/// Targets that both know.
const TARGETS: [&str; 3] = ["WARM_ENI 1", "WARM_IP 5 MIN 16", "WARM_PREFIX 1"];

/// What each does where nobody has set a target, with single addresses and with prefixes.
const DEFAULTS: [[&str; 2]; 2] =
    [["ours", "original, WARM_ENI 1"], ["ours, prefixes", "original, WARM_PREFIX 1"]];

/// What a trace costs ours and the original with the same targets.
fn both(targets: &str, trace: &Trace, seed: u64) -> [Cost; 2] {
    let names = ["ours", "original"].map(|whose| format!("{whose}, {targets}"));
    costs([&names[0], &names[1]], trace, seed)
}

/// What a trace costs by two policies.
fn costs(names: [&str; 2], trace: &Trace, seed: u64) -> [Cost; 2] {
    let limits = limits_of(budget::INSTANCE_TYPE).unwrap();
    names.map(|name| {
        let policy = Policy::ALL.into_iter().find(|policy| policy.name == name).unwrap();
        trace.clone().tell(one_node(policy, &limits, seed))
    })
}

fn calls(cost: &Cost) -> u64 {
    cost.changes + cost.describes
}

#[test]
fn for_churn_ours_makes_fewer_calls_than_the_original_and_no_more_of_those_that_change_something() {
    for targets in TARGETS {
        let [ours, original] = both(targets, &Trace::default(), 1);

        assert!(calls(&ours) < calls(&original), "{targets}: {ours:?}, the original {original:?}");
        // Where the original makes one ENI or takes one prefix, the targets ask for just that.
        let least = ["WARM_ENI 1", "WARM_PREFIX 1"].contains(&targets);
        let holds = if least { ours.changes <= original.changes } else { ours.changes < original.changes };
        assert!(holds, "{targets}: {ours:?}, the original {original:?}");
    }
}

/// Ours gives a burst back within minutes and has to ask for the next one again, and is below all the same.
#[test]
fn without_a_target_churn_costs_fewer_calls_than_by_the_originals_default() {
    for names in DEFAULTS {
        let [ours, original] = costs(names, &Trace::default(), 1);

        assert!(calls(&ours) < calls(&original), "{names:?}: {ours:?}, the original {original:?}");
        let any = (1..=24).map(|seed| costs(names, &Trace::any(seed), seed));
        let (ours, original): (Vec<Cost>, Vec<Cost>) = any.map(|[ours, original]| (ours, original)).unzip();
        let in_all = |of: fn(&Cost) -> u64, costs: &[Cost]| costs.iter().map(of).sum::<u64>();
        assert_eq!(in_all(|cost| cost.failed, &ours), 0, "{names:?}: {ours:?}");
        assert!(in_all(calls, &ours) < in_all(calls, &original), "{names:?}: {ours:?}, {original:?}");
        let held: fn(&Cost) -> u64 = |cost| cost.held_at_rest;
        assert!(in_all(held, &ours) < in_all(held, &original), "{names:?}: {ours:?}, {original:?}");
    }
}

/// So that the trace of the tables is no lucky one.
#[test]
fn over_many_kinds_of_churn_ours_makes_fewer_calls_and_holds_no_more_in_the_end() {
    for targets in TARGETS {
        let (mut of_ours, mut of_original) = (0, 0);
        let (mut looks_of_ours, mut looks_of_original) = (0, 0);
        // Where few addresses are to be held, a burst's ENI goes back before the next burst.
        let more = if targets == "WARM_IP 5 MIN 16" { 6 } else { 0 };
        for seed in 1..=24 {
            let [ours, original] = both(targets, &Trace::any(seed), seed);
            let both = format!("{targets}, {seed}: {ours:?}, the original {original:?}");
            assert_eq!(ours.failed, 0, "{both}");
            assert!(ours.changes <= original.changes + more, "{both}");
            assert!(ours.held_at_rest <= original.held_at_rest, "{both}");
            of_ours += ours.changes;
            of_original += original.changes;
            looks_of_ours += ours.describes;
            looks_of_original += original.describes;
        }
        let (all_of_ours, all_of_original) = (of_ours + looks_of_ours, of_original + looks_of_original);
        assert!(
            all_of_ours < all_of_original,
            "{targets}: {all_of_ours} calls, the original {all_of_original}"
        );
        // A prefix is taken in one call, and neither gives any back within the hour.
        let least = targets == "WARM_PREFIX 1";
        let holds = if least { of_ours <= of_original } else { of_ours < of_original };
        assert!(holds, "{targets}: {of_ours} changes, the original {of_original}");
    }
}

#[test]
fn the_original_fails_adds_where_its_cooling_addresses_count_as_available() {
    let failed: Vec<&str> =
        budgets().iter().filter(|of| of.churn_failed > 0).map(|of| of.policy.name).collect();

    assert_eq!(failed, ["original, WARM_IP 5 MIN 16"]);
}
