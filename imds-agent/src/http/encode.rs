//! One response into bytes.

use std::time::Duration;

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

/// What a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is its own MIME type")]
pub enum ContentType {
    TextPlain,
    TextHtml,
    ApplicationJson,
    OctetStream,
}

/// A response under construction. The connection owns one and hands it out again for every request, so that its buffers
/// are allocated once.
#[derive(Debug)]
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
}
