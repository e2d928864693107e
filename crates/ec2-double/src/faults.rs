//! Bad manners: faults on demand, rate limits, and the record of what was called.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use types::{InstanceId, Moment};

use super::error::ApiError;
use super::query::Action;

/// How many calls are recorded before the oldest are forgotten.
const CALLS_MAX: usize = 100_000;

/// What happens to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this code and HTTP status, and not performed.
    Error {
        /// EC2's code.
        code: String,
        /// HTTP status.
        http: u16,
    },
    /// It is performed, and the connection closes without an answer.
    LoseAnswer,
    /// It is performed after this time.
    Delay(Duration),
    /// It is not performed, and the answer is this text with HTTP status 200.
    Garbage(String),
    /// It is performed by half: half of the addresses or prefixes (rounded down) that it names or counts.
    PartialSuccess,
}

impl Fault {
    /// A refusal.
    #[must_use]
    pub fn error(code: &str, http: u16) -> Self {
        Self::Error { code: code.to_owned(), http }
    }
}

/// What all calls meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weather {
    /// Nothing special.
    #[default]
    Fair,
    /// Every call is refused with `UnauthorizedOperation`, 403.
    Denied,
    /// Every call is refused with `RequestLimitExceeded`, 503.
    Throttled,
    /// Every connection closes without an answer.
    Unreachable,
}

/// A token bucket: `capacity` calls at once, then one per `refill_every`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Calls that can be made at once after a rest.
    pub capacity: u32,
    /// Time that earns one more call.
    pub refill_every: Duration,
}

/// One call as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// When it was answered.
    pub at: Moment,
    /// The action's name, also one that does not exist.
    pub action: String,
    /// The instance whose server was called.
    pub caller: Option<InstanceId>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Performed and answered.
    Done,
    /// Refused with this code.
    Refused(String),
    /// Performed, and the answer was lost.
    Lost,
    /// Not performed, and the connection closed.
    Cut,
    /// Not performed, and answered with garbage.
    Garbled,
}

/// How a call is to be treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Perform,
    PerformHalf,
    PerformAfter(Duration),
    PerformAndCut,
    Cut,
    Garbage(String),
    Refuse(ApiError),
}

/// Faults in line, buckets and the record.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    weather: Weather,
    waiting: BTreeMap<Action, VecDeque<(u32, Fault)>>,
    buckets: BTreeMap<Action, Filling>,
    calls: VecDeque<Call>,
}

#[derive(Debug)]
struct Filling {
    bucket: Bucket,
    tokens: u32,
    since: Moment,
}

impl Faults {
    pub(crate) fn next(&mut self, action: Action, times: u32, fault: Fault) {
        if times > 0 {
            self.waiting.entry(action).or_default().push_back((times, fault));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(crate) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    pub(crate) fn throttle(&mut self, action: Action, bucket: Option<Bucket>, now: Moment) {
        match bucket {
            Some(bucket) => {
                let full = Filling { bucket, tokens: bucket.capacity, since: now };
                self.buckets.insert(action, full);
            }
            None => {
                self.buckets.remove(&action);
            }
        }
    }

    /// What becomes of a call made now.
    pub(crate) fn meet(&mut self, action: Action, now: Moment) -> Verdict {
        match self.weather {
            Weather::Fair => {}
            Weather::Denied => return Verdict::Refuse(ApiError::denied()),
            Weather::Throttled => return Verdict::Refuse(ApiError::throttled()),
            Weather::Unreachable => return Verdict::Cut,
        }
        if self.buckets.get_mut(&action).is_some_and(|bucket| !bucket.take(now)) {
            return Verdict::Refuse(ApiError::throttled());
        }
        match self.pop(action) {
            None => Verdict::Perform,
            Some(Fault::Error { code, http }) => {
                Verdict::Refuse(ApiError::new(&code, "A fault on demand.").with_http(http))
            }
            Some(Fault::LoseAnswer) => Verdict::PerformAndCut,
            Some(Fault::Delay(time)) => Verdict::PerformAfter(time),
            Some(Fault::Garbage(text)) => Verdict::Garbage(text),
            Some(Fault::PartialSuccess) => Verdict::PerformHalf,
        }
    }

    fn pop(&mut self, action: Action) -> Option<Fault> {
        let line = self.waiting.get_mut(&action)?;
        let (times, fault) = line.front_mut()?;
        *times -= 1;
        if *times == 0 { line.pop_front().map(|(_, fault)| fault) } else { Some(fault.clone()) }
    }

    pub(crate) fn record(&mut self, call: Call) {
        if self.calls.len() == CALLS_MAX {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter()
    }

    pub(crate) fn clear_calls(&mut self) {
        self.calls.clear();
    }
}

impl Filling {
    fn take(&mut self, now: Moment) -> bool {
        let every = self.bucket.refill_every.max(Duration::from_millis(1));
        let earned = now.since(self.since).as_millis() / every.as_millis();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.since = self.since.plus(every.saturating_mul(earned));
        self.tokens = self.tokens.saturating_add(earned).min(self.bucket.capacity);
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: Action = Action::AssignPrivateIpAddresses;

    #[test]
    fn a_bucket_allows_a_burst_and_then_its_rate() {
        let mut faults = Faults::default();
        let bucket = Bucket { capacity: 2, refill_every: Duration::from_secs(1) };
        faults.throttle(ACTION, Some(bucket), Moment(0));

        let mut allowed = |at| faults.meet(ACTION, Moment(at)) == Verdict::Perform;

        let times = [0, 0, 0, 999, 1000, 1001, 9000, 9000, 9000];
        let wanted = [true, true, false, false, true, false, true, true, false];
        assert_eq!(times.map(&mut allowed), wanted);
    }

    #[test]
    fn faults_stand_in_line_and_then_are_over() {
        let mut faults = Faults::default();
        faults.next(ACTION, 2, Fault::LoseAnswer);
        faults.next(ACTION, 1, Fault::PartialSuccess);

        let met: Vec<_> = (0..4).map(|_| faults.meet(ACTION, Moment(0))).collect();

        use Verdict::{Perform, PerformAndCut, PerformHalf};
        assert_eq!(met, [PerformAndCut, PerformAndCut, PerformHalf, Perform]);
        assert_eq!(faults.meet(Action::CreateTags, Moment(0)), Perform);
    }

    #[test]
    fn weather_comes_before_faults() {
        let mut faults = Faults::default();
        faults.set_weather(Weather::Denied);

        let met = faults.meet(ACTION, Moment(0));

        assert_eq!(met, Verdict::Refuse(ApiError::denied()));
    }
}
