//! Namespaces: a node with two ENIs, a pod on each, and the world behind each.
//!
//! ```text
//!    pod "first"  10.0.0.20 --enifirst--+      +--ens5 10.0.0.10 -- world "primary"    \  each is 8.8.8.8 (outside)
//!                                       | node |                                        } and 10.0.9.9 (in the VPC),
//!    pod "second" 10.0.1.20 --enisecond-+      +--ens6 10.0.1.10 -- world "secondary"  /  and says its name
//! ```

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use datapath::netfilter::{Netfilter, Ruleset};
use libtest_mimic::Failed;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::values::{FIRST, IN_VPC, OUTSIDE, PORT, SECOND};
use crate::{Outcome, check};

/// A network namespace; it is gone when the last descriptor and thread have left it.
#[derive(Debug)]
pub(crate) struct Space(File);

impl Space {
    pub(crate) fn new() -> Result<Self, Failed> {
        let thread = std::thread::spawn(|| {
            unshare(UnshareFlags::NEWNET)?;
            ip("link set lo up")?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        });
        thread.join().map_err(|_panic| Failed::from("the thread panicked"))?
    }

    /// Runs something on a thread in this namespace; programs and sockets that it opens are in it too.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, Failed> + Send) -> Result<T, Failed> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            thread.join().map_err(|_panic| Failed::from("the test panicked"))?
        })
    }

    /// A path by which `ip` finds this namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A node with two ENIs, a pod on each, and the world behind each.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) node: Space,
    pub(crate) first: Space,
    pub(crate) second: Space,
    pub(crate) primary: Space,
    _secondary: Space,
}

impl Lab {
    pub(crate) fn new(ruleset: &Ruleset) -> Result<Self, Failed> {
        let (node, first, second) = (Space::new()?, Space::new()?, Space::new()?);
        let (primary, secondary) = (Space::new()?, Space::new()?);
        node.run(|| {
            for (link, other) in
                [("enifirst", &first), ("enisecond", &second), ("ens5", &primary), ("ens6", &secondary)]
            {
                ip(&format!("link add {link} type veth peer name eth0 netns {}", other.path()))?;
                ip(&format!("link set {link} up"))?;
            }
            for setting in
                ["ip_forward=1", "conf/all/rp_filter=0", "conf/ens6/rp_filter=2", "conf/ens5/rp_filter=2"]
            {
                let (name, value) = setting.split_once('=').ok_or("no value")?;
                std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
            }
            node_routes()?;
            Ok(Netfilter::default().put(ruleset.clone()).map(drop)?)
        })?;
        first.run(|| pod_side(FIRST))?;
        second.run(|| pod_side(SECOND))?;
        for (world, name, subnet) in [(&primary, "primary", "10.0.0"), (&secondary, "secondary", "10.0.1")] {
            world.run(|| {
                ip("link set eth0 up")?;
                ip(&format!("addr add {subnet}.1/24 dev eth0"))?;
                ip(&format!("addr add {OUTSIDE}/32 dev lo"))?;
                ip(&format!("addr add {IN_VPC}/32 dev lo"))?;
                // EC2 brings a pod's packets to its ENI without asking by ARP.
                ip(&format!("route add {subnet}.20 via {subnet}.10"))?;
                serve(name, OUTSIDE)?;
                serve(name, IN_VPC)
            })?;
        }
        Ok(Self { node, first, second, primary, _secondary: secondary })
    }
}

fn node_routes() -> Outcome {
    for command in [
        "addr add 10.0.0.10/24 dev ens5",
        "addr add 10.0.1.10/24 dev ens6 noprefixroute",
        "route add default via 10.0.0.1",
        "route add 10.0.1.1 dev ens6 table 2 scope link",
        "route add default via 10.0.1.1 table 2",
        "route add 10.0.0.20 dev enifirst table 51200",
        "route add 10.0.1.20 dev enisecond table 51200",
        "rule add priority 512 table 51200",
        "rule add priority 1024 fwmark 0x80/0x80 table main",
        "rule add priority 1536 fwmark 0x200/0x3f00 table 2",
        "addr add 169.254.1.1/32 dev enifirst",
        "addr add 169.254.1.1/32 dev enisecond",
    ] {
        ip(command)?;
    }
    Ok(())
}

fn pod_side(address: Ipv4Addr) -> Outcome {
    ip("link set eth0 up")?;
    ip(&format!("addr add {address}/32 dev eth0"))?;
    ip("route add 169.254.1.1 dev eth0")?;
    ip("route add default via 169.254.1.1")
}

pub(crate) fn ip(arguments: &str) -> Outcome {
    let output = Command::new("ip").args(arguments.split_whitespace()).output()?;
    check(output.status.success(), format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Answers every question with a name and the asker's address; ends with this process.
pub(crate) fn serve(name: &'static str, address: Ipv4Addr) -> Outcome {
    let socket = UdpSocket::bind((address, PORT))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, asker)) = socket.recv_from(&mut buffer) {
            let _lost = socket.send_to(format!("{name} {asker}").as_bytes(), asker);
        }
    });
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "rustix marks unshare as unsafe because of CLONE_FILES, which is not used here"
)]
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: no flag that would stop sharing the descriptor table with other threads.
    unsafe { unshare_unsafe(flags) }
}
