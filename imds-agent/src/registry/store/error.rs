//! Why the store wrote or found nothing, in a sentence for whoever asked.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{Finding, Key};

/// Why nothing was written or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The document is no such record. At least one finding, each with its field.
    #[error("{}", Sentence(.0))]
    Invalid(Vec<Finding>),
    /// There is none.
    #[error("there is no {0}")]
    NotFound(Key),
    /// The record that must not exist does.
    #[error("{0} exists already")]
    Exists(Key),
    /// The file is not the one that the caller has seen.
    #[error("{0} has changed since it was read")]
    Changed(Key),
    /// Two files describe it, and which is meant is not said.
    #[error("{key} is described by two files, {} and {}: delete one of them", files[0].display(), files[1].display())]
    Ambiguous {
        /// What was asked for.
        key: Key,
        /// The first two of them.
        files: [PathBuf; 2],
    },
    /// It claims what another record has.
    #[error("{what} is already taken by {}", file.display())]
    Taken {
        /// `MacAddress 06:00:00:00:00:02`
        what: String,
        /// The other record's file.
        file: PathBuf,
    },
    /// It would leave another record with a name that means nothing.
    #[error("{key} is in use: {} names it", file.display())]
    InUse {
        /// What was to be deleted.
        key: Key,
        /// The file that names it.
        file: PathBuf,
    },
    /// What was to be changed in it cannot be.
    #[error("{0}")]
    Refused(String),
    /// The record's file leads somewhere else, which is somebody else's to write.
    #[error("{} is a symbolic link: change what it leads to", .0.display())]
    Link(PathBuf),
    /// The disk refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { action, path, source }
    }
}

/// Findings in one line.
struct Sentence<'a>(&'a [Finding]);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{finding}")?;
        }
        Ok(())
    }
}
