//! Where an ENI sits, and which routing table belongs to that place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An ENI's index among the devices of one network card; 0 on card 0 is the primary ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceIndex(pub u8);

/// An EC2 network card; most instance types have only card 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NetworkCard(pub u8);

impl NetworkCard {
    /// No instance type has more of them.
    pub const COUNT_MAX: u8 = 32;
}

/// A kernel routing table number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId(pub u32);

impl TableId {
    /// The kernel's main table.
    pub const MAIN: Self = Self(254);
    /// The kernel's table of the host's own addresses.
    pub const LOCAL: Self = Self(255);
    /// The one table that holds a route to every pod of this node; looked up by one rule, priority 512.
    ///
    /// Outside of all per-ENI numbers (2..=101 and 10000..=13299), the kernel's (253..=255), branch ENIs
    /// (100 + VLAN id, up to 4194) and what kube-router, Calico and systemd-networkd use by default.
    pub const PODS: Self = Self(51_200);

    /// Branch ENIs have this and their VLAN's id: 101 to 4194, as in the Go version.
    pub(crate) const BRANCHES: u32 = 100;

    /// Whether branch ENIs have tables with such numbers, which the kernel's own (253..=255) are not. An ENI's may be among them, for
    /// device 100 only.
    #[must_use]
    pub const fn is_of_branch(self) -> bool {
        self.0 > Self::BRANCHES && self.0 <= Self::BRANCHES + 4094 && !matches!(self.0, 253..=255)
    }

    /// The table of the ENI at this place, numbered as the Go version does so that either can take over.
    #[must_use]
    pub fn of_eni(card: NetworkCard, device: DeviceIndex) -> Self {
        match (card.0, device.0) {
            (0, 0) => Self::MAIN,
            (0, d) => Self(u32::from(d) + 1),
            (c, d) => Self(10_000 + 100 * u32::from(c) + u32::from(d)),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MAIN => f.write_str("main"),
            Self(n) => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for DeviceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NetworkCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::InstanceTable;

    #[test]
    fn tables_have_the_numbers_of_the_go_version() {
        let table = |c, d| TableId::of_eni(NetworkCard(c), DeviceIndex(d)).0;

        assert_eq!(
            [table(0, 0), table(0, 1), table(0, 14), table(1, 0), table(3, 2)],
            [254, 2, 15, 10_100, 10_302]
        );
    }

    #[test]
    fn no_two_enis_of_any_instance_type_share_a_table() {
        for limits in InstanceTable::builtin().iter() {
            let mut seen = BTreeSet::from([TableId::PODS]);
            for card in &limits.cards {
                for d in 0..card.max_enis {
                    assert!(
                        seen.insert(TableId::of_eni(card.card, DeviceIndex(d))),
                        "{}",
                        limits.instance_type
                    );
                }
            }
        }
    }
}
