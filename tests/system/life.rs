//! What pods and daemons live through.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;

use lab::LabError;
use lab::ec2::{Action, Bucket, Fault, Weather};
use lab::fabric::{Drops, INTERNET_HOST, SECOND_CIDR_HOST};
use lab::node::Node;
use lab::probe::{Echo, ask};
use lab::runtime::Pod;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Outcome, Setting, Test, ensure, eventually, reach};

pub(crate) const TESTS: &[Test] = &[
    ("the_fabric_drops_what_an_eni_may_not_send", fabric_checks_sources),
    ("pods_on_both_enis_reach_everything_with_the_right_source", packets),
    ("twenty_pods_at_once_get_twenty_addresses", parallel),
    ("a_killed_daemon_comes_back_with_the_same_pods", killed),
    ("a_second_daemon_of_a_node_ends_and_the_first_serves_on", second_daemon),
    ("a_daemon_that_replaces_another_begins_once_that_has_ended", replaced),
    ("a_daemon_that_is_told_to_stop_before_it_serves_stops_in_order", stopped_early),
    ("a_del_with_the_daemon_down_is_replayed", queued_del),
    ("a_pod_name_comes_back_at_once", same_name),
    ("an_immediate_add_under_the_same_pod_name_works_a_thousand_times_in_a_row", thousand),
    (
        "mtu_and_mac_that_were_rewritten_while_the_daemon_was_away_are_right_after_its_start",
        rewritten_meanwhile,
    ),
    ("check_tells_what_is_wrong", check),
    ("gc_releases_what_is_not_listed", gc),
    ("a_pod_that_died_while_the_daemon_was_down_is_released", died_meanwhile),
    ("a_released_address_cools_and_is_not_given_again", cooling),
    ("an_add_waits_while_ec2_throttles_and_says_why_when_its_time_is_up", throttled),
    ("a_denied_call_is_a_state_and_ends_when_it_is_allowed", denied),
    ("a_full_node_fails_an_add_with_the_cause", node_full),
    ("excess_addresses_go_back_to_ec2", release),
];

fn fabric_checks_sources() -> Outcome {
    let setting = Setting::start(&[])?;
    let netns = setting.node.netns();
    netns.ip("addr add 10.0.9.9/32 dev ens5\nroute add 100.64.0.10/32 via 10.0.0.1 src 10.0.9.9\n")?;
    let _echo = Echo::start(setting.fabric.second())?;

    let seen = ask(netns, SECOND_CIDR_HOST)?;

    let Drops { wrong_source, .. } = setting.fabric.drops()?;
    ensure!(seen.is_none() && wrong_source > 0, "a wrong source passed: {seen:?}, {wrong_source} dropped");
    Ok(())
}

fn packets() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..12)?;
    let _echoes = [Echo::start(setting.fabric.internet())?, Echo::start(setting.fabric.second())?];
    let report = setting.accounts_for(&pods)?;
    let enis: BTreeSet<_> = report.pods.iter().map(|pod| pod.eni.clone()).collect();
    ensure!(enis.len() == 2, "12 pods are on {} ENIs", enis.len());
    for pod in &pods {
        let second = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(second == pod.address, "{}: the VPC saw {second:?}", pod.name);
        let internet = ask(&pod.netns, INTERNET_HOST)?;
        ensure!(
            internet == Some(setting.node.instance().address),
            "{}: the internet saw {internet:?}",
            pod.name
        );
    }
    let rules = setting.node.netns().read("ip rule")?;
    ensure!(rules.lines().count() <= 10, "rules grow with pods:\n{rules}");
    let drops = setting.fabric.drops()?;
    ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
    Ok(())
}

fn add_all(node: &Node, pods: &mut [Pod]) -> Outcome {
    std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(|| pod.add(node).map(drop))).collect();
        adds.into_iter().try_for_each(|add| {
            add.join().unwrap_or_else(|_panic| Err(LabError::Otherwise("an ADD panicked".to_owned())))
        })
    })
}

fn parallel() -> Outcome {
    let setting = Setting::start(&[])?;
    let pod = |n| Pod::create(&format!("par-{n}"), &format!("parallel{n}"));
    let mut pods = (0..20).map(pod).collect::<Result<Vec<_>, _>>()?;

    add_all(&setting.node, &mut pods)?;

    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(addresses.len() == 20, "20 pods share {} addresses", addresses.len());
    setting.accounts_for(&pods)?;
    setting.fabric.troubles()
}

fn killed() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..11)?;
    setting.node.kill_daemon();
    let _echo = Echo::start(setting.fabric.second())?;
    let seen = ask(&pods[10].netns, SECOND_CIDR_HOST)?;
    ensure!(seen == pods[10].address, "a pod lost its network with the daemon: {seen:?}");

    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    setting.accounts_for(&pods)?;
    pods.extend(setting.pods(11..13)?);
    setting.accounts_for(&pods)?;
    let seen = ask(&pods[12].netns, SECOND_CIDR_HOST)?;
    ensure!(seen == pods[12].address, "a pod of after the restart is seen as {seen:?}");
    Ok(())
}

fn second_daemon() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..2)?;
    let first = setting.node.daemon_pid().unwrap_or_default();

    let second = setting.node.tool(&["run"], &[])?;

    let told = String::from_utf8_lossy(&second.stderr);
    ensure!(second.status.code() == Some(1), "the second ended with {}: {told}", second.status);
    let why = format!("process {first} is the daemon of this node");
    ensure!(told.contains(&why), "the second says {told}");
    pods.extend(setting.pods(2..4)?);
    setting.accounts_for(&pods)?;
    Ok(())
}

fn replaced() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..2)?;
    let first = setting.node.daemon_pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));

    setting.node.start_daemon(&[])?;
    let waits =
        || setting.node.told().is_ok_and(|log| log.contains("waiting for the daemon before this one"));
    eventually("a daemon that waits", waits)?;
    pods.extend(setting.pods(2..4)?);
    setting.accounts_for(&pods)?;
    if let Some(first) = first {
        kill_process(first, Signal::TERM).map_err(|error| LabError::Otherwise(error.to_string()))?;
    }
    eventually("the second daemon", || {
        setting.node.told().is_ok_and(|log| log.matches(" serving ").count() == 2)
    })?;

    setting.node.wait_ready()?;
    pods.extend(setting.pods(4..6)?);
    setting.accounts_for(&pods)?;
    Ok(())
}

fn stopped_early() -> Outcome {
    let setting = Setting::launch("m5.large")?;
    let queue = setting.node.run_dir().join("delete-queue");
    let lock = std::fs::create_dir_all(&queue)
        .and_then(|()| File::create(queue.join("lock")))
        .and_then(|lock| lock.lock_shared().map(|()| lock));
    let lock = lock.map_err(LabError::doing("lock the queue as a plugin does"))?;
    setting.node.start_daemon(&[])?;
    eventually("the daemon's own lock", || setting.node.run_dir().join("daemon.lock").exists())?;

    let ended = setting.node.stop_daemon()?;

    ensure!(ended.is_some_and(|status| status.success()), "it ended with {ended:?}");
    drop(lock);
    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;
    setting.accounts_for(&setting.pods(0..1)?)?;
    Ok(())
}

fn queued_del() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..3)?;
    setting.node.kill_daemon();

    pods[1].del(&setting.node)?;
    pods[1].del(&setting.node)?;
    let queued = std::fs::read_dir(setting.node.run_dir().join("delete-queue"))
        .map_err(LabError::doing("list the queue"))?
        .count();
    ensure!(queued == 2, "{queued} files in the queue; one DEL and the lock were expected");
    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    drop(pods.remove(1));
    let report = setting.accounts_for(&pods)?;
    ensure!(report.addresses.cooling == 1, "{} addresses cool", report.addresses.cooling);
    Ok(())
}

fn same_name() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut last: Option<Pod> = None;
    for round in 0..8 {
        if let Some(mut pod) = last.take() {
            pod.del(&setting.node)?;
        }
        let mut pod = Pod::create("web-0", &format!("round{round}"))?;
        pod.add(&setting.node)?;
        last = Some(pod);
    }
    let pods: Vec<Pod> = last.into_iter().collect();
    let _echo = Echo::start(setting.fabric.second())?;
    let seen = ask(&pods[0].netns, SECOND_CIDR_HOST)?;
    ensure!(seen == pods[0].address, "the last of them is seen as {seen:?}");
    setting.accounts_for(&pods)?;
    Ok(())
}

/// The DEL of the one before comes once more, late, as a runtime does that has not heard the answer.
fn thousand() -> Outcome {
    let setting = Setting::start_on("m5.4xlarge", &[("IP_COOLDOWN_PERIOD", "0"), ("MAX_ENI", "1")])?;
    let _echo = Echo::start(setting.fabric.second())?;
    let mut last: Option<Pod> = None;
    for round in 0..1000 {
        let mut pod = Pod::create("web-0", &format!("round{round}"))?;
        if let Some(last) = &mut last {
            last.del(&setting.node)?;
        }
        pod.add(&setting.node)?;
        if let Some(mut last) = last.replace(pod) {
            last.del(&setting.node)?;
        }
        if let Some(pod) = last.as_ref().filter(|_| round % 50 == 0) {
            let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
            ensure!(seen == pod.address, "round {round}: {:?} is seen as {seen:?}", pod.address);
        }
    }
    let pods: Vec<Pod> = last.into_iter().collect();
    setting.accounts_for(&pods)?;
    let clean =
        || setting.node.netns().read("ip -o link").is_ok_and(|links| links.matches(": eni").count() == 1);
    eventually("a node with the link of one pod", clean)
}

fn rewritten_meanwhile() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..2)?;
    let names: Vec<&str> = pods.iter().filter_map(Pod::host_if).collect();
    let like = || -> Result<Vec<String>, LabError> {
        names.iter().map(|name| setting.node.netns().read(&format!("ip -o link show {name}"))).collect()
    };
    let before = like()?;
    setting.node.stop_daemon()?;
    setting
        .node
        .netns()
        .ip(&format!("link set {} mtu 1400\nlink set {} address 02:00:00:00:00:77\n", names[0], names[1]))?;
    ensure!(like()? != before, "nothing was rewritten");

    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    eventually("links as they were", || like().is_ok_and(|now| now == before))?;
    reach(&setting, &pods)
}

fn check() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..1)?;
    let good = pods[0].call(&setting.node, "CHECK")?;
    ensure!(good.success, "CHECK of a good pod: {}", good.stdout);

    pods[0].netns.ip("addr flush dev eth0\n")?;

    let bad = pods[0].call(&setting.node, "CHECK")?;
    ensure!(!bad.success && bad.stdout["code"] == 100, "CHECK of a broken pod: {}", bad.stdout);
    let text = bad.stdout.to_string();
    ensure!(text.contains("drifted") && text.contains("has no address"), "CHECK says {text}");
    Ok(())
}

fn gc() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..3)?;
    let valid = [0, 2]
        .map(|n: usize| wire::Kept { container_id: pods[n].container_id.clone(), if_name: "eth0".into() });

    let verb = wire::Verb::Gc { network_name: "aws-cni".to_owned(), valid: valid.into() };
    let reply = setting.node.ask(verb)?;

    ensure!(reply == wire::Reply::Collected { released: 1 }, "GC answered {reply:?}");
    drop(pods.remove(1));
    setting.accounts_for(&pods)?;
    Ok(())
}

fn died_meanwhile() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..3)?;
    setting.node.kill_daemon();
    let name = pods[2].host_if().unwrap_or_default();
    setting.node.netns().ip(&format!("link del {name}\n"))?;

    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    drop(pods.remove(2));
    setting.accounts_for(&pods)?;
    Ok(())
}

fn cooling() -> Outcome {
    let setting = Setting::start(&[("IP_COOLDOWN_PERIOD", "600"), ("WARM_IP_TARGET", "1")])?;
    let mut used = BTreeSet::new();
    for round in 0..8 {
        let mut pod = Pod::create(&format!("churn-{round}"), &format!("churn{round}"))?;
        let address = pod.add(&setting.node)?;
        ensure!(used.insert(address), "{address} was given again while it cools");
        pod.del(&setting.node)?;
    }
    let report = setting.node.report()?;
    ensure!(report.addresses.cooling == 8, "{} addresses cool", report.addresses.cooling);
    Ok(())
}

fn throttled() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "4")])?;
    setting.node.wait_for("one spare address", |report| report.addresses.free == 1)?;
    let mut pods = setting.pods(0..1)?;
    let none = Bucket { capacity: 0, refill_every: Duration::from_secs(3600) };
    for action in [Action::AssignPrivateIpAddresses, Action::CreateNetworkInterface] {
        setting.fabric.ec2().throttle(action, Some(none));
    }
    // Takes what is there at most; the next one has to wait.
    let mut spare = Pod::create("spare", "spare")?;
    if spare.add(&setting.node).is_ok() {
        pods.push(spare);
    }

    let mut pod = Pod::create("waits", "waits")?;
    let Err(error) = pod.add(&setting.node) else {
        return Err(LabError::Otherwise("an ADD succeeded without an address to be had".to_owned()));
    };
    let text = error.to_string();
    ensure!(text.contains("throttled") && text.contains("\"code\":11"), "the ADD says {text}");

    for action in [Action::AssignPrivateIpAddresses, Action::CreateNetworkInterface] {
        setting.fabric.ec2().throttle(action, None);
    }
    setting.node.wait_for("growth after the throttling", |report| report.addresses.free > 0)?;
    pod.add(&setting.node)?;
    pods.push(pod);
    setting.accounts_for(&pods)?;
    Ok(())
}

fn denied() -> Outcome {
    let setting = Setting::start(&[])?;
    let ec2 = setting.fabric.ec2();
    setting.node.wait_for("spare addresses", |report| report.addresses.free >= 9)?;
    ec2.set_weather(Weather::Denied);
    let mut pods = setting.pods(0..4)?;
    ec2.set_weather(Weather::Fair);
    ec2.fault_next(Action::AssignPrivateIpAddresses, 1, Fault::Garbage("<html>not an answer".to_owned()));
    ec2.fault_next(Action::CreateNetworkInterface, 1, Fault::LoseAnswer);

    pods.extend(setting.pods(4..14)?);

    setting.accounts_for(&pods)?;
    setting.fabric.troubles()
}

fn node_full() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let pods = setting.pods(0..9)?;

    let mut tenth = Pod::create("tenth", "tenth")?;
    let error = tenth.add(&setting.node).err().map(|error| error.to_string()).unwrap_or_default();

    ensure!(error.contains("node-full") && error.contains("9 assigned"), "the tenth ADD says {error}");
    setting.accounts_for(&pods)?;
    Ok(())
}

fn release() -> Outcome {
    let settings = [("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "1")];
    let setting = Setting::start(&settings)?;
    let mut pods = setting.pods(0..5)?;
    let grown = setting.node.wait_for("seven addresses", |report| report.addresses.total() == 7)?;
    ensure!(grown.enis.len() == 1, "seven addresses took {} ENIs", grown.enis.len());
    // Where a subnet has plenty, its addresses are kept for longer than a test has time.
    let few = setting.fabric.ec2().occupy_all_but(setting.fabric.subnet(), 100);
    few.map_err(|error| LabError::Otherwise(error.to_string()))?;
    setting.node.stop_daemon()?;
    setting.node.start_daemon(&settings)?;
    setting.node.wait_ready()?;
    for mut pod in pods.split_off(1) {
        pod.del(&setting.node)?;
    }

    // The books are ahead of EC2 while a call is under way.
    let held = |report: &wire::Report| {
        let eni = setting.fabric.ec2().eni(&report.enis[0].id);
        eni.and_then(|eni| u32::try_from(eni.secondary.len()).ok())
    };
    setting.node.wait_for("fewer addresses, in EC2 as in the books", |report| {
        report.addresses.total() < 7 && held(report) == Some(report.addresses.total())
    })?;

    setting.accounts_for(&pods)?;
    Ok(())
}
