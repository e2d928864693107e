//! How many pods an instance can hold: the one function behind `ipamd max-pods`, the bound of the pool and the status.

use crate::{InstanceLimits, NetworkCard, Prefix};

/// How a node gives its pods their addresses, as far as it decides how many pods there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// /28 prefixes, where the type can hold them, instead of single addresses.
    pub prefixes: bool,
    /// Custom networking: pods use no address of the primary ENI.
    pub custom_networking: bool,
    /// Security groups for pods: the trunk takes the place of one ENI, and each branch ENI is a pod's.
    pub branch_enis: bool,
    /// `MAX_ENI`.
    pub max_enis: Option<u8>,
    /// Places on the network card that ENIs hold which pods cannot use: somebody else's, or such as are for EFA alone.
    pub foreign: u8,
}

/// How many pods there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Addresses that pods can share out among themselves, on ENIs.
    pub addresses: u32,
    /// Pods with a branch ENI, beside those.
    pub branch: u32,
}

impl Capacity {
    /// Pods on the host's network that every node runs: this project's own and kube-proxy. The figures that AWS
    /// publishes count them too.
    pub const HOST_NETWORK: u32 = 2;

    /// What the kubelet can be told as `maxPods`: no pod of that many goes without an address. Kubernetes itself is
    /// tested up to 110 pods on a small node and 250 on a large one.
    #[must_use]
    pub const fn max_pods(self) -> u32 {
        self.addresses.saturating_add(Self::HOST_NETWORK)
    }
}

impl InstanceLimits {
    /// How many ENIs a network card can hold under `MAX_ENI`, which bounds each card; none on a card that is not there.
    #[must_use]
    pub fn enis_on(&self, card: NetworkCard, max_enis: Option<u8>) -> u8 {
        let own = match card {
            NetworkCard(0) => self.max_enis,
            _ => self.cards.iter().find(|limits| limits.card == card).map_or(0, |limits| limits.max_enis),
        };
        own.min(max_enis.unwrap_or(u8::MAX))
    }

    /// How many addresses for pods a network card above 0 can hold: all of its ENIs for pods are alike.
    #[must_use]
    pub fn addresses_on(&self, card: NetworkCard, layout: &Layout) -> u32 {
        let enis = self.enis_on(card, layout.max_enis).saturating_sub(layout.foreign);
        let slots = u32::from(enis) * u32::from(self.slots_per_eni());
        slots.saturating_mul(self.addresses_per_slot(layout))
    }

    const fn addresses_per_slot(&self, layout: &Layout) -> u32 {
        if layout.prefixes && self.prefix_delegation { Prefix::ADDRESSES } else { 1 }
    }

    /// How many pods an instance of this type can hold: what the ENIs that pods can use hold, each without its own
    /// primary address.
    #[must_use]
    pub fn capacity(&self, layout: &Layout) -> Capacity {
        let trunk = layout.branch_enis && self.trunk == Some(true);
        let all = self.enis_on(NetworkCard(0), layout.max_enis).saturating_sub(layout.foreign);
        // The trunk is an ENI like another where MAX_ENI is concerned too.
        let enis = all.saturating_sub(u8::from(layout.custom_networking)).saturating_sub(u8::from(trunk));
        let slots = u32::from(enis).saturating_mul(self.slots_per_eni().into());
        let per_slot = self.addresses_per_slot(layout);
        let branch = if trunk { self.branch_enis.into() } else { 0 };
        Capacity { addresses: slots.saturating_mul(per_slot), branch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstanceTable;

    fn of(instance_type: &str, layout: Layout) -> Capacity {
        InstanceTable::builtin().get(instance_type).unwrap().capacity(&layout)
    }

    #[test]
    fn single_addresses_are_as_aws_publishes_them() {
        let max_pods = |instance_type| of(instance_type, Layout::default()).max_pods();

        assert_eq!(max_pods("m5.large"), 29);
        assert_eq!(max_pods("t3.small"), 11);
        assert_eq!(max_pods("p5.48xlarge"), 100);
        assert_eq!(max_pods("bmn-sf1.metal"), 737);
    }

    #[test]
    fn a_prefix_takes_the_place_of_an_address_where_the_type_can_hold_one() {
        let prefixes = Layout { prefixes: true, ..Layout::default() };

        assert_eq!(of("m5.large", prefixes).addresses, 3 * 9 * 16);
        assert_eq!(of("m4.large", prefixes).addresses, 2 * 9);
    }

    #[test]
    fn custom_networking_and_the_trunk_take_an_eni_each() {
        let custom = Layout { custom_networking: true, ..Layout::default() };
        let branch = Layout { branch_enis: true, ..Layout::default() };

        assert_eq!(of("m5.large", custom), Capacity { addresses: 2 * 9, branch: 0 });
        assert_eq!(of("m5.large", branch), Capacity { addresses: 2 * 9, branch: 9 });
        assert_eq!(of("t3.small", branch), Capacity { addresses: 3 * 3, branch: 0 });
    }

    #[test]
    fn somebody_elses_enis_take_the_place_of_ours() {
        let with = |foreign| of("m5.large", Layout { foreign, ..Layout::default() }).addresses;

        assert_eq!([0, 1, 2, 9].map(with), [27, 18, 9, 0]);
        // MAX_ENI counts all that are attached.
        let both = Layout { foreign: 1, max_enis: Some(2), ..Layout::default() };
        assert_eq!(of("m5.large", both).addresses, 9);
    }

    #[test]
    fn each_network_card_holds_what_the_table_says_of_it() {
        let p5 = InstanceTable::builtin().get("p5.48xlarge").unwrap();
        let prefixes = Layout { prefixes: true, ..Layout::default() };

        assert_eq!((p5.enis_on(NetworkCard(31), None), p5.enis_on(NetworkCard(32), None)), (2, 0));
        assert_eq!(p5.enis_on(NetworkCard(31), Some(1)), 1);
        assert_eq!(p5.addresses_on(NetworkCard(31), &Layout::default()), 2 * 49);
        assert_eq!(p5.addresses_on(NetworkCard(31), &prefixes), 2 * 49 * 16);
        assert_eq!(p5.addresses_on(NetworkCard(32), &prefixes), 0);
    }

    #[test]
    fn max_eni_counts_and_nothing_is_less_than_none() {
        for limits in InstanceTable::builtin().iter() {
            for max_enis in 0..=3 {
                let layout = Layout {
                    custom_networking: true,
                    branch_enis: true,
                    max_enis: Some(max_enis),
                    prefixes: true,
                    foreign: 0,
                };
                let most = u32::from(max_enis.saturating_sub(1)) * u32::from(limits.slots_per_eni()) * 16;
                assert!(limits.capacity(&layout).addresses <= most, "{}", limits.instance_type);
            }
        }
    }
}
