//! What is to stand in pods' objects.

use std::net::IpAddr;

use super::PodRef;

/// What is to be written of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIp {
    /// The pod.
    pub pod: PodRef,
    /// Its address.
    pub address: IpAddr,
    /// Whether it has it, or had it.
    pub has: bool,
}

impl PodIp {
    /// What holds after both were said, in this order. What is said of another address does not take this one away: the DEL of an
    /// old sandbox may come after the ADD of the next.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        if self.has && !later.has && self.address != later.address { self } else { later }
    }
}
