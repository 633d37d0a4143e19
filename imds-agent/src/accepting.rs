//! Accepting connections, and what becomes of it when the kernel refuses: mostly there are no descriptors left, and all that a
//! listener can do is try again until there are. That may last, and must not fill the log.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep};

/// How long the kernel is left alone after it refused.
const PAUSE: Duration = Duration::from_millis(100);

/// The same is told again after this long at the soonest.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Accepts connections for one listener, however often that fails.
#[derive(Debug)]
pub struct Accepting {
    /// Whose connections they are, for the log.
    what: &'static str,
    trouble: Trouble,
}

/// What the log was told.
#[derive(Default, Debug)]
struct Trouble {
    told_at: Option<Instant>,
    /// It is told that there is trouble, and not yet that it is over.
    is_told: bool,
}

impl Accepting {
    /// For connections to `what`.
    pub fn of(what: &'static str) -> Self {
        Self {
            what,
            trouble: Trouble::default(),
        }
    }

    /// The next connection that `accept` gets. May be dropped at any time, as `accept` may.
    pub async fn next<T, F: Future<Output = io::Result<T>>>(&mut self, accept: impl Fn() -> F) -> T {
        let what = self.what;
        loop {
            match accept().await {
                Ok(accepted) => {
                    if self.trouble.is_over() {
                        log::info!("{what}: connections are accepted again");
                    }
                    return accepted;
                }
                // Whoever called has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if self.trouble.is_to_be_told(Instant::now()) {
                        log::warn!("{what}: no connection can be accepted, which is tried again: {error}");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Trouble {
    /// Accepting failed. Whether the log is to be told.
    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let is_recent = |told_at| now.duration_since(told_at) < AGAIN_AFTER;
        if self.is_told || self.told_at.is_some_and(is_recent) {
            return false;
        }
        (self.told_at, self.is_told) = (Some(now), true);
        true
    }

    /// A connection was accepted. Whether the log is to be told.
    fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.is_told)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn trouble_is_told_when_it_begins_and_ends_and_once_a_minute_at_most() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!trouble.is_over());
        assert!(trouble.is_to_be_told(at(0)));
        assert!(!trouble.is_to_be_told(at(0)) && !trouble.is_to_be_told(at(3600)));
        assert!(trouble.is_over() && !trouble.is_over());

        // It comes and goes.
        assert!(trouble.is_to_be_told(at(3601)) && trouble.is_over());
        assert!(!trouble.is_to_be_told(at(3660)) && !trouble.is_over());
        assert!(trouble.is_to_be_told(at(3661)) && trouble.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_outlasted_at_their_pace() {
        let mut accepting = Accepting::of("a test");
        let calls = Cell::new(0);
        let accept = || async {
            match calls.replace(calls.get() + 1) + 1 {
                1 => Err(io::ErrorKind::ConnectionAborted.into()),
                ..=11 => Err(io::Error::from_raw_os_error(24)),
                number => Ok(number),
            }
        };
        let start = Instant::now();
        assert_eq!(accepting.next(accept).await, 12);
        assert_eq!(start.elapsed(), PAUSE * 10);
    }
}
