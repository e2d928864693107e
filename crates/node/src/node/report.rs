//! What `ipamd status` shows.

use types::Moment;
use wire::{Report, Waiting};

use super::Node;
use super::adding::Pending;
use crate::status::{blank, count, enis, pods, tell_facts};

impl Node {
    /// The state as it is now.
    #[must_use]
    pub fn report(&self, now: Moment) -> Report {
        let mut report =
            Report { started: self.started, addresses: count(self.pool.counts(now)), ..blank(now) };
        report.not_ready = self.missing().into_iter().map(str::to_owned).collect();
        if let Some(facts) = &self.facts {
            tell_facts(&mut report, facts);
        }
        report.ipv6_prefix = self.ipv6.prefix().filter(|_| self.settings.families.needs_prefix());
        report.reused_early = self.pool.reused_early();
        report.capacity = self.capacity_in_all();
        report.observed = self.observed;
        report.cards = self.card_reports(now);
        // An idle IPv6 prefix is told too, until it is given back.
        report.enis = enis(&self.pool, &self.ipv6.all(), now);
        report.pods = pods(&self.pool, self.settings.families);
        report.waiting = self.waiting();
        report.reasons = self.reasons.report();
        report.trouble = self.trouble();
        report.cloud = self.troubles();
        report.eni_config = self.eni_config_name();
        report.cluster = self.cluster_lines(now);
        let plan = self.plan(now).map(|plan| plan.to_string()).unwrap_or_default();
        report.plan = plan.lines().map(str::to_owned).collect();
        report
    }

    fn waiting(&self) -> Vec<Waiting> {
        let waiting = |id| match self.pending.get(id)? {
            Pending::Add(add) => {
                let (reason, card) = add.reason();
                Some(Waiting { pod: add.attachment.pod.clone(), since: add.since, reason, card })
            }
            Pending::Release { .. } | Pending::Check => None,
        };
        self.queue.iter().filter_map(waiting).collect()
    }
}
