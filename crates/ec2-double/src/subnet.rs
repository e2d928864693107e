//! Which addresses of a subnet are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use types::SubnetId;

use super::view::{SubnetView, VpcId};

/// Addresses in a delegated prefix.
const BLOCK: u32 = 16;

/// A subnet with its taken addresses.
#[derive(Debug)]
pub(crate) struct Subnet {
    pub(crate) id: SubnetId,
    pub(crate) vpc: VpcId,
    pub(crate) cidr: Ipv4Network,
    pub(crate) zone: String,
    pub(crate) tags: BTreeMap<String, String>,
    taken: BTreeSet<u32>,
    blocks: BTreeSet<u32>,
    /// Its /64, if it has one.
    pub(super) ipv6: Option<Ipv6Network>,
    /// Taken /80 blocks of it, by number.
    pub(super) ipv6_blocks: BTreeSet<u16>,
}

impl Subnet {
    /// A subnet where only the addresses that AWS reserves are taken: the first four and the last.
    pub(crate) fn new(id: SubnetId, vpc: VpcId, cidr: Ipv4Network, zone: &str) -> Self {
        let (first, last) = bounds(cidr);
        let taken = (first..=first.saturating_add(3)).chain([last]).collect();
        let (zone, tags, blocks) = (zone.to_owned(), BTreeMap::new(), BTreeSet::new());
        Self { id, vpc, cidr, zone, tags, taken, blocks, ipv6: None, ipv6_blocks: BTreeSet::new() }
    }

    pub(crate) fn view(&self) -> SubnetView {
        SubnetView {
            id: self.id.clone(),
            vpc: self.vpc.clone(),
            cidr: self.cidr,
            zone: self.zone.clone(),
            available: self.available(),
            tags: self.tags.clone(),
        }
    }

    /// Addresses that nobody has.
    pub(crate) fn available(&self) -> u32 {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let blocked = count(self.blocks.len()).saturating_mul(BLOCK);
        self.cidr.size().saturating_sub(count(self.taken.len())).saturating_sub(blocked)
    }

    /// Whether an address lies in the subnet and nobody has it.
    pub(crate) fn is_free(&self, address: Ipv4Addr) -> bool {
        self.cidr.contains(address) && self.bits_free(address.to_bits())
    }

    /// Whether a prefix is a free, aligned /28 of the subnet.
    pub(crate) fn is_free_block(&self, prefix: Ipv4Network) -> bool {
        let base = prefix.ip().to_bits();
        let (first, last) = bounds(self.cidr);
        let inside = base >= first && base.saturating_add(BLOCK - 1) <= last;
        prefix.prefix() == 28 && prefix.network() == prefix.ip() && inside && self.block_free(base)
    }

    /// Takes an address; the caller has seen that it is free.
    pub(crate) fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address.to_bits());
    }

    /// Takes a prefix; the caller has seen that it is free.
    pub(crate) fn take_block(&mut self, prefix: Ipv4Network) {
        self.blocks.insert(prefix.network().to_bits());
    }

    /// Up to `count` free addresses, beginning the search at `start` of the range (in addresses, wrapped).
    pub(crate) fn find(&self, count: u32, start: u32) -> Vec<Ipv4Addr> {
        let (first, last) = bounds(self.cidr);
        let begin = first + start.checked_rem(self.cidr.size()).unwrap_or(0);
        let order = (begin..=last).chain(first..begin);
        let free = order.filter(|bits| self.bits_free(*bits)).map(Ipv4Addr::from_bits);
        free.take(usize::try_from(count).unwrap_or(usize::MAX)).collect()
    }

    /// Up to `count` free prefixes, beginning the search at `start` of the range (in addresses, wrapped).
    pub(crate) fn find_blocks(&self, count: u32, start: u32) -> Vec<Ipv4Network> {
        let (first, last) = bounds(self.cidr);
        let blocks = self.cidr.size() / BLOCK;
        let skip = (start / BLOCK).checked_rem(blocks).unwrap_or(0);
        let order = (skip..blocks).chain(0..skip).map(|n| first + n * BLOCK);
        let free = order.filter(|base| base + (BLOCK - 1) <= last && self.block_free(*base));
        let prefixes = free.filter_map(|base| Ipv4Network::new(Ipv4Addr::from_bits(base), 28).ok());
        prefixes.take(usize::try_from(count).unwrap_or(usize::MAX)).collect()
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
    }

    pub(crate) fn give_back_block(&mut self, prefix: Ipv4Network) {
        self.blocks.remove(&prefix.network().to_bits());
    }

    fn bits_free(&self, bits: u32) -> bool {
        !self.taken.contains(&bits) && !self.blocks.contains(&(bits & !(BLOCK - 1)))
    }

    fn block_free(&self, base: u32) -> bool {
        !self.blocks.contains(&base) && self.taken.range(base..base.saturating_add(BLOCK)).next().is_none()
    }
}

fn bounds(cidr: Ipv4Network) -> (u32, u32) {
    (cidr.network().to_bits(), cidr.broadcast().to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(cidr: &str) -> Subnet {
        let id = "subnet-1".parse().unwrap();
        Subnet::new(id, VpcId("vpc-1".to_owned()), cidr.parse().unwrap(), "z")
    }

    #[test]
    fn the_first_four_addresses_and_the_last_are_never_given() {
        let subnet = subnet("10.0.0.0/28");

        let found = subnet.find(100, 0);

        assert_eq!(found.len(), 11);
        assert_eq!(subnet.available(), 11);
        assert_eq!(found.first(), Some(&Ipv4Addr::new(10, 0, 0, 4)));
        assert_eq!(found.last(), Some(&Ipv4Addr::new(10, 0, 0, 14)));
    }

    #[test]
    fn prefixes_are_aligned_and_avoid_reserved_and_taken_addresses() {
        let mut subnet = subnet("10.0.0.0/26");
        subnet.take(Ipv4Addr::new(10, 0, 0, 40));

        let found = subnet.find_blocks(9, 0);

        assert_eq!(found, ["10.0.0.16/28".parse().unwrap()]);
    }

    #[test]
    fn one_address_in_each_block_leaves_addresses_but_no_prefix() {
        let mut subnet = subnet("10.0.0.0/25");
        for n in 0..8 {
            subnet.take(Ipv4Addr::new(10, 0, 0, n * 16 + 9));
        }

        assert!(subnet.find_blocks(1, 0).is_empty());
        assert_eq!(subnet.available(), 128 - 5 - 8);
    }

    #[test]
    fn addresses_in_a_prefix_are_not_given_singly() {
        let mut subnet = subnet("10.0.0.0/27");
        subnet.take_block("10.0.0.0/28".parse().unwrap());

        let found = subnet.find(1, 0);

        assert_eq!(found, [Ipv4Addr::new(10, 0, 0, 16)]);
    }

    #[test]
    fn a_search_that_starts_late_wraps_round() {
        let subnet = subnet("10.0.0.0/28");

        let found = subnet.find(3, 13);

        assert_eq!(found, [13, 14, 4].map(|n| Ipv4Addr::new(10, 0, 0, n)));
    }
}
