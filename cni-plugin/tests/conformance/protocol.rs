//! Parameters, errors, and the operations that need no network namespace.

use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use serde_json::json;
use types::Reason;
use wire::{Failure, Reply, Verb};

use crate::daemon::Manner;
use crate::runtime::{Ended, Node};
use crate::{Named, trials};

pub(crate) fn all() -> Named {
    trials![
        without_a_command_a_person_is_told_what_this_is,
        an_unknown_command_is_an_error_of_code_4,
        all_missing_variables_are_named_at_once,
        a_variable_that_is_no_text_is_an_error_of_code_4,
        variables_are_checked_before_the_configuration,
        container_id_and_interface_name_obey_the_specification,
        a_configuration_that_is_no_json_is_an_error_of_code_6,
        a_configuration_without_a_good_name_is_an_error_of_code_7,
        a_version_that_is_not_ours_is_an_error_of_code_1,
        an_error_is_written_in_the_version_asked_for,
        a_veth_prefix_that_cannot_be_is_an_error_of_code_7,
        unknown_arguments_are_refused_unless_they_shall_be_ignored,
        standard_input_is_bounded,
        version_repeats_the_version_of_its_input,
        version_needs_no_input,
        del_needs_no_namespace_and_no_pod,
        del_passes_on_who_is_to_go,
        the_trace_of_the_runtime_is_passed_on,
        del_works_with_a_previous_result_of_any_kind,
        check_needs_a_previous_result,
        check_status_and_gc_need_their_version,
        status_is_silent_when_an_add_would_be_served,
        status_has_code_50_or_51,
        gc_passes_on_the_list,
        gc_without_a_list_releases_nothing,
        add_that_is_not_first_in_its_list_is_refused,
    ]
}

fn without_a_command_a_person_is_told_what_this_is() {
    let ended = Node::new().call("").run();

    assert!(ended.success);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("AWS CNI") && ended.stderr.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"));
}

fn an_unknown_command_is_an_error_of_code_4() {
    for command in ["add", "PING", "ADD "] {
        let error = Node::new().call(command).run().is_error(4, "bad-environment");
        assert!(error["msg"].as_str().unwrap().contains("unknown CNI_COMMAND"), "{error}");
    }
}

fn all_missing_variables_are_named_at_once() {
    for (command, names) in [
        ("ADD", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]"),
        ("CHECK", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]"),
        ("DEL", "[CNI_CONTAINERID,CNI_IFNAME]"),
    ] {
        let call =
            Node::new().call(command).env("CNI_CONTAINERID", "").without("CNI_NETNS").without("CNI_IFNAME");

        let error = call.run().is_error(4, "bad-environment");

        assert!(error["msg"].as_str().unwrap().contains(names), "{error}");
    }
}

fn a_variable_that_is_no_text_is_an_error_of_code_4() {
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aws-cni"));
        command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "a").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", "/n").env(name, std::ffi::OsString::from_vec(vec![b'a', 0xff]));
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

        let error = Ended::wait(child).is_error(4, "bad-environment");

        assert!(error["msg"].as_str().unwrap().contains(name), "{error}");
    }
}

fn variables_are_checked_before_the_configuration() {
    Node::new().call("ADD").without("CNI_IFNAME").stdin("{").run().is_error(4, "bad-environment");
}

fn container_id_and_interface_name_obey_the_specification() {
    for bad in ["-a", "a/b", "../x", "a b", "é", &"a".repeat(257)] {
        Node::new().call("DEL").env("CNI_CONTAINERID", bad).run().is_error(4, "bad-environment");
    }
    for bad in [".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
        Node::new().call("DEL").env("CNI_IFNAME", bad).run().is_error(4, "bad-environment");
    }
}

fn a_configuration_that_is_no_json_is_an_error_of_code_6() {
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        for bad in ["", "{", "[]", "{\"name\": \"a\u{0}\"}"] {
            Node::new().call(command).stdin(bad).run().is_error(6, "bad-input");
        }
    }
}

fn a_configuration_without_a_good_name_is_an_error_of_code_7() {
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        let node = Node::new();
        node.call(command).without_key("name").run().is_error(7, "bad-config");
        node.call(command).key("name", "").run().is_error(7, "bad-config");
        node.call(command).key("name", "-a/b").run().is_error(7, "bad-config");
    }
}

fn a_version_that_is_not_ours_is_an_error_of_code_1() {
    let node = Node::new();
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        node.call(command).without_key("cniVersion").run().is_error(1, "unsupported-version");
        for version in ["0.1.0", "0.2.0", "1.2.0", "2", "x"] {
            node.call(command).key("cniVersion", version).run().is_error(1, "unsupported-version");
        }
    }
}

fn an_error_is_written_in_the_version_asked_for() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let error = Node::new().call("ADD").key("cniVersion", version).run().is_error(4, "bad-netns");
        assert_eq!(error["cniVersion"], version);
    }
}

fn a_veth_prefix_that_cannot_be_is_an_error_of_code_7() {
    Node::new().call("ADD").key("vethPrefix", "toolong").run().is_error(7, "bad-config");
}

fn unknown_arguments_are_refused_unless_they_shall_be_ignored() {
    let node = Node::new();
    let with = |args: &str| node.call("ADD").env("CNI_ARGS", args).run();

    with("FOO=BAR").is_error(4, "bad-environment");
    with("FOO").is_error(4, "bad-environment");
    with(&format!("K8S_POD_NAME={}", "a".repeat(254))).is_error(4, "bad-environment");
    with("FOO=BAR;IgnoreUnknown=1").is_error(4, "bad-netns");
    with("").is_error(4, "bad-netns");
}

fn standard_input_is_bounded() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::Good);
    let annotations = |len: usize| json!({ "io.kubernetes.cri.pod-annotations": { "a": "x".repeat(len) } });

    node.call("DEL").key("runtimeConfig", annotations(7 << 20)).run().is_silent_success();
    node.call("DEL").key("runtimeConfig", annotations(8 << 20)).run().is_error(6, "bad-input");
}

fn version_repeats_the_version_of_its_input() {
    for version in ["0.3.0", "1.0.0", "1.1.0", "9.9.9"] {
        let ended = Node::new().call("VERSION").stdin(format!(r#"{{"cniVersion":"{version}"}}"#)).run();

        let supported = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert!(ended.success);
        assert_eq!(ended.json(), json!({ "cniVersion": version, "supportedVersions": supported }));
    }
}

fn version_needs_no_input() {
    for input in ["", "{", "{}", "7"] {
        let ended = Node::new().call("VERSION").stdin(input).run();

        assert!(ended.success);
        assert_eq!(ended.json()["cniVersion"], "1.1.0");
    }
}

fn del_needs_no_namespace_and_no_pod() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::Good);

    node.call("DEL").without("CNI_NETNS").run().is_silent_success();
    node.call("DEL").env("CNI_NETNS", "").without("CNI_ARGS").run().is_silent_success();
    node.call("DEL").env("CNI_ARGS", "not=a=pair").key("vethPrefix", "toolong").run().is_silent_success();
}

fn del_passes_on_who_is_to_go() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);

    node.call("DEL").run().is_silent_success();

    let seen = daemon.take_seen();
    let Verb::Del(detachment) = &seen[0].request.verb else { panic!("{seen:?}") };
    assert_eq!(detachment.sandbox.container_id(), "abc");
    assert_eq!(detachment.pod.to_string(), "default/sample-pod");
    assert!(seen[0].descriptors.is_empty());
    assert!(seen[0].request.started_ns > 0 && (1..=5000).contains(&seen[0].request.patience_ms));
}

fn the_trace_of_the_runtime_is_passed_on() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    node.call("DEL").env("TRACEPARENT", parent).run();
    node.call("DEL").env("TRACEPARENT", "nonsense").run();

    let traces: Vec<_> = daemon.take_seen().into_iter().map(|seen| seen.request.trace).collect();
    assert_eq!(traces, [parent.parse().ok(), None]);
}

fn del_works_with_a_previous_result_of_any_kind() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::Good);

    for previous in [json!({}), json!("x"), json!([7]), json!({ "interfaces": [{ "name": 3 }] }), json!(null)]
    {
        node.call("DEL").key("prevResult", previous).run().is_silent_success();
    }
}

fn check_needs_a_previous_result() {
    let node = Node::new();

    node.call("CHECK").run().is_error(7, "bad-config");
    node.call("CHECK").key("prevResult", json!(null)).run().is_error(7, "bad-config");
}

fn check_status_and_gc_need_their_version() {
    let node = Node::new();
    let run =
        |command, version| node.call(command).key("cniVersion", version).key("prevResult", json!({})).run();

    for version in ["0.3.0", "0.3.1"] {
        run("CHECK", version).is_error(1, "unsupported-version");
    }
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        run("STATUS", version).is_error(1, "unsupported-version");
        run("GC", version).is_error(1, "unsupported-version");
    }
}

fn status_is_silent_when_an_add_would_be_served() {
    let node = Node::new();
    let _daemon = node.daemon(Manner::Good);

    node.call("STATUS").run().is_silent_success();
}

fn status_has_code_50_or_51() {
    let node = Node::new();
    node.call("STATUS").run().is_error(50, "daemon-unreachable");

    let mut failure = Failure::new(Reason::Starting, "reading its state");
    for (daemons, ours) in [(11, 50), (50, 50), (51, 51)] {
        failure.code.0 = daemons;
        let _daemon = node.daemon(Manner::Answers(Reply::Failed(failure.clone())));
        node.call("STATUS").run().is_error(ours, "starting");
    }
}

fn gc_passes_on_the_list() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);
    let list = json!([{ "containerID": "a", "ifname": "eth0" }]);

    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        node.call("GC").key(key, list.clone()).run().is_silent_success();

        let seen = daemon.take_seen();
        let Verb::Gc { network_name, valid } = &seen[0].request.verb else { panic!("{seen:?}") };
        assert_eq!((network_name.as_str(), valid.len(), valid[0].container_id.as_str()), ("aws-cni", 1, "a"));
    }
}

fn gc_without_a_list_releases_nothing() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);

    node.call("GC").run().is_error(7, "bad-config");
    node.call("GC").key("cni.dev/valid-attachments", json!(null)).run().is_error(7, "bad-config");
    node.call("GC")
        .key("cni.dev/valid-attachments", json!([{ "containerID": 7 }]))
        .run()
        .is_error(6, "bad-input");

    assert!(daemon.take_seen().is_empty());
}

fn add_that_is_not_first_in_its_list_is_refused() {
    Node::new().call("ADD").key("prevResult", json!({})).run().is_error(7, "bad-config");
}
