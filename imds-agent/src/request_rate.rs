//! How many requests of a sender are answered: a token bucket for each, above the classifier's one for packets.
//!
//! The classifier's rate holds whoever makes a connection for every request, but one frame of a connection that is kept
//! alive may hold eighty requests. What is over this rate is refused with a status, and the connection closed, so that
//! to be refused again costs its sender the packets of another connection.
//!
//! A bucket is one number, the time at which it is full again, as in the classifier (`imds_ebpf::bucket`). A full bucket
//! need not be remembered, so a sender without requests has nothing here.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use std::{hash::Hash, time::Duration};

use imds_ebpf::abi::TapIndex;
use rustc_hash::FxHashMap;

/// How long an empty bucket takes to be full again: at the default rate a burst is 1024 requests, all that ten agents ask
/// for at boot (cloud-init asks for 59 categories) with room for a crawl of the whole tree, and answered within three
/// milliseconds of a worker's time.
const BURST: Duration = Duration::from_secs(4);

/// Buckets that are kept without looking for full ones.
const UNSWEPT_MAX: usize = 64;

/// The buckets of senders, whatever tells them apart.
#[derive(Debug)]
pub struct RequestBuckets<S> {
    /// After which a sender may have another request answered; nothing sets no limit.
    interval: Option<Duration>,
    /// When each bucket is full again. An absent one is full.
    full_at: FxHashMap<S, Duration>,
    /// With this many buckets the full ones are forgotten.
    sweep_at: usize,
}

/// What taps have left of their requests at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestsLeft {
    /// What a tap has that is not among the others.
    pub full: u64,
    /// What those have that asked in the last seconds.
    pub taps: FxHashMap<TapIndex, u64>,
}

impl<S: Copy + Eq + Hash> RequestBuckets<S> {
    /// Full buckets of this rate. Zero sets no limit.
    pub fn new(requests_per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1).checked_div(requests_per_second),
            full_at: FxHashMap::default(),
            sweep_at: UNSWEPT_MAX,
        }
    }

    /// Takes a request's token, if its sender has one left at `now` (of the monotonic clock). A request that is over the rate
    /// takes nothing, and so costs its sender nothing later.
    pub fn take(&mut self, now: Duration, sender: S) -> bool {
        let Some(interval) = self.interval else {
            return true;
        };
        let full_at = self.full_at.get(&sender).copied().unwrap_or_default();
        let after = full_at.max(now).saturating_add(interval);
        if after.saturating_sub(now) > BURST {
            return false;
        }
        self.full_at.insert(sender, after);
        if self.full_at.len() >= self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = UNSWEPT_MAX.max(self.full_at.len().saturating_mul(2));
        }
        true
    }

    /// Fills the bucket of a sender that is somebody else now.
    pub fn forget(&mut self, sender: S) {
        self.full_at.remove(&sender);
    }
}

impl RequestBuckets<TapIndex> {
    /// What is left at `now`, or nothing if there is no limit.
    pub fn left(&self, now: Duration) -> Option<RequestsLeft> {
        let tokens = |time: Duration| {
            let tokens = time.as_nanos().checked_div(self.interval?.as_nanos())?;
            Some(u64::try_from(tokens).unwrap_or(0))
        };
        let taken = self.full_at.iter().filter(|(_, full_at)| **full_at > now);
        let taps = taken.map(|(tap, full_at)| {
            let missing = full_at.saturating_sub(now);
            Some((*tap, tokens(BURST.saturating_sub(missing))?))
        });
        Some(RequestsLeft {
            full: tokens(BURST)?,
            taps: taps.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAP: TapIndex = TapIndex(7);

    fn milliseconds(count: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(count)
    }

    /// How many of `count` requests at once are answered.
    fn answered(buckets: &mut RequestBuckets<TapIndex>, now: Duration, count: usize) -> usize {
        (0..count).filter(|_| buckets.take(now, TAP)).count()
    }

    #[test]
    fn burst_is_answered_at_once_and_the_rate_from_then_on() {
        let mut buckets = RequestBuckets::new(256);
        assert_eq!(answered(&mut buckets, milliseconds(0), 2000), 1024);
        let later = (1..=10_000)
            .map(|count| answered(&mut buckets, milliseconds(count), 5))
            .sum::<usize>();
        assert_eq!(later, 2560);
        assert_eq!(answered(&mut buckets, milliseconds(14_000), 2000), 1024);
    }

    #[test]
    fn what_is_left_is_what_would_be_answered() {
        let mut buckets = RequestBuckets::new(256);
        answered(&mut buckets, milliseconds(0), 1000);
        let left = buckets.left(milliseconds(1)).unwrap();
        assert_eq!(
            (left.full, left.taps.clone()),
            (1024, FxHashMap::from_iter([(TAP, 24)]))
        );
        assert_eq!(answered(&mut buckets, milliseconds(1), 100), 24);
        assert_eq!(buckets.left(milliseconds(1)).unwrap().taps[&TAP], 0);
        assert!(buckets.left(milliseconds(5000)).unwrap().taps.is_empty());
        assert_eq!(RequestBuckets::<TapIndex>::new(0).left(milliseconds(0)), None);
    }

    #[test]
    fn neighbour_is_not_held_to_what_another_took() {
        let mut buckets = RequestBuckets::new(1);
        assert_eq!(answered(&mut buckets, milliseconds(0), 10), 4);
        assert!(buckets.take(milliseconds(0), TapIndex(8)));
        buckets.forget(TAP);
        assert_eq!(answered(&mut buckets, milliseconds(0), 10), 4);
    }

    #[test]
    fn zero_is_no_limit_and_remembers_nothing() {
        let mut buckets = RequestBuckets::new(0);
        assert_eq!(answered(&mut buckets, milliseconds(0), 100_000), 100_000);
        assert!(buckets.full_at.is_empty());
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let mut buckets = RequestBuckets::new(256);
        let mut most = 0;
        for index in 0..100_000 {
            // Each tap's bucket is full again four milliseconds later.
            assert!(buckets.take(milliseconds(index), TapIndex(index)));
            most = most.max(buckets.full_at.len());
        }
        assert!(most <= UNSWEPT_MAX, "{most} buckets at once");
        // Those that are not full stay, and what they have left holds.
        let now = milliseconds(200_000);
        let crowd = 1000;
        for _ in 0..1024 {
            for index in 0..crowd {
                assert!(buckets.take(now, TapIndex(index)));
            }
        }
        assert!((0..crowd).all(|index| !buckets.take(now, TapIndex(index))));
    }
}
