//! `ipamd status --state`: what a saved directory tells of its node: what its daemon answered when that was saved, or what the files say
//! without it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use node::status::{count, tell_facts};
use pool::{Pool, Role};
use types::Moment;
use wire::Report;

use super::evidence::{Evidence, Look};
use super::saved;
use super::words::plain;
use crate::cloud::time::written;
use crate::families::Families;
use crate::memory;
use crate::node::{Remembered, replay};
use crate::status::{addresses, blank, enis, pods, render};

/// What is not ready of a node of which there are files alone.
const NO_DAEMON: &str = "a daemon: this is what its files tell";
/// What the files do not tell.
const ITS_ALONE: &str = "whether pods are served, who waits for what, how many addresses can be had, what EC2 and the cluster say, and what the pool is about to do";
/// What the daemon says by default: a file does not tell it.
const COOLDOWN: Duration = Duration::from_secs(30);

/// What is told.
#[derive(Debug)]
pub(super) struct Told {
    /// The state; without a daemon's answer no more of it than there is in the files.
    report: Report,
    /// Why there is no answer of a daemon in it, if there is none.
    unasked: Option<String>,
    /// What else is to be known of the files.
    remarks: Vec<String>,
}

/// What is known of a saved directory's node.
pub(super) fn told(evidence: Evidence) -> Told {
    let unasked = match evidence.live.daemon {
        Look::Seen(report) => return Told { report: *report, unasked: None, remarks: Vec::new() },
        Look::Failed(why) => format!("the daemon did not answer: {why}"),
        Look::Skipped(why) => format!("no daemon was asked: {why}"),
    };
    let mut remarks = evidence.saved.troubles;
    remarks.extend(evidence.saved.damage.map(|damage| format!("the state file: {damage}")));
    if !evidence.saved.has_state {
        remarks.push("there is no state file: who holds which address is not known".to_owned());
    }
    let remembered = saved::json::<memory::Written>(&memory::file(&evidence.dir)).unwrap_or_else(|why| {
        remarks.push(why);
        None
    });
    let remembered = remembered.map(memory::Written::of);
    let families = evidence.saved.record.map(|record| record.families);
    let families = families.or(remembered.as_ref().map(|(families, _)| *families));
    let at = Some(evidence.live.taken).filter(|taken| *taken != Moment(0));
    let at = at.or_else(|| changed(&evidence.dir.join("state"))).unwrap_or_default();
    let records = saved::loaded(&evidence.dir).ok().flatten().map(|loaded| loaded.records);
    let mut pool = replay(records.unwrap_or_default(), COOLDOWN, at).pool;
    let remembered = remembered.map(|(_, remembered)| remembered);
    if let Some(remembered) = &remembered {
        drop(pool.observe(&remembered.enis, Moment(0), at));
        pool.set_excluded(remembered.excluded.clone());
    }
    if pool.seen().next().is_none() {
        remarks.push("no ENIs are remembered".to_owned());
    }
    let families = families.unwrap_or(Families::V4 { egress: false });
    Told { report: report(&pool, families, remembered, at), unasked: Some(unasked), remarks }
}

/// When a file was last written.
fn changed(path: &Path) -> Option<Moment> {
    let modified: SystemTime = std::fs::symlink_metadata(path).ok()?.modified().ok()?;
    Some(Moment::default().plus(modified.duration_since(UNIX_EPOCH).ok()?))
}

fn report(pool: &Pool, families: Families, remembered: Option<Remembered>, at: Moment) -> Report {
    let mut report = Report {
        version: String::new(),
        not_ready: vec![NO_DAEMON.to_owned()],
        addresses: count(pool.counts(at)),
        pods: node::status::pods(pool, families),
        ..blank(at)
    };
    let mut prefixes = BTreeMap::new();
    if let Some(Remembered { facts, ipv6, enis, .. }) = remembered {
        tell_facts(&mut report, &facts);
        let primary = enis.iter().find(|eni| eni.role == Role::Primary);
        let prefix = primary.and_then(|eni| ipv6.get(&eni.id).copied());
        prefixes = ipv6;
        report.ipv6_prefix = prefix.filter(|_| families.needs_prefix());
    }
    report.enis = node::status::enis(pool, &prefixes, at);
    report
}

impl Told {
    /// As JSON, for programs: a report. What the files do not tell is empty in it, and it says that there was no daemon.
    pub(super) fn json(&self) -> String {
        crate::status::json(&self.report) + "\n"
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let drawn = self.draw(&mut out);
        // Writing to a String cannot fail.
        debug_assert!(drawn.is_ok(), "a String takes everything");
        plain(&out)
    }

    fn draw(&self, out: &mut String) -> std::fmt::Result {
        let report = &self.report;
        let Some(unasked) = &self.unasked else {
            writeln!(out, "as the daemon answered at {}", written(report.now))?;
            return out.write_str(&render(report));
        };
        writeln!(out, "as the files were at {}; {unasked}", written(report.now))?;
        if let Some(address) = report.primary_address {
            writeln!(out, "{} {}  node {address}", report.instance_id, report.instance_type)?;
        }
        if let Some(prefix) = report.ipv6_prefix {
            writeln!(out, "IPv6 of pods in {prefix}")?;
        }
        writeln!(out, "\naddresses {}", report.addresses.total())?;
        addresses(out, report.addresses)?;
        enis(out, report)?;
        pods(out, report)?;
        writeln!(out, "\nonly a running daemon tells {ITS_ALONE}")?;
        self.remarks.iter().try_for_each(|remark| writeln!(out, "{remark}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pool::{EniSeen, Role, Snapshot};
    use types::{DeviceIndex, NetworkCard};
    use wire::AddressCount;

    use super::*;
    use crate::store::{Ipv6Books, Store};
    use crate::tools::judge::tests::{PODS, owner, well};
    use crate::tools::look;

    /// A directory whose state has two pods on one ENI, a third address of it that cools, and a free one.
    fn saved_state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let [(_, web), (_, db)] = PODS;
        let (cooling, free) = ("10.0.0.50".parse().unwrap(), "10.0.0.51".parse().unwrap());
        let eni = EniSeen {
            id: "eni-01".parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            card: NetworkCard(0),
            device: DeviceIndex(0),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: "10.0.0.10".parse().unwrap(),
            addresses: [web, db, cooling, free].into(),
            prefixes: std::collections::BTreeSet::new(),
            role: Role::Primary,
        };
        let snapshot = Snapshot {
            owners: PODS.map(|(name, address)| (owner(name), address)).to_vec(),
            cooling: BTreeMap::from([(cooling, Moment(u64::MAX))]),
            enis: vec![eni],
            gone: Vec::new(),
        };
        drop(Store::create(&dir.path().join("state"), &snapshot, Ipv6Books::default()).unwrap());
        dir
    }

    #[test]
    fn a_saved_state_tells_enis_addresses_and_pods_and_what_it_does_not_tell() {
        let dir = saved_state();

        let told = told(look::directory(dir.path()));

        let AddressCount { free, reserved, assigned, cooling } = told.report.addresses;
        assert_eq!((free, reserved, assigned, cooling), (1, 0, 2, 1));
        let text = told.text();
        for word in [
            "no daemon was asked: there is no live.json",
            "# 2 assigned  + 0 reserved  ~ 1 cooling  . 1 free",
            "eni-01",
            "subnet-1",
            "default/web",
            "10.0.0.40",
            "only a running daemon tells whether pods are served",
        ] {
            assert!(text.contains(word), "no {word:?} in\n{text}");
        }
        assert!(!text.contains("ready") && !text.contains("READY"), "{text}");
        let report: Report = serde_json::from_str(&told.json()).unwrap();
        assert_eq!((report.not_ready.as_slice(), report.enis.len()), (&[NO_DAEMON.to_owned()][..], 1));
        assert!(report.pods.iter().all(|pod| pod.eni.is_some()), "{:?}", report.pods);
    }

    #[test]
    fn what_the_daemon_answered_when_it_was_saved_is_told_as_it_was() {
        let evidence = well();
        let answered = evidence.live.daemon.seen().map(|report| render(report)).unwrap();

        let text = told(evidence).text();

        assert!(text.starts_with("as the daemon answered at ") && text.ends_with(&answered), "{text}");
    }

    #[test]
    fn a_directory_without_a_state_or_with_a_damaged_one_says_so() {
        let dir = saved_state();
        let state = dir.path().join("state");
        let mut bytes = std::fs::read(&state).unwrap();
        bytes.extend(b"not a line\n");
        std::fs::write(&state, bytes).unwrap();
        let damaged = told(look::directory(dir.path())).text();
        assert!(damaged.contains("the state file: ") && damaged.contains("default/web"), "{damaged}");

        std::fs::remove_file(&state).unwrap();
        std::fs::write(dir.path().join("instance.json"), "{").unwrap();
        let gone = told(look::directory(dir.path())).text();
        for word in ["there is no state file", "no ENIs are remembered", "instance.json: "] {
            assert!(gone.contains(word), "no {word:?} in\n{gone}");
        }
    }
}
