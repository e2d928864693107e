//! The plugin under the name `loopback`, beside what the reference plugin of that name does.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::runtime::{Call, Netns, Node};
use crate::{Named, trials};

pub(crate) fn all() -> Named {
    trials![
        loopback_sets_lo_up_without_a_daemon_and_says_so_in_the_version_asked_for,
        loopback_passes_on_the_result_of_the_plugin_before,
        loopback_check_sees_whether_lo_is_up,
        loopback_del_sets_lo_down_and_succeeds_for_what_is_gone,
        loopback_collects_nothing_and_is_always_available,
        loopback_refuses_what_the_specification_lets_no_plugin_take,
    ]
}

/// As containerd 1.6 calls it.
fn lo(command: &str, netns: &Netns) -> Call {
    let call = Node::new().call(command).named("/opt/cni/bin/loopback");
    let call = call.env("CNI_IFNAME", "lo").env("CNI_NETNS", netns.path());
    ["mtu", "vethPrefix", "socket", "queueDir", "timeoutSeconds"]
        .into_iter()
        .fold(call, Call::without_key)
        .key("name", "cni-loopback")
        .key("type", "loopback")
}

/// Whether a datagram to the loopback's address arrives inside. One that does is there when it has been sent; the kernel drops others.
fn is_up(netns: &Netns) -> bool {
    netns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let sent = socket.send_to(b"x", socket.local_addr().unwrap());
        sent.is_ok() && socket.recv(&mut [0]).is_ok()
    })
}

fn loopback_sets_lo_up_without_a_daemon_and_says_so_in_the_version_asked_for() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let netns = Netns::new().unwrap();
        assert!(!is_up(&netns));

        let ended = lo("ADD", &netns).key("cniVersion", version).run();

        assert!(ended.success && is_up(&netns), "{}{}", ended.stdout, ended.stderr);
        let mut ip = json!({ "interface": 0, "address": "127.0.0.1/8" });
        if version.starts_with('0') {
            ip["version"] = json!("4");
        }
        let interface = json!({ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns.path() });
        let want = json!({ "cniVersion": version, "interfaces": [interface], "ips": [ip], "dns": {} });
        assert_eq!(ended.json(), want);
    }
}

fn loopback_passes_on_the_result_of_the_plugin_before() {
    let netns = Netns::new().unwrap();
    let previous = json!({
        "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }], "ips": [], "routes": [{ "dst": "10.0.0.0/8" }],
    });

    let ended = lo("ADD", &netns).key("cniVersion", "1.0.0").key("prevResult", previous.clone()).run();

    assert!(ended.success && is_up(&netns), "{}", ended.stdout);
    assert_eq!(ended.json(), previous);
}

fn loopback_check_sees_whether_lo_is_up() {
    let netns = Netns::new().unwrap();
    let check = |previous: Value| lo("CHECK", &netns).key("prevResult", previous).run();

    check(json!({})).is_error(types::Reason::Drifted.cni_code().0, "drifted");
    let result = lo("ADD", &netns).run().json();
    check(result).is_silent_success();
}

fn loopback_del_sets_lo_down_and_succeeds_for_what_is_gone() {
    let netns = Netns::new().unwrap();
    let result = lo("ADD", &netns).run().json();

    lo("DEL", &netns).key("prevResult", result).run().is_silent_success();
    assert!(!is_up(&netns));
    lo("DEL", &netns).run().is_silent_success();
    for gone in ["/nonexistent/netns", "", "/etc/passwd", "/proc/self/ns/net"] {
        lo("DEL", &netns).env("CNI_NETNS", gone).run().is_silent_success();
    }
    lo("DEL", &netns).without("CNI_NETNS").run().is_silent_success();
}

fn loopback_collects_nothing_and_is_always_available() {
    let netns = Netns::new().unwrap();

    lo("GC", &netns).key("cni.dev/valid-attachments", json!([])).run().is_silent_success();
    lo("STATUS", &netns).run().is_silent_success();
    assert!(lo("VERSION", &netns).run().json()["supportedVersions"].is_array());
    assert!(!is_up(&netns), "it was not asked for an interface");
}

fn loopback_refuses_what_the_specification_lets_no_plugin_take() {
    let netns = Netns::new().unwrap();

    lo("ADD", &netns).env("CNI_NETNS", "/proc/self/ns/net").run().is_error(4, "bad-netns");
    lo("ADD", &netns).env("CNI_NETNS", "/etc/passwd").run().is_error(4, "bad-netns");
    lo("ADD", &netns).env("CNI_CONTAINERID", "../x").run().is_error(4, "bad-environment");
    lo("ADD", &netns).without("CNI_NETNS").run().is_error(4, "bad-environment");
    lo("ADD", &netns).key("cniVersion", "9.9.9").run().is_error(1, "unsupported-version");
    lo("GC", &netns).key("cniVersion", "1.0.0").run().is_error(1, "unsupported-version");
    lo("ADD", &netns).stdin("{").run().is_error(6, "bad-input");
    assert!(!is_up(&netns));
}
