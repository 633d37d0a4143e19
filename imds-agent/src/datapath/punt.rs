//! Kernel to agent: frames out of the ring.

use std::time::Duration;

use imds_ebpf::abi::{MacAddr, TapIndex};

/// One frame that the classifier handed over.
#[derive(Clone, Copy, Debug)]
pub struct Punt<'a> {
    /// The tap it came from.
    pub tap: TapIndex,
    /// Its source MAC, which the classifier has checked against the tap's.
    pub mac: MacAddr,
    /// When the classifier saw it, on `CLOCK_MONOTONIC`.
    pub arrived: Duration,
    /// The frame, from its Ethernet header on.
    pub frame: &'a [u8],
}

/// One worker's ring.
#[derive(Debug)]
pub struct PuntRing {}

impl PuntRing {
    /// The next frame, or nothing when the ring is empty.
    pub fn next(&mut self) -> Option<Punt<'_>> {
        None
    }
}
