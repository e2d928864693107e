//! A small vocabulary for situations, and an EC2 that does as it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use types::{
    DeviceIndex, EniId, HostVeth, Mac, Moment, NetworkCard, PodName, Prefix, SandboxKey, SubnetId, VethPrefix,
};

use crate::{Action, ActionId, EniSeen, Given, Limits, Mode, Outcome, Owner, Pool, Role, Targets, Wanted};

pub(super) const COOLDOWN: Duration = Duration::from_secs(30);

pub(super) const fn at(seconds: u64) -> Moment {
    Moment(1_000_000 + seconds * 1000)
}

pub(super) fn sandbox(n: u16) -> SandboxKey {
    SandboxKey::new("aws-cni", &format!("c{n}"), "eth0").unwrap()
}

pub(super) fn owner(n: u16) -> Owner {
    let pod = PodName { namespace: "default".to_owned(), name: format!("pod-{n}") };
    let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
    Owner { sandbox: sandbox(n), pod, host_if, since: at(0), ipv6: None, further: None, branch: None }
}

pub(super) fn eni_id(n: u8) -> EniId {
    format!("eni-{n:03}").parse().unwrap()
}

pub(super) fn subnet() -> SubnetId {
    "subnet-1".parse().unwrap()
}

/// A new ENI with so many single addresses.
pub(super) fn create(device: DeviceIndex, addresses: u32) -> Action {
    Action::CreateEni { card: NetworkCard(0), device, subnet: subnet(), wanted: Wanted::Addresses(addresses) }
}

/// Address `host` of ENI `n`; its primary address has host 1.
pub(super) const fn address(n: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, n, host)
}

/// ENI number `n` at device `n`, with `count` secondary addresses.
pub(super) fn eni(n: u8, role: Role, count: u8) -> EniSeen {
    EniSeen {
        id: eni_id(n),
        mac: Mac([2, 0, 0, 0, 0, n]),
        card: NetworkCard(0),
        device: DeviceIndex(n),
        subnet: subnet(),
        primary_address: address(n, 1),
        addresses: (10..10 + count).map(|host| address(n, host)).collect(),
        prefixes: BTreeSet::new(),
        role,
    }
}

/// A pool that has seen these ENIs at second 0.
pub(super) fn pool(enis: &[EniSeen]) -> Pool {
    let mut pool = Pool::new(COOLDOWN);
    pool.set_subnets(vec![subnet()]);
    pool.observe(enis, at(0), at(0));
    pool
}

/// Gives addresses to the sandboxes with these numbers.
pub(super) fn assign(pool: &mut Pool, sandboxes: impl IntoIterator<Item = u16>, now: Moment) {
    for n in sandboxes {
        pool.reserve(owner(n), now).unwrap();
        pool.commit(&sandbox(n));
    }
}

pub(super) const fn limits(max_enis: u8, slots_per_eni: u8) -> Limits {
    Limits { max_enis, slots_per_eni, card: NetworkCard(0) }
}

pub(super) fn warm_enis(warm_eni: u32) -> Targets {
    Targets { warm_eni, ..Targets::default() }
}

pub(super) fn warm_prefixes(warm_prefix: u32) -> Targets {
    Targets { warm_prefix, ..Targets::default() }
}

pub(super) fn warm_ips(warm: u32, minimum: u32) -> Targets {
    Targets { warm_ip: Some(warm), minimum_ip: Some(minimum), ..Targets::default() }
}

/// What a plan wants, in the words it prints.
pub(super) fn actions(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    waiting: u32,
    now: Moment,
) -> Vec<String> {
    pool.plan(targets, limits, waiting, now)
        .actions
        .iter()
        .map(|planned| planned.action.to_string())
        .collect()
}

/// An EC2 that does what it is told, and refuses what an instance cannot hold.
#[derive(Debug, Clone)]
pub(super) struct Ec2 {
    pub(super) enis: BTreeMap<EniId, EniSeen>,
    limits: Limits,
    enis_made: u8,
    hosts_made: BTreeMap<EniId, u8>,
    prefixes_made: u32,
    /// How many prefixes the subnet still has.
    pub(super) prefixes_left: u32,
}

impl Ec2 {
    pub(super) fn new(enis: Vec<EniSeen>, limits: Limits) -> Self {
        let enis_made = u8::try_from(enis.len()).unwrap();
        let enis = enis.into_iter().map(|eni| (eni.id.clone(), eni)).collect();
        Self { enis, limits, enis_made, hosts_made: BTreeMap::new(), prefixes_made: 0, prefixes_left: 1000 }
    }

    pub(super) fn picture(&self) -> Vec<EniSeen> {
        self.enis.values().cloned().collect()
    }

    pub(super) fn act(&mut self, action: &Action) -> Outcome {
        match action {
            Action::Assign { eni, wanted } => self.assign(eni, *wanted),
            Action::CreateEni { device, wanted, .. } => {
                if !self.has(*wanted) {
                    return Outcome::Scarce;
                }
                let number = 100 + self.enis_made;
                self.enis_made += 1;
                let new = EniSeen { device: *device, ..eni(number, Role::Secondary, 0) };
                assert!(self.enis.values().all(|eni| eni.device != *device), "device {device} is taken");
                self.enis.insert(new.id.clone(), new.clone());
                assert!(
                    self.enis.len() <= usize::from(self.limits.max_enis),
                    "more ENIs than the instance holds"
                );
                self.assign(&new.id, *wanted);
                Outcome::Created(Box::new(self.enis[&new.id].clone()))
            }
            Action::Release { eni, given: Given { addresses, prefixes } } => {
                let there = self.enis.get_mut(eni).unwrap();
                let known = addresses.is_subset(&there.addresses) && prefixes.is_subset(&there.prefixes);
                assert!(known, "EC2 refuses to release what is not there");
                assert!(addresses.is_empty() || prefixes.is_empty(), "two calls in one action");
                there.addresses.retain(|address| !addresses.contains(address));
                there.prefixes.retain(|prefix| !prefixes.contains(prefix));
                Outcome::Released
            }
            Action::DeleteEni { eni } => {
                self.enis.remove(eni).unwrap();
                Outcome::Deleted
            }
        }
    }

    fn has(&self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Addresses(_) => true,
            Wanted::Prefixes(n) => n <= self.prefixes_left,
        }
    }

    fn assign(&mut self, id: &EniId, wanted: Wanted) -> Outcome {
        match wanted {
            Wanted::Addresses(count) => Outcome::Assigned(Given::addresses(self.add(id, count))),
            Wanted::Prefixes(_) if !self.has(wanted) => Outcome::Scarce,
            Wanted::Prefixes(count) => {
                self.prefixes_left -= count;
                let made = self.prefixes_made..self.prefixes_made + count;
                self.prefixes_made += count;
                let prefixes: BTreeSet<Prefix> = made
                    .map(|n| Prefix::of(Ipv4Addr::from_bits(0x0a01_0000 + n * Prefix::ADDRESSES)))
                    .collect();
                let eni = self.enis.get_mut(id).unwrap();
                eni.prefixes.extend(&prefixes);
                self.fits(id);
                Outcome::Assigned(Given::prefixes(prefixes))
            }
        }
    }

    fn fits(&self, id: &EniId) {
        let eni = &self.enis[id];
        let slots = eni.addresses.len() + eni.prefixes.len();
        assert!(slots <= usize::from(self.limits.slots_per_eni), "more in {id} than it holds");
    }

    fn add(&mut self, id: &EniId, count: u32) -> BTreeSet<Ipv4Addr> {
        let hosts = self.hosts_made.entry(id.clone()).or_insert(100);
        let eni = self.enis.get_mut(id).unwrap();
        let mut new = BTreeSet::new();
        // Addresses come round again after a while, as in a small subnet.
        while new.len() < usize::try_from(count).unwrap() {
            *hosts = if *hosts == 250 { 100 } else { *hosts + 1 };
            let address = address(eni.primary_address.octets()[2], *hosts);
            if eni.addresses.insert(address) {
                new.insert(address);
            }
        }
        self.fits(id);
        new
    }
}

/// Whether something is idle that does not count: where pods get nothing more, or in the form of the other mode on an
/// ENI that has no room for what is wanted.
fn is_in_the_way(pool: &Pool, limits: &Limits, now: Moment) -> bool {
    let held: BTreeSet<Ipv4Addr> = pool.owners().map(|(_, grant)| grant.address).collect();
    let single = |eni: &EniSeen| eni.addresses.iter().any(|address| !held.contains(address));
    let prefix =
        |eni: &EniSeen| eni.prefixes.iter().any(|prefix| prefix.addresses().all(|a| !held.contains(&a)));
    pool.enis().iter().filter(|eni| eni.role.is_for_pods()).any(|eni| {
        if pool.exclusion(eni).is_some() {
            let unused = eni.role == Role::Secondary && !eni.given().all().any(|a| held.contains(&a));
            return unused || single(eni) || prefix(eni);
        }
        let is_full = eni.addresses.len() + eni.prefixes.len() >= usize::from(limits.slots_per_eni);
        let can_have = pool.scarcity.ask_at_most(&eni.subnet, pool.mode, now) > 0;
        let other = if pool.mode == Mode::Prefixes { single(eni) } else { prefix(eni) };
        is_full && can_have && other
    })
}

/// Plans and acts until there is nothing to do; half a minute for each step.
pub(super) fn settle(pool: &mut Pool, ec2: &mut Ec2, targets: &Targets, waiting: u32, now: &mut Moment) {
    for _ in 0..64 {
        let plan = pool.plan(targets, &ec2.limits, waiting, *now);
        if plan.actions.is_empty() {
            let later = now.plus(Duration::from_secs(600));
            let later = pool.plan(targets, &ec2.limits, waiting, later);
            let stuck = later.unmet > 0 && later.actions.is_empty() && is_in_the_way(pool, &ec2.limits, *now);
            assert!(!stuck, "it wants for more, and keeps what pods cannot use: {later}");
            return;
        }
        let begun: Vec<(ActionId, Action)> =
            plan.actions.into_iter().map(|planned| (pool.begin(&planned.action), planned.action)).collect();
        for (id, action) in begun {
            pool.finish(id, ec2.act(&action), *now);
        }
        *now = now.plus(Duration::from_secs(30));
    }
    panic!("there is always something more to do: {}", pool.plan(targets, &ec2.limits, waiting, *now));
}
