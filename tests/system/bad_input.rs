//! What bad input gets: a clear error with its code; nothing leaked, nothing given twice, the daemon alive.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lab::LabError;
use lab::runtime::{Pod, call_plugin, conf};

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("garbage_on_stdin_gets_code_6_and_leaks_nothing", bad_stdin),
    ("a_namespace_that_is_none_gets_code_4", bad_netns),
    ("hostile_clients_of_the_socket_harm_nobody", hostile_clients),
    ("idle_connections_to_the_metrics_harm_nobody", idle_scrapers),
    ("two_pods_racing_for_one_name_do_not_share_an_interface", name_race),
    ("a_damaged_state_file_is_set_aside_and_the_pods_keep_their_addresses", damaged_state),
];

fn bad_stdin() -> Outcome {
    let setting = Setting::start(&[])?;
    let pod = Pod::create("p", "bad")?;
    for (stdin, code) in [(&b"{\"cniVersion\""[..], 6), (b"[1,2]", 6), (b"\xff\xfe", 6), (b"", 6)] {
        let answer = call_plugin(&setting.node, "ADD", "bad", &pod.netns.path(), "p", stdin)?;
        ensure!(!answer.success && answer.stdout["code"] == code, "{stdin:?} got {}", answer.stdout);
    }
    let mut old = conf(&setting.node);
    old["cniVersion"] = "9.9.9".into();
    let answer =
        call_plugin(&setting.node, "ADD", "bad", &pod.netns.path(), "p", old.to_string().as_bytes())?;
    ensure!(!answer.success && answer.stdout["code"] == 1, "version 9.9.9 got {}", answer.stdout);
    setting.accounts_for(&[])?;
    Ok(())
}

fn bad_netns() -> Outcome {
    let setting = Setting::start(&[])?;
    let stdin = conf(&setting.node).to_string();
    for netns in ["/run/netns/none", "/etc/passwd", "/proc/self/ns/net"] {
        let answer = call_plugin(&setting.node, "ADD", "bad", netns.as_ref(), "p", stdin.as_bytes())?;
        ensure!(!answer.success && answer.stdout["code"] == 4, "{netns} got {}", answer.stdout);
    }
    setting.accounts_for(&[])?;
    Ok(())
}

/// From a pod, which can reach the port.
fn idle_scrapers() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..1)?;
    let port = (setting.node.instance().address, 61678);
    let connect = || TcpStream::connect_timeout(&port.into(), Duration::from_secs(5));
    let idle = pods[0].netns.run(|| (0..100).map(|_| connect()).collect::<Result<Vec<_>, _>>())?;
    let idle = idle.map_err(LabError::doing("connect to the metrics"))?;
    let pid = setting.node.daemon_pid().unwrap_or_default();
    let held = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(LabError::doing("count descriptors"))?;
    let held = held.count();
    ensure!(held < 60, "{} idle connections hold {held} descriptors", idle.len());
    drop(idle);

    let metrics = setting.node.metrics()?;
    ensure!(metrics.contains("ipamd_ready 1"), "{metrics}");
    setting.accounts_for(&pods)?;
    Ok(())
}

fn hostile_clients() -> Outcome {
    let setting = Setting::start(&[])?;
    let socket = setting.node.socket();
    let connect = || UnixStream::connect(&socket).map_err(LabError::doing("connect"));
    let _stalled: Vec<UnixStream> = (0..50).map(|_| connect()).collect::<Result<_, _>>()?;
    let hostile: [&[u8]; 6] = [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x05hello",
        b"\x00\x00\x10\x00{\"version\":1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x40{\"version\":7,\"patience_ms\":1,\"started_ns\":1,\"verb\":{\"verb\":\"status\"}}",
    ];
    for bytes in hostile {
        let mut stream = connect()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(LabError::doing("set a timeout"))?;
        stream.write_all(bytes).map_err(LabError::doing("write"))?;
        stream.shutdown(std::net::Shutdown::Write).map_err(LabError::doing("shut down"))?;
        let mut reply = Vec::new();
        // Whoever sent more than was read gets a reset after the answer.
        let _reset = stream.read_to_end(&mut reply);
        let text = String::from_utf8_lossy(&reply).into_owned();
        ensure!(text.contains("bad-input"), "{bytes:?} got {text}");
    }

    let pods = setting.pods(0..2)?;

    setting.accounts_for(&pods)?;
    Ok(())
}

fn name_race() -> Outcome {
    let setting = Setting::start(&[("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let mut first = Pod::create("same", "race-first")?;
    first.add(&setting.node)?;

    let mut second = Pod::create("same", "race-second")?;
    let error = second.add(&setting.node).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("name-in-use"), "the second of the name got {error}");

    first.del(&setting.node)?;
    second.add(&setting.node)?;
    setting.accounts_for(&[second])?;
    Ok(())
}

fn damaged_state() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..3)?;
    let state = setting.node.run_dir().join("state");
    let mut flipped = std::fs::read(&state).map_err(LabError::doing("read the state"))?;
    let half = flipped.len() / 2;
    flipped[half] ^= 0x20;
    for (what, bytes) in
        [("empty", Vec::new()), ("foreign", b"PK\x03\x04 not ours\n\n".to_vec()), ("flipped", flipped)]
    {
        setting.node.kill_daemon();
        std::fs::write(&state, &bytes).map_err(LabError::doing("damage the state"))?;

        setting.node.start_daemon(&[])?;
        setting.node.wait_ready()?;

        let report = setting.node.report()?;
        for pod in &pods {
            let held = report.pods.iter().any(|held| Some(held.address) == pod.address.map(Into::into));
            ensure!(
                held,
                "{what}: {} of {} is free for others",
                pod.address.unwrap_or([0; 4].into()),
                pod.name
            );
        }
    }
    let aside = std::fs::read_dir(setting.node.run_dir()).map_err(LabError::doing("list"))?;
    let aside =
        aside.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("damaged")).count();
    ensure!(aside == 2, "{aside} damaged files were set aside, and the newest two are kept");
    // A DEL finds an address that only the kernel remembered.
    let mut pods = pods;
    for pod in &mut pods {
        pod.del(&setting.node)?;
    }
    setting.accounts_for(&[])?;
    Ok(())
}
