//! The optional log: one line of JSON for each call. Whatever fails here, the call does not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::Serialize;
use types::Reason;
use wire::{Failure, Verb};

use crate::client::Call;
use crate::environment::Command;
use crate::sandbox_of;
use crate::verbs::Answer;

/// When the file has this size it becomes `<name>.1`, in bytes; about 100,000 calls.
const BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Where lines go, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sink {
    file: Option<PathBuf>,
    failures_only: bool,
}

impl Sink {
    /// `pluginLogFile` and `pluginLogLevel`. Only an absolute path is a file: standard output is the protocol's.
    pub(crate) fn new(file: Option<String>, level: Option<&str>) -> Self {
        let quiet = ["warn", "warning", "error", "fatal"];
        let failures_only = level.is_some_and(|l| quiet.iter().any(|q| l.eq_ignore_ascii_case(q)));
        Self { file: file.map(PathBuf::from).filter(|f| f.is_absolute()), failures_only }
    }
}

/// One call.
#[derive(Serialize)]
pub(crate) struct Entry {
    /// Milliseconds since the Unix epoch.
    time_ms: u64,
    verb: &'static str,
    sandbox: Option<String>,
    pod: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How long the call took, in milliseconds.
    ms: u64,
    /// The trace that the runtime's call belongs to, under the name that it has in the daemon's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Entry {
    pub(crate) fn new(
        command: Command,
        verb: Option<&Verb>,
        result: &Result<Answer, Failure>,
        call: &Call,
    ) -> Self {
        let about = verb.and_then(sandbox_of);
        let failure = result.as_ref().err();
        Self {
            time_ms: milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            verb: command.word(),
            sandbox: about.map(|(sandbox, _)| sandbox.to_string()),
            pod: about.map(|(_, pod)| pod.to_string()),
            outcome: result.as_ref().map_or("failed", |answer| answer.note),
            reason: failure.map(|f| f.reason),
            error: failure.map(|f| format!("{} ({})", f.message, f.details)),
            ms: milliseconds(call.patience.spent()),
            trace_id: call.trace.map(|trace| trace.id().to_string()),
        }
    }

    /// Writes the line, if the log is wanted and can be written.
    pub(crate) fn append(&self, sink: &Sink) {
        let wanted = self.reason.is_some() || !sink.failures_only;
        if let Some(path) = sink.file.as_deref().filter(|_| wanted) {
            let _not_worth_failing = self.write(path);
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut file = open(path)?;
        if file.metadata()?.len() >= BYTES_MAX {
            let mut older = path.as_os_str().to_owned();
            older.push(".1");
            fs::rename(path, older)?;
            file = open(path)?;
        }
        // One write, so that lines of calls that run at once do not mix.
        file.write_all(&line)
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Not to be held up by a FIFO.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::Patience;

    fn sink(path: &Path, level: &str) -> Sink {
        Sink::new(Some(path.to_str().unwrap().to_owned()), Some(level))
    }

    fn entry(result: Result<Answer, Failure>) -> Entry {
        Entry::new(Command::Status, None, &result, &Call { patience: Patience::new(), trace: None })
    }

    #[test]
    fn a_call_of_a_trace_names_it_as_the_daemon_does() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let trace = format!("00-{id}-b7ad6b7169203331-01").parse().ok();
        let call = Call { patience: Patience::new(), trace };

        let traced = Entry::new(Command::Status, None, &Ok(Answer::silent("ok")), &call);

        assert_eq!(serde_json::to_value(traced).unwrap()["trace_id"], id);
        let other = serde_json::to_value(entry(Ok(Answer::silent("ok")))).unwrap();
        assert_eq!(other.get("trace_id"), None);
    }

    #[test]
    fn each_call_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin.log");

        entry(Ok(Answer::silent("ok"))).append(&sink(&path, "Debug"));
        entry(Err(Failure::new(Reason::Busy, "later"))).append(&sink(&path, "Debug"));

        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["outcome"], "ok");
        assert!(lines[0]["ms"].is_u64(), "{text}");
        assert_eq!((&lines[1]["outcome"], &lines[1]["reason"]), (&"failed".into(), &"busy".into()));
    }

    #[test]
    fn a_quiet_level_leaves_out_what_went_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin.log");

        entry(Ok(Answer::silent("ok"))).append(&sink(&path, "ERROR"));
        assert!(!path.exists());

        entry(Err(Failure::new(Reason::Busy, "later"))).append(&sink(&path, "ERROR"));
        assert!(path.exists());
    }

    #[test]
    fn a_log_that_is_large_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin.log");
        File::create(&path).unwrap().set_len(BYTES_MAX).unwrap();

        entry(Ok(Answer::silent("ok"))).append(&sink(&path, "Debug"));

        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert!(dir.path().join("plugin.log.1").exists());
    }

    #[test]
    fn only_an_absolute_path_is_a_file() {
        for name in ["", "stdout", "stderr", "plugin.log"] {
            assert_eq!(Sink::new(Some(name.to_owned()), None).file, None, "{name}");
        }
    }
}
