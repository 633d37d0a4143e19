//! Guests, namespaces and peers for the integration tests.

pub mod frames;
pub mod kernel;
