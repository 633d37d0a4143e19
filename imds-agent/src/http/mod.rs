//! HTTP/1.x as a sans-IO server: bytes of one stream in, bytes of one stream out.
//!
//! Read first: RFC 9112 (HTTP/1.1), and section 0 and B.6 of the project's wire contract for the limits.
//! Nothing in here knows what a path means.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod connection;
pub mod encode;
pub mod parse;

pub use connection::{Connection, Transmit};
pub use encode::{ContentType, Response, Status};
pub use parse::{Request, Version};

use crate::now::Now;

/// Whoever answers requests.
pub trait Service {
    /// Fills `response`, which comes in as an empty 200, for one complete request.
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response);

    /// Is told of what was refused with `status` before it was a request.
    fn handle_malformed(&mut self, status: Status) {
        _ = status;
    }
}
