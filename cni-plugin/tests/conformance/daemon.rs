//! A daemon that remembers what it gave, and can be told to behave badly.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use types::{DeviceIndex, HostVeth, NetworkCard, Reason, SandboxKey, TableId};
use wire::{Added, Failure, HEADER_BYTES, Interface, Reply, Request, Verb};

/// How the daemon treats a request.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    /// As it should.
    Good,
    /// With this answer, whatever is asked.
    Answers(Reply),
    /// Closes without reading.
    ClosesUnread,
    /// Answers without reading, and closes.
    AnswersUnread(Reply),
    /// Reads and closes.
    Closes,
    /// Reads and never answers.
    Stalls,
    /// Answers with these bytes.
    Writes(Vec<u8>),
}

/// One request as it arrived.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) request: Request,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A listening daemon; stops when it is dropped.
pub(crate) struct Daemon {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Listens on the socket; good and full of memory, or bad.
    pub(crate) fn start(socket: &Path, manner: Manner) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut server = Server { manner, seen: Arc::clone(&seen), given: BTreeMap::new(), held: Vec::new() };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                server.serve(stream.unwrap());
            }
        });
        Self { socket: socket.to_owned(), stop, seen, thread: Some(thread) }
    }

    /// The requests since the last time.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::fs::remove_file(&self.socket).unwrap();
    }
}

struct Server {
    manner: Manner,
    seen: Arc<Mutex<Vec<Seen>>>,
    given: BTreeMap<SandboxKey, Added>,
    held: Vec<UnixStream>,
}

impl Server {
    fn serve(&mut self, mut stream: UnixStream) {
        let manner = self.manner.clone();
        if !matches!(manner, Manner::ClosesUnread | Manner::AnswersUnread(_)) {
            let Some(seen) = receive(&mut stream) else { return };
            self.seen.lock().unwrap().push(seen);
        }
        let bytes = match manner {
            Manner::Good => {
                let verb = self.seen.lock().unwrap().last().unwrap().request.verb.clone();
                wire::encode(&self.reply(verb)).unwrap()
            }
            Manner::Answers(reply) | Manner::AnswersUnread(reply) => wire::encode(&reply).unwrap(),
            Manner::Writes(bytes) => bytes,
            Manner::Stalls => return self.held.push(stream),
            Manner::Closes | Manner::ClosesUnread => return,
        };
        stream.write_all(&bytes).unwrap();
    }

    fn reply(&mut self, verb: Verb) -> Reply {
        match verb {
            Verb::Add(a) => {
                let next = self.given.len() + 10;
                let interface = |index: u8| Interface {
                    host_if: HostVeth::of_pod(&a.veth_prefix, &a.pod, index).to_string(),
                    container_if: if index == 0 { "eth0".to_owned() } else { format!("mNicIf{index}") },
                    other: None,
                    address: format!("10.0.{}.{next}/32", index + 1).parse().unwrap(),
                    device: DeviceIndex(1),
                    table: TableId::of_eni(NetworkCard(index), DeviceIndex(1)),
                    branch: None,
                };
                let interfaces = (0..if a.multi_nic { 3 } else { 1 }).map(interface).collect();
                let added = self.given.entry(a.sandbox).or_insert(Added { interfaces });
                Reply::Added(added.clone())
            }
            Verb::Check(a) if !self.given.contains_key(&a.sandbox) => {
                Reply::Failed(Failure::new(Reason::UnknownSandbox, "not known here"))
            }
            Verb::Del(d) => {
                self.given.remove(&d.sandbox);
                Reply::Done
            }
            Verb::Gc { network_name, valid } => {
                let before = self.given.len();
                let kept = |k: &SandboxKey| {
                    valid.iter().any(|v| {
                        (v.container_id.as_str(), v.if_name.as_str()) == (k.container_id(), k.if_name())
                    })
                };
                self.given.retain(|k, _| k.network_name() != network_name || kept(k));
                Reply::Collected { released: u32::try_from(before - self.given.len()).unwrap() }
            }
            Verb::Check(_) | Verb::Status | Verb::Report => Reply::Done,
        }
    }
}

/// The request and what came with its first byte; `None` if the other side closes without one.
fn receive(stream: &mut UnixStream) -> Option<Seen> {
    let mut header = [0; HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let data = &mut [IoSliceMut::new(&mut header)];
    let got = recvmsg(&*stream, data, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    if got.bytes == 0 {
        return None;
    }
    let descriptors = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            RecvAncillaryMessage::ScmCredentials(_) | _ => Vec::new(),
        })
        .collect();
    stream.read_exact(&mut header[got.bytes..]).unwrap();
    let mut body = vec![0; wire::frame_len(header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    Some(Seen { request: wire::decode(&body).unwrap(), descriptors })
}
