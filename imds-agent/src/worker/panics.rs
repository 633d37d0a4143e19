//! A panic costs as little as it can: the interface whose frame caused it, or the worker a moment, and then the worker goes on.
//!
//! No guest should be able to cause one. If one can after all, it hurts itself: its stack is made anew, with longer and
//! longer pauses. A panic outside of any stack is the worker's own. It drops all stacks, and their guests connect again;
//! ring, socket and what the worker was told of its taps stay.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use crate::observe::Panics;

// A profile that aborts would end the agent, and every guest's connections, with the first panic.
const _: () = assert!(
    cfg!(panic = "unwind"),
    "panics are caught here, so they have to unwind"
);

/// How long a panic is held against who caused it.
const MEMORY: Duration = Duration::from_secs(60);

/// So many within [`MEMORY`] end the worker, and the agent with it. What panics over and over with all stacks made anew is
/// what is kept: a new process has none of that. Ten pauses take four seconds.
const WORKER_PANICS_MAX: usize = 10;

/// The pause after the first panic of a worker, which doubles with each: far below the second that clients wait.
const WORKER_PAUSE: Duration = Duration::from_millis(10);
const WORKER_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pause after the first panic of an interface's stack, which doubles with each: one retransmission of its guest's.
const INTERFACE_PAUSE: Duration = Duration::from_millis(100);
const INTERFACE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Somebody panicked too often.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it panicked {WORKER_PANICS_MAX} times within {MEMORY:?}")]
pub struct TooOften;

/// Runs `work` on `state` to its end; after a panic `recover`, which is told how long to pause, and then `work` again.
pub fn supervise<S, R>(
    state: &mut S,
    panics: &Panics,
    now: impl Fn() -> Duration,
    mut work: impl FnMut(&mut S) -> R,
    mut recover: impl FnMut(&mut S, Duration),
) -> Result<R, TooOften> {
    let mut record = Record::default();
    loop {
        if let Some(result) = survive(|| work(state)) {
            return Ok(result);
        }
        panics.count_worker();
        let count = record.add(now());
        if count >= WORKER_PANICS_MAX {
            return Err(TooOften);
        }
        recover(state, pause(count, WORKER_PAUSE, WORKER_PAUSE_MAX));
    }
}

/// What `work` returns; nothing if it panics. The caller answers for what `work` may leave half done.
pub fn survive<R>(work: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// An interface whose stack panicked.
#[derive(Default, Debug)]
pub struct Convalescent {
    record: Record,
    until: Duration,
}

impl Convalescent {
    /// It panicked again. Returns how long its frames are passed over.
    pub fn handle_panic(&mut self, now: Duration, panics: &Panics) -> Duration {
        panics.count_interface();
        let pause = pause(self.record.add(now), INTERFACE_PAUSE, INTERFACE_PAUSE_MAX);
        self.until = now.saturating_add(pause);
        pause
    }

    /// Whether its frames are passed over.
    pub fn rests(&self, now: Duration) -> bool {
        now < self.until
    }
}

/// The panics of late.
#[derive(Default, Debug)]
struct Record(VecDeque<Duration>);

impl Record {
    /// Adds one, and counts.
    fn add(&mut self, now: Duration) -> usize {
        self.0.retain(|at| at.saturating_add(MEMORY) > now);
        self.0.push_back(now);
        self.0.len()
    }
}

fn pause(count: usize, first: Duration, max: Duration) -> Duration {
    let doublings = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX);
    let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
    first.checked_mul(factor).map_or(max, |pause| pause.min(max))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Silences the word of a panic that a test means to cause.
    fn panics() -> ! {
        std::panic::resume_unwind(Box::new("as planned"))
    }

    #[test]
    fn work_that_panics_goes_on_where_it_was_after_growing_pauses() {
        let (counts, clock) = (Panics::default(), Cell::new(Duration::ZERO));
        let mut pauses = Vec::new();
        let work = |runs: &mut usize| {
            *runs += 1;
            if *runs < 4 {
                panics()
            }
            "the end"
        };
        let recover = |runs: &mut usize, pause| {
            pauses.push((*runs, pause));
            clock.set(clock.get() + pause);
        };
        let ended = supervise(&mut 0, &counts, || clock.get(), work, recover);
        assert_eq!(ended, Ok("the end"));
        let milliseconds = Duration::from_millis;
        assert_eq!(
            pauses,
            [
                (1, milliseconds(10)),
                (2, milliseconds(20)),
                (3, milliseconds(40))
            ]
        );
        assert_eq!((counts.of_workers(), counts.of_interfaces()), (3, 0));
    }

    #[test]
    fn work_that_keeps_panicking_is_given_up() {
        let (counts, clock) = (Panics::default(), Cell::new(Duration::ZERO));
        let recover = |(): &mut _, pause| clock.set(clock.get() + pause);
        let given_up = supervise(&mut (), &counts, || clock.get(), |()| panics(), recover);
        assert_eq!(given_up, Err::<(), _>(TooOften));
        assert_eq!(counts.of_workers(), 10);
        assert!(clock.get() < Duration::from_secs(5), "{:?}", clock.get());
    }

    #[test]
    fn a_panic_every_now_and_then_is_never_too_many() {
        let (counts, clock) = (Panics::default(), Cell::new(Duration::ZERO));
        let work = |(): &mut _| {
            if counts.of_workers() < 50 {
                panics()
            }
        };
        let recover = |(): &mut _, pause| {
            assert_eq!(pause, WORKER_PAUSE);
            clock.set(clock.get() + MEMORY);
        };
        let ended = supervise(&mut (), &counts, || clock.get(), work, recover);
        assert_eq!(ended, Ok(()));
    }

    #[test]
    fn an_interface_that_keeps_panicking_rests_longer_each_time_but_never_for_good() {
        let (counts, mut interface) = (Panics::default(), Convalescent::default());
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..100 {
            let pause = interface.handle_panic(now, &counts);
            assert!(interface.rests(now));
            now += pause;
            assert!(!interface.rests(now));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses[..9], [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        assert!(
            now > MEMORY * 10,
            "a guest makes us say so some ten times a minute: {now:?}"
        );
        assert_eq!(interface.handle_panic(now + MEMORY, &counts), INTERFACE_PAUSE);
        assert_eq!(counts.of_interfaces(), 101);
    }
}
