//! `ipamd bundle`: what is known of a node in one archive, without secrets and of bounded size.
//!
//! Nothing is copied as it is: the state file and the queue are written anew from what of them could be read, settings are told by
//! a list of those that are harmless, and logs lose what may be secret. An unpacked archive is a directory for `ipamd doctor --state`.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use types::Moment;

use super::evidence::{Evidence, Look};
use super::finding::Verdict;
use super::look::LIVE_FILE;
use super::{dump, redact, saved};
use crate::config::Environment;
use crate::host::record_file;
use crate::store;

/// The end of a log that is taken, in bytes.
const LOG_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// The largest part; a node with a thousand pods needs a tenth of it.
const PART_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Logs at usual places, beside the one that a setting names.
const LOGS: [&str; 2] = ["/var/log/aws-routed-eni/ipamd.log", "/var/log/aws-routed-eni/plugin.log"];

/// One file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its path in the archive.
    pub name: String,
    /// What it holds.
    pub text: Vec<u8>,
}

/// The archive's files.
#[must_use]
pub fn parts(
    mut evidence: Evidence,
    verdict: &Verdict,
    environment: &Environment,
    logs: &[PathBuf],
) -> Vec<Part> {
    if let Look::Seen(report) = &mut evidence.live.daemon {
        redact::report(report);
    }
    let evidence = &evidence;
    let mut parts = vec![
        part("version.txt", version()),
        part("settings.txt", redact::settings(environment)),
        part(LIVE_FILE, json(&evidence.live)),
    ];
    parts.push(part("doctor.txt", verdict.render()));
    parts.push(part("doctor.json", json(verdict)));
    if let Some(report) = evidence.live.daemon.seen() {
        parts.push(part("status.txt", super::words::plain(&crate::status::render(report))));
    }
    if let Some(host) = evidence.live.host.seen() {
        parts.push(part("kernel.txt", dump::text(host)));
    }
    let sysctls = evidence.live.sysctls.iter().map(|(path, value)| format!("{path}={value}\n"));
    parts.push(part("sysctls.txt", sysctls.collect::<String>()));
    if let Some(nftables) = evidence.live.nftables.seen() {
        let chains = nftables.chains.iter().map(|(table, chain)| format!("chain {table} {chain}\n"));
        let table = nftables.table.as_deref().unwrap_or("our table is not there\n");
        parts.push(part("nftables.txt", format!("{table}\n{}", chains.collect::<String>())));
    }
    parts.extend(of_directory(evidence));
    for log in logs {
        parts.extend(log_tail(log));
    }
    parts.iter_mut().for_each(|part| part.text.truncate(PART_BYTES_MAX));
    parts
}

/// What the directory holds, from what of it could be read.
fn of_directory(evidence: &Evidence) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Ok(Some(loaded)) = saved::loaded(&evidence.dir) {
        let lines: Vec<u8> =
            loaded.records.iter().filter_map(|record| store::line(record).ok()).flatten().collect();
        parts.push(part("state", lines));
    }
    let record = record_file(Path::new("")).display().to_string();
    parts.extend(evidence.saved.record.as_ref().map(|wanted| part(&record, json(wanted))));
    for del in &evidence.saved.queue {
        let name = format!("delete-queue/{}", wire::queue::file_name(&del.detachment.sandbox));
        parts.push(part(&name, json(del)));
    }
    parts
}

fn part(name: &str, text: impl Into<Vec<u8>>) -> Part {
    Part { name: name.to_owned(), text: text.into() }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
}

fn version() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("ipamd {}\nkernel {}\n", env!("CARGO_PKG_VERSION"), kernel.trim())
}

/// Logs to take: the one that the settings name, and those at usual places.
#[must_use]
pub fn logs(environment: &Environment) -> Vec<PathBuf> {
    let named = crate::config::Config::parse(environment).ok().and_then(|config| config.log_file);
    let mut logs: Vec<PathBuf> = named.into_iter().chain(LOGS.map(PathBuf::from)).collect();
    logs.dedup();
    logs
}

fn log_tail(path: &Path) -> Option<Part> {
    let mut file = saved::plain_file(path).ok()??;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX))).ok()?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, LOG_BYTES_MAX), &mut bytes).ok()?;
    let name = format!("logs/{}", path.file_name()?.to_string_lossy());
    let text = String::from_utf8_lossy(&bytes);
    // The first line is cut in the middle, where a secret would not be told by what stands before it.
    let whole =
        if length > LOG_BYTES_MAX { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Some(part(&name, redact::log(whole)))
}

/// Writes the archive: a new file that only its owner may read.
///
/// # Errors
/// As the file system says; there is then no such file.
pub fn write(path: &Path, parts: &[Part], at: Moment) -> io::Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    let written = pack(file, parts, at);
    if written.is_err() {
        drop(std::fs::remove_file(path));
    }
    written
}

fn pack(file: File, parts: &[Part], at: Moment) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for Part { name, text } in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).map_err(io::Error::other)?);
        header.set_mode(0o600);
        header.set_mtime(at.0 / 1000);
        archive.append_data(&mut header, Path::new("ipamd").join(name), text.as_slice())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}
