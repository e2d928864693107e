//! Packet marks: which bits are ours and what they say.

use serde::{Deserialize, Serialize};
use types::{DeviceIndex, NetworkCard};

/// The bits of packet and connection marks that we use. We change no others.
///
/// Others' bits: kube-proxy 0x4000 and 0x8000, Calico 0xffff0000 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Bits of the packet mark that say by which ENI a pod's packet leaves.
    pub steering_mask: u32,
    /// The bit (mark and mask at once) of connections that belong to the primary ENI.
    pub connmark: u32,
}

/// A mark that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Two uses want the same bit.
    #[error("connection mark {connmark:#x} and steering mask {steering_mask:#x} share bits")]
    Overlap {
        /// The connection mark.
        connmark: u32,
        /// The steering mask.
        steering_mask: u32,
    },
    /// Every packet has the empty mark: rule 1024 would send all of them to the main table.
    #[error("the connection mark has no bits")]
    NoConnmark,
    /// The mask is empty or has holes.
    #[error("steering mask {0:#x} is not one run of bits")]
    Holes(u32),
    /// The ENI's place needs more bits than the mask has.
    #[error("the ENI at card {card}, device {device} does not fit into steering mask {mask:#x}")]
    TooNarrow {
        /// Its card.
        card: NetworkCard,
        /// Its device index.
        device: DeviceIndex,
        /// The mask.
        mask: u32,
    },
}

impl Default for Marks {
    fn default() -> Self {
        Self { steering_mask: 0x3f00, connmark: 0x80 }
    }
}

impl Marks {
    /// Marks with a connection mark of the operator's choice; the steering mask makes way if need be.
    ///
    /// # Errors
    /// When the connection mark is empty, or covers every place the steering mask could take.
    pub fn with_connmark(connmark: u32) -> Result<Self, MarkError> {
        if connmark == 0 {
            return Err(MarkError::NoConnmark);
        }
        let candidates = [0x3f00, 0x3f, 0x003f_0000, 0x3f00_0000];
        let free = candidates.into_iter().find(|mask| mask & connmark == 0);
        let steering_mask = free.ok_or(MarkError::Overlap { connmark, steering_mask: candidates[0] })?;
        Ok(Self { steering_mask, connmark })
    }

    /// The mark of the ENI at this place; never 0, which means "not steered".
    ///
    /// # Errors
    /// When the mask cannot hold it.
    pub fn of_eni(&self, card: NetworkCard, device: DeviceIndex) -> Result<u32, MarkError> {
        let mask = self.steering_mask;
        let shift = mask.trailing_zeros();
        let width = mask.checked_shr(shift).filter(|run| *run != 0 && (run + 1).is_power_of_two());
        let highest = width.ok_or(MarkError::Holes(mask))?;
        // Types with several cards have at most 15 devices on each; more (up to 24) there are only on a sole card.
        let value = u32::from(card.0) * 16 + u32::from(device.0);
        if value == 0 || value > highest {
            return Err(MarkError::TooNarrow { card, device, mask });
        }
        Ok(value << shift)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use types::InstanceTable;

    use super::*;

    #[test]
    fn marks_keep_off_the_bits_of_others() {
        let marks = Marks::default();
        for device in 1..=24 {
            let mark = marks.of_eni(NetworkCard(0), DeviceIndex(device)).unwrap();
            assert_eq!(mark & (0x80 | 0xc000 | 0xffff_0000), 0);
            assert_eq!(mark & marks.steering_mask, mark);
        }
    }

    #[test]
    fn an_eni_that_does_not_fit_is_refused() {
        assert!(Marks::default().of_eni(NetworkCard(4), DeviceIndex(0)).is_err());
        assert!(Marks::default().of_eni(NetworkCard(0), DeviceIndex(0)).is_err());
        let holes = Marks { steering_mask: 0x0101, connmark: 0x80 };
        assert_eq!(holes.of_eni(NetworkCard(0), DeviceIndex(1)), Err(MarkError::Holes(0x0101)));
    }

    #[test]
    fn the_steering_mask_makes_way_for_another_connection_mark() {
        let marks = Marks::with_connmark(0x100).unwrap();
        assert_eq!(marks.steering_mask & marks.connmark, 0);
        assert!(Marks::with_connmark(u32::MAX).is_err());
        assert_eq!(Marks::with_connmark(0), Err(MarkError::NoConnmark));
    }

    #[test]
    fn no_two_enis_of_any_instance_type_share_a_mark() {
        let marks = Marks::default();
        for limits in InstanceTable::builtin().iter() {
            let places = limits.cards.iter().flat_map(|c| (0..c.max_enis).map(|d| (c.card, DeviceIndex(d))));
            let given: Vec<u32> = places.filter_map(|(c, d)| marks.of_eni(c, d).ok()).collect();
            let distinct: BTreeSet<u32> = given.iter().copied().collect();
            assert_eq!(given.len(), distinct.len(), "{}", limits.instance_type);
        }
    }
}
