//! Guests, namespaces and peers for the integration tests.
