//! Live requests, for operators who watch.
//!
//! While nobody listens a request costs one relaxed load. A listener has a bounded queue and is never waited for: what does not
//! fit is counted, and the listener is told how many it missed before it gets the next one.
//!
//! What is told of a request holds no secret: no header but the user agent, no body, no query, and no word in path and user
//! agent that is long enough to be a session token.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{Stream, stream};
use imds_ebpf::abi::MacAddr;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use super::requests::word_for;
use crate::{
    http,
    imds::{ImdsVersion, Outcome},
    now::Now,
    registry::InstanceId,
};

/// Requests that wait for one listener: an ordinary one takes three hundred bytes, and the longest that a guest can make up two
/// thousand, so they take four megabytes at most.
const QUEUE_REQUESTS_MAX: usize = 2048;

/// Listeners at once: every one of them is served by the workers.
pub const LISTENERS_MAX: usize = 16;

/// Characters of a path or a user agent that are told.
const TEXT_CHARACTERS_MAX: usize = 256;

/// The length from which on a word may be a secret: session tokens have 56 characters of URL-safe base64 and more, secret access
/// keys 40. A name that people choose is hardly as long without a break.
const SECRET_CHARACTERS_MIN: usize = 40;

/// Where requests are told. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct Trace(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// As many as there are in `listeners`, for whoever only wants to know whether there are any.
    count: AtomicUsize,
    listeners: ArcSwap<Vec<Arc<Listener>>>,
    /// Requests that listeners missed, also those that listen no more.
    lost: AtomicU64,
}

#[derive(Debug)]
struct Listener {
    only: Option<InstanceId>,
    queue: mpsc::Sender<Arc<Request>>,
    /// What it missed and was not told of yet.
    lost: Arc<AtomicU64>,
}

/// One request, and what became of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Request {
    /// When it was answered.
    pub time: Timestamp,
    /// Whose tap it came through.
    pub instance: Option<InstanceId>,
    /// From which interface.
    #[serde(serialize_with = "as_text")]
    pub mac: MacAddr,
    /// The method as sent, cleaned.
    pub method: String,
    /// The path without its query, cleaned.
    pub path: String,
    /// The status of the response.
    pub status: u16,
    /// `v1` or `v2`.
    pub version: &'static str,
    /// Why it was refused, in the words of the metrics.
    pub refusal: Option<&'static str>,
    /// From the arrival of its last frame in the classifier to when its response was with the kernel.
    pub latency_seconds: Option<f64>,
    /// What the guest's software says it is, cleaned.
    pub user_agent: Option<String>,
    /// The guest's port.
    pub peer_port: Option<u16>,
}

/// What a listener is told.
#[derive(Clone, PartialEq, Debug)]
pub enum Told {
    /// A request.
    Request(Arc<Request>),
    /// So many requests were missed at this point.
    Lost(u64),
}

/// There are [`LISTENERS_MAX`] already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{LISTENERS_MAX} listen already, and no more may")]
pub struct TooManyListeners;

impl Trace {
    /// Whether anybody listens.
    pub fn is_on(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    /// Listens to the requests of one instance, or of all, until the subscription is dropped.
    pub fn subscribe(&self, only: Option<InstanceId>) -> Result<Subscription, TooManyListeners> {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let lost = Arc::<AtomicU64>::default();
        let listener = Arc::new(Listener {
            only,
            queue,
            lost: Arc::clone(&lost),
        });
        let subscription = Subscription {
            requests,
            lost,
            pending: None,
            trace: Arc::downgrade(&self.0),
        };
        let before = self.0.listeners.rcu(|listeners| {
            let mut listeners = Vec::clone(listeners);
            if listeners.len() < LISTENERS_MAX {
                listeners.push(Arc::clone(&listener));
            }
            listeners
        });
        if before.len() >= LISTENERS_MAX {
            return Err(TooManyListeners);
        }
        self.0.recount();
        Ok(subscription)
    }

    /// Tells a request to those who want it. Never waits.
    pub fn publish(&self, request: Request, took: Option<Duration>) {
        let latency_seconds = took.map(|took| took.as_secs_f64());
        let request = Arc::new(Request {
            latency_seconds,
            ..request
        });
        for listener in self.0.listeners.load().iter() {
            let is_wanted = listener.only.is_none() || listener.only == request.instance;
            if is_wanted && listener.queue.try_send(Arc::clone(&request)).is_err() {
                listener.lost.fetch_add(1, Ordering::Relaxed);
                self.0.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.0.listeners.load().len()
    }

    /// Requests that listeners missed, of all that ever listened.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn recount(&self) {
        self.count.store(self.listeners.load().len(), Ordering::Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("listeners", &self.listeners.load().len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// The listening end.
#[derive(Debug)]
pub struct Subscription {
    requests: mpsc::Receiver<Arc<Request>>,
    lost: Arc<AtomicU64>,
    /// Taken from the queue, but something missed comes first.
    pending: Option<Arc<Request>>,
    trace: Weak<Shared>,
}

impl Subscription {
    /// The next thing to tell; nothing once the agent is gone.
    pub async fn next(&mut self) -> Option<Told> {
        let request = match self.pending.take() {
            Some(request) => request,
            None => self.requests.recv().await?,
        };
        match self.lost.swap(0, Ordering::Relaxed) {
            0 => Some(Told::Request(request)),
            lost => {
                self.pending = Some(request);
                Some(Told::Lost(lost))
            }
        }
    }

    /// Everything there is to tell, as lines of JSON, for a response whose body is a stream. A gap is a line of its own:
    /// `{"lost":17}`.
    pub fn lines(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, |mut subscription| async {
            let told = subscription.next().await?;
            Some((Ok(told.line()), subscription))
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(trace) = self.trace.upgrade() {
            trace.listeners.rcu(|listeners| {
                let mut listeners = Vec::clone(listeners);
                listeners.retain(|listener| !Arc::ptr_eq(&listener.lost, &self.lost));
                listeners
            });
            trace.recount();
        }
    }
}

impl Told {
    /// As one line of JSON.
    pub fn line(&self) -> Bytes {
        let line = match self {
            Self::Request(request) => serde_json::to_vec(&**request),
            Self::Lost(lost) => serde_json::to_vec(&serde_json::json!({ "lost": lost })),
        };
        let mut line = line.unwrap_or_default();
        line.push(b'\n');
        line.into()
    }
}

impl Request {
    /// What may be told of a request that was just answered; how long that took is known when the answer is sent.
    pub fn new(
        now: Now,
        instance: Option<&InstanceId>,
        mac: MacAddr,
        request: &http::Request<'_>,
        outcome: &Outcome,
    ) -> Self {
        let path = request.target.split(['?', '#']).next().unwrap_or_default();
        let user_agent = request.headers("user-agent").next();
        Self {
            time: now.timestamp(),
            instance: instance.cloned(),
            mac,
            method: cleaned(request.method),
            path: cleaned(path),
            status: outcome.status as u16,
            version: match outcome.version {
                ImdsVersion::V1 => "v1",
                ImdsVersion::V2 => "v2",
            },
            refusal: outcome.refusal.map(word_for),
            latency_seconds: None,
            user_agent: user_agent.map(|agent| cleaned(&String::from_utf8_lossy(agent))),
            peer_port: request.peer.map(|peer| peer.port()),
        }
    }
}

/// A guest's text for an operator's terminal: of bounded length, without letters that are more than they look, and without words
/// that may be secrets.
fn cleaned(text: &str) -> String {
    let mut clean = String::new();
    for piece in text.split_inclusive(|letter: char| !is_of_a_secret(letter)) {
        let word = piece.trim_end_matches(|letter: char| !is_of_a_secret(letter));
        if word.len() >= SECRET_CHARACTERS_MIN {
            clean.push_str("(redacted)");
        } else {
            clean.push_str(word);
        }
        let rest = piece.get(word.len()..).unwrap_or_default();
        clean.extend(rest.chars().map(|letter| match letter {
            letter if is_plain(letter) => letter,
            _ => char::REPLACEMENT_CHARACTER,
        }));
    }
    match clean.char_indices().nth(TEXT_CHARACTERS_MAX) {
        Some((end, _)) => clean.truncate(end),
        None => clean.shrink_to_fit(),
    }
    clean
}

/// Whether a letter stands for itself wherever it is shown: it controls no terminal, turns the direction of no text round, joins no
/// other, and is seen.
pub fn is_plain(letter: char) -> bool {
    // What Rust quotes besides is quoted for being plain text's own.
    matches!(letter, '\'' | '"' | '\\') || letter.escape_debug().count() == 1
}

/// Whether a letter may stand in base64 or its percent-encoding. Slashes part a path.
fn is_of_a_secret(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '_' | '=' | '%')
}

fn as_text<S: Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

#[cfg(test)]
mod tests;
