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
pub mod verify;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cms::{
    cert::IssuerAndSerialNumber,
    content_info::{CmsVersion, ContentInfo},
    signed_data::{EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos},
};
use der::{
    Any, DecodePem as _, Encode as _, Tag,
    asn1::{ObjectIdentifier, OctetString, SetOfVec},
};
use sha2::{Digest as _, Sha256};
use x509_cert::{Certificate, attr::Attribute};

pub use private_key::Algorithm;
pub use published::Published;

use private_key::{PrivateKey, with_null};

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

/// Characters of base64 in a line, as EC2 breaks them. Readers of PEM ask for no more than that.
const LINE_CHARS: usize = 76;

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

/// A document with all its signatures, as they go out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedIdentity {
    /// `document`: exactly the bytes that are signed.
    pub document: Box<[u8]>,
    /// `signature`: RSA PKCS #1 v1.5 with SHA-256 over the document, in base64.
    pub signature: Box<str>,
    /// `rsa2048` and `pkcs7`: CMS signed data around the document, the inside of a PEM block `PKCS7`.
    pub rsa2048: Box<str>,
    /// `dsa2048`: the same, signed with DSA.
    pub dsa2048: Box<str>,
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
        if is_same {
            Ok(Self { private, certificate })
        } else {
            Err(IdentityKeysError::Mismatch)
        }
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

/// Signs `document`. Two RSA signatures and one of DSA, so some milliseconds: not for the request path.
pub fn sign(keys: &IdentityKeys, document: &[u8]) -> Result<SignedIdentity, SignError> {
    Ok(SignedIdentity {
        document: document.into(),
        signature: in_lines(&keys.rsa.sign(document)?).into(),
        rsa2048: in_lines(&signed_data(&keys.rsa, document)?).into(),
        dsa2048: in_lines(&signed_data(&keys.dsa, document)?).into(),
    })
}

/// CMS signed data around `document`, in DER.
fn signed_data(key: &IdentityKey, document: &[u8]) -> Result<Vec<u8>, SignError> {
    let signed_attributes = SetOfVec::try_from(vec![
        attribute(CONTENT_TYPE, Any::encode_from(&DATA)?)?,
        attribute(
            MESSAGE_DIGEST,
            Any::new(Tag::OctetString, Sha256::digest(document).as_slice())?,
        )?,
    ])?;
    // What is signed is the encoding as a plain SET, whatever tag it bears in the structure (RFC 5652, section 5.4).
    let signature = key.sign(&signed_attributes.to_der()?)?;
    let certificate = &key.certificate.tbs_certificate;
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: certificate.issuer.clone(),
            serial_number: certificate.serial_number.clone(),
        }),
        digest_alg: with_null(SHA256),
        signed_attrs: Some(signed_attributes),
        signature_algorithm: key.private.signature_algorithm(),
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let signed_data = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: vec![with_null(SHA256)].try_into()?,
        encap_content_info: EncapsulatedContentInfo {
            econtent_type: DATA,
            econtent: Some(Any::new(Tag::OctetString, document)?),
        },
        certificates: None,
        crls: None,
        signer_infos: SignerInfos(vec![signer].try_into()?),
    };
    let content = Any::encode_from(&signed_data)?;
    Ok(ContentInfo {
        content_type: SIGNED_DATA,
        content,
    }
    .to_der()?)
}

fn attribute(oid: ObjectIdentifier, value: Any) -> der::Result<Attribute> {
    Ok(Attribute {
        oid,
        values: vec![value].try_into()?,
    })
}

/// Base64 in EC2's lines, without a line feed at the end.
fn in_lines(bytes: &[u8]) -> String {
    let text = BASE64.encode(bytes);
    let mut lines = String::with_capacity(text.len().saturating_add(text.len() / LINE_CHARS));
    for (at, char) in text.chars().enumerate() {
        if at > 0 && at.is_multiple_of(LINE_CHARS) {
            lines.push('\n');
        }
        lines.push(char);
    }
    lines
}

#[cfg(test)]
mod tests;
