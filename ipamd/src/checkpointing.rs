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
}

impl Mirror {
    const fn new(families: Families, before: BTreeMap<Ipv4Addr, NetworkCard>) -> Self {
        Self { families, held: BTreeMap::new(), before }
    }

    /// Takes news in; false if they change nothing that the checkpoint says.
    fn take_in(&mut self, news: News) -> bool {
        match news {
            News::All(snapshot) => {
                let Snapshot { owners, enis, .. } = *snapshot;
                let card = |owner: &Owner, address: Ipv4Addr| {
                    let eni = enis.iter().find(|eni| eni.given().covers(address)).map(|eni| eni.card);
                    let before = || self.before.get(&address).copied();
                    // The first interface of a pod is on the first card as a rule, and so on.
                    let index = || owner.further.as_ref().map_or(0, |further| further.index);
                    eni.or_else(before).unwrap_or_else(|| NetworkCard(index()))
                };
                let all = owners.into_iter().map(|(owner, address)| {
                    let card = card(&owner, address);
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

    fn record(&mut self, record: Record) -> bool {
        match record {
            Record::Assigned { owner, address, card } => {
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

/// Writes the checkpoint of what is known at the start, with what it said of network cards `before`, and starts the thread that keeps it. It ends, with all it was told
/// written, when nobody can tell it any more.
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
    put(&path, &mirror);
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

fn put(path: &Path, mirror: &Mirror) {
    let used: BTreeSet<NetworkCard> = mirror.held.values().map(|(.., card)| *card).collect();
    for card in checkpoint::cards() {
        let path = checkpoint::path_of(path, card);
        // One that is there says nothing old.
        if card != NetworkCard(0) && !used.contains(&card) && !path.exists() {
            continue;
        }
        if let Err(error) = checkpoint::write(&path, &mirror.render(card)) {
            tracing::warn!(%error, path = %path.display(), "cannot write the checkpoint for the Go version");
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{HostVeth, Moment, PodName, VethPrefix};

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
        Record::Assigned { owner: owner(id), address, card }
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
    fn what_changes_nothing_writes_nothing() {
        let mut mirror = Mirror::new(V4, BTreeMap::new());

        assert!(!mirror.take_in(News::Changed(vec![released("never")])));
        assert!(mirror.take_in(News::Changed(vec![assigned("a", 1), released("never")])));
        assert!(mirror.take_in(News::All(Box::default())));
        assert_eq!(mirror.render(NetworkCard(0)), checkpoint::render(V4, NetworkCard(0), []));
    }
}
