//! The embedded issuer's keys as files, and how one takes over from another.
//!
//! `keys/issuer` mints. Whatever lies in `keys/issuer-accepted/` only opens. So that no set is ever refused, a new key lies
//! there on every host before it mints on any, and the old one goes there until its last set has expired. The files are looked at
//! again now and then, and no restart is needed.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use super::Issuer;
use crate::keys::{IssuerKey, Key, KeyError, Purpose};

/// How soon a change of the files is in force.
const LOOK: Duration = Duration::from_secs(10);

/// The keys at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IssuerKeys {
    /// Mints.
    pub newest: IssuerKey,
    /// Only open.
    pub accepted: Vec<IssuerKey>,
}

impl IssuerKeys {
    /// Reads the files under `directory`. The key that mints is made if there is none.
    pub fn load_or_create(directory: &Path) -> Result<Self, KeyError> {
        IssuerKey::load_or_create(&directory.join("issuer"), Purpose::Issuer)?;
        Self::load(directory)
    }

    /// The same, and there has to be one: who is about to put another key there may look away for a moment, and what were made
    /// then no other host would know.
    fn load(directory: &Path) -> Result<Self, KeyError> {
        Ok(Self {
            newest: IssuerKey::load(&directory.join("issuer"), Purpose::Issuer)?,
            accepted: Key::load_all(&directory.join("issuer-accepted"), Purpose::Issuer)?,
        })
    }
}

/// Hands changed files under `directory` to `issuer`, which has `current`. Files that cannot be read change nothing.
pub async fn follow(issuer: Arc<Issuer>, directory: PathBuf, mut current: IssuerKeys) {
    // A thread of its own waits and looks: a look from the runtime would wake three. It ends with the future.
    let (_followed, end) = mpsc::channel::<()>();
    let look = move || {
        let mut complaint = String::new();
        while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            match IssuerKeys::load(&directory) {
                Ok(keys) => {
                    complaint.clear();
                    if keys != current {
                        log::info!(
                            "issuer keys: {:?} mints, {:?} are accepted",
                            keys.newest,
                            keys.accepted
                        );
                        issuer.replace_keys(&keys);
                        current = keys;
                    }
                }
                Err(error) if error.to_string() != complaint => {
                    complaint = error.to_string();
                    log::warn!("issuer keys stay as they were: {complaint}");
                }
                Err(_) => {}
            }
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(look).await {
        log::error!("issuer keys are no longer followed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::credentials::{RoleSessionRequest, Source as _};

    #[tokio::test]
    async fn one_key_takes_over_from_another_and_no_set_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (keys, accepted) = (directory.path(), directory.path().join("issuer-accepted"));
        let first = IssuerKeys::load_or_create(keys).unwrap();
        assert!(first.accepted.is_empty());
        let issuer = Issuer::new(&first.newest, &[]);
        let request = RoleSessionRequest::of(r#"{"RoleName":"x","Arn":"arn:aws:iam::1:role/x"}"#);
        let old = issuer.fetch(&request).await.unwrap();

        // As docs/credentials.md says, but for the moment without a key.
        fs::create_dir(&accepted).unwrap();
        IssuerKey::create(&accepted.join("next"), Purpose::Issuer).unwrap();
        fs::rename(keys.join("issuer"), accepted.join("2026-11")).unwrap();
        assert!(IssuerKeys::load(keys).is_err());
        assert!(!keys.join("issuer").exists());
        fs::rename(accepted.join("next"), keys.join("issuer")).unwrap();
        let second = IssuerKeys::load(keys).unwrap();
        assert_eq!(second.accepted, [first.newest]);
        issuer.replace_keys(&second);
        let new = issuer.fetch(&request).await.unwrap();
        let opens = |set: &super::super::RoleCredentials, now: Timestamp| {
            issuer.open(set.session_token.expose_secret(), now).is_ok()
        };
        assert!(opens(&old, request.now) && opens(&new, request.now));

        fs::remove_file(accepted.join("2026-11")).unwrap();
        issuer.replace_keys(&IssuerKeys::load(keys).unwrap());
        assert!(!opens(&old, request.now) && opens(&new, request.now));
        fs::write(accepted.join("junk"), "junk").unwrap();
        assert!(IssuerKeys::load(keys).is_err());
    }
}
