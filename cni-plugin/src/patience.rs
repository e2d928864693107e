//! How long a call may take, and when it started.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::environment::Command;

/// An ADD may have to wait until EC2 has given the node an address; the kubelet gives up after two minutes.
const ADD_TIMEOUT: Duration = Duration::from_secs(90);

/// Everything else the daemon answers from what it knows.
const OTHER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that can be configured: under the kubelet's two minutes, with room to say why.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(110);

/// One deadline for a whole call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// When the program started: `CLOCK_BOOTTIME`, in nanoseconds.
    pub(crate) started_ns: u64,
    begin: Instant,
    end: Instant,
}

impl Patience {
    /// From now, as long as reading the inputs may take.
    pub(crate) fn new() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let part = |n: i64| u64::try_from(n).unwrap_or(0);
        let started_ns = part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec));
        let begin = Instant::now();
        Self { started_ns, begin, end: begin + OTHER_TIMEOUT }
    }

    /// The same start with the patience of a command: only ADD may take longer than [`OTHER_TIMEOUT`].
    pub(crate) fn of(self, command: Command, configured: Option<Duration>) -> Self {
        let timeout = match command {
            Command::Add => configured.unwrap_or(ADD_TIMEOUT),
            Command::Del | Command::Check | Command::Gc | Command::Status | Command::Version => {
                configured.unwrap_or(OTHER_TIMEOUT).min(OTHER_TIMEOUT)
            }
        };
        Self { end: self.begin + timeout, ..self }
    }

    /// The same start, but no more than `timeout` from it.
    pub(crate) fn at_most(self, timeout: Duration) -> Self {
        Self { end: self.end.min(self.begin + timeout), ..self }
    }

    /// What is left, or `None` when less than a millisecond is (which the kernel would take for "for ever").
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        (left >= Duration::from_millis(1)).then_some(left)
    }

    /// How long the call has taken so far.
    pub(crate) fn spent(&self) -> Duration {
        self.begin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(command: Command, configured: Option<u64>) -> Duration {
        let patience = Patience::new().of(command, configured.map(Duration::from_secs));
        patience.end - patience.begin
    }

    #[test]
    fn only_add_may_take_longer_than_ten_seconds() {
        assert_eq!(total(Command::Add, None), ADD_TIMEOUT);
        assert_eq!(total(Command::Add, Some(30)), Duration::from_secs(30));
        assert_eq!(total(Command::Del, None), OTHER_TIMEOUT);
        assert_eq!(total(Command::Del, Some(30)), OTHER_TIMEOUT);
        assert_eq!(total(Command::Status, Some(1)), Duration::from_secs(1));
    }

    #[test]
    fn the_longest_patience_ends_before_the_kubelet_gives_up() {
        assert!(ADD_TIMEOUT <= TIMEOUT_MAX && TIMEOUT_MAX < Duration::from_secs(120));
    }
}
