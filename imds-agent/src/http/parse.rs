//! One request head out of bytes.

/// The version that the request speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A request whose head is complete. Its body, if any, is drained by the connection and never read.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method token as sent: methods are case-sensitive.
    pub method: &'a str,
    /// The request target as sent, query included.
    pub target: &'a str,
    /// The protocol version.
    pub version: Version,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    /// The values of every header called `name`, ASCII case ignored, in order.
    pub fn headers(&self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }
}
