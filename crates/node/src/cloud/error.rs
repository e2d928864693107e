//! What goes wrong at the cloud's edge, sorted by what can be done about it.

use types::Reason;

/// A failed call to EC2 or the metadata service.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CloudError {
    kind: CloudErrorKind,
    call: &'static str,
    /// EC2's code, or empty.
    code: String,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloudErrorKind {
    /// We ask too often.
    Throttled,
    /// The subnet has not as many free addresses.
    SubnetFull,
    /// The subnet has not as many free /28 blocks.
    NoPrefix,
    /// No more ENIs: the instance's limit or the account's quota.
    EniLimit,
    /// The ENI holds no more addresses.
    AddressLimit,
    /// What the call is about does not exist (any more).
    Gone,
    /// A new ENI is to have a subnet or a security group that does not exist: nothing was made.
    NoPlace,
    /// We may not.
    Denied,
    /// We trust nobody who could say over TLS who answers, so nothing was asked.
    NoRoots,
    /// There is no answer, and nothing has happened.
    Unreachable,
    /// What the call is about is used elsewhere.
    InUse,
    /// There is no (readable) answer, and what was asked may have happened: look before asking again.
    Unclear,
    /// The answer makes no sense.
    Garbage,
    /// Anything else.
    Other,
}

impl CloudErrorKind {
    /// The reason that pods waiting for this call are told.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Throttled => Reason::Throttled,
            Self::SubnetFull => Reason::SubnetFull,
            Self::NoPrefix => Reason::NoPrefix,
            Self::EniLimit => Reason::EniLimit,
            Self::AddressLimit => Reason::EniFull,
            Self::InUse => Reason::InUse,
            Self::Gone => Reason::CloudGone,
            Self::NoPlace => Reason::NoSubnet,
            Self::Denied => Reason::Denied,
            Self::NoRoots => Reason::NoRoots,
            Self::Unreachable | Self::Unclear | Self::Garbage | Self::Other => Reason::CloudUnreachable,
        }
    }
}

/// What a call does to the world; decides what its silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: silence is [`CloudErrorKind::Unreachable`].
    Reads,
    /// Something: silence is [`CloudErrorKind::Unclear`].
    Changes,
}

impl Effect {
    /// The kind of a call without answer.
    #[must_use]
    pub const fn silence(self) -> CloudErrorKind {
        match self {
            Self::Reads => CloudErrorKind::Unreachable,
            Self::Changes => CloudErrorKind::Unclear,
        }
    }

    /// The kind of a call whose answer makes no sense.
    #[must_use]
    pub const fn nonsense(self) -> CloudErrorKind {
        match self {
            Self::Reads => CloudErrorKind::Garbage,
            Self::Changes => CloudErrorKind::Unclear,
        }
    }
}

impl CloudError {
    /// A failure of the named call, in words.
    #[must_use]
    pub fn new(kind: CloudErrorKind, call: &'static str, message: impl Into<String>) -> Self {
        Self { kind, call, code: String::new(), message: cut(message.into()), source: None }
    }

    /// An error that EC2 answered with: the HTTP status, its code and its words.
    #[must_use]
    pub fn answered(call: &'static str, effect: Effect, status: u16, code: &str, message: &str) -> Self {
        let known = kind_of(effect, code, message);
        // A fault of theirs under a name that we do not know says as little as silence does.
        let unknown_fault = known == CloudErrorKind::Other && status >= 500;
        let kind = if unknown_fault { effect.silence() } else { known };
        let mut error = Self::new(kind, call, format!("{message} ({code})"));
        code.clone_into(&mut error.code);
        error
    }

    /// The same with what is behind it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub const fn kind(&self) -> CloudErrorKind {
        self.kind
    }

    /// The call that failed, by EC2's name of it.
    #[must_use]
    pub const fn call(&self) -> &'static str {
        self.call
    }

    /// EC2's error code; empty if EC2 did not answer with one.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }
}

/// Logs and replies are no place for whole documents.
fn cut(text: String) -> String {
    if text.len() <= 512 { text } else { text.chars().take(512).collect() }
}

/// Sorts EC2's codes ("Error codes for the Amazon EC2 API").
fn kind_of(effect: Effect, code: &str, message: &str) -> CloudErrorKind {
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "EC2ThrottledException"
        | "TooManyRequestsException"
        | "SlowDown"
        | "BandwidthLimitExceeded" => CloudErrorKind::Throttled,
        "InsufficientFreeAddressesInSubnet" => CloudErrorKind::SubnetFull,
        "InsufficientCidrBlocks" => CloudErrorKind::NoPrefix,
        "AttachmentLimitExceeded" | "NetworkInterfaceLimitExceeded" | "NetworkInterfacesLimitExceeded" => {
            CloudErrorKind::EniLimit
        }
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "OptInRequired"
        | "Blocked"
        | "UnrecognizedClientException" => CloudErrorKind::Denied,
        "InvalidNetworkInterface.InUse" | "DependencyViolation" => CloudErrorKind::InUse,
        "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" | "RequestTimeout" => {
            effect.silence()
        }
        "InvalidParameterValue" if message.contains("in use") => CloudErrorKind::InUse,
        // The place on the instance is taken, for example by an ENI that is still being detached.
        "InvalidParameterValue" if message.contains("already has an interface") => CloudErrorKind::InUse,
        "InvalidParameterValue" if message.contains("not assigned") => CloudErrorKind::Gone,
        "InvalidInstanceType" => CloudErrorKind::Gone,
        "InvalidSubnetID.NotFound"
        | "InvalidSubnetID.Malformed"
        | "InvalidSubnet"
        | "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidSecurityGroupID.NotFound" => CloudErrorKind::NoPlace,
        _ if code.ends_with(".NotFound") => CloudErrorKind::Gone,
        _ => CloudErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_ec2_are_sorted_by_what_can_be_done() {
        use CloudErrorKind as Kind;
        let of = |code, message| kind_of(Effect::Changes, code, message);

        assert_eq!(of("RequestLimitExceeded", ""), Kind::Throttled);
        assert_eq!(of("InsufficientFreeAddressesInSubnet", ""), Kind::SubnetFull);
        assert_eq!(of("InsufficientCidrBlocks", ""), Kind::NoPrefix);
        assert_eq!(of("AttachmentLimitExceeded", ""), Kind::EniLimit);
        assert_eq!(of("PrivateIpAddressLimitExceeded", ""), Kind::AddressLimit);
        assert_eq!(of("InvalidNetworkInterfaceID.NotFound", ""), Kind::Gone);
        assert_eq!(of("InvalidAttachmentID.NotFound", ""), Kind::Gone);
        assert_eq!(of("InvalidGroup.NotFound", ""), Kind::NoPlace);
        assert_eq!(of("InvalidSubnetID.NotFound", ""), Kind::NoPlace);
        assert_eq!(of("UnauthorizedOperation", ""), Kind::Denied);
        assert_eq!(
            of("InvalidParameterValue", "Network interface 'eni-1' is currently in use."),
            Kind::InUse
        );
        assert_eq!(of("InvalidParameterValue", "Some addresses are not assigned to eni-1"), Kind::Gone);
        let taken = "Instance 'i-1' already has an interface attached at device index '1'.";
        assert_eq!(of("InvalidParameterValue", taken), Kind::InUse);
        assert_eq!(of("InvalidParameterValue", "no"), Kind::Other);
        assert_eq!(of("InternalError", ""), Kind::Unclear);
        assert_eq!(kind_of(Effect::Reads, "InternalError", ""), Kind::Unreachable);
    }

    #[test]
    fn a_message_is_never_a_document() {
        let error = CloudError::new(CloudErrorKind::Garbage, "DescribeTags", "é".repeat(100_000));

        assert!(error.to_string().len() < 2000);
    }
}
