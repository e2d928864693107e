//! `ipamd status`: asks the running daemon and draws the answer for a terminal.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use types::{NetworkCard, Reason};
use wire::{AddressCount, Failure, HEADER_BYTES, PROTOCOL, REPORT_BYTES_MAX, Reply, Report, Request, Verb};

pub use node::status::blank;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fetches the report from the daemon's socket.
///
/// # Errors
/// Whatever stands between us and a report, as a failure with its reason.
pub fn fetch(socket: &Path) -> Result<Report, Failure> {
    match ask(socket, Verb::Report)? {
        Reply::Report(report) => Ok(*report),
        Reply::Failed(failure) => Err(failure),
        Reply::Added(_) | Reply::Done | Reply::Collected { .. } => Err(something_else()),
    }
}

/// Asks whether the daemon is alive, for the liveness probe: whatever the owner of its state answers says so, also that no ADD would be
/// served. One that has no place left for another request is: a restart would mend nothing, and would cut off all who wait for an address.
///
/// # Errors
/// As `fetch`.
pub fn alive(socket: &Path) -> Result<(), Failure> {
    // Not the report: that grows with the node's pods, and nobody reads it here.
    match ask(socket, Verb::Status)? {
        Reply::Failed(failure) if !is_of_owner(failure.reason) => Err(failure),
        Reply::Failed(_) | Reply::Done => Ok(()),
        Reply::Added(_) | Reply::Collected { .. } | Reply::Report(_) => Err(something_else()),
    }
}

/// Whether a refusal of STATUS is the owner's, or of a server that has no place left; not what the server says when there is no owner,
/// or when it does not understand us.
const fn is_of_owner(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::DaemonUnreachable | Reason::DeadlineExceeded | Reason::BadInput | Reason::Internal
    )
}

fn something_else() -> Failure {
    Failure::new(Reason::Internal, "the daemon answered something else")
}

fn ask(socket: &Path, verb: Verb) -> Result<Reply, Failure> {
    exchange(socket, verb).map_err(|error| {
        let message = format!("the daemon does not answer on {}", socket.display());
        Failure::new(Reason::DaemonUnreachable, message).with_details(error.to_string())
    })
}

fn exchange(socket: &Path, verb: Verb) -> io::Result<Reply> {
    let patience_ms = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
    let request = Request { version: PROTOCOL, patience_ms, started_ns: 0, trace: None, verb };
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&wire::encode(&request).map_err(io::Error::other)?)?;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; wire::frame_len_within(header, REPORT_BYTES_MAX).map_err(io::Error::other)?];
    stream.read_exact(&mut body)?;
    wire::decode(&body).map_err(io::Error::other)
}

/// Draws a report as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let drawn = head(&mut out, report)
        .and_then(|()| cards(&mut out, report))
        .and_then(|()| enis(&mut out, report))
        .and_then(|()| pods(&mut out, report))
        .and_then(|()| reasons(&mut out, report))
        .and_then(|()| remarks(&mut out, report));
    // Writing to a String cannot fail.
    debug_assert!(drawn.is_ok(), "a String takes everything");
    out
}

fn head(out: &mut String, report: &Report) -> std::fmt::Result {
    let ready = if report.not_ready.is_empty() { "ready" } else { "NOT READY" };
    let up = report.now.since(report.started).as_secs();
    writeln!(out, "{} {}  {ready}  up {}", report.instance_id, report.instance_type, span(up))?;
    for missing in &report.not_ready {
        writeln!(out, "  waits for {missing}")?;
    }
    if let Some(address) = report.primary_address {
        let cidrs: Vec<String> = report.vpc_cidrs.iter().map(ToString::to_string).collect();
        writeln!(out, "node {address}  VPC {}  ipamd {}", cidrs.join(" "), report.version)?;
    }
    if let Some(prefix) = report.ipv6_prefix {
        writeln!(out, "IPv6 of pods in {prefix}")?;
    }
    writeln!(out, "\naddresses {} of {} possible", report.addresses.total(), report.capacity)?;
    addresses(out, report.addresses)?;
    match report.reused_early {
        0 => Ok(()),
        n => writeln!(out, "  {n} were given out before they had cooled, for want of others"),
    }
}

/// How many are in which state, drawn and in numbers.
pub(crate) fn addresses(out: &mut String, count: AddressCount) -> std::fmt::Result {
    let AddressCount { free, reserved, assigned, cooling } = count;
    writeln!(out, "  {}", bar(count))?;
    writeln!(out, "  # {assigned} assigned  + {reserved} reserved  ~ {cooling} cooling  . {free} free")
}

/// One character per address, at most 100.
fn bar(count: AddressCount) -> String {
    let parts = [('#', count.assigned), ('+', count.reserved), ('~', count.cooling), ('.', count.free)];
    let per = count.total().div_ceil(100).max(1);
    parts
        .iter()
        .flat_map(|(c, n)| std::iter::repeat_n(*c, usize::try_from(n.div_ceil(per)).unwrap_or(0)))
        .collect()
}

/// Nothing where there is but one.
fn cards(out: &mut String, report: &Report) -> std::fmt::Result {
    let [_, _, ..] = report.cards.as_slice() else { return Ok(()) };
    let rows = report.cards.iter().map(|card| {
        [
            card.card.to_string(),
            format!("{} of {}", card.enis, card.max_enis),
            format!("{} of {} possible", card.addresses.total(), card.capacity),
            bar(card.addresses),
        ]
    });
    table(out, ["network card", "ENIs", "addresses", ""], rows.collect())
}

pub(crate) fn enis(out: &mut String, report: &Report) -> std::fmt::Result {
    let rows = report.enis.iter().map(|eni| {
        let place = format!("{}/{}", eni.card, eni.device);
        let prefixes = (eni.prefixes > 0).then(|| format!("{} prefixes", eni.prefixes));
        let ipv6 = eni.ipv6_prefix.map(|_| format!("{} IPv6 addresses", eni.ipv6_assigned));
        let notes = eni.excluded.clone().or(prefixes).into_iter().chain(ipv6);
        let note = notes.collect::<Vec<_>>().join(", ");
        let address = eni.primary_address.to_string();
        [
            eni.id.to_string(),
            place,
            eni.table.to_string(),
            address,
            eni.subnet.to_string(),
            bar(eni.addresses),
            note,
        ]
    });
    table(out, ["ENI", "card/device", "table", "address", "subnet", "slots", ""], rows.collect())
}

pub(crate) fn pods(out: &mut String, report: &Report) -> std::fmt::Result {
    let rows = report.pods.iter().map(|pod| {
        let held = report.now.since(pod.since).as_secs();
        let id: String = pod.sandbox.container_id().chars().take(12).collect();
        [
            pod.pod.to_string(),
            [Some(pod.address), pod.other]
                .into_iter()
                .flatten()
                .map(|a| a.to_string())
                .collect::<Vec<_>>()
                .join(" "),
            pod.eni.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string),
            pod.host_if.clone(),
            id,
            span(held),
        ]
    });
    table(out, ["pod", "address", "ENI", "host interface", "sandbox", "for"], rows.collect())?;
    let rows = report.waiting.iter().map(|w| {
        let of = if w.card == NetworkCard(0) { String::new() } else { format!(" (network card {})", w.card) };
        [w.pod.to_string(), format!("{}{of}", w.reason), span(report.now.since(w.since).as_secs())]
    });
    table(out, ["waiting pod", "reason", "for"], rows.collect())
}

fn reasons(out: &mut String, report: &Report) -> std::fmt::Result {
    let rows = report.reasons.iter().map(|entry| {
        let ago = span(report.now.since(entry.last).as_secs());
        let pod = entry.pod.as_ref().map_or_else(String::new, ToString::to_string);
        [entry.reason.to_string(), entry.failed.to_string(), entry.waited.to_string(), ago, pod]
    });
    table(out, ["reason since the start", "ADDs failed", "waited", "last ago", "last pod"], rows.collect())
}

fn remarks(out: &mut String, report: &Report) -> std::fmt::Result {
    for (title, lines) in [("EC2", &report.cloud), ("cluster", &report.cluster), ("plan", &report.plan)] {
        for line in lines {
            writeln!(out, "{title}: {line}")?;
        }
    }
    Ok(())
}

/// Columns as wide as their widest cell; nothing at all when there are no rows.
pub(crate) fn table<const N: usize>(
    out: &mut String,
    head: [&str; N],
    rows: Vec<[String; N]>,
) -> std::fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    writeln!(out)?;
    for row in &rows {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(i, cell)| format!("{cell:<w$}", w = width(i))).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Seconds as a person says them.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The report as JSON, for programs.
#[must_use]
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::sync::mpsc;
    use types::{HostVeth, Moment, PodName, SandboxKey, VethPrefix};
    use wire::PodReport;

    use super::*;
    use crate::node::CallId;
    use crate::server::{self, FromSocket};

    /// What a node with 32 network cards tells that has 110 pods with an interface on each.
    fn large() -> Report {
        let pod = |number: usize| {
            let name = format!("inference-of-a-large-model-{:04}", number / 32);
            let (namespace, id) = ("machine-learning".to_owned(), format!("{:064x}", number / 32));
            let pod = PodName { namespace, name };
            PodReport {
                sandbox: SandboxKey::new("aws-cni", &id, &format!("eth{}", number % 32)).unwrap(),
                eni: Some("eni-0123456789abcdef0".parse().unwrap()),
                vlan: None,
                address: [10, 100, 200, 100].into(),
                other: Some("2600:1f14:1234:5678:9abc::64c8:6464".parse().unwrap()),
                host_if: HostVeth::of_pod(&VethPrefix::default(), &pod, 0).to_string(),
                pod,
                since: Moment(1_700_000_000_000_000_000),
                reserved: false,
            }
        };
        Report { pods: (0..32 * 110).map(pod).collect(), ..blank(Moment(0)) }
    }

    #[tokio::test]
    async fn a_node_with_more_to_tell_than_a_request_may_be_long_tells_it_and_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = server::bind(&socket, server::PRIVATE).unwrap();
        let (calls, mut called) = mpsc::channel(1);
        tokio::spawn(server::serve(listener, calls, CallId(0), 2));
        let asking = tokio::task::spawn_blocking(move || (alive(&socket), fetch(&socket)));
        let mut asked = Vec::new();
        while asked.len() < 2 {
            let Some(FromSocket::Call(call)) = called.recv().await else { continue };
            let reply = match call.request.verb {
                Verb::Report => Reply::Report(Box::new(large())),
                Verb::Add(_) | Verb::Del(_) | Verb::Check(_) | Verb::Gc { .. } | Verb::Status => Reply::Done,
            };
            asked.push(call.request.verb);
            drop(call.reply.send(reply));
        }

        let (alive, fetched) = asking.await.unwrap();
        assert_eq!(alive, Ok(()));
        assert!(wire::encode(&large()).is_err(), "it is as large as this is about");
        assert!(fetched.unwrap() == large(), "the report comes whole");
        assert_eq!(asked, [Verb::Status, Verb::Report]);
    }

    /// What is thought of a daemon that says this.
    fn life_of(reply: Reply) -> Result<(), Failure> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&wire::encode(&reply).unwrap()).unwrap();
                // As the daemon does with a request, so that the end is none before it is read.
                drop(stream.read(&mut [0; 4096]));
            });
            alive(&socket)
        })
    }

    #[test]
    fn a_daemon_that_is_only_busy_is_alive_and_one_that_stops_or_is_not_there_is_not() {
        let failed = |reason| Reply::Failed(Failure::new(reason, "x"));

        assert_eq!(life_of(Reply::Done), Ok(()));
        for reason in [Reason::Busy, Reason::Starting, Reason::Denied] {
            assert_eq!(life_of(failed(reason)), Ok(()));
        }
        for reason in [Reason::DaemonUnreachable, Reason::Internal] {
            assert_eq!(life_of(failed(reason)).unwrap_err().reason, reason);
        }
        assert!(alive(Path::new("/nonexistent/socket")).is_err());
    }

    #[test]
    fn the_bar_has_one_character_per_address_and_a_bound() {
        let count = |free, assigned| AddressCount { free, reserved: 0, assigned, cooling: 0 };

        assert_eq!(bar(count(2, 3)), "###..");
        assert_eq!(bar(count(0, 0)), "");
        assert!(bar(count(300, 300)).len() <= 100);
    }

    #[test]
    fn a_node_that_is_not_ready_says_what_it_waits_for() {
        let mut report = blank(Moment(1_000));
        report.not_ready = vec!["instance metadata".to_owned()];

        let text = render(&report);

        assert!(text.contains("NOT READY"), "{text}");
        assert!(text.contains("waits for instance metadata"), "{text}");
    }
}
