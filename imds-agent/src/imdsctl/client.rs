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
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::UnixStream;

/// Longer than the agent itself waits for anything.
const PATIENCE: Duration = Duration::from_secs(90);

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

    async fn exchange(&self, method: Method, path: &str, expect: &Expect, body: Vec<u8>) -> Result<Reply> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("no agent can be reached at {}", self.socket.display()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
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
            .await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        if !head.status.is_success() {
            let status = head.status.as_u16();
            let sentence = serde_json::from_slice::<Value>(&body).ok();
            let sentence = sentence.and_then(|refusal| Some(refusal.get("message")?.as_str()?.to_owned()));
            let message = sentence.unwrap_or_else(|| format!("the agent answers {}", head.status));
            bail!(Refused { status, message });
        }
        let tag = head.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        Ok(Reply {
            tag: tag.map(str::to_owned),
            body,
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
        let _ = write!(path, "/{}", utf8_percent_encode(segment, SEGMENT));
    }
    path
}
