//! A service whose every byte is known beforehand.

use crate::{
    http::{Request, Response, Service, Status},
    now::Now,
};

/// Answers `/<n>` with n patterned bytes, and `/token/<n>` so with hop limit 1.
pub struct Pattern;

/// Longest body that it makes.
pub const BODY_BYTES_MAX: usize = 100_000;

impl Service for Pattern {
    fn respond(&mut self, _now: Now, request: &Request<'_>, response: &mut Response) {
        let number = request
            .target
            .trim_start_matches("/token")
            .trim_start_matches('/');
        match number.parse() {
            Ok(length) if length <= BODY_BYTES_MAX => response.body.extend(patterned(length)),
            _ => response.fill_error_page(Status::NotFound),
        }
        if request.target.starts_with("/token") {
            response.hop_limit = Some(1);
        }
    }
}

pub fn patterned(length: usize) -> Vec<u8> {
    (b'a'..b'x').cycle().take(length).collect()
}

pub fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").into_bytes()
}

pub fn get_keep_alive(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n").into_bytes()
}

/// One response as far as it came.
#[derive(PartialEq, Eq, Debug)]
pub struct Answered {
    pub status: u16,
    pub body: Vec<u8>,
    /// Bytes of the body that the head promises.
    pub length: usize,
}

/// The responses in `stream`. All but the last are whole; of that one even the head may be cut, and then it is what is
/// left over.
pub fn responses(mut stream: &[u8]) -> (Vec<Answered>, &[u8]) {
    let mut responses = Vec::new();
    while let Some(end) = stream.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = str::from_utf8(&stream[..end]).expect("a head is text");
        let status = head.strip_prefix("HTTP/1.1 ").expect("a status line");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .expect("a length");
        let length: usize = length.parse().expect("a number");
        let body = &stream[end + 4..];
        let body = &body[..length.min(body.len())];
        stream = &stream[end + 4 + body.len()..];
        responses.push(Answered {
            status: status[..3].parse().expect("a status"),
            body: body.to_vec(),
            length,
        });
    }
    (responses, stream)
}
