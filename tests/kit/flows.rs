//! Flows that go on while something happens to the node: numbered datagrams at a steady pace, each answered by an echo.
//!
//! What counts is how many in a row stay without an answer. On a busy machine the pace slows for all, but nothing is lost by that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::LabError;
use crate::netns::Netns;

/// Port of [`Mirror`].
const PORT: u16 = 7778;
/// Pause between two datagrams of a flow.
pub const PACE: Duration = Duration::from_millis(50);
/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(2);

/// Sends back whatever comes to any address of a namespace; ends when dropped.
#[derive(Debug)]
pub struct Mirror {
    _worker: Worker<()>,
}

/// One flow; its socket keeps its port, so that it is one connection to the kernel.
#[derive(Debug)]
pub struct Flow {
    name: String,
    socket: UdpSocket,
}

/// Flows that are under way.
#[derive(Debug)]
pub struct Flows(Worker<Vec<Tally>>);

/// What became of a flow.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Which.
    pub name: String,
    /// Datagrams sent.
    pub sent: u32,
    /// The most in a row that were not answered.
    pub gap: u32,
}

/// A thread that works until it is told to stop.
#[derive(Debug)]
struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&stopped))) }
    }
}

impl<T> Worker<T> {
    fn end(&mut self) -> Option<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        let _ended = self.end();
    }
}

impl Mirror {
    /// Starts it.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(netns: &Netns) -> Result<Self, LabError> {
        // Of both families, where there are two.
        let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let any = any.map(|address| SocketAddr::from((address, PORT)));
        let socket = netns.run(|| UdpSocket::bind(&any[..]))?;
        let socket = socket.map_err(LabError::doing("bind the mirror"))?;
        socket.set_read_timeout(Some(PACE)).map_err(LabError::doing("set a timeout"))?;
        let worker = Worker::start(move |stop| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _sent = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            }
        });
        Ok(Self { _worker: worker })
    }
}

impl Flow {
    /// A flow from a namespace to a mirror.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(name: &str, from: &Netns, to: IpAddr) -> Result<Self, LabError> {
        let any = match to {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let open = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(SocketAddr::from((to, PORT)))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = from.run(open)?.map_err(LabError::doing("open a flow"))?;
        Ok(Self { name: name.to_owned(), socket })
    }
}

impl Flows {
    /// Starts sending.
    #[must_use]
    pub fn start(flows: Vec<Flow>) -> Self {
        Self(Worker::start(move |stop| run(&flows, stop)))
    }

    /// Stops sending and tells what became of each flow.
    #[must_use]
    pub fn stop(mut self) -> Vec<Tally> {
        self.0.end().unwrap_or_default()
    }
}

fn run(flows: &[Flow], stop: &AtomicBool) -> Vec<Tally> {
    let mut answered: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); flows.len()];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for flow in flows {
            // One that is refused is lost.
            let _lost = flow.socket.send(&u32::to_be_bytes(sent));
        }
        sent += 1;
        std::thread::sleep(PACE);
        collect(flows, &mut answered);
    }
    for _ in 0..LAST.as_millis() / PACE.as_millis() {
        std::thread::sleep(PACE);
        collect(flows, &mut answered);
        if answered.iter().all(|answered| answered.contains(&(sent.saturating_sub(1)))) {
            break;
        }
    }
    let tally = |(flow, answered): (&Flow, &BTreeSet<u32>)| Tally {
        name: flow.name.clone(),
        sent,
        gap: longest_gap(answered, sent),
    };
    flows.iter().zip(&answered).map(tally).collect()
}

fn collect(flows: &[Flow], answered: &mut [BTreeSet<u32>]) {
    for (flow, answered) in flows.iter().zip(answered) {
        let mut buffer = [0; 4];
        // Refusals by ICMP show here too; the rest is read at the next turn.
        while let Ok(length) = flow.socket.recv(&mut buffer) {
            answered.extend((length == buffer.len()).then(|| u32::from_be_bytes(buffer)));
        }
    }
}

/// The most numbers in a row below `sent` that are not in the set.
fn longest_gap(answered: &BTreeSet<u32>, sent: u32) -> u32 {
    let ends = answered.iter().copied().chain([sent]);
    let mut next = 0;
    ends.map(|end| {
        let gap = end.saturating_sub(next);
        next = end + 1;
        gap
    })
    .max()
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_wherever_it_is() {
        let gap = |answered: &[u32]| longest_gap(&answered.iter().copied().collect(), 6);

        assert_eq!([gap(&[0, 1, 2, 3, 4, 5]), gap(&[2, 5]), gap(&[0, 1]), gap(&[])], [0, 2, 4, 6]);
    }
}
