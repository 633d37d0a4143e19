//! The one client of the control socket: a request, its answer, and a sentence for what went wrong.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
pub use hyper::Method;
use hyper::{Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::UnixStream;

/// Longer than the agent itself waits for anything.
const PATIENCE: Duration = Duration::from_secs(90);

/// A connection that breaks: the agent ended, or has given the seat to others.
const GONE: &str = "the agent is gone, or has closed the connection";

/// What is not percent-encoded in a segment of a path (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Speaks to one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// What has to be so for a write to be done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Expect {
    /// Nothing.
    #[default]
    Anything,
    /// There is no such thing yet.
    Absent,
    /// It is in the version of this tag.
    At(String),
}

/// A successful answer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Reply {
    /// The version of what was asked for.
    pub tag: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// The agent answered that it cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The three digits.
    pub status: u16,
    /// The agent's sentence.
    pub message: String,
}

impl Client {
    /// For the agent that listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.send(Method::GET, path, &Expect::Anything, Vec::new())
    }

    /// The JSON at a path.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        self.get(path)?.json()
    }

    /// Sends JSON, and returns the JSON that comes back.
    pub fn send_json(&self, method: Method, path: &str, expect: &Expect, body: &Value) -> Result<Value> {
        self.send(method, path, expect, body.to_string().into_bytes())?
            .json()
    }

    /// Deletes what is at a path.
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.send(Method::DELETE, path, &Expect::Anything, Vec::new())?
            .json()
    }

    /// Sends a request, and returns what came back unless that is a refusal.
    pub fn send(&self, method: Method, path: &str, expect: &Expect, body: Vec<u8>) -> Result<Reply> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let exchange = self.exchange(method, path, expect, body);
        runtime.block_on(async {
            let answered = tokio::time::timeout(PATIENCE, exchange).await;
            answered.context("the agent does not answer")?
        })
    }

    /// Gives every line at a path to `each` as it comes, with its end, until there are no more.
    pub fn follow(&self, path: &str, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let opened = self.open(Method::GET, path, &Expect::Anything, Vec::new());
            let opened = tokio::time::timeout(PATIENCE, opened).await;
            let mut body = opened.context("the agent does not answer")??.into_body();
            let mut text = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.context(GONE)?;
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let rest = text.split_off(end + 1);
                    each(&std::mem::replace(&mut text, rest))?;
                }
            }
            Ok(())
        })
    }

    async fn exchange(&self, method: Method, path: &str, expect: &Expect, body: Vec<u8>) -> Result<Reply> {
        let (head, body) = self.open(method, path, expect, body).await?.into_parts();
        let tag = head.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        Ok(Reply {
            tag: tag.map(str::to_owned),
            body: body.collect().await.context(GONE)?.to_bytes().to_vec(),
        })
    }

    /// Sends a request, and returns what comes back, whose body is still to be read, unless that is a refusal.
    async fn open(
        &self,
        method: Method,
        path: &str,
        expect: &Expect,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("no agent can be reached at {}", self.socket.display()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context(GONE)?;
        // It ends with the runtime.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "imds-agent");
        let request = match expect {
            Expect::Anything => request,
            Expect::Absent => request.header(header::IF_NONE_MATCH, "*"),
            Expect::At(tag) => request.header(header::IF_MATCH, tag),
        };
        let response = sender
            .send_request(request.body(Full::new(Bytes::from(body)))?)
            .await
            .context(GONE)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.context(GONE)?.to_bytes();
        let sentence = serde_json::from_slice::<Value>(&body).ok();
        let sentence = sentence.and_then(|refusal| Some(refusal.get("message")?.as_str()?.to_owned()));
        bail!(Refused {
            status: status.as_u16(),
            message: sentence.unwrap_or_else(|| format!("the agent answers {status}")),
        })
    }
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("the agent's answer is not JSON")
    }

    /// For a write of what this was read from.
    pub fn expect(&self) -> Expect {
        self.tag.clone().map_or(Expect::Anything, Expect::At)
    }
}

/// A path below `/v1/` of fixed and of given segments, which alternate.
pub fn path(segments: &[&str]) -> String {
    let mut path = "/v1".to_owned();
    for segment in segments {
        let _ = write!(path, "/{}", encoded(segment));
    }
    path
}

/// As a segment of a path, or a value in a query.
pub fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, SEGMENT)
}
