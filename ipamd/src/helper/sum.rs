//! From what single nodes tell to figures of the cluster; pure.
//!
//! What counts up is told as what came since the round before, node by node: a node that is not heard for a round loses nothing and adds
//! nothing twice, a daemon that starts again counts from 0, and what nodes had counted before they were first heard is nobody's news.

use std::collections::BTreeMap;

use super::text::Scrape;

/// For so many rounds in a row a node that is not heard still has what it had last.
const STALE: u32 = 10;

/// How a figure comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The sum of what is.
    Gauge,
    /// The sum of what came.
    Count,
    /// The longest mean of one kind of call on one node, over what came. The Go version means the 99th percentile of a summary that has no
    /// percentiles, and tells 0.
    Mean,
}

/// Addresses by range, of both families.
const PER_CIDR: &str = "awscni_assigned_ip_per_cidr";
/// Figures as CloudWatch names them, from what metrics, and how.
const FIGURES: [(&str, &str, Kind); 20] = [
    ("addReqCount", "awscni_add_ip_req_count", Kind::Count),
    ("assignIPAddresses", "awscni_assigned_ip_addresses", Kind::Gauge),
    ("awsAPIErr", "awscni_aws_api_error_count", Kind::Count),
    ("awsAPILatency", "awscni_aws_api_latency_ms", Kind::Mean),
    ("awsUtilErr", "awscni_aws_utils_error_count", Kind::Count),
    ("delReqCount", "awscni_del_ip_req_count", Kind::Count),
    ("ec2ApiErrCount", "awscni_ec2api_error_count", Kind::Count),
    ("ec2ApiReqCount", "awscni_ec2api_req_count", Kind::Count),
    ("eniAllocated", "awscni_eni_allocated", Kind::Gauge),
    ("eniMaxAvailable", "awscni_eni_max", Kind::Gauge),
    ("forceRemoveENI", "awscni_force_removed_enis", Kind::Count),
    ("forceRemoveIPs", "awscni_force_removed_ips", Kind::Count),
    ("ipamdActionInProgress", "awscni_ipamd_action_inprogress", Kind::Gauge),
    ("ipamdErr", "awscni_ipamd_error_count", Kind::Count),
    ("maxIPAddresses", "awscni_ip_max", Kind::Gauge),
    ("podENIErr", "awscni_pod_eni_error_count", Kind::Count),
    ("reconcileCount", "awscni_reconcile_count", Kind::Count),
    ("totalAssignedIPv4sPerCidr", PER_CIDR, Kind::Gauge),
    ("totalIPAddresses", "awscni_total_ip_addresses", Kind::Gauge),
    ("totalIPv4Prefixes", "awscni_total_ipv4_prefixes", Kind::Gauge),
];
/// The two samples of a summary.
const SUM: &str = "awscni_aws_api_latency_ms_sum";
const COUNT: &str = "awscni_aws_api_latency_ms_count";

/// Whether a metric is of any use here.
pub(crate) fn is_summed(metric: &str) -> bool {
    metric == SUM
        || metric == COUNT
        || FIGURES.iter().any(|(_, source, kind)| *source == metric && *kind != Kind::Mean)
}

/// Whether a metric counts up.
fn counts(metric: &str) -> bool {
    let is = |(_, source, kind): &(&str, &str, Kind)| *source == metric && *kind == Kind::Count;
    metric == SUM || metric == COUNT || FIGURES.iter().any(is)
}

/// Whether a sample is of IPv6, in a metric of which CloudWatch's figure is one of IPv4.
fn is_of_ipv6(metric: &str, labels: &str) -> bool {
    // No other label's value has a colon.
    metric == PER_CIDR && labels.contains(':')
}

/// What is known of the nodes after a round.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Memory {
    pods: BTreeMap<String, Pod>,
    /// By metric: all that was counted since, and with it what nodes had when they were first heard.
    totals: BTreeMap<&'static str, f64>,
    /// Whether there was a round.
    begun: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Pod {
    /// What it told last. `None`: it was there before us, and never heard; nothing: it has come since, and so counts from 0.
    last: Option<Scrape>,
    /// Rounds since.
    missed: u32,
}

/// What a round says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Round {
    /// Figures by CloudWatch's name; none that is not known.
    pub(crate) figures: BTreeMap<&'static str, f64>,
    /// The cluster's sum of each metric; what counts up never falls.
    pub(crate) sums: BTreeMap<&'static str, Sum>,
}

/// The cluster's sum of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sum {
    /// Of what is.
    Gauge(f64),
    /// Of what was counted.
    Count(f64),
}

/// One round: what every node told that there is, or that it was not heard.
pub(crate) fn aggregate(before: &Memory, heard: BTreeMap<String, Option<Scrape>>) -> (Memory, Round) {
    let mut after = Memory { pods: BTreeMap::new(), totals: before.totals.clone(), begun: true };
    let mut came: BTreeMap<&'static str, f64> = BTreeMap::new();
    let mut longest: Option<f64> = None;
    for (name, scrape) in heard {
        let known = before.pods.get(&name).cloned();
        // Whoever comes once we watch has counted from 0.
        let known = known.unwrap_or(Pod { last: before.begun.then(Scrape::new), missed: 0 });
        let Some(scrape) = scrape else {
            after.pods.insert(name, Pod { missed: known.missed.saturating_add(1), ..known });
            continue;
        };
        match known.last.as_ref() {
            Some(last) => {
                let new = since(last, &scrape);
                add(&mut came, &new);
                add(&mut after.totals, &new);
                longest = longest.into_iter().chain(means(&new)).reduce(f64::max);
            }
            None => add(&mut after.totals, &scrape),
        }
        after.pods.insert(name, Pod { last: Some(scrape), missed: 0 });
    }
    let round = told(&after, before.begun.then_some(&came), longest);
    (after, round)
}

/// What came between two scrapes of what counts up.
fn since(last: &Scrape, now: &Scrape) -> Scrape {
    let counting = |scrape: &Scrape| -> Scrape {
        scrape
            .iter()
            .filter(|((metric, _), _)| counts(metric))
            .map(|(key, value)| (key.clone(), *value))
            .collect()
    };
    let (last, mut now) = (counting(last), counting(now));
    // One that has fallen or is gone says that the daemon has started again: then all of them count from 0.
    let goes_on = last.iter().all(|(key, value)| now.get(key).is_some_and(|now| now >= value));
    if goes_on {
        for (key, value) in &mut now {
            *value -= last.get(key).copied().unwrap_or_default();
        }
    }
    now
}

/// Adds by metric what counts up.
fn add(to: &mut BTreeMap<&'static str, f64>, scrape: &Scrape) {
    for ((metric, _), value) in scrape {
        let known = FIGURES.iter().filter(|(.., kind)| *kind == Kind::Count).map(|(_, source, _)| *source);
        if let Some(source) = known.chain([SUM, COUNT]).find(|source| source == metric) {
            *to.entry(source).or_default() += value;
        }
    }
}

/// The mean time of each kind of call that came.
fn means(new: &Scrape) -> impl Iterator<Item = f64> {
    new.iter().filter(|((metric, _), _)| metric == SUM).filter_map(|((_, labels), sum)| {
        let count = new.get(&(COUNT.to_owned(), labels.clone())).copied()?;
        (count > 0.0).then(|| sum / count)
    })
}

/// The figures: `came` is not there in the first round, when nothing is known to be new.
fn told(after: &Memory, came: Option<&BTreeMap<&'static str, f64>>, longest: Option<f64>) -> Round {
    let heard = after.pods.values().filter(|pod| pod.missed <= STALE).filter_map(|pod| pod.last.as_ref());
    let heard: Vec<&Scrape> = heard.filter(|scrape| !scrape.is_empty()).collect();
    let mut round = Round::default();
    if heard.is_empty() {
        return round;
    }
    let of = |sums: &BTreeMap<&'static str, f64>, source: &str| sums.get(source).copied().unwrap_or_default();
    for (figure, source, kind) in FIGURES {
        let value = match kind {
            Kind::Gauge => {
                let all = heard.iter().flat_map(|scrape| scrape.iter());
                // An empty sum of floats is -0.
                let (mut sum, mut of_figure) = (0.0, 0.0);
                for ((_, labels), value) in all.filter(|((metric, _), _)| metric == source) {
                    sum += value;
                    of_figure += if is_of_ipv6(source, labels) { 0.0 } else { *value };
                }
                round.sums.insert(source, Sum::Gauge(sum));
                Some(of_figure)
            }
            Kind::Count => {
                round.sums.insert(source, Sum::Count(of(&after.totals, source)));
                came.map(|came| of(came, source))
            }
            Kind::Mean => {
                round.sums.extend([SUM, COUNT].map(|part| (part, Sum::Count(of(&after.totals, part)))));
                longest
            }
        };
        round.figures.extend(value.map(|value| (figure, value)));
    }
    round
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::helper::text::scrape;

    fn heard(pages: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<Scrape>> {
        pages.iter().map(|(pod, page)| ((*pod).to_owned(), page.map(|page| scrape(page).unwrap()))).collect()
    }

    /// Rounds one after the other; what each of them says.
    fn rounds(all: &[&[(&str, Option<&str>)]]) -> Vec<Round> {
        let mut memory = Memory::default();
        let mut said = Vec::new();
        for pages in all {
            let (after, round) = aggregate(&memory, heard(pages));
            memory = after;
            said.push(round);
        }
        said
    }

    fn of(rounds: &[Round], figure: &str) -> Vec<Option<f64>> {
        rounds.iter().map(|round| round.figures.get(figure).copied()).collect()
    }

    #[test]
    fn gauges_are_summed_over_nodes_and_labels_from_the_first_round_on() {
        let one = "awscni_eni_max 3\nawscni_assigned_ip_per_cidr{cidr=\"a\"} 2\nawscni_assigned_ip_per_cidr{cidr=\"b\"} 1\n";
        let rounds = rounds(&[&[("a", Some(one)), ("b", Some("awscni_eni_max 8\n"))]]);

        assert_eq!(of(&rounds, "eniMaxAvailable"), [Some(11.0)]);
        assert_eq!(of(&rounds, "totalAssignedIPv4sPerCidr"), [Some(3.0)]);
        assert_eq!(of(&rounds, "ipamdActionInProgress"), [Some(0.0)]);
    }

    #[test]
    fn the_figure_of_ipv4_has_none_of_ipv6_and_the_metric_has_both() {
        let page = "awscni_assigned_ip_per_cidr{cidr=\"10.0.2.16/28\"} 2\nawscni_assigned_ip_per_cidr{cidr=\"2600:1f14::/80\"} 5\n";
        let rounds = rounds(&[&[("a", Some(page))]]);

        assert_eq!(of(&rounds, "totalAssignedIPv4sPerCidr"), [Some(2.0)]);
        assert_eq!(rounds[0].sums[PER_CIDR], Sum::Gauge(7.0));
    }

    #[test]
    fn the_first_round_counts_nothing_and_the_next_what_came_since() {
        let rounds = rounds(&[
            &[("a", Some("awscni_add_ip_req_count 1000\n"))],
            &[("a", Some("awscni_add_ip_req_count 1007\n"))],
            &[("a", Some("awscni_add_ip_req_count 1007\n"))],
        ]);

        assert_eq!(of(&rounds, "addReqCount"), [None, Some(7.0), Some(0.0)]);
        assert_eq!(rounds[2].sums["awscni_add_ip_req_count"], Sum::Count(1007.0));
    }

    #[test]
    fn a_daemon_that_starts_again_counts_from_nothing_in_all_that_it_counts() {
        // Deletions have not fallen below what they were, and are new all the same.
        let rounds = rounds(&[
            &[("a", Some("awscni_add_ip_req_count 50\nawscni_del_ip_req_count{reason=\"PodDeleted\"} 3\n"))],
            &[("a", Some("awscni_add_ip_req_count 2\nawscni_del_ip_req_count{reason=\"PodDeleted\"} 4\n"))],
        ]);

        assert_eq!(of(&rounds, "addReqCount"), [None, Some(2.0)]);
        assert_eq!(of(&rounds, "delReqCount"), [None, Some(4.0)]);
        assert_eq!(rounds[1].sums["awscni_add_ip_req_count"], Sum::Count(52.0));
    }

    #[test]
    fn a_node_that_is_not_heard_keeps_what_it_has_and_is_counted_once_it_is_heard_again() {
        let (one, two) = (
            "awscni_eni_max 3\nawscni_add_ip_req_count 10\n",
            "awscni_eni_max 3\nawscni_add_ip_req_count 25\n",
        );
        let still = ("b", Some("awscni_eni_max 4\nawscni_add_ip_req_count 1\n"));
        let rounds = rounds(&[&[("a", Some(one)), still], &[("a", None), still], &[("a", Some(two)), still]]);

        assert_eq!(of(&rounds, "eniMaxAvailable"), [Some(7.0); 3]);
        assert_eq!(of(&rounds, "addReqCount"), [None, Some(0.0), Some(15.0)]);
    }

    #[test]
    fn a_node_that_comes_later_is_new_in_all_it_counts_and_one_that_was_there_unheard_is_not() {
        let page = Some("awscni_add_ip_req_count 9\n");
        let one = ("a", Some("awscni_add_ip_req_count 0\n"));
        let rounds = rounds(&[
            &[one, ("there", None)],
            &[one, ("there", page), ("new", None)],
            &[one, ("there", page), ("new", page)],
        ]);

        assert_eq!(of(&rounds, "addReqCount"), [None, Some(0.0), Some(9.0)]);
        assert_eq!(rounds[2].sums["awscni_add_ip_req_count"], Sum::Count(18.0));
    }

    #[test]
    fn a_node_that_goes_takes_its_gauges_and_not_what_it_has_counted() {
        let page = Some("awscni_eni_max 3\nawscni_add_ip_req_count 9\n");
        let rounds = rounds(&[&[("a", page), ("b", page)], &[("a", page)]]);

        assert_eq!(of(&rounds, "eniMaxAvailable"), [Some(6.0), Some(3.0)]);
        assert_eq!(rounds[1].sums["awscni_add_ip_req_count"], Sum::Count(18.0));
    }

    #[test]
    fn nothing_is_told_while_nobody_is_heard_and_of_a_node_that_stays_away_nothing_after_a_while() {
        assert_eq!(
            rounds(&[&[], &[("a", None)], &[]]),
            [Round::default(), Round::default(), Round::default()]
        );

        let page = Some("awscni_eni_max 3\n");
        let mut all = vec![vec![("a", page), ("b", page)]];
        all.extend((0..12).map(|_| vec![("a", page), ("b", None)]));
        let rounds = rounds(&all.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let told = of(&rounds, "eniMaxAvailable");
        assert_eq!((told[10], told[11]), (Some(6.0), Some(3.0)));
    }

    #[test]
    fn latency_is_the_longest_mean_of_the_calls_that_came() {
        let page = |sum: u32, count: u32| {
            format!(
                "{SUM}{{api=\"A\"}} {sum}\n{COUNT}{{api=\"A\"}} {count}\n{SUM}{{api=\"B\"}} 10\n{COUNT}{{api=\"B\"}} 10\n"
            )
        };
        let (one, two) = (page(100, 1), page(300, 5));
        let rounds = rounds(&[&[("a", Some(&one))], &[("a", Some(&two))], &[("a", Some(&two))]]);

        assert_eq!(of(&rounds, "awsAPILatency"), [None, Some(50.0), None]);
    }

    #[test]
    fn every_figure_but_latency_is_told_once_a_node_is_heard_twice() {
        let one: &[_] = &[("a", Some("awscni_eni_max 3\n"))];
        let mut told: BTreeSet<_> = rounds(&[one, one])[1].figures.keys().copied().collect();
        told.insert("awsAPILatency");

        assert_eq!(told, FIGURES.iter().map(|(figure, ..)| *figure).collect());
    }

    /// What happens to one of three nodes in a round.
    #[derive(Debug, Clone)]
    struct Step {
        adds: [u32; 3],
        heard: [bool; 3],
        restarts: [bool; 3],
    }

    fn step() -> impl Strategy<Value = Step> {
        (
            prop::array::uniform3(0..50_u32),
            prop::array::uniform3(any::<bool>()),
            prop::array::uniform3(prop::bool::weighted(0.1)),
        )
            .prop_map(|(adds, heard, restarts)| Step { adds, heard, restarts })
    }

    fn run(steps: &[Step]) -> (f64, f64, Vec<Round>) {
        let (mut memory, mut counters, mut began, mut said) =
            (Memory::default(), [100_u32; 3], [100_u32; 3], Vec::new());
        let mut came = 0;
        // Heard once in the beginning, so that all is news, and once at the end.
        let all = |heard| Step { adds: [0; 3], heard: [heard; 3], restarts: [false; 3] };
        for step in [all(true)].iter().chain(steps).chain(&[all(true)]) {
            let mut pages = BTreeMap::new();
            for pod in 0..3 {
                if step.restarts[pod] {
                    (counters[pod], began[pod]) = (0, 0);
                }
                counters[pod] += step.adds[pod];
                came += step.adds[pod];
                let page = format!("awscni_add_ip_req_count {}\nawscni_eni_max 1\n", counters[pod]);
                pages.insert(pod.to_string(), step.heard[pod].then(|| scrape(&page).unwrap()));
            }
            let (after, round) = aggregate(&memory, pages);
            memory = after;
            said.push(round);
        }
        let told = said.iter().filter_map(|round| round.figures.get("addReqCount")).sum();
        (told, f64::from(came), said)
    }

    proptest! {
        #[test]
        fn whoever_is_missed_when_what_came_is_told_once_and_whole(steps in prop::collection::vec(step(), 0..9)) {
            let steps: Vec<Step> = steps.into_iter().map(|step| Step { restarts: [false; 3], ..step }).collect();
            let (told, came, said) = run(&steps);

            prop_assert!((told - came).abs() < 0.5, "{told} of {came}");
            prop_assert!(said.iter().all(|round| round.figures["eniMaxAvailable"] == 3.0));
        }

        #[test]
        fn restarts_lose_what_nobody_heard_and_never_add_or_take(steps in prop::collection::vec(step(), 0..9)) {
            let (told, came, said) = run(&steps);

            prop_assert!(told <= came, "{told} of {came}");
            let counts: Vec<f64> = said.iter().filter_map(|round| round.figures.get("addReqCount")).copied().collect();
            prop_assert!(counts.iter().all(|count| *count >= 0.0));
            let mut totals = said.iter().map(|round| match round.sums["awscni_add_ip_req_count"] {
                Sum::Count(total) => total,
                Sum::Gauge(_) => f64::NAN,
            });
            prop_assert!(totals.by_ref().is_sorted());
        }
    }
}
