//! The certificate of the HTTPS endpoint: the operator's, or one that the agent makes for itself and keeps.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::CertifiedKey;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use zeroize::Zeroizing;

/// Where the certificate is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Certificate {
    /// In two files of the operator's, in PEM.
    Given {
        /// The chain, the endpoint's own certificate first.
        certificate: PathBuf,
        /// Its private key.
        private_key: PathBuf,
    },
    /// In one file of the agent's own, key and certificate. It is made if it is not there.
    SelfMade {
        /// The file.
        path: PathBuf,
        /// Names and addresses that the certificate is for.
        names: Vec<String>,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or made.
    #[error("{path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {what} in PEM")]
    Malformed {
        /// The file.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// The names are none, or key and certificate do not belong together.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// The field or the file.
        what: String,
        /// Why not.
        why: String,
    },
}

impl Certificate {
    /// Reads it, or makes it.
    pub fn load_or_create(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let (certificate, private_key) = match self {
            Self::Given {
                certificate,
                private_key,
            } => (certificate, private_key),
            Self::SelfMade { path, names } => {
                if !path.exists() {
                    create(path, names)?;
                }
                (path, path)
            }
        };
        let malformed = |path: &Path, what| TlsError::Malformed {
            path: path.display().to_string(),
            what,
        };
        let text = Zeroizing::new(read(certificate)?);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| malformed(certificate, "certificate"))?;
        if chain.is_empty() {
            return Err(malformed(certificate, "certificate"));
        }
        let text = Zeroizing::new(read(private_key)?);
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| malformed(private_key, "private key"))?;
        let unusable = |error: rustls::Error| TlsError::Unusable {
            what: format!("the certificate of {}", certificate.display()),
            why: error.to_string(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Io {
        path: path.display().to_string(),
        source,
    })
}

/// Makes the file whole or not at all.
fn create(path: &Path, names: &[String]) -> Result<(), TlsError> {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).map_err(|error| TlsError::Unusable {
            what: format!("sts_endpoint.certificate_names = {names:?}"),
            why: error.to_string(),
        })?;
    let text = Zeroizing::new([signing_key.serialize_pem(), cert.pem()].concat());
    let temporary = path.with_extension(format!("new-{:016x}", rand::random::<u64>()));
    let directory = path.parent().unwrap_or(Path::new("/"));
    let written = DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(directory)
        .and_then(|()| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(&temporary)
        })
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        _ = fs::remove_file(&temporary);
        TlsError::Io {
            path: path.display().to_string(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn made_once_then_loaded_and_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/sts-endpoint.pem");
        let own = Certificate::SelfMade {
            path: path.clone(),
            names: vec!["sts.internal".to_owned(), "10.0.0.1".to_owned()],
        };
        own.load_or_create().unwrap();
        let made = fs::read(&path).unwrap();
        own.load_or_create().unwrap();
        assert_eq!(fs::read(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // Both parts are in there, so it passes for a given one as well.
        let given = Certificate::Given {
            certificate: path.clone(),
            private_key: path,
        };
        given.load_or_create().unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let (empty, absent) = (directory.path().join("empty"), directory.path().join("absent"));
        fs::write(&empty, "").unwrap();
        let error = |certificate: &Path| {
            let given = Certificate::Given {
                certificate: certificate.to_owned(),
                private_key: certificate.to_owned(),
            };
            given.load_or_create().unwrap_err().to_string()
        };
        assert!(error(&empty).ends_with("empty holds no certificate in PEM"));
        assert!(error(&absent).ends_with("absent"));

        let own = |path: &Path, names: &[&str]| Certificate::SelfMade {
            path: path.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let paths = ["one", "other"].map(|name| directory.path().join(name));
        for path in &paths {
            own(path, &["sts.internal"]).load_or_create().unwrap();
        }
        let [certificate, private_key] = paths;
        let mixed = Certificate::Given {
            certificate,
            private_key,
        };
        let error = mixed.load_or_create().unwrap_err().to_string();
        assert!(error.contains("one cannot be used"), "{error}");
        let error = own(&absent, &["no\u{e4}me"])
            .load_or_create()
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("sts_endpoint.certificate_names"), "{error}");
    }
}
