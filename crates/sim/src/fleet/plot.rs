//! The figures as a picture: how long pods waited, as a distribution, and what the nodes hold. SVG by hand.

use super::Run;
use super::figures::{Figures, as_f64};
use super::policy::Policy;
use super::scenario::Phase;

/// A colour for each of [`Policy::ALL`]: blues and greens are ours, warm ones the original's.
const COLOURS: [&str; Policy::ALL.len()] =
    ["#0b4f9e", "#138a72", "#5b8fd6", "#8a63c9", "#57b894", "#d1340f", "#e08a00", "#a3195b"];
/// Panels in a row, each of this size, and what is left free around them.
const PANELS: [Panel; 4] =
    [Panel::Waits(Phase::Boot), Panel::Waits(Phase::Deploy), Panel::Waits(Phase::Exchange), Panel::Held];
const PANEL: (f64, f64) = (300.0, 240.0);
const LEFT: f64 = 60.0;
const GAP: f64 = 50.0;
const TOP: f64 = 110.0;
const ROW: f64 = PANEL.1 + 90.0;
/// Waits from a millisecond to ten thousand seconds, in powers of ten.
const DECADES: u32 = 7;

#[derive(Debug, Clone, Copy)]
enum Panel {
    Waits(Phase),
    Held,
}

/// Draws the runs: a row for each size of the fleet.
#[must_use]
pub fn plot(runs: &[Run]) -> String {
    let mut sizes: Vec<u32> = runs.iter().map(|run| run.nodes).collect();
    sizes.dedup();
    let width = LEFT + (PANEL.0 + GAP) * 4.0;
    let height = (0..sizes.len()).fold(TOP, |sum, _| sum + ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#222\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    svg.push_str(&text(
        LEFT,
        24.0,
        "Time until pods have their address, and addresses held",
        "font-size=\"17\"",
    ));
    svg.push_str(&legend());
    let mut top = TOP;
    for nodes in sizes {
        let mut left = LEFT;
        let of_size: Vec<&Run> = runs.iter().filter(|run| run.nodes == nodes).collect();
        for panel in PANELS {
            svg.push_str(&format!("<g transform=\"translate({left} {top})\">\n"));
            svg.push_str(&panel.draw(nodes, &of_size));
            svg.push_str("</g>\n");
            left += PANEL.0 + GAP;
        }
        top += ROW;
    }
    svg + "</svg>\n"
}

fn legend() -> String {
    let mut svg = String::new();
    for (index, policy) in (0_u32..).zip(Policy::ALL) {
        let (column, row) = (index % 4, index / 4);
        let (x, y) = (LEFT + f64::from(column) * 260.0, 48.0 + f64::from(row) * 20.0);
        svg.push_str(&format!("<path d=\"M{x} {y}h28\" {}/>\n", stroke(policy)));
        svg.push_str(&text(x + 34.0, y + 4.0, policy.name, ""));
    }
    svg
}

impl Panel {
    fn draw(self, nodes: u32, runs: &[&Run]) -> String {
        let title = match self {
            Self::Waits(phase) => format!("{nodes} nodes, {}", phase.name()),
            Self::Held => format!("{nodes} nodes, held per pod at the end"),
        };
        let drawn = match self {
            Self::Waits(phase) => {
                let curves = runs.iter().filter_map(|run| Some(curve(run.policy, run.figures(phase)?)));
                axes() + &curves.collect::<String>()
            }
            Self::Held => held(runs),
        };
        text(0.0, -10.0, &title, "font-size=\"13\" font-weight=\"bold\"") + &drawn
    }
}

/// Both axes with their grid and words.
fn axes() -> String {
    let (width, height) = PANEL;
    let mut svg = String::new();
    for decade in 0..=DECADES {
        let x = f64::from(decade) * width / f64::from(DECADES);
        svg.push_str(&format!("<path d=\"M{x:.1} 0v{height}\" stroke=\"#e4e4e4\"/>\n"));
        let words = match 10_u64.pow(decade) {
            millis @ 0..1000 => format!("{millis} ms"),
            millis => format!("{} s", millis / 1000),
        };
        svg.push_str(&text(x, height + 14.0, &words, "text-anchor=\"middle\" font-size=\"9\""));
    }
    for percent in [0, 25, 50, 75, 100_u32] {
        let y = height - f64::from(percent) * height / 100.0;
        svg.push_str(&format!("<path d=\"M0 {y}h{width}\" stroke=\"#e4e4e4\"/>\n"));
        svg.push_str(&text(-6.0, y + 4.0, &format!("{percent} %"), "text-anchor=\"end\" font-size=\"9\""));
    }
    svg.push_str(&format!("<path d=\"M0 0v{height}h{width}\" fill=\"none\" stroke=\"#555\"/>\n"));
    svg.push_str(&text(
        width / 2.0,
        height + 32.0,
        "wait from wanted to addressed",
        "text-anchor=\"middle\"",
    ));
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 -40 {0})\"", height / 2.0);
    svg + &text(-40.0, height / 2.0, "pods with an address", &turned)
}

/// The part of the pods that have their address after each time.
fn curve(policy: Policy, figures: &Figures) -> String {
    let (width, height) = PANEL;
    let last = u32::try_from(figures.waits.len().saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    let points = (0_u32..).zip(&figures.waits).filter_map(|(point, wait)| {
        let x = as_f64((*wait)?.max(1)).log10() * width / f64::from(DECADES);
        let y = height - height * f64::from(point) / f64::from(last);
        Some(format!("{:.1} {y:.1}", x.min(width)))
    });
    let points: Vec<String> = points.collect();
    match points.is_empty() {
        true => String::new(),
        false => format!("<path d=\"M{}\" {}/>\n", points.join("L"), stroke(policy)),
    }
}

/// A bar for each policy.
fn held(runs: &[&Run]) -> String {
    let (width, height) = PANEL;
    let runs: Vec<(Policy, f64)> =
        runs.iter().filter_map(|run| Some((run.policy, run.figures(Phase::Idle)?.held_per_pod))).collect();
    let most = runs.iter().map(|(_, held)| *held).fold(1.0, f64::max);
    let count = u32::try_from(runs.len()).unwrap_or(u32::MAX).max(1);
    let step = height / f64::from(count);
    let mut svg = format!("<path d=\"M0 0v{height}\" stroke=\"#555\"/>\n");
    for (index, (policy, held)) in (0_u32..).zip(runs) {
        let y = f64::from(index) * step;
        let long = held / most * (width - 40.0);
        let colour = colour(policy);
        svg.push_str(&text(2.0, y + 10.0, policy.name, "font-size=\"10\""));
        svg.push_str(&format!(
            "<rect x=\"0\" y=\"{:.1}\" width=\"{long:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n",
            y + 14.0,
            step - 18.0
        ));
        svg.push_str(&text(long + 5.0, y + step / 2.0 + 10.0, &format!("{held:.2}"), ""));
    }
    svg
}

fn colour(policy: Policy) -> &'static str {
    let index = Policy::ALL.iter().position(|other| *other == policy).unwrap_or(0);
    COLOURS.get(index).copied().unwrap_or("#000")
}

fn stroke(policy: Policy) -> String {
    let dashes = if policy.is_original { " stroke-dasharray=\"6 3\"" } else { "" };
    format!("fill=\"none\" stroke-width=\"2\" stroke=\"{}\"{dashes}", colour(policy))
}

fn text(x: f64, y: f64, words: &str, more: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{words}</text>\n")
}
