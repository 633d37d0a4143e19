//! Keeps every role session supplied: runs what [`Schedule`] says is due, and publishes what comes of it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{Notify, watch},
    task::{Id, JoinError, JoinSet},
};

use super::{
    FetchError, Published, RoleCredentials, RoleSessionRequest, Source,
    health::Event,
    schedule::{Kind, Schedule, Ticket},
    totals::{FetchOutcome, Totals},
};
use crate::{now::Now, registry::Snapshot};

/// How long a step of the wall clock may go unnoticed.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

/// Drives the schedule with real clocks and a real source.
pub struct Refresher {
    source: Arc<dyn Source>,
    published: Arc<Published>,
    schedule: Schedule<StdRng>,
    started: Instant,
    fetches: JoinSet<Outcome>,
    tickets: HashMap<Id, (Ticket, Arc<RoleSessionRequest>)>,
    watch: Option<Watch>,
    totals: Arc<Totals>,
    rests: Arc<Notify>,
}

/// A source was asked for a set, and this is what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Assumption<'a> {
    /// When the answer was there.
    pub at: Timestamp,
    /// For what it was asked.
    pub request: &'a RoleSessionRequest,
    /// Whether the session had a set already.
    pub is_refresh: bool,
    /// The answer.
    pub outcome: &'a Result<RoleCredentials, FetchError>,
}

/// Is told of every answer.
pub type Watch = Box<dyn Fn(&Assumption<'_>) + Send + Sync>;

type Outcome = Result<RoleCredentials, FetchError>;

impl Refresher {
    /// Publishes to `published` what `source` gives for sessions of `kind`. Sets are asked to live `duration_seconds`.
    pub fn new(
        kind: Kind,
        source: Arc<dyn Source>,
        published: Arc<Published>,
        duration_seconds: u32,
    ) -> Self {
        Self {
            source,
            published,
            schedule: Schedule::new(kind, duration_seconds, StdRng::from_rng(&mut rand::rng())),
            started: Instant::now(),
            fetches: JoinSet::new(),
            tickets: HashMap::new(),
            watch: None,
            totals: Arc::default(),
            rests: Arc::default(),
        }
    }

    /// Tells `watch` of everything that a source answers.
    pub fn watched_by(self, watch: Watch) -> Self {
        Self {
            watch: Some(watch),
            ..self
        }
    }

    /// What is counted, to be read at any time.
    pub fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.totals)
    }

    /// Is notified whenever nothing is being fetched (any more): one who waits for the first sets looks then whether they are
    /// there.
    pub fn rests(&self) -> Arc<Notify> {
        Arc::clone(&self.rests)
    }

    /// Follows `snapshots` until their sender is gone. Fetches that are under way when the future is dropped are dropped with it.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        self.handle_snapshot(&snapshot);
        loop {
            self.begin_fetches();
            if self.fetches.is_empty() {
                self.rests.notify_one();
            }
            let wait = self.schedule.poll_timeout().map_or(CLOCK_LOOK, |due| {
                due.saturating_sub(self.started.elapsed()).min(CLOCK_LOOK)
            });
            tokio::select! {
                Some(joined) = self.fetches.join_next_with_id() => self.handle_joined(joined),
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.handle_snapshot(&snapshot);
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        if self.schedule.handle_snapshot(self.now(), snapshot) {
            self.published.publish(self.schedule.sessions());
        }
        self.totals.set_troubles(self.schedule.troubles());
    }

    fn begin_fetches(&mut self) {
        while let Some((ticket, request)) = self.schedule.poll_fetch(self.now()) {
            let source = Arc::clone(&self.source);
            let request = Arc::new(request);
            let asked = Arc::clone(&request);
            let task = self.fetches.spawn(async move { source.fetch(&asked).await });
            self.tickets.insert(task.id(), (ticket, request));
        }
    }

    fn handle_joined(&mut self, joined: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match joined {
            Ok(joined) => joined,
            Err(error) => (
                error.id(),
                Err(FetchError::Unavailable("the fetch was aborted".to_owned())),
            ),
        };
        let Some((ticket, request)) = self.tickets.remove(&id) else {
            return;
        };
        let now = self.now();
        if let Some(watch) = &self.watch {
            let at = now.timestamp();
            watch(&Assumption {
                at,
                request: &request,
                is_refresh: self.schedule.has_set(now, &ticket),
                outcome: &outcome,
            });
        }
        self.totals
            .count(self.source.kind(&request.role), FetchOutcome::of(&outcome));
        let event = self.schedule.handle_fetched(now, &ticket, outcome);
        self.totals.set_troubles(self.schedule.troubles());
        match event {
            None => {}
            Some(Event::Failing { role, why }) => {
                log::warn!("credentials of {role}: the source fails: {why}");
            }
            Some(Event::Refused { role, why }) => {
                log::warn!("credentials of {role}: the role is refused: {why}");
            }
            Some(Event::Recovered { role }) => {
                log::info!("credentials of {role}: every session is supplied again");
            }
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            monotonic: self.started.elapsed(),
            unix,
        }
    }
}

#[cfg(test)]
mod tests;
