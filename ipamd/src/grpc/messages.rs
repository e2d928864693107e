//! The messages, with the field numbers of the Go version's `rpc.proto` and of the gRPC health protocol.
//!
//! Fields that mean nothing here are left out, which protobuf allows.

use prost::Message;

/// A plugin of the Go version asks for an address.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AddNetworkRequest {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    /// The network namespace's path.
    #[prost(string, tag = "4")]
    pub netns: String,
    /// The interface in it.
    #[prost(string, tag = "5")]
    pub if_name: String,
    /// The network's name in the conflist.
    #[prost(string, tag = "6")]
    pub network_name: String,
    /// The runtime's id of the sandbox.
    #[prost(string, tag = "7")]
    pub container_id: String,
    /// The plugin's version.
    #[prost(string, tag = "8")]
    pub client_version: String,
}

/// What it is answered.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AddNetworkReply {
    /// Whether there are addresses.
    #[prost(bool, tag = "1")]
    pub success: bool,
    /// They.
    #[prost(message, repeated, tag = "2")]
    pub addresses: Vec<Allocation>,
}

/// One interface's addresses, and where they belong.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Allocation {
    /// IPv4, without prefix length; empty if there is none.
    #[prost(string, tag = "1")]
    pub ipv4: String,
    /// IPv6, likewise.
    #[prost(string, tag = "2")]
    pub ipv6: String,
    /// Device index of the ENI.
    #[prost(int32, tag = "3")]
    pub device: i32,
    /// Number of the ENI's routing table.
    #[prost(int32, tag = "4")]
    pub table: i32,
}

/// A plugin of the Go version takes a pod away.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DelNetworkRequest {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    /// Why: `PodDeleted`, or `SetupNSFailed` where the plugin undoes its own ADD.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// The interface in the sandbox.
    #[prost(string, tag = "6")]
    pub if_name: String,
    /// The network's name in the conflist.
    #[prost(string, tag = "7")]
    pub network_name: String,
    /// The runtime's id of the sandbox.
    #[prost(string, tag = "8")]
    pub container_id: String,
    /// The plugin's version.
    #[prost(string, tag = "9")]
    pub client_version: String,
}

/// What it is answered.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DelNetworkReply {
    /// Whether the addresses are released.
    #[prost(bool, tag = "1")]
    pub success: bool,
    /// They: the plugin takes its own wiring of them away.
    #[prost(message, repeated, tag = "2")]
    pub addresses: Vec<Allocation>,
    /// The VLAN that leads to its branch ENI, if it has one.
    #[prost(int32, tag = "4")]
    pub vlan: i32,
    /// If not empty, the plugin tells the network policy agent itself.
    #[prost(string, tag = "6")]
    pub policy_mode: String,
}

/// `google.protobuf.Empty`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// What the network policy agent has to know.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PolicyConfigReply {
    /// `standard` or `strict`, as the setting has it.
    #[prost(string, tag = "1")]
    pub mode: String,
    /// Whether pods may have several interfaces.
    #[prost(bool, tag = "2")]
    pub multi_nic: bool,
    /// The node's address.
    #[prost(string, tag = "3")]
    pub node_ipv4: String,
    /// Its IPv6 address; empty if there is none.
    #[prost(string, tag = "4")]
    pub node_ipv6: String,
    /// The instance.
    #[prost(string, tag = "5")]
    pub instance_id: String,
    /// Its region.
    #[prost(string, tag = "6")]
    pub region: String,
}

/// Has a pod's policies enforced.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EnforceRequest {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    /// `standard` or `strict`, as the setting has it.
    #[prost(string, tag = "3")]
    pub mode: String,
    /// How many interfaces it has.
    #[prost(int32, tag = "4")]
    pub interfaces: i32,
}

/// Says that a pod is gone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeletePodRequest {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
}

/// What the network policy agent answers to either.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PolicyReply {
    /// Whether it is done.
    #[prost(bool, tag = "1")]
    pub success: bool,
}

/// Asks whether a service is there.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckRequest {
    /// Its name; empty for the server as a whole.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// What a probe is answered.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckResponse {
    /// 1 for one that is there.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// It is there.
pub const SERVING: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of text: its number, wire type 2, its length, its bytes.
    fn text(number: u8, value: &str) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(value.len()).unwrap()];
        bytes.extend(value.as_bytes());
        bytes
    }

    /// A field with a small number: wire type 0.
    fn small(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    #[test]
    fn the_go_plugin_is_read_field_by_field_and_what_we_do_not_use_is_passed_over() {
        let fields = [
            text(1, "web"),
            text(2, "default"),
            text(3, "infra"),
            text(5, "PodDeleted"),
            text(6, "eth0"),
            text(7, "aws-cni"),
            text(8, "abc"),
            text(9, ""),
            text(10, "uid"),
        ];

        let request = DelNetworkRequest::decode(fields.concat().as_slice()).unwrap();

        assert_eq!(
            request,
            DelNetworkRequest {
                pod_name: "web".to_owned(),
                pod_namespace: "default".to_owned(),
                reason: "PodDeleted".to_owned(),
                if_name: "eth0".to_owned(),
                network_name: "aws-cni".to_owned(),
                container_id: "abc".to_owned(),
                client_version: String::new(),
            }
        );
        let add = [text(1, "web"), text(4, "/run/netns/x"), text(6, "aws-cni"), text(7, "abc"), small(9, 1)];
        let add = AddNetworkRequest::decode(add.concat().as_slice()).unwrap();
        assert_eq!((add.netns.as_str(), add.container_id.as_str()), ("/run/netns/x", "abc"));
    }

    #[test]
    fn answers_have_the_field_numbers_of_the_go_version() {
        let allocation = Allocation { ipv4: "10.0.0.9".to_owned(), ipv6: String::new(), device: 1, table: 2 };
        let inner = [text(1, "10.0.0.9"), small(3, 1), small(4, 2)].concat();
        let nested = [vec![2 << 3 | 2, u8::try_from(inner.len()).unwrap()], inner].concat();
        let reply = DelNetworkReply { success: true, addresses: vec![allocation], ..Default::default() };
        assert_eq!(reply.encode_to_vec(), [small(1, 1), nested].concat());

        let config = PolicyConfigReply {
            mode: "strict".to_owned(),
            multi_nic: false,
            node_ipv4: "10.0.0.4".to_owned(),
            node_ipv6: "2001:db8::4".to_owned(),
            instance_id: "i-1".to_owned(),
            region: "eu-lab-1".to_owned(),
        };
        let fields = [
            text(1, "strict"),
            text(3, "10.0.0.4"),
            text(4, "2001:db8::4"),
            text(5, "i-1"),
            text(6, "eu-lab-1"),
        ];
        assert_eq!(config.encode_to_vec(), fields.concat());
    }

    #[test]
    fn the_policy_agent_is_told_in_its_own_field_numbers() {
        let enforce = EnforceRequest {
            pod_name: "web".to_owned(),
            pod_namespace: "default".to_owned(),
            mode: "standard".to_owned(),
            interfaces: 1,
        };
        let fields = [text(1, "web"), text(2, "default"), text(3, "standard"), small(4, 1)];
        assert_eq!(enforce.encode_to_vec(), fields.concat());

        let gone = DeletePodRequest { pod_name: "web".to_owned(), pod_namespace: "default".to_owned() };
        assert_eq!(gone.encode_to_vec(), [text(1, "web"), text(2, "default")].concat());
        assert!(PolicyReply::decode(small(1, 1).as_slice()).unwrap().success);
    }
}
