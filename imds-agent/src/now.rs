//! The instant that is handed down to the sans-IO cores instead of a clock.

use std::time::Duration;

/// One reading of both clocks, taken once per batch of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Since an arbitrary fixed point, never going back: for timers.
    pub monotonic: Duration,
    /// Since the Unix epoch: for dates and expiries.
    pub unix: Duration,
}

impl Now {
    /// The date, for comparison with other dates. A clock beyond the calendar stands at its end.
    pub fn timestamp(self) -> jiff::Timestamp {
        let seconds = i64::try_from(self.unix.as_secs()).unwrap_or(i64::MAX);
        let nanoseconds = i32::try_from(self.unix.subsec_nanos()).unwrap_or(0);
        jiff::Timestamp::new(seconds, nanoseconds).unwrap_or(jiff::Timestamp::MAX)
    }
}
