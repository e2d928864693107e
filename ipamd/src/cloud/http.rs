//! The HTTP client that all clients of AWS share (TLS by rustls with ring, plain text for `http://` endpoints), and the configuration with
//! which they find their credentials.

use std::sync::LazyLock;
use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpClient};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::timeout::TimeoutConfig;
use rustls::RootCertStore;

use super::{CloudError, CloudErrorKind};
use crate::config::Config;
use crate::server::chain;

/// How we are named in user agents.
const APP_NAME: &str = "amazon-vpc-cni-rust";
const TLS: Provider = Provider::Rustls(CryptoMode::Ring);

/// How long a connection may take to come about, if a request may take longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What is never asked of a proxy, whose own answer it would be: instance metadata, and the credentials of containers and pods.
const LINK_LOCAL: &str = "169.254.0.0/16,fd00:ec2::/32";

/// Asks by the proxy that the settings name, if they name one, what goes over HTTPS.
pub(super) fn client(config: &Config) -> SharedHttpClient {
    let Some(proxy) = proxy(config) else {
        return Builder::new().tls_provider(TLS).tls_context(trust()).build_https();
    };
    Builder::new().build_with_connector_fn(move |settings, components| {
        let connector = Connector::builder().tls_provider(TLS).tls_context(trust());
        let mut connector = connector.proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}

/// The same for single requests of our own, each with an end.
pub(super) fn connector(config: &Config) -> Connector {
    let attempt = config.http_timeout;
    let connect = attempt.min(CONNECT_MAX);
    let ends = HttpConnectorSettings::builder().connect_timeout(connect).read_timeout(attempt).build();
    let connector = Connector::builder().connector_settings(ends).tls_provider(TLS).tls_context(trust());
    match proxy(config) {
        Some(proxy) => connector.proxy_config(proxy).build(),
        None => connector.build(),
    }
}

fn proxy(config: &Config) -> Option<ProxyConfig> {
    let proxy = ProxyConfig::https(config.https_proxy.as_deref()?).map_err(|error| {
        tracing::warn!(error = chain(&error), "the proxy cannot be used; AWS is asked without it");
    });
    let except = config.no_proxy.iter().map(String::as_str).chain([LINK_LOCAL]);
    Some(proxy.ok()?.no_proxy(except.collect::<Vec<_>>().join(",")))
}

/// Whether this machine trusts anybody. It is looked at once, as the client does.
static ROOTS: LazyLock<bool> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let (usable, _unusable) = RootCertStore::empty().add_parsable_certificates(found.certs);
    usable > 0
});

/// The machine's roots of trust, or none at all: the client takes it for a fault of ours to look for roots where there are none.
fn trust() -> TlsContext {
    let store = TrustStore::default().with_native_roots(*ROOTS);
    TlsContext::builder().with_trust_store(store).build().unwrap_or_default()
}

/// What keeps a call from being made to this URL, or to AWS' own: without roots of trust it could only fail, and would not say why.
pub(super) fn roots_for(url: Option<&str>, call: &'static str) -> Result<(), CloudError> {
    let is_plain = url.is_some_and(|url| url.starts_with("http://"));
    if is_plain || *ROOTS {
        return Ok(());
    }
    let message = "there are no roots of trust (CA certificates) on this machine: install them (Debian: ca-certificates; in an image: \
        /etc/ssl/certs/ca-certificates.crt) or name a file of them in SSL_CERT_FILE, and start again";
    Err(CloudError::new(CloudErrorKind::NoRoots, call, message))
}

/// Where requests go and as whom: credentials from the usual places (environment, web identity, pod identity, instance role) or these.
pub(super) async fn shared(config: &Config, region: &str, credentials: Option<Credentials>) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(client(config))
        .timeout_config(timeouts(config.http_timeout));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_needs_no_roots_of_trust() {
        assert!(roots_for(Some("http://127.0.0.1:1"), "call").is_ok());
        assert_eq!(roots_for(Some("https://127.0.0.1:1"), "call").is_ok(), *ROOTS);
        assert_eq!(roots_for(None, "call").is_ok(), *ROOTS);
    }
}
