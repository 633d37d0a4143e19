//! One datapath thread: ring, stacks, taps.
