//! How fast this machine is beside a real one: an emulated processor is told of in the environment.
//!
//! What waits for a condition needs none of this. It is for tests that do the same very often, of which less is enough there.

use std::env;

/// How many times slower than a real machine this one is, as `tests/guest-init` says.
fn slowness() -> usize {
    let told = env::var("IMDS_TEST_SLOWNESS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// How much of `real` work is enough here, `least` anyway.
pub fn work(real: usize, least: usize) -> usize {
    (real / slowness()).max(least)
}
