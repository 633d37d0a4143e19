//! What became of requests, counted.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::latency::Latency;
use crate::{
    http::{Request, Status},
    imds::{Delivery, ImdsVersion, Outcome, Refusal, TokenError},
};

/// Both ways to ask, as labels say them.
pub const VERSIONS: [&str; 2] = ["v1", "v2"];

/// Methods that a request may be counted under: a guest may send any token as its method.
pub const METHODS: [&str; 5] = ["get", "put", "head", "options", "other"];

/// Every status that a response may have, the usual ones first.
pub const STATUSES: [Status; 10] = [
    Status::Ok,
    Status::Unauthorized,
    Status::NotFound,
    Status::Forbidden,
    Status::BadRequest,
    Status::MethodNotAllowed,
    Status::ServiceUnavailable,
    Status::RequestTimeout,
    Status::ContentTooLarge,
    Status::RequestHeaderFieldsTooLarge,
];

/// Why requests are refused, as labels say it.
pub const REFUSALS: [&str; 15] = [
    "token-missing",
    "token-expired",
    "token-forged",
    "token-malformed",
    "token-key-unknown",
    "not-found",
    "pending",
    "unknown-caller",
    "forwarded",
    "endpoint-disabled",
    "method-not-allowed",
    "token-path",
    "ttl-missing",
    "ttl-invalid",
    "over-rate",
];

/// Counts of one worker, which alone writes them: they share no cache line with another's. Read by whoever reports.
///
/// A request that is answered with metadata costs one atomic addition to memory that is this core's already, and its latency
/// two more: some 40 ns together, and a reading of the clock for each batch that is sent.
#[derive(Default, Debug)]
#[repr(align(128))]
pub struct Requests {
    answered: [[[AtomicU64; STATUSES.len()]; METHODS.len()]; VERSIONS.len()],
    malformed: [AtomicU64; STATUSES.len()],
    refused: [AtomicU64; REFUSALS.len()],
    forwarded: [AtomicU64; VERSIONS.len()],
    session_tokens: AtomicU64,
    role_credentials: AtomicU64,
    identity_credentials: AtomicU64,
    /// How long requests took.
    pub latency: Latency,
}

impl Requests {
    /// Counts one request that was answered.
    pub fn count(&self, request: &Request<'_>, outcome: &Outcome) {
        let version = match outcome.version {
            ImdsVersion::V1 => 0,
            ImdsVersion::V2 => 1,
        };
        one_at(
            self.cells(version, method(request.method)),
            status(outcome.status),
        );
        if let Some(refusal) = outcome.refusal
            && let Some(at) = REFUSALS.iter().position(|word| *word == word_for(refusal))
        {
            one_at(&self.refused, at);
        }
        if outcome.is_forwarded {
            one_at(&self.forwarded, version);
        }
        match outcome.delivery {
            Delivery::SessionToken => one(&self.session_tokens),
            Delivery::RoleCredentials => one(&self.role_credentials),
            Delivery::IdentityCredentials => one(&self.identity_credentials),
            Delivery::Metadata | Delivery::Nothing => {}
        }
    }

    /// Counts what HTTP refused before it was a request.
    pub fn count_malformed(&self, refused_with: Status) {
        one_at(&self.malformed, status(refused_with));
    }

    /// Requests answered, by the places in [`VERSIONS`], [`METHODS`] and [`STATUSES`].
    pub fn answered(&self, version: usize, method: usize, status: usize) -> u64 {
        read_at(self.cells(version, method), status)
    }

    /// What HTTP refused, by the place in [`STATUSES`].
    pub fn malformed(&self, status: usize) -> u64 {
        read_at(&self.malformed, status)
    }

    /// Requests refused, by the place in [`REFUSALS`].
    pub fn refused(&self, refusal: usize) -> u64 {
        read_at(&self.refused, refusal)
    }

    /// Requests that a proxy had put its mark on, by the place in [`VERSIONS`].
    pub fn forwarded(&self, version: usize) -> u64 {
        read_at(&self.forwarded, version)
    }

    /// Session tokens minted.
    pub fn session_tokens(&self) -> u64 {
        read(&self.session_tokens)
    }

    /// Sets of credentials handed out: of roles, and of the instance identity role.
    pub fn credentials(&self) -> [u64; 2] {
        [read(&self.role_credentials), read(&self.identity_credentials)]
    }

    /// Requests of one version and method, by the place in [`STATUSES`].
    fn cells(&self, version: usize, method: usize) -> &[AtomicU64] {
        let cells = self.answered.get(version).and_then(|methods| methods.get(method));
        cells.map_or(&[], |cells| cells.as_slice())
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_version = |methods: &[[AtomicU64; _]; _]| methods.iter().flatten().map(read).sum::<u64>();
        let [v1, v2] = self.answered.each_ref().map(of_version);
        write!(
            f,
            "{} requests ({v2} IMDSv2, {v1} IMDSv1), {} refused, {} session tokens, {} sets of role credentials",
            v1.saturating_add(v2),
            self.refused.iter().map(read).sum::<u64>(),
            self.session_tokens(),
            self.credentials().iter().sum::<u64>(),
        )
    }
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn one_at(counters: &[AtomicU64], at: usize) {
    if let Some(counter) = counters.get(at) {
        one(counter);
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn read_at(counters: &[AtomicU64], at: usize) -> u64 {
    counters.get(at).map_or(0, read)
}

/// The place in [`METHODS`].
fn method(method: &str) -> usize {
    match method {
        "GET" => 0,
        "PUT" => 1,
        "HEAD" => 2,
        "OPTIONS" => 3,
        _ => 4,
    }
}

/// The place in [`STATUSES`].
fn status(status: Status) -> usize {
    match status {
        Status::Ok => 0,
        Status::Unauthorized => 1,
        Status::NotFound => 2,
        Status::Forbidden => 3,
        Status::BadRequest => 4,
        Status::MethodNotAllowed => 5,
        Status::ServiceUnavailable => 6,
        Status::RequestTimeout => 7,
        Status::ContentTooLarge => 8,
        Status::RequestHeaderFieldsTooLarge => 9,
    }
}

/// One of [`REFUSALS`].
pub fn word_for(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TokenMissing => "token-missing",
        Refusal::Token(TokenError::Expired) => "token-expired",
        Refusal::Token(TokenError::Forged) => "token-forged",
        Refusal::Token(TokenError::Malformed) => "token-malformed",
        Refusal::Token(TokenError::UnknownKey) => "token-key-unknown",
        Refusal::NotFound => "not-found",
        Refusal::Pending => "pending",
        Refusal::UnknownCaller => "unknown-caller",
        Refusal::Forwarded => "forwarded",
        Refusal::EndpointDisabled => "endpoint-disabled",
        Refusal::MethodNotAllowed(_) => "method-not-allowed",
        Refusal::TokenPath => "token-path",
        Refusal::TtlMissing => "ttl-missing",
        Refusal::TtlInvalid => "ttl-invalid",
        Refusal::OverRate => "over-rate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::Allow;

    #[test]
    fn every_status_has_its_place() {
        for (at, is) in STATUSES.into_iter().enumerate() {
            assert_eq!(status(is), at, "{is:?}");
        }
    }

    #[test]
    fn every_refusal_has_its_place() {
        let all = [
            Refusal::TokenMissing,
            Refusal::Token(TokenError::Expired),
            Refusal::Token(TokenError::Forged),
            Refusal::Token(TokenError::Malformed),
            Refusal::Token(TokenError::UnknownKey),
            Refusal::NotFound,
            Refusal::Pending,
            Refusal::UnknownCaller,
            Refusal::Forwarded,
            Refusal::EndpointDisabled,
            Refusal::MethodNotAllowed(Allow::GetHead),
            Refusal::TokenPath,
            Refusal::TtlMissing,
            Refusal::TtlInvalid,
            Refusal::OverRate,
        ];
        assert_eq!(all.map(word_for), REFUSALS);
    }

    #[test]
    fn workers_share_no_cache_line() {
        assert_eq!(align_of::<Requests>() % 128, 0);
        assert_eq!(size_of::<Requests>() % 128, 0);
    }
}
