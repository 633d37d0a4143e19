//! Offsets and sizes of the headers that the classifier reads.
