//! The workers, who serves which tap, and when they begin: once they can answer, so that a guest that asks while agents change
//! gets what it got from the last one, a moment later, and not that it should ask again. Frames wait in the rings until then.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use imds_ebpf::abi::{NamespaceNumber, TapIndex, WorkerNumber};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout_at,
};

use super::{assignment::Assignment, namespaces::Sockets};
use crate::{
    registry::InstanceId,
    worker::{Command, Ended, Handle, Usage, Worker},
};

/// How long after all taps were told the first role credentials are waited for: half of the second that clients wait for an
/// answer.
const FIRST_SETS_WITHIN: Duration = Duration::from_millis(500);

/// The workers, begun or not, each in the place of its number.
#[derive(Debug)]
pub struct Work {
    assignment: Assignment,
    /// The workers that have not begun, and what each will be told then.
    waiting: Vec<(Worker, Vec<Command>)>,
    /// The workers that have.
    handles: Vec<Handle>,
    ended: Vec<Ended>,
    /// When the first credentials are no longer waited for, once all taps were told.
    begins_by: Option<Instant>,
    /// Is notified when they may be there.
    sets_rest: Arc<Notify>,
}

impl Work {
    /// With workers that begin later, where the last agent assigned taps, and what is notified when the first credentials may
    /// be there.
    pub fn new(workers: Vec<Worker>, earlier: &[(TapIndex, WorkerNumber)], sets_rest: Arc<Notify>) -> Self {
        Self {
            assignment: Assignment::new(workers.len(), earlier),
            waiting: workers.into_iter().map(|worker| (worker, Vec::new())).collect(),
            handles: Vec::new(),
            ended: Vec::new(),
            begins_by: None,
            sets_rest,
        }
    }

    /// Has a worker serve the tap as `instance`'s, and says which.
    pub fn serve(&mut self, tap: TapIndex, instance: InstanceId) -> WorkerNumber {
        let worker = self.assignment.assign(tap);
        self.tell(worker, Command::Serve(tap, instance));
        worker
    }

    /// Which worker serves the tap, if any does.
    pub fn worker_of(&self, tap: TapIndex) -> Option<WorkerNumber> {
        self.assignment.worker_of(tap)
    }

    /// Has nobody serve the tap.
    pub fn forget(&mut self, tap: TapIndex) {
        if let Some(worker) = self.assignment.release(tap) {
            self.tell(worker, Command::Forget(tap));
        }
    }

    /// Gives each worker its way to the taps of another network namespace.
    pub fn open_namespace(&mut self, namespace: NamespaceNumber, sockets: Sockets) {
        for (worker, socket) in (0..).map(WorkerNumber).zip(sockets) {
            self.tell(worker, Command::OpenNamespace(namespace, socket));
        }
    }

    /// Has all workers let go of it.
    pub fn close_namespace(&mut self, namespace: NamespaceNumber) {
        let workers = self.handles.len().max(self.waiting.len());
        for worker in (0..).map(WorkerNumber).take(workers) {
            self.tell(worker, Command::CloseNamespace(namespace));
        }
    }

    /// Asks all workers that have begun what taps use of their limits.
    pub fn ask_usage(&self) -> Vec<oneshot::Receiver<Usage>> {
        let ask = |worker: &Handle| {
            let (asker, told) = oneshot::channel();
            worker.tell(Command::TellUsage(asker));
            told
        };
        self.handles.iter().map(ask).collect()
    }

    /// All taps were told (again).
    pub fn handle_listed(&mut self) {
        self.begins_by = Some(Instant::now() + FIRST_SETS_WITHIN);
    }

    /// Begins if the time has come, and says whether all are at work from here on.
    pub fn begin_if(&mut self, has_first_sets: impl FnOnce() -> bool) -> io::Result<bool> {
        let Some(by) = self.begins_by else {
            return Ok(false);
        };
        if Instant::now() < by && !has_first_sets() {
            return Ok(false);
        }
        self.begins_by = None;
        for (number, (worker, told)) in self.waiting.drain(..).enumerate() {
            let (handle, ended) = worker.start(number, told)?;
            self.handles.push(handle);
            self.ended.push(ended);
        }
        Ok(true)
    }

    /// Returns true when a worker has ended, whatever ended it, and false when it should be looked again whether they may
    /// begin.
    pub async fn changed(&mut self) -> bool {
        if let Some(by) = self.begins_by {
            // Either way it is time to look.
            _ = timeout_at(by.into(), self.sets_rest.notified()).await;
            return false;
        }
        let one_ended = poll_fn(|context| {
            let mut ended = self.ended.iter_mut();
            if ended.any(|ended| Pin::new(ended).poll(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        one_ended.await;
        true
    }

    /// Ends all workers and waits for them.
    pub fn stop(self) {
        for worker in &self.handles {
            worker.tell(Command::Stop);
        }
        for worker in self.handles {
            worker.stop();
        }
    }

    /// Tells a worker something, now or before its first frame.
    fn tell(&mut self, WorkerNumber(number): WorkerNumber, command: Command) {
        let number = usize::from(number);
        if let Some(worker) = self.handles.get(number) {
            worker.tell(command);
        } else if let Some((_, told)) = self.waiting.get_mut(number) {
            told.push(command);
        }
    }
}
