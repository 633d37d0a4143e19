//! How fast this machine is beside a real one: an emulated processor is told of in the environment.
//!
//! What waits for a condition needs none of this. It is for tests that do the same very often, of which less is enough there.

use std::{env, time::Duration};

/// How many times slower than a real machine this one is, as `tests/guest-init` says.
fn slowness() -> usize {
    let told = env::var("IMDS_TEST_SLOWNESS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// How much of `real` work is enough here, `least` anyway.
pub fn work(real: usize, least: usize) -> usize {
    (real / slowness()).max(least)
}

/// How long something may take, or rests, that does so for `real` on a real machine.
pub fn patience(real: Duration) -> Duration {
    real.saturating_mul(slowness().try_into().unwrap_or(u32::MAX))
}
