//! The agent's own user, and what belongs to it.

use std::{
    env,
    ffi::CString,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown},
    path::{Path, PathBuf},
};

use nix::unistd::{self, Gid, Uid, initgroups, setresgid, setresuid};

use super::PrivilegeError;

/// A user of the host.
#[derive(Clone, Debug)]
pub struct User {
    /// Its number.
    pub id: Uid,
    group: Gid,
    name: String,
    home: PathBuf,
}

/// Who runs this.
pub(super) fn current() -> User {
    User {
        id: Uid::effective(),
        group: Gid::effective(),
        name: String::new(),
        home: PathBuf::new(),
    }
}

impl User {
    /// The user called `name`.
    pub fn find(name: &str) -> Result<Self, PrivilegeError> {
        match unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(Self {
                id: user.uid,
                group: user.gid,
                name: user.name,
                home: user.dir,
            }),
            Ok(None) => Err(PrivilegeError::NoSuchUser {
                name: name.to_owned(),
            }),
            Err(source) => Err(PrivilegeError::Lookup {
                name: name.to_owned(),
                source,
            }),
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.id.is_root()
    }

    /// Changes the process to this user, with all its groups.
    pub(super) fn become_it(&self) -> Result<(), PrivilegeError> {
        let name = CString::new(self.name.as_str()).unwrap_or_default();
        initgroups(&name, self.group)
            .and_then(|()| setresgid(self.group, self.group, self.group))
            .and_then(|()| setresuid(self.id, self.id, self.id))
            .map_err(|source| PrivilegeError::Change {
                name: self.name.clone(),
                source,
            })?;
        #[expect(unsafe_code, reason = "the environment belongs to all threads")]
        // SAFETY: `reduce` is called before there is a second thread.
        unsafe {
            // Where an SDK looks for the host's identity.
            env::set_var("HOME", &self.home);
        }
        Ok(())
    }
}

/// Makes a directory that is the user's alone, or gives it to the user with all that is in it.
pub(super) fn own(directory: &Path, user: &User) -> Result<(), PrivilegeError> {
    make(directory, 0o700, user)?;
    let owner = fs::symlink_metadata(directory).map_err(failed(directory))?.uid();
    if owner == user.id.as_raw() {
        return Ok(());
    }
    // What was root's, or is to be root's, holds no traps. Of another user's it is not known what hangs in it.
    if owner != 0 && !user.is_root() {
        return Err(PrivilegeError::Owner {
            path: directory.to_owned(),
            user: user.id.as_raw(),
        });
    }
    give(directory, user).map_err(failed(directory))
}

/// Makes a directory for the user if there is none.
pub(super) fn make(directory: &Path, mode: u32, user: &User) -> Result<(), PrivilegeError> {
    if directory.exists() {
        return Ok(());
    }
    let make = || {
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent)?;
        }
        DirBuilder::new().mode(mode).create(directory)?;
        give(directory, user)
    };
    make().map_err(failed(directory))
}

/// Follows no link. What is deepest goes first: a directory that is the user's already has nothing left to give.
fn give(path: &Path, user: &User) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    lchown(path, Some(user.id.as_raw()), Some(user.group.as_raw()))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> PrivilegeError {
    move |source| PrivilegeError::Prepare {
        path: path.to_owned(),
        source,
    }
}
