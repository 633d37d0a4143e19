//! The classifier's object, which this build carries: into the kernel, onto the maps that are pinned already.

use std::{collections::BTreeSet, error::Error as _, io, mem::size_of, path::Path, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError, MapInfo},
};
use imds_ebpf::abi::{NamespaceNumber, RING_BYTES, TAPS_MAX, TapBinding, TapCounters, TapIndex, WORKERS_MAX};
use nix::errno::Errno;
use thiserror::Error;

use super::{
    PuntRing,
    pins::{Pins, PinsError, remove_pin},
    punt,
    ring::Ring,
    support::SupportError,
};

/// The object that `cargo xtask build-ebpf` made, or nothing when it was not run before this build.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-ebpf.o"));

/// How old a frame may be that a starting agent still answers: TCP sends a SYN again after one second (RFC 6298).
const STALE_AFTER: Duration = Duration::from_secs(1);

/// The rings, each in the place of its worker.
const RINGS: [&str; WORKERS_MAX as usize] = [
    "RING_0", "RING_1", "RING_2", "RING_3", "RING_4", "RING_5", "RING_6", "RING_7",
];

/// Asked for a ring that nobody reads: the kernel makes whole pages, and aya one of this.
const UNREAD_RING_BYTES: u32 = 1;

/// Every other map with its key size, value size and number of entries: what must match for a pinned one to be used again.
const MAP_LAYOUTS: [(&str, usize, usize, u32); 3] = [
    ("TAPS", size_of::<TapIndex>(), size_of::<TapBinding>(), TAPS_MAX),
    (
        "COUNTERS",
        size_of::<TapIndex>(),
        size_of::<TapCounters>(),
        TAPS_MAX,
    ),
    ("BUCKETS", size_of::<TapIndex>(), size_of::<u64>(), TAPS_MAX),
];

/// Whose rings are made to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Readers {
    /// Those of so many workers. Another number's rings are made anew: what is in one that nobody will read is lost, and its
    /// sender sends it again.
    Workers(usize),
    /// Nobody's: rings that are there stay as they are.
    Nobody,
}

/// The classifier cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// This build of the agent carries none.
    #[error("this build has no classifier in it: run `cargo xtask build-ebpf`, then build the agent again")]
    ObjectMissing,
    /// The host lacks what it needs.
    #[error(transparent)]
    Unsupported(#[from] SupportError),
    /// The process lacks what it needs.
    #[error(
        "loading the classifier is not permitted: it needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    NotPermitted(#[source] EbpfError),
    /// The kernel refuses the program or a map.
    #[error("the kernel refuses the classifier")]
    Refused(#[source] EbpfError),
    /// The object is not the one that this agent belongs to.
    #[error("the classifier in this build has no {0}")]
    Incomplete(&'static str),
    /// The place for the pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map cannot be read or written.
    #[error("cannot use the classifier's maps")]
    Maps(#[from] MapError),
    /// It cannot be loaded for a network namespace.
    #[error("cannot reach another network namespace")]
    Away(#[source] io::Error),
    /// The taps that have a filter cannot be told.
    #[error("cannot list the filters of network devices")]
    Filters(#[source] io::Error),
}

/// Where the programs read the number of their network namespace.
const NAMESPACE: &str = "NAMESPACE";

/// Loads the object, once for each network namespace.
pub(super) struct Loader {
    loader: EbpfLoader<'static>,
    /// The numbers of namespaces, which the loader borrows for as long as it is. The kernel uses them again, so that there are
    /// no more of them than there were namespaces at once.
    numbers: BTreeSet<&'static u32>,
    /// Whether a map was replaced that programs of an earlier agent's still go on with.
    has_replaced: bool,
}

impl Loader {
    /// Readies the object for the agent's own network namespace: makes the maps, or takes the pinned ones. The loader goes on to
    /// those maps.
    pub fn load(pins: &Pins, readers: Readers) -> Result<(Self, Ebpf), LoadError> {
        let (loader, has_replaced) = loader(pins, readers)?;
        let mut loader = Self {
            loader,
            numbers: BTreeSet::new(),
            has_replaced,
        };
        let own = loader.loader.load(OBJECT).map_err(refused)?;
        Ok((loader, own))
    }

    /// Whether programs that an earlier agent of this layout left go on with the same maps as those that are loaded now.
    pub fn goes_on(&self) -> bool {
        !self.has_replaced
    }

    /// The same object for another namespace.
    pub fn load_for(&mut self, NamespaceNumber(number): NamespaceNumber) -> Result<Ebpf, LoadError> {
        let number: &'static u32 = match self.numbers.get(&number) {
            Some(number) => number,
            None => Box::leak(Box::new(number)),
        };
        self.numbers.insert(number);
        self.loader.override_global(NAMESPACE, number, true);
        self.loader.load(OBJECT).map_err(refused)
    }
}

/// The loader, and whether a map was replaced.
fn loader(pins: &Pins, readers: Readers) -> Result<(EbpfLoader<'static>, bool), LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::ObjectMissing);
    }
    let mut has_replaced = remove_other_layouts(pins)?;
    // It reads the kernel's own types, which takes longer than all else, and nothing in the classifier depends on them.
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, ..) in MAP_LAYOUTS {
        loader.map_pin_path(name, pins.map(name));
    }
    for (worker, name) in RINGS.into_iter().enumerate() {
        let is_read = matches!(readers, Readers::Workers(count) if worker < count);
        let path = pins.map(name);
        if readers != Readers::Nobody {
            has_replaced |= remove_ring_of_other_size(&path, is_read)?;
        }
        if !is_read {
            loader.map_max_entries(name, UNREAD_RING_BYTES);
        }
        loader.map_pin_path(name, path);
    }
    Ok((loader, has_replaced))
}

/// A pinned map of another layout under this version's name is a developer's leftover; the program could not use it. True if there
/// was one.
fn remove_other_layouts(pins: &Pins) -> Result<bool, LoadError> {
    let mut has_removed = false;
    for (name, key_size, value_size, entries) in MAP_LAYOUTS {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path)?;
        let pinned = (
            info.key_size() as usize,
            info.value_size() as usize,
            info.max_entries(),
        );
        if pinned != (key_size, value_size, entries) {
            log::warn!(
                "replacing the map pinned at {}, which has another layout",
                path.display()
            );
            remove_pin(&path)?;
            has_removed = true;
        }
    }
    Ok(has_removed)
}

/// A ring is as large as it has to be when it is read, and no larger than a ring can be when it is not. True if there was another.
fn remove_ring_of_other_size(path: &Path, is_read: bool) -> Result<bool, LoadError> {
    if path.exists() {
        let bytes = MapInfo::from_pin(path)?.max_entries();
        let fits = if is_read {
            bytes == RING_BYTES
        } else {
            bytes < RING_BYTES
        };
        if !fits {
            log::debug!("replacing the ring of {bytes} bytes pinned at {}", path.display());
            remove_pin(path)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a map out of the object.
pub(super) fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Incomplete(name))
}

/// Takes the rings that are read out of the object, one per worker.
pub(super) fn take_rings(ebpf: &mut Ebpf, readers: Readers) -> Result<Vec<PuntRing>, LoadError> {
    let count = match readers {
        Readers::Workers(count) => count,
        Readers::Nobody => 0,
    };
    let fresh_from = punt::clock().saturating_sub(STALE_AFTER);
    let ring = |name| match take_map(ebpf, name)? {
        Map::RingBuf(map) => Ok(PuntRing::new(Ring::new(map)?, fresh_from)),
        _ => Err(LoadError::Incomplete(name)),
    };
    RINGS.into_iter().take(count).map(ring).collect()
}

/// Tells a lack of privileges from other failures, by the errno at the bottom of it.
pub(super) fn refused(error: EbpfError) -> LoadError {
    if is_not_permitted(&error) {
        LoadError::NotPermitted(error)
    } else {
        LoadError::Refused(error)
    }
}

/// `EPERM`; the verifier's own refusals are `EACCES`.
fn is_not_permitted(error: &EbpfError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref().and_then(io::Error::raw_os_error) == Some(Errno::EPERM as i32) {
            return true;
        }
        cause = error.source();
    }
    false
}
