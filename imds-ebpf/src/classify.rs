//! The verdict over one outbound frame.

use crate::abi::{Reason, TapBinding};

/// Read access to a frame, the only door to its bytes.
pub trait Frame {
    /// Loads `N` bytes at `offset` from the start of the Ethernet header, or nothing when the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the kernel already took a VLAN tag off the frame and keeps it beside it.
    fn has_vlan_tag_aside(&self) -> bool;

    /// Bytes of the whole frame.
    fn length(&self) -> usize;
}

/// What happens to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// None of our business: on to the guest's ordinary network, untouched.
    Pass,
    /// Consumed and counted.
    Drop(Reason),
    /// An ARP request for the metadata address, to be answered from inside the kernel.
    HairpinArp,
    /// Metadata traffic: copied to the agent, then consumed.
    Punt,
}

/// Decides over one outbound frame. `binding` is asked only for frames that concern the metadata address.
pub fn classify<F: Frame>(_frame: &F, _binding: impl FnOnce() -> Option<TapBinding>) -> Verdict {
    Verdict::Pass
}
