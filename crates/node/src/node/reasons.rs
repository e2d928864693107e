//! Why ADDs failed or waited, as far back as the daemon runs: one entry for each reason, so that the closed list is the bound.

use std::collections::BTreeMap;

use types::{Moment, PodName, Reason};
use wire::{Failure, ReasonReport, Reply};

use super::event::{CallId, Effect};

/// The longest message that is kept, in characters: others' words may be in it.
const MESSAGE_MAX: usize = 500;

/// What became of ADDs that did not go well at once.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    /// The pods of ADDs that have not been answered.
    asking: BTreeMap<CallId, PodName>,
    met: BTreeMap<Reason, ReasonReport>,
}

impl Reasons {
    /// An ADD has come.
    pub(super) fn asked(&mut self, id: CallId, pod: PodName) {
        self.asking.insert(id, pod);
    }

    /// Takes note of what these effects say to those who asked.
    pub(super) fn note(&mut self, effects: &[Effect], now: Moment) {
        for effect in effects {
            if let Effect::Waited(reason, _) = effect {
                self.met(*reason, now).waited += 1;
            }
            let Effect::Reply(id, reply) = effect else { continue };
            let Some(pod) = self.asking.remove(id) else { continue };
            if let Reply::Failed(failure) = reply {
                let entry = self.met(failure.reason, now);
                entry.failed += 1;
                entry.pod = Some(pod);
                entry.message = message(failure);
            }
        }
    }

    /// The latest reason first.
    pub(super) fn report(&self) -> Vec<ReasonReport> {
        let mut reasons: Vec<ReasonReport> = self.met.values().cloned().collect();
        reasons.sort_by_key(|entry| std::cmp::Reverse(entry.last));
        reasons
    }

    fn met(&mut self, reason: Reason, now: Moment) -> &mut ReasonReport {
        let new =
            || ReasonReport { reason, failed: 0, waited: 0, last: now, pod: None, message: String::new() };
        let entry = self.met.entry(reason).or_insert_with(new);
        entry.last = now;
        entry
    }
}

fn message(failure: &Failure) -> String {
    let Failure { message, details, .. } = failure;
    let whole = if details.is_empty() { message.clone() } else { format!("{message}: {details}") };
    whole.chars().take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pod(name: &str) -> PodName {
        PodName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn fails(id: u64, reason: Reason, details: &str) -> Effect {
        let failure = Failure::new(reason, "no address").with_details(details);
        Effect::Reply(CallId(id), Reply::Failed(failure))
    }

    #[test]
    fn a_reason_stands_once_with_the_pod_that_met_it_last_and_the_latest_comes_first() {
        let mut reasons = Reasons::default();
        (1..=3).zip(["a", "b", "c"]).for_each(|(id, name)| reasons.asked(CallId(id), pod(name)));

        reasons.note(&[fails(1, Reason::Throttled, ""), fails(2, Reason::NodeFull, "")], Moment(1_000));
        reasons.note(&[fails(3, Reason::Throttled, "RequestLimitExceeded")], Moment(2_000));

        let told = reasons.report();
        let words: Vec<_> = told.iter().map(|entry| (entry.reason, entry.failed, entry.last.0)).collect();
        assert_eq!(words, [(Reason::Throttled, 2, 2_000), (Reason::NodeFull, 1, 1_000)]);
        assert_eq!(told[0].pod, Some(pod("c")));
        assert_eq!(told[0].message, "no address: RequestLimitExceeded");
    }

    #[test]
    fn what_fails_for_others_than_adds_is_not_told_and_what_went_well_is_forgotten() {
        let mut reasons = Reasons::default();
        reasons.asked(CallId(1), pod("a"));

        reasons.note(&[fails(2, Reason::Drifted, ""), Effect::Reply(CallId(1), Reply::Done)], Moment(1));
        reasons.note(&[fails(1, Reason::Internal, "")], Moment(2));

        assert_eq!(reasons.report(), []);
    }

    #[test]
    fn a_wait_is_counted_without_a_failure_and_a_long_message_is_cut() {
        let mut reasons = Reasons::default();
        reasons.asked(CallId(1), pod("a"));

        reasons.note(&[Effect::Waited(Reason::PoolEmpty, Duration::from_secs(1))], Moment(1));
        reasons.note(&[fails(1, Reason::Denied, &"x".repeat(10_000))], Moment(2));

        let told = reasons.report();
        assert_eq!((told[1].reason, told[1].waited, told[1].failed), (Reason::PoolEmpty, 1, 0));
        assert_eq!(told[0].message.len(), MESSAGE_MAX);
    }
}
