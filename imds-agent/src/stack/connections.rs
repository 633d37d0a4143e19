//! The connections of one interface: a socket and an HTTP connection each.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use smoltcp::{
    iface::{Interface, PollResult, SocketSet},
    socket::tcp::{Socket, State},
    wire::TcpSeqNumber,
};

use super::{
    CONNECTIONS_MAX, Sign, Transmit, Undelivered,
    device::PacketDevice,
    duration, instant,
    segment::{Peer, Segment},
    spares::{Parts, Spares},
};
use crate::{
    http::{self, Service},
    now::Now,
};

/// Packets that one connection sends in a flush: enough for a full send buffer at an ordinary MSS. What is left goes out
/// at the next call, which [`Connections::poll_timeout`] then asks for at once.
const PACKETS_MAX: usize = 16;

/// A peer that has something to acknowledge and says nothing for this long is gone: its connection is reset. Longer than any
/// guest is paused for a snapshot or a migration's last phase.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a peer may leave its half of the connection open after we closed ours (FIN-WAIT-2).
const LINGER: Duration = Duration::from_secs(10);

/// How long a peer may take none of what is left once our half is closed. TCP itself waits for ever for one that keeps its window
/// shut and acknowledges every probe of it.
const TAKES_NOTHING: Duration = http::connection::IDLE_TIMEOUT;

/// How soon a FIN is sent again that alone is not acknowledged. smoltcp 0.14 takes three equal acknowledgements for a loss
/// of data, finds none to send again, and forgets its timer over it; its keep-alive brings the FIN back.
const FIN_AGAIN: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(1);

/// A connection that was not heard of for this long makes room for others when all are taken. An exchange takes a guest some
/// hundred microseconds, so this one is kept alive for later, half-open, or slow.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// How long after a connection's last segment its own SYN may still come again: repeated while its answer was on the way. A
/// later one begins anew, from a TCP that takes the same sequence number after every reset of its guest.
const OWN_SYN_WITHIN: Duration = Duration::from_secs(1);

/// How long a response with a hop limit of its own must have been unacknowledged at the connection's end to be told as
/// undelivered. A guest acknowledges within the 40 ms of a delayed acknowledgement, and clients wait for a second at least.
const UNDELIVERED_AFTER: Duration = Duration::from_secs(1);

struct Connection {
    peer: Peer,
    /// Sequence number of the SYN that began it.
    began_with: TcpSeqNumber,
    /// Half a kilobyte that stays where it is, from one connection to the next.
    parts: Box<Parts>,
    last_heard: Duration,
    end_is_told: bool,
    /// What the peer has yet to take once our half is closed, and until when; with nothing left, until when it has to close
    /// its own half.
    linger: Option<(usize, Duration)>,
    /// It may have something to send.
    is_touched: bool,
    /// When its socket wants to act, as of the last flush.
    socket_due: Option<Duration>,
    /// Since when bytes with a hop limit of their own are unacknowledged.
    limited_since: Option<Duration>,
    /// That they did not arrive was told.
    undelivered_is_told: bool,
}

/// All connections of one interface.
#[derive(Default)]
pub struct Connections {
    connections: Vec<Connection>,
    spares: Spares,
    /// As many as there may be connections, if nobody asks for them.
    undelivered: VecDeque<Undelivered>,
    reset_for_others: u64,
}

/// A connection's place, until one is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Index(usize);

impl Connections {
    /// None yet; they will be made of `spares`.
    pub fn new(spares: Spares) -> Self {
        Self {
            spares,
            ..Self::default()
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// The connection of `peer`.
    pub fn find(&self, peer: &Peer) -> Option<Index> {
        let mut connections = self.connections.iter();
        connections
            .position(|connection| connection.peer == *peer)
            .map(Index)
    }

    /// Lets a connection end without a word if `syn`, which its peer sent, says that the peer knows nothing of it any more:
    /// the guest was reset, or is back at a snapshot. Returns whether it did; else the SYN is one that the connection had.
    ///
    /// RFC 9293 (section 3.10.7.4) would challenge the peer instead, for fear of a stranger who guesses at ports: there
    /// is none between a guest and its tap. A reset could hit the new connection.
    pub fn give_way(&mut self, index: Index, now: Now, syn: &Segment) -> bool {
        let Some(connection) = self.connections.get(index.0) else {
            return false;
        };
        if connection.began_with == syn.sequence && !connection.is_past_its_own_syn(now) {
            return false;
        }
        self.end(index, now);
        true
    }

    /// Makes a connection for `syn`, which is about to be fed.
    pub fn listen(&mut self, now: Now, syn: &Segment) -> Option<Index> {
        let mut parts = self.spares.take(now);
        let socket = parts.socket_mut();
        // It may have been another connection's, in whatever state that left it.
        socket.abort();
        socket.set_keep_alive(None);
        socket.set_hop_limit(None);
        // A response is written whole, so its last segment never waits for more to join it.
        socket.set_nagle_enabled(false);
        socket.listen(syn.peer.local).ok()?;
        parts.http.set_peer(syn.peer.remote_address());
        let index = Index(self.connections.len());
        self.connections.push(Connection {
            peer: syn.peer,
            began_with: syn.sequence,
            parts,
            last_heard: now.monotonic,
            end_is_told: false,
            linger: None,
            is_touched: true,
            socket_due: None,
            limited_since: None,
            undelivered_is_told: false,
        });
        Some(index)
    }

    /// The one socket of a connection, for smoltcp.
    pub fn sockets(&mut self, index: Index) -> Option<&mut SocketSet<'static>> {
        Some(&mut self.connections.get_mut(index.0)?.parts.sockets)
    }

    /// Lets a connection, which just got a segment, talk to HTTP. Returns whether it is in TIME-WAIT now; its parts are
    /// given back then, and nothing more is sent for it.
    pub fn drive(&mut self, index: Index, now: Now, service: &mut impl Service) -> bool {
        let Some(connection) = self.connections.get_mut(index.0) else {
            return false;
        };
        if connection.parts.socket().state() == State::Listen {
            // smoltcp did not take the SYN. A socket that listened on would take somebody else's.
            self.remove(index);
            return false;
        }
        connection.last_heard = now.monotonic;
        connection.drive(now, service);
        let is_in_time_wait = connection.parts.socket().state() == State::TimeWait;
        if is_in_time_wait {
            self.remove(index);
        } else if connection.is_over() {
            // The next segment may begin another of the same ports.
            self.end(index, now);
        }
        is_in_time_wait
    }

    /// Sends what the connections have to say, and forgets those that ended.
    pub fn flush(&mut self, now: Now, interface: &mut Interface, transmit: &mut impl Transmit) {
        let mut device = PacketDevice::new(None, transmit);
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            if std::mem::take(&mut connection.is_touched) {
                connection.flush(now, interface, &mut device);
                if connection.is_over() {
                    // Another takes its place.
                    self.end(Index(index), now);
                    continue;
                }
            }
            index = index.saturating_add(1);
        }
    }

    /// A router said that a packet to `peer` expired. That is told once of a connection, if it may be so.
    pub fn handle_time_exceeded(&mut self, peer: &Peer, router: IpAddr) {
        let connection = self
            .find(peer)
            .and_then(|index| self.connections.get_mut(index.0));
        if let Some(connection) = connection
            && let Some(undelivered) = connection.undelivered(Sign::TimeExceeded { router })
        {
            connection.undelivered_is_told = true;
            self.tell(Some(undelivered));
        }
    }

    /// The next response that did not arrive, each told once.
    pub fn poll_undelivered(&mut self) -> Option<Undelivered> {
        self.undelivered.pop_front()
    }

    /// Resets the connection that was not heard of for longest, if that is long enough. Returns whether there was one.
    pub fn abort_idle(&mut self, now: Now) -> bool {
        let oldest = self
            .connections
            .iter_mut()
            .min_by_key(|connection| connection.last_heard);
        match oldest {
            Some(oldest) if oldest.idle_at() <= now.monotonic => {
                oldest.abort();
                self.reset_for_others = self.reset_for_others.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// How many [`abort_idle`](Self::abort_idle) has reset since the last call.
    pub fn take_reset(&mut self) -> u64 {
        std::mem::take(&mut self.reset_for_others)
    }

    /// When [`abort_idle`](Self::abort_idle) finds one.
    pub fn idle_at(&self) -> Option<Duration> {
        self.connections.iter().map(Connection::idle_at).min()
    }

    /// Tells those whose time has come, and resets who lingers.
    pub fn handle_timeout(&mut self, now: Now, service: &mut impl Service) {
        for connection in &mut self.connections {
            if connection.poll_timeout().is_none_or(|due| due > now.monotonic) {
                continue;
            }
            if let Some(status) = connection.parts.http.handle_timeout(now) {
                service.handle_malformed(status);
            }
            connection.drive(now, service);
            // A FIN would pass a response that is cut for a whole one.
            if connection.parts.http.is_cut()
                || connection.linger.is_some_and(|(_, until)| until <= now.monotonic)
            {
                connection.abort();
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.connections.iter().filter_map(Connection::poll_timeout).min()
    }

    fn tell(&mut self, undelivered: Option<Undelivered>) {
        if self.undelivered.len() < CONNECTIONS_MAX {
            self.undelivered.extend(undelivered);
        }
    }

    /// Forgets a connection that is over.
    fn end(&mut self, index: Index, now: Now) {
        let connection = self.connections.get(index.0);
        let undelivered = connection.and_then(|connection| connection.undelivered_in_the_end(now));
        self.tell(undelivered);
        self.remove(index);
    }

    fn remove(&mut self, index: Index) {
        if index.0 < self.connections.len() {
            let connection = self.connections.swap_remove(index.0);
            self.spares.give_back(connection.parts);
        }
    }
}

impl Connection {
    /// Whether its own SYN would be another's now. While it is half-open it would not: the peer waits for our answer to it.
    fn is_past_its_own_syn(&self, now: Now) -> bool {
        self.parts.socket().state() != State::SynReceived
            && self.last_heard.saturating_add(OWN_SYN_WITHIN) <= now.monotonic
    }

    /// From when on it may be reset to make room for another.
    fn idle_at(&self) -> Duration {
        self.last_heard.saturating_add(IDLE_AFTER)
    }

    /// When it wants to be told of the time.
    fn poll_timeout(&self) -> Option<Duration> {
        let ours = match self.linger {
            Some((_, until)) => Some(until),
            None => self.parts.http.poll_timeout(),
        };
        [self.socket_due, ours].into_iter().flatten().min()
    }

    /// What `sign` means for the response that is under way, unless there is none or that was told before.
    fn undelivered(&self, sign: Sign) -> Option<Undelivered> {
        let socket = self.parts.socket();
        let is_under_way = self.limited_since.is_some() && socket.send_queue() > 0;
        if !is_under_way || self.undelivered_is_told {
            return None;
        }
        Some(Undelivered {
            remote: self.peer.remote_address(),
            hop_limit: socket.hop_limit()?,
            sign,
        })
    }

    /// The same of a connection that is over, if there was time enough to acknowledge.
    fn undelivered_in_the_end(&self, now: Now) -> Option<Undelivered> {
        let had_until = self.limited_since?.saturating_add(UNDELIVERED_AFTER);
        (had_until <= now.monotonic)
            .then(|| self.undelivered(Sign::Unacknowledged))
            .flatten()
    }

    fn abort(&mut self) {
        self.parts.socket_mut().abort();
        self.is_touched = true;
    }

    /// Nothing left to do, nor to send: an aborted socket keeps its endpoints until its reset is on the way.
    fn is_over(&self) -> bool {
        let socket = self.parts.socket();
        socket.state() == State::Closed && socket.remote_endpoint().is_none()
    }

    fn flush<T: Transmit>(&mut self, now: Now, interface: &mut Interface, device: &mut PacketDevice<'_, T>) {
        let sockets = &mut self.parts.sockets;
        for _ in 0..PACKETS_MAX {
            if interface.poll_egress(instant(now), device, sockets) == PollResult::None {
                break;
            }
        }
        self.socket_due = interface.poll_at(instant(now), sockets).map(duration);
    }

    fn drive(&mut self, now: Now, service: &mut impl Service) {
        self.is_touched = true;
        let Parts {
            sockets,
            handle,
            http,
        } = &mut *self.parts;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        if socket.send_queue() == 0 {
            self.limited_since = None;
        }
        // One pass may make room for the next: a response that is handed over lets a pipelined request in.
        loop {
            let received = receive(now, socket, http, service);
            let sent = send(now, socket, http, &mut self.limited_since, service);
            if !received && !sent {
                break;
            }
        }
        if !self.end_is_told && socket.state() == State::CloseWait && !socket.can_recv() {
            self.end_is_told = true;
            http.handle_end(now);
            send(now, socket, http, &mut self.limited_since, service);
        }
        if http.is_last() && http.poll_transmit().is_none() && socket.may_send() {
            socket.close();
        }
        // A keep-alive repeats the last byte sent, so that byte must have arrived: a guest would take it for data otherwise.
        if matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck)
            && socket.send_queue() == 0
        {
            socket.set_keep_alive(Some(FIN_AGAIN));
        }
        socket.set_timeout(is_awaited(socket).then_some(PEER_TIMEOUT.into()));
        if let Some((left, patience)) = left_to_take(socket)
            && self.linger.is_none_or(|(before, _)| before != left)
        {
            self.linger = Some((left, now.monotonic.saturating_add(patience)));
        }
    }
}

/// Whether smoltcp is to watch for the peer's silence. It counts from the last segment that it took, also while there was
/// nothing to acknowledge: a connection that is only idle would be reset, and a FIN after a long silence never sent. So a FIN
/// alone has [`left_to_take`]'s time instead.
fn is_awaited(socket: &Socket<'_>) -> bool {
    socket.send_queue() > 0 || socket.state() == State::SynReceived
}

/// What the peer has yet to take of a stream whose our half is closed, and how long it may take nothing of it.
fn left_to_take(socket: &Socket<'_>) -> Option<(usize, Duration)> {
    match socket.state() {
        // The FIN itself counts as a byte, and no window keeps it out once it is the only one.
        State::FinWait1 | State::Closing | State::LastAck => match socket.send_queue() {
            0 => Some((1, PEER_TIMEOUT)),
            bytes => Some((bytes.saturating_add(1), TAKES_NOTHING)),
        },
        State::FinWait2 => Some((0, LINGER)),
        _ => None,
    }
}

/// Stream to HTTP. Returns whether any byte moved.
fn receive(
    now: Now,
    socket: &mut Socket<'_>,
    http: &mut http::Connection,
    service: &mut impl Service,
) -> bool {
    let mut moved = false;
    // The receive buffer is a ring: what straddles its end comes in two pieces.
    while socket.can_recv() && http.wants_bytes() {
        let taken = socket.recv(|bytes| {
            http.handle_bytes(now, bytes, service);
            (bytes.len(), ())
        });
        if taken.is_err() {
            break;
        }
        moved = true;
    }
    moved
}

/// HTTP to stream. Returns whether any byte moved, and sets `limited_since` when bytes did that have a hop limit of their own.
fn send(
    now: Now,
    socket: &mut Socket<'_>,
    http: &mut http::Connection,
    limited_since: &mut Option<Duration>,
    service: &mut impl Service,
) -> bool {
    let mut moved = false;
    while let Some(transmit) = http.poll_transmit() {
        if socket.hop_limit() != transmit.hop_limit {
            // Bytes of two hop limits must not share a segment, nor be sent again with the other's.
            if socket.send_queue() > 0 {
                break;
            }
            socket.set_hop_limit(transmit.hop_limit);
        }
        let Ok(count @ 1..) = socket.send_slice(transmit.bytes) else {
            break;
        };
        if socket.hop_limit().is_some() {
            limited_since.get_or_insert(now.monotonic);
        }
        http.handle_transmitted(now, count, service);
        moved = true;
    }
    moved
}
