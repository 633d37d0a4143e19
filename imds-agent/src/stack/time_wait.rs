//! Connections in TIME-WAIT (RFC 9293, section 3.6), without their sockets.
//!
//! We close first on nearly every connection, so every request leaves one of these behind for a while. A socket with both its
//! buffers would hold 24 KiB for it; what the state is for takes two sequence numbers: acknowledge the peer's FIN again
//! if our acknowledgement got lost, and keep old segments away from a new connection of the same ports.

use std::{collections::VecDeque, time::Duration};

use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::{
    HOP_LIMIT_DEFAULT, RECEIVE_BUFFER_BYTES, Transmit,
    device::checksums,
    segment::{Peer, Segment},
};
use crate::now::Now;

/// How long a FIN may still come again. A guest's retransmissions double from 200 ms; no segment of it can be delayed on
/// the way, since there is no network between us.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// Entries of one interface. Past it the oldest one goes: its peer would get a reset for a repeated FIN, which ends the
/// connection just the same.
const TIME_WAITS_MAX: usize = 64;

#[derive(Debug)]
struct TimeWait {
    peer: Peer,
    /// Our next sequence number: behind our FIN.
    sequence: TcpSeqNumber,
    /// What we expect next from the peer: behind its FIN.
    expects: TcpSeqNumber,
    until: Duration,
}

/// The TIME-WAIT states of one interface, oldest first.
#[derive(Default, Debug)]
pub struct TimeWaits(VecDeque<TimeWait>);

impl TimeWaits {
    /// `segment` brought its connection into TIME-WAIT: acknowledges and remembers it.
    pub fn enter(&mut self, now: Now, segment: &Segment, transmit: &mut impl Transmit) {
        // Only an acknowledgement of our FIN leads into this state.
        let Some(sequence) = segment.acknowledges else {
            return;
        };
        let until = now.monotonic.saturating_add(TIME_WAIT);
        let entry = TimeWait {
            peer: segment.peer,
            sequence,
            expects: segment.end,
            until,
        };
        entry.acknowledge(transmit);
        if self.0.len() >= TIME_WAITS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(entry);
    }

    /// Takes a segment that no socket owns. Returns whether that was all there is to do with it.
    pub fn handle_segment(&mut self, now: Now, segment: &Segment, transmit: &mut impl Transmit) -> bool {
        let Some(index) = self.0.iter().position(|entry| entry.peer == segment.peer) else {
            return false;
        };
        let Some(entry) = self.0.get_mut(index) else {
            return false;
        };
        if segment.opens() && segment.sequence > entry.expects {
            // A new connection of the same ports, which cannot be an old duplicate (RFC 9293, section 3.10.7.4).
            self.0.remove(index);
            return false;
        }
        if segment.rst && segment.sequence == entry.expects {
            // So a guest answers that was reset and whose SYN we took for an old duplicate: its next one is to get through.
            // RFC 1337 obeys no reset here, for fear of old ones that roam a network. There is none between us.
            self.0.remove(index);
            return true;
        }
        if !segment.rst && segment.sequence != segment.end {
            entry.acknowledge(transmit);
        }
        // Every entry lives for its time from when it was made, so that the queue stays sorted; a peer that repeats
        // its FIN for longer than that is not one we wait for.
        self.expire(now);
        true
    }

    /// Forgets what is old enough.
    pub fn expire(&mut self, now: Now) {
        while self.0.front().is_some_and(|entry| entry.until <= now.monotonic) {
            self.0.pop_front();
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.0.front().map(|entry| entry.until)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TimeWait {
    fn acknowledge(&self, transmit: &mut impl Transmit) {
        let tcp = TcpRepr {
            src_port: self.peer.local.port,
            dst_port: self.peer.remote.port,
            control: TcpControl::None,
            seq_number: self.sequence,
            ack_number: Some(self.expects),
            window_len: u16::try_from(RECEIVE_BUFFER_BYTES).unwrap_or(u16::MAX),
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (source, destination) = (self.peer.local.addr, self.peer.remote.addr);
        let ip = IpRepr::new(
            source,
            destination,
            IpProtocol::Tcp,
            tcp.buffer_len(),
            HOP_LIMIT_DEFAULT,
        );
        transmit.transmit(ip.buffer_len(), |packet| {
            let checksums = checksums();
            ip.emit(&mut *packet, &checksums);
            if let Some(segment) = packet.get_mut(ip.header_len()..) {
                tcp.emit(
                    &mut TcpPacket::new_unchecked(segment),
                    &source,
                    &destination,
                    &checksums,
                );
            }
        });
    }
}
