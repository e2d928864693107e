//! What CloudWatch has yet to hear, and when it is told; pure.

use std::collections::VecDeque;
use std::time::Duration;

use node::clock::doubled;
use types::Moment;

use crate::cloud::{CloudErrorKind, MetricPoint};

/// Most data that wait: more than an hour of them at the usual pace. The oldest make room.
const WAITING_MAX: usize = 2500;
/// Rounds between two tellings, as in the Go version.
const EVERY: u32 = 2;
/// Pause after a call that failed, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));

/// Data that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    points: VecDeque<MetricPoint>,
    rounds: u32,
    failures: u32,
    not_before: Moment,
}

impl Waiting {
    /// A round's data; gives how many had to go for them.
    pub(super) fn push(&mut self, points: impl IntoIterator<Item = MetricPoint>) -> usize {
        self.points.extend(points);
        self.rounds += 1;
        let surplus = self.points.len().saturating_sub(WAITING_MAX);
        self.points.drain(..surplus);
        surplus
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    /// The next ones to tell, at most so many, if it is time.
    pub(super) fn next(&self, now: Moment, most: usize) -> Option<Vec<MetricPoint>> {
        let due = self.rounds >= EVERY && now >= self.not_before;
        (due && !self.points.is_empty()).then(|| self.points.iter().take(most).copied().collect())
    }

    /// All that waited has been told.
    pub(super) const fn rest(&mut self) {
        self.rounds = 0;
    }

    /// So many of them were told.
    pub(super) fn done(&mut self, count: usize) {
        self.failures = 0;
        self.points.drain(..count.min(self.points.len()));
    }

    /// So many of them could not be told: whether they are given up, because they may have arrived, or can only be refused again. The
    /// pause is between half and the whole of what it could be; `spread` of 0 to 999 says where.
    pub(super) fn failed(&mut self, count: usize, kind: CloudErrorKind, now: Moment, spread: u32) -> bool {
        let pause = doubled(PAUSE, self.failures) / 2;
        self.not_before = now.plus(pause + pause.saturating_mul(spread) / 1000);
        self.failures = self.failures.saturating_add(1);
        let hopeless = match kind {
            CloudErrorKind::Throttled
            | CloudErrorKind::Denied
            | CloudErrorKind::NoRoots
            | CloudErrorKind::Unreachable => false,
            CloudErrorKind::SubnetFull
            | CloudErrorKind::NoPrefix
            | CloudErrorKind::EniLimit
            | CloudErrorKind::AddressLimit
            | CloudErrorKind::Gone
            | CloudErrorKind::NoPlace
            | CloudErrorKind::InUse
            | CloudErrorKind::Unclear
            | CloudErrorKind::Garbage
            | CloudErrorKind::Other => true,
        };
        if hopeless {
            self.points.drain(..count.min(self.points.len()));
        }
        hopeless
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: u32) -> impl Iterator<Item = MetricPoint> {
        (0..count).map(|n| MetricPoint { name: "addReqCount", at: Moment(0), value: n.into() })
    }

    fn values(waiting: &Waiting, now: Moment) -> Option<Vec<f64>> {
        Some(waiting.next(now, 3)?.iter().map(|point| point.value).collect())
    }

    #[test]
    fn every_second_round_is_told_in_order() {
        let (mut waiting, now) = (Waiting::default(), Moment(0));
        waiting.push(points(4));
        assert_eq!(values(&waiting, now), None);
        waiting.push(points(1));
        assert_eq!(values(&waiting, now), Some(vec![0.0, 1.0, 2.0]));
        waiting.done(3);
        assert_eq!(values(&waiting, now), Some(vec![3.0, 0.0]));
        waiting.done(2);
        assert_eq!(values(&waiting, now), None);
        waiting.rest();
        waiting.push(points(1));
        assert_eq!(values(&waiting, now), None);
    }

    #[test]
    fn what_is_refused_for_now_waits_ever_longer_and_is_told_again() {
        let (mut waiting, mut now) = (Waiting::default(), Moment(0));
        waiting.push(points(1));
        waiting.push(points(0));
        for seconds in [15, 30, 60, 120, 240, 300, 300] {
            assert!(!waiting.failed(1, CloudErrorKind::Throttled, now, 999));
            let whole = Duration::from_secs(seconds);
            assert_eq!(values(&waiting, now.plus(whole / 2)), None);
            now = now.plus(whole);
            assert_eq!(values(&waiting, now), Some(vec![0.0]));
        }
        waiting.done(1);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn what_may_have_arrived_or_can_only_be_refused_again_is_given_up() {
        for kind in [CloudErrorKind::Unclear, CloudErrorKind::Other] {
            let mut waiting = Waiting::default();
            waiting.push(points(5));
            waiting.push(points(0));
            assert!(waiting.failed(3, kind, Moment(0), 0));
            assert_eq!(values(&waiting, Moment(300_000)), Some(vec![3.0, 4.0]));
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.push(points(2500)), 0);
        assert_eq!(waiting.push(points(20)), 20);
        assert_eq!(values(&waiting, Moment(0)), Some(vec![20.0, 21.0, 22.0]));
    }
}
