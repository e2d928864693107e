//! What is said of pods to those who look at them in the cluster: one event for each pod and reason, counted up. Pure.
//!
//! The number of events is bounded, and so is their rate: a node whose subnet is full must not flood the API server with the same word
//! from each of its pods. What cannot be said while the API server is away is dropped: it is in the log, the metrics and the status too.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use types::{Moment, PodName};

use super::is_object_name;
use crate::clock::{Jitter, doubled};

/// Events that are known at once.
const ENTRIES_MAX: usize = 256;
/// How many may be written at once, and how often one more after that.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(1);
/// Pause once the API server is away, or all are told to come later; grows to the second value. Longer than what it asks for itself
/// (`Retry-After`, a second).
const AWAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Pause between two updates of one event's count.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// An event that has not happened again for so long is over: the next one is a new event.
const OVER: Duration = Duration::from_secs(360);
/// The longest note that the API server takes, in bytes (`validateV1EventSeries` and its neighbours).
const NOTE_MAX: usize = 1024;
/// The longest name of an event (Kubernetes, "Object Names and IDs"), less what is put behind the pod's.
const NAME_MAX: usize = 253 - 40;
/// Who says it; the Go version's name.
const REPORTER: &str = "aws-node";

/// A pod as far as events and annotations need to know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PodRef {
    /// Its name.
    pub name: PodName,
    /// Its UID; empty if the runtime has not told.
    pub uid: String,
}

impl PodRef {
    /// A pod that the runtime names; `None` for what can be no pod of a cluster.
    #[must_use]
    pub fn of(name: &PodName, uid: &str) -> Option<Self> {
        let is_pod = is_object_name(&name.namespace) && is_object_name(&name.name);
        is_pod.then(|| Self { name: name.clone(), uid: uid.to_owned() })
    }
}

/// What a note is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A pod of this node.
    Pod(PodRef),
    /// The daemon itself.
    Daemon,
}

/// Something worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub about: About,
    /// One word: a reason of the closed list, or one of the Go version's.
    pub reason: &'static str,
    /// What was to be done.
    pub action: String,
    /// A sentence and its numbers.
    pub text: String,
}

impl Note {
    /// Says that EC2 denies a call, as the Go version does.
    #[must_use]
    pub fn denied(call: &str) -> Self {
        let doc = "https://docs.aws.amazon.com/eks/latest/userguide/cni-iam-role.html";
        Self {
            about: About::Daemon,
            reason: "MissingIAMPermissions",
            action: format!("ec2:{call}"),
            text: format!(
                "Unauthorized operation: failed to call ec2:{call} due to missing permissions. See {doc}"
            ),
        }
    }
}

/// Who we are in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Myself {
    /// The daemon's own pod, in its namespace; `None` if it was not told.
    pub pod: Option<PodRef>,
    /// The node's name.
    pub node: String,
}

/// What makes two notes the same event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    about: About,
    reason: &'static str,
    action: String,
}

#[derive(Debug)]
struct Entry {
    text: String,
    first: Moment,
    last: Moment,
    seen: u32,
    /// How many of those the API server knows of, and under which name.
    told: Option<(u32, String)>,
    written_at: Moment,
}

/// Something to write to the API server.
#[derive(Debug, Clone, PartialEq)]
pub struct Writing {
    key: Key,
    /// Namespace of the event.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The whole event, or what changes of one that is there.
    pub body: Value,
    /// It is there already.
    pub is_known: bool,
    count: u32,
}

/// How a writing went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Done,
    /// This one cannot be written.
    Refused,
    /// The event that was to be counted up is gone.
    Gone,
    /// Nobody answers, or everybody is told to come later.
    Away,
}

/// What has been said and is to be said.
#[derive(Debug)]
pub struct Ledger {
    myself: Myself,
    entries: BTreeMap<Key, Entry>,
    tokens: u32,
    refilled: Moment,
    named: u32,
    /// How often in a row it was away.
    away: u32,
    jitter: Jitter,
}

impl Ledger {
    /// Nothing said so far.
    #[must_use]
    pub fn new(myself: Myself, now: Moment) -> Self {
        let jitter = Jitter::of_node(&myself.node, now);
        Self { myself, entries: BTreeMap::new(), tokens: BURST, refilled: now, named: 0, away: 0, jitter }
    }

    /// Takes something in; false if there is no room for it, or nobody whom it is about.
    pub fn note(&mut self, note: Note, now: Moment) -> bool {
        let Note { about, reason, action, text } = note;
        if about == About::Daemon && self.myself.pod.is_none() {
            return false;
        }
        self.entries.retain(|_, entry| !entry.is_settled() || now.since(entry.last) < OVER);
        let key = Key { about, reason, action };
        if let Some(entry) = self.entries.get_mut(&key) {
            (entry.seen, entry.last) = (entry.seen.saturating_add(1), now);
            return true;
        }
        if self.entries.len() >= ENTRIES_MAX && !self.make_room() {
            return false;
        }
        let entry = Entry { text, first: now, last: now, seen: 1, told: None, written_at: Moment(0) };
        self.entries.insert(key, entry);
        true
    }

    /// Forgets the event that has not happened for longest, if all is said of it.
    fn make_room(&mut self) -> bool {
        let settled = self.entries.iter().filter(|(_, entry)| entry.is_settled());
        let oldest = settled.min_by_key(|(_, entry)| entry.last).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }

    /// What to write now: events that nobody has seen yet go before counts.
    pub fn due(&mut self, now: Moment) -> Option<Writing> {
        self.refill(now);
        if self.tokens == 0 {
            return None;
        }
        let due = self.entries.iter().filter(|(_, entry)| entry.due_at().is_some_and(|at| at <= now));
        let (key, entry) = due.min_by_key(|(_, entry)| (entry.told.is_some(), entry.first))?;
        let (key, count) = (key.clone(), entry.seen);
        let regarding = self.regarding(&key.about)?;
        let writing = match &entry.told {
            None => {
                let name: String = regarding.name.name.chars().take(NAME_MAX).collect();
                let name = format!("{name}.{:x}.{:x}", entry.first.0, self.named);
                let body = event(&name, &key, entry, regarding, &self.myself);
                Writing {
                    namespace: regarding.name.namespace.clone(),
                    name,
                    body,
                    is_known: false,
                    count,
                    key,
                }
            }
            Some((_, name)) => {
                let series = json!({"count": count, "lastObservedTime": time(entry.last)});
                let (namespace, name) = (regarding.name.namespace.clone(), name.clone());
                Writing { namespace, name, body: json!({"series": series}), is_known: true, count, key }
            }
        };
        self.named = self.named.wrapping_add(1);
        self.tokens -= 1;
        Some(writing)
    }

    /// Takes in how a writing went.
    pub fn written(&mut self, writing: &Writing, how: Written, now: Moment) {
        if how == Written::Away {
            // No token comes before the pause is over, and then one at a time: all nodes have something to say by then.
            let pause = self.jitter.around(doubled(AWAY, self.away));
            (self.tokens, self.refilled) = (0, now.plus(pause));
            self.away = self.away.saturating_add(1);
        } else {
            self.away = 0;
        }
        let Some(entry) = self.entries.get_mut(&writing.key) else { return };
        entry.written_at = now;
        match (how, writing.is_known) {
            (Written::Done, _) => entry.told = Some((writing.count, writing.name.clone())),
            (Written::Gone, true) => entry.told = None,
            (Written::Refused | Written::Gone, _) => drop(self.entries.remove(&writing.key)),
            // What happened while nobody listened is old by the time that somebody does.
            (Written::Away, _) => self.entries.retain(|_, entry| entry.told.is_some()),
        }
    }

    /// When there is something to write, if nothing else happens before.
    #[must_use]
    pub fn next(&self, now: Moment) -> Option<Moment> {
        let due = self.entries.values().filter_map(Entry::due_at).min()?;
        let token = if self.tokens == 0 { self.refilled.plus(REFILL) } else { now };
        Some(due.max(token))
    }

    fn refill(&mut self, now: Moment) {
        let more = now.since(self.refilled).as_millis() / REFILL.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.tokens = self.tokens.saturating_add(more).min(BURST);
            self.refilled = self.refilled.plus(REFILL.saturating_mul(more));
        }
    }

    fn regarding<'a>(&'a self, about: &'a About) -> Option<&'a PodRef> {
        match about {
            About::Pod(pod) => Some(pod),
            About::Daemon => self.myself.pod.as_ref(),
        }
    }
}

impl Entry {
    /// All that has happened is known to the API server.
    fn is_settled(&self) -> bool {
        self.told.as_ref().is_some_and(|(told, _)| *told == self.seen)
    }

    fn due_at(&self) -> Option<Moment> {
        match self.told {
            None => Some(self.first),
            Some(_) if self.is_settled() => None,
            Some(_) => Some(self.written_at.plus(COUNT_EVERY)),
        }
    }
}

/// The event (`events.k8s.io/v1`) that says an entry for the first time. Only its series can be changed later.
fn event(name: &str, key: &Key, entry: &Entry, regarding: &PodRef, myself: &Myself) -> Value {
    let PodRef { name: pod, uid } = regarding;
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name});
    if !uid.is_empty() {
        object["uid"] = uid.as_str().into();
    }
    let mut event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": pod.namespace, "name": name},
        "eventTime": time(entry.first),
        "type": "Warning",
        "reason": key.reason,
        "action": key.action,
        "note": cut(&entry.text, NOTE_MAX),
        "regarding": object,
        "reportingController": REPORTER,
        "reportingInstance": cut(instance(myself), 128),
    });
    if entry.seen > 1 {
        event["series"] = json!({"count": entry.seen, "lastObservedTime": time(entry.last)});
    }
    event
}

fn instance(myself: &Myself) -> &str {
    myself.pod.as_ref().map_or(&myself.node, |pod| &pod.name.name)
}

/// A time as `MicroTime` wants it.
fn time(at: Moment) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The text's first bytes, without half a character.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_764_010_000_123);

    fn ledger() -> Ledger {
        let name = PodName { namespace: "kube-system".to_owned(), name: "aws-node-x".to_owned() };
        let pod = Some(PodRef { name, uid: "d-uid".to_owned() });
        Ledger::new(Myself { pod, node: "node1".to_owned() }, START)
    }

    fn about(pod: &str, reason: &'static str) -> Note {
        let name = PodName { namespace: "default".to_owned(), name: pod.to_owned() };
        let about = About::Pod(PodRef { name, uid: "u".to_owned() });
        Note { about, reason, action: "AddNetwork".to_owned(), text: format!("{reason} in numbers") }
    }

    /// Writes what is due, and all goes well.
    fn write(ledger: &mut Ledger, now: Moment) -> Vec<Writing> {
        let mut all = Vec::new();
        while let Some(writing) = ledger.due(now) {
            ledger.written(&writing, Written::Done, now);
            all.push(writing);
        }
        all
    }

    #[test]
    fn a_pod_and_a_reason_are_one_event_that_is_counted_up() {
        let mut ledger = ledger();
        for _ in 0..3 {
            assert!(ledger.note(about("web", "pool-empty"), START));
        }
        let first = write(&mut ledger, START);
        assert_eq!((first.len(), first[0].is_known), (1, false));
        let body = &first[0].body;
        assert_eq!((&body["reason"], &body["note"]), (&json!("pool-empty"), &json!("pool-empty in numbers")));
        assert_eq!(
            body["regarding"],
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "u"})
        );
        assert_eq!(body["eventTime"], "2025-11-24T18:46:40.123000Z");
        assert_eq!((&body["series"]["count"], &body["reportingInstance"]), (&json!(3), &json!("aws-node-x")));

        assert!(ledger.note(about("web", "pool-empty"), START));
        assert!(ledger.note(about("web", "subnet-full"), START));
        let second = write(&mut ledger, START);
        assert_eq!(second.len(), 1, "a count waits, another reason does not: {second:?}");
        assert_eq!(second[0].body["reason"], "subnet-full");
        let at = ledger.next(START).unwrap();
        let third = write(&mut ledger, at);
        assert_eq!((third.len(), third[0].is_known, &third[0].name), (1, true, &first[0].name));
        assert_eq!(third[0].body["series"]["count"], 4);
        assert_eq!(third[0].body.as_object().unwrap().len(), 1, "nothing else of an event can be changed");
    }

    #[test]
    fn many_events_at_once_are_spread_and_their_number_is_bounded() {
        let mut ledger = ledger();
        let taken = (0..300).filter(|n| ledger.note(about(&format!("pod-{n}"), "no-subnet"), START)).count();
        assert_eq!(taken, ENTRIES_MAX);
        assert_eq!(write(&mut ledger, START).len(), 25);

        let next = ledger.next(START).unwrap();
        assert_eq!(write(&mut ledger, next).len(), 1);
        // Those that are said make room.
        assert!(ledger.note(about("late", "no-subnet"), next));
    }

    #[test]
    fn what_happens_while_the_api_server_is_away_is_dropped_and_the_next_is_said() {
        let mut ledger = ledger();
        ledger.note(about("a", "throttled"), START);
        write(&mut ledger, START);
        ledger.note(about("b", "throttled"), START);
        ledger.note(about("c", "throttled"), START);
        let writing = ledger.due(START).unwrap();
        ledger.written(&writing, Written::Away, START);
        assert!(ledger.due(START).is_none() && ledger.next(START).is_none());

        ledger.note(about("c", "throttled"), START);
        assert!(ledger.due(START).is_none(), "it is left alone for a while");
        let next = ledger.next(START).unwrap();
        assert_eq!(write(&mut ledger, next).len(), 1);
    }

    #[test]
    fn an_api_server_that_is_away_is_asked_ever_less_often_and_by_each_node_at_another_time() {
        let asked = |node: &str| {
            let mut ledger = Ledger::new(Myself { pod: None, node: node.to_owned() }, START);
            let mut times = Vec::new();
            for second in 0..3600 {
                let now = START.plus(Duration::from_secs(second));
                ledger.note(about(&format!("pod-{second}"), "throttled"), now);
                while let Some(writing) = ledger.due(now) {
                    ledger.written(&writing, Written::Away, now);
                    times.push(second);
                }
            }
            (times, ledger)
        };
        let (times, mut ledger) = asked("node1");
        assert!((12..=30).contains(&times.len()), "asked at {times:?}");
        assert_ne!(times, asked("node2").0);

        // When it is back all is said, one after the other, and the next time it is away the pauses begin anew.
        let back = ledger.next(START.plus(Duration::from_secs(3600))).unwrap();
        assert_eq!(write(&mut ledger, back).len(), 1);
        let later = ledger.next(back).unwrap();
        assert_eq!(later, back.plus(REFILL));
        let writing = ledger.due(later).unwrap();
        ledger.written(&writing, Written::Away, later);
        ledger.note(about("again", "throttled"), later);
        assert!(ledger.next(later).unwrap().since(later) <= AWAY.0 * 2);
    }

    #[test]
    fn an_event_that_is_gone_or_over_is_written_anew() {
        let mut ledger = ledger();
        ledger.note(about("a", "denied"), START);
        let first = write(&mut ledger, START).remove(0);
        ledger.note(about("a", "denied"), START);
        let later = START.plus(COUNT_EVERY);
        let count = ledger.due(later).unwrap();
        ledger.written(&count, Written::Gone, later);
        let anew = write(&mut ledger, later).remove(0);
        assert_eq!((anew.is_known, anew.name == first.name), (false, false));

        let over = later.plus(OVER);
        ledger.note(about("b", "denied"), over);
        ledger.note(about("a", "denied"), over);
        assert!(write(&mut ledger, over).iter().all(|writing| !writing.is_known));
    }

    #[test]
    fn a_denied_call_is_told_of_the_daemons_own_pod_where_that_is_known() {
        let mut ledger = ledger();
        assert!(ledger.note(Note::denied("CreateNetworkInterface"), START));
        let event = write(&mut ledger, START).remove(0).body;
        assert_eq!(
            (&event["reason"], &event["action"]),
            (&json!("MissingIAMPermissions"), &json!("ec2:CreateNetworkInterface"))
        );
        assert_eq!(
            (&event["regarding"]["name"], &event["regarding"]["uid"]),
            (&json!("aws-node-x"), &json!("d-uid"))
        );

        let mut nobody = Ledger::new(Myself { pod: None, node: "node1".to_owned() }, START);
        assert!(!nobody.note(Note::denied("CreateNetworkInterface"), START));
    }

    #[test]
    fn texts_and_names_are_as_long_as_the_api_server_takes() {
        let mut ledger = ledger();
        let mut long = about(&"p".repeat(253), "denied");
        long.text = "é".repeat(2000);
        ledger.note(long, START);
        let writing = write(&mut ledger, START).remove(0);
        assert!(writing.name.len() <= 253, "{}", writing.name.len());
        assert_eq!(writing.body["note"].as_str().unwrap().len(), 1024);
    }
}
