//! The signatures of this host's instances, read by the request path without waiting.
//!
//! Signing takes a thousand times as long as the rest of a request, so somebody else does it ahead of time; a request
//! finds the result or does not. What it finds is for exactly the document that the request would serve: between a
//! change of the record and the new signatures there is nothing, never a signature that does not verify.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rpds::HashTrieMapSync;

use super::{Part, Signatures};
use crate::registry::InstanceId;

/// Where one instance's signatures are to be had.
#[derive(Default, Debug)]
pub struct Slot {
    signed: ArcSwapOption<Signatures>,
    /// A guest waits for them.
    is_asked: AtomicBool,
    /// Its guest has been heard of.
    is_alive: AtomicBool,
}

/// Is told, for what concerns signatures: an instance that is to have all of them soon.
pub type Wanted = Box<dyn Fn(&InstanceId) + Send + Sync>;

/// Slots by instance. One more shares what it has with the set before it, so that taps that come one by one cost no copy of
/// all for each.
pub type Slots = HashTrieMapSync<InstanceId, Arc<Slot>>;

/// The slots of all instances whose guests can ask.
#[derive(Default)]
pub struct Published {
    slots: ArcSwap<Slots>,
    wanted: OnceLock<Wanted>,
}

impl Published {
    /// Tells `wanted` of instances from now on. It is called on the request path. The first one counts.
    pub fn tell(&self, wanted: Wanted) {
        _ = self.wanted.set(wanted);
    }

    /// The signatures of `document`, the current one of `instance`, if `part` is among them. When it is not, it is made
    /// next.
    pub fn get(&self, instance: &InstanceId, document: &[u8], part: Part) -> Option<Arc<Signatures>> {
        let slots = self.slots.load();
        let slot = slots.get(instance)?;
        let signed = slot
            .load()
            .filter(|signed| signed.have(part) && signed.are_of(document));
        if signed.is_none() && !slot.is_asked.swap(true, Ordering::Relaxed) {
            self.want(instance);
        }
        signed
    }

    /// The guest of `instance` is there: software that is about to ask for one thing after another. What takes long to sign is
    /// begun.
    pub fn shows_life(&self, instance: &InstanceId) {
        let slots = self.slots.load();
        let Some(slot) = slots.get(instance) else {
            return;
        };
        // Nearly always it is known, and then nothing is written.
        if !slot.is_alive.load(Ordering::Relaxed) && !slot.is_alive.swap(true, Ordering::Relaxed) {
            self.want(instance);
        }
    }

    /// Replaces the set of slots.
    pub fn publish(&self, slots: Slots) {
        self.slots.store(Arc::new(slots));
    }

    fn want(&self, instance: &InstanceId) {
        if let Some(wanted) = self.wanted.get() {
            wanted(instance);
        }
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(&self.slots).finish()
    }
}

impl Slot {
    /// What is here.
    pub fn load(&self) -> Option<Arc<Signatures>> {
        self.signed.load_full()
    }

    /// Puts signatures here. Who asks for another in vain from now on is told of again.
    pub fn fill(&self, signed: Signatures) {
        self.signed.store(Some(Arc::new(signed)));
        self.is_asked.store(false, Ordering::Relaxed);
    }
}
