//! How long requests took, as a histogram.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets; one more has no bound. An exchange takes some ten microseconds, and a client gives up after
/// a second.
pub const BOUNDS: [Duration; 15] = [
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

/// A histogram that one thread writes and others read.
#[derive(Default, Debug)]
pub struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_nanoseconds: AtomicU64,
}

/// What was observed up to some moment, over any number of histograms.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Observed {
    /// Observations in each bucket alone, in the order of [`BOUNDS`], and last those past them all.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// The time of all observations together.
    pub sum: Duration,
}

impl Latency {
    /// Takes one observation.
    pub fn observe(&self, took: Duration) {
        let [bounded @ .., past] = &self.buckets;
        let bucket = bounded.iter().zip(BOUNDS).find(|(_, bound)| took <= *bound);
        let count = bucket.map_or(past, |(count, _)| count);
        count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Adds what was observed here.
    pub fn add_to(&self, observed: &mut Observed) {
        for (sum, bucket) in observed.buckets.iter_mut().zip(&self.buckets) {
            *sum = sum.saturating_add(bucket.load(Ordering::Relaxed));
        }
        let took = Duration::from_nanos(self.sum_nanoseconds.load(Ordering::Relaxed));
        observed.sum = observed.sum.saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_fall_into_their_buckets_and_add_up() {
        let (one, other) = (Latency::default(), Latency::default());
        one.observe(Duration::from_micros(10));
        one.observe(Duration::from_nanos(10_001));
        other.observe(Duration::from_secs(2));
        let mut observed = Observed::default();
        one.add_to(&mut observed);
        other.add_to(&mut observed);
        let mut buckets = [0; BOUNDS.len() + 1];
        (buckets[0], buckets[1], buckets[BOUNDS.len()]) = (1, 1, 1);
        assert_eq!(observed.buckets, buckets);
        assert_eq!(observed.sum, Duration::from_nanos(2_000_020_001));
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
