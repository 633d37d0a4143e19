//! The taps of other network namespaces: programs for each, and what is left where nobody gets any more.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use imds_ebpf::abi::{NamespaceNumber, TapIndex};

use super::{
    super::{
        Hook, filters,
        hook::{self, HookError},
        namespace::Namespace,
        object::Loader,
        pins::Pins,
        programs::Programs,
    },
    Classifier, LoadError, TapOperationError,
};

/// What another network namespace's taps have. The lock lends the programs to the thread that goes there. They are loaded when one of
/// the taps needs them, because that takes the kernel some ten milliseconds.
pub(super) struct Post {
    pub(super) namespace: Arc<Namespace>,
    programs: Arc<Mutex<Option<Programs>>>,
}

impl Post {
    /// Has something done there, with the programs for there.
    pub(super) fn visit<R: Send + 'static>(
        &self,
        loader: &Arc<Mutex<Loader>>,
        hook: Hook,
        pins: &Arc<Pins>,
        work: impl FnOnce(&mut Programs, &Pins) -> Result<R, HookError> + Send + 'static,
    ) -> Result<R, HookError> {
        let (programs, loader, pins) = (Arc::clone(&self.programs), Arc::clone(loader), Arc::clone(pins));
        let number = self.namespace.number();
        let done = self.namespace.visit(move || {
            let mut programs = lock(&programs);
            let loaded = match programs.take() {
                Some(loaded) => loaded,
                None => load(&loader, number, hook)?,
            };
            work(programs.insert(loaded), &pins)
        });
        done.map_err(HookError::Away)?
    }
}

impl Classifier {
    /// Serves the taps of another network namespace as well, and adopts what an earlier agent left there. Programs that go on with
    /// the same maps stay for now, because there may be hundreds of namespaces whose guests wait: [`Self::refresh_next`].
    pub fn open_namespace(&mut self, namespace: &Arc<Namespace>) -> Result<(), LoadError> {
        let candidates = self.add_post(namespace)?;
        for tap in candidates {
            self.left_behind.remove(&tap);
            if self.goes_on(tap) {
                self.attached.insert(tap);
                self.stale.insert(tap);
            } else {
                self.adopt_or_note(tap);
            }
        }
        Ok(())
    }

    /// Whether there are programs that wait to be replaced.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Replaces an earlier agent's programs on one more tap.
    pub fn refresh_next(&mut self) {
        // A device that went meanwhile, or came in its place, is told of.
        if let Some(tap) = self.stale.pop_first().filter(|tap| self.goes_on(*tap)) {
            self.adopt_or_note(tap);
        }
    }

    /// Serves the taps of another network namespace as well, and leaves alone what an earlier agent left there. Returns the taps of
    /// which anything may be left.
    pub(in crate::datapath) fn add_post(
        &mut self,
        namespace: &Arc<Namespace>,
    ) -> Result<BTreeSet<TapIndex>, LoadError> {
        let (hook, number) = (self.hook(), namespace.number());
        let mut candidates: BTreeSet<_> = self.left_behind.iter().copied().collect();
        candidates.retain(|tap| tap.namespace() == number);
        if hook == Hook::Clsact {
            let taps = namespace.visit(filters::taps).map_err(LoadError::Away)?;
            let taps = taps.map_err(LoadError::Filters)?.into_iter();
            candidates.extend(taps.map(|tap| TapIndex::within(number, tap.ifindex())));
        }
        let post = Post {
            namespace: Arc::clone(namespace),
            programs: Arc::default(),
        };
        self.posts.insert(number, post);
        Ok(candidates)
    }

    /// Lets go of another network namespace, which may be no more. What hangs on its taps from here on stays until they are
    /// detached, and then for as long as the kernel has them: nobody gets there any more to take it off where it takes that.
    pub fn close_namespace(&mut self, number: NamespaceNumber) {
        self.posts.remove(&number);
    }

    /// The same network namespace goes by another name from here on.
    pub fn rename_namespace(&mut self, namespace: &Arc<Namespace>) {
        if let Some(post) = self.posts.get_mut(&namespace.number()) {
            post.namespace = Arc::clone(namespace);
        }
    }

    /// The taps of other network namespaces on which the classifier was left, and may hang still.
    pub fn left_behind(&self) -> impl Iterator<Item = TapIndex> {
        self.left_behind.iter().copied()
    }

    /// Clears away what is pinned of taps that were left behind and are no more, but for those in namespaces that will be opened.
    /// What there is of the others is nobody's.
    pub fn settle_left_behind(&mut self, waiting: &BTreeSet<NamespaceNumber>) {
        let mut left_behind = self.left_behind.clone();
        left_behind.retain(|tap| !waiting.contains(&tap.namespace()));
        for tap in left_behind {
            let settled = self.forget(tap).map_err(TapOperationError::from);
            match settled.and_then(|()| Ok(hook::forget_if_gone(tap, &self.pins)?)) {
                Ok(true) => drop(self.left_behind.remove(&tap)),
                Ok(false) => {}
                Err(error) => log::debug!("cannot clear away what is left of tap {tap}: {error}"),
            }
        }
    }

    /// Takes the classifier off those of the taps that were left behind, as far as it hangs on them by what is pinned, whose namespaces
    /// are none of the agent's business any more.
    pub fn take_off_left_behind(&mut self, is_unselected: impl Fn(NamespaceNumber) -> bool) {
        let mut left_behind = self.left_behind.clone();
        left_behind.retain(|tap| is_unselected(tap.namespace()));
        for tap in left_behind {
            self.left_behind.remove(&tap);
            let forgotten = self.forget(tap).map_err(TapOperationError::from);
            if let Err(error) = forgotten.and_then(|()| Ok(hook::take_links_off(tap, &self.pins)?)) {
                log::warn!("cannot take the classifier off tap {tap}: {error}");
            }
        }
    }

    /// Whether programs of an earlier agent hang on a tap whose maps are those of this one: it has counters in them.
    pub(super) fn goes_on(&self, tap: TapIndex) -> bool {
        let Some(post) = self.posts.get(&tap.namespace()) else {
            return false;
        };
        let (hook, pins) = (self.hook(), Arc::clone(&self.pins));
        let is_on = || post.namespace.visit(move || hook.is_on(pins.root(), tap));
        lock(&self.loader).goes_on()
            && self.counters.get(&tap.0, 0).is_ok()
            && matches!(is_on(), Ok(Ok(true)))
    }
}

fn load(loader: &Mutex<Loader>, number: NamespaceNumber, hook: Hook) -> Result<Programs, HookError> {
    let ebpf = lock(loader).load_for(number);
    let loaded = ebpf.and_then(|ebpf| Programs::load(ebpf, hook));
    loaded.map_err(|error| HookError::Load(error.into()))
}

/// Whoever wants it would wait for the errand in any case. One that panicked has left nothing half done that the next does not look at
/// first.
fn lock<T>(lent: &Mutex<T>) -> MutexGuard<'_, T> {
    lent.lock().unwrap_or_else(PoisonError::into_inner)
}
