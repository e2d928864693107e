//! Errors at the edge: which CNI code and which reason each of them has.

use std::error::Error;

use types::{CniCode, Reason, SandboxKeyError};
use wire::Failure;

use crate::args::ArgsError;
use crate::client::AskError;
use crate::config::ConfigError;
use crate::environment::EnvironmentError;
use crate::netns::NetnsError;
use crate::queue::QueueError;
use crate::stdin::StdinError;

/// The most that is told about causes, in characters: they may quote what came in.
const DETAILS_CHARS_MAX: usize = 1024;

/// The failure for an error: its message, and its causes as details.
fn failure(code: CniCode, reason: Reason, error: &dyn Error) -> Failure {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    let details = causes.join(": ").chars().take(DETAILS_CHARS_MAX).collect();
    Failure { code, reason, message: error.to_string(), details }
}

impl From<EnvironmentError> for Failure {
    fn from(error: EnvironmentError) -> Self {
        failure(CniCode::INVALID_ENVIRONMENT, Reason::BadEnvironment, &error)
    }
}

impl From<ArgsError> for Failure {
    fn from(error: ArgsError) -> Self {
        failure(CniCode::INVALID_ENVIRONMENT, Reason::BadEnvironment, &error)
    }
}

impl From<StdinError> for Failure {
    fn from(error: StdinError) -> Self {
        let code = match error {
            StdinError::Read(_) | StdinError::Slow => CniCode::IO_FAILURE,
            StdinError::Long => CniCode::DECODE_FAILURE,
        };
        failure(code, Reason::BadInput, &error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let reason = match error {
            ConfigError::Decode(_) => Reason::BadInput,
            ConfigError::Version { .. } | ConfigError::TooOld { .. } => Reason::UnsupportedVersion,
            ConfigError::NameMissing
            | ConfigError::Name(_)
            | ConfigError::VethPrefix(_)
            | ConfigError::NotFirst
            | ConfigError::PrevResultMissing
            | ConfigError::AttachmentsMissing => Reason::BadConfig,
        };
        failure(reason.cni_code(), reason, &error)
    }
}

/// What is wrong with a sandbox key: the network name is configuration, the rest environment.
pub(crate) fn bad_key(error: SandboxKeyError) -> Failure {
    match error {
        SandboxKeyError::NetworkName(_) => ConfigError::Name(error).into(),
        SandboxKeyError::ContainerId(_) | SandboxKeyError::IfName(_) => {
            failure(CniCode::INVALID_ENVIRONMENT, Reason::BadEnvironment, &error)
        }
    }
}

impl From<NetnsError> for Failure {
    fn from(error: NetnsError) -> Self {
        let reason = match error {
            NetnsError::Open { .. }
            | NetnsError::NotNetns { .. }
            | NetnsError::Own
            | NetnsError::Enter(_) => Reason::BadNetns,
            NetnsError::Socket(_) | NetnsError::Ipv6 { .. } => Reason::KernelRefused,
            NetnsError::Thread => Reason::Internal,
        };
        failure(reason.cni_code(), reason, &error)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let reason = match error {
            AskError::Unreachable { .. } | AskError::Closed | AskError::Broken(_) => {
                Reason::DaemonUnreachable
            }
            AskError::Deadline => Reason::DeadlineExceeded,
            AskError::Frame(_) | AskError::Unexpected => Reason::BadInput,
        };
        failure(reason.cni_code(), reason, &error)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let reason = match error {
            QueueError::Io { .. } => Reason::StateNotWritable,
            QueueError::Encode(_) => Reason::Internal,
            QueueError::Locked => Reason::Starting,
            QueueError::Full => Reason::Busy,
        };
        failure(reason.cni_code(), reason, &error)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn causes_are_details_and_never_repeated_in_the_message() {
        let failure = Failure::from(AskError::Unreachable { path: "/a".into(), source: Errno::NOENT });

        assert_eq!(failure.message, "the daemon cannot be reached at /a");
        assert_eq!(failure.details, "No such file or directory (os error 2)");
    }

    #[test]
    fn a_bad_network_name_is_configuration_and_a_bad_id_is_environment() {
        let key = |network, id| types::SandboxKey::new(network, id, "eth0").map_err(bad_key).unwrap_err();

        assert_eq!(key("a b", "x").code, CniCode::INVALID_CONFIG);
        assert_eq!(key("a", "../x").code, CniCode::INVALID_ENVIRONMENT);
    }
}
