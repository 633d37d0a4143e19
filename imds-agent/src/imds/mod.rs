//! What a request means: access, session token, path, answer.
//!
//! Read first: the EC2 user guide, "Use instance metadata", and the project's wire contract in `docs/`.
//! The order of refusals is the contract's: method, `X-Forwarded-For`, endpoint, token, path.

pub mod access;
pub mod documents;
pub mod path;
pub mod token;
pub mod tree;

use std::sync::Arc;

use crate::{
    credentials::RoleState,
    http::{Request, Response},
    now::Now,
    registry::{NetworkInterface, snapshot::Member},
};

/// Who is asking, as the tap tells it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The instance.
    pub member: &'a Member,
    /// The interface that the request came through.
    pub interface: &'a NetworkInterface,
    /// The state of the instance's role session; nothing while the first fetch is under way.
    pub role_state: Option<&'a Arc<RoleState>>,
}

/// The meaning of requests. One per worker.
#[derive(Debug)]
pub struct Imds {}

impl Imds {
    /// Fills `response` for `caller`, or for a caller that the registry does not know (yet).
    pub fn respond(
        &mut self,
        _now: Now,
        _caller: Option<&Caller<'_>>,
        _request: &Request<'_>,
        _response: &mut Response,
    ) {
    }
}
