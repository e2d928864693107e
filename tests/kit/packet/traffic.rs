//! Traffic from a pod, and what answers it.
//!
//! What a packet costs is the sender's wall time. A veth hands a packet to the receiving side in a softirq on the
//! sender's processor, before the system call that sent it returns: all of the way is in that time, forwarding
//! included. The system call takes a batch, and the median batch counts: one in which the sender lost its processor to
//! somebody else does not. A sample of which packets were lost is taken again.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg, sockopt};

use super::Effort;
use super::figures::median;
use crate::LabError;
use crate::netns::Netns;

const SINK: u16 = 9001;
const ECHO: u16 = 9002;
const BULK: u16 = 9003;
const GREETER: u16 = 9004;

/// Bytes of a datagram.
const DATAGRAM: usize = 64;
/// Datagrams in one system call.
const BATCH: usize = 64;
/// Datagrams before the clock runs.
const WARM_UP: u32 = 1024;
/// How long one sample may take.
const SAMPLE: Duration = Duration::from_millis(500);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// Of a hundred packets sent, so many must arrive.
const ARRIVE: u64 = 99;
/// How often a sample that lost packets is tried again.
const TRIES: u32 = 5;

/// Four servers in a namespace; they end when dropped.
#[derive(Debug)]
pub(super) struct Station {
    /// Its buffer is soon full, and the kernel drops what comes then: the cheapest receiver.
    _sink: UdpSocket,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Station {
    /// Starts them on every address of the namespace.
    pub(super) fn start(netns: &Netns) -> Result<Self, LabError> {
        let everywhere = Ipv4Addr::UNSPECIFIED;
        let sockets = netns.run(|| -> io::Result<_> {
            let udp = (UdpSocket::bind((everywhere, SINK))?, UdpSocket::bind((everywhere, ECHO))?);
            Ok((udp, TcpListener::bind((everywhere, BULK))?, TcpListener::bind((everywhere, GREETER))?))
        })?;
        let ((sink, echo), bulk, greeter) = sockets.map_err(LabError::doing("bind the servers"))?;
        sockopt::set_socket_recv_buffer_size(&sink, 1).map_err(LabError::doing("shrink a buffer"))?;
        echo.set_read_timeout(Some(LOOK)).map_err(LabError::doing("set a timeout"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = [Arc::clone(&stop), Arc::clone(&stop), Arc::clone(&stop)];
        let [for_echo, for_bulk, for_greeter] = stopped;
        let threads = vec![
            std::thread::spawn(move || answer(&echo, &for_echo)),
            std::thread::spawn(move || serve(&bulk, &for_bulk, swallow)),
            std::thread::spawn(move || serve(&greeter, &for_greeter, |mut stream| stream.write_all(b"x"))),
        ];
        Ok(Self { _sink: sink, stop, threads })
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; DATAGRAM];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // Who does not get it counts it as lost.
            let _sent = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
        }
    }
}

/// Serves one connection after the other; the client sees what becomes of each.
fn serve(listener: &TcpListener, stop: &AtomicBool, with: impl Fn(TcpStream) -> io::Result<()>) {
    let patience = Timespec::try_from(LOOK).ok();
    while !stop.load(Ordering::Relaxed) {
        let ready = poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)], patience.as_ref());
        if ready.is_ok_and(|sockets| sockets > 0)
            && let Ok((stream, _)) = listener.accept()
        {
            let _served = with(stream);
        }
    }
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SAMPLE))?;
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Nanoseconds per datagram from a pod to an address in another namespace.
pub(super) fn per_packet(from: &Netns, to: &Netns, at: Ipv4Addr, effort: &Effort) -> Result<f64, LabError> {
    for _try in 0..TRIES {
        let before = received(to)?;
        let (sent, each) = from.run(|| flood(at, effort.packets))?.map_err(LabError::doing("send"))?;
        if received(to)?.saturating_sub(before) * 100 >= u64::from(sent) * ARRIVE {
            return Ok(each);
        }
    }
    Err(LabError::Otherwise(format!("packets from {} to {at} are lost", from.name())))
}

/// Sends; returns how many datagrams, and nanoseconds for each in the median batch after the first ones.
fn flood(at: Ipv4Addr, packets: u32) -> io::Result<(u32, f64)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((at, SINK))?;
    let payload = [0x55; DATAGRAM];
    let parts = [IoSlice::new(&payload)];
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut batch: Vec<MMsgHdr<'_>> = controls.iter_mut().map(|c| MMsgHdr::new(&parts, c)).collect();
    let mut times = Vec::new();
    let (begun, mut sent) = (Instant::now(), 0);
    while sent < WARM_UP + packets && begun.elapsed() < SAMPLE {
        let started = Instant::now();
        let accepted = sendmmsg(&socket, &mut batch, SendFlags::empty())?;
        let accepted = u32::try_from(accepted).map_err(io::Error::other)?;
        if sent >= WARM_UP {
            times.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(accepted));
        }
        sent += accepted;
    }
    let each = median(&mut times).ok_or_else(|| io::Error::other("no time to send"))?;
    Ok((sent, each))
}

/// Packets that came by all links of a namespace but the loopback.
fn received(netns: &Netns) -> Result<u64, LabError> {
    Ok(arrivals(netns)?.into_iter().filter(|(link, _)| link != "lo").map(|(_, packets)| packets).sum())
}

/// Packets that have come by each link of a namespace.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn arrivals(netns: &Netns) -> Result<Vec<(String, u64)>, LabError> {
    let table = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let table = table.map_err(LabError::doing("read the links' counters"))?;
    let line = |line: &str| {
        let (link, counters) = line.split_once(':')?;
        let packets = counters.split_whitespace().nth(1)?.parse().ok()?;
        Some((link.trim().to_owned(), packets))
    };
    Ok(table.lines().filter_map(line).collect())
}

/// Microseconds from a question to its answer, in the median.
pub(super) fn per_answer(from: &Netns, at: Ipv4Addr, effort: &Effort) -> Result<f64, LabError> {
    let asked = from.run(|| ask(at, effort.questions))?;
    let mut took = asked.map_err(LabError::doing("ask"))?;
    median(&mut took).ok_or_else(|| LabError::Otherwise(format!("{at} does not answer {}", from.name())))
}

/// Microseconds to each answer.
fn ask(at: Ipv4Addr, questions: u32) -> io::Result<Vec<f64>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((at, ECHO))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (begun, mut took, mut buffer) = (Instant::now(), Vec::new(), [0; DATAGRAM]);
    for _question in 0..questions {
        let started = Instant::now();
        socket.send(&[0x55; DATAGRAM])?;
        if socket.recv(&mut buffer).is_ok() {
            took.push(started.elapsed().as_secs_f64() * 1e6);
        }
        if begun.elapsed() > SAMPLE {
            break;
        }
    }
    Ok(took)
}

/// Gigabits per second of one TCP connection, until the other end has read it all.
pub(super) fn throughput(from: &Netns, at: Ipv4Addr, effort: &Effort) -> Result<f64, LabError> {
    let sent = from.run(|| -> io::Result<f64> {
        let mut stream = connect(at, BULK)?;
        let (chunk, started) = (vec![0x55; 1 << 17], Instant::now());
        let mut chunks = 0_u32;
        while started.elapsed() < effort.bulk {
            stream.write_all(&chunk)?;
            chunks += 1;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(f64::from(chunks) * f64::from(1 << 20) / 1e9 / started.elapsed().as_secs_f64())
    })?;
    sent.map_err(LabError::doing("send in bulk"))
}

/// Connections per second: made, one byte read, closed by the server first, so that the client's ports are free again.
pub(super) fn connections(from: &Netns, at: Ipv4Addr, effort: &Effort) -> Result<f64, LabError> {
    let made = from.run(|| -> io::Result<f64> {
        let (started, mut made) = (Instant::now(), 0_u32);
        while made < effort.connections && started.elapsed() < SAMPLE {
            connect(at, GREETER)?.read_to_end(&mut Vec::new())?;
            made += 1;
        }
        Ok(f64::from(made) / started.elapsed().as_secs_f64())
    })?;
    made.map_err(LabError::doing("connect"))
}

fn connect(at: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((at, port)), SAMPLE)?;
    stream.set_read_timeout(Some(SAMPLE))?;
    stream.set_write_timeout(Some(SAMPLE))?;
    Ok(stream)
}
