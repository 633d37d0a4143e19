//! The private keys that identity documents are signed with: one for RSA and one for DSA, told apart by what they are.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use der::{
    Any, Decode as _, SecretDocument,
    asn1::{BitString, ObjectIdentifier},
};
use dsa::{
    pkcs8::{DecodePrivateKey as _, EncodePublicKey as _},
    signature::{SignatureEncoding as _, Signer as _},
};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::{DSA_SHA256, IdentityKeysError, RSA, RSA_SHA256, SignError, dsa2048};

/// What a key signs with, always over SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with 2048 to 8192 bits.
    Rsa,
    /// DSA with 2048 bits and a subgroup of 256.
    Dsa,
}

/// A private key.
pub(super) enum PrivateKey {
    Rsa(KeyPair),
    Dsa(Box<dsa::SigningKey>),
}

impl PrivateKey {
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, IdentityKeysError> {
        let (label, der) =
            SecretDocument::from_pem(pem.trim_start()).map_err(|_| IdentityKeysError::PrivateKeyPem)?;
        match (algorithm, label) {
            (Algorithm::Rsa, "PRIVATE KEY") => Self::rsa(KeyPair::from_pkcs8(der.as_bytes())),
            (Algorithm::Rsa, "RSA PRIVATE KEY") => Self::rsa(KeyPair::from_der(der.as_bytes())),
            (Algorithm::Dsa, "PRIVATE KEY") => dsa::SigningKey::from_pkcs8_der(der.as_bytes())
                .ok()
                .filter(|key| dsa2048::is_of_size(key.verifying_key().components()))
                .map(|key| Self::Dsa(key.into()))
                .ok_or(IdentityKeysError::DsaPrivateKey),
            _ => Err(IdentityKeysError::PrivateKeyPem),
        }
    }

    fn rsa(key: Result<KeyPair, aws_lc_rs::error::KeyRejected>) -> Result<Self, IdentityKeysError> {
        key.map(Self::Rsa).map_err(IdentityKeysError::PrivateKey)
    }

    /// The same key and message make the same signature: PKCS #1 v1.5 has no randomness, and DSA takes its own from the two
    /// (RFC 6979).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                // It takes nothing of the randomness that the signature of `sign` offers.
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| SignError::Key)?;
                Ok(signature)
            }
            Self::Dsa(key) => Ok(key.try_sign(message).map_err(|_| SignError::Key)?.to_vec()),
        }
    }

    pub fn public_key(&self) -> der::Result<SubjectPublicKeyInfoOwned> {
        match self {
            Self::Rsa(key) => Ok(SubjectPublicKeyInfoOwned {
                algorithm: with_null(RSA),
                subject_public_key: BitString::from_bytes(key.public_key().as_ref())?,
            }),
            Self::Dsa(key) => {
                // In the terms of another release of the same crates.
                let public = key.verifying_key().to_public_key_der();
                let public = public.map_err(|_| der::Error::from(der::ErrorKind::Failed))?;
                SubjectPublicKeyInfoOwned::from_der(public.as_bytes())
            }
        }
    }

    /// How CMS names the way of signing (RFC 5754, sections 3.1 and 3.2).
    pub fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self {
            Self::Rsa(_) => with_null(RSA),
            Self::Dsa(_) => DSA_WITH_SHA256,
        }
    }

    /// How a certificate names it (RFC 5758, section 3.1 and RFC 4055, section 5).
    pub fn certificate_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self {
            Self::Rsa(_) => with_null(RSA_SHA256),
            Self::Dsa(_) => DSA_WITH_SHA256,
        }
    }
}

/// DSA has no parameters here, not even NULL.
const DSA_WITH_SHA256: AlgorithmIdentifierOwned = AlgorithmIdentifierOwned {
    oid: DSA_SHA256,
    parameters: None,
};

/// With the NULL parameters that RSA has to have and that older readers expect of SHA-256 too.
pub(super) fn with_null(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned {
        oid,
        parameters: Some(Any::null()),
    }
}
