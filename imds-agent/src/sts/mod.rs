//! The embedded issuer's security token service: who is calling, and roles for those who are in a role, as AWS's STS answers it.
//!
//! A session token says itself whose it is, so a request is verified with the issuer's key and nothing else: on any host that
//! holds the key, for sets that any other minted.
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

pub mod listener;
mod peers;
pub mod query;
pub mod sigv4;
pub mod tls;
pub mod xml;

pub use listener::{Endpoint, Exchange, Settings};
pub use query::{Service, Told};
