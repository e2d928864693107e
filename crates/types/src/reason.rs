//! Why something waits or fails: one closed list, the same word in the CNI error, the log, the metric and the status.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A CNI error code: 1-99 as the CNI specification defines them, 100 and above ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniCode(pub u32);

impl CniCode {
    /// The configuration asks for a CNI version that we do not speak.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field of the network configuration is not supported.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown or does not exist; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// `CNI_*` environment variables are missing or bad; the message names them.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Input or output failed.
    pub const IO_FAILURE: Self = Self(5);
    /// The configuration could not be decoded.
    pub const DECODE_FAILURE: Self = Self(6);
    /// The configuration was decoded but is not valid.
    pub const INVALID_CONFIG: Self = Self(7);
    /// A transient condition; the runtime should try again later.
    pub const TRY_AGAIN: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: as above, and existing containers may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// CHECK: what the kernel holds differs from what it should hold.
    pub const CHECK_FAILED: Self = Self(100);
    /// Anything else that is ours.
    pub const INTERNAL: Self = Self(999);
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $code:ident;)*) => {
        /// The closed list of reasons.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word under which this reason is known everywhere.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The CNI code that goes with it.
            #[must_use]
            pub const fn cni_code(self) -> CniCode {
                match self { $(Self::$name => CniCode::$code,)* }
            }
        }
    };
}

reasons! {
    // What the caller sent.
    /// `CNI_COMMAND` or another `CNI_*` variable is missing or malformed.
    BadEnvironment = "bad-environment", INVALID_ENVIRONMENT;
    /// Standard input or a frame on the socket is not what it must be.
    BadInput = "bad-input", DECODE_FAILURE;
    /// The network configuration has a value that cannot be.
    BadConfig = "bad-config", INVALID_CONFIG;
    /// The configuration asks for a CNI version outside 0.3.0 to 1.1.0.
    UnsupportedVersion = "unsupported-version", INCOMPATIBLE_VERSION;
    /// The network namespace is gone, is not one, or is the host's own.
    BadNetns = "bad-netns", INVALID_ENVIRONMENT;
    /// CHECK or another verb names a sandbox that is not known here.
    UnknownSandbox = "unknown-sandbox", UNKNOWN_CONTAINER;
    /// This sandbox was released while its ADD was still under way.
    Superseded = "superseded", TRY_AGAIN;
    /// Another sandbox of the same pod name holds the host interface name.
    NameInUse = "name-in-use", TRY_AGAIN;
    /// The pod asks for an address of every network card, and `ENABLE_MULTI_NIC` is not set.
    NoMultiNic = "no-multi-nic", UNSUPPORTED_FIELD;
    // The daemon.
    /// The daemon does not answer on its socket.
    DaemonUnreachable = "daemon-unreachable", TRY_AGAIN;
    /// The daemon is starting and has not read its state yet.
    Starting = "starting", TRY_AGAIN;
    /// The daemon serves as many requests as it allows at once.
    Busy = "busy", TRY_AGAIN;
    /// The answer did not come before the deadline.
    DeadlineExceeded = "deadline-exceeded", TRY_AGAIN;
    /// The state could not be written to disk, so nothing was promised.
    StateNotWritable = "state-not-writable", IO_FAILURE;
    /// The kernel refused what the pod needs.
    KernelRefused = "kernel-refused", INTERNAL;
    /// CHECK found the pod's kernel state different from what it should be.
    Drifted = "drifted", CHECK_FAILED;
    /// The network policy agent does not answer, so the pod would run without its policies.
    PolicyAgentUnreachable = "policy-agent-unreachable", TRY_AGAIN;
    /// The network policy agent answers that it cannot enforce the pod's policies.
    PolicyRefused = "policy-refused", TRY_AGAIN;
    // Pods with security groups of their own.
    /// `ENABLE_POD_ENI`: the pod's object has not been seen yet, so nobody knows whether the pod is to have a branch ENI.
    NoPodObject = "no-pod-object", TRY_AGAIN;
    /// The pod is to have a branch ENI, and its object does not name one that can be used (yet).
    NoBranchEni = "no-branch-eni", TRY_AGAIN;
    /// The pod is to have a branch ENI, and no trunk ENI is known on this instance.
    NoTrunk = "no-trunk", TRY_AGAIN;
    // The pool.
    /// Nothing is free and the allocation that this caused is still running.
    PoolEmpty = "pool-empty", TRY_AGAIN;
    /// The instance type, `MAX_ENI` or maxPods allows no more addresses.
    NodeFull = "node-full", TRY_AGAIN;
    /// No subnet for new ENIs: the tags of the subnets allow none in any of them, or EC2 knows no such subnet or security group.
    NoSubnet = "no-subnet", TRY_AGAIN;
    /// Custom networking: the node's ENIConfig is not known, or EC2 does not know the subnet or a group that it names, so nobody
    /// knows where new ENIs go.
    NoEniConfig = "no-eni-config", TRY_AGAIN;
    /// Nothing may be changed in EC2: a setting or an operator's hold forbids it.
    OnHold = "on-hold", TRY_AGAIN;
    // The cloud.
    /// The subnet has no free address left.
    SubnetFull = "subnet-full", TRY_AGAIN;
    /// The subnet has no free /28 left; single addresses are used meanwhile.
    NoPrefix = "no-prefix", TRY_AGAIN;
    /// The primary ENI has no prefix of IPv6 addresses, and none is to be had (yet).
    NoIpv6 = "no-ipv6", TRY_AGAIN;
    /// The instance has as many ENIs as its type allows, or the account as many as its quota allows.
    EniLimit = "eni-limit", TRY_AGAIN;
    /// EC2 says that the ENI holds as many addresses as it can: somebody else has put some there.
    EniFull = "eni-full", TRY_AGAIN;
    /// What EC2 was asked for is used by somebody else, mostly the place of a new ENI on the instance.
    InUse = "in-use", TRY_AGAIN;
    /// EC2 throttles us.
    Throttled = "throttled", TRY_AGAIN;
    /// EC2 denies a call: the IAM policy lacks an action.
    Denied = "denied", TRY_AGAIN;
    /// This machine has no roots of trust, so nobody can tell over TLS whether EC2 is EC2.
    NoRoots = "no-roots", TRY_AGAIN;
    /// EC2 or IMDS cannot be reached or answers nonsense.
    CloudUnreachable = "cloud-unreachable", TRY_AGAIN;
    /// EC2 says that an ENI or the instance does not exist (any more).
    CloudGone = "cloud-gone", TRY_AGAIN;
    /// An internal fault; always a bug, never expected.
    Internal = "internal", INTERNAL;
}

impl Reason {
    /// Whether it says that there is no address to be had: anything else is about one pod or the daemon.
    #[must_use]
    pub const fn is_shortage(self) -> bool {
        match self {
            Self::PoolEmpty
            | Self::NodeFull
            | Self::NoSubnet
            | Self::NoEniConfig
            | Self::OnHold
            | Self::SubnetFull
            | Self::NoPrefix
            | Self::NoIpv6
            | Self::EniLimit
            | Self::EniFull
            | Self::InUse
            | Self::Throttled
            | Self::Denied
            | Self::NoRoots
            | Self::CloudUnreachable
            | Self::CloudGone => true,
            Self::BadEnvironment
            | Self::BadInput
            | Self::BadConfig
            | Self::UnsupportedVersion
            | Self::BadNetns
            | Self::UnknownSandbox
            | Self::Superseded
            | Self::NameInUse
            | Self::NoMultiNic
            | Self::DaemonUnreachable
            | Self::Starting
            | Self::Busy
            | Self::DeadlineExceeded
            | Self::StateNotWritable
            | Self::KernelRefused
            | Self::Drifted
            | Self::PolicyAgentUnreachable
            | Self::PolicyRefused
            | Self::NoPodObject
            | Self::NoBranchEni
            | Self::NoTrunk
            | Self::Internal => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own_fit_for_a_metric_label() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();

        assert_eq!(words.len(), Reason::ALL.len());
        assert!(
            words
                .iter()
                .all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
    }

    #[test]
    fn the_guide_says_what_to_do_about_each_reason_and_no_other() {
        let guide = include_str!("../../../manifests/guides/troubleshooting.md");
        let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());

        assert!(rows.eq(Reason::ALL.iter().map(|reason| reason.word())));
    }

    #[test]
    fn a_reason_travels_as_its_word() {
        for reason in Reason::ALL {
            let text = serde_json::to_string(reason).unwrap();
            assert_eq!(text, format!("\"{reason}\""));
            assert_eq!(serde_json::from_str::<Reason>(&text).unwrap(), *reason);
        }
    }
}
