//! A small kube-proxy: writes for a handful of services the chains, jumps, marks and maps that the real one has (Kubernetes 1.33),
//! through the same programs.
//!
//! As on EKS it is not told which addresses are pods' (`clusterCIDR` is empty), so what goes to a ClusterIP keeps its source.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::LabError;
use crate::netns::Netns;

/// A service's port is served for both.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];
/// One rule of each kind that the iptables modes need, to see whether program and kernel take them.
const PROBE: &str = "*nat
-A PREROUTING -m comment --comment probe -m addrtype --dst-type LOCAL -m statistic --mode random --probability 0.5 -j RETURN
-A PREROUTING -m mark --mark 0x4000/0x4000 -j MARK --or-mark 0x4000
-A PREROUTING -p udp -m udp --dport 9 -j DNAT --to-destination 127.0.0.1:9
-A POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD -m conntrack --ctstate NEW -j DROP
COMMIT
";

/// How kube-proxy writes its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `iptables` of the kernel's older interface.
    IptablesLegacy,
    /// `iptables` over nftables.
    IptablesNft,
    /// A table of its own, `ip kube-proxy`.
    Nftables,
}

/// What becomes of traffic to a node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `externalTrafficPolicy: Cluster`: it goes to any endpoint, masqueraded.
    Cluster,
    /// `externalTrafficPolicy: Local`: it goes to an endpoint of that node, with its own source.
    Local,
}

/// A service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, of few letters.
    pub name: &'static str,
    /// Its ClusterIP and port.
    pub cluster: SocketAddrV4,
    /// Its node port.
    pub node_port: u16,
    /// What becomes of traffic to that.
    pub policy: Policy,
    /// Who serves it.
    pub endpoints: Vec<Endpoint>,
}

/// Somebody who serves a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address and port.
    pub address: SocketAddrV4,
    /// Address of the node it is on, if it is on one.
    pub node: Option<Ipv4Addr>,
}

/// The kube-proxy of one node.
#[derive(Debug)]
pub struct KubeProxy<'a> {
    mode: Mode,
    netns: &'a Netns,
    node: Ipv4Addr,
}

impl Mode {
    /// Why this machine cannot run it, asked in a namespace of its own.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let program = self.restore()?;
        let tried = Netns::create("probe").and_then(|netns| netns.feed(program, PROBE));
        tried.err().map(|error| format!("no {program} here: {error}").replace('\n', " "))
    }

    /// The program that writes iptables rules.
    const fn restore(self) -> Option<&'static str> {
        match self {
            Self::IptablesLegacy => Some("iptables-legacy-restore"),
            Self::IptablesNft => Some("iptables-nft-restore"),
            Self::Nftables => None,
        }
    }
}

impl<'a> KubeProxy<'a> {
    /// Starts it on the node that has this primary address, without services.
    ///
    /// # Errors
    /// What the programs say.
    pub fn start(mode: Mode, netns: &'a Netns, node: Ipv4Addr) -> Result<Self, LabError> {
        let this = Self { mode, netns, node };
        this.write_base()?;
        Ok(this)
    }

    fn write_base(&self) -> Result<(), LabError> {
        self.sync(&[])?;
        match self.mode.restore() {
            Some(program) => self.netns.feed(&format!("{program} --noflush"), JUMPS).map(drop),
            None => Ok(()),
        }
    }

    /// Writes the rules of services, in place of those that it has written before, as one change.
    ///
    /// # Errors
    /// What the programs say.
    pub fn sync(&self, services: &[Service]) -> Result<(), LabError> {
        match self.mode.restore() {
            Some(program) => {
                self.netns.feed(&format!("{program} --noflush"), &self.iptables(services)).map(drop)
            }
            None => self.netns.nft(&self.nftables(services)),
        }
    }

    /// Takes away all that it has written, as `kube-proxy --cleanup` does.
    ///
    /// # Errors
    /// What the programs say.
    pub fn clean_up(&self) -> Result<(), LabError> {
        match self.mode {
            Mode::IptablesLegacy => {
                self.netns.feed("iptables-legacy-restore", "*nat\nCOMMIT\n*filter\nCOMMIT\n").map(drop)
            }
            Mode::IptablesNft => self.netns.nft("delete table ip nat\ndelete table ip filter\n"),
            Mode::Nftables => self.netns.nft("delete table ip kube-proxy\n"),
        }
    }

    /// Takes all away and writes it again.
    ///
    /// # Errors
    /// What the programs say.
    pub fn restart(&self, services: &[Service]) -> Result<(), LabError> {
        self.clean_up()?;
        self.write_base()?;
        self.sync(services)
    }

    /// The rules that the kernel has of it, without counters.
    ///
    /// # Errors
    /// What the programs say.
    pub fn rules(&self) -> Result<String, LabError> {
        let said = match self.mode {
            Mode::IptablesLegacy => self.netns.read("iptables-legacy-save")?,
            Mode::IptablesNft => self.netns.read("iptables-nft-save")?,
            Mode::Nftables => self.netns.read("nft list table ip kube-proxy")?,
        };
        let rule = |line: &&str| !line.starts_with(['#', ':']);
        let mut lines: Vec<&str> = said.lines().filter(rule).collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    }

    fn is_local(&self, endpoint: &Endpoint) -> bool {
        endpoint.node == Some(self.node)
    }

    /// Input of `iptables-restore --noflush`: naming a chain empties it.
    fn iptables(&self, services: &[Service]) -> String {
        let (mut nat, mut filter) = (Table::new(NAT_CHAINS), Table::new(FILTER_CHAINS));
        nat.rules.push_str(NAT_RULES);
        filter.rules.push_str(FILTER_RULES);
        for service in services {
            for protocol in PROTOCOLS {
                self.iptables_port(service, protocol, &mut nat, &mut filter);
            }
        }
        // Whatever is none of the services may still be for a node port.
        nat.rule("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
        format!("*nat\n{}{}COMMIT\n*filter\n{}{}COMMIT\n", nat.chains, nat.rules, filter.chains, filter.rules)
    }

    fn iptables_port(&self, service: &Service, protocol: &str, nat: &mut Table, filter: &mut Table) {
        let Service { cluster, node_port, policy, ref endpoints, .. } = *service;
        let id = format!("{}{protocol}", service.name).to_uppercase();
        let (all, local, outer) =
            (format!("KUBE-SVC-{id}"), format!("KUBE-SVL-{id}"), format!("KUBE-EXT-{id}"));
        let matches = format!("-p {protocol} -m {protocol}");
        for chain in [&all, &outer] {
            nat.chain(chain);
        }
        let to_cluster = format!("-d {}/32 {matches} --dport {}", cluster.ip(), cluster.port());
        nat.rule(&format!("KUBE-SERVICES {to_cluster} -j {all}"));
        nat.rule(&format!("KUBE-NODEPORTS {matches} --dport {node_port} -j {outer}"));
        match policy {
            Policy::Cluster => {
                nat.rule(&format!("{outer} -j KUBE-MARK-MASQ"));
                nat.rule(&format!("{outer} -j {all}"));
            }
            Policy::Local => {
                nat.chain(&local);
                nat.rule(&format!("{outer} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
                nat.rule(&format!("{outer} -m addrtype --src-type LOCAL -j {all}"));
                nat.rule(&format!("{outer} -j {local}"));
            }
        }
        let own: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| self.is_local(endpoint)).collect();
        if policy == Policy::Local && own.is_empty() {
            filter.rule(&format!(
                "KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL {matches} --dport {node_port} -j DROP"
            ));
        }
        for (number, endpoint) in endpoints.iter().enumerate() {
            let target = format!("KUBE-SEP-{id}{number}");
            nat.chain(&target);
            nat.rule(&format!("{target} -s {}/32 -j KUBE-MARK-MASQ", endpoint.address.ip()));
            nat.rule(&format!("{target} {matches} -j DNAT --to-destination {}", endpoint.address));
            nat.rule(&format!("{all} {}-j {target}", chance(endpoints.len() - number)));
            if policy == Policy::Local
                && let Some(place) = own.iter().position(|it| *it == endpoint)
            {
                nat.rule(&format!("{local} {}-j {target}", chance(own.len() - place)));
            }
        }
    }

    /// Input of `nft -f`: what the table holds is emptied and filled in one transaction, and its hooks stay.
    fn nftables(&self, services: &[Service]) -> String {
        let mut parts = NftParts::default();
        for service in services {
            write_to(&mut parts.cluster_ips, format_args!("{}, ", service.cluster.ip()));
            for protocol in PROTOCOLS {
                self.nftables_port(service, protocol, &mut parts);
            }
        }
        let NftParts { cluster_ips, service_ips, node_ports, no_endpoints, chains } = parts;
        let element = |name: &str, elements: &str| match elements {
            "" => String::new(),
            elements => format!("add element ip kube-proxy {name} {{ {elements} }}\n"),
        };
        let elements = [
            element("cluster-ips", &cluster_ips),
            element("nodeport-ips", &self.node.to_string()),
            element("service-ips", &service_ips),
            element("service-nodeports", &node_ports),
            element("no-endpoint-nodeports", &no_endpoints),
        ];
        format!("{NFT_SETS}{NFT_FLUSH}table ip kube-proxy {{\n{NFT_CHAINS}{chains}}}\n{}", elements.concat())
    }

    fn nftables_port(&self, service: &Service, protocol: &str, parts: &mut NftParts) {
        let Service { name, cluster, node_port, policy, ref endpoints } = *service;
        let id = format!("lab/{name}/{protocol}");
        let (ip, port) = (cluster.ip(), cluster.port());
        write_to(&mut parts.service_ips, format_args!("{ip} . {protocol} . {port} : goto service-{id}, "));
        write_to(&mut parts.node_ports, format_args!("{protocol} . {node_port} : goto external-{id}, "));
        let own: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| self.is_local(endpoint)).collect();
        if policy == Policy::Local && own.is_empty() {
            write_to(&mut parts.no_endpoints, format_args!("{protocol} . {node_port} : drop, "));
        }
        let target = |endpoint: &Endpoint| {
            format!("endpoint-{id}__{}/{}", endpoint.address.ip(), endpoint.address.port())
        };
        let choose = |among: Vec<&Endpoint>| {
            let choices =
                among.iter().enumerate().map(|(n, endpoint)| format!("{n} : goto {}", target(endpoint)));
            let choices: Vec<String> = choices.collect();
            match among.len() {
                0 => String::new(),
                count => format!("numgen random mod {count} vmap {{ {} }}\n", choices.join(", ")),
            }
        };
        let outer = match policy {
            Policy::Cluster => format!("jump mark-for-masquerade\ngoto service-{id}\n"),
            Policy::Local => format!(
                "fib saddr type local jump mark-for-masquerade\nfib saddr type local goto service-{id}\n{}",
                choose(own)
            ),
        };
        for endpoint in endpoints {
            let Endpoint { address, .. } = endpoint;
            write_to(
                &mut parts.chains,
                format_args!(
                    "chain {} {{\nip saddr {} jump mark-for-masquerade\nmeta l4proto {protocol} dnat to {address}\n}}\n",
                    target(endpoint),
                    address.ip(),
                ),
            );
        }
        write_to(
            &mut parts.chains,
            format_args!(
                "chain service-{id} {{\n{}}}\nchain external-{id} {{\n{outer}}}\n",
                choose(endpoints.iter().collect())
            ),
        );
    }
}

/// The condition by which one of so many that are left is chosen.
fn chance(left: usize) -> String {
    match left {
        1 => String::new(),
        left => format!(
            "-m statistic --mode random --probability {:.10} ",
            1.0 / f64::from(u32::try_from(left).unwrap_or(u32::MAX))
        ),
    }
}

/// Writing to a string cannot fail.
fn write_to(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _written = text.write_fmt(what);
}

/// A table in the words of `iptables-restore`.
struct Table {
    chains: String,
    rules: String,
}

impl Table {
    fn new(chains: &[&str]) -> Self {
        let mut this = Self { chains: String::new(), rules: String::new() };
        chains.iter().for_each(|chain| this.chain(chain));
        this
    }

    fn chain(&mut self, name: &str) {
        write_to(&mut self.chains, format_args!(":{name} - [0:0]\n"));
    }

    fn rule(&mut self, rule: &str) {
        write_to(&mut self.rules, format_args!("-A {rule}\n"));
    }
}

/// What services add to the nftables table.
#[derive(Default)]
struct NftParts {
    cluster_ips: String,
    service_ips: String,
    node_ports: String,
    no_endpoints: String,
    chains: String,
}

const NAT_CHAINS: &[&str] = &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];
const FILTER_CHAINS: &[&str] =
    &["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"];

const NAT_RULES: &str = "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"traffic that needs source NAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";
const FILTER_RULES: &str = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";
/// From the kernel's chains to kube-proxy's, which puts itself first.
const JUMPS: &str = "*nat
-I PREROUTING -m comment --comment \"service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"postrouting\" -j KUBE-POSTROUTING
COMMIT
*filter
-I INPUT -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-I FORWARD -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-I FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
COMMIT
";

const NFT_SETS: &str = "table ip kube-proxy {
set cluster-ips { type ipv4_addr; }
set nodeport-ips { type ipv4_addr; }
map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
map service-nodeports { type inet_proto . inet_service : verdict; }
}
";
const NFT_FLUSH: &str = "flush table ip kube-proxy
flush set ip kube-proxy cluster-ips
flush set ip kube-proxy nodeport-ips
flush map ip kube-proxy no-endpoint-services
flush map ip kube-proxy no-endpoint-nodeports
flush map ip kube-proxy service-ips
flush map ip kube-proxy service-nodeports
";
/// The chains that are there without any service; those that are jumped to come first.
const NFT_CHAINS: &str = "chain mark-for-masquerade {
 meta mark set meta mark or 0x4000
}
chain masquerading {
 meta mark and 0x4000 == 0 return
 meta mark set meta mark xor 0x4000
 masquerade fully-random
}
chain services {
 ip daddr . meta l4proto . th dport vmap @service-ips
 ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
chain service-endpoints-check {
 ip daddr . meta l4proto . th dport vmap @no-endpoint-services
}
chain nodeport-endpoints-check {
 ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
}
chain cluster-ips-check {
 ip daddr @cluster-ips reject
}
chain filter-input {
 type filter hook input priority 0;
 ct state new jump nodeport-endpoints-check
 ct state new jump service-endpoints-check
}
chain filter-forward {
 type filter hook forward priority 0;
 ct state new jump service-endpoints-check
 ct state new jump cluster-ips-check
}
chain filter-output {
 type filter hook output priority 0;
 ct state new jump service-endpoints-check
 ct state new jump cluster-ips-check
}
chain nat-prerouting {
 type nat hook prerouting priority -100;
 jump services
}
chain nat-output {
 type nat hook output priority -100;
 jump services
}
chain nat-postrouting {
 type nat hook postrouting priority 100;
 jump masquerading
}
";
