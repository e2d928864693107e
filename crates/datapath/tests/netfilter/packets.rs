//! Where packets arrive, and with which source.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath::netfilter::{NatSpec, Netfilter, SnatPorts, ruleset};
use ipnetwork::Ipv4Network;
use libtest_mimic::Failed;

use crate::lab::{Lab, ip, serve};
use crate::table::{nft, nft_json};
use crate::values::{FIRST, IN_VPC, NODE, OUTSIDE, PORT, SECOND, sourced, spec, wanted};
use crate::{Outcome, Test, check};

pub(crate) const TESTS: [Test; 9] = [
    ("off_vpc_traffic_has_the_nodes_address_and_the_primary_eni", off_vpc),
    ("vpc_traffic_keeps_its_address_and_its_eni", in_vpc),
    ("a_node_ports_reply_leaves_by_the_primary_eni", node_port),
    ("an_address_of_the_node_alone_leaves_translated_and_is_reached_by_nobody", local),
    ("external_snat_leaves_every_pod_to_its_eni", external_snat),
    ("only_our_bits_of_a_mark_change", marks),
    ("no_packet_escapes_while_the_table_changes", changed_under_load),
    ("no_packet_escapes_while_processes_that_start_write_all_rules_anew", begun_under_load),
    ("no_packet_escapes_while_the_table_is_exchanged_for_one_of_another_shape", exchanged_under_load),
];

fn off_vpc() -> Outcome {
    let lab = Lab::new(&wanted())?;
    for (pod, name) in [(&lab.first, "first"), (&lab.second, "second")] {
        let answer = pod.run(|| exchange(&mut client()?, OUTSIDE, PORT))?;
        check(answer.starts_with("primary 10.0.0.10:"), format!("{name} is seen as {answer:?}"))?;
    }
    let own = lab.node.run(|| exchange(&mut client()?, OUTSIDE, PORT))?;
    check(own.starts_with("primary 10.0.0.10:"), format!("the node is seen as {own:?}"))
}

fn in_vpc() -> Outcome {
    let lab = Lab::new(&wanted())?;
    let first = lab.first.run(|| exchange(&mut client()?, IN_VPC, PORT))?;
    check(first.starts_with("primary 10.0.0.20:"), format!("first is seen as {first:?}"))?;
    let second = lab.second.run(|| exchange(&mut client()?, IN_VPC, PORT))?;
    check(second.starts_with("secondary 10.0.1.20:"), format!("second is seen as {second:?}"))
}

fn node_port() -> Outcome {
    let lab = Lab::new(&wanted())?;
    // As kube-proxy with externalTrafficPolicy: Local, which masquerades nothing.
    lab.node.run(|| {
        nft("table ip kube-proxy {\n chain services {\n type nat hook prerouting priority -100\n \
             fib daddr type local udp dport 30000 dnat to 10.0.1.20:5353\n }\n }\n")
    })?;
    lab.second.run(|| serve("pod", SECOND))?;
    let from_outside = || {
        let socket = UdpSocket::bind((OUTSIDE, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok::<_, Failed>(socket)
    };
    let answer = lab.primary.run(|| exchange(&mut from_outside()?, NODE, 30000))?;
    check(answer.starts_with("pod 8.8.8.8:"), format!("the pod sees {answer:?}"))?;
    // Without our rule the reply leaves by the other ENI and is lost.
    let without = ruleset(&NatSpec { node_port: false, ..spec() });
    lab.node.run(|| Ok(Netfilter::default().put(without).map(drop)?))?;
    let lost = lab.primary.run(|| {
        let mut socket = from_outside()?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(exchange(&mut socket, NODE, 30000))
    })?;
    check(lost.is_err(), "the test does not show anything: the reply arrives without the rule too")
}

fn local() -> Outcome {
    let range = "10.0.0.16/29".parse()?;
    let lab = Lab::new(&ruleset(&NatSpec { local: Some(range), no_snat: BTreeSet::new(), ..spec() }))?;
    let first = lab.first.run(|| exchange(&mut client()?, IN_VPC, PORT))?;
    check(first.starts_with("primary 10.0.0.10:"), format!("first is seen as {first:?}"))?;

    let from_second_address = || {
        let mut socket = UdpSocket::bind((Ipv4Addr::new(10, 0, 0, 11), 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        exchange(&mut socket, IN_VPC, PORT)
    };
    let own = lab.node.run(|| ip("addr add 10.0.0.11/24 dev ens5").and_then(|()| from_second_address()))?;
    check(own.starts_with("primary 10.0.0.11:"), format!("the node's second address is seen as {own:?}"))?;

    lab.first.run(|| serve("pod", FIRST))?;
    let reach = || {
        let mut socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(exchange(&mut socket, FIRST, PORT))
    };
    check(lab.second.run(reach)?.is_err(), "another pod reaches it")?;
    // Others are reached as ever.
    let outside = Lab::new(&wanted())?;
    outside.first.run(|| serve("pod", FIRST))?;
    check(outside.second.run(reach)?.is_ok(), "the test does not show anything")
}

fn external_snat() -> Outcome {
    let lab = Lab::new(&ruleset(&NatSpec { snat: None, ..spec() }))?;
    let first = lab.first.run(|| exchange(&mut client()?, OUTSIDE, PORT))?;
    check(first.starts_with("primary 10.0.0.20:"), format!("first is seen as {first:?}"))?;
    let second = lab.second.run(|| exchange(&mut client()?, OUTSIDE, PORT))?;
    check(second.starts_with("secondary 10.0.1.20:"), format!("second is seen as {second:?}"))
}

fn marks() -> Outcome {
    let lab = Lab::new(&wanted())?;
    lab.node.run(|| {
        nft("table ip other {\n \
             chain before {\n type filter hook prerouting priority -160\n \
             iifname \"enisecond\" meta mark set 0x4000\n iifname \"enisecond\" ct mark set 0x10000\n }\n \
             chain after {\n type filter hook prerouting priority -90\n \
             iifname \"enisecond\" ip daddr 8.8.8.8 meta mark 0x4280 ct mark 0x10080 counter\n \
             iifname \"enisecond\" ip daddr 10.0.9.9 meta mark 0x4200 ct mark 0x10000 counter\n }\n }\n")
    })?;
    lab.second.run(|| {
        exchange(&mut client()?, OUTSIDE, PORT)?;
        exchange(&mut client()?, IN_VPC, PORT)
    })?;
    let seen = lab.node.run(|| nft_json(&["list", "chain", "ip", "other", "after"]))?;
    let expressions = seen.iter().filter_map(|object| object["rule"]["expr"].as_array()).flatten();
    let counts: Vec<u64> = expressions.filter_map(|e| e["counter"]["packets"].as_u64()).collect();
    check(counts == [1, 1], format!("packets with the expected marks: {counts:?}"))
}

fn changed_under_load() -> Outcome {
    let mut netfilter = Netfilter::default();
    under_load(|| {
        netfilter.put(ruleset(&other()))?;
        netfilter.put(wanted())?;
        Ok(())
    })
}

fn begun_under_load() -> Outcome {
    under_load(|| {
        let steps = Netfilter::default().put(wanted())?;
        check(!steps.is_empty(), "what another process wrote is believed")
    })
}

/// Does something to the node's table again and again while packets flow.
fn under_load(mut change: impl FnMut() -> Outcome + Send) -> Outcome {
    let lab = Lab::new(&wanted())?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            lab.node.run(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    change()?;
                    rounds += 1;
                }
                Ok(rounds)
            })
        });
        let talked = lab.second.run(talk);
        done.store(true, Ordering::Relaxed);
        let rounds: u32 =
            changing.join().map_err(|_panic| Failed::from("the changing thread panicked"))??;
        talked?;
        check(rounds > 1, "the table did not change while packets flowed")
    })
}

/// How often the table is exchanged.
const EXCHANGES: u32 = 100;

/// An upgrade from a version whose chains have other places in the kernel, and a map more: again and again, while both pods begin
/// connections without a pause. Only while the table of before is put back nobody talks.
fn exchanged_under_load() -> Outcome {
    let lab = Lab::new(&wanted())?;
    let before =
        wanted().to_string().replace("priority -95", "priority -94").replace("priority 110", "priority 111");
    let before =
        before.replacen("  chain", "  map of_before {\n    type ipv4_addr : verdict\n  }\n  chain", 1);
    let before = format!("add table ip aws-vpc-cni\ndelete table ip aws-vpc-cni\n{before}");
    let (quiet, done) = (RwLock::new(()), AtomicBool::new(false));
    let pod_talks = |to: Ipv4Addr, want: &str| -> Result<(u32, u32), Failed> {
        let (mut asked, mut wrong) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            let _talking = quiet.read().map_err(|_poisoned| "the other side has panicked")?;
            let answer = exchange(&mut client()?, to, PORT)?;
            asked += 1;
            wrong += u32::from(!answer.starts_with(want));
        }
        Ok((asked, wrong))
    };
    std::thread::scope(|scope| {
        let outside = scope.spawn(|| lab.first.run(|| pod_talks(OUTSIDE, "primary 10.0.0.10:")));
        let inside = scope.spawn(|| lab.second.run(|| pod_talks(IN_VPC, "secondary 10.0.1.20:")));
        let exchanged = lab.node.run(|| {
            let mut netfilter = Netfilter::default();
            for _ in 0..EXCHANGES {
                {
                    let _nobody_talks = quiet.write().map_err(|_poisoned| "a talker has panicked")?;
                    nft(&before)?;
                }
                std::thread::sleep(Duration::from_millis(5));
                check(!netfilter.put(wanted())?.is_empty(), "the table is not exchanged")?;
            }
            check(netfilter.matches(&wanted())?, "the table is not as wanted in the end")
        });
        done.store(true, Ordering::Relaxed);
        let counted = [outside.join(), inside.join()];
        exchanged?;
        for (counted, to) in counted.into_iter().zip(["outside", "the VPC"]) {
            let (asked, wrong) = counted.map_err(|_panic| Failed::from("a talking thread panicked"))??;
            check(
                wrong == 0,
                format!(
                    "{wrong} of {asked} connections to {to} were not led or translated as they should be"
                ),
            )?;
            check(asked > EXCHANGES, format!("only {asked} connections to {to} were begun"))?;
        }
        Ok(())
    })
}

/// Differs in its rules, in both sets and in the steering chains, but not in what the flows of the test need.
fn other() -> NatSpec {
    let mut other = sourced([("10.0.1.20/32", 0x200), ("10.0.1.21/32", 0x200), ("10.0.2.0/28", 0x300)]);
    other.snat = Some(SnatPorts::HashRandom);
    other.no_snat.extend(["172.16.0.0/12".parse::<Ipv4Network>()].into_iter().flatten());
    NatSpec { node_port: false, ..other }
}

/// One long flow, and a new one for every packet of it.
fn talk() -> Outcome {
    let mut long = client()?;
    let first = exchange(&mut long, OUTSIDE, PORT)?;
    for round in 0..300 {
        let same = exchange(&mut long, OUTSIDE, PORT)?;
        check(same == first, format!("round {round}: the flow was {first}, then {same}"))?;
        let outside = exchange(&mut client()?, OUTSIDE, PORT)?;
        check(
            outside.starts_with("primary 10.0.0.10:"),
            format!("round {round}: new flow seen as {outside:?}"),
        )?;
        let inside = exchange(&mut client()?, IN_VPC, PORT)?;
        check(
            inside.starts_with("secondary 10.0.1.20:"),
            format!("round {round}: VPC flow seen as {inside:?}"),
        )?;
    }
    Ok(())
}

fn client() -> Result<UdpSocket, Failed> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// Asks, and returns the answer: who answers and whom they see.
fn exchange(socket: &mut UdpSocket, address: Ipv4Addr, port: u16) -> Result<String, Failed> {
    socket.connect(SocketAddrV4::new(address, port))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).map_err(|error| format!("no answer from {address}: {error}"))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
