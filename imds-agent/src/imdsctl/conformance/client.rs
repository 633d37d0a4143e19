//! Raw HTTP/1.x exchanges: exact bytes out, exact bytes in, a limit on every wait.
//!
//! Written by hand because a proper client would repair what the checks have to send (no `Host`, two TTL headers,
//! a head that is too long) and hide what they have to see (the order of the header fields, an early close).

use std::{
    cell::Cell,
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long a connection may take to be accepted.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one reply may take, from the last byte of the request. The SDKs of AWS give up after one second.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a reply. Credentials are 2 KiB, user data is 16 KiB.
const REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Packets that an exchange on a connection of its own sends to the server: SYN, two ACKs, the request, FIN, the last ACK.
const PACKETS_PER_CONNECTION: u32 = 6;

/// Packets that a further request on a kept connection sends: itself and an ACK.
const PACKETS_PER_REQUEST: u32 = 2;

/// Where the requests go.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    host: String,
    pace: Pace,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("silence: no whole reply within {} ms, {bytes} bytes came", within.as_millis())]
    Silence { within: Duration, bytes: usize },
    #[error("closed after {bytes} bytes, before the reply was whole")]
    Closed { bytes: usize },
    #[error("reset after {bytes} bytes, before the reply was whole")]
    Reset { bytes: usize },
    #[error("the reply is not HTTP: {0}")]
    NotHttp(&'static str),
}

pub(super) type Result<T, E = ExchangeError> = std::result::Result<T, E>;

/// One reply. It has no `Debug`, as its body may be a secret.
pub(super) struct Reply {
    /// `HTTP/1.1`
    pub version: String,
    pub status: u16,
    /// What follows the three digits.
    pub reason: String,
    /// Name and value in the order of the wire.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// One connection, with what came and was not yet read as a reply.
#[derive(Debug)]
pub(super) struct Conversation<'a> {
    client: &'a Client,
    stream: TcpStream,
    received: Vec<u8>,
}

/// Whether the reply to a request has a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expects {
    Body,
    /// It is the reply to a HEAD.
    HeadOnly,
}

impl Client {
    /// A client of the server at `address`, which calls it `host`. With `packets_per_second` it sends no more than about
    /// that many.
    pub(super) fn new(address: SocketAddr, host: String, packets_per_second: Option<u32>) -> Self {
        let pace = Pace {
            packet: packets_per_second.map(|rate| Duration::from_secs(1) / rate.max(1)),
            next: Cell::new(Instant::now()),
        };
        Self { address, host, pace }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bytes of a well-formed request with `Host` and these header fields.
    pub(super) fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request + "\r\n"
    }

    pub(super) fn open(&self) -> Result<Conversation<'_>> {
        self.pace.wait(PACKETS_PER_CONNECTION);
        let stream =
            TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT).map_err(ExchangeError::Connect)?;
        stream.set_nodelay(true).map_err(ExchangeError::Connect)?;
        stream
            .set_write_timeout(Some(REPLY_TIMEOUT))
            .map_err(ExchangeError::Connect)?;
        Ok(Conversation {
            client: self,
            stream,
            received: Vec::new(),
        })
    }

    /// One request on a connection of its own.
    pub(super) fn exchange(&self, request: impl AsRef<[u8]>, expects: Expects) -> Result<Reply> {
        let mut conversation = self.open()?;
        conversation.send(request);
        conversation.reply(expects)
    }
}

impl Conversation<'_> {
    /// Sends `bytes`. A server may well answer and close before it has read all of them, so only what comes back tells
    /// whether that was a failure.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.pace.wait(PACKETS_PER_REQUEST);
        _ = self.stream.write_all(bytes.as_ref());
    }

    /// The next reply, interim ones (`100 Continue`) included.
    pub(super) fn reply(&mut self, expects: Expects) -> Result<Reply> {
        self.reply_within(expects, REPLY_TIMEOUT)
    }

    pub(super) fn reply_within(&mut self, expects: Expects, within: Duration) -> Result<Reply> {
        let deadline = Deadline {
            at: Instant::now() + within,
            within,
        };
        let head_bytes = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at + 4;
            }
            self.receive(deadline)?;
        };
        let head: Vec<u8> = self.received.drain(..head_bytes).collect();
        let mut reply = parse_head(&head)?;
        let has_no_body =
            expects == Expects::HeadOnly || reply.status < 200 || matches!(reply.status, 204 | 304);
        if !has_no_body {
            reply.body = self.body(&reply, deadline)?;
        }
        Ok(reply)
    }

    /// Whether the server closes the connection within `within` and sends nothing more.
    pub(super) fn is_closed(&mut self, within: Duration) -> bool {
        let deadline = Deadline {
            at: Instant::now() + within,
            within,
        };
        self.received.is_empty()
            && matches!(
                self.receive(deadline),
                Err(ExchangeError::Closed { .. } | ExchangeError::Reset { .. })
            )
    }

    /// How many bytes came that belong to no reply yet.
    pub(super) fn unread_bytes(&self) -> usize {
        self.received.len()
    }

    fn body(&mut self, reply: &Reply, deadline: Deadline) -> Result<Vec<u8>> {
        if let Some(length) = reply.header("Content-Length") {
            let length = length
                .parse()
                .map_err(|_| ExchangeError::NotHttp("its Content-Length is not a number"))?;
            return self.take(length, deadline);
        }
        let is_chunked = reply
            .header("Transfer-Encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        if is_chunked {
            return self.chunks(deadline);
        }
        loop {
            match self.receive(deadline) {
                Ok(()) => {}
                Err(ExchangeError::Closed { .. }) => return Ok(std::mem::take(&mut self.received)),
                Err(error) => return Err(error),
            }
        }
    }

    fn chunks(&mut self, deadline: Deadline) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_bytes = loop {
                if let Some(at) = find(&self.received, b"\r\n") {
                    break at + 2;
                }
                self.receive(deadline)?;
            };
            let line = self.take(line_bytes, deadline)?;
            let digits: Vec<u8> = line.into_iter().take_while(u8::is_ascii_hexdigit).collect();
            let length = std::str::from_utf8(&digits)
                .ok()
                .and_then(|digits| usize::from_str_radix(digits, 16).ok())
                .filter(|length| *length <= REPLY_BYTES_MAX)
                .ok_or(ExchangeError::NotHttp("a chunk has no length"))?;
            let chunk = self.take(length + 2, deadline)?;
            if length == 0 {
                return Ok(body);
            }
            body.extend(chunk.iter().take(length));
        }
    }

    fn take(&mut self, count: usize, deadline: Deadline) -> Result<Vec<u8>> {
        if count > REPLY_BYTES_MAX {
            return Err(ExchangeError::NotHttp("it is too long"));
        }
        while self.received.len() < count {
            self.receive(deadline)?;
        }
        Ok(self.received.drain(..count).collect())
    }

    /// Waits for more bytes.
    fn receive(&mut self, deadline: Deadline) -> Result<()> {
        let bytes = self.received.len();
        let silence = ExchangeError::Silence {
            within: deadline.within,
            bytes,
        };
        let left = deadline.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(silence);
        }
        if bytes > REPLY_BYTES_MAX {
            return Err(ExchangeError::NotHttp("it is too long"));
        }
        if self.stream.set_read_timeout(Some(left)).is_err() {
            return Err(ExchangeError::Reset { bytes });
        }
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ExchangeError::Closed { bytes }),
            Ok(count) => {
                self.received.extend(buffer.iter().take(count));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(silence)
            }
            Err(_) => Err(ExchangeError::Reset { bytes }),
        }
    }
}

impl Reply {
    /// The value of the first header field called `name`, ASCII case ignored.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text; bytes that are no UTF-8 are replaced.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The lines of the body, as a listing has them.
    pub(super) fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// What may be shown of it: never its body.
    pub(super) fn summary(&self) -> String {
        let kind = self.header("Content-Type").unwrap_or("no Content-Type");
        format!(
            "{} {}, {kind}, {} bytes",
            self.status,
            self.reason,
            self.body.len()
        )
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.host)
    }
}

/// The end of a wait, and how long the whole wait was for the message.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    within: Duration,
}

/// Spreads the packets out: EC2 drops what is over 1024 a second, and a dropped packet looks like a silent server.
#[derive(Debug)]
struct Pace {
    packet: Option<Duration>,
    next: Cell<Instant>,
}

impl Pace {
    fn wait(&self, packets: u32) {
        let Some(packet) = self.packet else { return };
        let now = Instant::now();
        std::thread::sleep(self.next.get().saturating_duration_since(now));
        self.next.set(self.next.get().max(now) + packet * packets);
    }
}

fn parse_head(head: &[u8]) -> Result<Reply> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.splitn(3, ' ');
    let version = words.next().filter(|version| version.starts_with("HTTP/1."));
    let status = words.next().and_then(|status| status.parse().ok());
    let (Some(version), Some(status)) = (version, status) else {
        return Err(ExchangeError::NotHttp("it has no status line"));
    };
    let headers = lines
        .map(|line| {
            line.split_once(':')
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        })
        .collect::<Option<_>>()
        .ok_or(ExchangeError::NotHttp("a header field has no colon"))?;
    Ok(Reply {
        version: version.to_owned(),
        status,
        reason: words.next().unwrap_or_default().to_owned(),
        headers,
        body: Vec::new(),
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
