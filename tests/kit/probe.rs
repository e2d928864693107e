//! Reachability, asked with our own sockets: an echo that answers with the source address it saw.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::LabError;
use crate::netns::Netns;

/// The echo's port.
pub const PORT: u16 = 7777;
/// How long one question may take, and how often it is asked.
const PATIENCE: Duration = Duration::from_millis(700);
const TRIES: usize = 3;
/// How often an echo looks up to see whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How long one step of a transfer may take.
const TRANSFER: Duration = Duration::from_secs(10);

/// An echo server in a namespace, over UDP and TCP; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How a question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A datagram there and one back.
    Udp,
    /// A connection.
    Tcp,
}

impl Echo {
    /// Starts it on every address of the namespace.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(netns: &Netns) -> Result<Self, LabError> {
        // Of both families, where there are two.
        let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let any = any.map(|address| SocketAddr::from((address, PORT)));
        let bind = || -> std::io::Result<(UdpSocket, TcpListener)> {
            let (socket, listener) = (UdpSocket::bind(&any[..])?, TcpListener::bind(&any[..])?);
            socket.set_read_timeout(Some(LOOK_UP))?;
            // The kernel lets `accept` end after this too.
            set_socket_timeout(&listener, Timeout::Recv, Some(LOOK_UP))?;
            Ok((socket, listener))
        };
        let (socket, listener) = netns.run(bind)?.map_err(LabError::doing("bind the echo"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let [for_udp, for_tcp] = [(); 2].map(|()| Arc::clone(&stop));
        let datagrams = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !for_udp.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // Who does not get it asks again.
                    let _sent = socket.send_to(name_of(from).as_bytes(), from);
                }
            }
        });
        let connections = std::thread::spawn(move || {
            while !for_tcp.load(Ordering::Relaxed) {
                if let Ok((mut stream, from)) = listener.accept() {
                    drop(stream.write_all(name_of(from).as_bytes()));
                }
            }
        });
        Ok(Self { stop, threads: vec![datagrams, connections] })
    }
}

/// The source as the echo tells it.
fn name_of(from: SocketAddr) -> String {
    from.ip().to_canonical().to_string()
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// Asks the echo at `to` from a namespace: the source address it saw, or `None` when no answer came.
///
/// # Errors
/// When the socket cannot be made.
pub fn ask(from: &Netns, to: Ipv4Addr) -> Result<Option<Ipv4Addr>, LabError> {
    let seen = ask_at(from, IpAddr::V4(to))?;
    Ok(seen.and_then(|seen| match seen {
        IpAddr::V4(seen) => Some(seen),
        IpAddr::V6(_) => None,
    }))
}

/// The same for either family.
///
/// # Errors
/// When the socket cannot be made.
pub fn ask_at(from: &Netns, to: IpAddr) -> Result<Option<IpAddr>, LabError> {
    ask_by(By::Udp, from, (to, PORT).into())
}

/// The same of an echo that is reached by another port, either way.
///
/// # Errors
/// When the socket cannot be made.
pub fn ask_by(by: By, from: &Netns, to: SocketAddr) -> Result<Option<IpAddr>, LabError> {
    match by {
        By::Udp => Ok(Conversation::open(from, to)?.ask()),
        By::Tcp => {
            let asked = from.run(|| -> std::io::Result<String> {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            })?;
            Ok(asked.ok().and_then(|answer| answer.parse().ok()))
        }
    }
}

/// Questions from one socket, which connection tracking takes for one connection.
#[derive(Debug)]
pub struct Conversation(UdpSocket);

impl Conversation {
    /// Opens it in a namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(from: &Netns, to: SocketAddr) -> Result<Self, LabError> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::open_as(from, any, to)
    }

    /// The same from one of the namespace's addresses.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open_as(from: &Netns, source: IpAddr, to: SocketAddr) -> Result<Self, LabError> {
        let opened = from.run(|| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((source, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        opened.map(Self).map_err(LabError::doing("ask an echo"))
    }

    /// Asks: the source address that the echo saw, or `None` when no answer came.
    #[must_use]
    pub fn ask(&self) -> Option<IpAddr> {
        let mut buffer = [0; 64];
        for _ in 0..TRIES {
            // A refusal (ICMP) shows here or at the next receive; either way it is no answer.
            if self.0.send(b"who am I?").is_ok()
                && let Ok(got) = self.0.recv(&mut buffer)
            {
                return std::str::from_utf8(&buffer[..got]).ok().and_then(|text| text.parse().ok());
            }
        }
        None
    }
}

/// Sends so many bytes over TCP from one namespace to an address in another and has them sent back.
///
/// # Errors
/// When the connection or the transfer fails, or not every byte comes back.
pub fn transfer(from: &Netns, to: &Netns, address: Ipv4Addr, bytes: usize) -> Result<(), LabError> {
    let doing = || LabError::doing(format!("send {bytes} bytes to {address}"));
    let listener = to.run(|| TcpListener::bind((address, 0)))?.map_err(doing())?;
    let target = listener.local_addr().map_err(doing())?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        // Looks now and then, so that it ends when nobody comes.
        listener.set_nonblocking(true)?;
        let until = std::time::Instant::now() + TRANSFER;
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if std::time::Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TRANSFER))?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    });
    let sent = from.run(|| -> std::io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&target, TRANSFER)?;
        stream.set_read_timeout(Some(TRANSFER))?;
        stream.write_all(&vec![0x5a; bytes])?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)
    })?;
    let echoed = echo.join().unwrap_or_else(|_panic| Err(std::io::Error::other("the echo panicked")));
    let back = sent.map_err(doing())?;
    echoed.map_err(doing())?;
    if back == bytes {
        Ok(())
    } else {
        Err(LabError::Otherwise(format!("{back} of {bytes} bytes came back")))
    }
}

/// A TCP connection between two namespaces that stays open; the far end sends back what it gets, until this is dropped.
#[derive(Debug)]
pub struct Talk(TcpStream);

impl Talk {
    /// Connects to an address of the far namespace.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub fn open(from: &Netns, to: &Netns, address: Ipv4Addr) -> Result<Self, LabError> {
        let doing = || LabError::doing(format!("connect to {address}"));
        let listener = to.run(|| TcpListener::bind((address, 0)))?.map_err(doing())?;
        let target = listener.local_addr().map_err(doing())?;
        let stream = from.run(|| TcpStream::connect_timeout(&target, TRANSFER))?.map_err(doing())?;
        stream.set_read_timeout(Some(TRANSFER)).map_err(doing())?;
        // It is there: the handshake was answered by the kernel.
        let (mut far, _) = listener.accept().map_err(doing())?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(got @ 1..) = far.read(&mut buffer) {
                let _lost = far.write_all(buffer.get(..got).unwrap_or_default());
            }
        });
        Ok(Self(stream))
    }

    /// Sends something and gets it back.
    ///
    /// # Errors
    /// When it does not come back in time.
    pub fn goes_on(&mut self) -> Result<(), LabError> {
        let (word, mut back) = (*b"still there", [0; 11]);
        let echoed = self.0.write_all(&word).and_then(|()| self.0.read_exact(&mut back));
        echoed.map_err(LabError::doing("go on with a connection"))
    }
}
