//! Histories in the tests: as many as there is time for, those that others have published, and each planted bug.

use std::time::Duration;

use super::{Manner, NAMED, find_plants, tell, tell_many};

#[test]
fn histories_hold() {
    let told = tell_many(1, u64::MAX, Duration::from_secs(100), &|_| {});

    let wrong: Vec<String> =
        told.findings.iter().map(|finding| format!("seed {}: {}", finding.seed, finding.broken)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\ncargo xtask sim --seed {}", told.findings[0].seed);
    assert!(told.seeds > 100, "{} histories only", told.seeds);
}

#[test]
fn every_bad_manner_is_met() {
    let told = tell_many(1, 300, Duration::MAX, &|_| {});

    let met = told.tally.met;
    let missed: Vec<String> =
        Manner::ALL.iter().filter(|manner| met.of(**manner) == 0).map(Manner::to_string).collect();
    assert_eq!(missed, [""; 0], "{met:?}");
}

#[test]
fn published_histories_hold() {
    for named in NAMED {
        for seed in 1..=200 {
            let told = named.tell(seed);
            assert!(told.is_ok(), "{}, seed {seed}: {}", named.name, told.unwrap_err());
        }
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in [3, 77, 4_711] {
        let (one, other) = (tell(seed, None).unwrap(), tell(seed, None).unwrap());
        assert_eq!((one.events, one.adds, one.changes), (other.events, other.adds, other.changes));
    }
}

#[test]
fn planted_bugs_are_found() {
    for (plant, found) in find_plants(1, &|_, _| ()) {
        assert!(found.is_some(), "{} is not found", plant.name());
    }
}
