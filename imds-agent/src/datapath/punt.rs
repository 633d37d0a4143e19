//! Kernel to agent: frames out of the ring.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use imds_ebpf::abi::{LARGE_FRAME_MAX, MacAddr, PuntHeader, TapIndex};
use tokio::io::{Interest, unix::AsyncFd};

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

/// One worker's ring. Wait for its descriptor to become readable, then take frames until there are none.
pub struct PuntRing {
    ring: RingBuf<MapData>,
    /// Frames that arrived earlier are stale.
    fresh_from: Duration,
    /// The frame that was handed out last: the ring takes its room back before the caller is done with it.
    frame: Vec<u8>,
    malformed: u64,
    stale: u64,
}

impl PuntRing {
    /// Takes frames from `ring`, but none that arrived before `fresh_from` (on `CLOCK_MONOTONIC`): a pinned ring may hold
    /// what guests sent while no agent was there, and they have given up waiting for that.
    pub(super) fn new(ring: RingBuf<MapData>, fresh_from: Duration) -> Self {
        Self {
            ring,
            fresh_from,
            frame: Vec::with_capacity(LARGE_FRAME_MAX),
            malformed: 0,
            stale: 0,
        }
    }

    /// Registers the ring with the tokio runtime of the caller, which it must have.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        #[expect(unsafe_code, reason = "tokio cannot tell that the descriptor stays open")]
        // SAFETY: the descriptor is that of the ring's map, which `self` owns, never replaces, and closes when dropped.
        let registered = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        Ok(registered?)
    }

    /// The next frame, or nothing when the ring is empty.
    #[expect(
        clippy::should_implement_trait,
        reason = "a frame borrows the ring, which an iterator's item cannot"
    )]
    pub fn next(&mut self) -> Option<Punt<'_>> {
        loop {
            let record = self.ring.next()?;
            let Some((header, frame)) = PuntHeader::split(&record) else {
                self.malformed += 1;
                continue;
            };
            let arrived = Duration::from_nanos(header.arrived_ns);
            if arrived < self.fresh_from {
                self.stale += 1;
                continue;
            }
            self.frame.clear();
            self.frame.extend_from_slice(frame);
            drop(record);
            return Some(Punt {
                tap: header.tap,
                mac: header.mac,
                arrived,
                frame: &self.frame,
            });
        }
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
