//! The log: text on standard error, or JSON lines in a file.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Config;

/// Starts the log; a second start in the same process has no effect.
///
/// A file that cannot be opened is reported on standard error, where the log then goes: no log is no reason not to serve.
pub fn start(config: &Config) {
    let opened = config.log_file.as_deref().map(open).transpose();
    let (file, trouble) = match opened {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter(config.log_level));
    let started = match file {
        Some(file) => builder.json().with_writer(Arc::new(file)).finish().try_init(),
        None => {
            let colours = std::io::stderr().is_terminal();
            builder.with_writer(std::io::stderr).with_ansi(colours).finish().try_init()
        }
    };
    if started.is_err() {
        return;
    }
    if let Some(error) = trouble {
        let file = config.log_file.as_deref().unwrap_or(Path::new("")).display().to_string();
        tracing::error!(%error, file, "cannot open the log file; logging to standard error");
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Our own crates at the wanted level; the others say only what may be wrong, as their `DEBUG` holds every HTTP header.
fn filter(level: LevelFilter) -> EnvFilter {
    let others = level.min(LevelFilter::WARN);
    // Of the API server's failures the node tells, once and not at each attempt.
    EnvFilter::new(format!(
        "{others},kube_client=off,kube_runtime=off,ipamd={level},pool={level},datapath={level},wire={level}"
    ))
}
