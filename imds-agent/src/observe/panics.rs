//! Panics that were survived, counted.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Counted by workers, read by whoever reports.
#[derive(Default, Debug)]
pub struct Panics {
    interfaces: AtomicU64,
    workers: AtomicU64,
}

impl Panics {
    /// One that cost an interface its connections.
    pub fn count_interface(&self) {
        self.interfaces.fetch_add(1, Ordering::Relaxed);
    }

    /// One that cost a worker all of its connections.
    pub fn count_worker(&self) {
        self.workers.fetch_add(1, Ordering::Relaxed);
    }

    /// Those that cost an interface its connections.
    pub fn of_interfaces(&self) -> u64 {
        self.interfaces.load(Ordering::Relaxed)
    }

    /// Those that cost a worker all of its connections.
    pub fn of_workers(&self) -> u64 {
        self.workers.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Panics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interfaces, workers) = (self.of_interfaces(), self.of_workers());
        write!(
            f,
            "{interfaces} panics of interfaces' stacks, {workers} of workers"
        )
    }
}
