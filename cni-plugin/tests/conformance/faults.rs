//! A daemon that is not there, or is but should not be trusted; and the delete queue.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;

use serde_json::{Value, json};
use types::Reason;
use wire::queue::{FILES_MAX, LOCK_FILE};
use wire::{Detachment, FRAME_BYTES_MAX, Failure, Reply, Verb};

use crate::daemon::Manner;
use crate::runtime::{Ended, Node};
use crate::{Named, trials};

pub(crate) fn all() -> Named {
    trials![
        del_without_a_daemon_succeeds_and_is_queued,
        a_repeated_del_is_queued_once,
        a_full_queue_makes_del_fail_so_that_the_runtime_backs_off,
        a_queue_that_cannot_be_written_makes_del_fail,
        del_is_queued_when_the_daemon_has_no_manners,
        del_fails_when_the_daemon_takes_too_long,
        del_fails_only_for_what_a_retry_mends,
        del_is_queued_when_the_daemon_does_not_understand,
        del_is_queued_while_the_daemon_stops,
        del_does_not_fall_between_queue_and_starting_daemon,
        status_tells_what_is_wrong_with_the_daemon,
        a_daemon_that_is_full_may_say_so_without_reading,
        gc_is_an_error_without_a_daemon,
        a_list_too_long_for_a_frame_is_refused,
        a_socket_path_that_cannot_be_is_a_daemon_out_of_reach,
        each_call_is_logged_when_asked_for,
        a_log_that_cannot_be_written_does_no_harm,
    ]
}

/// All the ways in which an answer is none.
fn bad_manners() -> Vec<Manner> {
    let header = |len: usize| u32::try_from(len).unwrap().to_be_bytes().to_vec();
    vec![
        Manner::ClosesUnread,
        Manner::Closes,
        Manner::Writes(b"garbage, and more of it".to_vec()),
        Manner::Writes([header(7), b"garbage".to_vec()].concat()),
        Manner::Writes(header(FRAME_BYTES_MAX + 1)),
        Manner::Writes(header(0)),
        Manner::Writes([header(100), b"half".to_vec()].concat()),
        Manner::Writes(b"\0\0".to_vec()),
        Manner::Answers(Reply::Collected { released: 1 }),
    ]
}

fn del_without_a_daemon_succeeds_and_is_queued() {
    let node = Node::new();

    node.call("DEL").run().is_silent_success();

    let names = node.queued();
    let file = node.queue().join(&names[0]);
    let detachment: Detachment = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(names, [wire::queue::file_name(&detachment.sandbox)]);
    assert_eq!(detachment.sandbox.to_string(), "abc/eth0");
    assert_eq!(detachment.pod.to_string(), "default/sample-pod");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

fn a_repeated_del_is_queued_once() {
    let node = Node::new();

    let at_once: Vec<_> = (0..4).map(|_| node.call("DEL").start()).collect();

    for child in at_once {
        Ended::wait(child).is_silent_success();
    }
    assert_eq!(node.queued().len(), 1);
}

fn a_full_queue_makes_del_fail_so_that_the_runtime_backs_off() {
    let node = Node::new();
    node.call("DEL").run().is_silent_success();
    for n in 1..FILES_MAX {
        fs::write(node.queue().join(format!("{n}.delete")), "").unwrap();
    }

    node.call("DEL").run().is_silent_success();
    node.call("DEL").env("CNI_CONTAINERID", "other").run().is_error(11, "busy");
}

fn a_queue_that_cannot_be_written_makes_del_fail() {
    let node = Node::new();
    fs::write(node.path("file"), "").unwrap();

    node.call("DEL").key("queueDir", node.path("file").to_str()).run().is_error(5, "state-not-writable");
}

fn del_is_queued_when_the_daemon_has_no_manners() {
    for manner in bad_manners() {
        let node = Node::new();
        let _daemon = node.daemon(manner.clone());

        node.call("DEL").run().is_silent_success();

        assert_eq!(node.queued().len(), 1, "{manner:?}");
    }
}

fn del_fails_when_the_daemon_takes_too_long() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::Stalls);

    node.call("DEL").key("timeoutSeconds", 1).run().is_error(11, "deadline-exceeded");

    assert!(node.queued().is_empty());
}

fn del_fails_only_for_what_a_retry_mends() {
    let node = Node::new();
    let says = |reason| {
        let _daemon = node.daemon(Manner::Answers(Reply::Failed(Failure::new(reason, "no"))));
        node.call("DEL").run()
    };

    says(Reason::Busy).is_error(11, "busy");
    says(Reason::StateNotWritable).is_error(5, "state-not-writable");
    says(Reason::UnknownSandbox).is_silent_success();
    assert!(node.queued().is_empty());
}

fn del_is_queued_when_the_daemon_does_not_understand() {
    for reason in [Reason::BadInput, Reason::UnsupportedVersion] {
        let node = Node::new();
        let _daemon = node.daemon(Manner::Answers(Reply::Failed(Failure::new(reason, "what?"))));

        node.call("DEL").run().is_silent_success();

        assert_eq!(node.queued().len(), 1);
    }
}

fn del_is_queued_while_the_daemon_stops() {
    let node = Node::new();
    let stopping = Failure::new(Reason::DaemonUnreachable, "the daemon is stopping");
    let _daemon = node.daemon(Manner::Answers(Reply::Failed(stopping)));

    node.call("DEL").run().is_silent_success();

    assert_eq!(node.queued().len(), 1);
}

fn del_does_not_fall_between_queue_and_starting_daemon() {
    let node = Node::new();
    fs::create_dir_all(node.queue()).unwrap();
    let lock = File::create(node.queue().join(LOCK_FILE)).unwrap();
    lock.lock().unwrap();

    let mut plugin = node.call("DEL").start();
    wait_until_open(&mut plugin, &node.queue().join(LOCK_FILE));
    let daemon = node.daemon(Manner::Good);
    lock.unlock().unwrap();

    Ended::wait(plugin).is_silent_success();
    assert!(matches!(daemon.take_seen()[0].request.verb, Verb::Del(_)));
    assert!(node.queued().is_empty());
}

/// Returns when the plugin has the file open: it has found no daemon then, and wants the lock.
fn wait_until_open(plugin: &mut Child, file: &Path) {
    let fds = format!("/proc/{}/fd", plugin.id());
    let is_open = || {
        let links = fs::read_dir(&fds).into_iter().flatten().flatten();
        links.into_iter().any(|l| fs::read_link(l.path()).is_ok_and(|target| target == file))
    };
    while !is_open() {
        assert!(plugin.try_wait().unwrap().is_none(), "it ended without the lock");
        std::thread::yield_now();
    }
}

fn status_tells_what_is_wrong_with_the_daemon() {
    let node = Node::new();
    let word = |manner| {
        let _daemon = node.daemon(manner);
        let error = node.call("STATUS").key("timeoutSeconds", 1).run().json();
        assert_eq!(error["code"], 50, "{error}");
        let msg = error["msg"].as_str().unwrap().to_owned();
        msg.rsplit_once(" [").unwrap().1.trim_end_matches(']').to_owned()
    };

    let words: Vec<_> = bad_manners().into_iter().map(word).collect();

    let (gone, nonsense) = ("daemon-unreachable", "bad-input");
    assert_eq!(words, [gone, gone, nonsense, nonsense, nonsense, nonsense, gone, gone, nonsense]);
    assert_eq!(word(Manner::Stalls), "deadline-exceeded");
}

fn a_daemon_that_is_full_may_say_so_without_reading() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::AnswersUnread(Reply::Failed(Failure::new(Reason::Busy, "later"))));

    node.call("STATUS").run().is_error(50, "busy");
}

fn gc_is_an_error_without_a_daemon() {
    let node = Node::new();

    node.call("GC").key("cni.dev/valid-attachments", json!([])).run().is_error(11, "daemon-unreachable");
}

fn a_list_too_long_for_a_frame_is_refused() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);
    let entry = |n: usize| json!({ "containerID": format!("{n:0>128}"), "ifname": "eth0" });
    let list: Vec<Value> = (0..10_000).map(entry).collect();

    node.call("GC").key("cni.dev/valid-attachments", list).run().is_error(6, "bad-input");

    assert!(daemon.take_seen().is_empty());
}

fn a_socket_path_that_cannot_be_is_a_daemon_out_of_reach() {
    let node = Node::new();

    for path in ["", "/nonexistent/socket", &format!("/{}", "a".repeat(200)), "/a\0b"] {
        node.call("STATUS").key("socket", path).run().is_error(50, "daemon-unreachable");
        node.call("DEL").key("socket", path).run().is_silent_success();
    }
}

fn each_call_is_logged_when_asked_for() {
    let node = Node::new();
    let log = node.path("plugin.log");

    node.call("DEL").key("pluginLogFile", log.to_str()).run().is_silent_success();
    node.call("STATUS").key("pluginLogFile", log.to_str()).run().is_error(50, "daemon-unreachable");

    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        [&lines[0]["verb"], &lines[0]["outcome"], &lines[0]["sandbox"]],
        ["DEL", "queued", "abc/eth0"]
    );
    assert_eq!(lines[0]["pod"], "default/sample-pod");
    assert_eq!([&lines[1]["verb"], &lines[1]["reason"]], ["STATUS", "daemon-unreachable"]);
}

fn a_log_that_cannot_be_written_does_no_harm() {
    let node = Node::new();

    for path in ["/nonexistent/plugin.log", "/", "stdout", ""] {
        node.call("DEL").key("pluginLogFile", path).run().is_silent_success();
    }
}
