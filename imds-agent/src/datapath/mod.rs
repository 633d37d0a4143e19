//! Between kernel and agent: the classifier's life, the taps, frames out of the ring and frames into the taps.
//!
//! Nothing in here knows what a request is. The only room with `unsafe` in it.

pub mod inject;
pub mod link_watch;
pub mod program;
pub mod punt;
pub mod tap;

pub use inject::Injector;
pub use program::Classifier;
pub use punt::{Punt, PuntRing};
