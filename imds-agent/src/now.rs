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
