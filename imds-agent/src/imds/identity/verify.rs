//! The relying party's side: whether a signed document is genuine, and if not, why.
//!
//! Trust is a set of pinned certificates. Nothing that comes with a signature is believed, and no chain is built.

use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cms::{
    content_info::ContentInfo,
    signed_data::{SignedData, SignerIdentifier, SignerInfo},
};
use der::{
    Any, Decode as _, Encode as _, Tag, Tagged as _,
    asn1::{ObjectIdentifier, OctetStringRef},
};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;

use super::{
    CONTENT_TYPE, DATA, DSA, DSA_SHA256, MESSAGE_DIGEST, RSA, RSA_SHA256, SHA256, SIGNED_DATA, dsa2048,
};

/// A document that is what a pinned certificate's owner signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<'c> {
    /// The document, byte for byte.
    pub document: Vec<u8>,
    /// Who signed it.
    pub certificate: &'c Certificate,
}

/// Why a document is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VerifyError {
    /// The signature is not text as the service serves it.
    #[error("the signature is not base64")]
    NotBase64,
    /// The inside of the base64 is something else.
    #[error("the signature is not CMS (PKCS #7) signed data in DER")]
    NotSignedData,
    /// The document is not inside.
    #[error("the signed data holds no document")]
    NoDocument,
    /// There is one signer.
    #[error("the signed data has {0} signers, not one")]
    Signers(usize),
    /// Other algorithms, or none of the attributes that the service signs.
    #[error("the signature is not RSA PKCS #1 v1.5 or DSA with SHA-256 over signed attributes")]
    Algorithm,
    /// Somebody else's signature.
    #[error("the document is signed by {signer}, whose certificate is not among those given")]
    UnknownSigner {
        /// Issuer and serial number of the certificate that the signature names.
        signer: String,
    },
    /// The document inside was changed.
    #[error("the document was changed after it was signed")]
    DocumentChanged,
    /// The document beside it is another.
    #[error("the document given is not the one that is signed")]
    OtherDocument,
    /// The signature itself is wrong.
    #[error("the signature does not belong to the document and the certificate")]
    BadSignature,
    /// The certificate's time has not come or is over.
    #[error("the certificate {subject} is valid from {not_before} to {not_after} only")]
    OutsideValidity {
        /// Whose certificate.
        subject: String,
        /// Its first moment.
        not_before: String,
        /// Its last moment.
        not_after: String,
    },
}

impl VerifyError {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotBase64 => "NotBase64",
            Self::NotSignedData => "NotSignedData",
            Self::NoDocument => "NoDocument",
            Self::Signers(_) => "Signers",
            Self::Algorithm => "Algorithm",
            Self::UnknownSigner { .. } => "UnknownSigner",
            Self::DocumentChanged => "DocumentChanged",
            Self::OtherDocument => "OtherDocument",
            Self::BadSignature => "BadSignature",
            Self::OutsideValidity { .. } => "OutsideValidity",
        }
    }
}

/// Checks `document` against `signature`, which is what `instance-identity/signature` serves.
pub fn verify_signature<'c>(
    pinned: &'c [Certificate],
    now: Duration,
    document: &[u8],
    signature: &str,
) -> Result<Verified<'c>, VerifyError> {
    let signature = from_lines(signature)?;
    // Unlike signed data, a bare signature does not say whose it is.
    let signer = pinned
        .iter()
        .find(|certificate| is_signed_by(certificate, document, &signature));
    let certificate = signer.ok_or(VerifyError::BadSignature)?;
    check_validity(certificate, now)?;
    Ok(Verified {
        document: document.into(),
        certificate,
    })
}

/// Checks what `instance-identity/rsa2048`, `pkcs7` and `dsa2048` serve, with or without a PEM block's first and last line.
pub fn verify_signed_data<'c>(
    pinned: &'c [Certificate],
    now: Duration,
    signed_data: &str,
) -> Result<Verified<'c>, VerifyError> {
    let signed_data = read_signed_data(&from_lines(signed_data)?).ok_or(VerifyError::NotSignedData)?;
    let content = &signed_data.encap_content_info;
    let document = match &content.econtent {
        Some(document) if content.econtent_type == DATA && document.tag() == Tag::OctetString => {
            document.value()
        }
        _ => return Err(VerifyError::NoDocument),
    };
    let [signer] = signed_data.signer_infos.0.as_slice() else {
        return Err(VerifyError::Signers(signed_data.signer_infos.0.len()));
    };
    let certificate = find_signer(pinned, signer)?;
    check_validity(certificate, now)?;

    let algorithms = [RSA, RSA_SHA256, DSA, DSA_SHA256];
    let is_known = algorithms.contains(&signer.signature_algorithm.oid) && signer.digest_alg.oid == SHA256;
    let attributes = signer
        .signed_attrs
        .as_ref()
        .filter(|_| is_known)
        .ok_or(VerifyError::Algorithm)?;
    let signed = attributes.to_der().map_err(|_| VerifyError::NotSignedData)?;
    if !is_signed_by(certificate, &signed, signer.signature.as_bytes()) {
        return Err(VerifyError::BadSignature);
    }
    let content_type = signed_attribute(signer, CONTENT_TYPE).ok_or(VerifyError::Algorithm)?;
    if content_type.decode_as::<ObjectIdentifier>() != Ok(DATA) {
        return Err(VerifyError::Algorithm);
    }
    let digest = signed_attribute(signer, MESSAGE_DIGEST).ok_or(VerifyError::Algorithm)?;
    match digest.decode_as::<OctetStringRef<'_>>() {
        Ok(digest) if digest.as_bytes() == Sha256::digest(document).as_slice() => {}
        _ => return Err(VerifyError::DocumentChanged),
    }
    Ok(Verified {
        document: document.into(),
        certificate,
    })
}

/// Base64 in lines, perhaps between the two lines that make PEM of it.
fn from_lines(text: &str) -> Result<Vec<u8>, VerifyError> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("-----"));
    let base64: String = lines.collect();
    match BASE64.decode(base64) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(VerifyError::NotBase64),
    }
}

fn read_signed_data(der: &[u8]) -> Option<SignedData> {
    let info = ContentInfo::from_der(der).ok()?;
    (info.content_type == SIGNED_DATA).then(|| info.content.decode_as().ok())?
}

fn find_signer<'c>(pinned: &'c [Certificate], signer: &SignerInfo) -> Result<&'c Certificate, VerifyError> {
    let SignerIdentifier::IssuerAndSerialNumber(named) = &signer.sid else {
        return Err(VerifyError::UnknownSigner {
            signer: "a key identifier".to_owned(),
        });
    };
    let is_named = |certificate: &&Certificate| {
        let certificate = &certificate.tbs_certificate;
        certificate.issuer == named.issuer && certificate.serial_number == named.serial_number
    };
    pinned
        .iter()
        .find(is_named)
        .ok_or_else(|| VerifyError::UnknownSigner {
            signer: format!("{} {}", named.issuer, named.serial_number),
        })
}

fn check_validity(certificate: &Certificate, now: Duration) -> Result<(), VerifyError> {
    let certificate = &certificate.tbs_certificate;
    let validity = &certificate.validity;
    if (validity.not_before.to_unix_duration()..=validity.not_after.to_unix_duration()).contains(&now) {
        return Ok(());
    }
    Err(VerifyError::OutsideValidity {
        subject: certificate.subject.to_string(),
        not_before: validity.not_before.to_string(),
        not_after: validity.not_after.to_string(),
    })
}

/// What kind of signature it has to be, the certificate says and not the signature.
fn is_signed_by(certificate: &Certificate, message: &[u8], signature: &[u8]) -> bool {
    let key = &certificate.tbs_certificate.subject_public_key_info;
    match key.algorithm.oid {
        RSA => key.subject_public_key.as_bytes().is_some_and(|public| {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
                .verify(message, signature)
                .is_ok()
        }),
        DSA => dsa2048::is_signed_by(key, message, signature),
        _ => false,
    }
}

/// The only value of the only signed attribute `oid` (RFC 5652, section 11: more of either is an error).
fn signed_attribute(signer: &SignerInfo, oid: ObjectIdentifier) -> Option<&Any> {
    let mut attributes = signer
        .signed_attrs
        .as_ref()?
        .iter()
        .filter(|attribute| attribute.oid == oid);
    let attribute = attributes.next().filter(|_| attributes.next().is_none())?;
    match attribute.values.as_slice() {
        [value] => Some(value),
        _ => None,
    }
}
