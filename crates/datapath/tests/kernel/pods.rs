//! One pod at a time: wired, checked, mended, taken away.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use datapath::{Host, Mending, NodeSpec, PROTOCOL, PodSpec, Wirer};
use libtest_mimic::Failed;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use types::{HostVeth, PodName, VethPrefix};

use crate::{Outcome, converge, ip, ipv6, json, node, unshare};

/// A pod's namespace: its descriptor, and what the plugin would pass.
pub(crate) struct Pod {
    pub(crate) netns: File,
    pub(crate) spec: PodSpec,
}

impl Pod {
    pub(crate) fn new(number: u32) -> Result<Self, Failed> {
        let netns = std::thread::spawn(|| {
            unshare(UnshareFlags::NEWNET)?;
            ip("link set lo up").map_err(|e| std::io::Error::other(format!("{e:?}")))?;
            File::open("/proc/thread-self/ns/net")
        });
        let netns = netns.join().map_err(|_panic| "no namespace")??;
        let pod = PodName { namespace: "default".to_owned(), name: format!("pod-{number}") };
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 4, 0)) + number);
        let addresses = vec![IpAddr::V4(address)];
        Ok(Self {
            netns,
            spec: PodSpec {
                host_if,
                container_if: "eth0".to_owned(),
                index: 0,
                addresses,
                mtu: 9001,
                branch: None,
            },
        })
    }

    /// One with an IPv6 address too.
    pub(crate) fn dual(number: u32) -> Result<Self, Failed> {
        let mut pod = Self::new(number)?;
        pod.spec.addresses.push(format!("2001:db8:0:1::{number}").parse()?);
        Ok(pod)
    }

    pub(crate) fn name(&self) -> String {
        self.spec.host_if.to_string()
    }

    /// Runs something inside.
    pub(crate) fn inside<T: Send>(
        &self,
        run: impl FnOnce() -> Result<T, Failed> + Send,
    ) -> Result<T, Failed> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                run()
            });
            thread.join().map_err(|_panic| Failed::from("it panicked"))?
        })
    }

    pub(crate) fn socket(&self) -> Result<OwnedFd, Failed> {
        self.inside(|| Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    pub(crate) fn add(&self, wirer: &mut Wirer) -> Outcome {
        Ok(wirer.add(&self.spec, self.netns.as_fd(), self.socket()?)?)
    }
}

/// Whether the host takes router advertisements from a pod, and whether its end does without IPv6. No such files without IPv6 in the kernel.
fn ipv6_settings(pod: &Pod) -> Option<[String; 2]> {
    let read = |name| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/{name}", pod.spec.host_if));
        Some(text.ok()?.trim().to_owned())
    };
    Some([read("accept_ra")?, read("disable_ipv6")?])
}

pub(crate) fn pod_life() -> Outcome {
    let spec = node()?;
    converge(&spec)?;
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(7)?;

    pod.add(&mut wirer)?;

    let routes = json("route show table 51200")?;
    assert_eq!(
        (routes[0]["dst"].as_str(), routes[0]["dev"].as_str()),
        (Some("10.0.4.7"), Some(pod.spec.host_if.as_str()))
    );
    pod.inside(|| {
        let link = json("addr show dev eth0")?;
        assert_eq!(link[0]["addr_info"][0]["local"], "10.0.4.7");
        assert_eq!(link[0]["addr_info"][0]["prefixlen"], 32);
        assert_eq!(link[0]["mtu"], 9001);
        let routes = json("route")?;
        assert!(routes.iter().any(|r| r["dst"] == "default" && r["gateway"] == "169.254.1.1"), "{routes:?}");
        assert!(routes.iter().any(|r| r["dst"] == "169.254.1.1" && r["scope"] == "link"), "{routes:?}");
        let neighbours = json("neigh")?;
        assert_eq!(neighbours[0]["lladdr"], pod.spec.host_if.mac().to_string());
        assert_eq!(neighbours[0]["state"][0], "PERMANENT");
        Ok(())
    })?;
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
    assert_eq!(wirer.pods()?.len(), 1);
    assert_eq!(ipv6_settings(&pod), ipv6().then(|| ["0", "1"].map(str::to_owned)));

    ip("route flush table 51200")?;
    let found = wirer.check(&pod.spec, pod.socket()?)?;
    assert_eq!(found, [format!("10.0.4.7 is not routed to {}", pod.spec.host_if)]);
    let mended = Host::open()?.converge(&spec, Some(std::slice::from_ref(&pod.spec)))?;
    assert_eq!(mended.changes.len(), 1, "{:?}", mended.changes);
    assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());

    wirer.remove(&pod.spec)?;
    wirer.sweep()?;
    assert!(!ip("link")?.contains(pod.spec.host_if.as_str()));
    wirer.remove(&pod.spec)?;
    wirer.sweep()?;
    Ok(())
}

/// A pod with three interfaces: each address leaves by its own, all or none are wired.
pub(crate) fn several_interfaces() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(1)?;
    let further = |index: u8| {
        let name = PodName { namespace: "default".to_owned(), name: "pod-1".to_owned() };
        let host_if = HostVeth::of_pod(&VethPrefix::default(), &name, index);
        let addresses = vec![IpAddr::V4(Ipv4Addr::new(10, 0, 5, index))];
        PodSpec { host_if, container_if: format!("mNicIf{index}"), index, addresses, mtu: 9001, branch: None }
    };
    let specs = [pod.spec.clone(), further(1), further(2)];

    wirer.add_all(&specs, pod.netns.as_fd(), pod.socket()?)?;

    assert_eq!(wirer.check_all(&specs, pod.socket()?)?, Vec::<String>::new());
    pod.inside(|| {
        for (number, gateway) in [(1_u8, "169.254.1.2"), (2, "169.254.1.3")] {
            let way = json(&format!("route get 192.0.2.9 from 10.0.5.{number}"))?;
            assert_eq!(
                (way[0]["dev"].as_str(), way[0]["gateway"].as_str()),
                (Some(&*format!("mNicIf{number}")), Some(gateway))
            );
        }
        let way = json("route get 192.0.2.9")?;
        assert_eq!((way[0]["dev"].as_str(), way[0]["gateway"].as_str()), (Some("eth0"), Some("169.254.1.1")));
        let rules = json("rule")?;
        assert_eq!(rules.iter().filter(|rule| rule["priority"] == 1).count(), 2, "{rules:?}");
        Ok(())
    })?;
    // The same once more, as after an answer that was lost.
    wirer.add_all(&specs, pod.netns.as_fd(), pod.socket()?)?;
    assert_eq!(wirer.check_all(&specs, pod.socket()?)?, Vec::<String>::new());

    pod.inside(|| ip("rule del pref 1 from 10.0.5.2").and_then(|_| ip("route flush table 1")))?;
    let found = wirer.check_all(&specs, pod.socket()?)?;
    assert_eq!(
        found,
        [
            "the pod has no route to 169.254.1.2/32",
            "the pod has no route to 0.0.0.0/0",
            "the pod has no rule for packets of mNicIf2"
        ]
    );

    for spec in &specs {
        wirer.remove(spec)?;
    }
    wirer.sweep()?;
    assert_eq!(wirer.pods()?, []);
    // The last of them cannot be made: its name inside is taken.
    pod.inside(|| ip("link add mNicIf2 type bridge"))?;
    assert!(wirer.add_all(&specs, pod.netns.as_fd(), pod.socket()?).is_err());
    assert_eq!(wirer.pods()?, []);
    for spec in &specs {
        assert!(!wirer.has_link(spec.host_if.as_str())?, "{} stays", spec.host_if);
    }
    pod.inside(|| {
        assert!(json("rule")?.iter().all(|rule| rule["priority"] != 1));
        Ok(())
    })
}

/// Nobody waits for the kernel to find out that nobody else has the address.
pub(crate) fn dual_stack() -> Outcome {
    let spec = NodeSpec { ipv6: true, ..node()? };
    converge(&spec)?;
    let mut wirer = Wirer::open()?;
    let (one, two) = (Pod::dual(1)?, Pod::dual(2)?);
    one.add(&mut wirer)?;
    two.add(&mut wirer)?;
    assert_eq!(ipv6_settings(&one), Some(["0", "0"].map(str::to_owned)));
    let server = two.inside(|| Ok(UdpSocket::bind("[2001:db8:0:1::2]:7000")?))?;
    server.set_read_timeout(Some(Duration::from_millis(900)))?;

    let client = one.inside(|| Ok(UdpSocket::bind("[2001:db8:0:1::1]:7001")?))?;
    client.send_to(b"hello", "[2001:db8:0:1::2]:7000")?;
    let mut buffer = [0; 16];
    let (got, from) = server.recv_from(&mut buffer)?;

    assert_eq!((&buffer[..got], from.to_string().as_str()), (&b"hello"[..], "[2001:db8:0:1::1]:7001"));
    assert_eq!(wirer.check(&one.spec, one.socket()?)?, Vec::<String>::new());
    assert_eq!(wirer.pods()?[0].addresses, one.spec.addresses);
    assert_eq!(json("-6 route show table 51200")?.len(), 2);

    ip(&format!("link set {} down", one.spec.host_if))?;
    assert_eq!(mended(&mut wirer, &[one.spec.clone(), two.spec.clone()])?, [one.name()]);
    assert_eq!(wirer.check(&one.spec, one.socket()?)?, Vec::<String>::new());
    one.inside(|| ip("-6 route del default"))?;
    let found = wirer.check(&one.spec, one.socket()?)?;
    assert_eq!(found, ["the pod has no route to ::/0"]);

    // The host asks who has a pod's address from one of its own end.
    let (name, socket) = (two.name(), UdpSocket::bind("[::]:0")?);
    ip("-6 addr add 2001:db8:0:2::1/128 dev lo")?;
    ip(&format!("-6 addr flush dev {name}"))?;
    ip(&format!("-6 neigh flush dev {name}"))?;
    assert_eq!(wirer.check(&two.spec, two.socket()?)?, [format!("{name} has no address fe80::1")]);
    let lost = wirer.mend(std::slice::from_ref(&two.spec))?.mended;
    assert_eq!(
        lost.iter().map(|it| it.what.join(", ")).collect::<Vec<_>>(),
        [format!("{name} had no address fe80::1")]
    );
    assert_eq!(wirer.check(&two.spec, two.socket()?)?, Vec::<String>::new());
    assert_eq!(mended(&mut wirer, std::slice::from_ref(&two.spec))?, Vec::<String>::new());
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(b"node", "[2001:db8:0:1::2]:7000")?;
    let (got, _) = server.recv_from(&mut buffer).map_err(|error| format!("from the node: {error}"))?;
    assert_eq!(&buffer[..got], b"node");

    wirer.remove(&one.spec)?;
    wirer.remove(&two.spec)?;
    wirer.sweep()?;
    assert_eq!(json("-6 route show table 51200")?.len(), 0);
    assert!(ip("-6 rule")?.contains("512:"));
    converge(&NodeSpec { ipv6: false, ..spec })?;
    assert!(!ip("-6 rule")?.contains("512:"));
    Ok(())
}

/// What `ip` tells of both ends, and of the pod's addresses.
fn ends(pod: &Pod) -> Result<[String; 3], Failed> {
    let link = |name: &str| -> Result<String, Failed> {
        let told = json(&format!("-d link show dev {name}"))?;
        let of = |field: &str| told[0][field].to_string();
        Ok(["address", "mtu", "group"].map(of).join(" "))
    };
    let name = &pod.spec.container_if;
    let inside =
        pod.inside(|| Ok([link(name)?, json(&format!("addr show dev {name}"))?[0]["addr_info"].to_string()]));
    let [inner, addresses] = inside?;
    // The address that the kernel gives the link follows its MAC address, and comes when it likes.
    let addresses = addresses.split("fe80:").next().unwrap_or_default().to_owned();
    Ok([link(&pod.name())?, inner, addresses])
}

/// What the data prints is what an ADD does: made by the real `ip`, neither CHECK nor repair finds anything amiss.
pub(crate) fn printed() -> Outcome {
    converge(&NodeSpec { ipv6: ipv6(), ..node()? })?;
    let mut wirer = Wirer::open()?;
    let mut further = Pod::new(3)?;
    further.spec = PodSpec { container_if: "mNicIf2".to_owned(), index: 2, ..further.spec };
    let mut pods = vec![Pod::new(1)?, further];
    pods.extend(if ipv6() { Some(Pod::dual(2)?) } else { None });
    for pod in pods {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.netns.as_raw_fd());
        for part in pod.spec.parts() {
            let command = part.command(&pod.spec, &netns);
            // `ip -n` takes names alone.
            if let Some(inside) = command.strip_prefix(&format!("ip -n {netns} ")) {
                pod.inside(|| ip(inside))?;
                continue;
            }
            match (command.strip_prefix("ip "), command.strip_prefix("sysctl -w ")) {
                (Some(on_host), _) => drop(ip(on_host)?),
                (None, Some(setting)) if ipv6() => {
                    let (name, value) = setting.split_once('=').ok_or("no value")?;
                    std::fs::write(format!("/proc/sys/{name}"), value)?;
                }
                (None, _) => assert!(command.starts_with("sysctl"), "{command}"),
            }
        }

        assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new());
        assert_eq!(wirer.mend(std::slice::from_ref(&pod.spec))?, Mending::default());
        let printed = (ends(&pod)?, ipv6_settings(&pod));
        ip(&format!("link del {}", pod.name()))?;
        if pod.spec.index > 0 {
            pod.inside(|| ip("rule del pref 1"))?;
        }
        pod.add(&mut wirer)?;
        assert_eq!((ends(&pod)?, ipv6_settings(&pod)), printed);
    }
    Ok(())
}

pub(crate) fn pod_mended() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(7)?;
    pod.add(&mut wirer)?;
    let specs = [pod.spec.clone()];
    assert_eq!(wirer.mend(&specs)?, Mending::default());
    let link = pod.name();
    let like_before = || ip(&format!("-o link show {link}"));
    let (before, settings) = (like_before()?, ipv6_settings(&pod));

    let unrouted = format!("10.0.4.7 was not routed to {link}");
    for (damage, what) in [
        ("route flush table 51200".to_owned(), unrouted.as_str()),
        (format!("link set {link} down"), &*format!("{link} was down")),
        ("route replace 10.0.4.7/32 dev lo table 51200".to_owned(), &unrouted),
        (format!("link set {link} mtu 1400"), "its MTU was 1400, not 9001"),
        // Too short for IPv6: the kernel forgets the settings.
        (format!("link set {link} mtu 1200"), "its MTU was 1200, not 9001"),
        (format!("link set {link} address 02:00:00:00:00:77"), "its MAC address was 02:00:00:00:00:77, not"),
    ] {
        ip(&damage)?;
        let mended = wirer.mend(&specs)?.mended;
        assert_eq!(mended.len(), 1, "{damage}");
        assert_eq!(mended[0].pod, &pod.spec, "{damage}");
        assert!(mended[0].what[0].starts_with(what), "{damage}: {:?}", mended[0].what);
        assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new(), "{damage}");
        assert_eq!(like_before()?, before, "{damage}");
        assert_eq!(ipv6_settings(&pod), settings, "{damage}");
        assert_eq!(wirer.mend(&specs)?, Mending::default(), "{damage}");
    }
    Ok(())
}

/// An MTU that the kernel does not take, here because the group of the link tells one of a single byte, keeps no route from coming back.
pub(crate) fn partly_refused() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let pod = Pod::new(7)?;
    pod.add(&mut wirer)?;
    ip(&format!("link set {} group {}", pod.name(), pod.spec.group() & !0xffff | 1))?;
    ip("route flush table 51200")?;

    let refused = Wirer::open()?.mend(std::slice::from_ref(&pod.spec)).is_err();

    assert!(refused, "an MTU of one byte is taken");
    assert_eq!(json("route show table 51200")?.len(), 1);
    Ok(())
}

/// A pod is gone when neither its link nor a route to it is there: one whose link somebody has renamed lives.
pub(crate) fn lost_pods_are_told() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let (lives, renamed, gone) = (Pod::new(7)?, Pod::new(8)?, Pod::new(9)?);
    [&lives, &renamed, &gone].into_iter().try_for_each(|pod| pod.add(&mut wirer))?;
    let specs = [lives.spec, renamed.spec.clone(), gone.spec.clone()];
    assert_eq!(wirer.mend(&specs)?, Mending::default());

    ip(&format!("link set {} down", renamed.name()))?;
    ip(&format!("link set {} name elsewhere", renamed.name()))?;
    ip("link set elsewhere up")?;
    let route = format!("{}/32 dev elsewhere table 51200 proto {PROTOCOL}", renamed.spec.addresses[0]);
    ip(&format!("route replace {route}"))?;
    ip(&format!("link del {}", gone.name()))?;
    let found = wirer.mend(&specs)?;
    assert_eq!((found.mended, found.lost), (Vec::new(), vec![&gone.spec]));
    Ok(())
}

/// Another daemon's wirer: it has not seen the ADD.
pub(crate) fn mended_after_restart() -> Outcome {
    converge(&node()?)?;
    let mut wirer = Wirer::open()?;
    let (ours, adopted) = (Pod::new(7)?, Pod::new(8)?);
    ours.add(&mut wirer)?;
    adopted.add(&mut wirer)?;
    // As the Go version makes it: any MAC address, no group, and the MTU of a setting of then.
    let inside = "neigh replace 169.254.1.1 lladdr 02:00:00:00:00:88 dev eth0 nud permanent";
    adopted.inside(|| ip(inside).and_then(|_| ip("link set eth0 mtu 1400")))?;
    ip(&format!("link set {} address 02:00:00:00:00:88 mtu 1400 group 0", adopted.name()))?;
    ip(&format!("link set {} address 02:00:00:00:00:99", ours.name()))?;
    let specs = [ours.spec.clone(), adopted.spec.clone()];
    let mut wirer = Wirer::open()?;

    assert_eq!(mended(&mut wirer, &specs)?, [ours.name()], "a MAC address that the name gives is known");
    ip(&format!("link set {} mtu 1300", ours.name()))?;
    assert_eq!(mended(&mut Wirer::open()?, &specs)?, [ours.name()], "and so is the MTU that the group says");
    ip(&format!("link set {} address 02:00:00:00:00:99 mtu 9001", adopted.name()))?;
    assert_eq!(mended(&mut wirer, &specs)?, [adopted.name()], "any other is that of the first look");

    for pod in [&ours, &adopted] {
        assert_eq!(wirer.check(&pod.spec, pod.socket()?)?, Vec::<String>::new(), "{}", pod.name());
    }
    assert!(ip(&format!("link show {}", adopted.name()))?.contains("mtu 1400"));
    assert_eq!(ipv6_settings(&adopted), ipv6().then(|| ["0", "1"].map(str::to_owned)));
    Ok(())
}

/// The links of the pods that a wirer mends.
pub(crate) fn mended(wirer: &mut Wirer, pods: &[PodSpec]) -> Result<Vec<String>, Failed> {
    Ok(wirer.mend(pods)?.mended.iter().map(|mended| mended.pod.host_if.to_string()).collect())
}
