//! What the agent may do to its host, thread by thread.
//!
//! Read first: `docs/security.md`, which tells who has which privilege and why, then capabilities(7), seccomp(2) and
//! landlock(7).
//!
//! 1. [`reduce`], before there is a second thread: the process becomes its own user, keeps the capabilities that opening
//!    takes, and can never gain another one, by no program that it runs.
//! 2. [`capabilities::keep_for_serving`], on the main thread, once everything is open: two capabilities are left there.
//! 3. [`capabilities::give_up`], on every other thread, as it starts: none. [`capabilities::keep_for_namespaces`] on one that there is
//!    only where other network namespaces are configured: what going there takes.
//! 4. [`sandbox::confine`], on the threads that a guest's bytes reach: besides, no files, no sockets, no programs.

pub mod capabilities;
pub mod sandbox;
pub mod user;
mod violation;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{prctl, stat::Mode},
    unistd::{AccessFlags, eaccess},
};

pub use self::user::User;

/// What the agent is to be and to own.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The user to become; nothing to stay who started the agent.
    pub user: Option<&'a str>,
    /// Directories that are the agent's own. They are made, and belong to the user.
    pub owned: &'a [&'a Path],
    /// The directory of the pins, on a BPF file system that is mounted: owned as well.
    pub pins: &'a Path,
    /// Files that it writes, in directories that need not be its own.
    pub written: &'a [&'a Path],
    /// Sockets that it makes, in directories that others come through.
    pub sockets: &'a [&'a Path],
    /// Whether it goes to other network namespaces.
    pub goes_elsewhere: bool,
}

/// The agent cannot be what it is to be.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// There is no such user.
    #[error("there is no user {name:?} (`user` in the configuration): `useradd --system {name}`")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// The host's users cannot be asked for.
    #[error("cannot look up user {name:?}")]
    Lookup {
        /// The name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// Only root changes its user.
    #[error("started as user {is}, the agent cannot become {name:?}: start it as root, or as that user")]
    OtherUser {
        /// Who started it.
        is: u32,
        /// Who it should be.
        name: String,
    },
    /// The kernel refuses to change the user.
    #[error("cannot become user {name:?}")]
    Change {
        /// The name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A capability that the agent cannot do without.
    #[error(
        "{missing} is missing: start the agent as root, or give its user the ambient capabilities {}",
        capabilities::names(&capabilities::NEEDED)
    )]
    Missing {
        /// The capability.
        missing: caps::Capability,
    },
    /// The capability that other network namespaces take.
    #[error(
        "CAP_SYS_ADMIN is missing, which `network_namespaces` in the configuration takes: start the agent as root, or give \
         its user the ambient capabilities {}",
        capabilities::names(&capabilities::needed(true))
    )]
    MissingForNamespaces,
    /// The kernel refuses to take capabilities away.
    #[error("cannot give capabilities up: {0}")]
    Capabilities(caps::errors::CapsError),
    /// The kernel refuses `no_new_privs`.
    #[error("cannot do without new privileges")]
    NoNewPrivileges(#[source] Errno),
    /// A directory is somebody else's.
    #[error("{path} belongs to another user: `chown -R {user} {path}`")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Who it should belong to.
        user: u32,
    },
    /// A directory or a file cannot be used.
    #[error("{path} cannot be written to by user {user}, as whom the agent runs")]
    Access {
        /// The directory or file.
        path: PathBuf,
        /// The agent's user.
        user: u32,
        /// Why.
        source: Errno,
    },
    /// A directory cannot be made or given to the user.
    #[error("cannot prepare {path}")]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The reduced process.
#[derive(Debug)]
pub struct Reduced {
    /// Where the directory of the pins is to be reached.
    pub pins: PathBuf,
    /// What that path leads through.
    _held: Option<OwnedFd>,
}

/// Whether the process can become `user` and has what starting takes, and going to other network namespaces if it does. Changes
/// nothing.
pub fn ensure(user: Option<&str>, goes_elsewhere: bool) -> Result<(), PrivilegeError> {
    to_become(user)?;
    capabilities::ensure(&capabilities::needed(goes_elsewhere))
}

/// Makes the process what `settings` say, with the capabilities that opening takes and no others. To be called before a
/// second thread is there.
pub fn reduce(settings: &Settings<'_>) -> Result<Reduced, PrivilegeError> {
    let (current, user) = (user::current(), to_become(settings.user)?);
    if current.is_root() {
        for directory in settings.owned.iter().chain([&settings.pins]) {
            user::own(directory, &user)?;
        }
        for directory in settings.written.iter().filter_map(|file| file.parent()) {
            user::make(directory, 0o750, &user)?;
        }
        for directory in settings.sockets.iter().filter_map(|socket| socket.parent()) {
            user::make(directory, 0o755, &user)?;
        }
    }
    let is_other = user.id != current.id;
    let held = if is_other {
        Some(hold(settings.pins)?)
    } else {
        None
    };
    let become_user = || if is_other { user.become_it() } else { Ok(()) };
    capabilities::keep_for_opening(settings.goes_elsewhere, become_user)?;
    prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)?;
    // What a killed agent left of a socket is replaced, whosever it was.
    let directories = settings.sockets.iter().filter_map(|socket| socket.parent());
    for path in settings
        .owned
        .iter()
        .chain(settings.written)
        .copied()
        .chain(directories)
    {
        check_access(path, &user)?;
    }
    if user.is_root() {
        log::warn!(
            "the agent runs as root: it needs not, with a user of its own (`user` in the configuration)"
        );
    }
    // `/sys/fs/bpf` lets nobody but root through, where systemd mounted it. What root has opened is reached in spite of it.
    let pins = held
        .as_ref()
        .map(|pins| format!("/proc/self/fd/{}", pins.as_raw_fd()));
    Ok(Reduced {
        pins: pins.map_or_else(|| settings.pins.to_owned(), PathBuf::from),
        _held: held,
    })
}

/// The user of this name, whom only root and itself can be; without a name, whoever this is.
fn to_become(name: Option<&str>) -> Result<User, PrivilegeError> {
    let current = user::current();
    let Some(name) = name else {
        return Ok(current);
    };
    let user = User::find(name)?;
    if !current.is_root() && user.id != current.id {
        return Err(PrivilegeError::OtherUser {
            is: current.id.as_raw(),
            name: name.to_owned(),
        });
    }
    Ok(user)
}

fn hold(directory: &Path) -> Result<OwnedFd, PrivilegeError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(directory, flags, Mode::empty()).map_err(|errno| PrivilegeError::Prepare {
        path: directory.to_owned(),
        source: errno.into(),
    })
}

/// Where something cannot be written that matters, the agent does not start. What is not there yet must be possible to make.
fn check_access(path: &Path, user: &User) -> Result<(), PrivilegeError> {
    let is_there = eaccess(path, AccessFlags::F_OK) != Err(Errno::ENOENT);
    let path = if is_there {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    match eaccess(path, AccessFlags::W_OK) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(source) => Err(PrivilegeError::Access {
            path: path.to_owned(),
            user: user.id.as_raw(),
            source,
        }),
    }
}
