//! The Go version's published examples of warm targets, against an obedient EC2.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what they build is well formed")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use pool::{Action, EniSeen, Limits, Outcome, Owner, Pool, Role, Targets};
use types::{DeviceIndex, HostVeth, Mac, Moment, NetworkCard, PodName, SandboxKey, VethPrefix};

const NOW: Moment = Moment(1_000_000);

/// A node whose EC2 does at once what it is asked.
struct Node {
    pool: Pool,
    limits: Limits,
    targets: Targets,
    next: u32,
}

impl Node {
    fn new(max_enis: u8, slots_per_eni: u8, targets: Targets) -> Self {
        let limits = Limits { max_enis, slots_per_eni, card: NetworkCard(0) };
        let mut node = Self { pool: Pool::new(Duration::from_secs(30)), limits, targets, next: 1 };
        let primary = EniSeen { role: Role::Primary, ..node.eni(0, 0) };
        node.pool.observe(&[primary], NOW, NOW);
        node
    }

    fn eni(&mut self, device: u8, addresses: u32) -> EniSeen {
        EniSeen {
            id: format!("eni-{device}").parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, device]),
            card: NetworkCard(0),
            device: DeviceIndex(device),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: self.address(),
            addresses: (0..addresses).map(|_| self.address()).collect(),
            role: Role::Secondary,
        }
    }

    fn address(&mut self) -> Ipv4Addr {
        self.next += 1;
        Ipv4Addr::from(0x0a00_0000 + self.next)
    }

    /// Lets the plan come true until there is none; the bound says that it settles.
    fn settle(&mut self) {
        for _ in 0..50 {
            let plan = self.pool.plan(&self.targets, &self.limits, 0, NOW);
            if plan.actions.is_empty() {
                return;
            }
            for planned in plan.actions {
                let id = self.pool.begin(&planned.action);
                let outcome = match planned.action {
                    Action::AssignAddresses { count, .. } => {
                        Outcome::Assigned((0..count).map(|_| self.address()).collect::<BTreeSet<_>>())
                    }
                    Action::CreateEni { device, addresses } => {
                        Outcome::Created(Box::new(self.eni(device.0, addresses)))
                    }
                    Action::ReleaseAddresses { .. } => Outcome::Released,
                    Action::DeleteEni { .. } => Outcome::Deleted,
                };
                self.pool.finish(id, outcome, NOW);
                self.pool.check().unwrap();
            }
        }
        panic!("the plan does not settle");
    }

    /// Adds pods one after the other, settling after each; then addresses and ENIs in all.
    fn with_pods(mut self, pods: u32) -> (u32, usize) {
        self.settle();
        for number in 0..pods {
            let sandbox = SandboxKey::new("aws-cni", &format!("c{number}"), "eth0").unwrap();
            let pod = PodName { namespace: "default".to_owned(), name: format!("p{number}") };
            let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
            self.pool.reserve(Owner { sandbox: sandbox.clone(), pod, host_if, since: NOW }, NOW).unwrap();
            self.pool.commit(&sandbox);
            self.settle();
        }
        (self.pool.counts(NOW).total(), self.pool.enis().len())
    }
}

fn ip_targets(warm: u32, minimum: u32) -> Targets {
    Targets { warm_ip: Some(warm), minimum_ip: Some(minimum), ..Targets::default() }
}

#[test]
fn t3_small_with_one_warm_eni() {
    let after = |pods| Node::new(3, 3, Targets::default()).with_pods(pods);

    assert_eq!([after(0), after(5), after(9)], [(3, 1), (9, 3), (9, 3)]);
}

#[test]
fn t3_small_with_one_warm_address_and_a_minimum_of_one() {
    let after = |pods| Node::new(3, 3, ip_targets(1, 1)).with_pods(pods);

    assert_eq!([after(0), after(5), after(9)], [(1, 1), (6, 2), (9, 3)]);
}

#[test]
fn t3_small_with_two_warm_addresses_and_a_minimum_of_five() {
    let after = |pods| Node::new(3, 3, ip_targets(2, 5)).with_pods(pods);

    assert_eq!([after(0), after(5), after(9)], [(5, 2), (7, 3), (9, 3)]);
}

#[test]
fn p3dn_24xlarge_with_five_warm_addresses_and_a_minimum_of_ten() {
    let after = |pods| Node::new(15, 49, ip_targets(5, 10)).with_pods(pods);

    assert_eq!([after(0), after(7), after(15), after(45)], [(10, 1), (12, 1), (20, 1), (50, 2)]);
}

#[test]
fn a_warm_target_of_no_eni_still_leaves_one_address_to_take() {
    let targets = Targets { warm_eni: 0, ..Targets::default() };

    assert_eq!(Node::new(3, 3, targets).with_pods(0), (3, 1));
}
