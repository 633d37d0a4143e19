//! A guest's software: one request on a connection of its own, over the TCP of the namespace that it runs in.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at something that is about to change: rarely enough for the limit of packets that a tap has.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The three digits.
    pub status: u16,
    /// The status line and the fields.
    pub head: String,
    /// The exact bytes.
    pub body: Vec<u8>,
}

impl Response {
    /// What was read until the other end closed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let (head, rest) = bytes.split_at(end.context("a response without an end of its head")?);
        let head = str::from_utf8(head)?.to_owned();
        let status = head.split(' ').nth(1).context("a response without a status")?;
        Ok(Self {
            status: status.parse()?,
            body: rest.get(4..).unwrap_or_default().to_vec(),
            head,
        })
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap_or("(no text)")
    }

    /// A field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find_map(|(is, value)| is.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Sends `request` and reads until the service closes.
pub fn exchange(request: &str) -> Result<Response> {
    exchange_from(request).map(|(response, _)| response)
}

/// The same, with the port that it was asked from.
pub fn exchange_from(request: &str) -> Result<(Response, u16)> {
    let mut stream = TcpStream::connect_timeout(&"169.254.169.254:80".parse()?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok((Response::parse(&bytes)?, stream.local_addr()?.port()))
}

/// A session token.
pub fn token() -> Result<String> {
    let response =
        exchange("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 600\r\n\r\n")?;
    ensure!(response.status == 200, "no token: {}", response.head);
    Ok(String::from_utf8(response.body)?)
}

/// A GET below `/latest/` with a session token.
pub fn get(token: &str, path: &str) -> Result<Response> {
    exchange(&format!(
        "GET /latest/{path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    ))
}

/// The text at a path that must be there.
pub fn text(token: &str, path: &str) -> Result<String> {
    let response = get(token, path)?;
    ensure!(response.status == 200, "{path}: {}", response.head);
    Ok(String::from_utf8(response.body)?)
}

/// Asks with `ask` until the answer is as `wanted`, and returns it and how long that took.
pub fn wait_for<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> Result<T>,
    wanted: impl Fn(&T) -> bool,
) -> Result<(T, Duration)> {
    let begin = Instant::now();
    loop {
        let answer = ask()?;
        let took = begin.elapsed();
        if wanted(&answer) {
            return Ok((answer, took));
        }
        ensure!(took < PATIENCE, "{what}: still {answer:?} after {took:?}");
        thread::sleep(POLL_INTERVAL);
    }
}
