//! The HTTP client that all clients of AWS share: TLS by rustls with ring, plain text for `http://` endpoints.

use std::time::Duration;

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::timeout::TimeoutConfig;

/// How long a connection may take to come about, if a request may take longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

pub(super) fn client() -> SharedHttpClient {
    Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

/// The timeouts of one attempt.
pub(super) fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(attempt.min(CONNECT_MAX))
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}
