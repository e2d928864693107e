//! The policies that are compared: whose daemon, with which targets.

use pool::Targets;
use types::{InstanceLimits, Moment};

use super::daemon::Daemon;
use super::original::{Original, Warm};
use super::ours::Ours;

/// A daemon with its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Its name in tables.
    pub name: &'static str,
    /// Whether it is the Go version's.
    pub is_original: bool,
    /// Whether it asks for prefixes.
    pub prefixes: bool,
    warm: Keep,
}

/// What is kept at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Ours decides.
    Automatic,
    /// `WARM_ENI_TARGET=1`.
    Eni,
    /// `WARM_IP_TARGET=5`, `MINIMUM_IP_TARGET=16`.
    Ips,
    /// `WARM_PREFIX_TARGET=1`.
    Prefix,
}

const WARM_IP: u32 = 5;
const MINIMUM_IP: u32 = 16;

impl Policy {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 8] = [
        Self::new("ours", false, false, Keep::Automatic),
        Self::new("ours, prefixes", false, true, Keep::Automatic),
        Self::new("ours, WARM_ENI 1", false, false, Keep::Eni),
        Self::new("ours, WARM_IP 5 MIN 16", false, false, Keep::Ips),
        Self::new("ours, WARM_PREFIX 1", false, true, Keep::Prefix),
        Self::new("original, WARM_ENI 1", true, false, Keep::Eni),
        Self::new("original, WARM_IP 5 MIN 16", true, false, Keep::Ips),
        Self::new("original, WARM_PREFIX 1", true, true, Keep::Prefix),
    ];

    const fn new(name: &'static str, is_original: bool, prefixes: bool, warm: Keep) -> Self {
        Self { name, is_original, prefixes, warm }
    }

    /// Whether it is ours with no target set.
    #[must_use]
    pub fn is_default(self) -> bool {
        self.warm == Keep::Automatic
    }

    /// The daemon of one node.
    pub(crate) fn daemon(self, limits: &InstanceLimits, seed: u64, now: Moment) -> Option<Daemon> {
        Some(if self.is_original {
            let original = Original::new(self.as_original(), self.prefixes, limits, seed);
            Daemon::Original(Box::new(original))
        } else {
            Daemon::Ours(Box::new(Ours::new(self.as_ours(), self.prefixes, limits, seed, now)?))
        })
    }

    fn as_ours(self) -> Targets {
        let unset = Targets::default();
        match self.warm {
            Keep::Automatic => Targets { automatic: true, ..unset },
            Keep::Eni | Keep::Prefix => Targets { warm_eni: 1, warm_prefix: 1, ..unset },
            Keep::Ips => Targets { warm_ip: Some(WARM_IP), minimum_ip: Some(MINIMUM_IP), ..unset },
        }
    }

    const fn as_original(self) -> Warm {
        let (ip, minimum) = match self.warm {
            Keep::Ips => (WARM_IP, MINIMUM_IP),
            Keep::Automatic | Keep::Eni | Keep::Prefix => (0, 0),
        };
        Warm { ip, minimum, enis: 1, prefixes: 1 }
    }
}
