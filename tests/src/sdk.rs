//! A guest's programs that call the service through an SDK, at a steady rate whatever becomes of the calls: each has up to
//! three attempts of a second, as the SDKs' own clients for the service have, and waits for nothing between them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{netns::Namespace, pace::patience};

/// How long an attempt may take on a real machine.
const ATTEMPT: Duration = Duration::from_secs(1);

/// How many attempts a call has.
const ATTEMPTS: usize = 3;

/// One call: what is sent, and whether the answer is what it should be.
#[derive(Clone, Debug)]
pub struct Call {
    /// The request.
    pub request: String,
    /// Whether a body with status 200 answers it.
    pub is_answer: fn(&[u8]) -> bool,
}

/// Calls that are being made.
#[derive(Debug)]
pub struct Calls {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Result<Outcome>>,
}

/// What came of them.
#[derive(Clone, Default, Debug)]
pub struct Outcome {
    /// How many calls needed one attempt, two, three.
    pub by_attempts: [usize; ATTEMPTS],
    /// What each failed call says of its last attempt.
    pub failed: Vec<String>,
    /// What each attempt says that was not a call's last one.
    pub retried: Vec<String>,
    /// The longest that a call took.
    pub longest: Duration,
}

impl Calls {
    /// Begins with `calls`, one after the other and over again, one every `interval`, in `namespace`.
    pub fn begin(namespace: &Namespace, calls: Vec<Call>, interval: Duration) -> Result<Self> {
        let (stop, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let shared = (Arc::clone(&stop), Arc::clone(&ended));
        let thread = namespace.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(make(calls, interval, &shared.0, &shared.1))
        })?;
        Ok(Self { stop, ended, thread })
    }

    /// How many calls have ended so far, well or not.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Begins no further call and waits for those under way.
    pub fn end(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}

async fn make(
    calls: Vec<Call>,
    interval: Duration,
    stop: &AtomicBool,
    ended: &AtomicUsize,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut under_way = JoinSet::new();
    let mut ticks = tokio::time::interval(interval);
    for call in calls.into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        under_way.spawn(make_one(call));
        while let Some(call) = under_way.try_join_next() {
            outcome.add(call?, ended);
        }
    }
    while let Some(call) = under_way.join_next().await {
        outcome.add(call?, ended);
    }
    Ok(outcome)
}

struct Made {
    /// What each attempt that failed says.
    failed: Vec<String>,
    took: Duration,
}

async fn make_one(call: Call) -> Made {
    let begin = Instant::now();
    let mut failed = Vec::new();
    while failed.len() < ATTEMPTS {
        match attempt(&call).await {
            Ok(()) => break,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    let took = begin.elapsed();
    Made { failed, took }
}

async fn attempt(call: &Call) -> Result<()> {
    let exchange = async {
        let mut stream = TcpStream::connect("169.254.169.254:80")
            .await
            .context("connect")?;
        stream.write_all(call.request.as_bytes()).await.context("send")?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.context("receive")?;
        anyhow::Ok(response)
    };
    let patience = patience(ATTEMPT);
    let response = match tokio::time::timeout(patience, exchange).await {
        Ok(response) => response?,
        Err(_) => bail!("no answer within {patience:?}"),
    };
    let head = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = response.split_at(head.context("an answer without an end of its head")?);
    let head = String::from_utf8_lossy(head);
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    ensure!(
        (call.is_answer)(body.get(4..).unwrap_or_default()),
        "a wrong answer: {head}"
    );
    Ok(())
}

impl Outcome {
    fn add(&mut self, mut call: Made, ended: &AtomicUsize) {
        self.longest = self.longest.max(call.took);
        match self.by_attempts.get_mut(call.failed.len()) {
            Some(count) => *count += 1,
            None => self.failed.extend(call.failed.pop()),
        }
        self.retried.append(&mut call.failed);
        ended.fetch_add(1, Ordering::Relaxed);
    }
}
