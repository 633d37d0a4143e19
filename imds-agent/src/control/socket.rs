//! The socket's file: made beside and renamed into place, so that nobody ever finds it with another mode than its own.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, serve::Listener};
use nix::unistd::{Gid, Group};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream, unix::SocketAddr},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::access::{Access, Peer, Permits};

/// Connections at once of those who may do next to nothing: enough for probes, too few to keep others out.
const STRANGERS_MAX: usize = 16;

/// Where the socket is and who may use it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The socket's path.
    pub socket: PathBuf,
    /// Its file mode; nothing for what the groups need.
    pub mode: Option<u32>,
    /// Members may look.
    pub read_group: Option<String>,
    /// Members may change.
    pub admin_group: Option<String>,
}

impl Settings {
    /// Who may do what, by the groups that the host has.
    pub fn permits(&self) -> Result<Permits, BindError> {
        let group = |field, name: &Option<String>| match name {
            Some(name) => gid(name).map(Some).ok_or_else(|| BindError::Group {
                field,
                name: name.clone(),
            }),
            None => Ok(None),
        };
        Ok(Permits {
            read_group: group("read_group", &self.read_group)?,
            admin_group: group("admin_group", &self.admin_group)?,
        })
    }
}

/// There is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("the control socket {} is in use by another agent", .0.display())]
    Occupied(PathBuf),
    /// There is something else.
    #[error("{} is there already and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// There is no such group.
    #[error("control.{field}: there is no group {name:?}")]
    Group {
        /// `read_group` or `admin_group`.
        field: &'static str,
        /// As the configuration has it.
        name: String,
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
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    permits: Permits,
}

impl Socket {
    /// Makes the socket's file and listens. What a killed agent left is replaced; one that answers is not.
    pub async fn bind(settings: &Settings) -> Result<Self, BindError> {
        let path = &settings.socket;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Io { action, path, source }
        };
        let permits = settings.permits()?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.clone())),
            Ok(_) => match UnixStream::connect(path).await {
                Err(error) if is_stale(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(failed("take the place of", path)(error));
                }
                // Also one that is too busy to answer.
                _ => return Err(BindError::Occupied(path.clone())),
            },
            Err(_) => {}
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("make", directory))?;
        }
        let beside = path.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed("listen at", path))?;
        let mode = settings
            .mode
            .unwrap_or(match (permits.read_group, permits.admin_group) {
                (None, None) => 0o600,
                (Some(_), None) | (None, Some(_)) => 0o660,
                // A file has one group; who of the two is there is told from the peer's credentials.
                (Some(_), Some(_)) => 0o666,
            });
        if let Some(group) = permits.read_group.or(permits.admin_group) {
            chown(&beside, None, Some(group.as_raw())).map_err(failed("change the group of", path))?;
        }
        let prepare = || -> io::Result<u64> {
            fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
            let inode = fs::symlink_metadata(&beside)?.ino();
            fs::rename(&beside, path)?;
            Ok(inode)
        };
        let inode = prepare().map_err(|error| {
            let _ = fs::remove_file(&beside);
            failed("make", path)(error)
        })?;
        let file = SocketFile {
            path: path.clone(),
            inode,
        };
        Ok(Self {
            listener,
            file,
            permits,
        })
    }

    /// Answers requests until dropped, by `router`.
    pub async fn serve(self, router: Router) {
        let router = router.layer(axum::Extension(Arc::new(self.permits)));
        let service = router.into_make_service_with_connect_info::<Peer>();
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        let Self {
            listener,
            file,
            permits,
        } = self;
        // It accepts again after every error, and so never ends.
        let _ = axum::serve(
            Guarded {
                listener,
                permits,
                strangers,
            },
            service,
        )
        .await;
        drop(file);
    }
}

/// The listener, with few seats for strangers.
#[derive(Debug)]
pub struct Guarded {
    listener: UnixListener,
    permits: Permits,
    strangers: Arc<Semaphore>,
}

/// A connection, and who is at its other end.
#[derive(Debug)]
pub struct Seated {
    stream: UnixStream,
    peer: Peer,
    _seat: Option<OwnedSemaphorePermit>,
}

impl Seated {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Listener for Guarded {
    type Io = Seated;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Seated, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let peer = Peer::of(&stream);
            let seat = match self.permits.of(&peer) {
                Access::Anyone => Some(Arc::clone(&self.strangers).try_acquire_owned()),
                Access::Read | Access::Admin => None,
            };
            if let Ok(seat) = seat.transpose() {
                return (
                    Seated {
                        stream,
                        peer,
                        _seat: seat,
                    },
                    address,
                );
            }
            log::debug!("control socket: {peer:?} is one stranger too many");
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Removed when dropped, unless another agent has put its own there.
#[derive(Debug)]
struct SocketFile {
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

/// Whether nobody listens at a socket that is there, or it has just gone.
fn is_stale(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// The group of a name or number.
fn gid(name: &str) -> Option<Gid> {
    if let Ok(number) = name.parse() {
        return Some(Gid::from_raw(number));
    }
    Group::from_name(name).ok().flatten().map(|group| group.gid)
}
