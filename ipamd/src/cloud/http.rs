//! The HTTP client that all clients of AWS share: TLS by rustls with ring, plain text for `http://` endpoints.

use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::timeout::TimeoutConfig;

use crate::config::Config;
use crate::server::chain;

/// How long a connection may take to come about, if a request may take longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What is never asked of a proxy, whose own answer it would be: instance metadata, and the credentials of containers and pods.
const LINK_LOCAL: &str = "169.254.0.0/16,fd00:ec2::/32";

/// Asks by the proxy that the settings name, if they name one, what goes over HTTPS.
pub(super) fn client(config: &Config) -> SharedHttpClient {
    let tls = || Provider::Rustls(CryptoMode::Ring);
    let Some(proxy) = proxy(config) else { return Builder::new().tls_provider(tls()).build_https() };
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().tls_provider(tls()).proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}

fn proxy(config: &Config) -> Option<ProxyConfig> {
    let proxy = ProxyConfig::https(config.https_proxy.as_deref()?).map_err(|error| {
        tracing::warn!(error = chain(&error), "the proxy cannot be used; AWS is asked without it");
    });
    let except = config.no_proxy.iter().map(String::as_str).chain([LINK_LOCAL]);
    Some(proxy.ok()?.no_proxy(except.collect::<Vec<_>>().join(",")))
}

/// The timeouts of one attempt.
pub(super) fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(attempt.min(CONNECT_MAX))
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}
