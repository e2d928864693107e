//! Reachability, asked with our own sockets: an echo that answers with the source address it saw.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::LabError;
use crate::netns::Netns;

/// The echo's port.
pub const PORT: u16 = 7777;
/// How long one question may take, and how often it is asked.
const PATIENCE: Duration = Duration::from_millis(700);
const TRIES: usize = 3;

/// An echo server in a namespace; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts it on every address of the namespace.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(netns: &Netns) -> Result<Self, LabError> {
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        let socket = socket.map_err(LabError::doing("bind the echo"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).map_err(LabError::doing("set a timeout"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // Who does not get it asks again.
                    let _sent = socket.send_to(from.ip().to_string().as_bytes(), from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Asks the echo at `to` from a namespace: the source address it saw, or `None` when no answer came.
///
/// # Errors
/// When the socket cannot be made.
pub fn ask(from: &Netns, to: Ipv4Addr) -> Result<Option<Ipv4Addr>, LabError> {
    let asked = from.run(|| -> std::io::Result<Option<Ipv4Addr>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::from((to, PORT)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 64];
        for _ in 0..TRIES {
            // A refusal (ICMP) shows here or at the next receive; either way it is no answer.
            if socket.send(b"who am I?").is_ok()
                && let Ok(got) = socket.recv(&mut buffer)
            {
                return Ok(std::str::from_utf8(&buffer[..got]).ok().and_then(|text| text.parse().ok()));
            }
        }
        Ok(None)
    })?;
    asked.map_err(LabError::doing("ask an echo"))
}
