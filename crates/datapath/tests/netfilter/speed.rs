//! How long it takes: `cargo test --test netfilter -- --bench`. Otherwise each measure runs twice, to see that it works.

use std::time::Instant;

use datapath::Family;
use datapath::netfilter::{NatSpec, Netfilter, NetfilterError, ruleset};
use libtest_mimic::{Failed, Measurement, Trial};

use crate::lab::Space;
use crate::values::crowded;

type Work = fn(&mut Netfilter, &NatSpec) -> Result<(), NetfilterError>;

/// What is measured, with a table in place that has all sources.
const MEASURES: [(&str, Work); 3] = [
    ("create", |netfilter, spec| {
        netfilter.remove(Family::V4)?;
        netfilter.put(ruleset(spec)).map(drop)
    }),
    ("take_out_one_and_put_it_back", |netfilter, spec| {
        let mut fewer = spec.clone();
        fewer.sources.pop_last();
        netfilter.put(ruleset(&fewer))?;
        netfilter.put(ruleset(spec)).map(drop)
    }),
    ("matches", |netfilter, spec| netfilter.matches(&ruleset(spec)).map(drop)),
];

/// Every measure for a small and for a large node.
pub(crate) fn trials() -> Vec<Trial> {
    let sizes = [(3, 15), (50, 15)];
    sizes
        .into_iter()
        .flat_map(|(enis, addresses)| MEASURES.map(|measure| trial(enis, addresses, measure)))
        .collect()
}

fn trial(enis: u32, addresses: u32, (name, work): (&str, Work)) -> Trial {
    Trial::bench(format!("{name}_{enis}_x_{addresses}_sources"), move |test_mode| {
        let rounds = if test_mode { 2 } else { 50 };
        Space::new()?.run(|| measure(&crowded(enis, addresses), work, rounds)).map(Some)
    })
}

fn measure(spec: &NatSpec, work: Work, rounds: u32) -> Result<Measurement, Failed> {
    let mut netfilter = Netfilter::default();
    netfilter.put(ruleset(spec))?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        work(&mut netfilter, spec)?;
        times.push(u64::try_from(start.elapsed().as_nanos())?);
    }
    let count = u64::from(rounds);
    let avg = times.iter().sum::<u64>() / count;
    let variance = times.iter().map(|time| time.abs_diff(avg).pow(2)).sum::<u64>() / count;
    Ok(Measurement { avg, variance })
}
