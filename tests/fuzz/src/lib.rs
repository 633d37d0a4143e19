//! Fuzz targets over everything that reads bytes of a guest, of a peer or of a file.
//!
//! A target is a function from bytes to nothing that panics when a promise is broken. libFuzzer runs them where a nightly is
//! there (`cargo xtask fuzz`); the tests of this crate run every input of the corpora through them on any Rust, so
//! that a found bug stays found.

pub mod capsules;
pub mod classifier;
pub mod http;
pub mod paths;
pub mod records;
pub mod ring;
pub mod seeds;
pub mod service;
pub mod stack;
pub mod sts;
pub mod tokens;

/// A target's name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("capsules", capsules::run),
    ("classifier", classifier::run),
    ("http", http::run),
    ("paths", paths::run),
    ("records", records::run),
    ("ring", ring::run),
    ("stack", stack::run),
    ("sts", sts::run),
    ("tokens", tokens::run),
];
