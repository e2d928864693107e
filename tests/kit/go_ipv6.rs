//! A node of an IPv6 cluster as the Go version leaves it: pods with addresses of the primary ENI's /80, and an interface of its
//! egress plugin for IPv4.
//!
//! [`start`], [`add`] and [`del`] are what it does on a node that is given back to it.
//!
//! Pods' inside, host ends, rules, chains and the checkpoint are those of versions 1.19 to 1.23.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv6Network;
use serde_json::{Value, json};
use types::{HostVeth, PodName, VethPrefix};

use crate::LabError;
use crate::fabric::Fabric;
use crate::node::Node;
use crate::runtime::Pod;

/// A pod of its.
#[derive(Debug)]
pub struct GoIpv6Pod {
    /// As the runtime knows it; with the result that the Go version's plugin printed.
    pub pod: Pod,
    /// Its address.
    pub address: Ipv6Addr,
    /// The one of its interface for IPv4.
    pub egress: Ipv4Addr,
    /// Name of the host end of that.
    pub egress_if: String,
}

impl GoIpv6Pod {
    fn create(prefix: Ipv6Network, number: u8) -> Result<Self, LabError> {
        let pod = Pod::create(&format!("go-{number}"), &format!("gosandbox{number}"))?;
        // The first pod gets the first address of the prefix.
        let address = Ipv6Addr::from_bits(prefix.network().to_bits() | u128::from(number));
        let egress = Ipv4Addr::new(169, 254, 172, 2 + number);
        Ok(Self { pod, address, egress, egress_if: format!("veth0a1b2c{number:02x}") })
    }

    /// Name of its host end.
    #[must_use]
    pub fn host_if(&self) -> HostVeth {
        let pod = PodName { namespace: "default".to_owned(), name: self.pod.name.clone() };
        HostVeth::of_pod(&VethPrefix::default(), &pod, 0)
    }

    fn entry(&self) -> Value {
        json!({
            "networkName": "aws-cni", "containerID": self.pod.container_id, "ifName": "eth0",
            "ipv6": self.address, "allocationTimestamp": 1_754_550_000_123_456_789_u64,
            "metadata": {"k8sPodNamespace": "default", "k8sPodName": self.pod.name, "interfacesCount": 1},
        })
    }

    /// What its plugins printed: those of the egress plugin are interfaces without an address.
    fn result(&self) -> Value {
        let sandbox = self.pod.netns.path();
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": self.host_if().as_str()},
                {"name": "eth0", "mac": "254", "sandbox": sandbox},
                {"name": format!("dummy{}", &self.host_if().as_str()[3..]), "mac": "0", "sandbox": "0"},
                {"name": self.egress_if},
                {"name": "v4if0", "sandbox": sandbox},
            ],
            "ips": [{"interface": 1, "address": format!("{}/128", self.address)}],
            "dns": {},
        })
    }

    fn wire(&self, node: &Node, number: u8) -> Result<(), LabError> {
        let (host_if, inside, address) = (self.host_if(), &self.pod.netns, self.address);
        let mac = format!("02:00:00:00:66:{number:02x}");
        node.netns().ip(&format!(
            "link add {host_if} mtu 9001 address {mac} type veth peer name eth0 netns {}\nlink set {host_if} up\n\
             route replace {address}/128 dev {host_if}\n",
            inside.name(),
        ))?;
        node.netns().read(&format!("ip -6 rule add pref 512 to {address} lookup main"))?;
        inside.ip(&format!(
            "link set lo up\nlink set eth0 up mtu 9001\nroute replace fe80::1 dev eth0\n\
             route add default via fe80::1 dev eth0\naddr add {address}/128 dev eth0 nodad\n\
             neigh add fe80::1 lladdr {mac} dev eth0 nud permanent\n"
        ))
    }

    fn wire_egress(&self, node: &Node) -> Result<(), LabError> {
        let Self { egress, egress_if, .. } = self;
        let inside = &self.pod.netns;
        node.netns().ip(&format!(
            "link add {egress_if} mtu 9001 type veth peer name v4if0 netns {}\nlink set {egress_if} up\n\
             addr add 169.254.172.1/32 dev {egress_if} scope link\nroute add {egress}/32 dev {egress_if} scope link\n",
            inside.name(),
        ))?;
        inside.ip(&format!(
            "link set v4if0 up mtu 9001\naddr add {egress}/22 dev v4if0\nroute del 169.254.172.0/22 dev v4if0\n\
             route add 169.254.172.1/32 dev v4if0 scope link src {egress}\n\
             route add 169.254.172.0/22 via 169.254.172.1 src {egress}\nroute add default via 169.254.172.1\n"
        ))
    }

    /// Its chain of source NAT.
    fn chain(&self, node: Ipv4Addr) -> String {
        let (name, id) = (format!("CNI-E4-{:0>21}", self.egress_if), &self.pod.container_id);
        let comment = format!(r#"-m comment --comment "name: \"aws-cni\" id: \"{id}\"""#);
        format!(
            ":{name} - [0:0]\n-A {name} -d 224.0.0.0/4 {comment} -j ACCEPT\n\
             -A {name} {comment} -j SNAT --to-source {node} --random-fully\n-A POSTROUTING -s {} {comment} -j {name}\n",
            self.egress
        )
    }
}

/// Puts so many pods of the Go version on a node, whose daemon is not running any more.
///
/// # Errors
/// When EC2, the kernel or a program refuses.
pub fn with_pods(node: &Node, fabric: &Fabric, count: u8) -> Result<Vec<GoIpv6Pod>, LabError> {
    let refused = |error: crate::ec2::ApiError| LabError::Otherwise(format!("EC2: {error}"));
    let enis = fabric.ec2().enis_of(&node.instance().id);
    let primary = enis.iter().find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device.0 == 0));
    let primary = primary.ok_or_else(|| LabError::Otherwise("no primary ENI".to_owned()))?;
    let given = fabric.ec2().assign_ipv6(&primary.id, 1).map_err(refused)?;
    let prefix = given.first().ok_or_else(|| LabError::Otherwise("no prefix".to_owned()))?;
    let own = node.instance().address;
    let set = || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .and_then(|()| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))
    };
    node.netns().run(set)?.map_err(LabError::doing("switch forwarding on"))?;
    node.netns().read("ip -6 rule add pref 1024 fwmark 0x80/0x80 lookup main")?;
    let mut pods = Vec::new();
    for number in 0..count {
        let mut go = GoIpv6Pod::create(*prefix, number)?;
        go.wire(node, number)?;
        go.wire_egress(node)?;
        go.pod.result = Some(go.result());
        pods.push(go);
    }
    let chains: String = pods.iter().map(|pod| pod.chain(own)).collect();
    let block = r#"-I FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via IPv4" -j REJECT"#;
    let text = format!("*nat\n{chains}COMMIT\n*filter\n{block}\nCOMMIT\n");
    node.netns().feed("iptables-nft-restore --noflush", &text)?;
    write_entries(node, &pods.iter().map(GoIpv6Pod::entry).collect::<Vec<_>>())?;
    Ok(pods)
}

/// It starts on a node where ours has run: reads the checkpoint, drops entries without a link, writes the file anew. Of rules and routes
/// it makes none for pods that are there. Returns the addresses that it knows.
///
/// # Errors
/// Where it would not start, and when the kernel refuses.
pub fn start(node: &Node) -> Result<Vec<Ipv6Addr>, LabError> {
    let links = node.netns().read("ip -o link")?;
    let lives = |entry: &Value| {
        let word = |key: &str| entry["metadata"][key].as_str().unwrap_or_default().to_owned();
        let pod = PodName { namespace: word("k8sPodNamespace"), name: word("k8sPodName") };
        links.contains(HostVeth::of_pod(&VethPrefix::default(), &pod, 0).as_str())
    };
    let mut entries = entries(node)?;
    entries.retain(lives);
    write_entries(node, &entries)?;
    let _none_there = node.netns().read("ip -6 rule del pref 1024 fwmark 0x80/0x80 lookup main");
    node.netns().read("ip -6 rule add pref 1024 fwmark 0x80/0x80 lookup main")?;
    let address = |entry: &Value| entry["ipv6"].as_str()?.parse().ok();
    Ok(entries.iter().filter_map(address).collect())
}

/// It deletes a pod, its own or one of ours: what is not there is no error, and links go with the pod's namespace.
///
/// # Errors
/// When the checkpoint cannot be read or written.
pub fn del(node: &Node, pod: &Pod, address: Ipv6Addr) -> Result<(), LabError> {
    let _none_there = node.netns().read(&format!("ip -6 rule del pref 512 to {address} lookup main"));
    let _none_there = node.netns().read(&format!("ip -6 route del {address}/128 table main"));
    let mut entries = entries(node)?;
    entries.retain(|entry| entry["containerID"] != pod.container_id);
    write_entries(node, &entries)
}

/// It adds a pod with this number, which no other has.
///
/// # Errors
/// When the kernel or a program refuses.
pub fn add(node: &Node, prefix: Ipv6Network, number: u8) -> Result<GoIpv6Pod, LabError> {
    let mut go = GoIpv6Pod::create(prefix, number)?;
    go.wire(node, number)?;
    go.wire_egress(node)?;
    go.pod.result = Some(go.result());
    let text = format!("*nat\n{}COMMIT\n", go.chain(node.instance().address));
    node.netns().feed("iptables-nft-restore --noflush", &text)?;
    let mut entries = entries(node)?;
    entries.push(go.entry());
    write_entries(node, &entries)?;
    Ok(go)
}

fn entries(node: &Node) -> Result<Vec<Value>, LabError> {
    let text = std::fs::read_to_string(node.run_dir().join("ipam.json"));
    let text = text.map_err(LabError::doing("read the checkpoint"))?;
    let mut file: Value = serde_json::from_str(&text).unwrap_or_default();
    if file["version"] != "vpc-cni-ipam/1" {
        return Err(LabError::Otherwise(format!("the Go version does not start on {text}")));
    }
    Ok(serde_json::from_value(file["allocations"].take()).unwrap_or_default())
}

fn write_entries(node: &Node, entries: &[Value]) -> Result<(), LabError> {
    let text = json!({"version": "vpc-cni-ipam/1", "allocations": entries}).to_string() + "\n";
    std::fs::write(node.run_dir().join("ipam.json"), text).map_err(LabError::doing("write the checkpoint"))
}
