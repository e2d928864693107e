//! The state at the start, from files and kernel, and what is left behind at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use datapath::{Former, Wirer};
use pool::{Grant, Owner};
use types::{HostVeth, TableId};

use crate::app::RunError;
use crate::checkpoint;
use crate::checkpointing::{self, News};
use crate::clock::Clock;
use crate::config::Config;
use crate::memory::MemoryFile;
use crate::node::{Node, PodInKernel, Remembered, Restored, Settings, pods_among, restore};
use crate::server::chain;
use crate::store::Store;

/// What the daemon starts with.
#[derive(Debug)]
pub(crate) struct Started {
    /// The node with the state of before.
    pub(crate) node: Node,
    /// The file in which it goes on, if it could be started.
    pub(crate) store: Option<Store>,
    /// What the daemon before knew of this instance.
    pub(crate) remembered: Option<Remembered>,
    /// Where that is written down.
    pub(crate) memory: Option<MemoryFile>,
    /// Whose leftovers of the Go version are to be removed.
    pub(crate) former: Former,
    /// Whoever changes the state tells it here.
    pub(crate) news: Sender<News>,
    /// Keeps the checkpoint; ends when nobody can tell it any more.
    pub(crate) checkpointing: JoinHandle<()>,
}

/// Brings the state back.
///
/// # Errors
/// What is local and cannot be done without: the kernel, and a state file that is there and cannot be read.
pub(crate) fn restored(
    config: &Config,
    settings: &Settings,
    ran_before: bool,
    wirer: &mut Wirer,
    clock: Clock,
) -> Result<Started, RunError> {
    let (now, path) = (clock.now(), config.run_dir.join("state"));
    let mut loaded = Store::load(&path, now).map_err(RunError::local("read the state"))?;
    let (checkpoint, mut remarks) = checkpoint::load(&checkpoint_path(config), &config.veth_prefix, now);
    // It may have changed what is in EC2, and knows nothing of what we remember.
    let go_ran = checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.ours);
    let memory = MemoryFile::here(&config.run_dir, settings.families);
    let remembered = memory.as_ref().filter(|_| !go_ran).and_then(|memory| recall(memory, wirer));
    let entries = checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.entries);
    let cards = entries.iter().map(|entry| (entry.address, entry.card)).collect();
    loaded.checkpoint = checkpoint;
    // What the process before this one had set aside.
    wirer.sweep().map_err(RunError::local("sweep old links away"))?;
    let seen = wirer.pods().map_err(RunError::local("ask the kernel for pods"))?;
    let led: BTreeSet<IpAddr> = seen.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let egress = settings.families.range_of_node();
    let kernel = pods_among(seen, loaded.checkpoint.as_ref(), &config.veth_prefix, egress);
    // A link that cannot be looked for is taken to be there: an address is rather held for too long than given twice.
    let mut has_link = |host_if: &HostVeth| wirer.has_link(host_if.as_str()).unwrap_or(true);
    let restored = restore(settings.cooldown, loaded, &kernel, &mut has_link, ran_before, now);
    let Restored { pool, leftovers, mut gone, doubted, ipv6, remarks: more } = restored;
    // What a route leads to a link is nobody's to take away, whoever has it.
    gone.retain(|address| !led.contains(address));
    for pod in leftovers {
        if let Err(error) = wirer.remove(&pod) {
            tracing::warn!(host_if = %pod.host_if, error = chain(&error), "a deleted pod's wiring stays");
        }
    }
    remarks.extend(more);
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    let addresses = |(owner, grant): (&Owner, Grant)| {
        [Some(IpAddr::V4(grant.address)), owner.ipv6.map(IpAddr::V6)].into_iter().flatten()
    };
    let held = pool.owners().flat_map(addresses).collect();
    let snapshot = pool.snapshot();
    // Pods that are there are served without it, and it is tried again with the next change.
    let store = Store::create(&path, &snapshot, ipv6);
    let store = store.inspect_err(|error| tracing::error!(error = chain(error), "no new state file")).ok();
    let path = checkpoint_path(config);
    let (news, checkpointing) = checkpointing::start(path, settings.families, snapshot, cards)
        .map_err(RunError::local("start the checkpointing thread"))?;
    let seed = now.0 ^ u64::from(std::process::id());
    let mut node = Node::new(settings.clone(), pool, seed, now);
    node.doubt(doubted);
    node.remember_ipv6(ipv6);
    lead_to_adopted(&node, &kernel, wirer);
    let former = Former { held, gone };
    Ok(Started { node, store, remembered, memory, former, news, checkpointing })
}

/// What the daemon before knew, if it is of this instance.
fn recall(memory: &MemoryFile, wirer: &mut Wirer) -> Option<Remembered> {
    let links = wirer.macs().map_err(|error| chain(&error));
    links.and_then(|links| memory.load(&links)).unwrap_or_else(|why| {
        tracing::warn!(why, "what is remembered of the instance is not used");
        None
    })
}

/// Pods of the Go version get their route in our table before anybody can ask us to take it away.
fn lead_to_adopted(node: &Node, kernel: &[PodInKernel], wirer: &mut Wirer) {
    let ours: BTreeSet<&HostVeth> = kernel.iter().filter(|pod| pod.by_us).map(|pod| &pod.host_if).collect();
    let mut pods = node.wired_pods();
    pods.retain(|pod| !ours.contains(&pod.host_if));
    if let Err(error) = wirer.mend(&pods) {
        tracing::warn!(
            error = chain(&error),
            "pods of the Go version keep its routes until the host is brought in line"
        );
    }
}

/// Leaves behind what the Go version needs to go on: a rule for each pod on a secondary ENI, needed once our nftables
/// table is removed and with it our marks, and the checkpoint. The next start of ours removes the rules again, and so would a wish that
/// is still at work: `keeping` is the host's thread.
pub(crate) fn leave(node: &Node, keeping: JoinHandle<()>, checkpointing: JoinHandle<()>) {
    if keeping.join().is_err() {
        tracing::error!("the host's thread has ended early: the kernel may not be in line");
    }
    let places = node.pool().owners().filter_map(|(_, grant)| {
        let place = grant.place?;
        Some((grant.address, TableId::of_eni(place.card, place.device)))
    });
    let mut tables: BTreeMap<Ipv4Addr, TableId> = places.collect();
    // Where packets leave by now goes before what descriptions say, and is known of ENIs that none has.
    let held: BTreeSet<Ipv4Addr> = node.pool().holders().map(|(_, address)| address).collect();
    let led = node.led().filter(|(address, _)| held.contains(address));
    tables.extend(led.map(|(address, eni)| (address, TableId::of_eni(eni.card, eni.device))));
    tables.retain(|address, table| *table != TableId::MAIN && !node::families::is_stand_in(*address));
    let steered: Vec<(Ipv4Addr, TableId)> = tables.into_iter().collect();
    if let Err(error) = Wirer::open().and_then(|mut wirer| wirer.steer_each(&steered)) {
        tracing::warn!(error = chain(&error), "the Go version would not lead some pods out by their ENI");
    }
    if checkpointing.join().is_err() {
        tracing::error!("the checkpointing thread has ended early: the checkpoint may be old");
    }
}

fn checkpoint_path(config: &Config) -> PathBuf {
    config.checkpoint.clone().unwrap_or_else(|| config.run_dir.join("ipam.json"))
}
