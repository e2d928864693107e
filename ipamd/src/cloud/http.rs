//! The HTTP client that all clients of AWS share (TLS by rustls with ring, plain text for `http://` endpoints), and the configuration with
//! which they find their credentials.

use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpClient};
use aws_smithy_types::timeout::TimeoutConfig;

/// How we are named in user agents.
const APP_NAME: &str = "amazon-vpc-cni-rust";
const TLS: Provider = Provider::Rustls(CryptoMode::Ring);

/// How long a connection may take to come about, if a request may take longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

pub(super) fn client() -> SharedHttpClient {
    Builder::new().tls_provider(TLS).build_https()
}

/// The same for single requests of our own, each with an end.
pub(super) fn connector(attempt: Duration) -> Connector {
    let connect = attempt.min(CONNECT_MAX);
    let ends = HttpConnectorSettings::builder().connect_timeout(connect).read_timeout(attempt).build();
    Connector::builder().connector_settings(ends).tls_provider(TLS).build()
}

/// Where requests go and as whom: credentials from the usual places (environment, web identity, pod identity, instance role) or these.
pub(super) async fn shared(attempt: Duration, region: &str, credentials: Option<Credentials>) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(client())
        .timeout_config(timeouts(attempt));
    if let Ok(name) = AppName::new(APP_NAME) {
        loader = loader.app_name(name);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    loader.load().await
}

/// The timeouts of one attempt.
fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(attempt.min(CONNECT_MAX))
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}
