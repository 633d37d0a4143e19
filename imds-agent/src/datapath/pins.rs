//! What outlives the agent: maps and links, pinned under one directory of a BPF file system.
//!
//! ```text
//! <root>/links/<ifindex>           the TCX link of a tap's outbound hook; of no version, so that a newer agent adopts an
//!                                  older one's
//! <root>/links/<ifindex>-inbound   that of its inbound hook
//! <root>/v<ABI_VERSION>/           the maps: TAPS, COUNTERS, BUCKETS, RING_<worker>
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
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

/// Where every distribution mounts its BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

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
    /// Makes the directory if need be and takes hold of it. At the usual place the BPF file system is mounted, too.
    pub fn open(root: &Path) -> Result<Self, PinsError> {
        ensure_bpffs(root)?;
        for directory in [root.to_owned(), root.join("links"), root.join(version_name())] {
            fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        }
        let directory = File::open(root).map_err(failed("open", root))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self {
                root: root.to_owned(),
                _held: held,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(PinsError::InUse {
                root: root.to_owned(),
            }),
            Err((_, errno)) => Err(failed("lock", root)(errno.into())),
        }
    }

    /// Where the map called `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(version_name()).join(name)
    }

    /// Where the link of one of `tap`'s hooks is pinned.
    pub fn link(&self, tap: TapIndex, direction: Direction) -> PathBuf {
        let name = match direction {
            Direction::Outbound => tap.to_string(),
            Direction::Inbound => format!("{tap}-inbound"),
        };
        self.root.join("links").join(name)
    }

    /// The taps that have a pinned outbound link, alive or dead.
    pub fn links(&self) -> Result<Vec<TapIndex>, PinsError> {
        let directory = self.root.join("links");
        let names = names_in(&directory).map_err(failed("list", &directory))?;
        Ok(names
            .iter()
            .filter_map(|name| name.parse().ok().map(TapIndex))
            .collect())
    }

    /// Removes the maps of agents with other layouts. Their links must have been adopted, because a link holds the maps
    /// of its program anyway.
    pub fn remove_other_versions(&self) -> Result<(), PinsError> {
        let names = names_in(&self.root).map_err(failed("list", &self.root))?;
        for name in names {
            let is_version = name
                .strip_prefix('v')
                .is_some_and(|number| number.parse::<u32>().is_ok());
            if is_version && name != version_name() {
                remove_directory(&self.root.join(name))?;
            }
        }
        Ok(())
    }

    /// Removes everything, the directory included. Links that are still pinned come off their taps.
    pub fn remove_all(self) -> Result<(), PinsError> {
        remove_directory(&self.root.join("links"))?;
        remove_directory(&self.root.join(version_name()))?;
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

/// A directory with pins and no directories in it.
fn remove_directory(directory: &Path) -> Result<(), PinsError> {
    for name in names_in(directory).map_err(failed("list", directory))? {
        remove_pin(&directory.join(name))?;
    }
    fs::remove_dir(directory).map_err(failed("remove", directory))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| PinsError::Io {
        action,
        path: path.to_owned(),
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
