//! What outlives the agent: maps and links, pinned under one directory of a BPF file system.
//!
//! ```text
//! <root>/links/<ifindex>           the TCX link of a tap's outbound hook; of no version, so that a newer agent adopts an
//!                                  older one's
//! <root>/links/<ifindex>-inbound   that of its inbound hook
//! <root>/links/<namespace>_<ifindex>[-inbound]   those of a tap in another network namespace, which is the number of its inode
//! <root>/clsact/[<namespace>_]<ifindex>   a directory with nothing in it: the tap's clsact queueing discipline is the agent's
//! <root>/expedited/               the same: the kernel expedites because the agent had it do so
//! <root>/v<ABI_VERSION>/           the maps: TAPS, COUNTERS, BUCKETS, RING_<worker>
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, lchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use imds_ebpf::abi::{ABI_VERSION, TapIndex};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use thiserror::Error;

use super::hook::Direction;

/// Where the agent pins unless it is told another place.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/imds-agent";

/// The directories of links and of notes.
const LINKS: &str = "links";
const CLSACT: &str = "clsact";

/// The note that the kernel's switch is turned.
pub(super) const EXPEDITED: &str = "expedited";

/// Where every distribution mounts its BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// How long it may take until another has let go of the directory: a killed agent on its way out, or several
/// `imds-agent attach` of guests that start at once.
const HELD_MAX: Duration = Duration::from_secs(2);

/// How often it is tried meanwhile.
const HELD_LOOK: Duration = Duration::from_millis(5);

/// The pin directory cannot be used.
#[derive(Debug, Error)]
pub enum PinsError {
    /// It lies on another kind of file system.
    #[error("{root} is not on a BPF file system: `mount -t bpf bpf {mount_point}`")]
    NotBpffs {
        /// The pin directory.
        root: PathBuf,
        /// Where one should be mounted.
        mount_point: PathBuf,
    },
    /// There is no BPF file system at the usual place, and mounting one failed.
    #[error("no BPF file system is mounted, and mounting one failed: `mount -t bpf bpf {BPFFS}`")]
    Mount(#[source] Errno),
    /// Another agent runs with this directory.
    #[error("{root} is in use by another agent")]
    InUse {
        /// The pin directory.
        root: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The pin directory, held by one agent at a time.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    _held: Flock<File>,
}

impl Pins {
    /// Makes the directory if need be and takes hold of it, which may take a moment. At the usual place the BPF file system is
    /// mounted, too.
    pub fn open(root: &Path) -> Result<Self, PinsError> {
        patiently(|| Self::try_open(root))
    }

    /// The same at once or not at all.
    pub fn try_open(root: &Path) -> Result<Self, PinsError> {
        ensure_bpffs(root)?;
        fs::create_dir_all(root).map_err(failed("create", root))?;
        let pins = Self::hold(root)?;
        for name in [LINKS, CLSACT, &version_name()] {
            let directory = root.join(name);
            fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        }
        Ok(pins)
    }

    /// Takes hold of the directory if there is one, which may take a moment, and makes nothing.
    pub fn open_existing(root: &Path) -> Result<Option<Self>, PinsError> {
        patiently(|| {
            if !root.exists() || !is_on_bpffs(root) {
                return Ok(None);
            }
            Self::hold(root).map(Some)
        })
    }

    fn hold(root: &Path) -> Result<Self, PinsError> {
        let in_use = || PinsError::InUse { root: shown(root) };
        let directory = File::open(root).map_err(failed("open", root))?;
        let held = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Err(in_use()),
            Err((_, errno)) => return Err(failed("lock", root)(errno.into())),
        };
        let inode = held.metadata().map_err(failed("look at", root))?.ino();
        match fs::metadata(root) {
            Ok(there) if there.ino() == inode => Ok(Self {
                root: root.to_owned(),
                _held: held,
            }),
            // Whoever held it removed it.
            _ => Err(in_use()),
        }
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the map called `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(version_name()).join(name)
    }

    /// Where the link of one of `tap`'s hooks is pinned.
    pub fn link(&self, tap: TapIndex, direction: Direction) -> PathBuf {
        link_in(&self.root, tap, direction)
    }

    /// The taps that have a pinned link, alive or dead, on either hook.
    pub fn links(&self) -> Result<BTreeSet<TapIndex>, PinsError> {
        self.taps_in(LINKS)
    }

    /// Notes that the clsact queueing discipline of `tap` was made by the agent, so that it goes with the last filter.
    pub fn note_clsact(&self, tap: TapIndex) -> Result<(), PinsError> {
        let note = self.root.join(CLSACT).join(tap.to_string());
        fs::create_dir_all(&note).map_err(failed("create", &note))
    }

    /// Forgets the note, and says whether there was one.
    pub fn forget_clsact(&self, tap: TapIndex) -> Result<bool, PinsError> {
        let note = self.root.join(CLSACT).join(tap.to_string());
        match fs::remove_dir(&note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true).map_err(failed("remove", &note)),
        }
    }

    /// The taps with such a note.
    pub fn noted_clsacts(&self) -> Result<BTreeSet<TapIndex>, PinsError> {
        self.taps_in(CLSACT)
    }

    fn taps_in(&self, name: &str) -> Result<BTreeSet<TapIndex>, PinsError> {
        let directory = self.root.join(name);
        let names = match names_in(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(failed("list", &directory))?,
        };
        let tap = |name: &String| name.split('-').next()?.parse().ok();
        Ok(names.iter().filter_map(tap).collect())
    }

    /// Gives all that is in the directory to the directory's owner: who attaches as root pins for an agent that may be
    /// another user.
    pub fn give_to_owner(&self) -> Result<(), PinsError> {
        let owner = fs::metadata(&self.root).map_err(failed("look at", &self.root))?;
        give(&self.root, owner.uid(), owner.gid())
    }

    /// Removes the maps of agents with other layouts. Their links must have been adopted, because a link holds the maps
    /// of its program anyway.
    pub fn remove_other_versions(&self) -> Result<(), PinsError> {
        for version in self.versions()? {
            if version != version_name() {
                remove_directory(&self.root.join(version))?;
            }
        }
        Ok(())
    }

    /// Removes everything, of other versions too, and the directory. Links that are still pinned come off their taps.
    pub fn remove_all(&self) -> Result<(), PinsError> {
        for name in [LINKS, CLSACT, EXPEDITED]
            .map(str::to_owned)
            .into_iter()
            .chain(self.versions()?)
        {
            remove_directory(&self.root.join(name))?;
        }
        match fs::remove_dir(&self.root) {
            // Something else lives in it, or it is the mount point itself: not ours to remove.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                ) =>
            {
                Ok(())
            }
            removed => removed.map_err(failed("remove", &self.root)),
        }
    }

    fn versions(&self) -> Result<Vec<String>, PinsError> {
        let mut names = names_in(&self.root).map_err(failed("list", &self.root))?;
        names.retain(|name| {
            let number = name.strip_prefix('v');
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        Ok(names)
    }
}

/// Tries again for a while as long as another has hold of the directory.
fn patiently<T>(open: impl Fn() -> Result<T, PinsError>) -> Result<T, PinsError> {
    let by = Instant::now() + HELD_MAX;
    loop {
        match open() {
            Err(PinsError::InUse { .. }) if Instant::now() < by => thread::sleep(HELD_LOOK),
            opened => return opened,
        }
    }
}

/// Where the link of one of `tap`'s hooks is pinned below `root`, whoever holds it.
pub(super) fn link_in(root: &Path, tap: TapIndex, direction: Direction) -> PathBuf {
    let name = match direction {
        Direction::Outbound => tap.to_string(),
        Direction::Inbound => format!("{tap}-inbound"),
    };
    root.join(LINKS).join(name)
}

/// A path as an operator knows it. An agent that is not root reaches its pins through a descriptor (`docs/security.md`).
pub(super) fn shown(path: &Path) -> PathBuf {
    let mut parts = path.components();
    let descriptor: PathBuf = parts.by_ref().take(5).collect();
    match fs::read_link(&descriptor) {
        Ok(directory) if descriptor.starts_with("/proc/self/fd") => directory.join(parts.as_path()),
        _ => path.to_owned(),
    }
}

/// Removes a pin that may be gone already.
pub(super) fn remove_pin(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Mounts a BPF file system at the usual place if `root` is to be there and none is.
pub fn ensure_bpffs(root: &Path) -> Result<(), PinsError> {
    if is_on_bpffs(root) {
        return Ok(());
    }
    if !root.starts_with(BPFFS) {
        let mount_point = root.parent().unwrap_or(root).to_owned();
        return Err(PinsError::NotBpffs {
            root: root.to_owned(),
            mount_point,
        });
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700")).map_err(PinsError::Mount)
}

/// Asks the directory itself, or its nearest ancestor that exists.
fn is_on_bpffs(root: &Path) -> bool {
    let statistics = root.ancestors().find_map(|path| statfs(path).ok());
    statistics.is_some_and(|statistics| statistics.filesystem_type() == BPF_FS_MAGIC)
}

fn version_name() -> String {
    format!("v{ABI_VERSION}")
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// A directory with pins and empty directories in it, that may be gone already.
fn remove_directory(directory: &Path) -> Result<(), PinsError> {
    let names = match names_in(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(failed("list", directory))?,
    };
    for name in names {
        let path = directory.join(name);
        if path.is_dir() {
            fs::remove_dir(&path).map_err(failed("remove", &path))?;
        } else {
            remove_pin(&path)?;
        }
    }
    fs::remove_dir(directory).map_err(failed("remove", directory))
}

fn give(directory: &Path, user: u32, group: u32) -> Result<(), PinsError> {
    for name in names_in(directory).map_err(failed("list", directory))? {
        let path = directory.join(name);
        if path.is_dir() {
            give(&path, user, group)?;
        }
        lchown(&path, Some(user), Some(group)).map_err(failed("give away", &path))?;
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| PinsError::Io {
        action,
        path: shown(path),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_elsewhere_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pins");
        let error = Pins::open(&root).unwrap_err();
        assert!(matches!(error, PinsError::NotBpffs { .. }), "{error:?}");
        let remedy = format!("mount -t bpf bpf {}", directory.path().display());
        assert!(error.to_string().contains(&remedy), "{error}");
        assert!(!root.exists());
    }
}
