//! `ipamd bundle`: what is known of a node in one archive, without secrets and of bounded size.
//!
//! Nothing is copied as it is: the state file and the queue are written anew from what of them could be read, settings are told by
//! a list of those that are harmless, and logs lose what may be secret. An unpacked archive is a directory for `ipamd doctor --state`.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use types::Moment;

use super::evidence::Evidence;
use super::finding::Verdict;
use super::look::LIVE_FILE;
use super::networks::OF_HOST;
use super::{dump, redact, saved};
use crate::config::Environment;
use crate::host::record_file;
use crate::install::{CONFLIST, published_file};
use crate::{cluster, memory, store};

/// The end of a log that is taken, in bytes.
const LOG_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// The largest part; a node with a thousand pods needs a tenth of it.
const PART_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Logs at usual places on a node, beside the one that a setting names.
const LOGS: [&str; 2] = ["/var/log/aws-routed-eni/ipamd.log", "/var/log/aws-routed-eni/plugin.log"];
/// Says of what the archive lacks why it does.
const MISSING: &str = "missing.txt";

/// One file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its path in the archive.
    pub name: String,
    /// What it holds.
    pub text: Vec<u8>,
}

/// The archive's files, of evidence that [`redact::evidence`] has gone over and what was judged of that.
#[must_use]
pub fn parts(
    evidence: &Evidence,
    verdict: &Verdict,
    environment: &Environment,
    logs: &[PathBuf],
) -> Vec<Part> {
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
    parts.extend(of_runtime(evidence));
    let mut missing = String::new();
    parts.extend(of_directory(evidence, &mut missing));
    for log in logs {
        match log_tail(log) {
            Ok(part) => parts.push(part),
            Err(why) => missing.push_str(&format!("{}: {why}\n", log.display())),
        }
    }
    if !logs.is_empty() {
        missing.push_str(&elsewhere(environment));
    }
    parts.push(part(MISSING, missing));
    parts.iter_mut().for_each(|part| part.text.truncate(PART_BYTES_MAX));
    parts
}

/// What of us the runtime finds: our conflist, and the names of what stands beside it.
fn of_runtime(evidence: &Evidence) -> Vec<Part> {
    let Some(networks) = evidence.live.networks.seen() else { return Vec::new() };
    let names = networks.files.iter().map(|file| {
        let leads = if file.leads_here { " (names us)" } else { "" };
        format!("{}/{}{leads}\n", networks.dir.display(), super::words::plain(&file.name))
    });
    let mut parts = vec![part("networks.txt", names.collect::<String>())];
    if let Some(Ok(there)) = &networks.there {
        parts.push(part(CONFLIST, json(there)));
    }
    parts
}

/// Where the daemon's log is if no file has it.
fn elsewhere(environment: &Environment) -> String {
    let name = environment.get(std::ffi::OsStr::new("MY_POD_NAME"));
    let name = name.and_then(|name| name.to_str()).filter(|name| cluster::is_object_name(name));
    let pod = name.unwrap_or("POD");
    format!(
        "what the daemon says on standard error: kubectl -n kube-system logs {pod} -c aws-node (of one that has ended: --previous)\n"
    )
}

/// What the directory holds, from what of it could be read.
fn of_directory(evidence: &Evidence, missing: &mut String) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Ok(Some(loaded)) = saved::loaded(&evidence.dir) {
        let lines: Vec<u8> =
            loaded.records.iter().filter_map(|record| store::line(record).ok()).flatten().collect();
        parts.push(part("state", lines));
    }
    let record = record_file(Path::new("")).display().to_string();
    parts.extend(evidence.saved.record.as_ref().map(|wanted| part(&record, json(wanted))));
    let published = published_file(Path::new("")).display().to_string();
    parts.extend(evidence.saved.published.as_ref().map(|written| part(&published, json(written))));
    let instance = memory::file(Path::new("")).display().to_string();
    match saved::json::<memory::Written>(&memory::file(&evidence.dir)) {
        Ok(Some(written)) => parts.push(part(&instance, redact::log(&json(&written)))),
        Ok(None) => missing.push_str(&format!("{instance}: not there\n")),
        Err(why) => missing.push_str(&redact::log(&why)),
    }
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
    let of_host = LOGS.map(|log| PathBuf::from(format!("{OF_HOST}{log}")));
    let logs = named.into_iter().chain(LOGS.map(PathBuf::from)).chain(of_host);
    let mut seen = BTreeSet::new();
    logs.filter(|log| seen.insert(log.clone())).collect()
}

/// The end of a log, under its whole path: logs of the same name may lie at several places.
///
/// # Errors
/// In words, why there is none.
fn log_tail(path: &Path) -> Result<Part, String> {
    let mut bytes = Vec::new();
    let mut read = || -> io::Result<Option<u64>> {
        let Some(mut file) = saved::plain_file(path)? else { return Ok(None) };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
        io::Read::read_to_end(&mut io::Read::take(file, LOG_BYTES_MAX), &mut bytes)?;
        Ok(Some(length))
    };
    let length = read().map_err(|error| error.to_string())?.ok_or("not there")?;
    let below = path.components().filter(|component| matches!(component, Component::Normal(_)));
    let name = format!("logs/{}", below.collect::<PathBuf>().display());
    let text = String::from_utf8_lossy(&bytes);
    // The first line is cut in the middle, where a secret would not be told by what stands before it.
    let whole =
        if length > LOG_BYTES_MAX { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(part(&name, redact::log(whole)))
}

/// Writes the archive: a new file that only its owner may read.
///
/// # Errors
/// As the file system says; there is then no such file.
pub fn write(path: &Path, parts: &[Part], at: Moment) -> io::Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    let written = pack(file, parts, at).and_then(|file| file.sync_all());
    if written.is_err() {
        drop(std::fs::remove_file(path));
    }
    written
}

/// Writes the archive's bytes; returns where they went.
///
/// # Errors
/// As whoever takes them says.
pub fn pack<W: Write>(to: W, parts: &[Part], at: Moment) -> io::Result<W> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    for Part { name, text } in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).map_err(io::Error::other)?);
        header.set_mode(0o600);
        header.set_mtime(at.0 / 1000);
        archive.append_data(&mut header, Path::new(saved::ARCHIVE_DIR).join(name), text.as_slice())?;
    }
    let mut to = archive.into_inner()?.finish()?;
    to.flush()?;
    Ok(to)
}
