//! Places to be reached at that cannot be had at once: the Go version may hold its ports for as long as both run during a migration.

use std::time::Duration;

use crate::server::chain;

/// Pause before a place is tried again.
pub(crate) const AGAIN: Duration = Duration::from_secs(10);

/// The listener, once it can be had. That it cannot is said once, and so is that it can then.
pub(crate) async fn until_bound<T, E, F>(what: &str, pause: Duration, bind: impl Fn() -> F) -> T
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut told = false;
    loop {
        match bind().await {
            Ok(listener) => {
                if told {
                    tracing::info!(what, "served now");
                }
                return listener;
            }
            Err(error) if !told => {
                tracing::warn!(error = chain(&error), what, "not served yet; tried again until it is");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
    }
}
