//! Introspection over HTTP: the Go version's shapes, the plan, liveness and readiness.

use std::os::unix::net::UnixStream;

use lab::LabError;
use lab::imds::ImdsWeather;
use lab::node::{Node, get_over};
use lab::runtime::Pod;
use serde_json::{Value, json};

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("support_scripts_find_what_the_go_version_tells", shapes),
    ("a_node_that_does_not_know_itself_lives_and_is_not_ready_and_says_why", not_ready),
    ("the_trace_of_a_runtimes_call_is_in_the_daemons_log_of_it", traced),
    ("the_liveness_probe_holds_while_the_owner_answers_whatever_the_settings", alive),
    ("introspection_moves_to_a_socket_or_goes_away_as_told", elsewhere),
];

fn asked(node: &Node, path: &str) -> Result<Value, LabError> {
    let (status, body) = node.introspect(path)?;
    ensure!(status == 200, "{path} is answered with {status}: {body}");
    serde_json::from_str(&body).map_err(|error| LabError::Otherwise(format!("{path}: {error}: {body}")))
}

fn names(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn shapes() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "3")])?;
    let node = &setting.node;
    let pods = setting.pods(0..1)?;
    // Answers are compared with one another.
    node.wait_for("the pool to be at rest", |report| report.addresses.free == 3)?;

    let enis = asked(node, "/v1/enis")?;
    ensure!(names(&enis["0"]) == ["AssignedIPs", "ENIs", "TotalIPs"], "{enis}");
    ensure!(enis["0"]["AssignedIPs"] == 1, "{enis}");
    let report = node.report()?;
    let eni = &enis["0"]["ENIs"][report.enis[0].id.as_str()];
    let want = [
        "AvailableIPv4Cidrs",
        "DeviceNumber",
        "ID",
        "IPv6Cidrs",
        "IsEFA",
        "IsExcludedForPodIPs",
        "IsPrimary",
        "IsTrunk",
        "RouteTableID",
        "SubnetID",
    ];
    ensure!(names(eni) == want, "{eni}");
    ensure!(eni["IsPrimary"] == true && eni["RouteTableID"] == 254, "{eni}");
    let address = pods[0].address.map(|address| address.to_string()).unwrap_or_default();
    let held = &eni["AvailableIPv4Cidrs"][format!("{address}/32")]["IPAddresses"][&address];
    ensure!(held["IPAMMetadata"]["k8sPodName"] == "pod-0" && held["IPAMKey"]["containerID"] == "", "{held}");

    ensure!(asked(node, "/v1/eni-configs")? == "default", "no default ENIConfig");
    let daemon = asked(node, "/v1/ipamd-env-settings")?;
    ensure!(daemon["WARM_IP_TARGET"] == 3 && daemon["WARM_ENI_TARGET"] == 1, "{daemon}");
    ensure!(asked(node, "/v1/networkutils-env-settings")?["AWS_VPC_ENI_MTU"] == 9001, "not the MTU");
    let plan = asked(node, "/v1/plan")?;
    ensure!(plan["ready"] == true && plan["plan"] == json!(report.plan), "{plan}");
    let status = asked(node, "/v1/status")?;
    ensure!(status["enis"] == enis && status["report"]["plan"] == plan["plan"], "{status}");
    ensure!(status["report"]["pods"][0]["pod"]["name"] == "pod-0", "{status}");
    ensure!(status["report"]["pods"][0]["sandbox"].is_null(), "the sandbox is told: {status}");
    ensure!(report.plan.iter().any(|line| !line.is_empty()), "the plan does not explain itself");

    let commands = asked(node, "/v1/pods")?;
    let commands = commands["AvailableCommands"].as_array().cloned().unwrap_or_default();
    ensure!(commands.contains(&json!("/v1/enis")) && commands.contains(&json!("/v1/plan")), "{commands:?}");
    for path in ["/livez", "/readyz"] {
        let answer = node.introspect(path)?;
        ensure!(answer == (200, "ok\n".to_owned()), "{path}: {answer:?}");
    }
    Ok(())
}

fn not_ready() -> Outcome {
    let setting = Setting::start(&[])?;
    let node = &setting.node;
    node.stop_daemon()?;
    node.imds().set_weather(ImdsWeather::Unavailable);
    node.start_daemon(&[])?;
    node.wait_listening()?;

    let (status, body) = node.introspect("/readyz")?;
    ensure!(status == 503 && body.contains("waits for who this instance is"), "{status} {body}");
    let answer = node.introspect("/livez")?;
    ensure!(answer.0 == 200, "{answer:?}");
    ensure!(asked(node, "/v1/plan")?["ready"] == false, "ready without knowing itself");

    node.imds().set_weather(ImdsWeather::Fair);
    node.wait_ready()?;
    let answer = node.introspect("/readyz")?;
    ensure!(answer.0 == 200, "{answer:?}");
    Ok(())
}

fn alive() -> Outcome {
    let setting = Setting::start(&[("DISABLE_INTROSPECTION", "true")])?;
    let node = &setting.node;
    let probe = |words: &[&str]| Ok::<_, LabError>(node.tool(words, &[])?.status.success());
    ensure!(probe(&["status", "--live"])?, "a daemon that is ready is not alive");

    node.stop_daemon()?;
    ensure!(!probe(&["status", "--live"])?, "a daemon that has ended is alive");
    node.imds().set_weather(ImdsWeather::Unavailable);
    node.start_daemon(&[("DISABLE_INTROSPECTION", "true")])?;
    node.wait_listening()?;
    ensure!(probe(&["status", "--live"])?, "a daemon that only waits would be killed");
    ensure!(!probe(&["status"])?, "ready without knowing itself");
    Ok(())
}

fn traced() -> Outcome {
    let setting = Setting::start(&[("WARM_IP_TARGET", "3")])?;
    let node = &setting.node;
    let mut pod = Pod::create("traced", "traced-1")?;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let told = |verb: &str| -> Result<bool, LabError> {
        let words = [format!("trace_id={id}"), format!("verb=\"{verb}\""), "outcome=\"done\"".to_owned()];
        Ok(node.told()?.lines().any(|line| words.iter().all(|word| line.contains(word))))
    };

    pod.trace = Some(format!("00-{id}-00f067aa0ba902b7-01"));
    pod.add(node)?;
    ensure!(told("add")?, "no line of the ADD with its trace: {}", node.log_tail());
    // What is no trace is no reason to fail, and nothing is traced.
    pod.trace = Some(format!("00-{id}-nonsense"));
    pod.del(node)?;
    ensure!(!told("del")?, "a malformed trace is in the log: {}", node.log_tail());
    Ok(())
}

fn elsewhere() -> Outcome {
    let path = "/run/lab/introspection.sock";
    let setting = Setting::start(&[("INTROSPECTION_BIND_ADDRESS", &format!("unix:{path}"))])?;
    let over_socket = || get_over(UnixStream::connect(path)?, "/v1/enis");
    let (status, body) = over_socket().map_err(LabError::doing("ask over the socket"))?;
    ensure!(status == 200 && body.starts_with("{\"0\":"), "{status} {body}");
    ensure!(setting.node.introspect("/livez").is_err(), "the port answers too");

    setting.node.stop_daemon()?;
    setting.node.start_daemon(&[("DISABLE_INTROSPECTION", "true")])?;
    setting.node.wait_ready()?;
    ensure!(setting.node.introspect("/livez").is_err(), "the port answers though it is disabled");
    ensure!(over_socket().is_err(), "a socket of before answers");
    Ok(())
}
