//! The certificate that a host makes for itself when its operator gives none.

use std::time::Duration;

use der::{
    Any, Encode as _, EncodePem as _, Tag,
    asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, SetOfVec, UtcTime},
    pem::LineEnding,
};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    attr::AttributeTypeAndValue,
    ext::{Extension, pkix::BasicConstraints, pkix::KeyUsage, pkix::KeyUsages},
    name::{RdnSequence, RelativeDistinguishedName},
    serial_number::SerialNumber,
    time::{Time, Validity},
};

use super::{Algorithm, IdentityKeysError, SignError, private_key::PrivateKey};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATIONAL_UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// Characters of a common name (RFC 5280, `ub-common-name`); a Linux host name has no more either.
const NAME_CHARS_MAX: usize = 64;

/// What makes one certificate differ from another.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The common name: who signs, in the words of the operator's people. 1 to 64 characters.
    pub name: &'a str,
    /// Randomness, so that no two certificates of one name have the same serial number.
    pub serial: [u8; 16],
    /// From when on it is valid, since the Unix epoch.
    pub not_before: Duration,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The name does not fit into a certificate.
    #[error("the certificate's name has {0} characters, not 1 to {NAME_CHARS_MAX}")]
    Name(usize),
    /// The private key is of no use.
    #[error(transparent)]
    Key(#[from] IdentityKeysError),
    /// It could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// A certificate for the private key, signed by that key, in PEM. It never expires: it is pinned, and who no longer trusts
/// it takes the pin away.
pub fn self_signed(
    algorithm: Algorithm,
    private_key: &str,
    subject: &Subject<'_>,
) -> Result<String, CertificateError> {
    let chars = subject.name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&chars) {
        return Err(CertificateError::Name(chars));
    }
    let private = PrivateKey::from_pem(algorithm, private_key)?;
    let tbs_certificate = to_be_signed(&private, subject).map_err(SignError::from)?;
    let signature = private.sign(&tbs_certificate.to_der().map_err(SignError::from)?)?;
    let certificate = Certificate {
        signature_algorithm: tbs_certificate.signature.clone(),
        tbs_certificate,
        signature: BitString::from_bytes(&signature).map_err(SignError::from)?,
    };
    Ok(certificate.to_pem(LineEnding::LF).map_err(SignError::from)?)
}

fn to_be_signed(private: &PrivateKey, subject: &Subject<'_>) -> der::Result<TbsCertificate> {
    let name = RdnSequence(vec![
        relative_name(ORGANIZATIONAL_UNIT, "instance identity")?,
        relative_name(COMMON_NAME, subject.name)?,
    ]);
    let mut serial = subject.serial;
    if let Some(first) = serial.first_mut() {
        // Positive, never zero, and always of the same length.
        *first = *first & 0x3f | 0x40;
    }
    Ok(TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&serial)?,
        signature: private.certificate_algorithm(),
        issuer: name.clone(),
        validity: Validity {
            not_before: time(subject.not_before)?,
            not_after: Time::INFINITY,
        },
        subject: name,
        subject_public_key_info: private.public_key()?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(vec![
            critical(
                BASIC_CONSTRAINTS,
                &BasicConstraints {
                    ca: false,
                    path_len_constraint: None,
                },
            )?,
            critical(KEY_USAGE, &KeyUsage(KeyUsages::DigitalSignature.into()))?,
        ]),
    })
}

fn relative_name(oid: ObjectIdentifier, value: &str) -> der::Result<RelativeDistinguishedName> {
    let value = Any::new(Tag::Utf8String, value.as_bytes())?;
    Ok(RelativeDistinguishedName(SetOfVec::try_from(vec![
        AttributeTypeAndValue { oid, value },
    ])?))
}

/// RFC 5280, section 4.1.2.5: years up to 2049 have two digits.
fn time(since_epoch: Duration) -> der::Result<Time> {
    let seconds = Duration::from_secs(since_epoch.as_secs());
    Ok(match UtcTime::from_unix_duration(seconds) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(seconds)?),
    })
}

fn critical(extn_id: ObjectIdentifier, value: &impl der::Encode) -> der::Result<Extension> {
    Ok(Extension {
        extn_id,
        critical: true,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}
