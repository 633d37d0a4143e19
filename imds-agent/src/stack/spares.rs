//! What connections are made of, kept for the next ones.
//!
//! An exchange is so short that allocating and wiping its buffers would be a tenth of it.

use std::{cell::RefCell, fmt, rc::Rc};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer},
};

use super::{RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES};
use crate::{http, now::Now};

/// Spares of one worker: with two buffers each they are 1.5 MiB, and a crowd of guests on a worker is rarely larger.
const SPARES_MAX: usize = 64;

/// A socket, in a set of its own, and an HTTP connection.
///
/// smoltcp walks the sockets of the set that it is given, so each is given alone: what a segment costs does not depend on
/// how many connections the interface has.
pub struct Parts {
    /// Only the socket.
    pub sockets: SocketSet<'static>,
    /// The socket.
    pub handle: SocketHandle,
    /// What is said on it.
    pub http: http::Connection,
}

/// The spares of one worker, shared by its stacks.
#[derive(Clone, Default)]
#[expect(
    clippy::vec_box,
    reason = "connections are moved about, and what they are made of is not"
)]
pub struct Spares(Rc<RefCell<Vec<Box<Parts>>>>);

impl Spares {
    /// Parts for a new connection.
    pub fn take(&self, now: Now) -> Box<Parts> {
        let spare = self.0.borrow_mut().pop();
        let mut parts = spare.unwrap_or_else(|| Box::new(Parts::new(now)));
        parts.http.begin(now);
        parts
    }

    /// Keeps the parts of a connection that has ended, if there is room.
    pub fn give_back(&self, mut parts: Box<Parts>) {
        let mut spares = self.0.borrow_mut();
        if spares.len() < SPARES_MAX {
            // What was asked and answered is wiped now, not when somebody comes.
            parts.http.wipe();
            spares.push(parts);
        }
    }
}

impl Parts {
    fn new(now: Now) -> Self {
        let receive = SocketBuffer::new(vec![0; RECEIVE_BUFFER_BYTES]);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(Socket::new(
            receive,
            SocketBuffer::new(vec![0; SEND_BUFFER_BYTES]),
        ));
        Self {
            sockets,
            handle,
            http: http::Connection::new(now),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// The socket, to be changed.
    pub fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl fmt::Debug for Spares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spares({})", self.0.borrow().len())
    }
}
