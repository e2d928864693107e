//! The figures as tables, for the terminal and for a file.

use super::budget::{self, Budget};
use super::figures::Figures;
use super::scenario::{Phase, SYSTEM_PODS};
use super::{Run, Wish};

const HEADINGS: [&str; 9] =
    ["policy", "p50", "p99", "max", "failed ADDs", "throttled", "changes/pod", "describes/pod", "held/pod"];

/// The tables for a terminal.
#[must_use]
pub fn table(runs: &[Run]) -> String {
    let title = |nodes: u32, phase: Phase| format!("── {nodes} nodes, {}\n", phase.name());
    let line = |cells: &[String; 9]| {
        let [policy, rest @ ..] = cells;
        let rest: String = rest.iter().map(|cell| format!("{cell:>14}")).collect();
        format!("   {policy:<27}{}\n", rest.trim_end())
    };
    tables(runs, &title, &|cells| line(cells), "")
}

/// The tables in Markdown, with what was simulated.
#[must_use]
pub fn markdown(wish: &Wish, runs: &[Run], budgets: &[Budget]) -> String {
    let Wish { rates, seed, instance_type, retry, applications, .. } = wish;
    let buckets = if rates.pooled { "one bucket for each kind" } else { "a bucket for each API" };
    let said = format!(
        "# Fleet simulation\n\nSeed {seed}, {instance_type}, {SYSTEM_PODS} and {applications} pods on each, {buckets}: describe \
         calls {} at once and {} per second, calls that change something {} and {}; the kubelet tries again after {} s and up to half as much more.\n\n\
         How long pods waited from when they were wanted until they had their address; ADDs that failed; the part of \
         all calls that EC2 refused; calls performed for each pod; addresses held beside the nodes' own for each \
         running pod, at the end of the phase.\n",
        rates.describe.burst,
        rates.describe.per_second,
        rates.change.burst,
        rates.change.per_second,
        retry.as_secs(),
    );
    let title = |nodes: u32, phase: Phase| format!("\n## {nodes} nodes, {}\n\n", phase.name());
    let line = |cells: &[String; 9]| format!("| {} |\n", cells.join(" | "));
    let budget = format!(
        "\n## EC2 calls of one node\n\nIdle; for its first 16 addresses, ENIs apart; for each pod that comes and goes.\n\n```text\n{}```\n",
        budget::table(budgets)
    );
    said + &tables(runs, &title, &|cells| line(cells), "|---|--:|--:|--:|--:|--:|--:|--:|--:|\n") + &budget
}

fn tables(
    runs: &[Run],
    title: &dyn Fn(u32, Phase) -> String,
    line: &dyn Fn(&[String; 9]) -> String,
    rule: &str,
) -> String {
    let mut sizes: Vec<u32> = runs.iter().map(|run| run.nodes).collect();
    sizes.dedup();
    let mut text = String::new();
    for (nodes, phase) in sizes.iter().flat_map(|nodes| Phase::ALL.map(|phase| (*nodes, phase))) {
        text.push_str(&title(nodes, phase));
        text.push_str(&line(&HEADINGS.map(str::to_owned)));
        text.push_str(rule);
        for run in runs.iter().filter(|run| run.nodes == nodes) {
            let cells = run.figures(phase).map(|figures| cells(run.policy.name, figures));
            text.extend(cells.map(|cells| line(&cells)));
        }
    }
    text
}

fn cells(policy: &str, figures: &Figures) -> [String; 9] {
    let wait = |percent| match figures.percentile(percent) {
        _ if figures.waits.iter().all(Option::is_none) => "-".to_owned(),
        Some(millis) => duration(millis),
        None => "never".to_owned(),
    };
    [
        policy.to_owned(),
        wait(50),
        wait(99),
        wait(100),
        figures.failed.to_string(),
        format!("{:.1} %", figures.throttled * 100.0),
        format!("{:.3}", figures.changes_per_pod),
        format!("{:.3}", figures.describes_per_pod),
        format!("{:.2}", figures.held_per_pod),
    ]
}

/// A time for people.
pub(crate) fn duration(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..10_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        10_000..600_000 => format!("{} s", millis / 1000),
        _ => format!("{} min", millis / 60_000),
    }
}
