//! IPv6 of subnets and ENIs: a /64 for a subnet, of which ENIs have an address or /80 prefixes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::Ipv6Network;
use types::{EniId, SubnetId};

use super::error::ApiError;
use super::model::Model;
use super::subnet::Subnet;

/// Bits of a prefix.
const PREFIX: u8 = 80;
/// /80 blocks in a /64; the first is for single addresses.
const BLOCKS: u16 = u16::MAX;
/// Where in a /64 single addresses are that nobody has asked for by name: beyond its blocks of prefixes that are given.
const ANYWHERE: u128 = 0xfeed_b0a7 << 32;

impl Subnet {
    /// The lowest free /80.
    fn free_ipv6_block(&self) -> Option<(u16, Ipv6Network)> {
        let range = self.ipv6?;
        let number = (1..=BLOCKS).find(|number| !self.ipv6_blocks.contains(number))?;
        Some((number, block(range, number)?))
    }
}

fn block(range: Ipv6Network, number: u16) -> Option<Ipv6Network> {
    let first = range.network().to_bits() | u128::from(number) << (128 - u32::from(PREFIX));
    Ipv6Network::new(Ipv6Addr::from_bits(first), PREFIX).ok()
}

impl Model {
    /// Gives a subnet a range, or takes it away; what ENIs have of it stays theirs.
    pub fn set_ipv6(&mut self, subnet: &SubnetId, range: Option<Ipv6Network>) -> Result<(), ApiError> {
        self.subnet_mut(subnet)?.ipv6 = range;
        Ok(())
    }

    /// The address that an instance's primary ENI gets at launch, where its subnet has a range.
    pub(crate) fn own_ipv6(&mut self, subnet: &SubnetId, host: u16) -> Option<Ipv6Addr> {
        let range = self.subnet_mut(subnet).ok()?.ipv6?;
        Some(Ipv6Addr::from_bits(range.network().to_bits() | u128::from(host)))
    }

    /// An address anywhere in a subnet's range, as EC2 chooses them, if it has one. No two ENIs have the same IPv4 address.
    pub(crate) fn any_ipv6(&mut self, subnet: &SubnetId, primary: Ipv4Addr) -> Option<Ipv6Addr> {
        let range = self.subnet_mut(subnet).ok()?.ipv6?;
        let host = ANYWHERE | u128::from(primary.to_bits());
        Some(Ipv6Addr::from_bits(range.network().to_bits() | host))
    }

    /// As `AssignIpv6Addresses` with a count of prefixes.
    pub fn assign_ipv6(&mut self, id: &EniId, count: u32) -> Result<Vec<Ipv6Network>, ApiError> {
        let eni = Arc::clone(self.eni(id)?);
        if self.limits_of(&eni).is_some_and(|limits| !limits.prefix_delegation) {
            return Err(ApiError::value("The instance type does not support prefixes."));
        }
        let subnet = self.subnet_mut(&eni.subnet)?;
        if subnet.ipv6.is_none() {
            let message = format!("The subnet '{}' has no IPv6 CIDR block.", eni.subnet);
            return Err(ApiError::value(message));
        }
        let mut given = Vec::new();
        for _ in 0..count {
            let full = || ApiError::new("InsufficientCidrBlocks", "There are not enough free cidr blocks.");
            let (number, prefix) = subnet.free_ipv6_block().ok_or_else(full)?;
            subnet.ipv6_blocks.insert(number);
            given.push(prefix);
        }
        self.eni_mut(id)?.ipv6_prefixes.extend(&given);
        self.say_addresses(id);
        Ok(given)
    }

    /// As `UnassignIpv6Addresses` with prefixes.
    pub fn unassign_ipv6(&mut self, id: &EniId, prefixes: &[Ipv6Network]) -> Result<(), ApiError> {
        let eni = Arc::clone(self.eni(id)?);
        if !prefixes.iter().all(|prefix| eni.ipv6_prefixes.contains(prefix)) {
            return Err(ApiError::value(format!("Some prefixes are not assigned to interface {id}")));
        }
        let subnet = self.subnet_mut(&eni.subnet)?;
        let range = subnet.ipv6;
        subnet.ipv6_blocks.retain(|number| {
            let gone = range.and_then(|range| block(range, *number));
            gone.is_none_or(|gone| !prefixes.contains(&gone))
        });
        self.eni_mut(id)?.ipv6_prefixes.retain(|prefix| !prefixes.contains(prefix));
        self.say_addresses(id);
        Ok(())
    }
}
