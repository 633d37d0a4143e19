//! Other network namespaces than the agent's own, and the one thread that goes there.
//!
//! Read first: network_namespaces(7), setns(2). Devices, filters, links and sockets are those of the namespace that the calling
//! thread is in when it names or makes them. So whatever is done to a tap elsewhere is done on a thread that is there. It
//! takes `CAP_SYS_ADMIN` to go, which no other thread has: it goes on errands, and is at home in between.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    sync::{Arc, mpsc},
    thread,
};

use imds_ebpf::abi::{NamespaceNumber, TapIndex};
use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use thiserror::Error;
use tokio::sync::oneshot;

use super::tap::{self, TapError};

/// Namespaces that an agent serves at once: each costs it seven descriptors, some 110 KiB and two programs, and one tap in each is
/// a quarter of the taps that the classifier's maps have room for.
const NAMESPACES_MAX: u64 = 4096;

/// Descriptors that each takes, besides a packet socket for each worker: the namespace itself, its two netlink sockets, two programs and
/// their types.
const DESCRIPTORS: u64 = 6;

/// Descriptors that are left to all else: the 128 connections and more of the control socket, and those of a host's other services.
const DESCRIPTORS_OF_OTHERS: u64 = 512;

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that has a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sighting {
    /// Its number, as long as it lives.
    pub number: NamespaceNumber,
    /// The name, without the directory.
    pub name: String,
    /// Where it is mounted.
    pub path: PathBuf,
}

/// The namespaces that are mounted in `directory` under names that `selects` selects, but for the calling thread's own. One that
/// has several names goes by the first of them.
pub fn look(directory: &Path, selects: impl Fn(&str) -> bool) -> io::Result<Vec<Sighting>> {
    let own = fs::metadata(OWN)?;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut sightings = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path
            .file_name()
            .and_then(OsStr::to_str)
            .filter(|name| selects(name))
        else {
            continue;
        };
        // A file that nothing is mounted on (yet) is not of the file system that namespaces are of, and one that went meanwhile
        // is none.
        let number = fs::symlink_metadata(&path)
            .ok()
            .filter(|file| file.dev() == own.dev() && file.ino() != own.ino())
            .and_then(|file| u32::try_from(file.ino()).ok());
        if let Some(number) = number {
            sightings.insert((name.to_owned(), NamespaceNumber(number)), path);
        }
    }
    let mut seen = BTreeMap::new();
    for ((name, number), path) in sightings {
        let sighting = Sighting { number, name, path };
        seen.entry(number).or_insert(sighting);
    }
    Ok(seen.into_values().collect())
}

/// Whether a namespace is still where it was seen.
pub fn is_there(sighting: &Sighting) -> bool {
    fs::symlink_metadata(&sighting.path).is_ok_and(|file| file.ino() == u64::from(sighting.number.0))
}

/// Network namespaces cannot be gone to.
#[derive(Debug, Error)]
#[error(
    "entering network namespaces (`network_namespaces` in the configuration) is refused: it takes CAP_SYS_ADMIN and, \
     in a systemd unit, RestrictNamespaces=net"
)]
pub struct VisitError(#[source] io::Error);

/// Lets the process have as many descriptors as it may: half a dozen for each namespace soon is more than the thousand that are
/// usual.
pub fn allow_descriptors() {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    if let Err(errno) = limit.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard)) {
        log::warn!("the limit of open descriptors stays as it is: {errno}");
    }
}

/// How many namespaces may be served at once by so many workers.
pub fn most_at_once(workers: usize) -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    most_with(descriptors, workers as u64)
}

fn most_with(descriptors: u64, workers: u64) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_OF_OTHERS);
    let most = NAMESPACES_MAX.min(left / (DESCRIPTORS + workers));
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// What is done at home; it is lent the way back there.
type Errand = Box<dyn FnOnce(&File) + Send>;

/// The thread that goes to other namespaces. It ends when nobody has an errand for it any more.
#[derive(Clone, Debug)]
pub struct Visitor(mpsc::Sender<Errand>);

impl Visitor {
    /// Starts the thread, which does `prepare` before anything else; and what becomes ready when it has ended.
    pub fn start(prepare: impl FnOnce() + Send + 'static) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let home = File::open(OWN)?;
        let (sender, errands) = mpsc::channel::<Errand>();
        let (ends, ended) = oneshot::channel();
        thread::Builder::new()
            .name("imds-namespaces".to_owned())
            .spawn(move || {
                // Dropped when the thread ends, by a panic too.
                let _ends: oneshot::Sender<()> = ends;
                prepare();
                for errand in errands {
                    errand(&home);
                }
            })?;
        Ok((Self(sender), ended))
    }

    /// Whether the thread gets anywhere at all: it goes to where it is.
    pub fn ensure_permitted(&self) -> Result<(), VisitError> {
        let went = self.send(|home| Ok(setns(home, CloneFlags::CLONE_NEWNET)?));
        went.map_err(VisitError)
    }

    fn visit<R: Send + 'static>(
        &self,
        namespace: &Arc<File>,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        let namespace = Arc::clone(namespace);
        self.send(move |home| {
            setns(&*namespace, CloneFlags::CLONE_NEWNET)?;
            let done = work();
            if let Err(errno) = setns(home, CloneFlags::CLONE_NEWNET) {
                // Whatever it did next it would do to somebody else's devices.
                log::error!("the way back from another network namespace is closed: {errno}");
                process::abort();
            }
            Ok(done)
        })
    }

    fn send<R: Send + 'static>(
        &self,
        errand: impl FnOnce(&File) -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        let (tell, told) = mpsc::sync_channel(1);
        let ended = || io::Error::other("the thread that goes to other network namespaces has ended");
        let errand: Errand = Box::new(move |home| {
            // There is room for it, and who asked waits.
            let _ = tell.send(errand(home));
        });
        self.0.send(errand).map_err(|_| ended())?;
        told.recv().map_err(|_| ended())?
    }
}

/// Another network namespace. It lives as long as this does.
#[derive(Debug)]
pub struct Namespace {
    sighting: Sighting,
    handle: Arc<File>,
    visitor: Visitor,
}

impl Namespace {
    /// Takes hold of a namespace.
    pub fn open(sighting: Sighting, visitor: &Visitor) -> io::Result<Self> {
        let handle = File::open(&sighting.path)?;
        if handle.metadata()?.ino() != u64::from(sighting.number.0) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let namespace = Self {
            sighting,
            handle: Arc::new(handle),
            visitor: visitor.clone(),
        };
        // Namespaces of other kinds are of the same file system, and cannot be gone to as this one is.
        namespace.visit(|| ())?;
        Ok(namespace)
    }

    /// The same one where it was seen under another name, or in another place.
    pub fn seen_at(&self, sighting: Sighting) -> Self {
        Self {
            sighting,
            handle: Arc::clone(&self.handle),
            visitor: self.visitor.clone(),
        }
    }

    /// Its number.
    pub fn number(&self) -> NamespaceNumber {
        self.sighting.number
    }

    /// Where it was seen.
    pub fn sighting(&self) -> &Sighting {
        &self.sighting
    }

    /// Has something done in there, and waits for it.
    pub fn visit<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
        self.visitor.visit(&self.handle, work)
    }

    /// What a device in there is called here.
    pub fn full_name(&self, tap: &str) -> String {
        format!("{}/{tap}", self.sighting.name)
    }

    /// The same of the device that has an index at this moment.
    pub fn name_of(&self, tap: TapIndex) -> Result<String, TapError> {
        let name = self.visit(move || tap::name_of(tap));
        Ok(self.full_name(&name.map_err(|source| self.away(source))??))
    }

    /// The device of this name in there.
    pub fn index_of(&self, name: &str) -> Result<TapIndex, TapError> {
        let name = name.to_owned();
        let index = self.visit(move || tap::index_of(&name));
        let index = index.map_err(|source| self.away(source))??;
        Ok(TapIndex::within(self.number(), index.ifindex()))
    }

    fn away(&self, source: io::Error) -> TapError {
        TapError::Away {
            namespace: self.sighting.name.clone(),
            source,
        }
    }
}

/// The namespaces that are there at this moment, for those who do not watch.
#[derive(Default, Debug)]
pub struct Namespaces(BTreeMap<NamespaceNumber, Arc<Namespace>>);

impl Namespaces {
    /// Takes hold of those that were seen. One that cannot be gone to is told of and left out.
    pub fn open(sightings: Vec<Sighting>) -> Result<Self, VisitError> {
        if sightings.is_empty() {
            return Ok(Self::default());
        }
        let (visitor, _) = Visitor::start(|| ()).map_err(VisitError)?;
        visitor.ensure_permitted()?;
        let open = |sighting: Sighting| {
            let name = sighting.name.clone();
            match Namespace::open(sighting, &visitor) {
                Ok(namespace) => Some((namespace.number(), Arc::new(namespace))),
                Err(error) => {
                    log::warn!("cannot enter network namespace {name}: {error}");
                    None
                }
            }
        };
        Ok(Self(sightings.into_iter().filter_map(open).collect()))
    }

    /// These.
    pub(super) fn of(namespaces: impl Iterator<Item = Arc<Namespace>>) -> Self {
        Self(
            namespaces
                .map(|namespace| (namespace.number(), namespace))
                .collect(),
        )
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.0.values()
    }

    /// The one with a number, if it is among them.
    pub fn get(&self, number: NamespaceNumber) -> Option<&Arc<Namespace>> {
        self.0.get(&number)
    }

    /// The device of this name, here or, as `namespace/tap`, there.
    pub fn index_of(&self, name: &str) -> Result<TapIndex, TapError> {
        let Some((namespace, tap)) = name.split_once('/') else {
            return tap::index_of(name);
        };
        let mut namespaces = self.iter();
        match namespaces.find(|there| there.sighting.name == namespace) {
            Some(namespace) => namespace.index_of(tap),
            None => Err(TapError::NoSuchNamespace {
                namespace: namespace.to_owned(),
            }),
        }
    }

    /// Has something done where a tap is; where that is not among them it is not.
    pub(super) fn visit<R: Send + 'static>(
        &self,
        number: NamespaceNumber,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        match self.get(number) {
            _ if number == NamespaceNumber::OWN => Ok(work()),
            Some(namespace) => namespace.visit(work),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A tap as messages name it.
    pub(super) fn describe(&self, tap: TapIndex) -> String {
        tap::describe(tap, || match self.get(tap.namespace()) {
            Some(namespace) => namespace.name_of(tap).ok(),
            None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_leave_descriptors_to_all_else() {
        assert_eq!(most_with(524_288, 1), 4096);
        assert_eq!(most_with(1024, 1), 73);
        assert_eq!(most_with(1024, 8), 36);
        assert_eq!(most_with(256, 1), 0);
    }
}
