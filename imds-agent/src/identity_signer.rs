//! Signs the identity documents of the instances whose guests can ask for them, ahead of the requests for them.
//!
//! A guest can ask once its tap is bound, which a hypervisor makes before it starts the guest: an instance is signed for
//! from then on, and a record without a tap costs nothing. Two RSA signatures take 1.2 ms, one of DSA six, and all that
//! it is for is `dsa2048`, which hardly anybody but cloud-init asks for, at boot. So RSA is signed for everybody;
//! DSA for guests that boot now, since their tap or their record is new, and for those that are heard of, which get a session
//! token or ask without one before they ask for a signature. After a restart of the agent thousands of guests that run
//! on thus cost some seconds, and hardly one of them waits.
//!
//! One thread signs, at the lowest priority. It takes those first that a guest has asked for in vain: such a guest is answered
//! with 503 and finds the signature when it asks again, however many are still to be signed. Guests can make it sign nothing
//! twice.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    imds::identity::{
        self, IdentityKeys, Part, Published, SignError, Signatures,
        published::{Slot, Slots},
    },
    privilege,
    registry::{InstanceId, Snapshot, snapshot::Member},
};

/// A running signer. Dropping it ends the thread.
#[derive(Debug)]
pub struct Signer {
    inbox: mpsc::Sender<Told>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a signer is told.
#[derive(Debug)]
enum Told {
    Snapshot(Arc<Snapshot>),
    Bound(InstanceId),
    Listed,
    /// Its guest is there, or has asked in vain.
    Wanted(InstanceId),
    End,
}

impl Signer {
    /// Starts the thread, which signs with `keys` and publishes in `published`.
    pub fn start(keys: IdentityKeys, published: Arc<Published>) -> io::Result<Self> {
        let (inbox, told) = mpsc::channel();
        let wanted = inbox.clone();
        published.tell(Box::new(move |instance| {
            // A signer that failed has said so.
            _ = wanted.send(Told::Wanted(instance.clone()));
        }));
        let queue = Queue::new(keys, published);
        let run = move || {
            privilege::capabilities::give_up();
            give_way();
            if let Err(error) = queue.run(&told) {
                log::error!("identity documents are no longer signed: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("imds-identity".to_owned())
            .spawn(run)?;
        Ok(Self {
            inbox,
            thread: Some(thread),
        })
    }

    /// The registry has changed.
    pub fn handle_snapshot(&self, snapshot: Arc<Snapshot>) {
        self.tell(Told::Snapshot(snapshot));
    }

    /// An instance of the last snapshot has a tap.
    pub fn handle_bound(&self, instance: InstanceId) {
        self.tell(Told::Bound(instance));
    }

    /// Every tap was told that was there when the agent began: guests of the ones to come boot now.
    pub fn handle_listed(&self) {
        self.tell(Told::Listed);
    }

    fn tell(&self, told: Told) {
        // A signer that failed has said so.
        _ = self.inbox.send(told);
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.tell(Told::End);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the signer of identity documents panicked");
        }
    }
}

/// Has everybody else go first on the processor, of whom all wait for less than a signature takes. Of the calling thread alone,
/// as Linux has it (setpriority(2), "C library/kernel differences").
fn give_way() {
    const LOWEST: i32 = 19;
    if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
        log::debug!("identity documents are signed at the priority of everything else: {error}");
    }
}

/// What is signed, and what is still to be.
struct Queue {
    keys: IdentityKeys,
    published: Arc<Published>,
    snapshot: Arc<Snapshot>,
    /// The instances that have, or had, a tap.
    entries: HashMap<InstanceId, Entry>,
    /// Their slots.
    slots: Slots,
    /// Whether the set of them is another than the published one.
    is_other_set: bool,
    is_listed: bool,
    pending: Pending,
}

struct Entry {
    member: Arc<Member>,
    slot: Arc<Slot>,
    /// Whether `dsa2048` is made too.
    with_dsa2048: bool,
}

/// Whose turn it is. May name an instance twice, or one that is gone: what needs no signature is passed over.
#[derive(Default)]
struct Pending {
    /// A guest waits.
    wanted: VecDeque<InstanceId>,
    rsa: VecDeque<InstanceId>,
    /// After everybody's RSA.
    dsa: VecDeque<InstanceId>,
}

impl Pending {
    /// The next instance, and whether all of its signatures are to be made at once.
    fn pop(&mut self) -> Option<(InstanceId, bool)> {
        let wanted = self.wanted.pop_front().map(|id| (id, true));
        let rsa = || Some((self.rsa.pop_front()?, false));
        wanted
            .or_else(rsa)
            .or_else(|| Some((self.dsa.pop_front()?, true)))
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.rsa.is_empty() && self.dsa.is_empty()
    }
}

impl Queue {
    fn new(keys: IdentityKeys, published: Arc<Published>) -> Self {
        Self {
            keys,
            published,
            snapshot: Arc::default(),
            entries: HashMap::new(),
            slots: Slots::default(),
            is_other_set: false,
            is_listed: false,
            pending: Pending::default(),
        }
    }

    /// Until it is told to end. Waits only when nothing is left to be signed.
    fn run(mut self, inbox: &mpsc::Receiver<Told>) -> Result<(), SignError> {
        loop {
            let first = if self.pending.is_empty() {
                inbox.recv().ok()
            } else {
                inbox.try_recv().ok()
            };
            // All that there is to be told before the next signature: a guest that waits goes first.
            for told in first.into_iter().chain(inbox.try_iter()) {
                match told {
                    Told::Snapshot(snapshot) => self.handle_snapshot(snapshot),
                    Told::Bound(instance) => self.handle_bound(&instance),
                    Told::Listed => self.is_listed = true,
                    Told::Wanted(instance) => self.handle_wanted(instance),
                    Told::End => return Ok(()),
                }
            }
            self.publish();
            self.sign_next()?;
        }
    }

    fn handle_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.entries.retain(|id, entry| {
            let Some(member) = snapshot.instances.get(id) else {
                self.is_other_set |= self.slots.remove_mut(id);
                return false;
            };
            // The registry keeps what has not changed, so most of a snapshot costs a comparison of addresses.
            if !Arc::ptr_eq(&entry.member, member) {
                entry.member = Arc::clone(member);
                self.pending.rsa.push_back(id.clone());
            }
            true
        });
        self.snapshot = snapshot;
    }

    fn handle_bound(&mut self, instance: &InstanceId) {
        let Some((id, member)) = self.snapshot.instances.get_key_value(instance) else {
            return;
        };
        let with_dsa2048 = self.is_listed;
        let entry = self.entries.entry(id.clone()).or_insert_with(|| {
            let slot = Arc::<Slot>::default();
            self.slots.insert_mut(id.clone(), Arc::clone(&slot));
            self.is_other_set = true;
            Entry {
                member: Arc::clone(member),
                slot,
                with_dsa2048,
            }
        });
        entry.with_dsa2048 |= with_dsa2048;
        self.pending.rsa.push_back(id.clone());
    }

    fn handle_wanted(&mut self, instance: InstanceId) {
        if let Some(entry) = self.entries.get_mut(&instance) {
            entry.with_dsa2048 = true;
            self.pending.wanted.push_back(instance);
        }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.is_other_set) {
            self.published.publish(self.slots.clone());
        }
    }

    /// Makes what is missing of the next instance that lacks anything.
    fn sign_next(&mut self) -> Result<(), SignError> {
        while let Some((id, is_whole)) = self.pending.pop() {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            let document = identity::document(&entry.member);
            let signed = entry.slot.load().filter(|signed| signed.are_of(&document));
            let has_rsa = signed.is_some();
            let signed = match signed {
                Some(signed) => Signatures::clone(&signed),
                None => Signatures::new(&self.keys, &document)?,
            };
            let lacks_dsa = entry.with_dsa2048 && !signed.have(Part::Dsa2048);
            if !has_rsa {
                entry.slot.fill(signed.clone());
            }
            if lacks_dsa && is_whole {
                entry.slot.fill(signed.with_dsa2048(&self.keys)?);
                return Ok(());
            }
            if lacks_dsa {
                self.pending.dsa.push_back(id);
            }
            if !has_rsa {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
