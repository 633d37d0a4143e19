//! Signs the identity documents of all instances, ahead of the requests for them.
//!
//! A signed document takes some milliseconds, ten thousand instances therefore a minute, once per start of the
//! agent: too long for a request to wait for on a worker, too short to keep signatures on disk. So one thread signs every
//! document that is new or has changed, and takes those first that a guest has already asked for in vain: such a
//! guest is answered with 503 and finds the signature when it asks again, however many are still to be signed. Guests can
//! make it sign nothing twice.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    imds::identity::{self, IdentityKeys, Published, SignError, published::Slot},
    privilege,
    registry::{InstanceId, Snapshot, snapshot::Member},
};

/// A running signer. Dropping it ends the thread.
#[derive(Debug)]
pub struct Signer {
    inbox: Option<mpsc::Sender<Arc<Snapshot>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Signer {
    /// Starts the thread, which signs with `keys` and publishes in `published`.
    pub fn start(keys: IdentityKeys, published: Arc<Published>) -> io::Result<Self> {
        let (inbox, snapshots) = mpsc::channel();
        let queue = Queue::new(keys, published);
        let run = move || {
            privilege::capabilities::give_up();
            if let Err(error) = queue.run(&snapshots) {
                log::error!("identity documents are no longer signed: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("imds-identity".to_owned())
            .spawn(run)?;
        Ok(Self {
            inbox: Some(inbox),
            thread: Some(thread),
        })
    }

    /// The registry has changed.
    pub fn handle_snapshot(&self, snapshot: Arc<Snapshot>) {
        // A signer that failed has said so.
        _ = self.inbox.as_ref().map(|inbox| inbox.send(snapshot));
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.inbox = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the signer of identity documents panicked");
        }
    }
}

/// What is signed, and what is still to be.
struct Queue {
    keys: IdentityKeys,
    published: Arc<Published>,
    entries: HashMap<InstanceId, Entry>,
    /// May name an instance twice, or one that is gone: what needs no signature is passed over.
    pending: VecDeque<InstanceId>,
}

struct Entry {
    member: Arc<Member>,
    slot: Arc<Slot>,
}

impl Queue {
    fn new(keys: IdentityKeys, published: Arc<Published>) -> Self {
        Self {
            keys,
            published,
            entries: HashMap::new(),
            pending: VecDeque::new(),
        }
    }

    /// Until the sender of snapshots is dropped. Waits for a snapshot only when nothing is left to be signed: an instance
    /// that has been asked for in vain is always in the queue, or in a snapshot on its way.
    fn run(mut self, snapshots: &mpsc::Receiver<Arc<Snapshot>>) -> Result<(), SignError> {
        loop {
            let snapshot = if self.pending.is_empty() {
                snapshots.recv().map_err(|_| mpsc::TryRecvError::Disconnected)
            } else {
                snapshots.try_recv()
            };
            match snapshot {
                Ok(snapshot) => self.handle_snapshot(&snapshot),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
            self.sign_next()?;
        }
    }

    fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        let before = self.entries.len();
        self.entries.retain(|id, _| snapshot.instances.contains_key(id));
        let mut is_other_set = self.entries.len() != before;
        for (id, member) in &snapshot.instances {
            match self.entries.get_mut(id) {
                // The registry keeps what has not changed, so most of a snapshot costs a comparison of addresses.
                Some(entry) if Arc::ptr_eq(&entry.member, member) => continue,
                Some(entry) => entry.member = Arc::clone(member),
                None => {
                    is_other_set = true;
                    let entry = Entry {
                        member: Arc::clone(member),
                        slot: Arc::default(),
                    };
                    self.entries.insert(id.clone(), entry);
                }
            }
            self.pending.push_back(id.clone());
        }
        if is_other_set {
            let slots = self
                .entries
                .iter()
                .map(|(id, entry)| (id.clone(), Arc::clone(&entry.slot)));
            self.published.publish(slots.collect());
        }
    }

    fn sign_next(&mut self) -> Result<(), SignError> {
        if self.published.take_asked() {
            let is_not_asked =
                |id: &InstanceId| self.entries.get(id).is_none_or(|entry| !entry.slot.is_asked());
            // Stable: else in the order in which they came.
            self.pending.make_contiguous().sort_by_key(is_not_asked);
        }
        while let Some(id) = self.pending.pop_front() {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            let document = identity::document(&entry.member);
            if !entry.slot.holds(&document) {
                entry.slot.fill(identity::sign(&self.keys, &document)?);
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
