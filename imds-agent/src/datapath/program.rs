//! Loads, attaches and adopts the classifier, binds taps, reads counters.

/// The loaded classifier.
#[derive(Debug)]
pub struct Classifier {}
