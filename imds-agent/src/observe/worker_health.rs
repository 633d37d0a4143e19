//! How a worker fares: its ring, its frames to the guests, its connections.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts of one worker, whichever thread it is that runs as it. Read by whoever reports.
#[derive(Default, Debug)]
#[repr(align(128))]
pub struct WorkerHealth {
    counters: [AtomicU64; COUNTERS],
    connections: AtomicU64,
}

const COUNTERS: usize = 9;

/// What a worker's ring, injector and stacks have counted since they were made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counted {
    /// Records of the ring that were shorter than they said.
    pub malformed: u64,
    /// Frames in the ring that came while no agent was there.
    pub stale: u64,
    /// Frames that taps took.
    pub injected: u64,
    /// Frames that taps refused.
    pub lost: u64,
    /// Frames that are no whole TCP segment.
    pub frames_malformed: u64,
    /// Frames of taps that are nobody's any more, or another worker's.
    pub frames_not_served: u64,
    /// Frames of taps that pause after a panic.
    pub frames_paused: u64,
    /// Idle connections that were reset to make room for others.
    pub connections_reset: u64,
    /// SYNs that waited in vain for room.
    pub syns_dropped: u64,
}

impl Counted {
    fn all(self) -> [u64; COUNTERS] {
        let Self {
            malformed,
            stale,
            injected,
            lost,
            frames_malformed,
            frames_not_served,
            frames_paused,
            connections_reset,
            syns_dropped,
        } = self;
        [
            malformed,
            stale,
            injected,
            lost,
            frames_malformed,
            frames_not_served,
            frames_paused,
            connections_reset,
            syns_dropped,
        ]
    }
}

/// The writing end. A worker that is started anew, with a ring and an injector that count from nothing, makes a new one.
#[derive(Debug)]
pub struct Report {
    health: Arc<WorkerHealth>,
    last: Counted,
    connections: u64,
}

impl WorkerHealth {
    /// What was counted.
    pub fn counted(&self) -> Counted {
        let [
            malformed,
            stale,
            injected,
            lost,
            frames_malformed,
            frames_not_served,
            frames_paused,
            connections_reset,
            syns_dropped,
        ] = self
            .counters
            .each_ref()
            .map(|counter| counter.load(Ordering::Relaxed));
        Counted {
            malformed,
            stale,
            injected,
            lost,
            frames_malformed,
            frames_not_served,
            frames_paused,
            connections_reset,
            syns_dropped,
        }
    }

    /// Connections at present.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Report {
    /// Writes to `health`.
    pub fn new(health: Arc<WorkerHealth>) -> Self {
        Self {
            health,
            last: Counted::default(),
            connections: 0,
        }
    }

    /// Passes on what changed since the last time.
    pub fn tell(&mut self, counted: Counted, connections: usize) {
        let health = &self.health;
        let since = counted.all().into_iter().zip(self.last.all());
        for (counter, (is, was)) in health.counters.iter().zip(since) {
            if is != was {
                counter.fetch_add(is.wrapping_sub(was), Ordering::Relaxed);
            }
        }
        self.last = counted;
        let connections = connections as u64;
        if connections != self.connections {
            self.connections = connections;
            health.connections.store(connections, Ordering::Relaxed);
        }
    }
}

impl Drop for Report {
    /// With the worker go its connections, by a panic too.
    fn drop(&mut self) {
        self.health.connections.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_starts_anew_counts_on() {
        let health = Arc::<WorkerHealth>::default();
        let counted = |injected| Counted {
            injected,
            stale: 1,
            ..Counted::default()
        };
        let mut first = Report::new(Arc::clone(&health));
        first.tell(counted(5), 3);
        first.tell(counted(7), 2);
        assert_eq!((health.counted(), health.connections()), (counted(7), 2));
        drop(first);
        assert_eq!(health.connections(), 0);
        Report::new(Arc::clone(&health)).tell(counted(2), 1);
        assert_eq!((health.counted().injected, health.counted().stale), (9, 2));
    }
}
