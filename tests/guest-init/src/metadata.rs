//! A metadata client on plain sockets, which hides nothing of what the service says.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The service's address.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How long a client of ours waits. An emulated guest is slow, but not by this much; and what never comes costs this.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The longest body that is believed.
const BODY_MAX: usize = 1 << 20;

/// The header by which a token's lifetime is asked for.
const TTL_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds";

/// The header that carries the token.
const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token";

/// One TCP connection to the service.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A session token in use.
#[derive(Debug)]
pub struct Session {
    pub token: String,
    pub ttl_seconds: u32,
}

impl Connection {
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((SERVICE, port)), PATIENCE)
            .with_context(|| format!("cannot connect to {SERVICE}:{port}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request without a body in one write, and reads the reply.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {SERVICE}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        self.0
            .get_mut()
            .write_all(head.as_bytes())
            .context("cannot send the request")?;
        self.reply()
            .with_context(|| format!("no answer to {method} {path}"))
    }

    fn reply(&mut self) -> Result<Reply> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("{first:?} is no status line"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("{line:?} is no header"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        let length: usize = reply
            .header("content-length")
            .context("no Content-Length")?
            .parse()?;
        ensure!(length <= BODY_MAX, "Content-Length is {length}");
        reply.body.resize(length, 0);
        self.0.read_exact(&mut reply.body)?;
        Ok(reply)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "the connection ended");
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as text, of a reply that must be 200.
    pub fn ok(self) -> Result<String> {
        if self.status != 200 {
            bail!("the answer is {}, not 200", self.status);
        }
        Ok(self.text())
    }
}

impl Session {
    /// Asks for a token.
    pub fn open() -> Result<Self> {
        let reply = put_token(21600)?;
        let ttl = reply
            .header("x-aws-ec2-metadata-token-ttl-seconds")
            .unwrap_or_default();
        let ttl_seconds = ttl
            .parse()
            .with_context(|| format!("the token's lifetime is {ttl:?}"))?;
        Ok(Self {
            token: reply.ok().context("no token")?,
            ttl_seconds,
        })
    }

    /// Asks on a connection of its own.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.get_on(&mut Connection::open(80)?, path)
    }

    /// Asks on `connection`, and leaves it open.
    pub fn get_on(&self, connection: &mut Connection, path: &str) -> Result<Reply> {
        connection.request(
            "GET",
            path,
            &[(TOKEN_HEADER, &self.token), ("Connection", "keep-alive")],
        )
    }

    /// Asks with a header that says nothing and is `length` bytes long.
    pub fn get_at_length(&self, path: &str, length: usize) -> Result<Reply> {
        let filler = "x".repeat(length);
        Connection::open(80)?.request("GET", path, &[(TOKEN_HEADER, &self.token), ("X-Filler", &filler)])
    }
}

/// The bare token request.
pub fn put_token(ttl_seconds: u32) -> Result<Reply> {
    Connection::open(80)?.request(
        "PUT",
        "/latest/api/token",
        &[(TTL_HEADER, &ttl_seconds.to_string())],
    )
}

/// The bare IMDSv1 request.
pub fn get_without_token(path: &str) -> Result<Reply> {
    Connection::open(80)?.request("GET", path, &[])
}

/// Turns a silence into a success, and everything else into a failure.
pub fn silent(outcome: Result<()>) -> Result<()> {
    let Err(error) = outcome else {
        bail!("there was an answer");
    };
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        // A socket's own time limit is one or the other, by platform and call.
        Some(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Ok(()),
        _ => Err(error.context("not silence, but a failure")),
    }
}
