//! The one clock of the daemon.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use types::Moment;

/// Wall time at start plus time elapsed since: monotonic while the process runs, and meaningful after a restart.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Moment,
    started: Instant,
}

impl Clock {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Moment::default().plus(since_epoch), started: Instant::now() }
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.base.plus(self.started.elapsed())
    }
}
