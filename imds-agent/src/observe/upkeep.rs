//! What sources of role credentials and callers of the security token service were told, counted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    credentials::{Assumption, FetchError},
    registry::role::RoleSource,
    sts::Exchange,
};

/// Kinds of sources, as labels say them.
pub const SOURCES: [&str; 3] = ["issuer", "process", "sts"];

/// What comes of asking a source, as labels say it.
pub const OUTCOMES: [&str; 3] = ["ready", "refused", "unavailable"];

/// Answers of sources, by kind and outcome.
#[derive(Default, Debug)]
pub struct Fetches([[AtomicU64; OUTCOMES.len()]; SOURCES.len()]);

impl Fetches {
    /// Counts one answer. `host` is the source of roles that name none.
    pub fn count(&self, assumption: &Assumption<'_>, host: &RoleSource) {
        let source = match assumption.request.role.credentials.as_ref().unwrap_or(host) {
            RoleSource::Issuer => 0,
            RoleSource::Process { .. } => 1,
            RoleSource::Sts(_) => 2,
        };
        let outcome = match assumption.outcome {
            Ok(_) => 0,
            Err(FetchError::Refused { .. }) => 1,
            Err(FetchError::Unavailable(_)) => 2,
        };
        self.0[source][outcome].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts, by the places in [`SOURCES`] and [`OUTCOMES`].
    pub fn counted(&self) -> impl Iterator<Item = ([&'static str; 2], u64)> {
        SOURCES.into_iter().zip(&self.0).flat_map(|(source, outcomes)| {
            let counted = OUTCOMES.into_iter().zip(outcomes);
            counted.map(move |(outcome, count)| ([source, outcome], count.load(Ordering::Relaxed)))
        })
    }
}

/// Requests to the security token service, by action and status: the actions that it has, and the statuses that it gives.
#[derive(Default, Debug)]
pub struct StsExchanges(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl StsExchanges {
    /// Counts one.
    pub fn count(&self, exchange: &Exchange<'_>) {
        let key = (exchange.told.action.unwrap_or("other"), exchange.told.status);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(key).or_default() += 1;
    }

    /// The counts.
    pub fn counted(&self) -> Vec<([String; 2], u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labelled = |((action, status), count): (&(&str, u16), &u64)| {
            ([(*action).to_owned(), status.to_string()], *count)
        };
        counts.iter().map(labelled).collect()
    }
}
