//! One response into bytes.
//!
//! Read first: section 2 of the wire contract. Which fields a response has, and in which order, follows the captures
//! made on EC2: they differ between a representation, a token, a 401 and a 405.

use std::{cell::Cell, fmt, io::Write as _, time::Duration};

use jiff::Timestamp;
use zeroize::Zeroize as _;

use super::Version;
use crate::now::Now;

/// The statuses that the service uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are those of RFC 9110")]
pub enum Status {
    Ok = 200,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    ContentTooLarge = 413,
    RequestHeaderFieldsTooLarge = 431,
    ServiceUnavailable = 503,
}

impl Status {
    /// The three digits and the reason phrase. EC2 says "Not Allowed", not the RFC's "Method Not Allowed".
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::ServiceUnavailable => "503 Service Unavailable",
        }
    }
}

/// What a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is its own MIME type")]
pub enum ContentType {
    TextPlain,
    TextHtml,
    ApplicationJson,
    OctetStream,
}

impl ContentType {
    fn line(self) -> &'static str {
        match self {
            Self::TextPlain => "Content-Type: text/plain\r\n",
            Self::TextHtml => "Content-Type: text/html\r\n",
            Self::ApplicationJson => "Content-Type: application/json\r\n",
            Self::OctetStream => "Content-Type: application/octet-stream\r\n",
        }
    }
}

/// A response under construction. The connection owns one and hands it out again for every request, so that its buffers
/// are allocated once. The body may be somebody's credentials: it is never shown, and wiped in the end.
pub struct Response {
    /// The status line.
    pub status: Status,
    /// `Content-Type`.
    pub content_type: ContentType,
    /// The exact body. It is left out of the reply to a HEAD, but counted in `Content-Length`.
    pub body: Vec<u8>,
    /// `Last-Modified`, since the Unix epoch; with it goes `Accept-Ranges: none`, as EC2 sends the two together.
    pub last_modified: Option<Duration>,
    /// `X-Aws-Ec2-Metadata-Token-Ttl-Seconds`.
    pub token_ttl_seconds: Option<u32>,
    /// `Allow`, on a 405.
    pub allow: Option<&'static str>,
    /// `Retry-After`, on a 503.
    pub retry_after_seconds: Option<u32>,
    /// The IP hop limit of every packet that carries bytes of this response; nothing means the ordinary one.
    pub hop_limit: Option<u8>,
    /// Whether the connection is closed after it, whatever the request says.
    pub ends_connection: bool,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("content_type", &self.content_type)
            .field("body_bytes", &self.body.len())
            .field("last_modified", &self.last_modified)
            .field("token_ttl_seconds", &self.token_ttl_seconds)
            .field("allow", &self.allow)
            .field("retry_after_seconds", &self.retry_after_seconds)
            .field("hop_limit", &self.hop_limit)
            .field("ends_connection", &self.ends_connection)
            .finish()
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        self.body.zeroize();
    }
}

impl Default for Response {
    fn default() -> Self {
        Self::with_body(Vec::new())
    }
}

impl Response {
    /// Back to an empty 200 of plain text; the body keeps its room.
    pub fn reset(&mut self) {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        *self = Self::with_body(body);
    }

    /// Makes it `status` with EC2's page for it, which differs from its exact 404 in the title only. Every other field
    /// stays as it is.
    pub fn fill_error_page(&mut self, status: Status) {
        self.status = status;
        self.content_type = ContentType::TextHtml;
        self.body.clear();
        let (code, reason) = status.line().split_once(' ').unwrap_or_default();
        _ = write!(
            self.body,
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
             <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
             \t\t \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
             <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
             <head>\n  <title>{code} - {reason}</title>\n </head>\n \
             <body>\n  <h1>{code} - {reason}</h1>\n </body>\n</html>\n"
        );
    }

    fn with_body(body: Vec<u8>) -> Self {
        Self {
            status: Status::Ok,
            content_type: ContentType::TextPlain,
            body,
            last_modified: None,
            token_ttl_seconds: None,
            allow: None,
            retry_after_seconds: None,
            hop_limit: None,
            ends_connection: false,
        }
    }
}

/// What a response to one request depends on besides its fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framing {
    /// The request was a HEAD.
    pub without_body: bool,
    /// The connection stays open, for a request of this version.
    pub keep_alive: Option<Version>,
}

impl Framing {
    /// After this response the connection ends.
    pub(super) const CLOSE: Self = Self {
        without_body: false,
        keep_alive: None,
    };
}

/// The interim response that lets a client send the body it holds back.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends `response` to `out`.
pub(super) fn encode(response: &Response, now: Now, framing: Framing, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(response.status.line().as_bytes());
    out.extend_from_slice(b"\r\n");
    for field in fields(response) {
        write_field(*field, response, now, framing, out);
    }
    out.extend_from_slice(b"\r\n");
    if !framing.without_body {
        out.extend_from_slice(&response.body);
    }
}

#[derive(Clone, Copy)]
enum Field {
    AcceptRanges,
    Allow,
    Connection,
    ContentLength,
    ContentType,
    Date,
    LastModified,
    RetryAfter,
    Server,
    TokenTtl,
}

/// The fields of `response`, in the order of the captures.
fn fields(response: &Response) -> &'static [Field] {
    use Field::*;
    match response.status {
        Status::Unauthorized => &[ContentLength, Date, Server, Connection, ContentType],
        Status::MethodNotAllowed => &[Allow, ContentLength, Date, Connection, ContentType, Server],
        _ if response.last_modified.is_some() || response.content_type == self::ContentType::TextHtml => &[
            TokenTtl,
            ContentType,
            AcceptRanges,
            LastModified,
            ContentLength,
            Date,
            Server,
            Connection,
        ],
        _ => &[
            TokenTtl,
            Allow,
            RetryAfter,
            ContentLength,
            ContentType,
            Date,
            Server,
            Connection,
        ],
    }
}

fn write_field(field: Field, response: &Response, now: Now, framing: Framing, out: &mut Vec<u8>) {
    match field {
        Field::AcceptRanges if response.last_modified.is_some() => push(out, "Accept-Ranges: none\r\n"),
        Field::AcceptRanges => {}
        Field::Allow => {
            if let Some(methods) = response.allow {
                for part in ["Allow: ", methods, "\r\n"] {
                    push(out, part);
                }
            }
        }
        Field::Connection => match framing.keep_alive {
            None => push(out, "Connection: close\r\n"),
            // A client of HTTP/1.0 must be told; EC2 says nothing to one of HTTP/1.1, which takes it for granted.
            Some(Version::Http10) => push(out, "Connection: keep-alive\r\n"),
            Some(Version::Http11) => {}
        },
        Field::ContentLength => push_number(out, "Content-Length: ", response.body.len()),
        Field::ContentType => push(out, response.content_type.line()),
        Field::Date => DATE.with(|memo| push_date(out, "Date: ", memo, now.unix)),
        Field::LastModified => {
            if let Some(time) = response.last_modified {
                LAST_MODIFIED.with(|memo| push_date(out, "Last-Modified: ", memo, time));
            }
        }
        Field::RetryAfter => {
            if let Some(seconds) = response.retry_after_seconds {
                push_number(out, "Retry-After: ", seconds);
            }
        }
        Field::Server => push(out, "Server: EC2ws\r\n"),
        Field::TokenTtl => {
            if let Some(seconds) = response.token_ttl_seconds {
                push_number(out, "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: ", seconds);
            }
        }
    }
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn push_number(out: &mut Vec<u8>, name: &str, value: impl fmt::Display) {
    push(out, name);
    _ = write!(out, "{value}\r\n");
}

/// Bytes of `Mon, 20 Sep 2021 21:43:31 GMT`.
const DATE_BYTES: usize = 29;

/// The last date that was formatted, with its second: the date of a thread's responses changes once a second, and the
/// records that its guests ask for rarely change at all.
type DateMemo = Cell<(u64, [u8; DATE_BYTES])>;

const EPOCH: (u64, [u8; DATE_BYTES]) = (0, *b"Thu, 01 Jan 1970 00:00:00 GMT");

thread_local! {
    static DATE: DateMemo = const { Cell::new(EPOCH) };
    static LAST_MODIFIED: DateMemo = const { Cell::new(EPOCH) };
}

fn push_date(out: &mut Vec<u8>, name: &str, memo: &DateMemo, time: Duration) {
    let second = time.as_secs();
    let (memo_second, mut text) = memo.get();
    if memo_second != second {
        text = date(second);
        memo.set((second, text));
    }
    for part in [name.as_bytes(), &text, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// An HTTP date; a time past the year 9999 is that year's last second.
fn date(second: u64) -> [u8; DATE_BYTES] {
    let timestamp = i64::try_from(second)
        .ok()
        .and_then(|second| Timestamp::from_second(second).ok())
        .unwrap_or(Timestamp::MAX);
    let mut text = [b' '; DATE_BYTES];
    _ = write!(
        text.as_mut_slice(),
        "{}",
        timestamp.strftime("%a, %d %b %Y %H:%M:%S GMT")
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(&date(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&date(1_632_174_211), b"Mon, 20 Sep 2021 21:43:31 GMT");
        assert_eq!(&date(u64::MAX)[..16], b"Thu, 30 Dec 9999");
    }

    #[test]
    fn the_404_is_the_339_bytes_of_the_capture() {
        let mut response = Response::default();
        response.fill_error_page(Status::NotFound);
        assert_eq!(response.body.len(), 339);
        assert!(response.body.ends_with(b"</html>\n"));
        assert!(response.body.windows(6).any(|bytes| bytes == b"\n\t\t \"h"));
    }

    #[test]
    fn reset_leaves_nothing_but_room() {
        let mut response = Response::default();
        response.fill_error_page(Status::NotFound);
        response.token_ttl_seconds = Some(1);
        response.last_modified = Some(Duration::ZERO);
        response.allow = Some("GET");
        response.retry_after_seconds = Some(1);
        response.hop_limit = Some(1);
        response.reset();
        assert!(response.body.capacity() >= 339);
        assert_eq!(format!("{response:?}"), format!("{:?}", Response::default()));
    }
}
