//! The audit trail: who got which role's credentials, as JSON lines in the shape of CloudTrail's events.
//!
//! Nobody waits for it. What happens goes through a bounded queue to a thread that writes; what does not fit, or cannot be
//! written because the disk is full, is counted as lost and told in the log. A file that was renamed or removed from under it is
//! made anew, so any rotation will do.

mod event;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

pub use event::{Event, Handover, assumption, exchange, handover};
use nix::fcntl::OFlag;

use crate::privilege;

/// Events that wait for the disk. At some seven hundred bytes each they take a few megabytes at most.
const QUEUE_EVENTS_MAX: usize = 4096;

/// How long the end of the agent may wait for the last events to be written.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// How often it is looked meanwhile whether a full queue has room.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

/// Where events go. Cheap to clone. The default is no trail at all.
#[derive(Clone, Default, Debug)]
pub struct Audit(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// What became of events.
#[derive(Default, Debug)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
}

enum Message {
    Event(Box<Event>),
    Flush(SyncSender<()>),
}

impl Audit {
    /// A trail in the file at `path`, which is made when there is something to write.
    pub fn start(path: &Path) -> io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(QUEUE_EVENTS_MAX);
        let counts = Arc::new(Counts::default());
        let trail = Trail {
            path: path.to_owned(),
            file: None,
            is_torn: false,
            is_failing: false,
            counts: Arc::clone(&counts),
        };
        thread::Builder::new()
            .name("imds-audit".to_owned())
            .spawn(move || {
                privilege::capabilities::give_up();
                trail.run(&messages);
            })?;
        Ok(Self(Some(Arc::new(Shared { queue, counts }))))
    }

    /// Whether anybody writes.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes an event. Never waits.
    pub fn record(&self, event: Event) {
        if let Some(shared) = &self.0
            && shared.queue.try_send(Message::Event(Box::new(event))).is_err()
        {
            shared.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was recorded so far is written, for a short while.
    pub fn flush(&self) {
        if let Some(shared) = &self.0 {
            let begun = Instant::now();
            let (done, wait) = mpsc::sync_channel(1);
            let mut message = Message::Flush(done);
            while let Err(TrySendError::Full(back)) = shared.queue.try_send(message) {
                if begun.elapsed() >= FLUSH_TIME_MAX {
                    return;
                }
                message = back;
                thread::sleep(FLUSH_LOOK);
            }
            _ = wait.recv_timeout(FLUSH_TIME_MAX.saturating_sub(begun.elapsed()));
        }
    }

    /// How many events were written.
    pub fn written(&self) -> u64 {
        let read = |shared: &Arc<Shared>| shared.counts.written.load(Ordering::Relaxed);
        self.0.as_ref().map_or(0, read)
    }

    /// How many events are in no trail, because the queue or the disk was full.
    pub fn lost(&self) -> u64 {
        let read = |shared: &Arc<Shared>| shared.counts.lost.load(Ordering::Relaxed);
        self.0.as_ref().map_or(0, read)
    }
}

/// The writing end.
struct Trail {
    path: PathBuf,
    file: Option<File>,
    /// The last line was not written whole.
    is_torn: bool,
    is_failing: bool,
    counts: Arc<Counts>,
}

impl Trail {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Flush(done) => _ = done.send(()),
                Message::Event(event) => match self.write(&event) {
                    Ok(()) => {
                        self.counts.written.fetch_add(1, Ordering::Relaxed);
                        if self.is_failing {
                            self.is_failing = false;
                            let lost = self.counts.lost.load(Ordering::Relaxed);
                            log::info!("audit trail: written again; {lost} events are lost in all");
                        }
                    }
                    Err(error) => {
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                        self.file = None;
                        if !self.is_failing {
                            self.is_failing = true;
                            log::warn!("audit trail {}: events are lost: {error}", self.path.display());
                        }
                    }
                },
            }
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = Vec::with_capacity(1024);
        if self.is_torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, event)?;
        line.push(b'\n');
        self.reopen_if_moved();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&self.path)?),
        };
        self.is_torn = true;
        file.write_all(&line)?;
        self.is_torn = false;
        Ok(())
    }

    /// Lets go of a file that is no longer the one at the path.
    fn reopen_if_moved(&mut self) {
        let here = fs::metadata(&self.path).map(|file| (file.dev(), file.ino())).ok();
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok());
        if here.is_none() || ours.map(|file| (file.dev(), file.ino())) != here {
            self.file = None;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    }
    let mut options = OpenOptions::new();
    // Not to be kept waiting by a pipe that nobody reads.
    options.create(true).append(true).mode(0o640);
    options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

#[cfg(test)]
mod tests;
