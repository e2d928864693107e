//! The node object: what it changes on a node, and that nothing waits for it.

use std::time::Duration;

use lab::LabError;
use lab::kube_api::{ApiWeather, KubeApi};
use lab::node::Node;
use serde_json::{Value, json};

use crate::support::{Outcome, Setting, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_cordoned_node_is_left_alone_until_it_is_uncordoned", cordon),
    ("an_annotation_of_the_node_changes_its_warm_target_while_it_runs", annotation),
    ("a_node_without_cpu_for_another_pod_keeps_two_addresses_to_spare", full),
    ("pods_are_served_without_the_api_server_which_is_heard_when_it_comes", away),
    ("an_api_server_that_takes_connections_and_says_nothing_is_a_trouble_and_no_end", silent),
    ("a_list_of_a_server_that_lags_takes_nothing_back_that_was_heard", lagging),
    ("a_bookmark_spares_a_list_after_a_watch_has_ended", bookmarked),
    ("a_proxy_for_aws_keeps_nobody_from_the_api_server", proxied),
    ("a_watch_whose_place_is_gone_lists_again_and_garbage_changes_nothing", gone_and_garbage),
];

pub(crate) const NAME: &str = "ip-10-0-0-4.lab.internal";

/// A node, an API server, and the daemon with these settings beside those that lead to it.
pub(crate) struct Stage {
    // Before what it is part of.
    pub(crate) api: KubeApi,
    pub(crate) setting: Setting,
    settings: Vec<(String, String)>,
}

impl Stage {
    fn set(settings: &[(&str, &str)], before: impl FnOnce(&KubeApi)) -> Result<Self, LabError> {
        let stage = Self::begin(settings, |api, _| {
            before(api);
            Ok(())
        })?;
        stage.node().wait_ready()?;
        Ok(stage)
    }

    /// The same without waiting until pods could be served; `before` runs beside a daemon that knows no cluster.
    pub(crate) fn begin(
        settings: &[(&str, &str)],
        before: impl FnOnce(&KubeApi, &Setting) -> Outcome,
    ) -> Result<Self, LabError> {
        let setting = Setting::start(&[])?;
        let (api, kubeconfig) = setting.node.kube_api()?;
        before(&api, &setting)?;
        let kubeconfig = kubeconfig.display().to_string();
        let own =
            [("IPAMD_KUBECONFIG", kubeconfig.as_str()), ("MY_NODE_NAME", NAME), ("WARM_IP_TARGET", "2")];
        let settings = own.iter().chain(settings);
        let settings = settings.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let stage = Self { api, setting, settings };
        stage.restart()?;
        Ok(stage)
    }

    /// Ends the daemon, and starts it with the settings.
    pub(crate) fn restart(&self) -> Outcome {
        self.restart_with(&[])
    }

    /// The same with some settings changed.
    pub(crate) fn restart_with(&self, changed: &[(&str, &str)]) -> Outcome {
        self.node().stop_daemon()?;
        let kept = self.settings.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let kept = kept.filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
        self.node().start_daemon(&kept.chain(changed.iter().copied()).collect::<Vec<_>>())?;
        self.node().wait_listening()
    }

    pub(crate) fn node(&self) -> &Node {
        &self.setting.node
    }

    fn put(&self, annotations: &Value, spec: &Value) {
        put(&self.api, annotations, spec);
    }

    /// Waits until the status says this of the cluster.
    pub(crate) fn hears(&self, words: &str) -> Outcome {
        let says = |line: &String| line.contains(words);
        self.node().wait_for(words, |report| report.cluster.iter().any(says)).map(drop)
    }
}

fn put(api: &KubeApi, annotations: &Value, spec: &Value) {
    api.put_node(NAME, annotations, spec, &json!({"allocatable": {"pods": "29"}}));
    // Nobody else's business.
    api.put_node("another", &json!({"vpc.amazonaws.com/warm-ip-target": "9"}), &json!({}), &json!({}));
}

fn cordon() -> Outcome {
    let cordoned = json!({"unschedulable": true, "taints": [
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]});
    let stage = Stage::set(&[("MINIMUM_IP_TARGET", "12")], |api| put(api, &json!({}), &cordoned))?;
    stage.hears("cordoned")?;
    let before = stage.node().report()?.addresses.total();

    // Those who come all the same are served.
    let mut pods = stage.setting.pods(0..before + 1)?;
    let report = stage.node().report()?;
    ensure!(report.addresses.total() == before + 1, "{before} addresses have become {:?}", report.addresses);
    pods.truncate(0);

    stage.put(&json!({}), &json!({}));
    stage.hears("schedulable, 29 pods at most")?;
    stage.node().wait_for("the target", |report| report.addresses.total() >= 12).map(drop)
}

fn annotation() -> Outcome {
    let stage = Stage::set(&[], |api| put(api, &json!({}), &json!({})))?;
    stage.hears("29 pods at most")?;
    stage.put(&json!({"vpc.amazonaws.com/minimum-ip-target": "14"}), &json!({}));
    stage.node().wait_for("fourteen", |report| report.addresses.total() >= 14)?;

    stage.put(&json!({"vpc.amazonaws.com/minimum-ip-target": "lots"}), &json!({}));
    stage.hears("minimum-ip-target is \"lots\"")
}

/// `asks.md` A2 (c).
fn full() -> Outcome {
    // An empty setting is none.
    let stage =
        Stage::set(&[("WARM_ENI_TARGET", ""), ("WARM_IP_TARGET", ""), ("IP_COOLDOWN_PERIOD", "1")], |api| {
            api.put_node(
                NAME,
                &json!({}),
                &json!({}),
                &json!({"allocatable": {"pods": "29", "cpu": "1930m"}}),
            );
            api.put_busy_pod("small", NAME, "100m");
            api.put_busy_pod("elsewhere", "another", "64");
        })?;
    let pods = stage.setting.pods(0..3)?;
    stage.node().wait_for("what a quiet node keeps", |report| report.addresses.free > 4)?;

    stage.api.put_busy_pod("large", NAME, "1.75");
    stage.hears("without CPU for another pod")?;
    stage.node().wait_for("two to spare", |report| report.addresses.free <= 2)?;
    stage.setting.accounts_for(&pods).map(drop)
}

fn away() -> Outcome {
    let stage = Stage::set(&[], |api| api.set_weather(ApiWeather::Away))?;
    let pods = stage.setting.pods(0..3)?;
    stage.setting.accounts_for(&pods)?;
    stage.hears("the node object is not known")?;

    stage.put(&json!({"vpc.amazonaws.com/minimum-ip-target": "15"}), &json!({}));
    stage.api.set_weather(ApiWeather::Slow(Duration::from_millis(200)));
    stage.hears("schedulable")?;
    stage.node().wait_for("fifteen", |report| report.addresses.total() >= 15).map(drop)
}

fn silent() -> Outcome {
    let stage = Stage::set(&[], |api| {
        put(api, &json!({}), &json!({}));
        api.set_weather(ApiWeather::Silent);
    })?;
    let pods = stage.setting.pods(0..3)?;
    stage.setting.accounts_for(&pods)?;
    stage.hears("the API server does not answer")?;

    // Who waits for an answer still does, until it gives up after 65 s: nobody tells it that the server is another one now.
    stage.api.set_weather(ApiWeather::Fair);
    let says = |line: &String| line.contains("schedulable");
    stage.node().wait_for_long("schedulable", |report| report.cluster.iter().any(says)).map(drop)
}

fn proxied() -> Outcome {
    // Nobody listens there; the lab's EC2 speaks plain HTTP, which goes by no proxy.
    let proxy = [("HTTPS_PROXY", "http://127.0.0.1:1")];
    let stage = Stage::set(&proxy, |api| put(api, &json!({}), &json!({})))?;
    stage.hears("29 pods at most")
}

fn gone_and_garbage() -> Outcome {
    let stage = Stage::set(&[], |api| put(api, &json!({}), &json!({})))?;
    stage.hears("schedulable")?;
    let (lists, _) = stage.api.asked();
    stage.api.forget();
    stage.put(&json!({}), &json!({"unschedulable": true}));
    stage.hears("cordoned")?;
    ensure!(stage.api.asked().0 > lists, "it was not asked for a list again");

    stage.api.set_weather(ApiWeather::Garbage("<html>not an API server</html>".to_owned()));
    stage.node().wait_for("a trouble", |report| report.cluster.len() == 2)?;
    let report = stage.node().report()?;
    ensure!(report.cluster[0].starts_with("cordoned"), "what was known is lost: {:?}", report.cluster);
    let pods = stage.setting.pods(0..2)?;
    stage.setting.accounts_for(&pods)?;
    // All is well again, although nothing has changed.
    stage.api.set_weather(ApiWeather::Fair);
    stage.node().wait_for("the end of the trouble", |report| report.cluster.len() == 1)?;
    let log = stage.node().log_tail();
    let told = log.matches("does not tell the node object").count();
    ensure!(told == 1 && !log.contains("kube_"), "the trouble is told {told} times:\n{log}");
    stage.put(&json!({}), &json!({}));
    stage.hears("schedulable")?;
    stage.api.delete_node(NAME);
    stage.hears("there is no node object")
}

fn lagging() -> Outcome {
    let stage = Stage::set(&[], |api| put(api, &json!({}), &json!({})))?;
    stage.hears("schedulable, 29 pods at most")?;
    // Whatever is listed from now on may be of this moment.
    stage.api.lag(true);
    stage.put(&json!({}), &json!({"unschedulable": true}));
    stage.hears("cordoned")?;

    for (change, words) in [(None, "cordoned"), (Some(()), "there is no node object")] {
        if change.is_some() {
            stage.api.delete_node(NAME);
            stage.hears(words)?;
        }
        let (_, watches) = stage.api.asked();
        stage.api.forget();
        // Which begins once the list was told.
        eventually("another watch", || stage.api.asked().1 > watches)?;
        let report = stage.node().report()?;
        let says = report.cluster.iter().any(|line| line.contains(words));
        ensure!(says, "an older truth is believed: {:?}", report.cluster);
        stage.hears(words)?;
    }
    stage.api.lag(false);
    stage.put(&json!({}), &json!({}));
    stage.hears("schedulable, 29 pods at most")
}

fn bookmarked() -> Outcome {
    let stage = Stage::set(&[], |api| put(api, &json!({}), &json!({})))?;
    stage.hears("schedulable")?;
    // The history goes on with what is not the node's business.
    for limit in 1..4 {
        stage.api.put_node(
            "another",
            &json!({}),
            &json!({}),
            &json!({"allocatable": {"pods": limit.to_string()}}),
        );
    }
    let told = stage.api.bookmark();
    eventually("a bookmark", || stage.api.bookmarks() > told)?;
    let (lists, watches) = stage.api.asked();
    stage.api.compact();
    stage.api.cut();
    eventually("another watch", || stage.api.asked().1 > watches)?;

    stage.put(&json!({}), &json!({"unschedulable": true}));
    stage.hears("cordoned")?;
    ensure!(stage.api.asked().0 == lists, "its place was gone, and it listed anew");
    Ok(())
}
