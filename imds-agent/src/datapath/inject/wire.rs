//! In the kernel's place, for tests: a wire that takes every frame, and has the injector panic when it is told to.

use std::{
    panic,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
};

use imds_ebpf::abi::TapIndex;

/// The test's end.
#[derive(Debug)]
pub struct Wire {
    /// What was sent, and to which tap.
    pub frames: Receiver<(TapIndex, Vec<u8>)>,
    panics: Panics,
}

/// The injector's end.
#[derive(Debug)]
pub(super) struct End {
    frames: Sender<(TapIndex, Vec<u8>)>,
    panics: Panics,
}

/// What the injector is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// It queues a frame for this tap, as a stack says.
    Queue(TapIndex),
    /// It sends what is queued.
    Send,
}

type Panics = Arc<Mutex<Option<Doing>>>;

/// Both ends.
pub(super) fn wire() -> (End, Wire) {
    let (send, receive) = mpsc::channel();
    let end = End {
        frames: send,
        panics: Arc::default(),
    };
    let wire = Wire {
        frames: receive,
        panics: Arc::clone(&end.panics),
    };
    (end, wire)
}

impl Wire {
    /// Has the injector panic the next time that it does this, and never again.
    pub fn panic_at(&self, doing: Doing) {
        *self.panics.lock().unwrap_or_else(PoisonError::into_inner) = Some(doing);
    }
}

impl End {
    /// Panics if that is planned, without a word.
    pub(super) fn pass(&self, doing: Doing) {
        let planned = self
            .panics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|planned| *planned == doing);
        if planned.is_some() {
            panic::resume_unwind(Box::new("as planned"));
        }
    }

    /// Takes a frame.
    pub(super) fn take(&self, tap: TapIndex, frame: &[u8]) {
        // A test that is over hears of nothing.
        let _ = self.frames.send((tap, frame.to_vec()));
    }
}
