//! Loads, attaches and adopts the classifier, binds taps, reads counters.
//!
//! The classifier outlives the agent: its maps and links are pinned. What a starting agent finds there it goes on with, so
//! that counters count on, bound taps stay bound, and no frame for the address slips by:
//! 1. maps of the same layout are used again, others replaced;
//! 2. the program is loaded anew and takes the old one's place on every tap that is still there, atomically;
//! 3. what belongs to a tap that is gone is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    mem::size_of,
    os::fd::BorrowedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use aya::{
    maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use imds_ebpf::{
    abi::{COUNTERS, NamespaceNumber, TAPS_MAX, TapBinding, TapCounters, TapIndex},
    bucket,
};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

mod elsewhere;

use self::elsewhere::Post;
pub use super::object::LoadError;
use super::{
    Counters, DetachError, Hook, PuntRing, detach, filters,
    hook::{self, Direction, HookError},
    namespace::Namespaces,
    object::{self, Loader, Readers},
    pins::{Pins, PinsError},
    programs::Programs,
    tap::{self, TapError},
};

/// The classifier cannot be attached, or is and has no room for what it needs to know of the tap.
#[derive(Debug, Error)]
#[error("cannot have the classifier serve tap {tap}")]
pub struct AttachError {
    /// The tap's name and index.
    pub tap: String,
    /// Why not.
    #[source]
    pub source: TapOperationError,
}

/// What attaching and detaching can fail at.
#[derive(Debug, Error)]
pub enum TapOperationError {
    /// The hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The maps take nothing more. The tap is dark, for it has no binding.
    #[error(
        "its metadata traffic is dropped and not counted: the maps have room for {TAPS_MAX} taps and no more"
    )]
    Full,
    /// The tap's entries in the maps.
    #[error("cannot change the classifier's maps")]
    Maps(#[source] MapError),
}

impl From<MapError> for TapOperationError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::ArgumentListTooLong => {
                Self::Full
            }
            error => Self::Maps(error),
        }
    }
}

/// A tap's binding cannot be changed or read.
#[derive(Debug, Error)]
#[error("cannot change or read what is bound to tap {tap}")]
pub struct BindError {
    /// The tap's name and index.
    pub tap: String,
    /// Why not.
    #[source]
    pub source: MapError,
}

/// A tap's counters cannot be read.
#[derive(Debug, Error)]
#[error("cannot read the counters of tap {tap}")]
pub struct CountersError {
    /// The tap's name and index.
    pub tap: String,
    /// Why not. A tap that the classifier is not attached to has none.
    #[source]
    pub source: MapError,
}

/// The loaded classifier. Dropping it leaves it on its taps, where metadata traffic is then dropped or piles up in the
/// ring, and never falls through to the network.
pub struct Classifier {
    loader: Arc<Mutex<Loader>>,
    programs: Programs,
    /// For the taps of other network namespaces.
    posts: BTreeMap<NamespaceNumber, Post>,
    taps: HashMap<MapData, u64, [u8; size_of::<TapBinding>()]>,
    counters: PerCpuHashMap<MapData, u64, TapCounters>,
    buckets: HashMap<MapData, u64, u64>,
    rings: Vec<PuntRing>,
    attached: BTreeSet<TapIndex>,
    /// Taps of other network namespaces, out of sight, on which it may hang.
    left_behind: BTreeSet<TapIndex>,
    /// Attached taps of other network namespaces on which an earlier agent's programs go on, until there is time to replace them.
    stale: BTreeSet<TapIndex>,
    pins: Arc<Pins>,
}

impl Classifier {
    /// Loads the classifier for so many workers, pinned under `root`, and adopts what an earlier agent left there. The taps
    /// are those of the calling thread's network namespace.
    pub fn load_for(root: &Path, workers: usize) -> Result<Self, LoadError> {
        Self::load_and_adopt(root, Hook::of_this_kernel()?, workers)
    }

    /// The same for one worker.
    pub fn load(root: &Path) -> Result<Self, LoadError> {
        Self::load_for(root, 1)
    }

    /// Like [`Self::load`], on a kind of hook that need not be the kernel's best.
    pub fn load_on(root: &Path, hook: Hook) -> Result<Self, LoadError> {
        Self::load_and_adopt(root, hook, 1)
    }

    fn load_and_adopt(root: &Path, hook: Hook, workers: usize) -> Result<Self, LoadError> {
        let mut classifier = Self::load_with(Pins::open(root)?, hook, Readers::Workers(workers))?;
        classifier.adopt()?;
        Ok(classifier)
    }

    /// Loads the classifier and leaves alone what an earlier agent left, of whatever version. Nothing is read of its rings.
    pub(super) fn load_beside(pins: Pins, hook: Hook) -> Result<Self, LoadError> {
        Self::load_with(pins, hook, Readers::Nobody)
    }

    fn load_with(pins: Pins, hook: Hook, readers: Readers) -> Result<Self, LoadError> {
        let (loader, mut ebpf) = Loader::load(&pins, readers)?;
        let taps = object::take_map(&mut ebpf, "TAPS")?.try_into()?;
        let counters = object::take_map(&mut ebpf, "COUNTERS")?.try_into()?;
        let buckets = object::take_map(&mut ebpf, "BUCKETS")?.try_into()?;
        let rings = object::take_rings(&mut ebpf, readers)?;
        Ok(Self {
            loader: Arc::new(Mutex::new(loader)),
            programs: Programs::load(ebpf, hook)?,
            posts: BTreeMap::new(),
            taps,
            counters,
            buckets,
            rings,
            attached: BTreeSet::new(),
            left_behind: BTreeSet::new(),
            stale: BTreeSet::new(),
            pins: Arc::new(pins),
        })
    }

    pub(super) fn give_to_owner(&self) -> Result<(), PinsError> {
        self.pins.give_to_owner()
    }

    /// The kind of hook that the classifier hangs on.
    pub fn hook(&self) -> Hook {
        self.programs.hook()
    }

    /// The taps that the classifier hangs on, as far as it is known: one on which that failed may be among them.
    pub fn attached(&self) -> impl Iterator<Item = TapIndex> {
        self.attached.iter().copied()
    }

    /// Whether it hangs on this one, as far as it is known.
    pub fn is_attached(&self, tap: TapIndex) -> bool {
        self.attached.contains(&tap)
    }

    /// What a tap is called at this moment: `namespace/tap` in another network namespace.
    pub fn name_of(&self, tap: TapIndex) -> Result<String, TapError> {
        match (self.posts.get(&tap.namespace()), tap.namespace()) {
            (Some(post), _) => post.namespace.name_of(tap),
            (None, NamespaceNumber::OWN) => tap::name_of(tap),
            // Here another device may have the index.
            (None, NamespaceNumber(number)) => Err(TapError::NoSuchNamespace {
                namespace: number.to_string(),
            }),
        }
    }

    /// Puts the classifier on a tap's hooks. Until a MAC is bound to the tap its metadata traffic is dropped. On a
    /// tap that has the classifier already nothing changes; what another device with this index left behind is removed.
    pub fn attach(&mut self, tap: TapIndex) -> Result<(), AttachError> {
        self.try_attach(tap).map_err(|source| AttachError {
            tap: self.describe(tap),
            source,
        })
    }

    /// Has the metadata traffic on this tap served that `binding` says, and no other.
    pub fn bind(&mut self, tap: TapIndex, binding: TapBinding) -> Result<(), BindError> {
        self.try_bind(tap, binding).map_err(|source| BindError {
            tap: self.describe(tap),
            source,
        })
    }

    fn try_bind(&mut self, tap: TapIndex, binding: TapBinding) -> Result<(), MapError> {
        let before = found(self.taps.get(&tap.0, 0))?.map(TapBinding::from_bytes);
        self.taps.insert(tap.0, binding.to_bytes(), 0)?;
        let old = before.map(|before| before.frame_interval_ns);
        let new = binding.frame_interval_ns;
        if old != Some(new)
            && let Some(full_ns) = found(self.buckets.get(&tap.0, 0))?
        {
            let then_ns = bucket::at_another_rate(full_ns, monotonic_ns(), old, new);
            if then_ns != full_ns {
                self.buckets.insert(tap.0, then_ns, 0)?;
            }
        }
        Ok(())
    }

    /// Has all metadata traffic on this tap dropped.
    pub fn unbind(&mut self, tap: TapIndex) -> Result<(), BindError> {
        removed(self.taps.remove(&tap.0)).map_err(|source| BindError {
            tap: self.describe(tap),
            source,
        })
    }

    /// What is bound to a tap, by this agent or an earlier one.
    pub fn binding(&self, tap: TapIndex) -> Result<Option<TapBinding>, BindError> {
        match found(self.taps.get(&tap.0, 0)) {
            Ok(value) => Ok(value.map(TapBinding::from_bytes)),
            Err(source) => Err(BindError {
                tap: self.describe(tap),
                source,
            }),
        }
    }

    /// Takes the classifier off a tap, which may be gone already, and forgets its binding and counters. From here on the
    /// guest's metadata traffic goes wherever its other traffic goes.
    pub fn detach(&mut self, tap: TapIndex) -> Result<(), DetachError> {
        self.try_detach(tap).map_err(|source| DetachError::Tap {
            tap: self.describe(tap),
            source,
        })
    }

    /// Takes the classifier off all taps and removes every trace of it.
    pub fn detach_all(self) -> Result<(), DetachError> {
        let posts = self.posts.values();
        let namespaces = Namespaces::of(posts.map(|post| Arc::clone(&post.namespace)));
        detach::all_of(&self.pins, &namespaces)
    }

    /// What happened to a tap's metadata frames since it was attached.
    pub fn counters(&self, tap: TapIndex) -> Result<Counters, CountersError> {
        match self.counters.get(&tap.0, 0) {
            Ok(cpus) => Ok(Counters::sum(&cpus)),
            Err(source) => Err(CountersError {
                tap: self.describe(tap),
                source,
            }),
        }
    }

    /// How many more of a tap's packets would be served at this moment, [`BURST_TOKENS`](imds_ebpf::abi::BURST_TOKENS) at
    /// most. Nothing if it has no limit, or is bound to nobody.
    pub fn packets_left(&self, tap: TapIndex) -> Result<Option<u64>, BindError> {
        let Some(binding) = self.binding(tap)? else {
            return Ok(None);
        };
        let full_ns = self.buckets.get(&tap.0, 0).map_err(|source| BindError {
            tap: self.describe(tap),
            source,
        })?;
        Ok(bucket::left(full_ns, monotonic_ns(), binding.frame_interval_ns))
    }

    /// The rings, one per worker, each in the order of its worker. The second call returns none.
    pub fn rings(&mut self) -> Vec<PuntRing> {
        std::mem::take(&mut self.rings)
    }

    /// A loaded program, for `BPF_PROG_TEST_RUN`.
    pub fn program_fd(&self, direction: Direction) -> Result<BorrowedFd<'_>, LoadError> {
        self.programs.fd(direction)
    }

    /// Takes over what an earlier agent left, and clears away what its taps left. A tap on which that fails costs nobody else
    /// anything: it counts as attached, so that it is attached or detached again like all others, with an error that is told.
    fn adopt(&mut self) -> Result<(), LoadError> {
        for tap in self.candidates()? {
            if tap.namespace() == NamespaceNumber::OWN {
                self.adopt_or_note(tap);
            } else {
                self.left_behind.insert(tap);
            }
        }
        if let Err(error) = self.pins.remove_other_versions() {
            // They take room, and nobody reads them any more.
            log::warn!("maps of another version are left: {error}");
        }
        Ok(())
    }

    /// The taps of which anything may be left.
    fn candidates(&self) -> Result<BTreeSet<TapIndex>, LoadError> {
        let mut candidates = self.pins.links()?;
        candidates.append(&mut self.pins.noted_clsacts()?);
        if self.hook() == Hook::Clsact {
            // These are no pins, and those of another version are in no map of this one.
            candidates.append(&mut filters::taps().map_err(LoadError::Filters)?);
        }
        for key in self.counters.keys().chain(self.taps.keys()) {
            candidates.insert(TapIndex(key?));
        }
        Ok(candidates)
    }

    fn adopt_or_note(&mut self, tap: TapIndex) {
        if let Err(error) = self.adopt_tap(tap) {
            log::debug!("cannot take over tap {}: {error}", self.describe(tap));
            self.attached.insert(tap);
        }
    }

    fn adopt_tap(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        // Before the program that counts there, which may be the first on these maps.
        let room = self.count_from_now(tap, KEEP_COUNTING);
        if !self.adopt_hook(tap, Direction::Outbound)? {
            self.on(tap, move |_, pins| hook::take_off(tap, pins))?;
            return Ok(self.forget(tap)?);
        }
        self.attached.insert(tap);
        self.ensure_hook(tap, Direction::Inbound)?;
        Ok(room?)
    }

    /// That the maps have no room is told last: without entries the tap is dark, and without hooks it would leak.
    fn try_attach(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        if self.stale.contains(&tap) && self.goes_on(tap) {
            return Ok(());
        }
        self.stale.remove(&tap);
        let mut room = self.count_from_now(tap, KEEP_COUNTING);
        if !self.adopt_hook(tap, Direction::Outbound)? {
            // Another tap with this index had them. They are written over: each new one takes memory that the kernel has to find.
            removed(self.taps.remove(&tap.0))?;
            room = self.count_from_now(tap, 0);
            self.ensure_hook(tap, Direction::Outbound)?;
        }
        self.attached.insert(tap);
        self.ensure_hook(tap, Direction::Inbound)?;
        Ok(room?)
    }

    fn try_detach(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        match self.on(tap, move |_, pins| hook::take_off(tap, pins)) {
            Err(HookError::OutOfSight) => drop(self.left_behind.insert(tap)),
            taken => taken?,
        }
        self.attached.remove(&tap);
        self.stale.remove(&tap);
        Ok(self.forget(tap)?)
    }

    fn ensure_hook(&mut self, tap: TapIndex, direction: Direction) -> Result<(), HookError> {
        self.on(tap, move |programs, pins| programs.ensure(tap, direction, pins))
    }

    fn adopt_hook(&mut self, tap: TapIndex, direction: Direction) -> Result<bool, HookError> {
        self.on(tap, move |programs, pins| programs.adopt(tap, direction, pins))
    }

    /// Has something done where a tap is, with the programs for there.
    fn on<R: Send + 'static>(
        &mut self,
        tap: TapIndex,
        work: impl FnOnce(&mut Programs, &Pins) -> Result<R, HookError> + Send + 'static,
    ) -> Result<R, HookError> {
        if tap.namespace() == NamespaceNumber::OWN {
            return work(&mut self.programs, &self.pins);
        }
        let post = self.posts.get(&tap.namespace()).ok_or(HookError::OutOfSight)?;
        post.visit(&self.loader, self.hook(), &self.pins, work)
    }

    /// A tap as messages name it.
    fn describe(&self, tap: TapIndex) -> String {
        let post = self.posts.get(&tap.namespace());
        tap::describe(tap, || post?.namespace.name_of(tap).ok())
    }

    /// Makes room for a tap's counters, all zero, and for its bucket, which is full, or leaves what it has. A tap that has a bucket
    /// has counters, by which the next agent finds it.
    fn count_from_now(&mut self, tap: TapIndex, flags: u64) -> Result<(), MapError> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let zeroes = PerCpuValues::try_from(vec![[0; COUNTERS]; cpus])?;
        kept(self.counters.insert(tap.0, zeroes, flags))?;
        kept(self.buckets.insert(tap.0, 0, flags))
    }

    fn forget(&mut self, tap: TapIndex) -> Result<(), MapError> {
        removed(self.taps.remove(&tap.0))?;
        removed(self.buckets.remove(&tap.0))?;
        removed(self.counters.remove(&tap.0))
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attached, pins, .. } = self;
        let mut debug = f.debug_struct("Classifier");
        debug
            .field("hook", &self.hook())
            .field("attached", attached)
            .field("pins", pins)
            .finish_non_exhaustive()
    }
}

/// The clock that the classifier reads.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// `BPF_NOEXIST`: an entry that is there already stays.
const KEEP_COUNTING: u64 = 1;

/// What is there already may stay.
fn kept(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// What there is, if it is there.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(None),
        result => result.map(Some),
    }
}

/// Removing what is not there is fine.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result,
    }
}
