//! Several things at once: ADDs while the daemon dies, EC2 behind its back, nodes that talk to each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::LabError;
use lab::ec2::{Action, Ec2, EniView, Fault, Weather};
use lab::fabric::{Drops, INTERNET_HOST, SECOND_CIDR_HOST};
use lab::imds::ImdsWeather;
use lab::node::Node;
use lab::probe::{Echo, ask, transfer};
use lab::runtime::Pod;
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure, eventually, launch, reach};

pub(crate) const TESTS: &[Test] = &[
    ("the_internet_drops_a_pod_that_is_not_translated", without_nat),
    ("a_megabyte_passes_between_pods_of_two_nodes", bulk),
    ("a_daemon_killed_among_twenty_adds_gives_no_address_twice", killed_among_adds),
    ("of_two_pods_with_one_name_at_once_one_is_served", one_name_at_once),
    ("a_pod_made_again_before_its_del_is_served_after_it", again_before_del),
    ("add_and_del_of_one_sandbox_at_once_leave_the_books_right", add_meets_del),
    ("a_state_file_cut_anywhere_costs_no_pod_its_address", cut_state),
    ("a_daemon_killed_after_creating_an_eni_leaks_none", killed_after_create),
    ("a_daemon_killed_after_attaching_an_eni_uses_it", killed_after_attach),
    ("answers_of_ec2_that_get_lost_leak_no_eni", lost_answers),
    ("an_eni_that_cannot_be_attached_is_deleted", not_attachable),
    ("addresses_taken_away_while_the_daemon_was_down_are_not_given", unassigned_meanwhile),
    ("an_eni_pulled_out_while_the_daemon_was_down_gets_no_pods", detached_meanwhile),
    ("twenty_pods_are_served_while_ec2_and_metadata_lag", lagging),
    ("a_daemon_started_without_metadata_and_ec2_serves_from_what_was_known_and_settles", started_in_the_dark),
    ("an_add_without_a_daemon_is_to_be_tried_again", no_daemon),
    ("the_node_is_as_before_when_the_last_pod_is_gone", nothing_left),
];

fn without_nat() -> Outcome {
    let setting = Setting::start(&[("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true")])?;
    let pods = setting.pods(0..1)?;
    let _echo = Echo::start(setting.fabric.internet())?;

    let from_pod = ask(&pods[0].netns, INTERNET_HOST)?;
    let from_node = ask(setting.node.netns(), INTERNET_HOST)?;

    let Drops { wrong_source, not_public } = setting.fabric.drops()?;
    ensure!(from_pod.is_none() && not_public > 0, "{from_pod:?} passed, {not_public} dropped");
    ensure!(wrong_source == 0, "{wrong_source} packets had a wrong source");
    ensure!(from_node == Some(setting.node.instance().address), "the node is seen as {from_node:?}");
    Ok(())
}

fn bulk() -> Outcome {
    let setting = Setting::start(&[])?;
    let other = launch(&setting.fabric, "node2", "m5.large")?;
    other.start_daemon(&[])?;
    other.wait_ready()?;
    let pods = setting.pods(0..11)?;
    let mut far = Pod::create("far", "far")?;
    let target = far.add(&other)?;
    for pod in [&pods[0], &pods[10]] {
        transfer(&pod.netns, &far.netns, target, 1 << 20)?;
        let own = pod.address.unwrap_or(target);
        transfer(&far.netns, &pod.netns, own, 1 << 20)?;
        transfer(setting.node.netns(), &pod.netns, own, 1 << 20)?;
    }
    let drops = setting.fabric.drops()?;
    ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
    Ok(())
}

/// ADDs one pod as a kubelet does: after a failure DEL, then a sandbox with another id.
fn insist(node: &Node, number: u32) -> Result<Pod, LabError> {
    let mut last = None;
    for attempt in 0..20 {
        let mut pod = Pod::create(&format!("storm-{number}"), &format!("storm{number}x{attempt}"))?;
        match pod.add(node) {
            Ok(_) => return Ok(pod),
            Err(error) => last = Some(error),
        }
        pod.del(node)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(last.unwrap_or_else(|| LabError::Otherwise("not tried".to_owned())))
}

fn killed_among_adds() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    let done = AtomicBool::new(false);
    let (pods, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| -> Result<u32, LabError> {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) && kills < 6 {
                std::thread::sleep(Duration::from_millis(40));
                node.kill_daemon();
                kills += 1;
                node.start_daemon(&[])?;
                node.wait_ready()?;
            }
            Ok(kills)
        });
        let adds: Vec<_> = (0..20).map(|number| scope.spawn(move || insist(node, number))).collect();
        let panicked = || LabError::Otherwise("a thread panicked".to_owned());
        let pods: Result<Vec<Pod>, LabError> =
            adds.into_iter().map(|add| add.join().unwrap_or_else(|_panic| Err(panicked()))).collect();
        done.store(true, Ordering::Relaxed);
        (pods, killer.join().unwrap_or_else(|_panic| Err(panicked())))
    });
    let pods = pods?;
    ensure!(kills? > 0, "the daemon was never killed");
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(addresses.len() == 20, "20 pods share {} addresses", addresses.len());
    setting.accounts_for(&pods)?;
    let _echo = Echo::start(setting.fabric.second())?;
    for pod in &pods {
        let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    Ok(())
}

fn one_name_at_once() -> Outcome {
    let setting = Setting::start(&[("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;
    let mut pods = [Pod::create("twin", "twin0")?, Pod::create("twin", "twin1")?];
    let node = &setting.node;
    let results: Vec<Result<_, LabError>> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(|| pod.add(node))).collect();
        let panicked = |_panic| Err(LabError::Otherwise("an ADD panicked".to_owned()));
        adds.into_iter().map(|add| add.join().unwrap_or_else(panicked)).collect()
    });
    let errors: Vec<String> =
        results.iter().filter_map(|r| r.as_ref().err().map(ToString::to_string)).collect();
    ensure!(errors.len() == 1 && errors[0].contains("name-in-use"), "the errors are {errors:?}");
    let served: Vec<Pod> = pods.into_iter().filter(|pod| pod.address.is_some()).collect();
    setting.accounts_for(&served)?;
    Ok(())
}

fn again_before_del() -> Outcome {
    let setting = Setting::start(&[("IPAMD_ADD_TIMEOUT_SECONDS", "10")])?;
    let node = &setting.node;
    let mut old = Pod::create("web-0", "web0old")?;
    old.add(node)?;
    let mut new = Pod::create("web-0", "web0new")?;
    std::thread::scope(|scope| {
        let add = scope.spawn(|| new.add(node).map(drop));
        let waiting = |report: &Report| !report.waiting.is_empty();
        let waited = node.wait_for("the second ADD waiting", waiting).map(drop);
        let deleted = old.del(node).map(drop);
        let added =
            add.join().unwrap_or_else(|_panic| Err(LabError::Otherwise("the ADD panicked".to_owned())));
        waited.and(deleted).and(added)
    })?;
    let pods = [new];
    setting.accounts_for(&pods)?;
    let _echo = Echo::start(setting.fabric.second())?;
    let seen = ask(&pods[0].netns, SECOND_CIDR_HOST)?;
    ensure!(seen == pods[0].address, "the new one is seen as {seen:?}");
    Ok(())
}

fn add_meets_del() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    for round in 0..10 {
        let pod = Pod::create(&format!("meet-{round}"), &format!("meet{round}"))?;
        std::thread::scope(|scope| {
            let calls = ["ADD", "DEL", "DEL"].map(|verb| {
                let pod = &pod;
                scope.spawn(move || pod.call(node, verb))
            });
            calls.into_iter().try_for_each(|call| {
                let panicked = |_panic| Err(LabError::Otherwise("a call panicked".to_owned()));
                call.join().unwrap_or_else(panicked).map(drop)
            })
        })?;
        let last = pod.call(node, "DEL")?;
        ensure!(last.success, "the last DEL says {}", last.stdout);
        setting.accounts_for(&[])?;
    }
    Ok(())
}

fn cut_state() -> Outcome {
    let setting = Setting::start(&[])?;
    let pods = setting.pods(0..4)?;
    let state = setting.node.run_dir().join("state");
    let whole = std::fs::read(&state).map_err(LabError::doing("read the state"))?;
    let mut expected: Vec<String> =
        pods.iter().filter_map(|pod| pod.address).map(|a| a.to_string()).collect();
    expected.sort();
    for tenths in [0, 1, 3, 5, 7, 9] {
        setting.node.kill_daemon();
        std::fs::write(&state, &whole[..whole.len() * tenths / 10])
            .map_err(LabError::doing("cut the state"))?;

        setting.node.start_daemon(&[])?;
        setting.node.wait_ready()?;

        let mut held: Vec<String> =
            setting.node.report()?.pods.iter().map(|pod| pod.address.to_string()).collect();
        held.sort();
        ensure!(held == expected, "cut to {tenths}/10: held {held:?}, pods have {expected:?}");
    }
    let _echo = Echo::start(setting.fabric.second())?;
    let mut more = Pod::create("more", "more")?;
    let address = more.add(&setting.node)?;
    ensure!(!pods.iter().any(|pod| pod.address == Some(address)), "{address} was given twice");
    for pod in &pods {
        let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    Ok(())
}

fn called(ec2: &Ec2, action: Action) -> bool {
    ec2.calls().iter().any(|call| call.action == action.name())
}

/// Kills the daemon after its first call of `action` while it grows, and starts it again.
fn kill_in_growth(action: Action) -> Outcome {
    let setting = Setting::start(&[])?;
    let (ec2, node) = (setting.fabric.ec2(), &setting.node);
    node.wait_for("a full primary ENI", |report| report.addresses.free == 9)?;
    ec2.tune(|config| config.attach_delay = Duration::from_millis(400));
    // The first pod leaves less than a whole ENI spare, so a second one is made.
    let pods = setting.pods(0..1)?;
    eventually(action.name(), || called(ec2, action))?;
    node.kill_daemon();

    node.start_daemon(&[])?;
    node.wait_ready()?;

    node.wait_for("a second ENI", |report| report.enis.len() == 2)?;
    setting.accounts_for(&pods)?;
    let loose = |eni: &EniView| eni.attachment.is_none();
    eventually("no ENI without an instance", || !ec2.enis().iter().any(loose))
}

fn killed_after_create() -> Outcome {
    kill_in_growth(Action::CreateNetworkInterface)
}

fn killed_after_attach() -> Outcome {
    kill_in_growth(Action::AttachNetworkInterface)
}

/// A second ENI is wanted, and each answer on the way to it gets lost once.
fn lost_answers() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "2")])?;
    let (ec2, node) = (setting.fabric.ec2(), &setting.node);
    node.wait_for("a full primary ENI", |report| report.addresses.free == 9)?;
    for action in [
        Action::CreateNetworkInterface,
        Action::AttachNetworkInterface,
        Action::ModifyNetworkInterfaceAttribute,
    ] {
        ec2.fault_next(action, 1, Fault::LoseAnswer);
    }

    let pods = setting.pods(0..12)?;

    let report = setting.accounts_for(&pods)?;
    ensure!(report.enis.len() == 2, "{} ENIs for 12 pods", report.enis.len());
    let tied = |eni: &EniView| eni.attachment.as_ref().is_some_and(|at| at.delete_on_termination);
    eventually("two ENIs in EC2, both tied to the instance", || {
        ec2.enis().len() == 2 && ec2.enis().iter().all(tied)
    })
}

fn not_attachable() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "2")])?;
    let (ec2, node) = (setting.fabric.ec2(), &setting.node);
    node.wait_for("a full primary ENI", |report| report.addresses.free == 9)?;
    ec2.fault_next(Action::AttachNetworkInterface, 1, Fault::error("AttachmentLimitExceeded", 400));

    let pods = setting.pods(0..12)?;

    setting.accounts_for(&pods)?;
    eventually("two ENIs in EC2", || ec2.enis().len() == 2)
}

fn unassigned_meanwhile() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "1")])?;
    let pods = setting.pods(0..2)?;
    let held: BTreeSet<_> = pods.iter().filter_map(|pod| pod.address).collect();
    let eni = setting.node.report()?.enis[0].id.clone();
    setting.node.kill_daemon();
    let view = setting.fabric.ec2().eni(&eni);
    let free = view.map(|eni| eni.secondary).unwrap_or_default();
    let taken: Vec<_> = free.into_iter().filter(|address| !held.contains(address)).take(4).collect();
    ensure!(taken.len() == 4, "only {} free addresses", taken.len());
    // Somebody else gets them, so that they cannot come back.
    let refused = |error| LabError::Otherwise(format!("EC2 refuses: {error}"));
    setting.fabric.ec2().unassign(&eni, &taken, &[]).map_err(refused)?;
    setting.fabric.ec2().occupy(setting.fabric.subnet(), &taken).map_err(refused)?;

    setting.node.start_daemon(&[("MAX_ENI", "1")])?;
    setting.node.wait_ready()?;
    let mut all = pods;
    all.extend(setting.pods(2..8)?);

    let given: Vec<_> = all.iter().filter_map(|pod| pod.address).filter(|a| taken.contains(a)).collect();
    ensure!(given.is_empty(), "{given:?} are not the node's any more");
    let _echo = Echo::start(setting.fabric.second())?;
    for pod in &all {
        let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    setting.accounts_for(&all)?;
    Ok(())
}

fn detached_meanwhile() -> Outcome {
    let setting = Setting::start(&[])?;
    let mut pods = setting.pods(0..1)?;
    let report = setting.node.wait_for("a second ENI", |report| report.enis.len() == 2)?;
    let lost = report.enis[1].id.clone();
    setting.node.kill_daemon();
    let refused = |error| LabError::Otherwise(format!("EC2 refuses: {error}"));
    setting.fabric.ec2().operator_detach(&lost).map_err(refused)?;
    setting.fabric.ec2().operator_delete(&lost).map_err(refused)?;

    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;
    pods.extend(setting.pods(1..12)?);

    let report = setting.accounts_for(&pods)?;
    ensure!(report.enis.iter().all(|eni| eni.id != lost), "the lost ENI is still in the books");
    let _echo = Echo::start(setting.fabric.second())?;
    for pod in &pods {
        let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    setting.fabric.troubles()
}

fn lagging() -> Outcome {
    let setting = Setting::start(&[])?;
    setting.fabric.ec2().tune(|config| {
        config.describe_lag = Duration::from_secs(2);
        config.imds_lag = Duration::from_secs(2);
        config.attach_delay = Duration::from_millis(500);
    });
    let pods = setting.pods(0..20)?;
    setting.accounts_for(&pods)?;
    let _echo = Echo::start(setting.fabric.second())?;
    for pod in &pods {
        let seen = ask(&pod.netns, SECOND_CIDR_HOST)?;
        ensure!(seen == pod.address, "{} is seen as {seen:?}", pod.name);
    }
    Ok(())
}

fn started_in_the_dark() -> Outcome {
    let setting = Setting::start(&[("MINIMUM_IP_TARGET", "14"), ("WARM_IP_TARGET", "1")])?;
    setting.node.wait_for("addresses on two ENIs", |report| report.addresses.total() >= 14)?;
    let mut pods = setting.pods(0..2)?;
    setting.node.kill_daemon();
    setting.fabric.ec2().set_weather(Weather::Unreachable);
    setting.node.imds().set_weather(ImdsWeather::Unavailable);
    setting.fabric.ec2().clear_calls();
    setting.node.start_daemon(&[])?;
    setting.node.wait_listening()?;
    // By what the daemon before knew.
    let from_memory = |report: &Report| {
        let says = |line: &String| line.contains("what was known before this start");
        report.not_ready.is_empty() && report.cloud.iter().any(says)
    };
    setting.node.wait_for("a node that serves without anybody's word", from_memory)?;
    setting.accounts_for(&pods)?;
    // On both ENIs.
    pods.extend(setting.pods(2..11)?);
    pods.swap_remove(1).del(&setting.node)?;
    let checked = pods[2].call(&setting.node, "CHECK")?;
    ensure!(checked.success, "CHECK says {}", checked.stdout);
    let report = setting.accounts_for(&pods)?;
    ensure!(report.addresses.cooling == 1, "{:?}", report.addresses);
    reach(&setting, &pods)?;
    let calls = setting.fabric.ec2().calls();
    ensure!(calls.is_empty(), "EC2 was asked: {calls:?}");

    setting.fabric.ec2().set_weather(Weather::Fair);
    setting.node.imds().set_weather(ImdsWeather::Fair);
    setting.node.wait_for("a node that knows anew", |report| report.cloud.is_empty())?;
    pods.extend(setting.pods(11..14)?);
    setting.accounts_for(&pods)?;
    Ok(())
}

fn no_daemon() -> Outcome {
    let setting = Setting::start(&[])?;
    setting.node.kill_daemon();
    let mut pod = Pod::create("early", "early")?;
    let answer = pod.call(&setting.node, "ADD")?;
    ensure!(!answer.success && answer.stdout["code"] == 11, "ADD without a daemon: {}", answer.stdout);
    let links = pod.netns.read("ip -o link")?;
    ensure!(links.lines().count() == 1, "the pod has {links}");

    setting.node.start_daemon(&[])?;
    setting.node.wait_ready()?;

    pod.add(&setting.node)?;
    setting.accounts_for(&[pod])?;
    Ok(())
}

/// Everything of the kernel that pods may have changed on the node.
fn kernel(node: &Node) -> Result<String, LabError> {
    let mut text = String::new();
    for line in [
        "ip -o link",
        "ip rule",
        "ip route show table all",
        "ip neigh show nud permanent",
        "nft -s list ruleset",
    ] {
        let mut lines: Vec<String> = node.netns().read(line)?.lines().map(str::to_owned).collect();
        lines.sort();
        text.push_str(&lines.join("\n"));
        text.push('\n');
    }
    Ok(text)
}

fn nothing_left() -> Outcome {
    let setting = Setting::start(&[("MAX_ENI", "1")])?;
    let node = &setting.node;
    for mut pod in setting.pods(0..1)? {
        pod.del(node)?;
    }
    let before = kernel(node)?;
    for mut pod in setting.pods(0..8)? {
        pod.del(node)?;
    }
    // A DEL leaves the link, already of no use, to a sweep soon after.
    let left = || -> Result<Vec<String>, LabError> {
        let after = kernel(node)?;
        Ok(after.lines().filter(|line| !before.contains(line)).map(str::to_owned).collect())
    };
    let gone = eventually("a clean node", || left().is_ok_and(|left| left.is_empty()));
    gone.map_err(|error| LabError::Otherwise(format!("{error}, left behind: {:#?}", left().ok())))?;
    let report = setting.accounts_for(&[])?;
    ensure!(report.addresses.cooling == 9, "{} addresses cool", report.addresses.cooling);
    Ok(())
}
