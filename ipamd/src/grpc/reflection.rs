//! What there is on `ipamd.sock`, for those who ask by gRPC server reflection, as `grpcurl` does.
//!
//! Names and numbers are those of the Go version's `rpc.proto`, with the fields that [`super::messages`] leaves out.

use std::convert::Infallible;

use hyper::body::Incoming;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic_reflection::server::{Builder, Error};
use tower::Service;
use tower::util::BoxCloneSyncService;

/// What the paths of its requests begin with.
pub(super) const PATHS: &str = "/grpc.reflection.";
/// The version that everybody had before there was a first; newer clients ask by it where the other is missing.
const OLD_PATHS: &str = "/grpc.reflection.v1alpha.";

/// The longest question, in bytes: a name that is not known comes back with the answer.
const QUESTION_BYTES_MAX: usize = 1024;

const EMPTY: &str = ".google.protobuf.Empty";

/// What a field holds.
enum Kind {
    Text,
    Flag,
    Number,
    /// `rpc.IPAllocationMetadata`.
    Allocation,
    /// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
    State,
}

impl Kind {
    /// Its type, and the full name of that where it is not of protobuf's own.
    const fn described(&self) -> (Type, Option<&'static str>) {
        match self {
            Self::Text => (Type::String, None),
            Self::Flag => (Type::Bool, None),
            Self::Number => (Type::Int32, None),
            Self::Allocation => (Type::Message, Some(".rpc.IPAllocationMetadata")),
            Self::State => (Type::Enum, Some(".grpc.health.v1.HealthCheckResponse.ServingStatus")),
        }
    }
}

/// A field: its name, its number, what it holds, and whether there may be several.
type Field = (&'static str, i32, Kind, Label);
/// A method: its name, what it is asked with and what it answers.
type Method = (&'static str, &'static str, &'static str);

const fn one(name: &'static str, number: i32, kind: Kind) -> Field {
    (name, number, kind, Label::Optional)
}

const fn text(name: &'static str, number: i32) -> Field {
    one(name, number, Kind::Text)
}

const fn many(name: &'static str, number: i32, kind: Kind) -> Field {
    (name, number, kind, Label::Repeated)
}

const MESSAGES: [(&str, &[Field]); 6] = [
    (
        "AddNetworkRequest",
        &[
            text("K8S_POD_NAME", 1),
            text("K8S_POD_NAMESPACE", 2),
            text("K8S_POD_INFRA_CONTAINER_ID", 3),
            text("Netns", 4),
            text("IfName", 5),
            text("NetworkName", 6),
            text("ContainerID", 7),
            text("ClientVersion", 8),
            one("RequiresMultiNICAttachment", 9, Kind::Flag),
        ],
    ),
    (
        "AddNetworkReply",
        &[
            one("Success", 1, Kind::Flag),
            many("IPAllocationMetadata", 2, Kind::Allocation),
            one("UseExternalSNAT", 5, Kind::Flag),
            many("VPCv4CIDRs", 6, Kind::Text),
            one("PodVlanId", 7, Kind::Number),
            text("PodENIMAC", 8),
            text("PodENISubnetGW", 9),
            one("ParentIfIndex", 10, Kind::Number),
            many("VPCv6CIDRs", 12, Kind::Text),
            text("NetworkPolicyMode", 13),
        ],
    ),
    (
        "IPAllocationMetadata",
        &[
            text("IPv4Addr", 1),
            text("IPv6Addr", 2),
            one("DeviceNumber", 3, Kind::Number),
            one("RouteTableId", 4, Kind::Number),
        ],
    ),
    (
        "DelNetworkRequest",
        &[
            text("K8S_POD_NAME", 1),
            text("K8S_POD_NAMESPACE", 2),
            text("K8S_POD_INFRA_CONTAINER_ID", 3),
            text("Reason", 5),
            text("IfName", 6),
            text("NetworkName", 7),
            text("ContainerID", 8),
            text("ClientVersion", 9),
            text("K8S_POD_UID", 10),
        ],
    ),
    (
        "DelNetworkReply",
        &[
            one("Success", 1, Kind::Flag),
            many("IPAllocationMetadata", 2, Kind::Allocation),
            one("PodVlanId", 4, Kind::Number),
            text("NetworkPolicyMode", 6),
        ],
    ),
    (
        "NetworkPolicyAgentConfigReply",
        &[
            text("NetworkPolicyMode", 1),
            one("MultiNICEnabled", 2, Kind::Flag),
            text("NodeIPv4", 3),
            text("NodeIPv6", 4),
            text("InstanceID", 5),
            text("Region", 6),
        ],
    ),
];

const SERVICES: [(&str, &[Method]); 2] = [
    (
        "CNIBackend",
        &[
            ("AddNetwork", ".rpc.AddNetworkRequest", ".rpc.AddNetworkReply"),
            ("DelNetwork", ".rpc.DelNetworkRequest", ".rpc.DelNetworkReply"),
        ],
    ),
    ("ConfigServerBackend", &[("GetNetworkPolicyConfigs", EMPTY, ".rpc.NetworkPolicyAgentConfigReply")]),
];

const HEALTH_MESSAGES: [(&str, &[Field]); 2] = [
    ("HealthCheckRequest", &[text("service", 1)]),
    ("HealthCheckResponse", &[one("status", 1, Kind::State)]),
];

const HEALTH: [(&str, &[Method]); 1] =
    [("Health", &[("Check", ".grpc.health.v1.HealthCheckRequest", ".grpc.health.v1.HealthCheckResponse")])];

/// The states of a service, by their numbers.
const STATES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Answers whoever asks; its clones are for one request each.
pub(super) type Reflection = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// The service, in both of its versions.
///
/// # Errors
/// When the descriptions do not fit together, which a test excludes.
pub(super) fn service() -> Result<Reflection, Error> {
    let builder = || Builder::configure().register_file_descriptor_set(files());
    let (v1, old) = (builder().build_v1()?, builder().build_v1alpha()?);
    let v1 = v1.max_decoding_message_size(QUESTION_BYTES_MAX);
    let old = old.max_decoding_message_size(QUESTION_BYTES_MAX);
    let either = tower::service_fn(move |request: Request<Incoming>| {
        let (mut v1, mut old) = (v1.clone(), old.clone());
        async move {
            match request.uri().path().starts_with(OLD_PATHS) {
                true => old.call(request).await,
                false => v1.call(request).await,
            }
        }
    });
    Ok(BoxCloneSyncService::new(either))
}

/// The files in which all that is described.
fn files() -> FileDescriptorSet {
    let empty = DescriptorProto { name: Some("Empty".to_owned()), ..DescriptorProto::default() };
    let empty = file("google/protobuf/empty.proto", "google.protobuf", vec![empty], &[]);
    let rpc = FileDescriptorProto {
        dependency: empty.name.iter().cloned().collect(),
        ..file("rpc.proto", "rpc", messages(&MESSAGES), &SERVICES)
    };
    let mut health = messages(&HEALTH_MESSAGES);
    let states = STATES.into_iter().zip(0..).map(|(name, number)| EnumValueDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        options: None,
    });
    let states = EnumDescriptorProto {
        name: Some("ServingStatus".to_owned()),
        value: states.collect(),
        ..EnumDescriptorProto::default()
    };
    health.iter_mut().skip(1).for_each(|response| response.enum_type.push(states.clone()));
    let health = file("grpc/health/v1/health.proto", "grpc.health.v1", health, &HEALTH);
    FileDescriptorSet { file: vec![empty, rpc, health] }
}

fn file(
    name: &str,
    package: &str,
    messages: Vec<DescriptorProto>,
    services: &[(&str, &[Method])],
) -> FileDescriptorProto {
    let method = |(name, asked, answered): &Method| MethodDescriptorProto {
        name: Some((*name).to_owned()),
        input_type: Some((*asked).to_owned()),
        output_type: Some((*answered).to_owned()),
        ..MethodDescriptorProto::default()
    };
    let service = |(name, methods): &(&str, &[Method])| ServiceDescriptorProto {
        name: Some((*name).to_owned()),
        method: methods.iter().map(method).collect(),
        options: None,
    };
    FileDescriptorProto {
        name: Some(name.to_owned()),
        package: Some(package.to_owned()),
        message_type: messages,
        service: services.iter().map(service).collect(),
        syntax: Some("proto3".to_owned()),
        ..FileDescriptorProto::default()
    }
}

fn messages(all: &[(&str, &[Field])]) -> Vec<DescriptorProto> {
    let field = |(name, number, kind, label): &Field| {
        let (of, type_name) = kind.described();
        FieldDescriptorProto {
            name: Some((*name).to_owned()),
            number: Some(*number),
            label: Some((*label).into()),
            r#type: Some(of.into()),
            type_name: type_name.map(str::to_owned),
            ..FieldDescriptorProto::default()
        }
    };
    let message = |(name, fields): &(&str, &[Field])| DescriptorProto {
        name: Some((*name).to_owned()),
        field: fields.iter().map(field).collect(),
        ..DescriptorProto::default()
    };
    all.iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::{DescriptorPool, DynamicMessage};

    use super::super::messages::{self, Allocation};
    use super::super::method;
    use super::*;

    #[test]
    fn what_is_described_is_what_is_served() {
        let pool = DescriptorPool::from_file_descriptor_set(files()).unwrap();
        service().unwrap();

        let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let mut paths: Vec<String> = methods
            .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
            .collect();
        paths.sort();
        let mut served =
            [method::ADD_NETWORK, method::DEL_NETWORK, method::POLICY_CONFIGS, method::HEALTH_CHECK];
        served.sort_unstable();
        assert_eq!(paths, served);
    }

    #[test]
    fn our_messages_are_read_by_the_names_of_the_go_version() {
        let pool = DescriptorPool::from_file_descriptor_set(files()).unwrap();
        let text = |word: &str| word.to_owned();
        let reads = |name: &str, message: &dyn Fn() -> Vec<u8>, fields: &[&str]| {
            let read = DynamicMessage::decode(pool.get_message_by_name(name).unwrap(), message().as_slice());
            let read = read.unwrap();
            assert_eq!(read.unknown_fields().count(), 0, "{name}");
            let read: Vec<String> =
                read.fields().map(|(field, value)| format!("{}={value}", field.name())).collect();
            assert_eq!(read, fields, "{name}");
        };
        let allocation = Allocation { ipv4: text("10.0.0.9"), ipv6: text("::1"), device: 1, table: 2 };
        let fields = [r#"IPv4Addr="10.0.0.9""#, r#"IPv6Addr="::1""#, "DeviceNumber=1", "RouteTableId=2"];
        reads("rpc.IPAllocationMetadata", &|| allocation.encode_to_vec(), &fields);

        let add = messages::AddNetworkRequest {
            pod_name: text("p"),
            pod_namespace: text("ns"),
            netns: text("/n"),
            if_name: text("eth0"),
            network_name: text("net"),
            container_id: text("c"),
            client_version: text("v"),
        };
        let [pod, namespace] = [r#"K8S_POD_NAME="p""#, r#"K8S_POD_NAMESPACE="ns""#];
        let [interface, network] = [r#"IfName="eth0""#, r#"NetworkName="net""#];
        let [container, version] = [r#"ContainerID="c""#, r#"ClientVersion="v""#];
        let fields = [pod, namespace, r#"Netns="/n""#, interface, network, container, version];
        reads("rpc.AddNetworkRequest", &|| add.encode_to_vec(), &fields);
        let del = messages::DelNetworkRequest {
            pod_name: text("p"),
            pod_namespace: text("ns"),
            reason: text("r"),
            if_name: text("eth0"),
            network_name: text("net"),
            container_id: text("c"),
            client_version: text("v"),
        };
        let fields = [pod, namespace, r#"Reason="r""#, interface, network, container, version];
        reads("rpc.DelNetworkRequest", &|| del.encode_to_vec(), &fields);

        let added = messages::AddNetworkReply { success: true, addresses: vec![Allocation::default()] };
        let fields = ["Success=true", "IPAllocationMetadata=[{}]"];
        reads("rpc.AddNetworkReply", &|| added.encode_to_vec(), &fields);
        let deleted = messages::DelNetworkReply {
            success: true,
            addresses: vec![Allocation::default()],
            vlan: 7,
            policy_mode: text("strict"),
        };
        let fields = [fields[0], fields[1], "PodVlanId=7", r#"NetworkPolicyMode="strict""#];
        reads("rpc.DelNetworkReply", &|| deleted.encode_to_vec(), &fields);
        let config = messages::PolicyConfigReply {
            mode: text("strict"),
            multi_nic: true,
            node_ipv4: text("10.0.0.4"),
            node_ipv6: text("::4"),
            instance_id: text("i-1"),
            region: text("eu"),
        };
        let fields = [
            fields[3],
            "MultiNICEnabled=true",
            r#"NodeIPv4="10.0.0.4""#,
            r#"NodeIPv6="::4""#,
            r#"InstanceID="i-1""#,
            r#"Region="eu""#,
        ];
        reads("rpc.NetworkPolicyAgentConfigReply", &|| config.encode_to_vec(), &fields);

        let asked = messages::HealthCheckRequest { service: text("s") };
        reads("grpc.health.v1.HealthCheckRequest", &|| asked.encode_to_vec(), &[r#"service="s""#]);
        let serving = messages::HealthCheckResponse { status: messages::SERVING };
        reads("grpc.health.v1.HealthCheckResponse", &|| serving.encode_to_vec(), &["status=1"]);
    }
}
