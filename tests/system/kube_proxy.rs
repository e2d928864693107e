//! Services beside kube-proxy in each of its modes, whoever starts first: what each server sees of who asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use lab::LabError;
use lab::fabric::{Drops, INTERNET_HOST, SECOND_CIDR_HOST};
use lab::kube_proxy::{Endpoint, KubeProxy, Mode, Policy, Service};
use lab::netns::Netns;
use lab::node::Node;
use lab::probe::{By, Conversation, Echo, PORT, ask_by};
use lab::runtime::Pod;

use crate::support::{Outcome, Setting, Test, ensure, launch, while_asking};

/// Port of a service's ClusterIP.
const SERVICE_PORT: u16 = 80;
/// How often kube-proxy is restarted under traffic.
const RESTARTS: usize = 5;

/// Why a test cannot run here; to be asked inside the lab.
type Missing = fn() -> Option<String>;

pub(crate) const TESTS: &[(Test, Missing)] = &[
    (("services_work_beside_kube_proxy_in_iptables_legacy_mode", legacy), || Mode::IptablesLegacy.missing()),
    (("services_work_beside_kube_proxy_in_iptables_nft_mode", nft), || Mode::IptablesNft.missing()),
    (("services_work_beside_kube_proxy_in_nftables_mode", nftables), || Mode::Nftables.missing()),
    (("services_work_beside_kube_proxy_in_ipvs_mode", ipvs), || Some(no_ipvs())),
];

fn no_ipvs() -> String {
    let there = std::path::Path::new("/proc/net/ip_vs").exists();
    let lacking = if there { "the lab's kube-proxy has" } else { "this kernel has" };
    format!("{lacking} no IPVS")
}

fn legacy() -> Outcome {
    matrix(Mode::IptablesLegacy)
}

fn nft() -> Outcome {
    matrix(Mode::IptablesNft)
}

fn nftables() -> Outcome {
    matrix(Mode::Nftables)
}

fn ipvs() -> Outcome {
    Err(LabError::Otherwise(no_ipvs()))
}

/// On the first node kube-proxy is there before our daemon, on the second one after it. Then it is restarted under traffic: its
/// hooks are then younger than ours on both.
fn matrix(mode: Mode) -> Outcome {
    let setting = Setting::launch("m5.large")?;
    let node = &setting.node;
    let own = node.instance().address;
    let first = KubeProxy::start(mode, node.netns(), own)?;
    let world = World::populate(&setting)?;
    let second = KubeProxy::start(mode, world.other.netns(), world.other.instance().address)?;
    let services = world.services();
    first.sync(&services)?;
    second.sync(&services)?;
    let before = [first.rules()?, second.rules()?];
    world.ask_everything(&services)?;

    under_traffic(&world, &services, || {
        let mut restarts = (0..RESTARTS).flat_map(|_| [&first, &second]);
        restarts.try_for_each(|proxy| proxy.restart(&services))
    })?;
    world.ask_everything(&services)?;

    node.kill_daemon();
    node.start_daemon(SETTINGS)?;
    node.wait_ready()?;
    world.ask_everything(&services)?;
    let after = [first.rules()?, second.rules()?];
    ensure!(before == after, "kube-proxy's rules were {}, and are {}", before[0], after[0]);
    let drops = setting.fabric.drops()?;
    ensure!(drops == Drops { wrong_source: 0, not_public: 0 }, "{drops:?}");
    Ok(())
}

/// No more addresses than pods ask for, so that the primary ENI fills up first.
const SETTINGS: &[(&str, &str)] = &[("WARM_IP_TARGET", "1")];

/// Two nodes, pods on the primary and on a secondary ENI of the first one, and who is asked.
struct World<'a> {
    setting: &'a Setting,
    other: Node,
    /// Two on the primary ENI, two on the secondary one.
    pods: [Pod; 4],
    /// On the other node.
    remote: Pod,
    /// Primary address of the secondary ENI.
    eni: Ipv4Addr,
    _echoes: Vec<Echo>,
}

/// Somebody who asks.
struct Client<'a> {
    name: &'static str,
    netns: &'a Netns,
    address: Ipv4Addr,
    /// The node whose kube-proxy translates what it sends; none for who is outside.
    node: Option<Ipv4Addr>,
}

/// A question and what the server must see.
struct Case {
    what: String,
    to: SocketAddrV4,
    seen: Vec<Ipv4Addr>,
}

impl<'a> World<'a> {
    fn populate(setting: &'a Setting) -> Result<Self, LabError> {
        let other = launch(&setting.fabric, "node2", "m5.large")?;
        for node in [&setting.node, &other] {
            node.start_daemon(SETTINGS)?;
            node.wait_ready()?;
        }
        let mut all = setting.pods(0..11)?;
        let secondary = all.split_off(9);
        all.truncate(2);
        let pods: [Pod; 4] = all
            .into_iter()
            .chain(secondary)
            .collect::<Vec<Pod>>()
            .try_into()
            .map_err(|pods: Vec<Pod>| LabError::Otherwise(format!("{} pods", pods.len())))?;
        let mut remote = Pod::create("remote", "remote")?;
        remote.add(&other)?;
        let enis = setting.fabric.ec2().enis();
        let holds = |pod: &Pod| {
            let eni = enis.iter().find(|eni| pod.address.is_some_and(|held| eni.secondary.contains(&held)));
            eni.map(|eni| eni.primary)
        };
        let [on_primary, .., on_secondary] = pods.each_ref().map(holds);
        let own = setting.node.instance().address;
        ensure!(on_primary == Some(own) && on_secondary != Some(own), "pods are on one ENI");
        let eni = on_secondary.unwrap_or(own);
        let served = pods.iter().map(|pod| &pod.netns).chain([&remote.netns, setting.node.netns()]);
        let served = served.chain([setting.fabric.internet(), setting.fabric.second()]);
        let echoes = served.map(Echo::start).collect::<Result<_, _>>()?;
        Ok(Self { setting, other, pods, remote, eni, _echoes: echoes })
    }

    fn own(&self) -> Ipv4Addr {
        self.setting.node.instance().address
    }

    fn address(pod: &Pod) -> Ipv4Addr {
        pod.address.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    fn services(&self) -> Vec<Service> {
        let here = |n: usize| endpoint(Self::address(&self.pods[n]), Some(self.own()));
        let remote = endpoint(Self::address(&self.remote), Some(self.other.instance().address));
        let all = vec![here(0), here(2), remote];
        let of = [
            ("prim", Policy::Cluster, vec![here(0)]),
            ("sec", Policy::Cluster, vec![here(2)]),
            ("far", Policy::Cluster, vec![remote]),
            ("all", Policy::Cluster, all.clone()),
            ("lprim", Policy::Local, vec![here(0)]),
            ("lsec", Policy::Local, vec![here(2)]),
            ("lall", Policy::Local, all),
            ("host", Policy::Cluster, vec![endpoint(self.own(), Some(self.own()))]),
            ("out", Policy::Cluster, vec![endpoint(INTERNET_HOST, None)]),
        ];
        let number = |(n, (name, policy, endpoints))| Service {
            name,
            cluster: SocketAddrV4::new([172, 20, 0, n].into(), SERVICE_PORT),
            node_port: 30_000 + u16::from(n),
            policy,
            endpoints,
        };
        (1..).zip(of).map(number).collect()
    }

    fn clients(&self) -> [Client<'_>; 8] {
        let (own, other) = (self.own(), self.other.instance().address);
        let pod = |name, pod: &'_ Pod| (name, Self::address(pod));
        let client = |(name, address), netns, node| Client { name, netns, address, node };
        let [p0, p1, s0, s1] = &self.pods;
        [
            client(pod("a pod on the primary ENI", p1), &p1.netns, Some(own)),
            client(pod("a pod on a secondary ENI", s1), &s1.netns, Some(own)),
            client(pod("a server on the primary ENI", p0), &p0.netns, Some(own)),
            client(pod("a server on a secondary ENI", s0), &s0.netns, Some(own)),
            client(pod("a pod of another node", &self.remote), &self.remote.netns, Some(other)),
            client(("the node", own), self.setting.node.netns(), Some(own)),
            client(("a host in the VPC", SECOND_CIDR_HOST), self.setting.fabric.second(), None),
            client(("a host on the internet", INTERNET_HOST), self.setting.fabric.internet(), None),
        ]
    }

    fn cases(&self, client: &Client<'_>, services: &[Service]) -> Vec<Case> {
        let mut cases = self.direct(client);
        for service in services {
            if let Some(node) = client.node {
                let seen = service.endpoints.iter().map(|endpoint| match endpoint.address.ip() {
                    // Its own answer would not come back by the service.
                    address if *address == client.address => node,
                    // Outside of the VPC.
                    _ if endpoint.node.is_none() => node,
                    _ => client.address,
                });
                let what = format!("ClusterIP of {}", service.name);
                cases.push(Case { what, to: service.cluster, seen: seen.collect() });
            }
            for node in [self.own(), self.other.instance().address] {
                let seen = self.seen_by_node_port(client, service, node);
                if !seen.is_empty() {
                    let (what, to) = (format!("node port of {}", service.name), (node, service.node_port));
                    cases.push(Case { what, to: SocketAddrV4::new(to.0, to.1), seen });
                }
            }
        }
        cases
    }

    /// Without a service.
    fn direct(&self, client: &Client<'_>) -> Vec<Case> {
        let case = |what: &str, to, seen| Case {
            what: what.to_owned(),
            to: SocketAddrV4::new(to, PORT),
            seen: vec![seen],
        };
        let pods = self.pods.iter().chain([&self.remote]);
        // Pods have no public addresses.
        let pods = pods.filter(|_| client.address != INTERNET_HOST);
        let mut cases: Vec<Case> =
            pods.map(|pod| case("a pod", Self::address(pod), client.address)).collect();
        if let Some(node) = client.node {
            cases.push(case("the VPC", SECOND_CIDR_HOST, client.address));
            cases.push(case("the internet", INTERNET_HOST, node));
        }
        cases
    }

    /// Which sources the servers of a service may see of who asks a node's port; none when nobody answers.
    fn seen_by_node_port(&self, client: &Client<'_>, service: &Service, node: Ipv4Addr) -> Vec<Ipv4Addr> {
        let is_node = client.address == node;
        let keeps_source = service.policy == Policy::Local && !is_node;
        let chosen = service.endpoints.iter().filter(|it| !keeps_source || it.node == Some(node));
        let by_secondary = self.pods[2..].iter().any(|pod| pod.address == Some(client.address));
        let seen = chosen.map(|endpoint| match *endpoint.address.ip() {
            // What the node serves itself leaves by no link, and masquerading is for what leaves.
            address if address == node => client.address,
            address if address == client.address => node,
            _ if keeps_source => client.address,
            // Masqueraded is to an address of the link by which it leaves.
            _ if by_secondary && node == self.own() && endpoint.node.is_some_and(|it| it != node) => self.eni,
            _ => node,
        });
        seen.collect()
    }

    /// Everybody asks all that can be asked, by both protocols.
    fn ask_everything(&self, services: &[Service]) -> Outcome {
        let (mut asked, mut wrong) = (0, Vec::new());
        for client in self.clients() {
            for Case { what, to, seen } in self.cases(&client, services) {
                for by in [By::Udp, By::Tcp] {
                    asked += 1;
                    let told = ask_by(by, client.netns, SocketAddr::V4(to))?;
                    if !told.is_some_and(|told| seen.iter().any(|seen| told == IpAddr::V4(*seen))) {
                        let Client { name, address, .. } = &client;
                        wrong.push(format!(
                            "{name} ({address}) to {what} ({to}, {by:?}): {told:?}, not {seen:?}"
                        ));
                    }
                }
            }
        }
        ensure!(asked > 300, "only {asked} questions");
        ensure!(wrong.is_empty(), "{} of {asked} went wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    }
}

fn endpoint(address: Ipv4Addr, node: Option<Ipv4Addr>) -> Endpoint {
    Endpoint { address: SocketAddrV4::new(address, PORT), node }
}

/// Does something while pods talk: what does not need kube-proxy goes on, and so do connections that it has translated.
fn under_traffic(world: &World<'_>, services: &[Service], act: impl FnOnce() -> Outcome) -> Outcome {
    let [_, primary, _, secondary] = &world.pods;
    let own = world.own();
    let talks = [(primary, "sec"), (secondary, "prim"), (secondary, "far")];
    let talk = |(pod, name): (&Pod, &str)| -> Result<_, LabError> {
        let service = services.iter().find(|service| service.name == name).map(|service| service.cluster);
        let service = service.ok_or_else(|| LabError::Otherwise(format!("no service {name}")))?;
        let talk = Conversation::open(&pod.netns, SocketAddr::V4(service))?;
        Ok((format!("{} to {name}", pod.name), talk, World::address(pod)))
    };
    let talks = talks.into_iter().map(talk).collect::<Result<Vec<_>, _>>()?;
    let fresh = [
        (primary, INTERNET_HOST, own),
        (secondary, INTERNET_HOST, own),
        (secondary, World::address(&world.remote), World::address(secondary)),
    ];
    let right = |what: &str, told: Option<IpAddr>, seen: Ipv4Addr| -> Outcome {
        ensure!(told == Some(IpAddr::V4(seen)), "{what} saw {told:?}, not {seen}");
        Ok(())
    };
    let round = || -> Outcome {
        for (what, talk, seen) in &talks {
            right(what, talk.ask(), *seen)?;
        }
        for (pod, to, seen) in fresh {
            right(&format!("{to}"), ask_by(By::Udp, &pod.netns, (to, PORT).into())?, seen)?;
        }
        Ok(())
    };
    while_asking(round, act)
}
