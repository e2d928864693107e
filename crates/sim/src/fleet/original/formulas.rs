//! The original's arithmetic, as in `ipamd.go` of v1.23.1: what it calls too low and too high, and how much it then
//! asks for or gives back. Cooling addresses count as available there.

/// What the formulas compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    /// Addresses in the store.
    pub(crate) total: u32,
    /// Those that pods have.
    pub(crate) assigned: u32,
    /// Prefixes in the store.
    pub(crate) prefixes: u32,
    /// Those without a pod.
    pub(crate) free_prefixes: u32,
}

impl Stats {
    pub(crate) const fn available(self) -> u32 {
        self.total - self.assigned
    }
}

/// The targets, and what the instance can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) warm_ip: u32,
    pub(crate) minimum_ip: u32,
    pub(crate) warm_eni: u32,
    pub(crate) warm_prefix: u32,
    /// Prefix delegation.
    pub(crate) prefixes: bool,
    /// CIDRs an ENI can hold: single addresses or prefixes.
    pub(crate) slots: u32,
    pub(crate) max_enis: u32,
    pub(crate) max_pods: u32,
}

/// Addresses of a prefix.
const PREFIX: u32 = 16;

impl Rules {
    /// Addresses an ENI can hold.
    const fn per_eni(&self) -> u32 {
        self.slots * self.size()
    }

    /// Addresses of a CIDR.
    pub(crate) const fn size(&self) -> u32 {
        if self.prefixes { PREFIX } else { 1 }
    }

    /// Whether `WARM_IP_TARGET` or `MINIMUM_IP_TARGET` is set: they go before the others.
    const fn ip_targets(&self) -> bool {
        self.warm_ip != 0 || self.minimum_ip != 0
    }

    /// How many CIDRs are missing and how many are too many, by the IP targets (`datastoreTargetState`).
    fn short_over(&self, stats: Stats) -> (u32, u32) {
        if !self.ip_targets() {
            return (0, 0);
        }
        let (warm, minimum, available) = (self.warm_ip, self.minimum_ip, stats.available());
        let short = warm.saturating_sub(available).max(minimum.saturating_sub(stats.total));
        if !self.prefixes {
            let over = available.saturating_sub(warm).min(stats.total.saturating_sub(minimum));
            return (short, over);
        }
        let needed = |addresses: u32| stats.prefixes.saturating_sub(addresses.div_ceil(PREFIX));
        let over = stats.free_prefixes.min(needed(stats.assigned + warm)).min(needed(minimum));
        (short.div_ceil(PREFIX), over)
    }

    pub(crate) fn too_low(&self, stats: Stats) -> bool {
        let warm = match self.prefixes {
            true => PREFIX * self.warm_prefix,
            false => self.per_eni() * self.warm_eni,
        };
        let low = match self.ip_targets() {
            true => self.short_over(stats).0 > 0,
            false => stats.available() < warm || stats.available() == 0,
        };
        stats.total < self.max_pods && low
    }

    /// How many CIDRs are too many.
    pub(crate) fn too_many(&self, stats: Stats) -> u32 {
        match (self.ip_targets(), self.prefixes) {
            (true, _) => self.short_over(stats).1,
            (false, true) => stats.free_prefixes.saturating_sub(self.warm_prefix),
            (false, false) => 0,
        }
    }

    /// How many CIDRs to ask for, for an ENI that has so many.
    pub(crate) fn cidrs_for(&self, stats: Stats, has: u32) -> u32 {
        let room = self.slots.saturating_sub(has);
        let short = self.short_over(stats).0;
        match (self.ip_targets(), self.prefixes) {
            (true, true) => room.min(short.max(1)),
            (true, false) => room.min(short),
            (false, true) => room.min(self.warm_prefix.saturating_sub(stats.free_prefixes).max(1)),
            (false, false) => room,
        }
    }

    /// Whether to look for an ENI that could go; `idle` when a secondary one has no pod.
    pub(crate) fn looks_for_eni_to_free(&self, stats: Stats, idle: bool) -> bool {
        let more_than = |target: u32| stats.available() >= (target + 1) * self.per_eni();
        match (self.ip_targets(), self.prefixes) {
            (true, _) => true,
            (false, true) => idle || more_than(self.warm_prefix),
            (false, false) => more_than(self.warm_eni),
        }
    }

    /// Whether the targets hold with no more than this: free addresses, addresses, and free prefixes on other ENIs.
    pub(crate) fn hold_with(&self, free: u32, total: u32, free_prefixes: u32) -> bool {
        let round = |target: u32| if self.prefixes { target.next_multiple_of(PREFIX) } else { target };
        let warm = self.warm_ip == 0 || free >= round(self.warm_ip);
        let minimum = self.minimum_ip == 0 || total >= round(self.minimum_ip);
        let prefixes = !self.prefixes || self.warm_prefix == 0 || free_prefixes >= self.warm_prefix;
        warm && minimum && prefixes
    }
}
