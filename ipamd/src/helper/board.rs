//! What the metrics helper itself serves: the cluster's sums under the names of the nodes' metrics, and how its own work goes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::sum::{Round, Sum};
use crate::metrics::Untyped;
use crate::web;

/// Where the Go version's helper serves.
const PORT: u16 = 61681;

/// What came of asking a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It has told its metrics.
    Well,
    /// It has told something else.
    Garbage,
    /// It has not answered, or refused.
    Silent,
    /// It was not known whom to ask.
    Nobody,
}

/// What became of data for CloudWatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// They are there.
    Done,
    /// They may be there, or can only be refused.
    GivenUp,
    /// They had to make room.
    Dropped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What is counted of its own work. Copies count together.
#[derive(Debug, Clone)]
pub(super) struct Board {
    registry: Arc<Registry>,
    pods: Gauge,
    scrapes: Family<OutcomeLabel, Counter>,
    points: Family<OutcomeLabel, Counter>,
    waiting: Gauge,
}

impl Default for Board {
    fn default() -> Self {
        let (pods, waiting) = (Gauge::default(), Gauge::default());
        let (scrapes, points) = (Family::default(), Family::default());
        let mut all = Registry::default();
        all.register("ipamd_helper_pods", "Pods of daemons that the API server tells", pods.clone());
        all.register("ipamd_helper_scrapes", "Nodes asked for their metrics, by outcome", scrapes.clone());
        all.register("ipamd_helper_points", "Data for CloudWatch, by what became of them", points.clone());
        all.register("ipamd_helper_points_waiting", "Data that CloudWatch has yet to hear", waiting.clone());
        Self { registry: Arc::new(all), pods, scrapes, points, waiting }
    }
}

impl Board {
    /// So many pods there are.
    pub(super) fn pods(&self, count: usize) {
        self.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A node was asked.
    pub(super) fn heard(&self, heard: Heard) {
        let outcome = match heard {
            Heard::Well => "done",
            Heard::Garbage => "garbage",
            Heard::Silent => "silent",
            Heard::Nobody => "nobody",
        };
        self.scrapes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Something became of so many data.
    pub(super) fn told(&self, told: Told, count: usize) {
        let outcome = match told {
            Told::Done => "done",
            Told::GivenUp => "given-up",
            Told::Dropped => "dropped",
        };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.points.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }

    /// So many data wait.
    pub(super) fn waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn text(&self, round: &Round) -> Result<String, fmt::Error> {
        let mut sums = Registry::default();
        for (metric, sum) in &round.sums {
            match *sum {
                Sum::Gauge(value) => {
                    sums.register(*metric, "The cluster's sum of it", ConstGauge::new(value))
                }
                Sum::Count(value) => {
                    sums.register(*metric, "The cluster's sum of it", Untyped(ConstGauge::new(value)))
                }
            }
        }
        let mut text = String::new();
        encode_registry(&mut text, &sums)?;
        encode_registry(&mut text, &self.registry)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Serves until the process ends. An address that cannot be had is no reason not to tell CloudWatch.
pub(super) async fn serve(at: Option<SocketAddr>, board: Board, rounds: watch::Receiver<Round>) {
    let app = Router::new().route("/metrics", get(scrape)).with_state((board, rounds));
    web::serve_bounded(at, PORT, app).await;
}

async fn scrape(
    State((board, rounds)): State<(Board, watch::Receiver<Round>)>,
    asked: HeaderMap,
) -> Response {
    let text = board.text(&rounds.borrow());
    match text {
        Ok(text) => web::metrics_as_asked(&asked, text),
        Err(_full) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stand_under_the_names_of_the_nodes_metrics_beside_its_own() {
        let board = Board::default();
        board.pods(2);
        board.heard(Heard::Garbage);
        board.told(Told::Done, 20);
        let sums = [("awscni_eni_max", Sum::Gauge(6.0)), ("awscni_add_ip_req_count", Sum::Count(41.0))];

        let text = board.text(&Round { sums: sums.into(), ..Round::default() }).unwrap();

        for line in [
            "# TYPE awscni_eni_max gauge",
            "awscni_eni_max 6.0",
            "# TYPE awscni_add_ip_req_count unknown",
            "awscni_add_ip_req_count 41.0",
            "ipamd_helper_pods 2",
            "ipamd_helper_scrapes_total{outcome=\"garbage\"} 1",
            "ipamd_helper_points_total{outcome=\"done\"} 20",
            "# EOF",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
