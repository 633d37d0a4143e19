//! The connections of one interface: a socket and an HTTP connection each.

use std::{net::SocketAddr, time::Duration};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer, State},
};

use super::{RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES, segment::Peer};
use crate::{
    http::{self, Service},
    now::Now,
};

/// A peer that acknowledges nothing for this long is gone: its connection is reset. Longer than any guest is paused for a
/// snapshot or a migration's last phase.
const PEER_TIMEOUT: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(20);

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

struct Connection {
    peer: Peer,
    handle: SocketHandle,
    http: http::Connection,
    last_heard: Duration,
    end_is_told: bool,
    /// What the peer has yet to take once our half is closed, and until when; with nothing left, until when it has to close
    /// its own half.
    linger: Option<(usize, Duration)>,
}

/// All connections, and the sockets that smoltcp walks.
pub struct Connections {
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
        }
    }
}

impl Connections {
    /// The sockets, for smoltcp.
    pub fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether `peer` has one.
    pub fn has(&self, peer: &Peer) -> bool {
        self.find(peer).is_some()
    }

    /// Makes a socket for the SYN that is about to be fed.
    pub fn listen(&mut self, now: Now, peer: &Peer) {
        let receive = SocketBuffer::new(vec![0; RECEIVE_BUFFER_BYTES]);
        let mut socket = Socket::new(receive, SocketBuffer::new(vec![0; SEND_BUFFER_BYTES]));
        // A response is written whole, so its last segment never waits for more to join it.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(PEER_TIMEOUT));
        if socket.listen(peer.local).is_err() {
            return;
        }
        self.connections.push(Connection {
            peer: *peer,
            handle: self.sockets.add(socket),
            http: http::Connection::new(now).of(SocketAddr::new(peer.remote.addr.into(), peer.remote.port)),
            last_heard: now.monotonic,
            end_is_told: false,
            linger: None,
        });
    }

    /// Lets the connection of `peer`, which just got a segment, talk to HTTP.
    pub fn drive(&mut self, peer: &Peer, now: Now, service: &mut impl Service) {
        let Some(index) = self.find(peer) else { return };
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
        if socket.state() == State::Listen {
            // smoltcp did not take the SYN. A socket that listened on would take somebody else's.
            self.remove(index);
            return;
        }
        connection.last_heard = now.monotonic;
        connection.drive(now, socket, service);
    }

    /// Whether the connection of `peer` reached TIME-WAIT.
    pub fn is_in_time_wait(&self, peer: &Peer) -> bool {
        self.find(peer)
            .and_then(|index| self.connections.get(index))
            .is_some_and(|connection| {
                self.sockets.get::<Socket<'_>>(connection.handle).state() == State::TimeWait
            })
    }

    /// Forgets the connection of `peer`; nothing more is sent for it.
    pub fn forget(&mut self, peer: &Peer) {
        if let Some(index) = self.find(peer) {
            self.remove(index);
        }
    }

    /// Forgets every connection whose socket has nothing left to do or to send.
    pub fn forget_closed(&mut self) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let socket = sockets.get::<Socket<'_>>(connection.handle);
            // An aborted socket keeps its endpoints until its reset is on the way.
            let is_over = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            if is_over {
                sockets.remove(connection.handle);
            }
            !is_over
        });
    }

    /// Resets the connection that was not heard of for longest, if that is long enough. Returns whether there was one.
    pub fn abort_idle(&mut self, now: Now) -> bool {
        let oldest = self
            .connections
            .iter()
            .min_by_key(|connection| connection.last_heard);
        match oldest {
            Some(oldest) if oldest.idle_at() <= now.monotonic => {
                self.sockets.get_mut::<Socket<'_>>(oldest.handle).abort();
                true
            }
            _ => false,
        }
    }

    /// When [`abort_idle`](Self::abort_idle) finds one.
    pub fn idle_at(&self) -> Option<Duration> {
        self.connections.iter().map(Connection::idle_at).min()
    }

    /// Tells HTTP that time has passed, and resets who lingers.
    pub fn handle_timeout(&mut self, now: Now, service: &mut impl Service) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            connection.http.handle_timeout(now);
            connection.drive(now, socket, service);
            // A FIN would pass a response that is cut for a whole one.
            if connection.http.is_cut() || connection.linger.is_some_and(|(_, until)| until <= now.monotonic)
            {
                socket.abort();
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let timeouts = self.connections.iter();
        timeouts
            .filter_map(|connection| match connection.linger {
                Some((_, until)) => Some(until),
                None => connection.http.poll_timeout(),
            })
            .min()
    }

    fn find(&self, peer: &Peer) -> Option<usize> {
        self.connections
            .iter()
            .position(|connection| connection.peer == *peer)
    }

    fn remove(&mut self, index: usize) {
        let connection = self.connections.swap_remove(index);
        self.sockets.remove(connection.handle);
    }
}

impl Connection {
    /// From when on it may be reset to make room for another.
    fn idle_at(&self) -> Duration {
        self.last_heard.saturating_add(IDLE_AFTER)
    }

    fn drive(&mut self, now: Now, socket: &mut Socket<'_>, service: &mut impl Service) {
        // One pass may make room for the next: a response that is handed over lets a pipelined request in.
        loop {
            let received = self.receive(now, socket, service);
            let sent = self.send(now, socket, service);
            if !received && !sent {
                break;
            }
        }
        if !self.end_is_told && socket.state() == State::CloseWait && !socket.can_recv() {
            self.end_is_told = true;
            self.http.handle_end(now);
            self.send(now, socket, service);
        }
        if self.http.is_last() && self.http.poll_transmit().is_none() && socket.may_send() {
            socket.close();
        }
        // A keep-alive repeats the last byte sent, so that byte must have arrived: a guest would take it for data otherwise.
        if matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck)
            && socket.send_queue() == 0
        {
            socket.set_keep_alive(Some(FIN_AGAIN));
        }
        self.linger(now, socket);
    }

    fn linger(&mut self, now: Now, socket: &Socket<'_>) {
        let (left, patience) = match socket.state() {
            // The FIN itself counts as a byte.
            State::FinWait1 | State::Closing | State::LastAck => {
                (socket.send_queue().saturating_add(1), TAKES_NOTHING)
            }
            State::FinWait2 => (0, LINGER),
            _ => return,
        };
        if self.linger.is_none_or(|(before, _)| before != left) {
            self.linger = Some((left, now.monotonic.saturating_add(patience)));
        }
    }

    /// Stream to HTTP. Returns whether any byte moved.
    fn receive(&mut self, now: Now, socket: &mut Socket<'_>, service: &mut impl Service) -> bool {
        let mut moved = false;
        // The receive buffer is a ring: what straddles its end comes in two pieces.
        while socket.can_recv() && self.http.wants_bytes() {
            let taken = socket.recv(|bytes| {
                self.http.handle_bytes(now, bytes, service);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
            moved = true;
        }
        moved
    }

    /// HTTP to stream. Returns whether any byte moved.
    fn send(&mut self, now: Now, socket: &mut Socket<'_>, service: &mut impl Service) -> bool {
        let mut moved = false;
        while let Some(transmit) = self.http.poll_transmit() {
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
            self.http.handle_transmitted(now, count, service);
            moved = true;
        }
        moved
    }
}
