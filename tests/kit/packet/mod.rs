//! What a packet of a pod costs, by the number of pods on its node and by what the host's kernel holds: our rules, one
//! pair of rules per pod, and routes alone. All three stand side by side, and their samples take turns, so that whatever
//! else the machine does hits all alike.
//!
//! - `node`: a node, its ENIs and pods; `layout`: what its kernel holds;
//! - `traffic`: what is sent and how it is timed; `figures`: medians, tables, aims.

mod figures;
mod layout;
mod node;
mod traffic;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{LabError, bench};
use figures::{Aim, Cell, Figures, Quantity, Way, ratio};
use traffic::Station;

pub use layout::Layout;
pub use node::{Node, Pod, TARGET};
pub use traffic::arrivals;

/// Numbers of pods at which TCP, ADD and DEL are measured too.
const THOROUGH: [u32; 3] = [0, 250, 700];

/// What to measure.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Pods on the node besides the two that packets go between.
    pub pods: Vec<u32>,
    /// How long to measure.
    pub effort: Effort,
}

/// How much each sample takes and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Samples of each figure.
    pub rounds: u32,
    /// Datagrams in a sample.
    pub packets: u32,
    /// Questions in a sample.
    pub questions: u32,
    /// How long a sample sends in bulk.
    pub bulk: Duration,
    /// Connections in a sample.
    pub connections: u32,
    /// ADDs, and DELs, at a number of pods; at most 30, which a full node can have besides 700.
    pub adds: u32,
}

impl Effort {
    /// For figures to publish.
    pub const FULL: Self = Self {
        rounds: 7,
        packets: 30_000,
        questions: 1_000,
        bulk: Duration::from_millis(200),
        connections: 1_000,
        adds: 30,
    };
}

/// Measures it all; says how far it is, returns the figures. The caller is in the lab already.
///
/// # Errors
/// A wish that cannot be, or whatever keeps it from running.
pub fn run(wish: &Wish, say: &mut dyn FnMut(&str)) -> Result<Value, LabError> {
    let levels = levels(&wish.pods)?;
    let started = Instant::now();
    let thorough: Vec<u32> = levels.iter().copied().filter(|level| THOROUGH.contains(level)).collect();
    // First, because thousands of namespaces make an ADD slow; and kept, because the kernel is long busy with those that end.
    let grown = bench::growth(&thorough, wish.effort.adds, say)?;
    let figures = measure(&levels, &wish.effort, say)?;
    let mut json = figures.json();
    json["add_del"] = grown.map_or_else(|| json!({}), |grown| grown.figures);
    let mut aims = figures.aims();
    aims.extend(["add", "del"].into_iter().filter_map(|verb| flat(&json["add_del"], verb)));
    say("── aims");
    aims.iter().for_each(|aim| say(&aim.line()));
    json["aims"] = aims.iter().map(Aim::json).collect();
    say(&format!("── measured in {} s", started.elapsed().as_secs()));
    Ok(json)
}

/// In rising order; two pods that were measured count as others at the next level.
fn levels(pods: &[u32]) -> Result<Vec<u32>, LabError> {
    let mut levels = pods.to_vec();
    levels.sort_unstable();
    let apart = levels.iter().zip(levels.iter().skip(1)).all(|(one, next)| next - one >= 2);
    match apart && !levels.is_empty() {
        true => Ok(levels),
        false => Err(LabError::Otherwise("numbers of pods must differ by two or more".to_owned())),
    }
}

fn measure(levels: &[u32], effort: &Effort, say: &mut dyn FnMut(&str)) -> Result<Figures, LabError> {
    let mut figures = Figures::default();
    let mut nodes = Layout::ALL.into_iter().map(Node::create).collect::<Result<Vec<_>, _>>()?;
    let _far = nodes.iter().map(|node| Station::start(node.far())).collect::<Result<Vec<_>, _>>()?;
    say(&headings());
    for level in levels {
        let others = usize::try_from(*level).map_err(|error| LabError::Otherwise(error.to_string()))?;
        nodes.iter_mut().try_for_each(|node| node.grow(others))?;
        let peers = nodes.iter().map(|node| Station::start(&node.measured()?.1.netns));
        let peers = peers.collect::<Result<Vec<_>, _>>()?;
        for way in Way::ALL {
            take_turns(&nodes, way, *level, effort, &mut figures)?;
        }
        drop(peers);
        Layout::ALL.into_iter().for_each(|layout| say(&row(&figures, *level, layout)));
    }
    Ok(figures)
}

/// Every figure of one level and way: one sample of each layout, again and again.
fn take_turns(
    nodes: &[Node],
    way: Way,
    pods: u32,
    effort: &Effort,
    figures: &mut Figures,
) -> Result<(), LabError> {
    let mut quantities = vec![Quantity::Packet, Quantity::Answer];
    if THOROUGH.contains(&pods) {
        quantities.extend([Quantity::Throughput, Quantity::Connections]);
    }
    for quantity in quantities {
        for _round in 0..effort.rounds {
            for node in nodes {
                let cell = Cell { quantity, way, pods, layout: node.layout() };
                figures.push(cell, sample(node, quantity, way, effort)?);
            }
        }
    }
    Ok(())
}

fn sample(node: &Node, quantity: Quantity, way: Way, effort: &Effort) -> Result<f64, LabError> {
    let (sender, peer) = node.measured()?;
    let (from, to, at) = match way {
        Way::Outside => (&sender.netns, node.far(), TARGET),
        Way::Local => (&sender.netns, &peer.netns, peer.address),
    };
    match quantity {
        Quantity::Packet => traffic::per_packet(from, to, at, effort),
        Quantity::Answer => traffic::per_answer(from, at, effort),
        Quantity::Throughput => traffic::throughput(from, at, effort),
        Quantity::Connections => traffic::connections(from, at, effort),
    }
}

fn headings() -> String {
    let columns = "ns/packet us/answer    Gbit/s connections/s    ";
    let [outside, local] = Way::ALL.map(Way::words);
    format!("   {:<22}{outside:<47}{local}\n   {:>5}  {:<15}{columns}{columns}", "", "pods", "")
}

fn row(figures: &Figures, pods: u32, layout: Layout) -> String {
    let of = |way: Way| {
        let median = |quantity, width: usize, digits: usize| {
            let median = figures.median(Cell { quantity, way, pods, layout });
            median.map_or_else(|| format!("{:>width$}", "-"), |figure| format!("{figure:>width$.digits$}"))
        };
        format!(
            "{} {} {} {}    ",
            median(Quantity::Packet, 9, 0),
            median(Quantity::Answer, 9, 1),
            median(Quantity::Throughput, 9, 1),
            median(Quantity::Connections, 13, 0)
        )
    };
    format!("   {pods:>5}  {:<15}{}{}", layout.name(), of(Way::Outside), of(Way::Local))
}

/// Whether an ADD or a DEL takes as long with 700 pods as with none.
fn flat(figures: &Value, verb: &str) -> Option<Aim> {
    let median = |pods: &str| figures[pods][verb]["p50_us"].as_f64();
    let figure = ratio(median("700"), median("0"))?;
    Some(Aim { what: format!("{}: 700 pods / 0 pods", verb.to_uppercase()), figure, at_most: 1.25 })
}

/// Tells an error with its causes.
fn refused<E: std::error::Error>(error: E) -> LabError {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    LabError::Otherwise(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_rise_and_leave_room_for_the_pods_that_were_measured() {
        assert_eq!(levels(&[28, 0]).unwrap(), [0, 28]);
        assert!(levels(&[0, 1]).is_err() && levels(&[3, 3]).is_err() && levels(&[]).is_err());
    }
}
