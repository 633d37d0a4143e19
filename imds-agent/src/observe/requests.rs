//! What became of requests, counted.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::imds::{Delivery, ImdsVersion, Outcome};

/// Counts of all instances together. Written by workers without waiting for anybody, read by whoever reports.
#[derive(Default, Debug)]
pub struct Requests {
    v1: AtomicU64,
    v2: AtomicU64,
    refused: AtomicU64,
    session_tokens: AtomicU64,
    role_credentials: AtomicU64,
}

impl Requests {
    /// Counts one request.
    pub fn count(&self, outcome: &Outcome) {
        let one = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        match outcome.version {
            ImdsVersion::V1 => one(&self.v1),
            ImdsVersion::V2 => one(&self.v2),
        }
        if outcome.refusal.is_some() {
            one(&self.refused);
        }
        match outcome.delivery {
            Delivery::SessionToken => one(&self.session_tokens),
            Delivery::RoleCredentials | Delivery::IdentityCredentials => one(&self.role_credentials),
            Delivery::Metadata | Delivery::Nothing => {}
        }
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (v1, v2) = (read(&self.v1), read(&self.v2));
        write!(
            f,
            "{} requests ({v2} IMDSv2, {v1} IMDSv1), {} refused, {} session tokens, {} sets of role credentials",
            v1 + v2,
            read(&self.refused),
            read(&self.session_tokens),
            read(&self.role_credentials),
        )
    }
}
