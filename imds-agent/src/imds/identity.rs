//! Signed identity documents: how an instance proves to somebody else who it is.
//!
//! Read first: the EC2 user guide, "Instance identity documents" and "Verify the instance identity document", and
//! RFC 5652 (CMS), sections 5.3 and 5.4.
//!
//! The agent signs with the host's or the fleet's own RSA key; a relying party pins the certificate. Nothing here draws
//! randomness or knows the time: the same key signs the same document into the same bytes, today and after a restart.
//!
//! `rsa2048` is EC2's shape: CMS signed data with the document inside, SHA-256, no certificate (one that came along would
//! tempt a verifier to trust it) and signed attributes. The signing time, which EC2 puts among those, is left out: RFC 5652
//! makes it optional, and `pendingTime` in the document says more. `pkcs7` is the same text: EC2 signs that one with DSA
//! and SHA-1, which is not worth having anew. `dsa2048` is the same structure with the host's other key, DSA with 2048 bits and
//! SHA-256, for whoever asks for the name; a key of its own, so that nothing of the RSA key can be learned from it.

pub mod certificate;
pub mod dsa2048;
mod private_key;
pub mod published;
mod signatures;
mod signed_data;
pub mod verify;

use std::{fmt, sync::Arc};

use der::{DecodePem as _, asn1::ObjectIdentifier};
use x509_cert::Certificate;

pub use private_key::Algorithm;
pub use published::Published;
pub use signatures::{Part, Signatures};

use private_key::PrivateKey;
use signed_data::Envelope;

use super::{documents, tree::View};
use crate::registry::snapshot::Member;

/// `id-data`: the content is octets without further structure.
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
/// `id-signedData`.
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
/// The signed attribute that repeats the type of the content.
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
/// The signed attribute with the digest of the content.
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// SHA-256.
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// RSA keys, and PKCS #1 v1.5 signatures with whatever digest is named beside it.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// PKCS #1 v1.5 signatures with SHA-256.
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
/// DSA keys.
const DSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10040.4.1");
/// DSA signatures with SHA-256.
const DSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.2");

/// What identity documents are signed with.
#[derive(Debug)]
pub struct IdentityKeys {
    /// For `signature`, `pkcs7` and `rsa2048`.
    pub rsa: IdentityKey,
    /// For `dsa2048`.
    pub dsa: IdentityKey,
}

/// A private key and its certificate.
pub struct IdentityKey {
    private: PrivateKey,
    certificate: Certificate,
    envelope: Arc<Envelope>,
}

/// Why a private key and a certificate are of no use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityKeysError {
    /// The private key is not there in a form that is understood.
    #[error("the private key is not PEM of the kind PRIVATE KEY or RSA PRIVATE KEY")]
    PrivateKeyPem,
    /// It is no RSA key of 2048 to 8192 bits.
    #[error("the private key is not an RSA key of 2048 to 8192 bits: {0}")]
    PrivateKey(aws_lc_rs::error::KeyRejected),
    /// It is no DSA key of 2048 bits with a subgroup of 256.
    #[error("the private key is not a DSA key of 2048 bits with a subgroup of 256")]
    DsaPrivateKey,
    /// The certificate cannot be read.
    #[error("the certificate is not an X.509 certificate in PEM")]
    Certificate(#[source] der::Error),
    /// The certificate certifies another key.
    #[error("the certificate belongs to another private key")]
    Mismatch,
}

/// A document could not be signed. It depends on the key and not on the document.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key does not sign.
    #[error("the private key made no signature")]
    Key,
    /// The structure around the signature could not be encoded.
    #[error("the signature could not be encoded")]
    Encoding(#[from] der::Error),
}

impl IdentityKey {
    /// From the private key, PKCS #8 or for RSA also PKCS #1, and its certificate, both in PEM.
    pub fn from_pem(
        algorithm: Algorithm,
        private_key: &str,
        certificate: &str,
    ) -> Result<Self, IdentityKeysError> {
        let private = PrivateKey::from_pem(algorithm, private_key)?;
        let certificate = Certificate::from_pem(certificate).map_err(IdentityKeysError::Certificate)?;
        let certified = &certificate.tbs_certificate.subject_public_key_info;
        // What else certificates say of an RSA key differs: its parameters are NULL or not there.
        let is_same = private.public_key().is_ok_and(|public| {
            public.subject_public_key == certified.subject_public_key
                && (algorithm == Algorithm::Rsa || public.algorithm == certified.algorithm)
        });
        if !is_same {
            return Err(IdentityKeysError::Mismatch);
        }
        let envelope = Envelope::new(&certificate, &private.signature_algorithm());
        Ok(Self {
            private,
            envelope: Arc::new(envelope.map_err(IdentityKeysError::Certificate)?),
            certificate,
        })
    }

    /// What a relying party pins.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.private.sign(message)
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.certificate.tbs_certificate.subject)
    }
}

/// The document of `member`, byte for byte what the tree serves. It depends on the record alone.
pub fn document(member: &Member) -> Vec<u8> {
    let mut document = Vec::new();
    documents::identity(&View::of_record(member), &mut document);
    document
}

#[cfg(test)]
mod tests;
