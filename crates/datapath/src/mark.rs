//! Packet marks: which bits are ours and what they say.

use serde::{Deserialize, Serialize};
use types::{DeviceIndex, NetworkCard, NetworkCardLimits};

/// The bits of packet and connection marks that we use. We change no others.
///
/// Others' bits: kube-proxy 0x4000 and 0x8000, Calico 0xffff0000 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Bits of the packet mark that say by which ENI a pod's packet leaves.
    pub steering_mask: u32,
    /// The bit (mark and mask at once) of connections that belong to the primary ENI.
    pub connmark: u32,
    /// Devices for which each network card has numbers.
    per_card: u8,
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

/// Devices of a card, as long as it is not known how many there can be.
const PER_CARD: u8 = 16;

impl Default for Marks {
    fn default() -> Self {
        Self { steering_mask: 0x3f00, connmark: 0x80, per_card: PER_CARD }
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
        Ok(Self { steering_mask, connmark, per_card: PER_CARD })
    }

    /// The same marks for an instance with these cards: each ENI that can be there has a number. Where there are more than the
    /// mask has (17 cards of 4 devices, or 16 of 5), a wider one takes its place.
    #[must_use]
    pub fn for_cards(self, cards: &[NetworkCardLimits]) -> Self {
        let [_, _, ..] = cards else { return self };
        let per_card = cards.iter().map(|limits| limits.max_enis).max().unwrap_or(PER_CARD);
        let cards = cards.iter().map(|limits| u32::from(limits.card.0)).max().unwrap_or(0) + 1;
        let marks = Self { per_card, ..self };
        let places = cards * u32::from(per_card);
        let wider = [self.steering_mask, 0x7f, 0x007f_0000, 0x7f00_0000];
        let fits = |mask: &u32| mask & self.connmark == 0 && places <= 1 << mask.count_ones();
        wider.into_iter().find(fits).map_or(marks, |steering_mask| Self { steering_mask, ..marks })
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
        // On a sole card there may be more devices than the other cards would have.
        let value = u32::from(card.0) * u32::from(self.per_card) + u32::from(device.0);
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
        let holes = Marks { steering_mask: 0x0101, ..Marks::default() };
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
    fn every_eni_of_every_instance_type_has_a_mark_of_its_own() {
        for limits in InstanceTable::builtin().iter() {
            let marks = Marks::default().for_cards(&limits.cards);
            assert_eq!(marks.steering_mask & (0x80 | 0xc000 | 0xffff_0000), 0, "{}", limits.instance_type);
            let places = limits.cards.iter().flat_map(|c| (0..c.max_enis).map(|d| (c.card, DeviceIndex(d))));
            let steered = places.filter(|place| *place != (NetworkCard(0), DeviceIndex(0)));
            let given: Vec<u32> = steered.map(|(c, d)| marks.of_eni(c, d).unwrap()).collect();
            let distinct: BTreeSet<u32> = given.iter().copied().collect();
            assert_eq!(given.len(), distinct.len(), "{}", limits.instance_type);
        }
    }

    #[test]
    fn the_marks_of_the_first_card_do_not_depend_on_the_others() {
        let p4d = InstanceTable::builtin().get("p4d.24xlarge").unwrap();
        let marks = Marks::default().for_cards(&p4d.cards);

        for device in (1..p4d.max_enis).map(DeviceIndex) {
            assert_eq!(marks.of_eni(NetworkCard(0), device), Marks::default().of_eni(NetworkCard(0), device));
        }
    }
}
