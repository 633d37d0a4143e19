//! One connection: requests in order, responses in order.
//!
//! Bytes of the stream are answered where they are when a whole request comes in one piece, as nearly all do; only what
//! is incomplete is kept. A request is answered when its body is complete too, so that the next one is found where it
//! begins. Nothing is answered while too much waits to be sent: then the stream is left unread.

use std::{collections::VecDeque, mem::MaybeUninit, time::Duration};

use super::{
    Response, Service, Status,
    encode::{self, Framing},
    parse::{self, HEADERS_MAX, Head, Malformed},
};
use crate::now::Now;

/// While this many bytes wait to be sent, no further request is answered. One response may go past it: with user data of
/// 16 KiB a connection holds at most twice this much.
pub const QUEUED_BYTES_MAX: usize = 16 * 1024;

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
#[derive(Debug)]
pub struct Connection {
    /// An incomplete request, or requests that wait for room in `outbound`.
    inbound: Vec<u8>,
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
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(now: Now) -> Self {
        Self {
            inbound: Vec::new(),
            outbound: Outbound::default(),
            response: Response::default(),
            request_began: None,
            is_continued: false,
            last_moved: now.monotonic,
            is_ended: false,
            is_closing: false,
        }
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

    /// A deadline of [`poll_timeout`](Self::poll_timeout) may have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if self
            .request_deadline()
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.refuse(now, Status::RequestTimeout);
        } else if self
            .idle_deadline()
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.outbound = Outbound::default();
            self.close();
        }
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

    fn request_deadline(&self) -> Option<Duration> {
        Some(self.request_began?.saturating_add(REQUEST_TIMEOUT))
    }

    fn idle_deadline(&self) -> Option<Duration> {
        let is_over = self.is_closing && self.outbound.front().is_none();
        (!is_over).then(|| self.last_moved.saturating_add(IDLE_TIMEOUT))
    }

    fn answer_inbound(&mut self, now: Now, service: &mut impl Service) {
        let mut inbound = std::mem::take(&mut self.inbound);
        let answered = self.answer(now, &inbound, service);
        inbound.drain(..answered.min(inbound.len()));
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
                Err(malformed) => self.refuse(now, malformed.status()),
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
        let Some(head) = parse::head(bytes, &mut room)? else {
            return Ok(None);
        };
        self.let_continue(&head);
        let after_head = bytes.get(head.bytes..).unwrap_or_default();
        let Some(body_bytes) = parse::body_bytes(head.body, after_head)? else {
            return Ok(None);
        };
        self.response.reset();
        service.respond(now, &head.request, &mut self.response);
        self.queue(
            now,
            Framing {
                without_body: head.request.method == "HEAD",
                keep_alive: head.keep_alive.then_some(head.request.version),
            },
        );
        if !head.keep_alive {
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
        self.inbound = Vec::new();
        self.request_began = None;
    }
}

/// Bytes on their way out, in runs of one hop limit each.
#[derive(Debug, Default)]
struct Outbound {
    bytes: Vec<u8>,
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
        self.bytes.len().saturating_sub(self.sent) < QUEUED_BYTES_MAX
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
            self.bytes.drain(..self.sent.min(self.bytes.len()));
            self.sent = 0;
        }
    }
}
