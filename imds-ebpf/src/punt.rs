//! Copies a frame into the ring, where the agent finds it.
//!
//! A ring reservation has a size that the verifier knows, so there are three: small for nearly everything, medium for any
//! frame of the usual MTU, large for what a guest's segmentation offload left in one piece. The bytes of the record behind the frame are never written; the agent
//! reads only as many as the head says.

use core::hint::black_box;

use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::RingBuf};
use imds_ebpf::{
    abi::{LARGE_FRAME_MAX, MEDIUM_FRAME_MAX, MacAddr, PuntHeader, Reason, SMALL_FRAME_MAX},
    classify::Frame,
    headers::ETHERNET_SOURCE,
};

use crate::skb::Skb;

/// A ring record with room for a frame of `N` bytes.
#[repr(C)]
struct Record<const N: usize> {
    header: PuntHeader,
    frame: [u8; N],
}

/// Copies the frame into `ring`. Its source MAC is the tap's bound one, as the classifier has checked.
#[inline(always)]
pub fn punt(skb: &Skb<'_>, ring: &RingBuf) -> Result<(), Reason> {
    let length = skb.length();
    if length <= SMALL_FRAME_MAX {
        copy::<SMALL_FRAME_MAX>(skb, ring, length)
    } else if length <= MEDIUM_FRAME_MAX {
        copy::<MEDIUM_FRAME_MAX>(skb, ring, length)
    } else if length <= LARGE_FRAME_MAX {
        copy::<LARGE_FRAME_MAX>(skb, ring, length)
    } else {
        Err(Reason::FrameTooLong)
    }
}

#[inline(always)]
fn copy<const N: usize>(skb: &Skb<'_>, ring: &RingBuf, length: usize) -> Result<(), Reason> {
    let mac = MacAddr(skb.load(ETHERNET_SOURCE).ok_or(Reason::Truncated)?);
    let mut record = ring.reserve::<Record<N>>(0).ok_or(Reason::RingFull)?;
    let room = record.as_mut_ptr();
    // SAFETY: `record` is a reservation of this size, not yet seen by anyone else. Both its fields are written before it
    // is submitted, the frame as far as the header's length says.
    let copied = unsafe {
        (&raw mut (*room).header).write(PuntHeader {
            arrived_ns: bpf_ktime_get_ns(),
            tap: skb.tap(),
            frame_length: length as u16,
            mac,
        });
        // The verifier takes no length that might be zero, and sees no further than these lines. Left to itself, the
        // compiler compares one copy of the length and hands over another, of which the verifier of 6.1 then knows
        // nothing.
        let last = black_box(length.wrapping_sub(1));
        if last < N {
            skb.copy_to((&raw mut (*room).frame).cast(), last as u32 + 1)
        } else {
            Err(0)
        }
    };
    match copied {
        Ok(()) => {
            record.submit(0);
            Ok(())
        }
        Err(_) => {
            record.discard(0);
            Err(Reason::RingFull)
        }
    }
}
