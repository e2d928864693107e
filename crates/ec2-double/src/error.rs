//! Refusals in EC2's words.
//!
//! Codes are those of the EC2 API reference, "Error codes for the Amazon EC2 API"; messages follow what EC2 was seen to say.

use std::fmt;

/// An error answer of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// EC2's code, for example `InvalidNetworkInterfaceID.NotFound`.
    pub code: String,
    /// What a person reads.
    pub message: String,
    /// HTTP status.
    pub http: u16,
}

impl ApiError {
    /// An error with HTTP status 400, as most have.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), http: 400 }
    }

    pub(super) fn with_http(mut self, http: u16) -> Self {
        self.http = http;
        self
    }

    pub(super) fn value(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterValue", message)
    }

    pub(super) fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    pub(super) fn missing(parameter: &str) -> Self {
        Self::new("MissingParameter", format!("The request must contain the parameter {parameter}"))
    }

    pub(super) fn no_eni(id: impl fmt::Display) -> Self {
        let message = format!("The networkInterface ID '{id}' does not exist");
        Self::new("InvalidNetworkInterfaceID.NotFound", message)
    }

    pub(super) fn no_instance(id: impl fmt::Display) -> Self {
        Self::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
    }

    pub(super) fn no_subnet(id: impl fmt::Display) -> Self {
        Self::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
    }

    pub(super) fn no_attachment(id: impl fmt::Display) -> Self {
        Self::new("InvalidAttachmentID.NotFound", format!("The attachment ID '{id}' does not exist"))
    }

    pub(super) fn subnet_full() -> Self {
        let message = "The specified subnet does not have enough free addresses to satisfy the request.";
        Self::new("InsufficientFreeAddressesInSubnet", message)
    }

    pub(super) fn no_blocks() -> Self {
        let message = "The specified subnet does not have enough free cidr blocks to satisfy the request.";
        Self::new("InsufficientCidrBlocks", message)
    }

    pub(super) fn too_many_addresses() -> Self {
        Self::new("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
    }

    pub(super) fn throttled() -> Self {
        Self::new("RequestLimitExceeded", "Request limit exceeded.").with_http(503)
    }

    pub(super) fn denied() -> Self {
        let message = "You are not authorized to perform this operation.";
        Self::new("UnauthorizedOperation", message).with_http(403)
    }

    pub(super) fn unsigned() -> Self {
        let message = "The request must contain a signature.";
        Self::new("MissingAuthenticationToken", message).with_http(403)
    }
}
