//! SYNs for which there is no room yet.
//!
//! A guest that starts hundreds of connections at once finds the connections of its interface taken, but each only for the
//! moment that an exchange takes. Its SYNs wait here for their turn, a packet each and no socket, so that the guest
//! notices a moment's delay; a dropped SYN would cost it a second, a reset the connection.

use std::{collections::VecDeque, time::Duration};

use super::segment::Peer;
use crate::now::Now;

/// SYNs that wait. Past it the oldest one goes: its sender will repeat it.
pub(super) const BACKLOG_MAX: usize = 256;

/// Longest packet that waits: both headers with all their options. A SYN that brings data along is repeated without it.
pub(super) const PACKET_BYTES_MAX: usize = 60 + 60;

/// A sender repeats its SYN after a second (RFC 6298, section 2), and that one waits in place of this one.
const WAITS_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Waiting {
    peer: Peer,
    packet: Vec<u8>,
    until: Duration,
}

/// The waiting SYNs of one interface.
#[derive(Default, Debug)]
pub struct Backlog {
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    dropped: u64,
}

impl Backlog {
    /// Lets `packet`, the SYN of `peer`, wait.
    pub fn push(&mut self, now: Now, peer: Peer, packet: &[u8]) {
        self.expire(now);
        if self.waiting.iter().any(|waiting| waiting.peer == peer) {
            return;
        }
        if packet.len() > PACKET_BYTES_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        if self.waiting.len() >= BACKLOG_MAX {
            self.drop_first();
        }
        let until = now.monotonic.saturating_add(WAITS_FOR);
        self.waiting.push_back(Waiting {
            peer,
            packet: packet.to_vec(),
            until,
        });
    }

    /// The SYN that has waited for longest and not for too long.
    pub fn pop(&mut self, now: Now) -> Option<Vec<u8>> {
        self.expire(now);
        self.waiting.pop_front().map(|waiting| waiting.packet)
    }

    /// How many were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Forgets what has waited for too long.
    fn expire(&mut self, now: Now) {
        let is_over = |waiting: &Waiting| waiting.until <= now.monotonic;
        while self.waiting.front().is_some_and(is_over) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        self.waiting.pop_front();
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
