//! ADD and CHECK, which need a network namespace.

use serde_json::{Value, json};
use types::Reason;
use wire::{Added, Attachment, Failure, Reply, Verb};

use crate::daemon::{Manner, Seen};
use crate::runtime::{Call, Netns, Node};
use crate::{Named, trials};

pub(crate) fn all() -> Named {
    trials![
        add_prints_the_result_in_the_version_asked_for,
        add_passes_the_namespace_and_a_netlink_socket_inside_it,
        add_passes_on_who_asks_and_nothing_else,
        add_asks_for_every_network_card_where_the_pod_does,
        add_refuses_the_plugins_own_namespace,
        add_refuses_what_is_no_network_namespace,
        add_twice_gives_the_same_address,
        add_tells_the_daemons_reason,
        add_without_a_daemon_is_an_error_of_code_11,
        add_believes_no_answer_that_is_none,
        add_ends_when_the_daemon_stalls,
        check_asks_the_daemon_about_the_namespace,
        del_after_add_works_with_its_result,
        gc_releases_what_is_not_listed,
    ]
}

/// Those that need a kernel with IPv6.
pub(crate) fn of_ipv6() -> Named {
    trials![add_switches_ipv6_on_inside_where_it_is_wanted_and_nowhere_else]
}

fn add(node: &Node, netns: &Netns) -> Call {
    node.call("ADD").env("CNI_NETNS", netns.path())
}

fn only(mut seen: Vec<Seen>) -> (Attachment, Seen) {
    let one = seen.pop().unwrap();
    assert!(seen.is_empty());
    let (Verb::Add(attachment) | Verb::Check(attachment)) = one.request.verb.clone() else {
        panic!("{one:?}")
    };
    (attachment, one)
}

fn add_prints_the_result_in_the_version_asked_for() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let _daemon = node.daemon(Manner::Good);

    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let ended = add(&node, &netns).key("cniVersion", version).run();

        let mut ip = json!({ "interface": 1, "address": "10.0.1.10/32" });
        if version.starts_with('0') {
            ip["version"] = json!("4");
        }
        assert!(ended.success, "{}", ended.stdout);
        assert_eq!(
            ended.json(),
            json!({
                "cniVersion": version,
                "interfaces": [
                    { "name": "enicc21c2d7785" },
                    { "name": "eth0", "mac": "2", "sandbox": netns.path() },
                    { "name": "dummycc21c2d7785", "mac": "0", "sandbox": "1" },
                ],
                "ips": [ip],
                "dns": {},
            })
        );
    }
}

fn add_passes_the_namespace_and_a_netlink_socket_inside_it() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let daemon = node.daemon(Manner::Good);

    assert!(add(&node, &netns).run().success);

    let (_, seen) = only(daemon.take_seen());
    let [passed, netlink] = &seen.descriptors[..] else { panic!("{seen:?}") };
    let identity = |fd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).unwrap();
    assert_eq!(identity(passed), identity(netns.fd()));

    // The namespace's own list of netlink sockets that have an address: the last column is the inode, the second
    // the protocol.
    rustix::net::bind(netlink, &rustix::net::netlink::SocketAddrNetlink::new(0, 0)).unwrap();
    let inode = identity(netlink).1.to_string();
    let list = netns.proc_net("netlink");
    let line: Vec<_> = list.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
    let protocols: Vec<_> = line.iter().filter(|l| l.last() == Some(&inode.as_str())).map(|l| l[1]).collect();
    assert_eq!(protocols, ["0"], "NETLINK_ROUTE, in {list}");
}

fn add_switches_ipv6_on_inside_where_it_is_wanted_and_nowhere_else() {
    let (node, netns) = (Node::new(), Netns::new().unwrap());
    let _daemon = node.daemon(Manner::Good);
    let switches = ["default", "lo", "all"].map(|of| format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"));
    netns.run(|| switches.iter().for_each(|path| std::fs::write(path, "1").unwrap()));
    let read = || netns.run(|| switches.clone().map(|path| std::fs::read_to_string(path).unwrap()));

    assert!(add(&node, &netns).run().success);
    assert_eq!(read(), ["1\n", "1\n", "1\n"]);
    assert!(add(&node, &netns).key("ipv6", "true").run().success);
    assert_eq!(read(), ["0\n", "0\n", "1\n"]);
}

fn add_passes_on_who_asks_and_nothing_else() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let daemon = node.daemon(Manner::Good);
    let annotations = json!({ "io.kubernetes.cri.pod-annotations": { "secret": "s3cret" } });

    assert!(add(&node, &netns).key("runtimeConfig", annotations).key("mtu", "1500").run().success);

    let (attachment, seen) = only(daemon.take_seen());
    assert_eq!(attachment.sandbox.to_string(), "abc/eth0");
    assert_eq!(attachment.sandbox.network_name(), "aws-cni");
    assert_eq!(attachment.netns, netns.path());
    assert_eq!(
        (attachment.pod.to_string(), attachment.pod_uid),
        ("default/sample-pod".to_owned(), "u-1".to_owned())
    );
    assert_eq!((attachment.veth_prefix.as_str(), attachment.mtu), ("eni", 1500));
    assert!(!format!("{:?}", seen.request).contains("s3cret"));
}

/// The result is what the Go version's DEL reads: a host and a container interface for each, and the dummy.
fn add_asks_for_every_network_card_where_the_pod_does() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let daemon = node.daemon(Manner::Good);
    let annotation = json!({ "k8s.amazonaws.com/nicConfig": "multi-nic-attachment", "secret": "s3cret" });
    let annotations = json!({ "io.kubernetes.cri.pod-annotations": annotation });

    let ended = add(&node, &netns).key("cniVersion", "0.4.0").key("runtimeConfig", annotations.clone()).run();

    let (attachment, seen) = only(daemon.take_seen());
    assert!(attachment.multi_nic && !format!("{:?}", seen.request).contains("s3cret"), "{seen:?}");
    let container = |name: &str, table: &str| json!({ "name": name, "mac": table, "sandbox": netns.path() });
    let ip =
        |interface: u8, address: &str| json!({ "version": "4", "interface": interface, "address": address });
    assert_eq!(
        ended.json(),
        json!({
            "cniVersion": "0.4.0",
            "interfaces": [
                { "name": "enicc21c2d7785" },
                container("eth0", "2"),
                { "name": "enia0b7655f3c9" },
                container("mNicIf1", "10101"),
                { "name": "eni674338b7081" },
                container("mNicIf2", "10201"),
                { "name": "dummycc21c2d7785", "mac": "0", "sandbox": "1" },
            ],
            "ips": [ip(1, "10.0.1.10/32"), ip(3, "10.0.2.10/32"), ip(5, "10.0.3.10/32")],
            "dns": {},
        })
    );
    // What came out goes back in, with the annotations or without.
    let check = node.call("CHECK").env("CNI_NETNS", netns.path()).key("cniVersion", "0.4.0");
    assert!(check.key("prevResult", ended.json()).key("runtimeConfig", annotations).run().success);
    let del = node.call("DEL").env("CNI_NETNS", netns.path()).key("cniVersion", "0.4.0");
    assert!(del.key("prevResult", ended.json()).run().success);
}

fn add_refuses_the_plugins_own_namespace() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);

    for path in ["/proc/self/ns/net".to_owned(), format!("/proc/{}/ns/net", std::process::id())] {
        let error = node.call("ADD").env("CNI_NETNS", path).run().is_error(4, "bad-netns");
        assert!(error["msg"].as_str().unwrap().contains("should not be the same"), "{error}");
    }
    assert!(daemon.take_seen().is_empty());
}

fn add_refuses_what_is_no_network_namespace() {
    let node = Node::new();
    let daemon = node.daemon(Manner::Good);

    for path in ["/nonexistent", "/etc/passwd", "/", "/proc/self/ns/pid", "/dev/null", "relative"] {
        node.call("ADD").env("CNI_NETNS", path).run().is_error(4, "bad-netns");
    }
    assert!(daemon.take_seen().is_empty());
}

fn add_twice_gives_the_same_address() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let _daemon = node.daemon(Manner::Good);

    assert_eq!(add(&node, &netns).run().stdout, add(&node, &netns).run().stdout);
}

fn add_tells_the_daemons_reason() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let failure =
        Failure::new(Reason::SubnetFull, "subnet-1 has no free address").with_details("0 of 251 free");
    let _daemon = node.daemon(Manner::Answers(Reply::Failed(failure)));

    let error = add(&node, &netns).run().is_error(11, "subnet-full");

    let words =
        "add cmd: failed to assign an IP address to container: subnet-1 has no free address [subnet-full]";
    assert_eq!((&error["msg"], &error["details"]), (&json!(words), &json!("0 of 251 free")));
}

fn add_without_a_daemon_is_an_error_of_code_11() {
    let netns = Netns::new().unwrap();

    add(&Node::new(), &netns).run().is_error(11, "daemon-unreachable");
}

fn add_believes_no_answer_that_is_none() {
    let node = Node::new();
    let netns = Netns::new().unwrap();

    for reply in
        [Reply::Done, Reply::Collected { released: 0 }, Reply::Added(Added { interfaces: Vec::new() })]
    {
        let _daemon = node.daemon(Manner::Answers(reply));
        add(&node, &netns).run().is_error(6, "bad-input");
    }
    let _daemon = node.daemon(Manner::Closes);
    add(&node, &netns).run().is_error(11, "daemon-unreachable");
}

fn add_ends_when_the_daemon_stalls() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let _daemon = node.daemon(Manner::Stalls);

    add(&node, &netns).key("timeoutSeconds", 1).run().is_error(11, "deadline-exceeded");
}

fn check_asks_the_daemon_about_the_namespace() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let daemon = node.daemon(Manner::Good);
    let check = |previous: &Value| {
        node.call("CHECK").env("CNI_NETNS", netns.path()).key("prevResult", previous.clone()).run()
    };

    check(&json!({})).is_error(3, "unknown-sandbox");
    let result = add(&node, &netns).run().json();
    drop(daemon.take_seen());
    check(&result).is_silent_success();

    assert_eq!(only(daemon.take_seen()).1.descriptors.len(), 2);
}

fn del_after_add_works_with_its_result() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let _daemon = node.daemon(Manner::Good);
    let result = add(&node, &netns).run().json();

    for _ in 0..2 {
        node.call("DEL")
            .env("CNI_NETNS", netns.path())
            .key("prevResult", result.clone())
            .run()
            .is_silent_success();
    }
    let check = node.call("CHECK").env("CNI_NETNS", netns.path()).key("prevResult", result);
    check.run().is_error(3, "unknown-sandbox");
}

fn gc_releases_what_is_not_listed() {
    let node = Node::new();
    let netns = Netns::new().unwrap();
    let _daemon = node.daemon(Manner::Good);
    let result = add(&node, &netns).run().json();
    let gc = |list: Value| node.call("GC").key("cni.dev/valid-attachments", list).run();
    let check = || node.call("CHECK").env("CNI_NETNS", netns.path()).key("prevResult", result.clone()).run();

    gc(json!([{ "containerID": "abc", "ifname": "eth0" }])).is_silent_success();
    check().is_silent_success();
    gc(json!([])).is_silent_success();
    check().is_error(3, "unknown-sandbox");
}
