//! The status page in a real browser: what it draws of a real daemon, and of answers that no honest daemon gives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::LabError;
use lab::browser::{self, Seen};
use lab::netns::Netns;
use lab::node::Node;
use lab::picture::STATUS;
use lab::runtime::Pod;
use serde_json::{Value, json};
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("the_browser_tells_of_errors_and_of_what_a_policy_forbids", witness),
    ("the_status_page_draws_every_address_by_state_the_pods_and_the_reasons", drawn),
    ("the_status_page_draws_every_network_card", cards),
    ("the_status_page_says_that_the_daemon_does_not_answer_and_goes_on_once_it_does", silence),
    ("the_status_page_shows_markup_as_text", markup),
    ("the_status_page_follows_what_changes", live),
    ("the_status_page_draws_ipv6_addresses_that_pods_have", ipv6),
];

/// Long enough for the first answer.
const ONE_LOOK: u32 = 1_000;
/// Long enough for some more, one every two seconds.
const SOME_LOOKS: u32 = 9_000;

fn open(node: &Node) -> Result<Seen, LabError> {
    clean(browser::open(node.netns(), STATUS, ONE_LOOK)?)
}

/// The page, and what the daemon said before and after: that nothing has changed meanwhile, however long the browser took.
fn of_one_state(node: &Node, is_reached: impl Fn(&Report) -> bool) -> Result<(Seen, Report), LabError> {
    let of = |report: &Report| (report.addresses, report.plan.clone(), report.enis.len());
    let mut changes = Vec::new();
    for _ in 0..5 {
        let before = node.wait_for("the state to draw", &is_reached)?;
        let seen = open(node)?;
        let after = node.report()?;
        if of(&before) == of(&after) {
            return Ok((seen, before));
        }
        changes.push((of(&before), of(&after)));
    }
    Err(LabError::Otherwise(format!("the daemon does not come to rest: {changes:?}")))
}

/// A page whose scripts have run without a complaint.
fn clean(seen: Seen) -> Result<Seen, LabError> {
    ensure!(seen.console.is_empty(), "the console says {:?}", seen.console);
    Ok(seen)
}

/// How many cells show this state; the legend has one of each.
fn cells(seen: &Seen, state: &str) -> usize {
    seen.dom.matches(&format!("class=\"cell {state}\" data-key=")).count()
}

fn witness() -> Outcome {
    let netns = Netns::create("browser")?;
    let broken = browser::open(&netns, "data:text/html,<script>nothing.here()</script>", ONE_LOOK)?;
    ensure!(broken.console.iter().any(|line| line.contains("ReferenceError")), "{broken:?}");

    let policy = "<meta http-equiv=Content-Security-Policy content=\"script-src 'none'\">";
    let page = format!("data:text/html,{policy}<body><script>document.body.append('ran')</script>");
    let kept = browser::open(&netns, &page, ONE_LOOK)?;
    ensure!(kept.console.iter().any(|line| line.contains("Content Security Policy")), "{kept:?}");
    ensure!(!kept.dom.contains("<body>ran"), "{kept:?}");
    Ok(())
}

fn drawn() -> Outcome {
    // What cools goes on cooling, however long the browser takes.
    let setting = Setting::start(&[("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "600")])?;
    let mut pods = setting.pods(0..12)?;
    let gone = &mut pods[5];
    gone.del(&setting.node)?;
    let cooling = gone.address.map(|address| address.to_string()).unwrap_or_default();
    let mut refused = Pod::create("refused", "sandbox99")?;
    refused.multi_nic = true;
    ensure!(refused.add(&setting.node).is_err(), "a pod got an interface of every network card");

    let (seen, report) = of_one_state(&setting.node, |report| report.addresses.free >= 3)?;

    let counts = ["assigned", "reserved", "cooling", "free"].map(|state| cells(&seen, state));
    let told = report.addresses;
    let want =
        [told.assigned, told.reserved, told.cooling, told.free].map(|n| usize::try_from(n).unwrap_or(0));
    ensure!(counts == want && counts[..3] == [11, 0, 1], "{counts:?} cells, the daemon has {told:?}");
    ensure!(seen.dom.contains(&format!("title=\"{cooling} cooling for ")), "{cooling} does not cool");
    for pod in pods.iter().filter(|pod| pod.name != "pod-5") {
        let address = pod.address.map(|address| address.to_string()).unwrap_or_default();
        let cell = format!("title=\"{address} assigned, default/{} for ", pod.name);
        ensure!(seen.dom.contains(&cell), "no {cell}");
        let row = format!(">default/{}</td><td class=\"mono\">{address}</td>", pod.name);
        ensure!(seen.dom.contains(&row), "no {row}");
    }
    for text in report.enis.iter().map(|eni| eni.id.as_str()).chain(report.plan.iter().map(String::as_str)) {
        ensure!(seen.dom.contains(&format!(">{text}</")), "no {text:?}");
    }
    ensure!(seen.dom.contains(">no-multi-nic</h3><span class=\"soft\">1 failed, last "), "no reason");
    ensure!(seen.dom.contains("id=\"ready\" class=\"badge\">ready<"), "not ready");
    ensure!(!seen.dom.contains("sandbox1"), "sandboxes are told to whoever reaches the port");
    Ok(())
}

fn cards() -> Outcome {
    let setting =
        Setting::start_on("c6in.32xlarge", &[("ENABLE_MULTI_NIC", "true"), ("WARM_IP_TARGET", "1")])?;
    let mut pod = Pod::create("trainer", "sandbox1")?;
    pod.multi_nic = true;
    pod.add(&setting.node)?;
    let report = setting.node.report()?;
    ensure!(report.cards.len() == 2, "{:?}", report.cards);

    let seen = open(&setting.node)?;

    for card in &report.cards {
        let title = format!(">Network card {}: {} of {} ENIs", card.card, card.enis, card.max_enis);
        ensure!(seen.dom.contains(&title), "no {title}");
    }
    ensure!(cells(&seen, "assigned") == 2, "not an interface of each");
    Ok(())
}

fn ipv6() -> Outcome {
    let setting = Setting::start(&[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")])?;
    let mut pod = Pod::create("six", "sandbox1")?;
    let told = pod.add_any(&setting.node)?;
    let address = told.first().map(ToString::to_string).unwrap_or_default();

    let seen = open(&setting.node)?;

    ensure!(seen.dom.contains(&format!("title=\"{address} assigned, default/six for ")), "no {address}");
    ensure!(cells(&seen, "assigned") == 1 && cells(&seen, "free") == 0, "more than the pod's address");
    Ok(())
}

fn silence() -> Outcome {
    let setting = Setting::start(&[])?;
    setting.pods(0..1)?;
    let (page, status) = (asked(&setting.node, "/status")?, asked(&setting.node, "/v1/status")?);
    let look = |answers: &[Option<&str>]| -> Result<(Seen, usize), LabError> {
        let stand_in = StandIn::start(setting.node.netns(), &page, answers)?;
        Ok((browser::open(setting.node.netns(), &stand_in.url, SOME_LOOKS)?, stand_in.asked()))
    };
    let status = Some(status.as_str());

    let (seen, _) = look(&[status, None])?;
    ensure!(seen.dom.contains("The daemon has not answered since "), "not said: {:?}", seen.dom);
    ensure!(seen.dom.contains("<body class=\"stale\">"), "what is old looks new");
    ensure!(seen.dom.contains("default/pod-0"), "what was known is gone");

    let (seen, _) = look(&[None])?;
    ensure!(seen.dom.contains("The daemon does not answer ("), "not said: {:?}", seen.dom);
    ensure!(seen.dom.contains("<main hidden"), "something is shown of which nothing is known");

    let (seen, times) = look(&[status, None, status])?;
    ensure!(times > 3, "asked {times} times");
    ensure!(seen.dom.contains("id=\"silent\" role=\"alert\" hidden"), "still said: {:?}", seen.dom);
    ensure!(!seen.dom.contains("<body class=\"stale\">"), "what is new looks old");

    let nonsense = with_body("{\"report\": {}}");
    let (seen, times) = look(&[status, Some(&nonsense)])?;
    ensure!(
        seen.dom.contains("<body class=\"stale\">") && seen.dom.contains("default/pod-0"),
        "{:?}",
        seen.dom
    );
    ensure!(times > 3, "asked {times} times");
    Ok(())
}

fn live() -> Outcome {
    let setting = Setting::start(&[("IP_COOLDOWN_PERIOD", "600")])?;
    let mut pods = setting.pods(0..3)?;
    let (page, before) = (asked(&setting.node, "/status")?, asked(&setting.node, "/v1/status")?);
    pods[1].del(&setting.node)?;
    let come = setting.pods(3..4)?.remove(0);
    let after = asked(&setting.node, "/v1/status")?;
    let answers = [Some(before.as_str()), Some(after.as_str())];

    let stand_in = StandIn::start(setting.node.netns(), &page, &answers)?;
    let seen = clean(browser::open(setting.node.netns(), &stand_in.url, SOME_LOOKS)?)?;

    for name in ["pod-0", "pod-2", "pod-3"] {
        ensure!(seen.dom.matches(&format!(">default/{name}</td>")).count() == 1, "{name} is not there once");
    }
    ensure!(!seen.dom.contains("default/pod-1<"), "the pod that has gone is still there");
    let address = |pod: &Pod| pod.address.map(|address| address.to_string()).unwrap_or_default();
    for cell in [
        format!("{} cooling for ", address(&pods[1])),
        format!("{} assigned, default/pod-3 ", address(&come)),
    ] {
        ensure!(seen.dom.matches(&format!("title=\"{cell}")).count() == 1, "no {cell}");
    }
    Ok(())
}

fn markup() -> Outcome {
    let setting = Setting::start(&[])?;
    setting.pods(0..1)?;
    let page = asked(&setting.node, "/status")?;
    let answer = asked(&setting.node, "/v1/status")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let mut status: Value = serde_json::from_str(body)
        .map_err(|error| LabError::Otherwise(format!("/v1/status: {error}: {body}")))?;
    let hostile = "<img src=x onerror=\"document.title='owned'\">";
    let pod = json!({"namespace": hostile, "name": hostile});
    let report = &mut status["report"];
    report["pods"][0]["pod"] = pod.clone();
    for field in ["instance_id", "version", "primary_address"] {
        report[field] = hostile.into();
    }
    for field in ["not_ready", "plan", "cloud", "cluster"] {
        report[field] = json!([hostile]);
    }
    report["waiting"] = json!([{"pod": pod, "since": 0, "reason": hostile, "card": 0}]);
    report["reasons"] =
        json!([{"reason": hostile, "failed": 1, "waited": 0, "last": 0, "pod": pod, "message": hostile}]);
    report["enis"][0]["excluded"] = hostile.into();
    report["enis"][0]["subnet"] = hostile.into();

    let stand_in = StandIn::start(setting.node.netns(), &page, &[Some(&with_body(&status.to_string()))])?;
    let seen = clean(browser::open(setting.node.netns(), &stand_in.url, ONE_LOOK)?)?;

    ensure!(!seen.dom.contains("<img"), "markup became an element");
    let shown = seen.dom.matches("&lt;img src=x onerror=").count();
    ensure!(shown >= 14, "shown as text {shown} times");
    Ok(())
}

/// The whole answer to one question over HTTP, head and body.
fn asked(node: &Node, path: &str) -> Result<String, LabError> {
    let got = node.netns().run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:61679")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    got.map_err(LabError::doing(format!("get {path}")))
}

fn with_body(json: &str) -> String {
    let bytes = json.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n{json}"
    )
}

/// A daemon's double: it serves the real page, and answers as it is told, or hangs up.
#[derive(Debug)]
struct StandIn {
    url: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl StandIn {
    /// Answers one question for the status after the other, or hangs up where there is no answer; its last word holds from then on.
    fn start(netns: &Netns, page: &str, answers: &[Option<&str>]) -> Result<Self, LabError> {
        let page = page.to_owned();
        let answers: Vec<Option<String>> = answers.iter().map(|answer| answer.map(str::to_owned)).collect();
        let bound = netns.run(|| -> std::io::Result<_> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        })?;
        let (at, listener) = bound.map_err(LabError::doing("listen for the browser"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut asked = 0;
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let status = answers.get(asked).or(answers.last()).and_then(Option::as_deref);
                // A browser that has gone asks no more.
                let about_status = answer(stream, &page, status);
                asked += usize::from(about_status.unwrap_or_default());
            }
            asked
        });
        Ok(Self { url: format!("http://{at}/status"), stop, thread: Some(thread) })
    }

    /// How often it was asked for the status.
    fn asked(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Answers one question; true when it was for the status.
fn answer(mut stream: TcpStream, page: &str, status: Option<&str>) -> std::io::Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        asked.push(byte[0]);
    }
    let about_status = asked.starts_with(b"GET /v1/status ");
    let said = if about_status { status } else { Some(page) };
    stream.write_all(said.unwrap_or_default().as_bytes())?;
    Ok(about_status)
}
