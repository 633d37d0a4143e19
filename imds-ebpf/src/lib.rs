//! The classifier's logic and the layouts it shares with the agent.
//!
//! This library target is what the agent links and what `cargo test` runs on the host; the binary target is the
//! program that the kernel runs. Read in this order: [`abi`], [`concern`], [`classify`], [`expired`],
//! [`hairpin`], [`inbound`], [`bucket`], [`headers`].

#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod abi;
pub mod bucket;
pub mod classify;
pub mod concern;
pub mod expired;
pub mod hairpin;
pub mod headers;
pub mod inbound;
