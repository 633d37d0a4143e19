//! CMS signed data around a document, written where the response goes and without allocating: what differs from one document to
//! the next are the document, its digest and the signature, and lengths around them.
//!
//! Read first: RFC 5652, section 5. What stays is encoded once for each key, by the crates that know the structures.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cms::{cert::IssuerAndSerialNumber, content_info::CmsVersion, signed_data::SignerIdentifier};
use der::{Any, Encode as _, Header, Length, Tag, TagNumber, asn1::SetOfVec};
use x509_cert::{Certificate, attr::Attribute, spki::AlgorithmIdentifierOwned};

use super::{CONTENT_TYPE, DATA, MESSAGE_DIGEST, SHA256, SIGNED_DATA, private_key::with_null};

/// Bytes in a line of base64: 76 characters, as EC2 breaks them. Readers of PEM ask for no more than that.
const LINE_BYTES: usize = 57;
const LINE_CHARS: usize = 76;

/// `[0]`, around something.
const EXPLICIT: Tag = Tag::ContextSpecific {
    constructed: true,
    number: TagNumber::N0,
};

/// A document's SHA-256.
pub(super) type Digest = [u8; 32];

/// What all signed data of one key has in common.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Envelope {
    /// Version and digest algorithms of the signed data.
    head: Box<[u8]>,
    /// The signer's version, name and digest algorithm, and its signed attributes up to the digest, which is the last thing in
    /// them.
    before_digest: Box<[u8]>,
    /// What the signer signs with.
    algorithm: Box<[u8]>,
}

/// What the signature is of: the encoding as a plain SET, whatever tag it bears in the structure (RFC 5652, section 5.4).
pub(super) fn signed_attributes(digest: &Digest) -> der::Result<Vec<u8>> {
    let attribute = |oid, value| -> der::Result<Attribute> {
        Ok(Attribute {
            oid,
            values: vec![value].try_into()?,
        })
    };
    SetOfVec::try_from(vec![
        attribute(CONTENT_TYPE, Any::encode_from(&DATA)?)?,
        attribute(MESSAGE_DIGEST, Any::new(Tag::OctetString, digest.as_slice())?)?,
    ])?
    .to_der()
}

impl Envelope {
    /// For what the key of `certificate` signs with `algorithm`.
    pub fn new(certificate: &Certificate, algorithm: &AlgorithmIdentifierOwned) -> der::Result<Self> {
        let digest_algorithm = with_null(SHA256);
        let mut head = CmsVersion::V1.to_der()?;
        SetOfVec::try_from(vec![digest_algorithm.clone()])?.encode_to_vec(&mut head)?;
        let mut before_digest = CmsVersion::V1.to_der()?;
        let signer = SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: certificate.tbs_certificate.issuer.clone(),
            serial_number: certificate.tbs_certificate.serial_number.clone(),
        });
        signer.encode_to_vec(&mut before_digest)?;
        digest_algorithm.encode_to_vec(&mut before_digest)?;
        let digest = Digest::default();
        let mut attributes = signed_attributes(&digest)?;
        attributes.truncate(attributes.len().saturating_sub(digest.len()));
        if let Some(tag) = attributes.first_mut() {
            *tag = EXPLICIT.octet();
        }
        before_digest.append(&mut attributes);
        Ok(Self {
            head: head.into(),
            before_digest: before_digest.into(),
            algorithm: algorithm.to_der()?.into(),
        })
    }

    /// Appends signed data around the document that is at `document` in `out`.
    pub fn write(
        &self,
        document: Range<usize>,
        digest: &Digest,
        signature: &[u8],
        out: &mut Vec<u8>,
    ) -> der::Result<()> {
        let bytes = |bytes: &[u8]| Length::try_from(bytes.len());
        let document_length = Length::try_from(document.len())?;
        let octets = document_length.for_tlv()?;
        let content = DATA.encoded_len()?.saturating_add(octets.for_tlv()?);
        let (before_digest, algorithm) = (bytes(&self.before_digest)?, bytes(&self.algorithm)?);
        let signature_length = bytes(signature)?;
        let signer = [bytes(digest)?, algorithm, signature_length.for_tlv()?]
            .into_iter()
            .fold(before_digest, Length::saturating_add);
        let signers = signer.for_tlv()?;
        let signed_data = bytes(&self.head)?
            .saturating_add(content.for_tlv()?)
            .saturating_add(signers.for_tlv()?);
        let whole = SIGNED_DATA
            .encoded_len()?
            .saturating_add(signed_data.for_tlv()?.for_tlv()?);

        begin(Tag::Sequence, whole, out)?;
        SIGNED_DATA.encode_to_vec(out)?;
        begin(EXPLICIT, signed_data.for_tlv()?, out)?;
        begin(Tag::Sequence, signed_data, out)?;
        out.extend_from_slice(&self.head);
        begin(Tag::Sequence, content, out)?;
        DATA.encode_to_vec(out)?;
        begin(EXPLICIT, octets, out)?;
        begin(Tag::OctetString, document_length, out)?;
        out.extend_from_within(document);
        begin(Tag::Set, signers, out)?;
        begin(Tag::Sequence, signer, out)?;
        out.extend_from_slice(&self.before_digest);
        out.extend_from_slice(digest);
        out.extend_from_slice(&self.algorithm);
        begin(Tag::OctetString, signature_length, out)?;
        out.extend_from_slice(signature);
        Ok(())
    }
}

fn begin(tag: Tag, length: Length, out: &mut Vec<u8>) -> der::Result<()> {
    Header::new(tag, length)?.encode_to_vec(out).map(drop)
}

/// Turns what is in `bytes` from `start` on into base64 in EC2's lines, without a line feed at the end.
pub(super) fn into_lines(bytes: &mut Vec<u8>, start: usize) {
    let end = bytes.len();
    let mut at = start;
    while at < end {
        let next = at.saturating_add(LINE_BYTES).min(end);
        let mut line = [0; LINE_CHARS];
        let chars = bytes
            .get(at..next)
            .and_then(|bytes| BASE64.encode_slice(bytes, &mut line).ok());
        if at > start {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.get(..chars.unwrap_or_default()).unwrap_or_default());
        at = next;
    }
    bytes.drain(start..end);
}
