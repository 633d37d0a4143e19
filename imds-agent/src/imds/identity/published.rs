//! The signed documents of this host's instances, read by the request path without waiting.
//!
//! Signing takes a thousand times as long as the rest of a request, so somebody else does it ahead of time; a request
//! finds the result or does not. What it finds is for exactly the document that the request would serve: between a
//! change of the record and the new signature there is nothing, never a signature that does not verify.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::SignedIdentity;
use crate::registry::InstanceId;

/// Where one instance's signed document is to be had.
#[derive(Default, Debug)]
pub struct Slot {
    signed: ArcSwapOption<SignedIdentity>,
    is_asked: AtomicBool,
}

/// The slots of all instances.
#[derive(Default, Debug)]
pub struct Published {
    slots: ArcSwap<HashMap<InstanceId, Arc<Slot>>>,
    /// Some slot has been asked in vain since the signer last looked.
    is_asked: AtomicBool,
}

impl Published {
    /// The signatures of `document`, the current one of `instance`. When they are not made yet, they are made next.
    pub fn get(&self, instance: &InstanceId, document: &[u8]) -> Option<Arc<SignedIdentity>> {
        let slots = self.slots.load();
        let slot = slots.get(instance)?;
        let signed = slot
            .signed
            .load_full()
            .filter(|signed| *signed.document == *document);
        if signed.is_none() && !slot.is_asked.swap(true, Ordering::Relaxed) {
            self.is_asked.store(true, Ordering::Release);
        }
        signed
    }

    /// Replaces the set of slots.
    pub fn publish(&self, slots: HashMap<InstanceId, Arc<Slot>>) {
        self.slots.store(Arc::new(slots));
    }

    /// Whether there are slots to be preferred that were not when this was last called.
    pub fn take_asked(&self) -> bool {
        self.is_asked.swap(false, Ordering::Acquire)
    }
}

impl Slot {
    /// Whether a guest waits for it.
    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// Whether the signatures of `document` are here.
    pub fn holds(&self, document: &[u8]) -> bool {
        self.signed
            .load()
            .as_ref()
            .is_some_and(|signed| *signed.document == *document)
    }

    /// Puts the signatures here.
    pub fn fill(&self, signed: SignedIdentity) {
        self.signed.store(Some(Arc::new(signed)));
        self.is_asked.store(false, Ordering::Relaxed);
    }
}
