//! One request out of bytes: head, then the framing of its body.
//!
//! Read first: RFC 9112 sections 2.2 (robustness), 5 (field syntax), 6.3 (body length) and 7.1 (chunked).
//!
//! The bytes are looked at from the start every time, and never past the limits below. So what is decided depends on
//! the bytes alone and not on how the stream was cut into segments.

use std::{fmt, mem::MaybeUninit, net::SocketAddr};

use httparse::{Header, Status::Complete};

use super::Status;

/// Bytes of a request head, its final empty line included. The longest requests of the known clients are under 1 KiB,
/// most of it a user agent and a session token.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Header fields of a request.
pub const HEADERS_MAX: usize = 64;

/// Bytes of a request body as it is on the wire, chunk framing included. No request of the service has a meaningful
/// body, but clients send some and the connection must stay in step.
pub const BODY_BYTES_MAX: usize = 8 * 1024;

/// The version that the request speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A complete request. Its body, if any, is drained by the connection and never read.
pub struct Request<'a> {
    /// The method token as sent: methods are case-sensitive.
    pub method: &'a str,
    /// The request target as sent, query included.
    pub target: &'a str,
    /// The protocol version.
    pub version: Version,
    /// Who sent it, as far as whoever owns the stream says so.
    pub peer: Option<SocketAddr>,
    headers: &'a [Header<'a>],
}

impl fmt::Debug for Request<'_> {
    /// The headers hold session tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("target", &self.target)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    /// The values of every header called `name`, ASCII case ignored, in order. The optional white space around a value
    /// is no part of it (RFC 9110, section 5.5).
    pub fn headers(&self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// Whether `member` is in the comma-separated list that the headers called `name` make up together.
    fn lists(&self, name: &'a str, member: &str) -> bool {
        self.headers(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(member.as_bytes()))
    }
}

/// What is wrong with the bytes. After any of these nobody knows where the next request begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the bytes are not a request, or its body has no certain end")]
    Syntax,
    #[error("the request head is over {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} fields")]
    HeadTooLarge,
    #[error("the request body is over {BODY_BYTES_MAX} bytes")]
    BodyTooLarge,
}

impl Malformed {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Syntax => Status::BadRequest,
            Self::HeadTooLarge => Status::RequestHeaderFieldsTooLarge,
            Self::BodyTooLarge => Status::ContentTooLarge,
        }
    }
}

/// Room for the header fields of one head.
pub(super) type HeaderRoom<'a> = [MaybeUninit<Header<'a>>; HEADERS_MAX];

/// A request whose head is complete and whose body has a certain end.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub request: Request<'a>,
    /// Bytes of the head.
    pub bytes: usize,
    pub body: Body,
    /// Whether the connection stays open after the response. Unlike the RFC's default, and like EC2: only if asked.
    pub keep_alive: bool,
    /// Whether the client holds its body back until it is told to go on.
    pub expects_continue: bool,
}

/// How the end of a body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Body {
    Length(usize),
    Chunked,
}

/// The head at the start of `bytes`, or nothing while it is incomplete.
pub(super) fn head<'a>(bytes: &'a [u8], room: &'a mut HeaderRoom<'a>) -> Result<Option<Head<'a>>, Malformed> {
    let within = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
    let mut parsed = httparse::Request::new(&mut []);
    let head_bytes = match parsed.parse_with_uninit_headers(within, room) {
        Ok(Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if within.len() == HEAD_BYTES_MAX => {
            return Err(Malformed::HeadTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
        Err(_) => return Err(Malformed::Syntax),
    };
    let request = Request {
        peer: None,
        method: parsed.method.ok_or(Malformed::Syntax)?,
        target: parsed.path.ok_or(Malformed::Syntax)?,
        version: match parsed.version {
            Some(0) => Version::Http10,
            Some(1) => Version::Http11,
            _ => return Err(Malformed::Syntax),
        },
        headers: parsed.headers,
    };
    // A missing Host is accepted, as on EC2; two of them are an error in any version (RFC 9112, section 3.2).
    if request.headers("host").count() > 1 {
        return Err(Malformed::Syntax);
    }
    Ok(Some(Head {
        bytes: head_bytes,
        body: body(&request)?,
        keep_alive: request.lists("connection", "keep-alive") && !request.lists("connection", "close"),
        expects_continue: request.version == Version::Http11 && request.lists("expect", "100-continue"),
        request,
    }))
}

/// The framing of the body. Whatever two readers could read differently is refused: that is how requests are smuggled.
fn body(request: &Request<'_>) -> Result<Body, Malformed> {
    let mut lengths = request.headers("content-length");
    let mut codings = request.headers("transfer-encoding");
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, None, None, None) => Ok(Body::Length(0)),
        (Some(length), None, None, None) => content_length(length).map(Body::Length),
        (None, None, Some(coding), None)
            if request.version == Version::Http11 && coding.eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(Body::Chunked)
        }
        _ => Err(Malformed::Syntax),
    }
}

fn content_length(value: &[u8]) -> Result<usize, Malformed> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Syntax);
    }
    let length = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
    // Digits that do not fit the type are a length, only a very large one.
    length
        .filter(|length| *length <= BODY_BYTES_MAX)
        .ok_or(Malformed::BodyTooLarge)
}

/// How many bytes the body at the start of `bytes` has, or nothing while it is incomplete.
pub(super) fn body_bytes(body: Body, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match body {
        Body::Length(length) => Ok((bytes.len() >= length).then_some(length)),
        Body::Chunked => {
            let within = bytes.get(..BODY_BYTES_MAX).unwrap_or(bytes);
            match chunked_bytes(within)? {
                None if within.len() == BODY_BYTES_MAX => Err(Malformed::BodyTooLarge),
                end => Ok(end),
            }
        }
    }
}

fn chunked_bytes(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut rest = bytes;
    loop {
        let (line_bytes, size) = match httparse::parse_chunk_size(rest) {
            Ok(Complete(line)) => line,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed::Syntax),
        };
        rest = rest.get(line_bytes..).unwrap_or_default();
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > BODY_BYTES_MAX {
            return Err(Malformed::BodyTooLarge);
        }
        let Some(after) = rest.get(size..) else {
            return Ok(None);
        };
        match after {
            [b'\r', b'\n', next @ ..] => rest = next,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(Malformed::Syntax),
        }
    }
    let mut trailers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(rest, &mut trailers) {
        Ok(Complete((trailer_bytes, _))) => {
            let after = rest.get(trailer_bytes..).unwrap_or_default();
            Ok(Some(bytes.len().saturating_sub(after.len())))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_head<T>(bytes: &[u8], check: impl FnOnce(Result<Option<Head<'_>>, Malformed>) -> T) -> T {
        check(head(bytes, &mut [const { MaybeUninit::uninit() }; HEADERS_MAX]))
    }

    fn framing(head: &str) -> Result<Body, Malformed> {
        let bytes = head.replace('\n', "\r\n");
        with_head(bytes.as_bytes(), |head| {
            head.map(|head| head.expect("a whole head").body)
        })
    }

    #[test]
    fn framing_of_bodies() {
        for (fields, expected) in [
            ("", Ok(Body::Length(0))),
            ("Content-Length: 0\n", Ok(Body::Length(0))),
            ("Content-Length: 8192\n", Ok(Body::Length(8192))),
            ("Content-Length: 8193\n", Err(Malformed::BodyTooLarge)),
            (
                "Content-Length: 99999999999999999999999999\n",
                Err(Malformed::BodyTooLarge),
            ),
            ("Content-Length: +1\n", Err(Malformed::Syntax)),
            ("Content-Length: 1, 1\n", Err(Malformed::Syntax)),
            ("Content-Length:\n", Err(Malformed::Syntax)),
            ("Content-Length: 1\nContent-Length: 1\n", Err(Malformed::Syntax)),
            ("Content-Length: 1\nContent-Length: 2\n", Err(Malformed::Syntax)),
            ("Transfer-Encoding: Chunked\n", Ok(Body::Chunked)),
            (
                "Transfer-Encoding: chunked\nContent-Length: 3\n",
                Err(Malformed::Syntax),
            ),
            ("Transfer-Encoding: gzip, chunked\n", Err(Malformed::Syntax)),
            (
                "Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n",
                Err(Malformed::Syntax),
            ),
            ("Transfer-Encoding: identity\n", Err(Malformed::Syntax)),
            ("Content-Length : 0\n", Err(Malformed::Syntax)),
            ("X: a\n b\n", Err(Malformed::Syntax)),
            ("Host: a\nHost: a\n", Err(Malformed::Syntax)),
        ] {
            assert_eq!(
                framing(&format!("PUT / HTTP/1.1\n{fields}\n")),
                expected,
                "{fields:?}"
            );
        }
        assert_eq!(
            framing("PUT / HTTP/1.0\nTransfer-Encoding: chunked\n\n"),
            Err(Malformed::Syntax)
        );
    }

    #[test]
    fn head_at_and_over_the_limits() {
        let start = "GET / HTTP/1.1\r\nX: ";
        let fill = HEAD_BYTES_MAX - start.len() - 4;
        let longest = format!("{start}{}\r\n\r\n", "x".repeat(fill));
        with_head(longest.as_bytes(), |head| {
            assert_eq!(head.unwrap().unwrap().bytes, HEAD_BYTES_MAX);
        });
        let over = format!("{start}{}\r\n\r\n", "x".repeat(fill + 1));
        with_head(over.as_bytes(), |head| {
            assert_eq!(head.unwrap_err(), Malformed::HeadTooLarge);
        });

        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        with_head(fields(HEADERS_MAX).as_bytes(), |head| {
            assert!(head.unwrap().is_some());
        });
        with_head(fields(HEADERS_MAX + 1).as_bytes(), |head| {
            assert_eq!(head.unwrap_err(), Malformed::HeadTooLarge);
        });
    }

    #[test]
    fn ends_of_chunked_bodies() {
        for (bytes, expected) in [
            ("0\r\n\r\nGET", Ok(Some(5))),
            ("3\r\nabc\r\n0\r\n\r\n", Ok(Some(13))),
            ("3;ext=1\r\nabc\r\n0\r\nTrailer: x\r\n\r\n", Ok(Some(31))),
            ("3\r\nabc\r\n0\r\n", Ok(None)),
            ("3\r\nab", Ok(None)),
            ("3\r\nabcd\r\n", Err(Malformed::Syntax)),
            ("zz\r\n", Err(Malformed::Syntax)),
            ("ffffffff\r\n", Err(Malformed::BodyTooLarge)),
        ] {
            assert_eq!(body_bytes(Body::Chunked, bytes.as_bytes()), expected, "{bytes:?}");
        }
        let endless = "1\r\nx\r\n".repeat(BODY_BYTES_MAX);
        assert_eq!(
            body_bytes(Body::Chunked, endless.as_bytes()),
            Err(Malformed::BodyTooLarge)
        );
    }

    #[test]
    fn keep_alive_only_if_asked() {
        for (fields, expected) in [
            ("", false),
            ("Connection: keep-alive\r\n", true),
            ("connection: TE, Keep-Alive\r\n", true),
            ("Connection: TE\r\nConnection: keep-alive\r\n", true),
            ("Connection: keep-alive, close\r\n", false),
        ] {
            for version in ["1.0", "1.1"] {
                let bytes = format!("GET / HTTP/{version}\r\n{fields}\r\n");
                with_head(bytes.as_bytes(), |head| {
                    assert_eq!(head.unwrap().unwrap().keep_alive, expected, "{bytes:?}");
                });
            }
        }
    }
}
