//! Keeps the Go version's checkpoint, one file for each network card, beside our own state, on a thread of its own that no request waits for.
//!
//! Changes that come together are written together: the file lags by a fraction of a second, and is brought up to date when the daemon
//! stops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pool::{Owner, Snapshot};
use types::{NetworkCard, SandboxKey};

use crate::checkpoint;
use crate::families::Families;
use crate::store::Record;

/// Pause after a change: those that come meanwhile share the next file.
const PAUSE: Duration = Duration::from_millis(200);

/// What has changed in our own state.
#[derive(Debug)]
pub(crate) enum News {
    /// These records were added.
    Changed(Vec<Record>),
    /// It was written anew.
    All(Box<Snapshot>),
}

/// Who has what, as far as it is told.
#[derive(Debug)]
struct Mirror {
    families: Families,
    held: BTreeMap<SandboxKey, (Owner, Ipv4Addr, NetworkCard)>,
    /// Which network cards addresses were on before, for as long as no ENI with them is known.
    before: BTreeMap<Ipv4Addr, NetworkCard>,
    /// What the files say.
    written: BTreeMap<NetworkCard, Vec<u8>>,
}

impl Mirror {
    const fn new(families: Families, before: BTreeMap<Ipv4Addr, NetworkCard>) -> Self {
        Self { families, held: BTreeMap::new(), before, written: BTreeMap::new() }
    }

    /// Takes news in; false if they change nothing that the checkpoint says.
    fn take_in(&mut self, news: News) -> bool {
        match news {
            News::All(snapshot) => {
                let Snapshot { owners, enis, .. } = *snapshot;
                let all = owners.into_iter().map(|(owner, address)| {
                    let eni = enis.iter().find(|eni| eni.given().covers(address)).map(|eni| eni.card);
                    let card = eni.unwrap_or_else(|| self.card_before(&owner, address));
                    (owner.sandbox.clone(), (owner, address, card))
                });
                self.held = all.collect();
                true
            }
            News::Changed(records) => {
                let mut changed = false;
                for record in records {
                    changed |= self.record(record);
                }
                changed
            }
        }
    }

    /// The network card of an address of which no ENI is known.
    fn card_before(&self, owner: &Owner, address: Ipv4Addr) -> NetworkCard {
        let same = |(_, held, card): &(Owner, Ipv4Addr, NetworkCard)| (*held == address).then_some(*card);
        let held = self.held.get(&owner.sandbox).and_then(same);
        // The first interface of a pod is on the first card as a rule, and so on.
        let index = || owner.further.as_ref().map_or(0, |further| further.index);
        held.or_else(|| self.before.get(&address).copied()).unwrap_or_else(|| NetworkCard(index()))
    }

    fn record(&mut self, record: Record) -> bool {
        match record {
            Record::Assigned { owner, address, card } => {
                let card = card.unwrap_or_else(|| self.card_before(&owner, address));
                self.held.insert(owner.sandbox.clone(), (owner, address, card));
                true
            }
            Record::Released { sandbox, .. } => self.held.remove(&sandbox).is_some(),
            Record::Snapshot { pool, .. } => self.take_in(News::All(pool)),
            Record::Leaving { .. } | Record::Ipv6(_) => false,
        }
    }

    fn render(&self, card: NetworkCard) -> Vec<u8> {
        let owners = self.held.values().map(|(owner, address, on)| (owner, *address, *on));
        checkpoint::render(self.families, card, owners)
    }
}

/// Writes the checkpoint of what is known at the start, with what it said of network cards `before`, and starts the thread that keeps it.
/// That ends, with all it was told written, when nobody can tell it any more.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn start(
    path: PathBuf,
    families: Families,
    snapshot: Snapshot,
    before: BTreeMap<Ipv4Addr, NetworkCard>,
) -> std::io::Result<(Sender<News>, JoinHandle<()>)> {
    let mut mirror = Mirror::new(families, before);
    mirror.take_in(News::All(Box::new(snapshot)));
    // Before anybody is served: from now on a checkpoint that is not ours means that the Go version has run.
    put(&path, &mut mirror);
    let (sender, inbox) = channel();
    let thread = std::thread::Builder::new().name("checkpointing".to_owned());
    Ok((sender, thread.spawn(move || keep(&path, &mut mirror, &inbox))?))
}

fn keep(path: &Path, mirror: &mut Mirror, inbox: &Receiver<News>) {
    while let Ok(first) = inbox.recv() {
        std::thread::sleep(PAUSE);
        let mut changed = false;
        for news in std::iter::once(first).chain(inbox.try_iter()) {
            changed |= mirror.take_in(news);
        }
        if changed {
            put(path, mirror);
        }
    }
}

fn put(path: &Path, mirror: &mut Mirror) {
    let used: BTreeSet<NetworkCard> = mirror.held.values().map(|(.., card)| *card).collect();
    for card in checkpoint::cards() {
        let path = checkpoint::path_of(path, card);
        // One that is there says nothing old.
        if card != NetworkCard(0) && !used.contains(&card) && !path.exists() {
            continue;
        }
        let bytes = mirror.render(card);
        if mirror.written.get(&card) == Some(&bytes) && path.exists() {
            continue;
        }
        match checkpoint::write(&path, &bytes) {
            Ok(()) => drop(mirror.written.insert(card, bytes)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot write the checkpoint for the Go version");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pool::{EniSeen, Role};
    use types::{DeviceIndex, HostVeth, Mac, Moment, PodName, VethPrefix};

    use super::*;

    const V4: Families = Families::V4 { egress: false };

    fn owner(id: &str) -> Owner {
        let pod = PodName { namespace: "default".to_owned(), name: id.to_owned() };
        let sandbox = SandboxKey::new("aws-cni", id, "eth0").unwrap();
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        Owner { sandbox, pod, host_if, since: Moment(1), ipv6: None, further: None, branch: None }
    }

    /// One whose address ends with 100 or more is on the second card.
    fn assigned(id: &str, last: u8) -> Record {
        let (address, card) = (Ipv4Addr::new(10, 0, 0, last), NetworkCard(last / 100));
        Record::Assigned { owner: owner(id), address, card: Some(card) }
    }

    fn released(id: &str) -> Record {
        Record::Released { sandbox: SandboxKey::new("aws-cni", id, "eth0").unwrap(), at: Moment(2) }
    }

    #[test]
    fn the_file_says_what_the_state_says_when_the_thread_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipam.json");
        let load = || checkpoint::load(&path, &VethPrefix::default(), Moment(1)).0.unwrap();

        let (news, thread) = start(path.clone(), V4, Snapshot::default(), BTreeMap::new()).unwrap();
        assert!(load().ours && load().entries.is_empty());
        news.send(News::Changed(vec![assigned("a", 1), assigned("b", 2)])).unwrap();
        news.send(News::Changed(vec![released("a"), assigned("c", 3)])).unwrap();
        drop(news);
        thread.join().unwrap();

        let held: Vec<String> = load().entries.iter().map(|entry| entry.address.to_string()).collect();
        assert_eq!(held, ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn what_a_network_card_has_is_in_its_own_file_which_stays_true_when_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipam.json");
        let second = directory.path().join("ipam-nic-1.json");
        let load = || checkpoint::load(&path, &VethPrefix::default(), Moment(1)).0.unwrap();
        let begin = |snapshot, before| start(path.clone(), V4, snapshot, before).unwrap();

        let (news, thread) = begin(Snapshot::default(), BTreeMap::new());
        assert!(!second.exists());
        news.send(News::Changed(vec![assigned("a", 1), assigned("b", 101)])).unwrap();
        drop(news);
        thread.join().unwrap();
        let cards = |checkpoint: checkpoint::Checkpoint| -> BTreeMap<Ipv4Addr, NetworkCard> {
            checkpoint.entries.iter().map(|entry| (entry.address, entry.card)).collect()
        };
        let said = cards(load());
        assert_eq!(said.values().map(|card| card.0).collect::<Vec<_>>(), [0, 1]);

        // A start that knows no ENI yet goes by what was there.
        let owners = ["a", "b"].into_iter().zip([1, 101]);
        let owners = owners.map(|(id, last)| (owner(id), Ipv4Addr::new(10, 0, 0, last)));
        let snapshot = Snapshot { owners: owners.collect(), ..Snapshot::default() };
        let (news, thread) = begin(snapshot, said.clone());
        assert_eq!(cards(load()), said);
        news.send(News::Changed(vec![released("b")])).unwrap();
        drop(news);
        thread.join().unwrap();
        assert!(second.exists() && load().entries.len() == 1);
    }

    #[test]
    fn the_card_is_that_of_the_eni_and_else_what_was_known_last() {
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let eni = EniSeen {
            id: "eni-1".parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            card: NetworkCard(2),
            device: DeviceIndex(0),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: Ipv4Addr::new(10, 0, 0, 4),
            addresses: [address].into(),
            prefixes: BTreeSet::new(),
            role: Role::Secondary,
        };
        let all = |enis: Vec<EniSeen>| {
            News::All(Box::new(Snapshot { owners: vec![(owner("a"), address)], enis, ..Snapshot::default() }))
        };
        let mut mirror = Mirror::new(V4, [(address, NetworkCard(1))].into());
        let mut on = |news: News| {
            mirror.take_in(news);
            mirror.held.values().map(|(.., card)| card.0).collect::<Vec<_>>()
        };
        let unknown = || Record::Assigned { owner: owner("a"), address, card: None };

        assert_eq!(on(all(Vec::new())), [1], "as the files of before say");
        assert_eq!(on(all(vec![eni])), [2]);
        assert_eq!(on(all(Vec::new())), [2]);
        assert_eq!(on(News::Changed(vec![unknown()])), [2]);
    }

    #[test]
    fn what_changes_nothing_writes_nothing() {
        let mut mirror = Mirror::new(V4, BTreeMap::new());

        assert!(!mirror.take_in(News::Changed(vec![released("never")])));
        assert!(mirror.take_in(News::Changed(vec![assigned("a", 1), released("never")])));
        assert!(mirror.take_in(News::All(Box::default())));
        assert_eq!(mirror.render(NetworkCard(0)), checkpoint::render(V4, NetworkCard(0), []));
    }
}
