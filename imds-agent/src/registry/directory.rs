//! The embedded registry: one JSON file per instance, role and instance profile, in three directories of the state
//! directory, read at start and watched from then on.
//!
//! A directory that is not there is a problem and not an end: it is looked for every second. One that goes away in one
//! piece takes no record with it until it is back; only files that are deleted take theirs.

mod reading;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;

use super::{
    problem::{Finding, Problem, Severity},
    record::{Kind, Rules},
    records::{FileKey, Records},
    snapshot::{Published, Snapshot},
};

/// How long a directory that is not there, or a file that cannot be read, is left alone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Room for a few hundred events in one read.
const EVENTS_BYTES: usize = 64 * 1024;

/// Events that are handled together.
const EVENTS_MAX: usize = 4096;

/// The three directories, what they hold, and who wants to know.
#[derive(Debug)]
pub struct Directory {
    inotify: Inotify,
    state: State,
}

/// The state directory cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("the state directory's {} can be neither read nor made", path.display())]
pub struct CreateError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The kernel refuses to watch files.
#[derive(Debug, thiserror::Error)]
#[error("no inotify instance is to be had (see fs.inotify.max_user_instances)")]
pub struct OpenError(#[source] io::Error);

impl Directory {
    /// Makes the directories under `state_directory` that are not there, for root alone: records hold user data. Fails if
    /// one of them cannot be read.
    pub fn create(state_directory: &Path) -> Result<(), CreateError> {
        for kind in Kind::ALL {
            let path = state_directory.join(kind.directory());
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
            let readable = made.and_then(|()| path.read_dir().map(drop));
            readable.map_err(|source| CreateError { path, source })?;
        }
        Ok(())
    }

    /// Reads all files. What is wrong with them is in [`Self::problems`].
    pub fn open(state_directory: &Path, rules: Rules) -> Result<Self, OpenError> {
        let inotify = Inotify::init().map_err(OpenError)?;
        let mut state = State {
            root: state_directory.to_owned(),
            records: Records::new(rules),
            watches: inotify.watches(),
            watched: HashMap::new(),
            absent: Kind::ALL.map(|kind| (kind, String::new())).into(),
            snapshots: watch::Sender::new(Arc::default()),
            problems: watch::Sender::new(Arc::default()),
            rules: watch::Sender::new(rules),
        };
        if let Some(snapshot) = state.handle(Batch::default()) {
            state.snapshots.send_replace(snapshot);
        }
        state.report();
        Ok(Self { inotify, state })
    }

    /// The current snapshot, and each that follows once [`Self::watch`] runs.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.state.snapshots.subscribe()
    }

    /// Where new rules are told, which hold for every record once [`Self::watch`] has read it again.
    pub fn rules(&self) -> watch::Sender<Rules> {
        self.state.rules.clone()
    }

    /// What is wrong at present, and after each change once [`Self::watch`] runs.
    pub fn problems(&self) -> watch::Receiver<Arc<[Problem]>> {
        self.state.problems.subscribe()
    }

    /// Publishes the current snapshot at once, and every later one as long as the future is polled: first to
    /// `published`, then to the receivers. The future ends only when the kernel's events can no longer be read.
    pub fn watch(self, published: Arc<Published>) -> impl Future<Output = io::Error> + Send {
        published.publish(Arc::clone(&self.state.snapshots.borrow()));
        self.follow(published)
    }

    async fn follow(self, published: Arc<Published>) -> io::Error {
        let Self { inotify, mut state } = self;
        let mut events = match inotify.into_event_stream(vec![0; EVENTS_BYTES]) {
            Ok(events) => events.ready_chunks(EVENTS_MAX),
            Err(error) => return error,
        };
        let mut rules = state.rules.subscribe();
        loop {
            let batch = tokio::select! {
                Ok(()) = rules.changed() => Batch {
                    rules: Some(*rules.borrow_and_update()),
                    ..Batch::default()
                },
                Some(events) = events.next() => match events.into_iter().collect() {
                    Ok(events) => state.batch(events),
                    Err(error) => return error,
                },
                () = tokio::time::sleep(LOOK_AGAIN), if state.has_to_look_again() => Batch::default(),
                else => return io::ErrorKind::UnexpectedEof.into(),
            };
            let publish_to = Arc::clone(&published);
            let handled = tokio::task::spawn_blocking(move || {
                if let Some(snapshot) = state.handle(batch) {
                    publish_to.publish(Arc::clone(&snapshot));
                    state.snapshots.send_replace(snapshot);
                }
                // Guests first.
                state.report();
                state
            });
            state = match handled.await {
                Ok(state) => state,
                Err(error) => return io::Error::other(error),
            };
        }
    }
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    records: Records,
    watches: Watches,
    watched: HashMap<WatchDescriptor, Kind>,
    /// Directories that are not watched, and why.
    absent: HashMap<Kind, String>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    problems: watch::Sender<Arc<[Problem]>>,
    rules: watch::Sender<Rules>,
}

/// What one read of events says.
#[derive(Default, Debug)]
struct Batch {
    /// Files, and whether the last event said that the file went away.
    touched: HashMap<FileKey, bool>,
    lost: HashSet<Kind>,
    /// The kernel dropped events.
    overflow: bool,
    /// All files are to be read again, by these.
    rules: Option<Rules>,
}

impl State {
    fn has_to_look_again(&self) -> bool {
        !self.absent.is_empty() || !self.records.unreadable().is_empty()
    }

    fn batch(&self, events: Vec<EventOwned>) -> Batch {
        let mut batch = Batch::default();
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                batch.overflow = true;
            }
            let Some(&kind) = self.watched.get(&event.wd) else {
                continue;
            };
            if event.mask.intersects(
                EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT,
            ) {
                batch.lost.insert(kind);
            }
            let Some(name) = event.name.filter(|name| is_record_name(name)) else {
                continue;
            };
            let path = self.root.join(kind.directory()).join(&name);
            // A file that is being made is read when it is closed; a link is never closed.
            if event.mask.contains(EventMask::CREATE) && !is_link(&path) {
                continue;
            }
            let gone = event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
            batch.touched.insert(FileKey { kind, name }, gone);
        }
        batch
    }

    /// Brings the records up to date; the new snapshot, if there is one.
    fn handle(&mut self, batch: Batch) -> Option<Arc<Snapshot>> {
        if batch.overflow {
            log::info!(
                "the kernel dropped file events: reading all of {} again",
                self.root.display()
            );
        }
        if let Some(rules) = batch.rules {
            self.records.set_rules(rules);
        }
        for &kind in &batch.lost {
            self.lose(kind);
        }
        let mut rescan: HashSet<Kind> = if batch.overflow || batch.rules.is_some() {
            self.watched.values().copied().collect()
        } else {
            HashSet::new()
        };
        for kind in Kind::ALL {
            if self.absent.contains_key(&kind) && self.find(kind) {
                rescan.insert(kind);
            }
        }
        let mut touched = HashSet::new();
        for (key, gone) in batch.touched {
            if !batch.lost.contains(&key.kind) {
                touched.insert(key);
            } else if gone {
                self.records.handle_removed(&key);
            }
        }
        for kind in rescan {
            match self.listing(kind) {
                Ok(names) => touched.extend(names),
                Err(error) => {
                    self.lose(kind);
                    self.absent.insert(kind, error.to_string());
                }
            }
        }
        // Nothing tells when one can be read.
        touched.extend(self.records.unreadable().iter().cloned());
        touched.retain(|key| !self.absent.contains_key(&key.kind));
        reading::read(&self.root, touched.into_iter().collect(), &mut self.records);
        self.records.commit()
    }

    fn lose(&mut self, kind: Kind) {
        let lost: Vec<_> = self.watched.extract_if(|_, watched| *watched == kind).collect();
        for (watch, _) in lost {
            // A moved directory would go on being watched in its new place; a deleted one's watch is gone already.
            let _ = self.watches.remove(watch);
        }
        self.absent.insert(kind, "was deleted or moved away".to_owned());
    }

    /// Watches a directory that was absent, if it is there now.
    fn find(&mut self, kind: Kind) -> bool {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match self.watches.add(self.root.join(kind.directory()), mask) {
            Ok(watch) => {
                self.watched.insert(watch, kind);
                self.absent.remove(&kind);
                true
            }
            Err(error) => {
                self.absent.insert(kind, error.to_string());
                false
            }
        }
    }

    /// The files that are there, and those that were.
    fn listing(&self, kind: Kind) -> io::Result<Vec<FileKey>> {
        let mut keys: Vec<FileKey> = self.records.files(kind).cloned().collect();
        for entry in self.root.join(kind.directory()).read_dir()? {
            let name = entry?.file_name();
            if is_record_name(&name) {
                keys.push(FileKey { kind, name });
            }
        }
        Ok(keys)
    }

    /// Tells of problems that came and went, once.
    fn report(&mut self) {
        let absent = self.absent.iter().map(|(kind, why)| Problem {
            severity: Severity::Error,
            file: kind.directory().into(),
            finding: Finding::whole(format!("the directory is not watched: {why}")),
        });
        let problems: Arc<[Problem]> = absent.chain(self.records.problems()).collect();
        let before = self.problems.send_replace(Arc::clone(&problems));
        let known: HashSet<&Problem> = before.iter().collect();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            log::warn!("{problem}");
        }
        let standing: HashSet<&Problem> = problems.iter().collect();
        for problem in before.iter().filter(|problem| !standing.contains(problem)) {
            log::info!("no longer: {problem}");
        }
    }
}

/// Editors' temporary and backup files begin with a dot or end otherwise.
pub(super) fn is_record_name(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".json") && !name.starts_with(b".")
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

#[cfg(test)]
mod tests;
