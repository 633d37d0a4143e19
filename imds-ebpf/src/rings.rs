//! The ways to the workers: a ring for each that an agent may have.
//!
//! They are maps of their own, and which one a frame goes into is told by comparison. A map of maps would be one more lookup for
//! every frame, and loses what names give: each ring is pinned under its own. Those of workers that an agent does not have are
//! made as small as a ring can be (`datapath::object` in the agent).

use aya_ebpf::{macros::map, maps::RingBuf};
use imds_ebpf::abi::{RING_BYTES, WORKERS_MAX, WorkerNumber};

macro_rules! rings {
    ($($number:literal => $ring:ident),+) => {
        $(
            #[map]
            static $ring: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
        )+

        /// The ring of a worker; the first one's for a worker that no agent of this version has.
        #[inline(always)]
        pub fn of(worker: WorkerNumber) -> &'static RingBuf {
            match worker.0 {
                $($number => &$ring,)+
                _ => &RING_0,
            }
        }

        const _: () = assert!(WORKERS_MAX as usize == [$($number),+].len());
    };
}

rings! {
    0 => RING_0,
    1 => RING_1,
    2 => RING_2,
    3 => RING_3,
    4 => RING_4,
    5 => RING_5,
    6 => RING_6,
    7 => RING_7
}
