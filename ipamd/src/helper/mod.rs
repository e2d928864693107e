//! `ipamd metrics-helper`: once per cluster, sums of what all daemons tell, for CloudWatch and Prometheus.
//!
//! The Go version's `cni-metrics-helper` with its figures, names and settings. It asks each node's metrics through the API server, one after
//! the other. Whatever does not answer is a state that is told once with its cause, and never the end: only what is wrong with the
//! settings is.

mod board;
mod publisher;
mod queue;
mod sum;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::app::RunError;
use crate::clock::Clock;
use crate::cloud::MetricPoint;
use crate::cluster::{Door, Served};
use crate::config::{Helper, Switches};
use crate::server::chain;
use crate::stop::until_stopped;
use board::{Board, Heard};
use publisher::Publisher;
use sum::{Memory, Round, aggregate};
use text::Scrape;

/// Where the daemons' pods are, and by which label they are known.
const NAMESPACE: &str = "kube-system";
const LABEL: &str = "k8s-app=aws-node";
/// Where each daemon serves its metrics.
const PORT: u16 = 61678;
/// The longest page that is read of a node, in bytes.
const PAGE_MAX: usize = 4 * 1024 * 1024;
/// Rounds that may wait for CloudWatch to be told.
const ROUNDS_MAX: usize = 16;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Only for what is local and cannot be done without.
pub fn run(settings: Helper) -> Result<(), RunError> {
    until_stopped(async |stop| {
        stop.before(work(settings)).await;
        Ok(())
    })
}

async fn work(settings: Helper) {
    for warning in &settings.config.warnings {
        tracing::warn!("{warning}");
    }
    let Switches { cloudwatch, prometheus } = settings.switches;
    let interval = settings.interval;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?interval, cloudwatch, prometheus, "helping");
    let (board, clock) = (Board::default(), Clock::start());
    let (latest, sums) = watch::channel(Round::default());
    if prometheus {
        tokio::spawn(board::serve(settings.bind, board.clone(), sums));
    }
    let (points, told) = mpsc::channel(ROUNDS_MAX);
    if cloudwatch {
        tokio::spawn(Publisher::new(settings.clone(), board.clone(), clock).run(told));
    }
    let mut rounds = tokio::time::interval(settings.interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tour = Tour {
        door: Door::new(settings.cluster),
        board,
        next: String::new(),
        silent: BTreeMap::new(),
        trouble: None,
    };
    let mut memory = Memory::default();
    loop {
        rounds.tick().await;
        let at = clock.now();
        let Some(heard) = tour.round(settings.interval).await else { continue };
        let (after, round) = aggregate(&memory, heard);
        memory = after;
        let figures = round.figures.iter().map(|(name, value)| MetricPoint { name, at, value: *value });
        let figures: Vec<MetricPoint> = figures.collect();
        latest.send_replace(round);
        // Full only while CloudWatch takes longer than many rounds: these figures are then missing there.
        if cloudwatch && points.try_send(figures).is_err() {
            tracing::warn!("CloudWatch is slower than the rounds: one is left out");
        }
    }
}

/// Asks all nodes, and says what changed in whether they answer.
struct Tour {
    door: Door,
    board: Board,
    /// Where the next round begins: one that takes too long is not always at the cost of the same nodes.
    next: String,
    /// Who does not answer, and why not.
    silent: BTreeMap<String, String>,
    /// Why it is not known who there is.
    trouble: Option<String>,
}

impl Tour {
    /// What each node tells, if it is known which there are.
    async fn round(&mut self, longest: Duration) -> Option<BTreeMap<String, Option<Scrape>>> {
        let end = Instant::now() + longest;
        let pods = match self.door.pods(NAMESPACE, LABEL).await {
            Ok(pods) => pods,
            Err(refusal) => {
                self.unknown(refusal.to_string());
                return None;
            }
        };
        if self.trouble.take().is_some() {
            tracing::info!("the API server tells the pods again");
        }
        self.board.pods(pods.len());
        self.silent.retain(|name, _| pods.contains(name));
        let mut heard: BTreeMap<_, _> = pods.into_iter().map(|name| (name, None)).collect();
        for name in in_turn(&heard, &self.next) {
            if Instant::now() >= end {
                tracing::warn!(from = name, "the round takes too long; the next one begins here");
                self.next = name;
                return Some(heard);
            }
            let told = self.ask(&name).await;
            heard.insert(name, told);
        }
        self.next.clear();
        Some(heard)
    }

    async fn ask(&mut self, name: &str) -> Option<Scrape> {
        let served = Served { namespace: NAMESPACE, name, port: PORT, path: "metrics" };
        let (heard, told) = match self.door.proxied(&served, PAGE_MAX).await {
            Err(refusal) => (Heard::Silent, Err(refusal.to_string())),
            Ok(page) => match text::scrape(&page) {
                Ok(scrape) => (Heard::Well, Ok(scrape)),
                Err(why) => (Heard::Garbage, Err(chain(&why))),
            },
        };
        self.board.heard(heard);
        match told {
            Ok(scrape) => {
                if self.silent.remove(name).is_some() {
                    tracing::info!(pod = name, "its metrics are told again");
                }
                Some(scrape)
            }
            Err(why) => {
                // The cause as it was first: its words may differ from round to round.
                if !self.silent.contains_key(name) {
                    tracing::warn!(
                        pod = name,
                        why,
                        "its metrics are not to be had; what it told last stands for a while"
                    );
                    self.silent.insert(name.to_owned(), why);
                }
                None
            }
        }
    }

    fn unknown(&mut self, why: String) {
        self.board.heard(Heard::Nobody);
        if self.trouble.is_none() {
            tracing::warn!(why, "the API server does not tell which pods there are");
        }
        self.trouble = Some(why);
    }
}

/// The nodes from one on, and then those before it.
fn in_turn<T>(pods: &BTreeMap<String, T>, from: &str) -> Vec<String> {
    let (before, after): (Vec<&String>, Vec<&String>) = pods.keys().partition(|name| name.as_str() < from);
    after.into_iter().chain(before).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_begins_where_the_one_before_had_to_end() {
        let pods = ["a", "b", "c"].map(|name| (name.to_owned(), ())).into();

        assert_eq!(in_turn(&pods, ""), ["a", "b", "c"]);
        assert_eq!(in_turn(&pods, "b"), ["b", "c", "a"]);
        assert_eq!(in_turn(&pods, "bb"), ["c", "a", "b"]);
    }
}
