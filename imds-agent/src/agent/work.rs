//! The worker and when it begins: once it can answer, so that a guest that asks while agents change gets what it got from
//! the last one, a moment later, and not that it should ask again. Frames wait in the ring until then.

use std::{
    future::pending,
    io,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::worker::{Command, Ended, Handle, Usage, Worker};

/// How long after all taps were told the first role credentials are waited for: half of the second that clients wait for an
/// answer.
const FIRST_SETS_WITHIN: Duration = Duration::from_millis(500);

/// How often it is looked whether they are there.
const LOOK: Duration = Duration::from_millis(2);

/// The worker, begun or not.
#[derive(Debug)]
pub struct Work {
    /// The worker that has not begun, and what it will be told then.
    waiting: Option<Worker>,
    told: Vec<Command>,
    /// The worker that has.
    handle: Option<Handle>,
    ended: Option<Ended>,
    /// When the first credentials are no longer waited for, once all taps were told.
    begins_by: Option<Instant>,
}

impl Work {
    /// With a worker that begins later.
    pub fn new(worker: Worker) -> Self {
        Self {
            waiting: Some(worker),
            told: Vec::new(),
            handle: None,
            ended: None,
            begins_by: None,
        }
    }

    /// Tells the worker something, now or before its first frame.
    pub fn tell(&mut self, command: Command) {
        match &self.handle {
            Some(worker) => worker.tell(command),
            None => self.told.push(command),
        }
    }

    /// Asks the worker what taps use of their limits, if it has begun.
    pub fn ask_usage(&self) -> Vec<oneshot::Receiver<Usage>> {
        let ask = |worker: &Handle| {
            let (asker, told) = oneshot::channel();
            worker.tell(Command::TellUsage(asker));
            told
        };
        self.handle.iter().map(ask).collect()
    }

    /// All taps were told (again).
    pub fn handle_listed(&mut self) {
        self.begins_by = Some(Instant::now() + FIRST_SETS_WITHIN);
    }

    /// Begins if the time has come, and says whether all is at work from here on.
    pub fn begin_if(&mut self, has_first_sets: impl FnOnce() -> bool) -> io::Result<bool> {
        let Some(by) = self.begins_by else {
            return Ok(false);
        };
        if Instant::now() < by && !has_first_sets() {
            return Ok(false);
        }
        self.begins_by = None;
        if let Some(worker) = self.waiting.take() {
            let (handle, ended) = worker.start(0, std::mem::take(&mut self.told))?;
            (self.handle, self.ended) = (Some(handle), Some(ended));
        }
        Ok(true)
    }

    /// Returns true when the worker has ended, whatever ended it, and false when it should be looked again whether it may
    /// begin.
    pub async fn changed(&mut self) -> bool {
        match (&mut self.ended, self.begins_by) {
            (_, Some(_)) => {
                tokio::time::sleep(LOOK).await;
                false
            }
            (Some(ended), None) => {
                let _ = ended.await;
                true
            }
            (None, None) => pending().await,
        }
    }

    /// Ends the worker and waits for it.
    pub fn stop(self) {
        if let Some(worker) = self.handle {
            worker.stop();
        }
    }
}
