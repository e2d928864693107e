//! A node as the Go version leaves it, and what that does when it starts on a node: a model of it, made of the programs that it
//! executes (`iptables`) and of what it asks the kernel for (said with `ip` and `nft`).
//!
//! Pods' inside, their host ends, rules, routes, chains and the checkpoint are those of versions 1.19 to 1.23.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::{Value, json};
use types::{DeviceIndex, HostVeth, NetworkCard, PodName, TableId, VethPrefix};

use crate::LabError;
use crate::ec2::{AddressWish, EniView, NewEni};
use crate::fabric::Fabric;
use crate::node::Node;
use crate::runtime::Pod;

/// Which form of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoVersion {
    /// 1.19, where `iptables` is the old one: no metadata in the checkpoint, connection marks by `iptables`.
    V19Legacy,
    /// 1.19, where `iptables` writes nftables.
    V19,
    /// 1.23, with connection marks in an nftables table of its own.
    V23,
}

impl GoVersion {
    /// The `iptables` that it executes.
    const fn iptables(self) -> &'static str {
        match self {
            Self::V19Legacy => "iptables-legacy",
            Self::V19 | Self::V23 => "iptables-nft",
        }
    }
}

/// A pod of its.
#[derive(Debug)]
pub struct GoPod {
    /// As the runtime knows it; with the result that the Go version's plugin printed.
    pub pod: Pod,
    /// Its address.
    pub address: Ipv4Addr,
    /// Device index of the ENI that it leaves by.
    pub device: u8,
}

impl GoPod {
    fn table(&self) -> TableId {
        TableId::of_eni(NetworkCard(0), DeviceIndex(self.device))
    }

    fn name(&self) -> PodName {
        PodName { namespace: "default".to_owned(), name: self.pod.name.clone() }
    }

    fn host_if(&self) -> HostVeth {
        HostVeth::of_pod(&VethPrefix::default(), &self.name(), 0)
    }

    /// The rules and the route of the host.
    fn way(&self) -> String {
        let (address, table) = (self.address, self.table());
        let from = format!("rule add pref 1536 from {address} lookup {table}\n");
        format!(
            "route replace {address}/32 dev {} scope link\nrule add pref 512 to {address} lookup main\n{}",
            self.host_if(),
            if table == TableId::MAIN { "" } else { &from }
        )
    }

    fn entry(&self, version: GoVersion) -> Value {
        let mut entry = json!({
            "networkName": "aws-cni", "containerID": self.pod.container_id, "ifName": "eth0",
            "ipv4": self.address, "allocationTimestamp": 1_754_550_000_123_456_789_u64,
        });
        if version == GoVersion::V23 {
            let metadata =
                json!({"k8sPodNamespace": "default", "k8sPodName": self.pod.name, "interfacesCount": 1});
            entry["metadata"] = metadata;
        }
        entry
    }

    /// What its plugin printed.
    fn result(&self) -> Value {
        let (host_if, dummy) = (self.host_if(), HostVeth::dummy(&self.name()));
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": host_if.as_str()},
                {"name": "eth0", "mac": self.table().0.to_string(), "sandbox": self.pod.netns.path()},
                {"name": dummy.as_str(), "mac": "0", "sandbox": self.device.to_string()},
            ],
            "ips": [{"interface": 1, "address": format!("{}/32", self.address)}],
            "dns": {},
        })
    }
}

/// The Go version on a node.
#[derive(Debug)]
pub struct GoNode<'a> {
    node: &'a Node,
    fabric: &'a Fabric,
    version: GoVersion,
    /// Its pods.
    pub pods: Vec<GoPod>,
}

impl<'a> GoNode<'a> {
    /// A node on which it has run, and this many pods; the daemon is not running any more.
    ///
    /// # Errors
    /// When EC2, the kernel or a program refuses.
    pub fn with_pods(
        node: &'a Node,
        fabric: &'a Fabric,
        version: GoVersion,
        count: usize,
    ) -> Result<Self, LabError> {
        let mut this = Self { node, fabric, version, pods: Vec::new() };
        let free = this.get_addresses(count)?;
        this.set_up_host()?;
        for (number, (device, address)) in (0_u8..).zip(free.into_iter().take(count)) {
            let pod = Pod::create(&format!("go-{number}"), &format!("gosandbox{number}"))?;
            let pod = GoPod { pod, address, device };
            this.wire(&pod, number)?;
            this.pods.push(pod);
        }
        for pod in &mut this.pods {
            pod.pod.address = Some(pod.address);
            pod.pod.result = Some(pod.result());
        }
        this.write_checkpoint()?;
        Ok(this)
    }

    /// The file.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.node.run_dir().join("ipam.json")
    }

    /// Attaches ENIs until there are addresses for so many pods: with the device index of each. Pods take turns among ENIs.
    fn get_addresses(&self, count: usize) -> Result<Vec<(u8, Ipv4Addr)>, LabError> {
        let (ec2, instance) = (self.fabric.ec2(), self.node.instance());
        let refused = |error: crate::ec2::ApiError| LabError::Otherwise(format!("EC2: {error}"));
        let per_eni: u32 = 25;
        let mut of_enis: Vec<Vec<(u8, Ipv4Addr)>> = Vec::new();
        let enough = |of_enis: &[Vec<_>]| of_enis.len() > 1 && of_enis.concat().len() >= count;
        for device in 0..8 {
            if enough(&of_enis) {
                break;
            }
            let eni = match self.enis().remove(&device) {
                Some(eni) => eni,
                None => {
                    let tags = [
                        ("node.k8s.amazonaws.com/instance_id", instance.id.to_string()),
                        ("cluster.k8s.amazonaws.com/name", "lab".to_owned()),
                    ];
                    let tags = tags.map(|(key, value)| (key.to_owned(), value)).into();
                    let wanted = NewEni { tags, ..NewEni::plain(self.fabric.subnet().clone()) };
                    let eni = ec2.create_eni(&wanted).map_err(refused)?;
                    ec2.attach(&eni.id, &instance.id, NetworkCard(0), DeviceIndex(device))
                        .map_err(refused)?;
                    eni
                }
            };
            let eni = ec2.assign(&eni.id, &AddressWish::count(per_eni)).map_err(refused)?;
            of_enis.push(eni.secondary.iter().map(|address| (device, *address)).collect());
        }
        let turns =
            (0..25).flat_map(|turn| of_enis.iter().filter_map(move |of_eni| of_eni.get(turn).copied()));
        Ok(turns.collect())
    }

    /// The instance's ENIs by device index.
    fn enis(&self) -> BTreeMap<u8, EniView> {
        let enis = self.fabric.ec2().enis_of(&self.node.instance().id);
        let placed = enis.into_iter().filter_map(|eni| Some((eni.attachment.as_ref()?.device.0, eni)));
        placed.collect()
    }

    /// What it does at every start: the rule for its mark, its secondary ENIs, its chains.
    fn set_up_host(&self) -> Result<(), LabError> {
        let netns = self.node.netns();
        let settings = [("ip_forward", "1"), ("conf/ens5/rp_filter", "2"), ("conf/default/rp_filter", "2")];
        let set = |(key, value)| std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value);
        let done = netns.run(|| settings.into_iter().try_for_each(set))?;
        done.map_err(LabError::doing("switch forwarding on"))?;
        // Deleted first, whoever made it.
        let _none_there = netns.ip("rule del pref 1024 fwmark 0x80/0x80 lookup main\n");
        netns.ip("rule add pref 1024 fwmark 0x80/0x80 lookup main\n")?;
        self.set_up_more()?;
        for (device, eni) in self.enis().into_iter().filter(|(device, _)| *device > 0) {
            self.set_up_eni(device, &eni)?;
        }
        let text = iptables(self.node.instance().address, self.version != GoVersion::V23);
        netns.feed(&format!("{}-restore --noflush", self.version.iptables()), &text)?;
        match self.version {
            GoVersion::V23 => netns.nft(&connmark_table(&["10.0.0.0/16", "100.64.0.0/16"])),
            GoVersion::V19 | GoVersion::V19Legacy => Ok(()),
        }
    }

    /// What it does for settings that not everybody has: a range of external services, IPv6 egress, strict security groups.
    fn set_up_more(&self) -> Result<(), LabError> {
        let netns = self.node.netns();
        let _none_there = netns.ip("rule del pref 1535 to 198.51.100.0/24 lookup main\n");
        netns.ip("rule add pref 1535 to 198.51.100.0/24 lookup main\n")?;
        if self.version == GoVersion::V19 {
            netns.ip("rule add pref 20 lookup local\nrule del pref 0 lookup local\n")?;
        }
        let block = r#"-I FORWARD -d fd00::ac:0/118 -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via IPv6" -j REJECT"#;
        if crate::fabric::ipv6() && self.version == GoVersion::V23 {
            let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{block}\nCOMMIT\n");
            netns.feed("ip6tables-nft-restore", &text)?;
        }
        Ok(())
    }

    fn set_up_eni(&self, device: u8, eni: &EniView) -> Result<(), LabError> {
        let netns = self.node.netns();
        let (link, own, length) = (format!("ens{}", 5 + device), eni.primary, eni.subnet_cidr.prefix());
        let table = TableId::of_eni(NetworkCard(0), DeviceIndex(device));
        let (gateway, subnet) = (eni.gateway(), eni.subnet_cidr);
        let gone = [
            format!("addr flush dev {link} scope global\n"),
            format!("route del {gateway}/32 dev {link} table {table}\n"),
            format!("route del default dev {link} table {table}\n"),
        ];
        for line in gone {
            let _none_there = netns.ip(&line);
        }
        netns.ip(&format!(
            "link set {link} up mtu 9001\naddr add {own}/{length} dev {link}\n\
             route replace {gateway}/32 dev {link} scope link table {table}\n\
             route replace default via {gateway} dev {link} table {table}\n\
             route del {subnet} dev {link} src {own} table main scope link\n"
        ))?;
        let _there_already = netns.ip(&format!("rule add pref 32765 from {own} lookup {table}\n"));
        Ok(())
    }

    fn wire(&self, pod: &GoPod, number: u8) -> Result<(), LabError> {
        let (host_if, inside, address) = (pod.host_if(), &pod.pod.netns, pod.address);
        let mac = format!("02:00:00:00:77:{number:02x}");
        self.node.netns().ip(&format!(
            "link add {host_if} mtu 9001 address {mac} type veth peer name eth0 netns {}\nlink set {host_if} up\n{}",
            inside.name(),
            pod.way()
        ))?;
        inside.ip(&format!(
            "link set eth0 up mtu 9001\nroute replace 169.254.1.1 dev eth0 scope link\n\
             route add default via 169.254.1.1 dev eth0\naddr add {address}/32 dev eth0\n\
             neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent\n"
        ))
    }

    fn write_checkpoint(&self) -> Result<(), LabError> {
        let entries: Vec<Value> = self.pods.iter().map(|pod| pod.entry(self.version)).collect();
        self.write_entries(&entries)
    }

    fn write_entries(&self, entries: &[Value]) -> Result<(), LabError> {
        let text = json!({"version": "vpc-cni-ipam/1", "allocations": entries}).to_string() + "\n";
        std::fs::write(self.checkpoint(), text).map_err(LabError::doing("write the checkpoint"))
    }

    /// It starts on a node where ours has run: reads the checkpoint, drops entries without a link, writes the file anew, sets the
    /// host up, and makes the rules from pods anew that are there. Returns the addresses that it knows.
    ///
    /// # Errors
    /// Where it would not start, and when the kernel or a program refuses.
    pub fn start(
        node: &'a Node,
        fabric: &'a Fabric,
        version: GoVersion,
    ) -> Result<(Self, Vec<Ipv4Addr>), LabError> {
        let this = Self { node, fabric, version, pods: Vec::new() };
        let text =
            std::fs::read_to_string(this.checkpoint()).map_err(LabError::doing("read the checkpoint"))?;
        let file: Value = serde_json::from_str(&text).map_err(|error| {
            LabError::Otherwise(format!("the Go version does not start: {error}: {text}"))
        })?;
        if file["version"] != "vpc-cni-ipam/1" {
            return Err(LabError::Otherwise(format!("the Go version does not start on {text}")));
        }
        let links = node.netns().read("ip -o link")?;
        let lives = |entry: &&Value| {
            let word = |key: &str| entry["metadata"][key].as_str().unwrap_or_default().to_owned();
            let pod = PodName { namespace: word("k8sPodNamespace"), name: word("k8sPodName") };
            let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
            pod.name.is_empty() || links.contains(host_if.as_str())
        };
        let entries = file["allocations"].as_array().map(Vec::as_slice).unwrap_or_default();
        let entries: Vec<Value> = entries.iter().filter(lives).cloned().collect();
        this.write_entries(&entries)?;
        this.set_up_host()?;
        let address = |entry: &Value| entry["ipv4"].as_str()?.parse().ok();
        let known: Vec<Ipv4Addr> = entries.iter().filter_map(address).collect();
        this.renew_rules(&known)?;
        Ok((this, known))
    }

    /// Rules with a pod as their source are deleted, and one to the last one's table is made; where there is none, none is made.
    fn renew_rules(&self, known: &[Ipv4Addr]) -> Result<(), LabError> {
        let rules = self.node.netns().read("ip -j rule")?;
        let rules: Vec<Value> = serde_json::from_str(&rules).unwrap_or_default();
        for address in known {
            let its: Vec<&Value> =
                rules.iter().filter(|rule| rule["src"].as_str() == Some(&address.to_string())).collect();
            let deletions = its.iter().map(|rule| {
                let (priority, table) = (&rule["priority"], rule["table"].as_str().unwrap_or_default());
                format!("rule del pref {priority} from {address} lookup {table}\n")
            });
            let anew = its.last().and_then(|rule| rule["table"].as_str());
            let anew = anew.map(|table| format!("rule add pref 1536 from {address} lookup {table}\n"));
            self.node.netns().ip(&deletions.chain(anew).collect::<String>())?;
        }
        Ok(())
    }

    /// It adds a pod at an address of its choice.
    ///
    /// # Errors
    /// When the kernel or a program refuses.
    pub fn add(&mut self, name: &str, device: u8, address: Ipv4Addr) -> Result<(), LabError> {
        let mut pod = GoPod { pod: Pod::create(name, &format!("{name}-sandbox"))?, address, device };
        pod.pod.address = Some(address);
        pod.pod.result = Some(pod.result());
        self.wire(&pod, 0xee)?;
        let mut entries = self.entries()?;
        entries.push(pod.entry(GoVersion::V23));
        self.pods.push(pod);
        self.write_entries(&entries)
    }

    /// It deletes a pod, its own or one of ours. What is not there is no error, and the link goes with the pod's namespace.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn del(&self, pod: &Pod) -> Result<(), LabError> {
        let Some(address) = pod.address else { return Ok(()) };
        let netns = self.node.netns();
        let _none_there = netns.ip(&format!("rule del pref 512 to {address} lookup main\n"));
        while netns.ip(&format!("rule del pref 1536 from {address}\n")).is_ok() {}
        let _none_there = netns.ip(&format!("route del {address}/32 scope link\n"));
        let mut entries = self.entries()?;
        entries.retain(|entry| entry["containerID"] != pod.container_id);
        self.write_entries(&entries)
    }

    fn entries(&self) -> Result<Vec<Value>, LabError> {
        let text =
            std::fs::read_to_string(self.checkpoint()).map_err(LabError::doing("read the checkpoint"))?;
        let mut file: Value = serde_json::from_str(&text).unwrap_or_default();
        Ok(serde_json::from_value(file["allocations"].take()).unwrap_or_default())
    }
}

/// Its rules, as `iptables-restore` takes them: source NAT and the mangle table; with `connmark` also the marks, which newer
/// versions have in a table of their own.
fn iptables(primary: Ipv4Addr, connmark: bool) -> String {
    let chain = if connmark { ":AWS-CONNMARK-CHAIN-0 - [0:0]\n" } else { "" };
    let marks = r#"-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -d 100.64.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
"#;
    format!(
        r#"*nat
:AWS-SNAT-CHAIN-0 - [0:0]
{chain}{marks}-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 -d 100.64.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {primary} --random-fully
COMMIT
*mangle
-A PREROUTING -i ens5 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --mask 0x80
-A PREROUTING -i vlan+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --mask 0x80
COMMIT
"#,
        marks = if connmark { marks } else { "" }
    )
}

/// Its own table, in which it marks the connections that leave the VPC, whose ranges these are.
pub(crate) fn connmark_table(vpc: &[&str]) -> String {
    let inside: String = vpc.iter().map(|range| format!("counter ip daddr {range} return\n")).collect();
    format!(
        r#"
add table ip aws-cni
delete table ip aws-cni
table ip aws-cni {{
  chain snat-mark {{
    {inside}counter ct mark set ct mark or 0x80
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -90; policy accept;
    fib daddr type local return
    iifname "eni*" counter jump snat-mark
    counter meta mark set ct mark and 0x80
  }}
}}
"#
    )
}
