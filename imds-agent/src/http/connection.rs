//! One connection: requests in order, responses in order.
//!
//! Bytes of the stream are answered where they are when a whole request comes in one piece, as nearly all do; only what
//! is incomplete is kept. A request is answered when its body is complete too, so that the next one is found where it
//! begins. Nothing is answered while too much waits to be sent: then the stream is left unread.

use std::{collections::VecDeque, fmt, mem::MaybeUninit, net::SocketAddr, time::Duration};

use zeroize::{Zeroize as _, Zeroizing};

use super::{
    Response, Service, Status,
    encode::{self, Framing},
    parse::{self, HEADERS_MAX, Head, Malformed},
};
use crate::now::Now;

/// While this many bytes wait to be sent, no further request is answered. One response may go past it: with user data of
/// 16 KiB a connection holds at most twice this much.
pub const QUEUED_BYTES_MAX: usize = 16 * 1024;

/// A buffer that grew beyond this, for user data or a listing of hundreds, is not kept for the next connection.
const KEPT_BYTES_MAX: usize = 4096;

/// From a request's first byte until it must be complete.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Until a connection on which no byte moves is given up: a fresh one, one kept alive, or one whose peer takes nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that wait to be sent, all with the same hop limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit<'a> {
    /// Never empty.
    pub bytes: &'a [u8],
    /// The hop limit of every packet that carries these bytes; nothing means the ordinary one.
    pub hop_limit: Option<u8>,
}

/// The state of one connection.
pub struct Connection {
    /// An incomplete request, or requests that wait for room in `outbound`. Wiped in the end, as session tokens are in them.
    inbound: Zeroizing<Vec<u8>>,
    outbound: Outbound,
    response: Response,
    /// When the first byte of an incomplete request came.
    request_began: Option<Duration>,
    /// Whether the incomplete request was told to go on.
    is_continued: bool,
    last_moved: Duration,
    /// The peer sent its last byte.
    is_ended: bool,
    /// Nothing is answered any more.
    is_closing: bool,
    /// The peer was given up while bytes waited for it.
    is_cut: bool,
    peer: Option<SocketAddr>,
}

impl fmt::Debug for Connection {
    /// Neither requests nor responses are for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("inbound_bytes", &self.inbound.len())
            .field("outbound_bytes", &self.outbound.unsent())
            .field("is_ended", &self.is_ended)
            .field("is_closing", &self.is_closing)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(now: Now) -> Self {
        Self {
            inbound: Zeroizing::default(),
            outbound: Outbound::default(),
            response: Response::default(),
            request_began: None,
            is_continued: false,
            last_moved: now.monotonic,
            is_ended: false,
            is_closing: false,
            is_cut: false,
            peer: None,
        }
    }

    /// The same after [`wipe`](Self::wipe), as if it were just accepted, with the buffers that it has.
    pub fn begin(&mut self, now: Now) {
        *self = Self {
            inbound: std::mem::take(&mut self.inbound),
            outbound: std::mem::take(&mut self.outbound),
            response: std::mem::take(&mut self.response),
            ..Self::new(now)
        };
    }

    /// Forgets what was asked and answered.
    pub fn wipe(&mut self) {
        wipe(&mut self.inbound);
        self.outbound.wipe();
        self.response.reset();
        wipe(&mut self.response.body);
    }

    /// Every request is said to be from `peer`.
    pub fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = Some(peer);
    }

    /// Whether it takes more bytes now. While it does not, the stream is to be left unread, so that the peer's window
    /// closes: a peer that does not read its responses gets no more of them made. What comes after the last request is
    /// taken and thrown away.
    pub fn wants_bytes(&self) -> bool {
        self.is_closing || self.outbound.has_room()
    }

    /// Takes the next bytes of the stream, all of them, and answers every request that they complete.
    pub fn handle_bytes(&mut self, now: Now, bytes: &[u8], service: &mut impl Service) {
        if self.is_closing || bytes.is_empty() {
            return;
        }
        self.last_moved = now.monotonic;
        if self.inbound.is_empty() {
            let answered = self.answer(now, bytes, service);
            self.inbound
                .extend_from_slice(bytes.get(answered..).unwrap_or_default());
        } else {
            self.inbound.extend_from_slice(bytes);
            self.answer_inbound(now, service);
        }
    }

    /// The peer sent its last byte. What was asked is still answered.
    pub fn handle_end(&mut self, now: Now) {
        self.last_moved = now.monotonic;
        self.is_ended = true;
        self.close_if_all_is_answered();
    }

    /// A deadline of [`poll_timeout`](Self::poll_timeout) may have passed. Returns the status of a refusal over it.
    pub fn handle_timeout(&mut self, now: Now) -> Option<Status> {
        if self
            .request_deadline()
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.refuse(now, Status::RequestTimeout);
            return Some(Status::RequestTimeout);
        } else if self
            .idle_deadline()
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.is_cut = self.outbound.front().is_some();
            self.outbound = Outbound::default();
            self.close();
        }
        None
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called, on the monotonic clock.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.request_deadline(), self.idle_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next bytes to send, or nothing.
    pub fn poll_transmit(&self) -> Option<Transmit<'_>> {
        self.outbound.front()
    }

    /// The first `count` bytes of [`poll_transmit`](Self::poll_transmit) are on their way. Pipelined requests that waited for
    /// room are answered now.
    pub fn handle_transmitted(&mut self, now: Now, count: usize, service: &mut impl Service) {
        self.last_moved = now.monotonic;
        self.outbound.advance(count);
        if !self.inbound.is_empty() {
            self.answer_inbound(now, service);
        }
        self.close_if_all_is_answered();
    }

    /// Nothing will follow what [`poll_transmit`](Self::poll_transmit) still returns: the stream can be closed after it.
    pub fn is_last(&self) -> bool {
        self.is_closing
    }

    /// Whether the last response ends before its end, because the peer took no more of it.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn request_deadline(&self) -> Option<Duration> {
        Some(self.request_began?.saturating_add(REQUEST_TIMEOUT))
    }

    fn idle_deadline(&self) -> Option<Duration> {
        let is_over = self.is_closing && self.outbound.front().is_none();
        (!is_over).then(|| self.last_moved.saturating_add(IDLE_TIMEOUT))
    }

    fn answer_inbound(&mut self, now: Now, service: &mut impl Service) {
        let mut inbound = std::mem::take(&mut self.inbound);
        let answered = self.answer(now, &inbound, service).min(inbound.len());
        inbound.drain(..answered);
        self.inbound = inbound;
    }

    /// Answers the requests at the start of `bytes`, as far as they are complete and there is room. Returns how many bytes
    /// they were.
    fn answer(&mut self, now: Now, bytes: &[u8], service: &mut impl Service) -> usize {
        let mut rest = bytes;
        loop {
            // A request may be followed by empty lines (RFC 9112, section 2.2); they do not begin the next one.
            while let [b'\r' | b'\n', after @ ..] = rest {
                rest = after;
            }
            if self.is_closing {
                return bytes.len();
            }
            if rest.is_empty() || !self.outbound.has_room() {
                self.request_began = None;
                break;
            }
            match self.answer_first(now, rest, service) {
                Ok(Some(request_bytes)) => {
                    self.request_began = None;
                    self.is_continued = false;
                    rest = rest.get(request_bytes..).unwrap_or_default();
                }
                Ok(None) => {
                    self.request_began.get_or_insert(now.monotonic);
                    break;
                }
                Err(malformed) => {
                    self.refuse(now, malformed.status());
                    service.handle_malformed(malformed.status());
                }
            }
        }
        bytes.len().saturating_sub(rest.len())
    }

    /// Answers the request at the start of `bytes` and returns its length, or nothing while it is incomplete.
    fn answer_first(
        &mut self,
        now: Now,
        bytes: &[u8],
        service: &mut impl Service,
    ) -> Result<Option<usize>, Malformed> {
        let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let Some(mut head) = parse::head(bytes, &mut room)? else {
            return Ok(None);
        };
        self.let_continue(&head);
        let after_head = bytes.get(head.bytes..).unwrap_or_default();
        let Some(body_bytes) = parse::body_bytes(head.body, after_head)? else {
            return Ok(None);
        };
        head.request.peer = self.peer;
        self.response.reset();
        service.respond(now, &head.request, &mut self.response);
        let keep_alive = head.keep_alive && !self.response.ends_connection;
        self.queue(
            now,
            Framing {
                without_body: head.request.method == "HEAD",
                keep_alive: keep_alive.then_some(head.request.version),
            },
        );
        if !keep_alive {
            self.close();
        }
        Ok(Some(head.bytes.saturating_add(body_bytes)))
    }

    /// Lets a client send the body that it holds back: once, and also when the body is there already, which the RFC
    /// leaves to the server, so that what is sent does not depend on the cut of the stream.
    fn let_continue(&mut self, head: &Head<'_>) {
        let has_body = head.body != parse::Body::Length(0);
        if head.expects_continue && has_body && !self.is_continued {
            self.is_continued = true;
            self.outbound
                .queue(None, |out| out.extend_from_slice(encode::CONTINUE));
        }
    }

    fn refuse(&mut self, now: Now, status: Status) {
        self.response.reset();
        self.response.fill_error_page(status);
        self.queue(now, Framing::CLOSE);
        self.close();
    }

    fn queue(&mut self, now: Now, framing: Framing) {
        let response = &self.response;
        self.outbound.queue(response.hop_limit, |out| {
            encode::encode(response, now, framing, out);
        });
    }

    fn close_if_all_is_answered(&mut self) {
        // With room, what is left over is incomplete and stays so.
        if self.is_ended && self.outbound.has_room() {
            self.close();
        }
    }

    fn close(&mut self) {
        self.is_closing = true;
        self.inbound = Zeroizing::default();
        self.request_began = None;
    }
}

/// Bytes on their way out, in runs of one hop limit each.
#[derive(Default)]
struct Outbound {
    /// Wiped in the end, as they may be credentials.
    bytes: Zeroizing<Vec<u8>>,
    /// How many of `bytes` are sent.
    sent: usize,
    /// Their lengths add up to the unsent part of `bytes`; none is empty.
    runs: VecDeque<Run>,
}

#[derive(Debug)]
struct Run {
    bytes: usize,
    hop_limit: Option<u8>,
}

impl Outbound {
    fn has_room(&self) -> bool {
        self.unsent() < QUEUED_BYTES_MAX
    }

    fn unsent(&self) -> usize {
        self.bytes.len().saturating_sub(self.sent)
    }

    fn wipe(&mut self) {
        wipe(&mut self.bytes);
        self.sent = 0;
        self.runs.clear();
    }

    fn front(&self) -> Option<Transmit<'_>> {
        let run = self.runs.front()?;
        let bytes = self.bytes.get(self.sent..)?.get(..run.bytes)?;
        Some(Transmit {
            bytes,
            hop_limit: run.hop_limit,
        })
    }

    fn queue(&mut self, hop_limit: Option<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let written = self.bytes.len().saturating_sub(before);
        match self.runs.back_mut() {
            Some(run) if run.hop_limit == hop_limit => run.bytes = run.bytes.saturating_add(written),
            _ if written == 0 => {}
            _ => self.runs.push_back(Run {
                bytes: written,
                hop_limit,
            }),
        }
    }

    /// Forgets the first `count` bytes of the front run.
    fn advance(&mut self, count: usize) {
        let Some(run) = self.runs.front_mut() else { return };
        let count = count.min(run.bytes);
        run.bytes = run.bytes.saturating_sub(count);
        self.sent = self.sent.saturating_add(count);
        if run.bytes == 0 {
            self.runs.pop_front();
        }
        // A peer that always leaves something unread must not make the sent part grow for ever.
        if self.runs.is_empty() || self.sent >= QUEUED_BYTES_MAX {
            let sent = std::mem::take(&mut self.sent).min(self.bytes.len());
            self.bytes.drain(..sent);
        }
    }
}

/// Empties and wipes a buffer, and keeps it unless it is a large one.
///
/// One that is kept is filled with zeroes as fast as memory goes, all its room included: it may have held more than it does
/// now. [`Zeroize`](zeroize::Zeroize) writes byte by byte, because it fears for memory that nobody reads again.
fn wipe(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_BYTES_MAX {
        buffer.zeroize();
        *buffer = Vec::new();
        return;
    }
    buffer.clear();
    buffer.resize(buffer.capacity(), 0);
    zeroize::optimization_barrier(buffer.as_slice());
    buffer.clear();
}

#[cfg(test)]
mod tests;
