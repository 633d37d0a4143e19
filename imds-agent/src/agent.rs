//! Composes everything and keeps it running.
