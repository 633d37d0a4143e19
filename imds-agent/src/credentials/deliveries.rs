//! Which ways a set has already gone to its guest.

use std::sync::atomic::{AtomicU8, Ordering};

/// How a guest asked for a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// IMDSv1: without a session token.
    WithoutToken,
    /// IMDSv2.
    WithToken,
}

/// Remembers each way once.
#[derive(Default, Debug)]
pub struct Deliveries(AtomicU8);

impl Deliveries {
    /// Takes note of a delivery; whether it is the first in its way.
    pub fn is_first(&self, asked: Asked) -> bool {
        let bit = match asked {
            Asked::WithoutToken => 1,
            Asked::WithToken => 2,
        };
        // Nearly always it is not, and then nothing is written.
        self.0.load(Ordering::Relaxed) & bit == 0 && self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_first_once() {
        let deliveries = Deliveries::default();
        assert!(deliveries.is_first(Asked::WithToken));
        assert!(!deliveries.is_first(Asked::WithToken));
        assert!(deliveries.is_first(Asked::WithoutToken));
        assert!(!deliveries.is_first(Asked::WithoutToken));
    }
}
