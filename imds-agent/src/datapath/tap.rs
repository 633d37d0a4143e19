//! Tap devices by name and index.
