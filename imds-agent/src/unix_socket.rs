//! A Unix socket in the file system: made beside and renamed into place, so that nobody ever finds it with another mode than
//! its own; removed when the agent ends.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
        net,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::Instant,
};

/// How long it may take until another has let go of the socket: a killed agent on its way out.
const HELD_MAX: Duration = Duration::from_secs(2);

/// How often it is looked meanwhile.
const HELD_LOOK: Duration = Duration::from_millis(20);

/// There is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("the socket {} is in use by another agent", .0.display())]
    Occupied(PathBuf),
    /// There is something else.
    #[error("{} is there already and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The kernel refuses to give it to a group.
    #[error("cannot give {} to group {group}, of which the agent's user has to be a member", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group's number.
        group: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The open socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl UnixSocket {
    /// Makes the socket's file, of `group` unless that is the agent's own, and listens. What a killed agent left is
    /// replaced; one that goes on answering is not.
    pub async fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        let by = Instant::now() + HELD_MAX;
        while let Err(error) = check_free(path).await {
            if !matches!(error, BindError::Occupied(_)) || Instant::now() >= by {
                return Err(error);
            }
            tokio::time::sleep(HELD_LOOK).await;
        }
        if let Some(directory) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
            made.map_err(failed("make", directory))?;
        }
        let beside = path.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed("listen at", path))?;
        let prepare = || {
            if let Some(group) = group {
                chown(&beside, None, Some(group)).map_err(|source| BindError::Group {
                    path: path.to_owned(),
                    group,
                    source,
                })?;
            }
            fs::set_permissions(&beside, fs::Permissions::from_mode(mode))
                .and_then(|()| fs::symlink_metadata(&beside))
                .and_then(|made| fs::rename(&beside, path).map(|()| made.ino()))
                .map_err(failed("make", path))
        };
        let inode = prepare().inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })?;
        let path = path.to_owned();
        Ok(Self {
            listener,
            file: SocketFile { path, inode },
        })
    }

    /// The file, for as long as it is to be there, and where others connect.
    pub fn into_parts(self) -> (SocketFile, UnixListener) {
        (self.file, self.listener)
    }
}

/// Removes what a killed agent left at `path`, if that is all there is: for root, before it becomes a user who may not even
/// look whether anybody answers.
pub fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let connected = || net::UnixStream::connect(path);
    if is_socket && connected().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = fs::remove_file(path);
    }
}

/// Removed when dropped, unless another agent has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a socket may be made at `path`.
async fn check_free(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    match UnixStream::connect(path).await {
        Err(error) if is_stale(&error) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("take the place of", path)(error))
        }
        // Also one that is too busy to answer.
        _ => Err(BindError::Occupied(path.to_owned())),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError + use<> {
    let path = path.to_owned();
    move |source| BindError::Io { action, path, source }
}

/// Whether nobody listens at a socket that is there, or it has just gone.
fn is_stale(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_replaced_when_nobody_answers_and_never_when_somebody_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/socket");
        let socket = UnixSocket::bind(&path, 0o640, None).await.unwrap();
        let mode = || fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o640);
        let second = UnixSocket::bind(&path, 0o600, None).await;
        assert!(matches!(second, Err(BindError::Occupied(_))), "{second:?}");
        remove_stale(&path);
        assert!(path.exists());
        // As if killed: the file stays.
        let (file, listener) = socket.into_parts();
        drop(listener);
        let next = UnixSocket::bind(&path, 0o600, None).await.unwrap();
        assert_eq!(mode(), 0o600);
        // The earlier agent ends late, and leaves the next one's alone.
        drop(file);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
        drop(net::UnixListener::bind(&path).unwrap());
        remove_stale(&path);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        remove_stale(&path);
        let other = UnixSocket::bind(&path, 0o600, None).await;
        assert!(matches!(other, Err(BindError::NoSocket(_))), "{other:?}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
