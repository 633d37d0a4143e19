//! What guests do that their operators should know: who asks without a session token, whose tokens do not arrive.
//!
//! Workers notice it and wait for nobody: they put it into a bounded queue, from which a thread keeps it ([`tokenless`],
//! [`hop_limit`]) and tells the log. That thread sleeps a moment after it was woken, so that of a crowd only the first one
//! pays for waking it; putting the others into the queue is a few atomic operations and takes no lock. Of a request that does not
//! fit only its instance is kept, and a token response that does not is lost. Both are counted, and the totals of the host,
//! which workers count themselves, are exact in any case.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::Duration,
};

use imds_ebpf::abi::MacAddr;

use super::{
    hop_limit::{self, HopLimit},
    tokenless::{self, Fate, Tokenless},
    warnings::Warnings,
};
use crate::{
    http::Request,
    imds::Outcome,
    now::Now,
    privilege,
    registry::{InstanceId, Snapshot},
    stack::{Sign, Undelivered},
};

/// Sightings that wait to be kept. At four hundred bytes each they take less than two megabytes, and they last for
/// [`GATHER`] at forty thousand a second, nearly all that a worker can answer.
const QUEUE_MAX: usize = 4096;

/// How long the thread lets sightings gather.
const GATHER: Duration = Duration::from_millis(100);

/// What is noticed of guests. Cheap to clone. The default counts, and keeps nothing else.
#[derive(Clone, Default, Debug)]
pub struct Guests {
    totals: Arc<Counts>,
    kept: Arc<Mutex<Kept>>,
    /// Requests that did not fit into the queue. Nobody holds this lock for longer than a moment.
    hurried: Arc<Mutex<Tokenless>>,
    queue: Option<SyncSender<Sighting>>,
}

/// What the whole host counts since the agent started.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Requests without a token that were let in.
    pub metadata_no_token: u64,
    /// Those that were refused because tokens are required.
    pub metadata_no_token_rejected: u64,
    /// Token responses that a router behind a guest dropped, because their hop limit was used up.
    pub time_exceeded: u64,
    /// Those that nobody acknowledged for as long as their connections lasted.
    pub unacknowledged: u64,
    /// How much of this did not fit into the queue.
    pub lost: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests let in without a session token, {} refused for want of one; {} token responses expired at routers \
             of guests, {} were not acknowledged",
            self.metadata_no_token, self.metadata_no_token_rejected, self.time_exceeded, self.unacknowledged,
        )
    }
}

#[derive(Default, Debug)]
struct Counts {
    admitted: AtomicU64,
    rejected: AtomicU64,
    time_exceeded: AtomicU64,
    unacknowledged: AtomicU64,
    lost: AtomicU64,
}

#[derive(Default, Debug)]
struct Kept {
    tokenless: Tokenless,
    hop_limit: HopLimit,
    warnings: Warnings,
}

#[derive(Debug)]
struct Sighting {
    now: Now,
    what: Box<What>,
}

#[derive(Debug)]
enum What {
    Tokenless(tokenless::Sighting),
    HopLimit(hop_limit::Sighting),
}

impl Guests {
    /// Starts the thread that keeps what is noticed. It ends with the last clone.
    pub fn start() -> io::Result<Self> {
        let (queue, sightings) = mpsc::sync_channel(QUEUE_MAX);
        let guests = Self {
            queue: Some(queue),
            ..Self::default()
        };
        let kept = Arc::clone(&guests.kept);
        thread::Builder::new()
            .name("imds-guests".to_owned())
            .spawn(move || {
                privilege::capabilities::give_up();
                keep(&sightings, &kept);
            })?;
        Ok(guests)
    }

    /// Takes note of a request that `instance` made through `interface`. Never waits.
    pub fn saw_request(
        &self,
        now: Now,
        instance: &InstanceId,
        interface: MacAddr,
        request: &Request<'_>,
        outcome: &Outcome,
    ) {
        let Some(fate) = Fate::of(outcome) else { return };
        add_one(match fate {
            Fate::Admitted => &self.totals.admitted,
            Fate::Rejected => &self.totals.rejected,
        });
        let is_queued = self.queue(now, || {
            What::Tokenless(tokenless::Sighting::new(instance, interface, request, fate))
        });
        if !is_queued {
            locked(&self.hurried).count(instance, fate);
        }
    }

    /// Takes note of a token response of `instance` that did not arrive. Never waits.
    pub fn saw_undelivered(&self, now: Now, instance: &InstanceId, undelivered: Undelivered) {
        add_one(match undelivered.sign {
            Sign::TimeExceeded { .. } => &self.totals.time_exceeded,
            Sign::Unacknowledged => &self.totals.unacknowledged,
        });
        self.queue(now, || {
            What::HopLimit(hop_limit::Sighting {
                instance: instance.clone(),
                undelivered,
            })
        });
    }

    /// Who asks without a session token on `instance`, as of a moment ago.
    pub fn tokenless(&self, instance: &InstanceId) -> tokenless::Report {
        let kept = locked(&self.kept).tokenless.report(instance);
        kept.with(&locked(&self.hurried).report(instance))
    }

    /// Forgets the instances that are not there any more.
    pub fn handle_snapshot(&self, snapshot: &Snapshot) {
        let mut kept = locked(&self.kept);
        let is_there = |instance: &InstanceId| snapshot.instances.contains_key(instance);
        kept.tokenless.retain(is_there);
        kept.hop_limit.retain(is_there);
        drop(kept);
        locked(&self.hurried).retain(is_there);
    }

    /// Whether session tokens do not arrive on `instance`, as of a moment ago.
    pub fn hop_limit(&self, instance: &InstanceId) -> hop_limit::Report {
        locked(&self.kept).hop_limit.report(instance)
    }

    /// The instances whose session tokens surely do not all arrive, as of a moment ago.
    pub fn undelivered(&self) -> Vec<(InstanceId, hop_limit::Report)> {
        locked(&self.kept).hop_limit.undelivered()
    }

    /// What the whole host counts.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            metadata_no_token: read(&self.totals.admitted),
            metadata_no_token_rejected: read(&self.totals.rejected),
            time_exceeded: read(&self.totals.time_exceeded),
            unacknowledged: read(&self.totals.unacknowledged),
            lost: read(&self.totals.lost),
        }
    }

    /// Returns whether it did not have to be lost.
    fn queue(&self, now: Now, what: impl FnOnce() -> What) -> bool {
        let Some(queue) = &self.queue else { return true };
        let what = Box::new(what());
        let is_queued = queue.try_send(Sighting { now, what }).is_ok();
        if !is_queued {
            add_one(&self.totals.lost);
        }
        is_queued
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Keeps what comes until nobody is left to notice anything.
fn keep(sightings: &Receiver<Sighting>, kept: &Mutex<Kept>) {
    while let Ok(first) = sightings.recv() {
        locked(kept).record(first);
        thread::sleep(GATHER);
        for sighting in sightings.try_iter() {
            locked(kept).record(sighting);
        }
    }
}

/// Whatever a panic left in there is good enough to read.
fn locked<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn record(&mut self, Sighting { now, what }: Sighting) {
        let told = match *what {
            What::Tokenless(sighting) => self.tokenless.record(now, &sighting, &mut self.warnings),
            What::HopLimit(sighting) => self.hop_limit.record(now, &sighting, &mut self.warnings),
        };
        if let Some(told) = told {
            log::warn!("{told}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        http::{Connection, Response, Service, Status},
        imds::{Delivery, ImdsVersion},
    };

    #[test]
    fn what_is_noticed_is_kept_by_another_thread() {
        let guests = Guests::start().unwrap();
        let instance: InstanceId = "i-one".parse().unwrap();
        let now = Now {
            monotonic: Duration::from_secs(1),
            unix: Duration::from_secs(1_795_248_000),
        };
        let undelivered = Undelivered {
            remote: "10.0.0.2:40000".parse().unwrap(),
            hop_limit: 1,
            sign: Sign::Unacknowledged,
        };
        for _ in 0..10 {
            guests.saw_undelivered(now, &instance, undelivered);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while guests.hop_limit(&instance).unacknowledged < 10 {
            assert!(Instant::now() < deadline, "{:?}", guests.hop_limit(&instance));
            thread::yield_now();
        }
        let totals = guests.totals();
        assert_eq!(
            (totals.unacknowledged, totals.time_exceeded, totals.lost),
            (10, 0, 0)
        );
        let other: InstanceId = "i-other".parse().unwrap();
        assert_eq!(guests.hop_limit(&other), hop_limit::Report::default());
    }

    /// Asks as an instance's software does that knows no tokens.
    struct Asking<'a>(&'a Guests, &'a InstanceId);

    impl Service for Asking<'_> {
        fn respond(&mut self, now: Now, request: &Request<'_>, _: &mut Response) {
            let outcome = Outcome {
                version: ImdsVersion::V1,
                status: Status::Ok,
                refusal: None,
                delivery: Delivery::Nothing,
                is_forwarded: false,
            };
            self.0
                .saw_request(now, self.1, MacAddr::default(), request, &outcome);
        }
    }

    /// Who would be refused if tokens were required is told whatever else goes on.
    #[test]
    fn of_a_request_that_does_not_fit_the_instance_is_kept() {
        let (queue, sightings) = mpsc::sync_channel(1);
        let guests = Guests {
            queue: Some(queue),
            ..Guests::default()
        };
        let now = Now {
            monotonic: Duration::ZERO,
            unix: Duration::ZERO,
        };
        let [one, other] = ["i-one", "i-other"].map(|id| id.parse().unwrap());
        for instance in [&one, &one, &other] {
            let mut connection = Connection::new(now);
            connection.handle_bytes(now, b"GET / HTTP/1.1\r\n\r\n", &mut Asking(&guests, instance));
        }
        assert_eq!(guests.totals().lost, 2);
        locked(&guests.kept).record(sightings.recv().unwrap());
        let report = guests.tokenless(&one);
        assert_eq!(
            (report.metadata_no_token, report.callers.len(), report.unlisted),
            (2, 1, 1)
        );
        let report = guests.tokenless(&other);
        assert_eq!(
            (report.metadata_no_token, report.callers.len(), report.unlisted),
            (1, 0, 1)
        );
        guests.handle_snapshot(&Snapshot::default());
        assert_eq!(guests.tokenless(&one), tokenless::Report::default());
    }

    #[test]
    fn what_does_not_fit_is_counted_as_lost() {
        let (queue, sightings) = mpsc::sync_channel(2);
        let guests = Guests {
            queue: Some(queue),
            ..Guests::default()
        };
        let instance: InstanceId = "i-one".parse().unwrap();
        let undelivered = Undelivered {
            remote: "10.0.0.2:40000".parse().unwrap(),
            hop_limit: 1,
            sign: Sign::Unacknowledged,
        };
        let now = Now {
            monotonic: Duration::ZERO,
            unix: Duration::ZERO,
        };
        for _ in 0..5 {
            guests.saw_undelivered(now, &instance, undelivered);
        }
        assert_eq!((guests.totals().lost, guests.totals().unacknowledged), (3, 5));
        drop(guests);
        let kept = Mutex::default();
        keep(&sightings, &kept);
        assert_eq!(locked(&kept).hop_limit.report(&instance).unacknowledged, 2);
    }
}
