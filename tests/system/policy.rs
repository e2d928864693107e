//! gRPC with the neighbours on the node: the network policy agent, health probes, and a plugin of the Go version.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipamd::grpc::messages::{
    AddNetworkReply, AddNetworkRequest, Allocation, DelNetworkReply, DelNetworkRequest, Empty,
    HealthCheckRequest, HealthCheckResponse, PolicyConfigReply, SERVING,
};
use ipamd::grpc::{method, socket_in};
use lab::LabError;
use lab::grpc::Client;
use lab::node::Node;
use lab::policy_agent::{AgentWeather, PolicyAgent};
use lab::runtime::{Answer, Pod};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::support::{Outcome, Setting, Test, ensure, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_starts_once_its_policies_are_enforced_and_they_go_with_it", enforced),
    ("an_agent_that_refuses_a_pod_fails_its_add_and_nothing_of_it_stays", refused),
    ("an_absent_agent_fails_adds_with_its_reason_and_no_del", absent),
    ("a_del_does_not_wait_for_an_agent_that_hangs_and_is_heard_after_the_add", hanging),
    ("the_agent_and_probes_find_what_they_ask_for_on_the_grpc_socket", served),
    ("who_asks_the_grpc_socket_what_it_serves_is_told", reflected),
    ("the_agent_is_told_of_several_interfaces_where_pods_have_them", several_interfaces),
    ("a_plugin_of_the_go_version_is_refused_its_add_and_served_its_del", go_plugin),
    ("hostile_clients_of_the_grpc_socket_harm_nobody", hostile_clients),
];

/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);

fn with_policies(mode: &str) -> Result<(Setting, PolicyAgent), LabError> {
    let setting = Setting::start(&[("NETWORK_POLICY_ENFORCING_MODE", mode)])?;
    let agent = PolicyAgent::start(&setting.node)?;
    Ok((setting, agent))
}

fn client(node: &Node) -> Result<Client, LabError> {
    Client::new(socket_in(node.run_dir())).map_err(LabError::doing("make a gRPC client"))
}

fn said(status: Status) -> LabError {
    LabError::Otherwise(format!("gRPC: {status}"))
}

/// An ADD that must fail for this reason.
fn fails(pod: &Pod, node: &Node, reason: &str) -> Result<Answer, LabError> {
    let answer = pod.call(node, "ADD")?;
    let told = answer.stdout.to_string();
    ensure!(!answer.success && answer.stdout["code"] == 11 && told.contains(reason), "ADD: {told}");
    ensure!(told.contains("add cmd: failed to setup network policy"), "ADD: {told}");
    Ok(answer)
}

fn enforced() -> Outcome {
    let (setting, agent) = with_policies("Standard")?;
    let mut pods = setting.pods(0..2)?;
    let enforced: Vec<_> = agent.enforced().into_iter().collect();
    let standard = |name: &str| (format!("default/{name}"), "Standard".to_owned());
    ensure!(enforced == [standard("pod-0"), standard("pod-1")], "the agent enforces {enforced:?}");
    setting.accounts_for(&pods)?;

    for pod in &mut pods {
        pod.del(&setting.node)?;
        // A runtime says it twice; the agent hears it once.
        pod.del(&setting.node)?;
    }
    eventually("that the agent forgets the pods", || agent.enforced().is_empty())?;
    ensure!(agent.calls() == 4, "{} calls", agent.calls());
    let metrics = setting.node.metrics()?;
    let counted = "ipamd_policy_agent_calls_total{action=\"EnforceNpToPod\",reason=\"none\"} 2";
    ensure!(metrics.contains(counted), "{metrics}");
    setting.accounts_for(&[]).map(drop)
}

fn refused() -> Outcome {
    let (setting, agent) = with_policies("strict")?;
    let mut pod = Pod::create("pod-0", "sandbox0")?;
    for weather in [AgentWeather::Refuses, AgentWeather::Fails] {
        agent.set_weather(weather);
        fails(&pod, &setting.node, "policy-refused")?;
        setting.accounts_for(&[])?;
        let unwired = |words: &str| setting.node.netns().read(words).is_ok_and(|told| !told.contains("eni"));
        // The kernel takes links away when it has nothing else to do.
        eventually("that no link stays", || unwired("ip -o link show type veth"))?;
        ensure!(unwired("ip route show table all"), "a route of the pod stays");
    }

    agent.set_weather(AgentWeather::Fair);
    pod.add(&setting.node)?;
    ensure!(agent.enforced().contains_key("default/pod-0"), "{:?}", agent.enforced());
    setting.accounts_for(&[pod]).map(drop)
}

fn absent() -> Outcome {
    let (setting, agent) = with_policies("strict")?;
    let mut pods = setting.pods(0..1)?;
    drop(agent);
    let mut late = Pod::create("pod-1", "sandbox1")?;
    fails(&late, &setting.node, "policy-agent-unreachable")?;
    setting.accounts_for(&pods)?;

    pods[0].del(&setting.node)?;
    setting.accounts_for(&[])?;

    // One that comes back is found without a restart of ours.
    let agent = PolicyAgent::start(&setting.node)?;
    late.add(&setting.node)?;
    ensure!(agent.enforced().contains_key("default/pod-1"), "{:?}", agent.enforced());
    Ok(())
}

fn hanging() -> Outcome {
    let (setting, agent) = with_policies("strict")?;
    agent.set_weather(AgentWeather::Hangs);
    let mut pod = Pod::create("pod-0", "sandbox0")?;
    let again = Pod::create("pod-0", "sandbox0b")?;
    let added = std::thread::scope(|scope| {
        let adding = scope.spawn(|| again.call(&setting.node, "ADD"));
        eventually("that the agent is asked", || agent.calls() == 1)?;
        // The same sandbox, by another hand: the agent has not answered, and will not before this has come back.
        pod.container_id.clone_from(&again.container_id);
        pod.del(&setting.node)?;
        adding.join().map_err(|_panic| LabError::Otherwise("the ADD panicked".to_owned()))?
    })?;
    ensure!(!added.success && added.stdout.to_string().contains("superseded"), "ADD: {}", added.stdout);
    ensure!(agent.calls() == 1, "the agent hears of the DEL before the ADD is over: {} calls", agent.calls());

    agent.set_weather(AgentWeather::Fair);
    eventually("that the agent hears of the DEL", || agent.calls() == 2)?;
    eventually("that the agent forgets the pod", || agent.enforced().is_empty())?;
    setting.accounts_for(&[]).map(drop)
}

fn served() -> Outcome {
    let setting = Setting::start(&[("NETWORK_POLICY_ENFORCING_MODE", "strict")])?;
    let client = client(&setting.node)?;
    for service in ["", "grpc.health.v1.aws-node"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let health: HealthCheckResponse = client.call(method::HEALTH_CHECK, request, CALL).map_err(said)?;
        ensure!(health.status == SERVING, "{service:?} is {}", health.status);
    }
    let request = HealthCheckRequest { service: "another".to_owned() };
    let health: Result<HealthCheckResponse, Status> = client.call(method::HEALTH_CHECK, request, CALL);
    ensure!(health.as_ref().is_err_and(|s| s.code() == Code::NotFound), "{health:?}");

    let got: PolicyConfigReply = client.call(method::POLICY_CONFIGS, Empty {}, CALL).map_err(said)?;
    let want = PolicyConfigReply {
        mode: "strict".to_owned(),
        multi_nic: false,
        node_ipv4: setting.node.instance().address.to_string(),
        node_ipv6: got.node_ipv6.clone(),
        instance_id: setting.node.instance().id.to_string(),
        region: "eu-lab-1".to_owned(),
    };
    ensure!(got == want, "{got:?} instead of {want:?}");

    let none: Result<Empty, Status> = client.call("/rpc.NPBackend/EnforceNpToPod", Empty {}, CALL);
    ensure!(none.as_ref().is_err_and(|s| s.code() == Code::Unimplemented), "{none:?}");
    let socket = std::fs::metadata(socket_in(setting.node.run_dir()));
    let mode = socket.map_err(LabError::doing("look at the socket"))?.permissions().mode();
    ensure!(mode & 0o777 == 0o660, "the socket's mode is {mode:o}");
    Ok(())
}

/// As `grpcurl` asks: for the services, and for the file that describes one of them.
fn reflected() -> Outcome {
    let setting = Setting::start(&[])?;
    let client = client(&setting.node)?;
    let ask = |path: &str, message: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let answer: ServerReflectionResponse = client.call(path, request, CALL).map_err(said)?;
        answer.message_response.ok_or_else(|| LabError::Otherwise("an empty answer".to_owned()))
    };

    let unexpected = |what: &str| LabError::Otherwise(format!("asked for {what}, it tells something else"));
    for path in [method::REFLECTION, &method::REFLECTION.replace(".v1.", ".v1alpha.")] {
        let list = MessageRequest::ListServices(String::new());
        let MessageResponse::ListServicesResponse(told) = ask(path, list)? else {
            return Err(unexpected("services"));
        };
        let names: Vec<&str> = told.service.iter().map(|service| service.name.as_str()).collect();
        for service in ["rpc.CNIBackend", "rpc.ConfigServerBackend", "grpc.health.v1.Health"] {
            ensure!(names.contains(&service), "{service} is not among {names:?}");
        }
        let file = MessageRequest::FileContainingSymbol("rpc.CNIBackend".to_owned());
        let MessageResponse::FileDescriptorResponse(told) = ask(path, file)? else {
            return Err(unexpected("a file"));
        };
        let has_field = |file: &Vec<u8>| String::from_utf8_lossy(file).contains("K8S_POD_INFRA_CONTAINER_ID");
        ensure!(told.file_descriptor_proto.iter().any(has_field), "the file does not tell the fields");
        let agents = MessageRequest::FileContainingSymbol("rpc.NPBackend".to_owned());
        let answer = ask(path, agents);
        ensure!(answer.is_err(), "what only the agent serves is told: {answer:?}");
        let long = ask(path, MessageRequest::FileContainingSymbol("x".repeat(2048)));
        ensure!(long.is_err(), "a long name is read: {long:?}");
    }
    Ok(())
}

fn several_interfaces() -> Outcome {
    let settings = [
        ("NETWORK_POLICY_ENFORCING_MODE", "strict"),
        ("ENABLE_MULTI_NIC", "true"),
        ("WARM_IP_TARGET", "2"),
        ("IPAMD_ADD_TIMEOUT_SECONDS", "20"),
    ];
    let setting = Setting::start_on("c6in.32xlarge", &settings)?;
    let agent = PolicyAgent::start(&setting.node)?;
    let asked = client(&setting.node)?.call(method::POLICY_CONFIGS, Empty {}, CALL);
    let got: PolicyConfigReply = asked.map_err(said)?;
    ensure!(got.multi_nic, "{got:?}");

    let mut many = Pod { multi_nic: true, ..Pod::create("many", "many")? };
    let addresses = many.add_any(&setting.node)?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    let _one = setting.pods(0..1)?;
    let told = ["default/many", "default/pod-0"].map(|pod| agent.interfaces_of(pod));
    ensure!(told == [Some(2), Some(1)], "the agent is attached to {told:?} interfaces");
    many.del(&setting.node)?;
    eventually("that the agent forgets the pod", || agent.interfaces_of("default/many").is_none())
}

fn del_of(pod: &Pod) -> DelNetworkRequest {
    DelNetworkRequest {
        pod_name: pod.name.clone(),
        pod_namespace: "default".to_owned(),
        reason: "PodDeleted".to_owned(),
        if_name: "eth0".to_owned(),
        network_name: "aws-cni".to_owned(),
        container_id: pod.container_id.clone(),
        client_version: String::new(),
    }
}

fn go_plugin() -> Outcome {
    let setting = Setting::start(&[])?;
    let client = client(&setting.node)?;
    let pods = setting.pods(0..1)?;
    let pod = &pods[0];

    let add = AddNetworkRequest {
        pod_name: "other".to_owned(),
        pod_namespace: "default".to_owned(),
        netns: pod.netns.path().display().to_string(),
        if_name: "eth0".to_owned(),
        network_name: "aws-cni".to_owned(),
        container_id: "other".to_owned(),
        client_version: String::new(),
    };
    let added: Result<AddNetworkReply, Status> = client.call(method::ADD_NETWORK, add, CALL);
    let refused = |s: &Status| s.code() == Code::FailedPrecondition && s.message().contains("[bad-input]");
    ensure!(added.as_ref().is_err_and(refused), "{added:?}");
    setting.accounts_for(&pods)?;

    let deleted: DelNetworkReply = client.call(method::DEL_NETWORK, del_of(pod), CALL).map_err(said)?;
    let ipv4 = pod.address.map(|address| address.to_string()).unwrap_or_default();
    let want = Allocation { ipv4, ipv6: String::new(), device: 0, table: 254 };
    ensure!(deleted.success && deleted.addresses == [want], "{deleted:?}");
    ensure!(deleted.policy_mode.is_empty(), "{deleted:?}");
    setting.accounts_for(&[])?;

    let again: Result<DelNetworkReply, Status> = client.call(method::DEL_NETWORK, del_of(pod), CALL);
    ensure!(again.as_ref().is_err_and(|s| s.message().contains("datastore: unknown pod")), "{again:?}");
    let hostile = DelNetworkRequest { container_id: "../../etc".to_owned(), ..del_of(pod) };
    let hostile: Result<DelNetworkReply, Status> = client.call(method::DEL_NETWORK, hostile, CALL);
    ensure!(hostile.as_ref().is_err_and(|s| s.message().contains("[bad-input]")), "{hostile:?}");
    Ok(())
}

fn hostile_clients() -> Outcome {
    let setting = Setting::start(&[])?;
    let socket = socket_in(setting.node.run_dir());
    let connect = || UnixStream::connect(&socket).map_err(LabError::doing("connect"));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    // A frame longer than is allowed, one of a kind that does not exist on a stream that does not, and half of one.
    let frames = [
        &b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"[..],
        b"\x00\x00\x04\xee\xff\x7f\xff\xff\xff....",
        b"\x00\x00",
    ];
    for frame in frames {
        let mut stream = connect()?;
        // It may have hung up already.
        drop(stream.write_all(&[preface, frame].concat()));
    }
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xff\xff\xff\xff", b""] {
        drop(connect()?.write_all(garbage));
    }
    let _idle: Vec<UnixStream> = (0..30).map(|_| connect()).collect::<Result<_, _>>()?;

    let client = client(&setting.node)?;
    let long = HealthCheckRequest { service: "x".repeat(1 << 20) };
    let long: Result<HealthCheckResponse, Status> = client.call(method::HEALTH_CHECK, long, CALL);
    ensure!(long.as_ref().is_err_and(|s| s.code() == Code::OutOfRange), "{long:?}");
    let request = HealthCheckRequest::default();
    let health: HealthCheckResponse = client.call(method::HEALTH_CHECK, request, CALL).map_err(said)?;
    ensure!(health.status == SERVING, "{health:?}");
    let pods = setting.pods(0..1)?;
    setting.accounts_for(&pods).map(drop)
}
