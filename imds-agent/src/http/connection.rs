//! One connection: requests in order, responses in order.

use super::Service;
use crate::now::Now;

/// Bytes that wait to be sent, all with the same hop limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit<'a> {
    /// Never empty.
    pub bytes: &'a [u8],
    /// The hop limit of every packet that carries these bytes; nothing means the ordinary one.
    pub hop_limit: Option<u8>,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(_now: Now) -> Self {
        Self {}
    }

    /// Whether it takes more bytes now. While it does not, the stream is to be left unread, so that the peer's window
    /// closes: a peer that does not read its responses gets no more of them made.
    pub fn wants_bytes(&self) -> bool {
        true
    }

    /// Takes the next bytes of the stream, all of them, and answers every request that they complete.
    pub fn handle_bytes(&mut self, _now: Now, _bytes: &[u8], _service: &mut impl Service) {}

    /// The peer sent its last byte. What was asked is still answered.
    pub fn handle_end(&mut self, _now: Now) {}

    /// A deadline of [`poll_timeout`](Self::poll_timeout) may have passed.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called, on the monotonic clock.
    pub fn poll_timeout(&self) -> Option<std::time::Duration> {
        None
    }

    /// The next bytes to send, or nothing.
    pub fn poll_transmit(&self) -> Option<Transmit<'_>> {
        None
    }

    /// The first `count` bytes of [`poll_transmit`](Self::poll_transmit) are on their way. Pipelined requests that waited for
    /// room are answered now.
    pub fn handle_transmitted(&mut self, _now: Now, _count: usize, _service: &mut impl Service) {}

    /// Nothing will follow what [`poll_transmit`](Self::poll_transmit) still returns: the stream can be closed after it.
    pub fn is_last(&self) -> bool {
        false
    }
}
