//! The operations: from parameters to a question, from the daemon's reply to an answer.

use std::os::fd::AsFd;

use types::{CniCode, Reason, SandboxKey};
use wire::queue::QueuedDel;
use wire::{Attachment, Detachment, Failure, Reply, Verb};

use crate::args;
use crate::client::{self, AskError, Call};
use crate::config::Config;
use crate::environment::{Command, Parameters};
use crate::error::bad_key;
use crate::netns::PodNetns;
use crate::output;
use crate::queue::LockedQueue;

/// A call that went well.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What to print.
    pub(crate) stdout: Vec<u8>,
    /// One word for the log.
    pub(crate) note: &'static str,
}

impl Answer {
    /// An answer that prints nothing, as the specification has it for all but ADD.
    pub(crate) fn silent(note: &'static str) -> Self {
        Self { stdout: Vec::new(), note }
    }
}

/// The question to the daemon that a call amounts to.
pub(crate) fn question(command: Command, parameters: &Parameters, config: &Config) -> Result<Verb, Failure> {
    let Parameters { container_id, if_name, .. } = parameters;
    let key = |id: &str, interface: &str| SandboxKey::new(&config.name, id, interface).map_err(bad_key);
    let question = match command {
        Command::Add => Verb::Add(attachment(key(container_id, if_name)?, parameters, config)?),
        Command::Check => Verb::Check(attachment(key(container_id, if_name)?, parameters, config)?),
        Command::Del => Verb::Del(detachment(key(container_id, if_name)?, parameters, config)),
        Command::Gc => {
            // Any key that is right apart from the network's name checks the name.
            key("any", "any")?;
            config.allows(command)?;
            Verb::Gc { network_name: config.name.clone(), valid: config.valid_attachments()? }
        }
        Command::Status | Command::Version => {
            key("any", "any")?;
            Verb::Status
        }
    };
    config.allows(command)?;
    Ok(question)
}

fn attachment(sandbox: SandboxKey, parameters: &Parameters, config: &Config) -> Result<Attachment, Failure> {
    let args = args::parse(&parameters.args)?;
    Ok(Attachment {
        sandbox,
        netns: parameters.netns.clone(),
        pod: args.pod,
        pod_uid: args.uid,
        veth_prefix: config.veth_prefix()?,
        mtu: config.mtu,
        multi_nic: config.multi_nic,
    })
}

/// A retry cannot mend bad arguments, and the sandbox alone says what to delete, so the rest may be anything.
fn detachment(sandbox: SandboxKey, parameters: &Parameters, config: &Config) -> Detachment {
    let args = args::parse(&parameters.args).unwrap_or_default();
    let veth_prefix = config.veth_prefix().unwrap_or_default();
    Detachment { sandbox, pod: args.pod, veth_prefix, addresses: config.added_addresses() }
}

/// Asks the daemon and turns its reply into an answer.
pub(crate) fn ask(verb: &Verb, config: &Config, call: &Call) -> Result<Answer, Failure> {
    match verb {
        Verb::Add(attachment) => add(verb, attachment, config, call).map_err(as_add),
        Verb::Del(detachment) => del(verb, detachment, config, call).map_err(as_del),
        Verb::Check(attachment) => check(verb, attachment, config, call),
        Verb::Gc { .. } => gc(verb, config, call),
        Verb::Status | Verb::Report => status(verb, config, call).map_err(as_status),
    }
}

fn add(verb: &Verb, attachment: &Attachment, config: &Config, call: &Call) -> Result<Answer, Failure> {
    match ask_with_netns(verb, attachment, config.ipv6, config, call)? {
        Reply::Added(added) if !added.interfaces.is_empty() => {
            let Attachment { netns, pod, .. } = attachment;
            let stdout = output::add_result(config.version, config.shape, netns, pod, &added);
            Ok(Answer { stdout, note: "ok" })
        }
        Reply::Failed(failure) => Err(failure),
        Reply::Added(_) | Reply::Done | Reply::Collected { .. } | Reply::Report(_) => {
            Err(AskError::Unexpected.into())
        }
    }
}

/// What the interface should be is known to the daemon, which was there when `prevResult` was made.
fn check(verb: &Verb, attachment: &Attachment, config: &Config, call: &Call) -> Result<Answer, Failure> {
    done(ask_with_netns(verb, attachment, false, config, call)?)
}

fn ask_with_netns(
    verb: &Verb,
    attachment: &Attachment,
    allow_ipv6: bool,
    config: &Config,
    call: &Call,
) -> Result<Reply, Failure> {
    let netns = PodNetns::open(&attachment.netns)?;
    let netlink = netns.netlink(allow_ipv6)?;
    Ok(client::ask(&config.socket, verb, &[netns.as_fd(), netlink.as_fd()], call)?)
}

/// Deletes now, or puts the delete into the queue if the daemon does not answer as one that works.
///
/// A daemon that only takes too long will still serve the request or answer the next: that is an error.
fn del(verb: &Verb, detachment: &Detachment, config: &Config, call: &Call) -> Result<Answer, Failure> {
    if let Some(result) = try_del(verb, config, call) {
        return result;
    }
    let queue = LockedQueue::lock(&config.queue, &call.patience)?;
    // The daemon may have begun to serve just before the lock was ours.
    if let Some(result) = try_del(verb, config, call) {
        return result;
    }
    queue.put(&QueuedDel { detachment: detachment.clone(), started_ns: call.patience.started_ns })?;
    Ok(Answer::silent("queued"))
}

/// The daemon's word on a DEL, or `None` if there is no daemon that could give it.
fn try_del(verb: &Verb, config: &Config, call: &Call) -> Option<Result<Answer, Failure>> {
    match client::ask(&config.socket, verb, &[], call) {
        Ok(Reply::Done) => Some(Ok(Answer::silent("ok"))),
        // A daemon of another version did not understand, or it is stopping and serves nobody any more: the next one to start may.
        Ok(Reply::Failed(Failure {
            reason: Reason::BadInput | Reason::UnsupportedVersion | Reason::DaemonUnreachable,
            ..
        })) => None,
        Ok(Reply::Failed(failure)) if retry_mends(failure.reason) => Some(Err(failure)),
        Ok(Reply::Failed(_)) => Some(Ok(Answer::silent("refused"))),
        Err(AskError::Deadline) => Some(Err(AskError::Deadline.into())),
        Ok(Reply::Added(_) | Reply::Collected { .. } | Reply::Report(_)) | Err(_) => None,
    }
}

/// Whether a later DEL may succeed. One that fails leaves the sandbox's name reserved in the container runtime, so
/// what no retry mends must not fail.
fn retry_mends(reason: Reason) -> bool {
    match reason {
        Reason::BadEnvironment
        | Reason::BadInput
        | Reason::BadConfig
        | Reason::UnsupportedVersion
        | Reason::BadNetns
        | Reason::UnknownSandbox
        | Reason::Superseded
        | Reason::NameInUse
        | Reason::NoMultiNic
        | Reason::Drifted => false,
        Reason::DaemonUnreachable
        | Reason::Starting
        | Reason::Busy
        | Reason::DeadlineExceeded
        | Reason::StateNotWritable
        | Reason::KernelRefused
        | Reason::PolicyAgentUnreachable
        | Reason::PolicyRefused
        | Reason::NoPodObject
        | Reason::NoBranchEni
        | Reason::NoTrunk
        | Reason::PoolEmpty
        | Reason::NodeFull
        | Reason::NoSubnet
        | Reason::NoEniConfig
        | Reason::OnHold
        | Reason::SubnetFull
        | Reason::NoPrefix
        | Reason::NoIpv6
        | Reason::EniLimit
        | Reason::EniFull
        | Reason::InUse
        | Reason::Throttled
        | Reason::Denied
        | Reason::NoRoots
        | Reason::CloudUnreachable
        | Reason::CloudGone
        | Reason::Internal => true,
    }
}

fn gc(verb: &Verb, config: &Config, call: &Call) -> Result<Answer, Failure> {
    match client::ask(&config.socket, verb, &[], call)? {
        Reply::Collected { .. } => Ok(Answer::silent("ok")),
        Reply::Failed(failure) => Err(failure),
        Reply::Added(_) | Reply::Done | Reply::Report(_) => Err(AskError::Unexpected.into()),
    }
}

fn status(verb: &Verb, config: &Config, call: &Call) -> Result<Answer, Failure> {
    done(client::ask(&config.socket, verb, &[], call)?)
}

fn done(reply: Reply) -> Result<Answer, Failure> {
    match reply {
        Reply::Done => Ok(Answer::silent("ok")),
        Reply::Failed(failure) => Err(failure),
        Reply::Added(_) | Reply::Collected { .. } | Reply::Report(_) => Err(AskError::Unexpected.into()),
    }
}

/// The Go version's words, which people's alerts look for, then ours.
fn as_add(failure: Failure) -> Failure {
    let words = match failure.reason {
        Reason::KernelRefused | Reason::BadNetns => "add command: failed to setup network",
        Reason::PolicyAgentUnreachable | Reason::PolicyRefused => "add cmd: failed to setup network policy",
        Reason::DaemonUnreachable => "add cmd: failed to connect to backend server",
        Reason::BadEnvironment
        | Reason::BadInput
        | Reason::BadConfig
        | Reason::UnsupportedVersion
        | Reason::UnknownSandbox
        | Reason::Superseded
        | Reason::NameInUse
        | Reason::NoMultiNic
        | Reason::Starting
        | Reason::Busy
        | Reason::DeadlineExceeded
        | Reason::StateNotWritable
        | Reason::Drifted
        | Reason::NoPodObject
        | Reason::NoBranchEni
        | Reason::NoTrunk
        | Reason::PoolEmpty
        | Reason::NodeFull
        | Reason::NoSubnet
        | Reason::NoEniConfig
        | Reason::OnHold
        | Reason::SubnetFull
        | Reason::NoPrefix
        | Reason::NoIpv6
        | Reason::EniLimit
        | Reason::EniFull
        | Reason::InUse
        | Reason::Throttled
        | Reason::Denied
        | Reason::NoRoots
        | Reason::CloudUnreachable
        | Reason::CloudGone
        | Reason::Internal => "add cmd: failed to assign an IP address to container",
    };
    Failure { message: format!("{words}: {}", failure.message), ..failure }
}

fn as_del(failure: Failure) -> Failure {
    Failure { message: format!("del cmd: failed to process delete request: {}", failure.message), ..failure }
}

/// STATUS knows two codes for "no"; only the daemon can tell that existing pods suffer too.
fn as_status(failure: Failure) -> Failure {
    let code = match failure.code {
        CniCode::LIMITED_CONNECTIVITY => CniCode::LIMITED_CONNECTIVITY,
        CniCode(_) => CniCode::NOT_AVAILABLE,
    };
    Failure { code, ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn del_fails_for_everything_that_passes_and_for_nothing_that_does_not() {
        for reason in [Reason::Busy, Reason::Starting, Reason::StateNotWritable, Reason::KernelRefused] {
            assert!(retry_mends(reason), "{reason}");
        }
        for reason in [Reason::UnknownSandbox, Reason::BadInput, Reason::Superseded] {
            assert!(!retry_mends(reason), "{reason}");
        }
    }

    #[test]
    fn add_keeps_the_words_that_alerts_look_for() {
        let message = |reason| as_add(Failure::new(reason, "why")).message;

        assert_eq!(message(Reason::SubnetFull), "add cmd: failed to assign an IP address to container: why");
        assert_eq!(message(Reason::KernelRefused), "add command: failed to setup network: why");
        assert_eq!(message(Reason::PolicyRefused), "add cmd: failed to setup network policy: why");
        assert_eq!(message(Reason::DaemonUnreachable), "add cmd: failed to connect to backend server: why");
    }

    #[test]
    fn status_has_only_the_two_codes_of_the_specification() {
        let limited = Failure { code: CniCode::LIMITED_CONNECTIVITY, ..Failure::new(Reason::Busy, "") };

        assert_eq!(as_status(limited).code, CniCode::LIMITED_CONNECTIVITY);
        assert_eq!(as_status(Failure::new(Reason::Starting, "")).code, CniCode::NOT_AVAILABLE);
    }
}
