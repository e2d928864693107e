//! The threads that block so that the rest need not: one wires pods, one writes the state file (and tells `checkpointing`), two listen to what others
//! change in the kernel.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use datapath::{MendError, Mended, Mending, PodSpec, Watch, WireError, Wirer};
use pool::Snapshot;
use tokio::sync::mpsc;
use types::{HostVeth, Reason, SandboxKey};
use wire::Failure;

use crate::checkpointing::News;
use crate::memory::MemoryFile;
use crate::metrics::Metrics;
use crate::node::{BatchId, CallId, Event, Remembered};
use crate::server::chain;
use crate::store::{Ipv6Books, Record, Store, StoreError};

/// How long the wiring thread must be idle before it sweeps away the links of released pods, all in one go:
/// the kernel then waits for RCU once, and not while an ADD waits for the kernel's lock.
const SWEEP_AFTER: Duration = Duration::from_millis(100);

/// Pause after a notice: many come together, and one is enough.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

/// A job for the wiring thread.
#[derive(Debug)]
pub(crate) enum Wiring {
    /// Wire the interfaces of a pod: its namespace and a netlink socket inside it.
    Add(CallId, Vec<PodSpec>, [OwnedFd; 2]),
    /// Compare the interfaces of a pod.
    Check(CallId, Vec<PodSpec>, [OwnedFd; 2]),
    /// Take a pod's wiring away.
    Remove(PodSpec),
    /// Put back what others have taken of the wiring of pods.
    Mend(Vec<PodSpec>),
    /// See whose host links are gone.
    Survey(Vec<(SandboxKey, HostVeth)>),
}

/// Starts the wiring thread.
pub(crate) fn wiring(
    mut wirer: Wirer,
    metrics: Metrics,
    events: mpsc::Sender<Event>,
) -> std::io::Result<Sender<Wiring>> {
    let (jobs, inbox) = channel();
    std::thread::Builder::new()
        .name("wiring".to_owned())
        .spawn(move || wire_pods(&mut wirer, &metrics, &inbox, &events))?;
    Ok(jobs)
}

fn wire_pods(wirer: &mut Wirer, metrics: &Metrics, inbox: &Receiver<Wiring>, events: &mpsc::Sender<Event>) {
    let mut removed = false;
    loop {
        let job = match inbox.recv_timeout(if removed { SWEEP_AFTER } else { Duration::from_secs(3600) }) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                if removed && let Err(error) = wirer.sweep() {
                    tracing::warn!(error = chain(&error), "cannot delete the links of released pods");
                }
                removed = false;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let event = match job {
            Wiring::Add(id, pods, fds) => {
                // It may have set an old link of the same name aside.
                removed = true;
                Event::Wired { id, result: add(wirer, &pods, fds) }
            }
            Wiring::Check(id, pods, fds) => Event::Checked { id, result: check(wirer, &pods, fds) },
            Wiring::Survey(mut holders) => {
                // A link that cannot be looked for is taken to be there.
                holders.retain(|(_, host_if)| !wirer.has_link(host_if.as_str()).unwrap_or(true));
                Event::Dead(holders.into_iter().map(|(sandbox, _)| sandbox).collect())
            }
            Wiring::Mend(pods) => {
                let (put_back, lost) = mend(wirer, metrics, &pods);
                Event::PodsCompared { put_back, lost }
            }
            Wiring::Remove(pod) => {
                removed = true;
                if let Err(error) = wirer.remove(&pod) {
                    tracing::warn!(error = chain(&error), link = %pod.host_if, "cannot take a pod's wiring away");
                }
                continue;
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

/// Whether anything was put back: what was is counted and told, also when the kernel refused something of another pod. And the host
/// ends of pods that are gone.
fn mend(wirer: &mut Wirer, metrics: &Metrics, pods: &[PodSpec]) -> (bool, Vec<HostVeth>) {
    let found = wirer.mend(pods).unwrap_or_else(|MendError { found, source }| {
        tracing::warn!(error = chain(&source), "cannot put back what others took of pods");
        found
    });
    let Mending { mended, lost } = found;
    for Mended { pod, what } in &mended {
        metrics.repaired("pod");
        let what = what.join(", ");
        tracing::warn!(link = %pod.host_if, addresses = ?pod.addresses, what, "somebody else has changed a pod's wiring; put back");
    }
    (!mended.is_empty(), lost.into_iter().map(|pod| pod.host_if.clone()).collect())
}

/// Starts a thread that tells what others change of ours, and opens its socket again, after a pause, where the kernel gives none or takes
/// it away. It ends with the process.
pub(crate) fn watching(
    open: impl Fn() -> std::io::Result<Watch> + Send + 'static,
    again: Duration,
    events: mpsc::Sender<Event>,
) -> std::io::Result<()> {
    // Before this returns, so that nothing is missed that is changed from then on.
    let mut opened = open();
    let watching = move || {
        let mut missed = false;
        loop {
            let news = missed.then_some(Event::Touched);
            let (error, was_there) = match opened {
                Ok(watch) => (follow(watch, news, &events), true),
                Err(error) => (Some(error), false),
            };
            let Some(error) = error else { return };
            if was_there || !missed {
                tracing::warn!(%error, "what others change is seen at the next round only, until the kernel tells it again");
            }
            missed = true;
            std::thread::sleep(again);
            opened = open();
        }
    };
    std::thread::Builder::new().name("watching".to_owned()).spawn(watching).map(drop)
}

/// Tells what others change, until the kernel does not (why), or nobody listens any more. `missed`: what there is to tell of the time
/// without a watch.
fn follow(mut watch: Watch, missed: Option<Event>, events: &mpsc::Sender<Event>) -> Option<std::io::Error> {
    if let Some(missed) = missed {
        tracing::info!("the kernel tells again what others change");
        events.blocking_send(missed).ok()?;
    }
    loop {
        // What was changed together is one notice: the rest of it would look like an answer to the look that follows.
        let told = watch.wait().and_then(|()| {
            std::thread::sleep(WATCH_PAUSE);
            watch.read_on()
        });
        if let Err(error) = told {
            return Some(error);
        }
        events.blocking_send(Event::Touched).ok()?;
    }
}

fn add(wirer: &mut Wirer, pods: &[PodSpec], [netns, socket]: [OwnedFd; 2]) -> Result<(), Failure> {
    wirer.add_all(pods, netns.as_fd(), socket).map_err(|error| refused(pods, &error))
}

fn check(wirer: &mut Wirer, pods: &[PodSpec], [_netns, socket]: [OwnedFd; 2]) -> Result<(), Failure> {
    let differences = wirer.check_all(pods, socket).map_err(|error| refused(pods, &error))?;
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("the wiring of {} is not as it should be", names(pods));
    Err(Failure::new(Reason::Drifted, message).with_details(differences.join("; ")))
}

fn refused(pods: &[PodSpec], error: &WireError) -> Failure {
    Failure::new(Reason::KernelRefused, format!("the kernel does not take {}", names(pods)))
        .with_details(chain(error))
}

fn names(pods: &[PodSpec]) -> String {
    pods.iter().map(|pod| pod.host_if.as_str()).collect::<Vec<_>>().join(", ")
}

/// A job for the writing thread.
#[derive(Debug)]
pub(crate) enum Writing {
    /// Append.
    Append(BatchId, Vec<Record>),
    /// Start a new file.
    Rewrite(Box<Snapshot>, Ipv6Books),
    /// Tell who keeps the checkpoint how it is.
    Checkpoint(Box<Snapshot>),
    /// Put down what a start would need to know.
    Remember(Box<Remembered>),
}

/// Starts the writing thread. Appends that have piled up while one was being synced share the next sync.
pub(crate) fn writing(
    store: Option<Store>,
    path: PathBuf,
    events: mpsc::Sender<Event>,
    news: Sender<News>,
    memory: Option<MemoryFile>,
) -> std::io::Result<Sender<Writing>> {
    let (jobs, inbox) = channel();
    let writer = Writer { store, path, events, news, memory, asked_for_new: false };
    std::thread::Builder::new().name("writing".to_owned()).spawn(move || writer.run(&inbox))?;
    Ok(jobs)
}

struct Writer {
    /// `None` after a failed write: the file may end in half a line, so a new one must be started first.
    store: Option<Store>,
    path: PathBuf,
    events: mpsc::Sender<Event>,
    /// Where what a start would need is written down.
    memory: Option<MemoryFile>,
    /// Who keeps the checkpoint; nobody waits for it, and it may have ended.
    news: Sender<News>,
    asked_for_new: bool,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Writing>) {
        while let Ok(first) = inbox.recv() {
            let mut appends = BTreeMap::new();
            for job in std::iter::once(first).chain(inbox.try_iter()) {
                match job {
                    Writing::Append(batch, records) => drop(appends.insert(batch, records)),
                    Writing::Rewrite(snapshot, ipv6) => {
                        // The snapshot holds what these records say and may hold more: they go first.
                        if !self.append(std::mem::take(&mut appends)) {
                            return;
                        }
                        self.rewrite(&snapshot, ipv6);
                    }
                    Writing::Checkpoint(snapshot) => drop(self.news.send(News::All(snapshot))),
                    Writing::Remember(remembered) => {
                        if let Some(memory) = &self.memory {
                            memory.write(&remembered);
                        }
                    }
                }
            }
            if !self.append(appends) {
                return;
            }
        }
    }

    /// False when nobody listens any more.
    fn append(&mut self, appends: BTreeMap<BatchId, Vec<Record>>) -> bool {
        if appends.is_empty() {
            return true;
        }
        let records: Vec<Record> = appends.values().flatten().cloned().collect();
        let result = match &mut self.store {
            Some(store) => store.append(&records).map_err(|error| chain(&error)),
            None => Err("the state file could not be written before and has not been renewed yet".to_owned()),
        };
        if let Err(error) = &result {
            tracing::error!(error, "cannot write the state file");
            self.store = None;
        }
        let renew = self.store.as_ref().is_none_or(Store::is_long) && !self.asked_for_new;
        self.asked_for_new |= renew;
        let written = appends.into_keys().map(|batch| Event::Written { batch, result: result.clone() });
        let listened = written
            .chain(renew.then_some(Event::FileLong))
            .all(|event| self.events.blocking_send(event).is_ok());
        drop(self.news.send(News::Changed(records)));
        listened
    }

    fn rewrite(&mut self, snapshot: &Snapshot, ipv6: Ipv6Books) {
        self.asked_for_new = false;
        drop(self.news.send(News::All(Box::new(snapshot.clone()))));
        match Store::create(&self.path, snapshot, ipv6) {
            Ok(store) => self.store = Some(store),
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &StoreError) {
        tracing::error!(error = chain(error), "cannot start a new state file");
        self.store = None;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU32, Ordering};

    use datapath::Ours;

    use super::*;

    #[test]
    fn a_watch_that_the_kernel_gives_later_is_had_later_and_what_was_missed_is_looked_for() {
        let (ports, pod_if_prefixes) = (BTreeSet::new(), BTreeSet::new());
        let ours = Ours { ports, pod_if_prefixes, mtu: 9001, pod_mtu: 9001 };
        let tries = AtomicU32::new(0);
        let open = move || match tries.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(std::io::Error::other("no memory")),
            _ => Watch::routes(ours.clone()),
        };
        let (sender, mut events) = mpsc::channel(8);

        watching(open, Duration::from_millis(1), sender).unwrap();

        assert!(matches!(events.blocking_recv(), Some(Event::Touched)));
    }

    #[test]
    fn a_state_file_that_could_not_be_started_is_started_with_the_first_change() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut events) = mpsc::channel(8);
        let (news, _heard) = channel();
        let path = directory.path().join("state");
        let jobs = writing(None, path.clone(), sender, news, None).unwrap();
        let append = |n| jobs.send(Writing::Append(BatchId(n), Vec::new())).unwrap();

        append(1);
        assert!(matches!(events.blocking_recv(), Some(Event::Written { result: Err(_), .. })));
        assert!(matches!(events.blocking_recv(), Some(Event::FileLong)));
        jobs.send(Writing::Rewrite(Box::default(), Ipv6Books::default())).unwrap();
        append(2);

        assert!(matches!(events.blocking_recv(), Some(Event::Written { result: Ok(()), .. })));
        assert!(path.exists());
    }
}
