//! Histories in the tests: as many as take half a minute, and each planted bug.

use super::{find_plants, tell, tell_many};

#[test]
fn histories_hold() {
    let told = tell_many(1, 2_000, None, &|_| {});

    let wrong: Vec<String> =
        told.findings.iter().map(|finding| format!("seed {}: {}", finding.seed, finding.broken)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\ncargo xtask sim --seed {}", told.findings[0].seed);
    assert_eq!(told.seeds, 2_000);
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
    for (plant, found) in find_plants(1) {
        assert!(found.is_some(), "{} is not found", plant.name());
    }
}
