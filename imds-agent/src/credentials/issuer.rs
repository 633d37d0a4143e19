//! The embedded issuer: credentials that the agent mints itself.
