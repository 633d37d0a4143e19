//! What callers of the security token service were told, counted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::sts::Exchange;

/// Requests to the security token service, by action and status: the actions that it has, and the statuses that it gives.
#[derive(Default, Debug)]
pub struct StsExchanges {
    told: Mutex<BTreeMap<(&'static str, u16), u64>>,
    throttled: AtomicU64,
}

impl StsExchanges {
    /// Counts one.
    pub fn count(&self, exchange: &Exchange<'_>) {
        let Some(told) = exchange.told else {
            self.throttled.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let key = (told.action.unwrap_or("other"), told.status);
        let mut counts = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    /// The counts.
    pub fn counted(&self) -> Vec<([String; 2], u64)> {
        let counts = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let labelled = |((action, status), count): (&(&str, u16), &u64)| {
            ([(*action).to_owned(), status.to_string()], *count)
        };
        counts.iter().map(labelled).collect()
    }

    /// Those that came too often to be looked at.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }
}
