//! One TCP/IP stack per interface: packets in, streams to HTTP, packets out.
//!
//! Read first: RFC 9293 (TCP), and smoltcp's `Interface`. The stack is sans-IO: packets are handed in, packets are
//! handed to a [`Transmit`], time is an argument.
//!
//! A packet's way: [`Stack::handle_packet`] makes a socket if it opens a connection, feeds smoltcp, and lets the touched
//! connection talk to HTTP. Nothing but resets leaves until [`Stack::flush`], so that an acknowledgement rides on the
//! response and the FIN on its last byte. What is worth telling of responses that did not arrive comes out of
//! [`Stack::poll_undelivered`].

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod backlog;
mod connections;
mod device;
mod segment;
mod spares;
mod time_wait;
mod undelivered;

use std::{borrow::Cow, time::Duration};

use smoltcp::{
    iface::{Config, Interface, SocketSet},
    time::Instant,
    wire::{HardwareAddress, IpCidr, Ipv4Address, Ipv6Address},
};

use self::{
    backlog::Backlog,
    connections::{Connections, Index},
    device::{Nowhere, PacketDevice},
    segment::Segment,
    time_wait::TimeWaits,
    undelivered::TimeExceeded,
};
pub use self::{
    spares::Spares,
    undelivered::{Sign, Undelivered},
};
use crate::{http::Service, now::Now};

/// Connections of one interface, half-open ones included. A boot with every client of the wire contract at once holds
/// fewer than ten; 64 connections with both buffers are 1.5 MiB. A guest that leaves long responses unread in all of them can
/// make the agent hold 13 MiB (`tests/hostile.rs`).
pub const CONNECTIONS_MAX: usize = 64;

/// Bytes that a connection may have unread: one request head of the largest size allowed.
pub const RECEIVE_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes that a connection may have unacknowledged: the largest user data of EC2 in one go.
pub const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// IP MTU of inbound packets. A guest whose interface takes less says so in its SYN.
pub const MTU_BYTES: usize = 1500;

/// The hop limit of everything but session token responses.
pub const HOP_LIMIT_DEFAULT: u8 = 64;

const IMDS_IPV4: Ipv4Address = Ipv4Address::from_octets(imds_ebpf::abi::IMDS_IPV4);
const IMDS_IPV6: Ipv6Address = Ipv6Address::from_octets(imds_ebpf::abi::IMDS_IPV6);

/// Takes the packets that the stack sends.
pub trait Transmit {
    /// Queues a packet of `length` bytes that `fill` writes.
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// Keeps the packets, for whoever looks at them afterwards.
impl Transmit for Vec<Vec<u8>> {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.push(packet);
        result
    }
}

/// What a stack did not take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Refused {
    /// Packets that are neither a whole TCP segment nor word of one that expired.
    pub malformed: u64,
    /// Idle connections that were reset to make room for others.
    pub reset: u64,
    /// SYNs that waited in vain for room.
    pub dropped: u64,
}

/// The stack of one interface.
pub struct Stack {
    interface: Interface,
    connections: Connections,
    backlog: Backlog,
    time_waits: TimeWaits,
    /// For segments of no connection, which smoltcp answers as it has to.
    nobody: SocketSet<'static>,
    malformed: u64,
}

impl Stack {
    /// A stack without connections. `seed` makes its initial sequence numbers unpredictable; connections are made of
    /// `spares`.
    pub fn new(now: Now, seed: u64, spares: Spares) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut PacketDevice::new(None, &mut Nowhere), instant(now));
        interface.update_ip_addrs(|addresses| {
            // The list has room for two; nothing is lost if it ever had not.
            let _ = addresses.push(IpCidr::new(IMDS_IPV4.into(), 32));
            let _ = addresses.push(IpCidr::new(IMDS_IPV6.into(), 128));
        });
        // On a medium without neighbours the router is never asked for: the routes only say that everybody is reachable.
        let _ = interface.routes_mut().add_default_ipv4_route(IMDS_IPV4);
        let _ = interface.routes_mut().add_default_ipv6_route(IMDS_IPV6);
        Self {
            interface,
            connections: Connections::new(spares),
            backlog: Backlog::default(),
            time_waits: TimeWaits::default(),
            nobody: SocketSet::new(Vec::new()),
            malformed: 0,
        }
    }

    /// Takes one IP packet from the guest.
    pub fn handle_packet(
        &mut self,
        now: Now,
        packet: &[u8],
        service: &mut impl Service,
        transmit: &mut impl Transmit,
    ) {
        let Some(segment) = Segment::parse(packet) else {
            if let Some(TimeExceeded { router, peer }) = TimeExceeded::parse(packet) {
                self.connections.handle_time_exceeded(&peer, router);
                return;
            }
            self.malformed = self.malformed.saturating_add(1);
            log::trace!("not a whole TCP segment: {} bytes", packet.len());
            return;
        };
        let mut connection = self.connections.find(&segment.peer);
        if let Some(index) = connection
            && segment.opens()
        {
            if !self.connections.give_way(index, now, &segment) {
                return;
            }
            connection = None;
        }
        if connection.is_none() {
            if self.time_waits.handle_segment(now, &segment, transmit) {
                return;
            }
            if segment.opens() && !(self.backlog.is_empty() && self.has_room(now, transmit)) {
                // Behind those that wait already: its own copy may be one of them.
                self.backlog.push(now, segment.peer, packet);
                self.admit(now, service, transmit);
                return;
            }
        }
        self.feed(now, packet, &segment, connection, service, transmit);
        self.admit(now, service, transmit);
    }

    /// Sends what the connections have to say, and forgets those that ended.
    pub fn flush(&mut self, now: Now, transmit: &mut impl Transmit) {
        self.connections.flush(now, &mut self.interface, transmit);
    }

    /// The next response that did not arrive, each told once.
    pub fn poll_undelivered(&mut self) -> Option<Undelivered> {
        self.connections.poll_undelivered()
    }

    /// What it did not take since the last call.
    pub fn take_refused(&mut self) -> Refused {
        Refused {
            malformed: std::mem::take(&mut self.malformed),
            reset: self.connections.take_reset(),
            dropped: self.backlog.take_dropped(),
        }
    }

    /// A deadline of [`poll_timeout`](Self::poll_timeout) may have passed.
    pub fn handle_timeout(&mut self, now: Now, service: &mut impl Service, transmit: &mut impl Transmit) {
        self.time_waits.expire(now);
        self.connections.handle_timeout(now, service);
        self.flush(now, transmit);
        self.admit(now, service, transmit);
        self.flush(now, transmit);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called, on the monotonic clock.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [
            self.connections.poll_timeout(),
            self.time_waits.poll_timeout(),
            self.admits_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether it remembers nothing: a new stack in its place would behave the same.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.backlog.is_empty() && self.time_waits.is_empty()
    }

    /// Connections that have not ended, half-open ones included.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// When there will be room for a waiting SYN, unless connections end before.
    fn admits_at(&self) -> Option<Duration> {
        if self.backlog.is_empty() {
            None
        } else if self.connections.len() < CONNECTIONS_MAX {
            Some(Duration::ZERO)
        } else {
            self.connections.idle_at()
        }
    }

    /// Feeds one segment to smoltcp, and lets its connection talk to HTTP.
    fn feed(
        &mut self,
        now: Now,
        packet: &[u8],
        segment: &Segment,
        connection: Option<Index>,
        service: &mut impl Service,
        transmit: &mut impl Transmit,
    ) {
        let (connection, packet) = match connection {
            None if segment.opens() => (
                self.connections.listen(now, segment),
                segment::with_mss_raised(packet),
            ),
            connection => (connection, Cow::Borrowed(packet)),
        };
        let sockets = connection.and_then(|index| self.connections.sockets(index));
        let sockets = sockets.unwrap_or(&mut self.nobody);
        let mut device = PacketDevice::new(Some(&packet), transmit);
        self.interface
            .poll_ingress_single(instant(now), &mut device, sockets);
        if connection.is_some_and(|index| self.connections.drive(index, now, service)) {
            self.time_waits.enter(now, segment, transmit);
        }
    }

    /// Lets waiting SYNs in while there is room.
    fn admit(&mut self, now: Now, service: &mut impl Service, transmit: &mut impl Transmit) {
        while !self.backlog.is_empty() && self.has_room(now, transmit) {
            let Some(packet) = self.backlog.pop(now) else {
                return;
            };
            if let Some(segment) = Segment::parse(&packet) {
                self.feed(now, &packet, &segment, None, service, transmit);
            }
        }
    }

    /// Whether one more connection may begin. A connection that is idle for long makes room, with a reset.
    fn has_room(&mut self, now: Now, transmit: &mut impl Transmit) -> bool {
        if self.connections.len() >= CONNECTIONS_MAX && self.connections.abort_idle(now) {
            self.flush(now, transmit);
        }
        self.connections.len() < CONNECTIONS_MAX
    }
}

fn instant(now: Now) -> Instant {
    Instant::from_micros(i64::try_from(now.monotonic.as_micros()).unwrap_or(i64::MAX))
}

fn duration(instant: Instant) -> Duration {
    Duration::from_micros(u64::try_from(instant.total_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
