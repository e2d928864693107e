//! Starts programs that must not outlive us, however we end.
//!
//! The kernel ends a program with the *thread* that started it (`PR_SET_PDEATHSIG`), so one thread, which lives as long as
//! this process, starts them all.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A program to be started in a network namespace.
struct Job {
    netns: File,
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Starts a program in a network namespace.
pub(crate) fn spawn(netns: &File, command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel();
        // Without a thread the inbox is gone, and whoever sends hears of it.
        let _started = std::thread::Builder::new().name("keeper".to_owned()).spawn(move || keep(&inbox));
        jobs
    });
    let gone = || io::Error::other("the thread that starts programs has ended");
    let (reply, answer) = mpsc::channel();
    keeper.send(Job { netns: netns.try_clone()?, command, reply }).map_err(|_unsent| gone())?;
    answer.recv().map_err(|_ended| gone())?
}

fn keep(inbox: &mpsc::Receiver<Job>) {
    for Job { netns, mut command, reply } in inbox {
        let entered = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
        let started = entered.map_err(io::Error::from).and_then(|()| start(&mut command));
        drop(reply.send(started));
    }
}

#[expect(unsafe_code, reason = "the signal is a property of the new process, set between fork and exec")]
fn start(command: &mut Command) -> io::Result<Child> {
    let end_with_us = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(end_with_us) };
    command.spawn()
}
