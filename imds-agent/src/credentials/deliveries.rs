//! Which ways a set may go to its guest, and has already gone.

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
pub struct Deliveries {
    made: AtomicU8,
    is_with_token_alone: bool,
}

impl Deliveries {
    /// Of a set that says of itself that it is handed out against session tokens, so that it may go no other way.
    pub fn with_token_alone() -> Self {
        Self {
            is_with_token_alone: true,
            ..Self::default()
        }
    }

    /// Whether the set may go to a guest that asks so.
    pub fn allow(&self, asked: Asked) -> bool {
        asked == Asked::WithToken || !self.is_with_token_alone
    }

    /// Takes note of a delivery; whether it is the first in its way.
    pub fn is_first(&self, asked: Asked) -> bool {
        let bit = match asked {
            Asked::WithoutToken => 1,
            Asked::WithToken => 2,
        };
        // Nearly always it is not, and then nothing is written.
        self.made.load(Ordering::Relaxed) & bit == 0 && self.made.fetch_or(bit, Ordering::Relaxed) & bit == 0
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
