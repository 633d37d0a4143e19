//! Who may do what: told by the kernel from the other end of the socket, never by what is sent through it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    Extension,
    extract::{ConnectInfo, Request, connect_info::Connected},
    middleware::Next,
    response::{IntoResponse as _, Response},
    serve::IncomingStream,
};
use nix::unistd::{Gid, geteuid};

use super::{Refusal, peer::Peer, socket::Guarded};
use crate::observe::warnings::Warnings;

/// Characters of a request's target that the log is told.
const TARGET_CHARACTERS_MAX: usize = 256;

/// What a route asks of its caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// Whoever gets through the socket's file mode.
    Anyone,
    /// Look, but at no secret.
    Read,
    /// Change, and see secrets.
    Admin,
}

/// Which groups may do what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Permits {
    /// Members may look.
    pub read_group: Option<Gid>,
    /// Members may change.
    pub admin_group: Option<Gid>,
}

impl Permits {
    /// What `peer` may do. Root and the agent's own user may do everything.
    pub fn of(&self, peer: &Peer) -> Access {
        let is_member = |group: Option<Gid>| group.is_some_and(|group| peer.groups.contains(&group));
        match peer.user {
            None => Access::Anyone,
            Some(user) if user.is_root() || user == geteuid() => Access::Admin,
            Some(_) if is_member(self.admin_group) => Access::Admin,
            Some(_) if is_member(self.read_group) => Access::Read,
            Some(_) => Access::Anyone,
        }
    }
}

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        stream.io().peer().clone()
    }
}

/// What the caller of a request may do, for handlers that show more to some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granted(pub Access);

/// What the log is told of those who may not: everybody who gets through the socket's file may try, as often as it likes.
#[derive(Debug)]
pub struct Attempts {
    since: Instant,
    warnings: Mutex<Warnings>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            warnings: Mutex::default(),
        }
    }
}

impl Attempts {
    fn level(&self) -> log::Level {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.may_tell(self.since.elapsed(), None) {
            log::Level::Info
        } else {
            log::Level::Debug
        }
    }
}

/// Lets a request through to its handler, or does not. Who changed something, or was shown secrets, is in the log.
pub async fn gate(
    needed: Access,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(permits): Extension<Arc<Permits>>,
    Extension(attempts): Extension<Arc<Attempts>>,
    mut request: Request,
    next: Next,
) -> Response {
    let granted = permits.of(&peer);
    request.extensions_mut().insert(Granted(granted));
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = if granted < needed {
        Refusal::forbidden(needed, peer.user).into_response()
    } else {
        next.run(request).await
    };
    // Read as it is obeyed: nobody is shown secrets by another spelling.
    let mut query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    if !method.is_safe() || query.any(|(name, _)| name == "secrets") {
        let user = peer
            .user
            .map_or_else(|| "nobody known".to_owned(), |user| user.to_string());
        let level = if granted < needed {
            attempts.level()
        } else {
            log::Level::Info
        };
        let target = uri.to_string();
        let target = target.chars().take(TARGET_CHARACTERS_MAX);
        // Some letters that a terminal takes for more than they are may stand in a target.
        let target: String = target
            .map(|letter| if letter.is_control() { '?' } else { letter })
            .collect();
        log::log!(
            level,
            "control socket: user {user}: {method} {target}: {}",
            response.status()
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn the_peers_user_and_groups_decide() {
        let permits = Permits {
            read_group: Some(Gid::from_raw(5000)),
            admin_group: Some(Gid::from_raw(5001)),
        };
        let of = |user: Option<u32>, groups: &[u32]| {
            let groups = groups.iter().copied().map(Gid::from_raw).collect();
            permits.of(&Peer {
                user: user.map(Uid::from_raw),
                groups,
            })
        };
        assert_eq!(of(Some(0), &[]), Access::Admin);
        assert_eq!(of(Some(geteuid().as_raw()), &[]), Access::Admin);
        assert_eq!(of(Some(4000), &[5001, 5000]), Access::Admin);
        assert_eq!(of(Some(4000), &[7, 5000]), Access::Read);
        assert_eq!(of(Some(4000), &[0]), Access::Anyone);
        assert_eq!(of(None, &[5001]), Access::Anyone);
        let nobody = Permits::default().of(&Peer {
            user: Some(Uid::from_raw(4000)),
            groups: vec![Gid::from_raw(0)],
        });
        assert_eq!(nobody, Access::Anyone);
    }
}
