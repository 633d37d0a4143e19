//! The process at the other end of the socket, as the kernel knows it.
//!
//! Read first: unix(7), `SO_PEERCRED` and `SO_PEERGROUPS` (Linux 4.13). Both tell who it was when it connected, whatever it has
//! become since, and ask nothing of `/proc`, which a service may see with its own processes alone.

#![expect(unsafe_code, reason = "no crate has this socket option")]

use std::os::fd::{AsFd, AsRawFd as _};

use nix::{
    errno::Errno,
    libc::{self, gid_t, socklen_t},
    unistd::{Gid, Uid},
};
use tokio::net::UnixStream;

/// The process at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Nothing where the kernel does not say.
    pub user: Option<Uid>,
    /// Its own group and the others that it is a member of.
    pub groups: Vec<Gid>,
}

impl Peer {
    /// The other end of `stream`.
    pub fn of(stream: &UnixStream) -> Self {
        let Ok(credentials) = stream.peer_cred() else {
            return Self {
                user: None,
                groups: Vec::new(),
            };
        };
        // Who has none, or of whom they are not told, is a member of its own group alone.
        let mut groups = supplementary_groups(stream).unwrap_or_default();
        groups.push(Gid::from_raw(credentials.gid()));
        Self {
            user: Some(Uid::from_raw(credentials.uid())),
            groups,
        }
    }
}

/// The groups of the other end besides its own.
fn supplementary_groups(socket: impl AsFd) -> Result<Vec<Gid>, Errno> {
    let mut groups: Vec<gid_t> = Vec::new();
    loop {
        let mut bytes = socklen_t::try_from(size_of_val(groups.as_slice())).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the kernel writes at most `bytes` bytes to `groups`, which is as long, and any bytes are numbers of groups.
        let asked = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)? / size_of::<gid_t>();
        match Errno::result(asked) {
            Ok(_) => return Ok(groups.into_iter().take(count).map(Gid::from_raw).collect()),
            // Where there are more, the kernel says how many.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net};

    use nix::unistd::{getegid, geteuid, getgroups};

    use super::*;

    #[tokio::test]
    async fn the_other_end_of_a_pair_is_oneself() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&stream);
        assert_eq!(peer.user, Some(geteuid()));
        let mut groups = getgroups().unwrap();
        groups.push(getegid());
        assert_eq!(peer.groups, groups);
    }

    #[test]
    fn a_socket_that_nobody_is_at_the_end_of_has_no_groups() {
        let (stream, _other) = net::UnixStream::pair().unwrap();
        assert_eq!(supplementary_groups(&stream), Ok(getgroups().unwrap()));
        let network = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(supplementary_groups(&network).is_err());
    }
}
