//! The fabric: what lies between ENIs. Moves links as EC2 attaches and detaches, and checks sources as AWS does.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::{Ipv4Network, Ipv6Network};
use types::{EniId, InstanceId, SubnetId};

use crate::LabError;
use crate::ec2::{ApiError, Config, Ec2, EniKind, EniView, Wiring};
use crate::netns::Netns;

/// An address on the internet.
pub const INTERNET_HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// A host in the VPC's second CIDR.
pub const SECOND_CIDR_HOST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 10);
/// An IPv6 address on the internet.
pub const INTERNET_HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7);
/// The same host in the VPC as [`SECOND_CIDR_HOST`].
pub const SECOND_CIDR_HOST6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f13, 0, 2, 0, 0, 0, 0x10);
/// IPv6 range of the nodes' subnet.
const SUBNET6: &str = "2600:1f13:0:1::/64";
/// The VPC's router on every link, as on AWS.
const ROUTER6: &str = "fe80:ec2::1";
/// How the router calls the ENI at the other end of a link, whose MAC address it knows.
const NEIGHBOUR6: &str = "fe80::eeee";
/// MTU of every link.
const MTU: u32 = 9001;

/// A VPC with two CIDRs, one subnet for nodes, an internet behind a gateway, and a host in the second CIDR.
#[derive(Debug)]
pub struct Fabric {
    ec2: Ec2,
    subnet: SubnetId,
    internet: Netns,
    second: Netns,
    plumbing: Arc<Plumbing>,
}

/// The part that EC2 calls.
#[derive(Debug)]
struct Plumbing {
    vpc: Netns,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Node namespaces by instance.
    nodes: BTreeMap<InstanceId, Arc<Netns>>,
    /// The namespace of the instance that is being launched.
    launching: Option<Arc<Netns>>,
    /// Addresses that the fabric routes, by ENI.
    routed: BTreeMap<EniId, Vec<Ipv4Addr>>,
    /// The same for IPv6.
    routed6: BTreeMap<EniId, Vec<Ipv6Network>>,
    /// What stands for the VLANs of branch ENIs.
    vlans: Vlans,
    /// What went wrong in a callback.
    troubles: Vec<String>,
}

/// How packets come from a trunk's VLAN to the VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vlans {
    /// By a VLAN of the kernel's.
    #[default]
    Kernel,
    /// By a veth, whose end in the node has the name and the MAC address that the daemon gives to a VLAN's link: there all but making that link is the same.
    StandIns,
    /// Not at all, as on a kernel that has none.
    None,
}

/// Packets that the fabric refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drops {
    /// The source was not an address of the ENI.
    pub wrong_source: u64,
    /// They wanted to the internet from an address that it does not know.
    pub not_public: u64,
}

impl Fabric {
    /// Sets it up, with EC2.
    ///
    /// # Errors
    /// When the kernel or a program refuses.
    pub fn create(config: Config) -> Result<Self, LabError> {
        let ec2 = Ec2::new(config);
        let (first, second): (Ipv4Network, Ipv4Network) =
            (network("10.0.0.0/16")?, network("100.64.0.0/16")?);
        let vpc_id = ec2.add_vpc(&[first, second]);
        let subnet = ec2.add_subnet(&vpc_id, network("10.0.0.0/20")?, "lab-1a");
        let subnet = subnet.map_err(|error| LabError::Otherwise(format!("subnet: {error}")))?;
        let range = SUBNET6.parse().map_err(|error| LabError::Otherwise(format!("{SUBNET6}: {error}")))?;
        let dual = ec2.set_ipv6(&subnet, ipv6().then_some(range));
        dual.map_err(|error| LabError::Otherwise(format!("subnet: {error}")))?;
        let (vpc, internet, host) =
            (Netns::create("vpc")?, Netns::create("internet")?, Netns::create("second")?);
        lay_out(&vpc, &internet, &host)?;
        let plumbing = Arc::new(Plumbing { vpc, state: Mutex::default() });
        let wiring: Arc<dyn Wiring> = Arc::<Plumbing>::clone(&plumbing);
        ec2.set_wiring(Some(wiring));
        Ok(Self { ec2, subnet, internet, second: host, plumbing })
    }

    /// EC2.
    #[must_use]
    pub const fn ec2(&self) -> &Ec2 {
        &self.ec2
    }

    /// The nodes' subnet.
    #[must_use]
    pub const fn subnet(&self) -> &SubnetId {
        &self.subnet
    }

    /// Adds a subnet for ENIs of nodes, in the zone of the first one.
    ///
    /// # Errors
    /// A range outside of the VPC's or one that overlaps another subnet.
    pub fn add_subnet(&self, cidr: Ipv4Network) -> Result<SubnetId, LabError> {
        let refused = |error: ApiError| LabError::Otherwise(format!("subnet: {error}"));
        let first = self.ec2.subnet(&self.subnet);
        let first = first.ok_or_else(|| LabError::Otherwise("the first subnet is gone".to_owned()))?;
        let subnet = self.ec2.add_subnet(&first.vpc, cidr, &first.zone).map_err(refused)?;
        // The VPC's router has the first address of each subnet.
        let router = Ipv4Addr::from_bits(cidr.network().to_bits() + 1);
        self.plumbing.vpc.ip(&format!("addr add {router}/32 dev lo\n"))?;
        Ok(subnet)
    }

    /// The namespace of [`INTERNET_HOST`].
    #[must_use]
    pub const fn internet(&self) -> &Netns {
        &self.internet
    }

    /// The namespace of [`SECOND_CIDR_HOST`].
    #[must_use]
    pub const fn second(&self) -> &Netns {
        &self.second
    }

    /// Launches an instance into a namespace.
    pub(crate) fn launch(
        &self,
        netns: &Arc<Netns>,
        instance_type: &str,
    ) -> Result<crate::ec2::Instance, LabError> {
        self.plumbing.state().launching = Some(Arc::clone(netns));
        let launched = self.ec2.launch(instance_type, &self.subnet);
        let instance = launched.map_err(|error| LabError::Otherwise(format!("launch: {error}")))?;
        self.troubles()?;
        Ok(instance)
    }

    /// Lets an instance that another cloud runs take part: the fabric serves it as far as [`Fabric::wiring`] is told.
    pub fn adopt(&self, instance: &InstanceId, netns: &Arc<Netns>) {
        self.plumbing.state().nodes.insert(instance.clone(), Arc::clone(netns));
    }

    /// Moves links and addresses of ENIs.
    #[must_use]
    pub fn wiring(&self) -> &dyn Wiring {
        &*self.plumbing
    }

    /// From now on a branch ENI is reached so.
    pub fn set_vlans(&self, vlans: Vlans) {
        self.plumbing.state().vlans = vlans;
    }

    /// How many packets have come to the VPC by this ENI.
    ///
    /// # Errors
    /// When it has no link there.
    pub fn came_by(&self, eni: &EniView) -> Result<u64, LabError> {
        let far = far_end(eni);
        let text = self.plumbing.vpc.read(&format!("ip -s -j link show dev {far}"))?;
        let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let packets = told[0]["stats64"]["rx"]["packets"].as_u64();
        packets.ok_or_else(|| LabError::Otherwise(format!("no packets in {text}")))
    }

    /// What went wrong behind EC2's back.
    ///
    /// # Errors
    /// The first trouble.
    pub fn troubles(&self) -> Result<(), LabError> {
        match self.plumbing.state().troubles.first() {
            Some(trouble) => Err(LabError::Otherwise(trouble.clone())),
            None => Ok(()),
        }
    }

    /// Packets refused so far.
    ///
    /// # Errors
    /// When `nft` does not tell.
    pub fn drops(&self) -> Result<Drops, LabError> {
        let count = |name: &str| -> Result<u64, LabError> {
            let text = self.plumbing.vpc.read(&format!("nft list counter inet fabric {name}"))?;
            let after = text.split_once("packets ").map(|(_, rest)| rest).unwrap_or_default();
            let number = after.split_whitespace().next().and_then(|word| word.parse().ok());
            number.ok_or_else(|| LabError::Otherwise(format!("no packets in {text}")))
        };
        Ok(Drops { wrong_source: count("wrong_source")?, not_public: count("not_public")? })
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.ec2.set_wiring(None);
    }
}

/// Why this kernel has no VLANs, if it has none. To be asked in the lab.
#[must_use]
pub fn no_vlans() -> Option<String> {
    let probe = || {
        let netns = Netns::create("vlan-probe")?;
        netns.ip(
            "link add probe0 type veth peer name probe1\nlink add link probe0 name probe.7 type vlan id 7\n",
        )
    };
    probe()
        .err()
        .map(|error: LabError| format!("no VLANs: {}", error.to_string().lines().next().unwrap_or_default()))
}

/// Whether this kernel has IPv6.
#[must_use]
pub fn ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

fn network(text: &str) -> Result<Ipv4Network, LabError> {
    text.parse().map_err(|error| LabError::Otherwise(format!("{text}: {error}")))
}

/// Routers and hosts that are there whatever EC2 does.
fn lay_out(vpc: &Netns, internet: &Netns, second: &Netns) -> Result<(), LabError> {
    let settings = ["ip_forward", "conf/all/proxy_arp", "conf/default/proxy_arp"];
    let switch_on = |setting| std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), "1");
    vpc.run(|| settings.into_iter().try_for_each(switch_on))?
        .map_err(LabError::doing("switch forwarding on"))?;
    vpc.ip(&format!(
        "link add igw mtu {MTU} type veth peer name up0 netns internet\n\
         link add second mtu {MTU} type veth peer name up0 netns second\n\
         link set igw up\nlink set second up\n\
         addr add 10.0.0.1/32 dev lo\naddr add 100.64.0.1/32 dev lo\n\
         addr add 198.51.100.1/24 dev igw\nroute add {SECOND_CIDR_HOST}/32 dev second\n"
    ))?;
    internet.ip(&format!(
        "link set up0 up mtu {MTU}\naddr add {INTERNET_HOST}/24 dev up0\nroute add default via 198.51.100.1\n"
    ))?;
    second.ip(&format!(
        "link set up0 up mtu {MTU}\naddr add {SECOND_CIDR_HOST}/16 dev up0\nroute add default via 100.64.0.1\n"
    ))?;
    if ipv6() {
        lay_out_ipv6(vpc, internet, second)?;
    }
    vpc.nft(
        "table inet fabric {
           set allowed { type ifname . ipv4_addr; }
           set allowed6 { type ifname . ipv6_addr; flags interval; }
           set public { type ipv4_addr; }
           counter wrong_source { }
           counter not_public { }
           chain sources {
             type filter hook prerouting priority -300; policy accept;
             meta nfproto ipv4 iifname \"f-*\" iifname . ip saddr != @allowed counter name wrong_source drop
             meta nfproto ipv6 iifname \"f-*\" ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @allowed6 counter name wrong_source drop
           }
           chain gateway {
             type filter hook forward priority 0; policy accept;
             oifname \"igw\" ip saddr != @public counter name not_public drop
             iifname \"igw\" ip daddr != @public drop
           }
         }",
    )
}

/// The same for IPv6. Nobody waits to find out whether somebody else has an address.
fn lay_out_ipv6(vpc: &Netns, internet: &Netns, second: &Netns) -> Result<(), LabError> {
    let set = |netns: &Netns, setting: &str, value: &str| {
        let written = netns.run(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/{setting}"), value))?;
        written.map_err(LabError::doing(format!("set {setting}")))
    };
    set(vpc, "all/forwarding", "1")?;
    set(vpc, "default/dad_transmits", "0")?;
    vpc.ip(&format!(
        "addr add {ROUTER6}/64 dev igw nodad\naddr add {ROUTER6}/64 dev second nodad\n\
         route add {INTERNET_HOST6}/128 dev igw\nroute add {SECOND_CIDR_HOST6}/128 dev second\n"
    ))?;
    for (host, address) in [(internet, INTERNET_HOST6), (second, SECOND_CIDR_HOST6)] {
        host.ip(&format!("addr add {address}/128 dev up0 nodad\nroute add default via {ROUTER6} dev up0\n"))?;
    }
    Ok(())
}

impl Plumbing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, what: &str, done: Result<(), LabError>) {
        if let Err(error) = done {
            self.state().troubles.push(format!("{what}: {error}"));
        }
    }

    /// The node that an instance is; a new one takes the namespace that waits for it.
    fn node(&self, instance: &InstanceId) -> Option<Arc<Netns>> {
        let mut state = self.state();
        if !state.nodes.contains_key(instance) {
            let netns = state.launching.take()?;
            state.nodes.insert(instance.clone(), netns);
        }
        state.nodes.get(instance).cloned()
    }

    fn plug_in(&self, node: &Netns, eni: &EniView) -> Result<(), LabError> {
        let (card, device) = place(eni);
        let (far, near) = (far_end(eni), format!("ens{}", 5 + 32 * u16::from(card) + u16::from(device)));
        let (mac, name) = (eni.mac, node.name());
        // Without the setting proxied ARP answers come after a random part of 0.8 seconds.
        self.vpc.ip(&format!(
            "link add {far} mtu {MTU} type veth peer name {near} netns {name} address {mac} mtu {MTU}\n\
             ntable change name arp_cache dev {far} proxy_delay 0\nlink set {far} up\n"
        ))?;
        if (card, device) == (0, 0) {
            let (address, prefix) = (eni.primary, eni.subnet_cidr.prefix());
            node.ip(&format!(
                "link set {near} up\naddr add {address}/{prefix} dev {near}\nroute add default via {}\n",
                eni.gateway()
            ))?;
            self.vpc.nft(&format!("add element inet fabric public {{ {address} }}"))?;
        }
        if ipv6() {
            self.plug_in_ipv6(node, eni, &near)?;
        }
        self.route(eni)
    }

    /// Gives a branch ENI its way into the VPC, where packets are routed and checked as those of any other ENI.
    fn plug_in_branch(&self, node: &Netns, trunk: &EniView, branch: &EniView) -> Result<(), LabError> {
        let EniKind::Branch { vlan, .. } = &branch.kind else { return Ok(()) };
        let (far, mac) = (far_end(branch), branch.mac);
        let made = match self.state().vlans {
            Vlans::None => return Ok(()),
            Vlans::Kernel => format!("link add link {} name {far} type vlan id {vlan}\n", far_end(trunk)),
            Vlans::StandIns => {
                let (near, node) = (vlan.link(), node.name());
                format!(
                    "link add {far} mtu {MTU} type veth peer name {near} netns {node} address {mac} mtu {MTU}\n"
                )
            }
        };
        self.vpc.ip(&format!(
            "{made}ntable change name arp_cache dev {far} proxy_delay 0\nlink set {far} up\n"
        ))?;
        if ipv6() {
            self.router_ipv6(branch)?;
        }
        self.route(branch)
    }

    fn router_ipv6(&self, eni: &EniView) -> Result<(), LabError> {
        self.vpc.ip(&format!(
            "addr add {ROUTER6}/64 dev {far} nodad\n\
             neigh replace {NEIGHBOUR6} lladdr {mac} dev {far} nud permanent\n",
            far = far_end(eni),
            mac = eni.mac,
        ))
    }

    fn plug_in_ipv6(&self, node: &Netns, eni: &EniView, near: &str) -> Result<(), LabError> {
        self.router_ipv6(eni)?;
        let Some(own) = eni.ipv6 else { return Ok(()) };
        node.ip(&format!("addr add {own}/128 dev {near} nodad\nroute add default via {ROUTER6} dev {near}\n"))
    }

    /// Brings routes, neighbours and allowed sources in line with the ENI's addresses.
    fn route(&self, eni: &EniView) -> Result<(), LabError> {
        let far = far_end(eni);
        let want: Vec<Ipv4Addr> = eni.sources().into_iter().collect();
        let had = self.state().routed.insert(eni.id.clone(), want.clone()).unwrap_or_default();
        let (mut ip, mut nft) = (String::new(), String::new());
        for address in want.iter().filter(|address| !had.contains(address)) {
            ip.push_str(&format!("route replace {address}/32 dev {far}\n"));
            ip.push_str(&format!("neigh replace {address} lladdr {} dev {far} nud permanent\n", eni.mac));
            nft.push_str(&format!("add element inet fabric allowed {{ \"{far}\" . {address} }}\n"));
        }
        for address in had.iter().filter(|address| !want.contains(address)) {
            ip.push_str(&format!("route del {address}/32 dev {far}\nneigh del {address} dev {far}\n"));
            nft.push_str(&format!("delete element inet fabric allowed {{ \"{far}\" . {address} }}\n"));
        }
        let want: Vec<Ipv6Network> = eni.ipv6_sources().into_iter().collect();
        let had = self.state().routed6.insert(eni.id.clone(), want.clone()).unwrap_or_default();
        for range in want.iter().filter(|range| !had.contains(range)) {
            ip.push_str(&format!("route replace {range} via {NEIGHBOUR6} dev {far}\n"));
            nft.push_str(&format!("add element inet fabric allowed6 {{ \"{far}\" . {range} }}\n"));
        }
        for range in had.iter().filter(|range| !want.contains(range)) {
            ip.push_str(&format!("route del {range} dev {far}\n"));
            nft.push_str(&format!("delete element inet fabric allowed6 {{ \"{far}\" . {range} }}\n"));
        }
        if !nft.is_empty() {
            self.vpc.ip(&ip)?;
            self.vpc.nft(&nft)?;
        }
        Ok(())
    }

    fn unplug(&self, eni: &EniView) -> Result<(), LabError> {
        self.vpc.ip(&format!("link del {}\n", far_end(eni)))?;
        self.forget(eni)
    }

    fn unplug_branch(&self, branch: &EniView) -> Result<(), LabError> {
        if !self.state().routed.contains_key(&branch.id) {
            return Ok(());
        }
        // A stand-in has gone with its end in the node, which the daemon deletes with the pod.
        let _may_be_gone = self.vpc.ip(&format!("link del {}\n", far_end(branch)));
        self.forget(branch)
    }

    /// Takes the sources of an ENI that is gone out of those that are allowed.
    fn forget(&self, eni: &EniView) -> Result<(), LabError> {
        let far = far_end(eni);
        let had = self.state().routed.remove(&eni.id).unwrap_or_default();
        let gone =
            |address: &Ipv4Addr| format!("delete element inet fabric allowed {{ \"{far}\" . {address} }}\n");
        let mut nft: String = had.iter().map(gone).collect();
        let had = self.state().routed6.remove(&eni.id).unwrap_or_default();
        let gone =
            |range: &Ipv6Network| format!("delete element inet fabric allowed6 {{ \"{far}\" . {range} }}\n");
        nft.extend(had.iter().map(gone));
        if eni.attachment.is_some() && place(eni) == (0, 0) {
            nft.push_str(&format!("delete element inet fabric public {{ {} }}\n", eni.primary));
        }
        if nft.is_empty() { Ok(()) } else { self.vpc.nft(&nft) }
    }
}

impl Wiring for Plumbing {
    fn attached(&self, instance: &InstanceId, eni: &EniView) {
        let Some(node) = self.node(instance) else { return };
        self.note("attach", self.plug_in(&node, eni));
    }

    fn detached(&self, _instance: &InstanceId, eni: &EniView) {
        self.note("detach", self.unplug(eni));
    }

    fn addresses_changed(&self, eni: &EniView) {
        self.note("addresses", self.route(eni));
    }

    fn associated(&self, instance: &InstanceId, trunk: &EniView, branch: &EniView) {
        let Some(node) = self.node(instance) else { return };
        self.note("associate", self.plug_in_branch(&node, trunk, branch));
    }

    fn disassociated(&self, _instance: &InstanceId, branch: &EniView) {
        self.note("disassociate", self.unplug_branch(branch));
    }
}

/// The network card of an ENI and its place there.
fn place(eni: &EniView) -> (u8, u8) {
    eni.attachment.as_ref().map_or((0, 0), |attachment| (attachment.card.0, attachment.device.0))
}

/// The fabric's end of an ENI.
fn far_end(eni: &EniView) -> String {
    let id = eni.id.as_str();
    format!("f-{}", &id[id.len().saturating_sub(12)..])
}
