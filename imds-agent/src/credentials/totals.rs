//! What sources answered since the start and how sessions fare now, as plain state: nobody is told, anybody may read.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::FetchError;
use crate::registry::role::SourceKind;

/// What came of asking a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOutcome {
    /// A set.
    Supplied,
    /// The source said no, or the trust policy did before it was asked.
    Refused,
    /// No answer, or none that could be read.
    Failed,
}

/// How many sessions are in which trouble. They may have a set all the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Troubles {
    /// The source fails.
    pub failing: u64,
    /// The source refuses.
    pub refused: u64,
}

/// The counts of one kind of sessions.
#[derive(Default, Debug)]
pub struct Totals {
    answers: [[AtomicU64; FetchOutcome::ALL.len()]; SourceKind::ALL.len()],
    failing: AtomicU64,
    refused: AtomicU64,
}

impl FetchOutcome {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Supplied, Self::Refused, Self::Failed];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supplied => "supplied",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    pub(super) fn of<T>(answer: &Result<T, FetchError>) -> Self {
        match answer {
            Ok(_) => Self::Supplied,
            Err(FetchError::Refused { .. }) => Self::Refused,
            Err(FetchError::Unavailable(_)) => Self::Failed,
        }
    }
}

impl Totals {
    /// How often sources of a kind answered so.
    pub fn answers(&self, source: SourceKind, outcome: FetchOutcome) -> u64 {
        self.count_of(source, outcome)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The sessions in trouble now.
    pub fn troubles(&self) -> Troubles {
        Troubles {
            failing: self.failing.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    pub(super) fn count(&self, source: SourceKind, outcome: FetchOutcome) {
        if let Some(count) = self.count_of(source, outcome) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn set_troubles(&self, troubles: Troubles) {
        self.failing.store(troubles.failing, Ordering::Relaxed);
        self.refused.store(troubles.refused, Ordering::Relaxed);
    }

    fn count_of(&self, source: SourceKind, outcome: FetchOutcome) -> Option<&AtomicU64> {
        self.answers.get(source as usize)?.get(outcome as usize)
    }
}

/// As the log tells it: what is not zero.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for source in SourceKind::ALL {
            for outcome in FetchOutcome::ALL {
                let count = self.answers(source, outcome);
                if count > 0 {
                    write!(f, "{separator}{} {} {count}", source.as_str(), outcome.as_str())?;
                    separator = ", ";
                }
            }
        }
        if separator.is_empty() {
            f.write_str("nothing")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_and_outcome_is_counted_by_itself_and_told_if_there_was_any() {
        let totals = Totals::default();
        assert_eq!(totals.to_string(), "nothing");
        for (number, source) in (1..).zip(SourceKind::ALL) {
            for (more, outcome) in (0..).zip(FetchOutcome::ALL) {
                for _ in 0..number * 3 + more {
                    totals.count(source, outcome);
                }
            }
        }
        assert_eq!(totals.answers(SourceKind::Issuer, FetchOutcome::Supplied), 3);
        assert_eq!(totals.answers(SourceKind::Sts, FetchOutcome::Failed), 11);
        assert!(
            totals
                .to_string()
                .starts_with("issuer supplied 3, issuer refused 4, "),
            "{totals}"
        );
    }
}
