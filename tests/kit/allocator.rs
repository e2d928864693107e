//! What the allocator's own work costs, by the number of pods on the node: no kernel, no cloud, one thread.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use pool::{EniSeen, Limits, Owner, Pool, Role, Targets};
use serde_json::{Value, json};
use types::{DeviceIndex, HostVeth, Mac, Moment, NetworkCard, PodName, SandboxKey, VethPrefix};

use crate::LabError;

/// The largest node with secondary addresses only.
const ENIS: u8 = 15;
const SLOTS: u8 = 49;
/// Pods already there.
const LEVELS: [u32; 4] = [10, 100, 350, 700];
/// Pairs of assigning and releasing, in batches of which the fastest counts: others may use the machine too.
const PAIRS: u32 = 10_000;
const BATCHES: u32 = 5;

fn owner(n: u32) -> Result<Owner, LabError> {
    let pod = PodName { namespace: "default".to_owned(), name: format!("pod-{n}") };
    let sandbox = SandboxKey::new("aws-cni", &format!("c{n}"), "eth0");
    let sandbox = sandbox.map_err(|error| LabError::Otherwise(error.to_string()))?;
    let host_if = HostVeth::of_pod(&VethPrefix::default(), &pod, 0);
    Ok(Owner { sandbox, pod, host_if, since: Moment(1), ipv6: None, further: None, branch: None })
}

fn full_node() -> Result<Pool, LabError> {
    let bad = |error: types::IdError| LabError::Otherwise(error.to_string());
    let eni = |n: u8| {
        Ok(EniSeen {
            id: format!("eni-{n:03}").parse().map_err(bad)?,
            mac: Mac([2, 0, 0, 0, 0, n]),
            card: NetworkCard(0),
            device: DeviceIndex(n),
            subnet: "subnet-1".parse().map_err(bad)?,
            primary_address: Ipv4Addr::new(10, 0, n, 1),
            addresses: (10..10 + SLOTS).map(|host| Ipv4Addr::new(10, 0, n, host)).collect(),
            prefixes: BTreeSet::new(),
            role: if n == 0 { Role::Primary } else { Role::Secondary },
        })
    };
    let enis: Vec<EniSeen> = (0..ENIS).map(eni).collect::<Result<_, LabError>>()?;
    let mut pool = Pool::new(Duration::ZERO);
    pool.observe(&enis, Moment(1), Moment(1));
    Ok(pool)
}

/// Microseconds of the fastest batch, per piece.
fn fastest(pieces: u32, mut batch: impl FnMut()) -> f64 {
    let times = (0..BATCHES).map(|_| {
        let started = Instant::now();
        batch();
        started.elapsed()
    });
    times.min().unwrap_or_default().as_secs_f64() * 1e6 / f64::from(pieces)
}

/// Measures; says the figures and returns them.
///
/// # Errors
/// When the node cannot be made up.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<Value, LabError> {
    let mut figures = json!({});
    say("   the allocator alone     pods  assign + release      plan");
    for level in LEVELS {
        let mut pool = full_node()?;
        for n in 0..level {
            let owner = owner(n)?;
            let sandbox = owner.sandbox.clone();
            let full = |short: pool::Shortage| LabError::Otherwise(short.to_string());
            pool.reserve(owner, Moment(2)).map_err(full)?;
            pool.commit(&sandbox);
        }
        let newcomer = owner(level)?;
        let pair = fastest(PAIRS, || {
            for n in 0..u64::from(PAIRS) {
                let _grant = pool.reserve(newcomer.clone(), Moment(3 + n));
                pool.commit(&newcomer.sandbox);
                pool.release(&newcomer.sandbox, Moment(3 + n));
            }
        });
        let limits = Limits { max_enis: ENIS, slots_per_eni: SLOTS, card: NetworkCard(0) };
        let plan = fastest(1000, || {
            for n in 0..1000 {
                let _plan = pool.plan(&Targets::default(), &limits, 0, Moment(20_000 + n));
            }
        });
        say(&format!("   {level:>28}  {pair:>13.2} us  {plan:>5.1} us"));
        figures[level.to_string()] = json!({ "pair_us": pair, "plan_us": plan });
    }
    Ok(figures)
}
