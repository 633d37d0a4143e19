//! The socket: its mode, and the seats that those have who may not do everything anyway.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, serve::Listener};
use nix::{
    errno::Errno,
    unistd::{Gid, Group},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream, unix::SocketAddr},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

use super::{
    access::{Access, Attempts, Permits},
    peer::Peer,
};
use crate::{
    accepting::Accepting,
    unix_socket::{BindError, UnixSocket},
};

/// Connections at once of those who may do next to nothing: enough for probes, too few to keep others out.
const STRANGERS_MAX: usize = 16;

/// How long a stranger keeps its seat: a probe takes milliseconds, and others want to probe, too.
const STRANGERS_TIME: Duration = Duration::from_secs(5);

/// Connections at once of those who may only look: more than their shells and scripts have, and a part of the thousand
/// descriptors that a process mostly has. Without any left no credentials could be got.
const READERS_MAX: usize = 128;

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
    pub fn permits(&self) -> Result<Permits, ControlError> {
        let group = |field, name: &Option<String>| {
            let Some(name) = name.clone() else {
                return Ok(None);
            };
            match gid(&name) {
                Ok(Some(gid)) => Ok(Some(gid)),
                Ok(None) => Err(ControlError::Group { field, name }),
                Err(source) => Err(ControlError::GroupLookup { field, name, source }),
            }
        };
        Ok(Permits {
            read_group: group("read_group", &self.read_group)?,
            admin_group: group("admin_group", &self.admin_group)?,
        })
    }
}

/// There is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be made.
    #[error("the control socket")]
    Socket(#[from] BindError),
    /// There is no such group.
    #[error("control.{field}: there is no group {name:?}")]
    Group {
        /// `read_group` or `admin_group`.
        field: &'static str,
        /// As the configuration has it.
        name: String,
    },
    /// It cannot be told whether there is such a group, as while a directory service is not there.
    #[error("control.{field}: cannot look up group {name:?}")]
    GroupLookup {
        /// `read_group` or `admin_group`.
        field: &'static str,
        /// As the configuration has it.
        name: String,
        /// Why not.
        source: Errno,
    },
}

/// The open socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    socket: UnixSocket,
    permits: Permits,
}

impl Socket {
    /// Makes the socket's file and listens.
    pub async fn bind(settings: &Settings) -> Result<Self, ControlError> {
        let permits = settings.permits()?;
        let mode = settings
            .mode
            .unwrap_or(match (permits.read_group, permits.admin_group) {
                (None, None) => 0o600,
                (Some(_), None) | (None, Some(_)) => 0o660,
                // A file has one group; who of the two is there is told from the peer's credentials.
                (Some(_), Some(_)) => 0o666,
            });
        // Where everybody gets through, it does not matter whose the file is.
        let group = permits.read_group.or(permits.admin_group);
        let group = group.filter(|_| mode & 0o006 != 0o006).map(Gid::as_raw);
        let socket = UnixSocket::bind(&settings.socket, mode, group).await?;
        Ok(Self { socket, permits })
    }

    /// Answers requests until dropped, by `router`.
    pub async fn serve(self, router: Router) {
        let Self { socket, permits } = self;
        let router = router
            .layer(axum::Extension(Arc::new(permits)))
            .layer(axum::Extension(Arc::<Attempts>::default()));
        let service = router.into_make_service_with_connect_info::<Peer>();
        let (file, listener) = socket.into_parts();
        let guarded = Guarded {
            listener,
            accepting: Accepting::of("control socket"),
            permits,
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        };
        // It accepts again after every error, and so never ends.
        let _ = axum::serve(guarded, service).await;
        drop(file);
    }
}

/// The listener, with few seats for strangers and some for readers.
#[derive(Debug)]
pub struct Guarded {
    listener: UnixListener,
    accepting: Accepting,
    permits: Permits,
    strangers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// A connection, and who is at its other end.
#[derive(Debug)]
pub struct Seated {
    stream: UnixStream,
    peer: Peer,
    /// Until when, if not for as long as it likes.
    until: Option<Pin<Box<Sleep>>>,
    _seat: Option<OwnedSemaphorePermit>,
}

impl Seated {
    /// Fails once its time is up, and has whoever polls woken by then.
    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let until = self.until.as_mut();
        if until.is_some_and(|until| until.as_mut().poll(context).is_ready()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

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
            let listener = &self.listener;
            let (stream, address) = self.accepting.next(|| listener.accept()).await;
            let peer = Peer::of(&stream);
            let (seats, time) = match self.permits.of(&peer) {
                Access::Anyone => (Some(&self.strangers), Some(STRANGERS_TIME)),
                Access::Read => (Some(&self.readers), None),
                Access::Admin => (None, None),
            };
            let seat = seats.map(|seats| Arc::clone(seats).try_acquire_owned());
            if let Ok(seat) = seat.transpose() {
                return (
                    Seated {
                        stream,
                        peer,
                        until: time.map(|time| Box::pin(sleep(time))),
                        _seat: seat,
                    },
                    address,
                );
            }
            log::debug!("control socket: {peer:?} is one too many of its kind");
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
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Who reads no answers does not stay for them.
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The group of a name or number. Whether there is one of a name can be beyond telling.
fn gid(name: &str) -> Result<Option<Gid>, Errno> {
    if let Ok(number) = name.parse() {
        return Ok(Some(Gid::from_raw(number)));
    }
    Ok(Group::from_name(name)?.map(|group| group.gid))
}
