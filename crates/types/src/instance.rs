//! What each EC2 instance type can hold.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::{DeviceIndex, NetworkCard};

/// Network limits of one instance type.
///
/// Source: EC2 `DescribeInstanceTypes`, gathered in `data/instance-limits.tsv`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// The type's name, for example `m5.large`.
    pub instance_type: String,
    /// ENIs on the default network card, the primary one included.
    pub max_enis: u8,
    /// IPv4 addresses an ENI can hold, its primary one included.
    pub ipv4_per_eni: u8,
    /// The network cards, in the order of their index.
    pub cards: Vec<NetworkCardLimits>,
    /// Whether /28 prefixes can be delegated: Nitro or bare metal.
    pub prefix_delegation: bool,
    /// Whether a trunk ENI can be attached; `None` when not known.
    pub trunk: Option<bool>,
    /// Branch ENIs on the trunk; 0 when there are none or it is not known.
    pub branch_enis: u16,
}

/// Limits of one network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCardLimits {
    /// Which card.
    pub card: NetworkCard,
    /// ENIs it holds.
    pub max_enis: u8,
}

impl InstanceLimits {
    /// Secondary addresses (or, with prefix delegation, prefixes) one ENI can hold.
    #[must_use]
    pub const fn slots_per_eni(&self) -> u8 {
        self.ipv4_per_eni.saturating_sub(1)
    }

    /// Device indices that exist on the default card.
    pub fn devices(&self) -> impl Iterator<Item = DeviceIndex> {
        (0..self.max_enis).map(DeviceIndex)
    }
}

/// Limits by instance type.
#[derive(Debug, Clone)]
pub struct InstanceTable(Vec<InstanceLimits>);

impl InstanceTable {
    /// The table compiled into the program; read once.
    #[must_use]
    pub fn builtin() -> &'static Self {
        static TABLE: LazyLock<InstanceTable> = LazyLock::new(|| {
            let text = include_str!("../data/instance-limits.tsv");
            InstanceTable(text.lines().filter_map(parse_row).collect())
        });
        &TABLE
    }

    /// The limits of a type, or `None` for one that the table does not know: ask EC2 then.
    #[must_use]
    pub fn get(&self, instance_type: &str) -> Option<&InstanceLimits> {
        self.0.iter().find(|row| row.instance_type == instance_type)
    }

    /// All types.
    pub fn iter(&self) -> impl Iterator<Item = &InstanceLimits> {
        self.0.iter()
    }
}

/// One line of the table; `None` for comments, the heading and lines that do not parse (a test says there are none).
fn parse_row(line: &str) -> Option<InstanceLimits> {
    let mut columns = line.split('\t');
    let mut next = || columns.next().map(str::trim);
    let instance_type = next().filter(|t| t.contains('.'))?.to_owned();
    let max_enis = next()?.parse().ok()?;
    let ipv4_per_eni = next()?.parse().ok()?;
    let _default_card = next()?;
    let cards = next()?.split([',', ' ']).map(parse_card).collect::<Option<_>>()?;
    let hypervisor = next()?;
    let bare_metal = next()? == "true";
    let trunk = next().and_then(|t| t.parse().ok());
    let branch_enis = next().and_then(|t| t.parse().ok()).unwrap_or(0);
    let prefix_delegation = hypervisor == "nitro" || bare_metal;
    Some(InstanceLimits {
        instance_type,
        max_enis,
        ipv4_per_eni,
        cards,
        prefix_delegation,
        trunk,
        branch_enis,
    })
}

fn parse_card(text: &str) -> Option<NetworkCardLimits> {
    let (card, max) = text.split_once(':')?;
    Some(NetworkCardLimits { card: NetworkCard(card.parse().ok()?), max_enis: max.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_parses() {
        let text = include_str!("../data/instance-limits.tsv");
        let lines = text.lines().filter(|l| !l.starts_with('#') && !l.starts_with("type\t")).count();

        assert_eq!(InstanceTable::builtin().iter().count(), lines);
        assert_eq!(lines, 1391);
    }

    #[test]
    fn known_types_have_their_published_limits() {
        let table = InstanceTable::builtin();
        let brief = |t: &str| table.get(t).map(|l| (l.max_enis, l.ipv4_per_eni, l.cards.len()));

        assert_eq!(brief("m5.large"), Some((3, 10, 1)));
        assert_eq!(brief("c5.4xlarge"), Some((8, 30, 1)));
        assert_eq!(brief("p4d.24xlarge"), Some((15, 50, 4)));
        assert_eq!(brief("t3.small"), Some((3, 4, 1)));
        assert_eq!(brief("no.such"), None);
    }
}
