//! The private keys and the certificates of identity documents as files: given by the operator, or made at the first start.
//!
//! All are plain PEM, so that an operator can replace them, and copy them to every host of a fleet, with the tools at
//! hand. `identity.crt` and `identity-dsa.crt` are for relying parties; `identity.key` and `identity-dsa.key` are for root
//! alone.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::{KeyPair, KeySize},
};
use der::{SecretDocument, pem::LineEnding};
use zeroize::Zeroizing;

use crate::{
    imds::identity::{
        Algorithm, IdentityKey, IdentityKeys, IdentityKeysError,
        certificate::{CertificateError, Subject, self_signed},
        dsa2048,
    },
    keys::write_once,
};

/// The files of the RSA key and its certificate in the directory of keys.
pub const RSA_FILES: [&str; 2] = ["identity.key", "identity.crt"];

/// Those of the DSA key.
pub const DSA_FILES: [&str; 2] = ["identity-dsa.key", "identity-dsa.crt"];

/// Longer than any of them: an RSA key of 8192 bits takes 7 KB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A certificate is valid a day before it is made: nobody's clock is far off, and many are off a little.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFilesError {
    /// A file could not be read or made.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have read the private key.
    #[error(
        "{path} is open to others than its owner (mode {mode:o}): make it 0600, or delete it and the certificate for new ones"
    )]
    Exposed {
        /// The private key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A new key would not fit the certificate that relying parties have.
    #[error(
        "{certificate} is there, its private key {key} is not: put it back, or delete the certificate for new ones"
    )]
    KeyMissing {
        /// The private key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// What the files hold cannot be used.
    #[error("{key} and {certificate}")]
    Unusable {
        /// The private key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// Why.
        #[source]
        source: IdentityKeysError,
    },
    /// The host has not enough randomness, or no memory.
    #[error("no private key could be made")]
    Generate,
    /// No certificate could be made for the private key.
    #[error("no certificate could be made for {key}")]
    Certificate {
        /// The private key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: CertificateError,
    },
}

/// The operator's own files.
pub fn load(algorithm: Algorithm, key: &Path, certificate: &Path) -> Result<IdentityKey, IdentityFilesError> {
    let key_text = read(key)?;
    let mode = fs::metadata(key).map_err(|source| io_error(key, source))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityFilesError::Exposed {
            path: key.to_owned(),
            mode,
        });
    }
    let certificate_text = read(certificate)?;
    IdentityKey::from_pem(algorithm, &key_text, &certificate_text).map_err(|source| {
        IdentityFilesError::Unusable {
            key: key.to_owned(),
            certificate: certificate.to_owned(),
            source,
        }
    })
}

/// The files in `directory`; what is not there is made, with a certificate for `name`. A key without a certificate gets
/// one, as after a crash between the two. Of several callers at once all get the same.
pub fn load_or_create(
    directory: &Path,
    name: &str,
    now: Duration,
) -> Result<IdentityKeys, IdentityFilesError> {
    let one = |algorithm, files| load_or_create_one(algorithm, directory, files, name, now);
    Ok(IdentityKeys {
        rsa: one(Algorithm::Rsa, RSA_FILES)?,
        dsa: one(Algorithm::Dsa, DSA_FILES)?,
    })
}

fn load_or_create_one(
    algorithm: Algorithm,
    directory: &Path,
    files: [&str; 2],
    name: &str,
    now: Duration,
) -> Result<IdentityKey, IdentityFilesError> {
    let [key, certificate] = files.map(|file| directory.join(file));
    if !certificate.exists() {
        if !key.exists() {
            let pem = generate(algorithm)?;
            write_once(&key, 0o600, pem.as_bytes()).map_err(|source| io_error(&key, source))?;
        }
        let pem = certify(algorithm, &key, name, now)?;
        write_once(&certificate, 0o644, pem.as_bytes()).map_err(|source| io_error(&certificate, source))?;
    } else if !key.exists() {
        return Err(IdentityFilesError::KeyMissing { key, certificate });
    }
    load(algorithm, &key, &certificate)
}

fn read(path: &Path) -> Result<Zeroizing<String>, IdentityFilesError> {
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|source| io_error(path, source))?;
    Ok(text)
}

/// A new private key, in PEM.
fn generate(algorithm: Algorithm) -> Result<Zeroizing<String>, IdentityFilesError> {
    match algorithm {
        Algorithm::Rsa => generate_rsa(),
        Algorithm::Dsa => dsa2048::generate(&mut rand::rng()).ok_or(IdentityFilesError::Generate),
    }
}

fn generate_rsa() -> Result<Zeroizing<String>, IdentityFilesError> {
    let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| IdentityFilesError::Generate)?;
    let der = key.as_der().map_err(|_| IdentityFilesError::Generate)?;
    let document = SecretDocument::try_from(der.as_ref()).map_err(|_| IdentityFilesError::Generate)?;
    document
        .to_pem("PRIVATE KEY", LineEnding::LF)
        .map_err(|_| IdentityFilesError::Generate)
}

fn certify(
    algorithm: Algorithm,
    key: &Path,
    name: &str,
    now: Duration,
) -> Result<String, IdentityFilesError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| IdentityFilesError::Generate)?;
    let subject = Subject {
        name,
        serial,
        not_before: now.saturating_sub(CLOCK_SKEW),
    };
    self_signed(algorithm, &read(key)?, &subject).map_err(|source| IdentityFilesError::Certificate {
        key: key.to_owned(),
        source,
    })
}

fn io_error(path: &Path, source: io::Error) -> IdentityFilesError {
    IdentityFilesError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::imds::identity::{IdentityKeysError, Signatures};

    /// 2026-11-21T08:00:00Z.
    const NOW: Duration = Duration::from_secs(1_795_248_000);

    fn sign(keys: &IdentityKeys) -> Signatures {
        let signatures = Signatures::new(keys, b"{}").unwrap();
        signatures.with_dsa2048(keys).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn made_once_then_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let first = sign(&load_or_create(&keys, "host-1", NOW).unwrap());
        let later = load_or_create(&keys, "host-2", NOW * 2).unwrap();
        assert_eq!(sign(&later), first, "signatures outlive a restart, byte for byte");
        assert_eq!(mode(&keys), 0o700);
        for (key, files) in [(&later.rsa, RSA_FILES), (&later.dsa, DSA_FILES)] {
            assert_eq!(
                key.certificate().tbs_certificate.subject.to_string(),
                "CN=host-1,OU=instance identity"
            );
            assert_eq!(files.map(|file| mode(&keys.join(file))), [0o600, 0o644]);
        }
        assert_ne!(
            later.rsa.certificate().tbs_certificate.serial_number,
            later.dsa.certificate().tbs_certificate.serial_number,
            "signed data names its signer by name and serial number"
        );
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 4, "nothing is left behind");
    }

    #[test]
    fn of_many_makers_all_get_one_pair() {
        let directory = tempfile::tempdir().unwrap();
        let made = || sign(&load_or_create(directory.path(), "host-1", NOW).unwrap());
        let signed: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(made)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(signed.iter().all(|one| *one == signed[0]));
    }

    #[test]
    fn key_alone_gets_a_certificate_and_certificate_alone_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        load_or_create(path, "host-1", NOW).unwrap();
        for [key_file, certificate] in [RSA_FILES, DSA_FILES].map(|files| files.map(|file| path.join(file))) {
            let key = fs::read(&key_file).unwrap();
            fs::remove_file(&certificate).unwrap();
            load_or_create(path, "host-1", NOW).unwrap();
            assert_eq!(fs::read(&key_file).unwrap(), key);

            fs::remove_file(&key_file).unwrap();
            let error = load_or_create(path, "host-1", NOW).unwrap_err();
            assert!(matches!(error, IdentityFilesError::KeyMissing { .. }), "{error}");
            assert!(!key_file.exists());
            fs::write(&key_file, key).unwrap();
            fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn exposed_or_foreign_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        load_or_create(path, "host-1", NOW).unwrap();
        let other = tempfile::tempdir().unwrap();
        load_or_create(other.path(), "host-2", NOW).unwrap();
        for (algorithm, [key, certificate]) in [(Algorithm::Dsa, DSA_FILES), (Algorithm::Rsa, RSA_FILES)] {
            fs::set_permissions(path.join(key), fs::Permissions::from_mode(0o640)).unwrap();
            let error = load_or_create(path, "host-1", NOW).unwrap_err();
            assert!(
                matches!(error, IdentityFilesError::Exposed { mode: 0o640, .. }),
                "{error}"
            );

            let error = load(algorithm, &other.path().join(key), &path.join(certificate)).unwrap_err();
            let IdentityFilesError::Unusable {
                source: IdentityKeysError::Mismatch,
                ..
            } = error
            else {
                panic!("{error}");
            };
        }
    }
}
