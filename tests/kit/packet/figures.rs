//! Samples, their medians, and what is aimed at.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::layout::Layout;

/// Where packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// By a secondary ENI to another host of the VPC.
    Outside,
    /// To another pod of the node.
    Local,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    /// Nanoseconds per 64-byte datagram.
    Packet,
    /// Microseconds per question and answer.
    Answer,
    /// Gigabits per second of one TCP connection.
    Throughput,
    /// TCP connections per second.
    Connections,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::Outside, Self::Local];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Outside => "",
            Self::Local => "_local",
        }
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Outside => "pod to outside",
            Self::Local => "pod to pod",
        }
    }
}

impl Quantity {
    /// Its table in the JSON, and its name there.
    const fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Packet => ("packet", "ns"),
            Self::Answer => ("packet", "rr_us"),
            Self::Throughput => ("throughput", "gbit_s"),
            Self::Connections => ("connections", "per_s"),
        }
    }
}

/// What a sample belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) quantity: Quantity,
    pub(super) way: Way,
    pub(super) pods: u32,
    pub(super) layout: Layout,
}

/// All samples.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<Cell, Vec<f64>>);

/// Something to reach: a figure and what it should not exceed.
#[derive(Debug, Clone)]
pub(super) struct Aim {
    pub(super) what: String,
    pub(super) figure: f64,
    pub(super) at_most: f64,
}

impl Figures {
    pub(super) fn push(&mut self, cell: Cell, sample: f64) {
        self.0.entry(cell).or_default().push(sample);
    }

    /// The middle sample of a cell.
    pub(super) fn median(&self, cell: Cell) -> Option<f64> {
        median(&mut self.0.get(&cell)?.clone())
    }

    /// Tables by number of pods and layout.
    pub(super) fn json(&self) -> Value {
        let mut tables = json!({});
        for cell in self.0.keys() {
            let (table, name) = cell.quantity.keys();
            let table = format!("{table}{}", cell.way.suffix());
            tables[table][cell.pods.to_string()][cell.layout.name()][name] = rounded(self.median(*cell));
        }
        tables
    }

    /// Whether a packet of ours costs the same however many pods there are, and less than with rules per pod.
    pub(super) fn aims(&self) -> Vec<Aim> {
        let cost = |way, pods, layout| self.median(Cell { quantity: Quantity::Packet, way, pods, layout });
        let mut aims = Vec::new();
        for way in Way::ALL {
            let flat = ratio(cost(way, 700, Layout::Ours), cost(way, 0, Layout::Ours));
            let what = |text: &str| format!("{}: {text}", way.words());
            aims.extend(flat.map(|figure| Aim { what: what("700 pods / 0 pods"), figure, at_most: 1.15 }));
            let less = ratio(cost(way, 250, Layout::Ours), cost(way, 250, Layout::PerPodRules));
            let text = what("ours / per-pod rules, 250 pods");
            aims.extend(less.map(|figure| Aim { what: text, figure, at_most: 0.40 }));
        }
        aims
    }
}

impl Aim {
    pub(super) fn line(&self) -> String {
        let verdict = if self.met() { "met" } else { "not met" };
        format!("   {:<48} {:.2}, at most {:.2}: {verdict}", self.what, self.figure, self.at_most)
    }

    pub(super) fn json(&self) -> Value {
        let figure = rounded(Some(self.figure));
        json!({"what": self.what, "figure": figure, "at_most": self.at_most, "met": self.met()})
    }

    fn met(&self) -> bool {
        self.figure <= self.at_most
    }
}

/// The middle one, if there is any.
pub(super) fn median(samples: &mut [f64]) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

/// One by the other, where both are there.
pub(super) fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? / other.filter(|other| *other > 0.0)?)
}

/// Three digits after the point are more than any of these figures is worth.
fn rounded(figure: Option<f64>) -> Value {
    figure.map_or(Value::Null, |figure| ((figure * 1000.0).round() / 1000.0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(pods: u32, layout: Layout) -> Cell {
        Cell { quantity: Quantity::Packet, way: Way::Outside, pods, layout }
    }

    #[test]
    fn an_aim_compares_medians_and_says_its_figure() {
        let mut figures = Figures::default();
        [1000.0, 9000.0, 900.0].into_iter().for_each(|ns| figures.push(cell(0, Layout::Ours), ns));
        figures.push(cell(700, Layout::Ours), 1200.0);

        let lines: Vec<String> = figures.aims().iter().map(Aim::line).collect();

        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("1.20, at most 1.15: not met"), "{lines:?}");
    }

    #[test]
    fn an_aim_without_its_figures_is_not_judged() {
        let mut figures = Figures::default();
        figures.push(cell(3, Layout::Ours), 1000.0);

        assert!(figures.aims().is_empty());
    }
}
