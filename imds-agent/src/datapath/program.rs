//! Loads, attaches and adopts the classifier, binds taps, reads counters.
//!
//! The classifier outlives the agent: its maps and links are pinned. What a starting agent finds there it goes on with, so
//! that counters count on, bound taps stay bound, and no frame for the address slips by:
//! 1. maps of the same layout are used again, others replaced;
//! 2. the program is loaded anew and takes the old one's place on every tap that is still there, atomically;
//! 3. what belongs to a tap that is gone is removed.

use std::{
    collections::BTreeSet,
    fmt, io,
    mem::size_of,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
    programs::{ProgramError, SchedClassifier},
    util::nr_cpus,
};
use imds_ebpf::{
    abi::{COUNTERS, TapBinding, TapCounters, TapIndex},
    bucket,
};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

pub use super::object::LoadError;
use super::{
    Counters, DetachError, Hook, PuntRing, detach, filters,
    hook::{self, DIRECTIONS, Direction, HookError},
    object::{self, Readers, refused},
    pins::{Pins, PinsError},
    tap::describe,
};

/// The classifier cannot be attached.
#[derive(Debug, Error)]
#[error("cannot attach the classifier to tap {tap}")]
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
    /// The tap's entries in the maps.
    #[error("cannot change the classifier's maps")]
    Maps(#[from] MapError),
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
    hook: Hook,
    ebpf: Ebpf,
    taps: HashMap<MapData, u64, [u8; size_of::<TapBinding>()]>,
    counters: PerCpuHashMap<MapData, u64, TapCounters>,
    buckets: HashMap<MapData, u64, u64>,
    rings: Vec<PuntRing>,
    attached: BTreeSet<TapIndex>,
    pins: Pins,
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
        let mut ebpf = object::load(&pins, readers)?;
        let taps = object::take_map(&mut ebpf, "TAPS")?.try_into()?;
        let counters = object::take_map(&mut ebpf, "COUNTERS")?.try_into()?;
        let buckets = object::take_map(&mut ebpf, "BUCKETS")?.try_into()?;
        let rings = object::take_rings(&mut ebpf, readers)?;
        for name in DIRECTIONS.map(program_name) {
            let program = ebpf.program_mut(name).ok_or(LoadError::Incomplete(name))?;
            let program: &mut SchedClassifier =
                program.try_into().map_err(|_| LoadError::Incomplete(name))?;
            program.load().map_err(|error| refused(error.into()))?;
        }
        Ok(Self {
            hook,
            ebpf,
            taps,
            counters,
            buckets,
            rings,
            attached: BTreeSet::new(),
            pins,
        })
    }

    pub(super) fn give_to_owner(&self) -> Result<(), PinsError> {
        self.pins.give_to_owner()
    }

    /// The kind of hook that the classifier hangs on.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The taps that the classifier hangs on, as far as it is known: one on which that failed may be among them.
    pub fn attached(&self) -> impl Iterator<Item = TapIndex> {
        self.attached.iter().copied()
    }

    /// Whether it hangs on this one, as far as it is known.
    pub fn is_attached(&self, tap: TapIndex) -> bool {
        self.attached.contains(&tap)
    }

    /// Puts the classifier on a tap's hooks. Until a MAC is bound to the tap its metadata traffic is dropped. On a
    /// tap that has the classifier already nothing changes; what another device with this index left behind is removed.
    pub fn attach(&mut self, tap: TapIndex) -> Result<(), AttachError> {
        self.try_attach(tap).map_err(|source| AttachError {
            tap: describe(tap),
            source,
        })
    }

    /// Has the metadata traffic on this tap served that `binding` says, and no other.
    pub fn bind(&mut self, tap: TapIndex, binding: TapBinding) -> Result<(), BindError> {
        let bound = self.taps.insert(tap.0, binding.to_bytes(), 0);
        bound.map_err(|source| BindError {
            tap: describe(tap),
            source,
        })
    }

    /// Has all metadata traffic on this tap dropped.
    pub fn unbind(&mut self, tap: TapIndex) -> Result<(), BindError> {
        removed(self.taps.remove(&tap.0)).map_err(|source| BindError {
            tap: describe(tap),
            source,
        })
    }

    /// What is bound to a tap, by this agent or an earlier one.
    pub fn binding(&self, tap: TapIndex) -> Result<Option<TapBinding>, BindError> {
        match self.taps.get(&tap.0, 0) {
            Ok(value) => Ok(Some(TapBinding::from_bytes(value))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(BindError {
                tap: describe(tap),
                source,
            }),
        }
    }

    /// Takes the classifier off a tap, which may be gone already, and forgets its binding and counters. From here on the
    /// guest's metadata traffic goes wherever its other traffic goes.
    pub fn detach(&mut self, tap: TapIndex) -> Result<(), DetachError> {
        self.try_detach(tap).map_err(|source| DetachError::Tap {
            tap: describe(tap),
            source,
        })
    }

    /// Takes the classifier off all taps and removes every trace of it.
    pub fn detach_all(self) -> Result<(), DetachError> {
        detach::all_of(self.pins)
    }

    /// What happened to a tap's metadata frames since it was attached.
    pub fn counters(&self, tap: TapIndex) -> Result<Counters, CountersError> {
        match self.counters.get(&tap.0, 0) {
            Ok(cpus) => Ok(Counters::sum(&cpus)),
            Err(source) => Err(CountersError {
                tap: describe(tap),
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
            tap: describe(tap),
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
        let name = program_name(direction);
        let program = self.ebpf.program(name).ok_or(LoadError::Incomplete(name))?;
        Ok(program.fd().map_err(|error| refused(error.into()))?.as_fd())
    }

    /// Takes over what an earlier agent left, and clears away what its taps left. A tap on which that fails costs nobody else
    /// anything: it counts as attached, so that it is attached or detached again like all others, with an error that is told.
    fn adopt(&mut self) -> Result<(), LoadError> {
        for tap in self.candidates()? {
            if let Err(error) = self.adopt_tap(tap) {
                log::debug!("cannot take over tap {}: {error}", describe(tap));
                self.attached.insert(tap);
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
        if self.hook == Hook::Clsact {
            // These are no pins, and those of another version are in no map of this one.
            candidates.append(&mut filters::taps().map_err(LoadError::Filters)?);
        }
        for key in self.counters.keys().chain(self.taps.keys()) {
            candidates.insert(TapIndex(key?));
        }
        Ok(candidates)
    }

    fn adopt_tap(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        // Before the program that counts there, which may be the first on these maps.
        self.count_from_now(tap, KEEP_COUNTING)?;
        if !self.adopt_hook(tap, Direction::Outbound)? {
            hook::take_off(tap, &self.pins)?;
            return Ok(self.forget(tap)?);
        }
        self.attached.insert(tap);
        Ok(self.ensure_hook(tap, Direction::Inbound)?)
    }

    fn try_attach(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        self.count_from_now(tap, KEEP_COUNTING)?;
        if !self.adopt_hook(tap, Direction::Outbound)? {
            self.forget(tap)?;
            self.count_from_now(tap, 0)?;
            self.ensure_hook(tap, Direction::Outbound)?;
        }
        self.attached.insert(tap);
        Ok(self.ensure_hook(tap, Direction::Inbound)?)
    }

    fn try_detach(&mut self, tap: TapIndex) -> Result<(), TapOperationError> {
        hook::take_off(tap, &self.pins)?;
        self.attached.remove(&tap);
        Ok(self.forget(tap)?)
    }

    /// Takes over what hangs on a hook already, or attaches to it.
    fn ensure_hook(&mut self, tap: TapIndex, direction: Direction) -> Result<(), HookError> {
        if self.adopt_hook(tap, direction)? {
            return Ok(());
        }
        let program = loaded(&mut self.ebpf, direction)?;
        self.hook.attach(program, tap, direction, &self.pins)
    }

    fn adopt_hook(&mut self, tap: TapIndex, direction: Direction) -> Result<bool, HookError> {
        let program = loaded(&mut self.ebpf, direction)?;
        self.hook.adopt(program, tap, direction, &self.pins)
    }

    /// Fills a tap's bucket, and makes room for its counters, all zero, or leaves those that it has.
    fn count_from_now(&mut self, tap: TapIndex, flags: u64) -> Result<(), MapError> {
        self.buckets.insert(tap.0, 0, 0)?;
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let zeroes = PerCpuValues::try_from(vec![[0; COUNTERS]; cpus])?;
        match self.counters.insert(tap.0, zeroes, flags) {
            Err(MapError::SyscallError(error))
                if flags == KEEP_COUNTING && error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            inserted => inserted,
        }
    }

    fn forget(&mut self, tap: TapIndex) -> Result<(), MapError> {
        removed(self.taps.remove(&tap.0))?;
        removed(self.buckets.remove(&tap.0))?;
        removed(self.counters.remove(&tap.0))
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            hook, attached, pins, ..
        } = self;
        let mut debug = f.debug_struct("Classifier");
        debug
            .field("hook", hook)
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

fn loaded(ebpf: &mut Ebpf, direction: Direction) -> Result<&mut SchedClassifier, HookError> {
    let program = ebpf.program_mut(program_name(direction));
    let program = program.and_then(|program| program.try_into().ok());
    program.ok_or(HookError::Program(ProgramError::NotLoaded))
}

fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "imds_outbound",
        Direction::Inbound => "imds_inbound",
    }
}

/// `BPF_NOEXIST`: an entry that is there already stays.
const KEEP_COUNTING: u64 = 1;

/// Removing what is not there is fine.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result,
    }
}
