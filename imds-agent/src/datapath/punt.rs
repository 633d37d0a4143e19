//! Kernel to agent: frames out of the ring.
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

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use imds_ebpf::abi::{MacAddr, PuntHeader, TapIndex};
use nix::time::{ClockId, clock_gettime};

#[cfg(test)]
use super::ring::Feed;
use super::ring::Ring;

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

/// The clock of [`Punt::arrived`].
pub fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// One worker's ring. Wait for its descriptor to become readable, then take frames until there are none.
pub struct PuntRing {
    ring: Ring,
    /// Frames that arrived earlier are stale.
    fresh_from: Duration,
    malformed: u64,
    stale: u64,
}

impl PuntRing {
    /// Takes frames from `ring`, but none that arrived before `fresh_from` (on `CLOCK_MONOTONIC`): a pinned ring may hold
    /// what guests sent while no agent was there, and they have given up waiting for that.
    pub(super) fn new(ring: Ring, fresh_from: Duration) -> Self {
        Self {
            ring,
            fresh_from,
            malformed: 0,
            stale: 0,
        }
    }

    /// One that a test writes.
    #[cfg(test)]
    pub fn fed() -> (Self, Feed) {
        let (ring, feed) = Feed::new();
        (Self::new(ring, Duration::ZERO), feed)
    }

    /// The next frame, or nothing when the ring is empty.
    #[expect(
        clippy::should_implement_trait,
        reason = "a frame borrows the ring, which an iterator's item cannot"
    )]
    pub fn next(&mut self) -> Option<Punt<'_>> {
        loop {
            let record = self.ring.next()?;
            match open(self.ring.bytes(record), self.fresh_from) {
                Ok(_) => {
                    // Once more, because a loop cannot lend what it may go on without.
                    let (header, frame) = open(self.ring.bytes(record), self.fresh_from).ok()?;
                    return Some(Punt {
                        tap: header.tap,
                        mac: header.mac,
                        arrived: Duration::from_nanos(header.arrived_ns),
                        frame,
                    });
                }
                Err(Skip::Malformed) => self.malformed = self.malformed.saturating_add(1),
                Err(Skip::Stale) => self.stale = self.stale.saturating_add(1),
            }
        }
    }

    /// Has the descriptor become readable with the next frame, which it otherwise need not. Returns false if there is a frame
    /// already: take it instead of waiting.
    pub fn rest(&mut self) -> bool {
        self.ring.rest()
    }

    /// Records that were shorter than they said. Never, unless kernel and agent disagree about the layout.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Frames that were skipped because they arrived while no agent was there.
    pub fn stale(&self) -> u64 {
        self.stale
    }
}

/// Why a record holds no frame for anyone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Skip {
    Malformed,
    Stale,
}

fn open(record: &[u8], fresh_from: Duration) -> Result<(PuntHeader, &[u8]), Skip> {
    let (header, frame) = PuntHeader::split(record).ok_or(Skip::Malformed)?;
    if Duration::from_nanos(header.arrived_ns) < fresh_from {
        return Err(Skip::Stale);
    }
    Ok((header, frame))
}

impl AsFd for PuntRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for PuntRing {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for PuntRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PuntRing")
            .field("fd", &self.as_raw_fd())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use imds_ebpf::abi::PUNT_HEADER_BYTES;

    use super::*;

    fn record(arrived_ns: u64, frame_length: u16) -> [u8; PUNT_HEADER_BYTES + 8] {
        let mut record = [0; PUNT_HEADER_BYTES + 8];
        record[..8].copy_from_slice(&arrived_ns.to_ne_bytes());
        record[16..18].copy_from_slice(&frame_length.to_ne_bytes());
        record[PUNT_HEADER_BYTES..].copy_from_slice(b"abcdefgh");
        record
    }

    #[test]
    fn frame_is_as_long_as_the_head_says() {
        let record = record(5, 3);
        let (header, frame) = open(&record, Duration::from_nanos(5)).unwrap();
        assert_eq!((header.arrived_ns, frame), (5, &b"abc"[..]));
    }

    #[test]
    fn frame_from_before_the_agent_is_stale() {
        assert_eq!(open(&record(4, 3), Duration::from_nanos(5)), Err(Skip::Stale));
    }

    #[test]
    fn record_that_promises_more_than_it_holds_is_malformed() {
        assert_eq!(open(&record(5, 9), Duration::ZERO), Err(Skip::Malformed));
        assert_eq!(open(&record(5, u16::MAX), Duration::ZERO), Err(Skip::Malformed));
        assert_eq!(open(&[], Duration::ZERO), Err(Skip::Malformed));
    }
}
