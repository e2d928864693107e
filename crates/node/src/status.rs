//! The report that others are made of.

use types::Moment;
use wire::{AddressCount, Observed, Report};

/// A report of a daemon that has just started, for tests and as the starting point of a real one.
#[must_use]
pub fn blank(now: Moment) -> Report {
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_id: String::new(),
        instance_type: String::new(),
        now,
        started: now,
        not_ready: Vec::new(),
        primary_address: None,
        vpc_cidrs: Vec::new(),
        ipv6_prefix: None,
        addresses: AddressCount::default(),
        capacity: 0,
        reused_early: 0,
        observed: Observed::default(),
        cards: Vec::new(),
        enis: Vec::new(),
        pods: Vec::new(),
        waiting: Vec::new(),
        reasons: Vec::new(),
        plan: Vec::new(),
        trouble: None,
        cloud: Vec::new(),
        eni_config: None,
        cluster: Vec::new(),
    }
}
