//! The log: text on standard error, or JSON lines in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Config;

/// When the log's file has this size it becomes `<name>.1`, in bytes. The Go version keeps five of this size.
const BYTES_MAX: u64 = 100 * 1024 * 1024;

/// Starts the log; a second start in the same process has no effect.
///
/// A file that cannot be opened is reported on standard error, where the log then goes: no log is no reason not to serve.
pub fn start(config: &Config) {
    let opened = config.log_file.clone().map(LogFile::open).transpose();
    let (file, trouble) = match opened {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter(config.log_level));
    let started = match file {
        Some(file) => builder.json().with_writer(Mutex::new(file)).finish().try_init(),
        None => {
            let colours = io::stderr().is_terminal();
            builder.with_writer(io::stderr).with_ansi(colours).finish().try_init()
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

/// A file for the log that starts anew when it is large; what it was until then is kept once.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes that it may still take; `None` for a pipe or a device, which does not grow.
    room: Option<u64>,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let metadata = file.metadata()?;
        let room = metadata.is_file().then(|| BYTES_MAX.saturating_sub(metadata.len()));
        Ok(Self { path, file, room })
    }

    fn start_anew(&mut self) -> io::Result<()> {
        let mut older = self.path.as_os_str().to_owned();
        older.push(".1");
        std::fs::rename(&self.path, older)?;
        *self = Self::open(self.path.clone())?;
        Ok(())
    }
}

impl Write for LogFile {
    /// Takes a line: whoever makes them gives each at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.room == Some(0) && self.start_anew().is_err() {
            // No line is lost by it, and it is tried again once as much has been added.
            self.room = Some(BYTES_MAX);
        }
        let written = self.file.write(line)?;
        self.room = self.room.map(|room| room.saturating_sub(u64::try_from(written).unwrap_or(u64::MAX)));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Our own crates at the wanted level; the others say only what may be wrong, as their `DEBUG` holds every HTTP header.
fn filter(level: LevelFilter) -> EnvFilter {
    let others = level.min(LevelFilter::WARN);
    // Of the API server's failures the node tells, once and not at each attempt.
    EnvFilter::new(format!(
        "{others},kube_client=off,kube_runtime=off,ipamd={level},node={level},pool={level},datapath={level},wire={level}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_crates_are_heard_at_the_level_and_others_when_something_may_be_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipamd.log");
        let log = Mutex::new(File::create(&path).unwrap());
        let builder = tracing_subscriber::fmt().with_env_filter(filter(LevelFilter::INFO));
        let subscriber = builder.with_writer(log).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "ipamd::daemon", "one");
            tracing::info!(target: "node::node::growing", "two");
            tracing::info!(target: "pool::plan", "three");
            tracing::info!(target: "datapath::kernel", "four");
            tracing::warn!(target: "hyper::client", "five");
            tracing::debug!(target: "node::node::looking", "hidden");
            tracing::info!(target: "hyper::client", "hidden");
            tracing::error!(target: "kube_client::client", "hidden");
        });

        let text = std::fs::read_to_string(&path).unwrap();
        let heard: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(heard, ["one", "two", "three", "four", "five"]);
    }

    #[test]
    fn a_log_that_is_large_starts_anew_and_what_it_was_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/ipamd.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        log.write_all(b"first\n").unwrap();
        for line in [b"second\n", b"third.\n"] {
            log.file.set_len(BYTES_MAX).unwrap();
            // What a restart finds is counted too.
            log = LogFile::open(path.clone()).unwrap();
            log.write_all(line).unwrap();
        }

        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third.\n");
        let older = File::open(dir.path().join("made/ipamd.log.1")).unwrap();
        assert_eq!(older.metadata().unwrap().len(), BYTES_MAX);
        assert_eq!(std::fs::read_dir(dir.path().join("made")).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_cannot_start_anew_goes_on_and_a_device_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipamd.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        // Somebody has taken the file away: there is nothing to rename.
        std::fs::remove_file(&path).unwrap();
        log.room = Some(0);
        log.write_all(b"line\n").unwrap();
        assert!(log.room > Some(0) && !dir.path().join("ipamd.log.1").exists());

        assert_eq!(LogFile::open("/dev/null".into()).unwrap().room, None);
    }
}
